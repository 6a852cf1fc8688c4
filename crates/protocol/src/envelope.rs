//! The envelope around every inbound message.

use driftline_model::{Limits, SyncId};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::canonical::segment;
use crate::code::ErrorCode;
use crate::form::Encoding;
use crate::json::{Document, Node};
use crate::outbound::RecordView;
use crate::throttle::Throttle;
use crate::time::parse_time;

/// One thing wrong with a message or an item.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldError {
    /// A stable word for the rule that was broken.
    pub code: String,
    /// Where, as a JSON Pointer (RFC 6901).
    pub pointer: String,
    /// What is wrong, for a person.
    pub message: String,
}

impl FieldError {
    pub(crate) fn new(code: &str, pointer: impl Into<String>, message: impl Into<String>) -> Self {
        let mut pointer = pointer.into();
        if pointer.len() > POINTER_BYTES {
            let end = (0..=POINTER_BYTES).rev().find(|end| pointer.is_char_boundary(*end));
            pointer.truncate(end.unwrap_or_default());
            pointer.push_str("...");
        }
        Self { code: code.into(), pointer, message: message.into() }
    }
}

/// The most errors that one item is told, and the most bytes of a pointer, so that an answer does not outgrow what it
/// answers by orders.
pub(crate) const ERRORS_MAX: usize = 32;
const POINTER_BYTES: usize = 256;

/// Adds an error, unless there are as many as are told.
pub(crate) fn add_error(errors: &mut Vec<FieldError>, error: impl FnOnce() -> FieldError) {
    if errors.len() < ERRORS_MAX {
        errors.push(error());
    }
}

/// Why a message is refused as a whole. Nothing of it was applied.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{code}: {message}")]
pub struct Fault {
    /// The stable code.
    pub code: ErrorCode,
    /// What is wrong, for a person.
    pub message: String,
    /// Single places, if they are known.
    pub errors: Vec<FieldError>,
    /// The message's own `id`, when it could be read.
    pub reply_to: Option<String>,
    /// The record as it stands, when the request was about an older one.
    pub record: Option<Box<RecordView>>,
    /// The limit that was reached, for `RATE_LIMITED`.
    pub throttle: Option<Box<Throttle>>,
    /// Where an upload stands, for codes of uploads.
    pub upload: Option<Box<UploadPlace>>,
}

/// Where an upload stands that cannot go on as it was asked to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UploadPlace {
    /// These chunks are missing: the first and the last one of each gap.
    Missing(Vec<[u64; 2]>),
    /// It goes on at this byte.
    Offset(u64),
}

impl Fault {
    /// Makes a fault without details.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { code, message, errors: Vec::new(), reply_to: None, record: None, throttle: None, upload: None }
    }

    /// Makes the `RATE_LIMITED` fault of a limit.
    #[must_use]
    pub fn throttled(throttle: Throttle) -> Self {
        let fault = Self::new(ErrorCode::RateLimited, throttle.to_string());
        Self { throttle: Some(Box::new(throttle)), ..fault }
    }

    /// Says where an upload stands.
    #[must_use]
    pub fn at(self, place: UploadPlace) -> Self {
        Self { upload: Some(Box::new(place)), ..self }
    }

    /// Adds the record as it stands.
    #[must_use]
    pub fn with_record(mut self, record: RecordView) -> Self {
        self.record = Some(Box::new(record));
        self
    }

    pub(crate) fn invalid(pointer: &str, message: &str) -> Self {
        let mut fault = Self::new(ErrorCode::ValidationError, format!("{message} at {pointer}"));
        fault.errors.push(FieldError::new("invalid", pointer, message));
        fault
    }
}

/// The outer fields of an inbound message.
#[derive(Debug, Clone, Copy)]
pub struct Envelope<'d> {
    root: Node<'d>,
    payload: Option<Node<'d>>,
}

impl<'d> Envelope<'d> {
    /// Parses a frame into a document, judging what concerns it as a whole.
    ///
    /// # Errors
    /// `MESSAGE_TOO_LARGE` or `JSON_DECODE_ERROR`.
    pub fn parse<'a>(encoding: Encoding, frame: &'a [u8], limits: &Limits) -> Result<Document<'a>, Fault> {
        let document = Self::parse_any(encoding, frame, limits)?;
        if !document.root().is_object() {
            return Err(Fault::new(encoding.decode_error(), "the message is not an object"));
        }
        Ok(document)
    }

    /// Parses what is an object or an array of them.
    pub(crate) fn parse_any<'a>(
        encoding: Encoding,
        frame: &'a [u8],
        limits: &Limits,
    ) -> Result<Document<'a>, Fault> {
        if frame.len() > limits.message_bytes {
            let message = format!("a message may hold {} bytes", limits.message_bytes);
            return Err(Fault::new(ErrorCode::MessageTooLarge, message));
        }
        let code = encoding.decode_error();
        let document = match encoding {
            Encoding::Json => {
                Document::parse(frame, limits.depth).map_err(|error| Fault::new(code, error.to_string()))?
            }
            Encoding::MessagePack => Document::parse_msgpack(frame, limits.depth)
                .map_err(|error| Fault::new(code, error.to_string()))?,
        };
        Ok(document)
    }

    /// Finds the payload: `payload`, else `data` if it is an object, else the top level itself.
    ///
    /// # Errors
    /// `VALIDATION_ERROR` for a `payload` that is not an object or a key that stands twice.
    pub fn open(root: Node<'d>) -> Result<Self, Fault> {
        refuse_duplicates(root, "")?;
        let payload = match (root.get("payload"), root.get("data")) {
            (Some(payload), _) if payload.is_object() => Some(payload),
            (Some(_), _) => return Err(Fault::invalid("/payload", "must be an object")),
            (None, Some(data)) if data.is_object() => Some(data),
            (None, _) => None,
        };
        if let Some(payload) = payload {
            let under = if root.get("payload").is_some() { "/payload" } else { "/data" };
            refuse_duplicates(payload, under)?;
        }
        Ok(Self { root, payload })
    }

    /// Returns the message's type.
    ///
    /// # Errors
    /// `VALIDATION_ERROR` when it is missing or no string.
    pub fn kind(&self) -> Result<String, Fault> {
        let kind = self.root.get("type").and_then(|node| node.as_str());
        kind.map(std::borrow::Cow::into_owned).ok_or_else(|| Fault::invalid("/type", "a string is required"))
    }

    /// Returns the client's message id.
    ///
    /// # Errors
    /// `VALIDATION_ERROR` when it is no string of at most 64 bytes.
    pub fn message_id(root: Node<'_>) -> Result<Option<String>, Fault> {
        let node = root.get("id").filter(|node| !node.is_null());
        match node.map(|node| node.as_str()) {
            None => Ok(None),
            Some(Some(id)) if id.len() <= 64 => Ok(Some(id.into_owned())),
            Some(_) => Err(Fault::invalid("/id", "must be a string of at most 64 bytes")),
        }
    }

    /// Returns the sync session's name.
    ///
    /// # Errors
    /// `VALIDATION_ERROR` when it is no UUID.
    pub fn sync_id(&self) -> Result<Option<SyncId>, Fault> {
        let Some(node) = self.root.get("sync_id").filter(|node| !node.is_null()) else { return Ok(None) };
        let text = node.as_str().unwrap_or_default().to_ascii_lowercase();
        sync_id(&text).map(Some).ok_or_else(|| Fault::invalid("/sync_id", "must be a UUID"))
    }

    /// Returns the whole message.
    pub(crate) fn root(&self) -> Node<'d> {
        self.root
    }

    /// Returns the member that holds the payload; none: the message itself is it.
    pub(crate) fn payload(&self) -> Option<Node<'d>> {
        self.payload
    }

    /// Returns the key under which the message may be sent again.
    ///
    /// # Errors
    /// `VALIDATION_ERROR` when it is no text of 1 to 255 visible ASCII characters.
    pub fn idempotency_key(&self) -> Result<Option<String>, Fault> {
        let Some(node) = self.root.get("idempotency_key").filter(|node| !node.is_null()) else {
            return Ok(None);
        };
        let key = node.as_str().filter(|key| is_key(key));
        let wrong = || Fault::invalid("/idempotency_key", "must be 1 to 255 visible ASCII characters");
        key.map(|key| Some(key.into_owned())).ok_or_else(wrong)
    }

    /// Returns when the client sent the message, in Unix milliseconds. `timestamp` may be a field of what is sent, and is no
    /// other name here.
    ///
    /// # Errors
    /// `VALIDATION_ERROR` when `ts` is neither RFC 3339 nor Unix milliseconds.
    pub(crate) fn time(&self) -> Result<Option<u64>, Fault> {
        let wrong = || Fault::invalid("/ts", "must be RFC 3339 or Unix milliseconds");
        match self.root.get("ts").filter(|node| !node.is_null()) {
            Some(node) => parse_time(node).map(Some).ok_or_else(wrong),
            None => Ok(None),
        }
    }

    /// Returns a field of the payload; an explicit null counts as absent.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<Node<'d>> {
        let node = match self.payload {
            Some(payload) => payload.get(name),
            None if matches!(name, "type" | "sync_id" | "idempotency_key") => None,
            None => self.root.get(name),
        };
        node.filter(|node| !node.is_null())
    }
}

/// Tells whether a text can be an idempotency key.
#[must_use]
pub fn is_key(text: &str) -> bool {
    (1..=255).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Reads a UUID in its hyphenated form.
pub(crate) fn sync_id(text: &str) -> Option<SyncId> {
    let hyphens = [8, 13, 18, 23];
    let shaped =
        text.len() == 36 && text.bytes().enumerate().all(|(at, b)| hyphens.contains(&at) == (b == b'-'));
    if shaped { SyncId::new(text).ok() } else { None }
}

pub(crate) fn refuse_duplicates(object: Node<'_>, under: &str) -> Result<(), Fault> {
    let mut seen: Vec<std::borrow::Cow<'_, str>> = Vec::new();
    for (key, _) in object.members() {
        let key = key.as_str().unwrap_or_default();
        if seen.len() > 256 {
            return Err(Fault::invalid(under, "has too many members"));
        }
        if seen.contains(&key) {
            return Err(Fault::invalid(&format!("{under}{}", segment(&key)), "the key stands twice"));
        }
        seen.push(key);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(text: &str) -> Result<Option<String>, Fault> {
        let document = Envelope::parse(Encoding::Json, text.as_bytes(), &Limits::default())?;
        let envelope = Envelope::open(document.root())?;
        Ok(envelope.field("x").map(|node| node.as_str().unwrap_or_default().into_owned()))
    }

    #[test]
    fn the_payload_is_found_by_the_rule() {
        let table = [
            (r#"{"type":"t","payload":{"x":"p"},"data":{"x":"d"},"x":"t"}"#, Some("p")),
            (r#"{"type":"t","data":{"x":"d"},"x":"t"}"#, Some("d")),
            (r#"{"type":"t","data":[1],"x":"t"}"#, Some("t")),
            (r#"{"type":"t","x":"t"}"#, Some("t")),
            (r#"{"type":"t","payload":{},"x":"t"}"#, None),
        ];
        for (text, wanted) in table {
            assert_eq!(open(text), Ok(wanted.map(str::to_owned)), "{text}");
        }
        assert_eq!(open(r#"{"payload":1}"#).unwrap_err().code, ErrorCode::ValidationError);
        assert_eq!(open(r#"{"type":"a","type":"b"}"#).unwrap_err().code, ErrorCode::ValidationError);
        assert_eq!(open("[]").unwrap_err().code, ErrorCode::JsonDecodeError);
    }
}
