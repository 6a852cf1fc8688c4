//! A distribution that can be added to another one.

mod bucket;
mod bytes;
mod total;

use thiserror::Error;

use bucket::Key;
use total::Total;

/// A mergeable sketch of a distribution, from which quantiles are told with a relative error of at most 1 %.
///
/// It is a `DDSketch` (Masson, Rim, Lee: *DDSketch: a fast and fully-mergeable quantile sketch with relative-error
/// guarantees*, VLDB 2019) with 64 buckets for each doubling. The same values, added and merged in any order and
/// grouping, give the same sketch and the same [bytes](Self::to_bytes).
///
/// - **Values** are finite. Negative ones have mirrored buckets; what is nearer to zero than 2.2e-308 counts as zero.
/// - **Size**: at most [`BUCKETS_MAX`](Self::BUCKETS_MAX) buckets are kept, of 16 bytes each; they span 32 doublings
///   if every one of them is used. Beyond that the lowest ones become one, and a quantile that lies in it is only known
///   to lie between the minimum and that bucket. Which ones are lowest is a property of the values, so that this too
///   depends on no order.
/// - **Counts** stop at [`u64::MAX`].
/// - The **sum** is exact for multiples of 2^-40 (9.1e-13); other values count in it as the nearest one. Its positive
///   and its negative part stop at 2^88 (3.1e26).
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Sketch {
    /// In the order of the keys, without empty ones.
    buckets: Vec<Bucket>,
    count: u64,
    total: Total,
    /// The smallest and the largest value.
    range: Option<(f64, f64)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bucket {
    key: Key,
    count: u64,
}

impl Sketch {
    /// The most buckets that are kept.
    pub const BUCKETS_MAX: usize = 2048;

    /// Makes an empty sketch; it allocates nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self { buckets: Vec::new(), count: 0, total: Total { above: 0, below: 0 }, range: None }
    }

    /// Adds a value.
    ///
    /// # Errors
    ///
    /// [`SketchError::NotFinite`] for an infinity or what is not a number; the sketch is as before.
    pub fn add(&mut self, value: f64) -> Result<(), SketchError> {
        self.add_many(value, 1)
    }

    /// Adds a value so many times; as it would be by adding it one at a time.
    ///
    /// # Errors
    ///
    /// [`SketchError::NotFinite`] for an infinity or what is not a number; the sketch is as before.
    pub fn add_many(&mut self, value: f64, count: u64) -> Result<(), SketchError> {
        if !value.is_finite() {
            return Err(SketchError::NotFinite);
        }
        if count == 0 {
            return Ok(());
        }
        // There are two zeros among the doubles, and only one among the values.
        let value = if value == 0.0 { 0.0 } else { value };
        self.count = self.count.saturating_add(count);
        self.total.add_many(value, count);
        self.widen(value, value);
        let key = bucket::key(value);
        match self.buckets.binary_search_by_key(&key, |bucket| bucket.key) {
            Ok(at) => self.buckets[at].count = self.buckets[at].count.saturating_add(count),
            Err(at) => {
                self.buckets.insert(at, Bucket { key, count });
                self.collapse();
            }
        }
        Ok(())
    }

    /// Adds all values of another sketch.
    pub fn merge(&mut self, other: &Self) {
        let Some((min, max)) = other.range else { return };
        self.count = self.count.saturating_add(other.count);
        self.total.merge(&other.total);
        self.widen(min, max);
        for bucket in &other.buckets {
            match self.buckets.binary_search_by_key(&bucket.key, |own| own.key) {
                Ok(at) => self.buckets[at].count = self.buckets[at].count.saturating_add(bucket.count),
                Err(at) => self.buckets.insert(at, *bucket),
            }
        }
        self.collapse();
    }

    /// Forgets all values, and keeps the memory for others.
    pub fn clear(&mut self) {
        self.buckets.clear();
        self.count = 0;
        self.total = Total::default();
        self.range = None;
    }

    /// Returns how many values were added.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// Tells whether no value was added.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Returns the sum of the values, 0 without any.
    #[must_use]
    pub const fn sum(&self) -> f64 {
        self.total.value()
    }

    /// Returns the smallest value, to the last bit.
    #[must_use]
    pub fn min(&self) -> Option<f64> {
        self.range.map(|(min, _)| min)
    }

    /// Returns the largest value, to the last bit.
    #[must_use]
    pub fn max(&self) -> Option<f64> {
        self.range.map(|(_, max)| max)
    }

    /// Returns the value at a quantile between 0 and 1, within 1 % of the value of rank `floor(q * (count - 1))` among
    /// the sorted ones (counted from 0); `quantile(0.5)` is the lower median.
    ///
    /// The first and the last rank give the minimum and the maximum. `None` without values, and for a `q` that is not
    /// between 0 and 1.
    #[must_use]
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let (min, max) = self.range?;
        if !(0.0..=1.0).contains(&q) {
            return None;
        }
        let last = (self.count - 1) as f64;
        let rank = (q * last).floor();
        if rank < 1.0 {
            return Some(min);
        }
        if rank >= last {
            return Some(max);
        }
        let mut passed = 0_u64;
        let holds = |bucket: &&Bucket| {
            passed = passed.saturating_add(bucket.count);
            passed as f64 > rank
        };
        let found = self.buckets.iter().find(holds);
        Some(found.map_or(max, |bucket| bucket::middle(bucket.key).clamp(min, max)))
    }

    /// Gives the middle of each bucket that is used with its count, in ascending order.
    ///
    /// [`add_many`](Self::add_many) with all pairs makes a sketch with the same buckets; its sum, minimum and maximum
    /// are within 1 %.
    pub fn pairs(&self) -> impl ExactSizeIterator<Item = (f64, u64)> + '_ {
        self.buckets.iter().map(|bucket| (bucket::middle(bucket.key), bucket.count))
    }

    const fn widen(&mut self, min: f64, max: f64) {
        self.range = Some(match self.range {
            None => (min, max),
            Some((low, high)) => (low.min(min), high.max(max)),
        });
    }

    /// Makes one bucket of the lowest ones if there are too many.
    ///
    /// What remains are the highest keys that were ever seen, and what is below the lowest of them counts in it: the
    /// order in which they came does not matter.
    fn collapse(&mut self) {
        let excess = self.buckets.len().saturating_sub(Self::BUCKETS_MAX);
        if excess > 0 {
            let below = self.buckets.drain(..excess);
            let below = below.fold(0_u64, |sum, bucket| sum.saturating_add(bucket.count));
            self.buckets[0].count = self.buckets[0].count.saturating_add(below);
        }
    }
}

/// Why a value or the bytes of a sketch are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SketchError {
    /// The value is infinite or not a number.
    #[error("the value is not finite")]
    NotFinite,
    /// The bytes are of a version that is not known here.
    #[error("version {0} of the bytes of a sketch is not known")]
    Version(u8),
    /// The bytes are not what [`Sketch::to_bytes`] makes of any sketch.
    #[error("these are not the bytes of a sketch")]
    Malformed,
}
