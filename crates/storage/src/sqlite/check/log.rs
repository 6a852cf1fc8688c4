//! What must be true of the log of events.

use diesel::prelude::*;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::{BigInt, Integer, Nullable, Text};
use diesel::sqlite::Sqlite;
use driftline_engine::StoreError;
use driftline_model::Epoch;

use super::super::hot::statement;
use super::Report;
use super::tables::Tables;
use crate::codec::corrupt;
use crate::rows::{EventColumns, EventRow, event_of};

statement! {
    /// Every event, with how many of its topics still have it.
    AllEvents {} =
    "SELECT e.tenant_no, e.refs, (SELECT count(*) FROM \
     json_each('[' || replace(json_quote(e.topics), ' ', '\",\"') || ']') AS j \
     JOIN topics AS t ON t.tenant_no = e.tenant_no AND t.topic = j.value \
     JOIN event_topics AS x ON x.topic_no = t.topic_no AND x.event_id = e.event_id), \
     e.event_id, e.event_type, e.topics, e.owner, e.vals, e.data, e.at FROM events AS e"
}

impl Query for AllEvents {
    type SqlType = (Integer, BigInt, BigInt, EventColumns);
}

statement! {
    /// What topics have and no event of their tenant says.
    StrayTopics {} =
    "SELECT x.topic_no, x.event_id FROM event_topics AS x LEFT JOIN topics AS t ON t.topic_no = x.topic_no \
     LEFT JOIN events AS e ON e.tenant_no = t.tenant_no AND e.event_id = x.event_id \
     WHERE e.event_id IS NULL OR instr(' ' || e.topics || ' ', ' ' || t.topic || ' ') = 0"
}

impl Query for StrayTopics {
    type SqlType = (Integer, BigInt);
}

statement! {
    /// Every topic, with its first event.
    AllTopics {} =
    "SELECT t.tenant_no, t.topic, t.floor, (SELECT min(x.event_id) FROM event_topics AS x WHERE x.topic_no = t.topic_no) \
     FROM topics AS t"
}

impl Query for AllTopics {
    type SqlType = (Integer, Text, BigInt, Nullable<BigInt>);
}

statement! {
    /// Every state that events told of.
    AllVersions {} = "SELECT tenant_no, thing, at FROM event_versions"
}

impl Query for AllVersions {
    type SqlType = (Integer, Text, BigInt);
}

statement! {
    /// How far every device followed the log, with the device's tenant.
    AllFollowing {} =
    "SELECT f.tenant_no, f.device_no, f.epoch, min(f.acked, coalesce(f.since, 0), coalesce(f.slow, 0), f.listened_at), \
     d.tenant_no FROM event_devices AS f LEFT JOIN devices AS d ON d.device_no = f.device_no"
}

impl Query for AllFollowing {
    type SqlType = (Integer, Integer, Text, BigInt, Nullable<Integer>);
}

impl Tables {
    pub(super) fn events(
        &mut self,
        connection: &mut SqliteConnection,
        report: &mut Report,
    ) -> QueryResult<()> {
        for row in (AllEvents {}).load_iter::<(i32, i64, i64, EventRow), _>(connection)? {
            let (tenant_no, refs, found, event) = row?;
            let name = format!("tenant {tenant_no}, event {}", event.0);
            match event_of(Epoch::new(0), event) {
                Err(error) => self.unreadable(report, "events", name, &error),
                Ok(event) => {
                    self.within_log(
                        report,
                        "events",
                        (tenant_no, name.clone()),
                        event.id.unwrap_or_default(),
                    );
                    if refs != found || found == 0 {
                        let reason = format!("{found} of its topics have it, not {refs}");
                        self.unreadable(report, "events", name, &reason);
                    }
                }
            }
        }
        Ok(())
    }

    /// Compares a number with the end of its tenant's log.
    fn within_log(
        &mut self,
        report: &mut Report,
        table: &'static str,
        (tenant_no, row): (i32, String),
        event: u64,
    ) {
        match self.last_event(tenant_no) {
            None => self.unreadable(report, table, row, &"it belongs to no tenant"),
            Some(last) if event > last => {
                let reason = format!("{event} is above {last}, where its tenant's log ends");
                self.unreadable(report, table, row, &reason);
            }
            Some(_) => {}
        }
    }

    pub(super) fn event_topics(
        &mut self,
        connection: &mut SqliteConnection,
        report: &mut Report,
    ) -> QueryResult<()> {
        for row in (StrayTopics {}).load_iter::<(i32, i64), _>(connection)? {
            let (topic_no, event_id) = row?;
            let name = format!("topic {topic_no}, event {event_id}");
            self.unreadable(report, "event_topics", name, &"there is no such event on it");
        }
        Ok(())
    }

    pub(super) fn topics(
        &mut self,
        connection: &mut SqliteConnection,
        report: &mut Report,
    ) -> QueryResult<()> {
        for row in (AllTopics {}).load_iter::<(i32, String, i64, Option<i64>), _>(connection)? {
            let (tenant_no, topic, floor, first) = row?;
            let name = format!("tenant {tenant_no}, {topic:?}");
            let lost = u64::try_from(floor);
            match lost {
                Err(_) => self.unreadable(report, "topics", name, &corrupt("floor")),
                Ok(_) if first.is_some_and(|first| first <= floor) => {
                    self.unreadable(report, "topics", name, &"it has an event that it lost");
                }
                Ok(lost) => self.within_log(report, "topics", (tenant_no, name), lost),
            }
        }
        Ok(())
    }

    pub(super) fn event_versions(
        &mut self,
        connection: &mut SqliteConnection,
        report: &mut Report,
    ) -> QueryResult<()> {
        for row in (AllVersions {}).load_iter::<(i32, String, i64), _>(connection)? {
            let (tenant_no, thing, at) = row?;
            let read = if at < 0 { Err(corrupt("at")) } else { Ok(()) };
            self.look(report, "event_versions", (tenant_no, format!("{thing:?}")), read);
        }
        Ok(())
    }

    pub(super) fn event_devices(
        &mut self,
        connection: &mut SqliteConnection,
        report: &mut Report,
    ) -> QueryResult<()> {
        for row in (AllFollowing {}).load_iter::<(i32, i32, String, i64, Option<i32>), _>(connection)? {
            let (tenant_no, device_no, epoch, lowest, device_of) = row?;
            let read = match (epoch.parse::<Epoch>(), device_of == Some(tenant_no)) {
                (Ok(_), true) if lowest >= 0 => Ok(()),
                (_, false) => Err(StoreError::Corrupt("its device is not its tenant's".into())),
                _ => Err(corrupt("event_devices")),
            };
            self.look(report, "event_devices", (tenant_no, format!("device {device_no}")), read);
        }
        Ok(())
    }
}
