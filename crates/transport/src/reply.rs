//! Answers over HTTP.

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use driftline_engine::{PullFault, SyncFault};
use driftline_protocol::{Encoding, ErrorCode, Fault, Problem, ResyncRequired, msgpack_of_json, to_json};

use crate::coding::Coding;
use crate::negotiate::Wishes;
use crate::observe::count_error;

/// An answer that is not the wanted one.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) fault: Fault,
    pub(crate) resync: Option<ResyncRequired>,
    /// The status, where it is not the code's.
    pub(crate) status: Option<u16>,
    /// Headers that the refusal needs beside those of its code.
    pub(crate) headers: HeaderMap,
}

impl Refusal {
    /// Adds a header.
    pub(crate) fn with_header(mut self, name: header::HeaderName, value: &'static str) -> Self {
        self.headers.insert(name, HeaderValue::from_static(value));
        self
    }
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        Self { fault, resync: None, status: None, headers: HeaderMap::new() }
    }
}

impl From<Box<Refusal>> for Refusal {
    fn from(refusal: Box<Refusal>) -> Self {
        *refusal
    }
}

impl From<PullFault> for Refusal {
    fn from(fault: PullFault) -> Self {
        let resync = fault.resync().map(|(reason, epoch)| ResyncRequired::new(reason, epoch));
        Self { resync, ..Self::from(fault.fault()) }
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

/// An answer before its form is chosen.
#[derive(Debug)]
pub(crate) struct Answer {
    status: StatusCode,
    content: Content,
    pub(crate) headers: HeaderMap,
}

#[derive(Debug)]
enum Content {
    /// A document, written as JSON.
    Document(String),
    /// A problem document, written as JSON.
    Problem(String),
    /// Text of a type.
    Text(&'static str, String),
    Nothing,
}

/// Makes an answer with a document that is written as JSON.
pub(crate) fn json(status: StatusCode, body: String) -> Answer {
    Answer { status, content: Content::Document(body), headers: HeaderMap::new() }
}

/// Makes an answer with text of a content type.
pub(crate) fn text(status: StatusCode, content_type: &'static str, body: String) -> Answer {
    Answer { status, content: Content::Text(content_type, body), headers: HeaderMap::new() }
}

/// Makes an answer without a body.
pub(crate) fn nothing() -> Answer {
    Answer { status: StatusCode::NO_CONTENT, content: Content::Nothing, headers: HeaderMap::new() }
}

/// Longer bodies are written by a thread that may take its time.
const AT_ONCE_BYTES: usize = 64 << 10;

impl Answer {
    /// Writes the answer in the form that the request wishes.
    pub(crate) async fn respond(self, wishes: Wishes) -> Response<Body> {
        let Self { status, content, headers } = self;
        let (content_type, encoding, body) = match content {
            Content::Document(body) => (document_type(wishes.encoding), wishes.encoding, body),
            Content::Problem(body) => (problem_type(wishes.encoding), wishes.encoding, body),
            Content::Text(content_type, body) => (content_type, Encoding::Json, body),
            Content::Nothing => return respond(status, headers, Body::empty()),
        };
        let (bytes, coding) = if body.len() <= AT_ONCE_BYTES {
            write(body, encoding, wishes)
        } else {
            match tokio::task::spawn_blocking(move || write(body, encoding, wishes)).await {
                Ok(written) => written,
                // The runtime ends before the answer does.
                Err(_) => return respond(StatusCode::SERVICE_UNAVAILABLE, HeaderMap::new(), Body::empty()),
            }
        };
        let mut response = respond(status, headers, Body::from(bytes));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        headers.insert(header::VARY, HeaderValue::from_static("Accept, Accept-Encoding"));
        if let Some(coding) = coding {
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(coding.name()));
        }
        response
    }
}

const fn document_type(encoding: Encoding) -> &'static str {
    match encoding {
        Encoding::Json => "application/json",
        Encoding::MessagePack => "application/msgpack",
    }
}

const fn problem_type(encoding: Encoding) -> &'static str {
    match encoding {
        Encoding::Json => "application/problem+json",
        Encoding::MessagePack => "application/problem+msgpack",
    }
}

fn respond(status: StatusCode, headers: HeaderMap, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// Writes a body in an encoding, and compresses it where that is wished and makes it shorter.
fn write(body: String, encoding: Encoding, wishes: Wishes) -> (Vec<u8>, Option<Coding>) {
    let bytes = match encoding {
        Encoding::Json => body.into_bytes(),
        Encoding::MessagePack => msgpack_of_json(&body),
    };
    let Some(coding) = wishes.coding(bytes.len()) else { return (bytes, None) };
    match coding.deflate(&bytes) {
        Ok(packed) if packed.len() < bytes.len() || !wishes.takes_plain() => (packed, Some(coding)),
        _ => (bytes, None),
    }
}

/// Makes the answer of a refusal (RFC 9457), and counts and logs it.
pub(crate) fn refused(refusal: Refusal, correlation: &str) -> Answer {
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
    let mut headers = refusal.headers;
    if let Ok(correlation) = correlation.parse() {
        headers.insert("x-correlation-id", correlation);
    }
    if code.is_retryable() && !headers.contains_key(header::RETRY_AFTER) {
        headers.insert(header::RETRY_AFTER, retry_after(&refusal.fault));
    }
    if code == ErrorCode::Unauthorized {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    Answer { status, content: Content::Problem(to_json(&problem)), headers }
}

/// Makes the answer of a refused upgrade, which is always plain JSON: a WebSocket client asks for no form.
pub(crate) fn problem(refusal: &Refusal, correlation: &str) -> Response<Body> {
    let Refusal { fault, resync, status, headers } = refusal;
    let refusal =
        Refusal { fault: fault.clone(), resync: resync.clone(), status: *status, headers: headers.clone() };
    let Answer { status, content, headers } = refused(refusal, correlation);
    let body = if let Content::Problem(body) = content { Body::from(body) } else { Body::empty() };
    let mut response = respond(status, headers, body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    response
}

/// Writes a refusal as it travels, for a connection on which no request was read.
pub(crate) fn bare(fault: &Fault, correlation: &str) -> Vec<u8> {
    let status = StatusCode::from_u16(fault.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let body = to_json(&Problem::new(fault, correlation));
    let again = if fault.code.is_retryable() { "retry-after: 1\r\n" } else { "" };
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/problem+json\r\ncontent-length: {}\r\n{again}\
         x-correlation-id: {correlation}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// Whole seconds until the same may be sent again, rounded up.
fn retry_after(fault: &Fault) -> HeaderValue {
    let wait_ms = fault.throttle.as_ref().map_or(1000, |throttle| throttle.retry_after_ms);
    HeaderValue::from(wait_ms.div_ceil(1000).max(1))
}
