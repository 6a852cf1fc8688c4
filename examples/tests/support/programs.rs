//! Programs that are not ours and are used as they are: databases' own, Node, Python, curl.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use driftline_testkit::postgres;
use driftline_testkit::server::Server;

/// Prepares the program that a database brings for its own language: `sqlite3` on the server's file, or `psql`.
pub fn sql_program(server: &Server) -> Command {
    match server.store_url() {
        Some(url) => {
            let mut psql = postgres::command("psql");
            psql.args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", url]);
            psql
        }
        None => {
            let mut sqlite = Command::new("sqlite3");
            sqlite.args(["-bail", "-cmd", ".timeout 20000"]).arg(server.data_dir().join("driftline.db"));
            sqlite
        }
    }
}

/// Has the database's own program run statements; gives what it printed.
pub fn sql(server: &Server, statements: &str) -> String {
    let output = fed(&mut sql_program(server), statements);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{statements}\n{said}");
    String::from_utf8(output.stdout).expect("text").trim().to_owned()
}

/// Runs a command with something to read.
pub fn fed(command: &mut Command, text: &str) -> Output {
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    // One that fails stops reading; what it says of that is read all the same.
    let _ = child.stdin.take().expect("it is piped").write_all(text.as_bytes());
    child.wait_with_output().expect("it ends")
}

/// Finds a script of `tests/feeds`.
pub fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/feeds").join(name)
}

/// Node with the packages that `scripts/test` installs.
pub fn node() -> Command {
    let mut command = Command::new("node");
    command.env("NODE_PATH", installed("DRIFTLINE_NODE_MODULES", "foreign/node_modules"));
    command
}

/// Python with the packages that `scripts/test` installs. It writes no byte code beside the scripts.
pub fn python() -> Command {
    let mut command = Command::new(installed("DRIFTLINE_PYTHON", "venv/bin/python"));
    command.env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

/// Finds what an environment variable names, else what lies in the usual cache.
fn installed(variable: &str, in_cache: &str) -> PathBuf {
    let cache = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/driftline").join(in_cache));
    let path = std::env::var_os(variable).map(PathBuf::from).or_else(cache);
    let path = path.unwrap_or_else(|| panic!("run scripts/test, which installs it, or set {variable}"));
    assert!(path.exists(), "{variable}: {} is missing; scripts/test installs it", path.display());
    path
}
