//! The log of a store that has none yet.

use std::sync::Arc;

use driftline_engine::{
    Answer, DeviceEvents, Drained, Event, EventLog, EventName, EventPage, EventQuery, OutboxRouter,
    StoreError, TopicRules,
};
use driftline_model::{DeviceNo, TenantNo};
use futures_util::future::{BoxFuture, ready};

pub(crate) struct Unbuilt;

fn no<T: Send + 'static>() -> Answer<'static, T> {
    Box::pin(ready(Err(StoreError::Unavailable("there is no log".into()))))
}

impl EventLog for Unbuilt {
    fn events(&self, _: TenantNo, _: EventQuery) -> Answer<'_, EventPage> {
        no()
    }
    fn event(&self, _: TenantNo, _: EventName) -> Answer<'_, Option<Arc<Event>>> {
        no()
    }
    fn trim_events(&self, _: u64, _: Arc<dyn TopicRules>) -> Answer<'_, u64> {
        no()
    }
    fn drain_outbox(&self, _: usize, _: Arc<dyn OutboxRouter>) -> Answer<'_, Drained> {
        no()
    }
    fn clean_outbox(&self, _: u64) -> Answer<'_, u64> {
        no()
    }
    fn outbox_waits(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::pending())
    }
    fn device_events(&self, _: TenantNo, _: DeviceNo) -> Answer<'_, Option<DeviceEvents>> {
        no()
    }
    fn read_notice(&self, _: TenantNo, _: Box<str>, _: Box<str>, _: u64) -> Answer<'_, bool> {
        no()
    }
    fn notices_read(&self, _: TenantNo, _: Box<str>, _: Vec<Box<str>>) -> Answer<'_, Vec<bool>> {
        no()
    }
}
