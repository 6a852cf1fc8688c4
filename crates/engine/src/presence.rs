//! Who is connected, and what is to be written down of it.

use std::collections::BTreeMap;

use driftline_model::{DeviceNo, TenantNo};

use crate::registry::{DeviceNote, DeviceSign};

/// What is known of connected devices on this node, and not written down yet.
///
/// Signs are gathered and written behind: a device that is heard a hundred times a second costs one row a second. A
/// device whose connection is gone counts as offline when a grace has passed in which it did not come again.
#[derive(Debug, Default)]
pub struct Presence {
    devices: BTreeMap<(TenantNo, DeviceNo), Present>,
    /// Signs that are still to be written, one of each sort per device.
    waiting: BTreeMap<(TenantNo, DeviceNo), Vec<DeviceNote>>,
}

#[derive(Debug, Default)]
struct Present {
    /// Open connections, the newest last.
    connections: Vec<Box<str>>,
    /// The newest connection, open or gone: the one that is written down.
    newest: Box<str>,
    /// When the grace ends, of a device without an open connection.
    leaving: Option<u64>,
    /// The way that the device last took.
    door: Option<Door>,
    /// Whether it was ever connected.
    connected: bool,
    /// Until when requests are let in without a look, in Unix milliseconds.
    admitted_until_ms: u64,
    /// When it was last noted as heard.
    noted_ms: u64,
}

/// The way by which a device speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// A WebSocket.
    Socket,
    /// Requests.
    Http,
}

/// What a device does that is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// It came by the way it always came, or for the first time.
    Plain,
    /// It came again over a WebSocket after its connection had gone.
    Reconnected,
    /// It took to requests after its WebSocket had gone.
    FellBack,
}

/// A device that sends requests is noted as heard once in so many milliseconds.
const HEARD_MS: u64 = 5_000;

/// Devices of which is remembered how they came, beyond those that are connected.
const REMEMBERED_MAX: usize = 100_000;

impl Presence {
    /// Takes a connection; tells whether the device was away for longer than the grace, or never here.
    pub fn connect(&mut self, device: (TenantNo, DeviceNo), connection: &str, now_ms: u64) -> (Turn, bool) {
        self.bound();
        let present = self.devices.entry(device).or_default();
        let again = present.connected && present.connections.is_empty();
        let turn = if again { Turn::Reconnected } else { Turn::Plain };
        let appeared = present.connections.is_empty() && present.leaving.is_none();
        present.leaving = None;
        present.connected = true;
        present.door = Some(Door::Socket);
        present.newest = connection.into();
        present.connections.push(connection.into());
        self.note(device, now_ms, DeviceSign::Connected { connection: connection.into() });
        (turn, appeared)
    }

    /// Takes the end of a connection. The device counts as offline after `grace_ms`, unless it comes again.
    pub fn disconnect(&mut self, device: (TenantNo, DeviceNo), connection: &str, now_ms: u64, grace_ms: u64) {
        let Some(present) = self.devices.get_mut(&device) else { return };
        let before = present.connections.len();
        present.connections.retain(|open| **open != *connection);
        if present.connections.len() == before {
            return;
        }
        if present.connections.is_empty() {
            present.leaving = Some(now_ms.saturating_add(grace_ms));
        }
    }

    /// Takes a request of a device.
    pub fn request(&mut self, device: (TenantNo, DeviceNo), now_ms: u64) -> Turn {
        self.bound();
        let present = self.devices.entry(device).or_default();
        let fell = present.door == Some(Door::Socket) && present.connections.is_empty();
        if present.connections.is_empty() {
            present.door = Some(Door::Http);
        }
        if now_ms >= present.noted_ms.saturating_add(HEARD_MS) {
            present.noted_ms = now_ms;
            self.note(device, now_ms, DeviceSign::Heard);
        }
        if fell { Turn::FellBack } else { Turn::Plain }
    }

    /// Tells whether requests of a device are let in without a look.
    #[must_use]
    pub fn is_admitted(&self, device: (TenantNo, DeviceNo), now_ms: u64) -> bool {
        self.devices.get(&device).is_some_and(|present| now_ms < present.admitted_until_ms)
    }

    /// Lets requests of a device in without a look until a time in Unix milliseconds.
    pub fn admit(&mut self, device: (TenantNo, DeviceNo), until_ms: u64) {
        self.bound();
        self.devices.entry(device).or_default().admitted_until_ms = until_ms;
    }

    /// Has every device be looked at before it is let in again.
    pub fn look_again(&mut self) {
        self.devices.values_mut().for_each(|present| present.admitted_until_ms = 0);
    }

    /// Takes a sign of a device, to be written down.
    pub fn note(&mut self, device: (TenantNo, DeviceNo), at_ms: u64, sign: DeviceSign) {
        let waiting = self.waiting.entry(device).or_default();
        let note = DeviceNote { tenant: device.0, device: device.1, at_ms, sign };
        let same = |known: &DeviceNote| is_same_sort(&known.sign, &note.sign);
        // A later sign of a sort says all that an earlier one said, and comes behind the others.
        if let Some(at) = waiting.iter().position(same) {
            waiting.remove(at);
        }
        waiting.push(note);
    }

    /// Gives what is to be written down now, and the devices that went offline.
    pub fn due(&mut self, now_ms: u64) -> (Vec<DeviceNote>, Vec<(TenantNo, DeviceNo)>) {
        let mut gone = Vec::new();
        for (device, present) in &mut self.devices {
            if present.leaving.take_if(|until| *until <= now_ms).is_some() {
                gone.push((*device, present.newest.clone()));
            }
        }
        // The newest connection is the one that stands in the store, whichever went last.
        for (device, connection) in &gone {
            self.note(*device, now_ms, DeviceSign::Disconnected { connection: connection.clone() });
        }
        let notes = std::mem::take(&mut self.waiting).into_values().flatten().collect();
        (notes, gone.into_iter().map(|(device, _)| device).collect())
    }

    /// Has devices that are gone be looked at again, because it could not be told.
    pub fn gone_again(&mut self, gone: &[(TenantNo, DeviceNo)], now_ms: u64) {
        for device in gone {
            if let Some(present) =
                self.devices.get_mut(device).filter(|present| present.connections.is_empty())
            {
                present.leaving = Some(now_ms);
            }
        }
    }

    /// Has every device of this node count as gone, because the node goes.
    pub fn leave(&mut self, now_ms: u64) {
        for present in self.devices.values_mut() {
            let open = !std::mem::take(&mut present.connections).is_empty();
            if open || present.leaving.is_some() {
                present.leaving = Some(now_ms);
            }
        }
    }

    /// Takes back what could not be written; signs of the same sort that came meanwhile stay.
    pub fn put_back(&mut self, notes: Vec<DeviceNote>) {
        for note in notes {
            let waiting = self.waiting.entry((note.tenant, note.device)).or_default();
            if !waiting.iter().any(|known| is_same_sort(&known.sign, &note.sign)) {
                waiting.insert(0, note);
            }
        }
    }

    /// Forgets how devices came that are not connected, when they are too many.
    fn bound(&mut self) {
        if self.devices.len() >= REMEMBERED_MAX {
            self.devices.retain(|_, present| !present.connections.is_empty() || present.leaving.is_some());
        }
    }
}

/// Whether the later of two signs says all that the earlier one said.
fn is_same_sort(one: &DeviceSign, other: &DeviceSign) -> bool {
    std::mem::discriminant(one) == std::mem::discriminant(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEVICE: (TenantNo, DeviceNo) = (TenantNo::new(1), DeviceNo::new(7));

    fn signs(presence: &mut Presence, now_ms: u64) -> (Vec<&'static str>, usize) {
        let (notes, gone) = presence.due(now_ms);
        let name = |note: &DeviceNote| match note.sign {
            DeviceSign::Heard => "heard",
            DeviceSign::Connected { .. } => "connected",
            DeviceSign::Disconnected { .. } => "disconnected",
            DeviceSign::Acknowledged { .. } => "acknowledged",
            DeviceSign::Listened { .. } => "listened",
            DeviceSign::Slow { .. } => "slow",
            DeviceSign::Reported { .. } => "reported",
        };
        (notes.iter().map(name).collect(), gone.len())
    }

    #[test]
    fn a_device_is_offline_when_the_grace_has_passed() {
        let mut presence = Presence::default();
        assert_eq!(presence.connect(DEVICE, "a", 1_000), (Turn::Plain, true));
        assert_eq!(signs(&mut presence, 1_500), (vec!["connected"], 0));
        presence.disconnect(DEVICE, "a", 2_000, 10_000);
        assert_eq!(signs(&mut presence, 11_999), (vec![], 0));
        assert_eq!(signs(&mut presence, 12_000), (vec!["disconnected"], 1));
        assert_eq!(presence.connect(DEVICE, "b", 13_000), (Turn::Reconnected, true));
    }

    #[test]
    fn whoever_comes_again_within_the_grace_was_never_away() {
        let mut presence = Presence::default();
        presence.connect(DEVICE, "a", 0);
        presence.disconnect(DEVICE, "a", 1_000, 10_000);
        assert_eq!(presence.connect(DEVICE, "b", 5_000), (Turn::Reconnected, false));
        // The end of a connection that was replaced is heard late.
        presence.disconnect(DEVICE, "a", 6_000, 10_000);
        assert_eq!(signs(&mut presence, 60_000), (vec!["connected"], 0));
    }

    #[test]
    fn a_node_that_goes_takes_its_devices_along() {
        let mut presence = Presence::default();
        presence.connect(DEVICE, "a", 0);
        presence.connect((DEVICE.0, DeviceNo::new(8)), "b", 0);
        presence.disconnect((DEVICE.0, DeviceNo::new(8)), "b", 1, 10_000);
        presence.due(2);
        presence.leave(3);
        assert_eq!(signs(&mut presence, 3), (vec!["disconnected", "disconnected"], 2));
        assert_eq!(signs(&mut presence, 60_000), (vec![], 0));
    }

    #[test]
    fn whichever_connection_goes_last_the_newest_is_written_down() {
        let mut presence = Presence::default();
        presence.connect(DEVICE, "sync", 0);
        assert_eq!(presence.connect(DEVICE, "system", 0), (Turn::Plain, false), "beside an open one");
        presence.due(1);
        presence.disconnect(DEVICE, "system", 2, 10);
        presence.disconnect(DEVICE, "sync", 3, 10);
        let (notes, gone) = presence.due(13);
        let named: Vec<_> = notes.iter().map(|note| note.sign.clone()).collect();
        let system = DeviceSign::Disconnected { connection: "system".into() };
        assert_eq!((named, gone.len()), (vec![system], 1));
    }

    #[test]
    fn requests_after_a_cut_are_a_fallback_once() {
        let mut presence = Presence::default();
        assert_eq!(presence.request(DEVICE, 0), Turn::Plain);
        presence.connect(DEVICE, "a", 1);
        assert_eq!(presence.request(DEVICE, 2), Turn::Plain, "beside an open socket");
        presence.disconnect(DEVICE, "a", 3, 10);
        assert_eq!(presence.request(DEVICE, 4), Turn::FellBack);
        assert_eq!(presence.request(DEVICE, 5), Turn::Plain);
        assert_eq!(presence.connect(DEVICE, "b", 6), (Turn::Reconnected, false));
    }

    #[test]
    fn signs_are_gathered_and_come_back_when_they_cannot_be_written() {
        let mut presence = Presence::default();
        for at_ms in 0..100 {
            presence.note(DEVICE, at_ms, DeviceSign::Heard);
        }
        let (notes, _) = presence.due(100);
        assert_eq!((notes.len(), notes[0].at_ms), (1, 99));
        presence.note(DEVICE, 200, DeviceSign::Heard);
        presence.put_back(notes);
        let (notes, _) = presence.due(300);
        assert_eq!((notes.len(), notes[0].at_ms), (1, 200));
    }

    #[test]
    fn devices_that_are_gone_are_forgotten_when_they_are_too_many() {
        let mut presence = Presence::default();
        presence.connect(DEVICE, "a", 0);
        for number in 0..REMEMBERED_MAX {
            let number = u32::try_from(number).expect("it fits");
            presence.request((TenantNo::new(2), DeviceNo::new(number)), 0);
        }
        assert!(presence.devices.len() <= REMEMBERED_MAX, "{}", presence.devices.len());
        assert!(presence.devices.contains_key(&DEVICE), "who is connected stays");
    }
}
