//! An axum service behind the layer, without sockets, with a clock by hand.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use axum::{Extension, Router};
use driftline_idempotency::tower::{AnswerReference, Attempt, Future, IdempotencyLayer};
use driftline_idempotency::{MemoryRecords, Scope};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tower_service::Service;

/// A service that counts its effects and answers as it is told.
pub(crate) struct World {
    pub(crate) effects: AtomicUsize,
    pub(crate) now_ms: AtomicU64,
    pub(crate) status: AtomicU16,
    pub(crate) answer_bytes: AtomicUsize,
    pub(crate) reference: bool,
    /// A handler takes one of these before it answers.
    pub(crate) permits: Semaphore,
    pub(crate) entered: Semaphore,
    pub(crate) attempts: std::sync::Mutex<Vec<Attempt>>,
    pub(crate) records: Arc<MemoryRecords>,
}

impl World {
    pub(crate) fn new() -> Self {
        Self {
            effects: AtomicUsize::new(0),
            now_ms: AtomicU64::new(1_000),
            status: AtomicU16::new(201),
            answer_bytes: AtomicUsize::new(10),
            reference: false,
            permits: Semaphore::new(Semaphore::MAX_PERMITS),
            entered: Semaphore::new(0),
            attempts: std::sync::Mutex::default(),
            records: Arc::new(MemoryRecords::default()),
        }
    }

    /// A world whose handlers wait for a permit.
    pub(crate) fn gated() -> Self {
        Self { permits: Semaphore::new(0), ..Self::new() }
    }

    pub(crate) fn layer(self: &Arc<Self>) -> IdempotencyLayer<Arc<MemoryRecords>> {
        let world = Arc::clone(self);
        let clock = move || world.now_ms.load(Ordering::SeqCst);
        IdempotencyLayer::new(Arc::clone(&self.records), clock, |parts| {
            let user = parts.headers.get("user")?.to_str().ok()?;
            Scope::new("acme", user).ok()
        })
    }

    pub(crate) fn router(self: &Arc<Self>, layer: IdempotencyLayer<Arc<MemoryRecords>>) -> Router {
        Router::new().route("/{*path}", any(handle)).with_state(Arc::clone(self)).layer(layer)
    }

    pub(crate) fn effects(&self) -> usize {
        self.effects.load(Ordering::SeqCst)
    }
}

async fn handle(
    State(world): State<Arc<World>>,
    attempt: Option<Extension<Attempt>>,
    body: Bytes,
) -> Response {
    if let Some(Extension(attempt)) = attempt {
        world.attempts.lock().expect("whole").push(attempt);
    }
    let effect = world.effects.fetch_add(1, Ordering::SeqCst) + 1;
    world.entered.add_permits(1);
    world.permits.acquire().await.expect("open").forget();
    let bytes = world.answer_bytes.load(Ordering::SeqCst);
    let text = format!("effect {effect} of {} bytes {}", body.len(), "x".repeat(bytes));
    let status = StatusCode::from_u16(world.status.load(Ordering::SeqCst)).expect("a status");
    let headers = [("location", format!("/things/{effect}")), ("set-cookie", "secret=1".to_owned())];
    let mut response = (status, headers, text).into_response();
    if world.reference {
        response.extensions_mut().insert(AnswerReference(format!("thing {effect}")));
    }
    response
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) replayed: bool,
    pub(crate) body: String,
    pub(crate) kind: Option<String>,
    pub(crate) location: Option<String>,
    pub(crate) cookie: bool,
    pub(crate) retry_after: Option<String>,
}

impl Reply {
    #[track_caller]
    pub(crate) fn is_problem(&self, status: u16, code: &str) {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.kind.as_deref(), Some("application/problem+json"));
        let problem: serde_json::Value = serde_json::from_str(&self.body).expect("JSON");
        assert_eq!((problem["code"].as_str(), problem["status"].as_u64()), (Some(code), Some(status.into())));
        assert_eq!(problem["retryable"].as_bool(), Some(self.retry_after.is_some()));
        assert!(!self.replayed);
    }
}

async fn read(response: Response) -> Reply {
    let (head, body) = response.into_parts();
    let header = |name: &str| head.headers.get(name).map(|value| value.to_str().expect("ASCII").to_owned());
    let (location, cookie, retry_after) = (header("location"), header("set-cookie"), header("retry-after"));
    let replayed = header("idempotency-replayed").is_some_and(|value| value == "true");
    let kind = header("content-type");
    let status = head.status.as_u16();
    let body = to_bytes(body, 1 << 20).await.expect("a body");
    let body = String::from_utf8(body.to_vec()).expect("UTF-8");
    Reply { status, replayed, body, kind, location, cookie: cookie.is_some(), retry_after }
}

pub(crate) fn request(user: &str, key: &str, body: &str) -> Request {
    let request = Request::post("/things?a=1").header("user", user).header("idempotency-key", key);
    request.body(Body::from(body.to_owned())).expect("a good request")
}

pub(crate) async fn call(router: &Router, request: Request) -> Reply {
    read(router.clone().call(request).await.expect("axum answers")).await
}

/// Sends a request beside the test and waits until its handler has begun.
pub(crate) async fn begin(world: &World, router: &Router, request: Request) -> JoinHandle<Reply> {
    let router = router.clone();
    let task = tokio::spawn(async move { call(&router, request).await });
    world.entered.acquire().await.expect("open").forget();
    task
}

/// Pauses by yielding, so that waiting costs turns and no time.
pub(crate) fn yielding(_: Duration) -> Future<()> {
    Box::pin(tokio::task::yield_now())
}
