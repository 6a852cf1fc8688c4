//! A phone that follows a script: WebSocket, a cut in the middle, HTTP only, both away, and back, with everything sent more
//! than once and in any order. Each sample is held once, and each change of a record has one effect.

mod support;

use std::collections::BTreeSet;

use driftline_testkit::Rng;
use driftline_testkit::http::{Request, Response};
use driftline_testkit::proxy::{Direction, Proxy};
use driftline_testkit::socket::Socket;
use serde_json::{Value, json};
use support::{Deployment, Person};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

/// What the order and the repetitions are drawn from.
const SEED: u64 = 20_260_306;

/// Samples of one message, and all of them.
const BATCH: u64 = 100;
const SAMPLES: u64 = 10_000;

const SYNC: &str = "6f9f2d0e-2f3a-4c57-9d0b-0d8a8f7a4c21";

/// A kind of records with a counter, on which every effect shows.
const COUNTER: &str = "state = { enum = [\"new\", \"accepted\", \"done\", \"declined\"] }\n\n[[kind]]\nname = \"shelf\"\n\n[kind.field.taken]\nrule = \"counter\"\n";

/// The phone, with two roads that break.
struct Phone {
    town: Deployment,
    ana: Person,
    sockets: Proxy,
    requests: Proxy,
    rng: Rng,
    /// Messages that have no answer yet, and those that have.
    waiting: Vec<Letter>,
    answered: Vec<Letter>,
    next: u64,
}

/// Something to be sent until it is answered.
#[derive(Debug, Clone, PartialEq)]
enum Letter {
    /// Samples, under the key of their message.
    Samples(Value),
    /// One change of a record, under its own name.
    Change(Value),
}

impl Letter {
    fn id(&self) -> String {
        match self {
            Self::Samples(message) => message["id"].as_str().expect("a name").to_owned(),
            Self::Change(item) => item["op_id"].as_str().expect("a name").to_owned(),
        }
    }

    fn message(&self) -> Value {
        match self {
            Self::Samples(message) => message.clone(),
            Self::Change(item) => {
                json!({"type": "sync_data", "id": self.id(), "sync_id": SYNC, "payload": {"batch": [item]}})
            }
        }
    }

    fn request(&self) -> Request {
        match self {
            Self::Samples(message) => Request::post("/api/v1/ingest?device_id=phone-ana", message),
            Self::Change(item) => {
                Request::post("/api/v1/sync?device_id=phone-ana", &json!({"batch": [item]}))
            }
        }
    }
}

impl Phone {
    fn new() -> Self {
        // What waited goes out at once, and much of it twice: no rate may stand in its way, however fast the machine is.
        let wide = "[limits]\nmessage_rate = { per_s = 5000, burst = 5000 }\nuser_rate = { per_s = 5000, burst = 5000 }\n\
            types.sync_data = { per_s = 5000, burst = 5000 }\n";
        let lines = [
            ("[limits]\n", wide),
            ("state = { enum = [\"new\", \"accepted\", \"done\", \"declined\"] }\n", COUNTER),
        ];
        let town = Deployment::start_with("field-assist.toml", &lines);
        let ana = town.person("acme", "ana", "agent", &[]);
        let (sockets, requests) = (Proxy::start(town.address()), Proxy::start(town.address()));
        let rng = Rng::new(SEED);
        Self { town, ana, sockets, requests, rng, waiting: Vec::new(), answered: Vec::new(), next: 0 }
    }

    /// Takes samples down, and after every fifth hundred takes something off the shelf.
    fn record(&mut self, samples: u64) {
        for at in (self.next..self.next + samples).step_by(usize::try_from(BATCH).expect("it is small")) {
            let sample = |n| json!({"duration_ms": n, "confidence": 0.5, "n": n});
            let items: Vec<Value> = (at..at + BATCH).map(sample).collect();
            self.waiting.push(Letter::Samples(
                json!({"type": "voice", "id": format!("m{at}"), "idempotency_key": format!("key-{at}"), "payload": {"items": items}}),
            ));
            if at % (5 * BATCH) == 0 {
                let n = at / (5 * BATCH) + 2;
                self.waiting.push(Letter::Change(
                    json!({"op_id": format!("take-{n}"), "n": n, "kind": "shelf", "id": "tapes",
                    "op": "patch", "base_version": 1, "increments": {"taken": 1}}),
                ));
            }
        }
        self.next += samples;
    }

    /// What waits, in any order and some of it twice. Changes of records keep their order, as every device numbers them.
    fn shuffled(&mut self) -> Vec<Letter> {
        let (mut letters, changes): (Vec<_>, Vec<_>) =
            self.waiting.iter().cloned().partition(|letter| matches!(letter, Letter::Samples(_)));
        for at in 0..letters.len() {
            if self.rng.below(4) == 0 {
                letters.push(letters[at].clone());
            }
        }
        for at in (1..letters.len()).rev() {
            let other = self.rng.below(at as u64 + 1);
            letters.swap(at, usize::try_from(other).expect("an index"));
        }
        letters.extend(changes.iter().flat_map(|change| [change.clone(), change.clone()]));
        letters
    }

    async fn connect(&self) -> Socket {
        let target = format!("/ws/mobile/sync?device_id=phone-ana&token={}", self.ana.token());
        let mut socket = Socket::connect(self.sockets.address(), &target).await;
        socket.expect("connection_established").await;
        socket.start(SYNC, &["shelf"]).await;
        socket
    }

    fn settle(&mut self, id: &str) {
        let (answered, waiting) =
            std::mem::take(&mut self.waiting).into_iter().partition(|letter| letter.id() == id);
        self.waiting = waiting;
        self.answered.extend::<Vec<_>>(answered);
    }

    /// Sends everything over a WebSocket, all at once, and takes the answers.
    async fn by_socket(&mut self) {
        let mut socket = self.connect().await;
        let letters = self.shuffled();
        for letter in &letters {
            socket.send(&letter.message()).await;
        }
        for _ in &letters {
            let answer = socket.expect("ack").await;
            check(&answer);
            let id = answer["reply_to"].as_str().expect("each answer names its message").to_owned();
            self.settle(&id);
        }
        assert_eq!(self.waiting, []);
    }

    /// Sends over a WebSocket that breaks with the first answer: the phone hears nothing of what the server took.
    async fn by_a_socket_that_breaks(&mut self) {
        let mut socket = self.connect().await;
        self.sockets.cut_after(0, Direction::ToClient);
        for letter in self.shuffled() {
            socket.send(&letter.message()).await;
        }
        let (heard, close) = socket.until_end().await;
        assert_eq!((heard.len(), close), (0, 1006));
    }

    /// Sends everything over HTTP; every seventh answer is lost on the way, and the request repeated later.
    async fn by_http(&mut self) {
        while !self.waiting.is_empty() {
            for (at, letter) in self.shuffled().into_iter().enumerate() {
                if at % 7 == 3 {
                    self.requests.cut_after(0, Direction::ToClient);
                }
                if let Some(answer) = self.post(&letter).await {
                    assert_eq!(answer.status, 200, "{}", answer.text());
                    let answer = answer.json();
                    check(answer.get("ack").unwrap_or(&answer));
                    self.settle(&letter.id());
                }
            }
        }
    }

    /// Sends one request; nothing when no answer comes.
    async fn post(&self, letter: &Letter) -> Option<Response> {
        let request = letter.request().bearer(self.ana.token());
        let mut stream = TcpStream::connect(self.requests.address()).await.ok()?;
        // A road that is cut takes nothing, and gives nothing either.
        let _ = stream.write_all(&request.encode(self.town.address())).await;
        Response::read(&mut stream, &mut Vec::new()).await
    }
}

/// No answer refuses anything.
fn check(ack: &Value) {
    assert!(
        ack["rejected"].as_array().is_none_or(Vec::is_empty)
            && ack["failed"].as_u64().unwrap_or_default() == 0,
        "{ack}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scripted_phone_is_held_exactly_once() {
    println!("seed {SEED}");
    let mut phone = Phone::new();
    let made = json!({"op_id": "make-1", "n": 1, "kind": "shelf", "id": "tapes", "op": "create", "fields": {"room": "7"}});
    phone.waiting.push(Letter::Change(made));
    phone.by_socket().await;

    phone.record(2_000);
    phone.by_socket().await;

    // The connection breaks in the middle; what has no answer goes by HTTP, which loses answers as well.
    phone.record(2_000);
    phone.by_a_socket_that_breaks().await;
    phone.sockets.cut();
    phone.record(2_000);
    phone.by_http().await;
    assert!(phone.requests.cuts() > 3, "answers were lost");

    // Both roads are away: everything waits.
    phone.requests.cut();
    phone.record(2_000);
    for letter in phone.shuffled().iter().take(5) {
        assert!(phone.post(letter).await.is_none(), "nothing gets through");
    }
    phone.record(2_000);

    // Back. What was answered long ago comes once more too, as from a proxy that kept it.
    phone.sockets.pass();
    phone.requests.pass();
    let old = phone.answered.clone();
    phone.waiting.extend(old.iter().filter(|letter| matches!(letter, Letter::Samples(_))).rev().cloned());
    phone.by_socket().await;
    assert_eq!(phone.next, SAMPLES);

    let stored = phone.town.samples(&phone.ana, "voice", 500).await;
    let seen: BTreeSet<u64> = stored.iter().filter_map(|sample| sample["n"].as_u64()).collect();
    assert_eq!((stored.len(), seen), (10_000, (0..SAMPLES).collect()));
    let shelf = phone.town.read(&phone.ana, "records/shelf/tapes").await;
    assert_eq!(shelf["fields"], json!({"room": "7", "taken": 20}), "each change once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_op_id_over_websocket_http_and_websocket_has_one_effect() {
    let mut phone = Phone::new();
    let made = json!({"op_id": "make-1", "n": 1, "kind": "shelf", "id": "tapes", "op": "create", "increments": {"taken": 3}});
    phone.waiting.push(Letter::Change(made));
    phone.by_socket().await;
    let take =
        Letter::Change(json!({"op_id": "take-1", "n": 2, "kind": "shelf", "id": "tapes", "op": "patch",
        "base_version": 1, "increments": {"taken": 1}}));
    let result = |answer: &Value| answer["results"][0].clone();
    let first = result(&phone.connect().await.ask(&take.message(), "ack").await);
    let second = phone.post(&take).await.expect("an answer").json();
    let third = result(&phone.connect().await.ask(&take.message(), "ack").await);
    assert_eq!((&first["code"], &first["duplicate"]), (&json!("applied"), &Value::Null), "{first}");
    for repeated in [result(&second["ack"]), third] {
        assert_eq!(repeated["duplicate"], true, "{repeated}");
        assert_eq!(
            (&repeated["code"], &repeated["version"]),
            (&first["code"], &first["version"]),
            "{repeated}"
        );
    }
    let shelf = phone.town.read(&phone.ana, "records/shelf/tapes").await;
    assert_eq!((&shelf["fields"]["taken"], &shelf["version"]), (&json!(4), &first["version"]), "{shelf}");
}
