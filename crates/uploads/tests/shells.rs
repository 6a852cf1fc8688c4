//! What holds on a disk as in memory.
#![allow(clippy::unwrap_used, reason = "what cannot go on fails the test")]

use driftline_uploads::{Bytes, Durability, MemoryShell, Shell, ShellError, UploadId};

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
