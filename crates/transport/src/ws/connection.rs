//! The task of one connection: frames to the session, the session's outputs to the socket.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use driftline_engine::{Done, Identity, Output, Session, Store, Subscription};
use driftline_model::DeviceId;
use driftline_protocol::{Encoding, ErrorCode, ErrorMessage, Fault, Head, Message, Outbound, decode};
use futures_util::future::BoxFuture;
use futures_util::stream::{self, FuturesOrdered};
use futures_util::{Stream, StreamExt as _};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{Notify, oneshot, watch};

use super::frame::{Opcode, write_close, write_frame};
use super::reader::{Incoming, Reader};
use crate::app::{App, drained};
use crate::auth::Claims;
use crate::guard::Guard;
use crate::observe::{count_close, count_error};
use crate::request::identity;

/// Who enters, or why not.
pub(super) type Entrance = Result<(Box<Claims>, DeviceId), Fault>;

/// How long the last bytes of a connection may take.
const FAREWELL: Duration = Duration::from_secs(5);

/// How long a connection that was cut for reading too slowly may take to read why.
const FAREWELL_SLOW: Duration = Duration::from_secs(30);

/// How long the peer's side of a closed connection is read out.
const LINGER: Duration = Duration::from_secs(1);

/// Bytes that are gathered into one write.
const WRITE_BYTES: usize = 64 << 10;

/// Runs a connection after its upgrade was answered.
pub(super) async fn run<S: Store>(app: Arc<App<S>>, upgraded: OnUpgrade, entrance: Entrance) {
    let upgraded = match upgraded.await {
        Ok(upgraded) => upgraded,
        Err(error) => return tracing::debug!(%error, "the upgrade did not happen"),
    };
    // A plain TCP stream splits without a lock; anything else goes through the general split. The times of requests
    // end with the upgrade.
    match upgraded.downcast::<TokioIo<Guard>>() {
        Ok(parts) => {
            let Some(stream) = parts.io.into_inner().into_stream() else { return };
            let (read, write) = stream.into_split();
            Box::pin(attend(app, read, write, parts.read_buf, entrance)).await;
        }
        Err(upgraded) => {
            let (read, write) = tokio::io::split(TokioIo::new(upgraded) as TokioIo<Upgraded>);
            Box::pin(attend(app, read, write, Bytes::new(), entrance)).await;
        }
    }
}

async fn attend<S: Store, R, W>(app: Arc<App<S>>, mut read: R, mut write: W, early: Bytes, entrance: Entrance)
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
{
    let number = app.next_connection();
    let connection_id = format!("{:08x}-{number}", app.random_u128() >> 96);
    let (claims, device) = match entrance {
        Ok(entrance) => entrance,
        Err(fault) => return turn_away(&app, read, write, &fault, &connection_id).await,
    };
    let expires_s = claims.expires_s;
    let identity = match identity(&app, *claims, Some(device)).await {
        Ok(identity) => Arc::new(identity),
        Err(fault) => return turn_away(&app, read, write, &fault, &connection_id).await,
    };
    let head = match app.engine.head(&identity).await {
        Ok(head) => head,
        Err(fault) => return turn_away(&app, read, write, &fault, &connection_id).await,
    };
    let now_ms = app.now_ms();
    let limits = app.engine.limits().clone();
    let bytes_max = limits.message_bytes;
    let session =
        Session::new(Arc::clone(&identity), limits, &head, connection_id.clone(), app.random_u128(), now_ms);
    let seat = identity.device.as_ref().map(|(device, _)| (identity.tenant, *device));
    let replaced = seat.map(|(tenant, device)| app.seat(tenant, device, number));
    tracing::info!(connection = %connection_id, tenant = %identity.tenant_id, "connected");
    // A reviewer is told of conflicts from the beginning, whether or not it syncs.
    let commits = (!identity.reviews.is_empty()).then(|| app.engine.subscribe(&identity));
    let link = Link {
        draining: app.draining(),
        replaced: replaced.unwrap_or_default(),
        expires_s,
        app: Arc::clone(&app),
        identity,
        session,
        connection_id: connection_id.clone(),
        works: FuturesOrdered::new(),
        turn: None,
        commits,
        queue: VecDeque::new(),
        queued: 0,
        writing: Vec::new(),
        written: 0,
        stopping: false,
        end: None,
    };
    let reason = link.run(Reader::new(&mut read, early, bytes_max), &mut write).await;
    if let Some((tenant, device)) = seat {
        app.unseat(tenant, device, number);
    }
    count_close(reason);
    tracing::info!(connection = %connection_id, code = reason, "disconnected");
    read_out(read).await;
}

/// Reads what the peer still sends, until it closes too: unread bytes would make the kernel reset the connection, and
/// a reset overtakes the close frame on its way.
async fn read_out<R: AsyncRead + Unpin>(mut read: R) {
    let rest = async {
        let mut scrap = vec![0; 8 << 10];
        while let Ok(1..) = read.read(&mut scrap).await {}
    };
    let _ = tokio::time::timeout(LINGER, rest).await;
}

/// Tells on the open socket why nobody is let in.
async fn turn_away<S: Store>(
    app: &App<S>,
    read: impl AsyncRead + Unpin,
    mut write: impl AsyncWrite + Unpin,
    fault: &Fault,
    connection_id: &str,
) {
    count_error(fault.code);
    // Our own failure while connecting closes 4000.
    let code = match (fault.code, fault.code.close()) {
        (_, Some(close)) => close.0,
        (ErrorCode::Forbidden, None) => 4503,
        // A device name that cannot be one is as good as none; coming back with it helps nobody.
        (ErrorCode::ValidationError, None) => 4502,
        (_, None) => 4000,
    };
    let message = Outbound::Error(ErrorMessage::new(fault, connection_id));
    let head = Head { now_ms: app.now_ms(), ..Head::default() };
    let mut out = Vec::new();
    write_frame(&mut out, Opcode::Text, message.encode(&head).as_bytes());
    write_close(&mut out, code, fault.code.as_str());
    count_close(code);
    tracing::info!(connection = %connection_id, code, error = %fault.code, "turned away");
    let farewell = async {
        // The peer may be gone already.
        let _ = write.write_all(&out).await;
        let _ = write.shutdown().await;
    };
    let _ = tokio::time::timeout(FAREWELL, farewell).await;
    read_out(read).await;
}

/// One connection with everything it holds.
struct Link<S: Store> {
    app: Arc<App<S>>,
    identity: Arc<Identity>,
    session: Session,
    connection_id: String,
    draining: watch::Receiver<bool>,
    replaced: Arc<Notify>,
    expires_s: u64,
    /// Work under way; answers come in the order of the asking.
    works: FuturesOrdered<BoxFuture<'static, Done>>,
    /// Comes to its end when the work before has reached the store.
    turn: Option<oneshot::Receiver<()>>,
    commits: Option<Subscription>,
    /// Frames that wait, and their bytes.
    queue: VecDeque<Vec<u8>>,
    queued: usize,
    /// Frames that are being written in one piece.
    writing: Vec<u8>,
    written: usize,
    /// Whether the server shuts down: what was asked is answered, nothing more is read.
    stopping: bool,
    /// The close code once everything is said.
    end: Option<u16>,
}

enum Event {
    Incoming(Incoming),
    Done(Done),
    Commit(Arc<driftline_engine::Committed>),
    Missed,
    Wrote(std::io::Result<usize>),
    Tick,
    Drain,
    Replaced,
}

impl<S: Store> Link<S> {
    /// Runs until the connection ends; gives the close code.
    async fn run<R, W>(mut self, reader: Reader<R>, write: &mut W) -> u16
    where
        R: AsyncRead + Unpin + Send,
        W: AsyncWrite + Unpin + Send,
    {
        let interval = Duration::from_secs(self.app.engine.limits().heartbeat_s);
        // The stream keeps the future of a frame that is half read, so that waiting for something else loses nothing.
        let incoming = stream::unfold(reader, |reader| async move {
            let (reader, incoming) = reader.next().await;
            Some((incoming, reader))
        });
        tokio::pin!(incoming);
        let tick = tokio::time::sleep(interval);
        tokio::pin!(tick);
        loop {
            self.collect();
            if self.stopping && self.works.is_empty() && !self.session.is_closed() {
                let spread = u64::try_from(self.app.random_u128() % 3_000).unwrap_or_default();
                self.session.drain(500 + spread, self.app.now_ms());
                self.collect();
            }
            if self.end.is_some() {
                break;
            }
            match self.event(incoming.as_mut(), write, tick.as_mut()).await {
                Event::Incoming(incoming) => {
                    if let Some(code) = self.incoming(incoming) {
                        self.end = Some(code);
                    }
                }
                Event::Done(done) => self.session.handle_done(done, self.app.now_ms()),
                Event::Commit(committed) => self.session.handle_commit(&committed, self.app.now_ms()),
                Event::Missed => self.commits = None,
                Event::Wrote(Ok(0) | Err(_)) => return 1006,
                Event::Wrote(Ok(count)) => {
                    self.written += count;
                    if self.written == self.writing.len() {
                        self.written = 0;
                        // A quiet connection keeps no buffer.
                        self.writing = Vec::new();
                    }
                }
                Event::Tick => {
                    let wait = self.tick(interval);
                    let next = tick.deadline() + wait;
                    tick.as_mut().reset(next);
                }
                Event::Drain => self.stopping = true,
                Event::Replaced => {
                    let message = "the same device connected again";
                    self.session.end(ErrorCode::Replaced, message, self.app.now_ms());
                }
            }
        }
        let code = self.end.unwrap_or(1000);
        self.farewell(write).await;
        code
    }

    /// Waits for the next thing to happen. Whatever is ready is taken before anything is written, so that answers
    /// gather into one write.
    async fn event<W: AsyncWrite + Unpin>(
        &mut self,
        mut incoming: Pin<&mut impl Stream<Item = Incoming>>,
        write: &mut W,
        tick: Pin<&mut tokio::time::Sleep>,
    ) -> Event {
        self.gather();
        let listening =
            self.session.wants_input() && !self.stopping && self.queued < self.outbound_bytes() / 2;
        let unwritten = self.written < self.writing.len();
        if self.queued > WRITE_BYTES {
            // Much waits already: write now if the socket takes it.
            let rest = &self.writing[self.written..];
            let now = poll_fn(|context| Poll::Ready(Pin::new(&mut *write).poll_write(context, rest)));
            if let Poll::Ready(wrote) = now.await {
                return Event::Wrote(wrote);
            }
        }
        tokio::select! {
            biased;
            () = drained(&mut self.draining), if !self.stopping => Event::Drain,
            () = self.replaced.notified() => Event::Replaced,
            Some(done) = self.works.next(), if !self.works.is_empty() => Event::Done(done),
            commit = next_commit(&mut self.commits), if self.commits.is_some() => {
                commit.map_or(Event::Missed, Event::Commit)
            }
            Some(incoming) = incoming.next(), if listening => Event::Incoming(incoming),
            wrote = write.write(&self.writing[self.written..]), if unwritten => Event::Wrote(wrote),
            () = tick => Event::Tick,
        }
    }

    fn outbound_bytes(&self) -> usize {
        self.app.engine.limits().outbound_bytes
    }

    /// Moves waiting frames into the buffer that is being written.
    fn gather(&mut self) {
        if !self.writing.is_empty() {
            return;
        }
        while let Some(frame) = self.queue.pop_front() {
            self.queued -= frame.len();
            if self.writing.is_empty() {
                self.writing = frame;
            } else {
                self.writing.extend_from_slice(&frame);
            }
            if self.writing.len() >= WRITE_BYTES {
                break;
            }
        }
    }

    /// Takes what came from the client; gives the close code when the connection ends by it.
    fn incoming(&mut self, incoming: Incoming) -> Option<u16> {
        let now_ms = self.app.now_ms();
        match incoming {
            Incoming::Text(frame) => {
                self.app.counts.messages_in.increment(1);
                self.app.counts.bytes_in.increment(frame.len() as u64);
                let message = decode(Encoding::Json, &frame, self.app.engine.limits());
                self.log(&message, frame.len());
                self.session.handle_message(message, now_ms);
                None
            }
            Incoming::Binary => self.broken(1003, "this connection speaks JSON in text frames"),
            Incoming::Ping(payload) => {
                let mut frame = Vec::new();
                write_frame(&mut frame, Opcode::Pong, &payload);
                self.enqueue(frame);
                None
            }
            Incoming::Pong => None,
            Incoming::Close(code) => {
                let mut frame = Vec::new();
                match code {
                    Some(code) => write_close(&mut frame, code, ""),
                    None => write_frame(&mut frame, Opcode::Close, &[]),
                }
                self.enqueue(frame);
                Some(code.unwrap_or(1005))
            }
            Incoming::Broken(1009) => {
                let limit = self.app.engine.limits().message_bytes;
                let fault =
                    Fault::new(ErrorCode::MessageTooLarge, format!("a message may hold {limit} bytes"));
                self.session.handle_message(Err(fault), now_ms);
                None
            }
            Incoming::Broken(code) => self.broken(code, "the frames break the WebSocket protocol"),
            Incoming::Gone => Some(1006),
        }
    }

    fn broken(&mut self, code: u16, reason: &str) -> Option<u16> {
        let mut frame = Vec::new();
        write_close(&mut frame, code, reason);
        self.enqueue(frame);
        Some(code)
    }

    fn log(&self, message: &Result<Message, Fault>, bytes: usize) {
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

    /// Does what the session wants.
    fn collect(&mut self) {
        while let Some(output) = self.session.poll_output() {
            match output {
                Output::Send(text) => {
                    self.app.counts.messages_out.increment(1);
                    self.app.counts.bytes_out.increment(text.len() as u64);
                    let mut frame = Vec::new();
                    write_frame(&mut frame, Opcode::Text, text.as_bytes());
                    self.enqueue(frame);
                }
                Output::Work(work) => {
                    // Listening starts before the head is read, so that no commit falls between the two.
                    if matches!(work, driftline_engine::Work::Start { .. }) {
                        self.commits = Some(self.app.engine.subscribe(&self.identity));
                    }
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
                        match first {
                            Poll::Ready(done) => done,
                            Poll::Pending => rest.await,
                        }
                    }));
                }
                Output::Close(close) => {
                    let mut frame = Vec::new();
                    write_close(&mut frame, close.code.0, close.reason);
                    self.enqueue(frame);
                    self.end = Some(close.code.0);
                }
                _ => {}
            }
        }
    }

    /// Queues a frame. A client that does not read loses the queue and is told to come back.
    fn enqueue(&mut self, frame: Vec<u8>) {
        if self.end.is_none()
            && self.queued + frame.len() > self.outbound_bytes() + self.app.engine.limits().page_bytes
        {
            self.app.counts.slow_consumers.increment(1);
            self.queue.clear();
            self.queued = 0;
            self.end = Some(4008);
            self.session.end(ErrorCode::SlowConsumer, "the connection does not read", self.app.now_ms());
            return;
        }
        self.queued += frame.len();
        self.queue.push_back(frame);
    }

    /// Looks at the time: sends a ping, lets silent clients and ended tokens go; tells when to look again.
    fn tick(&mut self, interval: Duration) -> Duration {
        let now_ms = self.app.now_ms();
        self.session.handle_time(now_ms);
        if now_ms / 1000 >= self.expires_s {
            self.session.end(ErrorCode::Unauthorized, "the token has expired", now_ms);
        }
        let mut frame = Vec::new();
        write_frame(&mut frame, Opcode::Ping, &[]);
        self.enqueue(frame);
        let deadline = Duration::from_millis(self.session.deadline_ms().saturating_sub(now_ms));
        interval.min(deadline).max(Duration::from_millis(50))
    }

    /// Writes what is left and closes, as far as the peer takes it.
    async fn farewell<W: AsyncWrite + Unpin>(&mut self, write: &mut W) {
        self.collect();
        let farewell = async {
            let mut done = write.write_all(&self.writing[self.written..]).await;
            for frame in &self.queue {
                if done.is_ok() {
                    done = write.write_all(frame).await;
                }
            }
            if done.is_ok() {
                // The peer may be gone already.
                let _ = write.shutdown().await;
            }
        };
        let wait = if self.end == Some(4008) { FAREWELL_SLOW } else { FAREWELL };
        let _ = tokio::time::timeout(wait, farewell).await;
    }
}

async fn next_commit(commits: &mut Option<Subscription>) -> Option<Arc<driftline_engine::Committed>> {
    match commits {
        Some(commits) => commits.next().await,
        None => std::future::pending().await,
    }
}
