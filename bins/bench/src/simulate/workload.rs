//! What users do: edits of few records by many devices, so that they collide.

use driftline_client::{Edit, KindName, RecordId, Replica, fields};

use super::device::Device;
use crate::rng::Rng;

/// The kind that everybody shares.
pub(super) const SHARED: &str = "ticket";

/// The kind that only its owner sees.
pub(super) const OWN: &str = "diary";

/// Fields of every record.
const FIELDS: [&str; 5] = ["state", "title", "room", "note", "rank"];

/// Makes edits.
#[derive(Debug)]
pub(super) struct Workload {
    records: usize,
    values: u64,
    rng: Rng,
}

/// Edits that go together.
#[derive(Debug)]
pub(super) struct Wish {
    pub(super) edits: Vec<Edit>,
    /// Whether they apply together or not at all.
    pub(super) grouped: bool,
}

impl Workload {
    pub(super) fn new(records: usize, rng: Rng) -> Self {
        Self { records: records.max(1), values: 0, rng }
    }

    /// Thinks of something that the device's user may do next.
    pub(super) fn wish(&mut self, device: &Device) -> Wish {
        let grouped = self.rng.percent(6);
        let count = if grouped { 2 } else { 1 };
        Wish { edits: (0..count).map(|_| self.edit(device)).collect(), grouped }
    }

    fn edit(&mut self, device: &Device) -> Edit {
        let (kind, id) = if self.rng.percent(8) {
            (kind_name(OWN), record_id(&format!("d-{}", device.account.user)))
        } else {
            let at = self.zipf();
            (kind_name(SHARED), record_id(&format!("t-{at}")))
        };
        let chance = self.rng.below(100);
        match seen(&device.replica, &kind, &id) {
            Seen::Live if chance < 78 => Edit::patch(kind, id, self.fields(1)),
            Seen::Live if chance < 90 => Edit::delete(kind, id),
            Seen::Live if chance < 95 => Edit::create(kind, id, self.fields(2)),
            Seen::Live => Edit::restore(kind, id, self.fields(1)),
            Seen::Deleted if chance < 45 => Edit::restore(kind, id, self.fields(1)),
            Seen::Deleted if chance < 85 => Edit::create(kind, id, self.fields(3)),
            Seen::Unknown if chance < 85 => Edit::create(kind, id, self.fields(3)),
            // A careless app: it names records that it does not show.
            Seen::Deleted | Seen::Unknown if chance < 95 => Edit::patch(kind, id, self.fields(1)),
            Seen::Deleted | Seen::Unknown => Edit::delete(kind, id),
        }
    }

    /// Picks a record: the first one twice as often as the second, three times as often as the third.
    fn zipf(&mut self) -> usize {
        let weight = |at: usize| 840 / (at as u64 + 1);
        let total: u64 = (0..self.records).map(weight).sum();
        let mut left = self.rng.next() % total.max(1);
        for at in 0..self.records {
            match left.checked_sub(weight(at)) {
                Some(rest) => left = rest,
                None => return at,
            }
        }
        0
    }

    fn fields(&mut self, least: u64) -> driftline_client::Object {
        let wanted = self.rng.between(least, least + 1);
        let mut text = String::from("{");
        for at in 0..wanted {
            let field = FIELDS[self.rng.below(FIELDS.len())];
            if text.contains(field) {
                continue;
            }
            if at > 0 {
                text.push(',');
            }
            text.push_str(&format!("\"{field}\":{}", self.value()));
        }
        text.push('}');
        fields(&text).expect("an object of texts and numbers")
    }

    /// A value that nobody wrote before, so that a lost one cannot hide behind an equal one; rarely a common one.
    fn value(&mut self) -> String {
        self.values += 1;
        match self.rng.below(20) {
            0 => "null".to_owned(),
            1 => format!("{}", self.rng.below(2)),
            2..10 => format!("{}", 1_000 + self.values * 7 % 5_003 * 1_000 + self.values),
            _ => format!("\"v{}\"", self.values),
        }
    }
}

enum Seen {
    Live,
    Deleted,
    Unknown,
}

fn seen(replica: &Replica, kind: &KindName, id: &RecordId) -> Seen {
    if replica.view(kind.as_str(), id.as_str()).is_some() {
        return Seen::Live;
    }
    match replica.body(kind.as_str(), id.as_str()) {
        Some(_) => Seen::Deleted,
        None => Seen::Unknown,
    }
}

pub(super) fn kind_name(text: &str) -> KindName {
    KindName::new(text).expect("a short name")
}

fn record_id(text: &str) -> RecordId {
    RecordId::new(text).expect("a short name")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_records_get_most_edits() {
        let mut workload = Workload::new(6, Rng::new(1, 1));
        let mut hits = [0_u32; 6];
        for _ in 0..6_000 {
            hits[workload.zipf()] += 1;
        }
        assert!(hits[0] > 2 * hits[2] && hits[5] > 100, "{hits:?}");
    }
}
