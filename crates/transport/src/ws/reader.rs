//! Whole messages from a socket's read half.

use std::io::Cursor;

use bytes::Bytes;
use fastwebsockets::{OpCode, Role, WebSocketError, WebSocketRead};
use tokio::io::{AsyncRead, AsyncReadExt as _, Chain, Sink};

/// The read half, behind bytes that came with the handshake.
type Source<R> = Chain<Cursor<Bytes>, R>;

/// What came from the client.
#[derive(Debug)]
pub(super) enum Incoming {
    Text(Vec<u8>),
    Binary,
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
/// kept until it is done.
pub(super) struct Reader<R> {
    frames: WebSocketRead<Source<R>>,
    message: Vec<u8>,
    fragments: usize,
    open: Option<OpCode>,
    bytes_max: usize,
}

/// Fragments that one message may come in.
const FRAGMENTS_MAX: usize = 4096;

impl<R: AsyncRead + Unpin> Reader<R> {
    pub(super) fn new(read: R, early: Bytes, bytes_max: usize) -> Self {
        let source = Cursor::new(early).chain(read);
        let (mut frames, _): (_, fastwebsockets::WebSocketWrite<Sink>) =
            fastwebsockets::after_handshake_split(source, tokio::io::sink(), Role::Server);
        frames.set_auto_close(false);
        frames.set_auto_pong(false);
        // The library refuses frames of this length and longer, before it reserves room for them.
        frames.set_max_message_size(bytes_max + 1);
        Self { frames, message: Vec::new(), fragments: 0, open: None, bytes_max }
    }

    /// Reads the next message.
    pub(super) async fn next(mut self) -> (Self, Incoming) {
        loop {
            let frame = self.frames.read_frame::<_, WebSocketError>(&mut |_| async { Ok(()) }).await;
            let parts = frame.map(|frame| (frame.fin, frame.opcode, Vec::from(frame.payload)));
            let incoming = match parts {
                Ok((fin, opcode, payload)) => match self.take(fin, opcode, payload) {
                    Some(incoming) => incoming,
                    None => continue,
                },
                Err(error) => broken(&error),
            };
            return (self, incoming);
        }
    }

    fn take(&mut self, fin: bool, opcode: OpCode, payload: Vec<u8>) -> Option<Incoming> {
        match opcode {
            OpCode::Ping => Some(Incoming::Ping(payload)),
            OpCode::Pong => Some(Incoming::Pong),
            OpCode::Close => Some(close(&payload)),
            OpCode::Text | OpCode::Binary if self.open.is_some() => Some(Incoming::Broken(1002)),
            OpCode::Text if fin => Some(Incoming::Text(payload)),
            OpCode::Binary if fin => Some(Incoming::Binary),
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
                Some(if opcode == OpCode::Text { Incoming::Text(message) } else { Incoming::Binary })
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
