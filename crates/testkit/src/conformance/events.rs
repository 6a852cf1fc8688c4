//! The log of events.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use driftline_engine::{
    Announce, Announcing, DeviceEvents, DeviceNote, DeviceSign, Event, EventDraft, EventName, EventPage,
    EventQuery, Published, Receipt, Store, StoreError, Submission, TopicRetention, TopicRules,
};
use driftline_model::{DeviceKey, DeviceNo, Epoch, TenantNo};
use driftline_protocol::ItemCode::{Applied, DependencyFailed, Invalid};
use driftline_realtime::Pattern;

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
        (1..).zip(&drafts).map(|(id, draft)| shown(&Event::stored(epoch, id, draft))).collect();
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

/// Pages of random queries against a plain model.
pub(super) fn the_log_is_read_by_topics<S: Store>(bed: &Bed<S>) {
    let (ada, other) = (bed.author("ada", "phone"), Author::join(&bed.store, "other", "ada", "phone"));
    let rng = &mut Rng::new(5);
    let names = ["a", "b", "c", "d", "e"];
    let mut log: Vec<(String, Vec<&str>, usize)> = Vec::new();
    while log.len() < 700 {
        let drafts: Vec<EventDraft> = (0..rng.between(1, 40))
            .map(|_| {
                let mut topics: Vec<&str> = names.into_iter().filter(|_| rng.percent(20)).collect();
                if topics.is_empty() {
                    topics.push("a");
                }
                let kind = format!("k{}", rng.below(3));
                let data = format!("\"{}\"", "x".repeat(rng.place(60)));
                let draft = event(&kind, &topics.join(" "), &data);
                log.push((kind, topics, data.len()));
                draft
            })
            .collect();
        publish(bed, other.tenant, drafts.clone());
        publish(bed, ada.tenant, drafts);
        publish(bed, other.tenant, vec![event("k0", "a b c d e", "{}")]);
    }
    let head = log.len() as u64;
    let (mut cut, mut whole) = (0, 0);
    for round in 0..400 {
        let wanted: Vec<&str> = names.into_iter().chain(["unheard-of"]).filter(|_| rng.percent(40)).collect();
        let query = EventQuery {
            topics: wanted.iter().map(|topic| Box::from(*topic)).collect(),
            after: if rng.percent(30) { 0 } else { rng.below(head + 20) },
            until: rng.percent(30).then(|| rng.below(head + 20)),
            kind: rng.percent(30).then(|| format!("k{}", rng.below(4)).into()),
            newest_first: rng.percent(40),
            rows: *rng.pick(&[1, 3, 50, 300, 10_000]),
            bytes: *rng.pick(&[0, 100, 1000, 1 << 20]),
        };
        let fits = |(id, (kind, topics, _)): &(u64, &(String, Vec<&str>, usize))| {
            topics.iter().any(|topic| wanted.contains(topic))
                && query.until.is_none_or(|until| *id <= until)
                && query.kind.as_deref().is_none_or(|wanted| wanted == kind)
                && match (query.newest_first, query.after) {
                    (false, after) => *id > after,
                    (true, 0) => true,
                    (true, before) => *id < before,
                }
        };
        let mut all: Vec<(u64, usize)> =
            (1..).zip(&log).filter(fits).map(|(id, (.., bytes))| (id, *bytes)).collect();
        if query.newest_first {
            all.reverse();
        }
        let mut bytes = 0;
        let fit = all.iter().take(query.rows).take_while(|(_, len)| {
            bytes += len;
            bytes == *len || bytes <= query.bytes
        });
        let model: Vec<u64> = fit.map(|(id, _)| *id).collect();
        let page = page(bed, ada.tenant, query.clone());
        assert_eq!(ids(&page), model, "round {round}: {query:?}");
        assert_eq!(page.more, model.len() < all.len(), "round {round}: {query:?}");
        assert_eq!((page.head, page.floor), (head, 0));
        cut += usize::from(page.more);
        whole += usize::from(!page.more && model.len() > 100);
    }
    assert!(cut > 50 && whole > 10, "{cut} pages were cut, {whole} were large and whole");
    // A topic that is named twice counts once; many topics are one query.
    assert_eq!(found(bed, ada.tenant, "a a"), found(bed, ada.tenant, "a"));
    let many: Vec<String> = (0..300).map(|at| format!("t{at}")).chain(["b".into()]).collect();
    assert_eq!(found(bed, ada.tenant, &many.join(" ")), found(bed, ada.tenant, "b"));
}

/// Retentions of topics by their names; what is not named stays.
struct Rules(Vec<(&'static str, TopicRetention)>);

impl TopicRules for Rules {
    fn retention(&self, topic: &str) -> TopicRetention {
        let rule = self.0.iter().find(|(name, _)| *name == topic);
        rule.map_or(TopicRetention::default(), |(_, kept)| *kept)
    }
}

fn trim<S: Store>(bed: &Bed<S>, now_ms: u64, rules: &[(&'static str, TopicRetention)]) -> u64 {
    let rules = Arc::new(Rules(rules.to_vec()));
    block_on(bed.store.log().trim_events(now_ms, rules)).expect("a trim")
}

fn aged(days: u64) -> TopicRetention {
    TopicRetention { age_ms: Some(days * DAY_MS), keep: None }
}

fn counted(keep: u64) -> TopicRetention {
    TopicRetention { age_ms: None, keep: Some(keep) }
}

fn floor<S: Store>(bed: &Bed<S>, tenant: TenantNo, topics: &str) -> u64 {
    page(bed, tenant, EventQuery { rows: 1, ..all(topics) }).floor
}

/// What the log should hold: numbers, topics and when each event was kept.
struct Model {
    events: Vec<(u64, Vec<&'static str>, u64)>,
    floors: Vec<(&'static str, u64)>,
}

impl Model {
    fn ids(&self, topic: &str) -> Vec<u64> {
        let of_topic = self.events.iter().filter(|(_, topics, _)| topics.contains(&topic));
        of_topic.map(|(id, ..)| *id).collect()
    }

    fn trim(&mut self, now_ms: u64, rules: &[(&'static str, TopicRetention)]) -> u64 {
        for (topic, kept) in rules {
            let ids = self.ids(topic);
            let surplus =
                kept.keep.map_or(0, |keep| ids.len().saturating_sub(usize::try_from(keep).expect("few")));
            let old = |id: &u64| {
                let (.., kept_ms) = self.events.iter().find(|(known, ..)| known == id).expect("it is there");
                kept.age_ms.is_some_and(|age_ms| kept_ms + age_ms < now_ms)
            };
            let aged = ids.iter().take_while(|id| old(id)).count();
            let gone = &ids[..surplus.max(aged)];
            for (_, topics, _) in self.events.iter_mut().filter(|(id, ..)| gone.contains(id)) {
                topics.retain(|known| known != topic);
            }
            if let (Some(last), Some((_, floor))) =
                (gone.last(), self.floors.iter_mut().find(|(known, _)| known == topic))
            {
                *floor = *last;
            }
        }
        let before = self.events.len();
        self.events.retain(|(_, topics, _)| !topics.is_empty());
        (before - self.events.len()) as u64
    }
}

pub(super) fn each_topic_loses_its_own<S: Store>(bed: &Bed<S>) {
    let (ada, other) = (bed.author("ada", "phone"), Author::join(&bed.store, "other", "ada", "phone"));
    let names = ["x", "y", "z"];
    let mut model = Model { events: Vec::new(), floors: names.map(|name| (name, 0)).to_vec() };
    let rng = &mut Rng::new(8);
    let mut went = 0;
    for round in 0..40 {
        let drafts: Vec<EventDraft> = (0..rng.between(1, 90))
            .map(|_| {
                let mut topics: Vec<&'static str> = names.into_iter().filter(|_| rng.percent(40)).collect();
                if topics.is_empty() {
                    topics.push("x");
                }
                let draft = event("e", &topics.join(" "), "{}");
                let id = model.events.len() as u64 + went + 1;
                model.events.push((id, topics, bed.world.clock_ms()));
                draft
            })
            .collect();
        publish(bed, ada.tenant, drafts);
        // What nobody trims stays, and is no part of the count.
        publish(bed, other.tenant, vec![event("e", "untouched", "{}")]);
        bed.world.clock.advance(rng.below(3) * DAY_MS);
        let mut rules: Vec<(&'static str, TopicRetention)> = Vec::new();
        for name in names {
            let age_ms = rng.percent(40).then(|| rng.below(8) * DAY_MS);
            rules.push((name, TopicRetention { age_ms, keep: rng.percent(30).then(|| rng.below(300)) }));
        }
        let now_ms = bed.world.clock_ms();
        let gone = model.trim(now_ms, &rules);
        went += gone;
        assert_eq!(trim(bed, now_ms, &rules), gone, "round {round}: {rules:?}");
        for (name, wanted) in &model.floors {
            assert_eq!(found(bed, ada.tenant, name), model.ids(name), "round {round}, {name}: {rules:?}");
            assert_eq!(floor(bed, ada.tenant, name), *wanted, "round {round}, {name}: {rules:?}");
        }
        let highest = model.floors.iter().map(|(_, floor)| *floor).max().expect("topics");
        assert_eq!(floor(bed, ada.tenant, "x y z unheard-of"), highest);
        let left: Vec<u64> = model.events.iter().map(|(id, ..)| *id).collect();
        assert_eq!(found(bed, ada.tenant, "x y z"), left, "round {round}");
        assert_eq!(
            (found(bed, other.tenant, "untouched").len(), floor(bed, other.tenant, "untouched")),
            (round + 1, 0)
        );
    }
    assert!(went > 1000, "{went} events went");
    // The numbers go on, and an event that is gone is nobody's.
    assert_eq!(bed.head(ada.tenant).event_id, model.events.len() as u64 + went);
    assert!(named(bed, ada.tenant, EventName::Id(1)).is_none());
}

pub(super) fn a_topic_can_lose_everything<S: Store>(bed: &Bed<S>) {
    let ada = bed.author("ada", "phone");
    publish(bed, ada.tenant, vec![event("e", "x", "{}"); 2500]);
    assert_eq!(trim(bed, World::BEGIN_MS, &[("x", counted(0))]), 2500);
    assert_eq!((found(bed, ada.tenant, "x"), floor(bed, ada.tenant, "x")), (vec![], 2500));
    assert_eq!(publish(bed, ada.tenant, vec![event("e", "x", "{}")]), [kept(2501)]);
    bed.world.clock.advance(DAY_MS);
    // Kept exactly a day ago: not yet past it.
    assert_eq!(trim(bed, World::BEGIN_MS + DAY_MS, &[("x", aged(1))]), 0);
    assert_eq!(trim(bed, World::BEGIN_MS + DAY_MS + 1, &[("x", aged(1))]), 1);
    assert_eq!((floor(bed, ada.tenant, "x"), bed.head(ada.tenant).event_id), (2501, 2501));
    assert_eq!(trim(bed, u64::MAX, &[("x", aged(1))]), 0);
}

pub(super) fn notifications_are_read_once<S: Store>(bed: &Bed<S>) {
    let (ada, other) = (bed.author("ada", "phone"), Author::join(&bed.store, "other", "ada", "phone"));
    let read = |tenant, user: &str, id: &str| {
        block_on(bed.store.log().read_notice(tenant, user.into(), id.into(), World::BEGIN_MS))
            .expect("a write")
    };
    let known = |tenant, user: &str, ids: &[&str]| {
        let ids = ids.iter().map(|id| Box::from(*id)).collect();
        block_on(bed.store.log().notices_read(tenant, user.into(), ids)).expect("a read")
    };
    assert_eq!(known(ada.tenant, "ada", &["n1", "n2"]), [false, false]);
    assert!(read(ada.tenant, "ada", "n1") && !read(ada.tenant, "ada", "n1"));
    assert!(read(ada.tenant, "ada", "é \"'"));
    assert_eq!(known(ada.tenant, "ada", &["n2", "n1", "é \"'", "n1"]), [false, true, true, true]);
    assert_eq!(
        (known(ada.tenant, "bob", &["n1"]), known(other.tenant, "ada", &["n1"])),
        (vec![false], vec![false])
    );
    assert!(read(ada.tenant, "bob", "n1") && read(other.tenant, "ada", "n1"));
    assert!(known(ada.tenant, "ada", &[]).is_empty());
}

fn note<S: Store>(bed: &Bed<S>, author: &Author, notes: Vec<(u64, DeviceSign)>) {
    let notes = notes.into_iter().map(|(at, sign)| DeviceNote {
        tenant: author.tenant,
        device: author.device,
        at_ms: World::BEGIN_MS + at,
        sign,
    });
    block_on(bed.store.note_devices(notes.collect())).expect("notes");
}

pub(super) fn it_is_known_how_far_a_device_has_followed<S: Store>(bed: &Bed<S>) {
    let (ada, bob) = (bed.author("ada", "phone"), bed.author("bob", "phone"));
    let other = Author { tenant: Author::join(&bed.store, "other", "ada", "phone").tenant, ..ada.clone() };
    let (one, two) = (Epoch::new(1), Epoch::new(2));
    let of = |author: &Author| {
        block_on(bed.store.log().device_events(author.tenant, author.device)).expect("a read")
    };
    let names = |text: &str| text.split_ascii_whitespace().map(Box::from).collect::<Vec<Box<str>>>();
    let acknowledged = |epoch, event| DeviceSign::Acknowledged { epoch, event };
    let listened = |epoch, since, topics: &str, refused: &str| DeviceSign::Listened {
        epoch,
        since,
        topics: names(topics),
        refused: names(refused),
    };
    assert_eq!(of(&ada), None);
    note(bed, &ada, vec![(10, listened(one, 5, "x y", "z"))]);
    let first = DeviceEvents {
        epoch: Some(one),
        acked: 0,
        since: Some(5),
        topics: names("x y"),
        refused: names("z"),
        slow: None,
    };
    assert_eq!(of(&ada), Some(first.clone()));
    // What was acknowledged only rises, in whichever order it is told.
    note(bed, &ada, vec![(12, acknowledged(one, 9)), (11, acknowledged(one, 7)), (5, acknowledged(one, 8))]);
    assert_eq!(of(&ada), Some(DeviceEvents { acked: 9, ..first.clone() }));
    // Who was cut is slow until it comes again; an older sign is no news.
    note(bed, &ada, vec![(20, DeviceSign::Slow { event: 30 }), (9, DeviceSign::Slow { event: 40 })]);
    assert_eq!(of(&ada), Some(DeviceEvents { acked: 9, slow: Some(30), ..first.clone() }));
    note(bed, &ada, vec![(8, listened(one, 1, "old", ""))]);
    assert_eq!(of(&ada), Some(DeviceEvents { acked: 9, slow: Some(30), ..first }));
    note(bed, &ada, vec![(30, listened(one, 9, "x", "")), (25, DeviceSign::Slow { event: 50 })]);
    let again = DeviceEvents {
        epoch: Some(one),
        acked: 9,
        since: Some(9),
        topics: names("x"),
        refused: names(""),
        slow: None,
    };
    assert_eq!(of(&ada), Some(again.clone()));
    // Another life of the log begins anew; a late sign of the one before changes nothing.
    note(
        bed,
        &ada,
        vec![(40, listened(two, 0, "x", "")), (35, acknowledged(one, 70)), (39, listened(one, 3, "y", ""))],
    );
    assert_eq!(of(&ada), Some(DeviceEvents { epoch: Some(two), acked: 0, since: Some(0), ..again.clone() }));
    note(bed, &ada, vec![(41, acknowledged(two, 3))]);
    assert_eq!(of(&ada), Some(DeviceEvents { epoch: Some(two), acked: 3, since: Some(0), ..again }));
    // A device that only acknowledges never listened, as far as is known.
    note(bed, &bob, vec![(5, acknowledged(one, 4)), (6, DeviceSign::Slow { event: 9 })]);
    assert_eq!(of(&bob), Some(DeviceEvents { epoch: Some(one), acked: 4, ..DeviceEvents::default() }));
    note(bed, &bob, vec![(4, listened(one, 2, "x", ""))]);
    assert_eq!(of(&bob).map(|events| (events.acked, events.since)), Some((4, Some(2))));
    // A device of another tenant, or of none, has nothing written down.
    note(bed, &other, vec![(50, acknowledged(two, 100)), (60, listened(two, 1, "x", ""))]);
    assert_eq!((of(&other), of(&ada).map(|events| events.acked)), (None, Some(3)));
    let nobody = Author { device: DeviceNo::new(1 << 20), ..ada.clone() };
    note(bed, &nobody, vec![(1, listened(one, 1, "x", ""))]);
    assert_eq!(of(&nobody), None);
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
