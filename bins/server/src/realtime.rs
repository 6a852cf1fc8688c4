//! `[[topic]]`, `[[event]]`, `[realtime]` and `[outbox]` of the configuration file.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use anyhow::{Context as _, bail};
use driftline_engine::{EventRules, RETENTION_MS_DEFAULT, canonical_name};
use driftline_model::TenantId;
use driftline_protocol::event_kind;
use driftline_realtime::{Access, Pattern, TopicName, TopicRule};
use driftline_transport::{Anonymous, names_groups};
use serde::Deserialize;

/// The longest retention in days, 100 years.
const RETENTION_DAYS_MAX: u64 = 36_500;
const DAY_MS: u64 = 86_400_000;

/// How long processed rows of the outbox stay, in days.
const OUTBOX_RETENTION_DAYS: u64 = 7;
/// How often the outbox is looked into at least, in milliseconds, whatever wakes the server before.
const POLL_MS: u64 = 5_000;
/// The longest time between two such looks, in milliseconds.
const POLL_MS_MAX: u64 = 3_600_000;

/// Columns of the outbox that no claim can have.
const OUTBOX_COLUMNS: [&str; 11] = [
    "id",
    "tenant",
    "event_type",
    "topic",
    "user_id",
    "role",
    "payload",
    "dedupe_key",
    "created_at",
    "processed_at",
    "error",
];

/// `[[topic]]`: the topics of one pattern.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TopicConfig {
    /// The pattern.
    name: String,
    subscribe: Option<AccessConfig>,
    publish: Option<AccessConfig>,
    durable: Option<bool>,
    retention_days: Option<u64>,
    keep: Option<u64>,
    conflate: Option<String>,
    #[serde(default)]
    join: bool,
    presence: Option<bool>,
}

/// Who may do something.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct AccessConfig {
    everyone: bool,
    roles: Vec<String>,
    members: bool,
}

/// `[[event]]`: where events of a type go that name no topic.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct EventConfig {
    #[serde(rename = "type")]
    kind: String,
    route: Vec<String>,
}

/// `[realtime]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RealtimeConfig {
    /// Claims that make groups and have a column of the outbox each.
    claims: Vec<String>,
    anonymous: Option<AnonymousConfig>,
}

/// `anonymous`: what is open to those without a token.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AnonymousConfig {
    tenant: String,
    topics: Vec<String>,
}

/// `[outbox]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct OutboxConfig {
    enabled: Option<bool>,
    retention_days: Option<u64>,
    poll_ms: Option<u64>,
}

/// How the outbox is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Outbox {
    /// Whether this node processes rows by itself.
    pub(crate) enabled: bool,
    /// How long processed rows stay, in milliseconds.
    pub(crate) retention_ms: u64,
    /// How often it is looked into at least.
    pub(crate) poll: Duration,
}

/// Makes the rules of what the file says of topics and events.
///
/// # Errors
/// The error names the topic or the type, the place in it, and what is wrong.
pub(crate) fn rules(
    topics: &[TopicConfig],
    events: &[EventConfig],
    realtime: &RealtimeConfig,
    open: bool,
) -> anyhow::Result<EventRules> {
    let mut declared = Vec::with_capacity(topics.len());
    let mut names = HashSet::new();
    for topic in topics {
        if !names.insert(&topic.name) {
            bail!("topic {:?} is declared twice", topic.name);
        }
        declared.push(topic.rule().with_context(|| format!("topic {:?}", topic.name))?);
    }
    let mut routes = BTreeMap::new();
    for event in events {
        let route = event.route().with_context(|| format!("event {:?}", event.kind))?;
        if routes.insert(Box::from(event.kind.as_str()), route).is_some() {
            bail!("event {:?} is declared twice", event.kind);
        }
    }
    let checked = routes.clone();
    let rules = EventRules::new(declared, routes, realtime.claims()?).context("topics")?;
    let rules = if open { rules.open() } else { rules };
    for (kind, pattern) in checked.iter().flat_map(|(kind, route)| route.iter().map(move |to| (kind, to))) {
        let known =
            pattern.fill(|_| Some("x".into())).is_ok_and(|topic| rules.rule(topic.as_str()).is_some());
        if !known {
            bail!("event {kind:?}: route: there are no topics {:?}: declare them", pattern.as_str());
        }
    }
    realtime.open(&rules)?;
    Ok(rules)
}

impl TopicConfig {
    fn rule(&self) -> anyhow::Result<TopicRule> {
        let pattern = Pattern::parse(&self.name).context("name")?;
        let subscribe = access(self.subscribe.as_ref(), &pattern).context("subscribe")?;
        let publish = access(self.publish.as_ref(), &pattern).context("publish")?;
        let is_closed = !subscribe.everyone && !subscribe.members && subscribe.roles.is_empty();
        if is_closed {
            bail!("subscribe lets nobody in: give it everyone, roles or members");
        }
        let conflate = self.conflate.as_deref().map(|field| {
            if field.is_empty() {
                bail!("conflate: the name of a field is empty");
            }
            Ok(canonical_name(field))
        });
        let conflate = conflate.transpose()?;
        let durable = self.durable.unwrap_or(conflate.is_none());
        if !durable && (self.retention_days.is_some() || self.keep.is_some()) {
            bail!("retention_days and keep are for topics whose events the log keeps: set durable = true");
        }
        if self.keep == Some(0) {
            bail!("keep must be at least 1");
        }
        let retention_ms = match self.retention_days {
            Some(days) => days_ms("retention_days", days)?,
            None => RETENTION_MS_DEFAULT,
        };
        Ok(TopicRule {
            pattern,
            subscribe,
            publish,
            durable,
            retention_ms: Some(retention_ms),
            keep: self.keep,
            conflate,
            join: self.join,
            presence: self.presence.unwrap_or(true),
        })
    }
}

fn access(config: Option<&AccessConfig>, pattern: &Pattern) -> anyhow::Result<Access> {
    let Some(AccessConfig { everyone, roles, members }) = config else { return Ok(Access::default()) };
    if roles.iter().any(String::is_empty) {
        bail!("roles: the name of a role is empty");
    }
    if *members {
        let placeholders = placeholders(pattern.as_str());
        if placeholders.is_empty() {
            bail!("members hold what a placeholder of the topic's name stands for, and there is none");
        }
        let foreign =
            placeholders.iter().find(|name| !matches!(**name, "sub" | "role") && !names_groups(name));
        if let Some(name) = foreign {
            bail!("members: {name:?} is not a claim that names groups");
        }
    }
    let roles = roles.iter().map(|role| role.as_str().into()).collect();
    Ok(Access { everyone: *everyone, roles, members: *members })
}

/// Names the placeholders of a pattern that was parsed.
fn placeholders(pattern: &str) -> Vec<&str> {
    pattern.split('{').skip(1).filter_map(|rest| rest.split_once('}')).map(|(name, _)| name).collect()
}

impl EventConfig {
    fn route(&self) -> anyhow::Result<Vec<Pattern>> {
        event_kind(&self.kind).map_err(|fault| anyhow::anyhow!("type: {}", fault.message))?;
        if self.route.is_empty() {
            bail!("route must name at least one topic");
        }
        let mut route: Vec<Pattern> = Vec::with_capacity(self.route.len());
        for topic in &self.route {
            let pattern = Pattern::parse(topic).with_context(|| format!("route: {topic:?}"))?;
            if route.contains(&pattern) {
                bail!("route names {topic:?} twice");
            }
            route.push(pattern);
        }
        Ok(route)
    }
}

impl RealtimeConfig {
    /// Returns the claims that make groups.
    pub(crate) fn claims(&self) -> anyhow::Result<Vec<Box<str>>> {
        let mut claims: Vec<Box<str>> = Vec::with_capacity(self.claims.len());
        for claim in &self.claims {
            let is_column = claim.starts_with(|first: char| first.is_ascii_lowercase() || first == '_')
                && claim
                    .chars()
                    .all(|char| char.is_ascii_lowercase() || char.is_ascii_digit() || char == '_');
            if !is_column || claim.len() > 63 {
                bail!(
                    "realtime.claims: {claim:?} must have 1 to 63 of a-z, 0-9 and _, and begin with no digit"
                );
            }
            if !names_groups(claim) {
                bail!("realtime.claims: {claim:?} is not a claim that names groups");
            }
            if OUTBOX_COLUMNS.contains(&claim.as_str()) {
                bail!("realtime.claims: {claim:?} is a column that the outbox has already");
            }
            if claims.iter().any(|known| **known == **claim) {
                bail!("realtime.claims names {claim:?} twice");
            }
            claims.push(claim.as_str().into());
        }
        Ok(claims)
    }

    /// Returns what may be had without a token.
    pub(crate) fn open(&self, rules: &EventRules) -> anyhow::Result<Option<Anonymous>> {
        let Some(AnonymousConfig { tenant, topics }) = &self.anonymous else { return Ok(None) };
        let id = TenantId::new(tenant)
            .with_context(|| format!("realtime.anonymous.tenant: {tenant:?} is not a tenant"))?;
        if topics.is_empty() {
            bail!("realtime.anonymous.topics must name at least one topic");
        }
        for topic in topics {
            TopicName::new(topic).with_context(|| format!("realtime.anonymous.topics: {topic:?}"))?;
            if rules.rule(topic).is_none() {
                bail!("realtime.anonymous.topics: there is no topic {topic:?}: declare it");
            }
        }
        Ok(Some(Anonymous { tenant: id, topics: topics.iter().map(|topic| topic.as_str().into()).collect() }))
    }
}

impl OutboxConfig {
    /// Puts what the file says over the defaults.
    pub(crate) fn outbox(&self) -> anyhow::Result<Outbox> {
        let days = self.retention_days.unwrap_or(OUTBOX_RETENTION_DAYS);
        let poll_ms = self.poll_ms.unwrap_or(POLL_MS);
        if !(10..=POLL_MS_MAX).contains(&poll_ms) {
            bail!("outbox.poll_ms must be from 10 to {POLL_MS_MAX}");
        }
        Ok(Outbox {
            enabled: self.enabled.unwrap_or(true),
            retention_ms: days_ms("outbox.retention_days", days)?,
            poll: Duration::from_millis(poll_ms),
        })
    }
}

fn days_ms(name: &str, days: u64) -> anyhow::Result<u64> {
    if !(1..=RETENTION_DAYS_MAX).contains(&days) {
        bail!("{name} must be from 1 to {RETENTION_DAYS_MAX}");
    }
    Ok(days * DAY_MS)
}

#[cfg(test)]
mod tests {
    use driftline_engine::TopicRules as _;

    use super::*;
    use crate::config::Config;

    fn read(text: &str) -> anyhow::Result<EventRules> {
        let config = Config::parse(text)?;
        config.outbox()?;
        config.rules(false)
    }

    #[test]
    fn topics_are_declared_whole_or_by_their_name_and_readers() {
        let rules = read(
            "[[topic]]\nname = \"ward_{ward}\"\nsubscribe = { roles = [\"staff\"], members = true }\n\
             publish = { roles = [\"nurse\"] }\nretention_days = 2\nkeep = 10\njoin = true\npresence = false\n\
             [[topic]]\nname = \"beds\"\nsubscribe = { everyone = true }\nconflate = \"bed\"\n\
             [[topic]]\nname = \"news\"\nsubscribe = { everyone = true }\n",
        )
        .unwrap();
        let (ward, values) = rules.rule("ward_7").unwrap();
        assert_eq!(values, [("ward", "7")]);
        assert!(ward.subscribe.members && !ward.subscribe.everyone && ward.join && !ward.presence);
        assert_eq!((&*ward.publish.roles[0], ward.durable), ("nurse", true));
        let retention = rules.retention("ward_7");
        assert_eq!((retention.age_ms, retention.keep), (Some(2 * DAY_MS), Some(10)));
        let (beds, _) = rules.rule("beds").unwrap();
        assert_eq!((beds.durable, beds.conflate.as_deref()), (false, Some("bed")));
        let (news, _) = rules.rule("news").unwrap();
        assert_eq!((news.durable, news.retention_ms, news.presence), (true, Some(7 * DAY_MS), true));
        assert!(rules.rule("other").is_none() && rules.rule("user_ada").is_some());
    }

    #[test]
    fn only_development_without_restrictions_takes_any_topic() {
        let config = Config::parse("").unwrap();
        assert!(config.rules(true).unwrap().rule("anything").is_some());
        assert!(config.rules(false).unwrap().rule("anything").is_none());
        let config = Config::parse("[server]\nallow_undeclared = false").unwrap();
        assert!(config.rules(true).unwrap().rule("anything").is_none());
        // In service only declared topics are there, also where any kind of record is.
        let config = Config::parse("[server]\nallow_undeclared = true").unwrap();
        assert!(config.rules(false).unwrap().rule("anything").is_none());
    }

    #[test]
    fn claims_make_groups_and_what_is_open_is_known() {
        let text = "[realtime]\nclaims = [\"cadet_id\"]\nanonymous = { tenant = \"public\", topics = [\"news\"] }\n\
             [[topic]]\nname = \"news\"\nsubscribe = { everyone = true }\n";
        let config = Config::parse(text).unwrap();
        let rules = config.rules(false).unwrap();
        assert!(rules.rule("cadet_7").unwrap().0.join);
        let open = config.open(&rules).unwrap().unwrap();
        assert_eq!((open.tenant.as_str(), &*open.topics[0]), ("public", "news"));
        assert_eq!(Config::parse("").unwrap().open(&rules).unwrap(), None);
    }

    #[test]
    fn the_outbox_is_on_unless_told_otherwise() {
        let outbox = |text: &str| Config::parse(text).unwrap().outbox().unwrap();
        let default = Outbox { enabled: true, retention_ms: 7 * DAY_MS, poll: Duration::from_secs(5) };
        assert_eq!(outbox(""), default);
        let given = outbox("[outbox]\nenabled = false\nretention_days = 1\npoll_ms = 250");
        let expected = Outbox { enabled: false, retention_ms: DAY_MS, poll: Duration::from_millis(250) };
        assert_eq!(given, expected);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let table = [
            ("subscribe = {}", "topic \"a_{x}\": subscribe lets nobody in"),
            ("", "subscribe lets nobody in"),
            ("subscribe = { everyone = true, role = \"x\" }", "role"),
            ("subscribe = { roles = [\"\"] }", "subscribe: roles: the name"),
            ("subscribe = { everyone = true }\npublish = { roles = [\"\"] }", "publish: roles"),
            ("subscribe = { everyone = true }\nretention_days = 0", "retention_days must be from 1 to 36500"),
            ("subscribe = { everyone = true }\nkeep = 0", "keep must be at least 1"),
            ("subscribe = { everyone = true }\nconflate = \"\"", "conflate: the name"),
            ("subscribe = { everyone = true }\nconflate = \"x\"\nkeep = 3", "set durable = true"),
            ("subscribe = { everyone = true }\ndurable = false\nretention_days = 3", "set durable = true"),
            ("subscribe = { everyone = true }\nretention = 3", "retention"),
        ];
        for (topic, named) in table {
            let text = format!("[[topic]]\nname = \"a_{{x}}\"\n{topic}");
            let error = format!("{:#}", read(&text).unwrap_err());
            assert!(error.contains(named), "{topic}: {error}");
        }
        let everyone = "subscribe = { everyone = true }";
        let table = [
            (format!("[[topic]]\nname = \"a b\"\n{everyone}"), "topic \"a b\": name: a pattern consists"),
            (format!("[[topic]]\nname = \"a{{b\"\n{everyone}"), "topic \"a{b\": name: a placeholder"),
            (
                format!("[[topic]]\nname = \"a\"\n{everyone}\n[[topic]]\nname = \"a\"\n{everyone}"),
                "\"a\" is declared twice",
            ),
            (
                format!(
                    "[[topic]]\nname = \"a_{{b}}\"\n{everyone}\n[[topic]]\nname = \"a_{{c}}\"\n{everyone}"
                ),
                "a_{c} has the topics of another",
            ),
            (
                "[[topic]]\nname = \"a\"\nsubscribe = { members = true }".into(),
                "topic \"a\": subscribe: members hold",
            ),
            (
                "[[topic]]\nname = \"a_{device_id}\"\nsubscribe = { members = true }".into(),
                "subscribe: members: \"device_id\" is not a claim",
            ),
            ("[[event]]\ntype = \"ack\"\nroute = [\"all\"]".into(), "event \"ack\": type: "),
            ("[[event]]\ntype = \"\"\nroute = [\"all\"]".into(), "event \"\": type: "),
            ("[[event]]\ntype = \"x\"\nroute = []".into(), "event \"x\": route must name"),
            ("[[event]]\ntype = \"x\"\nroute = [\"a b\"]".into(), "event \"x\": route: \"a b\""),
            (
                "[[event]]\ntype = \"x\"\nroute = [\"all\", \"all\"]".into(),
                "event \"x\": route names \"all\" twice",
            ),
            (
                "[[event]]\ntype = \"x\"\nroute = [\"ward_{w}\"]".into(),
                "event \"x\": route: there are no topics",
            ),
            (
                "[[event]]\ntype = \"x\"\nroute = [\"all\"]\n[[event]]\ntype = \"x\"\nroute = [\"all\"]"
                    .into(),
                "event \"x\" is declared twice",
            ),
            ("[[event]]\ntype = \"x\"".into(), "route"),
            ("[realtime]\nclaims = [\"Cadet\"]".into(), "realtime.claims: \"Cadet\" must have"),
            ("[realtime]\nclaims = [\"sub\"]".into(), "\"sub\" is not a claim that names groups"),
            ("[realtime]\nclaims = [\"role\"]".into(), "\"role\" is a column that"),
            ("[realtime]\nclaims = [\"a\", \"a\"]".into(), "realtime.claims names \"a\" twice"),
            ("[realtime]\nclaims = [\"a\", \"a_id\"]".into(), "a_{a_id} has the topics of another"),
            ("[realtime]\nclaim = [\"a\"]".into(), "claim"),
            (
                "[realtime]\nanonymous = { tenant = \"\", topics = [\"all\"] }".into(),
                "realtime.anonymous.tenant: \"\" is not",
            ),
            (
                "[realtime]\nanonymous = { tenant = \"t\", topics = [] }".into(),
                "realtime.anonymous.topics must name",
            ),
            (
                "[realtime]\nanonymous = { tenant = \"t\", topics = [\"a b\"] }".into(),
                "realtime.anonymous.topics: \"a b\"",
            ),
            (
                "[realtime]\nanonymous = { tenant = \"t\", topics = [\"a\"] }".into(),
                "realtime.anonymous.topics: there is no topic \"a\"",
            ),
            ("[outbox]\nretention_days = 0".into(), "outbox.retention_days must be from 1"),
            ("[outbox]\npoll_ms = 9".into(), "outbox.poll_ms must be from 10"),
            ("[outbox]\nenable = true".into(), "enable"),
        ];
        for (text, named) in table {
            let error = format!("{:#}", read(&text).unwrap_err());
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}
