//! Subscribers of a server that check what they get: every event that they may see, once, and no other.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;

use driftline_testkit::server::Server;
use driftline_testkit::socket::{Frame, Handshake, Incoming, Socket};
use driftline_transport::{Grant, SharedSecret};
use serde_json::{Map, Value, json};

/// Signs tokens as a server for development does, without starting its command for each.
pub struct Signer(SharedSecret);

impl Signer {
    /// Takes the key of a server's data folder.
    pub fn of(server: &Server) -> Self {
        Self::of_folder(server.data_dir())
    }

    /// Takes the key of a data folder.
    pub fn of_folder(folder: &Path) -> Self {
        Self::new(std::fs::read_to_string(folder.join("dev.key")).expect("a key").trim())
    }

    /// Takes a key.
    pub fn new(key: &str) -> Self {
        Self(SharedSecret::new(key.as_bytes()).expect("a key is long enough"))
    }

    /// Makes a token of an approved user.
    pub fn token(&self, tenant: &str, sub: &str, roles: &[&str], claims: &Value) -> String {
        let mut claims: Map<String, Value> = claims.as_object().cloned().unwrap_or_default();
        claims.entry("approved").or_insert(true.into());
        self.0.mint(&Grant {
            tenant: tenant.into(),
            sub: sub.into(),
            roles: roles.iter().map(|role| (*role).to_owned()).collect(),
            device_id: None,
            expires_s: 4_000_000_000,
            claims,
        })
    }
}

/// How a subscriber that comes back says where it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resume {
    /// `?last_event_id=`.
    Query,
    /// `?resume_token=`, which stands for where it connected: what came since comes again.
    Token,
    /// `replay_request` on the open socket.
    Request,
}

/// One subscriber over all its connections.
pub struct Subscriber {
    token: String,
    resume: Resume,
    last: Option<String>,
    /// Whether what lies before new events is still to be replayed, so that they are no place to come back to.
    behind: bool,
    resume_token: Option<String>,
    /// The token of this connection, which is good once everything before it has come.
    next_token: Option<String>,
    /// The number of each event by its id.
    pub seen: BTreeMap<u64, u64>,
    /// Events that came again.
    pub repeated: u64,
    /// Replays that were not whole.
    pub incomplete: Vec<Value>,
}

impl Subscriber {
    /// Makes one that has seen nothing.
    pub fn new(token: String, resume: Resume) -> Self {
        let (seen, incomplete) = (BTreeMap::new(), Vec::new());
        Self {
            token,
            resume,
            last: None,
            behind: false,
            resume_token: None,
            next_token: None,
            seen,
            repeated: 0,
            incomplete,
        }
    }

    /// Connects to `/ws/updates`, and says where it was.
    pub async fn connect(&mut self, to: SocketAddr) -> Socket {
        let mut target = format!("/ws/updates?token={}", self.token);
        match (self.resume, &self.last, &self.resume_token) {
            (Resume::Query, Some(last), _) => target.push_str(&format!("&last_event_id={last}")),
            (Resume::Token, _, Some(token)) => target.push_str(&format!("&resume_token={token}")),
            _ => {}
        }
        let mut socket = Socket::connect(to, &target).await;
        let greeting = socket.expect("connection_established").await;
        let text =
            |name: &str| greeting[name].as_str().unwrap_or_else(|| panic!("{name}: {greeting}")).to_owned();
        if self.last.is_none() {
            self.last = Some(text("position"));
            self.resume_token = Some(text("resume_token"));
        }
        self.next_token = Some(text("resume_token"));
        self.behind = self.resume == Resume::Request;
        if self.behind {
            let wanted = json!({"type": "replay_request", "id": "r", "last_event_id": self.last});
            socket.send(&wanted).await;
        }
        socket
    }

    /// Connects with a small receive buffer, for one that will not read.
    pub async fn connect_narrow(&mut self, to: SocketAddr) -> Socket {
        let target = format!("/ws/updates?token={}", self.token);
        let opened = Handshake::new(&target).receive_bytes(4096).send(to).await;
        let mut socket = opened.unwrap_or_else(|refused| panic!("{}", refused.text())).0;
        let greeting = socket.expect("connection_established").await;
        self.last = Some(greeting["position"].as_str().expect("a position").to_owned());
        socket
    }

    /// Takes what came over a connection; gives the data's `n` of an event, if it is one of type `storm`.
    pub fn take(&mut self, text: &str) -> Option<u64> {
        // Of very many events only what is needed is looked at.
        if !text.contains("\"type\":\"storm\"") {
            let other: Value = serde_json::from_str(text).expect("messages are JSON");
            if other["type"] == "replay_complete" {
                let newest = self.seen.last_key_value().map(|(at, _)| *at);
                self.behind = false;
                self.resume_token = self.next_token.take().or(self.resume_token.take());
                self.reached(other["to"].as_str().expect("a position"));
                let epoch =
                    other["to"].as_str().and_then(|to| to.split_once('-')).expect("a position").0.to_owned();
                self.reached(&format!("{epoch}-{}", newest.unwrap_or_default()));
                if other["complete"] != true {
                    self.incomplete.push(other);
                }
            }
            return None;
        }
        let id = between(text, "\"id\":\"", '"').expect("a durable event has an id");
        let number = between(text, "\"n\":", ',').expect("a number").parse().expect("a number");
        let at: u64 = id.split_once('-').expect("epoch and number").1.parse().expect("a number");
        if let Some(known) = self.seen.insert(at, number) {
            assert_eq!(known, number, "one id stands for two events");
            self.repeated += 1;
        }
        self.reached(id);
        Some(number)
    }

    /// Tells whether something that lies before what came live is still to be replayed.
    pub fn is_behind(&self) -> bool {
        self.behind
    }

    /// Takes note that nothing is missing up to a place.
    fn reached(&mut self, id: &str) {
        let number = |id: &str| id.split_once('-').and_then(|(_, at)| at.parse::<u64>().ok());
        if !self.behind && number(id) > self.last.as_deref().and_then(number) {
            self.last = Some(id.to_owned());
        }
    }

    /// The numbers of all events that it has seen, each once.
    ///
    /// # Panics
    /// When one number came under two ids.
    pub fn numbers(&self) -> BTreeSet<u64> {
        let numbers: BTreeSet<u64> = self.seen.values().copied().collect();
        assert_eq!(numbers.len(), self.seen.len(), "an event has two ids");
        numbers
    }

    /// Reads events until one of them has this number; pings are answered, or the server would take it for dead.
    pub async fn read_until(&mut self, socket: &mut Socket, last: u64) {
        loop {
            match socket.read().await {
                Incoming::Text(text) => {
                    if self.take(&text) == Some(last) {
                        return;
                    }
                }
                Incoming::Ping(bytes) => socket.send_frame(&Frame::last(Frame::PONG, bytes)).await,
                other => panic!("wanted event {last}, got {other:?}"),
            }
        }
    }
}

fn between<'t>(text: &'t str, start: &str, end: char) -> Option<&'t str> {
    let rest = &text[text.find(start)? + start.len()..];
    rest.split([end, '}']).next()
}

/// Publishes over a socket, with so many messages on their way at once.
pub struct Publisher {
    socket: Socket,
    waiting: usize,
}

impl Publisher {
    /// Connects to `/ws`, whose clients join what their token says as well.
    pub async fn connect(to: SocketAddr, token: &str) -> Self {
        let mut socket = Socket::connect(to, &format!("/ws?token={token}")).await;
        socket.expect("connection_established").await;
        Self { socket, waiting: 0 }
    }

    /// Publishes an event; waits for answers only where too many are missing.
    pub async fn publish(&mut self, topic: &str, data: &Value) {
        while self.waiting >= 48 {
            self.answer().await;
        }
        let payload = json!({"topic": topic, "event_type": "storm", "data": data});
        self.socket.send(&json!({"type": "publish", "id": "p", "payload": payload})).await;
        self.waiting += 1;
    }

    /// Waits for all answers.
    pub async fn settle(&mut self) {
        while self.waiting > 0 {
            self.answer().await;
        }
    }

    async fn answer(&mut self) {
        loop {
            match self.socket.read().await {
                Incoming::Text(text) if text.contains("\"type\":\"ack\"") => break,
                Incoming::Text(text) => assert!(!text.contains("\"type\":\"error\""), "{text}"),
                Incoming::Ping(_) => {}
                other => panic!("wanted an answer, got {other:?}"),
            }
        }
        self.waiting -= 1;
    }
}
