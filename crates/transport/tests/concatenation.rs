//! Files that are put together of several uploads, over tus.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use driftline_engine::{Blobs, Joining, Store as _, TenantUploads, UploadRow, UploadRules, Verdict, Verify};
use driftline_testkit::http::{Request, Response};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use serde_json::json;
use support::uploading::{FILE, bounded, create, init, offset, patch, started, tus};
use support::{Harness, Setup, start_on, until};
use tokio::task::JoinSet;

/// Creates parts with these bytes; gives their places.
async fn parts<const N: usize>(harness: &Harness, all: [&[u8]; N]) -> [String; N] {
    let mut places = Vec::new();
    for bytes in all {
        let created = create(harness, |request| {
            request.header("upload-length", &bytes.len().to_string()).header("upload-concat", "partial")
        });
        let created = created.await;
        assert_eq!(created.status, 201, "{}", created.text());
        let place = created.header("location").expect("a place").to_owned();
        assert_eq!(patch(&place, 0, bytes).send(harness.address).await.status, 204);
        places.push(place);
    }
    places.try_into().expect("as many")
}

async fn join(harness: &Harness, places: &[String]) -> Response {
    let concat = format!("final;{}", places.join(" "));
    let metadata = "filename YS50eHQ=";
    create(harness, |request| request.header("upload-concat", &concat).header("upload-metadata", metadata))
        .await
}

fn place_of(answer: &Response) -> String {
    assert_eq!(answer.status, 201, "{}", answer.text());
    answer.header("location").expect("a place").to_owned()
}

async fn file_of(harness: &Harness, place: &str) -> Response {
    harness.ask("t1", "ada", Request::get(&format!("/api/v1/files/{}", &place[7..39]))).await
}

#[tokio::test]
async fn parts_make_one_file_and_asking_again_makes_no_other() {
    let harness = started(UploadRules::default()).await;
    let places = parts(&harness, [&FILE[..9], &FILE[9..], b"rest"]).await;
    let whole = place_of(&join(&harness, &places[..2]).await);
    assert_eq!(file_of(&harness, &whole).await.body, FILE);
    assert_eq!(offset(&harness, &whole).await, Some(20));
    assert_eq!(patch(&whole, 20, b"x").send(harness.address).await.status, 403);
    for part in &places[..2] {
        assert_eq!(patch(part, 0, b"x").send(harness.address).await.status, 410, "it went with the whole");
    }
    // Whoever did not hear the answer asks again, and for the parts first.
    for (part, len) in places[..2].iter().zip([9, 11]) {
        let head = tus(Request::new("HEAD", part)).send(harness.address).await;
        assert_eq!((head.status, head.header("upload-concat")), (200, Some("partial")));
        for name in ["upload-offset", "upload-length"] {
            assert_eq!(head.header(name), Some(&*len.to_string()));
        }
        assert_eq!(head.header("upload-expires"), None);
    }
    assert_eq!(place_of(&join(&harness, &places[..2]).await), whole);
    assert_eq!(file_of(&harness, &whole).await.body, FILE);
    // The parts are in no other file.
    let refused = join(&harness, &places).await;
    assert_eq!((refused.status, refused.code().as_str()), (410, "UPLOAD_GONE"));
    // One that was given up otherwise is gone.
    let [given_up] = parts(&harness, [b"x"]).await;
    assert_eq!(tus(Request::new("DELETE", &given_up)).send(harness.address).await.status, 204);
    assert_eq!(tus(Request::new("HEAD", &given_up)).send(harness.address).await.status, 410);
    let alone = place_of(&join(&harness, &places[2..]).await);
    assert_eq!((file_of(&harness, &alone).await.body.as_slice(), harness.shell.staged()), (&b"rest"[..], 0));
}

#[tokio::test]
async fn what_is_wrong_with_parts_is_told_and_costs_nothing() {
    let harness = started(UploadRules::default()).await;
    let places = parts(&harness, [&FILE[..9], &FILE[9..]]).await;
    let short =
        create(&harness, |request| request.header("upload-length", "5").header("upload-concat", "partial"));
    let short = place_of(&short.await);
    let other = create(&harness, |request| request.header("upload-length", "0"));
    let other = place_of(&other.await);
    let [first, second] = &places;
    let table = [
        (vec![first.clone(), first.clone()], 422, "VALIDATION_ERROR"),
        (vec![first.clone(), short], 409, "UPLOAD_INCOMPLETE"),
        (vec![first.clone(), other], 404, "NOT_FOUND"),
        (vec![first.clone(), "/files/nothing".into()], 404, "NOT_FOUND"),
        (vec![first.clone(), "/files/../../etc/passwd".into()], 404, "NOT_FOUND"),
    ];
    for (places, status, code) in table {
        let refused = join(&harness, &places).await;
        assert_eq!((refused.status, refused.code().as_str()), (status, code), "{places:?}");
    }
    // Another user's parts are none.
    let concat = format!("final;{first} {second}");
    let request = Request::new("POST", "/files").header("tus-resumable", "1.0.0");
    let foreign = harness.ask("t1", "bob", request.header("upload-concat", &concat)).await;
    assert_eq!((foreign.status, foreign.code().as_str()), (404, "NOT_FOUND"));
    let whole = place_of(&join(&harness, &places).await);
    assert_eq!(file_of(&harness, &whole).await.body, FILE);
}

#[tokio::test]
async fn a_whole_needs_no_more_room_than_its_parts() {
    let harness = started(UploadRules { open_max: 2, ..bounded(20) }).await;
    let places = parts(&harness, [&FILE[..9], &FILE[9..]]).await;
    let whole = place_of(&join(&harness, &places).await);
    assert_eq!(file_of(&harness, &whole).await.body, FILE);
    let refused = init(&harness, &json!({"filename": "a", "size": 1})).await;
    assert_eq!((refused.status, refused.code().as_str()), (413, "QUOTA_EXCEEDED"), "the file takes its size");
    let file = format!("/api/v1/files/{}", &whole[7..39]);
    assert_eq!(harness.ask("t1", "ada", Request::new("DELETE", &file)).await.status, 204);
    assert_eq!(init(&harness, &json!({"filename": "a", "size": 20})).await.status, 201, "and nothing else");
}

#[tokio::test]
async fn wherever_the_disk_fails_the_parts_stay_until_there_is_a_file() {
    let untroubled = {
        let harness = started(UploadRules::default()).await;
        let places = parts(&harness, [&FILE[..9], &FILE[9..]]).await;
        let before = harness.shell.calls();
        place_of(&join(&harness, &places).await);
        harness.shell.calls() - before
    };
    assert!(untroubled >= 6, "{untroubled}");
    for call in 0..untroubled {
        let harness = started(UploadRules::default()).await;
        let places = parts(&harness, [&FILE[..9], &FILE[9..]]).await;
        harness.shell.fail_after(call);
        let answer = join(&harness, &places).await;
        assert!(matches!(answer.status, 201 | 500 | 503), "{} {}", answer.status, answer.text());
        assert!(harness.shell.mend(), "call {call} did not fail");
        let whole = place_of(&join(&harness, &places).await);
        assert_eq!(offset(&harness, &whole).await, Some(20));
        assert_eq!(file_of(&harness, &whole).await.body, FILE, "call {call}");
        harness.clock.advance(2 * 3_600_000);
        harness.app.sweep_uploads().await.expect("a sweep");
        assert_eq!(harness.shell.staged(), 0, "after call {call}");
    }
}

#[tokio::test]
async fn many_that_join_the_same_parts_make_one_file() {
    let harness = Arc::new(started(UploadRules::default()).await);
    for _ in 0..10 {
        let places = parts(&harness, [&FILE[..9], &FILE[9..]]).await;
        let mut joining = JoinSet::new();
        for _ in 0..8 {
            let (harness, places) = (Arc::clone(&harness), places.clone());
            joining.spawn(async move { join(&harness, &places).await });
        }
        let mut made = Vec::new();
        for answer in joining.join_all().await {
            match answer.status {
                201 => made.push(place_of(&answer)),
                409 => assert_eq!(answer.code(), "IDEMPOTENCY_IN_PROGRESS"),
                other => panic!("{other} {}", answer.text()),
            }
        }
        made.dedup();
        let [whole] = made.as_slice() else { panic!("one file, and not {made:?}") };
        assert_eq!(file_of(&harness, whole).await.body, FILE);
        assert_eq!(harness.shell.staged(), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_that_comes_late_changes_nothing() {
    // It stands still with the first part, of which it has read nothing else yet, or with the last one.
    for held in [&FILE[..9], &FILE[9..]] {
        let mut store = None;
        let first = start_on(Setup::default(), |own| store.insert(own).clone()).await;
        let setup = Setup { shell: first.shell.clone(), ..Setup::default() };
        let store = store.expect("it was made");
        let (first, second) = (Arc::new(first), start_on(setup, |_| store).await);
        let places = parts(&first, [&FILE[..9], &FILE[9..]]).await;
        first.shell.hold_first(held);
        let late = {
            let (first, places) = (Arc::clone(&first), places.clone());
            tokio::spawn(async move { join(&first, &places).await })
        };
        until("it copies", || async { first.shell.waiting() == 1 }).await;
        // Its right ends, and another node makes the file.
        second.clock.advance(60_000);
        let whole = place_of(&join(&second, &places).await);
        assert_eq!(file_of(&second, &whole).await.body, FILE);
        first.shell.release();
        let late = late.await.expect("it ends");
        assert_eq!((late.status, late.code().as_str()), (409, "IDEMPOTENCY_IN_PROGRESS"), "{}", late.text());
        for node in [&*first, &second] {
            assert_eq!(file_of(node, &whole).await.body, FILE);
            assert_eq!(place_of(&join(node, &places).await), whole);
        }
        assert_eq!(first.shell.staged(), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_given_up_while_it_is_copied_takes_no_room() {
    let harness = Arc::new(started(UploadRules::default()).await);
    let places = parts(&harness, [&FILE[..9], &FILE[9..]]).await;
    harness.shell.hold_first(&FILE[9..]);
    let joining = {
        let (harness, places) = (Arc::clone(&harness), places.clone());
        tokio::spawn(async move { join(&harness, &places).await })
    };
    until("it copies", || async { harness.shell.waiting() == 1 }).await;
    let rows = harness.app.engine().store().uploads().overdue_uploads(u64::from(u32::MAX) << 20, 10).await;
    let rows = rows.expect("the store answers");
    let whole = rows.iter().find(|row| row.joining == Joining::Whole).expect("it is open");
    let cancel = Request::new("DELETE", &format!("/api/v1/uploads/{}", whole.id));
    assert_eq!(harness.ask("t1", "ada", cancel).await.status, 204);
    harness.shell.release();
    let gone = joining.await.expect("it ends");
    assert_eq!((gone.status, gone.code().as_str()), (410, "UPLOAD_GONE"));
    assert_eq!(harness.shell.staged(), 2, "the parts, and nothing else");
}

#[tokio::test]
async fn a_whole_without_bytes_is_a_file() {
    let harness = started(UploadRules::default()).await;
    let places = parts(&harness, [b"", b""]).await;
    let before = harness.shell.calls();
    // The row is there, and the disk fails.
    harness.shell.fail_after(0);
    assert_eq!(join(&harness, &places).await.status, 503, "{before}");
    harness.shell.mend();
    let whole = place_of(&join(&harness, &places).await);
    let file = file_of(&harness, &whole).await;
    assert_eq!((file.status, file.body.len(), harness.shell.staged()), (200, 0, 0));
}

/// Looks at nothing the first time.
#[derive(Default)]
struct Sleepy(AtomicU32);

impl Verify for Sleepy {
    fn verify<'a>(&'a self, _: &'a UploadRow, _: &'a dyn Blobs) -> BoxFuture<'a, Verdict> {
        async move {
            match self.0.fetch_add(1, Ordering::SeqCst) {
                0 => Verdict::Later("it sleeps".into()),
                _ => Verdict::Released,
            }
        }
        .boxed()
    }
}

#[tokio::test]
async fn parts_go_with_the_file_whoever_makes_it() {
    for asks in [false, true] {
        let sleepy = Arc::new(Sleepy::default());
        let verifier: Arc<dyn Verify> = Arc::<Sleepy>::clone(&sleepy);
        let tenant = TenantUploads { verified: true, ..TenantUploads::default() };
        let harness =
            started(UploadRules { tenant, verifier: Some(verifier), ..UploadRules::default() }).await;
        let places = parts(&harness, [&FILE[..9], &FILE[9..]]).await;
        let whole = place_of(&join(&harness, &places).await);
        assert_eq!(file_of(&harness, &whole).await.status, 404, "nobody has looked at it");
        // Asking for the offset, however often, has it looked at again only after a while; it is no file meanwhile.
        for _ in 0..3 {
            let head = tus(Request::new("HEAD", &whole)).send(harness.address).await;
            assert_eq!((head.status, head.header("upload-offset")), (423, None));
        }
        assert_eq!((sleepy.0.load(Ordering::SeqCst), harness.shell.staged()), (1, 3), "the parts are there");
        harness.clock.advance(61_000);
        if asks {
            assert_eq!(offset(&harness, &whole).await, Some(20));
        } else {
            assert_eq!(harness.app.finish_uploads().await.expect("the store answers"), 1);
        }
        assert_eq!(file_of(&harness, &whole).await.body, FILE);
        assert_eq!(harness.shell.staged(), 0, "the parts went with the file");
    }
}
