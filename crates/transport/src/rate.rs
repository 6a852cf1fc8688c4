//! Rates over HTTP: who may come in, and the headers that tell how much is left.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, OnceLock};

use axum::body::Body;
use axum::extract::Request;
use axum::http::{Extensions, HeaderName, HeaderValue, Response, StatusCode};
use driftline_engine::{Connected, Level, Store, UserMeter};
use driftline_model::{Rate, TenantId, UserId};
use driftline_protocol::{Fault, Throttle, ThrottleScope};

use crate::app::App;
use crate::negotiate::Wishes;
use crate::reply::refused;
use crate::request::correlation;

/// The type whose rate batches over HTTP share with those of the socket.
const SYNC_DATA: &str = "sync_data";

/// Who a request comes from, as an extension of the request; [`crate::serve`] sets it. Without it failed authentications
/// are not counted, so whoever mounts the router behind a listener of its own sets it too.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub SocketAddr);

/// Whose rates are meant.
pub(crate) type User<'a> = (&'a TenantId, &'a UserId);

/// Where a request's door puts what the request was counted on.
#[derive(Debug, Clone, Default)]
struct Slot(Arc<OnceLock<Metered>>);

#[derive(Debug)]
struct Metered {
    meter: Arc<UserMeter>,
    user_rate: Rate,
    /// Whether the rate of batches concerns the route.
    batches: bool,
}

/// Has a request of a route with a token answered. Whose token fails from an address that failed too often is told so
/// instead; a good token is always let in, whoever else is behind its address. Answers to users tell what is left of
/// their rates.
pub(crate) async fn within_rates<S: Store, F: Future<Output = Response<Body>>>(
    app: Arc<App<S>>,
    mut request: Request,
    answer: impl FnOnce(Request) -> F,
) -> Response<Body> {
    let (correlation, wishes) = (correlation(&app, request.headers()), Wishes::of(request.headers()));
    let slot = Slot::default();
    request.extensions_mut().insert(slot.clone());
    let peer = request.extensions().get().copied();
    let mut response = answer(request).await;
    if response.status() == StatusCode::UNAUTHORIZED
        && let Err(fault) = failed(&app, peer)
    {
        return refused(fault.into(), &correlation).respond(wishes).await;
    }
    if let Some(metered) = slot.0.get() {
        metered.write(&mut response, app.now_ms());
    }
    response
}

/// What counts as one sender of failed authentications: an address, of IPv6 the 64 bits that one customer gets.
fn sender(Peer(peer): Peer) -> IpAddr {
    match peer.ip().to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

/// Counts an authentication that failed.
///
/// # Errors
/// `RATE_LIMITED` when there were too many from its address.
pub(crate) fn failed<S: Store>(app: &App<S>, peer: Option<Peer>) -> Result<(), Fault> {
    let Some(peer) = peer else { return Ok(()) };
    app.failed.take(sender(peer), app.now_ms()).map_err(|retry_after_ms| {
        let limit = format!("failed authentications: {}", app.failed.rate());
        Fault::throttled(Throttle { retry_after_ms, limit, scope: ThrottleScope::Address })
    })
}

/// Counts a request of its user; `batches` says whether the route takes batches.
pub(crate) fn admit<S: Store>(
    app: &App<S>,
    extensions: &Extensions,
    user: User<'_>,
    batches: bool,
) -> Result<(), Fault> {
    let now_ms = app.now_ms();
    let meter = app.engine.meter(user.0, user.1, now_ms);
    let admitted = meter.take(now_ms).map_err(Fault::throttled);
    if let Some(slot) = extensions.get::<Slot>() {
        let user_rate = app.engine.limits().user_rate;
        // Whoever put the slot there sends one request through one door.
        let _ = slot.0.set(Metered { meter, user_rate, batches });
    }
    admitted
}

/// Counts a batch of an admitted request.
pub(crate) fn admit_batch<S: Store>(app: &App<S>, user: User<'_>) -> Result<(), Fault> {
    admit_type(app, user, SYNC_DATA)
}

/// Counts a message of a type that an admitted request brings.
pub(crate) fn admit_type<S: Store>(app: &App<S>, user: User<'_>, kind: &'static str) -> Result<(), Fault> {
    let now_ms = app.now_ms();
    app.engine.meter(user.0, user.1, now_ms).take_type(kind, now_ms).map_err(Fault::throttled)
}

/// Takes a place for a connection of an admitted user.
pub(crate) fn connect<S: Store>(app: &App<S>, user: User<'_>) -> Result<Connected, Fault> {
    let connected = app.engine.meter(user.0, user.1, app.now_ms()).connect();
    connected.map_err(|throttle| {
        app.counts.refused.increment(1);
        Fault::throttled(throttle)
    })
}

impl Metered {
    /// Tells the limits and what is left of them (draft-ietf-httpapi-ratelimit-headers-09).
    fn write(&self, response: &mut Response<Body>, now_ms: u64) {
        let (mut policy, mut left) = (String::new(), String::new());
        tell(&mut policy, &mut left, "user", self.user_rate, self.meter.level(now_ms));
        let batches = self.batches.then(|| self.meter.type_level(SYNC_DATA, now_ms)).flatten();
        if let Some((rate, level)) = batches {
            tell(&mut policy, &mut left, SYNC_DATA, rate, level);
        }
        for (name, value) in [("ratelimit-policy", policy), ("ratelimit", left)] {
            if let Ok(value) = HeaderValue::try_from(value) {
                response.headers_mut().insert(HeaderName::from_static(name), value);
            }
        }
    }
}

/// Adds a list's member: the quota is the burst, and its window the time in which that comes back.
fn tell(policy: &mut String, left: &mut String, name: &str, rate: Rate, level: Level) {
    let separator = if policy.is_empty() { "" } else { ", " };
    let window_s = rate.burst.div_ceil(rate.per_s.max(1)).max(1);
    let reset_s = level.full_in_ms.div_ceil(1000);
    // Writing to a string does not fail.
    let _ = write!(policy, "{separator}\"{name}\";q={};w={window_s}", rate.burst);
    let _ = write!(left, "{separator}\"{name}\";r={};t={reset_s}", level.remaining);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(peer: &str) -> IpAddr {
        sender(Peer(peer.parse().unwrap()))
    }

    #[test]
    fn a_network_of_64_bits_is_one_sender() {
        assert_eq!(of("192.0.2.7:80"), of("192.0.2.7:81"));
        assert_ne!(of("192.0.2.7:80"), of("192.0.2.8:80"));
        assert_eq!(of("[2001:db8:1:2:3:4:5:6]:80"), of("[2001:db8:1:2::]:80"));
        assert_ne!(of("[2001:db8:1:2::1]:80"), of("[2001:db8:1:3::1]:80"));
        assert_eq!(of("[::ffff:192.0.2.7]:80"), of("192.0.2.7:80"));
    }

    #[test]
    fn quotas_are_lists_of_structured_fields() {
        let (mut policy, mut left) = (String::new(), String::new());
        let (user, batches) = (Rate { per_s: 200, burst: 400 }, Rate { per_s: 30, burst: 40 });
        tell(&mut policy, &mut left, "user", user, Level { remaining: 399, full_in_ms: 5 });
        tell(&mut policy, &mut left, SYNC_DATA, batches, Level { remaining: 0, full_in_ms: 1334 });
        assert_eq!(policy, r#""user";q=400;w=2, "sync_data";q=40;w=2"#);
        assert_eq!(left, r#""user";r=399;t=1, "sync_data";r=0;t=2"#);
    }
}
