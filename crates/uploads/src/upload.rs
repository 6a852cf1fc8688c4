//! One upload: what may happen to it now.

use thiserror::Error;

use crate::hash::Digest;
use crate::plan::Plan;

/// How the bytes of an upload come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// In chunks, in any order and several at a time.
    Chunks(Plan),
    /// As one stream, each part where the last one ended, as tus 1.0 has it.
    Stream {
        /// The file's bytes; none: the client will tell.
        size: Option<u64>,
    },
}

impl Form {
    /// Returns the file's bytes; nothing while the client has not told.
    #[must_use]
    pub const fn size(&self) -> Option<u64> {
        match self {
            Self::Chunks(plan) => Some(plan.size()),
            Self::Stream { size } => *size,
        }
    }
}

/// Where an upload stands.
///
/// ```text
/// open -> finalizing -> done
///   ^---------'  |
///   |            '-> cancelled (refused by verification)
///   '-> cancelled, expired
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Bytes may come.
    Open,
    /// All bytes are there and are being checked; none may come.
    Finalizing,
    /// It has become a file.
    Done,
    /// Somebody gave it up.
    Cancelled,
    /// Nobody finished it in time.
    Expired,
}

impl State {
    /// Every state.
    pub const ALL: [Self; 5] = [Self::Open, Self::Finalizing, Self::Done, Self::Cancelled, Self::Expired];

    /// Returns the state's name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Finalizing => "finalizing",
            Self::Done => "done",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
        }
    }

    /// Finds a state by its name.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }

    /// Tells whether an upload in this state may come into another one.
    #[must_use]
    pub const fn may_become(self, next: Self) -> bool {
        matches!(
            (self, next),
            (Self::Open, Self::Finalizing | Self::Cancelled | Self::Expired)
                | (Self::Finalizing, Self::Open | Self::Done | Self::Cancelled)
        )
    }

    /// Tells whether nothing will happen to the upload any more.
    #[must_use]
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Done | Self::Cancelled | Self::Expired)
    }
}

/// When an upload that nobody finishes goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expiry {
    /// So long after its last byte.
    Sliding {
        /// Milliseconds after the last byte.
        idle_ms: u64,
        /// Milliseconds after its opening, whatever comes.
        whole_ms: u64,
    },
    /// So long after its opening.
    Fixed {
        /// Milliseconds after the opening.
        whole_ms: u64,
    },
}

const HOUR_MS: u64 = 3_600_000;

/// The last millisecond of the year 9999. Later times have no date in RFC 3339.
const LAST_MS: u64 = 253_402_300_799_999;

/// Returns a time so long after another one; what would come after the year 9999 comes at its end.
fn later(than_ms: u64, by_ms: u64) -> u64 {
    than_ms.saturating_add(by_ms).min(LAST_MS)
}

impl Default for Expiry {
    /// 24 hours after the last byte, and 7 days after the opening.
    fn default() -> Self {
        Self::Sliding { idle_ms: 24 * HOUR_MS, whole_ms: 7 * 24 * HOUR_MS }
    }
}

impl Expiry {
    /// Returns when an upload goes whose last byte came at a time; all in Unix milliseconds. It is never later than the
    /// end of the year 9999.
    #[must_use]
    pub fn expires_ms(&self, opened_ms: u64, last_byte_ms: u64) -> u64 {
        match self {
            Self::Sliding { idle_ms, whole_ms } => {
                later(last_byte_ms, *idle_ms).min(later(opened_ms, *whole_ms))
            }
            Self::Fixed { whole_ms } => later(opened_ms, *whole_ms),
        }
    }

    /// Returns when an upload goes at the latest, in Unix milliseconds, and never later than the end of the year 9999.
    #[must_use]
    pub fn at_the_latest_ms(&self, opened_ms: u64) -> u64 {
        match self {
            Self::Sliding { whole_ms, .. } | Self::Fixed { whole_ms } => later(opened_ms, *whole_ms),
        }
    }
}

/// An upload as far as decisions need it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Upload {
    /// How its bytes come.
    pub form: Form,
    /// Where it stands.
    pub state: State,
    /// How many bytes are there; of a stream that is where it goes on.
    pub received: u64,
    /// When it was opened, in Unix milliseconds.
    pub opened_ms: u64,
    /// When it goes if nothing happens, in Unix milliseconds.
    pub expires_ms: u64,
}

/// Why something may not happen to an upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Refused {
    /// It is finished, given up or expired.
    #[error("the upload is {}", .0.as_str())]
    Gone(State),
    /// It is being finalized.
    #[error("the upload is being finalized")]
    Finalizing,
    /// There is no such chunk.
    #[error("the upload has {chunks} chunks")]
    NoSuchChunk {
        /// How many there are.
        chunks: u64,
    },
    /// The chunk is not as long as the plan says.
    #[error("the chunk has {wanted} bytes")]
    WrongLength {
        /// How long it is.
        wanted: u64,
    },
    /// The stream goes on elsewhere.
    #[error("the upload goes on at byte {offset}")]
    WrongOffset {
        /// Where.
        offset: u64,
    },
    /// More bytes would come than the file has.
    #[error("the file has {size} bytes")]
    TooLong {
        /// How many it has.
        size: u64,
    },
    /// Bytes are missing, or the client has not told how many there are.
    #[error("the upload is not complete")]
    Incomplete,
    /// The size was told before, or fewer than have come are told.
    #[error("the size of the file is settled")]
    SizeSettled,
    /// Its bytes come in another way.
    #[error("the bytes of this upload come in another form")]
    OtherForm,
}

/// What is to be done with a chunk that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meeting {
    /// It is new.
    New,
    /// It is there already, the same.
    Same,
    /// Another one is there.
    Other,
}

/// Compares a chunk that came with what is there. A chunk that was received is never written again.
#[must_use]
pub fn meet(known: Option<Digest>, came: Digest) -> Meeting {
    match known {
        None => Meeting::New,
        Some(known) if known == came => Meeting::Same,
        Some(_) => Meeting::Other,
    }
}

impl Upload {
    /// Opens an upload.
    #[must_use]
    pub fn open(form: Form, now_ms: u64, expiry: &Expiry) -> Self {
        let expires_ms = expiry.expires_ms(now_ms, now_ms);
        Self { form, state: State::Open, received: 0, opened_ms: now_ms, expires_ms }
    }

    /// Returns the state at a time: an open upload whose time is over is expired, whether or not that was written down.
    #[must_use]
    pub fn state_at(&self, now_ms: u64) -> State {
        if self.state == State::Open && now_ms >= self.expires_ms { State::Expired } else { self.state }
    }

    /// Checks that bytes may come.
    ///
    /// # Errors
    /// [`Refused::Gone`] and [`Refused::Finalizing`].
    pub fn require_open(&self, now_ms: u64) -> Result<(), Refused> {
        match self.state_at(now_ms) {
            State::Open => Ok(()),
            State::Finalizing => Err(Refused::Finalizing),
            gone => Err(Refused::Gone(gone)),
        }
    }

    /// Checks that a chunk may come; gives where it begins and how many bytes it has. `told_bytes` is how many the
    /// client says there are.
    ///
    /// # Errors
    /// [`Refused`] says why not.
    pub fn admit_chunk(
        &self,
        index: u64,
        told_bytes: Option<u64>,
        now_ms: u64,
    ) -> Result<(u64, u64), Refused> {
        let Form::Chunks(plan) = self.form else { return Err(Refused::OtherForm) };
        self.require_open(now_ms)?;
        let (at, bytes) = plan.chunk(index).ok_or(Refused::NoSuchChunk { chunks: plan.chunks() })?;
        match told_bytes {
            Some(told) if told != bytes => Err(Refused::WrongLength { wanted: bytes }),
            _ => Ok((at, bytes)),
        }
    }

    /// Checks that a stream may go on at an offset; gives how many bytes may come. `told_bytes` is how many the client
    /// says will.
    ///
    /// # Errors
    /// [`Refused`] says why not.
    pub fn admit_append(
        &self,
        offset: u64,
        told_bytes: Option<u64>,
        now_ms: u64,
    ) -> Result<Option<u64>, Refused> {
        let Form::Stream { size } = self.form else { return Err(Refused::OtherForm) };
        // A finished stream is at its end: a client that learns so late is told no more than that.
        if self.state_at(now_ms) != State::Done {
            self.require_open(now_ms)?;
        }
        if offset != self.received {
            return Err(Refused::WrongOffset { offset: self.received });
        }
        let Some(size) = size else { return Ok(None) };
        let left = size.saturating_sub(self.received);
        if told_bytes.is_some_and(|told| told > left) {
            Err(Refused::TooLong { size })
        } else {
            Ok(Some(left))
        }
    }

    /// Settles the size of a stream of which it was not told. It says nothing of the state: whoever appends asks
    /// [`Upload::admit_append`].
    ///
    /// # Errors
    /// [`Refused::SizeSettled`] when another one was told before, or more bytes have come; [`Refused::OtherForm`] of an
    /// upload in chunks.
    pub fn settle_size(&mut self, told: u64) -> Result<(), Refused> {
        match &mut self.form {
            Form::Chunks(_) => Err(Refused::OtherForm),
            Form::Stream { size: Some(size) } if *size == told => Ok(()),
            Form::Stream { size: size @ None } if told >= self.received => {
                *size = Some(told);
                Ok(())
            }
            Form::Stream { .. } => Err(Refused::SizeSettled),
        }
    }

    /// Tells whether every byte is there.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.form.size() == Some(self.received)
    }

    /// Begins to finalize: from now on no byte may come.
    ///
    /// # Errors
    /// [`Refused`] says why not; who finalizes already is told [`Refused::Finalizing`].
    pub fn begin(&mut self, now_ms: u64) -> Result<(), Refused> {
        self.require_open(now_ms)?;
        if !self.is_whole() {
            return Err(Refused::Incomplete);
        }
        self.state = State::Finalizing;
        Ok(())
    }

    /// Comes into another state, if that may be; tells whether it did.
    pub fn turn(&mut self, next: State) -> bool {
        let may = self.state.may_become(next);
        if may {
            self.state = next;
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use super::*;

    const NOW_MS: u64 = 1_000_000;

    fn chunks(size: u64) -> Upload {
        let plan = Plan::new(size, NonZeroU64::new(4).unwrap());
        Upload::open(Form::Chunks(plan), NOW_MS, &Expiry::default())
    }

    fn stream(size: Option<u64>) -> Upload {
        Upload::open(Form::Stream { size }, NOW_MS, &Expiry::default())
    }

    #[test]
    fn chunks_are_as_long_as_the_plan_says() {
        let upload = chunks(10);
        assert_eq!(upload.admit_chunk(0, Some(4), NOW_MS), Ok((0, 4)));
        assert_eq!(upload.admit_chunk(2, None, NOW_MS), Ok((8, 2)));
        assert_eq!(upload.admit_chunk(2, Some(4), NOW_MS), Err(Refused::WrongLength { wanted: 2 }));
        assert_eq!(upload.admit_chunk(3, Some(4), NOW_MS), Err(Refused::NoSuchChunk { chunks: 3 }));
        assert_eq!(upload.admit_append(0, None, NOW_MS), Err(Refused::OtherForm));
        assert_eq!(chunks(0).admit_chunk(0, None, NOW_MS), Err(Refused::NoSuchChunk { chunks: 0 }));
    }

    #[test]
    fn a_stream_goes_on_where_it_ended() {
        let mut upload = Upload { received: 3, ..stream(Some(10)) };
        assert_eq!(upload.admit_append(3, Some(7), NOW_MS), Ok(Some(7)));
        assert_eq!(upload.admit_append(3, Some(8), NOW_MS), Err(Refused::TooLong { size: 10 }));
        for offset in [0, 2, 4, u64::MAX] {
            assert_eq!(upload.admit_append(offset, None, NOW_MS), Err(Refused::WrongOffset { offset: 3 }));
        }
        assert_eq!(upload.settle_size(10), Ok(()));
        assert_eq!(upload.settle_size(11), Err(Refused::SizeSettled));
        upload.received = 10;
        assert!(upload.begin(NOW_MS).is_ok() && upload.turn(State::Done));
        assert_eq!(upload.admit_append(10, Some(0), NOW_MS), Ok(Some(0)), "nothing more, and no fault");
        upload.received = 11;
        assert_eq!(
            upload.admit_append(11, None, NOW_MS),
            Ok(Some(0)),
            "a row that says too much takes nothing"
        );
    }

    #[test]
    fn a_size_is_told_once_and_not_below_what_came() {
        let mut upload = Upload { received: 3, ..stream(None) };
        assert_eq!(upload.admit_append(3, Some(1 << 40), NOW_MS), Ok(None));
        assert_eq!(upload.begin(NOW_MS), Err(Refused::Incomplete));
        assert_eq!(upload.settle_size(2), Err(Refused::SizeSettled));
        assert_eq!(upload.settle_size(3), Ok(()));
        assert!(upload.is_whole() && upload.begin(NOW_MS).is_ok());
    }

    #[test]
    fn states_follow_each_other_one_way() {
        use State::{Cancelled, Done, Expired, Finalizing, Open};
        let ways = [(Open, Finalizing), (Open, Cancelled), (Open, Expired), (Finalizing, Open)];
        let ways = [&ways[..], &[(Finalizing, Done), (Finalizing, Cancelled)]].concat();
        for from in State::ALL {
            assert_eq!(State::from_text(from.as_str()), Some(from));
            for to in State::ALL {
                let mut upload = Upload { state: from, ..chunks(1) };
                assert_eq!(upload.turn(to), ways.contains(&(from, to)), "{from:?} to {to:?}");
                assert!(!(from.is_final() && from.may_become(to)));
            }
        }
        let mut upload = Upload { received: 1, ..chunks(1) };
        assert_eq!(upload.begin(NOW_MS), Ok(()));
        assert_eq!(upload.begin(NOW_MS), Err(Refused::Finalizing));
        assert_eq!(upload.admit_chunk(0, None, NOW_MS), Err(Refused::Finalizing));
    }

    #[test]
    fn time_runs_out_after_the_last_byte_or_after_the_opening() {
        let sliding = Expiry::Sliding { idle_ms: 10, whole_ms: 25 };
        assert_eq!([0, 9, 20].map(|last| sliding.expires_ms(0, last)), [10, 19, 25]);
        assert_eq!([0, 9].map(|last| Expiry::Fixed { whole_ms: 25 }.expires_ms(0, last)), [25, 25]);
        let upload = Upload::open(Form::Stream { size: None }, NOW_MS, &sliding);
        assert_eq!(upload.require_open(NOW_MS + 9), Ok(()));
        assert_eq!(upload.require_open(NOW_MS + 10), Err(Refused::Gone(State::Expired)));
        assert_eq!(Upload { state: State::Done, ..upload }.state_at(u64::MAX), State::Done);
    }

    #[test]
    fn no_time_is_after_the_year_9999() {
        let far = Expiry::Sliding { idle_ms: u64::MAX, whole_ms: u64::MAX };
        let table = [
            (far, 0),
            (far, u64::MAX),
            (Expiry::Fixed { whole_ms: u64::MAX }, NOW_MS),
            (Expiry::Fixed { whole_ms: 1 }, LAST_MS),
        ];
        for (expiry, opened) in table {
            let told = (expiry.expires_ms(opened, opened), expiry.at_the_latest_ms(opened));
            assert_eq!(told, (LAST_MS, LAST_MS), "{expiry:?} from {opened}");
        }
        let short = Expiry::Fixed { whole_ms: 1 };
        assert_eq!(short.expires_ms(LAST_MS - 2, 0), LAST_MS - 1, "the last ones are told as they are");
    }
}
