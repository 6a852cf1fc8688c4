//! Patterns and catalogues beside their plainest forms: every division tried, every rule walked.
//!
//! A failure names its seed: `MODEL_SEED=<seed>` plays that history alone; `MODEL_HISTORIES` says how many are played.

mod support;

use std::borrow::Cow;

use driftline_realtime::{Access, FillError, Pattern, Subject, TopicName, TopicRule, Topics, Verdict};
use support::rng::Rng;
use support::{Met, play};

/// Few letters, so that literals and values meet often.
fn word(rng: &mut Rng, longest: usize) -> String {
    (0..rng.between(1, longest)).map(|_| *rng.pick(&['a', 'b', '_'])).collect()
}

fn pattern(rng: &mut Rng) -> Pattern {
    let mut text = String::new();
    let mut is_literal = rng.percent(60);
    for number in 0..rng.between(1, 6) {
        text += &if is_literal { word(rng, 2) } else { format!("{{p{number}}}") };
        is_literal = !is_literal;
    }
    Pattern::parse(&text).expect("literals and placeholders take turns")
}

/// The literals around the placeholders of a pattern.
fn literals(pattern: &Pattern) -> Vec<&str> {
    let text = pattern.as_str();
    text.split(['{', '}']).enumerate().filter(|(at, _)| at % 2 == 0).map(|(_, literal)| literal).collect()
}

/// All ways to divide a topic, in order of the lengths of the values from left to right.
fn divisions<'t>(literals: &[&str], topic: &'t str) -> Vec<Vec<&'t str>> {
    let Some(rest) = topic.strip_prefix(literals[0]) else { return Vec::new() };
    if literals.len() == 1 {
        return if rest.is_empty() { vec![Vec::new()] } else { Vec::new() };
    }
    let ways = (1..=rest.len()).flat_map(|length| {
        let (value, rest) = rest.split_at(length);
        divisions(&literals[1..], rest).into_iter().map(move |behind| [vec![value], behind].concat())
    });
    ways.collect()
}

fn values<'t>(captures: Option<Vec<(&str, &'t str)>>) -> Option<Vec<&'t str>> {
    captures.map(|captures| captures.into_iter().map(|(_, value)| value).collect())
}

#[test]
fn the_first_of_all_divisions_is_taken() {
    let branches = ["no division", "one division", "several divisions"];
    play(20_000, &branches, |mut rng, met| {
        let pattern = pattern(&mut rng);
        let topic = word(&mut rng, 12);
        let divisions = divisions(&literals(&pattern), &topic);
        met.count(branches[divisions.len().min(2)]);
        assert_eq!(values(pattern.captures(&topic)).as_ref(), divisions.first(), "{pattern} over {topic}");
        assert_eq!(pattern.matches(&topic), !divisions.is_empty(), "{pattern} over {topic}");
    });
}

#[test]
fn a_filled_pattern_gives_its_values_back() {
    let branches = ["filled", "another division comes first", "missing", "empty", "a strange character"];
    play(20_000, &branches, |mut rng, met| {
        let pattern = pattern(&mut rng);
        let given: Vec<Option<String>> = pattern.placeholders().map(|_| value(&mut rng)).collect();
        let mut next = given.iter();
        let filled =
            pattern.fill(|_| next.next().expect("asked once for each").as_deref().map(Cow::Borrowed));
        let whole = || given.iter().flatten().map(String::as_str).collect::<Vec<_>>();
        let branch = match &filled {
            Ok(topic) => {
                assert_eq!(values(pattern.captures(topic.as_str())), Some(whole()), "{pattern} {topic}");
                "filled"
            }
            Err(FillError::Ambiguous(_)) => {
                let literals = literals(&pattern);
                let mut text = literals[0].to_owned();
                whole()
                    .into_iter()
                    .zip(&literals[1..])
                    .for_each(|(value, literal)| text += &(value.to_owned() + literal));
                assert_ne!(divisions(&literals, &text)[0], whole(), "{pattern} {given:?}");
                "another division comes first"
            }
            Err(FillError::Missing(_)) => "missing",
            Err(FillError::Empty(_)) => "empty",
            Err(FillError::Character(_)) => "a strange character",
            Err(error) => panic!("{error}"),
        };
        met.count(branch);
        let are_good =
            given.iter().all(|value| value.as_deref().is_some_and(|value| TopicName::new(value).is_ok()));
        assert_eq!(are_good, matches!(branch, "filled" | "another division comes first"), "{filled:?}");
    });
}

fn value(rng: &mut Rng) -> Option<String> {
    match rng.below(20) {
        0 => None,
        1 => Some(String::new()),
        2 => Some("a b".to_owned()),
        _ => Some(word(rng, 4)),
    }
}

fn rule(rng: &mut Rng) -> TopicRule {
    let mut access = || Access {
        everyone: rng.percent(10),
        roles: if rng.percent(20) { vec!["a".into()] } else { Vec::new() },
        members: rng.percent(60),
    };
    let (subscribe, publish) = (access(), access());
    TopicRule {
        pattern: pattern(rng),
        subscribe,
        publish,
        durable: true,
        retention_ms: None,
        keep: None,
        conflate: None,
        join: rng.percent(50),
        presence: false,
    }
}

/// The rule that governs a topic, as it is defined.
fn governing<'r>(rules: &'r [TopicRule], topic: &str) -> Option<&'r TopicRule> {
    let matching = rules.iter().filter(|rule| rule.pattern.matches(topic));
    let literal_bytes = |rule: &TopicRule| literals(&rule.pattern).concat().len();
    // `max_by_key` gives the last of equals.
    matching.rev().max_by_key(|rule| (rule.pattern.placeholders().next().is_none(), literal_bytes(rule)))
}

/// Claims whose names are those of the placeholders.
fn claims(rng: &mut Rng) -> Vec<(Box<str>, Box<str>)> {
    (0..rng.below(12)).map(|_| (format!("p{}", rng.below(6)).into(), word(rng, 2).into())).collect()
}

fn catalogue(mut rng: Rng, met: &mut Met) {
    let rules: Vec<TopicRule> = (0..rng.between(0, 30)).map(|_| rule(&mut rng)).collect();
    let shape = |rule: &TopicRule| literals(&rule.pattern).join("{}");
    let mut shapes: Vec<String> = rules.iter().map(shape).collect();
    shapes.sort();
    shapes.dedup();
    let Ok(topics) = Topics::new(rules.clone()) else {
        met.count("twins are refused");
        return assert!(shapes.len() < rules.len(), "refused without twins");
    };
    assert_eq!(shapes.len(), rules.len(), "twins are taken");
    let claims = claims(&mut rng);
    let roles = if rng.percent(30) { vec!["a".into()] } else { Vec::new() };
    let subject = Subject { user: "u", roles: &roles, claims: &claims };
    let joined = check_joined(&rules, &topics, &subject, met);
    for _ in 0..40 {
        let topic = word(&mut rng, 7);
        let expected = governing(&rules, &topic);
        let found = topics.rule(&topic);
        assert_eq!(found.as_ref().map(|(rule, _)| *rule), expected, "{topic}");
        let Some((rule, captures)) = found else {
            met.count("unknown");
            assert_eq!(topics.subscribe(&topic, &subject), Verdict::Unknown);
            continue;
        };
        assert_eq!(Some(&captures), rule.pattern.captures(&topic).as_ref(), "{topic}");
        let verdict = topics.publish(&topic, &subject);
        assert_eq!(verdict == Verdict::Allowed, rule.publish.allows(&captures, &subject), "{topic}");
        met.count(if verdict == Verdict::Allowed { "allowed" } else { "forbidden" });
        if captures.is_empty() {
            met.count("a rule without placeholders governs");
        }
        let is_own = topics.subscribe(&topic, &subject) == Verdict::Allowed && rule.join;
        let holds = |(name, value): &(&str, &str)| {
            claims.iter().any(|(claim, held)| **claim == **name && **held == **value)
        };
        if is_own && captures.iter().all(holds) && joined.len() < 64 {
            met.count("an own topic is joined");
            assert!(joined.iter().any(|joined| joined.as_str() == topic), "{topic} is not joined");
        }
    }
}

fn check_joined(
    rules: &[TopicRule],
    topics: &Topics,
    subject: &Subject<'_>,
    met: &mut Met,
) -> Vec<TopicName> {
    let joined = topics.joined(subject);
    for topic in &joined {
        met.count("joined");
        assert_eq!(topics.subscribe(topic.as_str(), subject), Verdict::Allowed, "{topic}");
        assert!(governing(rules, topic.as_str()).is_some_and(|rule| rule.join), "{topic}");
        assert_eq!(joined.iter().filter(|other| *other == topic).count(), 1, "{topic} is joined twice");
    }
    joined
}

#[test]
fn the_index_finds_what_a_walk_finds() {
    let branches = [
        "a rule without placeholders governs",
        "allowed",
        "an own topic is joined",
        "forbidden",
        "joined",
        "twins are refused",
        "unknown",
    ];
    play(5_000, &branches, catalogue);
}
