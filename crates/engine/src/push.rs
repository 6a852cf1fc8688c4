//! From items to a submission, and from its receipt to an answer.

use std::collections::HashMap;
use std::sync::Arc;

use driftline_conflict::{Op, Policy, Winner};
use driftline_model::{Epoch, KindName, OpId, RecordId, ScopeName, SyncId};
use driftline_protocol::{
    Ack, AckStatus, BadItem, FieldError, Item, ItemClass, ItemCode, ItemOp, ItemResult, SyncData, WinnerName,
};

use crate::catalogue::{Catalogue, KindRule};
use crate::group::{Apply, Entry, Placement, Receipt, Submission, SubmissionResult, Task};
use crate::policies::{Policies, PolicyView};
use crate::ports::{Identity, Observer};

/// What an answer repeats of an item.
#[derive(Debug, Clone)]
pub(crate) struct Echo {
    op_id: Option<OpId>,
    kind: Option<KindName>,
    id: Option<RecordId>,
}

/// Checks items against kinds and rights.
pub(crate) struct Gate<'a> {
    pub(crate) catalogue: &'a Catalogue,
    pub(crate) own: &'a HashMap<KindName, PolicyView>,
    pub(crate) identity: &'a Identity,
}

impl Gate<'_> {
    /// Makes the submission of a batch; nothing without a device.
    pub(crate) fn submission(
        &self,
        data: SyncData,
        batch: Option<(SyncId, u64)>,
        epoch: Option<Epoch>,
        correlation: &str,
    ) -> Option<(Submission, Vec<Echo>)> {
        let (device, _) = self.identity.device.as_ref()?;
        let mut policies: Vec<(KindName, Result<Arc<Policy>, ItemCode>)> = Vec::new();
        let entries: Vec<Entry> = data
            .items
            .into_iter()
            .map(|item| match item {
                Ok(item) => self.entry(item, &mut policies),
                Err(bad) => refused(*bad),
            })
            .collect();
        let echoes = entries
            .iter()
            .map(|entry| Echo { op_id: entry.op_id.clone(), kind: entry.kind.clone(), id: entry.id.clone() })
            .collect();
        let submission = Submission {
            tenant: self.identity.tenant,
            device: *device,
            user: self.identity.user.to_string().into(),
            scopes: self.identity.scopes.clone(),
            epoch,
            acked_n: data.acked_n,
            batch,
            once: Vec::new(),
            correlation: correlation.into(),
            entries,
        };
        Some((submission, echoes))
    }

    fn entry(&self, item: Item, policies: &mut Vec<(KindName, Result<Arc<Policy>, ItemCode>)>) -> Entry {
        // Batches are mostly of one kind: its policy and rights are looked up once.
        let found = policies.iter().find(|(kind, _)| *kind == item.kind).map(|(_, found)| found.clone());
        let found = found.unwrap_or_else(|| {
            let found = self.kind(&item.kind);
            policies.push((item.kind.clone(), found.clone()));
            found
        });
        let (kind, id) = (Some(item.kind.clone()), Some(item.id.clone()));
        let rule = self.catalogue.kind(&item.kind);
        let refused = match (&found, rule) {
            (Err(code), _) => Some((*code, vec![explain(*code)])),
            (Ok(_), Some(rule)) => refusal(&item, rule),
            (Ok(_), None) => None,
        };
        let task = match (found, refused) {
            (_, Some((code, errors))) => Task::Refuse(code, errors),
            (Err(code), None) => Task::Refuse(code, vec![explain(code)]),
            (Ok(policy), None) => {
                let placement = rule.map(|rule| rule.scope.placement(&self.identity.user));
                Task::Apply(Apply {
                    kind: item.kind,
                    id: item.id,
                    op: op_of(item.op),
                    base: item.base_version,
                    fields: item.fields,
                    intents: item.intents,
                    hlc: item.hlc,
                    schema_version: item.schema_version,
                    placement: placement.unwrap_or_else(|| Placement::Fixed(ScopeName::tenant())),
                    rights: rule.map(|rule| rule.rights(&self.identity.roles)).unwrap_or_default(),
                    policy,
                })
            }
        };
        Entry { op_id: item.op_id, n: item.n, hash: item.hash, kind, id, group: item.group, task }
    }

    fn kind(&self, kind: &KindName) -> Result<Arc<Policy>, ItemCode> {
        let rule = self.catalogue.kind(kind).ok_or(ItemCode::UnknownKind)?;
        // Kinds of the server's own are read by everybody and written by nobody.
        if kind.as_str().starts_with('$') {
            return Err(ItemCode::Forbidden);
        }
        if !rule.may_write(&self.identity.roles) {
            return Err(ItemCode::Forbidden);
        }
        Policies::policy(self.own, self.catalogue, kind).ok_or(ItemCode::UnknownKind)
    }
}

/// Checks an item against what is declared of its kind, without the record.
fn refusal(item: &Item, rule: &KindRule) -> Option<(ItemCode, Vec<FieldError>)> {
    if item.schema_version > 0 && item.schema_version < rule.schema_version_min {
        let message = format!("the oldest accepted version is {}", rule.schema_version_min);
        let error = FieldError { code: "schema_too_old".into(), pointer: "/schema_version".into(), message };
        return Some((ItemCode::SchemaTooOld, vec![error]));
    }
    let errors = rule.schema.as_ref()?.check_item(item);
    (!errors.is_empty()).then_some((ItemCode::Invalid, errors))
}

fn op_of(op: ItemOp) -> Op {
    match op {
        ItemOp::Create => Op::Create,
        ItemOp::Patch => Op::Patch,
        ItemOp::Delete => Op::Delete,
        ItemOp::Restore => Op::Restore,
    }
}

fn refused(bad: BadItem) -> Entry {
    Entry {
        op_id: bad.op_id,
        n: bad.n,
        hash: bad.hash,
        kind: bad.kind,
        id: bad.id,
        group: bad.group,
        task: Task::Refuse(ItemCode::Invalid, bad.errors),
    }
}

fn explain(code: ItemCode) -> FieldError {
    let message = match code {
        ItemCode::UnknownKind => "the kind is not declared",
        _ => "the token's roles may not write this kind",
    };
    FieldError { code: code.as_str().into(), pointer: "/kind".into(), message: message.into() }
}

/// Makes the answer to a batch, and has its items counted.
pub(crate) fn answer(
    receipt: Receipt,
    echoes: Vec<Echo>,
    batch_seq: Option<u64>,
    observer: &impl Observer,
) -> Ack {
    let mut ack = Ack {
        of: "sync_data".into(),
        status: AckStatus::Ok,
        replayed: false,
        batch_seq,
        synced: 0,
        failed: 0,
        conflicts: 0,
        seq: receipt.seq.number(),
        hlc: receipt.hlc.to_string(),
        resend_recognised: None,
        results: Vec::with_capacity(receipt.results.len()),
    };
    for (index, (result, echo)) in receipt.results.into_iter().zip(echoes).enumerate() {
        if !result.duplicate {
            observer.item(result.code, result.strategy);
            if result.clamped {
                observer.clock_clamped();
            }
            if result.collapsed {
                observer.assertions_collapsed();
            }
        }
        ack.conflicts += u64::from(result.strategy.is_some());
        match result.code.class() {
            ItemClass::Done => ack.synced += 1,
            ItemClass::Terminal | ItemClass::Retry | ItemClass::Resync => ack.failed += 1,
        }
        ack.results.push(item_result(index, result, echo));
    }
    ack.replayed = !ack.results.is_empty() && ack.results.iter().all(|result| result.duplicate);
    ack.status = match (ack.synced, ack.failed) {
        (_, 0) => AckStatus::Ok,
        (0, _) => AckStatus::Failed,
        _ => AckStatus::Partial,
    };
    ack
}

fn item_result(index: usize, result: SubmissionResult, echo: Echo) -> ItemResult {
    let winner = |winner| match winner {
        Winner::Client => WinnerName::Client,
        Winner::Server => WinnerName::Server,
        Winner::Merged => WinnerName::Merged,
        Winner::Held => WinnerName::Held,
    };
    ItemResult {
        index: index as u64,
        op_id: echo.op_id.map(|op_id| op_id.to_string()),
        kind: echo.kind.map(|kind| kind.to_string()),
        id: echo.id.map(|id| id.to_string()),
        code: result.code,
        version: result.version.map(driftline_model::Seq::number),
        duplicate: result.duplicate,
        record: result.record,
        winners: result.winners.into_iter().map(|(name, side)| (name.into(), winner(side))).collect(),
        retry_after_ms: (result.code.class() == ItemClass::Retry).then_some(1_000),
        errors: result.errors,
        conflict_id: result.conflict_id.map(|conflict_id| conflict_id.to_string()),
    }
}
