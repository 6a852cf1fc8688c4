//! Rows on their way to a device: pages of a pull and live deltas.

use driftline_model::{Hlc, KindName, Object, RecordId, ScopeName, Seq};

use crate::checksums::{Checksum, Progress, Range};
use crate::write::{write_json_string, write_number};

/// How a row reaches a reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    /// The whole record.
    Put,
    /// The fields that changed.
    Patch,
    /// The record was deleted.
    Delete,
    /// The record left the reader's scopes; it lives on for others.
    Evict,
}

impl ChangeKind {
    /// Returns the name on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Patch => "patch",
            Self::Delete => "delete",
            Self::Evict => "evict",
        }
    }

    /// Finds a kind of change by its name.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        [Self::Put, Self::Patch, Self::Delete, Self::Evict].into_iter().find(|kind| kind.as_str() == text)
    }
}

/// One row of a page or a delta.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The record's kind.
    pub kind: KindName,
    /// The record.
    pub id: RecordId,
    /// The scope that it belongs to.
    pub scope: ScopeName,
    /// Its version.
    pub version: Seq,
    /// How it reaches the reader.
    pub change: ChangeKind,
    /// The whole record, or what changed; empty for a delete and an eviction.
    pub fields: Object,
}

impl Change {
    /// Appends the row as JSON.
    pub fn encode(&self, out: &mut String) {
        out.push_str("{\"kind\":");
        write_json_string(out, self.kind.as_str());
        out.push_str(",\"id\":");
        write_json_string(out, self.id.as_str());
        out.push_str(",\"scope\":");
        write_json_string(out, self.scope.as_str());
        out.push_str(",\"version\":");
        write_number(out, self.version.number());
        out.push_str(",\"change\":\"");
        out.push_str(self.change.as_str());
        out.push_str("\",\"fields\":");
        out.push_str(self.fields.as_str());
        out.push('}');
    }
}

/// Encodes rows as a JSON array, to be shared by every connection that gets all of them.
#[must_use]
pub fn encode_changes<'a>(changes: impl IntoIterator<Item = &'a Change>) -> String {
    let mut out = String::from("[");
    for change in changes {
        if out.len() > 1 {
            out.push(',');
        }
        change.encode(&mut out);
    }
    out.push(']');
    out
}

/// A page of a pull.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerData {
    /// The rows, as [`encode_changes`] made them.
    pub changes: String,
    /// Where the reader stands after this page.
    pub cursor: String,
    /// The head of the tenant's sequence when the page was read.
    pub seq: Seq,
    /// The tenant's highest stored clock.
    pub hlc: Hlc,
    /// Whether more pages wait.
    pub has_more: bool,
    /// What the reader holds by now, when it is caught up; empty: nothing is told.
    pub checksums: Vec<Checksum>,
    /// How far a snapshot has come.
    pub progress: Option<Progress>,
    /// The range that was asked, when the page is one of a repair.
    pub range: Option<Range>,
    /// In a snapshot: the number of the last change before the epoch began. A device that holds a later version of an
    /// earlier epoch holds what the server has lost.
    pub epoch_seq: Option<Seq>,
}

impl ServerData {
    /// Finishes a message that was opened with its outer fields.
    #[must_use]
    pub fn encode(&self, mut out: String) -> String {
        out.reserve(self.changes.len() + self.cursor.len() + 128);
        out.push_str(",\"changes\":");
        self.tail(&mut out);
        out.push('}');
        out
    }

    /// Encodes the page as an object of its own.
    #[must_use]
    pub fn encode_object(&self) -> String {
        let mut out = String::with_capacity(self.changes.len() + self.cursor.len() + 128);
        out.push_str("{\"changes\":");
        self.tail(&mut out);
        out.push('}');
        out
    }

    fn tail(&self, out: &mut String) {
        out.push_str(&self.changes);
        out.push_str(",\"cursor\":");
        write_json_string(out, &self.cursor);
        out.push_str(",\"seq\":");
        write_number(out, self.seq.number());
        out.push_str(",\"hlc\":\"");
        out.push_str(&self.hlc.to_string());
        out.push_str(if self.has_more { "\",\"has_more\":true" } else { "\",\"has_more\":false" });
        if !self.checksums.is_empty() {
            out.push_str(",\"checksums\":");
            Checksum::write_all(&self.checksums, out);
        }
        if let Some(progress) = self.progress {
            out.push_str(",\"progress\":");
            progress.write(out);
        }
        if let Some(epoch_seq) = self.epoch_seq {
            out.push_str(",\"epoch_seq\":");
            write_number(out, epoch_seq.number());
        }
        if let Some(range) = &self.range {
            out.push_str(",\"range\":");
            range.write(out);
        }
    }
}

/// Changes of other devices, as they are committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerDelta {
    /// What this connection had accounted for before; a client that stands elsewhere must pull.
    pub prev_seq: Seq,
    /// What it has accounted for now.
    pub seq: Seq,
    /// Where the reader stands after this delta.
    pub cursor: String,
    /// The tenant's highest stored clock.
    pub hlc: Hlc,
    /// The rows, as [`encode_changes`] made them.
    pub changes: std::sync::Arc<str>,
}

impl ServerDelta {
    /// Finishes a message that was opened with its outer fields.
    #[must_use]
    pub fn encode(&self, mut out: String) -> String {
        out.reserve(self.changes.len() + self.cursor.len() + 128);
        out.push_str(",\"prev_seq\":");
        write_number(&mut out, self.prev_seq.number());
        out.push_str(",\"seq\":");
        write_number(&mut out, self.seq.number());
        out.push_str(",\"cursor\":");
        write_json_string(&mut out, &self.cursor);
        out.push_str(",\"hlc\":\"");
        out.push_str(&self.hlc.to_string());
        out.push_str("\",\"changes\":");
        out.push_str(&self.changes);
        out.push('}');
        out
    }
}
