//! Events: numbered in the order of the log, once, and never backwards.

use std::sync::Arc;

use driftline_model::{Object, TenantNo};

use super::{EventWrite, Plan, TenantChanges};
use crate::events::{Announcing, Event, EventDraft, Published};

impl Plan<'_> {
    /// Gives a draft its number in the log, unless it is not kept, known already or late.
    pub(super) fn publish(&mut self, tenant: TenantNo, draft: &EventDraft) -> Published {
        let Some(head) = self.state.heads.get_mut(&tenant) else { return Published::default() };
        if !draft.durable {
            let event = Arc::new(draft.event(head.epoch, None));
            self.tell(tenant, event);
            return Published::default();
        }
        let dedupe = draft.dedupe_key.as_ref().map(|key| (tenant, key.clone()));
        if let Some(id) = dedupe.as_ref().and_then(|key| self.state.dedupe.get(key)) {
            return Published { id: Some(*id), duplicate: true, late: false };
        }
        if let Some((key, version)) = &draft.version {
            let key = (tenant, key.clone());
            if self.state.versions.get(&key).is_some_and(|known| known >= version) {
                return Published { late: true, ..Published::default() };
            }
            let writes = &mut self.out.writes.versions;
            match writes.iter_mut().find(|(known, _)| *known == key) {
                Some((_, known)) => *known = *version,
                None => writes.push((key.clone(), *version)),
            }
            self.state.versions.insert(key, *version);
        }
        head.event_id += 1;
        let id = head.event_id;
        let event = Arc::new(draft.event(head.epoch, Some(id)));
        if let Some(key) = dedupe {
            self.state.dedupe.insert(key, id);
        }
        let dedupe_key = draft.dedupe_key.clone();
        self.out.writes.events.push(EventWrite { tenant, event: Arc::clone(&event), dedupe_key });
        self.tell(tenant, event);
        Published { id: Some(id), duplicate: false, late: false }
    }

    /// Publishes the event of an accepted change or sample.
    pub(super) fn announce(
        &mut self,
        tenant: TenantNo,
        announcing: &Announcing,
        first: &[(&str, &str)],
        fields: &Object,
    ) {
        if let Some(draft) = announcing.draft(first, fields, self.env.now_ms) {
            self.publish(tenant, &draft);
        }
    }

    fn tell(&mut self, tenant: TenantNo, event: Arc<Event>) {
        if let Some(entered) = self.entered(tenant) {
            entered.events.push(event);
        }
    }

    pub(super) fn told_len(&mut self, tenant: TenantNo) -> usize {
        self.entered(tenant).map_or(0, |entered| entered.events.len())
    }

    /// Takes back the events of a group of items that failed; announcements name no keys.
    pub(super) fn untell(&mut self, tenant: TenantNo, (told, written): (usize, usize)) {
        if let Some(entered) = self.entered(tenant) {
            entered.events.truncate(told);
        }
        self.out.writes.events.truncate(written);
    }

    fn entered(&mut self, tenant: TenantNo) -> Option<&mut TenantChanges> {
        self.tenants.iter_mut().find(|entered| entered.tenant == tenant)
    }
}
