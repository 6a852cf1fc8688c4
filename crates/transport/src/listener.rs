//! The listener: connections in, bounded in number, head size and time.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use driftline_engine::Store;
use driftline_protocol::{ErrorCode, Fault};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use thiserror::Error;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::app::{App, drained};
use crate::guard::{Answering, End, Guard, Parting, Times, Turns};
use crate::observe::count_error;
use crate::rate::Peer;
use crate::reply::bare;
use crate::routes::router;

/// Why a listener ended.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The listener is of no use any more.
    #[error("accepting connections failed: {0}")]
    Accept(std::io::Error),
}

/// How long a shutdown waits for requests and sessions to end.
const STOP: Duration = Duration::from_secs(10);

/// Serves until [`App::drain`] is called, then lets everything end that was begun, within ten seconds.
///
/// # Errors
/// [`ServeError`] when accepting fails for good; running out of file descriptors is waited out.
pub async fn serve<S: Store>(listener: TcpListener, app: Arc<App<S>>) -> Result<(), ServeError> {
    let (alive, mut ended) = mpsc::channel::<()>(1);
    *app.alive.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(alive);
    let router = router(Arc::clone(&app));
    let mut connections = JoinSet::new();
    let standing = Standing::default();
    let mut draining = app.draining();
    let ticking = tokio::spawn(tick(Arc::clone(&app)));
    let outcome = loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => admit(stream, &app, &router, &standing, &mut connections),
                Err(error) if is_passing(&error) => {
                    tracing::warn!(%error, "accepting failed, trying again");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(error) => break Err(ServeError::Accept(error)),
            },
            // Finished connections are collected as they end.
            Some(_) = connections.join_next() => {}
            () = drained(&mut draining) => break Ok(()),
        }
    };
    drop(listener);
    app.drain();
    // Sessions and what runs to its end hold the other ends; when the last has gone nothing is received any more. A connection
    // may begin something until it ends itself.
    let let_go = || *app.alive.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = None;
    let rest = async {
        while connections.join_next().await.is_some() {}
        let_go();
        let _ = ended.recv().await;
    };
    if tokio::time::timeout(STOP, rest).await.is_err() {
        tracing::warn!("stopped with connections still open");
        connections.shutdown().await;
        let_go();
        // Bodies end with their connections, and what came of them is written down.
        if tokio::time::timeout(LAST_RECEIPTS, ended.recv()).await.is_err() {
            tracing::warn!("stopped before all was written down that came");
        }
    }
    ticking.abort();
    // It ends where it waits, and what it had not written yet is written now.
    let _ = ticking.await;
    app.engine.leave(app.now_ms());
    if tokio::time::timeout(LAST_TICK, app.tick()).await.is_err() {
        tracing::warn!("stopped before all was written that was noticed of devices");
    }
    outcome
}

/// How long what came of bodies that were cut off may take to be written down.
const LAST_RECEIPTS: Duration = Duration::from_secs(2);

/// How long the last tick may take.
const LAST_TICK: Duration = Duration::from_secs(2);

/// Does once a second what is due, until the end.
async fn tick<S: Store>(app: Arc<App<S>>) {
    let mut seconds = tokio::time::interval(Duration::from_secs(1));
    seconds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        seconds.tick().await;
        app.tick().await;
    }
}

/// Errors of one connection or of a full table, not of the listener.
fn is_passing(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    let of_peer = matches!(
        error.kind(),
        ErrorKind::ConnectionAborted
            | ErrorKind::ConnectionReset
            | ErrorKind::ConnectionRefused
            | ErrorKind::Interrupted
    );
    // ENFILE, EMFILE, ENOBUFS and ENOMEM of Linux: the table is full until something closes.
    of_peer || matches!(error.raw_os_error(), Some(23 | 24 | 105 | 12))
}

/// Connections that may stand beside the admitted sessions, so that requests are answered while all places are taken.
fn spare(connections: usize) -> usize {
    (connections / 16).clamp(16, 1024)
}

/// Connections that may be told at one time that they are too many; further ones are dropped.
const TURNED_AWAY: usize = 256;

/// How long what a peer still sends is read after the last word.
const LINGER: Duration = Duration::from_secs(1);

/// The connections of a listener that stand, by what becomes of them.
#[derive(Debug, Default)]
struct Standing {
    served: Arc<()>,
    turned_away: Arc<()>,
}

impl Standing {
    /// Tells whether one more fits beside the sessions.
    fn has_room<S: Store>(&self, app: &App<S>) -> bool {
        let connections = app.engine.limits().connections;
        let standing = Arc::strong_count(&self.served) - 1 + app.active.load(Ordering::Relaxed);
        app.settings.unlimited || standing < connections + spare(connections)
    }
}

/// Tells whether a peer asks for the head of something. Clients of tus that are refused it throw their upload away, and try
/// again when they hear nothing.
async fn asks_for_head(stream: &TcpStream) -> bool {
    const HEAD: &[u8; 5] = b"HEAD ";
    let mut begun = [0; HEAD.len()];
    let peeked = tokio::time::timeout(LINGER, stream.peek(&mut begun)).await;
    matches!(peeked, Ok(Ok(len)) if len > 0 && HEAD.starts_with(&begun[..len]))
}

fn admit<S: Store>(
    stream: TcpStream,
    app: &Arc<App<S>>,
    router: &Router,
    standing: &Standing,
    connections: &mut JoinSet<()>,
) {
    if !standing.has_room(app) {
        app.counts.refused.increment(1);
        if Arc::strong_count(&standing.turned_away) <= TURNED_AWAY {
            let (app, place) = (Arc::clone(app), Arc::clone(&standing.turned_away));
            connections.spawn(async move {
                let fault =
                    Fault::new(ErrorCode::ServerDraining, "this node holds as many connections as it may");
                let word = bare(&fault, &app.random_hex());
                let is_head = asks_for_head(&stream).await;
                last_word(stream, Some(word.as_slice()).filter(|_| !is_head)).await;
                drop(place);
            });
        }
        return;
    }
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "the socket takes no option");
    }
    let (app, router, place) = (Arc::clone(app), router.clone(), Arc::clone(&standing.served));
    connections.spawn(async move {
        attend(stream, &app, router).await;
        drop(place);
    });
}

/// Answers the requests of one connection until it ends or becomes a session.
async fn attend<S: Store>(stream: TcpStream, app: &App<S>, router: Router) {
    let limits = app.engine.limits();
    let (turns, peer) = (Arc::new(Turns::default()), stream.peer_addr().map(Peer));
    let (guard, mut parting) = Guard::new(stream, Arc::clone(&turns), Times::new(limits));
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        if let Ok(peer) = &peer {
            request.extensions_mut().insert(*peer);
        }
        let (turn, answer) = (turns.answer(), router.call(request));
        async move { answer.await.map(|response| response.map(|body| Answering { body, _turn: turn })) }
    });
    let mut builder = http1::Builder::new();
    builder
        .max_header_size(limits.header_bytes)
        .max_buf_size(limits.header_bytes.max(BODY_BYTES))
        .max_headers(HEADERS);
    let done = {
        let connection = builder.serve_connection(TokioIo::new(guard), service).with_upgrades();
        tokio::pin!(connection);
        let mut draining = app.draining();
        tokio::select! {
            done = &mut connection => done,
            () = drained(&mut draining) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    };
    if let Err(error) = done {
        tracing::debug!(%error, "connection ended early");
    }
    if let Ok(parting) = parting.try_recv() {
        part(parting, app).await;
    }
}

/// Bytes of a body that are read at once. It begins with fewer, and long bodies come to it.
const BODY_BYTES: usize = 64 << 10;

/// Headers that one request may have.
const HEADERS: usize = 64;

/// Lets go of a connection in the way that its end asks for.
async fn part<S: Store>(Parting { stream, end }: Parting, app: &App<S>) {
    match end {
        End::Closed | End::Silent => last_word(stream, None).await,
        End::Late => {
            count_error(ErrorCode::HeartbeatTimeout);
            let fault = Fault::new(ErrorCode::HeartbeatTimeout, "the head did not come in time");
            last_word(stream, Some(&bare(&fault, &app.random_hex()))).await;
        }
        End::Stuck => {
            app.counts.slow_consumers.increment(1);
            // The kernel keeps nothing of what the peer did not take.
            if let Err(error) = stream.set_zero_linger() {
                tracing::debug!(%error, "the socket takes no option");
            }
        }
    }
}

/// Says a last word and reads what the peer still sends, until it closes too: unread bytes would make the kernel reset
/// the connection, and a reset overtakes the word on its way.
async fn last_word(mut stream: TcpStream, word: Option<&[u8]>) {
    let farewell = async {
        if let Some(word) = word {
            stream.write_all(word).await?;
        }
        stream.shutdown().await?;
        let mut scrap = vec![0; 8 << 10];
        while stream.read(&mut scrap).await? > 0 {}
        std::io::Result::Ok(())
    };
    // The peer may be gone already.
    let _ = tokio::time::timeout(LINGER, farewell).await;
}

/// Counts a session for as long as it lives.
pub(crate) struct Active<S: Store>(Arc<App<S>>);

impl<S: Store> Active<S> {
    /// Takes a place for one more session, if there is one.
    pub(crate) fn admit(app: &Arc<App<S>>) -> Option<Self> {
        let max = app.sessions_max();
        let taken = app.active.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |active| {
            (active < max).then_some(active + 1)
        });
        if taken.is_err() {
            app.counts.refused.increment(1);
            return None;
        }
        app.counts.connections.increment(1);
        app.counts.opened.increment(1);
        Some(Self(Arc::clone(app)))
    }
}

impl<S: Store> Drop for Active<S> {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
        self.0.counts.connections.decrement(1);
    }
}
