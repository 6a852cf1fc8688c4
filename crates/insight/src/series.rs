//! Hours, and what a named series holds of one.

use crate::sketch::Sketch;

/// The milliseconds of an hour.
pub const HOUR_MS: u64 = 3_600_000;

/// Returns the beginning of the hour (UTC) that a moment lies in; both in milliseconds since 1970.
#[must_use]
pub const fn hour_of(ms: u64) -> u64 {
    ms - ms % HOUR_MS
}

/// One hour of a named series: what was counted, and the distribution of what was measured.
///
/// Points of one series and hour add up in any order and grouping to the same point, so that nodes and late devices
/// need no coordination.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SeriesPoint {
    /// How many there were; stops at [`u64::MAX`].
    pub counter: u64,
    /// What was measured.
    pub sketch: Sketch,
}

impl SeriesPoint {
    /// Counts so many more.
    pub const fn count(&mut self, more: u64) {
        self.counter = self.counter.saturating_add(more);
    }

    /// Adds another point of the same series and hour.
    pub fn merge(&mut self, other: &Self) {
        self.count(other.counter);
        self.sketch.merge(&other.sketch);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_hour_begins_at_its_first_millisecond() {
        for (ms, hour) in [(0, 0), (1, 0), (HOUR_MS - 1, 0), (HOUR_MS, HOUR_MS), (HOUR_MS + 1, HOUR_MS)] {
            assert_eq!(hour_of(ms), hour, "{ms}");
        }
        assert!(u64::MAX - hour_of(u64::MAX) < HOUR_MS);
    }

    #[test]
    fn a_counter_stops_at_its_end() {
        let mut point = SeriesPoint { counter: u64::MAX - 1, ..SeriesPoint::default() };
        point.count(1);
        point.merge(&SeriesPoint { counter: 7, ..SeriesPoint::default() });
        assert_eq!(point.counter, u64::MAX);
    }
}
