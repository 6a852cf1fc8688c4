//! The courier, against a peer that plays a server with two doors over pipes in memory.
#![allow(clippy::unwrap_used, reason = "a test and its helpers")]

#[path = "common/doors.rs"]
mod doors;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use doors::{Doors, FastClock, Pipes, SEED};
use driftline_client::{
    Courier, CourierError, CourierMode, CourierOptions, CourierState, CourierStatus, DeviceId, Endpoint,
    KindName, Route, SystemRandom, Telemetry, TelemetryLimits, World, fields,
};

/// A deadline of the fast clock: half a minute.
const SOON: Duration = Duration::from_secs(600);

type Phone = Courier<Pipes, FastClock, SystemRandom>;

fn by_hash() -> Endpoint {
    Endpoint::by_device_hash("ws://server.test", "h-1").unwrap()
}

fn by_token() -> Endpoint {
    Endpoint::new("ws://server.test", "to.k.en", DeviceId::new("phone 1").unwrap()).unwrap()
}

fn for_ever() -> CourierOptions {
    CourierOptions { attempts_max: None, ..CourierOptions::default() }
}

fn phone(doors: &Arc<Doors>, endpoint: Endpoint, telemetry: Telemetry, options: CourierOptions) -> Phone {
    let world = World::new(Pipes(Arc::clone(doors)), FastClock, SystemRandom);
    Courier::new_in(world, endpoint, telemetry, options)
}

/// Records samples of six kinds, numbered from where the last call ended.
fn record(courier: &mut Phone, next: &mut u64, count: u64) {
    for _ in 0..count {
        let kind =
            KindName::new(["a", "b", "c", "d", "e", "f"][usize::try_from(*next % 6).unwrap()]).unwrap();
        courier.record(kind, &fields(&format!(r#"{{"n":{next}}}"#)).unwrap()).unwrap();
        *next += 1;
    }
}

/// Carries until the status is as wanted.
async fn until(courier: &mut Phone, wanted: impl FnMut(&CourierStatus) -> bool) {
    let mut watch = courier.watch();
    tokio::select! {
        error = courier.run() => panic!("{error}"),
        status = tokio::time::timeout(Duration::from_secs(30), watch.wait_for(wanted)) => drop(status.unwrap().unwrap()),
    }
}

/// A phone goes through WebSocket, cut, HTTP only, both away, a restart, and back, while both doors lose and double
/// answers: each of 10,000 samples is held exactly once.
#[tokio::test]
async fn a_phone_changes_its_door_and_loses_nothing() {
    println!("seed {SEED}");
    let doors = Doors::new();
    let mut courier = phone(&doors, by_hash(), Telemetry::default(), for_ever());
    let mut next = 0;
    doors.open(true, true);
    record(&mut courier, &mut next, 2_000);
    courier.flush(SOON).await.unwrap();
    assert_eq!((courier.status().mode, courier.status().state), (CourierMode::WebSocket, CourierState::Open));
    assert_eq!(doors.posts(), 0, "nobody asks for the way round while the straight one is open");

    // From here on, every seventh message has its effect and loses its answer, whatever its door.
    doors.lose_answers(7);
    record(&mut courier, &mut next, 2_000);
    courier.flush(SOON).await.unwrap();

    doors.open(false, true);
    record(&mut courier, &mut next, 2_000);
    courier.flush(SOON).await.unwrap();
    assert!(doors.posts() > 20, "{}", doors.posts());
    assert_eq!(
        (courier.status().mode, courier.status().state),
        (CourierMode::Http, CourierState::Reconnecting)
    );

    doors.open(false, false);
    record(&mut courier, &mut next, 2_000);
    let failures = courier.status().switches;
    until(&mut courier, |status| {
        status.mode == CourierMode::Offline
            && status.switches.failed_posts > failures.failed_posts + 1
            && status.switches.failed_dials > failures.failed_dials + 1
    })
    .await;
    let switches = courier.status().switches;
    assert_eq!(courier.telemetry().len(), 2_000);

    // The app ends and starts again.
    let saved = courier.close().await.unwrap().to_json();
    let telemetry = Telemetry::from_json(&saved, TelemetryLimits::default()).unwrap();
    let mut courier = phone(&doors, by_hash(), telemetry, for_ever());
    record(&mut courier, &mut next, 2_000);
    until(&mut courier, |status| status.switches.failed_posts > 0).await;
    doors.open(true, true);
    courier.flush(SOON).await.unwrap();
    until(&mut courier, |status| status.mode == CourierMode::WebSocket).await;

    assert_eq!(doors.rows(), (0..next).collect::<Vec<_>>(), "each sample once");
    assert!(doors.replays() > 0, "some messages came twice");
    assert!(switches.cuts > 0 && switches.to_http > 0 && switches.to_offline > 0, "{switches:?}");
    courier.close().await.unwrap();
    assert_eq!(doors.connections().await, 0, "nothing is left open");
}

#[tokio::test]
async fn every_caller_finds_its_route() {
    for (endpoint, route, auth) in [
        (by_hash(), "/ws/ingest/h-1", None),
        (by_token(), "/ws/ingest-auth", Some(r#"{"token":"to.k.en","device_id":"phone 1"}"#)),
        (
            by_hash().with_telemetry_route(Route::IngestAuth).unwrap(),
            "/ws/ingest-auth",
            Some(r#"{"device_hash":"h-1"}"#),
        ),
        (by_token().with_telemetry_route(Route::Sync).unwrap(), "/ws/mobile/sync?device_id=phone%201", None),
    ] {
        let doors = Doors::new();
        doors.open(true, true);
        let mut courier = phone(&doors, endpoint.clone(), Telemetry::default(), for_ever());
        let mut next = 0;
        record(&mut courier, &mut next, 3);
        courier.flush(SOON).await.unwrap();
        doors.open(false, true);
        record(&mut courier, &mut next, 3);
        courier.flush(SOON).await.unwrap();
        assert_eq!(doors.rows(), (0..6).collect::<Vec<_>>());
        let heads = doors.heads();
        assert!(heads[0].starts_with(&format!("GET {route} HTTP/1.1\r\n")), "{heads:?}");
        let auth = auth.map(|payload| format!(r#"{{"type":"auth","payload":{payload}}}"#));
        assert_eq!(doors.introductions().first(), auth.as_ref());
        let post = heads.iter().find(|head| head.starts_with("POST")).unwrap();
        let caller = if heads[0].contains("ingest/") || auth.is_some_and(|auth| auth.contains("hash")) {
            "x-device-hash: h-1\r\n"
        } else {
            "authorization: Bearer to.k.en\r\n"
        };
        assert!(post.contains(caller), "{post}");
        courier.close().await.unwrap();
    }
}

#[tokio::test]
async fn attempts_are_counted_and_connect_begins_anew() {
    let doors = Doors::new();
    doors.open(false, true);
    let options = CourierOptions { attempts_max: Some(3), ..CourierOptions::default() };
    let mut courier = phone(&doors, by_hash(), Telemetry::default(), options);
    until(&mut courier, |status| status.state == CourierState::Failed).await;
    assert_eq!(courier.status().switches.failed_dials, 3);
    doors.open(true, true);
    let mut next = 0;
    record(&mut courier, &mut next, 5);
    courier.flush(SOON).await.unwrap();
    let status = courier.status();
    assert_eq!((status.mode, status.state), (CourierMode::Http, CourierState::Failed), "HTTP still works");
    courier.connect();
    until(&mut courier, |status| status.state == CourierState::Open).await;
    assert_eq!(doors.rows(), [0, 1, 2, 3, 4]);
    courier.close().await.unwrap();
}

#[tokio::test]
async fn who_is_refused_stops_and_goes_on_as_another() {
    let doors = Doors::new();
    doors.open(true, true);
    let stranger = Endpoint::by_device_hash("ws://server.test", "unknown").unwrap();
    let mut courier = phone(&doors, stranger, Telemetry::default(), for_ever());
    let mut next = 0;
    record(&mut courier, &mut next, 5);
    let refused = courier.flush(SOON).await.unwrap_err();
    assert!(matches!(refused, CourierError::Unauthorized { .. }), "{refused}");
    assert_eq!((courier.status().state, courier.telemetry().len()), (CourierState::Failed, 5));
    let again = courier.flush(SOON).await.unwrap_err();
    assert!(matches!(again, CourierError::Unauthorized { .. }), "it does not knock again: {again}");
    assert_eq!(doors.heads().len(), 1);
    courier.connect_as(by_hash());
    courier.flush(SOON).await.unwrap();
    assert_eq!(doors.rows(), [0, 1, 2, 3, 4]);
    courier.close().await.unwrap();

    // The same over HTTP alone.
    let doors = Doors::new();
    doors.open(false, true);
    let stranger = Endpoint::by_device_hash("ws://server.test", "unknown").unwrap();
    let mut courier = phone(&doors, stranger, Telemetry::default(), for_ever());
    record(&mut courier, &mut next, 1);
    let refused = courier.flush(SOON).await.unwrap_err();
    assert!(matches!(refused, CourierError::Unauthorized { .. }), "{refused}");
    assert_eq!(courier.telemetry().len(), 1);
    courier.close().await.unwrap();
}

#[tokio::test]
async fn a_connection_that_swallows_messages_is_given_up() {
    let doors = Doors::new();
    doors.open(true, true);
    doors.swallow();
    let mut courier = phone(&doors, by_hash(), Telemetry::default(), for_ever());
    let mut next = 0;
    record(&mut courier, &mut next, 5);
    courier.flush(SOON).await.unwrap();
    assert_eq!(doors.rows(), [0, 1, 2, 3, 4], "they took the other door");
    assert!(doors.posts() > 0 && courier.status().switches.cuts > 0);
    courier.close().await.unwrap();
}

#[tokio::test]
async fn an_idle_connection_is_proved_alive_by_pings() {
    let doors = Doors::new();
    doors.open(true, true);
    let mut courier = phone(&doors, by_hash(), Telemetry::default(), for_ever());
    until(&mut courier, |status| status.state == CourierState::Open).await;
    let deadline = courier.drive(Duration::from_secs(100), |_| doors.pings() > 2).await;
    assert!(deadline.is_ok() && courier.status().switches.cuts == 0, "{deadline:?}");
    doors.swallow();
    until(&mut courier, |status| status.switches.cuts > 0).await;
    courier.close().await.unwrap();
}

#[tokio::test]
async fn nothing_is_sent_before_it_is_kept() {
    let doors = Doors::new();
    doors.open(true, true);
    let kept = Arc::new(Mutex::new(Vec::<String>::new()));
    let (shelf, judge) = (Arc::clone(&kept), Arc::clone(&doors));
    let mut failures = 2;
    let mut courier =
        phone(&doors, by_hash(), Telemetry::default(), for_ever()).with_keeper(Box::new(move |json| {
            let full = failures > 0;
            failures -= i32::from(full);
            let (shelf, judge) = (Arc::clone(&shelf), Arc::clone(&judge));
            Box::pin(async move {
                if full {
                    assert_eq!(judge.keys(), [""; 0], "nothing went out");
                    return Err(std::io::ErrorKind::StorageFull.into());
                }
                shelf.lock().unwrap().push(json);
                Ok(())
            })
        }));
    let mut next = 0;
    record(&mut courier, &mut next, 250);
    for _ in 0..2 {
        let unkept = courier.flush(SOON).await.unwrap_err();
        assert!(matches!(unkept, CourierError::Keep(_)), "{unkept}");
    }
    courier.flush(SOON).await.unwrap();
    courier.close().await.unwrap();
    let kept = kept.lock().unwrap();
    let all = kept.join("\n");
    assert!(doors.keys().iter().all(|key| all.contains(key.as_str())) && doors.keys().len() >= 6);
    let last = Telemetry::from_json(kept.last().unwrap(), TelemetryLimits::default()).unwrap();
    assert!(last.is_empty(), "at the end, what the server has is let go");
}

#[tokio::test]
async fn counts_are_sent_when_their_window_ends() {
    let doors = Doors::new();
    doors.open(true, true);
    let mut courier = phone(&doors, by_hash(), Telemetry::default(), for_ever());
    let now_ms = driftline_client::Clock::now_ms(&FastClock);
    courier.telemetry_mut().count("taps", 3, now_ms).unwrap();
    courier.drive(SOON, |telemetry| telemetry.window().from_ms().is_none()).await.unwrap();
    courier.flush(SOON).await.unwrap();
    let payloads = doors.others();
    assert!(payloads.len() == 1 && payloads[0].contains(r#""counters":{"taps":3}"#), "{payloads:?}");
    courier.close().await.unwrap();
}
