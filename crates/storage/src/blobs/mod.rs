//! Where the bytes of uploads and files lie.

mod local;
mod s3;

pub use local::LocalBlobs;
pub use s3::{S3Blobs, S3Error, S3Options};
