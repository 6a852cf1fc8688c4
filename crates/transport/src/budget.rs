//! The memory that everything still coming in shares.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes that a node may still promise to messages and bodies under way.
///
/// Without it every connection could keep as much as one message may hold, and let it lie.
#[derive(Debug)]
pub(crate) struct Budget(AtomicUsize);

impl Budget {
    pub(crate) fn new(bytes: usize) -> Arc<Self> {
        Arc::new(Self(AtomicUsize::new(bytes)))
    }

    /// Opens an account that holds nothing yet.
    pub(crate) fn share(self: &Arc<Self>) -> Share {
        Share { budget: Arc::clone(self), bytes: 0 }
    }
}

/// What one message or body was promised; it goes back when dropped.
#[derive(Debug)]
pub(crate) struct Share {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Share {
    /// Bytes of a message or body that cost nothing; more is asked for in steps of as many.
    pub(crate) const FREE_BYTES: usize = 16 << 10;

    /// Asks for more bytes; tells whether they are there.
    #[must_use]
    pub(crate) fn grow(&mut self, bytes: usize) -> bool {
        let take = |left: usize| left.checked_sub(bytes);
        let taken = self.budget.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok();
        if taken {
            self.bytes += bytes;
        }
        taken
    }

    /// Asks for what `come` bytes need beyond the first step, in steps; tells whether it is there.
    #[must_use]
    pub(crate) fn cover(&mut self, come: usize) -> bool {
        come <= Self::FREE_BYTES + self.bytes
            || self.grow((come - self.bytes).next_multiple_of(Self::FREE_BYTES))
    }

    /// Gives everything back.
    pub(crate) fn release(&mut self) {
        self.budget.0.fetch_add(std::mem::take(&mut self.bytes), Ordering::Relaxed);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_promised_comes_back() {
        let budget = Budget::new(100);
        let (mut one, mut other) = (budget.share(), budget.share());
        assert!(one.grow(60) && other.grow(40) && !other.grow(1));
        one.release();
        assert!(other.grow(60) && !one.grow(1));
        drop(other);
        assert!(one.grow(100));
    }

    #[test]
    fn what_comes_is_covered_in_steps_but_for_the_first() {
        const FREE_BYTES: usize = Share::FREE_BYTES;
        let budget = Budget::new(4 * FREE_BYTES);
        let mut share = budget.share();
        assert!(share.cover(FREE_BYTES) && share.bytes == 0);
        assert!(share.cover(FREE_BYTES + 1) && share.bytes == 2 * FREE_BYTES);
        assert!(share.cover(3 * FREE_BYTES) && share.bytes == 2 * FREE_BYTES);
        assert!(share.cover(3 * FREE_BYTES + 1) && share.bytes == 4 * FREE_BYTES);
        assert!(share.cover(5 * FREE_BYTES) && !share.cover(5 * FREE_BYTES + 1));
    }
}
