//! The layer around services, bodies and records that fail.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::http::{Request, Response, StatusCode};
use driftline_idempotency::tower::IdempotencyLayer;
use driftline_idempotency::{
    Answer, Claim, Claimed, CompleteError, EffectId, Held, MemoryRecords, Records, RecordsError, Scope,
};
use http_body_util::BodyExt;
use tower_layer::Layer;
use tower_service::Service;

/// What a service does after its effect.
#[derive(Clone, Copy)]
enum Fault {
    None,
    Error,
    BrokenBody,
}

#[derive(Clone)]
struct Failing {
    fault: Fault,
    effects: Arc<AtomicUsize>,
}

impl Service<Request<Body>> for Failing {
    type Response = Response<Body>;
    type Error = &'static str;
    type Future = std::future::Ready<Result<Response<Body>, &'static str>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), &'static str>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Body>) -> Self::Future {
        self.effects.fetch_add(1, Ordering::SeqCst);
        std::future::ready(match self.fault {
            Fault::None => Ok(Response::new(Body::from("done"))),
            Fault::Error => Err("failed"),
            Fault::BrokenBody => {
                let frames = [Ok(Bytes::from("do")), Err("gone")];
                Ok(Response::new(Body::from_stream(futures_util::stream::iter(frames))))
            }
        })
    }
}

/// Records of which one operation fails.
struct Away {
    claims: bool,
    records: MemoryRecords,
}

fn away() -> RecordsError {
    RecordsError::Unavailable("away".into())
}

impl Records for Away {
    async fn claim(&self, claim: Claim) -> Result<Claimed, RecordsError> {
        if self.claims { Err(away()) } else { self.records.claim(claim).await }
    }

    async fn complete(&self, _: &Held, _: Answer, _: u64) -> Result<(), CompleteError> {
        Err(away().into())
    }

    async fn release(&self, _: &Held) -> Result<(), RecordsError> {
        Err(away())
    }

    async fn prune(&self, _: u64, _: usize) -> Result<usize, RecordsError> {
        Err(away())
    }
}

fn service(fault: Fault) -> (Failing, Arc<AtomicUsize>) {
    let effects = Arc::new(AtomicUsize::new(0));
    (Failing { fault, effects: Arc::clone(&effects) }, effects)
}

fn layer<R: Records>(records: R) -> IdempotencyLayer<R> {
    IdempotencyLayer::new(records, || 0, |_| Scope::new("acme", "ada").ok())
}

fn request() -> Request<Body> {
    Request::post("/").header("idempotency-key", "k").body(Body::empty()).expect("a good request")
}

#[tokio::test]
async fn an_error_of_the_service_is_handed_on_and_frees_the_key() {
    let (inner, effects) = service(Fault::Error);
    let records = Arc::new(MemoryRecords::default());
    for mut outer in
        [layer(Arc::clone(&records)), layer(Arc::clone(&records)).spawn(|task| drop(tokio::spawn(task)))]
            .map(|layer| layer.layer(inner.clone()))
    {
        assert_eq!(outer.call(request()).await.err(), Some("failed"));
        assert_eq!(records.entries(), 0);
    }
    assert_eq!(effects.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_body_that_breaks_off_is_neither_kept_nor_free() {
    let (inner, effects) = service(Fault::BrokenBody);
    let mut outer = layer(MemoryRecords::default()).layer(inner);
    let mut body = outer.call(request()).await.expect("an answer").into_body();
    let first = body.frame().await.expect("a frame").expect("the first one is good");
    assert_eq!(first.into_data().ok(), Some(Bytes::from("do")));
    assert!(body.frame().await.expect("a frame").is_err());
    assert_eq!(outer.call(request()).await.expect("an answer").status(), StatusCode::CONFLICT);
    assert_eq!(effects.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn nothing_is_carried_out_when_the_records_are_away() {
    let (inner, effects) = service(Fault::None);
    let mut outer = layer(Away { claims: true, records: MemoryRecords::default() }).layer(inner);
    let refused = outer.call(request()).await.expect("an answer");
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.headers()["retry-after"], "1");
    assert_eq!(effects.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn an_answer_that_cannot_be_kept_is_sent_and_reported() {
    for (fault, answered) in [(Fault::None, true), (Fault::Error, false)] {
        let (inner, effects) = service(fault);
        let failures = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&failures);
        let mut outer = layer(Away { claims: false, records: MemoryRecords::default() })
            .on_failure(move |_| {
                counted.fetch_add(1, Ordering::SeqCst);
            })
            .layer(inner);
        assert_eq!(outer.call(request()).await.is_ok_and(|answer| answer.status().is_success()), answered);
        assert_eq!((failures.load(Ordering::SeqCst), effects.load(Ordering::SeqCst)), (1, 1));
    }
}

/// Somebody else finished the request while it was carried out.
struct Overtaken(MemoryRecords);

impl Records for Overtaken {
    async fn claim(&self, claim: Claim) -> Result<Claimed, RecordsError> {
        let effect_id = EffectId::new(&claim.scope, &claim.key);
        match self.0.claim(claim).await? {
            Claimed::Granted { attempt, .. } => Ok(Claimed::Granted { attempt: attempt + 1, effect_id }),
            other => Ok(other),
        }
    }

    async fn complete(&self, held: &Held, answer: Answer, now_ms: u64) -> Result<(), CompleteError> {
        let other = Held { attempt: held.attempt - 1, ..held.clone() };
        self.0.complete(&other, Answer::whole(200, vec![], b"other").expect("short"), now_ms).await?;
        self.0.complete(held, answer, now_ms).await
    }

    async fn release(&self, held: &Held) -> Result<(), RecordsError> {
        self.0.release(held).await
    }

    async fn prune(&self, now_ms: u64, limit: usize) -> Result<usize, RecordsError> {
        self.0.prune(now_ms, limit).await
    }
}

#[tokio::test]
async fn who_was_overtaken_hears_the_answer_of_the_other_one_by_asking_again() {
    let (inner, effects) = service(Fault::None);
    let mut outer = layer(Overtaken(MemoryRecords::default())).layer(inner);
    let fenced = outer.call(request()).await.expect("an answer");
    assert_eq!(
        (fenced.status(), &fenced.headers()["retry-after"]),
        (StatusCode::CONFLICT, &"1".parse().expect("a value"))
    );
    let again = outer.call(request()).await.expect("an answer");
    assert_eq!(again.headers()["idempotency-replayed"], "true");
    assert_eq!(again.into_body().collect().await.expect("a body").to_bytes(), "other");
    assert_eq!(effects.load(Ordering::SeqCst), 1);
}
