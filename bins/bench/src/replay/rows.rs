//! The rows of the plain program: a table of events with an index by topic, read by one statement.

use std::path::Path;

use anyhow::{Context as _, Result};
use diesel::connection::{DefaultLoadingMode, SimpleConnection as _};
use diesel::prelude::*;

use crate::load::events::{Bodies, Number};

/// The settings of the plain limit program; the pages are read through the file's mapping.
const SETTINGS: &str = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA cache_size = -65536;
    PRAGMA mmap_size = 268435456;";
const TABLE: &str =
    "CREATE TABLE event (id INTEGER PRIMARY KEY, topic TEXT NOT NULL, at TEXT NOT NULL, data TEXT NOT NULL);
    CREATE INDEX event_by_topic ON event (topic, id);";
/// When all of the events were created.
const AT: &str = "2026-01-01T00:00:00.000Z";

diesel::table! {
    event (id) {
        id -> BigInt,
        topic -> Text,
        at -> Text,
        data -> Text,
    }
}

/// A row: id, topic, moment, body.
pub(super) type Row = (i64, String, String, String);

/// A file of events.
pub(super) struct Rows {
    database: SqliteConnection,
    /// Topics that there are.
    topics: usize,
}

impl Rows {
    /// Makes a new file with so many events over topics in turn, with bodies of `bytes` bytes.
    ///
    /// # Errors
    /// When there is such a file already, or it cannot be written.
    pub(super) fn create(file: &Path, events: u32, topics: &[String], bytes: usize) -> Result<Self> {
        let name = file.to_str().context("the name of the file is not text")?;
        let mut database = SqliteConnection::establish(name)?;
        database.batch_execute(SETTINGS)?;
        database.batch_execute(TABLE).with_context(|| format!("{name} is not a new file"))?;
        let bodies = Bodies::new(bytes)?;
        database.transaction(|database| {
            let mut body = Vec::new();
            for (count, topic) in (0..u64::from(events)).zip(topics.iter().cycle()) {
                body.clear();
                bodies.write(Number { publisher: 0, count }, &mut body);
                let body = String::from_utf8_lossy(&body);
                let row = (event::topic.eq(topic), event::at.eq(AT), event::data.eq(body.as_ref()));
                diesel::insert_into(event::table).values(row).execute(database)?;
            }
            Ok::<_, anyhow::Error>(())
        })?;
        Ok(Rows { database, topics: topics.len() })
    }

    /// Hands the events of the topics to `each`, in the order of their ids, and gives their count.
    ///
    /// # Errors
    /// When the file cannot be read, and those of `each`.
    pub(super) fn read(&mut self, topics: &[String], mut each: impl FnMut(Row) -> Result<()>) -> Result<u64> {
        // All of them need no filter, and the table is in their order.
        let all = self.topics == topics.len();
        let mut query = event::table.order(event::id).into_boxed();
        if !all {
            query = query.filter(event::topic.eq_any(topics));
        }
        let mut count = 0;
        for row in query.load_iter::<Row, DefaultLoadingMode>(&mut self.database)? {
            each(row?)?;
            count += 1;
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read_in_order_by_topic_and_all_together() {
        let topics: Vec<String> = (0..3).map(|topic| format!("t.{topic}")).collect();
        let mut rows = Rows::create(Path::new(":memory:"), 8, &topics, 100).expect("made");
        let mut read = |topics: &[String]| {
            let mut ids = Vec::new();
            let count = rows.read(topics, |(id, ..)| {
                ids.push(id);
                Ok(())
            });
            assert_eq!(count.expect("read"), ids.len() as u64);
            ids
        };
        assert_eq!(read(&topics[..1]), [1, 4, 7]);
        assert_eq!(read(&topics[1..]), [2, 3, 5, 6, 8]);
        assert_eq!(read(&topics), [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(read(&["t.9".to_owned()]), [0; 0]);
    }
}
