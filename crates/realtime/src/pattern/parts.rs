//! The parts of a pattern's text.

use std::ops::Range;

use super::error::PatternError;
use crate::name::is_topic_byte;

/// How many placeholders one pattern may have.
pub const PLACEHOLDERS_MAX: usize = 16;

/// The length of the longest name of a placeholder, in bytes.
pub(super) const PLACEHOLDER_BYTES_MAX: usize = 64;

/// A part of the text, without braces.
#[derive(Debug, Clone)]
pub(super) enum Part {
    Literal(Range<usize>),
    Placeholder(Range<usize>),
}

/// Cuts a text into parts, of which no two are of the same kind in a row.
pub(super) fn parts(text: &str) -> Result<Vec<Part>, PatternError> {
    if text.is_empty() {
        return Err(PatternError::Empty);
    }
    let mut parts = Vec::new();
    let mut at = 0;
    while at < text.len() {
        let rest = &text[at..];
        if let Some(inner) = rest.strip_prefix('{') {
            if matches!(parts.last(), Some(Part::Placeholder(_))) {
                return Err(PatternError::Adjacent);
            }
            let length = inner.find('}').ok_or(PatternError::Placeholder)?;
            let is_name = inner.bytes().take(length).all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
            if !is_name || !(1..=PLACEHOLDER_BYTES_MAX).contains(&length) {
                return Err(PatternError::Placeholder);
            }
            parts.push(Part::Placeholder(at + 1..at + 1 + length));
            at += length + 2;
        } else {
            let length = rest.find('{').unwrap_or(rest.len());
            if !rest.bytes().take(length).all(is_topic_byte) {
                return Err(PatternError::Character);
            }
            parts.push(Part::Literal(at..at + length));
            at += length;
        }
    }
    Ok(parts)
}
