//! Notifications with their read state, and why a device did or did not get an event.

use driftline_model::Object;
use driftline_protocol::{DeliveryDoc, ErrorCode, EventFilter, EventPlace, Fault, NoticeDoc, event_id};
use driftline_realtime::Verdict;

use super::publish::{NOTICES, notice_id, notice_key};
use super::{Engine, unavailable};
use crate::events::Event;
use crate::log::{DeviceEvents, EventName, EventQuery};
use crate::ports::{Identity, Observer, Store};
use crate::registry::DeviceRow;

/// Pages of the log that one request for unread notifications reads at most.
const PAGES_MAX: usize = 20;

/// A page of notifications.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NoticePage {
    /// The notifications, newest first.
    pub items: Vec<NoticeDoc>,
    /// The number of the last event that was looked at, if there are more.
    pub next: Option<u64>,
}

impl<S: Store, O: Observer> Engine<S, O> {
    /// Lists the notifications of the identity's user, and those that everybody gets, newest first; `before` is where the
    /// page before ended.
    ///
    /// # Errors
    /// `STORE_UNAVAILABLE`.
    pub async fn notices(
        &self,
        identity: &Identity,
        unread: bool,
        before: Option<u64>,
        rows: usize,
    ) -> Result<NoticePage, Fault> {
        let user: Box<str> = identity.user.to_string().into();
        let (mut page, mut after) = (NoticePage::default(), before.unwrap_or(0));
        for _ in 0..PAGES_MAX {
            let query = EventQuery {
                topics: self.notice_topics(identity),
                after,
                until: None,
                kind: Some("notification".into()),
                newest_first: true,
                rows: rows - page.items.len(),
                bytes: 1 << 20,
            };
            let found =
                self.store.log().events(identity.tenant, query).await.map_err(|error| unavailable(&error))?;
            let ids = found.events.iter().map(|event| id_of(event)).collect();
            let read = self.store.log().notices_read(identity.tenant, user.clone(), ids).await;
            let read = read.map_err(|error| unavailable(&error))?;
            for (event, is_read) in found.events.iter().zip(read) {
                if !(unread && is_read) {
                    page.items.push(doc(event, is_read));
                }
            }
            let last = found.events.last().and_then(|event| event.id);
            page.next = last.filter(|_| found.more);
            match page.next {
                Some(last) if page.items.len() < rows => after = last,
                _ => break,
            }
        }
        Ok(page)
    }

    /// The topics of the notifications of the identity's user: the own one, and everybody's if the user may listen to it.
    fn notice_topics(&self, identity: &Identity) -> Vec<Box<str>> {
        let own = format!("user_{}", identity.user);
        let everybodys = self.rules.may_subscribe(NOTICES, identity) == Verdict::Allowed;
        everybodys.then(|| NOTICES.into()).into_iter().chain([own.into()]).collect()
    }

    /// Takes down that the identity's user has read a notification.
    ///
    /// # Errors
    /// `NOT_FOUND` for one that there is not, or is another user's; `STORE_UNAVAILABLE`.
    pub async fn read_notice(&self, identity: &Identity, id: &str, now_ms: u64) -> Result<NoticeDoc, Fault> {
        let missing = || Fault::new(ErrorCode::NotFound, "there is no such notification");
        let name = EventName::Dedupe(notice_key(id));
        let event =
            self.store.log().event(identity.tenant, name).await.map_err(|error| unavailable(&error))?;
        let user: Box<str> = identity.user.to_string().into();
        let own = self.notice_topics(identity);
        let event =
            event.filter(|event| event.topics.iter().any(|topic| own.contains(topic))).ok_or_else(missing)?;
        let read = self.store.log().read_notice(identity.tenant, user, id.into(), now_ms).await;
        read.map_err(|error| unavailable(&error))?;
        Ok(doc(&event, true))
    }

    /// Tells whether a device got an event, or why not. The device is one that the identity may reach.
    ///
    /// # Errors
    /// `NOT_FOUND` for an event that there never was; `STORE_UNAVAILABLE`.
    pub async fn delivery(
        &self,
        identity: &Identity,
        place: EventPlace,
        device: &DeviceRow,
    ) -> Result<DeliveryDoc, Fault> {
        let head = self.head(identity).await?;
        let missing = || Fault::new(ErrorCode::NotFound, "there is no such event");
        if place.id == 0 || place.id > head.event_id || place.epoch.is_some_and(|epoch| epoch != head.epoch) {
            return Err(missing());
        }
        let log = self.store.log();
        let event =
            log.event(identity.tenant, EventName::Id(place.id)).await.map_err(|error| unavailable(&error))?;
        let known =
            log.device_events(identity.tenant, device.device).await.map_err(|error| unavailable(&error))?;
        let known = known.unwrap_or_default();
        let (status, detail) = match &event {
            None => ("trimmed", "the log does not keep it any more"),
            Some(event) => explain(event, &known, device),
        };
        let acked = (known.acked > 0 && known.epoch == Some(head.epoch)).then_some(known.acked);
        Ok(DeliveryDoc {
            event_id: event_id(head.epoch, place.id),
            device_id: device.device_id.to_string(),
            status: status.into(),
            detail: detail.into(),
            // What topics there are is no owner's business.
            topics: event
                .filter(|_| super::is_staff(identity))
                .map(|event| event.topics.iter().map(ToString::to_string).collect())
                .unwrap_or_default(),
            acknowledged: acked.map(|acked| event_id(head.epoch, acked)),
        })
    }
}

fn explain(event: &Event, known: &DeviceEvents, device: &DeviceRow) -> (&'static str, &'static str) {
    let id = event.id.unwrap_or_default();
    let Some(since) = known.since.filter(|_| known.epoch.is_none_or(|epoch| epoch == event.epoch)) else {
        return ("never_connected", "the device has not listened to events yet");
    };
    if event.owner.as_ref().is_some_and(|owner| *owner != device.key && owner.user() != device.key.user()) {
        return ("forbidden", "it concerns another user's device");
    }
    let mut listened = None;
    for topic in &known.topics {
        let (name, filter) =
            topic.split_once('|').map_or((&**topic, None), |(name, filter)| (name, Some(filter)));
        if event.topics.iter().any(|own| **own == *name) {
            listened = Some(filter);
            if filter.is_none() {
                break;
            }
        }
    }
    match listened {
        None if event.topics.iter().any(|topic| known.refused.contains(topic)) => {
            ("forbidden", "the device asked for its topic and may not have it")
        }
        None => ("filtered", "the device does not listen to its topics"),
        Some(Some(filter)) if !passes(event, filter) => {
            ("filtered", "the device's filter does not let it through")
        }
        Some(_) if known.acked >= id => ("delivered", "the device has acknowledged it"),
        Some(_) if known.slow.is_some_and(|slow| slow < id) => {
            ("slow", "the connection was cut because it did not read; it comes when the device resumes")
        }
        Some(_) if since >= id => {
            ("pending", "the device began to listen later; it comes if the device asks for it")
        }
        Some(_) => ("pending", "it was sent or waits; the device has not acknowledged it"),
    }
}

fn passes(event: &Event, filter: &str) -> bool {
    let Some(filter) = EventFilter::parse(filter) else { return true };
    let Ok(filter) = driftline_realtime::Filter::new(filter.types, filter.fields) else { return true };
    let fields = event.fields();
    filter.passes(&event.kind, |name| fields.and_then(|fields| fields.get(name)))
}

fn id_of(event: &Event) -> Box<str> {
    event.fields().and_then(|fields| fields.get("id")).and_then(notice_id).unwrap_or_default().into()
}

fn doc(event: &Event, is_read: bool) -> NoticeDoc {
    NoticeDoc::new(
        event_id(event.epoch, event.id.unwrap_or_default()),
        event.fields().unwrap_or(&Object::empty()),
        is_read,
    )
}
