//! An S3 that lies in memory: enough of its API for uploads in parts, and faults as a test orders them.
//!
//! It keeps S3's rules about parts: their order, their tags, and that no part but the last is shorter than 5 MiB. It
//! checks no signature, but that there is one.
//!
//! ```
//! use driftline_testkit::s3::{BUCKET, S3};
//!
//! let s3 = S3::start();
//! assert!(s3.endpoint().starts_with("http://127.0.0.1:") && s3.objects().is_empty(), "{BUCKET} is empty");
//! ```

mod serve;
mod state;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use tokio::sync::oneshot;

use state::{Fault, Object, State};
pub use state::{Multipart, PART_BYTES_MIN, WRITTEN_MS};

/// The one bucket that there is; it is named in the path.
pub const BUCKET: &str = "files";

/// A running S3 with one empty bucket. It ends, and everything is gone, when it is dropped.
#[derive(Debug)]
pub struct S3 {
    state: Arc<Mutex<State>>,
    address: SocketAddr,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl S3 {
    /// Starts on a free port, on a thread of its own.
    ///
    /// # Panics
    /// When the system has no port or no thread left.
    #[must_use]
    pub fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("the system has a port");
        listener.set_nonblocking(true).expect("a listener need not block");
        let address = listener.local_addr().expect("it listens");
        let state = Arc::new(Mutex::new(State::default()));
        let (end, ended) = oneshot::channel();
        let served = Arc::clone(&state);
        let thread = thread::spawn(move || serve::run(listener, &served, ended));
        Self { state, address, end: Some(end), thread: Some(thread) }
    }

    /// Returns where it answers, as a URL.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns all objects by their keys.
    #[must_use]
    pub fn objects(&self) -> BTreeMap<String, Vec<u8>> {
        self.state().objects.iter().map(|(key, object)| (key.clone(), object.bytes.clone())).collect()
    }

    /// Puts an object there as if it had been written at a time in Unix milliseconds.
    pub fn put(&self, key: &str, bytes: &[u8], written_ms: u64) {
        self.state().objects.insert(key.into(), Object { bytes: bytes.into(), written_ms });
    }

    /// Puts a part in the place of another one, as somebody does whose put was on its way for long.
    ///
    /// # Panics
    /// When there is no such multipart upload.
    pub fn replace_part(&self, upload: &str, number: u32, bytes: &[u8]) {
        let mut state = self.state();
        let upload = state.open.get_mut(upload).expect("it is open");
        upload.parts.insert(number, bytes.into());
    }

    /// Loses a part.
    ///
    /// # Panics
    /// When there is no such multipart upload or part.
    pub fn lose_part(&self, upload: &str, number: u32) {
        let mut state = self.state();
        let upload = state.open.get_mut(upload).expect("it is open");
        upload.parts.remove(&number).expect("there is such a part");
    }

    /// Lists only so many objects at once from now on.
    pub fn list_at_once(&self, objects: usize) {
        self.state().page = objects;
    }

    /// Returns the multipart uploads that are open, by their names.
    #[must_use]
    pub fn open(&self) -> BTreeMap<String, Multipart> {
        self.state().open.clone()
    }

    /// Returns what was asked so far, each with its method and its target, without what was refused by order.
    #[must_use]
    pub fn asked(&self) -> Vec<String> {
        self.state().asked.clone()
    }

    /// Answers the next requests with a status and S3's code for it, and does nothing of what they ask for.
    pub fn fail(&self, requests: usize, status: u16, code: &str) {
        self.state().order(requests, Fault::Refuse(status, code.into()));
    }

    /// Closes the connections of the next requests, and does nothing of what they ask for.
    pub fn hang_up(&self, requests: usize) {
        self.state().order(requests, Fault::HangUp);
    }

    /// Does what the next requests ask for, and closes their connections instead of answering.
    pub fn lose_answers(&self, requests: usize) {
        self.state().order(requests, Fault::LoseAnswer);
    }

    /// Never answers the next requests, and does nothing of what they ask for.
    pub fn stall(&self, requests: usize) {
        self.state().order(requests, Fault::Stall);
    }

    /// Lets so many requests pass before what was ordered goes wrong.
    pub fn spare(&self, requests: usize) {
        self.state().spared = requests;
    }

    /// Lets nothing go wrong any more.
    pub fn mend(&self) {
        self.state().order(0, Fault::HangUp);
    }

    /// Refuses to abort a multipart upload, for ever.
    pub fn never_abort(&self, upload: &str) {
        self.state().stubborn = Some(upload.into());
    }

    /// Returns how many requests a fault was answered to.
    #[must_use]
    pub fn faults(&self) -> usize {
        self.state().faults
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
