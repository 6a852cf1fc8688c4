//! A much simpler model of what the server must hold when the most recent write wins.
//!
//! With honest clocks the record is the join of all accepted writes: per field the one with the largest (clock,
//! device, number), and the record lives if its last write is later than its last delete. No order of arrival, no
//! versions, no bases. A record with a write whose clock was held back is left out, and so is one where a device's clock
//! does not rise with its numbers, as when it gives back what a restored server lost: there the join is not promised.

use std::collections::{BTreeMap, BTreeSet};

use driftline_conflict::Op;
use driftline_engine::{Identity, Row, Task};
use driftline_model::{DeviceNo, Hlc};
use driftline_protocol::ItemClass;

use super::journal::Commit;
use super::laws::Key;
use super::report::Violation;

/// A write's place in the order of all writes.
type Stamp = (Hlc, String, u64);

/// One record as the model has it.
#[derive(Debug, Clone, Default)]
struct Joined {
    fields: BTreeMap<String, (Stamp, String)>,
    sums: BTreeMap<String, i64>,
    /// Fields whose elements the model does not follow.
    gathered: BTreeSet<String>,
    lives: Option<Stamp>,
    dies: Option<Stamp>,
    doubtful: bool,
    /// The clock of each write by its device and number.
    clocks: BTreeMap<(DeviceNo, u64), Hlc>,
}

impl Joined {
    /// Whether a device's clock rises with its numbers, as an honest one does.
    fn is_honest(&self) -> bool {
        let all: Vec<_> = self.clocks.iter().collect();
        all.windows(2).all(|pair| pair[0].0.0 != pair[1].0.0 || pair[0].1 < pair[1].1)
    }
}

/// Compares what the server holds with the join of what it accepted.
pub(super) fn compare(
    commits: &[Commit],
    rows: &BTreeMap<Key, Row>,
    removed: &BTreeSet<Key>,
    identities: &[Identity],
    skew_ms_max: u64,
) -> Result<u64, Violation> {
    let records = join(commits, identities, skew_ms_max);
    let mut compared = 0;
    for (key, joined) in &records {
        if joined.doubtful || !joined.is_honest() || removed.contains(key) {
            continue;
        }
        let Some(row) = rows.get(key) else {
            return Err(Violation::new("model", format!("{}/{} is missing", key.0, key.1)));
        };
        compared += 1;
        let deleted = joined.dies > joined.lives;
        // What is counted here and set as a whole there depends on the order of arrival.
        let mixed = |name: &str| joined.sums.contains_key(name) && joined.fields.contains_key(name);
        let followed = |name: &str| !joined.gathered.contains(name) && !mixed(name);
        let sums = joined.sums.iter().map(|(name, sum)| (&**name, sum.to_string()));
        let values = joined.fields.iter().map(|(name, (_, value))| (&**name, value.clone()));
        let mut wanted: Vec<_> = values.chain(sums).collect();
        wanted.retain(|(name, _)| followed(name));
        wanted.sort_unstable();
        let held = row.record.fields.iter().filter(|(name, _)| followed(name));
        let mut held: Vec<_> = held.map(|(name, value)| (name, value.to_owned())).collect();
        held.sort_unstable();
        if deleted != row.deleted || wanted != held {
            let what = format!(
                "{}/{} is {held:?}, deleted {}, on the server and {wanted:?}, deleted {deleted}, in the model",
                key.0, key.1, row.deleted
            );
            return Err(Violation::new("model", what));
        }
    }
    Ok(compared)
}

fn join(commits: &[Commit], identities: &[Identity], skew_ms_max: u64) -> BTreeMap<Key, Joined> {
    let names: BTreeMap<DeviceNo, &str> = identities
        .iter()
        .filter_map(|identity| identity.device.as_ref())
        .map(|(number, key)| (*number, key.as_str()))
        .collect();
    let mut records: BTreeMap<Key, Joined> = BTreeMap::new();
    for commit in commits {
        for (entry, result) in commit.submission.entries.iter().zip(&commit.receipt.results) {
            let accepted = result.code.class() == ItemClass::Done && !result.duplicate;
            let (Task::Apply(apply), true) = (&entry.task, accepted) else { continue };
            let record = records.entry((apply.kind.clone(), apply.id.clone())).or_default();
            let Some(clock) = apply.hlc else {
                record.doubtful = true;
                continue;
            };
            record.doubtful |= clock > Hlc::new(commit.at_ms + skew_ms_max, 0);
            record.clocks.insert((commit.submission.device, entry.n.unwrap_or_default()), clock);
            let device = names.get(&commit.submission.device).copied().unwrap_or_default();
            let stamp = (clock, device.to_owned(), entry.n.unwrap_or_default());
            if apply.op == Op::Delete {
                record.dies = record.dies.take().max(Some(stamp));
                continue;
            }
            for intents in apply.intents.iter() {
                for (name, by) in &intents.increments {
                    *record.sums.entry(name.to_string()).or_default() += by;
                }
                let gathered = intents.add.iter().chain(intents.remove.iter());
                record.gathered.extend(gathered.map(|(name, _)| name.to_owned()));
            }
            for (name, value) in apply.fields.iter() {
                let newer = record.fields.get(name).is_none_or(|(held, _)| *held < stamp);
                if newer {
                    record.fields.insert(name.to_owned(), (stamp.clone(), value.to_owned()));
                }
            }
            record.lives = record.lives.take().max(Some(stamp));
        }
    }
    records
}
