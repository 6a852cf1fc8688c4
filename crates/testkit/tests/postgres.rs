//! A PostgreSQL for tests starts, dies, comes back and leaves nothing behind.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use driftline_testkit::postgres::{Cluster, Options, Template, command};
use driftline_testkit::proxy::{Direction, Proxy};

/// Looks until something holds.
fn soon(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..2_000 {
        if holds() {
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
    panic!("{what} did not come about");
}

fn filled(url: &str) {
    let psql =
        command("psql").args([url, "-q", "-c", "CREATE TABLE t (v int); INSERT INTO t VALUES (1)"]).status();
    assert!(psql.expect("psql runs").success());
}

static FILLED: AtomicU32 = AtomicU32::new(0);

#[test]
fn every_test_gets_its_own_copy_of_a_template_that_is_filled_once() {
    let template = || {
        Template::new("copies", |url| {
            FILLED.fetch_add(1, Ordering::SeqCst);
            filled(url);
        })
    };
    let copies: Vec<_> = thread::scope(|scope| {
        let copy = || Cluster::shared().database(&template());
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(copy)).collect();
        threads.into_iter().map(|thread| thread.join().expect("a copy")).collect()
    });
    assert_eq!(FILLED.load(Ordering::SeqCst), 1);
    copies[0].sql("INSERT INTO t VALUES (2)");
    assert_eq!(copies[0].sql("SELECT v, v + 1 FROM t ORDER BY v"), "1|2\n2|3");
    assert_eq!(copies[1].sql("SELECT v FROM t"), "1");
    let names: Vec<String> = copies.iter().map(|copy| copy.name().to_owned()).collect();
    drop(copies);
    for name in names {
        let left = format!("SELECT count(*) FROM pg_database WHERE datname = '{name}'");
        assert_eq!(Cluster::shared().sql(&left), "0", "{name} is dropped");
    }
}

#[test]
fn a_template_that_failed_is_filled_again() {
    let cluster = Cluster::shared();
    let fails = Template::new("second_try", |url| {
        filled(url);
        panic!("on purpose");
    });
    let failed = thread::scope(|scope| scope.spawn(|| drop(cluster.database(&fails))).join());
    assert!(failed.is_err());
    assert_eq!(cluster.database(&Template::new("second_try", filled)).sql("SELECT v FROM t"), "1");
}

#[test]
fn text_sorts_by_language_unless_the_schema_says_otherwise() {
    let database = Cluster::shared().empty_database();
    database
        .sql("CREATE TABLE t (a text, b text COLLATE \"C\"); INSERT INTO t VALUES ('a', 'a'), ('B', 'B')");
    assert_eq!(database.sql("SELECT b FROM t ORDER BY b"), "B\na");
    if database.sql("SHOW server_version_num").as_str() >= "150000" {
        assert_eq!(database.sql("SELECT a FROM t ORDER BY a"), "a\nB");
    }
}

#[test]
fn what_is_committed_survives_every_end() {
    let mut cluster = Cluster::own(&Options::default());
    let database = cluster.empty_database();
    let url = database.url();
    database.sql("CREATE TABLE t (v int)");
    let ends = [Cluster::stop_fast, Cluster::kill_immediate, Cluster::kill9];
    for (number, end) in ends.iter().enumerate() {
        database.sql(&format!("INSERT INTO t VALUES ({number})"));
        end(&mut cluster);
        assert!(TcpStream::connect(cluster.address()).is_err(), "it is down");
        cluster.start();
        assert_eq!(database.sql("SELECT count(*) FROM t"), (number + 1).to_string());
    }
    assert_eq!(database.url(), url);
    assert!(cluster.log().contains("automatic recovery in progress"), "{}", cluster.log());
}

#[test]
fn a_killed_server_comes_back_once_its_connections_are_gone() {
    let mut cluster = Cluster::own(&Options::default());
    // A process that is busy does not notice that the first one died.
    let busy = "DO $$ BEGIN LOOP PERFORM 1; \
                EXIT WHEN clock_timestamp() > statement_timestamp() + interval '3 s'; END LOOP; END $$";
    let url = format!("postgres://driftline@{}/postgres?application_name=busy", cluster.address());
    let mut client =
        command("psql").args([&url, "-c", busy]).stderr(Stdio::null()).spawn().expect("psql runs");
    let count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'busy' AND state = 'active'";
    soon("the busy process", || cluster.sql(count) == "1");
    cluster.kill9();
    cluster.start();
    assert_eq!(cluster.sql(count), "0");
    // It had its answer before the new server started, or lost its connection: nothing of the old server goes on.
    client.wait().expect("it is ours");
    assert!(!cluster.log().contains("still in use"), "{}", cluster.log());
}

#[test]
fn a_paused_server_keeps_its_connections_and_answers_later() {
    let mut cluster = Cluster::own(&Options::default());
    let database = cluster.empty_database();
    database.sql("CREATE TABLE t (v int)");
    cluster.pause();
    let mut client = command("psql")
        .args([&database.url(), "-A", "-t", "-c", "INSERT INTO t VALUES (1) RETURNING v"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("psql runs");
    let states = |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it is there");
    let first = std::fs::read_to_string(cluster.data().join("postmaster.pid")).expect("it is there");
    assert!(states(first.lines().next().expect("a number")).contains(") T "));
    assert!(client.try_wait().expect("it is ours").is_none());
    cluster.resume();
    let mut answer = String::new();
    client.stdout.take().expect("it is piped").read_to_string(&mut answer).expect("text");
    assert_eq!(answer.lines().next(), Some("1"));
    assert!(client.wait().expect("it is ours").success());
}

#[test]
fn a_standby_follows_and_takes_over_on_a_new_timeline() {
    let mut primary = Cluster::own(&Options::default());
    let database = primary.empty_database();
    let standby = Cluster::standby_of(&primary);
    let timeline = "SELECT timeline_id FROM pg_control_checkpoint()";
    database.sql("CREATE TABLE t (v int); INSERT INTO t VALUES (1)");
    let count = "SELECT count(*) FROM pg_tables WHERE tablename = 't'";
    soon("the table on the standby", || standby.sql_in(database.name(), count) == "1");
    assert_eq!(standby.sql("SELECT pg_is_in_recovery()"), "t");
    let before = primary.sql(timeline);
    primary.kill9();
    standby.promote();
    standby.sql_in(database.name(), "INSERT INTO t VALUES (2)");
    assert_eq!(standby.sql_in(database.name(), "SELECT sum(v) FROM t"), "3");
    standby.sql("CHECKPOINT");
    assert_ne!(standby.sql(timeline), before);
}

#[test]
fn a_restore_goes_back_to_the_backup_on_a_new_timeline() {
    let mut cluster = Cluster::own(&Options::default());
    let database = cluster.empty_database();
    let timeline = "SELECT timeline_id FROM pg_control_checkpoint()";
    database.sql("CREATE TABLE t (v int); INSERT INTO t VALUES (1)");
    let before = cluster.sql(timeline);
    let backup = cluster.backup();
    database.sql("INSERT INTO t VALUES (2)");
    for _ in 0..2 {
        cluster.restore(&backup);
        assert_eq!(database.sql("SELECT v FROM t"), "1");
        database.sql("INSERT INTO t VALUES (3); CHECKPOINT");
        assert_ne!(cluster.sql(timeline), before);
    }
}

#[test]
fn behind_a_proxy_an_answer_is_lost_and_the_change_is_there() {
    let database = Cluster::shared().empty_database();
    database.sql("CREATE TABLE t (v int)");
    let proxy = Proxy::start(Cluster::shared().address());
    let insert = || {
        let url = database.url_through(&[proxy.address()]);
        let output = command("psql").args([&url, "-q", "-c", "INSERT INTO t VALUES (1)"]).output();
        output.expect("psql runs").status.success()
    };
    assert!(insert());
    // The last message but the word that it is ready says that the row is in: both are lost.
    let answers = proxy.passed(Direction::ToClient);
    proxy.cut_after(answers - 20, Direction::ToClient);
    assert!(!insert());
    assert_eq!((proxy.cuts(), database.sql("SELECT count(*) FROM t").as_str()), (1, "2"));
    // Cut before the end of the request, there is nothing to lose.
    proxy.cut_after(20, Direction::ToServer);
    assert!(!insert());
    assert_eq!((proxy.cuts(), database.sql("SELECT count(*) FROM t").as_str()), (2, "2"));
}

#[test]
fn with_tls_only_its_own_authority_vouches_for_the_server() {
    let cluster = Cluster::own(&Options { tls: true, ..Options::default() });
    let database = cluster.empty_database();
    assert_eq!(database.sql("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"), "t");
    let asks = |parameters: &str| {
        let url = format!("{}?{parameters}", database.url());
        let output = command("psql").args([&url, "-A", "-t", "-c", "SELECT 1"]).output().expect("psql runs");
        output.status.success()
    };
    let verified = |ca: &Path| format!("sslmode=verify-full&sslrootcert={}", ca.display());
    assert!(asks(&verified(cluster.ca())));
    assert!(!asks(&verified(cluster.other_ca())));
    assert!(!asks("sslmode=disable"));
}

/// What the test starts as a process of its own: it says where its cluster is and waits to be killed.
fn live_with_a_cluster() -> ! {
    let shared = thread::spawn(Cluster::shared).join().expect("it starts");
    assert_eq!(shared.sql("SELECT 1"), "1", "it outlives the thread that started it");
    println!("\ncluster {}", shared.data().display());
    let _ = std::io::stdin().read(&mut [0]);
    std::process::abort();
}

#[test]
fn a_cluster_ends_with_its_process() {
    if std::env::var_os("TESTKIT_IS_KILLED").is_some() {
        live_with_a_cluster();
    }
    let mut command = Command::new(std::env::current_exe().expect("a test knows where it is"));
    command.args(["--exact", "a_cluster_ends_with_its_process", "--nocapture"]).env("TESTKIT_IS_KILLED", "1");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
    let lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
    let data = lines.map_while(Result::ok).find_map(|line| Some(line.strip_prefix("cluster ")?.to_owned()));
    let data = PathBuf::from(data.expect("it says where its cluster is"));
    let status = std::fs::read_to_string(data.join("postmaster.pid")).expect("it runs");
    let server = Path::new("/proc").join(status.lines().next().expect("a number"));
    child.kill().expect("it is ours");
    child.wait().expect("it is ours");
    soon("the end of the server", || !server.exists());
    soon("the end of the folder", || !data.parent().expect("a parent").exists());
}
