//! The engine: rights, policies and cursors over a store.

mod devices;
mod events;
mod ingest;
mod live;
mod monitoring;
mod notices;
mod once;
mod pending;
mod policies;
mod publish;
mod records;
mod review;
mod telemetry;
mod uploads;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use driftline_model::{
    DeviceId, DeviceKey, Epoch, KindName, Limits, RecordId, ScopeName, Seq, SyncId, TenantId, UserId,
};
use driftline_protocol::{
    Ack, Cursor, CursorKey, ErrorCode, Fault, Missing, Phase, RequestServerData, Resume, ResyncReason,
    ResyncRequired, ServerData, SessionInfo, StartSync, SyncData, SyncRequest, encode_changes, format_millis,
};
use driftline_realtime::TopicsError;

use crate::catalogue::{Catalogue, canonical_name};
use crate::group::{Once, Task};
use crate::hub::{Hub, Subscription};
use crate::policies::doc_of_policy;
use crate::ports::{Clock, Head, Identity, Observer, Row, Store, StoreError};
use crate::presence::Presence;
use crate::pull::{PullFault, Step};
use crate::push::{Gate, Push, answer};
use crate::rate::{UserMeter, Users};
use crate::rules::EventRules;
use crate::session::covers;
use crate::streams::{Streams, UnderWay};
use crate::work::{Done, Prepared, PreparedPush, Pulled, Started, SyncAnswer, SyncFault, Work};

pub use devices::{DEVICE_ROLE, hash_digest};
pub use events::{Missed, MissedPage};
use ingest::told_of;
pub use ingest::{Ingest, PreparedIngest};
pub(crate) use ingest::{judged, reused};
pub use monitoring::Monitored;
pub use notices::NoticePage;
use once::Memory;
pub use publish::{Authority, Outcome};
pub use telemetry::SampleWish;
pub(crate) use telemetry::is_staff;
pub use uploads::{
    ChunkKept, ChunkUpload, Finalized, NewUpload, OpenedUpload, StreamUpload, Streaming, Swept, UploadRight,
    UploadStatus,
};

/// The sync engine over one store.
pub struct Engine<S, O> {
    store: S,
    hub: Arc<Hub>,
    catalogue: Catalogue,
    limits: Arc<Limits>,
    users: Users,
    /// Which topics there are, and who may have them.
    rules: Arc<EventRules>,
    /// Drafts that wait to be published. The lock is held for one of them.
    pending: Mutex<pending::Pending>,
    cursor_key: CursorKey,
    observer: O,
    windows: Windows,
    /// Answers that were given under keys.
    memory: Memory,
    /// Tells how long requests took; none: they took no time.
    clock: Option<Arc<dyn Clock>>,
    under_way: UnderWay,
    /// What is known of connected devices. The lock is held for one look-up or change.
    presence: Mutex<Presence>,
    /// What streams of telemetry are like. The lock is held while one message is counted or all streams are looked at.
    streams: Mutex<Streams>,
    /// Where uploads go; none: none are taken.
    uploads: Option<uploads::Uploads>,
}

/// For how long answers are remembered under the keys of requests, in milliseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Windows {
    /// Of tenants without a time of their own.
    pub default_ms: u64,
    /// Of single tenants.
    pub tenants: BTreeMap<TenantId, u64>,
}

impl Default for Windows {
    fn default() -> Self {
        Self { default_ms: driftline_idempotency::WINDOW_MS_DEFAULT, tenants: BTreeMap::new() }
    }
}

impl Windows {
    fn of(&self, tenant: &TenantId) -> u64 {
        let own = self.tenants.get(tenant).copied().unwrap_or(self.default_ms);
        own.min(driftline_idempotency::WINDOW_MS_MAX)
    }
}

impl<S, O> std::fmt::Debug for Engine<S, O> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// Makes cursors for one reader.
#[derive(Debug, Clone)]
pub struct Sealer {
    key: CursorKey,
    tenant: TenantId,
    kinds: Vec<KindName>,
    scopes: Vec<ScopeName>,
    epoch: Epoch,
}

impl Sealer {
    /// Seals for another epoch from now on.
    pub(crate) fn begin(&mut self, epoch: Epoch) {
        self.epoch = epoch;
    }

    /// Seals the cursor of a reader who is caught up at a place.
    #[must_use]
    pub fn caught_up(&self, at: Seq) -> String {
        let cursor = Cursor {
            epoch: self.epoch,
            kinds: self.kinds.clone(),
            scopes: self.scopes.clone(),
            phase: Phase::Log(Resume { from: at, at }),
        };
        self.key.seal(&self.tenant, &cursor)
    }
}

/// A page of records.
#[derive(Debug, Clone)]
pub struct RecordPage {
    /// The records.
    pub rows: Vec<Row>,
    /// Where the next page starts.
    pub next: Option<RecordId>,
}

/// What is told of a store that failed.
pub(crate) fn unavailable(error: &StoreError) -> Fault {
    match error {
        StoreError::Unavailable(_) => {
            Fault::new(ErrorCode::StoreUnavailable, "the database did not answer: send again")
        }
        StoreError::Corrupt(_) => Fault::new(ErrorCode::HandlerError, "the stored data could not be read"),
    }
}

impl<S: Store, O: Observer> Engine<S, O> {
    /// Puts an engine together. The hub is the one that the store reports its commits to.
    pub fn new(store: S, hub: Arc<Hub>, catalogue: Catalogue, limits: Limits, observer: O) -> Self {
        let cursor_key = CursorKey::new(&store.cursor_secret());
        let limits = Arc::new(limits);
        let users = Users::new(&limits);
        let (rules, mut catalogue) = (EventRules::default(), catalogue);
        let rules = rules.with_announced(&catalogue.announced()).unwrap_or_default();
        catalogue.settle(&rules);
        Self {
            store,
            hub,
            rules: Arc::new(rules),
            pending: Mutex::default(),
            catalogue,
            limits,
            users,
            cursor_key,
            observer,
            windows: Windows::default(),
            memory: Memory::default(),
            clock: None,
            under_way: UnderWay::default(),
            presence: Mutex::default(),
            streams: Mutex::default(),
            uploads: None,
        }
    }

    /// Sets the clock by which the time of requests is measured.
    #[must_use]
    pub fn with_clock(self, clock: Arc<dyn Clock>) -> Self {
        Self { clock: Some(clock), ..self }
    }

    /// Sets for how long answers are remembered under keys.
    #[must_use]
    pub fn with_windows(self, windows: Windows) -> Self {
        Self { windows, ..self }
    }

    /// Sets which topics there are, and who may have them.
    ///
    /// # Errors
    /// Too many rules, with those that kinds need which announce.
    pub fn with_rules(mut self, rules: EventRules) -> Result<Self, TopicsError> {
        let rules = rules.with_announced(&self.catalogue.announced())?;
        self.catalogue.settle(&rules);
        Ok(Self { rules: Arc::new(rules), ..self })
    }

    /// Lets whoever enters without a token listen to these topics, and to no others.
    #[must_use]
    pub fn with_anonymous(self, topics: Vec<Box<str>>) -> Self {
        let rules = EventRules::clone(&self.rules).with_anonymous(topics);
        Self { rules: Arc::new(rules), ..self }
    }

    /// Returns which topics there are, and who may have them.
    pub fn rules(&self) -> &EventRules {
        &self.rules
    }

    /// Lifts rates and admission, for measuring, as [`Limits::lifted`] does. It is done before anybody is let in: who
    /// was counted is forgotten.
    #[must_use]
    pub fn lift_limits(self) -> Self {
        let limits = Arc::new(self.limits.as_ref().clone().lifted());
        let users = Users::new(&limits);
        Self { limits, users, ..self }
    }

    /// Returns the limits in force.
    pub fn limits(&self) -> &Arc<Limits> {
        &self.limits
    }

    /// Returns what counts a user's messages, requests and connections; all of one user share it. A user without
    /// connections is forgotten when the buckets are full again.
    pub fn meter(&self, tenant: &TenantId, user: &UserId, now_ms: u64) -> Arc<UserMeter> {
        self.users.meter(tenant, user, now_ms)
    }

    /// Returns the store.
    pub fn store(&self) -> &S {
        &self.store
    }

    /// Finds the numbers of an authenticated user and device, and the scopes that the user reads and writes.
    ///
    /// `groups` are the user's claims that may name groups, each with one value; of one claim there may be several.
    /// Only those count that a declared kind takes its scope from.
    ///
    /// # Errors
    /// `STORE_UNAVAILABLE`; `VALIDATION_ERROR` for the name of a device that begins with `$`, which is the server's.
    pub async fn identify(
        &self,
        tenant_id: TenantId,
        user: UserId,
        device: Option<DeviceId>,
        roles: Vec<Box<str>>,
        groups: &[(Box<str>, Box<str>)],
    ) -> Result<Identity, Fault> {
        let tenant = self.store.tenant(&tenant_id).await.map_err(|error| unavailable(&error))?;
        let device = match device {
            None => None,
            Some(device) if device.as_str().starts_with('$') => {
                return Err(Fault::new(ErrorCode::ValidationError, "a device's name does not begin with $"));
            }
            Some(device) => {
                let key = DeviceKey::new(&user, &device);
                let number = self.store.device(tenant, &key).await.map_err(|error| unavailable(&error))?;
                Some((number, key))
            }
        };
        let mut scopes = vec![ScopeName::tenant(), ScopeName::owner(&user)];
        for claim in self.catalogue.group_claims() {
            let own = groups.iter().filter(|(name, _)| **name == *claim);
            // The scope is named by the canonical texts of field and value, as the records' own is.
            let (field, value) = (canonical_name(claim), canonical_name);
            scopes.extend(own.filter_map(|(_, group)| ScopeName::group(&field, &value(group)).ok()));
        }
        scopes.sort();
        scopes.dedup();
        let reviews = self.catalogue.reviewable(&roles);
        let claims = groups.to_vec();
        Ok(Identity { tenant_id, tenant, user, roles, claims, device, scopes, reviews })
    }

    /// Reads the head of the identity's tenant.
    ///
    /// # Errors
    /// `STORE_UNAVAILABLE`.
    pub async fn head(&self, identity: &Identity) -> Result<Head, Fault> {
        self.store.head(identity.tenant).await.map_err(|error| unavailable(&error))
    }

    /// Returns how often the store voided numbers of tenants and devices, as [`Hub::numbering`] says. An [`Identity`]
    /// that was asked for before it rose is to be asked for again.
    pub fn numbering(&self) -> u64 {
        self.hub.numbering()
    }

    /// Starts to listen to the identity's tenant. It ends when the tenant's number is voided.
    pub fn subscribe(&self, identity: &Identity) -> Subscription {
        self.hub.subscribe(identity.tenant)
    }

    /// Does what a session asked for: [`Engine::prepare`] and [`Engine::finish`] in one.
    ///
    /// Dropping the future gives up the answer; a batch that was handed to the store is applied all the same.
    pub async fn perform(&self, identity: &Identity, work: Work, now_ms: u64, correlation: &str) -> Done {
        let prepared = self.prepare(identity, work, now_ms, correlation).await;
        self.finish(identity, prepared, now_ms).await
    }

    /// Does the part of a work that may wait before the store gets it.
    ///
    /// A shell prepares the works of one session one after the other, so that batches reach the store in the order in
    /// which they were sent, whatever their preparation waited for. Dropping the future applies nothing.
    pub async fn prepare(&self, identity: &Identity, work: Work, now_ms: u64, correlation: &str) -> Prepared {
        match work {
            Work::Start { sync_id, request } => Prepared::Start { sync_id, request },
            Work::Pull { request } => Prepared::Pull { request },
            Work::Checksums { request } => Prepared::Checksums { request },
            Work::Resolve { request, once } => {
                Prepared::Resolve { request, once, correlation: correlation.to_owned() }
            }
            Work::Ingest { ingest } => match self.prepare_ingest(identity, *ingest, now_ms, correlation) {
                Ok(prepared) => Prepared::Ingest(Box::new(prepared)),
                Err(fault) => Prepared::Failed(Done::Ingested(Err(fault))),
            },
            Work::Aggregate { batch, once } => {
                Prepared::Aggregate { batch, once, correlation: correlation.to_owned() }
            }
            Work::Report { status } => {
                Prepared::Failed(Done::Noted(self.report(identity, &status, now_ms, correlation).await))
            }
            Work::Subscribe { listener, wanted } => {
                let answer = self.subscribe_events(identity, &listener, &wanted, now_ms).await;
                Prepared::Failed(Done::Subscribed(answer))
            }
            Work::Missed { listener, missed } => Prepared::Missed { listener, missed },
            Work::Acknowledge { last } => {
                Prepared::Failed(Done::Acknowledged(self.acknowledge_events(identity, last, now_ms).await))
            }
            // Whose device it is may have to be looked up: events reach the store in the order of their asking all the same.
            Work::Publish { publish, once, seed } => {
                match self.drafted(identity, *publish, Authority::Topics, seed, now_ms).await {
                    Ok(draft) => {
                        let draft = Box::new(draft);
                        Prepared::Publish { draft, once, correlation: correlation.to_owned() }
                    }
                    Err(fault) => Prepared::Failed(Done::Published(Err(fault))),
                }
            }
            Work::Push { sync_id, data, epoch, once, seed } => {
                let push = Push { data, sync_id: Some(sync_id), epoch, once, seed };
                match self.prepare_push(identity, push, now_ms, correlation).await {
                    Ok(push) => Prepared::Push(Box::new(push)),
                    Err(fault) => Prepared::Failed(Done::Pushed(Err(fault))),
                }
            }
        }
    }

    /// Does the rest of a work. A batch is handed to the store by the first poll of the future.
    pub async fn finish(&self, identity: &Identity, prepared: Prepared, now_ms: u64) -> Done {
        match prepared {
            Prepared::Push(push) => Done::Pushed(self.finish_push(identity, *push, now_ms).await),
            Prepared::Start { sync_id, request } => {
                Done::Started(self.start(identity, sync_id, request, now_ms).await.map(Box::new))
            }
            Prepared::Pull { request } => Done::Pulled(self.pull_counted(identity, request).await),
            Prepared::Checksums { request } => Done::Summed(self.checksums(identity, request).await),
            Prepared::Resolve { request, once, correlation } => {
                let resolved = self.resolve_once(identity, *request, once, now_ms, &correlation).await;
                Done::Resolved(resolved.map(|(resolved, _)| Box::new(resolved)))
            }
            Prepared::Ingest(prepared) => {
                Done::Ingested(self.finish_ingest(identity, *prepared, now_ms).await)
            }
            Prepared::Aggregate { batch, once, correlation } => {
                Done::Noted(self.aggregate(identity, *batch, once, now_ms, &correlation).await)
            }
            Prepared::Missed { listener, missed } => {
                Done::Missed(self.missed(identity, &listener, &missed).await.map(Box::new))
            }
            Prepared::Publish { draft, once, correlation } => {
                let outcome = self.publish_draft(identity, *draft, once, now_ms, &correlation).await;
                Done::Published(outcome.map(Outcome::ack))
            }
            Prepared::Failed(done) => done,
        }
    }

    async fn start(
        &self,
        identity: &Identity,
        sync_id: SyncId,
        request: StartSync,
        now_ms: u64,
    ) -> Result<Started, Fault> {
        let store_fault = |error: StoreError| unavailable(&error);
        let mut head = self.store.head(identity.tenant).await.map_err(store_fault)?;
        let (cursor, mut resync) = self.judge_cursor(identity, request.cursor.as_deref(), &mut head).await?;
        if request.epoch.is_some_and(|epoch| epoch != head.epoch) {
            resync = Some(ResyncRequired::new(ResyncReason::EpochChanged, head.epoch));
        }
        let progress = match &identity.device {
            Some((device, _)) => {
                self.store.session(identity.tenant, *device, &sync_id).await.map_err(store_fault)?
            }
            None => None,
        };
        let expired = progress
            .as_ref()
            .is_some_and(|progress| progress.last_ms + self.limits.session_s * 1000 < now_ms);
        if request.resume && expired {
            return Err(Fault::new(
                ErrorCode::SyncSessionExpired,
                "the sync session was idle for too long: start another",
            ));
        }
        let own = self.own_policies(identity, now_ms).await?;
        let policies = own
            .iter()
            .filter(|(kind, _)| request.data_types.is_empty() || request.data_types.contains(kind))
            .map(|(kind, view)| (kind.to_string(), view.doc.clone()))
            .chain(
                self.catalogue
                    .records()
                    .filter(|(kind, _)| {
                        !own.contains_key(*kind)
                            && (request.data_types.is_empty() || request.data_types.contains(kind))
                    })
                    .map(|(kind, rule)| (kind.to_string(), doc_of_policy(&rule.policy))),
            )
            .collect();
        if request.acked_n.is_some_and(|acked_n| acked_n > 0) {
            self.acknowledge(identity, request.acked_n).await?;
        }
        let kinds = self.catalogue.readable(&request.data_types, &identity.roles);
        let given =
            request.cursor.as_ref().and_then(|text| self.cursor_key.open(&identity.tenant_id, text).ok());
        let covered = given.is_none_or(|cursor| {
            let same_scopes = cursor.scopes == sorted(&identity.scopes);
            same_scopes && covers(&cursor.kinds, kinds.as_deref().unwrap_or_default())
        });
        Ok(Started {
            covered,
            info: SessionInfo {
                sync_id: sync_id.to_string(),
                epoch: head.epoch.to_string(),
                seq: head.seq.number(),
                cursor: cursor.filter(|_| resync.is_none()),
                pull_needed: !covered && resync.is_none(),
                acked_batches: if expired {
                    Vec::new()
                } else {
                    progress.map(|progress| progress.batches).unwrap_or_default()
                },
                max_batch_items: self.limits.batch_items as u64,
                max_message_bytes: self.limits.message_bytes as u64,
                policies,
                expires_at: format_millis(now_ms + self.limits.session_s * 1000),
            },
            seq: head.seq,
            epoch: head.epoch,
            resync,
            sealer: self.sealer(identity, kinds.clone().unwrap_or_default(), &head),
            kinds,
        })
    }

    fn sealer(&self, identity: &Identity, kinds: Vec<KindName>, head: &Head) -> Sealer {
        Sealer {
            key: self.cursor_key.clone(),
            tenant: identity.tenant_id.clone(),
            kinds,
            scopes: sorted(&identity.scopes),
            epoch: head.epoch,
        }
    }

    /// Judges the cursor that a session starts with.
    async fn judge_cursor(
        &self,
        identity: &Identity,
        cursor: Option<&str>,
        head: &mut Head,
    ) -> Result<(Option<String>, Option<ResyncRequired>), Fault> {
        let Some(text) = cursor else { return Ok((None, None)) };
        let reason = match self.cursor_key.open(&identity.tenant_id, text) {
            Err(_) => Some(ResyncReason::CursorExpired),
            Ok(cursor) => match checked(cursor).check(head) {
                Ok(()) => None,
                Err(PullFault::Ahead(left)) => {
                    *head = self
                        .store
                        .begin_epoch(identity.tenant, left)
                        .await
                        .map_err(|error| unavailable(&error))?;
                    Some(ResyncReason::EpochChanged)
                }
                Err(PullFault::EpochChanged(_)) => Some(ResyncReason::EpochChanged),
                Err(_) => Some(ResyncReason::CursorExpired),
            },
        };
        match reason {
            None => Ok((Some(text.to_owned()), None)),
            Some(reason) => Ok((None, Some(ResyncRequired::new(reason, head.epoch)))),
        }
    }

    async fn prepare_push(
        &self,
        identity: &Identity,
        push: Push,
        now_ms: u64,
        correlation: &str,
    ) -> Result<PreparedPush, Fault> {
        let own = self.own_policies(identity, now_ms).await?;
        let gate = Gate { catalogue: &self.catalogue, own: &own, identity };
        let batch_seq = push.data.batch_seq;
        let prepared = gate
            .submission(push, correlation)
            .ok_or_else(|| Fault::new(ErrorCode::MissingDeviceId, "a push needs a device"))?;
        let (submission, echoes, recognised) = prepared;
        Ok(PreparedPush { submission, echoes, batch_seq, recognised })
    }

    async fn finish_push(&self, identity: &Identity, push: PreparedPush, now_ms: u64) -> Result<Ack, Fault> {
        let PreparedPush { submission, echoes, batch_seq, recognised } = push;
        let samples = submission.entries.iter().any(|entry| matches!(entry.task, Task::Append(_)));
        let told: Vec<_> =
            if samples { submission.entries.iter().map(told_of).collect() } else { Vec::new() };
        let receipt = self.commit(identity, submission, now_ms).await.map_err(|error| unavailable(&error))?;
        let replayed = judged(receipt.answered)?;
        if samples && !replayed {
            self.tell_of_samples(identity, told, &receipt, (now_ms, now_ms));
        }
        let mut ack = answer(receipt, echoes, batch_seq, &self.observer);
        ack.replayed |= replayed;
        ack.resend_recognised = (!recognised).then_some(false);
        Ok(ack)
    }

    /// Takes over which answers a device has heard, as it said when it opened a session.
    async fn acknowledge(&self, identity: &Identity, acked_n: Option<u64>) -> Result<(), Fault> {
        let own = std::collections::HashMap::new();
        let gate = Gate { catalogue: &self.catalogue, own: &own, identity };
        let data = SyncData { acked_n, ..SyncData::default() };
        let push = Push { data, sync_id: None, epoch: None, once: Vec::new(), seed: 0 };
        let Some((submission, ..)) = gate.submission(push, "") else { return Ok(()) };
        self.store.commit(submission).await.map(|_| ()).map_err(|error| unavailable(&error))
    }

    /// Reads a page.
    ///
    /// # Errors
    /// [`PullFault`] when the cursor is of no use, or the store is away.
    pub async fn pull(
        &self,
        identity: &Identity,
        request: RequestServerData,
    ) -> Result<ServerData, PullFault> {
        self.pull_counted(identity, request).await.map(|pulled| pulled.data)
    }

    async fn pull_counted(
        &self,
        identity: &Identity,
        request: RequestServerData,
    ) -> Result<Pulled, PullFault> {
        if let Some(range) = request.range {
            return self.range(identity, range, request.cursor).await;
        }
        let step = self.step(identity, &request).await?;
        self.page(identity, step, request.limit).await
    }

    async fn step(
        &self,
        identity: &Identity,
        request: &RequestServerData,
    ) -> Result<Option<Step>, PullFault> {
        let cursor = match &request.cursor {
            None => None,
            Some(text) => match self.cursor_key.open(&identity.tenant_id, text) {
                Ok(cursor) => Some(cursor),
                Err(_) => {
                    return Err(PullFault::CursorInvalid(self.store.head(identity.tenant).await?.epoch));
                }
            },
        };
        let wanted = match (&request.data_types, &cursor) {
            (Some(kinds), _) => kinds.clone(),
            (None, Some(cursor)) => cursor.kinds.clone(),
            (None, None) => Vec::new(),
        };
        Ok(self
            .catalogue
            .readable(&wanted, &identity.roles)
            .map(|kinds| Step::new(cursor, kinds, &identity.scopes)))
    }

    async fn page(
        &self,
        identity: &Identity,
        step: Option<Step>,
        limit: Option<u64>,
    ) -> Result<Pulled, PullFault> {
        let Some(step) = step else { return self.empty_page(identity).await };
        let wanted = limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX);
        let rows = wanted.clamp(1, self.limits.page_rows);
        let page = self.store.page(step.query(identity, rows, self.limits.page_bytes)).await?;
        let head = page.head;
        match step.check(&head) {
            Err(PullFault::Ahead(left)) => {
                let head = self.store.begin_epoch(identity.tenant, left).await?;
                return Err(PullFault::EpochChanged(head.epoch));
            }
            checked => checked?,
        }
        let told = step.tell(page);
        let data = ServerData {
            changes: encode_changes(&told.changes),
            cursor: self.cursor_key.seal(&identity.tenant_id, &told.cursor),
            seq: head.seq,
            hlc: head.hlc,
            has_more: told.has_more,
            checksums: told.checksums,
            progress: told.progress,
            range: None,
            epoch_seq: told.epoch_seq,
        };
        Ok(Pulled { data, rows: told.changes.len() as u64 })
    }

    /// A reader who may read none of the wanted kinds is told nothing. Its cursor stands before everything, so that
    /// a right that it gets later begins with a snapshot.
    async fn empty_page(&self, identity: &Identity) -> Result<Pulled, PullFault> {
        let head = self.store.head(identity.tenant).await?;
        let cursor = self.beginning(identity, &head);
        Ok(Pulled { data: without_rows(cursor, &head, false), rows: 0 })
    }

    /// Pushes and pulls in one request. The cursor is checked first; if it is of no use, nothing is applied.
    ///
    /// `once` is what the request is remembered by, `seed` a random number for names of samples that nobody else gave.
    /// What is remembered is the answer to the batch; the page is read again.
    ///
    /// # Errors
    /// [`SyncFault`]; nothing was applied.
    pub async fn sync(
        &self,
        identity: &Identity,
        request: SyncRequest,
        (once, seed): (Option<Once>, u128),
        now_ms: u64,
        correlation: &str,
    ) -> Result<SyncAnswer, SyncFault> {
        let mut head = self.store.head(identity.tenant).await.map_err(PullFault::from)?;
        if request.epoch.is_some_and(|epoch| epoch != head.epoch) {
            return Err(PullFault::EpochChanged(head.epoch).into());
        }
        if let Some(text) = &request.pull.cursor {
            let cursor = self
                .cursor_key
                .open(&identity.tenant_id, text)
                .map_err(|_| PullFault::CursorInvalid(head.epoch))?;
            match checked(cursor).check(&head) {
                Err(PullFault::Ahead(left)) => {
                    head = self.store.begin_epoch(identity.tenant, left).await.map_err(PullFault::from)?;
                    return Err(PullFault::EpochChanged(head.epoch).into());
                }
                checked => checked?,
            }
        }
        // The bases are of the epoch that was just checked; another one at the commit applies nothing.
        let epoch = Some(head.epoch);
        let once =
            once.or_else(|| self.once_of(identity, "sync", request.sync_id.as_ref(), request.key.as_deref()));
        let push = Push {
            data: request.push,
            sync_id: request.sync_id,
            epoch,
            once: once.into_iter().collect(),
            seed,
        };
        let push = self.prepare_push(identity, push, now_ms, correlation).await?;
        let ack = self.finish_push(identity, push, now_ms).await?;
        // The batch is applied: whatever the pull meets with now, the device must hear of it.
        let data = match self.pull(identity, request.pull.clone()).await {
            Ok(data) => data,
            Err(_) => self.same_place(identity, request.pull.cursor, &head),
        };
        Ok(SyncAnswer { ack, data })
    }

    /// A page without rows that leaves the reader where it is.
    fn same_place(&self, identity: &Identity, cursor: Option<String>, head: &Head) -> ServerData {
        let cursor = cursor.unwrap_or_else(|| self.beginning(identity, head));
        without_rows(cursor, head, true)
    }

    /// A cursor that stands before everything.
    fn beginning(&self, identity: &Identity, head: &Head) -> String {
        let then = Resume { from: head.seq, at: head.seq };
        let missing = Missing { all: true, ..Missing::default() };
        let cursor = Cursor {
            epoch: head.epoch,
            kinds: Vec::new(),
            scopes: sorted(&identity.scopes),
            phase: Phase::Snapshot { after: None, missing, sent: 0, then },
        };
        self.cursor_key.seal(&identity.tenant_id, &cursor)
    }
}

/// A step that only judges a cursor's place.
fn checked(cursor: Cursor) -> Step {
    let (kinds, scopes) = (cursor.kinds.clone(), cursor.scopes.clone());
    Step::new(Some(cursor), kinds, &scopes)
}

fn sorted(scopes: &[ScopeName]) -> Vec<ScopeName> {
    let mut scopes = scopes.to_vec();
    scopes.sort();
    scopes
}

fn without_rows(cursor: String, head: &Head, has_more: bool) -> ServerData {
    ServerData {
        changes: "[]".into(),
        cursor,
        seq: head.seq,
        hlc: head.hlc,
        has_more,
        checksums: Vec::new(),
        progress: None,
        range: None,
        epoch_seq: None,
    }
}

fn not_found() -> Fault {
    Fault::new(ErrorCode::NotFound, "there is no such thing here")
}
