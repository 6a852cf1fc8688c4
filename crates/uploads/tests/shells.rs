//! What holds on a disk as in memory.
#![allow(clippy::unwrap_used, reason = "what cannot go on fails the test")]

use std::num::NonZeroU64;

use driftline_uploads::{
    Bytes, Digest, Durability, MemoryShell, PartError, PartWriter, Plan, Shell, ShellError, UploadId, rehash,
};

mod support;

use support::Folder;

const ID: UploadId = UploadId::of([0xab; 16]);
const OTHER: UploadId = UploadId::of([0xcd; 16]);

fn staged<S: Shell>(shell: &S, id: &UploadId, bytes: &[u8]) -> S::Bytes {
    shell.create(id).unwrap();
    let mut staged = shell.stage(id).unwrap();
    staged.write_at(0, bytes).unwrap();
    staged
}

fn read(bytes: &impl Bytes) -> Vec<u8> {
    let mut buffer = vec![0; 1 << 20];
    let len = bytes.read_at(0, &mut buffer).unwrap();
    buffer[..len].into()
}

fn cutting(shell: &impl Shell) {
    let mut bytes = staged(shell, &ID, b"0123456789");
    for (len, left) in
        [(u64::MAX, &b"0123456789"[..]), (11, b"0123456789"), (10, b"0123456789"), (4, b"0123"), (7, b"0123")]
    {
        bytes.set_len(len).unwrap();
        assert_eq!(read(&bytes), left, "cut to {len}");
    }
    bytes.write_at(6, b"67").unwrap();
    assert_eq!(read(&bytes), b"0123\0\x0067", "nothing of what was cut comes back");
    assert_eq!(read(&shell.stage(&ID).unwrap()), b"0123\0\x0067");
    bytes.write_at(20, b"").unwrap();
    assert_eq!(read(&bytes).len(), 8, "writing nothing makes nothing longer");
    bytes.set_len(0).unwrap();
    bytes.sync().unwrap();
    assert_eq!(read(&bytes), b"");
    shell.publish(&ID, Durability::Fsync).unwrap();
    assert_eq!(read(&shell.file(&ID).unwrap()), b"", "a file without bytes is one");
}

#[test]
fn bytes_are_cut_and_not_lengthened() {
    cutting(&MemoryShell::default());
    cutting(&Folder::new().disk());
}

fn far_places(shell: &impl Shell) {
    let mut bytes = staged(shell, &ID, b"0123");
    for at in [5, 1 << 62, i64::MAX as u64, 1 << 63, u64::MAX] {
        assert_eq!(bytes.read_at(at, &mut [0; 10]), Ok(0), "nothing lies at {at}");
    }
    for at in [i64::MAX as u64, 1 << 63, u64::MAX - 1, u64::MAX] {
        assert_eq!(bytes.write_at(at, b"xx"), Err(ShellError::Full), "there is no room at {at}");
    }
    let mut writer = PartWriter::new(bytes, u64::MAX - 1, u64::MAX, None);
    assert_eq!(writer.write(b"xx"), Err(PartError::TooLong));
    assert_eq!(read(&shell.stage(&ID).unwrap()), b"0123");
}

#[test]
fn places_that_no_file_has_are_empty_and_full() {
    far_places(&MemoryShell::default());
    far_places(&Folder::new().disk());
}

fn listing(shell: &impl Shell) {
    drop((staged(shell, &ID, b"x"), staged(shell, &OTHER, b"x")));
    let files = |shard| shell.files_before(shard, u64::MAX);
    assert_eq!([0xab, 0xcd].map(files), [Ok(vec![]), Ok(vec![])], "they are staged, and no files");
    shell.publish(&ID, Durability::Os).unwrap();
    assert_eq!([0xab, 0xcd, 0].map(files), [Ok(vec![ID]), Ok(vec![]), Ok(vec![])]);
    assert_eq!(shell.staged_before(u64::MAX), Ok(vec![OTHER]));
    shell.publish(&OTHER, Durability::Os).unwrap();
    assert_eq!([0xab, 0xcd, 0].map(files), [Ok(vec![ID]), Ok(vec![OTHER]), Ok(vec![])]);
    assert_eq!((shell.remove(&ID), files(0xab), shell.remove(&ID)), (Ok(true), Ok(vec![]), Ok(false)));
}

#[test]
fn files_are_listed_by_the_first_byte_of_their_ids() {
    listing(&MemoryShell::default());
    listing(&Folder::new().disk());
}

fn adopting(shell: &impl Shell) {
    assert_eq!(shell.adopt(&ID, &OTHER), Err(ShellError::Missing));
    let mut bytes = staged(shell, &ID, b"0123");
    shell.adopt(&ID, &OTHER).unwrap();
    assert_eq!(
        (shell.stage(&ID).err(), read(&shell.stage(&OTHER).unwrap())),
        (Some(ShellError::Missing), b"0123".into())
    );
    // It is the same place, under another name.
    bytes.write_at(4, b"4").unwrap();
    assert_eq!(read(&shell.stage(&OTHER).unwrap()), b"01234");
    // What lies there stays, staged or published, and so does what was to come there.
    drop(staged(shell, &ID, b"late"));
    for _ in 0..2 {
        assert_eq!(shell.adopt(&ID, &OTHER), Err(ShellError::Taken));
        assert_eq!(read(&shell.stage(&ID).unwrap()), b"late");
        shell.publish(&OTHER, Durability::Fsync).unwrap();
    }
    assert_eq!(read(&shell.file(&OTHER).unwrap()), b"01234");
}

#[test]
fn what_is_staged_becomes_anothers_only_where_nothing_is() {
    adopting(&MemoryShell::default());
    let folder = Folder::new();
    let disk = folder.disk();
    adopting(&disk);
    // Nothing is published in the place of a file either.
    drop(staged(&disk, &OTHER, b"late"));
    assert_eq!(disk.publish(&OTHER, Durability::Fsync), Err(ShellError::Taken));
    assert_eq!((read(&disk.file(&OTHER).unwrap()), disk.discard(&OTHER)), (b"01234".into(), Ok(true)));
}

/// Chunks that are longer than what is read at once, and no multiple of it.
fn rehashing(shell: &impl Shell) {
    const CHUNK: u64 = 300_000;
    let file: Vec<u8> = (0..=u8::MAX).cycle().take(3 * 300_000 + 5).collect();
    let plan = Plan::new(file.len() as u64, NonZeroU64::new(CHUNK).unwrap());
    let digests: Vec<(u64, Digest)> = (0..).zip(file.chunks(300_000).map(Digest::hash)).collect();
    let mut bytes = staged(shell, &ID, &file);
    let wrong = |bytes: &_| rehash(bytes, &plan, digests.iter().copied());
    assert_eq!(wrong(&bytes), Ok(vec![]));

    // The first and the last byte of a chunk, and the bytes on both sides of a border.
    for (at, bad) in
        [(0, 0), (CHUNK - 1, 0), (CHUNK, 1), (2 * CHUNK - 1, 1), (3 * CHUNK, 3), (3 * CHUNK + 4, 3)]
    {
        let good = file[usize::try_from(at).unwrap()];
        for bit in 0..8 {
            bytes.write_at(at, &[good ^ 1 << bit]).unwrap();
            assert_eq!(wrong(&bytes), Ok(vec![bad]), "bit {bit} of byte {at}");
        }
        bytes.write_at(at, &[good]).unwrap();
    }
    let two = [digests[2], digests[0]].into_iter();
    bytes.write_at(0, &[!file[0]]).unwrap();
    bytes.write_at(2 * CHUNK, &[!file[0]]).unwrap();
    assert_eq!(rehash(&bytes, &plan, two), Ok(vec![2, 0]), "as they were asked for, and no others");
    bytes.write_at(0, &file).unwrap();
    assert_eq!(wrong(&bytes), Ok(vec![]));

    // The last chunk lacks a byte, and then the one before does.
    bytes.set_len(3 * CHUNK + 4).unwrap();
    assert_eq!(wrong(&bytes), Ok(vec![3]));
    bytes.set_len(3 * CHUNK - 1).unwrap();
    assert_eq!(wrong(&bytes), Ok(vec![2, 3]));
    bytes.set_len(0).unwrap();
    assert_eq!(wrong(&bytes), Ok(vec![0, 1, 2, 3]));

    // What is there of a chunk does not stand for it.
    let beginning = [(0, Digest::hash(b""))].into_iter();
    assert_eq!(rehash(&bytes, &plan, beginning), Ok(vec![0]));

    // Chunks that the plan does not have.
    let beyond = [(4, Digest::hash(b"")), (u64::MAX, Digest::hash(b""))].into_iter();
    assert_eq!(rehash(&bytes, &plan, beyond), Ok(vec![4, u64::MAX]));
}

#[test]
fn chunks_that_rotted_are_found() {
    rehashing(&MemoryShell::default());
    rehashing(&Folder::new().disk());
}

#[test]
fn what_is_cut_and_removed_in_memory_makes_room() {
    let shell = MemoryShell::with_room(10);
    let mut bytes = staged(&shell, &ID, &[7; 8]);
    let other = || shell.stage(&OTHER).unwrap().write_at(0, &[7; 5]);
    shell.create(&OTHER).unwrap();
    assert_eq!(other(), Err(ShellError::Full));
    bytes.set_len(5).unwrap();
    assert_eq!((other(), bytes.write_at(5, b"x")), (Ok(()), Err(ShellError::Full)));
    assert_eq!(bytes.write_at(u64::MAX, b"x"), Err(ShellError::Full));
    assert_eq!(shell.discard(&OTHER), Ok(true));
    bytes.write_at(5, &[7; 5]).unwrap();
    shell.publish(&ID, Durability::Os).unwrap();
    assert_eq!((shell.create(&OTHER), other()), (Ok(()), Err(ShellError::Full)));
    assert_eq!((shell.remove(&ID), other()), (Ok(true), Err(ShellError::Full)), "somebody has it open");
    drop(bytes);
    assert_eq!(other(), Ok(()));
}
