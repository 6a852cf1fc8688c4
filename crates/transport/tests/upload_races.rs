//! Uploads that several requests, or a crash, come to at the same time.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use driftline_engine::{
    Answer, Blobs, Clock as _, Kept, LeaseKey, LeaseSlot, Leased, Store, StoreError, StreamReceipt,
    TenantUploads, UploadRow, UploadRules, Verdict, Verify,
};
use driftline_model::Limits;
use driftline_storage::MemoryStore;
use driftline_testkit::http::{Request, Response, soon};
use driftline_testkit::socket::Socket;
use driftline_testkit::{Hook, Wrapped};
use driftline_uploads::{Digest, Durability, Expiry, Shell as _, UploadId};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use serde_json::json;
use support::leaving::Leaving;
use support::trial::TrialShell;
use support::uploading::{
    FILE, Upload, chunk_of, code, create, fill, finalize, insist, insist_over_tus, offset, open, patch, put,
    send, sha256, started, status, tus, uploaded,
};
use support::{Harness, Setup, start, start_on, token, until};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

#[tokio::test]
async fn one_connection_writes_a_chunk_at_a_time() {
    let harness = started(UploadRules::default()).await;
    let Upload { id, .. } = open(&harness, FILE.len()).await;
    let mut slow = TcpStream::connect(harness.address).await.expect("it listens");
    let request = put(&id, 0, chunk_of(0)).bearer(&token("t1", "ada")).encode(harness.address);
    let (most, last) = request.split_at(request.len() - 1);
    slow.write_all(most).await.expect("it reads");
    // Whoever comes before the first one has begun has the chunk to itself, and sends another one than it says.
    let lying = put(&id, 0, chunk_of(0)).body(&b"01234568"[..]);
    let refused = soon("the refusal of the second", async {
        loop {
            let answer = harness.ask("t1", "ada", lying.clone()).await;
            if answer.status == 409 {
                break answer;
            }
            assert_eq!(answer.status, 422, "{}", answer.text());
        }
    })
    .await;
    assert_eq!(refused.code(), "IDEMPOTENCY_IN_PROGRESS");
    assert!(refused.header("retry-after").is_some());
    slow.write_all(last).await.expect("it reads");
    let first = Response::read(&mut slow, &mut Vec::new()).await.expect("an answer");
    assert_eq!(first.status, 200, "{}", first.text());
    assert_eq!(send(&harness, put(&id, 0, chunk_of(0))).await.0, 200, "the same again is fine");
}

/// Sends requests at once; gives their answers in the order in which they came.
async fn at_once(harness: &Arc<Harness>, requests: Vec<Request>) -> Vec<Response> {
    let mut sending = JoinSet::new();
    for request in requests {
        let harness = Arc::clone(harness);
        sending.spawn(async move { harness.ask("t1", "ada", request).await });
    }
    sending.join_all().await
}

async fn file_of(harness: &Harness<impl Store>, id: &str) -> Response {
    harness.ask("t1", "ada", Request::get(&format!("/api/v1/files/{id}"))).await
}

/// Listens to everything that a user is told.
async fn listen(harness: &Harness, user: &str) -> Socket {
    let mut socket = Socket::connect(harness.address, &format!("/ws?token={}", token("t1", user))).await;
    socket.expect("connection_established").await;
    socket
}

/// Counts the messages of a type that come before an answer.
async fn heard(socket: &mut Socket, kind: &str) -> usize {
    socket.send(&json!({"type": "ping", "id": "last"})).await;
    let mut count = 0;
    loop {
        let message = socket.receive().await;
        if message["type"] == "pong" {
            return count;
        }
        count += usize::from(message["type"] == kind);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_chunks_while_it_is_finalized_changes_nothing() {
    let harness = Arc::new(started(UploadRules::default()).await);
    for round in 0..40 {
        let Upload { id, .. } = open(&harness, FILE.len()).await;
        // The last chunk is still on its way in every other round.
        for index in 0..(3 - round % 2) {
            assert_eq!(send(&harness, put(&id, index, chunk_of(index))).await.0, 200);
        }
        let storm = (0..24).map(|n| match n % 4 {
            0 => finalize(&id, &sha256(FILE)),
            1 => put(&id, n % 3, b"BADBADBA"),
            _ => put(&id, n % 3, chunk_of(n % 3)),
        });
        for answer in at_once(&harness, storm.collect()).await {
            let known = [200, 202, 409, 410, 422].contains(&answer.status);
            assert!(known, "{} {}", answer.status, answer.text());
        }
        // Whoever finalized too early asks again.
        fill_again(&harness, &id).await;
        assert_eq!(file_of(&harness, &id).await.body, FILE);
    }
    assert_eq!(harness.shell.staged(), 0);
}

/// Sends what is missing and finalizes, as a client does that heard no answer.
async fn fill_again(harness: &Harness, id: &str) {
    if status(harness, id).await["state"] == "done" {
        return;
    }
    for index in 0..3 {
        let (kept, body) = send(harness, put(id, index, chunk_of(index))).await;
        assert_eq!(kept, 200, "{body}");
    }
    let (done, body) = send(harness, finalize(id, &sha256(FILE))).await;
    assert_eq!(done, 200, "{body}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_finalizers_make_one_file_and_tell_of_it_once() {
    let harness = Arc::new(started(UploadRules::default()).await);
    let (mut ada, mut bob) = (listen(&harness, "ada").await, listen(&harness, "bob").await);
    for _ in 0..10 {
        let Upload { id, .. } = open(&harness, FILE.len()).await;
        fill(&harness, &id).await;
        let answers = at_once(&harness, vec![finalize(&id, &sha256(FILE)); 16]).await;
        let done = answers.iter().filter(|answer| answer.status == 200).count();
        let waits = answers.iter().filter(|answer| answer.status == 202).count();
        assert!(done >= 1 && done + waits == 16, "{done} and {waits}");
        assert_eq!(file_of(&harness, &id).await.body, FILE);
    }
    assert_eq!(heard(&mut ada, "upload_completed").await, 10);
    assert_eq!(heard(&mut bob, "upload_completed").await, 0, "that is nobody else's");
}

/// Looks at a file when it is let.
struct Slow {
    looking: AtomicUsize,
    done: Semaphore,
}

impl Verify for Slow {
    fn verify<'a>(&'a self, _: &'a UploadRow, _: &'a dyn Blobs) -> BoxFuture<'a, Verdict> {
        async move {
            self.looking.fetch_add(1, Ordering::SeqCst);
            self.done.acquire().await.expect("it stays open").forget();
            Verdict::Released
        }
        .boxed()
    }
}

#[tokio::test]
async fn who_was_overtaken_while_finalizing_ends_nothing() {
    let slow = Arc::new(Slow { looking: AtomicUsize::new(0), done: Semaphore::new(0) });
    let verifier: Arc<dyn Verify> = Arc::<Slow>::clone(&slow);
    let tenant = TenantUploads { verified: true, ..TenantUploads::default() };
    let rules = UploadRules { tenant, verifier: Some(verifier), ..UploadRules::default() };
    let harness = Arc::new(started(rules).await);
    let mut ada = listen(&harness, "ada").await;
    let Upload { id, .. } = open(&harness, FILE.len()).await;
    fill(&harness, &id).await;
    let first = {
        let (harness, id) = (Arc::clone(&harness), id.clone());
        tokio::spawn(async move { send(&harness, finalize(&id, &sha256(FILE))).await })
    };
    until("somebody looks", || async { slow.looking.load(Ordering::SeqCst) == 1 }).await;
    // Who asks again is told where to look, and nothing else goes on meanwhile.
    let again = harness.ask("t1", "ada", finalize(&id, &sha256(FILE))).await;
    let doc = again.json();
    assert_eq!((again.status, &doc["state"], &doc["received"]), (202, &json!("finalizing"), &json!(3)));
    assert_eq!(again.header("location"), Some(&*format!("/api/v1/uploads/{id}")));
    assert!(again.header("retry-after").is_some());
    assert_eq!(code(&harness, put(&id, 0, chunk_of(0))).await, (409, "IDEMPOTENCY_IN_PROGRESS".into()));
    let cancel = Request::new("DELETE", &format!("/api/v1/uploads/{id}"));
    assert_eq!(code(&harness, cancel).await, (409, "IDEMPOTENCY_IN_PROGRESS".into()));
    assert_eq!(file_of(&harness, &id).await.status, 404, "nobody has looked at it yet");
    // Its right ends, and somebody else finalizes.
    harness.clock.advance(61_000);
    let second = {
        let app = Arc::clone(&harness.app);
        tokio::spawn(async move { app.finish_uploads().await.expect("the store answers") })
    };
    until("the second one looks", || async { slow.looking.load(Ordering::SeqCst) == 2 }).await;
    slow.done.add_permits(2);
    let (finished, (answer, body)) = (second.await.expect("it ends"), first.await.expect("it ends"));
    assert_eq!((finished, answer), (1, 409), "{body}");
    assert_eq!(body["code"], "IDEMPOTENCY_IN_PROGRESS");
    assert_eq!((status(&harness, &id).await["state"].clone(), harness.shell.staged()), (json!("done"), 0));
    assert_eq!(heard(&mut ada, "upload_completed").await, 1);
}

/// Returns how long the right to finalize an upload is still somebody's.
async fn left_ms(harness: &Harness, id: &str) -> u64 {
    let key = LeaseKey { id: id.parse().expect("an upload"), slot: LeaseSlot::Finalize };
    let (rows, now_ms) = (harness.app.engine().store().uploads(), harness.clock.now_ms());
    match rows.lease(key, 1, now_ms, now_ms + 1, false).await {
        Ok(Leased::Busy { until_ms }) => until_ms - now_ms,
        other => panic!("it was given up: {other:?}"),
    }
}

#[tokio::test]
async fn four_that_were_left_are_finalized_at_once_and_held_on_to() {
    let slow = Arc::new(Slow { looking: AtomicUsize::new(0), done: Semaphore::new(0) });
    let verifier: Arc<dyn Verify> = Arc::<Slow>::clone(&slow);
    let tenant = TenantUploads { verified: true, ..TenantUploads::default() };
    let harness = started(UploadRules { tenant, verifier: Some(verifier), ..UploadRules::default() }).await;
    let mut places = Vec::new();
    for _ in 0..6 {
        let created = create(&harness, |request| request.header("upload-length", "20")).await;
        places.push(created.header("location").expect("a place").to_owned());
    }
    // All bytes come, and then the disk fails.
    for place in &places {
        assert_eq!(patch(place, 0, &FILE[..19]).send(harness.address).await.status, 204);
        let before = harness.shell.calls();
        harness.shell.fail_after(2);
        assert_eq!(patch(place, 19, &FILE[19..]).send(harness.address).await.status, 503, "{before}");
        assert!(harness.shell.mend());
    }
    harness.clock.advance(61_000);
    let app = Arc::clone(&harness.app);
    let finishing = tokio::spawn(async move { app.finish_uploads().await.expect("the store answers") });
    until("four are looked at", || async { slow.looking.load(Ordering::SeqCst) == 4 }).await;
    // That takes longer than a right lasts, which is held on to every four seconds.
    for _ in 0..2 {
        harness.clock.advance(14_000);
        for place in &places {
            let id = &place[7..39];
            if status(&harness, id).await["state"] == "finalizing" {
                until("it is held on to", || async { left_ms(&harness, id).await > 14_000 }).await;
            }
        }
    }
    let mut under_way = 0;
    for place in &places {
        let id = &place[7..39];
        if status(&harness, id).await["state"] == "finalizing" {
            under_way += 1;
            assert_eq!(send(&harness, finalize(id, &sha256(FILE))).await.0, 202, "nobody takes over");
        }
    }
    assert_eq!((under_way, slow.looking.load(Ordering::SeqCst)), (4, 4), "and no more");
    slow.done.add_permits(6);
    assert_eq!(finishing.await.expect("it ends"), 6);
    for place in &places {
        assert_eq!(file_of(&harness, &place[7..39]).await.body, FILE);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_to_a_place_waits_for_the_last_bytes_of_whoever_had_it() {
    let harness = Arc::new(started(UploadRules::default()).await);
    let Upload { id, .. } = open(&harness, FILE.len()).await;
    harness.shell.hold(chunk_of(0));
    let stale = {
        let (harness, id) = (Arc::clone(&harness), id.clone());
        tokio::spawn(async move { code(&harness, put(&id, 0, chunk_of(0))).await })
    };
    until("it writes", || async { harness.shell.waiting() == 1 }).await;
    // The disk stands still until its right has ended. Nobody else is given the place while those bytes are to come.
    harness.clock.advance(60_000);
    let refused = code(&harness, put(&id, 0, b"01234568")).await;
    assert_eq!(refused, (409, "IDEMPOTENCY_IN_PROGRESS".into()));
    harness.shell.release();
    assert_eq!(stale.await.expect("it ends").0, 200, "nobody took its right, and nobody wrote");
    assert_eq!(status(&harness, &id).await["received"], 1);
    fill(&harness, &id).await;
    assert_eq!(send(&harness, finalize(&id, &sha256(FILE))).await.0, 200);
    assert_eq!(file_of(&harness, &id).await.body, FILE);
}

/// A database that tells only when it may what was received of a chunk, and who has the right to a stream; it counts how
/// often it was asked.
#[derive(Clone)]
struct Pausing {
    asked: Arc<AtomicUsize>,
    may: Arc<Semaphore>,
}

impl Hook<MemoryStore> for Pausing {
    fn chunk<'a>(&'a self, inner: &'a MemoryStore, id: UploadId, index: u64) -> Answer<'a, Option<Digest>> {
        async move {
            self.pause().await;
            inner.uploads().chunk(id, index).await
        }
        .boxed()
    }

    fn lease<'a>(
        &'a self,
        inner: &'a MemoryStore,
        key: LeaseKey,
        holder: u64,
        (now_ms, until_ms): (u64, u64),
        evict: bool,
    ) -> Answer<'a, Leased> {
        async move {
            let leased = inner.uploads().lease(key, holder, now_ms, until_ms, evict).await;
            if key.slot == LeaseSlot::Stream {
                self.pause().await;
            }
            leased
        }
        .boxed()
    }
}

impl Pausing {
    fn new(answers: usize) -> Self {
        Self { asked: Arc::default(), may: Arc::new(Semaphore::new(answers)) }
    }

    async fn pause(&self) {
        self.asked.fetch_add(1, Ordering::SeqCst);
        self.may.acquire().await.expect("it is open").forget();
    }
}

#[tokio::test]
async fn who_comes_while_it_becomes_a_file_is_told_so() {
    let database = Pausing::new(3);
    let harness = start_on(Setup::default(), |store| Wrapped::new(store, database.clone())).await;
    let id = open(&harness, FILE.len()).await.id;
    fill(&harness, &id).await;
    let again = code(&harness, put(&id, 0, chunk_of(0)));
    let finalizing = async {
        // It finds the upload open, and is to find nothing where the bytes were.
        until("it asks", || async { database.asked.load(Ordering::SeqCst) == 4 }).await;
        assert_eq!(send(&harness, finalize(&id, &sha256(FILE))).await.0, 200);
        database.may.add_permits(1);
    };
    let (again, ()) = tokio::join!(again, finalizing);
    assert_eq!(again, (410, "UPLOAD_GONE".into()));
    assert_eq!(file_of(&harness, &id).await.body, FILE);
}

#[tokio::test]
async fn a_head_that_is_given_up_takes_no_right_with_it() {
    let database = Pausing::new(0);
    let harness = start_on(Setup::default(), |store| Wrapped::new(store, database.clone())).await;
    let created = create(&harness, |request| request.header("upload-length", "20")).await;
    let place = created.header("location").expect("a place").to_owned();
    let mut stream = TcpStream::connect(harness.address).await.expect("it listens");
    let head = tus(Request::new("HEAD", &place)).encode(harness.address);
    stream.write_all(&head).await.expect("it reads");
    until("it has the right to look", || async { database.asked.load(Ordering::SeqCst) == 1 }).await;
    drop(stream);
    // Whoever comes behind it is answered when the server knows that it is gone.
    assert_eq!(Request::get("/alive").send(harness.address).await.status, 200);
    database.may.add_permits(1_000);
    // The clock stands still: no right ends by itself.
    until("the upload goes on", || async {
        patch(&place, 0, FILE).send(harness.address).await.status == 204
    })
    .await;
    assert_eq!(file_of(&harness, &place[7..39]).await.body, FILE);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunks_that_a_node_damages_late_are_sent_again() {
    for stumbles in [false, true] {
        damaged_late(stumbles).await;
    }
}

/// Lets a node come late to a chunk that another one received, at once or after an attempt that counted for nothing.
async fn damaged_late(stumbles: bool) {
    let mut store = None;
    let first = start_on(Setup::default(), |own| store.insert(own).clone()).await;
    let setup = Setup { shell: first.shell.clone(), ..Setup::default() };
    let store = store.expect("it was made");
    let (first, second) = (Arc::new(first), start_on(setup, |_| store).await);
    let Upload { id, .. } = open(&first, FILE.len()).await;
    // The first node stands still in the middle of bytes that are not those of the file.
    first.shell.hold(b"LATELATE");
    let stale = {
        let (first, id) = (Arc::clone(&first), id.clone());
        tokio::spawn(async move { code(&first, put(&id, 0, b"LATELATE")).await })
    };
    until("it writes", || async { first.shell.waiting() == 1 }).await;
    // Meanwhile the second one receives everything.
    second.clock.advance(60_000);
    if stumbles {
        let lying = put(&id, 0, chunk_of(0)).body(&b"01234568"[..]);
        assert_eq!(code(&second, lying).await, (422, "DIGEST_MISMATCH".into()));
    }
    fill(&second, &id).await;
    let refused = code(&first, finalize(&id, &sha256(FILE))).await;
    assert_eq!(refused, (409, "IDEMPOTENCY_IN_PROGRESS".into()), "its bytes are still to come");
    first.shell.release();
    assert_eq!(stale.await.expect("it ends"), (409, "CHUNK_CONFLICT".into()));
    // They came late, and are found.
    let (status_, problem) = send(&second, finalize(&id, &sha256(FILE))).await;
    assert_eq!(
        (status_, &problem["code"], &problem["missing"]),
        (409, &json!("UPLOAD_INCOMPLETE"), &json!([[0, 0]])),
        "{problem}"
    );
    let now = status(&second, &id).await;
    assert_eq!(
        (&now["state"], &now["received"], &now["bytes_received"]),
        (&json!("open"), &json!(2), &json!(12))
    );
    assert_eq!(send(&second, put(&id, 0, chunk_of(0))).await.0, 200);
    assert_eq!(send(&second, finalize(&id, &sha256(FILE))).await.0, 200);
    assert_eq!(file_of(&second, &id).await.body, FILE);
}

#[tokio::test]
async fn what_is_damaged_where_it_lies_is_never_published_as_what_was_sent() {
    let harness = started(UploadRules::default()).await;
    // In another order than that of the file, so that it is read when it is finalized.
    let Upload { id, .. } = open(&harness, FILE.len()).await;
    for index in [2, 1, 0] {
        assert_eq!(send(&harness, put(&id, index, chunk_of(index))).await.0, 200);
    }
    harness.shell.damage(&id, 9);
    harness.shell.damage(&id, 17);
    let (refused, problem) = send(&harness, finalize(&id, &sha256(FILE))).await;
    assert_eq!((refused, &problem["missing"]), (409, &json!([[1, 2]])));
    fill(&harness, &id).await;
    assert_eq!(send(&harness, finalize(&id, &sha256(FILE))).await.0, 200);
    assert_eq!(file_of(&harness, &id).await.body, FILE);
}

#[tokio::test]
async fn wherever_the_disk_fails_an_upload_goes_on() {
    for over_tus in [false, true] {
        let mut call = 0;
        loop {
            let harness = started(UploadRules::default()).await;
            harness.shell.fail_after(call);
            let mend = || {
                harness.shell.mend();
            };
            let failed =
                if over_tus { insist_over_tus(&harness, mend).await } else { insist(&harness, mend).await };
            if failed == 0 {
                break;
            }
            harness.clock.advance(2 * 3_600_000);
            harness.app.sweep_uploads().await.expect("a sweep");
            assert_eq!(harness.shell.staged(), 0, "after call {call}");
            call += 1;
        }
        assert!(call >= 6, "{call}");
    }
}

#[tokio::test]
async fn wherever_the_database_leaves_an_upload_goes_on() {
    for over_tus in [false, true] {
        let mut call = 0;
        loop {
            let database = Leaving::default();
            let harness = start_on(Setup::default(), |store| Wrapped::new(store, database.clone())).await;
            // What nobody asks twice for is known before.
            assert_eq!(harness.ask("t1", "ada", Request::get("/api/v1/uploads/none")).await.status, 404);
            database.answers(call);
            let mend = || {
                database.stays();
            };
            let failed =
                if over_tus { insist_over_tus(&harness, mend).await } else { insist(&harness, mend).await };
            if failed == 0 {
                break;
            }
            harness.clock.advance(2 * 3_600_000);
            harness.app.sweep_uploads().await.expect("a sweep");
            assert_eq!(harness.shell.staged(), 0, "after call {call}");
            call += 1;
        }
        assert!(call >= 20, "{call}");
    }
}

#[tokio::test]
async fn what_was_left_while_it_was_finalized_is_a_file_when_its_client_asks() {
    let (mut call, mut left) = (0, 0);
    loop {
        let database = Leaving::default();
        let harness = start_on(Setup::default(), |store| Wrapped::new(store, database.clone())).await;
        let created = create(&harness, |request| request.header("upload-length", "20")).await;
        let place = created.header("location").expect("a place").to_owned();
        database.answers(call);
        let sent = patch(&place, 0, FILE).send(harness.address).await;
        if !database.stays() {
            assert_eq!(sent.status, 204, "{}", sent.text());
            break;
        }
        // The right of whoever was at it ends.
        harness.clock.advance(16_000);
        let was_left = status(&harness, &place[7..39]).await["state"] == "finalizing";
        left += usize::from(was_left);
        let at = offset(&harness, &place).await;
        assert!(!was_left || at == Some(20), "after call {call}: {at:?}");
        if at == Some(20) {
            assert_eq!(file_of(&harness, &place[7..39]).await.body, FILE, "after call {call}");
        }
        call += 1;
    }
    assert!(left > 0 && call >= 5, "{left} of {call}");
}

/// A database whose first answer to a receipt of a stream is lost, and that has no room for the next one.
#[derive(Clone, Default)]
struct Forgetful(Arc<AtomicUsize>);

impl Hook<MemoryStore> for Forgetful {
    fn keep_stream<'a>(&'a self, inner: &'a MemoryStore, receipt: StreamReceipt) -> Answer<'a, Kept> {
        async move {
            match self.0.fetch_add(1, Ordering::SeqCst) {
                0 => {
                    inner.uploads().keep_stream(receipt).await?;
                    Err(StoreError::Unavailable("the answer was lost".into()))
                }
                1 => Ok(Kept::NoRoom),
                _ => inner.uploads().keep_stream(receipt).await,
            }
        }
        .boxed()
    }
}

#[tokio::test]
async fn bytes_that_the_database_may_count_are_not_cut_off() {
    // More than is written down in the middle of a request.
    let file = vec![7; 10 << 20];
    let database = Forgetful::default();
    let harness = start_on(Setup::default(), |store| Wrapped::new(store, database.clone())).await;
    let size = file.len().to_string();
    let created = create(&harness, |request| request.header("upload-length", &size)).await;
    let place = created.header("location").expect("a place").to_owned();
    let refused = patch(&place, 0, &file).send(harness.address).await;
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert_eq!(database.0.load(Ordering::SeqCst), 2, "receipts");
    let at = offset(&harness, &place).await.expect("it is there");
    assert!((8 << 20..10 << 20).contains(&at), "the database has the first receipt: {at}");
    let left = patch(&place, at, &file[usize::try_from(at).expect("few")..]).send(harness.address).await;
    assert_eq!(left.status, 204, "{}", left.text());
    let read = file_of(&harness, &place[7..39]).await.body;
    assert!(read == file, "bytes that were counted are gone");
}

#[tokio::test]
async fn a_user_sends_only_so_many_bodies_at_once() {
    let harness = started(UploadRules { bodies_max: 1, ..UploadRules::default() }).await;
    let Upload { id, .. } = open(&harness, FILE.len()).await;
    let mut slow = TcpStream::connect(harness.address).await.expect("it listens");
    let request = put(&id, 0, chunk_of(0)).bearer(&token("t1", "ada")).encode(harness.address);
    let (most, last) = request.split_at(request.len() - 1);
    slow.write_all(most).await.expect("it reads");
    let refused = soon("the refusal of the second", async {
        loop {
            let answer = harness.ask("t1", "ada", put(&id, 1, chunk_of(1))).await;
            if answer.status != 200 {
                break answer;
            }
        }
    })
    .await;
    assert_eq!((refused.status, refused.code().as_str()), (429, "RATE_LIMITED"));
    assert!(refused.header("retry-after").is_some());
    let created = create(&harness, |request| request.header("upload-length", "20")).await;
    let place = created.header("location").expect("a place").to_owned();
    let locked = patch(&place, 0, FILE).send(harness.address).await;
    assert_eq!((locked.status, locked.code().as_str()), (423, "RATE_LIMITED"));
    assert!(locked.header("retry-after").is_some());
    slow.write_all(last).await.expect("it reads");
    let first = Response::read(&mut slow, &mut Vec::new()).await.expect("an answer");
    assert_eq!(first.status, 200, "{}", first.text());
    until("the second", || async { send(&harness, put(&id, 1, chunk_of(1))).await.0 == 200 }).await;
}

#[tokio::test]
async fn a_body_of_which_nothing_comes_is_given_up() {
    let limits = Limits { body_frame_ms: 50, ..support::unhurried(Limits::default()) };
    let harness = start(Setup { limits, ..Setup::default() }).await;
    let Upload { id, .. } = open(&harness, FILE.len()).await;
    let created = create(&harness, |request| request.header("upload-length", "20")).await;
    let place = created.header("location").expect("a place").to_owned();
    // Clients of tus come again for what is locked, and for nothing else that they seem to have done wrong.
    let creation = tus(Request::new("POST", "/files")).header("upload-length", "20").body(FILE);
    let creation =
        creation.header("content-type", "application/offset+octet-stream").bearer(&token("t1", "ada"));
    let requests = [
        (put(&id, 0, chunk_of(0)).bearer(&token("t1", "ada")), 408),
        (patch(&place, 0, FILE), 423),
        (creation, 423),
    ];
    for (request, status) in requests {
        let mut stream = TcpStream::connect(harness.address).await.expect("it listens");
        let bytes = request.encode(harness.address);
        stream.write_all(&bytes[..bytes.len() - 3]).await.expect("it reads");
        let late = Response::read(&mut stream, &mut Vec::new()).await.expect("an answer");
        assert_eq!((late.status, late.code().as_str()), (status, "HEARTBEAT_TIMEOUT"), "{}", late.text());
        // Of a chunk nothing is kept, of a stream all that came.
        let created = late.header("location").or(Some(&*place).filter(|_| status == 423));
        if let Some(place) = created {
            assert_eq!(offset(&harness, place).await, Some(17));
        }
    }
    assert_eq!(status(&harness, &id).await["received"], 0);
    fill(&harness, &id).await;
}

#[tokio::test]
async fn files_of_nobody_go_and_files_that_were_forgotten_come_back() {
    let harness = started(UploadRules::default()).await;
    let known = uploaded(&harness).await;
    let shell: &TrialShell = &harness.shell;
    // A power cut made the machine forget that the file was moved.
    let id = known.id.parse().expect("an upload");
    shell.remove(&id).expect("it is there");
    shell.create(&id).expect("nothing is there");
    let mut staged = shell.stage(&id).expect("it is staged");
    driftline_uploads::Bytes::write_at(&mut staged, 0, FILE).expect("there is room");
    // And a crash left a file without a row.
    let unknown = "ff00000000000000000000000000000f".parse().expect("an upload");
    shell.create(&unknown).expect("nothing is there");
    shell.publish(&unknown, Durability::Os).expect("it is staged");
    harness.clock.advance(31 * 24 * 3_600_000);
    let mut all = (0, 0);
    for _ in 0..256 {
        let swept = harness.app.sweep_uploads().await.expect("a sweep");
        all = (all.0 + swept.published, all.1 + swept.orphans);
    }
    assert_eq!((all, shell.staged()), ((1, 1), 0));
    assert!(shell.file(&unknown).is_err());
    let bytes = shell.file(&id).map(|bytes| {
        let mut read = [0; 20];
        driftline_uploads::Bytes::read_at(&bytes, 0, &mut read).expect("it can be read");
        read
    });
    assert_eq!(bytes.expect("it is published").as_slice(), FILE);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sweeping_and_finalizing_at_once_end_in_one_of_both() {
    for round in 0..30 {
        let expiry = Expiry::Fixed { whole_ms: 10_000 };
        let harness = Arc::new(started(UploadRules { expiry, ..UploadRules::default() }).await);
        let Upload { id, .. } = open(&harness, FILE.len()).await;
        fill(&harness, &id).await;
        harness.clock.advance(if round % 2 == 0 { 9_999 } else { 10_000 });
        let sweeper = Arc::clone(&harness);
        let sweeping = tokio::spawn(async move {
            sweeper.clock.advance(1);
            sweeper.app.sweep_uploads().await.expect("a sweep")
        });
        let (done, _) = send(&harness, finalize(&id, &sha256(FILE))).await;
        sweeping.await.expect("it ends");
        harness.app.sweep_uploads().await.expect("a sweep");
        let state = status(&harness, &id).await["state"].clone();
        let file = harness.ask("t1", "ada", Request::get(&format!("/api/v1/files/{id}"))).await;
        match done {
            200 => assert_eq!((state, file.body.as_slice()), (json!("done"), FILE)),
            _ => assert_eq!((state, file.status), (json!("expired"), 404)),
        }
        assert_eq!(harness.shell.staged(), 0);
    }
}

#[tokio::test]
async fn a_stream_that_nobody_finishes_is_finished_all_the_same() {
    let harness = started(UploadRules::default()).await;
    let created = create(&harness, |request| request.header("upload-length", "20")).await;
    let place = created.header("location").expect("a place").to_owned();
    // Writing and syncing succeed; the disk fails when the file is to be made. Its client has sent everything and goes away.
    harness.shell.fail_after(2);
    let sent = patch(&place, 0, FILE).send(harness.address).await;
    assert_eq!(sent.status, 503, "{}", sent.text());
    assert!(harness.shell.mend());
    assert_eq!(harness.app.finish_uploads().await.expect("the store answers"), 0, "it may still come");
    harness.clock.advance(61_000);
    assert_eq!(harness.app.finish_uploads().await.expect("the store answers"), 1);
    assert_eq!(file_of(&harness, &place[7..39]).await.body, FILE);
}

#[tokio::test]
async fn a_part_becomes_no_file_of_its_own() {
    let harness = started(UploadRules::default()).await;
    let created =
        create(&harness, |request| request.header("upload-length", "20").header("upload-concat", "partial"));
    let created = created.await;
    let place = created.header("location").expect("a place");
    assert_eq!(patch(place, 0, FILE).send(harness.address).await.status, 204);
    let refused = code(&harness, finalize(&place[7..39], &sha256(FILE))).await;
    assert_eq!(refused, (403, "FORBIDDEN".into()));
    harness.clock.advance(61_000);
    assert_eq!(harness.app.finish_uploads().await.expect("the store answers"), 0);
    assert_eq!(file_of(&harness, &place[7..39]).await.status, 404);
}
