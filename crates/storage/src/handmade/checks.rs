//! What can be read, beside what a plain model says.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use driftline_conflict::{Policy, Strategy};
use driftline_engine::{
    AuditQuery, ConflictPlace, ConflictQuery, GroupState, Left, Only, Page, PageQuery, Place, Row, Store,
    SumQuery,
};
use driftline_model::{KindName, RecordId, ScopeName, Seq};
use driftline_protocol::{ItemCode, row_sum};
use driftline_testkit::{block_on, patch};

use super::history::{History, KINDS, SCOPES, scope, some_kind, some_scope};
use crate::{MemoryStore, SqliteStore};

/// Everything of a page but the epoch, which each store draws for itself.
fn shown(page: &Page) -> String {
    let Page { head, rows, left, more, sums } = page;
    format!("{} {more} {left:#?} {sums:#?} {rows:#?}", head.seq)
}

/// The place after a page.
fn next(query: &PageQuery, page: &Page) -> PageQuery {
    let mut next = query.clone();
    let last_row = page.rows.last().map(|row| (row.kind.clone(), row.id.clone()));
    let last_left = page.left.last().map(|left| (left.kind.clone(), left.id.clone()));
    match &mut next.place {
        Place::After(at) => {
            let rows = page.rows.iter().map(|row| row.record.version);
            *at = rows
                .chain(page.left.iter().map(|left| left.seq))
                .max()
                .expect("a page that is not the last holds something");
        }
        Place::Key { after, .. } => *after = last_row,
        Place::Lost { after, .. } => *after = last_left,
        Place::Range { after, .. } => *after = last_row.map(|(_, id)| id),
    }
    next
}

/// Reads to the end and gives everything that was told.
fn read(stores: (&impl Store, &impl Store), query: &PageQuery) -> (Vec<Row>, Vec<Left>) {
    let (mut rows, mut left) = (Vec::new(), Vec::new());
    let mut query = query.clone();
    loop {
        let page = block_on(stores.0.page(query.clone())).expect("a page");
        let other = block_on(stores.1.page(query.clone())).expect("a page");
        assert_eq!(shown(&page), shown(&other), "{query:#?}");
        assert!(page.rows.len() + page.left.len() <= query.rows, "a page keeps to its rows");
        let following = page.more.then(|| next(&query, &page));
        rows.extend(page.rows);
        left.extend(page.left);
        match following {
            Some(next) => query = next,
            None => return (rows, left),
        }
    }
}

type Key = (KindName, RecordId);

/// What the model says a reader is told.
fn told(history: &History, query: &PageQuery) -> (BTreeSet<Key>, BTreeSet<Key>) {
    let wants = |kind: &KindName| query.kinds.is_empty() || query.kinds.contains(kind);
    let mine = |row: &&Row| query.scopes.contains(&row.scope) && wants(&row.kind);
    let here = |kind: &KindName, id: &RecordId| {
        history.rows.get(&(kind.clone(), id.clone())).is_some_and(|row| query.scopes.contains(&row.scope))
    };
    let key = |row: &Row| (row.kind.clone(), row.id.clone());
    let gone = |scopes: &[ScopeName], after: Seq| -> BTreeSet<_> {
        let exits = history.exits.iter().filter(|((scope, kind, id), seq)| {
            scopes.contains(scope) && wants(kind) && **seq > after && !here(kind, id)
        });
        exits.map(|((_, kind, id), _)| (kind.clone(), id.clone())).collect()
    };
    let rows = history.rows.values();
    match &query.place {
        Place::After(after) => (
            rows.filter(mine).filter(|row| row.record.version > *after).map(key).collect(),
            gone(&query.scopes, *after),
        ),
        Place::Key { only, .. } => {
            let wanted = |row: &&Row| match only {
                Only::All => true,
                Only::Some { kinds, scopes } => kinds.contains(&row.kind) || scopes.contains(&row.scope),
            };
            (rows.filter(mine).filter(|row| !row.deleted).filter(wanted).map(key).collect(), BTreeSet::new())
        }
        Place::Lost { lost, .. } => {
            let here = rows.filter(|row| {
                lost.contains(&row.scope) && !query.scopes.contains(&row.scope) && wants(&row.kind)
            });
            (BTreeSet::new(), here.map(key).chain(gone(lost, Seq::ZERO)).collect())
        }
        Place::Range { kind, scope, after, until } => {
            let within = |row: &&Row| {
                (&row.kind, &row.scope) == (kind, scope)
                    && after.as_ref().is_none_or(|after| row.id > *after)
                    && until.as_ref().is_none_or(|until| row.id <= *until)
            };
            (rows.filter(mine).filter(|row| !row.deleted).filter(within).map(key).collect(), BTreeSet::new())
        }
    }
}

pub(super) fn check_pages(history: &mut History, stores: (&impl Store, &impl Store)) {
    for _ in 0..6 {
        let query = history.query();
        let (rows, left) = read(stores, &query);
        let (wanted, gone) = told(history, &query);
        let found: BTreeSet<_> = rows.iter().map(|row| (row.kind.clone(), row.id.clone())).collect();
        assert_eq!((rows.len(), &found), (wanted.len(), &wanted), "{query:#?}");
        let found: BTreeSet<_> = left.iter().map(|left| (left.kind.clone(), left.id.clone())).collect();
        assert_eq!(found, gone, "{query:#?}");
        for row in rows {
            assert_eq!(row, history.rows[&(row.kind.clone(), row.id.clone())]);
        }
    }
}

pub(super) fn check_sums(history: &mut History, stores: (&impl Store, &impl Store)) {
    let query = PageQuery {
        tenant: history.tenant,
        scopes: SCOPES.map(scope).to_vec(),
        kinds: Vec::new(),
        place: Place::After(history.head.seq),
        rows: 1,
        bytes: 1,
        sums: true,
    };
    let page = block_on(stores.1.page(query)).expect("a page");
    let found: BTreeMap<_, _> =
        page.sums.into_iter().map(|sum| ((sum.scope, sum.kind), (sum.count, sum.sum))).collect();
    assert_eq!(found, history.recount());
    for _ in 0..3 {
        let (after, until) = (history.id(), history.id());
        let query = SumQuery {
            tenant: history.tenant,
            kind: some_kind(&mut history.rng),
            scope: some_scope(&mut history.rng),
            after: after.clone(),
            until: until.clone(),
            parts: history.rng.place(6),
        };
        let (_, parts) = block_on(stores.0.sums(query.clone())).expect("sums");
        assert_eq!(block_on(stores.1.sums(query.clone())).expect("sums").1, parts, "{query:?}");
        assert_eq!(
            (&parts[0].after, &parts[parts.len() - 1].until),
            (&after, &until),
            "the ends are the range's"
        );
        assert!(
            parts.windows(2).all(|pair| pair[0].until.is_some() && pair[0].until == pair[1].after),
            "{parts:?}"
        );
        let within = history.rows.values().filter(|row| {
            !row.deleted
                && (&row.kind, &row.scope) == (&query.kind, &query.scope)
                && after.as_ref().is_none_or(|after| row.id > *after)
                && until.as_ref().is_none_or(|until| row.id <= *until)
        });
        let hashes: Vec<u64> = within.map(|row| row_sum(&row.kind, &row.id, row.record.version)).collect();
        assert_eq!(parts.iter().map(|part| part.count).sum::<u64>(), hashes.len() as u64);
        let total = |sums: &mut dyn Iterator<Item = u64>| sums.fold(0, u64::wrapping_add);
        assert_eq!(total(&mut parts.iter().map(|part| part.sum)), total(&mut hashes.iter().copied()));
    }
}

pub(super) fn check_lists(history: &mut History, stores: (&impl Store, &impl Store)) {
    for (name, row) in &history.conflicts {
        for found in [
            block_on(stores.0.conflict(history.tenant, name)),
            block_on(stores.1.conflict(history.tenant, name)),
        ] {
            assert_eq!(found.expect("a read").as_ref(), Some(row));
        }
    }
    for _ in 0..4 {
        let mut query = ConflictQuery {
            scopes: history.scopes(70),
            kinds: if history.rng.percent(60) { Vec::new() } else { history.kinds(60) },
            id: if history.rng.percent(30) { history.id() } else { None },
            device: history
                .rng
                .percent(30)
                .then(|| (*history.rng.pick(&["phone", "tablet", "none"])).to_owned()),
            open: *history.rng.pick(&[None, Some(true), Some(false)]),
            after: None,
            rows: *history.rng.pick(&[1, 3, 100]),
        };
        loop {
            let found = block_on(stores.0.conflicts(history.tenant, query.clone())).expect("a list");
            assert_eq!(
                block_on(stores.1.conflicts(history.tenant, query.clone())).expect("a list"),
                found,
                "{query:?}"
            );
            let Some(last) = found.last().filter(|_| found.len() == query.rows) else { break };
            query.after =
                Some(ConflictPlace { opened_ms: last.opened_ms, conflict_id: last.conflict_id.clone() });
        }
    }
    for _ in 0..4 {
        let mut query = AuditQuery {
            scopes: history.scopes(70),
            kinds: if history.rng.percent(60) { Vec::new() } else { history.kinds(60) },
            id: if history.rng.percent(30) { history.id() } else { None },
            device: history
                .rng
                .percent(30)
                .then(|| (*history.rng.pick(&["phone", "tablet", "none"])).to_owned()),
            strategy: history.rng.percent(30).then(|| "manual".to_owned()),
            code: history.rng.percent(20).then(|| *history.rng.pick(ItemCode::ALL)),
            from_ms: history.rng.percent(30).then(|| history.now_ms - history.rng.below(9000)),
            until_ms: history.rng.percent(30).then(|| history.now_ms - history.rng.below(9000)),
            before: None,
            rows: *history.rng.pick(&[1, 3, 100]),
        };
        loop {
            let found = block_on(stores.0.audit(history.tenant, query.clone())).expect("a list");
            assert_eq!(
                block_on(stores.1.audit(history.tenant, query.clone())).expect("a list"),
                found,
                "{query:?}"
            );
            let Some(last) = found.last().filter(|_| found.len() == query.rows) else { break };
            query.before = Some(last.row.audit_id);
        }
    }
}

/// What the stores load for a commit group is the same, and open conflicts only where they may be needed.
pub(super) fn check_loads(history: &mut History, memory: &MemoryStore, sqlite: &SqliteStore) {
    let manual = Arc::new(Policy { strategy: Strategy::Manual, version: 1 });
    let drafts = (0..12).map(|at| {
        let n = at * 3;
        let draft = patch(&format!("x{at}"), 0, "{}").kind(KINDS[1 + history.rng.place(2)]).n(n);
        let draft = if history.rng.percent(50) { draft.op_id(&format!("op-{n}")) } else { draft };
        if history.rng.percent(50) { draft.policy(&manual) } else { draft }
    });
    let batch = history.devices[0].batch(drafts);
    let (mine, theirs) =
        (memory.load_batch(&batch), block_on(sqlite.load_group(vec![batch.clone()])).expect("a load"));
    assert_eq!((&mine.by_op, &mine.by_n), (&theirs.by_op, &theirs.by_n));
    assert_eq!(mine.conflicts, theirs.conflicts);
    let rows = |state: &GroupState| {
        state.rows.values().flatten().map(|row| format!("{row:?}")).collect::<BTreeSet<_>>()
    };
    assert_eq!(rows(&mine), rows(&theirs));
    let reviewed: BTreeSet<Key> = batch
        .entries
        .iter()
        .filter(|entry| entry.may_review())
        .filter_map(|entry| Some((entry.kind.clone()?, entry.id.clone()?)))
        .collect();
    let open = history.conflicts.values().filter(|row| row.status.is_open());
    let wanted = open.filter(|row| reviewed.contains(&(row.kind.clone(), row.id.clone()))).count();
    assert_eq!(mine.conflicts.values().map(Vec::len).sum::<usize>(), wanted);
}
