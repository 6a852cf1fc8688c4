//! Devices as the registry keeps them: who they belong to, whether they may connect, how they were last.

use std::sync::Arc;

use driftline_idempotency::Fingerprint;
use driftline_model::{DeviceId, DeviceKey, DeviceNo, Epoch, TenantNo};

/// A registered device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceRow {
    /// Its number.
    pub device: DeviceNo,
    /// Its identity.
    pub key: DeviceKey,
    /// The user it belongs to.
    pub owner: Box<str>,
    /// Its name within its owner.
    pub device_id: DeviceId,
    /// Whether it may connect.
    pub enabled: bool,
    /// Whether it was removed: it is listed no more, and refused until it is registered again.
    pub retired: bool,
    /// Whether a device hash leads to it.
    pub hashed: bool,
    /// Whether a connection of it is open, as far as is known.
    pub online: bool,
    /// Its own word for how it is.
    pub status: Option<Box<str>>,
    /// What it last said of itself, a canonical JSON object.
    pub report: Option<Box<str>>,
    /// When it was registered, in Unix milliseconds.
    pub created_ms: u64,
    /// When it was last heard, in Unix milliseconds.
    pub last_seen_ms: u64,
}

impl DeviceRow {
    /// Tells whether the device may connect.
    #[must_use]
    pub fn is_admitted(&self) -> bool {
        self.enabled && !self.retired
    }
}

/// Which devices of a tenant are wanted, by their numbers.
#[derive(Debug, Clone, Default)]
pub struct DeviceQuery {
    /// Only those of this user.
    pub owner: Option<Box<str>>,
    /// Only those of this name.
    pub device_id: Option<DeviceId>,
    /// The last device of the page before.
    pub after: Option<DeviceNo>,
    /// The most rows.
    pub rows: usize,
}

/// A change of the registry.
#[derive(Debug, Clone)]
pub struct DeviceChange {
    /// The user.
    pub owner: Box<str>,
    /// The device's name within the user.
    pub device_id: DeviceId,
    /// What is to be done.
    pub action: DeviceAction,
    /// Whether it may connect from now on; none: as before, of a new device: yes.
    pub enabled: Option<bool>,
    /// The SHA-256 of the device hash that leads to it from now on, and no other; none: as before.
    pub digest: Option<[u8; 32]>,
}

/// What is to be done with a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceAction {
    /// Register it; one that is registered and not retired stays as it is.
    Register,
    /// Change it.
    Update,
    /// Retire it: no hash leads to it any more.
    Retire,
}

/// What became of a change of the registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceChanged {
    /// The device as it is now.
    Done(Box<DeviceRow>),
    /// There is no such device.
    NotFound,
    /// It was registered before, and stays as it was.
    Exists(Box<DeviceRow>),
    /// The device hash leads to another device, of whichever tenant.
    HashTaken,
    /// The change was made before under the same key: the answer of then.
    Replayed(Box<[u8]>),
    /// The key was used for another request.
    Reused,
}

/// Writes the answer to a change of the registry.
pub type WriteAnswer = dyn Fn(&DeviceRow) -> Vec<u8> + Send + Sync;

/// The key of a request, with how its answer is written down in the transaction of its effect.
#[derive(Clone)]
pub struct DeviceOnce {
    /// The user or the device that made the key.
    pub owner: Box<str>,
    /// The key.
    pub key: Box<str>,
    /// Tells the request from another one.
    pub fingerprint: Fingerprint,
    /// Milliseconds for which the answer is remembered.
    pub window_ms: u64,
    /// Writes the answer.
    pub answer: Arc<WriteAnswer>,
}

impl std::fmt::Debug for DeviceOnce {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeviceOnce").field("key", &self.key).finish_non_exhaustive()
    }
}

/// Something that was noticed of a device, written behind: a crash may lose the last seconds of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceNote {
    /// The tenant.
    pub tenant: TenantNo,
    /// The device.
    pub device: DeviceNo,
    /// When, in Unix milliseconds.
    pub at_ms: u64,
    /// What.
    pub sign: DeviceSign,
}

/// What is noticed of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceSign {
    /// It was heard.
    Heard,
    /// It connected.
    Connected {
        /// The connection, whichever node it is on.
        connection: Box<str>,
    },
    /// A connection of it is gone. It is offline if it has not connected again since.
    Disconnected {
        /// The connection.
        connection: Box<str>,
    },
    /// It acknowledged every event up to this one.
    Acknowledged {
        /// The life of the log.
        epoch: Epoch,
        /// The event.
        event: u64,
    },
    /// It listens to topics.
    Listened {
        /// The life of the log.
        epoch: Epoch,
        /// The last event before.
        since: u64,
        /// The topics.
        topics: Vec<Box<str>>,
        /// Topics that it asked for and may not have.
        refused: Vec<Box<str>>,
    },
    /// It was cut for reading too slowly.
    Slow {
        /// The last event that it took.
        event: u64,
    },
    /// It said how it is.
    Reported {
        /// Its own word; none: as before.
        status: Option<Box<str>>,
        /// Everything it said, a canonical JSON object.
        report: Box<str>,
    },
}
