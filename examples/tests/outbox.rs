//! Events that other programs publish from the database: exactly those of committed transactions, each once, on whichever
//! node somebody listens.

mod support;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;

use driftline_testkit::http::{Request, soon};
use driftline_testkit::postgres::Cluster;
use driftline_testkit::server::{Server, TokenFor, program};
use driftline_testkit::socket::Socket;
use serde_json::json;
use support::Deployment;
use support::feed::{Resume, Signer, Subscriber};
use support::programs::{fed, python, script, sql};
use tokio::task::JoinSet;

/// Events of each program.
const EVENTS: u64 = 1_000;
/// Events of one transaction; every seventh transaction is rolled back.
const TRANSACTION: u64 = 10;
const CADETS: u64 = 3;

fn file() -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("deployments/training-records.toml");
    file.to_str().expect("the path is text").to_owned()
}

fn is_committed(n: u64) -> bool {
    !(n / TRANSACTION).is_multiple_of(7)
}

/// Transactions of events `from` and later, of which some are rolled back.
fn transactions(from: u64) -> String {
    let mut text = String::new();
    for n in from..from + EVENTS {
        if n.is_multiple_of(TRANSACTION) {
            text.push_str("BEGIN;\n");
        }
        text.push_str(&format!(
            "INSERT INTO sync_events (tenant, event_type, cadet_id, payload) \
             VALUES ('school', 'storm', '{}', '{{\"n\":{n},\"z\":0}}');\n",
            n % CADETS
        ));
        if n % TRANSACTION == TRANSACTION - 1 {
            text.push_str(if is_committed(n) { "COMMIT;\n" } else { "ROLLBACK;\n" });
        }
    }
    text
}

/// The row behind all others.
fn last(n: u64) -> String {
    format!(
        "INSERT INTO sync_events (tenant, event_type, topic, payload) \
         VALUES ('school', 'storm', 'all', '{{\"n\":{n},\"z\":0}}');"
    )
}

/// Has cadets listen while rows come, and checks what each of them got.
async fn delivered<S: Send + 'static>(
    listens: SocketAddr,
    tokens: Vec<String>,
    all: u64,
    insert: impl FnOnce() -> S + Send + 'static,
) {
    let mut cadets = Vec::new();
    for token in tokens {
        let mut cadet = Subscriber::new(token, Resume::Query);
        let socket = cadet.connect(listens).await;
        cadets.push((cadet, socket));
    }
    let inserting = tokio::task::spawn_blocking(insert);
    let mut reading = JoinSet::new();
    for (number, (mut cadet, mut socket)) in (0_u64..).zip(cadets) {
        // The rows take as long as they take; each event comes in time after the one before.
        reading.spawn(async move {
            cadet.read_until(&mut socket, all).await;
            (number, cadet)
        });
    }
    while let Some(read) = reading.join_next().await {
        let (number, cadet) = read.expect("the last event comes");
        let mut expected: BTreeSet<u64> =
            (0..all).filter(|n| is_committed(*n) && n % CADETS == number).collect();
        expected.insert(all);
        assert_eq!(cadet.numbers(), expected, "cadet {number}");
        assert_eq!(cadet.repeated, 0);
    }
    // Servers live until everybody has read.
    drop(inserting.await.expect("all rows are in"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exactly_what_other_programs_commit_is_delivered() {
    let server = Server::with(&program(), &["--config", &file(), "--limits", "off"]);
    let signer = Signer::of(&server);
    let tokens = (0..CADETS)
        .map(|cadet| signer.token("school", &format!("c{cadet}"), &["cadet"], &json!({"cadet_id": cadet})))
        .collect();
    let address = server.address();
    // Python brings a driver for SQLite alone.
    let sqlite = server.store_url().is_none();
    let all = if sqlite { 2 * EVENTS } else { EVENTS };
    delivered(address, tokens, all, move || {
        let file = server.data_dir().join("driftline.db");
        let insert = move || {
            let output = fed(python().arg(script("insert.py")).arg(file), &transactions(EVENTS));
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        };
        let beside = sqlite.then(|| std::thread::spawn(insert));
        sql(&server, &transactions(0));
        if let Some(beside) = beside {
            beside.join().expect("Python inserted");
        }
        sql(&server, &last(all));
        let waiting = sql(&server, "SELECT count(*) FROM sync_events WHERE error IS NOT NULL;");
        assert_eq!(waiting, "0");
        server
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_reach_those_who_listen_on_another_node() {
    let database = Cluster::shared().empty_database();
    let (url, file) = (database.url(), file());
    let start = || Server::on(&url, &["--config", &file, "--limits", "off"]);
    let (one, other) = (start(), start());
    let token = |cadet: u64| {
        let (sub, claim) = (format!("c{cadet}"), format!("cadet_id={cadet}"));
        let claims = ["approved=true", &claim];
        one.token(&TokenFor { tenant: "school", sub: &sub, role: "cadet", claims: &claims, device_id: "" })
    };
    let (tokens, address) = ((0..CADETS).map(token).collect(), other.address());
    delivered(address, tokens, EVENTS, move || {
        sql(&one, &transactions(0));
        sql(&one, &last(EVENTS));
        // A function of the database does the same.
        let id = sql(&one, "SELECT driftline_publish('school', 'all', 'storm', '{\"n\": 0}');");
        assert!(id.parse::<u64>().is_ok_and(|id| id > EVENTS / 2), "{id}");
        (one, other)
    })
    .await;
    drop(database);
}

#[tokio::test]
async fn the_outbox_is_drained_by_hand_where_no_server_does_it() {
    let mut town = Deployment::start_with("training-records.toml", &[("enabled = true", "enabled = false")]);
    let root = town.person("school", "root", "admin", &["approved=true"]);
    let cadet = town.person("school", "c1", "cadet", &["approved=true", "cadet_id=1"]);
    let rows = "INSERT INTO sync_events (tenant, event_type, cadet_id, payload) VALUES \
                ('school', 'note', '1', '{\"a\":1}'), ('school', 'note', '1', 'no object'), ('school', NULL, '1', '{}');";
    sql(town.server(), rows);
    let drain = Request::post("/api/v1/outbox/drain", &json!({}));
    assert_eq!(town.ask(&cadet, drain.clone()).await.status, 403);
    let answer = town.ask(&root, drain).await;
    assert_eq!((answer.status, answer.json()), (200, json!({"processed": 3, "failed": 2})));
    let errors = sql(town.server(), "SELECT error FROM sync_events WHERE error IS NOT NULL ORDER BY id;");
    let errors: Vec<&str> = errors.lines().collect();
    assert!(errors.len() == 2 && errors[0].starts_with("payload: ") && errors[1].starts_with("event_type: "));

    sql(
        town.server(),
        "INSERT INTO sync_events (tenant, event_type, cadet_id) VALUES ('school', 'note', '1');",
    );
    let on_postgres = town.server().store_url().is_some();
    let beside = town.drain_command().output().expect("it runs");
    let said = String::from_utf8_lossy(&beside.stderr).into_owned();
    if on_postgres {
        assert_eq!(
            String::from_utf8_lossy(&beside.stdout).trim(),
            "{\"processed\":1,\"failed\":0}",
            "{said}"
        );
    } else {
        assert!(!beside.status.success() && said.contains("POST /api/v1/outbox/drain"), "{said}");
        town.while_stopped(|town| {
            let output = town.drain_command().output().expect("it runs");
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(
                String::from_utf8_lossy(&output.stdout).trim(),
                "{\"processed\":1,\"failed\":0}",
                "{said}"
            );
        });
    }
}

#[tokio::test]
async fn a_trigger_publishes_the_changes_of_another_programs_table() {
    let server = Server::with(&program(), &["--config", &file()]);
    let signer = Signer::of(&server);
    let token = signer.token("school", "c1", &["cadet"], &json!({"cadet_id": 1}));
    let dialect = if server.store_url().is_some() { "postgres" } else { "sqlite" };
    let printed = std::process::Command::new(program())
        .args(["outbox", "trigger", "--table", "grades", "--type", "storm", "--topic", "cadet_{cadet_id}"])
        .args(["--column", "n", "--column", "z", "--claim", "cadet_id", "--tenant", "school"])
        .args(["--dialect", dialect])
        .output()
        .expect("it runs");
    assert!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
    let trigger = String::from_utf8(printed.stdout).expect("text");
    sql(&server, "CREATE TABLE grades (id INTEGER PRIMARY KEY, cadet_id TEXT, n INTEGER, z INTEGER);");
    let mut cadet = Subscriber::new(token, Resume::Query);
    let mut socket = cadet.connect(server.address()).await;
    let changes = "INSERT INTO grades VALUES (1, '1', 10, 0), (2, '2', 20, 0);\n\
                   UPDATE grades SET n = 11 WHERE id = 1;\nUPDATE grades SET cadet_id = '1' WHERE id = 1;\n\
                   BEGIN;\nUPDATE grades SET n = 12 WHERE id = 1;\nROLLBACK;\n\
                   UPDATE grades SET n = 13 WHERE id = 1;\n";
    sql(&server, &format!("{trigger}{changes}"));
    soon("the last change", cadet.read_until(&mut socket, 13)).await;
    assert_eq!(cadet.numbers(), BTreeSet::from([10, 11, 13]));
}

#[tokio::test]
async fn what_concerns_a_device_or_a_cadet_reaches_nobody_else() {
    let town = Deployment::start("training-records.toml");
    let person = |sub: &str, cadet: &str| {
        town.person("school", sub, "cadet", &["approved=true", &format!("cadet_id={cadet}")])
    };
    let (ada, ben) = (person("ada", "1"), person("ben", "2"));
    let own = json!({"device_id": "d1"});
    assert_eq!(town.ask(&ada, Request::post("/api/v1/devices", &own)).await.status, 201);
    let path = |person: &support::Person, device: &str| {
        format!("/ws/mobile/system?device_id={device}&token={}", person.token())
    };
    let mut phones = Vec::new();
    for (person, device) in [(&ada, "d1"), (&ben, "d2")] {
        let mut phone = Socket::connect(town.address(), &path(person, device)).await;
        phone.expect("connection_established").await;
        phones.push(phone);
    }
    sql(
        town.server(),
        "INSERT INTO sync_events (tenant, event_type, topic, cadet_id, payload) VALUES \
         ('school', 'device_action', 'device_d1', NULL, '{\"action\":\"lock\"}'), \
         ('school', 'notification', NULL, '1', '{\"id\":\"n1\",\"title\":\"to ada\"}'), \
         ('school', 'end', 'all', NULL, '{}');",
    );
    let mut told = Vec::new();
    for (phone, device) in phones.iter_mut().zip(["d1", "d2"]) {
        let mut kinds = Vec::new();
        loop {
            let event = phone.receive().await;
            let kind = event["type"].as_str().expect("a type").to_owned();
            if kind == "end" {
                break;
            }
            // That it came itself a phone is told now or later.
            if kind != "device_connected" || event["data"]["device_id"] != device {
                kinds.push(kind);
            }
        }
        told.push(kinds);
    }
    assert_eq!(told, [vec!["device_action", "notification"], vec![]]);
    assert_eq!(town.list(&ben, "notifications").await, [] as [serde_json::Value; 0]);
}
