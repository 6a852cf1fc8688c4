//! Tickets: what lets a bearer in once, in the place of a token that cannot be sent.

use driftline_idempotency::Fingerprint;
use driftline_model::{DeviceId, TenantId, UserId};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde_json::{Map, Value, json};

use crate::auth::{AuthError, Claims};

/// Milliseconds that a ticket is good for.
pub(crate) const TICKET_MS: u64 = 30_000;

/// A ticket longer than this is refused unread.
const TICKET_BYTES_MAX: usize = 16 << 10;

/// Seals tickets with a key that every node on the same database has.
pub(crate) struct Tickets {
    decoding: DecodingKey,
    encoding: EncodingKey,
    validation: Validation,
}

impl Tickets {
    /// Derives the key from the secret of a store.
    pub(crate) fn new(secret: &[u8; 32]) -> Self {
        let mut builder = Fingerprint::builder("tickets");
        builder.bytes(secret);
        let key = builder.finish();
        // The algorithm is pinned; the end is checked by us against the injected clock.
        let mut validation = Validation::new(Algorithm::HS256);
        validation.validate_exp = false;
        validation.validate_aud = false;
        validation.required_spec_claims.clear();
        Self {
            decoding: DecodingKey::from_secret(key.as_bytes()),
            encoding: EncodingKey::from_secret(key.as_bytes()),
            validation,
        }
    }

    /// Seals what a token says. `id` tells the ticket from all others.
    pub(crate) fn seal(&self, claims: &Claims, id: u128, now_ms: u64) -> String {
        let sub: Value = match &claims.user {
            UserId::Number(number) => (*number).into(),
            user => user.to_string().into(),
        };
        let said = json!({
            "id": format!("{id:032x}"),
            "until": now_ms + TICKET_MS,
            "exp": claims.expires_s,
            "tenant": claims.tenant.as_str(),
            "sub": sub,
            "roles": claims.roles,
            "groups": claims.groups,
            "device_id": claims.device.as_ref().map(DeviceId::as_str),
        });
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), &said, &self.encoding)
            .expect("a map of JSON values is encoded")
    }

    /// Opens a ticket; gives what the token said for which it was given, and the ticket's name. Whether it was used
    /// before, only the database knows.
    ///
    /// # Errors
    /// [`AuthError`] says why it is not accepted.
    pub(crate) fn open(&self, ticket: &str, now_ms: u64) -> Result<(Claims, Box<str>), AuthError> {
        if ticket.len() > TICKET_BYTES_MAX {
            return Err(AuthError::Invalid);
        }
        let opened = jsonwebtoken::decode::<Map<String, Value>>(ticket, &self.decoding, &self.validation);
        let said = opened.map_err(|_| AuthError::Invalid)?.claims;
        let until = said.get("until").and_then(Value::as_u64).ok_or(AuthError::Claims)?;
        let expires_s = said.get("exp").and_then(Value::as_u64).ok_or(AuthError::Claims)?;
        if now_ms >= until || now_ms / 1000 >= expires_s {
            return Err(AuthError::Expired);
        }
        let claims = claims(&said, expires_s).ok_or(AuthError::Claims)?;
        let id = said.get("id").and_then(Value::as_str).ok_or(AuthError::Claims)?;
        Ok((claims, id.into()))
    }
}

fn claims(said: &Map<String, Value>, expires_s: u64) -> Option<Claims> {
    let user = match said.get("sub")? {
        Value::Number(number) => UserId::Number(number.as_i64()?),
        sub => UserId::text(sub.as_str()?).ok()?,
    };
    let text = |value: &Value| value.as_str().map(Box::<str>::from);
    let pair = |value: &Value| Some((text(value.get(0)?)?, text(value.get(1)?)?));
    Some(Claims {
        tenant: TenantId::new(said.get("tenant")?.as_str()?).ok()?,
        user,
        roles: said.get("roles")?.as_array()?.iter().map(text).collect::<Option<_>>()?,
        groups: said.get("groups")?.as_array()?.iter().map(pair).collect::<Option<_>>()?,
        device: match said.get("device_id").and_then(Value::as_str) {
            Some(device) => Some(DeviceId::new(device).ok()?),
            None => None,
        },
        expires_s,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_MS: u64 = 1_763_692_496_000;

    fn someone() -> Claims {
        Claims {
            tenant: TenantId::new("t1").unwrap(),
            user: UserId::Number(7),
            roles: vec!["staff".into()],
            groups: vec![("team".into(), "a".into()), ("team".into(), "b".into())],
            device: Some(DeviceId::new("d1").unwrap()),
            expires_s: NOW_MS / 1000 + 20,
        }
    }

    #[test]
    fn a_ticket_says_what_its_token_said_until_either_ends() {
        let tickets = Tickets::new(&[7; 32]);
        let ticket = tickets.seal(&someone(), 9, NOW_MS);
        assert_eq!(tickets.open(&ticket, NOW_MS), Ok((someone(), format!("{:032x}", 9).into())));
        assert_eq!(tickets.open(&ticket, NOW_MS + 21_000), Err(AuthError::Expired));
        let lasting = tickets.seal(&Claims { expires_s: NOW_MS, ..someone() }, 9, NOW_MS);
        assert_eq!(tickets.open(&lasting, NOW_MS + TICKET_MS), Err(AuthError::Expired));
    }

    #[test]
    fn a_ticket_of_another_store_is_none() {
        let ticket = Tickets::new(&[8; 32]).seal(&someone(), 9, NOW_MS);
        for bad in ["", "x.y.z", &ticket, &"a".repeat(20_000)] {
            assert_eq!(Tickets::new(&[7; 32]).open(bad, NOW_MS), Err(AuthError::Invalid));
        }
    }
}
