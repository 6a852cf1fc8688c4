//! The table of targets.

use crate::{
    canonical, config, cursor, deflate, http, ingest, message, names, policy, schema, server_message,
};

/// What a reader made of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The input means something.
    Accepted,
    /// The input was refused, as it has to be.
    Refused,
}

impl Verdict {
    /// Takes what was read for an acceptance.
    pub(crate) const fn of(accepted: bool) -> Self {
        if accepted { Self::Accepted } else { Self::Refused }
    }
}

/// One reader of bytes, with the properties that it must keep.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name, which is that of its corpus.
    pub name: &'static str,
    /// Shows an input to the reader.
    ///
    /// # Panics
    /// When a property does not hold: that is a finding.
    pub run: fn(&[u8]) -> Verdict,
}

impl Target {
    /// Finds a target by its name.
    #[must_use]
    pub fn find(name: &str) -> Option<Self> {
        TARGETS.iter().find(|target| target.name == name).copied()
    }
}

/// Every target.
pub const TARGETS: &[Target] = &[
    Target { name: "canonical", run: canonical::run },
    Target { name: "config", run: config::run },
    Target { name: "cursor", run: cursor::sealed },
    Target { name: "cursor_body", run: cursor::body },
    Target { name: "deflate", run: deflate::pack },
    Target { name: "encodings", run: message::both },
    Target { name: "http", run: http::run },
    Target { name: "inflate", run: deflate::open },
    Target { name: "ingest", run: ingest::run },
    Target { name: "message_json", run: message::json },
    Target { name: "message_msgpack", run: message::msgpack },
    Target { name: "names", run: names::run },
    Target { name: "policy", run: policy::run },
    Target { name: "schema", run: schema::run },
    Target { name: "server_message", run: server_message::run },
];
