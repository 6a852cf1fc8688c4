//! However many ask: everybody is answered, and nobody waits longer than the store was told.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use driftline_engine::{Store, StoreError, Submission};
use driftline_storage::PostgresStore;
use driftline_testkit::block_on;

use crate::bed::{Bed, Device, Journal, Known, RESUMES_WITHIN, TOLD_WITHIN, send_all, until};

/// Two devices in each of a hundred tenants.
fn crowd(store: &PostgresStore) -> Vec<Device> {
    (0..200)
        .map(|at| Device::join(store, &format!("tenant-{}", at % 100), &format!("d{at}"), Known::Both))
        .collect()
}

fn note_all(
    journal: &mut Journal,
    batches: &[Submission],
    answers: Vec<Result<driftline_engine::Receipt, StoreError>>,
) -> usize {
    batches.iter().zip(answers).filter(|(batch, answer)| journal.note(batch, answer.clone())).count()
}

#[test]
fn two_connections_serve_a_hundred_tenants() {
    let mut bed = Bed::new();
    let store = bed.store();
    let mut devices = crowd(&store);
    let mut journal = Journal::default();
    let mut open = Vec::new();
    for paused in [false, true, false] {
        if paused {
            bed.cluster.pause();
        }
        let batches: Vec<_> = devices.iter_mut().map(|device| device.batch(1)).collect();
        let (answers, waited) = send_all(&store, &batches);
        assert!(waited < TOLD_WITHIN, "{waited:?}");
        let told = note_all(&mut journal, &batches, answers);
        println!("{told} of 200 acknowledged within {} ms", waited.as_millis());
        if paused {
            assert_eq!(told, 0, "nothing is written by a database that stands still");
            bed.cluster.resume();
        } else {
            assert_eq!(told, 200);
        }
        open.extend(batches);
    }
    let (answers, _) = send_all(&store, &open);
    assert_eq!(note_all(&mut journal, &open, answers), 600, "resends are recognised");
    bed.check(&store, &journal);
}

#[test]
fn what_waits_is_bounded() {
    const QUEUE: usize = 8192;
    let mut bed = Bed::new();
    let mut options = bed.options(bed.database.url());
    // How soon callers are told is not looked at here, and 64 batches may take a while to write.
    options.wait_ms = 15_000;
    let store = PostgresStore::open(options).expect("the store opens");
    let mut device = Device::join(&store, "acme", "ada", Known::Both);
    let first = device.batch(1);
    // Made before the connection is used: one that nobody used for a second is tried before it is lent, and a group that
    // gets none ends sooner, so that the next one waits no more either.
    let batches: Vec<_> = (0..QUEUE + 200).map(|_| device.batch(1)).collect();
    assert!(device.send(&store, &first));
    bed.cluster.pause();
    let mut waiting: Vec<Pin<Box<dyn Future<Output = Result<_, StoreError>>>>> = Vec::new();
    let mut refused = 0;
    let mut context = Context::from_waker(Waker::noop());
    for batch in &batches {
        let mut commit: Pin<Box<dyn Future<Output = Result<_, StoreError>>>> =
            Box::pin(store.commit(batch.clone()));
        match commit.as_mut().poll(&mut context) {
            Poll::Pending => waiting.push(commit),
            Poll::Ready(Err(StoreError::Unavailable(_))) => refused += 1,
            Poll::Ready(other) => panic!("{other:?}"),
        }
    }
    // A commit group of up to 64 batches is under way, and waits no more.
    assert!((136..=200).contains(&refused), "{refused} were refused at once");
    assert_eq!(waiting.len() + refused, QUEUE + 200);
    drop(waiting);
    bed.cluster.resume();
    let last = device.batch(1);
    until("a batch is written", RESUMES_WITHIN, || {
        let answer = block_on(store.commit(last.clone()));
        device.journal.note(&last, answer)
    });
    let store_ = &store;
    let mut left: Vec<_> = batches.chunks(64).collect();
    for chunk in left.drain(..) {
        let (answers, _) = send_all(store_, chunk);
        assert_eq!(
            note_all(&mut device.journal, chunk, answers),
            chunk.len(),
            "resends are applied or recognised"
        );
    }
    bed.check(&store, &device.journal);
}
