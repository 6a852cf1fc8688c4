//! Which messages a route takes, and how long it waits for one.

use driftline_model::Limits;
use driftline_protocol::Inbound;

/// What a route is for: which messages it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Preset {
    /// Everything: batches, pulls, telemetry and events.
    #[default]
    Sync,
    /// Commands to the device, and what it says of itself.
    System,
    /// Telemetry, aggregates and what the device says of itself.
    Ingest,
    /// Events that the route itself chose.
    Watch,
    /// Topics, for clients that hear the server's heartbeat.
    Topics,
    /// The groups of a user, and topics.
    Updates,
}

impl Preset {
    /// Tells whether a message is one of the route's.
    pub(super) fn takes(self, body: &Inbound) -> bool {
        match body {
            Inbound::Ping { .. } | Inbound::Heartbeat(_) => true,
            Inbound::DeviceStatus(_) => self != Self::Watch,
            Inbound::Telemetry(_) | Inbound::AnalyticsBatch(_) => matches!(self, Self::Sync | Self::Ingest),
            Inbound::SubscribeEvents(_)
            | Inbound::UnsubscribeEvents(_)
            | Inbound::ReplayRequest(_)
            | Inbound::Publish(_)
            | Inbound::AckEvents(_) => !matches!(self, Self::Ingest | Self::Watch),
            _ => self == Self::Sync,
        }
    }

    /// Tells whether the server says now and then that it is alive.
    pub(super) fn beats(self) -> bool {
        matches!(self, Self::Topics | Self::Updates)
    }

    /// Returns the seconds between heartbeats: 30 instead of 25 for clients of topics.
    pub(super) fn heartbeat_s(self, limits: &Limits) -> u64 {
        if self.beats() { (limits.heartbeat_s * 6 / 5).max(1) } else { limits.heartbeat_s }
    }

    /// Returns after how many seconds of silence a client is let go: two heartbeats, but 300 seconds where a client may
    /// listen without a word.
    pub(super) fn patience_s(self, limits: &Limits) -> u64 {
        if self == Self::Topics { limits.heartbeat_s * 12 } else { 2 * limits.heartbeat_s }
    }
}
