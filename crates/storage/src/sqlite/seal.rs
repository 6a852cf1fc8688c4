//! The seal of a backup: a sum over all of its bytes, kept in its own head.
//!
//! A database has no sums of its pages: letters that change within a text leave a database that is as good as before. A
//! backup lies around for years and moves between disks, so it gets a sum (XXH64) over every byte but eight of its head,
//! which are for an application to use (<https://www.sqlite.org/fileformat.html>, §1.3: user version and application
//! id): these hold it. A database in use has zeros there, and no seal.

use std::fs::File;
use std::hash::Hasher as _;
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use twox_hash::XxHash64;

/// The two places in the head, four bytes each.
const HALVES: [usize; 2] = [60, 68];
const HEAD_BYTES: usize = 100;
const CHUNK_BYTES: usize = 1 << 18;

/// What a look at a seal says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seal {
    Absent,
    Whole,
    Broken,
}

/// Puts the seal on a file that nobody has open.
pub(super) fn seal(file: &Path) -> io::Result<()> {
    let (sum, _) = sum(file)?;
    let file = File::options().write(true).open(file)?;
    for (place, half) in HALVES.into_iter().zip(sum.to_be_bytes().chunks(4)) {
        file.write_all_at(half, place as u64)?;
    }
    Ok(())
}

/// Compares a file with its seal.
pub(super) fn look(file: &Path) -> io::Result<Seal> {
    let (sum, kept) = sum(file)?;
    Ok(match kept {
        0 => Seal::Absent,
        kept if kept == sum => Seal::Whole,
        _ => Seal::Broken,
    })
}

/// Takes the seal off a database that is going to change.
pub(super) fn unseal(connection: &mut SqliteConnection) -> QueryResult<()> {
    connection.batch_execute("PRAGMA user_version = 0; PRAGMA application_id = 0")
}

/// The sum over a file, and the one that stands in its head.
fn sum(file: &Path) -> io::Result<(u64, u64)> {
    let mut file = File::open(file)?;
    let mut head = Vec::with_capacity(HEAD_BYTES);
    file.by_ref().take(HEAD_BYTES as u64).read_to_end(&mut head)?;
    let mut kept = [0; 8];
    for (place, kept) in HALVES.into_iter().zip(kept.chunks_mut(4)) {
        if let Some(half) = head.get_mut(place..place + 4) {
            kept.copy_from_slice(half);
            half.fill(0);
        }
    }
    let mut hasher = XxHash64::with_seed(0);
    hasher.write(&head);
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok((hasher.finish(), u64::from_be_bytes(kept))),
            read => hasher.write(&chunk[..read]),
        }
    }
}
