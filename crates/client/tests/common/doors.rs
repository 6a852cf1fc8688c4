//! A server of telemetry with two doors that the test opens and shuts, over pipes in memory.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use driftline_client::{Clock, Connector, SystemClock};
use driftline_protocol::Document;
use driftline_testkit::Rng;
use fastwebsockets::{Frame, OpCode, Payload, Role, WebSocket};
use sha1::{Digest as _, Sha1};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::sync::watch;

/// What the loss of answers is drawn from.
pub(crate) const SEED: u64 = 6;

/// Gives each connection to the doors.
pub(crate) struct Pipes(pub(crate) Arc<Doors>);

impl Connector for Pipes {
    type Stream = DuplexStream;

    async fn connect(&self, authority: &str) -> io::Result<DuplexStream> {
        assert_eq!(authority, "server.test:80");
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        let doors = Arc::clone(&self.0);
        if !*doors.socket.borrow() && !*doors.http.borrow() {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        tokio::spawn(async move {
            doors.connections.send_modify(|count| *count += 1);
            // The phone may be gone at any time, which ends the connection and nothing else.
            let _ = doors.serve(theirs).await;
            doors.connections.send_modify(|count| *count -= 1);
        });
        Ok(ours)
    }
}

/// A clock that runs ten times as fast.
pub(crate) struct FastClock;

impl Clock for FastClock {
    fn now_ms(&self) -> u64 {
        SystemClock.now_ms() * 10
    }

    async fn sleep(&self, duration: Duration) {
        SystemClock.sleep(duration / 10).await;
    }
}

pub(crate) struct Doors {
    socket: watch::Sender<bool>,
    http: watch::Sender<bool>,
    connections: watch::Sender<usize>,
    /// No lock is held while anything is awaited.
    ledger: Mutex<Ledger>,
}

/// What the server holds and has seen.
struct Ledger {
    rng: Rng,
    lose_answers: u64,
    swallow: bool,
    /// By key: the message and its answer.
    known: HashMap<String, (String, String)>,
    rows: Vec<u64>,
    others: Vec<String>,
    replays: usize,
    posts: usize,
    pings: usize,
    heads: Vec<String>,
    introductions: Vec<String>,
}

/// What becomes of a message.
enum Fate {
    Answer(String),
    Lost,
    Swallowed,
}

impl Doors {
    pub(crate) fn new() -> Arc<Self> {
        let ledger = Ledger {
            rng: Rng::new(SEED),
            lose_answers: 0,
            swallow: false,
            known: HashMap::new(),
            rows: Vec::new(),
            others: Vec::new(),
            replays: 0,
            posts: 0,
            pings: 0,
            heads: Vec::new(),
            introductions: Vec::new(),
        };
        let (socket, http) = (watch::Sender::new(false), watch::Sender::new(false));
        Arc::new(Self { socket, http, connections: watch::Sender::new(0), ledger: Mutex::new(ledger) })
    }

    /// Opens and shuts; who is inside when a door is shut is thrown out.
    pub(crate) fn open(&self, socket: bool, http: bool) {
        self.socket.send_replace(socket);
        self.http.send_replace(http);
    }

    /// Loses one answer of so many, and the connection with it; the message has its effect.
    pub(crate) fn lose_answers(&self, of: u64) {
        self.ledger.lock().unwrap().lose_answers = of;
    }

    /// Connections stay open from now on, and nothing that comes over them has an effect or an answer.
    pub(crate) fn swallow(&self) {
        self.ledger.lock().unwrap().swallow = true;
    }

    pub(crate) fn rows(&self) -> Vec<u64> {
        let mut rows = self.ledger.lock().unwrap().rows.clone();
        rows.sort_unstable();
        rows
    }

    pub(crate) fn others(&self) -> Vec<String> {
        self.ledger.lock().unwrap().others.clone()
    }

    pub(crate) fn keys(&self) -> Vec<String> {
        self.ledger.lock().unwrap().known.keys().cloned().collect()
    }

    pub(crate) fn replays(&self) -> usize {
        self.ledger.lock().unwrap().replays
    }

    pub(crate) fn posts(&self) -> usize {
        self.ledger.lock().unwrap().posts
    }

    pub(crate) fn pings(&self) -> usize {
        self.ledger.lock().unwrap().pings
    }

    pub(crate) fn heads(&self) -> Vec<String> {
        self.ledger.lock().unwrap().heads.clone()
    }

    pub(crate) fn introductions(&self) -> Vec<String> {
        self.ledger.lock().unwrap().introductions.clone()
    }

    /// Waits until all connections have ended; returns how many have not in good time.
    pub(crate) async fn connections(&self) -> usize {
        let mut count = self.connections.subscribe();
        let _ = tokio::time::timeout(Duration::from_secs(10), count.wait_for(|count| *count == 0)).await;
        *self.connections.borrow()
    }

    async fn serve(&self, mut stream: DuplexStream) -> io::Result<()> {
        let mut bytes = Vec::new();
        while !bytes.ends_with(b"\r\n\r\n") {
            bytes.push(stream.read_u8().await?);
        }
        let head = String::from_utf8(bytes).unwrap();
        let is_post = head.starts_with("POST /api/v1/ingest");
        let door = if is_post { &self.http } else { &self.socket };
        let mut shut = door.subscribe();
        if !*door.borrow() {
            return Ok(());
        }
        self.ledger.lock().unwrap().heads.push(head.clone());
        let talk = async {
            if is_post { self.answer_post(stream, &head).await } else { self.talk(stream, &head).await }
        };
        tokio::select! {
            done = talk => done,
            _ = shut.wait_for(|open| !open) => Ok(()),
        }
    }

    async fn answer_post(&self, mut stream: DuplexStream, head: &str) -> io::Result<()> {
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        let mut body = vec![0; length.parse().unwrap()];
        stream.read_exact(&mut body).await?;
        let (status, body) = if head.contains("x-device-hash: unknown") {
            (403, problem(403, "UNAUTHORIZED"))
        } else {
            let mut ledger = self.ledger.lock().unwrap();
            ledger.posts += 1;
            match ledger.handle(&String::from_utf8(body).unwrap()) {
                Fate::Answer(body) => (200, format!(r#"{{"server_time":"",{body}}}"#)),
                Fate::Lost | Fate::Swallowed => return Ok(()),
            }
        };
        let answer = format!("HTTP/1.1 {status} x\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        stream.write_all(answer.as_bytes()).await
    }

    async fn talk(&self, mut stream: DuplexStream, head: &str) -> io::Result<()> {
        if head.starts_with("GET /ws/ingest/unknown ") {
            let body = problem(403, "UNAUTHORIZED");
            let answer = format!("HTTP/1.1 403 x\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            return stream.write_all(answer.as_bytes()).await;
        }
        let key = head.lines().find_map(|line| line.strip_prefix("sec-websocket-key: ")).unwrap();
        let digest = Sha1::digest(format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11"));
        let accept = base64::engine::general_purpose::STANDARD.encode(digest);
        let answer = format!(
            "HTTP/1.1 101 x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
        );
        stream.write_all(answer.as_bytes()).await?;
        let mut socket = WebSocket::after_handshake(stream, Role::Server);
        if head.starts_with("GET /ws/ingest-auth ") {
            let text = read(&mut socket).await?;
            self.ledger.lock().unwrap().introductions.push(text);
        }
        write(&mut socket, r#"{"type":"connection_established","heartbeat_interval_s":25}"#.into()).await?;
        loop {
            let text = read(&mut socket).await?;
            let fate = self.ledger.lock().unwrap().hear(&text);
            match fate {
                Fate::Answer(answer) => write(&mut socket, answer).await?,
                Fate::Lost => return Ok(()),
                Fate::Swallowed => {}
            }
        }
    }
}

async fn read(socket: &mut WebSocket<DuplexStream>) -> io::Result<String> {
    let frame = socket.read_frame().await.map_err(io::Error::other)?;
    match frame.opcode {
        OpCode::Text => Ok(String::from_utf8(frame.payload.to_vec()).unwrap()),
        _ => Err(io::ErrorKind::ConnectionAborted.into()),
    }
}

async fn write(socket: &mut WebSocket<DuplexStream>, text: String) -> io::Result<()> {
    let frame = Frame::text(Payload::Owned(text.into_bytes()));
    socket.write_frame(frame).await.map_err(io::Error::other)
}

fn problem(status: u16, code: &str) -> String {
    format!(
        r#"{{"type":"","title":"","status":{status},"detail":"no such device","code":"{code}","correlation_id":"","retryable":false}}"#
    )
}

impl Ledger {
    fn hear(&mut self, text: &str) -> Fate {
        if self.swallow {
            return Fate::Swallowed;
        }
        let document = Document::parse(text.as_bytes(), 16).unwrap();
        if document.root().get("type").unwrap().is_str("ping") {
            self.pings += 1;
            return Fate::Answer(r#"{"type":"pong","server_time":"","timestamp":1}"#.into());
        }
        let id = document.root().get("id").unwrap().as_str().unwrap();
        match self.handle(text) {
            Fate::Answer(body) => {
                Fate::Answer(format!(r#"{{"type":"ack","server_time":"","reply_to":"{id}",{body}}}"#))
            }
            other => other,
        }
    }

    /// Takes a message in, once; a resend of it gets the first answer.
    fn handle(&mut self, text: &str) -> Fate {
        let document = Document::parse(text.as_bytes(), 16).unwrap();
        let word = |name: &str| document.root().get(name).unwrap().as_str().unwrap().into_owned();
        let (key, kind) = (word("idempotency_key"), word("type"));
        let answer = if let Some((first, answer)) = self.known.get(&key) {
            assert_eq!(first, text, "a resend is equal byte for byte");
            self.replays += 1;
            answer.replace("false", "true")
        } else {
            let payload = document.root().get("payload").unwrap();
            let items: Vec<_> = payload.get("items").iter().flat_map(|items| items.elements()).collect();
            self.rows.extend(items.iter().map(|item| item.get("n").unwrap().as_u64().unwrap()));
            let accepted = items.len();
            let counts = r#""duplicates":0,"rejected":[]"#;
            let answer = if kind == "analytics_batch" {
                self.others.push(payload.to_json().into_owned());
                format!(r#""of":"{kind}""#)
            } else {
                format!(r#""of":"{kind}","replayed":false,"accepted":{accepted},{counts}"#)
            };
            self.known.insert(key, (text.to_owned(), answer.clone()));
            answer
        };
        let lost = self.lose_answers > 0 && self.rng.below(self.lose_answers) == 0;
        if lost { Fate::Lost } else { Fate::Answer(answer) }
    }
}
