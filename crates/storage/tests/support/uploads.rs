//! Uploads as tests open them, and receipts for them.

use std::future::ready;
use std::num::NonZeroU64;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use driftline_engine::{
    ChunkReceipt, Joining, Kept, LeaseKey, LeaseSlot, Leased, Renewed, Store, StreamReceipt, UploadCaps,
    UploadOnce, UploadOpened, UploadRow, UploadTurn,
};
use driftline_idempotency::Fingerprint;
use driftline_model::TenantId;
use driftline_testkit::{Author, World, block_on};
use driftline_uploads::{Digest, Form, Plan, RunningHash, State, Upload, UploadId};

/// Caps that nobody meets.
pub(crate) const PLENTY: UploadCaps = UploadCaps { open_max: u64::MAX, quota_bytes: u64::MAX };

/// When an upload goes that nobody brings on.
pub(crate) const EXPIRES_MS: u64 = World::BEGIN_MS + 3_600_000;

/// Who writes.
pub(crate) const WRITER: u64 = 1;

/// The name of an upload, which begins with its number.
pub(crate) fn id(number: u64) -> UploadId {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    UploadId::of(bytes)
}

pub(crate) fn chunks(size: u64) -> Form {
    Form::Chunks(Plan::new(size, NonZeroU64::new(4).expect("four")))
}

pub(crate) fn stream(size: Option<u64>) -> Form {
    Form::Stream { size }
}

pub(crate) fn row(author: &Author, number: u64, form: Form) -> UploadRow {
    let opened_ms = World::BEGIN_MS;
    let upload = Upload { form, state: State::Open, received: 0, opened_ms, expires_ms: EXPIRES_MS };
    UploadRow {
        id: id(number),
        tenant: author.tenant,
        tenant_id: TenantId::new("acme").expect("a name"),
        owner: author.user.to_string().into(),
        upload,
        reserved: form.size().unwrap_or(0),
        file_name: "a.bin".into(),
        content_type: "text/plain".into(),
        metadata: None,
        announced: None,
        digest: None,
        running: None,
        staged: None,
        record: None,
        joining: Joining::Alone,
        fault: None,
        changed_ms: opened_ms,
    }
}

#[track_caller]
pub(crate) fn open(store: &impl Store, row: &UploadRow) -> UploadId {
    let opened = block_on(store.uploads().open_upload(row.clone(), PLENTY, None));
    assert_eq!(opened, Ok(UploadOpened::Opened));
    row.id
}

pub(crate) fn chunk(id: UploadId, index: u64, bytes: u64) -> ChunkReceipt {
    ChunkReceipt {
        id,
        index,
        bytes,
        digest: Digest::hash(&index.to_le_bytes()),
        tag: None,
        running: None,
        holder: WRITER,
        at_ms: World::BEGIN_MS,
        expires_ms: EXPIRES_MS,
    }
}

pub(crate) fn part(id: UploadId, from: u64, to: u64) -> StreamReceipt {
    StreamReceipt {
        id,
        from,
        to,
        size: None,
        running: None,
        holder: WRITER,
        at_ms: World::BEGIN_MS,
        expires_ms: EXPIRES_MS,
        quota_bytes: u64::MAX,
    }
}

pub(crate) fn turn(id: UploadId, from: State, to: State) -> UploadTurn {
    UploadTurn {
        id,
        from,
        to,
        whole: false,
        overdue: false,
        digest: None,
        fault: None,
        holder: None,
        missing: Vec::new(),
        at_ms: World::BEGIN_MS,
    }
}

/// Takes the right to write at a place.
#[track_caller]
pub(crate) fn take_right(store: &impl Store, id: UploadId, slot: LeaseSlot) {
    let key = LeaseKey { id, slot };
    let leased = block_on(store.uploads().lease(key, WRITER, World::BEGIN_MS, EXPIRES_MS, false));
    assert_eq!(leased, Ok(Leased::Held));
}

/// Takes the rights to the first chunks of an upload.
#[track_caller]
pub(crate) fn take_rights(store: &impl Store, id: UploadId, chunks: u64) {
    (0..chunks).for_each(|index| take_right(store, id, LeaseSlot::Chunk(index)));
}

/// Asks for something that has to wait: it is on its way when this returns.
#[track_caller]
pub(crate) fn begun<'a, T>(asked: impl Future<Output = T> + 'a) -> Pin<Box<dyn Future<Output = T> + 'a>> {
    let mut asked: Pin<Box<dyn Future<Output = T> + 'a>> = Box::pin(asked);
    assert!(asked.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    asked
}

/// Asks for something, which may be done at once; whoever drops it does not wait for the answer.
pub(crate) fn asked<'a, T: 'a>(asked: impl Future<Output = T> + 'a) -> Pin<Box<dyn Future<Output = T> + 'a>> {
    let mut asked: Pin<Box<dyn Future<Output = T> + 'a>> = Box::pin(asked);
    match asked.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(answer) => Box::pin(ready(answer)),
        Poll::Pending => asked,
    }
}

/// Goes through everything that an upload needs on its way, for one in chunks and one as a stream; `number` and the one
/// behind it are new. The first becomes a file and goes again, the other one is given up.
pub(crate) fn carry(store: &impl Store, author: &Author, number: u64) {
    let rows = store.uploads();
    let (id, flow) = (id(number), id(number + 1));
    let once = UploadOnce {
        owner: "user:ada".into(),
        key: format!("upload {number}").into(),
        fingerprint: Fingerprint::builder("test").number(number).finish(),
        window_ms: 1_000_000,
    };
    for opened in [UploadOpened::Opened, UploadOpened::Before(id)] {
        let row = row(author, number, chunks(8));
        assert_eq!(block_on(rows.open_upload(row, PLENTY, Some(once.clone()))), Ok(opened));
    }
    open(store, &row(author, number + 1, stream(None)));
    let key = LeaseKey { id, slot: LeaseSlot::Chunk(0) };
    assert_eq!(block_on(rows.lease(key, 1, 0, 10, true)), Ok(Leased::Held));
    assert_eq!(block_on(rows.renew(key, 1, 5, 20)), Ok(Renewed::Held));
    block_on(rows.release(key, 1)).expect("an answer");
    take_rights(store, id, 2);
    take_right(store, id, LeaseSlot::Finalize);
    take_right(store, flow, LeaseSlot::Stream);
    let mut running = RunningHash::default();
    running.update(b"abcd");
    for (index, received) in
        [(0, Kept::Kept { received: 4 }), (0, Kept::Overtaken), (1, Kept::Kept { received: 8 })]
    {
        let receipt = ChunkReceipt { running: Some(running.clone()), ..chunk(id, index, 4) };
        assert_eq!(block_on(rows.keep_chunk(receipt)), Ok(received));
    }
    for from in [0, 5] {
        let kept = block_on(rows.keep_stream(part(flow, from, from + 5)));
        assert_eq!(kept, Ok(Kept::Kept { received: from + 5 }));
    }
    assert!(block_on(rows.upload(id)).expect("a read").is_some());
    assert!(block_on(rows.chunk(id, 1)).expect("a read").is_some());
    assert_eq!(block_on(rows.chunks(id)).expect("a list").len(), 2);
    assert_eq!(block_on(rows.upload_states(vec![id, flow])).expect("a list").len(), 2);
    assert_eq!(block_on(rows.reserve_upload(flow, 20, u64::MAX)), Ok(true));
    for (id, from, to) in [
        (id, State::Open, State::Finalizing),
        (id, State::Finalizing, State::Open),
        (id, State::Open, State::Finalizing),
        (id, State::Finalizing, State::Done),
        (flow, State::Open, State::Cancelled),
    ] {
        let missing = if to == State::Open { vec![(1, 4)] } else { Vec::new() };
        let holder = (id != flow).then_some(WRITER);
        let turn = UploadTurn { missing, holder, ..turn(id, from, to) };
        assert_eq!(block_on(rows.turn_upload(turn)), Ok(true));
    }
    block_on(rows.upload_told(id)).expect("an answer");
    assert_eq!(block_on(rows.remove_file_row(id)), Ok(true));
    block_on(rows.upload_usage()).expect("a read");
}
