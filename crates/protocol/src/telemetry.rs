//! Telemetry: samples that are appended, and what became of them.

use driftline_model::{KindName, Object, RecordId};
use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_64;

use crate::canonical::{canonical_object, canonical_value, segment};
use crate::code::ErrorCode;
use crate::envelope::{Envelope, Fault, FieldError, add_error};
use crate::item::BadItem;
use crate::json::Node;
use crate::time::parse_time;
use driftline_model::{Limits, ObjectBuilder};

/// Samples of one kind, as one message brings them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Telemetry {
    /// The kind, which is the message's type.
    pub kind: KindName,
    /// The samples, good and bad, in the order of the message.
    pub samples: Vec<Result<Sample, Box<BadItem>>>,
    /// The member of the payload that held the samples; none: the payload is the only one.
    pub member: Option<&'static str>,
    /// The device's time of the message in Unix milliseconds.
    pub at_ms: Option<u64>,
}

/// One sample.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Its name, if it was given one.
    pub id: Option<RecordId>,
    /// Its fields, canonical.
    pub fields: Object,
    /// The device's time of it in Unix milliseconds.
    pub at_ms: Option<u64>,
    /// Identifies the content.
    pub hash: u64,
}

impl Sample {
    pub(crate) fn new(id: Option<RecordId>, fields: Object, at_ms: Option<u64>) -> Self {
        let hash = XxHash3_64::oneshot(fields.as_str().as_bytes());
        Self { id, fields, at_ms, hash }
    }
}

/// The members of the envelope that are not the sample's own when a message has neither `payload` nor `data`.
const ENVELOPE: [&str; 9] =
    ["type", "sync_id", "idempotency_key", "id", "ts", "device_hash", "child_hash", "token", "device_id"];

/// The members of an element that are not among its fields.
const RESERVED: [&str; 2] = ["id", "ts"];

/// The members that may hold several samples.
const LISTS: [&str; 2] = ["items", "logs"];

impl Telemetry {
    /// Reads the samples of a message.
    ///
    /// # Errors
    /// `BATCH_TOO_LARGE`; what is wrong with single samples stands among them.
    pub(crate) fn read(envelope: &Envelope<'_>, kind: KindName, limits: &Limits) -> Result<Self, Fault> {
        let at_ms = envelope.time()?;
        let list = LISTS.into_iter().find_map(|name| {
            let node = envelope.field(name).filter(Node::is_array)?;
            Some((name, node))
        });
        let (member, samples) = match list {
            Some((name, list)) => {
                let count = list.elements().count();
                if count > limits.batch_items {
                    let message = format!(
                        "a message may hold {} samples, this one holds {count}: split it",
                        limits.batch_items
                    );
                    return Err(Fault::new(ErrorCode::BatchTooLarge, message));
                }
                (Some(name), list.elements().map(|node| read_sample(&kind, node, &RESERVED)).collect())
            }
            None => {
                let (node, reserved): (_, &[&str]) = match envelope.payload() {
                    Some(payload) => (payload, &RESERVED),
                    None => (envelope.root(), &ENVELOPE),
                };
                (None, vec![read_sample(&kind, node, reserved)])
            }
        };
        Ok(Self { kind, samples, member, at_ms })
    }
}

/// Reads a sample: its `fields`, else all members but the reserved ones.
fn read_sample(kind: &KindName, node: Node<'_>, reserved: &[&str]) -> Result<Sample, Box<BadItem>> {
    let mut errors = Vec::new();
    let sample = sample(node, reserved, &mut errors);
    let bad = |errors| {
        let mut text = String::new();
        node.write_json(&mut text);
        let mut bad = BadItem::of_text(&text, errors);
        bad.kind = Some(kind.clone());
        Box::new(bad)
    };
    match sample {
        Some(sample) if errors.is_empty() => Ok(sample),
        _ => Err(bad(errors)),
    }
}

fn sample(node: Node<'_>, reserved: &[&str], errors: &mut Vec<FieldError>) -> Option<Sample> {
    if !node.is_object() {
        errors.push(FieldError::new("invalid", "", "a sample must be an object"));
        return None;
    }
    // Of a message without a payload `id` and `ts` are the message's own.
    let own = |name: &str| node.get(name).filter(|node| !node.is_null() && !reserved.contains(&"type"));
    let id = match own("id").map(|node| node.as_str().and_then(|text| RecordId::new(&text).ok())) {
        Some(None) => {
            errors.push(FieldError::new(
                "invalid",
                "/id",
                "must be a string of 1 to 128 bytes without control characters",
            ));
            None
        }
        id => id.flatten(),
    };
    let at_ms = own("ts").and_then(|node| {
        let at_ms = parse_time(node);
        if at_ms.is_none() {
            errors.push(FieldError::new("invalid", "/ts", "must be RFC 3339 or Unix milliseconds"));
        }
        at_ms
    });
    let fields = match node.get("fields").filter(Node::is_object) {
        Some(fields) => match canonical_object(fields) {
            Ok(fields) => fields,
            Err(error) => {
                let pointer = format!("/fields{}", error.pointer);
                errors.push(FieldError::new("invalid", pointer, error.kind.to_string()));
                return None;
            }
        },
        None => rest(node, reserved, errors)?,
    };
    Some(Sample::new(id, fields, at_ms))
}

/// All members of an object but the reserved ones, canonical.
pub(crate) fn rest(node: Node<'_>, reserved: &[&str], errors: &mut Vec<FieldError>) -> Option<Object> {
    // The verdict is one on the whole element, whose reserved members have to be acceptable as well.
    match canonical_object(node) {
        Ok(whole) => {
            let mut fields = ObjectBuilder::with_capacity(whole.as_str().len(), whole.len());
            for (name, value) in whole.iter() {
                if !reserved.contains(&name) {
                    fields.push(name, value);
                }
            }
            Some(fields.finish())
        }
        Err(error) => {
            add_error(errors, || FieldError::new("invalid", error.pointer, error.kind.to_string()));
            None
        }
    }
}

/// Answers a telemetry message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TelemetryAck {
    /// Whether this is the answer of an earlier, equal request. What stands behind it is the same in both.
    #[serde(default)]
    pub replayed: bool,
    /// The type of the message that is answered.
    pub of: String,
    /// Samples that are stored now.
    pub accepted: u64,
    /// Samples that were stored before.
    pub duplicates: u64,
    /// Samples that are not stored, and why.
    pub rejected: Vec<Rejected>,
    /// Said when a resend of the message could not be told from new samples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resend_recognised: Option<bool>,
}

/// A sample that is not stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejected {
    /// Its place in the message.
    pub index: u64,
    /// Its name, if it was given one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// What became of it, one of the codes of items.
    pub code: String,
    /// Where the first fault lies in the sample, as a JSON Pointer (RFC 6901).
    pub pointer: String,
    /// What the first fault is, for a person.
    pub message: String,
    /// All faults, if there are several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
}

/// Answers a message of which there is nothing to tell but that it was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BareAck {
    /// The type of the message that is answered.
    pub of: String,
    /// Whether this is the answer of an earlier, equal request.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub replayed: bool,
}

/// The canonical text of a message's payload, which identifies its content in whichever encoding it came. What has no
/// canonical form stands for itself.
pub(crate) fn payload_text(envelope: &Envelope<'_>) -> String {
    let mut out = String::new();
    match envelope.payload() {
        Some(payload) => {
            if canonical_value(payload, &mut out).is_err() {
                out.clear();
                payload.write_json(&mut out);
            }
        }
        None => {
            let mut errors = Vec::new();
            match rest(envelope.root(), &ENVELOPE, &mut errors) {
                Some(fields) => out.push_str(fields.as_str()),
                None => {
                    for (key, value) in envelope.root().members() {
                        let name = key.as_str().unwrap_or_default();
                        if !ENVELOPE.contains(&&*name) {
                            out.push_str(&segment(&name));
                            value.write_json(&mut out);
                        }
                    }
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::form::Encoding;

    fn read(text: &str) -> Telemetry {
        let document = Envelope::parse(Encoding::Json, text.as_bytes(), &Limits::default()).expect("JSON");
        let envelope = Envelope::open(document.root()).expect("an envelope");
        let kind = KindName::new(&envelope.kind().expect("a type")).expect("a kind");
        Telemetry::read(&envelope, kind, &Limits::default()).expect("samples")
    }

    fn texts(telemetry: &Telemetry) -> Vec<String> {
        let text = |sample: &Result<Sample, Box<BadItem>>| match sample {
            Ok(sample) => sample.fields.as_str().to_owned(),
            Err(bad) => format!("{:?}", bad.errors.iter().map(|error| &error.pointer).collect::<Vec<_>>()),
        };
        telemetry.samples.iter().map(text).collect()
    }

    #[test]
    fn a_message_holds_one_sample_or_several() {
        let table = [
            (
                r#"{"type":"location","id":"m1","ts":7,"timestamp":"t","latitude":1}"#,
                vec![r#"{"latitude":1,"timestamp":"t"}"#],
            ),
            (r#"{"type":"location","payload":{"latitude":1,"ts":5,"id":"x"}}"#, vec![r#"{"latitude":1}"#]),
            (
                r#"{"type":"site_access","data":{"logs":[{"url":"a"},{"fields":{"url":"b"},"x":1}]}}"#,
                vec![r#"{"url":"a"}"#, r#"{"url":"b"}"#],
            ),
            (
                r#"{"type":"voice","items":[3,{"id":7,"a":1},{"a":{"b":1,"b":2}}]}"#,
                vec![r#"[""]"#, r#"["/id"]"#, r#"["/a/b"]"#],
            ),
        ];
        for (text, wanted) in table {
            assert_eq!(texts(&read(text)), wanted, "{text}");
        }
    }

    #[test]
    fn a_name_and_a_time_are_the_samples_own_only_within_a_payload() {
        let flat = read(r#"{"type":"location","id":"m1","ts":7,"latitude":1}"#);
        let sample = flat.samples[0].as_ref().expect("a sample");
        assert_eq!((flat.at_ms, sample.id.as_ref(), sample.at_ms), (Some(7), None, None));
        let inner = read(r#"{"type":"location","ts":7,"payload":{"id":"x","ts":5,"latitude":1}}"#);
        let sample = inner.samples[0].as_ref().expect("a sample");
        assert_eq!((inner.at_ms, sample.at_ms), (Some(7), Some(5)));
        assert_eq!(sample.id.as_ref().map(RecordId::as_str), Some("x"));
    }
}
