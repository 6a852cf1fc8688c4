//! Tests of a PostgreSQL database.

use driftline_engine::Clock as _;
use driftline_storage::{PostgresDiagnosis, PostgresStore, PostgresTarget};
use driftline_transport::SystemClock;

use super::{Line, StoreTested};
use crate::store::StoreConfig;

pub(super) fn shared(config: &StoreConfig, target: &PostgresTarget, shown: &str) -> StoreTested {
    // Whether other servers have the database open is nobody's concern: it is made for that.
    let tested = |lines, hlc_ms| StoreTested { lines, hlc_ms, in_use: false };
    match PostgresStore::diagnose(target) {
        Ok(diagnosis) => {
            let mut lines = vec![opens(&diagnosis, shown), durability(&diagnosis, config)];
            lines.extend([schema(&diagnosis), connections(&diagnosis, config)]);
            lines.push(clock(&diagnosis, SystemClock.now_ms()));
            tested(lines, diagnosis.hlc_ms)
        }
        Err(error) => {
            let mend = "check store.url with psql, pg_hba.conf and the certificates";
            tested(vec![Line::bad("database", format!("{shown}: {error}; {mend}"))], 0)
        }
    }
}

fn opens(diagnosis: &PostgresDiagnosis, shown: &str) -> Line {
    const ABOUT: &str = "database";
    let PostgresDiagnosis { version, encoding, tenants, .. } = diagnosis;
    if diagnosis.too_old {
        Line::bad(ABOUT, format!("{shown} is of version {version}; 14 is the oldest that serves"))
    } else if encoding != "UTF8" {
        Line::bad(ABOUT, format!("{shown} holds texts in {encoding}; make a database with ENCODING 'UTF8'"))
    } else if !diagnosis.may_create {
        let mend = "make the role the owner of the database, or GRANT CREATE ON SCHEMA";
        Line::bad(ABOUT, format!("{shown} lets the role make no tables, which the audit needs; {mend}"))
    } else {
        Line::ok(ABOUT, format!("{shown} takes writes: version {version}, {tenants} tenants"))
    }
}

fn durability(diagnosis: &PostgresDiagnosis, config: &StoreConfig) -> Line {
    const ABOUT: &str = "durability";
    let standbys = diagnosis.standbys;
    if !diagnosis.durable {
        return Line::bad(ABOUT, "fsync or full_page_writes is off: a crash loses the database; set both on");
    }
    match (config.is_lossless(), diagnosis.waits_for_standby) {
        (true, false) => Line::bad(
            ABOUT,
            "store.failover is lossless, and commits wait for no standby: set synchronous_standby_names, or lossy",
        ),
        (false, true) => Line::note(
            ABOUT,
            format!(
                "commits wait for a standby, {standbys} follow: store.failover = \"lossless\" would spare devices a resync"
            ),
        ),
        (_, false) if standbys == 0 => Line::note(ABOUT, "no standby follows"),
        _ => Line::ok(ABOUT, format!("syncs are on, and {standbys} standbys follow")),
    }
}

fn schema(diagnosis: &PostgresDiagnosis) -> Line {
    const ABOUT: &str = "schema";
    if let Some(newer) = diagnosis.newer.first() {
        return Line::note(
            ABOUT,
            format!("a newer version of this program wrote {newer}: finish the upgrade"),
        );
    }
    match &diagnosis.pending[..] {
        [] => Line::ok(ABOUT, "up to date"),
        pending => Line::note(
            ABOUT,
            format!("{} still to run; the next start does, or driftline-server migrate", pending.join(", ")),
        ),
    }
}

fn connections(diagnosis: &PostgresDiagnosis, config: &StoreConfig) -> Line {
    const ABOUT: &str = "connections";
    let (own, max) = (config.connections() as u64, diagnosis.connections_max);
    let servers = max / own.max(1);
    match servers {
        0 => Line::bad(
            ABOUT,
            format!("one server takes {own}, and the database gives {max}: raise max_connections"),
        ),
        _ => Line::ok(
            ABOUT,
            format!("one server takes {own}, and the database has room for {servers} servers"),
        ),
    }
}

/// How far the clocks may be apart before it is worth a word, in milliseconds.
const CLOCKS_APART_MS: u64 = 5_000;

fn clock(diagnosis: &PostgresDiagnosis, now_ms: u64) -> Line {
    const ABOUT: &str = "database clock";
    let apart_ms = diagnosis.now_ms.abs_diff(now_ms);
    if apart_ms > CLOCKS_APART_MS {
        let mend = "set both by NTP; times of receipt are the database's, ends of tokens this machine's";
        return Line::bad(ABOUT, format!("it is {} s apart from this machine's; {mend}", apart_ms / 1000));
    }
    Line::ok(ABOUT, "agrees with this machine's")
}
