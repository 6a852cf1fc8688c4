//! One document in its four forms.

use std::fmt::Write as _;

use driftline_protocol::{Deflater, Document, Encoding, Inflater, msgpack_of_json};
use serde_json::{Map, Value};

/// Deeper than any limit, so that what nests too deep has a twin as well.
const DEPTH: usize = 100;

const BYTES_MAX: usize = 1 << 20;

/// A message as it travels.
pub(crate) struct Packed {
    pub(crate) encoding: Encoding,
    /// What the decoder sees, inflated where the form is a compressed one.
    pub(crate) bytes: Vec<u8>,
}

/// Writes a frame in its other forms into the vector, and returns what a peer reads of each.
///
/// What is no JSON has no twin in MessagePack. The kept bytes of a compressed form need not be ours, for compressors
/// differ, but they must open to the frame; if they do not, ours stand in the vector instead.
pub(crate) fn other_forms(stored: &Value, frame: &str, answer: &mut Map<String, Value>) -> Vec<Packed> {
    let mut forms = vec![deflated(stored, "deflate", frame.as_bytes(), Encoding::Json, answer)];
    if Document::parse(frame.as_bytes(), DEPTH).is_ok() {
        let bytes = msgpack_of_json(frame);
        answer.insert("msgpack".into(), hex(&bytes).into());
        forms.push(deflated(stored, "msgpack_deflate", &bytes, Encoding::MessagePack, answer));
        forms.push(Packed { encoding: Encoding::MessagePack, bytes });
    }
    forms
}

fn deflated(
    stored: &Value,
    key: &str,
    message: &[u8],
    encoding: Encoding,
    answer: &mut Map<String, Value>,
) -> Packed {
    let mut ours = Vec::new();
    Deflater::default().pack(message, &mut ours);
    assert_eq!(opened(&ours).as_deref(), Some(message), "our own bytes open to the message");
    let kept = stored[key].as_str().map(bytes_of).filter(|kept| opened(kept).as_deref() == Some(message));
    answer.insert(key.into(), hex(&kept.unwrap_or(ours)).into());
    Packed { encoding, bytes: message.to_vec() }
}

fn opened(payload: &[u8]) -> Option<Vec<u8>> {
    Inflater::default().open(payload, BYTES_MAX).ok().map(|message| message.into_owned())
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string does not fail");
        text
    })
}

pub(crate) fn bytes_of(hex: &str) -> Vec<u8> {
    let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal digits");
    (0..hex.len()).step_by(2).map(byte).collect()
}
