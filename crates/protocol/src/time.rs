//! Times on the wire.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::json::Node;

/// The last Unix millisecond that has a text: RFC 3339 ends with the year 9999.
const TEXT_MS_MAX: u64 = 253_402_300_799_999;

/// Bytes of a time's text.
const TEXT_LEN: usize = 24;

/// Formats Unix milliseconds as RFC 3339 in UTC with milliseconds. What comes after the year 9999 is written as its end.
#[must_use]
pub fn format_millis(unix_ms: u64) -> String {
    let mut out = String::with_capacity(TEXT_LEN);
    write_millis(&mut out, unix_ms);
    out
}

/// Appends what [`format_millis`] gives.
pub(crate) fn write_millis(out: &mut String, unix_ms: u64) {
    let nanos = i128::from(unix_ms.min(TEXT_MS_MAX)) * 1_000_000;
    let at = OffsetDateTime::from_unix_timestamp_nanos(nanos).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let mut text = *b"0000-00-00T00:00:00.000Z";
    let parts = [
        (4, u32::try_from(at.year()).unwrap_or_default()),
        (7, u8::from(at.month()).into()),
        (10, at.day().into()),
        (13, at.hour().into()),
        (16, at.minute().into()),
        (19, at.second().into()),
        (23, at.millisecond().into()),
    ];
    for (end, mut number) in parts {
        for digit in text[..end].iter_mut().rev() {
            if number == 0 {
                break;
            }
            *digit = b'0' + u8::try_from(number % 10).unwrap_or_default();
            number /= 10;
        }
    }
    out.push_str(std::str::from_utf8(&text).unwrap_or_default());
}

/// Reads a time that is Unix milliseconds or an RFC 3339 text; gives Unix milliseconds. A text that means a time before
/// 1970 or, by its offset, after the year 9999 in UTC is no time.
#[must_use]
pub fn parse_time(node: Node<'_>) -> Option<u64> {
    if let Some(millis) = node.as_u64() {
        return Some(millis);
    }
    let at = OffsetDateTime::parse(&node.as_str()?, &Rfc3339).ok()?;
    u64::try_from(at.unix_timestamp_nanos() / 1_000_000).ok().filter(|millis| *millis <= TEXT_MS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::Document;

    #[test]
    fn times_are_read_and_written() {
        assert_eq!(format_millis(1_763_692_496_007), "2025-11-21T02:34:56.007Z");
        assert_eq!(format_millis(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(format_millis(951_825_600_120), "2000-02-29T12:00:00.120Z");
        assert_eq!(format_millis(4_107_542_399_999), "2100-02-28T23:59:59.999Z");
        for text in ["1763692496007", r#""2025-11-21T02:34:56.007Z""#, r#""2025-11-21T03:34:56.007+01:00""#] {
            let document = Document::parse(text.as_bytes(), 8).expect("JSON");
            assert_eq!(parse_time(document.root()), Some(1_763_692_496_007), "{text}");
        }
        let document = Document::parse(br#""yesterday""#, 8).expect("JSON");
        assert_eq!(parse_time(document.root()), None);
    }

    /// An offset can lead out of the years that RFC 3339 has.
    #[test]
    fn times_beyond_the_year_9999_have_no_text() {
        let read = |text: &str| parse_time(Document::parse(text.as_bytes(), 8).expect("JSON").root());
        assert_eq!(read(r#""9999-12-31T23:59:59.999Z""#), Some(253_402_300_799_999));
        assert_eq!(format_millis(253_402_300_799_999), "9999-12-31T23:59:59.999Z");
        assert_eq!(read(r#""9999-12-31T23:59:59.999-00:01""#), None);
        assert_eq!(read(r#""1969-12-31T23:59:59.999Z""#), None);
        assert_eq!(format_millis(253_402_300_800_000), "9999-12-31T23:59:59.999Z");
        assert_eq!(format_millis(u64::MAX), "9999-12-31T23:59:59.999Z");
    }
}
