//! What is wrong with a pattern, or with the values that are to fill it.

use thiserror::Error;

use super::parts::{PLACEHOLDER_BYTES_MAX, PLACEHOLDERS_MAX};
use crate::name::{NameError, TOPIC_BYTES_MAX};

/// The text is no pattern of topics.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PatternError {
    /// There is no character.
    #[error("a pattern is not empty")]
    Empty,
    /// Every topic that matches has more than [`TOPIC_BYTES_MAX`] bytes.
    #[error("a pattern has at most {TOPIC_BYTES_MAX} characters, a placeholder counting as one")]
    TooLong,
    /// A character outside of placeholders is none of those that a topic may hold.
    #[error("a pattern consists of letters, digits, the characters _ . : - and placeholders")]
    Character,
    /// A placeholder is not closed, or its name is empty, too long or holds another character.
    #[error(
        "a placeholder is 1 to {PLACEHOLDER_BYTES_MAX} letters, digits and underscores between two braces"
    )]
    Placeholder,
    /// Two placeholders follow each other, so that nothing says where the first one ends.
    #[error("two placeholders are parted by a literal")]
    Adjacent,
    /// A name stands for two placeholders.
    #[error("the placeholder {0} occurs twice")]
    Twice(Box<str>),
    /// There are more than [`PLACEHOLDERS_MAX`] placeholders.
    #[error("a pattern has at most {PLACEHOLDERS_MAX} placeholders")]
    TooMany,
}

/// The values make no topic of the pattern; each variant names the placeholder.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum FillError {
    /// There is no value.
    #[error("the placeholder {0} has no value")]
    Missing(Box<str>),
    /// The value is empty.
    #[error("the value of {0} is empty")]
    Empty(Box<str>),
    /// The value holds a character that a topic may not hold.
    #[error("the value of {0} holds a character that is not allowed")]
    Character(Box<str>),
    /// The topic would be divided elsewhere: the value holds the beginning of what follows the placeholder.
    #[error("the value of {0} holds what ends the placeholder")]
    Ambiguous(Box<str>),
    /// All values are good, but what they make is no topic.
    #[error(transparent)]
    Topic(NameError),
}
