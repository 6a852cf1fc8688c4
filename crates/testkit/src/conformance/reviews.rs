//! What waits for a reviewer, and the list of decisions.

use std::sync::Arc;

use driftline_conflict::{Granularity, Op, Policy, ReviewReason, Strategy, Winner};
use driftline_engine::{
    AuditEntry, AuditQuery, ConflictPlace, ConflictQuery, ConflictRow, ConflictStatus, Resolved, Store,
    SubmissionResult,
};
use driftline_model::{ConflictId, Seq};
use driftline_protocol::ItemCode::{Applied, ConflictPending, Merged, Superseded};
use driftline_protocol::Resolution;

use super::scopes::{fields, push, team};
use super::{Bed, codes_of, kind_name, owner_of};
use crate::batch::{Author, create, patch, resolve};
use crate::wait::block_on;
use crate::world::World;

fn manual() -> Arc<Policy> {
    Arc::new(Policy { strategy: Strategy::Manual, version: 7 })
}

fn conflict<S: Store>(bed: &Bed<S>, author: &Author, conflict_id: &ConflictId) -> Option<ConflictRow> {
    block_on(bed.store.conflict(author.tenant, conflict_id)).expect("a read")
}

fn every_conflict(author: &Author) -> ConflictQuery {
    ConflictQuery {
        scopes: author.scopes(),
        kinds: Vec::new(),
        id: None,
        device: None,
        open: None,
        after: None,
        rows: 1000,
    }
}

fn listed<S: Store>(bed: &Bed<S>, author: &Author, query: ConflictQuery) -> Vec<ConflictRow> {
    block_on(bed.store.conflicts(author.tenant, query)).expect("a list")
}

/// Makes a record of one device and sets a change of another one aside.
fn set_aside<S: Store>(bed: &Bed<S>, ada: &Author, bob: &Author, id: &str) -> SubmissionResult {
    let base = bed.check_push(ada, [create(id, r#"{"a":1,"b":1}"#)], &[Applied])[0].version;
    let base = base.map_or(0, Seq::number);
    bed.check_push(ada, [patch(id, base, r#"{"a":2}"#)], &[Applied]);
    let draft = patch(id, base, r#"{"a":3}"#).policy(&manual());
    bed.check_push(bob, [draft], &[ConflictPending]).remove(0)
}

pub(super) fn a_change_waits_and_is_decided<S: Store>(bed: &Bed<S>) {
    let (ada, bob) = (bed.author("ada", "phone"), bed.author("bob", "tablet"));
    let result = set_aside(bed, &ada, &bob, "x");
    let name = result.conflict_id.expect("it has a name");
    let row = conflict(bed, &ada, &name).expect("it is stored");
    assert_eq!((row.kind.as_str(), row.id.as_str(), row.scope.as_str()), ("note", "x", "tenant"));
    assert_eq!((row.device, row.device_key.user(), row.device_key.device()), (bob.device, "bob", "tablet"));
    assert_eq!((row.op, row.reason, &row.status), (Op::Patch, ReviewReason::Manual, &ConflictStatus::Open));
    assert_eq!((row.base_version, row.version, row.policy_version), (Seq::new(1), Seq::new(2), 7));
    assert_eq!((row.client.as_str(), row.server.as_str()), (r#"{"a":3}"#, r#"{"a":2}"#));
    assert_eq!(row.opened_ms, World::BEGIN_MS);
    assert_eq!(bed.note(&ada, "x").record.fields.as_str(), r#"{"a":2,"b":1}"#, "what is stored stays");
    let own = bed.row(&ada, "$conflicts", name.as_str()).expect("it is a record too");
    assert_eq!((own.record.version, own.deleted, own.scope.as_str()), (row.seq, false, "tenant"));
    assert_eq!(conflict(bed, &ada, &"unheard-of".parse().expect("a name")), None);
    let other = Author::join(&bed.store, "other", "ada", "phone");
    assert_eq!(conflict(bed, &other, &name), None, "of no other tenant");

    bed.world.clock.advance(1000);
    let draft = resolve("x", name.as_str(), Resolution::Merged, r#"{"a":9}"#).policy(&manual());
    let decided = bed.push(&ada, [draft.clone()]).remove(0);
    let Some(Resolved::Done(done)) = decided.resolved.as_deref() else { panic!("{decided:?}") };
    let status = ConflictStatus::Resolved {
        resolution: Resolution::Merged,
        by: "ada".into(),
        at_ms: World::BEGIN_MS + 1000,
    };
    assert_eq!(done.status, status);
    assert_eq!(conflict(bed, &ada, &name).as_ref(), Some(done));
    assert_eq!(bed.note(&ada, "x").record.fields.as_str(), r#"{"a":9,"b":1}"#);
    assert!(bed.row(&ada, "$conflicts", name.as_str()).expect("a tombstone").deleted);
    // The device's next change is a change again.
    let version = bed.note(&ada, "x").record.version.number();
    bed.check_push(&bob, [patch("x", version, r#"{"a":4}"#).policy(&manual())], &[Applied]);
}

pub(super) fn later_changes_join<S: Store>(bed: &Bed<S>) {
    let (ada, bob) = (bed.author("ada", "phone"), bed.author("bob", "tablet"));
    let eve = bed.author("eve", "phone");
    let first = set_aside(bed, &ada, &bob, "x").conflict_id;
    // Known from the store, in a commit group of their own.
    let again = patch("x", 1, r#"{"b":5}"#).policy(&manual());
    let joined = bed.check_push(&bob, [again.clone()], &[ConflictPending]).remove(0).conflict_id;
    assert_eq!(first, joined);
    let row = conflict(bed, &ada, &first.clone().expect("a name")).expect("it is stored");
    assert_eq!((row.client.as_str(), row.status.is_open()), (r#"{"a":3,"b":5}"#, true));
    // Another device's change waits beside it.
    let beside = bed.check_push(&eve, [patch("x", 1, r#"{"a":6}"#).policy(&manual())], &[ConflictPending]);
    assert_ne!(beside[0].conflict_id, first);
    let open = ConflictQuery { open: Some(true), ..every_conflict(&ada) };
    assert_eq!(listed(bed, &ada, open).len(), 2);
}

pub(super) fn a_resend_names_the_conflict_and_the_winners<S: Store>(bed: &Bed<S>) {
    let (ada, bob) = (bed.author("ada", "phone"), bed.author("bob", "tablet"));
    bed.check_push(&ada, [create("x", r#"{"\"é\n":1,"a":1}"#)], &[Applied]);
    bed.check_push(&ada, [patch("x", 1, r#"{"\"é\n":2,"a":2}"#)], &[Applied]);
    let server_wins =
        Arc::new(Policy { strategy: Strategy::ServerWins { granularity: Granularity::Field }, version: 1 });
    for (draft, winner) in [
        (patch("x", 1, r#"{"\"é\n":3,"a":3}"#).n(1).op_id("lose").policy(&server_wins), Winner::Server),
        (patch("x", 1, r#"{"a":3}"#).n(2).op_id("wait").policy(&manual()), Winner::Held),
    ] {
        let first = bed.push(&bob, [draft.clone()]).remove(0);
        assert!(!first.winners.is_empty() && first.winners.iter().all(|(_, by)| *by == winner), "{first:?}");
        let again = bed.push(&bob, [draft]).remove(0);
        assert!(again.duplicate);
        assert_eq!((again.winners, again.conflict_id), (first.winners, first.conflict_id));
    }
}

pub(super) fn conflicts_are_listed_in_the_order_of_their_opening<S: Store>(bed: &Bed<S>) {
    let (ada, bob) = (bed.author("ada", "phone"), bed.author("bob", "tablet"));
    let mut names = Vec::new();
    for at in 0..12_u64 {
        // Some are opened in the same millisecond.
        bed.world.clock.set(World::BEGIN_MS + at / 3 * 10);
        names.push(set_aside(bed, &ada, &bob, &format!("x{at}")).conflict_id.expect("a name"));
    }
    for at in [1, 5] {
        let draft =
            resolve(&format!("x{at}"), names[at].as_str(), Resolution::Server, "{}").policy(&manual());
        bed.push(&ada, [draft]);
    }
    let all = listed(bed, &ada, every_conflict(&ada));
    let places: Vec<ConflictPlace> = all.iter().map(place_of).collect();
    assert!(places.is_sorted() && places.len() == 12, "{places:?}");
    let of = |query: ConflictQuery| listed(bed, &ada, query).len();
    assert_eq!(of(ConflictQuery { open: Some(true), ..every_conflict(&ada) }), 10);
    assert_eq!(of(ConflictQuery { open: Some(false), ..every_conflict(&ada) }), 2);
    assert_eq!(of(ConflictQuery { kinds: vec![kind_name("car")], ..every_conflict(&ada) }), 0);
    assert_eq!(of(ConflictQuery { kinds: vec![kind_name("note")], ..every_conflict(&ada) }), 12);
    assert_eq!(of(ConflictQuery { id: "x3".parse().ok(), ..every_conflict(&ada) }), 1);
    assert_eq!(of(ConflictQuery { device: Some("tablet".into()), ..every_conflict(&ada) }), 12);
    assert_eq!(of(ConflictQuery { device: Some("phone".into()), ..every_conflict(&ada) }), 0);
    assert_eq!(of(ConflictQuery { scopes: vec![owner_of(&ada)], ..every_conflict(&ada) }), 0);
    assert_eq!(of(ConflictQuery { scopes: Vec::new(), ..every_conflict(&ada) }), 0);
    for open in [None, Some(true), Some(false)] {
        let whole = listed(bed, &ada, ConflictQuery { open, ..every_conflict(&ada) });
        for rows in [1, 2, 5, 12] {
            let mut query = ConflictQuery { open, rows, ..every_conflict(&ada) };
            let mut paged: Vec<ConflictRow> = Vec::new();
            loop {
                let page = listed(bed, &ada, query.clone());
                assert!(page.len() <= rows);
                let Some(last) = page.last() else { break };
                query.after = Some(place_of(last));
                paged.extend(page);
            }
            assert_eq!(paged, whole, "{rows} rows a page");
        }
    }
}

fn place_of(row: &ConflictRow) -> ConflictPlace {
    ConflictPlace { opened_ms: row.opened_ms, conflict_id: row.conflict_id.clone() }
}

pub(super) fn a_conflict_follows_its_record<S: Store>(bed: &Bed<S>) {
    let (ada, bob) = (bed.author("ada", "phone"), bed.author("bob", "tablet"));
    push(bed, &ada, [create("x", &fields("a"))]);
    push(bed, &ada, [patch("x", 1, r#"{"n":2}"#)]);
    push(bed, &bob, [patch("x", 1, r#"{"n":3}"#).policy(&manual())]);
    let of = |name: &str| ConflictQuery { scopes: vec![team(name)], ..every_conflict(&ada) };
    let before = listed(bed, &ada, of("a"));
    assert_eq!((before.len(), listed(bed, &ada, of("b")).len()), (1, 0));
    push(bed, &ada, [patch("x", before[0].version.number(), &fields("b"))]);
    push(bed, &bob, [patch("x", 1, r#"{"n":4}"#).policy(&manual())]);
    assert_eq!((listed(bed, &ada, of("a")).len(), listed(bed, &ada, of("b")).len()), (0, 1));
    let own = bed.row(&ada, "$conflicts", before[0].conflict_id.as_str()).expect("its record");
    assert_eq!(own.scope, team("b"));
}

pub(super) fn decisions_are_listed_newest_first<S: Store>(bed: &Bed<S>) {
    let (ada, bob) = (bed.author("ada", "phone"), bed.author("bob", "tablet"));
    let policy =
        Arc::new(Policy { strategy: Strategy::ServerWins { granularity: Granularity::Field }, version: 3 });
    for at in 0..9_u64 {
        bed.world.clock.set(World::BEGIN_MS + at * 10);
        let id = format!("x{}", at % 2);
        let kind = if at % 3 == 0 { "car" } else { "note" };
        let name = format!("{id}-{at}");
        bed.push(&ada, [create(&name, r#"{"a":1}"#).kind(kind)]);
        let lost = patch(&name, 0, r#"{"a":2}"#).kind(kind).op_id(&format!("op{at}"));
        let author = if at == 4 { &ada } else { &bob };
        if at % 2 == 0 {
            bed.push(author, [lost.policy(&policy)]);
        } else {
            bed.push(author, [lost]);
        }
    }
    let list = |query: AuditQuery| -> Vec<AuditEntry> {
        block_on(bed.store.audit(ada.tenant, AuditQuery { rows: query.rows.max(1), ..query }))
            .expect("a list")
    };
    let every = || AuditQuery { scopes: ada.scopes(), rows: 1000, ..AuditQuery::default() };
    let all = list(every());
    assert!(all.len() >= 8, "{}", all.len());
    assert!(all.windows(2).all(|pair| pair[0].row.audit_id > pair[1].row.audit_id));
    let last = &all[0];
    assert_eq!(
        (last.id.as_str(), last.kind.as_str(), &*last.user, &*last.strategy),
        ("x0-8", "note", "bob", "server_wins")
    );
    assert_eq!(
        (last.row.code, last.row.at_ms, last.row.policy_version),
        (Superseded, World::BEGIN_MS + 80, 3)
    );
    assert_eq!(
        (last.row.device.user(), last.row.device.device(), last.correlation.as_str()),
        ("bob", "tablet", "test")
    );
    assert_eq!(last.row.op_id.as_ref().map(|op_id| op_id.as_str()), Some("op8"));

    type Wanted = fn(&AuditEntry) -> bool;
    let table: [(AuditQuery, Wanted); 11] = [
        (AuditQuery { kinds: vec![kind_name("car")], ..every() }, |entry| entry.kind.as_str() == "car"),
        (AuditQuery { id: "x0-8".parse().ok(), ..every() }, |entry| entry.id.as_str() == "x0-8"),
        (AuditQuery { device: Some("tablet".into()), ..every() }, |entry| {
            entry.row.device.device() == "tablet"
        }),
        (AuditQuery { strategy: Some("server_wins".into()), ..every() }, |entry| {
            entry.strategy == "server_wins"
        }),
        (AuditQuery { code: Some(Superseded), ..every() }, |entry| entry.row.code == Superseded),
        (AuditQuery { from_ms: Some(World::BEGIN_MS + 30), ..every() }, |entry| {
            entry.row.at_ms >= World::BEGIN_MS + 30
        }),
        (AuditQuery { until_ms: Some(World::BEGIN_MS + 30), ..every() }, |entry| {
            entry.row.at_ms < World::BEGIN_MS + 30
        }),
        (AuditQuery { kinds: vec![kind_name("unheard_of")], ..every() }, |_| false),
        (AuditQuery { scopes: vec![owner_of(&ada)], ..every() }, |_| false),
        (AuditQuery { scopes: Vec::new(), ..every() }, |_| false),
        (
            AuditQuery {
                kinds: vec![kind_name("note")],
                code: Some(Merged),
                until_ms: Some(u64::MAX),
                ..every()
            },
            |entry| entry.kind.as_str() == "note" && entry.row.code == Merged,
        ),
    ];
    for (query, wanted) in table {
        let whole: Vec<AuditEntry> = all.iter().filter(|entry| wanted(entry)).cloned().collect();
        assert_eq!(list(query.clone()), whole, "{query:?}");
        let mut paged: Vec<AuditEntry> = Vec::new();
        let mut query = AuditQuery { rows: 2, ..query };
        loop {
            let page = list(query.clone());
            assert!(page.len() <= 2);
            let Some(last) = page.last() else { break };
            query.before = Some(last.row.audit_id);
            paged.extend(page);
        }
        assert_eq!(paged, whole, "{query:?}");
    }
    let other = Author::join(&bed.store, "other", "ada", "phone");
    assert_eq!(block_on(bed.store.audit(other.tenant, every())), Ok(Vec::new()), "of no other tenant");
}

pub(super) fn a_failed_group_sets_nothing_aside<S: Store>(bed: &Bed<S>) {
    let (ada, bob) = (bed.author("ada", "phone"), bed.author("bob", "tablet"));
    bed.check_push(&ada, [create("x", r#"{"a":1}"#)], &[Applied]);
    bed.check_push(&ada, [patch("x", 1, r#"{"a":2}"#)], &[Applied]);
    let before = bed.head(ada.tenant);
    let drafts =
        [patch("x", 1, r#"{"a":3}"#).group("g").policy(&manual()), patch("nowhere", 0, "{}").group("g")];
    assert_ne!(codes_of(&bed.push(&bob, drafts))[0], ConflictPending);
    assert_eq!(listed(bed, &ada, every_conflict(&ada)), []);
    assert_eq!(bed.head(ada.tenant), before);
    super::sums::check_sums(bed, &ada);
}
