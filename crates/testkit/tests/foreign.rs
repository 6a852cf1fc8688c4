//! Clients that are not ours work: `ws` and `tus-js-client` of npm, `websockets` and `tuspy` of Python, their languages'
//! own HTTP, `curl`, and a browser, also with Uppy.

#[path = "foreign/browser.rs"]
mod browser;
#[path = "foreign/origins.rs"]
mod origins;
#[path = "foreign/pages.rs"]
mod pages;
#[path = "foreign/tools.rs"]
mod tools;
#[path = "foreign/uploads.rs"]
mod uploads;
#[path = "foreign/uppy.rs"]
mod uppy;

use std::path::Path;
use std::process::Command;

use crate::tools::{configured, node, python, script, token, told};

/// Runs a script against a server of its own; it bounds its time itself.
fn speaks(mut command: Command, name: &str, scheme: &str, path: &str) {
    // It takes a silent client for dead soon, because two scripts wait for it.
    let server = configured("[limits]\nheartbeat_s = 3\n");
    let token = token(&server, "admin");
    let url = format!("{scheme}://{}{path}", server.address());
    let output = command.arg(script(name)).args([&url, &token]).output().expect("it runs");
    let told = told(&output);
    assert!(output.status.success(), "{told}\n{}", server.log());
    assert!(told.contains("all answers are as documented"), "{told}");
}

#[test]
fn node_ws_speaks_every_form() {
    speaks(node(), "forms.js", "ws", "/ws/mobile/sync");
}

#[test]
fn python_websockets_speaks_every_form() {
    speaks(python(), "forms.py", "ws", "/ws/mobile/sync");
}

#[test]
fn node_http_sends_and_reads_every_coding() {
    speaks(node(), "codings.js", "http", "");
}

#[test]
fn python_http_sends_and_reads_every_coding() {
    speaks(python(), "codings.py", "http", "");
}

#[test]
fn curl_uploads_in_chunks() {
    speaks(Command::new("bash"), "uploads.sh", "http", "");
}

#[test]
fn the_example_of_the_documentation_runs() {
    speaks(node(), "example.js", "ws", "/ws/mobile/sync");
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/protocol/try-it.md");
    let docs = std::fs::read_to_string(docs).expect("the page");
    let text = std::fs::read_to_string(script("example.js")).expect("the script");
    assert!(docs.contains(text.trim_end()), "docs/protocol/try-it.md must hold example.js as it is");
}
