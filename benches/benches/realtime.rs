//! What happens for every event and every subscriber: a rule looked up, an offer, a push and a pop.

use std::sync::Arc;

use divan::{Bencher, black_box};
use driftline_realtime::{Access, Filter, Follow, Pattern, Queue, Subject, TopicRule, Topics};

#[global_allocator]
static ALLOCATED: divan::AllocProfiler = divan::AllocProfiler::system();

fn main() {
    divan::main();
}

fn rule(pattern: &str) -> TopicRule {
    TopicRule {
        pattern: Pattern::parse(pattern).expect("a pattern"),
        subscribe: Access { members: true, ..Access::default() },
        publish: Access { roles: vec!["staff".into()], ..Access::default() },
        durable: true,
        retention_ms: None,
        keep: None,
        conflate: None,
        join: true,
        presence: false,
    }
}

/// The rule and the verdict for a topic, among so many patterns.
mod topics {
    use super::*;

    fn catalogue(patterns: usize) -> Topics {
        let mut rules: Vec<TopicRule> =
            ["all", "user_{sub}", "zone.{area}.{room}"].into_iter().map(rule).collect();
        rules.extend((3..patterns).map(|number| rule(&format!("metrics{number}_{{device_id}}"))));
        Topics::new(rules).expect("a catalogue")
    }

    fn run(bencher: Bencher<'_, '_>, patterns: usize, topic: &str) {
        let topics = catalogue(patterns);
        let claims = [("area".into(), "north".into()), ("room".into(), "hall-7".into())];
        let subject = Subject { user: "0192f3a1-b2c3", roles: &[], claims: &claims };
        bencher.bench(|| topics.subscribe(black_box(topic), &subject));
    }

    #[divan::bench(args = [10, 1_000])]
    fn literal(bencher: Bencher<'_, '_>, patterns: usize) {
        run(bencher, patterns, "all");
    }

    #[divan::bench(args = [10, 1_000])]
    fn one_placeholder(bencher: Bencher<'_, '_>, patterns: usize) {
        run(bencher, patterns, "user_0192f3a1-b2c3");
    }

    #[divan::bench(args = [10, 1_000])]
    fn two_placeholders(bencher: Bencher<'_, '_>, patterns: usize) {
        run(bencher, patterns, "zone.north.hall-7");
    }

    #[divan::bench(args = [10, 1_000])]
    fn unknown(bencher: Bencher<'_, '_>, patterns: usize) {
        run(bencher, patterns, "zebra-7");
    }
}

/// An event that is offered to a thousand subscribers.
mod follow {
    use super::*;

    fn run(bencher: Bencher<'_, '_>, follow: &Follow) {
        let mut all = vec![follow.clone(); 1_000];
        let mut id = 0;
        bencher.bench_local(|| {
            id += 1;
            all.iter_mut().for_each(|follow| {
                black_box(follow.offer(black_box(id)));
            });
        });
    }

    #[divan::bench]
    fn live(bencher: Bencher<'_, '_>) {
        run(bencher, &Follow::live(0));
    }

    #[divan::bench]
    fn reading(bencher: Bencher<'_, '_>) {
        let mut follow = Follow::live(0);
        follow.read_from(0);
        run(bencher, &follow);
    }
}

#[divan::bench]
fn filter(bencher: Bencher<'_, '_>) {
    let fields = vec![("status".into(), vec!["\"open\"".into(), "\"late\"".into()])];
    let filter = Filter::new(vec!["grade".into(), "exam".into()], fields).expect("within the bounds");
    bencher.bench(|| filter.passes(black_box("exam"), |_| Some(black_box("\"late\""))));
}

/// A thousand items in bursts of so many; each burst is pushed and then popped.
mod queue {
    use super::*;

    const ITEMS: usize = 1_000;

    fn run(bencher: Bencher<'_, '_>, burst: usize, key: impl Fn(usize) -> Option<u64>) {
        let item: Arc<[u8]> = vec![0; 300].into();
        let mut queue = Queue::new(1024 * 1024);
        bencher.bench_local(|| {
            for _ in 0..ITEMS / burst {
                for number in 0..burst {
                    black_box(queue.push(item.clone(), 300, key(number)));
                }
                while let Some(item) = queue.pop() {
                    black_box(item);
                }
            }
        });
    }

    #[divan::bench(args = [1, 10, 1_000])]
    fn kept(bencher: Bencher<'_, '_>, burst: usize) {
        run(bencher, burst, |_| None);
    }

    #[divan::bench(args = [1, 10, 1_000])]
    fn conflated(bencher: Bencher<'_, '_>, burst: usize) {
        run(bencher, burst, |number| Some(number as u64));
    }

    /// Every second item replaces an older one.
    #[divan::bench(args = [10, 1_000])]
    fn replaced(bencher: Bencher<'_, '_>, burst: usize) {
        run(bencher, burst, |number| Some((number / 2) as u64));
    }
}
