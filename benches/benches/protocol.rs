//! The wire: reading a batch, the canonical form, writing an answer.

use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use driftline_benches::{batch_frame, body};
use driftline_model::Limits;
use driftline_protocol::{
    Ack, AckStatus, Document, Encoding, Head, ItemCode, ItemResult, Outbound, canonical_object, decode,
};

#[global_allocator]
static ALLOCATED: divan::AllocProfiler = divan::AllocProfiler::system();

const ITEMS: u64 = 100;

fn main() {
    divan::main();
}

/// A batch of 100 items of 310 bytes.
mod batch {
    use super::*;

    /// Into typed items with canonical fields and hashes.
    #[divan::bench]
    fn decode_items(bencher: Bencher<'_, '_>) {
        let frame = batch_frame(ITEMS);
        let limits = Limits::default();
        bencher
            .counter(BytesCount::of_str(&frame))
            .bench(|| decode(Encoding::Json, black_box(frame.as_bytes()), &limits).expect("a good frame"));
    }

    /// The first half of it: grammar and depth, into a list of nodes.
    #[divan::bench]
    fn parse_document(bencher: Bencher<'_, '_>) {
        let frame = batch_frame(ITEMS);
        bencher.counter(BytesCount::of_str(&frame)).bench(|| {
            let document = Document::parse(black_box(frame.as_bytes()), 64).expect("JSON");
            black_box(document.root().is_object())
        });
    }

    /// What a general parser does with the same bytes, before anything is known about an item.
    #[divan::bench]
    fn serde_json_value(bencher: Bencher<'_, '_>) {
        let frame = batch_frame(ITEMS);
        bencher.counter(BytesCount::of_str(&frame)).bench(|| {
            serde_json::from_slice::<serde_json::Value>(black_box(frame.as_bytes())).expect("JSON")
        });
    }
}

/// A record of 310 bytes.
mod canonical {
    use super::*;

    #[divan::bench]
    fn object_of_document(bencher: Bencher<'_, '_>) {
        let body = body(7);
        let document = Document::parse(body.as_bytes(), 64).expect("JSON");
        bencher
            .counter(BytesCount::of_str(&body))
            .bench(|| canonical_object(black_box(document.root())).expect("a good object"));
    }

    #[divan::bench]
    fn parse_and_object(bencher: Bencher<'_, '_>) {
        let body = body(7);
        bencher.counter(BytesCount::of_str(&body)).bench(|| {
            let document = Document::parse(black_box(body.as_bytes()), 64).expect("JSON");
            canonical_object(document.root()).expect("a good object")
        });
    }

    #[divan::bench]
    fn serde_json_parse_and_write(bencher: Bencher<'_, '_>) {
        let body = body(7);
        bencher.counter(BytesCount::of_str(&body)).bench(|| {
            let value: serde_json::Value = serde_json::from_str(black_box(&body)).expect("JSON");
            serde_json::to_string(&value).expect("JSON")
        });
    }
}

/// The answer to a batch of 100 items.
#[divan::bench]
fn encode_ack(bencher: Bencher<'_, '_>) {
    let result = |index: u64| ItemResult {
        index,
        op_id: Some(format!("0192f3a1-b2c3-7000-8000-{index:012x}")),
        kind: Some("ticket".into()),
        id: Some(format!("t-{index}")),
        code: ItemCode::Applied,
        version: Some(5_000 + index),
        duplicate: false,
        record: None,
        winners: std::collections::BTreeMap::new(),
        conflict_id: None,
        retry_after_ms: None,
        errors: Vec::new(),
    };
    let ack = Outbound::Ack(Ack {
        of: "sync_data".into(),
        status: AckStatus::Ok,
        replayed: false,
        batch_seq: Some(1),
        synced: ITEMS,
        failed: 0,
        conflicts: 0,
        seq: 5_100,
        hlc: "0192f3a1b2c3-0001".into(),
        results: (0..ITEMS).map(result).collect(),
    });
    let head = Head { now_ms: 1_763_692_496_007, reply_to: Some("m1".into()), sync_id: None };
    bencher.counter(ItemsCount::new(ITEMS)).bench(|| black_box(&ack).encode(black_box(&head)));
}
