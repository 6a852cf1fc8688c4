//! The server's side: the real engine with a session per connection, as the transport's shell drives it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow};
use driftline_engine::{
    Catalogue, Engine, Hub, Identity, NullObserver, Output, Prepared, PullFault, Session, Store,
    Subscription, SyncFault, Work,
};
use driftline_model::Limits;
use driftline_protocol::{
    Encoding, ErrorCode, Fault, Problem, ResyncReason, ResyncRequired, SyncRequest, decode,
    encode_sync_answer, to_json,
};

use super::device::Account;
use super::journal::Journaled;
use super::world::block_on;

/// What the server wants of the network.
#[derive(Debug)]
pub(super) enum Effect {
    Send(u64, String),
    Close(u64),
    /// A work was begun; it is done later.
    Work(u64),
}

/// A server between two restarts.
pub(super) struct Server<S> {
    pub(super) engine: Engine<Journaled<S>, NullObserver>,
    connections: BTreeMap<u64, Connection>,
}

struct Connection {
    device: usize,
    identity: Arc<Identity>,
    session: Session,
    /// Messages that the session does not want yet.
    inbox: VecDeque<String>,
    works: VecDeque<Prepared>,
    commits: Option<Subscription>,
}

impl<S: Store> Server<S> {
    pub(super) fn new(store: Journaled<S>, hub: Arc<Hub>, catalogue: Catalogue, limits: Limits) -> Self {
        let engine = Engine::new(store, hub, catalogue, limits.lifted(), NullObserver);
        Self { engine, connections: BTreeMap::new() }
    }

    pub(super) fn identify(&self, account: &Account) -> Result<Identity> {
        self.identify_as(account, "staff")
    }

    pub(super) fn identify_as(&self, account: &Account, role: &str) -> Result<Identity> {
        let roles = vec![role.into()];
        let device = Some(account.device.clone());
        block_on(self.engine.identify(account.tenant.clone(), account.user.clone(), device, roles, &[]))
            .map_err(|fault| anyhow!("{fault}"))
    }

    /// Lets a connection in; it is greeted.
    pub(super) fn connect(
        &mut self,
        number: u64,
        device: usize,
        account: &Account,
        now_ms: u64,
    ) -> Result<Vec<Effect>> {
        let identity = Arc::new(self.identify(account)?);
        let head = block_on(self.engine.head(&identity)).map_err(|fault| anyhow!("{fault}"))?;
        let seed = u128::from(number) << 64;
        let name = format!("c{number}");
        let limits = Arc::clone(self.engine.limits());
        let meter = self.engine.meter(&identity.tenant_id, &identity.user, now_ms);
        let session = Session::new(Arc::clone(&identity), limits, meter, &head, name, seed, now_ms);
        let (inbox, works) = (VecDeque::new(), VecDeque::new());
        let connection = Connection { device, identity, session, inbox, works, commits: None };
        self.connections.insert(number, connection);
        Ok(self.pump(number, now_ms))
    }

    /// Ends the other connections of a device.
    pub(super) fn replace(&mut self, number: u64, device: usize, now_ms: u64) -> Vec<Effect> {
        let others: Vec<u64> = self
            .connections
            .iter()
            .filter(|(other, connection)| **other != number && connection.device == device)
            .map(|(other, _)| *other)
            .collect();
        let mut effects = Vec::new();
        for other in others {
            if let Some(connection) = self.connections.get_mut(&other) {
                connection.session.end(ErrorCode::Replaced, "the same device connected again", now_ms);
            }
            effects.extend(self.pump(other, now_ms));
        }
        effects
    }

    /// Forgets a connection that is gone.
    pub(super) fn disconnect(&mut self, number: u64) {
        self.connections.remove(&number);
    }

    /// Takes a message in.
    pub(super) fn receive(&mut self, number: u64, text: String, now_ms: u64) -> Vec<Effect> {
        if let Some(connection) = self.connections.get_mut(&number) {
            connection.inbox.push_back(text);
        }
        self.pump(number, now_ms)
    }

    /// Finishes the oldest work of a connection. A batch of a connection that is gone by now is applied all the same.
    pub(super) fn finish_work(&mut self, number: u64, now_ms: u64) -> Vec<Effect> {
        let Some(connection) = self.connections.get_mut(&number) else { return Vec::new() };
        let Some(prepared) = connection.works.pop_front() else { return Vec::new() };
        let identity = Arc::clone(&connection.identity);
        let done = block_on(self.engine.finish(&identity, prepared, now_ms));
        if let Some(connection) = self.connections.get_mut(&number) {
            connection.session.handle_done(done, now_ms);
        }
        self.pump(number, now_ms)
    }

    /// Lets a session hear what was committed.
    pub(super) fn hear(&mut self, number: u64, now_ms: u64) -> Vec<Effect> {
        if let Some(connection) = self.connections.get_mut(&number) {
            while let Some(committed) = connection.commits.as_mut().and_then(Subscription::try_next) {
                connection.session.handle_commit(&committed, now_ms);
            }
        }
        self.pump(number, now_ms)
    }

    /// Looks at the time; tells when to look again.
    pub(super) fn tick(&mut self, number: u64, now_ms: u64) -> (Vec<Effect>, Option<u64>) {
        let Some(connection) = self.connections.get_mut(&number) else { return (Vec::new(), None) };
        connection.session.handle_time(now_ms);
        let again_ms = connection.session.deadline_ms();
        let effects = self.pump(number, now_ms);
        let again_ms = self.connections.contains_key(&number).then_some(again_ms.max(now_ms + 50));
        (effects, again_ms)
    }

    /// The connections that hear of commits.
    pub(super) fn listening(&self) -> Vec<u64> {
        let listening = self.connections.iter().filter(|(_, connection)| connection.commits.is_some());
        listening.map(|(number, _)| *number).collect()
    }

    /// Answers a request to the HTTP door.
    pub(super) fn post(&self, account: &Account, body: &str, now_ms: u64) -> Result<(u16, String)> {
        let request = match SyncRequest::decode(Encoding::Json, body.as_bytes(), self.engine.limits()) {
            Ok(request) => request,
            Err(fault) => return Ok(problem(&fault, None)),
        };
        let identity = self.identify(account).context("a request was not let in")?;
        Ok(match block_on(self.engine.sync(&identity, request, (None, 0), now_ms, "http")) {
            Ok(answer) => (200, encode_sync_answer(now_ms, &answer.ack, &answer.data)),
            Err(SyncFault::Refused(fault)) => problem(&fault, None),
            Err(SyncFault::Pull(fault)) => pull_problem(&fault),
            Err(other) => problem(&Fault::new(ErrorCode::HandlerError, other.to_string()), None),
        })
    }

    /// Does what a session wants, and feeds it what it wants.
    fn pump(&mut self, number: u64, now_ms: u64) -> Vec<Effect> {
        let Self { engine, connections } = self;
        let Some(connection) = connections.get_mut(&number) else { return Vec::new() };
        let mut effects = Vec::new();
        let mut closed = false;
        loop {
            while let Some(output) = connection.session.poll_output() {
                match output {
                    Output::Send(text) => effects.push(Effect::Send(number, text)),
                    Output::Work(work) => {
                        // Listening starts before the head is read, so that no commit falls between the two.
                        if matches!(*work, Work::Start { .. }) {
                            connection.commits = Some(engine.subscribe(&connection.identity));
                        }
                        let prepared = engine.prepare(&connection.identity, *work, now_ms, "socket");
                        connection.works.push_back(block_on(prepared));
                        effects.push(Effect::Work(number));
                    }
                    Output::Close(_) => {
                        effects.push(Effect::Close(number));
                        closed = true;
                    }
                    _ => {}
                }
            }
            if closed || !connection.session.wants_input() {
                break;
            }
            let Some(text) = connection.inbox.pop_front() else { break };
            connection
                .session
                .handle_message(decode(Encoding::Json, text.as_bytes(), engine.limits()), now_ms);
        }
        if closed {
            connections.remove(&number);
        }
        effects
    }
}

/// The answer of a pull that was of no use, as the HTTP door gives it.
fn pull_problem(fault: &PullFault) -> (u16, String) {
    let (code, resync) = match fault {
        PullFault::CursorInvalid(epoch) => {
            (ErrorCode::CursorInvalid, Some((ResyncReason::CursorExpired, *epoch)))
        }
        PullFault::CursorExpired(epoch) => {
            (ErrorCode::CursorExpired, Some((ResyncReason::CursorExpired, *epoch)))
        }
        PullFault::EpochChanged(epoch) | PullFault::Ahead(epoch) => {
            (ErrorCode::CursorInvalid, Some((ResyncReason::EpochChanged, *epoch)))
        }
        _ => (ErrorCode::StoreUnavailable, None),
    };
    let resync = resync.map(|(reason, epoch)| ResyncRequired::new(reason, epoch));
    problem(&Fault::new(code, fault.to_string()), resync.as_ref())
}

fn problem(fault: &Fault, resync: Option<&ResyncRequired>) -> (u16, String) {
    let status = fault.code.status();
    let mut problem = Problem { status, ..Problem::new(fault, "http") };
    if let Some(resync) = resync {
        problem = problem.with_resync(resync);
    }
    (status, to_json(&problem))
}
