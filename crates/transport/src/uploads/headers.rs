//! The headers of tus 1.0.

use axum::http::{HeaderMap, HeaderValue};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use driftline_protocol::{ErrorCode, Fault};

/// Reads a number from a header; nothing when it is not there. One that is larger than any file is read as the largest that
/// there is.
///
/// # Errors
/// `VALIDATION_ERROR` for anything but digits, and for a header that stands twice.
pub(super) fn number(headers: &HeaderMap, name: &'static str) -> Result<Option<u64>, Fault> {
    let Some(text) = only(headers, name)? else { return Ok(None) };
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong(name, "is an integer from 0 on"));
    }
    Ok(Some(text.parse().unwrap_or(NUMBER_MAX).min(NUMBER_MAX)))
}

/// The largest number that comes.
const NUMBER_MAX: u64 = (1 << 53) - 1;

/// Reads a header that may stand once.
///
/// # Errors
/// `VALIDATION_ERROR` when it stands twice or is no visible text.
pub(super) fn only<'a>(headers: &'a HeaderMap, name: &'static str) -> Result<Option<&'a str>, Fault> {
    let mut values = headers.get_all(name).iter();
    match (values.next().map(HeaderValue::to_str), values.next()) {
        (None, _) => Ok(None),
        (Some(Ok(text)), None) => Ok(Some(text.trim())),
        _ => Err(wrong(name, "stands once, in visible ASCII characters")),
    }
}

pub(super) fn wrong(name: &str, message: &str) -> Fault {
    Fault::new(ErrorCode::ValidationError, format!("{name} {message}"))
}

/// What a client tells of a file: pairs of a name and a value in base64.
#[derive(Debug, Default)]
pub(super) struct Metadata(Vec<(String, Vec<u8>)>);

impl Metadata {
    /// Reads `Upload-Metadata`.
    ///
    /// # Errors
    /// `VALIDATION_ERROR` for a name that stands twice, and for what is no base64.
    pub(super) fn read(text: &str) -> Result<Self, Fault> {
        let mut pairs: Vec<(String, Vec<u8>)> = Vec::new();
        for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once(' ').unwrap_or((pair, ""));
            let value = STANDARD
                .decode(value.trim())
                .map_err(|_| wrong("Upload-Metadata", "has values in base64"))?;
            if pairs.iter().any(|(known, _)| known == name) {
                return Err(wrong("Upload-Metadata", "has every name once"));
            }
            pairs.push((name.to_owned(), value));
        }
        Ok(Self(pairs))
    }

    /// Returns the first text that stands under one of the names and is not empty.
    pub(super) fn text(&self, names: &[&str]) -> Option<&str> {
        let under =
            |name: &str| self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_slice());
        let texts = names.iter().filter_map(|name| std::str::from_utf8(under(name)?).ok());
        texts.filter(|text| !text.is_empty()).find(|_| true)
    }
}

/// What an upload is in a concatenation.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Concat<'a> {
    Part,
    /// It is made of the uploads at these paths.
    Whole(Vec<&'a str>),
}

impl<'a> Concat<'a> {
    /// Reads `Upload-Concat`.
    ///
    /// # Errors
    /// `VALIDATION_ERROR` for anything else than `partial` and `final;` with at least one place.
    pub(super) fn read(text: &'a str) -> Result<Self, Fault> {
        if text == "partial" {
            return Ok(Self::Part);
        }
        let places: Vec<&str> = text.strip_prefix("final;").unwrap_or_default().split_whitespace().collect();
        if places.is_empty() || places.len() > PARTS_MAX {
            return Err(wrong("Upload-Concat", "is partial, or final; and 1 to 1000 uploads"));
        }
        Ok(Self::Whole(places))
    }
}

/// The most parts of one concatenation.
const PARTS_MAX: usize = 1000;

/// Returns the last part of the path of a place, whatever its host: a server behind a proxy does not know its own names.
pub(super) fn last_segment(place: &str) -> Option<&str> {
    let path = match place.split_once("://") {
        Some((_, rest)) => rest.split_once('/')?.1,
        None => place.strip_prefix('/')?,
    };
    let path = path.split(['?', '#']).next()?;
    let path = path.strip_suffix('/').unwrap_or(path);
    path.strip_prefix("files/").or_else(|| path.rsplit_once("/files/").map(|(_, last)| last))
}

/// Reads `Upload-Checksum`: an algorithm and the checksum in base64.
///
/// # Errors
/// `VALIDATION_ERROR` when it is not of that form.
pub(super) fn checksum(text: &str) -> Result<(&str, Vec<u8>), Fault> {
    let read = |(name, value): (&'_ str, &str)| Some((name.len(), STANDARD.decode(value.trim()).ok()?));
    let pair = text.split_once(' ').and_then(read);
    let (len, wanted) =
        pair.ok_or_else(|| wrong("Upload-Checksum", "is an algorithm and a checksum in base64"))?;
    Ok((&text[..len], wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_pairs_of_names_and_base64() {
        let metadata = Metadata::read("filename YS5wbmc=,filetype aW1hZ2UvcG5n, empty,blank ").unwrap();
        assert_eq!(metadata.text(&["name", "filename"]), Some("a.png"));
        assert_eq!(metadata.text(&["empty", "blank", "none"]), None);
        assert!(Metadata::read("").unwrap().0.is_empty());
        for bad in ["a b!", "a YQ==,a YQ==", "a YQ== YQ=="] {
            assert!(Metadata::read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn places_of_parts_lead_to_their_last_segment() {
        let table = [
            ("/files/abc", Some("abc")),
            ("http://h:1/files/abc", Some("abc")),
            ("https://h/prefix/files/abc/", Some("abc")),
            ("/files/../../etc", Some("../../etc")),
            ("http://h", None),
            ("abc", None),
            ("/other/abc", None),
        ];
        for (place, wanted) in table {
            assert_eq!(last_segment(place), wanted, "{place}");
        }
        assert_eq!(Concat::read("partial").unwrap(), Concat::Part);
        assert_eq!(Concat::read("final;/a  /b").unwrap(), Concat::Whole(vec!["/a", "/b"]));
        for bad in ["", "final", "final;", "final; ", "parts", "Partial"] {
            assert!(Concat::read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn numbers_are_digits() {
        let read = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("upload-offset", HeaderValue::from_static(text));
            number(&headers, "upload-offset").ok()
        };
        assert_eq!((read("0"), read("070")), (Some(Some(0)), Some(Some(70))));
        for large in ["9007199254740991", "9007199254740992", "99999999999999999999999"] {
            assert_eq!(read(large), Some(Some(NUMBER_MAX)));
        }
        for bad in ["-1", "+1", "", "1.0", "0x1", "1 2"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
