//! SHA-256 of chunks and of whole files, FIPS 180-4.

use std::fmt;
use std::str::FromStr;

use sha2::digest::common::hazmat::SerializableState;
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::id::{read_hex, write_hex};

/// Why a text is not a digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a SHA-256 digest is 64 hexadecimal digits")]
pub struct DigestError;

/// A SHA-256 digest.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Takes a digest's bytes.
    #[must_use]
    pub const fn of(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Hashes bytes that are all there.
    #[must_use]
    pub fn hash(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Returns the bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

/// Reads hexadecimal digits of either case.
impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let mut bytes = [0; 32];
        read_hex(&text.to_ascii_lowercase(), &mut bytes).ok_or(DigestError)?;
        Ok(Self(bytes))
    }
}

/// The hash of a file from its beginning up to a place, which can be put away and gone on with after a restart.
///
/// What is put away is the inner state of the hash, which is not more secret than the bytes that were hashed. It is read
/// by this program only: a state that another one made goes on to another digest, and the file is refused, never wrongly
/// accepted.
#[derive(Clone, Default)]
pub struct RunningHash {
    hasher: Sha256,
    through: u64,
}

/// Why a running hash was not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the state of a hash is not what was put away")]
pub struct RunningHashError;

/// The bytes of a place before the state.
const PLACE: usize = size_of::<u64>();

/// How far a hash may have come to go on: the standard ends at twice as many bytes, and no file is as long.
const THROUGH_MAX: u64 = 1 << 60;

impl RunningHash {
    /// Returns how many bytes of the file are hashed.
    #[must_use]
    pub const fn through(&self) -> u64 {
        self.through
    }

    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.through += bytes.len() as u64;
    }

    /// Returns the digest of what was taken so far; more may be taken.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest(self.hasher.clone().finalize().into())
    }

    /// Puts the state away.
    #[must_use]
    pub fn put_away(&self) -> Vec<u8> {
        [&self.through.to_le_bytes()[..], &self.hasher.serialize()[..]].concat()
    }

    /// Goes on with a state that was put away.
    ///
    /// # Errors
    /// [`RunningHashError`] when it is none, or not one of so many bytes.
    pub fn resume(state: &[u8]) -> Result<Self, RunningHashError> {
        let (through, state) = state.split_first_chunk::<PLACE>().ok_or(RunningHashError)?;
        let through = u64::from_le_bytes(*through);
        if through > THROUGH_MAX || hashed(state) != Some(through) {
            return Err(RunningHashError);
        }
        let state = state.try_into().map_err(|_| RunningHashError)?;
        let hasher = Sha256::deserialize(&state).map_err(|_| RunningHashError)?;
        Ok(Self { hasher, through })
    }
}

/// Returns how many bytes a state of the hasher says it took: 32 bytes of values are followed by the number of whole blocks,
/// in 8 bytes, and by that of the bytes behind them, in one. Should another version of the hasher write it in another
/// way, every state is refused, and the file is read again.
fn hashed(state: &[u8]) -> Option<u64> {
    const BLOCK_BYTES: u64 = 64;
    let (_, counts) = state.split_at_checked(32)?;
    let (blocks, behind) = counts.split_first_chunk()?;
    let whole = u64::from_le_bytes(*blocks).checked_mul(BLOCK_BYTES)?;
    whole.checked_add(u64::from(*behind.first()?))
}

impl fmt::Debug for RunningHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunningHash").field("through", &self.through).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_the_standard() {
        let wanted = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let digest = Digest::hash(b"abc");
        assert_eq!((digest.to_string().as_str(), wanted.parse()), (wanted, Ok(digest)));
        assert_eq!(wanted.to_uppercase().parse(), Ok(digest));
        for bad in ["", "abc", &wanted[1..], &format!("{wanted}00"), &wanted.replace('b', "g")] {
            assert_eq!(bad.parse::<Digest>(), Err(DigestError));
        }
    }

    #[test]
    fn a_hash_goes_on_where_it_was_put_away() {
        let bytes: Vec<u8> = (0..=u8::MAX).cycle().take(1000).collect();
        for cut in [0, 1, 55, 56, 63, 64, 65, 127, 128, 500, 1000] {
            let mut running = RunningHash::default();
            running.update(&bytes[..cut]);
            let mut later = RunningHash::resume(&running.put_away()).unwrap();
            assert_eq!(later.through(), cut as u64);
            later.update(&bytes[cut..]);
            assert_eq!(later.digest(), Digest::hash(&bytes), "{cut}");
        }
        let state = RunningHash::default().put_away();
        for bad in [&state[1..], &state[..7], &[][..]] {
            assert_eq!(RunningHash::resume(bad).map(|hash| hash.through()), Err(RunningHashError));
        }
    }

    #[test]
    fn a_state_that_took_another_number_of_bytes_is_refused() {
        let mut running = RunningHash::default();
        running.update(&[7; 100]);
        let state = running.put_away();
        // The place, the number of blocks, that of the bytes behind them, and what lies behind those.
        for at in (0..8).chain(40..49).chain([85, 111]) {
            let mut damaged = state.clone();
            damaged[at] ^= 1;
            assert!(RunningHash::resume(&damaged).is_err(), "byte {at} of {}", state.len());
        }
        // More than can be hashed, in a state that agrees with itself.
        for through in [1_u64 << 61, u64::MAX - 63] {
            let counts = [&(through / 64).to_le_bytes()[..], &[0; 64]].concat();
            let far = [&through.to_le_bytes()[..], &state[8..40], &counts].concat();
            assert_eq!((far.len(), RunningHash::resume(&far).is_err()), (state.len(), true));
        }
    }
}
