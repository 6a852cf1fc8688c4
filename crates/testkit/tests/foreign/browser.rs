//! A browser: the page `page.html` speaks to the server with what every browser has, and reports what it saw.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use driftline_protocol::json_of_msgpack;
use driftline_testkit::TempFolder;
use driftline_testkit::http::Request;
use driftline_testkit::server::{Server, TokenFor, program};
use serde_json::{Value, json};

use super::tools::{installed, script};

/// How long a browser may take from its start to the page's report.
const PATIENCE: Duration = Duration::from_secs(60);

/// Serves the page under an origin of its own, and hands on what it reports.
struct Pages {
    address: SocketAddr,
    reports: Receiver<Value>,
}

impl Pages {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let (sender, reports) = channel();
        // Serves until the test's process ends.
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let sender = sender.clone();
                // A browser opens connections ahead that it may never use.
                thread::spawn(move || {
                    let report = answer(stream).and_then(|body| serde_json::from_slice(&body).ok());
                    // The test may have its report already.
                    report.map(|report| sender.send(report))
                });
            }
        });
        Self { address, reports }
    }

    fn origin(&self) -> String {
        format!("http://{}", self.address)
    }
}

/// Answers one request: the page for `GET /`, and nothing else for any other; gives the body that came.
fn answer(stream: TcpStream) -> Option<Vec<u8>> {
    let mut stream = BufReader::new(stream);
    let (mut line, mut first, mut len) = (String::new(), String::new(), 0);
    loop {
        line.clear();
        stream.read_line(&mut line).ok()?;
        match line.trim_end().split_once(": ") {
            _ if line.trim_end().is_empty() => break,
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => len = value.parse().ok()?,
            _ if first.is_empty() => first = line.clone(),
            _ => {}
        }
    }
    let mut body = vec![0; len];
    stream.read_exact(&mut body).ok()?;
    let page =
        if first.starts_with("GET /?") { std::fs::read(script("page.html")).ok()? } else { Vec::new() };
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\nconnection: close\r\ncontent-length:";
    write!(stream.get_mut(), "{head} {}\r\n\r\n", page.len()).ok()?;
    stream.get_mut().write_all(&page).ok()?;
    Some(body)
}

/// A running browser. It is killed at the end, with all the processes of its group.
struct Browser {
    child: Child,
    /// Its profile, which is removed when it has ended.
    _profile: TempFolder,
}

impl Browser {
    fn open(url: &str) -> Self {
        let profile = TempFolder::new();
        let mut command = Command::new(installed("DRIFTLINE_CHROMIUM", "/usr/bin/chromium"));
        command.args(["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]);
        command.args(["--no-first-run", "--no-proxy-server", "--disable-background-networking"]);
        command.args(["--disable-component-update", "--disable-breakpad"]);
        command.arg(format!("--user-data-dir={}", profile.path().display())).arg(url);
        let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = quiet.process_group(0).spawn().expect("the browser starts");
        Self { child, _profile: profile }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The group has the number of its first process. All of it may have ended already.
        let _ = Command::new("sh").args(["-c", &format!("kill -KILL -{}", self.child.id())]).status();
        let _ = self.child.wait();
    }
}

/// Opens the page and waits for its report.
fn report(pages: &Pages, server: &Server) -> Value {
    let token = server.token(&TokenFor { tenant: "t1", sub: "u1", role: "admin", ..TokenFor::default() });
    let url = format!("{}/?server=ws://{}/ws/mobile/sync&token={token}", pages.origin(), server.address());
    let browser = Browser::open(&url);
    let report = pages.reports.recv_timeout(PATIENCE);
    let report = report.unwrap_or_else(|_| panic!("the page did not report in time\n{}", server.log()));
    drop(browser);
    report
}

fn server(origins: &[String]) -> Server {
    let folder = TempFolder::new();
    let config = folder.path().join("driftline.toml");
    std::fs::write(&config, format!("[server]\norigins = {origins:?}\n")).expect("it can be written");
    Server::with(&program(), &["--config", config.to_str().expect("a path is text")])
}

/// Reads a counter of the server.
async fn errors(server: &Server, code: &str) -> u32 {
    let text = Request::get("/metrics").send(server.address()).await.text();
    let name = format!("driftline_errors_total{{code=\"{code}\"}} ");
    text.lines().find_map(|line| line.strip_prefix(&name)?.parse().ok()).unwrap_or(0)
}

fn types(messages: &Value) -> Vec<String> {
    let message = |message: &Value| match message.as_str() {
        Some(hex) => document(hex)["type"].clone(),
        None => message["type"].clone(),
    };
    let types = messages.as_array().into_iter().flatten().map(message);
    types.map(|name| name.as_str().unwrap_or_default().to_owned()).collect()
}

/// Reads MessagePack that the page wrote as hexadecimal digits.
fn document(hex: &str) -> Value {
    let pairs = hex.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).expect("it is ASCII"));
    let bytes: Vec<u8> = pairs.map(|pair| u8::from_str_radix(pair, 16).expect("it is hexadecimal")).collect();
    let json = json_of_msgpack(&bytes, 64).expect("it is MessagePack");
    serde_json::from_str(&json).expect("it is JSON")
}

#[tokio::test]
async fn a_page_of_a_configured_origin_syncs() {
    let pages = Pages::start();
    let server = server(&[pages.origin()]);
    let seen = report(&pages, &server);
    let answers = ["connection_established", "sync_session_started", "ack", "server_data", "pong"];
    for (name, form) in [("json", "driftline.v1.json"), ("deflate", "driftline.v1.json+deflate")] {
        let seen = &seen[name];
        assert_eq!((&seen["protocol"], &seen["close"]), (&json!(form), &json!(1000)), "{seen}");
        assert_eq!(types(&seen["messages"]), answers, "{seen}");
        assert_eq!(seen["messages"][2]["synced"], 1, "{seen}");
        assert_eq!(seen["stored"], seen["fields"], "{seen}");
    }
    let msgpack = &seen["msgpack"];
    assert_eq!(msgpack["protocol"], "driftline.v1.msgpack", "{msgpack}");
    assert_eq!(types(&msgpack["messages"]), ["connection_established", "pong"], "{msgpack}");
    assert_eq!(document(msgpack["messages"][1].as_str().expect("hexadecimal digits"))["timestamp"], 123);
    // A bad token can be read by the page, because the upgrade is not refused.
    let bad = &seen["badToken"];
    assert_eq!((&bad["opened"], &bad["close"]), (&json!(true), &json!(4001)), "{bad}");
    assert_eq!(bad["messages"][0]["code"], "UNAUTHORIZED", "{bad}");
    // Without a subprotocol that both know, there is no upgrade.
    let unknown = &seen["unknown"];
    assert_eq!((&unknown["opened"], &unknown["close"]), (&json!(false), &json!(1006)), "{unknown}");
    assert_eq!(errors(&server, "ORIGIN_REFUSED").await, 0);
}

#[tokio::test]
async fn a_page_of_a_foreign_origin_is_refused() {
    let pages = Pages::start();
    let server = server(&["https://app.example.org".into()]);
    let seen = report(&pages, &server);
    let cases = seen.as_object().expect("it is an object");
    assert_eq!(cases.len(), 5, "{seen}");
    for (name, seen) in cases {
        assert_eq!((&seen["opened"], &seen["close"]), (&json!(false), &json!(1006)), "{name}: {seen}");
    }
    assert_eq!(errors(&server, "ORIGIN_REFUSED").await, 5, "each was refused for its origin, and counted");
}
