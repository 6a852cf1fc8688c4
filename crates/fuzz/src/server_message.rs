//! What a client reads of a server.

use std::fmt::Debug;

use driftline_model::Limits;
use driftline_protocol::{
    AuditDoc, ConflictDoc, Document, Encoding, Problem, Rows, ServerMessage, SyncAnswer,
};
use serde_json::Value;

use crate::canonical::assert_object;
use crate::target::Verdict;

/// Reads a frame, an answer to a sync, a problem and the documents of reviews.
pub(crate) fn run(input: &[u8]) -> Verdict {
    let known = match ServerMessage::decode_reply(Encoding::Json, input) {
        Ok((_, message)) => {
            assert_message(&message);
            !matches!(message, ServerMessage::Other(_))
        }
        Err(fault) => {
            assert!(!fault.message.is_empty(), "a fault says what is wrong");
            false
        }
    };
    let answer = SyncAnswer::decode(Encoding::Json, input);
    if let Ok(answer) = &answer {
        assert_rows(&answer.rows);
    }
    let problem = Problem::decode(Encoding::Json, input);
    if let Ok(problem) = &problem {
        let written = serde_json::to_vec(problem).expect("a problem is written");
        assert_eq!(
            Problem::decode(Encoding::Json, &written).as_ref(),
            Ok(problem),
            "a problem that was written is read"
        );
    }
    let _ = serde_json::from_slice::<AuditDoc>(input);
    assert_twin(input);
    Verdict::of(known || answer.is_ok() || problem.is_ok())
}

fn assert_message(message: &ServerMessage) {
    match message {
        ServerMessage::Page(rows) | ServerMessage::Delta { rows, .. } => assert_rows(rows),
        ServerMessage::Conflict(doc) => assert_conflict(doc),
        ServerMessage::Ack(ack) => assert_doc(ack),
        ServerMessage::Error(error) => assert_doc(error),
        ServerMessage::ConnectionEstablished(welcome) => assert_doc(&**welcome),
        ServerMessage::SyncSessionStarted(started) => assert_doc(&**started),
        ServerMessage::ResyncRequired(resync) => assert_doc(resync),
        _ => {}
    }
}

fn assert_conflict(doc: &ConflictDoc) {
    assert_doc(doc);
}

/// A document that was written is read as the same.
fn assert_doc<T: serde::Serialize + for<'a> serde::Deserialize<'a> + PartialEq + Debug>(doc: &T) {
    let written = serde_json::to_vec(doc).expect("a document is written");
    let read = serde_json::from_slice::<T>(&written).expect("a document that was written is read");
    assert_eq!(&read, doc, "a document stays what it is");
}

fn assert_rows(rows: &Rows) {
    for change in &rows.changes {
        assert_object(&change.fields);
    }
}

/// Rows are the same in both encodings.
fn assert_twin(input: &[u8]) {
    let depth = Limits::default().depth + 8;
    let Ok(document) = Document::parse(input, depth) else { return };
    let packed = document.to_msgpack();
    let Ok(twin) = Document::parse_msgpack(&packed, depth) else { return };
    assert_eq!(Rows::read(document.root()), Rows::read(twin.root()), "both encodings carry the same rows");
    let text = twin.root().to_json();
    assert!(serde_json::from_str::<Value>(&text).is_ok(), "what MessagePack becomes is JSON: {text}");
}
