//! The limit that a refused sender has reached.

use std::fmt;

/// What a limit counts over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ThrottleScope {
    /// One connection.
    Connection,
    /// All connections and requests of one user.
    User,
    /// All that comes from one network address.
    Address,
    /// One type of message, or one HTTP route.
    Type,
}

impl ThrottleScope {
    /// Every scope.
    pub const ALL: [Self; 4] = [Self::Connection, Self::User, Self::Address, Self::Type];

    /// Returns the scope's text on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connection => "connection",
            Self::User => "user",
            Self::Address => "address",
            Self::Type => "type",
        }
    }
}

/// A limit that was reached, and when there is room again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Throttle {
    /// Milliseconds until the same may be sent again.
    pub retry_after_ms: u64,
    /// The limit as a person reads it, such as `50/s, burst 100`.
    pub limit: String,
    /// What the limit counts over.
    pub scope: ThrottleScope,
}

impl fmt::Display for Throttle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { retry_after_ms, limit, scope } = self;
        let scope = scope.as_str();
        write!(
            f,
            "the limit per {scope} is reached ({limit}): wait {retry_after_ms} ms, then back off exponentially with jitter"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ErrorMessage, Fault, Problem};

    #[test]
    fn both_doors_tell_the_limit() {
        let texts = ["connection", "user", "address", "type"];
        for (scope, text) in ThrottleScope::ALL.into_iter().zip(texts) {
            let throttle = Throttle { retry_after_ms: 40, limit: "50/s, burst 100".into(), scope };
            let fault = Fault::throttled(throttle);
            let told = serde_json::to_value(ErrorMessage::new(&fault, "c")).expect("JSON");
            let message = format!(
                "the limit per {text} is reached (50/s, burst 100): wait 40 ms, then back off exponentially with jitter"
            );
            let wanted = serde_json::json!({
                "code": "RATE_LIMITED", "message": message, "correlation_id": "c", "retryable": true,
                "retry_after_ms": 40,
                "details": {"status": 429, "backoff": "exponential", "limit": "50/s, burst 100", "scope": text},
            });
            assert_eq!(told, wanted);
            let problem = serde_json::to_value(Problem::new(&fault, "c")).expect("JSON");
            assert_eq!((&problem["status"], &problem["retry_after_ms"]), (&429.into(), &40.into()));
            assert_eq!((&problem["limit"], &problem["scope"]), (&"50/s, burst 100".into(), &text.into()));
        }
    }
}
