//! The declared kinds.

use std::collections::BTreeMap;
use std::sync::Arc;

use driftline_conflict::Policy;
use driftline_model::{KindName, ScopeName, UserId};

/// What is declared of one kind.
#[derive(Debug, Clone)]
pub struct KindRule {
    /// Who sees its records.
    pub scope: ScopeRule,
    /// Roles that may read it; empty: everyone of the tenant.
    pub read: Vec<Box<str>>,
    /// Roles that may write it; empty: everyone of the tenant.
    pub write: Vec<Box<str>>,
    /// How its conflicts are decided, unless the tenant has a policy of its own.
    pub policy: Arc<Policy>,
}

impl Default for KindRule {
    fn default() -> Self {
        Self {
            scope: ScopeRule::Tenant,
            read: Vec::new(),
            write: Vec::new(),
            policy: Arc::new(Policy::field_merge()),
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
}

fn allowed(wanted: &[Box<str>], roles: &[Box<str>]) -> bool {
    wanted.is_empty() || wanted.iter().any(|role| roles.contains(role))
}

/// Who sees the records of a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ScopeRule {
    /// Everyone of the tenant.
    #[default]
    Tenant,
    /// The user who created the record.
    Owner,
}

impl ScopeRule {
    /// Returns the scope of a record that the user creates.
    #[must_use]
    pub fn of(self, user: &UserId) -> ScopeName {
        match self {
            Self::Tenant => ScopeName::tenant(),
            Self::Owner => ScopeName::owner(user),
        }
    }
}

/// All declared kinds.
#[derive(Debug, Clone, Default)]
pub struct Catalogue {
    kinds: BTreeMap<KindName, KindRule>,
    undeclared: Option<KindRule>,
}

impl Catalogue {
    /// Makes a catalogue of declared kinds; others are unknown.
    #[must_use]
    pub fn new(kinds: BTreeMap<KindName, KindRule>) -> Self {
        Self { kinds, undeclared: None }
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
        self.kinds.get(kind).or(self.undeclared.as_ref())
    }

    /// Goes through the declared kinds.
    pub fn declared(&self) -> impl Iterator<Item = (&KindName, &KindRule)> {
        self.kinds.iter()
    }

    /// Tells whether every kind is open to every reader of the tenant.
    #[must_use]
    pub fn is_open_to(&self, roles: &[Box<str>]) -> bool {
        self.kinds.values().all(|rule| rule.may_read(roles))
    }

    /// Narrows wanted kinds to those that the roles may read. Nothing: none of them.
    ///
    /// An empty list stands for all kinds, on both sides.
    #[must_use]
    pub fn readable(&self, wanted: &[KindName], roles: &[Box<str>]) -> Option<Vec<KindName>> {
        if wanted.is_empty() && self.is_open_to(roles) {
            return Some(Vec::new());
        }
        let may = |kind: &&KindName| self.kind(kind).is_some_and(|rule| rule.may_read(roles));
        let kinds: Vec<KindName> = if wanted.is_empty() {
            self.kinds.keys().filter(may).cloned().collect()
        } else {
            wanted.iter().filter(may).cloned().collect()
        };
        if kinds.is_empty() { None } else { Some(kinds) }
    }
}
