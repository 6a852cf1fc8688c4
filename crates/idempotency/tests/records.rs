//! Records in memory: twins, scopes, releases, take-overs, expiry and bounds.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use driftline_idempotency::{
    ANSWER_BYTES_MAX, Answer, Claim, Claimed, CompleteError, EffectId, Held, MemoryLimits, MemoryRecords,
    Records, WINDOW_MS_MAX,
};

mod support;

use support::{LEASE_MS, WINDOW_MS, answer, claim, claimed, full, granted, key, now, scope};

#[track_caller]
fn fenced(result: &Result<(), CompleteError>) {
    assert!(matches!(result, Err(CompleteError::Fenced)), "{result:?}");
}

fn replay(text: &str, expires_ms: u64) -> Claimed {
    Claimed::Replay { answer: answer(text), expires_ms }
}

#[test]
fn a_hundred_twins_have_one_effect_and_one_answer() {
    let records = Arc::new(MemoryRecords::default());
    let effects = Arc::new(AtomicUsize::new(0));
    let twin = |_| {
        let (records, effects) = (Arc::clone(&records), Arc::clone(&effects));
        thread::spawn(move || {
            loop {
                match claimed(&records, claim("k", "pay", 0)) {
                    Claimed::Granted { .. } if effects.fetch_add(1, Ordering::SeqCst) > 0 => {
                        panic!("a second grant")
                    }
                    Claimed::Granted { attempt, .. } => {
                        let (scope, key) = (scope("t", "u"), key("k"));
                        let held = Held { scope, key, attempt };
                        now(records.complete(&held, answer("paid"), 0)).expect("the claim is held");
                    }
                    Claimed::Replay { answer, .. } => return answer,
                    Claimed::InProgress { .. } => thread::yield_now(),
                    Claimed::Mismatch => panic!("the same request"),
                }
            }
        })
    };
    let twins: Vec<_> = (0..100).map(twin).collect();
    for twin in twins {
        assert_eq!(twin.join().expect("a twin ends"), answer("paid"));
    }
    assert_eq!(effects.load(Ordering::SeqCst), 1);
}

#[test]
fn another_body_is_refused_and_the_first_record_unharmed() {
    let records = MemoryRecords::default();
    let (held, _) = granted(&records, claim("k", "pay", 0));
    assert_eq!(claimed(&records, claim("k", "pay more", 1)), Claimed::Mismatch);
    assert_eq!(claimed(&records, claim("k", "pay", 1)), Claimed::InProgress { retry_after_ms: LEASE_MS - 1 });
    now(records.complete(&held, answer("paid"), 2)).expect("the claim is held");
    assert_eq!(claimed(&records, claim("k", "pay more", 3)), Claimed::Mismatch);
    assert_eq!(claimed(&records, claim("k", "pay", 3)), replay("paid", WINDOW_MS));
}

#[test]
fn the_key_of_another_tenant_or_owner_is_another_key() {
    let records = MemoryRecords::default();
    let (held, effect) = granted(&records, claim("k", "pay", 0));
    now(records.complete(&held, answer("paid"), 0)).expect("the claim is held");
    let mut effects = vec![effect];
    for (tenant, owner, key_text) in [
        ("t2", "u", "k"),
        ("t", "u2", "k"),
        ("t", "u", "k2"),
        ("tu", "u", "k"),
        ("t", "uk", "k"),
        ("u", "t", "k"),
    ] {
        let other =
            Claim { scope: scope(tenant, owner), key: key(key_text), ..claim("k", "something else", 1) };
        effects.push(granted(&records, other).1);
    }
    let count = effects.len();
    effects.sort_by_key(|effect| *effect.as_bytes());
    effects.dedup();
    assert_eq!(effects.len(), count, "every request has its own effect id");
    assert_eq!(claimed(&records, claim("k", "pay", 1)), replay("paid", WINDOW_MS));
}

#[test]
fn a_release_frees_the_key_for_any_request() {
    let records = MemoryRecords::default();
    let (first, _) = granted(&records, claim("k", "bad", 0));
    now(records.release(&first)).expect("the records answer");
    assert_eq!((records.entries(), records.bytes()), (0, 0));
    let (second, _) = granted(&records, claim("k", "good", 1));
    assert!(second.attempt > first.attempt);
    // The first one's late calls do not touch the second one's claim.
    fenced(&now(records.complete(&first, answer("late"), 2)));
    now(records.release(&first)).expect("the records answer");
    assert!(matches!(claimed(&records, claim("k", "good", 2)), Claimed::InProgress { .. }));
    now(records.complete(&second, answer("done"), 3)).expect("the claim is held");
    // What is finished stays.
    now(records.release(&second)).expect("the records answer");
    assert_eq!(claimed(&records, claim("k", "good", 4)), replay("done", 1 + WINDOW_MS));
}

#[test]
fn who_was_overtaken_is_fenced_off() {
    let records = MemoryRecords::default();
    let (slow, effect) = granted(&records, claim("k", "pay", 0));
    assert_eq!(claimed(&records, claim("k", "pay", LEASE_MS - 1)), Claimed::InProgress { retry_after_ms: 1 });
    assert_eq!(claimed(&records, claim("k", "other", LEASE_MS)), Claimed::Mismatch);
    let (fast, same_effect) = granted(&records, claim("k", "pay", LEASE_MS));
    assert!(fast.attempt > slow.attempt);
    assert_eq!(same_effect, effect);
    assert_eq!(effect, EffectId::new(&slow.scope, &slow.key));
    fenced(&now(records.complete(&slow, answer("slow"), LEASE_MS)));
    now(records.release(&slow)).expect("the records answer");
    now(records.complete(&fast, answer("fast"), LEASE_MS + 1)).expect("the claim is held");
    fenced(&now(records.complete(&slow, answer("slow"), LEASE_MS + 2)));
    assert_eq!(claimed(&records, claim("k", "pay", LEASE_MS + 3)), replay("fast", LEASE_MS + WINDOW_MS));
}

#[test]
fn a_number_that_was_never_granted_holds_nothing() {
    let records = MemoryRecords::default();
    let (held, _) = granted(&records, claim("k", "pay", 0));
    for attempt in [0, held.attempt - 1, held.attempt + 1, u64::MAX] {
        let forged = Held { attempt, ..held.clone() };
        fenced(&now(records.complete(&forged, answer("forged"), 1)));
        now(records.release(&forged)).expect("the records answer");
    }
    let elsewhere = Held { key: key("k2"), ..held.clone() };
    fenced(&now(records.complete(&elsewhere, answer("forged"), 1)));
    now(records.complete(&held, answer("paid"), 1)).expect("the claim is held");
}

#[test]
fn a_lease_that_ended_and_was_not_taken_over_still_completes() {
    let records = MemoryRecords::default();
    let (slow, _) = granted(&records, claim("k", "pay", 0));
    now(records.complete(&slow, answer("slow"), WINDOW_MS - 1)).expect("nobody took over");
    fenced(&now(records.complete(&slow, answer("again"), WINDOW_MS - 1)));
    assert_eq!(claimed(&records, claim("k", "pay", WINDOW_MS - 1)), replay("slow", WINDOW_MS));
}

#[test]
fn an_expired_claim_is_fenced_whether_or_not_it_was_removed() {
    for cleaned in [false, true] {
        let records = MemoryRecords::default();
        let (slow, _) = granted(&records, claim("k", "pay", 0));
        if cleaned {
            assert_eq!(now(records.prune(WINDOW_MS, 10)).expect("the records answer"), 1);
        }
        fenced(&now(records.complete(&slow, answer("late"), WINDOW_MS)));
        let (next, _) = granted(&records, claim("k", "other", WINDOW_MS));
        assert!(next.attempt > slow.attempt);
        fenced(&now(records.complete(&slow, answer("late"), WINDOW_MS)));
    }
}

#[test]
fn windows_are_bounded_and_outlast_leases() {
    let records = MemoryRecords::default();
    let (held, _) = granted(&records, Claim { window_ms: u64::MAX, ..claim("long", "a", 5) });
    now(records.complete(&held, answer("a"), 5)).expect("the claim is held");
    assert_eq!(claimed(&records, claim("long", "a", 6)), replay("a", 5 + WINDOW_MS_MAX));
    let (held, _) = granted(&records, Claim { window_ms: 0, ..claim("short", "b", 5) });
    now(records.complete(&held, answer("b"), 5)).expect("the claim is held");
    assert_eq!(claimed(&records, claim("short", "b", 6)), replay("b", 5 + LEASE_MS));
    // A time at the end of all times does not overflow.
    granted(&records, Claim { lease_ms: u64::MAX, ..claim("last", "c", u64::MAX - 1) });
}

/// Readers at the last millisecond see the answer and readers at the next one do not, while a cleaner runs beside them.
#[test]
fn the_edge_of_the_window_is_sharp_while_the_cleaner_runs() {
    let records = Arc::new(MemoryRecords::default());
    let stop = Arc::new(AtomicBool::new(false));
    let cleaner = {
        let (records, stop) = (Arc::clone(&records), Arc::clone(&stop));
        thread::spawn(move || {
            while !stop.load(Ordering::SeqCst) {
                now(records.prune(WINDOW_MS - 1, 3)).expect("the records answer");
                thread::yield_now();
            }
        })
    };
    for round in 0..500 {
        let name = format!("k{round}");
        let (held, _) = granted(&records, claim(&name, "pay", 0));
        now(records.complete(&held, answer(&name), 0)).expect("the claim is held");
        assert_eq!(claimed(&records, claim(&name, "pay", WINDOW_MS - 1)), replay(&name, WINDOW_MS));
        granted(&records, claim(&name, "pay", WINDOW_MS));
    }
    stop.store(true, Ordering::SeqCst);
    cleaner.join().expect("the cleaner ends");
    assert_eq!(records.entries(), 500, "the cleaner took nothing that was promised");
    assert_eq!(now(records.prune(2 * WINDOW_MS - 1, 1_000)).expect("the records answer"), 0);
    assert_eq!(now(records.prune(2 * WINDOW_MS, 300)).expect("the records answer"), 300);
    assert_eq!(now(records.prune(2 * WINDOW_MS, 300)).expect("the records answer"), 200);
    assert_eq!((records.entries(), records.bytes()), (0, 0));
}

#[test]
fn entries_are_bounded_and_only_expired_ones_give_way() {
    let records = MemoryRecords::new(MemoryLimits { entries: 2, ..MemoryLimits::default() });
    for (name, at) in [("a", 0), ("b", 1)] {
        let (held, _) = granted(&records, claim(name, "pay", at));
        now(records.complete(&held, answer(name), at)).expect("the claim is held");
    }
    full(&records, claim("c", "pay", WINDOW_MS - 1));
    assert_eq!(claimed(&records, claim("a", "pay", WINDOW_MS - 1)), replay("a", WINDOW_MS));
    granted(&records, claim("c", "pay", WINDOW_MS));
    assert_eq!(records.entries(), 2);
    assert_eq!(claimed(&records, claim("b", "pay", WINDOW_MS)), replay("b", 1 + WINDOW_MS));
}

#[test]
fn bytes_are_bounded_and_a_claim_has_room_for_the_largest_answer() {
    let claim_bytes = MemoryLimits::ENTRY_BYTES + ANSWER_BYTES_MAX;
    let records = MemoryRecords::new(MemoryLimits { entries: 100, bytes: 2 * claim_bytes });
    let (first, _) = granted(&records, claim("a", "pay", 0));
    let (second, _) = granted(&records, claim("b", "pay", 0));
    assert_eq!(records.bytes(), 2 * claim_bytes);
    full(&records, claim("c", "pay", 0));
    let largest = Answer::whole(200, vec![], &vec![b'x'; ANSWER_BYTES_MAX]).expect("just fits");
    now(records.complete(&first, largest.clone(), 1)).expect("its room was kept");
    assert_eq!(records.bytes(), 2 * claim_bytes);
    now(records.complete(&second, Answer::lost(200), 1)).expect("its room was kept");
    assert_eq!(records.bytes(), claim_bytes + MemoryLimits::ENTRY_BYTES);
    full(&records, claim("c", "pay", 1));
    // A lapsed claim that is taken over, and one that is still there, need no more room than they have.
    let tight = MemoryRecords::new(MemoryLimits { entries: 1, bytes: claim_bytes });
    granted(&tight, claim("a", "pay", 0));
    granted(&tight, claim("a", "pay", LEASE_MS));
    assert_eq!((tight.entries(), tight.bytes()), (1, claim_bytes));
    assert_eq!(
        claimed(&records, claim("a", "pay", 1)),
        Claimed::Replay { answer: largest, expires_ms: WINDOW_MS }
    );
}
