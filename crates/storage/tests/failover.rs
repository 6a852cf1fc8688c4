//! What becomes of epochs and numbers when the database is another one than it was: a promoted standby, a restored
//! backup, a dump that was read in.

mod support;

use std::io::Write as _;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use driftline_engine::{AuditQuery, Committed, Head, Listeners, Place, Retention, Store, StoreError};
use driftline_model::{DeviceNo, Seq, TenantId, TenantNo};
use driftline_storage::{Failover, PostgresOptions, PostgresStore, PostgresTarget};
use driftline_testkit::postgres::{Cluster, Database, Options, command};
use driftline_testkit::proxy::Proxy;
use driftline_testkit::{Author, Draft, World, block_on, create, patch};

/// Counts how often numbers were voided.
#[derive(Default)]
struct Ears(AtomicU64, AtomicU64);

impl Listeners for Ears {
    fn listening(&self, _: TenantNo) -> bool {
        true
    }

    fn committed(&self, committed: Committed) {
        self.1.fetch_max(committed.seq.number(), Ordering::SeqCst);
    }

    fn numbers_voided(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

struct Node {
    store: PostgresStore,
    ears: Arc<Ears>,
    seed: u64,
}

impl Node {
    fn open(url: &str, failover: Failover, seed: u64) -> Self {
        let (world, ears) = (World::new(seed), Arc::new(Ears::default()));
        let store = PostgresStore::open(PostgresOptions {
            target: PostgresTarget { connect_ms: 2_000, ..support::target(url) },
            failover,
            clock: None,
            listeners: ears.clone(),
            wait_ms: 5_000,
            watch_ms: 50,
            ..support::postgres_options(&world)
        });
        Self { store: store.expect("the store opens"), ears, seed }
    }

    fn two(url: &str, failover: Failover) -> [Self; 2] {
        [1, 2].map(|seed| Self::open(url, failover, seed))
    }

    fn voided(&self) -> u64 {
        self.ears.0.load(Ordering::SeqCst)
    }

    fn join(&self, tenant: &str, device: &str) -> Author {
        Author::join(&self.store, tenant, "ada", device)
    }

    fn commit(&self, author: &Author, draft: Draft) -> Result<(), StoreError> {
        block_on(self.store.commit(author.batch([draft]))).map(drop)
    }

    fn write(&self, author: &Author, id: &str) {
        self.commit(author, create(id, "{}")).expect("a commit");
    }

    /// The head of a tenant, as soon as the database answers again.
    fn head(&self, tenant: &str) -> Head {
        let name = TenantId::new(tenant).expect("a name");
        soon("a head", || {
            let tenant = block_on(self.store.tenant(&name)).ok()?;
            block_on(self.store.head(tenant)).ok()
        })
    }
}

/// Looks until there is something.
fn soon<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    for _ in 0..3_000 {
        if let Some(found) = look() {
            return found;
        }
        thread::sleep(Duration::from_millis(10));
    }
    panic!("{what} did not come about");
}

/// A primary with a standby that follows it.
struct Pair {
    standby: Cluster,
    database: Database,
    primary: Cluster,
}

impl Pair {
    /// Starts a pair whose primary waits for the standby with every commit.
    fn synchronous() -> Self {
        let pair = Self::start();
        pair.primary.sql("ALTER SYSTEM SET synchronous_standby_names = '*'");
        pair.primary.sql("SELECT pg_reload_conf()");
        let waited_for = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'";
        soon("a synchronous standby", || (pair.primary.sql(waited_for) == "1").then_some(()));
        pair
    }

    fn start() -> Self {
        let primary = Cluster::own(&Options::default());
        let database = primary.empty_database();
        let standby = Cluster::standby_of(&primary);
        Self { standby, database, primary }
    }

    fn url(&self) -> String {
        self.database.url_through(&[self.primary.address(), self.standby.address()])
    }

    /// Waits until the standby has everything.
    fn catch_up(&self) {
        let lsn = self.primary.sql("SELECT pg_current_wal_flush_lsn()");
        let reached = format!("SELECT pg_last_wal_replay_lsn() >= '{lsn}'");
        soon("the standby", || (self.standby.sql(&reached) == "t").then_some(()));
    }

    /// From now on the standby gets nothing any more.
    fn cut_off(&self) {
        self.standby.sql("ALTER SYSTEM SET primary_conninfo = ''");
        self.standby.sql("SELECT pg_reload_conf()");
        let receivers = "SELECT count(*) FROM pg_stat_wal_receiver";
        soon("the end of the stream", || (self.standby.sql(receivers) == "0").then_some(()));
    }

    fn on_standby(&self, sql: &str) -> String {
        self.standby.sql_in(self.database.name(), sql)
    }
}

fn highest(authors: &[&Author]) -> DeviceNo {
    authors.iter().map(|author| author.device).max().expect("somebody")
}

#[test]
fn a_promoted_standby_begins_new_epochs_and_gives_new_numbers() {
    let mut pair = Pair::start();
    let nodes = Node::two(&pair.url(), Failover::Lossy);
    let [one, two] = &nodes;
    let (ada, eve) = (one.join("acme", "phone"), two.join("globex", "phone"));
    one.write(&ada, "kept");
    two.write(&eve, "kept");
    let before = [one.head("acme"), one.head("globex")];
    pair.catch_up();
    pair.cut_off();

    // What the standby never hears of: a device, a tenant, a kind, and commits.
    let late = one.join("acme", "late");
    let lost = one.join("lost", "phone");
    one.write(&ada, "lost");
    one.commit(&late, create("lost-too", "{}").kind("rare")).expect("a commit");
    one.write(&lost, "lost");
    assert_eq!(one.head("acme").seq, Seq::new(3));
    pair.primary.kill9();
    assert!(one.commit(&ada, create("away", "{}")).is_err(), "nothing is acknowledged while it is away");
    pair.standby.promote();

    for node in &nodes {
        let heads = [node.head("acme"), node.head("globex")];
        for (now, before) in heads.iter().zip(&before) {
            assert_ne!(now.epoch, before.epoch);
            assert_eq!((now.epoch_seq, now.seq), (Seq::new(1), Seq::new(1)));
        }
        assert_eq!(node.voided(), 1);
    }
    assert_eq!(one.head("acme").epoch, two.head("acme").epoch, "there is one new epoch");

    // Whoever still holds a number that was lost is told to ask again, and writes nothing.
    for node in &nodes {
        for stale in [&late, &lost] {
            let refused = node.commit(stale, create("stale", "{}").kind("rare"));
            assert!(matches!(&refused, Err(StoreError::Unavailable(_))), "{refused:?}");
        }
    }
    assert_eq!(pair.on_standby("SELECT count(*) FROM records WHERE id <> 'kept'"), "0");

    // No number is given again.
    let again = [one.join("acme", "late"), two.join("acme", "tablet"), two.join("lost", "phone")];
    for author in &again {
        assert!(author.device > highest(&[&ada, &eve, &late, &lost]), "{author:?}");
    }
    assert!(again[2].tenant > lost.tenant);
    // A device that was not lost keeps its number and goes on.
    assert_eq!(two.join("acme", "phone").device, ada.device);
    two.commit(&ada, create("more", "{}").kind("rare")).expect("a commit");
    one.commit(&again[0], patch("kept", 1, r#"{"a":1}"#)).expect("a commit");
    let rows =
        pair.on_standby("SELECT id, kind FROM records JOIN kinds USING (kind_no) WHERE seq > 1 ORDER BY 1");
    assert_eq!(rows, "kept|note\nmore|rare", "the kind has a number that stands for it");
}

#[test]
fn a_second_failover_begins_new_epochs_again() {
    let mut pair = Pair::start();
    let node = Node::open(&pair.url(), Failover::Lossy, 1);
    let ada = node.join("acme", "phone");
    node.write(&ada, "x");
    let first = node.head("acme").epoch;
    pair.catch_up();
    pair.primary.kill9();
    pair.standby.promote();
    let second = node.head("acme").epoch;
    let next = Cluster::standby_of(&pair.standby);
    let after =
        Node::open(&pair.database.url_through(&[pair.standby.address(), next.address()]), Failover::Lossy, 2);
    assert_eq!(after.head("acme").epoch, second, "a node that starts later begins none");
    pair.standby.kill9();
    next.promote();
    let third = after.head("acme").epoch;
    assert!(first != second && second != third && first != third);
    assert_eq!(after.voided(), 1);
}

#[test]
fn with_nothing_lost_epochs_stay() {
    let mut pair = Pair::synchronous();
    let nodes = Node::two(&pair.url(), Failover::Lossless);
    let ada = nodes[0].join("acme", "phone");
    for at in 0..20 {
        nodes[at % 2].write(&ada, &format!("x{at}"));
    }
    let before = nodes[0].head("acme");
    // Right behind the last acknowledgement.
    pair.primary.kill9();
    pair.standby.promote();
    for node in &nodes {
        assert_eq!(node.head("acme"), before);
        assert_eq!(node.voided(), 0);
    }
    for (number, node) in nodes.iter().enumerate() {
        node.write(&ada, &format!("more{number}"));
    }
}

/// Sessions stay where nothing is lost, and nobody asks for their tenant's number again.
#[test]
fn with_nothing_lost_sessions_go_on_hearing_of_other_nodes() {
    let mut pair = Pair::synchronous();
    let nodes = Node::two(&pair.url(), Failover::Lossless);
    let ada = nodes[0].join("acme", "phone");
    nodes[1].join("acme", "phone");
    let heard = |seq: u64| (nodes[1].ears.1.load(Ordering::SeqCst) >= seq).then_some(());
    nodes[0].write(&ada, "before");
    soon("the other node hears", || heard(1));
    pair.primary.kill9();
    pair.standby.promote();
    let _ = nodes[0].head("acme");
    nodes[0].write(&ada, "after");
    soon("the other node hears of what came after", || heard(2));
    assert_eq!(nodes[1].voided(), 0);
}

#[test]
fn a_crash_is_no_new_epoch() {
    let mut pair = Pair::start();
    let nodes = Node::two(&pair.url(), Failover::Lossy);
    let ada = nodes[0].join("acme", "phone");
    nodes[0].write(&ada, "x");
    let before = nodes[1].head("acme");
    for end in [Cluster::kill_immediate, Cluster::kill9, Cluster::stop_fast] {
        end(&mut pair.primary);
        assert!(nodes[0].commit(&ada, create("away", "{}")).is_err());
        pair.primary.start();
        for node in &nodes {
            assert_eq!(node.head("acme"), before);
            assert_eq!(node.voided(), 0);
        }
    }
}

/// Nobody says that it is over: connections stay, and nothing is answered.
#[test]
fn a_primary_that_hangs_is_left_for_the_promoted_standby() {
    let mut pair = Pair::start();
    let nodes = Node::two(&pair.url(), Failover::Lossy);
    let authors = ["acme", "globex", "initech"].map(|tenant| nodes[0].join(tenant, "phone"));
    for (node, author) in nodes.iter().flat_map(|node| authors.iter().map(move |author| (node, author))) {
        node.write(author, &format!("x{}", node.seed));
    }
    pair.catch_up();
    let before = nodes[0].head("acme");
    pair.primary.pause();
    let begun = now();
    assert!(
        nodes[0].commit(&authors[0], create("away", "{}")).is_err(),
        "it hangs in the middle of a commit"
    );
    pair.standby.promote();
    for node in &nodes {
        for author in &authors {
            let id = format!("on{}", node.seed);
            soon("a commit", || node.commit(author, create(&id, "{}")).ok());
        }
    }
    println!("{} ms from the hang until every tenant was written to again", begun.elapsed().as_millis());
    // Less than the time after which a statement that hangs is given up.
    assert!(begun.elapsed() < Duration::from_secs(29), "{:?}", begun.elapsed());
    pair.primary.resume();
    for node in &nodes {
        assert_ne!(node.head("acme").epoch, before.epoch);
        assert_eq!(node.voided(), 1);
    }
    assert_eq!(pair.database.sql("SELECT count(*) FROM records WHERE id LIKE 'on%'"), "0");
    assert_eq!(pair.on_standby("SELECT count(*) FROM records WHERE id LIKE 'on%'"), "6");
}

#[allow(clippy::disallowed_methods, reason = "how long it takes is what is looked at")]
fn now() -> Instant {
    Instant::now()
}

/// A former primary that is reachable again goes on taking writes; they would be lost.
#[test]
fn a_former_primary_is_not_written_to_any_more() {
    let mut pair = Pair::start();
    let network = Proxy::start(pair.primary.address());
    let url = pair.database.url_through(&[network.address(), pair.standby.address()]);
    let nodes = Node::two(&url, Failover::Lossy);
    let ada = nodes[0].join("acme", "phone");
    nodes[0].write(&ada, "x");
    pair.catch_up();
    network.cut();
    pair.standby.promote();
    let epoch = nodes[0].head("acme").epoch;
    assert_eq!(nodes[1].head("acme").epoch, epoch);
    network.pass();
    pair.standby.stop_fast();
    for node in &nodes {
        // Where it took too long to find out, that is what is told first.
        soon("the former primary is told of", || {
            let refused = node.commit(&ada, create("astray", "{}"));
            let Err(StoreError::Unavailable(reason)) = refused else { panic!("{refused:?}") };
            reason.contains("a former primary").then_some(())
        });
    }
    pair.standby.start();
    for node in &nodes {
        assert_eq!(node.head("acme").epoch, epoch);
        node.commit(&ada, patch("x", 1, "{}")).expect("a commit");
        assert_eq!(node.voided(), 1);
    }
    assert_eq!(pair.database.sql("SELECT count(*) FROM records"), "1", "the former primary got nothing");
}

/// Everything here is done as an owner who is nobody special, which is what a hosted database gives.
#[test]
fn every_restore_begins_new_epochs_while_nodes_run() {
    let mut cluster = Cluster::own(&Options::default());
    let database = cluster.empty_database();
    cluster.sql("CREATE ROLE app LOGIN");
    cluster.sql(&format!("ALTER DATABASE {} OWNER TO app", database.name()));
    let url = database.url().replace("driftline@", "app@");
    let nodes = Node::two(&url, Failover::Lossy);
    let ada = nodes[0].join("acme", "phone");
    let bob = nodes[1].join("acme", "tablet");
    nodes[0].write(&ada, "x");
    let mut epochs = vec![nodes[0].head("acme").epoch];
    // The audit has no partition yet.
    let backup = cluster.backup();
    for round in 1..=2 {
        let (writer, reader) = (&nodes[0], &nodes[1]);
        writer.commit(&ada, patch("x", 1, r#"{"a":1}"#)).expect("a commit");
        reader.commit(&bob, patch("x", 1, r#"{"a":2}"#)).expect("a commit");
        reader.write(&bob, "lost");
        let audit = block_on(reader.store.audit(bob.tenant, audits(&bob)));
        assert_eq!(audit.expect("the audit").len(), 1, "round {round}: a conflict is audited");
        block_on(reader.store.prune(World::BEGIN_MS, &Retention::default())).expect("pruned");
        cluster.restore(&backup);
        for node in &nodes {
            let head = node.head("acme");
            assert_eq!((head.seq, head.epoch_seq), (Seq::new(1), Seq::new(1)), "round {round}");
            assert_eq!(node.voided(), round);
        }
        epochs.push(nodes[0].head("acme").epoch);
        assert_eq!(nodes[1].head("acme").epoch, epochs[epochs.len() - 1], "round {round}: there is one");
    }
    epochs.sort_unstable();
    epochs.dedup();
    assert_eq!(epochs.len(), 3, "every restore has its own");
    assert_eq!(database.sql("SELECT DISTINCT tableowner FROM pg_tables WHERE tablename ~ '^audit'"), "app");
}

fn audits(author: &Author) -> AuditQuery {
    AuditQuery { scopes: author.scopes(), rows: 10, ..AuditQuery::default() }
}

/// Reads a dump of one database into another one.
fn copy(from: &Database, to: &Database, options: &[&str]) {
    let dump = command("pg_dump").arg(from.url()).args(options).output().expect("pg_dump runs");
    assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
    let mut psql = command("psql");
    psql.args(["-X", "-q", "-v", "ON_ERROR_STOP=1"])
        .arg(to.url())
        .stdin(Stdio::piped())
        .stdout(Stdio::null());
    let mut psql = psql.spawn().expect("psql runs");
    psql.stdin.take().expect("it is piped").write_all(&dump.stdout).expect("it reads");
    assert!(psql.wait().expect("it is ours").success());
}

#[test]
fn a_dump_that_is_read_in_begins_new_epochs() {
    let (here, elsewhere) = (Cluster::shared(), Cluster::own(&Options::default()));
    let database = here.empty_database();
    let seed = AtomicU64::new(2);
    let epoch_of = |database: &Database, failover| {
        Node::open(&database.url(), failover, seed.fetch_add(1, Ordering::SeqCst)).head("acme")
    };
    let first = {
        let node = Node::open(&database.url(), Failover::Lossy, 1);
        let ada = node.join("acme", "phone");
        node.write(&ada, "x");
        node.head("acme")
    };
    let mut epochs = vec![first.epoch];
    // Whatever a failover may lose: of another database nobody promised anything.
    for failover in [Failover::Lossy, Failover::Lossless] {
        for cluster in [here, &elsewhere] {
            let copied = cluster.empty_database();
            copy(&database, &copied, &[]);
            let head = epoch_of(&copied, failover);
            assert_eq!((head.seq, head.epoch_seq), (first.seq, first.seq));
            assert_eq!(epoch_of(&copied, failover), head, "the next start begins none");
            epochs.push(head.epoch);
        }
    }
    // Into itself, in place of what was there.
    copy(&database, &database, &["--clean"]);
    epochs.push(epoch_of(&database, Failover::Lossy).epoch);
    let all = epochs.len();
    epochs.sort_unstable();
    epochs.dedup();
    assert_eq!(epochs.len(), all);
}

#[test]
fn reads_serve_after_a_failover() {
    let mut pair = Pair::start();
    let node = Node::open(&pair.url(), Failover::Lossy, 1);
    let ada = node.join("acme", "phone");
    node.write(&ada, "x");
    pair.catch_up();
    pair.primary.kill9();
    pair.standby.promote();
    let epoch = node.head("acme").epoch;
    let page = block_on(node.store.page(driftline_engine::PageQuery {
        tenant: ada.tenant,
        scopes: ada.scopes(),
        kinds: Vec::new(),
        place: Place::After(Seq::ZERO),
        rows: 10,
        bytes: 1 << 20,
        sums: true,
    }));
    let page = page.expect("a page");
    assert_eq!((page.head.epoch, page.rows.len()), (epoch, 1));
}
