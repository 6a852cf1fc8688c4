//! Pull cursors: the sealed text, and what stands behind a good seal.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use driftline_model::{Epoch, Seq, TenantId};
use driftline_protocol::{Cursor, CursorKey, Phase, Resume};
use hmac::{Hmac, Mac as _};
use sha2::Sha256;

use crate::target::Verdict;

/// The secret of the golden vectors.
const SECRET: [u8; 32] = [
    0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28,
    29, 30, 31,
];

/// The format, the epoch and the tenant, which stand before everything else.
const HEAD_BYTES: usize = 13;

/// The end of a sealed cursor.
const MAC_BYTES: usize = 8;

/// Opens the input as it is.
pub(crate) fn sealed(input: &[u8]) -> Verdict {
    let Ok(text) = std::str::from_utf8(input) else { return Verdict::Refused };
    let key = CursorKey::new(&SECRET);
    let Ok(cursor) = key.open(&tenant(), text) else { return Verdict::Refused };
    assert_eq!(key.seal(&tenant(), &cursor), text, "a cursor has one text");
    assert!(CursorKey::new(&[9; 32]).open(&tenant(), text).is_err(), "another key does not open it");
    Verdict::Accepted
}

/// Opens the input as what follows the tenant, under a good seal: what an older or newer server may have written.
pub(crate) fn body(input: &[u8]) -> Verdict {
    let key = CursorKey::new(&SECRET);
    let mut bytes = plain(&key);
    bytes.truncate(HEAD_BYTES);
    bytes.extend_from_slice(input);
    let mut hmac = Hmac::<Sha256>::new_from_slice(&SECRET).expect("HMAC takes keys of any length");
    hmac.update(&bytes);
    bytes.extend_from_slice(&hmac.finalize().into_bytes()[..MAC_BYTES]);
    let Ok(cursor) = key.open(&tenant(), &URL_SAFE_NO_PAD.encode(bytes)) else { return Verdict::Refused };
    let sealed = key.seal(&tenant(), &cursor);
    assert_eq!(key.open(&tenant(), &sealed).as_ref(), Ok(&cursor), "what was sealed is opened");
    assert!(key.open(&other_tenant(), &sealed).is_err(), "another tenant does not open it");
    Verdict::Accepted
}

/// A whole cursor of the tenant, as bytes.
fn plain(key: &CursorKey) -> Vec<u8> {
    let resume = Resume { from: Seq::ZERO, at: Seq::ZERO };
    let cursor = Cursor { epoch: Epoch::new(9), kinds: vec![], scopes: vec![], phase: Phase::Log(resume) };
    URL_SAFE_NO_PAD.decode(key.seal(&tenant(), &cursor)).expect("a sealed cursor is base64url")
}

fn tenant() -> TenantId {
    TenantId::new("t1").expect("a tenant's name")
}

fn other_tenant() -> TenantId {
    TenantId::new("t2").expect("a tenant's name")
}
