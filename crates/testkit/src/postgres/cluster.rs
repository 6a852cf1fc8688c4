//! A server, its folder, and its life.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;

use super::certificates::Certificates;
use super::database::Access;
use super::keeper::{Keeper, PATIENCE, has_ended, holds_soon, processes_in, signal, stands_still};
use super::programs::{Programs, USER, output};
use super::{ports, seed};
use crate::TempFolder;

/// How many lines of the log a failure shows.
const LOG_LINES: usize = 40;

/// How a cluster is set up.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Whether commits are forced to the disk. A killed server loses nothing without it, because the system lives on.
    pub fsync: bool,
    /// Whether the server speaks TLS, and refuses everybody who does not.
    pub tls: bool,
    /// Further settings, each `name=value`.
    pub settings: Vec<String>,
}

/// A running PostgreSQL with a folder of its own.
///
/// The superuser is `driftline`, without a password. When a test fails, the end of the log is printed.
#[derive(Debug)]
pub struct Cluster {
    // Dropped first: it stops the server and empties the folder.
    keeper: Keeper,
    programs: &'static Programs,
    tls: Option<Certificates>,
    port: u16,
    paused: Vec<u32>,
    templates: Mutex<BTreeSet<String>>,
    folder: TempFolder,
}

impl Cluster {
    /// Returns the cluster that all tests of this process share; the first call starts it.
    ///
    /// # Panics
    /// When PostgreSQL is not installed or does not start.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Cluster> = OnceLock::new();
        SHARED.get_or_init(|| Self::own(&Options::default()))
    }

    /// Starts a cluster for a test that does something to it.
    ///
    /// # Panics
    /// When PostgreSQL is not installed or does not start.
    #[must_use]
    pub fn own(options: &Options) -> Self {
        let mut cluster = Self::new(options, seed::unpack);
        cluster.start_on_any_port();
        cluster
    }

    /// Starts a standby that follows another cluster by streaming. It takes reads only, until [`Cluster::promote`].
    ///
    /// # Panics
    /// When the other cluster cannot be copied, or the copy does not start.
    #[must_use]
    pub fn standby_of(primary: &Self) -> Self {
        let mut cluster = Self::new(&Options::default(), |_, folder| {
            primary.copy_files(&folder.join("data"), &["--write-recovery-conf"]);
        });
        cluster.start_on_any_port();
        cluster
    }

    fn new(options: &Options, fill: impl FnOnce(&'static Programs, &Path)) -> Self {
        let programs = Programs::installed();
        let folder = TempFolder::new();
        programs.give(folder.path());
        fill(programs, folder.path());
        let tls = options.tls.then(|| Certificates::make(programs, folder.path()));
        let keeper = Keeper::new(programs, folder.path(), &arguments(options, folder.path(), tls.as_ref()));
        let templates = Mutex::default();
        Self { keeper, programs, tls, port: 0, paused: Vec::new(), templates, folder }
    }

    /// Returns where it listens; the port stays the same for its whole life.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// Returns the folder of its data.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Returns what it logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Returns the file with the certificate of the authority that vouches for the server.
    ///
    /// # Panics
    /// When it was not started with [`Options::tls`].
    #[must_use]
    pub fn ca(&self) -> &Path {
        &self.tls.as_ref().expect("it was started with TLS").ca
    }

    /// Returns the file with the certificate of an authority that has nothing to do with the server.
    ///
    /// # Panics
    /// When it was not started with [`Options::tls`].
    #[must_use]
    pub fn other_ca(&self) -> &Path {
        &self.tls.as_ref().expect("it was started with TLS").other_ca
    }

    /// Runs SQL in one transaction in the database `postgres` and returns the rows, with `|` between columns.
    ///
    /// # Panics
    /// With what the database said, when it fails.
    pub fn sql(&self, sql: &str) -> String {
        self.sql_in("postgres", sql)
    }

    /// Runs SQL in one transaction in any database.
    ///
    /// # Panics
    /// With what the database said, when it fails.
    pub fn sql_in(&self, database: &str, sql: &str) -> String {
        self.access().sql(database, &[sql])
    }

    /// Asks everybody to disconnect and ends in order (SIGINT).
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn stop_fast(&mut self) {
        self.end("INT");
    }

    /// Ends without tidying up (SIGQUIT): connections break, and the next start recovers.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn kill_immediate(&mut self) {
        self.end("QUIT");
    }

    /// Kills the first of its processes, as the system does that runs out of memory (SIGKILL).
    ///
    /// The processes of its connections notice by themselves, some only after what they are doing.
    /// [`Cluster::start`] waits for them.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn kill9(&mut self) {
        self.end("KILL");
    }

    fn end(&mut self, name: &str) {
        self.resume();
        if let Some(server) = self.keeper.server() {
            signal(name, &[server]);
            self.keeper.wait();
        }
    }

    /// Starts it again on the same port and the same data, and waits until it takes connections.
    ///
    /// # Panics
    /// When it runs already, or is not ready in time.
    pub fn start(&mut self) {
        let data = self.data();
        assert!(holds_soon(|| processes_in(&data).is_empty()), "processes of {} live on", data.display());
        assert!(holds_soon(|| ports::is_free(self.port)), "port {} was taken", self.port);
        self.keeper.start(self.port);
        assert!(self.is_ready_soon(), "the server does not start again\n{}", self.end_of_log());
    }

    fn start_on_any_port(&mut self) {
        // Another process may take the port between the look and the start.
        for _ in 0..10 {
            self.port = ports::free();
            self.keeper.start(self.port);
            if self.is_ready_soon() {
                return;
            }
            self.end("QUIT");
        }
        panic!("the server does not start\n{}", self.end_of_log());
    }

    /// Waits for the word `ready` in the file in which the server says how it is; false when it ended instead.
    fn is_ready_soon(&self) -> bool {
        let server = self.keeper.server().expect("it was started");
        let file = self.data().join("postmaster.pid");
        let is_ready = || {
            let status = fs::read_to_string(&file).unwrap_or_default();
            let mut lines = status.lines().map(str::trim);
            // The file of an earlier start has another process id, and is replaced.
            lines.next() == Some(&server.to_string()) && lines.nth(6) == Some("ready")
        };
        let mut ready = false;
        let settled = holds_soon(|| {
            ready = is_ready();
            ready || has_ended(server)
        });
        assert!(settled, "not ready after {} s\n{}", PATIENCE.as_secs(), self.end_of_log());
        ready
    }

    /// Stops all of its processes where they are (SIGSTOP): connections stay, and nothing is answered.
    ///
    /// # Panics
    /// When a process does not stop in time.
    pub fn pause(&mut self) {
        let data = self.data();
        // The first process stops before the others, so that it makes no more of them.
        self.paused.extend(self.keeper.server());
        signal("STOP", &self.paused);
        let paused = &mut self.paused;
        let stopped = holds_soon(|| {
            let others: Vec<u32> =
                processes_in(&data).into_iter().filter(|pid| !paused.contains(pid)).collect();
            signal("STOP", &others);
            paused.extend(&others);
            others.is_empty()
        });
        assert!(stopped, "it went on making processes");
        // A signal takes its time.
        assert!(holds_soon(|| self.paused.iter().all(|pid| stands_still(*pid))), "a process goes on");
    }

    /// Lets it go on after [`Cluster::pause`].
    pub fn resume(&mut self) {
        signal("CONT", &self.paused);
        self.paused.clear();
    }

    /// Makes a standby a primary of its own, on a new timeline, and waits until it takes writes.
    ///
    /// # Panics
    /// When it is none, or does not change in time.
    pub fn promote(&self) {
        assert_eq!(self.sql("SELECT pg_promote(true, 60)"), "t", "{}", self.end_of_log());
        self.wait_for_primary();
    }

    pub(super) fn wait_for_primary(&self) {
        assert!(holds_soon(|| self.sql("SELECT pg_is_in_recovery()") == "f"), "{}", self.end_of_log());
    }

    /// Copies the files of the running server into a new folder.
    pub(super) fn copy_files(&self, to: &Path, options: &[&str]) {
        let mut command = self.programs.command("pg_basebackup");
        command.args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-U", USER]);
        command.args(["--checkpoint=fast", "--wal-method=stream", "--no-sync", "-D"]).arg(to).args(options);
        output(&mut command);
    }

    pub(super) fn programs(&self) -> &'static Programs {
        self.programs
    }

    pub(super) fn access(&self) -> Access {
        Access { port: self.port }
    }

    /// The names of the templates that are filled.
    pub(super) fn templates(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.templates.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end_of_log(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Stopped processes would not hear that it is over.
        self.resume();
        if thread::panicking() {
            eprintln!("the end of what PostgreSQL on port {} logged:\n{}", self.port, self.end_of_log());
        }
    }
}

fn arguments(options: &Options, folder: &Path, tls: Option<&Certificates>) -> Vec<String> {
    let path = |path: &Path| path.to_str().expect("a path is text").to_owned();
    let mut settings = vec![
        "listen_addresses=127.0.0.1".to_owned(),
        "max_connections=200".to_owned(),
        format!("fsync={}", if options.fsync { "on" } else { "off" }),
        "log_line_prefix=%m [%p] %d ".to_owned(),
        format!("unix_socket_directories={}", path(folder)),
    ];
    settings.extend(tls.into_iter().flat_map(Certificates::settings));
    settings.extend(options.settings.iter().cloned());
    let settings = settings.into_iter().flat_map(|setting| ["-c".to_owned(), setting]);
    ["-D".to_owned(), path(&folder.join("data"))].into_iter().chain(settings).collect()
}
