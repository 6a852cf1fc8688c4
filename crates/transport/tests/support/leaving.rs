//! A database that goes away.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use driftline_engine::StoreError;
use driftline_storage::MemoryStore;
use driftline_testkit::Hook;

/// What a driver says of a database that is away. It is for the log, not for clients.
const REASON: &str = "no route to db-7.internal:5432";

/// A database that answers so many more calls and is away then.
#[derive(Clone)]
pub struct Leaving(Arc<AtomicUsize>);

impl Default for Leaving {
    fn default() -> Self {
        Self(Arc::new(AtomicUsize::new(usize::MAX)))
    }
}

impl Leaving {
    /// Lets it answer so many more calls.
    pub fn answers(&self, calls: usize) {
        self.0.store(calls, Ordering::SeqCst);
    }

    /// Lets it answer all calls; tells whether it had left.
    pub fn stays(&self) -> bool {
        self.0.swap(usize::MAX, Ordering::SeqCst) == 0
    }
}

impl Hook<MemoryStore> for Leaving {
    fn admit(&self) -> Result<(), StoreError> {
        let less = |left: usize| if left == usize::MAX { Some(left) } else { left.checked_sub(1) };
        let left = self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less);
        left.map(drop).map_err(|_| StoreError::Unavailable(REASON.into()))
    }
}
