//! A stranger's tools work: the transcripts of the documentation run against the real server.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use driftline_testkit::server::{Server, TokenFor};

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts").join(name)
}

fn told(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The Python with the package `websockets` that `scripts/test` installs and names.
fn python() -> PathBuf {
    let cache = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/driftline/venv/bin/python"));
    let python = std::env::var_os("DRIFTLINE_PYTHON").map(PathBuf::from).or_else(cache).expect("a Python");
    assert!(python.exists(), "run scripts/test, which installs it: {}", python.display());
    python
}

#[test]
fn python_websockets_speaks_the_documented_protocol() {
    let server = Server::start();
    let token = server.token(&TokenFor { tenant: "t1", sub: "u1", role: "admin", ..TokenFor::default() });
    let url = format!("ws://{}/ws/mobile/sync", server.address());
    let output =
        Command::new(python()).arg(script("sync.py")).args([&url, &token]).output().expect("it runs");
    assert!(output.status.success(), "{}", told(&output));
    assert!(told(&output).contains("all answers are as documented"), "{}", told(&output));
}

#[test]
fn curl_speaks_the_http_twin() {
    let server = Server::start();
    let token = server.token(&TokenFor { tenant: "t2", sub: "u1", role: "admin", ..TokenFor::default() });
    let output = Command::new("bash")
        .arg(script("sync.sh"))
        .args([&format!("http://{}", server.address()), &token])
        .output()
        .expect("it runs");
    assert!(output.status.success(), "{}", told(&output));
    assert!(told(&output).contains("all answers are as documented"), "{}", told(&output));
}

#[test]
fn the_documentation_shows_the_very_scripts() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/protocol/try-it.md");
    let docs = std::fs::read_to_string(docs).expect("the page");
    for name in ["sync.py", "sync.sh"] {
        let text = std::fs::read_to_string(script(name)).expect("the script");
        assert!(docs.contains(text.trim_end()), "docs/protocol/try-it.md must hold {name} as it is");
    }
}
