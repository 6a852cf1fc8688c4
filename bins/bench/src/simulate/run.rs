//! One run: the loop that lets one thing happen after the other, and looks at the laws in between.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::{Result, anyhow};
use driftline_engine::{
    Catalogue, Entry, Head, Hub, Identity, Row, Store as _, SubmissionResult, Task, conflicts_kind,
};
use driftline_model::{DeviceId, Intents, Limits, RecordId, TenantId, UserId};

use super::backend::Backend;
use super::device::{Account, Device};
use super::evidence::Evidence;
use super::journal::{Journal, Journaled};
use super::laws::{Key, Laws};
use super::model::compare;
use super::network::{Event, Network};
use super::report::{Counts, Outcome, Stop, Story, Violation};
use super::schedule::Nature;
use super::server::{Effect, Server};
use super::setup::{Mode, Setup};
use super::workload::Workload;
use super::world::{BEGIN_MS, World, block_on};
use crate::rng::Rng;
use crate::verify::verify;

/// Commits that may wait for one session before it has to pull; few, so that sessions do fall behind.
const HUB_QUEUE: usize = 8;

/// Virtual time within which all have to agree after the faults.
const SETTLE_MS: u64 = 15 * 60_000;

/// How close a device has to be to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Closeness {
    /// It shows the same.
    Seen,
    /// And it stands at the same place.
    Exact,
}

/// Plays the run of a setup.
///
/// # Errors
/// What kept the run from being played; a broken law is no error but stands in the outcome.
pub fn play<B: Backend>(setup: &Setup, backend: &mut B) -> Result<Outcome> {
    let mut run = Run::new(setup, backend)?;
    let violation = match run.play() {
        Ok(()) => None,
        Err(Stop::Violation(violation)) => Some(violation),
        Err(Stop::Broken(error)) => return Err(error),
    };
    run.counts.messages = run.network.delivered;
    run.counts.device_ms = (run.network.now_ms - BEGIN_MS) * setup.devices as u64;
    let story = run.story.lines.take().unwrap_or_default();
    Ok(Outcome { seed: setup.seed, counts: run.counts, violation, story })
}

/// Everything of one run.
pub(super) struct Run<'a, B: Backend> {
    pub(super) setup: &'a Setup,
    pub(super) backend: &'a mut B,
    pub(super) world: World,
    catalogue: Catalogue,
    /// Nothing only while it restarts.
    server: Option<Server<B::Store>>,
    pub(super) journal: Journal,
    pub(super) network: Network,
    pub(super) devices: Vec<Device>,
    /// Who each device is to the present store.
    pub(super) identities: Vec<Identity>,
    /// Somebody at a desk who decides conflicts.
    pub(super) reviewer: Option<Identity>,
    pub(super) workload: Workload,
    pub(super) laws: Laws,
    pub(super) rng: Rng,
    pub(super) nature: Nature,
    pub(super) counts: Counts,
    pub(super) story: Story,
    /// Milliseconds that the server's clock is off.
    pub(super) server_offset_ms: i64,
    pub(super) has_copy: bool,
    /// What the judges get in the end, and what they would get of the store's copy.
    pub(super) evidence: Evidence,
    pub(super) saved_evidence: Evidence,
    /// Records that a clean-up has removed at some time.
    pub(super) removed: BTreeSet<Key>,
}

impl<'a, B: Backend> Run<'a, B> {
    fn new(setup: &'a Setup, backend: &'a mut B) -> Result<Self> {
        let mut rng = Rng::new(setup.seed, 1);
        let limits = limits(&mut rng);
        let nature = Nature::draw(&mut rng);
        let latency = nature.latency;
        let mut run = Self {
            setup,
            backend,
            world: World::new(setup.seed, limits.clone()),
            catalogue: setup.catalogue()?,
            server: None,
            journal: Journal::default(),
            network: Network::new(BEGIN_MS, latency, Rng::new(setup.seed, 2)),
            devices: Vec::new(),
            identities: Vec::new(),
            reviewer: None,
            workload: Workload::new(setup.records, setup.fields()?, Rng::new(setup.seed, 3)),
            laws: Laws::new(limits.skew_ms_max, setup.orders()?),
            rng,
            nature,
            counts: Counts::default(),
            story: Story { lines: setup.tell.then(Vec::new) },
            server_offset_ms: 0,
            has_copy: false,
            evidence: Evidence::default(),
            saved_evidence: Evidence::default(),
            removed: BTreeSet::new(),
        };
        for number in 0..setup.devices {
            let offset_ms = run.nature.skew_ms(&mut run.rng);
            run.devices.push(Device::new(number, account(number)?, offset_ms));
        }
        run.start_server()?;
        Ok(run)
    }

    fn play(&mut self) -> Result<(), Stop> {
        self.plan_step();
        while let Some(event) = self.next_event() {
            self.happen(event)?;
            if self.counts.steps == self.setup.steps {
                break;
            }
        }
        if self.setup.mode == Mode::Liveness {
            self.settle()?;
        }
        self.judge()
    }

    /// Has the model and the verifier look at what the server holds.
    fn judge(&mut self) -> Result<(), Stop> {
        let keys: Vec<Key> = self.laws.rows().keys().cloned().collect();
        keys.iter().try_for_each(|key| self.collect(key))?;
        self.collect_conflicts()?;
        let book = self.journal.book();
        let mut history = self.evidence.history(book.commits(), self.laws.rows(), &self.identities)?;
        history.gathering = self.setup.gathering()?;
        let report = verify(&history);
        self.counts.audited = report.audited;
        self.counts.silent = report.silent_losses.len() as u64;
        if let Some(loss) = report.silent_losses.first() {
            let what = format!(
                "{} {} = {} of {:?} n {}: {}",
                loss.record, loss.field, loss.value, loss.device, loss.n, loss.why
            );
            return Err(Violation::new("I4", what).into());
        }
        if self.setup.is_join()? {
            let skew_ms_max = self.world.limits.skew_ms_max;
            let (rows, removed) = (self.laws.rows(), &self.removed);
            self.counts.compared = compare(book.commits(), rows, removed, &self.identities, skew_ms_max)?;
        }
        Ok(())
    }

    /// Takes the audit rows of a record.
    pub(super) fn collect(&mut self, key: &Key) -> Result<()> {
        let server = self.server.as_ref().expect("a server runs between two events");
        self.evidence.collect(server.engine.store(), &self.identities[0], key)
    }

    /// Faults end; all have to agree within a bound of time and messages.
    fn settle(&mut self) -> Result<(), Stop> {
        self.end_faults()?;
        let waiting: u64 = self.devices.iter().map(|device| device.replica.queue_len() as u64).sum();
        let devices = self.devices.len() as u64;
        let until_ms = self.network.now_ms + SETTLE_MS;
        let messages_max = self.network.delivered + 400 * devices + 60 * devices * waiting;
        let mut closeness = Closeness::Seen;
        let mut open = String::new();
        while let Some(event) = self.next_event() {
            self.happen(event)?;
            match (self.disagreement(closeness)?, closeness) {
                (None, Closeness::Exact) => return Ok(()),
                (None, Closeness::Seen) => {
                    // Own writes may lie on top of older bodies until a pull tells of them.
                    closeness = Closeness::Exact;
                    for number in 0..self.devices.len() {
                        self.devices[number].replica.request_pull();
                        self.open_app(number)?;
                    }
                }
                (Some(what), _) => open = what,
            }
            if self.network.now_ms > until_ms || self.network.delivered > messages_max {
                break;
            }
        }
        Err(Violation::new("liveness", format!("not settled within the bound: {open}")).into())
    }

    /// Tells what keeps the devices from agreeing with the server and so with each other.
    fn disagreement(&self, closeness: Closeness) -> Result<Option<String>, Stop> {
        let head = self.head()?;
        for (device, identity) in self.devices.iter().zip(&self.identities) {
            let replica = &device.replica;
            let arrived = closeness == Closeness::Seen || replica.seq() == head.seq;
            if replica.queue_len() > 0 || !replica.is_settled() || !arrived {
                return Ok(Some(format!("{} is {replica:?}, the head {}", name(device), head.seq)));
            }
            if let Err(violation) = self.laws.agrees(device, identity) {
                return Ok(Some(violation.of(&name(device)).to_string()));
            }
        }
        Ok(None)
    }

    /// Takes everything that was set aside for a reviewer.
    pub(super) fn collect_conflicts(&mut self) -> Result<()> {
        let server = self.server.as_ref().expect("a server runs between two events");
        self.evidence.collect_conflicts(server.engine.store(), &self.identities)
    }

    fn next_event(&mut self) -> Option<Event> {
        let event = self.network.next()?;
        self.world.clock.set(self.server_ms());
        Some(event)
    }

    /// The server's own clock.
    pub(super) fn server_ms(&self) -> u64 {
        self.network.now_ms.saturating_add_signed(self.server_offset_ms)
    }

    fn happen(&mut self, event: Event) -> Result<(), Stop> {
        match event {
            // The schedule is over.
            Event::Step if self.counts.steps == self.setup.steps => {}
            Event::Step => self.step()?,
            Event::Connect { device, attempt } => self.connect(device, attempt)?,
            Event::Wake { device, at_ms } => self.wake(device, at_ms)?,
            Event::Background { device, visit } => self.background(device, visit)?,
            Event::ToServer { pipe, text } => self.server_hears(pipe, text)?,
            Event::ToDevice { pipe, text } => self.device_hears(pipe, &text)?,
            Event::Closed { pipe } => self.closed(pipe)?,
            Event::Gone { pipe } => self.server().disconnect(pipe),
            Event::Work { pipe } => {
                let now_ms = self.server_ms();
                let effects = self.server().finish_work(pipe, now_ms);
                self.after_commit(effects)?;
            }
            Event::Commits { pipe } => {
                let now_ms = self.server_ms();
                let effects = self.server().hear(pipe, now_ms);
                self.perform(effects);
            }
            Event::Tick { pipe } => self.tick(pipe),
            Event::Post { device, request, body, repeated } => self.post(device, request, &body, repeated)?,
            Event::Answer { device, request, status, body } => self.answer(device, request, status, &body)?,
            Event::GiveUp { device, request } => self.give_up(device, request)?,
            Event::Request { device, request } => self.request(device, request)?,
        }
        Ok(())
    }

    fn tick(&mut self, pipe: u64) {
        let now_ms = self.server_ms();
        let (effects, again_ms) = self.server().tick(pipe, now_ms);
        self.perform(effects);
        if let Some(again_ms) = again_ms {
            self.network.after(again_ms.saturating_sub(now_ms), Event::Tick { pipe });
        }
    }

    pub(super) fn server(&mut self) -> &mut Server<B::Store> {
        self.server.as_mut().expect("a server runs between two events")
    }

    /// Stops the server without a goodbye.
    pub(super) fn stop_server(&mut self) {
        self.server = None;
    }

    /// Starts a server on what the store holds.
    pub(super) fn start_server(&mut self) -> Result<()> {
        let hub = Arc::new(Hub::new(HUB_QUEUE));
        let inner = self.backend.open(&self.world, hub.clone())?;
        let clock = Arc::clone(&self.world.clock);
        let store = Journaled { inner, journal: self.journal.clone(), clock };
        let server = Server::new(store, hub, self.catalogue.clone(), self.world.limits.clone());
        let identities = self.devices.iter().map(|device| server.identify(&device.account));
        self.identities = identities.collect::<Result<_>>()?;
        self.reviewer = Some(server.identify_as(&desk()?, "admin")?);
        self.server = Some(server);
        Ok(())
    }

    pub(super) fn head(&self) -> Result<Head> {
        let server = self.server.as_ref().expect("a server runs between two events");
        block_on(server.engine.head(&self.identities[0])).map_err(|fault| anyhow!("{fault}"))
    }

    /// Passes on what the server wants.
    pub(super) fn perform(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Send(pipe, text) => self.network.send_down(pipe, text),
                Effect::Close(pipe) => self.network.close_down(pipe),
                Effect::Work(pipe) => {
                    let thinking_ms = self.nature.thinking_ms(&mut self.rng);
                    self.network.work(pipe, thinking_ms);
                }
            }
        }
    }

    /// Passes on what the server wants after work that may have committed something, and looks at the laws.
    pub(super) fn after_commit(&mut self, effects: Vec<Effect>) -> Result<(), Stop> {
        self.perform(effects);
        let unread = self.journal.book().unread();
        if unread.is_empty() {
            return Ok(());
        }
        for pipe in self.server().listening() {
            let delay_ms = self.rng.between(0, 20);
            self.network.after(delay_ms, Event::Commits { pipe });
        }
        for commit in unread {
            self.counts.commits += 1;
            for (entry, result) in commit.submission.entries.iter().zip(&commit.receipt.results) {
                self.counts.code(if result.duplicate { "duplicate" } else { result.code.as_str() });
                self.counts.conflicts += u64::from(result.strategy.is_some() && !result.duplicate);
                self.counts.merged += u64::from(result.code.as_str() == "merged" && !result.duplicate);
                let now_ms = self.network.now_ms - BEGIN_MS;
                let (identities, devices) = (&self.identities, &self.devices);
                self.story.tell(now_ms, || {
                    let of = |identity: &Identity| identity.device.as_ref().map(|(no, _)| *no);
                    let at = identities.iter().position(|it| of(it) == Some(commit.submission.device));
                    let author = at.map_or("rita's desk".to_owned(), |at| name(&devices[at]));
                    format!("server: {author}, {}", answered(entry, result))
                });
            }
            for n in self.laws.committed(&commit)? {
                self.evidence.born(commit.submission.device, n);
            }
            for (entry, result) in commit.submission.entries.iter().zip(&commit.receipt.results) {
                if let (Some(kind), Some(id)) = (&entry.kind, &entry.id) {
                    let key = (kind.clone(), id.clone());
                    let row = self.stored(&key)?;
                    self.laws.lowered(&commit, &key, row.as_ref())?;
                    self.look_at(key)?;
                }
                let decided = match &entry.task {
                    Task::Resolve(resolve) => Some(&resolve.conflict_id),
                    _ => result.conflict_id.as_ref(),
                };
                if let Some(conflict_id) = decided {
                    let id = RecordId::new(conflict_id.as_str()).map_err(anyhow::Error::from)?;
                    self.look_at((conflicts_kind(), id))?;
                }
            }
        }
        Ok(())
    }

    /// Looks at how a record stands now.
    pub(super) fn look_at(&mut self, key: Key) -> Result<(), Stop> {
        let row = self.stored(&key)?;
        if let Some(row) = &row {
            self.laws.stored(row)?;
        }
        self.laws.set_row(key, row);
        Ok(())
    }

    fn stored(&self, (kind, id): &Key) -> Result<Option<Row>> {
        let server = self.server.as_ref().expect("a server runs between two events");
        Ok(block_on(server.engine.store().record(self.identities[0].tenant, kind, id))?)
    }

    /// Looks at a device after something happened to it.
    pub(super) fn check(&mut self, number: usize) -> Result<(), Stop> {
        let head = self.head()?;
        let (device, identity) = (&mut self.devices[number], &self.identities[number]);
        let whom = name(device);
        let no = identity.device.as_ref().map(|(no, _)| *no).unwrap_or_default();
        for heard in device.heard() {
            self.laws.heard(no, &heard).map_err(|violation| violation.of(&whom))?;
        }
        if device.knows_its_place() {
            self.laws.device(device, identity, &head).map_err(|violation| violation.of(&whom))?;
        }
        Ok(())
    }

    /// Puts something that a device did into the story.
    pub(super) fn told(&mut self, number: usize, line: impl FnOnce(&Device) -> String) {
        let device = &self.devices[number];
        self.story.tell(self.network.now_ms - BEGIN_MS, || format!("{}: {}", name(device), line(device)));
    }

    /// Puts something that befell the server into the story.
    pub(super) fn told_of_server(&mut self, line: impl FnOnce() -> String) {
        self.story.tell(self.network.now_ms - BEGIN_MS, || format!("server: {}", line()));
    }
}

/// Puts an item with its answer into words.
fn answered(entry: &Entry, result: &SubmissionResult) -> String {
    let what = match &entry.task {
        Task::Apply(apply) => {
            let more = asked(apply.intents.as_deref());
            format!("{:?} {} base {} {}{more}", apply.op, apply.id, apply.base, apply.fields.as_str())
        }
        Task::Resolve(resolve) => format!("Resolve {}", resolve.conflict_id),
        Task::Append(append) => format!("Append {}", append.fields.as_str()),
        Task::Aggregate(aggregate) => format!("Aggregate of {} series", aggregate.series.len()),
        Task::Refuse(..) => "something unreadable".to_owned(),
    };
    let again = if result.duplicate { " again" } else { "" };
    let version = result.version.map_or(String::new(), |version| format!(" at {version}"));
    format!("n {}: {what} -> {}{again}{version}", entry.n.unwrap_or_default(), result.code)
}

/// Puts what a change asks beside whole values into words.
pub(super) fn asked(intents: Option<&Intents>) -> String {
    let Some(intents) = intents.filter(|intents| !intents.is_empty()) else { return String::new() };
    let mut text = String::new();
    for (name, by) in &intents.increments {
        text.push_str(&format!(" {name} {by:+}"));
    }
    for (word, part) in [("add", &intents.add), ("remove", &intents.remove), ("saw", &intents.previous)] {
        if !part.is_empty() {
            text.push_str(&format!(" {word} {}", part.as_str()));
        }
    }
    if intents.deescalate {
        text.push_str(" on purpose");
    }
    text
}

/// Names a device in a story.
pub(super) fn name(device: &Device) -> String {
    format!("{}'s {}", device.account.user, device.account.device)
}

fn account(number: usize) -> Result<Account> {
    const USERS: [&str; 8] = ["ada", "ada", "bob", "cleo", "dora", "emil", "fay", "gus"];
    let user = match USERS.get(number) {
        Some(user) => (*user).to_owned(),
        None => format!("user{number}"),
    };
    let device = if number == 1 { "tablet" } else { "phone" };
    Ok(Account { tenant: TenantId::new("acme")?, user: UserId::text(&user)?, device: DeviceId::new(device)? })
}

fn desk() -> Result<Account> {
    Ok(Account {
        tenant: TenantId::new("acme")?,
        user: UserId::text("rita")?,
        device: DeviceId::new("desk")?,
    })
}

/// Limits that small systems reach.
fn limits(rng: &mut Rng) -> Limits {
    let page_rows = *rng.pick(&[1, 2, 3, 500]);
    let batch_items = Limits::default().batch_items;
    let unacknowledged_batches = *rng.pick(&[1, 4, 4]);
    Limits { page_rows, batch_items, unacknowledged_batches, ..Limits::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_two_devices_share_a_user() {
        let users: Vec<_> = (0..10).map(|at| account(at).expect("a name").user.to_string()).collect();
        assert_eq!((&users[0], &users[1]), (&users[1], &users[0]));
        assert!(users[1..].iter().enumerate().all(|(at, user)| !users[at + 2..].contains(user)));
    }
}
