//! What is removed when its time has passed.

use driftline_engine::{Place, Retention, Store};
use driftline_model::{Hlc, Seq, SyncId};
use driftline_protocol::ItemCode::{Applied, Gone, TooOld};

use super::scopes::{fields, push, reader, team};
use super::{Bed, codes_of, everything, ids_of};
use crate::batch::{create, delete, patch};
use crate::wait::block_on;
use crate::world::World;

const DAY_MS: u64 = 24 * 3_600_000;

fn day(days: u64) -> u64 {
    World::BEGIN_MS + days * DAY_MS
}

fn prune<S: Store>(bed: &Bed<S>, now_ms: u64) -> u64 {
    block_on(bed.store.prune(now_ms, &Retention::default())).expect("a prune")
}

pub(super) fn old_answers_are_pruned<S: Store>(bed: &Bed<S>) {
    let (ada, bob) = (bed.author("ada", "phone"), bed.author("bob", "phone"));
    let old = || [create("a", "{}").n(1).op_id("a"), create("b", "{}").n(2)];
    bed.check_push(&ada, old(), &[Applied, Applied]);
    bed.world.clock.set(day(60));
    bed.check_push(&ada, [create("c", "{}").n(3).op_id("c")], &[Applied]);
    bed.check_push(&bob, [create("d", "{}").n(1)], &[Applied]);

    assert_eq!(prune(bed, day(90)), 0, "90 days are kept");
    assert!(bed.push(&ada, old()).iter().all(|result| result.duplicate));
    assert_eq!(prune(bed, day(90) + 1), 2);
    assert_eq!(prune(bed, day(90) + 1), 0);

    let head = bed.head(ada.tenant);
    assert_eq!(codes_of(&bed.push(&ada, old())), [TooOld, TooOld], "forgotten is not new");
    let kept = bed.check_push(&ada, [create("c", "{}").n(3).op_id("c")], &[Applied]);
    assert!(kept[0].duplicate);
    let kept = bed.check_push(&bob, [create("d", "{}").n(1)], &[Applied]);
    assert!(kept[0].duplicate);
    assert_eq!(bed.head(ada.tenant), head);
    bed.check_push(&ada, [create("e", "{}").n(4)], &[Applied]);
}

pub(super) fn old_batches_are_pruned<S: Store>(bed: &Bed<S>) {
    let ada = bed.author("ada", "phone");
    let session = SyncId::new("00000000-0000-4000-8000-000000000001").expect("a UUID");
    for number in [1, 2] {
        bed.world.clock.set(World::BEGIN_MS + number * 1000);
        let mut batch = ada.batch([]);
        batch.batch = Some((session.clone(), number));
        bed.commit(batch);
    }
    let batches = || {
        let found = block_on(bed.store.session(ada.tenant, ada.device, &session)).expect("a read");
        found.map(|progress| progress.batches)
    };
    assert_eq!(prune(bed, day(1) + 1000), 0, "a day is kept");
    assert_eq!(batches(), Some(vec![1, 2]));
    assert_eq!(prune(bed, day(1) + 1001), 1);
    assert_eq!(batches(), Some(vec![2]));
    assert_eq!(prune(bed, day(2)), 1);
    assert_eq!(batches(), None);
}

pub(super) fn old_tombstones_are_pruned<S: Store>(bed: &Bed<S>) {
    let ada = bed.author("ada", "phone");
    let at = |days| Hlc::new(day(days), 0);
    bed.push(
        &ada,
        [create("a", "{}").hlc(at(0)), create("b", "{}").hlc(at(0)), create("c", "{}").hlc(at(0))],
    );
    bed.world.clock.set(day(1));
    bed.push(&ada, [delete("a", 1).hlc(at(1))]);
    bed.world.clock.set(day(2));
    bed.push(&ada, [delete("b", 2).hlc(at(2))]);
    assert_eq!(bed.head(ada.tenant).gc_floor, Seq::ZERO);

    assert_eq!(prune(bed, day(31)), 0, "30 days are kept");
    assert_eq!(bed.head(ada.tenant).gc_floor, Seq::ZERO);
    assert_eq!(prune(bed, day(31) + 1), 1);
    assert_eq!(bed.head(ada.tenant).gc_floor, Seq::new(4), "readers before it must start anew");
    assert_eq!(bed.row(&ada, "note", "a"), None);
    assert_eq!(ids_of(&bed.log(&everything(&ada))), ["c", "b"]);
    assert_eq!(prune(bed, day(400)), 6, "the other tombstone, and the five answers");
    assert_eq!(bed.head(ada.tenant).gc_floor, Seq::new(5));
    assert_eq!(ids_of(&bed.log(&everything(&ada))), ["c"], "what lives stays");

    // A purged id comes back by a create alone, with a version never used before.
    assert_eq!(bed.head(ada.tenant).seq, Seq::new(5));
    bed.check_push(&ada, [patch("a", 4, "{}")], &[Gone]);
    let created = bed.check_push(&ada, [create("a", "{}")], &[Applied]);
    assert_eq!(created[0].version, Some(Seq::new(6)));
}

pub(super) fn old_exits_are_pruned<S: Store>(bed: &Bed<S>) {
    let ada = bed.author("ada", "phone");
    push(bed, &ada, [create("x", &fields("a")), create("y", &fields("a"))]);
    bed.world.clock.set(day(1));
    push(bed, &ada, [patch("x", 1, &fields("b"))]);
    bed.world.clock.set(day(2));
    push(bed, &ada, [patch("y", 2, &fields("b"))]);
    let left = || {
        let page = bed.page(reader(&ada, "a", Place::After(Seq::ZERO)));
        page.left.iter().map(|left| left.id.to_string()).collect::<Vec<_>>()
    };
    assert_eq!((prune(bed, day(31)), left()), (0, vec!["x".to_owned(), "y".to_owned()]), "30 days are kept");
    assert_eq!(bed.head(ada.tenant).gc_floor, Seq::ZERO);
    assert_eq!((prune(bed, day(31) + 1), left()), (1, vec!["y".to_owned()]));
    assert_eq!(bed.head(ada.tenant).gc_floor, Seq::new(3), "readers before it must start anew");
    assert_eq!((prune(bed, day(33)), left()), (1, vec![]));
    assert_eq!(bed.head(ada.tenant).gc_floor, Seq::new(4));
    assert_eq!(bed.note(&ada, "x").scope, team("b"), "the record stays");
}
