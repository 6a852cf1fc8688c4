//! `[[kind]]` with `mode = "telemetry"`.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use driftline_engine::{Announce, KindRule, TelemetryRule, canonical_name};
use driftline_model::KindName;
use driftline_protocol::{SampleSchema, is_sample_kind};
use driftline_realtime::Pattern;
use serde::Deserialize;

use super::{KindConfig, texts};

/// `announce`: the event that an accepted sample or a changed record publishes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AnnounceConfig {
    #[serde(rename = "type")]
    kind: String,
    topics: Vec<String>,
    #[serde(default)]
    fields: Vec<String>,
}

/// The longest retention in days, 100 years.
const RETENTION_DAYS_MAX: u64 = 36_500;

impl KindConfig {
    /// Makes what the engine knows of a kind of telemetry.
    pub(super) fn telemetry_rule(&self, folder: &Path) -> anyhow::Result<KindRule> {
        if KindName::new(&self.name).is_ok_and(|name| !is_sample_kind(&name)) {
            bail!("samples are sent by the name of their kind, and this is the name of another message");
        }
        let telemetry = TelemetryRule {
            key: names("key", self.key.as_deref())?,
            time: self.time.as_deref().map(|field| name_of("time", field)).transpose()?,
            schema: self.compiled(folder, |text| Ok(SampleSchema::compile(text)?))?.map(Arc::new),
            retention_ms: self.retention_days.map(retention_ms).transpose()?,
            announce: self.announce_rule()?,
            watch: names("watch", self.watch.as_deref())?,
        };
        Ok(KindRule {
            read: texts(&self.read),
            write: texts(&self.write),
            telemetry: Some(Arc::new(telemetry)),
            ..KindRule::default()
        })
    }
}

impl AnnounceConfig {
    pub(super) fn rule(&self) -> anyhow::Result<Announce> {
        if self.kind.is_empty() || self.kind.len() > 64 {
            bail!("type must have 1 to 64 bytes");
        }
        if self.topics.is_empty() {
            bail!("topics must name at least one");
        }
        let topic = |topic: &String| Pattern::parse(topic).with_context(|| format!("topics: {topic:?}"));
        let topics = self.topics.iter().map(topic).collect::<anyhow::Result<Vec<_>>>()?;
        let fields = if self.fields.is_empty() { Vec::new() } else { names("fields", Some(&self.fields))? };
        Ok(Announce { kind: self.kind.as_str().into(), topics, fields, durable: false, conflate: None })
    }
}

/// Reads the names of fields, each of which may be there once.
fn names(key: &str, fields: Option<&[String]>) -> anyhow::Result<Vec<Box<str>>> {
    let Some(fields) = fields else { return Ok(Vec::new()) };
    if fields.is_empty() {
        bail!("{key} must name at least one field, or be left out");
    }
    let mut names: Vec<Box<str>> = Vec::with_capacity(fields.len());
    for field in fields {
        let name = name_of(key, field)?;
        if names.contains(&name) {
            bail!("{key} names {field:?} twice");
        }
        names.push(name);
    }
    Ok(names)
}

fn name_of(key: &str, field: &str) -> anyhow::Result<Box<str>> {
    if field.is_empty() {
        bail!("{key}: the name of a field is empty");
    }
    Ok(canonical_name(field))
}

fn retention_ms(days: u64) -> anyhow::Result<u64> {
    if !(1..=RETENTION_DAYS_MAX).contains(&days) {
        bail!("retention_days must be from 1 to {RETENTION_DAYS_MAX}");
    }
    Ok(days * 86_400_000)
}

#[cfg(test)]
mod tests {
    use driftline_engine::Catalogue;
    use driftline_model::KindName;

    use crate::config::Config;

    fn read(kind: &str) -> anyhow::Result<Catalogue> {
        Config::parse(&format!("[[kind]]\nname = \"sample\"\nmode = \"telemetry\"\n{kind}"))?.catalogue(false)
    }

    #[test]
    fn a_kind_of_telemetry_is_declared_whole() {
        let catalogue = read(
            "key = [\"date\", \"a\\\"b\"]\ntime = \"date\"\nretention_days = 30\nwatch = [\"score\"]\n\
             read = [\"staff\"]\nwrite = [\"device\"]\nschema = { required = [\"date\"], minProperties = 2 }\n\
             announce = { type = \"seen\", topics = [\"zone_{zone}\", \"device_{device_id}\"], fields = [\"date\"] }",
        )
        .unwrap();
        let (kind, rule) = catalogue.telemetry(&KindName::new("sample").unwrap()).unwrap();
        assert!(kind.may_read(&["staff".into()]) && !kind.may_read(&["user".into()]));
        assert!(kind.may_write(&["device".into()]) && !kind.may_write(&["user".into()]));
        assert_eq!(rule.key, ["date".into(), "a\\\"b".into()] as [Box<str>; 2]);
        assert_eq!((rule.time.as_deref(), rule.retention_ms), (Some("date"), Some(30 * 86_400_000)));
        assert_eq!((rule.watch.len(), rule.schema.is_some()), (1, true));
        let announce = rule.announce.as_ref().unwrap();
        assert_eq!((&*announce.kind, announce.topics.len(), announce.fields.len()), ("seen", 2, 1));
        assert_eq!(catalogue.retention().samples.len(), 1);
        assert_eq!(catalogue.records().count(), 0);
        // Who may not read the samples pulls every record all the same.
        assert!(catalogue.is_open_to(&["user".into()]));
    }

    #[test]
    fn everything_but_the_mode_may_be_left_out() {
        let catalogue = read("").unwrap();
        let (_, rule) = catalogue.telemetry(&KindName::new("sample").unwrap()).unwrap();
        assert!(rule.key.is_empty() && rule.time.is_none() && rule.retention_ms.is_none());
        assert_eq!(catalogue.retention().samples, []);
    }

    #[test]
    fn keys_of_records_are_refused() {
        let table = [
            "scope = \"tenant\"",
            "deescalate = []",
            "review = []",
            "service = []",
            "schema_version_min = 0",
            "strategy = \"field_merge\"",
            "granularity = \"field\"",
            "options = {}",
            "[kind.field.a]\nrule = \"lww\"",
        ];
        for key in table {
            let error = format!("{:#}", read(key).unwrap_err());
            let name = key.trim_start_matches("[kind.").split([' ', '.']).next().unwrap();
            assert!(error.contains(&format!("kind \"sample\": {name} is for records")), "{key}: {error}");
        }
    }

    #[test]
    fn keys_of_telemetry_are_refused_for_records() {
        let table = ["key = [\"date\"]", "time = \"date\"", "retention_days = 3", "watch = [\"score\"]"];
        for (key, mode) in table.iter().flat_map(|key| [(key, ""), (key, "mode = \"record\"\n")]) {
            let text = format!("[[kind]]\nname = \"note\"\n{mode}{key}");
            let error = format!("{:#}", Config::parse(&text).unwrap().catalogue(false).unwrap_err());
            let name = key.split(' ').next().unwrap();
            assert!(error.contains(&format!("kind \"note\": {name} is for samples")), "{key}: {error}");
            assert!(error.contains("mode = \"telemetry\""), "{error}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let table = [
            ("key = []", "key must name at least one field"),
            ("key = [\"a\", \"a\"]", "key names \"a\" twice"),
            ("key = [\"\"]", "key: the name of a field is empty"),
            ("time = \"\"", "time: the name"),
            ("watch = []", "watch must name"),
            ("retention_days = 0", "retention_days must be from 1"),
            ("retention_days = 36501", "retention_days must be from 1"),
            ("schema = { type = 7 }", "schema"),
            ("schema = { \"$ref\" = \"https://example.com/schema\" }", "schema"),
            ("schema = {}\nschema_file = \"x\"", "one of them"),
            ("schema_file = \"/nowhere/x.json\"", "schema_file /nowhere/x.json"),
            ("announce = { type = \"\", topics = [\"a\"] }", "announce: type must"),
            ("announce = { type = \"a\", topics = [] }", "announce: topics must"),
            ("announce = { type = \"a\", topics = [\"b c\"] }", "announce: topics: \"b c\""),
            ("announce = { type = \"a\", topics = [\"b_{c\"] }", "between two braces"),
            ("announce = { type = \"a\", topics = [\"b_{}\"] }", "announce: topics: \"b_{}\""),
            (
                "announce = { type = \"a\", topics = [\"b\"], fields = [\"c\", \"c\"] }",
                "fields names \"c\" twice",
            ),
            ("announce = { type = \"a\", topics = [\"b\"], route = \"c\" }", "route"),
            ("keys = [\"a\"]", "keys"),
        ];
        for (kind, named) in table {
            let error = format!("{:#}", read(kind).unwrap_err());
            assert!(error.contains(named), "{kind}: {error}");
        }
        let error = Config::parse("[[kind]]\nname = \"a\"\nmode = \"stream\"").unwrap_err();
        assert!(format!("{error:#}").contains("stream"));
        for name in ["ping", "subscription", "publish"] {
            let text = format!("[[kind]]\nname = \"{name}\"\nmode = \"telemetry\"");
            let error = format!("{:#}", Config::parse(&text).unwrap().catalogue(false).unwrap_err());
            assert!(error.contains("the name of another message"), "{name}: {error}");
        }
    }
}
