//! Several nodes on one database: what one of them changes is in force on the others once their store tells it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use driftline_engine::{
    Catalogue, Engine, Hub, Identity, KindRule, Listeners as _, NullObserver, Store, StoreError, StoredPolicy,
};
use driftline_model::{KindName, Limits, TenantId, TenantNo, UserId};
use driftline_protocol::PolicyDoc;
use driftline_storage::MemoryStore;
use driftline_testkit::{FixedClock, Hook, SeededRandom, World, Wrapped, block_on};

/// Counts how often policies are read.
#[derive(Default)]
struct Reads(AtomicUsize);

impl Hook<MemoryStore> for Reads {
    async fn policies(&self, inner: &MemoryStore, tenant: TenantNo) -> Result<Vec<StoredPolicy>, StoreError> {
        self.0.fetch_add(1, Ordering::SeqCst);
        inner.policies(tenant).await
    }
}

/// One node: an engine with a hub of its own on a store that others have, too.
struct Node {
    hub: Arc<Hub>,
    engine: Engine<Wrapped<MemoryStore, Reads>, NullObserver>,
}

impl Node {
    fn on(store: &MemoryStore) -> Self {
        let hub = Arc::new(Hub::new(4));
        let store = Wrapped::new(store.clone(), Reads::default());
        let kinds = Catalogue::new([(note(), KindRule::default())].into());
        Self {
            hub: Arc::clone(&hub),
            engine: Engine::new(store, hub, kinds, Limits::default(), NullObserver),
        }
    }

    fn identity(&self, tenant: &str) -> Identity {
        let (tenant, user) = (TenantId::new(tenant).expect("a name"), UserId::text("ada").expect("a name"));
        block_on(self.engine.identify(tenant, user, None, Vec::new(), &[])).expect("an identity")
    }

    fn set(&self, tenant: &str, strategy: &str) -> u64 {
        let doc = PolicyDoc::parse(&format!(r#"{{"strategy":"{strategy}"}}"#)).expect("a document");
        block_on(self.engine.set_policy(&self.identity(tenant), &note(), &doc)).expect("a policy is set")
    }

    /// The strategy in force and its version.
    fn policy(&self, tenant: &str) -> (String, u64) {
        let found = block_on(self.engine.policy(&self.identity(tenant), &note(), World::BEGIN_MS));
        let (doc, version) = found.expect("a policy");
        (doc.strategy, version)
    }

    fn reads(&self) -> usize {
        self.engine.store().hook.0.load(Ordering::SeqCst)
    }
}

fn note() -> KindName {
    KindName::new("note").expect("a kind's name")
}

fn two_nodes() -> (Node, Node) {
    let (clock, random) = (Arc::new(FixedClock::new(World::BEGIN_MS)), Arc::new(SeededRandom::new(1)));
    let store = MemoryStore::new(clock, random, Arc::new(Hub::new(1)), Limits::default());
    (Node::on(&store), Node::on(&store))
}

#[test]
fn a_policy_that_another_node_set_is_in_force_once_it_is_told() {
    let (one, other) = two_nodes();
    let merge = || ("field_merge".to_owned(), 0);
    assert_eq!((other.policy("acme"), other.policy("globex")), (merge(), merge()));
    let version = one.set("acme", "server_wins");
    assert_eq!(other.policy("acme"), merge(), "what was read holds until the store tells of a change");

    other.hub.policies_changed(other.identity("acme").tenant);
    assert_eq!(other.policy("acme"), ("server_wins".to_owned(), version));
    assert_eq!(
        (other.policy("globex"), other.reads()),
        (merge(), 3),
        "of other tenants nothing is read again"
    );

    let later = one.set("acme", "manual");
    assert!(later > version);
    other.hub.policies_changed(other.identity("acme").tenant);
    assert_eq!(other.policy("acme"), ("manual".to_owned(), later));
    assert_eq!(one.policy("acme"), ("manual".to_owned(), later), "the node that set it needs no telling");
}

#[test]
fn voided_numbers_take_everything_with_them_that_was_read_under_them() {
    let (one, other) = two_nodes();
    assert_eq!((other.policy("acme").1, other.policy("globex").1, other.engine.numbering()), (0, 0, 0));
    let versions = (one.set("acme", "manual"), one.set("globex", "client_wins"));
    other.hub.numbers_voided();
    assert_eq!((other.policy("acme").1, other.policy("globex").1), versions);
    assert_eq!((other.engine.numbering(), one.engine.numbering()), (1, 0));
}
