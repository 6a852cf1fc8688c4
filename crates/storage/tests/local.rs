//! How much of uploads on a local disk goes on at once, and what a full disk leaves.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU64;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use driftline_engine::{BlobError, Blobs, Joining, PartPlace, PartSink, Purpose, UploadRow};
use driftline_model::{TenantId, TenantNo};
use driftline_storage::LocalBlobs;
use driftline_testkit::http::PATIENCE;
use driftline_uploads::{
    Bytes, Digest, Durability, Expiry, Form, MemoryShell, Plan, RunningHash, Shell, ShellError, Upload,
    UploadId,
};

const MIB: usize = 1 << 20;
const SHORT: usize = 64 << 10;
const LONG: usize = 256 << 10;

/// Bytes in memory that notes what is written at once, holds whoever writes or reads while its gate is shut, and may be full.
#[derive(Clone, Default)]
struct Gated {
    held: MemoryShell,
    gate: Arc<Gate>,
}

#[derive(Default)]
struct Gate {
    now: Mutex<Now>,
    changed: Condvar,
}

#[derive(Default)]
struct Now {
    shut: bool,
    /// Nothing more fits.
    full: bool,
    /// Who stands at it.
    waiting: usize,
    /// How long the writes of each upload were.
    written: BTreeMap<UploadId, BTreeSet<usize>>,
}

impl Gate {
    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pass(&self) {
        let mut now = self.now();
        now.waiting += 1;
        while now.shut {
            now = self.changed.wait(now).unwrap_or_else(PoisonError::into_inner);
        }
        now.waiting -= 1;
    }

    fn set(&self, shut: bool) {
        self.now().shut = shut;
        self.changed.notify_all();
    }

    /// Waits until as many stand at it, and sees that no more come.
    async fn crowd(&self, wanted: usize) {
        let come = async {
            while self.now().waiting < wanted {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(PATIENCE, come).await.expect("they come");
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(self.now().waiting, wanted, "no more come");
    }
}

impl Shell for Gated {
    type Bytes = GatedBytes;

    fn create(&self, id: &UploadId) -> Result<(), ShellError> {
        self.held.create(id)
    }

    fn stage(&self, id: &UploadId) -> Result<GatedBytes, ShellError> {
        Ok(GatedBytes { id: *id, held: Box::new(self.held.stage(id)?), gate: Arc::clone(&self.gate) })
    }

    fn adopt(&self, from: &UploadId, into: &UploadId) -> Result<(), ShellError> {
        self.held.adopt(from, into)
    }

    fn publish(&self, id: &UploadId, durability: Durability) -> Result<(), ShellError> {
        self.held.publish(id, durability)
    }

    fn file(&self, id: &UploadId) -> Result<GatedBytes, ShellError> {
        Ok(GatedBytes { id: *id, held: Box::new(self.held.file(id)?), gate: Arc::clone(&self.gate) })
    }

    fn discard(&self, id: &UploadId) -> Result<bool, ShellError> {
        self.held.discard(id)
    }

    fn remove(&self, id: &UploadId) -> Result<bool, ShellError> {
        self.held.remove(id)
    }

    fn staged_before(&self, before_ms: u64) -> Result<Vec<UploadId>, ShellError> {
        self.held.staged_before(before_ms)
    }

    fn files_before(&self, shard: u8, before_ms: u64) -> Result<Vec<UploadId>, ShellError> {
        self.held.files_before(shard, before_ms)
    }
}

struct GatedBytes {
    id: UploadId,
    held: Box<<MemoryShell as Shell>::Bytes>,
    gate: Arc<Gate>,
}

impl Bytes for GatedBytes {
    fn write_at(&mut self, at: u64, bytes: &[u8]) -> Result<(), ShellError> {
        self.gate.now().written.entry(self.id).or_default().insert(bytes.len());
        self.gate.pass();
        if self.gate.now().full && at > 0 {
            return Err(ShellError::Full);
        }
        self.held.write_at(at, bytes)
    }

    fn read_at(&self, at: u64, buffer: &mut [u8]) -> Result<usize, ShellError> {
        self.gate.pass();
        self.held.read_at(at, buffer)
    }

    fn set_len(&mut self, len: u64) -> Result<(), ShellError> {
        self.held.set_len(len)
    }

    fn sync(&mut self) -> Result<(), ShellError> {
        self.held.sync()
    }
}

struct Place {
    gate: Arc<Gate>,
    blobs: LocalBlobs<Gated>,
}

fn id(number: u8) -> UploadId {
    UploadId::of([number; 16])
}

impl Place {
    fn new() -> Self {
        let shell = Gated::default();
        Self { gate: Arc::clone(&shell.gate), blobs: LocalBlobs::new(shell, Durability::Fsync, MIB as u64) }
    }

    async fn begin(&self, number: u8) -> Box<dyn PartSink> {
        self.blobs.create(id(number)).await.expect("there is none of this name");
        let place = PartPlace {
            id: id(number),
            staged: None,
            index: Some(0),
            at: 0,
            end: MIB as u64,
            running: None,
            digest: None,
            purpose: Purpose::Write,
        };
        self.blobs.begin(place).await.expect("it is there")
    }

    /// An upload whose only chunk is there.
    async fn whole(&self, number: u8, running: Option<RunningHash>) -> UploadRow {
        let mut sink = self.begin(number).await;
        sink.write(&vec![number; MIB]).await.expect("there is room");
        sink.settle().await.expect("there is room");
        let plan = Plan::new(MIB as u64, NonZeroU64::new(MIB as u64).expect("it is not zero"));
        let mut upload = Upload::open(Form::Chunks(plan), 0, &Expiry::default());
        upload.received = MIB as u64;
        UploadRow {
            id: id(number),
            tenant: TenantNo::new(1),
            tenant_id: TenantId::new("acme").expect("a name"),
            owner: "ada".into(),
            upload,
            reserved: MIB as u64,
            file_name: "a".into(),
            content_type: "text/plain".into(),
            metadata: None,
            announced: None,
            digest: None,
            running,
            staged: None,
            record: None,
            joining: Joining::Alone,
            fault: None,
            changed_ms: 0,
        }
    }
}

/// Brings bytes as a connection does.
async fn bring(sink: &mut Box<dyn PartSink>, bytes: &[u8]) {
    for piece in bytes.chunks(SHORT) {
        sink.write(piece).await.expect("there is room");
    }
}

#[tokio::test]
async fn sixteen_parts_have_long_pieces_and_the_others_short_ones() {
    let place = Place::new();
    let (chunk, mut sinks) = (vec![7; MIB], Vec::new());
    for number in 0..20 {
        let mut sink = place.begin(number).await;
        bring(&mut sink, &chunk).await;
        sinks.push(sink);
    }
    // The first ones end, and the next have their share.
    sinks.drain(..2);
    for number in 20..24 {
        let mut sink = place.begin(number).await;
        bring(&mut sink, &chunk).await;
        sinks.push(sink);
    }
    for sink in &mut sinks {
        sink.settle().await.expect("there is room");
    }
    let now = place.gate.now();
    let long: Vec<bool> = now.written.values().map(|lengths| lengths.contains(&LONG)).collect();
    let wanted: Vec<bool> = (0..24).map(|number| number < 16 || number == 20 || number == 21).collect();
    assert_eq!(long, wanted);
    let most = now.written.values().flatten().max();
    assert_eq!((now.written.len(), most), (24, Some(&LONG)));
    assert!(now.written.values().all(|lengths| lengths.contains(&SHORT)), "each begins with a short one");
}

#[tokio::test]
async fn sixteen_pieces_are_written_at_once() {
    let place = Place::new();
    let mut sinks = Vec::new();
    for number in 0..20 {
        sinks.push(place.begin(number).await);
    }
    place.gate.set(true);
    let writing = sinks.into_iter().map(|mut sink| {
        tokio::spawn(async move {
            sink.write(&vec![7; MIB]).await.expect("there is room");
            sink.settle().await.expect("there is room");
        })
    });
    let writing: Vec<_> = writing.collect();
    place.gate.crowd(16).await;
    place.gate.set(false);
    for task in writing {
        task.await.expect("it is written");
    }
}

#[tokio::test]
async fn a_join_that_does_not_fit_takes_no_room() {
    let place = Place::new();
    for number in 0..2 {
        place.whole(number, None).await;
    }
    let parts = vec![(id(0), MIB as u64), (id(1), MIB as u64)];
    place.gate.now().full = true;
    assert_eq!(place.blobs.join(id(2), id(3), parts.clone()).await, Err(BlobError::Full));
    for gone in [2, 3] {
        assert_eq!(
            place.blobs.read(id(gone), 0, MIB).await,
            Err(BlobError::Missing),
            "what was copied is gone"
        );
    }
    place.gate.now().full = false;
    place.blobs.join(id(2), id(3), parts.clone()).await.expect("there is room by now");
    assert_eq!(place.blobs.read(id(2), MIB as u64, MIB).await, Ok(vec![1; MIB]));
}

#[tokio::test]
async fn four_files_are_read_at_once_and_what_was_hashed_waits_for_none() {
    let place = Arc::new(Place::new());
    let mut rows = Vec::new();
    for number in 0..8 {
        rows.push(place.whole(number, None).await);
    }
    let mut running = RunningHash::default();
    running.update(&vec![8; MIB]);
    let hashed = place.whole(8, Some(running.clone())).await;
    place.gate.set(true);
    let reading = rows.into_iter().enumerate().map(|(number, row)| {
        let place = Arc::clone(&place);
        tokio::spawn(async move {
            if number % 2 == 0 {
                place.blobs.assemble(&row, Vec::new()).await.expect("it is read");
            } else {
                let digest = Digest::hash(&vec![u8::try_from(number).expect("few"); MIB]);
                let damaged = place.blobs.damaged(&row, vec![(0, digest)]).await;
                assert_eq!(damaged, Ok(vec![]));
            }
        })
    });
    let reading: Vec<_> = reading.collect();
    place.gate.crowd(4).await;
    let digest = tokio::time::timeout(PATIENCE, place.blobs.assemble(&hashed, Vec::new())).await;
    assert_eq!(digest.expect("it waits for nobody"), Ok(running.digest()));
    place.gate.set(false);
    for task in reading {
        task.await.expect("it is read");
    }
}
