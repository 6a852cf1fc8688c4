//! Bodies of requests that tell of something at once, and of what is live.

use std::borrow::Cow;
use std::collections::BTreeMap;

use driftline_model::{DeviceId, Limits, Object};
use serde::{Deserialize, Serialize};

use crate::canonical::object_of_text;
use crate::envelope::{Envelope, Fault};
use crate::events::{Publish, event_kind, names, optional_name};
use crate::form::Encoding;
use crate::json::Node;
use crate::time::format_millis;
use crate::views::to_json;

/// The most bytes of an event's type, of a title or a name of a metric, and of everything that an event carries.
const KIND_BYTES: usize = 64;
const NAME_BYTES: usize = 200;
const DATA_BYTES: usize = 64 << 10;

/// Seconds between two reports of a monitored device, and for how long it is monitored, unless the request says.
const INTERVAL_S: u64 = 5;
const DURATION_S: u64 = 3_600;
/// The longest of both.
const INTERVAL_S_MAX: u64 = 3_600;
const DURATION_S_MAX: u64 = 86_400;

/// The topic on which it is told, beside the device's own, what is monitored.
pub const MONITORING_TOPIC: &str = "monitoring";

/// Publishes one kind of event, whose topics follow from what it is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shortcut<'a> {
    /// To everybody of the tenant, or to whoever listens to a topic.
    Broadcast,
    /// To a user.
    ToUser(&'a str),
    /// A security alert of a device.
    DeviceAlert,
    /// What a device measures of itself.
    LiveMetrics,
    /// What is measured of the whole.
    PerformanceData,
    /// A notification for everybody or for some users.
    Notification,
    /// How an action on a device goes.
    DeviceAction(&'a DeviceId),
    /// Has a device report what it measures.
    StartMonitoring(&'a DeviceId),
    /// Has a device report no more.
    StopMonitoring(&'a DeviceId),
}

impl Shortcut<'_> {
    /// Reads a request's body as the event that is to be published. An empty body is an empty object.
    ///
    /// # Errors
    /// A decode error, or `VALIDATION_ERROR` with the pointer to what is wrong.
    pub fn read(
        self,
        encoding: Encoding,
        bytes: &[u8],
        limits: &Limits,
        now_ms: u64,
    ) -> Result<Publish, Fault> {
        let (encoding, bytes) =
            if bytes.is_empty() { (Encoding::Json, &b"{}"[..]) } else { (encoding, bytes) };
        let document = Envelope::parse(encoding, bytes, limits)?;
        let root = document.root();
        let publish = match self {
            Self::Broadcast => broadcast(root)?,
            Self::ToUser(user) => Publish { users: vec![user.into()], ..message(root, "message")? },
            Self::DeviceAlert => device_alert(root)?,
            Self::LiveMetrics => live_metrics(root)?,
            Self::PerformanceData => performance_data(root)?,
            Self::Notification => notification(root)?,
            Self::DeviceAction(device) => device_action(root, device)?,
            Self::StartMonitoring(device) => start_monitoring(root, device, now_ms)?,
            Self::StopMonitoring(device) => stop_monitoring(device)?,
        };
        if publish.data.as_str().len() > DATA_BYTES {
            return Err(Fault::invalid("", "an event may carry 64 KiB"));
        }
        Ok(publish)
    }
}

fn broadcast(root: Node<'_>) -> Result<Publish, Fault> {
    let topic = optional_name(root.get("topic"), "/topic", NAME_BYTES)?;
    let topics = vec![topic.unwrap_or_else(|| "all".into())];
    Ok(Publish { topics, ..message(root, "system_message")? })
}

/// A message with a type of its own.
fn message(root: Node<'_>, kind: &str) -> Result<Publish, Fault> {
    let own = optional_name(root.get("type"), "/type", KIND_BYTES)?;
    let kind = event_kind(own.as_deref().unwrap_or(kind))?;
    Ok(Publish { kind, data: object(required(root, "data")?, "/data", &[], &[])?, ..Publish::default() })
}

fn device_alert(root: Node<'_>) -> Result<Publish, Fault> {
    let device = device(root)?.ok_or_else(|| missing("device_id"))?;
    for name in ["title", "message"] {
        told(root, name)?;
    }
    severity(root)?;
    let topics = vec!["security".into(), topic_of("device_", &device)];
    event("security_alert", topics, object(root, "", &[], &[])?)
}

fn live_metrics(root: Node<'_>) -> Result<Publish, Fault> {
    let device = device(root)?.ok_or_else(|| missing("device_id"))?;
    let metrics = metrics(root)?;
    let data = object(metrics, "/metrics", &["device_id"], &[("device_id", to_json(&device.as_str()))])?;
    event("live_metrics", vec![topic_of("metrics_", &device)], data)
}

fn performance_data(root: Node<'_>) -> Result<Publish, Fault> {
    device(root)?;
    metrics(root)?;
    event("performance_data", vec!["performance".into()], object(root, "", &[], &[])?)
}

fn notification(root: Node<'_>) -> Result<Publish, Fault> {
    for name in ["type", "title", "message"] {
        told(root, name)?;
    }
    severity(root)?;
    device(root)?;
    let users = match given(root, "user_ids") {
        Some(list) => names(list, "/user_ids", 128)?,
        None => Vec::new(),
    };
    if given(root, "user_ids").is_some() && users.is_empty() {
        return Err(Fault::invalid("/user_ids", "must name at least one user"));
    }
    Ok(Publish { users, ..event("notification", Vec::new(), object(root, "", &["user_ids"], &[])?)? })
}

fn device_action(root: Node<'_>, device: &DeviceId) -> Result<Publish, Fault> {
    for name in ["action", "status"] {
        told(root, name)?;
    }
    if let Some(progress) = given(root, "progress")
        && !progress.as_f64().is_some_and(|progress| (0.0..=100.0).contains(&progress))
    {
        return Err(Fault::invalid("/progress", "must be a number from 0 to 100"));
    }
    let own = [("device_id", to_json(&device.as_str()))];
    event("device_action", vec![topic_of("device_", device)], object(root, "", &["device_id"], &own)?)
}

fn start_monitoring(root: Node<'_>, device: &DeviceId, now_ms: u64) -> Result<Publish, Fault> {
    let interval_s = seconds(root, "interval_s", INTERVAL_S, INTERVAL_S_MAX)?;
    let duration_s = seconds(root, "duration_s", DURATION_S, DURATION_S_MAX)?;
    let metrics = match given(root, "metrics") {
        Some(list) => names(list, "/metrics", NAME_BYTES)?,
        None => Vec::new(),
    };
    let until = format_millis(now_ms + duration_s * 1000);
    let body = MonitoringBody { device_id: device.as_str(), duration_s, interval_s, metrics, until };
    let data = canonical(&to_json(&body), "")?;
    event("start_monitoring", monitored(device), data)
}

/// Makes the event that ends the monitoring of a device.
///
/// # Errors
/// None that a device's name could be to blame for.
pub fn stop_monitoring(device: &DeviceId) -> Result<Publish, Fault> {
    let data = canonical(&format!("{{\"device_id\":{}}}", to_json(&device.as_str())), "")?;
    event("stop_monitoring", monitored(device), data)
}

fn monitored(device: &DeviceId) -> Vec<Box<str>> {
    vec![topic_of("device_", device), MONITORING_TOPIC.into()]
}

fn event(kind: &str, topics: Vec<Box<str>>, data: Object) -> Result<Publish, Fault> {
    Ok(Publish { kind: event_kind(kind)?, topics, data, ..Publish::default() })
}

fn topic_of(prefix: &str, device: &DeviceId) -> Box<str> {
    format!("{prefix}{}", device.as_str()).into()
}

/// Tells whether a device can have topics of its own: not every name of a device can stand in one.
#[must_use]
pub fn has_topics(device: &DeviceId) -> bool {
    device.as_str().bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.:-".contains(&byte))
}

fn device(root: Node<'_>) -> Result<Option<DeviceId>, Fault> {
    let Some(name) = optional_name(root.get("device_id"), "/device_id", 128)? else { return Ok(None) };
    let device = DeviceId::new(&name).ok().filter(has_topics);
    let wrong = || Fault::invalid("/device_id", "must be a device's name that can stand in a topic");
    device.map(Some).ok_or_else(wrong)
}

fn given<'a>(root: Node<'a>, name: &str) -> Option<Node<'a>> {
    root.get(name).filter(|node| !node.is_null())
}

fn missing(name: &str) -> Fault {
    Fault::invalid(&format!("/{name}"), "is required")
}

fn required<'a>(root: Node<'a>, name: &str) -> Result<Node<'a>, Fault> {
    let node = given(root, name).ok_or_else(|| missing(name))?;
    if node.is_object() { Ok(node) } else { Err(Fault::invalid(&format!("/{name}"), "must be an object")) }
}

fn metrics(root: Node<'_>) -> Result<Node<'_>, Fault> {
    required(root, "metrics")
}

/// Refuses a text that is missing or empty.
fn told<'a>(root: Node<'a>, name: &str) -> Result<Cow<'a, str>, Fault> {
    let text = given(root, name).ok_or_else(|| missing(name))?.as_str();
    text.filter(|text| !text.is_empty())
        .ok_or_else(|| Fault::invalid(&format!("/{name}"), "must be a text that is not empty"))
}

fn severity(root: Node<'_>) -> Result<(), Fault> {
    let severity = told(root, "severity")?;
    if ["low", "medium", "high", "critical"].contains(&&*severity) {
        return Ok(());
    }
    Err(Fault::invalid("/severity", "must be low, medium, high or critical"))
}

fn seconds(root: Node<'_>, name: &str, default: u64, most: u64) -> Result<u64, Fault> {
    let Some(node) = given(root, name) else { return Ok(default) };
    let seconds = node.as_u64().filter(|seconds| (1..=most).contains(seconds));
    seconds.ok_or_else(|| Fault::invalid(&format!("/{name}"), &format!("must be a number from 1 to {most}")))
}

/// Reads an object without some of its members, and with others beside.
fn object(node: Node<'_>, pointer: &str, without: &[&str], with: &[(&str, String)]) -> Result<Object, Fault> {
    let own = node.members().filter(|(name, _)| !without.iter().any(|left| name.is_str(left)));
    let mut members: Vec<String> =
        own.map(|(name, value)| format!("{}:{}", name.to_json(), value.to_json())).collect();
    members.extend(with.iter().map(|(name, value)| format!("\"{name}\":{value}")));
    canonical(&format!("{{{}}}", members.join(",")), pointer)
}

fn canonical(text: &str, pointer: &str) -> Result<Object, Fault> {
    match object_of_text(text, 64) {
        Ok(Ok(object)) => Ok(object),
        Ok(Err(error)) => {
            Err(Fault::invalid(&format!("{pointer}{}", error.pointer), &error.kind.to_string()))
        }
        Err(error) => Err(Fault::invalid(pointer, &error.to_string())),
    }
}

#[derive(Serialize)]
struct MonitoringBody<'a> {
    device_id: &'a str,
    duration_s: u64,
    interval_s: u64,
    metrics: Vec<Box<str>>,
    until: String,
}

/// What is monitored of a device.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MonitoringDoc {
    /// Whether it is.
    pub active: bool,
    /// Seconds between two reports; none: nothing is monitored.
    pub interval_s: Option<u64>,
    /// The metrics that are wanted; empty: all.
    pub metrics: Vec<String>,
    /// When it ends, RFC 3339.
    pub until: Option<String>,
}

impl MonitoringDoc {
    /// Reads what a `start_monitoring` event carries, with the seconds that it lasts.
    #[must_use]
    pub fn of_event(data: &str) -> Option<(Self, u64)> {
        #[derive(Deserialize)]
        struct Body {
            duration_s: u64,
            interval_s: u64,
            metrics: Vec<String>,
            until: String,
        }
        let Body { duration_s, interval_s, metrics, until } = serde_json::from_str(data).ok()?;
        let doc = Self { active: true, interval_s: Some(interval_s), metrics, until: Some(until) };
        Some((doc, duration_s))
    }
}

/// The body of `POST /api/v1/outbox/drain`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrainPost {
    /// The most rows.
    pub batch: usize,
}

impl DrainPost {
    /// Reads the body; an empty one is an empty object.
    ///
    /// # Errors
    /// A decode error, or `VALIDATION_ERROR`.
    pub fn decode(encoding: Encoding, bytes: &[u8], limits: &Limits) -> Result<Self, Fault> {
        if bytes.is_empty() {
            return Ok(Self { batch: 100 });
        }
        let document = Envelope::parse(encoding, bytes, limits)?;
        let batch = seconds(document.root(), "batch", 100, 10_000)?;
        Ok(Self { batch: usize::try_from(batch).unwrap_or(100) })
    }
}

/// The answer to `POST /api/v1/outbox/drain`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainedDoc {
    /// Rows that were marked as processed.
    pub processed: u64,
    /// Of them, rows of which no event could be made.
    pub failed: u64,
}

/// The answer to `POST /api/v1/tickets`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TicketDoc {
    /// Lets its bearer in once, in the place of a token.
    pub ticket: String,
    /// For how many seconds.
    pub expires_in_s: u64,
}

/// The answer to `GET /ws/stats`: what is connected to this node, of one tenant.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StatsDoc {
    /// Connections.
    pub total_connections: usize,
    /// Connections that were heard of within the last five minutes, or came then.
    pub active_connections: usize,
    /// Users with a connection.
    pub total_users: usize,
    /// Topics, and how many connections listen to each.
    pub subscriptions: BTreeMap<String, usize>,
    /// How many topics a connection listens to.
    pub average_subscriptions_per_client: f64,
    /// Bytes of events that wait to be sent.
    pub queued_bytes: usize,
    /// Connections by what they are for.
    pub doors: BTreeMap<String, usize>,
}

/// A live connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionDoc {
    /// Names it.
    pub connection_id: String,
    /// The user.
    pub user_id: String,
    /// The device.
    pub device_id: Option<String>,
    /// The name that the client gave itself.
    pub client_id: Option<String>,
    /// What it is for.
    pub door: String,
    /// When it came, RFC 3339.
    pub connected_at: String,
    /// When it was last heard of, RFC 3339.
    pub last_heard_at: String,
    /// The topics that it listens to.
    pub topics: Vec<String>,
    /// Bytes of events that wait to be sent to it.
    pub queued_bytes: usize,
    /// The address that it came from.
    pub peer: Option<String>,
}

/// Who listens to a topic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PresenceDoc {
    /// The topic.
    pub topic: String,
    /// The users, each with the number of connections.
    pub users: Vec<PresentUser>,
    /// All their connections.
    pub connections: usize,
}

/// A user who listens to a topic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PresentUser {
    /// The user.
    pub user_id: String,
    /// How many connections of the user listen.
    pub connections: usize,
}

/// The first event of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamEstablished {
    /// `connection_established`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The server's time, RFC 3339.
    pub server_time: String,
    /// Names the connection.
    pub connection_id: String,
    /// Whether everything since the place that was named comes; true if none was named.
    pub recovered: bool,
    /// Why not everything comes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Where what was missed can be read as it is now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    /// The life of the log.
    pub epoch: String,
    /// The end of the log.
    pub position: String,
    /// Stands for `position`, sealed: any node resumes there.
    pub resume_token: String,
    /// The topics that are heard, those that the server joined too.
    pub topics: Vec<String>,
    /// The topics that were asked for and may not be had, with the code that says why.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub refused: BTreeMap<String, String>,
}
