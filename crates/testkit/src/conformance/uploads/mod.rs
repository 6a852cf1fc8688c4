//! The rows of uploads.

pub(super) mod concurrency;
pub(super) mod fence;
pub(super) mod leases;
pub(super) mod lists;
pub(super) mod opening;
pub(super) mod receipts;
pub(super) mod reserve;
pub(super) mod turns;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::num::NonZeroU64;

use driftline_engine::{
    ChunkReceipt, Joining, Kept, LeaseKey, LeaseSlot, Leased, Store, StreamReceipt, UploadCaps, UploadOnce,
    UploadOpened, UploadRow, UploadRows, UploadTurn,
};
use driftline_model::{TenantId, TenantNo};
use driftline_uploads::{Digest, Form, Plan, RunningHash, State, Upload, UploadId};

use super::Bed;
use crate::wait::block_on;
use crate::world::World;

/// Caps that nobody meets.
const PLENTY: UploadCaps = UploadCaps { open_max: u64::MAX, quota_bytes: QUOTA };
const QUOTA: u64 = 1 << 40;

const HOUR_MS: u64 = 3_600_000;

/// Who writes where it does not matter who does.
const WRITER: u64 = 1;

/// When things happen: so many milliseconds after the beginning.
fn at(ms: u64) -> u64 {
    World::BEGIN_MS + ms
}

fn id_of(number: u64) -> UploadId {
    let mut bytes = [0x5a; 16];
    // The low byte first, so that the order of names is not that of their numbers.
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    UploadId::of(bytes)
}

fn chunks(size: u64) -> Form {
    Form::Chunks(Plan::new(size, NonZeroU64::new(4).expect("four")))
}

fn stream(size: Option<u64>) -> Form {
    Form::Stream { size }
}

/// Hashes so many bytes, all of them the same.
fn running(bytes: usize) -> RunningHash {
    let mut running = RunningHash::default();
    running.update(&vec![7; bytes]);
    running
}

fn chunk(id: UploadId, index: u64, bytes: u64) -> ChunkReceipt {
    ChunkReceipt {
        id,
        index,
        bytes,
        digest: Digest::hash(&index.to_le_bytes()),
        tag: None,
        running: None,
        holder: WRITER,
        at_ms: at(1),
        expires_ms: at(HOUR_MS),
    }
}

fn part(id: UploadId, from: u64, to: u64) -> StreamReceipt {
    StreamReceipt {
        id,
        from,
        to,
        size: None,
        running: None,
        holder: WRITER,
        at_ms: at(1),
        expires_ms: at(HOUR_MS),
        quota_bytes: QUOTA,
    }
}

fn turn(id: UploadId, from: State, to: State) -> UploadTurn {
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
        at_ms: at(2),
    }
}

/// Takes a right for an hour, unless somebody else has it.
fn take_right(rows: &dyn UploadRows, id: UploadId, slot: LeaseSlot, holder: u64) -> Leased {
    block_on(rows.lease(LeaseKey { id, slot }, holder, at(0), at(HOUR_MS), false)).expect("an answer")
}

/// Writes a receipt down for somebody who takes the right to it.
fn keep_chunk(rows: &dyn UploadRows, receipt: ChunkReceipt) -> Kept {
    take_right(rows, receipt.id, LeaseSlot::Chunk(receipt.index), receipt.holder);
    block_on(rows.keep_chunk(receipt)).expect("an answer")
}

/// As [`keep_chunk`].
fn keep_stream(rows: &dyn UploadRows, receipt: StreamReceipt) -> Kept {
    take_right(rows, receipt.id, LeaseSlot::Stream, receipt.holder);
    block_on(rows.keep_stream(receipt)).expect("an answer")
}

/// Everything of a row as text, with what its running hash comes to.
fn shown(row: &UploadRow) -> String {
    format!("{row:?} {:?}", row.running.as_ref().map(RunningHash::digest))
}

/// Uploads of two tenants. After every change it is checked that what is kept of their sums is what their rows say.
struct Yard<'a, S> {
    bed: &'a Bed<S>,
    acme: TenantNo,
    other: TenantNo,
    ids: RefCell<BTreeSet<UploadId>>,
}

impl<'a, S: Store> Yard<'a, S> {
    fn new(bed: &'a Bed<S>) -> Self {
        let tenant =
            |name| block_on(bed.store.tenant(&TenantId::new(name).expect("a name"))).expect("a tenant");
        Self { bed, acme: tenant("acme"), other: tenant("other"), ids: RefCell::default() }
    }

    fn rows(&self) -> &'a dyn UploadRows {
        self.bed.store.uploads()
    }

    /// Makes the row of an upload that ada opens at the beginning.
    fn row(&self, number: u64, form: Form) -> UploadRow {
        let upload =
            Upload { form, state: State::Open, received: 0, opened_ms: at(0), expires_ms: at(HOUR_MS) };
        UploadRow {
            id: id_of(number),
            tenant: self.acme,
            tenant_id: TenantId::new("acme").expect("a name"),
            owner: "ada".into(),
            upload,
            reserved: form.size().unwrap_or(0),
            file_name: "a.bin".into(),
            content_type: "application/octet-stream".into(),
            metadata: None,
            announced: None,
            digest: None,
            running: None,
            staged: None,
            record: None,
            joining: Joining::Alone,
            fault: None,
            changed_ms: at(0),
        }
    }

    fn open_with(&self, row: &UploadRow, caps: UploadCaps, once: Option<UploadOnce>) -> UploadOpened {
        let opened = block_on(self.rows().open_upload(row.clone(), caps, once)).expect("an answer");
        if opened == UploadOpened::Opened {
            self.ids.borrow_mut().insert(row.id);
        }
        self.check_sums();
        opened
    }

    #[track_caller]
    fn open_row(&self, row: &UploadRow) -> UploadId {
        assert_eq!(self.open_with(row, PLENTY, None), UploadOpened::Opened);
        row.id
    }

    #[track_caller]
    fn open(&self, number: u64, form: Form) -> UploadId {
        self.open_row(&self.row(number, form))
    }

    fn find(&self, id: UploadId) -> Option<UploadRow> {
        block_on(self.rows().upload(id)).expect("a read")
    }

    #[track_caller]
    fn read(&self, id: UploadId) -> UploadRow {
        self.find(id).expect("it is there")
    }

    fn keep(&self, receipt: ChunkReceipt) -> Kept {
        let kept = keep_chunk(self.rows(), receipt);
        self.check_sums();
        kept
    }

    fn go_on(&self, receipt: StreamReceipt) -> Kept {
        let kept = keep_stream(self.rows(), receipt);
        self.check_sums();
        kept
    }

    fn turn(&self, turn: UploadTurn) -> bool {
        let turned = block_on(self.rows().turn_upload(turn)).expect("an answer");
        self.check_sums();
        turned
    }

    /// Brings an open upload into a state, by way of others where it must.
    #[track_caller]
    fn bring(&self, id: UploadId, to: State) {
        match to {
            State::Open => {}
            State::Done => {
                assert!(self.turn(turn(id, State::Open, State::Finalizing)));
                assert!(self.turn(turn(id, State::Finalizing, State::Done)));
            }
            State::Finalizing | State::Cancelled | State::Expired => {
                assert!(self.turn(turn(id, State::Open, to)));
            }
        }
    }

    fn received(&self, id: UploadId) -> Vec<u64> {
        let chunks = block_on(self.rows().chunks(id)).expect("a list");
        chunks.into_iter().map(|chunk| chunk.index).collect()
    }

    /// Asks what a tenant's uploads and files take, by asking for more than its quota has.
    fn used(&self, tenant: TenantNo) -> u64 {
        let row = UploadRow { tenant, reserved: QUOTA + 1, ..self.row(u64::MAX, stream(None)) };
        match block_on(self.rows().open_upload(row, PLENTY, None)).expect("an answer") {
            UploadOpened::NoRoom { left_bytes } => QUOTA - left_bytes,
            opened => panic!("{opened:?}"),
        }
    }

    #[track_caller]
    fn check_sums(&self) {
        let rows: Vec<UploadRow> = self.ids.borrow().iter().filter_map(|id| self.find(*id)).collect();
        let reserved =
            |tenant| -> u64 { rows.iter().filter(|row| row.tenant == tenant).map(|row| row.reserved).sum() };
        let wanted = (reserved(self.acme), reserved(self.other));
        assert_eq!((self.used(self.acme), self.used(self.other)), wanted);
        let live = |row: &&UploadRow| matches!(row.upload.state, State::Open | State::Finalizing);
        let usage = block_on(self.rows().upload_usage()).expect("a read");
        assert_eq!((usage.open, usage.bytes), (rows.iter().filter(live).count() as u64, wanted.0 + wanted.1));
    }
}

pub(super) fn uploads_are_still_there<S: Store>(world: World, open: &impl Fn(&World) -> S) {
    let bed = Bed::new(world, open);
    let yard = Yard::new(&bed);
    let (half, file, gone) = (yard.open(1, chunks(10)), yard.open(2, chunks(8)), yard.open(3, stream(None)));
    yard.keep(ChunkReceipt { running: Some(running(4)), tag: Some("t".into()), ..chunk(half, 0, 4) });
    yard.keep(chunk(half, 2, 2));
    yard.go_on(part(gone, 0, 7));
    yard.bring(file, State::Done);
    yard.bring(gone, State::Cancelled);
    let seen = |yard: &Yard<'_, S>| {
        let rows = [half, file, gone].map(|id| shown(&yard.read(id)));
        let chunks = block_on(yard.rows().chunks(half)).expect("a list");
        (rows, chunks, yard.used(yard.acme), block_on(yard.rows().upload_usage()).expect("a read"))
    };
    let before = seen(&yard);
    assert_eq!((before.1.len(), before.2), (2, 18));
    let Bed { store, world } = bed;
    drop(store);
    let bed = Bed::new(world, open);
    assert_eq!(seen(&Yard::new(&bed)), before);
}
