//! Bodies of HTTP requests and answers about devices, samples and series.

use driftline_model::{DeviceId, Limits};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::envelope::{Envelope, Fault};
use crate::form::Encoding;
use crate::json::Node;

/// A stored sample.
#[derive(Debug, Clone, Serialize)]
pub struct SampleDoc {
    /// Its name.
    pub id: String,
    /// The device that sent it.
    pub device_id: String,
    /// The user to whom the device belongs.
    pub owner: String,
    /// The time that it tells of, RFC 3339.
    pub at: String,
    /// When it was received, RFC 3339.
    pub received_at: String,
    /// Its fields.
    pub fields: Box<RawValue>,
}

/// What a series holds of an hour or a day. Numbers that nothing was measured for are null.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SeriesDoc {
    /// The beginning of the hour or the day, RFC 3339.
    pub from: String,
    /// The series.
    pub series: String,
    /// How many were counted.
    pub counter: u64,
    /// How many values were measured.
    pub count: u64,
    /// Their sum.
    pub sum: f64,
    /// The smallest.
    pub min: Option<f64>,
    /// The largest.
    pub max: Option<f64>,
    /// The median.
    pub p50: Option<f64>,
    /// The value below which 95 of 100 lie.
    pub p95: Option<f64>,
    /// The value below which 99 of 100 lie.
    pub p99: Option<f64>,
}

/// The body of `POST /api/v1/devices`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DevicePost {
    /// The device.
    pub device_id: DeviceId,
    /// The device hash that is to lead to it; none: one is issued.
    pub device_hash: Option<String>,
    /// The user it belongs to; none: the caller.
    pub owner: Option<String>,
    /// Whether it may connect.
    pub enabled: Option<bool>,
}

/// The body of `PATCH /api/v1/devices/{device_id}`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DevicePatch {
    /// Whether it may connect; none: as before.
    pub enabled: Option<bool>,
    /// What becomes of the device hash.
    pub device_hash: HashChange,
}

/// What becomes of a device hash.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum HashChange {
    /// It stays.
    #[default]
    Keep,
    /// A new one is issued, and the old one leads nowhere.
    Issue,
    /// This one takes its place.
    Set(String),
}

/// The lengths of a device hash, in visible ASCII characters.
const HASH_BYTES: std::ops::RangeInclusive<usize> = 16..=256;

/// Tells whether a text can be a device hash: 16 to 256 visible ASCII characters.
#[must_use]
pub fn is_device_hash(text: &str) -> bool {
    HASH_BYTES.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

impl DevicePost {
    /// Reads the body.
    ///
    /// # Errors
    /// As [`crate::decode`].
    pub fn decode(encoding: Encoding, bytes: &[u8], limits: &Limits) -> Result<Self, Fault> {
        let document = Envelope::parse(encoding, bytes, limits)?;
        let root = document.root();
        let named = field(root, "device_id").and_then(|node| node.as_str());
        let device_id = named.and_then(|text| DeviceId::new(&text).ok());
        let wrong = || Fault::invalid("/device_id", "a device's name of 1 to 128 bytes is required");
        let owner = match field(root, "owner") {
            None => None,
            Some(node) => Some(owner(node).ok_or_else(|| Fault::invalid("/owner", "must be a user"))?),
        };
        let device_hash = match hash_change(root)? {
            HashChange::Set(hash) => Some(hash),
            HashChange::Keep | HashChange::Issue => None,
        };
        Ok(Self { device_id: device_id.ok_or_else(wrong)?, device_hash, owner, enabled: enabled(root)? })
    }
}

impl DevicePatch {
    /// Reads the body.
    ///
    /// # Errors
    /// As [`crate::decode`].
    pub fn decode(encoding: Encoding, bytes: &[u8], limits: &Limits) -> Result<Self, Fault> {
        let document = Envelope::parse(encoding, bytes, limits)?;
        let root = document.root();
        Ok(Self { enabled: enabled(root)?, device_hash: hash_change(root)? })
    }
}

fn field<'a>(root: Node<'a>, name: &str) -> Option<Node<'a>> {
    root.get(name).filter(|node| !node.is_null())
}

/// A user is a text or an integer.
fn owner(node: Node<'_>) -> Option<String> {
    match node.as_str() {
        Some(text) => Some(text.into_owned()).filter(|text| !text.is_empty()),
        None => node.as_u64().map(|number| number.to_string()),
    }
}

fn enabled(root: Node<'_>) -> Result<Option<bool>, Fault> {
    let Some(node) = field(root, "enabled") else { return Ok(None) };
    node.as_bool().map(Some).ok_or_else(|| Fault::invalid("/enabled", "must be true or false"))
}

/// Reads the device hash; `child_hash` is another name of it.
fn hash_change(root: Node<'_>) -> Result<HashChange, Fault> {
    let found = ["device_hash", "child_hash"].into_iter().find_map(|name| Some((name, root.get(name)?)));
    let Some((name, node)) = found else { return Ok(HashChange::Keep) };
    if node.is_null() {
        return Ok(HashChange::Issue);
    }
    let hash = node.as_str().filter(|text| is_device_hash(text));
    let wrong = || Fault::invalid(&format!("/{name}"), "must be 16 to 256 visible ASCII characters, or null");
    Ok(HashChange::Set(hash.ok_or_else(wrong)?.into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patch(text: &str) -> Result<DevicePatch, Vec<String>> {
        let read = DevicePatch::decode(Encoding::Json, text.as_bytes(), &Limits::default());
        read.map_err(|fault| fault.errors.into_iter().map(|error| error.pointer).collect())
    }

    #[test]
    fn null_asks_for_a_new_hash() {
        let with = |device_hash| DevicePatch { enabled: None, device_hash };
        assert_eq!(patch("{}"), Ok(with(HashChange::Keep)));
        assert_eq!(patch(r#"{"device_hash":null}"#), Ok(with(HashChange::Issue)));
        let set = HashChange::Set("0123456789abcdef".into());
        assert_eq!(patch(r#"{"child_hash":"0123456789abcdef"}"#), Ok(with(set)));
        assert_eq!(patch(r#"{"device_hash":"short"}"#), Err(vec!["/device_hash".into()]));
        assert_eq!(patch(r#"{"enabled":1}"#), Err(vec!["/enabled".into()]));
    }

    #[test]
    fn a_device_needs_a_name() {
        let read = |text: &str| DevicePost::decode(Encoding::Json, text.as_bytes(), &Limits::default());
        let post = read(r#"{"device_id":"d1","owner":7,"enabled":true}"#).expect("a device");
        assert_eq!(
            (post.device_id.as_str(), post.owner.as_deref(), post.enabled),
            ("d1", Some("7"), Some(true))
        );
        assert!(read(r#"{"device_id":""}"#).is_err() && read("{}").is_err());
    }
}
