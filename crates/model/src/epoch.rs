//! The epoch of a tenant's sequence.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// Names one unbroken life of a tenant's sequence; a restore or a rollback mints another.
///
/// On the wire: 8 lower-case hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(u32);

impl Epoch {
    /// Makes an epoch of its number.
    #[must_use]
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// Returns the number behind the eight digits.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

impl FromStr for Epoch {
    type Err = EpochError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let lower_hex = text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if text.len() != 8 || !lower_hex {
            return Err(EpochError);
        }
        u32::from_str_radix(text, 16).map(Self).map_err(|_| EpochError)
    }
}

/// The text is not 8 lower-case hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("an epoch is 8 lower-case hexadecimal digits")]
pub struct EpochError;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_round_trip_and_refuse_other_text() {
        let epoch = Epoch::new(0x00c0_ffee);
        assert_eq!(epoch.to_string(), "00c0ffee");
        assert_eq!("00c0ffee".parse(), Ok(epoch));
        for bad in ["", "c0ffee", "00C0FFEE", "00c0ffee0", "+0c0ffee"] {
            assert_eq!(bad.parse::<Epoch>(), Err(EpochError), "{bad}");
        }
    }
}
