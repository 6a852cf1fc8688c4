//! The buffer: samples until the server has them.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use driftline_model::{KindName, Limits, Object};
use driftline_protocol::{TelemetryGreeting, is_sample_kind, telemetry_item};
use thiserror::Error;

use super::backoff::Backoff;
use super::envelope::{Door, Envelope, RefusedSample, Trip};
use super::limits::{Held, TelemetryLimits, TelemetryTotals};
use super::window::{CountError, Window};

/// The kinds that are not samples, and have a method of their own.
pub(super) const STATUS: &str = "device_status";
pub(super) const ANALYTICS: &str = "analytics_batch";

/// The room of an envelope for what stands around its items.
pub(super) const AROUND_BYTES: usize = 1 << 10;

/// Samples on their way to the server: recorded, cut into messages, and kept until each has its answer.
///
/// Like [`Replica`](crate::Replica) it has no clock, no socket and no source of randomness:
///
/// - **App**: [`record`](Self::record), [`report`](Self::report), [`count`](Self::count) and
///   [`observe`](Self::observe) add; [`refused`](Self::refused) shows what the server would not have.
/// - **Connection**: [`handle_connected`](Self::handle_connected), [`handle_frame`](Self::handle_frame),
///   [`handle_disconnected`](Self::handle_disconnected). Before each sending [`cut`](Self::cut), then
///   [`poll_transmit`](Self::poll_transmit) until nothing comes.
/// - **HTTP**: [`http_request`](Self::http_request) makes the body of `POST /api/v1/ingest`,
///   [`handle_http`](Self::handle_http) takes the answer, [`handle_http_lost`](Self::handle_http_lost) its absence.
/// - **Time**: at [`poll_timeout`](Self::poll_timeout) poll again.
/// - **Disk**: [`to_json`](Self::to_json) and [`from_json`](Self::from_json). Who keeps what was cut before it is
///   sent, whenever [`revision`](Self::revision) has moved, loses and doubles nothing, whenever the app ends.
///
/// What holds, whatever the order of these calls:
///
/// - A sample leaves the buffer with the answer to its message and not before. A full buffer refuses the newest.
/// - The bytes of a message and its `idempotency_key` never change once it is cut, through whichever door it goes and
///   however often. So a server recognises a resend.
/// - Messages of one kind go out in the order of their samples, one at a time; up to four of different kinds at once.
/// - Late, repeated and reordered answers change nothing.
#[derive(Clone)]
pub struct Telemetry {
    pub(super) limits: TelemetryLimits,
    pub(super) backoff: Backoff,
    /// What the server takes in one message.
    pub(super) batch_items: usize,
    pub(super) message_bytes: usize,
    /// Samples that are in no message yet, as JSON.
    pub(super) waiting: BTreeMap<KindName, VecDeque<Box<str>>>,
    /// In the order of sending.
    pub(super) envelopes: VecDeque<Envelope>,
    pub(super) next_number: u64,
    pub(super) refused: Vec<RefusedSample>,
    pub(super) window: Window,
    /// What is held, refused samples included.
    pub(super) held: Held,
    pub(super) totals: TelemetryTotals,
    pub(super) revision: u64,
    pub(super) connected: bool,
}

/// Why a sample is not recorded. What was recorded before stays.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RecordError {
    /// The buffer holds as much as it may.
    #[error("the buffer is full: {samples} samples of {bytes} bytes")]
    Full {
        /// The samples that it holds.
        samples: usize,
        /// Their bytes.
        bytes: usize,
    },
    /// The sample would not fit into one message.
    #[error("the sample takes {bytes} bytes, at most {max} fit into a message")]
    TooLarge {
        /// The bytes of the sample.
        bytes: usize,
        /// The most bytes.
        max: usize,
    },
    /// Messages of that type are no samples.
    #[error("{0} is no kind of samples")]
    Reserved(KindName),
}

impl Default for Telemetry {
    fn default() -> Self {
        Self::new(TelemetryLimits::default())
    }
}

impl Telemetry {
    /// The most messages that are under way at once.
    pub const IN_FLIGHT_MAX: usize = 4;

    /// Makes an empty buffer.
    #[must_use]
    pub fn new(limits: TelemetryLimits) -> Self {
        let wire = Limits::default();
        Self {
            limits,
            backoff: Backoff::default(),
            batch_items: wire.batch_items,
            message_bytes: wire.message_bytes,
            waiting: BTreeMap::new(),
            envelopes: VecDeque::new(),
            next_number: 1,
            refused: Vec::new(),
            window: Window::default(),
            held: Held::default(),
            totals: TelemetryTotals::default(),
            revision: 0,
            connected: false,
        }
    }

    /// Waits by another rule before a message is sent again that the server could not take.
    #[must_use]
    pub fn with_backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }

    // Commands of the app.

    /// Records a sample of a kind; `now_ms` is the device's clock in Unix milliseconds.
    ///
    /// Its time is told as `ts`, unless the fields have a member of that name. A member `id` names the sample for ever;
    /// without one the server makes a name of the message's key and the sample's place.
    ///
    /// # Errors
    /// [`RecordError`]; the sample is not in the buffer then.
    pub fn record(&mut self, kind: KindName, fields: &Object, now_ms: u64) -> Result<(), RecordError> {
        if !is_sample_kind(&kind) {
            return Err(RecordError::Reserved(kind));
        }
        let item = telemetry_item(fields, now_ms).into_boxed_str();
        self.check(&item)?;
        self.wait(kind, item);
        self.totals.recorded += 1;
        Ok(())
    }

    /// Reports how the device is; of several reports that wait, the newest is sent.
    ///
    /// # Errors
    /// [`RecordError`] when the buffer is full.
    pub fn report(&mut self, status: &Object, now_ms: u64) -> Result<(), RecordError> {
        let item = telemetry_item(status, now_ms).into_boxed_str();
        self.check(&item)?;
        for older in self.waiting.remove(STATUS).into_iter().flatten() {
            self.release(&older);
        }
        self.wait(own_kind(STATUS), item);
        Ok(())
    }

    /// Adds to a counter of the open window.
    ///
    /// # Errors
    /// [`CountError`] when the window cannot hold it.
    pub fn count(&mut self, name: &str, by: u64, now_ms: u64) -> Result<(), CountError> {
        self.window.count(name, by, now_ms)
    }

    /// Counts a value in a histogram of the open window.
    ///
    /// # Errors
    /// [`CountError`] when the window cannot hold it.
    pub fn observe(&mut self, name: &str, value: f64, now_ms: u64) -> Result<(), CountError> {
        self.window.observe(name, value, now_ms)
    }

    /// Closes the window, so that what was counted in it is sent; without a count it does nothing.
    ///
    /// # Errors
    /// [`RecordError`] when the buffer is full; the window stays open then.
    pub fn close_window(&mut self, now_ms: u64) -> Result<(), RecordError> {
        let Some(batch) = self.window.batch(now_ms) else { return Ok(()) };
        let item = batch.encode().into_boxed_str();
        self.check(&item)?;
        self.wait(own_kind(ANALYTICS), item);
        self.window = Window::default();
        Ok(())
    }

    fn check(&self, item: &str) -> Result<(), RecordError> {
        let max = Limits::default().message_bytes - AROUND_BYTES;
        if item.len() > max {
            return Err(RecordError::TooLarge { bytes: item.len(), max });
        }
        let Held { samples, bytes } = self.held;
        if samples >= self.limits.samples || bytes + item.len() > self.limits.bytes {
            return Err(RecordError::Full { samples, bytes });
        }
        Ok(())
    }

    fn wait(&mut self, kind: KindName, item: Box<str>) {
        self.held.samples += 1;
        self.held.bytes += item.len();
        self.revision += 1;
        self.waiting.entry(kind).or_default().push_back(item);
    }

    fn release(&mut self, item: &str) {
        self.held.samples -= 1;
        self.held.bytes -= item.len();
    }

    // What there is.

    /// Returns how many samples wait for the server's answer.
    #[must_use]
    pub fn len(&self) -> usize {
        self.held.samples - self.refused.len()
    }

    /// Tells whether nothing waits for the server's answer. What is counted in the open window does not wait.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the window in which the device counts now.
    #[must_use]
    pub fn window(&self) -> &Window {
        &self.window
    }

    /// Returns what the server refused for good, oldest first. It takes room in the buffer until it is taken over.
    #[must_use]
    pub fn refused(&self) -> &[RefusedSample] {
        &self.refused
    }

    /// Takes over what the server refused for good.
    pub fn take_refused(&mut self) -> Vec<RefusedSample> {
        let refused = std::mem::take(&mut self.refused);
        self.held.samples -= refused.len();
        self.held.bytes -= refused.iter().map(RefusedSample::bytes).sum::<usize>();
        self.revision += u64::from(!refused.is_empty());
        refused
    }

    /// Returns what the buffer has done since it was made or loaded.
    #[must_use]
    pub fn totals(&self) -> TelemetryTotals {
        self.totals
    }

    /// Returns a number that moves with everything that must be kept before more is sent: samples, closed windows and
    /// messages. It moves neither with answers, which may come again, nor with counts of the open window.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    // What the world does.

    /// Learns that a connection is open and authenticated.
    pub fn handle_connected(&mut self, greeting: &TelemetryGreeting) {
        self.handle_disconnected();
        self.connected = true;
        let told =
            |limit: Option<u64>| limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX);
        let wire = Limits::default();
        self.batch_items = told(greeting.max_batch_items).clamp(1, wire.batch_items);
        self.message_bytes = told(greeting.max_message_bytes).min(wire.message_bytes);
    }

    /// Learns that the connection is gone. What has no answer is sent again, through whichever door is open next.
    pub fn handle_disconnected(&mut self) {
        self.connected = false;
        self.turn_back(Door::Socket);
    }

    /// Returns the next message for the connection; nothing when there is none for now.
    pub fn poll_transmit(&mut self, now_ms: u64) -> Option<String> {
        if !self.connected {
            return None;
        }
        self.send(Door::Socket, now_ms)
    }

    /// Makes the body of the next `POST /api/v1/ingest`; nothing while another request is open.
    pub fn http_request(&mut self, now_ms: u64) -> Option<String> {
        if self.under_way(Door::Http).next().is_some() {
            return None;
        }
        self.send(Door::Http, now_ms)
    }

    /// Tells when the oldest message that is under way on the connection went out, in Unix milliseconds.
    #[must_use]
    pub fn unanswered_since_ms(&self) -> Option<u64> {
        self.under_way(Door::Socket).map(|envelope| envelope.trip.sent_ms).min()
    }

    pub(super) fn under_way(&self, door: Door) -> impl Iterator<Item = &Envelope> {
        self.envelopes.iter().filter(move |envelope| envelope.trip.door == Some(door))
    }

    pub(super) fn turn_back(&mut self, door: Door) {
        for envelope in &mut self.envelopes {
            envelope.trip.door = envelope.trip.door.filter(|taken| *taken != door);
        }
    }

    fn send(&mut self, door: Door, now_ms: u64) -> Option<String> {
        let at = self.next_to_send(now_ms)?;
        let envelope = &mut self.envelopes[at];
        self.totals.resends += u64::from(envelope.trip.sent > 0);
        let Trip { sent, failures, not_before_ms, .. } = envelope.trip;
        let sent = sent.saturating_add(1);
        envelope.trip = Trip { door: Some(door), sent_ms: now_ms, sent, failures, not_before_ms };
        Some(envelope.encode())
    }
}

pub(super) fn own_kind(name: &str) -> KindName {
    KindName::new(name).expect("it is a name")
}

impl fmt::Debug for Telemetry {
    /// Counts only: samples do not belong into logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Telemetry")
            .field("samples", &self.len())
            .field("envelopes", &self.envelopes.len())
            .field("refused", &self.refused.len())
            .field("totals", &self.totals)
            .finish_non_exhaustive()
    }
}
