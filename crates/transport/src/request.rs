//! What a request says of itself: token, device, correlation, body.

use std::collections::HashMap;
use std::fmt::Display;
use std::time::Duration;

use axum::body::Body;
use axum::http::request::Parts;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, Uri, Version, header};
use driftline_engine::{ANONYMOUS_ROLE, Identity, Store};
use driftline_model::{DeviceId, UserId};
use driftline_protocol::{Document, Encoding, ErrorCode, Fault, parse_time, to_json};
use http_body_util::BodyExt as _;
use hyper::body::Body as _;

use crate::app::App;
use crate::auth::{AuthError, Claims};
use crate::budget::Share;
use crate::coding::{Coding, InflateFault};
use crate::negotiate::encoding_of;
use crate::rate::Peer;
use crate::reply::Refusal;

/// The pairs of a query string; of a doubled name the first counts.
#[derive(Debug, Default)]
pub(crate) struct Pairs(HashMap<String, String>);

impl Pairs {
    pub(crate) fn of(uri: &Uri) -> Self {
        let query = axum::extract::Query::<Vec<(String, String)>>::try_from_uri(uri);
        let mut pairs = HashMap::new();
        for (name, value) in query.map(|query| query.0).unwrap_or_default() {
            pairs.entry(name).or_insert(value);
        }
        Self(pairs)
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Goes through the pairs, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
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
    bearer.or_else(|| pairs.get("token")).filter(|token| !token.is_empty())
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

/// The user that whoever enters without a token is.
const NOBODY: &str = "anonymous";

/// Somebody who asks for a socket or a stream.
#[derive(Debug)]
pub(crate) struct Caller {
    pub(crate) claims: Claims,
    by: By,
}

/// By what somebody comes.
#[derive(Debug)]
enum By {
    Token,
    /// A ticket of this name, which nobody may have used before.
    Ticket(Box<str>),
    /// Nothing, which the settings allow.
    Nothing,
}

impl Caller {
    /// Makes a caller of the bearer of a token.
    pub(crate) fn of(claims: Claims) -> Self {
        Self { claims, by: By::Token }
    }

    /// Returns when the caller has to go, in Unix seconds; none: whoever came without a token.
    pub(crate) fn expires_s(&self) -> Option<u64> {
        (!matches!(self.by, By::Nothing)).then_some(self.claims.expires_s)
    }

    /// Returns the user on whom requests and connections are counted: of those without a token each address for itself.
    pub(crate) fn metered(&self, peer: Option<Peer>) -> UserId {
        let sender = peer.filter(|_| matches!(self.by, By::Nothing));
        let named = sender.and_then(|Peer(peer)| UserId::text(&format!("{NOBODY}:{}", peer.ip())).ok());
        named.unwrap_or_else(|| self.claims.user.clone())
    }
}

/// Finds out who asks for a socket or a stream: by a token, else by `?ticket=`, else as nobody where the route is open to
/// nobody and the settings are.
///
/// # Errors
/// `UNAUTHORIZED`.
pub(crate) fn caller<S: Store>(
    app: &App<S>,
    token: Option<&str>,
    pairs: &Pairs,
    open: bool,
) -> Result<Caller, Fault> {
    if let Some(token) = token {
        let claims = app.auth.authenticate(token, app.now_ms()).map_err(unauthorized)?;
        return Ok(Caller { claims, by: By::Token });
    }
    if let Some(ticket) = pairs.get("ticket") {
        let (claims, id) = app.tickets.open(ticket, app.now_ms()).map_err(unauthorized)?;
        return Ok(Caller { claims, by: By::Ticket(id) });
    }
    let anonymous = app.settings.anonymous.as_ref().filter(|_| open);
    let anonymous = anonymous.ok_or_else(|| unauthorized(AuthError::Missing))?;
    let claims = Claims {
        tenant: anonymous.tenant.clone(),
        user: UserId::text(NOBODY).map_err(|_| unauthorized(AuthError::Missing))?,
        roles: vec![ANONYMOUS_ROLE.into()],
        groups: Vec::new(),
        device: None,
        expires_s: u64::MAX,
    };
    Ok(Caller { claims, by: By::Nothing })
}

/// What the use of tickets is taken down under, where no user's name is read.
const TICKETS: &str = "~tickets";

/// Makes the identity of a caller, and uses up the caller's ticket.
///
/// # Errors
/// `UNAUTHORIZED` for a ticket that was used before; what [`identity`] is refused for.
pub(crate) async fn enter<S: Store>(
    app: &App<S>,
    caller: Caller,
    device: Option<DeviceId>,
) -> Result<Identity, Fault> {
    let Caller { claims, by } = caller;
    let device = device.filter(|_| !matches!(by, By::Nothing));
    let mut identity = identity(app, claims, device).await?;
    match by {
        By::Token => {}
        By::Ticket(id) => {
            let log = app.engine.store().log();
            let fresh = log.read_notice(identity.tenant, TICKETS.into(), id, app.now_ms()).await;
            let away = |_| Fault::new(ErrorCode::StoreUnavailable, "the database did not answer: send again");
            if !fresh.map_err(away)? {
                return Err(Fault::new(ErrorCode::Unauthorized, "the ticket was used before"));
            }
        }
        // Records are for users.
        By::Nothing => identity.scopes = Vec::new(),
    }
    Ok(identity)
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

/// A body that came in, in its encoding and as it was before it was compressed.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) bytes: Vec<u8>,
    pub(crate) encoding: Encoding,
    /// What the bytes take of the node's memory for what is coming in.
    _share: Share,
}

/// Reads a body within the limits of size, time and memory.
pub(crate) async fn receive<S: Store>(
    app: &App<S>,
    headers: &HeaderMap,
    body: Body,
) -> Result<Received, Refusal> {
    let encoding = encoding(headers).map_err(|fault| {
        Refusal::from(fault).with_header(header::ACCEPT, "application/json, application/msgpack")
    })?;
    let coding = Coding::of_headers(headers)
        .map_err(|fault| Refusal::from(fault).with_header(header::ACCEPT_ENCODING, Coding::NAMES))?;
    let bytes_max = app.engine.limits().message_bytes;
    let too_large =
        || Fault::new(ErrorCode::MessageTooLarge, format!("a message may hold {bytes_max} bytes"));
    let mut share = app.inbound.share();
    let packed_max = if coding.is_some() { Coding::packed_max(bytes_max) } else { bytes_max };
    let collected = collect(app, body, packed_max, &mut share).await;
    let came = collected.map_err(|uncollected| match uncollected {
        Uncollected::TooLarge => too_large(),
        Uncollected::NoRoom => no_room(),
        Uncollected::Late => Fault::new(ErrorCode::HeartbeatTimeout, "the body did not come in time"),
        Uncollected::Broken => Fault::new(encoding.decode_error(), "the body broke off"),
    })?;
    let Some(coding) = coding else { return Ok(Received { bytes: came, encoding, _share: share }) };
    let mut inflated = app.inbound.share();
    let bytes = coding.inflate(&came, bytes_max, &mut inflated).map_err(|fault| match fault {
        InflateFault::TooLarge => too_large(),
        InflateFault::NoRoom => no_room(),
        InflateFault::Broken => {
            let message = format!("the body is not one whole {} stream", coding.name());
            Fault::new(encoding.decode_error(), message)
        }
    })?;
    Ok(Received { bytes, encoding, _share: inflated })
}

/// The node's memory for what is coming in is taken.
fn no_room() -> Fault {
    Fault::new(ErrorCode::ServerDraining, "this node takes in as much as it may: come back later")
}

/// Why a body did not come whole.
enum Uncollected {
    TooLarge,
    NoRoom,
    Late,
    Broken,
}

/// How many times as long as a single pause a whole body may take: one that dribbles does not come for ever.
const BODY_WAITS: u32 = 10;

/// Takes the bytes of a body as they come.
async fn collect<S: Store>(
    app: &App<S>,
    mut body: Body,
    bytes_max: usize,
    share: &mut Share,
) -> Result<Vec<u8>, Uncollected> {
    let wait = Duration::from_millis(app.engine.limits().body_frame_ms);
    // What says itself that it is too large is not read.
    if body.size_hint().lower() > bytes_max as u64 {
        return Err(Uncollected::TooLarge);
    }
    let whole = tokio::time::sleep(wait * BODY_WAITS);
    tokio::pin!(whole);
    let mut came = Vec::new();
    loop {
        let frame = tokio::select! {
            frame = tokio::time::timeout(wait, body.frame()) => frame.map_err(|_| Uncollected::Late)?,
            () = &mut whole => return Err(Uncollected::Late),
        };
        let Some(frame) = frame else { return Ok(came) };
        let frame = frame.map_err(|_| Uncollected::Broken)?;
        let Some(data) = frame.data_ref() else { continue };
        if came.len() + data.len() > bytes_max {
            return Err(Uncollected::TooLarge);
        }
        if !share.cover(came.len() + data.len()) {
            return Err(Uncollected::NoRoom);
        }
        came.extend_from_slice(data);
    }
}

/// Finds the encoding of a body.
fn encoding(headers: &HeaderMap) -> Result<Encoding, Fault> {
    let Some(content_type) = headers.get(header::CONTENT_TYPE) else { return Ok(Encoding::Json) };
    let content_type = content_type.to_str().unwrap_or_default();
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    // `curl -d` says it sends a form; the body decides whether it is JSON.
    let loose = ["application/x-www-form-urlencoded", "text/plain"];
    if loose.iter().any(|loose| loose.eq_ignore_ascii_case(essence)) {
        return Ok(Encoding::Json);
    }
    let unsupported =
        || Fault::new(ErrorCode::UnsupportedMediaType, "send application/json or application/msgpack");
    encoding_of(essence).ok_or_else(unsupported)
}

/// Refuses a request that does not name one host (RFC 9112 §3.2).
pub(crate) fn require_host(parts: &Parts) -> Result<(), Fault> {
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (None, _) if parts.version < Version::HTTP_11 => return Ok(()),
        (Some(host), None) => host.to_str().ok().and_then(|host| host.parse::<Authority>().ok()),
        _ => None,
    };
    // A host has no user.
    if host.is_some_and(|host| !host.host().is_empty() && !host.as_str().contains('@')) {
        return Ok(());
    }
    Err(Fault::new(ErrorCode::ValidationError, "exactly one Host is needed, with an optional port"))
}
