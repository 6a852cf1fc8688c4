//! Uploads whose bytes are in a bucket, from the first request to the removal of the file, and whatever fails between.

mod support;

use std::sync::Arc;

use driftline_engine::{Blobs, Store};
use driftline_storage::{S3Blobs, S3Options};
use driftline_testkit::World;
use driftline_testkit::http::{Request, Response};
use driftline_testkit::s3::{BUCKET, PART_BYTES_MIN, S3};
use driftline_uploads::UploadId;
use serde_json::{Value, json};
use support::uploading::{code, finalize, init, insist_on, put, send, sha256, status, text, tus};
use support::{Harness, Setup, start, start_on, token, until};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

/// Two whole chunks and a short one.
const SIZE: usize = 2 * PART_BYTES_MIN + 4321;

const HOUR_MS: u64 = 3_600_000;

fn file() -> Vec<u8> {
    // No chunk is like another one.
    (0..251).cycle().take(SIZE).collect()
}

fn chunk(file: &[u8], index: usize) -> &[u8] {
    file.chunks(PART_BYTES_MIN).nth(index).expect("there is such a chunk")
}

/// The bucket, for a node.
fn bucket(s3: &S3) -> Option<Arc<dyn Blobs>> {
    let mut options = S3Options::new(BUCKET, "eu-central-1", "AKID", "a secret");
    options.endpoint = Some(s3.endpoint());
    options.allow_http = true;
    options.path_style = true;
    options.chunk_bytes = PART_BYTES_MIN as u64;
    Some(Arc::new(S3Blobs::open(&options).expect("the options are right")))
}

async fn started(s3: &S3) -> Harness {
    start(Setup { blobs: bucket(s3), ..Setup::default() }).await
}

async fn open(harness: &Harness<impl Store>) -> String {
    let answer = init(harness, &json!({"filename": "film.mp4", "size": SIZE})).await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    let opened = answer.json();
    assert_eq!((&opened["chunk_size"], &opened["total_chunks"]), (&json!(PART_BYTES_MIN), &json!(3)));
    text(&opened["upload_id"])
}

async fn fill(harness: &Harness<impl Store>, id: &str, file: &[u8]) {
    for index in 0..3 {
        let (kept, body) = send(harness, put(id, index, chunk(file, index))).await;
        assert_eq!(kept, 200, "{body}");
    }
}

async fn read(harness: &Harness<impl Store>, id: &str, range: Option<&str>) -> Response {
    let request = Request::get(&format!("/api/v1/files/{id}"));
    let request = match range {
        Some(range) => request.header("range", range),
        None => request,
    };
    harness.ask("t1", "ada", request).await
}

/// What is missing, as a refusal to finalize tells it.
async fn missing(harness: &Harness<impl Store>, id: &str, file: &[u8]) -> Value {
    let (refused, mut problem) = send(harness, finalize(id, &sha256(file))).await;
    assert_eq!((refused, &problem["code"]), (409, &json!("UPLOAD_INCOMPLETE")), "{problem}");
    problem["missing"].take()
}

#[tokio::test]
async fn a_file_lives_in_the_bucket() {
    let (s3, file) = (S3::start(), file());
    let harness = started(&s3).await;
    let id = open(&harness).await;
    assert_eq!(s3.open().len(), 1);
    for index in [2, 0] {
        assert_eq!(send(&harness, put(&id, index, chunk(&file, index))).await.0, 200);
    }
    assert_eq!(missing(&harness, &id, &file).await, json!([[1, 1]]));
    let asked = s3.asked().len();
    assert_eq!(send(&harness, put(&id, 0, chunk(&file, 0))).await.0, 200, "the same again is fine");
    let other = code(&harness, put(&id, 0, chunk(&file, 1))).await;
    assert_eq!(other, (409, "CHUNK_CONFLICT".into()));
    let short = code(&harness, put(&id, 1, b"short")).await;
    assert_eq!(short, (422, "VALIDATION_ERROR".into()));
    let lying = put(&id, 1, chunk(&file, 1)).body(chunk(&file, 0));
    assert_eq!(code(&harness, lying).await, (422, "DIGEST_MISMATCH".into()));
    assert_eq!(s3.asked().len(), asked, "nothing of that is put");
    assert_eq!(send(&harness, put(&id, 1, chunk(&file, 1))).await.0, 200);
    assert_eq!(read(&harness, &id, None).await.status, 404, "it is no file yet");

    let (done, doc) = send(&harness, finalize(&id, &sha256(&file))).await;
    assert_eq!((done, &doc["sha256"]), (200, &json!(sha256(&file))), "{doc}");
    assert_eq!(send(&harness, finalize(&id, &sha256(&file))).await.0, 200);
    assert_eq!(code(&harness, put(&id, 1, chunk(&file, 1))).await.0, 410);
    assert!(s3.open().is_empty());
    assert!(s3.objects().get(&format!("files/{}/{id}", &id[..2])) == Some(&file));

    assert!(read(&harness, &id, None).await.body == file);
    let edge = PART_BYTES_MIN;
    let table = [
        ("bytes=0-0".to_owned(), 0..1),
        (format!("bytes={}-{}", edge - 3, edge + 2), edge - 3..edge + 3),
        (format!("bytes={}-", SIZE - 5), SIZE - 5..SIZE),
        (format!("bytes={}-{}", SIZE - 5, SIZE + 5), SIZE - 5..SIZE),
        (format!("bytes=-{}", edge + 7), SIZE - edge - 7..SIZE),
    ];
    for (range, wanted) in table {
        let part = read(&harness, &id, Some(&range)).await;
        assert!((part.status, &*part.body) == (206, &file[wanted]), "{range} {}", part.status);
    }
    assert_eq!(read(&harness, &id, Some(&format!("bytes={SIZE}-"))).await.status, 416);

    let removal = Request::new("DELETE", &format!("/api/v1/files/{id}"));
    assert_eq!(send(&harness, removal).await.0, 204);
    assert_eq!(read(&harness, &id, None).await.status, 404);
    assert!(s3.objects().is_empty() && s3.open().is_empty());
}

#[tokio::test]
async fn a_file_without_bytes_is_one() {
    let s3 = S3::start();
    let harness = started(&s3).await;
    let opened = init(&harness, &json!({"filename": "nothing", "size": 0})).await.json();
    let id = text(&opened["upload_id"]);
    assert_eq!(send(&harness, finalize(&id, &sha256(b""))).await.0, 200);
    let nothing = read(&harness, &id, None).await;
    assert_eq!((nothing.status, nothing.body.len()), (200, 0));
    assert!(s3.open().is_empty());
}

#[tokio::test]
async fn what_is_cancelled_or_expires_is_aborted() {
    let (s3, file) = (S3::start(), file());
    let harness = started(&s3).await;
    let id = open(&harness).await;
    assert_eq!(send(&harness, put(&id, 0, chunk(&file, 0))).await.0, 200);
    let cancel = Request::new("DELETE", &format!("/api/v1/uploads/{id}"));
    assert_eq!(send(&harness, cancel).await.0, 204);
    assert!(s3.open().is_empty());
    assert_eq!(code(&harness, put(&id, 1, chunk(&file, 1))).await, (410, "UPLOAD_GONE".into()));

    let id = open(&harness).await;
    assert_eq!(send(&harness, put(&id, 0, chunk(&file, 0))).await.0, 200);
    harness.app.sweep_uploads().await.expect("a sweep");
    assert_eq!(s3.open().len(), 1, "its time is not over");
    harness.clock.advance(25 * HOUR_MS);
    harness.app.sweep_uploads().await.expect("a sweep");
    assert!(s3.open().is_empty());
}

#[tokio::test]
async fn what_is_put_while_its_upload_is_cancelled_is_aborted_again() {
    let (s3, file) = (S3::start(), file());
    let harness = Arc::new(started(&s3).await);
    let id = open(&harness).await;
    s3.stall(1);
    let putting = {
        let (harness, id, part) = (Arc::clone(&harness), id.clone(), chunk(&file, 0).to_vec());
        tokio::spawn(async move { send(&harness, put(&id, 0, &part)).await })
    };
    until("the bucket has the part", || async { s3.faults() == 1 }).await;
    let is_abort = |asked: &&String| asked.starts_with("DELETE ") && asked.contains("uploadId=");
    let aborts = || s3.asked().iter().filter(is_abort).count();
    let cancel = Request::new("DELETE", &format!("/api/v1/uploads/{id}"));
    assert_eq!(send(&harness, cancel).await.0, 204);
    assert_eq!((aborts(), s3.open().len()), (1, 0), "{:?}", s3.asked());
    // The part may have come after that, and would be kept and paid for.
    harness.clock.advance(61_000);
    harness.app.sweep_uploads().await.expect("a sweep");
    assert_eq!(aborts(), 2);
    putting.abort();
}

#[tokio::test]
async fn a_chunk_whose_upload_is_cancelled_while_it_comes_is_told_so() {
    let (s3, file) = (S3::start(), file());
    let harness = started(&s3).await;
    let id = open(&harness).await;
    let mut stream = TcpStream::connect(harness.address).await.expect("it listens");
    let request = put(&id, 0, chunk(&file, 0)).bearer(&token("t1", "ada")).encode(harness.address);
    let (most, last) = request.split_at(request.len() - 1);
    stream.write_all(most).await.expect("it reads");
    // A lie, which would be kept by nobody.
    let lie = || put(&id, 0, chunk(&file, 0)).body(chunk(&file, 1));
    until("it has begun", || async { code(&harness, lie()).await.0 == 409 }).await;
    let cancel = Request::new("DELETE", &format!("/api/v1/uploads/{id}"));
    assert_eq!(send(&harness, cancel).await.0, 204);
    stream.write_all(last).await.expect("it reads");
    let gone = Response::read(&mut stream, &mut Vec::new()).await.expect("an answer");
    assert_eq!((gone.status, gone.code().as_str()), (410, "UPLOAD_GONE"), "{}", gone.text());
    assert!(s3.open().is_empty());
}

#[tokio::test]
async fn what_the_bucket_does_not_abort_at_once_is_aborted_later() {
    const MINUTE_MS: u64 = 60_000;
    let (s3, file) = (S3::start(), file());
    let harness = started(&s3).await;
    let opened = init(&harness, &json!({"filename": "film.mp4", "size": SIZE})).await.json();
    let (id, secret) = (text(&opened["upload_id"]), text(&opened["upload_token"]));
    assert_eq!(send(&harness, put(&id, 0, chunk(&file, 0))).await.0, 200);
    s3.fail(usize::MAX, 503, "SlowDown");
    let cancel = Request::new("DELETE", &format!("/api/v1/uploads/{id}"));
    assert_eq!(send(&harness, cancel).await.0, 204);
    // It is not forgotten either, however long the bucket is away.
    for _ in 0..3 {
        harness.clock.advance(25 * HOUR_MS);
        let swept = harness.app.sweep_uploads().await;
        assert!(swept.is_err() || swept.is_ok_and(|swept| swept.stuck > 0));
        assert_eq!(s3.open().len(), 1);
    }
    s3.mend();
    let swept = harness.app.sweep_uploads().await.expect("a sweep");
    assert_eq!((swept.orphans, swept.stuck, s3.open().len()), (1, 0, 0));
    harness.clock.advance(MINUTE_MS);
    assert!(harness.app.sweep_uploads().await.expect("a sweep").is_nothing());
    let known = Request::get(&format!("/api/v1/uploads/{id}?upload_token={secret}"));
    assert_eq!(known.send(harness.address).await.status, 404, "it is forgotten by now");
}

#[tokio::test]
async fn a_bucket_that_is_away_is_asked_once_a_sweep() {
    let mut asked = Vec::new();
    for uploads in [0, 1, 3] {
        let s3 = S3::start();
        let harness = started(&s3).await;
        for _ in 0..uploads {
            open(&harness).await;
        }
        harness.clock.advance(25 * HOUR_MS);
        s3.fail(usize::MAX, 403, "AccessDenied");
        // It lists no files either, which is said; what needs no bucket is done.
        harness.app.sweep_uploads().await.expect_err("the bucket is away");
        asked.push(s3.faults());
        assert_eq!(s3.open().len(), uploads);
        s3.mend();
        harness.clock.advance(61_000);
        let swept = harness.app.sweep_uploads().await.expect("a sweep");
        assert_eq!((swept.expired, swept.orphans, s3.open().len()), (0, uploads as u64, 0));
    }
    assert!(asked[0] < asked[1] && asked[1] == asked[2], "{asked:?}");
}

#[tokio::test]
async fn what_is_never_aborted_holds_up_no_other_for_long() {
    const UPLOADS: usize = 4;
    let s3 = S3::start();
    let harness = started(&s3).await;
    for _ in 0..UPLOADS {
        open(&harness).await;
    }
    // Whichever it is: each sweep begins with another one.
    let stubborn = s3.open().into_keys().next_back().expect("an upload");
    s3.never_abort(&stubborn);
    harness.clock.advance(25 * HOUR_MS);
    for _ in 0..=UPLOADS * UPLOADS {
        harness.app.sweep_uploads().await.expect("a sweep");
        harness.clock.advance(61_000);
    }
    assert_eq!(s3.open().into_keys().collect::<Vec<_>>(), [stubborn]);
}

#[tokio::test]
async fn orphans_are_swept_when_they_are_old() {
    let s3 = S3::start();
    let harness = started(&s3).await;
    let key = |last: u8| {
        let mut bytes = [0; 16];
        bytes[15] = last;
        format!("files/00/{}", UploadId::of(bytes))
    };
    s3.put(&key(1), b"old", World::BEGIN_MS - 31 * 24 * HOUR_MS);
    s3.put(&key(2), b"young", World::BEGIN_MS - 29 * 24 * HOUR_MS);
    s3.put("files/00/foreign", b"old", 0);
    // Each sweep looks at one shelf, from the first one on.
    harness.app.sweep_uploads().await.expect("a sweep");
    let left: Vec<_> = s3.objects().into_keys().collect();
    assert_eq!(left, [key(2), "files/00/foreign".to_owned()]);
}

#[tokio::test]
async fn a_file_with_another_digest_stays_open() {
    let (s3, file) = (S3::start(), file());
    let harness = started(&s3).await;
    let id = open(&harness).await;
    fill(&harness, &id, &file).await;
    let refused = code(&harness, finalize(&id, &sha256(b"other"))).await;
    assert_eq!(refused, (422, "DIGEST_MISMATCH".into()));
    let now = status(&harness, &id).await;
    assert_eq!((&now["state"], &now["received"], &now["missing"]), (&json!("open"), &json!(3), &json!([])));
    assert_eq!(read(&harness, &id, None).await.status, 404, "what was put together is no file");
    assert_eq!(send(&harness, finalize(&id, &sha256(&file))).await.0, 200);
    assert!(read(&harness, &id, None).await.body == file);
}

#[tokio::test]
async fn parts_that_changed_in_the_bucket_are_sent_again() {
    let (s3, file) = (S3::start(), file());
    let harness = started(&s3).await;
    let id = open(&harness).await;
    fill(&harness, &id, &file).await;
    let upload = s3.open().into_keys().next().expect("it is open");
    // A put of somebody who lost the right to it comes late.
    s3.replace_part(&upload, 2, b"late");
    assert_eq!(missing(&harness, &id, &file).await, json!([[0, 2]]));
    assert_eq!(status(&harness, &id).await["received"], 0);
    fill(&harness, &id, &file).await;
    s3.lose_part(&upload, 3);
    assert_eq!(missing(&harness, &id, &file).await, json!([[0, 2]]));
    fill(&harness, &id, &file).await;
    assert_eq!(send(&harness, finalize(&id, &sha256(&file))).await.0, 200);
    assert!(read(&harness, &id, None).await.body == file);
}

#[tokio::test]
async fn wherever_the_bucket_fails_an_upload_goes_on() {
    let file = &file()[..PART_BYTES_MIN + 4321];
    let faults: [fn(&S3); 3] = [
        |s3| s3.fail(usize::MAX, 403, "AccessDenied"),
        |s3| s3.hang_up(usize::MAX),
        |s3| s3.lose_answers(usize::MAX),
    ];
    for fault in faults {
        let mut call = 0;
        loop {
            let s3 = S3::start();
            let harness = started(&s3).await;
            fault(&s3);
            s3.spare(call);
            if insist_on(&harness, (file, PART_BYTES_MIN), || s3.mend()).await == 0 {
                break;
            }
            assert_eq!(s3.objects().len(), 1, "after call {call}");
            call += 1;
            assert!(call < 20, "it never ends");
        }
        // It was begun, both chunks were put, they were put together, and that was looked at; its beginning was read to
        // tell what it is, and all of it in six steps.
        assert_eq!(call, 5 + 7);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_node_takes_any_chunk() {
    let (s3, file) = (S3::start(), file());
    let mut store = None;
    let setup = |seed| Setup { blobs: bucket(&s3), seed, ..Setup::default() };
    let first = start_on(setup(1), |own| store.insert(own).clone()).await;
    let store = store.expect("it was made");
    let second = start_on(setup(2), |_| store).await;
    let id = open(&first).await;
    let (last, one, next) = tokio::join!(
        send(&second, put(&id, 2, chunk(&file, 2))),
        send(&first, put(&id, 0, chunk(&file, 0))),
        send(&second, put(&id, 1, chunk(&file, 1))),
    );
    assert_eq!((last.0, one.0, next.0), (200, 200, 200), "{last:?} {one:?} {next:?}");
    assert_eq!(send(&first, put(&id, 1, chunk(&file, 1))).await.0, 200, "the other one has it");
    let (one, other) = tokio::join!(
        send(&first, finalize(&id, &sha256(&file))),
        send(&second, finalize(&id, &sha256(&file))),
    );
    for (answer, body) in [&one, &other] {
        assert!(matches!(answer, 200 | 202 | 409), "{answer} {body}");
    }
    assert!(one.0 == 200 || other.0 == 200, "{one:?} {other:?}");
    for node in [&first, &second] {
        assert_eq!(send(node, finalize(&id, &sha256(&file))).await.0, 200);
        assert!(read(node, &id, None).await.body == file);
    }
    assert_eq!((s3.open().len(), s3.objects().len()), (0, 1));
}

#[tokio::test]
async fn streams_are_refused_with_the_way_to_go() {
    let s3 = S3::start();
    let harness = started(&s3).await;
    let creation = tus(Request::new("POST", "/files")).header("upload-length", "10");
    let refused = harness.ask("t1", "ada", creation).await;
    assert_eq!((refused.status, refused.code()), (404, "NOT_FOUND".into()));
    assert!(refused.text().contains("/api/v1/uploads/init"), "{}", refused.text());
    let options = Request::new("OPTIONS", "/files").send(harness.address).await;
    assert_eq!(options.header("tus-version"), None, "it is not offered");
    assert!(s3.asked().is_empty());
}
