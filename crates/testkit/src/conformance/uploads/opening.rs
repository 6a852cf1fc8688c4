//! How uploads are opened, and what they come back as.

use std::num::NonZeroU64;

use driftline_engine::{
    DeviceAction, DeviceChange, DeviceChanged, DeviceOnce, Joining, Remembered, Store, UploadCaps,
    UploadOnce, UploadOpened, UploadRow,
};
use driftline_idempotency::{State as KeyState, WINDOW_MS_DEFAULT};
use driftline_model::{KindName, RecordId, TenantId};
use driftline_protocol::ItemCode::Applied;
use driftline_uploads::{Digest, Form, Plan, State, Upload};

use super::super::once::{key, named, print_of};
use super::super::{Bed, codes_of};
use super::{PLENTY, QUOTA, Yard, at, chunks, id_of, running, shown, stream, turn};
use crate::batch::create;
use crate::wait::block_on;

pub(in super::super) fn an_upload_comes_back_as_it_was<S: Store>(bed: &Bed<S>) {
    let yard = Yard::new(bed);
    let full = UploadRow {
        owner: "\u{e9} \"a'b\\".into(),
        upload: Upload {
            form: Form::Chunks(Plan::new(
                9_007_199_254_740_991,
                NonZeroU64::new(1 << 30).expect("above zero"),
            )),
            state: State::Open,
            received: 12,
            opened_ms: at(1),
            expires_ms: at(2),
        },
        reserved: 17,
        file_name: "r\u{e9}sum\u{e9}.pdf".into(),
        content_type: "text/plain".into(),
        metadata: Some("a\u{0}b {\"\u{1f600}\":1}".into()),
        announced: Some(Digest::hash(b"announced")),
        digest: Some(Digest::hash(b"digest")),
        running: Some(running(12)),
        staged: Some("s3 \u{e9}".into()),
        record: Some((KindName::new("note").expect("a kind"), RecordId::new("n1 \u{e9}").expect("an id"))),
        joining: Joining::Whole,
        fault: Some("a \u{0} fault".into()),
        changed_ms: at(3),
        ..yard.row(1, stream(None))
    };
    let others = [
        yard.row(2, stream(None)),
        UploadRow { joining: Joining::Part, ..yard.row(3, stream(Some(0))) },
        UploadRow { tenant: yard.other, ..yard.row(4, chunks(0)) },
        UploadRow { metadata: Some("".into()), ..yard.row(5, chunks(10)) },
    ];
    for row in others.iter().chain([&full]) {
        yard.open_row(row);
    }
    for row in others.iter().chain([&full]) {
        let name = if row.tenant == yard.other { "other" } else { "acme" };
        let tenant_id = TenantId::new(name).expect("a name");
        assert_eq!(shown(&yard.read(row.id)), shown(&UploadRow { tenant_id, ..row.clone() }));
    }
    assert!(yard.find(id_of(99)).is_none());
    assert_eq!(block_on(yard.rows().chunk(id_of(99), 0)), Ok(None));
    assert_eq!(block_on(yard.rows().chunks(id_of(99))), Ok(vec![]));
    // A hash that is at the beginning is none.
    let begun = UploadRow { running: Some(running(0)), ..yard.row(6, chunks(10)) };
    assert!(yard.read(yard.open_row(&begun)).running.is_none());
    // A name is given once.
    let again = block_on(yard.rows().open_upload(full.clone(), PLENTY, None));
    assert!(again.is_err(), "{again:?}");
    yard.check_sums();
    assert_eq!(shown(&yard.read(full.id)), shown(&full));
}

pub(in super::super) fn a_user_has_so_many_open_uploads<S: Store>(bed: &Bed<S>) {
    let yard = Yard::new(bed);
    let caps = UploadCaps { open_max: 2, ..PLENTY };
    let open = |row: &UploadRow| yard.open_with(row, caps, None);
    let row = |number| yard.row(number, chunks(4));
    assert_eq!(yard.open_with(&row(0), UploadCaps { open_max: 0, ..PLENTY }, None), UploadOpened::TooMany);
    assert_eq!((open(&row(1)), open(&row(2))), (UploadOpened::Opened, UploadOpened::Opened));
    assert_eq!(open(&row(3)), UploadOpened::TooMany);
    assert!(yard.find(id_of(3)).is_none());
    // Another user's and another tenant's are others.
    assert_eq!(open(&UploadRow { owner: "bob".into(), ..row(4) }), UploadOpened::Opened);
    assert_eq!(open(&UploadRow { tenant: yard.other, ..row(5) }), UploadOpened::Opened);
    // One that is being finalized still counts, and goes on counting when it is open again.
    yard.bring(id_of(1), State::Finalizing);
    assert_eq!(open(&row(3)), UploadOpened::TooMany);
    assert!(yard.turn(turn(id_of(1), State::Finalizing, State::Open)));
    assert_eq!(open(&row(3)), UploadOpened::TooMany);
    yard.bring(id_of(1), State::Done);
    assert_eq!(open(&row(3)), UploadOpened::Opened);
    for over in [State::Cancelled, State::Expired] {
        assert_eq!(open(&row(6)), UploadOpened::TooMany);
        yard.bring(id_of(if over == State::Cancelled { 2 } else { 3 }), over);
        assert_eq!(open(&row(if over == State::Cancelled { 7 } else { 8 })), UploadOpened::Opened);
    }
}

pub(in super::super) fn a_tenant_has_so_many_bytes<S: Store>(bed: &Bed<S>) {
    let yard = Yard::new(bed);
    let caps = UploadCaps { quota_bytes: 100, ..PLENTY };
    let open = |number, bytes| yard.open_with(&yard.row(number, chunks(bytes)), caps, None);
    assert_eq!(open(1, 101), UploadOpened::NoRoom { left_bytes: 100 });
    assert_eq!((open(1, 60), open(2, 41)), (UploadOpened::Opened, UploadOpened::NoRoom { left_bytes: 40 }));
    assert!(yard.find(id_of(2)).is_none());
    assert_eq!(open(2, 40), UploadOpened::Opened);
    assert_eq!((open(3, 1), open(3, 0)), (UploadOpened::NoRoom { left_bytes: 0 }, UploadOpened::Opened));
    // Every user's count, and no other tenant's.
    let bob = UploadRow { owner: "bob".into(), ..yard.row(4, chunks(1)) };
    assert_eq!(yard.open_with(&bob, caps, None), UploadOpened::NoRoom { left_bytes: 0 });
    let other = UploadRow { tenant: yard.other, ..yard.row(4, chunks(100)) };
    assert_eq!(yard.open_with(&other, caps, None), UploadOpened::Opened);
    // A file goes on taking what it has; what is given up takes nothing any more.
    yard.bring(id_of(1), State::Done);
    assert_eq!(open(5, 1), UploadOpened::NoRoom { left_bytes: 0 });
    yard.bring(id_of(2), State::Expired);
    assert_eq!(open(5, 41), UploadOpened::NoRoom { left_bytes: 40 });
    assert_eq!(block_on(yard.rows().remove_file_row(id_of(1))), Ok(true));
    assert_eq!(open(5, 100), UploadOpened::Opened);
    // A quota that was lowered leaves nothing, and not less than that.
    let less = UploadCaps { quota_bytes: 50, ..PLENTY };
    let refused = yard.open_with(&yard.row(6, chunks(1)), less, None);
    assert_eq!(refused, UploadOpened::NoRoom { left_bytes: 0 });
    let without = UploadCaps { quota_bytes: u64::MAX, ..PLENTY };
    assert_eq!(yard.open_with(&yard.row(6, chunks(1 << 39)), without, None), UploadOpened::Opened);
}

fn once(owner: &str, key: &str, content: &str) -> Option<UploadOnce> {
    let (owner, key) = (owner.into(), key.into());
    Some(UploadOnce { owner, key, fingerprint: print_of(content), window_ms: WINDOW_MS_DEFAULT })
}

pub(in super::super) fn an_upload_is_opened_once_under_its_key<S: Store>(bed: &Bed<S>) {
    let yard = Yard::new(bed);
    let open = |number, owner, key, content| {
        yard.open_with(&yard.row(number, chunks(4)), PLENTY, once(owner, key, content))
    };
    // What is refused leaves the key free.
    for caps in [UploadCaps { open_max: 0, ..PLENTY }, UploadCaps { quota_bytes: 3, ..PLENTY }] {
        let refused = yard.open_with(&yard.row(1, chunks(4)), caps, once("user:ada", "k", "one"));
        assert_ne!(refused, UploadOpened::Opened);
        assert_eq!(block_on(bed.store.remembered(yard.acme, "user:ada", "k")), Ok(None));
    }
    assert_eq!(open(1, "user:ada", "k", "one"), UploadOpened::Opened);
    assert_eq!(open(2, "user:ada", "k", "one"), UploadOpened::Before(id_of(1)));
    assert!(yard.find(id_of(2)).is_none());
    let kept = block_on(bed.store.remembered(yard.acme, "user:ada", "k")).expect("a read").expect("a record");
    let bytes = id_of(1).to_string().into_bytes().into_boxed_slice();
    assert_eq!(kept.state, KeyState::Done(Remembered::Bytes(bytes)));
    assert_eq!(kept.expires_ms, at(WINDOW_MS_DEFAULT));
    assert_eq!(open(2, "user:ada", "k", "two"), UploadOpened::Reused);
    // It is known before it is looked whether there is room.
    let none = UploadCaps { open_max: 0, quota_bytes: 0 };
    let again = yard.open_with(&yard.row(2, chunks(4)), none, once("user:ada", "k", "one"));
    assert_eq!(again, UploadOpened::Before(id_of(1)));
    // Also when the upload is over, and when its row is gone.
    yard.bring(id_of(1), State::Cancelled);
    assert_eq!(open(2, "user:ada", "k", "one"), UploadOpened::Before(id_of(1)));
    assert_eq!(block_on(yard.rows().forget_uploads(u64::MAX, u64::MAX)), Ok(1));
    assert_eq!(open(2, "user:ada", "k", "one"), UploadOpened::Before(id_of(1)));
    // Keys belong to their owners and tenants.
    assert_eq!(open(3, "user:bob", "k", "one"), UploadOpened::Opened);
    let other = UploadRow { tenant: yard.other, ..yard.row(4, chunks(4)) };
    assert_eq!(yard.open_with(&other, PLENTY, once("user:ada", "k", "one")), UploadOpened::Opened);
    bed.world.clock.advance(WINDOW_MS_DEFAULT);
    assert_eq!(open(5, "user:ada", "k", "three"), UploadOpened::Opened, "forgotten");
}

pub(in super::super) fn the_keys_of_uploads_are_those_of_other_requests<S: Store>(bed: &Bed<S>) {
    let yard = Yard::new(bed);
    let ada = bed.author("ada", "phone");
    let open =
        |number, key| yard.open_with(&yard.row(number, chunks(4)), PLENTY, once("user:ada", key, "one"));
    let batch = bed.commit(named(&ada, [create("x", "{}")], [key("user:ada", "batch", "one")]));
    assert_eq!(codes_of(&batch.results), [Applied]);
    let change = |key: &str| {
        let change = DeviceChange {
            owner: "ada".into(),
            device_id: "tablet".parse().expect("a name"),
            action: DeviceAction::Register,
            enabled: None,
            digest: None,
        };
        let once = DeviceOnce {
            owner: "user:ada".into(),
            key: key.into(),
            fingerprint: print_of("one"),
            window_ms: WINDOW_MS_DEFAULT,
            answer: std::sync::Arc::new(|row| row.device_id.to_string().into_bytes()),
        };
        block_on(bed.store.change_device(yard.acme, change, Some(once))).expect("a change")
    };
    assert!(matches!(change("change"), DeviceChanged::Done(_)));
    assert_eq!((open(1, "batch"), open(1, "change")), (UploadOpened::Reused, UploadOpened::Reused));
    assert_eq!(open(1, "upload"), UploadOpened::Opened);
    let text = id_of(1).to_string();
    assert_eq!(change("upload"), DeviceChanged::Replayed(text.into_bytes().into()), "as they are kept");
    let batch = bed.commit(named(&ada, [create("y", "{}")], [key("user:ada", "upload", "one")]));
    assert_eq!((batch.answered, batch.results), (driftline_engine::Answered::Reused, vec![]));
    assert_eq!(yard.used(yard.acme), QUOTA.min(4));
}
