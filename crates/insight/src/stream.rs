//! The last ten seconds of a stream.

use crate::sketch::Sketch;

/// The length of a slot, in milliseconds.
const SLOT_MS: u64 = 1_000;

/// The number of slots.
const SLOTS: usize = 10;

/// Up to here a time before the latest one is the disorder of callers, beyond it the clock was set back.
const DISORDER_MS: u64 = 1_000;

/// What came at once.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct StreamSample {
    /// How many items came, the refused ones among them.
    pub items: u64,
    /// How many of them were refused.
    pub errors: u64,
    /// How long each of them took, in milliseconds.
    pub latency_ms: f64,
    /// The sum of the confidences of items that have one, and how many have.
    pub confidence_sum: Option<(f64, u64)>,
    /// How many items still wait behind these.
    pub backlog: u64,
}

/// A stream as it is now.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct StreamMetrics {
    /// Items per second over the window, or since the first item if that is shorter (and at least a second).
    pub per_s: f64,
    /// The 95th percentile of the time that items took, in milliseconds, within 1 %; 0 where no item came.
    pub p95_ms: f64,
    /// Refused items in the window.
    pub errors: u64,
    /// How many items waited after the latest sample.
    pub backlog: u64,
    /// The mean of the confidences in the window, if any item had one.
    pub mean_confidence: Option<f64>,
}

/// Measures a stream over a window of ten slots of a second each: the second that runs, and nine before it.
///
/// Its memory does not grow with the stream: each slot has four numbers and a [`Sketch`], altogether a few KiB, and 320
/// KiB at worst. What leaves the window leaves its memory to what comes.
///
/// Times come from a clock that may be set. Where it is set back, by more than a second, the stream goes on from where
/// it was; a smaller step back counts as the latest time. Where it is set forward it looks as if nothing had come
/// meanwhile.
#[derive(Debug, Clone, Default)]
pub struct StreamMeter {
    /// The slot of second `s` is at `s % SLOTS`.
    slots: [Slot; SLOTS],
    /// The time of the first sample, and of the latest one, as counted here.
    times_ms: Option<(u64, u64)>,
    /// What the clock was set back by until now.
    set_back_ms: u64,
    backlog: u64,
}

#[derive(Debug, Clone, Default)]
struct Slot {
    second: u64,
    items: u64,
    errors: u64,
    latencies: Sketch,
    confidence: f64,
    confident: u64,
}

impl StreamMeter {
    /// Makes a meter of a stream of which nothing came.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes what came at a moment, in milliseconds.
    ///
    /// A time or a confidence that is not finite is left out; everything else of its sample counts.
    pub fn record(&mut self, now_ms: u64, sample: StreamSample) {
        let at_ms = self.advance(now_ms);
        self.backlog = sample.backlog;
        let slot = self.slot(at_ms / SLOT_MS);
        slot.items = slot.items.saturating_add(sample.items);
        slot.errors = slot.errors.saturating_add(sample.errors);
        // Of a sketch a refused value changes nothing.
        let _ = slot.latencies.add_many(sample.latency_ms, sample.items);
        if let Some((sum, count)) = sample.confidence_sum.filter(|(sum, _)| sum.is_finite()) {
            slot.confidence += sum;
            slot.confident = slot.confident.saturating_add(count);
        }
    }

    /// Returns the metrics of a moment, in milliseconds.
    ///
    /// It takes note of the moment, so that a silent stream runs out of its window even after the clock was set back.
    #[must_use]
    pub fn snapshot(&mut self, now_ms: u64) -> StreamMetrics {
        let Some((first_ms, _)) = self.times_ms else { return StreamMetrics::default() };
        let at_ms = self.advance(now_ms);
        let oldest = (at_ms / SLOT_MS).saturating_sub(SLOTS as u64 - 1);
        let mut window = Slot::default();
        for slot in self.slots.iter().filter(|slot| slot.second >= oldest) {
            window.add(slot);
        }
        let span_ms = at_ms.saturating_sub(first_ms.max(oldest * SLOT_MS)).max(SLOT_MS);
        StreamMetrics {
            per_s: window.items as f64 * 1_000.0 / span_ms as f64,
            p95_ms: window.latencies.quantile(0.95).unwrap_or_default(),
            errors: window.errors,
            backlog: self.backlog,
            mean_confidence: window.mean_confidence(),
        }
    }

    /// Returns the time as it is counted here, which never goes back.
    fn advance(&mut self, now_ms: u64) -> u64 {
        let mut at_ms = now_ms.saturating_add(self.set_back_ms);
        let (first_ms, latest_ms) = self.times_ms.unwrap_or((at_ms, at_ms));
        if at_ms < latest_ms {
            if latest_ms - at_ms > DISORDER_MS {
                self.set_back_ms = latest_ms.saturating_sub(now_ms);
            }
            at_ms = latest_ms;
        }
        self.times_ms = Some((first_ms, at_ms));
        at_ms
    }

    /// The slot of a second, emptied if it was that of an earlier one.
    fn slot(&mut self, second: u64) -> &mut Slot {
        let at = usize::try_from(second % SLOTS as u64).expect("below the number of slots");
        let slot = &mut self.slots[at];
        if slot.second != second {
            slot.begin(second);
        }
        slot
    }
}

impl Slot {
    fn begin(&mut self, second: u64) {
        let mut latencies = std::mem::take(&mut self.latencies);
        latencies.clear();
        *self = Self { second, latencies, ..Self::default() };
    }

    fn add(&mut self, other: &Self) {
        self.items = self.items.saturating_add(other.items);
        self.errors = self.errors.saturating_add(other.errors);
        self.latencies.merge(&other.latencies);
        self.confidence += other.confidence;
        self.confident = self.confident.saturating_add(other.confident);
    }

    fn mean_confidence(&self) -> Option<f64> {
        let mean = (self.confident > 0).then(|| self.confidence / self.confident as f64);
        // Finite sums may add up to something that is not.
        mean.filter(|mean| mean.is_finite())
    }
}
