//! What happens at the doors, and what follows from it.

use crate::client::ClientError;
use crate::socket::Incoming;
use crate::telemetry::Heard;
use crate::world::{Clock, Connector, Random};

use super::doors::{Answer, Opened};
use super::line::Line;
use super::shell::{Courier, CourierError};
use super::status::{CourierMode, CourierState, CourierStatus};

/// After so much life a connection was a good one, and attempts are counted anew.
const HEALTHY_MS: u64 = 5_000;

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Attempts {
    pub(super) failures: u32,
    pub(super) not_before_ms: u64,
}

/// Why no door is tried any more.
#[derive(Debug, Clone)]
pub(super) enum Stop {
    Unauthorized(String),
    Final { code: u16, reason: String },
}

impl<C: Connector, K: Clock, R: Random> Courier<C, K, R> {
    pub(super) fn open(&mut self, opened: Opened, now_ms: u64) {
        let (line, greeting) = Line::new(opened, now_ms);
        self.telemetry.handle_connected(&greeting);
        self.line = Some(line);
        self.may_post = false;
        self.http_door = Attempts::default();
        self.show(|status| status.state = CourierState::Open);
        self.switch(CourierMode::WebSocket);
    }

    pub(super) fn hear(&mut self, incoming: Option<Incoming>, now_ms: u64) {
        let message = match incoming {
            Some(Incoming::Message(message)) => message,
            Some(Incoming::Closed { code, reason }) => return self.lose(code, &reason, 0),
            Some(Incoming::Unreadable(cause)) => return self.lose(None, &cause.to_string(), 0),
            None => return self.lose(None, "the connection is gone", 0),
        };
        if let Some(line) = &mut self.line {
            line.heard(now_ms);
        }
        let world = self.world.clone();
        match self.telemetry.handle_frame(&message, now_ms, &mut || world.draw()) {
            Ok(Heard::Unauthorized(error)) => self.lose(Some(4001), &error.message, 0),
            Ok(Heard::Draining { reconnect_after_ms }) => {
                self.lose(None, "the server drains", reconnect_after_ms);
            }
            Ok(_) => {}
            Err(fault) => self.lose(None, &fault.to_string(), 0),
        }
    }

    pub(super) fn lose(&mut self, code: Option<u16>, reason: &str, after_ms: u64) {
        let Some(line) = self.line.take() else { return };
        self.telemetry.handle_disconnected();
        let now_ms = self.world.now_ms();
        if now_ms.saturating_sub(line.opened_ms) >= HEALTHY_MS {
            self.socket_door.failures = 0;
        }
        self.show(|status| status.switches.cuts += 1);
        self.back_off(code, reason, now_ms, after_ms);
    }

    pub(super) fn fail_dial(&mut self, error: &ClientError, now_ms: u64) {
        self.show(|status| status.switches.failed_dials += 1);
        let code = match error {
            ClientError::Closed { code, .. } => *code,
            ClientError::Refused { status: 401 | 403, .. } => Some(4001),
            _ => None,
        };
        self.back_off(code, &error.to_string(), now_ms, 0);
    }

    /// Sends by HTTP from now on, and sets the time for the next attempt with the WebSocket, if there is to be one.
    pub(super) fn back_off(&mut self, code: Option<u16>, reason: &str, now_ms: u64, after_ms: u64) {
        self.may_post = true;
        let failures = self.socket_door.failures.saturating_add(1);
        let delay_ms = self.options.backoff.delay_ms(failures, self.world.draw()).saturating_add(after_ms);
        self.socket_door = Attempts { failures, not_before_ms: now_ms.saturating_add(delay_ms) };
        match code {
            Some(4001) => self.stop = Some(Stop::Unauthorized(reason.to_owned())),
            Some(code @ 4500..=4999) => self.stop = Some(Stop::Final { code, reason: reason.to_owned() }),
            _ => {}
        }
        let failed = self.is_failed();
        let state = if failed { CourierState::Failed } else { CourierState::Reconnecting };
        self.show(|status| status.state = state);
        if self.stop.is_some() {
            self.switch(CourierMode::Offline);
        } else if self.http_door.failures == 0 {
            self.switch(CourierMode::Http);
        }
    }

    pub(super) fn take_answer(&mut self, answer: Result<Answer, ClientError>, now_ms: u64) {
        let world = self.world.clone();
        let heard = match answer {
            Ok(Answer { status, body }) => {
                self.telemetry.handle_http(status, &body, now_ms, &mut || world.draw()).ok()
            }
            Err(_) => {
                self.telemetry.handle_http_lost();
                None
            }
        };
        match heard {
            Some(Heard::Unauthorized(error)) => {
                self.stop = Some(Stop::Unauthorized(error.message));
                self.show(|status| status.state = CourierState::Failed);
                self.switch(CourierMode::Offline);
            }
            Some(_) => {
                self.http_door = Attempts::default();
                self.switch_unless_open(CourierMode::Http);
            }
            None => {
                let failures = self.http_door.failures.saturating_add(1);
                let delay_ms = self.options.backoff.delay_ms(failures, self.world.draw());
                self.http_door = Attempts { failures, not_before_ms: now_ms.saturating_add(delay_ms) };
                self.show(|status| status.switches.failed_posts += 1);
                self.switch_unless_open(CourierMode::Offline);
            }
        }
    }

    pub(super) fn switch_unless_open(&mut self, mode: CourierMode) {
        if self.line.is_none() {
            self.switch(mode);
        }
    }

    pub(super) fn switch(&mut self, mode: CourierMode) {
        self.show(|status| {
            if status.mode != mode {
                status.mode = mode;
                status.switches.count(mode);
            }
        });
    }

    pub(super) fn show(&mut self, change: impl FnOnce(&mut CourierStatus)) {
        self.status.send_if_modified(|status| {
            let before = *status;
            change(status);
            *status != before
        });
    }
}

impl Stop {
    pub(super) fn error(&self) -> CourierError {
        match self.clone() {
            Self::Unauthorized(reason) => CourierError::Unauthorized { reason },
            Self::Final { code, reason } => CourierError::Final { code, reason },
        }
    }
}
