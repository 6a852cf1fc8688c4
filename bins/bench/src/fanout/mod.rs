//! The `fanout` command: events of one topic to many subscribers, at the highest rate or at a fixed one.

mod command;
mod publish;
mod subscribe;
#[cfg(test)]
mod tests;

pub(crate) use command::{Options, run};
