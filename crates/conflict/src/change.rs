//! One change and what surrounds it.

use driftline_model::{DeviceNo, Hlc, Intents, Object, Seq};

/// What a change wants to do to a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Makes the record; on a record that exists it counts as a patch that has seen nothing.
    Create,
    /// Writes the given fields.
    Patch,
    /// Deletes the record.
    Delete,
    /// Brings a deleted record back and writes the given fields.
    Restore,
}

/// One change of one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// What is to be done.
    pub op: Op,
    /// The version of the record that the author had seen; zero: none.
    pub base: Seq,
    /// The fields to write. Ignored by a delete.
    pub fields: Object,
    /// What is asked beside whole values, if anything. Ignored by a delete.
    pub intents: Option<Box<Intents>>,
    /// The author's clock. Without one the time of receipt counts, and arrival decides.
    pub hlc: Option<Hlc>,
    /// The author's device.
    pub device: DeviceNo,
    /// The device's own number of the change, strictly rising.
    pub n: u64,
}

/// What surrounds the application of one change.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The version that the record gets if the change alters it.
    pub next: Seq,
    /// The time of receipt, which stands in for a missing clock.
    pub received: Hlc,
    /// The latest stamp that is taken at its word; later ones are held at it.
    pub latest: Hlc,
    /// The order of devices for equal clocks.
    pub devices: &'a dyn DeviceOrder,
    /// What the author may do beyond writing.
    pub rights: Rights,
}

/// What an author may do beyond writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rights {
    /// Lower ordered fields.
    pub deescalate: bool,
    /// Write fields that belong to services.
    pub service: bool,
}

/// Orders devices by who they are, not by the numbers they were given.
pub trait DeviceOrder {
    /// Returns the bytes by which a device is ordered.
    fn bytes(&self, device: DeviceNo) -> &[u8];
}

/// A plain list of devices, in the order of their numbers.
#[derive(Debug, Clone, Default)]
pub struct DeviceTable(Vec<Box<str>>);

impl DeviceTable {
    /// Makes a table; the first name belongs to device 0.
    pub fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        Self(names.into_iter().map(Box::from).collect())
    }
}

impl DeviceOrder for DeviceTable {
    fn bytes(&self, device: DeviceNo) -> &[u8] {
        self.0.get(device.number() as usize).map_or(&[], |name| name.as_bytes())
    }
}
