//! The program as a script or a person at a terminal meets it.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use driftline_testkit::TempFolder;
use driftline_testkit::http::Request;
use driftline_testkit::server::{Process, Server, TokenFor};
use driftline_testkit::socket::Socket;
use driftline_transport::{Authenticate as _, SharedSecret};
use serde_json::{Value, json};

const PROGRAM: &str = env!("CARGO_BIN_EXE_driftline-server");

/// A command that sees nothing of the caller's environment but where programs are.
fn command(arguments: &[&str], folder: &Path) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(arguments).current_dir(folder).stdin(Stdio::null());
    for name in ["AUTH_SECRET", "SERVER_LISTEN", "SERVER_DATA_DIR", "STORE_URL", "LOG"] {
        command.env_remove(format!("DRIFTLINE_{name}"));
    }
    command
}

fn run(arguments: &[&str], folder: &Path) -> Output {
    command(arguments, folder).output().expect("the program runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a command that must fail, print nothing to stdout and name the words on stderr.
#[track_caller]
fn refused(arguments: &[&str], folder: &Path, words: &[&str]) {
    let output = run(arguments, folder);
    let said = text(&output.stderr);
    assert!(!output.status.success(), "{arguments:?} succeeded");
    assert_eq!(text(&output.stdout), "", "{arguments:?}");
    for word in words {
        assert!(said.contains(word), "{arguments:?} does not say {word:?}: {said}");
    }
    assert!(!said.contains("panicked"), "{arguments:?}: {said}");
}

/// The claims of a token, without a look at its signature.
fn claims(token: &str) -> Value {
    let parts: Vec<_> = token.split('.').collect();
    let [_, payload, _] = parts.as_slice() else { panic!("{token:?} is no token") };
    serde_json::from_slice(&base64url(payload)).expect("claims are JSON")
}

/// RFC 4648 §5, without padding.
fn base64url(text: &str) -> Vec<u8> {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let (mut bytes, mut bits, mut held) = (Vec::new(), 0_u32, 0);
    for byte in text.bytes() {
        let digit = ALPHABET.iter().position(|known| *known == byte).expect("a digit");
        bits = bits << 6 | u32::try_from(digit).expect("below 64");
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push(u8::try_from(bits >> held & 0xff).expect("one byte"));
        }
    }
    bytes
}

#[expect(clippy::disallowed_methods, reason = "the program asks the machine too")]
fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

#[test]
fn token_prints_the_token_and_nothing_else() {
    let folder = TempFolder::new();
    let begun_s = now_s();
    let asked = [
        "token",
        "--data-dir",
        "data",
        "--tenant",
        "t1",
        "--sub",
        "u1",
        "--role",
        "staff",
        "--role",
        "user",
        "--device-id",
        "d1",
        "--ttl",
        "1h",
        "--claim",
        "cadet_id=7",
        "--claim",
        "unit=alpha",
    ];
    let output = run(&asked, folder.path());
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stderr), "");
    let printed = text(&output.stdout);
    let token = printed.strip_suffix('\n').expect("one line");
    let claims = claims(token);
    assert_eq!(claims["cadet_id"], json!(7), "a number stays one");
    assert_eq!(
        (&claims["tenant"], &claims["sub"], &claims["roles"], &claims["device_id"], &claims["unit"]),
        (&json!("t1"), &json!("u1"), &json!(["staff", "user"]), &json!("d1"), &json!("alpha"))
    );
    let expires_s = claims["exp"].as_u64().expect("seconds");
    assert!((begun_s + 3600..=now_s() + 3600).contains(&expires_s), "{expires_s}");

    // The key was made on the way, for this user only, and signs every further token.
    let key = folder.path().join("data/dev.key");
    let secret = std::fs::read_to_string(&key).expect("a key");
    let secret = SharedSecret::new(secret.trim().as_bytes()).expect("long enough");
    assert!(secret.authenticate(token, begun_s * 1000).is_ok());
    let mode = std::os::unix::fs::PermissionsExt::mode(&key.metadata().expect("a file").permissions());
    assert_eq!(mode & 0o777, 0o600);
    let second = run(&["token", "--data-dir", "data", "--sub", "7"], folder.path());
    let second = text(&second.stdout);
    assert!(secret.authenticate(second.trim(), begun_s * 1000).is_ok());
    assert_eq!(self::claims(second.trim())["sub"], json!(7));
}

#[test]
fn token_refuses_what_makes_no_sense() {
    let folder = TempFolder::new();
    refused(&["token"], folder.path(), &["--sub"]);
    refused(&["token", "--sub", "u", "--ttl", "1w"], folder.path(), &["--ttl"]);
    refused(&["token", "--sub", "u", "--claim", "nothing"], folder.path(), &["--claim", "name=value"]);
}

#[test]
fn serve_needs_a_key() {
    let folder = TempFolder::new();
    let listen = ["serve", "--listen", "127.0.0.1:0", "--data-dir", "data"];
    refused(&listen, folder.path(), &["key", "auth.secret", "DRIFTLINE_AUTH_SECRET"]);
    // The development key of the folder is none for others.
    assert!(run(&["token", "--data-dir", "data", "--sub", "u"], folder.path()).status.success());
    refused(&listen, folder.path(), &["key"]);
    std::fs::write(folder.path().join("c.toml"), "[auth]\nsecret = \"short\"\n").expect("writable");
    refused(&[&listen[..], &["--config", "c.toml"]].concat(), folder.path(), &["auth.secret", "16 bytes"]);
    assert!(!folder.path().join("data/driftline.db").exists(), "nothing was begun");
}

#[test]
fn a_database_that_cannot_be_used_is_named_without_its_password() {
    let folder = TempFolder::new();
    let free = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let nobody = free.local_addr().expect("it is bound");
    drop(free);
    let write = |store: &str| {
        let config = format!("[auth]\nsecret = \"a secret of enough bytes\"\n[store]\n{store}\n");
        std::fs::write(folder.path().join("c.toml"), config).expect("writable");
    };
    let url = format!("url = \"postgres://ada:sesame@{nobody}/app\"");
    let broken = "url = \"postgres://ada:sesame@127.0.0.1:notaport/app\"";
    let place = format!("PostgreSQL at {nobody}, database app");
    let table: [(&str, &[&str]); 5] = [
        (&url, &[&place, "cannot connect"]),
        (broken, &["PostgreSQL", "connection string"]),
        ("url = \"ada:sesame\"", &["store.url"]),
        ("failover = \"lossless\"", &["store.failover", "DRIFTLINE_STORE_URL"]),
        (&format!("{url}\ntls_ca_file = \"ca.pem\""), &[&place, "ca.pem"]),
    ];
    for (store, words) in table {
        write(store);
        for command in [&["serve", "--listen", "127.0.0.1:0"][..], &["migrate"]] {
            let arguments = [command, &["--config", "c.toml"]].concat();
            refused(&arguments, folder.path(), words);
            let said = run(&arguments, folder.path()).stderr;
            assert!(!text(&said).contains("sesame"), "{}", text(&said));
        }
    }
    write(&url);
    for command in [["backup", "copy.db"], ["restore", "copy.db"]] {
        refused(
            &[&command[..], &["--config", "c.toml"]].concat(),
            folder.path(),
            &[&place, "tools of PostgreSQL"],
        );
    }
    assert!(!folder.path().join("driftline-data").exists(), "no other database was taken");
}

#[test]
fn serve_runs_with_a_key() {
    let folder = TempFolder::new();
    let config = "[auth]\nsecret = \"a secret of enough bytes\"\n[[kind]]\nname = \"note\"\n";
    std::fs::write(folder.path().join("c.toml"), config).expect("writable");
    let arguments = ["serve", "--listen", "127.0.0.1:0", "--data-dir", "data", "--config", "c.toml"];
    let mut server = Process::start(command(&arguments, folder.path()).stderr(Stdio::null()));
    let line = server.line().expect("a line");
    let address = line.strip_prefix("listening on http://").expect("the address comes first");
    let token = run(&["token", "--config", "c.toml", "--sub", "u"], folder.path());
    let runtime = runtime();
    let response = runtime.block_on(
        Request::get("/api/v1/records/note")
            .bearer(text(&token.stdout).trim())
            .send(address.parse().expect("an address")),
    );
    assert_eq!(response.status, 200, "{}", response.text());
    let undeclared = Request::get("/api/v1/records/ghost").bearer(text(&token.stdout).trim());
    let response = runtime.block_on(undeclared.send(address.parse().expect("an address")));
    assert_eq!(response.status, 404, "only declared kinds are known");
    server.signal("INT");
    assert_eq!(server.line().as_deref(), Some("data in data/driftline.db"));
    assert_eq!(server.line(), None, "no token is printed to others");
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn dev_stays_on_this_machine() {
    let folder = TempFolder::new();
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:8000"] {
        refused(
            &["dev", "--data-dir", "data", "--listen", address],
            folder.path(),
            &["this machine only", address],
        );
    }
}

#[test]
fn a_configuration_is_read_to_the_letter() {
    let folder = TempFolder::new();
    let table = [
        ("[server]\nlissten = \"127.0.0.1:0\"\n", "lissten"),
        ("[limts]\nbatch_items = 1\n", "limts"),
        ("[limits]\nbatch_items = 0\n", "batch_items"),
        ("[[kind]]\nname = \"a\"\nstrategy = \"best\"\n", "best"),
        ("not toml", "c.toml"),
    ];
    for (config, named) in table {
        std::fs::write(folder.path().join("c.toml"), config).expect("writable");
        let arguments = ["dev", "--listen", "127.0.0.1:0", "--data-dir", "data", "--config", "c.toml"];
        refused(&arguments, folder.path(), &[named]);
    }
    refused(&["dev", "--data-dir", "data", "--config", "absent.toml"], folder.path(), &["absent.toml"]);
    refused(&["dev", "--limts", "off"], folder.path(), &["--limts"]);
    refused(&["develop"], folder.path(), &["develop"]);
}

#[test]
fn a_port_that_is_taken_is_named() {
    let folder = TempFolder::new();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = taken.local_addr().expect("it is bound").to_string();
    refused(
        &["dev", "--data-dir", "data", "--listen", &address],
        folder.path(),
        &["cannot listen", &address],
    );
}

#[test]
fn migrating_twice_changes_nothing() {
    let folder = TempFolder::new();
    let migrate = || {
        let output = run(&["migrate", "--data-dir", "data"], folder.path());
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let (first, second) = (migrate(), migrate());
    assert!(first.lines().any(|line| line.starts_with("ran ")), "{first}");
    assert_eq!(second.lines().count(), 1, "{second}");
    assert!(second.contains("at the newest schema"), "{second}");
    assert!(folder.path().join("data/driftline.db").is_file());
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts")
}

#[test]
fn dev_says_where_it_listens_and_ends_when_told() {
    let folder = TempFolder::new();
    let arguments = ["dev", "--listen", "127.0.0.1:0", "--data-dir", "data"];
    let mut server = Process::start(command(&arguments, folder.path()).stderr(Stdio::null()));
    let first = server.line().expect("a line");
    let port = first.strip_prefix("listening on http://127.0.0.1:").expect("the address comes first");
    let port: u16 = port.parse().expect("a port and nothing behind it");
    assert_ne!(port, 0);

    // The token that is shown is one, and both commands can be pasted.
    let mut token = None;
    while token.is_none() {
        let line = server.line().expect("a token is shown");
        token = line.trim().strip_prefix("TOKEN=").map(str::to_owned);
    }
    let token = token.expect("it was found");
    assert_eq!(claims(&token)["tenant"], "default");
    let address = ([127, 0, 0, 1], port).into();
    let runtime = runtime();
    let ready = runtime.block_on(Request::get("/ready").send(address));
    assert_eq!((ready.status, &ready.json()["status"]), (200, &json!("ready")));
    let item = json!({"op_id": "hello-1", "n": 1, "kind": "note", "id": "n-1", "op": "create", "fields": {"text": "hello"}});
    let push = Request::post("/api/v1/sync?device_id=phone-1", &json!({"batch": [item]})).bearer(&token);
    assert_eq!(runtime.block_on(push.send(address)).json()["ack"]["synced"], 1);

    // With a device connected it says goodbye and ends by itself.
    let mut device = runtime.block_on(async {
        let path = format!("/ws/mobile/sync?device_id=phone-2&token={token}");
        let mut socket = Socket::connect(address, &path).await;
        socket.expect("connection_established").await;
        socket
    });
    server.signal("TERM");
    let (said, close) = runtime.block_on(device.until_end());
    assert_eq!((&said.last().expect("a goodbye")["type"], close), (&json!("server_draining"), 1012));
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn dev_names_the_kinds_that_it_accepts() {
    let folder = TempFolder::new();
    let kinds = "[server]\nallow_undeclared = false\n[[kind]]\nname = \"case\"\n[[kind]]\nname = \"note\"\n";
    std::fs::write(folder.path().join("c.toml"), kinds).expect("writable");
    for (config, accepted) in [(&[][..], "any kind"), (&["--config", "c.toml"][..], "case, note")] {
        let arguments = [&["dev", "--listen", "127.0.0.1:0", "--data-dir", "data"], config].concat();
        let mut server = Process::start(command(&arguments, folder.path()).stderr(Stdio::null()));
        server.line().expect("the address");
        let line = server.line().expect("a line");
        assert!(line.ends_with(&format!("records: {accepted}")), "{line}");
        server.signal("TERM");
        assert_eq!(server.wait().code(), Some(0));
    }
}

#[test]
fn what_was_answered_outlives_the_process() {
    let mut server = Server::with(Path::new(PROGRAM), &[]);
    let token = server.token(&TokenFor { tenant: "t1", sub: "u1", device_id: "d1", ..TokenFor::default() });
    let runtime = runtime();
    let item = json!({"op_id": "a", "n": 1, "kind": "note", "id": "n-1", "op": "create", "fields": {"text": "kept"}});
    let push = Request::post("/api/v1/sync", &json!({"batch": [item]})).bearer(&token);
    let read = Request::get("/api/v1/records/note/n-1").bearer(&token);
    let answer = runtime.block_on(push.send(server.address())).json();
    assert_eq!(answer["ack"]["results"][0]["code"], "applied", "{answer}");

    for round in 0..2 {
        if round == 0 {
            server.kill9();
        } else {
            assert_eq!(server.terminate().code(), Some(0), "{}", server.log());
        }
        server.restart();
        let record = runtime.block_on(read.send(server.address()));
        assert_eq!(record.json()["fields"], json!({"text": "kept"}), "{}", server.log());
        let again = runtime.block_on(push.send(server.address())).json();
        assert_eq!(again["ack"]["results"][0]["duplicate"], true, "{again}");
    }
}

#[test]
fn the_log_holds_no_tokens_and_no_payloads() {
    let folder = TempFolder::new();
    let log = folder.path().join("log");
    let arguments = ["dev", "--listen", "127.0.0.1:0", "--data-dir", "data"];
    let stderr = std::fs::File::create(&log).expect("writable");
    let mut server =
        Process::start(command(&arguments, folder.path()).env("DRIFTLINE_LOG", "debug").stderr(stderr));
    let line = server.line().expect("a line");
    let address = line.strip_prefix("listening on http://").expect("the address comes first");
    let address = address.parse().expect("an address");
    let token = text(&run(&["token", "--data-dir", "data", "--sub", "u"], folder.path()).stdout);
    let token = token.trim();
    let item = json!({"op_id": "a", "n": 1, "kind": "note", "id": "n-1", "op": "create", "fields": {"text": "sesame"}});
    runtime().block_on(async {
        let body = json!({"batch": [item]});
        let push = Request::post(&format!("/api/v1/sync?device_id=d&token={token}"), &body);
        assert_eq!(push.send(address).await.status, 200);
        let unread = Request::post("/api/v1/sync", &json!(["sesame"])).bearer(token);
        assert_eq!(unread.send(address).await.status, 400);
        let path = format!("/ws/mobile/sync?device_id=e&token={token}");
        let mut socket = Socket::connect(address, &path).await;
        socket.expect("connection_established").await;
        socket.ask(&json!({"type": "ping", "id": "m-1", "note": "sesame"}), "pong").await;
        socket.ask(&json!({"type": "sesame"}), "error").await;
        let nobody = "/ws/mobile/sync?device_id=e&token=sesame";
        Socket::connect(address, nobody).await.until_error().await;
    });
    server.signal("TERM");
    assert_eq!(server.wait().code(), Some(0));
    let log = std::fs::read_to_string(&log).expect("a log");
    for wanted in ["connected", "disconnected", "m-1", "UNAUTHORIZED", "SIGTERM"] {
        assert!(log.contains(wanted), "{wanted} is not in the log:\n{log}");
    }
    for secret in ["sesame", token] {
        assert!(!log.contains(secret), "{secret} is in the log:\n{log}");
    }
}
