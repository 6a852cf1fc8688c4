//! A bucket for each key.

use std::hash::Hash;
use std::sync::{Mutex, PoisonError};

use driftline_model::Rate;

use super::bucket::Bucket;
use super::kept::Kept;

/// Buckets of one rate by key, for what has no connection to keep its bucket: such as the addresses that fail to
/// authenticate.
///
/// The number of keys is bounded, and keys with a full bucket are forgotten. Keys that find no place take from one
/// bucket that they share.
#[derive(Debug)]
pub struct Buckets<K> {
    rate: Rate,
    /// The lock is held to find or make one bucket; now and then, to look for full ones.
    kept: Mutex<Kept<K, Bucket>>,
    crowd: Bucket,
}

impl<K: Eq + Hash> Buckets<K> {
    /// Makes buckets for up to `most` keys at once.
    #[must_use]
    pub fn new(rate: Rate, most: usize) -> Self {
        Self { rate, kept: Mutex::new(Kept::new(most)), crowd: Bucket::default() }
    }

    /// Returns the rate of every bucket.
    #[must_use]
    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// Takes one token of a key.
    ///
    /// # Errors
    /// Milliseconds until there is a token, when there is none.
    pub fn take(&self, key: K, now_ms: u64) -> Result<(), u64> {
        let rate = self.rate;
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = kept.find_or_make(key, now_ms, |bucket| bucket.is_idle(rate, now_ms), Bucket::default);
        bucket.unwrap_or(&self.crowd).take(rate, now_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_its_own_bucket() {
        let buckets = Buckets::new(Rate { per_s: 10, burst: 2 }, 100);
        for _ in 0..2 {
            assert_eq!(buckets.take("a", 0), Ok(()));
        }
        assert_eq!(buckets.take("a", 0), Err(100));
        assert_eq!(buckets.take("b", 0), Ok(()));
        assert_eq!(buckets.take("a", 100), Ok(()));
    }

    #[test]
    fn keys_beyond_the_bound_share_a_bucket_until_there_is_room() {
        let buckets = Buckets::new(Rate { per_s: 1, burst: 2 }, 3);
        assert!((0..3).all(|key| buckets.take(key, 10_000).is_ok()));
        assert_eq!((buckets.take(3, 10_000), buckets.take(4, 10_000)), (Ok(()), Ok(())));
        assert_eq!(buckets.take(5, 10_000), Err(1000), "the crowd's bucket is empty");
        assert_eq!(buckets.take(0, 10_000), Ok(()), "who has a bucket keeps it");
        assert_eq!(buckets.kept.lock().unwrap().len(), 3);
        assert_eq!(buckets.take(5, 12_000), Ok(()));
        assert_eq!((buckets.take(5, 12_000), buckets.take(5, 12_000)), (Ok(()), Err(1000)), "one of its own");
    }
}
