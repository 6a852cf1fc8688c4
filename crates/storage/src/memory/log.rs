//! The log of events in memory.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use driftline_engine::{
    Answer, DeviceEvents, DeviceSign, Drained, Event, EventDraft, EventLog, EventName, EventPage, EventQuery,
    GroupState, OutboxRouter, StoreError, Submission, TopicRetention, TopicRules, Writes,
};
use driftline_model::{DeviceNo, TenantNo};
use futures_util::future::{BoxFuture, pending, ready};

use super::{MemoryStore, State};
use crate::log::{Filling, Following, IdRange, VERSIONS_MS};

/// A thing of a tenant, by its name.
type Named = (TenantNo, Box<str>);

/// Everything that is kept of events.
#[derive(Debug, Clone, Default)]
pub(super) struct Log {
    events: BTreeMap<(TenantNo, u64), Kept>,
    topics: BTreeMap<Named, Topic>,
    dedupe: HashMap<Named, u64>,
    /// The latest states of what events told of, and when each was kept.
    versions: HashMap<Named, (u64, u64)>,
    devices: HashMap<(TenantNo, DeviceNo), Following>,
    /// Users and the notifications that they have read.
    read: BTreeSet<(TenantNo, Box<str>, Box<str>)>,
}

/// An event that is kept.
#[derive(Debug, Clone)]
struct Kept {
    draft: EventDraft,
    kept_ms: u64,
    dedupe_key: Option<Box<str>>,
    /// How many of its topics still have it.
    refs: usize,
}

/// The events of a topic.
#[derive(Debug, Clone, Default)]
struct Topic {
    ids: BTreeSet<u64>,
    /// The highest one that it lost.
    floor: u64,
}

impl Log {
    fn ids(&self, tenant: TenantNo, query: &EventQuery, range: IdRange) -> BTreeSet<u64> {
        if range.is_empty() {
            return BTreeSet::new();
        }
        let topics = query.topics.iter().filter_map(|topic| self.topics.get(&(tenant, topic.clone())));
        topics.flat_map(|topic| topic.ids.range(range.above + 1..=range.through).copied()).collect()
    }

    fn floor(&self, tenant: TenantNo, topics: &[Box<str>]) -> u64 {
        let floors = topics.iter().filter_map(|topic| Some(self.topics.get(&(tenant, topic.clone()))?.floor));
        floors.max().unwrap_or(0)
    }

    /// The highest number of a topic that is past its retention.
    fn cut(&self, tenant: TenantNo, topic: &Topic, now_ms: u64, kept: TopicRetention) -> Option<u64> {
        let counted = kept.keep.and_then(|keep| {
            let keep = usize::try_from(keep).unwrap_or(usize::MAX);
            topic.ids.iter().rev().nth(keep).copied()
        });
        let aged = kept.age_ms.and_then(|age_ms| {
            let old = |id: &&u64| {
                let event = self.events.get(&(tenant, **id));
                event.is_some_and(|event| event.kept_ms.saturating_add(age_ms) < now_ms)
            };
            topic.ids.iter().take_while(old).last().copied()
        });
        counted.max(aged)
    }

    fn trim(&mut self, now_ms: u64, rules: &dyn TopicRules) -> u64 {
        let cuts: Vec<(Named, u64)> = self
            .topics
            .iter()
            .filter_map(|(name, topic)| {
                let cut = self.cut(name.0, topic, now_ms, rules.retention(&name.1))?;
                Some((name.clone(), cut))
            })
            .collect();
        let before = self.events.len();
        for (name, cut) in cuts {
            let Some(topic) = self.topics.get_mut(&name) else { continue };
            let stays = topic.ids.split_off(&(cut + 1));
            let gone = std::mem::replace(&mut topic.ids, stays);
            topic.floor = topic.floor.max(cut);
            for id in gone {
                self.release(name.0, id);
            }
        }
        self.versions.retain(|_, (_, at_ms)| at_ms.saturating_add(VERSIONS_MS) >= now_ms);
        (before - self.events.len()) as u64
    }

    /// Takes an event from one of its topics; it goes with the last of them.
    fn release(&mut self, tenant: TenantNo, id: u64) {
        let Some(event) = self.events.get_mut(&(tenant, id)) else { return };
        event.refs = event.refs.saturating_sub(1);
        if event.refs > 0 {
            return;
        }
        if let Some(key) = event.dedupe_key.take() {
            self.dedupe.remove(&(tenant, key));
        }
        self.events.remove(&(tenant, id));
    }

    /// Takes a sign of a device.
    pub(super) fn note(&mut self, device: (TenantNo, DeviceNo), at_ms: u64, sign: &DeviceSign) {
        let mut following = self.devices.get(&device).cloned().unwrap_or_default();
        if following.note(at_ms, sign) {
            self.devices.insert(device, following);
        }
    }
}

impl State {
    /// Loads what is known of the keys and states that a publication names.
    pub(super) fn load_events(&self, submission: &Submission, state: &mut GroupState) {
        for draft in &submission.events {
            if let Some(key) = &draft.dedupe_key {
                let name = (submission.tenant, key.clone());
                if let Some(id) = self.log.dedupe.get(&name) {
                    state.dedupe.insert(name, *id);
                }
            }
            if let Some((key, _)) = &draft.version {
                let name = (submission.tenant, key.clone());
                if let Some((version, _)) = self.log.versions.get(&name) {
                    state.versions.insert(name, *version);
                }
            }
        }
    }

    pub(super) fn take_events(&mut self, writes: &Writes, now_ms: u64) {
        for write in &writes.events {
            let (tenant, Some(id)) = (write.tenant, write.event.id) else { continue };
            for topic in &write.event.topics {
                self.log.topics.entry((tenant, topic.clone())).or_default().ids.insert(id);
            }
            if let Some(key) = &write.dedupe_key {
                self.log.dedupe.insert((tenant, key.clone()), id);
            }
            let kept = Kept {
                draft: draft_of(&write.event),
                kept_ms: now_ms,
                dedupe_key: write.dedupe_key.clone(),
                refs: write.event.topics.len(),
            };
            self.log.events.insert((tenant, id), kept);
        }
        for (name, version) in &writes.versions {
            self.log.versions.insert(name.clone(), (*version, now_ms));
        }
    }

    fn event_page(&self, tenant: TenantNo, query: &EventQuery) -> Result<EventPage, StoreError> {
        let head = self.head(tenant)?;
        let floor = self.log.floor(tenant, &query.topics);
        let mut page = Filling::new(query, head.epoch, head.event_id, floor);
        let ids = self.log.ids(tenant, query, IdRange::of(query, head.event_id));
        let ids: Vec<u64> =
            if query.newest_first { ids.into_iter().rev().collect() } else { ids.into_iter().collect() };
        for id in ids {
            let Some(event) = self.log.events.get(&(tenant, id)) else { continue };
            let wanted = query.kind.as_ref().is_none_or(|kind| *kind == event.draft.kind);
            if wanted && !page.take(event.draft.event(head.epoch, Some(id))) {
                break;
            }
        }
        Ok(page.finish())
    }

    fn stored_event(&self, tenant: TenantNo, name: EventName) -> Result<Option<Arc<Event>>, StoreError> {
        let id = match name {
            EventName::Id(id) => Some(id),
            EventName::Dedupe(key) => self.log.dedupe.get(&(tenant, key)).copied(),
        };
        let kept = id.and_then(|id| Some((id, self.log.events.get(&(tenant, id))?)));
        let epoch = self.head(tenant)?.epoch;
        Ok(kept.map(|(id, kept)| Arc::new(kept.draft.event(epoch, Some(id)))))
    }
}

impl EventLog for MemoryStore {
    fn events(&self, tenant: TenantNo, query: EventQuery) -> Answer<'_, EventPage> {
        Box::pin(ready(self.state().event_page(tenant, &query)))
    }

    fn event(&self, tenant: TenantNo, name: EventName) -> Answer<'_, Option<Arc<Event>>> {
        Box::pin(ready(self.state().stored_event(tenant, name)))
    }

    fn trim_events(&self, now_ms: u64, rules: Arc<dyn TopicRules>) -> Answer<'_, u64> {
        Box::pin(ready(Ok(self.state().log.trim(now_ms, &*rules))))
    }

    /// Nobody else can write into this store.
    fn drain_outbox(&self, _: usize, _: Arc<dyn OutboxRouter>) -> Answer<'_, Drained> {
        Box::pin(ready(Ok(Drained::default())))
    }

    fn clean_outbox(&self, _: u64) -> Answer<'_, u64> {
        Box::pin(ready(Ok(0)))
    }

    fn outbox_waits(&self) -> BoxFuture<'_, ()> {
        Box::pin(pending())
    }

    fn device_events(&self, tenant: TenantNo, device: DeviceNo) -> Answer<'_, Option<DeviceEvents>> {
        let known = self.state().log.devices.get(&(tenant, device)).map(|known| known.events.clone());
        Box::pin(ready(Ok(known)))
    }

    fn read_notice(&self, tenant: TenantNo, user: Box<str>, id: Box<str>, _: u64) -> Answer<'_, bool> {
        Box::pin(ready(Ok(self.state().log.read.insert((tenant, user, id)))))
    }

    fn notices_read(&self, tenant: TenantNo, user: Box<str>, ids: Vec<Box<str>>) -> Answer<'_, Vec<bool>> {
        let state = self.state();
        let read = ids.into_iter().map(|id| state.log.read.contains(&(tenant, user.clone(), id)));
        Box::pin(ready(Ok(read.collect())))
    }
}

/// The draft that the same event is made of again, whatever life the log is in then.
fn draft_of(event: &Event) -> EventDraft {
    EventDraft {
        owner: event.owner.clone(),
        values: event.values.clone(),
        ..EventDraft::new(&*event.kind, event.topics.clone(), Arc::clone(&event.data), event.at_ms)
    }
}
