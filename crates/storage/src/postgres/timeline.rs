//! The database's timeline: whether it is still the one whose commits were acknowledged.
//!
//! A standby that is promoted, and a restore to a point in time, begin a new timeline of the write-ahead log; another
//! cluster has another system identifier. Either may lack commits that were acknowledged before. So every tenant gets
//! a new epoch then, which has its devices compare what they hold with what is left, and send again what is missing.

use std::sync::{Arc, Mutex, PoisonError};

use diesel::QueryableByName;
use diesel::sql_query;
use diesel::sql_types::{Binary, Integer, Nullable, Text};
use diesel_async::{AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use driftline_engine::{Listeners, Random};
use driftline_model::Epoch;

use super::PostgresError;
use super::caches::Caches;

/// What a change of the timeline means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Failover {
    /// Acknowledged commits may be lost: every tenant gets a new epoch. Right for standbys that follow without being
    /// waited for, and for restores.
    #[default]
    Lossy,
    /// Nothing is lost: commits wait for the standby that is promoted (`synchronous_standby_names`). Epochs stay.
    Lossless,
}

pub(super) struct Timeline {
    pub(super) failover: Failover,
    pub(super) random: Arc<dyn Random>,
    pub(super) listeners: Arc<dyn Listeners>,
    pub(super) caches: Arc<Caches>,
    /// The timeline that this process met last, as it is stored. The lock is held for an assignment.
    pub(super) met: Mutex<Option<String>>,
}

#[derive(QueryableByName)]
struct Here {
    #[diesel(sql_type = Text)]
    timeline: String,
    #[diesel(sql_type = Nullable<Text>)]
    stored: Option<String>,
}

#[derive(QueryableByName)]
struct Stored {
    #[diesel(sql_type = Text)]
    stored: String,
}

#[derive(QueryableByName)]
struct Tenant {
    #[diesel(sql_type = Integer)]
    tenant_no: i32,
}

/// The file of the write-ahead log that is written now begins with the number of the timeline. Two restores of one
/// backup get the same number, so what is stored goes on with a mark of its own.
const HERE: &str = "SELECT (SELECT system_identifier FROM pg_control_system()) || '/' \
     || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8) || '/' AS timeline, \
     (SELECT convert_from(value, 'UTF8') FROM meta WHERE name = 'timeline') AS stored";

/// Numbers that were given since the last commit which is left, and that are lost with it, must not be given again
/// while somebody may still hold them.
const SKIP_NUMBERS: &str = "SELECT setval(s, nextval(s) + 10000) FROM unnest(ARRAY[\
     pg_get_serial_sequence('tenants', 'tenant_no'), pg_get_serial_sequence('kinds', 'kind_no'), \
     pg_get_serial_sequence('scopes', 'scope_no'), pg_get_serial_sequence('topics', 'topic_no'), \
     pg_get_serial_sequence('devices', 'device_no'), 'audit_ids']) AS s";

impl Timeline {
    /// Looks on which timeline a new connection is.
    pub(super) async fn check(&self, pg: &mut AsyncPgConnection) -> Result<(), PostgresError> {
        let here: Here = sql_query(HERE).get_result(pg).await.map_err(unread)?;
        let stored = match here.stored {
            Some(stored) if stored.starts_with(&here.timeline) => stored,
            _ => self.settle(pg, &here.timeline).await.map_err(unread)?,
        };
        let met = self.met.lock().unwrap_or_else(PoisonError::into_inner).replace(stored.clone());
        if met.is_some_and(|met| met != stored) && self.failover == Failover::Lossy {
            self.caches.clear();
            self.listeners.numbers_voided();
        }
        Ok(())
    }

    /// Stores the timeline; the first to see a new one begins new epochs. Gives what is stored then.
    async fn settle(&self, pg: &mut AsyncPgConnection, here: &str) -> diesel::QueryResult<String> {
        pg.batch_execute("BEGIN").await?;
        let marked = format!("{here}{}", fresh_epoch(&*self.random));
        sql_query("INSERT INTO meta (name, value) VALUES ('timeline', $1) ON CONFLICT DO NOTHING")
            .bind::<Binary, _>(marked.as_bytes())
            .execute(pg)
            .await?;
        let stored: Stored = sql_query(
            "SELECT convert_from(value, 'UTF8') AS stored FROM meta WHERE name = 'timeline' FOR UPDATE",
        )
        .get_result(pg)
        .await?;
        let before = stored.stored;
        if before.starts_with(here) {
            // It is new, or another node was first.
            pg.batch_execute("COMMIT").await?;
            return Ok(before);
        }
        tracing::warn!(before, now = marked, failover = ?self.failover, "the database is on another timeline");
        sql_query("UPDATE meta SET value = $1 WHERE name = 'timeline'")
            .bind::<Binary, _>(marked.as_bytes())
            .execute(pg)
            .await?;
        if self.failover == Failover::Lossy {
            self.begin_epochs(pg).await?;
        }
        pg.batch_execute("COMMIT").await?;
        Ok(marked)
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
