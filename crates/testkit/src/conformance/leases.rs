//! Keys of effects outside the database.

use driftline_engine::{Answered, Remembered, Retention, Store};
use driftline_idempotency::{
    Answer, Claim, Claimed, CompleteError, EffectId, Held, Key, MemoryRecords, Records, Scope, State,
    WINDOW_MS_DEFAULT, WINDOW_MS_MAX,
};
use driftline_protocol::ItemCode::Applied;

use super::once::{key, named, print_of};
use super::{Bed, Law, codes_of};
use crate::batch::create;
use crate::rng::Rng;
use crate::wait::block_on;
use crate::world::World;

/// Lists the laws of a store that is asked for leases, with their names.
pub(super) fn laws<S: Store + Records>() -> Vec<(&'static str, Law<S>)> {
    vec![
        ("leases::a_claim_is_held_until_its_lease_ends", a_claim_is_held_until_its_lease_ends),
        ("leases::a_batch_meets_a_lease", a_batch_meets_a_lease),
        ("leases::who_was_overtaken_is_fenced_off_for_ever", who_was_overtaken_is_fenced_off_for_ever),
        ("leases::leases_are_those_of_a_table_in_memory", leases_are_those_of_a_table_in_memory),
    ]
}

fn asked(tenant: &str, owner: &str, name: &str, content: &str, now_ms: u64) -> Claim {
    Claim {
        scope: Scope::new(tenant, owner).expect("a scope"),
        key: Key::new(name).expect("a key"),
        fingerprint: print_of(content),
        now_ms: World::BEGIN_MS + now_ms,
        lease_ms: 100,
        window_ms: 1000,
    }
}

fn one(now_ms: u64) -> Claim {
    asked("acme", "user:ada", "k", "one", now_ms)
}

fn claim<S: Records>(bed: &Bed<S>, claim: &Claim) -> Claimed {
    block_on(bed.store.claim(claim.clone())).expect("an answer")
}

#[track_caller]
fn granted<S: Records>(bed: &Bed<S>, asked: &Claim) -> Held {
    match claim(bed, asked) {
        Claimed::Granted { attempt, effect_id } => {
            assert_eq!(effect_id, EffectId::new(&asked.scope, &asked.key));
            Held { scope: asked.scope.clone(), key: asked.key.clone(), attempt }
        }
        other => panic!("{other:?}"),
    }
}

fn complete<S: Records>(bed: &Bed<S>, held: &Held, now_ms: u64) -> bool {
    match block_on(bed.store.complete(held, answer(), World::BEGIN_MS + now_ms)) {
        Ok(()) => true,
        Err(CompleteError::Fenced) => false,
        Err(error) => panic!("{error}"),
    }
}

fn answer() -> Answer {
    let headers = vec![("etag".into(), b"\"7\""[..].into())];
    Answer::whole(201, headers, b"{\"id\":1}").expect("a small one")
}

fn a_claim_is_held_until_its_lease_ends<S: Store + Records>(bed: &Bed<S>) {
    let first = granted(bed, &one(0));
    assert_eq!(claim(bed, &one(99)), Claimed::InProgress { retry_after_ms: 1 });
    for other in ["two", ""] {
        assert_eq!(claim(bed, &asked("acme", "user:ada", "k", other, 100)), Claimed::Mismatch);
    }
    // Another tenant's, another owner's and another key are others.
    for (tenant, owner, name) in
        [("other", "user:ada", "k"), ("acme", "user:bob", "k"), ("acme", "user:ada", "K")]
    {
        granted(bed, &asked(tenant, owner, name, "two", 0));
    }
    assert!(complete(bed, &first, 50));
    let replay = Claimed::Replay { answer: answer(), expires_ms: World::BEGIN_MS + 1000 };
    assert_eq!((claim(bed, &one(60)), claim(bed, &one(999))), (replay.clone(), replay));
    assert_eq!(claim(bed, &asked("acme", "user:ada", "k", "two", 60)), Claimed::Mismatch);
    assert!(!complete(bed, &first, 60), "it was completed");
    let second = granted(bed, &one(1000));
    assert!(second.attempt > first.attempt);
    block_on(bed.store.release(&second)).expect("a release");
    granted(bed, &asked("acme", "user:ada", "k", "two", 1001));

    // The longest time is kept to.
    let long = Claim { window_ms: u64::MAX, ..asked("acme", "user:ada", "long", "one", 0) };
    assert!(complete(bed, &granted(bed, &long), 0));
    let expires_ms = World::BEGIN_MS + WINDOW_MS_MAX;
    assert_eq!(claim(bed, &long), Claimed::Replay { answer: answer(), expires_ms });
}

fn a_batch_meets_a_lease<S: Store + Records>(bed: &Bed<S>) {
    let ada = bed.author("ada", "phone");
    let batch = |content| named(&ada, [create("x", "{}")], [key("user:ada", "k", content)]);
    let held = granted(bed, &one(0));
    let met = bed.commit(batch("one"));
    assert_eq!(met.answered, Answered::InProgress { retry_after_ms: 100 });
    assert_eq!((met.results.len(), bed.row(&ada, "note", "x")), (0, None));
    assert_eq!(bed.commit(batch("two")).answered, Answered::Reused);
    let kept = block_on(bed.store.remembered(ada.tenant, "user:ada", "k")).expect("a read");
    let lease = State::Leased { attempt: held.attempt, until_ms: World::BEGIN_MS + 100 };
    assert_eq!(kept.map(|kept| kept.state), Some(lease));
    bed.world.clock.advance(100);
    let taken = bed.commit(batch("one"));
    assert_eq!((codes_of(&taken.results), taken.answered), (vec![Applied], Answered::Applied));
    assert!(!complete(bed, &held, 101), "the batch took over");
    block_on(bed.store.release(&held)).expect("nothing");
    assert!(bed.commit(batch("one")).answered.is_replayed());
    assert_eq!(claim(bed, &one(102)), Claimed::Mismatch, "a batch is another request");

    // An answer that somebody keeps as it is is none of a batch.
    let other = asked("acme", "user:ada", "other", "one", 0);
    assert!(complete(bed, &granted(bed, &other), 1));
    let once = Some(key("user:ada", "other", "one"));
    assert_eq!(bed.commit(named(&ada, [create("y", "{}")], once)).answered, Answered::Reused);
    let kept = block_on(bed.store.remembered(ada.tenant, "user:ada", "other")).expect("a read");
    assert!(matches!(kept.map(|kept| kept.state), Some(State::Done(Remembered::Bytes(_)))));
}

fn who_was_overtaken_is_fenced_off_for_ever<S: Store + Records>(bed: &Bed<S>) {
    let first = granted(bed, &one(0));
    let second = granted(bed, &one(100));
    assert!(second.attempt > first.attempt);
    assert!(!complete(bed, &first, 101));
    block_on(bed.store.release(&first)).expect("nothing");
    assert_eq!(claim(bed, &one(150)), Claimed::InProgress { retry_after_ms: 50 }, "the second holds it");
    block_on(bed.store.release(&second)).expect("a release");
    let third = granted(bed, &one(151));
    assert!(third.attempt > second.attempt, "also after a release");
    assert!(!complete(bed, &second, 152));
    assert!(!complete(bed, &third, 1151), "it expired");
    let fourth = granted(bed, &one(1151));
    let prune = |now_ms| block_on(Records::prune(&bed.store, World::BEGIN_MS + now_ms, 10));
    assert_eq!((prune(2150).expect("a prune"), prune(2151).expect("a prune")), (0, 1));
    let fifth = granted(bed, &one(2151));
    assert!(third.attempt < fourth.attempt && fourth.attempt < fifth.attempt, "also after a removal");
    let now_ms = World::BEGIN_MS + 2151 + WINDOW_MS_DEFAULT;
    let removed = block_on(Store::prune(&bed.store, now_ms, &Retention::default()));
    assert_eq!(removed, Ok(1), "the store's own retention removes them too");
    assert!(granted(bed, &one(2152)).attempt > fifth.attempt);
}

fn leases_are_those_of_a_table_in_memory<S: Store + Records>(bed: &Bed<S>) {
    let (mut granted, mut fenced, mut replayed) = (0, 0, 0);
    for seed in 0..6 {
        println!("seed {seed}");
        let rng = &mut Rng::new(seed);
        let model = MemoryRecords::default();
        // Claims that were granted, as the model and as the store numbers them.
        let mut held: Vec<(Held, Held)> = Vec::new();
        let mut now_ms = 0;
        for step in 0..400 {
            let what = format!("seed {seed}, step {step}");
            now_ms += *rng.pick(&[0, 0, 1, 7, 99, 100, 600]);
            let owner = format!("seed {seed} {}", rng.below(2));
            match rng.below(10) {
                0..5 => {
                    let names = (*rng.pick(&["acme", "other"]), *rng.pick(&["a", "b", "c"]));
                    let content = *rng.pick(&["one", "one", "two"]);
                    let asked = asked(names.0, &owner, names.1, content, now_ms);
                    let expected = block_on(model.claim(asked.clone())).expect("an answer");
                    let met = claim(bed, &asked);
                    replayed += u32::from(matches!(met, Claimed::Replay { .. }));
                    let (Claimed::Granted { attempt: theirs, .. }, Claimed::Granted { attempt, effect_id }) =
                        (&expected, &met)
                    else {
                        assert_eq!(met, expected, "{what}");
                        continue;
                    };
                    granted += 1;
                    assert_eq!(*effect_id, EffectId::new(&asked.scope, &asked.key));
                    let own = |attempt| Held { scope: asked.scope.clone(), key: asked.key.clone(), attempt };
                    let same = |held: &&(Held, Held)| held.1.scope == asked.scope && held.1.key == asked.key;
                    assert!(held.iter().filter(same).all(|held| held.1.attempt < *attempt), "{what}");
                    held.push((own(*theirs), own(*attempt)));
                }
                5..8 if !held.is_empty() => {
                    let (theirs, own) = &held[held.len() - 1 - rng.place(held.len().min(6))];
                    let expected = block_on(model.complete(theirs, answer(), World::BEGIN_MS + now_ms));
                    assert_eq!(complete(bed, own, now_ms), expected.is_ok(), "{what}");
                    fenced += u32::from(expected.is_err());
                }
                8 if !held.is_empty() => {
                    let (theirs, own) = &held[held.len() - 1 - rng.place(held.len().min(6))];
                    block_on(model.release(theirs)).expect("a release");
                    block_on(bed.store.release(own)).expect("a release");
                }
                _ => {
                    let limit = rng.place(3);
                    let at_ms = World::BEGIN_MS + now_ms;
                    let expected = block_on(model.prune(at_ms, limit)).expect("a prune");
                    let removed = block_on(Records::prune(&bed.store, at_ms, limit)).expect("a prune");
                    assert_eq!(removed, expected, "{what}");
                }
            }
        }
        // What is left is gone before the next history begins.
        let far_ms = World::BEGIN_MS + now_ms + WINDOW_MS_MAX;
        block_on(Records::prune(&bed.store, far_ms, usize::MAX)).expect("a prune");
    }
    assert!(granted > 100 && fenced > 50 && replayed > 20, "{granted} {fenced} {replayed}");
}
