//! What happens now, for the sessions that listen.

use std::pin::Pin;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll};

use driftline_model::TenantNo;
use futures_channel::mpsc;
use futures_util::Stream;

use super::Engine;
use crate::ports::{Identity, Observer, Store};
use crate::signal::Signal;

/// The live events of one tenant, as one session hears them. It ends when dropped.
///
/// A session that falls behind by more than the hub's queue misses events. Dropping a future that waits for the next one
/// loses none.
#[derive(Debug)]
pub struct Signals(mpsc::Receiver<Arc<Signal>>);

impl Stream for Signals {
    type Item = Arc<Signal>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut self.0).poll_next(context)
    }
}

impl<S: Store, O: Observer> Engine<S, O> {
    /// Starts to listen to the live events of the identity's tenant.
    pub fn listen(&self, identity: &Identity) -> Signals {
        Signals(self.hub.listen(identity.tenant))
    }

    /// Tells whether anybody listens to the live events of a tenant.
    pub fn is_heard(&self, tenant: TenantNo) -> bool {
        self.hub.is_heard(tenant)
    }

    /// Tells whoever listens to a tenant of something that happens now.
    pub fn signal(&self, tenant: TenantNo, signal: Signal) {
        self.hub.signal(tenant, signal);
    }

    /// Returns what was last told of the streams of the identity's tenant, for somebody who begins to listen.
    pub fn streams_now(&self, identity: &Identity, now_ms: u64) -> Vec<Signal> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner).told(identity.tenant, now_ms)
    }

    /// Returns the templates of the topics on which kinds announce.
    pub fn announced(&self) -> Vec<Box<str>> {
        self.catalogue.announced()
    }
}
