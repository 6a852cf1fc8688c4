//! Items that apply together or not at all.

use driftline_engine::Store;
use driftline_model::Seq;
use driftline_protocol::ItemCode::{Applied, ClientAhead, DependencyFailed, Gone, Invalid};

use super::{Bed, everything, ids_of};
use crate::batch::{create, delete, patch, refused};

pub(super) fn a_group_is_applied_whole<S: Store>(bed: &Bed<S>) {
    let ada = bed.author("ada", "phone");
    let drafts = [
        create("a", "{}").n(1).group("g"),
        create("b", "{}").n(2).group("h"),
        patch("a", 1, r#"{"a":1}"#).n(3).group("g"),
        create("c", "{}").n(4),
    ];
    bed.check_push(&ada, drafts.clone(), &[Applied; 4]);
    assert_eq!(bed.head(ada.tenant).seq, Seq::new(4));
    let again = bed.check_push(&ada, drafts, &[Applied; 4]);
    assert!(again.iter().all(|result| result.duplicate));
    assert_eq!(bed.head(ada.tenant).seq, Seq::new(4));
}

pub(super) fn a_failed_group_leaves_nothing<S: Store>(bed: &Bed<S>) {
    let ada = bed.author("ada", "phone");
    bed.check_push(&ada, [create("old", r#"{"a":1}"#).n(1)], &[Applied]);
    let old = bed.note(&ada, "old");
    bed.check_push(
        &ada,
        [
            create("before", "{}").n(2),
            create("a", "{}").n(3).op_id("a").group("g"),
            patch("old", 1, r#"{"a":2}"#).n(4).op_id("old").group("g"),
            patch("nowhere", 0, "{}").n(5).op_id("bad").group("g"),
            create("b", "{}").n(6).op_id("b").group("g"),
            create("after", "{}").n(7),
        ],
        &[Applied, DependencyFailed, DependencyFailed, Gone, DependencyFailed, Applied],
    );
    assert_eq!(bed.note(&ada, "old"), old);
    assert_eq!(ids_of(&bed.log(&everything(&ada))), ["old", "before", "after"]);
    assert_eq!(bed.head(ada.tenant).seq, Seq::new(3), "no place is left out");

    // No name and no number of it was taken: they may carry other changes.
    let results = bed.check_push(
        &ada,
        [
            create("a", r#"{"fixed":true}"#).n(3).op_id("a").group("g"),
            patch("old", 1, r#"{"a":3}"#).n(4).op_id("old").group("g"),
            create("nowhere", "{}").n(5).op_id("bad").group("g"),
            create("b", "{}").n(6).op_id("b").group("g"),
        ],
        &[Applied; 4],
    );
    assert!(results.iter().all(|result| !result.duplicate));
    assert_eq!(bed.head(ada.tenant).seq, Seq::new(7));

    // A refusal and a change from the future fail a group just as well.
    bed.check_push(
        &ada,
        [
            create("c", "{}").n(8).group("g"),
            refused("d", Invalid).n(9).group("g"),
            create("e", "{}").n(10).group("h"),
            patch("old", 500, "{}").n(11).group("h"),
        ],
        &[DependencyFailed, Invalid, DependencyFailed, ClientAhead],
    );
    assert_eq!(bed.head(ada.tenant).seq, Seq::new(7));
    // A device that gives no numbers goes on with the next one.
    bed.check_push(&ada, [create("f", "{}").n(8)], &[Applied]);
    bed.check_push(&ada, [create("g", "{}")], &[Applied]);
    assert_eq!(bed.note(&ada, "g").record.live.n, 9);
}

pub(super) fn a_failed_group_tells_of_nothing_it_did<S: Store>(bed: &Bed<S>) {
    let ada = bed.author("ada", "phone");
    bed.check_push(&ada, [create("old", r#"{"a":1}"#).n(1)], &[Applied]);
    // The culprit's answer shows records as they are, not as the group would have made them.
    let results = bed.check_push(
        &ada,
        [
            delete("old", 1).n(2).group("g"),
            patch("old", 2, r#"{"a":2}"#).n(3).group("g"),
            create("new", "{}").n(4).group("h"),
            patch("new", 99, "{}").n(5).group("h"),
        ],
        &[DependencyFailed, Gone, DependencyFailed, ClientAhead],
    );
    assert_eq!(results[1].version, Some(Seq::new(1)));
    if let Some(record) = &results[1].record {
        assert_eq!((record.version, record.deleted, record.fields.as_str()), (1, false, r#"{"a":1}"#));
    }
    assert_eq!((results[3].version, results[3].record.clone()), (None, None));
    assert!(bed.world.listeners.take().iter().all(|commit| commit.seq == Seq::new(1)));
}

pub(super) fn what_was_done_before_stays_done<S: Store>(bed: &Bed<S>) {
    let ada = bed.author("ada", "phone");
    let first = create("a", "{}").n(1).group("g");
    bed.check_push(&ada, [first.clone()], &[Applied]);
    let results = bed.check_push(
        &ada,
        [first, create("b", "{}").n(2).group("g"), patch("nowhere", 0, "{}").n(3).group("g")],
        &[Applied, DependencyFailed, Gone],
    );
    assert!(results[0].duplicate);
    assert!(bed.row(&ada, "note", "a").is_some());
    assert_eq!(bed.row(&ada, "note", "b"), None);
}
