//! Devices that send telemetry without the client library.

use std::collections::BTreeMap;

use driftline_testkit::http::{Request, Response};
use driftline_testkit::socket::{Handshake, Socket};
use serde_json::{Map, Value, json};

use super::{Deployment, Person};

/// A device that is known by its hash.
pub struct Sender {
    pub hash: String,
    address: std::net::SocketAddr,
}

impl Deployment {
    /// Has somebody register a device of a user over HTTP, and hands it its hash.
    pub async fn register(&self, by: &Person, owner: &str, device_id: &str) -> Sender {
        let body = json!({"device_id": device_id, "owner": owner});
        let answer = self.ask(by, Request::post("/api/v1/devices", &body)).await;
        assert_eq!(answer.status, 201, "{}", answer.text());
        let device = answer.json();
        let hash = device["device_hash"].as_str().unwrap_or_else(|| panic!("a hash is issued: {device}"));
        self.sender(hash)
    }

    /// Makes somebody who has this hash, whether it leads to a device or not.
    pub fn sender(&self, hash: &str) -> Sender {
        Sender { hash: hash.to_owned(), address: self.address() }
    }

    /// Opens `/ws/ingest-auth`, on which nobody has said yet who it is.
    pub async fn unnamed_socket(&self) -> Socket {
        Socket::connect(self.address(), "/ws/ingest-auth").await
    }

    /// Reads every sample that somebody may see, in pages of a wished size: the fields.
    pub async fn samples(&self, reader: &Person, path: &str, rows: usize) -> Vec<Value> {
        let (mut samples, mut cursor) = (Vec::new(), None);
        loop {
            let page = match &cursor {
                None => format!("limit={rows}"),
                Some(cursor) => format!("limit={rows}&cursor={cursor}"),
            };
            let sign = if path.contains('?') { '&' } else { '?' };
            let answer = self.read(reader, &format!("telemetry/{path}{sign}{page}")).await;
            let items = answer["items"].as_array().expect("a list");
            assert!(items.len() <= rows, "{} on a page of {rows}", items.len());
            samples.extend(items.iter().map(|item| item["fields"].clone()));
            match answer["next_cursor"].as_str() {
                Some(next) => cursor = Some(next.to_owned()),
                None => return samples,
            }
        }
    }

    /// Sends messages over HTTP as they are, with nothing but what they say of themselves.
    pub async fn post_ingest(&self, body: &Value) -> Response {
        Request::post("/api/ingest", body).send(self.address()).await
    }
}

impl Sender {
    /// Tries the door whose path holds the hash.
    pub async fn knock(&self) -> Result<Socket, Response> {
        let target = format!("/ws/ingest/{}", self.hash);
        Handshake::new(&target).send(self.address).await.map(|(socket, _)| socket)
    }

    /// Enters, and takes the greeting.
    pub async fn socket(&self) -> Socket {
        let knocked = self.knock().await;
        let mut socket = knocked.unwrap_or_else(|refused| panic!("{} {}", refused.status, refused.text()));
        socket.expect("connection_established").await;
        socket
    }

    /// Sends messages over HTTP.
    pub async fn post(&self, body: &Value) -> Response {
        let request = Request::post("/api/ingest", body).header("x-device-hash", &self.hash);
        request.send(self.address).await
    }
}

/// What an answer says beside when and to what: the same over both doors.
pub fn essence(answer: &Value) -> Value {
    let mut members: Map<String, Value> = answer.as_object().expect("an answer is an object").clone();
    for outer in ["type", "server_time", "reply_to"] {
        members.remove(outer);
    }
    Value::Object(members)
}

/// The places of what was rejected, by index.
pub fn rejected(ack: &Value) -> BTreeMap<u64, String> {
    let list = ack["rejected"].as_array().expect("a list");
    let place = |item: &Value| {
        let pointer = item["pointer"].as_str().expect("a place").to_owned();
        (item["index"].as_u64().expect("a number"), pointer)
    };
    list.iter().map(place).collect()
}
