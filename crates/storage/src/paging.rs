//! How pages are cut, the same in every store.

use driftline_engine::{Head, Left, Page, PageQuery, Row, ScopeSum};
use driftline_model::Seq;

/// Something that a page holds.
#[expect(clippy::large_enum_variant, reason = "nearly every item is a row")]
#[derive(Debug)]
pub(crate) enum Item {
    Row(Row),
    Left(Left),
}

impl Item {
    /// Returns the place in the sequence by which the log is read.
    pub(crate) fn seq(&self) -> Seq {
        match self {
            Self::Row(row) => row.record.version,
            Self::Left(left) => left.seq,
        }
    }

    /// Returns the bytes that count towards a page; nothing is free.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Row(row) => row.record.fields.as_str().len().max(1),
            Self::Left(_) => 1,
        }
    }
}

/// Cuts a page to its rows and bytes: a prefix of the items, which holds one at least. `more` tells that items were
/// left out before.
pub(crate) fn cut(head: Head, items: Vec<Item>, query: &PageQuery, more: bool) -> Page {
    let mut bytes = 0;
    let fits = items.iter().take(query.rows).take_while(|item| {
        let first = bytes == 0;
        bytes += item.bytes();
        first || bytes <= query.bytes
    });
    let keep = fits.count();
    let mut page =
        Page { head, rows: Vec::new(), left: Vec::new(), more: more || keep < items.len(), sums: Vec::new() };
    for item in items.into_iter().take(keep) {
        match item {
            Item::Row(row) => page.rows.push(row),
            Item::Left(left) => page.left.push(left),
        }
    }
    page
}

/// Orders sums by the names of their scopes and kinds.
pub(crate) fn sort_sums(sums: &mut [ScopeSum]) {
    sums.sort_by(|a, b| (&a.scope, &a.kind).cmp(&(&b.scope, &b.kind)));
}
