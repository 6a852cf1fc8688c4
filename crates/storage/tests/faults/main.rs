//! What a failing network, a failing PostgreSQL and foreign sessions do to nobody's data: who was told that a change
//! is written finds it once, who was told to send again may, and nobody waits for ever.

mod bed;
mod bounds;
mod locks;
mod network;
mod outages;
mod session;
#[path = "../support/mod.rs"]
mod support;
