//! Stored samples and series, as they are read.

use std::collections::BTreeMap;

use driftline_insight::SeriesPoint;
use driftline_model::{DeviceId, DeviceNo, KindName};
use driftline_protocol::{ErrorCode, Fault};

use super::{Engine, not_found, unavailable};
use crate::catalogue::STAFF_ROLES;
use crate::ports::{Identity, Observer, Store};
use crate::registry::DeviceQuery;
use crate::samples::{SamplePlace, SampleQuery, SampleRow, SeriesQuery, SeriesRow};

/// The milliseconds of a day.
const DAY_MS: u64 = 24 * driftline_insight::HOUR_MS;

/// Rows that are read at once while a day's hours are added up, and devices while a user's are gathered.
const STEP: usize = 500;

/// Which samples of a kind a reader wants.
#[derive(Debug, Clone)]
pub struct SampleWish {
    /// The kind.
    pub kind: KindName,
    /// Only those of devices of this name.
    pub device: Option<DeviceId>,
    /// Only those of this user's devices.
    pub owner: Option<Box<str>>,
    /// Only those that tell of this time or later, in Unix milliseconds.
    pub from_ms: u64,
    /// Only those that tell of an earlier time than this.
    pub to_ms: u64,
    /// The last sample of the page before.
    pub after: Option<SamplePlace>,
    /// The most rows.
    pub rows: usize,
}

impl<S: Store, O: Observer> Engine<S, O> {
    /// Lists samples: of all devices of the tenant for staff, else of the user's own.
    ///
    /// # Errors
    /// `NOT_FOUND` for what is no kind of telemetry; `FORBIDDEN` for a kind that the roles may not read;
    /// `STORE_UNAVAILABLE`.
    pub async fn samples(&self, identity: &Identity, wish: SampleWish) -> Result<Vec<SampleRow>, Fault> {
        let (rule, _) = self.catalogue.telemetry(&wish.kind).ok_or_else(not_found)?;
        if !rule.may_read(&identity.roles) {
            return Err(Fault::new(ErrorCode::Forbidden, "the token's roles may not read this kind"));
        }
        let all = is_staff(identity) && wish.device.is_none() && wish.owner.is_none();
        let devices = if all { None } else { Some(self.devices_of(identity, &wish).await?) };
        if devices.as_ref().is_some_and(Vec::is_empty) {
            return Ok(Vec::new());
        }
        let SampleWish { kind, from_ms, to_ms, after, rows, .. } = wish;
        let query = SampleQuery { kind, devices, from_ms, to_ms, after, rows };
        self.store.samples(identity.tenant, query).await.map_err(|error| unavailable(&error))
    }

    async fn devices_of(&self, identity: &Identity, wish: &SampleWish) -> Result<Vec<DeviceNo>, Fault> {
        let mut query = DeviceQuery {
            owner: wish.owner.clone(),
            device_id: wish.device.clone(),
            after: None,
            rows: STEP,
        };
        let mut devices = Vec::new();
        loop {
            let rows = self.devices(identity, query.clone()).await?;
            devices.extend(rows.iter().map(|row| row.device));
            if rows.len() < STEP {
                return Ok(devices);
            }
            query.after = devices.last().copied();
        }
    }

    /// Lists points of series, by hour and name.
    ///
    /// # Errors
    /// `FORBIDDEN` for whoever is not of the staff; `STORE_UNAVAILABLE`.
    pub async fn series(&self, identity: &Identity, query: SeriesQuery) -> Result<Vec<SeriesRow>, Fault> {
        if !is_staff(identity) {
            return Err(Fault::new(ErrorCode::Forbidden, "the role staff or admin is needed"));
        }
        self.store.series(identity.tenant, query).await.map_err(|error| unavailable(&error))
    }

    /// Lists points of series, by day (UTC) and name. A day is the sum of its hours within the query, to the last bit.
    ///
    /// # Errors
    /// As [`Engine::series`].
    pub async fn series_by_day(
        &self,
        identity: &Identity,
        query: SeriesQuery,
    ) -> Result<Vec<SeriesRow>, Fault> {
        let SeriesQuery { from_ms, to_ms, mut after, rows } = query;
        let mut found = Vec::new();
        let mut from_ms = after.as_ref().map_or(from_ms, |(day_ms, _)| from_ms.max(*day_ms));
        while found.len() < rows {
            let first = SeriesQuery { from_ms, to_ms, after: None, rows: 1 };
            let Some(first) = self.series(identity, first).await?.pop() else { break };
            let day_ms = first.hour_ms - first.hour_ms % DAY_MS;
            let end_ms = day_ms.saturating_add(DAY_MS).min(to_ms);
            let told = after.take().filter(|(told_ms, _)| *told_ms == day_ms).map(|(_, name)| name);
            for (name, point) in self.day(identity, first.hour_ms, end_ms).await? {
                if told.as_ref().is_none_or(|told| name > *told) {
                    found.push(SeriesRow { hour_ms: day_ms, name, point });
                }
            }
            from_ms = end_ms;
        }
        found.truncate(rows);
        Ok(found)
    }

    async fn day(
        &self,
        identity: &Identity,
        from_ms: u64,
        to_ms: u64,
    ) -> Result<BTreeMap<Box<str>, SeriesPoint>, Fault> {
        let mut sums: BTreeMap<Box<str>, SeriesPoint> = BTreeMap::new();
        let mut query = SeriesQuery { from_ms, to_ms, after: None, rows: STEP };
        loop {
            let rows = self.series(identity, query.clone()).await?;
            let whole = rows.len() < STEP;
            query.after = rows.last().map(|row| (row.hour_ms, row.name.clone()));
            for row in rows {
                sums.entry(row.name).or_default().merge(&row.point);
            }
            if whole {
                return Ok(sums);
            }
        }
    }
}

pub(crate) fn is_staff(identity: &Identity) -> bool {
    STAFF_ROLES.iter().any(|role| identity.has_role(role))
}
