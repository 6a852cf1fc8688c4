//! The policies that the server told, as far as a device needs them.

use std::collections::BTreeMap;

use driftline_model::KindName;
use driftline_protocol::{PolicyDoc, write_json_string};

/// What is known of how the server merges.
#[derive(Debug, Clone, Default)]
pub(crate) struct Policies {
    kinds: BTreeMap<KindName, Rules>,
    /// What holds for kinds without a policy of their own.
    others: Rules,
}

/// How the fields of one kind merge.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rules {
    /// By the field's name in canonical form; fields without a rule are left out.
    fields: BTreeMap<Box<str>, Rule>,
    /// Whether every conflict goes to a reviewer.
    manual: bool,
    /// Whether a server told them. Nothing is sure before the first session.
    known: bool,
}

/// How one field merges, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Rule {
    /// The more urgent value shows. Canonical values by rising urgency.
    Ordered(Vec<Box<str>>),
    /// Elements that are added and removed, kept in the order of their bytes.
    Set,
    /// Objects with an id that are appended.
    Append,
    /// A number that moves by increments only.
    Counter,
    /// A conflict goes to a reviewer.
    Manual,
    /// What was written first stays, or only services write.
    Fixed,
}

impl Policies {
    /// Takes over what a server told at the start of a session.
    pub(crate) fn told(docs: &BTreeMap<String, PolicyDoc>) -> Self {
        let rules = |(kind, doc): (&String, &PolicyDoc)| Some((KindName::new(kind).ok()?, Rules::of(doc)));
        Self {
            kinds: docs.iter().filter_map(rules).collect(),
            others: Rules { known: true, ..Rules::default() },
        }
    }

    pub(crate) fn of(&self, kind: &KindName) -> &Rules {
        self.kinds.get(kind).unwrap_or(&self.others)
    }
}

impl Rules {
    fn of(doc: &PolicyDoc) -> Self {
        let rule = |(name, field): (&String, &driftline_protocol::FieldPolicyDoc)| {
            let rule = match field.rule.as_str() {
                "ordered" => {
                    Rule::Ordered(field.order.iter().flatten().map(|value| Box::from(&**value)).collect())
                }
                "set" => Rule::Set,
                "append" => Rule::Append,
                "counter" => Rule::Counter,
                "manual" => Rule::Manual,
                "immutable" | "server_only" => Rule::Fixed,
                _ => return None,
            };
            Some((canonical_name(name), rule))
        };
        let fields = doc.fields.iter().filter_map(rule).collect();
        Self { fields, manual: doc.strategy == "manual", known: true }
    }

    pub(crate) fn rule(&self, field: &str) -> Option<&Rule> {
        self.fields.get(field)
    }

    /// The values of an ordered field by rising urgency.
    pub(crate) fn order(&self, field: &str) -> Option<&[Box<str>]> {
        match self.rule(field)? {
            Rule::Ordered(order) => Some(order),
            _ => None,
        }
    }

    pub(crate) fn is_known(&self) -> bool {
        self.known
    }

    /// Whether whole values simply replace each other in every field.
    pub(crate) fn is_plain(&self) -> bool {
        self.fields.is_empty()
    }

    /// Whether a write of the field tells the value that its author saw.
    ///
    /// A device that was never told any policy tells it of every field: a server that does not need it ignores it.
    pub(crate) fn wants_previous(&self, field: &str) -> bool {
        !self.known || self.manual || matches!(self.rule(field), Some(Rule::Ordered(_) | Rule::Manual))
    }
}

/// Brings a field's name into the form that the members of an object have.
pub(crate) fn canonical_name(name: &str) -> Box<str> {
    let mut quoted = String::with_capacity(name.len() + 2);
    write_json_string(&mut quoted, name);
    Box::from(&quoted[1..quoted.len() - 1])
}

/// Returns the place of a value among the values of an order; a value that is not among them is below all.
pub(crate) fn rank(order: &[Box<str>], value: Option<&str>) -> Option<usize> {
    order.iter().position(|known| Some(&**known) == value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_found_by_canonical_names() {
        let doc = r#"{"strategy":"preserve_escalation","fields":{"a\"b":{"rule":"ordered","order":["low","high"]},
            "c":{"rule":"lww"}}}"#;
        let docs = BTreeMap::from([("ticket".to_owned(), PolicyDoc::parse(doc).expect("a policy"))]);
        let policies = Policies::told(&docs);
        let kind = |name| KindName::new(name).expect("a kind");
        let rules = policies.of(&kind("ticket"));
        let order = rules.order("a\\\"b").expect("an order");
        assert_eq!((rank(order, Some("\"high\"")), rank(order, Some("\"none\""))), (Some(1), None));
        assert_eq!((rules.wants_previous("a\\\"b"), rules.wants_previous("c")), (true, false));
        assert!(policies.of(&kind("note")).is_plain() && policies.of(&kind("note")).is_known());
        assert!(Policies::default().of(&kind("note")).wants_previous("anything"));
    }
}
