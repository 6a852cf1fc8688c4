//! A conflict policy as a document: in requests, answers and configuration.

use std::collections::BTreeMap;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use crate::canonical::canonical_value;
use crate::json::Document;

/// A tenant's policy for one kind, as it travels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyDoc {
    /// The strategy's name, such as `field_merge`.
    pub strategy: String,
    /// `record` or `field`, for `client_wins` and `server_wins`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub granularity: Option<String>,
    /// Options of the strategy.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
    /// Rules of single fields, for strategies that decide per field.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub fields: BTreeMap<String, FieldPolicyDoc>,
}

/// The rule of one field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FieldPolicyDoc {
    /// The rule's name; `lww`: the last writer wins.
    pub rule: String,
    /// The values of an ordered field from the least to the most urgent, each a text or a number as canonical JSON.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "write_order",
        deserialize_with = "read_order"
    )]
    pub order: Option<Vec<String>>,
    /// The value of the order from which on the field is urgent, as canonical JSON.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "write_urgent",
        deserialize_with = "read_urgent"
    )]
    pub urgent: Option<String>,
}

impl FieldPolicyDoc {
    /// Makes the document of a rule that needs nothing else.
    #[must_use]
    pub fn of_rule(rule: impl Into<String>) -> Self {
        Self { rule: rule.into(), order: None, urgent: None }
    }
}

// Values pass through `Value` and not as raw text, so that configuration in another format than JSON reads them too.

fn read_order<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    let values = Option::<Vec<Value>>::deserialize(deserializer)?;
    values
        .map(|values| values.iter().map(rank).collect::<Result<_, _>>())
        .transpose()
        .map_err(D::Error::custom)
}

fn read_urgent<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let value = Option::<Value>::deserialize(deserializer)?;
    value.as_ref().map(rank).transpose().map_err(D::Error::custom)
}

/// Returns the canonical text of a value of an order.
fn rank(value: &Value) -> Result<String, String> {
    if !value.is_string() && !value.is_number() {
        return Err(format!("a value of an order is a text or a number, not {value}"));
    }
    let text = value.to_string();
    let document = Document::parse(text.as_bytes(), 1).map_err(|error| error.to_string())?;
    let mut canonical = String::new();
    canonical_value(document.root(), &mut canonical).map_err(|error| error.kind.to_string())?;
    Ok(canonical)
}

fn write_order<S: Serializer>(order: &Option<Vec<String>>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(order.iter().flatten().map(|rank| value_of(rank)))
}

fn write_urgent<S: Serializer>(urgent: &Option<String>, serializer: S) -> Result<S::Ok, S::Error> {
    urgent.as_deref().map(value_of).serialize(serializer)
}

/// Reads canonical text back; text that somebody else put in is taken for a plain text.
fn value_of(canonical: &str) -> Value {
    serde_json::from_str(canonical).unwrap_or_else(|_| Value::from(canonical))
}

impl PolicyDoc {
    /// Reads a document of its JSON text.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    /// Writes the document as JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("texts and maps of texts serialise")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_of_texts_and_numbers() {
        let text = r#"{"strategy":"preserve_escalation","fields":{"p":{"rule":"ordered","order":["low",1.0,"h\"igh"],"urgent":1e0}}}"#;
        let doc = PolicyDoc::parse(text).unwrap();
        let field = &doc.fields["p"];
        assert_eq!(field.order.as_deref(), Some(&["\"low\"".into(), "1".into(), r#""h\"igh""#.into()][..]));
        assert_eq!(field.urgent.as_deref(), Some("1"));
        assert_eq!(PolicyDoc::parse(&doc.to_json()), Ok(doc));
    }

    #[test]
    fn what_a_document_does_not_know_is_refused() {
        for field in [r#"{"rule":"lww","rank":1}"#, r#"{"rule":"lww","order":[null]}"#, r#"{"order":["a"]}"#]
        {
            let text = format!(r#"{{"strategy":"field_merge","fields":{{"p":{field}}}}}"#);
            assert!(PolicyDoc::parse(&text).is_err(), "{text}");
        }
        let bare = PolicyDoc::parse(r#"{"strategy":"field_merge","fields":{"p":{"rule":"lww"}}}"#).unwrap();
        assert_eq!(bare.fields["p"], FieldPolicyDoc::of_rule("lww"));
        assert!(bare.to_json().ends_with(r#"{"rule":"lww"}}}"#));
    }
}
