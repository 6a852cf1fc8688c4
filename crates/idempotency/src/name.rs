//! A scope and a key as one value of a fixed size.

use crate::{Fingerprint, Key, Scope};

/// The SHA-256 of a scope and a key: what tables in memory are keyed by, so that an entry has one size and a look-up
/// copies no text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Name([u8; 32]);

impl Name {
    pub(crate) fn new(scope: &Scope, key: &Key) -> Self {
        let mut builder = Fingerprint::builder("name");
        builder.text(scope.tenant()).text(scope.owner()).text(key.as_str());
        Self(*builder.finish().as_bytes())
    }
}
