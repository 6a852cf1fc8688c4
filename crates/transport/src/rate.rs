//! Rates over HTTP: who may come in, and the headers that tell how much is left.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{Extensions, HeaderName, HeaderValue, Response};
use driftline_engine::{Level, Store, UserMeter};
use driftline_model::Rate;
use driftline_protocol::{Fault, Throttle, ThrottleScope};

use crate::app::App;
use crate::auth::{AuthError, Claims};
use crate::request::unauthorized;

/// The type whose rate batches over HTTP share with those of the socket.
pub(crate) const SYNC_DATA: &str = "sync_data";

/// What counts as one sender of failed authentications: an address, of IPv6 the 64 bits that one customer gets.
fn sender(extensions: &Extensions) -> Option<IpAddr> {
    let ConnectInfo(peer) = extensions.get::<ConnectInfo<SocketAddr>>()?;
    Some(match peer.ip().to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
    })
}

/// Authenticates a request. An address that failed too often is refused before its token is looked at.
pub(crate) fn authenticate<S: Store>(
    app: &App<S>,
    extensions: &Extensions,
    token: Option<&str>,
) -> Result<Claims, Fault> {
    let (sender, now_ms) = (sender(extensions), app.now_ms());
    let wait_ms = sender.map_or(0, |sender| app.failed.wait_ms(&sender, now_ms));
    if wait_ms > 0 {
        let limit = format!("{} failed authentications", app.failed.rate());
        let throttle = Throttle { retry_after_ms: wait_ms, limit, scope: ThrottleScope::Address };
        return Err(Fault::throttled(throttle));
    }
    let claims = token.ok_or(AuthError::Missing).and_then(|token| app.auth.authenticate(token, now_ms));
    claims.map_err(|error| {
        if let Some(sender) = sender {
            // Whether there was one left matters for the next attempt; this one was judged.
            let _ = app.failed.take(sender, now_ms);
        }
        unauthorized(error)
    })
}

/// What a request was counted on.
#[derive(Debug)]
pub(crate) struct Metered {
    meter: Arc<UserMeter>,
    /// Whether the rate of batches concerns the route.
    batches: bool,
}

impl Metered {
    /// Counts a request of its user.
    pub(crate) fn admit(meter: &Arc<UserMeter>, batches: bool, now_ms: u64) -> (Self, Result<(), Fault>) {
        let admitted = meter.take(now_ms).map_err(Fault::throttled);
        (Self { meter: Arc::clone(meter), batches }, admitted)
    }

    /// Counts a batch.
    pub(crate) fn admit_batch(&self, now_ms: u64) -> Result<(), Fault> {
        self.meter.take_type(SYNC_DATA, now_ms).map_err(Fault::throttled)
    }

    /// Tells the limits and what is left of them (draft-ietf-httpapi-ratelimit-headers-09).
    pub(crate) fn write(&self, response: &mut Response<Body>, user_rate: Rate, now_ms: u64) {
        let (mut policy, mut left) = (String::new(), String::new());
        tell(&mut policy, &mut left, "user", user_rate, self.meter.level(now_ms));
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

    fn of(peer: &str) -> Option<IpAddr> {
        let mut extensions = Extensions::new();
        extensions.insert(ConnectInfo(peer.parse::<SocketAddr>().unwrap()));
        sender(&extensions)
    }

    #[test]
    fn a_network_of_64_bits_is_one_sender() {
        assert_eq!(of("192.0.2.7:80"), of("192.0.2.7:81"));
        assert_ne!(of("192.0.2.7:80"), of("192.0.2.8:80"));
        assert_eq!(of("[2001:db8:1:2:3:4:5:6]:80"), of("[2001:db8:1:2::]:80"));
        assert_ne!(of("[2001:db8:1:2::1]:80"), of("[2001:db8:1:3::1]:80"));
        assert_eq!(of("[::ffff:192.0.2.7]:80"), of("192.0.2.7:80"));
        assert_eq!(sender(&Extensions::new()), None);
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
