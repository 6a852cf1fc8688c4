//! What names a request: the key that its sender made, within the scope of the sender.

use std::fmt;

use thiserror::Error;

/// The name that a sender gives to one request, once, and repeats when it sends the request again: 1 to 255 visible
/// ASCII characters.
///
/// A key is compared as it was sent, to the byte; quotes around it are part of it.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(Box<str>);

impl Key {
    /// The length of the longest key, in bytes.
    pub const BYTES_MAX: usize = 255;

    /// Reads a key.
    ///
    /// # Errors
    /// [`KeyError`] when the text is empty, too long or holds anything but visible ASCII characters (0x21 to 0x7e).
    pub fn new(text: &str) -> Result<Self, KeyError> {
        if text.is_empty() {
            return Err(KeyError::Empty);
        }
        if text.len() > Self::BYTES_MAX {
            return Err(KeyError::TooLong);
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(KeyError::Character);
        }
        Ok(Self(text.into()))
    }

    /// Returns the text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.0)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The text is no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum KeyError {
    /// There is no character.
    #[error("an idempotency key is not empty")]
    Empty,
    /// There are more than [`Key::BYTES_MAX`] bytes.
    #[error("an idempotency key has at most {} characters", Key::BYTES_MAX)]
    TooLong,
    /// A character is a space, a control character or not ASCII.
    #[error("an idempotency key consists of visible ASCII characters")]
    Character,
}

/// Whose key it is: two senders may use the same key without knowing of each other.
///
/// There is no scope that everybody shares: a key of one tenant says nothing to another tenant, and a key of one user or
/// device nothing to another one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Scope {
    tenant: Box<str>,
    owner: Box<str>,
}

impl Scope {
    /// The length of the longest tenant or owner, in bytes.
    pub const PART_BYTES_MAX: usize = 512;

    /// Makes the scope of a user or a device (`owner`) of a tenant.
    ///
    /// # Errors
    /// [`ScopeError`] when one of them is empty, which would be a scope of everybody, or longer than
    /// [`Scope::PART_BYTES_MAX`].
    pub fn new(tenant: &str, owner: &str) -> Result<Self, ScopeError> {
        for part in [tenant, owner] {
            if part.is_empty() {
                return Err(ScopeError::Empty);
            }
            if part.len() > Self::PART_BYTES_MAX {
                return Err(ScopeError::TooLong);
            }
        }
        Ok(Self { tenant: tenant.into(), owner: owner.into() })
    }

    /// Returns the tenant.
    #[must_use]
    pub fn tenant(&self) -> &str {
        &self.tenant
    }

    /// Returns the user or the device.
    #[must_use]
    pub fn owner(&self) -> &str {
        &self.owner
    }
}

/// The texts are no scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ScopeError {
    /// The tenant or the owner is empty.
    #[error("a scope names a tenant and an owner")]
    Empty,
    /// The tenant or the owner has more than [`Scope::PART_BYTES_MAX`] bytes.
    #[error("a tenant or an owner has at most {} bytes", Scope::PART_BYTES_MAX)]
    TooLong,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_visible_ascii() {
        let longest = "k".repeat(255);
        for text in ["a", "!", "~", "0192f3a1-b2c3-7000-8000-00000000abcd", "\"quoted\"", longest.as_str()] {
            assert_eq!(Key::new(text).map(|key| key.to_string()), Ok(text.to_owned()));
        }
        let too_long = "k".repeat(256);
        for (text, error) in [
            ("", KeyError::Empty),
            (too_long.as_str(), KeyError::TooLong),
            (" a", KeyError::Character),
            ("a b", KeyError::Character),
            ("a\u{7f}", KeyError::Character),
            ("a\n", KeyError::Character),
            ("a\u{0}", KeyError::Character),
            ("schl\u{fc}ssel", KeyError::Character),
        ] {
            assert_eq!(Key::new(text), Err(error), "{text:?}");
        }
    }

    #[test]
    fn scopes_are_never_global() {
        let longest = "t".repeat(512);
        assert!(Scope::new(&longest, "u").is_ok());
        let too_long = "t".repeat(513);
        for (tenant, owner, error) in [
            ("", "u", ScopeError::Empty),
            ("t", "", ScopeError::Empty),
            (too_long.as_str(), "u", ScopeError::TooLong),
            ("t", too_long.as_str(), ScopeError::TooLong),
        ] {
            assert_eq!(Scope::new(tenant, owner), Err(error));
        }
    }
}
