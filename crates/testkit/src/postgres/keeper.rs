//! The process above a PostgreSQL, which outlives the test by as much as it takes to tidy up.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::programs::Programs;

/// How long a server may take to start, to recover or to end.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// Starts what it was given for `start PORT`, waits for its end for `wait`. The end of its input is the end of the
/// test, however that came about: it stops the server and removes the folder.
///
/// Between the start and the `wait` the server's process id cannot become another's, because it is a child of this
/// shell. SIGTERM is for a server so young that SIGQUIT is still ignored, as shells make it for what runs behind them.
const SCRIPT: &str = r#"
folder=$1; shift; server=
while read -r order port; do
    case $order in
    start) "$@" -p "$port" </dev/null >>"$folder/log" 2>&1 & server=$!; echo "$server" ;;
    wait) wait "$server"; echo "ended $?"; server= ;;
    esac
done
if [ -n "$server" ]; then kill -CONT "$server"; kill -QUIT "$server"; kill -TERM "$server"; wait "$server"; fi
cd / && rm -rf -- "$folder"
"#;

/// A shell with at most one PostgreSQL beneath it.
#[derive(Debug)]
pub(super) struct Keeper {
    shell: Child,
    orders: Option<ChildStdin>,
    /// Locked by nobody: only what is in a mutex may be a part of a static.
    answers: Mutex<Receiver<String>>,
    server: Option<u32>,
}

impl Keeper {
    /// Starts the shell over a folder, which it owns from now on; `server` are the arguments of `postgres`.
    pub(super) fn new(programs: &Programs, folder: &Path, server: &[String]) -> Self {
        let postgres = programs.command("postgres");
        let mut command = programs.system("sh");
        command.args(["-c", SCRIPT, "keeper"]).arg(folder).arg(postgres.get_program()).args(server);
        // In a group of its own it is spared when the whole group of the test is killed.
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut shell = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let lines = BufReader::new(shell.stdout.take().expect("it is piped")).lines();
        let (sender, answers) = channel();
        // Ends with the shell, whose end closes the pipe.
        thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let orders = shell.stdin.take();
        Self { shell, orders, answers: Mutex::new(answers), server: None }
    }

    /// Starts the server, which then takes its time to be ready.
    pub(super) fn start(&mut self, port: u16) {
        assert!(self.server.is_none(), "it runs already");
        let answer = self.order(&format!("start {port}\n"));
        self.server = Some(answer.parse().expect("the shell answers with a process id"));
    }

    /// Returns the process id of the server, while it was not waited for.
    pub(super) fn server(&self) -> Option<u32> {
        self.server
    }

    /// Waits until the server is gone.
    pub(super) fn wait(&mut self) {
        if self.server.take().is_some() {
            self.order("wait\n");
        }
    }

    fn order(&mut self, order: &str) -> String {
        let orders = self.orders.as_mut().expect("it is open until the end");
        orders.write_all(order.as_bytes()).expect("the shell reads");
        let answers = self.answers.get_mut().unwrap_or_else(PoisonError::into_inner);
        answers
            .recv_timeout(PATIENCE)
            .unwrap_or_else(|_| panic!("`{}` took more than {} s", order.trim(), PATIENCE.as_secs()))
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.orders = None;
        let _ = self.shell.wait();
    }
}

/// Sends a signal to processes, of which some may have ended.
pub(super) fn signal(name: &str, pids: &[u32]) {
    if pids.is_empty() {
        return;
    }
    let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
    let command = format!("kill -{name} {} 2>/dev/null", pids.join(" "));
    let _ = Command::new("sh").args(["-c", &command]).status();
}

/// Finds the processes that work in a folder. Those of PostgreSQL work in their data folder.
pub(super) fn processes_in(folder: &Path) -> Vec<u32> {
    let processes = fs::read_dir("/proc").expect("this is Linux").flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|own| own == folder)).collect()
}

/// Says whether a process came to its end, waited for or not.
pub(super) fn has_ended(pid: u32) -> bool {
    is_in(pid, &['Z', 'X'])
}

/// Says whether a process that got SIGSTOP stands still, or came to its end before.
pub(super) fn stands_still(pid: u32) -> bool {
    is_in(pid, &['T', 'Z', 'X'])
}

/// Says whether a process is in one of the states, or gone.
fn is_in(pid: u32, states: &[char]) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return true };
    // The name of the program stands in brackets before the state, and may hold anything.
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(states))
}

/// Looks until something holds; false when it does not in time.
pub(super) fn holds_soon(mut holds: impl FnMut() -> bool) -> bool {
    const PAUSE: Duration = Duration::from_millis(4);
    let looks = PATIENCE.as_millis() / PAUSE.as_millis();
    for _ in 0..looks {
        if holds() {
            return true;
        }
        thread::sleep(PAUSE);
    }
    false
}
