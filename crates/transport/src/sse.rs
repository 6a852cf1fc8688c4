//! Streams of server-sent events (WHATWG HTML §9.2): the events of topics over plain HTTP.

use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::request::Parts;
use axum::http::{HeaderValue, Response, header};
use bytes::Bytes;
use driftline_engine::{Connected, Ear, Head, Heard, Identity, Listener, Missed, MissedPage, Ring, Store};
use driftline_protocol::{
    ErrorCode, EventPlace, Fault, StreamEstablished, Topics, event_id, format_millis, to_json,
};
use futures_util::stream::unfold;
use tokio::sync::watch;

use crate::app::{App, drained};
use crate::listener::Active;
use crate::rate::{self, Peer};
use crate::reply::Refusal;
use crate::request::{Pairs, caller, device, enter, invalid, token};
use crate::sessions::{LiveSession, Present};
use crate::traffic::Counted;
use crate::ws::{check_origin, event_text};

/// The form under which events keep ready what streams tell of them; sockets have the four before.
const FORM: usize = 4;

/// Bytes of one piece of a stream.
const PIECE_BYTES: usize = 32 << 10;

/// Whether a device may still be here is looked for once in so many milliseconds.
const LOOK_MS: u64 = 30_000;

/// Where a client finds what the log does not have any more.
const SNAPSHOT: &str = "/api/v1/changes";

/// Opens a stream.
pub(crate) async fn open<S: Store>(app: &Arc<App<S>>, request: Request) -> Result<Response<Body>, Refusal> {
    let (parts, _) = request.into_parts();
    check_origin(app, &parts.headers)?;
    let pairs = Pairs::of(&parts.uri);
    let caller = caller(app, token(&parts.headers, &pairs), &pairs, true)?;
    let peer = parts.extensions.get().copied();
    let user = caller.metered(peer);
    rate::admit(app, &parts.extensions, (&caller.claims.tenant, &user), false)?;
    if app.is_draining() {
        return Err(Fault::new(ErrorCode::ServerDraining, "the server shuts down").into());
    }
    let full = || Fault::new(ErrorCode::ServerDraining, "this node holds as many connections as it may");
    let active = Active::admit(app).ok_or_else(full)?;
    let place = rate::connect(app, (&caller.claims.tenant, &user))?;
    let device = device(&caller.claims, pairs.get("device_id"), None)?;
    let (numbering, expires_s) = (app.engine.numbering(), caller.expires_s());
    let identity = enter(app, caller, device).await?;
    app.engine.require_admitted(&identity).await?;
    let stay = Stay { _active: active, _place: place, expires_s, numbering };
    let stream = Stream::begin(app, identity, &parts, &pairs, stay, peer).await?;
    let pieces = unfold(stream, |mut stream| async move {
        let piece = stream.next().await?;
        Some((Ok::<Bytes, std::convert::Infallible>(piece), stream))
    });
    let mut response = Response::new(Body::from_stream(pieces));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    if let Some(origin) = parts.headers.get(header::ORIGIN) {
        // The page's origin was checked; a browser shows the stream to no other.
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        headers.insert(header::VARY, HeaderValue::from_static("Origin"));
    }
    Ok(response)
}

/// What a stream holds for as long as it lives.
struct Stay<S: Store> {
    _active: Active<S>,
    _place: Connected,
    /// When the token ends, in Unix seconds; none: whoever came without one.
    expires_s: Option<u64>,
    /// The engine's numbering, taken before the identity was asked for.
    numbering: u64,
}

/// A stream on its way.
struct Stream<S: Store> {
    app: Arc<App<S>>,
    identity: Identity,
    listener: Arc<Listener>,
    stay: Stay<S>,
    present: Present<S>,
    counted: Counted,
    draining: watch::Receiver<bool>,
    /// What is told before anything else.
    first: Option<String>,
    /// Events on their way.
    waiting: VecDeque<Heard>,
    /// The page of the log that is read next; none: events come live.
    next: Option<Missed>,
    /// When it was looked whether the device may still be here.
    looked_ms: u64,
    ended: bool,
}

impl<S: Store> Stream<S> {
    /// Begins to listen, and finds out whether everything is there that was missed.
    async fn begin(
        app: &Arc<App<S>>,
        identity: Identity,
        parts: &Parts,
        pairs: &Pairs,
        stay: Stay<S>,
        peer: Option<Peer>,
    ) -> Result<Self, Refusal> {
        let now_ms = app.now_ms();
        let resume = resume(app, &identity, parts, pairs)?;
        let client_id = pairs.parsed("client_id", |text| {
            let sane = (1..=128).contains(&text.len()) && !text.contains(char::is_control);
            if sane { Ok(text.to_owned()) } else { Err("must be a text of 1 to 128 bytes") }
        })?;
        // Listening starts before the head is read, so that no event falls between the two.
        let listener = app.engine.listener(&identity, Ear::of(&identity), true);
        let refused = subscribe(app, &identity, &listener, topics(pairs), now_ms).await?;
        let head = app.engine.begin(&identity, &listener).await?;
        let number = app.next_connection();
        let connection = format!("{:08x}-{number}", app.random_u128() >> 96);
        let session = LiveSession::new(&connection, &identity, "sse", now_ms)
            .called(client_id.as_deref())
            .hearing(Some(&listener))
            .from(peer.map(|Peer(address)| address));
        let mut stream = Self {
            app: Arc::clone(app),
            present: app.enter(session),
            counted: app.traffic.count(identity.tenant),
            draining: app.draining(),
            identity,
            listener,
            stay,
            first: None,
            waiting: VecDeque::new(),
            next: None,
            looked_ms: now_ms,
            ended: false,
        };
        let reason = match resume {
            Since::Now => None,
            Since::Elsewhere => Some("epoch_changed"),
            Since::Place(place) => stream.resume(place).await?,
        };
        stream.first = Some(stream.greeting(&connection, reason, &head, refused));
        tracing::info!(connection, tenant = %stream.identity.tenant_id, "stream opened");
        Ok(stream)
    }

    /// Reads the first page of what was missed; gives the reason why not everything is there.
    async fn resume(&mut self, place: EventPlace) -> Result<Option<&'static str>, Fault> {
        self.listener.resume(place.id);
        let missed = Missed { topics: None, after: place, begun: None, limit: None };
        let page = self.app.engine.missed(&self.identity, &self.listener, &missed).await?;
        let reason = page.reason;
        self.take(page);
        Ok(reason)
    }

    /// Takes a page of the log over.
    fn take(&mut self, page: MissedPage) {
        self.waiting.extend(page.heard);
        let live = self.listener.read(page.through, page.more);
        let after = EventPlace { epoch: Some(page.log.epoch), id: page.through };
        let begun = page.more.then_some(page.log);
        self.next = (!live).then_some(Missed { topics: None, after, begun, limit: None });
    }

    fn greeting(
        &self,
        connection: &str,
        reason: Option<&str>,
        head: &Head,
        refused: BTreeMap<String, String>,
    ) -> String {
        let told = StreamEstablished {
            kind: "connection_established".into(),
            server_time: format_millis(self.app.now_ms()),
            connection_id: connection.to_owned(),
            recovered: reason.is_none(),
            reason: reason.map(str::to_owned),
            snapshot: reason.is_some().then(|| SNAPSHOT.to_owned()),
            epoch: head.epoch.to_string(),
            position: event_id(head.epoch, head.event_id),
            resume_token: self.app.engine.resume_token(&self.identity, head.epoch, head.event_id),
            topics: self.listener.topics().iter().map(ToString::to_string).collect(),
            refused,
        };
        let retry_ms = self.retry_ms();
        // The place where live events begin is told without an event: whoever is cut before the first one comes back
        // with it.
        let place = if self.next.is_none() && self.waiting.is_empty() {
            format!("id: {}\n\n", event_id(head.epoch, head.event_id))
        } else {
            String::new()
        };
        format!("retry: {retry_ms}\ndata: {}\n\n{place}", to_json(&told))
    }

    /// Draws after how many milliseconds a client that is cut comes back, so that not all come at once.
    fn retry_ms(&self) -> u64 {
        500 + u64::try_from(self.app.random_u128() % 1_000).unwrap_or_default()
    }

    /// Returns the next piece; nothing at the end.
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(first) = self.first.take() {
            return Some(self.sent(0, first.into_bytes()));
        }
        loop {
            if self.ended {
                return None;
            }
            if let Some(reason) = self.over().await {
                return Some(self.farewell(reason));
            }
            if !self.waiting.is_empty() {
                return Some(self.piece());
            }
            if let Some(missed) = self.next.take() {
                self.read(missed).await;
                continue;
            }
            let (listener, quiet) = (&self.listener, beat(&self.app));
            let ring = tokio::select! {
                biased;
                () = drained(&mut self.draining) => return Some(self.farewell("the server shuts down")),
                () = self.present.disconnect.notified() => return Some(self.farewell("disconnected")),
                ring = poll_fn(|context| listener.poll_ring(true, context)) => ring,
                () = tokio::time::sleep(quiet) => return Some(self.sent(0, b": alive\n\n".to_vec())),
            };
            match ring {
                Ring::Events => {
                    let mut heard = Vec::new();
                    self.listener.take(PIECE_BYTES, &mut heard);
                    self.waiting.extend(heard);
                }
                Ring::Hole => {
                    let mut heard = Vec::new();
                    let id = self.listener.read_on(&mut heard);
                    self.waiting.extend(heard);
                    let after = EventPlace { epoch: None, id };
                    self.next = Some(Missed { topics: None, after, begun: None, limit: None });
                }
                Ring::Slow => {
                    self.app.counts.slow_consumers.increment(1);
                    self.app.engine.note_slow(&self.identity, self.listener.taken(), self.app.now_ms());
                    return Some(self.farewell("the stream was not read"));
                }
                Ring::Voided => return Some(self.farewell("come again")),
            }
        }
    }

    /// Reads a page of the log. A log that is away or that lost something ends the stream: the client comes back with
    /// its last event, and is told then what can be had.
    async fn read(&mut self, missed: Missed) {
        match self.app.engine.missed(&self.identity, &self.listener, &missed).await {
            Ok(page) if page.reason.is_none() => self.take(page),
            Ok(_) | Err(_) => self.ended = true,
        }
    }

    /// Puts waiting events together.
    fn piece(&mut self) -> Bytes {
        let now_ms = self.app.now_ms();
        let (mut bytes, mut events) = (Vec::new(), 0);
        while bytes.len() < PIECE_BYTES {
            let Some(heard) = self.waiting.pop_front() else { break };
            bytes.extend_from_slice(&frame(&heard, now_ms));
            events += 1;
        }
        self.sent(events, bytes)
    }

    fn sent(&mut self, events: u64, bytes: Vec<u8>) -> Bytes {
        self.counted.sent(events);
        self.app.counts.messages_out.increment(events);
        self.app.counts.bytes_out.increment(bytes.len() as u64);
        // Hyper asks for a piece once the client has taken most of those before.
        self.present.heard(self.app.now_ms());
        bytes.into()
    }

    /// Says why the stream is to end, if it is.
    async fn over(&mut self) -> Option<&'static str> {
        let now_ms = self.app.now_ms();
        if self.stay.expires_s.is_some_and(|expires_s| now_ms / 1000 >= expires_s) {
            return Some("the token has expired");
        }
        if self.app.engine.numbering() != self.stay.numbering {
            return Some("come again");
        }
        if now_ms < self.looked_ms + LOOK_MS {
            return None;
        }
        self.looked_ms = now_ms;
        let admitted = self.app.engine.require_admitted_lately(&self.identity, now_ms).await;
        // A store that is away says nothing of the device.
        let dismissed = admitted.is_err_and(|fault| fault.code != ErrorCode::StoreUnavailable);
        dismissed.then_some("the device was disabled or removed")
    }

    /// Ends the stream with a comment that says why.
    fn farewell(&mut self, reason: &str) -> Bytes {
        self.ended = true;
        tracing::info!(reason, "stream ended");
        format!("retry: {}\n: {reason}\n\n", self.retry_ms()).into()
    }
}

/// How long a stream may be silent: 15 s, and as many times shorter as heartbeats are.
fn beat<S: Store>(app: &App<S>) -> Duration {
    Duration::from_millis(app.engine.limits().heartbeat_s * 600)
}

/// Writes an event, once for all streams that get it by the same topic.
fn frame(heard: &Heard, now_ms: u64) -> Arc<[u8]> {
    heard.event.form(heard.topic, FORM, |event, topic| {
        let text = event_text(event, topic, now_ms);
        let frame = match event.id {
            Some(id) => format!("id: {}\ndata: {text}\n\n", event_id(event.epoch, id)),
            None => format!("data: {text}\n\n"),
        };
        Arc::from(frame.into_bytes())
    })
}

/// Reads the topics that are wanted.
fn topics(pairs: &Pairs) -> Vec<Box<str>> {
    let mut wanted: Vec<Box<str>> = Vec::new();
    for name in ["topics", "topic"] {
        for topic in pairs.get(name).unwrap_or_default().split(',').map(str::trim) {
            if !topic.is_empty() && !wanted.iter().any(|known| **known == *topic) {
                wanted.push(topic.into());
            }
        }
    }
    wanted
}

/// Listens to the topics that are wanted and may be had; gives the others with the code that says why.
async fn subscribe<S: Store>(
    app: &App<S>,
    identity: &Identity,
    listener: &Listener,
    topics: Vec<Box<str>>,
    now_ms: u64,
) -> Result<BTreeMap<String, String>, Fault> {
    if topics.is_empty() {
        let head = app.engine.begin(identity, listener).await?;
        app.engine.note_listening(identity, listener, Vec::new(), &head, now_ms);
        return Ok(BTreeMap::new());
    }
    let wanted = Topics { topics, ..Topics::default() };
    let answered = app.engine.subscribe_events(identity, listener, &wanted, now_ms).await?;
    let refused = answered.topics.into_iter().filter_map(|answer| Some((answer.topic, answer.code?)));
    Ok(refused.collect())
}

/// From where on events are wanted.
enum Since {
    Now,
    Place(EventPlace),
    /// A place that this log never had.
    Elsewhere,
}

/// Finds the last event that the client has. A browser that comes back sends it beside the address of before, so that
/// the header counts first. What cannot be read there is none of this log's: a browser could not help it.
fn resume<S: Store>(app: &App<S>, identity: &Identity, parts: &Parts, pairs: &Pairs) -> Result<Since, Fault> {
    let header = parts.headers.get("last-event-id").filter(|value| !value.is_empty());
    if let Some(value) = header {
        let place = value.to_str().ok().and_then(EventPlace::parse);
        return Ok(place.map_or(Since::Elsewhere, Since::Place));
    }
    if let Some(token) = pairs.get("resume_token").filter(|token| !token.is_empty()) {
        let place = app.engine.open_resume_token(identity, token);
        return Ok(place.map_or(Since::Elsewhere, Since::Place));
    }
    let Some(text) = pairs.get("last_event_id").filter(|text| !text.is_empty()) else {
        return Ok(Since::Now);
    };
    let place = EventPlace::parse(text);
    place.map(Since::Place).ok_or_else(|| invalid("last_event_id", "must be an event's id or its number"))
}
