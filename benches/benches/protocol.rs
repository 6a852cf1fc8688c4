//! The wire: reading a batch, the canonical form, writing an answer.

use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use driftline_benches::{batch_frame, body};
use driftline_model::Limits;
use driftline_protocol::{
    Ack, AckStatus, Deflater, Document, Encoding, Head, Inflater, ItemCode, ItemResult, Outbound,
    canonical_object, decode, msgpack_of_json,
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

    /// The same batch in MessagePack.
    #[divan::bench]
    fn decode_items_msgpack(bencher: Bencher<'_, '_>) {
        let frame = msgpack_of_json(&batch_frame(ITEMS));
        let limits = Limits::default();
        bencher
            .counter(BytesCount::of_slice(&frame))
            .bench(|| decode(Encoding::MessagePack, black_box(&frame), &limits).expect("a good frame"));
    }

    /// The first half of it: markers and depth, into a list of nodes.
    #[divan::bench]
    fn parse_document_msgpack(bencher: Bencher<'_, '_>) {
        let frame = msgpack_of_json(&batch_frame(ITEMS));
        bencher.counter(BytesCount::of_slice(&frame)).bench(|| {
            let document = Document::parse_msgpack(black_box(&frame), 64).expect("MessagePack");
            black_box(document.root().is_object())
        });
    }

    /// Opening the batch as a client of a compressed form sends it.
    #[divan::bench(args = [Encoding::Json, Encoding::MessagePack])]
    fn inflate(bencher: Bencher<'_, '_>, encoding: Encoding) {
        let frame = in_encoding(encoding, &batch_frame(ITEMS));
        let mut packed = Vec::new();
        Deflater::default().pack(&frame, &mut packed);
        let mut inflater = Inflater::default();
        bencher.counter(BytesCount::of_slice(&frame)).bench_local(move || {
            inflater
                .open(black_box(&packed), frame.len())
                .map(|message| message.len())
                .expect("a good stream")
        });
    }

    /// The first half of decoding JSON: grammar and depth, into a list of nodes.
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

fn in_encoding(encoding: Encoding, json: &str) -> Vec<u8> {
    match encoding {
        Encoding::Json => json.as_bytes().to_vec(),
        Encoding::MessagePack => msgpack_of_json(json),
    }
}

/// The answer to a batch of 100 items.
mod ack {
    use super::*;

    #[divan::bench]
    fn encode(bencher: Bencher<'_, '_>) {
        let (ack, head) = (ack(), head());
        bencher.counter(ItemsCount::new(ITEMS)).bench(|| black_box(&ack).encode(black_box(&head)));
    }

    /// What a connection that speaks MessagePack adds to it.
    #[divan::bench]
    fn msgpack_of_text(bencher: Bencher<'_, '_>) {
        let text = ack().encode(&head());
        bencher.counter(ItemsCount::new(ITEMS)).bench(|| msgpack_of_json(black_box(&text)));
    }

    /// What a connection of a compressed form adds to it.
    #[divan::bench(args = [Encoding::Json, Encoding::MessagePack])]
    fn deflate(bencher: Bencher<'_, '_>, encoding: Encoding) {
        let message = in_encoding(encoding, &ack().encode(&head()));
        let mut deflater = Deflater::default();
        bencher.counter(BytesCount::of_slice(&message)).bench_local(move || {
            let mut packed = Vec::new();
            deflater.pack(black_box(&message), &mut packed);
            packed
        });
    }

    /// What a client of a compressed form does first.
    #[divan::bench(args = [Encoding::Json, Encoding::MessagePack])]
    fn inflate(bencher: Bencher<'_, '_>, encoding: Encoding) {
        let message = in_encoding(encoding, &ack().encode(&head()));
        let mut packed = Vec::new();
        Deflater::default().pack(&message, &mut packed);
        let mut inflater = Inflater::default();
        bencher.counter(BytesCount::of_slice(&message)).bench_local(move || {
            inflater
                .open(black_box(&packed), message.len())
                .map(|message| message.len())
                .expect("a good stream")
        });
    }
}

fn head() -> Head {
    Head { now_ms: 1_763_692_496_007, reply_to: Some("m1".into()), sync_id: None }
}

fn ack() -> Outbound {
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
    Outbound::Ack(Ack {
        resend_recognised: None,
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
    })
}
