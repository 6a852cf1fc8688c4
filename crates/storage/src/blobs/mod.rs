//! Where the bytes of uploads and files lie.

mod local;

pub use local::LocalBlobs;
