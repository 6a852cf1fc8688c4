//! The cache: what it answers is what the records would answer, and losing it costs only time.

use std::sync::atomic::{AtomicUsize, Ordering};

use driftline_idempotency::{
    Answer, Answers, Cached, Claim, Claimed, CompleteError, Held, Hit, MemoryRecords, Record, Records,
    RecordsError, State,
};

mod support;

use support::rng::Rng;
use support::{WINDOW_MS, answer, claim, claimed, fingerprint, granted, key, now, scope};

/// Records that count the questions to them.
#[derive(Default)]
struct Counted {
    records: MemoryRecords,
    claims: AtomicUsize,
}

impl Records for Counted {
    fn claim(&self, claim: Claim) -> impl Future<Output = Result<Claimed, RecordsError>> + Send {
        self.claims.fetch_add(1, Ordering::SeqCst);
        self.records.claim(claim)
    }

    fn complete(
        &self,
        held: &Held,
        answer: Answer,
        now_ms: u64,
    ) -> impl Future<Output = Result<(), CompleteError>> + Send {
        self.records.complete(held, answer, now_ms)
    }

    fn release(&self, held: &Held) -> impl Future<Output = Result<(), RecordsError>> + Send {
        self.records.release(held)
    }

    fn prune(&self, now_ms: u64, limit: usize) -> impl Future<Output = Result<usize, RecordsError>> + Send {
        self.records.prune(now_ms, limit)
    }
}

fn paid() -> Cached<Counted> {
    let cached = Cached::new(Counted::default(), 1024 * 1024);
    let (held, _) = granted(&cached, claim("k", "pay", 0));
    now(cached.complete(&held, answer("paid"), 0)).expect("the claim is held");
    cached
}

fn asked(cached: &Cached<Counted>) -> usize {
    cached.records().claims.swap(0, Ordering::SeqCst)
}

#[test]
fn the_second_replay_comes_from_memory_and_a_cleared_cache_costs_a_question() {
    let cached = paid();
    let replay = Claimed::Replay { answer: answer("paid"), expires_ms: WINDOW_MS };
    assert_eq!(asked(&cached), 1);
    for questions in [1, 0, 0] {
        assert_eq!(claimed(&cached, claim("k", "pay", 1)), replay);
        assert_eq!(asked(&cached), questions);
    }
    assert_eq!(claimed(&cached, claim("k", "other", 1)), Claimed::Mismatch);
    assert_eq!(asked(&cached), 0);
    cached.clear();
    assert_eq!(claimed(&cached, claim("k", "pay", 1)), replay);
    assert_eq!(asked(&cached), 1);
    cached.answers().forget(&scope("t", "u"), &key("k"));
    assert_eq!(claimed(&cached, claim("k", "other", 1)), Claimed::Mismatch);
    assert_eq!(asked(&cached), 1);
}

#[test]
fn an_expired_answer_is_not_given_from_memory() {
    let cached = paid();
    assert!(matches!(claimed(&cached, claim("k", "pay", WINDOW_MS - 1)), Claimed::Replay { .. }));
    assert!(matches!(claimed(&cached, claim("k", "pay", WINDOW_MS)), Claimed::Granted { .. }));
    assert!(matches!(claimed(&cached, claim("k", "pay", WINDOW_MS)), Claimed::InProgress { .. }));
}

#[test]
fn another_owner_is_not_answered_from_memory() {
    let cached = paid();
    assert!(matches!(claimed(&cached, claim("k", "pay", 1)), Claimed::Replay { .. }));
    for (tenant, owner) in [("t2", "u"), ("t", "u2")] {
        let other = Claim { scope: scope(tenant, owner), ..claim("k", "pay", 1) };
        assert!(matches!(claimed(&cached, other), Claimed::Granted { .. }));
    }
}

/// Plays one random history on records alone and on records behind a small cache that is cleared now and then.
fn play(seed: u64) {
    let mut rng = Rng::new(seed);
    let (plain, cached) = (MemoryRecords::default(), Cached::new(MemoryRecords::default(), 2_000));
    let mut holders: Vec<Held> = Vec::new();
    let mut now_ms = 0;
    for step in 0..60 {
        now_ms += [0, 1, 10, 300][rng.below(4)];
        match rng.below(8) {
            0..=3 => {
                let name = format!("k{}", rng.below(4));
                let claim = claim(&name, if rng.percent(85) { "pay" } else { "other" }, now_ms);
                let expected = claimed(&plain, claim.clone());
                assert_eq!(claimed(&cached, claim.clone()), expected, "seed {seed}, step {step} at {now_ms}");
                if let Claimed::Granted { attempt, .. } = expected {
                    holders.push(Held { scope: claim.scope, key: claim.key, attempt });
                }
            }
            4..=5 if !holders.is_empty() => {
                let held = rng.pick(&holders).clone();
                let given = answer(&"x".repeat(rng.below(400)));
                let expected = now(plain.complete(&held, given.clone(), now_ms)).is_ok();
                let actual = now(cached.complete(&held, given, now_ms)).is_ok();
                assert_eq!(actual, expected, "seed {seed}, step {step}");
            }
            6 if !holders.is_empty() => {
                let held = rng.pick(&holders).clone();
                now(plain.release(&held)).expect("the records answer");
                now(cached.release(&held)).expect("the records answer");
            }
            _ if rng.percent(50) => cached.clear(),
            _ => drop(now(cached.prune(now_ms, 2)).expect("the records answer")),
        }
    }
}

#[test]
fn cache_and_records_answer_the_same_bytes() {
    match std::env::var("MODEL_SEED") {
        Ok(seed) => play(seed.parse().expect("a number")),
        Err(_) => (0..500).for_each(play),
    }
}

#[test]
fn answers_of_any_type_are_bounded_in_bytes() {
    let answers: Answers<String> = Answers::new(100_000);
    let name = |at: usize| key(&format!("k{at}"));
    let whose = scope("t", "u");
    for at in 0..1_000 {
        let text = format!("{at:1000}");
        let record =
            Record { fingerprint: fingerprint("pay"), expires_ms: 10, state: State::Done(text.clone()) };
        answers.keep(&whose, &name(at), record, text.len());
        assert!(answers.bytes() <= 100_000);
    }
    let found = |at: usize| answers.find(&whose, &name(at), &fingerprint("pay"), 9);
    let kept: Vec<usize> = (0..1_000).filter(|at| found(*at).is_some()).collect();
    assert!(!kept.is_empty() && kept.len() <= 100_000 / 1_256, "{} are kept", kept.len());
    for at in kept {
        assert_eq!(found(at), Some(Hit::Replay { answer: format!("{at:1000}"), expires_ms: 10 }));
        assert_eq!(answers.find(&whose, &name(at), &fingerprint("pay"), 10), None);
        assert_eq!(answers.find(&whose, &name(at), &fingerprint("other"), 9), Some(Hit::Mismatch));
        assert_eq!(answers.find(&scope("t", "v"), &name(at), &fingerprint("pay"), 9), None);
    }
    answers.clear();
    assert_eq!(answers.bytes(), 0);
}

#[test]
fn a_leased_record_is_not_kept() {
    let answers: Answers<String> = Answers::new(100_000);
    let state = State::Leased { attempt: 1, until_ms: 5 };
    let record = Record { fingerprint: fingerprint("pay"), expires_ms: 10, state };
    answers.keep(&scope("t", "u"), &key("k"), record, 0);
    assert_eq!(answers.find(&scope("t", "u"), &key("k"), &fingerprint("pay"), 1), None);
    assert_eq!(answers.bytes(), 0);
}
