//! The name of an effect outside the database.

use std::fmt;

use crate::{Fingerprint, Key, Scope};

/// The name of what a request does outside the database: the same for every attempt at it.
///
/// Handed to the other system (as its own idempotency key, as the name of an object), it makes an effect that two attempts
/// cause happen once. It is also the same for another request with the same key, after a release or an expiry: so a sender
/// makes a new key for every request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EffectId([u8; 16]);

impl EffectId {
    /// Makes the name of the effect of a request from the scope and the key alone.
    #[must_use]
    pub fn new(scope: &Scope, key: &Key) -> Self {
        let mut builder = Fingerprint::builder("effect");
        builder.text(scope.tenant()).text(scope.owner()).text(key.as_str());
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&builder.finish().as_bytes()[..16]);
        Self(bytes)
    }

    /// Returns the bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for EffectId {
    /// Writes 32 hexadecimal digits, lower case.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}
