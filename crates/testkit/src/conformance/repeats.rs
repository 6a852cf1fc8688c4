//! Changes that come again.

use driftline_engine::{Store, SubmissionResult};
use driftline_model::{Hlc, Seq};
use driftline_protocol::ItemCode::{
    Applied, DeviceIdReused, Gone, Invalid, Merged, Noop, Superseded, TooOld, UnknownKind,
};

use super::{Bed, codes_of};
use crate::batch::{Draft, create, delete, patch, refused};
use crate::world::World;

fn at(ms: u64) -> Hlc {
    Hlc::new(World::BEGIN_MS + ms, 0)
}

fn first_answer(first: &SubmissionResult, again: &SubmissionResult) {
    assert!(!first.duplicate && again.duplicate, "{first:?}, then {again:?}");
    assert_eq!((again.code, again.version), (first.code, first.version));
}

pub(super) fn a_resend_gets_the_first_answer<S: Store>(bed: &Bed<S>) {
    let (ada, bob) = (bed.author("ada", "phone"), bed.author("bob", "phone"));
    bed.check_push(&ada, [create("x", r#"{"a":1,"b":1}"#).n(1).hlc(at(10))], &[Applied]);
    bed.check_push(&ada, [patch("x", 1, r#"{"a":2}"#).n(2).hlc(at(20))], &[Applied]);
    let drafts: Vec<Draft> = vec![
        patch("x", 1, r#"{"b":5}"#).n(1).op_id("merge").hlc(at(11)),
        patch("x", 1, r#"{"a":7}"#).n(2).op_id("lose").hlc(at(12)),
        patch("x", 1, r#"{"a":2}"#).n(3).op_id("same").hlc(at(13)),
        patch("nowhere", 0, "{}").n(4).op_id("gone"),
        create("y", "{}").n(5).op_id("make"),
        delete("y", 4).n(6).op_id("drop"),
    ];
    let first = bed.check_push(&bob, drafts.clone(), &[Merged, Superseded, Noop, Gone, Applied, Applied]);
    let head = bed.head(ada.tenant);
    let row = bed.note(&ada, "x");

    // The whole batch, each change alone, a batch in another order: by name and number.
    for (first, again) in first.iter().zip(&bed.push(&bob, drafts.clone())) {
        first_answer(first, again);
    }
    for (at, draft) in drafts.iter().enumerate().rev() {
        first_answer(&first[at], &bed.push(&bob, [draft.clone()])[0]);
        // A rebase is not another intent.
        first_answer(&first[at], &bed.push(&bob, [draft.clone().base(3)])[0]);
    }
    assert_eq!((bed.head(ada.tenant), bed.note(&ada, "x")), (head, row));

    // By the name alone and by the number alone.
    let named = create("z", "{}").op_id("make-z");
    let numbered = create("w", "{}").n(40);
    let first = bed.check_push(&bob, [named.clone(), numbered.clone()], &[Applied, Applied]);
    let again = bed.push(&bob, [named, numbered]);
    first_answer(&first[0], &again[0]);
    first_answer(&first[1], &again[1]);

    // Within one batch too.
    let twice = bed.push(&bob, [create("v", "{}").n(50), create("v", "{}").n(50)]);
    first_answer(&twice[0], &twice[1]);
}

pub(super) fn a_refusal_is_remembered<S: Store>(bed: &Bed<S>) {
    let ada = bed.author("ada", "phone");
    let drafts = [refused("x", Invalid).n(1).op_id("bad"), refused("y", UnknownKind).n(2)];
    let first = bed.check_push(&ada, drafts.clone(), &[Invalid, UnknownKind]);
    assert_eq!(first[0].errors.len(), 1);
    for (first, again) in first.iter().zip(&bed.push(&ada, drafts)) {
        first_answer(first, again);
        assert_eq!(first.errors, again.errors);
    }
    bed.check_push(&ada, [create("x", "{}").n(1).op_id("bad")], &[DeviceIdReused]);
    assert_eq!(bed.head(ada.tenant).seq, Seq::ZERO);
}

pub(super) fn another_intent_is_refused<S: Store>(bed: &Bed<S>) {
    let (ada, bob) = (bed.author("ada", "phone"), bed.author("bob", "phone"));
    bed.check_push(
        &ada,
        [create("x", "{}").n(1).op_id("one"), create("y", "{}").n(2).op_id("two"), create("z", "{}").n(3)],
        &[Applied; 3],
    );
    let head = bed.head(ada.tenant);
    let table = [
        ("another intent under both", create("x", r#"{"a":1}"#).n(1).op_id("one")),
        ("another intent under the name", create("x", r#"{"a":1}"#).op_id("one")),
        ("another intent under the number", create("x", r#"{"a":1}"#).n(1)),
        ("the name with another known number", create("x", "{}").n(2).op_id("one")),
        ("the name with a new number", create("x", "{}").n(7).op_id("one")),
        ("the number with a new name", create("x", "{}").n(1).op_id("seven")),
        ("a name for a nameless change", create("z", "{}").n(3).op_id("three")),
    ];
    for (what, draft) in &table {
        let codes = codes_of(&bed.push(&ada, [draft.clone()]));
        assert_eq!(codes, [DeviceIdReused], "{what}");
    }
    // Among others, which are not held up.
    for (what, draft) in &table {
        let fresh = create(&format!("beside {what}"), "{}");
        let codes = codes_of(&bed.push(&ada, [draft.clone(), fresh, create("x", "{}").n(1).op_id("one")]));
        assert_eq!(codes, [DeviceIdReused, Applied, Applied], "{what}");
    }
    assert_eq!(bed.head(ada.tenant).seq.number(), head.seq.number() + table.len() as u64);
    assert_eq!(bed.note(&ada, "x").record.fields.as_str(), "{}");

    // Both in one batch, and neither known before.
    let results = bed.push(&bob, [create("p", "{}").n(1).op_id("p"), create("q", "{}").n(2).op_id("p")]);
    assert_eq!(codes_of(&results), [Applied, DeviceIdReused]);
    assert_eq!(bed.row(&bob, "note", "q"), None);
    // A refused pairing takes neither the number nor the name.
    bed.check_push(&bob, [create("q", "{}").n(2).op_id("q")], &[Applied]);
}

pub(super) fn heard_answers_are_forgotten<S: Store>(bed: &Bed<S>) {
    let (ada, bob) = (bed.author("ada", "phone"), bed.author("bob", "phone"));
    let drafts: Vec<Draft> =
        (1..=5).map(|n| create(&format!("x{n}"), "{}").n(n).op_id(&format!("op{n}"))).collect();
    bed.check_push(&ada, drafts.clone(), &[Applied; 5]);
    bed.check_push(&bob, [create("b", "{}").n(1)], &[Applied]);
    let head = bed.head(ada.tenant);
    let mut heard = ada.batch([]);
    heard.acked_n = Some(3);
    bed.commit(heard.clone());

    let again = bed.push(&ada, drafts);
    assert_eq!(codes_of(&again), [TooOld, TooOld, TooOld, Applied, Applied]);
    assert!(again[3].duplicate && again[4].duplicate);
    assert_eq!(bed.head(ada.tenant), head, "nothing is applied twice");

    // Hearing goes up only, and is each device's own.
    heard.acked_n = Some(1);
    bed.commit(heard);
    bed.check_push(&ada, [create("x2", "{}").n(2).op_id("op2")], &[TooOld]);
    let bob_again = bed.push(&bob, [create("b", "{}").n(1)]);
    assert!(bob_again[0].duplicate);
    assert_eq!(bed.head(ada.tenant), head);
}

pub(super) fn nothing_can_be_heard_before_it_was_said<S: Store>(bed: &Bed<S>) {
    let ada = bed.author("ada", "phone");
    let mut batch = ada.batch([create("x", "{}").n(1)]);
    batch.acked_n = Some(1_000_000);
    assert_eq!(codes_of(&bed.commit(batch).results), [Applied]);
    bed.check_push(&ada, [create("y", "{}").n(2)], &[Applied]);
    let again = bed.check_push(&ada, [create("y", "{}").n(2)], &[Applied]);
    assert!(again[0].duplicate);
}
