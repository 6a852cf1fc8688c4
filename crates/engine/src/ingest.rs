//! From samples to entries of a submission, and from its receipt to an answer.

use driftline_idempotency::Fingerprint;
use driftline_model::{DeviceKey, KindName, Object, RecordId};
use driftline_protocol::{
    BadItem, Document, FieldError, ItemClass, ItemCode, Rejected, Sample, Telemetry, TelemetryAck, parse_time,
};

use crate::catalogue::TelemetryRule;
use crate::events::announcing;
use crate::group::{Append, Entry, Receipt, Task};

/// Where samples come from, which names those that have no name of their own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Source<'a> {
    /// The device.
    pub(crate) device: &'a DeviceKey,
    /// What a resend of the message repeats; none: it cannot be recognised.
    pub(crate) batch_key: Option<&'a str>,
    /// A random number, for names that nobody else gave.
    pub(crate) seed: u128,
    /// The device's time of sending in Unix milliseconds.
    pub(crate) sent_ms: Option<u64>,
}

impl Source<'_> {
    /// Makes the entry of a sample.
    pub(crate) fn entry(
        self,
        kind: &KindName,
        rule: &TelemetryRule,
        sample: Sample,
        index: usize,
        op_id: Option<&str>,
    ) -> Entry {
        let given = sample.id.is_some();
        let named = match sample.id.clone() {
            Some(id) if id.as_str().starts_with(DERIVED) => Err(reserved()),
            Some(id) => Ok(id),
            None => self.name(rule, &sample, index, op_id),
        };
        let mut errors = rule.schema.as_ref().map(|schema| schema.check(&sample.fields)).unwrap_or_default();
        let id = match named {
            Ok(id) => Some(id),
            Err(fault) => {
                if errors.is_empty() {
                    errors.push(fault);
                }
                sample.id
            }
        };
        let task = if errors.is_empty() {
            Task::Append(Append {
                at_ms: time_of(rule, &sample.fields).or(sample.at_ms).or(self.sent_ms),
                hash: sample.hash,
                sent_ms: sample.at_ms.or(self.sent_ms),
                // Only a name that holds the device lets a sample take the place of another one.
                keyed: !rule.key.is_empty() && !given,
                fields: sample.fields,
                announce: announcing(rule.announce.as_ref(), Some(self.device)),
            })
        } else {
            Task::Refuse(ItemCode::Invalid, errors)
        };
        Entry { op_id: None, n: None, hash: sample.hash, kind: Some(kind.clone()), id, group: None, task }
    }

    /// Names a sample: by the fields of its kind's key, else by its place in what a resend repeats.
    fn name(
        self,
        rule: &TelemetryRule,
        sample: &Sample,
        index: usize,
        op_id: Option<&str>,
    ) -> Result<RecordId, FieldError> {
        if !rule.key.is_empty() {
            return self.key(rule, &sample.fields);
        }
        let mut builder = Fingerprint::builder("sample");
        builder.text(self.device.as_str());
        // The content is part of the name: a key that somebody uses again for other samples, after it was forgotten,
        // loses none of them.
        let content = sample.hash;
        let name = match (op_id, self.batch_key) {
            (Some(op_id), _) => {
                format!("{DERIVED}{}-{content:016x}", hex(builder.text("op").text(op_id).finish(), 12))
            }
            // The samples of a message stand together, so that a store writes them to few places.
            (None, Some(batch)) => {
                let batch = hex(builder.text("batch").text(batch).finish(), 12);
                format!("{DERIVED}{batch}-{index}-{content:016x}")
            }
            (None, None) => format!("{DERIVED}{:032x}-{index}", self.seed),
        };
        Ok(RecordId::new(&name).expect("hexadecimal digits"))
    }

    /// The device and the values of the key's fields. A device never reaches another one's samples.
    fn key(self, rule: &TelemetryRule, fields: &Object) -> Result<RecordId, FieldError> {
        let device = Fingerprint::builder("device").text(self.device.as_str()).finish();
        let mut builder = Fingerprint::builder("key");
        builder.text(self.device.as_str());
        for field in &rule.key {
            let missing = || FieldError {
                code: "required".into(),
                pointer: format!("/{field}"),
                message: "names the sample and is required".into(),
            };
            builder.text(fields.get(field).ok_or_else(missing)?);
        }
        let name = format!("{DERIVED}{}-{}", hex(device, 4), hex(builder.finish(), 16));
        Ok(RecordId::new(&name).expect("hexadecimal digits"))
    }
}

/// What names begin with that the server makes: no name that is given does, so that nobody takes another one's.
const DERIVED: &str = "~";

fn reserved() -> FieldError {
    let message = "names that begin with ~ are the server's".into();
    FieldError { code: "invalid".into(), pointer: "/id".into(), message }
}

fn hex(fingerprint: Fingerprint, bytes: usize) -> String {
    use std::fmt::Write as _;
    fingerprint.as_bytes()[..bytes].iter().fold(String::with_capacity(2 * bytes + 8), |mut out, byte| {
        write!(out, "{byte:02x}").expect("writing to a string does not fail");
        out
    })
}

/// The time that a sample tells of in Unix milliseconds: RFC 3339, Unix milliseconds or a date.
fn time_of(rule: &TelemetryRule, fields: &Object) -> Option<u64> {
    let value = fields.get(rule.time.as_deref().unwrap_or("timestamp"))?;
    let read = |text: &str| parse_time(Document::parse(text.as_bytes(), 1).ok()?.root());
    // A date is its first moment in UTC.
    read(value).or_else(|| read(&format!("{}T00:00:00Z\"", value.strip_suffix('"')?)))
}

/// What an answer repeats of a sample.
#[derive(Debug, Clone)]
pub(crate) struct SampleEcho {
    /// Its place in the message.
    pub(crate) index: u64,
    /// The name that it came with.
    pub(crate) id: Option<String>,
    /// What stands before the places of its faults.
    pub(crate) under: String,
}

/// Makes the entries of a message's samples.
pub(crate) fn entries(
    telemetry: Telemetry,
    rule: &TelemetryRule,
    source: Source<'_>,
    refusal: Option<ItemCode>,
) -> (Vec<Entry>, Vec<SampleEcho>) {
    let kind = telemetry.kind;
    let source = Source { sent_ms: telemetry.at_ms.or(source.sent_ms), ..source };
    let mut echoes = Vec::with_capacity(telemetry.samples.len());
    let entry = |(index, sample): (usize, Result<Sample, Box<BadItem>>)| {
        let id = sample.as_ref().ok().and_then(|sample| sample.id.as_ref()).map(ToString::to_string);
        echoes.push(SampleEcho { index: index as u64, id, under: String::new() });
        match (sample, refusal) {
            (Ok(sample), None) => source.entry(&kind, rule, sample, index, None),
            (Ok(sample), Some(code)) => refused(&kind, sample.hash, code, Vec::new()),
            (Err(bad), _) => refused(&kind, bad.hash, ItemCode::Invalid, bad.errors),
        }
    };
    let entries = telemetry.samples.into_iter().enumerate().map(entry).collect();
    (entries, echoes)
}

fn refused(kind: &KindName, hash: u64, code: ItemCode, errors: Vec<FieldError>) -> Entry {
    let task = Task::Refuse(code, errors);
    Entry { op_id: None, n: None, hash, kind: Some(kind.clone()), id: None, group: None, task }
}

/// Makes the answer to samples. Nothing: some of them have to be sent again.
pub(crate) fn answer(
    of: &str,
    receipt: &Receipt,
    echoes: Vec<SampleEcho>,
    recognised: bool,
) -> Option<TelemetryAck> {
    let mut ack = TelemetryAck {
        replayed: false,
        of: of.to_owned(),
        accepted: 0,
        duplicates: 0,
        rejected: Vec::new(),
        resend_recognised: (!recognised).then_some(false),
    };
    for (result, echo) in receipt.results.iter().zip(echoes) {
        match result.code.class() {
            ItemClass::Done if result.duplicate => ack.duplicates += 1,
            ItemClass::Done => ack.accepted += 1,
            ItemClass::Terminal => ack.rejected.push(rejected(result.code, &result.errors, echo)),
            ItemClass::Retry | ItemClass::Resync => return None,
        }
    }
    Some(ack)
}

pub(crate) fn rejected(code: ItemCode, errors: &[FieldError], echo: SampleEcho) -> Rejected {
    let under = |error: &FieldError| FieldError {
        pointer: format!("{}{}", echo.under, error.pointer),
        ..error.clone()
    };
    let first = errors.first().map(under);
    let message = first.as_ref().map_or_else(|| explain(code).to_owned(), |error| error.message.clone());
    Rejected {
        index: echo.index,
        id: echo.id,
        code: code.as_str().to_owned(),
        pointer: first.map_or_else(|| echo.under.clone(), |error| error.pointer),
        message,
        errors: if errors.len() > 1 { errors.iter().map(under).collect() } else { Vec::new() },
    }
}

fn explain(code: ItemCode) -> &'static str {
    match code {
        ItemCode::Forbidden => "the sender's roles may not write this kind",
        ItemCode::TooLarge => "the sample is larger than a record may be",
        ItemCode::UnknownKind => "the kind is not declared",
        _ => "the sample is refused",
    }
}
