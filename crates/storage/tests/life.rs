//! Backups, restores, and what is noticed about a database that is not what it was.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use diesel::connection::SimpleConnection;
use diesel::{Connection, SqliteConnection};
use driftline_conflict::{Policy, Strategy};
use driftline_engine::{
    Aggregate, DeviceAction, DeviceChange, DeviceChanged, DeviceNote, DeviceSign, Entry, EventDraft, Head,
    Kept, LeaseSlot, Once, OnceKey, Store, Submission, Task, TopicRetention, TopicRules,
};
use driftline_idempotency::Fingerprint;
use driftline_insight::SeriesPoint;
use driftline_model::{Epoch, Seq, SyncId, TenantId};
use driftline_protocol::ItemCode;
use driftline_storage::{BackupError, Contents, Finding, OpenError, RestoreError, SqliteStore};
use driftline_testkit::{Author, Rng, World, block_on, create, delete, patch, sample};
use driftline_uploads::State;
use support::uploads;

/// A world with a store and somebody who writes.
struct Scene {
    world: World,
    file: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let world = World::new(1);
        let file = support::file(&world);
        Self { world, file }
    }

    fn open(&self) -> (SqliteStore, Author) {
        let store = support::sqlite(&self.world);
        let ada = Author::join(&store, "acme", "ada", "phone");
        (store, ada)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.world.folder.path().join(name)
    }

    /// What lies in the folder.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.world.folder.path()).expect("a folder");
        let name = |entry: std::io::Result<fs::DirEntry>| {
            entry.expect("an entry").file_name().into_string().expect("UTF-8")
        };
        let mut names: Vec<String> = entries.map(name).collect();
        names.sort();
        names
    }

    /// A backup of a store with something of everything in it.
    fn backup(&self) -> PathBuf {
        let (store, ada) = self.open();
        write(&store, &ada, "x", 30);
        let bob = Author::join(&store, "globex", "bob", "tablet");
        write(&store, &bob, "y", 5);
        let eve = Author::join(&store, "acme", "eve", "phone");
        let manual = Arc::new(Policy { strategy: Strategy::Manual, version: 1 });
        let late = eve.batch([patch("x0", 1, r#"{"b":"late"}"#).policy(&manual)]);
        let receipt = block_on(store.commit(late)).expect("a commit");
        assert_eq!(receipt.results[0].code, ItemCode::ConflictPending);
        measure(&store, &ada);
        tell(&store, &ada);
        upload(&store, &ada);
        drop(store);
        let target = self.path("kept.db");
        SqliteStore::backup(&self.file, &target).expect("a backup");
        target
    }
}

/// Creates records, patches the first one as often, and deletes the last one.
fn write(store: &SqliteStore, author: &Author, prefix: &str, count: u64) {
    for at in 0..count {
        let id = format!("{prefix}{at}");
        let batch = author.batch([
            create(&id, r#"{"a":1}"#).op_id(&id),
            patch(&format!("{prefix}0"), 1, &format!(r#"{{"b":{at}}}"#)),
        ]);
        block_on(store.commit(batch)).expect("a commit");
    }
    let version = head(store, author).seq.number() - 1;
    block_on(store.commit(author.batch([delete(&format!("{prefix}{}", count - 1), version)])))
        .expect("a commit");
}

/// Appends a sample and adds to a series under a key and a place in a session, and gives a device a hash.
fn measure(store: &SqliteStore, author: &Author) {
    let mut batch = author.batch([sample("s1", r#"{"v":1}"#)]);
    let series = vec![(Box::from("pings"), SeriesPoint::default())];
    let task = Task::Aggregate(Box::new(Aggregate { hour_ms: 0, series }));
    batch.entries.push(Entry { op_id: None, n: None, hash: 0, kind: None, id: None, group: None, task });
    let session: SyncId = "00000000-0000-4000-8000-000000000001".parse().expect("a UUID");
    let place = OnceKey::Batch { device: author.device, sync_id: session.clone(), number: 1 };
    let request = OnceKey::Request { owner: "user:ada".into(), key: "k1".into() };
    let fingerprint = Fingerprint::envelope("sync_data", None, b"{}");
    let once = |key| Once { key, fingerprint, window_ms: 1000 };
    (batch.batch, batch.once) = (Some((session, 1)), vec![once(place), once(request)]);
    block_on(store.commit(batch)).expect("a commit");
    let change = DeviceChange {
        owner: "ada".into(),
        device_id: "phone".parse().expect("a name"),
        action: DeviceAction::Update,
        enabled: None,
        digest: Some([7; 32]),
    };
    let changed = block_on(store.change_device(author.tenant, change, None)).expect("a change");
    assert!(matches!(changed, DeviceChanged::Done(_)), "{changed:?}");
}

/// Has two of three topics lose everything.
struct Rules;

impl TopicRules for Rules {
    fn retention(&self, topic: &str) -> TopicRetention {
        TopicRetention { age_ms: None, keep: (topic != "x").then_some(0) }
    }
}

/// Publishes five events, of which two go and one stays with one of its two topics; and takes down how far a device
/// has followed.
fn tell(store: &SqliteStore, author: &Author) {
    for topics in ["gone", "x", "x y", "x"] {
        let topics = topics.split(' ').map(Box::from).collect();
        let events = vec![EventDraft::new("e", topics, "{}".into(), 0)];
        block_on(store.commit(Submission { events, ..author.batch([]) })).expect("a commit");
    }
    let state = EventDraft {
        version: Some(("t".into(), 1)),
        ..EventDraft::new("e", vec!["y".into()], "{}".into(), 0)
    };
    block_on(store.commit(Submission { events: vec![state], ..author.batch([]) })).expect("a commit");
    block_on(store.log().trim_events(0, Arc::new(Rules))).expect("a trim");
    let sign = DeviceSign::Acknowledged { epoch: Epoch::new(1), event: 1 };
    let note = DeviceNote { tenant: author.tenant, device: author.device, at_ms: 1, sign };
    block_on(store.note_devices(vec![note])).expect("notes");
}

/// Opens an upload of ten bytes in chunks, of which two come, one as a stream, of which five bytes come, and one that is
/// given up.
fn upload(store: &SqliteStore, author: &Author) {
    for (number, form) in (1..).zip([uploads::chunks(10), uploads::stream(None), uploads::chunks(7)]) {
        uploads::open(store, &uploads::row(author, number, form));
    }
    uploads::take_rights(store, uploads::id(1), 3);
    uploads::take_right(store, uploads::id(2), LeaseSlot::Stream);
    for (index, bytes) in [(0, 4), (2, 2)] {
        let chunk = uploads::chunk(uploads::id(1), index, bytes);
        let kept = block_on(store.uploads().keep_chunk(chunk)).expect("an answer");
        assert!(matches!(kept, Kept::Kept { .. }), "{kept:?}");
    }
    let part = uploads::part(uploads::id(2), 0, 5);
    assert_eq!(block_on(store.uploads().keep_stream(part)), Ok(Kept::Kept { received: 5 }));
    let cancelled = uploads::turn(uploads::id(3), State::Open, State::Cancelled);
    assert_eq!(block_on(store.uploads().turn_upload(cancelled)), Ok(true));
}

fn head(store: &SqliteStore, author: &Author) -> Head {
    block_on(store.head(author.tenant)).expect("a head")
}

fn sql(file: &Path, statements: &str) {
    let mut connection = SqliteConnection::establish(file.to_str().expect("UTF-8")).expect("a connection");
    connection.batch_execute(statements).unwrap_or_else(|error| panic!("{statements}: {error}"));
}

#[test]
fn a_backup_under_load_is_of_one_moment_and_makes_no_writer_wait() {
    let scene = Scene::new();
    let (store, ada) = scene.open();
    write(&store, &ada, "x", 200);
    let before = head(&store, &ada).seq;
    let done = AtomicBool::new(false);
    let (backups, written) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut written = 0_u64;
            while !done.load(Ordering::SeqCst) {
                let id = format!("late{written}");
                block_on(store.commit(ada.batch([create(&id, "{}"), patch(&id, 0, "{}")])))
                    .expect("a commit");
                written += 1;
            }
            written
        });
        let backups: Vec<(PathBuf, Contents)> = (0..10)
            .map(|number| {
                let target = scene.path(&format!("backup-{number}.db"));
                let contents = SqliteStore::backup(&scene.file, &target).expect("a backup");
                (target, contents)
            })
            .collect();
        done.store(true, Ordering::SeqCst);
        (backups, writer.join().expect("the writer ends"))
    });
    assert!(written > 10, "{written}: writers go on while a backup is made");
    let mut last = before;
    for (target, contents) in &backups {
        let report = SqliteStore::check(target);
        assert_eq!((&report.findings, &report.contents), (&vec![], contents));
        assert!(contents.seq >= last, "each is of a later moment");
        assert_eq!(contents.bytes, target.metadata().expect("a file").len());
        last = contents.seq;
    }
    assert!(last > before, "the last one has something of what was written meanwhile");
    assert!(!scene.names().iter().any(|name| name.contains("partial")), "{:?}", scene.names());
}

#[test]
fn a_backup_overwrites_nothing_and_makes_no_database() {
    let scene = Scene::new();
    let absent = SqliteStore::backup(&scene.file, &scene.path("kept.db"));
    assert!(matches!(&absent, Err(BackupError::Source { file, .. }) if *file == scene.file), "{absent:?}");
    assert_eq!(scene.names(), Vec::<String>::new());

    let target = scene.backup();
    let before = fs::read(&target).expect("a file");
    let again = SqliteStore::backup(&scene.file, &target);
    assert!(matches!(&again, Err(BackupError::Exists(file)) if *file == target), "{again:?}");
    assert_eq!(fs::read(&target).expect("a file"), before);

    let nowhere = scene.path("nowhere").join("kept.db");
    let refused = SqliteStore::backup(&scene.file, &nowhere);
    assert!(matches!(refused, Err(BackupError::Target { .. })), "{refused:?}");
    let other = scene.path("other.db");
    sql(&other, "CREATE TABLE a (b)");
    let refused = SqliteStore::backup(&other, &scene.path("of-other.db"));
    assert!(matches!(&refused, Err(BackupError::Source { file, .. }) if *file == other), "{refused:?}");
    assert!(!scene.names().iter().any(|name| name.contains("partial") || name == "of-other.db"));
}

#[test]
fn what_is_wrong_in_a_file_is_found() {
    let scene = Scene::new();
    let kept = scene.backup();
    let report = SqliteStore::check(&kept);
    assert_eq!(report.findings, []);
    assert_eq!((report.contents.tenants, report.contents.records), (2, 36));
    assert_eq!(report.contents.seq, Seq::new(62));
    let table: [(&str, &str); 61] = [
        ("UPDATE scope_sums SET sum = sum + 1 WHERE tenant_no = 1", "sums of kind note"),
        ("UPDATE scope_sums SET count = count - 1 WHERE tenant_no = 2", "sums of kind note"),
        ("DELETE FROM scope_sums WHERE tenant_no = 2", "sums of kind note"),
        ("UPDATE records SET seq = 63 WHERE tenant_no = 1 AND id = 'x3'", "\"x3\": its seq 63 is above 62"),
        ("UPDATE stream_head SET seq = 10 WHERE tenant_no = 2", "op_results: "),
        ("UPDATE stream_head SET epoch_seq = 63 WHERE tenant_no = 1", "tenant acme: "),
        ("UPDATE stream_head SET epoch = 'XYZ' WHERE tenant_no = 1", "tenant acme: "),
        ("DELETE FROM stream_head WHERE tenant_no = 2", "tenant globex: it has no head"),
        ("UPDATE records SET default_mark = x'00' WHERE id = 'x3'", "\"x3\": "),
        ("UPDATE records SET fields = '[1]' WHERE id = 'x3'", "\"x3\": "),
        ("UPDATE records SET kind_no = 99 WHERE id = 'x3'", "\"x3\": "),
        ("UPDATE records SET tenant_no = 2 WHERE id = 'x3'", "another tenant's"),
        ("UPDATE op_results SET code = 99 WHERE n = 3", "n 3: "),
        ("UPDATE audit SET code = 99", "audit: row 1"),
        ("UPDATE conflicts SET reason = 'none'", "conflicts: row 1"),
        ("UPDATE conflicts SET client = '[]'", "conflicts: row 1"),
        ("UPDATE conflicts SET seq = 63", "is above 62"),
        ("UPDATE audit SET device_no = 99", "their device is unknown"),
        ("UPDATE meta SET value = x'00' WHERE name = 'cursor_secret'", "the secret"),
        ("UPDATE samples SET fields = '[1]'", "samples: tenant 1, kind "),
        ("UPDATE samples SET kind_no = 99", "\"s1\": its kind or device"),
        ("UPDATE samples SET device_no = (SELECT device_no FROM devices WHERE tenant_no = 2)", "samples: "),
        ("UPDATE series SET sketch = x'00'", "series: \"pings\" of hour 0"),
        ("UPDATE series SET tenant_no = 9", "it belongs to no tenant"),
        ("UPDATE idempotency SET answer = x'00'", "idempotency: \"k1\" of \"user:ada\""),
        ("UPDATE idempotency SET fingerprint = x'00'", "idempotency: "),
        ("UPDATE idempotency SET attempt = 1", "idempotency: "),
        ("UPDATE sync_batches SET answer = x'7201'", "sync_batches: batch 1 of "),
        ("UPDATE sync_batches SET fingerprint = NULL", "sync_batches: batch 1 of "),
        ("UPDATE device_digests SET device_no = 99", "device_digests: device 99"),
        ("UPDATE device_digests SET tenant_no = 2", "it leads to no device"),
        ("UPDATE stream_head SET event_id = 2 WHERE tenant_no = 1", "event 3: 3 is above 2"),
        ("UPDATE events SET refs = 2 WHERE event_id = 3", "event 3: 1 of its topics have it, not 2"),
        ("UPDATE events SET topics = 'z' WHERE event_id = 3", "event 3: 0 of its topics"),
        ("UPDATE events SET at = -1 WHERE event_id = 3", "events: tenant 1, event 3"),
        ("UPDATE events SET tenant_no = 2 WHERE event_id = 3", "event 3: there is no such event on it"),
        ("DELETE FROM events WHERE event_id = 3", "event_topics: topic "),
        ("DELETE FROM event_topics WHERE event_id = 3", "event 3: 0 of its topics"),
        ("UPDATE topics SET floor = 2 WHERE topic = 'x'", "\"x\": it has an event that it lost"),
        ("UPDATE topics SET floor = 9 WHERE topic = 'gone'", "9 is above 5, where its tenant's log ends"),
        ("UPDATE event_versions SET at = -1", "event_versions: \"t\""),
        ("UPDATE event_devices SET device_no = 99", "event_devices: device 99"),
        ("UPDATE upload_usage SET bytes = bytes + 1", "16 bytes are kept, and its uploads and files take 15"),
        ("DELETE FROM upload_usage", "0 bytes are kept"),
        (
            "INSERT INTO upload_usage (tenant_no, bytes) VALUES (9, 0)",
            "upload_usage: tenant 9: it belongs to no",
        ),
        ("DELETE FROM uploads WHERE received = 5", "15 bytes are kept, and its uploads and files take 10"),
        ("DELETE FROM uploads WHERE received = 6", "chunk 2: there is no such chunk"),
        ("UPDATE upload_chunks SET chunk_no = 3 WHERE chunk_no = 2", "chunk 3: there is no such chunk"),
        ("UPDATE upload_chunks SET chunk_no = -1 WHERE chunk_no = 2", "chunk -1: there is no such chunk"),
        ("UPDATE upload_chunks SET digest = x'00' WHERE chunk_no = 2", "chunk 2: there is no such chunk"),
        (
            "UPDATE upload_chunks SET upload = (SELECT id FROM uploads WHERE received = 5)",
            "chunk 0: there is no such",
        ),
        ("DELETE FROM upload_chunks WHERE chunk_no = 2", "its chunks have 4 bytes, not 6"),
        ("UPDATE uploads SET received = 7 WHERE received = 6", "its chunks have 6 bytes, not 7"),
        ("UPDATE uploads SET tenant_no = 9 WHERE received = 5", "0000: it belongs to no tenant"),
        ("UPDATE uploads SET reserved = 9 WHERE received = 6", "uploads: upload 01"),
        ("UPDATE uploads SET state = 'expired' WHERE received = 6", "uploads: upload 01"),
        ("UPDATE uploads SET received = 11, size = 4 WHERE received = 5", "uploads: upload 02"),
        ("UPDATE uploads SET state = 'done' WHERE received = 6", "chunk 2: there is no such chunk"),
        ("UPDATE uploads SET state = 'none' WHERE received = 6", "uploads: row "),
        ("UPDATE uploads SET joining = '' WHERE received = 6", "uploads: row "),
        ("UPDATE uploads SET size = NULL WHERE received = 6", "uploads: row "),
    ];
    for (statement, wanted) in table {
        let broken = scene.path("broken.db");
        fs::copy(&kept, &broken).expect("a copy");
        sql(&broken, &format!("PRAGMA user_version = 0; PRAGMA application_id = 0; {statement}"));
        let found = SqliteStore::check(&broken).findings;
        let told: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert!(told.iter().any(|finding| finding.contains(wanted)), "{statement}: {told:?}");
    }
}

#[test]
fn what_is_no_backup_is_told_so() {
    let scene = Scene::new();
    let kept = scene.backup();
    let check = |name: &str| SqliteStore::check(&scene.path(name)).findings;
    assert!(matches!(&check("absent.db")[..], [Finding::NotADatabase(_)]));
    assert!(!scene.path("absent.db").exists(), "a check makes nothing");
    fs::write(scene.path("text.db"), "certainly not a database".repeat(400)).expect("a file");
    assert!(matches!(&check("text.db")[..], [Finding::NotADatabase(_)]));
    fs::write(scene.path("empty.db"), "").expect("a file");
    assert_eq!(check("empty.db"), [Finding::Foreign]);
    sql(&scene.path("other.db"), "CREATE TABLE a (b)");
    assert_eq!(check("other.db"), [Finding::Foreign]);
    fs::copy(&kept, scene.path("newer.db")).expect("a copy");
    sql(
        &scene.path("newer.db"),
        "INSERT INTO __diesel_schema_migrations (version) VALUES ('29991231000000')",
    );
    assert_eq!(check("newer.db"), [Finding::Newer("29991231000000".into()), Finding::Seal]);
    fs::copy(&kept, scene.path("logged.db")).expect("a copy");
    fs::write(scene.path("logged.db-wal"), "something").expect("a file");
    assert!(matches!(&check("logged.db")[..], [Finding::Log(_)]));
}

#[test]
fn a_backup_of_which_a_byte_changed_is_told_so() {
    let scene = Scene::new();
    let kept = scene.backup();
    let whole = fs::read(&kept).expect("a file");
    assert!(SqliteStore::check(&kept).sealed);
    let broken = scene.path("broken.db");
    let pages = whole.len() / 4096;
    for cut in [1, pages / 2, pages - 1] {
        fs::write(&broken, &whole[..cut * 4096]).expect("a file");
        assert!(!SqliteStore::check(&broken).findings.is_empty(), "cut to {cut} of {pages} pages");
    }
    fs::write(&broken, [&whole[..], b"more"].concat()).expect("a file");
    assert!(!SqliteStore::check(&broken).findings.is_empty(), "something was added");
    for seed in 0..200 {
        println!("seed {seed}");
        let rng = &mut Rng::new(seed);
        let mut bytes = whole.clone();
        let at = if seed < 100 { usize::try_from(seed).expect("small") } else { rng.place(bytes.len()) };
        bytes[at] ^= 1 << rng.below(8);
        fs::write(&broken, bytes).expect("a file");
        assert!(!SqliteStore::check(&broken).findings.is_empty(), "byte {at}");
    }
}

/// A database that is put in place, by hand or by a restore, is none that must not change.
#[test]
fn a_seal_ends_with_the_first_opening() {
    let scene = Scene::new();
    let kept = scene.backup();
    fs::copy(&kept, &scene.file).expect("a copy");
    for round in 0..2 {
        drop(scene.open());
        let report = SqliteStore::check(&scene.file);
        assert_eq!((report.findings, report.sealed), (vec![], false), "round {round}");
        SqliteStore::restore(&kept, &scene.file, &*scene.world.random).expect("a restore");
        assert!(!SqliteStore::check(&scene.file).sealed);
    }
}

#[test]
fn a_restore_keeps_what_was_there_and_begins_new_epochs() {
    let scene = Scene::new();
    let kept = scene.backup();
    let original = fs::read(&kept).expect("a file");
    let (store, ada) = scene.open();
    let old = head(&store, &ada);
    block_on(store.commit(ada.batch([create("lost", "{}")]))).expect("a commit");

    // A server that runs holds the lock.
    let refused = SqliteStore::restore(&kept, &scene.file, &*scene.world.random);
    assert!(
        matches!(&refused, Err(RestoreError::Database(OpenError::InUse { file })) if *file == scene.file),
        "{refused:?}"
    );
    drop(store);
    let same = SqliteStore::restore(&scene.file, &scene.file, &*scene.world.random);
    assert!(matches!(same, Err(RestoreError::Same(_))), "{same:?}");

    let restored = SqliteStore::restore(&kept, &scene.file, &*scene.world.random).expect("a restore");
    let replaced = restored.replaced.expect("something was replaced");
    assert_eq!(replaced, scene.path("driftline.db.replaced-1"));
    assert_eq!((restored.contents.tenants, restored.contents.seq, restored.migrated.len()), (2, old.seq, 0));
    assert_eq!(
        SqliteStore::check(&replaced).contents.seq.number(),
        old.seq.number() + 1,
        "nothing is deleted"
    );
    assert_eq!(fs::read(&kept).expect("a file"), original, "the backup stays as it is");
    assert!(
        !scene.path("driftline.db-restore-partial").exists()
            && !scene.path("driftline.db-restoring").exists()
    );

    let (store, ada) = scene.open();
    let new = head(&store, &ada);
    assert_eq!((new.seq, new.epoch_seq), (old.seq, old.seq));
    assert_ne!(new.epoch, old.epoch);
    drop(store);
    let restored = SqliteStore::restore(&kept, &scene.file, &*scene.world.random).expect("a restore");
    assert_eq!(restored.replaced, Some(scene.path("driftline.db.replaced-2")));
}

/// Whoever may not read the database may not read its copy, at no moment.
#[test]
fn a_copy_has_the_rights_of_the_database() {
    use std::os::unix::fs::PermissionsExt as _;
    let scene = Scene::new();
    drop(scene.open());
    let mode = |path: &Path| path.metadata().expect("a file").permissions().mode() & 0o777;
    fs::set_permissions(&scene.file, fs::Permissions::from_mode(0o600)).expect("it is ours");
    let kept = scene.path("kept.db");
    SqliteStore::backup(&scene.file, &kept).expect("a backup");
    assert_eq!(mode(&kept), 0o600);
    fs::set_permissions(&kept, fs::Permissions::from_mode(0o444)).expect("it is ours");
    SqliteStore::restore(&kept, &scene.file, &*scene.world.random).expect("a restore");
    assert_eq!(mode(&scene.file), 0o600);
}

/// A log without its database, which somebody removed, is joined by no other.
#[test]
fn a_log_that_was_left_over_joins_no_other_database() {
    let scene = Scene::new();
    let kept = scene.backup();
    fs::write(scene.path("driftline.db.replaced-1-wal"), "left over").expect("a file");
    let restored = SqliteStore::restore(&kept, &scene.file, &*scene.world.random).expect("a restore");
    assert_eq!(restored.replaced, Some(scene.path("driftline.db.replaced-2")));
}

#[test]
fn a_damaged_backup_replaces_nothing() {
    let scene = Scene::new();
    let kept = scene.backup();
    sql(
        &kept,
        "PRAGMA user_version = 0; PRAGMA application_id = 0; UPDATE records SET seq = 63 WHERE tenant_no = 1 AND id = 'x3'",
    );
    let (before, names) = (fs::read(&scene.file).expect("a file"), scene.names());
    let refused = SqliteStore::restore(&kept, &scene.file, &*scene.world.random);
    let Err(RestoreError::NotWhole { report, .. }) = refused else { panic!("{refused:?}") };
    assert!(
        report.findings.iter().any(|finding| matches!(finding, Finding::AheadOfHead { .. })),
        "{report:?}"
    );
    assert_eq!((fs::read(&scene.file).expect("a file"), scene.names()), (before, names));
}

#[test]
fn a_backup_of_an_older_schema_is_migrated() {
    let scene = Scene::new();
    let old = scene.path("old.db");
    let base = include_str!("../../../migrations/sqlite/2026-11-21-000000_base/up.sql");
    sql(&old, base);
    sql(
        &old,
        "CREATE TABLE __diesel_schema_migrations (version VARCHAR(50) PRIMARY KEY NOT NULL, \
         run_on TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP); \
         INSERT INTO __diesel_schema_migrations (version) VALUES ('20261121000000'); \
         INSERT INTO meta VALUES ('cursor_secret', randomblob(32)); \
         INSERT INTO tenants VALUES (1, 'acme', 0); \
         INSERT INTO stream_head (tenant_no, epoch, seq) VALUES (1, '00000001', 7)",
    );
    let report = SqliteStore::check(&old);
    assert_eq!(
        (report.findings.len(), report.pending.len(), report.contents.tenants),
        (0, 5, 1),
        "{report:?}"
    );
    let restored = SqliteStore::restore(&old, &scene.file, &*scene.world.random).expect("a restore");
    assert_eq!((restored.migrated.len(), restored.replaced), (5, None));
    let (store, ada) = scene.open();
    assert_eq!((head(&store, &ada).seq, head(&store, &ada).epoch_seq), (Seq::new(7), Seq::new(7)));
}

/// A restore that was cut short at any of its steps is finished by whoever opens the database next.
#[test]
fn a_restore_that_was_decided_is_finished() {
    for step in 0..4 {
        let scene = Scene::new();
        let kept = scene.backup();
        let (store, ada) = scene.open();
        block_on(store.commit(ada.batch([create("lost", "{}")]))).expect("a commit");
        // As a killed process leaves it, with its log.
        for name in ["driftline.db", "driftline.db-wal"] {
            fs::copy(scene.path(name), scene.path(&format!("dead-{name}"))).expect("a copy");
        }
        let lost = head(&store, &ada).seq;
        drop(store);
        for name in ["driftline.db", "driftline.db-wal"] {
            fs::rename(scene.path(&format!("dead-{name}")), scene.path(name)).expect("a file");
        }
        fs::copy(&kept, scene.path("driftline.db-restoring")).expect("a copy");
        let moved = |from: &str, to: &str| fs::rename(scene.path(from), scene.path(to)).expect("a file");
        if step >= 1 {
            moved("driftline.db", "driftline.db.replaced-1");
        }
        if step >= 2 {
            moved("driftline.db-wal", "driftline.db.replaced-1-wal");
        }
        if step >= 3 {
            moved("driftline.db-restoring", "driftline.db");
        }
        let (store, ada) = scene.open();
        assert_eq!(head(&store, &ada).seq.number(), lost.number() - 1, "step {step}: the backup is in place");
        drop(store);
        // The replaced one has its log, and with it everything.
        let replaced = scene.path("driftline.db.replaced-1");
        fs::create_dir(scene.path("dead")).expect("a folder");
        moved("driftline.db.replaced-1-wal", "dead/driftline.db-wal");
        fs::rename(&replaced, scene.path("dead/driftline.db")).expect("a file");
        let dead = support::open(&scene.path("dead/driftline.db"), &scene.world).expect("it opens");
        assert_eq!(block_on(dead.head(ada.tenant)).expect("a head").seq, lost, "step {step}");
        drop(dead);
        assert!(!scene.path("driftline.db-restoring").exists());
    }
}

/// Who copies the file of a stopped server has everything.
#[test]
fn a_store_that_ends_leaves_no_log() {
    let scene = Scene::new();
    for round in 0..20 {
        let (store, ada) = scene.open();
        block_on(store.commit(ada.batch([create(&format!("x{round}"), "{}")]))).expect("a commit");
        drop(store);
        let expected = ["driftline.db", "driftline.db-marks", "driftline.lock"];
        assert_eq!(scene.names(), expected, "round {round}");
    }
}

#[test]
fn one_store_at_a_time_has_a_file_open() {
    let scene = Scene::new();
    let (store, _) = scene.open();
    let second = support::open(&scene.file, &scene.world);
    assert!(matches!(&second, Err(OpenError::InUse { file }) if *file == scene.file), "{second:?}");
    drop(store);
    scene.open();
}

/// Copies the database by hand, as somebody does who does not know of `backup`.
fn copied(scene: &Scene, name: &str) -> PathBuf {
    let copy = scene.path(name);
    fs::copy(&scene.file, &copy).expect("a copy");
    copy
}

#[test]
fn an_older_file_put_back_by_hand_begins_new_epochs_for_those_who_are_behind() {
    let scene = Scene::new();
    let (store, ada) = scene.open();
    let bob = Author::join(&store, "globex", "bob", "tablet");
    write(&store, &ada, "x", 3);
    write(&store, &bob, "y", 3);
    let (old, other) = (head(&store, &ada), head(&store, &bob));
    drop(store);
    let first = copied(&scene, "first.db");

    let (store, ada) = scene.open();
    assert_eq!(head(&store, &ada), old, "nothing begins where nothing is lost");
    write(&store, &ada, "z", 3);
    drop(store);
    fs::copy(&first, &scene.file).expect("a copy");
    let (store, ada) = scene.open();
    let bob = Author::join(&store, "globex", "bob", "tablet");
    let new = head(&store, &ada);
    assert_ne!(new.epoch, old.epoch);
    assert_eq!((new.seq, new.epoch_seq), (old.seq, old.seq));
    assert_eq!(head(&store, &bob), other, "who lost nothing keeps the epoch");
    // With more changes than there were when the file was copied, in the epoch of then: it is old all the same.
    write(&store, &ada, "w", 1);
    drop(store);
    fs::copy(&first, &scene.file).expect("a copy");
    let (store, ada) = scene.open();
    let newest = head(&store, &ada);
    assert!(newest.epoch != old.epoch && newest.epoch != new.epoch, "{newest:?}");
}

/// What was published is lost with an older file too, although no record changed.
#[test]
fn an_older_file_that_lost_events_begins_a_new_epoch() {
    let scene = Scene::new();
    let (store, ada) = scene.open();
    tell(&store, &ada);
    let old = head(&store, &ada);
    drop(store);
    let first = copied(&scene, "first.db");
    let (store, ada) = scene.open();
    tell(&store, &ada);
    assert_eq!((head(&store, &ada).seq, head(&store, &ada).event_id), (old.seq, 9), "a state came again");
    drop(store);
    fs::copy(&first, &scene.file).expect("a copy");
    let (store, ada) = scene.open();
    let new = head(&store, &ada);
    assert_ne!(new.epoch, old.epoch);
    assert_eq!(new.event_id, 5, "the numbers go on");
}

#[test]
fn a_restored_database_is_remembered_too() {
    let scene = Scene::new();
    let kept = scene.backup();
    let by_hand = copied(&scene, "by-hand.db");
    SqliteStore::restore(&kept, &scene.file, &*scene.world.random).expect("a restore");
    let (store, ada) = scene.open();
    let restored = head(&store, &ada);
    drop(store);
    fs::copy(&by_hand, &scene.file).expect("a copy");
    let (store, ada) = scene.open();
    let found = head(&store, &ada);
    assert_eq!(found.seq, restored.seq);
    assert_eq!(found.epoch_seq, found.seq, "an epoch began at its opening");
    assert_ne!(found.epoch, restored.epoch);
}

#[test]
fn a_side_file_that_is_absent_or_damaged_refuses_nobody() {
    let scene = Scene::new();
    let (store, ada) = scene.open();
    write(&store, &ada, "x", 3);
    let before = head(&store, &ada);
    drop(store);
    let side = scene.path("driftline.db-marks");
    let whole = fs::read(&side).expect("a side file");
    for content in [None, Some(&b""[..]), Some(&whole[..whole.len() / 2]), Some(b"\xff\xfe")] {
        match content {
            None => fs::remove_file(&side).expect("it was there"),
            Some(content) => fs::write(&side, content).expect("a file"),
        }
        let (store, ada) = scene.open();
        assert_eq!(head(&store, &ada), before);
        drop(store);
        assert_eq!(fs::read(&side).expect("a side file"), whole, "it is written anew");
    }
    // Even where it cannot be written.
    fs::remove_file(&side).expect("it was there");
    fs::create_dir(&side).expect("a folder");
    fs::write(side.join("in the way"), "").expect("a file");
    let (store, ada) = scene.open();
    assert_eq!(head(&store, &ada), before);
}

/// The side file follows while the store runs, so that a killed one leaves it as well.
#[test]
fn the_side_file_follows_the_commits() {
    let scene = Scene::new();
    let (store, ada) = scene.open();
    let side = scene.path("driftline.db-marks");
    let has = |head: Head| {
        let text = fs::read_to_string(&side).unwrap_or_default();
        text.lines().any(|line| line.ends_with(&format!(" {} {} - acme", head.seq, head.event_id)))
    };
    for round in 0..3 {
        match round {
            2 => tell(&store, &ada),
            _ => write(&store, &ada, &format!("r{round}-"), 3),
        }
        let head = head(&store, &ada);
        let mut looks = 0;
        while !has(head) {
            looks += 1;
            assert!(looks < 2_000, "{:?}", fs::read_to_string(&side));
            std::thread::park_timeout(std::time::Duration::from_millis(10));
        }
    }
}

/// Numbers that a lost tenant had are given to others, and nobody takes one for the other.
#[test]
fn a_lost_tenant_is_another_when_it_comes_back() {
    let scene = Scene::new();
    let (store, ada) = scene.open();
    write(&store, &ada, "x", 1);
    drop(store);
    let first = copied(&scene, "first.db");
    let (store, _) = scene.open();
    let bob = Author::join(&store, "globex", "bob", "tablet");
    write(&store, &bob, "y", 3);
    let lost = head(&store, &bob);
    drop(store);
    fs::copy(&first, &scene.file).expect("a copy");
    let (store, _) = scene.open();
    let eve = Author::join(&store, "initech", "eve", "laptop");
    assert_eq!(eve.tenant, bob.tenant, "the number is given again");
    assert_eq!(head(&store, &eve).seq, Seq::ZERO);
    let again = block_on(store.tenant(&TenantId::new("globex").expect("a name"))).expect("a tenant");
    let again = block_on(store.head(again)).expect("a head");
    assert_ne!(again.epoch, lost.epoch, "its devices begin anew and give back what they hold");
}
