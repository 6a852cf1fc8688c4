//! Whole messages from a socket's read half.

use std::io::{self, Cursor};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use fastwebsockets::{OpCode, Role, WebSocketError, WebSocketRead};
use tokio::io::{AsyncRead, AsyncReadExt as _, Chain, ReadBuf, Sink};

use super::gate::{Bounds, Gate};
use super::pump::Message;
use crate::budget::Budget;

/// The read half, behind the first bytes of a message.
type Source<R> = Chain<Cursor<Bytes>, Lent<R>>;

/// The read half behind its gate, lent to the frame parser, which never gives back what it was given.
///
/// The lock protects the half and its gate; the reader and its parser take turns, so that nobody ever waits for it.
struct Lent<R>(Arc<Mutex<Gated<R>>>);

/// A read half and the judge of what comes out of it.
struct Gated<R> {
    read: R,
    gate: Gate,
}

impl<R> Clone for Lent<R> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<R> Lent<R> {
    fn gate<T>(&self, ask: impl FnOnce(&mut Gate) -> T) -> T {
        ask(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner).gate)
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Lent<R> {
    /// Reads as far as the gate lets pass; what it stops is an error, for which it has the code.
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut half = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = buffer.filled().len();
        if half.gate.breach().is_none() {
            ready!(Pin::new(&mut half.read).poll_read(context, buffer))?;
            let admitted = half.gate.admit(&buffer.filled()[before..]);
            buffer.set_filled(before + admitted);
        }
        let stopped = half.gate.breach().is_some() && buffer.filled().len() == before;
        Poll::Ready(if stopped { Err(io::ErrorKind::InvalidData.into()) } else { Ok(()) })
    }
}

/// What came from the client.
#[derive(Debug)]
pub(super) enum Incoming {
    Message(Message),
    Ping(Vec<u8>),
    Pong,
    /// The client closes, with this code if it gave one.
    Close(Option<u16>),
    /// The client broke the protocol; the connection is closed with this code.
    Broken(u16),
    /// The connection is gone.
    Gone,
}

/// Reads frames and puts messages together, within a bound of bytes and fragments.
///
/// Reading a frame is not cancel-safe, so [`Reader::next`] takes the reader and gives it back: the future is
/// kept until it is done. The frame parser holds 8 KiB; a quiet connection does without it.
pub(super) struct Reader<R> {
    source: Lent<R>,
    /// The frame parser, while bytes are under way.
    frames: Option<WebSocketRead<Source<R>>>,
    /// Bytes that came with the handshake or as the first of a message.
    early: Bytes,
    /// Frames that were read.
    taken: u64,
    /// The message in parts that is open, and what there is of it.
    open: Option<OpCode>,
    message: Vec<u8>,
    /// Bytes of the open message that are whole characters.
    valid: usize,
    message_bytes: usize,
}

/// Bytes with which a quiet connection waits for the next message: most pings and heartbeats come whole in them.
const FIRST_BYTES: usize = 64;

impl<R: AsyncRead + Unpin> Reader<R> {
    /// Makes a reader; `early` came before. What large messages need is taken from the budget.
    pub(super) fn new(read: R, mut early: Bytes, bounds: Bounds, budget: Arc<Budget>) -> Self {
        let mut gate = Gate::new(bounds, budget);
        early.truncate(gate.admit(&early));
        Self {
            source: Lent(Arc::new(Mutex::new(Gated { read, gate }))),
            frames: None,
            early,
            taken: 0,
            open: None,
            message: Vec::new(),
            valid: 0,
            message_bytes: bounds.message_bytes,
        }
    }

    /// Reads the next message.
    pub(super) async fn next(mut self) -> (Self, Incoming) {
        loop {
            if self.frames.is_none() && !self.wake().await {
                let breach = self.source.gate(|gate| gate.breach());
                return (self, breach.map_or(Incoming::Gone, |breach| Incoming::Broken(breach.code())));
            }
            let Some(frames) = self.frames.as_mut() else { continue };
            let frame = frames.read_frame::<_, WebSocketError>(&mut |_| async { Ok(()) }).await;
            let parts = frame.map(|frame| (frame.fin, frame.opcode, Vec::from(frame.payload)));
            let incoming = match parts {
                Ok((fin, opcode, payload)) => {
                    self.taken += 1;
                    match self.take(fin, opcode, payload) {
                        Some(incoming) => incoming,
                        None => continue,
                    }
                }
                Err(error) => self.broken(&error),
            };
            if matches!(incoming, Incoming::Message(_)) {
                self.source.gate(Gate::settle);
            }
            // Everything that passed was taken: the parser holds nothing and can go.
            if self.open.is_none() && self.source.gate(|gate| gate.passed_only(self.taken)) {
                self.frames = None;
            }
            return (self, incoming);
        }
    }

    /// Waits for the first bytes of a message and makes a parser for them; tells whether there were any.
    async fn wake(&mut self) -> bool {
        if self.early.is_empty() {
            let mut first = [0; FIRST_BYTES];
            match self.source.read(&mut first).await {
                Ok(count @ 1..) => self.early = Bytes::copy_from_slice(&first[..count]),
                Ok(0) | Err(_) => return false,
            }
        }
        let source = Cursor::new(std::mem::take(&mut self.early)).chain(self.source.clone());
        let (mut frames, _): (_, fastwebsockets::WebSocketWrite<Sink>) =
            fastwebsockets::after_handshake_split(source, tokio::io::sink(), Role::Server);
        frames.set_auto_close(false);
        frames.set_auto_pong(false);
        // The gate keeps the bounds; the parser's own is not to be the narrower one.
        frames.set_max_message_size(self.message_bytes + 1);
        self.frames = Some(frames);
        true
    }

    /// Takes a frame, which the gate found in its place.
    fn take(&mut self, fin: bool, opcode: OpCode, payload: Vec<u8>) -> Option<Incoming> {
        match opcode {
            OpCode::Ping => Some(Incoming::Ping(payload)),
            OpCode::Pong => Some(Incoming::Pong),
            OpCode::Close => Some(close(&payload)),
            OpCode::Text if fin => Some(Incoming::Message(Message::Text(payload))),
            OpCode::Binary if fin => Some(Incoming::Message(Message::Binary(payload))),
            OpCode::Text | OpCode::Binary => {
                self.open = Some(opcode);
                self.message = payload;
                self.valid = 0;
                self.check_text(fin)
            }
            OpCode::Continuation => {
                self.message.extend_from_slice(&payload);
                if let Some(broken) = self.check_text(fin) {
                    return Some(broken);
                }
                if !fin {
                    return None;
                }
                let message = std::mem::take(&mut self.message);
                Some(Incoming::Message(match self.open.take() {
                    Some(OpCode::Text) => Message::Text(message),
                    _ => Message::Binary(message),
                }))
            }
        }
    }

    /// Checks the text of an open message as far as it has come: the library checks whole messages only, for a
    /// character may lie across two parts.
    fn check_text(&mut self, fin: bool) -> Option<Incoming> {
        if self.open != Some(OpCode::Text) {
            return None;
        }
        match std::str::from_utf8(&self.message[self.valid..]) {
            Ok(text) => self.valid += text.len(),
            Err(error) if error.error_len().is_none() && !fin => self.valid += error.valid_up_to(),
            Err(_) => return Some(Incoming::Broken(1007)),
        }
        None
    }

    fn broken(&self, error: &WebSocketError) -> Incoming {
        match error {
            WebSocketError::InvalidUTF8 => Incoming::Broken(1007),
            WebSocketError::FrameTooLarge => Incoming::Broken(1009),
            WebSocketError::ReservedBitsNotZero
            | WebSocketError::ControlFrameFragmented
            | WebSocketError::PingFrameTooLarge
            | WebSocketError::InvalidFragment
            | WebSocketError::InvalidContinuationFrame
            | WebSocketError::InvalidValue => Incoming::Broken(1002),
            _ => {
                let breach = self.source.gate(|gate| gate.breach());
                breach.map_or(Incoming::Gone, |breach| Incoming::Broken(breach.code()))
            }
        }
    }
}

fn close(payload: &[u8]) -> Incoming {
    match payload {
        [] => Incoming::Close(None),
        [_] => Incoming::Broken(1002),
        [high, low, reason @ ..] => {
            let code = u16::from_be_bytes([*high, *low]);
            let allowed = matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999);
            match (allowed, std::str::from_utf8(reason)) {
                (true, Ok(_)) => Incoming::Close(Some(code)),
                (true, Err(_)) => Incoming::Broken(1007),
                (false, _) => Incoming::Broken(1002),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    #[tokio::test]
    async fn a_quiet_connection_holds_no_parser() {
        let (mut peer, read) = tokio::io::duplex(1 << 10);
        let bounds = Bounds { message_bytes: 100, fragments: 3 };
        let mut reader = Reader::new(read, Bytes::new(), bounds, Budget::new(0));
        let whole = [0x81, 0x82, 0, 0, 0, 0, b'h', b'i'];
        for (rest, quiet) in [(0, true), (5, false), (7, false)] {
            // A whole message and the beginning of the next.
            peer.write_all(&whole).await.expect("there is room");
            peer.write_all(&whole[..rest]).await.expect("there is room");
            let incoming;
            (reader, incoming) = reader.next().await;
            assert!(matches!(incoming, Incoming::Message(Message::Text(text)) if text == b"hi"), "{rest}");
            assert_eq!(reader.frames.is_none(), quiet, "{rest} bytes of the next message");
            peer.write_all(&whole[rest..]).await.expect("there is room");
            (reader, _) = reader.next().await;
            assert!(reader.frames.is_none(), "all was taken");
        }
        assert!(reader.early.is_empty() && reader.message.is_empty());
    }
}
