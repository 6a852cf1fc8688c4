//! The configuration file.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail};
use driftline_engine::{Catalogue, EventRules, Windows};
use driftline_model::{KindName, Limits};
use driftline_transport::Anonymous;
use serde::Deserialize;

use crate::idempotency::IdempotencyConfig;
use crate::kind::KindConfig;
use crate::limits::LimitsConfig;
use crate::realtime::{self, EventConfig, Outbox, OutboxConfig, RealtimeConfig, TopicConfig};
use crate::store::{DataPlace, DatabaseUrl, StoreConfig};
use crate::uploads::{Uploads, UploadsConfig};

/// The whole file; unknown keys are refused.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub(crate) server: Server,
    pub(crate) auth: Auth,
    pub(crate) store: StoreConfig,
    limits: LimitsConfig,
    idempotency: IdempotencyConfig,
    kind: Vec<KindConfig>,
    topic: Vec<TopicConfig>,
    event: Vec<EventConfig>,
    realtime: RealtimeConfig,
    outbox: OutboxConfig,
    uploads: UploadsConfig,
    /// Where the file lies, which the paths in it start from.
    #[serde(skip)]
    folder: PathBuf,
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
    /// The claim that must be true of every user who is let in.
    pub(crate) approved_claim: Option<String>,
}

impl Config {
    /// Reads a configuration of its text; files that it names are found from the working folder.
    ///
    /// # Errors
    /// The error says what is wrong with the text, and where.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        toml::from_str(text).map_err(|error| unreadable(text, &error))
    }

    /// Reads the file, or takes the defaults without one; the environment overrides single values.
    pub(crate) fn load(file: Option<&Path>) -> anyhow::Result<Self> {
        let mut config = match file {
            None => Self::default(),
            Some(file) => {
                let text = std::fs::read_to_string(file)
                    .with_context(|| format!("cannot read {}", file.display()))?;
                let config = Self::parse(&text)
                    .with_context(|| format!("{} is not a configuration", file.display()))?;
                Self { folder: file.parent().map(Path::to_owned).unwrap_or_default(), ..config }
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
        if let Ok(url) = std::env::var("DRIFTLINE_STORE_URL") {
            config.store.url = Some(DatabaseUrl::new(url));
        }
        config.uploads.take_credentials(|name| std::env::var(name).ok());
        config.store.check()?;
        Ok(config)
    }

    /// Finds where the data is: in the database that `[store]` names, else in this file.
    pub(crate) fn data_place(&self, file: PathBuf) -> DataPlace {
        DataPlace::of(&self.store, &self.folder, file)
    }

    /// Returns the limits: those that the file sets, else the defaults.
    ///
    /// # Errors
    /// A limit of zero, and a rate of what is no type of message.
    pub fn limits(&self) -> anyhow::Result<Limits> {
        self.limits.limits()
    }

    /// Returns for how long answers are remembered under the keys of requests.
    ///
    /// # Errors
    /// A time of zero or beyond 90 days, and a tenant that cannot be one.
    pub fn windows(&self) -> anyhow::Result<Windows> {
        self.idempotency.windows()
    }

    /// Tells whether [`Config::catalogue`] reads files: whether the schema of a kind lies in one.
    #[must_use]
    pub fn names_files(&self) -> bool {
        self.kind.iter().any(KindConfig::names_files)
    }

    /// Makes the catalogue of the declared kinds. Whether others are accepted is said by the file, else by
    /// `allow_undeclared`.
    ///
    /// # Errors
    /// The error names the kind, the place in it, and what is wrong.
    pub fn catalogue(&self, allow_undeclared: bool) -> anyhow::Result<Catalogue> {
        let mut kinds = BTreeMap::new();
        let mut seen = HashSet::new();
        for kind in &self.kind {
            if !seen.insert(&kind.name) {
                bail!("kind {:?} is declared twice", kind.name);
            }
            let name =
                KindName::new(&kind.name).with_context(|| format!("{:?} is not a kind's name", kind.name))?;
            if kind.name.starts_with('$') {
                bail!("kind {:?}: names that begin with $ are the server's own", kind.name);
            }
            kinds.insert(name, kind.rule(&self.folder).with_context(|| format!("kind {:?}", kind.name))?);
        }
        let catalogue = Catalogue::new(kinds);
        if self.is_restricted() && self.server.allow_undeclared == Some(true) {
            bail!(
                "server.allow_undeclared does not go with kinds that only some roles may read: declare every kind"
            );
        }
        let undeclared = self.accepts_undeclared(allow_undeclared);
        Ok(if undeclared { catalogue.allow_undeclared() } else { catalogue })
    }

    /// Makes the rules of topics and events. Topics that are not declared are there only in development, and only where
    /// kinds that are not declared are accepted.
    ///
    /// # Errors
    /// The error names the topic or the type, the place in it, and what is wrong.
    pub fn rules(&self, development: bool) -> anyhow::Result<EventRules> {
        let open = development && self.accepts_undeclared(true);
        realtime::rules(&self.topic, &self.event, &self.realtime, open)
    }

    /// Returns the claims that make groups, each with a column of the outbox.
    pub(crate) fn claims(&self) -> anyhow::Result<Vec<Box<str>>> {
        self.realtime.claims()
    }

    /// Returns what may be had without a token.
    pub(crate) fn open(&self, rules: &EventRules) -> anyhow::Result<Option<Anonymous>> {
        self.realtime.open(rules)
    }

    /// Opens the place of uploads; `data` is the data folder.
    pub(crate) fn uploads(&self, data: &Path) -> anyhow::Result<Uploads> {
        self.uploads.open(&self.folder, data)
    }

    /// Checks the rules of uploads without touching their place.
    pub(crate) fn check_uploads(&self) -> anyhow::Result<()> {
        self.uploads.rules().map(drop)
    }

    /// Returns how the outbox is kept.
    pub(crate) fn outbox(&self) -> anyhow::Result<Outbox> {
        self.outbox.outbox()
    }

    /// Tells whether kinds that are not declared are accepted, if that is so unless told otherwise.
    pub(crate) fn accepts_undeclared(&self, default: bool) -> bool {
        self.server.allow_undeclared.unwrap_or(default && !self.is_restricted())
    }

    /// A reader who may not read every kind pulls by a list of kinds, on which undeclared ones cannot stand.
    fn is_restricted(&self) -> bool {
        self.kind.iter().any(KindConfig::is_restricted)
    }

    /// Names the declared kinds of records.
    pub(crate) fn record_names(&self) -> Vec<&str> {
        self.names_of(|kind| !kind.is_telemetry())
    }

    /// Names the declared kinds of telemetry.
    pub(crate) fn telemetry_names(&self) -> Vec<&str> {
        self.names_of(KindConfig::is_telemetry)
    }

    fn names_of(&self, wanted: impl Fn(&KindConfig) -> bool) -> Vec<&str> {
        self.kind.iter().filter(|kind| wanted(kind)).map(|kind| kind.name.as_str()).collect()
    }
}

/// Says what is wrong with which key on which line. The parser's own words repeat the line, and with it a secret that
/// may stand there.
fn unreadable(text: &str, error: &toml::de::Error) -> anyhow::Error {
    let Some(span) = error.span() else { return anyhow!("{}", error.message()) };
    let before = &text.as_bytes()[..span.start.min(text.len())];
    let at = before.iter().filter(|byte| **byte == b'\n').count();
    let key = text.lines().nth(at).and_then(|line| line.split_once('=')).map(|(key, _)| key.trim());
    let is_bare = |key: &&str| key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte));
    let key = key.filter(is_bare).map(|key| format!(": {key}")).unwrap_or_default();
    anyhow!("line {}{key}: {}", at + 1, error.message())
}

#[cfg(test)]
mod tests {
    use driftline_engine::{KindRule, ScopeRule};
    use driftline_model::TenantId;
    use driftline_testkit::TempFolder;

    use super::*;

    fn read(text: &str) -> anyhow::Result<Catalogue> {
        let config = Config::parse(text)?;
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
        assert_eq!((&rule.scope, rule.policy.strategy.name()), (&ScopeRule::Owner, "field_merge"));
        assert!(catalogue.kind(&KindName::new("other").unwrap()).is_none());
    }

    fn rule<'a>(catalogue: &'a Catalogue, kind: &str) -> &'a KindRule {
        catalogue.kind(&KindName::new(kind).unwrap()).unwrap()
    }

    fn names(roles: &[Box<str>]) -> Vec<&str> {
        roles.iter().map(|role| &**role).collect()
    }

    #[test]
    fn a_kind_declares_groups_rights_schema_and_orders() {
        let text = r#"
            [[kind]]
            name = "ticket"
            scope = "group:region"
            deescalate = ["lead"]
            review = []
            schema_version_min = 3
            schema = { required = ["title"], properties = { title = { type = "string" } } }
            strategy = "preserve_escalation"
            [kind.field.status]
            rule = "ordered"
            order = ["closed", "open", 7]
            urgent = 7
            [kind.field.tags]
            rule = "set"
            [[kind]]
            name = "plain"
        "#;
        let catalogue = read(text).unwrap();
        let ticket = rule(&catalogue, "ticket");
        assert_eq!(ticket.scope, ScopeRule::Group("region".into()));
        assert_eq!((names(&ticket.deescalate), names(&ticket.review)), (vec!["lead"], vec![]));
        assert_eq!((names(&ticket.service), ticket.schema_version_min), (vec!["service"], 3));
        assert!(ticket.schema.is_some());
        assert_eq!(ticket.policy.strategy.fields().len(), 2);
        let plain = rule(&catalogue, "plain");
        assert_eq!(names(&plain.deescalate), ["staff", "admin"]);
        assert_eq!(names(&plain.review), ["reviewer", "admin"]);
    }

    #[test]
    fn a_schema_file_lies_beside_the_configuration() {
        let folder = TempFolder::new();
        let file = folder.path().join("driftline.toml");
        std::fs::create_dir(folder.path().join("schemas")).unwrap();
        let text = "[[kind]]\nname = \"ticket\"\nschema_file = \"schemas/ticket.json\"\n";
        std::fs::write(&file, text).unwrap();
        let read = || Config::load(Some(&file)).unwrap().catalogue(false);
        let error = format!("{:#}", read().unwrap_err());
        assert!(error.contains("\"ticket\"") && error.contains("schemas/ticket.json"), "{error}");

        let schema = folder.path().join("schemas/ticket.json");
        std::fs::write(&schema, r#"{"allOf": []}"#).unwrap();
        let error = format!("{:#}", read().unwrap_err());
        assert!(error.contains("schemas/ticket.json") && error.contains("/allOf"), "{error}");
        std::fs::write(&schema, r#"{"properties": {"title": {"type": "string"}}}"#).unwrap();
        assert!(rule(&read().unwrap(), "ticket").schema.is_some());
    }

    #[test]
    fn the_documented_example_is_a_configuration() {
        let page = include_str!("../../../docs/configuration.md");
        let example = page.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
        let catalogue = read(example).unwrap();
        assert_eq!((catalogue.declared().count(), catalogue.records().count()), (5, 4));
        let rules = Config::parse(example).unwrap().rules(false).unwrap();
        assert_eq!(rules.rule("cadet_7").unwrap().0.pattern.as_str(), "cadet_{cadet_id}");
        let own = BTreeMap::from([(TenantId::new("acme").unwrap(), 604_800_000)]);
        // What is said of defaults is true: without its values the file means the same.
        let config = Config::parse(example).unwrap();
        assert_eq!(config.limits().unwrap(), Limits::default());
        assert_eq!(config.windows().unwrap(), Windows { tenants: own, ..Windows::default() });
    }

    #[test]
    fn a_line_that_cannot_be_read_is_numbered_and_not_repeated() {
        let table = [
            ("[server]\n\n[store]\nurl = \"postgres://ada:sesame@one/app\n", "line 4: url: "),
            ("[auth]\nsecret = 'sesame", "line 2: secret: "),
            (
                "[store]\nurl = \"postgres://ada:sesame@one/app\"\nurl = \"postgres://ada:sesame@two/app\"",
                "line 3: ",
            ),
        ];
        for (text, named) in table {
            let error = format!("{:?}", Config::parse(text).unwrap_err());
            assert!(error.contains(named) && !error.contains("sesame"), "{text}: {error}");
        }
    }

    #[test]
    fn what_is_wrong_in_a_file_is_named() {
        let table = [
            ("[server]\nlissten = \"x\"", "lissten"),
            ("[[kind]]\nname = \"a b\"", "a b"),
            ("[[kind]]\nname = \"a\"\nscope = \"planet\"", "planet"),
            ("[[kind]]\nname = \"a\"\nstrategy = \"best\"", "best"),
            ("[[kind]]\nname = \"a\"\n[[kind]]\nname = \"a\"", "twice"),
            ("[[kind]]\nname = \"$a\"", "begin with $"),
            ("[[kind]]\nname = \"a\"\nscope = \"group:\"", "scope"),
            ("[[kind]]\nname = \"a\"\nscope = \"group:sub\"", "\"sub\""),
            ("[[kind]]\nname = \"a\"\ndeescalates = []", "deescalates"),
            ("[[kind]]\nname = \"a\"\n[kind.field.b]\nrule = \"best\"", "kind \"a\": field.b.rule"),
            ("[[kind]]\nname = \"a\"\n[kind.field.b]\nrule = \"lww\"\nrank = 1", "rank"),
            (
                "[[kind]]\nname = \"a\"\nstrategy = \"preserve_escalation\"\n[kind.field.b]\nrule = \"ordered\"\n\
                 order = [\"x\", \"y\"]\nurgent = \"z\"",
                "kind \"a\": field.b.urgent",
            ),
            ("[[kind]]\nname = \"a\"\noptions = { on_delete = \"maybe\" }", "kind \"a\": options.on_delete"),
            (
                "[[kind]]\nname = \"a\"\nstrategy = \"manual\"\ngranularity = \"field\"",
                "kind \"a\": granularity",
            ),
            (
                "[[kind]]\nname = \"a\"\nschema = { dependentRequired = { b = [\"c\"] } }",
                "kind \"a\": schema: may not stand at the top",
            ),
            (
                "[[kind]]\nname = \"a\"\nschema = { properties = { b = { type = \"text\" } } }",
                "kind \"a\": schema",
            ),
            ("[[kind]]\nname = \"a\"\nschema = {}\nschema_file = \"b\"", "one of them"),
            (
                "[[kind]]\nname = \"a\"\nschema_file = \"/nowhere/b.json\"",
                "kind \"a\": schema_file /nowhere/b.json",
            ),
            ("[[kind]]\nname = \"a\"\nschema_version_min = -1", "schema_version_min"),
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
