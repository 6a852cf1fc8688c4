//! The registry of devices.

use std::sync::Arc;

use driftline_engine::{
    DeviceAction, DeviceChange, DeviceChanged, DeviceNote, DeviceOnce, DeviceQuery, DeviceRow, DeviceSign,
    Remembered, Store,
};
use driftline_idempotency::{State, WINDOW_MS_DEFAULT};
use driftline_model::{DeviceId, DeviceNo, TenantId, TenantNo};
use driftline_protocol::ItemCode::Applied;

use super::Bed;
use super::once::{key, named, print_of};
use crate::batch::{Author, create};
use crate::rng::Rng;
use crate::wait::block_on;
use crate::world::World;

const DIGEST: [u8; 32] = [7; 32];
const OTHER: [u8; 32] = [8; 32];

fn tenant<S: Store>(bed: &Bed<S>, name: &str) -> TenantNo {
    block_on(bed.store.tenant(&TenantId::new(name).expect("a name"))).expect("a tenant")
}

fn id(device_id: &str) -> DeviceId {
    DeviceId::new(device_id).expect("a device's name")
}

fn change(owner: &str, device_id: &str, action: DeviceAction) -> DeviceChange {
    DeviceChange { owner: owner.into(), device_id: id(device_id), action, enabled: None, digest: None }
}

fn register(owner: &str, device_id: &str) -> DeviceChange {
    change(owner, device_id, DeviceAction::Register)
}

fn update(owner: &str, device_id: &str) -> DeviceChange {
    change(owner, device_id, DeviceAction::Update)
}

fn retire(owner: &str, device_id: &str) -> DeviceChange {
    change(owner, device_id, DeviceAction::Retire)
}

fn with(digest: [u8; 32], change: DeviceChange) -> DeviceChange {
    DeviceChange { digest: Some(digest), ..change }
}

fn changed<S: Store>(
    bed: &Bed<S>,
    tenant: TenantNo,
    change: DeviceChange,
    once: Option<DeviceOnce>,
) -> DeviceChanged {
    block_on(bed.store.change_device(tenant, change, once)).expect("a change")
}

#[track_caller]
fn done<S: Store>(bed: &Bed<S>, tenant: TenantNo, change: DeviceChange) -> DeviceRow {
    match changed(bed, tenant, change, None) {
        DeviceChanged::Done(row) => *row,
        other => panic!("{other:?}"),
    }
}

fn row<S: Store>(bed: &Bed<S>, tenant: TenantNo, device: DeviceNo) -> Option<DeviceRow> {
    block_on(bed.store.device_row(tenant, device)).expect("a read")
}

fn found<S: Store>(bed: &Bed<S>, digest: [u8; 32]) -> Option<(String, TenantNo, DeviceRow)> {
    let found = block_on(bed.store.device_by_digest(digest)).expect("a read");
    found.map(|(name, tenant, row)| (name.to_string(), tenant, row))
}

fn listed<S: Store>(bed: &Bed<S>, tenant: TenantNo, query: DeviceQuery) -> Vec<DeviceRow> {
    block_on(bed.store.devices(tenant, query)).expect("a list")
}

fn all() -> DeviceQuery {
    DeviceQuery { rows: 1000, ..DeviceQuery::default() }
}

pub(super) fn a_device_is_registered_changed_and_retired<S: Store>(bed: &Bed<S>) {
    let acme = tenant(bed, "acme");
    assert_eq!(changed(bed, acme, update("ada", "phone"), None), DeviceChanged::NotFound);
    assert_eq!(changed(bed, acme, retire("ada", "phone"), None), DeviceChanged::NotFound);
    let phone = done(bed, acme, register("ada", "phone"));
    assert!(phone.is_admitted() && !phone.hashed && !phone.online);
    assert_eq!((&*phone.owner, phone.device_id.as_str()), ("ada", "phone"));
    assert_eq!((phone.created_ms, phone.last_seen_ms), (World::BEGIN_MS, World::BEGIN_MS));
    assert_eq!((&phone.status, &phone.report), (&None, &None));
    assert_eq!(row(bed, acme, phone.device), Some(phone.clone()));
    let ada = bed.author("ada", "phone");
    assert_eq!((ada.device, phone.key.user()), (phone.device, "ada"), "it is the device that pushes");

    bed.world.clock.advance(1000);
    let exists = DeviceChanged::Exists(Box::new(phone.clone()));
    let again = DeviceChange { enabled: Some(false), ..with(DIGEST, register("ada", "phone")) };
    assert_eq!(changed(bed, acme, again, None), exists, "it stays as it was");
    assert_eq!(row(bed, acme, phone.device), Some(phone.clone()));

    let disabled = done(bed, acme, DeviceChange { enabled: Some(false), ..update("ada", "phone") });
    assert_eq!(disabled, DeviceRow { enabled: false, ..phone.clone() });
    assert!(!disabled.is_admitted());
    let hashed = done(bed, acme, with(DIGEST, update("ada", "phone")));
    assert_eq!(hashed, DeviceRow { hashed: true, ..disabled });
    let enabled = done(bed, acme, DeviceChange { enabled: Some(true), ..update("ada", "phone") });
    assert_eq!(enabled, DeviceRow { hashed: true, ..phone.clone() });

    let retired = done(bed, acme, with(OTHER, retire("ada", "phone")));
    assert_eq!(retired, DeviceRow { retired: true, ..phone.clone() });
    assert_eq!(row(bed, acme, phone.device), Some(retired));
    assert_eq!((found(bed, DIGEST), found(bed, OTHER), listed(bed, acme, all())), (None, None, vec![]));
    assert_eq!(changed(bed, acme, update("ada", "phone"), None), DeviceChanged::NotFound);
    assert_eq!(changed(bed, acme, retire("ada", "phone"), None), DeviceChanged::NotFound);
    assert_eq!(done(bed, acme, register("ada", "phone")), phone, "it is what it was, without a hash");
    assert_eq!(bed.author("ada", "phone").device, phone.device);
    assert_eq!(row(bed, tenant(bed, "other"), phone.device), None);
    assert_eq!(row(bed, acme, DeviceNo::new(1 << 20)), None);
}

pub(super) fn devices_are_listed_by_their_numbers<S: Store>(bed: &Bed<S>) {
    let (acme, other) = (tenant(bed, "acme"), tenant(bed, "other"));
    let pushed = bed.author("bob", "b");
    for (owner, device) in [("ada", "c"), ("ada", "b"), ("cleo", "b"), ("ada", "a")] {
        done(bed, acme, register(owner, device));
    }
    done(bed, other, register("ada", "c"));
    done(bed, acme, retire("cleo", "b"));
    let names = |query| {
        let rows = listed(bed, acme, query);
        assert!(rows.windows(2).all(|pair| pair[0].device < pair[1].device));
        rows.into_iter().map(|row| format!("{}/{}", row.owner, row.device_id)).collect::<Vec<_>>()
    };
    assert_eq!(names(all()), ["bob/b", "ada/c", "ada/b", "ada/a"]);
    assert_eq!(names(DeviceQuery { rows: 2, ..all() }), ["bob/b", "ada/c"]);
    assert_eq!(names(DeviceQuery { after: Some(pushed.device), rows: 2, ..all() }), ["ada/c", "ada/b"]);
    assert_eq!(names(DeviceQuery { owner: Some("ada".into()), ..all() }), ["ada/c", "ada/b", "ada/a"]);
    assert_eq!(names(DeviceQuery { device_id: Some(id("b")), ..all() }), ["bob/b", "ada/b"]);
    let one = DeviceQuery { owner: Some("ada".into()), device_id: Some(id("b")), ..all() };
    assert_eq!(names(one), ["ada/b"]);
    assert_eq!(names(DeviceQuery { owner: Some("nobody".into()), ..all() }), [""; 0]);
    assert_eq!(listed(bed, other, all()).len(), 1);
}

pub(super) fn a_hash_leads_to_one_device<S: Store>(bed: &Bed<S>) {
    let (acme, other) = (tenant(bed, "acme"), tenant(bed, "other"));
    let phone = done(bed, acme, with(DIGEST, register("ada", "phone")));
    assert_eq!(found(bed, DIGEST), Some(("acme".into(), acme, phone.clone())));
    assert_eq!(found(bed, OTHER), None);
    for (who, change) in [
        (acme, register("ada", "tablet")),
        (acme, register("bob", "phone")),
        (other, register("ada", "phone")),
    ] {
        assert_eq!(changed(bed, who, with(DIGEST, change), None), DeviceChanged::HashTaken);
    }
    assert_eq!((listed(bed, acme, all()).len(), listed(bed, other, all()).len()), (1, 0), "none was made");
    let there = done(bed, other, with(OTHER, register("ada", "phone")));
    let taken = DeviceChange { enabled: Some(false), ..with(DIGEST, update("ada", "phone")) };
    assert_eq!(changed(bed, other, taken, None), DeviceChanged::HashTaken);
    assert_eq!(found(bed, OTHER), Some(("other".into(), other, there.clone())), "it stays as it was");

    // The same again is no other, and a new one takes the place of the old one, which is free then.
    assert_eq!(done(bed, acme, with(DIGEST, update("ada", "phone"))), phone);
    done(bed, acme, with([9; 32], update("ada", "phone")));
    assert_eq!(found(bed, DIGEST), None);
    assert_eq!(done(bed, other, with(DIGEST, update("ada", "phone"))), there);
    assert_eq!(found(bed, DIGEST).map(|found| found.1), Some(other));
    done(bed, other, retire("ada", "phone"));
    assert!(done(bed, acme, with(DIGEST, register("bob", "new"))).hashed);
}

/// The key of a change whose answer is its device's name and how often it was asked for.
fn once(owner: &str, name: &str, content: &str) -> DeviceOnce {
    DeviceOnce {
        owner: owner.into(),
        key: name.into(),
        fingerprint: print_of(content),
        window_ms: WINDOW_MS_DEFAULT,
        answer: Arc::new(|row| format!("{} {}", row.device_id, row.enabled).into_bytes()),
    }
}

pub(super) fn a_change_is_made_once_under_its_key<S: Store>(bed: &Bed<S>) {
    let (acme, other) = (tenant(bed, "acme"), tenant(bed, "other"));
    let first = || Some(once("user:ada", "k", "one"));
    // What is refused leaves the key free.
    assert_eq!(changed(bed, acme, update("ada", "phone"), first()), DeviceChanged::NotFound);
    assert_eq!(block_on(bed.store.remembered(acme, "user:ada", "k")), Ok(None));
    let made = changed(bed, acme, register("ada", "phone"), first());
    assert!(matches!(made, DeviceChanged::Done(_)), "{made:?}");
    let before = DeviceChanged::Replayed(b"phone true"[..].into());
    assert_eq!(changed(bed, acme, register("ada", "phone"), first()), before);
    done(bed, acme, DeviceChange { enabled: Some(false), ..update("ada", "phone") });
    assert_eq!(changed(bed, acme, register("ada", "phone"), first()), before, "the answer of then");

    let kept = block_on(bed.store.remembered(acme, "user:ada", "k")).expect("a read").expect("a record");
    assert_eq!(kept.state, State::Done(Remembered::Bytes(b"phone true"[..].into())));
    assert_eq!(kept.expires_ms, World::BEGIN_MS + WINDOW_MS_DEFAULT);

    let reused = || Some(once("user:ada", "k", "two"));
    assert_eq!(changed(bed, acme, register("ada", "tablet"), reused()), DeviceChanged::Reused);
    assert_eq!(listed(bed, acme, all()).len(), 1);
    assert_eq!(changed(bed, acme, register("ada", "phone"), first()), before, "the first is unharmed");
    // A batch under the key is another request, and a change under a batch's key.
    let ada = bed.author("ada", "phone");
    let batch = bed.commit(named(&ada, [create("x", "{}")], [key("user:ada", "k", "one")]));
    assert_eq!((batch.answered, batch.results), (driftline_engine::Answered::Reused, vec![]));
    let batch = bed.commit(named(&ada, [create("x", "{}")], [key("user:ada", "b", "one")]));
    assert_eq!(super::codes_of(&batch.results), [Applied]);
    let under = Some(once("user:ada", "b", "one"));
    assert_eq!(changed(bed, acme, register("ada", "tablet"), under), DeviceChanged::Reused);

    for (who, owner) in [(acme, "user:bob"), (other, "user:ada")] {
        let made = changed(bed, who, register("bob", "new"), Some(once(owner, "k", "three")));
        assert!(matches!(made, DeviceChanged::Done(_)), "{made:?}");
    }
    bed.world.clock.advance(WINDOW_MS_DEFAULT);
    let exists = changed(bed, acme, register("ada", "phone"), first());
    assert!(matches!(exists, DeviceChanged::Exists(_)), "forgotten: {exists:?}");
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

fn connected(connection: &str) -> DeviceSign {
    DeviceSign::Connected { connection: connection.into() }
}

fn disconnected(connection: &str) -> DeviceSign {
    DeviceSign::Disconnected { connection: connection.into() }
}

fn reported(status: Option<&str>, report: &str) -> DeviceSign {
    DeviceSign::Reported { status: status.map(Into::into), report: report.into() }
}

pub(super) fn what_is_noticed_is_written_down<S: Store>(bed: &Bed<S>) {
    let (ada, bob) = (bed.author("ada", "phone"), bed.author("bob", "phone"));
    let other = Author { tenant: tenant(bed, "other"), ..ada.clone() };
    let seen = || row(bed, ada.tenant, ada.device).expect("it is registered");
    let untouched = row(bed, bob.tenant, bob.device);
    note(bed, &ada, vec![(50, DeviceSign::Heard), (40, DeviceSign::Heard)]);
    assert_eq!(seen().last_seen_ms, World::BEGIN_MS + 50, "it only rises");
    note(bed, &ada, vec![(60, connected("c1")), (60, reported(Some("ok"), r#"{"battery":5}"#))]);
    assert!(seen().online);
    assert_eq!((seen().status.as_deref(), seen().report.as_deref()), (Some("ok"), Some(r#"{"battery":5}"#)));
    note(bed, &ada, vec![(70, reported(None, "{}")), (65, reported(Some("old"), r#"{"old":1}"#))]);
    assert_eq!((seen().status.as_deref(), seen().report.as_deref()), (Some("ok"), Some("{}")));
    note(bed, &ada, vec![(80, disconnected("c0"))]);
    assert!(seen().online, "another connection's end");
    note(bed, &ada, vec![(90, connected("c2")), (91, disconnected("c1"))]);
    assert!(seen().online, "it connected again since");
    note(bed, &other, vec![(95, disconnected("c2")), (96, DeviceSign::Heard)]);
    assert_eq!((seen().online, seen().last_seen_ms), (true, World::BEGIN_MS + 91), "of no other tenant");
    note(bed, &ada, vec![(92, disconnected("c2"))]);
    assert!(!seen().online);
    // A push hears the device too, and a connection that was opened before is no news after it.
    bed.world.clock.advance(500);
    bed.check_push(&ada, [create("x", "{}")], &[Applied]);
    note(bed, &ada, vec![(400, connected("c3"))]);
    assert_eq!((seen().online, seen().last_seen_ms), (true, World::BEGIN_MS + 500));
    assert_eq!(row(bed, bob.tenant, bob.device), untouched);
    note(bed, &Author { device: DeviceNo::new(1 << 20), ..ada.clone() }, vec![(1, connected("c"))]);
    note(bed, &ada, (0..2500).map(|at| (1000 + at, DeviceSign::Heard)).collect());
    assert_eq!(seen().last_seen_ms, World::BEGIN_MS + 3499);
}

/// What several nodes noticed of a device comes in any order that keeps each connection's own.
pub(super) fn notes_may_come_in_any_order<S: Store>(bed: &Bed<S>) {
    for seed in 0..60 {
        let rng = &mut Rng::new(seed);
        let ada = bed.author("ada", &format!("phone{seed}"));
        let open_at_last = rng.percent(50);
        // Each connection of the device begins after the one before; the last one may still be open.
        let mut connections: Vec<Vec<(u64, DeviceSign)>> = (1..=3_u64)
            .map(|at| {
                let name = format!("c{at}");
                let open = (at * 100, connected(&name));
                let gone = (at * 100 + rng.between(1, 250), disconnected(&name));
                let report = (at * 100 + 1, reported(Some(&name), "{}"));
                if at == 3 && open_at_last { vec![open, report] } else { vec![open, report, gone] }
            })
            .collect();
        let mut notes = Vec::new();
        while connections.iter().any(|notes| !notes.is_empty()) {
            let at = rng.place(3);
            if !connections[at].is_empty() {
                notes.push(connections[at].remove(0));
            }
        }
        let last = notes.iter().map(|(at, _)| *at).max();
        note(bed, &ada, notes.clone());
        let row = row(bed, ada.tenant, ada.device).expect("it is registered");
        assert_eq!(row.online, open_at_last, "seed {seed}: {notes:?}");
        assert_eq!(row.status.as_deref(), Some("c3"), "seed {seed}: {notes:?}");
        assert_eq!(Some(row.last_seen_ms - World::BEGIN_MS), last, "seed {seed}: {notes:?}");
    }
}

/// The registry is still there when a store is opened again.
pub(super) fn devices_are_still_there<S: Store>(world: World, open: &impl Fn(&World) -> S) {
    let bed = Bed::new(world, open);
    let acme = tenant(&bed, "acme");
    let ada = bed.author("ada", "phone");
    done(&bed, acme, with(DIGEST, DeviceChange { enabled: Some(false), ..update("ada", "phone") }));
    done(&bed, acme, register("ada", "gone"));
    done(&bed, acme, retire("ada", "gone"));
    note(&bed, &ada, vec![(10, reported(Some("ok"), r#"{"a":1}"#)), (20, DeviceSign::Heard)]);
    let (before, led) = (listed(&bed, acme, all()), found(&bed, DIGEST));
    assert_eq!((before.len(), led.is_some()), (1, true));
    let Bed { store, world } = bed;
    drop(store);
    let bed = Bed::new(world, open);
    assert_eq!((listed(&bed, acme, all()), found(&bed, DIGEST)), (before, led));
}
