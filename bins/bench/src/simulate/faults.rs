//! What goes wrong: networks, apps, servers, clocks, disks.

use driftline_engine::{Retention, Store as _};

use super::backend::Backend;
use super::device::Door;
use super::network::{Event, Flow};
use super::report::Stop;
use super::run::Run;
use super::world::block_on;

const MINUTE_MS: u64 = 60_000;
const HOUR_MS: u64 = 60 * MINUTE_MS;

impl<B: Backend> Run<'_, B> {
    /// A connection breaks. Both directions lose what is under way, or the server still gets what was sent.
    pub(super) fn cut(&mut self, number: usize) -> Result<(), Stop> {
        let Door::Socket(pipe) = self.devices[number].door else { return Ok(()) };
        let up = if self.rng.percent(50) { Flow::Cut } else { Flow::Draining };
        self.counts.event(if up == Flow::Cut { "cut" } else { "cut with late messages" });
        self.told(number, |_| format!("connection {pipe} is cut, {up:?}"));
        self.cut_pipe(pipe, up);
        // The device notices at once, or goes on talking into the void for a while.
        let delay_ms = if self.rng.percent(70) { 0 } else { self.rng.between(0, MINUTE_MS) };
        self.network.after(delay_ms, Event::Closed { pipe });
        Ok(())
    }

    /// A device has no network for hours, or for a week.
    pub(super) fn go_away(&mut self, number: usize) -> Result<(), Stop> {
        let most_ms = *self.rng.pick(&[HOUR_MS, 12 * HOUR_MS, 7 * 24 * HOUR_MS]);
        let away_ms = self.rng.between(10 * MINUTE_MS, most_ms);
        self.counts.event("away");
        self.told(number, |_| format!("has no network for {} min", away_ms / MINUTE_MS));
        self.devices[number].away_until_ms = self.network.now_ms + away_ms;
        self.drop_door(number, Flow::Cut)?;
        self.retry(number)
    }

    /// A network lets WebSockets through no more, or again.
    pub(super) fn block(&mut self, number: usize) -> Result<(), Stop> {
        let blocked = !self.devices[number].blocked;
        self.devices[number].blocked = blocked;
        self.counts.event("blocked or unblocked");
        self.told(number, |_| format!("WebSockets blocked: {blocked}"));
        self.drop_door(number, Flow::Draining)?;
        self.retry(number)
    }

    /// The app is killed and started again; records and queue are on its disk.
    pub(super) fn restart_app(&mut self, number: usize) -> Result<(), Stop> {
        self.counts.event("app restart");
        self.told(number, |_| "is killed and started again".into());
        self.drop_door(number, Flow::Cut)?;
        self.open_app(number)
    }

    /// The server is killed and started again on the same store.
    pub(super) fn restart_server(&mut self) -> Result<(), Stop> {
        self.counts.event("server restart");
        self.told_of_server(|| "is killed and started again".into());
        self.lose_connections();
        self.stop_server();
        self.start_server()?;
        Ok(())
    }

    /// Every connection breaks from the server's side.
    fn lose_connections(&mut self) {
        let mut broken = Vec::new();
        for (number, pipe) in self.network.pipes() {
            (pipe.up, pipe.down) = (Flow::Cut, Flow::Cut);
            broken.push(number);
        }
        for pipe in broken {
            let delay_ms = self.rng.between(0, 5_000);
            self.network.after(delay_ms, Event::Closed { pipe });
        }
    }

    /// The operator takes a copy of the store.
    pub(super) fn save(&mut self) -> Result<(), Stop> {
        self.counts.event("copy");
        self.told_of_server(|| "a copy of the store is taken".into());
        self.backend.save()?;
        self.journal.book().save();
        self.laws.save();
        self.saved_evidence = self.evidence.clone();
        self.has_copy = true;
        Ok(())
    }

    /// The disk is lost, and the operator puts the copy in its place: a new life of the sequence begins.
    pub(super) fn restore(&mut self) -> Result<(), Stop> {
        if !self.has_copy {
            return Ok(());
        }
        let at = self.laws.saved_head();
        self.told_of_server(|| format!("is brought back from the copy at {at}"));
        self.lose_connections();
        self.stop_server();
        self.backend.restore()?;
        self.journal.book().restore();
        self.laws.restore();
        self.evidence = self.saved_evidence.clone();
        self.start_server()?;
        let ahead = (0..self.devices.len()).find(|&number| self.may_tell_of_rollback(number));
        match ahead.filter(|_| self.rng.percent(50)) {
            Some(number) => self.first_back(number)?,
            None => {
                self.counts.event("restore");
                let head = self.head()?;
                let tenant = self.identities[0].tenant;
                let head = block_on(self.server().engine.store().begin_epoch(tenant, head.epoch))
                    .map_err(anyhow::Error::from)?;
                self.told_of_server(|| format!("begins epoch {}", head.epoch));
            }
        }
        Ok(())
    }

    /// Whether a device has a genuine cursor that is ahead of the store.
    fn may_tell_of_rollback(&self, number: usize) -> bool {
        let replica = &self.devices[number].replica;
        let epoch = self.head().map(|head| head.epoch).ok();
        replica.cursor().is_some() && replica.epoch() == epoch && replica.seq() > self.laws.saved_head()
    }

    /// Nobody told the server that its store is a copy: the first device that comes back does, by a pull.
    fn first_back(&mut self, number: usize) -> Result<(), Stop> {
        self.counts.event("rollback found by a cursor");
        self.told(number, |_| "is the first one back, with a cursor ahead of the server".into());
        let device = &mut self.devices[number];
        device.door = Door::Closed;
        device.replica.handle_disconnected();
        let now_ms = self.network.now_ms;
        let server_ms = self.server_ms();
        let clock_ms = self.devices[number].clock_ms(now_ms);
        let Some(body) = self.devices[number].replica.http_request() else { return Ok(()) };
        let account = self.devices[number].account.clone();
        let (status, body) = self.server().post(&account, &body, server_ms)?;
        // What the answer says is no matter here: the epoch has to be another one now.
        let _ = self.devices[number].replica.handle_http(status, body.as_bytes(), clock_ms);
        self.devices[number].replica.handle_disconnected();
        self.after_commit(Vec::new())?;
        self.check(number)?;
        self.retry(number)
    }

    /// A device's user or its network sets the clock.
    pub(super) fn jump_clock(&mut self, number: usize) {
        let most_ms = *self.rng.pick(&[5_000, 30 * MINUTE_MS, 30 * 24 * HOUR_MS]);
        let off_ms = i64::try_from(self.rng.between(0, most_ms)).unwrap_or_default();
        let off_ms = if self.rng.percent(50) { off_ms } else { -off_ms };
        self.counts.event("clock jump");
        self.told(number, |_| format!("its clock is off by {off_ms} ms"));
        self.devices[number].offset_ms = off_ms;
    }

    pub(super) fn jump_server_clock(&mut self) {
        let off_ms = i64::try_from(self.rng.between(0, 10 * MINUTE_MS)).unwrap_or_default();
        self.server_offset_ms = if self.rng.percent(50) { off_ms } else { -off_ms };
        let off_ms = self.server_offset_ms;
        self.counts.event("server clock jump");
        self.told_of_server(|| format!("its clock is off by {off_ms} ms"));
        self.world.clock.set(self.server_ms());
    }

    /// A month passes while everybody is away, and the server tidies up.
    pub(super) fn month(&mut self) -> Result<(), Stop> {
        self.counts.event("a month and a clean-up");
        self.told_of_server(|| "a month passes, and what is past its retention goes".into());
        self.lose_connections();
        for number in 0..self.devices.len() {
            self.drop_door(number, Flow::Cut)?;
            self.devices[number].foreground = false;
        }
        self.network.now_ms += 32 * 24 * HOUR_MS;
        self.world.clock.set(self.server_ms());
        let keys: Vec<_> = self.laws.rows().keys().cloned().collect();
        keys.iter().try_for_each(|key| self.collect(key))?;
        self.collect_conflicts()?;
        let now_ms = self.server_ms();
        block_on(self.server().engine.store().prune(now_ms, &Retention::default()))
            .map_err(anyhow::Error::from)?;
        keys.iter().try_for_each(|key| self.look_at(key.clone()))?;
        let gone = keys.into_iter().filter(|key| !self.laws.rows().contains_key(key));
        self.removed.extend(gone);
        Ok(())
    }

    /// Everything works again, and every app is opened.
    pub(super) fn end_faults(&mut self) -> Result<(), Stop> {
        self.told_of_server(|| "the faults end".into());
        self.nature.calm();
        self.network.latency = self.nature.latency;
        self.server_offset_ms = 0;
        for number in 0..self.devices.len() {
            let device = &mut self.devices[number];
            (device.away_until_ms, device.failures) = (0, 0);
            device.replica.request_pull();
            // Whoever talks into the void finds out now.
            if let Door::Socket(pipe) = device.door
                && self.network.pipe(pipe).is_none_or(|pipe| pipe.down != Flow::Open)
            {
                self.drop_door(number, Flow::Cut)?;
            }
            self.open_app(number)?;
        }
        Ok(())
    }
}
