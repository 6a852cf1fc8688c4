//! What a device says of itself: its status, and what it counted.

use driftline_model::Object;
use serde::{Deserialize, Serialize};

use crate::canonical::canonical_object;
use crate::envelope::{Envelope, Fault};
use crate::json::Node;
use crate::telemetry::rest;
use crate::time::parse_time;

/// How a device is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceStatus {
    /// Its own word for it, at most 64 bytes.
    pub status: Option<String>,
    /// Everything that it said, canonical.
    pub fields: Object,
}

/// The most bytes of a status.
const STATUS_BYTES: usize = 64;

/// The most bytes of everything that a device says of itself.
const REPORT_BYTES: usize = 16 << 10;

impl DeviceStatus {
    pub(crate) fn read(envelope: &Envelope<'_>) -> Result<Self, Fault> {
        let status = match envelope.field("status") {
            None => None,
            Some(node) => {
                let text = node.as_str().filter(|text| !text.is_empty() && text.len() <= STATUS_BYTES);
                let text =
                    text.ok_or_else(|| Fault::invalid("/status", "must be a string of 1 to 64 bytes"))?;
                Some(text.into_owned())
            }
        };
        for name in ["battery", "storage_free_bytes"] {
            if envelope.field(name).is_some_and(|node| !node.is_number()) {
                return Err(Fault::invalid(&format!("/{name}"), "must be a number"));
            }
        }
        for name in ["network_type", "app_version", "os_version"] {
            if envelope.field(name).is_some_and(|node| node.as_str().is_none_or(|text| text.len() > 256)) {
                return Err(Fault::invalid(&format!("/{name}"), "must be a string of at most 256 bytes"));
            }
        }
        let fields = payload_object(envelope)?;
        if fields.as_str().len() > REPORT_BYTES {
            return Err(Fault::invalid("", "a status may hold 16 KiB"));
        }
        Ok(Self { status, fields })
    }
}

fn payload_object(envelope: &Envelope<'_>) -> Result<Object, Fault> {
    match envelope.payload() {
        Some(payload) => {
            canonical_object(payload).map_err(|error| Fault::invalid(&error.pointer, &error.kind.to_string()))
        }
        None => {
            let mut errors = Vec::new();
            let reserved = ["type", "sync_id", "idempotency_key", "id", "ts"];
            rest(envelope.root(), &reserved, &mut errors).ok_or_else(|| {
                let error = errors.pop();
                let pointer = error.as_ref().map_or("", |error| &error.pointer);
                Fault::invalid(pointer, error.as_ref().map_or("is not acceptable", |error| &error.message))
            })
        }
    }
}

/// What a device counted over a window of time.
#[derive(Debug, Clone, PartialEq)]
pub struct AnalyticsBatch {
    /// The window's beginning in Unix milliseconds.
    pub from_ms: u64,
    /// Its end.
    pub to_ms: u64,
    /// Names and how often each thing happened.
    pub counters: Vec<(Box<str>, u64)>,
    /// Names and what was measured: values, each with how often it was seen.
    pub histograms: Vec<(Box<str>, Histogram)>,
}

/// What was measured: values, each with how often it was seen.
pub type Histogram = Vec<(f64, u64)>;

/// The most series of one message, and the most values of one histogram.
const SERIES_MAX: usize = 256;
const VALUES_MAX: usize = 2048;

impl AnalyticsBatch {
    pub(crate) fn read(envelope: &Envelope<'_>) -> Result<Self, Fault> {
        let window = envelope.field("window");
        let time = |name: &str| {
            let node = window.and_then(|window| window.get(name)).or_else(|| envelope.field(name));
            let at = node.and_then(parse_time);
            at.ok_or_else(|| {
                Fault::invalid(&format!("/{name}"), "RFC 3339 or Unix milliseconds are required")
            })
        };
        let (from_ms, to_ms) = (time("from")?, time("to")?);
        let counters = members(envelope, "counters", |node, pointer| {
            node.as_u64().ok_or_else(|| Fault::invalid(pointer, "must be an integer from 0 to 2^53"))
        })?;
        let histograms = members(envelope, "histograms", values)?;
        Ok(Self { from_ms, to_ms, counters, histograms })
    }
}

fn members<T>(
    envelope: &Envelope<'_>,
    name: &str,
    read: impl Fn(Node<'_>, &str) -> Result<T, Fault>,
) -> Result<Vec<(Box<str>, T)>, Fault> {
    let Some(node) = envelope.field(name) else { return Ok(Vec::new()) };
    if !node.is_object() {
        return Err(Fault::invalid(&format!("/{name}"), "must be an object"));
    }
    let mut found: Vec<(Box<str>, T)> = Vec::new();
    for (key, value) in node.members() {
        let series = key.as_str().unwrap_or_default();
        let pointer = format!("/{name}{}", crate::canonical::segment(&series));
        if series.is_empty() || series.len() > 128 || series.chars().any(char::is_control) {
            return Err(Fault::invalid(&pointer, "a name has 1 to 128 bytes and no control characters"));
        }
        if found.iter().any(|(known, _)| **known == *series) {
            return Err(Fault::invalid(&pointer, "the key stands twice"));
        }
        if found.len() == SERIES_MAX {
            return Err(Fault::invalid(&format!("/{name}"), "may hold 256 series"));
        }
        found.push((series.as_ref().into(), read(value, &pointer)?));
    }
    Ok(found)
}

/// Reads a histogram: an array of `[value, count]` pairs or of plain values.
fn values(node: Node<'_>, pointer: &str) -> Result<Histogram, Fault> {
    if !node.is_array() || node.elements().count() > VALUES_MAX {
        return Err(Fault::invalid(
            pointer,
            "must be an array of at most 2048 values or [value, count] pairs",
        ));
    }
    let mut out = Vec::new();
    for (at, element) in node.elements().enumerate() {
        let wrong = || Fault::invalid(&format!("{pointer}/{at}"), "must be a number or [number, count]");
        let pair: Vec<Node<'_>> =
            if element.is_array() { element.elements().collect() } else { vec![element] };
        let count = match pair.get(1) {
            None => 1,
            Some(count) => count.as_u64().ok_or_else(wrong)?,
        };
        let value = pair.first().and_then(Node::as_f64).filter(|_| pair.len() <= 2).ok_or_else(wrong)?;
        out.push((value, count));
    }
    Ok(out)
}

/// A device as the registry tells of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeviceDoc {
    /// The device's name within its owner.
    pub device_id: String,
    /// The user it belongs to.
    pub owner: String,
    /// Whether it may connect.
    pub enabled: bool,
    /// Whether a device hash leads to it.
    pub has_device_hash: bool,
    /// The device hash, told once: when it is issued or set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_hash: Option<String>,
    /// `online`, `offline`, or the device's own word while it is connected.
    pub status: String,
    /// When it was last heard, RFC 3339.
    pub last_seen_at: String,
    /// When it was registered, RFC 3339.
    pub created_at: String,
    /// What it last said of itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<Box<serde_json::value::RawValue>>,
}

#[cfg(test)]
mod tests {
    use driftline_model::Limits;

    use super::*;
    use crate::form::Encoding;

    fn fault(text: &str) -> Option<String> {
        let document = Envelope::parse(Encoding::Json, text.as_bytes(), &Limits::default()).expect("JSON");
        let envelope = Envelope::open(document.root()).expect("an envelope");
        let read = match envelope.kind().as_deref() {
            Ok("device_status") => DeviceStatus::read(&envelope).err(),
            _ => AnalyticsBatch::read(&envelope).err(),
        };
        read.map(|fault| fault.errors.first().map(|error| error.pointer.clone()).unwrap_or_default())
    }

    #[test]
    fn a_status_has_its_bound() {
        let status = |bytes: usize| {
            format!(
                r#"{{"type":"device_status","payload":{{"x":"{}"}}}}"#,
                "x".repeat(bytes - r#"{"x":""}"#.len())
            )
        };
        assert_eq!(
            (fault(&status(REPORT_BYTES)), fault(&status(REPORT_BYTES + 1))),
            (None, Some(String::new()))
        );
        let long = format!(r#"{{"type":"device_status","status":"{}"}}"#, "x".repeat(STATUS_BYTES + 1));
        assert_eq!(fault(&long).as_deref(), Some("/status"));
    }

    #[test]
    fn an_aggregate_has_its_bounds() {
        let with =
            |rest: &str| format!(r#"{{"type":"analytics_batch","payload":{{"from":1,"to":2,{rest}}}}}"#);
        let series = |count: usize| {
            let all: Vec<String> = (0..count).map(|number| format!(r#""c{number}":1"#)).collect();
            with(&format!(r#""counters":{{{}}}"#, all.join(",")))
        };
        let values =
            |count: usize| with(&format!(r#""histograms":{{"h":[{}]}}"#, vec!["1"; count].join(",")));
        assert_eq!((fault(&series(SERIES_MAX)), fault(&values(VALUES_MAX))), (None, None));
        assert_eq!(fault(&series(SERIES_MAX + 1)).as_deref(), Some("/counters"));
        assert_eq!(fault(&values(VALUES_MAX + 1)).as_deref(), Some("/histograms/h"));
    }
}
