//! From items to a submission, and from its receipt to an answer.

use std::collections::HashMap;
use std::sync::Arc;

use driftline_conflict::{Op, Policy, Winner};
use driftline_idempotency::Fingerprint;
use driftline_model::{Epoch, KindName, OpId, RecordId, ScopeName, SyncId};
use driftline_protocol::{
    Ack, AckStatus, BadItem, FieldError, Item, ItemClass, ItemCode, ItemOp, ItemResult, Sample, SyncData,
    WinnerName,
};

use crate::catalogue::{Catalogue, KindRule, TelemetryRule};
use crate::events::announcing;
use crate::group::{
    Answered, Apply, Entry, Once, OnceKey, Placement, Receipt, Submission, SubmissionResult, Task,
};
use crate::ingest::Source;
use crate::policies::{Policies, PolicyView};
use crate::ports::{Identity, Observer};

/// What an answer repeats of an item.
#[derive(Debug, Clone)]
pub(crate) struct Echo {
    op_id: Option<OpId>,
    kind: Option<KindName>,
    id: Option<RecordId>,
}

/// A batch on its way to the store.
#[derive(Debug, Default)]
pub(crate) struct Push {
    pub(crate) data: SyncData,
    pub(crate) sync_id: Option<SyncId>,
    /// The epoch of the items' bases.
    pub(crate) epoch: Option<Epoch>,
    /// What the message is remembered by.
    pub(crate) once: Vec<Once>,
    /// A random number, for names of samples that nobody else gave.
    pub(crate) seed: u128,
}

/// How long the answer to a batch is remembered, in milliseconds: as long as an idle sync session lives.
const BATCH_MS: u64 = 24 * 3_600_000;

/// What tells a batch from another one of the same number: its items, whichever encoding they came in.
fn print_of(items: &[Result<Item, Box<BadItem>>]) -> Fingerprint {
    let mut builder = Fingerprint::builder("batch");
    builder.count(items.len());
    for item in items {
        match item {
            Ok(item) => {
                builder.text(item.id.as_str()).text(item.fields.as_str());
                let op_id = item.op_id.as_ref().map(OpId::as_str);
                builder.optional(op_id).number(item.n.unwrap_or(0)).number(item.hash);
                builder.number(item.base_version.number());
            }
            Err(bad) => {
                builder.number(bad.hash);
            }
        }
    }
    builder.finish()
}

/// Checks items against kinds and rights.
pub(crate) struct Gate<'a> {
    pub(crate) catalogue: &'a Catalogue,
    pub(crate) own: &'a HashMap<KindName, PolicyView>,
    pub(crate) identity: &'a Identity,
}

impl Gate<'_> {
    /// Makes the submission of a batch, with what its answer repeats and whether a resend would be recognised; nothing
    /// without a device.
    pub(crate) fn submission(&self, push: Push, correlation: &str) -> Option<(Submission, Vec<Echo>, bool)> {
        let Push { data, sync_id, epoch, mut once, seed } = push;
        let (device, key) = self.identity.device.as_ref()?;
        let batch = sync_id.zip(data.batch_seq);
        if let Some((sync_id, number)) = batch.clone().filter(|_| !data.items.is_empty()) {
            let fingerprint = print_of(&data.items);
            let key = OnceKey::Batch { device: *device, sync_id, number };
            once.push(Once { key, fingerprint, window_ms: BATCH_MS });
        }
        let batch_key = once.first().map(|once| match &once.key {
            OnceKey::Request { key, .. } => format!("key {key}"),
            OnceKey::Batch { sync_id, number, .. } => format!("batch {number} {sync_id}"),
        });
        let source = Source { device: key, batch_key: batch_key.as_deref(), seed, sent_ms: None };
        let mut policies: Vec<(KindName, Result<Arc<Policy>, ItemCode>)> = Vec::new();
        let mut recognised = true;
        let entries: Vec<Entry> = data
            .items
            .into_iter()
            .enumerate()
            .map(|(index, item)| match item {
                Ok(item) => match self.catalogue.telemetry(&item.kind) {
                    Some((rule, telemetry)) => self.sample_of_item(item, (rule, telemetry), source, index),
                    None => {
                        recognised &= batch_key.is_some() || item.op_id.is_some() || item.n.is_some();
                        self.entry(item, &mut policies)
                    }
                },
                Err(bad) => self.sample(*bad, source, index, &mut recognised),
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
            once,
            correlation: correlation.into(),
            entries,
            events: Vec::new(),
        };
        Some((submission, echoes, recognised))
    }

    /// Makes the entry of an element that is no change of a record: of a sample, if its kind is one of telemetry.
    fn sample(&self, mut bad: BadItem, source: Source<'_>, index: usize, recognised: &mut bool) -> Entry {
        let found = bad.kind.as_ref().and_then(|kind| self.catalogue.telemetry(kind));
        let (Some((rule, telemetry)), Some(sample), Some(kind)) =
            (found, bad.sample.take(), bad.kind.clone())
        else {
            return refused(bad);
        };
        if !rule.may_write(&self.identity.roles) {
            let errors = vec![explain(ItemCode::Forbidden)];
            return Entry { task: Task::Refuse(ItemCode::Forbidden, errors), ..refused(bad) };
        }
        let op_id = bad.op_id.as_ref().map(OpId::as_str);
        *recognised &=
            source.batch_key.is_some() || sample.id.is_some() || op_id.is_some() || !telemetry.key.is_empty();
        let entry = source.entry(&kind, telemetry, *sample, index, op_id);
        Entry { group: bad.group, ..entry }
    }

    /// Makes the entry of an item of a telemetry kind that names an operation: only making a sample is one.
    fn sample_of_item(
        &self,
        item: Item,
        (rule, telemetry): (&KindRule, &Arc<TelemetryRule>),
        source: Source<'_>,
        index: usize,
    ) -> Entry {
        let refuse = |code, error: FieldError| Task::Refuse(code, vec![error]);
        let refusal = if item.op != ItemOp::Create || item.intents.is_some() {
            let message = "samples of telemetry are only ever made".into();
            let error = FieldError { code: "invalid".into(), pointer: "/op".into(), message };
            Some(refuse(ItemCode::Invalid, error))
        } else if !rule.may_write(&self.identity.roles) {
            Some(refuse(ItemCode::Forbidden, explain(ItemCode::Forbidden)))
        } else {
            None
        };
        let at_ms = item.hlc.map(driftline_model::Hlc::millis);
        let sample = Sample { id: Some(item.id), hash: item.hash, fields: item.fields, at_ms };
        let entry = source.entry(&item.kind, telemetry, sample, index, None);
        match refusal {
            Some(task) => Entry { task, group: item.group, ..entry },
            None => Entry { group: item.group, ..entry },
        }
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
                    announce: rule.and_then(|rule| announcing(rule.announce.as_ref(), None)),
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
    let applied = receipt.answered == Answered::Applied;
    for (index, (result, echo)) in receipt.results.into_iter().zip(echoes).enumerate() {
        if !result.duplicate && applied {
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
