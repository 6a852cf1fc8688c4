//! The log of events in the file.

mod devices;
mod outbox;
#[cfg(test)]
mod plans;
mod read;
mod trim;
mod watch;
mod write;

use std::sync::Arc;

use driftline_engine::{
    Answer, DeviceEvents, Drained, Event, EventLog, EventName, EventPage, EventQuery, OutboxRouter,
    TopicRules,
};
use driftline_model::{DeviceNo, TenantNo};
use futures_util::future::BoxFuture;

use super::SqliteStore;

pub(super) use devices::note;
pub(super) use outbox::{add_claims, check_claims};
pub(super) use watch::Watch;
pub(super) use write::Topics;

impl EventLog for SqliteStore {
    fn events(&self, tenant: TenantNo, query: EventQuery) -> Answer<'_, EventPage> {
        Box::pin(self.read(move |connection, _| read::events(connection, tenant, &query)))
    }

    fn event(&self, tenant: TenantNo, name: EventName) -> Answer<'_, Option<Arc<Event>>> {
        Box::pin(self.read(move |connection, _| read::event(connection, tenant, &name)))
    }

    fn trim_events(&self, now_ms: u64, rules: Arc<dyn TopicRules>) -> Answer<'_, u64> {
        Box::pin(self.trim(now_ms, rules))
    }

    fn drain_outbox(&self, batch: usize, router: Arc<dyn OutboxRouter>) -> Answer<'_, Drained> {
        let claims = Arc::clone(&self.shared.outbox_claims);
        Box::pin(self.run(move |writer| outbox::drain(writer, batch, &claims, &*router)))
    }

    fn clean_outbox(&self, before_ms: u64) -> Answer<'_, u64> {
        Box::pin(self.in_steps(move |writer| outbox::clean(writer, before_ms)))
    }

    fn outbox_waits(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.shared.watch.wait())
    }

    fn device_events(&self, tenant: TenantNo, device: DeviceNo) -> Answer<'_, Option<DeviceEvents>> {
        Box::pin(self.read(move |connection, _| devices::device_events(connection, tenant, device)))
    }

    fn read_notice(&self, tenant: TenantNo, user: Box<str>, id: Box<str>, now_ms: u64) -> Answer<'_, bool> {
        Box::pin(self.write(move |writer| devices::read_notice(writer, tenant, (&user, &id), now_ms)))
    }

    fn notices_read(&self, tenant: TenantNo, user: Box<str>, ids: Vec<Box<str>>) -> Answer<'_, Vec<bool>> {
        Box::pin(self.read(move |connection, _| devices::notices_read(connection, tenant, &user, &ids)))
    }
}
