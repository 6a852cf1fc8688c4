//! Servers on PostgreSQL, and devices as the protocol wants them.
#![allow(dead_code, reason = "every test takes the part that it needs")]

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use driftline_testkit::http::{Request, Response, soon};
use driftline_testkit::server::Process;
use driftline_testkit::socket::Socket;
use driftline_transport::{Grant, SharedSecret};
use serde_json::{Map, Value, json};

const SECRET: &str = "the secret of both of these servers";
/// The name of every sync session.
pub(crate) const SYNC_ID: &str = "6f9f2d0e-2f3a-4c57-9d0b-0d8a8f7a4c11";

/// One server.
pub(crate) struct Node {
    pub(crate) process: Process,
    pub(crate) address: SocketAddr,
}

impl Node {
    /// Starts a server on a database; its configuration is put into the folder.
    pub(crate) fn start(folder: &Path, url: &str) -> Self {
        let kinds = "[[kind]]\nname = \"note\"\n";
        let config = format!("[auth]\nsecret = \"{SECRET}\"\n[store]\nwait_ms = 6000\n{kinds}");
        std::fs::write(folder.join("c.toml"), config).expect("the folder is writable");
        let mut command = Command::new(env!("CARGO_BIN_EXE_driftline-server"));
        command
            .args(["serve", "--listen", "127.0.0.1:0", "--config", "c.toml", "--limits", "off"])
            .current_dir(folder);
        command.env("DRIFTLINE_STORE_URL", url).stderr(Stdio::null());
        let mut process = Process::start(&mut command);
        let line = process.line().expect("it starts");
        let address = line.strip_prefix("listening on http://").and_then(|address| address.parse().ok());
        let data = process.line().expect("it says where its data is");
        assert!(data.starts_with("data in PostgreSQL at "), "{data}");
        Self { process, address: address.expect("an address") }
    }

    pub(crate) async fn ask(&self, tenant: &str, request: Request) -> Response {
        request.bearer(&token(tenant)).send(self.address).await
    }

    /// Pushes a new record.
    pub(crate) async fn push(&self, tenant: &str, device: &str, n: u64, id: &str) -> Response {
        let item = json!({"op_id": format!("{device}-{n}"), "n": n, "kind": "note", "id": id, "op": "create",
                          "fields": {"n": n}});
        let request = Request::post(&format!("/api/v1/sync?device_id={device}"), &json!({"batch": [item]}));
        self.ask(tenant, request).await
    }

    /// Pushes a new record, which must be taken.
    pub(crate) async fn pushed(&self, tenant: &str, device: &str, n: u64, id: &str) {
        let response = self.push(tenant, device, n, id).await;
        assert_eq!(
            (response.status, &response.json()["ack"]["synced"]),
            (200, &json!(1)),
            "{}",
            response.text()
        );
    }

    pub(crate) async fn is_ready(&self) -> bool {
        Request::get("/ready").send(self.address).await.status == 200
    }

    /// Opens a sync session of a device that has pulled everything.
    pub(crate) async fn phone(&self, tenant: &str, device: &str) -> Phone {
        let path = format!("/ws/mobile/sync?device_id={device}&token={}", token(tenant));
        let mut socket = Socket::connect(self.address, &path).await;
        socket.expect("connection_established").await;
        let started = socket.start(SYNC_ID, &[]).await;
        let epoch = started["session_info"]["epoch"].as_str().expect("an epoch").to_owned();
        let mut phone = Phone { socket, cursor: Value::Null, seq: 0, epoch };
        phone.pull().await;
        phone
    }
}

/// A device as the protocol wants it: it takes a delta that follows what it has, and pulls else.
pub(crate) struct Phone {
    pub(crate) socket: Socket,
    pub(crate) cursor: Value,
    pub(crate) seq: u64,
    pub(crate) epoch: String,
}

impl Phone {
    /// Pulls what is new; gives its ids.
    pub(crate) async fn pull(&mut self) -> Vec<String> {
        let message = json!({"type": "request_server_data", "sync_id": SYNC_ID, "id": "p",
                             "payload": {"cursor": self.cursor}});
        self.socket.send(&message).await;
        let mut page = self.socket.receive().await;
        while page["type"] == "server_delta" {
            page = self.socket.receive().await;
        }
        assert_eq!((&page["type"], &page["has_more"]), (&json!("server_data"), &json!(false)), "{page}");
        self.stand(&page)
    }

    fn stand(&mut self, rows: &Value) -> Vec<String> {
        self.cursor = rows["cursor"].clone();
        self.seq = rows["seq"].as_u64().expect("a number");
        let changes = rows["changes"].as_array().expect("changes");
        changes.iter().map(|change| change["id"].as_str().expect("an id").to_owned()).collect()
    }

    /// Waits until it has been told of a record.
    pub(crate) async fn hears_of(&mut self, id: &str) {
        let heard = async {
            loop {
                let delta = self.socket.expect("server_delta").await;
                let follows = delta["prev_seq"].as_u64() == Some(self.seq);
                let told = if follows { self.stand(&delta) } else { self.pull().await };
                if told.iter().any(|told| told == id) {
                    return;
                }
            }
        };
        soon(id, heard).await;
    }
}

fn token(tenant: &str) -> String {
    let secret = SharedSecret::new(SECRET.as_bytes()).expect("it is long enough");
    let roles = vec!["admin".into()];
    let (sub, claims) = ("ada".into(), Map::new());
    secret.mint(&Grant {
        tenant: tenant.into(),
        sub,
        roles,
        device_id: None,
        expires_s: 4_000_000_000,
        claims,
    })
}

/// Waits until a condition holds.
pub(crate) async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let holds = async {
        while !condition().await {
            tokio::task::yield_now().await;
        }
    };
    soon(what, holds).await;
}
