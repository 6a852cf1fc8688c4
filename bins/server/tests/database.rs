//! A server and the troubles of its database.

mod support;

use std::process::Command;

use driftline_testkit::TempFolder;
use driftline_testkit::http::{Request, soon};
use driftline_testkit::postgres::{Cluster, Options, command};
use serde_json::json;
use support::{Node, SYNC_ID, until};

/// The documented rights: a role that owns its database, and nothing else.
#[tokio::test]
async fn a_role_that_owns_its_database_is_enough() {
    let (folder, cluster) = (TempFolder::new(), Cluster::own(&Options::default()));
    cluster.sql("CREATE ROLE app LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE");
    let database = cluster.empty_database();
    cluster.sql(&format!("ALTER DATABASE {} OWNER TO app", database.name()));
    let url = database.url().replace("driftline@", "app@");
    let node = Node::start(folder.path(), &url);
    node.pushed("t", "writer", 1, "first").await;
    assert!(node.is_ready().await);
    assert_eq!(database.sql("SELECT count(*) FROM records"), "1");
    assert_eq!(database.sql("SELECT tableowner FROM pg_tables WHERE tablename = 'records'"), "app");
}

#[test]
fn the_doctor_looks_at_the_database_and_changes_nothing() {
    let (folder, cluster) = (TempFolder::new(), Cluster::own(&Options { fsync: true, ..Options::default() }));
    let database = cluster.empty_database();
    let run = |arguments: &[&str], store: &str| {
        let config =
            format!("[auth]\nsecret = \"a secret of enough bytes\"\n[store]\nconnect_ms = 20000\n{store}\n");
        std::fs::write(folder.path().join("c.toml"), config).expect("the folder is writable");
        let mut command = Command::new(env!("CARGO_BIN_EXE_driftline-server"));
        command.args(arguments).args(["--config", "c.toml"]).current_dir(folder.path());
        let output = command.env("DRIFTLINE_STORE_URL", database.url()).output().expect("the program runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let check = |store: &str, wanted: &[&str]| {
        let said = run(&["doctor"], store);
        for wanted in wanted {
            assert!(said.contains(wanted), "{wanted:?} is not in\n{said}");
        }
    };
    check("", &["ok   database: PostgreSQL at 127.0.0.1", "note schema: ", "_base, ", "still to run"]);
    assert_eq!(database.sql("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"), "0");
    assert!(run(&["migrate"], "").contains("is at the newest schema"));
    check(
        "",
        &["ok   schema: up to date", "note durability: no standby", "ok   connections: one server takes 16"],
    );
    check("failover = \"lossless\"", &["bad  durability: store.failover is lossless"]);
    check("read_connections = 5000", &["bad  connections: "]);
    assert!(!folder.path().join("driftline-data").exists(), "the embedded database is not looked for");
}

/// The standby gets nothing of what is written last, and is promoted when the primary dies.
#[tokio::test]
async fn after_a_failover_that_lost_commits_devices_come_again_under_a_new_epoch() {
    let folder = TempFolder::new();
    let mut primary = Cluster::own(&Options::default());
    let database = primary.empty_database();
    let standby = Cluster::standby_of(&primary);
    let node = Node::start(folder.path(), &database.url_through(&[primary.address(), standby.address()]));
    let mut phone = node.phone("t", "phone").await;
    node.pushed("t", "writer", 1, "kept").await;
    phone.hears_of("kept").await;
    let tables =
        || standby.sql_in(database.name(), "SELECT count(*) FROM pg_tables WHERE tablename = 'records'");
    until("the standby to have the tables", async || tables() == "1").await;
    let count = || standby.sql_in(database.name(), "SELECT count(*) FROM records");
    until("the standby to follow", async || count() == "1").await;

    for (setting, value) in [("primary_conninfo", "''"), ("restore_command", "''")] {
        let port = standby.address().port().to_string();
        let sql = format!("ALTER SYSTEM SET {setting} = {value}");
        let mut psql = command("psql");
        psql.args(["-h", "127.0.0.1", "-p", &port, "-U", "driftline", "-d", "postgres", "-c", &sql]);
        assert!(psql.output().expect("psql runs").status.success());
    }
    standby.sql("SELECT pg_reload_conf()");
    let receivers = || standby.sql("SELECT count(*) FROM pg_stat_wal_receiver");
    until("the standby to be cut off", async || receivers() == "0").await;
    node.pushed("t", "writer", 2, "lost").await;
    phone.hears_of("lost").await;
    primary.kill_immediate();
    standby.promote();

    let (messages, close) = soon("the end of the session", phone.socket.until_end()).await;
    let last = messages.last().expect("it is told why");
    assert_eq!((&last["type"], close), (&json!("server_draining"), 1012), "{messages:?}");
    until("to be ready", async || node.is_ready().await).await;
    let mut again = node.phone("t", "phone").await;
    assert_ne!(again.epoch, phone.epoch);
    assert_eq!(again.seq, 1, "the second commit is gone");
    node.pushed("t", "other", 1, "later").await;
    again.hears_of("later").await;
    // Whoever was answered before sends again what the database has forgotten.
    let resent = node.push("t", "writer", 2, "lost").await.json();
    assert_eq!(resent["ack"]["results"][0]["code"], "applied", "{resent}");
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
