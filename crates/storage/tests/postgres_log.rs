//! The log of events on PostgreSQL answers as the one in memory does, whatever is asked.

mod support;

use std::sync::Arc;

use driftline_engine::{
    EventDraft, EventName, EventPage, EventQuery, Published, Store, Submission, TopicRetention, TopicRules,
};
use driftline_testkit::{Author, Rng, World, block_on};

const TOPICS: [&str; 6] = ["all", "device_a", "device_b", "metrics_a", "user_ada", "nobody"];
const KINDS: [&str; 3] = ["message", "grade_update", "device_status"];

struct Side<S> {
    store: S,
    world: World,
    authors: Vec<Author>,
}

impl<S: Store> Side<S> {
    fn new(open: impl Fn(&World) -> S) -> Self {
        let world = World::new(1);
        let store = open(&world);
        let authors = ["acme", "there"].map(|tenant| Author::join(&store, tenant, "ada", "phone")).to_vec();
        Self { store, world, authors }
    }

    fn publish(&self, tenant: usize, now_ms: u64, events: &[EventDraft]) -> Vec<Published> {
        self.world.clock.set(now_ms);
        let batch = Submission { events: events.to_vec(), ..self.authors[tenant].batch([]) };
        block_on(self.store.commit(batch)).expect("a commit").events
    }

    fn page(&self, tenant: usize, query: &EventQuery) -> String {
        let page = block_on(self.store.log().events(self.authors[tenant].tenant, query.clone()));
        let EventPage { head, floor, events, more, .. } = page.expect("a page");
        let events = events.iter().map(|event| {
            (event.id, &event.kind, &event.topics, &event.owner, &event.values, &event.data, event.at_ms)
        });
        format!("{head} {floor} {more} {:?}", events.collect::<Vec<_>>())
    }

    fn event(&self, tenant: usize, name: EventName) -> Option<u64> {
        let event = block_on(self.store.log().event(self.authors[tenant].tenant, name));
        event.expect("a read").and_then(|event| event.id)
    }
}

fn draft(rng: &mut Rng, now_ms: u64) -> EventDraft {
    let mut topics: Vec<Box<str>> =
        (0..rng.between(1, 3)).map(|_| Box::from(*rng.pick(&TOPICS[..5]))).collect();
    topics.sort();
    topics.dedup();
    let data = format!(r#"{{"text":"{}"}}"#, "x".repeat(rng.place(300)));
    let mut draft = EventDraft::new(KINDS[rng.place(3)], topics, data.into(), now_ms - rng.below(1000));
    draft.durable = rng.percent(90);
    draft.values = if rng.percent(30) { r#""cadet_id":1"#.into() } else { "".into() };
    draft.dedupe_key = rng.percent(30).then(|| format!("key{}", rng.below(60)).into());
    draft.version = rng.percent(20).then(|| (format!("thing{}", rng.below(5)).into(), rng.below(50)));
    draft
}

fn query(rng: &mut Rng) -> EventQuery {
    EventQuery {
        topics: TOPICS.iter().filter(|_| rng.percent(50)).map(|topic| Box::from(*topic)).collect(),
        after: if rng.percent(30) { 0 } else { rng.below(200) },
        until: rng.percent(30).then(|| rng.below(200)),
        kind: rng.percent(30).then(|| Box::from(*rng.pick(&KINDS))),
        newest_first: rng.percent(40),
        rows: rng.place(30) + 1,
        bytes: *rng.pick(&[1, 500, 2_000, 1 << 20]),
    }
}

/// Keeps little of one topic, not for long of another, and everything of the rest.
struct Rules;

impl TopicRules for Rules {
    fn retention(&self, topic: &str) -> TopicRetention {
        match topic {
            "device_a" => TopicRetention { age_ms: None, keep: Some(7) },
            "metrics_a" => TopicRetention { age_ms: Some(20_000), keep: Some(1_000) },
            "all" => TopicRetention { age_ms: Some(60_000), keep: Some(15) },
            _ => TopicRetention::default(),
        }
    }
}

#[test]
fn the_logs_cannot_be_told_apart() {
    for seed in 0..15 {
        println!("seed {seed}");
        let (memory, postgres) = (Side::new(support::memory), Side::new(support::postgres));
        let mut rng = Rng::new(seed);
        let mut now_ms = World::BEGIN_MS;
        let mut trimmed = 0;
        for step in 0..60 {
            now_ms += rng.below(3_000);
            let tenant = rng.place(2);
            let size = if rng.percent(5) { 120 } else { rng.between(1, 6) };
            let drafts: Vec<EventDraft> = (0..size).map(|_| draft(&mut rng, now_ms)).collect();
            assert_eq!(
                memory.publish(tenant, now_ms, &drafts),
                postgres.publish(tenant, now_ms, &drafts),
                "seed {seed}, step {step}"
            );
            if rng.percent(15) {
                let gone = block_on(memory.store.log().trim_events(now_ms, Arc::new(Rules)));
                assert_eq!(gone, block_on(postgres.store.log().trim_events(now_ms, Arc::new(Rules))));
                trimmed += gone.expect("it trims");
            }
            for _ in 0..4 {
                let (tenant, query) = (rng.place(2), query(&mut rng));
                assert_eq!(
                    memory.page(tenant, &query),
                    postgres.page(tenant, &query),
                    "seed {seed}, step {step}: {query:?}"
                );
                let names = [
                    EventName::Id(rng.below(200)),
                    EventName::Dedupe(format!("key{}", rng.below(60)).into()),
                ];
                for name in names {
                    assert_eq!(memory.event(tenant, name.clone()), postgres.event(tenant, name));
                }
            }
        }
        assert!(trimmed > 20, "the retention bites: {trimmed}");
    }
}
