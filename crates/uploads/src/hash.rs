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
    /// [`RunningHashError`] when it is none.
    pub fn resume(state: &[u8]) -> Result<Self, RunningHashError> {
        let (through, state) = state.split_at_checked(PLACE).ok_or(RunningHashError)?;
        let through = u64::from_le_bytes(through.try_into().map_err(|_| RunningHashError)?);
        let state = state.try_into().map_err(|_| RunningHashError)?;
        let hasher = Sha256::deserialize(&state).map_err(|_| RunningHashError)?;
        Ok(Self { hasher, through })
    }
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
}
