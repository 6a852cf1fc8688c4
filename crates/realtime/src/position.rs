//! Places in a log, and what can be had from there on.

use std::fmt;
use std::str::FromStr;

use driftline_model::Epoch;
use thiserror::Error;

/// A place in a tenant's log: behind the event with this id.
///
/// As text `<epoch>-<id>`: the epoch as eight hexadecimal digits, the id in decimal without leading zeros, such as
/// `00c0ffee-42`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Position {
    /// The life of the log in which the id counts.
    pub epoch: Epoch,
    /// The id of an event; 0 is before the first one.
    pub id: u64,
}

impl Position {
    /// The highest id, which every reader of JSON reads exactly.
    pub const ID_MAX: u64 = (1 << 53) - 1;
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.epoch, self.id)
    }
}

impl FromStr for Position {
    type Err = PositionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (epoch, id) = text.split_once('-').ok_or(PositionError::Epoch)?;
        let epoch = epoch.parse().map_err(|_| PositionError::Epoch)?;
        Ok(Self { epoch, id: id_of(id)? })
    }
}

/// The position after which a subscriber asks to go on.
///
/// As text a [`Position`], or a bare id, which counts in the log as it is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// The epoch that the subscriber knows; `None` takes the current one for granted.
    pub epoch: Option<Epoch>,
    /// The id of the last event that it has; 0 asks for everything that is retained.
    pub id: u64,
}

impl From<Position> for Asked {
    fn from(position: Position) -> Self {
        Self { epoch: Some(position.epoch), id: position.id }
    }
}

impl FromStr for Asked {
    type Err = PositionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.contains('-') {
            return text.parse().map(Position::into);
        }
        Ok(Self { epoch: None, id: id_of(text)? })
    }
}

fn id_of(text: &str) -> Result<u64, PositionError> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number || (text.len() > 1 && text.starts_with('0')) {
        return Err(PositionError::Id);
    }
    text.parse().ok().filter(|id| *id <= Position::ID_MAX).ok_or(PositionError::Id)
}

/// The text is no position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PositionError {
    /// What stands before the hyphen is no epoch.
    #[error("a position begins with an epoch of 8 lower-case hexadecimal digits and a hyphen")]
    Epoch,
    /// The id is no number, has leading zeros or is above [`Position::ID_MAX`].
    #[error("the id of an event is a number up to {}, without leading zeros", Position::ID_MAX)]
    Id,
}

/// What a tenant's log is at one moment, for one subscriber.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Log {
    /// The life of the log.
    pub epoch: Epoch,
    /// The id of its last event; 0 when there was none yet.
    pub head: u64,
    /// The highest id that was trimmed in a topic that the subscriber may see; 0 when there is none.
    pub floor: u64,
}

/// What a subscriber gets that asks for the events behind its position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovery {
    /// Every event that it missed is there: what is read behind `from` has no gap.
    Complete {
        /// The id behind which the log is read.
        from: u64,
    },
    /// Something is missing, and a snapshot has to make up for it; what is read behind `from` has no gap.
    Incomplete {
        /// Why something is missing.
        reason: Incomplete,
        /// The id behind which the log is read.
        from: u64,
    },
}

/// Why a subscriber does not get everything that it missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Incomplete {
    /// The position counts in another life of the log.
    EpochChanged,
    /// An event behind the position was trimmed.
    Trimmed,
    /// The position is behind the last event, which no honest reader of this log can have.
    Ahead,
    /// There are more events than one recovery may read.
    Limit,
    /// The subscriber may not see a topic any more.
    Forbidden,
}

impl Incomplete {
    /// Returns the reason as it is named outside of the program.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::EpochChanged => "epoch_changed",
            Self::Trimmed => "trimmed",
            Self::Ahead => "ahead",
            Self::Limit => "limit",
            Self::Forbidden => "forbidden",
        }
    }
}

/// Says whether everything behind the position can be had, and from where the log is read.
///
/// | the position | answer | read behind |
/// |---|---|---|
/// | counts in another epoch | [`Incomplete::EpochChanged`] | the floor |
/// | lies behind the head | [`Incomplete::Ahead`] | the head |
/// | is 0 | complete: who asks for everything that is retained gets it | 0 |
/// | lies before the floor | [`Incomplete::Trimmed`] | the floor |
/// | is any other | complete | the position |
///
/// What is missing after [`Incomplete::Trimmed`] lies between the position and `from`, both ends: behind the first, up to
/// the second. An event in there that another topic still retains is not read either, so that what is told is exact.
///
/// Who asks for everything gets, of what lies before the floor, whatever is retained when it is read; behind the floor there
/// is no gap for it either.
///
/// [`Incomplete::Limit`] and [`Incomplete::Forbidden`] are found by whoever reads the log and knows the rights.
///
/// The answer holds for the log as it was looked at. Whoever reads it in several steps asks [`recover_page`] at each.
#[must_use]
pub fn recover(asked: &Asked, log: &Log) -> Recovery {
    let Log { epoch, head, floor } = *log;
    if asked.epoch.is_some_and(|asked| asked != epoch) {
        return Recovery::Incomplete { reason: Incomplete::EpochChanged, from: floor };
    }
    if asked.id > head {
        return Recovery::Incomplete { reason: Incomplete::Ahead, from: head };
    }
    if asked.id != 0 && asked.id < floor {
        return Recovery::Incomplete { reason: Incomplete::Trimmed, from: floor };
    }
    Recovery::Complete { from: asked.id }
}

/// Says whether a recovery that began with `begun` can go on behind `position`, now that the log is `log`.
///
/// Between two pages the log may be trimmed, so that the second begins behind a hole. `log` is looked at together with the
/// page: in one transaction, or else its head before the page is read and its floor after that. What lies before
/// the floor of the beginning is no hole: either the position is behind it, or everything that is retained was asked for.
#[must_use]
pub fn recover_page(position: u64, begun: &Log, log: &Log) -> Recovery {
    let asked = Asked { epoch: Some(begun.epoch), id: position };
    if begun.epoch == log.epoch && log.floor <= begun.floor && position <= log.head {
        return Recovery::Complete { from: position };
    }
    match recover(&asked, log) {
        Recovery::Complete { from: 0 } if log.floor > 0 => {
            Recovery::Incomplete { reason: Incomplete::Trimmed, from: log.floor }
        }
        answer => answer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EPOCH: Epoch = Epoch::new(0x00c0_ffee);

    #[test]
    fn positions_round_trip_and_refuse_other_text() {
        for id in [0, 1, 42, Position::ID_MAX] {
            let position = Position { epoch: EPOCH, id };
            assert_eq!(position.to_string(), format!("00c0ffee-{id}"));
            assert_eq!(position.to_string().parse(), Ok(position));
            assert_eq!(position.to_string().parse(), Ok(Asked::from(position)));
            assert_eq!(id.to_string().parse(), Ok(Asked { epoch: None, id }));
        }
        for (text, error) in [
            ("00c0ffee", PositionError::Epoch),
            ("-1", PositionError::Epoch),
            ("c0ffee-1", PositionError::Epoch),
            ("00C0FFEE-1", PositionError::Epoch),
            ("00c0ffee-", PositionError::Id),
            ("00c0ffee--1", PositionError::Id),
            ("00c0ffee-+1", PositionError::Id),
            ("00c0ffee-01", PositionError::Id),
            ("00c0ffee-1 ", PositionError::Id),
            ("00c0ffee-1-2", PositionError::Id),
            ("00c0ffee-9007199254740992", PositionError::Id),
            ("00c0ffee-99999999999999999999999", PositionError::Id),
        ] {
            assert_eq!(text.parse::<Position>(), Err(error), "{text}");
        }
        for text in ["", "x", "00c0ffee", "9007199254740992", "\u{0661}"] {
            assert_eq!(text.parse::<Asked>(), Err(PositionError::Id), "{text}");
        }
    }

    #[test]
    fn recovery_at_every_edge() {
        let log = Log { epoch: EPOCH, head: 100, floor: 40 };
        let complete = |from| Recovery::Complete { from };
        let incomplete = |reason, from| Recovery::Incomplete { reason, from };
        for (id, expected) in [
            (0, complete(0)),
            (1, incomplete(Incomplete::Trimmed, 40)),
            (39, incomplete(Incomplete::Trimmed, 40)),
            (40, complete(40)),
            (99, complete(99)),
            (100, complete(100)),
            (101, incomplete(Incomplete::Ahead, 100)),
            (u64::MAX, incomplete(Incomplete::Ahead, 100)),
        ] {
            assert_eq!(recover(&Asked { epoch: None, id }, &log), expected, "{id}");
            assert_eq!(recover(&Asked { epoch: Some(EPOCH), id }, &log), expected, "{id}");
            let old = Asked { epoch: Some(Epoch::new(1)), id };
            assert_eq!(recover(&old, &log), incomplete(Incomplete::EpochChanged, 40), "{id}");
        }
        let empty = Log { epoch: EPOCH, head: 0, floor: 0 };
        assert_eq!(recover(&Asked { epoch: None, id: 0 }, &empty), complete(0));
        assert_eq!(recover(&Asked { epoch: None, id: 1 }, &empty), incomplete(Incomplete::Ahead, 0));
    }

    #[test]
    fn a_page_notices_what_was_trimmed_since_the_beginning() {
        let begun = Log { epoch: EPOCH, head: 100, floor: 40 };
        let complete = |from| Recovery::Complete { from };
        let incomplete = |reason, from| Recovery::Incomplete { reason, from };
        for (position, log, expected) in [
            (0, begun, complete(0)),
            (10, begun, complete(10)),
            (40, Log { head: 120, ..begun }, complete(40)),
            (60, Log { floor: 60, ..begun }, complete(60)),
            (59, Log { floor: 60, ..begun }, incomplete(Incomplete::Trimmed, 60)),
            (10, Log { floor: 41, ..begun }, incomplete(Incomplete::Trimmed, 41)),
            (0, Log { floor: 41, ..begun }, incomplete(Incomplete::Trimmed, 41)),
            (50, Log { head: 49, ..begun }, incomplete(Incomplete::Ahead, 49)),
            (50, Log { epoch: Epoch::new(1), ..begun }, incomplete(Incomplete::EpochChanged, 40)),
            (0, Log { epoch: Epoch::new(1), ..begun }, incomplete(Incomplete::EpochChanged, 40)),
        ] {
            assert_eq!(recover_page(position, &begun, &log), expected, "{position} {log:?}");
        }
    }

    #[test]
    fn reasons_have_names() {
        let reasons = [
            (Incomplete::EpochChanged, "epoch_changed"),
            (Incomplete::Trimmed, "trimmed"),
            (Incomplete::Ahead, "ahead"),
            (Incomplete::Limit, "limit"),
            (Incomplete::Forbidden, "forbidden"),
        ];
        for (reason, name) in reasons {
            assert_eq!(reason.as_str(), name);
        }
    }
}
