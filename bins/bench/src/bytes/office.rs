//! Two devices at one server, in one thread.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use driftline_client::{Edit, Replica, TcpConnector, World as PhoneWorld, fields};
use driftline_engine::{
    Catalogue, Clock as _, Engine, Hub, Identity, KindRule, NullObserver, Output, Session, Subscription,
};
use driftline_model::{
    DeviceId, KindName, Limits, Object, ObjectBuilder, RecordId, SyncId, TenantId, UserId,
};
use driftline_protocol::{Encoding, decode};
use driftline_storage::MemoryStore;

use super::report::Message;
use crate::load::records::Bodies;
use crate::rng::Rng;
use crate::simulate::{BEGIN_MS, ServerClock, World, block_on};

/// What an edit writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fields {
    /// The one field that changed.
    Changed,
    /// The whole record, of which one field changed.
    All,
}

/// The messages that edits lead to.
#[derive(Debug)]
pub(super) struct Exchange {
    sync_data: String,
    ack: String,
    delta: String,
}

impl Exchange {
    pub(super) fn text(&self, message: Message) -> &str {
        match message {
            Message::SyncData => &self.sync_data,
            Message::Ack => &self.ack,
            Message::ServerDelta => &self.delta,
        }
    }
}

/// A server, a device that writes, one that reads, and records that both have.
pub(super) struct Office {
    engine: Engine<MemoryStore, NullObserver>,
    world: World,
    phone_world: PhoneWorld<TcpConnector, PhoneClock, PhoneRandom>,
    rng: Rng,
    kind: KindName,
    ids: Vec<RecordId>,
    bodies: Bodies,
    writer: Phone,
    reader: Phone,
}

/// A device with its connection.
struct Phone {
    replica: Replica,
    session: Session,
    identity: Arc<Identity>,
    inbox: Subscription,
    /// What it sent and was sent, oldest first.
    sent: Vec<String>,
    received: Vec<String>,
}

impl Office {
    /// Opens the office with so many records, which both devices have pulled.
    pub(super) fn new(seed: u64, records: usize) -> Result<Self> {
        let world = World::new(seed, Limits::default());
        let hub = Arc::new(Hub::new(1_024));
        let store =
            MemoryStore::new(world.clock.clone(), world.random.clone(), hub.clone(), world.limits.clone());
        let kind = KindName::new("ticket")?;
        let catalogue = Catalogue::new([(kind.clone(), KindRule::default())].into());
        let engine = Engine::new(store, hub, catalogue, world.limits.clone().lifted(), NullObserver);
        let mut rng = Rng::new(seed, 0xB17E);
        let ids = (0..records).map(|_| RecordId::new(&uuid(&mut rng))).collect::<Result<_, _>>()?;
        let phone_random = PhoneRandom(Mutex::new(Rng::new(seed, 0x0b1d)));
        let mut office = Self {
            phone_world: PhoneWorld::new(TcpConnector, PhoneClock(world.clock.clone()), phone_random),
            writer: Phone::connect(&engine, "writer", &mut rng)?,
            reader: Phone::connect(&engine, "reader", &mut rng)?,
            bodies: Bodies::new(seed, 4 * records),
            engine,
            world,
            rng,
            kind,
            ids,
        };
        office.fill()?;
        Ok(office)
    }

    fn fill(&mut self) -> Result<()> {
        for at in 0..self.ids.len() {
            let body = fields(self.bodies.at(at))?;
            let create = Edit::create(self.kind.clone(), self.ids[at].clone(), body);
            self.phone_world.edit(&mut self.writer.replica, create)?;
        }
        for round in 0..3 {
            let Self { engine, world, writer, reader, .. } = self;
            writer.pump(engine, world)?;
            reader.pump(engine, world)?;
            if round > 0 {
                break;
            }
            writer.replica.request_pull();
            reader.replica.request_pull();
        }
        let caught_up =
            |phone: &Phone| phone.replica.is_settled() && phone.replica.views().count() == self.ids.len();
        ensure!(caught_up(&self.writer) && caught_up(&self.reader), "the records did not reach both devices");
        Ok(())
    }

    /// Lets the user change one field of a record, another one with each record, after some time.
    pub(super) fn edit(&mut self, record: usize, wanted: Fields, gap_ms: u64) -> Result<()> {
        let spread_ms = self.rng.between(0, gap_ms / 2);
        self.world.clock.set(self.world.clock.now_ms() + gap_ms + spread_ms);
        let id = self.ids[record].clone();
        let view = self.writer.replica.view(self.kind.as_str(), id.as_str()).context("no such record")?;
        let (name, _) = view.fields.iter().nth(record % view.fields.len()).context("no fields")?;
        let changed = self.other_value(record, name, &view.fields)?;
        let written = if wanted == Fields::All { with(&view.fields, &changed) } else { changed };
        let edit = Edit::patch(self.kind.clone(), id, written);
        self.phone_world.edit(&mut self.writer.replica, edit)?;
        Ok(())
    }

    /// Finds another value for a field among the bodies that no record has.
    fn other_value(&self, record: usize, name: &str, seen: &Object) -> Result<Object> {
        for number in self.ids.len() + record..4 * self.ids.len() {
            let body = fields(self.bodies.at(number))?;
            let value = body.get(name).filter(|value| seen.get(name) != Some(*value));
            if let Some(value) = value {
                return Ok(fields(&format!("{{\"{name}\":{value}}}"))?);
            }
        }
        Err(anyhow!("every body has the same {name}"))
    }

    /// Sends what was edited and takes the three messages.
    pub(super) fn exchange(&mut self) -> Result<Exchange> {
        let Self { engine, world, writer, reader, .. } = self;
        for phone in [&mut *writer, &mut *reader] {
            phone.sent.clear();
            phone.received.clear();
        }
        writer.pump(engine, world)?;
        reader.pump(engine, world)?;
        let exchange = Exchange {
            sync_data: only(&writer.sent, "sync_data")?,
            ack: only(&writer.received, "ack")?,
            delta: only(&reader.received, "server_delta")?,
        };
        // The writer learns its versions by a pull, as a device does that goes on.
        writer.replica.request_pull();
        writer.pump(engine, world)?;
        ensure!(writer.replica.is_settled() && reader.replica.is_settled(), "the devices are not caught up");
        Ok(exchange)
    }
}

/// Puts changed fields into a record.
fn with(record: &Object, changed: &Object) -> Object {
    let mut all = ObjectBuilder::with_capacity(record.as_str().len() + 64, record.len());
    for (name, value) in record.iter() {
        all.push(name, changed.get(name).unwrap_or(value));
    }
    all.finish()
}

/// Finds the one message of a type.
fn only(texts: &[String], kind: &str) -> Result<String> {
    let head = format!("{{\"type\":\"{kind}\"");
    let mut found = texts.iter().filter(|text| text.starts_with(&head));
    let first = found.next().with_context(|| format!("no {kind}"))?;
    ensure!(found.next().is_none(), "more than one {kind}");
    Ok(first.clone())
}

impl Phone {
    fn connect(engine: &Engine<MemoryStore, NullObserver>, device: &str, rng: &mut Rng) -> Result<Self> {
        let (tenant, user) = (TenantId::new("acme")?, UserId::text("ada")?);
        let roles = vec!["staff".into()];
        let identity = block_on(engine.identify(tenant, user, Some(DeviceId::new(device)?), roles, &[]));
        let identity = Arc::new(identity.map_err(|fault| anyhow!("{fault}"))?);
        let head = block_on(engine.head(&identity)).map_err(|fault| anyhow!("{fault}"))?;
        let inbox = engine.subscribe(&identity);
        let limits = Arc::clone(engine.limits());
        let meter = engine.meter(&identity.tenant_id, &identity.user, BEGIN_MS);
        let session = Session::new(Arc::clone(&identity), limits, meter, &head, device.into(), 0, BEGIN_MS);
        let mut replica = Replica::new(vec![KindName::new("ticket")?]);
        replica.handle_connected(SyncId::new(&uuid(rng))?);
        Ok(Self { replica, session, identity, inbox, sent: Vec::new(), received: Vec::new() })
    }

    /// Exchanges messages until nobody has anything to say.
    fn pump(&mut self, engine: &Engine<MemoryStore, NullObserver>, world: &World) -> Result<()> {
        let now_ms = world.clock.now_ms();
        let mut quiet = false;
        while !quiet {
            quiet = true;
            while let Some(text) = self.replica.poll_transmit() {
                let message = decode(Encoding::Json, text.as_bytes(), &world.limits);
                self.session.handle_message(message, now_ms);
                self.sent.push(text);
                quiet = false;
            }
            while let Some(committed) = self.inbox.try_next() {
                self.session.handle_commit(&committed, now_ms);
            }
            while let Some(output) = self.session.poll_output() {
                quiet = false;
                match output {
                    Output::Send(text) => {
                        self.replica.handle_frame(text.as_bytes(), now_ms)?;
                        self.received.push(text);
                    }
                    Output::Work(work) => {
                        let done = block_on(engine.perform(&self.identity, *work, now_ms, "bytes"));
                        self.session.handle_done(done, now_ms);
                    }
                    other => return Err(anyhow!("the session wants {other:?}")),
                }
            }
        }
        Ok(())
    }
}

/// Writes a random UUID of version 4.
fn uuid(rng: &mut Rng) -> String {
    let bits = u128::from(rng.next()) << 64 | u128::from(rng.next());
    let bits = bits & !(0xf << 76 | 0x3 << 62) | 0x4 << 76 | 0x2 << 62;
    let text = format!("{bits:032x}");
    [&text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..]].join("-")
}

/// The devices' clock is the server's.
struct PhoneClock(Arc<ServerClock>);

impl driftline_client::Clock for PhoneClock {
    fn now_ms(&self) -> u64 {
        self.0.now_ms()
    }

    /// Nothing waits in here.
    async fn sleep(&self, _duration: Duration) {}
}

/// The devices' randomness.
struct PhoneRandom(Mutex<Rng>);

impl driftline_client::Random for PhoneRandom {
    fn fill(&self, bytes: &mut [u8]) {
        let mut rng = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&rng.next().to_le_bytes()[..chunk.len()]);
        }
    }
}
