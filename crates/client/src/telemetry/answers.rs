//! What the server says to messages of telemetry.

use driftline_protocol::{
    ErrorCode, ErrorMessage, Fault, Rejected, TelemetryAck, TelemetryGreeting, TelemetryReply,
    telemetry_problem,
};

use super::buffer::Telemetry;
use super::envelope::{Door, Envelope, number_of};

/// The longest wait that a server may ask for.
const RETRY_AFTER_MS_MAX: u64 = 3_600_000;

/// What a message of the server, or an answer over HTTP, means for the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Heard {
    /// Go on.
    Nothing,
    /// The server greeted the connection, which may carry telemetry now.
    Greeted(TelemetryGreeting),
    /// The server refuses the token or the device; nothing was lost, and no door helps until that changes.
    Unauthorized(Box<ErrorMessage>),
    /// The server is about to shut down.
    Draining {
        /// When to connect again.
        reconnect_after_ms: u64,
    },
}

impl Telemetry {
    /// Takes a message of the server in; `draw` gives random numbers.
    ///
    /// # Errors
    /// [`Fault`] when the message is not one of this protocol. The buffer is unchanged then; the connection should be
    /// closed, for an answer may be lost.
    pub fn handle_frame(
        &mut self,
        frame: &[u8],
        now_ms: u64,
        draw: &mut dyn FnMut() -> u64,
    ) -> Result<Heard, Fault> {
        let (reply_to, reply) = TelemetryReply::decode(frame)?;
        let number = reply_to.as_deref().and_then(number_of);
        Ok(match reply {
            TelemetryReply::Established(greeting) => Heard::Greeted(greeting),
            TelemetryReply::Ack(ack) => {
                self.settle(number, ack);
                Heard::Nothing
            }
            TelemetryReply::Error(error) => self.fail(number, error, now_ms, draw),
            TelemetryReply::Draining { reconnect_after_ms } => Heard::Draining { reconnect_after_ms },
            _ => Heard::Nothing,
        })
    }

    /// Takes the answer to [`http_request`](Self::http_request) in; `draw` gives random numbers.
    ///
    /// # Errors
    /// [`Fault`] when a good answer is none of this protocol. It is sent again then.
    pub fn handle_http(
        &mut self,
        status: u16,
        body: &[u8],
        now_ms: u64,
        draw: &mut dyn FnMut() -> u64,
    ) -> Result<Heard, Fault> {
        let number = self.under_way(Door::Http).next().map(|envelope| envelope.number);
        self.handle_http_lost();
        if status != 200 {
            return Ok(self.fail(number, telemetry_problem(status, body), now_ms, draw));
        }
        let ack = TelemetryAck::decode(body)?;
        self.settle(number, ack);
        Ok(Heard::Nothing)
    }

    /// Learns that the answer to [`http_request`](Self::http_request) will not come.
    pub fn handle_http_lost(&mut self) {
        self.turn_back(Door::Http);
    }

    fn position(&self, number: Option<u64>) -> Option<usize> {
        let number = number?;
        self.envelopes.iter().position(|envelope| envelope.number == number)
    }

    fn settle(&mut self, number: Option<u64>, ack: TelemetryAck) {
        let Some(envelope) = self.position(number).and_then(|at| self.envelopes.remove(at)) else { return };
        self.totals.accepted = self.totals.accepted.saturating_add(ack.accepted);
        self.totals.duplicates = self.totals.duplicates.saturating_add(ack.duplicates);
        self.totals.replayed += u64::from(ack.replayed);
        self.totals.unrecognised += u64::from(ack.resend_recognised == Some(false));
        self.bury(&envelope, ack.rejected);
    }

    /// Moves what was refused of an envelope to the dead letters, and lets the rest go.
    fn bury(&mut self, envelope: &Envelope, rejected: Vec<Rejected>) {
        self.held.samples -= envelope.items().len();
        self.held.bytes -= envelope.bytes();
        for rejected in rejected {
            let letter = envelope.refuse(rejected);
            self.held.samples += 1;
            self.held.bytes += letter.bytes();
            self.totals.refused += 1;
            self.revision += 1;
            self.refused.push(letter);
        }
    }

    fn fail(
        &mut self,
        number: Option<u64>,
        error: ErrorMessage,
        now_ms: u64,
        draw: &mut dyn FnMut() -> u64,
    ) -> Heard {
        let code = ErrorCode::from_text(&error.code);
        if code == Some(ErrorCode::Unauthorized) {
            return Heard::Unauthorized(Box::new(error));
        }
        let Some(at) = self.position(number) else { return Heard::Nothing };
        let too_large = matches!(code, Some(ErrorCode::BatchTooLarge | ErrorCode::MessageTooLarge));
        if too_large && self.envelopes[at].items().len() > 1 {
            self.halve(at, now_ms, draw);
        } else if error.retryable {
            let delay_ms = self.backoff.delay_ms(self.envelopes[at].trip.failures + 1, draw());
            let asked_ms = error.retry_after_ms.unwrap_or_default().min(RETRY_AFTER_MS_MAX);
            let trip = &mut self.envelopes[at].trip;
            trip.failures = trip.failures.saturating_add(1);
            trip.door = None;
            trip.not_before_ms = now_ms.saturating_add(asked_ms).saturating_add(delay_ms);
        } else if let Some(envelope) = self.envelopes.remove(at) {
            let rejected =
                (0..envelope.items().len() as u64).map(|index| refused_by(&error, index)).collect();
            self.bury(&envelope, rejected);
        }
        Heard::Nothing
    }
}

/// What an error about a whole message says of one of its items.
fn refused_by(error: &ErrorMessage, index: u64) -> Rejected {
    Rejected {
        index,
        id: None,
        code: error.code.clone(),
        pointer: String::new(),
        message: error.message.clone(),
        errors: error.details.as_ref().map(|details| details.errors.clone()).unwrap_or_default(),
    }
}
