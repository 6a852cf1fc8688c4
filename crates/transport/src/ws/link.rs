//! The session of a connection, with everything it waits for.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use driftline_engine::{
    Close, Committed, Connected, Done, Heard, Identity, Listener, Output, Ring, Session, Store, Subscription,
    Work,
};
use driftline_protocol::{self as protocol, CloseCode, ErrorCode, Fault, Form};
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesOrdered;
use tokio::sync::{oneshot, watch};
use tokio::time::{Sleep, sleep};

use super::door::{Stay, Threshold, close_code};
use super::form::{Misfit, event_frame, open, seal, write_heard};
use super::outbox::Outbox;
use super::pump::{Message, Speaker, elapsed};
use crate::app::{App, drained};
use crate::observe::count_error;
use crate::sessions::Present;
use crate::traffic::Counted;

/// One connection with everything it holds beside its socket.
pub(super) struct Link<S: Store> {
    app: Arc<App<S>>,
    identity: Arc<Identity>,
    session: Session,
    form: Form,
    connection_id: String,
    draining: watch::Receiver<bool>,
    stay: Stay<S>,
    /// The place among the user's connections, where the link itself holds it.
    _place: Option<Connected>,
    counted: Counted,
    expires_s: Option<u64>,
    digest: Option<[u8; 32]>,
    /// Looks whether the device may still be here.
    look: Option<BoxFuture<'static, Result<(), Fault>>>,
    looked_ms: u64,
    /// Ends when a log that was away is to be asked again.
    retry: Option<Pin<Box<Sleep>>>,
    lives_by_frames: bool,
    /// When the device was last written down as heard, in Unix milliseconds.
    heard_ms: u64,
    /// The engine's numbering when the identity was asked for.
    numbering: u64,
    /// Work under way; answers come in the order of the asking.
    works: FuturesOrdered<BoxFuture<'static, Box<Done>>>,
    /// Comes to its end when the work before has reached the store.
    turn: Option<oneshot::Receiver<()>>,
    commits: Option<Subscription>,
    /// The place among the live connections.
    present: Present<S>,
    /// By what the client is known whose next connection takes the subscriptions over.
    client: Option<String>,
    /// What hears events, where the session has one.
    listener: Option<Arc<Listener>>,
    /// Events on their way from the listener into the queue.
    heard: Vec<Heard>,
    /// Whether so much waits to be written that events are left where they are.
    full: bool,
    /// Whether the client did not take its events.
    slow: bool,
    /// Whether the session is to end because the server shuts down or the identity's numbers were voided: what was
    /// asked is answered, nothing more is read.
    stopping: bool,
}

/// Who is at the other end.
pub(super) struct Visitor<S: Store> {
    pub(super) present: Present<S>,
    pub(super) client: Option<String>,
    pub(super) threshold: Threshold,
    pub(super) identity: Arc<Identity>,
    pub(super) stay: Stay<S>,
    /// The place among the user's connections, unless somebody else holds it.
    pub(super) place: Option<Connected>,
    /// When its token ends, in Unix seconds; none: it came without one.
    pub(super) expires_s: Option<u64>,
    /// What the device hash is looked up by, of whoever entered with one.
    pub(super) digest: Option<[u8; 32]>,
    /// The engine's numbering, taken before the identity was asked for.
    pub(super) numbering: u64,
    /// Whether any frame is a sign of life, and not only a message.
    pub(super) lives_by_frames: bool,
}

/// A device that speaks is written down as heard at most once in so many milliseconds.
const HEARD_MS: u64 = 5_000;

/// Whether a device may still be here is looked for once in so many milliseconds.
const LOOK_MS: u64 = 30_000;

/// Bytes of frames of this connection alone that are queued in one piece.
const OWN_BYTES: usize = 32 << 10;

/// A log that is away is asked again after so many milliseconds at least.
const RETRY_MS_MIN: u64 = 50;

/// The close code of a connection that an administrator ended; the client may come again.
const DISCONNECTED: CloseCode = CloseCode(4012);

/// Bytes of events that are taken at once.
const TAKEN_BYTES: usize = 32 << 10;

/// What happens beside the socket.
pub(super) enum Event {
    Done(Box<Done>),
    Commit(Arc<Committed>),
    /// The listener has something to do.
    Ring(Ring),
    /// Commits are told no more: the tenant's number was voided.
    Voided,
    Drain,
    Replaced,
    /// Somebody wants the connection to end.
    Disconnected,
    /// Whether the device may still be here.
    Looked(Result<(), Fault>),
    /// A log that was away is to be asked again.
    Retry,
}

impl<S: Store> Link<S> {
    /// Makes the speaker of a session.
    pub(super) fn new(app: Arc<App<S>>, session: Session, visitor: Visitor<S>) -> Self {
        let Visitor {
            present,
            client,
            threshold,
            identity,
            stay,
            place,
            expires_s,
            digest,
            numbering,
            lives_by_frames,
        } = visitor;
        // A reviewer is told of conflicts from the beginning, whether or not it syncs.
        let commits = (!identity.reviews.is_empty()).then(|| app.engine.subscribe(&identity));
        let heard_ms = app.now_ms();
        let listener = session.listener().cloned();
        Self {
            draining: app.draining(),
            counted: app.traffic.count(identity.tenant),
            heard_ms,
            app,
            identity,
            session,
            form: threshold.form,
            connection_id: threshold.id,
            stay,
            _place: place,
            expires_s,
            digest,
            look: None,
            looked_ms: heard_ms,
            retry: None,
            lives_by_frames,
            numbering,
            works: FuturesOrdered::new(),
            turn: None,
            commits,
            present,
            client,
            listener,
            heard: Vec::new(),
            full: false,
            slow: false,
            stopping: false,
        }
    }

    fn log(&self, message: &Result<protocol::Message, Fault>, bytes: usize) {
        match message {
            Ok(message) => tracing::debug!(
                connection = %self.connection_id, kind = message.body.kind(), id = message.id, bytes, "message"
            ),
            Err(fault) => {
                count_error(fault.code);
                tracing::debug!(connection = %self.connection_id, code = %fault.code, bytes, "message refused");
            }
        }
    }

    /// Has a work done behind those before it.
    fn undertake(&mut self, work: Work) {
        // Listening starts before the head is read, so that no commit falls between the two.
        if matches!(work, Work::Start { .. }) {
            self.commits = Some(self.app.engine.subscribe(&self.identity));
        }
        self.look_for_voided();
        let (app, identity) = (Arc::clone(&self.app), Arc::clone(&self.identity));
        let correlation = self.connection_id.clone();
        let now_ms = app.now_ms();
        let (handed_over, turn) = oneshot::channel::<()>();
        let before = self.turn.replace(turn);
        self.works.push_back(Box::pin(async move {
            // Works reach the store in the order of their asking, whatever their preparation waits for.
            if let Some(before) = before {
                let _ = before.await;
            }
            let prepared = app.engine.prepare(&identity, work, now_ms, &correlation).await;
            let mut rest = pin!(app.engine.finish(&identity, prepared, now_ms));
            let first = poll_fn(|context| Poll::Ready(rest.as_mut().poll(context))).await;
            drop(handed_over);
            Box::new(match first {
                Poll::Ready(done) => done,
                Poll::Pending => rest.await,
            })
        }));
    }

    /// Looks now and then whether the device was disabled, removed or given another hash since it came.
    fn look_at_device(&mut self, now_ms: u64) {
        if self.identity.device.is_none() || self.look.is_some() || now_ms < self.looked_ms + LOOK_MS {
            return;
        }
        self.looked_ms = now_ms;
        let (app, identity, digest) = (Arc::clone(&self.app), Arc::clone(&self.identity), self.digest);
        self.look = Some(Box::pin(async move { app.engine.require_still_admitted(&identity, digest).await }));
    }

    /// Ends a session whose numbers were voided, so that its device comes again and gets those that hold.
    ///
    /// Who listens to commits hears of it by their end; this is for the others.
    fn look_for_voided(&mut self) {
        self.stopping |= self.app.engine.numbering() != self.numbering;
    }

    /// Moves events that wait into the queue, as far as it has room, and has the log read on once the client has taken
    /// most of what was sent.
    fn take_events(&mut self, outbox: &mut Outbox) {
        let Some(listener) = self.listener.clone() else { return };
        if std::mem::take(&mut self.slow) {
            outbox.cut();
            return self.overflow(outbox);
        }
        if self.session.wants_page() && outbox.has_room() {
            self.session.read_on();
            self.obey(outbox);
        }
        let mut heard = std::mem::take(&mut self.heard);
        while outbox.has_room() && !self.session.is_closed() {
            listener.take(TAKEN_BYTES, &mut heard);
            if heard.is_empty() {
                break;
            }
            self.tell(&mut heard, outbox);
        }
        self.full = !outbox.has_room();
        self.heard = heard;
    }

    /// Queues events.
    fn tell(&mut self, heard: &mut Vec<Heard>, outbox: &mut Outbox) {
        let now_ms = self.app.now_ms();
        let (mut bytes, events) = (0, heard.len() as u64);
        // Frames that are this connection's alone, as those of a replay, are written one behind the other.
        let mut own = Vec::new();
        let mut queue = |own: &mut Vec<u8>, shared: Option<Arc<[u8]>>| {
            bytes += (own.len() + shared.as_ref().map_or(0, |frame| frame.len())) as u64;
            outbox.append(std::mem::take(own))?;
            shared.map_or(Ok(()), |frame| outbox.share(frame))
        };
        let mut queued = Ok(());
        for heard in heard.drain(..) {
            let alone = Arc::strong_count(&heard.event) == 1 && !heard.event.has_forms();
            queued = if !alone {
                queue(&mut own, Some(event_frame(self.form, &heard, now_ms)))
            } else {
                write_heard(self.form, &heard, now_ms, &mut own);
                if own.len() < OWN_BYTES { Ok(()) } else { queue(&mut own, None) }
            };
            if queued.is_err() {
                break;
            }
        }
        if queued.and_then(|()| queue(&mut own, None)).is_err() {
            self.overflow(outbox);
        }
        self.counted.sent(events);
        self.app.counts.messages_out.increment(events);
        self.app.counts.bytes_out.increment(bytes);
    }

    /// Counts an answer that is that of an earlier request.
    fn count_replay(&self, done: &Done) {
        let replayed = match done {
            Done::Pushed(Ok(ack)) => ack.replayed,
            Done::Ingested(Ok(ack)) => ack.replayed,
            Done::Noted(Ok(ack)) => ack.replayed,
            _ => false,
        };
        if replayed {
            self.app.counts.replays.increment(1);
        }
    }

    /// Does what the session wants.
    fn obey(&mut self, outbox: &mut Outbox) {
        while let Some(output) = self.session.poll_output() {
            match output {
                Output::Send(text) => {
                    self.counted.sent(1);
                    self.app.counts.messages_out.increment(1);
                    self.app.counts.bytes_out.increment(text.len() as u64);
                    let pushed = seal(self.form, &text, |opcode, payload| outbox.push(opcode, payload));
                    if pushed.is_err() {
                        self.overflow(outbox);
                    }
                }
                Output::Events(mut heard) => self.tell(&mut heard, outbox),
                Output::Work(work) => self.undertake(*work),
                Output::Close(close) => outbox.close(close.code.0, close.reason),
                _ => {}
            }
        }
    }
}

impl<S: Store> Drop for Link<S> {
    fn drop(&mut self) {
        let (Some(listener), Some(client)) = (self.session.listener(), &self.client) else { return };
        // Who came again meanwhile has taken them over.
        if self.present.is_superseded() {
            return;
        }
        let now_ms = self.app.now_ms();
        self.app.parked.keep(&self.identity, client, listener.subscriptions(), now_ms);
    }
}

impl<S: Store> Speaker for Link<S> {
    type Event = Event;

    fn collect(&mut self, outbox: &mut Outbox) {
        self.obey(outbox);
        self.take_events(outbox);
        // Whoever was cut for reading too slowly is told so before the connection ends.
        self.obey(outbox);
        if let (Some(retry_ms), None) = (self.session.retry_ms(), &self.retry) {
            let wait_ms = retry_ms.saturating_sub(self.app.now_ms()).max(RETRY_MS_MIN);
            self.retry = Some(Box::pin(sleep(Duration::from_millis(wait_ms))));
        }
        if self.stopping && self.works.is_empty() && !self.session.is_closed() {
            let spread = u64::try_from(self.app.random_u128() % 3_000).unwrap_or_default();
            self.session.drain(500 + spread, self.app.now_ms());
            self.obey(outbox);
        }
    }

    fn listens(&self, outbox: &Outbox) -> bool {
        let outbound_bytes = self.app.engine.limits().outbound_bytes;
        self.session.wants_input() && !self.stopping && outbox.queued() < outbound_bytes / 2
    }

    async fn event(&mut self) -> Event {
        tokio::select! {
            biased;
            () = drained(&mut self.draining), if !self.stopping => Event::Drain,
            () = self.stay.replaced.notified() => Event::Replaced,
            () = self.present.disconnect.notified() => Event::Disconnected,
            looked = look(&mut self.look), if self.look.is_some() => Event::Looked(looked),
            () = elapsed(&mut self.retry), if self.retry.is_some() => Event::Retry,
            Some(done) = self.works.next(), if !self.works.is_empty() => Event::Done(done),
            commit = next_commit(&mut self.commits), if self.commits.is_some() => {
                commit.map_or(Event::Voided, Event::Commit)
            }
            ring = ring(self.listener.as_deref(), !self.full), if self.listener.is_some() && !self.slow => Event::Ring(ring),
        }
    }

    fn handle(&mut self, event: Event) {
        let now_ms = self.app.now_ms();
        match event {
            Event::Done(done) => {
                self.count_replay(&done);
                self.session.handle_done(*done, now_ms);
            }
            Event::Commit(committed) => self.session.handle_commit(&committed, now_ms),
            Event::Ring(Ring::Events) => {}
            Event::Ring(Ring::Hole) => self.session.fill_hole(),
            Event::Ring(Ring::Slow) => self.slow = true,
            // The number under which the session listened was voided.
            Event::Ring(Ring::Voided) => {
                self.listener = None;
                self.stopping = true;
            }
            Event::Voided => {
                self.commits = None;
                self.stopping = true;
            }
            Event::Drain => self.stopping = true,
            Event::Disconnected => self.session.part(Close { code: DISCONNECTED, reason: "DISCONNECTED" }),
            Event::Looked(looked) => {
                self.look = None;
                // A store that is away says nothing of the device.
                let left = looked.err().filter(|fault| fault.code != ErrorCode::StoreUnavailable);
                if let Some(fault) = left {
                    self.session.dismiss(&fault, CloseCode(close_code(&fault)), now_ms);
                }
            }
            Event::Retry => {
                self.retry = None;
                self.session.handle_time(now_ms);
            }
            Event::Replaced => {
                self.session.end(ErrorCode::Replaced, "the same device connected again", now_ms);
            }
        }
    }

    fn heard(&mut self) {
        if self.lives_by_frames {
            self.session.excuse_silence(self.app.now_ms());
        }
    }

    fn control(&mut self) -> bool {
        self.session.handle_control(self.app.now_ms())
    }

    fn message(&mut self, message: Message, outbox: &mut Outbox) {
        let bytes = message.len();
        let now_ms = self.app.now_ms();
        if now_ms >= self.heard_ms + HEARD_MS {
            self.heard_ms = now_ms;
            self.present.heard(now_ms);
            self.app.engine.heard(&self.identity, now_ms);
        }
        self.counted.received();
        self.app.counts.messages_in.increment(1);
        self.app.counts.bytes_in.increment(bytes as u64);
        let message = match open(self.form, &message, self.app.engine.limits()) {
            Ok(message) => message,
            Err(Misfit(code, reason)) => return outbox.close(code, reason),
        };
        self.log(&message, bytes);
        self.session.handle_message(message, now_ms);
    }

    fn too_large(&mut self, _: &mut Outbox) {
        let limits = self.app.engine.limits();
        let message =
            format!("a message may hold {} bytes in {} parts", limits.message_bytes, limits.fragments);
        let fault = Fault::new(ErrorCode::MessageTooLarge, message);
        self.session.handle_message(Err(fault), self.app.now_ms());
    }

    fn overflow(&mut self, _: &mut Outbox) {
        self.app.counts.slow_consumers.increment(1);
        if let Some(listener) = self.listener.take() {
            self.app.engine.note_slow(&self.identity, listener.taken(), self.app.now_ms());
        }
        self.session.end(ErrorCode::SlowConsumer, "the connection does not read", self.app.now_ms());
    }

    /// Lets silent clients, ended tokens and voided numbers go.
    fn tick(&mut self, outbox: &mut Outbox) -> Duration {
        let now_ms = self.app.now_ms();
        self.look_for_voided();
        if !self.listens(outbox) {
            self.session.excuse_silence(now_ms);
        }
        self.session.handle_time(now_ms);
        self.look_at_device(now_ms);
        if self.expires_s.is_some_and(|expires_s| now_ms / 1000 >= expires_s) {
            self.session.end(ErrorCode::Unauthorized, "the token has expired", now_ms);
        }
        Duration::from_millis(self.session.deadline_ms().saturating_sub(now_ms).clamp(50, LOOK_MS))
    }
}

/// Waits for the end of a look.
async fn look(look: &mut Option<BoxFuture<'static, Result<(), Fault>>>) -> Result<(), Fault> {
    match look {
        Some(look) => look.await,
        None => std::future::pending().await,
    }
}

async fn next_commit(commits: &mut Option<Subscription>) -> Option<Arc<Committed>> {
    match commits {
        Some(commits) => commits.next().await,
        None => std::future::pending().await,
    }
}

async fn ring(listener: Option<&Listener>, events: bool) -> Ring {
    match listener {
        Some(listener) => poll_fn(|context| listener.poll_ring(events, context)).await,
        None => std::future::pending().await,
    }
}
