//! How far devices have followed the log, and what users have read.

use driftline_engine::{DeviceEvents, DeviceNote, DeviceSign, Store};
use driftline_model::{DeviceNo, Epoch};

use super::Bed;
use crate::batch::Author;
use crate::wait::block_on;
use crate::world::World;

pub(in super::super) fn notifications_are_read_once<S: Store>(bed: &Bed<S>) {
    let (ada, other) = (bed.author("ada", "phone"), Author::join(&bed.store, "other", "ada", "phone"));
    let read = |tenant, user: &str, id: &str| {
        block_on(bed.store.log().read_notice(tenant, user.into(), id.into(), World::BEGIN_MS))
            .expect("a write")
    };
    let known = |tenant, user: &str, ids: &[&str]| {
        let ids = ids.iter().map(|id| Box::from(*id)).collect();
        block_on(bed.store.log().notices_read(tenant, user.into(), ids)).expect("a read")
    };
    assert_eq!(known(ada.tenant, "ada", &["n1", "n2"]), [false, false]);
    assert!(read(ada.tenant, "ada", "n1") && !read(ada.tenant, "ada", "n1"));
    assert!(read(ada.tenant, "ada", "é \"'"));
    assert_eq!(known(ada.tenant, "ada", &["n2", "n1", "é \"'", "n1"]), [false, true, true, true]);
    assert_eq!(
        (known(ada.tenant, "bob", &["n1"]), known(other.tenant, "ada", &["n1"])),
        (vec![false], vec![false])
    );
    assert!(read(ada.tenant, "bob", "n1") && read(other.tenant, "ada", "n1"));
    assert!(known(ada.tenant, "ada", &[]).is_empty());
}

pub(super) fn note<S: Store>(bed: &Bed<S>, author: &Author, notes: Vec<(u64, DeviceSign)>) {
    let notes = notes.into_iter().map(|(at, sign)| DeviceNote {
        tenant: author.tenant,
        device: author.device,
        at_ms: World::BEGIN_MS + at,
        sign,
    });
    block_on(bed.store.note_devices(notes.collect())).expect("notes");
}

pub(in super::super) fn it_is_known_how_far_a_device_has_followed<S: Store>(bed: &Bed<S>) {
    let (ada, bob) = (bed.author("ada", "phone"), bed.author("bob", "phone"));
    let other = Author { tenant: Author::join(&bed.store, "other", "ada", "phone").tenant, ..ada.clone() };
    let (one, two) = (Epoch::new(1), Epoch::new(2));
    let of = |author: &Author| {
        block_on(bed.store.log().device_events(author.tenant, author.device)).expect("a read")
    };
    let names = |text: &str| text.split_ascii_whitespace().map(Box::from).collect::<Vec<Box<str>>>();
    let acknowledged = |epoch, event| DeviceSign::Acknowledged { epoch, event };
    let listened = |epoch, since, topics: &str, refused: &str| DeviceSign::Listened {
        epoch,
        since,
        topics: names(topics),
        refused: names(refused),
    };
    assert_eq!(of(&ada), None);
    note(bed, &ada, vec![(10, listened(one, 5, "x y", "z"))]);
    let first = DeviceEvents {
        epoch: Some(one),
        acked: 0,
        since: Some(5),
        topics: names("x y"),
        refused: names("z"),
        slow: None,
    };
    assert_eq!(of(&ada), Some(first.clone()));
    // What was acknowledged only rises, in whichever order it is told.
    note(bed, &ada, vec![(12, acknowledged(one, 9)), (11, acknowledged(one, 7)), (5, acknowledged(one, 8))]);
    assert_eq!(of(&ada), Some(DeviceEvents { acked: 9, ..first.clone() }));
    // Who was cut is slow until it comes again; an older sign is no news.
    note(bed, &ada, vec![(20, DeviceSign::Slow { event: 30 }), (9, DeviceSign::Slow { event: 40 })]);
    assert_eq!(of(&ada), Some(DeviceEvents { acked: 9, slow: Some(30), ..first.clone() }));
    note(bed, &ada, vec![(8, listened(one, 1, "old", ""))]);
    assert_eq!(of(&ada), Some(DeviceEvents { acked: 9, slow: Some(30), ..first }));
    note(bed, &ada, vec![(30, listened(one, 9, "x", "")), (25, DeviceSign::Slow { event: 50 })]);
    let again = DeviceEvents {
        epoch: Some(one),
        acked: 9,
        since: Some(9),
        topics: names("x"),
        refused: names(""),
        slow: None,
    };
    assert_eq!(of(&ada), Some(again.clone()));
    // Another life of the log begins anew; a late sign of the one before changes nothing.
    note(
        bed,
        &ada,
        vec![(40, listened(two, 0, "x", "")), (35, acknowledged(one, 70)), (39, listened(one, 3, "y", ""))],
    );
    assert_eq!(of(&ada), Some(DeviceEvents { epoch: Some(two), acked: 0, since: Some(0), ..again.clone() }));
    note(bed, &ada, vec![(41, acknowledged(two, 3))]);
    assert_eq!(of(&ada), Some(DeviceEvents { epoch: Some(two), acked: 3, since: Some(0), ..again }));
    // A device that only acknowledges never listened, as far as is known.
    note(bed, &bob, vec![(5, acknowledged(one, 4)), (6, DeviceSign::Slow { event: 9 })]);
    assert_eq!(of(&bob), Some(DeviceEvents { epoch: Some(one), acked: 4, ..DeviceEvents::default() }));
    note(bed, &bob, vec![(4, listened(one, 2, "x", ""))]);
    assert_eq!(of(&bob).map(|events| (events.acked, events.since)), Some((4, Some(2))));
    // A device of another tenant, or of none, has nothing written down.
    note(bed, &other, vec![(50, acknowledged(two, 100)), (60, listened(two, 1, "x", ""))]);
    assert_eq!((of(&other), of(&ada).map(|events| events.acked)), (None, Some(3)));
    let nobody = Author { device: DeviceNo::new(1 << 20), ..ada.clone() };
    note(bed, &nobody, vec![(1, listened(one, 1, "x", ""))]);
    assert_eq!(of(&nobody), None);
}
