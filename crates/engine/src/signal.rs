//! What happens now: live events on their way to the sessions of a tenant.

use std::collections::BTreeSet;
use std::sync::Arc;

use driftline_model::{DeviceKey, Object};
use driftline_protocol::{Event, write_json_string};

use crate::ports::Identity;

/// Something that happens now. Nobody keeps it: who does not listen does not hear of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signal {
    /// What happens.
    pub kind: Box<str>,
    /// Its topics.
    pub topics: Vec<Box<str>>,
    /// The device that it concerns.
    pub device: Option<DeviceKey>,
    /// Its own fields, a JSON value.
    pub data: Arc<str>,
    /// When, in Unix milliseconds.
    pub at_ms: u64,
}

impl Signal {
    /// Makes the signal of a device, on the device's own topic and others.
    #[must_use]
    pub fn of_device(kind: &str, device: &DeviceKey, topics: &[&str], fields: &Object, at_ms: u64) -> Self {
        let own = format!("device_{}", device.device());
        let topics = std::iter::once(own.as_str()).chain(topics.iter().copied()).map(Box::from).collect();
        Self {
            kind: kind.into(),
            topics,
            device: Some(device.clone()),
            data: with_device(device, fields).into(),
            at_ms,
        }
    }
}

/// The fields of a device's event behind the device's name.
fn with_device(device: &DeviceKey, fields: &Object) -> String {
    let mut data = String::with_capacity(fields.as_str().len() + 64);
    data.push_str("{\"device_id\":");
    write_json_string(&mut data, device.device());
    for (name, value) in fields.iter().filter(|(name, _)| *name != "device_id") {
        data.push_str(",\"");
        data.push_str(name);
        data.push_str("\":");
        data.push_str(value);
    }
    data.push('}');
    data
}

/// What a session wants to hear.
#[derive(Debug, Clone, Default)]
pub struct Interests {
    topics: BTreeSet<Box<str>>,
    /// Everything that concerns devices of this user.
    devices_of: Option<Box<str>>,
    /// One device, and those of its topics that are wanted.
    device: Option<(DeviceKey, Vec<Box<str>>)>,
    /// Whether the listener hears of every device.
    staff: bool,
    /// The listener.
    user: Box<str>,
}

/// Topics whose events only staff hears.
const STAFF_TOPICS: [&str; 8] = [
    "device_status",
    "stream_metrics",
    "server_metrics",
    "anomaly_alert",
    "performance",
    "security",
    "analytics",
    "alerts",
];

/// Topics of which there is one per device; an owner hears those of the own devices.
const DEVICE_TOPICS: [&str; 2] = ["device_", "metrics_"];

/// What becomes of a wish for a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// Its events come from now on.
    Accepted,
    /// It is not the listener's to hear.
    Forbidden,
    /// There is no such topic, or the listener wants too many.
    Unknown,
}

/// Topics that one connection may want.
const TOPICS_MAX: usize = 256;
/// Topics that a connection of staff may want.
const STAFF_TOPICS_MAX: usize = 5_000;

impl Interests {
    /// Makes the interests of a listener, who wants nothing yet.
    #[must_use]
    pub fn new(identity: &Identity) -> Self {
        let staff = crate::catalogue::STAFF_ROLES.iter().any(|role| identity.has_role(role));
        Self { staff, user: identity.user.to_string().into(), ..Self::default() }
    }

    /// Wants everything that concerns one user's devices.
    pub fn follow_user(&mut self, user: &str) {
        self.devices_of = Some(user.into());
    }

    /// Wants topics of one device, and of no other one of the same name; a topic is a prefix before the name.
    pub fn follow_device(&mut self, device: &DeviceKey, prefixes: &[&str]) {
        let topics = prefixes.iter().map(|prefix| format!("{prefix}{}", device.device()).into());
        self.device = Some((device.clone(), topics.collect()));
    }

    /// Wants a topic that the route itself gives.
    pub fn follow(&mut self, topic: &str) {
        self.topics.insert(topic.into());
    }

    /// Wants a topic, if it may be had. `announced` tells of topics that kinds announce on.
    pub fn want(&mut self, topic: &str, roles: &[Box<str>], announced: impl Fn(&str) -> bool) -> Wish {
        let most = if self.staff { STAFF_TOPICS_MAX } else { TOPICS_MAX };
        if self.topics.len() >= most && !self.topics.contains(topic) {
            return Wish::Unknown;
        }
        let of_device =
            DEVICE_TOPICS.iter().any(|prefix| topic.len() > prefix.len() && topic.starts_with(prefix));
        let wish = if STAFF_TOPICS.contains(&topic) {
            if self.staff { Wish::Accepted } else { Wish::Forbidden }
        } else if let Some(user) = topic.strip_prefix("user_") {
            if *user == *self.user { Wish::Accepted } else { Wish::Forbidden }
        } else if let Some(role) = topic.strip_prefix("role_") {
            if roles.iter().any(|own| **own == *role) { Wish::Accepted } else { Wish::Forbidden }
        } else if of_device || announced(topic) {
            Wish::Accepted
        } else {
            Wish::Unknown
        };
        if wish == Wish::Accepted {
            self.topics.insert(topic.into());
        }
        wish
    }

    /// Wants a topic no more; tells whether it was wanted.
    pub fn drop_topic(&mut self, topic: &str) -> bool {
        self.topics.remove(topic)
    }

    /// Tells whether nothing is wanted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.topics.is_empty() && self.devices_of.is_none() && self.device.is_none()
    }

    /// Makes the event that the listener gets of a signal, if it is one for this listener.
    #[must_use]
    pub fn event(&self, signal: &Signal) -> Option<Event> {
        let owner = signal.device.as_ref().map(DeviceKey::user);
        let may = self.staff || owner.is_none_or(|owner| *owner == *self.user);
        let followed = self.devices_of.as_deref().is_some_and(|user| owner == Some(user));
        let own = self.device.as_ref().filter(|(device, _)| signal.device.as_ref() == Some(device));
        let own = own.and_then(|(_, wanted)| signal.topics.iter().find(|topic| wanted.contains(topic)));
        let topic = own.or_else(|| signal.topics.iter().find(|topic| self.topics.contains(*topic)));
        // What concerns a device is told on the device's own topic; other topics may be staff's.
        let open = signal.topics.iter().find(|topic| self.staff || !STAFF_TOPICS.contains(&&***topic));
        let topic = topic.or(open.filter(|_| followed)).filter(|_| may)?;
        Some(Event {
            kind: signal.kind.clone(),
            topic: topic.clone(),
            data: Arc::clone(&signal.data),
            at_ms: signal.at_ms,
        })
    }
}

/// Tells whether a topic may be one of a template's.
pub(crate) fn fits(template: &str, topic: &str) -> bool {
    match template.split_once('{') {
        None => template == topic,
        Some((before, after)) => {
            let end = after.rsplit_once('}').map_or("", |(_, end)| end);
            topic.len() > before.len() + end.len() && topic.starts_with(before) && topic.ends_with(end)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use driftline_protocol::object_of_text;

    fn object(text: &str) -> Object {
        object_of_text(text, 8).expect("JSON").expect("canonical")
    }

    #[test]
    fn topics_of_a_template_are_known() {
        assert!(fits("zone_{zone}", "zone_7") && !fits("zone_{zone}", "zone_") && fits("all", "all"));
    }

    #[test]
    fn an_owner_hears_of_the_own_devices_only() {
        let signal = Signal::of_device(
            "device_status",
            &DeviceKey::from_text("ada\u{1}phone"),
            &["device_status"],
            &object(r#"{"battery":3,"device_id":"claimed"}"#),
            7,
        );
        assert_eq!(&*signal.data, r#"{"device_id":"phone","battery":3}"#);
        let of = |user: &str, staff| Interests { user: user.into(), staff, ..Interests::default() };
        for (user, staff, hears) in [("ada", false, true), ("bob", false, false), ("bob", true, true)] {
            let mut interests = of(user, staff);
            assert_eq!(interests.want("device_phone", &[], |_| false), Wish::Accepted);
            assert_eq!(interests.event(&signal).is_some(), hears, "{user}");
        }
        assert_eq!(of("ada", false).want("device_status", &[], |_| false), Wish::Forbidden);
        assert_eq!(of("ada", false).want("user_bob", &[], |_| false), Wish::Forbidden);
        assert_eq!(of("ada", false).want("nonsense", &[], |_| false), Wish::Unknown);
    }

    #[test]
    fn a_listener_wants_so_many_topics() {
        for (staff, most) in [(false, TOPICS_MAX), (true, STAFF_TOPICS_MAX)] {
            let mut interests = Interests { staff, user: "ada".into(), ..Interests::default() };
            for number in 0..most {
                assert_eq!(interests.want(&format!("device_{number}"), &[], |_| false), Wish::Accepted);
            }
            assert_eq!(interests.want("device_more", &[], |_| false), Wish::Unknown, "{staff}");
            assert_eq!(interests.want("device_0", &[], |_| false), Wish::Accepted, "it is wanted already");
            assert!(interests.drop_topic("device_0"));
            assert_eq!(interests.want("device_more", &[], |_| false), Wish::Accepted);
        }
    }
}
