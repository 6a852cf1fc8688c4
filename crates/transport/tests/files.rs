//! Files that became of uploads: what is said of them, and who may read them, whole or in parts.

mod support;

use driftline_engine::{TenantUploads, UploadRules};
use driftline_model::TenantId;
use driftline_testkit::http::{Request, Response};
use driftline_uploads::{AllowList, Digest};
use serde_json::{Value, json};
use support::{Harness, Setup, grant, start};

/// 20 bytes: two chunks of 8 and one of 4.
const FILE: &[u8] = b"0123456789abcdefghij";

fn sha256(bytes: &[u8]) -> String {
    Digest::hash(bytes).to_string()
}

async fn started(uploads: UploadRules) -> Harness {
    start(Setup { uploads, ..Setup::default() }).await
}

fn text(value: &Value) -> String {
    value.as_str().expect("a text").to_owned()
}

async fn init(harness: &Harness, body: &Value) -> Response {
    harness.ask("t1", "ada", Request::post("/api/v1/uploads/init", body)).await
}

/// Uploads a file of ada's that was opened with this body; gives what is told of it.
async fn uploaded(harness: &Harness, body: &Value, bytes: &[u8]) -> Value {
    let opened = init(harness, body).await;
    assert_eq!(opened.status, 201, "{}", opened.text());
    let id = text(&opened.json()["upload_id"]);
    for (index, chunk) in bytes.chunks(8).enumerate() {
        let put = Request::new("PUT", &format!("/api/v1/uploads/{id}/chunk/{index}"));
        let put = put.header("x-chunk-sha256", &sha256(chunk)).body(chunk);
        assert_eq!(harness.ask("t1", "ada", put).await.status, 200);
    }
    let finalize =
        Request::post(&format!("/api/v1/uploads/{id}/finalize"), &json!({"sha256": sha256(bytes)}));
    let done = harness.ask("t1", "ada", finalize).await;
    assert_eq!(done.status, 200, "{}", done.text());
    done.json()
}

#[tokio::test]
async fn parts_of_files_are_read_by_those_who_may() {
    let harness = started(UploadRules::default()).await;
    let path = text(&uploaded(&harness, &json!({"filename": "a", "size": 20}), FILE).await["url"]);
    let tag = format!("\"{}\"", sha256(FILE));
    let read = async |name: &str, value: &str| {
        harness.ask("t1", "ada", Request::get(&path).header(name, value)).await
    };
    let part = read("range", "bytes=3-5").await;
    assert_eq!((part.status, part.body.as_slice()), (206, &FILE[3..6]));
    assert_eq!(part.header("content-range"), Some("bytes 3-5/20"));
    let beyond = read("range", "bytes=20-").await;
    assert_eq!((beyond.status, beyond.header("content-range")), (416, Some("bytes */20")));
    assert_eq!(read("if-none-match", &tag).await.status, 304);
    let known = Request::get(&path).header("if-none-match", "\"x\"").header("if-none-match", &tag);
    assert_eq!(harness.ask("t1", "ada", known).await.status, 304, "a list may stand on several lines");
    let several = Request::get(&path).header("range", "bytes=0-1").header("range", "bytes=3-4");
    assert_eq!(harness.ask("t1", "ada", several).await.status, 200);
    let unchanged = Request::new("HEAD", &path).header("if-none-match", &tag);
    let unchanged = harness.ask("t1", "ada", unchanged).await;
    assert_eq!((unchanged.status, unchanged.header("content-length")), (304, Some("20")));
    for (known, status) in [(tag.as_str(), 206), ("\"other\"", 200), (&format!("W/{tag}"), 200)] {
        let request = Request::get(&path).header("range", "bytes=0-1").header("if-range", known);
        assert_eq!(harness.ask("t1", "ada", request).await.status, status, "{known}");
    }
    let head = harness.ask("t1", "ada", Request::new("HEAD", &path)).await;
    assert_eq!(
        (head.status, head.header("content-length"), head.header("accept-ranges")),
        (200, Some("20"), Some("bytes"))
    );
}

#[tokio::test]
async fn who_may_read_a_record_may_read_its_files() {
    let harness = started(UploadRules::default()).await;
    for (n, kind) in [(1, "note"), (2, "diary")] {
        harness.push("phone", &[support::create(n, kind, "r-1", &json!({}))]).await;
        let body = json!({"filename": "a", "size": 20, "record": {"kind": kind, "id": "r-1"}});
        let path = text(&uploaded(&harness, &body, FILE).await["url"]);
        let read = async |tenant: &str, sub: &str| harness.ask(tenant, sub, Request::get(&path)).await.status;
        let of_bob = if kind == "note" { 200 } else { 404 };
        assert_eq!((read("t1", "bob").await, read("t2", "bob").await), (of_bob, 404), "{kind}");
        let staff = harness.ask_as(&grant("t1", "sue", "staff"), Request::get(&path)).await;
        assert_eq!(staff.status, 200);
        let removed = harness.ask("t1", "bob", Request::new("DELETE", &path)).await;
        assert_eq!(removed.status, 404, "reading is not removing");
    }
}

#[tokio::test]
async fn what_a_client_says_of_a_file_is_made_harmless() {
    let images = AllowList::new(["image/*"]).expect("a list");
    let own = TenantUploads { allowed: images, ..TenantUploads::default() };
    let tenants = [(TenantId::new("t2").expect("a tenant"), own)].into();
    let harness = started(UploadRules { size_max: 100, tenants, ..UploadRules::default() }).await;
    let table = [
        (json!({"filename": "a", "size": 101}), 413, "MESSAGE_TOO_LARGE"),
        (json!({"filename": "a", "size": -1}), 422, "VALIDATION_ERROR"),
        (json!({"filename": "a", "size": "7"}), 422, "VALIDATION_ERROR"),
        (json!({"filename": "a"}), 422, "VALIDATION_ERROR"),
        (json!({"size": 1}), 422, "VALIDATION_ERROR"),
        (json!({"filename": "a", "size": 1, "content_type": "x"}), 422, "VALIDATION_ERROR"),
        (json!({"filename": "a", "size": 1, "sha256": "x"}), 422, "VALIDATION_ERROR"),
    ];
    for (body, status, wanted) in table {
        let answer = init(&harness, &body).await;
        assert_eq!((answer.status, answer.code().as_str()), (status, wanted), "{body}");
    }
    let body = json!({"filename": "a", "size": 1, "content_type": "text/html"});
    let refused = harness.ask("t2", "ada", Request::post("/api/v1/uploads/init", &body)).await;
    assert_eq!((refused.status, refused.code().as_str()), (415, "UNSUPPORTED_MEDIA_TYPE"));

    let body = json!({"filename": "../../etc/\u{202e}pass\"wd\r\nx: y", "size": 4, "content_type": "text/html; a=b",
                      "metadata": {"b": 1}, "record": {"kind": "note", "id": "n1"}});
    let file = uploaded(&harness, &body, b"%PDF").await;
    assert_eq!(
        (&file["filename"], &file["content_type"], &file["detected_type"]),
        (&json!("pass\"wdx: y"), &json!("text/html"), &json!("application/pdf"))
    );
    assert_eq!(
        (&file["metadata"], &file["record"]),
        (&json!({"b": 1}), &json!({"kind": "note", "id": "n1"}))
    );
    let bytes = harness.ask("t1", "ada", Request::get(&text(&file["url"]))).await;
    let disposition = bytes.header("content-disposition").expect("it is there");
    assert_eq!(disposition, "attachment; filename=\"pass_wdx_ y\"; filename*=UTF-8''pass%22wdx%3A%20y");
    assert_eq!(bytes.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(bytes.header("etag"), Some(&*format!("\"{}\"", sha256(b"%PDF"))));
}
