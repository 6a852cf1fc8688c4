//! A reader as a device is one: it takes rows by their versions and remembers a cursor.

use std::collections::BTreeMap;

use driftline_engine::{Engine, Identity, NullObserver, Only, PageQuery, Place, PullFault, Store};
use driftline_model::{KindName, Object, ObjectBuilder, RecordId, ScopeName, Seq};
use driftline_protocol::{
    Change, ChangeKind, Checksum, Encoding, Head as OutHead, Outbound, RequestServerData, Rows,
    ServerMessage, row_sum,
};
use driftline_testkit::block_on;

use super::faulty::{Faulty, spoil};

pub(crate) type Key = (KindName, RecordId);

pub(crate) struct Reader {
    pub(crate) identity: Identity,
    /// The kinds it wants; empty: all.
    pub(crate) wanted: Vec<KindName>,
    pub(crate) cursor: Option<String>,
    /// Versions and fields of the rows it was told of; no fields: deleted.
    pub(crate) rows: BTreeMap<Key, (Seq, Option<Object>)>,
    /// The scope with which each row was told.
    pub(crate) scopes: BTreeMap<Key, ScopeName>,
    /// How many rows came as a patch, and how many left.
    pub(crate) patches: u64,
    pub(crate) evictions: u64,
}

impl Reader {
    pub(crate) fn new(identity: Identity, wanted: Vec<KindName>) -> Self {
        Self {
            identity,
            wanted,
            cursor: None,
            rows: BTreeMap::new(),
            scopes: BTreeMap::new(),
            patches: 0,
            evictions: 0,
        }
    }

    fn start_anew(&mut self) {
        self.cursor = None;
        self.rows.clear();
    }

    /// Pulls a page; tells whether it is caught up then. Rows of kinds that it wants no more are dropped: the next
    /// cursor does not cover them.
    pub(crate) fn pull(
        &mut self,
        engine: &Engine<Faulty, NullObserver>,
        limit: Option<u64>,
    ) -> Result<bool, String> {
        let wanted = &self.wanted;
        self.rows.retain(|(kind, _), _| wanted.is_empty() || wanted.contains(kind));
        let (data_types, cursor) = (Some(self.wanted.clone()), self.cursor.clone());
        let request = RequestServerData { data_types, cursor, limit, range: None };
        let data = match block_on(engine.pull(&self.identity, request)) {
            Ok(data) => data,
            Err(PullFault::CursorExpired(_) | PullFault::EpochChanged(_)) => {
                self.start_anew();
                return Ok(false);
            }
            Err(fault) => return Err(fault.to_string()),
        };
        let frame = Outbound::ServerData(data).encode(&OutHead::default());
        let page = match ServerMessage::decode(Encoding::Json, frame.as_bytes()) {
            Ok(ServerMessage::Page(page)) => page,
            other => return Err(format!("{frame} reads as {other:?}")),
        };
        for change in &page.changes {
            self.take(change)?;
        }
        let Rows { cursor, seq, has_more, checksums, .. } = page;
        if !checksums.is_empty() {
            self.check_sums(&checksums)?;
        }
        self.cursor = Some(spoil(engine.store(), &self.identity.tenant_id, cursor, seq));
        Ok(!has_more)
    }

    /// Takes a row if it is newer than what is there.
    pub(crate) fn take(&mut self, change: &Change) -> Result<(), String> {
        let key = (change.kind.clone(), change.id.clone());
        let known = self.rows.get(&key);
        // What is lost is lost in every kind, also in those that the reader wants no more.
        if change.change == ChangeKind::Evict {
            if known.is_some_and(|(version, _)| *version <= change.version) {
                self.rows.remove(&key);
                self.evictions += 1;
            }
            return Ok(());
        }
        if !self.wanted.is_empty() && !self.wanted.contains(&change.kind) {
            return Err(format!("{change:?} is of a kind that nobody wants"));
        }
        if !self.identity.scopes.contains(&change.scope) {
            return Err(format!("{change:?} is none of the reader's business"));
        }
        if known.is_some_and(|(version, _)| *version >= change.version) {
            return Ok(());
        }
        let fields = match change.change {
            ChangeKind::Put => Some(change.fields.clone()),
            ChangeKind::Delete => None,
            ChangeKind::Patch => {
                self.patches += 1;
                let Some((_, Some(fields))) = known else {
                    return Err(format!("{change:?} came without the record"));
                };
                Some(merged(fields, &change.fields))
            }
            ChangeKind::Evict => unreachable!("told above"),
        };
        self.scopes.insert(key.clone(), change.scope.clone());
        self.rows.insert(key, (change.version, fields));
        Ok(())
    }

    /// Compares what the server says that the reader should hold with what it holds.
    fn check_sums(&self, told: &[Checksum]) -> Result<(), String> {
        let mut own: BTreeMap<(&ScopeName, &KindName), (u64, u64)> = BTreeMap::new();
        for (key, (version, fields)) in &self.rows {
            if fields.is_some() {
                let sum = own.entry((&self.scopes[key], &key.0)).or_default();
                sum.0 += 1;
                sum.1 = sum.1.wrapping_add(row_sum(&key.0, &key.1, *version));
            }
        }
        let told: BTreeMap<_, _> =
            told.iter().map(|sum| ((&sum.scope, &sum.kind), (sum.count, sum.sum))).collect();
        if own == told { Ok(()) } else { Err(format!("{own:?} instead of {told:?}")) }
    }

    /// Compares with everything that the reader may see at this moment.
    pub(crate) fn check_equal<S: Store>(&self, store: &S) -> Result<(), String> {
        let query = PageQuery {
            tenant: self.identity.tenant,
            scopes: self.identity.scopes.clone(),
            kinds: self.wanted.clone(),
            place: Place::Key { after: None, only: Only::All },
            rows: usize::MAX,
            bytes: usize::MAX,
            sums: false,
        };
        let page = block_on(store.page(query)).map_err(|error| error.to_string())?;
        let server: BTreeMap<Key, (Seq, Object)> = page
            .rows
            .into_iter()
            .map(|row| ((row.kind, row.id), (row.record.version, row.record.fields)))
            .collect();
        let own: BTreeMap<Key, (Seq, Object)> = self
            .rows
            .iter()
            .filter_map(|(key, (version, fields))| Some((key.clone(), (*version, fields.clone()?))))
            .collect();
        if own == server { Ok(()) } else { Err(format!("caught up with {own:#?} instead of {server:#?}")) }
    }
}

/// Writes fields over others.
fn merged(old: &Object, new: &Object) -> Object {
    let all: BTreeMap<&str, &str> = old.iter().chain(new.iter()).collect();
    let mut built = ObjectBuilder::with_capacity(64, all.len());
    // The histories use names of ASCII letters, whose canonical order is that of their bytes.
    for (name, value) in all {
        built.push(name, value);
    }
    built.finish()
}
