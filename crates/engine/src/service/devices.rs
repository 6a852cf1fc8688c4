//! The registry of devices, and who is connected.

use std::sync::PoisonError;

use driftline_idempotency::Fingerprint;
use driftline_model::{DeviceId, DeviceKey, Object, UserId};
use driftline_protocol::{ErrorCode, Fault};

use super::{Engine, not_found, unavailable};
use crate::events::EventDraft;
use crate::ports::{Identity, Observer, Store, StoreError};
use crate::presence::Turn;
use crate::registry::{DeviceChange, DeviceChanged, DeviceOnce, DeviceQuery, DeviceRow};

/// For how many milliseconds a device that was let in is let in again without a look.
const ADMITTED_MS: u64 = 10_000;

/// The role of whoever enters by a device hash.
pub const DEVICE_ROLE: &str = "device";

/// The SHA-256 by which a device hash is looked up: the hash itself is kept nowhere.
#[must_use]
pub fn hash_digest(device_hash: &str) -> [u8; 32] {
    *Fingerprint::builder("device_hash").text(device_hash).finish().as_bytes()
}

impl<S: Store, O: Observer> Engine<S, O> {
    /// Finds the registered, active device that a device hash leads to. It enters for its owner, with the one role
    /// [`DEVICE_ROLE`].
    ///
    /// # Errors
    /// `UNAUTHORIZED` for a hash that leads to no active device, whatever the reason; `STORE_UNAVAILABLE`.
    pub async fn identify_by_hash(&self, device_hash: &str) -> Result<Identity, Fault> {
        let unknown = || Fault::new(ErrorCode::Unauthorized, "the device hash leads to no active device");
        let found = self.store.device_by_digest(hash_digest(device_hash)).await;
        let found = found.map_err(|error| unavailable(&error))?;
        let (tenant_id, tenant, row) = found.filter(|(.., row)| row.is_admitted()).ok_or_else(unknown)?;
        let user = UserId::text(&row.owner).map_err(|_| unknown())?;
        let scopes = vec![driftline_model::ScopeName::owner(&user), driftline_model::ScopeName::tenant()];
        let roles = vec![DEVICE_ROLE.into()];
        let reviews = self.catalogue.reviewable(&roles);
        let device = Some((row.device, row.key));
        let claims = Vec::new();
        Ok(Identity { tenant_id, tenant, user, roles, claims, device, scopes, reviews })
    }

    /// Refuses the device of an identity that may not connect.
    ///
    /// # Errors
    /// `FORBIDDEN` for a device that was disabled or removed; `STORE_UNAVAILABLE`.
    pub async fn require_admitted(&self, identity: &Identity) -> Result<(), Fault> {
        let Some((device, _)) = &identity.device else { return Ok(()) };
        let row = self.store.device_row(identity.tenant, *device).await;
        match row.map_err(|error| unavailable(&error))? {
            Some(row) if !row.is_admitted() => {
                Err(Fault::new(ErrorCode::Forbidden, "the device was disabled or removed"))
            }
            _ => Ok(()),
        }
    }

    /// As [`Engine::require_admitted`], for the requests of a device: an answer holds for 10 seconds.
    ///
    /// # Errors
    /// As [`Engine::require_admitted`].
    pub async fn require_admitted_lately(&self, identity: &Identity, now_ms: u64) -> Result<(), Fault> {
        let Some((device, _)) = &identity.device else { return Ok(()) };
        let device = (identity.tenant, *device);
        if self.presence.lock().unwrap_or_else(PoisonError::into_inner).is_admitted(device, now_ms) {
            return Ok(());
        }
        self.require_admitted(identity).await?;
        let mut presence = self.presence.lock().unwrap_or_else(PoisonError::into_inner);
        presence.admit(device, now_ms.saturating_add(ADMITTED_MS));
        Ok(())
    }

    /// Refuses a connected device that was disabled or removed since, or that came by a hash which leads to it no more.
    ///
    /// # Errors
    /// `FORBIDDEN`; of whoever came by a hash, `UNAUTHORIZED`; `STORE_UNAVAILABLE`.
    pub async fn require_still_admitted(
        &self,
        identity: &Identity,
        digest: Option<[u8; 32]>,
    ) -> Result<(), Fault> {
        let Some(digest) = digest else { return self.require_admitted(identity).await };
        let found = self.store.device_by_digest(digest).await.map_err(|error| unavailable(&error))?;
        let own = identity.device.as_ref().map(|(device, _)| (identity.tenant, *device));
        match found {
            Some((_, tenant, row)) if row.is_admitted() && own == Some((tenant, row.device)) => Ok(()),
            _ => Err(Fault::new(ErrorCode::Unauthorized, "the device hash leads to the device no more")),
        }
    }

    /// Lists devices: all of the tenant for staff, else the user's own.
    ///
    /// # Errors
    /// `STORE_UNAVAILABLE`.
    pub async fn devices(&self, identity: &Identity, query: DeviceQuery) -> Result<Vec<DeviceRow>, Fault> {
        let query = DeviceQuery { owner: self.reach(identity, query.owner), ..query };
        self.store.devices(identity.tenant, query).await.map_err(|error| unavailable(&error))
    }

    /// Finds one device by its name: among all of the tenant for staff, else among the user's own.
    ///
    /// # Errors
    /// `NOT_FOUND`; `VALIDATION_ERROR` when several users have a device of that name and none is named;
    /// `STORE_UNAVAILABLE`.
    pub async fn device(
        &self,
        identity: &Identity,
        device_id: &DeviceId,
        owner: Option<Box<str>>,
    ) -> Result<DeviceRow, Fault> {
        let query = DeviceQuery { owner, device_id: Some(device_id.clone()), after: None, rows: 2 };
        let mut rows = self.devices(identity, query).await?;
        match (rows.pop(), rows.pop()) {
            (Some(row), None) => Ok(row),
            (Some(_), Some(_)) => Err(Fault::new(
                ErrorCode::ValidationError,
                "several users have a device of this name: name the owner",
            )),
            _ => Err(not_found()),
        }
    }

    /// Registers a device. A hash that leads to it is given as [`hash_digest`] makes it.
    ///
    /// # Errors
    /// `VALIDATION_ERROR` when the hash leads to another device, `IDEMPOTENCY_KEY_REUSED`, `NOT_FOUND`, `STORE_UNAVAILABLE`.
    pub async fn change_device(
        &self,
        identity: &Identity,
        change: DeviceChange,
        once: Option<DeviceOnce>,
    ) -> Result<DeviceChanged, Fault> {
        if change.device_id.as_str().starts_with('$') {
            return Err(Fault::new(ErrorCode::ValidationError, "a device's name does not begin with $"));
        }
        let changed = self.store.change_device(identity.tenant, change, once).await;
        match changed.map_err(|error: StoreError| unavailable(&error))? {
            DeviceChanged::NotFound => Err(not_found()),
            DeviceChanged::Reused => Err(super::reused()),
            DeviceChanged::HashTaken => {
                Err(Fault::new(ErrorCode::ValidationError, "the device hash leads to another device"))
            }
            done => {
                self.presence.lock().unwrap_or_else(PoisonError::into_inner).look_again();
                Ok(done)
            }
        }
    }

    /// Whose devices an identity may reach: everybody's for staff, else only its own.
    fn reach(&self, identity: &Identity, owner: Option<Box<str>>) -> Option<Box<str>> {
        let staff = crate::catalogue::STAFF_ROLES.iter().any(|role| identity.has_role(role));
        if staff { owner } else { Some(identity.user.to_string().into()) }
    }

    /// Takes note of a connection of a device.
    pub fn connected(&self, identity: &Identity, connection: &str, now_ms: u64) {
        let Some((device, key)) = &identity.device else { return };
        let mut presence = self.presence.lock().unwrap_or_else(PoisonError::into_inner);
        let (turn, appeared) = presence.connect((identity.tenant, *device), connection, now_ms);
        drop(presence);
        self.turned(turn);
        if appeared {
            self.tell_presence("device_connected", identity.tenant, key, now_ms);
        }
    }

    /// Takes note that a connection is gone. The device counts as offline after the grace, unless it comes again.
    pub fn disconnected(&self, identity: &Identity, connection: &str, now_ms: u64) {
        let Some((device, _)) = &identity.device else { return };
        let mut presence = self.presence.lock().unwrap_or_else(PoisonError::into_inner);
        presence.disconnect((identity.tenant, *device), connection, now_ms, self.limits.presence_grace_ms);
    }

    /// Takes note of a request of a device.
    pub fn requested(&self, identity: &Identity, now_ms: u64) {
        let Some((device, _)) = &identity.device else { return };
        let mut presence = self.presence.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = presence.request((identity.tenant, *device), now_ms);
        drop(presence);
        self.turned(turn);
    }

    /// Takes note that a connected device was heard.
    pub fn heard(&self, identity: &Identity, now_ms: u64) {
        let Some((device, _)) = &identity.device else { return };
        let mut presence = self.presence.lock().unwrap_or_else(PoisonError::into_inner);
        presence.note((identity.tenant, *device), now_ms, crate::registry::DeviceSign::Heard);
    }

    /// Has every device of this node count as gone, because the node goes; the next tick writes it down. A device that has
    /// connected to another node meanwhile stays online there.
    pub fn leave(&self, now_ms: u64) {
        self.presence.lock().unwrap_or_else(PoisonError::into_inner).leave(now_ms);
    }

    fn turned(&self, turn: Turn) {
        if turn != Turn::Plain {
            self.observer.turned(turn);
        }
    }

    fn tell_presence(&self, kind: &str, tenant: driftline_model::TenantNo, key: &DeviceKey, now_ms: u64) {
        let draft = EventDraft::of_device(kind, key, &["device_status"], &Object::empty(), now_ms);
        self.later(tenant, draft);
    }

    /// Does what is due once a second: writes down what was noticed of devices, tells of those that went offline and of
    /// what streams are like now. What could not be written is tried again the next time.
    ///
    /// Dropping the future may lose what it was writing.
    ///
    /// # Errors
    /// `STORE_UNAVAILABLE`.
    pub async fn tick(&self, now_ms: u64) -> Result<(), Fault> {
        for (tenant, draft) in self.streams.lock().unwrap_or_else(PoisonError::into_inner).look(now_ms) {
            self.tell(tenant, draft);
        }
        let (notes, gone) = self.presence.lock().unwrap_or_else(PoisonError::into_inner).due(now_ms);
        if !notes.is_empty() {
            let written = self.store.note_devices(notes.clone()).await;
            if let Err(error) = written {
                let mut presence = self.presence.lock().unwrap_or_else(PoisonError::into_inner);
                presence.put_back(notes);
                presence.gone_again(&gone, now_ms);
                return Err(unavailable(&error));
            }
        }
        // A device that went to another node meanwhile is not gone: its row says so.
        for (at, (tenant, device)) in gone.iter().enumerate() {
            match self.store.device_row(*tenant, *device).await {
                Ok(Some(row)) if !row.online => {
                    self.tell_presence("device_disconnected", *tenant, &row.key, now_ms);
                }
                Ok(_) => {}
                Err(error) => {
                    let mut presence = self.presence.lock().unwrap_or_else(PoisonError::into_inner);
                    presence.gone_again(&gone[at..], now_ms);
                    return Err(unavailable(&error));
                }
            }
        }
        self.flush().await
    }

    /// Tells of an event: at once if the log does not keep it, else with the next [`Engine::flush`].
    pub(super) fn tell(&self, tenant: driftline_model::TenantNo, draft: EventDraft) {
        if draft.durable {
            self.later(tenant, draft);
        } else {
            self.hub.tell_now(tenant, &draft);
        }
    }
}
