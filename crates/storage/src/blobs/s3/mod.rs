//! Bytes in a bucket of S3, or of what speaks as S3 does.
//!
//! An upload is a multipart upload at the place of the file that becomes of it, and a chunk is a part. Nothing is put
//! before it was hashed whole, so that a chunk is held in memory while it comes. S3 publishes by putting the parts
//! together: from then on the object is there, and it is a file once the row says so.
//!
//! What a crash leaves behind between the beginning of a multipart upload and its row, nobody finds again: a lifecycle
//! rule of the bucket that aborts incomplete multipart uploads after some days is the net for it.

mod dial;
mod memory;
mod options;
mod sink;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use driftline_engine::{BlobAnswer, BlobError, Blobs, PartPlace, PartSink, UploadRow};
use driftline_uploads::{Digest, Form, RunningHash, UploadId};
use futures_util::{FutureExt as _, TryStreamExt as _};
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::multipart::{MultipartStore as _, PartId};
use object_store::path::Path;
use object_store::{
    BackoffConfig, ObjectMeta, ObjectStore as _, ObjectStoreExt as _, PutPayload, RetryConfig,
};

use dial::{COMPLETE, Dial, is_behind_the_end, meaning, travel};
use memory::{Memory, Room};
pub use options::{S3Error, S3Options};
use sink::Chunk;

/// How often S3 is asked again after an error that may pass.
const RETRIES: usize = 3;

/// How long is waited before S3 is asked again: first, and at most.
const BACKOFF: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(1)];

/// How many times the limit of one request may pass before an answer is given up, its repetitions included.
const PATIENCE: u32 = 3;

/// Bytes that are read and hashed at once.
const PIECE_BYTES: u64 = 4 << 20;

/// Bytes that whoever downloads a file reads at once, and holds in memory meanwhile.
const READ_BYTES: usize = 1 << 20;

/// How long a chunk waits for memory at most: less than what is left of the right to write it, which is not held on to
/// meanwhile.
const WAIT: Duration = Duration::from_secs(8);

/// The bytes of uploads and files in a bucket.
pub struct S3Blobs {
    bucket: Arc<Bucket>,
    chunk_bytes: u64,
    /// What chunks may still take of the memory.
    memory: Arc<Memory>,
}

impl fmt::Debug for S3Blobs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Blobs").field("folder", &self.bucket.folder).finish_non_exhaustive()
    }
}

impl S3Blobs {
    /// Puts bytes in a bucket. It asks nothing of S3 yet.
    ///
    /// # Errors
    /// [`S3Error`] names what is wrong with the options.
    pub fn open(options: &S3Options) -> Result<Self, S3Error> {
        options.check()?;
        let memory = Memory::new(options.memory_bytes, options.chunk_bytes, WAIT.min(options.timeout));
        Ok(Self {
            bucket: Arc::new(Bucket::open(options)?),
            chunk_bytes: options.chunk_bytes,
            memory: Arc::new(memory),
        })
    }
}

impl Blobs for S3Blobs {
    fn chunk_bytes(&self) -> u64 {
        self.chunk_bytes
    }

    fn takes_streams(&self) -> bool {
        false
    }

    /// Begins a multipart upload, whose name the upload has from then on.
    fn create(&self, id: UploadId) -> BlobAnswer<'_, Option<Box<str>>> {
        self.bucket.create(id).boxed()
    }

    fn begin(&self, place: PartPlace) -> BlobAnswer<'_, Box<dyn PartSink>> {
        async move {
            let index = place.index.ok_or_else(no_streams)?;
            let index = usize::try_from(index).map_err(|_| BlobError::Missing)?;
            let chunk = Chunk::new(place, index, Arc::clone(&self.bucket), Room::new(&self.memory));
            let sink: Box<dyn PartSink> = Box::new(chunk);
            Ok(sink)
        }
        .boxed()
    }

    /// What was not put whole is nowhere.
    fn cut(&self, _: UploadId, _: u64) -> BlobAnswer<'_, ()> {
        async { Ok(()) }.boxed()
    }

    fn join(&self, _: UploadId, _: UploadId, _: Vec<(UploadId, u64)>) -> BlobAnswer<'_, ()> {
        std::future::ready(Err(no_streams())).boxed()
    }

    fn assemble(&self, row: &UploadRow, tags: Vec<Box<str>>) -> BlobAnswer<'_, Digest> {
        let row = row.clone();
        async move { self.bucket.assemble(&row, tags).await }.boxed()
    }

    /// Finds none where the object is there: S3 watches over its bytes, and it has put together what was acknowledged or
    /// nothing. Without an object all are to be sent again: a part was lost, or a put that came late has taken its place,
    /// and S3 tells nobody the digests of parts.
    fn damaged(&self, row: &UploadRow, chunks: Vec<(u64, Digest)>) -> BlobAnswer<'_, Vec<u64>> {
        let id = row.id;
        async move {
            let damaged = if self.bucket.has(id).await? { Vec::new() } else { chunks };
            Ok(damaged.into_iter().map(|(index, _)| index).collect())
        }
        .boxed()
    }

    /// Does nothing: what was put together is there.
    fn publish(&self, _: UploadId) -> BlobAnswer<'_, ()> {
        std::future::ready(Ok(())).boxed()
    }

    /// Asks for more at once than a disk is asked: every read is a request of its own.
    fn read_bytes(&self) -> usize {
        READ_BYTES
    }

    fn read(&self, id: UploadId, at: u64, bytes: usize) -> BlobAnswer<'_, Vec<u8>> {
        self.bucket.read(id, at, bytes as u64).boxed()
    }

    /// Asks for two removals, whatever is there. A failure leaves nothing that doing it again does not remove.
    fn discard(&self, id: UploadId, staged: Option<Box<str>>) -> BlobAnswer<'_, ()> {
        async move {
            let aborted = match staged {
                Some(staged) => self.bucket.abort(id, &staged).await,
                None => Ok(()),
            };
            // It may have been put together before it was given up.
            let removed = self.bucket.remove(id).await;
            aborted.and(removed)
        }
        .boxed()
    }

    fn remove(&self, id: UploadId) -> BlobAnswer<'_, ()> {
        self.bucket.remove(id).boxed()
    }

    /// Lists nothing: the library knows no way to list multipart uploads, and the bucket's lifecycle rule ends them.
    fn staged_before(&self, _: u64) -> BlobAnswer<'_, Vec<(UploadId, Option<Box<str>>)>> {
        std::future::ready(Ok(Vec::new())).boxed()
    }

    fn files_before(&self, shard: u8, before_ms: u64) -> BlobAnswer<'_, Vec<UploadId>> {
        self.bucket.files_before(shard, before_ms).boxed()
    }
}

fn no_streams() -> BlobError {
    BlobError::Failed("S3 takes chunks and no streams".into())
}

/// The bucket, and what is asked of it.
struct Bucket {
    store: AmazonS3,
    folder: Path,
    timeout: Duration,
}

impl Bucket {
    fn open(options: &S3Options) -> Result<Self, S3Error> {
        let backoff = BackoffConfig { init_backoff: BACKOFF[0], max_backoff: BACKOFF[1], base: 2.0 };
        let retry = RetryConfig { backoff, max_retries: RETRIES, retry_timeout: options.timeout };
        let builder = AmazonS3Builder::new()
            .with_region(&options.region)
            .with_bucket_name(&options.bucket)
            .with_access_key_id(&options.access_key_id)
            .with_secret_access_key(&options.secret_access_key)
            .with_virtual_hosted_style_request(!options.path_style)
            // Not every S3 knows how to delete several objects at once.
            .with_disable_bulk_delete(true)
            .with_retry(retry)
            .with_http_connector(Dial::new(options)?);
        let builder = match options.host()? {
            Some(host) => builder.with_endpoint(host),
            None => builder,
        };
        let store = builder.build().map_err(|error| S3Error::Client(error.to_string()))?;
        Ok(Self { store, folder: options.folder()?, timeout: options.timeout })
    }

    /// Returns where a file is, or will be.
    fn key(&self, id: UploadId) -> Path {
        let name = id.to_string();
        let shelf = name[..2].to_owned();
        self.folder.clone().join(shelf).join(name)
    }

    /// Waits for an answer, repetitions included; `bytes` travel with it.
    async fn answer<T>(
        &self,
        bytes: u64,
        asked: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T, BlobError> {
        in_time((self.timeout + travel(bytes)) * PATIENCE, asked).await
    }

    /// Lists the files on one shelf.
    async fn files_before(&self, shard: u8, before_ms: u64) -> Result<Vec<UploadId>, BlobError> {
        let shelf = self.folder.clone().join(format!("{shard:02x}"));
        let old = |object: &ObjectMeta| {
            u64::try_from(object.last_modified.timestamp_millis())
                .is_ok_and(|written_ms| written_ms < before_ms)
        };
        // What lies elsewhere or has another name is not ours.
        let own = |object: ObjectMeta| {
            let id = object.location.filename()?.parse().ok()?;
            (old(&object) && self.key(id) == object.location).then_some(id)
        };
        let listed = self.store.list(Some(&shelf));
        let found = listed.try_filter_map(|object| std::future::ready(Ok(own(object)))).try_collect();
        in_time(COMPLETE + self.timeout, found).await
    }

    /// Tells whether there is an object.
    async fn has(&self, id: UploadId) -> Result<bool, BlobError> {
        let key = self.key(id);
        match self.answer(0, self.store.head(&key)).await {
            Ok(_) => Ok(true),
            Err(BlobError::Missing) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn create(&self, id: UploadId) -> Result<Option<Box<str>>, BlobError> {
        let key = self.key(id);
        let staged = self.answer(0, self.store.create_multipart(&key)).await?;
        Ok(Some(staged.into()))
    }

    async fn put_part(
        &self,
        id: UploadId,
        staged: Option<&str>,
        index: usize,
        payload: PutPayload,
    ) -> Result<Box<str>, BlobError> {
        let (key, staged) = (self.key(id), name_of(staged)?);
        let bytes = payload.content_length() as u64;
        let put = self.answer(bytes, self.store.put_part(&key, &staged, index, payload)).await?;
        Ok(put.content_id.into())
    }

    /// Puts the parts together, unless that was done before, and hashes what was not hashed yet.
    async fn assemble(&self, row: &UploadRow, tags: Vec<Box<str>>) -> Result<Digest, BlobError> {
        let (key, size) = (self.key(row.id), row.upload.received);
        if size == 0 {
            // S3 puts no object together of no parts.
            self.answer(0, self.store.put(&key, PutPayload::new())).await?;
            if let Some(staged) = &row.staged {
                self.abort(row.id, staged).await?;
            }
            return Ok(Digest::hash(&[]));
        }
        match self.complete(row, &key, tags).await {
            // There is no such multipart upload any more: it was put together, or it was given up, which the object
            // tells.
            Ok(()) | Err(BlobError::Missing) => {}
            Err(error) => return Err(error),
        }
        let there = self.answer(0, self.store.head(&key)).await?.size;
        if there != size {
            return Err(BlobError::Failed(format!("the object has {there} bytes, the upload {size}")));
        }
        self.hash_rest(&key, row.running.clone().unwrap_or_default(), size).await
    }

    async fn complete(&self, row: &UploadRow, key: &Path, tags: Vec<Box<str>>) -> Result<(), BlobError> {
        let chunks = match row.upload.form {
            Form::Chunks(plan) => plan.chunks(),
            Form::Stream { .. } => return Err(no_streams()),
        };
        if tags.len() as u64 != chunks {
            let message = format!("{} of {chunks} chunks have a name in S3", tags.len());
            return Err(BlobError::Failed(message));
        }
        let staged = name_of(row.staged.as_deref())?;
        let parts = tags.into_iter().map(|tag| PartId { content_id: tag.into() }).collect();
        let put_together = self.store.complete_multipart(key, &staged, parts);
        in_time(COMPLETE + self.timeout, put_together).await.map(drop)
    }

    /// Hashes an object from where a hash has come to; one that is beyond the end is of other bytes.
    async fn hash_rest(&self, key: &Path, hash: RunningHash, size: u64) -> Result<Digest, BlobError> {
        let mut hash = if hash.through() <= size { hash } else { RunningHash::default() };
        while hash.through() < size {
            let at = hash.through();
            let end = size.min(at + PIECE_BYTES);
            let piece = self.answer(end - at, self.store.get_range(key, at..end)).await?;
            if piece.is_empty() {
                return Err(BlobError::Failed("the object ends early".into()));
            }
            let hashed = tokio::task::spawn_blocking(move || {
                hash.update(&piece);
                hash
            });
            hash = hashed.await.map_err(|error| BlobError::Failed(format!("a thread ended: {error}")))?;
        }
        Ok(hash.digest())
    }

    async fn read(&self, id: UploadId, at: u64, bytes: u64) -> Result<Vec<u8>, BlobError> {
        if bytes == 0 {
            return Ok(Vec::new());
        }
        let key = self.key(id);
        let asked = async {
            match self.store.get_range(&key, at..at.saturating_add(bytes)).await {
                Ok(read) => Ok(read.into()),
                Err(error) if is_behind_the_end(&error) => Ok(Vec::new()),
                Err(error) => Err(error),
            }
        };
        self.answer(bytes, asked).await
    }

    /// Aborts a multipart upload; it may be gone.
    async fn abort(&self, id: UploadId, staged: &str) -> Result<(), BlobError> {
        let (key, staged) = (self.key(id), staged.to_owned());
        gone(self.answer(0, self.store.abort_multipart(&key, &staged)).await)
    }

    /// Removes an object; it may be gone.
    async fn remove(&self, id: UploadId) -> Result<(), BlobError> {
        let key = self.key(id);
        gone(self.answer(0, self.store.delete(&key)).await)
    }
}

/// Waits no longer than a limit.
async fn in_time<T>(
    limit: Duration,
    asked: impl Future<Output = object_store::Result<T>>,
) -> Result<T, BlobError> {
    match tokio::time::timeout(limit, asked).await {
        Ok(answer) => answer.map_err(|error| meaning(&error)),
        Err(_) => Err(BlobError::Failed("S3 gave no answer in time".into())),
    }
}

/// Takes what is not there for what was removed.
fn gone(removed: Result<(), BlobError>) -> Result<(), BlobError> {
    match removed {
        Err(BlobError::Missing) => Ok(()),
        other => other,
    }
}

/// Returns what S3 calls an upload.
fn name_of(staged: Option<&str>) -> Result<String, BlobError> {
    staged.map(str::to_owned).ok_or_else(|| BlobError::Failed("the upload has no name in S3".into()))
}
