//! Limits that hold on every node.

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
    /// Connections of one node.
    pub connections: usize,
    /// Bytes of a request's head.
    pub header_bytes: usize,
    /// Milliseconds a peer has to send a request's head.
    pub header_ms: u64,
    /// Milliseconds between two parts of a request's body.
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
            connections: 20_000,
            header_bytes: 16 << 10,
            header_ms: 10_000,
            body_frame_ms: 30_000,
            heartbeat_s: 25,
            skew_ms_max: 60_000,
            session_s: 24 * 3600,
            decode_errors: 10,
            wait_s: 30,
        }
    }
}
