//! What the log loses, each topic by its own retention.

use std::sync::Arc;

use driftline_engine::{EventDraft, EventName, EventQuery, Store, TopicRetention, TopicRules};
use driftline_model::TenantNo;

use super::{Bed, DAY_MS, all, event, found, kept, named, page, publish};
use crate::batch::Author;
use crate::rng::Rng;
use crate::wait::block_on;
use crate::world::World;

/// Retentions of topics by their names; what is not named stays.
struct Rules(Vec<(&'static str, TopicRetention)>);

impl TopicRules for Rules {
    fn retention(&self, topic: &str) -> TopicRetention {
        let rule = self.0.iter().find(|(name, _)| *name == topic);
        rule.map_or(TopicRetention::default(), |(_, kept)| *kept)
    }
}

pub(super) fn trim<S: Store>(bed: &Bed<S>, now_ms: u64, rules: &[(&'static str, TopicRetention)]) -> u64 {
    let rules = Arc::new(Rules(rules.to_vec()));
    block_on(bed.store.log().trim_events(now_ms, rules)).expect("a trim")
}

fn aged(days: u64) -> TopicRetention {
    TopicRetention { age_ms: Some(days * DAY_MS), keep: None }
}

pub(super) fn counted(keep: u64) -> TopicRetention {
    TopicRetention { age_ms: None, keep: Some(keep) }
}

pub(super) fn floor<S: Store>(bed: &Bed<S>, tenant: TenantNo, topics: &str) -> u64 {
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

pub(in super::super) fn each_topic_loses_its_own<S: Store>(bed: &Bed<S>) {
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

pub(in super::super) fn a_topic_can_lose_everything<S: Store>(bed: &Bed<S>) {
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
