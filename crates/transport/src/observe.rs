//! What is counted.

use driftline_engine::{Observer, Turn, UploadUsage};
use driftline_protocol::{ErrorCode, ItemCode};
use driftline_uploads::State;
use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

/// Renders what was counted, in the text format of Prometheus.
#[derive(Clone)]
pub struct MetricsHandle(PrometheusHandle);

impl std::fmt::Debug for MetricsHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MetricsHandle")
    }
}

impl MetricsHandle {
    /// Renders everything counted so far.
    #[must_use]
    pub fn render(&self) -> String {
        self.0.render()
    }
}

/// Installs the process-wide recorder; gives nothing when one is installed already.
#[must_use]
pub fn install_metrics() -> Option<MetricsHandle> {
    PrometheusBuilder::new().install_recorder().ok().map(MetricsHandle)
}

/// Counts what the engine does. Handles are made once, so that counting is an addition.
pub struct MetricsObserver {
    items: Vec<(ItemCode, Counter)>,
    conflicts: Vec<(&'static str, Counter)>,
    clamped: Counter,
    collapsed: Counter,
    mismatches: Counter,
    samples: [Counter; 3],
    fallbacks: Counter,
    reconnections: Counter,
    /// Rows of the outbox: processed, and of them those that make no event.
    outbox: [Counter; 2],
    /// By layer: known there, and not.
    lookups: [(&'static str, Counter, Counter); 2],
    uploads: UploadCounts,
}

/// What is counted of uploads.
struct UploadCounts {
    opened: Counter,
    refused: Counter,
    bytes: Counter,
    /// By how they ended: how many, and how long they took.
    ended: Vec<(State, Counter, Histogram)>,
    open: Gauge,
    reserved: Gauge,
}

impl Default for UploadCounts {
    fn default() -> Self {
        let ends = [State::Done, State::Cancelled, State::Expired];
        Self {
            opened: counter!("driftline_uploads_opened_total"),
            refused: counter!("driftline_upload_quota_refusals_total"),
            bytes: counter!("driftline_upload_bytes_total"),
            ended: ends
                .into_iter()
                .map(|end| {
                    let ended = counter!("driftline_uploads_ended_total", "end" => end.as_str());
                    (end, ended, histogram!("driftline_upload_seconds", "end" => end.as_str()))
                })
                .collect(),
            open: gauge!("driftline_uploads_open"),
            reserved: gauge!("driftline_upload_quota_bytes_used"),
        }
    }
}

impl std::fmt::Debug for MetricsObserver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MetricsObserver")
    }
}

impl Default for MetricsObserver {
    fn default() -> Self {
        let strategies = [
            "client_wins",
            "server_wins",
            "most_recent_wins",
            "field_merge",
            "preserve_escalation",
            "manual",
        ];
        Self {
            items: ItemCode::ALL
                .iter()
                .map(|code| (*code, counter!("driftline_sync_items_total", "code" => code.as_str())))
                .collect(),
            conflicts: strategies
                .map(|strategy| (strategy, counter!("driftline_conflicts_total", "strategy" => strategy)))
                .into(),
            clamped: counter!("driftline_clocks_clamped_total"),
            collapsed: counter!("driftline_assertions_collapsed_total"),
            mismatches: counter!("driftline_checksum_mismatches_total"),
            samples: ["accepted", "duplicate", "rejected"]
                .map(|result| counter!("driftline_samples_total", "result" => result)),
            fallbacks: counter!("driftline_fallbacks_total"),
            reconnections: counter!("driftline_reconnections_total"),
            outbox: [
                counter!("driftline_outbox_processed_total"),
                counter!("driftline_outbox_failed_total"),
            ],
            lookups: ["memory", "store"].map(|layer| {
                let of = |result: &'static str| {
                    counter!("driftline_idempotency_lookups_total", "layer" => layer, "result" => result)
                };
                (layer, of("hit"), of("miss"))
            }),
            uploads: UploadCounts::default(),
        }
    }
}

impl Observer for MetricsObserver {
    fn item(&self, code: ItemCode, strategy: Option<&'static str>) {
        if let Some((_, counter)) = self.items.iter().find(|(known, _)| *known == code) {
            counter.increment(1);
        }
        let Some(strategy) = strategy else { return };
        if let Some((_, counter)) = self.conflicts.iter().find(|(known, _)| *known == strategy) {
            counter.increment(1);
        }
    }

    fn clock_clamped(&self) {
        self.clamped.increment(1);
    }

    fn assertions_collapsed(&self) {
        self.collapsed.increment(1);
    }

    fn checksum_mismatch(&self) {
        self.mismatches.increment(1);
    }

    fn samples(&self, accepted: u64, duplicates: u64, rejected: u64) {
        for (counter, more) in self.samples.iter().zip([accepted, duplicates, rejected]) {
            counter.increment(more);
        }
    }

    fn remembered(&self, layer: &'static str, hit: bool) {
        match self.lookups.iter().find(|(known, ..)| *known == layer) {
            Some((_, hits, misses)) => if hit { hits } else { misses }.increment(1),
            None => {
                let result = if hit { "hit" } else { "miss" };
                counter!("driftline_idempotency_lookups_total", "layer" => layer, "result" => result)
                    .increment(1);
            }
        }
    }

    fn drained(&self, processed: u64, failed: u64) {
        for (counter, more) in self.outbox.iter().zip([processed, failed]) {
            counter.increment(more);
        }
    }

    fn upload_opened(&self) {
        self.uploads.opened.increment(1);
    }

    fn quota_refused(&self) {
        self.uploads.refused.increment(1);
    }

    fn upload_bytes(&self, bytes: u64) {
        self.uploads.bytes.increment(bytes);
    }

    fn upload_ended(&self, state: State, _: u64, lived_ms: u64) {
        if let Some((_, ended, seconds)) = self.uploads.ended.iter().find(|(end, ..)| *end == state) {
            ended.increment(1);
            seconds.record(std::time::Duration::from_millis(lived_ms));
        }
    }

    fn upload_usage(&self, usage: UploadUsage) {
        // Beyond 2^53 bytes the last digits are lost.
        self.uploads.open.set(as_float(usage.open));
        self.uploads.reserved.set(as_float(usage.bytes));
    }

    fn turned(&self, turn: Turn) {
        match turn {
            Turn::Plain => {}
            Turn::Reconnected => self.reconnections.increment(1),
            Turn::FellBack => self.fallbacks.increment(1),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
fn as_float(number: u64) -> f64 {
    number as f64
}

/// What the transport counts.
pub(crate) struct Counts {
    pub(crate) connections: Gauge,
    pub(crate) opened: Counter,
    pub(crate) messages_in: Counter,
    pub(crate) messages_out: Counter,
    pub(crate) bytes_in: Counter,
    pub(crate) bytes_out: Counter,
    pub(crate) slow_consumers: Counter,
    pub(crate) refused: Counter,
    pub(crate) replays: Counter,
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            connections: gauge!("driftline_connections"),
            opened: counter!("driftline_connections_opened_total"),
            messages_in: counter!("driftline_messages_in_total"),
            messages_out: counter!("driftline_messages_out_total"),
            bytes_in: counter!("driftline_message_bytes_in_total"),
            bytes_out: counter!("driftline_message_bytes_out_total"),
            slow_consumers: counter!("driftline_slow_consumers_total"),
            refused: counter!("driftline_connections_refused_total"),
            replays: counter!("driftline_idempotency_replays_total"),
        }
    }
}

/// Counts an error that was answered.
pub(crate) fn count_error(code: ErrorCode) {
    counter!("driftline_errors_total", "code" => code.as_str()).increment(1);
}

/// Counts a closed connection by its code.
pub(crate) fn count_close(code: u16) {
    counter!("driftline_connections_closed_total", "code" => code.to_string()).increment(1);
}
