//! Messages in the form of their connection. The tools for it are large, so that every thread has its own.

use std::borrow::Cow;
use std::cell::RefCell;
use std::sync::Arc;

use driftline_engine::{Event, Heard};
use driftline_model::Limits;
use driftline_protocol::{
    self as protocol, Deflater, Encoding, ErrorCode, EventView, Fault, Form, InflateError, Inflater, decode,
    msgpack_of_json,
};

use super::frame::{Opcode, write_frame};
use super::pump::Message;

thread_local! {
    static DEFLATER: RefCell<Deflater> = RefCell::default();
    static INFLATER: RefCell<Inflater> = RefCell::default();
    /// Where events become text before they become frames.
    static TEXT: RefCell<String> = RefCell::default();
}

/// Bytes of text that a thread keeps room for.
const TEXT_BYTES: usize = 64 << 10;

/// A frame that is none of the connection's form: the close code, and what is wrong.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Misfit(pub(super) u16, pub(super) &'static str);

/// Returns the bytes that a frame of the form may hold.
pub(super) fn frame_bytes(form: Form, limits: &Limits) -> usize {
    limits.message_bytes + usize::from(form.deflate)
}

/// Reads a message, or why it could not be decoded.
///
/// # Errors
/// [`Misfit`] says that the frame is none of the form.
pub(super) fn open(
    form: Form,
    message: &Message,
    limits: &Limits,
) -> Result<Result<protocol::Message, Fault>, Misfit> {
    match (form.deflate, message) {
        (false, Message::Text(frame)) => Ok(decode(Encoding::Json, frame, limits)),
        (false, Message::Binary(frame)) => Ok(decode(Encoding::MessagePack, frame, limits)),
        (true, Message::Text(_)) => Err(Misfit(1003, "this connection speaks in binary frames")),
        (true, Message::Binary(frame)) => {
            INFLATER.with_borrow_mut(|inflater| match inflater.open(frame, limits.message_bytes) {
                Ok(message) => Ok(decode(form.encoding, &message, limits)),
                Err(error @ InflateError::TooLarge { .. }) => {
                    Ok(Err(Fault::new(ErrorCode::MessageTooLarge, error.to_string())))
                }
                Err(error) => Err(Misfit(error.close().0, "a message is 0x00 or 0x01 and what that says")),
            })
        }
    }
}

/// Hands a message of the server's over in the form, as the opcode and the payload of its frame.
pub(super) fn seal<T>(form: Form, json: &str, hand_over: impl FnOnce(Opcode, &[u8]) -> T) -> T {
    let encoded = match form.encoding {
        Encoding::Json if !form.deflate => return hand_over(Opcode::Text, json.as_bytes()),
        Encoding::Json => Cow::Borrowed(json.as_bytes()),
        Encoding::MessagePack => Cow::Owned(msgpack_of_json(json)),
    };
    if !form.deflate {
        return hand_over(Opcode::Binary, &encoded);
    }
    let mut packed = Vec::new();
    DEFLATER.with_borrow_mut(|deflater| deflater.pack(&encoded, &mut packed));
    hand_over(Opcode::Binary, &packed)
}

/// Makes the frame of an event in the form, once for all connections of the form that get it by the same topic.
pub(super) fn event_frame(form: Form, heard: &Heard, now_ms: u64) -> Arc<[u8]> {
    let number = match (form.encoding, form.deflate) {
        (Encoding::Json, false) => 0,
        (Encoding::Json, true) => 1,
        (Encoding::MessagePack, false) => 2,
        (Encoding::MessagePack, true) => 3,
    };
    heard.event.form(heard.topic, number, |event, topic| {
        let mut frame = Vec::new();
        write_event_frame(form, event, topic, now_ms, &mut frame);
        Arc::from(frame)
    })
}

/// Appends the frame of an event in the form.
fn write_event_frame(form: Form, event: &Event, topic: &str, now_ms: u64, out: &mut Vec<u8>) {
    TEXT.with_borrow_mut(|text| {
        view(event, topic, now_ms).write(text);
        seal(form, text, |opcode, payload| write_frame(out, opcode, payload));
        text.clear();
        // Room for one that was very large is not kept.
        text.shrink_to(TEXT_BYTES);
    });
}

/// Appends the frame of an event that nobody else is told of.
pub(super) fn write_heard(form: Form, heard: &Heard, now_ms: u64, out: &mut Vec<u8>) {
    let event = &heard.event;
    let topic = event.topics.get(heard.topic).map_or("", |topic| topic);
    write_event_frame(form, event, topic, now_ms, out);
}

/// Writes an event as JSON, as sockets and streams tell it.
pub(crate) fn event_text(event: &Event, topic: &str, now_ms: u64) -> String {
    view(event, topic, now_ms).encode()
}

fn view<'e>(event: &'e Event, topic: &'e str, now_ms: u64) -> EventView<'e> {
    EventView {
        kind: &event.kind,
        id: event.id.map(|id| (event.epoch, id)),
        topic,
        values: &event.values,
        data: &event.data,
        at_ms: event.at_ms,
        now_ms,
    }
}
