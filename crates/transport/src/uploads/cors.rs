//! Pages of other origins (Fetch §3.3): uploads mostly come from one.

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Response, header};
use driftline_engine::Store;

use crate::app::App;
use crate::ws::check_origin;

const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");
const ALLOWED: HeaderValue = HeaderValue::from_static(
    "authorization, content-type, content-digest, idempotency-key, if-none-match, if-range, range, tus-resumable, \
     upload-checksum, upload-concat, upload-defer-length, upload-length, upload-metadata, upload-offset, \
     x-chunk-sha256, x-correlation-id, x-http-method-override, x-request-id, x-requested-with, x-upload-token",
);
const EXPOSED: HeaderValue = HeaderValue::from_static(
    "accept-ranges, content-disposition, content-length, content-range, etag, idempotency-replayed, location, ratelimit, \
     ratelimit-policy, retry-after, tus-checksum-algorithm, tus-extension, tus-max-size, tus-resumable, tus-version, \
     upload-concat, upload-defer-length, upload-expires, upload-length, upload-metadata, upload-offset, \
     x-correlation-id",
);
/// Seconds that a browser remembers what is allowed.
const MAX_AGE: HeaderValue = HeaderValue::from_static("7200");

/// Tells whether pages of other origins may come to a path.
pub(super) fn concerns(path: &str) -> bool {
    ["/files", "/api/v1/uploads", "/api/v1/files"]
        .iter()
        .any(|prefix| path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
}

/// Tells a browser what pages of the request's origin may do, on every answer, a refusal too. Tokens are never sent by the
/// browser itself, so no credentials are allowed.
pub(super) fn decorate<S: Store>(app: &App<S>, asked: &HeaderMap, response: &mut Response<Body>) {
    let headers = response.headers_mut();
    headers.append(header::VARY, HeaderValue::from_static("origin"));
    let Some(origin) = asked.get(header::ORIGIN) else { return };
    if check_origin(app, asked).is_err() {
        return;
    }
    let told: [(HeaderName, HeaderValue); 5] = [
        (header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone()),
        (header::ACCESS_CONTROL_ALLOW_METHODS, METHODS),
        (header::ACCESS_CONTROL_ALLOW_HEADERS, ALLOWED),
        (header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED),
        (header::ACCESS_CONTROL_MAX_AGE, MAX_AGE),
    ];
    headers.extend(told);
}
