//! Whole messages from a socket's read half.

use std::io::{self, Cursor};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use fastwebsockets::{OpCode, Role, WebSocketError, WebSocketRead};
use tokio::io::{AsyncRead, AsyncReadExt as _, Chain, ReadBuf, Sink};

use super::pump::Message;

/// The read half, behind the first bytes of a message.
type Source<R> = Chain<Cursor<Bytes>, Lent<R>>;

/// The read half, lent to the frame parser, which never gives back what it was given.
///
/// The lock protects the half and its count; the reader and its parser take turns, so that nobody ever waits for it.
struct Lent<R>(Arc<Mutex<Counted<R>>>);

/// A read half and the bytes that came out of it.
struct Counted<R> {
    read: R,
    given: u64,
}

impl<R> Clone for Lent<R> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<R> Lent<R> {
    fn given(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).given
    }

    /// Counts bytes that came beside the half.
    fn count(&self, bytes: usize) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).given += bytes as u64;
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Lent<R> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut half = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = buffer.filled().len();
        let polled = Pin::new(&mut half.read).poll_read(context, buffer);
        half.given += (buffer.filled().len() - before) as u64;
        polled
    }
}

/// The bytes of a masked frame in its shortest form (RFC 6455 §5.2). Another form makes the count differ, and the
/// connection keeps its parser.
fn frame_bytes(payload: usize) -> u64 {
    let length = match payload {
        0..126 => 0,
        126..0x1_0000 => 2,
        _ => 8,
    };
    2 + length + 4 + payload as u64
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
    /// Bytes that the frames read so far took, with their heads.
    taken: u64,
    message: Vec<u8>,
    fragments: usize,
    open: Option<OpCode>,
    bytes_max: usize,
}

/// Fragments that one message may come in.
const FRAGMENTS_MAX: usize = 4096;

/// Bytes with which a quiet connection waits for the next message.
const FIRST_BYTES: usize = 128;

impl<R: AsyncRead + Unpin> Reader<R> {
    pub(super) fn new(read: R, early: Bytes, bytes_max: usize) -> Self {
        let source = Lent(Arc::new(Mutex::new(Counted { read, given: 0 })));
        Self {
            source,
            frames: None,
            early,
            taken: 0,
            message: Vec::new(),
            fragments: 0,
            open: None,
            bytes_max,
        }
    }

    /// Reads the next message.
    pub(super) async fn next(mut self) -> (Self, Incoming) {
        loop {
            if self.frames.is_none() && !self.wake().await {
                return (self, Incoming::Gone);
            }
            let Some(frames) = self.frames.as_mut() else { continue };
            let frame = frames.read_frame::<_, WebSocketError>(&mut |_| async { Ok(()) }).await;
            let parts = frame.map(|frame| (frame.fin, frame.opcode, Vec::from(frame.payload)));
            let incoming = match parts {
                Ok((fin, opcode, payload)) => {
                    self.taken += frame_bytes(payload.len());
                    match self.take(fin, opcode, payload) {
                        Some(incoming) => incoming,
                        None => continue,
                    }
                }
                Err(error) => broken(&error),
            };
            // Everything that was given was taken: the parser holds nothing and can go.
            if self.open.is_none() && self.taken == self.source.given() {
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
        } else {
            self.source.count(self.early.len());
        }
        let source = Cursor::new(std::mem::take(&mut self.early)).chain(self.source.clone());
        let (mut frames, _): (_, fastwebsockets::WebSocketWrite<Sink>) =
            fastwebsockets::after_handshake_split(source, tokio::io::sink(), Role::Server);
        frames.set_auto_close(false);
        frames.set_auto_pong(false);
        // The library refuses frames of this length and longer, before it reserves room for them.
        frames.set_max_message_size(self.bytes_max + 1);
        self.frames = Some(frames);
        true
    }

    fn take(&mut self, fin: bool, opcode: OpCode, payload: Vec<u8>) -> Option<Incoming> {
        match opcode {
            // The library looks at the length of pings only.
            OpCode::Pong | OpCode::Close if payload.len() > 125 => Some(Incoming::Broken(1002)),
            OpCode::Ping => Some(Incoming::Ping(payload)),
            OpCode::Pong => Some(Incoming::Pong),
            OpCode::Close => Some(close(&payload)),
            OpCode::Text | OpCode::Binary if self.open.is_some() => Some(Incoming::Broken(1002)),
            OpCode::Text if fin => Some(Incoming::Message(Message::Text(payload))),
            OpCode::Binary if fin => Some(Incoming::Message(Message::Binary(payload))),
            OpCode::Text | OpCode::Binary => {
                self.open = Some(opcode);
                self.fragments = 0;
                self.message.clear();
                self.append(&payload)
            }
            OpCode::Continuation => {
                let Some(opcode) = self.open else { return Some(Incoming::Broken(1002)) };
                if let Some(broken) = self.append(&payload) {
                    return Some(broken);
                }
                if !fin {
                    return None;
                }
                self.open = None;
                let message = std::mem::take(&mut self.message);
                // The library checks the text of whole messages only, for a character may lie across two parts.
                Some(match opcode {
                    OpCode::Text if std::str::from_utf8(&message).is_err() => Incoming::Broken(1007),
                    OpCode::Text => Incoming::Message(Message::Text(message)),
                    _ => Incoming::Message(Message::Binary(message)),
                })
            }
        }
    }

    fn append(&mut self, payload: &[u8]) -> Option<Incoming> {
        self.fragments += 1;
        if self.message.len() + payload.len() > self.bytes_max || self.fragments > FRAGMENTS_MAX {
            return Some(Incoming::Broken(1009));
        }
        self.message.extend_from_slice(payload);
        None
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

fn broken(error: &WebSocketError) -> Incoming {
    match error {
        WebSocketError::FrameTooLarge => Incoming::Broken(1009),
        WebSocketError::InvalidUTF8 => Incoming::Broken(1007),
        WebSocketError::ReservedBitsNotZero
        | WebSocketError::ControlFrameFragmented
        | WebSocketError::PingFrameTooLarge
        | WebSocketError::InvalidFragment
        | WebSocketError::InvalidContinuationFrame
        | WebSocketError::InvalidValue => Incoming::Broken(1002),
        _ => Incoming::Gone,
    }
}
