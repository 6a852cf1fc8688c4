//! What is remembered of an answer.

use std::sync::Arc;

use thiserror::Error;

use crate::ANSWER_BYTES_MAX;

/// An answer as it is kept: a status, some headers and a body, together at most [`ANSWER_BYTES_MAX`].
///
/// A clone is cheap: it shares the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    status: u16,
    headers: Arc<[Header]>,
    body: Body,
}

/// A name and a value.
pub type Header = (Box<str>, Box<[u8]>);

/// The body of a kept answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// All of it, to the byte.
    Whole(Arc<[u8]>),
    /// It was too large to keep: from this reference it is rendered again.
    Reference(Arc<str>),
    /// It was too large to keep, and nothing renders it again.
    Lost,
}

impl Answer {
    /// Keeps an answer as it is.
    ///
    /// # Errors
    /// [`AnswerTooLarge`] when it has more than [`ANSWER_BYTES_MAX`] bytes.
    pub fn whole(status: u16, headers: Vec<Header>, body: &[u8]) -> Result<Self, AnswerTooLarge> {
        if body.len() > ANSWER_BYTES_MAX {
            return Err(AnswerTooLarge);
        }
        Self { status, headers: headers.into(), body: Body::Whole(body.into()) }.bounded()
    }

    /// Keeps an answer without its body, which is rendered again from a reference.
    ///
    /// # Errors
    /// [`AnswerTooLarge`] when the headers and the reference have more than [`ANSWER_BYTES_MAX`] bytes.
    pub fn reference(status: u16, headers: Vec<Header>, reference: &str) -> Result<Self, AnswerTooLarge> {
        Self { status, headers: headers.into(), body: Body::Reference(reference.into()) }.bounded()
    }

    /// Keeps of an answer only that there was one, with this status.
    #[must_use]
    pub fn lost(status: u16) -> Self {
        Self { status, headers: [].into(), body: Body::Lost }
    }

    /// Returns the status of HTTP, or what a caller without HTTP uses in its place.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.status
    }

    /// Returns the headers, in the order in which they were given.
    #[must_use]
    pub fn headers(&self) -> &[Header] {
        &self.headers
    }

    /// Returns the body.
    #[must_use]
    pub fn body(&self) -> &Body {
        &self.body
    }

    /// Returns the size of names, values and body, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let body = match &self.body {
            Body::Whole(bytes) => bytes.len(),
            Body::Reference(reference) => reference.len(),
            Body::Lost => 0,
        };
        self.headers.iter().fold(body, |sum, (name, value)| sum + name.len() + value.len())
    }

    fn bounded(self) -> Result<Self, AnswerTooLarge> {
        if self.bytes() > ANSWER_BYTES_MAX { Err(AnswerTooLarge) } else { Ok(self) }
    }
}

/// The answer has more than [`ANSWER_BYTES_MAX`] bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("an answer of more than {ANSWER_BYTES_MAX} bytes is not kept as it is")]
pub struct AnswerTooLarge;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_bounded_to_the_byte() {
        let header = || vec![("etag".into(), b"\"7\"".as_slice().into())];
        let body = vec![b'x'; ANSWER_BYTES_MAX];
        assert_eq!(Answer::whole(200, vec![], &body).map(|answer| answer.bytes()), Ok(ANSWER_BYTES_MAX));
        assert_eq!(
            Answer::whole(200, header(), &body[7..]).map(|answer| answer.bytes()),
            Ok(ANSWER_BYTES_MAX)
        );
        assert_eq!(Answer::whole(200, header(), &body[6..]), Err(AnswerTooLarge));
        let text = "x".repeat(ANSWER_BYTES_MAX);
        assert!(Answer::reference(200, vec![], &text).is_ok());
        assert_eq!(Answer::reference(200, header(), &text), Err(AnswerTooLarge));
        assert_eq!(Answer::lost(200).bytes(), 0);
    }
}
