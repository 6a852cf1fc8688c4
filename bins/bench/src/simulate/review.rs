//! Somebody at a desk who decides the conflicts that were set aside.

use anyhow::anyhow;
use driftline_client::fields;
use driftline_engine::{ConflictQuery, ConflictRow, Store as _};
use driftline_protocol::{Resolution, ResolveConflict};

use super::backend::Backend;
use super::report::Stop;
use super::run::Run;
use super::world::block_on;

impl<B: Backend> Run<'_, B> {
    /// Decides one of the open conflicts, sometimes by what stood there a while ago.
    pub(super) fn review(&mut self) -> Result<(), Stop> {
        let Some(reviewer) = self.reviewer.clone() else { return Ok(()) };
        let query = ConflictQuery {
            scopes: reviewer.scopes.clone(),
            kinds: Vec::new(),
            id: None,
            device: None,
            open: Some(true),
            after: None,
            rows: 20,
        };
        let open = block_on(self.server().engine.store().conflicts(reviewer.tenant, query));
        let open = open.map_err(|error| anyhow!(error))?;
        if open.is_empty() {
            return Ok(());
        }
        let picked = self.rng.below(open.len());
        let request = self.decision(&open[picked]);
        self.told_of_server(|| format!("rita decides {}: {:?}", request.conflict_id, request.resolution));
        let now_ms = self.server_ms();
        let decided = block_on(self.server().engine.resolve(&reviewer, request, now_ms, "desk"));
        self.counts.event(if decided.is_ok() { "review" } else { "refused review" });
        self.told_of_server(|| format!("rita hears {decided:?}"));
        self.after_commit(Vec::new())
    }

    fn decision(&mut self, row: &ConflictRow) -> ResolveConflict {
        let resolution = *self.rng.pick(&[Resolution::Client, Resolution::Server, Resolution::Merged]);
        // The reviewer's own values: one of those that wait, and a remark.
        let mut own = String::from("{\"remark\":\"seen\"");
        if let Some((name, value)) = row.client.iter().next() {
            own.push_str(&format!(",\"{name}\":{value}"));
        }
        own.push('}');
        let merged = resolution == Resolution::Merged;
        let own =
            if merged { fields(&own).expect("names and values are canonical") } else { Default::default() };
        // Now and then the record has moved on since the reviewer looked.
        let stale = self.rng.percent(20);
        let version = stale.then(|| driftline_model::Seq::new(row.version.number().saturating_sub(1)));
        ResolveConflict { conflict_id: row.conflict_id.clone(), resolution, fields: own, version }
    }
}
