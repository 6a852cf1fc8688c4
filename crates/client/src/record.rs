//! One record: the server's body with the device's own changes on top.

use std::borrow::Cow;
use std::cmp::Ordering;

use driftline_model::{Object, ObjectBuilder, Seq, key_cmp};
use driftline_protocol::{ChangeKind, ItemOp};

/// A record as the server last told it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Body {
    /// The version; [`Seq::ZERO`] while it is unknown in the present epoch.
    pub version: Seq,
    /// Whether the record is deleted; it has no fields then.
    pub deleted: bool,
    /// The fields, canonical.
    pub fields: Object,
}

/// A record as the device's user sees it: the server's body with own changes on top.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View<'a> {
    /// The version of the server's body; [`Seq::ZERO`] for a record that no pull has brought yet.
    pub version: Seq,
    /// The fields, canonical.
    pub fields: Cow<'a, Object>,
    /// How many own changes wait for the server's answer.
    pub pending: usize,
}

/// A change that the server took and that no pull has accounted for yet.
#[derive(Debug)]
struct Acked {
    version: Seq,
    op: ItemOp,
    fields: Object,
}

/// What the device knows of one record.
#[derive(Debug, Default)]
pub(crate) struct Record {
    body: Option<Body>,
    /// In the order of their versions; all above the body's.
    acked: Vec<Acked>,
    /// The queue's changes of this record, by number, rising.
    pub(crate) pending: Vec<u64>,
}

impl Record {
    pub(crate) fn body(&self) -> Option<&Body> {
        self.body.as_ref()
    }

    pub(crate) fn version(&self) -> Seq {
        self.body.as_ref().map_or(Seq::ZERO, |body| body.version)
    }

    /// Tells whether the server is known to have or have had the record.
    pub(crate) fn has_past(&self) -> bool {
        self.body.is_some() || !self.acked.is_empty()
    }

    /// Tells whether nothing is known any more.
    pub(crate) fn is_empty(&self) -> bool {
        self.body.is_none() && self.acked.is_empty() && self.pending.is_empty()
    }

    /// Shows the fields with own changes on top; nothing for a record that is deleted or was never made.
    pub(crate) fn view<'a>(
        &'a self,
        pending: impl Iterator<Item = (ItemOp, &'a Object)>,
    ) -> Option<View<'a>> {
        let body = self.body.as_ref().filter(|body| !body.deleted);
        let acked = self.acked.iter().map(|entry| (entry.op, &entry.fields));
        let fields = acked
            .chain(pending)
            .fold(body.map(|body| Cow::Borrowed(&body.fields)), |fields, (op, written)| {
                effect(fields, op, written)
            })?;
        Some(View { version: self.version(), fields, pending: self.pending.len() })
    }

    /// Applies what the server says of the record at `version`; tells whether it was news.
    pub(crate) fn apply(&mut self, version: Seq, change: ChangeKind, fields: Object) -> bool {
        if version <= self.version() {
            return false;
        }
        // Own writes below the change belong under it; the one at its version is the change itself.
        self.fold_where(|entry| entry < version);
        self.acked.retain(|entry| entry.version > version);
        let fields = match (change, self.body.take()) {
            (ChangeKind::Patch, Some(body)) if !body.deleted => merge(&body.fields, &fields),
            (ChangeKind::Patch | ChangeKind::Put, _) => fields,
            (ChangeKind::Delete, _) => Object::empty(),
        };
        self.body = Some(Body { version, deleted: change == ChangeKind::Delete, fields });
        true
    }

    /// Keeps a change that the server took on top until the body has caught up with it.
    ///
    /// Returns false when the body already tells of it.
    pub(crate) fn acknowledge(&mut self, version: Seq, op: ItemOp, fields: Object) -> bool {
        if version <= self.version() {
            return false;
        }
        let at = self.acked.partition_point(|entry| entry.version <= version);
        self.acked.insert(at, Acked { version, op, fields });
        true
    }

    /// Puts acknowledged changes up to `seq` into the body, which every change of others up to there has reached.
    pub(crate) fn fold_through(&mut self, seq: Seq) {
        let highest = self.acked.iter().rev().map(|entry| entry.version).find(|version| *version <= seq);
        self.fold_where(|entry| entry <= seq);
        if let (Some(body), Some(highest)) = (&mut self.body, highest) {
            body.version = body.version.max(highest);
        }
    }

    /// Drops acknowledged changes up to `seq`: the body tells of everything up to there.
    pub(crate) fn drop_through(&mut self, seq: Seq) {
        self.acked.retain(|entry| entry.version > seq);
    }

    /// Forgets the version, so that whatever another epoch says is news.
    pub(crate) fn forget_version(&mut self) {
        self.fold_where(|_| true);
        if let Some(body) = &mut self.body {
            body.version = Seq::ZERO;
        }
    }

    /// Forgets a body that the server does not have.
    pub(crate) fn drop_body(&mut self) {
        self.body = None;
        self.acked.clear();
    }

    fn fold_where(&mut self, folded: impl Fn(Seq) -> bool) {
        let count = self.acked.partition_point(|entry| folded(entry.version));
        for entry in self.acked.drain(..count) {
            let version = self.body.as_ref().map_or(Seq::ZERO, |body| body.version);
            if self.body.is_none() && entry.op == ItemOp::Patch {
                continue;
            }
            let live = self.body.take().filter(|body| !body.deleted).map(|body| Cow::Owned(body.fields));
            let fields = effect(live, entry.op, &entry.fields).map(Cow::into_owned);
            self.body = Some(Body { version, deleted: fields.is_none(), fields: fields.unwrap_or_default() });
        }
    }
}

/// What a change makes of a live record's fields; a patch makes nothing of nothing.
fn effect<'a>(fields: Option<Cow<'a, Object>>, op: ItemOp, written: &'a Object) -> Option<Cow<'a, Object>> {
    match (op, fields) {
        (ItemOp::Delete, _) | (ItemOp::Patch, None) => None,
        (ItemOp::Create | ItemOp::Restore, None) => Some(Cow::Borrowed(written)),
        (_, Some(fields)) => Some(Cow::Owned(merge(&fields, written))),
    }
}

/// Writes the members of `over` into those of `base`.
fn merge(base: &Object, over: &Object) -> Object {
    let mut merged =
        ObjectBuilder::with_capacity(base.as_str().len() + over.as_str().len(), base.len() + over.len());
    let (mut base, mut over) = (base.iter().peekable(), over.iter().peekable());
    loop {
        let order = match (base.peek(), over.peek()) {
            (Some((below, _)), Some((above, _))) => key_cmp(below, above),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => return merged.finish(),
        };
        let below = if order == Ordering::Greater { None } else { base.next() };
        let above = if order == Ordering::Less { None } else { over.next() };
        if let Some((key, value)) = above.or(below) {
            merged.push(key, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(text: &str) -> Object {
        Object::from_canonical(text.to_owned()).expect("canonical")
    }

    fn shown(record: &Record) -> Option<String> {
        record.view(std::iter::empty()).map(|view| view.fields.as_str().to_owned())
    }

    #[test]
    fn objects_merge_member_by_member() {
        let table = [
            ("{}", "{}", "{}"),
            (r#"{"a":1,"c":3}"#, r#"{"b":2}"#, r#"{"a":1,"b":2,"c":3}"#),
            (r#"{"a":1,"b":{"x":1}}"#, r#"{"b":{"y":2},"c":null}"#, r#"{"a":1,"b":{"y":2},"c":null}"#),
        ];
        for (base, over, wanted) in table {
            assert_eq!(merge(&object(base), &object(over)), object(wanted));
        }
    }

    #[test]
    fn an_incoming_change_takes_own_writes_below_it_and_replaces_the_one_at_its_version() {
        let mut record = Record::default();
        record.apply(Seq::new(1), ChangeKind::Put, object(r#"{"a":0,"b":0,"c":0}"#));
        for (version, fields) in [(4, r#"{"b":4}"#), (3, r#"{"a":3,"b":3}"#), (6, r#"{"c":6}"#)] {
            record.acknowledge(Seq::new(version), ItemOp::Patch, object(fields));
        }
        assert_eq!(shown(&record).as_deref(), Some(r#"{"a":3,"b":4,"c":6}"#));
        assert_eq!(record.version(), Seq::new(1), "a bare ack moves no version");

        assert!(record.apply(Seq::new(5), ChangeKind::Patch, object(r#"{"b":5}"#)));
        assert_eq!(record.body().expect("a body").fields, object(r#"{"a":3,"b":5,"c":0}"#));
        assert_eq!(shown(&record).as_deref(), Some(r#"{"a":3,"b":5,"c":6}"#));

        assert!(record.apply(Seq::new(6), ChangeKind::Patch, object(r#"{"c":66}"#)));
        assert_eq!(shown(&record).as_deref(), Some(r#"{"a":3,"b":5,"c":66}"#));
        assert!(!record.apply(Seq::new(6), ChangeKind::Put, object("{}")), "only higher versions are news");
    }

    #[test]
    fn folding_moves_the_version_and_keeps_what_is_above() {
        let mut record = Record::default();
        record.acknowledge(Seq::new(2), ItemOp::Create, object(r#"{"a":2}"#));
        record.acknowledge(Seq::new(3), ItemOp::Delete, object("{}"));
        record.acknowledge(Seq::new(9), ItemOp::Create, object(r#"{"b":9}"#));
        record.fold_through(Seq::new(2));
        assert_eq!((record.version(), shown(&record).as_deref()), (Seq::new(2), Some(r#"{"b":9}"#)));
        record.fold_through(Seq::new(8));
        let body = record.body().expect("a tombstone is kept");
        assert_eq!((body.version, body.deleted, body.fields.is_empty()), (Seq::new(3), true, true));
        record.fold_through(Seq::new(9));
        assert_eq!((record.version(), shown(&record).as_deref()), (Seq::new(9), Some(r#"{"b":9}"#)));
    }

    #[test]
    fn a_patch_makes_nothing_of_nothing() {
        let mut record = Record::default();
        record.acknowledge(Seq::new(2), ItemOp::Patch, object(r#"{"a":2}"#));
        assert_eq!(shown(&record), None);
        record.fold_through(Seq::new(2));
        assert!(record.is_empty());
    }
}
