//! The figures, and how they are shown.

use std::fmt::Write as _;

use driftline_protocol::{Deflater, Encoding, Form, msgpack_of_json};
use serde::Serialize;

use crate::load::frame::{Opcode, write_frame};

/// A message that is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    /// A batch on its way to the server.
    SyncData,
    /// Its answer.
    Ack,
    /// What another device is told of it.
    ServerDelta,
}

impl Message {
    const fn name(self) -> &'static str {
        match self {
            Self::SyncData => "sync_data",
            Self::Ack => "ack",
            Self::ServerDelta => "server_delta",
        }
    }
}

/// The bytes of a frame in every form.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Count {
    /// Plain JSON.
    pub json: f64,
    /// Plain MessagePack.
    pub msgpack: f64,
    /// Compressed JSON.
    pub json_deflate: f64,
    /// Compressed MessagePack, which a client asks for first.
    pub msgpack_deflate: f64,
}

/// What a message takes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// The message.
    pub message: Message,
    /// The edits behind it.
    pub what: String,
    /// How many they are.
    pub items: usize,
    /// The bytes when edits write the whole record.
    pub whole: Count,
    /// The bytes when they write what changed.
    pub changed: Count,
    /// What changed, as compressed MessagePack, against whole records as plain JSON.
    pub ratio: f64,
}

impl Row {
    /// Counts the frames of the same messages with whole records and with changed fields; several are averaged.
    pub(super) fn new(
        (message, what, items): (Message, &str, usize),
        whole: &[String],
        changed: &[String],
    ) -> Self {
        let masked = message == Message::SyncData;
        let (whole, changed) = (Count::mean(whole, masked), Count::mean(changed, masked));
        let ratio = changed.msgpack_deflate / whole.json;
        Self { message, what: what.to_owned(), items, whole, changed, ratio }
    }
}

impl Count {
    #[allow(clippy::cast_precision_loss, reason = "frames are far shorter than 2^52 bytes")]
    fn mean(texts: &[String], masked: bool) -> Self {
        let of = |form: Form| {
            let bytes: usize = texts.iter().map(|text| frame_bytes(text, form, masked)).sum();
            bytes as f64 / texts.len() as f64
        };
        let form = |encoding, deflate| of(Form { encoding, deflate });
        Self {
            json: form(Encoding::Json, false),
            msgpack: form(Encoding::MessagePack, false),
            json_deflate: form(Encoding::Json, true),
            msgpack_deflate: form(Encoding::MessagePack, true),
        }
    }
}

/// The bytes of the whole frame that carries a message.
fn frame_bytes(json: &str, form: Form, masked: bool) -> usize {
    const MASK: [u8; 4] = [0x3a, 0xc5, 0x91, 0x0e];
    let message = match form.encoding {
        Encoding::Json => json.as_bytes().to_vec(),
        Encoding::MessagePack => msgpack_of_json(json),
    };
    let mut payload = message;
    if form.deflate {
        let plain = std::mem::take(&mut payload);
        Deflater::default().pack(&plain, &mut payload);
    }
    let mut frame = Vec::new();
    write_frame(Opcode::Binary, &payload, MASK, &mut frame);
    frame.len() - if masked { 0 } else { MASK.len() }
}

/// All figures, and the four that bar P15 is about.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// What decides ids, values and times.
    pub seed: u64,
    /// A batch of 100 edits made at once, to the server.
    pub p15_batch_up: f64,
    /// A batch of 100 edits made 30 s apart, to the server.
    pub p15_work_up: f64,
    /// The live changes of a batch of 100.
    pub p15_batch_down: f64,
    /// A single edit, to the server.
    pub p15_edit_up: f64,
    /// The live change of a single edit.
    pub p15_edit_down: f64,
    /// Every message.
    pub rows: Vec<Row>,
}

impl Report {
    pub(super) fn new(seed: u64, rows: Vec<Row>) -> Self {
        let ratio = |message, batch: bool, last: bool| {
            let found = |row: &&Row| row.message == message && (row.items > 1) == batch;
            let row = if last { rows.iter().rfind(found) } else { rows.iter().find(found) };
            row.map_or(f64::NAN, |row| row.ratio)
        };
        Self {
            seed,
            p15_batch_up: ratio(Message::SyncData, true, false),
            p15_work_up: ratio(Message::SyncData, true, true),
            p15_batch_down: ratio(Message::ServerDelta, true, false),
            p15_edit_up: ratio(Message::SyncData, false, false),
            p15_edit_down: ratio(Message::ServerDelta, false, false),
            rows,
        }
    }

    /// Shows the figures as a Markdown table.
    #[must_use]
    pub fn table(&self) -> String {
        let mut out = String::from(
            "| message | edits | whole, JSON | changed, JSON | MessagePack | JSON+deflate | MessagePack+deflate | ratio |\n|---|---|---|---|---|---|---|---|\n",
        );
        for row in &self.rows {
            let Row { message, what, whole, changed, ratio, .. } = row;
            let Count { json, msgpack, json_deflate, msgpack_deflate } = changed;
            // Writing to a string does not fail.
            let _ = writeln!(
                out,
                "| `{}` | {what} | {:.0} | {json:.0} | {msgpack:.0} | {json_deflate:.0} | {msgpack_deflate:.0} | {ratio:.3} |",
                message.name(),
                whole.json,
            );
        }
        out
    }
}
