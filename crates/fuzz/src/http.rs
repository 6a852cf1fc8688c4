//! Bodies of HTTP requests.

use driftline_model::Limits;
use driftline_protocol::{Document, Encoding, Fault, ResolvePost, SyncPost, SyncRequest};

use crate::canonical::assert_object;
use crate::message::good_items;
use crate::target::Verdict;

/// Reads a body as that of a sync and as that of a decision, in the encoding that it is.
pub(crate) fn run(input: &[u8]) -> Verdict {
    let limits = Limits::default();
    let text = Document::parse(input, limits.depth);
    let encoding = if text.is_ok() { Encoding::Json } else { Encoding::MessagePack };
    let sync = SyncRequest::decode(encoding, input, &limits);
    let decision = ResolvePost::decode(encoding, input, &limits);
    if let Ok(document) = text {
        let packed = document.to_msgpack();
        if Document::parse_msgpack(&packed, limits.depth).is_ok() {
            let twin = SyncRequest::decode(Encoding::MessagePack, &packed, &limits);
            assert_same(&sync, &twin);
            let twin = ResolvePost::decode(Encoding::MessagePack, &packed, &limits);
            assert_same(&decision, &twin);
        }
    }
    if let Ok(request) = &sync {
        assert_posted_again(request);
    }
    if let Ok(decision) = &decision {
        assert_object(&decision.fields);
    }
    Verdict::of(sync.is_ok() || decision.is_ok())
}

/// Both encodings get the same verdict; a body that is no document has a code of each encoding's own.
fn assert_same<T: PartialEq + std::fmt::Debug>(json: &Result<T, Fault>, msgpack: &Result<T, Fault>) {
    match (json, msgpack) {
        (Err(json), Err(_)) if json.code == Encoding::Json.decode_error() => {}
        _ => assert_eq!(json, msgpack, "both encodings carry the same body"),
    }
}

/// What was read can be posted by a client and is read as the same.
fn assert_posted_again(request: &SyncRequest) {
    let items = good_items(&request.push);
    let (batch_seq, acked_n) = (request.push.batch_seq.unwrap_or(1), request.push.acked_n.unwrap_or(0));
    let data_types = request.pull.data_types.clone().unwrap_or_default();
    let cursor = request.pull.cursor.as_deref();
    let post =
        SyncPost { items: &items, batch_seq, acked_n, epoch: request.epoch, data_types: &data_types, cursor };
    let limits = Limits { message_bytes: usize::MAX, depth: usize::MAX, ..Limits::default() };
    let read = SyncRequest::decode(Encoding::Json, post.encode().as_bytes(), &limits);
    let read = read.expect("a client's body is read");
    assert!(read.push.items.iter().flatten().eq(&items), "what was posted is read");
    assert_eq!(read.push.items.len(), items.len(), "nothing else is read");
    assert_eq!((read.epoch, read.pull.cursor.as_deref()), (request.epoch, cursor));
    assert_eq!(read.pull.data_types, Some(data_types));
}
