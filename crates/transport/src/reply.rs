//! Answers over HTTP.

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use driftline_engine::{PullFault, SyncFault};
use driftline_protocol::{ErrorCode, Fault, Problem, ResyncReason, ResyncRequired, to_json};

use crate::observe::count_error;

/// An answer that is not the wanted one.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) fault: Fault,
    pub(crate) resync: Option<ResyncRequired>,
    /// The status, where it is not the code's.
    pub(crate) status: Option<u16>,
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        Self { fault, resync: None, status: None }
    }
}

impl From<PullFault> for Refusal {
    fn from(fault: PullFault) -> Self {
        let (code, resync) = match &fault {
            PullFault::CursorInvalid(epoch) => {
                (ErrorCode::CursorInvalid, Some((ResyncReason::CursorExpired, *epoch)))
            }
            PullFault::CursorExpired(epoch) => {
                (ErrorCode::CursorExpired, Some((ResyncReason::CursorExpired, *epoch)))
            }
            PullFault::EpochChanged(epoch) | PullFault::Ahead(epoch) => {
                (ErrorCode::CursorInvalid, Some((ResyncReason::EpochChanged, *epoch)))
            }
            _ => (ErrorCode::StoreUnavailable, None),
        };
        let resync = resync.map(|(reason, epoch)| ResyncRequired::new(reason, epoch));
        Self { fault: Fault::new(code, fault.to_string()), resync, status: None }
    }
}

impl From<SyncFault> for Refusal {
    fn from(fault: SyncFault) -> Self {
        match fault {
            SyncFault::Refused(fault) => fault.into(),
            SyncFault::Pull(fault) => fault.into(),
            _ => Fault::new(ErrorCode::HandlerError, "the request failed").into(),
        }
    }
}

/// Makes a JSON answer.
pub(crate) fn json(status: StatusCode, body: String) -> Response<Body> {
    typed(status, "application/json", body)
}

/// Makes an answer of a content type.
pub(crate) fn typed(status: StatusCode, content_type: &'static str, body: String) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// Makes the answer of a refusal (RFC 9457), and counts and logs it.
pub(crate) fn problem(refusal: &Refusal, correlation: &str) -> Response<Body> {
    let code = refusal.fault.code;
    let status = refusal.status.unwrap_or_else(|| code.status());
    count_error(code);
    if status >= 500 {
        tracing::warn!(%code, correlation, detail = %refusal.fault.message, "request failed");
    } else {
        tracing::debug!(%code, correlation, "request refused");
    }
    let mut problem = Problem { status, ..Problem::new(&refusal.fault, correlation) };
    if let Some(resync) = &refusal.resync {
        problem = problem.with_resync(resync);
    }
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = typed(status, "application/problem+json", to_json(&problem));
    if let Ok(correlation) = correlation.parse() {
        response.headers_mut().insert("x-correlation-id", correlation);
    }
    if code.is_retryable() {
        response.headers_mut().insert(header::RETRY_AFTER, retry_after(&refusal.fault));
    }
    if code == ErrorCode::Unauthorized {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

/// Whole seconds until the same may be sent again, rounded up.
fn retry_after(fault: &Fault) -> HeaderValue {
    let wait_ms = fault.throttle.as_ref().map_or(1000, |throttle| throttle.retry_after_ms);
    HeaderValue::from(wait_ms.div_ceil(1000).max(1))
}
