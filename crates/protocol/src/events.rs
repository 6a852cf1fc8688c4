//! Live events and who wants them.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::envelope::{Envelope, Fault};
use crate::time::format_millis;
use crate::write::write_json_string;

/// The most topics of one message, and the most bytes of one topic.
const TOPICS_MAX: usize = 256;
const TOPIC_BYTES: usize = 200;

/// Asks for topics, or wants no more of them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Topics {
    /// The topics.
    pub topics: Vec<Box<str>>,
}

impl Topics {
    pub(crate) fn read(envelope: &Envelope<'_>) -> Result<Self, Fault> {
        let mut topics: Vec<Box<str>> = Vec::new();
        let mut add = |text: Option<std::borrow::Cow<'_, str>>, pointer: &str| {
            let text = text.filter(|text| {
                !text.is_empty() && text.len() <= TOPIC_BYTES && !text.chars().any(char::is_control)
            });
            let text = text.ok_or_else(|| Fault::invalid(pointer, "must be a topic of 1 to 200 bytes"))?;
            if !topics.iter().any(|known| **known == *text) {
                topics.push(text.as_ref().into());
            }
            Ok(())
        };
        match (envelope.field("topics"), envelope.field("topic")) {
            (Some(list), _) if list.is_array() => {
                for (at, element) in list.elements().enumerate() {
                    if at == TOPICS_MAX {
                        return Err(Fault::invalid("/topics", "may name 256 topics"));
                    }
                    add(element.as_str(), &format!("/topics/{at}"))?;
                }
            }
            (Some(_), _) => return Err(Fault::invalid("/topics", "must be an array of topics")),
            (None, Some(topic)) => add(topic.as_str(), "/topic")?,
            (None, None) => return Err(Fault::invalid("/topics", "an array of topics is required")),
        }
        Ok(Self { topics })
    }
}

/// Answers `subscribe_events` and `unsubscribe_events`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventsSubscribed {
    /// One answer per topic.
    pub topics: Vec<TopicAnswer>,
}

/// What became of a wish for a topic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicAnswer {
    /// The topic.
    pub topic: String,
    /// Whether its events come from now on; of a topic that is wanted no more: whether they came before.
    pub accepted: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
}

/// Something that happened, for whoever listens to one of its topics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub kind: Box<str>,
    /// The topic under which the reader gets it.
    pub topic: Box<str>,
    /// The event's own fields, a JSON value.
    pub data: Arc<str>,
    /// When, in Unix milliseconds.
    pub at_ms: u64,
}

impl Event {
    /// Encodes the rest of the message behind its outer fields.
    pub(crate) fn encode(&self, mut open: String) -> String {
        open.push_str(",\"topic\":");
        write_json_string(&mut open, &self.topic);
        open.push_str(",\"timestamp\":\"");
        open.push_str(&format_millis(self.at_ms));
        open.push_str("\",\"data\":");
        open.push_str(&self.data);
        open.push('}');
        open
    }
}

#[cfg(test)]
mod tests {
    use driftline_model::Limits;

    use super::*;
    use crate::form::Encoding;

    #[test]
    fn a_message_names_so_many_topics() {
        let read = |count: usize| {
            let topics: Vec<String> = (0..count).map(|number| format!("\"t{number}\"")).collect();
            let text = format!(r#"{{"type":"subscribe_events","topics":[{}]}}"#, topics.join(","));
            let document =
                Envelope::parse(Encoding::Json, text.as_bytes(), &Limits::default()).expect("JSON");
            let envelope = Envelope::open(document.root()).expect("an envelope");
            Topics::read(&envelope).map(|topics| topics.topics.len())
        };
        assert_eq!(read(TOPICS_MAX), Ok(TOPICS_MAX));
        assert!(read(TOPICS_MAX + 1).is_err());
    }
}
