//! How bad it is.

use thiserror::Error;

/// How bad something is. A later variant is worse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Somebody should look at it.
    Warning,
    /// Somebody has to act.
    Critical,
}

impl Severity {
    /// Returns the name used in alerts and in configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

/// A configuration that cannot work; the fault is with whoever wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The named setting is out of its range, or is not a number.
    #[error("`{0}` is out of its range")]
    Range(&'static str),
    /// The critical bound would be reached before the warning.
    #[error("the critical bound must lie beyond the bound of the warning")]
    Order,
    /// There is no bound at all.
    #[error("a threshold needs a bound")]
    NoBound,
}
