//! What happens now, for the sessions that listen.

use std::collections::BTreeMap;
use std::sync::PoisonError;

use driftline_model::TenantNo;

use super::Engine;
use crate::events::EventDraft;
use crate::ports::{Identity, Observer, Store};

impl<S: Store, O: Observer> Engine<S, O> {
    /// Tells whether anybody of a tenant listens to events on this node.
    pub fn is_heard(&self, tenant: TenantNo) -> bool {
        self.hub.fanout().is_heard(tenant)
    }

    /// Returns what was last told of the streams of the identity's tenant, for somebody who begins to listen.
    pub fn streams_now(&self, identity: &Identity, now_ms: u64) -> Vec<EventDraft> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner).told(identity.tenant, now_ms)
    }

    /// Counts who listens to which topic of the identity's tenant on this node.
    pub fn subscriptions(&self, identity: &Identity) -> BTreeMap<Box<str>, usize> {
        self.hub.fanout().count(identity.tenant)
    }

    /// Tells who listens to a topic on this node, by user with the number of their connections.
    pub fn present(&self, identity: &Identity, topic: &str) -> BTreeMap<Box<str>, usize> {
        self.hub.fanout().present(identity.tenant, topic)
    }
}
