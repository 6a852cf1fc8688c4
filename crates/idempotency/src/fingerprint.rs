//! What tells two requests with one key apart.

use std::fmt;

use sha2::{Digest as _, Sha256};

/// The SHA-256 of all that makes a request what it is.
///
/// Two requests with the same fingerprint are the same request, sent again. Every part goes in with its kind and its
/// length before it, so no text can move from one part into its neighbour without changing the fingerprint.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Takes the bytes of a stored fingerprint.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the bytes, to store them.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Starts a fingerprint that is made part by part; different domains never have the same fingerprint.
    #[must_use]
    pub fn builder(domain: &str) -> FingerprintBuilder {
        let mut builder = FingerprintBuilder(Sha256::new());
        builder.text(domain);
        builder
    }

    /// Makes the fingerprint of a request over HTTP.
    #[must_use]
    pub fn request(request: &RequestParts<'_>) -> Self {
        let mut builder = Self::builder("request");
        builder.text(request.version).text(request.route);
        builder.count(request.path.len());
        for value in request.path {
            builder.text(value);
        }
        let mut query = request.query.to_vec();
        query.sort_by_key(|(name, _)| *name);
        builder.count(query.len());
        for (name, value) in query {
            builder.text(name).text(value);
        }
        builder.optional(request.content_type.map(essence).as_deref());
        builder.bytes(request.body);
        builder.finish()
    }

    /// Makes the fingerprint of an envelope of the protocol from its type, its sync session and its payload in
    /// canonical form, so that the same document in two encodings has one fingerprint.
    #[must_use]
    pub fn envelope(kind: &str, sync_id: Option<&str>, canonical_payload: &[u8]) -> Self {
        Self::builder("envelope").text(kind).optional(sync_id).bytes(canonical_payload).finish()
    }
}

impl fmt::Debug for Fingerprint {
    /// Shows the first 8 of the 32 bytes, in hexadecimal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fingerprint(")?;
        for byte in &self.0[..8] {
            write!(f, "{byte:02x}")?;
        }
        f.write_str("..)")
    }
}

/// What makes a request over HTTP what it is.
#[derive(Debug, Clone, Copy)]
pub struct RequestParts<'a> {
    /// The version of the interface, such as `v1`.
    pub version: &'a str,
    /// The method and the template of the route, such as `POST /v1/tickets/{id}/notes`.
    pub route: &'a str,
    /// The values of the template's parameters, decoded, in the order of the template.
    pub path: &'a [&'a str],
    /// The names and values of the query, decoded. Names are sorted; the values of one name keep their order, which may
    /// have a meaning.
    pub query: &'a [(&'a str, &'a str)],
    /// The media type of the body. Its parameters and its case do not count.
    pub content_type: Option<&'a str>,
    /// The body, to the byte.
    pub body: &'a [u8],
}

/// The media type alone, in lower case.
fn essence(content_type: &str) -> String {
    content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// A fingerprint that is made part by part, in an order that is always the same.
///
/// ```
/// use driftline_idempotency::Fingerprint;
///
/// let ops = ["op-1", "op-2"];
/// let mut builder = Fingerprint::builder("batch");
/// builder.text("0192f3a1-b2c3-7000-8000-00000000abcd").number(7).count(ops.len());
/// for op in ops {
///     builder.text(op);
/// }
/// assert_eq!(builder.finish(), builder.finish());
/// ```
#[derive(Clone)]
pub struct FingerprintBuilder(Sha256);

impl FingerprintBuilder {
    /// Adds bytes.
    pub fn bytes(&mut self, part: &[u8]) -> &mut Self {
        self.part(b'b', part)
    }

    /// Adds a text.
    pub fn text(&mut self, part: &str) -> &mut Self {
        self.part(b't', part.as_bytes())
    }

    /// Adds a text that may be absent; an absent text is not an empty one.
    pub fn optional(&mut self, part: Option<&str>) -> &mut Self {
        match part {
            Some(part) => self.text(part),
            None => self.part(b'-', &[]),
        }
    }

    /// Adds a number.
    pub fn number(&mut self, part: u64) -> &mut Self {
        self.part(b'n', &part.to_be_bytes())
    }

    /// Adds how many elements follow, so that the end of a list cannot move.
    pub fn count(&mut self, elements: usize) -> &mut Self {
        self.part(b'c', &(elements as u64).to_be_bytes())
    }

    /// Returns the fingerprint of all parts so far.
    #[must_use]
    pub fn finish(&self) -> Fingerprint {
        Fingerprint(self.0.clone().finalize().into())
    }

    fn part(&mut self, kind: u8, part: &[u8]) -> &mut Self {
        let mut head = [kind; 9];
        head[1..].copy_from_slice(&(part.len() as u64).to_be_bytes());
        self.0.update(head);
        self.0.update(part);
        self
    }
}

impl fmt::Debug for FingerprintBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FingerprintBuilder").field(&self.finish()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_stable() {
        // Stored records outlive a release: a change of these values is a change of what is stored.
        let fingerprint = Fingerprint::envelope("sync_data", None, b"{}");
        assert_eq!(format!("{fingerprint:?}"), "Fingerprint(c269485723878ad2..)");
        assert_eq!(Fingerprint::from_bytes(*fingerprint.as_bytes()), fingerprint);
    }

    #[test]
    fn media_types_are_their_essence() {
        for (text, expected) in [
            ("application/json", "application/json"),
            ("Application/JSON; charset=utf-8", "application/json"),
            (" text/plain ;a=b", "text/plain"),
            ("", ""),
        ] {
            assert_eq!(essence(text), expected);
        }
    }
}
