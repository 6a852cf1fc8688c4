//! Looks for rows in the outbox while somebody waits for them.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::Integer;
use tokio::sync::oneshot;

use super::super::open::{OpenError, connect, file_error};

/// The time between two looks.
const PERIOD: Duration = Duration::from_millis(100);

/// Whether a row waits.
pub(super) const LOOK: &str = "SELECT 1 AS waits FROM sync_events WHERE processed_at IS NULL LIMIT 1";

/// The thread that looks into the outbox, over a connection of its own. It sleeps while nobody waits, and ends when
/// this is dropped.
#[derive(Debug)]
pub(in super::super) struct Watch {
    waiters: Option<Sender<oneshot::Sender<()>>>,
    thread: Option<JoinHandle<()>>,
    /// Whether nobody has waited yet: rows may have come while no store was open.
    first: AtomicBool,
}

impl Watch {
    pub(in super::super) fn start(file: &Path) -> Result<Self, OpenError> {
        let mut connection = connect(file)?;
        connection
            .batch_execute("PRAGMA query_only = ON; PRAGMA cache_size = -256;")
            .map_err(|error| file_error(file, &error))?;
        let (waiters, waiting) = channel();
        let thread = std::thread::Builder::new().name("driftline-outbox".into());
        let mut look = Look { connection, version: None };
        let thread = thread.spawn(move || look.run(&waiting)).map_err(OpenError::Thread)?;
        Ok(Self { waiters: Some(waiters), thread: Some(thread), first: AtomicBool::new(true) })
    }

    /// Waits until rows may have come.
    pub(super) async fn wait(&self) {
        if self.first.swap(false, Ordering::SeqCst) {
            return;
        }
        let (sender, came) = oneshot::channel();
        if let Some(waiters) = &self.waiters
            && waiters.send(sender).is_ok()
            && came.await.is_ok()
        {
            return;
        }
        // The thread has ended: nobody will look again, and whoever asked in a loop must not spin.
        std::future::pending::<()>().await;
    }

    /// Ends the thread.
    pub(in super::super) fn stop(&mut self) {
        self.waiters = None;
        if let Some(thread) = self.thread.take() {
            // A panic was reported by the panic hook already.
            let _ = thread.join();
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop();
    }
}

#[derive(QueryableByName)]
struct Version {
    #[diesel(sql_type = Integer)]
    data_version: i32,
}

#[derive(QueryableByName)]
struct Waits {
    #[diesel(sql_type = Integer)]
    waits: i32,
}

struct Look {
    connection: SqliteConnection,
    /// Changes when another connection committed (<https://www.sqlite.org/pragma.html#pragma_data_version>), so that a
    /// look at an idle database costs no read of a table.
    version: Option<i32>,
}

impl Look {
    fn run(&mut self, waiting: &Receiver<oneshot::Sender<()>>) {
        let mut waiters: Vec<oneshot::Sender<()>> = Vec::new();
        loop {
            let came = if waiters.is_empty() {
                waiting.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                waiting.recv_timeout(PERIOD)
            };
            match came {
                Ok(waiter) => {
                    // Whoever begins to wait may have left rows behind.
                    self.version = None;
                    waiters.push(waiter);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            waiters.retain(|waiter| !waiter.is_closed());
            if !waiters.is_empty() && self.rows_wait() {
                for waiter in waiters.drain(..) {
                    // Whoever waited may have gone.
                    let _ = waiter.send(());
                }
            }
        }
    }

    /// Tells whether rows wait, as far as anything was committed since the last look.
    fn rows_wait(&mut self) -> bool {
        let version = sql_query("PRAGMA data_version").get_result::<Version>(&mut self.connection);
        let version = version.ok().map(|version| version.data_version);
        if version.is_some() && version == self.version {
            return false;
        }
        let rows: QueryResult<Vec<Waits>> = sql_query(LOOK).load(&mut self.connection);
        match rows {
            Ok(rows) => {
                self.version = version;
                rows.iter().any(|row| row.waits == 1)
            }
            Err(error) => {
                // The next look is soon, and a lasting fault is found by those who read the rows.
                tracing::debug!(%error, "the outbox could not be looked at");
                false
            }
        }
    }
}
