//! Uploads of 20 bytes, in chunks of 8 and over tus.

use driftline_engine::{Store, TenantUploads, UploadRules};
use driftline_testkit::http::{Request, Response};
use driftline_uploads::Digest;
use serde_json::{Value, json};

use super::{Harness, Setup, start};

/// 20 bytes: two chunks of 8 and one of 4.
pub const FILE: &[u8] = b"0123456789abcdefghij";

pub fn chunk_of(index: usize) -> &'static [u8] {
    FILE.chunks(8).nth(index).expect("there are three")
}

pub fn sha256(bytes: &[u8]) -> String {
    Digest::hash(bytes).to_string()
}

/// An upload of ada's, of the tenant t1.
pub struct Upload {
    pub id: String,
    pub secret: String,
}

pub async fn open(harness: &Harness<impl Store>, size: usize) -> Upload {
    let answer = init(harness, &json!({"filename": "a.txt", "size": size})).await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    let doc = answer.json();
    assert_eq!(answer.header("location"), Some(&*format!("/api/v1/uploads/{}", text(&doc["upload_id"]))));
    assert_eq!((&doc["chunk_size"], &doc["total_chunks"]), (&json!(8), &json!(size.div_ceil(8))));
    Upload { id: text(&doc["upload_id"]), secret: text(&doc["upload_token"]) }
}

pub fn text(value: &Value) -> String {
    value.as_str().expect("a text").to_owned()
}

pub async fn init(harness: &Harness<impl Store>, body: &Value) -> Response {
    harness.ask("t1", "ada", Request::post("/api/v1/uploads/init", body)).await
}

pub fn put(id: &str, index: usize, bytes: &[u8]) -> Request {
    let request = Request::new("PUT", &format!("/api/v1/uploads/{id}/chunk/{index}"));
    request.header("x-chunk-sha256", &sha256(bytes)).body(bytes)
}

pub async fn send(harness: &Harness<impl Store>, request: Request) -> (u16, Value) {
    let answer = harness.ask("t1", "ada", request).await;
    (answer.status, serde_json::from_slice(&answer.body).unwrap_or(Value::Null))
}

pub async fn code(harness: &Harness<impl Store>, request: Request) -> (u16, String) {
    let (status, body) = send(harness, request).await;
    (status, body["code"].as_str().unwrap_or_default().to_owned())
}

pub fn finalize(id: &str, claimed: &str) -> Request {
    Request::post(&format!("/api/v1/uploads/{id}/finalize"), &json!({"sha256": claimed}))
}

pub async fn status(harness: &Harness<impl Store>, id: &str) -> Value {
    send(harness, Request::get(&format!("/api/v1/uploads/{id}"))).await.1
}

pub async fn fill(harness: &Harness<impl Store>, id: &str) {
    for index in 0..3 {
        assert_eq!(send(harness, put(id, index, chunk_of(index))).await.0, 200);
    }
}

pub async fn uploaded(harness: &Harness<impl Store>) -> Upload {
    let upload = open(harness, FILE.len()).await;
    fill(harness, &upload.id).await;
    assert_eq!(send(harness, finalize(&upload.id, &sha256(FILE))).await.0, 200);
    upload
}

pub fn bounded(quota_bytes: u64) -> UploadRules {
    UploadRules {
        tenant: TenantUploads { quota_bytes, ..TenantUploads::default() },
        ..UploadRules::default()
    }
}

pub async fn started(uploads: UploadRules) -> Harness {
    start(Setup { uploads, ..Setup::default() }).await
}

pub fn tus(request: Request) -> Request {
    request.header("tus-resumable", "1.0.0")
}

pub async fn create(harness: &Harness<impl Store>, with: impl FnOnce(Request) -> Request) -> Response {
    harness.ask("t1", "ada", with(tus(Request::new("POST", "/files")))).await
}

pub fn patch(place: &str, offset: u64, bytes: &[u8]) -> Request {
    let request = tus(Request::new("PATCH", place)).header("upload-offset", &offset.to_string());
    request.header("content-type", "application/offset+octet-stream").body(bytes)
}

pub async fn offset(harness: &Harness<impl Store>, place: &str) -> Option<u64> {
    let head = tus(Request::new("HEAD", place)).send(harness.address).await;
    head.header("upload-offset").and_then(|text| text.parse().ok())
}

/// Uploads in chunks as a client does that tries again whatever fails, when `mend` has seen to it; gives how often it had
/// to. Rights to write that were left behind end meanwhile.
pub async fn insist(harness: &Harness<impl Store>, mend: impl Fn()) -> u32 {
    insist_on(harness, (FILE, 8), mend).await
}

/// Uploads a file in chunks of a length in the same way.
pub async fn insist_on(
    harness: &Harness<impl Store>,
    (file, chunk_bytes): (&[u8], usize),
    mend: impl Fn(),
) -> u32 {
    let (mut failed, mut opened) = (0, None);
    loop {
        assert!(failed < 20, "it never ends");
        let trouble = |failed: &mut u32| {
            *failed += 1;
            mend();
            harness.clock.advance(16_000);
        };
        let Some(id) = &opened else {
            let answer = init(harness, &json!({"filename": "a", "size": file.len()})).await;
            match answer.status {
                201 => opened = Some(text(&answer.json()["upload_id"])),
                500 | 503 => trouble(&mut failed),
                other => panic!("{other} {}", answer.text()),
            }
            continue;
        };
        let mut requests: Vec<Request> =
            file.chunks(chunk_bytes).enumerate().map(|(index, chunk)| put(id, index, chunk)).collect();
        requests.push(finalize(id, &sha256(file)));
        let mut last = 0;
        for request in requests {
            let (answer, body) = send(harness, request).await;
            // Chunks of a file that is there already are gone.
            if !matches!(answer, 200 | 410) {
                assert!(matches!(answer, 202 | 409 | 500 | 503), "{answer} {body}");
                trouble(&mut failed);
            }
            last = answer;
        }
        if last == 200 {
            let read = harness.ask("t1", "ada", Request::get(&format!("/api/v1/files/{id}"))).await;
            // An answer that breaks off is asked for again.
            if read.status == 200 && read.body.len() == file.len() {
                assert!(read.body == file, "other bytes were published");
                return failed;
            }
            trouble(&mut failed);
        }
    }
}

/// Does the same over tus. Asking for the offset never ends an upload.
pub async fn insist_over_tus(harness: &Harness<impl Store>, mend: impl Fn()) -> u32 {
    let (mut failed, mut created) = (0, None);
    loop {
        assert!(failed < 20, "it never ends");
        let trouble = |failed: &mut u32| {
            *failed += 1;
            mend();
            harness.clock.advance(16_000);
        };
        let Some(place) = &created else {
            let answer = create(harness, |request| request.header("upload-length", "20")).await;
            match answer.status {
                201 => created = answer.header("location").map(str::to_owned),
                500 | 503 => trouble(&mut failed),
                other => panic!("{other} {}", answer.text()),
            }
            continue;
        };
        let head = tus(Request::new("HEAD", place)).send(harness.address).await;
        let Some(at) = head.header("upload-offset").and_then(|text| text.parse::<u64>().ok()) else {
            assert_eq!(head.status, 423, "a client throws its upload away");
            trouble(&mut failed);
            continue;
        };
        if at == 20 {
            let file =
                harness.ask("t1", "ada", Request::get(&format!("/api/v1/files/{}", &place[7..39]))).await;
            if file.status == 200 {
                assert_eq!(file.body, FILE);
                return failed;
            }
            assert!(matches!(file.status, 404 | 500 | 503), "{} {}", file.status, file.text());
            trouble(&mut failed);
            // A client that knows everything to be there is done; the rest is the server's.
            harness.app.finish_uploads().await.expect("the store answers");
            continue;
        }
        let upto = if at < 7 { 7 } else { 20 };
        let from = usize::try_from(at).expect("few");
        let answer = patch(place, at, &FILE[from..upto]).send(harness.address).await;
        if answer.status != 204 {
            let known = matches!(answer.status, 409 | 423 | 500 | 503);
            assert!(known, "{} {}", answer.status, answer.text());
            trouble(&mut failed);
        }
    }
}
