//! Bytes on a local disk, or on a file system that several nodes share.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use crate::id::UploadId;
use crate::shell::{Bytes, Durability, Shell, ShellError};

/// A folder with the bytes of uploads and files.
///
/// ```text
/// staging/<id>            one file for each upload that is under way, written in place
/// files/<first two>/<id>  one file for each finished upload
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

    /// Gives what is staged its place among the files, unless something lies there.
    fn rename(&self, shard: &OwnedFd, name: &str, staged: &File) -> Result<(), ShellError> {
        let renamed = rustix::fs::renameat_with(&self.staging, name, shard, name, RenameFlags::NOREPLACE);
        match renamed {
            // File systems of networks mostly cannot rename without replacing, but all refuse a second link.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => self.link(shard, name, staged),
            renamed => renamed.map_err(failed("renaming")),
        }
    }

    /// Does the same with a second name, of which the first is taken away. A crash between leaves both names of one file,
    /// and doing it again takes the first away.
    fn link(&self, shard: &OwnedFd, name: &str, staged: &File) -> Result<(), ShellError> {
        match rustix::fs::linkat(&self.staging, name, shard, name, AtFlags::empty()) {
            Ok(()) => {}
            Err(Errno::EXIST) if is_same(staged, &open_file(shard, name, OFlags::RDONLY)?)? => {}
            Err(error) => return Err(failed("linking")(error)),
        }
        rustix::fs::fsync(shard).map_err(failed("syncing a folder"))?;
        unlink(&self.staging, name).map(drop)
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

    fn shard(&self, id: &UploadId) -> Result<OwnedFd, ShellError> {
        let name = shard_name(id);
        rustix::fs::openat(&self.files, name, FOLDER, Mode::empty())
            .map_err(failed("opening a folder of files"))
    }
}

fn shard_name(id: &UploadId) -> String {
    format!("{:02x}", id.as_bytes()[0])
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
        Errno::NOSPC | Errno::DQUOT => ShellError::Full,
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

    fn publish(&self, id: &UploadId, durability: Durability) -> Result<(), ShellError> {
        let name = id.to_string();
        let shard = subfolder(&self.files, &shard_name(id))?;
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
        self.rename(&shard, &name, &staged)?;
        self.settle(&shard, durability)
    }

    fn file(&self, id: &UploadId) -> Result<DiskBytes, ShellError> {
        open_file(&self.shard(id)?, &id.to_string(), OFlags::RDONLY).map(DiskBytes)
    }

    fn discard(&self, id: &UploadId) -> Result<bool, ShellError> {
        unlink(&self.staging, &id.to_string())
    }

    fn remove(&self, id: &UploadId) -> Result<bool, ShellError> {
        match self.shard(id) {
            Ok(shard) => unlink(&shard, &id.to_string()),
            Err(ShellError::Missing) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn staged_before(&self, before_ms: u64) -> Result<Vec<UploadId>, ShellError> {
        let mut found = Vec::new();
        let entries = Dir::read_from(&self.staging).map_err(failed("reading the staging folder"))?;
        for entry in entries {
            let entry = entry.map_err(failed("reading the staging folder"))?;
            // What has another name is not ours.
            let Some(id) = entry.file_name().to_str().ok().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let looked = rustix::fs::statat(&self.staging, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW);
            let stat = match looked {
                Ok(stat) => stat,
                Err(Errno::NOENT) => continue,
                Err(error) => return Err(failed("looking at a file")(error)),
            };
            let seconds = u64::try_from(stat.st_mtime).unwrap_or(0);
            if seconds.saturating_mul(1000) < before_ms {
                found.push(id);
            }
        }
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

impl Bytes for DiskBytes {
    fn write_at(&mut self, at: u64, bytes: &[u8]) -> Result<(), ShellError> {
        self.0.write_all_at(bytes, at).map_err(io_failed("writing"))
    }

    fn read_at(&self, at: u64, buffer: &mut [u8]) -> Result<usize, ShellError> {
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

    fn sync(&mut self) -> Result<(), ShellError> {
        self.0.sync_data().map_err(io_failed("syncing"))
    }
}
