//! Identifiers, clock stamps and epochs.

use std::fmt::{Debug, Display};
use std::str::FromStr;

use driftline_model::{
    ConflictId, DeviceId, Epoch, Hlc, KindName, OpId, RecordId, ScopeName, SyncId, TenantId, UserId,
};
use driftline_protocol::{Document, format_millis, parse_time};

use crate::target::Verdict;

/// Reads the input as everything that a short text can stand for. A text that stands for a clock stamp, an epoch, a
/// session or a time is accepted.
pub(crate) fn run(input: &[u8]) -> Verdict {
    let Ok(text) = std::str::from_utf8(input) else { return Verdict::Refused };
    assert_id::<ConflictId>(text, ConflictId::MAX_BYTES, |_| true);
    assert_id::<DeviceId>(text, DeviceId::MAX_BYTES, |_| true);
    assert_id::<OpId>(text, OpId::MAX_BYTES, |_| true);
    assert_id::<RecordId>(text, RecordId::MAX_BYTES, |_| true);
    assert_id::<ScopeName>(text, ScopeName::MAX_BYTES, |_| true);
    assert_id::<TenantId>(text, TenantId::MAX_BYTES, |_| true);
    assert_id::<KindName>(text, KindName::MAX_BYTES, |c| c.is_ascii_alphanumeric() || "_.:$-".contains(c));
    let session = assert_id::<SyncId>(text, SyncId::MAX_BYTES, |c| c.is_ascii_hexdigit() || c == '-');
    if let Ok(user) = UserId::text(text) {
        assert_eq!(user.to_string(), text);
    }
    Verdict::of(stamp(text) | epoch(text) | time(text) | (session && text.len() == 36))
}

/// An identifier is a text that is not empty, not too long and without control characters, and it stays what it is.
fn assert_id<T>(text: &str, bytes_max: usize, allowed: fn(char) -> bool) -> bool
where
    T: FromStr + Display,
{
    let wanted =
        !text.is_empty() && text.len() <= bytes_max && text.chars().all(|c| allowed(c) && !c.is_control());
    match T::from_str(text) {
        Ok(id) => {
            assert!(wanted, "{text:?} is no identifier");
            assert_eq!(id.to_string(), text, "an identifier stays what it is");
        }
        Err(_) => assert!(!wanted, "{text:?} is an identifier"),
    }
    wanted
}

fn stamp(text: &str) -> bool {
    let Some(stamp) = assert_one_text::<Hlc>(text) else { return false };
    let last = Hlc::new(Hlc::MAX_MILLIS, u16::MAX);
    assert!(stamp <= last && stamp.millis() <= Hlc::MAX_MILLIS, "a stamp is within its bounds");
    assert_eq!(Hlc::from_bits(stamp.bits()), stamp, "a stamp is its number");
    if stamp < last {
        let next = stamp.successor();
        assert!(next > stamp && *next.to_string() > *text, "clock order is text order");
        let now_ms = stamp.millis() / 2;
        assert!(stamp.tick(now_ms) > stamp, "a clock does not go back");
    }
    true
}

fn epoch(text: &str) -> bool {
    let Some(epoch) = assert_one_text::<Epoch>(text) else { return false };
    assert_eq!(Epoch::new(epoch.number()), epoch, "an epoch is its number");
    true
}

/// There is one text for a value: what is accepted is written the same.
fn assert_one_text<T: FromStr + Display + Debug>(text: &str) -> Option<T> {
    let value = text.parse::<T>().ok()?;
    assert_eq!(value.to_string(), text, "there is one text for a value");
    Some(value)
}

/// A time that was read, in either form, is written so that it is read as the same.
fn time(text: &str) -> bool {
    let read = |text: &str| parse_time(Document::parse(text.as_bytes(), 1).ok()?.root());
    let quoted = serde_json::Value::from(text).to_string();
    let Some(millis) = read(&quoted) else { return false };
    let written = format!("\"{}\"", format_millis(millis));
    assert_eq!(read(&written), Some(millis), "{written}: a time stays what it is");
    true
}
