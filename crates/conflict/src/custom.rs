//! Strategies of embedding services.

use std::fmt::Debug;

use crate::record::Mark;

/// A strategy that an embedding service brings.
///
/// It is asked only where two devices wrote different values of one field without having seen each other's, or where
/// an update met a delete. Finding that out, the marks, the audit and the versions stay with [`crate::apply`].
///
/// An answer must depend on nothing but its arguments: a replay of the same changes has to give the same bytes.
pub trait CustomStrategy: Debug + Send + Sync {
    /// Returns the name used in configuration, on the wire and in the audit.
    fn name(&self) -> &'static str;

    /// Says what holds for the strategy's decisions beyond what holds for all.
    fn promises(&self) -> Promises;

    /// Decides a field that two devices wrote.
    fn decide(&self, field: &Contested<'_>) -> Verdict;

    /// Decides whether a record lives that one device deleted and another updated.
    fn existence(&self, clash: &Clash) -> Side {
        if clash.delete_is_newer { clash.of_delete() } else { clash.of_update() }
    }
}

/// What a [`CustomStrategy`] promises; its author checks it, for example with the histories of this crate's tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Promises {
    /// Every arrival order of concurrent changes gives the same state, for honest clocks.
    pub order_free: bool,
}

/// A field that two devices wrote. Names and values are canonical JSON texts.
#[derive(Debug, Clone, Copy)]
pub struct Contested<'a> {
    /// The field's name.
    pub name: &'a str,
    /// The value that arrives.
    pub client: &'a str,
    /// The value that is stored.
    pub server: &'a str,
    /// The clock, device and number of the arriving write.
    pub client_mark: Mark,
    /// The same of the stored one.
    pub server_mark: Mark,
    /// Whether the arriving write is the more recent one, by (clock, device, number).
    pub client_is_newer: bool,
}

/// An update that met a delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clash {
    /// Which of the two arrives; the other one is stored.
    pub arriving: Arriving,
    /// Whether the delete is the more recent one, by (clock, device, number).
    pub delete_is_newer: bool,
}

impl Clash {
    /// Returns the side that deletes.
    #[must_use]
    pub const fn of_delete(&self) -> Side {
        match self.arriving {
            Arriving::Delete => Side::Client,
            Arriving::Update => Side::Server,
        }
    }

    /// Returns the side that updates.
    #[must_use]
    pub const fn of_update(&self) -> Side {
        match self.arriving {
            Arriving::Delete => Side::Server,
            Arriving::Update => Side::Client,
        }
    }
}

/// What arrives at the other side's change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arriving {
    /// A delete, at a record that another device changed.
    Delete,
    /// A write, at a record that another device deleted.
    Update,
}

/// One of two sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The arriving change.
    Client,
    /// What is stored.
    Server,
}

/// The decision on a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The arriving value.
    Client,
    /// The stored value.
    Server,
    /// A value made of both, canonical JSON.
    Merged(String),
    /// A reviewer decides; until then the stored value stays.
    Held,
}
