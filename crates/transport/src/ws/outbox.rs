//! What waits to be written to a socket.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncWrite, AsyncWriteExt as _, WriteHalf};
use tokio::net::tcp::OwnedWriteHalf;

use super::frame::{Opcode, write_close, write_frame};

/// How long the last bytes of a connection may take.
pub(super) const FAREWELL: Duration = Duration::from_secs(5);

/// Bytes that are gathered into one write.
const WRITE_BYTES: usize = 64 << 10;

/// The close code of a connection that does not read.
const SLOW: u16 = 4008;

/// A write half that can be torn off.
pub(super) trait Writer: AsyncWrite + Unpin + Send {
    /// Has the connection reset when it is dropped: nobody keeps bytes for a peer that does not read them.
    fn tear(&self);
}

impl Writer for OwnedWriteHalf {
    fn tear(&self) {
        // A socket that is gone already needs no reset.
        let _ = self.as_ref().set_zero_linger();
    }
}

impl Writer for WriteHalf<TokioIo<Upgraded>> {
    /// What is not a plain TCP stream ends as its owner has it.
    fn tear(&self) {}
}

/// The queue outgrew its bytes and is gone: the connection does not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Overflow;

/// A whole frame, or several.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Frame {
    Own(Vec<u8>),
    /// One that other connections send too.
    Shared(Arc<[u8]>),
}

impl Frame {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Own(bytes) => bytes,
            Self::Shared(bytes) => bytes,
        }
    }
}

/// Frames on their way to a socket, within a bound of bytes, and how the connection ends.
#[derive(Debug)]
pub(super) struct Outbox {
    /// Frames that wait, and their bytes.
    queue: VecDeque<Frame>,
    queued: usize,
    /// Frames that are being written in one piece.
    writing: Vec<u8>,
    written: usize,
    bytes_max: usize,
    slow_wait: Duration,
    /// The close code once everything is said.
    end: Option<u16>,
    /// Whether a close frame is queued: nothing may follow it.
    sealed: bool,
}

impl Outbox {
    /// Makes a queue for this many bytes. A peer that is cut for reading too slowly has `slow_wait` to read why.
    pub(super) fn new(bytes_max: usize, slow_wait: Duration) -> Self {
        Self {
            queue: VecDeque::new(),
            queued: 0,
            writing: Vec::new(),
            written: 0,
            bytes_max,
            slow_wait,
            end: None,
            sealed: false,
        }
    }

    /// Returns the bytes that wait and are not being written yet.
    pub(super) fn queued(&self) -> usize {
        self.queued
    }

    /// Returns the frames that wait and are not being written yet.
    pub(super) fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Returns the close code, once the connection is to end.
    pub(super) fn end(&self) -> Option<u16> {
        self.end
    }

    /// Queues a frame. Frames behind a close frame go nowhere.
    ///
    /// # Errors
    /// [`Overflow`], once: the queue is dropped, and what is pushed from then on tells the client why.
    pub(super) fn push(&mut self, opcode: Opcode, payload: &[u8]) -> Result<(), Overflow> {
        if self.sealed {
            return Ok(());
        }
        let mut frame = Vec::new();
        write_frame(&mut frame, opcode, payload);
        self.append(frame)
    }

    /// Queues a whole frame that other connections send too.
    ///
    /// # Errors
    /// As [`Outbox::push`].
    pub(super) fn share(&mut self, frame: Arc<[u8]>) -> Result<(), Overflow> {
        self.admit(Frame::Shared(frame))
    }

    /// Queues whole frames that stand one behind the other.
    ///
    /// # Errors
    /// As [`Outbox::push`].
    pub(super) fn append(&mut self, frames: Vec<u8>) -> Result<(), Overflow> {
        self.admit(Frame::Own(frames))
    }

    fn admit(&mut self, frame: Frame) -> Result<(), Overflow> {
        let bytes = frame.bytes().len();
        if self.sealed || bytes == 0 {
            return Ok(());
        }
        if self.end.is_none() && self.queued + bytes > self.bytes_max {
            self.cut();
            return Err(Overflow);
        }
        self.enqueue(frame);
        Ok(())
    }

    /// Tells whether so little waits that events may be taken.
    pub(super) fn has_room(&self) -> bool {
        self.queued < WRITE_BYTES
    }

    /// Drops the queue of a peer that does not read; what is pushed from then on tells it why.
    pub(super) fn cut(&mut self) {
        self.queue.clear();
        self.queued = 0;
        self.end = Some(SLOW);
    }

    /// Returns how long a peer may take nothing of what presses, and then how long it may take to read why it was cut.
    pub(super) fn slow_wait(&self) -> Duration {
        self.slow_wait
    }

    /// Queues a close frame, the last frame, and ends the connection behind it.
    pub(super) fn close(&mut self, code: u16, reason: &str) {
        let mut frame = Vec::new();
        write_close(&mut frame, code, reason);
        self.seal(code, frame);
    }

    /// Queues a close frame without a code, as the client sent one.
    pub(super) fn close_wordless(&mut self) {
        let mut frame = Vec::new();
        write_frame(&mut frame, Opcode::Close, &[]);
        self.seal(1005, frame);
    }

    /// Ends a connection to which nothing can be said.
    pub(super) fn abandon(&mut self) {
        self.end = Some(1006);
    }

    fn seal(&mut self, code: u16, frame: Vec<u8>) {
        if !self.sealed {
            self.enqueue(Frame::Own(frame));
            self.sealed = true;
            self.end = Some(code);
        }
    }

    fn enqueue(&mut self, frame: Frame) {
        self.queued += frame.bytes().len();
        self.queue.push_back(frame);
    }

    /// Moves waiting frames into the buffer that is being written; tells whether that holds anything.
    pub(super) fn gather(&mut self) -> bool {
        if !self.writing.is_empty() {
            return true;
        }
        while let Some(frame) = self.queue.pop_front() {
            self.queued -= frame.bytes().len();
            match frame {
                Frame::Own(bytes) if self.writing.is_empty() => self.writing = bytes,
                frame => self.writing.extend_from_slice(frame.bytes()),
            }
            if self.writing.len() >= WRITE_BYTES {
                break;
            }
        }
        !self.writing.is_empty()
    }

    /// Tells whether so much waits that it should be written before anything else is done.
    pub(super) fn presses(&self) -> bool {
        self.queued > WRITE_BYTES
    }

    /// Writes what the socket takes now, if it takes any.
    pub(super) async fn write_now<W: AsyncWrite + Unpin>(&self, write: &mut W) -> Option<io::Result<usize>> {
        let rest = &self.writing[self.written..];
        poll_fn(|context| match Pin::new(&mut *write).poll_write(context, rest) {
            Poll::Ready(wrote) => Poll::Ready(Some(wrote)),
            Poll::Pending => Poll::Ready(None),
        })
        .await
    }

    /// Writes a part of what was gathered, as soon as the socket takes it. Nothing is written when this is dropped.
    pub(super) async fn write<W: AsyncWrite + Unpin>(&self, write: &mut W) -> io::Result<usize> {
        write.write(&self.writing[self.written..]).await
    }

    /// Forgets bytes that were written.
    pub(super) fn wrote(&mut self, bytes: usize) {
        self.written += bytes;
        if self.written == self.writing.len() {
            self.written = 0;
            // A quiet connection keeps no buffer.
            self.writing = Vec::new();
        }
    }

    /// Writes what is left and closes, as far as the peer takes it in time; else the connection is reset.
    pub(super) async fn farewell<W: Writer>(&mut self, write: &mut W) {
        let wait = if self.end == Some(SLOW) { self.slow_wait } else { FAREWELL };
        let farewell = async {
            let mut done = write.write_all(&self.writing[self.written..]).await;
            for frame in &self.queue {
                if done.is_ok() {
                    done = write.write_all(frame.bytes()).await;
                }
            }
            if done.is_ok() {
                // The peer may be gone already.
                let _ = write.shutdown().await;
            }
        };
        if tokio::time::timeout(wait, farewell).await.is_err() {
            write.tear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_that_outgrows_its_bytes_is_dropped_once() {
        let mut outbox = Outbox::new(10, FAREWELL);
        assert_eq!(outbox.push(Opcode::Text, b"12345678"), Ok(()));
        assert_eq!(outbox.push(Opcode::Text, b""), Err(Overflow));
        assert_eq!((outbox.queued(), outbox.end()), (0, Some(4008)));
        assert_eq!(outbox.push(Opcode::Text, b"this is why the connection ends"), Ok(()));
        outbox.close(4008, "");
        assert_eq!(outbox.queued(), 33 + 4);
    }

    #[test]
    fn nothing_follows_a_close_frame() {
        let mut outbox = Outbox::new(100, FAREWELL);
        outbox.close(1000, "");
        outbox.close(4000, "too late");
        assert_eq!(outbox.push(Opcode::Text, b"too late"), Ok(()));
        assert_eq!((outbox.queued(), outbox.end()), (4, Some(1000)));
    }
}
