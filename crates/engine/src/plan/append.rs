//! Samples and aggregates: appended and added up, never merged.

use driftline_insight::SeriesPoint;
use driftline_protocol::{FieldError, ItemClass, ItemCode};

use super::{Plan, SampleMark, SampleWrite, Savepoint};
use crate::events::quoted;
use crate::group::{Aggregate, Append, Entry, RowKey, Submission, SubmissionResult};

impl Plan<'_> {
    /// Appends a sample. One that is stored already, or that a later one of its key replaced, changes nothing.
    pub(super) fn append(
        &mut self,
        submission: &Submission,
        entry: &Entry,
        append: &Append,
        savepoint: Option<&mut Savepoint>,
    ) -> SubmissionResult {
        let (Some(kind), Some(id)) = (&entry.kind, &entry.id) else {
            return SubmissionResult::of(ItemCode::Invalid);
        };
        if append.fields.as_str().len() > self.env.record_bytes {
            return SubmissionResult::of(ItemCode::TooLarge);
        }
        let key = RowKey { tenant: submission.tenant, kind: kind.clone(), id: id.clone() };
        let now_ms = self.env.now_ms;
        let latest = now_ms.saturating_add(self.env.skew_ms_max);
        let mark = SampleMark { hash: append.hash, sent_ms: append.sent_ms.unwrap_or(now_ms) };
        let before = self.state.samples.get(&key).copied();
        if let Some(before) = before {
            let known = |code| SubmissionResult { duplicate: true, ..SubmissionResult::of(code) };
            if before.hash == mark.hash {
                return known(ItemCode::Noop);
            }
            if !append.keyed {
                return SubmissionResult { errors: vec![taken()], ..SubmissionResult::of(ItemCode::Invalid) };
            }
            if !is_later(mark, before, latest, append.sent_ms.is_some()) {
                return known(ItemCode::Superseded);
            }
        }
        if let Some(savepoint) = savepoint {
            savepoint.samples.push((key.clone(), before));
        }
        self.state.samples.insert(key.clone(), mark);
        self.out.writes.samples.push(SampleWrite {
            key,
            device: submission.device,
            at_ms: append.at_ms.map_or(now_ms, |at_ms| at_ms.min(latest)),
            mark,
            fields: append.fields.clone(),
        });
        if let Some(announcing) = &append.announce {
            let name = announcing.device.as_ref().map(|device| quoted(device.device()));
            let first = name.as_deref().map(|name| ("device_id", name));
            self.announce(submission.tenant, announcing, first.as_slice(), &append.fields);
        }
        SubmissionResult::of(ItemCode::Applied)
    }

    /// Adds a device's aggregate to the series of its hour.
    pub(super) fn aggregate(&mut self, submission: &Submission, aggregate: &Aggregate) -> SubmissionResult {
        for (name, point) in &aggregate.series {
            let key = (submission.tenant, aggregate.hour_ms, name.clone());
            let stored = self.state.series.entry(key.clone()).or_default();
            stored.merge(point);
            if !self.out.writes.series.iter().any(|(known, _)| *known == key) {
                self.out.writes.series.push((key, SeriesPoint::default()));
            }
        }
        debug_assert_eq!(ItemCode::Applied.class(), ItemClass::Done);
        SubmissionResult::of(ItemCode::Applied)
    }

    /// Each sample is written once, as the last of the group left it; each point as it is now.
    pub(super) fn settle_samples(&mut self) {
        let samples = std::mem::take(&mut self.out.writes.samples);
        let mut last: Vec<SampleWrite> = Vec::with_capacity(samples.len());
        let mut places: super::Map<RowKey, usize> = super::Map::default();
        for sample in samples {
            match places.get(&sample.key) {
                Some(at) => last[*at] = sample,
                None => {
                    places.insert(sample.key.clone(), last.len());
                    last.push(sample);
                }
            }
        }
        self.out.writes.samples = last;
        for (key, point) in &mut self.out.writes.series {
            if let Some(stored) = self.state.series.get(key) {
                *point = stored.clone();
            }
        }
    }
}

/// Whether the device sent a sample after another one of the same key, by its own clock. A time that lies in the future is
/// a wrong clock's: what was sent by it gives way once the clock is right again. Of two samples of one time the same one
/// stays in whichever order they come. A sample that does not say when it was sent is as new as its arrival.
fn is_later(mark: SampleMark, before: SampleMark, latest_ms: u64, told: bool) -> bool {
    if before.sent_ms > latest_ms && mark.sent_ms <= latest_ms {
        return true;
    }
    match told {
        true => (mark.sent_ms, mark.hash) > (before.sent_ms, before.hash),
        false => mark.sent_ms >= before.sent_ms,
    }
}

fn taken() -> FieldError {
    FieldError {
        code: "id_taken".into(),
        pointer: "/id".into(),
        message: "another sample of the kind has this id".into(),
    }
}
