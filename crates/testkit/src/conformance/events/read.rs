//! How the log is read.

use driftline_engine::{EventDraft, EventQuery, Store};

use super::{Bed, event, found, ids, page, publish};
use crate::batch::Author;
use crate::rng::Rng;

/// Pages of random queries against a plain model.
pub(in super::super) fn the_log_is_read_by_topics<S: Store>(bed: &Bed<S>) {
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
