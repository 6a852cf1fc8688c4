//! Who may do what on every route of the table, and who learns nothing.

mod support;

use driftline_testkit::World;
use driftline_testkit::http::{Request, Response};
use driftline_testkit::socket::{Handshake, Socket};
use driftline_transport::{Access, Door, Grant, ROUTES, Route, RouteId, Settings, SharedSecret};
use driftline_uploads::Digest;
use serde_json::{Value, json};
use support::files::{Uploads, uploads};
use support::sse::EventSource;
use support::{Harness, SYNC_ID, Setup, create, grant, patch, pull, sign, start, telemetry, token, told};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

/// Who asks. Everything belongs to the user ada of the tenant t1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Caller {
    /// Ada herself.
    Owner,
    /// Another user of the tenant.
    OtherUser,
    /// A user of the same name, in another tenant.
    OtherTenant,
    /// Who administers the tenant.
    Admin,
    /// Who administers another tenant.
    OtherAdmin,
    /// Who decides the tenant's conflicts.
    Reviewer,
    /// Nobody known.
    NoToken,
    /// Ada with a token that has ended.
    Expired,
    /// Ada with a token that somebody else signed.
    WrongKey,
}

use Caller::{Admin, Expired, NoToken, OtherAdmin, OtherTenant, OtherUser, Owner, Reviewer, WrongKey};

const CALLERS: &[Caller] =
    &[Owner, OtherUser, OtherTenant, Admin, OtherAdmin, Reviewer, NoToken, Expired, WrongKey];

impl Caller {
    fn token(self) -> Option<String> {
        let ended = Grant { expires_s: World::BEGIN_MS / 1000 - 60, ..grant("t1", "ada", "user") };
        Some(match self {
            Owner => token("t1", "ada"),
            OtherUser => token("t1", "bob"),
            OtherTenant => token("t2", "ada"),
            Admin => sign(&grant("t1", "root", "admin")),
            OtherAdmin => sign(&grant("t2", "root", "admin")),
            Reviewer => sign(&grant("t1", "rita", "reviewer")),
            NoToken => return None,
            Expired => sign(&ended),
            WrongKey => {
                let key = SharedSecret::new(b"what somebody else has chosen").expect("it is long enough");
                key.mint(&grant("t1", "ada", "user"))
            }
        })
    }

    fn is_stranger(self) -> bool {
        matches!(self, NoToken | Expired | WrongKey)
    }
}

/// What a caller must get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// Let in without being asked for a token.
    Open,
    /// Answered, and shown what belongs to ada.
    Sees,
    /// Answered, and shown nothing of hers.
    Blind,
    /// Let change it.
    Changes,
    /// There is no such thing.
    NotFound,
    /// Not the caller's right.
    Forbidden,
    /// Not known.
    Unauthorized,
}

/// What every caller must get on a route, with a kind of records of the tenant or of their owner. A route that is not
/// named here has no verdict.
fn verdict(route: RouteId, caller: Caller, kind: Kind) -> Option<Verdict> {
    use Verdict::{Blind, Changes, Forbidden, NotFound, Open, Sees, Unauthorized};
    let reads = match kind {
        Kind::Diary => caller == Owner,
        Kind::Note => matches!(caller, Owner | OtherUser | Admin | Reviewer),
    };
    let decides = matches!(caller, Admin | Reviewer) && reads;
    let elsewhere = matches!(caller, OtherTenant | OtherAdmin);
    let verdict = match route {
        RouteId::Alive | RouteId::Ready | RouteId::Metrics => return Some(Open),
        // Whoever brings no token may try frames; whoever brings one must bring a good one.
        RouteId::EchoSocket if caller == NoToken => return Some(Open),
        RouteId::EchoSocket => Blind,
        RouteId::SyncSocket | RouteId::Sync | RouteId::Changes | RouteId::Records => {
            if reads {
                Sees
            } else {
                Blind
            }
        }
        RouteId::Record | RouteId::Explain => {
            if reads {
                Sees
            } else {
                NotFound
            }
        }
        RouteId::Conflicts | RouteId::Audit => match caller {
            Admin | Reviewer if decides => Sees,
            Admin | Reviewer | OtherAdmin => Blind,
            _ => Forbidden,
        },
        RouteId::Conflict => {
            if decides || caller == Owner {
                Sees
            } else {
                NotFound
            }
        }
        RouteId::ResolveConflict => match caller {
            Owner => Forbidden,
            _ if decides => Changes,
            _ => NotFound,
        },
        RouteId::Policies | RouteId::Policy => {
            if elsewhere {
                Blind
            } else {
                Sees
            }
        }
        RouteId::SetPolicy => match caller {
            Admin => Changes,
            OtherAdmin => Blind,
            _ => Forbidden,
        },
        // What is sent is the sender's own, and a device is registered for whoever asks.
        RouteId::Ingest
        | RouteId::AddDevice
        | RouteId::SystemSocket
        | RouteId::TopicsSocket
        | RouteId::UpdatesSocket => Blind,
        RouteId::Telemetry => {
            if matches!(caller, Owner | Admin) {
                Sees
            } else {
                Blind
            }
        }
        RouteId::Analytics => match caller {
            Admin => Sees,
            OtherAdmin => Blind,
            _ => Forbidden,
        },
        RouteId::MetricsSocket | RouteId::AlertsSocket => match caller {
            Admin | OtherAdmin => Blind,
            _ => Forbidden,
        },
        RouteId::Devices => {
            if matches!(caller, Owner | Admin) {
                Sees
            } else {
                Blind
            }
        }
        RouteId::Device | RouteId::ChangeDevice | RouteId::DeviceSocket => {
            if matches!(caller, Owner | Admin) { Sees } else { NotFound }
        }
        RouteId::RemoveDevice => {
            if matches!(caller, Owner | Admin) {
                Changes
            } else {
                NotFound
            }
        }
        RouteId::UserSocket => match caller {
            Owner | Admin => Sees,
            // The user of that name is another one there.
            OtherTenant | OtherAdmin => Blind,
            _ => Forbidden,
        },
        // The stream tells what happened to one of ada's devices.
        RouteId::Events => {
            if matches!(caller, Owner | Admin) {
                Sees
            } else {
                Blind
            }
        }
        RouteId::Delivery => {
            if matches!(caller, Owner | Admin) {
                Sees
            } else {
                NotFound
            }
        }
        RouteId::PublishEvent
        | RouteId::Broadcast
        | RouteId::SendToUser
        | RouteId::DeviceAlert
        | RouteId::LiveMetrics
        | RouteId::PerformanceData
        | RouteId::Notify
        | RouteId::DeviceAction
        | RouteId::StartMonitoring
        | RouteId::StopMonitoring
        | RouteId::Monitoring
        | RouteId::Stats
        | RouteId::DrainOutbox => match caller {
            Admin | OtherAdmin => Blind,
            _ => Forbidden,
        },
        RouteId::Disconnect => match caller {
            Admin | OtherAdmin => NotFound,
            _ => Forbidden,
        },
        RouteId::AddTicket | RouteId::Sessions | RouteId::TopicPresence => Blind,
        RouteId::Notifications => {
            if matches!(caller, Owner) {
                Sees
            } else {
                Blind
            }
        }
        RouteId::ReadNotification => {
            if caller == Owner {
                Sees
            } else {
                NotFound
            }
        }
        RouteId::UploadPreflight | RouteId::TusOptions | RouteId::TusUpload => return Some(Open),
        RouteId::OpenUpload | RouteId::TusCreate => Blind,
        RouteId::Upload | RouteId::FinalizeUpload => {
            if caller == Owner {
                Sees
            } else {
                NotFound
            }
        }
        RouteId::UploadChunk | RouteId::CancelUpload => {
            if caller == Owner {
                Changes
            } else {
                NotFound
            }
        }
        RouteId::File => {
            if matches!(caller, Owner | Admin) {
                Sees
            } else {
                NotFound
            }
        }
        RouteId::RemoveFile => {
            if matches!(caller, Owner | Admin) {
                Changes
            } else {
                NotFound
            }
        }
        RouteId::RemovePolicy => match caller {
            Admin => Changes,
            OtherAdmin => NotFound,
            _ => Forbidden,
        },
        _ => return None,
    };
    Some(if caller.is_stranger() { Unauthorized } else { verdict })
}

/// Whose records are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Everyone's of the tenant.
    Note,
    /// Their owner's.
    Diary,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::Diary => "diary",
        }
    }
}

/// What only ada's records say, and what only the policies of her tenant say.
const SECRETS: [&str; 2] = ["sesame", r#""granularity":"field""#];

/// A server that holds ada's records and the policies of her tenant.
struct Seeded {
    harness: Harness,
    /// The open conflicts about ada's records, by kind.
    conflicts: Vec<(Kind, String)>,
    uploads: Uploads,
}

async fn seeded() -> Seeded {
    let settings = Settings { echo: true, ..Settings::default() };
    let harness = start(Setup { settings, ..telemetry::setup() }).await;
    let device = json!({"device_id": "sesame-1"});
    assert_eq!(harness.register("t1", "ada", &device).await.status, 201);
    let at = World::BEGIN_MS;
    for message in [
        json!({"type": "place", "payload": {"timestamp": at, "name": "sesame"}}),
        json!({"type": "analytics_batch", "payload": {"from": at, "to": at + 1, "counters": {"sesame": 1}}}),
    ] {
        let request = Request::post("/api/ingest?device_id=sesame-1", &message);
        assert_eq!(harness.ask("t1", "ada", request).await.status, 200);
    }
    let events = [
        json!({"topic": "device_sesame-1", "type": "told", "data": {"text": "sesame"}}),
        json!({"user_id": "ada", "type": "notification", "data": {"id": "r-1", "title": "sesame"}}),
    ];
    for event in events {
        let request = Request::post("/api/v1/events", &event);
        assert_eq!(harness.ask_as(&grant("t1", "root", "admin"), request).await.status, 202);
    }
    let mut conflicts = Vec::new();
    for (n, kind) in [(1, Kind::Note), (3, Kind::Diary)] {
        // Two devices of ada's edit one record: the later edit waits for a reviewer.
        set_policy(&harness, kind, &json!({"strategy": "manual"})).await;
        let created = harness.push("seed", &[create(n, kind.name(), "r-1", &json!({"text": "open"}))]).await;
        let base = &created[0]["version"];
        harness.push("seed", &[patch(n + 1, kind.name(), "r-1", base, &json!({"text": "sesame"}))]).await;
        let waits = [patch(n, kind.name(), "r-1", base, &json!({"text": "sesame!"}))];
        let waits = harness.push("tablet", &waits).await;
        assert_eq!(waits[0]["code"], "conflict_pending", "{waits}");
        conflicts.push((kind, waits[0]["conflict_id"].as_str().expect("a conflict").to_owned()));
        set_policy(&harness, kind, &json!({"strategy": "client_wins", "granularity": "field"})).await;
    }
    let uploads = uploads(&harness).await;
    Seeded { harness, conflicts, uploads }
}

async fn set_policy(harness: &Harness, kind: Kind, policy: &Value) {
    let request = Request::new("PUT", &format!("/api/v1/policies/{}", kind.name())).json(policy);
    let root = sign(&grant("t1", "root", "admin"));
    assert_eq!(request.bearer(&root).send(harness.address).await.status, 200);
}

/// Everything that ada can see of what is hers.
async fn holdings(harness: &Harness, uploads: &Uploads) -> Vec<Value> {
    let paths = ["policies", "records/note", "records/diary", "records/diary/r-1/explain", "changes"];
    let mut found = Vec::new();
    let device = harness.ask("t1", "ada", Request::get("/api/v1/devices/sesame-1")).await;
    found.push(json!([device.status, device.json()["enabled"]]));
    for id in [&uploads.open, &uploads.done] {
        let upload = harness.ask("t1", "ada", Request::get(&format!("/api/v1/uploads/{id}"))).await;
        found.push(json!([upload.status, upload.json()["state"], upload.json()["received"]]));
    }
    for path in paths {
        let answer = harness.ask("t1", "ada", Request::get(&format!("/api/v1/{path}"))).await;
        assert_eq!(answer.status, 200, "{path}");
        let mut answer = answer.json();
        if let Some(answer) = answer.as_object_mut() {
            answer.remove("server_time");
        }
        found.push(answer);
    }
    found
}

/// What a route is asked about.
#[derive(Debug, Clone, Copy)]
struct Subject<'a> {
    kind: Kind,
    id: &'a str,
    conflict: &'a str,
    uploads: &'a Uploads,
}

/// The target for a route, with and without a slash at its end.
fn target(route: &Route, subject: Subject<'_>, slash: &str) -> String {
    let Subject { kind, id, conflict, uploads } = subject;
    let nothing = "0".repeat(32);
    let upload = match route.id {
        _ if id != "r-1" => &nothing,
        RouteId::UploadChunk | RouteId::CancelUpload => &uploads.open,
        _ => &uploads.done,
    };
    let path = route.path.replace("{kind}", kind.name()).replace("{id}", id);
    let path = path.replace("{conflict_id}", conflict).replace("{user_id}", "ada");
    let path = path.replace("{device_id}", if id == "r-1" { "sesame-1" } else { "sesam" });
    let path = path.replace("{event_id}", "1").replace("{topic}", "all").replace("{connection_id}", "none");
    let path =
        path.replace("{notification_id}", id).replace("{upload_id}", upload).replace("{file_id}", upload);
    let path = path.replace("{upload}", &uploads.tus).replace("{index}", "0");
    let path =
        path.replace("telemetry/note", "telemetry/place").replace("telemetry/diary", "telemetry/place");
    assert!(!path.contains('{'), "the test knows no value for {path}");
    let kind = kind.name();
    let more = match route.id {
        RouteId::Events => "&topics=device_sesame-1&last_event_id=0",
        RouteId::Delivery if id == "r-1" => "&device=sesame-1",
        RouteId::Delivery => "&device=sesam",
        _ => "",
    };
    format!("{path}{slash}?device_id=phone&data_types={kind}&kind={kind}{more}")
}

async fn request(harness: &Harness, route: &Route, target: &str, (caller, kind): (Caller, Kind)) -> Response {
    let mut request = Request::new(route.method, target).header("x-correlation-id", "matrix");
    match (route.id, route.method) {
        (RouteId::Sync, _) => request = request.json(&json!({"data_types": [kind.name()]})),
        (RouteId::ResolveConflict, _) => request = request.json(&json!({"resolution": "client"})),
        (RouteId::Ingest, _) => {
            request = request.json(&json!({"type": "place", "payload": {"timestamp": 1}}));
        }
        (RouteId::OpenUpload, _) => request = request.json(&json!({"filename": "a", "size": 6})),
        (RouteId::UploadChunk, _) => {
            request = request.body("sesame").header("x-chunk-sha256", &Digest::hash(b"sesame").to_string());
        }
        (RouteId::FinalizeUpload, _) => {
            request = request.json(&json!({"sha256": Digest::hash(b"sesame").to_string()}));
        }
        (RouteId::TusCreate | RouteId::TusUpload, method) => {
            request = request.header("tus-resumable", "1.0.0").header("upload-offset", "0");
            request = match (route.id, method) {
                (RouteId::TusCreate, _) => request.header("upload-length", "6"),
                (_, "POST") => request.header("x-http-method-override", "HEAD"),
                _ => request.header("content-type", "application/offset+octet-stream"),
            };
        }
        (RouteId::AddDevice, _) => request = request.json(&json!({"device_id": "another"})),
        (_, "PATCH") => request = request.json(&json!({"device_hash": null})),
        (_, "PUT") => request = request.json(&json!({"strategy": "server_wins"})),
        _ => {
            if let Some(body) = told(route.id) {
                request = request.json(&body);
            }
        }
    }
    if let Some(token) = caller.token() {
        request = request.bearer(&token);
    }
    request.send(harness.address).await
}

/// What a caller got, judged by status, code and body.
fn judged(response: &Response, wanted: Verdict) -> Verdict {
    let text = response.text();
    let shown = SECRETS.iter().any(|secret| text.contains(secret));
    match (response.status, shown) {
        (201 | 202, false) => Verdict::Blind,
        (200 | 204, false) if matches!(wanted, Verdict::Open | Verdict::Changes) => wanted,
        // A decision is answered with what was decided.
        (200, true) if wanted == Verdict::Changes => wanted,
        (200, true) => Verdict::Sees,
        (200, false) => Verdict::Blind,
        (401, false) if response.code() == "UNAUTHORIZED" => {
            assert_eq!(response.header("www-authenticate"), Some("Bearer"));
            Verdict::Unauthorized
        }
        (403, false) if response.code() == "FORBIDDEN" => Verdict::Forbidden,
        (404, false) if matches!(response.code().as_str(), "NOT_FOUND" | "CONFLICT_NOT_FOUND") => {
            Verdict::NotFound
        }
        _ => panic!("wanted {wanted:?}, got {} {text}", response.status),
    }
}

/// What a caller got on the echo, where the token stands in the URL.
async fn judged_echo(harness: &Harness, target: &str, caller: Caller) -> Verdict {
    let token = caller.token().map(|token| format!("&token={token}"));
    let mut socket =
        Socket::connect(harness.address, &format!("{target}{}", token.as_deref().unwrap_or_default())).await;
    socket.send(&json!({"type": "ping"})).await;
    let first = socket.receive().await;
    if first["type"] == "error" {
        assert_eq!(first["code"], "UNAUTHORIZED", "{first}");
        assert_eq!(socket.until_end().await, (Vec::new(), 4001));
        return Verdict::Unauthorized;
    }
    assert_eq!(first, json!({"type": "ping"}));
    if token.is_none() { Verdict::Open } else { Verdict::Blind }
}

/// What a caller got on the socket: everything that a first sync tells.
async fn judged_socket(harness: &Harness, target: &str, (caller, kind): (Caller, Kind)) -> Verdict {
    let mut handshake = Handshake::new(target);
    if let Some(token) = caller.token() {
        handshake = handshake.bearer(&token);
    }
    let (mut socket, _) = handshake.send(harness.address).await.expect("the upgrade is answered first");
    let first = socket.receive().await;
    if first["type"] == "error" {
        assert_eq!(first["code"], "UNAUTHORIZED", "{first}");
        let (rest, close) = socket.until_end().await;
        assert_eq!((rest.len(), close), (0, 4001), "nothing follows but the close frame");
        return Verdict::Unauthorized;
    }
    assert_eq!(first["type"], "connection_established");
    socket.start(SYNC_ID, &[kind.name()]).await;
    let page = socket.ask(&pull(), "server_data").await;
    if page.to_string().contains("sesame") { Verdict::Sees } else { Verdict::Blind }
}

/// What a caller got on a socket that tells of what happens, when one of ada's devices says something.
async fn judged_watcher(harness: &Harness, target: &str, caller: Caller) -> Verdict {
    let mut handshake = Handshake::new(target);
    if let Some(token) = caller.token() {
        handshake = handshake.bearer(&token);
    }
    let (mut socket, _) = handshake.send(harness.address).await.expect("the upgrade is answered first");
    let first = socket.receive().await;
    if first["type"] == "error" {
        let (rest, close) = socket.until_end().await;
        assert!(rest.is_empty(), "nothing follows but the close frame");
        return match (first["code"].as_str(), close) {
            (Some("UNAUTHORIZED"), 4001) => Verdict::Unauthorized,
            (Some("FORBIDDEN"), 4503) => Verdict::Forbidden,
            (Some("NOT_FOUND"), 4503) => Verdict::NotFound,
            _ => panic!("{first} {close}"),
        };
    }
    assert_eq!(first["type"], "connection_established");
    let says = json!({"type": "device_status", "payload": {"status": "sesame"}});
    let request = Request::post("/api/ingest?device_id=sesame-1", &says);
    assert_eq!(harness.ask("t1", "ada", request).await.status, 200);
    socket.send(&json!({"type": "ping"})).await;
    let mut shown = false;
    loop {
        let message = socket.receive().await;
        if message["type"] == "pong" {
            return if shown { Verdict::Sees } else { Verdict::Blind };
        }
        shown |= message.to_string().contains("sesame");
    }
}

/// What a caller got of the stream that tells what happened to one of ada's devices.
async fn judged_stream(harness: &Harness, target: &str, caller: Caller) -> Verdict {
    let mut source = EventSource::open(harness.address, target, caller.token().as_deref(), None).await;
    if source.status == 401 {
        return Verdict::Unauthorized;
    }
    assert_eq!(source.status, 200);
    let first = source.event().await;
    if !first["topics"].to_string().contains("sesame") {
        return Verdict::Blind;
    }
    // What is retained comes at once; where nothing is, only the place in the log does.
    let next = source.block().await.expect("the stream goes on");
    let Some(event) = next.data else { return Verdict::Blind };
    assert_eq!(event["data"]["text"], "sesame");
    Verdict::Sees
}

/// Doors for those who know a device hash, whoever they are; `ingest.rs` stands before them.
fn goes_by_hash(route: &Route) -> bool {
    matches!(route.id, RouteId::IngestSocket | RouteId::IngestAuthSocket)
}

#[tokio::test]
async fn every_route_lets_in_whom_it_should_and_nobody_else() {
    for route in ROUTES.iter().filter(|route| !goes_by_hash(route)) {
        for (caller, kind, slash) in cases() {
            let case = format!("{:?} {} {caller:?} {kind:?} {slash:?}", route.id, route.path);
            let wanted = verdict(route.id, caller, kind).unwrap_or_else(|| panic!("no verdict for {case}"));
            if route.door == Door::Upload && kind == Kind::Diary {
                continue;
            }
            let Seeded { harness, conflicts, uploads } = seeded().await;
            let before = holdings(&harness, &uploads).await;
            let conflict = conflicts.iter().find(|(of, _)| *of == kind).map_or("", |(_, conflict)| conflict);
            let subject = Subject { kind, id: "r-1", conflict, uploads: &uploads };
            let target = target(route, subject, slash);
            let got = match route.door {
                Door::Socket if route.id == RouteId::EchoSocket => {
                    judged_echo(&harness, &target, caller).await
                }
                Door::Socket if route.id != RouteId::SyncSocket => {
                    judged_watcher(&harness, &target, caller).await
                }
                Door::Stream => judged_stream(&harness, &target, caller).await,
                Door::Socket => judged_socket(&harness, &target, (caller, kind)).await,
                Door::Http | Door::Upload => {
                    let response = request(&harness, route, &target, (caller, kind)).await;
                    assert_eq!(response.header("x-correlation-id"), Some("matrix"), "{case}");
                    let got = judged(&response, wanted);
                    if got == Verdict::NotFound {
                        let nothing = Subject { id: "r-9", conflict: "00000000-9", ..subject };
                        let unknown = self::target(route, nothing, slash);
                        let missing = request(&harness, route, &unknown, (caller, kind)).await;
                        assert_eq!(response.body, missing.body, "{case}: it differs from what never was");
                    }
                    got
                }
            };
            assert_eq!(got, wanted, "{case}");
            let after = holdings(&harness, &uploads).await;
            assert_eq!(before != after, wanted == Verdict::Changes, "{case}: {before:?} {after:?}");
            // Very many servers would tick beside each other until the end.
            harness.serving.abort();
        }
    }
}

fn cases() -> impl Iterator<Item = (Caller, Kind, &'static str)> {
    let kinds = [Kind::Note, Kind::Diary];
    CALLERS.iter().flat_map(move |caller| {
        kinds.into_iter().flat_map(move |kind| ["", "/"].map(|slash| (*caller, kind, slash)))
    })
}

#[test]
fn the_table_says_the_same_as_the_verdicts() {
    for route in ROUTES.iter().filter(|route| !goes_by_hash(route)) {
        let of = |caller| verdict(route.id, caller, Kind::Diary).expect("a verdict");
        assert_eq!(of(NoToken) == Verdict::Open, route.access == Access::Public, "{}", route.path);
        // Whose devices are whose is no matter of roles.
        let by_role = of(Reviewer) == Verdict::Forbidden && route.id != RouteId::UserSocket;
        assert_eq!(
            by_role,
            matches!(route.access, Access::Admin | Access::Staff | Access::Publisher),
            "{}",
            route.path
        );
        let twins = ROUTES.iter().filter(|twin| (twin.path, twin.method) == (route.path, route.method));
        assert_eq!(twins.count(), 1, "{}", route.path);
    }
}

#[tokio::test]
async fn nobody_writes_into_what_another_owns() {
    let Seeded { harness, uploads, .. } = seeded().await;
    let before = holdings(&harness, &uploads).await;
    let write = |op: &str| {
        json!({"op_id": format!("x-{op}"), "kind": "diary", "id": "r-1", "op": op, "base_version": 2,
               "fields": {"text": "mine now"}})
    };
    let push = |op: &str| {
        let body = json!({"batch": [write(op)], "data_types": ["diary"]});
        Request::post("/api/v1/sync?device_id=phone", &body)
    };
    // Only a create learns that the id is taken, for it has to choose another one.
    let table = [("bob", "patch", "gone"), ("bob", "delete", "gone"), ("bob", "create", "forbidden")];
    for (user, op, code) in table {
        let response = harness.ask("t1", user, push(op)).await;
        let result = &response.json()["ack"]["results"][0];
        assert_eq!(result["code"], code, "{user} {op}: {result}");
        assert!(!response.text().contains("sesame"), "{user} {op}: {}", response.text());
    }
    // Another tenant has all ids for itself.
    let response = harness.ask("t2", "ada", push("create")).await;
    assert_eq!(response.json()["ack"]["results"][0]["code"], "applied", "{}", response.text());
    assert!(!response.text().contains("sesame"));
    assert_eq!(holdings(&harness, &uploads).await, before);
}

/// Cursors of ada's, of the user of her name in the other tenant, and a forged one.
async fn cursors(harness: &Harness) -> (String, String, String) {
    let mut found = Vec::new();
    for tenant in ["t1", "t2"] {
        let page = harness.ask(tenant, "ada", Request::get("/api/v1/changes")).await;
        found.push(page.json()["cursor"].as_str().expect("a cursor").to_owned());
    }
    let mut forged = found[0].clone().into_bytes();
    let middle = forged.len() / 2;
    forged[middle] = if forged[middle] == b'A' { b'B' } else { b'A' };
    let forged = String::from_utf8(forged).expect("text");
    (found.remove(0), found.remove(0), forged)
}

#[tokio::test]
async fn a_cursor_of_another_tenant_is_no_cursor() {
    let Seeded { harness, uploads, .. } = seeded().await;
    let (own, foreign, forged) = cursors(&harness).await;
    let before = holdings(&harness, &uploads).await;
    let push = |cursor: &str| {
        let items = [create(9, "note", "from-the-future", &json!({}))];
        let body = json!({"cursor": cursor, "batch": items});
        Request::post("/api/v1/sync?device_id=phone", &body)
    };
    for cursor in [&foreign, &forged, &"nonsense".to_owned()] {
        let pulled =
            harness.ask("t1", "ada", Request::get(&format!("/api/v1/changes?cursor={cursor}"))).await;
        let pushed = harness.ask("t1", "ada", push(cursor)).await;
        for refused in [pulled, pushed] {
            assert_eq!((refused.status, refused.code().as_str()), (410, "CURSOR_INVALID"));
            let problem = refused.json();
            assert_eq!(
                (&problem["keep_queue"], &problem["status"]),
                (&json!(true), &json!(410)),
                "{problem}"
            );
        }
        assert_eq!(holdings(&harness, &uploads).await, before, "nothing was applied");

        let mut socket = harness.syncing("phone").await;
        let pull = json!({"type": "request_server_data", "id": "p", "sync_id": SYNC_ID,
                          "payload": {"cursor": cursor}});
        let error = socket.ask(&pull, "error").await;
        assert_eq!((&error["code"], &error["reply_to"]), (&json!("CURSOR_INVALID"), &json!("p")));
        assert_eq!(socket.expect("resync_required").await["keep_queue"], true);
        socket.ask(&json!({"type": "ping"}), "pong").await;
    }
    let kept = harness.ask("t1", "ada", push(&own)).await;
    assert_eq!(kept.status, 200, "one's own cursor is one: {}", kept.text());
}

#[tokio::test]
async fn a_token_that_names_a_device_is_for_that_device() {
    let harness = start(Setup::default()).await;
    let bound = sign(&Grant { device_id: Some("d1".into()), ..grant("t1", "ada", "user") });
    let sync =
        |query: &str, body: &Value| Request::post(&format!("/api/v1/sync{query}"), body).bearer(&bound);
    let table = [
        (sync("?device_id=d2", &json!({})), 403),
        (sync("", &json!({"device_id": "d2"})), 403),
        (Request::get("/api/v1/changes?device_id=d2").bearer(&bound), 403),
        (sync("?device_id=d1", &json!({"device_id": "d1"})), 200),
        (sync("", &json!({})), 200),
    ];
    for (request, status) in table {
        let response = request.send(harness.address).await;
        assert_eq!(response.status, status, "{request:?}");
        assert_eq!(status == 403, response.text().contains("FORBIDDEN"));
    }
    let open = |device: &str| format!("/ws/mobile/sync?token={bound}{device}");
    let mut other = Socket::connect(harness.address, &open("&device_id=d2")).await;
    assert_eq!(other.until_error().await, ("FORBIDDEN".into(), 4503));
    for own in ["&device_id=d1", ""] {
        let mut socket = Socket::connect(harness.address, &open(own)).await;
        assert_eq!(socket.expect("connection_established").await["device_id"], "d1");
    }
}

#[tokio::test]
async fn a_sync_needs_a_device() {
    let harness = start(Setup::default()).await;
    let token = token("t1", "ada");
    let path = format!("/ws/mobile/sync?token={token}");
    let mut socket = Socket::connect(harness.address, &path).await;
    assert_eq!(socket.until_error().await, ("MISSING_DEVICE_ID".into(), 4502));
    let response = harness.ask("t1", "ada", Request::post("/api/v1/sync", &json!({}))).await;
    assert_eq!((response.status, response.code().as_str()), (422, "MISSING_DEVICE_ID"));

    let long = "d".repeat(1000);
    for unusable in ["", &long] {
        let path = format!("/ws/mobile/sync?device_id={unusable}&token={token}");
        let (code, close) = Socket::connect(harness.address, &path).await.until_error().await;
        assert!(close >= 4500, "a client that cannot be helped does not come back: {code} {close}");
        let path = format!("/api/v1/sync?device_id={unusable}");
        let response = harness.ask("t1", "ada", Request::post(&path, &json!({}))).await;
        assert_eq!(response.status, 422, "{}", response.text());
    }
}

#[tokio::test]
async fn what_is_no_route_is_answered_as_a_problem() {
    let harness = start(Setup::default()).await;
    let nowhere = Request::get("/api/v1/nothing").send(harness.address).await;
    assert_eq!((nowhere.status, nowhere.code().as_str()), (404, "NOT_FOUND"));
    let methods = Request::new("DELETE", "/api/v1/sync").send(harness.address).await;
    assert_eq!((methods.status, methods.code().as_str()), (405, "METHOD_NOT_ALLOWED"));
    assert_eq!(methods.header("allow"), Some("POST"), "RFC 9110, 15.5.6");
    for response in [nowhere, methods] {
        assert_eq!(response.header("content-type"), Some("application/problem+json"));
        let problem = response.json();
        assert_eq!(problem["status"], response.status);
        assert!(problem["correlation_id"].is_string(), "{problem}");
        assert_eq!(response.header("x-correlation-id"), problem["correlation_id"].as_str());
    }
}

#[tokio::test]
async fn a_request_names_one_host() {
    let harness = start(Setup::default()).await;
    for hosts in ["", "host: a\r\nhost: b\r\n"] {
        for path in ["/alive", "/ws/mobile/sync", "/api/v1/changes"] {
            let mut stream = TcpStream::connect(harness.address).await.expect("a server listens");
            let head = format!("GET {path} HTTP/1.1\r\n{hosts}\r\n");
            stream.write_all(head.as_bytes()).await.expect("it reads");
            let response = Response::read(&mut stream, &mut Vec::new()).await.expect("an answer comes");
            assert_eq!((response.status, &response.json()["status"]), (400, &json!(400)), "{head}");
        }
    }
}
