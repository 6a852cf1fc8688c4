//! One connection as a state machine without IO.

mod deltas;
mod events;
mod preset;
mod replay;

use std::collections::VecDeque;
use std::sync::Arc;

use driftline_idempotency::WINDOW_MS_DEFAULT;
use driftline_model::{ConflictId, Epoch, Hlc, KindName, Limits, Seq, SyncId};
use driftline_protocol::{
    CloseCode, ConnectionEstablished, ErrorCode, ErrorMessage, Fault, Features, Head as OutHead,
    HeartbeatAck, Inbound, Message, Outbound, Pong, ResyncReason, ResyncRequired, ServerDelta,
    ServerDraining, ServerHeartbeat, SyncSessionEnded, SyncSessionStarted, Throttle, Totals, event_id,
    unknown_type,
};

use crate::fanout::{Heard, Listener};
use crate::ports::{Head, Identity};
use crate::pull::PullFault;
use crate::rate::{ConnectionMeter, UserMeter};
use crate::rules::RETENTION_MS_DEFAULT;
use crate::service::Sealer;
use crate::work::{Done, Pulled, Started, Work};

pub use preset::Preset;
use replay::Replays;

/// What a session wants of its shell.
#[derive(Debug)]
#[non_exhaustive]
pub enum Output {
    /// Send this text frame.
    Send(String),
    /// Send these events, each in the form that is shared.
    Events(Vec<Heard>),
    /// Do this and report what came of it; answers go back in the order of these outputs.
    Work(Box<Work>),
    /// Close the connection after everything before was sent.
    Close(Close),
}

/// What a client is greeted with, beside what its identity says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Greeting {
    /// The message by which the client said who it is.
    pub reply_to: Option<String>,
    /// The name that the client gave itself.
    pub client_id: Option<String>,
    /// Stands for the end of the log, sealed.
    pub resume_token: String,
}

/// How a connection is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Close {
    /// The close code.
    pub code: CloseCode,
    /// The reason, the error code's text.
    pub reason: &'static str,
}

/// One authenticated connection on the sync route.
///
/// Feed it with `handle_*`, then empty it with [`Session::poll_output`]. While [`Session::wants_input`] is
/// false no message may be fed, which is how at most four batches wait for their answers.
#[derive(Debug)]
pub struct Session {
    identity: Arc<Identity>,
    limits: Arc<Limits>,
    meter: ConnectionMeter,
    connection_id: String,
    outputs: VecDeque<Output>,
    waiting: VecDeque<Waiting>,
    unacknowledged: usize,
    /// The conflicts that the client is deciding, in the order of its messages.
    resolving: VecDeque<ConflictId>,
    starting: bool,
    /// The highest head that this connection heard of.
    known_seq: Seq,
    /// The highest commit that was heard of while a session was being opened.
    heard: Option<(Seq, Hlc)>,
    /// Who asked for the end of the session, while answers are still due.
    ending: Option<Waiting>,
    sync: Option<Sync>,
    made_ids: u64,
    id_seed: u128,
    last_heard_ms: u64,
    decode_errors: u32,
    errors: u64,
    closed: bool,
    preset: Preset,
    /// What hears events, on routes that tell any.
    listener: Option<Arc<Listener>>,
    /// What is being read of the log, and what waits to be.
    replays: Replays,
    /// Events that wait to be published.
    publishing: usize,
    /// When the client was last told that the server is alive.
    beat_ms: u64,
    /// For how many milliseconds answers are remembered under keys.
    window_ms: u64,
}

/// A question that was asked of the engine.
#[derive(Debug)]
struct Waiting {
    reply_to: Option<String>,
    sync_id: Option<String>,
    /// Whether the pull asks for all kinds of the session.
    covers: bool,
    /// Whether the pull begins anew.
    snapshot: bool,
    /// The replay that waits for its topics.
    announced: Option<u64>,
}

impl Waiting {
    fn new(reply_to: Option<String>, sync_id: Option<&SyncId>) -> Self {
        Self {
            reply_to,
            sync_id: sync_id.map(ToString::to_string),
            covers: true,
            snapshot: false,
            announced: None,
        }
    }
}

/// Events of one session that may wait to be published.
const PUBLISHING_MAX: usize = 64;

/// Pulls of one session that may wait for their pages.
const PULLS_MAX: usize = 2;

/// An open sync session.
#[derive(Debug)]
struct Sync {
    id: SyncId,
    epoch: Epoch,
    /// The kinds that deltas may tell of; empty: all. Nothing: none.
    kinds: Option<Vec<KindName>>,
    sealer: Sealer,
    /// Whether the client was told that its bases are of another epoch, and has not pulled a snapshot since.
    stale: bool,
    /// Whether the client began a snapshot in this session.
    fresh: bool,
    /// Whether the client's cursor tells of all kinds of the session.
    covered: bool,
    /// The place that the client was last told of on this connection.
    told: Seq,
    /// The place up to which everything was told, filtered or the device's own.
    accounted: Seq,
    expires_ms: u64,
    totals: Totals,
}

impl Session {
    /// Makes a session and has it greet the client.
    ///
    /// `meter` is that of the identity's user. `id_seed` is a random number from which names of sync sessions are made
    /// for clients that bring none.
    #[must_use]
    pub fn new(
        identity: Arc<Identity>,
        limits: Arc<Limits>,
        meter: Arc<UserMeter>,
        head: &Head,
        connection_id: String,
        id_seed: u128,
        now_ms: u64,
    ) -> Self {
        let mut session = Self {
            identity,
            limits,
            meter: ConnectionMeter::new(meter),
            connection_id,
            outputs: VecDeque::new(),
            waiting: VecDeque::new(),
            unacknowledged: 0,
            resolving: VecDeque::new(),
            starting: false,
            known_seq: head.seq,
            heard: None,
            ending: None,
            sync: None,
            made_ids: 0,
            id_seed,
            last_heard_ms: now_ms,
            decode_errors: 0,
            errors: 0,
            closed: false,
            preset: Preset::Sync,
            listener: None,
            replays: Replays::default(),
            publishing: 0,
            beat_ms: now_ms,
            window_ms: WINDOW_MS_DEFAULT,
        };
        session.greet(head, Greeting::default(), now_ms);
        session
    }

    /// Makes the session one of another route.
    #[must_use]
    pub fn on(self, preset: Preset) -> Self {
        Self { preset, ..self }
    }

    /// Sets for how many milliseconds answers are remembered under keys.
    #[must_use]
    pub fn within(self, window_ms: u64) -> Self {
        Self { window_ms, ..self }
    }

    /// Gives the session what hears events.
    #[must_use]
    pub fn listening(self, listener: Arc<Listener>) -> Self {
        Self { listener: Some(listener), ..self }
    }

    /// Greets the client anew, with what is known of it by now.
    #[must_use]
    pub fn greeting(mut self, greeting: Greeting, head: &Head, now_ms: u64) -> Self {
        self.outputs.clear();
        self.greet(head, greeting, now_ms);
        self
    }

    /// Returns what hears events.
    #[must_use]
    pub fn listener(&self) -> Option<&Arc<Listener>> {
        self.listener.as_ref()
    }

    /// Returns what the shell has to do next.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Tells whether a further message may be fed now.
    #[must_use]
    pub fn wants_input(&self) -> bool {
        !self.closed
            && !self.starting
            && self.ending.is_none()
            && self.unacknowledged < self.limits.unacknowledged_batches
            && self.publishing < PUBLISHING_MAX
            && self.waiting.len() < self.unacknowledged + self.publishing + PULLS_MAX
    }

    /// Tells whether the session has ended; what it still wants is to be done.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Returns when [`Session::handle_time`] has to be called next, in Unix milliseconds.
    #[must_use]
    pub fn deadline_ms(&self) -> u64 {
        let silent = self.last_heard_ms + self.preset.patience_s(&self.limits) * 1000;
        let due = self.replays.retry_ms();
        let beat = self.preset.beats().then(|| self.beat_ms + self.preset.heartbeat_s(&self.limits) * 1000);
        [due, beat].into_iter().flatten().fold(silent, u64::min)
    }

    /// When [`Session::handle_time`] is to be called for a log that was away, in Unix milliseconds; none: it was not.
    #[must_use]
    pub fn retry_ms(&self) -> Option<u64> {
        self.replays.retry_ms()
    }

    /// Returns the name under which the last error was told, to be logged with it.
    #[must_use]
    pub fn correlation_id(&self) -> String {
        format!("{}-{}", self.connection_id, self.errors)
    }

    /// Returns whether a sync session is open, so that commits are of interest.
    #[must_use]
    pub fn is_syncing(&self) -> bool {
        self.sync.is_some()
    }

    /// Takes a decoded frame, or why it could not be decoded. One that comes faster than the limits allow is answered
    /// `RATE_LIMITED` and has no other effect; too many of them in a row close the connection with 1008.
    pub fn handle_message(&mut self, message: Result<Message, Fault>, now_ms: u64) {
        self.last_heard_ms = now_ms;
        if let Err(throttle) = self.meter_message(&message, now_ms) {
            let reply_to = message.map_or_else(|fault| fault.reply_to, |message| message.id);
            self.error(&Fault::throttled(throttle), reply_to, now_ms);
            return self.close_abuse();
        }
        let message = match message {
            Ok(message) => message,
            Err(fault) => return self.refuse_frame(&fault, now_ms),
        };
        self.decode_errors = 0;
        if !self.preset.takes(&message.body) {
            let kind = match &message.body {
                Inbound::Telemetry(telemetry) => telemetry.kind.as_str(),
                body => body.kind(),
            };
            return self.error(&unknown_type(kind), message.id, now_ms);
        }
        let head = self.head(now_ms, message.id.clone(), None);
        let outcome = match message.body {
            Inbound::Ping { timestamp } => {
                self.send(&Outbound::Pong(Pong::new(timestamp)), &head);
                Ok(())
            }
            Inbound::Heartbeat(heartbeat) => {
                let server_seq = self.known_seq.number();
                // A device that stands where it was last told is behind nothing but its own writes.
                let told = self.sync.as_ref().map_or(0, |sync| sync.told.number());
                let behind = match heartbeat.last_seq {
                    Some(seq) if seq >= told => 0,
                    Some(seq) => server_seq.saturating_sub(seq),
                    None => 0,
                };
                self.send(&Outbound::HeartbeatAck(HeartbeatAck { server_seq, behind }), &head);
                Ok(())
            }
            Inbound::StartSync(request) => {
                let sync_id = message.sync_id.unwrap_or_else(|| self.make_sync_id());
                self.starting = true;
                self.heard = None;
                self.sync = None;
                self.ask(
                    message.id.clone(),
                    Some(&sync_id),
                    Work::Start { sync_id: sync_id.clone(), request },
                );
                Ok(())
            }
            Inbound::SyncData(data) => {
                self.live_sync(message.sync_id.as_ref(), now_ms).map(|(sync_id, epoch)| {
                    self.unacknowledged += 1;
                    // A device that knows its bases to be of another life of the sequence is held to it.
                    let stale = self.sync.as_ref().is_some_and(|sync| sync.stale);
                    let epoch = if stale { Epoch::new(!epoch.number()) } else { epoch };
                    let once = self.once("sync_data", Some(&sync_id), message.key.as_deref());
                    let seed = self.draw();
                    let (once, epoch) = (once.into_iter().collect(), Some(epoch));
                    let work = Work::Push { sync_id: sync_id.clone(), data, epoch, once, seed };
                    self.ask(message.id.clone(), Some(&sync_id), work);
                })
            }
            Inbound::RequestServerData(mut request) => {
                self.live_sync(message.sync_id.as_ref(), now_ms).map(|(sync_id, _)| {
                    if request.data_types.is_none() {
                        request.data_types = self.sync.as_ref().and_then(|sync| sync.kinds.clone());
                    }
                    self.ask(message.id.clone(), Some(&sync_id), Work::Pull { request });
                })
            }
            Inbound::RequestChecksums(request) => {
                self.live_sync(message.sync_id.as_ref(), now_ms).map(|(sync_id, _)| {
                    self.ask(message.id.clone(), Some(&sync_id), Work::Checksums { request });
                })
            }
            Inbound::ResolveConflict(request) => {
                self.resolving.push_back(request.conflict_id.clone());
                let once = self.once("resolve_conflict", None, message.key.as_deref());
                let work = Work::Resolve { request: Box::new(request), once };
                self.ask(message.id.clone(), None, work);
                Ok(())
            }
            Inbound::Telemetry(telemetry) => {
                let (sync_id, key) = (message.sync_id.as_ref(), message.key.as_deref());
                self.ingest(*telemetry, sync_id, key, message.id.clone());
                Ok(())
            }
            Inbound::AnalyticsBatch(batch) => {
                let once = self.once("analytics_batch", None, message.key.as_deref());
                self.ask(message.id.clone(), None, Work::Aggregate { batch, once });
                Ok(())
            }
            Inbound::DeviceStatus(status) => {
                self.ask(message.id.clone(), None, Work::Report { status });
                Ok(())
            }
            Inbound::SubscribeEvents(wanted) => self.subscribe(wanted, message.id.clone()),
            Inbound::UnsubscribeEvents(dropped) => {
                let answer = self.unsubscribe(&dropped.topics);
                self.send(&Outbound::EventsUnsubscribed(answer), &head);
                Ok(())
            }
            Inbound::ReplayRequest(request) => self.replay(request, message.id.clone()),
            Inbound::AckEvents(ack) => {
                self.ask(message.id.clone(), None, Work::Acknowledge { last: ack.last });
                Ok(())
            }
            Inbound::Publish(publish) => {
                let once = self.once("publish", None, message.key.as_deref());
                self.publishing += 1;
                let work = Work::Publish { publish, once, seed: self.draw() };
                self.ask(message.id.clone(), None, work);
                Ok(())
            }
            Inbound::EndSync => self.live_sync(message.sync_id.as_ref(), now_ms).map(|(sync_id, _)| {
                let asker = Waiting::new(message.id.clone(), Some(&sync_id));
                self.ending = Some(asker);
                self.end_sync(now_ms);
            }),
            _ => Err(Fault::new(ErrorCode::UnknownMessageType, "not a message of this route")),
        };
        if let Err(fault) = outcome {
            self.error(&fault, message.id, now_ms);
        }
    }

    /// Takes a control frame of the transport that asks for an answer, such as a WebSocket's ping, and tells whether it
    /// is to be answered. It counts as a message of the connection, though not as a sign of life; too many close the
    /// connection with 1008.
    #[must_use]
    pub fn handle_control(&mut self, now_ms: u64) -> bool {
        let taken = !self.closed && self.meter.take_control(now_ms).is_ok();
        if !taken {
            self.close_abuse();
        }
        taken
    }

    /// Takes what came of the oldest [`Output::Work`] that was not reported yet.
    pub fn handle_done(&mut self, done: Done, now_ms: u64) {
        let Some(waiting) = self.waiting.pop_front() else { return };
        match done {
            Done::Started(started) => {
                self.starting = false;
                match started {
                    Ok(started) => self.started(*started, waiting, now_ms),
                    Err(fault) => self.error(&fault, waiting.reply_to, now_ms),
                }
            }
            Done::Pushed(answer) => {
                self.unacknowledged -= 1;
                match answer {
                    Ok(ack) => {
                        self.known_seq = self.known_seq.max(Seq::new(ack.seq));
                        if let Some(sync) = &mut self.sync {
                            sync.expires_ms = now_ms + self.limits.session_s * 1000;
                            sync.totals.batches += 1;
                            sync.totals.items += ack.synced + ack.failed;
                            sync.totals.synced += ack.synced;
                            sync.totals.failed += ack.failed;
                            sync.totals.conflicts += ack.conflicts;
                        }
                        self.reply(waiting, &Outbound::Ack(ack), now_ms);
                    }
                    Err(fault) => self.error(&fault, waiting.reply_to, now_ms),
                }
            }
            Done::Pulled(Ok(Pulled { data, rows })) => {
                self.known_seq = self.known_seq.max(data.seq);
                if let Some(sync) = &mut self.sync {
                    sync.totals.pulled += rows;
                    sync.fresh |= waiting.snapshot;
                    if !data.has_more && sync.fresh {
                        sync.stale = false;
                    }
                    if !data.has_more && waiting.covers {
                        sync.covered = true;
                        // Deltas that went out meanwhile tell of later changes; a client that could not use
                        // them sees by `prev_seq` that it has to pull again.
                        sync.told = sync.told.max(data.seq);
                        sync.accounted = sync.accounted.max(data.seq);
                    }
                }
                self.reply(waiting, &Outbound::ServerData(data), now_ms);
            }
            Done::Pulled(Err(fault)) => self.pull_fault(&fault, waiting, now_ms),
            Done::Summed(Ok(sums)) => self.reply(waiting, &Outbound::Checksums(sums), now_ms),
            Done::Resolved(answer) => {
                self.resolving.pop_front();
                match answer {
                    Ok(resolved) => {
                        self.reply(waiting, &Outbound::ConflictResolved(resolved), now_ms);
                    }
                    Err(fault) => self.error(&fault, waiting.reply_to, now_ms),
                }
            }
            Done::Summed(Err(fault)) | Done::Noted(Err(fault)) => {
                self.error(&fault, waiting.reply_to, now_ms);
            }
            Done::Ingested(answer) => {
                self.unacknowledged -= 1;
                match answer {
                    Ok(ack) => self.reply(waiting, &Outbound::TelemetryAck(ack), now_ms),
                    Err(fault) => self.error(&fault, waiting.reply_to, now_ms),
                }
            }
            Done::Noted(Ok(ack)) => self.reply(waiting, &Outbound::BareAck(ack), now_ms),
            Done::Subscribed(answer) => self.subscribed(answer, waiting, now_ms),
            Done::Missed(page) => self.missed(page, now_ms),
            // Nothing is said to who acknowledges, unless something is wrong.
            Done::Acknowledged(Ok(())) => {}
            Done::Acknowledged(Err(fault)) => self.error(&fault, waiting.reply_to, now_ms),
            Done::Published(answer) => {
                self.publishing -= 1;
                match answer {
                    Ok(ack) => self.reply(waiting, &Outbound::PublishAck(ack), now_ms),
                    Err(fault) => self.error(&fault, waiting.reply_to, now_ms),
                }
            }
        }
        self.end_sync(now_ms);
    }

    /// Ends the sync session once every answer before has gone out.
    fn end_sync(&mut self, now_ms: u64) {
        if !self.waiting.is_empty() {
            return;
        }
        let Some(asker) = self.ending.take() else { return };
        let totals = self.sync.take().map(|sync| sync.totals).unwrap_or_default();
        self.reply(asker, &Outbound::SyncSessionEnded(SyncSessionEnded { totals }), now_ms);
    }

    /// Says that the shell does not read now: what is not heard meanwhile is not the client's silence.
    pub fn excuse_silence(&mut self, now_ms: u64) {
        self.last_heard_ms = now_ms;
    }

    /// Looks at the time: a client that was silent for two heartbeat intervals is let go.
    pub fn handle_time(&mut self, now_ms: u64) {
        if !self.wants_input() || !self.waiting.is_empty() {
            // The client may be speaking without being heard: it is the server that is late.
            self.last_heard_ms = now_ms;
        }
        self.beat(now_ms);
        let silent = now_ms >= self.last_heard_ms + self.preset.patience_s(&self.limits) * 1000;
        if silent && !self.closed {
            let fault = Fault::new(ErrorCode::HeartbeatTimeout, "nothing was heard for too long");
            self.error(&fault, None, now_ms);
        }
    }

    /// Tells the client that the server is alive, where clients expect it, and reads on where the log was away.
    fn beat(&mut self, now_ms: u64) {
        if self.replays.retry_ms().is_some_and(|retry_ms| now_ms >= retry_ms) {
            self.replays.go_on();
        }
        if self.preset.beats()
            && !self.closed
            && now_ms >= self.beat_ms + self.preset.heartbeat_s(&self.limits) * 1000
        {
            self.beat_ms = now_ms;
            let head = self.head(now_ms, None, None);
            self.send(&Outbound::Heartbeat(ServerHeartbeat { timestamp: now_ms }), &head);
        }
    }

    /// Ends the session because the server shuts down.
    pub fn drain(&mut self, reconnect_after_ms: u64, now_ms: u64) {
        if self.closed {
            return;
        }
        let head = self.head(now_ms, None, None);
        self.send(&Outbound::ServerDraining(ServerDraining { reconnect_after_ms }), &head);
        self.close(ErrorCode::ServerDraining);
    }

    /// Ends the session with an error that closes, such as being replaced or reading too slowly.
    pub fn end(&mut self, code: ErrorCode, message: &str, now_ms: u64) {
        self.error(&Fault::new(code, message), None, now_ms);
        self.close(code);
    }

    /// Ends the session without an error: somebody parted it from its client.
    pub fn part(&mut self, close: Close) {
        if !self.closed {
            self.closed = true;
            self.outputs.push_back(Output::Close(close));
        }
    }

    /// Ends the session of somebody who may not stay.
    pub fn dismiss(&mut self, fault: &Fault, close: CloseCode, now_ms: u64) {
        self.error(fault, None, now_ms);
        self.close_as(close, fault.code);
    }

    fn greet(&mut self, head: &Head, greeting: Greeting, now_ms: u64) {
        let identity = &self.identity;
        let Greeting { reply_to, client_id, resume_token } = greeting;
        let groups = self.listener.as_ref().map(|listener| listener.joined()).unwrap_or_default();
        let asked = self.listener.as_ref().map(|listener| listener.subscriptions()).unwrap_or_default();
        let roles: Vec<String> = identity.roles.iter().map(|role| role.to_string()).collect();
        let greeting = ConnectionEstablished {
            message: "connected".into(),
            connection_id: self.connection_id.clone(),
            user_id: identity.user.clone(),
            role: roles.first().cloned().unwrap_or_default(),
            roles,
            device_id: identity.device.as_ref().map(|(_, key)| key.device().to_owned()).unwrap_or_default(),
            tenant: identity.tenant_id.to_string(),
            features: Features {
                encodings: vec!["json".into(), "msgpack".into()],
                compression: vec!["deflate".into()],
                max_batch_items: self.limits.batch_items as u64,
                max_message_bytes: self.limits.message_bytes as u64,
                replay_window_s: RETENTION_MS_DEFAULT / 1000,
            },
            heartbeat_interval_s: self.preset.heartbeat_s(&self.limits),
            heartbeat_timeout_s: self.preset.patience_s(&self.limits),
            epoch: head.epoch.to_string(),
            hlc: head.hlc.to_string(),
            position: event_id(head.epoch, head.event_id),
            resume_token,
            client_id,
            subscriptions: asked.into_iter().map(|asked| asked.topic.into()).collect(),
            groups: groups.iter().filter(|topic| !topic.starts_with('~')).map(ToString::to_string).collect(),
        };
        let head = self.head(now_ms, reply_to, None);
        self.send(&Outbound::ConnectionEstablished(Box::new(greeting)), &head);
    }

    fn started(&mut self, started: Started, waiting: Waiting, now_ms: u64) {
        let Ok(id) = SyncId::new(&started.info.sync_id) else { return };
        self.known_seq = self.known_seq.max(started.seq);
        self.sync = Some(Sync {
            id,
            epoch: started.epoch,
            kinds: started.kinds,
            sealer: started.sealer,
            stale: started.resync.as_ref().is_some_and(|resync| resync.reason == ResyncReason::EpochChanged),
            fresh: false,
            covered: started.covered,
            told: started.seq,
            accounted: started.seq,
            expires_ms: now_ms + self.limits.session_s * 1000,
            totals: Totals::default(),
        });
        let head = self.head(now_ms, waiting.reply_to, waiting.sync_id);
        self.send(
            &Outbound::SyncSessionStarted(Box::new(SyncSessionStarted { session_info: started.info })),
            &head,
        );
        self.catch_up(now_ms);
        if let Some(resync) = started.resync {
            let head = OutHead { reply_to: None, ..head };
            self.send(&Outbound::ResyncRequired(resync), &head);
        }
    }

    /// Sends the client to pull what was committed between the reading of the head and now.
    fn catch_up(&mut self, now_ms: u64) {
        let (Some((seq, hlc)), Some(sync)) = (self.heard.take(), &mut self.sync) else { return };
        if seq <= sync.accounted {
            return;
        }
        (sync.accounted, sync.told) = (seq, seq);
        let cursor = sync.sealer.caught_up(seq);
        let delta = ServerDelta { prev_seq: seq, seq, cursor, hlc, changes: Arc::from("[]") };
        let head = OutHead { now_ms, reply_to: None, sync_id: Some(sync.id.to_string()) };
        self.send(&Outbound::ServerDelta(delta), &head);
    }

    fn pull_fault(&mut self, fault: &PullFault, waiting: Waiting, now_ms: u64) {
        self.error(&fault.fault(), waiting.reply_to, now_ms);
        if let Some((reason, epoch)) = fault.resync() {
            if let (Some(sync), ResyncReason::EpochChanged) = (&mut self.sync, reason) {
                (sync.epoch, sync.stale, sync.fresh) = (epoch, true, false);
                sync.sealer.begin(epoch);
            }
            let head = self.head(now_ms, None, waiting.sync_id);
            self.send(&Outbound::ResyncRequired(ResyncRequired::new(reason, epoch)), &head);
        }
    }

    /// Checks that a session-scoped message belongs to the open session.
    fn live_sync(&mut self, sync_id: Option<&SyncId>, now_ms: u64) -> Result<(SyncId, Epoch), Fault> {
        let wanted =
            sync_id.ok_or_else(|| Fault::new(ErrorCode::MissingSyncId, "the message needs a sync_id"))?;
        let unknown =
            || Fault::new(ErrorCode::UnknownSyncId, "no sync session of that name is open: send start_sync");
        let sync = self.sync.as_mut().filter(|sync| sync.id == *wanted).ok_or_else(unknown)?;
        if sync.expires_ms < now_ms {
            self.sync = None;
            return Err(Fault::new(
                ErrorCode::SyncSessionExpired,
                "the sync session was idle for too long: start another",
            ));
        }
        sync.expires_ms = now_ms + self.limits.session_s * 1000;
        Ok((sync.id.clone(), sync.epoch))
    }

    fn meter_message(&mut self, message: &Result<Message, Fault>, now_ms: u64) -> Result<(), Throttle> {
        match message {
            Ok(message) => self.meter.take(Some(message.body.kind()), now_ms),
            // Whatever ends the connection ends it, however often it comes.
            Err(fault) if fault.code.close().is_some() => Ok(()),
            Err(_) => self.meter.take(None, now_ms),
        }
    }

    fn close_abuse(&mut self) {
        if self.meter.is_abused() {
            self.close_as(CloseCode(1008), ErrorCode::RateLimited);
        }
    }

    fn refuse_frame(&mut self, fault: &Fault, now_ms: u64) {
        self.error(fault, fault.reply_to.clone(), now_ms);
        if matches!(fault.code, ErrorCode::JsonDecodeError | ErrorCode::MsgpackDecodeError) {
            self.decode_errors += 1;
            if self.decode_errors >= self.limits.decode_errors {
                self.close_as(CloseCode(1007), fault.code);
            }
        } else {
            self.decode_errors = 0;
        }
    }

    fn make_sync_id(&mut self) -> SyncId {
        self.made_ids += 1;
        let bits = self.id_seed.wrapping_add(u128::from(self.made_ids));
        // Version 4 and the variant of RFC 9562 §5.4.
        let bits = bits & !(0xf << 76) & !(0x3 << 62) | (0x4 << 76) | (0x2 << 62);
        let hex = format!("{bits:032x}");
        let text = format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]);
        SyncId::new(&text).expect("hexadecimal digits and hyphens")
    }

    fn ask(&mut self, reply_to: Option<String>, sync_id: Option<&SyncId>, work: Work) {
        let covers = match (&work, self.sync.as_ref().and_then(|sync| sync.kinds.as_ref())) {
            (Work::Pull { request }, Some(kinds)) => {
                covers(request.data_types.as_deref().unwrap_or_default(), kinds)
            }
            _ => true,
        };
        let snapshot = matches!(&work, Work::Pull { request } if request.cursor.is_none());
        self.waiting.push_back(Waiting { covers, snapshot, ..Waiting::new(reply_to, sync_id) });
        self.outputs.push_back(Output::Work(Box::new(work)));
    }

    fn reply(&mut self, waiting: Waiting, message: &Outbound, now_ms: u64) {
        let head = self.head(now_ms, waiting.reply_to, waiting.sync_id);
        self.send(message, &head);
    }

    fn head(&self, now_ms: u64, reply_to: Option<String>, sync_id: Option<String>) -> OutHead {
        OutHead { now_ms, reply_to, sync_id }
    }

    fn send(&mut self, message: &Outbound, head: &OutHead) {
        if !self.closed {
            self.outputs.push_back(Output::Send(message.encode(head)));
        }
    }

    fn error(&mut self, fault: &Fault, reply_to: Option<String>, now_ms: u64) {
        self.errors += 1;
        let head = self.head(now_ms, reply_to, None);
        let message = ErrorMessage::new(fault, &self.correlation_id());
        self.send(&Outbound::Error(message), &head);
        self.close(fault.code);
    }

    fn close(&mut self, code: ErrorCode) {
        if let Some(close) = code.close() {
            self.close_as(close, code);
        }
    }

    fn close_as(&mut self, close: CloseCode, code: ErrorCode) {
        if !self.closed {
            self.closed = true;
            self.outputs.push_back(Output::Close(Close { code: close, reason: code.as_str() }));
        }
    }
}

/// Tells whether kinds contain all wanted ones; an empty list stands for all kinds.
pub(crate) fn covers(kinds: &[KindName], wanted: &[KindName]) -> bool {
    kinds.is_empty() || !wanted.is_empty() && wanted.iter().all(|kind| kinds.contains(kind))
}
