//! Stores that outlive their process.

use std::sync::Arc;

use driftline_conflict::{Granularity, Policy, Strategy};
use driftline_engine::{Head, Only, PageQuery, Place, Row, Store};
use driftline_model::{Seq, SyncId};
use driftline_protocol::ItemCode::{Applied, Gone, Superseded, TooOld};

use super::{Bed, everything, kind_name};
use crate::batch::{Author, create, delete, patch, restore};
use crate::wait::block_on;
use crate::world::World;

/// Everything that a tenant can read of itself, as text.
fn contents<S: Store>(bed: &Bed<S>, author: &Author, session: &SyncId) -> (Head, Vec<Row>, String) {
    let tenant = author.tenant;
    let rows = bed.log(&everything(author));
    let keys =
        bed.page(PageQuery { place: Place::Key { after: None, only: Only::All }, ..everything(author) }).rows;
    let mut policies = block_on(bed.store.policies(tenant)).expect("a read");
    policies.sort_by(|a, b| a.kind.cmp(&b.kind));
    let mut rest = format!("{keys:?} {policies:?} {:?}", bed.store.cursor_secret());
    let progress = block_on(bed.store.session(tenant, author.device, session)).expect("a read");
    rest.push_str(&format!("{progress:?}"));
    for row in &rows {
        let history = block_on(bed.store.history(tenant, &row.kind, &row.id)).expect("a read");
        let history = history.expect("the record exists");
        let (mut devices, mut ops) = (history.devices, history.ops);
        devices.sort();
        ops.sort();
        rest.push_str(&format!("{:?} {devices:?} {ops:?} {:?}", history.row, history.audit));
    }
    (bed.head(tenant), rows, rest)
}

pub(super) fn everything_is_still_there<S: Store>(world: World, open: &impl Fn(&World) -> S) {
    let session = SyncId::new("00000000-0000-4000-8000-000000000001").expect("a UUID");
    let mut bed = Bed::new(world, open);
    let (ada, bob) = (bed.author("ada", "phone"), bed.author("bob", "tablet"));
    let other = Author::join(&bed.store, "other", "ada", "phone");
    let policy =
        Arc::new(Policy { strategy: Strategy::ServerWins { granularity: Granularity::Field }, version: 3 });
    let first = [
        create("a", r#"{"x":1,"é":"\u001f"}"#).n(1).op_id("a").schema(2),
        create("b", "{}").n(2).owned(),
        create("c", "{}").n(3).kind("car"),
        patch("nowhere", 0, "{}").n(4),
    ];
    bed.check_push(&ada, first.clone(), &[Applied, Applied, Applied, Gone]);
    let lost = patch("a", 0, r#"{"x":2}"#).n(1).policy(&policy);
    bed.check_push(&bob, [lost.clone()], &[Superseded]);
    let mut batch = ada.batch([patch("a", 1, r#"{"x":5}"#).n(5), delete("c", 3).n(6).kind("car")]);
    (batch.batch, batch.acked_n) = (Some((session.clone(), 7)), Some(2));
    bed.commit(batch);
    bed.push(&ada, [delete("b", 2).n(7), restore("b", 6, r#"{"back":true}"#).n(8)]);
    let set = |doc: Option<&str>| {
        let doc = doc.map(str::to_owned);
        block_on(bed.store.set_policy(ada.tenant, &kind_name("note"), doc)).expect("a write")
    };
    set(Some("{}"));
    set(None);
    let version = set(Some(r#"{"strategy":"client_wins"}"#)).expect("a version");
    block_on(bed.store.begin_epoch(ada.tenant, bed.head(ada.tenant).epoch)).expect("a write");
    let before = contents(&bed, &ada, &session);
    bed.world.listeners.take();

    for round in 0..2 {
        let Bed { store, world } = bed;
        drop(store);
        bed = Bed::new(world, open);
        assert_eq!(contents(&bed, &ada, &session), before, "opened again, time {round}");
        for (author, name) in [(&ada, ("acme", "ada", "phone")), (&bob, ("acme", "bob", "tablet"))] {
            let again = Author::join(&bed.store, name.0, name.1, name.2);
            assert_eq!((again.tenant, again.device), (author.tenant, author.device));
        }
        assert_eq!(Author::join(&bed.store, "other", "ada", "phone").tenant, other.tenant);
        let again = bed.check_push(&ada, first.clone(), &[TooOld, TooOld, Applied, Gone]);
        assert!(again[2].duplicate && again[3].duplicate);
        assert!(bed.check_push(&bob, [lost.clone()], &[Superseded])[0].duplicate);
        assert_eq!(bed.head(ada.tenant), before.0);
        assert!(bed.world.listeners.take().is_empty());
    }

    // And it goes on where it stood.
    let next = bed.check_push(&ada, [create("new", "{}")], &[Applied]);
    assert_eq!(next[0].version, Some(Seq::new(before.0.seq.number() + 1)));
    assert_eq!(bed.note(&ada, "new").record.live.n, 9);
    let set = block_on(bed.store.set_policy(ada.tenant, &kind_name("note"), None)).expect("a write");
    assert!(set > Some(version));
}
