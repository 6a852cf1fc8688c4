//! Uploads: the ports to their rows and to their bytes.

mod blobs;
mod rows;
mod rules;

pub use blobs::{BlobAnswer, BlobError, Blobs, PartPlace, PartSink, PartWritten, Purpose};
pub use rows::{
    ChunkReceipt, ChunkThere, Joining, Kept, LeaseKey, LeaseSlot, Leased, Renewed, StreamReceipt, UploadCaps,
    UploadOnce, UploadOpened, UploadRow, UploadRows, UploadTurn, UploadUsage,
};
pub use rules::{TenantUploads, UploadRules, Verdict, Verify};
