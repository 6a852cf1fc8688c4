//! One record: the server's body with the device's own changes on top.

use std::borrow::Cow;

use driftline_model::{Hlc, Intents, Object, ScopeName, Seq};
use driftline_protocol::{ChangeKind, Item, ItemOp};

use crate::intents::{Change, merge, object};
use crate::policies::Rules;
use crate::seen::{Earlier, Seen};

/// A record as the server last told it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Body {
    /// The version; [`Seq::ZERO`] while it is unknown in the present epoch.
    pub version: Seq,
    /// Whether the record is deleted; it has no fields then.
    pub deleted: bool,
    /// The fields, canonical.
    pub fields: Object,
    /// The scope; none while only acks have told of the record.
    pub scope: Option<ScopeName>,
    /// The tenant's highest clock when the server told this; no write in here has a higher one.
    pub hlc: Hlc,
}

impl Body {
    /// Tells whether the server is known to have the row in the present epoch.
    pub(crate) fn is_row(&self) -> bool {
        !self.deleted && self.version > Seq::ZERO
    }
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

impl View<'_> {
    /// Returns those of the fields that are not what is shown: what an edit has to write when an app holds the whole
    /// record, of which the user has changed a part.
    ///
    /// The view has to be the one that the user's changes began from. Against a later one, what others changed
    /// meanwhile would look like the user's wish to change it back.
    ///
    /// ```
    /// use driftline_client::{Edit, KindName, OpId, RecordId, Replica, fields};
    ///
    /// let (kind, id) = (KindName::new("ticket")?, RecordId::new("t-17")?);
    /// let mut replica = Replica::default();
    /// let create = Edit::create(kind.clone(), id.clone(), fields(r#"{"state":"open","room":4}"#)?);
    /// replica.edit(create, OpId::new("0192f3a1-b2c3-7000-8000-000000000001")?, 1_763_692_496_000)?;
    ///
    /// let seen = replica.view("ticket", "t-17").ok_or("no such record")?;
    /// let form = fields(r#"{"state":"closed","room":4}"#)?;
    /// let patch = Edit::patch(kind, id, seen.changes(&form));
    /// assert_eq!(patch.fields.as_str(), r#"{"state":"closed"}"#);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn changes(&self, fields: &Object) -> Object {
        object(fields.iter().filter(|(name, value)| self.fields.get(name) != Some(*value)).collect())
    }
}

/// What the server says of a record.
#[derive(Debug, Clone)]
pub(crate) struct Telling {
    pub(crate) version: Seq,
    pub(crate) change: ChangeKind,
    pub(crate) fields: Object,
    /// None where only the record is told, as in results.
    pub(crate) scope: Option<ScopeName>,
    pub(crate) hlc: Hlc,
}

/// A change that the server took and that no pull has accounted for yet.
#[derive(Debug, Clone)]
struct Acked {
    version: Seq,
    op: ItemOp,
    fields: Object,
    intents: Option<Box<Intents>>,
    hlc: Hlc,
}

impl Acked {
    fn change(&self) -> Change<'_> {
        Change { op: self.op, fields: &self.fields, intents: self.intents.as_deref(), seen: None }
    }
}

/// What a record was in an epoch that is gone.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    pub(crate) version: Seq,
    pub(crate) hlc: Hlc,
    /// The body's fields, none when it was deleted; kept apart once the server told the body anew.
    replaced: Option<Option<Object>>,
}

/// What the device knows of one record.
#[derive(Debug, Clone, Default)]
pub(crate) struct Record {
    body: Option<Body>,
    /// In the order of their versions; all above the body's.
    acked: Vec<Acked>,
    /// The queue's changes of this record, in the order in which they are sent.
    pub(crate) pending: Vec<u64>,
    /// What the device held when the epoch changed, until the snapshot of the new one is whole.
    held: Option<Box<Held>>,
}

impl Record {
    pub(crate) fn body(&self) -> Option<&Body> {
        self.body.as_ref()
    }

    pub(crate) fn version(&self) -> Seq {
        self.body.as_ref().map_or(Seq::ZERO, |body| body.version)
    }

    fn live_fields(&self) -> Option<&Object> {
        self.body.as_ref().filter(|body| !body.deleted).map(|body| &body.fields)
    }

    /// Tells whether the server is known to have or have had the record.
    pub(crate) fn has_past(&self) -> bool {
        self.body.is_some() || !self.acked.is_empty()
    }

    /// Tells whether nothing is known any more.
    pub(crate) fn is_empty(&self) -> bool {
        self.body.is_none() && self.acked.is_empty() && self.pending.is_empty() && self.held.is_none()
    }

    /// Shows the fields with own changes on top; nothing for a record that is deleted or was never made.
    pub(crate) fn view<'a>(
        &'a self,
        pending: impl Iterator<Item = Change<'a>>,
        rules: &Rules,
    ) -> Option<View<'a>> {
        let body = self.live_fields();
        let fields = self
            .acked
            .iter()
            .map(Acked::change)
            .chain(pending)
            .fold(body.map(Cow::Borrowed), |fields, change| change.effect(fields, body, rules))?;
        Some(View { version: self.version(), fields, pending: self.pending.len() })
    }

    /// Notes what the author of a write of `fields` sees.
    pub(crate) fn seen<'a>(
        &'a self,
        fields: &Object,
        pending: impl Iterator<Item = (&'a Item, &'a Seen)>,
    ) -> Seen {
        let acked =
            self.acked.iter().map(|entry| Earlier { op: entry.op, fields: &entry.fields, seen: None });
        let pending =
            pending.map(|(item, seen)| Earlier { op: item.op, fields: &item.fields, seen: Some(seen) });
        let own: Vec<_> = acked.chain(pending).collect();
        Seen::at_edit(fields, self.live_fields(), &own)
    }

    /// Applies what the server says of the record; tells whether it was news.
    pub(crate) fn apply(&mut self, told: Telling, rules: &Rules) -> bool {
        if told.change == ChangeKind::Evict {
            return self.evict(told.version);
        }
        if told.version <= self.version() {
            self.learn_scope(told);
            return false;
        }
        // Own writes below the change belong under it; the one at its version is the change itself.
        self.fold_where(|entry| entry < told.version, rules);
        self.acked.retain(|entry| entry.version > told.version);
        let old = self.body.take();
        let old_scope = old.as_ref().and_then(|body| body.scope.clone());
        let fields = match (told.change, &old) {
            (ChangeKind::Patch, Some(body)) if !body.deleted => merge(&body.fields, &told.fields),
            (ChangeKind::Patch | ChangeKind::Put, _) => told.fields,
            (ChangeKind::Delete | ChangeKind::Evict, _) => Object::empty(),
        };
        if let (Some(held), Some(old)) = (&mut self.held, old) {
            held.replaced.get_or_insert_with(|| (!old.deleted).then_some(old.fields));
        }
        self.body = Some(Body {
            version: told.version,
            deleted: told.change == ChangeKind::Delete,
            fields,
            scope: told.scope.or(old_scope),
            hlc: told.hlc,
        });
        true
    }

    /// Own writes that deltas passed by are in the body before the server told their scope.
    fn learn_scope(&mut self, told: Telling) {
        let same = self.body.as_mut().filter(|body| body.version == told.version);
        if let Some(body) = same.filter(|body| body.scope.is_none()) {
            body.scope = told.scope;
        }
    }

    /// Forgets a record that left the reader's scopes, so that a later grant's put of any version is news.
    fn evict(&mut self, version: Seq) -> bool {
        if version < self.version() {
            return false;
        }
        self.acked.retain(|entry| entry.version > version);
        self.held = None;
        self.body.take().is_some()
    }

    /// Puts the server's word in the place of whatever is here, as a repair does; nothing: it has no such record.
    ///
    /// The word is as old as `seq`: what is newer stays. Tells whether anything changed.
    pub(crate) fn replace(&mut self, told: Option<Telling>, seq: Seq) -> bool {
        let newest = self.acked.last().map_or(self.version(), |entry| entry.version.max(self.version()));
        if newest > seq {
            return false;
        }
        let version = told.as_ref().map(|told| told.version);
        if version == self.body.as_ref().filter(|body| body.is_row()).map(|body| body.version) {
            told.into_iter().for_each(|told| self.learn_scope(told));
            return false;
        }
        self.acked.clear();
        self.body = told.map(|told| Body {
            version: told.version,
            deleted: false,
            fields: told.fields,
            scope: told.scope,
            hlc: told.hlc,
        });
        true
    }

    /// Keeps a change that the server took on top until the body has caught up with it.
    ///
    /// Returns false when the body already tells of it.
    pub(crate) fn acknowledge(&mut self, version: Seq, item: Item, hlc: Hlc) -> bool {
        if version <= self.version() {
            return false;
        }
        let at = self.acked.partition_point(|entry| entry.version <= version);
        let Item { op, fields, intents, .. } = item;
        self.acked.insert(at, Acked { version, op, fields, intents, hlc });
        true
    }

    /// Puts acknowledged changes up to `seq` into the body, which every change of others up to there has reached.
    pub(crate) fn fold_through(&mut self, seq: Seq, rules: &Rules) {
        let highest = self.acked.iter().rev().map(|entry| entry.version).find(|version| *version <= seq);
        self.fold_where(|entry| entry <= seq, rules);
        if let (Some(body), Some(highest)) = (&mut self.body, highest) {
            body.version = body.version.max(highest);
        }
    }

    /// Drops acknowledged changes up to `seq`: the body tells of everything up to there.
    pub(crate) fn drop_through(&mut self, seq: Seq) {
        self.acked.retain(|entry| entry.version > seq);
    }

    /// Forgets the version, so that whatever another epoch says is news, and keeps in mind what is held.
    pub(crate) fn leave_epoch(&mut self, rules: &Rules) {
        let highest = self.acked.last().map(|entry| entry.version);
        self.fold_where(|_| true, rules);
        if let Some(body) = &mut self.body {
            let version = highest.unwrap_or(body.version).max(body.version);
            body.version = Seq::ZERO;
            if self.held.is_none() && version > Seq::ZERO {
                self.held = Some(Box::new(Held { version, hlc: body.hlc, replaced: None }));
            }
        }
    }

    /// Takes what was held when the epoch changed: its version and clock, and its fields if it was not deleted.
    pub(crate) fn take_held(&mut self) -> Option<(Held, Option<Object>)> {
        let mut held = self.held.take()?;
        let fields = match held.replaced.take() {
            Some(fields) => fields,
            None => self.live_fields().cloned(),
        };
        Some((*held, fields))
    }

    pub(crate) fn holds_past(&self) -> bool {
        self.held.is_some()
    }

    /// Forgets the version of a body that the server did not tell.
    pub(crate) fn forget_version(&mut self) {
        if let Some(body) = &mut self.body {
            body.version = Seq::ZERO;
        }
    }

    /// Forgets a body that the server does not have.
    pub(crate) fn drop_body(&mut self) {
        self.body = None;
        self.acked.clear();
    }

    fn fold_where(&mut self, folded: impl Fn(Seq) -> bool, rules: &Rules) {
        let count = self.acked.partition_point(|entry| folded(entry.version));
        for entry in self.acked.drain(..count) {
            let Some(old) = &self.body else {
                if entry.op != ItemOp::Patch {
                    let fields = entry.change().effect(None, None, rules).map(Cow::into_owned);
                    self.body = Some(folded_body(fields, Seq::ZERO, None, entry.hlc));
                }
                continue;
            };
            let (version, scope, hlc) = (old.version, old.scope.clone(), old.hlc.max(entry.hlc));
            let live = (!old.deleted).then_some(Cow::Borrowed(&old.fields));
            let fields = entry.change().effect(live, None, rules).map(Cow::into_owned);
            self.body = Some(folded_body(fields, version, scope, hlc));
        }
    }
}

fn folded_body(fields: Option<Object>, version: Seq, scope: Option<ScopeName>, hlc: Hlc) -> Body {
    Body { version, deleted: fields.is_none(), fields: fields.unwrap_or_default(), scope, hlc }
}

#[cfg(test)]
mod tests {
    use driftline_model::{KindName, RecordId};

    use super::*;

    fn object(text: &str) -> Object {
        Object::from_canonical(text.to_owned()).expect("canonical")
    }

    fn shown(record: &Record) -> Option<String> {
        let view = record.view(std::iter::empty(), &Rules::default());
        view.map(|view| view.fields.as_str().to_owned())
    }

    fn tell(record: &mut Record, version: u64, change: ChangeKind, fields: &str) -> bool {
        let (version, scope) = (Seq::new(version), Some(ScopeName::tenant()));
        let told = Telling { version, change, fields: object(fields), scope, hlc: Hlc::ZERO };
        record.apply(told, &Rules::default())
    }

    fn acknowledge(record: &mut Record, version: u64, op: ItemOp, fields: &str) {
        let item = Item {
            op_id: None,
            n: None,
            kind: KindName::new("k").expect("a kind"),
            id: RecordId::new("r").expect("a record"),
            op,
            base_version: Seq::ZERO,
            fields: object(fields),
            intents: None,
            hlc: None,
            schema_version: 0,
            group: None,
            hash: 0,
        };
        record.acknowledge(Seq::new(version), item, Hlc::ZERO);
    }

    fn fold(record: &mut Record, seq: u64) {
        record.fold_through(Seq::new(seq), &Rules::default());
    }

    #[test]
    fn an_incoming_change_takes_own_writes_below_it_and_replaces_the_one_at_its_version() {
        let mut record = Record::default();
        tell(&mut record, 1, ChangeKind::Put, r#"{"a":0,"b":0,"c":0}"#);
        for (version, fields) in [(4, r#"{"b":4}"#), (3, r#"{"a":3,"b":3}"#), (6, r#"{"c":6}"#)] {
            acknowledge(&mut record, version, ItemOp::Patch, fields);
        }
        assert_eq!(shown(&record).as_deref(), Some(r#"{"a":3,"b":4,"c":6}"#));
        assert_eq!(record.version(), Seq::new(1), "a bare ack moves no version");

        assert!(tell(&mut record, 5, ChangeKind::Patch, r#"{"b":5}"#));
        assert_eq!(record.body().expect("a body").fields, object(r#"{"a":3,"b":5,"c":0}"#));
        assert_eq!(shown(&record).as_deref(), Some(r#"{"a":3,"b":5,"c":6}"#));

        assert!(tell(&mut record, 6, ChangeKind::Patch, r#"{"c":66}"#));
        assert_eq!(shown(&record).as_deref(), Some(r#"{"a":3,"b":5,"c":66}"#));
        assert!(!tell(&mut record, 6, ChangeKind::Put, "{}"), "only higher versions are news");
    }

    #[test]
    fn folding_moves_the_version_and_keeps_what_is_above() {
        let mut record = Record::default();
        acknowledge(&mut record, 2, ItemOp::Create, r#"{"a":2}"#);
        acknowledge(&mut record, 3, ItemOp::Delete, "{}");
        acknowledge(&mut record, 9, ItemOp::Create, r#"{"b":9}"#);
        fold(&mut record, 2);
        assert_eq!((record.version(), shown(&record).as_deref()), (Seq::new(2), Some(r#"{"b":9}"#)));
        fold(&mut record, 8);
        let body = record.body().expect("a tombstone is kept");
        assert_eq!((body.version, body.deleted, body.fields.is_empty()), (Seq::new(3), true, true));
        fold(&mut record, 9);
        assert_eq!((record.version(), shown(&record).as_deref()), (Seq::new(9), Some(r#"{"b":9}"#)));
    }

    #[test]
    fn a_patch_makes_nothing_of_nothing() {
        let mut record = Record::default();
        acknowledge(&mut record, 2, ItemOp::Patch, r#"{"a":2}"#);
        assert_eq!(shown(&record), None);
        fold(&mut record, 2);
        assert!(record.is_empty());
    }

    #[test]
    fn an_eviction_leaves_nothing_but_what_is_newer() {
        let mut record = Record::default();
        tell(&mut record, 5, ChangeKind::Put, r#"{"a":5}"#);
        assert!(!tell(&mut record, 4, ChangeKind::Evict, "{}"), "the body is newer");
        acknowledge(&mut record, 6, ItemOp::Patch, r#"{"a":6}"#);
        assert!(tell(&mut record, 6, ChangeKind::Evict, "{}"));
        assert!(record.is_empty());
        assert!(tell(&mut record, 3, ChangeKind::Put, r#"{"a":3}"#), "a grant's put of any version is news");
    }

    #[test]
    fn a_scope_is_learned_later() {
        let mut record = Record::default();
        acknowledge(&mut record, 2, ItemOp::Create, r#"{"a":2}"#);
        fold(&mut record, 2);
        assert_eq!(record.body().and_then(|body| body.scope.clone()), None);
        assert!(!tell(&mut record, 2, ChangeKind::Put, r#"{"a":2}"#));
        assert_eq!(record.body().and_then(|body| body.scope.clone()), Some(ScopeName::tenant()));
    }
}
