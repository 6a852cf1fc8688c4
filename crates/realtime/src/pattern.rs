//! Patterns of topics: literals with placeholders between them.

mod error;
mod parts;

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

pub use error::{FillError, PatternError};
pub use parts::PLACEHOLDERS_MAX;

use crate::name::{TOPIC_BYTES_MAX, TopicName, check, is_topic_byte};
use parts::{Part, parts};

/// A family of topics, such as `user_{sub}` or `zone.{area}.{room}`.
///
/// Outside of braces stand the characters of topics. A placeholder `{name}` stands for at least one of them; its name
/// consists of letters, digits and `_` and occurs once in the pattern. Between two placeholders stands a literal.
///
/// # How a topic is divided
/// Every placeholder but the last takes as few characters as it can: it ends where the literal behind it begins for the
/// first time. The last one takes the rest, up to the literal at the end. So `room_{room}_{user}` divides
/// `room_a_b_c` into `a` and `b_c`, and no topic has two divisions. A topic matches when any division of it does.
#[derive(Clone)]
pub struct Pattern {
    text: Box<str>,
    parts: Box<[Part]>,
    literal_bytes: usize,
}

impl Pattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// [`PatternError`] when the text is no pattern, or when no topic is short enough to match it.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        let parts = parts(text)?;
        let mut literal_bytes = 0;
        let mut names: Vec<&str> = Vec::new();
        for part in &parts {
            match part {
                Part::Literal(range) => literal_bytes += range.len(),
                Part::Placeholder(range) => {
                    let name = &text[range.clone()];
                    if names.contains(&name) {
                        return Err(PatternError::Twice(name.into()));
                    }
                    names.push(name);
                }
            }
        }
        if names.len() > PLACEHOLDERS_MAX {
            return Err(PatternError::TooMany);
        }
        if literal_bytes + names.len() > TOPIC_BYTES_MAX {
            return Err(PatternError::TooLong);
        }
        Ok(Self { text: text.into(), parts: parts.into(), literal_bytes })
    }

    /// Returns the text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Goes through the names of the placeholders, in order.
    pub fn placeholders(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Placeholder(name) => Some(&self.text[name.clone()]),
            Part::Literal(_) => None,
        })
    }

    /// Divides a topic: the name and the value of each placeholder, in order.
    ///
    /// `None` when the topic does not match, which holds for every text that is no [`TopicName`]; a pattern without
    /// placeholders gives an empty list for its one topic. See [`Pattern`] for how a topic is divided.
    #[must_use]
    pub fn captures<'t>(&self, topic: &'t str) -> Option<Vec<(&str, &'t str)>> {
        check(topic).ok()?;
        self.divide(topic)
    }

    /// Tells whether the topic belongs to the pattern.
    #[must_use]
    pub fn matches(&self, topic: &str) -> bool {
        check(topic).is_ok() && self.walk(topic, |_, _| ())
    }

    /// Makes the topic in which each placeholder has its value.
    ///
    /// The topic that comes out is divided into exactly these values again.
    ///
    /// # Errors
    /// [`FillError`] when a value is missing or empty, holds a character that topics do not hold or the beginning of
    /// what follows it, or when the topic would be too long.
    pub fn fill<'v>(
        &self,
        mut value: impl FnMut(&str) -> Option<Cow<'v, str>>,
    ) -> Result<TopicName, FillError> {
        let mut topic = String::with_capacity(self.literal_bytes);
        let mut values: Vec<(&str, Range<usize>)> = Vec::new();
        for part in &self.parts {
            match part {
                Part::Literal(literal) => topic.push_str(&self.text[literal.clone()]),
                Part::Placeholder(name) => {
                    let name = &self.text[name.clone()];
                    let value = value(name).ok_or_else(|| FillError::Missing(name.into()))?;
                    check_value(name, &value)?;
                    values.push((name, topic.len()..topic.len() + value.len()));
                    topic.push_str(&value);
                }
            }
        }
        let topic = TopicName::new(topic).map_err(FillError::Topic)?;
        let captures = self.divide(topic.as_str()).unwrap_or_default();
        for ((name, range), (_, captured)) in values.into_iter().zip(captures) {
            if &topic.as_str()[range] != captured {
                return Err(FillError::Ambiguous(name.into()));
            }
        }
        Ok(topic)
    }

    /// Returns how many characters of the pattern are literal.
    pub(crate) fn literal_bytes(&self) -> usize {
        self.literal_bytes
    }

    /// Returns the literal at the beginning, which may be empty.
    pub(crate) fn prefix(&self) -> &str {
        match self.parts.first() {
            Some(Part::Literal(literal)) => &self.text[literal.clone()],
            _ => "",
        }
    }

    /// Tells whether there is no placeholder.
    pub(crate) fn is_literal(&self) -> bool {
        self.literal_bytes == self.text.len()
    }

    /// Returns the text with all placeholders unnamed: patterns of the same shape have the same topics.
    pub(crate) fn shape(&self) -> String {
        let shape = |part: &Part| match part {
            Part::Literal(literal) => &self.text[literal.clone()],
            Part::Placeholder(_) => "{}",
        };
        self.parts.iter().map(shape).collect()
    }

    /// Divides a text that is known to be a topic.
    pub(crate) fn divide<'t>(&self, topic: &'t str) -> Option<Vec<(&str, &'t str)>> {
        let mut captures = Vec::new();
        self.walk(topic, |name, value| captures.push((name, value))).then_some(captures)
    }

    /// Hands on every placeholder with its value; tells whether the topic matches, which is known only at the end.
    ///
    /// To end a value at the first literal behind it leaves the most for what follows, so that no division is overlooked.
    pub(crate) fn walk<'s, 't>(&'s self, topic: &'t str, mut capture: impl FnMut(&'s str, &'t str)) -> bool {
        let mut rest = topic;
        let mut parts = self.parts.iter();
        while let Some(part) = parts.next() {
            match part {
                Part::Literal(literal) => {
                    let Some(after) = rest.strip_prefix(&self.text[literal.clone()]) else { return false };
                    rest = after;
                }
                Part::Placeholder(name) => {
                    let literal = match parts.next() {
                        Some(Part::Literal(literal)) => &self.text[literal.clone()],
                        _ => "",
                    };
                    let is_last = parts.len() == 0;
                    let Some((value, after)) = split(rest, literal, is_last) else { return false };
                    capture(&self.text[name.clone()], value);
                    rest = after;
                }
            }
        }
        rest.is_empty()
    }
}

/// Splits a text into a value of at least one character, the literal and what follows it.
fn split<'t>(text: &'t str, literal: &str, is_last: bool) -> Option<(&'t str, &'t str)> {
    if is_last {
        let value = text.strip_suffix(literal).filter(|value| !value.is_empty())?;
        return Some((value, ""));
    }
    let end = 1 + text.get(1..)?.find(literal)?;
    Some((&text[..end], &text[end + literal.len()..]))
}

fn check_value(name: &str, value: &str) -> Result<(), FillError> {
    if value.is_empty() {
        return Err(FillError::Empty(name.into()));
    }
    if !value.bytes().all(is_topic_byte) {
        return Err(FillError::Character(name.into()));
    }
    Ok(())
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Pattern {}

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pattern({})", self.text)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::NameError;

    fn pattern(text: &str) -> Pattern {
        Pattern::parse(text).expect("a pattern")
    }

    #[test]
    fn patterns_read_back_and_name_their_placeholders() {
        for (text, placeholders) in [
            ("all", &[][..]),
            ("{topic}", &["topic"]),
            ("user_{sub}", &["sub"]),
            ("zone.{area}.{room}", &["area", "room"]),
            ("{a}-{A}:{_0}.x", &["a", "A", "_0"]),
        ] {
            let pattern = pattern(text);
            assert_eq!((pattern.as_str(), pattern.to_string().as_str()), (text, text));
            assert_eq!(pattern.placeholders().collect::<Vec<_>>(), placeholders);
            assert_eq!(pattern.is_literal(), placeholders.is_empty(), "{text}");
        }
    }

    #[test]
    fn other_texts_are_no_patterns() {
        let long = format!("{}{{x}}", "a".repeat(200));
        let long_name = format!("{{{}}}", "a".repeat(65));
        let many: String = (0..17).map(|number| format!("{{p{number}}}.")).collect();
        for (text, error) in [
            ("", PatternError::Empty),
            (long.as_str(), PatternError::TooLong),
            ("a b", PatternError::Character),
            ("a}", PatternError::Character),
            ("caf\u{e9}", PatternError::Character),
            ("{", PatternError::Placeholder),
            ("a{b", PatternError::Placeholder),
            ("a{}", PatternError::Placeholder),
            ("a{{b}}", PatternError::Placeholder),
            ("a{b-c}", PatternError::Placeholder),
            ("a{\u{e9}}", PatternError::Placeholder),
            (long_name.as_str(), PatternError::Placeholder),
            ("{a}{b}", PatternError::Adjacent),
            ("{a}.{b}.{a}", PatternError::Twice("a".into())),
            (many.as_str(), PatternError::TooMany),
        ] {
            assert_eq!(Pattern::parse(text), Err(error), "{text:?}");
        }
        assert!(Pattern::parse(&long[1..]).is_ok(), "a topic of 200 characters matches it");
    }

    #[test]
    fn topics_are_divided_in_one_way() {
        for (text, topic, values) in [
            ("all", "all", Some(&[][..])),
            ("all", "al", None),
            ("all", "alls", None),
            ("user_{sub}", "user_7", Some(&["7"])),
            ("user_{sub}", "user_", None),
            ("user_{sub}", "user7", None),
            ("user_{sub}", "user_a/b", None),
            ("{id}_x", "_x_x", Some(&["_x"])),
            ("{id}_x", "_x", None),
            ("room_{room}_{user}", "room_a_b_c", Some(&["a", "b_c"])),
            ("room_{room}_{user}", "room___", None),
            ("room_{room}_{user}", "room____", Some(&["_", "_"])),
            ("zone.{a}.{b}.end", "zone.x.y.end.end", Some(&["x", "y.end"])),
            ("{a}.{b}", "..", None),
            ("{a}.{b}", "...", Some(&[".", "."])),
        ] {
            let pattern = pattern(text);
            let divided: Option<Vec<&str>> =
                pattern.captures(topic).map(|captures| captures.iter().map(|(_, value)| *value).collect());
            assert_eq!(divided.as_deref(), values, "{text} over {topic}");
            assert_eq!(pattern.matches(topic), values.is_some(), "{text} over {topic}");
        }
        let zone = pattern("zone.{area}.{room}");
        assert_eq!(zone.captures("zone.north.7"), Some(vec![("area", "north"), ("room", "7")]));
    }

    #[test]
    fn filling_refuses_what_would_be_another_topic() {
        let room = pattern("room_{room}_{user}");
        let fill = |room_value: Option<&'static str>, user: &'static str| {
            room.fill(|name| if name == "room" { room_value } else { Some(user) }.map(Cow::Borrowed))
        };
        assert_eq!(fill(Some("a"), "b_c").map(|topic| topic.to_string()), Ok("room_a_b_c".to_owned()));
        assert_eq!(fill(None, "b"), Err(FillError::Missing("room".into())));
        assert_eq!(fill(Some("a"), ""), Err(FillError::Empty("user".into())));
        assert_eq!(fill(Some("a/"), "b"), Err(FillError::Character("room".into())));
        assert_eq!(fill(Some("a_b"), "c"), Err(FillError::Ambiguous("room".into())));
        let long = Some(Cow::Owned("u".repeat(196)));
        assert_eq!(pattern("user_{sub}").fill(|_| long.clone()), Err(FillError::Topic(NameError::TooLong)));
    }
}
