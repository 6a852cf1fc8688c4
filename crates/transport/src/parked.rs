//! What clients asked for that went: the same client takes it back when it comes again soon.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use driftline_engine::{Identity, Subscribed};
use driftline_model::TenantNo;

/// For how many milliseconds a client may take its subscriptions back.
const PARKED_MS: u64 = 300_000;

/// Clients whose subscriptions are kept at once.
const PARKED_MAX: usize = 10_000;

/// A client: its tenant, its user and the name that it gave itself.
type Client = (TenantNo, Box<str>, Box<str>);

/// The subscriptions of clients that went, on this node.
#[derive(Debug, Default)]
pub(crate) struct Parked {
    /// With the time until which they are kept. The lock is held for one insertion or removal.
    clients: Mutex<HashMap<Client, (Vec<Subscribed>, u64)>>,
}

fn client(identity: &Identity, client_id: &str) -> Client {
    (identity.tenant, identity.user.to_string().into(), client_id.into())
}

impl Parked {
    /// Keeps what a client had asked for when it went.
    pub(crate) fn keep(&self, identity: &Identity, client_id: &str, asked: Vec<Subscribed>, now_ms: u64) {
        if asked.is_empty() {
            return;
        }
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if clients.len() >= PARKED_MAX {
            clients.retain(|_, (_, until_ms)| now_ms < *until_ms);
        }
        if clients.len() < PARKED_MAX {
            clients.insert(client(identity, client_id), (asked, now_ms + PARKED_MS));
        }
    }

    /// Takes what a client had asked for before, if it comes in time.
    pub(crate) fn take(&self, identity: &Identity, client_id: &str, now_ms: u64) -> Vec<Subscribed> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = clients.remove(&client(identity, client_id));
        kept.filter(|(_, until_ms)| now_ms < *until_ms).map(|(asked, _)| asked).unwrap_or_default()
    }
}
