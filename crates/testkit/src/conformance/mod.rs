//! The laws that every store keeps, whatever it stores in.
//!
//! A law is a function of a [`Bed`], a store of its own in a world of its own. [`run_all`] goes through all of them;
//! stores that outlive their process pass [`run_durable`] too, and those that lease keys [`run_leases`].

mod commits;
mod concurrency;
mod durable;
mod events;
mod groups;
mod history;
mod leases;
mod listeners;
mod names;
mod once;
mod pages;
mod registry;
mod repeats;
mod retention;
mod reviews;
mod samples;
mod scopes;
mod sums;
mod uploads;

use driftline_engine::{Head, Page, PageQuery, Place, Receipt, Row, Store, Submission, SubmissionResult};
use driftline_idempotency::Records;
use driftline_model::{KindName, RecordId, ScopeName, Seq, TenantNo};
use driftline_protocol::ItemCode;

use crate::batch::{Author, Draft};
use crate::wait::block_on;
use crate::world::World;
use events::{devices as events_devices, read as events_read, trim as events_trim};
use uploads::{
    concurrency as uploads_at_once, fence as upload_fence, leases as upload_leases, lists as upload_lists,
    opening as upload_opening, receipts as upload_receipts, reserve as upload_reserve, turns as upload_turns,
};

/// One law.
pub type Law<S> = fn(&Bed<S>);

/// Names every law.
macro_rules! laws {
    ($($module:ident::$law:ident),* $(,)?) => {
        vec![$((concat!(stringify!($module), "::", stringify!($law)), $module::$law as Law<S>)),*]
    };
}

/// Lists the laws of every store with their names.
#[must_use]
pub fn laws<S: Store>() -> Vec<(&'static str, Law<S>)> {
    laws![
        names::numbers_are_stable,
        names::tenants_are_apart,
        names::policies_have_rising_versions,
        names::an_epoch_is_left_once,
        names::a_session_remembers_its_batches,
        names::writing_can_be_probed,
        commits::every_code_is_given,
        commits::only_changes_take_a_place_in_the_sequence,
        commits::another_epoch_applies_nothing,
        commits::changes_without_a_name_are_numbered,
        commits::a_foreign_record_is_not_touched,
        commits::large_batches_are_whole,
        commits::a_clock_that_goes_back_is_harmless,
        repeats::a_resend_gets_the_first_answer,
        repeats::a_refusal_is_remembered,
        repeats::another_intent_is_refused,
        repeats::heard_answers_are_forgotten,
        repeats::nothing_can_be_heard_before_it_was_said,
        groups::a_group_is_applied_whole,
        groups::a_failed_group_leaves_nothing,
        groups::a_failed_group_tells_of_nothing_it_did,
        groups::what_was_done_before_stays_done,
        pages::the_log_is_read_in_order,
        pages::scopes_are_merged_without_a_gap,
        pages::the_key_order_holds_every_live_row_once,
        pages::kinds_are_filtered,
        pages::tombstones_are_in_the_log_only,
        pages::a_page_holds_one_row_at_least,
        pages::unknown_names_find_nothing,
        history::a_record_comes_back_as_it_was,
        history::a_decision_is_accounted_for,
        history::devices_and_changes_are_named,
        listeners::commits_are_told_in_order,
        listeners::only_changes_are_told,
        listeners::nobody_listens_without_cost,
        retention::old_answers_are_pruned,
        retention::old_batches_are_pruned,
        retention::old_tombstones_are_pruned,
        retention::old_exits_are_pruned,
        scopes::a_record_that_moves_leaves_an_exit,
        scopes::a_scope_is_named_and_may_be_written,
        scopes::exits_are_paged_with_the_rows,
        scopes::lost_scopes_are_told_by_key,
        scopes::what_is_missing_is_read_alone,
        scopes::a_range_is_read_by_its_ends,
        sums::sums_are_those_of_a_recount,
        sums::a_scope_without_rows_has_no_sum,
        sums::sums_hold_what_waits_for_a_reviewer,
        sums::parts_cover_a_range_without_a_gap,
        reviews::a_change_waits_and_is_decided,
        reviews::later_changes_join,
        reviews::a_resend_names_the_conflict_and_the_winners,
        reviews::conflicts_are_listed_in_the_order_of_their_opening,
        reviews::a_conflict_follows_its_record,
        reviews::decisions_are_listed_newest_first,
        reviews::a_failed_group_sets_nothing_aside,
        concurrency::writers_share_one_sequence,
        once::an_answer_is_given_again,
        once::another_content_under_a_name_is_refused,
        once::names_belong_to_their_owners,
        once::twins_of_a_group_have_one_effect,
        once::parallel_twins_have_one_effect,
        once::an_answer_is_forgotten_to_the_millisecond,
        once::a_large_answer_is_made_of_its_items_again,
        once::what_is_decided_again_is_not_remembered,
        samples::a_sample_is_appended_once,
        samples::a_later_sample_of_a_key_takes_its_place,
        samples::a_failed_group_appends_nothing,
        samples::large_batches_of_samples_are_whole,
        samples::samples_are_listed_by_device_time_and_id,
        samples::series_add_up,
        samples::old_samples_are_pruned,
        registry::a_device_is_registered_changed_and_retired,
        registry::devices_are_listed_by_their_numbers,
        registry::a_hash_leads_to_one_device,
        registry::a_change_is_made_once_under_its_key,
        registry::what_is_noticed_is_written_down,
        registry::notes_may_come_in_any_order,
        events::events_are_numbered_in_order,
        events::writers_share_one_log,
        events::an_event_of_a_known_key_is_dropped,
        events::a_late_state_is_dropped,
        events::only_what_is_accepted_is_announced,
        events::events_come_back_as_they_were,
        events::live_events_are_told_and_not_kept,
        events_read::the_log_is_read_by_topics,
        events_trim::each_topic_loses_its_own,
        events_trim::a_topic_can_lose_everything,
        events_devices::notifications_are_read_once,
        events_devices::it_is_known_how_far_a_device_has_followed,
        events::published_events_are_answered_again,
        events::the_outbox_can_be_asked_for,
        upload_opening::an_upload_comes_back_as_it_was,
        upload_opening::a_user_has_so_many_open_uploads,
        upload_opening::a_tenant_has_so_many_bytes,
        upload_opening::an_upload_is_opened_once_under_its_key,
        upload_opening::the_keys_of_uploads_are_those_of_other_requests,
        upload_receipts::chunks_come_in_any_order,
        upload_receipts::what_is_not_open_takes_no_chunk,
        upload_receipts::a_running_hash_only_goes_forward,
        upload_receipts::a_stream_goes_on_where_it_ended,
        upload_receipts::the_size_of_a_stream_is_settled_once,
        upload_receipts::a_stream_reserves_what_comes_beyond,
        upload_turns::uploads_turn_as_their_states_allow,
        upload_turns::only_what_is_overdue_expires_as_overdue,
        upload_turns::a_turn_says_what_it_says,
        upload_turns::chunks_that_are_missing_are_taken_back,
        upload_turns::only_what_is_whole_is_begun,
        upload_turns::a_file_is_removed,
        upload_leases::a_right_is_one_holders,
        upload_leases::every_place_has_a_right_of_its_own,
        upload_leases::a_right_that_ended_is_lost,
        upload_leases::a_holder_is_asked_to_let_go,
        upload_fence::a_chunk_is_kept_by_right,
        upload_fence::a_stream_goes_on_by_right,
        upload_fence::who_was_taken_over_from_keeps_nothing,
        upload_fence::a_turn_is_made_by_right,
        upload_reserve::bytes_are_reserved_within_the_quota,
        upload_reserve::what_is_reserved_ends_with_the_size,
        upload_reserve::what_is_not_needed_is_given_back,
        upload_reserve::only_what_is_open_reserves,
        upload_lists::overdue_uploads_are_listed,
        upload_lists::unfinished_uploads_are_listed,
        upload_lists::states_are_told,
        upload_lists::untold_uploads_are_listed,
        upload_lists::what_is_over_is_forgotten,
        upload_lists::what_is_staged_is_remembered,
        upload_lists::many_are_forgotten,
        uploads_at_once::chunks_at_once_add_up,
        uploads_at_once::a_turn_is_between_chunks,
        uploads_at_once::opens_at_once_keep_within,
        uploads_at_once::sums_stand_under_load,
        uploads_at_once::a_stream_is_not_torn,
        uploads_at_once::a_right_is_taken_once,
        uploads_at_once::who_takes_over_sees_what_was_kept,
        uploads_at_once::reserves_at_once_keep_within,
    ]
}

/// Checks every law on stores that the function opens.
pub fn run_all<S: Store>(open: impl Fn(&World) -> S) {
    for (seed, (name, law)) in (1..).zip(laws::<S>()) {
        println!("law {name}");
        law(&Bed::new(World::new(seed), &open));
    }
}

/// Checks that everything is still there when a store is opened again in the same world.
pub fn run_durable<S: Store>(open: impl Fn(&World) -> S) {
    durable::everything_is_still_there(World::new(1), &open);
    once::answers_are_still_there(World::new(2), &open);
    registry::devices_are_still_there(World::new(3), &open);
    events::the_log_is_still_there(World::new(4), &open);
    uploads::uploads_are_still_there(World::new(5), &open);
}

/// Checks the laws of leases on stores that the function opens.
pub fn run_leases<S: Store + Records>(open: impl Fn(&World) -> S) {
    for (seed, (name, law)) in (1..).zip(leases::laws::<S>()) {
        println!("law {name}");
        law(&Bed::new(World::new(seed), &open));
    }
}

/// A store of its own in a world of its own.
#[derive(Debug)]
pub struct Bed<S> {
    /// The store.
    pub store: S,
    /// Its world.
    pub world: World,
}

impl<S: Store> Bed<S> {
    /// Opens a store.
    pub fn new(world: World, open: &impl Fn(&World) -> S) -> Self {
        Self { store: open(&world), world }
    }

    fn author(&self, user: &str, device: &str) -> Author {
        Author::join(&self.store, "acme", user, device)
    }

    fn commit(&self, submission: Submission) -> Receipt {
        block_on(self.store.commit(submission)).expect("a commit")
    }

    fn push(&self, author: &Author, drafts: impl IntoIterator<Item = Draft>) -> Vec<SubmissionResult> {
        self.commit(author.batch(drafts)).results
    }

    #[track_caller]
    fn check_push(
        &self,
        author: &Author,
        drafts: impl IntoIterator<Item = Draft>,
        codes: &[ItemCode],
    ) -> Vec<SubmissionResult> {
        let results = self.push(author, drafts);
        assert_eq!(codes_of(&results), codes, "{results:#?}");
        results
    }

    fn head(&self, tenant: TenantNo) -> Head {
        block_on(self.store.head(tenant)).expect("a head")
    }

    fn row(&self, author: &Author, kind: &str, id: &str) -> Option<Row> {
        let (kind, id) = (kind_name(kind), RecordId::new(id).expect("an id"));
        block_on(self.store.record(author.tenant, &kind, &id)).expect("a read")
    }

    fn note(&self, author: &Author, id: &str) -> Row {
        self.row(author, "note", id).expect("the record exists")
    }

    fn page(&self, query: PageQuery) -> Page {
        block_on(self.store.page(query)).expect("a page")
    }

    /// Reads the log of a reader to its end.
    fn log(&self, query: &PageQuery) -> Vec<Row> {
        let mut rows: Vec<Row> = Vec::new();
        loop {
            let last = rows.last().map_or(Seq::ZERO, |row| row.record.version);
            let page = self.page(PageQuery { place: Place::After(last), ..query.clone() });
            assert!(!page.rows.is_empty() || !page.more, "an empty page has nothing behind it");
            assert!(page.rows.len() <= query.rows, "a page keeps to its rows");
            rows.extend(page.rows);
            if !page.more {
                return rows;
            }
        }
    }
}

/// Asks for everything that an author may read.
fn everything(author: &Author) -> PageQuery {
    PageQuery {
        tenant: author.tenant,
        scopes: author.scopes(),
        kinds: Vec::new(),
        place: Place::After(Seq::ZERO),
        rows: 1000,
        bytes: 1 << 20,
        sums: false,
    }
}

fn codes_of(results: &[SubmissionResult]) -> Vec<ItemCode> {
    results.iter().map(|result| result.code).collect()
}

fn ids_of(rows: &[Row]) -> Vec<&str> {
    rows.iter().map(|row| row.id.as_str()).collect()
}

fn versions_of(rows: &[Row]) -> Vec<u64> {
    rows.iter().map(|row| row.record.version.number()).collect()
}

fn kind_name(kind: &str) -> KindName {
    KindName::new(kind).expect("a kind's name")
}

fn owner_of(author: &Author) -> ScopeName {
    ScopeName::owner(&author.user)
}
