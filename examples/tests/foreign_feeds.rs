//! Clients that are not ours follow events through cuts and a restart of the server: `eventsource` and `ws` of npm,
//! `websockets` of Python, and curl.

mod support;

use std::process::{Command, Stdio};

use driftline_testkit::http::Request;
use driftline_testkit::proxy::Proxy;
use driftline_testkit::server::Process;
use serde_json::json;
use support::programs::{node, python, script};
use support::{Deployment, Person};

/// A running client, whose lines tell what it got.
struct Follower {
    process: Process,
    numbers: Vec<u64>,
    cuts: usize,
}

impl Follower {
    fn start(mut command: Command) -> Self {
        let process = Process::start(command.stderr(Stdio::inherit()));
        Self { process, numbers: Vec::new(), cuts: 0 }
    }

    /// Reads lines until one begins so.
    fn until(&mut self, wanted: &str) {
        loop {
            let line = self.process.line().unwrap_or_else(|| panic!("it ended before {wanted}"));
            match line.parse() {
                Ok(number) => self.numbers.push(number),
                Err(_) if line == "cut" => self.cuts += 1,
                Err(_) => {}
            }
            if line.starts_with(wanted) {
                return;
            }
        }
    }
}

async fn publish(town: &Deployment, by: &Person, n: u64, is_last: bool) {
    let event = json!({"type": "grade_update", "data": {"cadet_id": 1, "n": n, "last": is_last}});
    let answer = town.ask(by, Request::post("/api/v1/events", &event)).await;
    assert_eq!(answer.status, 202, "{}", answer.text());
}

/// Has a client follow events; meanwhile its connection is cut, and then the server killed and started again.
async fn follows(scheme: &str, path: &str, command: impl FnOnce() -> Command) {
    let mut town = Deployment::start("training-records.toml");
    let admin = town.person("school", "root", "admin", &["approved=true"]);
    let cadet = town.person("school", "c1", "cadet", &["approved=true", "cadet_id=1"]);
    let proxy = Proxy::start(town.address());
    let mut command = command();
    command.args([&format!("{scheme}://{}{path}", proxy.address()), cadet.token()]);
    let mut client = Follower::start(command);
    client.until("open");
    publish(&town, &admin, 1, false).await;
    client.until("1");

    proxy.cut();
    client.until("cut");
    publish(&town, &admin, 2, false).await;
    publish(&town, &admin, 3, false).await;
    proxy.pass();
    client.until("3");
    publish(&town, &admin, 4, false).await;
    client.until("4");

    proxy.cut();
    client.until("cut");
    town.while_stopped(|_| {});
    publish(&town, &admin, 5, false).await;
    proxy.target(town.address());
    proxy.pass();
    publish(&town, &admin, 6, true).await;
    client.until("6");
    assert_eq!(client.numbers, [1, 2, 3, 4, 5, 6]);
    assert!(client.cuts >= 2);
    assert_eq!(client.process.wait().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn npm_eventsource_resumes_by_itself() {
    let command = || {
        let mut command = node();
        command.arg(script("stream.js"));
        command
    };
    follows("http", "/api/events", command).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn npm_ws_resumes_with_the_last_id() {
    let command = || {
        let mut command = node();
        command.arg(script("follow.js"));
        command
    };
    follows("ws", "/ws/updates", command).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn python_websockets_resumes_with_the_last_id() {
    let command = || {
        let mut command = python();
        command.arg(script("follow.py"));
        command
    };
    follows("ws", "/ws/updates", command).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_reads_the_stream_and_what_was_missed() {
    let town = Deployment::start("training-records.toml");
    let admin = town.person("school", "root", "admin", &["approved=true"]);
    let cadet = town.person("school", "c1", "cadet", &["approved=true", "cadet_id=1"]);
    let curl = |header: &str| {
        let mut curl = Command::new("curl");
        curl.args(["-sN", "-H", &format!("Authorization: Bearer {}", cadet.token())]);
        curl.args(["-H", header, &format!("http://{}/api/events", town.address())]);
        Process::start(curl.stderr(Stdio::null()))
    };
    let told = |curl: &mut Process, n: u64| {
        let mut id = String::new();
        loop {
            let line = curl.line().expect("the stream goes on");
            assert!(!line.starts_with("event:"), "no event has a name: {line}");
            if let Some(own) = line.strip_prefix("id: ") {
                own.clone_into(&mut id);
            }
            if line.starts_with("data: ") && line.contains(&format!("\"n\":{n}}}")) {
                return id;
            }
        }
    };
    let mut live = curl("Accept: text/event-stream");
    while !live.line().expect("a greeting").contains("connection_established") {}
    for n in 1..=3 {
        let event = json!({"type": "grade_update", "data": {"cadet_id": 1, "n": n}});
        assert_eq!(town.ask(&admin, Request::post("/api/v1/events", &event)).await.status, 202);
    }
    let first = told(&mut live, 1);
    let third = told(&mut live, 3);
    live.kill();
    let mut again = curl(&format!("Last-Event-ID: {first}"));
    let greeting = loop {
        let line = again.line().expect("a greeting");
        if line.contains("connection_established") {
            break line;
        }
    };
    assert!(greeting.contains("\"recovered\":true"), "{greeting}");
    assert_eq!(told(&mut again, 3), third);
}
