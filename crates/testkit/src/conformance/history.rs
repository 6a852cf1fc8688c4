//! One record, and what explains it.

use std::sync::Arc;

use driftline_conflict::{Granularity, Policy, Strategy};
use driftline_engine::{History, Store};
use driftline_model::{Hlc, OpId, RecordId, Seq};
use driftline_protocol::Document;
use driftline_protocol::ItemCode::{Applied, Merged, Superseded};

use super::{Bed, everything, kind_name};
use crate::batch::{Author, create, delete, patch, restore};
use crate::rng::Rng;
use crate::wait::block_on;
use crate::world::World;

fn at(ms: u64) -> Hlc {
    Hlc::new(World::BEGIN_MS + ms, 0)
}

fn history<S: Store>(bed: &Bed<S>, author: &Author, id: &str) -> Option<History> {
    let id = RecordId::new(id).expect("an id");
    block_on(bed.store.history(author.tenant, &kind_name("note"), &id)).expect("a read")
}

pub(super) fn a_record_comes_back_as_it_was<S: Store>(bed: &Bed<S>) {
    let (ada, bob) = (bed.author("ada", "phone"), bed.author("bob", "phone"));
    let fields = r#"{"":0,"a\"b":"c\\d","n":[1,{"x":null}],"é":"😀"}"#;
    bed.check_push(&ada, [create("x/1 é", fields).owned().schema(3).hlc(at(5)).n(9)], &[Applied]);
    let row = bed.note(&ada, "x/1 é");
    assert_eq!((row.kind.as_str(), row.id.as_str(), row.scope.as_str()), ("note", "x/1 é", "owner:ada"));
    assert_eq!((&*row.owner, row.schema_version, row.deleted), ("ada", 3, false));
    assert_eq!(row.record.fields.as_str(), fields);
    let mark = row.record.default_mark;
    assert_eq!((mark.fv, mark.hlc, mark.device, mark.n), (Seq::new(1), at(5), ada.device, 9));
    assert_eq!((row.record.version, row.record.live, row.record.del), (Seq::new(1), mark, None));

    // A write that names no schema leaves the one that was named.
    bed.check_push(&ada, [patch("x/1 é", 1, r#"{"n":2}"#)], &[Applied]);
    let row = bed.note(&ada, "x/1 é");
    assert_eq!((row.schema_version, row.record.marks.len()), (3, 1));
    bed.check_push(&ada, [patch("x/1 é", 2, r#"{"n":3}"#).schema(4)], &[Applied]);
    assert_eq!(bed.note(&ada, "x/1 é").schema_version, 4);

    // Every way of reading gives the same row, after any history.
    let mut rng = Rng::new(3);
    for round in 0..200_u64 {
        let id = format!("r{}", rng.below(6));
        let base = rng.below(bed.head(ada.tenant).seq.number() + 1);
        let fields = format!(r#"{{"{}":{round}}}"#, rng.pick(&["a", "b", "c"]));
        let draft = match rng.below(6) {
            0 => create(&id, &fields),
            1 => delete(&id, base),
            2 => restore(&id, base, &fields),
            _ => patch(&id, base, &fields),
        };
        let author = if rng.percent(50) { &ada } else { &bob };
        let draft = if rng.percent(70) { draft.hlc(at(rng.below(100_000))) } else { draft };
        bed.push(author, [draft]);
    }
    let log = bed.log(&everything(&ada));
    assert!(log.iter().any(|row| row.deleted) && log.iter().any(|row| row.record.marks.len() > 1));
    for row in log {
        let single = bed.note(&ada, row.id.as_str());
        assert_eq!(single, row);
        assert_eq!(history(bed, &ada, row.id.as_str()).expect("it exists").row, row);
    }
}

pub(super) fn a_decision_is_accounted_for<S: Store>(bed: &Bed<S>) {
    let (ada, bob) = (bed.author("ada", "phone"), bed.author("bob", "tablet"));
    let policy =
        Arc::new(Policy { strategy: Strategy::ServerWins { granularity: Granularity::Field }, version: 12 });
    bed.check_push(&ada, [create("x", r#"{"a":1,"b":1}"#).n(1).hlc(at(10))], &[Applied]);
    bed.check_push(&ada, [patch("x", 1, r#"{"a":2}"#).n(2).hlc(at(20))], &[Applied]);
    assert_eq!(history(bed, &ada, "x").expect("it exists").audit, [], "nothing was decided yet");

    bed.world.clock.set(World::BEGIN_MS + 70_000);
    bed.check_push(
        &bob,
        [patch("x", 1, r#"{"a":3}"#).n(4).op_id("late").hlc(at(30)).policy(&policy)],
        &[Superseded],
    );
    bed.world.clock.advance(5);
    bed.check_push(&bob, [patch("x", 1, r#"{"a":4,"b":4}"#).n(5).hlc(at(40))], &[Merged]);
    // Other records' decisions are not this one's.
    bed.check_push(&ada, [create("y", r#"{"a":1}"#).n(3)], &[Applied]);
    bed.check_push(&bob, [patch("y", 0, r#"{"a":2}"#).n(6).policy(&policy)], &[Superseded]);

    let audit = history(bed, &ada, "x").expect("it exists").audit;
    assert_eq!(audit.len(), 2);
    assert!(audit[0].audit_id < audit[1].audit_id, "oldest first");
    let row = &audit[0];
    assert_eq!((row.at_ms, row.code, row.policy_version), (World::BEGIN_MS + 70_000, Superseded, 12));
    assert_eq!((row.device.user(), row.device.device()), ("bob", "tablet"));
    assert_eq!(row.op_id, OpId::new("late").ok());
    assert_eq!((audit[1].at_ms, audit[1].code), (World::BEGIN_MS + 70_005, Merged));
    assert_eq!((audit[1].op_id.clone(), audit[1].policy_version), (None, 0));
    let document = Document::parse(row.detail.as_bytes(), 64).expect("JSON");
    let field = document.root().get("fields").and_then(|fields| fields.get("a")).expect("the field");
    let number = |name: &str| field.get(name).and_then(|node| node.as_u64());
    assert_eq!((number("client"), number("server")), (Some(3), Some(2)));
    assert!(field.get("winner").is_some_and(|winner| winner.is_str("server")));

    // A resend is decided no second time.
    bed.push(&bob, [patch("x", 1, r#"{"a":3}"#).n(4).op_id("late").hlc(at(30)).policy(&policy)]);
    assert_eq!(history(bed, &ada, "x").expect("it exists").audit, audit);
}

pub(super) fn devices_and_changes_are_named<S: Store>(bed: &Bed<S>) {
    let (ada, bob) = (bed.author("ada", "phone"), bed.author("bob", "tablet"));
    assert!(history(bed, &ada, "x").is_none());
    let uuid = "0192f3a1-b2c3-7d4e-8f90-123456789abc";
    bed.check_push(&ada, [create("x", r#"{"a":1,"b":1}"#).n(1).op_id(uuid)], &[Applied]);
    bed.check_push(&bob, [patch("x", 1, r#"{"b":2}"#).n(7).op_id("bob's")], &[Applied]);
    let found = history(bed, &ada, "x").expect("it exists");
    for author in [&ada, &bob] {
        let (_, key) = found.devices.iter().find(|(device, _)| *device == author.device).expect("its name");
        assert_eq!(key.user(), author.user.to_string());
    }
    let name = |device, n| {
        let op = found.ops.iter().find(|(of, number, _)| (*of, *number) == (device, n));
        op.map(|(_, _, op_id)| op_id.as_str())
    };
    assert_eq!((name(ada.device, 1), name(bob.device, 7)), (Some(uuid), Some("bob's")));
    // A deleted record is explained too.
    bed.check_push(&ada, [delete("x", 2).n(2)], &[Applied]);
    assert!(history(bed, &ada, "x").expect("it exists").row.deleted);
}
