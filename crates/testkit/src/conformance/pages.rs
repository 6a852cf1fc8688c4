//! Reading rows, by the log and by key.

use std::collections::BTreeMap;

use driftline_engine::{Only, PageQuery, Place, Row, Store};
use driftline_model::{RecordId, ScopeName, Seq, UserId};
use driftline_protocol::ItemCode::Applied;

use super::{Bed, everything, ids_of, kind_name, owner_of, versions_of};
use crate::batch::{create, delete, patch, restore};
use crate::rng::Rng;

pub(super) fn the_log_is_read_in_order<S: Store>(bed: &Bed<S>) {
    let ada = bed.author("ada", "phone");
    let ids: Vec<String> = (0..10).map(|at| format!("x{at}")).collect();
    bed.push(&ada, ids.iter().map(|id| create(id, r#"{"a":1}"#)));
    bed.push(&ada, [patch("x3", 4, r#"{"a":2}"#), patch("x0", 1, r#"{"a":2}"#)]);
    let query = everything(&ada);
    let rows = bed.log(&query);
    assert_eq!(ids_of(&rows), ["x1", "x2", "x4", "x5", "x6", "x7", "x8", "x9", "x3", "x0"]);
    assert_eq!(versions_of(&rows), [2, 3, 5, 6, 7, 8, 9, 10, 11, 12], "each row once, where it changed last");

    let page = bed.page(PageQuery { place: Place::After(Seq::new(6)), rows: 3, ..query.clone() });
    assert_eq!((versions_of(&page.rows), page.more), (vec![7, 8, 9], true));
    assert_eq!(page.head, bed.head(ada.tenant));
    let page = bed.page(PageQuery { place: Place::After(Seq::new(9)), rows: 3, ..query.clone() });
    assert_eq!((versions_of(&page.rows), page.more), (vec![10, 11, 12], false));
    for after in [12, 13, 1 << 40] {
        let page = bed.page(PageQuery { place: Place::After(Seq::new(after)), ..query.clone() });
        assert_eq!((page.rows.len(), page.more, page.head.seq), (0, false, Seq::new(12)));
    }
    for rows in 1..12 {
        let paged = bed.log(&PageQuery { rows, ..query.clone() });
        assert_eq!(paged, bed.log(&query), "{rows} rows a page");
    }
}

pub(super) fn scopes_are_merged_without_a_gap<S: Store>(bed: &Bed<S>) {
    let (ada, bob) = (bed.author("ada", "phone"), bed.author("bob", "phone"));
    let mut rng = Rng::new(11);
    let mut visible = BTreeMap::new();
    // Small rows of the tenant between large ones of their owner, and rows of somebody else in between.
    for at in 0..120 {
        let id = format!("x{at}");
        let size = if rng.percent(30) { rng.between(200, 900) } else { rng.between(0, 20) };
        let body = format!(r#"{{"a":"{}"}}"#, "x".repeat(usize::try_from(size).expect("small")));
        let draft = create(&id, &body);
        let (author, draft, seen) = match rng.below(5) {
            0 => (&bob, draft.owned(), false),
            1 | 2 => (&ada, draft.owned(), true),
            _ => (&bob, draft, true),
        };
        let version = bed.push(author, [draft])[0].version.expect("applied");
        if seen {
            visible.insert(version.number(), id);
        }
    }
    let query = PageQuery {
        scopes: vec![owner_of(&ada), ScopeName::tenant(), scope_of("nobody")],
        ..everything(&ada)
    };
    for (rows, bytes) in [
        (1000, 1 << 20),
        (7, 1 << 20),
        (1, 1 << 20),
        (1000, 1),
        (1000, 300),
        (1000, 1500),
        (5, 700),
        (40, 5000),
    ] {
        let read = bed.log(&PageQuery { rows, bytes, ..query.clone() });
        let read: BTreeMap<u64, String> =
            read.iter().map(|row| (row.record.version.number(), row.id.to_string())).collect();
        assert_eq!(read, visible, "pages of {rows} rows and {bytes} bytes");
        let page = bed.page(PageQuery { rows, bytes, ..query.clone() });
        assert_keeps_to_its_bytes(&page.rows, bytes);
    }
}

/// A page is filled to its bytes and not beyond; its first row always fits.
fn assert_keeps_to_its_bytes(rows: &[Row], bytes: usize) {
    let used: usize = rows.iter().map(|row| row.record.fields.as_str().len()).sum();
    assert!(rows.len() == 1 || used <= bytes, "{used} bytes in {} rows, {bytes} wanted", rows.len());
}

pub(super) fn the_key_order_holds_every_live_row_once<S: Store>(bed: &Bed<S>) {
    let (ada, bob) = (bed.author("ada", "phone"), bed.author("bob", "phone"));
    let mut wanted = BTreeMap::new();
    for (at, id) in ["b", "ä", "a", "B", "z", "aa", "日本", "10", "9", "😀", "\u{fb33}"].iter().enumerate()
    {
        for kind in ["note", "car", "movie"] {
            let draft = create(id, r#"{"a":1}"#).kind(kind);
            let (author, draft, seen) = match (at % 4, kind) {
                (3, "car") => (&bob, draft.owned(), false),
                (2, _) => (&ada, draft.owned(), true),
                _ => (&bob, draft, true),
            };
            bed.check_push(author, [draft], &[Applied]);
            if seen {
                wanted.insert((kind.to_owned(), (*id).to_owned()), ());
            }
        }
    }
    bed.check_push(&bob, [delete("b", 1)], &[Applied]);
    wanted.remove(&("note".to_owned(), "b".to_owned()));

    for (rows, bytes) in [(1000, 1 << 20), (1, 1 << 20), (3, 1 << 20), (1000, 1), (1000, 20), (4, 15)] {
        let read = by_key(bed, &PageQuery { rows, bytes, ..everything(&ada) });
        // Which kind comes first is the store's own affair; within one, ids go up by their bytes.
        for pair in read.windows(2) {
            assert!(pair[0].0 != pair[1].0 || pair[0].1 < pair[1].1, "{pair:?}");
        }
        let changes = read.windows(2).filter(|pair| pair[0].0 != pair[1].0).count();
        assert_eq!(changes, 2, "each kind in one piece");
        let found: BTreeMap<_, _> = read.iter().cloned().map(|key| (key, ())).collect();
        assert_eq!(
            (read.len(), found),
            (wanted.len(), wanted.clone()),
            "pages of {rows} rows and {bytes} bytes"
        );
    }
}

fn by_key<S: Store>(bed: &Bed<S>, query: &PageQuery) -> Vec<(String, String)> {
    let mut read = Vec::new();
    let mut place = Place::Key { after: None, only: Only::All };
    loop {
        let page = bed.page(PageQuery { place, ..query.clone() });
        assert!(page.rows.len() <= query.rows);
        assert_keeps_to_its_bytes(&page.rows, query.bytes);
        read.extend(page.rows.iter().map(|row| (row.kind.to_string(), row.id.to_string())));
        let Some(last) = page.rows.last().filter(|_| page.more) else { return read };
        place = Place::Key { after: Some((last.kind.clone(), last.id.clone())), only: Only::All };
    }
}

pub(super) fn kinds_are_filtered<S: Store>(bed: &Bed<S>) {
    let ada = bed.author("ada", "phone");
    let kinds = ["car", "note", "movie", "car", "note", "note"];
    bed.push(&ada, (0..6).map(|at| create(&format!("x{at}"), "{}").kind(kinds[at])));
    for (wanted, ids) in [
        (vec![], vec!["x0", "x1", "x2", "x3", "x4", "x5"]),
        (vec!["note"], vec!["x1", "x4", "x5"]),
        (vec!["movie", "car"], vec!["x0", "x2", "x3"]),
        (vec!["car", "unheard_of"], vec!["x0", "x3"]),
        (vec!["unheard_of"], vec![]),
    ] {
        let query =
            PageQuery { kinds: wanted.iter().map(|kind| kind_name(kind)).collect(), ..everything(&ada) };
        assert_eq!(ids_of(&bed.log(&query)), ids, "{wanted:?}");
        // A filter leaves no holes in the pages.
        let page = bed.page(PageQuery { rows: 2, ..query.clone() });
        assert_eq!((page.rows.len(), page.more), (ids.len().min(2), ids.len() > 2), "{wanted:?}");
        let mut keys: Vec<String> = by_key(bed, &query).into_iter().map(|(_, id)| id).collect();
        keys.sort_unstable();
        assert_eq!(keys, ids, "{wanted:?}");
    }
}

pub(super) fn tombstones_are_in_the_log_only<S: Store>(bed: &Bed<S>) {
    let ada = bed.author("ada", "phone");
    bed.push(&ada, [create("a", r#"{"a":1}"#), create("b", "{}"), delete("a", 1), delete("b", 2)]);
    bed.push(&ada, [restore("b", 4, "{}")]);
    let log = bed.log(&everything(&ada));
    let flags: Vec<_> = log.iter().map(|row| (row.id.as_str(), row.deleted)).collect();
    assert_eq!(flags, [("a", true), ("b", false)]);
    assert_eq!(log[0].record.fields.as_str(), r#"{"a":1}"#, "a tombstone keeps its fields");
    assert_eq!(by_key(bed, &everything(&ada)), [("note".to_owned(), "b".to_owned())]);
    assert!(bed.note(&ada, "a").deleted && !bed.note(&ada, "b").deleted);
}

pub(super) fn a_page_holds_one_row_at_least<S: Store>(bed: &Bed<S>) {
    let ada = bed.author("ada", "phone");
    let large = format!(r#"{{"a":"{}"}}"#, "x".repeat(5000));
    bed.push(&ada, [create("a", &large), create("b", &large).owned(), create("c", "{}"), create("d", "{}")]);
    for place in [Place::After(Seq::ZERO), Place::Key { after: None, only: Only::All }] {
        let page = bed.page(PageQuery { place, rows: 10, bytes: 10, ..everything(&ada) });
        assert_eq!((ids_of(&page.rows), page.more), (vec!["a"], true));
    }
    let place =
        Place::Key { after: Some((kind_name("note"), RecordId::new("b").expect("an id"))), only: Only::All };
    let page = bed.page(PageQuery { place, rows: 10, bytes: 4, ..everything(&ada) });
    assert_eq!((ids_of(&page.rows), page.more), (vec!["c", "d"], false), "exactly full is not over");
}

pub(super) fn unknown_names_find_nothing<S: Store>(bed: &Bed<S>) {
    let ada = bed.author("ada", "phone");
    bed.push(&ada, [create("a", "{}")]);
    let nobody = PageQuery { scopes: Vec::new(), ..everything(&ada) };
    let stranger = PageQuery { scopes: vec![scope_of("eve")], ..everything(&ada) };
    for query in [nobody, stranger] {
        for place in [Place::After(Seq::ZERO), Place::Key { after: None, only: Only::All }] {
            let page = bed.page(PageQuery { place, ..query.clone() });
            assert_eq!((page.rows.len(), page.more, page.head), (0, false, bed.head(ada.tenant)));
        }
    }
    assert_eq!(bed.row(&ada, "note", "b"), None);
    assert_eq!(bed.row(&ada, "unheard_of", "a"), None);
}

fn scope_of(user: &str) -> ScopeName {
    ScopeName::owner(&UserId::text(user).expect("a user's name"))
}
