//! WebSockets: handshake, frames, and the task of one connection.

mod connection;
mod frame;
mod handshake;
mod reader;

pub(crate) use handshake::upgrade;
