//! What others committed, as the session tells of it.

use std::sync::Arc;

use driftline_model::KindName;
use driftline_protocol::{Change, ConflictResolved, Outbound, ServerDelta, encode_changes};

use super::Session;
use crate::hub::{Committed, CommittedChange, CommittedConflict};
use crate::review::conflict_doc;

impl Session {
    /// Takes what was committed for the session's tenant.
    pub fn handle_commit(&mut self, committed: &Committed, now_ms: u64) {
        self.known_seq = self.known_seq.max(committed.seq);
        self.handle_changes(committed, now_ms);
        for conflict in committed.conflicts.iter() {
            self.handle_conflict(conflict, now_ms);
        }
    }

    /// Tells of a conflict to the device whose change waits and to those who may decide it.
    fn handle_conflict(&mut self, conflict: &CommittedConflict, now_ms: u64) {
        let row = &conflict.row;
        let own = self.identity.device.as_ref().is_some_and(|(device, _)| *device == row.device);
        let reviews = self.identity.reviews.contains(&row.kind) && self.identity.scopes.contains(&row.scope);
        // Whoever has just decided it has the answer.
        let asked = self.resolving.iter().any(|asked| *asked == row.conflict_id);
        if !own && !reviews || asked && !row.status.is_open() {
            return;
        }
        let message = if row.status.is_open() {
            Outbound::Conflict(Box::new(conflict_doc(row)))
        } else {
            let record = conflict.record.clone().filter(|_| self.identity.scopes.contains(&row.scope));
            Outbound::ConflictResolved(Box::new(ConflictResolved { conflict: conflict_doc(row), record }))
        };
        let head = self.head(now_ms, None, None);
        self.send(&message, &head);
    }

    fn handle_changes(&mut self, committed: &Committed, now_ms: u64) {
        let own_device = self.identity.device.as_ref().map(|(device, _)| *device);
        let Some(sync) = &mut self.sync else {
            // The head of the session that is being opened may have been read before this commit.
            self.heard = Some((committed.seq, committed.hlc));
            return;
        };
        if committed.seq <= sync.accounted {
            return;
        }
        let missed = committed.prev_seq > sync.accounted || committed.changes.is_none();
        sync.accounted = committed.seq;
        let kinds = &sync.kinds;
        let scopes = &self.identity.scopes;
        let wanted =
            |kind: &KindName| kinds.as_ref().is_some_and(|kinds| kinds.is_empty() || kinds.contains(kind));
        let all = committed.changes.as_deref().unwrap_or_default();
        let told = |change: &CommittedChange| change.device.is_none() || change.device != own_device;
        let shown: Vec<&Change> = all
            .iter()
            .filter(|change| told(change) && wanted(&change.change.kind))
            .filter_map(|change| change.seen_by(scopes))
            .collect();
        if shown.is_empty() && !missed {
            return;
        }
        let bytes: usize = shown.iter().map(|change| change.fields.as_str().len()).sum();
        // What is more than a page is pulled in pages.
        let missed = missed || bytes > self.limits.page_bytes;
        let whole = shown.len() == all.len() && all.iter().all(|change| change.moved.is_none());
        let changes = if missed {
            Arc::from("[]")
        } else if whole {
            committed.encoded()
        } else {
            Arc::from(encode_changes(shown))
        };
        // After a miss, or while the client lacks kinds of its session, it must pull: it stands nowhere near this place.
        let prev_seq = if missed || !sync.covered { committed.seq } else { sync.told };
        sync.told = committed.seq;
        let delta = ServerDelta {
            prev_seq,
            seq: committed.seq,
            cursor: sync.sealer.caught_up(committed.seq),
            hlc: committed.hlc,
            changes,
        };
        let sync_id = sync.id.to_string();
        let head = self.head(now_ms, None, Some(sync_id));
        self.send(&Outbound::ServerDelta(delta), &head);
    }
}
