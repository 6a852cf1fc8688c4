//! Uploads of ada's.

use driftline_testkit::http::Request;
use driftline_uploads::Digest;
use serde_json::json;

use super::Harness;

/// Ada's uploads.
#[derive(Debug, Clone)]
pub struct Uploads {
    /// One that is under way.
    pub open: String,
    /// One that has become a file.
    pub done: String,
    /// The last part of the path of one over tus: whoever has it may go on.
    pub tus: String,
}

/// Opens uploads of ada's, and finishes one.
pub async fn uploads(harness: &Harness) -> Uploads {
    let open = async || {
        let body = json!({"filename": "sesame.txt", "size": 6});
        let answer = harness.ask("t1", "ada", Request::post("/api/v1/uploads/init", &body)).await;
        answer.json()["upload_id"].as_str().expect("an upload").to_owned()
    };
    let done = open().await;
    let sha256 = Digest::hash(b"sesame").to_string();
    let chunk = Request::new("PUT", &format!("/api/v1/uploads/{done}/chunk/0")).body("sesame");
    let chunk = chunk.header("x-chunk-sha256", &sha256);
    assert_eq!(harness.ask("t1", "ada", chunk).await.status, 200);
    let finalize = Request::post(&format!("/api/v1/uploads/{done}/finalize"), &json!({"sha256": sha256}));
    assert_eq!(harness.ask("t1", "ada", finalize).await.status, 200);
    let create = Request::new("POST", "/files").header("tus-resumable", "1.0.0").header("upload-length", "6");
    let created = harness.ask("t1", "ada", create).await;
    let tus = created.header("location").and_then(|path| path.strip_prefix("/files/")).expect("an upload");
    Uploads { open: open().await, done, tus: tus.to_owned() }
}
