//! Telemetry, aggregates and what devices say of themselves.

use std::sync::PoisonError;

use driftline_idempotency::Fingerprint;
use driftline_insight::{Aggregate as DeviceAggregate, Sketch};
use driftline_model::{KindName, Object, SyncId, TenantId};
use driftline_protocol::{
    AnalyticsBatch, BareAck, DeviceStatus, ErrorCode, Fault, FieldError, ItemClass, ItemCode, MessageKey,
    Telemetry, TelemetryAck, unknown_type,
};

use super::{Engine, unavailable};
use crate::events::EventDraft;
use crate::group::{Aggregate, Answered, Entry, Once, OnceKey, Receipt, Submission, Task};
use crate::ingest::{SampleEcho, Source, answer, entries};
use crate::ports::{Identity, Observer, Store};
use crate::registry::DeviceSign;
use crate::streams::Brought;

/// Samples that are applied together.
#[derive(Debug, Clone, PartialEq)]
pub struct Ingest {
    /// The messages, each with its place among those that came with it.
    pub messages: Vec<(u64, Telemetry)>,
    /// Whether they came in an array: then indexes are places of messages.
    pub array: bool,
    /// What the request is remembered by.
    pub once: Vec<Once>,
    /// What a resend repeats, for the names of samples that have none: a key, or a session and a number.
    pub batch_key: Option<String>,
    /// A random number, for names that nobody else gave.
    pub seed: u128,
}

/// Samples that are ready for the store, with what their answer repeats.
#[derive(Debug)]
pub struct PreparedIngest {
    submission: Submission,
    echoes: Vec<SampleEcho>,
    of: String,
    recognised: bool,
    asked_ms: u64,
}

impl<S: Store, O: Observer> Engine<S, O> {
    /// Makes what a message is remembered by, of the key that it came with.
    pub fn once_of(
        &self,
        identity: &Identity,
        kind: &str,
        sync_id: Option<&SyncId>,
        key: Option<&MessageKey>,
    ) -> Option<Once> {
        let key = key?;
        let sync_id = sync_id.map(SyncId::as_str);
        let fingerprint = Fingerprint::envelope(kind, sync_id, key.payload.as_bytes());
        Some(self.once(identity, &key.key, fingerprint))
    }

    /// Makes what a request is remembered by.
    pub fn once(&self, identity: &Identity, key: &str, fingerprint: Fingerprint) -> Once {
        Once {
            key: OnceKey::Request { owner: identity.owner(), key: key.into() },
            fingerprint,
            window_ms: self.window_ms(&identity.tenant_id),
        }
    }

    /// Returns for how many milliseconds answers are remembered under a key.
    pub fn window_ms(&self, tenant: &TenantId) -> u64 {
        self.windows.of(tenant)
    }

    /// Appends samples.
    ///
    /// Dropping the future gives up the answer; what was handed to the store is applied all the same.
    ///
    /// # Errors
    /// `UNKNOWN_MESSAGE_TYPE` for a single message of a type that is no kind of telemetry, `MISSING_DEVICE_ID`,
    /// `BATCH_TOO_LARGE`, `IDEMPOTENCY_KEY_REUSED`, `IDEMPOTENCY_IN_PROGRESS`, `STORE_UNAVAILABLE`: nothing was applied, or
    /// a resend is recognised. What is wrong with single samples stands in the answer.
    pub async fn ingest(
        &self,
        identity: &Identity,
        ingest: Ingest,
        now_ms: u64,
        correlation: &str,
    ) -> Result<TelemetryAck, Fault> {
        let prepared = self.prepare_ingest(identity, ingest, now_ms, correlation)?;
        self.finish_ingest(identity, prepared, now_ms).await
    }

    pub(crate) fn prepare_ingest(
        &self,
        identity: &Identity,
        ingest: Ingest,
        now_ms: u64,
        correlation: &str,
    ) -> Result<PreparedIngest, Fault> {
        let Some((_, device)) = &identity.device else {
            return Err(Fault::new(ErrorCode::MissingDeviceId, "telemetry needs a device"));
        };
        let count: usize = ingest.messages.iter().map(|(_, message)| message.samples.len()).sum();
        if count > self.limits.batch_items {
            let message = format!("a request may hold {} samples: split it", self.limits.batch_items);
            return Err(Fault::new(ErrorCode::BatchTooLarge, message));
        }
        let of = common_kind(&ingest.messages).map_or_else(|| "ingest".to_owned(), ToString::to_string);
        let mut all: (Vec<Entry>, Vec<SampleEcho>) = (Vec::with_capacity(count), Vec::with_capacity(count));
        let mut named = true;
        for (position, telemetry) in ingest.messages {
            let place = ingest.batch_key.as_ref().map(|key| match ingest.array {
                true => format!("place {position} {key}"),
                false => format!("key {key}"),
            });
            let source = Source {
                device,
                batch_key: place.as_deref(),
                seed: ingest.seed.wrapping_add(u128::from(position)),
                sent_ms: None,
            };
            let unnamed = telemetry.samples.iter().flatten().any(|sample| sample.id.is_none());
            let member = telemetry.member;
            let (rule, refusal) = match self.catalogue.telemetry(&telemetry.kind) {
                Some((kind, rule)) => {
                    named &= !unnamed || !rule.key.is_empty() || place.is_some();
                    (
                        std::sync::Arc::clone(rule),
                        (!kind.may_write(&identity.roles)).then_some(ItemCode::Forbidden),
                    )
                }
                None if ingest.array => (std::sync::Arc::default(), Some(ItemCode::UnknownKind)),
                None => return Err(unknown_type(telemetry.kind.as_str())),
            };
            let (entries, mut echoes) = entries(telemetry, &rule, source, refusal);
            if ingest.array {
                for echo in &mut echoes {
                    echo.under = member.map_or_else(String::new, |name| format!("/{name}/{}", echo.index));
                    echo.index = position;
                }
            }
            all.0.extend(entries);
            all.1.extend(echoes);
        }
        let submission = self.submission_of(identity, all.0, ingest.once, correlation)?;
        let recognised = named || !submission.once.is_empty();
        Ok(PreparedIngest { submission, echoes: all.1, of, recognised, asked_ms: now_ms })
    }

    pub(crate) async fn finish_ingest(
        &self,
        identity: &Identity,
        prepared: PreparedIngest,
        now_ms: u64,
    ) -> Result<TelemetryAck, Fault> {
        let PreparedIngest { submission, echoes, of, recognised, asked_ms } = prepared;
        // What is told of accepted samples is taken down before the store gets them.
        let told: Vec<Option<(KindName, Option<Object>)>> = submission.entries.iter().map(told_of).collect();
        let _under_way = self.under_way.count(told.len() as u64);
        let receipt = self.commit(identity, submission, now_ms).await.map_err(|error| unavailable(&error))?;
        let replayed = judged(receipt.answered)?;
        let again = || Fault::new(ErrorCode::StoreUnavailable, "some samples have to be sent again");
        let mut ack = answer(&of, &receipt, echoes, recognised).ok_or_else(again)?;
        ack.replayed = replayed;
        if !replayed {
            self.tell_of_samples(identity, told, &receipt, (asked_ms, now_ms));
        }
        Ok(ack)
    }

    /// Counts samples on their streams.
    pub(super) fn tell_of_samples(
        &self,
        identity: &Identity,
        told: Vec<Option<(KindName, Option<Object>)>>,
        receipt: &Receipt,
        (asked_ms, now_ms): (u64, u64),
    ) {
        let Some((_, device)) = &identity.device else { return };
        let mut streams: Vec<(KindName, Brought)> = Vec::new();
        let (mut accepted, mut duplicates, mut rejected) = (0, 0, 0);
        for (told, result) in told.into_iter().zip(&receipt.results) {
            let Some((kind, fields)) = told else { continue };
            let Some((_, rule)) = self.catalogue.telemetry(&kind) else { continue };
            let at = streams.iter().position(|(known, _)| *known == kind).unwrap_or_else(|| {
                streams.push((kind, Brought::default()));
                streams.len() - 1
            });
            let brought = &mut streams[at].1;
            match (result.code.class(), fields) {
                (ItemClass::Done, _) if result.duplicate => duplicates += 1,
                (ItemClass::Done, Some(fields)) => {
                    accepted += 1;
                    brought.take(rule, &fields);
                }
                _ => {
                    rejected += 1;
                    brought.sample.errors += 1;
                }
            }
        }
        if streams.is_empty() {
            return;
        }
        self.observer.samples(accepted, duplicates, rejected);
        let done_ms = self.clock.as_ref().map_or(now_ms, |clock| clock.now_ms());
        let mut known = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let mut alerts = Vec::new();
        for (kind, mut brought) in streams {
            #[expect(clippy::cast_precision_loss, reason = "milliseconds of one request")]
            let latency_ms = done_ms.saturating_sub(asked_ms) as f64;
            (brought.sample.latency_ms, brought.sample.backlog) = (latency_ms, self.under_way.number());
            alerts.extend(known.record((identity.tenant, &kind), device, brought, now_ms));
        }
        drop(known);
        for alert in alerts {
            self.tell(identity.tenant, alert);
        }
    }

    /// Takes what a device says of itself: an event tells of it, and the registry's row is written behind.
    ///
    /// # Errors
    /// `MISSING_DEVICE_ID`, `STORE_UNAVAILABLE`.
    pub async fn report(
        &self,
        identity: &Identity,
        status: &DeviceStatus,
        now_ms: u64,
        correlation: &str,
    ) -> Result<BareAck, Fault> {
        let Some((_, key)) = &identity.device else {
            return Err(Fault::new(ErrorCode::MissingDeviceId, "a status needs a device"));
        };
        let sign = DeviceSign::Reported {
            status: status.status.as_deref().map(Box::from),
            report: status.fields.as_str().into(),
        };
        self.sign(identity, sign, now_ms);
        let draft = EventDraft::of_device("device_status", key, &["device_status"], &status.fields, now_ms);
        self.publish_draft(identity, draft, None, now_ms, correlation).await?;
        Ok(BareAck { of: "device_status".into(), replayed: false })
    }

    /// Adds what a device counted to the series of its hour, once: the same window of the same device counts no second
    /// time.
    ///
    /// # Errors
    /// `VALIDATION_ERROR` for a window or values that cannot be; `MISSING_DEVICE_ID`; `IDEMPOTENCY_KEY_REUSED` when the key,
    /// or the window, came with other numbers; `STORE_UNAVAILABLE`.
    pub async fn aggregate(
        &self,
        identity: &Identity,
        batch: AnalyticsBatch,
        once: Option<Once>,
        now_ms: u64,
        correlation: &str,
    ) -> Result<BareAck, Fault> {
        let (from_ms, to_ms) = (batch.from_ms, batch.to_ms);
        // The window itself names the aggregate as well, for as long as it may come: a device counts each window once.
        let (key, fingerprint) = (format!("analytics:{from_ms}-{to_ms}"), print_of(&batch));
        let window_ms = driftline_idempotency::WINDOW_MS_MAX;
        let window = Once { window_ms, ..self.once(identity, &key, fingerprint) };
        let names = once.into_iter().chain([window]).collect();
        let aggregate = device_aggregate(batch)?;
        aggregate.check(now_ms, self.limits.skew_ms_max).map_err(|error| {
            let message = error.to_string();
            let error =
                FieldError { code: "invalid".into(), pointer: "/from".into(), message: message.clone() };
            Fault { errors: vec![error], ..Fault::new(ErrorCode::ValidationError, message) }
        })?;
        let hour_ms = aggregate.hour_ms();
        let series = aggregate.into_points().into_iter().collect();
        let entry = Entry {
            op_id: None,
            n: None,
            hash: 0,
            kind: None,
            id: None,
            group: None,
            task: Task::Aggregate(Box::new(Aggregate { hour_ms, series })),
        };
        let submission = self.submission_of(identity, vec![entry], names, correlation)?;
        let receipt = self.commit(identity, submission, now_ms).await.map_err(|error| unavailable(&error))?;
        let replayed = judged(receipt.answered)?;
        Ok(BareAck { of: "analytics_batch".into(), replayed })
    }

    fn submission_of(
        &self,
        identity: &Identity,
        entries: Vec<Entry>,
        once: Vec<Once>,
        correlation: &str,
    ) -> Result<Submission, Fault> {
        let Some((device, _)) = &identity.device else {
            return Err(Fault::new(ErrorCode::MissingDeviceId, "the message needs a device"));
        };
        Ok(Submission {
            tenant: identity.tenant,
            device: *device,
            user: identity.user.to_string().into(),
            scopes: Vec::new(),
            epoch: None,
            acked_n: None,
            batch: None,
            once,
            correlation: correlation.into(),
            entries,
            events: Vec::new(),
        })
    }
}

/// Tells whether an answer is one of an earlier request, or why there is none.
pub(crate) fn judged(answered: Answered) -> Result<bool, Fault> {
    match answered {
        Answered::Applied => Ok(false),
        Answered::Replayed { .. } => Ok(true),
        Answered::Reused => Err(reused()),
        Answered::InProgress { .. } => Err(Fault::new(
            ErrorCode::IdempotencyInProgress,
            "a request of the same key is being handled: send again",
        )),
    }
}

pub(crate) fn reused() -> Fault {
    Fault::new(ErrorCode::IdempotencyKeyReused, "the key was used for another request, which stays as it is")
}

/// The kind that all messages share.
fn common_kind(messages: &[(u64, Telemetry)]) -> Option<&KindName> {
    let (_, first) = messages.first()?;
    messages.iter().all(|(_, message)| message.kind == first.kind).then_some(&first.kind)
}

/// What is to be told of an entry if it is a sample: its kind and, unless it is refused, its fields.
pub(crate) fn told_of(entry: &Entry) -> Option<(KindName, Option<Object>)> {
    match &entry.task {
        Task::Append(append) => Some((entry.kind.clone()?, Some(append.fields.clone()))),
        Task::Refuse(..) => Some((entry.kind.clone()?, None)),
        _ => None,
    }
}

fn print_of(batch: &AnalyticsBatch) -> Fingerprint {
    let mut builder = Fingerprint::builder("analytics");
    builder.number(batch.from_ms).number(batch.to_ms).count(batch.counters.len());
    for (name, count) in &batch.counters {
        builder.text(name).number(*count);
    }
    builder.count(batch.histograms.len());
    for (name, values) in &batch.histograms {
        builder.text(name).count(values.len());
        for (value, count) in values {
            builder.number(value.to_bits()).number(*count);
        }
    }
    builder.finish()
}

fn device_aggregate(batch: AnalyticsBatch) -> Result<DeviceAggregate, Fault> {
    let mut histograms = Vec::with_capacity(batch.histograms.len());
    for (name, values) in batch.histograms {
        let mut sketch = Sketch::new();
        for (at, (value, count)) in values.into_iter().enumerate() {
            sketch.add_many(value, count).map_err(|error| {
                let (pointer, message) = (format!("/histograms/{name}/{at}"), error.to_string());
                let error = FieldError { code: "invalid".into(), pointer, message: message.clone() };
                Fault { errors: vec![error], ..Fault::new(ErrorCode::ValidationError, message) }
            })?;
        }
        histograms.push((name, sketch));
    }
    Ok(DeviceAggregate { from_ms: batch.from_ms, to_ms: batch.to_ms, counters: batch.counters, histograms })
}
