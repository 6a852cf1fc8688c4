//! The part map: which parts are there, as ranges.

use std::collections::BTreeMap;

/// A set of numbers as ranges, which never touch each other.
///
/// Parts that arrive in any order, but mostly one after the other, need a few ranges only.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ranges {
    /// Every range's first number, with its last one.
    ranges: BTreeMap<u64, u64>,
    count: u64,
}

impl Ranges {
    /// Adds a number; tells whether it was not there.
    pub fn insert(&mut self, number: u64) -> bool {
        let before = self.ranges.range(..=number).next_back().map(|(first, last)| (*first, *last));
        if before.is_some_and(|(_, last)| number <= last) {
            return false;
        }
        self.count += 1;
        let joined = number.checked_add(1).and_then(|next| self.ranges.remove(&next));
        let first = before.filter(|(_, last)| *last + 1 == number).map_or(number, |(first, _)| first);
        self.ranges.insert(first, joined.unwrap_or(number));
        true
    }

    /// Tells whether a number is there.
    #[must_use]
    pub fn contains(&self, number: u64) -> bool {
        self.ranges.range(..=number).next_back().is_some_and(|(_, last)| number <= *last)
    }

    /// Returns how many numbers are there.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// Lists the numbers below `end` that are not there, as pairs of the first and the last one of each gap, at most
    /// `most` of them.
    #[must_use]
    pub fn missing(&self, end: u64, most: usize) -> Vec<[u64; 2]> {
        let mut gaps = Vec::new();
        let mut next = 0;
        for (first, last) in &self.ranges {
            if *first >= end || gaps.len() >= most {
                break;
            }
            if next < *first {
                gaps.push([next, first - 1]);
            }
            // Behind the greatest number there is no gap.
            next = last.saturating_add(1);
        }
        if next < end && gaps.len() < most {
            gaps.push([next, end - 1]);
        }
        gaps
    }
}

impl FromIterator<u64> for Ranges {
    fn from_iter<T: IntoIterator<Item = u64>>(numbers: T) -> Self {
        let mut ranges = Self::default();
        for number in numbers {
            ranges.insert(number);
        }
        ranges
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_pairs_of_first_and_last() {
        let ranges: Ranges = [3, 0, 1, 9, 4].into_iter().collect();
        assert_eq!(ranges.missing(12, 9), [[2, 2], [5, 8], [10, 11]]);
        assert_eq!(ranges.missing(12, 2), [[2, 2], [5, 8]]);
        assert_eq!(ranges.missing(4, 9), [[2, 2]]);
        assert_eq!(ranges.missing(0, 9), Vec::<[u64; 2]>::new());
        assert_eq!(Ranges::default().missing(2, 9), [[0, 1]]);
        assert_eq!(ranges.count(), 5);
    }

    #[test]
    fn the_greatest_number_is_one_like_others() {
        let mut ranges = Ranges::default();
        assert!(ranges.insert(u64::MAX) && !ranges.insert(u64::MAX));
        assert!(ranges.contains(u64::MAX) && !ranges.contains(u64::MAX - 1));
        assert_eq!(ranges.missing(u64::MAX, 9), [[0, u64::MAX - 1]]);
        assert!(ranges.insert(u64::MAX - 1) && ranges.insert(u64::MAX - 3));
        assert_eq!(ranges.missing(u64::MAX, 9), [[0, u64::MAX - 4], [u64::MAX - 2; 2]]);
        assert_eq!((ranges.count(), ranges.ranges.len()), (3, 2));
    }
}
