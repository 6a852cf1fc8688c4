//! Conflict policies per tenant and kind.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use driftline_conflict::{DeletedRecord, FieldRule, Granularity, OnDelete, Order, Policy, Strategy};
use driftline_model::{KindName, TenantNo};
use driftline_protocol::{FieldPolicyDoc, PolicyDoc, plain_name};
use thiserror::Error;

use crate::catalogue::{Catalogue, canonical_name};
use crate::ports::StoredPolicy;

/// Why a document is not a policy.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{message}")]
pub struct PolicyError {
    /// Where, as a JSON Pointer.
    pub pointer: String,
    /// What is wrong.
    pub message: String,
}

fn wrong(pointer: impl Into<String>, message: impl Into<String>) -> PolicyError {
    PolicyError { pointer: pointer.into(), message: message.into() }
}

/// Reads a policy of its document.
///
/// # Errors
/// [`PolicyError`] for an unknown strategy, rule or option, and for parts that the strategy does not take.
pub fn policy_of_doc(doc: &PolicyDoc, version: u64) -> Result<Policy, PolicyError> {
    let strategy = match doc.strategy.as_str() {
        "client_wins" => Strategy::ClientWins { granularity: granularity(doc)?, deleted: deleted(doc)? },
        "server_wins" => Strategy::ServerWins { granularity: granularity(doc)? },
        "most_recent_wins" => Strategy::MostRecentWins,
        "field_merge" => Strategy::FieldMerge { fields: fields(doc)?, on_delete: on_delete(doc)? },
        "preserve_escalation" => Strategy::PreserveEscalation { fields: ordered_fields(doc)? },
        "manual" => Strategy::Manual,
        other => {
            let known =
                "client_wins, server_wins, most_recent_wins, field_merge, preserve_escalation or manual";
            return Err(wrong("/strategy", format!("{other:?} is not a strategy: use {known}")));
        }
    };
    if doc.granularity.is_some() && !matches!(doc.strategy.as_str(), "client_wins" | "server_wins") {
        return Err(wrong("/granularity", format!("{} is always decided per field", doc.strategy)));
    }
    if !doc.fields.is_empty() && !matches!(doc.strategy.as_str(), "field_merge" | "preserve_escalation") {
        return Err(wrong("/fields", format!("{} takes no rules of single fields", doc.strategy)));
    }
    let takes_option = |option: &str| {
        matches!(doc.strategy.as_str(), "client_wins" | "field_merge") && option == "on_delete"
    };
    if let Some(option) = doc.options.keys().find(|option| !takes_option(option)) {
        return Err(wrong(format!("/options/{option}"), format!("{} has no such option", doc.strategy)));
    }
    Ok(Policy { strategy, version })
}

fn granularity(doc: &PolicyDoc) -> Result<Granularity, PolicyError> {
    match doc.granularity.as_deref() {
        None | Some("record") => Ok(Granularity::Record),
        Some("field") => Ok(Granularity::Field),
        Some(other) => Err(wrong("/granularity", format!("{other:?} is neither record nor field"))),
    }
}

fn deleted(doc: &PolicyDoc) -> Result<DeletedRecord, PolicyError> {
    match doc.options.get("on_delete").map(String::as_str) {
        None | Some("restore") => Ok(DeletedRecord::Restored),
        Some("stay_deleted") => Ok(DeletedRecord::StaysDeleted),
        Some(other) => {
            Err(wrong("/options/on_delete", format!("{other:?} is neither restore nor stay_deleted")))
        }
    }
}

fn on_delete(doc: &PolicyDoc) -> Result<OnDelete, PolicyError> {
    match doc.options.get("on_delete").map(String::as_str) {
        None | Some("most_recent") => Ok(OnDelete::MostRecent),
        Some("update_wins") => Ok(OnDelete::UpdateWins),
        Some("delete_wins") => Ok(OnDelete::DeleteWins),
        Some(other) => {
            let known = "most_recent, update_wins or delete_wins";
            Err(wrong("/options/on_delete", format!("{other:?} is not an option: use {known}")))
        }
    }
}

fn fields(doc: &PolicyDoc) -> Result<Vec<(Box<str>, FieldRule)>, PolicyError> {
    let mut rules = Vec::with_capacity(doc.fields.len());
    for (name, field) in &doc.fields {
        rules.push((canonical_name(name), rule(doc, name, field)?));
    }
    Ok(rules)
}

fn ordered_fields(doc: &PolicyDoc) -> Result<Vec<(Box<str>, FieldRule)>, PolicyError> {
    let fields = fields(doc)?;
    if fields.iter().any(|(_, rule)| matches!(rule, FieldRule::Ordered(_))) {
        return Ok(fields);
    }
    Err(wrong("/fields", "preserve_escalation needs a field with the rule ordered"))
}

fn rule(doc: &PolicyDoc, name: &str, field: &FieldPolicyDoc) -> Result<FieldRule, PolicyError> {
    let rule = match field.rule.as_str() {
        "lww" => FieldRule::Lww,
        "max" => FieldRule::Max,
        "min" => FieldRule::Min,
        "counter" => FieldRule::Counter,
        "set" => FieldRule::Set,
        "append" => FieldRule::Append,
        "immutable" => FieldRule::Immutable,
        "server_only" => FieldRule::ServerOnly,
        "manual" => FieldRule::Manual,
        "ordered" if doc.strategy == "preserve_escalation" => FieldRule::Ordered(order(name, field)?),
        other => {
            let known = "lww, max, min, counter, set, append, immutable, server_only, manual, and ordered under \
                         preserve_escalation";
            return Err(wrong(
                format!("/fields/{name}/rule"),
                format!("{other:?} is not a rule: use {known}"),
            ));
        }
    };
    if !matches!(rule, FieldRule::Ordered(_)) {
        for (part, given) in [("order", field.order.is_some()), ("urgent", field.urgent.is_some())] {
            if given {
                return Err(wrong(format!("/fields/{name}/{part}"), "only the rule ordered takes it"));
            }
        }
    }
    Ok(rule)
}

/// The most values of an ordered field.
const RANKS_MAX: usize = 64;

fn order(name: &str, field: &FieldPolicyDoc) -> Result<Order, PolicyError> {
    let place = |part: &str| format!("/fields/{name}/{part}");
    let values = field.order.as_deref().unwrap_or_default();
    if !(2..=RANKS_MAX).contains(&values.len()) {
        return Err(wrong(place("order"), format!("an order has 2 to {RANKS_MAX} values")));
    }
    if (1..values.len()).any(|at| values[..at].contains(&values[at])) {
        return Err(wrong(place("order"), "a value stands twice"));
    }
    let urgent = match &field.urgent {
        None => None,
        Some(urgent) => {
            let at = values.iter().position(|value| value == urgent);
            Some(at.ok_or_else(|| wrong(place("urgent"), "is not among the values of the order"))?)
        }
    };
    Ok(Order { values: values.iter().map(|value| Box::from(value.as_str())).collect(), urgent })
}

/// A policy with the document that it was read from.
#[derive(Debug, Clone)]
pub struct PolicyView {
    /// The document.
    pub doc: PolicyDoc,
    /// The policy.
    pub policy: Arc<Policy>,
}

type TenantPolicies = HashMap<KindName, PolicyView>;

/// The policies in force: the tenants' own before the declared ones.
#[derive(Debug, Default)]
pub struct Policies {
    /// Own policies by tenant, with the time until which they are taken as they are. The lock is held for
    /// look-ups and replacements only.
    tenants: Mutex<HashMap<TenantNo, (u64, Arc<TenantPolicies>)>>,
    /// Counts changes, so that what was read before one is not kept after it.
    generation: AtomicU64,
}

/// How long policies are taken as they are, in milliseconds.
const FRESH_MS: u64 = 3_600_000;

/// The most tenants whose policies are held.
const TENANTS_MAX: usize = 10_000;

impl Policies {
    /// Returns the tenant's own policies, unless they must be loaded (again).
    pub(crate) fn fresh(&self, tenant: TenantNo, now_ms: u64) -> Option<Arc<TenantPolicies>> {
        let tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        tenants.get(&tenant).filter(|(until, _)| now_ms < *until).map(|(_, own)| Arc::clone(own))
    }

    /// Returns the generation that a read of the store belongs to; taken before the read.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    /// Takes over what a store has loaded.
    pub(crate) fn load(
        &self,
        tenant: TenantNo,
        stored: Vec<StoredPolicy>,
        generation: u64,
        now_ms: u64,
    ) -> Arc<TenantPolicies> {
        let own: TenantPolicies = stored
            .into_iter()
            .filter_map(|stored| {
                let doc = PolicyDoc::parse(&stored.doc).ok()?;
                let policy = Arc::new(policy_of_doc(&doc, stored.version).ok()?);
                Some((stored.kind, PolicyView { doc, policy }))
            })
            .collect();
        let own = Arc::new(own);
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        if self.generation() != generation {
            return own;
        }
        if tenants.len() >= TENANTS_MAX {
            tenants.clear();
        }
        tenants.insert(tenant, (now_ms + FRESH_MS, Arc::clone(&own)));
        own
    }

    /// Forgets a tenant's policies after a change.
    pub(crate) fn forget(&self, tenant: TenantNo) {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        self.generation.fetch_add(1, Ordering::SeqCst);
        tenants.remove(&tenant);
    }

    /// Forgets the policies of all tenants, whose numbers may stand for nobody now.
    pub(crate) fn forget_all(&self) {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        self.generation.fetch_add(1, Ordering::SeqCst);
        tenants.clear();
    }

    /// Returns the policy in force for a kind.
    pub(crate) fn policy(
        own: &TenantPolicies,
        catalogue: &Catalogue,
        kind: &KindName,
    ) -> Option<Arc<Policy>> {
        let declared = catalogue.kind(kind)?;
        Some(own.get(kind).map_or_else(|| Arc::clone(&declared.policy), |view| Arc::clone(&view.policy)))
    }
}

/// The document of a policy that is declared, not stored.
pub(crate) fn doc_of_policy(policy: &Policy) -> PolicyDoc {
    let mut doc = PolicyDoc {
        strategy: policy.strategy.name().to_owned(),
        granularity: None,
        options: std::collections::BTreeMap::new(),
        fields: std::collections::BTreeMap::new(),
    };
    let granularity_name = |granularity: &Granularity| match granularity {
        Granularity::Record => "record".to_owned(),
        Granularity::Field => "field".to_owned(),
    };
    match &policy.strategy {
        Strategy::ClientWins { granularity, deleted } => {
            doc.granularity = Some(granularity_name(granularity));
            if *deleted == DeletedRecord::StaysDeleted {
                doc.options.insert("on_delete".to_owned(), "stay_deleted".to_owned());
            }
        }
        Strategy::ServerWins { granularity } => doc.granularity = Some(granularity_name(granularity)),
        Strategy::FieldMerge { on_delete, .. } => {
            let option = match on_delete {
                OnDelete::MostRecent => None,
                OnDelete::UpdateWins => Some("update_wins"),
                OnDelete::DeleteWins => Some("delete_wins"),
            };
            doc.options.extend(option.map(|option| ("on_delete".to_owned(), option.to_owned())));
        }
        _ => {}
    }
    for (name, rule) in policy.strategy.fields() {
        let mut field = FieldPolicyDoc::of_rule(rule.name());
        if let FieldRule::Ordered(order) = rule {
            field.urgent = order.urgent.map(|urgent| order.values[urgent].to_string());
            field.order = Some(order.values.iter().map(ToString::to_string).collect());
        }
        doc.fields.insert(plain_name(name), field);
    }
    doc
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Strategy, String> {
        let doc = PolicyDoc::parse(text).expect("a document");
        policy_of_doc(&doc, 1).map(|policy| policy.strategy).map_err(|error| error.pointer)
    }

    #[test]
    fn documents_are_read_or_refused_with_the_place() {
        assert_eq!(read(r#"{"strategy":"most_recent_wins"}"#), Ok(Strategy::MostRecentWins));
        assert_eq!(
            read(r#"{"strategy":"server_wins","granularity":"field"}"#),
            Ok(Strategy::ServerWins { granularity: Granularity::Field })
        );
        let table = [
            (r#"{"strategy":"best_wins"}"#, "/strategy"),
            (r#"{"strategy":"server_wins","granularity":"row"}"#, "/granularity"),
            (r#"{"strategy":"field_merge","granularity":"field"}"#, "/granularity"),
            (r#"{"strategy":"field_merge","fields":{"a":{"rule":"biggest"}}}"#, "/fields/a/rule"),
            (r#"{"strategy":"client_wins","options":{"on_delete":"maybe"}}"#, "/options/on_delete"),
            (r#"{"strategy":"server_wins","options":{"on_delete":"restore"}}"#, "/options/on_delete"),
            (r#"{"strategy":"field_merge","options":{"on_delete":"restore"}}"#, "/options/on_delete"),
            (r#"{"strategy":"manual","fields":{"a":{"rule":"lww"}}}"#, "/fields"),
            (r#"{"strategy":"preserve_escalation"}"#, "/fields"),
            (
                r#"{"strategy":"field_merge","fields":{"a":{"rule":"ordered","order":["x","y"]}}}"#,
                "/fields/a/rule",
            ),
            (r#"{"strategy":"field_merge","fields":{"a":{"rule":"set","urgent":"x"}}}"#, "/fields/a/urgent"),
            (
                r#"{"strategy":"preserve_escalation","fields":{"a":{"rule":"ordered","order":["x"]}}}"#,
                "/fields/a/order",
            ),
            (
                r#"{"strategy":"preserve_escalation","fields":{"a":{"rule":"ordered","order":["x","y","x"]}}}"#,
                "/fields/a/order",
            ),
            (
                r#"{"strategy":"preserve_escalation","fields":{"a":{"rule":"ordered","order":[1,2],"urgent":3}}}"#,
                "/fields/a/urgent",
            ),
        ];
        for (text, pointer) in table {
            assert_eq!(read(text), Err(pointer.to_owned()), "{text}");
        }
    }

    #[test]
    fn declared_policies_have_documents() {
        for text in [
            r#"{"strategy":"client_wins","granularity":"field","options":{"on_delete":"stay_deleted"}}"#,
            r#"{"strategy":"field_merge","fields":{"a \"quoted\" name":{"rule":"lww"}}}"#,
            r#"{"strategy":"field_merge","options":{"on_delete":"update_wins"},"fields":{"n":{"rule":"counter"}}}"#,
            r#"{"strategy":"preserve_escalation","fields":{"s":{"rule":"ordered","order":["a","b"],"urgent":"b"}}}"#,
            r#"{"strategy":"manual"}"#,
        ] {
            let doc = PolicyDoc::parse(text).expect("a document");
            assert_eq!(doc_of_policy(&policy_of_doc(&doc, 0).expect("a policy")), doc);
        }
    }
}
