//! Events: told to whoever listens, and kept in the tenant's log for whoever comes later.

use std::borrow::Cow;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use driftline_model::{DeviceKey, Epoch, Object};
use driftline_protocol::{object_of_text, write_json_string};
use driftline_realtime::TopicName;

use crate::catalogue::Announce;
use crate::fanout::DEVICE_TOPIC;

/// How deep the data of an event may nest.
const DEPTH_MAX: usize = 64;

/// An event before it happens: what the log and the listeners are to be given.
#[derive(Debug, Clone)]
pub struct EventDraft {
    /// What happens.
    pub kind: Box<str>,
    /// Its topics, at least one and each once; who listens to several gets it once.
    pub topics: Vec<Box<str>>,
    /// Whether the log keeps it. An event that is not kept has no id, and reaches only those who listen now.
    pub durable: bool,
    /// The device that it concerns: beside staff only the device's owner gets it.
    pub owner: Option<DeviceKey>,
    /// The values that filled the placeholders of its topics: members of a JSON object, without the braces.
    pub values: Box<str>,
    /// Its own fields, a canonical JSON value.
    pub data: Arc<str>,
    /// When it was created, in Unix milliseconds.
    pub at_ms: u64,
    /// Of events with equal keys the log keeps the first, for as long as it keeps that.
    pub dedupe_key: Option<Box<str>>,
    /// What it tells of, and which state of it: an event of an earlier or the same state than one that was kept is late
    /// and is dropped.
    pub version: Option<(Box<str>, u64)>,
    /// Of a conflated event, what it tells of: a later one takes its place where it still waits.
    pub conflate: Option<u64>,
    /// How many connections of this node got it, once it was told.
    pub reached: Arc<AtomicU32>,
}

impl EventDraft {
    /// Makes a draft of an event on its topics, with nothing beyond.
    #[must_use]
    pub fn new(kind: impl Into<Box<str>>, topics: Vec<Box<str>>, data: Arc<str>, at_ms: u64) -> Self {
        Self {
            kind: kind.into(),
            topics,
            durable: true,
            owner: None,
            values: "".into(),
            data,
            at_ms,
            dedupe_key: None,
            version: None,
            conflate: None,
            reached: Arc::default(),
        }
    }

    /// Makes the draft of a device's event, on the device's own topic and others: its name stands before the fields.
    #[must_use]
    pub fn of_device(kind: &str, device: &DeviceKey, topics: &[&str], fields: &Object, at_ms: u64) -> Self {
        let own = format!("device_{}", device.device());
        let topics = std::iter::once(own.as_str()).chain(topics.iter().copied());
        // The names of devices may hold more than those of topics.
        let topics = topics.filter(|topic| TopicName::new(topic).is_ok()).map(Box::from).collect();
        let name = quoted(device.device());
        let others = fields.iter().filter(|(name, _)| *name != "device_id");
        let data = members(std::iter::once(("device_id", name.as_str())).chain(others));
        let values = members(std::iter::once(("device_id", name.as_str())));
        Self {
            owner: Some(device.clone()),
            values: values.into(),
            ..Self::new(kind, topics, format!("{{{data}}}").into(), at_ms)
        }
    }

    /// Estimates its bytes, to bound a commit group.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.data.len() + self.topics.iter().map(|topic| topic.len() + 50).sum::<usize>() + 150
    }

    /// Makes the event, under its number if the log keeps it.
    #[must_use]
    pub fn event(&self, epoch: Epoch, id: Option<u64>) -> Event {
        self.clone().into_event(epoch, id)
    }

    /// Becomes the event, under its number if the log keeps it.
    #[must_use]
    pub fn into_event(self, epoch: Epoch, id: Option<u64>) -> Event {
        Event {
            epoch,
            id,
            kind: self.kind,
            topics: self.topics,
            owner: self.owner,
            values: self.values,
            data: self.data,
            at_ms: self.at_ms,
            conflate: self.conflate,
            reached: self.reached,
            fields: OnceLock::new(),
            forms: OnceLock::new(),
        }
    }
}

/// An event that happened.
#[derive(Debug)]
pub struct Event {
    /// The life of the log.
    pub epoch: Epoch,
    /// Its number in the log; none: the log does not keep it.
    pub id: Option<u64>,
    /// What happened.
    pub kind: Box<str>,
    /// Its topics.
    pub topics: Vec<Box<str>>,
    /// The device that it concerns.
    pub owner: Option<DeviceKey>,
    /// The values that filled the placeholders of its topics: members of a JSON object, without the braces.
    pub values: Box<str>,
    /// Its own fields, a canonical JSON value.
    pub data: Arc<str>,
    /// When it was created, in Unix milliseconds.
    pub at_ms: u64,
    /// Of a conflated event, what it tells of.
    pub conflate: Option<u64>,
    reached: Arc<AtomicU32>,
    /// Its fields, read once for all filters.
    fields: OnceLock<Option<Box<Object>>>,
    /// What was made of it for the wire, once for all who get it: by topic, in the forms that the shell numbers.
    forms: OnceLock<Box<[Forms]>>,
}

/// An event in its forms, as they are asked for.
type Forms = [OnceLock<Arc<[u8]>>; FORMS];

/// Forms in which an event may be kept ready for the wire.
pub const FORMS: usize = 5;

impl Event {
    /// Returns the event as it goes over the wire to a listener of its topic of that place, in a form that the shell
    /// numbers; it is made once.
    pub fn form(&self, topic: usize, form: usize, make: impl FnOnce(&Self, &str) -> Arc<[u8]>) -> Arc<[u8]> {
        let forms = self.forms.get_or_init(|| self.topics.iter().map(|_| Default::default()).collect());
        let name = self.topics.get(topic).map_or("", |name| name);
        match forms.get(topic).and_then(|forms| forms.get(form)) {
            Some(slot) => Arc::clone(slot.get_or_init(|| make(self, name))),
            None => make(self, name),
        }
    }

    /// Tells whether a form of it was made: then it has other listeners, or had them.
    #[must_use]
    pub fn has_forms(&self) -> bool {
        self.forms.get().is_some()
    }

    /// Estimates its bytes on the wire.
    #[must_use]
    pub fn bytes(&self) -> usize {
        // It goes out by one of its topics.
        let topic = self.topics.iter().map(|topic| topic.len()).max().unwrap_or_default();
        self.data.len() + self.values.len() + self.kind.len() + topic + 180
    }

    /// Returns its own fields; nothing if its data is no object.
    #[must_use]
    pub fn fields(&self) -> Option<&Object> {
        let read = || object_of_text(&self.data, DEPTH_MAX).ok().and_then(Result::ok).map(Box::new);
        self.fields.get_or_init(read).as_deref()
    }

    /// Takes down how many connections got it.
    pub fn count_reached(&self, connections: u32) {
        self.reached.fetch_add(connections, Ordering::Relaxed);
    }
}

/// What the log did with a draft.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Published {
    /// The event's number: of a duplicate that of the first; none: the log does not keep it.
    pub id: Option<u64>,
    /// Whether an event of the same key was kept before; this one was dropped.
    pub duplicate: bool,
    /// Whether a later state was kept before; this one was dropped.
    pub late: bool,
}

/// The event of an accepted change or sample.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announcing {
    /// What is announced, and where.
    pub rule: Arc<Announce>,
    /// The device whose sample it is; none: it is a record that changed.
    pub device: Option<DeviceKey>,
}

impl Announcing {
    /// Makes the draft: the event carries `first` before the fields. Nothing if no topic could be filled.
    pub(crate) fn draft(&self, first: &[(&str, &str)], fields: &Object, at_ms: u64) -> Option<EventDraft> {
        let rule = &self.rule;
        let mut values: Vec<(&str, Cow<'_, str>)> = Vec::new();
        let mut topics: Vec<Box<str>> = Vec::new();
        if let Some(device) = &self.device {
            let own = format!("{DEVICE_TOPIC}{}", device.device());
            topics.extend(TopicName::new(&own).is_ok().then(|| own.into()));
        }
        for pattern in &rule.topics {
            let filled = pattern.fill(|name| {
                let value = match (&self.device, fields.get(name)) {
                    (Some(device), _) if name == "device_id" => Cow::Owned(quoted(device.device())),
                    (_, Some(value)) => Cow::Borrowed(value),
                    _ => return None,
                };
                let plain = plain_text(&value)?.to_owned();
                let known = pattern.placeholders().find(|known| *known == name)?;
                if !values.iter().any(|(taken, _)| *taken == known) {
                    values.push((known, value));
                }
                Some(Cow::Owned(plain))
            });
            let Ok(topic) = filled else { continue };
            if !topics.iter().any(|known| **known == *topic.as_str()) {
                topics.push(topic.as_str().into());
            }
        }
        if topics.is_empty() {
            return None;
        }
        let shown = |name: &str| rule.fields.is_empty() || rule.fields.iter().any(|field| **field == *name);
        let taken = |name: &str| first.iter().any(|(known, _)| *known == name);
        let fields = fields.iter().filter(|(name, _)| shown(name) && !taken(name));
        let data = members(first.iter().copied().chain(fields));
        let conflate = rule.conflate.as_ref().map(|name| {
            let of = values.iter().find(|(known, _)| **known == **name).map(|(_, value)| value.as_ref());
            conflation(&topics[0], of.unwrap_or_default())
        });
        Some(EventDraft {
            durable: rule.durable,
            owner: self.device.clone(),
            values: members(shown_values(values.iter().map(|(name, value)| (*name, value.as_ref())))).into(),
            conflate,
            ..EventDraft::new(&*rule.kind, topics, format!("{{{data}}}").into(), at_ms)
        })
    }
}

/// Returns what an accepted change or sample announces, if it does.
pub(crate) fn announcing(rule: Option<&Arc<Announce>>, device: Option<&DeviceKey>) -> Option<Announcing> {
    Some(Announcing { rule: Arc::clone(rule?), device: device.cloned() })
}

/// What stands at the top level of an event already, and what says nothing there.
const RESERVED: [&str; 8] = ["type", "server_time", "id", "topic", "timestamp", "data", "sub", "role"];

/// Leaves out values of placeholders that cannot stand at the top level of an event.
pub(crate) fn shown_values<'a>(
    values: impl Iterator<Item = (&'a str, &'a str)>,
) -> impl Iterator<Item = (&'a str, &'a str)> {
    values.filter(|(name, _)| !RESERVED.contains(name))
}

/// Writes the members of an object, without its braces; names are canonical JSON text.
pub(crate) fn members<'a>(fields: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut text = String::new();
    for (name, value) in fields {
        if !text.is_empty() {
            text.push(',');
        }
        text.push('"');
        text.push_str(name);
        text.push_str("\":");
        text.push_str(value);
    }
    text
}

/// Returns a value as it stands in a topic: a text without its quotes, or an integer.
pub(crate) fn plain_text(value: &str) -> Option<&str> {
    match value.as_bytes() {
        [b'"', .., b'"'] => Some(&value[1..value.len() - 1]),
        [b'-' | b'0'..=b'9', ..] => Some(value),
        _ => None,
    }
}

pub(crate) fn quoted(text: &str) -> String {
    let mut out = String::new();
    write_json_string(&mut out, text);
    out
}

/// Identifies what a conflated event tells of, on its topic.
pub(crate) fn conflation(topic: &str, of: &str) -> u64 {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    let mut hasher = DefaultHasher::new();
    (topic, of).hash(&mut hasher);
    hasher.finish()
}
