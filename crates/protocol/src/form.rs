//! The forms in which a message travels: two encodings, each plain or compressed.

use std::borrow::Cow;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use thiserror::Error;

use crate::code::{CloseCode, ErrorCode};

/// How a document is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Encoding {
    /// JSON (RFC 8259), in UTF-8.
    #[default]
    Json,
    /// MessagePack with named fields: the same document.
    MessagePack,
}

impl Encoding {
    /// Returns the code that answers bytes which are no document in this encoding.
    #[must_use]
    pub const fn decode_error(self) -> ErrorCode {
        match self {
            Self::Json => ErrorCode::JsonDecodeError,
            Self::MessagePack => ErrorCode::MsgpackDecodeError,
        }
    }
}

/// The form of a connection's messages: what its subprotocol stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Form {
    /// The encoding in which the server writes. Without compression the client's is told by each frame: text is JSON,
    /// binary is MessagePack; with it both sides write in this encoding.
    pub encoding: Encoding,
    /// Whether every message is one binary frame that says itself whether it is compressed.
    pub deflate: bool,
}

impl Form {
    /// Every form.
    pub const ALL: [Self; 4] = [
        Self { encoding: Encoding::Json, deflate: false },
        Self { encoding: Encoding::MessagePack, deflate: false },
        Self { encoding: Encoding::Json, deflate: true },
        Self { encoding: Encoding::MessagePack, deflate: true },
    ];

    /// Returns the WebSocket subprotocol that stands for the form.
    #[must_use]
    pub const fn subprotocol(self) -> &'static str {
        match (self.encoding, self.deflate) {
            (Encoding::Json, false) => "driftline.v1.json",
            (Encoding::MessagePack, false) => "driftline.v1.msgpack",
            (Encoding::Json, true) => "driftline.v1.json+deflate",
            (Encoding::MessagePack, true) => "driftline.v1.msgpack+deflate",
        }
    }

    /// Finds the form of a subprotocol.
    #[must_use]
    pub fn of_subprotocol(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|form| form.subprotocol() == name)
    }
}

/// Messages below this many bytes are sent as they are.
const DEFLATE_BYTES_MIN: usize = 200;

/// The first byte of a message that follows as it is.
const PLAIN: u8 = 0x00;

/// The first byte of a message that follows as raw DEFLATE (RFC 1951).
const DEFLATED: u8 = 0x01;

/// Why a message of a compressed form cannot be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum InflateError {
    /// The first byte is neither that of a plain nor that of a compressed message, or there is none.
    #[error("the message begins with neither 0x00 nor 0x01")]
    Prefix,
    /// What follows is not one whole DEFLATE stream.
    #[error("the message is not one whole DEFLATE stream")]
    Broken,
    /// The message would be larger than it may be.
    #[error("a message may hold {bytes_max} bytes")]
    TooLarge {
        /// The allowed size.
        bytes_max: usize,
    },
}

impl InflateError {
    /// Returns the code with which the socket is closed: what follows a message that cannot be opened is not read.
    #[must_use]
    pub const fn close(self) -> CloseCode {
        match self {
            Self::Prefix | Self::Broken => CloseCode(1007),
            Self::TooLarge { .. } => CloseCode(1009),
        }
    }
}

/// Writes messages of the compressed forms. It holds a quarter of a MiB, so that one per thread is better than one per
/// connection; messages do not depend on those before.
#[derive(Debug)]
pub struct Deflater(Compress);

impl Default for Deflater {
    fn default() -> Self {
        Self(Compress::new(Compression::new(6), false))
    }
}

impl Deflater {
    /// Appends a message with its first byte; compressed when it is long enough and becomes shorter by it.
    pub fn pack(&mut self, message: &[u8], out: &mut Vec<u8>) {
        let start = out.len();
        if message.len() >= DEFLATE_BYTES_MIN {
            out.reserve(message.len() + 1);
            out.push(DEFLATED);
            self.0.reset();
            // What does not fit into the message's own length is not worth sending.
            let done = self.0.compress_vec(message, out, FlushCompress::Finish);
            if matches!(done, Ok(Status::StreamEnd)) && out.len() - start <= message.len() {
                return;
            }
            out.truncate(start);
        }
        out.push(PLAIN);
        out.extend_from_slice(message);
    }
}

/// Opens messages of the compressed forms. It holds some 40 KiB, so that one per thread is better than one per
/// connection.
#[derive(Debug)]
pub struct Inflater(Decompress);

impl Default for Inflater {
    fn default() -> Self {
        Self(Decompress::new(false))
    }
}

/// Room that is made for a message before anything of it is inflated.
const INFLATE_BYTES_FIRST: usize = 4 << 10;

impl Inflater {
    /// Opens a message. No more than `bytes_max` bytes and as much again are ever held, whatever the stream would
    /// become.
    ///
    /// # Errors
    /// [`InflateError`] says what is wrong.
    pub fn open<'m>(&mut self, payload: &'m [u8], bytes_max: usize) -> Result<Cow<'m, [u8]>, InflateError> {
        let too_large = InflateError::TooLarge { bytes_max };
        match payload {
            [PLAIN, message @ ..] if message.len() <= bytes_max => Ok(Cow::Borrowed(message)),
            [PLAIN, ..] => Err(too_large),
            [DEFLATED, stream @ ..] => {
                let message = self.inflate(stream, bytes_max)?;
                message.map(Cow::Owned).ok_or(too_large)
            }
            _ => Err(InflateError::Prefix),
        }
    }

    /// Inflates one whole stream; gives nothing when it becomes larger than it may.
    fn inflate(&mut self, stream: &[u8], bytes_max: usize) -> Result<Option<Vec<u8>>, InflateError> {
        self.0.reset(false);
        // One byte more than allowed tells a message that fits from one that does not.
        let room = bytes_max.saturating_add(1);
        let first = stream.len().saturating_mul(4).max(INFLATE_BYTES_FIRST).min(room);
        let mut message = Vec::with_capacity(first);
        loop {
            let taken = usize::try_from(self.0.total_in()).map_err(|_| InflateError::Broken)?;
            let before = (taken, message.len());
            let status = self.0.decompress_vec(&stream[taken..], &mut message, FlushDecompress::None);
            let status = status.map_err(|_| InflateError::Broken)?;
            let taken = usize::try_from(self.0.total_in()).map_err(|_| InflateError::Broken)?;
            if message.len() > bytes_max {
                return Ok(None);
            }
            if status == Status::StreamEnd {
                let whole = taken == stream.len();
                return if whole { Ok(Some(message)) } else { Err(InflateError::Broken) };
            }
            if message.len() == message.capacity() {
                let more = message.len().min(room - message.len()).max(1);
                message.reserve_exact(more);
            } else if (taken, message.len()) == before {
                // The stream ends before its end was told.
                return Err(InflateError::Broken);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(message: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        Deflater::default().pack(message, &mut out);
        out
    }

    #[test]
    fn forms_have_names() {
        for form in Form::ALL {
            assert_eq!(Form::of_subprotocol(form.subprotocol()), Some(form));
        }
        assert_eq!(Form::of_subprotocol("driftline.v2.json"), None);
    }

    #[test]
    fn messages_come_out_as_they_went_in() {
        let mut inflater = Inflater::default();
        for bytes in [0, 1, 199, 200, 201, 5_000, 1 << 20] {
            let message = b"abcdefgh".iter().copied().cycle().take(bytes).collect::<Vec<u8>>();
            let payload = packed(&message);
            assert_eq!(payload[0], u8::from(bytes >= 200), "{bytes}");
            assert_eq!(inflater.open(&payload, 1 << 20).as_deref(), Ok(&message[..]), "{bytes}");
        }
        // What does not become shorter is sent as it is.
        let noise: Vec<u8> = (0_u32..256).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[1]).collect();
        assert_eq!(packed(&noise)[0], 0);
    }

    #[test]
    fn the_bound_holds_for_both_and_at_the_byte() {
        let mut inflater = Inflater::default();
        for message in [vec![b'x'; 100], vec![b'x'; 100_000]] {
            let payload = packed(&message);
            assert!(inflater.open(&payload, message.len()).is_ok());
            assert!(inflater.open(&payload, usize::MAX).is_ok());
            let error = inflater.open(&payload, message.len() - 1);
            assert_eq!(error, Err(InflateError::TooLarge { bytes_max: message.len() - 1 }));
            assert_eq!(inflater.open(&payload, 0), Err(InflateError::TooLarge { bytes_max: 0 }));
        }
    }

    #[test]
    fn what_is_no_whole_stream_is_refused() {
        let mut inflater = Inflater::default();
        let good = packed(&vec![b'x'; 1_000]);
        let mut longer = good.clone();
        longer.push(0);
        for bad in [&good[..good.len() - 1], &longer, &[1], &[1, 0xff, 0xff], &[1, 0x07]] {
            assert_eq!(inflater.open(bad, 1 << 20), Err(InflateError::Broken), "{bad:02x?}");
        }
        for bad in [&[][..], &[2], b"{}"] {
            assert_eq!(inflater.open(bad, 1 << 20), Err(InflateError::Prefix), "{bad:02x?}");
        }
        assert!(inflater.open(&good, 1 << 20).is_ok(), "a broken stream leaves nothing behind");
    }
}
