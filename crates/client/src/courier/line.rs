//! An open connection, and whether it is alive.

use driftline_protocol::{TelemetryGreeting, encode_ping};

use crate::socket::{Outgoing, Socket};

use super::doors::Opened;

/// How much longer than a heartbeat's interval a connection may be silent.
const GRACE_MS: u64 = 10_000;

/// A connection with its times, in Unix milliseconds.
pub(super) struct Line {
    pub(super) socket: Socket,
    pub(super) opened_ms: u64,
    heard_ms: u64,
    sent_ms: u64,
    /// Milliseconds between signs of life; none: the server wants none.
    interval_ms: Option<u64>,
}

impl Line {
    pub(super) fn new(opened: Opened, now_ms: u64) -> (Self, TelemetryGreeting) {
        let seconds = opened.greeting.heartbeat_interval_s.filter(|seconds| *seconds > 0);
        let interval_ms = seconds.map(|seconds| seconds.saturating_mul(1_000));
        let socket = opened.socket;
        let line = Self { socket, opened_ms: now_ms, heard_ms: now_ms, sent_ms: now_ms, interval_ms };
        (line, opened.greeting)
    }

    pub(super) fn heard(&mut self, now_ms: u64) {
        self.heard_ms = now_ms;
    }

    /// Sends a message of `next`, for as long as there is room; it leaves its source only then.
    pub(super) fn send_all(&mut self, now_ms: u64, mut next: impl FnMut() -> Option<String>) {
        while let Ok(room) = self.socket.outgoing.try_reserve() {
            let Some(message) = next() else { return };
            self.sent_ms = now_ms;
            room.send(Outgoing::Message(message));
        }
    }

    /// Sends a ping after half an interval without a message. The answer proves that the server is there.
    pub(super) fn ping_if_due(&mut self, now_ms: u64) {
        if self.ping_ms().is_some_and(|due_ms| due_ms <= now_ms) {
            // A queue without room is being written, which is a sign of life as well.
            let _ = self.socket.outgoing.try_send(Outgoing::Message(encode_ping(now_ms)));
            self.sent_ms = now_ms;
        }
    }

    pub(super) fn ping_ms(&self) -> Option<u64> {
        Some(self.sent_ms.saturating_add(self.interval_ms? / 2))
    }

    /// When the connection counts as dead unless something is heard.
    pub(super) fn dead_ms(&self) -> Option<u64> {
        Some(self.heard_ms.saturating_add(self.interval_ms?).saturating_add(GRACE_MS))
    }
}
