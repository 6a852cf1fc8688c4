//! Uploads as tests open them, and receipts for them.

use std::num::NonZeroU64;

use driftline_engine::{
    ChunkReceipt, Joining, Store, StreamReceipt, UploadCaps, UploadOpened, UploadRow, UploadTurn,
};
use driftline_model::TenantId;
use driftline_testkit::{Author, World, block_on};
use driftline_uploads::{Digest, Form, Plan, State, Upload, UploadId};

/// Caps that nobody meets.
pub(crate) const PLENTY: UploadCaps = UploadCaps { open_max: u64::MAX, quota_bytes: u64::MAX };

/// When an upload goes that nobody brings on.
pub(crate) const EXPIRES_MS: u64 = World::BEGIN_MS + 3_600_000;

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
        at_ms: World::BEGIN_MS,
        expires_ms: EXPIRES_MS,
        quota_bytes: u64::MAX,
    }
}

pub(crate) fn turn(id: UploadId, from: State, to: State) -> UploadTurn {
    UploadTurn { id, from, to, whole: false, digest: None, fault: None, at_ms: World::BEGIN_MS }
}
