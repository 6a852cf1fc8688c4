//! Bodies that are too long to be held: they are written as they come.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, StatusCode, header};
use bytes::Bytes;
use driftline_engine::{
    ChunkKept, ChunkUpload, Finalized, Identity, Joining, LeaseSlot, NewUpload, Store, StreamUpload,
    Streaming, UploadRight, UploadRow,
};
use driftline_protocol::{ErrorCode, Fault};
use driftline_uploads::{Digest, UploadId};
use http_body_util::BodyExt as _;
use sha1::Digest as _;

use super::{Refused, Right, tus, with_status};
use crate::app::App;
use crate::coding::Coding;

/// How long nothing may come before the right to write is looked at.
const QUIET: Duration = Duration::from_secs(4);

/// How long a request waits for another one to let go of a stream.
const EVICTION: Duration = Duration::from_secs(8);

/// How long whoever is to let go of a stream takes what has come already: it stays, also when nobody has looked at it yet.
const LATE: Duration = Duration::from_millis(50);

/// How long it waits between two looks.
const EVICTION_STEP: Duration = Duration::from_millis(25);

/// What comes of a body.
enum Coming {
    /// Bytes.
    Bytes(Bytes),
    /// Nothing for a while.
    Nothing,
    /// All came.
    End,
    /// Nothing for too long.
    Late,
    /// The connection broke.
    Broken,
}

/// A body that comes frame by frame.
struct Frames {
    body: Body,
    idle: Duration,
    quiet: Duration,
}

impl Frames {
    fn new<S: Store>(app: &App<S>, body: Body) -> Self {
        Self { body, idle: Duration::from_millis(app.engine().limits().body_frame_ms), quiet: Duration::ZERO }
    }

    async fn next(&mut self) -> Coming {
        loop {
            let wait = QUIET.min(self.idle.saturating_sub(self.quiet));
            match tokio::time::timeout(wait, self.body.frame()).await {
                Err(_) => {
                    self.quiet += wait;
                    return if self.quiet >= self.idle { Coming::Late } else { Coming::Nothing };
                }
                Ok(None) => return Coming::End,
                Ok(Some(Err(_))) => return Coming::Broken,
                Ok(Some(Ok(frame))) => {
                    self.quiet = Duration::ZERO;
                    if let Ok(bytes) = frame.into_data() {
                        return Coming::Bytes(bytes);
                    }
                }
            }
        }
    }
}

fn late() -> Fault {
    Fault::new(ErrorCode::HeartbeatTimeout, "the body did not come in time")
}

fn broken() -> Fault {
    Fault::new(ErrorCode::UploadIncomplete, "the body broke off")
}

/// How many bytes a request says it brings.
///
/// # Errors
/// `UNSUPPORTED_MEDIA_TYPE` for bytes that are compressed: they are not what they are said to be.
pub(super) fn told_bytes(headers: &HeaderMap) -> Result<Option<u64>, Fault> {
    if Coding::of_headers(headers)?.is_some() {
        return Err(Fault::new(ErrorCode::UnsupportedMediaType, "parts of files are sent as they are"));
    }
    let told = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    Ok(told.and_then(|text| text.parse().ok()))
}

/// Runs something to its end, whether or not the client waits for it; a shutdown waits.
pub(crate) async fn to_its_end<S: Store, T: Send + 'static>(
    app: &Arc<App<S>>,
    task: impl Future<Output = T> + Send + 'static,
) -> Result<T, Fault> {
    let alive = app.alive();
    let task = tokio::spawn(async move {
        let done = task.await;
        drop(alive);
        done
    });
    task.await.map_err(|_| Fault::new(ErrorCode::HandlerError, "the request failed"))
}

/// Finalizes an upload, and holds the right to it as long as that takes.
///
/// It is not to be dropped.
pub(crate) async fn finalize<S: Store>(
    app: &App<S>,
    right: UploadRight<'_>,
    id: UploadId,
    claimed: Option<Digest>,
) -> Result<Finalized, Fault> {
    let holder = app.holder();
    let now = || app.now_ms();
    let finalizing = app.engine().finalize_upload(right, id, claimed, (&now, holder));
    let hold = || app.engine().hold_right(id, LeaseSlot::Finalize, (app.now_ms(), holder));
    let finalized = beside(finalizing, hold).await;
    // Whoever finalizes a concatenation, its parts go then: who asked for it may be gone.
    if let Ok(Finalized::Done(row)) = &finalized
        && row.joining == Joining::Whole
    {
        app.engine().give_up_parts(row, &tus::parts_of(app, row), app.now_ms()).await;
    }
    finalized
}

/// Joins parts, and holds the right to it as long as that takes.
///
/// It is not to be dropped.
pub(super) async fn join<S: Store>(
    app: &App<S>,
    identity: &Identity,
    new: NewUpload,
    parts: &[UploadId],
) -> Result<UploadRow, Fault> {
    let holder = app.holder();
    let now = || app.now_ms();
    let joining = app.engine().join_uploads(identity, new, parts, (&now, holder));
    beside(joining, || app.engine().hold_joining(identity, parts, (app.now_ms(), holder))).await
}

/// Does something that takes long, and holds on to the right to do it meanwhile.
async fn beside<T, H: Future<Output = Result<(), Fault>>>(
    work: impl Future<Output = T>,
    mut hold: impl FnMut() -> H,
) -> T {
    let mut work = std::pin::pin!(work);
    loop {
        if let Ok(done) = tokio::time::timeout(QUIET, work.as_mut()).await {
            return done;
        }
        // Where the right is lost, what comes of the work is refused.
        if let Err(fault) = hold().await {
            tracing::debug!(error = fault.message, "a right of an upload is not held on to");
        }
    }
}

/// A chunk that a request brings.
pub(super) struct ChunkRequest {
    pub(super) id: UploadId,
    pub(super) index: u64,
    pub(super) told_bytes: Option<u64>,
    pub(super) digest: Digest,
}

/// Receives a chunk.
pub(super) async fn chunk<S: Store>(
    app: &App<S>,
    right: &Right,
    wanted: ChunkRequest,
    body: Body,
) -> Result<ChunkKept, Fault> {
    let ChunkRequest { id, index, told_bytes, digest } = wanted;
    let holder = app.holder();
    let now = (app.now_ms(), holder);
    let mut chunk = app.engine().begin_chunk(right.by(), (id, index), told_bytes, digest, now).await?;
    match fill(app, &mut chunk, Frames::new(app, body)).await {
        Ok(()) => {
            let slot = LeaseSlot::Chunk(index);
            let hold = || app.engine().hold_right(id, slot, (app.now_ms(), holder));
            beside(app.engine().finish_chunk(chunk, app.now_ms()), hold).await
        }
        Err(fault) => {
            app.engine().give_up_chunk(chunk).await;
            Err(fault)
        }
    }
}

async fn fill<S: Store>(app: &App<S>, chunk: &mut ChunkUpload, mut coming: Frames) -> Result<(), Fault> {
    loop {
        match coming.next().await {
            Coming::Bytes(bytes) => app.engine().write_chunk(chunk, &bytes, app.now_ms()).await?,
            Coming::Nothing => app.engine().hold_chunk(chunk, app.now_ms()).await?,
            Coming::End => return Ok(()),
            Coming::Late => return Err(late()),
            Coming::Broken => return Err(broken()),
        }
    }
}

/// More of a stream that a request brings.
pub(super) struct StreamRequest {
    pub(super) id: UploadId,
    pub(super) offset: u64,
    pub(super) told_bytes: Option<u64>,
    /// The file's size, if the client tells it now.
    pub(super) size: Option<u64>,
    pub(super) checksum: Option<Checksum>,
}

/// What the bytes of a request have to add up to.
pub(super) enum Checksum {
    Sha1(Vec<u8>, sha1::Sha1),
    Sha256(Vec<u8>, Box<driftline_uploads::RunningHash>),
}

impl Checksum {
    /// The algorithms, as `Tus-Checksum-Algorithm` names them.
    pub(super) const NAMES: &'static str = "sha1,sha256";

    /// Begins to add up, if the algorithm is known.
    pub(super) fn new(name: &str, wanted: Vec<u8>) -> Option<Self> {
        match name {
            "sha1" => Some(Self::Sha1(wanted, sha1::Sha1::new())),
            "sha256" => Some(Self::Sha256(wanted, Box::default())),
            _ => None,
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha1(_, sha1) => sha1.update(bytes),
            Self::Sha256(_, sha256) => sha256.update(bytes),
        }
    }

    fn fits(&self) -> bool {
        match self {
            Self::Sha1(wanted, sha1) => sha1.clone().finalize()[..] == wanted[..],
            Self::Sha256(wanted, sha256) => sha256.digest().as_bytes()[..] == wanted[..],
        }
    }
}

/// The status of bytes that do not add up to their checksum, as tus 1.0 has it.
pub(super) const CHECKSUM_MISMATCH: u16 = 460;

/// Goes on with a stream. What came of a request without a checksum is kept, however it ends.
pub(super) async fn stream<S: Store>(
    app: &Arc<App<S>>,
    right: &Right,
    wanted: StreamRequest,
    body: Body,
) -> Result<UploadRow, Refused> {
    let StreamRequest { id, offset, told_bytes, size, mut checksum } = wanted;
    let holder = app.holder();
    let begun = async {
        app.engine()
            .begin_stream(
                right.by(),
                (id, offset),
                (told_bytes, size),
                checksum.is_some(),
                (app.now_ms(), holder),
            )
            .await
    };
    let mut stream = match begun.await? {
        Streaming::Begun(stream) => stream,
        Streaming::Busy => loop {
            wait_for_quiet(app, id).await?;
            let again = app.engine().begin_stream(
                right.by(),
                (id, offset),
                (told_bytes, size),
                checksum.is_some(),
                (app.now_ms(), holder),
            );
            if let Streaming::Begun(stream) = again.await? {
                break stream;
            }
        },
    };
    let came = take(app, &mut stream, Frames::new(app, body), checksum.as_mut()).await;
    let checked = match (&came, &checksum) {
        (Ok(()), Some(checksum)) if !checksum.fits() => Err(mismatch()),
        // What did not come whole cannot be judged.
        (Err(fault), Some(_)) => Err(Refused::from(fault.clone())),
        _ => Ok(()),
    };
    if let Err(refusal) = checked {
        app.engine().give_up_stream(*stream).await;
        return Err(refusal);
    }
    let hold = || app.engine().hold_right(id, LeaseSlot::Stream, (app.now_ms(), holder));
    let kept = beside(app.engine().finish_stream(*stream, app.now_ms()), hold).await;
    // Why the stream ended matters more than that nothing more was kept of it.
    came.map_err(Refused::from).and(kept.map_err(Refused::from))
}

fn mismatch() -> Refused {
    let fault = Fault::new(ErrorCode::DigestMismatch, "the bytes do not add up to the checksum");
    let mut refusal = Refused::from(fault);
    refusal.status = Some(CHECKSUM_MISMATCH);
    refusal
}

/// Takes what comes until it ends or another request wants the stream.
async fn take<S: Store>(
    app: &App<S>,
    stream: &mut StreamUpload,
    mut coming: Frames,
    mut checksum: Option<&mut Checksum>,
) -> Result<(), Fault> {
    let wanted = stream.wanted();
    let wanted = async {
        match wanted {
            // Its other end goes when the stream is finished, which is after this.
            Some(wanted) => drop(wanted.await),
            None => std::future::pending().await,
        }
    };
    // It begins when another request wants the stream.
    let mut ending = std::pin::pin!(async {
        wanted.await;
        tokio::time::sleep(LATE).await;
    });
    loop {
        let came = tokio::select! {
            biased;
            () = &mut ending => {
                let message = "another request goes on with the upload";
                return Err(Fault::new(ErrorCode::IdempotencyInProgress, message));
            }
            came = coming.next() => came,
        };
        match came {
            Coming::Bytes(bytes) => {
                app.engine().write_stream(stream, &bytes, app.now_ms()).await?;
                if let Some(checksum) = &mut checksum {
                    checksum.update(&bytes);
                }
            }
            Coming::End => return Ok(()),
            Coming::Nothing => app.engine().hold_stream(stream, app.now_ms()).await?,
            Coming::Late => return Err(late()),
            Coming::Broken => return Err(broken()),
        }
    }
}

/// Waits until no other request is at a stream, which was asked to let go.
///
/// # Errors
/// The status 423 when it does not in time.
pub(super) async fn wait_for_quiet<S: Store>(app: &Arc<App<S>>, id: UploadId) -> Result<(), Refused> {
    let holder = app.holder();
    // Whoever takes the right to look gives it back, also when nobody waits for it any more.
    let look = || {
        let task = Arc::clone(app);
        to_its_end(app, async move { task.engine().quiet_stream(id, (task.now_ms(), holder)).await })
    };
    let quiet = async {
        while !look().await?? {
            tokio::time::sleep(EVICTION_STEP).await;
        }
        Ok::<(), Fault>(())
    };
    match tokio::time::timeout(EVICTION, quiet).await {
        Ok(quiet) => quiet.map_err(Refused::from),
        Err(_) => {
            let fault = Fault::new(ErrorCode::IdempotencyInProgress, "another request is at the upload");
            Err(with_status(fault, StatusCode::LOCKED))
        }
    }
}
