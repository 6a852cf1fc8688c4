//! What becomes of uploads and of the rights to write them, the same in every store.

use std::collections::{BTreeMap, HashMap, HashSet};

use driftline_engine::{
    Joining, Kept, LeaseKey, Leased, Renewed, StoreError, StreamReceipt, UploadCaps, UploadOnce,
    UploadOpened, UploadRow, UploadTurn,
};
use driftline_uploads::{Form, State, UploadId};

use crate::once::{self, Met, meet_change};

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

/// Tells whether an upload is to be finalized: that was begun, or nobody will ask for it.
pub(crate) fn is_to_be_finalized(row: &UploadRow) -> bool {
    let is_stream = matches!(row.upload.form, Form::Stream { .. });
    match row.upload.state {
        State::Finalizing => true,
        State::Open => is_stream && row.upload.is_whole() && row.joining != Joining::Part,
        _ => false,
    }
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

/// Tells why a chunk is not taken of somebody who may not have the right to it. What is said of every receipt is said in
/// one order: that the upload is not open, that somebody else was there before, that the right is lost, that there is no
/// room.
pub(crate) fn chunk_refused(state: Option<State>, is_there: bool) -> Kept {
    match state {
        Some(State::Open) if is_there => Kept::Overtaken,
        Some(State::Open) => Kept::Lost,
        other => Kept::NotOpen(other),
    }
}

/// What a receipt of a stream makes of its upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Streamed {
    pub(crate) size: Option<u64>,
    pub(crate) reserved: u64,
}

/// Tells how a stream goes on, if its tenant's quota has room for what it reserves beyond what it has. `holds` tells
/// whether whoever wrote has the right to it; the order of what is refused is that of [`chunk_refused`].
pub(crate) fn go_on(
    standing: Option<&Standing>,
    receipt: &StreamReceipt,
    holds: impl FnOnce() -> bool,
) -> Result<Streamed, Kept> {
    let Some(standing) = standing else { return Err(Kept::NotOpen(None)) };
    if standing.state != State::Open {
        return Err(Kept::NotOpen(Some(standing.state)));
    }
    // A size that was settled stays: whoever settled another one has gone on elsewhere.
    let other = standing.size.is_some() && receipt.size.is_some() && receipt.size != standing.size;
    if standing.received != receipt.from || other {
        return Err(Kept::Overtaken);
    }
    if !holds() {
        return Err(Kept::Lost);
    }
    let size = standing.size.or(receipt.size);
    // What was reserved beyond the size is given back once that is settled.
    let reserved = size.unwrap_or(standing.reserved).max(receipt.to);
    Ok(Streamed { size, reserved })
}

/// Tells what an upload has reserved when it asks for so many bytes in all, if its tenant's quota has room; nothing: it
/// cannot have them.
pub(crate) fn reserved(standing: Option<&Standing>, bytes: u64) -> Option<u64> {
    let standing = standing.filter(|standing| standing.state == State::Open)?;
    match standing.size {
        // It has what it needs, and gets no more.
        Some(_) => (standing.reserved >= bytes).then_some(standing.reserved),
        None => Some(standing.reserved.max(bytes)),
    }
}

/// Tells what an upload has reserved when it gives back what it does not need; nothing: it needs all of it.
pub(crate) fn released(standing: Option<&Standing>) -> Option<u64> {
    let standing = standing.filter(|standing| standing.state == State::Open && standing.size.is_none())?;
    (standing.received < standing.reserved).then_some(standing.received)
}

/// What a turn makes of an upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Turned {
    pub(crate) reserved: u64,
    /// Whether its chunks are of no use any more.
    pub(crate) forgets: bool,
    /// The bytes of chunks that are taken back, if there are such, and with them what is known of the file's hash.
    pub(crate) missing: Option<BTreeMap<u64, u64>>,
}

/// Tells what a turn makes of an upload; nothing: it may not be made. `holds` tells whether somebody has the right to
/// finalize.
pub(crate) fn turned(
    standing: Option<&Standing>,
    turn: &UploadTurn,
    holds: impl FnOnce(u64) -> bool,
) -> Option<Turned> {
    let standing = standing.filter(|standing| standing.state == turn.from)?;
    let whole = standing.size == Some(standing.received);
    let early = turn.overdue && turn.at_ms < standing.expires_ms;
    if !turn.from.may_become(turn.to) || (turn.whole && !whole) || early || !turn.holder.is_none_or(holds) {
        return None;
    }
    let reserved = match turn.to {
        State::Cancelled | State::Expired => 0,
        State::Done => standing.size.unwrap_or(standing.reserved),
        State::Open | State::Finalizing => standing.reserved,
    };
    let is_back = turn.to == State::Open && !turn.missing.is_empty();
    let missing = is_back.then(|| turn.missing.iter().copied().collect());
    Some(Turned { reserved, forgets: !is_live(turn.to), missing })
}

/// Leases below which it is not worth looking for ended ones.
const LEASES_MIN: usize = 1024;

/// The rights to write that one process gives.
///
/// One that ended is its holder's until somebody takes it, or until it is forgotten: long after, or when there are many.
/// Then what the holder wrote is refused, which is safe; whoever comes next is not told that somebody was there.
#[derive(Debug, Clone)]
pub(crate) struct Leases {
    held: HashMap<LeaseKey, Lease>,
    /// Those by which something is being committed. Nobody takes one of them over: he would read what was before the
    /// commit, and write where bytes are about to be acknowledged.
    settling: HashSet<LeaseKey>,
    /// How many there may be before those that ended are removed.
    sweep_at: usize,
}

/// Whose a right is that was given back and whose last bytes may still come. Those who hold one are named by 63 bits.
pub(crate) const NOBODY: u64 = u64::MAX;

/// How long before its time a right ends that was given back, in milliseconds: longer than any is held, and short beside the
/// day for which rights that ended are remembered.
pub(crate) const GIVEN_BACK_MS: u64 = 3_600_000;

#[derive(Debug, Clone, Copy)]
struct Lease {
    holder: u64,
    until_ms: u64,
    wanted: bool,
    /// Whether somebody else had it when it ended.
    taken: bool,
}

impl Lease {
    /// Tells whether it is a holder's at a time.
    const fn is_of(&self, holder: u64, now_ms: u64) -> bool {
        self.holder == holder && now_ms < self.until_ms
    }
}

impl Default for Leases {
    fn default() -> Self {
        Self { held: HashMap::new(), settling: HashSet::new(), sweep_at: LEASES_MIN }
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
        let settling = self.settling.contains(&key) && !self.holds(key, holder);
        let held = self.held.get_mut(&key).filter(|held| settling || now_ms < held.until_ms);
        match held {
            // The commit will not take long.
            None if settling => Leased::Busy { until_ms: now_ms + 1 },
            Some(held) if settling && held.until_ms <= now_ms => Leased::Busy { until_ms: now_ms + 1 },
            Some(held) if held.holder == holder => {
                held.until_ms = until_ms;
                if held.taken { Leased::TakenOver } else { Leased::Held }
            }
            Some(held) => {
                held.wanted |= evict;
                Leased::Busy { until_ms: held.until_ms }
            }
            None => {
                let taken = self.held.get(&key).is_some_and(|ended| ended.holder != holder);
                self.make_room(now_ms);
                self.held.insert(key, Lease { holder, until_ms, wanted: false, taken });
                if taken { Leased::TakenOver } else { Leased::Held }
            }
        }
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

    /// Gives a right back. One that was taken over stays, ended and nobody's.
    pub(crate) fn release(&mut self, key: LeaseKey, holder: u64) {
        let Some(held) = self.held.get_mut(&key).filter(|held| held.holder == holder) else { return };
        if held.taken {
            *held = Lease {
                holder: NOBODY,
                until_ms: held.until_ms.saturating_sub(GIVEN_BACK_MS),
                wanted: false,
                taken: true,
            };
        } else {
            self.held.remove(&key);
        }
    }

    /// Tells whether a right is somebody's: nobody took it, and it was not given back.
    pub(crate) fn holds(&self, key: LeaseKey, holder: u64) -> bool {
        self.held.get(&key).is_some_and(|held| held.holder == holder)
    }

    /// Keeps everybody else from a right until [`Leases::settled`], if it is somebody's; tells whether it is.
    pub(crate) fn settle(&mut self, key: LeaseKey, holder: u64) -> bool {
        let holds = self.holds(key, holder);
        if holds {
            self.settling.insert(key);
        }
        holds
    }

    /// Ends what [`Leases::settle`] began.
    pub(crate) fn settled(&mut self, key: LeaseKey) {
        self.settling.remove(&key);
    }

    /// Forgets what ended before a time.
    pub(crate) fn forget(&mut self, before_ms: u64) {
        self.held.retain(|_, held| before_ms <= held.until_ms);
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
            holder: 0,
            at_ms: 0,
            expires_ms: 0,
            quota_bytes: 0,
        };
        let on = |size, reserved, receipt_size| {
            let receipt = StreamReceipt { size: receipt_size, ..receipt.clone() };
            go_on(Some(&Standing { size, reserved, ..standing }), &receipt, || true)
        };
        assert_eq!(on(None, 3, None), Ok(Streamed { size: None, reserved: 5 }));
        assert_eq!(on(None, 3, Some(9)), Ok(Streamed { size: Some(9), reserved: 9 }));
        assert_eq!(on(Some(9), 9, None), Ok(Streamed { size: Some(9), reserved: 9 }));
        assert_eq!(on(Some(9), 9, Some(9)), Ok(Streamed { size: Some(9), reserved: 9 }));
        assert_eq!(on(Some(9), 9, Some(8)), Err(Kept::Overtaken));
        // What was reserved ahead stays until the size is settled.
        assert_eq!(on(None, 20, None), Ok(Streamed { size: None, reserved: 20 }));
        assert_eq!(on(None, 20, Some(9)), Ok(Streamed { size: Some(9), reserved: 9 }));
    }

    #[test]
    fn what_is_refused_has_an_order() {
        let standing = Standing { state: State::Open, received: 3, size: None, reserved: 3, expires_ms: 100 };
        let receipt = StreamReceipt {
            id: UploadId::of([0; 16]),
            from: 3,
            to: 5,
            size: None,
            running: None,
            holder: 0,
            at_ms: 0,
            expires_ms: 0,
            quota_bytes: 0,
        };
        let on = |state, from| {
            let receipt = StreamReceipt { from, ..receipt.clone() };
            go_on(Some(&Standing { state, ..standing }), &receipt, || false)
        };
        assert_eq!(on(State::Done, 2), Err(Kept::NotOpen(Some(State::Done))));
        assert_eq!((on(State::Open, 2), on(State::Open, 3)), (Err(Kept::Overtaken), Err(Kept::Lost)));
        assert_eq!(go_on(None, &receipt, || false), Err(Kept::NotOpen(None)));
        let of = |state, is_there| chunk_refused(state, is_there);
        for is_there in [false, true] {
            assert_eq!(of(None, is_there), Kept::NotOpen(None));
            assert_eq!(of(Some(State::Done), is_there), Kept::NotOpen(Some(State::Done)));
        }
        assert_eq!(
            (of(Some(State::Open), true), of(Some(State::Open), false)),
            (Kept::Overtaken, Kept::Lost)
        );
    }

    #[test]
    fn bytes_are_reserved_while_the_size_is_not_known() {
        let standing = Standing { state: State::Open, received: 3, size: None, reserved: 5, expires_ms: 100 };
        let of = |standing: Standing, bytes| reserved(Some(&standing), bytes);
        assert_eq!((of(standing, 9), of(standing, 4), of(standing, 0)), (Some(9), Some(5), Some(5)));
        let sized = Standing { size: Some(5), ..standing };
        assert_eq!((of(sized, 5), of(sized, 6)), (Some(5), None));
        for state in State::ALL.into_iter().filter(|state| *state != State::Open) {
            assert_eq!(of(Standing { state, ..standing }, 4), None);
        }
        assert_eq!(reserved(None, 0), None);
    }

    #[test]
    fn a_turn_may_need_the_right_to_finalize() {
        let (id, reserved) = (UploadId::of([0; 16]), 5);
        let standing =
            Standing { state: State::Finalizing, received: 5, size: Some(5), reserved, expires_ms: 100 };
        let turn = UploadTurn {
            id,
            from: State::Finalizing,
            to: State::Open,
            whole: false,
            overdue: false,
            digest: None,
            fault: None,
            holder: None,
            missing: Vec::new(),
            at_ms: 0,
        };
        let plain = Turned { reserved, forgets: false, missing: None };
        let of = |turn: &UploadTurn| turned(Some(&standing), turn, |holder| holder == 1);
        assert_eq!(of(&turn), Some(plain.clone()));
        assert_eq!(of(&UploadTurn { holder: Some(1), ..turn.clone() }), Some(plain.clone()));
        assert_eq!(of(&UploadTurn { holder: Some(2), ..turn.clone() }), None);
        // Chunks are taken back by no other turn.
        let missing = vec![(2, 1), (0, 4), (2, 1)];
        let back = UploadTurn { missing, ..turn };
        let taken = Some(BTreeMap::from([(0, 4), (2, 1)]));
        assert_eq!(of(&back), Some(Turned { missing: taken, ..plain.clone() }));
        assert_eq!(
            of(&UploadTurn { to: State::Done, ..back.clone() }),
            Some(Turned { forgets: true, ..plain })
        );
        let cancelled = Turned { reserved: 0, forgets: true, missing: None };
        assert_eq!(of(&UploadTurn { to: State::Cancelled, ..back }), Some(cancelled));
    }

    #[test]
    fn nobody_takes_over_what_is_being_committed() {
        let (mut leases, one) = (Leases::default(), key(0));
        let take = |leases: &mut Leases, holder, now| leases.lease(one, holder, (now, now + 10), false);
        assert!(!leases.settle(one, 1), "it is nobody's");
        assert_eq!(take(&mut leases, 2, 0), Leased::Held);
        assert!(!leases.settle(one, 1) && leases.settle(one, 2));
        assert_eq!(take(&mut leases, 1, 5), Leased::Busy { until_ms: 10 });
        // Neither when it ended, nor when there are many, nor when it was given back.
        assert_eq!(take(&mut leases, 1, 10), Leased::Busy { until_ms: 11 });
        for other in 1..100_000 {
            leases.lease(key(other), 1, (10 + other, 20 + other), false);
        }
        assert!(!leases.holds(one, 2), "it was forgotten");
        assert_eq!(take(&mut leases, 1, 20), Leased::Busy { until_ms: 21 });
        leases.settled(one);
        assert_eq!(take(&mut leases, 1, 20), Leased::Held);
        assert!(leases.settle(one, 1));
        leases.release(one, 1);
        assert!(!leases.holds(one, 1) && !leases.settle(one, 1));
        assert_eq!(take(&mut leases, 2, 21), Leased::Busy { until_ms: 22 });
        leases.settled(one);
        assert_eq!(take(&mut leases, 2, 21), Leased::Held);
        // It is forgotten once it ended before a time.
        leases.forget(31);
        assert!(leases.holds(one, 2));
        leases.forget(32);
        assert!(!leases.holds(one, 2), "it ended long ago");
        assert_eq!(take(&mut leases, 2, 33), Leased::Held);
        // Its holder goes on with it.
        assert!(leases.settle(one, 2));
        assert_eq!((take(&mut leases, 2, 40), leases.renew(one, 2, (41, 60))), (Leased::Held, Renewed::Held));
    }
}
