//! The database's timeline: whether it is still the one whose commits were acknowledged.
//!
//! A standby that is promoted, and a restore to a point in time, begin a new timeline of the write-ahead log; another
//! cluster has another system identifier, and what a dump is read into has other object numbers. Each may lack commits
//! that were acknowledged before. So every tenant gets a new epoch then, which has its devices compare what they hold
//! with what is left, and send again what is missing.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use diesel::QueryableByName;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Binary, Integer, Nullable, Text};
use diesel_async::{AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use driftline_engine::{Listeners, Random};
use driftline_model::Epoch;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::PostgresError;
use super::caches::Caches;

/// What a change of the timeline means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Failover {
    /// Acknowledged commits may be lost: every tenant gets a new epoch. Right for standbys that follow without being
    /// waited for, and for restores.
    #[default]
    Lossy,
    /// Nothing is lost: commits wait for the standby that is promoted (`synchronous_standby_names`). Epochs stay. A
    /// restore to a point in time cannot be told from such a promotion: the first start after one is to be lossy.
    Lossless,
}

pub(super) struct Timeline {
    pub(super) failover: Failover,
    pub(super) random: Arc<dyn Random>,
    pub(super) listeners: Arc<dyn Listeners>,
    pub(super) caches: Arc<Caches>,
    /// The lock is held while what was known of the timeline before is forgotten, so that nobody uses a connection of
    /// the new one together with numbers of the old one.
    pub(super) met: Mutex<Met>,
}

/// What this process met last.
#[derive(Default)]
pub(super) struct Met {
    stored: Option<Stored>,
    /// The connections on that timeline.
    drivers: Vec<AbortHandle>,
}

/// A timeline as it is stored: `database/number/begun/mark`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stored {
    /// The system identifier, and the object numbers of the database and of the table this is stored in.
    database: String,
    /// The timeline's number.
    number: String,
    /// Unix milliseconds at which a store first saw it. They rise from one timeline to the next.
    begun_ms: i64,
    /// Two restores of one backup get the same number.
    mark: String,
}

impl Stored {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('/');
        let mut part = || parts.next().map(str::to_owned);
        let (database, number, begun, mark) = (part()?, part()?, part()?, part()?);
        let begun_ms = begun.parse().ok()?;
        parts.next().is_none().then_some(Self { database, number, begun_ms, mark })
    }

    fn text(&self) -> String {
        format!("{}/{}/{}/{}", self.database, self.number, self.begun_ms, self.mark)
    }

    fn is_at(&self, here: &Here) -> bool {
        self.database == here.database && self.number == here.number
    }
}

#[derive(QueryableByName)]
struct Here {
    #[diesel(sql_type = Text)]
    database: String,
    #[diesel(sql_type = Text)]
    number: String,
    #[diesel(sql_type = BigInt)]
    now_ms: i64,
    #[diesel(sql_type = Nullable<Text>)]
    stored: Option<String>,
}

impl Here {
    fn stored(&self) -> Option<Stored> {
        self.stored.as_deref().and_then(Stored::parse)
    }
}

#[derive(QueryableByName)]
struct Tenant {
    #[diesel(sql_type = Integer)]
    tenant_no: i32,
}

/// The file of the write-ahead log that is written now begins with the number of the timeline.
const HERE: &str = "SELECT (SELECT system_identifier FROM pg_control_system()) || '.' \
     || (SELECT oid FROM pg_database WHERE datname = current_database()) || '.' || 'meta'::REGCLASS::OID AS database, \
     substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8) AS number, \
     (extract(epoch FROM clock_timestamp()) * 1000)::BIGINT AS now_ms, \
     (SELECT convert_from(value, 'UTF8') FROM meta WHERE name = 'timeline') AS stored";

/// Numbers that were given since the last commit which is left, and that are lost with it, must not be given again
/// while somebody may still hold them. The distance is drawn, so that a second failover which loses this as well does
/// not come to the same place.
const SKIP_NUMBERS: &str = "SELECT setval(s::REGCLASS, nextval(s::REGCLASS) + 10000 + (random() * 40000)::BIGINT) \
     FROM unnest(ARRAY[\
     pg_get_serial_sequence('tenants', 'tenant_no'), pg_get_serial_sequence('kinds', 'kind_no'), \
     pg_get_serial_sequence('scopes', 'scope_no'), pg_get_serial_sequence('topics', 'topic_no'), \
     pg_get_serial_sequence('devices', 'device_no'), 'audit_ids', 'idempotency_attempts']) AS s";

impl Timeline {
    /// Looks on which timeline a new connection is, whose task `driver` ends. That takes at most `limit`; new epochs,
    /// where they are to be begun, take as long as the database lets a statement take.
    ///
    /// A timeline that is older than the one met last is refused: somebody promoted a standby, and the former primary
    /// goes on or came back. What is written there is lost.
    pub(super) async fn check(
        &self,
        pg: &mut AsyncPgConnection,
        driver: AbortHandle,
        limit: Duration,
    ) -> Result<(), PostgresError> {
        let looked = timeout(limit, sql_query(HERE).get_result::<Here>(pg)).await;
        let here = looked.map_err(|_| PostgresError::Connect("it did not answer in time".into()))?;
        let here = here.map_err(unread)?;
        let stored = match here.stored() {
            Some(stored) if stored.is_at(&here) => stored,
            _ => self.settle(pg, here).await.map_err(unread)?,
        };
        self.meet(stored, driver)
    }

    fn meet(&self, stored: Stored, driver: AbortHandle) -> Result<(), PostgresError> {
        let mut met = self.met.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = met.stored.as_ref().filter(|known| **known != stored) {
            if stored.begun_ms < known.begun_ms {
                tracing::warn!(here = stored.text(), met = known.text(), "a former primary takes writes");
                return Err(PostgresError::Connect(
                    "it is on a timeline that was left: a former primary".into(),
                ));
            }
            let lossy = self.loses(known, &stored.database);
            met.drivers.drain(..).for_each(|driver| driver.abort());
            self.caches.clear();
            if lossy {
                self.listeners.numbers_voided();
            }
        }
        met.stored = Some(stored);
        met.drivers.retain(|driver| !driver.is_finished());
        met.drivers.push(driver);
        Ok(())
    }

    /// Whether commits that were acknowledged on a timeline may be missing. Of another database nobody promised anything.
    fn loses(&self, before: &Stored, database: &str) -> bool {
        self.failover == Failover::Lossy || before.database != database
    }

    /// Stores the timeline; the first to see a new one begins new epochs. Gives what is stored then.
    async fn settle(&self, pg: &mut AsyncPgConnection, here: Here) -> diesel::QueryResult<Stored> {
        pg.batch_execute("BEGIN").await?;
        let met = self.met.lock().unwrap_or_else(PoisonError::into_inner).stored.clone();
        let begun = [here.stored(), met].iter().flatten().map(|stored| stored.begun_ms + 1).max();
        let fresh = Stored {
            database: here.database.clone(),
            number: here.number.clone(),
            begun_ms: here.now_ms.max(begun.unwrap_or_default()),
            mark: fresh_epoch(&*self.random).to_string(),
        };
        let text = fresh.text();
        sql_query("INSERT INTO meta (name, value) VALUES ('timeline', $1) ON CONFLICT DO NOTHING")
            .bind::<Binary, _>(text.as_bytes())
            .execute(pg)
            .await?;
        sql_query("SELECT 1 FROM meta WHERE name = 'timeline' FOR UPDATE").execute(pg).await?;
        let now: Here = sql_query(HERE).get_result(pg).await?;
        if let Some(stored) = now.stored().filter(|stored| stored.is_at(&now)) {
            // It is new, or another node was first.
            pg.batch_execute("COMMIT").await?;
            return Ok(stored);
        }
        tracing::warn!(before = now.stored, now = text, failover = ?self.failover, "the database is on another timeline");
        sql_query("UPDATE meta SET value = $1 WHERE name = 'timeline'")
            .bind::<Binary, _>(text.as_bytes())
            .execute(pg)
            .await?;
        if now.stored().is_none_or(|before| self.loses(&before, &fresh.database)) {
            self.begin_epochs(pg).await?;
        }
        pg.batch_execute("COMMIT").await?;
        Ok(fresh)
    }

    async fn begin_epochs(&self, pg: &mut AsyncPgConnection) -> diesel::QueryResult<()> {
        sql_query(SKIP_NUMBERS).execute(pg).await?;
        let tenants: Vec<Tenant> =
            sql_query("SELECT tenant_no FROM stream_head ORDER BY tenant_no FOR UPDATE").load(pg).await?;
        let numbers: Vec<i32> = tenants.iter().map(|tenant| tenant.tenant_no).collect();
        let epochs: Vec<String> = numbers.iter().map(|_| fresh_epoch(&*self.random).to_string()).collect();
        sql_query(
            "UPDATE stream_head AS h SET epoch = n.epoch, epoch_seq = h.seq \
             FROM unnest($1, $2) AS n(tenant_no, epoch) WHERE h.tenant_no = n.tenant_no",
        )
        .bind::<diesel::sql_types::Array<Integer>, _>(numbers)
        .bind::<diesel::sql_types::Array<Text>, _>(epochs)
        .execute(pg)
        .await?;
        Ok(())
    }
}

pub(super) fn fresh_epoch(random: &dyn Random) -> Epoch {
    let mut bytes = [0; 4];
    random.fill(&mut bytes);
    Epoch::new(u32::from_be_bytes(bytes))
}

#[expect(clippy::needless_pass_by_value, reason = "it is the end of a result's error")]
fn unread(error: diesel::result::Error) -> PostgresError {
    PostgresError::Connect(format!("the timeline cannot be read: {error}"))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::{Arc, Mutex};

    use driftline_engine::{Committed, Listeners};
    use driftline_model::{TenantId, TenantNo};
    use driftline_testkit::World;
    use tokio::task::JoinHandle;

    use super::{Failover, PostgresError, Stored, Timeline};

    #[derive(Default)]
    struct Ears(AtomicU64);

    impl Listeners for Ears {
        fn listening(&self, _: TenantNo) -> bool {
            false
        }

        fn committed(&self, _: Committed) {}

        fn numbers_voided(&self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    struct Scene {
        timeline: Timeline,
        ears: Arc<Ears>,
        acme: TenantId,
    }

    impl Scene {
        fn new(failover: Failover) -> Self {
            let (world, ears) = (World::new(1), Arc::new(Ears::default()));
            let (random, listeners) = (world.random.clone(), ears.clone());
            let timeline =
                Timeline { failover, random, listeners, caches: Arc::default(), met: Mutex::default() };
            Self { timeline, ears, acme: TenantId::new("acme").expect("a name") }
        }

        /// Meets a timeline with a connection that stands, and learns something on it.
        fn meet(&self, text: &str) -> (Result<(), PostgresError>, JoinHandle<()>) {
            let connection = tokio::spawn(std::future::pending());
            let stored = Stored::parse(text).expect("a timeline");
            assert_eq!(stored.text(), text);
            let met = self.timeline.meet(stored, connection.abort_handle());
            if met.is_ok() {
                self.timeline.caches.tenants.insert(self.acme.clone(), TenantNo::new(1));
            }
            (met, connection)
        }

        fn voided(&self) -> u64 {
            self.ears.0.load(Ordering::SeqCst)
        }

        fn knows(&self) -> bool {
            self.timeline.caches.tenants.get(&self.acme).is_some()
        }
    }

    async fn is_ended(connection: JoinHandle<()>) -> bool {
        connection.await.is_err_and(|ended| ended.is_cancelled())
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_new_timeline_ends_the_connections_to_the_old_one_and_what_was_learnt_there() {
        let scene = Scene::new(Failover::Lossy);
        let (first, second) = (scene.meet("7.1.2/00000001/100/aa"), scene.meet("7.1.2/00000001/100/aa"));
        assert_eq!((first.0, second.0, scene.voided()), (Ok(()), Ok(()), 0));
        let promoted = Stored::parse("7.1.2/00000002/200/bb").expect("a timeline");
        let third = tokio::spawn(std::future::pending::<()>());
        assert_eq!(scene.timeline.meet(promoted, third.abort_handle()), Ok(()));
        assert!(!scene.knows(), "nothing is known on the new one");
        assert_eq!(scene.voided(), 1);
        assert!(is_ended(first.1).await && is_ended(second.1).await);
        assert!(!third.is_finished());
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_timeline_that_was_left_is_refused() {
        let scene = Scene::new(Failover::Lossy);
        let (met, new) = scene.meet("7.1.2/00000002/200/bb");
        assert_eq!(met, Ok(()));
        let (refused, _) = scene.meet("7.1.2/00000001/100/aa");
        assert!(
            matches!(&refused, Err(PostgresError::Connect(reason)) if reason.contains("former")),
            "{refused:?}"
        );
        assert!(scene.knows() && !new.is_finished() && scene.voided() == 0);
        // A restore of an older backup may have a smaller number, and is later.
        assert_eq!(scene.meet("7.1.2/00000001/300/cc").0, Ok(()));
        assert_eq!(scene.voided(), 1);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn lossless_holds_for_the_same_database_only() {
        let scene = Scene::new(Failover::Lossless);
        assert_eq!(scene.meet("7.1.2/00000001/100/aa").0, Ok(()));
        assert_eq!(scene.meet("7.1.2/00000002/200/bb").0, Ok(()));
        assert_eq!(scene.voided(), 0);
        assert_eq!(scene.meet("8.1.2/00000001/300/cc").0, Ok(()));
        assert_eq!(scene.voided(), 1);
    }

    #[test]
    fn what_an_earlier_version_stored_is_no_timeline() {
        for text in ["", "7/00000001/", "7/00000001/aabbccdd", "7.1.2/1/x/aa", "7.1.2/1/1/aa/"] {
            assert_eq!(Stored::parse(text), None, "{text}");
        }
    }
}
