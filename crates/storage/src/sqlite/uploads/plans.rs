//! How SQLite goes about the statements of uploads.

use super::super::plans::{check, text};
use super::{ForgetChunks, LoadStanding, LoadUsage, open, read, receipts, turn};

#[test]
fn every_statement_goes_straight_to_its_rows() {
    let (id, tenant_no, number) = (Vec::new, 1, 0);
    let mut statements: Vec<String> = read::LISTS.map(read::listing).to_vec();
    statements.extend([
        text(&LoadStanding { id: id() }),
        text(&LoadUsage { tenant_no }),
        text(&ForgetChunks { id: id() }),
        text(&open::CountLive { tenant_no, owner: String::new() }),
        text(&read::LoadUpload { id: id() }),
        text(&read::LoadChunk { id: id(), chunk_no: number }),
        text(&read::LoadChunks { id: id() }),
        text(&read::LoadStates { ids: String::new() }),
        text(&receipts::PutChunk { id: id(), chunk_no: number, digest: id(), tag: None }),
        text(&receipts::TakeChunk {
            bytes: number,
            at: number,
            expires_at: number,
            running: None,
            hashed: number,
            id: id(),
        }),
        text(&open::Reserve { reserved: number, id: id() }),
        text(&turn::TakeChunkBack { id: id(), chunk_no: number }),
        text(&turn::TakeBytesBack { received: number, id: id() }),
        text(&turn::MarkTold { id: id() }),
        text(&turn::MarkDiscarded { id: id() }),
        text(&turn::RemoveFile { id: id() }),
        turn::FORGET.to_owned(),
    ]);
    check(&statements);
}
