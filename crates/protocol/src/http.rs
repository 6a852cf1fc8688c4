//! The client's half of `POST /api/v1/sync`.

use driftline_model::{Epoch, KindName};

use crate::client::{ANSWER_DEPTH, Rows, batch, body, json, kinds, malformed, number, text};
use crate::item::Item;
use crate::json::Document;
use crate::outbound::{Ack, Problem};
use crate::write::write_number;
use crate::{Encoding, ErrorCode, Fault};

/// The body of `POST /api/v1/sync`, as a client writes it: one push and one pull.
#[derive(Debug, Clone, Copy)]
pub struct SyncPost<'a> {
    /// The items; none: the request only pulls.
    pub items: &'a [Item],
    /// The batch's number on this device.
    pub batch_seq: u64,
    /// Every change up to this number was answered.
    pub acked_n: u64,
    /// The epoch of the queue's bases.
    pub epoch: Option<Epoch>,
    /// The kinds to pull; empty: all.
    pub data_types: &'a [KindName],
    /// Where the device stands.
    pub cursor: Option<&'a str>,
}

impl SyncPost<'_> {
    /// Encodes the body as JSON.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut out = String::from("{\"acked_n\":");
        write_number(&mut out, self.acked_n);
        kinds(&mut out, self.data_types);
        text(&mut out, "cursor", self.cursor);
        text(&mut out, "epoch", self.epoch.map(|epoch| epoch.to_string()).as_deref());
        if !self.items.is_empty() {
            number(&mut out, "batch_seq", self.batch_seq);
            batch(&mut out, self.items);
        }
        out.push('}');
        out
    }
}

/// The answer 200 to `POST /api/v1/sync`.
#[derive(Debug, Clone)]
pub struct SyncAnswer {
    /// What became of the batch, if one was sent.
    pub ack: Option<Ack>,
    /// The pulled page.
    pub rows: Rows,
}

impl SyncAnswer {
    /// Reads the answer.
    ///
    /// # Errors
    /// [`Fault`] when it is not an answer that this protocol version knows how to read.
    pub fn decode(encoding: Encoding, bytes: &[u8]) -> Result<Self, Fault> {
        let bytes = json(encoding, bytes)?;
        let document = Document::parse(&bytes, ANSWER_DEPTH)
            .map_err(|error| Fault::new(ErrorCode::JsonDecodeError, error.to_string()))?;
        let root = document.root();
        let ack = root.get("ack").filter(|node| !node.is_null());
        Ok(Self {
            ack: ack.map(|node| body(node.to_json().as_bytes())).transpose()?,
            rows: root.get("data").and_then(Rows::read).ok_or_else(|| malformed("data"))?,
        })
    }
}

impl Problem {
    /// Reads a problem document.
    ///
    /// # Errors
    /// [`Fault`] when it is not one.
    pub fn decode(encoding: Encoding, bytes: &[u8]) -> Result<Self, Fault> {
        body(&json(encoding, bytes)?)
    }
}

#[cfg(test)]
mod tests {
    use driftline_model::Limits;

    use super::*;
    use crate::{ClientMessage, SyncRequest, decode};

    fn item() -> Item {
        let text = br#"{"op_id":"o1","n":4,"kind":"note","id":"n-1","op":"patch","base_version":7,"fields":{"a":1},"hlc":"0192f3a1b2c3-0001","group":"g"}"#;
        let document = Document::parse(text, 8).expect("JSON");
        Item::read(document.root()).expect("an item")
    }

    #[test]
    fn the_server_reads_what_a_client_posts() {
        let (items, kinds) = ([item()], [KindName::new("note").expect("a kind")]);
        let post = SyncPost {
            items: &items,
            batch_seq: 2,
            acked_n: 3,
            epoch: Some(Epoch::new(9)),
            data_types: &kinds,
            cursor: Some("c\"1"),
        };
        let request = SyncRequest::decode(Encoding::Json, post.encode().as_bytes(), &Limits::default())
            .expect("a request");
        assert_eq!(request.push.items, [Ok(item())]);
        assert_eq!((request.push.batch_seq, request.push.acked_n), (Some(2), Some(3)));
        assert_eq!((request.epoch, request.pull.cursor.as_deref()), (Some(Epoch::new(9)), Some("c\"1")));
        assert_eq!(request.pull.data_types.as_deref(), Some(&kinds[..]));

        let pull = SyncPost { items: &[], epoch: None, cursor: None, ..post };
        let request = SyncRequest::decode(Encoding::Json, pull.encode().as_bytes(), &Limits::default())
            .expect("a request");
        assert!(request.push.items.is_empty() && request.push.batch_seq.is_none());
    }

    #[test]
    fn a_message_id_travels_beside_the_items() {
        let sync_id = "00000000-0000-4000-8000-000000000001";
        let message = ClientMessage::SyncData { sync_id, items: &[item()], batch_seq: 1, acked_n: 0 };
        let read = decode(Encoding::Json, message.encode_with_id("b1").as_bytes(), &Limits::default())
            .expect("a message");
        assert_eq!(read.id.as_deref(), Some("b1"));
        let read =
            decode(Encoding::Json, message.encode().as_bytes(), &Limits::default()).expect("a message");
        assert_eq!(read.id, None);
    }
}
