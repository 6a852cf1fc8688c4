//! The topics that are a subject's own.

use std::borrow::Cow;

use crate::access::Subject;
use crate::name::{TopicName, check};
use crate::pattern::Pattern;

/// How many topics of one rule a subject joins by itself at most.
pub const JOINED_PER_RULE_MAX: usize = 64;

/// Goes through the topics that a pattern has for the claims of a subject, of the first combinations of them.
pub(crate) fn own_topics<'a>(
    pattern: &'a Pattern,
    subject: &'a Subject<'_>,
) -> impl Iterator<Item = TopicName> + 'a {
    let values: Vec<(&str, Vec<&str>)> =
        pattern.placeholders().map(|name| (name, own_values(name, subject))).collect();
    let combinations =
        values.iter().try_fold(1_usize, |product, (_, values)| product.checked_mul(values.len()));
    let combinations = combinations.unwrap_or(JOINED_PER_RULE_MAX).min(JOINED_PER_RULE_MAX);
    (0..combinations).filter_map(move |combination| {
        let mut chosen: Vec<(&str, &str)> = Vec::with_capacity(values.len());
        let mut rest = combination;
        for (name, values) in values.iter().rev() {
            chosen.push((name, values[rest % values.len()]));
            rest /= values.len();
        }
        let value = |name: &str| chosen.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
        pattern.fill(|name| value(name).map(Cow::Borrowed)).ok()
    })
}

/// Returns the different values of a claim that can stand in a topic, in order, as many as one rule can use.
fn own_values<'a>(claim: &str, subject: &Subject<'a>) -> Vec<&'a str> {
    let mut values: Vec<&str> = Vec::new();
    for value in subject.values(claim) {
        if check(value).is_ok() && !values.contains(&value) {
            values.push(value);
        }
        if values.len() == JOINED_PER_RULE_MAX {
            break;
        }
    }
    values
}
