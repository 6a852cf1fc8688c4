//! Random requests, few enough of each sort that they meet.

use driftline_testkit::{Rng, World};
use std::fmt::Write as _;

/// How many tenants, devices of each, keys, and so on.
pub(crate) const TENANTS: [&str; 2] = ["acme", "beta"];
pub(crate) const DEVICES: [&str; 2] = ["phone", "tablet"];
const KEYS: u64 = 6;
const SESSIONS: [&str; 2] = ["00000000-0000-4000-8000-000000000001", "00000000-0000-4000-8000-000000000002"];
const MINUTE_MS: u64 = 60_000;

/// Who sends: numbers of a tenant and of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Who {
    pub(crate) tenant: usize,
    pub(crate) device: usize,
}

/// A sample; without a value it is no object.
#[derive(Debug, Clone)]
pub(crate) struct Reading {
    pub(crate) id: Option<u64>,
    pub(crate) slot: u64,
    pub(crate) value: Option<u64>,
}

/// What is asked.
#[derive(Debug, Clone)]
pub(crate) enum Body {
    Samples { kind: &'static str, samples: Vec<Reading> },
    Edits { place: Option<(usize, u64)>, ops: Vec<u64> },
    Counts { window: u64, count: u64 },
    Device { number: u64, register: bool, enabled: bool },
}

/// A request.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) who: Who,
    pub(crate) key: Option<String>,
    pub(crate) body: Body,
}

impl Request {
    pub(crate) fn draw(rng: &mut Rng) -> Self {
        let who = Who { tenant: rng.place(TENANTS.len()), device: rng.place(DEVICES.len()) };
        let key = rng.percent(80).then(|| format!("k{}", rng.below(KEYS)));
        Self { who, key, body: Body::draw(rng) }
    }

    /// The message's type.
    pub(crate) fn kind(&self) -> &'static str {
        match &self.body {
            Body::Samples { kind, .. } => kind,
            Body::Edits { .. } => "sync_data",
            Body::Counts { .. } => "analytics_batch",
            Body::Device { .. } => "devices",
        }
    }

    /// The message's payload.
    pub(crate) fn payload(&self) -> String {
        let mut list = String::new();
        match &self.body {
            Body::Samples { samples, .. } => {
                for sample in samples {
                    let Some(value) = sample.value else {
                        list.push_str("5,");
                        continue;
                    };
                    let id = sample.id.map(|id| format!(r#""id":"s{id}","#)).unwrap_or_default();
                    let _ = write!(list, r#"{{{id}"slot":{},"value":{value}}},"#, sample.slot);
                }
                format!(r#"{{"items":[{}]}}"#, list.trim_end_matches(','))
            }
            Body::Edits { place, ops } => {
                for op in ops {
                    let id = format!("r-{}-{op}", DEVICES[self.who.device]);
                    let _ = write!(
                        list,
                        r#"{{"op_id":"op-{op}","kind":"note","id":"{id}","op":"create","fields":{{"op":{op}}}}},"#
                    );
                }
                let number = place.map(|(_, number)| format!(r#","batch_seq":{number}"#)).unwrap_or_default();
                format!(r#"{{"batch":[{}]{number}}}"#, list.trim_end_matches(','))
            }
            Body::Counts { window, count } => {
                let from = World::BEGIN_MS - (window + 1) * MINUTE_MS;
                let to = from + MINUTE_MS;
                format!(r#"{{"from":{from},"to":{to},"counters":{{"opened":{count}}}}}"#)
            }
            Body::Device { number, register, enabled } => format!("{number}/{register}/{enabled}"),
        }
    }

    /// The session that the message belongs to.
    pub(crate) fn session(&self) -> Option<&'static str> {
        match &self.body {
            Body::Edits { place, .. } => Some(SESSIONS[place.map_or(0, |(session, _)| session)]),
            _ => None,
        }
    }

    /// The message as it travels.
    pub(crate) fn frame(&self) -> String {
        let key = self.key.as_ref().map(|key| format!(r#""idempotency_key":"{key}","#)).unwrap_or_default();
        let session = self.session().map(|session| format!(r#""sync_id":"{session}","#)).unwrap_or_default();
        format!(r#"{{"type":"{}",{key}{session}"payload":{}}}"#, self.kind(), self.payload())
    }
}

impl Body {
    fn draw(rng: &mut Rng) -> Self {
        match rng.below(10) {
            0..5 => {
                let kind = if rng.percent(70) { "reading" } else { "gauge" };
                let samples = (0..rng.between(1, 2)).map(|_| Reading::draw(rng)).collect();
                Self::Samples { kind, samples }
            }
            5..7 => {
                let place = rng.percent(50).then(|| (rng.place(SESSIONS.len()), rng.below(3)));
                // Batches are few, so that the same one comes again; each names its changes by its own numbers.
                let first = 2 * rng.below(6);
                Self::Edits { place, ops: (first..first + rng.between(1, 2)).collect() }
            }
            7 | 8 => Self::Counts { window: rng.below(3), count: rng.between(1, 2) },
            _ => Self::Device { number: rng.below(3), register: rng.percent(50), enabled: rng.percent(50) },
        }
    }
}

impl Reading {
    fn draw(rng: &mut Rng) -> Self {
        let id = rng.percent(30).then(|| rng.below(4));
        Self { id, slot: rng.below(2), value: (!rng.percent(10)).then(|| rng.below(2)) }
    }
}
