//! How much a buffer holds, and what it has done.

/// How much a buffer holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TelemetryLimits {
    /// The most samples.
    pub samples: usize,
    /// The most bytes of samples.
    pub bytes: usize,
}

impl Default for TelemetryLimits {
    /// 100,000 samples in 16 MiB.
    fn default() -> Self {
        Self { samples: 100_000, bytes: 16 << 20 }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Held {
    pub(super) samples: usize,
    pub(super) bytes: usize,
}

/// What a buffer has done since it was made or loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TelemetryTotals {
    /// Samples that were recorded.
    pub recorded: u64,
    /// Samples that the server stored.
    pub accepted: u64,
    /// Samples that the server had stored before.
    pub duplicates: u64,
    /// Samples that the server refused for good.
    pub refused: u64,
    /// Messages that were sent more than once.
    pub resends: u64,
    /// Messages that the server answered as it had before.
    pub replayed: u64,
    /// Messages of which the server says that it would not recognise them if they came again.
    pub unrecognised: u64,
}
