//! The registry of devices as an operator at a terminal meets it.

use std::path::Path;
use std::process::{Command, Stdio};

use driftline_testkit::http::Request;
use driftline_testkit::postgres::Cluster;
use driftline_testkit::server::{Server, TokenFor};
use serde_json::{Value, json};

const PROGRAM: &str = env!("CARGO_BIN_EXE_driftline-server");

/// One kind of samples, in a file of the folder.
fn config(folder: &Path) -> String {
    let file = folder.join("driftline.toml");
    std::fs::write(&file, "[[kind]]\nname = \"sample\"\nmode = \"telemetry\"\n")
        .expect("the folder is writable");
    file.to_str().expect("the path is text").to_owned()
}

/// An operator of one database.
struct Operator<'a> {
    folder: &'a Path,
    url: Option<&'a str>,
}

impl Operator<'_> {
    /// Runs `device` with arguments; what it prints, or what it says is wrong.
    fn device(&self, arguments: &[&str]) -> Result<String, String> {
        let mut command = Command::new(PROGRAM);
        command.arg("device").args(arguments).stdin(Stdio::null()).env_remove("DRIFTLINE_STORE_URL");
        command.arg("--data-dir").arg(self.folder).envs(self.url.map(|url| ("DRIFTLINE_STORE_URL", url)));
        let output = command.output().expect("the program runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (printed, said) = (text(&output.stdout), text(&output.stderr));
        assert!(!said.contains("panicked"), "{arguments:?}: {said}");
        if output.status.success() { Ok(printed) } else { Err(format!("{printed}{said}")) }
    }

    fn done(&self, arguments: &[&str]) -> String {
        self.device(arguments).unwrap_or_else(|said| panic!("{arguments:?}: {said}"))
    }

    #[track_caller]
    fn refused(&self, arguments: &[&str], words: &[&str]) {
        let said = self.device(arguments).expect_err("it is refused");
        for word in words {
            assert!(said.contains(word), "{arguments:?} does not say {word:?}: {said}");
        }
    }
}

const ANAS: [&str; 6] = ["--tenant", "acme", "--owner", "ana", "--id", "phone-1"];

fn of<'a>(action: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&[action], &ANAS[..], more].concat()
}

async fn send(server: &Server, hash: &str) -> (u16, Value) {
    let sample = json!({"type": "sample", "payload": {"a": 1}});
    let request = Request::post("/api/ingest", &sample).header("x-device-hash", hash);
    let answer = request.send(server.address()).await;
    (answer.status, answer.json())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_is_registered_while_no_server_runs_and_enters_by_its_hash() {
    let files = driftline_testkit::TempFolder::new();
    let file = config(files.path());
    let mut server = Server::with(Path::new(PROGRAM), &["--config", &file]);
    let folder = server.data_dir().to_owned();
    let operator = Operator { folder: &folder, url: None };
    operator.refused(&of("add", &[]), &["/api/v1/devices", "is in use"]);
    operator.refused(&["list"], &["/api/v1/devices"]);
    server.terminate();

    let printed = operator.done(&of("add", &[]));
    let hash = printed.trim().to_owned();
    assert!(
        hash.len() == 32 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()),
        "the hash and nothing else: {printed}"
    );
    operator.refused(&of("add", &[]), &["has a hash already"]);
    let listed = operator.done(&["list", "--tenant", "acme"]);
    assert!(listed.starts_with("ana\tphone-1\tenabled\toffline\thash\tlast seen 20"), "{listed}");
    assert_eq!(operator.done(&["list"]), "", "another tenant has none");
    assert_eq!(operator.done(&["list", "--tenant", "acme", "--owner", "ben"]), "");

    server.restart();
    assert_eq!(send(&server, &hash).await.0, 200);
    server.terminate();
    assert!(operator.done(&of("disable", &[])).contains("\tdisabled\t"));
    server.restart();
    let (status, problem) = send(&server, &hash).await;
    assert_eq!((status, &problem["code"]), (403, &json!("UNAUTHORIZED")));
    server.terminate();
    operator.done(&of("enable", &[]));
    server.restart();
    assert_eq!(send(&server, &hash).await.0, 200);
    server.terminate();

    assert_eq!(operator.done(&of("remove", &[])), "ana\tphone-1\tremoved\n");
    assert_eq!(operator.done(&["list", "--tenant", "acme"]), "");
    operator.refused(&of("enable", &[]), &["has no device phone-1"]);
    let own = operator.done(&of("add", &["--hash", "another-hash-0001"]));
    assert_eq!(own, "another-hash-0001\n");
    server.restart();
    assert_eq!(send(&server, &hash).await.0, 403, "the old hash leads nowhere");
    assert_eq!(send(&server, "another-hash-0001").await.0, 200);
    // What it sent before is still its own.
    let token = server.token(&TokenFor { tenant: "acme", sub: "ana", ..TokenFor::default() });
    let samples = Request::get("/api/v1/telemetry/sample").bearer(&token).send(server.address()).await;
    assert_eq!(samples.json()["items"].as_array().map(Vec::len), Some(3), "{}", samples.text());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_postgresql_the_registry_is_changed_while_servers_run() {
    let files = driftline_testkit::TempFolder::new();
    let file = config(files.path());
    let database = Cluster::shared().empty_database();
    let url = database.url();
    let server = Server::on(&url, &["--config", &file]);
    let operator = Operator { folder: files.path(), url: Some(&url) };
    let hash = operator.done(&of("add", &["--disabled"]));
    assert_eq!(send(&server, hash.trim()).await.0, 403);
    operator.done(&of("enable", &[]));
    assert_eq!(send(&server, hash.trim()).await.0, 200);
    operator.done(&of("disable", &[]));
    assert_eq!(send(&server, hash.trim()).await.0, 403, "at once");
    operator.done(&of("remove", &[]));
    assert_eq!(operator.done(&["list", "--tenant", "acme"]), "");
}

#[test]
fn what_makes_no_sense_is_refused() {
    let folder = driftline_testkit::TempFolder::new();
    let operator = Operator { folder: folder.path(), url: None };
    let table: [(&[&str], &str); 6] = [
        (&["add", "--owner", "ana", "--id", "phone-1", "--hash", "short"], "16 to 256 visible"),
        (&["add", "--owner", "ana", "--id", "phone-1", "--hash", "with a space in it"], "16 to 256 visible"),
        (&["add", "--owner", "ana", "--id", "$phone"], "does not begin with $"),
        (&["add", "--owner", "", "--id", "phone-1"], "is not a user"),
        (&["add", "--owner", "ana", "--id", "phone-1", "--tenant", ""], "is not a tenant"),
        (&["enable", "--owner", "ana", "--id", "phone-1"], "has no device phone-1"),
    ];
    for (arguments, named) in table {
        operator.refused(arguments, &[named]);
    }
    operator.done(&["add", "--owner", "ana", "--id", "phone-1", "--hash", "one-hash-for-all"]);
    operator.refused(
        &["add", "--owner", "ben", "--id", "phone-2", "--hash", "one-hash-for-all"],
        &["leads to another device"],
    );
}
