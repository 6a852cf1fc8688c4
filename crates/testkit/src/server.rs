//! The real server as a process of its own.
//!
//! | variable | meaning |
//! |---|---|
//! | `DRIFTLINE_SERVER` | the server's program; else the one that was built beside the running test |
//! | `DRIFTLINE_TEST_STORE` | `postgres`: every server gets an empty database in the [`Cluster`] that the process shares; `sqlite`, or nothing: a file in its data folder |

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;

use crate::folder::TempFolder;
use crate::http::PATIENCE;
use crate::postgres::{Cluster, Database};

/// Tells the server where its database is.
const STORE_URL: &str = "DRIFTLINE_STORE_URL";
/// Tells the server what it signs tokens with.
const SECRET: &str = "DRIFTLINE_AUTH_SECRET";
/// What servers on one database share, so that each takes the tokens of the others.
const SHARED_SECRET: &str = "known to all servers of a test";

/// Finds the server's program: `DRIFTLINE_SERVER`, else the one that was built beside the running test.
///
/// # Panics
/// When there is none; `cargo build -p driftline-server` makes it.
#[must_use]
pub fn program() -> PathBuf {
    if let Some(given) = std::env::var_os("DRIFTLINE_SERVER") {
        return given.into();
    }
    let test = std::env::current_exe().expect("a test knows where it is");
    let name = format!("driftline-server{}", std::env::consts::EXE_SUFFIX);
    let found = test.ancestors().skip(1).take(3).map(|folder| folder.join(&name)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("no {name} beside {}: build it first", test.display()))
}

/// What a token is made for.
#[derive(Debug, Clone, Default)]
pub struct TokenFor<'a> {
    /// The tenant; empty: the default one.
    pub tenant: &'a str,
    /// The user.
    pub sub: &'a str,
    /// The role; empty: `user`.
    pub role: &'a str,
    /// The device that the token is bound to; empty: none.
    pub device_id: &'a str,
    /// Further claims, each `name=value`.
    pub claims: &'a [&'a str],
}

/// A running server with a data folder of its own. It is killed, and the folder removed, at the end.
#[derive(Debug)]
pub struct Server {
    program: PathBuf,
    arguments: Vec<String>,
    environment: Vec<(&'static str, String)>,
    process: Process,
    address: SocketAddr,
    folder: TempFolder,
    /// Dropped when the process is gone.
    _database: Option<Database>,
}

impl Server {
    /// Starts the server for development, on any free port.
    ///
    /// # Panics
    /// When it does not say in time that it listens.
    #[must_use]
    pub fn start() -> Self {
        Self::with(&program(), &[])
    }

    /// Starts a program with further arguments behind `dev`.
    ///
    /// # Panics
    /// When it does not say in time that it listens, or `DRIFTLINE_TEST_STORE` names no store.
    #[must_use]
    pub fn with(program: &Path, arguments: &[&str]) -> Self {
        let database = database_of_its_own();
        let environment = database.iter().map(|database| (STORE_URL, database.url())).collect();
        Self::launched(program, arguments, environment, database)
    }

    /// Starts the server on a PostgreSQL database, which several servers may share. They take each other's tokens.
    ///
    /// # Panics
    /// When it does not say in time that it listens.
    #[must_use]
    pub fn on(url: &str, arguments: &[&str]) -> Self {
        let environment = vec![(STORE_URL, url.to_owned()), (SECRET, SHARED_SECRET.to_owned())];
        Self::launched(&program(), arguments, environment, None)
    }

    fn launched(
        program: &Path,
        arguments: &[&str],
        environment: Vec<(&'static str, String)>,
        database: Option<Database>,
    ) -> Self {
        let folder = TempFolder::new();
        let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let (process, address) = launch(program, &arguments, &environment, folder.path());
        let program = program.to_owned();
        Self { program, arguments, environment, process, address, folder, _database: database }
    }

    /// Returns where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns where its data is.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        self.folder.path()
    }

    /// Returns the URL of its PostgreSQL database; none: its data is in a file of its data folder.
    #[must_use]
    pub fn store_url(&self) -> Option<&str> {
        let found = self.environment.iter().find(|(name, _)| *name == STORE_URL);
        found.map(|(_, url)| url.as_str())
    }

    /// Returns its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Returns what it logged.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(log_file(self.folder.path())).unwrap_or_default()
    }

    /// Makes a token with the server's own command.
    ///
    /// # Panics
    /// When the command fails.
    #[must_use]
    pub fn token(&self, token: &TokenFor<'_>) -> String {
        let mut command = Command::new(&self.program);
        command.envs(self.environment.iter().cloned());
        command.arg("token").arg("--data-dir").arg(self.folder.path()).args(["--sub", token.sub]);
        let options = [("--tenant", token.tenant), ("--role", token.role), ("--device-id", token.device_id)];
        for (name, value) in options.iter().filter(|(_, value)| !value.is_empty()) {
            command.args([name, value]);
        }
        for claim in token.claims {
            command.args(["--claim", claim]);
        }
        let output = command.stdin(Stdio::null()).output().expect("the command runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("a token is text").trim().to_owned()
    }

    /// Kills the server as a power cut would, and waits until it is gone.
    pub fn kill9(&mut self) {
        self.process.kill();
    }

    /// Starts the server again on the same data, after [`Server::kill9`] or [`Server::terminate`]; the port is another.
    ///
    /// # Panics
    /// When it does not say in time that it listens.
    pub fn restart(&mut self) {
        self.process.kill();
        (self.process, self.address) =
            launch(&self.program, &self.arguments, &self.environment, self.folder.path());
    }

    /// Asks the server to end (SIGTERM) and waits until it has.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn terminate(&mut self) -> ExitStatus {
        self.process.signal("TERM");
        self.process.wait()
    }
}

fn log_file(folder: &Path) -> PathBuf {
    folder.join("server.log")
}

fn database_of_its_own() -> Option<Database> {
    let store = std::env::var("DRIFTLINE_TEST_STORE").unwrap_or_default();
    match store.as_str() {
        "" | "sqlite" => None,
        "postgres" => Some(Cluster::shared().empty_database()),
        _ => panic!("DRIFTLINE_TEST_STORE is `sqlite` or `postgres`, not `{store}`"),
    }
}

fn launch(
    program: &Path,
    arguments: &[String],
    environment: &[(&'static str, String)],
    folder: &Path,
) -> (Process, SocketAddr) {
    let log = File::options().create(true).append(true).open(log_file(folder)).expect("a log can be written");
    let mut command = Command::new(program);
    // The store is the one that the test chose, whatever is set where it runs.
    command.env_remove(STORE_URL).envs(environment.iter().cloned());
    command.args(["dev", "--listen", "127.0.0.1:0"]).arg("--data-dir").arg(folder).args(arguments);
    let mut process = Process::start(command.stderr(log));
    let line = process.line();
    let address = line.as_deref().and_then(|line| line.strip_prefix("listening on http://"));
    let Some(address) = address.and_then(|address| address.parse().ok()) else {
        process.kill();
        let log = std::fs::read_to_string(log_file(folder)).unwrap_or_default();
        panic!("the server did not start: {line:?}\n{log}");
    };
    (process, address)
}

/// A child process whose standard output is read by line. It is killed at the end, if it still runs.
#[derive(Debug)]
pub struct Process {
    child: Child,
    lines: Receiver<String>,
}

impl Process {
    /// Starts a command with nothing to read.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start(command: &mut Command) -> Self {
        let started = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let mut child = started.unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let output = BufReader::new(child.stdout.take().expect("it is piped"));
        let (sender, lines) = channel();
        // Ends with the child, whose end closes the pipe.
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                // Nobody may be interested in what follows.
                let _ = sender.send(line);
            }
        });
        Self { child, lines }
    }

    /// Returns the process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the next line of standard output; nothing when there are no more.
    ///
    /// # Panics
    /// When neither a line nor the end comes in time.
    pub fn line(&mut self) -> Option<String> {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("no line came within {} s", PATIENCE.as_secs()),
        }
    }

    /// Sends a signal, such as `TERM`.
    ///
    /// # Panics
    /// When there is no shell to send it.
    pub fn signal(&self, name: &str) {
        let command = format!("kill -{name} {}", self.pid());
        let status = Command::new("sh").args(["-c", &command]).status().expect("there is a shell");
        assert!(status.success(), "{command}");
    }

    /// Waits until the process ended by itself.
    ///
    /// # Panics
    /// When it does not in time.
    pub fn wait(&mut self) -> ExitStatus {
        // The end of its standard output is the end of the process, as far as a pipe can tell.
        while self.line().is_some() {}
        self.child.wait().expect("the child is ours")
    }

    /// Kills the process and waits until it is gone.
    pub fn kill(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
