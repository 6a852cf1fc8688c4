//! Random histories of careless devices: any operation on any record, with any base and clock, resent, out of
//! order, in groups that fail.

use std::sync::Arc;

use driftline_conflict::{DeletedRecord, Granularity, OnDelete, Policy, Strategy};
use driftline_engine::{RowKey, Submission, plan};
use driftline_model::{DeviceNo, Epoch, Hlc, KindName, RecordId, Seq};
use driftline_protocol::ItemCode;
use driftline_testkit::{Author, Draft, Rng, create, delete, patch, refused, restore};

use super::tiny::{EPOCH, SKEW_MS, TENANT, Tiny};

/// Names of the devices in the order of their numbers, with their users.
pub(crate) const DEVICES: [(&str, &str); 4] =
    [("eve\u{1}phone", "eve"), ("ada\u{1}tablet", "ada"), ("bob\u{1}phone", "bob"), ("ada\u{1}phone", "ada")];
pub(crate) const RECORD_BYTES: usize = 200;
const RECORDS: [&str; 4] = ["w", "x", "y", "z"];

/// What became one commit group.
#[derive(Debug, Clone)]
pub(crate) struct Group {
    pub(crate) now_ms: u64,
    /// Whether tombstones are purged before.
    pub(crate) purge: bool,
    pub(crate) submissions: Vec<Submission>,
}

struct Device {
    author: Author,
    n: u64,
    /// The last stamp.
    hlc: Hlc,
    /// What it saw at its last pull, by record.
    seen: [u64; RECORDS.len()],
    sent: Vec<Submission>,
}

/// Makes the history of a seed. The real plan plays along, so that most bases are versions that exist.
pub(crate) fn history(seed: u64) -> Vec<Group> {
    let mut rng = Rng::new(seed);
    let policy = Arc::new(Policy { strategy: strategy(&mut rng), version: 1 });
    let mut server = Tiny::new(&plan);
    let mut devices: Vec<Device> = (0_u32..)
        .zip(DEVICES)
        .map(|(number, (_, user))| Device {
            author: Author::new(TENANT, DeviceNo::new(number), user),
            n: 0,
            hlc: Hlc::ZERO,
            seen: [0; RECORDS.len()],
            sent: Vec::new(),
        })
        .collect();
    let mut now_ms = 1_000_000;
    let mut groups = Vec::new();
    for _ in 0..rng.between(4, 14) {
        now_ms += rng.below(20_000);
        let mut submissions = Vec::new();
        for _ in 0..rng.between(1, 4) {
            let device = rng.place(devices.len());
            let device = &mut devices[device];
            if rng.percent(50) {
                look(device, &server);
            }
            submissions.push(submission(&mut rng, device, now_ms, &policy));
        }
        let group = Group { now_ms, purge: rng.percent(5), submissions };
        server.play(&group);
        groups.push(group);
    }
    groups
}

fn strategy(rng: &mut Rng) -> Strategy {
    let granularity = *rng.pick(&[Granularity::Record, Granularity::Field]);
    let deleted = *rng.pick(&[DeletedRecord::Restored, DeletedRecord::StaysDeleted]);
    match rng.below(4) {
        0 => Strategy::ClientWins { granularity, deleted },
        1 => Strategy::ServerWins { granularity },
        2 => Strategy::MostRecentWins,
        _ => Strategy::FieldMerge { fields: Vec::new(), on_delete: OnDelete::MostRecent },
    }
}

pub(crate) fn key(id: &str) -> RowKey {
    let kind = KindName::new("note").expect("a kind's name");
    RowKey { tenant: TENANT, kind, id: RecordId::new(id).expect("an id") }
}

/// The device pulls.
fn look(device: &mut Device, server: &Tiny<'_>) {
    for (seen, id) in device.seen.iter_mut().zip(RECORDS) {
        *seen = server.row(&key(id)).map_or(*seen, |row| row.record.version.number());
    }
}

fn submission(rng: &mut Rng, device: &mut Device, now_ms: u64, policy: &Arc<Policy>) -> Submission {
    if !device.sent.is_empty() && rng.percent(20) {
        return rng.pick(&device.sent).clone();
    }
    let drafts: Vec<Draft> = (0..rng.between(1, 5)).map(|_| draft(rng, device, now_ms, policy)).collect();
    let mut submission = device.author.batch(drafts);
    submission.epoch = Some(if rng.percent(3) { Epoch::new(1) } else { EPOCH });
    // The first device names its changes without numbering them, so it never hears answers by number.
    if device.author.device != DeviceNo::new(0) && rng.percent(15) {
        submission.acked_n = Some(device.n.saturating_sub(rng.below(6)));
    }
    device.sent.push(submission.clone());
    submission
}

fn draft(rng: &mut Rng, device: &mut Device, now_ms: u64, policy: &Arc<Policy>) -> Draft {
    let record = rng.place(RECORDS.len());
    let id = RECORDS[record];
    let base = match rng.below(20) {
        0 => 0,
        1 => 1_000,
        _ => device.seen[record],
    };
    let fields = fields(rng);
    let draft = match rng.below(20) {
        0..6 => create(id, &fields),
        6..9 => delete(id, base),
        9 => restore(id, base, &fields),
        10 => refused(id, ItemCode::Invalid),
        _ => patch(id, base, &fields),
    };
    let draft = if rng.percent(10) { draft.owned() } else { draft };
    let draft = if rng.percent(30) { draft.group(["g", "h"][rng.place(2)]) } else { draft };
    device.hlc = device.hlc.tick(match rng.below(8) {
        0 => now_ms - 100_000,
        1 => now_ms + 2 * SKEW_MS,
        _ => now_ms,
    });
    let draft = if rng.percent(80) { draft.hlc(device.hlc) } else { draft };
    name(rng, device, draft).policy(policy)
}

/// Gives the change its number, its name or both; now and then ones that were used before.
fn name(rng: &mut Rng, device: &mut Device, draft: Draft) -> Draft {
    device.n += 1;
    let n = if rng.percent(4) { rng.between(1, device.n) } else { device.n };
    let name = if rng.percent(4) { rng.between(1, device.n) } else { device.n };
    if device.author.device == DeviceNo::new(0) {
        return draft.op_id(&format!("op{name}"));
    }
    if rng.percent(50) { draft.n(n).op_id(&format!("op{name}")) } else { draft.n(n) }
}

fn fields(rng: &mut Rng) -> String {
    let value = |rng: &mut Rng| match rng.below(12) {
        0 => format!("\"{}\"", "x".repeat(RECORD_BYTES)),
        1 => "null".to_owned(),
        _ => rng.below(4).to_string(),
    };
    match rng.below(5) {
        0 => "{}".to_owned(),
        1 => format!(r#"{{"a":{},"b":{}}}"#, value(rng), value(rng)),
        2 => format!(r#"{{"b":{}}}"#, value(rng)),
        _ => format!(r#"{{"a":{}}}"#, value(rng)),
    }
}

/// The versions that a receipt's changes got, from the commits of its group.
pub(crate) fn told(planned: &driftline_engine::Planned) -> Vec<Seq> {
    let changes = planned.commits.iter().flat_map(|commit| commit.changes.iter().flat_map(|all| all.iter()));
    changes.map(|told| told.change.version).collect()
}
