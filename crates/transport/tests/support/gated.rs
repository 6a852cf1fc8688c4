//! A store whose commits of batches wait until the test lets them go.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use driftline_engine::{Receipt, Store, StoreError, StoredPolicy, Submission};
use driftline_model::TenantNo;
use driftline_storage::MemoryStore;
use driftline_testkit::{Hook, Wrapped};
use tokio::sync::Semaphore;

/// A store in memory behind a gate.
pub type Gated = Wrapped<MemoryStore, GateKeeper>;

/// Holds what comes until its gate lets it go.
pub struct GateKeeper(Arc<Gate>);

/// Lets commits through, and can hold one look at the policies.
pub struct Gate {
    permits: Semaphore,
    begun: AtomicUsize,
    hold_policies: AtomicBool,
    policies_held: AtomicUsize,
    policies: Semaphore,
}

impl Gate {
    /// Makes a gate that is shut.
    pub fn shut() -> Arc<Self> {
        Arc::new(Self {
            permits: Semaphore::new(0),
            begun: AtomicUsize::new(0),
            hold_policies: AtomicBool::new(false),
            policies_held: AtomicUsize::new(0),
            policies: Semaphore::new(0),
        })
    }

    /// Holds the next look at the policies; those after it pass.
    pub fn hold_policies(&self) {
        self.hold_policies.store(true, Ordering::SeqCst);
    }

    /// Returns how many looks at the policies were held.
    pub fn policies_held(&self) -> usize {
        self.policies_held.load(Ordering::SeqCst)
    }

    /// Lets the held look go.
    pub fn let_policies_go(&self) {
        self.policies.add_permits(1);
    }

    /// Lets so many commits through.
    pub fn let_through(&self, commits: usize) {
        self.permits.add_permits(commits);
    }

    /// Returns how many commits of batches were asked for.
    pub fn begun(&self) -> usize {
        self.begun.load(Ordering::SeqCst)
    }
}

/// Puts a gate before a store.
pub fn gated(store: MemoryStore, gate: &Arc<Gate>) -> Gated {
    Wrapped::new(store, GateKeeper(Arc::clone(gate)))
}

impl Hook<MemoryStore> for GateKeeper {
    async fn commit(&self, inner: &MemoryStore, submission: Submission) -> Result<Receipt, StoreError> {
        // That devices came and went is written now and then, by nobody who is tested here.
        if submission.is_publication() {
            return inner.commit(submission).await;
        }
        self.0.begun.fetch_add(1, Ordering::SeqCst);
        self.0.permits.acquire().await.expect("the gate stays").forget();
        inner.commit(submission).await
    }

    async fn policies(&self, inner: &MemoryStore, tenant: TenantNo) -> Result<Vec<StoredPolicy>, StoreError> {
        if self.0.hold_policies.swap(false, Ordering::SeqCst) {
            self.0.policies_held.fetch_add(1, Ordering::SeqCst);
            self.0.policies.acquire().await.expect("the gate stays").forget();
        }
        inner.policies(tenant).await
    }
}
