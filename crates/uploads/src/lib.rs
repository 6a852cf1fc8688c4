//! Resumable uploads: files that come in pieces, over connections that break.
//!
//! An [`Upload`] says what may happen now: which chunk of its [`Plan`] may come, or at which byte a stream goes on, when
//! it may become a file and when it is over. [`Ranges`] are the chunks that are there. A [`PartWriter`] writes a part to
//! its place while it hashes it, and a [`RunningHash`] carries the hash of the whole file from part to part and over a
//! restart, so that a file that came in order is never read again. [`Shell`] is where the bytes lie: on a [`Disk`], where
//! a file is written once, in place, and only renamed at the end, or in a [`MemoryShell`].
//!
//! What it does not do: it knows no HTTP and no database, reads no clock, draws no random number and starts no thread. It
//! does not remember uploads: whoever uses it keeps [`Upload`] and the digests of its chunks where its other rows are, and
//! acknowledges a chunk when both are safe. Calls on a shell block; in an async service they belong on a thread for that.
//!
//! ```
//! use std::num::NonZeroU64;
//!
//! use driftline_uploads::{Expiry, Form, Plan, Refused, Upload};
//!
//! let plan = Plan::choose(10, NonZeroU64::new(4).expect("four"));
//! let mut upload = Upload::open(Form::Chunks(plan), 1_000, &Expiry::default());
//! assert_eq!(upload.admit_chunk(2, Some(2), 1_000), Ok((8, 2)));
//! assert_eq!(upload.admit_chunk(0, Some(3), 1_000), Err(Refused::WrongLength { wanted: 4 }));
//! assert_eq!(upload.begin(1_000), Err(Refused::Incomplete));
//! ```

mod disk;
mod hash;
mod id;
mod memory;
mod name;
mod plan;
mod ranges;
mod shell;
mod upload;

pub use disk::{Disk, DiskBytes};
pub use hash::{Digest, DigestError, RunningHash, RunningHashError};
pub use id::{UploadId, UploadIdError};
pub use memory::{MemoryBytes, MemoryShell};
pub use name::{AllowList, ContentType, ContentTypeError, NAME_BYTES_MAX, file_name};
pub use plan::{CHUNKS_MAX, Plan};
pub use ranges::Ranges;
pub use shell::{Bytes, Durability, PartError, PartWriter, Shell, ShellError, hash_rest, rehash};
pub use upload::{Expiry, Form, Meeting, Refused, State, Upload, meet};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
