//! The smallest store around the plan: it keeps what a plan was given and made, and nothing else.

use std::collections::BTreeMap;

use driftline_conflict::DeviceTable;
use driftline_engine::{GroupState, Head, Known, PlanEnv, Planned, Receipt, Row, RowKey, Submission};
use driftline_model::{DeviceNo, Epoch, Hlc, OpId, Seq, TenantNo};

use super::history::{DEVICES, Group, RECORD_BYTES};

/// The function under test: the real one, or a planted fault around it.
pub(crate) type Plan<'a> = dyn Fn(&[Submission], &mut GroupState, &PlanEnv<'_>) -> Planned + 'a;

pub(crate) const TENANT: TenantNo = TenantNo::new(1);
pub(crate) const EPOCH: Epoch = Epoch::new(0xfeed);
pub(crate) const SKEW_MS: u64 = 60_000;

pub(crate) struct Tiny<'a> {
    plan: &'a Plan<'a>,
    devices: DeviceTable,
    pub(crate) state: GroupState,
}

impl<'a> Tiny<'a> {
    pub(crate) fn new(plan: &'a Plan<'a>) -> Self {
        let mut state = GroupState::default();
        let head = Head {
            epoch: EPOCH,
            seq: Seq::ZERO,
            hlc: Hlc::ZERO,
            scopes_version: 0,
            gc_floor: Seq::ZERO,
            epoch_seq: Seq::ZERO,
            event_id: 0,
        };
        state.heads.insert(TENANT, head);
        Self { plan, devices: DeviceTable::new(DEVICES.map(|(name, _)| name)), state }
    }

    pub(crate) fn head(&self) -> Head {
        self.state.heads[&TENANT]
    }

    pub(crate) fn row(&self, key: &RowKey) -> Option<&Row> {
        self.state.rows.get(key)?.as_ref()
    }

    /// Plans a group and forgets the answers that were heard.
    pub(crate) fn plan(&mut self, now_ms: u64, group: &[Submission]) -> Planned {
        let env = PlanEnv {
            now_ms,
            skew_ms_max: SKEW_MS,
            record_bytes: RECORD_BYTES,
            devices: &self.devices,
            listening: &|_| true,
        };
        let planned = (self.plan)(group, &mut self.state, &env);
        for write in &planned.writes.devices {
            let heard =
                |device: DeviceNo, known: &Known| device == write.device && known.n <= write.state.acked_n;
            self.state.by_n.retain(|(device, _), known| !heard(*device, known));
            self.state.by_op.retain(|(device, _), known| !heard(*device, known));
        }
        planned
    }

    /// Plays a group of a history.
    pub(crate) fn play(&mut self, group: &Group) -> Planned {
        if group.purge {
            self.purge();
        }
        self.plan(group.now_ms, &group.submissions)
    }

    /// Plays a group batch by batch.
    pub(crate) fn play_singly(&mut self, group: &Group) -> Vec<Receipt> {
        if group.purge {
            self.purge();
        }
        let single = |submission| self.plan(group.now_ms, std::slice::from_ref(submission)).receipts;
        group.submissions.iter().flat_map(single).collect()
    }

    fn purge(&mut self) {
        self.state.rows.retain(|_, row| row.as_ref().is_some_and(|row| !row.deleted));
    }

    /// Everything that is kept, in a fixed order.
    pub(crate) fn text(&self) -> String {
        let rows: BTreeMap<&RowKey, &Row> =
            self.state.rows.iter().filter_map(|(key, row)| Some((key, row.as_ref()?))).collect();
        let by_n: BTreeMap<&(DeviceNo, u64), &Known> = self.state.by_n.iter().collect();
        let by_op: BTreeMap<&(DeviceNo, OpId), &Known> = self.state.by_op.iter().collect();
        let devices: BTreeMap<_, _> = self.state.devices.iter().collect();
        format!("{:?} {rows:#?} {by_n:?} {by_op:?} {devices:?}", self.head())
    }
}
