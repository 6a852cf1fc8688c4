//! Samples and series.

use driftline_engine::{
    Aggregate, Entry, Retention, SamplePlace, SampleQuery, SampleRow, SeriesQuery, SeriesRow, Store, Task,
};
use driftline_insight::{HOUR_MS, SeriesPoint, Sketch};
use driftline_model::{DeviceNo, Seq};
use driftline_protocol::ItemCode::{Applied, DependencyFailed, Invalid, Noop, Superseded};

use super::{Bed, codes_of, everything, kind_name};
use crate::batch::{Author, Draft, create, object, refused, sample};
use crate::wait::block_on;
use crate::world::World;

fn all(kind: &str) -> SampleQuery {
    SampleQuery {
        kind: kind_name(kind),
        devices: None,
        from_ms: 0,
        to_ms: u64::MAX,
        after: None,
        rows: 10_000,
    }
}

fn listed<S: Store>(bed: &Bed<S>, author: &Author, query: SampleQuery) -> Vec<SampleRow> {
    block_on(bed.store.samples(author.tenant, query)).expect("a list")
}

fn ids(rows: &[SampleRow]) -> Vec<&str> {
    rows.iter().map(|row| row.place.id.as_str()).collect()
}

pub(super) fn a_sample_is_appended_once<S: Store>(bed: &Bed<S>) {
    let (ada, other) = (bed.author("ada", "phone"), Author::join(&bed.store, "other", "ada", "phone"));
    let draft = sample("s", r#"{"lat":1,"note":"é"}"#).at(World::BEGIN_MS - 5);
    bed.check_push(&ada, [draft.clone()], &[Applied]);
    bed.world.clock.advance(1000);
    assert!(bed.check_push(&ada, [draft.clone()], &[Noop])[0].duplicate);
    let taken = bed.check_push(&ada, [sample("s", r#"{"lat":2}"#)], &[Invalid]);
    assert_eq!((&*taken[0].errors[0].code, &*taken[0].errors[0].pointer), ("id_taken", "/id"));
    // Within one batch and on another device too.
    let tablet = bed.author("ada", "tablet");
    let again = [draft.clone(), sample("t", "{}"), sample("t", "{}"), sample("t", r#"{"a":1}"#)];
    bed.check_push(&tablet, again, &[Noop, Applied, Noop, Invalid]);

    let rows = listed(bed, &ada, all("reading"));
    assert_eq!(ids(&rows), ["s", "t"]);
    let place =
        SamplePlace { device: ada.device, at_ms: World::BEGIN_MS - 5, id: "s".parse().expect("an id") };
    assert_eq!((&rows[0].place, rows[0].received_ms), (&place, World::BEGIN_MS));
    assert_eq!((rows[0].key.user(), rows[0].key.device()), ("ada", "phone"));
    assert_eq!(rows[0].fields.as_str(), r#"{"lat":1,"note":"é"}"#);
    assert_eq!((rows[1].place.device, rows[1].place.at_ms), (tablet.device, World::BEGIN_MS + 1000));

    // It is no record, and no record of its name is a sample.
    assert_eq!((bed.head(ada.tenant).seq, bed.log(&everything(&ada))), (Seq::ZERO, vec![]));
    assert!(bed.world.listeners.take().is_empty());
    bed.check_push(
        &ada,
        [create("s", "{}").kind("reading"), create("r", "{}").kind("reading")],
        &[Applied; 2],
    );
    bed.check_push(&ada, [sample("r", r#"{"b":1}"#), draft.clone()], &[Applied, Noop]);
    assert_eq!(bed.row(&ada, "reading", "r").map(|row| row.record.fields), Some(object("{}")));
    // Another tenant's and another kind's are others.
    assert_eq!(listed(bed, &other, all("reading")), []);
    bed.check_push(&other, [draft.clone()], &[Applied]);
    bed.check_push(&ada, [draft.kind("other")], &[Applied]);
    assert_eq!((listed(bed, &ada, all("reading")).len(), listed(bed, &other, all("reading")).len()), (3, 1));
    assert_eq!(listed(bed, &ada, all("unheard-of")), []);
}

pub(super) fn a_later_sample_of_a_key_takes_its_place<S: Store>(bed: &Bed<S>) {
    let (ada, tablet) = (bed.author("ada", "phone"), bed.author("ada", "tablet"));
    let draft = |value: u64, sent_ms: u64| {
        sample("k", &format!(r#"{{"v":{value}}}"#)).keyed().sent(World::BEGIN_MS + sent_ms).at(value)
    };
    bed.check_push(&ada, [draft(1, 10)], &[Applied]);
    bed.check_push(&tablet, [draft(2, 20)], &[Applied]);
    let older = bed.check_push(&ada, [draft(3, 15), draft(2, 15)], &[Superseded, Noop]);
    assert!(older.iter().all(|result| result.duplicate));
    let rows = listed(bed, &ada, all("reading"));
    assert_eq!((rows.len(), rows[0].fields.as_str(), rows[0].place.at_ms), (1, r#"{"v":2}"#, 2));
    assert_eq!(rows[0].place.device, tablet.device);
    // Within one batch the last one stands; one sent at the same time takes the place.
    bed.check_push(&ada, [draft(4, 20), draft(5, 30), draft(6, 29)], &[Applied, Applied, Superseded]);
    let rows = listed(bed, &ada, all("reading"));
    assert_eq!((rows.len(), rows[0].fields.as_str()), (1, r#"{"v":5}"#));
    // A clock that runs ahead is held back, so that it does not win for ever.
    bed.check_push(&ada, [draft(7, 1 << 40)], &[Applied]);
    bed.world.clock.advance(3_600_000);
    bed.check_push(&ada, [sample("k", r#"{"v":8}"#).keyed()], &[Applied]);
}

pub(super) fn a_failed_group_appends_nothing<S: Store>(bed: &Bed<S>) {
    let ada = bed.author("ada", "phone");
    let keyed = |value: u64| sample("k", &format!(r#"{{"v":{value}}}"#)).keyed();
    bed.check_push(&ada, [keyed(1)], &[Applied]);
    let drafts = [
        sample("before", "{}"),
        sample("a", "{}").group("g"),
        keyed(2).group("g"),
        refused("bad", Invalid).group("g"),
        sample("a", r#"{"other":1}"#),
    ];
    let codes = [Applied, DependencyFailed, DependencyFailed, Invalid, Applied];
    bed.check_push(&ada, drafts, &codes);
    let rows = listed(bed, &ada, all("reading"));
    assert_eq!(ids(&rows), ["a", "before", "k"]);
    assert_eq!((rows[0].fields.as_str(), rows[2].fields.as_str()), (r#"{"other":1}"#, r#"{"v":1}"#));
    bed.check_push(&ada, [keyed(2).group("g"), sample("c", "{}").group("g")], &[Applied, Applied]);
    bed.check_push(&ada, [keyed(2)], &[Noop]);
}

pub(super) fn large_batches_of_samples_are_whole<S: Store>(bed: &Bed<S>) {
    let ada = bed.author("ada", "phone");
    for size in [1, 9, 100, 251] {
        let drafts: Vec<Draft> =
            (0..size).map(|at| sample(&format!("{size}/{at}"), &format!(r#"{{"v":{at}}}"#)).at(at)).collect();
        assert_eq!(codes_of(&bed.push(&ada, drafts.clone())), vec![Applied; drafts.len()]);
        assert_eq!(codes_of(&bed.push(&ada, drafts.clone())), vec![Noop; drafts.len()]);
    }
    assert_eq!(listed(bed, &ada, all("reading")).len(), 361);
}

pub(super) fn samples_are_listed_by_device_time_and_id<S: Store>(bed: &Bed<S>) {
    let authors = ["phone", "tablet", "watch"].map(|device| bed.author("ada", device));
    let idle = bed.author("bob", "phone");
    let mut expected = Vec::new();
    for (number, author) in authors.iter().enumerate() {
        for at in 0..12_u64 {
            // Two of the same time each, which their ids tell apart; received in another order.
            let at = at * 5 % 12;
            let id = format!("{number}/{}{at}", ["b", "a", "Z"][number]);
            bed.check_push(author, [sample(&id, "{}").at(at / 2 * 100)], &[Applied]);
            expected.push((author.device, at / 2 * 100, id));
        }
    }
    expected.sort();
    let shown = |rows: &[SampleRow]| {
        let row = |row: &SampleRow| (row.place.device, row.place.at_ms, row.place.id.to_string());
        rows.iter().map(row).collect::<Vec<_>>()
    };
    let windows = [(0, u64::MAX), (100, 300), (101, 300), (100, 301), (500, 500), (600, u64::MAX)];
    let devices: [Option<Vec<DeviceNo>>; 5] = [
        None,
        Some(vec![]),
        Some(vec![authors[2].device, authors[0].device]),
        Some(vec![authors[1].device]),
        Some(vec![idle.device]),
    ];
    for (from_ms, to_ms) in windows {
        for devices in &devices {
            for page in [1, 3, 100] {
                let mut query = SampleQuery { from_ms, to_ms, devices: devices.clone(), ..all("reading") };
                query.rows = page;
                let mut rows: Vec<SampleRow> = Vec::new();
                loop {
                    query.after = rows.last().map(|row| row.place.clone());
                    let found = listed(bed, &idle, query.clone());
                    assert!(found.len() <= page);
                    if found.is_empty() {
                        break;
                    }
                    rows.extend(found);
                }
                let wanted: Vec<_> = expected
                    .iter()
                    .filter(|(device, at_ms, _)| {
                        devices.as_ref().is_none_or(|devices| devices.contains(device))
                            && (from_ms..to_ms).contains(at_ms)
                    })
                    .cloned()
                    .collect();
                assert_eq!(shown(&rows), wanted, "{from_ms}..{to_ms} of {devices:?} by {page}");
            }
        }
    }
}

/// A device's counts and measures of an hour.
fn aggregate(hour: u64, series: &[(&str, u64, &[f64])]) -> Entry {
    let point = |counter: u64, values: &[f64]| {
        let mut sketch = Sketch::new();
        for value in values {
            sketch.add(*value).expect("a finite value");
        }
        SeriesPoint { counter, sketch }
    };
    let series =
        series.iter().map(|(name, counter, values)| (Box::from(*name), point(*counter, values))).collect();
    let task = Task::Aggregate(Box::new(Aggregate { hour_ms: hour * HOUR_MS, series }));
    Entry { op_id: None, n: None, hash: 0, kind: None, id: None, group: None, task }
}

fn every_point() -> SeriesQuery {
    SeriesQuery { from_ms: 0, to_ms: u64::MAX, after: None, rows: 1000 }
}

fn points<S: Store>(bed: &Bed<S>, author: &Author, query: SeriesQuery) -> Vec<SeriesRow> {
    block_on(bed.store.series(author.tenant, query)).expect("a list")
}

fn shown(rows: &[SeriesRow]) -> Vec<(u64, &str, u64, u64)> {
    let row = |row: &'_ SeriesRow| (row.hour_ms / HOUR_MS, row.point.counter, row.point.sketch.count());
    rows.iter().map(|r| (row(r).0, &*r.name, row(r).1, row(r).2)).collect()
}

pub(super) fn series_add_up<S: Store>(bed: &Bed<S>) {
    let (ada, bob) = (bed.author("ada", "phone"), bed.author("bob", "phone"));
    let other = Author::join(&bed.store, "other", "ada", "phone");
    let send = |author: &Author, entries: Vec<Entry>| {
        let mut batch = author.batch([]);
        batch.entries = entries;
        let codes = codes_of(&bed.commit(batch).results);
        assert!(codes.iter().all(|code| *code == Applied), "{codes:?}");
    };
    send(&ada, vec![aggregate(1, &[("b", 2, &[1.0, 2.0]), ("a\"é", 1, &[])])]);
    send(&bob, vec![aggregate(1, &[("b", 3, &[100.0])]), aggregate(1, &[("b", 1, &[])])]);
    send(&ada, vec![aggregate(2, &[("b", u64::MAX, &[5.0])]), aggregate(0, &[("z", 0, &[])])]);
    send(&ada, vec![aggregate(2, &[("b", 9, &[])])]);
    send(&other, vec![aggregate(1, &[("b", 50, &[])])]);
    let rows = points(bed, &ada, every_point());
    let expected = [(0, "z", 0, 0), (1, "a\"é", 1, 0), (1, "b", 6, 3), (2, "b", u64::MAX, 1)];
    assert_eq!(shown(&rows), expected);
    let top = rows[2].point.sketch.quantile(1.0).expect("there are values");
    assert!((top - 100.0).abs() <= 1.0, "{top}");
    assert_eq!(shown(&points(bed, &other, every_point())), [(1, "b", 50, 0)]);

    let hour = SeriesQuery { from_ms: HOUR_MS, to_ms: 2 * HOUR_MS, ..every_point() };
    assert_eq!(points(bed, &ada, hour.clone()), rows[1..3]);
    assert_eq!(points(bed, &ada, SeriesQuery { rows: 1, ..hour.clone() }), rows[1..2]);
    let after = Some((HOUR_MS, "a\"é".into()));
    assert_eq!(points(bed, &ada, SeriesQuery { after, ..hour }), rows[2..3]);
    let after = Some((HOUR_MS, "b".into()));
    assert_eq!(points(bed, &ada, SeriesQuery { after, ..every_point() }), rows[3..]);

    let pruned = |now_ms, kept_ms| {
        let retention = Retention { series_ms: kept_ms, ..Retention::default() };
        block_on(bed.store.prune(now_ms, &retention)).expect("a prune")
    };
    assert_eq!((pruned(2 * HOUR_MS, None), pruned(2 * HOUR_MS, Some(2 * HOUR_MS))), (0, 0));
    assert_eq!(pruned(2 * HOUR_MS + 1, Some(HOUR_MS)), 4, "whole hours, of every tenant");
    assert_eq!(points(bed, &ada, every_point()), rows[3..]);
}

pub(super) fn old_samples_are_pruned<S: Store>(bed: &Bed<S>) {
    let (ada, tablet) = (bed.author("ada", "phone"), bed.author("ada", "tablet"));
    let other = Author::join(&bed.store, "other", "ada", "phone");
    let begin = World::BEGIN_MS;
    let many = (0..2500).map(|at| sample(&format!("m{at}"), "{}").kind("fix").at(at));
    bed.push(&ada, many);
    bed.push(&tablet, [sample("t", "{}").kind("fix").at(begin - 1), sample("u", "{}").kind("fix").at(begin)]);
    bed.push(&other, [sample("o", "{}").kind("fix").at(begin - 1)]);
    bed.push(&ada, [sample("kept", "{}").at(1)]);
    bed.world.clock.advance(1000);
    // It tells of an old time, and came late.
    bed.push(&ada, [sample("late", "{}").kind("fix").at(1)]);
    let pruned = |now_ms| {
        let samples = vec![(kind_name("fix"), 5000), (kind_name("unheard-of"), 1)];
        let retention = Retention { samples, ..Retention::default() };
        block_on(bed.store.prune(now_ms, &retention)).expect("a prune")
    };
    assert_eq!(pruned(begin + 5000), 0, "none was received before");
    assert_eq!(pruned(begin + 5001), 2503);
    assert_eq!(ids(&listed(bed, &ada, all("fix"))), ["late"]);
    assert_eq!(listed(bed, &other, all("fix")), []);
    assert_eq!(ids(&listed(bed, &ada, all("reading"))), ["kept"]);
    assert_eq!((pruned(begin + 6000), pruned(begin + 6001), pruned(begin + 6001)), (0, 1, 0));
    // What is removed may come again.
    bed.check_push(&ada, [sample("late", "{}").kind("fix").at(1)], &[Applied]);
}
