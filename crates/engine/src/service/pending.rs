//! Events that wait to be published: devices that came and went, and alerts.

use std::collections::VecDeque;

use driftline_model::TenantNo;

use crate::events::EventDraft;

/// Drafts that are published in one commit.
const BATCH_MAX: usize = 256;

/// Drafts that wait at once; of more the oldest go.
const PENDING_MAX: usize = 10_000;

/// Drafts that wait to be published, of tenants by their numbers.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// How often numbers were voided when the first of them came.
    numbering: u64,
    drafts: VecDeque<(TenantNo, EventDraft)>,
}

/// Drafts of one tenant on their way into the log.
#[derive(Debug)]
pub(super) struct Batch {
    numbering: u64,
    pub(super) tenant: TenantNo,
    pub(super) drafts: Vec<EventDraft>,
}

impl Pending {
    /// Forgets the drafts if numbers were voided since the first of them came: they would be told to others.
    pub(super) fn look_for_voided(&mut self, numbering: u64) {
        if self.numbering != numbering {
            *self = Self { numbering, drafts: VecDeque::new() };
        }
    }

    /// Has a draft wait behind the others.
    pub(super) fn put(&mut self, tenant: TenantNo, draft: EventDraft) {
        if self.drafts.len() >= PENDING_MAX {
            self.drafts.pop_front();
        }
        self.drafts.push_back((tenant, draft));
    }

    /// Takes the first drafts that wait and are of one tenant.
    pub(super) fn take(&mut self) -> Option<Batch> {
        let (tenant, first) = self.drafts.pop_front()?;
        let mut drafts = vec![first];
        while drafts.len() < BATCH_MAX && self.drafts.front().is_some_and(|(of, _)| *of == tenant) {
            drafts.extend(self.drafts.pop_front().map(|(_, draft)| draft));
        }
        Some(Batch { numbering: self.numbering, tenant, drafts })
    }

    /// Has drafts wait again, before the others, unless numbers were voided meanwhile.
    pub(super) fn give_back(&mut self, batch: Batch) {
        if batch.numbering == self.numbering {
            for draft in batch.drafts.into_iter().rev() {
                self.drafts.push_front((batch.tenant, draft));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft(at_ms: u64) -> EventDraft {
        EventDraft::new("device_connected", vec!["device_status".into()], "{}".into(), at_ms)
    }

    fn times(batch: Option<&Batch>) -> Vec<u64> {
        batch.into_iter().flat_map(|batch| &batch.drafts).map(|draft| draft.at_ms).collect()
    }

    #[test]
    fn of_too_many_the_oldest_go_and_a_commit_has_so_many() {
        let mut pending = Pending::default();
        for at_ms in 0..=PENDING_MAX as u64 {
            pending.put(TenantNo::new(1), draft(at_ms));
        }
        assert_eq!(pending.drafts.len(), PENDING_MAX);
        let first = pending.take();
        assert_eq!(times(first.as_ref()), (1..=BATCH_MAX as u64).collect::<Vec<_>>());
    }

    #[test]
    fn what_was_not_taken_comes_first_again() {
        let mut pending = Pending::default();
        for (tenant, at_ms) in [(1, 1), (1, 2), (2, 3), (1, 4)] {
            pending.put(TenantNo::new(tenant), draft(at_ms));
        }
        let first = pending.take().expect("a batch");
        assert_eq!((first.tenant, times(Some(&first))), (TenantNo::new(1), vec![1, 2]));
        pending.give_back(first);
        let batches: Vec<Vec<u64>> =
            std::iter::from_fn(|| pending.take()).map(|batch| times(Some(&batch))).collect();
        assert_eq!(batches, [vec![1, 2], vec![3], vec![4]]);
    }

    #[test]
    fn voided_numbers_take_what_waits_and_what_is_on_its_way() {
        let mut pending = Pending::default();
        pending.put(TenantNo::new(1), draft(1));
        pending.put(TenantNo::new(2), draft(2));
        let on_its_way = pending.take().expect("a batch");
        pending.look_for_voided(0);
        assert_eq!(pending.drafts.len(), 1, "nothing was voided");
        pending.look_for_voided(1);
        pending.give_back(on_its_way);
        assert!(pending.take().is_none());
    }
}
