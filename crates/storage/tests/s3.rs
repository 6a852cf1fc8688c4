//! Uploads in a bucket: what is put, what is refused, and what a crash or an S3 that fails leaves behind.

use std::num::NonZeroU64;
use std::time::Duration;

use driftline_engine::{BlobError, Blobs, Joining, PartPlace, PartWritten, Purpose, UploadRow};
use driftline_model::{TenantId, TenantNo};
use driftline_storage::{S3Blobs, S3Options};
use driftline_testkit::http::PATIENCE;
use driftline_testkit::s3::{BUCKET, PART_BYTES_MIN, S3, WRITTEN_MS};
use driftline_uploads::{Digest, Expiry, Form, Plan, RunningHash, Upload, UploadId};

const CHUNK: u64 = PART_BYTES_MIN as u64;
/// A file of two whole chunks and a short one.
const SIZE: u64 = 2 * CHUNK + 12_345;
const ID: UploadId = UploadId::of([0xab; 16]);

fn options(s3: &S3) -> S3Options {
    let mut options = S3Options::new(BUCKET, "eu-central-1", "AKID", "very secret");
    options.endpoint = Some(s3.endpoint());
    options.allow_http = true;
    options.path_style = true;
    options.prefix = "app/".into();
    options.chunk_bytes = CHUNK;
    options.timeout = Duration::from_secs(10);
    options
}

fn open(s3: &S3) -> S3Blobs {
    S3Blobs::open(&options(s3)).expect("the options are right")
}

fn key() -> String {
    format!("app/files/ab/{ID}")
}

fn file(size: u64) -> Vec<u8> {
    // No chunk is like another one.
    (0..251).cycle().take(offset(size)).collect()
}

fn offset(at: u64) -> usize {
    usize::try_from(at).expect("it is in memory")
}

/// An upload, and what its rows know of it.
struct Under<'a> {
    blobs: &'a S3Blobs,
    row: UploadRow,
    bytes: Vec<u8>,
    tags: Vec<Option<Box<str>>>,
}

impl<'a> Under<'a> {
    async fn way(blobs: &'a S3Blobs, size: u64) -> Self {
        let staged = blobs.create(ID).await.expect("S3 answers");
        let plan = Plan::new(size, NonZeroU64::new(CHUNK).expect("it is not zero"));
        let mut upload = Upload::open(Form::Chunks(plan), 0, &Expiry::default());
        upload.received = size;
        let row = UploadRow {
            id: ID,
            tenant: TenantNo::new(1),
            tenant_id: TenantId::new("acme").expect("a tenant"),
            owner: "ada".into(),
            upload,
            reserved: size,
            file_name: "file".into(),
            content_type: "image/png".into(),
            metadata: None,
            announced: None,
            digest: None,
            running: Some(RunningHash::default()),
            staged,
            record: None,
            joining: Joining::Alone,
            fault: None,
            changed_ms: 0,
        };
        Self { blobs, row, bytes: file(size), tags: vec![None; offset(plan.chunks())] }
    }

    fn plan(&self) -> Plan {
        match self.row.upload.form {
            Form::Chunks(plan) => plan,
            Form::Stream { .. } => panic!("it comes in chunks"),
        }
    }

    fn place(&self, index: u64) -> (PartPlace, &[u8]) {
        let (at, len) = self.plan().chunk(index).expect("there is such a chunk");
        let bytes = &self.bytes[offset(at)..offset(at + len)];
        let place = PartPlace {
            id: ID,
            staged: self.row.staged.clone(),
            index: Some(index),
            at,
            end: at + len,
            running: self.row.running.clone(),
            digest: Some(Digest::hash(bytes)),
            purpose: Purpose::Write,
        };
        (place, bytes)
    }

    /// Sends a chunk, and keeps what the rows would.
    async fn send(&mut self, index: u64) -> Result<PartWritten, BlobError> {
        let (place, bytes) = self.place(index);
        let written = put(self.blobs, place, bytes).await?;
        self.tags[offset(index)] = written.tag.clone();
        if written.running.is_some() {
            self.row.running = written.running.clone();
        }
        Ok(written)
    }

    async fn send_all(&mut self) {
        for index in 0..self.plan().chunks() {
            self.send(index).await.expect("it is put");
        }
    }

    async fn assemble(&self) -> Result<Digest, BlobError> {
        let tags = self.tags.iter().flatten().cloned().collect();
        self.blobs.assemble(&self.row, tags).await
    }
}

async fn put(blobs: &S3Blobs, place: PartPlace, bytes: &[u8]) -> Result<PartWritten, BlobError> {
    let mut sink = blobs.begin(place).await?;
    for piece in bytes.chunks(1 << 20) {
        sink.write(piece).await?;
    }
    let settled = sink.settle().await;
    sink.stop().await;
    settled
}

#[tokio::test]
async fn chunks_in_order_are_a_file_and_are_hashed_as_they_come() {
    let s3 = S3::start();
    let blobs = open(&s3);
    assert!(!blobs.takes_streams() && blobs.chunk_bytes() == CHUNK);
    let mut upload = Under::way(&blobs, SIZE).await;
    assert_eq!(s3.open().keys().next().map(String::as_str), upload.row.staged.as_deref());
    upload.send_all().await;
    assert_eq!(upload.row.running.as_ref().map(RunningHash::through), Some(SIZE));
    assert_eq!(s3.objects().len(), 0, "nothing is there before it is put together");

    assert_eq!(upload.assemble().await, Ok(Digest::hash(&upload.bytes)));
    assert!(!s3.asked().iter().any(|asked| asked.starts_with("GET")), "it was hashed as it came");
    assert_eq!(blobs.publish(ID).await, Ok(()));
    assert_eq!(s3.objects().get(&key()), Some(&upload.bytes));
    assert!(s3.open().is_empty());

    assert_eq!(blobs.remove(ID).await, Ok(()));
    assert!(s3.objects().is_empty());
    assert_eq!(blobs.remove(ID).await, Ok(()), "it may be gone already");
    assert_eq!(blobs.read(ID, 0, 10).await, Err(BlobError::Missing));
}

#[tokio::test]
async fn chunks_come_in_any_order_and_again() {
    let s3 = S3::start();
    let blobs = open(&s3);
    let mut upload = Under::way(&blobs, SIZE).await;
    for index in [2, 0, 2, 1, 1] {
        upload.send(index).await.expect("it is put");
    }
    // The last chunk came before the hash was there.
    assert_eq!(upload.row.running.as_ref().map(RunningHash::through), Some(2 * CHUNK));
    assert_eq!(upload.assemble().await, Ok(Digest::hash(&upload.bytes)));
    upload.row.running = None;
    assert_eq!(upload.assemble().await, Ok(Digest::hash(&upload.bytes)), "all of it is read");
    assert_eq!(s3.objects().get(&key()), Some(&upload.bytes));
}

#[tokio::test]
async fn nothing_wrong_is_put() {
    let s3 = S3::start();
    let blobs = open(&s3);
    let upload = Under::way(&blobs, SIZE).await;
    let (place, bytes) = upload.place(1);
    let other = PartPlace { digest: Some(Digest::hash(b"other")), ..place.clone() };
    assert_eq!(put(&blobs, other, bytes).await.err(), Some(BlobError::Mismatch));
    assert_eq!(put(&blobs, place.clone(), &bytes[1..]).await.err(), Some(BlobError::Length));
    let longer = [bytes, b"x"].concat();
    assert_eq!(put(&blobs, place.clone(), &longer).await.err(), Some(BlobError::Length));
    let mut sink = blobs.begin(place.clone()).await.expect("there is room");
    sink.write(bytes).await.expect("it is held");
    sink.stop().await;
    assert!(matches!(sink.settle().await, Err(BlobError::Failed(_))), "it was given up");

    let compared = PartPlace { purpose: Purpose::Compare, ..place.clone() };
    let compared = put(&blobs, compared, bytes).await.expect("they are the same");
    assert!(compared.tag.is_none() && compared.running.is_none() && compared.end == 2 * CHUNK);
    let compared = PartPlace { purpose: Purpose::Compare, digest: Some(Digest::hash(b"other")), ..place };
    assert_eq!(put(&blobs, compared, bytes).await.err(), Some(BlobError::Mismatch));
    assert!(s3.open().values().all(|upload| upload.parts.is_empty()), "nothing was put");
}

#[tokio::test]
async fn streams_are_refused() {
    let s3 = S3::start();
    let blobs = open(&s3);
    let upload = Under::way(&blobs, SIZE).await;
    let (place, _) = upload.place(0);
    let stream = PartPlace { index: None, ..place };
    assert!(matches!(blobs.begin(stream).await.err(), Some(BlobError::Failed(_))));
    assert!(matches!(blobs.join(ID, ID, Vec::new()).await, Err(BlobError::Failed(_))));
    assert_eq!(blobs.staged_before(u64::MAX).await, Ok(Vec::new()));
}

#[tokio::test]
async fn what_was_put_together_before_is_gone_on_with() {
    let s3 = S3::start();
    let blobs = open(&s3);
    let mut upload = Under::way(&blobs, SIZE).await;
    upload.send_all().await;
    let whole = Digest::hash(&upload.bytes);
    // S3 does it, and its answer is lost; it is asked again.
    s3.lose_answers(1);
    assert_eq!(upload.assemble().await, Ok(whole));
    assert_eq!(s3.faults(), 1);
    // A crash before the row, or another digest than the claimed one: another process asks again.
    let later = open(&s3);
    upload.blobs = &later;
    assert_eq!(upload.assemble().await, Ok(whole));
    assert_eq!(later.read(ID, 0, 3).await.as_deref(), Ok(&upload.bytes[..3]));
}

#[tokio::test]
async fn an_object_of_another_size_is_not_gone_on_with() {
    let s3 = S3::start();
    let blobs = open(&s3);
    let mut upload = Under::way(&blobs, SIZE).await;
    upload.send_all().await;
    upload.assemble().await.expect("it is whole");
    upload.row.upload.received -= 1;
    assert!(matches!(upload.assemble().await, Err(BlobError::Failed(_))));
    blobs.remove(ID).await.expect("it is removed");
    assert_eq!(upload.assemble().await, Err(BlobError::Missing));
}

#[tokio::test]
async fn a_chunk_that_is_missing_or_another_one_spoils_nothing() {
    let s3 = S3::start();
    let blobs = open(&s3);
    let mut upload = Under::way(&blobs, SIZE).await;
    upload.send_all().await;
    let tag = upload.tags[1].take();
    assert!(matches!(upload.assemble().await, Err(BlobError::Failed(_))));
    upload.tags[1] = upload.tags[0].clone();
    assert_eq!(upload.assemble().await, Err(BlobError::Mismatch));
    assert_eq!((s3.objects().len(), s3.open().len()), (0, 1), "all its parts are still there");
    upload.tags[1] = tag;
    assert_eq!(upload.assemble().await, Ok(Digest::hash(&upload.bytes)));
}

#[tokio::test]
async fn a_file_without_bytes_is_an_empty_object() {
    let s3 = S3::start();
    let blobs = open(&s3);
    let upload = Under::way(&blobs, 0).await;
    for _ in 0..2 {
        assert_eq!(upload.assemble().await, Ok(Digest::hash(b"")));
        assert_eq!(s3.objects().get(&key()), Some(&Vec::new()));
        assert!(s3.open().is_empty());
    }
    assert_eq!(blobs.read(ID, 0, 10).await, Ok(Vec::new()));
}

#[tokio::test]
async fn ranges_are_read_up_to_the_end() {
    let s3 = S3::start();
    let blobs = open(&s3);
    let mut upload = Under::way(&blobs, 1000).await;
    upload.send_all().await;
    upload.assemble().await.expect("it is whole");
    let all = upload.bytes.as_slice();
    let table = [
        (0, 1000),
        (0, 1),
        (0, blobs.read_bytes()),
        (999, 1),
        (500, 100),
        (990, 100),
        (1000, 1),
        (5000, 10),
        (0, 0),
        (0, 1 << 20),
    ];
    for (at, bytes) in table {
        let wanted = &all[at.min(1000)..(at + bytes).min(1000).max(at.min(1000))];
        assert_eq!(blobs.read(ID, at as u64, bytes).await.as_deref(), Ok(wanted), "{at} {bytes}");
    }
}

#[tokio::test]
async fn what_is_given_up_is_gone_whatever_became_of_it() {
    let s3 = S3::start();
    let blobs = open(&s3);
    let mut upload = Under::way(&blobs, SIZE).await;
    upload.send(0).await.expect("it is put");
    let staged = upload.row.staged.clone();
    assert_eq!(blobs.discard(ID, staged.clone()).await, Ok(()));
    assert!(s3.open().is_empty());
    assert_eq!(blobs.discard(ID, staged).await, Ok(()), "it may be gone already");
    assert_eq!(upload.send(1).await.err(), Some(BlobError::Missing), "nothing more is taken");

    let mut upload = Under::way(&blobs, 1000).await;
    upload.send_all().await;
    upload.assemble().await.expect("it is whole");
    assert_eq!(blobs.discard(ID, upload.row.staged.clone()).await, Ok(()));
    assert!(s3.open().is_empty() && s3.objects().is_empty(), "what was put together goes, too");
}

#[tokio::test]
async fn what_could_not_be_given_up_is_given_up_later() {
    let s3 = S3::start();
    let blobs = open(&s3);
    let mut upload = Under::way(&blobs, SIZE).await;
    upload.send(0).await.expect("it is put");
    let staged = upload.row.staged.clone();
    s3.fail(usize::MAX, 403, "AccessDenied");
    assert!(blobs.discard(ID, staged.clone()).await.is_err());
    assert_eq!(s3.faults(), 2, "one failure holds up nothing else");
    s3.fail(0, 0, "");
    assert_eq!(s3.open().len(), 1);
    assert_eq!(blobs.discard(ID, staged.clone()).await, Ok(()));
    assert!(s3.open().is_empty());
    // When nothing is there any more, it costs two requests.
    for staged in [staged, Some("never heard of".into())] {
        let before = s3.asked().len();
        assert_eq!(blobs.discard(ID, staged).await, Ok(()));
        assert_eq!(s3.asked().len() - before, 2);
    }
    assert_eq!(blobs.discard(ID, None).await, Ok(()));
}

#[tokio::test]
async fn what_passes_is_asked_again() {
    let s3 = S3::start();
    let blobs = open(&s3);
    s3.fail(2, 500, "InternalError");
    let mut upload = Under::way(&blobs, SIZE).await;
    s3.hang_up(1);
    upload.send(0).await.expect("it is put again");
    s3.fail(1, 503, "SlowDown");
    upload.send(1).await.expect("it is put again");
    s3.lose_answers(1);
    upload.send(2).await.expect("it is put again");
    s3.fail(1, 503, "SlowDown");
    assert_eq!(upload.assemble().await, Ok(Digest::hash(&upload.bytes)));
    s3.fail(1, 500, "InternalError");
    assert_eq!(blobs.read(ID, 1, 2).await.as_deref(), Ok(&upload.bytes[1..3]));
    s3.fail(1, 500, "InternalError");
    assert_eq!(blobs.discard(ID, upload.row.staged.clone()).await, Ok(()));
    assert_eq!(s3.faults(), 8);
}

#[tokio::test]
async fn what_does_not_pass_is_told_in_time() {
    let s3 = S3::start();
    let hasty = S3Options { timeout: Duration::from_secs(2), ..options(&s3) };
    let blobs = S3Blobs::open(&hasty).expect("the options are right");
    let mut upload = Under::way(&blobs, SIZE).await;
    let told = async {
        s3.fail(usize::MAX, 500, "InternalError");
        let failed = Some(BlobError::Failed("S3 answers 500 InternalError".into()));
        assert_eq!(upload.send(0).await.err(), failed);
        assert_eq!(blobs.create(ID).await.err(), failed);
        s3.hang_up(usize::MAX);
        let unreached = upload.send(0).await.err();
        assert!(matches!(&unreached, Some(BlobError::Failed(why)) if why.starts_with("S3 was not reached")));
        s3.stall(usize::MAX);
        assert!(matches!(blobs.read(ID, 0, 1).await, Err(BlobError::Failed(_))));
    };
    tokio::time::timeout(Duration::from_secs(30), told).await.expect("it is told in time");

    let gone = options(&s3);
    drop(s3);
    let blobs = S3Blobs::open(&gone).expect("the options are right");
    let unreached = blobs.create(ID).await.err();
    assert!(matches!(&unreached, Some(BlobError::Failed(why)) if why.contains("refused")), "{unreached:?}");
}

#[tokio::test]
async fn refusals_have_a_meaning_and_hold_no_credentials() {
    let s3 = S3::start();
    let blobs = open(&s3);
    let mut upload = Under::way(&blobs, SIZE).await;
    let before = s3.faults();
    for (status, code) in [(507, ""), (403, "QuotaExceeded"), (507, "XMinioStorageFull")] {
        s3.fail(usize::MAX, status, code);
        assert_eq!(upload.send(0).await.err(), Some(BlobError::Full));
    }
    s3.fail(usize::MAX, 403, "SignatureDoesNotMatch");
    let refused = Some(BlobError::Failed("S3 answers 403 SignatureDoesNotMatch".into()));
    assert_eq!(upload.send(0).await.err(), refused);
    assert_eq!(s3.faults() - before, 4, "none of them is asked again");
    s3.fail(0, 0, "");
    let elsewhere = S3Options { bucket: "other".into(), ..options(&s3) };
    let elsewhere = S3Blobs::open(&elsewhere).expect("the options are right");
    assert_eq!(elsewhere.create(ID).await, Err(BlobError::Failed("S3 answers 404 NoSuchBucket".into())));
}

#[tokio::test]
async fn parts_that_changed_behind_our_back_are_sent_again() {
    let s3 = S3::start();
    let blobs = open(&s3);
    let mut upload = Under::way(&blobs, SIZE).await;
    let staged = upload.row.staged.clone().expect("it has a name");
    let digests = || (0..3).map(|index| (index, Digest::hash(b""))).collect::<Vec<_>>();
    for lost in [true, false] {
        upload.send_all().await;
        match lost {
            true => s3.lose_part(&staged, 1),
            false => s3.replace_part(&staged, 2, b"late"),
        }
        assert_eq!(upload.assemble().await, Err(BlobError::Mismatch));
        assert_eq!(blobs.damaged(&upload.row, digests()).await, Ok(vec![0, 1, 2]));
        s3.fail(usize::MAX, 403, "AccessDenied");
        assert!(blobs.damaged(&upload.row, digests()).await.is_err(), "S3 could not be asked");
        s3.fail(0, 0, "");
    }
    upload.send_all().await;
    // S3 may say so after it has begun to answer.
    s3.fail(1, 200, "InvalidPart");
    assert_eq!(upload.assemble().await, Err(BlobError::Mismatch));
    let before = s3.faults();
    s3.fail(1, 200, "InternalError");
    assert_eq!(upload.assemble().await, Ok(Digest::hash(&upload.bytes)), "it is asked again");
    assert_eq!(s3.faults() - before, 1);
    assert_eq!(blobs.damaged(&upload.row, digests()).await, Ok(Vec::new()), "what S3 put together is right");
}

#[tokio::test]
async fn a_hash_of_more_than_the_file_is_begun_anew() {
    let s3 = S3::start();
    let blobs = open(&s3);
    let mut upload = Under::way(&blobs, 1000).await;
    upload.send_all().await;
    let mut beyond = RunningHash::default();
    beyond.update(&file(1001));
    upload.row.running = Some(beyond);
    assert_eq!(upload.assemble().await, Ok(Digest::hash(&upload.bytes)));
}

#[tokio::test]
async fn files_are_listed_by_shelf_and_age() {
    let s3 = S3::start();
    let blobs = open(&s3);
    assert_eq!(blobs.files_before(0xab, u64::MAX).await, Ok(Vec::new()));
    let id = |last: u8| {
        let mut bytes = [0xab; 16];
        bytes[15] = last;
        UploadId::of(bytes)
    };
    for last in 0..5 {
        s3.put(&format!("app/files/ab/{}", id(last)), b"x", WRITTEN_MS - u64::from(last));
    }
    let elsewhere = UploadId::of([0xac; 16]);
    let foreign = [
        format!("app/files/ac/{elsewhere}"),
        format!("app/files/ab/{elsewhere}"),
        format!("app/files/ab/{ID}.txt"),
        format!("app/files/ab/deep/{ID}"),
        format!("app/files/ab/{}", ID.to_string().to_uppercase()),
        format!("other/files/ab/{ID}"),
        "app/files/ab/a & <b>".to_owned(),
    ];
    for key in foreign {
        s3.put(&key, b"x", 0);
    }
    s3.list_at_once(2);
    assert_eq!(blobs.files_before(0xab, WRITTEN_MS + 1).await, Ok((0..5).map(id).collect()));
    let pages = s3.asked().iter().filter(|asked| asked.contains("continuation-token")).count();
    assert_eq!(pages, 4, "{:?}", s3.asked());
    assert_eq!(blobs.files_before(0xab, WRITTEN_MS - 2).await, Ok(vec![id(3), id(4)]));
    assert_eq!(blobs.files_before(0xac, u64::MAX).await, Ok(vec![elsewhere]));
    assert_eq!(blobs.files_before(0xad, u64::MAX).await, Ok(Vec::new()));

    s3.fail(1, 503, "SlowDown");
    assert_eq!(blobs.files_before(0xac, u64::MAX).await, Ok(vec![elsewhere]), "it is asked again");
    s3.fail(usize::MAX, 403, "AccessDenied");
    let refused = BlobError::Failed("S3 answers 403 AccessDenied".into());
    assert_eq!(blobs.files_before(0xab, u64::MAX).await, Err(refused));
}

#[tokio::test]
async fn chunks_take_memory_as_they_come_and_wait_for_it_no_longer_than_told() {
    let s3 = S3::start();
    let short = S3Options { memory_bytes: CHUNK, timeout: Duration::from_millis(500), ..options(&s3) };
    let blobs = S3Blobs::open(&short).expect("the options are right");
    let patient = open(&s3);
    let upload = Under::way(&patient, SIZE).await;
    let (place, bytes) = upload.place(0);
    let (other, others) = upload.place(2);
    let mut idle = Vec::new();
    for _ in 0..100 {
        idle.push(blobs.begin(place.clone()).await.expect("what sends nothing takes nothing"));
    }
    let mut first = blobs.begin(place).await.expect("it begins");
    first.write(&bytes[..1]).await.expect("there is room");
    let mut second = blobs.begin(other.clone()).await.expect("it begins");
    let full = BlobError::Failed("too many chunks come at once".into());
    assert_eq!(second.write(others).await, Err(full));
    let compared = PartPlace { purpose: Purpose::Compare, ..other.clone() };
    put(&blobs, compared, others).await.expect("what is only hashed needs no room");
    first.write(&bytes[1..]).await.expect("who has room goes on");
    first.settle().await.expect("it is put");
    idle[0].write(&bytes[..1]).await.expect("there is room");
    idle[0].stop().await;
    idle[1].write(&bytes[..1]).await.expect("what was given up holds nothing");
}

#[tokio::test]
async fn a_chunk_that_waits_for_memory_comes_when_another_one_is_put() {
    let s3 = S3::start();
    let blobs = S3Blobs::open(&S3Options { memory_bytes: CHUNK, timeout: PATIENCE, ..options(&s3) });
    let blobs = blobs.expect("the options are right");
    let upload = Under::way(&blobs, SIZE).await;
    let (place, bytes) = upload.place(0);
    let mut first = blobs.begin(place).await.expect("it begins");
    first.write(&bytes[..1]).await.expect("there is room");
    let (other, others) = upload.place(2);
    let ending = async {
        first.write(&bytes[1..]).await.expect("it has room");
        first.settle().await.expect("it is put");
    };
    let (waited, ()) = tokio::join!(put(&blobs, other, others), ending);
    waited.expect("there is room now");
}
