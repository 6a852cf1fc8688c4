//! What is set aside for a reviewer: opened, joined, decided once, and told to those whom it concerns.

use std::sync::Arc;

use driftline_conflict::{Policy, ReviewReason, Strategy, Winner};
use driftline_engine::{
    Catalogue, ConflictQuery, ConflictRow, ConflictStatus, Engine, Hub, Identity, KindRule, NullObserver,
    Page, PageQuery, Place, Receipt, Row, Store, SubmissionResult, Subscription, conflicts_kind,
    policy_of_doc,
};
use driftline_model::{ConflictId, DeviceId, Intents, KindName, Limits, Object, RecordId, TenantId, UserId};
use driftline_protocol::{ChangeKind, ErrorCode, ItemCode, PolicyDoc, Resolution, ResolveConflict, row_sum};
use driftline_storage::MemoryStore;
use driftline_testkit::{
    Author, Draft, FixedClock, SeededRandom, World, block_on, create, delete, object, patch,
};

const TICKETS: &str = r#"{"strategy":"preserve_escalation","fields":{"status":{"rule":"ordered",
    "order":["closed","open","escalated"],"urgent":"escalated"}}}"#;

struct Ward {
    engine: Engine<MemoryStore, NullObserver>,
    ada: Author,
    bob: Author,
    reviewer: Identity,
    /// Heard from the beginning.
    commits: Subscription,
    policy: Arc<Policy>,
}

impl Ward {
    /// A tenant with two phones, a reviewer, and the kind `note` under one policy.
    fn new(policy: &Policy) -> Self {
        let policy = Arc::new(policy.clone());
        let hub = Arc::new(Hub::new(64));
        let clock = Arc::new(FixedClock::new(World::BEGIN_MS));
        let random = Arc::new(SeededRandom::new(1));
        let store = MemoryStore::new(clock, random, hub.clone(), Limits::default());
        let rule = KindRule { policy: Arc::clone(&policy), ..KindRule::default() };
        let kinds = Catalogue::new([(note(), rule)].into());
        let engine = Engine::new(store, hub, kinds, Limits::default(), NullObserver);
        let (tenant, user) = (TenantId::new("acme").expect("a name"), UserId::text("rita").expect("a name"));
        let tablet = Some(DeviceId::new("tablet").expect("a name"));
        let reviewer = block_on(engine.identify(tenant, user, tablet, vec!["reviewer".into()], &[]))
            .expect("the store answers");
        let commits = engine.subscribe(&reviewer);
        let ada = Author::join(engine.store(), "acme", "ada", "phone");
        let bob = Author::join(engine.store(), "acme", "bob", "phone");
        Self { engine, ada, bob, reviewer, commits, policy }
    }

    fn manual() -> Self {
        Self::new(&Policy { strategy: Strategy::Manual, version: 3 })
    }

    fn escalation() -> Self {
        Self::new(&policy_of_doc(&PolicyDoc::parse(TICKETS).expect("a document"), 1).expect("a policy"))
    }

    fn push(&self, author: &Author, drafts: impl IntoIterator<Item = Draft>) -> Receipt {
        let drafts = drafts.into_iter().map(|draft| draft.policy(&self.policy));
        block_on(self.engine.store().commit(author.batch(drafts))).expect("a commit")
    }

    fn one(&self, author: &Author, draft: Draft) -> SubmissionResult {
        self.push(author, [draft]).results.remove(0)
    }

    fn record(&self, kind: &KindName, id: &str) -> Option<Row> {
        block_on(self.engine.store().record(self.ada.tenant, kind, &RecordId::new(id).expect("an id")))
            .expect("the store answers")
    }

    fn fields(&self, id: &str) -> String {
        self.record(&note(), id).expect("a record").record.fields.as_str().to_owned()
    }

    fn conflict(&self, conflict_id: &ConflictId) -> ConflictRow {
        block_on(self.engine.store().conflict(self.ada.tenant, conflict_id))
            .expect("a store")
            .expect("a conflict")
    }

    fn open(&self) -> Vec<ConflictRow> {
        let query = ConflictQuery {
            scopes: Vec::new(),
            kinds: Vec::new(),
            id: None,
            device: None,
            open: Some(true),
            after: None,
            rows: 100,
        };
        block_on(self.engine.conflicts(&self.reviewer, query)).expect("the queue")
    }

    fn decide(
        &self,
        conflict_id: &ConflictId,
        resolution: Resolution,
        (fields, version): (&str, Option<u64>),
    ) -> Result<ConflictRow, ErrorCode> {
        let request = ResolveConflict {
            conflict_id: conflict_id.clone(),
            resolution,
            fields: object(fields),
            version: version.map(driftline_model::Seq::new),
        };
        let resolved = block_on(self.engine.resolve(&self.reviewer, request, World::BEGIN_MS, "c-1"));
        resolved.map(|_| self.conflict(conflict_id)).map_err(|fault| fault.code)
    }

    /// Two phones edit a note that both saw; the second edit waits.
    fn disputed(&self) -> ConflictId {
        self.one(&self.ada, create("n1", r#"{"a":0,"b":0}"#));
        self.one(&self.ada, patch("n1", 1, r#"{"a":1}"#));
        let result = self.one(&self.bob, patch("n1", 1, r#"{"a":2,"b":2}"#).op_id("b-1"));
        assert_eq!(result.code, ItemCode::ConflictPending);
        result.conflict_id.expect("a conflict")
    }

    /// The sums that the store keeps are those of the rows that it holds.
    fn check_sums(&self) {
        let query = PageQuery {
            tenant: self.ada.tenant,
            scopes: self.ada.scopes(),
            kinds: Vec::new(),
            place: Place::Key { after: None, only: driftline_engine::Only::All },
            rows: usize::MAX,
            bytes: usize::MAX,
            sums: true,
        };
        let Page { rows, sums, .. } = block_on(self.engine.store().page(query)).expect("the store answers");
        let total = |kind: &KindName| {
            let of_kind = rows.iter().filter(|row| row.kind == *kind);
            let sum = |row: &Row| row_sum(kind, &row.id, row.record.version);
            (of_kind.clone().count() as u64, of_kind.map(sum).fold(0, u64::wrapping_add))
        };
        for sum in &sums {
            assert_eq!((sum.count, sum.sum), total(&sum.kind), "{}", sum.kind);
        }
        assert_eq!(sums.iter().map(|sum| sum.count).sum::<u64>(), rows.len() as u64);
    }
}

fn note() -> KindName {
    KindName::new("note").expect("a name")
}

fn previous(fields: &str) -> Intents {
    Intents { previous: object(fields), ..Intents::default() }
}

#[test]
fn a_conflict_waits_with_both_sides_and_the_base() {
    let ward = Ward::manual();
    let conflict_id = ward.disputed();
    assert_eq!(ward.fields("n1"), r#"{"a":1,"b":0}"#, "the stored record stays as it is");
    let row = ward.conflict(&conflict_id);
    assert_eq!((row.reason, &row.status), (ReviewReason::Manual, &ConflictStatus::Open));
    // What b was is known because nobody changed it since the base; of a only its author could have told.
    let sides = [&row.base, &row.client, &row.server].map(Object::as_str);
    assert_eq!(sides, [r#"{"b":0}"#, r#"{"a":2,"b":2}"#, r#"{"a":1,"b":0}"#]);
    assert_eq!((row.base_version.number(), row.version.number(), row.policy_version), (1, 2, 3));
    assert_eq!((row.device_key.user(), row.n), ("bob", 1));
    assert_eq!(ward.open(), [row]);
    ward.check_sums();
}

#[test]
fn a_conflict_is_a_record_that_phones_sync_until_it_is_decided() {
    let mut ward = Ward::manual();
    let conflict_id = ward.disputed();
    let row = ward.record(&conflicts_kind(), conflict_id.as_str()).expect("a record of the conflict");
    let field = |name: &str| row.record.fields.get(name).map(str::to_owned);
    assert_eq!(field("client").as_deref(), Some(r#"{"a":2,"b":2}"#));
    assert_eq!(field("status").as_deref(), Some(r#""open""#));
    assert_eq!(row.scope.as_str(), "tenant");
    ward.decide(&conflict_id, Resolution::Client, ("{}", None)).expect("decided");
    assert!(ward.record(&conflicts_kind(), conflict_id.as_str()).expect("a tombstone").deleted);
    let mut told = Vec::new();
    while let Some(commit) = ward.commits.try_next() {
        for change in commit.changes.iter().flat_map(|changes| changes.iter()) {
            told.push((change.change.kind.to_string(), change.change.change, change.device.is_some()));
        }
    }
    let conflicts = |change| ("$conflicts".to_owned(), change, false);
    let notes = |change| ("note".to_owned(), change, true);
    let (put, patch, delete) = (ChangeKind::Put, ChangeKind::Patch, ChangeKind::Delete);
    assert_eq!(told, [notes(put), notes(patch), conflicts(put), notes(patch), conflicts(delete)]);
    ward.check_sums();
}

#[test]
fn later_changes_of_the_device_join_the_conflict() {
    let ward = Ward::manual();
    let conflict_id = ward.disputed();
    // Also one that would not be in conflict by itself, and one that its author made after a look at the record.
    let second = ward.one(&ward.bob, patch("n1", 2, r#"{"a":3}"#));
    let third = ward.one(&ward.bob, patch("n1", 1, r#"{"c":9}"#));
    for result in [&second, &third] {
        assert_eq!(result.code, ItemCode::ConflictPending);
        assert_eq!(result.conflict_id.as_ref(), Some(&conflict_id));
        assert!(result.winners.iter().all(|(_, winner)| *winner == Winner::Held));
    }
    let row = ward.conflict(&conflict_id);
    assert_eq!((row.client.as_str(), row.n), (r#"{"a":3,"b":2,"c":9}"#, 3));
    assert_eq!(ward.open().len(), 1);
    // Another device has a conflict of its own.
    let other = ward.one(&ward.ada, patch("n1", 2, r#"{"b":5}"#));
    assert_eq!(other.code, ItemCode::Applied);
    let again = ward.one(&ward.bob, delete("n1", 1));
    assert_eq!((again.code, again.conflict_id.as_ref()), (ItemCode::ConflictPending, Some(&conflict_id)));
    let row = ward.decide(&conflict_id, Resolution::Client, ("{}", Some(ward.version()))).expect("decided");
    assert!(!row.status.is_open());
    assert!(ward.record(&note(), "n1").expect("a tombstone").deleted, "the last wish was a delete");
    ward.check_sums();
}

impl Ward {
    fn version(&self) -> u64 {
        self.record(&note(), "n1").expect("a record").record.version.number()
    }
}

#[test]
fn of_changes_that_overtake_each_other_the_greater_number_counts_field_by_field() {
    let ward = Ward::manual();
    ward.one(&ward.ada, create("n1", r#"{"a":0,"b":0,"c":0}"#));
    ward.one(&ward.ada, patch("n1", 1, r#"{"a":1,"b":1,"c":1}"#));
    let codes =
        [(9, r#"{"c":9}"#), (4, r#"{"a":4,"b":4}"#), (6, r#"{"a":6,"c":6}"#), (5, r#"{"a":5,"b":5}"#)]
            .map(|(n, fields)| ward.one(&ward.bob, patch("n1", 1, fields).n(n)).code);
    assert_eq!(codes, [ItemCode::ConflictPending; 4]);
    let [row] = &ward.open()[..] else { panic!("one conflict") };
    assert_eq!((row.client.as_str(), row.n), (r#"{"a":6,"b":5,"c":9}"#, 9));
    assert_eq!(row.client_ns.as_str(), r#"{"a":6,"b":5,"c":9}"#);
}

#[test]
fn each_resolution_does_what_it_says() {
    let table = [
        (Resolution::Client, "{}", r#"{"a":2,"b":2}"#),
        (Resolution::Server, "{}", r#"{"a":1,"b":0}"#),
        (Resolution::Merged, r#"{"a":7}"#, r#"{"a":7,"b":0}"#),
    ];
    for (resolution, fields, wanted) in table {
        let ward = Ward::manual();
        let conflict_id = ward.disputed();
        let row = ward.decide(&conflict_id, resolution, (fields, None)).expect("decided");
        let ConflictStatus::Resolved { resolution: told, by, .. } = &row.status else { panic!("{row:?}") };
        assert_eq!((*told, &**by), (resolution, "rita"));
        assert_eq!(ward.fields("n1"), wanted, "{resolution:?}");
        assert!(ward.open().is_empty());
        let again = ward.decide(&conflict_id, Resolution::Server, ("{}", None));
        assert_eq!(again, Err(ErrorCode::ConflictAlreadyResolved));
        ward.check_sums();
    }
}

#[test]
fn a_decision_on_an_older_record_is_refused_and_comes_with_the_record() {
    let ward = Ward::manual();
    let conflict_id = ward.disputed();
    ward.one(&ward.ada, patch("n1", 2, r#"{"b":8}"#));
    let request = ResolveConflict {
        conflict_id: conflict_id.clone(),
        resolution: Resolution::Client,
        fields: Object::empty(),
        version: None,
    };
    let resolved = block_on(ward.engine.resolve(&ward.reviewer, request.clone(), World::BEGIN_MS, "c-1"));
    let fault = resolved.expect_err("the record changed");
    assert_eq!(fault.code, ErrorCode::ConflictStale);
    let record = fault.record.expect("the record as it is now");
    assert_eq!(record.fields.as_str(), r#"{"a":1,"b":8}"#);
    assert_eq!(ward.fields("n1"), r#"{"a":1,"b":8}"#, "nothing was decided");
    let row = ward.conflict(&conflict_id);
    assert_eq!((row.server.as_str(), row.status.is_open()), (r#"{"a":1,"b":8}"#, true));
    // The row tells of the record as it is now, so that the next decision is an informed one.
    block_on(ward.engine.resolve(&ward.reviewer, request, World::BEGIN_MS, "c-2")).expect("decided");
    assert_eq!(ward.fields("n1"), r#"{"a":2,"b":2}"#);
    ward.check_sums();
}

#[test]
fn only_reviewers_decide() {
    let ward = Ward::manual();
    let conflict_id = ward.disputed();
    let tenant = TenantId::new("acme").expect("a name");
    let identify = |tenant: &TenantId, user: &str, roles: &[&str]| {
        let roles = roles.iter().map(|role| Box::from(*role)).collect();
        let user = UserId::text(user).expect("a name");
        block_on(ward.engine.identify(tenant.clone(), user, None, roles, &[])).expect("the store answers")
    };
    let request = ResolveConflict {
        conflict_id,
        resolution: Resolution::Server,
        fields: Object::empty(),
        version: None,
    };
    let elsewhere = TenantId::new("other").expect("a name");
    let table = [
        (identify(&tenant, "bob", &[]), ErrorCode::Forbidden),
        (identify(&tenant, "eve", &["staff"]), ErrorCode::ConflictNotFound),
        (identify(&elsewhere, "rita", &["reviewer"]), ErrorCode::ConflictNotFound),
    ];
    for (identity, code) in table {
        let fault = block_on(ward.engine.resolve(&identity, request.clone(), World::BEGIN_MS, "c"));
        assert_eq!(fault.expect_err("no right").code, code, "{}", identity.user);
    }
    assert_eq!(ward.open().len(), 1);
}

#[test]
fn a_resend_hears_of_the_same_conflict() {
    let ward = Ward::manual();
    let conflict_id = ward.disputed();
    let again = ward.one(&ward.bob, patch("n1", 1, r#"{"a":2,"b":2}"#).op_id("b-1"));
    assert!(again.duplicate);
    assert_eq!((again.code, again.conflict_id), (ItemCode::ConflictPending, Some(conflict_id)));
    assert_eq!(again.winners.len(), 2, "{:?}", again.winners);
    assert_eq!(ward.open().len(), 1);
}

#[test]
fn a_group_that_fails_takes_its_conflict_back() {
    let ward = Ward::manual();
    ward.one(&ward.ada, create("n1", r#"{"a":0}"#));
    ward.one(&ward.ada, patch("n1", 1, r#"{"a":1}"#));
    let head = block_on(ward.engine.store().head(ward.ada.tenant)).expect("the store answers");
    let receipt =
        ward.push(&ward.bob, [patch("n1", 1, r#"{"a":2}"#).group("g"), patch("n2", 0, "{}").group("g")]);
    let codes: Vec<_> = receipt.results.iter().map(|result| result.code).collect();
    assert_eq!(codes, [ItemCode::DependencyFailed, ItemCode::Gone]);
    assert!(ward.open().is_empty());
    assert_eq!(block_on(ward.engine.store().head(ward.ada.tenant)).expect("the store answers").seq, head.seq);
    ward.check_sums();
}

#[test]
fn a_stale_deescalation_waits_and_the_rest_of_the_edit_does_not() {
    let ward = Ward::escalation();
    ward.one(&ward.ada, create("n1", r#"{"status":"open","text":"x"}"#));
    let raise = patch("n1", 1, r#"{"status":"escalated"}"#).intents(previous(r#"{"status":"open"}"#));
    assert_eq!(ward.one(&ward.ada, raise).code, ItemCode::Applied);
    let lower = patch("n1", 1, r#"{"status":"closed","text":"done"}"#);
    let result = ward.one(&ward.bob, lower.intents(previous(r#"{"status":"open"}"#)));
    assert_eq!(result.code, ItemCode::Merged);
    assert!(result.winners.contains(&("status".into(), Winner::Held)), "{:?}", result.winners);
    assert_eq!(ward.fields("n1"), r#"{"status":"escalated","text":"done"}"#);
    let row = ward.conflict(&result.conflict_id.expect("a conflict"));
    assert_eq!((row.reason, row.client.as_str()), (ReviewReason::DeescalationHeld, r#"{"status":"closed"}"#));
    let row = ward.decide(&row.conflict_id, Resolution::Client, ("{}", None)).expect("decided");
    assert!(!row.status.is_open());
    assert_eq!(ward.fields("n1"), r#"{"status":"closed","text":"done"}"#);
    let wrong = Ward::escalation();
    wrong.one(&wrong.ada, create("n1", r#"{"status":"escalated"}"#));
    let held = patch("n1", 1, r#"{"status":"open"}"#).intents(previous(r#"{"status":"escalated"}"#));
    let held =
        wrong.one(&wrong.bob, held).conflict_id.expect("held although it had seen it: it did not say so");
    let merged = wrong.decide(&held, Resolution::Merged, (r#"{"status":"nonsense"}"#, None));
    assert_eq!(merged, Err(ErrorCode::ValidationError), "a reviewer's values are checked too");
    ward.check_sums();
}

#[test]
fn a_conflict_follows_its_record_into_another_group() {
    let ward = Ward::manual();
    let groups =
        ["n", "s"].map(|group| driftline_model::ScopeName::group("g", group).expect("the store answers"));
    let push = |author: &Author, draft: Draft| {
        let mut batch = author.batch([draft.policy(&ward.policy).grouped("g")]);
        batch.scopes.extend(groups.clone());
        block_on(ward.engine.store().commit(batch)).expect("a commit").results.remove(0)
    };
    push(&ward.ada, create("n1", r#"{"a":0,"g":"n"}"#));
    push(&ward.ada, patch("n1", 1, r#"{"a":1}"#));
    let conflict_id = push(&ward.bob, patch("n1", 1, r#"{"a":2}"#)).conflict_id.expect("a conflict");
    push(&ward.ada, patch("n1", 2, r#"{"g":"s"}"#));
    push(&ward.bob, patch("n1", 1, r#"{"a":3}"#));
    let record = ward.record(&conflicts_kind(), conflict_id.as_str()).expect("its record");
    assert_eq!((&ward.conflict(&conflict_id).scope, &record.scope), (&groups[1], &groups[1]));
    let query = PageQuery {
        tenant: ward.ada.tenant,
        scopes: vec![groups[0].clone()],
        kinds: Vec::new(),
        place: Place::After(driftline_model::Seq::ZERO),
        rows: 10,
        bytes: usize::MAX,
        sums: true,
    };
    let page = block_on(ward.engine.store().page(query)).expect("the store answers");
    let mut left: Vec<_> = page.left.iter().map(|left| left.kind.as_str()).collect();
    left.sort_unstable();
    assert_eq!((page.rows.len(), left), (0, vec!["$conflicts", "note"]));
    assert!(page.sums.iter().all(|sum| sum.count == 0), "{:?}", page.sums);
}

#[test]
fn a_reviewer_of_the_old_group_loses_the_conflict_with_the_record() {
    let ward = Ward::manual();
    let groups = ["n", "s"].map(|group| driftline_model::ScopeName::group("g", group).expect("a scope"));
    let push = |author: &Author, draft: Draft| {
        let mut batch = author.batch([draft.policy(&ward.policy).grouped("g")]);
        batch.scopes.extend(groups.clone());
        block_on(ward.engine.store().commit(batch)).expect("a commit").results.remove(0)
    };
    push(&ward.ada, create("n1", r#"{"a":0,"g":"n"}"#));
    push(&ward.ada, patch("n1", 1, r#"{"a":1}"#));
    let conflict_id = push(&ward.bob, patch("n1", 1, r#"{"a":2}"#)).conflict_id.expect("a conflict");
    push(&ward.ada, patch("n1", 2, r#"{"g":"s"}"#));
    // It moved with its record, without anybody's touching it.
    assert_eq!(ward.conflict(&conflict_id).scope, groups[1]);
    let request = ResolveConflict {
        conflict_id,
        resolution: Resolution::Client,
        fields: Object::empty(),
        version: None,
    };
    for (group, allowed) in [(&groups[0], false), (&groups[1], true)] {
        let mut reviewer = ward.reviewer.clone();
        reviewer.scopes.push(group.clone());
        let read = block_on(ward.engine.conflict(&reviewer, &request.conflict_id));
        assert_eq!(read.map(|_| ()).map_err(|fault| fault.code).is_ok(), allowed);
        let decided = block_on(ward.engine.resolve(&reviewer, request.clone(), World::BEGIN_MS, "c"));
        match decided {
            Ok(_) => assert!(allowed),
            Err(fault) if allowed => assert_eq!(fault.code, ErrorCode::ConflictStale),
            Err(fault) => assert_eq!((fault.code, fault.record), (ErrorCode::ConflictNotFound, None)),
        }
    }
}

#[test]
fn a_move_into_a_group_that_the_author_does_not_read_is_refused_before_anything_waits() {
    let ward = Ward::manual();
    let groups = ["n", "s"].map(|group| driftline_model::ScopeName::group("g", group).expect("a scope"));
    let push = |author: &Author, draft: Draft, scopes: &[driftline_model::ScopeName]| {
        let mut batch = author.batch([draft.policy(&ward.policy).grouped("g")]);
        batch.scopes.extend_from_slice(scopes);
        block_on(ward.engine.store().commit(batch)).expect("a commit").results.remove(0).code
    };
    push(&ward.ada, create("n1", r#"{"a":0,"g":"n"}"#), &groups);
    push(&ward.ada, patch("n1", 1, r#"{"a":1}"#), &groups);
    let away = r#"{"a":2,"g":"s"}"#;
    assert_eq!(push(&ward.bob, patch("n1", 1, away), &groups[..1]), ItemCode::Forbidden);
    assert!(ward.open().is_empty());
}

#[test]
fn what_joins_a_conflict_passes_the_checks_of_any_change() {
    let ward = Ward::manual();
    let conflict_id = ward.disputed();
    let counted = Intents { increments: vec![("c".into(), 1)], ..Intents::default() };
    let counted = ward.one(&ward.bob, patch("n1", 1, "{}").intents(counted));
    assert_eq!((counted.code, &*counted.errors[0].pointer), (ItemCode::Invalid, "/increments/c"));
    assert_eq!(ward.one(&ward.bob, patch("n1", 99, "{}")).code, ItemCode::ClientAhead);
    ward.one(&ward.ada, delete("n1", 2));
    let version = ward.version();
    assert_eq!(ward.one(&ward.bob, patch("n1", version, r#"{"a":3}"#)).code, ItemCode::Gone);
    assert_eq!(ward.conflict(&conflict_id).client.as_str(), r#"{"a":2,"b":2}"#);
}

#[test]
fn joined_changes_stay_within_the_size_of_a_record() {
    let ward = Ward::manual();
    ward.disputed();
    let half = Limits::default().record_bytes / 2;
    let codes = ["x", "y", "z"].map(|name| {
        let fields = format!(r#"{{"{name}":"{}"}}"#, "v".repeat(half - 100));
        ward.one(&ward.bob, patch("n1", 1, &fields)).code
    });
    assert_eq!(codes, [ItemCode::ConflictPending, ItemCode::ConflictPending, ItemCode::TooLarge]);
}

#[test]
fn a_record_that_a_reviewer_keeps_stays_whatever_the_clock_of_the_held_delete() {
    let ward = Ward::escalation();
    let late = driftline_model::Hlc::new(World::BEGIN_MS + 30_000, 0);
    ward.one(&ward.ada, create("n1", r#"{"status":"open"}"#));
    let raise = patch("n1", 1, r#"{"status":"escalated"}"#).intents(previous(r#"{"status":"open"}"#));
    ward.one(&ward.ada, raise);
    let conflict_id = ward.one(&ward.bob, delete("n1", 1).hlc(late)).conflict_id.expect("a conflict");
    ward.decide(&conflict_id, Resolution::Server, ("{}", None)).expect("decided");
    let lower = Intents { deescalate: true, ..previous(r#"{"status":"escalated"}"#) };
    let rights = driftline_conflict::Rights { deescalate: true, service: false };
    let lowered = patch("n1", 2, r#"{"status":"closed"}"#).intents(lower).rights(rights);
    ward.one(&ward.ada, lowered);
    let row = ward.record(&note(), "n1").expect("a record");
    assert_eq!((row.deleted, row.record.fields.as_str()), (false, r#"{"status":"closed"}"#));
    ward.check_sums();
}

#[test]
fn a_reviewer_may_set_an_ordered_field_that_the_record_lacks() {
    let ward = Ward::escalation();
    ward.one(&ward.ada, create("n1", r#"{"status":"escalated"}"#));
    let held = patch("n1", 1, r#"{"status":"open"}"#).intents(previous(r#"{"status":"escalated"}"#));
    let held = ward.one(&ward.bob, held).conflict_id.expect("a conflict");
    ward.decide(&held, Resolution::Merged, (r#"{"status":"closed","text":"x"}"#, None)).expect("decided");
    assert_eq!(ward.fields("n1"), r#"{"status":"closed","text":"x"}"#);
}

#[test]
fn a_stale_delete_of_an_urgent_record_waits() {
    let ward = Ward::escalation();
    ward.one(&ward.ada, create("n1", r#"{"status":"open"}"#));
    let raise = patch("n1", 1, r#"{"status":"escalated"}"#).intents(previous(r#"{"status":"open"}"#));
    ward.one(&ward.ada, raise);
    let result = ward.one(&ward.bob, delete("n1", 1));
    let conflict_id = result.conflict_id.expect("a conflict");
    assert_eq!(
        (result.code, ward.conflict(&conflict_id).reason),
        (ItemCode::Merged, ReviewReason::DeleteHeld)
    );
    assert!(!ward.record(&note(), "n1").expect("a record").deleted);
    ward.decide(&conflict_id, Resolution::Client, ("{}", None)).expect("decided");
    assert!(ward.record(&note(), "n1").expect("a tombstone").deleted, "a reviewer knows what is deleted");
    ward.check_sums();
}
