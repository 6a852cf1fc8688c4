//! The part map: which parts are there, as ranges.

use std::collections::BTreeMap;

/// A set of numbers as ranges, which never touch each other.
///
/// Parts that arrive in any order, but mostly one after the other, need a few ranges only.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ranges {
    /// Every range's first number, with the number behind its last one.
    ranges: BTreeMap<u64, u64>,
    count: u64,
}

impl Ranges {
    /// Adds a number; tells whether it was not there.
    pub fn insert(&mut self, number: u64) -> bool {
        let before = self.ranges.range(..=number).next_back().map(|(from, until)| (*from, *until));
        if before.is_some_and(|(_, until)| number < until) {
            return false;
        }
        self.count += 1;
        let behind = self.ranges.remove(&(number + 1)).unwrap_or(number + 1);
        let from = before.filter(|(_, until)| *until == number).map_or(number, |(from, _)| from);
        self.ranges.insert(from, behind);
        true
    }

    /// Tells whether a number is there.
    #[must_use]
    pub fn contains(&self, number: u64) -> bool {
        self.ranges.range(..=number).next_back().is_some_and(|(_, until)| number < *until)
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
        let behind = std::iter::once((end, end));
        for (from, until) in self.ranges.iter().map(|(from, until)| (*from, *until)).chain(behind) {
            if next < from.min(end) && gaps.len() < most {
                gaps.push([next, from.min(end) - 1]);
            }
            next = next.max(until);
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

    /// Any order of numbers against a plain set.
    #[test]
    fn ranges_are_a_set() {
        let mut seed = 7_u64;
        for _ in 0..500 {
            let (mut ranges, mut set) = (Ranges::default(), std::collections::BTreeSet::new());
            for _ in 0..40 {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let number = (seed >> 33) % 24;
                assert_eq!(ranges.insert(number), set.insert(number));
            }
            assert_eq!(ranges.count(), set.len() as u64);
            assert!((0..26).all(|number| ranges.contains(number) == set.contains(&number)));
            let gaps = ranges.missing(24, usize::MAX);
            let told: Vec<u64> = gaps.iter().flat_map(|[from, to]| *from..=*to).collect();
            assert_eq!(told, (0..24).filter(|number| !set.contains(number)).collect::<Vec<_>>());
            assert!(gaps.windows(2).all(|pair| pair[0][1] + 1 < pair[1][0]), "gaps touch: {gaps:?}");
        }
    }
}
