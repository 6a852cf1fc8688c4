//! What the stores that keep tables share about a commit group.

use std::collections::HashMap;

use driftline_conflict::DeviceOrder;
use driftline_engine::{Answered, Planned, Submission};
use driftline_model::{DeviceKey, DeviceNo};
use driftline_protocol::{ItemClass, ItemCode};

/// A commit group holds at most this many batches and bytes.
pub(crate) const GROUP_BATCHES: usize = 64;
pub(crate) const GROUP_BYTES: usize = 4 << 20;

/// Bytes of batches that may wait for a writer.
pub(crate) const QUEUED_BYTES_MAX: usize = 256 << 20;

/// How answers that came before are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lookup {
    /// Only where an item's number is not new; a name that came under another number fails on its key.
    Likely,
    /// For every item.
    Thorough,
}

/// The names of devices, for the order of equal clocks.
#[derive(Default)]
pub(crate) struct DeviceNames(pub(crate) HashMap<DeviceNo, DeviceKey>);

impl DeviceOrder for DeviceNames {
    fn bytes(&self, device: DeviceNo) -> &[u8] {
        self.0.get(&device).map_or(&[], |key| key.as_str().as_bytes())
    }
}

/// Whether a change with a name got an answer that is not written: only the key of a written one shows that its name
/// never came before. Samples are known by their ids, and an answer of before needs no proof.
pub(crate) fn unproven(group: &[Submission], planned: &Planned) -> bool {
    let answered = group.iter().zip(&planned.receipts);
    answered.filter(|(_, receipt)| receipt.answered == Answered::Applied).any(|(submission, receipt)| {
        let results = submission.entries.iter().zip(&receipt.results);
        results.filter(|(entry, _)| entry.is_record()).any(|(entry, result)| {
            let fails_group = entry.group.is_some() && result.code.class() != ItemClass::Done;
            let written = result.code.is_remembered() && !fails_group;
            entry.op_id.is_some() && !written && !result.duplicate && result.code != ItemCode::EpochChanged
        })
    })
}
