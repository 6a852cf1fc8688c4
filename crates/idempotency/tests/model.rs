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

/// One history: every answer of the records is compared with the model's.
struct History {
    rng: Rng,
    records: MemoryRecords,
    model: Model,
    /// Everybody who was ever granted something may come back late.
    holders: Vec<Held>,
    effects: HashMap<(Scope, Key), EffectId>,
    now_ms: u64,
    /// Where a failure happened.
    place: String,
}

impl History {
    fn new(seed: u64) -> Self {
        Self {
            rng: Rng::new(seed),
            records: MemoryRecords::new(MemoryLimits { entries: ENTRIES, ..MemoryLimits::default() }),
            model: Model::default(),
            holders: Vec::new(),
            effects: HashMap::new(),
            now_ms: 0,
            place: String::new(),
        }
    }

    fn play(mut self, seed: u64) {
        for step in 0..self.rng.between(20, 120) {
            self.now_ms += [0, 1, 5, 20, 100][self.rng.below(5)];
            self.place = format!("seed {seed}, step {step} at {}", self.now_ms);
            match self.rng.below(10) {
                0..=4 => self.claim(),
                5..=7 if !self.holders.is_empty() => self.complete(step),
                8 if !self.holders.is_empty() => self.release(),
                _ => self.prune(),
            }
            let entries = self.records.entries();
            assert!(entries <= ENTRIES, "{}: {entries} entries", self.place);
            assert!(entries >= self.model.alive(self.now_ms), "{}: something was lost", self.place);
        }
        now(self.records.prune(self.now_ms + 1_000, usize::MAX)).expect("the records answer");
        assert_eq!((self.records.entries(), self.records.bytes()), (0, 0), "seed {seed}: something stays");
    }

    fn claim(&mut self) {
        let claim = random_claim(&mut self.rng, self.now_ms);
        let expected = self.model.claim(&claim);
        let actual = match now(self.records.claim(claim.clone())) {
            Ok(claimed) => Expected::Claimed(claimed),
            Err(RecordsError::Full) => Expected::Full,
            Err(error) => panic!("{}: {error}", self.place),
        };
        assert_eq!(actual, expected, "{}: {claim:?}", self.place);
        if let Expected::Claimed(Claimed::Granted { attempt, effect_id }) = actual {
            let Claim { scope, key, .. } = claim;
            let first = *self.effects.entry((scope.clone(), key.clone())).or_insert(effect_id);
            assert_eq!(first, effect_id, "{}: another effect id", self.place);
            self.holders.push(Held { scope, key, attempt });
        }
    }

    fn complete(&mut self, step: usize) {
        let held = self.rng.pick(&self.holders).clone();
        let given = answer(&format!("answer {step}"));
        let counts = self.model.complete(&held, &given, self.now_ms);
        let counted = match now(self.records.complete(&held, given, self.now_ms)) {
            Ok(()) => true,
            Err(CompleteError::Fenced) => false,
            Err(error) => panic!("{}: {error}", self.place),
        };
        assert_eq!(counted, counts, "{}: {held:?}", self.place);
    }

    fn release(&mut self) {
        let held = self.rng.pick(&self.holders).clone();
        self.model.release(&held);
        now(self.records.release(&held)).expect("the records answer");
    }

    /// A removal changes no answer, so the model does nothing.
    fn prune(&mut self) {
        let limit = self.rng.below(4);
        let removed = now(self.records.prune(self.now_ms, limit)).expect("the records answer");
        assert!(removed <= limit, "{}: removed {removed} of at most {limit}", self.place);
    }
}

fn random_claim(rng: &mut Rng, now_ms: u64) -> Claim {
    Claim {
        scope: scope(["t1", "t2"][rng.below(2)], ["u1", "u2"][rng.below(2)]),
        key: key(["k1", "k2"][rng.below(2)]),
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
        return History::new(seed).play(seed);
    }
    for seed in 0..asked("MODEL_HISTORIES").unwrap_or(3_000) {
        History::new(seed).play(seed);
    }
}
