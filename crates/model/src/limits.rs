//! Limits that hold on every node.

use std::fmt;

/// How often something may happen: `per_s` times a second in the long run, and up to `burst` times at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Times a second in the long run, at least 1.
    pub per_s: u32,
    /// Times at once after a pause, at least 1.
    pub burst: u32,
}

impl Rate {
    /// The highest rate that is told apart from higher ones, in times a second.
    pub const PER_S_MAX: u32 = 1_000_000;

    /// As good as no limit.
    pub const LIFTED: Self = Self { per_s: Self::PER_S_MAX, burst: Self::PER_S_MAX };
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s, burst {}", self.per_s, self.burst)
    }
}

/// What one message, batch, page or connection may at most be. Every field has a default that clients may rely on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Items in one batch.
    pub batch_items: usize,
    /// Bytes of one message.
    pub message_bytes: usize,
    /// Nesting of arrays and objects in one message.
    pub depth: usize,
    /// Bytes of one record's fields after a merge.
    pub record_bytes: usize,
    /// Rows of one pulled page.
    pub page_rows: usize,
    /// Bytes of one pulled page.
    pub page_bytes: usize,
    /// Batches of one connection that may wait for their answer.
    pub unacknowledged_batches: usize,
    /// Bytes that may wait to be written to one connection.
    pub outbound_bytes: usize,
    /// Deltas that may wait for one connection before it has to pull.
    pub pending_deltas: usize,
    /// Parts in which one message may come.
    pub fragments: usize,
    /// Bytes of messages and bodies that one node may hold while they are still coming in.
    pub inbound_bytes: usize,
    /// Connections of one node.
    pub connections: usize,
    /// Connections of one user on one node.
    pub user_connections: usize,
    /// Messages of one connection.
    pub message_rate: Rate,
    /// Messages and requests of one user, on all connections together.
    pub user_rate: Rate,
    /// Messages of single types of one user, on all connections together.
    pub type_rates: Vec<(Box<str>, Rate)>,
    /// Authentications of one address that may fail.
    pub failed_auth_rate: Rate,
    /// How many more messages may be refused for their rate than passed before the connection is closed.
    pub rate_refusals: u32,
    /// Bytes of a request's head.
    pub header_bytes: usize,
    /// Milliseconds a peer has to send a request's head, from its connecting on.
    pub header_ms: u64,
    /// Milliseconds that a connection may wait for its next request.
    pub idle_ms: u64,
    /// Milliseconds that a peer may take nothing of an answer.
    pub write_ms: u64,
    /// Milliseconds between two parts of a request's body.
    /// A whole body may take ten times as long.
    pub body_frame_ms: u64,
    /// Seconds between two heartbeats; a peer silent for twice as long is gone.
    pub heartbeat_s: u64,
    /// Milliseconds a device's clock may run ahead of the server's.
    pub skew_ms_max: u64,
    /// Seconds that an idle sync session lives.
    pub session_s: u64,
    /// Decode errors in a row after which a connection is closed.
    pub decode_errors: u32,
    /// Seconds that one long poll may wait.
    pub wait_s: u64,
    /// Milliseconds after the end of its last connection in which a device that comes again was never away.
    pub presence_grace_ms: u64,
    /// Milliseconds in which whoever enters without a token has to say who it is.
    pub auth_ms: u64,
}

impl Limits {
    /// Lifts rates and admission as far as nobody reaches them, for measuring; they are counted all the same. Sizes,
    /// depths and times stay.
    #[must_use]
    pub fn lifted(self) -> Self {
        let lift = |(name, _): (Box<str>, Rate)| (name, Rate::LIFTED);
        Self {
            connections: u32::MAX as usize,
            user_connections: u32::MAX as usize,
            message_rate: Rate::LIFTED,
            user_rate: Rate::LIFTED,
            type_rates: self.type_rates.into_iter().map(lift).collect(),
            failed_auth_rate: Rate::LIFTED,
            ..self
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            batch_items: 100,
            message_bytes: 1 << 20,
            depth: 64,
            record_bytes: 1 << 20,
            page_rows: 500,
            page_bytes: 512 << 10,
            unacknowledged_batches: 4,
            outbound_bytes: 1 << 20,
            pending_deltas: 256,
            fragments: 4096,
            inbound_bytes: 256 << 20,
            connections: 20_000,
            user_connections: 100,
            message_rate: Rate { per_s: 50, burst: 100 },
            user_rate: Rate { per_s: 200, burst: 400 },
            type_rates: vec![
                ("sync_data".into(), Rate { per_s: 20, burst: 40 }),
                ("uploads/init".into(), Rate { per_s: 2, burst: 64 }),
            ],
            failed_auth_rate: Rate { per_s: 20, burst: 20 },
            rate_refusals: 100,
            header_bytes: 16 << 10,
            header_ms: 10_000,
            idle_ms: 60_000,
            write_ms: 30_000,
            body_frame_ms: 30_000,
            heartbeat_s: 25,
            skew_ms_max: 60_000,
            session_s: 24 * 3600,
            decode_errors: 10,
            wait_s: 30,
            presence_grace_ms: 10_000,
            auth_ms: 10_000,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifting_leaves_sizes_and_names() {
        let lifted = Limits { batch_items: 7, ..Limits::default() }.lifted();
        assert_eq!((lifted.batch_items, lifted.message_bytes), (7, 1 << 20));
        let names: Vec<&str> = lifted.type_rates.iter().map(|(name, _)| &**name).collect();
        assert_eq!(names, ["sync_data", "uploads/init"]);
        assert!(lifted.type_rates.iter().all(|(_, rate)| *rate == Rate::LIFTED));
        assert!(lifted.user_connections > 1_000_000 && lifted.connections > 1_000_000);
        assert_eq!(Limits::default().message_rate.to_string(), "50/s, burst 100");
    }
}
