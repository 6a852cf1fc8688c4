//! The outbox, in which other programs publish.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand, ValueEnum};
use driftline_engine::{Engine, Hub, Listeners};
use driftline_protocol::event_kind;
use driftline_realtime::Pattern;
use driftline_transport::{MetricsObserver, SystemClock, SystemRandom};

use crate::config::Config;
use crate::outbox::{BATCH, drain};
use crate::run::{data_dir, runtime};
use crate::store::{self, DataPlace, Surroundings};

/// What is done with the outbox.
#[derive(Debug, Args)]
pub(crate) struct OutboxArguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Publish everything that waits, and print how many rows that were; servers on the same PostgreSQL may run.
    Drain(DrainArguments),
    /// Print a trigger that publishes the changes of another program's table.
    Trigger(TriggerArguments),
}

#[derive(Debug, Args)]
struct DrainArguments {
    /// The configuration file.
    #[arg(long)]
    config: Option<PathBuf>,
    /// The data folder of the embedded database.
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// Rows of one transaction.
    #[arg(long, default_value_t = BATCH, value_parser = batch)]
    batch: usize,
}

#[derive(Debug, Args)]
struct TriggerArguments {
    /// The other program's table; with a schema: `schema.table`.
    #[arg(long, value_parser = table)]
    table: String,
    /// The type of the events.
    #[arg(long = "type", value_parser = kind)]
    kind: String,
    /// Their topic, in which `{column}` stands for the value of a column; absent: the route of the type.
    #[arg(long, value_parser = topic)]
    topic: Option<Pattern>,
    /// The columns that the events carry, and that make one when they change; may be given several times.
    #[arg(long = "column", required = true, value_parser = name)]
    columns: Vec<String>,
    /// A claim whose column of the outbox gets the value of the column of the same name; may be given several times.
    #[arg(long = "claim", value_parser = name)]
    claims: Vec<String>,
    /// The tenant.
    #[arg(long, default_value = "default", value_parser = tenant)]
    tenant: String,
    /// The database of the trigger; absent: the one that the configuration names.
    #[arg(long)]
    dialect: Option<Dialect>,
    /// The configuration file.
    #[arg(long)]
    config: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Dialect {
    Sqlite,
    Postgres,
}

/// Does what is wanted of the outbox.
pub(crate) fn outbox(arguments: &OutboxArguments) -> anyhow::Result<()> {
    match &arguments.action {
        Action::Drain(arguments) => drain_now(arguments),
        Action::Trigger(arguments) => {
            let config = Config::load(arguments.config.as_deref())?;
            let postgres = config.store.url.is_some();
            let default = if postgres { Dialect::Postgres } else { Dialect::Sqlite };
            print!("{}", trigger(arguments, arguments.dialect.unwrap_or(default)));
            Ok(())
        }
    }
}

/// Opens the store beside or in place of a server, and publishes what waits.
fn drain_now(arguments: &DrainArguments) -> anyhow::Result<()> {
    let config = Config::load(arguments.config.as_deref())?;
    let folder = data_dir(arguments.data_dir.as_deref(), &config);
    let place = super::data_place(&config, &folder)?;
    let (limits, catalogue, rules) = (config.limits()?, config.catalogue(false)?, config.rules(false)?);
    let hub = Arc::new(Hub::new(limits.pending_deltas));
    let surroundings = Surroundings {
        clock: Arc::new(SystemClock),
        random: Arc::new(SystemRandom),
        listeners: Arc::clone(&hub) as Arc<dyn Listeners>,
        outbox_claims: config.claims()?,
    };
    let store = store::open(&place, &config.store, &limits, surroundings).with_context(|| match place {
        DataPlace::Embedded(_) => {
            "the outbox of a server that runs is drained over HTTP: POST /api/v1/outbox/drain, with the role admin"
        }
        DataPlace::Postgres { .. } => "the outbox cannot be opened",
    })?;
    let engine = Engine::new(store, hub, catalogue, limits, MetricsObserver::default()).with_rules(rules)?;
    let drained = runtime()?.block_on(drain(&engine, arguments.batch));
    let drained = drained.map_err(|fault| anyhow::anyhow!("{}", fault.message))?;
    println!("{{\"processed\":{},\"failed\":{}}}", drained.processed, drained.failed);
    Ok(())
}

/// Writes the trigger of a table.
fn trigger(arguments: &TriggerArguments, dialect: Dialect) -> String {
    match dialect {
        Dialect::Sqlite => sqlite_trigger(arguments),
        Dialect::Postgres => postgres_trigger(arguments),
    }
}

/// SQLite knows one trigger for each sort of change.
fn sqlite_trigger(arguments: &TriggerArguments) -> String {
    let TriggerArguments { table, kind, columns, claims, tenant, .. } = arguments;
    let data = columns.iter().map(|column| format!("'{column}', NEW.\"{column}\""));
    let data = format!("json_object({})", data.collect::<Vec<_>>().join(", "));
    let (names, values) = row(arguments, "");
    let (named, claimed) = claim_columns(claims);
    let short = table.replace('.', "_");
    let insert = format!(
        "BEGIN\n    INSERT INTO sync_events (tenant, event_type, payload{names}{named})\n    \
         VALUES ('{tenant}', '{kind}', {data}{values}{claimed});\nEND;\n"
    );
    let changed = columns.iter().map(|column| format!("OLD.\"{column}\" IS NOT NEW.\"{column}\""));
    let changed = changed.collect::<Vec<_>>().join(" OR ");
    let (quoted, kind) = (quoted(table), kind.replace(['.', ':', '-'], "_"));
    format!(
        "CREATE TRIGGER \"driftline_{short}_{kind}_insert\" AFTER INSERT ON {quoted}\n{insert}\
         CREATE TRIGGER \"driftline_{short}_{kind}_update\" AFTER UPDATE ON {quoted}\nWHEN {changed}\n{insert}"
    )
}

/// PostgreSQL wants a function, which one trigger calls for both sorts of changes.
fn postgres_trigger(arguments: &TriggerArguments) -> String {
    let TriggerArguments { table, kind, columns, claims, tenant, .. } = arguments;
    let data = columns.iter().map(|column| format!("'{column}', NEW.\"{column}\""));
    let data = format!("json_build_object({})", data.collect::<Vec<_>>().join(", "));
    let (names, values) = row(arguments, "::TEXT");
    let (named, claimed) = claim_columns(claims);
    let row = |version: &str| {
        let columns = columns.iter().map(|column| format!("{version}.\"{column}\""));
        format!("ROW({})", columns.collect::<Vec<_>>().join(", "))
    };
    let (old, new, quoted) = (row("OLD"), row("NEW"), quoted(table));
    let name = format!("driftline_{}_{}", table.replace('.', "_"), kind.replace(['.', ':', '-'], "_"));
    format!(
        "CREATE FUNCTION \"{name}\"() RETURNS TRIGGER LANGUAGE plpgsql AS $$\nBEGIN\n    \
         IF TG_OP = 'UPDATE' THEN\n        IF {old} IS NOT DISTINCT FROM {new} THEN RETURN NULL; END IF;\n    END IF;\n    \
         INSERT INTO sync_events (tenant, event_type, payload{names}{named})\n    \
         VALUES ('{tenant}', '{kind}', {data}::TEXT{values}{claimed});\n    RETURN NULL;\nEND\n$$;\n\
         CREATE TRIGGER \"{name}\" AFTER INSERT OR UPDATE ON {quoted}\n    \
         FOR EACH ROW EXECUTE FUNCTION \"{name}\"();\n"
    )
}

/// The column of the topic and what makes it, if there is a topic.
fn row(arguments: &TriggerArguments, cast: &str) -> (String, String) {
    let Some(pattern) = &arguments.topic else { return Default::default() };
    let mut parts = Vec::new();
    let mut rest = pattern.as_str();
    while let Some((literal, more)) = rest.split_once('{') {
        let (column, after) = more.split_once('}').unwrap_or((more, ""));
        if !literal.is_empty() {
            parts.push(format!("'{literal}'"));
        }
        parts.push(format!("NEW.\"{column}\"{cast}"));
        rest = after;
    }
    if !rest.is_empty() {
        parts.push(format!("'{rest}'"));
    }
    (", topic".to_owned(), format!(", {}", parts.join(" || ")))
}

fn claim_columns(claims: &[String]) -> (String, String) {
    let names = claims.iter().map(|claim| format!(", \"{claim}\""));
    let values = claims.iter().map(|claim| format!(", NEW.\"{claim}\""));
    (names.collect(), values.collect())
}

fn quoted(table: &str) -> String {
    table.split('.').map(|part| format!("\"{part}\"")).collect::<Vec<_>>().join(".")
}

fn batch(text: &str) -> anyhow::Result<usize> {
    match text.parse() {
        Ok(batch @ 1..=10_000) => Ok(batch),
        _ => bail!("a batch has 1 to 10000 rows"),
    }
}

/// What stands in the text of a statement is a plain name, so that nothing else can be said with it.
fn name(text: &str) -> anyhow::Result<String> {
    let is_name = (1..=63).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        && !text.starts_with(|first: char| first.is_ascii_digit());
    if !is_name {
        bail!("a name has 1 to 63 letters, digits and underscores, and begins with no digit");
    }
    Ok(text.to_owned())
}

fn table(text: &str) -> anyhow::Result<String> {
    let parts: Vec<&str> = text.split('.').collect();
    if parts.len() > 2 {
        bail!("a table is named `table` or `schema.table`");
    }
    for part in parts {
        name(part)?;
    }
    Ok(text.to_owned())
}

fn kind(text: &str) -> anyhow::Result<String> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.:-".contains(&byte));
    if !is_plain || event_kind(text).is_err() {
        bail!("it cannot be the type of an event from a trigger");
    }
    Ok(text.to_owned())
}

fn topic(text: &str) -> anyhow::Result<Pattern> {
    Ok(Pattern::parse(text)?)
}

fn tenant(text: &str) -> anyhow::Result<String> {
    driftline_model::TenantId::new(text)?;
    if text.contains('\'') {
        bail!("a trigger cannot name a tenant with a quote in it");
    }
    Ok(text.to_owned())
}
