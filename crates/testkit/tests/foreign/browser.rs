//! A browser: the page `page.html` speaks to the server with what every browser has, and reports what it saw.

use driftline_protocol::json_of_msgpack;
use driftline_testkit::http::Request;
use driftline_testkit::server::Server;
use serde_json::{Value, json};

use super::pages::Pages;
use super::tools::{configured, script, token};

fn pages() -> Pages {
    Pages::start([("/", script("page.html"))])
}

/// Opens the page and waits for its report.
fn report(pages: &Pages, server: &Server) -> Value {
    let token = token(server, "admin");
    pages.report(&format!("server=ws://{}/ws/mobile/sync&token={token}", server.address()), server)
}

fn server(origins: &[String]) -> Server {
    configured(&format!("[server]\norigins = {origins:?}\n"))
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
    let pages = pages();
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
    let pages = pages();
    let server = server(&["https://app.example.org".into()]);
    let seen = report(&pages, &server);
    let cases = seen.as_object().expect("it is an object");
    assert_eq!(cases.len(), 5, "{seen}");
    for (name, seen) in cases {
        assert_eq!((&seen["opened"], &seen["close"]), (&json!(false), &json!(1006)), "{name}: {seen}");
    }
    assert_eq!(errors(&server, "ORIGIN_REFUSED").await, 5, "each was refused for its origin, and counted");
}
