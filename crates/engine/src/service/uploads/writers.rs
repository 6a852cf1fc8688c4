//! Who receives and writes on this node.
//!
//! A right to write may end while its holder's last bytes are still on their way to the disk: of a process that stood
//! still, or whose database was away. Whoever comes to the same place on this node waits for them, and so does whoever
//! finalizes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use driftline_model::TenantNo;
use driftline_uploads::UploadId;
use futures_channel::oneshot;

use crate::uploads::LeaseSlot;

/// Whoever receives bodies on this node.
#[derive(Default)]
pub(super) struct Writers(Mutex<Here>);

#[derive(Default)]
struct Here {
    /// Who writes an upload. The places of one are few.
    writing: HashMap<UploadId, Vec<Writer>>,
    /// Bodies of a user that are being received.
    bodies: HashMap<(TenantNo, Box<str>), u64>,
}

struct Writer {
    slot: LeaseSlot,
    holder: u64,
    /// Tells it that somebody else wants the place.
    wake: Option<oneshot::Sender<()>>,
}

/// Why nobody may write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    /// Somebody else's bytes are still on their way there.
    Busy,
    /// The user sends as many bodies as may be.
    Full,
}

/// A body that is being received. It is dropped when none of its bytes is on its way any more.
pub(super) struct Receiving {
    writers: Arc<Writers>,
    user: (TenantNo, Box<str>),
    place: Option<(UploadId, LeaseSlot, u64)>,
}

impl Writers {
    fn here(&self) -> MutexGuard<'_, Here> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to receive a body of a user who may send so many, and to write it, if it is written: at a place of an upload,
    /// by a holder of the right to.
    ///
    /// Gives, for one who writes, what ends when somebody else wants the place.
    pub(super) fn enter(
        self: &Arc<Self>,
        user: (TenantNo, &str),
        bodies_max: u64,
        place: Option<(UploadId, LeaseSlot, u64)>,
    ) -> Result<(Receiving, oneshot::Receiver<()>), Kept> {
        let mut here = self.here();
        let user = (user.0, Box::from(user.1));
        let bodies = here.bodies.get(&user).copied().unwrap_or(0);
        if bodies >= bodies_max {
            return Err(Kept::Full);
        }
        let (wake, wanted) = oneshot::channel();
        if let Some((id, slot, holder)) = place {
            let writing = here.writing.entry(id).or_default();
            if writing.iter().any(|writer| writer.slot == slot) {
                return Err(Kept::Busy);
            }
            writing.push(Writer { slot, holder, wake: Some(wake) });
        }
        here.bodies.insert(user.clone(), bodies + 1);
        Ok((Receiving { writers: Arc::clone(self), user, place }, wanted))
    }

    /// Asks whoever writes at a place to let go of it.
    pub(super) fn ask(&self, id: UploadId, slot: LeaseSlot) {
        let mut here = self.here();
        let writing = here.writing.get_mut(&id).into_iter().flatten();
        for wake in writing.filter(|writer| writer.slot == slot).filter_map(|writer| writer.wake.take()) {
            // Who is gone by itself needs not be asked.
            let _ = wake.send(());
        }
    }

    /// Tells whether somebody writes at a place.
    pub(super) fn is_writing(&self, id: UploadId, slot: LeaseSlot) -> bool {
        let here = self.here();
        here.writing.get(&id).is_some_and(|writing| writing.iter().any(|writer| writer.slot == slot))
    }

    /// Tells whether anything of an upload is still on its way.
    pub(super) fn is_written(&self, id: UploadId) -> bool {
        self.here().writing.contains_key(&id)
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        let mut here = self.writers.here();
        if let Some(bodies) = here.bodies.get_mut(&self.user) {
            *bodies -= 1;
            if *bodies == 0 {
                here.bodies.remove(&self.user);
            }
        }
        let Some((id, slot, holder)) = self.place else { return };
        if let Some(writing) = here.writing.get_mut(&id) {
            writing.retain(|writer| (writer.slot, writer.holder) != (slot, holder));
            if writing.is_empty() {
                here.writing.remove(&id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: UploadId = UploadId::of([7; 16]);

    fn user() -> (TenantNo, &'static str) {
        (TenantNo::new(1), "ann")
    }

    #[test]
    fn one_writes_at_a_place_and_the_next_one_waits_for_its_end() {
        let writers = Arc::new(Writers::default());
        let place = |slot, holder| Some((ID, slot, holder));
        let (first, mut wanted) = writers.enter(user(), 9, place(LeaseSlot::Stream, 1)).unwrap();
        let (chunk, _) = writers.enter(user(), 9, place(LeaseSlot::Chunk(3), 2)).unwrap();
        assert_eq!(writers.enter(user(), 9, place(LeaseSlot::Stream, 3)).err(), Some(Kept::Busy));
        assert_eq!(wanted.try_recv(), Ok(None), "nobody asked");
        writers.ask(ID, LeaseSlot::Stream);
        assert_eq!(wanted.try_recv(), Ok(Some(())));
        drop(first);
        assert!(writers.is_written(ID), "the chunk is on its way");
        let (next, mut wanted) = writers.enter(user(), 9, place(LeaseSlot::Stream, 3)).unwrap();
        drop((chunk, next));
        assert!(!writers.is_written(ID));
        assert!(wanted.try_recv().is_err(), "it ends with the one who wrote");
        assert!(writers.here().bodies.is_empty() && writers.here().writing.is_empty());
    }

    #[test]
    fn a_user_sends_only_so_many_bodies_at_once() {
        let writers = Arc::new(Writers::default());
        let (first, _) = writers.enter(user(), 2, None).unwrap();
        let (_second, _) = writers.enter(user(), 2, Some((ID, LeaseSlot::Chunk(1), 1))).unwrap();
        assert_eq!(writers.enter(user(), 2, None).err(), Some(Kept::Full));
        assert!(writers.enter((user().0, "bob"), 2, None).is_ok(), "another user");
        drop(first);
        assert!(writers.enter(user(), 2, None).is_ok());
    }
}
