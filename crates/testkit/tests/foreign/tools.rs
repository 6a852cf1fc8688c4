//! The programs that `scripts/test` installs and names; a test that misses one fails and says so.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use driftline_testkit::TempFolder;
use driftline_testkit::server::{Server, TokenFor, program};

/// Starts a server whose configuration file holds a text.
pub(crate) fn configured(text: &str) -> Server {
    let folder = TempFolder::new();
    let config = folder.path().join("driftline.toml");
    std::fs::write(&config, text).expect("it can be written");
    Server::with(&program(), &["--config", config.to_str().expect("a path is text")])
}

/// Makes the token of a user of one tenant, with a role; empty: `user`.
pub(crate) fn token(server: &Server, role: &str) -> String {
    server.token(&TokenFor { tenant: "t1", sub: "u1", role, ..TokenFor::default() })
}

/// Finds a file of this folder.
pub(crate) fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/foreign").join(name)
}

/// Gives what a program wrote.
pub(crate) fn told(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Finds what an environment variable names, else what `scripts/test` installs in its usual cache; an absolute path
/// lies elsewhere.
pub(crate) fn installed(variable: &str, in_cache: &str) -> PathBuf {
    let cache = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/driftline").join(in_cache));
    let path = std::env::var_os(variable).map(PathBuf::from).or_else(cache);
    let path = path.unwrap_or_else(|| panic!("run scripts/test, which installs it, or set {variable}"));
    assert!(path.exists(), "{variable}: {} is missing; scripts/test installs it", path.display());
    path
}

/// Node with the packages of `package.json`.
pub(crate) fn node() -> Command {
    let mut command = Command::new("node");
    command.env("NODE_PATH", installed("DRIFTLINE_NODE_MODULES", "foreign/node_modules"));
    command
}

/// Python with `websockets`, `msgpack`, `zstandard` and `tuspy`. It writes no byte code beside the scripts.
pub(crate) fn python() -> Command {
    let mut command = Command::new(installed("DRIFTLINE_PYTHON", "venv/bin/python"));
    command.env("PYTHONDONTWRITEBYTECODE", "1");
    command
}
