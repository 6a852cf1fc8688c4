//! Digests of whole files that had to be read for them.
//!
//! A file whose chunks came in any order is read when it is finalized. Whoever claims a wrong digest of it over and over
//! would have it read over and over, and the reads of all others would wait: what was found is remembered.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use driftline_uploads::{Digest, UploadId};

use crate::uploads::ChunkThere;

/// Files whose digests are remembered; of more all are read anew.
const FOUND_MAX: usize = 10_000;

/// What a file is made of: the digest of its chunks' digests. Chunks that were taken back and came as others make another
/// one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seal(Digest);

impl Seal {
    /// Makes the seal of chunks in the order of their places.
    pub(super) fn of(chunks: &[ChunkThere]) -> Self {
        let digests: Vec<u8> = chunks.iter().flat_map(|chunk| *chunk.digest.as_bytes()).collect();
        Self(Digest::hash(&digests))
    }
}

/// The digests of files of which another one was claimed. The lock is held for one look-up.
#[derive(Debug, Default)]
pub(super) struct Found(Mutex<HashMap<UploadId, (Seal, Digest)>>);

impl Found {
    fn all(&self) -> MutexGuard<'_, HashMap<UploadId, (Seal, Digest)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the digest of the file that an upload's chunks make, if it is known.
    pub(super) fn digest(&self, id: UploadId, seal: Seal) -> Option<Digest> {
        self.all().get(&id).filter(|(known, _)| *known == seal).map(|(_, digest)| *digest)
    }

    pub(super) fn remember(&self, id: UploadId, seal: Seal, digest: Digest) {
        let mut all = self.all();
        if all.len() >= FOUND_MAX {
            all.clear();
        }
        all.insert(id, (seal, digest));
    }

    pub(super) fn forget(&self, id: UploadId) {
        self.all().remove(&id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: UploadId = UploadId::of([7; 16]);

    fn seal(chunks: &[&[u8]]) -> Seal {
        let there = |(index, chunk): (usize, &&[u8])| ChunkThere {
            index: index as u64,
            digest: Digest::hash(chunk),
            tag: None,
        };
        Seal::of(&chunks.iter().enumerate().map(there).collect::<Vec<_>>())
    }

    #[test]
    fn what_is_known_of_some_chunks_says_nothing_of_others() {
        let (found, digest) = (Found::default(), Digest::hash(b"abcd"));
        found.remember(ID, seal(&[b"ab", b"cd"]), digest);
        assert_eq!(found.digest(ID, seal(&[b"ab", b"cd"])), Some(digest));
        for others in [seal(&[b"ab", b"ce"]), seal(&[b"cd", b"ab"]), seal(&[b"ab"]), seal(&[])] {
            assert_eq!(found.digest(ID, others), None);
        }
        assert_eq!(found.digest(UploadId::of([8; 16]), seal(&[b"ab", b"cd"])), None);
        found.forget(ID);
        assert_eq!(found.digest(ID, seal(&[b"ab", b"cd"])), None);
    }

    #[test]
    fn only_so_much_is_remembered() {
        let (found, any) = (Found::default(), seal(&[]));
        for n in 0..=FOUND_MAX as u128 {
            found.remember(UploadId::of(n.to_be_bytes()), any, Digest::hash(b""));
        }
        assert_eq!(found.all().len(), 1);
    }
}
