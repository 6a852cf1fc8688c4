//! How devices reach the server: connections, requests, and what an app does when they fail.

use super::backend::Backend;
use super::device::Door;
use super::network::{Event, Flow};
use super::report::Stop;
use super::run::Run;
use super::server::Effect;

/// How long a device waits for the answer to a request.
const ANSWER_MS: u64 = 30_000;

impl<B: Backend> Run<'_, B> {
    /// The app comes to the foreground: it wants to reach the server.
    pub(super) fn open_app(&mut self, number: usize) -> Result<(), Stop> {
        let now_ms = self.network.now_ms;
        let stay_ms = self.nature.visit_ms(&mut self.rng);
        let device = &mut self.devices[number];
        device.visit += 1;
        device.foreground = true;
        let visit = device.visit;
        if let Some(stay_ms) = stay_ms {
            self.network.after(stay_ms, Event::Background { device: number, visit });
        }
        match self.devices[number].door {
            Door::Closed => self.reach(number, self.devices[number].away_until_ms.saturating_sub(now_ms)),
            Door::Socket(_) | Door::Http(_) => self.transmit(number),
        }
    }

    /// Plans the next attempt to reach the server.
    fn reach(&mut self, number: usize, delay_ms: u64) -> Result<(), Stop> {
        let device = &mut self.devices[number];
        device.attempt += 1;
        let attempt = device.attempt;
        self.network.after(delay_ms, Event::Connect { device: number, attempt });
        Ok(())
    }

    /// Comes back after a failure, later with every one.
    pub(super) fn retry(&mut self, number: usize) -> Result<(), Stop> {
        if !self.devices[number].foreground {
            return Ok(());
        }
        let device = &mut self.devices[number];
        let most_ms = 500_u64 << device.failures.min(6);
        device.failures += 1;
        let away_ms = device.away_until_ms.saturating_sub(self.network.now_ms);
        let delay_ms = away_ms + self.rng.between(most_ms / 2, most_ms);
        self.reach(number, delay_ms)
    }

    /// The app goes to the background, without a goodbye.
    pub(super) fn background(&mut self, number: usize, visit: u64) -> Result<(), Stop> {
        if self.devices[number].visit != visit {
            return Ok(());
        }
        self.devices[number].foreground = false;
        self.told(number, |_| "goes to the background".into());
        self.drop_door(number, Flow::Draining)
    }

    /// Loses the way to the server; the server notices sooner or later.
    pub(super) fn drop_door(&mut self, number: usize, up: Flow) -> Result<(), Stop> {
        let device = &mut self.devices[number];
        if let Door::Socket(pipe) = std::mem::replace(&mut device.door, Door::Closed) {
            self.cut_pipe(pipe, up);
        }
        self.devices[number].replica.handle_disconnected();
        self.check(number)
    }

    /// Cuts a connection for the device; what is on its way to the server may still arrive.
    pub(super) fn cut_pipe(&mut self, pipe: u64, up: Flow) {
        if let Some(cut) = self.network.pipe(pipe) {
            (cut.up, cut.down) = (up, Flow::Cut);
        }
        // A server that hears nothing finds out by the heartbeat.
        if self.rng.percent(60) {
            let delay_ms = self.rng.between(0, 40_000);
            self.network.after(delay_ms, Event::Gone { pipe });
        }
    }

    pub(super) fn connect(&mut self, number: usize, attempt: u64) -> Result<(), Stop> {
        let now_ms = self.network.now_ms;
        let device = &self.devices[number];
        if device.attempt != attempt || device.door != Door::Closed || !device.foreground {
            return Ok(());
        }
        if device.away_until_ms > now_ms {
            return self.retry(number);
        }
        if device.blocked {
            return self.begin_requests(number);
        }
        let pipe = self.network.open(number);
        self.told(number, |_| format!("connects ({pipe})"));
        let device = &mut self.devices[number];
        device.door = Door::Socket(pipe);
        device.sent_ms = now_ms;
        let sync_id = device.sync_id(pipe);
        device.replica.handle_connected(sync_id);
        let account = device.account.clone();
        let server_ms = self.server_ms();
        // Nodes do not always know of each other's connections in time.
        if self.rng.percent(50) {
            let effects = self.server().replace(pipe, number, server_ms);
            self.perform(effects);
        }
        let effects = self.server().connect(pipe, number, &account, server_ms)?;
        self.perform(effects);
        self.network.after(2 * 25_000, Event::Tick { pipe });
        self.transmit(number)
    }

    pub(super) fn server_hears(&mut self, pipe: u64, text: String) -> Result<(), Stop> {
        if self.network.arrives(pipe, |pipe| pipe.up).is_none() {
            return Ok(());
        }
        let now_ms = self.server_ms();
        let effects = self.server().receive(pipe, text, now_ms);
        self.perform(effects);
        Ok(())
    }

    pub(super) fn device_hears(&mut self, pipe: u64, text: &str) -> Result<(), Stop> {
        let Some(number) = self.network.arrives(pipe, |pipe| pipe.down) else { return Ok(()) };
        let now_ms = self.network.now_ms;
        let device = &mut self.devices[number];
        if device.door != Door::Socket(pipe) {
            return Ok(());
        }
        device.failures = 0;
        let clock_ms = device.clock_ms(now_ms);
        if let Err(fault) = device.replica.handle_frame(text.as_bytes(), clock_ms) {
            self.told(number, |_| format!("cannot read a message: {fault}"));
            self.counts.event("unreadable message");
            self.drop_door(number, Flow::Draining)?;
            return self.retry(number);
        }
        self.check(number)?;
        self.transmit(number)
    }

    /// A device learns that its connection is gone.
    pub(super) fn closed(&mut self, pipe: u64) -> Result<(), Stop> {
        let Some(number) = self.network.pipe(pipe).map(|pipe| pipe.device) else { return Ok(()) };
        if self.devices[number].door == Door::Socket(pipe) {
            self.told(number, |_| format!("has lost connection {pipe}"));
            self.drop_door(number, Flow::Cut)?;
            self.retry(number)?;
        }
        self.network.forget(pipe);
        Ok(())
    }

    /// Sends what the device wants to send, and plans when to look again.
    pub(super) fn transmit(&mut self, number: usize) -> Result<(), Stop> {
        let now_ms = self.network.now_ms;
        let device = &mut self.devices[number];
        let clock_ms = device.clock_ms(now_ms);
        device.replica.handle_timeout(clock_ms);
        let Door::Socket(pipe) = device.door else { return Ok(()) };
        // After half an interval of silence.
        let beat_ms = device.replica.heartbeat_interval_s().map_or(u64::MAX, |s| device.sent_ms + s * 500);
        if beat_ms <= now_ms {
            device.replica.request_heartbeat();
        }
        device.replica.catch_up();
        while let Some(text) = device.replica.poll_transmit() {
            device.sent_ms = now_ms;
            self.network.send_up(pipe, text);
        }
        let beat_ms = device.replica.heartbeat_interval_s().map_or(u64::MAX, |s| device.sent_ms + s * 500);
        let timer_ms = device.replica.poll_timeout().map(|at_ms| now_ms + at_ms.saturating_sub(clock_ms));
        let next_ms = timer_ms.unwrap_or(u64::MAX).min(beat_ms).max(now_ms + 1);
        if next_ms < u64::MAX && (device.wake_ms <= now_ms || next_ms < device.wake_ms) {
            device.wake_ms = next_ms;
            self.network.after(next_ms - now_ms, Event::Wake { device: number, at_ms: next_ms });
        }
        Ok(())
    }

    pub(super) fn wake(&mut self, number: usize, at_ms: u64) -> Result<(), Stop> {
        if self.devices[number].wake_ms != at_ms {
            return Ok(());
        }
        self.devices[number].wake_ms = 0;
        self.transmit(number)
    }

    // The HTTP door.

    /// Goes on by requests.
    fn begin_requests(&mut self, number: usize) -> Result<(), Stop> {
        let device = &mut self.devices[number];
        device.request += 1;
        let request = device.request;
        device.door = Door::Http(request);
        self.request(number, request)
    }

    /// Makes the next request, if there is anything to say or to ask.
    pub(super) fn request(&mut self, number: usize, request: u64) -> Result<(), Stop> {
        let now_ms = self.network.now_ms;
        let device = &mut self.devices[number];
        if device.door != Door::Http(request) {
            return Ok(());
        }
        let clock_ms = device.clock_ms(now_ms);
        device.replica.handle_timeout(clock_ms);
        let Some(body) = device.replica.http_request() else { return Ok(()) };
        self.told(number, |_| format!("posts request {request}"));
        self.counts.event("request");
        self.network.after(ANSWER_MS, Event::GiveUp { device: number, request });
        let delay_ms = self.network.delay();
        let (lost, repeated) = self.nature.request_fate(&mut self.rng);
        if repeated {
            // Some proxy tries again on its own, at once or much later.
            self.counts.event("repeated request");
            let most_ms = *self.rng.pick(&[500, 60_000, 2 * 3_600_000]);
            let later_ms = self.rng.between(0, most_ms);
            let body = body.clone();
            let again = Event::Post { device: number, request, body, repeated: true };
            self.network.after(delay_ms + later_ms, again);
        }
        if lost {
            self.counts.event("lost request");
        } else {
            self.network.after(delay_ms, Event::Post { device: number, request, body, repeated: false });
        }
        Ok(())
    }

    pub(super) fn post(
        &mut self,
        number: usize,
        request: u64,
        body: &str,
        repeated: bool,
    ) -> Result<(), Stop> {
        let now_ms = self.server_ms();
        self.network.delivered += 1;
        let account = self.devices[number].account.clone();
        let (status, body) = self.server().post(&account, body, now_ms)?;
        self.after_commit(Vec::<Effect>::new())?;
        if repeated {
            return Ok(());
        }
        if self.nature.answer_is_lost(&mut self.rng) {
            self.counts.event("lost answer");
            return Ok(());
        }
        let delay_ms = self.network.delay();
        self.network.after(delay_ms, Event::Answer { device: number, request, status, body });
        Ok(())
    }

    pub(super) fn answer(
        &mut self,
        number: usize,
        request: u64,
        status: u16,
        body: &str,
    ) -> Result<(), Stop> {
        let now_ms = self.network.now_ms;
        self.network.delivered += 1;
        let device = &mut self.devices[number];
        if device.door != Door::Http(request) {
            return Ok(());
        }
        let clock_ms = device.clock_ms(now_ms);
        let taken = device.replica.handle_http(status, body.as_bytes(), clock_ms);
        self.told(number, |_| format!("hears {status} of request {request}: {taken:?}"));
        self.check(number)?;
        if taken.is_err() {
            self.devices[number].door = Door::Closed;
            return self.retry(number);
        }
        let device = &mut self.devices[number];
        device.failures = 0;
        device.request += 1;
        device.door = Door::Http(device.request);
        let settled = device.replica.is_settled();
        let request = device.request;
        let delay_ms = if settled { self.rng.between(10_000, 60_000) } else { self.rng.between(10, 1_500) };
        self.network.after(delay_ms, Event::Request { device: number, request });
        Ok(())
    }

    /// The answer did not come in time.
    pub(super) fn give_up(&mut self, number: usize, request: u64) -> Result<(), Stop> {
        if self.devices[number].door != Door::Http(request) {
            return Ok(());
        }
        self.told(number, |_| format!("gives request {request} up"));
        self.drop_door(number, Flow::Cut)?;
        self.retry(number)
    }
}
