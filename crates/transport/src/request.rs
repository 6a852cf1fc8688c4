//! What a request says of itself: token, device, correlation, body.

use std::collections::HashMap;
use std::fmt::Display;
use std::time::Duration;

use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use driftline_engine::{Identity, Store};
use driftline_model::DeviceId;
use driftline_protocol::{Document, ErrorCode, Fault, parse_time, to_json};
use http_body_util::BodyExt;

use crate::app::App;
use crate::auth::{AuthError, Claims};

/// The pairs of a query string; of a doubled name the first counts.
#[derive(Debug, Default)]
pub(crate) struct Pairs(HashMap<String, String>);

impl Pairs {
    pub(crate) fn of(parts: &Parts) -> Self {
        let query = axum::extract::Query::<Vec<(String, String)>>::try_from_uri(&parts.uri);
        let mut pairs = HashMap::new();
        for (name, value) in query.map(|query| query.0).unwrap_or_default() {
            pairs.entry(name).or_insert(value);
        }
        Self(pairs)
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    pub(crate) fn number(&self, name: &str) -> Result<Option<u64>, Fault> {
        let Some(text) = self.get(name) else { return Ok(None) };
        let number = text.parse().ok().filter(|number| *number <= 1 << 53);
        number.map(Some).ok_or_else(|| invalid(name, "must be an integer from 0 to 2^53"))
    }

    /// Reads a value that is a text of its own kind.
    pub(crate) fn parsed<T, E: Display>(
        &self,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<Option<T>, Fault> {
        let parsed = self.get(name).map(parse).transpose();
        parsed.map_err(|error| invalid(name, &error.to_string()))
    }

    /// Reads a time: Unix milliseconds or RFC 3339; gives Unix milliseconds.
    pub(crate) fn time(&self, name: &str) -> Result<Option<u64>, Fault> {
        let read = |text: &str| {
            let digits = text.bytes().all(|byte| byte.is_ascii_digit());
            let json = if digits { text.to_owned() } else { to_json(&text) };
            let document = Document::parse(json.as_bytes(), 1).ok();
            let time = document.and_then(|document| parse_time(document.root()));
            time.ok_or("must be a time: RFC 3339 or Unix milliseconds")
        };
        self.parsed(name, read)
    }
}

pub(crate) fn invalid(name: &str, message: &str) -> Fault {
    let mut fault = Fault::new(ErrorCode::ValidationError, format!("{name} {message}"));
    fault.errors.push(driftline_protocol::FieldError {
        code: "invalid".into(),
        pointer: format!("/{name}"),
        message: message.into(),
    });
    fault
}

/// Finds the token: `Authorization: Bearer`, else `?token=`.
pub(crate) fn token<'a>(headers: &'a HeaderMap, pairs: &'a Pairs) -> Option<&'a str> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    bearer.or_else(|| pairs.get("token"))
}

/// The name by which a request is found in the log: the caller's, if it is sane, else a fresh one.
pub(crate) fn correlation<S: Store>(app: &App<S>, headers: &HeaderMap) -> String {
    let given = headers.get("x-correlation-id").and_then(|value| value.to_str().ok());
    let sane = |text: &&str| {
        (1..=64).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
    };
    given.filter(sane).map_or_else(|| app.random_hex(), str::to_owned)
}

pub(crate) fn unauthorized(error: AuthError) -> Fault {
    Fault::new(ErrorCode::Unauthorized, error.to_string())
}

/// Authenticates a request.
pub(crate) fn claims<S: Store>(app: &App<S>, headers: &HeaderMap, pairs: &Pairs) -> Result<Claims, Fault> {
    let token = token(headers, pairs).ok_or(AuthError::Missing).map_err(unauthorized)?;
    app.auth.authenticate(token, app.now_ms()).map_err(unauthorized)
}

/// Finds the device: the token's, else the query's, else the body's; the token's and another one must not differ.
/// An empty name is none.
pub(crate) fn device(
    claims: &Claims,
    query: Option<&str>,
    body: Option<&str>,
) -> Result<Option<DeviceId>, Fault> {
    let named = [query, body].into_iter().flatten().find(|name| !name.is_empty());
    match (&claims.device, named) {
        (Some(bound), Some(named)) if bound.as_str() != named => {
            Err(Fault::new(ErrorCode::Forbidden, "the token is bound to another device"))
        }
        (Some(bound), _) => Ok(Some(bound.clone())),
        (None, Some(named)) => {
            DeviceId::new(named).map(Some).map_err(|error| invalid("device_id", &error.to_string()))
        }
        (None, None) => Ok(None),
    }
}

/// Makes the identity of an authenticated request.
pub(crate) async fn identity<S: Store>(
    app: &App<S>,
    claims: Claims,
    device: Option<DeviceId>,
) -> Result<Identity, Fault> {
    app.engine.identify(claims.tenant, claims.user, device, claims.roles, &claims.groups).await
}

/// Reads a body within the limits of size and time.
pub(crate) async fn read_body<S: Store>(app: &App<S>, mut body: Body) -> Result<Vec<u8>, Fault> {
    let limits = app.engine.limits();
    let mut read = Vec::new();
    let wait = Duration::from_millis(limits.body_frame_ms);
    loop {
        let frame = tokio::time::timeout(wait, body.frame()).await;
        let frame =
            frame.map_err(|_| Fault::new(ErrorCode::HeartbeatTimeout, "the body did not come in time"))?;
        let Some(frame) = frame else { return Ok(read) };
        let frame = frame.map_err(|_| Fault::new(ErrorCode::JsonDecodeError, "the body broke off"))?;
        let Some(data) = frame.data_ref() else { continue };
        if read.len() + data.len() > limits.message_bytes {
            let message = format!("a message may hold {} bytes", limits.message_bytes);
            return Err(Fault::new(ErrorCode::MessageTooLarge, message));
        }
        read.extend_from_slice(data);
    }
}

/// Refuses bodies that are not JSON.
pub(crate) fn require_json(headers: &HeaderMap) -> Result<(), Fault> {
    let content_type =
        headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("application/json");
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    // `curl -d` says it sends a form; the body decides whether it is JSON.
    let accepted = ["application/json", "application/x-www-form-urlencoded", "text/plain"];
    if accepted.iter().any(|accepted| essence.eq_ignore_ascii_case(accepted)) {
        return Ok(());
    }
    Err(Fault::new(ErrorCode::UnsupportedMediaType, "send application/json"))
}
