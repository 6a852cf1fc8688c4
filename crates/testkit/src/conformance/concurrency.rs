//! Many at once.

use std::collections::BTreeSet;

use driftline_engine::Store;
use driftline_model::Seq;
use driftline_protocol::ItemClass;
use driftline_protocol::ItemCode::Applied;

use super::{Bed, everything};
use crate::batch::{create, patch};
use crate::wait::block_on;

const WRITERS: u64 = 8;
const BATCHES: u64 = 50;

pub(super) fn writers_share_one_sequence<S: Store>(bed: &Bed<S>) {
    let authors: Vec<_> = (0..WRITERS).map(|at| bed.author(&format!("user{at}"), "phone")).collect();
    bed.check_push(&bed.author("first", "phone"), [create("shared", r#"{"a":0}"#)], &[Applied]);
    let results: Vec<_> = std::thread::scope(|scope| {
        let writers: Vec<_> =
            (0..WRITERS)
                .zip(&authors)
                .map(|(writer, author)| {
                    scope.spawn(move || {
                        let mut results = Vec::new();
                        for at in 0..BATCHES {
                            let n = at * 3;
                            let batch = author.batch([
                                create(&format!("{writer}/{at}"), r#"{"a":1}"#).n(n + 1),
                                patch("shared", 1, &format!(r#"{{"a":{at},"w{writer}":{at}}}"#)).n(n + 2),
                                patch(&format!("{writer}/{at}"), 0, r#"{"b":1}"#).n(n + 3),
                            ]);
                            let receipt = block_on(bed.store.commit(batch.clone())).expect("a commit");
                            assert!(receipt.results.iter().all(|result| {
                                result.version.is_some_and(|version| version <= receipt.seq)
                            }));
                            if at % 10 == 0 {
                                let again = block_on(bed.store.commit(batch)).expect("a commit");
                                for (first, again) in receipt.results.iter().zip(&again.results) {
                                    assert!(again.duplicate);
                                    assert_eq!((again.code, again.version), (first.code, first.version));
                                }
                            }
                            results.extend(receipt.results);
                        }
                        results
                    })
                })
                .collect();
        writers.into_iter().flat_map(|writer| writer.join().expect("a writer")).collect()
    });

    assert_eq!(results.len() as u64, WRITERS * BATCHES * 3);
    assert!(results.iter().all(|result| result.code.class() == ItemClass::Done && !result.duplicate));
    let tenant = authors[0].tenant;
    let head = bed.head(tenant);
    let mut seq = Seq::ZERO;
    let mut versions = BTreeSet::new();
    for commit in bed.world.listeners.take() {
        assert_eq!(commit.prev_seq, seq, "no gap between commits");
        for told in commit.changes.as_deref().expect("somebody listens") {
            assert!(versions.insert(told.change.version), "a version of its own for every change");
        }
        seq = commit.seq;
    }
    assert_eq!(seq, head.seq);
    assert_eq!(versions.len() as u64, head.seq.number(), "the sequence has no gap");
    let rows = bed.log(&everything(&authors[0]));
    assert_eq!(rows.len() as u64, WRITERS * BATCHES + 1);
    let distinct: BTreeSet<_> = rows.iter().map(|row| row.record.version).collect();
    assert_eq!(distinct.len(), rows.len());
    // Every writer's own field of the shared record is there.
    assert_eq!(bed.note(&authors[0], "shared").record.fields.len() as u64, WRITERS + 1);
}
