//! The shell around a replica: one connection and its timers.

use std::fmt;
use std::future::Future;
use std::io;
use std::time::Duration;

use driftline_protocol::{Fault, Form};
use thiserror::Error;

use crate::edit::{Edit, EditError};
use crate::endpoint::{Endpoint, Route};
use crate::event::Event;
use crate::replica::Replica;
use crate::session::Link;
use crate::socket::{Incoming, Outgoing, Socket};
use crate::system::{SystemClock, SystemRandom, TcpConnector};
use crate::wire::Unreadable;
use crate::world::{Clock, Connector, Random, World};

/// How long connecting may take, from the first packet to the server's greeting.
pub(crate) const CONNECT_MAX: Duration = Duration::from_secs(10);

/// How long the server may take to say goodbye.
pub(crate) const CLOSE_MAX: Duration = Duration::from_secs(2);

/// The longest that a client sleeps when no timer is set.
pub(crate) const IDLE_MAX_MS: u64 = 60_000;

/// A replica with a connection.
///
/// Nothing goes on behind the app's back: the replica moves while one of the asynchronous methods runs. An app that
/// waits for something else for longer than half a heartbeat calls [`drive`](Self::drive) or
/// [`next_event`](Self::next_event) beside it. There is no reconnection in here: [`close`](Self::close) gives the
/// replica back, and [`connect`](Client::connect) takes it again.
pub struct Client<C = TcpConnector, K = SystemClock, R = SystemRandom> {
    replica: Replica,
    socket: Socket,
    world: World<C, K, R>,
    sent_ms: u64,
    /// Why the connection is gone.
    closed: Option<Closure>,
}

/// The server's last word.
#[derive(Debug, Clone)]
struct Closure {
    code: Option<u16>,
    reason: String,
}

impl Client {
    /// Connects to a server and waits for its greeting.
    ///
    /// Dropping the future closes the connection and loses the replica.
    ///
    /// # Errors
    /// [`ConnectError`], which gives the replica back.
    pub async fn connect(endpoint: &Endpoint, replica: Replica) -> Result<Self, ConnectError> {
        Self::connect_in(&World::system(), endpoint, replica).await
    }
}

impl<C: Connector, K: Clock, R: Random> Client<C, K, R> {
    /// Connects to a server of the given world, as [`Client::connect`] does on this machine's.
    ///
    /// # Errors
    /// [`ConnectError`], which gives the replica back.
    pub async fn connect_in(
        world: &World<C, K, R>,
        endpoint: &Endpoint,
        mut replica: Replica,
    ) -> Result<Self, ConnectError> {
        let opening = async {
            if endpoint.target(Route::Sync).is_none() {
                return Err(ClientError::NoToken);
            }
            let stream = world.connector.connect(endpoint.authority()).await?;
            Socket::open(stream, endpoint, Route::Sync, world.nonce()).await
        };
        let opened = tokio::select! {
            opened = opening => opened,
            () = world.clock.sleep(CONNECT_MAX) => Err(ClientError::Deadline { queue_len: replica.queue_len() }),
        };
        let socket = match opened {
            Ok(socket) => socket,
            Err(cause) => return Err(ConnectError { replica: Box::new(replica), cause }),
        };
        replica.handle_connected(world.sync_id());
        let mut client =
            Self { replica, socket, sent_ms: world.now_ms(), world: world.clone(), closed: None };
        match client.drive(CONNECT_MAX, Replica::is_greeted).await {
            Ok(()) => Ok(client),
            Err(cause) => Err(ConnectError { replica: Box::new(client.disconnect().await), cause }),
        }
    }

    /// Returns the replica.
    #[must_use]
    pub fn replica(&self) -> &Replica {
        &self.replica
    }

    /// Returns the form in which messages travel on this connection: what the server chose of what was offered.
    #[must_use]
    pub fn form(&self) -> Form {
        self.socket.form
    }

    /// Returns the replica, to be changed. What it wants to send goes out when the client is driven.
    pub fn replica_mut(&mut self) -> &mut Replica {
        &mut self.replica
    }

    /// Queues an edit and returns its number; it goes out when the client is driven.
    ///
    /// # Errors
    /// [`EditError`] when the edit is beyond a limit.
    pub fn edit(&mut self, edit: Edit) -> Result<u64, EditError> {
        self.world.edit(&mut self.replica, edit)
    }

    /// Queues edits that apply together or not at all, and returns the number of the first.
    ///
    /// # Errors
    /// [`EditError`] when the edits are beyond a limit; then none of them is queued.
    pub fn edit_group(&mut self, edits: Vec<Edit>) -> Result<u64, EditError> {
        self.world.edit_group(&mut self.replica, edits)
    }

    /// Pushes every edit, then pulls everything that the server has by then, own writes included. Cancel-safe.
    ///
    /// # Errors
    /// [`ClientError::Deadline`] when that took longer than `within`; the work goes on with the next call. Else what
    /// became of the connection.
    pub async fn sync(&mut self, within: Duration) -> Result<(), ClientError> {
        let deadline = self.deadline(within);
        let mut asked = false;
        self.run(deadline, |replica| {
            // The start of a session takes no wish over from before it.
            if !asked && replica.queue_len() == 0 && replica.session.link == Link::Open {
                replica.request_pull();
                asked = true;
            }
            replica.catch_up();
            (asked && replica.is_settled()).then_some(())
        })
        .await
    }

    /// Pushes every edit. Cancel-safe.
    ///
    /// # Errors
    /// As [`sync`](Self::sync).
    pub async fn flush(&mut self, within: Duration) -> Result<(), ClientError> {
        self.drive(within, |replica| replica.queue_len() == 0).await
    }

    /// Sends and receives until the replica is as wanted. Cancel-safe.
    ///
    /// # Errors
    /// As [`sync`](Self::sync).
    pub async fn drive(
        &mut self,
        within: Duration,
        mut done: impl FnMut(&Replica) -> bool,
    ) -> Result<(), ClientError> {
        let deadline = self.deadline(within);
        self.run(deadline, |replica| done(replica).then_some(())).await
    }

    /// Sends and receives until there is an event. Cancel-safe.
    ///
    /// # Errors
    /// What became of the connection.
    pub async fn next_event(&mut self) -> Result<Event, ClientError> {
        self.run(std::future::pending(), Replica::poll_event).await
    }

    /// Says goodbye, takes in what the server still had to say, and gives the replica back.
    ///
    /// Every task of the connection has ended then. The goodbye is bounded in time.
    pub async fn close(mut self) -> Replica {
        let world = self.world.clone();
        tokio::select! {
            () = self.farewell() => {}
            () = world.clock.sleep(CLOSE_MAX) => {}
        }
        self.disconnect().await
    }

    async fn farewell(&mut self) {
        if self.closed.is_none() && self.socket.outgoing.send(Outgoing::Close(1000)).await.is_ok() {
            while self.receive_next().await.is_ok() {}
        }
        self.socket.incoming.close();
        // Both tasks end by themselves: the writer with the close frame, the reader with the peer's or the stream's end.
        while self.socket.tasks.join_next().await.is_some() {}
    }

    /// Drops the connection without a word, as a lost network does, and gives the replica back.
    pub async fn disconnect(mut self) -> Replica {
        self.socket.tasks.shutdown().await;
        self.replica.handle_disconnected();
        self.replica
    }

    /// A timer that does not borrow the client.
    fn deadline(&self, within: Duration) -> impl Future<Output = ()> + use<C, K, R> {
        let world = self.world.clone();
        async move { world.clock.sleep(within).await }
    }

    async fn run<T>(
        &mut self,
        deadline: impl Future<Output = ()>,
        mut found: impl FnMut(&mut Replica) -> Option<T>,
    ) -> Result<T, ClientError> {
        tokio::pin!(deadline);
        loop {
            self.transmit().await;
            if let Some(found) = found(&mut self.replica) {
                return Ok(found);
            }
            if let Some(closed) = &self.closed {
                return Err(closed.error());
            }
            self.transmit().await;
            let timer = self.deadline(Duration::from_millis(self.until_timer_ms()));
            tokio::select! {
                received = self.receive_next() => received?,
                () = &mut deadline => return Err(ClientError::Deadline { queue_len: self.replica.queue_len() }),
                () = timer => {}
            }
        }
    }

    /// Hands over what the replica wants to send. Cancel-safe: a message leaves the replica only when there is room.
    async fn transmit(&mut self) {
        let now_ms = self.world.now_ms();
        self.replica.handle_timeout(now_ms);
        if self.heartbeat_ms().is_some_and(|due_ms| due_ms <= now_ms) {
            self.sent_ms = now_ms;
            self.replica.request_heartbeat();
        }
        // Without a writer the connection is gone, which the reader is about to tell.
        while let Ok(room) = self.socket.outgoing.reserve().await {
            let Some(text) = self.replica.poll_transmit() else { return };
            self.sent_ms = now_ms;
            room.send(Outgoing::Message(text));
        }
    }

    /// When the next heartbeat is due: after half an interval of silence.
    fn heartbeat_ms(&self) -> Option<u64> {
        let interval_s = self.replica.heartbeat_interval_s().filter(|seconds| *seconds > 0)?;
        Some(self.sent_ms.saturating_add(interval_s.saturating_mul(500)))
    }

    fn until_timer_ms(&self) -> u64 {
        let next_ms = [self.replica.poll_timeout(), self.heartbeat_ms()].into_iter().flatten().min();
        next_ms.map_or(IDLE_MAX_MS, |next_ms| next_ms.saturating_sub(self.world.now_ms()).min(IDLE_MAX_MS))
    }

    /// Takes the next message in. Cancel-safe.
    async fn receive_next(&mut self) -> Result<(), ClientError> {
        match self.socket.incoming.recv().await {
            Some(Incoming::Message(message)) => {
                let now_ms = self.world.now_ms();
                self.replica.handle_frame(&message, now_ms).map_err(|fault| {
                    let _ = self.socket.outgoing.try_send(Outgoing::Close(1002));
                    self.lose(Closure { code: None, reason: fault.to_string() });
                    ClientError::Fault(fault)
                })
            }
            Some(Incoming::Unreadable(cause)) => {
                let _ = self.socket.outgoing.try_send(Outgoing::Close(cause.close_code()));
                self.lose(Closure { code: None, reason: cause.to_string() });
                Err(ClientError::Unreadable(cause))
            }
            Some(Incoming::Closed { code, reason }) => {
                // The answer to a close frame is owed and not waited for.
                let _ = self.socket.outgoing.try_send(Outgoing::Close(code.unwrap_or(1000)));
                Err(self.lose(Closure { code, reason }).error())
            }
            None => Err(self.lose(Closure { code: None, reason: "the connection is gone".into() }).error()),
        }
    }

    fn lose(&mut self, closure: Closure) -> &Closure {
        self.replica.handle_disconnected();
        self.closed.get_or_insert(closure)
    }
}

impl<C, K, R> fmt::Debug for Client<C, K, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("replica", &self.replica)
            .field("closed", &self.closed)
            .finish_non_exhaustive()
    }
}

impl Closure {
    fn error(&self) -> ClientError {
        ClientError::Closed { code: self.code, reason: self.reason.clone() }
    }
}

/// A connection that did not come about.
#[derive(Debug, Error)]
#[error("cannot connect: {cause}")]
pub struct ConnectError {
    /// The replica, as it was.
    pub replica: Box<Replica>,
    /// Why.
    #[source]
    pub cause: ClientError,
}

/// What can go wrong with a connection. Edits that wait are safe in every case.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The network failed.
    #[error("the network failed: {0}")]
    Network(#[from] io::Error),
    /// HTTP failed before the upgrade.
    #[error("the handshake failed: {0}")]
    Handshake(#[from] hyper::Error),
    /// The server refused the upgrade.
    #[error("the server refused the upgrade with status {status}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The problem document, as text.
        body: String,
    },
    /// What answered does not speak WebSocket.
    #[error("the peer does not speak WebSocket")]
    NotWebSocket,
    /// The server chose a form of messages that it was not offered.
    #[error("the server chose the subprotocol {chosen:?}, which was not offered")]
    Subprotocol {
        /// The subprotocol that it named.
        chosen: String,
    },
    /// Records are for users, and the endpoint is a registered device's.
    #[error("a device hash opens no sync session, a token does")]
    NoToken,
    /// The connection is closed.
    #[error("the connection is closed ({code:?}): {reason}")]
    Closed {
        /// The close code, if the server sent one.
        code: Option<u16>,
        /// The reason, for a person.
        reason: String,
    },
    /// The server sent something that is no message of this protocol.
    #[error("the server sent {0}")]
    Fault(#[source] Fault),
    /// The server sent a message that is not of the agreed form.
    #[error("the server sent a message that cannot be opened: {0}")]
    Unreadable(#[source] Unreadable),
    /// It took longer than the caller wanted to wait.
    #[error("not done in time, {queue_len} edits wait")]
    Deadline {
        /// How many edits wait.
        queue_len: usize,
    },
}

impl ClientError {
    /// Tells whether connecting again is of no use: the close code is one of 4500 to 4999.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Closed { code: Some(4500..=4999), .. })
    }
}
