//! What a server under test is told about its store.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use driftline_testkit::TempFolder;
use driftline_testkit::postgres::Cluster;
use driftline_testkit::server::{Server, TokenFor};

/// Stands in for the server: it logs what it was told behind the address that a server prints.
const PROGRAM: &str = "#!/bin/sh
if [ \"$1\" = token ]; then echo \"token ${DRIFTLINE_AUTH_SECRET:-none}\"; exit; fi
echo \"${DRIFTLINE_STORE_URL:-none} ${DRIFTLINE_AUTH_SECRET:-none}\" >&2
echo listening on http://127.0.0.1:1
exec sleep 60
";

/// Runs a test of this file again, in a process with these variables, and returns what it wrote with [`tell`].
fn under(test: &str, variables: &[(&str, &str)]) -> Vec<String> {
    let folder = TempFolder::new();
    let program = folder.path().join("server");
    std::fs::write(&program, PROGRAM).expect("writable");
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("it is ours");
    let mut command = Command::new(std::env::current_exe().expect("a test knows where it is"));
    command.args(["--exact", test]).env("TESTKIT_TELLS", folder.path().join("told"));
    command.env("DRIFTLINE_SERVER", program).env_remove("DRIFTLINE_TEST_STORE");
    let output = command.envs(variables.iter().copied()).output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let told = std::fs::read_to_string(folder.path().join("told")).expect("it told something");
    told.lines().map(str::to_owned).collect()
}

/// Whether this process was started by [`under`].
fn is_under() -> bool {
    std::env::var_os("TESTKIT_TELLS").is_some()
}

fn tell(told: &str) {
    std::fs::write(std::env::var_os("TESTKIT_TELLS").expect("it is set"), told).expect("writable");
}

/// What a server was told in two starts. Its database is there for as long as the server.
fn start_twice() {
    let mut server = Server::start();
    server.restart();
    let told = server.log();
    let name = told.split(' ').next().and_then(|url| url.rsplit_once('/')).map(|(_, name)| name.to_owned());
    let databases = || {
        let name = name.as_ref()?;
        Some(Cluster::shared().sql(&format!("SELECT count(*) FROM pg_database WHERE datname = '{name}'")))
    };
    assert_eq!(databases().as_deref().unwrap_or("1"), "1");
    drop(server);
    assert_eq!(databases().as_deref().unwrap_or("0"), "0");
    tell(&told);
}

#[test]
fn a_server_gets_the_store_that_the_tests_are_run_for() {
    if is_under() {
        return start_twice();
    }
    let under =
        |variables: &[(&str, &str)]| under("a_server_gets_the_store_that_the_tests_are_run_for", variables);
    let elsewhere = ("DRIFTLINE_STORE_URL", "postgres://elsewhere/x");
    assert_eq!(under(&[elsewhere]), ["none none"; 2]);
    assert_eq!(under(&[("DRIFTLINE_TEST_STORE", "sqlite")]), ["none none"; 2]);
    let told = under(&[elsewhere, ("DRIFTLINE_TEST_STORE", "postgres")]);
    assert!(told[0].starts_with("postgres://driftline@127.0.0.1:"), "{told:?}");
    assert_eq!(told[0], told[1], "the database is the same after a restart");
}

#[test]
fn servers_on_one_database_take_each_others_tokens() {
    let url = "postgres://driftline@127.0.0.1:1/x";
    if is_under() {
        let servers = [(); 2].map(|()| Server::on(url, &[]));
        let tokens = servers.iter().map(|server| server.token(&TokenFor::default()));
        let lines: Vec<String> = tokens.chain(servers.iter().map(Server::log)).collect();
        return tell(&lines.join("\n"));
    }
    let told = under("servers_on_one_database_take_each_others_tokens", &[]);
    let secret = told[0].strip_prefix("token ").expect("a token");
    assert_ne!(secret, "none");
    assert_eq!(told[0], told[1]);
    assert_eq!(told.iter().filter(|line| **line == format!("{url} {secret}")).count(), 2, "{told:?}");
}
