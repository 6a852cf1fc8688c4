//! Where a server is, and who asks.

use driftline_model::DeviceId;
use driftline_protocol::{Encoding, Form};
use thiserror::Error;

/// A server, and who uses it: a user's token with a device, or a registered device by its hash.
#[derive(Clone)]
pub struct Endpoint {
    authority: String,
    caller: Caller,
    telemetry_route: Route,
    forms: Vec<Form>,
}

#[derive(Clone)]
pub(crate) enum Caller {
    Token { token: String, device_id: DeviceId },
    DeviceHash(String),
}

/// A WebSocket route of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Route {
    /// `/ws/mobile/sync`: records and telemetry, with a token. A server keeps one connection of a device here, the
    /// newest.
    Sync,
    /// `/ws/ingest/{device_hash}`: telemetry of a registered device.
    Ingest,
    /// `/ws/ingest-auth`: telemetry, after a first message with the token or the hash.
    IngestAuth,
}

/// What is offered unless the app wishes otherwise: the fewest bytes first.
const FORMS: [Form; 4] = [
    Form { encoding: Encoding::MessagePack, deflate: true },
    Form { encoding: Encoding::MessagePack, deflate: false },
    Form { encoding: Encoding::Json, deflate: true },
    Form { encoding: Encoding::Json, deflate: false },
];

impl Endpoint {
    /// Reads a server's address: `http://host:port`, `ws://host:port` or `host:port`.
    ///
    /// Telemetry of it goes to `/ws/ingest-auth`, beside a [`Client`](crate::Client) of the same device.
    ///
    /// # Errors
    /// [`EndpointError`] for an address that is none of these. TLS is not part of this client yet.
    pub fn new(address: &str, token: &str, device_id: DeviceId) -> Result<Self, EndpointError> {
        let authority = authority(address)?;
        if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(EndpointError::Token);
        }
        let caller = Caller::Token { token: token.to_owned(), device_id };
        Ok(Self { authority, caller, telemetry_route: Route::IngestAuth, forms: FORMS.to_vec() })
    }

    /// Reads a server's address for a registered device, which has no token and sends telemetry only, to
    /// `/ws/ingest/{device_hash}`.
    ///
    /// # Errors
    /// [`EndpointError`] for an address as with [`new`](Self::new), and for a hash that cannot stand in a header.
    pub fn by_device_hash(address: &str, device_hash: &str) -> Result<Self, EndpointError> {
        let authority = authority(address)?;
        if device_hash.is_empty() || !device_hash.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(EndpointError::DeviceHash);
        }
        let caller = Caller::DeviceHash(device_hash.to_owned());
        Ok(Self { authority, caller, telemetry_route: Route::Ingest, forms: FORMS.to_vec() })
    }

    /// Sends telemetry to another route.
    ///
    /// # Errors
    /// [`EndpointError::Route`] for one that wants a token where there is a hash, or the other way round.
    pub fn with_telemetry_route(mut self, route: Route) -> Result<Self, EndpointError> {
        self.telemetry_route = route;
        self.target(route).map(|_| self).ok_or(EndpointError::Route)
    }

    /// Offers these forms of messages only, the most wanted one first; a server takes the first that it speaks.
    ///
    /// Without this call all four are offered, compressed MessagePack first. With one form there is nothing to choose,
    /// and a server that does not speak it refuses the connection. Without any, messages are plain JSON.
    #[must_use]
    pub fn with_forms(mut self, forms: impl IntoIterator<Item = Form>) -> Self {
        self.forms = Vec::new();
        for form in forms {
            // A subprotocol may be offered once.
            if !self.forms.contains(&form) {
                self.forms.push(form);
            }
        }
        self
    }

    /// Returns the host and the port.
    #[must_use]
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// Returns the forms that are offered, the most wanted one first.
    #[must_use]
    pub fn forms(&self) -> &[Form] {
        &self.forms
    }

    pub(crate) fn caller(&self) -> &Caller {
        &self.caller
    }

    pub(crate) fn telemetry_route(&self) -> Route {
        self.telemetry_route
    }

    /// The path and the query of a socket; nothing where the caller cannot go.
    pub(crate) fn target(&self, route: Route) -> Option<String> {
        match (route, &self.caller) {
            (Route::Sync, Caller::Token { device_id, .. }) => {
                Some(format!("/ws/mobile/sync?device_id={}", escaped(device_id.as_str())))
            }
            (Route::Ingest, Caller::DeviceHash(hash)) => Some(format!("/ws/ingest/{}", escaped(hash))),
            (Route::IngestAuth, _) => Some("/ws/ingest-auth".to_owned()),
            (Route::Sync, Caller::DeviceHash(_)) | (Route::Ingest, Caller::Token { .. }) => None,
        }
    }

    /// The path and the query of the HTTP door of telemetry.
    pub(crate) fn ingest_target(&self) -> String {
        match &self.caller {
            Caller::Token { device_id, .. } => {
                format!("/api/v1/ingest?device_id={}", escaped(device_id.as_str()))
            }
            Caller::DeviceHash(_) => "/api/v1/ingest".to_owned(),
        }
    }
}

fn authority(address: &str) -> Result<String, EndpointError> {
    let authority = match address.split_once("://") {
        Some(("http" | "ws", rest)) => rest,
        Some((scheme, _)) => return Err(EndpointError::Scheme(scheme.to_owned())),
        None => address,
    };
    let authority = authority.strip_suffix('/').unwrap_or(authority);
    let plain = |text: &str| text.bytes().all(|b| b.is_ascii_graphic() && !b"/?#@\\".contains(&b));
    let port = authority.rsplit_once(':').map_or("80", |(_, port)| port);
    let is_port = !authority.contains(':') || port.parse::<u16>().is_ok();
    if authority.is_empty() || !plain(authority) || !is_port {
        return Err(EndpointError::Authority);
    }
    Ok(if authority.contains(':') { authority.to_owned() } else { format!("{authority}:{port}") })
}

/// A text as it stands in a path or a query.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

impl std::fmt::Debug for Endpoint {
    /// Without the token and the hash.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut out = f.debug_struct("Endpoint");
        out.field("authority", &self.authority);
        if let Caller::Token { device_id, .. } = &self.caller {
            out.field("device_id", device_id);
        }
        out.finish_non_exhaustive()
    }
}

/// Why an address or a token cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum EndpointError {
    /// Not a scheme that this client speaks.
    #[error("the scheme {0} is not spoken here, only http and ws are")]
    Scheme(String),
    /// Not a host and a port.
    #[error("the address is not a host and a port")]
    Authority,
    /// The token is empty or cannot stand in a header.
    #[error("the token is empty or holds characters that no token has")]
    Token,
    /// The hash is empty or cannot stand in a header.
    #[error("the device hash is empty or holds characters that no hash has")]
    DeviceHash,
    /// The route is not for this caller.
    #[error("the route wants a token where there is a device hash, or the other way round")]
    Route,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read() {
        let device = || DeviceId::new("d 1/ü").expect("a device");
        let authority = |address: &str| Endpoint::new(address, "t", device()).map(|it| it.authority);
        for address in ["127.0.0.1:8000", "http://127.0.0.1:8000", "ws://127.0.0.1:8000/"] {
            assert_eq!(authority(address).as_deref(), Ok("127.0.0.1:8000"), "{address}");
        }
        assert_eq!(authority("http://sync.example").as_deref(), Ok("sync.example:80"));
        assert_eq!(authority("https://a:1"), Err(EndpointError::Scheme("https".into())));
        for bad in ["", "http://", "a:b", "a:99999", "http://a:1/path", "u@a:1", "a b:1"] {
            assert_eq!(authority(bad), Err(EndpointError::Authority), "{bad}");
        }
        assert_eq!(Endpoint::new("a:1", "a\r\nb", device()).map(drop), Err(EndpointError::Token));
        let endpoint = Endpoint::new("a:1", "secret", device()).expect("an endpoint");
        let sync = endpoint.target(Route::Sync);
        assert_eq!(sync.as_deref(), Some("/ws/mobile/sync?device_id=d%201%2F%C3%BC"));
        assert!(!format!("{endpoint:?}").contains("secret"));
    }

    #[test]
    fn who_calls_decides_on_the_routes() {
        let hash = Endpoint::by_device_hash("a:1", "h/1").expect("an endpoint");
        assert_eq!(hash.target(Route::Ingest).as_deref(), Some("/ws/ingest/h%2F1"));
        assert_eq!(hash.ingest_target(), "/api/v1/ingest");
        assert!(!format!("{hash:?}").contains("h/1"));
        let refused = |endpoint: Endpoint, route| endpoint.with_telemetry_route(route).map(drop);
        assert_eq!(refused(hash.clone(), Route::Sync), Err(EndpointError::Route));
        assert_eq!(refused(hash, Route::IngestAuth), Ok(()));
        let token = Endpoint::new("a:1", "t", DeviceId::new("d").expect("a device")).expect("an endpoint");
        assert_eq!(token.ingest_target(), "/api/v1/ingest?device_id=d");
        assert_eq!(refused(token.clone(), Route::Ingest), Err(EndpointError::Route));
        assert_eq!(refused(token, Route::Sync), Ok(()));
        for bad in ["", "a\r\nb", "ü"] {
            assert_eq!(
                Endpoint::by_device_hash("a:1", bad).map(drop),
                Err(EndpointError::DeviceHash),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn forms_are_offered_once_and_in_the_order_of_wishes() {
        let endpoint =
            || Endpoint::new("a:1", "t", DeviceId::new("d").expect("a device")).expect("an endpoint");
        let names = |endpoint: &Endpoint| {
            let names: Vec<_> = endpoint.forms().iter().map(|form| form.subprotocol()).collect();
            names.join(" ")
        };
        let all =
            "driftline.v1.msgpack+deflate driftline.v1.msgpack driftline.v1.json+deflate driftline.v1.json";
        assert_eq!(names(&endpoint()), all);
        let json = Form::default();
        let packed = Form { deflate: true, ..json };
        let chosen = endpoint().with_forms([packed, json, packed]);
        assert_eq!(names(&chosen), "driftline.v1.json+deflate driftline.v1.json");
        assert_eq!(names(&chosen.with_forms([])), "");
    }
}
