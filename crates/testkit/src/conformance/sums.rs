//! Sums of live rows.

use std::collections::BTreeMap;
use std::sync::Arc;

use driftline_conflict::{Policy, Strategy};
use driftline_engine::{PageQuery, Place, Retention, Row, ScopeSum, Store, SumQuery};
use driftline_model::{KindName, RecordId, ScopeName};
use driftline_protocol::row_sum;

use super::scopes::{fields, push, reader, team, wander};
use super::{Bed, everything, kind_name};
use crate::batch::{Author, create, delete, patch};
use crate::rng::Rng;
use crate::wait::block_on;

/// What the sums of rows are, counted anew.
fn recount(rows: &[Row]) -> BTreeMap<(ScopeName, KindName), (u64, u64)> {
    let mut sums: BTreeMap<_, (u64, u64)> = BTreeMap::new();
    for row in rows.iter().filter(|row| !row.deleted) {
        let (count, sum) = sums.entry((row.scope.clone(), row.kind.clone())).or_default();
        *count += 1;
        *sum = sum.wrapping_add(row_sum(&row.kind, &row.id, row.record.version));
    }
    sums
}

fn listed(sums: Vec<ScopeSum>) -> BTreeMap<(ScopeName, KindName), (u64, u64)> {
    sums.into_iter().map(|sum| ((sum.scope, sum.kind), (sum.count, sum.sum))).collect()
}

/// Everything of a tenant, with the sums that the store keeps.
pub(super) fn check_sums<S: Store>(bed: &Bed<S>, author: &Author) {
    let scopes: Vec<ScopeName> = author.scopes().into_iter().chain(["a", "b", "c", "d"].map(team)).collect();
    let query = PageQuery { scopes, rows: usize::MAX, bytes: usize::MAX, sums: true, ..everything(author) };
    let page = bed.page(query);
    assert_eq!(listed(page.sums), recount(&page.rows));
}

pub(super) fn sums_are_those_of_a_recount<S: Store>(bed: &Bed<S>) {
    let ada = bed.author("ada", "phone");
    let mut rng = Rng::new(8);
    check_sums(bed, &ada);
    for round in 0..12 {
        wander(bed, &ada, &mut rng, 5);
        bed.push(&ada, [create(&format!("t{round}"), "{}"), create(&format!("o{round}"), "{}").owned()]);
        check_sums(bed, &ada);
    }
    // What is purged was not in the sums any more.
    block_on(bed.store.prune(u64::MAX / 4, &Retention::default())).expect("a prune");
    check_sums(bed, &ada);

    // Only of the reader's scopes and wanted kinds, and only when they are asked for.
    let query = PageQuery {
        sums: true,
        kinds: vec![kind_name("car")],
        ..reader(&ada, "ab", Place::After(bed.head(ada.tenant).seq))
    };
    let sums = bed.page(query.clone()).sums;
    assert!(!sums.is_empty());
    assert!(
        sums.iter().all(|sum| sum.kind == kind_name("car") && [team("a"), team("b")].contains(&sum.scope))
    );
    assert_eq!(bed.page(PageQuery { sums: false, ..query.clone() }).sums, []);
    assert_eq!(bed.page(PageQuery { scopes: Vec::new(), ..query }).sums, []);
    let other = Author::join(&bed.store, "other", "ada", "phone");
    let query = PageQuery { sums: true, ..reader(&other, "abcd", Place::After(bed.head(other.tenant).seq)) };
    assert_eq!(bed.page(query).sums, [], "of no other tenant");
}

pub(super) fn a_scope_without_rows_has_no_sum<S: Store>(bed: &Bed<S>) {
    let ada = bed.author("ada", "phone");
    push(bed, &ada, [create("x", &fields("a")), create("y", &fields("a"))]);
    push(bed, &ada, [patch("x", 1, &fields("b")), delete("y", 2)]);
    let query = PageQuery { sums: true, ..reader(&ada, "ab", Place::After(bed.head(ada.tenant).seq)) };
    let sums = bed.page(query).sums;
    let scopes: Vec<_> = sums.iter().map(|sum| (sum.scope.as_str(), sum.count)).collect();
    assert_eq!(scopes, [("group:team:b", 1)]);
}

pub(super) fn sums_hold_what_waits_for_a_reviewer<S: Store>(bed: &Bed<S>) {
    let (ada, bob) = (bed.author("ada", "phone"), bed.author("bob", "phone"));
    let policy = Arc::new(Policy { strategy: Strategy::Manual, version: 1 });
    let mut rng = Rng::new(9);
    let mut waited = false;
    for _ in 0..60 {
        let author = if rng.percent(50) { &ada } else { &bob };
        let id = format!("x{}", rng.below(4));
        let base = rng.below(bed.head(ada.tenant).seq.number() + 1);
        let body = format!(r#"{{"n":{},"team":"{}"}}"#, rng.below(9), ["a", "b"][rng.place(2)]);
        let draft = if rng.percent(20) { create(&id, &body) } else { patch(&id, base, &body) };
        push(bed, author, [draft.policy(&policy)]);
        let query = PageQuery {
            kinds: vec![kind_name("$conflicts")],
            ..reader(&ada, "ab", Place::After(driftline_model::Seq::ZERO))
        };
        waited |= !bed.page(query).rows.is_empty();
        check_sums(bed, &ada);
    }
    assert!(waited, "something was set aside");
}

pub(super) fn parts_cover_a_range_without_a_gap<S: Store>(bed: &Bed<S>) {
    let ada = bed.author("ada", "phone");
    wander(bed, &ada, &mut Rng::new(10), 40);
    let id = |id: &str| Some(RecordId::new(id).expect("an id"));
    let rows = bed
        .page(PageQuery { rows: 1000, ..reader(&ada, "a", Place::After(driftline_model::Seq::ZERO)) })
        .rows;
    for (after, until) in
        [(None, None), (id("x13"), None), (None, id("x25")), (id("x1"), id("x8")), (id("x9"), id("x1"))]
    {
        let live = rows.iter().filter(|row| {
            !row.deleted
                && row.kind == kind_name("note")
                && after.as_ref().is_none_or(|after| row.id > *after)
                && until.as_ref().is_none_or(|until| row.id <= *until)
        });
        let live: Vec<&Row> = live.collect();
        for parts in [0, 1, 2, 3, 16, 1000] {
            let query = SumQuery {
                tenant: ada.tenant,
                kind: kind_name("note"),
                scope: team("a"),
                after: after.clone(),
                until: until.clone(),
                parts,
            };
            let (head, found) = block_on(bed.store.sums(query)).expect("sums");
            assert_eq!(head, bed.head(ada.tenant));
            assert!((1..=parts.max(1)).contains(&found.len()), "{parts} parts wanted: {found:?}");
            assert_eq!((&found[0].after, &found[found.len() - 1].until), (&after, &until));
            assert!(found.windows(2).all(|pair| pair[0].until.is_some() && pair[0].until == pair[1].after));
            let largest = found.iter().map(|part| part.count).max().unwrap_or_default();
            assert!(
                largest <= (live.len() as u64).div_ceil(parts.max(1) as u64),
                "about equally many: {found:?}"
            );
            for part in &found {
                let within = live.iter().filter(|row| {
                    part.after.as_ref().is_none_or(|after| row.id > *after)
                        && part.until.as_ref().is_none_or(|until| row.id <= *until)
                });
                let hashes = within.map(|row| row_sum(&row.kind, &row.id, row.record.version));
                let hashes: Vec<u64> = hashes.collect();
                let sum = hashes.iter().copied().fold(0, u64::wrapping_add);
                assert_eq!((part.count, part.sum), (hashes.len() as u64, sum), "{part:?}");
            }
        }
    }
    let unheard = SumQuery {
        tenant: ada.tenant,
        kind: kind_name("unheard_of"),
        scope: team("a"),
        after: None,
        until: None,
        parts: 4,
    };
    let (_, parts) = block_on(bed.store.sums(unheard)).expect("sums");
    assert_eq!((parts.len(), parts[0].count, parts[0].sum), (1, 0, 0));
}
