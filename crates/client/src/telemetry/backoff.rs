//! How long to wait after a failure.

/// Waits that double with each failure in a row, drawn at random between zero and that ("full jitter"), so that many
/// devices do not come back in step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// The longest wait after the first failure, in milliseconds.
    pub first_ms: u64,
    /// The longest wait at all, in milliseconds.
    pub max_ms: u64,
}

impl Default for Backoff {
    /// From 1 to 30 seconds.
    fn default() -> Self {
        Self { first_ms: 1_000, max_ms: 30_000 }
    }
}

impl Backoff {
    /// Returns the wait after so many failures in a row, of which there is at least one; `draw` is any random number.
    #[must_use]
    pub fn delay_ms(&self, failures: u32, draw: u64) -> u64 {
        let doublings = failures.saturating_sub(1).min(32);
        let longest_ms = self.first_ms.saturating_mul(1 << doublings).min(self.max_ms);
        draw % longest_ms.saturating_add(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_their_bound() {
        let backoff = Backoff::default();
        let longest = |failures| (0..40_000).map(|draw| backoff.delay_ms(failures, draw)).max();
        for (failures, wanted) in
            [(0, 1_000), (1, 1_000), (2, 2_000), (5, 16_000), (6, 30_000), (u32::MAX, 30_000)]
        {
            assert_eq!(longest(failures), Some(wanted), "{failures}");
        }
        assert_eq!(backoff.delay_ms(3, 0), 0, "full jitter");
        let endless = Backoff { first_ms: u64::MAX, max_ms: u64::MAX };
        assert_eq!(endless.delay_ms(9, u64::MAX - 1), u64::MAX - 1);
    }
}
