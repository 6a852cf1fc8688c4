//! What is removed when its time has passed.

use driftline_engine::Retention;

use super::State;

const DAY_MS: u64 = 24 * 3_600_000;

impl State {
    /// Removes what is past its retention; gives the number of removed rows.
    pub(super) fn prune(&mut self, now_ms: u64, retention: &Retention) -> u64 {
        let before = self.prunable();
        self.prune_answers(now_ms);
        self.prune_records(now_ms);
        self.once.retain(|_, kept| now_ms < kept.expires_ms);
        for (kind, kept_ms) in &retention.samples {
            let before_ms = now_ms.saturating_sub(*kept_ms);
            self.samples.retain(|key, sample| {
                key.kind != *kind || sample.at_ms >= before_ms || sample.received_ms >= before_ms
            });
        }
        if let Some(kept_ms) = retention.series_ms {
            self.series.retain(|(_, hour_ms, _), _| *hour_ms >= now_ms.saturating_sub(kept_ms));
        }
        (before - self.prunable()) as u64
    }

    /// Counts the rows that may be past their retention.
    fn prunable(&self) -> usize {
        let answers = self.known.len() + self.batches.len() + self.once.len();
        answers + self.rows.len() + self.exits.len() + self.samples.len() + self.series.len()
    }

    fn prune_answers(&mut self, now_ms: u64) {
        let states = &mut self.states;
        self.known.retain(|(device, n), (_, at_ms)| {
            let keep = *at_ms + 90 * DAY_MS >= now_ms;
            if !keep {
                // What is forgotten is too old from now on, and never new.
                let device = states.entry(*device).or_default();
                device.acked_n = device.acked_n.max(*n);
            }
            keep
        });
        let known = &self.known;
        self.names.retain(|(device, _), n| known.contains_key(&(*device, *n)));
        self.batches.retain(|_, batch| batch.at_ms + DAY_MS >= now_ms);
    }

    fn prune_records(&mut self, now_ms: u64) {
        let (heads, changed) = (&mut self.heads, &mut self.changed);
        self.rows.retain(|key, row| {
            let old = changed.get(key).is_some_and(|at_ms| *at_ms + 30 * DAY_MS < now_ms);
            if row.deleted && old {
                changed.remove(key);
                if let Some(head) = heads.get_mut(&key.tenant) {
                    head.gc_floor = head.gc_floor.max(row.record.version);
                }
                return false;
            }
            true
        });
        self.exits.retain(|(tenant, ..), exit| {
            let keep = exit.at_ms + 30 * DAY_MS >= now_ms;
            if let (false, Some(head)) = (keep, heads.get_mut(tenant)) {
                head.gc_floor = head.gc_floor.max(exit.seq);
            }
            keep
        });
    }
}
