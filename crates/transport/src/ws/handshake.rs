//! The handshake, checked before the upgrade is answered (RFC 6455 §4.2).

use std::sync::Arc;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Version, header};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use driftline_engine::{Connected, Store, hash_digest};
use driftline_model::DeviceId;
use driftline_protocol::{ErrorCode, EventPlace, Fault, Form};
use hyper::body::Body as _;
use sha1::{Digest as _, Sha1};

use super::connection::{self, Entrance, Visit};
use super::door::{Door, Guest, Said};
use super::newcomer::Origin;
use crate::app::App;
use crate::auth::AuthError;
use crate::listener::Active;
use crate::rate::{self, Peer};
use crate::reply::{Refusal, problem};
use crate::request::{Caller, Pairs, caller, device, token, unauthorized};
use crate::routes::{Names, RouteId};

/// Answers an upgrade request; the connection goes on in a task of its own.
pub(crate) async fn upgrade<S: Store>(
    app: Arc<App<S>>,
    route: RouteId,
    names: &Names,
    mut request: Request,
    correlation: &str,
) -> Response<Body> {
    let checked = match check(&app, &request) {
        Ok(checked) => checked,
        Err(refusal) => return refused(&refusal, correlation),
    };
    let name = names.first().map_or("", |(_, value)| value);
    let peer = request.extensions().get().copied();
    let visit = match route {
        RouteId::IngestSocket => known(&app, name, peer).await,
        _ => Ok(visit(&app, route, name, &request, checked.bearer.as_deref())),
    };
    let visit = match visit {
        Ok(visit) => visit,
        Err(refusal) => return problem(&refusal, correlation),
    };
    let place = match admit_user(&app, &request, &visit) {
        Ok(place) => place,
        Err(fault) => return problem(&Refusal::from(fault), correlation),
    };
    let upgraded = hyper::upgrade::on(&mut request);
    let Some(alive) = app.alive().filter(|_| !app.is_draining()) else {
        let fault = Fault::new(ErrorCode::ServerDraining, "the server shuts down");
        return problem(&Refusal::from(fault), correlation);
    };
    let (active, form) = (checked.active, checked.form);
    tokio::spawn(async move {
        connection::run(app, upgraded, form.unwrap_or_default(), visit).await;
        drop((active, place));
        drop(alive);
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, checked.accept);
    if let Some(form) = form {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(form.subprotocol()));
    }
    response
}

/// Who enters, or why not; a browser cannot read a refused upgrade, so that this is told on the open socket.
fn visit<S: Store>(
    app: &App<S>,
    route: RouteId,
    name: &str,
    request: &Request,
    bearer: Option<&str>,
) -> Visit {
    match route {
        RouteId::EchoSocket => Visit::Echo(echo_entrance(app, request)),
        RouteId::IngestAuthSocket => Visit::Newcomer(Origin {
            peer: request.extensions().get().copied(),
            device: Pairs::of(request.uri()).get("device_id").map(str::to_owned),
        }),
        _ => Visit::User(entrance(app, route, name, request, bearer)),
    }
}

/// Looks up the device that a hash leads to. A hash that leads nowhere is refused before the upgrade, and counted on its
/// address.
async fn known<S: Store>(app: &App<S>, hash: &str, peer: Option<Peer>) -> Result<Visit, Box<Refusal>> {
    let numbering = app.engine.numbering();
    match app.engine.identify_by_hash(hash).await {
        Ok(identity) => {
            let guest = Guest {
                identity,
                door: Door::Ingest,
                expires_s: None,
                digest: Some(hash_digest(hash)),
                numbering,
                place: None,
                said: Said::default(),
            };
            Ok(Visit::Known(Box::new(guest)))
        }
        Err(fault) if fault.code == ErrorCode::Unauthorized => {
            rate::failed(app, peer).map_err(Refusal::from)?;
            Err(Box::new(Refusal { status: Some(403), ..Refusal::from(fault) }))
        }
        Err(fault) => Err(Box::new(fault.into())),
    }
}

/// Counts the request and the connection on the user who enters, and failures on their address. What is one too many is
/// refused before the upgrade.
fn admit_user<S: Store>(app: &App<S>, request: &Request, visit: &Visit) -> Result<Option<Connected>, Fault> {
    let metered;
    let user = match visit {
        Visit::User(Ok(Entrance { caller, .. })) => {
            metered = caller.metered(request.extensions().get().copied());
            (&caller.claims.tenant, &metered)
        }
        Visit::Known(guest) => (&guest.identity.tenant_id, &guest.identity.user),
        // Nobody knows yet who that is.
        Visit::Newcomer(_) | Visit::Echo(Ok(())) => return Ok(None),
        Visit::User(Err(fault)) | Visit::Echo(Err(fault)) => {
            if fault.code == ErrorCode::Unauthorized {
                rate::failed(app, request.extensions().get().copied())?;
            }
            return Ok(None);
        }
    };
    rate::admit(app, request.extensions(), user, false)?;
    rate::connect(app, user).map(Some)
}

/// Answers a handshake that is refused; RFC 6455 §4.2.2 wants the version that would do to be named.
fn refused(refusal: &Refusal, correlation: &str) -> Response<Body> {
    let mut response = problem(refusal, correlation);
    if response.status() == StatusCode::BAD_REQUEST {
        response.headers_mut().insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    }
    response
}

struct Checked<S: Store> {
    accept: HeaderValue,
    /// The form whose subprotocol the client offered, which is then echoed.
    form: Option<Form>,
    /// A token that came as a subprotocol.
    bearer: Option<String>,
    /// The place among the admitted connections.
    active: Active<S>,
}

/// What is no handshake is a bad request.
fn malformed(what: &str) -> Box<Refusal> {
    let fault = Fault::new(ErrorCode::ValidationError, format!("not a WebSocket handshake: {what}"));
    Box::new(Refusal { status: Some(400), ..Refusal::from(fault) })
}

fn check<S: Store>(app: &Arc<App<S>>, request: &Request) -> Result<Checked<S>, Box<Refusal>> {
    let headers = request.headers();
    if request.method() != Method::GET || request.version() < Version::HTTP_11 {
        return Err(malformed("GET in HTTP/1.1 is needed"));
    }
    // RFC 9110 §7.8: another protocol begins behind the whole request.
    if !request.body().is_end_stream() {
        return Err(malformed("a body has no place in it"));
    }
    if !has_token(headers, header::CONNECTION, "upgrade") || !has_token(headers, header::UPGRADE, "websocket")
    {
        return Err(malformed("Connection: upgrade and Upgrade: websocket are needed"));
    }
    if only(headers, header::SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(malformed("one Sec-WebSocket-Version is needed, which must be 13"));
    }
    let key = only(headers, header::SEC_WEBSOCKET_KEY);
    let key = key.ok_or_else(|| malformed("exactly one Sec-WebSocket-Key is needed"))?;
    if STANDARD.decode(key.as_bytes()).map_or(0, |key| key.len()) != 16 {
        return Err(malformed("Sec-WebSocket-Key must be 16 bytes in base64"));
    }
    check_origin(app, headers).map_err(Refusal::from)?;
    let (form, bearer) = subprotocols(headers)?;
    let accept = HeaderValue::from_str(&accept(key.as_bytes())).map_err(|_| malformed("the key"))?;
    let full = || Fault::new(ErrorCode::ServerDraining, "this node holds as many connections as it may");
    let active = Active::admit(app).ok_or_else(full).map_err(Refusal::from)?;
    Ok(Checked { accept, form, bearer, active })
}

/// Finds the value of a header that stands once.
fn only(headers: &HeaderMap, name: header::HeaderName) -> Option<&HeaderValue> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none())
}

/// RFC 6455 §4.2.2: the base64 of the SHA-1 of the key and a fixed text.
fn accept(key: &[u8]) -> String {
    let mut hash = Sha1::new();
    hash.update(key);
    hash.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    STANDARD.encode(hash.finalize())
}

fn has_token(headers: &HeaderMap, name: header::HeaderName, wanted: &str) -> bool {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|token| token.trim().eq_ignore_ascii_case(wanted))
}

/// Pages may connect from this host and from the configured origins; other clients send no Origin.
pub(crate) fn check_origin<S: Store>(app: &App<S>, headers: &HeaderMap) -> Result<(), Fault> {
    if !headers.contains_key(header::ORIGIN) {
        return Ok(());
    }
    // Two are as good as a foreign one: nobody knows which page it is.
    let origin = only(headers, header::ORIGIN).and_then(|origin| origin.to_str().ok()).unwrap_or_default();
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let of_origin =
        origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://")).unwrap_or_default();
    let same_host = !host.is_empty() && of_origin.eq_ignore_ascii_case(host);
    if same_host || app.settings.origins.iter().any(|allowed| allowed == origin) {
        return Ok(());
    }
    Err(Fault::new(ErrorCode::OriginRefused, "pages of this origin may not connect"))
}

/// Finds the first form and a token among the subprotocols that are offered.
fn subprotocols(headers: &HeaderMap) -> Result<(Option<Form>, Option<String>), Box<Refusal>> {
    let values =
        headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).into_iter().filter_map(|value| value.to_str().ok());
    let offered: Vec<&str> = values.flat_map(|value| value.split(',')).map(str::trim).collect();
    let bearer = offered.iter().find_map(|offer| offer.strip_prefix("bearer.")).map(str::to_owned);
    let form = offered.iter().find_map(|offer| Form::of_subprotocol(offer));
    if !offered.is_empty() && form.is_none() {
        let known = Form::ALL.map(Form::subprotocol).join(", ");
        return Err(malformed(&format!("none of the offered subprotocols is one of {known}")));
    }
    Ok((form, bearer))
}

/// Finds a token's bearer before a door; `name` is what the path names.
fn entrance<S: Store>(
    app: &App<S>,
    route: RouteId,
    name: &str,
    request: &Request,
    bearer: Option<&str>,
) -> Result<Entrance, Fault> {
    let pairs = Pairs::of(request.uri());
    let token = token(request.headers(), &pairs).or(bearer);
    let caller = match route {
        RouteId::TopicsSocket => caller(app, token, &pairs, true)?,
        RouteId::UpdatesSocket if token.is_none() && pairs.get("ticket").is_some() => {
            caller(app, token, &pairs, false)?
        }
        _ => {
            let token = token.ok_or(AuthError::Missing).map_err(unauthorized)?;
            Caller::of(app.auth.authenticate(token, app.now_ms()).map_err(unauthorized)?)
        }
    };
    let claims = &caller.claims;
    let door = match route {
        RouteId::SystemSocket => Door::System,
        RouteId::DeviceSocket => {
            let unknown = |_| Fault::new(ErrorCode::NotFound, "there is no such device here");
            Door::Device(DeviceId::new(name).map_err(unknown)?, pairs.get("owner").map(Box::from))
        }
        RouteId::UserSocket => Door::User(name.to_owned()),
        RouteId::MetricsSocket => Door::Metrics,
        RouteId::AlertsSocket => Door::Alerts,
        RouteId::TopicsSocket => Door::Topics,
        RouteId::UpdatesSocket => Door::Updates,
        _ => Door::Sync,
    };
    let device = match door {
        Door::Sync | Door::System => {
            let missing = || Fault::new(ErrorCode::MissingDeviceId, "the route needs a device_id");
            Some(device(claims, pairs.get("device_id"), None)?.ok_or_else(missing)?)
        }
        Door::Topics | Door::Updates => device(claims, pairs.get("device_id"), None)?,
        _ => claims.device.clone(),
    };
    let said = Said { peer: request.extensions().get().copied(), ..said(&pairs)? };
    Ok(Entrance { caller: Box::new(caller), device, door, said })
}

/// The most bytes of the name that a client gives itself.
const CLIENT_BYTES: usize = 128;

/// Reads what a client says of itself in the URL.
fn said(pairs: &Pairs) -> Result<Said, Fault> {
    let last_event = pairs.parsed("last_event_id", |text| {
        EventPlace::parse(text).ok_or("must be an event's id or its number")
    })?;
    let client_id = pairs.parsed("client_id", |text| {
        let sane = (1..=CLIENT_BYTES).contains(&text.len()) && !text.contains(char::is_control);
        if sane { Ok(text.to_owned()) } else { Err("must be a text of 1 to 128 bytes") }
    })?;
    Ok(Said { client_id, last_event, resume_token: pairs.get("resume_token").map(str::to_owned), peer: None })
}

/// The echo needs no token, but a bad one in the URL is refused as anywhere.
fn echo_entrance<S: Store>(app: &App<S>, request: &Request) -> Result<(), Fault> {
    match Pairs::of(request.uri()).get("token") {
        None => Ok(()),
        Some(token) => app.auth.authenticate(token, app.now_ms()).map(drop).map_err(unauthorized),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_accept_key_is_that_of_the_standard() {
        assert_eq!(accept(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn a_token_may_come_as_a_subprotocol() {
        let offer = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(text));
            subprotocols(&headers).map_err(|refusal| (refusal.fault.code, refusal.status))
        };
        let json = Some(Form::default());
        assert_eq!(offer("driftline.v1.json, bearer.abc"), Ok((json, Some("abc".into()))));
        assert_eq!(offer("bearer.abc"), Err((ErrorCode::ValidationError, Some(400))));
        assert_eq!(offer("graphql-ws"), Err((ErrorCode::ValidationError, Some(400))));
        assert!(matches!(subprotocols(&HeaderMap::new()), Ok((None, None))));
    }
}
