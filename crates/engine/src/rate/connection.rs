//! What a connection uses up.

use std::sync::Arc;

use driftline_protocol::{Throttle, ThrottleScope};

use super::bucket::Bucket;
use super::users::{UserMeter, take};

/// The bucket of one connection in front of those of its user, and how patient the server still is with it.
#[derive(Debug)]
pub(crate) struct ConnectionMeter {
    user: Arc<UserMeter>,
    messages: Bucket,
    refusals: u32,
}

impl ConnectionMeter {
    pub(crate) fn new(user: Arc<UserMeter>) -> Self {
        Self { user, messages: Bucket::default(), refusals: 0 }
    }

    /// Takes a message from the connection, its user and its type, in this order; the first that has nothing left
    /// refuses it.
    pub(crate) fn take(&mut self, kind: Option<&str>, now_ms: u64) -> Result<(), Throttle> {
        let taken = self.take_own(now_ms).and_then(|()| self.user.take(now_ms));
        let taken = taken.and_then(|()| kind.map_or(Ok(()), |kind| self.user.take_type(kind, now_ms)));
        self.count(taken)
    }

    /// Takes a control frame, which is no message and costs the user nothing.
    pub(crate) fn take_control(&mut self, now_ms: u64) -> Result<(), Throttle> {
        let taken = self.take_own(now_ms);
        self.count(taken)
    }

    /// Tells whether as many more were refused than passed as one may be told of.
    pub(crate) fn is_abused(&self) -> bool {
        self.refusals >= self.user.limits().rate_refusals
    }

    fn take_own(&self, now_ms: u64) -> Result<(), Throttle> {
        take(&self.messages, self.user.limits().message_rate, ThrottleScope::Connection, now_ms)
    }

    fn count(&mut self, taken: Result<(), Throttle>) -> Result<(), Throttle> {
        // What passes makes good for one refusal only: whoever goes on beyond the rate has more of these.
        self.refusals = match taken {
            Ok(()) => self.refusals.saturating_sub(1),
            Err(_) => self.refusals.saturating_add(1),
        };
        taken
    }
}
