//! Uploads of 20 bytes, in chunks of 8 and over tus.

use driftline_engine::{TenantUploads, UploadRules};
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

pub async fn open(harness: &Harness, size: usize) -> Upload {
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

pub async fn init(harness: &Harness, body: &Value) -> Response {
    harness.ask("t1", "ada", Request::post("/api/v1/uploads/init", body)).await
}

pub fn put(id: &str, index: usize, bytes: &[u8]) -> Request {
    let request = Request::new("PUT", &format!("/api/v1/uploads/{id}/chunk/{index}"));
    request.header("x-chunk-sha256", &sha256(bytes)).body(bytes)
}

pub async fn send(harness: &Harness, request: Request) -> (u16, Value) {
    let answer = harness.ask("t1", "ada", request).await;
    (answer.status, serde_json::from_slice(&answer.body).unwrap_or(Value::Null))
}

pub async fn code(harness: &Harness, request: Request) -> (u16, String) {
    let (status, body) = send(harness, request).await;
    (status, body["code"].as_str().unwrap_or_default().to_owned())
}

pub fn finalize(id: &str, claimed: &str) -> Request {
    Request::post(&format!("/api/v1/uploads/{id}/finalize"), &json!({"sha256": claimed}))
}

pub async fn status(harness: &Harness, id: &str) -> Value {
    send(harness, Request::get(&format!("/api/v1/uploads/{id}"))).await.1
}

pub async fn fill(harness: &Harness, id: &str) {
    for index in 0..3 {
        assert_eq!(send(harness, put(id, index, chunk_of(index))).await.0, 200);
    }
}

pub async fn uploaded(harness: &Harness) -> Upload {
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

pub async fn create(harness: &Harness, with: impl FnOnce(Request) -> Request) -> Response {
    harness.ask("t1", "ada", with(tus(Request::new("POST", "/files")))).await
}

pub fn patch(place: &str, offset: u64, bytes: &[u8]) -> Request {
    let request = tus(Request::new("PATCH", place)).header("upload-offset", &offset.to_string());
    request.header("content-type", "application/offset+octet-stream").body(bytes)
}

pub async fn offset(harness: &Harness, place: &str) -> Option<u64> {
    let head = tus(Request::new("HEAD", place)).send(harness.address).await;
    head.header("upload-offset").and_then(|text| text.parse().ok())
}
