//! Which topics there are, who may have them, and where events of a type go.

use std::collections::BTreeMap;
use std::sync::Arc;

use driftline_protocol::{MONITORING_TOPIC, Publish};
use driftline_realtime::{Access, Pattern, Subject, TopicName, TopicRule, Topics, TopicsError, Verdict};

use crate::catalogue::{Announce, STAFF_ROLES};
use crate::events::{EventDraft, conflation, members, plain_text, quoted, shown_values};
use crate::log::{TopicRetention, TopicRules};
use crate::ports::Identity;

/// How long the log keeps events, unless their topic says otherwise: 7 days, in milliseconds.
pub const RETENTION_MS_DEFAULT: u64 = 7 * 24 * 3_600_000;

/// Roles that may publish on every topic by a request.
pub const PUBLISHER_ROLES: [&str; 3] = ["publisher", "staff", "admin"];

/// Topics, users and roles that one event may go to.
const EVENT_TOPICS_MAX: usize = 256;

/// The role of whoever enters without a token.
pub const ANONYMOUS_ROLE: &str = "anonymous";

/// Everything that is declared of topics and of types of events.
#[derive(Debug, Clone)]
pub struct EventRules {
    topics: Topics,
    /// Where events of a type go that name no topic.
    routes: BTreeMap<Box<str>, Vec<Pattern>>,
    /// Claims that make groups.
    claims: Vec<Box<str>>,
    /// What holds for topics that no rule knows; none: there are no others.
    open: Option<TopicRule>,
    /// The only topics of whoever enters without a token.
    anonymous: Vec<Box<str>>,
}

impl Default for EventRules {
    fn default() -> Self {
        Self::new(Vec::new(), BTreeMap::new(), Vec::new()).expect("the built-in rules are sound")
    }
}

/// Topics of which there is one per device.
const DEVICE_TOPICS: [&str; 2] = ["device_", "metrics_"];

impl EventRules {
    /// Puts declared rules beside the built-in ones, which give way to a declared one of the same pattern. `routes` says
    /// where events of a type go that name no topic; `claims` make groups: who holds a claim joins the topic of its value,
    /// which is `cadet_{cadet_id}` for the claim `cadet_id`.
    ///
    /// # Errors
    /// Two rules of one pattern, or too many.
    pub fn new(
        declared: Vec<TopicRule>,
        routes: BTreeMap<Box<str>, Vec<Pattern>>,
        claims: Vec<Box<str>>,
    ) -> Result<Self, TopicsError> {
        let mut rules = declared;
        let of_claims = claims.iter().filter_map(|claim| claim_pattern(claim));
        for rule in built_in().into_iter().chain(of_claims.map(group)) {
            if !rules.iter().any(|declared| declared.pattern.as_str() == rule.pattern.as_str()) {
                rules.push(rule);
            }
        }
        let topics = Topics::new(rules)?;
        Ok(Self { topics, routes, claims, open: None, anonymous: Vec::new() })
    }

    /// Lets everybody have every topic that no rule knows.
    #[must_use]
    pub fn open(self) -> Self {
        let pattern = Pattern::parse("{topic}").expect("a placeholder is a pattern");
        let everyone = || Access { everyone: true, ..Access::default() };
        let rule = TopicRule { subscribe: everyone(), publish: everyone(), ..topic(pattern) };
        Self { open: Some(rule), ..self }
    }

    /// Lets whoever enters without a token listen to these topics, and to no others.
    #[must_use]
    pub fn with_anonymous(self, topics: Vec<Box<str>>) -> Self {
        Self { anonymous: topics, ..self }
    }

    /// Adds rules for topics on which kinds announce and of which nothing is declared: owners of devices hear of their
    /// own samples, staff of everything. The log keeps neither.
    ///
    /// # Errors
    /// Too many rules.
    pub(crate) fn with_announced(self, announced: &[(Pattern, bool)]) -> Result<Self, TopicsError> {
        let mut rules: Vec<TopicRule> = self.topics.rules().cloned().collect();
        for (pattern, of_samples) in announced {
            let known = pattern
                .fill(|_| Some("x".into()))
                .is_ok_and(|topic| self.topics.rule(topic.as_str()).is_some());
            if known || rules.iter().any(|rule| rule.pattern == *pattern) {
                continue;
            }
            let mut access = Access { roles: STAFF_ROLES.map(Box::from).to_vec(), ..Access::default() };
            access.everyone = *of_samples;
            rules.push(TopicRule { subscribe: access, durable: false, ..topic(pattern.clone()) });
        }
        Ok(Self { topics: Topics::new(rules)?, ..self })
    }

    /// Returns the claims that make groups.
    #[must_use]
    pub fn claims(&self) -> &[Box<str>] {
        &self.claims
    }

    /// Finds the rule of a topic, with the values of its placeholders.
    #[must_use]
    pub fn rule<'t>(&self, topic: &'t str) -> Option<(&TopicRule, Vec<(&str, &'t str)>)> {
        let known = self.topics.rule(topic);
        known.or_else(|| Some((self.open.as_ref().filter(|_| TopicName::new(topic).is_ok())?, Vec::new())))
    }

    /// Tells whether somebody may listen to a topic.
    #[must_use]
    pub fn may_subscribe(&self, topic: &str, identity: &Identity) -> Verdict {
        if identity.has_role(ANONYMOUS_ROLE) {
            let open = self.anonymous.iter().any(|known| **known == *topic);
            // Whose device it is, is nothing that nobody could prove.
            let open = open && self.device_of(topic).is_none();
            return if open && self.rule(topic).is_some() { Verdict::Allowed } else { Verdict::Forbidden };
        }
        self.verdict(topic, identity, |rule| &rule.subscribe)
    }

    /// Tells whether somebody may publish on a topic over a socket.
    #[must_use]
    pub fn may_publish(&self, topic: &str, identity: &Identity) -> Verdict {
        if identity.has_role(ANONYMOUS_ROLE) {
            return Verdict::Forbidden;
        }
        self.verdict(topic, identity, |rule| &rule.publish)
    }

    fn verdict(&self, topic: &str, identity: &Identity, access: impl Fn(&TopicRule) -> &Access) -> Verdict {
        let user = identity.user.to_string();
        match self.rule(topic) {
            None => Verdict::Unknown,
            Some((rule, captures)) if access(rule).allows(&captures, &subject(&user, identity)) => {
                Verdict::Allowed
            }
            Some(_) => Verdict::Forbidden,
        }
    }

    /// Returns the topics that somebody joins by itself: the own user, roles and claims, and what is declared so.
    #[must_use]
    pub fn joined(&self, identity: &Identity) -> Vec<Box<str>> {
        if identity.has_role(ANONYMOUS_ROLE) {
            return Vec::new();
        }
        let user = identity.user.to_string();
        let joined = self.topics.joined(&subject(&user, identity));
        joined.into_iter().map(|topic| topic.as_str().into()).collect()
    }

    /// Tells whether a topic is one of a device.
    #[must_use]
    pub fn device_of<'t>(&self, topic: &'t str) -> Option<&'t str> {
        let declared = self.topics.rule(topic)?.0.pattern.as_str();
        let prefix = DEVICE_TOPICS.iter().find(|prefix| declared == format!("{prefix}{{device_id}}"))?;
        topic.strip_prefix(prefix)
    }

    /// Tells whether events of a type go where its route says.
    pub(crate) fn has_route(&self, kind: &str) -> bool {
        self.routes.contains_key(kind)
    }

    /// Takes over from the rules of its topics whether an announced event is kept and conflated.
    #[must_use]
    pub fn settle(&self, announce: Announce) -> Announce {
        let rules: Vec<&TopicRule> = announce
            .topics
            .iter()
            .filter_map(|pattern| {
                let topic = pattern.fill(|_| Some("x".into())).ok()?;
                self.rule(topic.as_str()).map(|(rule, _)| rule)
            })
            .collect();
        let durable = rules.iter().any(|rule| rule.durable);
        let conflate = rules.iter().find_map(|rule| rule.conflate.clone());
        Announce { durable, conflate, ..announce }
    }

    /// Makes the draft of an event that somebody publishes: with its topics, as they are named or as its type's route
    /// fills them, and with the values of their placeholders. `claims` fill what the event itself does not carry; of a
    /// type without a route they name the groups.
    ///
    /// # Errors
    /// What is missing, by the name of the field that is to blame.
    pub fn draft(
        &self,
        publish: &Publish,
        claims: &[(Box<str>, Box<str>)],
        at_ms: u64,
    ) -> Result<EventDraft, (&'static str, String)> {
        let mut topics: Vec<Box<str>> = Vec::new();
        let mut values: Vec<(Box<str>, Box<str>)> = Vec::new();
        let named = publish.topics.iter().map(ToString::to_string);
        let users = publish.users.iter().map(|user| format!("user_{user}"));
        let roles = publish.roles.iter().map(|role| format!("role_{role}"));
        for topic in named.chain(users).chain(roles) {
            if TopicName::new(&topic).is_err() {
                return Err(("topic", format!("{topic:?} is not a topic's name")));
            }
            if !topics.iter().any(|known| **known == *topic) {
                topics.push(topic.into());
            }
        }
        if topics.is_empty() {
            self.route(publish, claims, &mut topics, &mut values)?;
        }
        if topics.len() > EVENT_TOPICS_MAX {
            return Err((
                "topic",
                format!("an event goes to at most {EVENT_TOPICS_MAX} topics, users and roles"),
            ));
        }
        for topic in &topics {
            let Some((_, captures)) = self.rule(topic) else { continue };
            for (name, text) in captures {
                let carried = publish.data.get(name).filter(|value| plain_text(value) == Some(text));
                let value = carried.map_or_else(|| value_of(text), Box::from);
                note(&mut values, name, value);
            }
        }
        let rules: Vec<&TopicRule> = topics.iter().filter_map(|topic| Some(self.rule(topic)?.0)).collect();
        let durable = publish.durable.unwrap_or_else(|| rules.iter().any(|rule| rule.durable));
        if !durable && (publish.dedupe_key.is_some() || publish.version.is_some()) {
            let message = "an event that the log does not keep has neither dedupe_key nor version";
            return Err(("durable", message.to_owned()));
        }
        let conflate = topics.iter().find_map(|topic| {
            let (rule, captures) = self.rule(topic)?;
            let name = rule.conflate.as_deref()?;
            let captured = captures.iter().find(|(known, _)| *known == name).map(|(_, text)| *text);
            Some(conflation(topic, publish.data.get(name).or(captured).unwrap_or_default()))
        });
        Ok(EventDraft {
            durable,
            conflate,
            values: members(shown_values(values.iter().map(|(name, value)| (&**name, &**value)))).into(),
            dedupe_key: publish.dedupe_key.clone(),
            version: publish.version.clone(),
            ..EventDraft::new(&*publish.kind, topics, publish.data.as_str().into(), at_ms)
        })
    }

    fn route(
        &self,
        publish: &Publish,
        claims: &[(Box<str>, Box<str>)],
        topics: &mut Vec<Box<str>>,
        values: &mut Vec<(Box<str>, Box<str>)>,
    ) -> Result<(), (&'static str, String)> {
        let groups: Vec<Pattern>;
        let route = match self.routes.get(&publish.kind) {
            Some(route) => route,
            None => {
                groups = claims.iter().filter_map(|(claim, _)| claim_pattern(claim)).collect();
                &groups
            }
        };
        if route.is_empty() {
            let message = format!("events of type {:?} have no route: a topic is required", publish.kind);
            return Err(("topic", message));
        }
        let claimed =
            |name: &str| claims.iter().find(|(claim, _)| **claim == *name).map(|(_, value)| &**value);
        for pattern in route {
            let filled = pattern.fill(|name| {
                let value = publish.data.get(name).or_else(|| claimed(name))?;
                let plain = plain_text(value)?;
                note(values, name, value.into());
                Some(plain.into())
            });
            match filled {
                Ok(topic) if !topics.iter().any(|known| **known == *topic.as_str()) => {
                    topics.push(topic.as_str().into());
                }
                Ok(_) => {}
                Err(error) => return Err(("data", format!("{}: {error}", pattern.as_str()))),
            }
        }
        Ok(())
    }
}

fn note(values: &mut Vec<(Box<str>, Box<str>)>, name: &str, value: Box<str>) {
    if !values.iter().any(|(known, _)| **known == *name) {
        values.push((name.into(), value));
    }
}

/// A text of a topic as a value: an integer that is written as one is one.
fn value_of(text: &str) -> Box<str> {
    let integer = text.parse::<i64>().ok().filter(|number| number.unsigned_abs() < 1 << 53);
    match integer {
        Some(number) if number.to_string() == text => text.into(),
        _ => quoted(text).into(),
    }
}

pub(crate) fn subject<'a>(user: &'a str, identity: &'a Identity) -> Subject<'a> {
    Subject { user, roles: &identity.roles, claims: &identity.claims }
}

fn topic(pattern: Pattern) -> TopicRule {
    TopicRule {
        pattern,
        subscribe: Access::default(),
        publish: Access::default(),
        durable: true,
        retention_ms: Some(RETENTION_MS_DEFAULT),
        keep: None,
        conflate: None,
        join: false,
        presence: true,
    }
}

/// The groups of a claim: `cadet_{cadet_id}` of the claim `cadet_id`.
fn claim_pattern(claim: &str) -> Option<Pattern> {
    Pattern::parse(&format!("{}_{{{claim}}}", claim.strip_suffix("_id").unwrap_or(claim))).ok()
}

/// A group whose members join by themselves.
fn group(pattern: Pattern) -> TopicRule {
    let members = Access { members: true, ..Access::default() };
    TopicRule { subscribe: members, join: true, ..topic(pattern) }
}

fn built_in() -> Vec<TopicRule> {
    let staff = || Access { roles: STAFF_ROLES.map(Box::from).to_vec(), ..Access::default() };
    let everyone = || Access { everyone: true, ..Access::default() };
    let rule = |name: &str, subscribe: Access| TopicRule {
        subscribe,
        ..topic(Pattern::parse(name).expect("a built-in pattern"))
    };
    let live = |name: &str| TopicRule { durable: false, ..rule(name, staff()) };
    // Whose device it is, is looked for where somebody asks for its topic.
    let of_device = |name: &str| TopicRule { publish: everyone(), ..rule(name, everyone()) };
    vec![
        group(Pattern::parse("user_{sub}").expect("a built-in pattern")),
        group(Pattern::parse("role_{role}").expect("a built-in pattern")),
        TopicRule { join: true, ..rule("all", everyone()) },
        of_device("device_{device_id}"),
        TopicRule { durable: false, conflate: Some("device_id".into()), ..of_device("metrics_{device_id}") },
        rule("device_status", staff()),
        rule("notifications", everyone()),
        rule("security", staff()),
        rule("alerts", staff()),
        rule("anomaly_alert", staff()),
        rule(MONITORING_TOPIC, staff()),
        live("performance"),
        live("analytics"),
        live("stream_metrics"),
        live("server_metrics"),
    ]
}

impl TopicRules for EventRules {
    fn retention(&self, topic: &str) -> TopicRetention {
        match self.rule(topic) {
            Some((rule, _)) => TopicRetention { age_ms: rule.retention_ms, keep: rule.keep },
            None => TopicRetention { age_ms: Some(RETENTION_MS_DEFAULT), keep: None },
        }
    }
}

/// Shares the rules with a store.
pub(crate) fn retention_of(rules: &Arc<EventRules>) -> Arc<dyn TopicRules> {
    Arc::clone(rules) as Arc<dyn TopicRules>
}
