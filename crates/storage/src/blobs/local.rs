//! Bytes behind a blocking shell: a local disk, or one that nodes share.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use driftline_engine::{BlobAnswer, BlobError, Blobs, PartPlace, PartSink, PartWritten, Purpose, UploadRow};
use driftline_uploads::{
    Bytes, Digest, Durability, Form, PartError, PartWriter, RunningHash, Shell, ShellError, UploadId,
    hash_rest, rehash,
};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;

/// Bytes that are handed to a writing thread at once; two pieces of a part are held, one that is written and one that
/// fills.
const PIECE_BYTES: usize = 64 << 10;

/// Bytes of a piece where few parts come: a hand-over costs two changes of threads, however long the piece is.
const LONG_PIECE_BYTES: usize = 256 << 10;

/// Parts that have long pieces at one time; they hold 8 MiB together.
const LONG_PARTS: usize = 16;

/// Long pieces that are kept for the parts that come next, 2 MiB: memory that is given back to the system is made anew, page
/// by page, for every part.
const PIECES_KEPT: usize = 8;

/// How much of a piece is made room for at first: most slow uploads never fill one.
const PIECE_BYTES_FIRST: usize = 8 << 10;

/// Pieces that are written at one time; more wait. A disk does not become faster by more.
const WRITERS: usize = 16;

/// Whole files that are hashed or copied at one time; more wait.
const READERS: usize = 4;

/// Bytes that joining copies at once.
const COPY_BYTES: usize = 256 << 10;

/// The bytes of uploads and files behind a shell. Its calls block, so they are made on threads for that.
#[derive(Debug)]
pub struct LocalBlobs<S> {
    shell: Arc<S>,
    durability: Durability,
    chunk_bytes: u64,
    writers: Arc<Semaphore>,
    readers: Arc<Semaphore>,
    long: Arc<LongPieces>,
}

/// The long pieces.
#[derive(Debug)]
struct LongPieces {
    parts: Arc<Semaphore>,
    /// Empty ones. The lock is held to take one or to give one back.
    kept: Mutex<Vec<Vec<u8>>>,
}

impl LongPieces {
    fn new() -> Self {
        Self { parts: Arc::new(Semaphore::new(LONG_PARTS)), kept: Mutex::default() }
    }

    fn kept(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Vec<u8> {
        let kept = self.kept().pop();
        kept.unwrap_or_else(|| Vec::with_capacity(LONG_PIECE_BYTES))
    }

    /// Keeps a piece, if it is a long one and few are kept.
    fn give_back(&self, mut piece: Vec<u8>) {
        piece.clear();
        let mut kept = self.kept();
        if piece.capacity() >= LONG_PIECE_BYTES && kept.len() < PIECES_KEPT {
            kept.push(piece);
        }
    }
}

impl<S: Shell> LocalBlobs<S> {
    /// Puts bytes behind a shell.
    pub fn new(shell: S, durability: Durability, chunk_bytes: u64) -> Self {
        let writers = Arc::new(Semaphore::new(WRITERS));
        let readers = Arc::new(Semaphore::new(READERS));
        let long = Arc::new(LongPieces::new());
        Self { shell: Arc::new(shell), durability, chunk_bytes, writers, readers, long }
    }

    /// Asks the shell on a thread that may block.
    fn ask<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&S) -> Result<T, BlobError> + Send + 'static,
    ) -> BlobAnswer<'_, T> {
        let shell = Arc::clone(&self.shell);
        async move { blocking(move || ask(&shell)).await? }.boxed()
    }
}

/// Runs what may block.
async fn blocking<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> Result<T, BlobError> {
    let ran = tokio::task::spawn_blocking(run).await;
    ran.map_err(|error| BlobError::Failed(format!("a thread ended: {error}")))
}

fn of_shell(error: ShellError) -> BlobError {
    match error {
        ShellError::Full => BlobError::Full,
        ShellError::Missing => BlobError::Missing,
        ShellError::Taken => BlobError::Taken,
        other => BlobError::Failed(other.to_string()),
    }
}

fn of_part(error: PartError) -> BlobError {
    match error {
        PartError::TooLong => BlobError::Length,
        PartError::Shell(error) => of_shell(error),
        other => BlobError::Failed(other.to_string()),
    }
}

impl<S: Shell> Blobs for LocalBlobs<S> {
    fn chunk_bytes(&self) -> u64 {
        self.chunk_bytes
    }

    fn takes_streams(&self) -> bool {
        true
    }

    fn create(&self, id: UploadId) -> BlobAnswer<'_, Option<Box<str>>> {
        self.ask(move |shell| shell.create(&id).map(|()| None).map_err(of_shell))
    }

    fn begin(&self, place: PartPlace) -> BlobAnswer<'_, Box<dyn PartSink>> {
        let (shell, durability) = (Arc::clone(&self.shell), self.durability);
        let (writers, long) = (Arc::clone(&self.writers), Arc::clone(&self.long));
        let PartPlace { id, at, end, running, digest, index, purpose, .. } = place;
        async move {
            let bytes = match purpose {
                Purpose::Write => Target::Shell(blocking(move || shell.stage(&id)).await?.map_err(of_shell)?),
                Purpose::Compare => Target::Nowhere,
            };
            let writer = PartWriter::new(bytes, at, end, running.filter(|_| purpose == Purpose::Write));
            let writer = if index.is_some() { writer.with_digest() } else { writer };
            let part = Part {
                stage: Stage::Idle(Box::new(writer)),
                filling: Vec::new(),
                empty: Vec::new(),
                long: Long::Asks,
                pieces: long,
                left: end - at,
                whole: index.is_some(),
                digest,
                durability: if purpose == Purpose::Write { durability } else { Durability::Os },
                writers,
            };
            let sink: Box<dyn PartSink> = Box::new(part);
            Ok(sink)
        }
        .boxed()
    }

    fn cut(&self, id: UploadId, len: u64) -> BlobAnswer<'_, ()> {
        self.ask(move |shell| shell.stage(&id).and_then(|mut staged| staged.set_len(len)).map_err(of_shell))
    }

    fn join(&self, into: UploadId, attempt: UploadId, parts: Vec<(UploadId, u64)>) -> BlobAnswer<'_, ()> {
        let joined = self.ask(move |shell| join(shell, (into, attempt), &parts).map_err(of_shell));
        in_turn(Arc::clone(&self.readers), joined)
    }

    fn assemble(&self, row: &UploadRow, _: Vec<Box<str>>) -> BlobAnswer<'_, Digest> {
        let (id, size) = (row.id, row.upload.received);
        let running = row.running.clone().filter(|running| running.through() <= size);
        let is_hashed = running.as_ref().is_some_and(|running| running.through() == size);
        let slow = Arc::clone(&self.readers);
        let asked = self.ask(move |shell| {
            let bytes = match shell.stage(&id) {
                // It was published, and nobody learned of it.
                Err(ShellError::Missing) => shell.file(&id),
                Ok(mut staged) => staged.set_len(size).map(|()| staged),
                staged => staged,
            };
            let running = running.unwrap_or_default();
            bytes.and_then(|bytes| hash_rest(&bytes, running, size)).map_err(of_shell)
        });
        // Nothing is left to read of what came in order: it does not wait behind what has to be read.
        if is_hashed { asked } else { in_turn(slow, asked) }
    }

    fn damaged(&self, row: &UploadRow, chunks: Vec<(u64, Digest)>) -> BlobAnswer<'_, Vec<u64>> {
        let (id, form) = (row.id, row.upload.form);
        let asked = self.ask(move |shell| match form {
            Form::Chunks(plan) => {
                let bytes = match shell.stage(&id) {
                    Err(ShellError::Missing) => shell.file(&id),
                    staged => staged,
                };
                let bytes = bytes.map_err(of_shell)?;
                rehash(&bytes, &plan, chunks.into_iter()).map_err(of_shell)
            }
            Form::Stream { .. } => Ok(Vec::new()),
        });
        in_turn(Arc::clone(&self.readers), asked)
    }

    fn publish(&self, id: UploadId) -> BlobAnswer<'_, ()> {
        let durability = self.durability;
        self.ask(move |shell| shell.publish(&id, durability).map_err(of_shell))
    }

    fn read(&self, id: UploadId, at: u64, bytes: usize) -> BlobAnswer<'_, Vec<u8>> {
        self.ask(move |shell| {
            let opened = match shell.file(&id) {
                Err(ShellError::Missing) => shell.stage(&id),
                file => file,
            };
            let opened = opened.map_err(of_shell)?;
            let mut buffer = vec![0; bytes];
            let len = opened.read_at(at, &mut buffer).map_err(of_shell)?;
            buffer.truncate(len);
            Ok(buffer)
        })
    }

    fn discard(&self, id: UploadId, _: Option<Box<str>>) -> BlobAnswer<'_, ()> {
        self.ask(move |shell| shell.discard(&id).map(drop).map_err(of_shell))
    }

    fn remove(&self, id: UploadId) -> BlobAnswer<'_, ()> {
        self.ask(move |shell| shell.remove(&id).map(drop).map_err(of_shell))
    }

    fn staged_before(&self, before_ms: u64) -> BlobAnswer<'_, Vec<(UploadId, Option<Box<str>>)>> {
        self.ask(move |shell| {
            let staged = shell.staged_before(before_ms).map_err(of_shell)?;
            Ok(staged.into_iter().map(|id| (id, None)).collect())
        })
    }

    fn files_before(&self, shard: u8, before_ms: u64) -> BlobAnswer<'_, Vec<UploadId>> {
        self.ask(move |shell| shell.files_before(shard, before_ms).map_err(of_shell))
    }
}

/// Does what reads whole files, a few at a time.
fn in_turn<T: Send + 'static>(readers: Arc<Semaphore>, asked: BlobAnswer<'_, T>) -> BlobAnswer<'_, T> {
    async move {
        let turn = readers.acquire_owned().await;
        let _turn = turn.map_err(|_| BlobError::Failed("reading has ended".into()))?;
        asked.await
    }
    .boxed()
}

/// Copies the staged bytes of uploads, so many of each, one behind the other. What was copied takes no room when it fails.
fn join<S: Shell>(
    shell: &S,
    (into, attempt): (UploadId, UploadId),
    parts: &[(UploadId, u64)],
) -> Result<(), ShellError> {
    shell.create(&attempt)?;
    let copied = shell.stage(&attempt).and_then(|mut whole| copy(shell, &mut whole, parts));
    let joined = copied.and_then(|()| shell.adopt(&attempt, &into));
    if joined.is_err() {
        // What is left when this fails is removed by the sweeper.
        let _ = shell.discard(&attempt);
    }
    match joined {
        // Another attempt was first: it came to its end as well, with the same bytes.
        Err(ShellError::Taken) if reaches(shell, into, parts.iter().map(|(_, len)| len).sum())? => Ok(()),
        joined => joined,
    }
}

/// Tells whether so many bytes are there of an upload or file.
fn reaches<S: Shell>(shell: &S, id: UploadId, len: u64) -> Result<bool, ShellError> {
    let bytes = match shell.stage(&id) {
        Err(ShellError::Missing) => shell.file(&id),
        staged => staged,
    };
    let Some(last) = len.checked_sub(1) else { return Ok(true) };
    Ok(bytes?.read_at(last, &mut [0])? == 1)
}

fn copy<S: Shell>(shell: &S, whole: &mut S::Bytes, parts: &[(UploadId, u64)]) -> Result<(), ShellError> {
    let (mut at, mut step) = (0, vec![0; COPY_BYTES]);
    for (part, len) in parts {
        let (part, mut from) = (shell.stage(part)?, 0);
        while from < *len {
            let left = usize::try_from(len - from).unwrap_or(COPY_BYTES).min(COPY_BYTES);
            let read = part.read_at(from, &mut step[..left])?;
            if read == 0 {
                return Err(ShellError::Missing);
            }
            whole.write_at(at, &step[..read])?;
            (from, at) = (from + read as u64, at + read as u64);
        }
    }
    whole.sync()
}

/// Where the bytes of a part go.
#[derive(Debug)]
enum Target<B> {
    Shell(B),
    /// They are only hashed.
    Nowhere,
}

impl<B: Bytes> Bytes for Target<B> {
    fn write_at(&mut self, at: u64, bytes: &[u8]) -> Result<(), ShellError> {
        match self {
            Self::Shell(target) => target.write_at(at, bytes),
            Self::Nowhere => Ok(()),
        }
    }

    fn read_at(&self, at: u64, buffer: &mut [u8]) -> Result<usize, ShellError> {
        match self {
            Self::Shell(target) => target.read_at(at, buffer),
            Self::Nowhere => Ok(0),
        }
    }

    fn sync(&mut self) -> Result<(), ShellError> {
        match self {
            Self::Shell(target) => target.sync(),
            Self::Nowhere => Ok(()),
        }
    }

    fn set_len(&mut self, len: u64) -> Result<(), ShellError> {
        match self {
            Self::Shell(target) => target.set_len(len),
            Self::Nowhere => Ok(()),
        }
    }
}

/// One part on its way.
struct Part<B> {
    stage: Stage<B>,
    /// What came and is not being written yet.
    filling: Vec<u8>,
    /// An empty buffer, while nothing is being written.
    empty: Vec<u8>,
    long: Long,
    pieces: Arc<LongPieces>,
    /// Bytes that may still come.
    left: u64,
    /// Whether all of them have to.
    whole: bool,
    digest: Option<Digest>,
    durability: Durability,
    writers: Arc<Semaphore>,
}

/// Whether a part has long pieces.
enum Long {
    /// It asks when it has filled a first piece.
    Asks,
    /// It does, until it ends.
    Has(#[expect(dead_code, reason = "it is held")] OwnedSemaphorePermit),
    /// Too many others do.
    HasNot,
}

impl<B> Drop for Part<B> {
    fn drop(&mut self) {
        for piece in [std::mem::take(&mut self.filling), std::mem::take(&mut self.empty)] {
            self.pieces.give_back(piece);
        }
    }
}

enum Stage<B> {
    Idle(Box<PartWriter<Target<B>>>),
    /// A thread writes a piece.
    Busy(JoinHandle<Written<B>>),
    /// It cannot be written.
    Failed(BlobError),
}

/// A piece that was written, or not.
struct Written<B> {
    writer: Box<PartWriter<Target<B>>>,
    piece: Vec<u8>,
    outcome: Result<(), PartError>,
}

impl<B: Bytes> Part<B> {
    /// Waits for the piece that is being written.
    async fn rest(&mut self) -> Result<(), BlobError> {
        if let Stage::Busy(task) = &mut self.stage {
            self.stage = match task.await {
                Ok(Written { writer, mut piece, outcome }) => {
                    piece.clear();
                    self.empty = piece;
                    match outcome {
                        Ok(()) => Stage::Idle(writer),
                        Err(error) => Stage::Failed(of_part(error)),
                    }
                }
                Err(error) => Stage::Failed(BlobError::Failed(format!("a thread ended: {error}"))),
            };
        }
        match &self.stage {
            Stage::Failed(error) => Err(error.clone()),
            _ => Ok(()),
        }
    }

    /// Takes the writer of a part at rest.
    fn take(&mut self) -> Result<Box<PartWriter<Target<B>>>, BlobError> {
        let gone = Stage::Failed(BlobError::Failed("the part was given up".into()));
        match std::mem::replace(&mut self.stage, gone) {
            Stage::Idle(writer) => Ok(writer),
            other => {
                self.stage = other;
                Err(BlobError::Failed("the part is not at rest".into()))
            }
        }
    }

    /// Makes the next pieces long ones, unless many parts have them or too little is to come.
    fn lengthen(&mut self) {
        if matches!(self.long, Long::Asks) && self.left >= LONG_PIECE_BYTES as u64 {
            let parts = Arc::clone(&self.pieces.parts);
            self.long = parts.try_acquire_owned().map_or(Long::HasNot, Long::Has);
        }
    }

    /// Returns the bytes of a piece.
    const fn piece_bytes(&self) -> usize {
        if matches!(self.long, Long::Has(_)) { LONG_PIECE_BYTES } else { PIECE_BYTES }
    }

    /// Makes room for so many bytes more in what fills.
    fn make_room(&mut self, bytes: usize) {
        let (len, most) = (self.filling.len(), self.piece_bytes());
        if most == LONG_PIECE_BYTES && len == 0 && self.filling.capacity() < most {
            self.filling = self.pieces.take();
        }
        if len + bytes <= self.filling.capacity() {
            return;
        }
        if len + bytes <= PIECE_BYTES_FIRST {
            self.filling.reserve_exact(PIECE_BYTES_FIRST);
        } else {
            self.filling.reserve_exact(most - len);
        }
    }

    /// Hands what came to a thread.
    async fn pass_on(&mut self) -> Result<(), BlobError> {
        self.rest().await?;
        let turn = Arc::clone(&self.writers).acquire_owned().await;
        let turn = turn.map_err(|_| BlobError::Failed("writing has ended".into()))?;
        let mut writer = self.take()?;
        let empty = std::mem::take(&mut self.empty);
        let piece = std::mem::replace(&mut self.filling, empty);
        self.stage = Stage::Busy(tokio::task::spawn_blocking(move || {
            let outcome = writer.write(&piece);
            drop(turn);
            Written { writer, piece, outcome }
        }));
        Ok(())
    }

    async fn settled(&mut self) -> Result<PartWritten, BlobError> {
        if self.whole && self.left > 0 {
            return Err(BlobError::Length);
        }
        self.rest().await?;
        let turn = Arc::clone(&self.writers).acquire_owned().await;
        let turn = turn.map_err(|_| BlobError::Failed("writing has ended".into()))?;
        let mut writer = self.take()?;
        let piece = std::mem::take(&mut self.filling);
        let (wanted, durability) = (self.digest, self.durability);
        let task = tokio::task::spawn_blocking(move || {
            let outcome = finish(&mut writer, &piece, wanted, durability);
            drop(turn);
            (writer, piece, outcome)
        });
        let (writer, piece, outcome) =
            task.await.map_err(|error| BlobError::Failed(format!("a thread ended: {error}")))?;
        self.pieces.give_back(piece);
        let written = outcome?;
        self.stage = Stage::Idle(writer);
        Ok(written)
    }
}

/// Writes the last piece, and makes everything durable if it is what was announced.
fn finish<B: Bytes>(
    writer: &mut PartWriter<Target<B>>,
    piece: &[u8],
    wanted: Option<Digest>,
    durability: Durability,
) -> Result<PartWritten, BlobError> {
    writer.write(piece).map_err(of_part)?;
    if wanted.is_some() && writer.digest() != wanted {
        return Err(BlobError::Mismatch);
    }
    writer.settle(durability).map_err(of_shell)?;
    let running: Option<RunningHash> = writer.running().cloned();
    Ok(PartWritten { end: writer.at(), running, tag: None })
}

impl<B: Bytes> PartSink for Part<B> {
    fn write<'a>(&'a mut self, mut bytes: &'a [u8]) -> BlobAnswer<'a, ()> {
        async move {
            let len = bytes.len() as u64;
            self.left = self.left.checked_sub(len).ok_or(BlobError::Length)?;
            while !bytes.is_empty() {
                let (now, later) = bytes.split_at(bytes.len().min(self.piece_bytes() - self.filling.len()));
                self.make_room(now.len());
                self.filling.extend_from_slice(now);
                bytes = later;
                if self.filling.len() == self.piece_bytes() {
                    self.lengthen();
                    self.pass_on().await?;
                }
            }
            Ok(())
        }
        .boxed()
    }

    fn settle(&mut self) -> BlobAnswer<'_, PartWritten> {
        self.settled().boxed()
    }

    fn stop(&mut self) -> BoxFuture<'_, ()> {
        async move {
            // Whether it failed is of no interest any more.
            let _ = self.rest().await;
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_pieces_come_again_empty_and_only_so_many_are_kept() {
        let pieces = LongPieces::new();
        let mut piece = pieces.take();
        let place = piece.as_ptr();
        piece.extend_from_slice(b"of another upload");
        pieces.give_back(piece);
        let again = pieces.take();
        assert_eq!((again.as_ptr(), again.len(), again.capacity()), (place, 0, LONG_PIECE_BYTES));
        pieces.give_back(Vec::with_capacity(PIECE_BYTES));
        assert_eq!(pieces.kept().len(), 0, "a short one");
        for _ in 0..=PIECES_KEPT {
            pieces.give_back(Vec::with_capacity(LONG_PIECE_BYTES));
        }
        assert_eq!(pieces.kept().len(), PIECES_KEPT);
    }
}
