//! Identifiers as types of their own.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use thiserror::Error;

/// Why a text is not an identifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum IdError {
    /// The identifier is empty.
    #[error("must not be empty")]
    Empty,
    /// The identifier is longer than allowed.
    #[error("must be at most {max} bytes long")]
    TooLong {
        /// The longest allowed length in bytes.
        max: usize,
    },
    /// The identifier holds a control character or another character it may not hold.
    #[error("holds a character that is not allowed")]
    Character,
}

fn check(text: &str, max: usize, allowed: fn(char) -> bool) -> Result<(), IdError> {
    if text.is_empty() {
        return Err(IdError::Empty);
    }
    if text.len() > max {
        return Err(IdError::TooLong { max });
    }
    if text.bytes().all(|b| b.is_ascii_graphic()) && text.chars().all(allowed) {
        return Ok(());
    }
    if text.chars().any(|c| c.is_control() || !allowed(c)) { Err(IdError::Character) } else { Ok(()) }
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $max:expr, $allowed:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The longest text in bytes.
            pub const MAX_BYTES: usize = $max;

            /// Checks the text and makes the identifier.
            ///
            /// # Errors
            /// [`IdError`] says what the text breaks.
            pub fn new(text: &str) -> Result<Self, IdError> {
                check(text, $max, $allowed)?;
                Ok(Self(Arc::from(text)))
            }

            /// Returns the text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::new(text)
            }
        }
    };
}

fn any(_: char) -> bool {
    true
}

fn name_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || "_.:$-".contains(c)
}

text_id!(
    /// A tenant's name, as a token's claim gives it: at most 128 bytes, no control characters.
    TenantId, 128, any
);
text_id!(
    /// The name of a record kind: `[A-Za-z0-9_.:$-]{1,64}`.
    KindName, 64, name_char
);
text_id!(
    /// A record's identifier, made by the client: at most 128 bytes, no control characters.
    RecordId, 128, any
);
text_id!(
    /// A device's name within its user: at most 128 bytes, no control characters.
    DeviceId, 128, any
);
text_id!(
    /// The name a device gives to one change, once and for ever: at most 64 bytes, no control characters.
    OpId, 64, any
);
text_id!(
    /// The name of a sync session: a UUID in its hyphenated lower-case form.
    SyncId, 36, |c| c.is_ascii_hexdigit() || c == '-'
);
text_id!(
    /// The scope a record belongs to: `tenant`, `owner:` and a user, or `group:`, a field and its value.
    ScopeName, 200, any
);
text_id!(
    /// The name of a conflict that waits, or waited, for a reviewer.
    ConflictId, 64, any
);

impl ScopeName {
    /// The scope that every member of the tenant reads.
    #[must_use]
    pub fn tenant() -> Self {
        Self(Arc::from("tenant"))
    }

    /// The scope that only one user reads.
    #[must_use]
    pub fn owner(user: &UserId) -> Self {
        Self(Arc::from(format!("owner:{user}")))
    }

    /// The scope that the members of a group read: records whose field has this value.
    ///
    /// # Errors
    /// [`IdError`] when the value is too long or holds control characters.
    pub fn group(field: &str, value: &str) -> Result<Self, IdError> {
        Self::new(&format!("group:{field}:{value}"))
    }
}

/// A user: the `sub` of a token, which may be a text or a JSON integer and stays what it was.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum UserId {
    /// An integer subject.
    Number(i64),
    /// A text subject.
    Text(Arc<str>),
}

impl UserId {
    /// Checks a text subject: at most 128 bytes, no control characters.
    ///
    /// # Errors
    /// [`IdError`] says what the text breaks.
    pub fn text(text: &str) -> Result<Self, IdError> {
        check(text, 128, any)?;
        Ok(Self::Text(Arc::from(text)))
    }
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Text(text) => f.write_str(text),
        }
    }
}

/// Who a device is inside its tenant: its user and its name.
///
/// Keys order by the bytes of the user and then of the device; ties between clocks fall by this order
/// and never by a number that a database happened to give.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceKey(Arc<str>);

impl DeviceKey {
    /// Joins a user and a device. The separator is a control character, which neither may hold.
    #[must_use]
    pub fn new(user: &UserId, device: &DeviceId) -> Self {
        Self(Arc::from(format!("{user}\u{1}{device}")))
    }

    /// Rebuilds a key of its text form.
    #[must_use]
    pub fn from_text(text: &str) -> Self {
        Self(Arc::from(text))
    }

    /// Returns the text form, user and device with U+0001 between.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the user's part.
    #[must_use]
    pub fn user(&self) -> &str {
        self.0.split_once('\u{1}').map_or(&self.0, |(user, _)| user)
    }

    /// Returns the device's part.
    #[must_use]
    pub fn device(&self) -> &str {
        self.0.split_once('\u{1}').map_or("", |(_, device)| device)
    }
}

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident, $inner:ty) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name($inner);

        impl $name {
            /// Makes the identifier of its number.
            #[must_use]
            pub const fn new(number: $inner) -> Self {
                Self(number)
            }

            /// Returns the number.
            #[must_use]
            pub const fn number(self) -> $inner {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

number_id!(
    /// A store's own number for a tenant. It never leaves the node.
    TenantNo, u32
);
number_id!(
    /// A store's own number for a device. It never leaves the node.
    DeviceNo, u32
);
number_id!(
    /// A place in a tenant's sequence of record changes; also a record's version.
    Seq, u64
);

impl Seq {
    /// Before the first change.
    pub const ZERO: Self = Self(0);

    /// Returns the next place.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_refuse_what_they_may_not_hold() {
        assert_eq!(RecordId::new(""), Err(IdError::Empty));
        assert_eq!(RecordId::new(&"x".repeat(129)), Err(IdError::TooLong { max: 128 }));
        assert_eq!(RecordId::new("a\u{7}b"), Err(IdError::Character));
        assert_eq!(KindName::new("no space"), Err(IdError::Character));
        assert!(RecordId::new("Zürich 8/2").is_ok());
        assert!(KindName::new("$conflicts").is_ok());
    }

    #[test]
    fn device_keys_order_by_user_then_device() {
        let key = |user: &str, device: &str| {
            DeviceKey::new(&UserId::text(user).unwrap(), &DeviceId::new(device).unwrap())
        };
        assert!(key("a", "z") < key("b", "a"));
        assert!(key("a", "x") < key("ab", "a"), "a user's whole name counts before the device");
        assert_eq!((key("u", "d").user(), key("u", "d").device()), ("u", "d"));
    }
}
