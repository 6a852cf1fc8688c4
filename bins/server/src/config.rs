//! The configuration file.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use driftline_engine::{Catalogue, KindRule, ScopeRule, policy_of_doc};
use driftline_model::{KindName, Limits};
use driftline_protocol::{FieldPolicyDoc, PolicyDoc};
use serde::Deserialize;

/// The whole file; unknown keys are refused.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    pub(crate) server: Server,
    pub(crate) auth: Auth,
    limits: LimitsConfig,
    kind: Vec<Kind>,
}

/// `[server]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Server {
    /// Where to listen.
    pub(crate) listen: Option<SocketAddr>,
    /// Where the data is kept.
    pub(crate) data_dir: Option<PathBuf>,
    /// Origins of pages that may connect, beside pages of the same host.
    pub(crate) origins: Vec<String>,
    /// Whether kinds that are not declared are accepted; `dev` does unless told otherwise, or unless only some roles
    /// may read a declared kind.
    pub(crate) allow_undeclared: Option<bool>,
}

/// `[auth]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Auth {
    /// The secret that signs tokens (HS256), at least 16 bytes.
    pub(crate) secret: Option<String>,
}

/// `[limits]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LimitsConfig {
    batch_items: Option<usize>,
    message_bytes: Option<usize>,
    record_bytes: Option<usize>,
    page_rows: Option<usize>,
    page_bytes: Option<usize>,
    outbound_bytes: Option<usize>,
    connections: Option<usize>,
    header_ms: Option<u64>,
    body_frame_ms: Option<u64>,
    heartbeat_s: Option<u64>,
    skew_ms_max: Option<u64>,
    session_s: Option<u64>,
}

/// `[[kind]]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kind {
    name: String,
    #[serde(default)]
    scope: Option<String>,
    #[serde(default)]
    read: Vec<String>,
    #[serde(default)]
    write: Vec<String>,
    #[serde(default)]
    strategy: Option<String>,
    #[serde(default)]
    granularity: Option<String>,
    #[serde(default)]
    options: BTreeMap<String, String>,
    #[serde(default)]
    field: BTreeMap<String, Field>,
}

/// `[kind.field.<name>]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Field {
    rule: String,
}

impl Config {
    /// Reads the file, or takes the defaults without one; the environment overrides single values.
    pub(crate) fn load(file: Option<&Path>) -> anyhow::Result<Self> {
        let mut config = match file {
            None => Self::default(),
            Some(file) => {
                let text = std::fs::read_to_string(file)
                    .with_context(|| format!("cannot read {}", file.display()))?;
                toml::from_str(&text).with_context(|| format!("{} is not a configuration", file.display()))?
            }
        };
        if let Ok(listen) = std::env::var("DRIFTLINE_SERVER_LISTEN") {
            config.server.listen = Some(listen.parse().context("DRIFTLINE_SERVER_LISTEN is not an address")?);
        }
        if let Ok(folder) = std::env::var("DRIFTLINE_SERVER_DATA_DIR") {
            config.server.data_dir = Some(folder.into());
        }
        if let Ok(secret) = std::env::var("DRIFTLINE_AUTH_SECRET") {
            config.auth.secret = Some(secret);
        }
        Ok(config)
    }

    pub(crate) fn limits(&self) -> anyhow::Result<Limits> {
        let mut limits = Limits::default();
        macro_rules! take {
            ($($name:ident),+) => {
                $(if let Some(value) = self.limits.$name {
                    if value == 0 {
                        bail!("limits.{} must be at least 1", stringify!($name));
                    }
                    limits.$name = value;
                })+
            };
        }
        take!(
            batch_items,
            message_bytes,
            record_bytes,
            page_rows,
            page_bytes,
            outbound_bytes,
            connections,
            header_ms,
            body_frame_ms,
            heartbeat_s,
            skew_ms_max,
            session_s
        );
        Ok(limits)
    }

    pub(crate) fn catalogue(&self, allow_undeclared: bool) -> anyhow::Result<Catalogue> {
        let mut kinds = BTreeMap::new();
        let mut seen = HashSet::new();
        for kind in &self.kind {
            if !seen.insert(&kind.name) {
                bail!("kind {:?} is declared twice", kind.name);
            }
            let name =
                KindName::new(&kind.name).with_context(|| format!("{:?} is not a kind's name", kind.name))?;
            kinds.insert(name, kind.rule().with_context(|| format!("kind {:?}", kind.name))?);
        }
        let catalogue = Catalogue::new(kinds);
        // A reader who may not read every kind pulls by a list of kinds, on which undeclared ones cannot stand.
        let restricted = self.kind.iter().any(|kind| !kind.read.is_empty());
        if restricted && self.server.allow_undeclared == Some(true) {
            bail!(
                "server.allow_undeclared does not go with kinds that only some roles may read: declare every kind"
            );
        }
        let undeclared = self.server.allow_undeclared.unwrap_or(allow_undeclared && !restricted);
        Ok(if undeclared { catalogue.allow_undeclared() } else { catalogue })
    }
}

impl Kind {
    fn rule(&self) -> anyhow::Result<KindRule> {
        let scope = match self.scope.as_deref() {
            None | Some("tenant") => ScopeRule::Tenant,
            Some("owner") => ScopeRule::Owner,
            Some(other) => bail!("{other:?} is no scope: use tenant or owner"),
        };
        let fields = self
            .field
            .iter()
            .map(|(name, field)| (name.clone(), FieldPolicyDoc { rule: field.rule.clone() }));
        let doc = PolicyDoc {
            strategy: self.strategy.clone().unwrap_or_else(|| "field_merge".into()),
            granularity: self.granularity.clone(),
            options: self.options.clone(),
            fields: fields.collect(),
        };
        let policy = Arc::new(policy_of_doc(&doc, 0)?);
        let roles = |roles: &[String]| roles.iter().map(|role| Box::from(role.as_str())).collect();
        Ok(KindRule { scope, read: roles(&self.read), write: roles(&self.write), policy })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> anyhow::Result<Catalogue> {
        let config: Config = toml::from_str(text)?;
        config.limits()?;
        config.catalogue(false)
    }

    #[test]
    fn a_file_declares_kinds_and_limits() {
        let catalogue = read(
            "[server]\nlisten = \"127.0.0.1:9000\"\n[limits]\nbatch_items = 50\n\
             [[kind]]\nname = \"note\"\nscope = \"owner\"\nstrategy = \"field_merge\"\n[kind.field.title]\nrule = \"lww\"\n",
        )
        .unwrap();
        let rule = catalogue.kind(&KindName::new("note").unwrap()).unwrap();
        assert_eq!((rule.scope, rule.policy.strategy.name()), (ScopeRule::Owner, "field_merge"));
        assert!(catalogue.kind(&KindName::new("other").unwrap()).is_none());
    }

    #[test]
    fn what_is_wrong_in_a_file_is_named() {
        let table = [
            ("[server]\nlissten = \"x\"", "lissten"),
            ("[limits]\nbatch_items = 0", "batch_items"),
            ("[[kind]]\nname = \"a b\"", "a b"),
            ("[[kind]]\nname = \"a\"\nscope = \"planet\"", "planet"),
            ("[[kind]]\nname = \"a\"\nstrategy = \"best\"", "best"),
            ("[[kind]]\nname = \"a\"\n[[kind]]\nname = \"a\"", "twice"),
            (
                "[server]\nallow_undeclared = true\n[[kind]]\nname = \"a\"\nread = [\"staff\"]",
                "allow_undeclared",
            ),
        ];
        for (text, named) in table {
            let error = format!("{:#}", read(text).unwrap_err());
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}
