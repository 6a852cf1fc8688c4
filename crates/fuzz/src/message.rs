//! Messages from clients, in both encodings.

use driftline_model::Limits;
use driftline_protocol::{
    ClientMessage, Document, Encoding, Fault, Inbound, Item, Message, MsgpackError, SyncData, decode,
    json_of_msgpack,
};

use crate::canonical::assert_object;
use crate::target::Verdict;

const SYNC_ID: &str = "0192f3a1-b2c3-7000-8000-00000000abcd";

/// Reads a JSON message.
pub(crate) fn json(input: &[u8]) -> Verdict {
    read(Encoding::Json, input)
}

/// Reads a MessagePack message; the same document in JSON gets the same verdict.
pub(crate) fn msgpack(input: &[u8]) -> Verdict {
    let limits = Limits::default();
    if let Ok(text) = json_of_msgpack(input, limits.depth) {
        let here = decode(Encoding::MessagePack, input, &limits);
        let there = decode(Encoding::Json, text.as_bytes(), &limits);
        assert_same(&here, &there);
    }
    read(Encoding::MessagePack, input)
}

/// Reads a JSON document in both encodings: the verdict and the message are the same.
pub(crate) fn both(input: &[u8]) -> Verdict {
    let limits = Limits::default();
    let Ok(document) = Document::parse(input, limits.depth) else { return Verdict::Refused };
    let packed = document.to_msgpack();
    let here = decode(Encoding::Json, input, &limits);
    match Document::parse_msgpack(&packed, limits.depth) {
        Ok(_) => assert_same(&here, &decode(Encoding::MessagePack, &packed, &limits)),
        // JSON can spell a number beyond what a double holds; MessagePack has nothing to write it with.
        Err(error) => assert_eq!(error, MsgpackError::Unsupported("NaN or an infinity")),
    }
    Verdict::of(here.is_ok())
}

/// Asserts one verdict in both encodings: the same message, or the same fault but for the name of the encoding.
fn assert_same(here: &Result<Message, Fault>, there: &Result<Message, Fault>) {
    match (here, there) {
        (Err(here), Err(there)) => {
            let undecoded = |fault: &Fault| {
                [Encoding::Json, Encoding::MessagePack].iter().any(|one| one.decode_error() == fault.code)
            };
            if undecoded(here) {
                assert!(undecoded(there), "{here:?} is {there:?} in the other encoding");
            } else {
                assert_eq!(here, there, "both encodings get the same fault");
            }
        }
        _ => assert_eq!(here, there, "both encodings carry the same message"),
    }
}

fn read(encoding: Encoding, input: &[u8]) -> Verdict {
    let limits = Limits::default();
    match decode(encoding, input, &limits) {
        Ok(message) => {
            assert!(message.id.as_ref().is_none_or(|id| id.len() <= 64), "an id is short");
            assert_written_again(&message);
            Verdict::Accepted
        }
        Err(fault) => {
            assert!(!fault.message.is_empty(), "a fault says what is wrong");
            assert!(fault.reply_to.as_ref().is_none_or(|id| id.len() <= 64), "an id is short");
            Verdict::Refused
        }
    }
}

/// What was read can be written by a client and is read as the same.
fn assert_written_again(message: &Message) {
    let sync_id = message.sync_id.as_ref().map_or(SYNC_ID, |id| id.as_str());
    match &message.body {
        Inbound::SyncData(data) => {
            let items = good_items(data);
            let (batch_seq, acked_n) = (data.batch_seq.unwrap_or(1), data.acked_n.unwrap_or(0));
            let again = ClientMessage::SyncData { sync_id, items: &items, batch_seq, acked_n };
            let items = items.iter().cloned().map(Ok).collect();
            let wanted = SyncData { items, batch_seq: Some(batch_seq), acked_n: Some(acked_n) };
            assert_read(&again, &Inbound::SyncData(wanted));
        }
        Inbound::RequestServerData(request) if request.limit.is_none() => {
            if let Some(data_types) = &request.data_types {
                let (cursor, range) = (request.cursor.as_deref(), request.range.as_ref());
                let again = ClientMessage::RequestServerData { sync_id, data_types, cursor, range };
                assert_read(&again, &message.body);
            }
        }
        Inbound::RequestChecksums(request) => {
            let again =
                ClientMessage::RequestChecksums { sync_id, range: &request.range, parts: request.parts };
            assert_read(&again, &message.body);
        }
        Inbound::ResolveConflict(decision) => {
            assert_object(&decision.fields);
            let again = ClientMessage::ResolveConflict {
                conflict_id: &decision.conflict_id,
                resolution: decision.resolution,
                fields: &decision.fields,
                version: decision.version,
            };
            assert_read(&again, &message.body);
        }
        _ => {}
    }
}

/// The good items of a batch, each of which has canonical fields.
pub(crate) fn good_items(data: &SyncData) -> Vec<Item> {
    for bad in data.items.iter().filter_map(|item| item.as_ref().err()) {
        assert!(!bad.errors.is_empty(), "a bad item says what is wrong");
    }
    let items: Vec<Item> = data.items.iter().flatten().cloned().collect();
    for item in &items {
        assert_object(&item.fields);
    }
    items
}

fn assert_read(again: &ClientMessage<'_>, wanted: &Inbound) {
    let text = again.encode_with_id("m1");
    // The bounds of size hold for what came in; the canonical text may be a little longer.
    let limits = Limits { message_bytes: usize::MAX, depth: usize::MAX, ..Limits::default() };
    let read = decode(Encoding::Json, text.as_bytes(), &limits).expect("a client's message is read");
    assert_eq!(read.id.as_deref(), Some("m1"));
    assert_eq!(&read.body, wanted, "what was written is read: {text}");
}
