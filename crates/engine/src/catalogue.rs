//! The declared kinds.

use std::collections::BTreeMap;
use std::sync::Arc;

use driftline_conflict::{Policy, Rights};
use driftline_model::{KindName, ScopeName, UserId};
use driftline_protocol::{KindSchema, SampleSchema, write_json_string};
use driftline_realtime::Pattern;

use crate::group::Placement;
use crate::review::conflicts_kind;
use crate::rules::EventRules;
use crate::samples::Retention;

/// How long points of series are kept, in milliseconds: 90 days.
const SERIES_MS: u64 = 90 * 24 * 3_600_000;

/// What is declared of one kind.
#[derive(Debug, Clone)]
pub struct KindRule {
    /// Who sees its records.
    pub scope: ScopeRule,
    /// Roles that may read it; empty: everyone of the tenant.
    pub read: Vec<Box<str>>,
    /// Roles that may write it; empty: everyone of the tenant.
    pub write: Vec<Box<str>>,
    /// Roles that may lower its ordered fields; empty: nobody.
    pub deescalate: Vec<Box<str>>,
    /// Roles that may decide its conflicts; empty: nobody.
    pub review: Vec<Box<str>>,
    /// Roles that may write its fields of the rule `server_only`; empty: nobody.
    pub service: Vec<Box<str>>,
    /// What its fields may hold.
    pub schema: Option<Arc<KindSchema>>,
    /// The oldest schema version that items may name; an item that names none passes.
    pub schema_version_min: u32,
    /// How its conflicts are decided, unless the tenant has a policy of its own.
    pub policy: Arc<Policy>,
    /// The event that a changed record publishes.
    pub announce: Option<Arc<Announce>>,
    /// What is declared of it as telemetry; none: it is a kind of records.
    pub telemetry: Option<Arc<TelemetryRule>>,
}

/// What is declared of a telemetry kind. Names of fields are canonical JSON text.
#[derive(Debug, Clone, Default)]
pub struct TelemetryRule {
    /// The fields that name a sample within its device: a later sample of the same values takes the place of an earlier
    /// one. Empty: samples are only ever appended.
    pub key: Vec<Box<str>>,
    /// The field that holds the time which a sample tells of; none: `timestamp`, where a sample has it.
    pub time: Option<Box<str>>,
    /// What a sample's fields may hold.
    pub schema: Option<Arc<SampleSchema>>,
    /// How many milliseconds after its receipt a sample goes; none: it stays.
    pub retention_ms: Option<u64>,
    /// The event that an accepted sample publishes.
    pub announce: Option<Arc<Announce>>,
    /// Numeric fields of which unusual values raise an alert.
    pub watch: Vec<Box<str>>,
}

/// The event that an accepted sample or a changed record publishes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announce {
    /// The event's type.
    pub kind: Box<str>,
    /// Its topics. `{field}` stands for the value of a field, `{device_id}` for a sample's device.
    pub topics: Vec<Pattern>,
    /// The fields that it carries, canonical JSON text; empty: all.
    pub fields: Vec<Box<str>>,
    /// Whether the log keeps it: as the rules of its topics say.
    pub durable: bool,
    /// The placeholder that names what a conflated event tells of: as the rules of its topics say.
    pub conflate: Option<Box<str>>,
}

/// Roles that may lower ordered fields, unless a kind declares its own.
pub const STAFF_ROLES: [&str; 2] = ["staff", "admin"];

/// Roles that may decide conflicts, unless a kind declares its own.
pub const REVIEW_ROLES: [&str; 2] = ["reviewer", "admin"];

/// Roles that may write fields of services, unless a kind declares its own.
pub const SERVICE_ROLES: [&str; 1] = ["service"];

impl Default for KindRule {
    fn default() -> Self {
        Self {
            scope: ScopeRule::Tenant,
            read: Vec::new(),
            write: Vec::new(),
            deescalate: STAFF_ROLES.map(Box::from).to_vec(),
            review: REVIEW_ROLES.map(Box::from).to_vec(),
            service: SERVICE_ROLES.map(Box::from).to_vec(),
            schema: None,
            schema_version_min: 0,
            policy: Arc::new(Policy::field_merge()),
            announce: None,
            telemetry: None,
        }
    }
}

impl KindRule {
    /// Tells whether one of the roles may read.
    #[must_use]
    pub fn may_read(&self, roles: &[Box<str>]) -> bool {
        allowed(&self.read, roles)
    }

    /// Tells whether one of the roles may write.
    #[must_use]
    pub fn may_write(&self, roles: &[Box<str>]) -> bool {
        allowed(&self.write, roles)
    }

    /// Tells whether one of the roles may decide conflicts.
    #[must_use]
    pub fn may_review(&self, roles: &[Box<str>]) -> bool {
        self.review.iter().any(|role| roles.contains(role))
    }

    /// Returns what an author with these roles may do beyond writing.
    #[must_use]
    pub fn rights(&self, roles: &[Box<str>]) -> Rights {
        let any = |wanted: &[Box<str>]| wanted.iter().any(|role| roles.contains(role));
        Rights { deescalate: any(&self.deescalate), service: any(&self.service) }
    }
}

fn allowed(wanted: &[Box<str>], roles: &[Box<str>]) -> bool {
    wanted.is_empty() || wanted.iter().any(|role| roles.contains(role))
}

/// Who sees the records of a kind.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ScopeRule {
    /// Everyone of the tenant.
    #[default]
    Tenant,
    /// The user who created the record.
    Owner,
    /// The members of the group that a field names: users whose claim of the field's name has, or contains, its value.
    Group(Box<str>),
}

impl ScopeRule {
    /// Returns where a record is kept that the user writes. The field's name becomes canonical JSON text.
    #[must_use]
    pub fn placement(&self, user: &UserId) -> Placement {
        match self {
            Self::Tenant => Placement::Fixed(ScopeName::tenant()),
            Self::Owner => Placement::Fixed(ScopeName::owner(user)),
            Self::Group(field) => Placement::Group(canonical_name(field)),
        }
    }
}

/// All declared kinds, and the kind under which conflicts are synced.
#[derive(Debug, Clone)]
pub struct Catalogue {
    kinds: BTreeMap<KindName, KindRule>,
    undeclared: Option<KindRule>,
    conflicts: (KindName, KindRule),
}

impl Default for Catalogue {
    fn default() -> Self {
        Self::new(BTreeMap::new())
    }
}

impl Catalogue {
    /// Makes a catalogue of declared kinds; others are unknown.
    #[must_use]
    pub fn new(kinds: BTreeMap<KindName, KindRule>) -> Self {
        Self { kinds, undeclared: None, conflicts: (conflicts_kind(), KindRule::default()) }
    }

    /// Accepts undeclared kinds as records under `field_merge`.
    #[must_use]
    pub fn allow_undeclared(mut self) -> Self {
        self.undeclared = Some(KindRule::default());
        self
    }

    /// Finds what is declared of a kind.
    #[must_use]
    pub fn kind(&self, kind: &KindName) -> Option<&KindRule> {
        if kind.as_str().starts_with('$') {
            return Some(&self.conflicts).filter(|(name, _)| name == kind).map(|(_, rule)| rule);
        }
        self.kinds.get(kind).or(self.undeclared.as_ref())
    }

    /// Tells whether one of the roles may read a kind. Conflicts of all kinds are synced as one: only who may read every
    /// kind may read them.
    #[must_use]
    pub fn may_read(&self, kind: &KindName, roles: &[Box<str>]) -> bool {
        if *kind == self.conflicts.0 {
            return self.is_open_to(roles);
        }
        self.kind(kind).is_some_and(|rule| rule.may_read(roles))
    }

    /// Returns the claims that name a user's groups.
    pub fn group_claims(&self) -> impl Iterator<Item = &str> {
        self.kinds.values().filter_map(|rule| match &rule.scope {
            ScopeRule::Group(field) => Some(&**field),
            ScopeRule::Tenant | ScopeRule::Owner => None,
        })
    }

    /// Returns the kinds whose conflicts the roles may decide.
    #[must_use]
    pub fn reviewable(&self, roles: &[Box<str>]) -> Reviewable {
        let kinds = self.kinds.iter().filter(|(_, rule)| rule.may_review(roles));
        Reviewable {
            kinds: kinds.map(|(kind, _)| kind.clone()).collect(),
            declared: self.kinds.keys().cloned().collect(),
            undeclared: self.undeclared.as_ref().is_some_and(|rule| rule.may_review(roles)),
        }
    }

    /// Goes through the declared kinds.
    pub fn declared(&self) -> impl Iterator<Item = (&KindName, &KindRule)> {
        self.kinds.iter()
    }

    /// Goes through the declared kinds of records.
    pub fn records(&self) -> impl Iterator<Item = (&KindName, &KindRule)> {
        self.kinds.iter().filter(|(_, rule)| rule.telemetry.is_none())
    }

    /// Finds what is declared of a telemetry kind.
    #[must_use]
    pub fn telemetry(&self, kind: &KindName) -> Option<(&KindRule, &Arc<TelemetryRule>)> {
        let rule = self.kinds.get(kind)?;
        Some((rule, rule.telemetry.as_ref()?))
    }

    /// Returns the patterns of all topics on which kinds announce, and whether samples are announced there.
    pub(crate) fn announced(&self) -> Vec<(Pattern, bool)> {
        let rules = self.kinds.values().filter_map(|rule| match &rule.telemetry {
            Some(telemetry) => Some((telemetry.announce.as_ref()?, true)),
            None => Some((rule.announce.as_ref()?, false)),
        });
        rules
            .flat_map(|(rule, of_samples)| rule.topics.iter().map(move |topic| (topic.clone(), of_samples)))
            .collect()
    }

    /// Has announced events kept and conflated as the rules of their topics say.
    pub(crate) fn settle(&mut self, rules: &EventRules) {
        let settled = |announce: &mut Option<Arc<Announce>>| {
            if let Some(announce) = announce {
                *announce = Arc::new(rules.settle(announce.as_ref().clone()));
            }
        };
        for rule in self.kinds.values_mut() {
            settled(&mut rule.announce);
            if let Some(telemetry) = &mut rule.telemetry {
                settled(&mut Arc::make_mut(telemetry).announce);
            }
        }
    }

    /// Returns which samples go, and when.
    #[must_use]
    pub fn retention(&self) -> Retention {
        let aged = self
            .kinds
            .iter()
            .filter_map(|(kind, rule)| Some((kind.clone(), rule.telemetry.as_ref()?.retention_ms?)));
        Retention { samples: aged.collect(), series_ms: Some(SERIES_MS) }
    }

    /// Tells whether the roles may read every kind of records.
    #[must_use]
    pub fn is_open_to(&self, roles: &[Box<str>]) -> bool {
        self.records().all(|(_, rule)| rule.may_read(roles))
    }

    /// Narrows wanted kinds to those that the roles may read. Nothing: none of them.
    ///
    /// An empty list stands for all kinds, on both sides.
    #[must_use]
    pub fn readable(&self, wanted: &[KindName], roles: &[Box<str>]) -> Option<Vec<KindName>> {
        if wanted.is_empty() && self.is_open_to(roles) {
            return Some(Vec::new());
        }
        let may = |kind: &&KindName| self.may_read(kind, roles);
        let kinds: Vec<KindName> = if wanted.is_empty() {
            self.records().map(|(kind, _)| kind).filter(may).cloned().collect()
        } else {
            wanted.iter().filter(may).cloned().collect()
        };
        if kinds.is_empty() { None } else { Some(kinds) }
    }
}

/// The kinds whose conflicts a user may decide.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reviewable {
    kinds: Vec<KindName>,
    declared: Vec<KindName>,
    undeclared: bool,
}

impl Reviewable {
    /// Tells whether conflicts of the kind are among them.
    #[must_use]
    pub fn contains(&self, kind: &KindName) -> bool {
        self.kinds.contains(kind) || self.undeclared && !self.declared.contains(kind)
    }

    /// Tells whether the user may decide no conflicts at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.kinds.is_empty() && !self.undeclared
    }

    /// Returns the kinds, or nothing when undeclared ones are among them.
    #[must_use]
    pub fn kinds(&self) -> Option<&[KindName]> {
        (!self.undeclared).then_some(&self.kinds)
    }
}

/// Writes a field's name as it stands in canonical JSON text: escaped, without the quotes.
#[must_use]
pub fn canonical_name(name: &str) -> Box<str> {
    let mut quoted = String::new();
    write_json_string(&mut quoted, name);
    quoted[1..quoted.len() - 1].into()
}
