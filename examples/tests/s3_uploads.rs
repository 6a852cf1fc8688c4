//! Uploads whose bytes lie in a bucket: in parts, in any order, several at a time, and gone when nobody goes on.

mod support;

use std::time::Duration;

use driftline_testkit::http::{Request, Response, soon};
use driftline_testkit::s3::{BUCKET, PART_BYTES_MIN, S3};
use driftline_uploads::Digest;
use serde_json::{Value, json};
use support::{Deployment, Person};

/// Three whole chunks and a short one.
const SIZE: usize = 3 * PART_BYTES_MIN + 4321;

fn start(s3: &S3, rules: &str) -> Deployment {
    let endpoint = s3.endpoint();
    Deployment::start_as(&format!(
        "[uploads]\nsweep_s = 1\n{rules}\n[uploads.s3]\nbucket = \"{BUCKET}\"\nendpoint = \"{endpoint}\"\n\
         prefix = \"acme/\"\naccess_key_id = \"AKID\"\nsecret_access_key = \"a secret\"\n\
         chunk_bytes = {PART_BYTES_MIN}\n"
    ))
}

fn file() -> Vec<u8> {
    // No chunk is like another one.
    (0..253).cycle().take(SIZE).collect()
}

/// Opens an upload, and returns its name.
async fn open(deployment: &Deployment, ada: &Person, size: usize) -> String {
    let post = json!({"filename": "film.mp4", "content_type": "video/mp4", "size": size});
    let opened = deployment.ask(ada, Request::post("/api/v1/uploads/init", &post)).await;
    assert_eq!(opened.status, 201, "{}", opened.text());
    let opened: Value = opened.json();
    assert_eq!(opened["chunk_size"], PART_BYTES_MIN);
    opened["upload_id"].as_str().expect("it has a name").to_owned()
}

async fn send(deployment: &Deployment, ada: &Person, id: &str, index: usize, bytes: &[u8]) -> Response {
    let request = Request::new("PUT", &format!("/api/v1/uploads/{id}/chunk/{index}"))
        .header("x-chunk-sha256", &Digest::hash(bytes).to_string())
        .body(bytes);
    deployment.ask(ada, request).await
}

async fn finalize(deployment: &Deployment, ada: &Person, id: &str, digest: Digest) -> Response {
    let target = format!("/api/v1/uploads/{id}/finalize");
    deployment.ask(ada, Request::post(&target, &json!({"sha256": digest.to_string()}))).await
}

#[tokio::test]
async fn a_file_goes_through_the_bucket_and_comes_back() {
    let s3 = S3::start();
    let deployment = start(&s3, "");
    let ada = deployment.person("acme", "ada", "user", &[]);
    let bytes = file();
    let id = open(&deployment, &ada, SIZE).await;
    let chunks: Vec<_> = bytes.chunks(PART_BYTES_MIN).collect();
    let (last, second, first) = tokio::join!(
        send(&deployment, &ada, &id, 3, chunks[3]),
        send(&deployment, &ada, &id, 1, chunks[1]),
        send(&deployment, &ada, &id, 0, chunks[0]),
    );
    for sent in [last, second, first] {
        assert_eq!(sent.status, 200, "{}", sent.text());
    }
    let early = finalize(&deployment, &ada, &id, Digest::hash(&bytes)).await;
    assert_eq!((early.status, early.code()), (409, "UPLOAD_INCOMPLETE".into()), "{}", early.text());
    let wrong = Request::new("PUT", &format!("/api/v1/uploads/{id}/chunk/2"))
        .header("x-chunk-sha256", &Digest::hash(b"other").to_string())
        .body(chunks[2]);
    assert_eq!(deployment.ask(&ada, wrong).await.code(), "DIGEST_MISMATCH");
    assert_eq!(send(&deployment, &ada, &id, 2, chunks[2]).await.status, 200);

    let other = finalize(&deployment, &ada, &id, Digest::hash(b"other")).await;
    assert_eq!(other.code(), "DIGEST_MISMATCH", "{}", other.text());
    let done = finalize(&deployment, &ada, &id, Digest::hash(&bytes)).await;
    assert_eq!(done.status, 200, "{}", done.text());
    let key = format!("acme/files/{}/{id}", &id[..2]);
    assert_eq!(s3.objects().get(&key), Some(&bytes));

    let target = format!("/api/v1/files/{id}");
    assert_eq!(deployment.ask(&ada, Request::get(&target)).await.body, bytes);
    let (from, to) = (PART_BYTES_MIN - 10, PART_BYTES_MIN + 10);
    let range = Request::get(&target).header("range", &format!("bytes={from}-{}", to - 1));
    let part = deployment.ask(&ada, range).await;
    assert_eq!((part.status, part.body.as_slice()), (206, &bytes[from..to]));

    assert_eq!(deployment.ask(&ada, Request::new("DELETE", &target)).await.status, 204);
    assert!(s3.objects().is_empty() && s3.open().is_empty());
}

#[tokio::test]
async fn an_upload_that_nobody_goes_on_with_is_aborted() {
    let s3 = S3::start();
    let deployment = start(&s3, "expires_after_s = 10");
    let ada = deployment.person("acme", "ada", "user", &[]);
    // Made before the upload is opened: its time runs from then on.
    let file = file();
    let chunk = &file[..PART_BYTES_MIN];
    let id = open(&deployment, &ada, SIZE).await;
    assert_eq!(send(&deployment, &ada, &id, 0, chunk).await.status, 200);
    assert_eq!(s3.open().len(), 1);
    soon("the end of the upload", async {
        while !s3.open().is_empty() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    let gone = send(&deployment, &ada, &id, 0, chunk).await;
    assert_eq!((gone.status, gone.code()), (410, "UPLOAD_GONE".into()), "{}", gone.text());
}

#[tokio::test]
async fn a_bucket_takes_no_streams_and_tells_what_it_refuses() {
    let s3 = S3::start();
    let deployment = start(&s3, "");
    let ada = deployment.person("acme", "ada", "user", &[]);
    let tus = Request::new("POST", "/files").header("tus-resumable", "1.0.0").header("upload-length", "10");
    let tus = deployment.ask(&ada, tus).await;
    assert_eq!((tus.status, tus.code()), (404, "NOT_FOUND".into()));
    assert!(tus.text().contains("/api/v1/uploads/init"), "{}", tus.text());

    // The sweeper may ask at the same time.
    s3.fail(usize::MAX, 507, "");
    let post = json!({"filename": "film.mp4", "size": 10});
    let full = deployment.ask(&ada, Request::post("/api/v1/uploads/init", &post)).await;
    assert_eq!((full.status, full.code()), (507, "STORAGE_FULL".into()), "{}", full.text());
    s3.mend();
    let empty = open(&deployment, &ada, 0).await;
    let done = finalize(&deployment, &ada, &empty, Digest::hash(b"")).await;
    assert_eq!(done.status, 200, "{}", done.text());
    assert_eq!(s3.objects().into_values().collect::<Vec<_>>(), [Vec::<u8>::new()]);
    assert!(!deployment.server().log().contains("a secret"), "secrets are not logged");
}
