//! A small seeded generator of pseudo-random numbers (SplitMix64), so that a seed always gives the same
//! load and the same simulation.

/// SplitMix64 after Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014).
#[derive(Debug, Clone)]
pub(crate) struct Rng(u64);

impl Rng {
    /// Begins a sequence; `stream` tells the sequences of one seed apart.
    pub(crate) fn new(seed: u64, stream: u64) -> Self {
        let mut mixed = Rng(seed);
        Rng(mixed.next() ^ stream.wrapping_mul(0xD134_2543_DE82_EF95))
    }

    /// Gives the next 64 bits.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Gives an index below `len`, which must not be 0.
    pub(crate) fn below(&mut self, len: usize) -> usize {
        // The bias of the remainder is far below anything a load could show; it is always below `len`.
        usize::try_from(self.next() % len as u64).unwrap_or(0)
    }

    /// Gives a number from `first` to `last`, both included; `first` when the range is empty.
    pub(crate) fn between(&mut self, first: u64, last: u64) -> u64 {
        first + self.next() % (last.saturating_sub(first) + 1)
    }

    /// Says yes that often in a hundred times.
    pub(crate) fn percent(&mut self, chance: u64) -> bool {
        self.next() % 100 < chance
    }

    /// Picks one of several, of which there must be one.
    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_and_streams_differ() {
        let draw = |seed, stream| {
            let mut rng = Rng::new(seed, stream);
            (0..8).map(|_| rng.next()).collect::<Vec<_>>()
        };
        assert_eq!(draw(7, 1), draw(7, 1));
        assert_ne!(draw(7, 1), draw(7, 2));
        assert_ne!(draw(7, 1), draw(8, 1));
    }

    #[test]
    fn below_stays_below_and_reaches_every_index() {
        let mut rng = Rng::new(1, 0);
        let mut seen = [false; 10];
        for _ in 0..1_000 {
            seen[rng.below(10)] = true;
        }
        assert_eq!(seen, [true; 10]);
    }

    #[test]
    fn ranges_hold_both_ends() {
        let mut rng = Rng::new(3, 0);
        let drawn: Vec<u64> = (0..200).map(|_| rng.between(4, 6)).collect();
        assert!([4, 5, 6].iter().all(|wanted| drawn.contains(wanted)));
        assert!(drawn.iter().all(|number| (4..=6).contains(number)));
        assert_eq!(rng.between(9, 3), 9, "an empty range");
    }
}
