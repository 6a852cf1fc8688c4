//! The laws that hold after every step, whatever the network, the clocks and the users do.

use std::collections::{BTreeMap, BTreeSet};

use driftline_client::{KindName, RecordId};
use driftline_conflict::Op;
use driftline_engine::{Entry, Head, Identity, Row, SubmissionResult, Task};
use driftline_model::{DeviceNo, Seq};
use driftline_protocol::{ItemClass, ItemCode};

use super::device::{Device, Heard};
use super::journal::Commit;
use super::report::Violation;

pub(super) type Key = (KindName, RecordId);

/// How long an answer is kept that no device has heard.
const ANSWERS_MS: u64 = 90 * 24 * 3_600_000;

/// What the server holds and has answered in one life of its sequence.
#[derive(Debug, Clone, Default)]
struct Life {
    head: Seq,
    rows: BTreeMap<Key, Row>,
    /// Changes with a remembered first answer, by device and number.
    decided: BTreeSet<(DeviceNo, u64)>,
}

/// The laws with what they remember.
#[derive(Debug)]
pub(super) struct Laws {
    life: Life,
    saved: Life,
    /// When each change was last decided, in whichever life.
    ever: BTreeMap<(DeviceNo, u64), u64>,
    /// The latest time that the server's clock has shown.
    latest_ms: u64,
    skew_ms_max: u64,
    /// The values of ordered fields, from the least to the most urgent.
    orders: Vec<(String, Vec<String>)>,
}

impl Laws {
    pub(super) fn new(skew_ms_max: u64, orders: Vec<(String, Vec<String>)>) -> Self {
        Self {
            orders,
            life: Life::default(),
            saved: Life::default(),
            ever: BTreeMap::new(),
            latest_ms: 0,
            skew_ms_max,
        }
    }

    pub(super) fn save(&mut self) {
        self.saved = self.life.clone();
    }

    pub(super) fn restore(&mut self) {
        self.life = self.saved.clone();
    }

    pub(super) fn saved_head(&self) -> Seq {
        self.saved.head
    }

    pub(super) fn rows(&self) -> &BTreeMap<Key, Row> {
        &self.life.rows
    }

    /// Takes over how a record stands after a commit or a clean-up.
    pub(super) fn set_row(&mut self, key: Key, row: Option<Row>) {
        match row {
            Some(row) => _ = self.life.rows.insert(key, row),
            None => _ = self.life.rows.remove(&key),
        }
    }

    /// Checks a batch and its answer; gives the numbers of the changes that made a record.
    pub(super) fn committed(&mut self, commit: &Commit) -> Result<Vec<u64>, Violation> {
        self.latest_ms = self.latest_ms.max(commit.at_ms);
        let (submission, receipt) = (&commit.submission, &commit.receipt);
        of_one_epoch(commit)?;
        whole_groups(commit)?;
        let mut next = self.life.head;
        // Conflicts are records too; their versions stand in no answer.
        let mut spare = 0;
        let mut born = BTreeMap::new();
        for (entry, result) in submission.entries.iter().zip(&receipt.results) {
            let decides = matches!(entry.task, Task::Resolve(_));
            spare += u64::from(!result.duplicate && (decides || result.conflict_id.is_some()));
            if let Some(version) = result.version.filter(|version| decides && *version > next) {
                next = version;
            }
            let Some(n) = entry.n.filter(|_| is_first(entry, result)) else { continue };
            self.ever.insert((submission.device, n), commit.at_ms);
            if !self.life.decided.insert((submission.device, n)) {
                let what = format!("change {n} of device {} was decided twice", submission.device);
                return Err(Violation::new("I1", what));
            }
            let Task::Apply(apply) = &entry.task else { continue };
            let Some(version) = result.version.filter(|version| *version > next) else { continue };
            let gap = version.number() - next.number() - 1;
            if gap > spare {
                return Err(Violation::new("I5", format!("version {version} follows {next}")));
            }
            (next, spare) = (version, spare - gap);
            let key = (apply.kind.clone(), apply.id.clone());
            let exists = self.life.rows.contains_key(&key) || born.contains_key(&key);
            if !exists && apply.op != Op::Create {
                return Err(Violation::new("I9", format!("{} {} was made by {:?}", key.0, key.1, apply.op)));
            }
            if !exists {
                born.insert(key, n);
            }
        }
        let told = next.number()..=next.number() + spare;
        if !told.contains(&receipt.seq.number()) && receipt.results.iter().any(is_of_this_epoch) {
            let what = format!("the head is {} after version {next}", receipt.seq);
            return Err(Violation::new("I5", what));
        }
        self.life.head = self.life.head.max(receipt.seq);
        Ok(born.into_values().collect())
    }

    /// Checks a record as it stands after a commit.
    pub(super) fn stored(&self, row: &Row) -> Result<(), Violation> {
        // A stamp that follows a stored one may carry into the next millisecond.
        let latest_ms = self.latest_ms + self.skew_ms_max + 1;
        let late = row.record.all_marks().find(|mark| mark.hlc.millis() > latest_ms);
        if let Some(mark) = late {
            let what = format!("{} holds the clock {} of device {}", row.id, mark.hlc, mark.device);
            return Err(Violation::new("I11", what));
        }
        if row.record.version > self.life.head {
            let what = format!("{} is at {}, the head at {}", row.id, row.record.version, self.life.head);
            return Err(Violation::new("I5", what));
        }
        Ok(())
    }

    /// Checks that no ordered field of a record fell, unless one of the items meant it to.
    pub(super) fn lowered(&self, commit: &Commit, key: &Key, row: Option<&Row>) -> Result<(), Violation> {
        let (Some(before), Some(row)) = (self.life.rows.get(key), row) else { return Ok(()) };
        let meant = commit.submission.entries.iter().any(|entry| match &entry.task {
            Task::Apply(apply) => {
                let flagged = apply.intents.as_ref().is_some_and(|intents| intents.deescalate);
                flagged && (&apply.kind, &apply.id) == (&key.0, &key.1)
            }
            Task::Resolve(_) => true,
            Task::Append(_) | Task::Aggregate(_) | Task::Refuse(..) => false,
        });
        for (field, order) in &self.orders {
            let rank = |row: &Row| {
                let value = row.record.fields.get(field)?;
                order.iter().position(|rank| rank == value)
            };
            if rank(before) > rank(row) && !meant {
                let what = format!("{field} of {} fell, and nobody meant it to", key.1);
                return Err(Violation::new("I10", what));
            }
        }
        Ok(())
    }

    /// Checks what a device was told of its edits.
    pub(super) fn heard(&self, number: DeviceNo, heard: &Heard) -> Result<(), Violation> {
        let Heard { n, code } = heard;
        let decided_ms = self.ever.get(&(number, *n)).copied();
        let forgotten = decided_ms.is_some_and(|at_ms| at_ms + ANSWERS_MS < self.latest_ms);
        if *code == ItemCode::DeviceIdReused || *code == ItemCode::TooOld && !forgotten {
            return Err(Violation::new("I1", format!("edit {n} was taken for another: {code}")));
        }
        if code.class() == ItemClass::Done && decided_ms.is_none() {
            return Err(Violation::new("I7", format!("edit {n} was acknowledged ({code}), not committed")));
        }
        Ok(())
    }

    /// Checks what a device holds against what the server holds.
    pub(super) fn device(&self, device: &Device, identity: &Identity, head: &Head) -> Result<(), Violation> {
        let replica = &device.replica;
        if replica.epoch() != Some(head.epoch) {
            return Ok(());
        }
        let at = replica.seq();
        if at > head.seq {
            return Err(Violation::new(
                "I8",
                format!("the device stands at {at}, the server at {}", head.seq),
            ));
        }
        let visible = |row: &Row| identity.scopes.contains(&row.scope);
        for (key, row) in self.life.rows.iter().filter(|(_, row)| visible(row) && row.record.version <= at) {
            told(device, key, row, at)?;
        }
        if replica.is_settled() && at == head.seq {
            self.agrees(device, identity)?;
        }
        Ok(())
    }

    /// Checks that a caught-up device shows exactly what the server shows it.
    pub(super) fn agrees(&self, device: &Device, identity: &Identity) -> Result<(), Violation> {
        let visible = |row: &Row| identity.scopes.contains(&row.scope) && !row.deleted;
        let wanted: Vec<_> = self
            .life
            .rows
            .iter()
            .filter(|(_, row)| visible(row))
            .map(|((kind, id), row)| (kind.as_str(), id.as_str(), row.record.fields.as_str().to_owned()))
            .collect();
        let shown: Vec<_> = device
            .replica
            .views()
            .map(|(kind, id, view)| (kind.as_str(), id.as_str(), view.fields.as_str().to_owned()))
            .collect();
        if shown == wanted {
            return Ok(());
        }
        let odd = shown.iter().filter(|row| !wanted.contains(row));
        let missing = wanted.iter().filter(|row| !shown.contains(row));
        let what = format!(
            "a caught-up device shows {:?} where the server has {:?}",
            odd.collect::<Vec<_>>(),
            missing.collect::<Vec<_>>()
        );
        Err(Violation::new("I3", what))
    }
}

/// Bases of another epoch mean nothing: such a batch applies nothing.
fn of_one_epoch(commit: &Commit) -> Result<(), Violation> {
    let stale = commit.submission.epoch.is_some_and(|epoch| epoch != commit.receipt.epoch);
    if stale && commit.receipt.results.iter().any(|result| result.code != ItemCode::EpochChanged) {
        return Err(Violation::new("epoch", "a batch with bases of another epoch was applied"));
    }
    Ok(())
}

/// Items of a group apply together or not at all. An item that was decided in an earlier batch stays decided.
fn whole_groups(commit: &Commit) -> Result<(), Violation> {
    let mut groups: BTreeMap<&str, (bool, bool)> = BTreeMap::new();
    for (entry, result) in commit.submission.entries.iter().zip(&commit.receipt.results) {
        let Some(group) = entry.group.as_deref().filter(|_| !result.duplicate) else { continue };
        let (applied, failed) = groups.entry(group).or_default();
        let done = result.code.class() == ItemClass::Done;
        (*applied, *failed) = (*applied || done, *failed || !done);
    }
    match groups.iter().find(|(_, (applied, failed))| *applied && *failed) {
        Some((group, _)) => Err(Violation::new("group", format!("only a part of group {group} was applied"))),
        None => Ok(()),
    }
}

/// Whether an answer is the first one to a change, which the store has to remember.
fn is_first(entry: &Entry, result: &SubmissionResult) -> bool {
    let forgotten = matches!(result.code, ItemCode::TooOld | ItemCode::DeviceIdReused);
    // No item of a failed group is remembered, the culprit included.
    let stands = entry.group.is_none() || result.code.class() == ItemClass::Done;
    !result.duplicate && result.code.is_remembered() && !forgotten && stands
}

/// A batch of another epoch is refused as a whole and tells nothing of the head.
fn is_of_this_epoch(result: &SubmissionResult) -> bool {
    result.code.class() != ItemClass::Resync
}

/// A device that stands at `at` holds every row up to there as it is, or something newer.
fn told(device: &Device, key: &Key, row: &Row, at: Seq) -> Result<(), Violation> {
    let (kind, id) = key;
    let body = device.replica.body(kind.as_str(), id.as_str());
    let held = body.map_or(Seq::ZERO, |body| body.version);
    if row.deleted && body.is_none_or(|body| body.deleted) {
        return Ok(());
    }
    // After a change of the epoch a deleted record's last body stays under edits that wait, and counts as unknown.
    let edited = device.replica.queue().any(|item| item.kind == *kind && item.id == *id);
    if row.deleted && held == Seq::ZERO && edited {
        return Ok(());
    }
    if held < row.record.version {
        let what =
            format!("at {at} the device holds {kind}/{id} at {held}, the server at {}", row.record.version);
        return Err(Violation::new("I8", what));
    }
    let same = |fields: &str| row.deleted || fields == row.record.fields.as_str();
    match body {
        Some(body) if held == row.record.version => {
            if body.deleted == row.deleted && same(body.fields.as_str()) {
                return Ok(());
            }
            let what = format!(
                "version {held} of {kind}/{id} is {} on the device and {} on the server",
                body.fields.as_str(),
                row.record.fields.as_str()
            );
            Err(Violation::new("I3", what))
        }
        _ => Ok(()),
    }
}
