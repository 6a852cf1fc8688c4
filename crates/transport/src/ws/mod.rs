//! WebSockets: handshake, frames, and the task of each connection.

mod connection;
mod door;
mod echo;
mod form;
mod frame;
mod gate;
mod handshake;
mod link;
mod newcomer;
mod outbox;
mod pump;
mod reader;

pub(crate) use form::event_text;
pub(crate) use handshake::{check_origin, upgrade};
