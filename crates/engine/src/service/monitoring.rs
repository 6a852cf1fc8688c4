//! Which devices are monitored: what the log was last told of it.

use std::collections::BTreeSet;
use std::sync::Arc;

use driftline_model::{DeviceId, TenantNo};
use driftline_protocol::{Fault, MONITORING_TOPIC, MonitoringDoc, object_of_text, stop_monitoring};

use super::publish::publication;
use super::{Engine, unavailable};
use crate::events::Event;
use crate::log::EventQuery;
use crate::ports::{Identity, Observer, Store};

/// Events of one kind that a look at all devices of a tenant goes through at most.
const LOOK_ROWS: usize = 2_000;

/// A monitored device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Monitored {
    /// The device.
    pub device: DeviceId,
    /// The number of the event by which it began.
    pub event: u64,
    /// When it is over, in Unix milliseconds.
    pub until_ms: u64,
    /// What is wanted, and until when.
    pub doc: MonitoringDoc,
}

impl<S: Store, O: Observer> Engine<S, O> {
    /// Tells what is monitored of a device of the identity's tenant, whichever node was asked to begin.
    ///
    /// # Errors
    /// `STORE_UNAVAILABLE`.
    pub async fn monitoring(
        &self,
        identity: &Identity,
        device: &DeviceId,
    ) -> Result<Option<Monitored>, Fault> {
        let topic: Box<str> = format!("device_{}", device.as_str()).into();
        let begun = self.newest(identity.tenant, &topic, "start_monitoring", 1).await?;
        let Some((begun, id)) = begun.first().and_then(|event| Some((event, event.id?))) else {
            return Ok(None);
        };
        let ended = self.newest(identity.tenant, &topic, "stop_monitoring", 1).await?;
        if ended.first().and_then(|event| event.id).is_some_and(|ended| ended > id) {
            return Ok(None);
        }
        Ok(monitored(begun))
    }

    /// Lists all monitored devices of a tenant, also those whose time is over and of which nobody told.
    ///
    /// # Errors
    /// `STORE_UNAVAILABLE`.
    pub async fn all_monitored(&self, tenant: TenantNo) -> Result<Vec<Monitored>, Fault> {
        let mut events = self.newest(tenant, MONITORING_TOPIC, "start_monitoring", LOOK_ROWS).await?;
        events.extend(self.newest(tenant, MONITORING_TOPIC, "stop_monitoring", LOOK_ROWS).await?);
        events.sort_by_key(|event| std::cmp::Reverse(event.id));
        let mut told = BTreeSet::new();
        let newest = events.iter().filter(|event| told.insert(device_of(event)));
        Ok(newest.filter(|event| &*event.kind == "start_monitoring").filter_map(monitored).collect())
    }

    /// Tells that the time of a monitored device is over, unless another node has told already or it began anew.
    ///
    /// # Errors
    /// `STORE_UNAVAILABLE`.
    pub async fn end_monitoring(
        &self,
        tenant: TenantNo,
        monitored: &Monitored,
        now_ms: u64,
    ) -> Result<(), Fault> {
        let topic: Box<str> = format!("device_{}", monitored.device.as_str()).into();
        for kind in ["start_monitoring", "stop_monitoring"] {
            let newest = self.newest(tenant, &topic, kind, 1).await?;
            if newest.first().and_then(|event| event.id).is_some_and(|id| id > monitored.event) {
                return Ok(());
            }
        }
        let mut publish = stop_monitoring(&monitored.device)?;
        publish.dedupe_key = Some(format!("monitoring_over:{}", monitored.event).into());
        let Ok(mut draft) = self.rules.draft(&publish, &[], now_ms) else { return Ok(()) };
        let begun = self.newest(tenant, &topic, "start_monitoring", 1).await?;
        draft.owner = begun.first().and_then(|event| event.owner.clone());
        self.store
            .commit(publication(tenant, "", vec![draft], ""))
            .await
            .map(|_| ())
            .map_err(|error| unavailable(&error))
    }

    async fn newest(
        &self,
        tenant: TenantNo,
        topic: &str,
        kind: &str,
        rows: usize,
    ) -> Result<Vec<Arc<Event>>, Fault> {
        let query = EventQuery {
            topics: vec![topic.into()],
            after: 0,
            until: None,
            kind: Some(kind.into()),
            newest_first: true,
            rows,
            bytes: 1 << 20,
        };
        let page = self.store.log().events(tenant, query).await.map_err(|error| unavailable(&error))?;
        Ok(page.events)
    }
}

/// The device that an event names.
fn device_of(event: &Event) -> Option<String> {
    let fields = object_of_text(&event.data, 64).ok()?.ok()?;
    Some(fields.get("device_id")?.trim_matches('"').to_owned())
}

fn monitored(event: &Arc<Event>) -> Option<Monitored> {
    let device = DeviceId::new(&device_of(event)?).ok()?;
    let (doc, duration_s) = MonitoringDoc::of_event(&event.data)?;
    let until_ms = event.at_ms.saturating_add(duration_s.saturating_mul(1000));
    Some(Monitored { device, event: event.id?, until_ms, doc })
}
