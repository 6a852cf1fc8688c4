//! The engine over one store: requests in, answers out, and what is stored.

use std::collections::BTreeMap;
use std::sync::Arc;

use driftline_engine::{
    Catalogue, DeviceAction, DeviceChange, DeviceChanged, DeviceOnce, DeviceQuery, Done, Engine, Hub,
    Identity, Ingest, KindRule, NullObserver, Prepared, SampleQuery, SeriesQuery, Store, TelemetryRule,
    Windows, Work,
};
use driftline_idempotency::Fingerprint;
use driftline_model::{DeviceId, KindName, Limits, TenantId, UserId};
use driftline_protocol::{Ack, BareAck, Encoding, ErrorCode, Fault, Inbound, TelemetryAck, decode};
use driftline_testkit::{World, block_on};

use crate::WINDOWS_MS;
use crate::model::Model;
use crate::request::{Body, DEVICES, Request, TENANTS, Who};

/// What a request was answered.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Said {
    Samples(TelemetryAck),
    Items(Ack),
    Noted(BareAck),
    Registered(Box<[u8]>),
    Exists,
}

impl Said {
    /// The answer without the word that it is one of before, and that word.
    fn split(self) -> (Self, bool) {
        match self {
            Self::Samples(ack) => {
                (Self::Samples(TelemetryAck { replayed: false, ..ack.clone() }), ack.replayed)
            }
            Self::Items(ack) => (Self::Items(Ack { replayed: false, ..ack.clone() }), ack.replayed),
            Self::Noted(ack) => (Self::Noted(BareAck { replayed: false, ..ack.clone() }), ack.replayed),
            other => (other, false),
        }
    }
}

pub(crate) type Answered = Result<(Said, bool), ErrorCode>;

pub(crate) fn catalogue() -> Catalogue {
    let kind = |name: &str, telemetry: Option<TelemetryRule>| {
        let rule = KindRule { telemetry: telemetry.map(Arc::new), ..KindRule::default() };
        (KindName::new(name).expect("a name"), rule)
    };
    let keyed = TelemetryRule { key: vec!["slot".into()], ..TelemetryRule::default() };
    Catalogue::new(BTreeMap::from([
        kind("note", None),
        kind("reading", Some(TelemetryRule::default())),
        kind("gauge", Some(keyed)),
    ]))
}

/// The engine over one store, with who sends.
pub(crate) struct Office<S> {
    pub(crate) engine: Engine<S, NullObserver>,
    identities: Vec<Vec<Identity>>,
}

impl<S: Store> Office<S> {
    pub(crate) fn new(store: S, hub: Arc<Hub>) -> Self {
        let engine = Engine::new(store, hub, catalogue(), Limits::default(), NullObserver);
        let tenants = TENANTS.map(|name| TenantId::new(name).expect("a name"));
        let windows = Windows {
            default_ms: WINDOWS_MS[0],
            tenants: BTreeMap::from([(tenants[1].clone(), WINDOWS_MS[1])]),
        };
        let engine = engine.with_windows(windows);
        let identify = |tenant: &TenantId, device: &str| {
            let (user, device) =
                (UserId::text("ada").expect("a name"), DeviceId::new(device).expect("a name"));
            block_on(engine.identify(tenant.clone(), user, Some(device), vec!["staff".into()], &[]))
        };
        let of = |tenant| DEVICES.iter().map(|device| identify(tenant, device).expect("let in")).collect();
        let identities = tenants.iter().map(of).collect();
        Self { engine, identities }
    }

    fn identity(&self, who: Who) -> &Identity {
        &self.identities[who.tenant][who.device]
    }

    /// Turns a message into work, as a session does.
    pub(crate) fn prepare(&self, request: &Request, step: u64, now_ms: u64) -> Prepared {
        let identity = self.identity(request.who);
        let message = decode(Encoding::Json, request.frame().as_bytes(), self.engine.limits());
        let message = message.expect("a message of the protocol");
        let key = message.key.as_deref();
        let once = self.engine.once_of(identity, request.kind(), message.sync_id.as_ref(), key);
        let seed = u128::from(step) << 32;
        let work = match message.body {
            Inbound::Telemetry(telemetry) => Work::Ingest {
                ingest: Box::new(Ingest {
                    messages: vec![(0, *telemetry)],
                    array: false,
                    once: once.into_iter().collect(),
                    batch_key: request.key.clone(),
                    seed,
                }),
            },
            Inbound::SyncData(data) => Work::Push {
                sync_id: message.sync_id.expect("a session"),
                data,
                epoch: None,
                once: once.into_iter().collect(),
                seed,
            },
            Inbound::AnalyticsBatch(batch) => Work::Aggregate { batch, once },
            other => panic!("{other:?} is none of these requests"),
        };
        block_on(self.engine.prepare(identity, work, now_ms, "test"))
    }

    pub(crate) async fn register(&self, request: &Request, step: u64) -> Answered {
        let Body::Device { number, register, enabled } = request.body else { panic!("{request:?}") };
        let identity = self.identity(request.who);
        let once = request.key.as_ref().map(|key| DeviceOnce {
            owner: identity.owner(),
            key: key.as_str().into(),
            fingerprint: Fingerprint::builder("devices").text(&request.payload()).finish(),
            window_ms: self.engine.window_ms(&identity.tenant_id),
            answer: Arc::new(move |row| format!("{} {} {step}", row.device_id, row.enabled).into_bytes()),
        });
        let change = DeviceChange {
            owner: owner_of(request.who),
            device_id: DeviceId::new(&format!("extra-{number}")).expect("a name"),
            action: if register { DeviceAction::Register } else { DeviceAction::Update },
            enabled: Some(enabled),
            digest: None,
        };
        let answer = once.as_ref().map(|once| Arc::clone(&once.answer));
        match self.engine.change_device(identity, change, once).await {
            Ok(DeviceChanged::Done(row)) => {
                Ok((Said::Registered(answer.map_or_else(Box::default, |answer| answer(&row).into())), false))
            }
            Ok(DeviceChanged::Replayed(bytes)) => Ok((Said::Registered(bytes), true)),
            Ok(DeviceChanged::Exists(_)) => Ok((Said::Exists, false)),
            Ok(other) => panic!("{other:?}"),
            Err(fault) => Err(fault.code),
        }
    }

    pub(crate) async fn finish(&self, request: &Request, prepared: Prepared, now_ms: u64) -> Answered {
        let done = self.engine.finish(self.identity(request.who), prepared, now_ms).await;
        let said = match done {
            Done::Ingested(result) => result.map(Said::Samples),
            Done::Pushed(result) => result.map(Said::Items),
            Done::Noted(result) => result.map(Said::Noted),
            other => panic!("{other:?}"),
        };
        said.map(Said::split).map_err(|fault: Fault| fault.code)
    }

    /// What is stored must be what the model holds.
    pub(crate) fn check(&self, model: &Model, place: &str) {
        let store = self.engine.store();
        for (number, identities) in self.identities.iter().enumerate() {
            let tenant = identities[0].tenant;
            for kind in ["reading", "gauge"] {
                let query = SampleQuery {
                    kind: KindName::new(kind).expect("a name"),
                    devices: None,
                    from_ms: 0,
                    to_ms: 2 * World::BEGIN_MS,
                    after: None,
                    rows: 10_000,
                };
                let rows = block_on(store.samples(tenant, query)).expect("a read").len();
                assert_eq!(rows, model.samples_of(number, kind), "{place}: samples of {kind}");
            }
            let query = SeriesQuery { from_ms: 0, to_ms: 2 * World::BEGIN_MS, after: None, rows: 1_000 };
            let points = block_on(store.series(tenant, query)).expect("a read");
            let counted: u64 = points.iter().map(|row| row.point.counter).sum();
            assert_eq!(counted, model.counted.get(&number).copied().unwrap_or(0), "{place}: counted");
            let head = block_on(store.head(tenant)).expect("a read");
            assert_eq!(
                head.seq.number(),
                model.changes.get(&number).copied().unwrap_or(0),
                "{place}: changes"
            );
            self.check_devices(number, model, place);
        }
    }

    fn check_devices(&self, number: usize, model: &Model, place: &str) {
        let query = DeviceQuery { rows: 1_000, ..DeviceQuery::default() };
        let rows = block_on(self.engine.store().devices(self.identities[number][0].tenant, query));
        let rows = rows.expect("a read");
        let extra = rows.iter().filter(|row| row.device_id.as_str().starts_with("extra-"));
        let stored: BTreeMap<(String, String), bool> =
            extra.map(|row| ((row.owner.to_string(), row.device_id.to_string()), row.enabled)).collect();
        let wanted: BTreeMap<(String, String), bool> = model
            .devices
            .iter()
            .filter(|((tenant, ..), _)| *tenant == number)
            .map(|((tenant, device, name), enabled)| {
                let owner = owner_of(Who { tenant: *tenant, device: *device });
                ((owner.into(), format!("extra-{name}")), *enabled)
            })
            .collect();
        assert_eq!(stored, wanted, "{place}: devices");
    }
}

/// Each sender registers devices of a user of its own.
fn owner_of(who: Who) -> Box<str> {
    format!("owner-of-{}", DEVICES[who.device]).into()
}
