//! Bodies of telemetry.

use driftline_model::Limits;
use driftline_protocol::{Document, Encoding, Inbound, IngestPost, Sample};

use crate::canonical::assert_object;
use crate::target::Verdict;

/// Reads a body of telemetry in the encoding that it is; both encodings carry the same one.
pub(crate) fn run(input: &[u8]) -> Verdict {
    let limits = Limits::default();
    let text = Document::parse(input, limits.depth);
    let encoding = if text.is_ok() { Encoding::Json } else { Encoding::MessagePack };
    let post = IngestPost::decode(encoding, input, Some("k"), &limits);
    if let Ok(document) = text {
        let packed = document.to_msgpack();
        if Document::parse_msgpack(&packed, limits.depth).is_ok() {
            let twin = IngestPost::decode(Encoding::MessagePack, &packed, Some("k"), &limits);
            match (&post, &twin) {
                (Err(json), Err(_)) if json.code == Encoding::Json.decode_error() => {}
                _ => assert_eq!(post, twin, "both encodings carry the same body, and the same keys"),
            }
        }
    }
    let Ok(post) = post else { return Verdict::Refused };
    assert!(post.messages.len() <= limits.batch_items, "no more messages than a batch has items");
    for message in post.messages.iter().flatten() {
        if let Inbound::Telemetry(telemetry) = &message.body {
            assert!(telemetry.samples.len() <= limits.batch_items, "no more samples than a batch has items");
            telemetry.samples.iter().flatten().for_each(assert_sample);
        }
    }
    Verdict::of(post.messages.iter().any(Result::is_ok))
}

fn assert_sample(sample: &Sample) {
    assert_object(&sample.fields);
}
