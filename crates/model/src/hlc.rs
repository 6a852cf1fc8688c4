//! Hybrid logical clock stamps.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// A hybrid logical clock stamp: 48 bits of Unix milliseconds, then a 16-bit counter.
///
/// Stamps order as one number. The wire form is `12 hex digits-4 hex digits`, lower case, so that text
/// order is clock order. Source: Kulkarni et al., *Logical Physical Clocks* (2014), §3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Hlc(u64);

impl Hlc {
    /// The stamp before every other.
    pub const ZERO: Self = Self(0);

    /// The largest millisecond a stamp may hold: storage keeps stamps as signed 64-bit numbers.
    pub const MAX_MILLIS: u64 = (1 << 47) - 1;

    /// Makes a stamp; milliseconds above [`Hlc::MAX_MILLIS`] are held at it.
    #[must_use]
    pub const fn new(millis: u64, counter: u16) -> Self {
        let millis = if millis > Self::MAX_MILLIS { Self::MAX_MILLIS } else { millis };
        Self((millis << 16) | counter as u64)
    }

    /// Makes a stamp of the number that [`Hlc::bits`] gave.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits & (u64::MAX >> 1))
    }

    /// Returns the stamp as one ordered number.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Returns the physical part in Unix milliseconds.
    #[must_use]
    pub const fn millis(self) -> u64 {
        self.0 >> 16
    }

    /// Returns the stamp right after this one; a full counter carries into the milliseconds.
    #[must_use]
    pub const fn successor(self) -> Self {
        Self::from_bits(self.0 + 1)
    }

    /// Returns the next stamp of a clock that has seen this one and reads `now_ms`.
    #[must_use]
    pub fn tick(self, now_ms: u64) -> Self {
        self.successor().max(Self::new(now_ms, 0))
    }
}

impl fmt::Display for Hlc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:012x}-{:04x}", self.0 >> 16, self.0 & 0xffff)
    }
}

impl FromStr for Hlc {
    type Err = HlcError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = text.as_bytes();
        if bytes.len() != 17 || bytes[12] != b'-' {
            return Err(HlcError);
        }
        let mut bits = 0_u64;
        for (at, byte) in bytes.iter().enumerate() {
            let digit = match byte {
                b'0'..=b'9' => byte - b'0',
                b'a'..=b'f' => byte - b'a' + 10,
                b'-' if at == 12 => continue,
                _ => return Err(HlcError),
            };
            bits = (bits << 4) | u64::from(digit);
        }
        if bits >> 63 == 1 { Err(HlcError) } else { Ok(Self(bits)) }
    }
}

/// The text is not a clock stamp.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a clock stamp is 12 hexadecimal digits, a hyphen and 4 hexadecimal digits, lower case")]
pub struct HlcError;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_round_trip_in_clock_order() {
        let early = Hlc::new(0x0192_f3a1_b2c3, 1);
        assert_eq!(early.to_string(), "0192f3a1b2c3-0001");
        assert_eq!("0192f3a1b2c3-0001".parse(), Ok(early));
        assert!(early < early.successor());
        assert!(early.to_string() < early.successor().to_string());
    }

    #[test]
    fn a_full_counter_carries() {
        let full = Hlc::new(7, u16::MAX);
        assert_eq!(full.successor(), Hlc::new(8, 0));
    }

    #[test]
    fn a_tick_follows_both_the_seen_stamp_and_the_wall() {
        assert_eq!(Hlc::new(5, 3).tick(4), Hlc::new(5, 4));
        assert_eq!(Hlc::new(5, 3).tick(9), Hlc::new(9, 0));
    }

    #[test]
    fn other_text_is_refused() {
        for bad in [
            "",
            "0192f3a1b2c3",
            "0192F3A1B2C3-0001",
            "0192f3a1b2c3_0001",
            "f192f3a1b2c3-0001",
            "0192f3a1b2c-30001",
        ] {
            assert_eq!(bad.parse::<Hlc>(), Err(HlcError), "{bad}");
        }
    }
}
