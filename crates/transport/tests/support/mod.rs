//! A server in the process of the test, with a clock that the test moves.
#![allow(dead_code, unreachable_pub, reason = "every test takes the part that it needs")]

pub mod files;
pub mod gated;
pub mod leaving;
pub mod sse;
pub mod telemetry;
pub mod trial;
pub mod uploading;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use driftline_engine::{
    Blobs, Catalogue, Clock, Engine, Hub, KindRule, Listeners, Random, ScopeRule, Store, UploadRules,
    policy_of_doc,
};
use driftline_model::{KindName, Limits};
use driftline_protocol::PolicyDoc;
use driftline_storage::{LocalBlobs, MemoryStore};
use driftline_testkit::http::{Request, Response};
use driftline_testkit::socket::Socket;
use driftline_testkit::{FixedClock, SeededRandom, World};
use driftline_transport::{
    App, Grant, MetricsHandle, MetricsObserver, RouteId, ServeError, Settings, SharedSecret, install_metrics,
    serve,
};
use driftline_uploads::Durability;
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use trial::TrialShell;

/// A name for sync sessions.
pub const SYNC_ID: &str = "6f9f2d0e-2f3a-4c57-9d0b-0d8a8f7a4c11";

const SECRET: &[u8] = b"the secret of all servers in these tests";

/// What a server is made of; by default nobody comes too often, since the clock stands still.
pub struct Setup {
    pub limits: Limits,
    pub settings: Settings,
    /// Kinds beside `note` and `diary`.
    pub kinds: Vec<(&'static str, KindRule)>,
    /// What uploads may be.
    pub uploads: UploadRules,
    /// Where their bytes are, unless they are in `blobs`.
    pub shell: TrialShell,
    /// Another place for their bytes.
    pub blobs: Option<Arc<dyn Blobs>>,
    /// Tells nodes of one database apart, whose names and rights are drawn.
    pub seed: u64,
}

/// The bytes of a chunk in these tests.
pub const CHUNK_BYTES: u64 = 8;

impl Default for Setup {
    fn default() -> Self {
        Self {
            limits: unhurried(Limits::default()),
            settings: Settings::default(),
            kinds: Vec::new(),
            uploads: UploadRules::default(),
            shell: TrialShell::default(),
            blobs: None,
            seed: 1,
        }
    }
}

/// Lifts the rates and leaves everything else.
pub fn unhurried(limits: Limits) -> Limits {
    Limits { connections: limits.connections, user_connections: limits.user_connections, ..limits.lifted() }
}

/// A server that runs in a task.
pub struct Harness<S: Store = MemoryStore> {
    pub app: Arc<App<S>>,
    pub hub: Arc<Hub>,
    pub address: SocketAddr,
    pub clock: Arc<FixedClock>,
    /// Where the bytes of uploads are.
    pub shell: TrialShell,
    pub serving: JoinHandle<Result<(), ServeError>>,
}

/// Starts a server on a store in memory.
pub async fn start(setup: Setup) -> Harness {
    start_on(setup, |store| store).await
}

/// Starts a server with these limits.
pub async fn start_limited(limit: impl FnOnce(&mut Limits)) -> Harness {
    let mut setup = Setup::default();
    limit(&mut setup.limits);
    start(setup).await
}

/// Starts a server on what is put around a store in memory.
pub async fn start_on<S: Store>(setup: Setup, around: impl FnOnce(MemoryStore) -> S) -> Harness<S> {
    let Setup { limits, settings, kinds, uploads, shell, blobs, seed } = setup;
    let clock = Arc::new(FixedClock::new(World::BEGIN_MS));
    let random: Arc<dyn Random> = Arc::new(SeededRandom::new(seed));
    let hub = Arc::new(Hub::new(limits.pending_deltas));
    let store = MemoryStore::new(
        Arc::clone(&clock) as Arc<dyn Clock>,
        Arc::clone(&random),
        Arc::clone(&hub) as Arc<dyn Listeners>,
        limits.clone(),
    );
    // The recorder comes first: what is counted before it stands is lost.
    let metrics = metrics();
    let engine =
        Engine::new(around(store), Arc::clone(&hub), catalogue(kinds), limits, MetricsObserver::default());
    let local = || Arc::new(LocalBlobs::new(shell.clone(), Durability::Fsync, CHUNK_BYTES));
    let blobs = blobs.unwrap_or_else(|| local());
    let engine = engine.with_uploads(blobs, uploads);
    let auth = Box::new(SharedSecret::new(SECRET).expect("it is long enough"));
    let app = App::new(engine, auth, Arc::clone(&clock) as Arc<dyn Clock>, random, settings, metrics);
    let app = Arc::new(app);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let address = listener.local_addr().expect("it is bound");
    let serving = tokio::spawn(serve(listener, Arc::clone(&app)));
    Harness { app, hub, address, clock, shell, serving }
}

/// The recorder of the process, which all its servers share.
fn metrics() -> Option<MetricsHandle> {
    static METRICS: OnceLock<Option<MetricsHandle>> = OnceLock::new();
    METRICS.get_or_init(install_metrics).clone()
}

/// `note` belongs to the tenant, `diary` to the user who wrote it.
fn catalogue(kinds: Vec<(&'static str, KindRule)>) -> Catalogue {
    let diary = KindRule { scope: ScopeRule::Owner, ..KindRule::default() };
    let kinds = [("note", KindRule::default()), ("diary", diary)].into_iter().chain(kinds);
    let named = kinds.map(|(name, rule)| (KindName::new(name).expect("a kind's name"), rule));
    Catalogue::new(BTreeMap::from_iter(named))
}

/// A rule whose policy is that of a document.
pub fn decided_by(policy: &Value) -> KindRule {
    let doc = PolicyDoc::parse(&policy.to_string()).expect("a document");
    let policy = Arc::new(policy_of_doc(&doc, 0).expect("a policy"));
    KindRule { policy, ..KindRule::default() }
}

/// What a token says; valid for an hour from the beginning of the world.
pub fn grant(tenant: &str, sub: &str, role: &str) -> Grant {
    Grant {
        tenant: tenant.into(),
        sub: sub.into(),
        roles: vec![role.into()],
        device_id: None,
        expires_s: World::BEGIN_MS / 1000 + 3600,
        claims: Map::new(),
    }
}

/// Signs what a token says.
pub fn sign(grant: &Grant) -> String {
    SharedSecret::new(SECRET).expect("it is long enough").mint(grant)
}

/// Makes a token for a user.
pub fn token(tenant: &str, sub: &str) -> String {
    sign(&grant(tenant, sub, "user"))
}

/// The path of the sync socket for a user's device.
pub fn socket_path(tenant: &str, sub: &str, device: &str) -> String {
    format!("/ws/mobile/sync?device_id={device}&token={}", token(tenant, sub))
}

/// Reads messages up to one of a type; others may come before.
pub async fn hear(socket: &mut Socket, kind: &str) -> Value {
    loop {
        let message = socket.receive().await;
        if message["type"] == kind {
            return message;
        }
    }
}

impl<S: Store> Harness<S> {
    /// Connects the device of somebody with a token of this grant, and takes the greeting.
    pub async fn enter(&self, grant: &Grant, device: &str) -> Socket {
        let path = format!("/ws/mobile/sync?device_id={device}&token={}", sign(grant));
        let mut socket = Socket::connect(self.address, &path).await;
        socket.expect("connection_established").await;
        socket
    }

    /// Sends a request of somebody with a token of this grant.
    pub async fn ask_as(&self, grant: &Grant, request: Request) -> Response {
        request.bearer(&sign(grant)).send(self.address).await
    }

    /// Connects a device of `t1`/`ada` and takes the greeting.
    pub async fn device(&self, device: &str) -> Socket {
        let mut socket = Socket::connect(self.address, &socket_path("t1", "ada", device)).await;
        socket.expect("connection_established").await;
        socket
    }

    /// Connects a device of `t1`/`ada` and opens a sync session.
    pub async fn syncing(&self, device: &str) -> Socket {
        let mut socket = self.device(device).await;
        socket.start(SYNC_ID, &[]).await;
        socket
    }

    /// Sends a request of a user.
    pub async fn ask(&self, tenant: &str, sub: &str, request: Request) -> Response {
        request.bearer(&token(tenant, sub)).send(self.address).await
    }

    /// Pushes items of `t1`/`ada` over HTTP, all of which must be done; gives their results.
    pub async fn push(&self, device: &str, items: &[Value]) -> Value {
        let request = Request::post(&format!("/api/v1/sync?device_id={device}"), &json!({"batch": items}));
        let response = self.ask("t1", "ada", request).await;
        assert_eq!(response.status, 200, "{}", response.text());
        let mut answer = response.json();
        assert_eq!(answer["ack"]["status"], "ok", "{answer}");
        answer["ack"]["results"].take()
    }

    /// Reads a counter from `/metrics`.
    pub async fn counted(&self, name: &str) -> u64 {
        let text = Request::get("/metrics").send(self.address).await.text();
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.map_or(0, |value| value.trim().parse().expect("a counter is a number"))
    }

    /// Shows that the server still serves: an honest device connects and is answered.
    pub async fn serves(&self) {
        let mut socket = self.device("honest").await;
        let pong = socket.ask(&json!({"type": "ping", "timestamp": 7}), "pong").await;
        assert_eq!(pong["timestamp"], 7);
    }
}

/// What a route that tells something takes.
pub fn told(route: RouteId) -> Option<Value> {
    Some(match route {
        RouteId::PublishEvent => json!({"topic": "all", "type": "told"}),
        RouteId::Broadcast | RouteId::SendToUser => json!({"data": {}}),
        RouteId::DeviceAlert => {
            json!({"device_id": "d9", "title": "t", "message": "m", "severity": "low"})
        }
        RouteId::LiveMetrics | RouteId::PerformanceData => {
            json!({"device_id": "d9", "metrics": {"cpu_usage": 1}})
        }
        RouteId::Notify => {
            json!({"type": "news", "title": "t", "message": "m", "severity": "low", "user_ids": ["nobody"]})
        }
        RouteId::DeviceAction => json!({"action": "restart", "status": "begun"}),
        _ => return None,
    })
}

/// An item that creates a record.
pub fn create(n: u64, kind: &str, id: &str, fields: &Value) -> Value {
    json!({"op_id": format!("op-{id}-{n}"), "n": n, "kind": kind, "id": id, "op": "create", "fields": fields})
}

/// An item that changes a record which its author saw at a version.
pub fn patch(n: u64, kind: &str, id: &str, base: &Value, fields: &Value) -> Value {
    json!({"op_id": format!("op-{id}-{n}"), "n": n, "kind": kind, "id": id, "op": "patch", "base_version": base,
           "fields": fields})
}

/// A batch for the socket.
pub fn batch(seq: u64, items: &[Value]) -> Value {
    json!({"type": "sync_data", "id": format!("b{seq}"), "sync_id": SYNC_ID,
           "payload": {"batch": items, "batch_seq": seq}})
}

/// A pull for the socket.
pub fn pull() -> Value {
    json!({"type": "request_server_data", "sync_id": SYNC_ID, "payload": {}})
}

/// Waits until a condition holds, asking again and again; the caller's patience ends it.
pub async fn until<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let holds = async {
        while !condition().await {
            tokio::task::yield_now().await;
        }
    };
    driftline_testkit::http::soon(what, holds).await;
}
