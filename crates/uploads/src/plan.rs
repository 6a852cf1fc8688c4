//! How a file is cut into chunks.

use std::num::NonZeroU64;

/// The most chunks of one upload: as many as S3 takes parts of one object.
pub const CHUNKS_MAX: u64 = 10_000;

/// What chunks that are chosen are a multiple of, so that no two of them share a page of a disk.
const PAGE_BYTES: u64 = 4096;

/// How a file is cut: chunks of one length, the last one of what remains. A file without bytes has no chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    size: u64,
    chunk_bytes: NonZeroU64,
}

impl Plan {
    /// Cuts a file of a size into chunks of a length.
    #[must_use]
    pub const fn new(size: u64, chunk_bytes: NonZeroU64) -> Self {
        Self { size, chunk_bytes }
    }

    /// Cuts a file into chunks of the wanted length. Where there would be more than [`CHUNKS_MAX`], they have its double,
    /// and so on, rounded up to whole pages of 4,096 bytes.
    #[must_use]
    pub fn choose(size: u64, wanted: NonZeroU64) -> Self {
        let mut chunk_bytes = wanted;
        while size.div_ceil(chunk_bytes.get()) > CHUNKS_MAX {
            chunk_bytes = chunk_bytes.saturating_mul(NonZeroU64::MIN.saturating_add(1));
        }
        if chunk_bytes != wanted {
            let paged = chunk_bytes.get().checked_next_multiple_of(PAGE_BYTES).and_then(NonZeroU64::new);
            chunk_bytes = paged.unwrap_or(chunk_bytes);
        }
        Self { size, chunk_bytes }
    }

    /// Returns the file's bytes.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Returns the bytes of every chunk but the last.
    #[must_use]
    pub const fn chunk_bytes(&self) -> u64 {
        self.chunk_bytes.get()
    }

    /// Returns how many chunks there are.
    #[must_use]
    pub const fn chunks(&self) -> u64 {
        self.size.div_ceil(self.chunk_bytes.get())
    }

    /// Returns where a chunk begins and how many bytes it has; nothing for one that there is not.
    #[must_use]
    pub fn chunk(&self, index: u64) -> Option<(u64, u64)> {
        let at = index.checked_mul(self.chunk_bytes.get()).filter(|at| *at < self.size)?;
        Some((at, self.chunk_bytes.get().min(self.size - at)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(bytes: u64) -> NonZeroU64 {
        NonZeroU64::new(bytes).unwrap()
    }

    #[test]
    fn chunks_cover_the_file_and_nothing_else() {
        for (size, chunk) in [(0, 4), (1, 4), (4, 4), (5, 4), (8, 4), (11, 3), (1, 1)] {
            let plan = Plan::new(size, bytes(chunk));
            let mut end = 0;
            for index in 0..plan.chunks() {
                let (at, len) = plan.chunk(index).unwrap();
                assert!(at == end && len > 0, "{size} {chunk} {index}");
                end = at + len;
            }
            assert_eq!((end, plan.chunk(plan.chunks())), (size, None));
        }
        assert_eq!(Plan::new(10, bytes(1 << 40)).chunk(u64::MAX), None);
    }

    #[test]
    fn very_large_files_have_longer_chunks() {
        assert_eq!(Plan::choose(10_000 << 20, bytes(1 << 20)).chunk_bytes(), 1 << 20);
        assert_eq!(Plan::choose((10_000 << 20) + 1, bytes(1 << 20)).chunk_bytes(), 2 << 20);
        for size in [0, 1, 1 << 40, 1 << 62, u64::MAX] {
            assert!(Plan::choose(size, bytes(3)).chunks() <= CHUNKS_MAX, "{size}");
        }
    }

    #[test]
    fn longer_chunks_have_whole_pages() {
        let table = [
            (30_000, 3, 3),
            (30_001, 3, 4096),
            (10_000 * 5_000, 5_000, 5_000),
            (10_000 * 5_000 + 1, 5_000, 12_288),
            (40_960_001, 4096, 8192),
            (10_000 * 1_000_000 + 1, 1_000_000, 2_002_944),
        ];
        for (size, wanted, chosen) in table {
            assert_eq!(Plan::choose(size, bytes(wanted)).chunk_bytes(), chosen, "{size} in {wanted}");
        }
    }
}
