//! Bytes on a disk: what is planted there leads nowhere, nothing is replaced, and a full disk says so.
#![allow(clippy::unwrap_used, reason = "what cannot go on fails the test")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use driftline_uploads::{
    Bytes, Digest, Disk, Durability, PartError, PartWriter, RunningHash, Shell, ShellError, UploadId,
    hash_rest,
};

mod support;

use support::Folder;

const ID: UploadId = UploadId::of([0xab; 16]);

fn staged(folder: &Folder) -> PathBuf {
    folder.0.join("staging").join(ID.to_string())
}

fn file(folder: &Folder) -> PathBuf {
    folder.0.join("files/ab").join(ID.to_string())
}

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
    let bytes: Vec<u8> = (0..=u8::MAX).cycle().take(700_000).collect();
    let part = |at: usize, end: usize, running| {
        let mut writer =
            PartWriter::new(disk.stage(&ID).unwrap(), at as u64, end as u64, running).with_digest();
        for piece in bytes[at..end].chunks(70_000) {
            writer.write(piece).unwrap();
        }
        assert_eq!(writer.digest(), Some(Digest::hash(&bytes[at..end])));
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
    let opened = disk.stage(&ID).unwrap();
    assert_eq!(hash_rest(&opened, running, 700_000), Ok(Digest::hash(&bytes)));
    assert_eq!(hash_rest(&opened, RunningHash::default(), 700_001), Err(ShellError::Missing));
    disk.publish(&ID, Durability::Fsync).unwrap();
    assert_eq!(disk.publish(&ID, Durability::Fsync), Ok(()), "doing it again does nothing");
    assert_eq!((fs::read(file(&folder)).unwrap(), staged(&folder).exists()), (bytes, false));
    assert_eq!(disk.stage(&ID).err(), Some(ShellError::Missing));
    assert_eq!((disk.remove(&ID), disk.remove(&ID), disk.discard(&ID)), (Ok(true), Ok(false), Ok(false)));
    assert_eq!(disk.publish(&ID, Durability::Fsync), Err(ShellError::Missing));
}

#[test]
fn a_file_is_never_replaced() {
    let folder = Folder::new();
    let disk = folder.disk();
    write(&disk, b"new");
    fs::create_dir_all(file(&folder).parent().unwrap()).unwrap();
    fs::write(file(&folder), b"old").unwrap();
    assert_eq!(disk.publish(&ID, Durability::Fsync), Err(ShellError::Taken));
    assert_eq!(
        (fs::read(file(&folder)).unwrap(), fs::read(staged(&folder)).unwrap()),
        (b"old".into(), b"new".into())
    );
}

#[test]
fn planted_links_are_not_followed() {
    let folder = Folder::new();
    let disk = folder.disk();
    let secret = folder.0.join("secret");
    fs::write(&secret, b"secret").unwrap();
    symlink(&secret, staged(&folder)).unwrap();
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
    symlink(&secret, file(&folder)).unwrap();
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
    fs::create_dir(staged(&folder)).unwrap();
    assert!(disk.stage(&ID).is_err() && disk.publish(&ID, Durability::Fsync).is_err());
    fs::remove_dir(staged(&folder)).unwrap();
    let made = std::process::Command::new("mkfifo").arg(staged(&folder)).status().unwrap();
    assert!(made.success());
    assert!(disk.stage(&ID).is_err(), "nobody reads the pipe, and nobody waits for that");
}

/// Says that bytes were last written so many milliseconds after 1970.
fn written(path: PathBuf, ms: u64) {
    let at = SystemTime::UNIX_EPOCH + Duration::from_millis(ms);
    fs::File::options().write(true).open(path).unwrap().set_modified(at).unwrap();
}

#[test]
fn only_what_is_old_and_ours_is_listed() {
    let folder = Folder::new();
    let disk = folder.disk();
    write(&disk, b"x");
    fs::write(folder.0.join("staging/README"), b"somebody else's").unwrap();
    assert_eq!(disk.staged_before(0), Ok(Vec::new()));
    assert_eq!(disk.staged_before(u64::MAX), Ok(vec![ID]));
    written(staged(&folder), 1_500);
    let before = |before_ms| disk.staged_before(before_ms).map(|ids| ids.len());
    assert_eq!([1_000, 1_500, 1_501, 2_000].map(before), [Ok(0), Ok(0), Ok(1), Ok(1)]);
}

#[test]
fn only_files_that_are_old_and_ours_are_listed() {
    let folder = Folder::new();
    let disk = folder.disk();
    write(&disk, b"x");
    assert_eq!(disk.files_before(0xab, u64::MAX), Ok(Vec::new()), "there is no such folder yet");
    written(staged(&folder), 1_500);
    disk.publish(&ID, Durability::Fsync).unwrap();
    let before = |before_ms| disk.files_before(0xab, before_ms).map(|ids| ids.len());
    assert_eq!([0, 1_500, 1_501].map(before), [Ok(0), Ok(0), Ok(1)], "publishing writes no bytes");
    assert_eq!(disk.staged_before(u64::MAX), Ok(Vec::new()));

    // What has another name, and what lies in a folder where it is not looked for, is not ours.
    fs::write(file(&folder).with_file_name("README"), b"somebody else's").unwrap();
    fs::write(file(&folder).with_file_name(ID.to_string().to_uppercase()), b"somebody else's").unwrap();
    fs::create_dir(folder.0.join("files/ac")).unwrap();
    fs::write(folder.0.join("files/ac").join(ID.to_string()), b"moved").unwrap();
    let listed = (0..=u8::MAX).map(|shard| disk.files_before(shard, u64::MAX).unwrap());
    assert_eq!(listed.flatten().collect::<Vec<_>>(), [ID]);

    let elsewhere = folder.0.join("elsewhere");
    fs::rename(folder.0.join("files/ab"), &elsewhere).unwrap();
    symlink(&elsewhere, folder.0.join("files/ab")).unwrap();
    assert!(disk.files_before(0xab, u64::MAX).is_err(), "a link is not followed");
}

#[test]
fn what_is_opened_for_reading_is_not_cut() {
    let folder = Folder::new();
    let disk = folder.disk();
    write(&disk, b"bytes");
    disk.publish(&ID, Durability::Fsync).unwrap();
    let mut opened = disk.file(&ID).unwrap();
    assert!(opened.set_len(2).is_err() && opened.write_at(0, b"x").is_err());
    assert_eq!(fs::read(file(&folder)).unwrap(), b"bytes");
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
