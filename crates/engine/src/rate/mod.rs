//! How often something may happen: buckets, and who has one.

mod bucket;
mod connection;
mod kept;
mod keyed;
mod users;

pub use bucket::{Bucket, Level};
pub use keyed::Buckets;
pub use users::{Connected, UserMeter};

pub(crate) use connection::ConnectionMeter;
pub(crate) use users::Users;
