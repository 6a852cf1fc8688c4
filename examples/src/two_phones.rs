//! Two phones edit the same records offline, and agree; a third that comes late agrees with them.
//!
//! The records are two real tables, the movies and cars of `vega-datasets`. Under each strategy the story is: phone A
//! pushes both tables; phone B pulls them; both go offline and edit the same records; both come back; phone C
//! arrives. Then all four, the server included, must hold the same, and every value that lost must be in the audit.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use driftline_client::{Client, Edit, KindName, Object, RecordId, Replica, fields};
use driftline_engine::{Clock as _, Identity, Store as _};
use driftline_protocol::PolicyDoc;
use driftline_transport::SystemClock;
use serde_json::Value;

use crate::server::Embedded;

/// The size of the story.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Movies to sync, of 3,201.
    pub movies: usize,
    /// Cars to sync, of 406.
    pub cars: usize,
    /// Records that both phones edit.
    pub edits: usize,
}

/// The two tables, as records.
#[derive(Debug)]
pub struct Tables {
    records: Vec<(KindName, RecordId, Object)>,
}

/// What happened under one strategy.
#[derive(Debug, Clone)]
pub struct Report {
    /// The strategy.
    pub strategy: String,
    /// Records that everybody holds in the end.
    pub records: usize,
    /// Records whose edited field ended with phone A's value.
    pub kept_a: usize,
    /// Records whose edited field ended with phone B's value.
    pub kept_b: usize,
    /// Values that lost and are in the audit.
    pub lost: usize,
}

/// The strategies of the story, as policy documents.
pub const STRATEGIES: [&str; 6] = [
    r#"{"strategy":"client_wins"}"#,
    r#"{"strategy":"client_wins","granularity":"field"}"#,
    r#"{"strategy":"server_wins"}"#,
    r#"{"strategy":"server_wins","granularity":"field"}"#,
    r#"{"strategy":"most_recent_wins"}"#,
    r#"{"strategy":"field_merge"}"#,
];

/// How long one sync may take.
const WITHIN: Duration = Duration::from_secs(120);

/// Finds the folder of the tables: `DRIFTLINE_VEGA`, else where `scripts/test` installs them.
///
/// # Errors
/// When they are in neither place; the text says what to do.
pub fn folder() -> anyhow::Result<PathBuf> {
    let cache = std::env::var_os("DRIFTLINE_CACHE").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/driftline")));
    let installed = cache.map(|cache| cache.join("vega/node_modules/vega-datasets/data"));
    let folder = std::env::var_os("DRIFTLINE_VEGA").map(PathBuf::from).or(installed);
    folder.filter(|folder| folder.join("movies.json").exists()).context(
        "movies.json and cars.json of the npm package vega-datasets are needed: scripts/test installs them, \
         or name their folder in DRIFTLINE_VEGA",
    )
}

impl Tables {
    /// Reads `movies.json` and `cars.json` from a folder.
    ///
    /// # Errors
    /// When a table is missing or not a list of objects.
    pub fn read(folder: &Path, size: Size) -> anyhow::Result<Self> {
        let mut records = Vec::new();
        for (kind, file, rows) in [("movie", "movies.json", size.movies), ("car", "cars.json", size.cars)] {
            let file = folder.join(file);
            let text = std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
            let table: Vec<Value> = serde_json::from_slice(&text)?;
            for (at, row) in table.into_iter().take(rows).enumerate() {
                let id = RecordId::new(&format!("{kind}-{at:04}"))?;
                records.push((KindName::new(kind)?, id, fields(&row.to_string())?));
            }
        }
        Ok(Self { records })
    }

    /// Returns how many records there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Tells whether there are no records.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }
}

/// The field that both phones edit.
const RATING: &str = "rating";

/// Plays the story under one strategy, telling each step.
///
/// # Errors
/// At the first thing that is not as it must be.
pub async fn play(
    server: &Embedded,
    tables: &Tables,
    policy: &str,
    size: Size,
    tell: &mut dyn FnMut(&str),
) -> anyhow::Result<Report> {
    let doc = PolicyDoc::parse(policy).map_err(anyhow::Error::msg)?;
    let tenant = format!("{}-{}", doc.strategy, doc.granularity.as_deref().unwrap_or("default"));
    let identity = server.identity(&tenant, "ada").await?;
    for kind in ["movie", "car"] {
        server.engine().set_policy(&identity, &KindName::new(kind)?, &doc).await?;
    }

    let a = server.endpoint(&tenant, "ada", "phone-a")?;
    let b = server.endpoint(&tenant, "ben", "phone-b")?;
    let mut phone_a = Client::connect(&a, Replica::default()).await?;
    for (kind, id, row) in &tables.records {
        phone_a.edit(Edit::create(kind.clone(), id.clone(), row.clone()))?;
    }
    phone_a.sync(WITHIN).await?;
    tell(&format!("phone A pushed {} records", tables.len()));

    let mut phone_b = Client::connect(&b, Replica::default()).await?;
    phone_b.sync(WITHIN).await?;
    same("phone B after its first pull", phone_a.replica(), phone_b.replica())?;
    tell("phone B pulled them and holds the same");

    let (mut offline_a, mut offline_b) = (phone_a.close().await, phone_b.close().await);
    let begun_ms = SystemClock.now_ms();
    edit_offline(&mut offline_a, tables, size.edits, "a", begun_ms)?;
    edit_offline(&mut offline_b, tables, size.edits, "b", begun_ms)?;
    tell(&format!("offline, both phones edited the same {} records", size.edits));

    let mut phone_a = Client::connect(&a, offline_a).await?;
    phone_a.sync(WITHIN).await?;
    let mut phone_b = Client::connect(&b, offline_b).await?;
    phone_b.sync(WITHIN).await?;
    // What phone B did may still be on its way to phone A: a fresh look settles it.
    phone_a.replica_mut().request_pull();
    phone_a.sync(WITHIN).await?;
    phone_b.replica_mut().request_pull();
    phone_b.sync(WITHIN).await?;
    tell("both came back and synced");

    let c = server.endpoint(&tenant, "cleo", "phone-c")?;
    let mut phone_c = Client::connect(&c, Replica::default()).await?;
    phone_c.sync(WITHIN).await?;
    same("phones A and B", phone_a.replica(), phone_b.replica())?;
    same("phones A and C", phone_a.replica(), phone_c.replica())?;
    ensure!(
        phone_a.replica().dead_letters().is_empty() && phone_b.replica().dead_letters().is_empty(),
        "dead letters"
    );
    let report = audit(server, &identity, tables, size, &doc, phone_c.replica()).await?;
    tell(&format!(
        "A, B, the server and a late phone C agree on {} records; of {} contested fields A kept {}, B kept {}; \
         {} values lost, each in the audit",
        report.records, size.edits, report.kept_a, report.kept_b, report.lost
    ));
    for phone in [phone_a, phone_b, phone_c] {
        phone.close().await;
    }
    Ok(report)
}

/// Edits the contested field and one of the phone's own, in every record of the contested ones.
fn edit_offline(
    phone: &mut Replica,
    tables: &Tables,
    edits: usize,
    name: &str,
    begun_ms: u64,
) -> anyhow::Result<()> {
    for (at, (kind, id, _)) in tables.records.iter().take(edits).enumerate() {
        let change = format!(r#"{{"{RATING}":"{}","note_{name}":{at}}}"#, rating(name, at));
        let op_id = driftline_client::OpId::new(&format!("{name}-offline-{at}"))?;
        // The phones go through the records side by side; at every other one phone A is the later of the two.
        let later = u64::from((name == "a") == at.is_multiple_of(2));
        let now_ms = begun_ms + 2 * at as u64 + later;
        phone.edit(Edit::patch(kind.clone(), id.clone(), fields(&change)?), op_id, now_ms)?;
    }
    Ok(())
}

fn rating(name: &str, at: usize) -> String {
    format!("{name}{at}")
}

fn same(what: &str, one: &Replica, other: &Replica) -> anyhow::Result<()> {
    let (one, other) = (held(one), held(other));
    if one == other {
        return Ok(());
    }
    let differing = one.iter().find(|(key, fields)| other.get(*key) != Some(fields));
    let other_len = other.len();
    bail!("{what} differ: {} records against {other_len}, for example {differing:?}", one.len())
}

fn held(phone: &Replica) -> BTreeMap<(String, String), String> {
    phone
        .views()
        .map(|(kind, id, view)| ((kind.to_string(), id.to_string()), view.fields.as_str().to_owned()))
        .collect()
}

/// Compares the server with a phone, and looks for every edited value in the state or in the audit.
async fn audit(
    server: &Embedded,
    identity: &Identity,
    tables: &Tables,
    size: Size,
    doc: &PolicyDoc,
    phone: &Replica,
) -> anyhow::Result<Report> {
    let held = held(phone);
    ensure!(held.len() == tables.len(), "{} records of {}", held.len(), tables.len());
    let mut report =
        Report { strategy: doc.strategy.clone(), records: held.len(), kept_a: 0, kept_b: 0, lost: 0 };
    for (at, (kind, id, _)) in tables.records.iter().enumerate() {
        let history = server.engine().store().history(identity.tenant, kind, id).await?;
        let history = history.with_context(|| format!("the server lacks {kind}/{id}"))?;
        let stored = &history.row.record.fields;
        let on_phone = held.get(&(kind.to_string(), id.to_string()));
        ensure!(on_phone.map(String::as_str) == Some(stored.as_str()), "{kind}/{id} differs from the server");
        if at >= size.edits {
            continue;
        }
        let details: Vec<&str> = history.audit.iter().map(|audit| audit.detail.as_str()).collect();
        let mut weigh = |field: &str, value: String| -> anyhow::Result<bool> {
            if stored.get(field) == Some(value.as_str()) {
                return Ok(true);
            }
            // The whole input of the decided change stands in its audit row, the stored value beside it.
            let accounted = details.iter().any(|detail| detail.contains(&format!(":{value}")));
            ensure!(accounted, "{kind}/{id}: the value {value} of {field} is nowhere");
            report.lost += 1;
            Ok(false)
        };
        let kept_a = weigh(RATING, format!("\"{}\"", rating("a", at)))?;
        let kept_b = weigh(RATING, format!("\"{}\"", rating("b", at)))?;
        weigh("note_a", at.to_string())?;
        weigh("note_b", at.to_string())?;
        ensure!(kept_a != kept_b, "{kind}/{id}: exactly one rating stands");
        report.kept_a += usize::from(kept_a);
        report.kept_b += usize::from(kept_b);
    }
    Ok(report)
}
