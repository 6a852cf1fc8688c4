//! What happens for every chunk of an upload: decisions, hashes, the part map, and bytes that are written where they stay.

use std::fs;
use std::num::NonZeroU64;
use std::path::PathBuf;

use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use driftline_uploads::{
    Digest, Disk, Durability, Expiry, Form, MemoryShell, PartWriter, Plan, Ranges, RunningHash, Shell,
    Upload, UploadId, file_name, hash_rest, meet, rehash,
};

#[global_allocator]
static ALLOCATED: divan::AllocProfiler = divan::AllocProfiler::system();

fn main() {
    divan::main();
}

const MIB: usize = 1 << 20;
const CHUNK_BYTES: NonZeroU64 = NonZeroU64::new(MIB as u64).expect("a mebibyte");
const CHUNKS: u64 = 10_000;
const NOW_MS: u64 = 1_000_000;

fn chunk() -> Vec<u8> {
    (0..=u8::MAX).cycle().take(MIB).collect()
}

fn hashed(bytes: usize) -> RunningHash {
    let mut running = RunningHash::default();
    running.update(&vec![7; bytes]);
    running
}

/// A chunk of 1 MiB: its digest, the hash of the file, and both.
mod hash {
    use super::*;

    fn run(bencher: Bencher<'_, '_>, mut hash: impl FnMut(&[u8])) {
        let chunk = chunk();
        bencher.counter(BytesCount::new(MIB)).bench_local(|| hash(black_box(&chunk)));
    }

    #[divan::bench]
    fn digest(bencher: Bencher<'_, '_>) {
        run(bencher, |chunk| {
            black_box(Digest::hash(chunk));
        });
    }

    #[divan::bench]
    fn running(bencher: Bencher<'_, '_>) {
        let mut running = RunningHash::default();
        run(bencher, |chunk| running.update(chunk));
    }

    #[divan::bench]
    fn both(bencher: Bencher<'_, '_>) {
        let mut running = RunningHash::default();
        run(bencher, |chunk| {
            running.update(chunk);
            black_box(Digest::hash(chunk));
        });
    }

    /// As a row has it between two chunks: taken back, gone on with, and put away.
    #[divan::bench]
    fn running_from_row_to_row(bencher: Bencher<'_, '_>) {
        let mut row = RunningHash::default().put_away();
        run(bencher, |chunk| {
            let mut running = RunningHash::resume(&row).expect("it was put away");
            running.update(chunk);
            row = running.put_away();
        });
    }
}

/// The state of a hash that has bytes behind its last block.
mod state {
    use super::*;

    #[divan::bench]
    fn put_away(bencher: Bencher<'_, '_>) {
        let running = hashed(MIB + 37);
        bencher.bench(|| black_box(&running).put_away());
    }

    #[divan::bench]
    fn take_back(bencher: Bencher<'_, '_>) {
        let state = hashed(MIB + 37).put_away();
        bencher.bench(|| RunningHash::resume(black_box(&state)));
    }

    #[divan::bench]
    fn digest(bencher: Bencher<'_, '_>) {
        let running = hashed(MIB + 37);
        bencher.bench(|| black_box(&running).digest());
    }
}

/// What may happen to an upload.
mod decision {
    use super::*;

    fn open(form: Form) -> Upload {
        Upload::open(form, NOW_MS, &Expiry::default())
    }

    #[divan::bench(args = [1 << 20, 10 << 30, 1 << 50])]
    fn plan(bencher: Bencher<'_, '_>, bytes: u64) {
        bencher.bench(|| Plan::choose(black_box(bytes), black_box(CHUNK_BYTES)));
    }

    #[divan::bench]
    fn admit_chunk(bencher: Bencher<'_, '_>) {
        let upload = open(Form::Chunks(Plan::new(CHUNKS << 20, CHUNK_BYTES)));
        bencher.bench(|| black_box(&upload).admit_chunk(black_box(4_711), Some(1 << 20), NOW_MS));
    }

    #[divan::bench]
    fn admit_append(bencher: Bencher<'_, '_>) {
        let upload = Upload { received: 4_711, ..open(Form::Stream { size: Some(CHUNKS << 20) }) };
        bencher.bench(|| black_box(&upload).admit_append(black_box(4_711), Some(1 << 20), NOW_MS));
    }

    #[divan::bench]
    fn meet_again(bencher: Bencher<'_, '_>) {
        let digest = Digest::hash(b"a chunk");
        bencher.bench(|| meet(black_box(Some(digest)), black_box(digest)));
    }

    #[divan::bench]
    fn expires(bencher: Bencher<'_, '_>) {
        let expiry = Expiry::default();
        bencher.bench(|| black_box(&expiry).expires_ms(NOW_MS, black_box(NOW_MS)));
    }

    #[divan::bench]
    fn name(bencher: Bencher<'_, '_>) {
        let told = "C:\\Users\\ada\\Bilder\\Stra\u{df}e im Fru\u{308}hling 2026-04-17.jpeg";
        bencher.bench(|| file_name(black_box(told)));
    }
}

/// The part map of 10,000 chunks.
mod ranges {
    use super::*;

    /// The same order each time, in which hardly any chunk follows the one before it.
    fn shuffled() -> Vec<u64> {
        let mut chunks: Vec<u64> = (0..CHUNKS).collect();
        chunks.sort_by_cached_key(|chunk| *Digest::hash(&chunk.to_le_bytes()).as_bytes());
        chunks
    }

    fn from(bencher: Bencher<'_, '_>, chunks: &[u64]) {
        let made = || black_box(chunks).iter().copied().collect::<Ranges>();
        bencher.counter(ItemsCount::new(chunks.len())).bench(made);
    }

    #[divan::bench]
    fn from_all_in_order(bencher: Bencher<'_, '_>) {
        from(bencher, &(0..CHUNKS).collect::<Vec<_>>());
    }

    #[divan::bench]
    fn from_all_in_random_order(bencher: Bencher<'_, '_>) {
        from(bencher, &shuffled());
    }

    #[divan::bench]
    fn from_half_in_random_order(bencher: Bencher<'_, '_>) {
        from(bencher, &shuffled()[..5_000]);
    }

    fn gaps(bencher: Bencher<'_, '_>, ranges: &Ranges, most: usize) {
        bencher.bench(|| black_box(ranges).missing(CHUNKS, most));
    }

    #[divan::bench(args = [100, 10_000])]
    fn gaps_of_half(bencher: Bencher<'_, '_>, most: usize) {
        gaps(bencher, &shuffled()[..5_000].iter().copied().collect(), most);
    }

    /// The most gaps that there can be: every second chunk is missing.
    #[divan::bench(args = [100, 10_000])]
    fn gaps_between_all(bencher: Bencher<'_, '_>, most: usize) {
        gaps(bencher, &(0..CHUNKS).step_by(2).collect(), most);
    }
}

/// A folder on the disk of the system's temporary files, which goes with the bench.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("driftline-bench-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).expect("a folder");
        Self(path)
    }

    fn disk(&self) -> Disk {
        Disk::open(&self.0).expect("a disk")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left of it is the system's to remove.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// All of them begin with the same byte, and so their files lie in one folder.
fn id(number: u64) -> UploadId {
    UploadId::of(u128::from(number).to_be_bytes())
}

fn write(shell: &impl Shell, id: &UploadId, chunk: &[u8]) {
    shell.create(id).expect("a new upload");
    let mut writer = PartWriter::new(shell.stage(id).expect("it is staged"), 0, chunk.len() as u64, None);
    writer.write(chunk).expect("there is room");
}

/// Chunks of 1 MiB that are written while they are hashed, one after the other into an upload of 64, and then over them.
mod part {
    use super::*;

    const PARTS: u64 = 64;

    fn run(bencher: Bencher<'_, '_>, shell: &impl Shell, durability: Durability) {
        let (id, chunk) = (id(0), chunk());
        shell.create(&id).expect("a new upload");
        let mut index = 0;
        bencher.counter(BytesCount::new(MIB)).bench_local(|| {
            let at = index % PARTS * chunk.len() as u64;
            let bytes = shell.stage(&id).expect("it is staged");
            let mut writer = PartWriter::new(bytes, at, at + chunk.len() as u64, None).with_digest();
            // As it comes from a connection.
            for piece in chunk.chunks(64 << 10) {
                writer.write(piece).expect("there is room");
            }
            writer.settle(durability).expect("it is on the disk");
            index += 1;
            writer.digest()
        });
    }

    #[divan::bench]
    fn in_memory(bencher: Bencher<'_, '_>) {
        run(bencher, &MemoryShell::default(), Durability::Os);
    }

    #[divan::bench]
    fn on_disk(bencher: Bencher<'_, '_>) {
        run(bencher, &Folder::new("part").disk(), Durability::Os);
    }

    #[divan::bench]
    fn on_disk_synced(bencher: Bencher<'_, '_>) {
        run(bencher, &Folder::new("part-synced").disk(), Durability::Fsync);
    }
}

/// A staged chunk of 1 MiB that becomes a file; what was written is on the disk before.
mod publish {
    use super::*;

    fn run(bencher: Bencher<'_, '_>, name: &str, durability: Durability) {
        let folder = Folder::new(name);
        let (disk, chunk) = (folder.disk(), chunk());
        // The folder of the files is made once.
        fs::create_dir(folder.0.join("files/00")).expect("a folder");
        let mut number = 0;
        let staged = || {
            number += 1;
            write(&disk, &id(number), &chunk);
            let mut writer = PartWriter::new(disk.stage(&id(number)).expect("it is staged"), 0, 0, None);
            writer.settle(Durability::Fsync).expect("it is on the disk");
            id(number)
        };
        bencher
            .with_inputs(staged)
            .bench_local_values(|id| disk.publish(&id, durability).expect("it is published"));
    }

    #[divan::bench(max_time = 5)]
    fn os(bencher: Bencher<'_, '_>) {
        run(bencher, "publish", Durability::Os);
    }

    #[divan::bench(max_time = 5)]
    fn synced(bencher: Bencher<'_, '_>) {
        run(bencher, "publish-synced", Durability::Fsync);
    }
}

/// A file of 64 chunks that is read again, from the cache of the system.
mod read {
    use super::*;

    const FILE_BYTES: usize = 64 * MIB;

    fn staged(folder: &Folder) -> (Disk, Vec<u8>) {
        let (disk, file) = (folder.disk(), chunk().repeat(64));
        write(&disk, &id(0), &file);
        (disk, file)
    }

    #[divan::bench(max_time = 5)]
    fn hash_of_the_whole(bencher: Bencher<'_, '_>) {
        let folder = Folder::new("whole");
        let bytes = staged(&folder).0.stage(&id(0)).expect("it is staged");
        bencher
            .counter(BytesCount::new(FILE_BYTES))
            .bench_local(|| hash_rest(&bytes, RunningHash::default(), FILE_BYTES as u64));
    }

    #[divan::bench(max_time = 5)]
    fn digests_of_the_chunks(bencher: Bencher<'_, '_>) {
        let folder = Folder::new("chunks");
        let (disk, file) = staged(&folder);
        let bytes = disk.stage(&id(0)).expect("it is staged");
        let plan = Plan::new(FILE_BYTES as u64, CHUNK_BYTES);
        let digests: Vec<_> = (0..).zip(file.chunks(MIB).map(Digest::hash)).collect();
        bencher
            .counter(BytesCount::new(FILE_BYTES))
            .bench_local(|| rehash(&bytes, &plan, digests.iter().copied()));
    }
}

/// Names in a folder of so many files.
#[divan::bench(args = [100, 10_000])]
fn files_before(bencher: Bencher<'_, '_>, files: u64) {
    let folder = Folder::new(&format!("files-{files}"));
    let disk = folder.disk();
    let shard = folder.0.join("files/00");
    fs::create_dir(&shard).expect("a folder");
    for number in 0..files {
        fs::write(shard.join(id(number).to_string()), b"").expect("a file");
    }
    bencher.counter(ItemsCount::new(files)).bench(|| disk.files_before(0, black_box(u64::MAX)));
}
