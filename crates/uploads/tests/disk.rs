//! Bytes on a disk: what is planted there leads nowhere, nothing is replaced, and a full disk says so.
#![allow(clippy::unwrap_used, reason = "what cannot go on fails the test")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use driftline_uploads::{
    Bytes, Digest, Disk, Durability, PartError, PartWriter, RunningHash, Shell, ShellError, UploadId,
    hash_rest,
};

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("driftline-disk-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn disk(&self) -> Disk {
        Disk::open(&self.0).unwrap()
    }

    fn staged(&self) -> PathBuf {
        self.0.join("staging").join(ID.to_string())
    }

    fn file(&self) -> PathBuf {
        self.0.join("files/ab").join(ID.to_string())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left of it is the system's to remove.
        let _ = fs::remove_dir_all(&self.0);
    }
}

const ID: UploadId = UploadId::of([0xab; 16]);

fn write(disk: &Disk, bytes: &[u8]) {
    disk.create(&ID).unwrap();
    let mut writer = PartWriter::new(disk.stage(&ID).unwrap(), 0, bytes.len() as u64, None);
    writer.write(bytes).unwrap();
    writer.settle(Durability::Fsync).unwrap();
}

#[test]
fn parts_come_in_any_order_and_the_hash_outlives_the_program() {
    let folder = Folder::new();
    let disk = folder.disk();
    disk.create(&ID).unwrap();
    assert_eq!(disk.create(&ID), Err(ShellError::Taken));
    let file: Vec<u8> = (0..=u8::MAX).cycle().take(700_000).collect();
    let part = |at: usize, end: usize, running| {
        let mut writer =
            PartWriter::new(disk.stage(&ID).unwrap(), at as u64, end as u64, running).with_digest();
        for piece in file[at..end].chunks(70_000) {
            writer.write(piece).unwrap();
        }
        assert_eq!(writer.digest(), Some(Digest::hash(&file[at..end])));
        assert_eq!(writer.write(b"x"), Err(PartError::TooLong));
        writer.settle(Durability::Fsync).unwrap();
        writer.running().cloned()
    };
    let first = part(0, 100_000, Some(RunningHash::default())).unwrap().put_away();
    assert!(part(300_000, 700_000, RunningHash::resume(&first).ok()).is_none(), "it does not go on there");
    let running = part(100_000, 300_000, RunningHash::resume(&first).ok()).unwrap();
    assert_eq!(running.through(), 300_000);
    drop(disk);
    let disk = folder.disk();
    let staged = disk.stage(&ID).unwrap();
    assert_eq!(hash_rest(&staged, running, 700_000), Ok(Digest::hash(&file)));
    assert_eq!(hash_rest(&staged, RunningHash::default(), 700_001), Err(ShellError::Missing));
    disk.publish(&ID, Durability::Fsync).unwrap();
    assert_eq!(disk.publish(&ID, Durability::Fsync), Ok(()), "doing it again does nothing");
    assert_eq!((fs::read(folder.file()).unwrap(), folder.staged().exists()), (file, false));
    assert_eq!(disk.stage(&ID).err(), Some(ShellError::Missing));
    assert_eq!((disk.remove(&ID), disk.remove(&ID), disk.discard(&ID)), (Ok(true), Ok(false), Ok(false)));
    assert_eq!(disk.publish(&ID, Durability::Fsync), Err(ShellError::Missing));
}

#[test]
fn a_file_is_never_replaced() {
    let folder = Folder::new();
    let disk = folder.disk();
    write(&disk, b"new");
    fs::create_dir_all(folder.file().parent().unwrap()).unwrap();
    fs::write(folder.file(), b"old").unwrap();
    assert_eq!(disk.publish(&ID, Durability::Fsync), Err(ShellError::Taken));
    assert_eq!(
        (fs::read(folder.file()).unwrap(), fs::read(folder.staged()).unwrap()),
        (b"old".into(), b"new".into())
    );
}

#[test]
fn planted_links_are_not_followed() {
    let folder = Folder::new();
    let disk = folder.disk();
    let secret = folder.0.join("secret");
    fs::write(&secret, b"secret").unwrap();
    symlink(&secret, folder.staged()).unwrap();
    assert_eq!(disk.create(&ID), Err(ShellError::Taken), "not even a new one is made through it");
    assert!(disk.stage(&ID).is_err() && disk.publish(&ID, Durability::Fsync).is_err());
    assert_eq!(disk.discard(&ID), Ok(true), "the link goes, and not what it leads to");

    // A link in the place of a folder of files, and in the place of a file.
    write(&disk, b"bytes");
    let elsewhere = folder.0.join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    fs::remove_dir(folder.0.join("files/ab")).unwrap();
    symlink(&elsewhere, folder.0.join("files/ab")).unwrap();
    assert!(disk.publish(&ID, Durability::Fsync).is_err());
    assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
    fs::remove_file(folder.0.join("files/ab")).unwrap();
    fs::create_dir(folder.0.join("files/ab")).unwrap();
    symlink(&secret, folder.file()).unwrap();
    assert_eq!(disk.publish(&ID, Durability::Fsync), Err(ShellError::Taken));
    assert!(disk.file(&ID).is_err());
    assert_eq!(fs::read(&secret).unwrap(), b"secret");

    // A folder of uploads that is a link itself was named by the operator; one within was planted.
    let linked = folder.0.join("linked");
    symlink(&elsewhere, &linked).unwrap();
    drop(Disk::open(&linked).unwrap());
    let planted = Folder::new();
    symlink(&elsewhere, planted.0.join("staging")).unwrap();
    assert!(Disk::open(&planted.0).is_err());
}

#[test]
fn what_is_no_plain_file_holds_nobody_up() {
    let folder = Folder::new();
    let disk = folder.disk();
    fs::create_dir(folder.staged()).unwrap();
    assert!(disk.stage(&ID).is_err() && disk.publish(&ID, Durability::Fsync).is_err());
    fs::remove_dir(folder.staged()).unwrap();
    let made = std::process::Command::new("mkfifo").arg(folder.staged()).status().unwrap();
    assert!(made.success());
    assert!(disk.stage(&ID).is_err(), "nobody reads the pipe, and nobody waits for that");
}

#[test]
fn only_what_is_old_and_ours_is_listed() {
    let folder = Folder::new();
    let disk = folder.disk();
    write(&disk, b"x");
    fs::write(folder.0.join("staging/README"), b"somebody else's").unwrap();
    assert_eq!(disk.staged_before(0), Ok(Vec::new()));
    assert_eq!(disk.staged_before(u64::MAX), Ok(vec![ID]));
}

/// Needs the right to mount; where there is none, the transport's test with a shell that is full stands alone.
#[test]
fn a_full_disk_says_so_and_takes_more_when_there_is_room() {
    let folder = Folder::new();
    let small = folder.0.join("small");
    fs::create_dir(&small).unwrap();
    let mount = |arguments: &[&str]| {
        std::process::Command::new(arguments[0])
            .args(&arguments[1..])
            .arg(&small)
            .status()
            .is_ok_and(|s| s.success())
    };
    if !mount(&["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs"]) {
        eprintln!("nothing can be mounted here");
        return;
    }
    let filled = {
        let disk = Disk::open(&small).unwrap();
        disk.create(&ID).unwrap();
        let mut bytes = disk.stage(&ID).unwrap();
        let step = [7; 64 << 10];
        let full = (0..10_u64).find_map(|n| bytes.write_at(n * step.len() as u64, &step).err());
        let other = UploadId::of([1; 16]);
        let again = disk.create(&other).and_then(|()| disk.stage(&other)?.write_at(0, &step));
        disk.discard(&ID).unwrap();
        drop(bytes);
        let later = disk.stage(&other).and_then(|mut bytes| bytes.write_at(0, &step));
        (full, again, later)
    };
    assert!(mount(&["umount"]));
    assert_eq!(filled, (Some(ShellError::Full), Err(ShellError::Full), Ok(())));
}
