//! A database that can be made to fail, those who write to it meanwhile, and the look at what is left.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use driftline_engine::{Page, PageQuery, Place, Receipt, Store, StoreError, Submission};
use driftline_model::Seq;
use driftline_protocol::ItemCode;
use driftline_storage::{PostgresOptions, PostgresStore, PostgresTarget};
use driftline_testkit::postgres::{Cluster, Database, Options};
use driftline_testkit::{Author, World, block_on, create};
use futures_util::future::join_all;

use crate::support;

/// How long a caller may be kept waiting: as the store is told, and as the test allows a busy machine.
pub(crate) const WAIT_MS: u64 = 4_000;
pub(crate) const TOLD_WITHIN: Duration = Duration::from_millis(WAIT_MS + 8_000);
/// How soon everything goes on by itself after a fault.
pub(crate) const RESUMES_WITHIN: Duration = Duration::from_secs(10);

#[allow(clippy::disallowed_methods, reason = "how long a caller waits is what is tested")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Waits until something holds, which it must in time.
pub(crate) fn until(what: &str, within: Duration, mut holds: impl FnMut() -> bool) {
    let begun = now();
    while !holds() {
        assert!(begun.elapsed() < within, "not within {within:?}: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A cluster of its own with one database.
pub(crate) struct Bed {
    pub(crate) world: World,
    // Dropped before its cluster.
    pub(crate) database: Database,
    pub(crate) cluster: Cluster,
}

impl Bed {
    pub(crate) fn new() -> Self {
        Self::with(&Options::default())
    }

    pub(crate) fn with(options: &Options) -> Self {
        let cluster = Cluster::own(options);
        let database = cluster.empty_database();
        Self { world: World::new(1), database, cluster }
    }

    /// Opens the store without anything in between.
    pub(crate) fn store(&self) -> PostgresStore {
        self.store_at(self.database.url())
    }

    pub(crate) fn store_at(&self, url: String) -> PostgresStore {
        PostgresStore::open(self.options(url)).expect("the store opens")
    }

    pub(crate) fn options(&self, url: String) -> PostgresOptions {
        PostgresOptions {
            target: PostgresTarget { url, tls_ca: None, connect_ms: 1_500 },
            clock: None,
            wait_ms: WAIT_MS,
            write_connections: 2,
            threads: 2,
            outbox_claims: Vec::new(),
            ..support::postgres_options(&self.world)
        }
    }

    /// One number that the database gives.
    pub(crate) fn number(&self, sql: &str) -> u64 {
        self.database.sql(sql).parse().unwrap_or_else(|error| panic!("{sql}: {error}"))
    }
}

/// What a device was told.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    /// The versions of acknowledged records.
    pub(crate) acknowledged: BTreeMap<String, u64>,
    /// How many answers said that the change was known before.
    pub(crate) duplicates: u64,
    /// How often it was told to send again.
    pub(crate) refused: u64,
    /// The longest wait for any answer.
    pub(crate) longest: Duration,
}

impl Journal {
    pub(crate) fn merge(&mut self, other: Self) {
        self.acknowledged.extend(other.acknowledged);
        self.duplicates += other.duplicates;
        self.refused += other.refused;
        self.longest = self.longest.max(other.longest);
    }

    /// Notes an answer; tells whether it was a receipt.
    pub(crate) fn note(&mut self, batch: &Submission, answer: Result<Receipt, StoreError>) -> bool {
        let receipt = match answer {
            Ok(receipt) => receipt,
            Err(StoreError::Unavailable(_)) => {
                self.refused += 1;
                return false;
            }
            Err(other) => panic!("{other}"),
        };
        assert_eq!(receipt.results.len(), batch.entries.len());
        for (entry, result) in batch.entries.iter().zip(receipt.results) {
            let id = entry.id.as_ref().expect("a record").to_string();
            assert_eq!(result.code, ItemCode::Applied, "{id}: {result:?}");
            let version = result.version.expect("a version").number();
            self.duplicates += u64::from(result.duplicate);
            let before = self.acknowledged.insert(id.clone(), version);
            assert!(before.is_none_or(|before| before == version), "{id}: {before:?}, then {version}");
        }
        true
    }
}

/// How the changes of a device can be recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    /// By number and name.
    Both,
    /// By number.
    Number,
    /// Not at all.
    Not,
}

/// A device that makes records, each with a name of its own.
pub(crate) struct Device {
    author: Author,
    name: String,
    known: Known,
    made: u64,
    pub(crate) journal: Journal,
}

impl Device {
    pub(crate) fn join(store: &PostgresStore, tenant: &str, name: &str, known: Known) -> Self {
        let author = Author::join(store, tenant, name, "phone");
        Self { author, name: name.to_owned(), known, made: 0, journal: Journal::default() }
    }

    pub(crate) fn batch(&mut self, items: u64) -> Submission {
        let drafts = (0..items).map(|_| {
            self.made += 1;
            let (n, id) = (self.made, format!("{}-{}", self.name, self.made));
            let draft = create(&id, r#"{"title":"a"}"#);
            match self.known {
                Known::Both => draft.n(n).op_id(&id),
                Known::Number => draft.n(n),
                Known::Not => draft,
            }
        });
        let drafts: Vec<_> = drafts.collect();
        self.author.batch(drafts)
    }

    /// Sends a batch once; tells whether a receipt came. Either comes in time.
    pub(crate) fn send(&mut self, store: &PostgresStore, batch: &Submission) -> bool {
        let begun = now();
        let answer = block_on(store.commit(batch.clone()));
        let waited = begun.elapsed();
        assert!(waited < TOLD_WITHIN, "{} waited {waited:?} for {answer:?}", self.name);
        self.journal.longest = self.journal.longest.max(waited);
        self.journal.note(batch, answer)
    }

    /// Sends a batch until it is acknowledged, which it must be in time once `over` is set.
    fn deliver(&mut self, store: &PostgresStore, batch: &Submission, over: &AtomicBool) {
        let mut since = None;
        while !self.send(store, batch) {
            if self.known == Known::Not {
                return;
            }
            if over.load(Ordering::SeqCst) {
                let since: Instant = *since.get_or_insert_with(now);
                assert!(since.elapsed() < RESUMES_WITHIN, "{}: nothing is written any more", self.name);
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Everything of a tenant, as its readers see it.
pub(crate) fn page(store: &PostgresStore, author: &Author) -> Result<Page, StoreError> {
    block_on(store.page(PageQuery {
        tenant: author.tenant,
        scopes: author.scopes(),
        kinds: Vec::new(),
        place: Place::After(Seq::ZERO),
        rows: 100_000,
        bytes: 1 << 30,
        sums: false,
    }))
}

/// Eight devices that write to a tenant, of which two cannot be recognised, and a reader, while `fault` does something
/// to the database. When it is over, all of them get through by themselves. Gives what they were told.
pub(crate) fn under_load(stores: &[&PostgresStore], fault: impl FnOnce()) -> Journal {
    let over = AtomicBool::new(false);
    let all = Mutex::new(Journal::default());
    thread::scope(|scope| {
        for number in 0..8_usize {
            let (store, over, all) = (stores[number % stores.len()], &over, &all);
            let known = [Known::Both, Known::Number, Known::Both, Known::Not][number % 4];
            let mut device = Device::join(store, "acme", &format!("load-{number}"), known);
            scope.spawn(move || {
                while !over.load(Ordering::SeqCst) {
                    let batch = device.batch(3);
                    device.deliver(store, &batch, over);
                }
                // Whatever happened to the last one: from now on a batch gets through.
                device.known = Known::Both;
                let batch = device.batch(1);
                device.deliver(store, &batch, over);
                all.lock().unwrap_or_else(PoisonError::into_inner).merge(device.journal);
            });
        }
        let (store, over_) = (stores[0], &over);
        let reader = Author::join(store, "acme", "reader", "tablet");
        scope.spawn(move || read(store, &reader, over_));
        fault();
        over.store(true, Ordering::SeqCst);
    });
    all.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Reads until the fault is over; then a page comes in time.
fn read(store: &PostgresStore, reader: &Author, over: &AtomicBool) {
    let (mut after, mut since) = (Seq::ZERO, None);
    loop {
        let was_over = over.load(Ordering::SeqCst);
        let begun = now();
        let head = block_on(store.head(reader.tenant));
        assert!(begun.elapsed() < TOLD_WITHIN, "a reader waited {:?}", begun.elapsed());
        match head {
            Ok(head) => {
                assert!(head.seq >= after, "the head went back from {after} to {}", head.seq);
                after = head.seq;
                if was_over {
                    return;
                }
            }
            Err(error) => assert!(matches!(error, StoreError::Unavailable(_)), "{error}"),
        }
        if was_over {
            let since: Instant = *since.get_or_insert_with(now);
            assert!(since.elapsed() < RESUMES_WITHIN, "nothing is read any more");
        }
        thread::sleep(Duration::from_millis(20));
    }
}

impl Bed {
    /// Looks whether everything that was acknowledged is there once, under the version that was told, that nothing was
    /// applied twice, and that the numbers of the tenants have neither gaps nor doubles. Every record was made once and
    /// written never again.
    pub(crate) fn check(&self, store: &PostgresStore, journal: &Journal) {
        let rows = self.database.sql("SELECT tenant_no, seq, id FROM records ORDER BY tenant_no, seq");
        let mut tenants: BTreeMap<u32, Vec<(u64, String)>> = BTreeMap::new();
        for row in rows.lines() {
            let mut parts = row.splitn(3, '|');
            let mut next = || parts.next().expect("a column");
            let tenant = next().parse().expect("a number");
            let (seq, id) = (next().parse().expect("a number"), next().to_owned());
            tenants.entry(tenant).or_default().push((seq, id));
        }
        let stored: BTreeMap<&str, u64> =
            tenants.values().flatten().map(|(seq, id)| (id.as_str(), *seq)).collect();
        for (id, version) in &journal.acknowledged {
            assert_eq!(stored.get(id.as_str()), Some(version), "{id} was acknowledged");
        }
        for (tenant, rows) in &tenants {
            let seqs: Vec<u64> = rows.iter().map(|(seq, _)| *seq).collect();
            let head = self.number(&format!("SELECT seq FROM stream_head WHERE tenant_no = {tenant}"));
            assert_eq!(seqs, (1..=head).collect::<Vec<u64>>(), "the numbers of tenant {tenant}");
            self.check_page(store, *tenant, rows);
        }
        // Of every change one answer is remembered, whoever could recognise it.
        let twice = "SELECT count(*) FROM (SELECT 1 FROM op_results GROUP BY device_no, hash HAVING count(*) > 1) AS d";
        assert_eq!(self.number(twice), 0, "changes were applied twice");
        assert_eq!(
            self.number("SELECT count(*) FROM op_results"),
            self.number("SELECT COALESCE(sum(seq), 0) FROM stream_head"),
            "every number has its answer"
        );
        let sums = "SELECT COALESCE(sum(count), 0) FROM scope_sums";
        assert_eq!(self.number(sums), stored.len() as u64, "the sums are those of the records");
    }

    fn check_page(&self, store: &PostgresStore, tenant: u32, rows: &[(u64, String)]) {
        let author =
            Author::new(driftline_model::TenantNo::new(tenant), driftline_model::DeviceNo::new(0), "reader");
        let page = page(store, &author).expect("a page");
        let told: BTreeSet<(u64, String)> =
            page.rows.iter().map(|row| (row.record.version.number(), row.id.to_string())).collect();
        assert_eq!(told, rows.iter().cloned().collect(), "what readers see");
        assert_eq!(page.head.seq.number(), rows.len() as u64);
    }
}

/// Sends batches at the same moment, on one thread.
pub(crate) fn send_all(
    store: &PostgresStore,
    batches: &[Submission],
) -> (Vec<Result<Receipt, StoreError>>, Duration) {
    let begun = now();
    let answers = block_on(join_all(batches.iter().map(|batch| store.commit(batch.clone()))));
    (answers, begun.elapsed())
}
