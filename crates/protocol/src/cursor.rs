//! Pull cursors: opaque to clients, sealed by the server.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use driftline_model::{Epoch, KindName, RecordId, ScopeName, Seq, TenantId};
use hmac::{Hmac, Mac};
use sha2::Sha256;
use thiserror::Error;
use twox_hash::XxHash64;

/// Where a reader stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// The epoch in which it was given.
    pub epoch: Epoch,
    /// The kinds that it covers, sorted; empty: all.
    pub kinds: Vec<KindName>,
    /// The scopes that it covers, sorted.
    pub scopes: Vec<ScopeName>,
    /// The place.
    pub phase: Phase,
}

/// The place of a [`Cursor`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// In the log of changes.
    Log(Resume),
    /// Rows of scopes that the reader lost are told as evictions, by kind and id; then what is missing, then the log.
    Evict {
        /// The last row that was told; none: before the first.
        after: Option<(KindName, RecordId)>,
        /// The scopes that the reader lost.
        lost: Vec<ScopeName>,
        /// What is paged as a snapshot afterwards.
        missing: Missing,
        /// Where the log starts afterwards.
        then: Resume,
    },
    /// A snapshot of what is missing, by kind and id; then the log.
    Snapshot {
        /// The last row that was sent; none: before the first.
        after: Option<(KindName, RecordId)>,
        /// What is paged.
        missing: Missing,
        /// Rows that were sent.
        sent: u64,
        /// Where the log starts afterwards.
        then: Resume,
    },
}

/// What a reader was never sent, of what its cursor covers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Missing {
    /// Everything.
    pub all: bool,
    /// These kinds, in every scope.
    pub kinds: Vec<KindName>,
    /// These scopes, of every kind.
    pub scopes: Vec<ScopeName>,
}

impl Missing {
    /// Tells whether nothing is missing.
    #[must_use]
    pub fn is_none(&self) -> bool {
        !self.all && self.kinds.is_empty() && self.scopes.is_empty()
    }
}

/// A place in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resume {
    /// Where the reader was last caught up: changes are told against it.
    pub from: Seq,
    /// Rows up to here were sent.
    pub at: Seq,
}

/// The key that seals a store's cursors.
#[derive(Clone)]
pub struct CursorKey(Hmac<Sha256>);

impl std::fmt::Debug for CursorKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CursorKey(..)")
    }
}

/// Why a text is not a cursor of this tenant and server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("not a cursor of this server")]
pub struct CursorError;

const FORMAT: u8 = 2;
/// Begins what stands for a place in the log of events.
const PLACE: u8 = 0xe1;
const PLACE_CHARS_MAX: usize = 64;
const MAC_BYTES: usize = 8;
/// Room for as many kinds as a request may name, twice, and for some hundred scopes.
const CURSOR_CHARS_MAX: usize = 128 << 10;

impl CursorKey {
    /// Makes a key of 32 secret bytes.
    #[must_use]
    pub fn new(secret: &[u8; 32]) -> Self {
        Self(Hmac::new_from_slice(secret).expect("HMAC takes keys of any length"))
    }

    /// Seals a place in a tenant's log of events for a user: base64url of its fields and an 8-byte MAC.
    #[must_use]
    pub fn seal_place(&self, tenant: &TenantId, user: &str, epoch: Epoch, id: u64) -> String {
        let mut out = vec![PLACE];
        out.extend_from_slice(&epoch.number().to_be_bytes());
        out.extend_from_slice(&id.to_be_bytes());
        let mac = self.mac(&place_text(tenant, user, &out));
        out.extend_from_slice(&mac);
        URL_SAFE_NO_PAD.encode(out)
    }

    /// Opens what [`CursorKey::seal_place`] sealed for the same user.
    ///
    /// # Errors
    /// [`CursorError`] for anything else.
    pub fn open_place(
        &self,
        tenant: &TenantId,
        user: &str,
        token: &str,
    ) -> Result<(Epoch, u64), CursorError> {
        if token.len() > PLACE_CHARS_MAX {
            return Err(CursorError);
        }
        let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| CursorError)?;
        let (place, mac) = bytes.split_at_checked(13).ok_or(CursorError)?;
        let mut hmac = self.0.clone();
        hmac.update(&place_text(tenant, user, place));
        hmac.verify_truncated_left(mac).map_err(|_| CursorError)?;
        if mac.len() != MAC_BYTES || place.first() != Some(&PLACE) {
            return Err(CursorError);
        }
        let epoch = place[1..5].try_into().map_err(|_| CursorError)?;
        let id = place[5..13].try_into().map_err(|_| CursorError)?;
        Ok((Epoch::new(u32::from_be_bytes(epoch)), u64::from_be_bytes(id)))
    }

    /// Seals a cursor for a tenant: base64url of its fields and an 8-byte MAC.
    #[must_use]
    pub fn seal(&self, tenant: &TenantId, cursor: &Cursor) -> String {
        let mut out = Writer(vec![FORMAT]);
        out.0.extend_from_slice(&cursor.epoch.number().to_be_bytes());
        out.0.extend_from_slice(&tenant_hash(tenant).to_be_bytes());
        out.kinds(&cursor.kinds);
        out.scopes(&cursor.scopes);
        match &cursor.phase {
            Phase::Log(resume) => {
                out.0.push(0);
                out.resume(*resume);
            }
            Phase::Snapshot { after, missing, sent, then } => {
                out.0.push(1);
                out.row(after.as_ref());
                out.missing(missing);
                out.number(*sent);
                out.resume(*then);
            }
            Phase::Evict { after, lost, missing, then } => {
                out.0.push(2);
                out.row(after.as_ref());
                out.scopes(lost);
                out.missing(missing);
                out.resume(*then);
            }
        }
        let mac = self.mac(&out.0);
        out.0.extend_from_slice(&mac);
        URL_SAFE_NO_PAD.encode(out.0)
    }

    /// Opens a cursor that this key sealed for this tenant.
    ///
    /// # Errors
    /// [`CursorError`] for anything else.
    pub fn open(&self, tenant: &TenantId, text: &str) -> Result<Cursor, CursorError> {
        if text.len() > CURSOR_CHARS_MAX {
            return Err(CursorError);
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| CursorError)?;
        let (body, mac) = bytes.split_at_checked(bytes.len().wrapping_sub(MAC_BYTES)).ok_or(CursorError)?;
        let mut hmac = self.0.clone();
        hmac.update(body);
        hmac.verify_truncated_left(mac).map_err(|_| CursorError)?;
        let mut reader = Reader(body);
        if reader.bytes(1)? != [FORMAT] {
            return Err(CursorError);
        }
        let epoch = u32::from_be_bytes(reader.bytes(4)?.try_into().map_err(|_| CursorError)?);
        if reader.bytes(8)? != tenant_hash(tenant).to_be_bytes() {
            return Err(CursorError);
        }
        let kinds = reader.kinds()?;
        let scopes = reader.scopes()?;
        let phase = match reader.bytes(1)? {
            [0] => Phase::Log(reader.resume()?),
            [1] => Phase::Snapshot {
                after: reader.row()?,
                missing: reader.missing()?,
                sent: reader.number()?,
                then: reader.resume()?,
            },
            [2] => Phase::Evict {
                after: reader.row()?,
                lost: reader.scopes()?,
                missing: reader.missing()?,
                then: reader.resume()?,
            },
            _ => return Err(CursorError),
        };
        if !reader.0.is_empty() {
            return Err(CursorError);
        }
        Ok(Cursor { epoch: Epoch::new(epoch), kinds, scopes, phase })
    }

    fn mac(&self, body: &[u8]) -> [u8; MAC_BYTES] {
        let mut hmac = self.0.clone();
        hmac.update(body);
        let full = hmac.finalize().into_bytes();
        let mut mac = [0; MAC_BYTES];
        mac.copy_from_slice(&full[..MAC_BYTES]);
        mac
    }
}

/// What a sealed place's MAC is over.
fn place_text(tenant: &TenantId, user: &str, place: &[u8]) -> Vec<u8> {
    [place, tenant.as_str().as_bytes(), b"\x01", user.as_bytes()].concat()
}

fn tenant_hash(tenant: &TenantId) -> u64 {
    XxHash64::oneshot(0, tenant.as_str().as_bytes())
}

struct Writer(Vec<u8>);

impl Writer {
    /// A variable-length number, seven bits a byte, low bits first.
    fn number(&mut self, mut number: u64) {
        loop {
            let byte = (number & 0x7f) as u8;
            number >>= 7;
            if number == 0 {
                return self.0.push(byte);
            }
            self.0.push(byte | 0x80);
        }
    }

    fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.0.extend_from_slice(text.as_bytes());
    }

    fn kinds(&mut self, kinds: &[KindName]) {
        self.number(kinds.len() as u64);
        for kind in kinds {
            self.text(kind.as_str());
        }
    }

    fn scopes(&mut self, scopes: &[ScopeName]) {
        self.number(scopes.len() as u64);
        for scope in scopes {
            self.text(scope.as_str());
        }
    }

    fn row(&mut self, row: Option<&(KindName, RecordId)>) {
        self.0.push(u8::from(row.is_some()));
        if let Some((kind, id)) = row {
            self.text(kind.as_str());
            self.text(id.as_str());
        }
    }

    fn missing(&mut self, missing: &Missing) {
        self.0.push(u8::from(missing.all));
        self.kinds(&missing.kinds);
        self.scopes(&missing.scopes);
    }

    fn resume(&mut self, resume: Resume) {
        self.number(resume.from.number());
        self.number(resume.at.number());
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, count: usize) -> Result<&'a [u8], CursorError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(CursorError)?;
        self.0 = rest;
        Ok(taken)
    }

    fn number(&mut self) -> Result<u64, CursorError> {
        let mut number = 0_u64;
        for shift in (0..63).step_by(7) {
            let byte = self.bytes(1)?[0];
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(CursorError)
    }

    fn text(&mut self) -> Result<&'a str, CursorError> {
        let len = usize::try_from(self.number()?).map_err(|_| CursorError)?;
        std::str::from_utf8(self.bytes(len)?).map_err(|_| CursorError)
    }

    fn kind(&mut self) -> Result<KindName, CursorError> {
        KindName::new(self.text()?).map_err(|_| CursorError)
    }

    fn record(&mut self) -> Result<RecordId, CursorError> {
        RecordId::new(self.text()?).map_err(|_| CursorError)
    }

    fn kinds(&mut self) -> Result<Vec<KindName>, CursorError> {
        let count = self.number()?;
        (0..count).map(|_| self.kind()).collect()
    }

    fn scopes(&mut self) -> Result<Vec<ScopeName>, CursorError> {
        let count = self.number()?;
        (0..count).map(|_| ScopeName::new(self.text()?).map_err(|_| CursorError)).collect()
    }

    fn flag(&mut self) -> Result<bool, CursorError> {
        match self.bytes(1)? {
            [0] => Ok(false),
            [1] => Ok(true),
            _ => Err(CursorError),
        }
    }

    fn row(&mut self) -> Result<Option<(KindName, RecordId)>, CursorError> {
        if self.flag()? { Ok(Some((self.kind()?, self.record()?))) } else { Ok(None) }
    }

    fn missing(&mut self) -> Result<Missing, CursorError> {
        Ok(Missing { all: self.flag()?, kinds: self.kinds()?, scopes: self.scopes()? })
    }

    fn resume(&mut self) -> Result<Resume, CursorError> {
        Ok(Resume { from: Seq::new(self.number()?), at: Seq::new(self.number()?) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(name: &str) -> TenantId {
        TenantId::new(name).unwrap()
    }

    #[test]
    fn cursors_open_only_for_their_tenant_and_key() {
        let key = CursorKey::new(&[7; 32]);
        let resume = Resume { from: Seq::new(5), at: Seq::new(1 << 40) };
        let kinds = vec![KindName::new("cars").unwrap(), KindName::new("movies").unwrap()];
        let scopes = vec![ScopeName::new("group:site:7").unwrap(), ScopeName::tenant()];
        let row = Some((kinds[0].clone(), RecordId::new("é 1").unwrap()));
        let missing = Missing { all: true, kinds: kinds.clone(), scopes: scopes.clone() };
        let phases = [
            Phase::Log(resume),
            Phase::Snapshot { after: None, missing: Missing::default(), sent: 0, then: resume },
            Phase::Snapshot { after: row.clone(), missing: missing.clone(), sent: 700, then: resume },
            Phase::Evict { after: None, lost: vec![], missing: Missing::default(), then: resume },
            Phase::Evict { after: row, lost: scopes.clone(), missing, then: resume },
        ];
        for phase in phases {
            let cursor = Cursor { epoch: Epoch::new(9), kinds: kinds.clone(), scopes: scopes.clone(), phase };
            let sealed = key.seal(&tenant("t1"), &cursor);
            assert_eq!(key.open(&tenant("t1"), &sealed), Ok(cursor));
            assert_eq!(key.open(&tenant("t2"), &sealed), Err(CursorError));
            assert_eq!(CursorKey::new(&[8; 32]).open(&tenant("t1"), &sealed), Err(CursorError));
            let mut bytes = URL_SAFE_NO_PAD.decode(&sealed).unwrap();
            bytes[20] ^= 1;
            assert_eq!(key.open(&tenant("t1"), &URL_SAFE_NO_PAD.encode(bytes)), Err(CursorError));
        }
        for bad in ["", "AAAA", "!", "AAAAAAAAAAAAAAAAAAAAAAAA"] {
            assert_eq!(key.open(&tenant("t1"), bad), Err(CursorError), "{bad}");
        }
    }
}
