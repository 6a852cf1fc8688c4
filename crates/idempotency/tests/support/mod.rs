//! What the tests share.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use driftline_idempotency::{
    Answer, Claim, Claimed, EffectId, Fingerprint, Held, Key, Records, RecordsError, Scope,
};

pub(crate) mod rng;

pub(crate) const LEASE_MS: u64 = 100;
pub(crate) const WINDOW_MS: u64 = 1_000;

/// Runs a future that never waits.
pub(crate) fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("the future waits"),
    }
}

pub(crate) fn key(text: &str) -> Key {
    Key::new(text).expect("a key")
}

pub(crate) fn scope(tenant: &str, owner: &str) -> Scope {
    Scope::new(tenant, owner).expect("a scope")
}

pub(crate) fn fingerprint(text: &str) -> Fingerprint {
    Fingerprint::builder("test").text(text).finish()
}

pub(crate) fn answer(text: &str) -> Answer {
    Answer::whole(201, vec![("etag".into(), b"\"1\"".as_slice().into())], text.as_bytes()).expect("short")
}

/// A claim of tenant `t` and user `u`.
pub(crate) fn claim(key_text: &str, request: &str, now_ms: u64) -> Claim {
    Claim {
        scope: scope("t", "u"),
        key: key(key_text),
        fingerprint: fingerprint(request),
        now_ms,
        lease_ms: LEASE_MS,
        window_ms: WINDOW_MS,
    }
}

/// Claims and expects a grant.
#[track_caller]
pub(crate) fn granted(records: &impl Records, claim: Claim) -> (Held, EffectId) {
    let (scope, key) = (claim.scope.clone(), claim.key.clone());
    match now(records.claim(claim)) {
        Ok(Claimed::Granted { attempt, effect_id }) => (Held { scope, key, attempt }, effect_id),
        other => panic!("not granted: {other:?}"),
    }
}

#[track_caller]
pub(crate) fn claimed(records: &impl Records, claim: Claim) -> Claimed {
    now(records.claim(claim)).expect("the records answer")
}

#[track_caller]
pub(crate) fn full(records: &impl Records, claim: Claim) {
    let claimed = now(records.claim(claim));
    assert!(matches!(claimed, Err(RecordsError::Full)), "{claimed:?}");
}
