//! A histogram of latencies with bounded memory and an error below 1 %.

use std::time::Duration;

use serde::Serialize;

/// Bits of precision: each power of two is cut into 128 buckets, so a bucket is at most 1/128 wide.
const PRECISION_BITS: u32 = 7;
const BUCKETS_PER_POWER: usize = 1 << PRECISION_BITS;
/// Latencies are counted in microseconds, up to 2^36 us (19 hours).
const POWERS: usize = 30;
const BUCKETS: usize = BUCKETS_PER_POWER * POWERS;

/// Counts of latencies in log-linear buckets.
#[derive(Debug, Clone)]
pub(crate) struct Latencies {
    /// Empty until the first latency, so that thousands of idle connections do not cost 30 KB each.
    counts: Vec<u64>,
    total: u64,
    max_us: f64,
}

/// The percentiles of a run, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Percentiles {
    pub(crate) p50: f64,
    pub(crate) p95: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
}

impl Latencies {
    /// Begins with no latency counted.
    pub(crate) fn new() -> Self {
        Latencies { counts: Vec::new(), total: 0, max_us: 0.0 }
    }

    /// Counts one latency.
    pub(crate) fn record(&mut self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        let bucket = bucket_of(micros).min(BUCKETS - 1);
        self.allocate();
        self.counts[bucket] += 1;
        self.total += 1;
        self.max_us = self.max_us.max(latency.as_secs_f64() * 1e6);
    }

    /// Adds the counts of another histogram.
    pub(crate) fn merge(&mut self, other: &Latencies) {
        if other.total == 0 {
            return;
        }
        self.allocate();
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
        self.total += other.total;
        self.max_us = self.max_us.max(other.max_us);
    }

    /// Gives the percentiles by nearest rank; none without a latency.
    pub(crate) fn percentiles(&self) -> Option<Percentiles> {
        (self.total > 0).then(|| Percentiles {
            p50: self.at_rank(self.total.div_ceil(2)),
            p95: self.at_rank((self.total * 95).div_ceil(100)),
            p99: self.at_rank((self.total * 99).div_ceil(100)),
            max: round_us_as_ms(self.max_us),
        })
    }

    fn allocate(&mut self) {
        if self.counts.is_empty() {
            self.counts.resize(BUCKETS, 0);
        }
    }

    /// The latency in milliseconds that `rank` of the counted ones do not exceed.
    fn at_rank(&self, rank: u64) -> f64 {
        let mut seen = 0;
        let bucket = self.counts.iter().position(|count| {
            seen += count;
            seen >= rank
        });
        let middle = bucket.map_or(self.max_us, middle_us);
        round_us_as_ms(middle.min(self.max_us))
    }
}

/// The bucket of a latency: exact below 256 us, then the position of the highest bit and the 7 bits after it.
fn bucket_of(micros: u64) -> usize {
    let power = micros.checked_ilog2().unwrap_or(0).saturating_sub(PRECISION_BITS);
    let step = usize::try_from(micros >> power).unwrap_or(usize::MAX);
    if power == 0 { step } else { BUCKETS_PER_POWER * power as usize + step }
}

/// The middle of a bucket in microseconds; buckets of one microsecond stand for just that.
fn middle_us(bucket: usize) -> f64 {
    if bucket < 2 * BUCKETS_PER_POWER {
        return bucket as f64;
    }
    let power = bucket / BUCKETS_PER_POWER - 1;
    let step = bucket - BUCKETS_PER_POWER * power;
    (step as f64 + 0.5) * (power as f64).exp2()
}

fn round_us_as_ms(micros: f64) -> f64 {
    micros.round() / 1_000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded(micros: impl IntoIterator<Item = u64>) -> Latencies {
        let mut latencies = Latencies::new();
        for us in micros {
            latencies.record(Duration::from_micros(us));
        }
        latencies
    }

    #[test]
    fn nothing_recorded_has_no_percentiles() {
        assert_eq!(Latencies::new().percentiles(), None);
    }

    #[test]
    fn percentiles_of_a_ramp_are_within_one_percent() {
        let got = recorded(1..=100_000).percentiles().expect("recorded");
        for (got, want) in [(got.p50, 50.0), (got.p95, 95.0), (got.p99, 99.0)] {
            assert!((got - want).abs() / want < 0.01, "{got} for {want}");
        }
        assert_eq!(got.max, 100.0);
    }

    #[test]
    fn one_latency_is_every_percentile() {
        let got = recorded([1_500]).percentiles().expect("recorded");
        assert_eq!((got.p50, got.p99, got.max), (1.5, 1.5, 1.5));
    }

    #[test]
    fn the_tail_is_seen_only_by_the_high_percentiles() {
        let got = recorded((0..98).map(|_| 100).chain([9_000, 9_000])).percentiles().expect("recorded");
        assert_eq!((got.p50, got.p95), (0.1, 0.1));
        assert!((got.p99 - 9.0).abs() < 0.09, "{}", got.p99);
    }

    #[test]
    fn buckets_rise_without_a_gap() {
        let mut last = 0;
        for us in 0..200_000 {
            let bucket = bucket_of(us);
            assert!(bucket == last || bucket == last + 1, "{us} us jumps from {last} to {bucket}");
            let error = (middle_us(bucket) - us as f64).abs();
            assert!(error <= (us as f64 / 128.0).max(1.0), "{us} us is shown as {}", middle_us(bucket));
            last = bucket;
        }
    }

    #[test]
    fn a_latency_beyond_the_range_is_kept_as_max() {
        let got = recorded([u64::MAX / 2]).percentiles().expect("recorded");
        assert!(got.max > 1e9);
    }

    #[test]
    fn merging_equals_recording_together() {
        let mut left = recorded(1..500);
        left.merge(&recorded(500..1_000));
        assert_eq!(left.percentiles(), recorded(1..1_000).percentiles());
    }
}
