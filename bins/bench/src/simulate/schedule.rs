//! What happens next: the actions of users and the faults of the world, drawn from the seed.

use driftline_client::ItemOp;

use super::backend::Backend;
use super::network::{Event, Latency};
use super::report::Stop;
use super::run::{Run, asked};
use crate::rng::Rng;

const MINUTE_MS: u64 = 60_000;
const HOUR_MS: u64 = 60 * MINUTE_MS;

/// How the world of one seed is: one has a bad network, another has wrong clocks, a third restarts all the time.
#[derive(Debug, Clone)]
pub(super) struct Nature {
    pub(super) latency: Latency,
    actions: Vec<(Action, u64)>,
    skew_ms_most: u64,
    lost_percent: u64,
    repeated_percent: u64,
    /// How long an app stays open; nothing: for ever.
    visit_ms: Option<u64>,
    thinking_ms: u64,
}

/// One kind of action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Edit,
    Open,
    Cut,
    Away,
    Block,
    RestartApp,
    RestartServer,
    Save,
    Restore,
    JumpClock,
    JumpServerClock,
    Month,
    Review,
}

impl Nature {
    pub(super) fn draw(rng: &mut Rng) -> Self {
        use Action::{
            Away, Block, Cut, Edit, JumpClock, JumpServerClock, Month, Open, RestartApp, RestartServer,
            Restore, Review, Save,
        };
        let usual = [
            (Edit, 100),
            (Open, 22),
            (Cut, 12),
            (Away, 6),
            (Block, 6),
            (RestartApp, 4),
            (RestartServer, 4),
            (Save, 3),
            (Restore, 2),
            (JumpClock, 5),
            (JumpServerClock, 1),
            (Month, 1),
            (Review, 6),
        ];
        let mut weight = |(action, usual): (Action, u64)| {
            let times = match action {
                Edit | Open => 4,
                // Most seeds live without the worst, so that other things have the time to go wrong.
                Restore | Month | JumpServerClock => *rng.pick(&[0, 0, 4, 8]),
                _ => *rng.pick(&[0, 2, 4, 12]),
            };
            (action, usual * times)
        };
        let actions = usual.map(&mut weight).to_vec();
        let latency = *rng.pick(&[
            Latency { least: 1, most: 10 },
            Latency { least: 20, most: 200 },
            Latency { least: 50, most: 4_000 },
        ]);
        Self {
            latency,
            actions,
            skew_ms_most: *rng.pick(&[0, 5_000, 50_000, 10 * MINUTE_MS]),
            lost_percent: *rng.pick(&[0, 10, 30]),
            repeated_percent: *rng.pick(&[0, 15, 40]),
            visit_ms: Some(*rng.pick(&[MINUTE_MS, 5 * MINUTE_MS, 30 * MINUTE_MS])),
            thinking_ms: *rng.pick(&[1, 30, 2_000]),
        }
    }

    /// Ends what can go wrong.
    pub(super) fn calm(&mut self) {
        self.latency = Latency { least: 5, most: 50 };
        self.visit_ms = None;
        (self.lost_percent, self.repeated_percent, self.thinking_ms) = (0, 0, 5);
    }

    /// How far a device's clock is off.
    pub(super) fn skew_ms(&self, rng: &mut Rng) -> i64 {
        let off = i64::try_from(rng.between(0, self.skew_ms_most)).unwrap_or_default();
        if rng.percent(50) { off } else { -off }
    }

    pub(super) fn thinking_ms(&self, rng: &mut Rng) -> u64 {
        rng.between(0, self.thinking_ms)
    }

    pub(super) fn visit_ms(&self, rng: &mut Rng) -> Option<u64> {
        self.visit_ms.map(|most_ms| rng.between(most_ms / 4, most_ms))
    }

    /// Whether a request is lost, and whether it is repeated on its way.
    pub(super) fn request_fate(&self, rng: &mut Rng) -> (bool, bool) {
        (rng.percent(self.lost_percent), rng.percent(self.repeated_percent))
    }

    pub(super) fn answer_is_lost(&self, rng: &mut Rng) -> bool {
        rng.percent(self.lost_percent)
    }

    fn action(&self, rng: &mut Rng) -> Action {
        let total: u64 = self.actions.iter().map(|(_, weight)| weight).sum();
        let mut left = rng.next() % total.max(1);
        for (action, weight) in &self.actions {
            match left.checked_sub(*weight) {
                Some(rest) => left = rest,
                None => return *action,
            }
        }
        Action::Edit
    }
}

impl<B: Backend> Run<'_, B> {
    /// Plans the next action: most come in bursts, some after hours.
    pub(super) fn plan_step(&mut self) {
        let mean_ms = (self.setup.hours * HOUR_MS / self.setup.steps.max(1)).max(1);
        let delay_ms = match self.rng.below(10) {
            0..7 => self.rng.between(0, (mean_ms / 100).min(5_000)),
            7 | 8 => self.rng.between(0, 2 * mean_ms),
            _ => self.rng.between(mean_ms, 15 * mean_ms),
        };
        self.network.after(delay_ms, Event::Step);
    }

    pub(super) fn step(&mut self) -> Result<(), Stop> {
        self.counts.steps += 1;
        let device = self.rng.below(self.devices.len());
        match self.nature.action(&mut self.rng) {
            Action::Edit => self.edit(device)?,
            Action::Open => {
                self.told(device, |_| "looks at the app".into());
                self.devices[device].replica.request_pull();
                self.open_app(device)?;
            }
            Action::Cut => self.cut(device)?,
            Action::Away => self.go_away(device)?,
            Action::Block => self.block(device)?,
            Action::RestartApp => self.restart_app(device)?,
            Action::RestartServer => self.restart_server()?,
            Action::Save => self.save()?,
            Action::Restore => self.restore()?,
            Action::JumpClock => self.jump_clock(device),
            Action::JumpServerClock => self.jump_server_clock(),
            Action::Month => self.month()?,
            Action::Review => self.review()?,
        }
        self.plan_step();
        Ok(())
    }

    /// A user edits something, connected or not.
    fn edit(&mut self, number: usize) -> Result<(), Stop> {
        let times = if self.rng.percent(20) { self.rng.between(2, 6) } else { 1 };
        for _ in 0..times {
            let wish = self.workload.wish(&self.devices[number]);
            self.told(number, |_| {
                let each = wish.edits.iter().map(|edit| {
                    let fields = if edit.op == ItemOp::Delete { "" } else { edit.fields.as_str() };
                    let more = asked(Some(&edit.intents));
                    format!("{} {} {fields}{more}", edit.op.as_str(), edit.id)
                });
                each.collect::<Vec<_>>().join(", and ")
            });
            self.counts.edits += wish.edits.len() as u64;
            let device = &mut self.devices[number];
            let clock_ms = device.clock_ms(self.network.now_ms);
            let names: Vec<_> = wish.edits.iter().map(|_| device.op_id()).collect();
            let mut names = names.into_iter();
            let mut name = || names.next().expect("a name per edit");
            let queued = if wish.grouped {
                device.replica.edit_group(wish.edits, name, clock_ms).map(|_| ())
            } else {
                wish.edits
                    .into_iter()
                    .try_for_each(|edit| device.replica.edit(edit, name(), clock_ms).map(|_| ()))
            };
            queued.map_err(|error| anyhow::anyhow!("an edit was not taken: {error}"))?;
        }
        // Mostly the app goes on to sync; else the edit waits for the next visit.
        if self.rng.percent(80) { self.open_app(number) } else { Ok(()) }
    }
}
