//! What should be there, in the plainest way.

use std::collections::BTreeMap;

use driftline_uploads::{Digest, Expiry, Meeting, Refused, State};

use crate::service::{Append, Chunk, Told};

/// The last millisecond of the year 9999.
pub(crate) const LAST_MS: u64 = 253_402_300_799_999;

/// An upload as its client means it, and which of its bytes came.
pub(crate) struct Model {
    pub(crate) expiry: Expiry,
    pub(crate) state: State,
    pub(crate) opened_ms: u64,
    pub(crate) last_ms: u64,
    /// The bytes of a chunk; none: a stream.
    pub(crate) chunk: Option<usize>,
    pub(crate) size: Option<usize>,
    /// Chunks by their index; a stream has its bytes under zero.
    pub(crate) kept: BTreeMap<usize, Vec<u8>>,
    /// How far the file is hashed.
    pub(crate) hashed: usize,
}

impl Model {
    pub(crate) fn ends_ms(&self) -> u64 {
        let after = |from: u64, ms: u64| u128::from(from) + u128::from(ms);
        let ends = match self.expiry {
            Expiry::Fixed { whole_ms } => after(self.opened_ms, whole_ms),
            Expiry::Sliding { idle_ms, whole_ms } => {
                after(self.last_ms, idle_ms).min(after(self.opened_ms, whole_ms))
            }
        };
        u64::try_from(ends).unwrap_or(u64::MAX).min(LAST_MS)
    }

    pub(crate) fn state(&self, now_ms: u64) -> State {
        let is_over = self.state == State::Open && now_ms >= self.ends_ms();
        if is_over { State::Expired } else { self.state }
    }

    pub(crate) fn require_open(&self, now_ms: u64) -> Result<(), Refused> {
        match self.state(now_ms) {
            State::Open => Ok(()),
            State::Finalizing => Err(Refused::Finalizing),
            state => Err(Refused::Gone(state)),
        }
    }

    pub(crate) fn received(&self) -> usize {
        self.kept.values().map(Vec::len).sum()
    }

    /// The lengths of all chunks, one after the other.
    pub(crate) fn chunks(&self) -> Vec<usize> {
        let (mut left, mut chunks) = (self.size.unwrap_or(0), Vec::new());
        while let Some(chunk) = self.chunk.filter(|_| left > 0) {
            chunks.push(chunk.min(left));
            left -= chunk.min(left);
        }
        chunks
    }

    pub(crate) fn chunk(&mut self, chunk: &Chunk<'_>, now_ms: u64) -> Result<Told, Refused> {
        if self.chunk.is_none() {
            return Err(Refused::OtherForm);
        }
        self.require_open(now_ms)?;
        let chunks = self.chunks();
        let index = usize::try_from(chunk.index).unwrap();
        let Some(len) = chunks.get(index) else {
            return Err(Refused::NoSuchChunk { chunks: chunks.len() as u64 });
        };
        if chunk.told_bytes.is_some_and(|told| told != *len as u64) {
            return Err(Refused::WrongLength { wanted: *len as u64 });
        }
        let bytes = chunk.pieces.concat();
        if let Some(kept) = self.kept.get(&index) {
            return Ok(Told::Met(if *kept == bytes { Meeting::Same } else { Meeting::Other }));
        }
        if bytes.len() > *len {
            return Ok(Told::TooLong);
        }
        if bytes.len() < *len {
            return Ok(Told::Cut);
        }
        if chunk.announced != Digest::hash(&bytes) {
            return Ok(Told::Damaged);
        }
        if self.hashed == chunks[..index].iter().sum() {
            self.hashed += len;
        }
        self.kept.insert(index, bytes);
        self.last_ms = now_ms;
        Ok(Told::Kept)
    }

    pub(crate) fn append(&mut self, append: &Append<'_>, now_ms: u64) -> Result<Told, Refused> {
        if self.chunk.is_some() {
            return Err(Refused::OtherForm);
        }
        if self.state(now_ms) != State::Done {
            self.require_open(now_ms)?;
        }
        let received = self.received();
        if append.offset != received as u64 {
            return Err(Refused::WrongOffset { offset: received as u64 });
        }
        let told = append.told_bytes.map_or(0, |told| received as u64 + told);
        if let Some(size) = self.size.filter(|size| told > *size as u64) {
            return Err(Refused::TooLong { size: size as u64 });
        }
        let kept = self.kept.entry(0).or_default();
        for piece in append.pieces {
            if self.size.is_some_and(|size| kept.len() + piece.len() > size) {
                return Ok(Told::TooLong);
            }
            kept.extend_from_slice(piece);
            self.hashed = kept.len();
            self.last_ms = if piece.is_empty() { self.last_ms } else { now_ms };
        }
        Ok(Told::Kept)
    }

    pub(crate) fn settle_size(&mut self, told: usize) -> Result<(), Refused> {
        match self.size {
            _ if self.chunk.is_some() => Err(Refused::OtherForm),
            Some(size) if size != told => Err(Refused::SizeSettled),
            None if told < self.received() => Err(Refused::SizeSettled),
            _ => {
                self.size = Some(told);
                Ok(())
            }
        }
    }

    pub(crate) fn is_whole(&self) -> bool {
        self.size == Some(self.received())
    }

    pub(crate) fn begin(&mut self, now_ms: u64) -> Result<(), Refused> {
        self.require_open(now_ms)?;
        if !self.is_whole() {
            return Err(Refused::Incomplete);
        }
        self.state = State::Finalizing;
        Ok(())
    }

    pub(crate) fn turn(&mut self, next: State) -> bool {
        let ways = match self.state {
            State::Open => &[State::Finalizing, State::Cancelled, State::Expired][..],
            State::Finalizing => &[State::Open, State::Done, State::Cancelled],
            State::Done | State::Cancelled | State::Expired => &[],
        };
        let may = ways.contains(&next);
        self.state = if may { next } else { self.state };
        may
    }

    /// The first and the last of the chunks that are missing one after the other.
    pub(crate) fn missing(&self) -> Vec<[u64; 2]> {
        let mut gaps: Vec<[u64; 2]> = Vec::new();
        for index in (0..self.chunks().len()).filter(|index| !self.kept.contains_key(index)) {
            let index = index as u64;
            match gaps.last_mut().filter(|[_, last]| *last + 1 == index) {
                Some(gap) => gap[1] = index,
                None => gaps.push([index, index]),
            }
        }
        gaps
    }

    /// The bytes of the file up to the first that is missing.
    pub(crate) fn beginning(&self) -> Vec<u8> {
        let kept = self.kept.iter().enumerate().take_while(|(number, (index, _))| number == *index);
        kept.flat_map(|(_, (_, bytes))| bytes.clone()).collect()
    }
}
