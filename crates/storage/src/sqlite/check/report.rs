//! What a check of a database file says.

use std::fmt;

use driftline_model::Seq;
use thiserror::Error;

/// What a database file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Contents {
    /// Bytes of the file.
    pub bytes: u64,
    /// Tenants.
    pub tenants: u64,
    /// Records, tombstones among them.
    pub records: u64,
    /// The highest number of a change, of all tenants.
    pub seq: Seq,
}

impl fmt::Display for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bytes, tenants, records, seq } = self;
        write!(f, "{bytes} bytes, tenants: {tenants}, records: {records}, highest seq: {seq}")
    }
}

/// Something that is wrong with a database file.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Finding {
    /// It cannot be read as a database at all.
    #[error("it is not a database: {0}")]
    NotADatabase(String),
    /// It is a database, but none of Driftline's.
    #[error("it is not a database of this program: it has no history of migrations")]
    Foreign,
    /// A log lies beside it, so that the file alone is not all of it.
    #[error("a write-ahead log lies beside it ({0}): it is a database in use, or one that was not closed")]
    Log(String),
    /// A program that knows more wrote it.
    #[error("it was written by a newer version of this program: migration {0} is not known")]
    Newer(String),
    /// A backup's bytes are not those that were written.
    #[error("its bytes are not those of the backup that was made")]
    Seal,
    /// Pages or indexes do not fit together.
    #[error("the file is damaged: {0}")]
    Damaged(String),
    /// A row does not hold what this program writes.
    #[error("{table}: {row}: {reason}")]
    Unreadable {
        /// The table.
        table: &'static str,
        /// Which row.
        row: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A row has a number that its tenant's sequence did not come to.
    #[error("{table}: {row}: its seq {seq} is above {head}, where its tenant's sequence ends")]
    AheadOfHead {
        /// The table.
        table: &'static str,
        /// Which row.
        row: String,
        /// The row's number.
        seq: Seq,
        /// The tenant's last one.
        head: Seq,
    },
    /// A tenant has no head, or one that cannot be.
    #[error("tenant {tenant}: {reason}")]
    Head {
        /// The tenant.
        tenant: String,
        /// What is wrong.
        reason: String,
    },
    /// Kept sums are not those of the rows.
    #[error("the sums of kind {kind} in scope {scope} are not those of its records")]
    Sums {
        /// The kind.
        kind: String,
        /// The scope.
        scope: String,
    },
    /// The secret that seals cursors is absent or damaged.
    #[error("the secret that seals cursors is absent or damaged")]
    Secret,
    /// More of the same kind.
    #[error("{table}: {count} more of this kind")]
    More {
        /// The table.
        table: &'static str,
        /// How many are not listed.
        count: u64,
    },
}

/// What a check of a file found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// What is wrong; nothing when the file is whole.
    pub findings: Vec<Finding>,
    /// Migrations that the file is still to go through. Its rows are read after that, and not before.
    pub pending: Vec<String>,
    /// Whether the file has the seal of a backup. Without one nobody can tell whether a letter changed within a text.
    pub sealed: bool,
    /// What the file holds, as far as it could be read.
    pub contents: Contents,
}
