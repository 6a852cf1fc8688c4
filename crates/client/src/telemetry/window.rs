//! Counting on the device: counters and histograms of a window of time.

use std::collections::BTreeMap;

use driftline_protocol::AnalyticsBatch;
use thiserror::Error;

/// What was counted since the last window was closed.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Window {
    from_ms: Option<u64>,
    counters: BTreeMap<String, u64>,
    /// Per name, how often each value was seen, in the order of the values.
    histograms: BTreeMap<String, Vec<(f64, u64)>>,
}

/// Why something is not counted. What was counted before stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CountError {
    /// A window holds no more names.
    #[error("a window holds at most {max} names")]
    TooManyNames {
        /// The most names.
        max: usize,
    },
    /// A histogram holds no more different values.
    #[error("a histogram holds at most {max} different values")]
    TooManyValues {
        /// The most values.
        max: usize,
    },
    /// The name is empty, too long or holds control characters.
    #[error("a name holds 1 to {max} bytes and no control characters")]
    Name {
        /// The most bytes.
        max: usize,
    },
    /// Infinities and what is no number cannot be told.
    #[error("the value is not a finite number")]
    NotFinite,
}

impl Window {
    /// The most counters and histograms of a window.
    pub const NAMES_MAX: usize = 256;
    /// The most different values of a histogram.
    pub const VALUES_MAX: usize = 256;
    /// The longest name in bytes.
    pub const NAME_BYTES_MAX: usize = 128;
    /// The highest count that every peer holds exactly.
    const COUNT_MAX: u64 = 1 << 53;

    pub(crate) fn count(&mut self, name: &str, by: u64, now_ms: u64) -> Result<(), CountError> {
        self.check(name, self.counters.contains_key(name))?;
        self.from_ms.get_or_insert(now_ms);
        let count = self.counters.entry(name.to_owned()).or_default();
        *count = count.saturating_add(by).min(Self::COUNT_MAX);
        Ok(())
    }

    pub(crate) fn observe(&mut self, name: &str, value: f64, now_ms: u64) -> Result<(), CountError> {
        if !value.is_finite() {
            return Err(CountError::NotFinite);
        }
        self.check(name, self.histograms.contains_key(name))?;
        // Both zeros are one value on the wire.
        let value = value + 0.0;
        let place = self
            .histograms
            .get(name)
            .map_or(Err(0), |values| values.binary_search_by(|(known, _)| known.total_cmp(&value)));
        if place.is_err() && self.histograms.get(name).is_some_and(|values| values.len() >= Self::VALUES_MAX)
        {
            return Err(CountError::TooManyValues { max: Self::VALUES_MAX });
        }
        self.from_ms.get_or_insert(now_ms);
        let values = self.histograms.entry(name.to_owned()).or_default();
        match place {
            Ok(at) => values[at].1 = (values[at].1 + 1).min(Self::COUNT_MAX),
            Err(at) => values.insert(at, (value, 1)),
        }
        Ok(())
    }

    fn check(&self, name: &str, known: bool) -> Result<(), CountError> {
        if name.is_empty() || name.len() > Self::NAME_BYTES_MAX || name.chars().any(char::is_control) {
            return Err(CountError::Name { max: Self::NAME_BYTES_MAX });
        }
        if !known && self.counters.len() + self.histograms.len() >= Self::NAMES_MAX {
            return Err(CountError::TooManyNames { max: Self::NAMES_MAX });
        }
        Ok(())
    }

    /// Returns when counting began, in Unix milliseconds; nothing when nothing was counted.
    #[must_use]
    pub fn from_ms(&self) -> Option<u64> {
        self.from_ms
    }

    /// What was counted up to now; nothing when that is nothing.
    pub(crate) fn batch(&self, now_ms: u64) -> Option<AnalyticsBatch> {
        let from_ms = self.from_ms?;
        Some(AnalyticsBatch {
            from_ms,
            // A clock that was set back makes no window that ends before it began.
            to_ms: now_ms.max(from_ms),
            counters: self.counters.iter().map(|(name, count)| (name.as_str().into(), *count)).collect(),
            histograms: self
                .histograms
                .iter()
                .map(|(name, values)| (name.as_str().into(), values.clone()))
                .collect(),
        })
    }

    pub(crate) fn of_batch(batch: AnalyticsBatch) -> Self {
        Self {
            from_ms: Some(batch.from_ms),
            counters: batch.counters.into_iter().map(|(name, count)| (name.into(), count)).collect(),
            histograms: batch.histograms.into_iter().map(|(name, values)| (name.into(), values)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_counted_in_their_order() {
        let mut window = Window::default();
        assert_eq!(window.batch(9), None);
        for value in [2.0, -1.0, 2.0, 0.0, -0.0] {
            assert_eq!(window.observe("ms", value, 5), Ok(()));
        }
        assert_eq!(window.count("taps", 2, 6), Ok(()));
        assert_eq!(window.count("taps", u64::MAX, 7), Ok(()));
        let batch = window.batch(4).expect("something was counted");
        assert_eq!((batch.from_ms, batch.to_ms), (5, 5));
        assert_eq!(batch.histograms, [("ms".into(), vec![(-1.0, 1), (0.0, 2), (2.0, 2)])]);
        assert_eq!(batch.counters, [("taps".into(), 1 << 53)]);
        assert_eq!(Window::of_batch(batch), window);
    }

    #[test]
    fn a_window_is_bounded() {
        let mut window = Window::default();
        for at in 0..Window::VALUES_MAX {
            let value = f64::from(u32::try_from(at).expect("a few"));
            assert_eq!(window.observe("h", value, 0), Ok(()));
        }
        let max = Window::VALUES_MAX;
        assert_eq!(window.observe("h", -1.0, 0), Err(CountError::TooManyValues { max }));
        assert_eq!(window.observe("h", 7.0, 0), Ok(()), "a value that is known");
        assert_eq!(window.observe("h", f64::NAN, 0), Err(CountError::NotFinite));
        for at in 1..Window::NAMES_MAX {
            assert_eq!(window.count(&at.to_string(), 1, 0), Ok(()));
        }
        let max = Window::NAMES_MAX;
        assert_eq!(window.count("more", 1, 0), Err(CountError::TooManyNames { max }));
        assert_eq!(window.count("1", 1, 0), Ok(()));
        assert_eq!(window.count("", 1, 0), Err(CountError::Name { max: Window::NAME_BYTES_MAX }));
    }
}
