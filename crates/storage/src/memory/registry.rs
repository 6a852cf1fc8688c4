//! The registry of devices in memory.

use driftline_engine::{
    DeviceAction, DeviceChange, DeviceChanged, DeviceNote, DeviceOnce, DeviceQuery, DeviceRow, DeviceSign,
    StoreError,
};
use driftline_model::{DeviceId, DeviceKey, DeviceNo, TenantId, TenantNo};

use super::{Devices, State};
use crate::codec::corrupt;
use crate::log::is_of_the_log;
use crate::names::device_key;
use crate::once::{Kept, Met, meet_change};
use crate::registry::{digest_of, refused};

/// A device with what the registry knows of it.
#[derive(Debug, Clone)]
pub(super) struct Device {
    pub(super) tenant: TenantNo,
    pub(super) key: DeviceKey,
    enabled: bool,
    retired: bool,
    digest: Option<[u8; 32]>,
    /// The last connection that was opened, unless it is gone.
    connection: Option<Box<str>>,
    /// When it was opened.
    connected_ms: u64,
    status: Option<Box<str>>,
    report: Option<Box<str>>,
    /// When the device said what stands in status and report.
    reported_ms: u64,
    created_ms: u64,
    last_seen_ms: u64,
}

impl Device {
    fn new(tenant: TenantNo, key: DeviceKey, now_ms: u64) -> Self {
        Self {
            tenant,
            key,
            enabled: true,
            retired: false,
            digest: None,
            connection: None,
            connected_ms: 0,
            status: None,
            report: None,
            reported_ms: 0,
            created_ms: now_ms,
            last_seen_ms: now_ms,
        }
    }

    pub(super) fn row(&self, device: DeviceNo) -> Result<DeviceRow, StoreError> {
        Ok(DeviceRow {
            device,
            key: self.key.clone(),
            owner: self.key.user().into(),
            device_id: DeviceId::new(self.key.device()).map_err(|_| corrupt("device_id"))?,
            enabled: self.enabled,
            retired: self.retired,
            hashed: self.digest.is_some(),
            online: self.connection.is_some(),
            status: self.status.clone(),
            report: self.report.clone(),
            created_ms: self.created_ms,
            last_seen_ms: self.last_seen_ms,
        })
    }

    fn note(&mut self, at_ms: u64, sign: DeviceSign) {
        self.last_seen_ms = self.last_seen_ms.max(at_ms);
        match sign {
            DeviceSign::Heard => {}
            DeviceSign::Connected { connection } => {
                if at_ms >= self.connected_ms {
                    (self.connection, self.connected_ms) = (Some(connection), at_ms);
                }
            }
            DeviceSign::Disconnected { connection } => {
                self.connection.take_if(|open| *open == connection);
            }
            DeviceSign::Acknowledged { .. } | DeviceSign::Listened { .. } | DeviceSign::Slow { .. } => {}
            DeviceSign::Reported { status, report } => {
                if at_ms >= self.reported_ms {
                    (self.report, self.reported_ms) = (Some(report), at_ms);
                    self.status = status.or(self.status.take());
                }
            }
        }
    }
}

impl Devices {
    fn find(&self, tenant: TenantNo, key: &DeviceKey) -> Option<DeviceNo> {
        let known = self.0.iter().position(|device| device.tenant == tenant && device.key == *key);
        known.map(number_of)
    }

    pub(super) fn find_or_make(&mut self, tenant: TenantNo, key: &DeviceKey, now_ms: u64) -> DeviceNo {
        self.find(tenant, key).unwrap_or_else(|| {
            self.0.push(Device::new(tenant, key.clone(), now_ms));
            number_of(self.0.len() - 1)
        })
    }

    pub(super) fn of(&self, tenant: TenantNo, device: DeviceNo) -> Option<&Device> {
        self.0.get(device.number() as usize).filter(|of| of.tenant == tenant)
    }

    pub(super) fn heard(&mut self, device: DeviceNo, now_ms: u64) {
        if let Some(device) = self.0.get_mut(device.number() as usize) {
            device.note(now_ms, DeviceSign::Heard);
        }
    }

    pub(super) fn listed(&self, tenant: TenantNo, query: &DeviceQuery) -> Result<Vec<DeviceRow>, StoreError> {
        let numbered = self.0.iter().enumerate().map(|(at, device)| (number_of(at), device));
        let wanted = numbered.filter(|(number, device)| {
            device.tenant == tenant
                && !device.retired
                && query.owner.as_deref().is_none_or(|owner| owner == device.key.user())
                && query.device_id.as_ref().is_none_or(|id| id.as_str() == device.key.device())
                && query.after.is_none_or(|after| *number > after)
        });
        wanted.take(query.rows).map(|(number, device)| device.row(number)).collect()
    }
}

impl State {
    pub(super) fn note(&mut self, note: DeviceNote) {
        let device = self.devices.0.get_mut(note.device.number() as usize);
        let Some(device) = device.filter(|device| device.tenant == note.tenant) else { return };
        if is_of_the_log(&note.sign) {
            self.log.note((note.tenant, note.device), note.at_ms, &note.sign);
        }
        device.note(note.at_ms, note.sign);
    }

    pub(super) fn device_by_digest(
        &self,
        digest: [u8; 32],
    ) -> Result<Option<(TenantId, TenantNo, DeviceRow)>, StoreError> {
        let Some(at) = self.devices.0.iter().position(|device| device.digest == Some(digest)) else {
            return Ok(None);
        };
        let device = &self.devices.0[at];
        let tenant = self.tenants.iter().find(|(_, number)| **number == device.tenant);
        let (tenant, _) = tenant.ok_or_else(|| corrupt("tenant"))?;
        Ok(Some((tenant.clone(), device.tenant, device.row(number_of(at))?)))
    }

    pub(super) fn change_device(
        &mut self,
        tenant: TenantNo,
        change: &DeviceChange,
        once: Option<&DeviceOnce>,
        now_ms: u64,
    ) -> Result<DeviceChanged, StoreError> {
        if let Some(once) = once {
            let name = (tenant, once.owner.clone(), once.key.clone());
            match meet_change(self.once.get(&name), &once.fingerprint, now_ms)? {
                Met::Free => {}
                Met::Before(bytes) => return Ok(DeviceChanged::Replayed(bytes)),
                Met::Other => return Ok(DeviceChanged::Reused),
            }
        }
        let key = device_key(&change.owner, change.device_id.as_str());
        let found = self.devices.find(tenant, &key);
        let row = found.and_then(|device| Some(self.devices.of(tenant, device)?.row(device)));
        if let Some(answer) = refused(row.transpose()?.as_ref(), change) {
            return Ok(answer);
        }
        let digest = digest_of(change);
        let holder = digest.and_then(|digest| {
            self.devices.0.iter().position(|device| device.digest == Some(digest)).map(number_of)
        });
        if holder.is_some() && holder != found {
            return Ok(DeviceChanged::HashTaken);
        }
        let number = self.devices.find_or_make(tenant, &key, now_ms);
        let device = &mut self.devices.0[number.number() as usize];
        device.retired = change.action == DeviceAction::Retire;
        device.enabled = change.enabled.unwrap_or(device.enabled);
        device.digest = if device.retired { None } else { digest.or(device.digest) };
        let row = device.row(number)?;
        if let Some(once) = once {
            let expires_ms = now_ms.saturating_add(once.window_ms);
            let kept = Kept::of_change(once.fingerprint, expires_ms, &(once.answer)(&row));
            self.once.insert((tenant, once.owner.clone(), once.key.clone()), kept);
        }
        Ok(DeviceChanged::Done(Box::new(row)))
    }
}

fn number_of(at: usize) -> DeviceNo {
    DeviceNo::new(u32::try_from(at).unwrap_or(u32::MAX))
}
