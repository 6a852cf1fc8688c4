//! A foreign session of the database, such as somebody has who looks after it.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use driftline_testkit::postgres;

use crate::bed::Bed;

/// A `psql` that keeps its transaction open. It is ended with the value.
pub(crate) struct Session {
    process: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Session {
    pub(crate) fn begin(bed: &Bed) -> Self {
        let mut psql = postgres::command("psql");
        psql.args(["-X", "-A", "-t", "-q", "-d", &bed.database.url()]);
        psql.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut process = psql.spawn().expect("psql starts");
        let orders = process.stdin.take().expect("it is piped");
        let answers = BufReader::new(process.stdout.take().expect("it is piped"));
        Self { process, orders, answers }
    }

    /// Runs a statement without waiting for its end.
    pub(crate) fn order(&mut self, sql: &str) {
        writeln!(self.orders, "{sql};").expect("psql reads");
        self.orders.flush().expect("psql reads");
    }

    /// Runs a statement and waits until it is done; false when the session is over.
    pub(crate) fn run(&mut self, sql: &str) -> bool {
        self.order(sql);
        writeln!(self.orders, "\\echo done").expect("psql reads");
        let mut line = String::new();
        while line.trim() != "done" {
            line.clear();
            if self.answers.read_line(&mut line).is_ok_and(|read| read == 0) {
                return false;
            }
        }
        true
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
