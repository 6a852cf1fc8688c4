//! Who asks: tokens in, claims out.

use driftline_model::{DeviceId, TenantId, UserId};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde_json::{Map, Value};
use thiserror::Error;

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    /// The tenant; a token without one belongs to `default`.
    pub tenant: TenantId,
    /// The user.
    pub user: UserId,
    /// The user's roles.
    pub roles: Vec<Box<str>>,
    /// Claims that may name groups of the user, each with one value: of a claim with several values there are several.
    pub groups: Vec<(Box<str>, Box<str>)>,
    /// The device that the token is bound to, if it is.
    pub device: Option<DeviceId>,
    /// When the token ends, in Unix seconds.
    pub expires_s: u64,
}

/// Why a token is not accepted. The text holds nothing of the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum AuthError {
    /// There is no token.
    #[error("a token is required")]
    Missing,
    /// The token is no token, or its signature is wrong.
    #[error("the token is not valid")]
    Invalid,
    /// The token has ended, or not begun.
    #[error("the token has expired or is not valid yet")]
    Expired,
    /// A claim is missing or has no sense.
    #[error("the token's claims are not usable")]
    Claims,
    /// The user is not approved.
    #[error("the user is not approved")]
    NotApproved,
}

/// Turns tokens into claims. An embedding service brings its own.
pub trait Authenticate: Send + Sync + 'static {
    /// Checks a token at a time, in Unix milliseconds.
    ///
    /// # Errors
    /// [`AuthError`] says why it is not accepted.
    fn authenticate(&self, token: &str, now_ms: u64) -> Result<Claims, AuthError>;
}

/// A token longer than this is refused unread.
const TOKEN_BYTES_MAX: usize = 8 << 10;

/// Seconds that clocks of issuer and server may differ.
const LEEWAY_S: u64 = 5;

/// Tokens signed with a shared secret by HMAC-SHA256 (RFC 7515, `HS256`).
#[derive(Clone)]
pub struct SharedSecret {
    decoding: DecodingKey,
    encoding: EncodingKey,
    validation: Validation,
    /// The claim that must be true of a user; none: only a claim `approved` that is false keeps out.
    approved_claim: Option<Box<str>>,
}

impl std::fmt::Debug for SharedSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SharedSecret(..)")
    }
}

/// What a token is made for.
#[derive(Debug, Clone)]
pub struct Grant {
    /// The tenant.
    pub tenant: String,
    /// The user; a JSON integer stays one.
    pub sub: Value,
    /// The roles.
    pub roles: Vec<String>,
    /// The device that the token is bound to.
    pub device_id: Option<String>,
    /// When it ends, in Unix seconds.
    pub expires_s: u64,
    /// Further claims.
    pub claims: Map<String, Value>,
}

impl SharedSecret {
    /// Takes a secret of at least 16 bytes.
    ///
    /// # Errors
    /// Nothing is made of a shorter secret.
    pub fn new(secret: &[u8]) -> Option<Self> {
        if secret.len() < 16 {
            return None;
        }
        // The algorithm is pinned; times are checked by us against the injected clock.
        let mut validation = Validation::new(Algorithm::HS256);
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation.validate_aud = false;
        validation.required_spec_claims.clear();
        Some(Self {
            decoding: DecodingKey::from_secret(secret),
            encoding: EncodingKey::from_secret(secret),
            validation,
            approved_claim: None,
        })
    }

    /// Lets in only users of whom this claim is true.
    #[must_use]
    pub fn approved_by(self, claim: &str) -> Self {
        Self { approved_claim: Some(claim.into()), ..self }
    }

    /// Makes a token.
    #[must_use]
    pub fn mint(&self, grant: &Grant) -> String {
        let mut claims = grant.claims.clone();
        claims.insert("tenant".into(), grant.tenant.clone().into());
        claims.insert("sub".into(), grant.sub.clone());
        claims.insert("roles".into(), grant.roles.clone().into());
        claims.insert("exp".into(), grant.expires_s.into());
        if let Some(device_id) = &grant.device_id {
            claims.insert("device_id".into(), device_id.clone().into());
        }
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &self.encoding)
            .expect("a map of JSON values is encoded")
    }
}

impl Authenticate for SharedSecret {
    fn authenticate(&self, token: &str, now_ms: u64) -> Result<Claims, AuthError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(AuthError::Invalid);
        }
        let decoded = jsonwebtoken::decode::<Map<String, Value>>(token, &self.decoding, &self.validation);
        let claims = decoded.map_err(|_| AuthError::Invalid)?.claims;
        let now_s = now_ms / 1000;
        let expires_s = time(&claims, "exp")?.ok_or(AuthError::Claims)?;
        let begun = time(&claims, "nbf")?.is_none_or(|begins_s| begins_s <= now_s + LEEWAY_S);
        if expires_s + LEEWAY_S <= now_s || !begun {
            return Err(AuthError::Expired);
        }
        let lacks = |claim: &str| claims.get(claim) != Some(&Value::Bool(true));
        if claims.get("approved") == Some(&Value::Bool(false))
            || self.approved_claim.as_deref().is_some_and(lacks)
        {
            return Err(AuthError::NotApproved);
        }
        Ok(Claims {
            tenant: TenantId::new(text(&claims, "tenant")?.unwrap_or("default"))
                .map_err(|_| AuthError::Claims)?,
            user: user(&claims)?,
            roles: roles(&claims)?,
            groups: groups(&claims),
            device: match text(&claims, "device_id")? {
                None => None,
                Some(device) => Some(DeviceId::new(device).map_err(|_| AuthError::Claims)?),
            },
            expires_s,
        })
    }
}

fn time(claims: &Map<String, Value>, name: &str) -> Result<Option<u64>, AuthError> {
    match claims.get(name) {
        None => Ok(None),
        // Whole seconds, also when an issuer writes them as a float (RFC 7519, NumericDate).
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be in range")]
        Some(Value::Number(number)) => match (number.as_u64(), number.as_f64()) {
            (Some(whole), _) if whole < 1 << 53 => Ok(Some(whole)),
            (None, Some(float)) if (0.0..9e15).contains(&float) => Ok(Some(float as u64)),
            _ => Err(AuthError::Claims),
        },
        Some(_) => Err(AuthError::Claims),
    }
}

fn text<'a>(claims: &'a Map<String, Value>, name: &str) -> Result<Option<&'a str>, AuthError> {
    match claims.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(AuthError::Claims),
    }
}

fn user(claims: &Map<String, Value>) -> Result<UserId, AuthError> {
    match claims.get("sub") {
        Some(Value::String(text)) => UserId::text(text).map_err(|_| AuthError::Claims),
        Some(Value::Number(number)) => number.as_i64().map(UserId::Number).ok_or(AuthError::Claims),
        _ => Err(AuthError::Claims),
    }
}

/// Roles stand in `roles`, or a single one in `role`.
fn roles(claims: &Map<String, Value>) -> Result<Vec<Box<str>>, AuthError> {
    match (claims.get("roles"), claims.get("role")) {
        (Some(Value::Array(roles)), _) => {
            roles.iter().map(|role| role.as_str().map(Box::from).ok_or(AuthError::Claims)).collect()
        }
        (None, Some(Value::String(role))) => Ok(vec![Box::from(role.as_str())]),
        (None | Some(Value::Null), None | Some(Value::Null)) => Ok(vec![Box::from("user")]),
        _ => Err(AuthError::Claims),
    }
}

/// Claims that say something else than a group: registered ones (RFC 7519) and our own.
const NO_GROUPS: [&str; 11] =
    ["sub", "exp", "iat", "nbf", "iss", "aud", "jti", "tenant", "roles", "device_id", "approved"];

/// Tells whether a claim of this name may name groups of a user.
#[must_use]
pub fn names_groups(claim: &str) -> bool {
    !NO_GROUPS.contains(&claim)
}

/// The most groups of one token.
const GROUPS_MAX: usize = 256;

/// Takes texts and integers, and arrays of them; other values name no groups.
fn groups(claims: &Map<String, Value>) -> Vec<(Box<str>, Box<str>)> {
    let named = claims.iter().filter(|(name, _)| names_groups(name));
    let pairs = named.flat_map(|(name, value)| {
        let values = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        values.iter().filter_map(group).map(|value| (Box::from(name.as_str()), value))
    });
    pairs.take(GROUPS_MAX).collect()
}

fn group(value: &Value) -> Option<Box<str>> {
    match value {
        Value::String(text) => Some(text.as_str().into()),
        Value::Number(number) if number.is_i64() || number.is_u64() => Some(number.to_string().into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_MS: u64 = 1_763_692_496_000;

    fn secret() -> SharedSecret {
        SharedSecret::new(b"0123456789abcdef0123456789abcdef").unwrap()
    }

    fn grant() -> Grant {
        Grant {
            tenant: "t1".into(),
            sub: 7.into(),
            roles: vec!["staff".into()],
            device_id: Some("d1".into()),
            expires_s: NOW_MS / 1000 + 60,
            claims: Map::new(),
        }
    }

    #[test]
    fn a_minted_token_is_accepted_until_it_ends() {
        let token = secret().mint(&grant());
        let claims = secret().authenticate(&token, NOW_MS).unwrap();
        assert_eq!((claims.tenant.as_str(), &claims.user), ("t1", &UserId::Number(7)));
        assert_eq!(claims.device.unwrap().as_str(), "d1");
        assert_eq!(secret().authenticate(&token, NOW_MS + 70_000), Err(AuthError::Expired));
    }

    #[test]
    fn other_tokens_are_refused() {
        let other = SharedSecret::new(b"another secret of enough bytes").unwrap().mint(&grant());
        let none = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJ1IiwiZXhwIjo5OTk5OTk5OTk5fQ.";
        for bad in ["", "x.y.z", none, &other, &"a".repeat(9000)] {
            assert_eq!(secret().authenticate(bad, NOW_MS), Err(AuthError::Invalid), "{bad}");
        }
        let mut unapproved = grant();
        unapproved.claims.insert("approved".into(), false.into());
        assert_eq!(secret().authenticate(&secret().mint(&unapproved), NOW_MS), Err(AuthError::NotApproved));
        let mut nobody = grant();
        nobody.sub = Value::Null;
        assert_eq!(secret().authenticate(&secret().mint(&nobody), NOW_MS), Err(AuthError::Claims));
    }

    #[test]
    fn only_approved_users_are_let_in_where_a_claim_says_who_is() {
        let secret = secret().approved_by("cleared");
        let with = |value: Value| {
            let mut grant = grant();
            grant.claims.insert("cleared".into(), value);
            secret.authenticate(&secret.mint(&grant), NOW_MS).map(|claims| claims.user)
        };
        assert_eq!(with(true.into()), Ok(UserId::Number(7)));
        for other in [false.into(), Value::Null, "true".into(), 1.into()] {
            assert_eq!(with(other), Err(AuthError::NotApproved));
        }
        assert_eq!(secret.authenticate(&secret.mint(&grant()), NOW_MS), Err(AuthError::NotApproved));
        // What is false of `approved` is so under another claim, too.
        let mut refused = grant();
        refused.claims.insert("cleared".into(), true.into());
        refused.claims.insert("approved".into(), false.into());
        assert_eq!(secret.authenticate(&secret.mint(&refused), NOW_MS), Err(AuthError::NotApproved));
    }

    #[test]
    fn claims_name_groups() {
        let mut grant = grant();
        let claims = serde_json::json!({
            "region": "north", "team": ["a", 7, null, ["b"]], "ward": -3, "share": 0.5, "on_call": true,
            "address": {"region": "south"}, "iss": "somebody", "aud": ["x"],
        });
        grant.claims = claims.as_object().unwrap().clone();
        let groups = secret().authenticate(&secret().mint(&grant), NOW_MS).unwrap().groups;
        let groups: Vec<(&str, &str)> = groups.iter().map(|(name, value)| (&**name, &**value)).collect();
        assert_eq!(groups, [("region", "north"), ("team", "a"), ("team", "7"), ("ward", "-3")]);

        grant.claims = Map::from_iter([("team".to_owned(), (0..300).collect::<Vec<u32>>().into())]);
        assert_eq!(secret().authenticate(&secret().mint(&grant), NOW_MS).unwrap().groups.len(), GROUPS_MAX);
    }

    #[test]
    fn a_short_secret_is_no_secret() {
        assert!(SharedSecret::new(b"short").is_none());
    }
}
