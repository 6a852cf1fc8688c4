//! Batches that come again under a name.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;

use driftline_conflict::{Granularity, Policy, Strategy};
use driftline_engine::{
    Answered, Once, OnceKey, Receipt, Remembered, Retention, Store, StoreError, Submission,
};
use driftline_idempotency::{Fingerprint, Record, State, WINDOW_MS_DEFAULT};
use driftline_model::{Epoch, Hlc, Intents, Seq, SyncId};
use driftline_protocol::ItemCode::{
    Applied, ConflictPending, DependencyFailed, EpochChanged, Gone, Invalid, Merged, Noop, RetryLater,
    Superseded,
};

use super::{Bed, codes_of};
use crate::batch::{Author, Draft, create, patch, refused};
use crate::wait::block_on;
use crate::world::World;

const DAY_MS: u64 = 24 * 3_600_000;

pub(super) fn print_of(content: &str) -> Fingerprint {
    Fingerprint::envelope("sync_data", None, content.as_bytes())
}

pub(super) fn session() -> SyncId {
    SyncId::new("00000000-0000-4000-8000-000000000001").expect("a UUID")
}

/// A name that an owner made.
pub(super) fn key(owner: &str, key: &str, content: &str) -> Once {
    let key = OnceKey::Request { owner: owner.into(), key: key.into() };
    Once { key, fingerprint: print_of(content), window_ms: WINDOW_MS_DEFAULT }
}

/// A batch's place in its session.
fn place(author: &Author, number: u64, content: &str) -> Once {
    let key = OnceKey::Batch { device: author.device, sync_id: session(), number };
    Once { key, fingerprint: print_of(content), window_ms: WINDOW_MS_DEFAULT }
}

pub(super) fn named(
    author: &Author,
    drafts: impl IntoIterator<Item = Draft>,
    once: impl IntoIterator<Item = Once>,
) -> Submission {
    let once: Vec<Once> = once.into_iter().collect();
    let batch = once.iter().find_map(|once| match &once.key {
        OnceKey::Batch { sync_id, number, .. } => Some((sync_id.clone(), *number)),
        OnceKey::Request { .. } => None,
    });
    Submission { once, batch, ..author.batch(drafts) }
}

/// What of an answer is answered again.
fn told(mut receipt: Receipt) -> Receipt {
    receipt.answered = Answered::Applied;
    for result in &mut receipt.results {
        result.strategy = result.strategy.map(|_| "some");
        result.resolved = None;
    }
    receipt
}

#[track_caller]
fn check_replay<S: Store>(bed: &Bed<S>, first: &Receipt, again: Submission) {
    let again = bed.commit(again);
    assert!(again.answered.is_replayed());
    assert_eq!(told(again), told(first.clone()));
}

#[track_caller]
fn check_reused<S: Store>(bed: &Bed<S>, again: Submission) {
    let again = bed.commit(again);
    assert_eq!((again.answered, again.results), (Answered::Reused, Vec::new()));
}

fn at(ms: u64) -> Hlc {
    Hlc::new(World::BEGIN_MS + ms, 0)
}

/// Makes records on one device, and a batch of another one that is answered in every way.
fn many_answers<S: Store>(bed: &Bed<S>, once: Vec<Once>) -> (Author, Submission) {
    let (ada, bob) = (bed.author("ada", "phone"), bed.author("bob", "phone"));
    bed.push(&ada, [create("x", r#"{"a":1,"b":1}"#).hlc(at(10)), create("y", r#"{"a":1}"#)]);
    bed.push(&ada, [patch("x", 1, r#"{"a":2}"#).hlc(at(20)), patch("y", 2, r#"{"a":2}"#)]);
    let manual = Arc::new(Policy { strategy: Strategy::Manual, version: 7 });
    let drafts = [
        patch("x", 1, r#"{"b":5}"#).hlc(at(11)),
        patch("x", 1, r#"{"a":7}"#).hlc(at(12)),
        patch("x", 1, r#"{"a":2}"#).hlc(at(13)),
        patch("nowhere", 0, "{}").op_id("gone"),
        refused("bad", Invalid),
        patch("y", 2, r#"{"a":3}"#).policy(&manual),
        create("g1", "{}").group("g"),
        patch("nowhere", 0, "{}").group("g"),
        create("z", "{}"),
    ];
    let batch = named(&bob, drafts, once);
    (bob, batch)
}

pub(super) fn an_answer_is_given_again<S: Store>(bed: &Bed<S>) {
    let bob = bed.author("bob", "phone");
    let once = vec![key("user:bob", "k", "one"), place(&bob, 7, "one")];
    let (_, batch) = many_answers(bed, once.clone());
    let first = bed.commit(batch.clone());
    let codes = [Merged, Superseded, Noop, Gone, Invalid, ConflictPending, DependencyFailed, Gone, Applied];
    assert_eq!((codes_of(&first.results), first.answered), (codes.to_vec(), Answered::Applied));
    let ada = bed.author("ada", "phone");
    bed.check_push(&ada, [create("later", "{}")], &[Applied]);
    bed.world.clock.advance(60_000);
    let (head, row) = (bed.head(bob.tenant), bed.note(&bob, "x"));
    for names in [once.clone(), vec![once[0].clone()], vec![once[1].clone()]] {
        check_replay(bed, &first, Submission { once: names, ..batch.clone() });
    }
    // The names decide, whatever comes under them.
    check_replay(bed, &first, named(&bob, [], [once[0].clone()]));
    // A new key beside the place that is known answers for it, and a new place beside the known key.
    check_replay(bed, &first, named(&bob, [], [key("user:bob", "k2", "one"), once[1].clone()]));
    check_replay(bed, &first, named(&bob, [], [once[0].clone(), place(&bob, 8, "one")]));
    assert_eq!((bed.head(bob.tenant), bed.note(&bob, "x")), (head, row));
    let told = bed.world.listeners.take();
    assert!(told.iter().all(|commit| commit.seq <= head.seq), "nobody hears of it again");

    let kept = block_on(bed.store.remembered(bob.tenant, "user:bob", "k")).expect("a read");
    let Some(Record { fingerprint, expires_ms, state: State::Done(Remembered::Receipt(_)) }) = kept else {
        panic!("{kept:?}")
    };
    assert_eq!((fingerprint, expires_ms), (print_of("one"), World::BEGIN_MS + WINDOW_MS_DEFAULT));
    assert_eq!(block_on(bed.store.remembered(bob.tenant, "user:bob", "k2")), Ok(None));
}

pub(super) fn another_content_under_a_name_is_refused<S: Store>(bed: &Bed<S>) {
    let ada = bed.author("ada", "phone");
    let names = |content| vec![key("user:ada", "k", content), place(&ada, 1, content)];
    let first = bed.commit(named(&ada, [create("x", "{}")], names("one")));
    let head = bed.head(ada.tenant);
    for names in [names("two"), vec![names("two").remove(0)], vec![names("two").remove(1)]] {
        check_reused(bed, named(&ada, [create("y", "{}")], names));
    }
    assert_eq!((bed.head(ada.tenant), bed.row(&ada, "note", "y")), (head, None));
    check_replay(bed, &first, named(&ada, [create("x", "{}")], names("one")));
}

pub(super) fn names_belong_to_their_owners<S: Store>(bed: &Bed<S>) {
    let (ada, tablet) = (bed.author("ada", "phone"), bed.author("ada", "tablet"));
    let other = Author::join(&bed.store, "other", "ada", "phone");
    let batch = |author: &Author, once| named(author, [create("x", r#"{"a":1}"#)], [once]);
    assert_eq!(bed.commit(batch(&ada, key("user:ada", "k", "one"))).answered, Answered::Applied);
    for (who, author, once) in [
        ("another user", &ada, key("user:bob", "k", "two")),
        ("a device", &ada, key("device:ada", "k", "two")),
        ("another key", &ada, key("user:ada", "K", "two")),
        ("another tenant", &other, key("user:ada", "k", "two")),
        ("a batch", &ada, place(&ada, 1, "two")),
        ("another batch", &ada, place(&ada, 2, "three")),
        ("a batch of another device", &tablet, place(&tablet, 1, "three")),
        ("a batch of another tenant", &other, place(&other, 1, "three")),
    ] {
        assert_eq!(bed.commit(batch(author, once.clone())).answered, Answered::Applied, "{who}");
        assert!(bed.commit(batch(author, once)).answered.is_replayed(), "{who}");
    }
}

/// Runs futures at once, on one thread, each begun in its turn before any is waited for.
fn at_once<F: Future>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let mut running: Vec<Pin<Box<F>>> = futures.into_iter().map(Box::pin).collect();
    let mut outputs: Vec<Option<F::Output>> = running.iter().map(|_| None).collect();
    block_on(poll_fn(|context| {
        let waiting = running.iter_mut().zip(&mut outputs).filter(|(_, output)| output.is_none());
        for (future, output) in waiting {
            if let Poll::Ready(done) = future.as_mut().poll(context) {
                *output = Some(done);
            }
        }
        if outputs.iter().all(Option::is_some) { Poll::Ready(()) } else { Poll::Pending }
    }));
    outputs.into_iter().flatten().collect()
}

/// Adds one to a counter: twice is not once.
fn count_one(id: &str) -> Draft {
    let rule = driftline_conflict::FieldRule::Counter;
    let strategy = Strategy::FieldMerge {
        fields: vec![("count".into(), rule)],
        on_delete: driftline_conflict::OnDelete::UpdateWins,
    };
    let intents = Intents { increments: vec![("count".into(), 1)], ..Intents::default() };
    patch(id, 1, "{}").policy(&Arc::new(Policy { strategy, version: 1 })).intents(intents)
}

fn check_twins(receipts: Vec<Result<Receipt, StoreError>>) {
    let receipts: Vec<Receipt> = receipts.into_iter().map(|receipt| receipt.expect("a commit")).collect();
    let applied = receipts.iter().filter(|receipt| receipt.answered == Answered::Applied).count();
    assert_eq!(applied, 1);
    let first = told(receipts[0].clone());
    for receipt in receipts {
        assert!(matches!(receipt.answered, Answered::Applied | Answered::Replayed { .. }));
        assert_eq!(told(receipt), first);
    }
}

pub(super) fn twins_of_a_group_have_one_effect<S: Store>(bed: &Bed<S>) {
    let (ada, bob) = (bed.author("ada", "phone"), bed.author("bob", "phone"));
    bed.check_push(&ada, [create("x", r#"{"count":0}"#)], &[Applied]);
    for (round, once) in [key("user:ada", "k", "one"), place(&ada, 1, "two")].into_iter().enumerate() {
        // What comes first holds the writer up, so that the twins wait and go together.
        let many = (0..500).map(|at| create(&format!("{round}/{at}"), r#"{"a":1}"#));
        let twin = named(&ada, [count_one("x")], [once]);
        let batches = std::iter::once(bob.batch(many)).chain(std::iter::repeat_n(twin, 20));
        let mut receipts = at_once(batches.map(|batch| bed.store.commit(batch)));
        assert_eq!(receipts.remove(0).map(|receipt| receipt.results.len()), Ok(500));
        check_twins(receipts);
        let expected = format!(r#"{{"count":{}}}"#, round + 1);
        assert_eq!(bed.note(&ada, "x").record.fields.as_str(), expected);
    }
}

pub(super) fn parallel_twins_have_one_effect<S: Store>(bed: &Bed<S>) {
    let ada = bed.author("ada", "phone");
    bed.check_push(&ada, [create("x", r#"{"count":0}"#)], &[Applied]);
    let twin = named(&ada, [count_one("x")], [key("user:ada", "k", "one"), place(&ada, 1, "one")]);
    let receipts = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..10)
            .map(|_| {
                let twins = std::iter::repeat_n(twin.clone(), 10);
                scope.spawn(|| twins.map(|twin| block_on(bed.store.commit(twin))).collect::<Vec<_>>())
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("a thread")).collect::<Vec<_>>()
    });
    assert_eq!(receipts.len(), 100);
    check_twins(receipts);
    assert_eq!(bed.note(&ada, "x").record.fields.as_str(), r#"{"count":1}"#);
    assert_eq!(bed.head(ada.tenant).seq, Seq::new(2));
}

pub(super) fn an_answer_is_forgotten_to_the_millisecond<S: Store>(bed: &Bed<S>) {
    let ada = bed.author("ada", "phone");
    let mut short = key("user:ada", "k", "one");
    short.window_ms = 1000;
    let pruned = || block_on(bed.store.prune(bed.world.clock_ms(), &Retention::default())).expect("a prune");
    let answered = |once: &Once| bed.commit(named(&ada, [], [once.clone()])).answered;
    assert_eq!(answered(&short), Answered::Applied);
    bed.world.clock.advance(999);
    assert_eq!((pruned(), answered(&short).is_replayed()), (0, true));
    bed.world.clock.advance(1);
    assert_eq!(answered(&short), Answered::Applied, "forgotten, whether or not it was removed");
    bed.world.clock.advance(1000);
    assert_eq!((pruned(), answered(&short)), (1, Answered::Applied));

    let batch = place(&ada, 1, "one");
    assert_eq!(answered(&batch), Answered::Applied);
    bed.world.clock.advance(DAY_MS - 1);
    pruned();
    assert!(answered(&batch).is_replayed());
    bed.world.clock.advance(1);
    pruned();
    assert_eq!(answered(&batch), Answered::Applied);

    // The same while somebody removes what is past its time again and again.
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                pruned();
            }
        });
        for round in 0..20 {
            let once = Once { window_ms: 1000, ..key("user:ada", "edge", "one") };
            assert_eq!(answered(&once), Answered::Applied, "round {round}");
            bed.world.clock.advance(999);
            assert!(answered(&once).is_replayed(), "round {round}");
            bed.world.clock.advance(1);
        }
        done.store(true, Ordering::SeqCst);
    });
}

pub(super) fn a_large_answer_is_made_of_its_items_again<S: Store>(bed: &Bed<S>) {
    let (ada, bob) = (bed.author("ada", "phone"), bed.author("bob", "phone"));
    let policy =
        Arc::new(Policy { strategy: Strategy::ServerWins { granularity: Granularity::Field }, version: 1 });
    let large = format!(r#"{{"a":"{}"}}"#, "x".repeat(1000));
    bed.push(&ada, (0..100).map(|at| create(&format!("x{at}"), &large)));
    let lost = |at: u64| patch(&format!("x{at}"), 0, r#"{"a":1}"#).n(at + 1).op_id(&format!("lose {at}"));
    let batch = named(
        &bob,
        (0..100).map(|at| lost(at).policy(&policy)),
        [key("user:bob", "k", "one"), place(&bob, 1, "one")],
    );
    let first = bed.commit(batch.clone());
    assert_eq!(codes_of(&first.results), [Superseded; 100]);
    let kept = block_on(bed.store.remembered(bob.tenant, "user:bob", "k")).expect("a read");
    assert_eq!(kept.map(|kept| kept.state), Some(State::Done(Remembered::Items)));
    let head = bed.head(ada.tenant);
    let again = bed.commit(batch);
    assert_eq!(bed.head(ada.tenant), head);
    for (first, again) in first.results.iter().zip(&again.results) {
        assert!(again.duplicate);
        assert_eq!(
            (again.code, again.version, &again.record, &again.winners),
            (first.code, first.version, &first.record, &first.winners)
        );
    }
    check_reused(bed, named(&bob, [], [key("user:bob", "k", "two")]));
    check_reused(bed, named(&bob, [], [place(&bob, 1, "two")]));
}

pub(super) fn what_is_decided_again_is_not_remembered<S: Store>(bed: &Bed<S>) {
    let ada = bed.author("ada", "phone");
    let names = |content| [key("user:ada", "k", content), place(&ada, 1, content)];
    let later = bed.commit(named(&ada, [create("x", "{}"), refused("y", RetryLater)], names("one")));
    assert_eq!(codes_of(&later.results), [Applied, RetryLater]);
    let mut old = named(&ada, [create("z", "{}")], names("two"));
    old.epoch = Some(Epoch::new(bed.head(ada.tenant).epoch.number() ^ 1));
    assert_eq!(codes_of(&bed.commit(old).results), [EpochChanged]);
    assert_eq!(block_on(bed.store.remembered(ada.tenant, "user:ada", "k")), Ok(None));
    let progress = block_on(bed.store.session(ada.tenant, ada.device, &session())).expect("a read");
    assert_eq!(progress.map(|progress| progress.batches), Some(vec![1]), "it was answered all the same");

    let other = named(&ada, [create("z", "{}")], names("three"));
    let first = bed.commit(other.clone());
    assert_eq!((codes_of(&first.results), first.answered), (vec![Applied], Answered::Applied));
    check_replay(bed, &first, other);
}

/// Answers are given again by a store that was opened again.
pub(super) fn answers_are_still_there<S: Store>(world: World, open: &impl Fn(&World) -> S) {
    let bed = Bed::new(world, open);
    let bob = bed.author("bob", "phone");
    let once = vec![key("user:bob", "k", "one"), place(&bob, 7, "one")];
    let (_, batch) = many_answers(&bed, once.clone());
    let first = bed.commit(batch);
    let replayed = bed.commit(named(&bob, [], once.clone()));
    let Bed { store, world } = bed;
    drop(store);
    let bed = Bed::new(world, open);
    for once in once {
        let again = bed.commit(named(&bob, [], [once]));
        assert_eq!(told(again.clone()), told(first.clone()));
        assert_eq!(again, replayed, "what is read of the store is the same each time");
    }
    check_reused(&bed, named(&bob, [], [key("user:bob", "k", "two")]));
}
