//! The names of topics.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// The length of the longest topic name, in bytes.
pub const TOPIC_BYTES_MAX: usize = 200;

/// The name of a topic: 1 to 200 characters of `A-Z`, `a-z`, `0-9`, `_`, `.`, `:` and `-`.
///
/// Names are compared to the byte; upper and lower case differ.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicName(Box<str>);

impl TopicName {
    /// Reads a name.
    ///
    /// # Errors
    /// [`NameError`] when the text is empty, too long or holds another character.
    pub fn new(text: impl AsRef<str>) -> Result<Self, NameError> {
        let text = text.as_ref();
        check(text)?;
        Ok(Self(text.into()))
    }

    /// Returns the text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for TopicName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl FromStr for TopicName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::new(text)
    }
}

impl fmt::Debug for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TopicName({})", self.0)
    }
}

impl fmt::Display for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The text is no name of a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum NameError {
    /// There is no character.
    #[error("a topic is not empty")]
    Empty,
    /// There are more than [`TOPIC_BYTES_MAX`] bytes.
    #[error("a topic has at most {TOPIC_BYTES_MAX} characters")]
    TooLong,
    /// A character is none of those that a topic may hold.
    #[error("a topic consists of letters, digits and the characters _ . : -")]
    Character,
}

/// Checks that the text may be the name of a topic.
pub(crate) fn check(text: &str) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(NameError::Empty);
    }
    if text.len() > TOPIC_BYTES_MAX {
        return Err(NameError::TooLong);
    }
    if !text.bytes().all(is_topic_byte) {
        return Err(NameError::Character);
    }
    Ok(())
}

/// Tells whether a topic may hold the byte.
pub(crate) const fn is_topic_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b':' | b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_hold_the_alphabet_and_nothing_else() {
        let longest = "t".repeat(200);
        for text in ["a", "Z", "0", "_", ".", ":", "-", "zone.north:hall_7-b", longest.as_str()] {
            assert_eq!(TopicName::new(text).map(|name| name.to_string()), Ok(text.to_owned()));
        }
        let too_long = "t".repeat(201);
        for (text, error) in [
            ("", NameError::Empty),
            (too_long.as_str(), NameError::TooLong),
            ("a b", NameError::Character),
            ("a/b", NameError::Character),
            ("a{b}", NameError::Character),
            ("a\n", NameError::Character),
            ("a\u{0}", NameError::Character),
            ("caf\u{e9}", NameError::Character),
        ] {
            assert_eq!(TopicName::new(text), Err(error), "{text:?}");
            assert_eq!(text.parse::<TopicName>(), Err(error), "{text:?}");
        }
    }

    #[test]
    fn the_alphabet_is_exactly_this() {
        let alphabet: String = (0..=u8::MAX).filter(|byte| is_topic_byte(*byte)).map(char::from).collect();
        assert_eq!(alphabet, "-.0123456789:ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz");
    }
}
