//! The smallest service around the crate.

use std::collections::BTreeMap;

use driftline_uploads::{
    Digest, Durability, Expiry, Form, Meeting, MemoryShell, PartError, PartWriter, Ranges, Refused,
    RunningHash, Shell, Upload, UploadId, meet,
};

pub(crate) const ID: UploadId = UploadId::of([0xab; 16]);

/// Bytes that came, cut as they came.
pub(crate) type Pieces<'a> = &'a [&'a [u8]];

/// What a client is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Told {
    Kept,
    Met(Meeting),
    /// Fewer bytes came than a chunk has.
    Cut,
    /// The bytes of a chunk are not those that were announced.
    Damaged,
    TooLong,
    Refused(Refused),
}

impl From<Refused> for Told {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

/// A chunk that comes.
pub(crate) struct Chunk<'a> {
    pub(crate) index: u64,
    pub(crate) told_bytes: Option<u64>,
    pub(crate) pieces: Pieces<'a>,
    pub(crate) announced: Digest,
}

/// Bytes of a stream that come.
pub(crate) struct Append<'a> {
    pub(crate) offset: u64,
    pub(crate) told_bytes: Option<u64>,
    pub(crate) pieces: Pieces<'a>,
}

/// An upload in a service. Its fields are what a real one keeps in its database.
pub(crate) struct Service {
    pub(crate) shell: MemoryShell,
    pub(crate) expiry: Expiry,
    pub(crate) upload: Upload,
    pub(crate) digests: BTreeMap<u64, Digest>,
    pub(crate) there: Ranges,
    pub(crate) running: Vec<u8>,
}

impl Service {
    pub(crate) fn open(form: Form, expiry: Expiry, now_ms: u64) -> Self {
        let shell = MemoryShell::default();
        shell.create(&ID).unwrap();
        Self {
            shell,
            expiry,
            upload: Upload::open(form, now_ms, &expiry),
            digests: BTreeMap::new(),
            there: Ranges::default(),
            running: RunningHash::default().put_away(),
        }
    }

    pub(crate) fn running(&self) -> RunningHash {
        RunningHash::resume(&self.running).unwrap()
    }

    pub(crate) fn chunk(&mut self, chunk: &Chunk<'_>, now_ms: u64) -> Result<Told, Refused> {
        let (at, len) = self.upload.admit_chunk(chunk.index, chunk.told_bytes, now_ms)?;
        let met = meet(self.digests.get(&chunk.index).copied(), Digest::hash(&chunk.pieces.concat()));
        if met != Meeting::New {
            return Ok(Told::Met(met));
        }
        let staged = self.shell.stage(&ID).unwrap();
        let mut writer = PartWriter::new(staged, at, at + len, Some(self.running())).with_digest();
        for piece in chunk.pieces {
            if writer.write(piece) == Err(PartError::TooLong) {
                return Ok(Told::TooLong);
            }
        }
        if writer.at() < at + len {
            return Ok(Told::Cut);
        }
        let digest = writer.digest().unwrap();
        if digest != chunk.announced {
            return Ok(Told::Damaged);
        }
        writer.settle(Durability::Fsync).unwrap();
        self.digests.insert(chunk.index, digest);
        assert!(self.there.insert(chunk.index));
        self.upload.received += len;
        self.upload.expires_ms = self.expiry.expires_ms(self.upload.opened_ms, now_ms);
        if let Some(running) = writer.running() {
            self.running = running.put_away();
        }
        Ok(Told::Kept)
    }

    pub(crate) fn append(&mut self, append: &Append<'_>, now_ms: u64) -> Result<Told, Refused> {
        let left = self.upload.admit_append(append.offset, append.told_bytes, now_ms)?;
        if left == Some(0) {
            // What is finished is not staged any more.
            return Ok(if append.pieces.concat().is_empty() { Told::Kept } else { Told::TooLong });
        }
        let end = left.map_or(u64::MAX, |left| append.offset + left);
        let staged = self.shell.stage(&ID).unwrap();
        let mut writer = PartWriter::new(staged, append.offset, end, Some(self.running()));
        let fits = append.pieces.iter().all(|piece| writer.write(piece).is_ok());
        writer.settle(Durability::Fsync).unwrap();
        if writer.at() > append.offset {
            self.upload.received = writer.at();
            self.upload.expires_ms = self.expiry.expires_ms(self.upload.opened_ms, now_ms);
            self.running = writer.running().unwrap().put_away();
        }
        Ok(if fits { Told::Kept } else { Told::TooLong })
    }
}
