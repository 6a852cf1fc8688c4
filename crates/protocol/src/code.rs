//! The closed tables of codes: errors, item results and close codes.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Whether and when a failed request may be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// Sending the same again gives the same answer.
    No,
    /// The same request may succeed later.
    Yes,
    /// After a new token.
    AfterToken,
    /// After a new sync session or a new pull.
    AfterResync,
}

/// A WebSocket close code that this server sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CloseCode(pub u16);

macro_rules! error_codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $status:literal, $retry:ident, $close:expr;)*) => {
        /// Every stable error code. Codes are only ever added.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum ErrorCode {
            $($(#[$doc])* $name,)*
        }

        impl ErrorCode {
            /// Every code, in the order of the table.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// Returns the code's text.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// Returns the HTTP status that carries the code.
            #[must_use]
            pub const fn status(self) -> u16 {
                match self { $(Self::$name => $status,)* }
            }

            /// Tells whether the request may be sent again.
            #[must_use]
            pub const fn retry(self) -> Retry {
                match self { $(Self::$name => Retry::$retry,)* }
            }

            /// Returns the code with which a socket is closed after this error, if it is.
            #[must_use]
            pub const fn close(self) -> Option<CloseCode> {
                match self { $(Self::$name => $close,)* }
            }
        }
    };
}

const fn close(code: u16) -> Option<CloseCode> {
    Some(CloseCode(code))
}

error_codes! {
    /// Missing, bad or expired token.
    Unauthorized = "UNAUTHORIZED", 401, AfterToken, close(4001);
    /// A known thing, but not the caller's right.
    Forbidden = "FORBIDDEN", 403, No, None;
    /// No such thing, or another tenant's.
    NotFound = "NOT_FOUND", 404, No, None;
    /// The page's origin is not allowed.
    OriginRefused = "ORIGIN_REFUSED", 403, No, None;
    /// The route needs a device.
    MissingDeviceId = "MISSING_DEVICE_ID", 422, No, close(4502);
    /// A session-scoped message without `sync_id`.
    MissingSyncId = "MISSING_SYNC_ID", 422, AfterResync, None;
    /// No sync session of that name is open here.
    UnknownSyncId = "UNKNOWN_SYNC_ID", 404, AfterResync, None;
    /// The sync session was idle for too long.
    SyncSessionExpired = "SYNC_SESSION_EXPIRED", 410, AfterResync, None;
    /// Not a message of this route.
    UnknownMessageType = "UNKNOWN_MESSAGE_TYPE", 400, No, None;
    /// Not JSON, nested too deeply, or not an object.
    JsonDecodeError = "JSON_DECODE_ERROR", 400, No, None;
    /// Not MessagePack, nested too deeply, or not a map.
    MsgpackDecodeError = "MSGPACK_DECODE_ERROR", 400, No, None;
    /// The message breaks its schema.
    ValidationError = "VALIDATION_ERROR", 422, No, None;
    /// More items than one batch may hold.
    BatchTooLarge = "BATCH_TOO_LARGE", 413, No, None;
    /// More bytes than one message may hold.
    MessageTooLarge = "MESSAGE_TOO_LARGE", 413, No, close(1009);
    /// Too many requests for now.
    RateLimited = "RATE_LIMITED", 429, Yes, None;
    /// The idempotency key was used for another request.
    IdempotencyKeyReused = "IDEMPOTENCY_KEY_REUSED", 422, No, None;
    /// The same request is being handled right now.
    IdempotencyInProgress = "IDEMPOTENCY_IN_PROGRESS", 409, Yes, None;
    /// No such conflict.
    ConflictNotFound = "CONFLICT_NOT_FOUND", 404, No, None;
    /// The conflict was decided before.
    ConflictAlreadyResolved = "CONFLICT_ALREADY_RESOLVED", 409, No, None;
    /// The record changed since the reviewer read it.
    ConflictStale = "CONFLICT_STALE", 409, No, None;
    /// Not a cursor of this server, or one of a foreign epoch.
    CursorInvalid = "CURSOR_INVALID", 410, AfterResync, None;
    /// The cursor is older than what is retained.
    CursorExpired = "CURSOR_EXPIRED", 410, AfterResync, None;
    /// The handler of a known message failed.
    HandlerError = "HANDLER_ERROR", 500, Yes, None;
    /// A failure before or around the handler.
    MessageProcessingError = "MESSAGE_PROCESSING_ERROR", 500, Yes, None;
    /// The database is away, or did not answer in time. What is sent again is recognised if it was applied.
    StoreUnavailable = "STORE_UNAVAILABLE", 503, Yes, None;
    /// The server shuts down.
    ServerDraining = "SERVER_DRAINING", 503, Yes, close(1012);
    /// The connection did not read fast enough.
    SlowConsumer = "SLOW_CONSUMER", 503, Yes, close(4008);
    /// Nothing was heard for two heartbeat intervals.
    HeartbeatTimeout = "HEARTBEAT_TIMEOUT", 408, Yes, close(4009);
    /// The same device connected again.
    Replaced = "REPLACED", 409, No, close(4510);
    /// The resource does not know this method.
    MethodNotAllowed = "METHOD_NOT_ALLOWED", 405, No, None;
    /// The body's type is not understood.
    UnsupportedMediaType = "UNSUPPORTED_MEDIA_TYPE", 415, No, None;
    /// The body does not match its digest.
    DigestMismatch = "DIGEST_MISMATCH", 422, No, None;
    /// A digest is needed.
    DigestMissing = "DIGEST_MISSING", 400, No, None;
    /// Another chunk lies there.
    ChunkConflict = "CHUNK_CONFLICT", 409, No, None;
    /// Parts of the upload are missing.
    UploadIncomplete = "UPLOAD_INCOMPLETE", 409, No, None;
    /// The upload expired or was removed.
    UploadGone = "UPLOAD_GONE", 410, No, None;
    /// The chunk does not start where the upload ends.
    OffsetMismatch = "OFFSET_MISMATCH", 409, No, None;
    /// A quota is used up.
    QuotaExceeded = "QUOTA_EXCEEDED", 413, No, None;
    /// The disk is full.
    StorageFull = "STORAGE_FULL", 507, Yes, None;
    /// Plain connections are refused.
    TlsRequired = "TLS_REQUIRED", 426, No, None;
}

impl ErrorCode {
    /// Tells whether the same request may simply be sent again.
    #[must_use]
    pub const fn is_retryable(self) -> bool {
        matches!(self.retry(), Retry::Yes)
    }

    /// Finds a code by its text.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|code| code.as_str() == text)
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How a client treats an item's result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ItemClass {
    /// Decided; the item leaves the queue.
    Done,
    /// Refused for good; the item goes to the dead letters.
    Terminal,
    /// Send the same again later.
    Retry,
    /// Pull, rebase, send again.
    Resync,
}

macro_rules! item_codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $class:ident;)*) => {
        /// What became of one item of a batch.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        #[non_exhaustive]
        pub enum ItemCode {
            $($(#[$doc])* $name,)*
        }

        impl ItemCode {
            /// Every code, in the order of the table.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// Returns the code's text.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// Returns how a client treats the code.
            #[must_use]
            pub const fn class(self) -> ItemClass {
                match self { $(Self::$name => ItemClass::$class,)* }
            }
        }
    };
}

item_codes! {
    /// Took effect on the state its author had seen.
    Applied = "applied", Done;
    /// Took effect beside other devices' changes.
    Merged = "merged", Done;
    /// Nothing had to change.
    Noop = "noop", Done;
    /// Lost against what is stored; the audit keeps the values.
    Superseded = "superseded", Done;
    /// Set aside for a reviewer.
    ConflictPending = "conflict_pending", Done;
    /// The item breaks the rules of items or its kind's schema.
    Invalid = "invalid", Terminal;
    /// Not the caller's right.
    Forbidden = "forbidden", Terminal;
    /// No such record, or its author knew it deleted.
    Gone = "gone", Terminal;
    /// The record would become too large.
    TooLarge = "too_large", Terminal;
    /// The kind is not declared.
    UnknownKind = "unknown_kind", Terminal;
    /// Made for a schema that is no longer accepted.
    SchemaTooOld = "schema_too_old", Terminal;
    /// Another item of its group was not done.
    DependencyFailed = "dependency_failed", Terminal;
    /// Its `op_id` or `n` was used for another change.
    DeviceIdReused = "device_id_reused", Terminal;
    /// Older than what is remembered of the device.
    TooOld = "too_old", Terminal;
    /// Not now.
    RetryLater = "retry_later", Retry;
    /// The server is busy.
    Busy = "busy", Retry;
    /// Too many for now.
    RateLimited = "rate_limited", Retry;
    /// Based on a version that this server does not have.
    ClientAhead = "client_ahead", Resync;
    /// Based on another epoch.
    EpochChanged = "epoch_changed", Resync;
}

impl ItemCode {
    /// Finds a code by its text.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|code| code.as_str() == text)
    }

    /// Tells whether the outcome is remembered, so that a resend gets the same one.
    #[must_use]
    pub const fn is_remembered(self) -> bool {
        matches!(self.class(), ItemClass::Done | ItemClass::Terminal)
            && !matches!(self, Self::DependencyFailed)
    }
}

impl fmt::Display for ItemCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_one_text_each() {
        for code in ErrorCode::ALL {
            assert_eq!(ErrorCode::from_text(code.as_str()), Some(*code));
            assert!((400..600).contains(&code.status()), "{code}");
        }
        for code in ItemCode::ALL {
            assert_eq!(ItemCode::from_text(code.as_str()), Some(*code));
            let serde = serde_json::to_string(code).expect("a unit variant");
            assert_eq!(serde, format!("\"{code}\""));
        }
    }

    #[test]
    fn final_close_codes_belong_to_final_errors() {
        for code in ErrorCode::ALL {
            if let Some(CloseCode(close @ 4500..)) = code.close() {
                assert!(!code.is_retryable(), "{code} closes with {close}");
            }
        }
    }
}
