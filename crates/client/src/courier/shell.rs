//! The courier: one buffer, two doors.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::time::Duration;

use driftline_model::{KindName, Object};
use thiserror::Error;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::client::{CLOSE_MAX, ClientError};
use crate::endpoint::Endpoint;
use crate::socket::Outgoing;
use crate::system::{SystemClock, SystemRandom, TcpConnector};
use crate::telemetry::{Backoff, RecordError, Telemetry};
use crate::world::{Clock, Connector, Random, World};

use super::change::{Attempts, Stop};
use super::doors::{Answer, Opened};
use super::line::Line;
use super::status::{CourierState, CourierStatus};

/// Keeps the buffer, given as [`Telemetry::to_json`] writes it, for the next start of the app.
pub type Keeper = Box<dyn FnMut(String) -> Pin<Box<dyn Future<Output = io::Result<()>> + Send>> + Send>;

/// How a courier goes about its doors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CourierOptions {
    /// How long to wait before a door that failed is tried again.
    pub backoff: Backoff,
    /// How often in a row the WebSocket is tried before it counts as failed; none: for ever.
    pub attempts_max: Option<u32>,
    /// How long the answer to a message may take before its door counts as dead, in milliseconds.
    pub answer_ms_max: u64,
    /// How long counts are gathered before they are sent, in milliseconds.
    pub window_ms: u64,
}

impl Default for CourierOptions {
    /// From 1 to 30 seconds, ten attempts, 15 seconds for an answer, a minute of counting.
    fn default() -> Self {
        Self { backoff: Backoff::default(), attempts_max: Some(10), answer_ms_max: 15_000, window_ms: 60_000 }
    }
}

/// Carries a buffer of telemetry to the server: over the WebSocket while that works, over HTTP as soon as it does not,
/// and over the WebSocket again when it is back. While both are away the samples wait.
///
/// Messages move while one of the asynchronous methods runs; only what was begun, a dial or a request, goes on beside
/// it. An app calls [`drive`](Self::drive) or [`run`](Self::run) in a task of its own, and may drop the call at any time
/// to record something.
pub struct Courier<C = TcpConnector, K = SystemClock, R = SystemRandom> {
    pub(super) telemetry: Telemetry,
    pub(super) world: World<C, K, R>,
    pub(super) endpoint: Endpoint,
    pub(super) options: CourierOptions,
    pub(super) keeper: Option<Keeper>,
    /// The revision of the buffer that was kept last.
    pub(super) kept: Option<u64>,
    pub(super) line: Option<Line>,
    pub(super) dials: JoinSet<Result<Opened, ClientError>>,
    pub(super) posts: JoinSet<Result<Answer, ClientError>>,
    /// The attempts in a row that failed, and when the next one is due.
    pub(super) socket_door: Attempts,
    pub(super) http_door: Attempts,
    /// Whether the WebSocket has failed since it was last open.
    pub(super) may_post: bool,
    pub(super) stop: Option<Stop>,
    /// The time of the present turn, which its timers are reckoned from.
    pub(super) turn_ms: u64,
    pub(super) status: watch::Sender<CourierStatus>,
}

/// What ends a call of a courier. Everything that waits is safe in every case.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CourierError {
    /// The server refuses the token or the device. [`Courier::connect_as`] goes on with another one.
    #[error("the server refuses the caller: {reason}")]
    Unauthorized {
        /// Why, for a person.
        reason: String,
    },
    /// The server closed the connection with a code that forbids to come back by oneself.
    #[error("the server closed the connection for good ({code}): {reason}")]
    Final {
        /// The close code, 4500 to 4999.
        code: u16,
        /// Why, for a person.
        reason: String,
    },
    /// The buffer could not be kept, and nothing new is sent before it is.
    #[error("the buffer cannot be kept: {0}")]
    Keep(#[source] io::Error),
    /// It took longer than the caller wanted to wait.
    #[error("not done in time, {waiting} samples wait")]
    Deadline {
        /// How many samples wait.
        waiting: usize,
    },
}

impl Courier {
    /// Takes over a buffer; nothing is sent before the courier is driven.
    #[must_use]
    pub fn new(endpoint: Endpoint, telemetry: Telemetry, options: CourierOptions) -> Self {
        Self::new_in(World::system(), endpoint, telemetry, options)
    }
}

impl<C: Connector, K: Clock, R: Random> Courier<C, K, R> {
    /// Takes over a buffer in the given world, as [`Courier::new`] does in this machine's.
    #[must_use]
    pub fn new_in(
        world: World<C, K, R>,
        endpoint: Endpoint,
        telemetry: Telemetry,
        options: CourierOptions,
    ) -> Self {
        Self {
            turn_ms: world.now_ms(),
            telemetry: telemetry.with_backoff(options.backoff),
            world,
            endpoint,
            options,
            keeper: None,
            kept: None,
            line: None,
            dials: JoinSet::new(),
            posts: JoinSet::new(),
            socket_door: Attempts::default(),
            http_door: Attempts::default(),
            may_post: false,
            stop: None,
            status: watch::Sender::new(CourierStatus::default()),
        }
    }

    /// Has the buffer kept before anything new is sent, so that a restart of the app loses and doubles nothing.
    #[must_use]
    pub fn with_keeper(mut self, keeper: Keeper) -> Self {
        self.keeper = Some(keeper);
        self
    }

    /// Returns the buffer.
    #[must_use]
    pub fn telemetry(&self) -> &Telemetry {
        &self.telemetry
    }

    /// Returns the buffer, to be added to. It goes out when the courier is driven.
    pub fn telemetry_mut(&mut self) -> &mut Telemetry {
        &mut self.telemetry
    }

    /// Records a sample of a kind, now.
    ///
    /// # Errors
    /// [`RecordError`]; the sample is not in the buffer then.
    pub fn record(&mut self, kind: KindName, fields: &Object) -> Result<(), RecordError> {
        self.telemetry.record(kind, fields, self.world.now_ms())
    }

    /// Returns how it stands.
    #[must_use]
    pub fn status(&self) -> CourierStatus {
        *self.status.borrow()
    }

    /// Returns how it stands, to be watched.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<CourierStatus> {
        self.status.subscribe()
    }

    /// Tries every door at once and counts attempts anew: after a failure, or when the network is back.
    pub fn connect(&mut self) {
        self.stop = None;
        self.socket_door = Attempts::default();
        self.http_door = Attempts::default();
        if self.line.is_none() {
            self.show(|status| status.state = CourierState::Connecting);
        }
    }

    /// Goes on as another caller, or with a new token.
    pub fn connect_as(&mut self, endpoint: Endpoint) {
        self.endpoint = endpoint;
        self.dials = JoinSet::new();
        if self.line.take().is_some() {
            self.telemetry.handle_disconnected();
        }
        self.connect();
    }

    /// Carries until the server has answered everything. Cancel-safe.
    ///
    /// # Errors
    /// [`CourierError`]; a deadline that passed leaves the work to the next call.
    pub async fn flush(&mut self, within: Duration) -> Result<(), CourierError> {
        self.drive(within, Telemetry::is_empty).await
    }

    /// Carries until the buffer is as wanted. Cancel-safe.
    ///
    /// # Errors
    /// As [`flush`](Self::flush).
    pub async fn drive(
        &mut self,
        within: Duration,
        mut done: impl FnMut(&Telemetry) -> bool,
    ) -> Result<(), CourierError> {
        let world = self.world.clone();
        let deadline = async move { world.clock.sleep(within).await };
        tokio::pin!(deadline);
        loop {
            self.turn().await?;
            if done(&self.telemetry) {
                return Ok(());
            }
            tokio::select! {
                () = self.wait() => {}
                () = &mut deadline => return Err(CourierError::Deadline { waiting: self.telemetry.len() }),
            }
        }
    }

    /// Carries until it cannot go on. Cancel-safe.
    pub async fn run(&mut self) -> CourierError {
        loop {
            if let Err(error) = self.turn().await {
                return error;
            }
            self.wait().await;
        }
    }

    /// Says goodbye, keeps the buffer, and gives it back. What has no answer is sent again by the next courier.
    ///
    /// # Errors
    /// With the buffer, what hindered its keeping.
    pub async fn close(mut self) -> Result<Telemetry, (Box<Telemetry>, io::Error)> {
        if let Some(mut line) = self.line.take() {
            let clock = self.world.clock.clone();
            let farewell = async {
                let _ = line.socket.outgoing.send(Outgoing::Close(1000)).await;
                line.socket.incoming.close();
                while line.socket.tasks.join_next().await.is_some() {}
            };
            tokio::select! {
                () = farewell => {}
                () = clock.sleep(CLOSE_MAX) => {}
            }
        }
        self.dials.shutdown().await;
        self.posts.shutdown().await;
        self.telemetry.handle_disconnected();
        self.telemetry.handle_http_lost();
        // Answers do not move the revision, and what they settled need not be kept any longer.
        self.kept = None;
        match self.keep().await {
            Err(CourierError::Keep(error)) => Err((Box::new(self.telemetry), error)),
            _ => Ok(self.telemetry),
        }
    }
}

impl<C, K, R> fmt::Debug for Courier<C, K, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Courier")
            .field("telemetry", &self.telemetry)
            .field("status", &*self.status.borrow())
            .finish_non_exhaustive()
    }
}
