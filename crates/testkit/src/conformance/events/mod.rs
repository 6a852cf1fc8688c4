//! The log of events.

pub(super) mod devices;
pub(super) mod read;
pub(super) mod trim;

use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use driftline_engine::{
    Announce, Announcing, DeviceSign, Event, EventDraft, EventName, EventPage, EventQuery, Published,
    Receipt, Store, StoreError, Submission,
};
use driftline_model::{DeviceKey, DeviceNo, Epoch, TenantNo};
use driftline_protocol::ItemCode::{Applied, DependencyFailed, Invalid};
use driftline_realtime::Pattern;

use self::devices::note;
use self::trim::{counted, floor, trim};
use super::Bed;
use crate::batch::{Author, create, refused, sample};
use crate::rng::Rng;
use crate::wait::block_on;
use crate::world::World;

const DAY_MS: u64 = 86_400_000;

/// Makes an event on topics whose names are parted by spaces.
fn event(kind: &str, topics: &str, data: &str) -> EventDraft {
    let topics = topics.split(' ').map(Box::from).collect();
    EventDraft::new(kind, topics, Arc::from(data), World::BEGIN_MS)
}

/// Makes a submission of events, which has no device.
fn publication(tenant: TenantNo, events: Vec<EventDraft>) -> Submission {
    let nobody = Author::new(tenant, DeviceNo::new(0), "nobody");
    Submission { user: "".into(), scopes: Vec::new(), events, ..nobody.batch([]) }
}

fn publish<S: Store>(bed: &Bed<S>, tenant: TenantNo, events: Vec<EventDraft>) -> Vec<Published> {
    bed.commit(publication(tenant, events)).events
}

fn kept(id: u64) -> Published {
    Published { id: Some(id), ..Published::default() }
}

/// Asks for everything on topics whose names are parted by spaces.
fn all(topics: &str) -> EventQuery {
    EventQuery {
        topics: topics.split(' ').map(Box::from).collect(),
        after: 0,
        until: None,
        kind: None,
        newest_first: false,
        rows: 10_000,
        bytes: 1 << 30,
    }
}

fn page<S: Store>(bed: &Bed<S>, tenant: TenantNo, query: EventQuery) -> EventPage {
    block_on(bed.store.log().events(tenant, query)).expect("a page")
}

fn ids(page: &EventPage) -> Vec<u64> {
    page.events.iter().map(|event| event.id.expect("it is kept")).collect()
}

/// The numbers of all events on topics.
fn found<S: Store>(bed: &Bed<S>, tenant: TenantNo, topics: &str) -> Vec<u64> {
    ids(&page(bed, tenant, all(topics)))
}

fn named<S: Store>(bed: &Bed<S>, tenant: TenantNo, name: EventName) -> Option<Arc<Event>> {
    block_on(bed.store.log().event(tenant, name)).expect("a read")
}

/// What is the same of an event wherever it is met.
fn shown(event: &Event) -> String {
    format!(
        "{} {:?} {} {:?} {:?} {} {} {}",
        event.epoch, event.id, event.kind, event.topics, event.owner, event.values, event.data, event.at_ms
    )
}

/// The events that listeners heard of a tenant; each commit follows the one before.
fn heard<S: Store>(bed: &Bed<S>, tenant: TenantNo, last: &mut u64) -> Vec<Arc<Event>> {
    let mut events = Vec::new();
    for commit in bed.world.listeners.take().into_iter().filter(|commit| commit.tenant == tenant) {
        assert_eq!(commit.prev_event, *last, "each follows the one before");
        for event in &commit.events {
            if let Some(id) = event.id {
                *last += 1;
                assert_eq!(id, *last, "in order and without a hole");
            }
        }
        assert_eq!(commit.event, *last);
        events.extend(commit.events);
    }
    events
}

pub(super) fn events_are_numbered_in_order<S: Store>(bed: &Bed<S>) {
    let (ada, other) = (bed.author("ada", "phone"), Author::join(&bed.store, "other", "ada", "phone"));
    assert_eq!(bed.head(ada.tenant).event_id, 0);
    assert_eq!(
        publish(bed, ada.tenant, vec![event("a", "x", "{}"), event("b", "y", "{}")]),
        [kept(1), kept(2)]
    );
    assert_eq!(publish(bed, other.tenant, vec![event("a", "x", "{}")]), [kept(1)]);
    // Records and events of one batch; only records take a place in the sequence.
    let mixed = Submission { events: vec![event("c", "x", "{}"); 2], ..ada.batch([create("r", "{}")]) };
    let receipt = bed.commit(mixed);
    assert_eq!((super::codes_of(&receipt.results), receipt.seq.number()), (vec![Applied], 1));
    assert_eq!(receipt.events, [kept(3), kept(4)]);
    bed.check_push(&ada, [create("s", "{}")], &[Applied]);
    assert_eq!(publish(bed, ada.tenant, vec![event("d", "x", "{}")]), [kept(5)]);
    let head = bed.head(ada.tenant);
    assert_eq!((head.event_id, head.seq.number()), (5, 2));
    assert_eq!(bed.head(other.tenant).event_id, 1);
    // What another epoch wants is not applied.
    let epoch = Some(Epoch::new(head.epoch.number().wrapping_add(1)));
    let refused = bed.commit(Submission { epoch, ..publication(ada.tenant, vec![event("e", "x", "{}")]) });
    assert_eq!((refused.events, bed.head(ada.tenant).event_id), (vec![], 5));
    assert_eq!((found(bed, ada.tenant, "x"), found(bed, other.tenant, "x")), (vec![1, 3, 4, 5], vec![1]));
    // Large submissions are whole.
    for size in [9, 100, 251] {
        let before = bed.head(ada.tenant).event_id;
        let published = publish(bed, ada.tenant, vec![event("many", "z y", "{}"); size]);
        let wanted: Vec<_> = (1..=size as u64).map(|at| kept(before + at)).collect();
        assert_eq!(published, wanted);
    }
    assert_eq!(found(bed, ada.tenant, "z"), (6..=365).collect::<Vec<_>>());
}

/// A random history of batches and publications of many threads: the log has every number once, as it was told.
pub(super) fn writers_share_one_log<S: Store>(bed: &Bed<S>) {
    let writers: Vec<Author> = (0..6).map(|at| bed.author("ada", &format!("phone{at}"))).collect();
    let mut numbers: Vec<u64> = std::thread::scope(|scope| {
        let write = |(at, author): (usize, &Author)| {
            let rng = &mut Rng::new(at as u64);
            let mut numbers = Vec::new();
            for round in 0..30 {
                let topics = *rng.pick(&["x", "y", "x y", "z"]);
                let events: Vec<_> = (0..rng.between(1, 4)).map(|_| event("e", topics, "{}")).collect();
                let submission = if rng.percent(50) {
                    publication(author.tenant, events)
                } else {
                    Submission { events, ..author.batch([create(&format!("{at}/{round}"), "{}")]) }
                };
                let published = bed.commit(submission).events;
                let own: Vec<u64> = published.iter().map(|event| event.id.expect("it is kept")).collect();
                assert!(own.windows(2).all(|pair| pair[0] + 1 == pair[1]), "a submission's stand together");
                numbers.extend(own);
            }
            numbers
        };
        let threads: Vec<_> =
            writers.iter().enumerate().map(|writer| scope.spawn(move || write(writer))).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("a writer")).collect()
    });
    numbers.sort_unstable();
    let tenant = writers[0].tenant;
    let head = bed.head(tenant).event_id;
    assert_eq!(numbers, (1..=head).collect::<Vec<_>>());
    let mut last = 0;
    let told: Vec<String> = heard(bed, tenant, &mut last).iter().map(|event| shown(event)).collect();
    let page = page(bed, tenant, all("x y z"));
    assert_eq!(told, page.events.iter().map(|event| shown(event)).collect::<Vec<_>>());
    assert_eq!((last, page.head, page.more), (head, head, false));
}

pub(super) fn an_event_of_a_known_key_is_dropped<S: Store>(bed: &Bed<S>) {
    let (ada, other) = (bed.author("ada", "phone"), Author::join(&bed.store, "other", "ada", "phone"));
    let keyed = |key: &str| EventDraft { dedupe_key: Some(key.into()), ..event("a", "x", "{}") };
    let duplicate = |id| Published { duplicate: true, ..kept(id) };
    let published = publish(bed, ada.tenant, vec![keyed("k"), keyed("k"), keyed("l"), event("b", "x", "{}")]);
    assert_eq!(published, [kept(1), duplicate(1), kept(2), kept(3)]);
    assert_eq!(
        publish(bed, ada.tenant, vec![keyed("l"), keyed("m"), keyed("k")]),
        [duplicate(2), kept(4), duplicate(1)]
    );
    assert_eq!(publish(bed, other.tenant, vec![keyed("k")]), [kept(1)], "keys belong to their tenant");
    assert_eq!(found(bed, ada.tenant, "x"), [1, 2, 3, 4]);
    let of_key = named(bed, ada.tenant, EventName::Dedupe("l".into())).expect("it is kept");
    assert_eq!(of_key.id, Some(2));
    assert_eq!(named(bed, ada.tenant, EventName::Dedupe("n".into())).map(|event| event.id), None);
    // What is not kept has no key.
    let live = EventDraft { durable: false, ..keyed("n") };
    assert_eq!(publish(bed, ada.tenant, vec![live.clone(), live]), [Published::default(); 2]);
    assert_eq!(publish(bed, ada.tenant, vec![keyed("n")]), [kept(5)]);
    // Any text is a key.
    for key in ["\u{0}", "\"'\\", "é", " "] {
        let id = bed.head(ada.tenant).event_id + 1;
        assert_eq!(publish(bed, ada.tenant, vec![keyed(key)]), [kept(id)], "{key:?}");
        assert_eq!(publish(bed, ada.tenant, vec![keyed(key)]), [duplicate(id)], "{key:?}");
    }
    // It is known for as long as the log keeps the event.
    trim(bed, World::BEGIN_MS, &[("x", counted(8))]);
    let id = bed.head(ada.tenant).event_id + 1;
    assert_eq!(publish(bed, ada.tenant, vec![keyed("k"), keyed("l")]), [kept(id), duplicate(2)]);
}

pub(super) fn a_late_state_is_dropped<S: Store>(bed: &Bed<S>) {
    let (ada, other) = (bed.author("ada", "phone"), Author::join(&bed.store, "other", "ada", "phone"));
    let state =
        |thing: &str, version| EventDraft { version: Some((thing.into(), version)), ..event("a", "x", "{}") };
    let late = Published { late: true, ..Published::default() };
    let drafts = vec![state("t", 2), state("t", 2), state("t", 1), state("t", 3), state("u", 1)];
    assert_eq!(publish(bed, ada.tenant, drafts), [kept(1), late, late, kept(2), kept(3)]);
    assert_eq!(
        publish(bed, ada.tenant, vec![state("t", 3), state("t", 4), state("u", 2)]),
        [late, kept(4), kept(5)]
    );
    assert_eq!(publish(bed, other.tenant, vec![state("t", 1)]), [kept(1)]);
    // A duplicate is no news of a state, and a late one takes no key.
    let keyed = |key: &str, version| EventDraft { dedupe_key: Some(key.into()), ..state("v", version) };
    let published =
        publish(bed, ada.tenant, vec![keyed("k", 1), keyed("k", 5), keyed("l", 1), keyed("l", 2)]);
    assert_eq!(published, [kept(6), Published { duplicate: true, ..kept(6) }, late, kept(7)]);
    assert_eq!(found(bed, ada.tenant, "x"), [1, 2, 3, 4, 5, 6, 7]);
    // States are forgotten 90 days after the last one, whatever became of the events.
    bed.world.clock.advance(80 * DAY_MS);
    assert_eq!(publish(bed, ada.tenant, vec![state("u", 3)]), [kept(8)]);
    trim(bed, World::BEGIN_MS + 90 * DAY_MS, &[]);
    assert_eq!(publish(bed, ada.tenant, vec![state("t", 4)]), [late]);
    trim(bed, World::BEGIN_MS + 91 * DAY_MS, &[]);
    assert_eq!(publish(bed, ada.tenant, vec![state("t", 1), state("u", 3)]), [kept(9), late]);
}

pub(super) fn only_what_is_accepted_is_announced<S: Store>(bed: &Bed<S>) {
    let ada = bed.author("ada", "phone");
    let announcing = |device: Option<DeviceKey>| {
        let rule = Announce {
            kind: "told".into(),
            topics: vec![Pattern::parse("all").expect("a pattern")],
            fields: Vec::new(),
            durable: true,
            conflate: None,
        };
        Announcing { rule: Arc::new(rule), device }
    };
    let note = |id: &str| create(id, &format!(r#"{{"name":"{id}"}}"#)).announce(announcing(None));
    let reading = |id: &str| {
        let key = DeviceKey::from_text("ada\u{1}phone");
        sample(id, &format!(r#"{{"name":"{id}"}}"#)).announce(announcing(Some(key)))
    };
    bed.check_push(&ada, [note("a"), reading("s")], &[Applied; 2]);
    // Known before: not told again.
    let again = note("b").op_id("b");
    bed.check_push(&ada, [again.clone()], &[Applied]);
    bed.push(&ada, [again, reading("s")]);
    // A failed group tells of nothing, those before and behind it do.
    bed.check_push(
        &ada,
        [
            note("before"),
            note("lost").group("g"),
            reading("lost").group("g"),
            refused("bad", Invalid).group("g"),
            note("behind"),
            note("kept").group("h"),
            reading("kept").group("h"),
        ],
        &[Applied, DependencyFailed, DependencyFailed, Invalid, Applied, Applied, Applied],
    );
    let names = |events: &[Arc<Event>]| {
        let name = |event: &Arc<Event>| {
            let (_, rest) = event.data.split_once(r#""name":""#).expect("a name");
            rest.split('"').next().unwrap_or_default().to_owned()
        };
        events.iter().map(name).collect::<Vec<_>>()
    };
    let told = heard(bed, ada.tenant, &mut 0);
    assert_eq!(names(&told), ["a", "s", "b", "before", "behind", "kept", "kept"]);
    let page = page(bed, ada.tenant, all("all"));
    assert_eq!(names(&page.events), names(&told));
    assert_eq!(found(bed, ada.tenant, "device_phone"), [2, 7], "a sample's own topic");
    let owners: Vec<bool> = page.events.iter().map(|event| event.owner.is_some()).collect();
    assert_eq!(owners, [false, true, false, false, false, false, true]);
}

pub(super) fn events_come_back_as_they_were<S: Store>(bed: &Bed<S>) {
    let ada = bed.author("ada", "phone");
    let long = format!(r#"{{"text":"{}"}}"#, "é".repeat(100_000));
    let drafts = [
        EventDraft {
            owner: Some(DeviceKey::from_text("ada lovelace\u{1}phone é")),
            values: r#""cadet_id":1,"name":"x \" y""#.into(),
            at_ms: 7,
            ..event("grade_update", "cadet_1 role_admin a.b:c-d", r#"{"a":[1,null,"\u0000"],"é":"𝄞"}"#)
        },
        EventDraft { at_ms: 253_402_300_799_999, ..event("b", "x", &long) },
        event("c", "x", "null"),
        EventDraft {
            dedupe_key: Some("k".into()),
            version: Some(("t".into(), u64::MAX)),
            ..event("d", "x", "1")
        },
    ];
    publish(bed, ada.tenant, drafts.to_vec());
    let epoch = bed.head(ada.tenant).epoch;
    let wanted: Vec<String> =
        (1..).zip(&drafts).map(|(id, draft)| shown(&draft.event(epoch, Some(id)))).collect();
    let told: Vec<String> = heard(bed, ada.tenant, &mut 0).iter().map(|event| shown(event)).collect();
    assert_eq!(told, wanted);
    let page = page(bed, ada.tenant, all("role_admin x"));
    assert_eq!(page.events.iter().map(|event| shown(event)).collect::<Vec<_>>(), wanted);
    for (id, wanted) in (1..).zip(&wanted) {
        let event = named(bed, ada.tenant, EventName::Id(id)).expect("it is kept");
        assert_eq!(shown(&event), *wanted);
    }
    for unknown in
        [EventName::Id(0), EventName::Id(5), EventName::Id(u64::MAX), EventName::Dedupe("x".into())]
    {
        assert!(named(bed, ada.tenant, unknown).is_none());
    }
    // The numbers go on in another epoch, and old events are of it.
    let head = block_on(bed.store.begin_epoch(ada.tenant, epoch)).expect("a head");
    assert!(head.epoch != epoch);
    assert_eq!(publish(bed, ada.tenant, vec![event("e", "x", "{}")]), [kept(5)]);
    let later = self::page(bed, ada.tenant, all("x"));
    assert_eq!((later.epoch, later.head), (head.epoch, 5));
    assert!(later.events.iter().all(|event| event.epoch == head.epoch));
}

pub(super) fn live_events_are_told_and_not_kept<S: Store>(bed: &Bed<S>) {
    let ada = bed.author("ada", "phone");
    let live = |kind: &str| EventDraft { durable: false, conflate: Some(9), ..event(kind, "x", "{}") };
    let reached = Arc::<AtomicU32>::default();
    let first = EventDraft { reached: Arc::clone(&reached), ..live("a") };
    let published = publish(bed, ada.tenant, vec![first, event("b", "x", "{}"), live("c")]);
    assert_eq!(published, [Published::default(), kept(1), Published::default()]);
    publish(bed, ada.tenant, vec![live("d")]);
    let mut last = 0;
    let told = heard(bed, ada.tenant, &mut last);
    let kinds: Vec<_> = told.iter().map(|event| (&*event.kind, event.id, event.conflate)).collect();
    assert_eq!(
        kinds,
        [("a", None, Some(9)), ("b", Some(1), None), ("c", None, Some(9)), ("d", None, Some(9))]
    );
    told[0].count_reached(3);
    assert_eq!(reached.load(std::sync::atomic::Ordering::Relaxed), 3, "whoever published sees who got it");
    assert_eq!((found(bed, ada.tenant, "x"), bed.head(ada.tenant).event_id), (vec![1], 1));
    // Only the head is written of a publication; nothing of a record or a device is touched.
    bed.world.listeners.listen(false);
    publish(bed, ada.tenant, vec![event("e", "x", "{}")]);
    bed.world.listeners.listen(true);
    let told = heard(bed, ada.tenant, &mut last);
    assert_eq!(told.iter().map(|event| event.id).collect::<Vec<_>>(), [Some(2)], "events are always told");
}

pub(super) fn published_events_are_answered_again<S: Store>(bed: &Bed<S>) {
    let ada = bed.author("ada", "phone");
    let once = |events: Vec<EventDraft>, fingerprint: &str| Submission {
        once: vec![super::once::key("user:ada", "k", fingerprint)],
        ..publication(ada.tenant, events)
    };
    let events = || vec![event("a", "x", "{}"), EventDraft { durable: false, ..event("b", "x", "{}") }];
    let first = bed.commit(once(events(), "one"));
    assert_eq!(first.events, [kept(1), Published::default()]);
    let again: Receipt = bed.commit(once(events(), "one"));
    assert!(again.answered.is_replayed());
    assert_eq!(again.events, first.events);
    assert_eq!(bed.commit(once(events(), "two")).events, []);
    assert_eq!(found(bed, ada.tenant, "x"), [1]);
    let mut last = 0;
    assert_eq!(heard(bed, ada.tenant, &mut last).len(), 2, "told once");
}

pub(super) fn the_outbox_can_be_asked_for<S: Store>(bed: &Bed<S>) {
    struct Nothing;
    impl driftline_engine::OutboxRouter for Nothing {
        fn route(
            &self,
            _: &driftline_engine::OutboxRow,
            _: u64,
        ) -> Result<(driftline_model::TenantId, EventDraft), String> {
            Err("nothing was written".into())
        }
    }
    let drained = block_on(bed.store.log().drain_outbox(100, Arc::new(Nothing))).expect("a look");
    assert_eq!((drained.processed, drained.failed), (0, 0));
    assert_eq!(block_on(bed.store.log().clean_outbox(u64::MAX)), Ok::<u64, StoreError>(0));
}

/// The log is still there when a store is opened again.
pub(super) fn the_log_is_still_there<S: Store>(world: World, open: &impl Fn(&World) -> S) {
    let bed = Bed::new(world, open);
    let ada = bed.author("ada", "phone");
    let keyed = |key: &str| EventDraft { dedupe_key: Some(key.into()), ..event("a", "x y", "{}") };
    let state = |version| EventDraft { version: Some(("t".into(), version)), ..event("b", "x", "{}") };
    publish(&bed, ada.tenant, vec![keyed("k"), keyed("l"), state(5)]);
    trim(&bed, World::BEGIN_MS, &[("x", counted(2)), ("y", counted(1))]);
    let topics = vec![Box::from("x")];
    let listened = DeviceSign::Listened { epoch: Epoch::new(1), since: 1, topics, refused: Vec::new() };
    note(&bed, &ada, vec![(1, listened)]);
    let followed =
        |bed: &Bed<S>| block_on(bed.store.log().device_events(ada.tenant, ada.device)).expect("a read");
    let before = (found(&bed, ada.tenant, "x y"), floor(&bed, ada.tenant, "y"), followed(&bed));
    assert_eq!((&*before.0, before.1, before.2.is_some()), (&[2, 3][..], 1, true));
    let Bed { store, world } = bed;
    drop(store);
    let bed = Bed::new(world, open);
    assert_eq!((found(&bed, ada.tenant, "x y"), floor(&bed, ada.tenant, "y"), followed(&bed)), before);
    let published = publish(&bed, ada.tenant, vec![keyed("l"), state(5), keyed("k"), state(6)]);
    let late = Published { late: true, ..Published::default() };
    assert_eq!(published, [Published { duplicate: true, ..kept(2) }, late, kept(4), kept(5)]);
}
