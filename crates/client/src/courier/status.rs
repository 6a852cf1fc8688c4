//! What a courier tells of itself.

/// How the WebSocket is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum CourierState {
    /// It is being opened for the first time.
    #[default]
    Connecting,
    /// It is open.
    Open,
    /// It was lost or could not be opened, and is tried again.
    Reconnecting,
    /// It is not tried again until [`connect`](crate::Courier::connect) is called: the attempts are used up, or the
    /// server refuses the caller.
    Failed,
}

/// The door that the next message takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CourierMode {
    /// The WebSocket.
    WebSocket,
    /// HTTP, for the WebSocket is away.
    Http,
    /// Neither: messages wait, and both doors are tried.
    #[default]
    Offline,
}

/// How often a courier changed its door, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Switches {
    /// Changes to the WebSocket.
    pub to_websocket: u64,
    /// Changes to HTTP.
    pub to_http: u64,
    /// Changes to waiting.
    pub to_offline: u64,
    /// Connections that were lost.
    pub cuts: u64,
    /// Attempts to open a connection that failed.
    pub failed_dials: u64,
    /// Requests without a usable answer.
    pub failed_posts: u64,
}

impl Switches {
    pub(super) fn count(&mut self, mode: CourierMode) {
        match mode {
            CourierMode::WebSocket => self.to_websocket += 1,
            CourierMode::Http => self.to_http += 1,
            CourierMode::Offline => self.to_offline += 1,
        }
    }
}

/// What can be watched of a courier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CourierStatus {
    /// How the WebSocket is.
    pub state: CourierState,
    /// The door that the next message takes.
    pub mode: CourierMode,
    /// Samples that wait for the server's answer.
    pub waiting: usize,
    /// Samples that the server refused for good and nobody took over.
    pub refused: usize,
    /// The changes so far.
    pub switches: Switches,
}
