//! A bucket of tokens that is one number.

use std::sync::atomic::{AtomicU64, Ordering};

use driftline_model::Rate;

/// What one message weighs, where a millisecond weighs as much as the rate's `per_s`.
const MESSAGE: u64 = 1000;

/// The latest time that is told apart from later ones, in Unix milliseconds: in the year 2248.
const NOW_MS_MAX: u64 = 1 << 43;

/// Lets things happen at a [`Rate`], by the generic cell rate algorithm (ITU-T I.371).
///
/// All that is kept is the time at which the bucket is full again, in units of which a millisecond has `per_s` and a
/// message 1000, so that no rate is rounded. A bucket belongs to one rate; it is full when it is made. Taking needs no
/// lock and no timer.
///
/// A clock that is set back locks nobody out: what an earlier clock said of the far future counts as an empty bucket.
#[derive(Debug, Default)]
pub struct Bucket(AtomicU64);

/// How full a bucket is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Level {
    /// What may happen at once.
    pub remaining: u64,
    /// Milliseconds until the bucket is full.
    pub full_in_ms: u64,
}

impl Bucket {
    /// Takes one token at a time in Unix milliseconds. Nothing is taken from an empty bucket.
    ///
    /// # Errors
    /// Milliseconds until there is a token, at least one, when there is none.
    pub fn take(&self, rate: Rate, now_ms: u64) -> Result<(), u64> {
        let scale = Scale::of(rate, now_ms);
        let mut stored = self.0.load(Ordering::Relaxed);
        loop {
            let due = scale.due(stored);
            let wait_ms = scale.wait_ms(due);
            let next = if wait_ms == 0 { due + MESSAGE } else { due };
            // A refusal is written down only where it takes back what a wrong clock said.
            let unchanged = wait_ms > 0 && next == stored;
            if unchanged {
                return Err(wait_ms);
            }
            match self.0.compare_exchange_weak(stored, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) if wait_ms == 0 => return Ok(()),
                Ok(_) => return Err(wait_ms),
                Err(other) => stored = other,
            }
        }
    }

    /// Returns the milliseconds until there is a token; zero: there is one.
    #[must_use]
    pub fn wait_ms(&self, rate: Rate, now_ms: u64) -> u64 {
        let scale = Scale::of(rate, now_ms);
        scale.wait_ms(scale.due(self.0.load(Ordering::Relaxed)))
    }

    /// Returns how full the bucket is.
    #[must_use]
    pub fn level(&self, rate: Rate, now_ms: u64) -> Level {
        let scale = Scale::of(rate, now_ms);
        let due = scale.due(self.0.load(Ordering::Relaxed));
        Level {
            remaining: (scale.now + scale.depth).saturating_sub(due) / MESSAGE,
            full_in_ms: (due - scale.now).div_ceil(scale.per_ms),
        }
    }

    /// Tells whether the bucket is as good as a new one: full, or last used by a clock that was set back since.
    pub(super) fn is_idle(&self, rate: Rate, now_ms: u64) -> bool {
        let (scale, stored) = (Scale::of(rate, now_ms), self.0.load(Ordering::Relaxed));
        stored <= scale.now || scale.is_foreign(stored)
    }
}

/// A rate and a time in the units of the bucket.
struct Scale {
    per_ms: u64,
    now: u64,
    /// How far ahead of now an empty bucket is due.
    depth: u64,
}

impl Scale {
    fn of(rate: Rate, now_ms: u64) -> Self {
        let per_ms = u64::from(rate.per_s.clamp(1, Rate::PER_S_MAX));
        let depth = u64::from(rate.burst.max(1)) * MESSAGE;
        Self { per_ms, now: now_ms.min(NOW_MS_MAX) * per_ms, depth }
    }

    /// Tells whether a place in time is none that a clock near this one can have written. The clocks of two threads
    /// may differ by a little, so a depth is left between them.
    fn is_foreign(&self, stored: u64) -> bool {
        stored > self.now + 2 * self.depth
    }

    /// Returns when the bucket is full, which is never before now.
    fn due(&self, stored: u64) -> u64 {
        if self.is_foreign(stored) { self.now + self.depth } else { stored.max(self.now) }
    }

    fn wait_ms(&self, due: u64) -> u64 {
        (due + MESSAGE).saturating_sub(self.now + self.depth).div_ceil(self.per_ms)
    }
}

#[cfg(test)]
mod tests {
    use driftline_testkit::Rng;

    use super::*;

    const NOW_MS: u64 = 1_767_225_600_000;

    fn rate(per_s: u32, burst: u32) -> Rate {
        Rate { per_s, burst }
    }

    fn drained(rate: Rate, now_ms: u64) -> Bucket {
        let bucket = Bucket::default();
        for _ in 0..rate.burst {
            bucket.take(rate, now_ms).unwrap();
        }
        bucket
    }

    #[test]
    fn a_burst_passes_and_then_what_the_rate_lets_through() {
        let rate = rate(50, 100);
        let bucket = drained(rate, NOW_MS);
        assert_eq!(bucket.level(rate, NOW_MS), Level { remaining: 0, full_in_ms: 2000 });
        assert_eq!((bucket.take(rate, NOW_MS), bucket.wait_ms(rate, NOW_MS)), (Err(20), 20));
        assert_eq!(bucket.take(rate, NOW_MS + 19), Err(1), "a refusal takes nothing");
        assert_eq!(bucket.take(rate, NOW_MS + 20), Ok(()));
        assert_eq!(bucket.take(rate, NOW_MS + 20), Err(20));
        assert_eq!(bucket.level(rate, NOW_MS + 1020), Level { remaining: 50, full_in_ms: 1000 });
        assert!(!bucket.is_idle(rate, NOW_MS + 2019) && bucket.is_idle(rate, NOW_MS + 2020));
    }

    #[test]
    fn rates_that_divide_no_second_are_not_rounded() {
        let rate = rate(3, 1);
        let bucket = Bucket::default();
        let mut passed = 0;
        for ms in 0..30_000 {
            passed += u32::from(bucket.take(rate, NOW_MS + ms).is_ok());
        }
        assert_eq!(passed, 90);
    }

    #[test]
    fn a_clock_that_is_set_back_locks_nobody_out() {
        let rate = rate(20, 40);
        let bucket = drained(rate, NOW_MS);
        let hour_ms = 3_600_000;
        // An hour ago the bucket is empty, and fills from there on.
        assert_eq!(bucket.take(rate, NOW_MS - hour_ms), Err(50));
        assert_eq!(bucket.take(rate, NOW_MS - hour_ms + 50), Ok(()));
        assert_eq!(bucket.level(rate, NOW_MS - hour_ms + 1050).remaining, 20);
        // A small step back makes the wait longer by the step.
        let bucket = drained(rate, NOW_MS);
        assert_eq!(bucket.take(rate, NOW_MS - 100), Err(150));
        // And a jump to the end of time and back.
        let bucket = drained(rate, u64::MAX);
        assert_eq!(bucket.take(rate, NOW_MS), Err(50));
        assert_eq!(bucket.take(rate, NOW_MS + 50), Ok(()));
    }

    #[test]
    fn the_ends_of_the_numbers_are_rates_too() {
        for rate in [rate(u32::MAX, u32::MAX), rate(0, 0), rate(1, u32::MAX), rate(u32::MAX, 1)] {
            for now_ms in [0, NOW_MS, u64::MAX] {
                let bucket = Bucket::default();
                assert_eq!(bucket.take(rate, now_ms), Ok(()), "{rate:?} at {now_ms}");
                let _ = (bucket.level(rate, now_ms), bucket.take(rate, 0));
            }
        }
    }

    /// In every span of time no more passes than the burst and what the rate gives meanwhile; who waits as told is
    /// let in.
    #[test]
    fn no_span_lets_more_through_and_the_patient_pass() {
        for seed in 0..300 {
            let mut rng = Rng::new(seed);
            let rate =
                rate(u32::try_from(rng.between(1, 400)).unwrap(), u32::try_from(rng.between(1, 60)).unwrap());
            let bucket = Bucket::default();
            let mut now_ms = NOW_MS;
            let mut passed: Vec<u64> = Vec::new();
            for _ in 0..400 {
                now_ms += match rng.below(4) {
                    0 => 0,
                    1 => rng.below(3),
                    2 => rng.below(2000 / u64::from(rate.per_s) + 1),
                    _ => rng.below(3000),
                };
                if let Err(wait_ms) = bucket.take(rate, now_ms) {
                    assert!(wait_ms > 0, "seed {seed}");
                    let early = bucket.take(rate, now_ms + wait_ms - 1);
                    assert_eq!(early, Err(1), "seed {seed}: the wait is not longer than it has to be");
                    now_ms += wait_ms;
                    assert_eq!(bucket.take(rate, now_ms), Ok(()), "seed {seed}: who waited passes");
                }
                passed.push(now_ms);
            }
            for (first, from_ms) in passed.iter().enumerate() {
                for (count, to_ms) in (1_u64..).zip(&passed[first..]) {
                    let most = u64::from(rate.burst) * 1000 + u64::from(rate.per_s) * (to_ms - from_ms);
                    assert!(
                        count * 1000 <= most,
                        "seed {seed}: {count} in {} ms of {rate:?}",
                        to_ms - from_ms
                    );
                }
            }
        }
    }

    #[test]
    fn threads_share_what_there_is() {
        let rate = rate(1, 1000);
        let bucket = Bucket::default();
        let passed: usize = std::thread::scope(|scope| {
            let take = || (0..500).filter(|_| bucket.take(rate, NOW_MS).is_ok()).count();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(passed, 1000);
    }
}
