//! Checksums: how a device finds out that it holds what the server holds, and repairs what differs.

use driftline_model::{KindName, RecordId, ScopeName, Seq};
use twox_hash::XxHash64;

use crate::envelope::{Envelope, Fault};
use crate::json::Node;
use crate::write::{write_json_string, write_number};

/// The most parts into which one request may cut a range.
const PARTS_MAX: u64 = 64;

/// The parts into which a range is cut when the request does not say.
const PARTS_DEFAULT: u64 = 16;

/// What the rows of one kind in one scope add up to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checksum {
    /// The scope.
    pub scope: ScopeName,
    /// The kind.
    pub kind: KindName,
    /// How many live rows there are.
    pub count: u64,
    /// The wrapping sum of their [`row_sum`].
    pub sum: u64,
}

/// How far a snapshot has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Rows that were sent.
    pub sent: u64,
    /// Rows that there are, as far as the server knows.
    pub total: u64,
}

/// The rows of one kind in one scope whose ids lie between two bounds, by their bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    /// The kind.
    pub kind: KindName,
    /// The scope.
    pub scope: ScopeName,
    /// Ids after this one; none: from the first.
    pub after: Option<RecordId>,
    /// Ids up to and with this one; none: to the last.
    pub until: Option<RecordId>,
}

/// Asks for the sums of the parts of a range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestChecksums {
    /// The range.
    pub range: Range,
    /// Into how many parts to cut it, 1 to 64.
    pub parts: u64,
}

/// Answers `request_checksums`: the parts of the range in the order of their ids, without a gap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checksums {
    /// The head of the tenant's sequence when the sums were read.
    pub seq: Seq,
    /// The range that was asked.
    pub range: Range,
    /// The parts.
    pub parts: Vec<ChecksumPart>,
}

/// A part of a range with what its rows add up to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChecksumPart {
    /// Ids after this one; none: from the first.
    pub after: Option<RecordId>,
    /// Ids up to and with this one; none: to the last.
    pub until: Option<RecordId>,
    /// How many live rows there are.
    pub count: u64,
    /// The wrapping sum of their [`row_sum`].
    pub sum: u64,
}

/// Returns the sum of one live row: XXH64, seed 0, of kind, U+001F, id, U+001F and the version in decimal.
///
/// The sum of several rows is their wrapping addition, so that a row is added and taken out alone.
#[must_use]
pub fn row_sum(kind: &KindName, id: &RecordId, version: Seq) -> u64 {
    let mut digits = itoa::Buffer::new();
    let version = digits.format(version.number());
    // The longest kind, id and number with what stands between them.
    let mut bytes = [0_u8; KindName::MAX_BYTES + RecordId::MAX_BYTES + 22];
    let mut len = 0;
    for part in [kind.as_str(), "\u{1f}", id.as_str(), "\u{1f}", version] {
        bytes[len..len + part.len()].copy_from_slice(part.as_bytes());
        len += part.len();
    }
    XxHash64::oneshot(0, &bytes[..len])
}

impl RequestChecksums {
    pub(crate) fn read(envelope: &Envelope<'_>) -> Result<Self, Fault> {
        let range = read_range(|name| envelope.field(name), "")?;
        let parts = match envelope.field("parts") {
            None => PARTS_DEFAULT,
            Some(node) => node
                .as_u64()
                .filter(|parts| (1..=PARTS_MAX).contains(parts))
                .ok_or_else(|| Fault::invalid("/parts", "must be an integer from 1 to 64"))?,
        };
        Ok(Self { range, parts })
    }
}

impl Range {
    /// Reads the member `range` of a payload.
    pub(crate) fn of_payload(envelope: &Envelope<'_>) -> Result<Option<Self>, Fault> {
        let Some(node) = envelope.field("range") else { return Ok(None) };
        if !node.is_object() {
            return Err(Fault::invalid("/range", "must be an object"));
        }
        read_range(|name| node.get(name).filter(|node| !node.is_null()), "/range").map(Some)
    }

    /// Reads a range that a server wrote.
    pub(crate) fn read(node: Node<'_>) -> Option<Self> {
        read_range(|name| node.get(name).filter(|node| !node.is_null()), "").ok()
    }

    /// Appends the range as an object.
    pub(crate) fn write(&self, out: &mut String) {
        out.push_str("{\"kind\":");
        write_json_string(out, self.kind.as_str());
        out.push_str(",\"scope\":");
        write_json_string(out, self.scope.as_str());
        write_bounds(out, self.after.as_ref(), self.until.as_ref());
        out.push('}');
    }
}

fn read_range<'d>(field: impl Fn(&str) -> Option<Node<'d>>, under: &str) -> Result<Range, Fault> {
    let record = |name: &str| match field(name) {
        None => Ok(None),
        Some(node) => node
            .as_str()
            .and_then(|text| RecordId::new(&text).ok())
            .map(Some)
            .ok_or_else(|| Fault::invalid(&format!("{under}/{name}"), "must be a record's id")),
    };
    let text = |name: &str| field(name).and_then(|node| node.as_str());
    let kind = text("kind").and_then(|text| KindName::new(&text).ok());
    let scope = text("scope").and_then(|text| ScopeName::new(&text).ok());
    Ok(Range {
        kind: kind.ok_or_else(|| Fault::invalid(&format!("{under}/kind"), "must be a kind's name"))?,
        scope: scope.ok_or_else(|| Fault::invalid(&format!("{under}/scope"), "must be a scope's name"))?,
        after: record("after")?,
        until: record("until")?,
    })
}

/// Appends the bounds that there are; an absent one is open.
pub(crate) fn write_bounds(out: &mut String, after: Option<&RecordId>, until: Option<&RecordId>) {
    for (name, id) in [(",\"after\":", after), (",\"until\":", until)] {
        if let Some(id) = id {
            out.push_str(name);
            write_json_string(out, id.as_str());
        }
    }
}

impl Checksum {
    fn write(&self, out: &mut String) {
        out.push_str("{\"scope\":");
        write_json_string(out, self.scope.as_str());
        out.push_str(",\"kind\":");
        write_json_string(out, self.kind.as_str());
        write_sum(out, self.count, self.sum);
        out.push('}');
    }

    fn read(node: Node<'_>) -> Option<Self> {
        let (count, sum) = read_sum(node)?;
        Some(Self {
            scope: ScopeName::new(&node.get("scope")?.as_str()?).ok()?,
            kind: KindName::new(&node.get("kind")?.as_str()?).ok()?,
            count,
            sum,
        })
    }

    /// Appends a list of sums as an array.
    pub(crate) fn write_all(sums: &[Self], out: &mut String) {
        write_array(out, sums, Self::write);
    }

    /// Reads an array of sums; an absent one is empty.
    pub(crate) fn read_all(node: Option<Node<'_>>) -> Option<Vec<Self>> {
        let Some(node) = node else { return Some(Vec::new()) };
        node.is_array().then(|| node.elements().map(Self::read).collect::<Option<_>>())?
    }
}

impl Progress {
    pub(crate) fn write(self, out: &mut String) {
        out.push_str("{\"sent\":");
        write_number(out, self.sent);
        out.push_str(",\"total\":");
        write_number(out, self.total);
        out.push('}');
    }

    pub(crate) fn read(node: Node<'_>) -> Option<Self> {
        Some(Self { sent: node.get("sent")?.as_u64()?, total: node.get("total")?.as_u64()? })
    }
}

impl Checksums {
    /// Finishes a message that was opened with its outer fields.
    #[must_use]
    pub fn encode(&self, mut out: String) -> String {
        out.push_str(",\"seq\":");
        write_number(&mut out, self.seq.number());
        out.push_str(",\"range\":");
        self.range.write(&mut out);
        out.push_str(",\"parts\":");
        write_array(&mut out, &self.parts, ChecksumPart::write);
        out.push('}');
        out
    }

    pub(crate) fn read(node: Node<'_>) -> Option<Self> {
        let parts = node.get("parts").filter(Node::is_array)?;
        Some(Self {
            seq: Seq::new(node.get("seq")?.as_u64()?),
            range: Range::read(node.get("range")?)?,
            parts: parts.elements().map(ChecksumPart::read).collect::<Option<_>>()?,
        })
    }
}

impl ChecksumPart {
    fn write(&self, out: &mut String) {
        out.push('{');
        let at = out.len();
        write_bounds(out, self.after.as_ref(), self.until.as_ref());
        write_sum(out, self.count, self.sum);
        // Whatever stands first brought its comma along.
        out.remove(at);
        out.push('}');
    }

    fn read(node: Node<'_>) -> Option<Self> {
        let record = |name: &str| match node.get(name).filter(|node| !node.is_null()) {
            None => Some(None),
            Some(node) => RecordId::new(&node.as_str()?).ok().map(Some),
        };
        let (count, sum) = read_sum(node)?;
        Some(Self { after: record("after")?, until: record("until")?, count, sum })
    }
}

fn write_array<T>(out: &mut String, all: &[T], write: fn(&T, &mut String)) {
    out.push('[');
    for (at, one) in all.iter().enumerate() {
        if at > 0 {
            out.push(',');
        }
        write(one, out);
    }
    out.push(']');
}

fn write_sum(out: &mut String, count: u64, sum: u64) {
    out.push_str(",\"count\":");
    write_number(out, count);
    out.push_str(&format!(",\"sum\":\"{sum:016x}\""));
}

fn read_sum(node: Node<'_>) -> Option<(u64, u64)> {
    let sum = node.get("sum")?.as_str()?;
    let hex = sum.len() == 16 && sum.bytes().all(|b| b.is_ascii_hexdigit());
    let sum = u64::from_str_radix(&sum, 16).ok().filter(|_| hex)?;
    Some((node.get("count")?.as_u64()?, sum))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_is_of_kind_id_and_version() {
        let kind = |name| KindName::new(name).expect("a kind");
        let id = |name| RecordId::new(name).expect("a record");
        let sum = row_sum(&kind("note"), &id("n-1"), Seq::new(7));
        assert_eq!(sum, XxHash64::oneshot(0, b"note\x1fn-1\x1f7"));
        assert_ne!(sum, row_sum(&kind("note"), &id("n-1"), Seq::new(8)));
        assert_ne!(sum, row_sum(&kind("note"), &id("n-17"), Seq::new(0)));
    }
}
