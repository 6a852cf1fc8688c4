//! Virtual time, and messages on their way.

use std::collections::BTreeMap;

use crate::rng::Rng;

/// Something that happens at a time.
#[derive(Debug)]
pub(super) enum Event {
    /// The next action of the schedule.
    Step,
    /// A device tries to open a connection, unless it has found another way meanwhile.
    Connect { device: usize, attempt: u64 },
    /// A device looks at the time.
    Wake { device: usize, at_ms: u64 },
    /// A device's user puts the app away.
    Background { device: usize, visit: u64 },
    /// A message reaches the server.
    ToServer { pipe: u64, text: String },
    /// A message reaches a device.
    ToDevice { pipe: u64, text: String },
    /// A device learns that its connection is gone.
    Closed { pipe: u64 },
    /// The server learns that a connection is gone.
    Gone { pipe: u64 },
    /// The server has done the oldest work of a connection.
    Work { pipe: u64 },
    /// A session hears of commits.
    Commits { pipe: u64 },
    /// The server looks after a silent connection.
    Tick { pipe: u64 },
    /// A request reaches the HTTP door; the answer to a repeated one goes nowhere.
    Post { device: usize, request: u64, body: String, repeated: bool },
    /// The answer to a request reaches a device.
    Answer { device: usize, request: u64, status: u16, body: String },
    /// A device has waited long enough for an answer.
    GiveUp { device: usize, request: u64 },
    /// A device makes its next request.
    Request { device: usize, request: u64 },
}

/// How one direction of a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    /// Messages go in and come out.
    Open,
    /// What went in comes out; nothing more goes in.
    Draining,
    /// Everything is lost.
    Cut,
}

/// One connection as the network sees it: two ordered streams.
#[derive(Debug)]
pub(super) struct Pipe {
    pub(super) device: usize,
    pub(super) up: Flow,
    pub(super) down: Flow,
    /// When the last message of each direction arrives; the next one arrives later.
    up_ms: u64,
    down_ms: u64,
    pub(super) work_ms: u64,
}

/// How long messages take, in milliseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Latency {
    pub(super) least: u64,
    pub(super) most: u64,
}

/// Everything that is to happen, in the order of its time.
#[derive(Debug)]
pub(super) struct Network {
    pub(super) now_ms: u64,
    pub(super) latency: Latency,
    events: BTreeMap<(u64, u64), Event>,
    order: u64,
    pipes: BTreeMap<u64, Pipe>,
    next_pipe: u64,
    /// Messages that were delivered.
    pub(super) delivered: u64,
    rng: Rng,
}

impl Network {
    pub(super) fn new(now_ms: u64, latency: Latency, rng: Rng) -> Self {
        Self {
            now_ms,
            latency,
            events: BTreeMap::new(),
            order: 0,
            pipes: BTreeMap::new(),
            next_pipe: 1,
            delivered: 0,
            rng,
        }
    }

    /// Lets something happen later.
    pub(super) fn after(&mut self, delay_ms: u64, event: Event) {
        self.at(self.now_ms + delay_ms, event);
    }

    fn at(&mut self, at_ms: u64, event: Event) {
        self.order += 1;
        self.events.insert((at_ms, self.order), event);
    }

    /// Moves the time to the next event.
    pub(super) fn next(&mut self) -> Option<Event> {
        let ((at_ms, _), event) = self.events.pop_first()?;
        self.now_ms = self.now_ms.max(at_ms);
        Some(event)
    }

    pub(super) fn delay(&mut self) -> u64 {
        self.rng.between(self.latency.least, self.latency.most)
    }

    /// Opens a connection; gives its number.
    pub(super) fn open(&mut self, device: usize) -> u64 {
        let number = self.next_pipe;
        self.next_pipe += 1;
        let now_ms = self.now_ms;
        let pipe = Pipe {
            device,
            up: Flow::Open,
            down: Flow::Open,
            up_ms: now_ms,
            down_ms: now_ms,
            work_ms: now_ms,
        };
        self.pipes.insert(number, pipe);
        number
    }

    pub(super) fn pipe(&mut self, number: u64) -> Option<&mut Pipe> {
        self.pipes.get_mut(&number)
    }

    pub(super) fn pipes(&mut self) -> impl Iterator<Item = (u64, &mut Pipe)> {
        self.pipes.iter_mut().map(|(number, pipe)| (*number, pipe))
    }

    pub(super) fn forget(&mut self, number: u64) {
        self.pipes.remove(&number);
    }

    pub(super) fn send_up(&mut self, number: u64, text: String) {
        let delay_ms = self.delay();
        let now_ms = self.now_ms;
        let Some(pipe) = self.pipes.get_mut(&number).filter(|pipe| pipe.up == Flow::Open) else { return };
        pipe.up_ms = pipe.up_ms.max(now_ms + delay_ms);
        let at_ms = pipe.up_ms;
        self.at(at_ms, Event::ToServer { pipe: number, text });
    }

    pub(super) fn send_down(&mut self, number: u64, text: String) {
        if let Some(at_ms) = self.arrival_down(number) {
            self.at(at_ms, Event::ToDevice { pipe: number, text });
        }
    }

    /// Closes a connection from the server's side, behind everything that it has sent.
    pub(super) fn close_down(&mut self, number: u64) {
        if let Some(at_ms) = self.arrival_down(number) {
            self.at(at_ms, Event::Closed { pipe: number });
        }
    }

    fn arrival_down(&mut self, number: u64) -> Option<u64> {
        let delay_ms = self.delay();
        let now_ms = self.now_ms;
        let pipe = self.pipes.get_mut(&number).filter(|pipe| pipe.down == Flow::Open)?;
        pipe.down_ms = pipe.down_ms.max(now_ms + delay_ms);
        Some(pipe.down_ms)
    }

    /// Lets the server finish a work after some thinking, never before an earlier one of the same connection.
    pub(super) fn work(&mut self, number: u64, thinking_ms: u64) {
        let now_ms = self.now_ms;
        let Some(pipe) = self.pipes.get_mut(&number) else { return };
        pipe.work_ms = pipe.work_ms.max(now_ms + thinking_ms);
        let at_ms = pipe.work_ms;
        self.at(at_ms, Event::Work { pipe: number });
    }

    /// Takes a message that arrives; nothing if the connection lost it.
    pub(super) fn arrives(&mut self, number: u64, flow: fn(&Pipe) -> Flow) -> Option<usize> {
        let pipe = self.pipes.get(&number).filter(|pipe| flow(pipe) != Flow::Cut)?;
        self.delivered += 1;
        Some(pipe.device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network() -> Network {
        Network::new(1_000, Latency { least: 1, most: 500 }, Rng::new(1, 1))
    }

    fn texts(network: &mut Network) -> Vec<String> {
        let mut texts = Vec::new();
        while let Some(event) = network.next() {
            if let Event::ToServer { text, pipe } = event
                && network.arrives(pipe, |pipe| pipe.up).is_some()
            {
                texts.push(text);
            }
        }
        texts
    }

    #[test]
    fn one_connection_keeps_the_order_of_its_messages() {
        let mut network = network();
        let pipe = network.open(0);
        let sent: Vec<String> = (0..50).map(|number| number.to_string()).collect();
        for text in &sent {
            network.send_up(pipe, text.clone());
        }
        assert_eq!(texts(&mut network), sent);
        assert!(network.now_ms > 1_000, "messages take their time");
    }

    #[test]
    fn a_cut_loses_what_is_under_way_and_a_draining_stream_does_not() {
        for (flow, wanted) in [(Flow::Cut, 0), (Flow::Draining, 1)] {
            let mut network = network();
            let pipe = network.open(0);
            network.send_up(pipe, "before".into());
            network.pipe(pipe).expect("it is open").up = flow;
            network.send_up(pipe, "after".into());
            assert_eq!(texts(&mut network).len(), wanted, "{flow:?}");
        }
    }
}
