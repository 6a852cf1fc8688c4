//! Records that move between scopes, and readers who gain and lose them.

use std::collections::BTreeSet;

use driftline_engine::{Left, Only, Page, PageQuery, Place, Row, Store};
use driftline_model::{KindName, RecordId, ScopeName, Seq};
use driftline_protocol::ItemCode::{Applied, Forbidden, Invalid};

use super::{Bed, everything, ids_of, kind_name};
use crate::batch::{Author, Draft, create, delete, patch};
use crate::rng::Rng;

const TEAMS: [&str; 4] = ["a", "b", "c", "d"];

pub(super) fn team(name: &str) -> ScopeName {
    ScopeName::group("team", name).expect("a scope's name")
}

fn teams(names: &str) -> Vec<ScopeName> {
    names.chars().map(|name| team(&name.to_string())).collect()
}

/// Reads as one of some teams.
pub(super) fn reader(author: &Author, names: &str, place: Place) -> PageQuery {
    PageQuery { scopes: teams(names), place, ..everything(author) }
}

pub(super) fn fields(team: &str) -> String {
    format!(r#"{{"team":"{team}"}}"#)
}

/// Pushes as a member of every team.
pub(super) fn push<S: Store>(
    bed: &Bed<S>,
    author: &Author,
    drafts: impl IntoIterator<Item = Draft>,
) -> Vec<u64> {
    let mut batch = author.batch(drafts.into_iter().map(|draft| draft.grouped("team")));
    batch.scopes.extend(TEAMS.map(team));
    let results = bed.commit(batch).results;
    results.iter().map(|result| result.version.map_or(0, Seq::number)).collect()
}

fn since(seq: u64) -> Place {
    Place::After(Seq::new(seq))
}

fn left_of(page: &Page) -> Vec<(&str, &str, u64)> {
    page.left.iter().map(|left| (left.id.as_str(), left.scope.as_str(), left.seq.number())).collect()
}

pub(super) fn a_record_that_moves_leaves_an_exit<S: Store>(bed: &Bed<S>) {
    let ada = bed.author("ada", "phone");
    push(bed, &ada, [create("x", &fields("a")), create("y", &fields("a"))]);
    let see = |names: &str, after| bed.page(reader(&ada, names, since(after)));
    assert_eq!((ids_of(&see("a", 0).rows), see("b", 0).rows.len()), (vec!["x", "y"], 0));
    assert_eq!(bed.note(&ada, "x").entered, Seq::new(1));

    assert_eq!(push(bed, &ada, [patch("x", 1, &fields("b"))]), [3]);
    let row = bed.note(&ada, "x");
    assert_eq!((row.scope.as_str(), row.entered), ("group:team:b", Seq::new(3)));
    let page = see("a", 2);
    assert_eq!((page.rows.len(), left_of(&page), page.more), (0, vec![("x", "group:team:a", 3)], false));
    let page = see("b", 2);
    assert_eq!((ids_of(&page.rows), page.left.len()), (vec!["x"], 0));
    // Whoever reads both is told the row alone; whoever was told already hears nothing.
    let page = see("ab", 2);
    assert_eq!((ids_of(&page.rows), page.left.len()), (vec!["x"], 0));
    assert_eq!(see("a", 3).left, []);

    // A change within the scope does not enter it again.
    push(bed, &ada, [patch("x", 3, r#"{"n":1}"#)]);
    assert_eq!(bed.note(&ada, "x").entered, Seq::new(3));
    // It goes on: each of its former readers is told of the exit from its own scope.
    push(bed, &ada, [patch("x", 4, &fields("c"))]);
    assert_eq!(left_of(&see("ab", 2)), [("x", "group:team:a", 3), ("x", "group:team:b", 5)]);
    assert_eq!((left_of(&see("ac", 2)).len(), ids_of(&see("ac", 2).rows)), (0, vec!["x"]));
    // It is back, and nobody there is told that it left.
    push(bed, &ada, [patch("x", 5, &fields("a"))]);
    let page = see("a", 2);
    assert_eq!((ids_of(&page.rows), page.left.len()), (vec!["x"], 0));
    assert_eq!(left_of(&see("bc", 2)), [("x", "group:team:b", 5), ("x", "group:team:c", 6)]);
    // A filter of kinds holds for what left as well.
    let query = PageQuery { kinds: vec![kind_name("car")], ..reader(&ada, "bc", since(0)) };
    assert_eq!(bed.page(query).left, []);
}

pub(super) fn a_scope_is_named_and_may_be_written<S: Store>(bed: &Bed<S>) {
    let ada = bed.author("ada", "phone");
    push(bed, &ada, [create("x", &fields("a"))]);
    let mut batch = ada.batch([
        patch("x", 1, &fields("b")).grouped("team"),
        create("y", "{}").grouped("team"),
        create("z", r#"{"team":7}"#).grouped("team"),
    ]);
    batch.scopes = vec![team("a"), team("7")];
    let codes: Vec<_> = bed.commit(batch).results.iter().map(|result| result.code).collect();
    assert_eq!(codes, [Forbidden, Invalid, Applied]);
    assert_eq!(bed.note(&ada, "x").scope, team("a"), "nothing moves by a refused change");
    assert_eq!(bed.note(&ada, "z").scope, team("7"));
}

/// A random history of records that move.
pub(super) fn wander<S: Store>(bed: &Bed<S>, author: &Author, rng: &mut Rng, batches: u64) {
    for _ in 0..batches {
        let drafts: Vec<Draft> = (0..rng.between(1, 8)).map(|_| some_draft(bed, author, rng)).collect();
        push(bed, author, drafts);
    }
}

fn some_draft<S: Store>(bed: &Bed<S>, author: &Author, rng: &mut Rng) -> Draft {
    let id = format!("x{}", rng.below(30));
    let kind = ["car", "note"][rng.place(2)];
    let base = bed.head(author.tenant).seq.number();
    let body = format!(r#"{{"body":"{}","team":"{}"}}"#, "x".repeat(rng.place(60)), TEAMS[rng.place(4)]);
    let draft = match rng.below(6) {
        0 => delete(&id, base),
        1 | 2 => create(&id, &body),
        _ => patch(&id, base, &body),
    };
    draft.kind(kind)
}

/// Reads a place to its end; gives rows, what left, and the items in their order.
fn read<S: Store>(bed: &Bed<S>, query: &PageQuery) -> (Vec<Row>, Vec<Left>) {
    let (mut rows, mut left) = (Vec::<Row>::new(), Vec::<Left>::new());
    let mut query = query.clone();
    loop {
        let page = bed.page(query.clone());
        let size = page.rows.len() + page.left.len();
        assert!(size <= query.rows && (size > 0 || !page.more), "{query:?}: {size} items");
        let last = page.rows.last().map(|row| (row.kind.clone(), row.id.clone()));
        let last = last.or_else(|| page.left.last().map(|left| (left.kind.clone(), left.id.clone())));
        let seqs =
            page.rows.iter().map(|row| row.record.version).chain(page.left.iter().map(|left| left.seq));
        match &mut query.place {
            Place::After(after) => {
                assert!(seqs.clone().all(|seq| seq > *after), "a page goes on where the one before ended");
                *after = seqs.max().unwrap_or(*after);
            }
            Place::Key { after, .. } | Place::Lost { after, .. } => *after = last,
            Place::Range { after, .. } => *after = last.map(|(_, id)| id),
        }
        rows.extend(page.rows);
        left.extend(page.left);
        if !page.more {
            return (rows, left);
        }
    }
}

type Key = (KindName, RecordId);

fn keys(rows: &[Row]) -> BTreeSet<Key> {
    rows.iter().map(|row| (row.kind.clone(), row.id.clone())).collect()
}

fn left_keys(left: &[Left]) -> BTreeSet<Key> {
    left.iter().map(|left| (left.kind.clone(), left.id.clone())).collect()
}

const SIZES: [(usize, usize); 5] = [(1000, 1 << 20), (1, 1 << 20), (3, 1 << 20), (1000, 1), (5, 90)];

pub(super) fn exits_are_paged_with_the_rows<S: Store>(bed: &Bed<S>) {
    let ada = bed.author("ada", "phone");
    let mut rng = Rng::new(5);
    // What each reader was given at some moment, and everything that it is told afterwards.
    for _ in 0..4 {
        let before = bed.head(ada.tenant).seq;
        let held: Vec<_> = ["a", "ab", "bcd", "abcd"]
            .map(|names| (names, keys(&read(bed, &reader(&ada, names, snapshot())).0)))
            .into_iter()
            .collect();
        wander(bed, &ada, &mut rng, 8);
        for (names, held) in held {
            let now = keys(&read(bed, &reader(&ada, names, snapshot())).0);
            let whole = read(bed, &reader(&ada, names, Place::After(before)));
            for (rows, bytes) in SIZES {
                let query = PageQuery { rows, bytes, ..reader(&ada, names, Place::After(before)) };
                let told = read(bed, &query);
                assert_eq!(told, whole, "pages of {rows} rows and {bytes} bytes");
                let (rows, left) = told;
                let mut own = held.clone();
                for row in &rows {
                    let key = (row.kind.clone(), row.id.clone());
                    let _ = if row.deleted { own.remove(&key) } else { own.insert(key) };
                }
                own.retain(|key| !left_keys(&left).contains(key));
                assert_eq!(own, now, "readers of {names} end with what is there");
                assert!(left_keys(&left).is_disjoint(&keys(&rows)), "what is there did not leave");
            }
        }
    }
}

fn snapshot() -> Place {
    Place::Key { after: None, only: Only::All }
}

pub(super) fn lost_scopes_are_told_by_key<S: Store>(bed: &Bed<S>) {
    let ada = bed.author("ada", "phone");
    wander(bed, &ada, &mut Rng::new(6), 40);
    let given = |names: &str| keys(&read(bed, &reader(&ada, names, snapshot())).0);
    for (had, has) in [("ab", "a"), ("abcd", "cd"), ("a", ""), ("bc", "ad"), ("ab", "abc")] {
        let lost: Vec<ScopeName> =
            teams(had).into_iter().filter(|scope| !teams(has).contains(scope)).collect();
        let place = Place::Lost { after: None, lost: lost.clone() };
        for (rows, bytes) in SIZES {
            let (rows_told, left) = read(bed, &PageQuery { rows, bytes, ..reader(&ada, has, place.clone()) });
            assert_eq!(rows_told, [], "what is forgotten comes without its fields");
            assert_eq!(left_keys(&left).len(), left.len(), "each once");
            let told = left_keys(&left);
            // Everything that is readable no more is told, and nothing that still is.
            assert!(given(had).difference(&given(has)).all(|key| told.contains(key)), "from {had} to {has}");
            assert!(told.is_disjoint(&given(has)), "from {had} to {has}");
            assert!(left.iter().all(|left| lost.contains(&left.scope)));
        }
        let cars = PageQuery { kinds: vec![kind_name("car")], ..reader(&ada, has, place) };
        assert!(read(bed, &cars).1.iter().all(|left| left.kind == kind_name("car")));
    }
}

pub(super) fn what_is_missing_is_read_alone<S: Store>(bed: &Bed<S>) {
    let ada = bed.author("ada", "phone");
    wander(bed, &ada, &mut Rng::new(7), 30);
    let everything = read(bed, &reader(&ada, "abcd", snapshot())).0;
    let (car, b) = (kind_name("car"), team("b"));
    for (kinds, scopes) in
        [(vec![car], vec![]), (vec![], vec![b]), (vec![kind_name("car")], vec![team("b")]), (vec![], vec![])]
    {
        let wanted: BTreeSet<_> = everything
            .iter()
            .filter(|row| kinds.contains(&row.kind) || scopes.contains(&row.scope))
            .map(|row| (row.kind.clone(), row.id.clone()))
            .collect();
        let only = Only::Some { kinds, scopes };
        for (rows, bytes) in SIZES {
            let place = Place::Key { after: None, only: only.clone() };
            let (found, _) = read(bed, &PageQuery { rows, bytes, ..reader(&ada, "abcd", place) });
            assert_eq!((found.len(), keys(&found)), (wanted.len(), wanted.clone()), "{only:?}");
        }
    }
}

pub(super) fn a_range_is_read_by_its_ends<S: Store>(bed: &Bed<S>) {
    let ada = bed.author("ada", "phone");
    push(bed, &ada, ["d", "a", "c", "b", "e"].map(|id| create(id, &fields("a"))));
    push(bed, &ada, [create("bb", &fields("b")), create("c", &fields("a")).kind("car"), delete("e", 5)]);
    let id = |id: Option<&str>| id.map(|id| RecordId::new(id).expect("an id"));
    for (after, until, ids) in [
        (None, None, vec!["a", "b", "c", "d"]),
        (Some("a"), Some("c"), vec!["b", "c"]),
        (Some("aa"), Some("cc"), vec!["b", "c"]),
        (None, Some("a"), vec!["a"]),
        (Some("d"), None, vec![]),
        (Some("c"), Some("b"), vec![]),
    ] {
        let place =
            Place::Range { kind: kind_name("note"), scope: team("a"), after: id(after), until: id(until) };
        for rows in [1, 2, 1000] {
            let query = PageQuery { rows, ..reader(&ada, "ab", place.clone()) };
            assert_eq!(ids_of(&read(bed, &query).0), ids, "{place:?}");
        }
        // Only what the reader may see.
        assert_eq!(read(bed, &reader(&ada, "b", place.clone())).0, []);
        let cars = PageQuery { kinds: vec![kind_name("car")], ..reader(&ada, "ab", place) };
        assert_eq!(read(bed, &cars).0, []);
    }
}
