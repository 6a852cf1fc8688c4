//! Clocks and ids that a device stamps on its items.

use crate::rng::Rng;

const HEX: &[u8; 16] = b"0123456789abcdef";

/// A hybrid logical clock: 48 bits of Unix milliseconds, 16 bits of counter.
#[derive(Debug, Default, Clone)]
pub(crate) struct Clock(u64);

impl Clock {
    /// Gives the next stamp: the wall clock, but always above the last one.
    pub(crate) fn tick(&mut self, unix_ms: u64) -> u64 {
        self.0 = (unix_ms << 16).max(self.0 + 1);
        self.0
    }

    /// Moves above a stamp that was seen, written as `12 hex-4 hex`; anything else is ignored.
    pub(crate) fn observe(&mut self, stamp: &str) {
        let parsed = stamp
            .split_once('-')
            .filter(|(ms, counter)| ms.len() == 12 && counter.len() == 4)
            .and_then(|(ms, counter)| {
                Some((u64::from_str_radix(ms, 16).ok()? << 16) | u64::from_str_radix(counter, 16).ok()?)
            });
        self.0 = self.0.max(parsed.unwrap_or(0));
    }
}

/// Appends a stamp as `12 hex-4 hex`.
pub(crate) fn write_stamp(stamp: u64, out: &mut Vec<u8>) {
    let bytes = stamp.to_be_bytes();
    write_hex(&bytes[..6], out);
    out.push(b'-');
    write_hex(&bytes[6..], out);
}

/// A UUID of version 7 (RFC 9562 §5.7): ordered by time, unique by its random tail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Uuid([u8; 16]);

impl Uuid {
    /// Makes an id from a stamp: its milliseconds, then the low 12 bits of its counter, then random bits.
    pub(crate) fn new(stamp: u64, rng: &mut Rng) -> Self {
        let high = ((stamp >> 16) << 16) | 0x7000 | (stamp & 0x0FFF);
        let low = (rng.next() >> 2) | (0b10 << 62);
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&high.to_be_bytes());
        bytes[8..].copy_from_slice(&low.to_be_bytes());
        Uuid(bytes)
    }

    /// Appends the id in its usual text form.
    pub(crate) fn write(self, out: &mut Vec<u8>) {
        for (index, part) in [0..4, 4..6, 6..8, 8..10, 10..16].into_iter().enumerate() {
            if index > 0 {
                out.push(b'-');
            }
            write_hex(&self.0[part], out);
        }
    }

    /// Gives the id in its usual text form.
    pub(crate) fn text(self) -> String {
        let mut out = Vec::with_capacity(36);
        self.write(&mut out);
        String::from_utf8_lossy(&out).into_owned()
    }
}

fn write_hex(bytes: &[u8], out: &mut Vec<u8>) {
    for byte in bytes {
        out.extend_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 0x0F)]]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp_text(stamp: u64) -> String {
        let mut out = Vec::new();
        write_stamp(stamp, &mut out);
        String::from_utf8(out).expect("hex")
    }

    #[test]
    fn stamps_rise_even_when_the_wall_clock_does_not() {
        let mut clock = Clock::default();
        let stamps: Vec<u64> = [1_000, 1_000, 900, 1_001].iter().map(|&ms| clock.tick(ms)).collect();
        assert_eq!(stamps, [1_000 << 16, (1_000 << 16) + 1, (1_000 << 16) + 2, 1_001 << 16]);
        assert_eq!(stamp_text((0x0192_f3a1_b2c3 << 16) | 1), "0192f3a1b2c3-0001");
    }

    #[test]
    fn an_observed_stamp_is_passed_and_nonsense_is_ignored() {
        let mut clock = Clock::default();
        for text in ["", "-", "zz92f3a1b2c3-0001", "0192f3a1b2c30001", "192f3a1b2c3-00001"] {
            clock.observe(text);
        }
        assert_eq!(clock.0, 0);
        clock.observe("0192f3a1b2c3-ffff");
        assert_eq!(stamp_text(clock.tick(5)), "0192f3a1b2c4-0000");
    }

    #[test]
    fn ids_are_version_7_ordered_and_unique() {
        let (mut clock, mut rng) = (Clock::default(), Rng::new(1, 1));
        let ids: Vec<Uuid> = (0..1_000).map(|_| Uuid::new(clock.tick(77), &mut rng)).collect();
        assert!(ids.is_sorted_by(|a, b| a < b));
        let text = ids[5].text();
        assert_eq!((text.len(), &text[14..15]), (36, "7"));
        assert!("89ab".contains(&text[19..20]), "{text}");
    }
}
