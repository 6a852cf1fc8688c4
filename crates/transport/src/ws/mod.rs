//! WebSockets: handshake, frames, and the task of each connection.

mod connection;
mod frame;
mod handshake;
mod link;
mod outbox;
mod pump;
mod reader;

pub(crate) use handshake::upgrade;
