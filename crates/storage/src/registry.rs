//! What becomes of a change of the registry of devices, the same in every store.

use driftline_engine::{DeviceAction, DeviceChange, DeviceChanged, DeviceRow};

/// Tells what a change comes to that is not to be made.
pub(crate) fn refused(found: Option<&DeviceRow>, change: &DeviceChange) -> Option<DeviceChanged> {
    let listed = found.filter(|row| !row.retired);
    match (change.action, listed) {
        (DeviceAction::Register, Some(row)) => Some(DeviceChanged::Exists(Box::new(row.clone()))),
        (DeviceAction::Update | DeviceAction::Retire, None) => Some(DeviceChanged::NotFound),
        (DeviceAction::Register, None) | (DeviceAction::Update | DeviceAction::Retire, Some(_)) => None,
    }
}

/// The digest that leads to the device after a change; nothing: as before. A retired device has none.
pub(crate) fn digest_of(change: &DeviceChange) -> Option<[u8; 32]> {
    change.digest.filter(|_| change.action != DeviceAction::Retire)
}
