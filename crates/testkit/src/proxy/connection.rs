//! One connection through the proxy: two directions, each with a thread that reads and one that writes.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use tokio::net::TcpSocket;

use super::Direction;
use super::state::{Passage, Shared};

const CHUNK_BYTES: usize = 16 << 10;
/// How much is on its way in one direction while it is delayed or held back.
const CHUNKS_MAX: usize = 64;
/// How long a write waits for its receiver before it looks whether it is still wanted.
const WRITE_TIMEOUT: Duration = Duration::from_millis(20);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Both ends of a connection.
#[derive(Debug)]
pub(super) struct Connection {
    client: TcpStream,
    /// Missing until it is connected.
    server: OnceLock<TcpStream>,
    closed: AtomicBool,
}

/// What was read, and when it is to arrive.
struct Chunk {
    due: Instant,
    what: What,
}

enum What {
    Bytes(Vec<u8>),
    /// The sender has nothing more to say.
    End,
    /// The connection to the sender broke.
    Break,
}

/// Passes a connection on, in threads of its own.
pub(super) fn start(client: TcpStream, shared: &Arc<Shared>) {
    let connection = Arc::new(Connection { client, server: OnceLock::new(), closed: AtomicBool::new(false) });
    let Some(number) = shared.add(&connection) else {
        reset(&connection.client);
        return;
    };
    let shared = Arc::clone(shared);
    thread::spawn(move || {
        if connection.run(&shared).is_none() || connection.is_closed() {
            reset(&connection.client);
            connection.server.get().into_iter().for_each(reset);
        }
        drop(connection);
        shared.remove(number);
    });
}

impl Connection {
    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Tells all threads of the connection to end; those that read are woken. [`Shared::close`] wakes the others.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        for stream in [Some(&self.client), self.server.get()].into_iter().flatten() {
            let _ = stream.shutdown(Shutdown::Read);
        }
    }

    /// Connects and passes on until both directions are at their ends; none: there was no connection.
    fn run(&self, shared: &Shared) -> Option<()> {
        let upstream = shared.upstream(self)?;
        let server = TcpStream::connect_timeout(&upstream, CONNECT_TIMEOUT).ok()?;
        let server = self.server.get_or_init(|| server);
        for stream in [&self.client, server] {
            stream.set_nodelay(true).ok()?;
            stream.set_write_timeout(Some(WRITE_TIMEOUT)).ok()?;
        }
        // It may have been closed before the new stream could be seen.
        if self.is_closed() {
            return None;
        }
        thread::scope(|scope| {
            for direction in [Direction::ToServer, Direction::ToClient] {
                let (from, to) = match direction {
                    Direction::ToServer => (&self.client, server),
                    Direction::ToClient => (server, &self.client),
                };
                let (sender, chunks) = sync_channel(CHUNKS_MAX);
                scope.spawn(move || read(from, &sender, shared));
                let passage = Passage::new(direction);
                let mut writer = Writer { connection: self, shared, to, passage };
                scope.spawn(move || writer.run(&chunks));
            }
        });
        Some(())
    }
}

/// What writes one direction of a connection.
struct Writer<'a> {
    connection: &'a Connection,
    shared: &'a Shared,
    to: &'a TcpStream,
    passage: Passage,
}

impl Writer<'_> {
    fn run(&mut self, chunks: &Receiver<Chunk>) {
        for chunk in chunks {
            let passes = self.shared.wait_until(chunk.due, self.connection)
                && match chunk.what {
                    What::Bytes(bytes) => self.write_all(&bytes),
                    What::End => self.end(|to| to.shutdown(Shutdown::Write).is_ok()),
                    What::Break => self.end(|_| false),
                };
            if !passes {
                return self.shared.close(self.connection);
            }
        }
    }

    /// Writes bytes as they may pass; false when the connection is to be closed.
    fn write_all(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let may = self.shared.admit(self.connection, &mut self.passage, bytes.len());
            let Some(may) = may else { return false };
            let result = self.to.write(&bytes[..may]);
            self.shared.written(&mut self.passage, result.as_ref().map_or(0, |written| *written));
            match result {
                Ok(written) => bytes = &bytes[written..],
                Err(error) if is_for_now(error.kind()) => {}
                Err(_) => return false,
            }
        }
        true
    }

    /// Ends the direction once that may be known; false when the connection is to be closed.
    fn end(&mut self, how: impl FnOnce(&TcpStream) -> bool) -> bool {
        let may = self.shared.admit(self.connection, &mut self.passage, 0).is_some();
        may && {
            let goes_on = how(self.to);
            self.shared.written(&mut self.passage, 0);
            goes_on
        }
    }
}

fn read(mut from: &TcpStream, chunks: &SyncSender<Chunk>, shared: &Shared) {
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let what = match from.read(&mut buffer) {
            Ok(0) => What::End,
            Ok(len) => What::Bytes(buffer[..len].to_vec()),
            Err(error) if is_for_now(error.kind()) => continue,
            Err(_) => What::Break,
        };
        let is_last = !matches!(what, What::Bytes(_));
        // Nobody takes the chunk when the connection is closed.
        if chunks.send(Chunk { due: shared.due(), what }).is_err() || is_last {
            return;
        }
    }
}

fn is_for_now(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

/// Makes the close of a connection a reset: the other end is told that it broke.
fn reset(stream: &TcpStream) {
    if let Ok(same) = stream.try_clone() {
        let _ = TcpSocket::from_std_stream(same).set_zero_linger();
    }
}
