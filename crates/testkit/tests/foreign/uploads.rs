//! Uploads by clients of tus that are not ours: `tus-js-client` of npm and `tuspy` of Python. What they sent is what the
//! server holds.

use std::process::Command;

use driftline_testkit::TempFolder;
use driftline_testkit::http::{Request, Response};
use driftline_testkit::server::Server;
use driftline_uploads::Digest;
use serde_json::Value;

use super::tools::{node, python, script, token, told};

/// How the server names `Straße 日本.bin` to whoever downloads it.
pub(crate) const NAMED: &str =
    "attachment; filename=\"Stra_e __.bin\"; filename*=UTF-8''Stra%C3%9Fe%20%E6%97%A5%E6%9C%AC.bin";

/// The part of an upload's URL that names its file.
pub(crate) fn file_of(url: &str) -> &str {
    let segment = url.rsplit('/').next().unwrap_or_default();
    segment.get(..32).unwrap_or_else(|| panic!("no upload is at {url}"))
}

/// Asks for the file of an upload.
pub(crate) async fn download(server: &Server, token: &str, url: &str) -> Response {
    let target = format!("/api/v1/files/{}", file_of(url));
    Request::get(&target).bearer(token).send(server.address()).await
}

/// Downloads a file and compares it with what a client says that it has sent: `url`, `size` and `sha256`.
pub(crate) async fn compare(server: &Server, token: &str, sent: &Value) -> Response {
    let text = |name: &str| sent[name].as_str().unwrap_or_else(|| panic!("no {name} in {sent}"));
    let file = download(server, token, text("url")).await;
    assert_eq!(file.status, 200, "{sent}: {}\n{}", file.text(), server.log());
    assert_eq!(Some(file.body.len() as u64), sent["size"].as_u64(), "{sent}");
    assert_eq!(Digest::hash(&file.body).to_string(), text("sha256"), "{sent}");
    assert_eq!(file.header("etag"), Some(format!("\"{}\"", text("sha256")).as_str()), "{sent}");
    file
}

/// Lists what the uploads that are under way have stored.
pub(crate) fn staged(server: &Server) -> Vec<String> {
    let staging =
        std::fs::read_dir(server.data_dir().join("uploads/staging")).expect("uploads are kept there");
    staging.map(|entry| entry.expect("it can be read").file_name().to_string_lossy().into_owned()).collect()
}

/// Runs all scenarios of a script, which bounds its time itself, and compares what it says that the server holds now.
async fn holds(mut command: Command, name: &str, scenarios: &[&str]) {
    let (server, folder) = (Server::start(), TempFolder::new());
    // No role is needed.
    let token = token(&server, "");
    let url = format!("http://{}/files", server.address());
    let command = command.arg(script(name)).args([&url, &token, "all"]).arg(folder.path());
    let output = command.output().expect("it runs");
    assert!(output.status.success(), "{}\n{}", told(&output), server.log());
    let sent: Vec<Value> = serde_json::from_slice(&output.stdout).expect("it tells what it sent");
    assert_eq!(sent.iter().map(|sent| &sent["scenario"]).collect::<Vec<_>>(), scenarios);
    for sent in &sent {
        let url = sent["url"].as_str().expect("it is told");
        if sent["scenario"] == "terminate" {
            assert_eq!(download(&server, &token, url).await.status, 404, "{sent}");
            continue;
        }
        let file = compare(&server, &token, sent).await;
        // `tuspy` sends the empty file without metadata.
        let (disposition, media) = match name {
            "tus.py" if sent["size"] == 0 => {
                ("attachment; filename=\"file\"; filename*=UTF-8''file", "application/octet-stream")
            }
            _ => (NAMED, "application/x-driftline"),
        };
        assert_eq!(file.header("content-disposition"), Some(disposition), "{sent}");
        assert_eq!(file.header("content-type"), Some(media), "{sent}");
        // The parts of a file are none.
        let made = sent["upload_ids"].as_array().expect("it is told").iter().filter_map(Value::as_str);
        for part in made.filter(|part| file_of(part) != file_of(url)) {
            assert_eq!(download(&server, &token, part).await.status, 404, "{part} of {sent}");
        }
    }
    // Every upload was finished, joined or ended.
    assert_eq!(staged(&server), Vec::<String>::new());
}

#[tokio::test]
async fn tus_js_client_uploads_in_every_way() {
    let scenarios = [
        "plain",
        "one-request",
        "resume",
        "parallel",
        "parallel-resume",
        "parallel-lost",
        "deferred",
        "deferred-late",
        "creation-with-upload",
        "one-post",
        "method-override",
        "terminate",
        "empty",
        "empty-post",
        "expired-token",
    ];
    holds(node(), "tus.js", &scenarios).await;
}

#[tokio::test]
async fn tuspy_uploads_with_checksums() {
    holds(python(), "tus.py", &["resume", "bad-checksum", "conflict", "empty"]).await;
}
