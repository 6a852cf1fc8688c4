//! The `Idempotency-Key` of a request, and what tells the request from another one.

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use driftline_idempotency::{Fingerprint, Key, RequestParts};
use driftline_protocol::{ErrorCode, Fault, FieldError};

use crate::reply::{Answer, Refusal};
use crate::request::Pairs;
use crate::routes::Names;

/// The header that brings a key.
const KEY: &str = "idempotency-key";
/// The header that says that an answer is that of an earlier request.
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// Reads the key of a request, if it has one.
///
/// # Errors
/// `VALIDATION_ERROR`, with the status 400, when it is none or stands twice.
pub(crate) fn key(headers: &HeaderMap) -> Result<Option<Key>, Box<Refusal>> {
    let mut values = headers.get_all(KEY).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let key = value.to_str().ok().filter(|_| values.next().is_none());
    let key = key.map(|text| Key::new(text).map_err(|error| error.to_string()));
    match key.unwrap_or_else(|| Err("one Idempotency-Key of visible ASCII characters is taken".into())) {
        Ok(key) => Ok(Some(key)),
        Err(message) => {
            let error =
                FieldError { code: "invalid".into(), pointer: String::new(), message: message.clone() };
            let fault = Fault { errors: vec![error], ..Fault::new(ErrorCode::ValidationError, message) };
            Err(Box::new(Refusal { status: Some(400), ..Refusal::from(fault) }))
        }
    }
}

/// Makes what tells a request from another one. `route` is its method and the template of its path. The token is no part
/// of it: a fresh one asks for the same.
pub(crate) fn fingerprint(
    route: &str,
    names: &Names,
    pairs: &Pairs,
    headers: &HeaderMap,
    body: &[u8],
) -> Fingerprint {
    let path: Vec<&str> = names.iter().map(|(_, value)| value.as_str()).collect();
    let query: Vec<(&str, &str)> = pairs.iter().filter(|(name, _)| *name != "token").collect();
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    Fingerprint::request(&RequestParts {
        version: "v1",
        route,
        path: &path,
        query: &query,
        content_type,
        body,
    })
}

/// Says of an answer that it is that of an earlier request.
pub(crate) fn mark_replayed(mut answer: Answer) -> Answer {
    answer.headers.insert(REPLAYED, HeaderValue::from_static("true"));
    answer
}
