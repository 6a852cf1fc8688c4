//! The listener: connections in, bounded in number, head size and time.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use driftline_engine::Store;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use thiserror::Error;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::app::{App, drained};
use crate::rate::Peer;
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
    let mut draining = app.draining();
    let outcome = loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => admit(stream, &app, &router, &mut connections),
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
    *app.alive.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = None;
    let rest = async {
        while connections.join_next().await.is_some() {}
        // Sessions hold the other ends; when the last has gone nothing is received any more.
        let _ = ended.recv().await;
    };
    if tokio::time::timeout(STOP, rest).await.is_err() {
        tracing::warn!("stopped with connections still open");
        connections.abort_all();
    }
    outcome
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

/// Requests that may stand beside the admitted sessions.
const SPARE: usize = 1024;

fn admit<S: Store>(stream: TcpStream, app: &Arc<App<S>>, router: &Router, connections: &mut JoinSet<()>) {
    let limits = app.engine.limits();
    if !app.settings.unlimited && connections.len() >= limits.connections + SPARE {
        app.counts.refused.increment(1);
        connections.spawn(turn_away(stream));
        return;
    }
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "the socket takes no option");
    }
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_millis(limits.header_ms))
        .max_buf_size(limits.header_bytes.max(8 << 10))
        .max_headers(64);
    let (router, peer) = (TowerToHyperService::new(router.clone()), stream.peer_addr().map(Peer));
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        if let Ok(peer) = &peer {
            request.extensions_mut().insert(*peer);
        }
        router.call(request)
    });
    let mut draining = app.draining();
    connections.spawn(async move {
        let connection = builder.serve_connection(TokioIo::new(stream), service).with_upgrades();
        tokio::pin!(connection);
        let done = tokio::select! {
            done = &mut connection => done,
            () = drained(&mut draining) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = done {
            tracing::debug!(%error, "connection ended early");
        }
    });
}

/// Answers a connection that is one too many.
async fn turn_away(mut stream: TcpStream) {
    let answer = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    // The peer may be gone already.
    let _ = tokio::time::timeout(Duration::from_secs(1), stream.write_all(answer)).await;
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
