//! What is to be simulated.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow};
use clap::ValueEnum;
use driftline_engine::{Catalogue, KindRule, ScopeRule, policy_of_doc};
use driftline_protocol::PolicyDoc;

use super::workload::{FIELDS, Nature, OWN, SHARED, kind_name};

/// What a run has to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Mode {
    /// Nothing bad ever happens.
    #[default]
    Safety,
    /// And when the faults end, all agree within a bound of time and messages.
    Liveness,
}

/// One run.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Decides everything that happens.
    pub seed: u64,
    /// Devices, of which two share a user.
    pub devices: usize,
    /// Records that all devices write to.
    pub records: usize,
    /// Actions of the schedule.
    pub steps: u64,
    /// Virtual hours that the schedule takes.
    pub hours: u64,
    /// What the run has to show.
    pub mode: Mode,
    /// The conflict policy, a document as `PUT /api/v1/policies` takes it; none: the server's default.
    pub policy: Option<String>,
    /// Whether the story is put into words.
    pub tell: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            seed: 1,
            devices: 3,
            records: 4,
            steps: 120,
            hours: 24,
            mode: Mode::Safety,
            policy: None,
            tell: false,
        }
    }
}

impl Setup {
    /// Declares the kinds of the simulation under the policy.
    pub(super) fn catalogue(&self) -> Result<Catalogue> {
        let mut shared = KindRule::default();
        if let Some(doc) = self.doc()? {
            let policy = policy_of_doc(&doc, 1);
            shared.policy =
                Arc::new(policy.map_err(|error| anyhow!("{}: {}", error.pointer, error.message))?);
        }
        let own = KindRule { scope: ScopeRule::Owner, ..shared.clone() };
        Ok(Catalogue::new(BTreeMap::from([(kind_name(SHARED), shared), (kind_name(OWN), own)])))
    }

    fn doc(&self) -> Result<Option<PolicyDoc>> {
        let doc = self.policy.as_deref().map(PolicyDoc::parse);
        doc.transpose().map_err(|error| anyhow!("{error}"))
    }

    /// Fields whose whole values unite with the stored elements.
    pub(super) fn gathering(&self) -> Result<Vec<String>> {
        let doc = self.doc()?;
        let fields = doc.into_iter().flat_map(|doc| doc.fields);
        let gathering = fields.filter(|(_, field)| matches!(field.rule.as_str(), "set" | "append"));
        Ok(gathering.map(|(name, _)| name).collect())
    }

    /// The fields that users write, each with what it is.
    pub(super) fn fields(&self) -> Result<Vec<(String, Nature)>> {
        let plain = || FIELDS.map(|name| (name.to_owned(), Nature::Plain)).to_vec();
        let Some(doc) = self.doc()? else {
            // Where no rule says what a field is, every intent is taken.
            let open = [("visits".to_owned(), Nature::Counter), ("tags".to_owned(), Nature::Set)];
            return Ok(plain().into_iter().chain(open).collect());
        };
        let mut fields: Vec<_> =
            doc.fields.into_iter().map(|(name, field)| (name, Nature::of(field))).collect();
        let rest = plain().into_iter().filter(|(name, _)| !fields.iter().any(|(known, _)| known == name));
        let rest: Vec<_> = rest.collect();
        fields.extend(rest);
        Ok(fields)
    }

    /// The values of ordered fields, from the least to the most urgent.
    pub(super) fn orders(&self) -> Result<Vec<(String, Vec<String>)>> {
        let ordered = self.fields()?.into_iter().filter_map(|(name, nature)| match nature {
            Nature::Ordered(order) => Some((name, order)),
            _ => None,
        });
        Ok(ordered.collect())
    }

    /// Whether the policy lets the most recent write of every field win, so that the order of arrival is no matter.
    pub(super) fn is_join(&self) -> Result<bool> {
        let Some(doc) = self.doc()? else { return Ok(true) };
        let rules = ["lww", "counter", "set", "append"];
        let known = |rule: &str| rules.contains(&rule);
        let plain = doc.options.is_empty() && doc.fields.values().all(|field| known(&field.rule));
        Ok(matches!(doc.strategy.as_str(), "most_recent_wins" | "field_merge") && plain)
    }

    /// Checks what a user asked for.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn check(&self) -> Result<()> {
        self.catalogue().context("the policy is refused").map(|_| ())
    }
}
