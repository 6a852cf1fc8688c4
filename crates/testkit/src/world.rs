//! The world as a test wants it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use driftline_engine::{Clock, Committed, Listeners, Random};
use driftline_model::TenantNo;

use crate::folder::TempFolder;
use crate::rng::Rng;

/// A clock that stands until it is moved.
#[derive(Debug)]
pub struct FixedClock(AtomicU64);

impl FixedClock {
    /// Makes a clock that shows these Unix milliseconds.
    #[must_use]
    pub fn new(now_ms: u64) -> Self {
        Self(AtomicU64::new(now_ms))
    }

    /// Moves the clock to a time, which may be earlier.
    pub fn set(&self, now_ms: u64) {
        self.0.store(now_ms, Ordering::SeqCst);
    }

    /// Moves the clock forward.
    pub fn advance(&self, ms: u64) {
        self.0.fetch_add(ms, Ordering::SeqCst);
    }
}

impl Clock for FixedClock {
    fn now_ms(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// Randomness that a seed repeats.
#[derive(Debug)]
pub struct SeededRandom(Mutex<Rng>);

impl SeededRandom {
    /// Starts the sequence of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(Mutex::new(Rng::new(seed)))
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

/// Listens to every tenant and keeps what it is told.
#[derive(Debug)]
pub struct Recorder {
    listens: AtomicBool,
    heard: Mutex<Vec<Committed>>,
}

impl Recorder {
    /// Listens from now on, or no more.
    pub fn listen(&self, listens: bool) {
        self.listens.store(listens, Ordering::SeqCst);
    }

    /// Takes what was heard since the last time.
    pub fn take(&self) -> Vec<Committed> {
        std::mem::take(&mut *self.heard.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Default for Recorder {
    fn default() -> Self {
        Self { listens: AtomicBool::new(true), heard: Mutex::default() }
    }
}

impl Listeners for Recorder {
    fn listening(&self, _: TenantNo) -> bool {
        self.listens.load(Ordering::SeqCst)
    }

    fn committed(&self, committed: Committed) {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).push(committed);
    }
}

/// Everything that a store is opened with.
#[derive(Debug)]
pub struct World {
    /// The clock.
    pub clock: Arc<FixedClock>,
    /// The randomness.
    pub random: Arc<SeededRandom>,
    /// Hears the commits.
    pub listeners: Arc<Recorder>,
    /// A place for files.
    pub folder: TempFolder,
}

impl World {
    /// When a world begins: 2026-01-01, in Unix milliseconds.
    pub const BEGIN_MS: u64 = 1_767_225_600_000;

    /// Returns what the clock shows, in Unix milliseconds.
    #[must_use]
    pub fn clock_ms(&self) -> u64 {
        self.clock.now_ms()
    }

    /// Makes a world of its own.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            clock: Arc::new(FixedClock::new(Self::BEGIN_MS)),
            random: Arc::new(SeededRandom::new(seed)),
            listeners: Arc::default(),
            folder: TempFolder::new(),
        }
    }
}
