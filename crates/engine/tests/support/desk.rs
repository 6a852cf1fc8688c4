//! A session with an engine and a memory store behind it, and everything in a test's hand: the time, when work is done
//! and when commits are heard.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use driftline_engine::{
    Catalogue, Close, Committed, Done, Ear, Engine, EventRules, Heard, Hub, Identity, Listener, Listeners,
    NullObserver, Output, Session, Store, Subscription, Work,
};
use driftline_model::{DeviceId, Limits, TenantId, TenantNo, UserId};
use driftline_protocol::{Document, Encoding, EventView, ServerMessage, decode};
use driftline_storage::MemoryStore;
use driftline_testkit::{Author, Draft, FixedClock, SeededRandom, World, block_on};

pub(crate) const SYNC: &str = "00000000-0000-4000-8000-00000000000a";

/// A frame that was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: String,
    pub(crate) reply_to: Option<String>,
    pub(crate) sync_id: Option<String>,
    pub(crate) text: String,
}

impl Frame {
    fn read(text: String) -> Self {
        let document = Document::parse(text.as_bytes(), 64).expect("a session sends JSON");
        let field = |name: &str| document.root().get(name)?.as_str().map(std::borrow::Cow::into_owned);
        let (kind, reply_to, sync_id) = (field("type"), field("reply_to"), field("sync_id"));
        assert!(field("server_time").is_some(), "{text}");
        Self { kind: kind.expect("every message has a type"), reply_to, sync_id, text }
    }

    pub(crate) fn message(&self) -> ServerMessage {
        ServerMessage::decode(Encoding::Json, self.text.as_bytes()).expect("a message of the protocol")
    }

    pub(crate) fn error_code(&self) -> Option<String> {
        if self.kind != "error" {
            return None;
        }
        match self.message() {
            ServerMessage::Error(error) => Some(error.code),
            _ => None,
        }
    }
}

/// An event as it goes over the wire.
fn told(heard: &Heard) -> Frame {
    let event = &heard.event;
    let view = EventView {
        kind: &event.kind,
        id: event.id.map(|id| (event.epoch, id)),
        topic: &event.topics[heard.topic],
        values: &event.values,
        data: &event.data,
        at_ms: event.at_ms,
        now_ms: event.at_ms,
    };
    Frame::read(view.encode())
}

/// The server's side, with any number of sessions.
pub(crate) struct Office {
    pub(crate) engine: Engine<MemoryStore, NullObserver>,
    pub(crate) clock: Arc<FixedClock>,
    ring: Arc<Ringer>,
}

/// Tells a hub of commits, unless it is muted.
struct Ringer {
    hub: Arc<Hub>,
    muted: AtomicBool,
}

impl Listeners for Ringer {
    fn listening(&self, tenant: TenantNo) -> bool {
        self.hub.listening(tenant)
    }

    fn committed(&self, committed: Committed) {
        if !self.muted.load(Ordering::SeqCst) {
            self.hub.committed(committed);
        }
    }
}

impl Office {
    pub(crate) fn new(limits: Limits, hub_queue: usize) -> Self {
        Self::with(limits, hub_queue, Catalogue::default().allow_undeclared())
    }

    pub(crate) fn with(limits: Limits, hub_queue: usize, catalogue: Catalogue) -> Self {
        let clock = Arc::new(FixedClock::new(World::BEGIN_MS));
        let hub = Arc::new(Hub::new(hub_queue));
        let random = Arc::new(SeededRandom::new(1));
        let ring = Arc::new(Ringer { hub: Arc::clone(&hub), muted: AtomicBool::new(false) });
        let store = MemoryStore::new(clock.clone(), random, ring.clone(), limits.clone());
        let engine = Engine::new(store, hub, catalogue, limits, NullObserver);
        Self { engine, clock, ring }
    }

    pub(crate) fn with_rules(self, rules: EventRules) -> Self {
        Self { engine: self.engine.with_rules(rules).expect("the rules are sound"), ..self }
    }

    /// Keeps what is committed from whoever listens, as a lost ring does.
    pub(crate) fn mute(&self, muted: bool) {
        self.ring.muted.store(muted, Ordering::SeqCst);
    }

    pub(crate) fn desk_of(&self, user: &str, device: &str, roles: &[&str]) -> Desk<'_> {
        let roles = roles.iter().map(|role| Box::from(*role)).collect();
        self.desk_for(self.identity_of(user, device, roles))
    }

    pub(crate) fn identity(&self, user: &str, device: &str) -> Identity {
        self.identity_of(user, device, vec!["staff".into()])
    }

    fn identity_of(&self, user: &str, device: &str, roles: Vec<Box<str>>) -> Identity {
        let tenant = TenantId::new("acme").expect("a name");
        let user = UserId::text(user).expect("a name");
        let device = DeviceId::new(device).expect("a name");
        let identity = self.engine.identify(tenant, user, Some(device), roles, &[]);
        block_on(identity).expect("an identity")
    }

    /// Another device, which writes beside all sessions.
    pub(crate) fn author(&self, user: &str, device: &str) -> Author {
        let identity = self.identity(user, device);
        let (device, _) = identity.device.expect("a device");
        Author::new(identity.tenant, device, user)
    }

    pub(crate) fn push(&self, author: &Author, drafts: impl IntoIterator<Item = Draft>) {
        block_on(self.engine.store().commit(author.batch(drafts))).expect("a commit");
    }

    pub(crate) fn desk(&self, user: &str, device: &str) -> Desk<'_> {
        self.desk_for(self.identity(user, device))
    }

    fn desk_for(&self, identity: Identity) -> Desk<'_> {
        let identity = Arc::new(identity);
        let head = block_on(self.engine.head(&identity)).expect("a head");
        let inbox = self.engine.subscribe(&identity);
        let now_ms = driftline_engine::Clock::now_ms(&*self.clock);
        let (limits, id) = (Arc::clone(self.engine.limits()), "c1".to_owned());
        let meter = self.engine.meter(&identity.tenant_id, &identity.user, now_ms);
        let listener = self.engine.listener(&identity, Ear::of(&identity), false);
        block_on(self.engine.begin(&identity, &listener)).expect("a head");
        let session = Session::new(Arc::clone(&identity), limits, meter, &head, id, 7 << 64, now_ms);
        let session = session.listening(Arc::clone(&listener));
        let mut desk = Desk {
            office: self,
            session,
            identity,
            inbox,
            listener,
            now_ms,
            asked: VecDeque::new(),
            sent: Vec::new(),
            closed: None,
        };
        desk.poll();
        desk
    }
}

/// One session.
pub(crate) struct Desk<'a> {
    pub(crate) office: &'a Office,
    pub(crate) session: Session,
    pub(crate) identity: Arc<Identity>,
    inbox: Subscription,
    pub(crate) listener: Arc<Listener>,
    pub(crate) now_ms: u64,
    asked: VecDeque<Work>,
    sent: Vec<Frame>,
    pub(crate) closed: Option<Close>,
}

impl Desk<'_> {
    /// Takes what the session wants.
    pub(crate) fn poll(&mut self) {
        while let Some(output) = self.session.poll_output() {
            assert_eq!(self.closed, None, "nothing comes after a close: {output:?}");
            match output {
                Output::Send(text) => self.sent.push(Frame::read(text)),
                Output::Events(heard) => self.sent.extend(heard.iter().map(told)),
                Output::Work(work) => self.asked.push_back(*work),
                Output::Close(close) => self.closed = Some(close),
                other => panic!("{other:?} is new"),
            }
        }
    }

    /// Feeds a text frame.
    pub(crate) fn feed(&mut self, frame: &str) {
        let message = decode(Encoding::Json, frame.as_bytes(), self.office.engine.limits());
        self.session.handle_message(message, self.now_ms);
        self.poll();
    }

    /// How much work waits.
    pub(crate) fn waiting(&self) -> usize {
        self.asked.len()
    }

    /// Does the oldest work; its answer is still to be reported.
    pub(crate) fn perform(&mut self) -> Done {
        if self.asked.is_empty() {
            self.session.read_on();
            self.poll();
        }
        let work = self.asked.pop_front().expect("work was asked for");
        block_on(self.office.engine.perform(&self.identity, work, self.now_ms, "test"))
    }

    pub(crate) fn report(&mut self, done: Done) {
        self.session.handle_done(done, self.now_ms);
        self.poll();
    }

    /// Does all work.
    pub(crate) fn settle(&mut self) {
        while !self.asked.is_empty() || self.session.wants_page() {
            let done = self.perform();
            self.report(done);
        }
    }

    /// Hears what was committed.
    pub(crate) fn hear(&mut self) {
        while let Some(committed) = self.inbox.try_next() {
            self.session.handle_commit(&committed, self.now_ms);
            self.poll();
        }
    }

    /// Takes the events that wait, and reads the log on.
    pub(crate) fn listen(&mut self) {
        loop {
            let mut heard = Vec::new();
            self.listener.take(1 << 20, &mut heard);
            self.sent.extend(heard.iter().map(told));
            self.session.read_on();
            self.poll();
            if heard.is_empty() && self.asked.is_empty() {
                return;
            }
            self.settle();
        }
    }

    /// Loses what was committed.
    pub(crate) fn lose(&mut self) {
        while self.inbox.try_next().is_some() {}
    }

    /// Takes the frames that were sent since the last time.
    pub(crate) fn take(&mut self) -> Vec<Frame> {
        std::mem::take(&mut self.sent)
    }

    /// Feeds a frame and gives what was sent once everything is done and heard.
    pub(crate) fn ask(&mut self, frame: &str) -> Vec<Frame> {
        self.feed(frame);
        self.settle();
        self.hear();
        self.listen();
        self.take()
    }

    /// Opens the sync session [`SYNC`], and forgets the frames so far.
    pub(crate) fn start(mut self, rest: &str) -> Self {
        self.take();
        let frames = self.ask(&format!(r#"{{"type":"start_sync","sync_id":"{SYNC}"{rest}}}"#));
        assert_eq!(kinds(&frames), ["sync_session_started"], "{frames:#?}");
        self
    }

    /// Moves the time of the session and of the server.
    pub(crate) fn wait(&mut self, ms: u64) {
        self.now_ms += ms;
        self.office.clock.set(self.now_ms);
    }
}

pub(crate) fn kinds(frames: &[Frame]) -> Vec<&str> {
    frames.iter().map(|frame| frame.kind.as_str()).collect()
}
