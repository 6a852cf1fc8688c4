//! Samples and series in memory.

use driftline_engine::{
    GroupState, RowKey, SampleMark, SamplePlace, SampleQuery, SampleRow, SampleWrite, SeriesQuery, SeriesRow,
    StoreError, Submission, Task,
};
use driftline_model::{DeviceNo, Object, TenantNo};

use super::State;

/// A stored sample.
#[derive(Debug, Clone)]
pub(super) struct Sample {
    device: DeviceNo,
    pub(super) at_ms: u64,
    pub(super) received_ms: u64,
    mark: SampleMark,
    fields: Object,
}

impl Sample {
    pub(super) fn of(write: SampleWrite, now_ms: u64) -> (RowKey, Self) {
        let SampleWrite { key, device, at_ms, mark, fields } = write;
        (key, Self { device, at_ms, received_ms: now_ms, mark, fields })
    }
}

impl State {
    pub(super) fn load_samples(&self, submission: &Submission, state: &mut GroupState) {
        let tenant = submission.tenant;
        for entry in &submission.entries {
            match &entry.task {
                Task::Append(_) => {
                    let (Some(kind), Some(id)) = (&entry.kind, &entry.id) else { continue };
                    let key = RowKey { tenant, kind: kind.clone(), id: id.clone() };
                    if let Some(sample) = self.samples.get(&key) {
                        state.samples.insert(key, sample.mark);
                    }
                }
                Task::Aggregate(aggregate) => {
                    for (name, _) in &aggregate.series {
                        let key = (tenant, aggregate.hour_ms, name.clone());
                        if let Some(point) = self.series.get(&key) {
                            state.series.insert(key, point.clone());
                        }
                    }
                }
                Task::Apply(_) | Task::Refuse(..) | Task::Resolve(_) => {}
            }
        }
    }

    pub(super) fn listed_samples(
        &self,
        tenant: TenantNo,
        query: &SampleQuery,
    ) -> Result<Vec<SampleRow>, StoreError> {
        let of_kind = self.samples.iter().filter(|(key, _)| key.tenant == tenant && key.kind == query.kind);
        let wanted = of_kind.filter(|(_, sample)| {
            query.devices.as_ref().is_none_or(|devices| devices.contains(&sample.device))
                && (query.from_ms..query.to_ms).contains(&sample.at_ms)
        });
        let mut placed: Vec<(SamplePlace, &Sample)> = wanted
            .map(|(key, sample)| {
                let place = SamplePlace { device: sample.device, at_ms: sample.at_ms, id: key.id.clone() };
                (place, sample)
            })
            .filter(|(place, _)| query.after.as_ref().is_none_or(|after| place > after))
            .collect();
        placed.sort_by(|(one, _), (other, _)| one.cmp(other));
        placed.truncate(query.rows);
        let row = |(place, sample): (SamplePlace, &Sample)| {
            Ok(SampleRow {
                key: self.device_key(place.device)?,
                place,
                received_ms: sample.received_ms,
                fields: sample.fields.clone(),
            })
        };
        placed.into_iter().map(row).collect()
    }

    pub(super) fn listed_series(&self, tenant: TenantNo, query: &SeriesQuery) -> Vec<SeriesRow> {
        let of_tenant = self.series.iter().filter(|((of, ..), _)| *of == tenant);
        let rows = of_tenant.map(|((_, hour_ms, name), point)| SeriesRow {
            hour_ms: *hour_ms,
            name: name.clone(),
            point: point.clone(),
        });
        let wanted = rows.filter(|row| {
            let after = query.after.as_ref();
            (query.from_ms..query.to_ms).contains(&row.hour_ms)
                && after.is_none_or(|(hour_ms, name)| (row.hour_ms, &row.name) > (*hour_ms, name))
        });
        wanted.take(query.rows).collect()
    }
}
