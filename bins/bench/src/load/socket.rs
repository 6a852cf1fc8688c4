//! A client socket made for measuring: the handshake is one write and one read, a read may be abandoned at
//! any await without losing bytes, and an idle socket holds no task and next to no memory.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, lookup_host};

use super::frame::{Head, Opcode, parse_head, write_frame};
use crate::rng::Rng;

/// The sample key of RFC 6455 §1.3. The key protects against caches between browser and server; there is
/// none here, and a constant leaves more of the core to the load.
const HANDSHAKE_KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ANSWER_BYTES_MAX: usize = 16 << 10;
const READ_BYTES_MIN: usize = 2 << 10;
/// Close code of a connection that ended without a close frame (RFC 6455 §7.1.5).
const ABNORMAL: u16 = 1006;

/// Where a server listens.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    pub(crate) host: String,
    /// The path of the URL, when it has one.
    pub(crate) path: Option<String>,
}

impl Target {
    /// Parses `ws://HOST:PORT[/PATH]` (or `http://`) and looks the host up.
    pub(crate) async fn resolve(url: &str) -> Result<Self> {
        let rest = ["ws://", "http://"].iter().find_map(|scheme| url.strip_prefix(scheme));
        let rest = rest.with_context(|| format!("{url}: only ws:// is spoken"))?;
        let (host, path) = match rest.split_once('/') {
            Some((host, path)) => (host, Some(path).filter(|path| !path.is_empty())),
            None => (rest, None),
        };
        let named = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
        let mut found = lookup_host(&named).await.with_context(|| format!("cannot look up {host}"))?;
        let address = found.next().with_context(|| format!("{host} has no address"))?;
        Ok(Target { address, host: host.to_owned(), path: path.map(|path| format!("/{path}")) })
    }
}

/// What a read brings.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Incoming<'a> {
    /// A whole message.
    Message(&'a [u8]),
    /// The end of the connection, with its close code.
    Closed(u16),
}

/// A connection over which messages are sent and answered.
pub(crate) trait Wire: Send {
    /// Sends a message.
    fn send(&mut self, text: &[u8]) -> impl Future<Output = Result<()>> + Send;

    /// Reads the next message. Cancel-safe.
    fn next(&mut self) -> impl Future<Output = Result<Incoming<'_>>> + Send;

    /// Bytes read and bytes written.
    fn bytes(&self) -> (u64, u64);
}

impl Wire for Socket {
    async fn send(&mut self, text: &[u8]) -> Result<()> {
        Socket::send(self, text).await
    }

    async fn next(&mut self) -> Result<Incoming<'_>> {
        Socket::next(self).await
    }

    fn bytes(&self) -> (u64, u64) {
        (self.bytes_in, self.bytes_out)
    }
}

/// An upgraded connection.
#[derive(Debug)]
pub(crate) struct Socket {
    stream: TcpStream,
    input: Vec<u8>,
    /// Bytes of `input` that were consumed.
    consumed: usize,
    /// A message of several frames while it is incomplete, then the last such message.
    fragments: Vec<u8>,
    output: Vec<u8>,
    /// Bytes of `output` that were written.
    written: usize,
    masks: Rng,
    /// Bytes read since the upgrade was asked for.
    pub(crate) bytes_in: u64,
    /// Bytes written since the upgrade was asked for.
    pub(crate) bytes_out: u64,
}

impl Socket {
    /// Connects and upgrades on `path`, from `source` if it is given.
    ///
    /// # Errors
    /// When the server cannot be reached or answers anything but 101; the error shows its first line.
    pub(crate) async fn connect(target: &Target, path: &str, source: Option<Ipv4Addr>) -> Result<Self> {
        let stream = match source {
            Some(source) => {
                let socket = TcpSocket::new_v4()?;
                socket.bind((source, 0).into())?;
                socket.connect(target.address).await
            }
            None => TcpStream::connect(target.address).await,
        };
        let stream = stream.with_context(|| format!("cannot connect to {}", target.address))?;
        stream.set_nodelay(true)?;
        let seed = u64::from(stream.local_addr()?.port());
        let mut socket = Socket {
            stream,
            input: Vec::with_capacity(READ_BYTES_MIN),
            consumed: 0,
            fragments: Vec::new(),
            output: Vec::new(),
            written: 0,
            masks: Rng::new(seed, 0),
            bytes_in: 0,
            bytes_out: 0,
        };
        socket.upgrade(&target.host, path).await?;
        Ok(socket)
    }

    async fn upgrade(&mut self, host: &str, path: &str) -> Result<()> {
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: {HANDSHAKE_KEY}\r\nSec-WebSocket-Version: 13\r\n\r\n"
        );
        self.output.extend_from_slice(request.as_bytes());
        self.flush().await?;
        loop {
            if let Some(end) = self.input.windows(4).position(|four| four == b"\r\n\r\n") {
                self.consumed = end + 4;
                break;
            }
            ensure!(self.input.len() < ANSWER_BYTES_MAX, "the answer to the upgrade does not end");
            ensure!(self.fill(READ_BYTES_MIN).await? > 0, "closed during the upgrade");
        }
        let answer = String::from_utf8_lossy(&self.input[..self.consumed]);
        let status = answer.lines().next().unwrap_or_default();
        ensure!(status.starts_with("HTTP/1.1 101"), "the upgrade was refused: {status}");
        Ok(())
    }

    /// Reads the next message, and answers pings meanwhile. Cancel-safe.
    ///
    /// # Errors
    /// When the server breaks the framing rules or the connection fails.
    pub(crate) async fn next(&mut self) -> Result<Incoming<'_>> {
        loop {
            self.flush().await?;
            let ready = &self.input[self.consumed..];
            let head = parse_head(ready)?;
            let whole = head.map_or(2, |head| head.head_bytes + head.payload_bytes);
            let Some(head) = head.filter(|_| ready.len() >= whole) else {
                let missing = whole.saturating_sub(ready.len());
                if self.fill(missing.max(READ_BYTES_MIN)).await? == 0 {
                    return Ok(Incoming::Closed(ABNORMAL));
                }
                continue;
            };
            let payload = self.consumed + head.head_bytes..self.consumed + whole;
            self.consumed = payload.end;
            match head.opcode {
                Opcode::Text | Opcode::Binary if head.last => {
                    return Ok(Incoming::Message(&self.input[payload]));
                }
                Opcode::Text | Opcode::Binary | Opcode::Continuation => {
                    if self.join(head, &payload) {
                        return Ok(Incoming::Message(&self.fragments));
                    }
                }
                Opcode::Ping => {
                    let mask = self.mask();
                    write_frame(Opcode::Pong, &self.input[payload], mask, &mut self.output);
                }
                Opcode::Pong => {}
                Opcode::Close => {
                    let code = match self.input[payload] {
                        [high, low, ..] => u16::from_be_bytes([high, low]),
                        // RFC 6455 §7.1.5: a close frame without a code.
                        _ => 1005,
                    };
                    return Ok(Incoming::Closed(code));
                }
            }
        }
    }

    /// Adds a frame of a fragmented message and tells whether it was the last.
    fn join(&mut self, head: Head, payload: &std::ops::Range<usize>) -> bool {
        if head.opcode != Opcode::Continuation {
            self.fragments.clear();
        }
        self.fragments.extend_from_slice(&self.input[payload.clone()]);
        head.last
    }

    /// Sends a text message.
    pub(crate) async fn send(&mut self, text: &[u8]) -> Result<()> {
        let mask = self.mask();
        write_frame(Opcode::Text, text, mask, &mut self.output);
        self.flush().await
    }

    /// Says goodbye and waits until the server closes, so that the server's end keeps the TIME_WAIT state.
    pub(crate) async fn close(mut self) -> Result<()> {
        let mask = self.mask();
        write_frame(Opcode::Close, &1000_u16.to_be_bytes(), mask, &mut self.output);
        while let Incoming::Message(_) = self.next().await? {}
        Ok(())
    }

    /// Gives the connection away, with the bytes that were read and not handed out yet.
    pub(crate) fn into_parts(mut self) -> (TcpStream, Vec<u8>) {
        self.input.drain(..self.consumed);
        (self.stream, self.input)
    }

    /// Gives the read buffer back; for a socket that will be silent for long.
    pub(crate) fn shrink(&mut self) {
        self.input.drain(..self.consumed);
        self.consumed = 0;
        self.input.shrink_to_fit();
        self.output = Vec::new();
        self.written = 0;
    }

    fn mask(&mut self) -> [u8; 4] {
        let [a, b, c, d, ..] = self.masks.next().to_ne_bytes();
        [a, b, c, d]
    }

    /// Writes what waits in `output`. Cancel-safe: every written byte is counted at once.
    async fn flush(&mut self) -> Result<()> {
        while self.written < self.output.len() {
            let count = self.stream.write(&self.output[self.written..]).await?;
            if count == 0 {
                bail!("the connection takes no more bytes");
            }
            self.written += count;
            self.bytes_out += count as u64;
        }
        self.output.clear();
        self.written = 0;
        Ok(())
    }

    /// Reads once, with room for at least `room` bytes. Cancel-safe.
    async fn fill(&mut self, room: usize) -> Result<usize> {
        if self.consumed == self.input.len() {
            self.input.clear();
            self.consumed = 0;
        } else if self.consumed > 0 && self.input.capacity() - self.input.len() < room {
            self.input.drain(..self.consumed);
            self.consumed = 0;
        }
        self.input.reserve(room);
        let count = self.stream.read_buf(&mut self.input).await?;
        self.bytes_in += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// Runs `client` against a server that reads one request and then sends `answer`.
    async fn served(answer: &'static [u8]) -> Result<Socket> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let target = Target::resolve(&format!("ws://{}/ws", listener.local_addr()?)).await?;
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("accept");
            let mut request = vec![0; 4096];
            let _ = stream.read(&mut request).await.expect("request");
            stream.write_all(answer).await.expect("answer");
        });
        Socket::connect(&target, target.path.as_deref().expect("a path"), None).await
    }

    fn on_runtime<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime").block_on(future)
    }

    #[test]
    fn messages_behind_the_answer_are_read_and_fragments_joined() {
        on_runtime(async {
            let answer = b"HTTP/1.1 101 Switching Protocols\r\n\r\n\x81\x02hi\x01\x02ab\x89\x00\x80\x01c\x88\x02\x03\xe8";
            let mut socket = served(answer).await.expect("upgraded");
            assert_eq!(socket.next().await.expect("text"), Incoming::Message(b"hi"));
            assert_eq!(socket.next().await.expect("joined"), Incoming::Message(b"abc"));
            assert_eq!(socket.next().await.expect("close"), Incoming::Closed(1000));
            assert_eq!(socket.next().await.expect("end"), Incoming::Closed(ABNORMAL));
        });
    }

    #[test]
    fn a_refused_upgrade_shows_its_status() {
        on_runtime(async {
            let fault = served(b"HTTP/1.1 403 Forbidden\r\n\r\n").await.expect_err("refused");
            assert!(fault.to_string().contains("403 Forbidden"), "{fault}");
        });
    }

    #[test]
    fn urls_are_taken_apart() {
        on_runtime(async {
            let target = Target::resolve("ws://127.0.0.1:8000/ws").await.expect("valid");
            assert_eq!((target.host.as_str(), target.path.as_deref()), ("127.0.0.1:8000", Some("/ws")));
            assert_eq!(Target::resolve("http://127.0.0.1:8000/").await.expect("valid").path, None);
            assert!(Target::resolve("wss://127.0.0.1").await.is_err());
        });
    }
}
