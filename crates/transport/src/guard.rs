//! The times of a connection: how long a head, the next request and the taking of an answer may last.
//!
//! hyper's own timer restarts with every head and knows no idle time, and nothing in it bounds a write.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use driftline_model::Limits;
use futures_util::task::AtomicWaker;
use hyper::body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::{Sleep, sleep};

/// The times that a connection may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    head: Duration,
    idle: Duration,
    write: Duration,
}

impl Times {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            head: Duration::from_millis(limits.header_ms),
            idle: Duration::from_millis(limits.idle_ms),
            write: Duration::from_millis(limits.write_ms),
        }
    }
}

/// Whose turn it is: even while the peer is to send a request, odd while one is being answered.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    count: AtomicU32,
    /// The connection, which may have looked for the next request before the turn came back.
    connection: AtomicWaker,
}

impl Turns {
    /// Begins to answer; the peer's turn comes back when the answer is dropped.
    pub(crate) fn answer(self: &Arc<Self>) -> Turn {
        self.count.fetch_add(1, Ordering::Relaxed);
        Turn(Arc::clone(self))
    }

    fn now(&self) -> u32 {
        self.count.load(Ordering::Relaxed)
    }
}

/// One request while it is answered.
#[derive(Debug)]
pub(crate) struct Turn(Arc<Turns>);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.count.fetch_add(1, Ordering::Relaxed);
        self.0.connection.wake();
    }
}

/// The body of an answer, with whose end the turn ends.
#[derive(Debug)]
pub(crate) struct Answering {
    pub(crate) body: Body,
    pub(crate) _turn: Turn,
}

impl hyper::body::Body for Answering {
    type Data = bytes::Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// How a connection came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// One side closed it.
    Closed,
    /// A head was begun and not finished in time.
    Late,
    /// No request came in time.
    Silent,
    /// The peer did not take an answer.
    Stuck,
}

/// What is left of a connection.
#[derive(Debug)]
pub(crate) struct Parting {
    pub(crate) stream: TcpStream,
    pub(crate) end: End,
}

/// A stream that fails when its peer takes too long. What it is worth at the end comes back by a channel, unless it
/// was taken out for another protocol.
#[derive(Debug)]
pub(crate) struct Guard {
    stream: Option<TcpStream>,
    back: Option<oneshot::Sender<Parting>>,
    turns: Arc<Turns>,
    times: Times,
    end: End,
    /// The turn of the peer for which the timer stands.
    timed: Option<u32>,
    timer: Pin<Box<Sleep>>,
    /// Whether something came in this turn.
    begun: bool,
    /// Runs while the peer takes nothing.
    stuck: Option<Pin<Box<Sleep>>>,
}

impl Guard {
    /// Puts a guard before a stream that was just accepted.
    pub(crate) fn new(
        stream: TcpStream,
        turns: Arc<Turns>,
        times: Times,
    ) -> (Self, oneshot::Receiver<Parting>) {
        let (back, parting) = oneshot::channel();
        let guard = Self {
            stream: Some(stream),
            back: Some(back),
            turns,
            times,
            end: End::Closed,
            // The first head has its time from the accepting on.
            timed: Some(0),
            timer: Box::pin(sleep(times.head)),
            begun: false,
            stuck: None,
        };
        (guard, parting)
    }

    /// Takes the stream out, without its times; nothing is given when that was done before.
    pub(crate) fn into_stream(mut self) -> Option<TcpStream> {
        self.stream.take()
    }

    fn stream(&mut self) -> io::Result<Pin<&mut TcpStream>> {
        self.stream.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Sees to it that the timer stands for this turn; false while the peer owes nothing.
    fn timed(&mut self) -> bool {
        let turn = self.turns.now();
        if turn % 2 == 1 {
            return false;
        }
        if self.timed != Some(turn) {
            self.timed = Some(turn);
            self.begun = false;
            self.timer.set(sleep(self.times.idle));
        }
        true
    }

    fn heard(&mut self) {
        if self.timed() && !self.begun {
            self.begun = true;
            if self.timed != Some(0) {
                self.timer.set(sleep(self.times.head));
            }
        }
    }

    fn poll_late(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.timed() {
            self.turns.connection.register(context.waker());
            // The turn may have come back before anybody was to be woken.
            if !self.timed() {
                return Poll::Pending;
            }
        }
        if self.timer.as_mut().poll(context).is_pending() {
            return Poll::Pending;
        }
        self.end = if self.begun { End::Late } else { End::Silent };
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    fn wrote(
        &mut self,
        context: &mut Context<'_>,
        wrote: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if wrote.is_ready() {
            self.stuck = None;
            // Who still takes the last answer is not idle.
            if !self.begun && self.timed != Some(0) {
                self.timed = None;
            }
            return wrote;
        }
        let write = self.times.write;
        let stuck = self.stuck.get_or_insert_with(|| Box::pin(sleep(write)));
        if stuck.as_mut().poll(context).is_pending() {
            return Poll::Pending;
        }
        self.end = End::Stuck;
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let (Some(stream), Some(back)) = (self.stream.take(), self.back.take()) {
            // Nobody waits for it when the listener was stopped.
            let _ = back.send(Parting { stream, end: self.end });
        }
    }
}

impl AsyncRead for Guard {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let read = this.stream()?.poll_read(context, buffer);
        if read.is_pending() {
            return this.poll_late(context);
        }
        if buffer.filled().len() > before {
            this.heard();
        }
        read
    }
}

impl AsyncWrite for Guard {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let wrote = this.stream()?.poll_write(context, bytes);
        this.wrote(context, wrote)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let wrote = this.stream()?.poll_write_vectored(context, bytes);
        this.wrote(context, wrote)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().stream()?.poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().stream()?.poll_shutdown(context)
    }
}
