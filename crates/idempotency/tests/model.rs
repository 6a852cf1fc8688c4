//! Random histories of claims, completions, releases and removals, beside a plain map.
//!
//! A failure names its seed: `MODEL_SEED=<seed>` plays that history alone; `MODEL_HISTORIES` says how many are played.

use std::collections::HashMap;

use driftline_idempotency::{
    Answer, Claim, Claimed, CompleteError, EffectId, Fingerprint, Held, Key, MemoryLimits, MemoryRecords,
    Records, RecordsError, Scope,
};

mod support;

use support::rng::Rng;
use support::{answer, fingerprint, key, now, scope};

const ENTRIES: usize = 6;

/// What the records should hold, in the plainest way: a map that is searched, and whose expired entries stay until asked.
#[derive(Default)]
struct Model {
    entries: HashMap<(Scope, Key), Entry>,
    attempts: u64,
}

struct Entry {
    fingerprint: Fingerprint,
    expires_ms: u64,
    attempt: u64,
    until_ms: u64,
    answer: Option<Answer>,
}

/// What a claim should give.
#[derive(Debug, PartialEq)]
enum Expected {
    Claimed(Claimed),
    Full,
}

impl Model {
    fn alive(&self, now_ms: u64) -> usize {
        self.entries.values().filter(|entry| now_ms < entry.expires_ms).count()
    }

    fn claim(&mut self, claim: &Claim) -> Expected {
        let name = (claim.scope.clone(), claim.key.clone());
        let now_ms = claim.now_ms;
        if let Some(entry) = self.entries.get(&name).filter(|entry| now_ms < entry.expires_ms) {
            if entry.fingerprint != claim.fingerprint {
                return Expected::Claimed(Claimed::Mismatch);
            }
            if let Some(answer) = entry.answer.clone() {
                return Expected::Claimed(Claimed::Replay { answer, expires_ms: entry.expires_ms });
            }
            if now_ms < entry.until_ms {
                return Expected::Claimed(Claimed::InProgress { retry_after_ms: entry.until_ms - now_ms });
            }
        } else if self.alive(now_ms) >= ENTRIES {
            return Expected::Full;
        }
        self.attempts += 1;
        let entry = Entry {
            fingerprint: claim.fingerprint,
            expires_ms: now_ms + claim.window_ms.max(claim.lease_ms),
            attempt: self.attempts,
            until_ms: now_ms + claim.lease_ms,
            answer: None,
        };
        let effect_id = EffectId::new(&claim.scope, &claim.key);
        self.entries.insert(name, entry);
        Expected::Claimed(Claimed::Granted { attempt: self.attempts, effect_id })
    }

    /// Says whether the completion counts.
    fn complete(&mut self, held: &Held, answer: &Answer, now_ms: u64) -> bool {
        let entry = self.entries.get_mut(&(held.scope.clone(), held.key.clone()));
        let held = |entry: &&mut Entry| {
            entry.attempt == held.attempt && entry.answer.is_none() && now_ms < entry.expires_ms
        };
        entry.filter(held).map(|entry| entry.answer = Some(answer.clone())).is_some()
    }

    fn release(&mut self, held: &Held) {
        let name = (held.scope.clone(), held.key.clone());
        let holds = |entry: &Entry| entry.attempt == held.attempt && entry.answer.is_none();
        if self.entries.get(&name).is_some_and(holds) {
            self.entries.remove(&name);
        }
    }
}

/// Plays one history; every answer is compared.
fn play(seed: u64) {
    let mut rng = Rng::new(seed);
    let records = MemoryRecords::new(MemoryLimits { entries: ENTRIES, ..MemoryLimits::default() });
    let mut model = Model::default();
    // Everybody who was ever granted something may come back late.
    let mut holders: Vec<Held> = Vec::new();
    let (mut now_ms, mut effects) = (0, HashMap::new());
    for step in 0..rng.between(20, 120) {
        now_ms += [0, 1, 5, 20, 100][rng.below(5)];
        match rng.below(10) {
            0..=4 => {
                let claim = random_claim(&mut rng, now_ms);
                let (expected, actual) = (model.claim(&claim), now(records.claim(claim.clone())));
                let actual = match actual {
                    Ok(claimed) => Expected::Claimed(claimed),
                    Err(RecordsError::Full) => Expected::Full,
                    Err(error) => panic!("seed {seed}, step {step}: {error}"),
                };
                assert_eq!(actual, expected, "seed {seed}, step {step} at {now_ms}: {claim:?}");
                if let Expected::Claimed(Claimed::Granted { attempt, effect_id }) = actual {
                    let Claim { scope, key, .. } = claim;
                    let first = *effects.entry((scope.clone(), key.clone())).or_insert(effect_id);
                    assert_eq!(first, effect_id, "seed {seed}, step {step}: another effect id");
                    holders.push(Held { scope, key, attempt });
                }
            }
            5..=7 if !holders.is_empty() => {
                let held = rng.pick(&holders).clone();
                let given = answer(&format!("answer {step}"));
                let counts = model.complete(&held, &given, now_ms);
                match now(records.complete(&held, given, now_ms)) {
                    Ok(()) => assert!(counts, "seed {seed}, step {step}: {held:?} was fenced"),
                    Err(CompleteError::Fenced) => {
                        assert!(!counts, "seed {seed}, step {step}: {held:?} holds")
                    }
                    Err(error) => panic!("seed {seed}, step {step}: {error}"),
                }
            }
            8 if !holders.is_empty() => {
                let held = rng.pick(&holders).clone();
                model.release(&held);
                now(records.release(&held)).expect("the records answer");
            }
            _ => {
                // A removal changes no answer, so the model does nothing.
                let limit = rng.below(4);
                let removed = now(records.prune(now_ms, limit)).expect("the records answer");
                assert!(removed <= limit, "seed {seed}, step {step}: removed {removed} of at most {limit}");
            }
        }
        assert!(records.entries() <= ENTRIES, "seed {seed}, step {step}");
        assert!(records.entries() >= model.alive(now_ms), "seed {seed}, step {step}: something was lost");
    }
    let end = now_ms + 1_000;
    now(records.prune(end, usize::MAX)).expect("the records answer");
    assert_eq!((records.entries(), records.bytes()), (0, 0), "seed {seed}: something stays");
}

fn random_claim(rng: &mut Rng, now_ms: u64) -> Claim {
    Claim {
        scope: scope(*rng.pick(&["t1", "t2"]), *rng.pick(&["u1", "u2"])),
        key: key(*rng.pick(&["k1", "k2"])),
        fingerprint: fingerprint(if rng.percent(85) { "request" } else { "another" }),
        now_ms,
        lease_ms: [10, 50, 200][rng.below(3)],
        window_ms: [30, 100, 500][rng.below(3)],
    }
}

fn asked(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

#[test]
fn random_histories_agree_with_a_map() {
    if let Some(seed) = asked("MODEL_SEED") {
        return play(seed);
    }
    for seed in 0..asked("MODEL_HISTORIES").unwrap_or(3_000) {
        play(seed);
    }
}
