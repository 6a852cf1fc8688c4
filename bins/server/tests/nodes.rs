//! Two servers on one PostgreSQL database.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use driftline_testkit::TempFolder;
use driftline_testkit::http::{Request, Response, soon};
use driftline_testkit::postgres::{Cluster, Database, Options};
use driftline_testkit::server::Process;
use driftline_testkit::socket::Socket;
use driftline_transport::{Grant, SharedSecret};
use serde_json::{Map, Value, json};

const SECRET: &str = "the secret of both of these servers";
const SYNC_ID: &str = "6f9f2d0e-2f3a-4c57-9d0b-0d8a8f7a4c11";

/// One server.
struct Node {
    process: Process,
    address: SocketAddr,
}

impl Node {
    fn start(folder: &Path, url: &str) -> Self {
        let kinds = "[[kind]]\nname = \"note\"\n";
        let config = format!("[auth]\nsecret = \"{SECRET}\"\n[store]\nwait_ms = 3000\n{kinds}");
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

    async fn ask(&self, tenant: &str, request: Request) -> Response {
        request.bearer(&token(tenant)).send(self.address).await
    }

    async fn push(&self, tenant: &str, device: &str, n: u64, id: &str) -> Response {
        let item = json!({"op_id": format!("{device}-{n}"), "n": n, "kind": "note", "id": id, "op": "create",
                          "fields": {"n": n}});
        let request = Request::post(&format!("/api/v1/sync?device_id={device}"), &json!({"batch": [item]}));
        self.ask(tenant, request).await
    }

    async fn pushed(&self, tenant: &str, device: &str, n: u64, id: &str) {
        let response = self.push(tenant, device, n, id).await;
        assert_eq!(
            (response.status, &response.json()["ack"]["synced"]),
            (200, &json!(1)),
            "{}",
            response.text()
        );
    }

    async fn is_ready(&self) -> bool {
        Request::get("/ready").send(self.address).await.status == 200
    }

    /// Opens a sync session of a device that has pulled everything.
    async fn phone(&self, tenant: &str, device: &str) -> Phone {
        let path = format!("/ws/mobile/sync?device_id={device}&token={}", token(tenant));
        let mut socket = Socket::connect(self.address, &path).await;
        socket.expect("connection_established").await;
        socket.start(SYNC_ID, &[]).await;
        let mut phone = Phone { socket, cursor: Value::Null, seq: 0 };
        phone.pull().await;
        phone
    }
}

/// A device as the protocol wants it: it takes a delta that follows what it has, and pulls else.
struct Phone {
    socket: Socket,
    cursor: Value,
    seq: u64,
}

impl Phone {
    /// Pulls what is new; gives its ids.
    async fn pull(&mut self) -> Vec<String> {
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
    async fn hears_of(&mut self, id: &str) {
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

/// Two servers on a database of their own.
struct Pair {
    one: Node,
    other: Node,
    _database: Database,
    _folder: TempFolder,
}

impl Pair {
    fn start() -> Self {
        let (folder, database) = (TempFolder::new(), Cluster::shared().empty_database());
        let start = || Node::start(folder.path(), &database.url());
        Self { one: start(), other: start(), _database: database, _folder: folder }
    }
}

/// Waits until a condition holds.
async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let holds = async {
        while !condition().await {
            tokio::task::yield_now().await;
        }
    };
    soon(what, holds).await;
}

#[tokio::test]
async fn phones_hear_of_what_was_written_on_the_other_node() {
    let pair = Pair::start();
    let (mut here, mut there) = (pair.one.phone("t", "here").await, pair.other.phone("t", "there").await);
    for round in 0..2 {
        let (first, second) = (format!("a{round}"), format!("b{round}"));
        pair.one.pushed("t", "one", round + 1, &first).await;
        here.hears_of(&first).await;
        there.hears_of(&first).await;
        pair.other.pushed("t", "two", round + 1, &second).await;
        there.hears_of(&second).await;
        here.hears_of(&second).await;
    }
    assert_eq!((here.seq, there.seq), (4, 4));
}

/// The node has not compared the head of the tenant before.
#[tokio::test]
async fn a_phone_of_a_tenant_that_its_node_has_just_met_hears_too() {
    let pair = Pair::start();
    for round in 0..4 {
        let tenant = format!("new-{round}");
        let mut phone = pair.other.phone(&tenant, "phone").await;
        pair.one.pushed(&tenant, "one", 1, "first").await;
        phone.hears_of("first").await;
    }
}

#[tokio::test]
async fn a_policy_that_is_set_on_one_node_is_in_force_on_the_other() {
    let pair = Pair::start();
    for tenant in ["first", "second"] {
        let there = async || {
            let response = pair.other.ask(tenant, Request::get("/api/v1/policies/note")).await.json();
            response["strategy"].as_str().expect("a strategy").to_owned()
        };
        assert_eq!(there().await, "field_merge");
        for strategy in ["server_wins", "manual"] {
            let doc = json!({"strategy": strategy});
            let set = pair.one.ask(tenant, Request::new("PUT", "/api/v1/policies/note").json(&doc)).await;
            assert_eq!(set.status, 200, "{}", set.text());
            until(strategy, async || there().await == strategy).await;
        }
    }
}

#[tokio::test]
async fn when_a_node_is_killed_the_other_serves_its_phones() {
    let mut pair = Pair::start();
    let (mut lost, mut stays) = (pair.one.phone("t", "lost").await, pair.other.phone("t", "stays").await);
    for n in 1..=20 {
        pair.one.pushed("t", "writer", n, &format!("r{n}")).await;
    }
    lost.hears_of("r20").await;
    pair.one.process.kill();
    // What was acknowledged is known to the other node, and so is that it was done.
    let again = pair.other.push("t", "writer", 20, "r20").await.json();
    assert_eq!(again["ack"]["results"][0]["duplicate"], true, "{again}");
    pair.other.pushed("t", "writer", 21, "r21").await;
    stays.hears_of("r21").await;
    let mut moved = pair.other.phone("t", "lost").await;
    moved.cursor = lost.cursor;
    assert_eq!(moved.pull().await, ["r21"], "its cursor is good on every node");
}

#[tokio::test]
async fn a_database_that_goes_away_and_comes_back_leaves_sockets_open() {
    let folder = TempFolder::new();
    let mut cluster = Cluster::own(&Options::default());
    let database = cluster.empty_database();
    let node = Node::start(folder.path(), &database.url());
    let mut phone = node.phone("t", "phone").await;
    node.pushed("t", "writer", 1, "before").await;
    phone.hears_of("before").await;

    cluster.stop_fast();
    until("not to be ready", async || !node.is_ready().await).await;
    let refused = node.push("t", "writer", 2, "after").await;
    assert_eq!((refused.status, refused.code().as_str()), (503, "STORE_UNAVAILABLE"), "{}", refused.text());
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(Request::get("/alive").send(node.address).await.status, 200);
    let pull =
        json!({"type": "request_server_data", "sync_id": SYNC_ID, "payload": {"cursor": phone.cursor}});
    let error = phone.socket.ask(&pull, "error").await;
    assert_eq!((&error["code"], &error["retryable"]), (&json!("STORE_UNAVAILABLE"), &json!(true)), "{error}");

    cluster.start();
    until("to be ready", async || node.is_ready().await).await;
    node.pushed("t", "writer", 2, "after").await;
    phone.hears_of("after").await;
}
