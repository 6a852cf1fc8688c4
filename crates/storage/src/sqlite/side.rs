//! The side file: how far every tenant had come, kept outside the database.
//!
//! A database file that somebody puts back by hand looks like any other. What it lost, devices still know, and its
//! sequence would give the numbers of lost changes to new ones: a device whose cursor names such a number would take the
//! new change for the one that it has. The side file is not part of what is put back. It tells for each tenant the epoch
//! and the highest numbers of a change and of an event that were seen, and a tenant that is behind begins a new epoch when the file is opened.
//!
//! It is never ahead of what is durable: a thread of its own reads the heads over a connection of its own, which sees a
//! commit only after the log was synced. It may be behind, by a second or by what a power cut took of it; then a loss of
//! that much is not noticed. It is replaced by a rename and carries a sum of its bytes, so that it is whole or told to be
//! damaged; a damaged or absent one is a warning and begins anew.
//!
//! Tenants stand in it by their names, because their numbers are lost with the rest: the database gives the number of a
//! tenant, kind, scope or device that it lost to the next one that is new. Nothing can take one for the other. Within the
//! file every row that named the old one is lost as well, since the file is of one moment. Within the process nothing
//! was kept: numbers are held in memory by a store, and a store begins with what the file says. Outside nobody knows
//! them: a cursor has a hash of the tenant's name, and the wire has names only. What a device remembers of a lost tenant,
//! its cursor, belongs to an epoch; the tenant that is made again has another.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Integer, Text};
use driftline_engine::Random;
use driftline_model::{Epoch, TenantId};
use twox_hash::XxHash64;

use super::files::{beside, remove, rename, sync_folder};
use super::open::{OpenError, file_error};

const SUFFIX: &str = "-marks";
const TITLE: &str = "driftline marks 2";
/// The title of a side file that tells nothing of events.
const TITLE_WITHOUT_EVENTS: &str = "driftline marks 1";

/// Epochs of a tenant that are remembered beside the one in force.
const PAST_MAX: usize = 16;

/// The time between two looks at the database; every ten thousand tenants add one more of it.
const PERIOD: Duration = Duration::from_secs(1);

/// How far one tenant had come.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mark {
    epoch: Epoch,
    seq: u64,
    /// The number of the last event.
    event: u64,
    /// The epochs before, the latest last: a file that has one of them is old, whatever its numbers say.
    past: Vec<Epoch>,
}

/// The side file's content.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Marks(BTreeMap<TenantId, Mark>);

/// A tenant's head, as far as the side file is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) tenant: TenantId,
    pub(super) epoch: Epoch,
    pub(super) seq: u64,
    pub(super) event: u64,
}

/// What is wrong with a side file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unread {
    Absent,
    Damaged(String),
}

impl Marks {
    /// Reads the side file of a database.
    pub(super) fn load(database: &Path) -> Result<Self, Unread> {
        match fs::read(beside(database, SUFFIX)) {
            Ok(bytes) => Self::decode(&bytes).ok_or_else(|| Unread::Damaged("its sum does not fit".into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Unread::Absent),
            Err(error) => Err(Unread::Damaged(error.to_string())),
        }
    }

    /// Replaces the side file of a database; `durably` waits for the disk.
    pub(super) fn save(&self, database: &Path, durability: Durability) -> io::Result<()> {
        let (target, fresh) = (beside(database, SUFFIX), beside(database, "-marks-new"));
        let mut file = File::create(&fresh)?;
        file.write_all(self.encode().as_bytes())?;
        match durability {
            Durability::Written => fs::rename(&fresh, &target),
            Durability::Synced => {
                file.sync_all()?;
                rename(&fresh, &target)
            }
        }
    }

    fn encode(&self) -> String {
        let mut out = format!("{TITLE}\n");
        for (tenant, mark) in &self.0 {
            let past: Vec<String> = mark.past.iter().map(Epoch::to_string).collect();
            let past = if past.is_empty() { "-".to_owned() } else { past.join(",") };
            // The name comes last: it may hold spaces, but no line ends.
            out.push_str(&format!("{} {} {} {past} {tenant}\n", mark.epoch, mark.seq, mark.event));
        }
        let sum = XxHash64::oneshot(0, out.as_bytes());
        out.push_str(&format!("sum {sum:016x}\n"));
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let (body, sum) = text.strip_suffix('\n')?.rsplit_once("sum ")?;
        if sum != format!("{:016x}", XxHash64::oneshot(0, body.as_bytes())) {
            return None;
        }
        let (title, lines) = body.split_once('\n')?;
        let with_events = match title {
            TITLE => true,
            TITLE_WITHOUT_EVENTS => false,
            _ => return None,
        };
        lines.lines().map(|line| decode_line(line, with_events)).collect::<Option<_>>().map(Self)
    }

    /// Takes note of where a tenant stands.
    pub(super) fn observe(&mut self, place: &Place) {
        let fresh = || Mark { epoch: place.epoch, seq: 0, event: 0, past: Vec::new() };
        let mark = self.0.entry(place.tenant.clone()).or_insert_with(fresh);
        if mark.epoch != place.epoch {
            mark.past.retain(|past| *past != place.epoch);
            mark.past.push(mark.epoch);
            let old = mark.past.len().saturating_sub(PAST_MAX);
            mark.past.drain(..old);
            mark.epoch = place.epoch;
        }
        (mark.seq, mark.event) = (place.seq, place.event);
    }

    /// Tells whether a tenant stands behind its mark. A tenant without one does not, nor does an epoch that was never
    /// seen: it began after the last look.
    pub(super) fn is_ahead_of(&self, place: &Place) -> bool {
        self.0.get(&place.tenant).is_some_and(|mark| {
            let behind = place.seq < mark.seq || place.event < mark.event;
            (mark.epoch == place.epoch && behind) || mark.past.contains(&place.epoch)
        })
    }

    /// Draws an epoch that the tenant never had, as far as is known.
    pub(super) fn fresh_epoch(&self, place: &Place, random: &dyn Random) -> Epoch {
        let mark = self.0.get(&place.tenant);
        let known = |epoch: Epoch| {
            epoch == place.epoch || mark.is_some_and(|mark| mark.epoch == epoch || mark.past.contains(&epoch))
        };
        let mut bytes = [0; 4];
        random.fill(&mut bytes);
        let mut epoch = Epoch::new(u32::from_be_bytes(bytes));
        while known(epoch) {
            epoch = Epoch::new(epoch.number().wrapping_add(1));
        }
        epoch
    }
}

fn decode_line(line: &str, with_events: bool) -> Option<(TenantId, Mark)> {
    let mut parts = line.splitn(if with_events { 5 } else { 4 }, ' ');
    let (epoch, seq) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let event = if with_events { parts.next()?.parse().ok()? } else { 0 };
    let (past, tenant) = (parts.next()?, parts.next()?);
    let past = match past {
        "-" => Vec::new(),
        past => past.split(',').map(|epoch| epoch.parse().ok()).collect::<Option<_>>()?,
    };
    let mark = Mark { epoch, seq, event, past };
    Some((TenantId::new(tenant).ok()?, mark))
}

/// Whether a write waits for the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Durability {
    Written,
    Synced,
}

#[derive(QueryableByName)]
struct PlaceSql {
    #[diesel(sql_type = Text)]
    tenant: String,
    #[diesel(sql_type = Text)]
    epoch: String,
    #[diesel(sql_type = BigInt)]
    seq: i64,
    #[diesel(sql_type = BigInt)]
    event: i64,
}

/// Reads where every tenant stands.
pub(super) fn places(connection: &mut SqliteConnection) -> QueryResult<Vec<Place>> {
    let rows: Vec<PlaceSql> = sql_query(
        "SELECT t.tenant AS tenant, h.epoch AS epoch, h.seq AS seq, h.event_id AS event \
         FROM stream_head AS h JOIN tenants AS t ON t.tenant_no = h.tenant_no",
    )
    .load(connection)?;
    // What is not readable here is found where it is read to be used.
    let place = |row: PlaceSql| {
        let (tenant, epoch) = (TenantId::new(&row.tenant).ok()?, row.epoch.parse().ok()?);
        let (seq, event) = (u64::try_from(row.seq).ok()?, u64::try_from(row.event).ok()?);
        Some(Place { tenant, epoch, seq, event })
    };
    Ok(rows.into_iter().filter_map(place).collect())
}

/// Begins a new epoch for some tenants, in one transaction.
pub(super) fn begin_epochs<'a>(
    connection: &mut SqliteConnection,
    marks: &Marks,
    places: impl Iterator<Item = &'a Place>,
    random: &dyn Random,
) -> QueryResult<()> {
    connection.immediate_transaction(|connection| {
        for place in places {
            sql_query(
                "UPDATE stream_head SET epoch = ?, epoch_seq = seq \
                 WHERE tenant_no = (SELECT tenant_no FROM tenants WHERE tenant = ?)",
            )
            .bind::<Text, _>(marks.fresh_epoch(place, random).to_string())
            .bind::<Text, _>(place.tenant.as_str())
            .execute(connection)?;
        }
        Ok(())
    })
}

/// Compares a database that is being opened with its side file: tenants that are behind begin a new epoch. Returns the
/// marks as they are from now on.
pub(super) fn compare(
    database: &Path,
    connection: &mut SqliteConnection,
    random: &dyn Random,
) -> QueryResult<Marks> {
    let mut found = places(connection)?;
    let mut marks = match Marks::load(database) {
        Ok(marks) => marks,
        Err(unread) => {
            // A database that has no tenants yet is new, and so is its side file.
            if let (false, Unread::Damaged(reason)) = (found.is_empty(), &unread) {
                tracing::warn!(%reason, "the side file is damaged: nobody can tell whether the database is an older one");
            } else if !found.is_empty() {
                tracing::warn!(
                    "the side file is absent: nobody can tell whether the database is an older one"
                );
            }
            Marks::default()
        }
    };
    let behind: BTreeSet<TenantId> =
        found.iter().filter(|place| marks.is_ahead_of(place)).map(|place| place.tenant.clone()).collect();
    if let Some(first) = behind.first() {
        tracing::warn!(
            tenants = behind.len(), %first,
            "the database is older than its side file says: new epochs begin, devices pull anew and give back what they hold"
        );
        let begin = found.iter().filter(|place| behind.contains(&place.tenant));
        begin_epochs(connection, &marks, begin, random)?;
        found = places(connection)?;
    }
    found.iter().for_each(|place| marks.observe(place));
    Ok(marks)
}

/// The thread that keeps the side file. Dropping it writes what is new, waits for the disk and ends the thread.
#[derive(Debug)]
pub(super) struct Side {
    stop: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Side {
    /// Begins to keep the side file of a database. A file that cannot be written is a warning.
    pub(super) fn start(database: &Path, marks: Marks) -> Result<Self, OpenError> {
        let url = super::files::uri(database, "mode=rw").map_err(|error| file_error(database, &error))?;
        let mut connection =
            SqliteConnection::establish(&url).map_err(|error| file_error(database, &error))?;
        // It is the last one to close, and folds the log into the file then.
        connection
            .batch_execute("PRAGMA busy_timeout = 5000; PRAGMA synchronous = FULL")
            .map_err(|error| file_error(database, &error))?;
        let mut keeper =
            Keeper { database: database.to_owned(), connection, marks, version: None, complained: false };
        keeper.save(Durability::Synced);
        let (stop, stopped) = sync_channel(1);
        let thread = std::thread::Builder::new().name("driftline-marks".into());
        let thread = thread.spawn(move || keeper.run(&stopped)).map_err(OpenError::Thread)?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // A panic was reported by the panic hook already.
            let _ = thread.join();
        }
    }
}

#[derive(QueryableByName)]
struct Version {
    #[diesel(sql_type = Integer)]
    data_version: i32,
}

struct Keeper {
    database: PathBuf,
    connection: SqliteConnection,
    marks: Marks,
    /// Changes when another connection committed (<https://www.sqlite.org/pragma.html#pragma_data_version>), so that a
    /// look at an idle database costs no read of a table.
    version: Option<i32>,
    complained: bool,
}

impl Keeper {
    fn run(mut self, stopped: &Receiver<()>) {
        loop {
            let tenants = u32::try_from(self.marks.0.len()).unwrap_or(u32::MAX);
            let period = PERIOD * (1 + tenants / 10_000);
            match stopped.recv_timeout(period) {
                Ok(()) | Err(RecvTimeoutError::Timeout) => {
                    if self.look() {
                        self.save(Durability::Written);
                    }
                }
                Err(RecvTimeoutError::Disconnected) => {
                    self.look();
                    self.save(Durability::Synced);
                    return;
                }
            }
        }
    }

    /// Reads the heads if anything was committed; tells whether a mark moved.
    fn look(&mut self) -> bool {
        let version = sql_query("PRAGMA data_version").get_result::<Version>(&mut self.connection);
        let version = version.ok().map(|version| version.data_version);
        if version.is_some() && version == self.version {
            return false;
        }
        match places(&mut self.connection) {
            Ok(places) => {
                let before = self.marks.clone();
                places.iter().for_each(|place| self.marks.observe(place));
                self.version = version;
                before != self.marks
            }
            Err(error) => {
                // The next look is soon, and a lasting fault is found by those who need the tables.
                tracing::debug!(%error, "the heads could not be read for the side file");
                false
            }
        }
    }

    fn save(&mut self, durability: Durability) {
        let saved = self.marks.save(&self.database, durability);
        if let Err(error) = &saved
            && !self.complained
        {
            tracing::warn!(%error, "the side file cannot be written: an older database would not be noticed");
        }
        self.complained = saved.is_err();
    }
}

/// Writes the side file of a database that was replaced.
pub(super) fn rewrite(database: &Path, mut marks: Marks, places: &[Place]) -> io::Result<()> {
    places.iter().for_each(|place| marks.observe(place));
    marks.save(database, Durability::Synced)?;
    remove(&beside(database, "-marks-new"))?;
    sync_folder(database)
}

#[cfg(test)]
mod tests {
    use driftline_testkit::{Rng, SeededRandom};

    use super::*;

    fn place(tenant: &str, epoch: u32, seq: u64) -> Place {
        Place { tenant: TenantId::new(tenant).expect("a name"), epoch: Epoch::new(epoch), seq, event: 5 }
    }

    fn some() -> Marks {
        let mut marks = Marks::default();
        for place in [place("acme", 1, 7), place("two words, é", 2, 0), place("acme", 3, 9), place("-", 4, 1)]
        {
            marks.observe(&place);
        }
        marks
    }

    #[test]
    fn marks_round_trip_and_whatever_is_not_whole_is_refused() {
        let text = some().encode();
        assert_eq!(Marks::decode(text.as_bytes()), Some(some()));
        assert_eq!(Marks::decode(Marks::default().encode().as_bytes()), Some(Marks::default()));
        for cut in 0..text.len() {
            assert_eq!(Marks::decode(&text.as_bytes()[..cut]), None, "cut at {cut}");
        }
        let rng = &mut Rng::new(1);
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1 << rng.below(8);
            assert_eq!(Marks::decode(&bytes), None, "byte {at}");
        }
    }

    #[test]
    fn a_side_file_that_tells_nothing_of_events_is_read() {
        let body = format!("driftline marks 1\n{} 7 - acme\n", Epoch::new(3));
        let text = format!("{body}sum {:016x}\n", XxHash64::oneshot(0, body.as_bytes()));
        let marks = Marks::decode(text.as_bytes()).expect("it is whole");
        assert!(!marks.is_ahead_of(&Place { event: 0, ..place("acme", 3, 7) }));
        assert!(marks.is_ahead_of(&place("acme", 3, 6)));
    }

    #[test]
    fn a_tenant_is_behind_below_its_mark_or_in_an_epoch_of_the_past() {
        let marks = some();
        let table = [
            (place("acme", 3, 9), false),
            (place("acme", 3, 10), false),
            (place("acme", 3, 8), true),
            (Place { event: 4, ..place("acme", 3, 9) }, true),
            (Place { event: 6, ..place("acme", 3, 9) }, false),
            // An older epoch is old even where its numbers were higher.
            (place("acme", 1, 100), true),
            // One that was never seen began after the last look.
            (place("acme", 5, 0), false),
            (place("globex", 3, 0), false),
        ];
        for (place, behind) in table {
            assert_eq!(marks.is_ahead_of(&place), behind, "{place:?}");
        }
    }

    #[test]
    fn epochs_of_the_past_are_bounded_and_never_drawn_again() {
        let mut marks = Marks::default();
        for epoch in 0..100 {
            marks.observe(&place("acme", epoch, 1));
        }
        let past = &marks.0[&TenantId::new("acme").expect("a name")].past;
        assert_eq!((past.len(), past.last()), (PAST_MAX, Some(&Epoch::new(98))));

        let drawn = marks.fresh_epoch(&place("acme", 99, 1), &SeededRandom::new(1));
        let mut marks = marks.clone();
        marks.observe(&place("acme", drawn.number(), 1));
        marks.observe(&place("acme", 7, 1));
        let other = marks.fresh_epoch(&place("acme", 7, 1), &SeededRandom::new(1));
        assert_eq!(other.number(), drawn.number().wrapping_add(1), "the same draw was had already");
    }
}
