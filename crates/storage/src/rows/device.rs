//! Devices of the registry between SQL and the engine.

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Integer, Nullable, Text};
use driftline_engine::{DeviceRow, StoreError};
use driftline_model::DeviceId;

use crate::codec::corrupt;
use crate::names::{device_key, device_of};

/// A device as a query gives it.
#[derive(QueryableByName)]
pub(crate) struct DeviceSql {
    #[diesel(sql_type = Integer)]
    pub(crate) device_no: i32,
    #[diesel(sql_type = Text)]
    pub(crate) sub: String,
    #[diesel(sql_type = Text)]
    pub(crate) device_id: String,
    #[diesel(sql_type = Bool)]
    pub(crate) enabled: bool,
    #[diesel(sql_type = Bool)]
    pub(crate) retired: bool,
    #[diesel(sql_type = Bool)]
    pub(crate) hashed: bool,
    #[diesel(sql_type = Bool)]
    pub(crate) online: bool,
    #[diesel(sql_type = Nullable<Text>)]
    pub(crate) status: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    pub(crate) report: Option<String>,
    #[diesel(sql_type = BigInt)]
    pub(crate) created_at: i64,
    #[diesel(sql_type = BigInt)]
    pub(crate) last_seen_at: i64,
}

impl DeviceSql {
    pub(crate) fn row(self) -> Result<DeviceRow, StoreError> {
        let number = |number| u64::try_from(number).map_err(|_| corrupt("device"));
        Ok(DeviceRow {
            device: device_of(self.device_no),
            key: device_key(&self.sub, &self.device_id),
            device_id: DeviceId::new(&self.device_id).map_err(|_| corrupt("device_id"))?,
            owner: self.sub.into(),
            enabled: self.enabled,
            retired: self.retired,
            hashed: self.hashed,
            online: self.online,
            status: self.status.map(Into::into),
            report: self.report.map(Into::into),
            created_ms: number(self.created_at)?,
            last_seen_ms: number(self.last_seen_at)?,
        })
    }
}
