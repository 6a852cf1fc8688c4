//! What the test ordered, and what passes because of it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Direction;
use super::connection::Connection;

/// What is wrong with the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    None,
    Cut,
    Stall,
    /// Only this direction passes.
    OneWay(Direction),
    /// The proxy is being dropped.
    Ended,
}

impl Fault {
    fn passes(self, direction: Direction) -> bool {
        match self {
            Self::None => true,
            Self::OneWay(open) => open == direction,
            Self::Cut | Self::Stall | Self::Ended => false,
        }
    }
}

/// The reset that [`super::Proxy::cut_after`] ordered.
#[derive(Debug, Clone, Copy)]
struct Plan {
    number: u64,
    bytes: u64,
    direction: Direction,
}

#[derive(Debug)]
struct State {
    fault: Fault,
    delay: Duration,
    upstream: SocketAddr,
    plan: Option<Plan>,
    plans: u64,
    cuts: u64,
    /// How many bytes passed or are being written, by direction: a byte is counted before anybody can receive it.
    passed: [u64; 2],
    /// How many writes are under way, by direction.
    writing: [usize; 2],
    connections: HashMap<u64, Arc<Connection>>,
    /// The number of the next connection.
    next: u64,
}

/// The state of a proxy, which the test and all connections share.
#[derive(Debug)]
pub(super) struct Shared {
    /// Guards a few numbers; nobody reads or writes a socket while holding it.
    state: Mutex<State>,
    changed: Condvar,
}

/// One direction of one connection.
#[derive(Debug)]
pub(super) struct Passage {
    direction: Direction,
    /// The plan that was in force when something last passed.
    plan: u64,
    /// How many bytes passed since that plan was made.
    bytes: u64,
    /// How many bytes the write that is under way may write.
    writing: usize,
}

impl Passage {
    pub(super) fn new(direction: Direction) -> Self {
        Self { direction, plan: 0, bytes: 0, writing: 0 }
    }

    /// Returns how many of `len` bytes a plan lets through.
    fn left(&mut self, plan: Plan, len: usize) -> usize {
        if plan.direction != self.direction {
            return len;
        }
        if self.plan != plan.number {
            (self.plan, self.bytes) = (plan.number, 0);
        }
        usize::try_from(plan.bytes - self.bytes).map_or(len, |left| left.min(len))
    }
}

impl Shared {
    pub(super) fn new(upstream: SocketAddr) -> Self {
        let state = State {
            fault: Fault::None,
            delay: Duration::ZERO,
            upstream,
            plan: None,
            plans: 0,
            cuts: 0,
            passed: [0; 2],
            writing: [0; 2],
            connections: HashMap::new(),
            next: 0,
        };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the fault, and waits for the writes that it forbids and that had begun.
    pub(super) fn order(&self, fault: Fault) {
        let mut state = self.state();
        state.fault = fault;
        if fault == Fault::None {
            state.delay = Duration::ZERO;
            state.plan = None;
        }
        self.changed.notify_all();
        for direction in [Direction::ToServer, Direction::ToClient] {
            while !fault.passes(direction) && state.writing[direction as usize] > 0 {
                state = self.wait(state);
            }
        }
    }

    pub(super) fn delay(&self, delay: Duration) {
        self.state().delay = delay;
    }

    pub(super) fn cut_after(&self, bytes: u64, direction: Direction) {
        let mut state = self.state();
        state.plans += 1;
        state.plan = Some(Plan { number: state.plans, bytes, direction });
        while state.writing[direction as usize] > 0 {
            state = self.wait(state);
        }
    }

    pub(super) fn target(&self, upstream: SocketAddr) {
        self.state().upstream = upstream;
    }

    pub(super) fn passed(&self, direction: Direction) -> u64 {
        self.state().passed[direction as usize]
    }

    pub(super) fn cuts(&self) -> u64 {
        self.state().cuts
    }

    pub(super) fn connections(&self) -> usize {
        self.state().connections.len()
    }

    pub(super) fn has_ended(&self) -> bool {
        self.state().fault == Fault::Ended
    }

    /// Closes every connection and waits until all are gone.
    pub(super) fn close_all(&self) {
        let connections: Vec<Arc<Connection>> = self.state().connections.values().cloned().collect();
        connections.into_iter().for_each(|connection| self.close(&connection));
        let mut state = self.state();
        while !state.connections.is_empty() {
            state = self.wait(state);
        }
    }

    /// Ends all threads of a connection.
    pub(super) fn close(&self, connection: &Connection) {
        connection.close();
        // Under the lock, so that nobody is between looking at the connection and waiting.
        let _state = self.state();
        self.changed.notify_all();
    }

    /// Takes a connection in; none when there are to be no connections.
    pub(super) fn add(&self, connection: &Arc<Connection>) -> Option<u64> {
        let mut state = self.state();
        if matches!(state.fault, Fault::Cut | Fault::Ended) {
            return None;
        }
        let number = state.next;
        state.next += 1;
        state.connections.insert(number, Arc::clone(connection));
        Some(number)
    }

    pub(super) fn remove(&self, number: u64) {
        self.state().connections.remove(&number);
        self.changed.notify_all();
    }

    /// Waits until a connection may be made, and says where to; none when it was closed meanwhile.
    pub(super) fn upstream(&self, connection: &Connection) -> Option<SocketAddr> {
        let mut state = self.state();
        loop {
            match state.fault {
                _ if connection.is_closed() => return None,
                Fault::Cut | Fault::Ended => return None,
                Fault::Stall => state = self.wait(state),
                Fault::None | Fault::OneWay(_) => return Some(state.upstream),
            }
        }
    }

    /// Returns when what was read now is to arrive.
    pub(super) fn due(&self) -> Instant {
        now() + self.state().delay
    }

    /// Waits for a time; false when the connection was closed meanwhile.
    pub(super) fn wait_until(&self, due: Instant, connection: &Connection) -> bool {
        let mut state = self.state();
        loop {
            let left = due.saturating_duration_since(now());
            if connection.is_closed() || left.is_zero() {
                return !connection.is_closed();
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until bytes, or the end of a direction, may pass, and says how many bytes. What is written then is told to
    /// [`Shared::written`]. None: the connection is to be closed.
    pub(super) fn admit(&self, connection: &Connection, passage: &mut Passage, len: usize) -> Option<usize> {
        let mut state = self.state();
        while !connection.is_closed() && !state.fault.passes(passage.direction) {
            state = self.wait(state);
        }
        if connection.is_closed() {
            return None;
        }
        let may = state.plan.map_or(len, |plan| passage.left(plan, len));
        if may == 0 && len > 0 {
            state.plan = None;
            state.cuts += 1;
            return None;
        }
        passage.writing = may;
        state.passed[passage.direction as usize] += may as u64;
        state.writing[passage.direction as usize] += 1;
        Some(may)
    }

    pub(super) fn written(&self, passage: &mut Passage, bytes: usize) {
        passage.bytes += bytes as u64;
        let mut state = self.state();
        state.passed[passage.direction as usize] -= (passage.writing - bytes) as u64;
        state.writing[passage.direction as usize] -= 1;
        self.changed.notify_all();
    }
}

#[allow(clippy::disallowed_methods, reason = "a delay of a real network is measured by a real clock")]
fn now() -> Instant {
    Instant::now()
}
