//! The merge of live events with the log.

/// Where one subscriber stands between the fan-out, which hands events on as they happen, and the log, which has them all.
///
/// Ids only, in constant memory: while the subscriber reads the log, what the fan-out hands on is let go by, because the
/// log has it too.
///
/// # What the caller keeps to
/// - The fan-out offers ids in ascending order; it may offer some again, and leaves out what the subscriber does not see.
///   Nothing that lies behind the start given to [`Follow::live`] and that the subscriber sees is left out.
/// - [`Follow::offer`] and [`Follow::read`] are called under one lock. Reading itself needs none: an event that is offered
///   between the read of the log and the call of [`Follow::read`] keeps the subscriber reading.
/// - Whoever hands an event on from the log does so before it calls [`Follow::read`], which may go live.
///
/// # Examples
/// ```
/// use driftline_realtime::{Follow, Offer};
///
/// let mut follow = Follow::live(10);
/// assert_eq!(follow.offer(11), Offer::Deliver);
/// assert_eq!(follow.offer(11), Offer::Seen);
///
/// // The client asks for a replay of what follows event 4: pages of the log, up to its head.
/// follow.read_from(4);
/// assert!(!follow.read_page(8));
/// assert_eq!(follow.offer(12), Offer::Missed);
/// assert!(!follow.read(11), "event 12 went by since the head was read");
/// assert!(follow.read(12));
/// assert_eq!(follow.offer(12), Offer::Seen);
/// assert_eq!(follow.offer(13), Offer::Deliver);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Follow {
    position: u64,
    source: Source,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Live,
    /// The log is being read; `known` is the highest id that it has to reach at least.
    Log {
        known: u64,
    },
}

/// What is to be done with an event that the fan-out offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offer {
    /// It is handed on to the subscriber.
    Deliver,
    /// The subscriber was past it already.
    Seen,
    /// It goes by: the subscriber will read it from the log.
    Missed,
}

impl Follow {
    /// Begins live: everything up to `at` is the past, and the fan-out offers everything behind it.
    ///
    /// A subscriber that comes back with a position begins so as well, at the head that is known when it joins the
    /// fan-out, and then reads the log by [`Follow::read_from`].
    #[must_use]
    pub const fn live(at: u64) -> Self {
        Self { position: at, source: Source::Live }
    }

    /// Returns the last id that was handed on, or that the log was read through.
    #[must_use]
    pub const fn position(&self) -> u64 {
        self.position
    }

    /// Tells whether offered events are handed on at once.
    #[must_use]
    pub const fn is_live(&self) -> bool {
        matches!(self.source, Source::Live)
    }

    /// Begins to read the log behind `from`, which may lie before the position (a replay) or behind it (a skip).
    ///
    /// What was handed on already is known to be in the log, so that a replay does not end before it.
    pub fn read_from(&mut self, from: u64) {
        let known = match self.source {
            Source::Live => self.position,
            Source::Log { known } => known.max(self.position),
        };
        *self = Self { position: from, source: Source::Log { known } };
    }

    /// Says what to do with an event of the fan-out.
    pub fn offer(&mut self, id: u64) -> Offer {
        match &mut self.source {
            Source::Log { known } => {
                *known = (*known).max(id);
                Offer::Missed
            }
            Source::Live if id <= self.position => Offer::Seen,
            Source::Live => {
                self.position = id;
                Offer::Deliver
            }
        }
    }

    /// Takes note that the log was read through this id: the head at that read, or the last id of a full page.
    ///
    /// Returns whether the subscriber is live from now on. It is not when an event is known behind `through`: then the
    /// caller reads on behind [`Follow::position`].
    pub fn read(&mut self, through: u64) -> bool {
        self.position = self.position.max(through);
        if let Source::Log { known } = self.source
            && known <= self.position
        {
            self.source = Source::Live;
        }
        self.is_live()
    }

    /// Takes note that a page which was cut short was read through this id, whatever is known of the events behind it.
    ///
    /// Returns whether the subscriber is live, which a page never makes it: the caller reads on behind
    /// [`Follow::position`].
    pub fn read_page(&mut self, through: u64) -> bool {
        self.position = self.position.max(through);
        self.is_live()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn live_hands_on_each_id_once_in_order() {
        let mut follow = Follow::live(5);
        let offers = [5, 6, 6, 9, 7, 9, 10].map(|id| follow.offer(id));
        assert_eq!(
            offers,
            [
                Offer::Seen,
                Offer::Deliver,
                Offer::Seen,
                Offer::Deliver,
                Offer::Seen,
                Offer::Seen,
                Offer::Deliver
            ]
        );
        assert_eq!((follow.position(), follow.is_live()), (10, true));
    }

    #[test]
    fn reading_lets_events_go_by_and_reads_up_to_them() {
        let mut follow = Follow::live(5);
        follow.read_from(2);
        assert_eq!((follow.position(), follow.is_live()), (2, false));
        assert_eq!(follow.offer(6), Offer::Missed);
        assert_eq!(follow.offer(7), Offer::Missed);
        assert!(!follow.read(6), "event 7 went by");
        assert_eq!((follow.position(), follow.is_live()), (6, false));
        assert!(follow.read(7));
        assert_eq!(follow.offer(7), Offer::Seen);
        assert_eq!(follow.offer(8), Offer::Deliver);
    }

    #[test]
    fn a_replay_does_not_end_before_what_was_handed_on() {
        let mut follow = Follow::live(0);
        assert_eq!(follow.offer(9), Offer::Deliver);
        follow.read_from(0);
        assert!(!follow.read(4), "a full page before the position of the start");
        assert!(!follow.read(8));
        follow.read_from(3);
        assert!(!follow.read(8), "a second replay knows it as well");
        assert!(follow.read(9));
    }

    #[test]
    fn a_full_page_never_goes_live() {
        let mut follow = Follow::live(3);
        follow.read_from(3);
        assert!(!follow.read_page(100));
        assert_eq!(follow.position(), 100);
        assert!(follow.read(200));
        assert!(follow.read_page(100), "live stays live");
        assert_eq!(follow.position(), 200);
    }

    #[test]
    fn a_quiet_log_is_caught_up_at_once() {
        let mut follow = Follow::live(0);
        follow.read_from(0);
        assert!(follow.read(0));
        assert_eq!(follow.offer(1), Offer::Deliver);
    }

    #[test]
    fn a_read_ahead_of_the_fan_out_is_not_doubled() {
        let mut follow = Follow::live(3);
        follow.read_from(1);
        assert!(follow.read(6), "the log is ahead of the fan-out");
        assert_eq!(
            [4, 5, 6, 7].map(|id| follow.offer(id)),
            [Offer::Seen, Offer::Seen, Offer::Seen, Offer::Deliver]
        );
    }

    #[test]
    fn it_is_small() {
        assert!(size_of::<Follow>() <= 24);
    }
}
