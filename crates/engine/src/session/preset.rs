//! Which messages a route takes.

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
}

impl Preset {
    /// Tells whether a message is one of the route's.
    pub(super) fn takes(self, body: &Inbound) -> bool {
        match body {
            Inbound::Ping { .. } | Inbound::Heartbeat(_) => true,
            Inbound::DeviceStatus(_) => self != Self::Watch,
            Inbound::Telemetry(_) | Inbound::AnalyticsBatch(_) => matches!(self, Self::Sync | Self::Ingest),
            Inbound::SubscribeEvents(_) | Inbound::UnsubscribeEvents(_) => {
                matches!(self, Self::Sync | Self::System)
            }
            _ => self == Self::Sync,
        }
    }
}
