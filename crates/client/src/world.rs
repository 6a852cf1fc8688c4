//! The world that a client lives in, injected so that a simulation can put its own in place.

use std::fmt;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use driftline_model::{OpId, SyncId};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::edit::{Edit, EditError};
use crate::replica::Replica;
use crate::system::{SystemClock, SystemRandom, TcpConnector};

/// Opens byte streams to servers.
pub trait Connector: Send + Sync + 'static {
    /// An open stream.
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;

    /// Opens a stream to `authority`, which is a host and a port.
    ///
    /// # Errors
    /// What the network says.
    fn connect(&self, authority: &str) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

/// Tells the time and waits.
pub trait Clock: Send + Sync + 'static {
    /// Returns the wall clock in Unix milliseconds.
    fn now_ms(&self) -> u64;

    /// Waits. Cancel-safe.
    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + Send;
}

/// Gives random bytes.
pub trait Random: Send + Sync + 'static {
    /// Fills the bytes.
    fn fill(&self, bytes: &mut [u8]);
}

/// A network, a clock and a source of randomness. The default is that of this machine.
#[derive(Default)]
pub struct World<C = TcpConnector, K = SystemClock, R = SystemRandom> {
    pub(crate) connector: Arc<C>,
    pub(crate) clock: Arc<K>,
    pub(crate) random: Arc<R>,
}

impl<C, K, R> Clone for World<C, K, R> {
    fn clone(&self) -> Self {
        Self {
            connector: Arc::clone(&self.connector),
            clock: Arc::clone(&self.clock),
            random: Arc::clone(&self.random),
        }
    }
}

impl<C, K, R> fmt::Debug for World<C, K, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("World").finish_non_exhaustive()
    }
}

impl World {
    /// Returns the world of this machine.
    #[must_use]
    pub fn system() -> Self {
        Self::default()
    }
}

impl<C: Connector, K: Clock, R: Random> World<C, K, R> {
    /// Puts a world together.
    #[must_use]
    pub fn new(connector: C, clock: K, random: R) -> Self {
        Self { connector: Arc::new(connector), clock: Arc::new(clock), random: Arc::new(random) }
    }

    /// Returns the wall clock in Unix milliseconds.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        self.clock.now_ms()
    }

    /// Makes a name for an edit, which no other edit has: a UUID of version 7.
    #[must_use]
    pub fn op_id(&self) -> OpId {
        let mut random = [0; 10];
        self.random.fill(&mut random);
        let uuid = uuid::Builder::from_unix_timestamp_millis(self.now_ms(), &random).into_uuid();
        OpId::new(&uuid.to_string()).expect("a UUID is a name")
    }

    /// Queues an edit on a replica that is not connected.
    ///
    /// # Errors
    /// [`EditError`] when the edit is beyond a limit.
    pub fn edit(&self, replica: &mut Replica, edit: Edit) -> Result<u64, EditError> {
        replica.edit(edit, self.op_id(), self.now_ms())
    }

    /// Queues edits that apply together or not at all.
    ///
    /// # Errors
    /// [`EditError`] when the edits are beyond a limit; then none of them is queued.
    pub fn edit_group(&self, replica: &mut Replica, edits: Vec<Edit>) -> Result<u64, EditError> {
        replica.edit_group(edits, || self.op_id(), self.now_ms())
    }

    pub(crate) fn sync_id(&self) -> SyncId {
        let uuid = uuid::Builder::from_random_bytes(self.nonce()).into_uuid();
        SyncId::new(&uuid.to_string()).expect("a UUID is a name")
    }

    /// Draws a random number.
    pub(crate) fn draw(&self) -> u64 {
        let mut random = [0; 8];
        self.random.fill(&mut random);
        u64::from_le_bytes(random)
    }

    pub(crate) fn nonce(&self) -> [u8; 16] {
        let mut nonce = [0; 16];
        self.random.fill(&mut nonce);
        nonce
    }
}
