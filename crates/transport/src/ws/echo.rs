//! A speaker that says what it hears, by which conformance suites and clients try the frames of this server.

use std::sync::Arc;
use std::time::Duration;

use driftline_engine::Store;
use tokio::sync::watch;

use super::frame::Opcode;
use super::gate::Bounds;
use super::outbox::Outbox;
use super::pump::{Message, Speaker};
use crate::app::{App, drained};

/// What one message may be here.
pub(super) const BOUNDS: Bounds = Bounds { message_bytes: 16 << 20, fragments: 65_536 };

/// Bytes that may wait: a message that was being read while another one waited, and pings.
pub(super) const OUTBOUND_BYTES: usize = 3 * BOUNDS.message_bytes;

/// Says every message as it came.
pub(super) struct Echo<S> {
    app: Arc<App<S>>,
    draining: watch::Receiver<bool>,
    heard_ms: u64,
    leaving: bool,
}

impl<S: Store> Echo<S> {
    pub(super) fn new(app: Arc<App<S>>) -> Self {
        Self { draining: app.draining(), heard_ms: app.now_ms(), app, leaving: false }
    }
}

impl<S: Store> Speaker for Echo<S> {
    /// The server shuts down.
    type Event = ();

    fn collect(&mut self, outbox: &mut Outbox) {
        if self.leaving {
            outbox.close(1012, "SERVER_DRAINING");
        }
    }

    /// A peer that does not read is not read either, so that its messages wait on its own side.
    fn listens(&self, outbox: &Outbox) -> bool {
        outbox.waiting() <= 1
    }

    async fn event(&mut self) {
        drained(&mut self.draining).await;
    }

    fn handle(&mut self, (): ()) {
        self.leaving = true;
    }

    fn heard(&mut self) {
        self.heard_ms = self.app.now_ms();
    }

    fn message(&mut self, message: Message, outbox: &mut Outbox) {
        let pushed = match &message {
            Message::Text(text) => outbox.push(Opcode::Text, text),
            Message::Binary(bytes) => outbox.push(Opcode::Binary, bytes),
        };
        if pushed.is_err() {
            self.overflow(outbox);
        }
    }

    fn too_large(&mut self, outbox: &mut Outbox) {
        outbox.close(1009, "a message may hold 16 MiB in 65536 parts");
    }

    fn overflow(&mut self, outbox: &mut Outbox) {
        outbox.close(4008, "SLOW_CONSUMER");
    }

    /// Lets silent peers go.
    fn tick(&mut self, outbox: &mut Outbox) -> Duration {
        let deadline_ms = self.heard_ms + 2000 * self.app.engine.limits().heartbeat_s;
        let now_ms = self.app.now_ms();
        if now_ms >= deadline_ms {
            outbox.close(4009, "HEARTBEAT_TIMEOUT");
        }
        Duration::from_millis(deadline_ms.saturating_sub(now_ms).max(50))
    }
}
