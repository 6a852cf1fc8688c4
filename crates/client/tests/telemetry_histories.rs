//! Histories of telemetry at random: messages and answers are lost, doubled and reordered, connections are cut, the other
//! door is taken, the app is restarted from what it kept. In the end the server holds each sample exactly once.
#![allow(clippy::unwrap_used, reason = "a test and its helpers")]

use std::collections::{BTreeMap, HashMap};

use driftline_client::{KindName, Telemetry, TelemetryGreeting, TelemetryLimits, fields};
use driftline_protocol::Document;
use driftline_testkit::Rng;
use proptest::prelude::*;

const KINDS: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

#[derive(Debug, Clone)]
enum Step {
    Record {
        kind: usize,
        count: u8,
    },
    Connect,
    /// The connection goes; of what is under way, so many messages still arrive at the server.
    Cut(usize),
    /// The server reads the message at that place.
    ToServer(usize),
    /// The device reads the answer at that place, which may be one of an earlier connection, and may read it again.
    ToDevice(usize, bool),
    Http(HttpFate),
    /// The app ends and starts again with what it kept.
    Restart,
    Later,
}

#[derive(Debug, Clone, Copy)]
enum HttpFate {
    LostBefore,
    LostAfter,
    Answered,
    /// Somebody else answers with status 200.
    Captive,
}

fn step() -> impl Strategy<Value = Step> {
    let fate = prop_oneof![
        Just(HttpFate::LostBefore),
        Just(HttpFate::LostAfter),
        Just(HttpFate::Answered),
        Just(HttpFate::Captive),
    ];
    prop_oneof![
        10 => (0..KINDS.len(), 1..40_u8).prop_map(|(kind, count)| Step::Record { kind, count }),
        3 => Just(Step::Connect),
        2 => (0..5_usize).prop_map(Step::Cut),
        8 => (0..4_usize).prop_map(Step::ToServer),
        8 => (0..6_usize, any::<bool>()).prop_map(|(at, again)| Step::ToDevice(at, again)),
        4 => fate.prop_map(Step::Http),
        2 => Just(Step::Restart),
        1 => Just(Step::Later),
    ]
}

/// A server that recognises a message by its key.
struct Server {
    rng: Rng,
    /// Chance in a hundred that it asks to come again.
    busy: u64,
    items_max: usize,
    /// By key: the message and its answer.
    known: HashMap<String, (String, String)>,
    /// The samples of each kind in the order of their coming.
    rows: BTreeMap<String, Vec<u64>>,
}

enum Answer {
    Receipt(String),
    Error(&'static str, bool),
}

impl Server {
    fn handle(&mut self, message: &str) -> (String, Answer) {
        let document = Document::parse(message.as_bytes(), 16).unwrap();
        let member = |name: &str| document.root().get(name).unwrap();
        let word = |name: &str| member(name).as_str().unwrap().into_owned();
        let (id, key, kind) = (word("id"), word("idempotency_key"), word("type"));
        if self.rng.percent(self.busy) {
            let codes = ["RATE_LIMITED", "STORE_UNAVAILABLE", "IDEMPOTENCY_IN_PROGRESS"];
            let code = codes[usize::try_from(self.rng.below(3)).unwrap()];
            return (id, Answer::Error(code, true));
        }
        if let Some((first, answer)) = self.known.get(&key) {
            assert_eq!(first, message, "a resend is equal byte for byte");
            return (id, Answer::Receipt(answer.replace("false", "true")));
        }
        let items: Vec<_> = member("payload").get("items").unwrap().elements().collect();
        assert!((1..=100).contains(&items.len()));
        if items.len() > self.items_max {
            return (id, Answer::Error("BATCH_TOO_LARGE", false));
        }
        let (mut accepted, mut rejected) = (0, Vec::new());
        for (index, item) in items.iter().enumerate() {
            let number = item.get("n").unwrap().as_u64().unwrap();
            if is_bad(number) {
                rejected.push(format!(r#"{{"index":{index},"code":"range","pointer":"/n","message":""}}"#));
            } else {
                accepted += 1;
                self.rows.entry(kind.clone()).or_default().push(number);
            }
        }
        let rejected = rejected.join(",");
        let answer = format!(
            r#""of":"{kind}","replayed":false,"accepted":{accepted},"duplicates":0,"rejected":[{rejected}]"#
        );
        self.known.insert(key, (message.to_owned(), answer.clone()));
        (id, Answer::Receipt(answer))
    }
}

/// Whether the server will not have the sample.
fn is_bad(number: u64) -> bool {
    number.is_multiple_of(17)
}

struct Story {
    server: Server,
    telemetry: Telemetry,
    kept: String,
    kept_revision: u64,
    /// How many samples each kind has, whose numbers rise over all kinds.
    recorded: BTreeMap<&'static str, Vec<u64>>,
    samples: u64,
    connected: bool,
    up: Vec<String>,
    down: Vec<String>,
    refused: Vec<u64>,
    now_ms: u64,
    rng: Rng,
}

impl Story {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let items_max = usize::try_from(rng.between(3, 130)).unwrap();
        let server = Server {
            rng: Rng::new(seed ^ 1),
            busy: rng.below(30),
            items_max,
            known: HashMap::new(),
            rows: BTreeMap::new(),
        };
        let telemetry = Telemetry::default();
        Self {
            server,
            kept: telemetry.to_json(),
            kept_revision: telemetry.revision(),
            telemetry,
            recorded: BTreeMap::new(),
            samples: 0,
            connected: false,
            up: Vec::new(),
            down: Vec::new(),
            refused: Vec::new(),
            now_ms: 1_000,
            rng,
        }
    }

    fn run(&mut self, step: &Step) {
        match *step {
            Step::Record { kind, count } => self.record(KINDS[kind], count),
            Step::Connect => {
                if !self.connected {
                    self.connected = true;
                    self.telemetry.handle_connected(&TelemetryGreeting::default());
                }
            }
            Step::Cut(arrive) => {
                (0..arrive).for_each(|_| self.reach_server(0));
                self.connected = false;
                self.up.clear();
                self.telemetry.handle_disconnected();
            }
            Step::ToServer(at) => self.reach_server(at),
            Step::ToDevice(at, again) => self.reach_device(at, again),
            Step::Http(fate) => self.http(fate),
            Step::Restart => self.restart(),
            Step::Later => self.now_ms += 60_000,
        }
        self.transmit();
    }

    fn record(&mut self, kind: &'static str, count: u8) {
        for _ in 0..count {
            self.samples += 1;
            let sample = fields(&format!(r#"{{"n":{}}}"#, self.samples)).unwrap();
            self.telemetry.record(KindName::new(kind).unwrap(), &sample, self.now_ms).unwrap();
            self.recorded.entry(kind).or_default().push(self.samples);
        }
        self.keep();
    }

    fn keep(&mut self) {
        self.kept = self.telemetry.to_json();
        self.kept_revision = self.telemetry.revision();
    }

    fn restart(&mut self) {
        self.telemetry = Telemetry::from_json(&self.kept, TelemetryLimits::default()).unwrap();
        self.kept_revision = self.telemetry.revision();
        self.connected = false;
        self.up.clear();
    }

    /// Keeps what is new before it sends anything, as [`Telemetry::revision`] asks for.
    fn transmit(&mut self) {
        self.telemetry.cut(self.now_ms, &mut || self.rng.next());
        if self.telemetry.revision() != self.kept_revision {
            self.keep();
        }
        while let Some(message) = self.telemetry.poll_transmit(self.now_ms) {
            // Some are doubled on their way.
            if self.rng.percent(20) {
                self.up.push(message.clone());
            }
            self.up.push(message);
            assert!(self.connected);
        }
    }

    fn reach_server(&mut self, at: usize) {
        if self.up.is_empty() {
            return;
        }
        let message = self.up.remove(at % self.up.len());
        let (id, answer) = self.server.handle(&message);
        let body = match answer {
            Answer::Receipt(body) => format!(r#"{{"type":"ack","server_time":"","reply_to":"{id}",{body}}}"#),
            Answer::Error(code, retryable) => format!(
                r#"{{"type":"error","reply_to":"{id}","code":"{code}","message":"","correlation_id":"","retryable":{retryable}}}"#
            ),
        };
        self.down.push(body);
    }

    /// Answers outlive their connection here, which no transport allows, and come in any order.
    fn reach_device(&mut self, at: usize, again: bool) {
        if self.down.is_empty() {
            return;
        }
        let at = at % self.down.len();
        let answer = if again { self.down[at].clone() } else { self.down.remove(at) };
        let now_ms = self.now_ms;
        self.telemetry.handle_frame(answer.as_bytes(), now_ms, &mut || self.rng.next()).unwrap();
    }

    fn http(&mut self, fate: HttpFate) {
        let Some(message) = self.telemetry.http_request(self.now_ms) else { return };
        let mut answered = None;
        if !matches!(fate, HttpFate::LostBefore | HttpFate::Captive) {
            answered = Some(self.server.handle(&message).1);
        }
        let (status, body) = match (fate, answered) {
            (HttpFate::Captive, _) => (200, "<html>log in</html>".to_owned()),
            (HttpFate::Answered, Some(Answer::Receipt(body))) => {
                (200, format!(r#"{{"server_time":"",{body}}}"#))
            }
            (HttpFate::Answered, Some(Answer::Error(code, retryable))) => {
                let status = if retryable { 503 } else { 413 };
                let rest =
                    format!(r#""detail":"","code":"{code}","correlation_id":"","retryable":{retryable}"#);
                (status, format!(r#"{{"type":"","title":"","status":{status},{rest}}}"#))
            }
            _ => return self.telemetry.handle_http_lost(),
        };
        let now_ms = self.now_ms;
        let heard = self.telemetry.handle_http(status, body.as_bytes(), now_ms, &mut || self.rng.next());
        assert_eq!(heard.is_err(), matches!(fate, HttpFate::Captive));
    }

    /// Faults end; the device goes on until nothing waits.
    fn settle(&mut self) {
        self.server.busy = 0;
        for _ in 0..10_000 {
            if self.telemetry.is_empty() {
                return;
            }
            self.run(&Step::Later);
            self.run(&Step::Connect);
            self.run(&Step::ToServer(0));
            self.run(&Step::ToDevice(0, false));
        }
        panic!("not settled: {:?}", self.telemetry);
    }

    fn check(&mut self) {
        for (kind, recorded) in &self.recorded {
            let good: Vec<u64> = recorded.iter().copied().filter(|number| !is_bad(*number)).collect();
            let rows = self.server.rows.get(*kind).cloned().unwrap_or_default();
            assert_eq!(rows, good, "each sample of {kind} once, and in its order");
        }
        for letter in self.telemetry.take_refused() {
            let item = letter.item.unwrap();
            let document = Document::parse(item.as_bytes(), 8).unwrap();
            self.refused.push(document.root().get("n").unwrap().as_u64().unwrap());
        }
        self.refused.sort_unstable();
        let bad: Vec<u64> = (1..=self.samples).filter(|number| is_bad(*number)).collect();
        assert_eq!(self.refused, bad, "each bad sample is told once");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn each_sample_is_held_exactly_once(seed: u64, steps in prop::collection::vec(step(), 1..120)) {
        let mut story = Story::new(seed);
        for step in &steps {
            story.run(step);
        }
        story.settle();
        story.check();
    }
}
