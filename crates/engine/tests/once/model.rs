//! What must come of keyed requests, kept in plain maps.

use std::collections::{BTreeMap, BTreeSet};

use crate::request::{Body, Reading, Request};

/// How long a place in a sync session is remembered.
const BATCH_MS: u64 = 24 * 3_600_000;
/// How long the window of an aggregate is remembered that came without a key.
const WINDOW_MS_MAX: u64 = 90 * 24 * 3_600_000;

/// What a request is answered, but for what only the real thing knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Samples: stored now, stored before, and the places of those that are refused.
    Samples { accepted: u64, duplicates: u64, rejected: Vec<u64> },
    /// A batch: for each item whether it was known before.
    Items(Vec<bool>),
    /// An aggregate was taken.
    Counted,
    /// A change of the registry was made.
    Registered,
    /// The device is there already.
    Exists,
    /// There is no such device.
    NotFound,
}

/// What comes of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    Executed(Answer),
    /// It is answered as it was at a step.
    Replayed {
        of: u64,
    },
    Reused,
}

/// How a request came to its outcome, for counting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Branch {
    WithoutKey,
    Fresh,
    ReplayedAtOnce,
    ReplayedInGroup,
    ReplayedAfterRestart,
    ReplayedAfterPrune,
    ReplayedLastMoment,
    ReusedAtOnce,
    ReusedInGroup,
    ReusedAfterRestart,
    ExecutedAfterExpiry,
    ExecutedFirstMoment,
    ExecutedAfterPrune,
    ExpiredByAnotherBody,
    OtherOwner,
    OtherTenant,
    BatchReplayed,
    BatchReused,
    WindowReplayed,
    WindowReused,
    RegistryReplayed,
    RegistryReused,
    NotStored,
}

impl Branch {
    pub(crate) const ALL: [Self; 23] = [
        Self::WithoutKey,
        Self::Fresh,
        Self::ReplayedAtOnce,
        Self::ReplayedInGroup,
        Self::ReplayedAfterRestart,
        Self::ReplayedAfterPrune,
        Self::ReplayedLastMoment,
        Self::ReusedAtOnce,
        Self::ReusedInGroup,
        Self::ReusedAfterRestart,
        Self::ExecutedAfterExpiry,
        Self::ExecutedFirstMoment,
        Self::ExecutedAfterPrune,
        Self::ExpiredByAnotherBody,
        Self::OtherOwner,
        Self::OtherTenant,
        Self::BatchReplayed,
        Self::BatchReused,
        Self::WindowReplayed,
        Self::WindowReused,
        Self::RegistryReplayed,
        Self::RegistryReused,
        Self::NotStored,
    ];
}

/// What is remembered under one name.
#[derive(Debug, Clone)]
struct Kept {
    print: String,
    expires_ms: u64,
    /// The step that was executed.
    step: u64,
    /// The group in which it was written, and how often the store was opened and cleaned before.
    written: Moment,
}

/// When something happened, beside the clock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Moment {
    pub(crate) group: u64,
    pub(crate) restarts: u64,
    pub(crate) prunes: u64,
}

/// A name under which requests are remembered: tenant, owner, name.
type Name = (usize, usize, String);

/// Everything that must hold.
#[derive(Debug, Default)]
pub(crate) struct Model {
    kept: BTreeMap<Name, Kept>,
    /// Samples by tenant, kind and name.
    samples: BTreeMap<(usize, &'static str, String), String>,
    /// What was counted, by tenant.
    pub(crate) counted: BTreeMap<usize, u64>,
    /// Changes that were applied, by tenant.
    pub(crate) changes: BTreeMap<usize, u64>,
    ops: BTreeSet<(usize, usize, u64)>,
    /// Devices that were registered: whether they may connect.
    pub(crate) devices: BTreeMap<(usize, usize, u64), bool>,
    pub(crate) seen: BTreeMap<Branch, u64>,
    pub(crate) now: Moment,
    pub(crate) now_ms: u64,
}

impl Model {
    /// Says what must come of a request, and takes its effect.
    pub(crate) fn expect(&mut self, request: &Request, step: u64, window_ms: u64) -> Outcome {
        let names = names(request, window_ms);
        if names.is_empty() {
            self.note(Branch::WithoutKey);
        }
        let known = names.iter().find_map(|(name, print, _)| {
            let kept = self.kept.get(name).filter(|kept| self.now_ms < kept.expires_ms)?;
            Some((name.clone(), kept.print == *print, kept.clone()))
        });
        if let Some((name, same, kept)) = known {
            self.note_known(request, &name.2, same, &kept);
            return if same { Outcome::Replayed { of: kept.step } } else { Outcome::Reused };
        }
        for (name, print, _) in &names {
            self.note_free(name, print);
        }
        let answer = self.apply(request, step);
        if matches!(answer, Answer::Exists | Answer::NotFound) {
            if !names.is_empty() {
                self.note(Branch::NotStored);
            }
            return Outcome::Executed(answer);
        }
        for (name, print, window_ms) in names {
            let expires_ms = self.now_ms + window_ms;
            self.kept.insert(name, Kept { print, expires_ms, step, written: self.now });
        }
        Outcome::Executed(answer)
    }

    fn note(&mut self, branch: Branch) {
        *self.seen.entry(branch).or_default() += 1;
    }

    fn note_known(&mut self, request: &Request, name: &str, same: bool, kept: &Kept) {
        let (now, written) = (self.now, kept.written);
        let kind = match (&request.body, name.split(':').next()) {
            (_, Some("batch")) => Some((Branch::BatchReplayed, Branch::BatchReused)),
            (_, Some("window")) => Some((Branch::WindowReplayed, Branch::WindowReused)),
            (Body::Device { .. }, _) => Some((Branch::RegistryReplayed, Branch::RegistryReused)),
            _ => None,
        };
        if let Some((replayed, reused)) = kind {
            self.note(if same { replayed } else { reused });
        }
        if same && written.prunes < now.prunes {
            self.note(Branch::ReplayedAfterPrune);
        }
        if same && self.now_ms + 1 == kept.expires_ms {
            self.note(Branch::ReplayedLastMoment);
        }
        self.note(match (same, written.group == now.group, written.restarts < now.restarts) {
            (true, true, _) => Branch::ReplayedInGroup,
            (false, true, _) => Branch::ReusedInGroup,
            (true, _, true) => Branch::ReplayedAfterRestart,
            (false, _, true) => Branch::ReusedAfterRestart,
            (true, ..) => Branch::ReplayedAtOnce,
            (false, ..) => Branch::ReusedAtOnce,
        });
    }

    fn note_free(&mut self, name: &Name, print: &str) {
        if let Some(expired) = self.kept.get(name) {
            let (other, first) = (expired.print != print, self.now_ms == expired.expires_ms);
            let pruned = expired.written.prunes < self.now.prunes;
            self.note(Branch::ExecutedAfterExpiry);
            for (holds, branch) in [
                (other, Branch::ExpiredByAnotherBody),
                (first, Branch::ExecutedFirstMoment),
                (pruned, Branch::ExecutedAfterPrune),
            ] {
                if holds {
                    self.note(branch);
                }
            }
            return;
        }
        let elsewhere = |of: fn(&Name, &Name) -> bool| {
            let now_ms = self.now_ms;
            let twin = |(other, kept): (&Name, &Kept)| {
                other.2 == name.2 && now_ms < kept.expires_ms && of(other, name)
            };
            self.kept.iter().any(twin)
        };
        let owner = elsewhere(|a, b| a.0 == b.0 && a.1 != b.1);
        let tenant = elsewhere(|a, b| a.0 != b.0);
        self.note(Branch::Fresh);
        if owner {
            self.note(Branch::OtherOwner);
        }
        if tenant {
            self.note(Branch::OtherTenant);
        }
    }

    fn apply(&mut self, request: &Request, step: u64) -> Answer {
        let (tenant, device) = (request.who.tenant, request.who.device);
        match &request.body {
            Body::Samples { kind, samples } => self.append(request, kind, samples, step),
            Body::Edits { ops, .. } => {
                let known = ops.iter().map(|op| !self.ops.insert((tenant, device, *op))).collect::<Vec<_>>();
                let fresh = known.iter().filter(|known| !**known).count() as u64;
                *self.changes.entry(tenant).or_default() += fresh;
                Answer::Items(known)
            }
            Body::Counts { count, .. } => {
                *self.counted.entry(tenant).or_default() += count;
                Answer::Counted
            }
            Body::Device { number, register, enabled } => {
                let place = (tenant, device, *number);
                match (register, self.devices.contains_key(&place)) {
                    (true, true) => Answer::Exists,
                    (false, false) => Answer::NotFound,
                    _ => {
                        self.devices.insert(place, *enabled);
                        Answer::Registered
                    }
                }
            }
        }
    }

    fn append(&mut self, request: &Request, kind: &'static str, samples: &[Reading], step: u64) -> Answer {
        let (tenant, device) = (request.who.tenant, request.who.device);
        let keyed = kind == "gauge";
        let (mut accepted, mut duplicates, mut rejected) = (0, 0, Vec::new());
        for (index, sample) in samples.iter().enumerate() {
            let Some(value) = &sample.value else {
                rejected.push(index as u64);
                continue;
            };
            let content = format!("{value}/{}", sample.slot);
            let name = match (&sample.id, keyed, &request.key) {
                (Some(id), ..) => format!("id/{id}"),
                (None, true, _) => format!("{device}/slot/{}", sample.slot),
                // What is sent under a key that was forgotten is lost to no sample of before.
                (None, false, Some(key)) => format!("{device}/{key}/{index}/{content}"),
                (None, false, None) => format!("step/{step}/{index}"),
            };
            match self.samples.get(&(tenant, kind, name.clone())) {
                Some(stored) if *stored == content => duplicates += 1,
                // A name stands for one sample for ever, unless it is that of a key, of which the last one is kept.
                Some(_) if !keyed || sample.id.is_some() => rejected.push(index as u64),
                _ => {
                    self.samples.insert((tenant, kind, name), content);
                    accepted += 1;
                }
            }
        }
        Answer::Samples { accepted, duplicates, rejected }
    }

    /// How many samples of a kind a tenant has.
    pub(crate) fn samples_of(&self, tenant: usize, kind: &str) -> usize {
        self.samples.keys().filter(|(own, of, _)| *own == tenant && *of == kind).count()
    }

    /// When what is remembered goes next, in the coming day.
    pub(crate) fn expiries(&self) -> Vec<u64> {
        let coming = self.now_ms + 1..self.now_ms + BATCH_MS + 1;
        self.kept.values().map(|kept| kept.expires_ms).filter(|at| coming.contains(at)).collect()
    }
}

/// The names of a request, with what tells it from others and how long each is remembered.
fn names(request: &Request, window_ms: u64) -> Vec<(Name, String, u64)> {
    let who = request.who;
    let name = |name: String| (who.tenant, who.device, name);
    let print = format!("{} {:?} {}", request.kind(), request.session(), request.payload());
    let mut names = Vec::new();
    if let Some(key) = &request.key {
        names.push((name(format!("key:{key}")), print.clone(), window_ms));
    }
    match &request.body {
        Body::Edits { place: Some((session, number)), ops } => {
            names.push((name(format!("batch:{session}/{number}")), format!("{ops:?}"), BATCH_MS));
        }
        Body::Counts { window, .. } => {
            names.push((name(format!("window:{window}")), print, WINDOW_MS_MAX));
        }
        _ => {}
    }
    names
}
