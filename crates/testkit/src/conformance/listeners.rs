//! What is told of commits.

use driftline_engine::Store;
use driftline_model::Seq;
use driftline_protocol::ChangeKind::{Delete, Patch, Put};
use driftline_protocol::ItemCode::{Applied, Gone};

use super::Bed;
use crate::batch::{Author, create, delete, patch, restore};

pub(super) fn commits_are_told_in_order<S: Store>(bed: &Bed<S>) {
    let here = bed.author("ada", "phone");
    let there = Author::join(&bed.store, "there", "ada", "phone");
    for at in 0..20 {
        bed.push(&here, [create(&format!("x{at}"), "{}"), create(&format!("y{at}"), "{}")]);
        bed.push(&there, [create(&format!("x{at}"), "{}")]);
    }
    let heard = bed.world.listeners.take();
    for (author, count) in [(&here, 40), (&there, 20)] {
        let mut seq = Seq::ZERO;
        for commit in heard.iter().filter(|commit| commit.tenant == author.tenant) {
            assert_eq!(commit.prev_seq, seq, "each follows the one before");
            let changes = commit.changes.as_deref().expect("somebody listens");
            for change in changes {
                seq = seq.next();
                assert_eq!((change.change.version, change.device), (seq, Some(author.device)));
            }
            assert_eq!(commit.seq, seq);
        }
        assert_eq!((seq, bed.head(author.tenant).seq), (Seq::new(count), Seq::new(count)));
    }
    let last = heard.iter().rfind(|commit| commit.tenant == here.tenant).expect("commits");
    assert_eq!(last.hlc, bed.head(here.tenant).hlc);
}

pub(super) fn only_changes_are_told<S: Store>(bed: &Bed<S>) {
    let (ada, bob) = (bed.author("ada", "phone"), bed.author("bob", "phone"));
    bed.push(&ada, [create("a", r#"{"x":1,"y":1}"#).owned(), patch("nowhere", 0, "{}")]);
    bed.push(&bob, [create("b", r#"{"x":1,"y":1}"#)]);
    bed.push(&ada, [patch("b", 2, r#"{"y":2}"#), delete("b", 3)]);
    bed.push(&ada, [restore("b", 4, "{}")]);
    let told: Vec<_> = bed
        .world
        .listeners
        .take()
        .iter()
        .flat_map(|commit| commit.changes.as_deref().expect("somebody listens").to_vec())
        .map(|told| {
            (
                told.device.expect("an author"),
                told.change.change,
                told.change.fields.as_str().to_owned(),
                told.change.scope,
            )
        })
        .collect();
    let rows: Vec<_> = told.iter().map(|(device, change, fields, _)| (*device, *change, &**fields)).collect();
    assert_eq!(
        rows,
        [
            (ada.device, Put, r#"{"x":1,"y":1}"#),
            (bob.device, Put, r#"{"x":1,"y":1}"#),
            (ada.device, Patch, r#"{"y":2}"#),
            (ada.device, Delete, "{}"),
            (ada.device, Put, r#"{"x":1,"y":2}"#),
        ]
    );
    assert_eq!((told[0].3.as_str(), told[1].3.as_str()), ("owner:ada", "tenant"));

    bed.check_push(&ada, [patch("nowhere", 0, "{}")], &[Gone]);
    bed.push(&ada, [patch("b", 5, "{}")]);
    bed.push(&ada, []);
    let resend = create("c", "{}").n(50);
    bed.check_push(&ada, [resend.clone()], &[Applied]);
    assert_eq!(bed.world.listeners.take().len(), 1);
    bed.check_push(&ada, [resend], &[Applied]);
    assert_eq!(bed.world.listeners.take().len(), 0, "what changes nothing is not told");
}

pub(super) fn nobody_listens_without_cost<S: Store>(bed: &Bed<S>) {
    let ada = bed.author("ada", "phone");
    bed.world.listeners.listen(false);
    bed.push(&ada, [create("a", "{}")]);
    assert!(bed.world.listeners.take().iter().all(|commit| commit.changes.is_none()), "nothing is collected");
    bed.world.listeners.listen(true);
    bed.push(&ada, [create("b", "{}")]);
    let heard = bed.world.listeners.take();
    assert_eq!(heard.len(), 1);
    assert_eq!(heard[0].prev_seq, Seq::new(1), "who starts to listen sees where");
    assert_eq!(heard[0].changes.as_deref().map(<[_]>::len), Some(1));
}
