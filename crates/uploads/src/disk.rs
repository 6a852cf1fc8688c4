//! Bytes on a local disk, or on a file system that several nodes share.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;

use crate::id::UploadId;
use crate::shell::{Bytes, Durability, Shell, ShellError};

/// A folder with the bytes of uploads and files.
///
/// ```text
/// staging/<id>            one file for each upload that is under way, written in place
/// files/<first two>/<id>  one file for each finished upload, in one of 256 folders
/// ```
///
/// The folders are opened once, every path below them is made of digits and the letters `a` to `f`, and no link is ever
/// followed: whatever somebody else plants there leads nowhere.
#[derive(Debug)]
pub struct Disk {
    staging: OwnedFd,
    files: OwnedFd,
}

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// `NONBLOCK` has no meaning for a file, and keeps anything else from holding the program up.
const ENTRY: OFlags = OFlags::NOFOLLOW.union(OFlags::CLOEXEC).union(OFlags::NONBLOCK);

impl Disk {
    /// Opens a folder, making it and what it needs.
    ///
    /// # Errors
    /// [`ShellError`] says what cannot be made or opened.
    pub fn open(folder: &Path) -> Result<Self, ShellError> {
        std::fs::create_dir_all(folder)
            .map_err(|error| ShellError::Failed(format!("making {}: {error}", folder.display())))?;
        let root =
            rustix::fs::open(folder, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
                .map_err(failed("opening the folder of uploads"))?;
        let staging = subfolder(&root, "staging")?;
        let files = subfolder(&root, "files")?;
        Ok(Self { staging, files })
    }

    /// Gives what is staged another place, unless something lies there.
    fn rename(&self, staged: &str, (folder, name): (&OwnedFd, &str)) -> Result<(), ShellError> {
        let renamed = rustix::fs::renameat_with(&self.staging, staged, folder, name, RenameFlags::NOREPLACE);
        match renamed {
            // File systems of networks mostly cannot rename without replacing, but all refuse a second link.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => self.link(staged, (folder, name)),
            renamed => renamed.map_err(failed("renaming")),
        }
    }

    /// Does the same with a second name, of which the first is taken away. A crash between leaves both names of one file,
    /// and doing it again takes the first away.
    fn link(&self, staged: &str, (folder, name): (&OwnedFd, &str)) -> Result<(), ShellError> {
        let opened = open_file(&self.staging, staged, OFlags::RDONLY)?;
        match rustix::fs::linkat(&self.staging, staged, folder, name, AtFlags::empty()) {
            Ok(()) => {}
            Err(Errno::EXIST) if is_same(&opened, &open_file(folder, name, OFlags::RDONLY)?)? => {}
            Err(error) => return Err(failed("linking")(error)),
        }
        rustix::fs::fsync(folder).map_err(failed("syncing a folder"))?;
        unlink(&self.staging, staged).map(drop)
    }

    /// Makes durable that a file has its place, and its folder too.
    fn settle(&self, shard: &OwnedFd, durability: Durability) -> Result<(), ShellError> {
        if durability == Durability::Os {
            return Ok(());
        }
        for folder in [shard, &self.files, &self.staging] {
            rustix::fs::fsync(folder).map_err(failed("syncing a folder"))?;
        }
        Ok(())
    }

    /// Opens one of the 256 folders of files.
    fn shard(&self, shard: u8) -> Result<OwnedFd, ShellError> {
        rustix::fs::openat(&self.files, shard_name(shard), FOLDER, Mode::empty())
            .map_err(failed("opening a folder of files"))
    }
}

const fn shard_of(id: &UploadId) -> u8 {
    id.as_bytes()[0]
}

fn shard_name(shard: u8) -> String {
    format!("{shard:02x}")
}

/// Opens a folder in a folder; one that is not there is made, durably.
fn subfolder(parent: &OwnedFd, name: &str) -> Result<OwnedFd, ShellError> {
    match rustix::fs::mkdirat(parent, name, Mode::RWXU) {
        Ok(()) => rustix::fs::fsync(parent).map_err(failed("syncing a folder"))?,
        Err(Errno::EXIST) => {}
        Err(error) => return Err(failed("making a folder")(error)),
    }
    rustix::fs::openat(parent, name, FOLDER, Mode::empty()).map_err(failed("opening a folder"))
}

fn failed(what: &'static str) -> impl Fn(Errno) -> ShellError {
    move |error| match error {
        // A file that the system takes no longer has no room either.
        Errno::NOSPC | Errno::DQUOT | Errno::FBIG => ShellError::Full,
        Errno::NOENT => ShellError::Missing,
        Errno::EXIST => ShellError::Taken,
        error => ShellError::Failed(format!("{what}: {error}")),
    }
}

fn io_failed(what: &'static str) -> impl Fn(io::Error) -> ShellError {
    move |error| match Errno::from_io_error(&error) {
        Some(errno) => failed(what)(errno),
        None => ShellError::Failed(format!("{what}: {error}")),
    }
}

/// Opens a plain file; a link, a pipe or anything else is none.
fn open_file(folder: &OwnedFd, name: &str, flags: OFlags) -> Result<File, ShellError> {
    let opened = rustix::fs::openat(folder, name, flags | ENTRY, Mode::empty()).map_err(failed("opening"))?;
    let stat = rustix::fs::fstat(&opened).map_err(failed("looking at a file"))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(ShellError::Failed("what lies there is no plain file".into()));
    }
    Ok(File::from(opened))
}

/// Lists what lies in a folder under the name of an upload and was last written before a time in Unix milliseconds.
fn written_before(folder: &OwnedFd, before_ms: u64) -> Result<Vec<UploadId>, ShellError> {
    let mut found = Vec::new();
    for entry in Dir::read_from(folder).map_err(failed("reading a folder"))? {
        let entry = entry.map_err(failed("reading a folder"))?;
        // What has another name is not ours.
        let Some(id) = entry.file_name().to_str().ok().and_then(|name| name.parse().ok()) else {
            continue;
        };
        match rustix::fs::statat(folder, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if written_ms(&stat) < before_ms => found.push(id),
            // It is new, or it is gone since the folder was read.
            Ok(_) | Err(Errno::NOENT) => {}
            Err(error) => return Err(failed("looking at a file")(error)),
        }
    }
    Ok(found)
}

/// Returns when bytes were last written, in Unix milliseconds; what was written before 1970 is as old as that.
fn written_ms(stat: &Stat) -> u64 {
    // The types of both differ between systems.
    let ms = i128::from(stat.st_mtime) * 1_000 + i128::from(stat.st_mtime_nsec) / 1_000_000;
    u64::try_from(ms.max(0)).unwrap_or(u64::MAX)
}

/// Tells whether two opened files are one.
fn is_same(one: &File, other: &File) -> Result<bool, ShellError> {
    let stat = |file: &File| rustix::fs::fstat(file).map_err(failed("looking at a file"));
    let (one, other) = (stat(one)?, stat(other)?);
    Ok((one.st_dev, one.st_ino) == (other.st_dev, other.st_ino))
}

fn unlink(folder: &OwnedFd, name: &str) -> Result<bool, ShellError> {
    match rustix::fs::unlinkat(folder, name, AtFlags::empty()) {
        Ok(()) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(failed("removing")(error)),
    }
}

impl Shell for Disk {
    type Bytes = DiskBytes;

    fn create(&self, id: &UploadId) -> Result<(), ShellError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | ENTRY;
        let mode = Mode::RUSR | Mode::WUSR;
        rustix::fs::openat(&self.staging, id.to_string(), flags, mode).map_err(failed("making a file"))?;
        // Syncing a file later does not promise that it has a name.
        rustix::fs::fsync(&self.staging).map_err(failed("syncing a folder"))
    }

    fn stage(&self, id: &UploadId) -> Result<DiskBytes, ShellError> {
        open_file(&self.staging, &id.to_string(), OFlags::RDWR).map(DiskBytes)
    }

    fn adopt(&self, from: &UploadId, into: &UploadId) -> Result<(), ShellError> {
        match self.file(into) {
            Ok(_) => return Err(ShellError::Taken),
            Err(ShellError::Missing) => {}
            Err(error) => return Err(error),
        }
        self.rename(&from.to_string(), (&self.staging, &into.to_string()))?;
        rustix::fs::fsync(&self.staging).map_err(failed("syncing a folder"))
    }

    fn publish(&self, id: &UploadId, durability: Durability) -> Result<(), ShellError> {
        let name = id.to_string();
        let shard = subfolder(&self.files, &shard_name(shard_of(id)))?;
        let staged = match open_file(&self.staging, &name, OFlags::RDONLY) {
            Ok(staged) => staged,
            // It was published before, by somebody who may not have come to the end.
            Err(ShellError::Missing) => {
                open_file(&shard, &name, OFlags::RDONLY)?;
                return self.settle(&shard, durability);
            }
            Err(error) => return Err(error),
        };
        if durability == Durability::Fsync {
            staged.sync_all().map_err(io_failed("syncing a file"))?;
        }
        self.rename(&name, (&shard, &name))?;
        self.settle(&shard, durability)
    }

    fn file(&self, id: &UploadId) -> Result<DiskBytes, ShellError> {
        open_file(&self.shard(shard_of(id))?, &id.to_string(), OFlags::RDONLY).map(DiskBytes)
    }

    fn discard(&self, id: &UploadId) -> Result<bool, ShellError> {
        unlink(&self.staging, &id.to_string())
    }

    fn remove(&self, id: &UploadId) -> Result<bool, ShellError> {
        match self.shard(shard_of(id)) {
            Ok(shard) => unlink(&shard, &id.to_string()),
            Err(ShellError::Missing) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn staged_before(&self, before_ms: u64) -> Result<Vec<UploadId>, ShellError> {
        written_before(&self.staging, before_ms)
    }

    fn files_before(&self, shard: u8, before_ms: u64) -> Result<Vec<UploadId>, ShellError> {
        let folder = match self.shard(shard) {
            Ok(folder) => folder,
            Err(ShellError::Missing) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut found = written_before(&folder, before_ms)?;
        // What somebody moved into another folder is not found by its id.
        found.retain(|id| shard_of(id) == shard);
        Ok(found)
    }
}

/// An opened file.
#[derive(Debug)]
pub struct DiskBytes(File);

impl DiskBytes {
    /// Returns the file, to hand it to another program.
    #[must_use]
    pub fn into_file(self) -> File {
        self.0
    }
}

/// Tells whether a file can have bytes at a place: places are signed to the system.
fn is_place(at: u64, bytes: usize) -> bool {
    at.checked_add(bytes as u64).is_some_and(|end| i64::try_from(end).is_ok())
}

impl Bytes for DiskBytes {
    fn write_at(&mut self, at: u64, bytes: &[u8]) -> Result<(), ShellError> {
        if !is_place(at, bytes.len()) {
            return Err(ShellError::Full);
        }
        self.0.write_all_at(bytes, at).map_err(io_failed("writing"))
    }

    fn read_at(&self, at: u64, buffer: &mut [u8]) -> Result<usize, ShellError> {
        if !is_place(at, buffer.len()) {
            return Ok(0);
        }
        let mut read = 0;
        while read < buffer.len() {
            match self.0.read_at(&mut buffer[read..], at + read as u64) {
                Ok(0) => break,
                Ok(len) => read += len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(io_failed("reading")(error)),
            }
        }
        Ok(read)
    }

    fn set_len(&mut self, len: u64) -> Result<(), ShellError> {
        if self.0.metadata().map_err(io_failed("looking at a file"))?.len() > len {
            self.0.set_len(len).map_err(io_failed("cutting"))?;
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), ShellError> {
        self.0.sync_data().map_err(io_failed("syncing"))
    }
}
