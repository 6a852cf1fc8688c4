//! What streams of telemetry are like now, and what is unusual about them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use driftline_insight::{Anomaly, Ewma, EwmaConfig, StreamMeter, StreamMetrics, StreamSample};
use driftline_model::{DeviceKey, KindName, Object, TenantNo};
use driftline_protocol::write_json_string;

use crate::catalogue::TelemetryRule;
use crate::events::EventDraft;

/// The streams of a node, one per tenant and kind.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    streams: BTreeMap<(TenantNo, KindName), Stream>,
}

#[derive(Debug)]
struct Stream {
    meter: StreamMeter,
    /// Detectors of the stream's own metrics and of watched fields.
    usual: BTreeMap<Box<str>, Ewma>,
    told: Option<String>,
    heard_ms: u64,
}

/// What a message brought to its stream.
#[derive(Debug, Clone, Default)]
pub(crate) struct Brought {
    pub(crate) sample: StreamSample,
    /// Watched fields and their values.
    pub(crate) watched: Vec<(Box<str>, f64)>,
}

impl Brought {
    /// Counts an accepted sample.
    pub(crate) fn take(&mut self, rule: &TelemetryRule, fields: &Object) {
        self.sample.items += 1;
        if let Some(confidence) = numeric(fields, "confidence") {
            let (sum, count) = self.sample.confidence_sum.unwrap_or_default();
            self.sample.confidence_sum = Some((sum + confidence, count + 1));
        }
        self.watched
            .extend(rule.watch.iter().filter_map(|field| Some((field.clone(), numeric(fields, field)?))));
    }
}

fn numeric(fields: &Object, name: &str) -> Option<f64> {
    fields.get(name)?.parse().ok().filter(|value: &f64| value.is_finite())
}

/// How many samples are on their way to the store on this node.
#[derive(Debug, Default)]
pub(crate) struct UnderWay(AtomicU64);

/// Counts samples for as long as they are on their way.
pub(crate) struct Counted<'a>(&'a AtomicU64, u64);

impl UnderWay {
    pub(crate) fn count(&self, samples: u64) -> Counted<'_> {
        self.0.fetch_add(samples, Ordering::Relaxed);
        Counted(&self.0, samples)
    }

    pub(crate) fn number(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(self.1, Ordering::Relaxed);
    }
}

/// A stream that was silent for so long is forgotten, in milliseconds.
const FORGOTTEN_MS: u64 = 3_600_000;

/// Streams that are watched at once.
const STREAMS_MAX: usize = 1_000;

impl Streams {
    /// Counts what a message brought; gives alerts about its values.
    pub(crate) fn record(
        &mut self,
        (tenant, kind): (TenantNo, &KindName),
        device: &DeviceKey,
        brought: Brought,
        now_ms: u64,
    ) -> Vec<EventDraft> {
        let key = (tenant, kind.clone());
        if self.streams.len() >= STREAMS_MAX && !self.streams.contains_key(&key) {
            return Vec::new();
        }
        let stream = self.streams.entry(key).or_insert_with(|| Stream {
            meter: StreamMeter::new(),
            usual: BTreeMap::new(),
            told: None,
            heard_ms: now_ms,
        });
        stream.heard_ms = now_ms;
        stream.meter.record(now_ms, brought.sample);
        let mut alerts = Vec::new();
        for (field, value) in brought.watched {
            if let Some(anomaly) = stream.observe(&field, value) {
                let metric = format!("{kind}.{field}");
                alerts.push(alert(&metric, Some(device), &anomaly, now_ms));
            }
        }
        alerts
    }

    /// Gives what was last told of the streams of a tenant.
    pub(crate) fn told(&self, tenant: TenantNo, now_ms: u64) -> Vec<EventDraft> {
        let of_tenant = self.streams.iter().filter(|((of, _), _)| *of == tenant);
        of_tenant
            .filter_map(|(_, stream)| Some(live("stream_metrics", None, stream.told.as_ref()?, now_ms)))
            .collect()
    }

    /// Looks at every stream once a second: what changed since the last look, and what is unusual.
    pub(crate) fn look(&mut self, now_ms: u64) -> Vec<(TenantNo, EventDraft)> {
        self.streams.retain(|_, stream| stream.heard_ms + FORGOTTEN_MS >= now_ms);
        let mut signals = Vec::new();
        for ((tenant, kind), stream) in &mut self.streams {
            let metrics = stream.meter.snapshot(now_ms);
            let data = encode(kind, &metrics);
            if stream.told.as_ref() != Some(&data) {
                signals.push((*tenant, live("stream_metrics", None, &data, now_ms)));
                stream.told = Some(data);
            }
            let watched = [("per_s", Some(metrics.per_s)), ("p95_ms", Some(metrics.p95_ms))];
            for (name, value) in watched.into_iter().chain([("mean_confidence", metrics.mean_confidence)]) {
                let Some(anomaly) = value.and_then(|value| stream.observe(name, value)) else { continue };
                signals.push((*tenant, alert(&format!("{kind}.{name}"), None, &anomaly, now_ms)));
            }
        }
        signals
    }
}

impl Stream {
    fn observe(&mut self, name: &str, value: f64) -> Option<Anomaly> {
        if !self.usual.contains_key(name) {
            let detector = Ewma::new(EwmaConfig::default()).ok()?;
            self.usual.insert(name.into(), detector);
        }
        self.usual.get_mut(name)?.observe(value)
    }
}

fn live(kind: &str, device: Option<&DeviceKey>, data: &str, at_ms: u64) -> EventDraft {
    let draft = EventDraft::new(kind, vec![kind.into()], Arc::from(data), at_ms);
    EventDraft { durable: false, owner: device.cloned(), ..draft }
}

fn alert(metric: &str, device: Option<&DeviceKey>, anomaly: &Anomaly, at_ms: u64) -> EventDraft {
    let mut data = String::from("{\"metric\":");
    write_json_string(&mut data, metric);
    if let Some(device) = device {
        data.push_str(",\"device_id\":");
        write_json_string(&mut data, device.device());
    }
    data.push_str(&format!(
        ",\"value\":{},\"expected\":{},\"severity\":\"{}\"}}",
        number(anomaly.value),
        number(anomaly.expected),
        anomaly.severity.name()
    ));
    EventDraft { durable: true, ..live("anomaly_alert", device, &data, at_ms) }
}

fn encode(kind: &KindName, metrics: &StreamMetrics) -> String {
    let mut data = String::from("{\"kind\":");
    write_json_string(&mut data, kind.as_str());
    data.push_str(&format!(
        ",\"per_s\":{},\"p95_ms\":{},\"errors\":{},\"backlog\":{}",
        number(metrics.per_s),
        number(metrics.p95_ms),
        metrics.errors,
        metrics.backlog
    ));
    if let Some(mean) = metrics.mean_confidence {
        data.push_str(&format!(",\"mean_confidence\":{}", number(mean)));
    }
    data.push('}');
    data
}

/// A number with three digits behind the point, which is JSON if it is finite.
fn number(value: f64) -> f64 {
    if value.is_finite() { (value * 1000.0).round() / 1000.0 } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device() -> DeviceKey {
        DeviceKey::from_text("ada\u{1}phone")
    }

    fn record(streams: &mut Streams, kind: &str, score: f64, now_ms: u64) -> Vec<EventDraft> {
        let kind = KindName::new(kind).expect("a kind");
        let sample = StreamSample { items: 1, errors: 1, latency_ms: 4.0, ..StreamSample::default() };
        let brought = Brought { sample, watched: vec![("score".into(), score)] };
        streams.record((TenantNo::new(1), &kind), &device(), brought, now_ms)
    }

    #[test]
    fn what_changed_is_told_once() {
        let mut streams = Streams::default();
        record(&mut streams, "voice", 1.0, 1_000);
        let told = streams.look(2_000);
        assert_eq!(told.len(), 1, "{told:?}");
        let data = &told[0].1.data;
        for part in [r#"{"kind":"voice","per_s":"#, r#""p95_ms":4"#, r#""errors":1"#] {
            assert!(data.contains(part), "{part}: {data}");
        }
        assert!(streams.look(2_000).is_empty(), "nothing changed");
        assert_eq!(streams.told(TenantNo::new(1), 2_002).len(), 1, "who comes later is told all");
        assert!(streams.told(TenantNo::new(2), 2_002).is_empty());
    }

    #[test]
    fn an_unusual_value_raises_an_alert_of_its_device() {
        let mut streams = Streams::default();
        for at in 0..200_u32 {
            let alerts = record(&mut streams, "voice", 1.0 + f64::from(at % 2) / 10.0, u64::from(at));
            assert!(alerts.is_empty(), "{alerts:?}");
        }
        let alerts = record(&mut streams, "voice", 50.0, 1_000);
        assert_eq!((alerts.len(), &*alerts[0].kind), (1, "anomaly_alert"));
        assert!(alerts[0].data.contains(r#""metric":"voice.score","device_id":"phone","value":50"#));
    }

    #[test]
    fn streams_beyond_the_bound_are_not_watched_until_others_are_silent() {
        let mut streams = Streams::default();
        for number in 0..=STREAMS_MAX {
            record(&mut streams, &format!("kind{number}"), 1.0, 0);
        }
        assert_eq!(streams.streams.len(), STREAMS_MAX);
        streams.look(FORGOTTEN_MS + 1);
        record(&mut streams, "late", 1.0, FORGOTTEN_MS + 1);
        assert_eq!(streams.streams.len(), 1);
    }
}
