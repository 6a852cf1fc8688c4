//! The layer's own answers: `application/problem+json` (RFC 9457).

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body::Body;

use super::body::ReplyBody;

/// Why the layer answers in place of the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Problem {
    KeyReused,
    InProgress { retry_after_ms: u64 },
    KeyInvalid,
    KeyMissing,
    Unscoped,
    BodyTooLarge,
    BodyBroken,
    AnswerNotKept,
    RecordsUnavailable,
    HandlerEnded,
}

impl Problem {
    /// The status, the code and what is wrong, for a person.
    const fn words(self) -> (StatusCode, &'static str, &'static str) {
        use StatusCode as Status;
        match self {
            Self::KeyReused => (
                Status::UNPROCESSABLE_ENTITY,
                "IDEMPOTENCY_KEY_REUSED",
                "this idempotency key was used for another request; a new request needs a new key",
            ),
            Self::InProgress { .. } => (
                Status::CONFLICT,
                "IDEMPOTENCY_IN_PROGRESS",
                "the same request is being carried out; send it again later",
            ),
            Self::KeyInvalid => (
                Status::BAD_REQUEST,
                "IDEMPOTENCY_KEY_INVALID",
                "the Idempotency-Key header is sent once, with 1 to 255 visible ASCII characters",
            ),
            Self::KeyMissing => (
                Status::BAD_REQUEST,
                "IDEMPOTENCY_KEY_MISSING",
                "this request needs an Idempotency-Key header",
            ),
            Self::Unscoped => {
                (Status::FORBIDDEN, "FORBIDDEN", "an idempotency key is only taken from a known sender")
            }
            Self::BodyTooLarge => {
                (Status::PAYLOAD_TOO_LARGE, "MESSAGE_TOO_LARGE", "the body has more bytes than are taken")
            }
            Self::BodyBroken => (Status::BAD_REQUEST, "BODY_BROKEN", "the body could not be read to its end"),
            Self::AnswerNotKept => (
                Status::CONFLICT,
                "IDEMPOTENCY_ANSWER_NOT_KEPT",
                "this request was carried out before, and its answer was too large to be kept",
            ),
            Self::RecordsUnavailable => (
                Status::SERVICE_UNAVAILABLE,
                "STORE_UNAVAILABLE",
                "the request was not carried out; send it again later",
            ),
            Self::HandlerEnded => (
                Status::INTERNAL_SERVER_ERROR,
                "HANDLER_ERROR",
                "the request ended without an answer; send it again later",
            ),
        }
    }

    /// When to send again, in whole seconds.
    fn retry_after_s(self) -> Option<u64> {
        match self {
            Self::InProgress { retry_after_ms } => Some(retry_after_ms.div_ceil(1_000).max(1)),
            Self::RecordsUnavailable | Self::HandlerEnded => Some(1),
            _ => None,
        }
    }

    /// Makes the answer.
    pub(crate) fn response<B: Body<Data = Bytes>>(self) -> Response<ReplyBody<B>> {
        let (status, code, detail) = self.words();
        let title = status.canonical_reason().unwrap_or_default();
        let retry = self.retry_after_s();
        // The words are ours and hold nothing that JSON would escape.
        let text = format!(
            r#"{{"type":"about:blank","title":"{title}","status":{},"detail":"{detail}","code":"{code}","retryable":{}}}"#,
            status.as_u16(),
            retry.is_some(),
        );
        let mut response = Response::new(ReplyBody::whole(Bytes::from(text)));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = retry {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
