//! What a commit does, and what it answers.

use std::sync::Arc;

use driftline_conflict::{Granularity, Policy, Strategy, Winner};
use driftline_engine::Store;
use driftline_model::{Epoch, Hlc, Seq, SyncId};
use driftline_protocol::ItemCode::{
    self, Applied, ClientAhead, EpochChanged, Forbidden, Gone, Merged, Noop, Superseded, TooLarge,
};

use super::{Bed, codes_of, everything, versions_of};
use crate::batch::{create, delete, patch, restore};
use crate::wait::block_on;
use crate::world::World;

fn at(ms: u64) -> Hlc {
    Hlc::new(World::BEGIN_MS + ms, 0)
}

pub(super) fn every_code_is_given<S: Store>(bed: &Bed<S>) {
    let (ada, bob) = (bed.author("ada", "phone"), bed.author("bob", "phone"));
    let results = bed.check_push(&ada, [create("x", r#"{"a":1,"b":1}"#).n(1).hlc(at(10))], &[Applied]);
    assert_eq!((results[0].version, results[0].record.clone()), (Some(Seq::new(1)), None));
    assert!(!results[0].duplicate);
    bed.check_push(&ada, [patch("x", 1, r#"{"a":2}"#).n(2).hlc(at(20))], &[Applied]);

    // Bob saw version 1 only.
    let merged = bed.check_push(&bob, [patch("x", 1, r#"{"b":5}"#).n(1).hlc(at(15))], &[Merged]);
    let record = merged[0].record.as_ref().expect("not what its author expects");
    assert_eq!((record.fields.as_str(), record.version, record.deleted), (r#"{"a":2,"b":5}"#, 3, false));
    assert_eq!(merged[0].strategy, None, "nobody touched the same field");

    let lost = bed.check_push(&bob, [patch("x", 1, r#"{"a":7}"#).n(2).hlc(at(16))], &[Superseded]);
    assert_eq!((lost[0].version, lost[0].strategy), (Some(Seq::new(3)), Some("field_merge")));
    assert_eq!(lost[0].winners, [(Box::from("a"), Winner::Server)]);
    let record = lost[0].record.as_ref().expect("the record as it stands");
    assert_eq!(record.fields.as_str(), r#"{"a":2,"b":5}"#);

    let same = bed.check_push(&bob, [patch("x", 1, r#"{"a":2}"#).n(3).hlc(at(17))], &[Noop]);
    assert_eq!(same[0].version, Some(Seq::new(3)));

    bed.check_push(&bob, [patch("nowhere", 0, r#"{"a":1}"#).n(4)], &[Gone]);
    assert_eq!(bed.row(&bob, "note", "nowhere"), None, "a patch never creates");
    bed.check_push(&bob, [patch("x", 99, r#"{"a":1}"#).n(5)], &[ClientAhead]);
    let large = format!(r#"{{"a":"{}"}}"#, "x".repeat(1 << 20));
    bed.check_push(&bob, [patch("x", 3, &large).n(6)], &[TooLarge]);
    assert_eq!(bed.head(ada.tenant).seq, Seq::new(3));

    bed.check_push(&ada, [delete("x", 3).n(3)], &[Applied]);
    let gone = bed.check_push(&ada, [patch("x", 4, r#"{"a":1}"#).n(4)], &[Gone]);
    let record = gone[0].record.as_ref().expect("the record as it stands");
    assert_eq!((record.deleted, record.fields.as_str()), (true, "{}"), "a deleted record shows nothing");
    bed.check_push(&ada, [restore("x", 4, "{}").n(5)], &[Applied]);
    assert_eq!(bed.note(&ada, "x").record.fields.as_str(), r#"{"a":2,"b":5}"#);
}

pub(super) fn only_changes_take_a_place_in_the_sequence<S: Store>(bed: &Bed<S>) {
    let ada = bed.author("ada", "phone");
    assert_eq!(bed.head(ada.tenant).seq, Seq::ZERO);
    let receipt = bed.commit(ada.batch([
        create("a", "{}").n(1),
        patch("nowhere", 0, "{}").n(2),
        create("b", "{}").n(3),
        patch("b", 0, "{}").n(4),
        patch("b", 50, "{}").n(5),
        delete("a", 1).n(6),
    ]));
    assert_eq!(codes_of(&receipt.results), [Applied, Gone, Applied, Noop, ClientAhead, Applied]);
    let head = bed.head(ada.tenant);
    assert_eq!((receipt.seq, receipt.hlc, receipt.epoch), (head.seq, head.hlc, head.epoch));
    assert_eq!(head.seq, Seq::new(3));
    let versions: Vec<_> = receipt.results.iter().map(|result| result.version.map(Seq::number)).collect();
    assert_eq!(versions, [Some(1), None, Some(2), Some(2), Some(2), Some(3)]);
    assert_eq!(versions_of(&bed.log(&everything(&ada))), [2, 3]);

    let before = bed.head(ada.tenant);
    bed.check_push(&ada, [], &[]);
    bed.check_push(&ada, [patch("b", 2, "{}").n(7)], &[Noop]);
    assert_eq!(bed.head(ada.tenant), before);
    bed.check_push(&ada, [patch("b", 2, r#"{"z":1}"#).n(8)], &[Applied]);
    assert_eq!(bed.head(ada.tenant).seq, Seq::new(4), "no place is left out");
}

pub(super) fn another_epoch_applies_nothing<S: Store>(bed: &Bed<S>) {
    let ada = bed.author("ada", "phone");
    bed.check_push(&ada, [create("a", "{}").n(1)], &[Applied]);
    let head = bed.head(ada.tenant);
    let session = SyncId::new("00000000-0000-4000-8000-000000000001").expect("a UUID");
    let mut batch = ada.batch([create("b", "{}").n(2), patch("a", 1, r#"{"a":1}"#).n(3)]);
    batch.epoch = Some(Epoch::new(head.epoch.number().wrapping_add(1)));
    batch.batch = Some((session.clone(), 1));
    batch.acked_n = Some(1);
    let receipt = bed.commit(batch.clone());
    assert_eq!(codes_of(&receipt.results), [EpochChanged, EpochChanged]);
    assert_eq!((receipt.epoch, receipt.seq), (head.epoch, head.seq));
    assert_eq!(bed.head(ada.tenant), head);
    assert_eq!(bed.row(&ada, "note", "b"), None);
    assert_eq!(block_on(bed.store.session(ada.tenant, ada.device, &session)), Ok(None));

    batch.epoch = Some(head.epoch);
    let receipt = bed.commit(batch);
    assert_eq!(codes_of(&receipt.results), [Applied, Applied]);
    assert!(receipt.results.iter().all(|result| !result.duplicate), "nothing of it was remembered");
}

pub(super) fn changes_without_a_name_are_numbered<S: Store>(bed: &Bed<S>) {
    let ada = bed.author("ada", "phone");
    let counted = || patch("a", 0, r#"{"seen":true}"#);
    bed.check_push(&ada, [create("a", "{}"), counted(), counted()], &[Applied, Applied, Applied]);
    bed.check_push(&ada, [counted()], &[Applied]);
    let live = bed.note(&ada, "a").record.live;
    assert_eq!((live.n, live.device), (4, ada.device), "the last number and one");
    bed.check_push(&ada, [counted().n(9), counted()], &[Applied, Applied]);
    assert_eq!(bed.note(&ada, "a").record.live.n, 10);

    // A name is enough to be recognised by.
    let named = || create("b", "{}").op_id("0192f3a1-b2c3-7d4e-8f90-123456789abc");
    bed.check_push(&ada, [named()], &[Applied]);
    let again = bed.check_push(&ada, [named()], &[Applied]);
    assert!(again[0].duplicate);
}

pub(super) fn a_foreign_record_is_not_touched<S: Store>(bed: &Bed<S>) {
    let (ada, eve) = (bed.author("ada", "phone"), bed.author("eve", "phone"));
    bed.check_push(&ada, [create("mine", r#"{"a":1}"#).owned().n(1)], &[Applied]);
    let row = bed.note(&ada, "mine");
    assert_eq!((row.scope.as_str(), &*row.owner), ("owner:ada", "ada"));
    let results = bed.check_push(
        &eve,
        [
            create("mine", r#"{"a":2}"#).owned().n(1),
            patch("mine", 1, r#"{"a":2}"#).n(2),
            delete("mine", 1).n(3),
        ],
        &[Forbidden, Gone, Gone],
    );
    assert!(results.iter().all(|result| result.record.is_none() && result.version.is_none()), "{results:?}");
    assert_eq!(bed.note(&ada, "mine"), row);
    assert!(bed.log(&everything(&eve)).is_empty());
    // Nor does a resend tell more.
    let again = bed.check_push(&eve, [delete("mine", 1).n(3)], &[Gone]);
    assert_eq!((again[0].duplicate, again[0].record.clone()), (true, None));
}

pub(super) fn large_batches_are_whole<S: Store>(bed: &Bed<S>) {
    let (ada, bob) = (bed.author("ada", "phone"), bed.author("bob", "phone"));
    let policy =
        Arc::new(Policy { strategy: Strategy::ServerWins { granularity: Granularity::Field }, version: 7 });
    let mut seq = 0;
    // Stores write rows, answers and accounts in chunks: sizes around their edges.
    for count in [1_u64, 9, 10, 11, 99, 100, 101, 237] {
        let id = |at: u64| format!("{count}/{at}");
        let name = |at: u64| format!("{count}-{at}");
        let creates = (0..count).map(|at| create(&id(at), &format!(r#"{{"a":{at}}}"#)).op_id(&name(at)));
        let created = bed.push(&ada, creates.clone());
        let clashes = (0..count).map(|at| patch(&id(at), 0, r#"{"a":-1}"#).policy(&policy).op_id(&name(at)));
        let clashed = bed.push(&bob, clashes);
        for at in 0..count {
            let index = usize::try_from(at).expect("small");
            assert_eq!(created[index].code, Applied);
            assert_eq!(created[index].version, Some(Seq::new(seq + at + 1)));
            assert_eq!(clashed[index].code, Superseded);
            assert_eq!(bed.note(&ada, &id(at)).record.fields.as_str(), format!(r#"{{"a":{at}}}"#));
        }
        seq += count;
        assert_eq!(bed.head(ada.tenant).seq, Seq::new(seq));
        let again = bed.push(&ada, creates);
        assert!(again.iter().all(|result| result.duplicate && result.code == ItemCode::Applied));
    }
}

pub(super) fn a_clock_that_goes_back_is_harmless<S: Store>(bed: &Bed<S>) {
    let (ada, bob) = (bed.author("ada", "phone"), bed.author("bob", "phone"));
    bed.check_push(&ada, [create("a", r#"{"a":1}"#).n(1)], &[Applied]);
    let before = bed.head(ada.tenant).hlc;
    bed.world.clock.set(World::BEGIN_MS - 3_600_000);
    bed.check_push(&bob, [patch("a", 1, r#"{"a":2}"#).n(1)], &[Applied]);
    let after = bed.head(ada.tenant).hlc;
    assert!(after > before, "{after} follows {before}");
    assert_eq!(bed.note(&ada, "a").record.live.hlc, after);
}
