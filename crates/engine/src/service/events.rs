//! Listening to topics, and reading what was missed.

use std::sync::{Arc, MutexGuard, PoisonError};

use driftline_model::{DeviceId, DeviceKey, Epoch, TenantNo};
use driftline_protocol::{
    ErrorCode, EventFilter, EventPlace, EventsSubscribed, Fault, TopicAnswer, Topics, event_id,
};
use driftline_realtime::{Asked, Filter, Incomplete, Log, Recovery, Verdict, recover, recover_page};

use super::pending::{Batch, Pending};
use super::{Engine, unavailable};
use crate::events::EventDraft;
use crate::fanout::{DEVICE_TOPIC, DEVICES_OF, Ear, Heard, Listener, Subscribed};
use crate::log::{EventPage, EventQuery};
use crate::ports::{Head, Identity, Observer, Store};
use crate::registry::{DeviceQuery, DeviceSign};

/// Topics that one connection may ask for, beside those that the server joined.
const TOPICS_MAX: usize = 256;
/// Topics that a connection of staff may ask for.
const STAFF_TOPICS_MAX: usize = 5_000;

/// Rows and bytes of one page of the log, where a connection may have as much waiting.
const PAGE_ROWS: usize = 1_000;
const PAGE_BYTES: usize = 256 << 10;

/// Bytes that a row of a page has beside its data, as far as a page is concerned.
const ROW_BYTES: usize = 256;

/// Devices of one user whose topics are read at once.
const FOLLOWED_MAX: usize = 1_000;

/// Commits that may fail until [`Engine::flush`] leaves the others for the next time.
const FAILED_MAX: usize = 3;

/// What somebody wants of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missed {
    /// Only events on these topics; none: on all that the listener listens to.
    pub topics: Option<Vec<Box<str>>>,
    /// The last event that is known.
    pub after: EventPlace,
    /// What the log was when the first page was read; none: this is the first page.
    pub begun: Option<Log>,
    /// The most events.
    pub limit: Option<u64>,
}

/// A page of what somebody missed.
#[derive(Debug)]
pub struct MissedPage {
    /// The log at that moment.
    pub log: Log,
    /// The event behind which the page begins.
    pub from: u64,
    /// Why not everything is there.
    pub reason: Option<&'static str>,
    /// The events that the listener may hear.
    pub heard: Vec<Heard>,
    /// The log was read up to here.
    pub through: u64,
    /// Whether more waits.
    pub more: bool,
}

impl<S: Store, O: Observer> Engine<S, O> {
    /// Begins to listen for a connection, to the topics that the user joins by itself if `join` says so.
    ///
    /// What happens from now on waits in the listener. [`Engine::begin`] tells where the log stands.
    pub fn listener(&self, identity: &Identity, ear: Ear, join: bool) -> Arc<Listener> {
        let listener =
            Listener::new(&self.hub, &self.rules, identity.tenant, ear, self.limits.outbound_bytes);
        if join {
            for topic in self.rules.joined(identity) {
                listener.join(&topic);
            }
        }
        Arc::new(listener)
    }

    /// Reads the head for a listener: later events come.
    ///
    /// # Errors
    /// `STORE_UNAVAILABLE`.
    pub async fn begin(&self, identity: &Identity, listener: &Listener) -> Result<Head, Fault> {
        let head = self.store.head(identity.tenant).await.map_err(|error| unavailable(&error))?;
        listener.start(head.event_id);
        Ok(head)
    }

    /// Grants topics that may be granted, and says of each what became of it.
    ///
    /// # Errors
    /// `VALIDATION_ERROR` for a filter that is too large; `STORE_UNAVAILABLE`.
    pub async fn subscribe_events(
        &self,
        identity: &Identity,
        listener: &Listener,
        wanted: &Topics,
        now_ms: u64,
    ) -> Result<EventsSubscribed, Fault> {
        let filter = wanted.filter.as_ref().map(filter_of).transpose()?;
        let mut verdicts = Vec::with_capacity(wanted.topics.len());
        for topic in &wanted.topics {
            let verdict = self.grant(identity, listener, topic).await?;
            if verdict.is_ok() {
                listener.subscribe(topic, filter.clone());
            }
            verdicts.push((topic, verdict));
        }
        let head = self.begin(identity, listener).await?;
        let position = event_id(head.epoch, head.event_id);
        let granted: Vec<Box<str>> = verdicts
            .iter()
            .filter(|(_, verdict)| verdict.is_ok())
            .map(|(topic, _)| (*topic).clone())
            .collect();
        let recovery = match wanted.since.filter(|_| !granted.is_empty()) {
            None => None,
            Some(since) => Some(self.judge(identity.tenant, granted, since).await?.reason()),
        };
        let answer = |topic: &str, verdict: Result<(), ErrorCode>| match verdict {
            Ok(()) => TopicAnswer {
                topic: topic.to_string(),
                accepted: true,
                code: None,
                position: Some(position.clone()),
                recovered: recovery.map(|reason| reason.is_none()),
                reason: recovery.flatten().map(str::to_owned),
            },
            Err(code) => TopicAnswer {
                topic: topic.to_string(),
                code: Some(code.as_str().to_owned()),
                ..TopicAnswer::default()
            },
        };
        let refused =
            verdicts.iter().filter(|(_, verdict)| verdict.is_err()).map(|(topic, _)| (*topic).clone());
        self.note_listening(identity, listener, refused.collect(), &head, now_ms);
        Ok(EventsSubscribed {
            topics: verdicts.into_iter().map(|(topic, verdict)| answer(topic, verdict)).collect(),
        })
    }

    /// Has a listener take back what its client asked for before, as far as it may have it now.
    ///
    /// # Errors
    /// `STORE_UNAVAILABLE`.
    pub async fn take_back(
        &self,
        identity: &Identity,
        listener: &Listener,
        before: &[Subscribed],
    ) -> Result<(), Fault> {
        for Subscribed { topic, filter } in before {
            if self.grant(identity, listener, topic).await?.is_ok() {
                listener.subscribe(topic, filter.clone());
            }
        }
        Ok(())
    }

    /// Takes down what a device listens to, so that it can be told why it did not get an event.
    pub fn note_listening(
        &self,
        identity: &Identity,
        listener: &Listener,
        refused: Vec<Box<str>>,
        head: &Head,
        now_ms: u64,
    ) {
        let filters = listener.filters();
        let shown = |topic: Box<str>| match filters.iter().find(|(of, _)| *of == topic) {
            Some((_, filter)) => format!("{topic}|{}", doc_of(filter).to_text()).into(),
            None => topic,
        };
        let topics = listener.topics().into_iter().map(shown).collect();
        let sign = DeviceSign::Listened { epoch: head.epoch, since: head.event_id, topics, refused };
        self.sign(identity, sign, now_ms);
    }

    /// Refuses whoever may not listen to a topic.
    ///
    /// # Errors
    /// `NOT_FOUND` for a topic that there is not or of which presence is not kept; `FORBIDDEN`; `STORE_UNAVAILABLE`.
    pub async fn require_audience(&self, identity: &Identity, topic: &str) -> Result<(), Fault> {
        let missing = || Fault::new(ErrorCode::NotFound, "there is no such topic here");
        let forbidden = || Fault::new(ErrorCode::Forbidden, "to listen to the topic is not your right");
        let (rule, _) = self.rules.rule(topic).ok_or_else(missing)?;
        if !rule.presence {
            return Err(missing());
        }
        match self.rules.may_subscribe(topic, identity) {
            Verdict::Unknown => return Err(missing()),
            Verdict::Forbidden => return Err(forbidden()),
            Verdict::Allowed => {}
        }
        match self.rules.device_of(topic) {
            Some(device) if !super::is_staff(identity) && !self.owns(identity, device).await? => {
                Err(forbidden())
            }
            _ => Ok(()),
        }
    }

    /// Says whether somebody may listen to a topic.
    async fn grant(
        &self,
        identity: &Identity,
        listener: &Listener,
        topic: &str,
    ) -> Result<Result<(), ErrorCode>, Fault> {
        if listener.has(topic) {
            return Ok(Ok(()));
        }
        match self.rules.may_subscribe(topic, identity) {
            Verdict::Unknown => return Ok(Err(ErrorCode::NotFound)),
            Verdict::Forbidden => return Ok(Err(ErrorCode::Forbidden)),
            Verdict::Allowed => {}
        }
        let most = if super::is_staff(identity) { STAFF_TOPICS_MAX } else { TOPICS_MAX };
        if listener.asked() >= most {
            return Ok(Err(ErrorCode::ValidationError));
        }
        // Whose device it is, no rule can know.
        if let Some(device) = self.rules.device_of(topic)
            && !super::is_staff(identity)
            && !self.owns(identity, device).await?
        {
            return Ok(Err(ErrorCode::Forbidden));
        }
        Ok(Ok(()))
    }

    async fn owns(&self, identity: &Identity, device: &str) -> Result<bool, Fault> {
        if identity.device.as_ref().is_some_and(|(_, key)| key.device() == device) {
            return Ok(true);
        }
        let Ok(device_id) = DeviceId::new(device) else { return Ok(false) };
        let owner = Some(identity.user.to_string().into());
        let query = DeviceQuery { device_id: Some(device_id), owner, after: None, rows: 1 };
        Ok(!self.devices(identity, query).await?.is_empty())
    }

    /// Judges whether everything on some topics behind a place is there.
    async fn judge(
        &self,
        tenant: TenantNo,
        topics: Vec<Box<str>>,
        since: EventPlace,
    ) -> Result<Judged, Fault> {
        let query = EventQuery { topics, rows: 1, bytes: 0, ..whole(since.id) };
        let page = self.store.log().events(tenant, query).await.map_err(|error| unavailable(&error))?;
        Ok(judged(since, Log { epoch: page.epoch, head: page.head, floor: page.floor }))
    }

    /// Reads a page of what a listener missed, as far as it may hear it now.
    ///
    /// # Errors
    /// `STORE_UNAVAILABLE`.
    pub async fn missed(
        &self,
        identity: &Identity,
        listener: &Listener,
        missed: &Missed,
    ) -> Result<MissedPage, Fault> {
        let (page, forbidden) = self.page_of(identity, listener, missed).await?;
        let log = Log { epoch: page.epoch, head: page.head, floor: page.floor };
        let (mut from, mut reason) = (missed.after.id, None);
        match &missed.begun {
            None => {
                let judged = judged(missed.after, log);
                (from, reason) = (judged.from, judged.reason());
                if forbidden {
                    reason = Some(reason.unwrap_or(Incomplete::Forbidden.as_str()));
                }
            }
            // The log may have been trimmed since the page before.
            Some(begun) => {
                if let Recovery::Incomplete { reason: incomplete, .. } = recover_page(from, begun, &log) {
                    reason = Some(incomplete.as_str());
                }
            }
        }
        // Numbers of another life of the log say nothing about this one.
        if from > missed.after.id || from > page.head {
            let (through, more) = (page.head, false);
            return Ok(MissedPage { log, from, reason, heard: Vec::new(), through, more });
        }
        let through = if page.more {
            page.events.last().and_then(|event| event.id).unwrap_or(page.head)
        } else {
            page.head
        };
        let heard = page.events.into_iter().filter_map(|event| {
            let topic = listener.hears(&event)?;
            Some(Heard { event, topic })
        });
        Ok(MissedPage { log, from, reason, heard: heard.collect(), through, more: page.more })
    }

    /// Reads a page of the topics that the listener listens to, or of those of them that are wanted; tells whether others
    /// are wanted too.
    async fn page_of(
        &self,
        identity: &Identity,
        listener: &Listener,
        missed: &Missed,
    ) -> Result<(EventPage, bool), Fault> {
        // A page takes a quarter of what may wait for its data, and another one for what stands beside that.
        let quarter = self.limits.outbound_bytes / 4;
        let page_rows = PAGE_ROWS.min(quarter / ROW_BYTES).max(1);
        let rows = missed
            .limit
            .map_or(page_rows, |limit| usize::try_from(limit).unwrap_or(page_rows))
            .min(page_rows);
        let mut held = listener.topics();
        loop {
            let own = self.with_devices(identity, held.clone()).await?;
            let (topics, forbidden) = match &missed.topics {
                None => (own, false),
                Some(topics) => {
                    let granted: Vec<_> =
                        topics.iter().filter(|topic| own.contains(topic)).cloned().collect();
                    let forbidden = granted.len() < topics.len();
                    (granted, forbidden)
                }
            };
            let query = EventQuery { topics, rows, bytes: PAGE_BYTES.min(quarter), ..whole(missed.after.id) };
            let read = self.store.log().events(identity.tenant, query).await;
            let page = read.map_err(|error| unavailable(&error))?;
            // The page may go beyond where a topic begins that was granted meanwhile: then it is read with that one.
            let now = listener.topics();
            if now == held {
                return Ok((page, forbidden));
            }
            held = now;
        }
    }

    /// Names the devices' topics of whoever follows all devices of a user.
    async fn with_devices(&self, identity: &Identity, own: Vec<Box<str>>) -> Result<Vec<Box<str>>, Fault> {
        let Some(user) = own.iter().find_map(|topic| topic.strip_prefix(DEVICES_OF)) else { return Ok(own) };
        let query =
            DeviceQuery { device_id: None, owner: Some(user.into()), after: None, rows: FOLLOWED_MAX };
        let devices =
            self.store.devices(identity.tenant, query).await.map_err(|error| unavailable(&error))?;
        let topics = devices.iter().map(|row| format!("{DEVICE_TOPIC}{}", row.device_id).into());
        Ok(topics.chain(own.iter().filter(|topic| !topic.starts_with('~')).cloned()).collect())
    }

    /// Seals a place in the log for the identity's user.
    pub fn resume_token(&self, identity: &Identity, epoch: Epoch, id: u64) -> String {
        let user = identity.user.to_string();
        self.cursor_key.seal_place(&identity.tenant_id, &user, epoch, id)
    }

    /// Opens what [`Engine::resume_token`] sealed for the same user.
    ///
    /// # Errors
    /// `CURSOR_INVALID`.
    pub fn open_resume_token(&self, identity: &Identity, token: &str) -> Result<EventPlace, Fault> {
        let user = identity.user.to_string();
        let opened = self.cursor_key.open_place(&identity.tenant_id, &user, token);
        let (epoch, id) = opened.map_err(|_| {
            Fault::new(ErrorCode::CursorInvalid, "the resume_token is none of this server's for this user")
        })?;
        Ok(EventPlace { epoch: Some(epoch), id })
    }

    /// Takes down that the identity's device has every event up to a place. Written behind.
    ///
    /// # Errors
    /// `VALIDATION_ERROR` without a device, for a place that the log has not reached, or of another life of it;
    /// `STORE_UNAVAILABLE`.
    pub async fn acknowledge_events(
        &self,
        identity: &Identity,
        last: EventPlace,
        now_ms: u64,
    ) -> Result<(), Fault> {
        if identity.device.is_none() {
            let message = "events are acknowledged by devices, and this connection names none";
            return Err(Fault::new(ErrorCode::ValidationError, message));
        }
        let head = self.head(identity).await?;
        if last.id > head.event_id || last.epoch.is_some_and(|epoch| epoch != head.epoch) {
            let message = "no such event: the log ends before it, or began anew";
            return Err(Fault::new(ErrorCode::ValidationError, message));
        }
        self.sign(identity, DeviceSign::Acknowledged { epoch: head.epoch, event: last.id }, now_ms);
        Ok(())
    }

    /// Takes down that the identity's device was cut for reading too slowly.
    pub fn note_slow(&self, identity: &Identity, event: u64, now_ms: u64) {
        self.sign(identity, DeviceSign::Slow { event }, now_ms);
    }

    pub(super) fn sign(&self, identity: &Identity, sign: DeviceSign, now_ms: u64) {
        let Some((device, _)) = &identity.device else { return };
        let mut presence = self.presence.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        presence.note((identity.tenant, *device), now_ms, sign);
    }

    /// Tells whoever listens now of an event that the log does not keep; gives how many connections it reached.
    pub fn tell_now(&self, tenant: TenantNo, draft: &EventDraft) -> u32 {
        self.hub.tell_now(tenant, draft)
    }

    /// Has a draft published by the next [`Engine::flush`]. Of very many that wait the oldest go.
    pub(super) fn later(&self, tenant: TenantNo, mut draft: EventDraft) {
        // One that is committed although nobody learns of it comes again, and counts once.
        draft.dedupe_key.get_or_insert_with(|| {
            let owner = draft.owner.as_ref().map_or("", DeviceKey::as_str);
            let told = crate::events::conflation(owner, &draft.data);
            format!("~{}:{}:{told:016x}", draft.kind, draft.at_ms).into()
        });
        self.pending().put(tenant, draft);
    }

    /// Publishes what came up since the last time: devices that came and went, and alerts. What the store does not take
    /// waits for the next time.
    ///
    /// Dropping the future may lose what it was publishing.
    ///
    /// # Errors
    /// `STORE_UNAVAILABLE`.
    pub async fn flush(&self) -> Result<(), Fault> {
        let mut left = Vec::new();
        let mut failed = None;
        loop {
            let batch = self.pending().take();
            let Some(batch) = batch else { break };
            let Batch { tenant, ref drafts, .. } = batch;
            let told = super::publish::publication(tenant, "", drafts.clone(), "");
            if let Err(error) = self.store.commit(told).await {
                failed = Some(unavailable(&error));
                left.push(batch);
                // One tenant's trouble keeps no other from being told; that of the store keeps all.
                if left.len() == FAILED_MAX {
                    break;
                }
            }
        }
        for batch in left.into_iter().rev() {
            self.pending().give_back(batch);
        }
        failed.map_or(Ok(()), Err)
    }

    /// Returns the drafts that wait; those of tenants whose numbers were voided are gone.
    fn pending(&self) -> MutexGuard<'_, Pending> {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        pending.look_for_voided(self.hub.numbering());
        pending
    }

    /// Removes what is past its retention from the log, and rows of the outbox that were processed before a time; gives
    /// how many went.
    ///
    /// # Errors
    /// `STORE_UNAVAILABLE`.
    pub async fn trim_events(&self, now_ms: u64, outbox_before_ms: u64) -> Result<u64, Fault> {
        let log = self.store.log();
        let trimmed = log.trim_events(now_ms, crate::rules::retention_of(&self.rules)).await;
        let cleaned = log.clean_outbox(outbox_before_ms).await;
        Ok(trimmed.map_err(|error| unavailable(&error))? + cleaned.map_err(|error| unavailable(&error))?)
    }
}

/// What was found out about a place in the log.
struct Judged {
    /// The log is read behind this event.
    from: u64,
    incomplete: Option<Incomplete>,
}

impl Judged {
    fn reason(&self) -> Option<&'static str> {
        self.incomplete.map(Incomplete::as_str)
    }
}

/// Judges a place. Of a trimmed log everything is read that is left: another topic may still have what one has lost. Of
/// another life of the log nothing is read: its numbers would name what the client has.
fn judged(after: EventPlace, log: Log) -> Judged {
    match recover(&Asked { epoch: after.epoch, id: after.id }, &log) {
        Recovery::Complete { from } => Judged { from, incomplete: None },
        Recovery::Incomplete { reason, .. } => {
            let from = if reason == Incomplete::Trimmed { after.id } else { log.head };
            Judged { from, incomplete: Some(reason) }
        }
    }
}

fn whole(after: u64) -> EventQuery {
    EventQuery { topics: Vec::new(), after, until: None, kind: None, newest_first: false, rows: 0, bytes: 0 }
}

fn filter_of(filter: &EventFilter) -> Result<Arc<Filter>, Fault> {
    Filter::new(filter.types.clone(), filter.fields.clone())
        .map(Arc::new)
        .map_err(|error| Fault::new(ErrorCode::ValidationError, error.to_string()))
}

fn doc_of(filter: &Filter) -> EventFilter {
    EventFilter { types: filter.types.clone(), fields: filter.fields.clone() }
}
