//! Tenants, devices, policies, epochs and sessions.

use driftline_engine::Store;
use driftline_model::{DeviceId, DeviceKey, Seq, SyncId, TenantId, UserId};
use driftline_protocol::ItemCode::Applied;

use super::{Bed, everything, kind_name};
use crate::batch::{Author, create};
use crate::wait::block_on;
use crate::world::World;

fn sync_id(digit: char) -> SyncId {
    let text: String = "00000000-0000-4000-8000-00000000000".chars().chain([digit]).collect();
    SyncId::new(&text).expect("a UUID")
}

pub(super) fn numbers_are_stable<S: Store>(bed: &Bed<S>) {
    let tenant =
        |name: &str| block_on(bed.store.tenant(&TenantId::new(name).expect("a name"))).expect("a tenant");
    let (a, b) = (tenant("a"), tenant("Ä \"b\""));
    assert_ne!(a, b);
    assert_eq!((tenant("a"), tenant("Ä \"b\"")), (a, b));

    let device = |tenant, user: &UserId, device: &str| {
        let key = DeviceKey::new(user, &DeviceId::new(device).expect("a name"));
        block_on(bed.store.device(tenant, &key)).expect("a device")
    };
    let users = [UserId::text("ada").expect("a name"), UserId::Number(7)];
    let mut numbers = Vec::new();
    for tenant in [a, b] {
        for user in &users {
            for name in ["phone", "tablet"] {
                let number = device(tenant, user, name);
                assert_eq!(device(tenant, user, name), number);
                numbers.push(number);
            }
        }
    }
    let count = numbers.len();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), count, "no two devices share a number");
}

pub(super) fn tenants_are_apart<S: Store>(bed: &Bed<S>) {
    let here = Author::join(&bed.store, "here", "ada", "phone");
    let there = Author::join(&bed.store, "there", "ada", "phone");
    assert_ne!(bed.head(here.tenant).epoch, bed.head(there.tenant).epoch, "each tenant lives its own life");

    bed.check_push(&here, [create("x", r#"{"a":1}"#).n(1), create("y", "{}").n(2)], &[Applied, Applied]);
    assert_eq!(bed.head(there.tenant).seq, Seq::ZERO);
    assert!(bed.log(&everything(&there)).is_empty());
    assert_eq!(bed.row(&there, "note", "x"), None);

    // The same record, name and number mean another thing there.
    bed.check_push(&there, [create("x", r#"{"a":2}"#).n(1)], &[Applied]);
    assert_eq!(bed.note(&here, "x").record.fields.as_str(), r#"{"a":1}"#);
    assert_eq!(bed.note(&there, "x").record.fields.as_str(), r#"{"a":2}"#);
    assert_eq!((bed.head(here.tenant).seq, bed.head(there.tenant).seq), (Seq::new(2), Seq::new(1)));
    assert_eq!(bed.log(&everything(&there)).len(), 1);
    let history = block_on(bed.store.history(there.tenant, &kind_name("note"), &bed.note(&there, "x").id))
        .expect("a read");
    let devices = history.expect("the record exists").devices;
    assert!(devices.iter().all(|(device, _)| *device == there.device), "{devices:?}");

    let doc = Some(r#"{"strategy":"server_wins"}"#.to_owned());
    block_on(bed.store.set_policy(here.tenant, &kind_name("note"), doc)).expect("a write");
    assert_eq!(block_on(bed.store.policies(there.tenant)).expect("a read"), []);
    assert_eq!(block_on(bed.store.set_policy(there.tenant, &kind_name("note"), None)), Ok(None));

    let mut batch = here.batch([]);
    batch.batch = Some((sync_id('1'), 1));
    bed.commit(batch);
    let session = |author: &Author| {
        block_on(bed.store.session(author.tenant, author.device, &sync_id('1'))).expect("a read")
    };
    assert!(session(&here).is_some());
    assert_eq!(session(&there), None);

    let epoch = bed.head(there.tenant).epoch;
    block_on(bed.store.begin_epoch(here.tenant, bed.head(here.tenant).epoch)).expect("a write");
    assert_eq!(bed.head(there.tenant).epoch, epoch);
}

pub(super) fn policies_have_rising_versions<S: Store>(bed: &Bed<S>) {
    let tenant = bed.author("ada", "phone").tenant;
    let kind = kind_name("note");
    let set = |doc: Option<&str>| {
        block_on(bed.store.set_policy(tenant, &kind, doc.map(str::to_owned))).expect("a write")
    };
    let listed = || {
        let mut policies = block_on(bed.store.policies(tenant)).expect("a read");
        policies.sort_by(|a, b| a.kind.cmp(&b.kind));
        policies.into_iter().map(|own| (own.kind.to_string(), own.doc, own.version)).collect::<Vec<_>>()
    };
    assert_eq!((listed(), set(None)), (vec![], None), "there is none to remove");

    let mut last = 0;
    for round in 0..3 {
        let doc = format!(r#"{{"strategy":"client_wins","round":{round}}}"#);
        let version = set(Some(&doc)).expect("a version");
        assert!(version > last, "{version} after {last}");
        assert_eq!(listed(), [("note".to_owned(), doc.clone(), version)]);
        // The same document again is a change all the same.
        let again = set(Some(&doc)).expect("a version");
        assert!(again > version, "{again} after {version}");
        let removed = set(None).expect("a version");
        assert!(removed > again, "{removed} after {again}");
        assert_eq!((listed(), set(None)), (vec![], None));
        last = removed;
    }

    set(Some("{}"));
    block_on(bed.store.set_policy(tenant, &kind_name("car"), Some("{}".to_owned()))).expect("a write");
    let kinds: Vec<String> = listed().into_iter().map(|(kind, ..)| kind).collect();
    assert_eq!(kinds, ["car", "note"]);
}

pub(super) fn an_epoch_is_left_once<S: Store>(bed: &Bed<S>) {
    let ada = bed.author("ada", "phone");
    bed.check_push(&ada, [create("x", "{}").n(1)], &[Applied]);
    let before = bed.head(ada.tenant);
    let begun = block_on(bed.store.begin_epoch(ada.tenant, before.epoch)).expect("a write");
    assert_ne!(begun.epoch, before.epoch);
    assert_eq!(begun, bed.head(ada.tenant));
    assert_eq!((begun.seq, begun.hlc), (before.seq, before.hlc), "the sequence goes on");

    // Whoever noticed it too comes late and changes nothing.
    assert_eq!(block_on(bed.store.begin_epoch(ada.tenant, before.epoch)), Ok(begun));
    let next = block_on(bed.store.begin_epoch(ada.tenant, begun.epoch)).expect("a write");
    assert_ne!(next.epoch, begun.epoch);
}

pub(super) fn a_session_remembers_its_batches<S: Store>(bed: &Bed<S>) {
    let (ada, bob) = (bed.author("ada", "phone"), bed.author("bob", "phone"));
    let session = |author: &Author, digit| {
        let found = block_on(bed.store.session(author.tenant, author.device, &sync_id(digit)));
        found.expect("a read").map(|progress| (progress.batches, progress.last_ms))
    };
    assert_eq!(session(&ada, '1'), None);
    for (at, number) in [3, 1, 200, 1].into_iter().enumerate() {
        bed.world.clock.set(World::BEGIN_MS + at as u64);
        let mut batch = ada.batch([create(&format!("x{at}"), "{}").n(at as u64 + 1)]);
        batch.batch = Some((sync_id('1'), number));
        bed.commit(batch);
    }
    assert_eq!(session(&ada, '1'), Some((vec![1, 3, 200], World::BEGIN_MS + 3)));
    assert_eq!(session(&ada, '2'), None);
    assert_eq!(session(&bob, '1'), None);
}

pub(super) fn writing_can_be_probed<S: Store>(bed: &Bed<S>) {
    let tenant = bed.author("ada", "phone").tenant;
    let before = bed.head(tenant);
    assert_eq!(block_on(bed.store.probe()), Ok(()));
    assert_eq!(block_on(bed.store.probe()), Ok(()));
    assert_eq!(bed.head(tenant), before, "a probe changes nothing");
    assert_ne!(bed.store.cursor_secret(), [0; 32]);
    assert_eq!(bed.store.cursor_secret(), bed.store.cursor_secret());
}
