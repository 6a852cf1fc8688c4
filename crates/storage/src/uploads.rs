//! What becomes of uploads and of the rights to write them, the same in every store.

use std::collections::HashMap;

use driftline_engine::{
    Joining, Kept, LeaseKey, Leased, Renewed, StoreError, StreamReceipt, UploadCaps, UploadOnce,
    UploadOpened, UploadRow, UploadTurn,
};
use driftline_uploads::{State, UploadId};

use crate::once::{self, Met, meet_change};

/// Chunks by their places, with the names that the place of the bytes has for them.
pub(crate) type Tags = Vec<(u64, Option<Box<str>>)>;

/// What decides whether an upload may be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) state: State,
    pub(crate) received: u64,
    pub(crate) size: Option<u64>,
    pub(crate) reserved: u64,
    pub(crate) expires_ms: u64,
}

impl Standing {
    pub(crate) fn of(row: &UploadRow) -> Self {
        let upload = &row.upload;
        Self {
            state: upload.state,
            received: upload.received,
            size: upload.form.size(),
            reserved: row.reserved,
            expires_ms: upload.expires_ms,
        }
    }
}

/// Tells whether an upload counts among those that its user may have.
pub(crate) const fn is_live(state: State) -> bool {
    matches!(state, State::Open | State::Finalizing)
}

/// Tells whether somebody is to be told of an upload when it is done. Parts are told of with the whole.
pub(crate) fn is_to_be_told(row: &UploadRow) -> bool {
    row.upload.state == State::Done && row.joining != Joining::Part
}

/// Tells what opening an upload meets under its key; nothing: it is to be opened.
pub(crate) fn met(
    kept: Option<&once::Kept>,
    once: &UploadOnce,
    now_ms: u64,
) -> Result<Option<UploadOpened>, StoreError> {
    Ok(match meet_change(kept, &once.fingerprint, now_ms)? {
        Met::Free => None,
        Met::Before(bytes) => {
            let id = std::str::from_utf8(&bytes).ok().and_then(|text| text.parse().ok());
            Some(id.map_or(UploadOpened::Reused, UploadOpened::Before))
        }
        Met::Other => Some(UploadOpened::Reused),
    })
}

/// Makes what is kept under the key of an upload that was opened.
pub(crate) fn kept_of(once: &UploadOnce, id: UploadId, now_ms: u64) -> once::Kept {
    let expires_ms = now_ms.saturating_add(once.window_ms);
    once::Kept::of_change(once.fingerprint, expires_ms, id.to_string().as_bytes())
}

/// Tells why an upload is not opened: its user has `open` already, and its tenant's take `used` bytes.
pub(crate) fn refused(row: &UploadRow, caps: UploadCaps, open: u64, used: u64) -> Option<UploadOpened> {
    let left_bytes = caps.quota_bytes.saturating_sub(used);
    if is_live(row.upload.state) && open >= caps.open_max {
        Some(UploadOpened::TooMany)
    } else if row.reserved > left_bytes {
        Some(UploadOpened::NoRoom { left_bytes })
    } else {
        None
    }
}

/// What a receipt of a stream makes of its upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Streamed {
    pub(crate) size: Option<u64>,
    pub(crate) reserved: u64,
}

/// Tells how a stream goes on, if its tenant's quota has room for what it reserves beyond what it has.
pub(crate) fn go_on(standing: Option<&Standing>, receipt: &StreamReceipt) -> Result<Streamed, Kept> {
    let Some(standing) = standing else { return Err(Kept::NotOpen(None)) };
    if standing.state != State::Open {
        return Err(Kept::NotOpen(Some(standing.state)));
    }
    // A size that was settled stays: whoever settled another one has gone on elsewhere.
    let other = standing.size.is_some() && receipt.size.is_some() && receipt.size != standing.size;
    if standing.received != receipt.from || other {
        return Err(Kept::Overtaken);
    }
    let size = standing.size.or(receipt.size);
    let reserved = standing.reserved.max(receipt.to).max(size.unwrap_or(0));
    Ok(Streamed { size, reserved })
}

/// What a turn makes of an upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Turned {
    pub(crate) reserved: u64,
    /// Whether its chunks are of no use any more.
    pub(crate) forgets: bool,
}

/// Tells what a turn makes of an upload; nothing: it may not be made.
pub(crate) fn turned(standing: Option<&Standing>, turn: &UploadTurn) -> Option<Turned> {
    let standing = standing.filter(|standing| standing.state == turn.from)?;
    let whole = standing.size == Some(standing.received);
    let early = turn.overdue && turn.at_ms < standing.expires_ms;
    if !turn.from.may_become(turn.to) || (turn.whole && !whole) || early {
        return None;
    }
    Some(match turn.to {
        State::Cancelled | State::Expired => Turned { reserved: 0, forgets: true },
        State::Done => Turned { reserved: standing.size.unwrap_or(standing.reserved), forgets: false },
        State::Open | State::Finalizing => Turned { reserved: standing.reserved, forgets: false },
    })
}

/// Leases below which it is not worth looking for ended ones.
const LEASES_MIN: usize = 1024;

/// The rights to write that one process gives.
#[derive(Debug, Clone)]
pub(crate) struct Leases {
    held: HashMap<LeaseKey, Lease>,
    /// How many there may be before those that ended are removed.
    sweep_at: usize,
}

#[derive(Debug, Clone, Copy)]
struct Lease {
    holder: u64,
    until_ms: u64,
    wanted: bool,
}

impl Lease {
    /// Tells whether it is a holder's at a time.
    const fn is_of(&self, holder: u64, now_ms: u64) -> bool {
        self.holder == holder && now_ms < self.until_ms
    }
}

impl Default for Leases {
    fn default() -> Self {
        Self { held: HashMap::new(), sweep_at: LEASES_MIN }
    }
}

impl Leases {
    pub(crate) fn lease(
        &mut self,
        key: LeaseKey,
        holder: u64,
        (now_ms, until_ms): (u64, u64),
        evict: bool,
    ) -> Leased {
        let held = self.held.get_mut(&key).filter(|held| now_ms < held.until_ms);
        match held {
            Some(held) if held.holder == holder => held.until_ms = until_ms,
            Some(held) => {
                held.wanted |= evict;
                return Leased::Busy { until_ms: held.until_ms };
            }
            None => {
                self.make_room(now_ms);
                self.held.insert(key, Lease { holder, until_ms, wanted: false });
            }
        }
        Leased::Held
    }

    pub(crate) fn renew(&mut self, key: LeaseKey, holder: u64, (now_ms, until_ms): (u64, u64)) -> Renewed {
        match self.held.get_mut(&key).filter(|held| held.is_of(holder, now_ms)) {
            None => Renewed::Lost,
            Some(held) => {
                held.until_ms = until_ms;
                if held.wanted { Renewed::Wanted } else { Renewed::Held }
            }
        }
    }

    pub(crate) fn release(&mut self, key: LeaseKey, holder: u64) {
        if self.held.get(&key).is_some_and(|held| held.holder == holder) {
            self.held.remove(&key);
        }
    }

    /// Removes what ended, once as much has come again as was left the last time.
    fn make_room(&mut self, now_ms: u64) {
        if self.held.len() >= self.sweep_at {
            self.held.retain(|_, held| now_ms < held.until_ms);
            self.sweep_at = (self.held.len() * 2).max(LEASES_MIN);
        }
    }
}

#[cfg(test)]
mod tests {
    use driftline_engine::LeaseSlot;

    use super::*;

    fn key(chunk: u64) -> LeaseKey {
        LeaseKey { id: UploadId::of([7; 16]), slot: LeaseSlot::Chunk(chunk) }
    }

    #[test]
    fn leases_that_ended_take_no_room() {
        let mut leases = Leases::default();
        for at in 0..100_000 {
            assert_eq!(leases.lease(key(at), 1, (at, at + 10), false), Leased::Held);
        }
        assert!(leases.held.len() <= LEASES_MIN, "{}", leases.held.len());
        assert_eq!(leases.renew(key(99_999), 1, (99_999, 100_100)), Renewed::Held);
        // Those that are held stay, however many there are.
        let mut leases = Leases::default();
        for at in 0..10_000 {
            leases.lease(key(at), 1, (0, 10), false);
        }
        assert!((0..10_000).all(|at| leases.renew(key(at), 1, (9, 20)) == Renewed::Held));
    }

    #[test]
    fn a_size_is_reserved_when_it_is_settled() {
        let standing = Standing { state: State::Open, received: 3, size: None, reserved: 3, expires_ms: 100 };
        let receipt = StreamReceipt {
            id: UploadId::of([0; 16]),
            from: 3,
            to: 5,
            size: None,
            running: None,
            at_ms: 0,
            expires_ms: 0,
            quota_bytes: 0,
        };
        let on = |size, receipt_size| {
            let receipt = StreamReceipt { size: receipt_size, ..receipt.clone() };
            let reserved = if size == Some(9) { 9 } else { 3 };
            go_on(Some(&Standing { size, reserved, ..standing }), &receipt)
        };
        assert_eq!(on(None, None), Ok(Streamed { size: None, reserved: 5 }));
        assert_eq!(on(None, Some(9)), Ok(Streamed { size: Some(9), reserved: 9 }));
        assert_eq!(on(Some(9), None), Ok(Streamed { size: Some(9), reserved: 9 }));
        assert_eq!(on(Some(9), Some(9)), Ok(Streamed { size: Some(9), reserved: 9 }));
        assert_eq!(on(Some(9), Some(8)), Err(Kept::Overtaken));
    }
}
