//! What a device counted while nobody listened.

use std::collections::BTreeMap;

use thiserror::Error;

use crate::series::{HOUR_MS, SeriesPoint, hour_of};
use crate::sketch::Sketch;

/// What a device counted and measured since its last aggregate, as it goes into hourly series.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Aggregate {
    /// The beginning of the window, in milliseconds since 1970.
    pub from_ms: u64,
    /// The end of the window, in milliseconds since 1970; not before its beginning.
    pub to_ms: u64,
    /// What was counted, by name. A name that stands there twice adds up.
    pub counters: Vec<(Box<str>, u64)>,
    /// What was measured, by name. A name that stands there twice adds up.
    pub histograms: Vec<(Box<str>, Sketch)>,
}

impl Aggregate {
    /// The longest window, in milliseconds: 24 hours.
    pub const WINDOW_MS_MAX: u64 = 24 * HOUR_MS;

    /// The oldest beginning of a window, in milliseconds before now: 90 days.
    pub const AGE_MS_MAX: u64 = 90 * 24 * HOUR_MS;

    /// The most counters and histograms together.
    pub const SERIES_MAX: usize = 256;

    /// The longest name, in bytes.
    pub const NAME_BYTES_MAX: usize = 128;

    /// Checks the window against the time of receipt, and the names; `skew_ms` is how far the device's clock may run
    /// ahead.
    ///
    /// # Errors
    ///
    /// The first rule that is broken: the window ends before it begins, is too long, lies in the future or is too old;
    /// there are too many names, or a name is empty, too long or has control characters.
    pub fn check(&self, now_ms: u64, skew_ms: u64) -> Result<(), AggregateError> {
        let Some(window_ms) = self.to_ms.checked_sub(self.from_ms) else {
            return Err(AggregateError::Backwards);
        };
        if window_ms > Self::WINDOW_MS_MAX {
            return Err(AggregateError::TooLong { window_ms });
        }
        if self.to_ms > now_ms.saturating_add(skew_ms) {
            return Err(AggregateError::InFuture { ahead_ms: self.to_ms - now_ms });
        }
        let age_ms = now_ms.saturating_sub(self.from_ms);
        if age_ms > Self::AGE_MS_MAX {
            return Err(AggregateError::TooOld { age_ms });
        }
        self.check_names()
    }

    fn check_names(&self) -> Result<(), AggregateError> {
        let series = self.counters.len() + self.histograms.len();
        if series > Self::SERIES_MAX {
            return Err(AggregateError::TooMany { series });
        }
        let names = self.counters.iter().map(|(name, _)| name);
        for name in names.chain(self.histograms.iter().map(|(name, _)| name)) {
            if name.is_empty() || name.len() > Self::NAME_BYTES_MAX || name.chars().any(char::is_control) {
                return Err(AggregateError::Name);
            }
        }
        Ok(())
    }

    /// Returns the hour that the whole aggregate counts in: the one in which its window begins.
    ///
    /// A window that reaches over several hours is never split. Nobody knows how its values lie in it, and shares of
    /// them would not add up exactly.
    #[must_use]
    pub const fn hour_ms(&self) -> u64 {
        hour_of(self.from_ms)
    }

    /// Makes a point of each named series, in the order of the names; a counter and a histogram of one name share it.
    #[must_use]
    pub fn into_points(self) -> BTreeMap<Box<str>, SeriesPoint> {
        let mut points: BTreeMap<Box<str>, SeriesPoint> = BTreeMap::new();
        for (name, counted) in self.counters {
            points.entry(name).or_default().count(counted);
        }
        for (name, sketch) in self.histograms {
            points.entry(name).or_default().sketch.merge(&sketch);
        }
        points
    }
}

/// Why an aggregate is refused; the fault is with the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum AggregateError {
    /// The window ends before it begins.
    #[error("the window ends before it begins")]
    Backwards,
    /// The window is longer than [`Aggregate::WINDOW_MS_MAX`].
    #[error("the window is {window_ms} ms long, at most {} are allowed", Aggregate::WINDOW_MS_MAX)]
    TooLong {
        /// Its length in milliseconds.
        window_ms: u64,
    },
    /// The window ends later than the clock of the device may run ahead.
    #[error("the window ends {ahead_ms} ms in the future")]
    InFuture {
        /// How far ahead its end lies, in milliseconds.
        ahead_ms: u64,
    },
    /// The window began longer ago than [`Aggregate::AGE_MS_MAX`].
    #[error("the window began {age_ms} ms ago, at most {} are kept", Aggregate::AGE_MS_MAX)]
    TooOld {
        /// How long ago it began, in milliseconds.
        age_ms: u64,
    },
    /// There are more counters and histograms than [`Aggregate::SERIES_MAX`].
    #[error("{series} counters and histograms, at most {} are taken", Aggregate::SERIES_MAX)]
    TooMany {
        /// How many there are.
        series: usize,
    },
    /// A name is empty, longer than [`Aggregate::NAME_BYTES_MAX`] or has control characters.
    #[error("a name must have 1 to {} bytes and no control characters", Aggregate::NAME_BYTES_MAX)]
    Name,
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_700_000_000_000;
    const SKEW: u64 = 60_000;

    fn window(from_ms: u64, to_ms: u64) -> Aggregate {
        Aggregate { from_ms, to_ms, ..Aggregate::default() }
    }

    #[test]
    fn windows_are_checked_to_the_millisecond() {
        let (day, age) = (Aggregate::WINDOW_MS_MAX, Aggregate::AGE_MS_MAX);
        for (from, to, verdict) in [
            (NOW, NOW, Ok(())),
            (NOW, NOW - 1, Err(AggregateError::Backwards)),
            (NOW - day, NOW, Ok(())),
            (NOW - day - 1, NOW, Err(AggregateError::TooLong { window_ms: day + 1 })),
            (NOW, NOW + SKEW, Ok(())),
            (NOW, NOW + SKEW + 1, Err(AggregateError::InFuture { ahead_ms: SKEW + 1 })),
            (NOW - age, NOW - age, Ok(())),
            (NOW - age - 1, NOW - age, Err(AggregateError::TooOld { age_ms: age + 1 })),
            (0, u64::MAX, Err(AggregateError::TooLong { window_ms: u64::MAX })),
        ] {
            assert_eq!(window(from, to).check(NOW, SKEW), verdict, "{from} to {to}");
        }
        assert_eq!(window(u64::MAX, u64::MAX).check(u64::MAX, u64::MAX), Ok(()));
    }

    #[test]
    fn names_are_checked() {
        let long = "x".repeat(Aggregate::NAME_BYTES_MAX);
        for (name, verdict) in [
            ("opened", Ok(())),
            (long.as_str(), Ok(())),
            ("", Err(AggregateError::Name)),
            ("a\nb", Err(AggregateError::Name)),
            (&format!("{long}x"), Err(AggregateError::Name)),
        ] {
            let counted = Aggregate { counters: vec![(name.into(), 1)], ..window(NOW, NOW) };
            assert_eq!(counted.check(NOW, SKEW), verdict, "{name:?}");
            let measured = Aggregate { histograms: vec![(name.into(), Sketch::new())], ..window(NOW, NOW) };
            assert_eq!(measured.check(NOW, SKEW), verdict, "{name:?}");
        }
    }

    #[test]
    fn there_is_a_limit_of_names() {
        let counters = |count: usize| (0..count).map(|at| (at.to_string().into(), 1)).collect();
        let histograms = vec![("took".into(), Sketch::new())];
        let full = Aggregate { counters: counters(255), histograms: histograms.clone(), ..window(NOW, NOW) };
        assert_eq!(full.check(NOW, SKEW), Ok(()));
        let over = Aggregate { counters: counters(256), histograms, ..window(NOW, NOW) };
        assert_eq!(over.check(NOW, SKEW), Err(AggregateError::TooMany { series: 257 }));
    }

    #[test]
    fn a_window_counts_whole_in_the_hour_in_which_it_begins() {
        let aggregate = window(3 * HOUR_MS - 1, 9 * HOUR_MS);
        assert_eq!(aggregate.hour_ms(), 2 * HOUR_MS);
    }

    #[test]
    fn a_counter_and_a_histogram_of_one_name_share_a_point() {
        let mut sketch = Sketch::new();
        sketch.add(4.0).expect("finite");
        let aggregate = Aggregate {
            counters: vec![("saved".into(), 2), ("opened".into(), 1), ("saved".into(), 3)],
            histograms: vec![("saved".into(), sketch.clone()), ("saved".into(), sketch)],
            ..window(NOW, NOW)
        };
        let points = aggregate.into_points();
        assert_eq!(points.keys().map(AsRef::as_ref).collect::<Vec<_>>(), ["opened", "saved"]);
        assert_eq!((points["saved"].counter, points["saved"].sketch.count()), (5, 2));
        assert!(points["opened"].sketch.is_empty());
    }
}
