//! The buffer as text, to be kept over a restart of the app.

use std::collections::{BTreeMap, VecDeque};

use driftline_model::KindName;
use driftline_protocol::{AnalyticsBatch, Document, FieldError, Node, write_json_string, write_number};
use thiserror::Error;

use super::buffer::Telemetry;
use super::envelope::{Content, Envelope, RefusedSample, Trip};
use super::limits::{Held, TelemetryLimits};
use super::window::Window;

/// The form of what is saved.
const FORM: u64 = 1;

/// Deeper than any message may nest.
const DEPTH: usize = 96;

/// A text is no saved buffer.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("not a saved buffer of telemetry: {0}")]
pub struct SavedError(String);

impl Telemetry {
    /// Writes everything that waits, with the messages as they were cut.
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut out = String::with_capacity(self.held.bytes + 1_024);
        out.push_str("{\"form\":");
        write_number(&mut out, FORM);
        number(&mut out, "next", self.next_number);
        array(&mut out, "waiting", &self.waiting, |out, (kind, items)| {
            out.push_str("{\"kind\":");
            write_json_string(out, kind.as_str());
            array(out, "items", items, |out, item| out.push_str(item));
            out.push('}');
        });
        array(&mut out, "envelopes", &self.envelopes, write_envelope);
        array(&mut out, "refused", &self.refused, write_refused);
        if let Some(batch) = self.window.batch(0) {
            out.push_str(",\"window\":");
            out.push_str(&batch.encode());
        }
        out.push('}');
        out
    }

    /// Reads what [`to_json`](Self::to_json) wrote. Messages that were under way are sent again, as they were.
    ///
    /// # Errors
    /// [`SavedError`] when the text is none of that, or of a later form.
    pub fn from_json(json: &str, limits: TelemetryLimits) -> Result<Self, SavedError> {
        let document =
            Document::parse(json.as_bytes(), DEPTH).map_err(|error| SavedError(error.to_string()))?;
        let root = document.root();
        if root.get("form").and_then(|node| node.as_u64()) != Some(FORM) {
            return Err(SavedError("its form is not known".into()));
        }
        read(root, limits).ok_or_else(|| SavedError("a member is missing or is not what it must be".into()))
    }
}

fn number(out: &mut String, name: &str, value: u64) {
    member(out, name);
    write_number(out, value);
}

fn text(out: &mut String, name: &str, value: &str) {
    member(out, name);
    write_json_string(out, value);
}

fn member(out: &mut String, name: &str) {
    out.push_str(",\"");
    out.push_str(name);
    out.push_str("\":");
}

fn array<T>(
    out: &mut String,
    name: &str,
    elements: impl IntoIterator<Item = T>,
    write: impl Fn(&mut String, T),
) {
    member(out, name);
    out.push('[');
    for (at, element) in elements.into_iter().enumerate() {
        if at > 0 {
            out.push(',');
        }
        write(out, element);
    }
    out.push(']');
}

fn write_envelope(out: &mut String, envelope: &Envelope) {
    out.push_str("{\"number\":");
    write_number(out, envelope.number);
    text(out, "kind", envelope.kind.as_str());
    if let Some(key) = &envelope.idempotency_key {
        text(out, "key", key);
    }
    number(out, "cut_ms", envelope.cut_ms);
    number(out, "sent", u64::from(envelope.trip.sent));
    match &envelope.content {
        Content::Items(items) => array(out, "items", items, |out, item| out.push_str(item)),
        Content::Object(object) => {
            member(out, "object");
            out.push_str(object);
        }
    }
    out.push('}');
}

fn write_refused(out: &mut String, refused: &RefusedSample) {
    out.push_str("{\"kind\":");
    write_json_string(out, refused.kind.as_str());
    if let Some(item) = &refused.item {
        member(out, "item");
        out.push_str(item);
    }
    if let Some(key) = &refused.idempotency_key {
        text(out, "key", key);
    }
    number(out, "index", refused.index);
    write_error(out, &refused.code, &refused.pointer, &refused.message);
    array(out, "errors", &refused.errors, |out, error| {
        out.push_str("{\"at\":0");
        write_error(out, &error.code, &error.pointer, &error.message);
        out.push('}');
    });
    out.push('}');
}

fn write_error(out: &mut String, code: &str, pointer: &str, message: &str) {
    text(out, "code", code);
    text(out, "pointer", pointer);
    text(out, "message", message);
}

fn read(root: Node<'_>, limits: TelemetryLimits) -> Option<Telemetry> {
    let waiting = root.get("waiting")?.elements().map(|node| {
        let items: VecDeque<Box<str>> = objects(node.get("items")?)?;
        Some((kind(node)?, items))
    });
    let mut telemetry = Telemetry {
        next_number: root.get("next")?.as_u64()?,
        waiting: waiting.collect::<Option<BTreeMap<_, _>>>()?,
        envelopes: root.get("envelopes")?.elements().map(read_envelope).collect::<Option<_>>()?,
        refused: root.get("refused")?.elements().map(read_refused).collect::<Option<_>>()?,
        window: root.get("window").map_or(Some(Window::default()), read_window)?,
        ..Telemetry::new(limits)
    };
    telemetry.waiting.retain(|_, items| !items.is_empty());
    // A number that is used twice would let one answer settle the wrong message.
    let mut numbers: Vec<u64> = telemetry.envelopes.iter().map(|envelope| envelope.number).collect();
    numbers.sort_unstable();
    let distinct = numbers.windows(2).all(|pair| pair[0] < pair[1]);
    if !distinct || numbers.last().is_some_and(|last| *last >= telemetry.next_number) {
        return None;
    }
    telemetry.held = held(&telemetry);
    Some(telemetry)
}

fn held(telemetry: &Telemetry) -> Held {
    let waiting = telemetry.waiting.values().flatten();
    let cut = telemetry.envelopes.iter().flat_map(Envelope::items);
    let sizes = waiting.chain(cut).map(|item| item.len());
    let sizes = sizes.chain(telemetry.refused.iter().map(RefusedSample::bytes));
    sizes.fold(Held::default(), |held, bytes| Held { samples: held.samples + 1, bytes: held.bytes + bytes })
}

fn kind(node: Node<'_>) -> Option<KindName> {
    KindName::new(&node.get("kind")?.as_str()?).ok()
}

fn word(node: Node<'_>, name: &str) -> Option<String> {
    node.get(name)?.as_str().map(|text| text.into_owned())
}

/// The objects of an array, each byte for byte.
fn objects<L: FromIterator<Box<str>>>(array: Node<'_>) -> Option<L> {
    array.elements().map(object).collect()
}

fn object(node: Node<'_>) -> Option<Box<str>> {
    node.is_object().then(|| node.to_json().into())
}

fn read_envelope(node: Node<'_>) -> Option<Envelope> {
    let content = match node.get("items") {
        Some(items) => Content::Items(objects(items)?),
        None => Content::Object(object(node.get("object")?)?),
    };
    let sent = u32::try_from(node.get("sent")?.as_u64()?).ok()?;
    Some(Envelope {
        number: node.get("number")?.as_u64()?,
        kind: kind(node)?,
        idempotency_key: word(node, "key").map(Into::into),
        cut_ms: node.get("cut_ms")?.as_u64()?,
        content,
        trip: Trip { sent, ..Trip::default() },
    })
}

fn read_refused(node: Node<'_>) -> Option<RefusedSample> {
    let error = |node: Node<'_>| {
        let (code, pointer) = (word(node, "code")?, word(node, "pointer")?);
        Some(FieldError { code, pointer, message: word(node, "message")? })
    };
    let FieldError { code, pointer, message } = error(node)?;
    Some(RefusedSample {
        kind: kind(node)?,
        item: node.get("item").map(object).unwrap_or_default(),
        idempotency_key: word(node, "key").map(Into::into),
        index: node.get("index")?.as_u64()?,
        code,
        pointer,
        message,
        errors: node.get("errors")?.elements().map(error).collect::<Option<_>>()?,
    })
}

fn read_window(node: Node<'_>) -> Option<Window> {
    let name = |key: Node<'_>| key.as_str().map(Box::<str>::from);
    let counter = |(key, count): (Node<'_>, Node<'_>)| Some((name(key)?, count.as_u64()?));
    let pair = |node: Node<'_>| {
        let mut parts = node.elements();
        let value: f64 = parts.next()?.to_json().parse().ok()?;
        Some((value, parts.next()?.as_u64()?))
    };
    let histogram = |(key, values): (Node<'_>, Node<'_>)| {
        Some((name(key)?, values.elements().map(pair).collect::<Option<Vec<_>>>()?))
    };
    Some(Window::of_batch(AnalyticsBatch {
        from_ms: node.get("from")?.as_u64()?,
        to_ms: node.get("to")?.as_u64()?,
        counters: node.get("counters")?.members().map(counter).collect::<Option<_>>()?,
        histograms: node.get("histograms")?.members().map(histogram).collect::<Option<_>>()?,
    }))
}
