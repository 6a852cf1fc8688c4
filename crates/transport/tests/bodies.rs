//! Bodies in both encodings and all codings: the same request gives the same document, within the same bounds.

mod support;

use std::io::{Read as _, Write as _};

use driftline_model::Limits;
use driftline_protocol::{json_of_msgpack, msgpack_of_json};
use driftline_testkit::http::{Request, Response, soon};
use driftline_transport::{Door, ROUTES, Route, RouteId};
use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use support::{Harness, Setup, create, grant, sign, start, start_limited};

const CODINGS: [Option<&str>; 3] = [None, Some("gzip"), Some("zstd")];

const JSON: &str = "application/json";
const MESSAGE_PACK: &str = "application/msgpack";

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::new(6));
    encoder.write_all(bytes).expect("memory takes it");
    encoder.finish().expect("memory takes it")
}

fn packed(coding: Option<&str>, bytes: &[u8]) -> Vec<u8> {
    match coding {
        None => bytes.to_vec(),
        Some("gzip") => gzip(bytes),
        Some(_) => zstd::bulk::compress(bytes, 3).expect("memory takes it"),
    }
}

/// Reads an answer's document, whatever its form; the form is told by its headers.
fn document(response: &Response) -> Value {
    assert_eq!(response.header("content-length"), Some(response.body.len().to_string().as_str()));
    let bytes = match response.header("content-encoding") {
        None => response.body.clone(),
        Some("gzip") => {
            let mut bytes = Vec::new();
            MultiGzDecoder::new(&response.body[..]).read_to_end(&mut bytes).expect("gzip");
            bytes
        }
        Some("zstd") => zstd::stream::decode_all(&response.body[..]).expect("zstd"),
        Some(other) => panic!("{other}"),
    };
    match response.header("content-type").expect("a type") {
        "application/json" | "application/problem+json" => serde_json::from_slice(&bytes).expect("JSON"),
        "application/msgpack" | "application/problem+msgpack" => {
            let text = json_of_msgpack(&bytes, 70).expect("MessagePack");
            serde_json::from_str(&text).expect("JSON")
        }
        other => panic!("{other}"),
    }
}

/// Writes whole numbers as integers: MessagePack has no `0.0` beside `0` here.
fn plain(value: Value) -> Value {
    match value {
        Value::Object(members) => {
            Value::Object(members.into_iter().map(|(name, value)| (name, plain(value))).collect())
        }
        Value::Array(elements) => elements.into_iter().map(plain).collect(),
        Value::Number(number) if number.as_f64() == Some(0.0) => json!(0),
        other => other,
    }
}

/// A request in a form, for an answer in the same form.
fn formed(method: &str, target: &str, body: Option<&Value>, (kind, coding): (&str, Option<&str>)) -> Request {
    let mut request = Request::new(method, target).header("accept", kind).header("x-correlation-id", "forms");
    if let Some(body) = body {
        let text = body.to_string();
        let bytes = if kind == JSON { text.into_bytes() } else { msgpack_of_json(&text) };
        request = request.body(packed(coding, &bytes)).header("content-type", kind);
        if let Some(coding) = coding {
            request = request.header("content-encoding", coding);
        }
    }
    match coding {
        Some(coding) => request.header("accept-encoding", coding),
        None => request,
    }
}

/// A target and a body for every route; what changes something changes it to what it is.
fn asked(route: &Route) -> (String, Option<Value>) {
    let path = route.path.replace("{kind}", "note").replace("{id}", "n-1").replace("{conflict_id}", "none");
    let path = path.replace("{device_id}", "w").replace("{user_id}", "ada").replace("{topic}", "all");
    let path = path.replace("{event_id}", "1").replace("{connection_id}", "none");
    let path = path.replace("{notification_id}", "none");
    let body = match route.id {
        RouteId::Sync => Some(json!({"data_types": ["note"]})),
        RouteId::Ingest => Some(json!({"type": "device_status", "payload": {"battery": 1}})),
        RouteId::AddDevice => Some(json!({"device_id": "new", "device_hash": "a-hash-of-enough-characters"})),
        RouteId::ChangeDevice => Some(json!({"enabled": true})),
        RouteId::ResolveConflict => Some(json!({"resolution": "client"})),
        RouteId::PublishEvent => Some(json!({"topic": "all", "type": "told", "data": {"a": 1}})),
        RouteId::Broadcast | RouteId::SendToUser => Some(json!({"data": {"a": 1}})),
        RouteId::DeviceAlert => {
            Some(json!({"device_id": "w", "title": "t", "message": "m", "severity": "high"}))
        }
        RouteId::LiveMetrics | RouteId::PerformanceData => {
            Some(json!({"device_id": "w", "metrics": {"cpu_usage": 0.5}}))
        }
        RouteId::Notify => Some(json!({"type": "news", "title": "t", "message": "m", "severity": "low"})),
        RouteId::DeviceAction => Some(json!({"action": "restart", "status": "done", "progress": 100})),
        RouteId::StartMonitoring => Some(json!({"interval_s": 5, "metrics": ["cpu"], "duration_s": 60})),
        RouteId::StopMonitoring => Some(json!({})),
        RouteId::DrainOutbox => Some(json!({"batch": 7})),
        RouteId::SetPolicy => Some(json!({"strategy": "server_wins"})),
        _ => None,
    };
    (format!("{path}?device_id=phone&device=w"), body)
}

async fn filled() -> Harness {
    let harness = start(Setup::default()).await;
    let text = "long enough to be compressed ".repeat(100);
    let items: Vec<_> =
        (1..=5).map(|n| create(n, "note", &format!("n-{n}"), &json!({"text": text, "n": n}))).collect();
    harness.push("w", &items).await;
    harness
}

async fn ask(harness: &Harness, request: Request) -> Response {
    request.bearer(&sign(&grant("t1", "root", "admin"))).send(harness.address).await
}

#[tokio::test]
async fn every_route_answers_the_same_in_every_form() {
    for route in ROUTES.iter().filter(|route| route.door == Door::Http && route.id != RouteId::Metrics) {
        let (target, body) = asked(route);
        let mut wanted: Option<(u16, Value)> = None;
        for kind in [JSON, MESSAGE_PACK] {
            for coding in CODINGS {
                let harness = filled().await;
                let case = format!("{} {target} {kind} {coding:?}", route.method);
                let response =
                    ask(&harness, formed(route.method, &target, body.as_ref(), (kind, coding))).await;
                assert!(response.status != 400 && response.status != 415, "{case}: {}", response.text());
                if response.status == 204 {
                    assert!(response.body.is_empty() && response.header("content-encoding").is_none());
                    continue;
                }
                assert_eq!(response.header("vary"), Some("Accept, Accept-Encoding"), "{case}");
                let is_packed = response.header("content-type").is_some_and(|kind| kind.ends_with("msgpack"));
                assert_eq!(is_packed, kind == MESSAGE_PACK, "{case}");
                let got = (response.status, plain(document(&response)));
                let long = got.1.to_string().len() > 2048;
                assert_eq!(response.header("content-encoding"), coding.filter(|_| long), "{case}");
                assert_eq!(wanted.get_or_insert(got.clone()), &got, "{case}");
            }
        }
    }
}

#[tokio::test]
async fn large_answers_come_whole() {
    let harness = start(Setup::default()).await;
    let items: Vec<_> =
        (1..=8).map(|n| create(n, "note", &format!("n-{n}"), &json!({"text": "x".repeat(40_000)}))).collect();
    harness.push("w", &items).await;
    let mut wanted = None;
    for kind in [JSON, MESSAGE_PACK] {
        for coding in CODINGS {
            let response = ask(&harness, formed("GET", "/api/v1/records/note", None, (kind, coding))).await;
            assert_eq!(response.header("content-encoding"), coding);
            assert_eq!(response.body.len() > 320_000, coding.is_none(), "{}", response.body.len());
            let got = document(&response);
            assert_eq!(wanted.get_or_insert(got.clone()), &got);
        }
    }
}

#[tokio::test]
async fn other_names_of_a_form_mean_the_same() {
    let harness = filled().await;
    for name in ["application/x-msgpack", "application/vnd.msgpack; v=1", "Application/MsgPack"] {
        let request = Request::new("POST", "/api/v1/sync?device_id=d1").body(msgpack_of_json("{}"));
        let response = ask(&harness, request.header("content-type", name)).await;
        assert_eq!((response.status, response.header("content-type")), (200, Some(JSON)), "{name}");
    }
    for name in ["x-gzip", "GZIP", "identity, gzip"] {
        let request = Request::new("POST", "/api/v1/sync?device_id=d1").body(gzip(b"{}"));
        assert_eq!(ask(&harness, request.header("content-encoding", name)).await.status, 200, "{name}");
    }
}

#[tokio::test]
async fn forms_that_are_not_known_are_refused_and_the_known_ones_named() {
    let harness = filled().await;
    let post = || Request::new("POST", "/api/v1/sync?device_id=d1").body("{}");
    for name in ["application/cbor", "text/html", "application/msgpackx"] {
        let response = ask(&harness, post().header("content-type", name)).await;
        assert_eq!((response.status, response.code().as_str()), (415, "UNSUPPORTED_MEDIA_TYPE"), "{name}");
        assert_eq!(response.header("accept"), Some("application/json, application/msgpack"));
        assert_eq!(response.header("accept-encoding"), None);
    }
    for name in ["br", "deflate", "gzip, gzip", "gzip, zstd", "*"] {
        let response = ask(&harness, post().header("content-encoding", name)).await;
        assert_eq!((response.status, response.code().as_str()), (415, "UNSUPPORTED_MEDIA_TYPE"), "{name}");
        assert_eq!(response.header("accept-encoding"), Some("gzip, zstd"));
    }
}

#[tokio::test]
async fn what_does_not_decode_is_told_by_its_encoding() {
    let harness = filled().await;
    let table = [(JSON, "JSON_DECODE_ERROR"), (MESSAGE_PACK, "MSGPACK_DECODE_ERROR")];
    for (kind, code) in table {
        let good = if kind == JSON { b"{}".to_vec() } else { msgpack_of_json("{}") };
        let mut bad = vec![(None, b"\xc1{".to_vec()), (None, Vec::new())];
        for coding in CODINGS.into_iter().skip(1) {
            let whole = packed(coding, &good);
            bad.push((coding, whole[..whole.len() - 1].to_vec()));
            bad.push((coding, [&whole[..], b"more"].concat()));
            bad.push((coding, good.clone()));
            bad.push((coding, Vec::new()));
        }
        let routes = [("POST", "/api/v1/sync?device_id=d1"), ("PUT", "/api/v1/policies/note")];
        for (method, target) in routes {
            for (coding, body) in &bad {
                let mut request =
                    Request::new(method, target).body(body.clone()).header("content-type", kind);
                if let Some(coding) = coding {
                    request = request.header("content-encoding", coding);
                }
                let response = ask(&harness, request).await;
                assert_eq!(
                    (response.status, response.code().as_str()),
                    (400, code),
                    "{method} {coding:?} {body:02x?}"
                );
            }
        }
    }
}

/// A document of so many bytes whose one text is noise, which hardly gets shorter.
fn noise(kind: &str, bytes: usize) -> Vec<u8> {
    // Key, quotes or head take ten bytes in either encoding.
    let mut state = 1_u32;
    let letters = (0..bytes - 10).map(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        char::from(
            b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_"[(state >> 26) as usize],
        )
    });
    let text = format!(r#"{{"pad":"{}"}}"#, letters.collect::<String>());
    if kind == JSON { text.into_bytes() } else { msgpack_of_json(&text) }
}

#[tokio::test]
async fn the_bound_of_a_message_holds_at_the_byte_in_every_form() {
    let harness = start(Setup::default()).await;
    let bytes_max = Limits::default().message_bytes;
    for kind in [JSON, MESSAGE_PACK] {
        for (bytes, status) in [(bytes_max, 200), (bytes_max + 1, 413)] {
            let body = noise(kind, bytes);
            assert_eq!(body.len(), bytes, "{kind}");
            for coding in CODINGS {
                let mut request =
                    Request::new("POST", "/api/v1/sync?device_id=d1").body(packed(coding, &body));
                request = request.header("content-type", kind);
                if let Some(coding) = coding {
                    request = request.header("content-encoding", coding);
                }
                let response = ask(&harness, request).await;
                assert_eq!(response.status, status, "{kind} {coding:?} {bytes} {}", response.text());
            }
        }
    }
}

/// Kilobytes that the process holds in memory now, or the most it held since that was forgotten.
fn memory(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux tells it");
    let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("the field");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// A gigabyte of zeros as it travels.
fn bomb(coding: &str) -> Vec<u8> {
    let zeros = vec![0; 1 << 20];
    if coding == "gzip" {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::new(6));
        (0..1024).for_each(|_| encoder.write_all(&zeros).expect("memory takes it"));
        return encoder.finish().expect("memory takes it");
    }
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3).expect("memory takes it");
    (0..1024).for_each(|_| encoder.write_all(&zeros).expect("memory takes it"));
    encoder.finish().expect("memory takes it")
}

#[tokio::test]
async fn bombs_are_refused_and_take_no_memory() {
    let harness = start_limited(|limits| limits.message_bytes = 8 << 20).await;
    for coding in ["gzip", "zstd"] {
        let body = bomb(coding);
        assert!(body.len() < 8 << 20, "{}", body.len());
        // What other tests held before counts for nothing, where the system can forget it.
        let _ = std::fs::write("/proc/self/clear_refs", "5");
        let before = memory("VmRSS:");
        for _ in 0..4 {
            let request = Request::new("POST", "/api/v1/sync?device_id=d1").body(body.clone());
            let response = soon("a refusal", ask(&harness, request.header("content-encoding", coding))).await;
            assert_eq!((response.status, response.code().as_str()), (413, "MESSAGE_TOO_LARGE"), "{coding}");
        }
        let grown = memory("VmHWM:").saturating_sub(before);
        // A message may take 8 MiB; a quarter of the gigabyte would show.
        assert!(grown < 256 << 10, "{coding}: {grown} KiB more");
    }
}

#[tokio::test]
async fn members_that_never_say_anything_end_too() {
    let harness = start_limited(|limits| limits.message_bytes = 64 << 10).await;
    let nothing = gzip(b"");
    let body = nothing.repeat((80 << 10) / nothing.len());
    let request = Request::new("POST", "/api/v1/sync?device_id=d1").body(body);
    assert_eq!(ask(&harness, request.header("content-encoding", "gzip")).await.status, 413);
}

#[tokio::test]
async fn bodies_under_way_share_one_budget() {
    let harness = start_limited(|limits| limits.inbound_bytes = 48 << 10).await;
    let small = json!({"pad": "x".repeat(10_000)}).to_string();
    let large = json!({"pad": "x".repeat(100_000)}).to_string();
    for coding in CODINGS {
        for (body, status) in [(&large, 503), (&small, 200), (&large, 503), (&small, 200)] {
            let mut request =
                Request::new("POST", "/api/v1/sync?device_id=d1").body(packed(coding, body.as_bytes()));
            if let Some(coding) = coding {
                request = request.header("content-encoding", coding);
            }
            let response = ask(&harness, request).await;
            assert_eq!(response.status, status, "{coding:?} {}", response.text());
            assert_eq!(response.header("retry-after").is_some(), status == 503);
        }
    }
}
