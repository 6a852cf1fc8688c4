//! The layer around an axum service: what it keeps, what it repeats and what it refuses.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::Method;
use driftline_idempotency::tower::{Keyless, Route, Settings, Unscoped};
use driftline_idempotency::{ANSWER_BYTES_MAX, MemoryLimits, MemoryRecords, Records};

mod world;

use world::{Reply, World, call, request};

#[tokio::test]
async fn a_repetition_is_answered_as_before() {
    let world = Arc::new(World::new());
    let router = world.router(world.layer());
    let first = call(&router, request("ada", "k", "body")).await;
    assert_eq!((first.status, first.replayed, first.cookie), (201, false, true));
    for _ in 0..3 {
        let again = call(&router, request("ada", "k", "body")).await;
        // All but what is only said once: the cookie.
        assert_eq!(again, Reply { replayed: true, cookie: false, ..first.clone() });
    }
    assert_eq!(world.effects(), 1);
}

#[tokio::test]
async fn another_request_with_the_key_is_refused_and_another_user_has_other_keys() {
    let world = Arc::new(World::new());
    let router = world.router(world.layer());
    let first = call(&router, request("ada", "k", "body")).await;
    let with = |change: fn(&mut Request)| {
        let mut request = request("ada", "k", "body");
        change(&mut request);
        request
    };
    let others = [
        request("ada", "k", "other"),
        with(|request| *request.uri_mut() = "/things?a=2".parse().expect("a URI")),
        with(|request| *request.uri_mut() = "/others?a=1".parse().expect("a URI")),
        with(|request| *request.method_mut() = Method::PATCH),
        with(|request| drop(request.headers_mut().insert("content-type", "a/b".parse().expect("a value")))),
    ];
    for other in others {
        call(&router, other).await.is_problem(422, "IDEMPOTENCY_KEY_REUSED");
    }
    assert_eq!(world.effects(), 1);
    let bob = call(&router, request("bob", "k", "other")).await;
    assert_eq!((bob.status, bob.replayed), (201, false));
    assert_ne!(bob.body, first.body);
    assert_eq!(call(&router, request("ada", "k", "body")).await.body, first.body);
    assert_eq!(world.effects(), 2);
}

#[tokio::test]
async fn refusals_and_failures_do_not_burn_the_key() {
    for status in [400, 401, 403, 408, 413, 415, 429, 500, 502, 503, 504] {
        let world = Arc::new(World::new());
        let router = world.router(world.layer());
        world.status.store(status, Ordering::SeqCst);
        let refused = call(&router, request("ada", "k", "bad")).await;
        assert_eq!((refused.status, refused.replayed, refused.cookie), (status, false, true));
        assert_eq!((world.records.entries(), world.effects()), (0, 1), "{status}");
        world.status.store(201, Ordering::SeqCst);
        let mended = call(&router, request("ada", "k", "good")).await;
        assert_eq!((mended.status, mended.replayed), (201, false), "{status}");
        assert!(call(&router, request("ada", "k", "good")).await.replayed);
        assert_eq!(world.effects(), 2);
    }
}

#[tokio::test]
async fn other_refusals_are_remembered() {
    for status in [404, 409, 410, 422] {
        let world = Arc::new(World::new());
        let router = world.router(world.layer());
        world.status.store(status, Ordering::SeqCst);
        let first = call(&router, request("ada", "k", "body")).await;
        world.status.store(201, Ordering::SeqCst);
        let again = call(&router, request("ada", "k", "body")).await;
        assert_eq!((again.status, again.replayed, again.body), (status, true, first.body));
        assert_eq!(world.effects(), 1);
    }
}

#[tokio::test]
async fn what_passes_untouched() {
    let world = Arc::new(World::new());
    let router = world.router(world.layer());
    for method in [Method::GET, Method::HEAD, Method::PUT, Method::DELETE, Method::OPTIONS] {
        for _ in 0..2 {
            let mut request = request("ada", "k", "body");
            *request.method_mut() = method.clone();
            assert!(!call(&router, request).await.replayed);
        }
    }
    let mut keyless = request("ada", "k", "body");
    keyless.headers_mut().remove("idempotency-key");
    assert_eq!(call(&router, keyless).await.status, 201);
    assert_eq!((world.effects(), world.records.entries()), (11, 0));
    assert!(world.attempts.lock().expect("whole").is_empty());
}

#[tokio::test]
async fn bad_keys_and_large_bodies_are_refused_before_the_handler() {
    let world = Arc::new(World::new());
    let settings = Settings { request_bytes_max: 10, keyless: Keyless::Refused, ..Settings::default() };
    let router = world.router(world.layer().settings(settings));
    let longest = "k".repeat(255);
    let too_long = "k".repeat(256);
    for bad in ["", "a b", too_long.as_str()] {
        call(&router, request("ada", bad, "body")).await.is_problem(400, "IDEMPOTENCY_KEY_INVALID");
    }
    let mut doubled = request("ada", "k", "body");
    doubled.headers_mut().append("idempotency-key", "k".parse().expect("a value"));
    call(&router, doubled).await.is_problem(400, "IDEMPOTENCY_KEY_INVALID");
    let mut keyless = request("ada", "k", "body");
    keyless.headers_mut().remove("idempotency-key");
    call(&router, keyless).await.is_problem(400, "IDEMPOTENCY_KEY_MISSING");
    let mut nobody = request("ada", "k", "body");
    nobody.headers_mut().remove("user");
    call(&router, nobody).await.is_problem(403, "FORBIDDEN");
    call(&router, request("ada", "k", "12345678901")).await.is_problem(413, "MESSAGE_TOO_LARGE");
    let chunks = ["12345", "678901"].map(|chunk| Ok::<_, std::io::Error>(Bytes::from(chunk)));
    let mut streamed = request("ada", "k", "");
    *streamed.body_mut() = Body::from_stream(futures_util::stream::iter(chunks));
    call(&router, streamed).await.is_problem(413, "MESSAGE_TOO_LARGE");
    let broken = [Ok(Bytes::from("123")), Err(std::io::Error::other("gone"))];
    let mut streamed = request("ada", "k", "");
    *streamed.body_mut() = Body::from_stream(futures_util::stream::iter(broken));
    call(&router, streamed).await.is_problem(400, "BODY_BROKEN");
    assert_eq!((world.effects(), world.records.entries()), (0, 0));
    assert_eq!(call(&router, request("ada", &longest, "1234567890")).await.status, 201);
}

#[tokio::test]
async fn a_sender_without_a_scope_may_pass() {
    let world = Arc::new(World::new());
    let settings = Settings { unscoped: Unscoped::Passes, ..Settings::default() };
    let router = world.router(world.layer().settings(settings));
    for _ in 0..2 {
        let mut nobody = request("ada", "k", "body");
        nobody.headers_mut().remove("user");
        assert!(!call(&router, nobody).await.replayed);
    }
    assert_eq!(world.effects(), 2);
}

#[tokio::test]
async fn full_records_refuse_before_the_effect() {
    let limits = MemoryLimits { entries: 1, ..MemoryLimits::default() };
    let world = Arc::new(World { records: Arc::new(MemoryRecords::new(limits)), ..World::new() });
    let router = world.router(world.layer());
    assert_eq!(call(&router, request("ada", "k1", "body")).await.status, 201);
    call(&router, request("ada", "k2", "body")).await.is_problem(503, "STORE_UNAVAILABLE");
    assert_eq!(world.effects(), 1);
}

#[tokio::test]
async fn answers_are_kept_to_the_byte_and_rendered_again_beyond() {
    let head_bytes = "effect 1 of 4 bytes ".len()
        + "location".len()
        + "/things/1".len()
        + "content-type".len()
        + "text/plain; charset=utf-8".len();
    for (extra, kept) in [(0, true), (1, false)] {
        for reference in [false, true] {
            for rendered in [false, true] {
                let world = Arc::new(World { reference, ..World::new() });
                world.answer_bytes.store(ANSWER_BYTES_MAX - head_bytes + extra, Ordering::SeqCst);
                let mut layer = world.layer();
                if rendered {
                    layer = layer.render(|parts, reference| {
                        let text = format!("{} again for {:?}", reference, parts.headers["user"]);
                        Box::pin(async move { Some(Bytes::from(text)) })
                    });
                }
                let router = world.router(layer);
                let first = call(&router, request("ada", "k", "body")).await;
                assert_eq!((first.status, first.body.len() > 60_000), (201, true));
                let again = call(&router, request("ada", "k", "body")).await;
                if kept {
                    assert_eq!((again.status, again.body, again.replayed), (201, first.body, true));
                } else if reference && rendered {
                    assert_eq!((again.status, again.replayed, again.location), (201, true, first.location));
                    assert_eq!(again.body, "thing 1 again for \"ada\"");
                } else {
                    again.is_problem(409, "IDEMPOTENCY_ANSWER_NOT_KEPT");
                }
                assert_eq!(world.effects(), 1);
            }
        }
    }
}

#[tokio::test]
async fn a_large_answer_reaches_its_first_receiver_whole() {
    let world = Arc::new(World::new());
    world.answer_bytes.store(300_000, Ordering::SeqCst);
    let router = world.router(world.layer());
    let first = call(&router, request("ada", "k", "body")).await;
    assert_eq!(first.body, format!("effect 1 of 4 bytes {}", "x".repeat(300_000)));
}

#[tokio::test]
async fn the_window_ends_at_its_millisecond() {
    let world = Arc::new(World::new());
    let router =
        world.router(world.layer().window(|scope| if scope.owner() == "ada" { 60_000 } else { 90_000 }));
    for (user, effects) in [("ada", [1, 1, 2]), ("bob", [3, 3, 3])] {
        let start = world.now_ms.load(Ordering::SeqCst);
        for (at, effects) in [0, 59_999, 60_000].into_iter().zip(effects) {
            world.now_ms.store(start + at, Ordering::SeqCst);
            call(&router, request(user, "k", "body")).await;
            world.records.prune(start + at, 10).await.expect("the records answer");
            assert_eq!(world.effects(), effects, "{user} after {at} ms");
        }
    }
}

#[tokio::test]
async fn a_route_of_its_own_decides_the_fingerprint() {
    let world = Arc::new(World::new());
    let router = world.router(world.layer().route(|parts| Route {
        version: parts.headers.get("version").map(|value| format!("{value:?}")).unwrap_or_default(),
        template: "/things/{id}".to_owned(),
        path: vec![parts.uri.path().trim_end_matches('/').to_owned()],
    }));
    let at = |path: &str, version: &'static str| {
        let mut request = request("ada", "k", "body");
        *request.uri_mut() = path.parse().expect("a URI");
        request.headers_mut().insert("version", version.parse().expect("a value"));
        request
    };
    assert_eq!(call(&router, at("/things", "1")).await.status, 201);
    assert!(call(&router, at("/things/", "1")).await.replayed);
    call(&router, at("/other", "1")).await.is_problem(422, "IDEMPOTENCY_KEY_REUSED");
    call(&router, at("/things", "2")).await.is_problem(422, "IDEMPOTENCY_KEY_REUSED");
}
