//! The names of uploads.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// Why a text is not the name of an upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("an upload's id is 32 lower-case hexadecimal digits")]
pub struct UploadIdError;

/// The name of an upload and of the file that becomes of it: 128 random bits, written as 32 hexadecimal digits.
///
/// Its text is the only thing that ever gets into a path, and it can hold nothing but digits and `a` to `f`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UploadId([u8; 16]);

impl UploadId {
    /// Makes a name of random bytes.
    #[must_use]
    pub const fn of(random: [u8; 16]) -> Self {
        Self(random)
    }

    /// Returns the bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for UploadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

impl fmt::Debug for UploadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

impl FromStr for UploadId {
    type Err = UploadIdError;

    fn from_str(text: &str) -> Result<Self, UploadIdError> {
        let mut bytes = [0; 16];
        read_hex(text, &mut bytes).ok_or(UploadIdError)?;
        Ok(Self(bytes))
    }
}

pub(crate) fn write_hex(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

/// Reads lower-case digits, exactly two for each byte.
pub(crate) fn read_hex(text: &str, bytes: &mut [u8]) -> Option<()> {
    let digits = text.as_bytes();
    if digits.len() != bytes.len() * 2 {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(())
}

const fn digit(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_its_own_text_names_an_upload() {
        let id = UploadId::of(*b"\x00\x01\x7f\x80\xff012345678\x0a\xbc");
        let text = id.to_string();
        assert_eq!((text.parse(), text.len()), (Ok(id), 32));
        for bad in ["", "..", "../../etc/passwd", &text[1..], &text.to_uppercase(), &format!("{text}0")] {
            assert_eq!(bad.parse::<UploadId>(), Err(UploadIdError), "{bad}");
        }
        assert_eq!(format!("{}/", &text[..31]).parse::<UploadId>(), Err(UploadIdError));
        assert_eq!("é".repeat(16).parse::<UploadId>(), Err(UploadIdError));
    }
}
