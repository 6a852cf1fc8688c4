//! What to do with a request: run it, answer it from the record, or refuse it.

use crate::Fingerprint;

/// How long an answer is remembered unless something else is said, in milliseconds: a day.
pub const WINDOW_MS_DEFAULT: u64 = 24 * 60 * 60 * 1000;

/// The longest time that an answer is remembered, in milliseconds: 90 days.
pub const WINDOW_MS_MAX: u64 = 90 * WINDOW_MS_DEFAULT;

/// The size of the largest answer that is kept as it is, in bytes: 64 KiB.
pub const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// What is known about a key within its scope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record<A> {
    /// The fingerprint of the request that came first.
    pub fingerprint: Fingerprint,
    /// From this time on there is no record, in milliseconds.
    pub expires_ms: u64,
    /// How far the request got.
    pub state: State<A>,
}

/// How far a request got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State<A> {
    /// It was carried out, and this is its answer.
    Done(A),
    /// Somebody works on it.
    Leased {
        /// The fencing number of who works on it; a higher one takes the place of a lower one.
        attempt: u64,
        /// From this time on somebody else may take over, in milliseconds.
        until_ms: u64,
    },
}

/// What to do with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision<'r, A> {
    /// Carry it out: there is no record.
    Execute,
    /// Carry it out in place of somebody whose lease ended. Their effect may have happened: use the same [`EffectId`].
    ///
    /// [`EffectId`]: crate::EffectId
    TakeOver {
        /// The lowest fencing number that fences the other one off.
        attempt: u64,
    },
    /// Answer with what was answered before.
    Replay(&'r A),
    /// Wait: somebody else works on the same request.
    InProgress {
        /// When the other one's lease ends, in milliseconds from now, at least 1.
        retry_after_ms: u64,
    },
    /// Refuse: the key belongs to another request, whose record stays as it is.
    Mismatch,
}

/// Decides what to do with a request from what is known about its key.
///
/// An expired record is none, whether or not a cleaner came by. A lease that ended is taken over, but only by the same
/// request.
#[must_use]
pub fn decide<'r, A>(
    record: Option<&'r Record<A>>,
    fingerprint: &Fingerprint,
    now_ms: u64,
) -> Decision<'r, A> {
    let Some(record) = record.filter(|record| now_ms < record.expires_ms) else {
        return Decision::Execute;
    };
    if record.fingerprint != *fingerprint {
        return Decision::Mismatch;
    }
    match &record.state {
        State::Done(answer) => Decision::Replay(answer),
        State::Leased { until_ms, .. } if now_ms < *until_ms => {
            Decision::InProgress { retry_after_ms: until_ms - now_ms }
        }
        State::Leased { attempt, .. } => Decision::TakeOver { attempt: attempt.saturating_add(1) },
    }
}

/// Says whether an answer with this status of HTTP is remembered.
///
/// Not remembered are answers that say nothing about the request itself, or that the sender is expected to mend: 1xx, 400,
/// 401, 403, 408, 413, 415, 429 and 5xx. The key stays free after them.
#[must_use]
pub const fn is_stored(status: u16) -> bool {
    matches!(status, 200..=499) && !matches!(status, 400 | 401 | 403 | 408 | 413 | 415 | 429)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Fingerprint = Fingerprint::from_bytes([1; 32]);
    const TWO: Fingerprint = Fingerprint::from_bytes([2; 32]);

    #[test]
    fn decisions() {
        let done = Record { fingerprint: ONE, expires_ms: 1_000, state: State::Done("answer") };
        let leased = Record { state: State::Leased { attempt: 7, until_ms: 500 }, ..done.clone() };
        for (record, fingerprint, now_ms, expected) in [
            (None, ONE, 0, Decision::Execute),
            (Some(&done), ONE, 999, Decision::Replay(&"answer")),
            (Some(&done), ONE, 1_000, Decision::Execute),
            (Some(&done), TWO, 999, Decision::Mismatch),
            (Some(&done), TWO, 1_000, Decision::Execute),
            (Some(&leased), ONE, 0, Decision::InProgress { retry_after_ms: 500 }),
            (Some(&leased), ONE, 499, Decision::InProgress { retry_after_ms: 1 }),
            (Some(&leased), ONE, 500, Decision::TakeOver { attempt: 8 }),
            (Some(&leased), TWO, 499, Decision::Mismatch),
            (Some(&leased), TWO, 500, Decision::Mismatch),
            (Some(&leased), TWO, 1_000, Decision::Execute),
        ] {
            assert_eq!(decide(record, &fingerprint, now_ms), expected, "{record:?} at {now_ms}");
        }
    }

    #[test]
    fn statuses() {
        for status in 0..1_000 {
            let kept = [200, 201, 204, 302, 404, 409, 410, 412, 422, 451, 499].contains(&status);
            let not =
                [0, 100, 101, 199, 400, 401, 403, 408, 413, 415, 429, 500, 503, 599, 600].contains(&status);
            assert!(!kept || is_stored(status), "{status}");
            assert!(!not || !is_stored(status), "{status}");
        }
        assert_eq!((0..1_000).filter(|status| is_stored(*status)).count(), 300 - 7);
    }
}
