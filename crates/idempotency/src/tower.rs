//! A layer for requests over HTTP: axum, hyper, or any other `tower` service.

mod body;
mod layer;
mod problem;
mod service;

pub use body::ReplyBody;
pub use layer::{AnswerReference, Future, IdempotencyLayer, Keyless, Route, Settings, Unscoped};
pub use service::{Attempt, Idempotency};
