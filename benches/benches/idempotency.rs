//! Requests sent again: the decision over a loaded record, fingerprints over sizes of bodies, and answers from memory.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use driftline_idempotency::{
    Answer, Cached, Claim, Claimed, Fingerprint, Held, Key, MemoryRecords, Record, Records, RequestParts,
    Scope, State, WINDOW_MS_DEFAULT, decide,
};

#[global_allocator]
static ALLOCATED: divan::AllocProfiler = divan::AllocProfiler::system();

fn main() {
    divan::main();
}

/// Runs a future that never waits.
fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("the future waits"),
    }
}

fn request(body: &[u8]) -> Fingerprint {
    Fingerprint::request(&RequestParts {
        version: "v1",
        route: "POST /v1/tickets/{id}/notes",
        path: &["t-4711"],
        query: &[("notify", "true"), ("locale", "de")],
        content_type: Some("application/json"),
        body,
    })
}

fn answer(bytes: usize) -> Answer {
    let headers = vec![("content-type".into(), b"application/json".as_slice().into())];
    Answer::whole(201, headers, &vec![b'x'; bytes]).expect("small enough")
}

/// The decision over a loaded record.
mod decision {
    use super::*;

    #[divan::bench]
    fn miss(bencher: Bencher<'_, '_>) {
        let fingerprint = request(b"{}");
        let records: &[Record<Answer>] = black_box(&[]);
        bencher.bench(|| decide(records.first(), black_box(&fingerprint), 1_000));
    }

    #[divan::bench]
    fn hit(bencher: Bencher<'_, '_>) {
        let fingerprint = request(b"{}");
        let record = Record { fingerprint, expires_ms: 2_000, state: State::Done(answer(300)) };
        bencher.bench(|| decide(Some(black_box(&record)), black_box(&fingerprint), 1_000));
    }
}

/// The fingerprint of a request with a body of so many bytes.
#[divan::bench(args = [1_024, 32 * 1_024])]
fn fingerprint(bencher: Bencher<'_, '_>, bytes: usize) {
    let body = vec![b'x'; bytes];
    bencher.counter(BytesCount::new(bytes)).bench(|| request(black_box(&body)));
}

/// A repetition that is answered, from the question to the answer.
mod replay {
    use super::*;

    fn claim(key: usize) -> Claim {
        Claim {
            scope: Scope::new("acme", "ada").expect("a scope"),
            key: Key::new(&format!("0192f3a1-b2c3-7000-8000-{key:012}")).expect("a key"),
            fingerprint: Fingerprint::from_bytes([7; 32]),
            now_ms: 1_000,
            lease_ms: 30_000,
            window_ms: WINDOW_MS_DEFAULT,
        }
    }

    /// Remembers a thousand answers and asks for each.
    fn run(bencher: Bencher<'_, '_>, records: &impl Records) {
        for key in 0..1_000 {
            let Claim { scope, key, .. } = claim(key);
            let granted = now(records.claim(Claim { scope: scope.clone(), key: key.clone(), ..claim(0) }));
            let Ok(Claimed::Granted { attempt, .. }) = granted else { panic!("{granted:?}") };
            now(records.complete(&Held { scope, key, attempt }, answer(300), 1_000)).expect("it is held");
        }
        let claims: Vec<Claim> = (0..1_000).map(claim).collect();
        let replayed = |claim: Claim| matches!(now(records.claim(claim)), Ok(Claimed::Replay { .. }));
        assert!(claims.iter().cloned().all(replayed));
        let mut next = 0;
        let inputs = || {
            next = (next + 1) % claims.len();
            claims[next].clone()
        };
        bencher.with_inputs(inputs).bench_local_values(|claim| now(records.claim(claim)));
    }

    #[divan::bench]
    fn from_cache(bencher: Bencher<'_, '_>) {
        run(bencher, &Cached::new(MemoryRecords::default(), 16 * 1024 * 1024));
    }

    #[divan::bench]
    fn from_memory(bencher: Bencher<'_, '_>) {
        run(bencher, &MemoryRecords::default());
    }
}
