//! Requests that carry a name under which they may come again, and the effect of each.

use std::net::SocketAddr;

use driftline_testkit::http::{Request, Response};
use driftline_testkit::server::{Server, TokenFor};
use driftline_testkit::socket::{Frame, Handshake, Incoming, Socket};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

const HOUR_MS: u64 = 3_600_000;

/// Which door a request takes, and what it asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Sort {
    /// Samples with an `idempotency_key` on a WebSocket.
    Samples,
    /// Samples by `POST /api/v1/ingest` with an `Idempotency-Key`.
    Post,
    /// A batch of changes with its place in a sync session.
    Batch,
    /// An aggregate with an `idempotency_key` on a WebSocket.
    Counts,
    /// A device by `POST /api/v1/devices` with an `Idempotency-Key`.
    Device,
}

impl Sort {
    pub(crate) const ALL: [Self; 5] = [Self::Samples, Self::Post, Self::Batch, Self::Counts, Self::Device];
}

/// One request; its number makes it unlike all others.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Keyed {
    pub(crate) sort: Sort,
    pub(crate) number: u64,
    /// The bytes of text in each sample and each change.
    pub(crate) text_bytes: usize,
    /// How many samples or changes it brings.
    pub(crate) items: usize,
}

/// Who asks, and when the test began in Unix milliseconds.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    token: String,
    begun_ms: u64,
}

impl Caller {
    pub(crate) fn of(server: &Server) -> Self {
        let token =
            server.token(&TokenFor { tenant: "t1", sub: "ada", role: "staff", ..TokenFor::default() });
        #[allow(clippy::disallowed_methods, reason = "aggregates tell of the last days")]
        let begun = std::time::SystemTime::now();
        let begun = begun.duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_millis();
        Self { token, begun_ms: u64::try_from(begun).expect("before the end of time") }
    }

    async fn get(&self, server: SocketAddr, target: &str) -> Response {
        Request::get(target).bearer(&self.token).send(server).await
    }
}

/// An answer that was heard.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Heard {
    /// The answer without what is told anew each time.
    pub(crate) body: Value,
    pub(crate) replayed: bool,
}

impl Heard {
    fn new(mut body: Value, marked: bool) -> Self {
        let object = body.as_object_mut().expect("an answer is an object");
        let replayed = object.remove("replayed").is_some_and(|replayed| replayed == true) || marked;
        object.remove("server_time");
        object.remove("reply_to");
        Self { body, replayed }
    }
}

/// A way to the server, open before the request is sent.
pub(crate) enum Line {
    Socket(Socket),
    Plain(TcpStream, SocketAddr),
}

impl Keyed {
    pub(crate) fn new(sort: Sort, number: u64) -> Self {
        Self { sort, number, text_bytes: 20, items: 3 }
    }

    fn key(&self) -> String {
        format!("key-{}", self.number)
    }

    /// Each request has a device of its own, so that its effect is seen alone.
    fn device(&self) -> String {
        format!("device-{}", self.number)
    }

    fn session(&self) -> String {
        format!("00000000-0000-4000-8000-{:012}", self.number)
    }

    /// The hour in which an aggregate counts.
    fn hour_ms(&self, caller: &Caller) -> u64 {
        (caller.begun_ms / HOUR_MS - 2 - self.number) * HOUR_MS
    }

    /// The good samples, and one that is refused.
    fn samples(&self) -> Value {
        let text = "x".repeat(self.text_bytes);
        let good = (0..self.items).map(|at| json!({"at": at, "value": self.number, "text": text}));
        good.chain([json!(5)]).collect()
    }

    fn message(&self, caller: &Caller) -> Value {
        match self.sort {
            Sort::Samples | Sort::Post => {
                json!({"type": "reading", "payload": {"items": self.samples()}})
            }
            Sort::Batch => {
                let text = "x".repeat(self.text_bytes);
                let id = |at| format!("note-{}-{at}", self.number);
                // The changes have no names of their own: the place of their batch alone tells a resend.
                let made = (0..self.items)
                    .map(|at| json!({"kind": "note", "id": id(at), "op": "create", "fields": {"v": 0, "text": text}}));
                let counted =
                    json!({"kind": "note", "id": id(0), "op": "patch", "fields": {}, "increments": {"v": 1}});
                let batch: Value = made.chain([counted]).collect();
                json!({"type": "sync_data", "sync_id": self.session(), "payload": {"batch": batch, "batch_seq": 1}})
            }
            Sort::Counts => {
                let from = self.hour_ms(caller);
                let counters = json!({"opened": 1});
                json!({"type": "analytics_batch", "payload": {"from": from, "to": from + 60_000, "counters": counters}})
            }
            Sort::Device => json!({"device_id": format!("extra-{}", self.number)}),
        }
    }

    /// Opens the way that the request takes, up to where the request itself is sent.
    pub(crate) async fn open(&self, to: SocketAddr, caller: &Caller) -> Line {
        match self.sort {
            Sort::Post | Sort::Device => {
                Line::Plain(TcpStream::connect(to).await.expect("a server listens"), to)
            }
            Sort::Samples | Sort::Batch | Sort::Counts => {
                let target = format!("/ws/mobile/sync?device_id={}", self.device());
                let opened = Handshake::new(&target).bearer(&caller.token).send(to).await;
                let (mut socket, _) = opened.expect("the upgrade is taken");
                socket.expect("connection_established").await;
                if self.sort == Sort::Batch {
                    // A kind of which nothing is told live.
                    socket.start(&self.session(), &["other"]).await;
                }
                Line::Socket(socket)
            }
        }
    }

    /// The request as it travels.
    pub(crate) fn bytes(&self, to: SocketAddr, caller: &Caller) -> Vec<u8> {
        let mut message = self.message(caller);
        match self.sort {
            Sort::Post | Sort::Device => {
                let target = match self.sort {
                    Sort::Post => format!("/api/v1/ingest?device_id={}", self.device()),
                    _ => "/api/v1/devices".to_owned(),
                };
                let request = Request::post(&target, &message).bearer(&caller.token);
                request.header("idempotency-key", &self.key()).encode(to)
            }
            Sort::Samples | Sort::Counts => {
                message["idempotency_key"] = self.key().into();
                Frame::last(Frame::TEXT, message.to_string()).encode(7)
            }
            Sort::Batch => Frame::last(Frame::TEXT, message.to_string()).encode(7),
        }
    }

    /// Sends the request and waits for its answer; none when the connection ends before.
    pub(crate) async fn ask(&self, line: Line, caller: &Caller) -> Option<Heard> {
        match line {
            Line::Plain(mut stream, to) => {
                stream.write_all(&self.bytes(to, caller)).await.ok()?;
                let response = Response::read(&mut stream, &mut Vec::new()).await?;
                let length = response.body.len().to_string();
                if response.header("content-length") != Some(&length) {
                    return None;
                }
                if response.status == 503 {
                    return None;
                }
                let wanted = if self.sort == Sort::Device { 201 } else { 200 };
                assert_eq!(response.status, wanted, "{self:?}: {}", response.text());
                let marked = response.header("idempotency-replayed") == Some("true");
                Some(Heard::new(response.json(), marked))
            }
            Line::Socket(mut socket) => {
                let to = SocketAddr::from(([127, 0, 0, 1], 0));
                socket.send_bytes(&self.bytes(to, caller)).await;
                loop {
                    match socket.read().await {
                        Incoming::Text(text) => {
                            let message: Value = serde_json::from_str(&text).expect("messages are JSON");
                            if message["type"] == "ack" {
                                return Some(Heard::new(message, false));
                            }
                            // A server that lost its database says so as long as it lives.
                            if message["code"] == "STORE_UNAVAILABLE" {
                                return None;
                            }
                            assert_ne!(message["type"], "error", "{self:?}: {message}");
                        }
                        Incoming::Ping(_) => {}
                        _ => return None,
                    }
                }
            }
        }
    }

    /// How often the request had its effect, as the server tells it.
    pub(crate) async fn effects(&self, server: SocketAddr, caller: &Caller) -> u64 {
        match self.sort {
            Sort::Samples | Sort::Post => {
                let target = format!("/api/v1/telemetry/reading?device={}&limit=1000", self.device());
                let list = caller.get(server, &target).await;
                assert_eq!(list.status, 200, "{}", list.text());
                let count = list.json()["items"].as_array().expect("a list").len();
                assert_eq!(count % self.items, 0, "{self:?}: all samples of a request are stored, or none");
                (count / self.items) as u64
            }
            Sort::Batch => {
                let record =
                    caller.get(server, &format!("/api/v1/records/note/note-{}-0", self.number)).await;
                match record.status {
                    404 => 0,
                    200 => record.json()["fields"]["v"].as_u64().expect("a number"),
                    other => panic!("{self:?}: {other} {}", record.text()),
                }
            }
            Sort::Counts => {
                let from = self.hour_ms(caller);
                let target = format!("/api/v1/analytics?from={from}&to={}", from + HOUR_MS);
                let list = caller.get(server, &target).await;
                assert_eq!(list.status, 200, "{}", list.text());
                let list = list.json();
                let items = list["items"].as_array().expect("a list");
                items.iter().map(|item| item["counter"].as_u64().expect("a number")).sum()
            }
            Sort::Device => {
                let device = caller.get(server, &format!("/api/v1/devices/extra-{}", self.number)).await;
                assert!([200, 404].contains(&device.status), "{self:?}: {}", device.text());
                u64::from(device.status == 200)
            }
        }
    }
}
