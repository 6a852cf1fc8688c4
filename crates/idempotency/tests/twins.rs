//! The layer around an axum service: twins at once, leases that end and connections that break off.

use std::sync::Arc;
use std::sync::atomic::Ordering;

mod world;

use world::{World, begin, call, request, yielding};

#[tokio::test]
async fn a_twin_is_refused_or_waits() {
    let world = Arc::new(World::gated());
    let router = world.router(world.layer());
    let first = begin(&world, &router, request("ada", "k", "body")).await;
    // Without a pause, at once; with one, when the waiting is over.
    let twin = call(&router, request("ada", "k", "body")).await;
    twin.is_problem(409, "IDEMPOTENCY_IN_PROGRESS");
    assert_eq!(twin.retry_after.as_deref(), Some("2"));
    let patient = world.router(world.layer().pause(yielding));
    call(&patient, request("ada", "k", "body")).await.is_problem(409, "IDEMPOTENCY_IN_PROGRESS");
    call(&patient, request("ada", "k", "other")).await.is_problem(422, "IDEMPOTENCY_KEY_REUSED");
    // A twin that waits while the answer comes replays it.
    world.permits.add_permits(1);
    let twin = call(&patient, request("ada", "k", "body")).await;
    let first = first.await.expect("the first one ends");
    assert_eq!((twin.replayed, &twin.body), (true, &first.body));
    assert_eq!(world.effects(), 1);
}

#[tokio::test]
async fn a_waiting_twin_takes_its_turn_when_the_first_one_fails() {
    let world = Arc::new(World::gated());
    world.status.store(503, Ordering::SeqCst);
    let router = world.router(world.layer().pause(yielding));
    let first = begin(&world, &router, request("ada", "k", "body")).await;
    world.permits.add_permits(2);
    assert_eq!(call(&router, request("ada", "k", "body")).await.status, 503);
    assert_eq!(first.await.expect("the first one ends").status, 503);
    assert_eq!(world.effects(), 2);
}

#[tokio::test]
async fn a_slow_attempt_is_overtaken_with_the_same_effect_id_and_fenced() {
    let world = Arc::new(World::gated());
    let router = world.router(world.layer());
    let slow = begin(&world, &router, request("ada", "k", "body")).await;
    world.now_ms.fetch_add(29_999, Ordering::SeqCst);
    call(&router, request("ada", "k", "body")).await.is_problem(409, "IDEMPOTENCY_IN_PROGRESS");
    world.now_ms.fetch_add(1, Ordering::SeqCst);
    let fast = begin(&world, &router, request("ada", "k", "body")).await;
    // Permits go to who waits longest: the slow one ends first, and finds itself fenced.
    world.permits.add_permits(1);
    slow.await.expect("the slow one ends").is_problem(409, "IDEMPOTENCY_IN_PROGRESS");
    world.permits.add_permits(1);
    let fast = fast.await.expect("the fast one ends");
    assert_eq!((fast.status, fast.replayed), (201, false));
    let again = call(&router, request("ada", "k", "body")).await;
    assert_eq!((again.replayed, again.body), (true, fast.body));
    let attempts = world.attempts.lock().expect("whole");
    let [first, second] = attempts[..] else { panic!("{attempts:?}") };
    assert!(second.number > first.number);
    assert_eq!(second.effect_id, first.effect_id);
}

#[tokio::test]
async fn an_aborted_request_keeps_its_key_until_the_lease_ends() {
    let world = Arc::new(World::gated());
    let router = world.router(world.layer());
    let aborted = begin(&world, &router, request("ada", "k", "body")).await;
    aborted.abort();
    assert!(aborted.await.expect_err("it was aborted").is_cancelled());
    world.permits.add_permits(10);
    call(&router, request("ada", "k", "body")).await.is_problem(409, "IDEMPOTENCY_IN_PROGRESS");
    assert_eq!(world.effects(), 1);
    world.now_ms.fetch_add(30_000, Ordering::SeqCst);
    let retry = call(&router, request("ada", "k", "body")).await;
    assert_eq!((retry.status, retry.replayed), (201, false));
    let attempts = world.attempts.lock().expect("whole");
    assert_eq!(attempts[0].effect_id, attempts[1].effect_id);
}

#[tokio::test]
async fn a_spawned_request_outlives_its_connection() {
    let world = Arc::new(World::gated());
    let router = world.router(world.layer().pause(yielding).spawn(|task| drop(tokio::spawn(task))));
    let aborted = begin(&world, &router, request("ada", "k", "body")).await;
    aborted.abort();
    assert!(aborted.await.expect_err("it was aborted").is_cancelled());
    world.permits.add_permits(1);
    let retry = call(&router, request("ada", "k", "body")).await;
    assert_eq!((retry.status, retry.replayed), (201, true));
    assert_eq!(world.effects(), 1);
}

#[tokio::test]
async fn a_task_that_ends_without_an_answer_is_told() {
    let world = Arc::new(World::new());
    // A runtime that shuts down drops its tasks.
    let router = world.router(world.layer().spawn(drop));
    call(&router, request("ada", "k", "body")).await.is_problem(500, "HANDLER_ERROR");
    assert_eq!(world.effects(), 0);
}
