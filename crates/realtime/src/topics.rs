//! The catalogue of topics.

use std::collections::{HashMap, HashSet};

use thiserror::Error;

use crate::access::{Access, Subject};
use crate::joined::own_topics;
use crate::name::{TopicName, check};
use crate::pattern::Pattern;

/// How many rules a catalogue may have.
pub const RULES_MAX: usize = 1_024;

/// What holds for the topics of one pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicRule {
    /// The topics.
    pub pattern: Pattern,
    /// Who may subscribe.
    pub subscribe: Access,
    /// Who may publish.
    pub publish: Access,
    /// Whether events stand in the log; else they are handed on once, without an id.
    pub durable: bool,
    /// How long events are retained, in milliseconds.
    pub retention_ms: Option<u64>,
    /// How many events of each topic are retained.
    pub keep: Option<u64>,
    /// The data field that names the thing of which only the latest event matters; see [`crate::Queue`].
    pub conflate: Option<Box<str>>,
    /// Whether a subject joins its own topics by itself; see [`Topics::joined`].
    pub join: bool,
    /// Whether it is kept who is present.
    pub presence: bool,
}

/// The topics that there are: rules, of which one governs each topic.
///
/// A pattern without placeholders goes before all others, then the one with the most literal characters; among equals the
/// one that was declared first. A topic that no pattern matches is unknown.
#[derive(Debug, Clone)]
pub struct Topics {
    rules: Vec<TopicRule>,
    /// The rules without placeholders, by their topic.
    literals: HashMap<Box<str>, usize>,
    /// The rules with placeholders, ordered by the prefix of their patterns.
    groups: Vec<Group>,
}

/// The rules whose patterns begin with the same literal.
#[derive(Debug, Clone)]
struct Group {
    prefix: Box<str>,
    /// The group with the longest shorter prefix that this one begins with.
    parent: Option<usize>,
    rules: Vec<usize>,
}

/// What a subject is told that asks for a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It may.
    Allowed,
    /// The topic is there, but not for it.
    Forbidden,
    /// There is no such topic.
    Unknown,
}

impl Topics {
    /// Makes a catalogue of rules, in the order of their declaration.
    ///
    /// # Errors
    /// [`TopicsError`] when there are too many, or two with the same topics: they differ at most in the names of their
    /// placeholders, so that one would never govern anything.
    pub fn new(rules: Vec<TopicRule>) -> Result<Self, TopicsError> {
        if rules.len() > RULES_MAX {
            return Err(TopicsError::TooMany);
        }
        let mut shapes = HashSet::new();
        for rule in &rules {
            if !shapes.insert(rule.pattern.shape()) {
                return Err(TopicsError::Twice(rule.pattern.as_str().into()));
            }
        }
        let literals = rules.iter().enumerate().filter(|(_, rule)| rule.pattern.is_literal());
        let literals = literals.map(|(at, rule)| (rule.pattern.as_str().into(), at)).collect();
        let groups = groups(&rules);
        Ok(Self { rules, literals, groups })
    }

    /// Goes through the rules, in the order of their declaration.
    pub fn rules(&self) -> impl Iterator<Item = &TopicRule> {
        self.rules.iter()
    }

    /// Returns the rule that governs a topic, and how its pattern divides the topic; `None` when the topic is unknown.
    #[must_use]
    pub fn rule<'t>(&self, topic: &'t str) -> Option<(&TopicRule, Vec<(&str, &'t str)>)> {
        self.governing(topic).map(|(at, captures)| (&self.rules[at], captures))
    }

    /// Says whether the subject may subscribe to the topic.
    #[must_use]
    pub fn subscribe(&self, topic: &str, subject: &Subject<'_>) -> Verdict {
        self.verdict(topic, subject, |rule| &rule.subscribe)
    }

    /// Says whether the subject may publish to the topic.
    #[must_use]
    pub fn publish(&self, topic: &str, subject: &Subject<'_>) -> Verdict {
        self.verdict(topic, subject, |rule| &rule.publish)
    }

    /// Returns the topics that the subject joins by itself: of the rules with `join`, those it may subscribe to.
    ///
    /// A pattern without placeholders is one topic. A pattern with placeholders gives one for each combination of the
    /// subject's own claims, in their order, the last placeholder changing fastest; the first
    /// [`crate::JOINED_PER_RULE_MAX`] combinations count. A topic that another rule governs is left to that rule.
    #[must_use]
    pub fn joined(&self, subject: &Subject<'_>) -> Vec<TopicName> {
        let mut joined = Vec::new();
        for (at, rule) in self.rules.iter().enumerate().filter(|(_, rule)| rule.join) {
            let own = own_topics(&rule.pattern, subject).filter(|topic| {
                self.governing(topic.as_str()).is_some_and(|(governing, captures)| {
                    governing == at && rule.subscribe.allows(&captures, subject)
                })
            });
            joined.extend(own);
        }
        joined
    }

    fn verdict(
        &self,
        topic: &str,
        subject: &Subject<'_>,
        access: impl FnOnce(&TopicRule) -> &Access,
    ) -> Verdict {
        match self.rule(topic) {
            None => Verdict::Unknown,
            Some((rule, captures)) if access(rule).allows(&captures, subject) => Verdict::Allowed,
            Some(_) => Verdict::Forbidden,
        }
    }

    fn governing<'t>(&self, topic: &'t str) -> Option<(usize, Vec<(&str, &'t str)>)> {
        check(topic).ok()?;
        if let Some(at) = self.literals.get(topic) {
            return Some((*at, Vec::new()));
        }
        let mut best: Option<usize> = None;
        let rank = |at: usize| (self.rules[at].pattern.literal_bytes(), std::cmp::Reverse(at));
        // Every prefix that the topic begins with is the last one that is not behind the topic, or one of its parents.
        let mut next = self.groups.partition_point(|group| *group.prefix <= *topic).checked_sub(1);
        while let Some(group) = next.map(|at| &self.groups[at]) {
            next = group.parent;
            if !topic.starts_with(&*group.prefix) {
                continue;
            }
            for at in group.rules.iter().copied() {
                let is_better = best.is_none_or(|best| rank(at) > rank(best));
                if is_better && self.rules[at].pattern.walk(topic, |_, _| ()) {
                    best = Some(at);
                }
            }
        }
        best.and_then(|at| Some((at, self.rules[at].pattern.divide(topic)?)))
    }
}

/// Groups the rules with placeholders by the prefix of their patterns.
fn groups(rules: &[TopicRule]) -> Vec<Group> {
    let mut patterns: Vec<(&str, usize)> = rules
        .iter()
        .enumerate()
        .filter(|(_, rule)| !rule.pattern.is_literal())
        .map(|(at, rule)| (rule.pattern.prefix(), at))
        .collect();
    patterns.sort_unstable();
    let mut groups: Vec<Group> = Vec::new();
    for (prefix, at) in patterns {
        if let Some(group) = groups.last_mut().filter(|group| *group.prefix == *prefix) {
            group.rules.push(at);
            continue;
        }
        let mut parent = groups.len().checked_sub(1);
        while let Some(group) =
            parent.map(|at| &groups[at]).filter(|group| !prefix.starts_with(&*group.prefix))
        {
            parent = group.parent;
        }
        groups.push(Group { prefix: prefix.into(), parent, rules: vec![at] });
    }
    groups
}

/// The rules make no catalogue.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TopicsError {
    /// An earlier pattern has the same topics.
    #[error("the pattern {0} has the topics of another one")]
    Twice(Box<str>),
    /// There are more than [`RULES_MAX`] rules.
    #[error("there are at most {RULES_MAX} patterns of topics")]
    TooMany,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::JOINED_PER_RULE_MAX;

    fn rule(pattern: &str) -> TopicRule {
        TopicRule {
            pattern: Pattern::parse(pattern).expect("a pattern"),
            subscribe: Access { members: true, ..Access::default() },
            publish: Access { roles: vec!["staff".into()], ..Access::default() },
            durable: true,
            retention_ms: None,
            keep: None,
            conflate: None,
            join: true,
            presence: false,
        }
    }

    fn open(pattern: &str) -> TopicRule {
        TopicRule { subscribe: Access { everyone: true, ..Access::default() }, ..rule(pattern) }
    }

    fn topics(rules: Vec<TopicRule>) -> Topics {
        Topics::new(rules).expect("a catalogue")
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(Box<str>, Box<str>)> {
        pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
    }

    fn names(topics: &[TopicName]) -> Vec<&str> {
        topics.iter().map(TopicName::as_str).collect()
    }

    #[test]
    fn one_rule_governs_each_topic() {
        let patterns = [
            "{any}",
            "user_{sub}",
            "user_{sub}_inbox",
            "user_admin",
            "u{rest}",
            "{name}_inbox",
            "zone.{area}.{room}",
            "zone.{area}.hall",
            "a{x}c",
            "ac{x}",
        ];
        let topics = topics(patterns.iter().map(|pattern| rule(pattern)).collect());
        for (topic, expected) in [
            ("user_admin", Some("user_admin")),
            ("user_7", Some("user_{sub}")),
            ("user_7_inbox", Some("user_{sub}_inbox")),
            ("user_admin_inbox", Some("user_{sub}_inbox")),
            ("user_", Some("u{rest}")),
            ("u", Some("{any}")),
            ("v_inbox", Some("{name}_inbox")),
            ("zone.n.7", Some("zone.{area}.{room}")),
            ("zone.n.hall", Some("zone.{area}.hall")),
            ("zone", Some("{any}")),
            ("acxc", Some("a{x}c")),
            ("acx", Some("ac{x}")),
            ("", None),
            ("user_7/8", None),
        ] {
            let governing = topics.rule(topic).map(|(rule, _)| rule.pattern.as_str());
            assert_eq!(governing, expected, "{topic}");
        }
        let captures = topics.rule("zone.n.7").map(|(_, captures)| captures);
        assert_eq!(captures, Some(vec![("area", "n"), ("room", "7")]));
        assert_eq!(topics.rules().count(), patterns.len());
    }

    #[test]
    fn catalogues_are_bounded_and_without_twins() {
        let many = |count: usize| (0..count).map(|number| rule(&format!("t{number}_{{x}}"))).collect();
        assert!(Topics::new(many(1_024)).is_ok());
        assert_eq!(Topics::new(many(1_025)).err(), Some(TopicsError::TooMany));
        for (first, second) in [("all", "all"), ("u_{a}", "u_{a}"), ("u_{a}", "u_{b}")] {
            let twins = Topics::new(vec![rule(first), rule("other"), rule(second)]);
            assert_eq!(twins.err(), Some(TopicsError::Twice(second.into())), "{first} {second}");
        }
    }

    #[test]
    fn verdicts_tell_the_forbidden_from_the_unknown() {
        let topics = topics(vec![rule("user_{sub}"), open("all"), rule("staff_room")]);
        let roles = ["staff".into()];
        let ada = Subject { user: "ada", roles: &[], claims: &[] };
        let bob = Subject { user: "bob", roles: &roles, claims: &[] };
        for (subject, topic, subscribe, publish) in [
            (&ada, "user_ada", Verdict::Allowed, Verdict::Forbidden),
            (&ada, "user_bob", Verdict::Forbidden, Verdict::Forbidden),
            (&ada, "all", Verdict::Allowed, Verdict::Forbidden),
            (&ada, "staff_room", Verdict::Forbidden, Verdict::Forbidden),
            (&ada, "nowhere", Verdict::Unknown, Verdict::Unknown),
            (&ada, "user_ada/", Verdict::Unknown, Verdict::Unknown),
            (&bob, "user_ada", Verdict::Forbidden, Verdict::Allowed),
            (&bob, "staff_room", Verdict::Forbidden, Verdict::Allowed),
        ] {
            assert_eq!(topics.subscribe(topic, subject), subscribe, "{} {topic}", subject.user);
            assert_eq!(topics.publish(topic, subject), publish, "{} {topic}", subject.user);
        }
    }

    #[test]
    fn subjects_join_their_own_topics() {
        let staff = TopicRule {
            subscribe: Access { roles: vec!["staff".into()], ..Access::default() },
            ..rule("desk_{sub}")
        };
        let topics = topics(vec![
            rule("user_{sub}"),
            rule("role_{role}"),
            rule("zone.{area}.{floor}"),
            open("all"),
            rule("nobody"),
            staff,
            TopicRule { join: false, ..open("news") },
            rule("role_boss"),
        ]);
        let roles = ["nurse".into(), "boss".into(), "nurse".into(), "b/d".into()];
        let claims = pairs(&[
            ("area", "n"),
            ("floor", "1"),
            ("area", "s"),
            ("floor", "2"),
            ("area", "n"),
            ("area", ""),
        ]);
        let ada = Subject { user: "ada", roles: &roles, claims: &claims };
        assert_eq!(
            names(&topics.joined(&ada)),
            ["user_ada", "role_nurse", "zone.n.1", "zone.n.2", "zone.s.1", "zone.s.2", "all"]
        );
        let staff = ["staff".into()];
        let bob = Subject { user: "bob", roles: &staff, claims: &[] };
        assert_eq!(names(&topics.joined(&bob)), ["user_bob", "role_staff", "all", "desk_bob"]);
    }

    #[test]
    fn a_subject_with_many_claims_joins_a_bounded_number() {
        let topics = topics(vec![rule("{a}.{b}.{c}"), rule("one_{a}")]);
        let claims: Vec<_> = (0..1_000)
            .flat_map(|number| ["a", "b", "c"].map(|name| (name.into(), number.to_string().into())))
            .collect();
        let joined = topics.joined(&Subject { user: "ada", roles: &[], claims: &claims });
        let names = names(&joined);
        assert_eq!(names.len(), 2 * JOINED_PER_RULE_MAX);
        assert_eq!((names[0], names[63], names[64], names[127]), ("0.0.0", "0.0.63", "one_0", "one_63"));
    }

    #[test]
    fn values_that_would_name_another_topic_are_not_joined() {
        let topics = topics(vec![rule("room_{room}_{sub}")]);
        let claims = pairs(&[("room", "a_b"), ("room", "a")]);
        let joined = topics.joined(&Subject { user: "c", roles: &[], claims: &claims });
        assert_eq!(names(&joined), ["room_a_c"]);
    }
}
