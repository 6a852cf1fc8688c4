//! `[[kind]]` of the configuration file.

mod telemetry;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use driftline_engine::{Announce, KindRule, ScopeRule, policy_of_doc};
use driftline_protocol::{FieldPolicyDoc, KindSchema, PolicyDoc};
use driftline_transport::names_groups;
use serde::Deserialize;
use serde_json::{Map, Value};

use telemetry::AnnounceConfig;

/// `[[kind]]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct KindConfig {
    pub(crate) name: String,
    #[serde(default)]
    mode: Mode,
    #[serde(default)]
    read: Vec<String>,
    #[serde(default)]
    write: Vec<String>,
    /// A JSON Schema, written in TOML.
    schema: Option<Map<String, Value>>,
    /// A file that holds a JSON Schema.
    schema_file: Option<PathBuf>,

    // Of records.
    scope: Option<String>,
    /// Roles that may lower ordered fields; absent: the default ones; empty: nobody.
    deescalate: Option<Vec<String>>,
    /// Roles that may decide conflicts, with the same reading.
    review: Option<Vec<String>>,
    /// Roles that may write fields of the rule `server_only`, with the same reading.
    service: Option<Vec<String>>,
    schema_version_min: Option<u32>,
    strategy: Option<String>,
    granularity: Option<String>,
    options: Option<BTreeMap<String, String>>,
    /// `[kind.field.<name>]`
    field: Option<BTreeMap<String, FieldPolicyDoc>>,

    // Of telemetry.
    /// The fields that name a sample within its device.
    key: Option<Vec<String>>,
    /// The field that holds the time which a sample tells of.
    time: Option<String>,
    retention_days: Option<u64>,
    /// Numeric fields of which unusual values raise an alert.
    watch: Option<Vec<String>>,

    // Of both.
    /// The event that an accepted sample or a changed record publishes.
    announce: Option<AnnounceConfig>,
}

/// What a kind holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Mode {
    /// Records that are changed and merged.
    #[default]
    Record,
    /// Samples that are appended.
    Telemetry,
}

impl KindConfig {
    /// Tells whether samples are declared, not records.
    pub(crate) fn is_telemetry(&self) -> bool {
        self.mode == Mode::Telemetry
    }

    /// Tells whether [`KindConfig::rule`] reads a file.
    pub(crate) fn names_files(&self) -> bool {
        self.schema_file.is_some()
    }

    /// Tells whether it is a kind of records that only some roles may read.
    pub(crate) fn is_restricted(&self) -> bool {
        self.mode == Mode::Record && !self.read.is_empty()
    }

    /// Makes what the engine knows of the kind; paths start from the folder.
    ///
    /// # Errors
    /// The error names the place in the kind, and what is wrong.
    pub(crate) fn rule(&self, folder: &Path) -> anyhow::Result<KindRule> {
        self.refuse_foreign_keys()?;
        match self.mode {
            Mode::Record => self.record_rule(folder),
            Mode::Telemetry => self.telemetry_rule(folder),
        }
    }

    /// Refuses keys of the other mode: who writes them believes that they do something.
    fn refuse_foreign_keys(&self) -> anyhow::Result<()> {
        let of_records = [
            ("scope", self.scope.is_some()),
            ("deescalate", self.deescalate.is_some()),
            ("review", self.review.is_some()),
            ("service", self.service.is_some()),
            ("schema_version_min", self.schema_version_min.is_some()),
            ("strategy", self.strategy.is_some()),
            ("granularity", self.granularity.is_some()),
            ("options", self.options.is_some()),
            ("field", self.field.is_some()),
        ];
        let of_telemetry = [
            ("key", self.key.is_some()),
            ("time", self.time.is_some()),
            ("retention_days", self.retention_days.is_some()),
            ("watch", self.watch.is_some()),
        ];
        let given =
            |keys: &[(&'static str, bool)]| keys.iter().find(|(_, given)| *given).map(|(key, _)| *key);
        match self.mode {
            Mode::Record => match given(&of_telemetry) {
                Some(key) => {
                    bail!("{key} is for samples, and this is a kind of records: set mode = \"telemetry\"")
                }
                None => Ok(()),
            },
            Mode::Telemetry => match given(&of_records) {
                Some(key) => {
                    bail!("{key} is for records, and this is a kind of telemetry: samples are never merged")
                }
                None => Ok(()),
            },
        }
    }

    fn record_rule(&self, folder: &Path) -> anyhow::Result<KindRule> {
        let default = KindRule::default();
        let policy = policy_of_doc(&self.policy(), 0).map_err(|error| {
            let place = place_in_file(&error.pointer);
            anyhow::Error::new(error).context(place)
        })?;
        Ok(KindRule {
            scope: self.scope_rule().context("scope")?,
            read: texts(&self.read),
            write: texts(&self.write),
            deescalate: self.deescalate.as_deref().map_or(default.deescalate, texts),
            review: self.review.as_deref().map_or(default.review, texts),
            service: self.service.as_deref().map_or(default.service, texts),
            schema: self.compiled(folder, |text| Ok(KindSchema::compile(text)?))?.map(Arc::new),
            schema_version_min: self.schema_version_min.unwrap_or_default(),
            policy: Arc::new(policy),
            announce: self.announce_rule()?,
            telemetry: None,
        })
    }

    /// Makes the event that an accepted sample or a changed record publishes.
    fn announce_rule(&self) -> anyhow::Result<Option<Arc<Announce>>> {
        let announce = self.announce.as_ref().map(AnnounceConfig::rule).transpose().context("announce")?;
        Ok(announce.map(Arc::new))
    }

    fn scope_rule(&self) -> anyhow::Result<ScopeRule> {
        match self.scope.as_deref() {
            None | Some("tenant") => Ok(ScopeRule::Tenant),
            Some("owner") => Ok(ScopeRule::Owner),
            Some(other) => match other.strip_prefix("group:") {
                Some(claim) if !claim.is_empty() && names_groups(claim) => Ok(ScopeRule::Group(claim.into())),
                Some(claim) => bail!("{claim:?} is not a claim that names groups"),
                None => bail!("{other:?} is no scope: use tenant, owner or group:<field>"),
            },
        }
    }

    /// Compiles the schema, if there is one.
    fn compiled<T>(
        &self,
        folder: &Path,
        compile: impl FnOnce(&str) -> anyhow::Result<T>,
    ) -> anyhow::Result<Option<T>> {
        match (&self.schema, &self.schema_file) {
            (None, None) => Ok(None),
            (Some(_), Some(_)) => bail!("schema and schema_file: one of them is enough"),
            (Some(schema), None) => {
                let text = serde_json::to_string(schema).context("schema")?;
                Ok(Some(compile(&text).context("schema")?))
            }
            (None, Some(file)) => {
                let file = folder.join(file);
                let place = || format!("schema_file {}", file.display());
                let text = std::fs::read_to_string(&file).with_context(place)?;
                Ok(Some(compile(&text).with_context(place)?))
            }
        }
    }

    fn policy(&self) -> PolicyDoc {
        PolicyDoc {
            strategy: self.strategy.clone().unwrap_or_else(|| "field_merge".into()),
            granularity: self.granularity.clone(),
            options: self.options.clone().unwrap_or_default(),
            fields: self.field.clone().unwrap_or_default(),
        }
    }
}

fn texts(texts: &[String]) -> Vec<Box<str>> {
    texts.iter().map(|text| Box::from(text.as_str())).collect()
}

/// Names the place of a policy's document as it is called in the file.
fn place_in_file(pointer: &str) -> String {
    let place = pointer.trim_start_matches('/').replace('/', ".");
    match place.strip_prefix("fields") {
        Some(field) => format!("field{field}"),
        None => place,
    }
}
