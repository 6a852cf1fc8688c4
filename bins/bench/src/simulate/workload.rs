//! What users do: edits of few records by many devices, so that they collide.

use driftline_client::{Edit, KindName, Object, RecordId, Replica, View, elements, fields};
use driftline_protocol::FieldPolicyDoc;

use super::device::Device;
use crate::rng::Rng;

/// The kind that everybody shares.
pub(super) const SHARED: &str = "ticket";

/// The kind that only its owner sees.
pub(super) const OWN: &str = "diary";

/// Fields of every record; policies may name others.
pub(super) const FIELDS: [&str; 5] = ["state", "title", "room", "note", "rank"];

/// What a field is, as far as its users are concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Nature {
    /// It has any value.
    Plain,
    /// It has a number.
    Number,
    /// It counts.
    Counter,
    /// It gathers elements.
    Set,
    /// It grows by elements with an id each.
    List,
    /// It has one of these values, canonical JSON, from the least to the most urgent.
    Ordered(Vec<String>),
}

impl Nature {
    pub(super) fn of(field: FieldPolicyDoc) -> Self {
        match field.rule.as_str() {
            "max" | "min" => Self::Number,
            "counter" => Self::Counter,
            "set" => Self::Set,
            "append" => Self::List,
            "ordered" => Self::Ordered(field.order.unwrap_or_default()),
            _ => Self::Plain,
        }
    }
}

/// Makes edits.
#[derive(Debug)]
pub(super) struct Workload {
    records: usize,
    fields: Vec<(String, Nature)>,
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
    pub(super) fn new(records: usize, fields: Vec<(String, Nature)>, rng: Rng) -> Self {
        Self { records: records.max(1), fields, values: 0, rng }
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
        let view = device.replica.view(kind.as_str(), id.as_str());
        let seen = seen(&device.replica, &kind, &id);
        let (edit, least) = match seen {
            Seen::Live if chance < 78 => (Edit::patch(kind, id, Object::empty()), 1),
            Seen::Live if chance < 90 => return Edit::delete(kind, id),
            Seen::Live if chance < 95 => (Edit::create(kind, id, Object::empty()), 2),
            Seen::Live => (Edit::restore(kind, id, Object::empty()), 1),
            Seen::Deleted if chance < 45 => (Edit::restore(kind, id, Object::empty()), 1),
            Seen::Deleted if chance < 85 => (Edit::create(kind, id, Object::empty()), 3),
            Seen::Unknown if chance < 85 => (Edit::create(kind, id, Object::empty()), 3),
            // A careless app: it names records that it does not show.
            Seen::Deleted | Seen::Unknown if chance < 95 => (Edit::patch(kind, id, Object::empty()), 1),
            Seen::Deleted | Seen::Unknown => return Edit::delete(kind, id),
        };
        self.fill(edit, least, view.as_ref())
    }

    /// Lets an edit write at least so many fields.
    fn fill(&mut self, mut edit: Edit, least: u64, view: Option<&View<'_>>) -> Edit {
        let mut names: Vec<String> = Vec::new();
        let mut text = String::from("{");
        for _ in 0..self.rng.between(least, least + 1) {
            let (name, nature) = self.rng.pick(&self.fields).clone();
            if names.contains(&name) {
                continue;
            }
            let shown = view.and_then(|view| view.fields.get(&name));
            let value = match nature {
                Nature::Plain => self.value(),
                Nature::Number => self.rng.between(0, 50).to_string(),
                Nature::Counter => {
                    let by = i64::try_from(self.rng.between(1, 5)).unwrap_or(1);
                    edit = edit.increment(&name, if self.rng.percent(25) { -by } else { by });
                    continue;
                }
                Nature::Set => {
                    edit = self.gather(edit, &name, shown);
                    continue;
                }
                Nature::List => {
                    self.values += 1;
                    let element = format!(r#"[{{"id":{},"text":"x"}}]"#, self.values);
                    edit = edit.add(&name, &elements(&element).expect("an array"));
                    continue;
                }
                Nature::Ordered(order) => {
                    let at = self.rng.below(order.len());
                    let lowers = order.iter().position(|rank| Some(rank.as_str()) == shown) > Some(at);
                    if lowers && self.rng.percent(60) {
                        edit = edit.deescalate();
                    }
                    order[at].clone()
                }
            };
            if text.len() > 1 {
                text.push(',');
            }
            text.push_str(&format!("\"{name}\":{value}"));
            names.push(name);
        }
        text.push('}');
        edit.fields = fields(&text).expect("an object of plain values");
        edit
    }

    /// Lets an edit add an element to a set, or take one out that the user sees.
    fn gather(&mut self, edit: Edit, name: &str, shown: Option<&str>) -> Edit {
        let shown: Vec<String> = shown.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        if !shown.is_empty() && self.rng.percent(40) {
            let element = format!("[\"{}\"]", self.rng.pick(&shown));
            return edit.remove(name, &elements(&element).expect("an array"));
        }
        let element = format!("[\"{}\"]", self.rng.pick(&["roof", "wet", "old", "new", "hot"]));
        edit.add(name, &elements(&element).expect("an array"))
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
        let mut workload = Workload::new(6, Vec::new(), Rng::new(1, 1));
        let mut hits = [0_u32; 6];
        for _ in 0..6_000 {
            hits[workload.zipf()] += 1;
        }
        assert!(hits[0] > 2 * hits[2] && hits[5] > 100, "{hits:?}");
    }
}
