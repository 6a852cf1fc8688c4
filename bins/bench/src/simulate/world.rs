//! The world that a simulated server lives in: a clock that is moved by hand, and randomness that a seed repeats.

use std::fmt;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

use driftline_engine::{Clock, Random};
use driftline_model::Limits;

use crate::rng::Rng;

/// When every simulation begins: 2026-01-01, in Unix milliseconds.
pub(crate) const BEGIN_MS: u64 = 1_767_225_600_000;

/// What a store of the simulation is opened with.
#[derive(Debug, Clone)]
pub struct World {
    /// The server's clock.
    pub clock: Arc<ServerClock>,
    /// The server's randomness.
    pub random: Arc<SeededRandom>,
    /// The server's limits.
    pub limits: Limits,
}

impl World {
    pub(crate) fn new(seed: u64, limits: Limits) -> Self {
        Self {
            clock: Arc::new(ServerClock(AtomicU64::new(BEGIN_MS))),
            random: Arc::new(SeededRandom(Mutex::new(Rng::new(seed, 0x5e)))),
            limits,
        }
    }
}

/// A clock that stands until it is moved.
#[derive(Debug)]
pub struct ServerClock(AtomicU64);

impl ServerClock {
    pub(crate) fn set(&self, now_ms: u64) {
        self.0.store(now_ms, Ordering::Relaxed);
    }
}

impl Clock for ServerClock {
    fn now_ms(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Randomness that a seed repeats.
pub struct SeededRandom(Mutex<Rng>);

impl fmt::Debug for SeededRandom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SeededRandom")
    }
}

impl Random for SeededRandom {
    fn fill(&self, buffer: &mut [u8]) {
        let mut rng = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for chunk in buffer.chunks_mut(8) {
            chunk.copy_from_slice(&rng.next().to_le_bytes()[..chunk.len()]);
        }
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Runs a future on this thread, which sleeps while a store's own thread works. Whatever a simulation asks of its
/// server is done before anything else happens, so that threads have no say in the order of things.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}
