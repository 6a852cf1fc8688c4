//! The threads that read.

use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use diesel::connection::SimpleConnection;
use diesel::sqlite::SqliteConnection;
use driftline_engine::StoreError;
use tokio::sync::oneshot;

use super::open::{OpenError, connect};

type Job = Box<dyn FnOnce(&mut SqliteConnection) + Send>;

/// Reads that may wait.
const QUEUE: usize = 8192;

pub(super) struct Readers {
    jobs: Option<SyncSender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

impl Readers {
    pub(super) fn start(file: &Path, count: usize) -> Result<Self, OpenError> {
        let (jobs, queue) = sync_channel::<Job>(QUEUE);
        // The lock is held by the one thread that waits for the next read.
        let queue = Arc::new(Mutex::new(queue));
        let mut threads = Vec::new();
        for number in 0..count.max(1) {
            let mut connection = connect(file)?;
            connection
                .batch_execute("PRAGMA query_only = ON; PRAGMA cache_size = -8192;")
                .map_err(|error| OpenError::File { file: file.to_owned(), reason: error.to_string() })?;
            let queue = Arc::clone(&queue);
            let thread = std::thread::Builder::new().name(format!("driftline-reader-{number}"));
            threads.push(thread.spawn(move || work(&mut connection, &queue)).map_err(OpenError::Thread)?);
        }
        Ok(Self { jobs: Some(jobs), threads })
    }

    pub(super) async fn run<T: Send + 'static>(
        &self,
        read: impl FnOnce(&mut SqliteConnection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |connection| {
            // Whoever asked may have gone.
            let _ = answer.send(read(connection));
        });
        let jobs = self.jobs.as_ref().ok_or_else(super::stopped)?;
        jobs.try_send(job).map_err(|_| StoreError::Unavailable("too many reads wait".into()))?;
        answered.await.map_err(|_| super::stopped())?
    }
}

impl Readers {
    /// Ends the threads when they have done what they were asked for.
    pub(super) fn stop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            // A panic of a reader was reported by the panic hook already.
            let _ = thread.join();
        }
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        self.stop();
    }
}

fn work(connection: &mut SqliteConnection, queue: &Mutex<Receiver<Job>>) {
    loop {
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        match job {
            Ok(job) => job(connection),
            Err(_) => return,
        }
    }
}
