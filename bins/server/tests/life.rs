//! Backups, restores and the doctor, as an operator meets them.

use std::fs;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use driftline_engine::Store as _;
use driftline_storage::{SqliteOptions, SqliteStore};
use driftline_testkit::http::Request;
use driftline_testkit::server::{Process, Server, TokenFor};
use driftline_testkit::{Author, TempFolder, World, block_on, create};
use serde_json::json;

const PROGRAM: &str = env!("CARGO_BIN_EXE_driftline-server");

/// A command that sees nothing of the caller's environment but where programs are.
fn command(arguments: &[&str], folder: &Path) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(arguments).current_dir(folder).stdin(Stdio::null());
    for name in
        ["DRIFTLINE_AUTH_SECRET", "DRIFTLINE_SERVER_LISTEN", "DRIFTLINE_SERVER_DATA_DIR", "DRIFTLINE_LOG"]
    {
        command.env_remove(name);
    }
    command
}

fn run(arguments: &[&str], folder: &Path) -> Output {
    command(arguments, folder).output().expect("the program runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a command that must succeed, and returns what it prints.
#[track_caller]
fn done(arguments: &[&str], folder: &Path) -> String {
    let output = run(arguments, folder);
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// Runs a command that must fail with 1, and returns what it prints to both.
#[track_caller]
fn refused(arguments: &[&str], folder: &Path) -> (String, String) {
    let output = run(arguments, folder);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", text(&output.stderr));
    assert!(!text(&output.stderr).contains("panicked"), "{arguments:?}: {}", text(&output.stderr));
    (text(&output.stdout), text(&output.stderr))
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts")
}

/// Makes a record on a running server.
fn push(server: &Server, id: &str) {
    let token = server.token(&TokenFor { sub: "ada", device_id: "d1", ..TokenFor::default() });
    let item = json!({"op_id": id, "kind": "note", "id": id, "op": "create", "fields": {"text": "kept"}});
    let push = Request::post("/api/v1/sync", &json!({"batch": [item]})).bearer(&token);
    let answer = runtime().block_on(push.send(server.address())).json();
    assert_eq!(answer["ack"]["results"][0]["code"], "applied", "{answer}");
}

fn has(server: &Server, id: &str) -> bool {
    let token = server.token(&TokenFor { sub: "ada", device_id: "d1", ..TokenFor::default() });
    let read = Request::get(&format!("/api/v1/records/note/{id}")).bearer(&token);
    runtime().block_on(read.send(server.address())).status == 200
}

/// Makes a database in a folder, of records as large as wanted; the clock of its devices is the world's.
fn fill(folder: &Path, records: usize, bytes: usize, world: &World) {
    let store = SqliteStore::open(SqliteOptions {
        file: folder.join("driftline.db"),
        clock: world.clock.clone(),
        random: world.random.clone(),
        listeners: world.listeners.clone(),
        fatal: Box::new(|reason| panic!("{reason}")),
        skew_ms_max: 60_000,
        record_bytes: 1 << 20,
        readers: 1,
        outbox_claims: Vec::new(),
    })
    .expect("the store opens");
    let ada = Author::join(&store, "acme", "ada", "phone");
    let fields = format!(r#"{{"a":"{}"}}"#, "x".repeat(bytes));
    for at in 0..records {
        block_on(store.commit(ada.batch([create(&format!("x{at}"), &fields)]))).expect("a commit");
    }
    block_on(store.probe()).expect("it writes");
}

#[test]
fn a_running_server_is_backed_up_and_a_stopped_one_restored() {
    let mut server = Server::with(Path::new(PROGRAM), &[]);
    push(&server, "before");
    let folder = TempFolder::new();
    let data = server.data_dir().to_str().expect("UTF-8").to_owned();
    let told = done(&["backup", "kept.db", "--data-dir", &data], folder.path());
    assert_eq!(told.lines().count(), 1, "{told}");
    assert!(
        told.starts_with("kept.db holds ") && told.contains("tenants: 1, records: 1, highest seq: 1"),
        "{told}"
    );
    let (_, said) = refused(&["backup", "kept.db", "--data-dir", &data], folder.path());
    assert!(said.contains("kept.db exists already"), "{said}");
    push(&server, "after");

    let told = done(&["restore", "kept.db", "--check"], folder.path());
    assert!(told.starts_with("kept.db is whole and holds "), "{told}");
    // Neither a restore nor a second server gets at the data of a server that runs.
    for arguments in [
        &["restore", "kept.db", "--data-dir", &data][..],
        &["dev", "--listen", "127.0.0.1:0", "--data-dir", &data],
    ] {
        let (printed, said) = refused(arguments, folder.path());
        assert!(said.contains("driftline.db is in use: a server runs on this data folder"), "{said}");
        assert_eq!(printed, "");
    }
    assert!(has(&server, "after"));
    server.terminate();
    let told = done(&["restore", "kept.db", "--data-dir", &data], folder.path());
    for wanted in ["highest seq: 1", "kept as", "driftline.db.replaced-1", "new epoch"] {
        assert!(told.contains(wanted), "{wanted}: {told}");
    }
    server.restart();
    assert_eq!((has(&server, "before"), has(&server, "after")), (true, false), "{}", server.log());
    // A kill leaves no lock behind.
    server.kill9();
    server.restart();
    assert!(has(&server, "before"));
}

#[test]
fn a_damaged_backup_is_listed_and_refused() {
    let (folder, world) = (TempFolder::new(), World::new(1));
    fill(folder.path(), 20, 100, &world);
    done(&["backup", "kept.db", "--data-dir", "."], folder.path());
    let whole = fs::read(folder.path().join("kept.db")).expect("a file");
    for (name, bytes) in [
        ("cut.db", whole[..whole.len() / 2].to_vec()),
        (
            "flipped.db",
            whole.iter().enumerate().map(|(at, byte)| byte ^ u8::from(at == whole.len() / 2)).collect(),
        ),
        ("text.db", b"no database at all".repeat(100)),
    ] {
        fs::write(folder.path().join(name), bytes).expect("a file");
        for arguments in [&["restore", name, "--check"][..], &["restore", name, "--data-dir", "."]] {
            let (printed, said) = refused(arguments, folder.path());
            assert!(printed.lines().count() >= 1, "{name}");
            assert!(printed.lines().all(|line| line.starts_with("bad: ")), "{name}: {printed}");
            assert!(said.contains(&format!("{name} is not whole")), "{name}: {said}");
        }
    }
    done(&["restore", "kept.db", "--data-dir", "."], folder.path());
    let (_, said) = refused(&["backup", "other.db", "--data-dir", "nowhere"], folder.path());
    assert!(said.contains("cannot read nowhere/driftline.db"), "{said}");
    assert!(!folder.path().join("nowhere").exists());
}

/// What lies in a folder under names that begin so.
fn beginning(folder: &Path, prefix: &str) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder");
    let names = entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with(prefix)).collect()
}

#[test]
fn a_killed_backup_leaves_nothing_under_its_name() {
    let (folder, world) = (TempFolder::new(), World::new(1));
    fill(folder.path(), 120, 256 << 10, &world);
    let mut cut_short = 0;
    for round in 0..10 {
        let name = format!("kept-{round}.db");
        let mut backup = Process::start(
            command(&["backup", &name, "--data-dir", "."], folder.path()).stderr(Stdio::null()),
        );
        let (partial, target) = (format!("{name}.partial-{}", backup.pid()), folder.path().join(&name));
        let mut looks = 0;
        while beginning(folder.path(), &partial).is_empty() && !target.exists() {
            looks += 1;
            assert!(looks < 60_000, "it does not begin");
            std::thread::park_timeout(Duration::from_millis(1));
        }
        // A little later each time, so that every part of it is met.
        std::thread::park_timeout(Duration::from_millis(round * 5));
        backup.kill();
        if target.exists() {
            let name = target.to_str().expect("UTF-8");
            done(&["restore", name, "--check"], folder.path());
        } else {
            cut_short += 1;
        }
    }
    assert!(cut_short >= 2, "{cut_short} of 10 were cut short");
    done(&["backup", "kept.db", "--data-dir", "."], folder.path());
}

/// Runs the doctor on a configuration and returns its lines.
fn doctor(config: &str, folder: &Path) -> (Option<i32>, String) {
    fs::write(folder.join("c.toml"), config).expect("writable");
    let output = run(&["doctor", "--config", "c.toml", "--data-dir", "."], folder);
    (output.status.code(), text(&output.stdout))
}

/// A configuration of which nothing is bad: any free port, and as many connections as any machine has descriptors for.
const HEALTHY: &str = "[server]\nlisten = \"127.0.0.1:0\"\n[auth]\nsecret = \"k3JdP0sq8Zx1Vb7Mk3JdP0sq8Zx1Vb7M\"\n\
     [limits]\nconnections = 100\n";

#[test]
fn the_doctor_finds_nothing_where_nothing_is_wrong() {
    let (folder, world) = (TempFolder::new(), World::new(1));
    let (code, told) = doctor(HEALTHY, folder.path());
    assert_eq!(code, Some(0), "{told}");
    assert!(told.contains("note database: ./driftline.db does not exist yet"), "{told}");
    assert!(!folder.path().join("driftline.db").exists(), "it makes nothing");
    fill(folder.path(), 3, 10, &world);
    let (code, told) = doctor(HEALTHY, folder.path());
    assert_eq!(code, Some(0), "{told}");
    for about in [
        "configuration",
        "key",
        "data folder",
        "disk",
        "database",
        "integrity",
        "schema",
        "side file",
        "clock",
        "descriptors",
        "port",
    ] {
        let line = told.lines().find(|line| line[5..].starts_with(&format!("{about}: ")));
        assert!(line.is_some_and(|line| line.starts_with("ok   ")), "{about}: {told}");
    }
    // Beside a running server it says the same.
    let arguments = ["dev", "--listen", "127.0.0.1:0", "--data-dir", "."];
    let mut server = Process::start(command(&arguments, folder.path()).stderr(Stdio::null()));
    server.line().expect("it listens");
    let (code, told) = doctor(HEALTHY, folder.path());
    assert_eq!((code, told.contains("a server runs on it")), (Some(0), true), "{told}");
    server.signal("TERM");
    assert_eq!(server.wait().code(), Some(0));
}

/// Asserts that the doctor calls something bad, and says what to do.
#[track_caller]
fn found(config: &str, folder: &Path, about: &str, mend: &str) {
    let (code, told) = doctor(config, folder);
    assert_eq!(code, Some(1), "{about}: {told}");
    let line = told.split_once(&format!("bad  {about}: "));
    assert!(line.is_some_and(|(_, says)| says.contains(mend)), "{about}, {mend}: {told}");
}

#[test]
fn the_doctor_names_what_is_wrong_and_what_to_do() {
    let (folder, world) = (TempFolder::new(), World::new(1));
    let path = folder.path();
    fill(path, 3, 10, &world);
    found("[server]\nlissten = 1\n", path, "configuration", "lissten");
    found(&HEALTHY.replace("k3JdP0sq8Zx1Vb7Mk3JdP0sq8Zx1Vb7M", "0000000000000000"), path, "key", "random");
    found(&HEALTHY.replace("secret = ", "# "), path, "key", "set auth.secret");
    found(&HEALTHY.replace("= 100", "= 4000000000"), path, "descriptors", "ulimit -n 4000000064");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = taken.local_addr().expect("it is bound").to_string();
    found(&HEALTHY.replace("127.0.0.1:0", &address), path, "port", "server.listen");

    // A folder that is a file cannot be written by anybody.
    fs::write(path.join("file"), "").expect("a file");
    let output = run(&["doctor", "--data-dir", "file/data"], path);
    assert!(text(&output.stdout).contains("bad  data folder: "), "{}", text(&output.stdout));

    // The side file knows more than the database.
    fs::copy(path.join("driftline.db"), path.join("old.db")).expect("a copy");
    fill(path, 1, 10, &world);
    fs::copy(path.join("old.db"), path.join("driftline.db")).expect("a copy");
    found(HEALTHY, path, "side file", "put the newer file back");
    fs::write(path.join("driftline.db-marks"), "damaged").expect("a file");
    assert!(doctor(HEALTHY, path).1.contains("note side file: "), "a damaged one is worth a note");

    // The clock of this machine stands before what devices wrote.
    let late = TempFolder::new();
    world.clock.set(4_000_000_000_000);
    fill(late.path(), 1, 10, &world);
    found(HEALTHY, late.path(), "clock", "NTP");

    // Pages that do not fit together, and what is no database.
    let broken = TempFolder::new();
    fill(broken.path(), 200, 2000, &World::new(3));
    let file = broken.path().join("driftline.db");
    let last = file.metadata().expect("a file").len() / 4096 - 1;
    let mut bytes = fs::OpenOptions::new().write(true).open(&file).expect("writable");
    for page in last - 20..=last {
        bytes.seek(SeekFrom::Start(page * 4096)).expect("there is one");
        bytes.write_all(&[0xff; 16]).expect("writable");
    }
    drop(bytes);
    found(HEALTHY, broken.path(), "integrity", "restore a backup");
    fs::write(&file, "no database".repeat(1000)).expect("a file");
    found(HEALTHY, broken.path(), "database", "restore a backup");
}
