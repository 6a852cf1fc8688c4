//! Where a server is, and who asks.

use driftline_model::DeviceId;
use driftline_protocol::{Encoding, Form};
use thiserror::Error;

/// A server's sync route with the token and the device that use it.
#[derive(Clone)]
pub struct Endpoint {
    authority: String,
    token: String,
    device_id: DeviceId,
    forms: Vec<Form>,
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
    /// # Errors
    /// [`EndpointError`] for an address that is none of these. TLS is not part of this client yet.
    pub fn new(address: &str, token: &str, device_id: DeviceId) -> Result<Self, EndpointError> {
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
        if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(EndpointError::Token);
        }
        let authority =
            if authority.contains(':') { authority.to_owned() } else { format!("{authority}:{port}") };
        Ok(Self { authority, token: token.to_owned(), device_id, forms: FORMS.to_vec() })
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

    pub(crate) fn token(&self) -> &str {
        &self.token
    }

    /// The path and the query of the sync socket.
    pub(crate) fn target(&self) -> String {
        let mut target = String::from("/ws/mobile/sync?device_id=");
        for byte in self.device_id.as_str().bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                target.push(char::from(byte));
            } else {
                target.push_str(&format!("%{byte:02X}"));
            }
        }
        target
    }
}

impl std::fmt::Debug for Endpoint {
    /// Without the token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint")
            .field("authority", &self.authority)
            .field("device_id", &self.device_id)
            .finish_non_exhaustive()
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
        assert_eq!(endpoint.target(), "/ws/mobile/sync?device_id=d%201%2F%C3%BC");
        assert!(!format!("{endpoint:?}").contains("secret"));
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
