//! The service around a service.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_channel::oneshot;
use http::header::{self, HeaderName, HeaderValue};
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::Body as HttpBody;
use tower_service::Service;

use super::body::{Read, ReplyBody, Unread, read_answer, read_request};
use super::layer::{AnswerReference, Future, Keyless, Shared, Unscoped};
use super::problem::Problem;
use crate::{
    ANSWER_BYTES_MAX, Answer, Body, Claim, Claimed, CompleteError, EffectId, Fingerprint, Header, Held, Key,
    Records, RecordsError, RequestParts, Scope, is_stored,
};

const KEY: HeaderName = HeaderName::from_static("idempotency-key");
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// How long a twin waits between two questions, in milliseconds: at first, and at most.
const PAUSE_MS: (u64, u64) = (10, 100);

/// A service whose requests are safe to send again; [`IdempotencyLayer`](super::IdempotencyLayer) makes it.
///
/// Dropping a response future before it ended is safe, but see there for what becomes of the request.
pub struct Idempotency<S, R> {
    inner: S,
    shared: Shared<R>,
}

/// Which attempt at a request this is: found by a handler in the extensions of a request with a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempt {
    /// The fencing number: a later attempt has a higher one.
    pub number: u64,
    /// The name of the effect outside, the same for every attempt.
    pub effect_id: EffectId,
}

impl<S, R> Idempotency<S, R> {
    pub(crate) fn new(inner: S, shared: Shared<R>) -> Self {
        Self { inner, shared }
    }
}

impl<S: Clone, R> Clone for Idempotency<S, R> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), shared: self.shared.clone() }
    }
}

impl<S, R, B, A> Service<Request<B>> for Idempotency<S, R>
where
    S: Service<Request<B>, Response = Response<A>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send + 'static,
    R: Records,
    B: HttpBody + From<Bytes> + Send + 'static,
    B::Data: Send,
    B::Error: Send,
    A: HttpBody<Data = Bytes> + Send + 'static,
    A::Error: Send + 'static,
{
    type Response = Response<ReplyBody<A>>;
    type Error = S::Error;
    type Future = Future<Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        // The clone was not asked whether it is ready; what was asked serves this request.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let shared = self.shared.clone();
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            match shared.admit(&parts) {
                Admission::Passes => {
                    let response = inner.call(Request::from_parts(parts, body)).await?;
                    Ok(response.map(ReplyBody::through))
                }
                Admission::Refused(problem) => Ok(problem.response()),
                Admission::Keyed(scope, key) => {
                    let request = Request::from_parts(parts, body);
                    match shared.claim(request, scope, key).await {
                        Verdict::Answer(response) => Ok(response),
                        Verdict::CarryOut(request, held) => shared.carry_out(inner, request, held).await,
                    }
                }
            }
        })
    }
}

/// What is to be done with a request before anybody reads its body.
enum Admission {
    Passes,
    Refused(Problem),
    Keyed(Scope, Key),
}

/// What is to be done with a request after its claim.
enum Verdict<B, A: HttpBody> {
    CarryOut(Request<B>, Held),
    Answer(Response<ReplyBody<A>>),
}

impl<R: Records> Shared<R> {
    fn admit(&self, parts: &Parts) -> Admission {
        if !matches!(parts.method, Method::POST | Method::PATCH) {
            return Admission::Passes;
        }
        let key = match only_key(&parts.headers) {
            Ok(Some(key)) => key,
            Ok(None) => {
                return match self.settings.keyless {
                    Keyless::Passes => Admission::Passes,
                    Keyless::Refused => Admission::Refused(Problem::KeyMissing),
                };
            }
            Err(problem) => return Admission::Refused(problem),
        };
        match ((self.scope)(parts), self.settings.unscoped) {
            (Some(scope), _) => Admission::Keyed(scope, key),
            (None, Unscoped::Passes) => Admission::Passes,
            (None, Unscoped::Refused) => Admission::Refused(Problem::Unscoped),
        }
    }

    /// Reads the body and asks the records; a request that is to be carried out comes back with its body in memory.
    async fn claim<B, A>(&self, request: Request<B>, scope: Scope, key: Key) -> Verdict<B, A>
    where
        B: HttpBody + From<Bytes>,
        A: HttpBody<Data = Bytes>,
    {
        let (mut parts, body) = request.into_parts();
        let body = match read_request(body, self.settings.request_bytes_max).await {
            Ok(body) => body,
            Err(Unread::TooLarge) => return Verdict::Answer(Problem::BodyTooLarge.response()),
            Err(Unread::Broken) => return Verdict::Answer(Problem::BodyBroken.response()),
        };
        let claim = Claim {
            fingerprint: self.fingerprint(&parts, &body),
            now_ms: (self.clock)(),
            lease_ms: self.settings.lease_ms,
            window_ms: (self.window)(&scope),
            scope,
            key,
        };
        let refused = match self.claim_in_turn(&claim).await {
            Ok(Claimed::Granted { attempt, effect_id }) => {
                parts.extensions.insert(Attempt { number: attempt, effect_id });
                let held = Held { scope: claim.scope, key: claim.key, attempt };
                return Verdict::CarryOut(Request::from_parts(parts, B::from(body)), held);
            }
            Ok(Claimed::Replay { answer, .. }) => {
                return Verdict::Answer(match self.replay(&answer, parts).await {
                    Some(response) => response,
                    None => Problem::AnswerNotKept.response(),
                });
            }
            Ok(Claimed::InProgress { retry_after_ms }) => {
                // The other one usually ends long before its lease does.
                Problem::InProgress { retry_after_ms: retry_after_ms.min(self.settings.wait_ms) }
            }
            Ok(Claimed::Mismatch) => Problem::KeyReused,
            Err(_) => Problem::RecordsUnavailable,
        };
        Verdict::Answer(refused.response())
    }

    fn fingerprint(&self, parts: &Parts, body: &[u8]) -> Fingerprint {
        let route = (self.route)(parts);
        let path: Vec<&str> = route.path.iter().map(String::as_str).collect();
        let query: Vec<(&str, &str)> = parts.uri.query().map(pairs).unwrap_or_default();
        let content_type = parts.headers.get(header::CONTENT_TYPE);
        let content_type = content_type.map(|value| String::from_utf8_lossy(value.as_bytes()));
        Fingerprint::request(&RequestParts {
            version: &route.version,
            route: &format!("{} {}", parts.method, route.template),
            path: &path,
            query: &query,
            content_type: content_type.as_deref(),
            body,
        })
    }

    /// Claims, and waits for a twin that is at it, as long as twins wait.
    async fn claim_in_turn(&self, claim: &Claim) -> Result<Claimed, RecordsError> {
        let (mut waited_ms, mut pause_ms) = (0, PAUSE_MS.0);
        loop {
            let claimed = self.records.claim(Claim { now_ms: (self.clock)(), ..claim.clone() }).await?;
            let left_ms = self.settings.wait_ms.saturating_sub(waited_ms);
            let Some(pause) = self.pause.as_ref().filter(|_| left_ms > 0) else { return Ok(claimed) };
            if !matches!(claimed, Claimed::InProgress { .. }) {
                return Ok(claimed);
            }
            let next_ms = pause_ms.min(left_ms);
            pause(Duration::from_millis(next_ms)).await;
            waited_ms += next_ms;
            pause_ms = (pause_ms * 2).min(PAUSE_MS.1);
        }
    }

    /// Makes a response of a kept answer; `None` when its body was not kept and is not rendered again.
    async fn replay<A>(&self, answer: &Answer, parts: Parts) -> Option<Response<ReplyBody<A>>>
    where
        A: HttpBody<Data = Bytes>,
    {
        let body = match answer.body() {
            Body::Whole(bytes) => Bytes::from_owner(Arc::clone(bytes)),
            Body::Reference(reference) => self.render.as_ref()?(parts, Arc::clone(reference)).await?,
            Body::Lost => return None,
        };
        let mut response = Response::new(ReplyBody::whole(body));
        *response.status_mut() = StatusCode::from_u16(answer.status()).ok()?;
        for (name, value) in answer.headers() {
            let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
            response.headers_mut().append(name, HeaderValue::from_bytes(value).ok()?);
        }
        response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
        Some(response)
    }

    /// Runs the service, in a task of its own where the embedder has them, and keeps its answer.
    async fn carry_out<S, B, A>(
        self,
        inner: S,
        request: Request<B>,
        held: Held,
    ) -> Result<Response<ReplyBody<A>>, S::Error>
    where
        S: Service<Request<B>, Response = Response<A>> + Send + 'static,
        S::Future: Send,
        S::Error: Send + 'static,
        B: Send + 'static,
        A: HttpBody<Data = Bytes> + Send + 'static,
        A::Error: Send + 'static,
    {
        let Some(spawn) = self.spawn.clone() else { return self.run(inner, request, held).await };
        let (answered, answer) = oneshot::channel();
        spawn(Box::pin(async move {
            // Nobody listens when the connection is gone; the answer is kept by then.
            drop(answered.send(self.run(inner, request, held).await));
        }));
        match answer.await {
            Ok(response) => response,
            Err(oneshot::Canceled) => Ok(Problem::HandlerEnded.response()),
        }
    }

    async fn run<S, B, A>(
        self,
        mut inner: S,
        request: Request<B>,
        held: Held,
    ) -> Result<Response<ReplyBody<A>>, S::Error>
    where
        S: Service<Request<B>, Response = Response<A>>,
        A: HttpBody<Data = Bytes>,
    {
        let response = match inner.call(request).await {
            Ok(response) => response,
            Err(error) => {
                self.release(&held).await;
                return Err(error);
            }
        };
        if !is_stored(response.status().as_u16()) {
            self.release(&held).await;
            return Ok(response.map(ReplyBody::through));
        }
        let (head, body) = response.into_parts();
        let (answer, body) = match read_answer(body, ANSWER_BYTES_MAX).await {
            Read::Whole(bytes, body) => (self.answer(&head, Some(&bytes)), body),
            Read::Longer(body) => (self.answer(&head, None), body),
            // The effect happened, but what was to be answered is unknown: neither kept nor free, until the lease ends.
            Read::Broken(body) => return Ok(Response::from_parts(head, body)),
        };
        match self.records.complete(&held, answer, (self.clock)()).await {
            Ok(()) => Ok(Response::from_parts(head, body)),
            // Somebody took over: what they answer is what counts.
            Err(CompleteError::Fenced) => Ok(Problem::InProgress { retry_after_ms: 1 }.response()),
            // The effect happened, and its sender is still there to hear so.
            Err(error) => {
                (self.failed)(&error);
                Ok(Response::from_parts(head, body))
            }
        }
    }

    async fn release(&self, held: &Held) {
        if let Err(error) = self.records.release(held).await {
            (self.failed)(&error.into());
        }
    }

    /// What is kept of an answer: all of it, or a reference, or that there was one.
    fn answer(&self, head: &http::response::Parts, body: Option<&[u8]>) -> Answer {
        let status = head.status.as_u16();
        let whole = body.and_then(|body| Answer::whole(status, self.kept_headers(&head.headers), body).ok());
        whole.or_else(|| self.answer_by_reference(head)).unwrap_or_else(|| Answer::lost(status))
    }

    fn answer_by_reference(&self, head: &http::response::Parts) -> Option<Answer> {
        let AnswerReference(reference) = head.extensions.get()?;
        Answer::reference(head.status.as_u16(), self.kept_headers(&head.headers), reference).ok()
    }

    fn kept_headers(&self, headers: &HeaderMap) -> Vec<Header> {
        let kept = self.settings.kept_headers.iter();
        let values = kept.flat_map(|name| headers.get_all(name).iter().map(move |value| (name, value)));
        values.map(|(name, value)| (name.as_str().into(), value.as_bytes().into())).collect()
    }
}

/// The key of a request, if it has one.
fn only_key(headers: &HeaderMap) -> Result<Option<Key>, Problem> {
    let mut values = headers.get_all(KEY).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Problem::KeyInvalid);
    }
    let key = value.to_str().ok().and_then(|text| Key::new(text).ok());
    key.map(Some).ok_or(Problem::KeyInvalid)
}

/// The names and values of a query, as they were sent.
fn pairs(query: &str) -> Vec<(&str, &str)> {
    let parts = query.split('&').filter(|part| !part.is_empty());
    parts.map(|part| part.split_once('=').unwrap_or((part, ""))).collect()
}
