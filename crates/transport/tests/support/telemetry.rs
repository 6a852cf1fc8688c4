//! Kinds of telemetry, devices with hashes, and messages that bring samples.

use std::sync::Arc;

use driftline_engine::{KindRule, Store, TelemetryRule};
use driftline_protocol::SampleSchema;
use driftline_testkit::http::{Request, Response};
use driftline_testkit::socket::Socket;
use serde_json::{Value, json};

use super::{Harness, Setup, grant, token};

/// A device hash that leads to the device `d1` of `t1`/`ada`.
pub const HASH: &str = "a-hash-of-enough-characters";

/// `reading` has no key and a value from 0 to 100; `place` is named by its time; `secret` is read by the staff.
pub fn kinds() -> Vec<(&'static str, KindRule)> {
    let schema = r#"{"type":"object","required":["value"],
                     "properties":{"value":{"type":"number","minimum":0,"maximum":100}}}"#;
    let schema = Arc::new(SampleSchema::compile(schema).expect("a schema"));
    let of = |rule: TelemetryRule| KindRule { telemetry: Some(Arc::new(rule)), ..KindRule::default() };
    let reading = of(TelemetryRule { schema: Some(schema), ..TelemetryRule::default() });
    let place = of(TelemetryRule { key: vec!["timestamp".into()], ..TelemetryRule::default() });
    let secret = KindRule { read: vec!["staff".into()], ..of(TelemetryRule::default()) };
    vec![("reading", reading), ("place", place), ("secret", secret)]
}

/// A server with [`kinds`] of telemetry.
pub fn setup() -> Setup {
    Setup { kinds: kinds(), ..Setup::default() }
}

/// A message with readings of these values.
pub fn readings(values: &[i64]) -> Value {
    let items: Vec<Value> = values.iter().map(|value| json!({"value": value})).collect();
    json!({"type": "reading", "payload": {"items": items}})
}

/// Everything of an answer behind the time and the message that it answers.
pub fn bare(mut answer: Value) -> Value {
    for name in ["server_time", "reply_to", "type", "replayed"] {
        answer.as_object_mut().expect("an answer is an object").remove(name);
    }
    answer
}

impl<S: Store> Harness<S> {
    /// Registers a device of a user; gives what is told of it.
    pub async fn register(&self, tenant: &str, sub: &str, body: &Value) -> Response {
        self.ask(tenant, sub, Request::post("/api/v1/devices", body)).await
    }

    /// Registers `d1` of `t1`/`ada` with [`HASH`].
    pub async fn hashed(&self) {
        let body = json!({"device_id": "d1", "device_hash": HASH, "owner": "ada"});
        // A hash of somebody's choice is for administrators to set.
        let root = grant("t1", "root", "admin");
        assert_eq!(self.ask_as(&root, Request::post("/api/v1/devices", &body)).await.status, 201);
    }

    /// Enters a path of `t1`/`ada` and takes the greeting.
    pub async fn at(&self, path: &str) -> Socket {
        let sign = if path.contains('?') { '&' } else { '?' };
        let path = format!("{path}{sign}token={}", token("t1", "ada"));
        let mut socket = Socket::connect(self.address, &path).await;
        socket.expect("connection_established").await;
        socket
    }

    /// Enters with [`HASH`] and takes the greeting.
    pub async fn by_hash(&self) -> Socket {
        let mut socket = Socket::connect(self.address, &format!("/ws/ingest/{HASH}")).await;
        let greeting = socket.expect("connection_established").await;
        assert_eq!((&greeting["device_id"], &greeting["user_id"]), (&json!("d1"), &json!("ada")));
        socket
    }

    /// Sends a message of the device `d1` of `t1`/`ada` over HTTP, with a key beside it unless that is empty.
    pub async fn ingest(&self, body: &Value, key: &str) -> Response {
        let mut request = Request::post("/api/ingest?device_id=d1", body);
        if !key.is_empty() {
            request = request.header("idempotency-key", key);
        }
        self.ask("t1", "ada", request).await
    }

    /// Reads all samples of a kind that a user of `t1` sees.
    pub async fn stored(&self, sub: &str, kind: &str) -> Vec<Value> {
        let list = self.ask("t1", sub, Request::get(&format!("/api/v1/telemetry/{kind}?limit=500"))).await;
        assert_eq!(list.status, 200, "{}", list.text());
        list.json()["items"].as_array().expect("a list").clone()
    }
}
