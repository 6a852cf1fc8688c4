//! Uploads over HTTP, natively and over tus: what is promised, and what is refused.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use driftline_engine::{Blobs, TenantUploads, UploadRight, UploadRow, UploadRules, Verdict, Verify};
use driftline_testkit::http::{Request, Response};
use driftline_uploads::{Bytes as _, Digest, Expiry, Shell as _};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use serde_json::json;
use support::uploading::{
    FILE, Upload, bounded, chunk_of, code, create, fill, finalize, init, offset, open, patch, put, send,
    sha256, started, status, text, tus, uploaded,
};
use support::{Harness, Setup, start, token, until};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

#[tokio::test]
async fn chunks_come_in_any_order_and_count_once() {
    let harness = started(UploadRules::default()).await;
    let Upload { id, .. } = open(&harness, FILE.len()).await;
    let (_, kept) = send(&harness, put(&id, 2, chunk_of(2))).await;
    assert_eq!(kept, json!({"index": 2, "received": 1, "total_chunks": 3}));
    let digest = format!("sha-256=:{}:, sha-512=:x:", base64(Digest::hash(chunk_of(0)).as_bytes()));
    let post = Request::new("POST", &format!("/api/v1/uploads/{id}/chunk/0"));
    let (code_, kept) = send(&harness, post.header("content-digest", &digest).body(chunk_of(0))).await;
    assert_eq!((code_, kept), (200, json!({"index": 0, "received": 2, "total_chunks": 3})));
    let now = status(&harness, &id).await;
    assert_eq!(
        (&now["state"], &now["received"], &now["missing"], &now["bytes_received"]),
        (&json!("open"), &json!(2), &json!([[1, 1]]), &json!(12))
    );
    let (refused, problem) = send(&harness, finalize(&id, &sha256(FILE))).await;
    assert_eq!(
        (refused, &problem["code"], &problem["missing"]),
        (409, &json!("UPLOAD_INCOMPLETE"), &json!([[1, 1]]))
    );
    // The same again is fine, and is not counted.
    assert_eq!(send(&harness, put(&id, 0, chunk_of(0))).await.1["received"], 2);
    // Another one in its place is refused, and changes nothing.
    assert_eq!(code(&harness, put(&id, 0, b"01234568")).await, (409, "CHUNK_CONFLICT".into()));
    assert_eq!(send(&harness, put(&id, 1, chunk_of(1))).await.0, 200);

    // Parts stay when the file is another one than was said.
    let (refused, problem) = send(&harness, finalize(&id, &sha256(b"another"))).await;
    assert_eq!((refused, &problem["code"]), (422, &json!("DIGEST_MISMATCH")));
    let now = status(&harness, &id).await;
    assert_eq!((&now["state"], &now["received"]), (&json!("open"), &json!(3)));
    assert!(text(&now["error"]).contains(&sha256(FILE)), "{now}");

    let (done, file) = send(&harness, finalize(&id, &sha256(FILE))).await;
    assert_eq!((done, &file["size"], text(&file["sha256"])), (200, &json!(20), sha256(FILE)));
    assert_eq!(send(&harness, finalize(&id, &sha256(FILE))).await, (200, file.clone()), "again, the same");
    assert_eq!(code(&harness, finalize(&id, &sha256(b"another"))).await.0, 422);
    assert_eq!(status(&harness, &id).await["file"], file);
    for gone in [put(&id, 1, chunk_of(1)), Request::new("DELETE", &format!("/api/v1/uploads/{id}"))] {
        assert_eq!(code(&harness, gone).await, (410, "UPLOAD_GONE".into()));
    }
    let bytes = harness.ask("t1", "ada", Request::get(&text(&file["url"]))).await;
    assert_eq!((bytes.status, bytes.body.as_slice(), harness.shell.staged()), (200, FILE, 0));
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let letter = |bits: u32| char::from(LETTERS[usize::try_from(bits & 63).expect("six bits")]);
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let bits = (0..3).fold(0, |bits, at| bits << 8 | u32::from(*three.get(at).unwrap_or(&0)));
        for at in 0..4 {
            text.push(if at <= three.len() { letter(bits >> (18 - 6 * at)) } else { '=' });
        }
    }
    text
}

#[tokio::test]
async fn what_is_wrong_with_a_chunk_is_told_and_nothing_is_kept() {
    let harness = started(UploadRules::default()).await;
    let Upload { id, .. } = open(&harness, FILE.len()).await;
    let at = |index: &str| Request::new("PUT", &format!("/api/v1/uploads/{id}/chunk/{index}"));
    let own = || at("0").header("x-chunk-sha256", &sha256(chunk_of(0)));
    let table = [
        (at("0").body(chunk_of(0)), 400, "DIGEST_MISSING"),
        (at("0").header("x-chunk-sha256", "abc").body(chunk_of(0)), 400, "VALIDATION_ERROR"),
        (at("0").header("content-digest", "sha-256=:abc:").body(chunk_of(0)), 400, "VALIDATION_ERROR"),
        (own().header("x-chunk-sha256", &sha256(b"other")).body(chunk_of(0)), 400, "VALIDATION_ERROR"),
        (own().body(&b"01234568"[..]), 422, "DIGEST_MISMATCH"),
        // Sizes that lie.
        (own().body(&b"0123456"[..]), 422, "VALIDATION_ERROR"),
        (own().body(&b"012345678"[..]), 422, "VALIDATION_ERROR"),
        (own(), 422, "VALIDATION_ERROR"),
        (put(&id, 2, chunk_of(1)), 422, "VALIDATION_ERROR"),
        (put(&id, 3, chunk_of(0)), 404, "NOT_FOUND"),
        (at("99999999999999999999").header("x-chunk-sha256", &sha256(b"")), 404, "NOT_FOUND"),
        (at("-1").header("x-chunk-sha256", &sha256(b"")), 404, "NOT_FOUND"),
        (own().header("content-encoding", "gzip").body(chunk_of(0)), 415, "UNSUPPORTED_MEDIA_TYPE"),
    ];
    for (request, status, wanted) in table {
        let shown = format!("{request:?}");
        assert_eq!(code(&harness, request).await, (status, wanted.into()), "{shown}");
    }
    assert_eq!(status(&harness, &id).await["bytes_received"], 0);
    fill(&harness, &id).await;
    assert_eq!(send(&harness, finalize(&id, &sha256(FILE))).await.0, 200, "and the upload goes on");
}

/// Sends a chunk whose body does not say how long it is, in two pieces, or breaks off between them.
async fn dribble(harness: &Harness, id: &str, pieces: [&[u8]; 2], whole: bool) -> Option<Response> {
    let mut stream = TcpStream::connect(harness.address).await.expect("it listens");
    let head = format!(
        "PUT /api/v1/uploads/{id}/chunk/0 HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\
         x-chunk-sha256: {}\r\nauthorization: Bearer {}\r\nconnection: close\r\n\r\n",
        sha256(chunk_of(0)),
        token("t1", "ada"),
    );
    stream.write_all(head.as_bytes()).await.expect("it reads");
    for piece in pieces {
        let framed = [format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat();
        stream.write_all(&framed).await.expect("it reads");
    }
    if !whole {
        return None;
    }
    stream.write_all(b"0\r\n\r\n").await.expect("it reads");
    Response::read(&mut stream, &mut Vec::new()).await
}

#[tokio::test]
async fn a_chunk_that_does_not_say_how_long_it_is_is_measured() {
    let harness = started(UploadRules::default()).await;
    let Upload { id, .. } = open(&harness, FILE.len()).await;
    let (first, rest) = chunk_of(0).split_at(3);
    let long = dribble(&harness, &id, [chunk_of(0), b"9"], true).await.expect("an answer");
    assert_eq!((long.status, long.code().as_str()), (422, "VALIDATION_ERROR"));
    let short = dribble(&harness, &id, [first, b"4"], true).await.expect("an answer");
    assert_eq!((short.status, short.code().as_str()), (422, "VALIDATION_ERROR"));
    assert!(dribble(&harness, &id, [first, b"4"], false).await.is_none(), "it broke off");
    // Whoever breaks off leaves neither bytes nor a right to write behind.
    until("the chunk", || async {
        dribble(&harness, &id, [first, rest], true).await.expect("an answer").status == 200
    })
    .await;
    assert_eq!(status(&harness, &id).await["missing"], json!([[1, 2]]));
}

#[tokio::test]
async fn what_comes_in_order_is_hashed_on_the_way() {
    let harness = started(UploadRules::default()).await;
    let hashed = async |id: &str| {
        let id = id.parse().expect("an upload");
        let row = harness.app.engine().upload(UploadRight::Secret, id).await.expect("it is there");
        row.running.map_or(0, |running| running.through())
    };
    let Upload { id, .. } = open(&harness, FILE.len()).await;
    for (index, through) in [(0, 8), (2, 8), (1, 16)] {
        assert_eq!(send(&harness, put(&id, index, chunk_of(index))).await.0, 200);
        assert_eq!(hashed(&id).await, through, "after chunk {index}");
    }
    let created = create(&harness, |request| request.header("upload-length", "20")).await;
    let place = created.header("location").expect("a place").to_owned();
    for (from, to) in [(0, 5), (5, 19)] {
        let answer = patch(&place, from as u64, &FILE[from..to]).send(harness.address).await;
        assert_eq!((answer.status, hashed(&place[7..39]).await), (204, to as u64));
    }
}

#[tokio::test]
async fn a_file_without_bytes_is_a_file() {
    let harness = started(UploadRules::default()).await;
    let Upload { id, .. } = open(&harness, 0).await;
    assert_eq!(code(&harness, put(&id, 0, b"")).await.0, 404);
    let (done, file) = send(&harness, finalize(&id, &sha256(b""))).await;
    assert_eq!((done, &file["size"]), (200, &json!(0)));
    let bytes = harness.ask("t1", "ada", Request::get(&text(&file["url"]))).await;
    assert_eq!((bytes.status, bytes.body.len(), bytes.header("content-length")), (200, 0, Some("0")));
}

#[tokio::test]
async fn names_that_are_paths_lead_nowhere() {
    let harness = started(UploadRules::default()).await;
    let long = "a".repeat(64);
    for name in [
        "..",
        "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "..%2f..%2fx",
        "%00",
        "0",
        &long,
        "0123456789ABCDEF0123456789ABCDEF",
    ] {
        for path in [format!("/api/v1/uploads/{name}"), format!("/api/v1/files/{name}")] {
            assert_eq!(code(&harness, Request::get(&path)).await, (404, "NOT_FOUND".into()), "{path}");
        }
        let head = tus(Request::new("HEAD", &format!("/files/{name}"))).send(harness.address).await;
        assert_eq!(head.status, 404, "{name}");
    }
    let own =
        create(&harness, |request| request.header("upload-length", "3").header("upload-concat", "partial"))
            .await;
    let segment = own.header("location").expect("a place").to_owned();
    let foreign = "/files/".to_owned() + &"0".repeat(64);
    for list in [
        "/files/../../etc/passwd",
        "/files/..",
        "file:///etc/passwd",
        "/etc/passwd",
        &foreign,
        &format!("{segment} {foreign}"),
    ] {
        let joined =
            create(&harness, |request| request.header("upload-concat", &format!("final;{list}"))).await;
        assert_eq!((joined.status, joined.code().as_str()), (404, "NOT_FOUND"), "{list}");
    }
    // A part that is not whole, one of somebody else, and one that is no part.
    let joined =
        create(&harness, |request| request.header("upload-concat", &format!("final;{segment}"))).await;
    assert_eq!((joined.status, joined.code().as_str()), (409, "UPLOAD_INCOMPLETE"));
    let request = tus(Request::new("POST", "/files")).header("upload-concat", &format!("final;{segment}"));
    assert_eq!(harness.ask("t2", "ada", request.clone()).await.status, 404);
    assert_eq!(harness.ask("t1", "bob", request).await.status, 404);
    let alone = create(&harness, |request| request.header("upload-length", "3")).await;
    let alone = alone.header("location").expect("a place").to_owned();
    let joined = create(&harness, |request| request.header("upload-concat", &format!("final;{alone}"))).await;
    assert_eq!(joined.status, 404);
}

#[tokio::test]
async fn every_answer_of_tus_says_what_clients_need() {
    let harness = started(UploadRules { size_max: 1000, ..UploadRules::default() }).await;
    let metadata = "filename YS50eHQ=,  empty,filetype dGV4dC9wbGFpbg==";
    let created =
        create(&harness, |request| request.header("upload-length", "20").header("upload-metadata", metadata))
            .await;
    let place = created.header("location").expect("a place").to_owned();
    assert_eq!((created.status, place.len()), (201, 71));
    assert!(created.header("upload-expires").is_some_and(|at| at.ends_with("GMT")), "{created:?}");
    let head = tus(Request::new("HEAD", &place)).send(harness.address).await;
    let told = ["upload-offset", "upload-length", "upload-metadata", "cache-control", "tus-resumable"];
    let told = told.map(|name| head.header(name).unwrap_or_default());
    assert_eq!((head.status, told), (200, ["0", "20", metadata, "no-store", "1.0.0"]));

    // The URL is the right: no token, no matter which.
    let bytes =
        patch(&place, 0, &FILE[..7]).header("authorization", "Bearer ended").send(harness.address).await;
    assert_eq!((bytes.status, bytes.header("upload-offset")), (204, Some("7")));
    let table = [
        (patch(&place, 0, b"x"), 409, "OFFSET_MISMATCH"),
        (patch(&place, 8, b"x"), 409, "OFFSET_MISMATCH"),
        (patch(&place, 7, &[b'x'; 14]), 413, "MESSAGE_TOO_LARGE"),
        (
            tus(Request::new("PATCH", &place)).header("upload-offset", "7").body("x"),
            415,
            "UNSUPPORTED_MEDIA_TYPE",
        ),
        (patch(&place, 7, b"x").header("upload-checksum", "md5 AAAA"), 400, "VALIDATION_ERROR"),
        (patch(&place, 7, b"x").header("upload-checksum", "sha1 ?"), 400, "VALIDATION_ERROR"),
        (patch(&place, 7, b"x").header("upload-checksum", "sha1 AAAA"), 460, "DIGEST_MISMATCH"),
        (patch(&place, 7, b"x").header("upload-length", "30"), 422, "VALIDATION_ERROR"),
        (Request::new("HEAD", &place), 412, ""),
        (Request::new("PATCH", &place).header("tus-resumable", "0.2.2"), 412, "VALIDATION_ERROR"),
        (tus(Request::new("GET", &place)), 405, "METHOD_NOT_ALLOWED"),
        (
            tus(Request::new("POST", &place)).header("x-http-method-override", "PUT"),
            405,
            "METHOD_NOT_ALLOWED",
        ),
    ];
    for (request, status, wanted) in table {
        let answer = request.send(harness.address).await;
        let code = if answer.body.is_empty() { String::new() } else { answer.code() };
        assert_eq!((answer.status, code.as_str()), (status, wanted), "{request:?}");
        assert_eq!(offset(&harness, &place).await, Some(7), "{request:?}");
    }
    let rest = patch(&place, 7, &FILE[7..]).send(harness.address).await;
    assert_eq!((rest.status, rest.header("upload-offset")), (204, Some("20")));
    assert_eq!(offset(&harness, &place).await, Some(20), "it is still there when it is a file");
    let file = harness.ask("t1", "ada", Request::get(&format!("/api/v1/files/{}", &place[7..39]))).await;
    assert_eq!((file.body.as_slice(), file.header("content-type")), (FILE, Some("text/plain")));

    let bad = [
        ("upload-length", "x", 400),
        ("upload-length", "1001", 413),
        ("upload-defer-length", "2", 400),
        ("upload-metadata", "a !", 400),
        ("upload-concat", "final;", 400),
        ("upload-concat", "partial", 400),
    ];
    for (name, value, status) in bad {
        assert_eq!(
            create(&harness, |request| request.header(name, value)).await.status,
            status,
            "{name}: {value}"
        );
    }
    assert_eq!(tus(Request::new("POST", "/files")).send(harness.address).await.status, 401);
    let options = Request::new("OPTIONS", "/files").send(harness.address).await;
    let told = ["tus-version", "tus-max-size", "tus-checksum-algorithm", "tus-extension"];
    let told = told.map(|name| options.header(name).unwrap_or_default());
    let all =
        "creation,creation-with-upload,creation-defer-length,termination,checksum,expiration,concatenation";
    assert_eq!((options.status, told), (204, ["1.0.0", "1000", "sha1,sha256", all]));
}

#[tokio::test]
async fn a_stream_that_breaks_off_keeps_what_came_unless_it_is_checked() {
    let harness = started(UploadRules::default()).await;
    for checksum in [None, Some("sha1 AAAA")] {
        let created = create(&harness, |request| request.header("upload-length", "20")).await;
        let place = created.header("location").expect("a place").to_owned();
        let mut request = patch(&place, 0, FILE);
        if let Some(checksum) = checksum {
            request = request.header("upload-checksum", checksum);
        }
        let bytes = request.encode(harness.address);
        let mut stream = TcpStream::connect(harness.address).await.expect("it listens");
        stream.write_all(&bytes[..bytes.len() - 7]).await.expect("it reads");
        drop(stream);
        let kept = if checksum.is_none() { 13 } else { 0 };
        until("what came", || async { offset(&harness, &place).await == Some(kept) }).await;
    }
}

#[tokio::test]
async fn a_new_request_evicts_the_stale_one() {
    let harness = started(UploadRules::default()).await;
    let created = create(&harness, |request| request.header("upload-length", "20")).await;
    let place = created.header("location").expect("a place").to_owned();
    let bytes = patch(&place, 0, FILE).encode(harness.address);
    // The phone changed networks: the old connection stays, and nothing comes on it.
    let mut stale = TcpStream::connect(harness.address).await.expect("it listens");
    stale.write_all(&bytes[..bytes.len() - 5]).await.expect("it reads");
    until("the offset", || async { offset(&harness, &place).await == Some(15) }).await;
    let rest = patch(&place, 15, &FILE[15..]).send(harness.address).await;
    assert_eq!((rest.status, rest.header("upload-offset")), (204, Some("20")), "{}", rest.text());
    // What still comes on the old one goes nowhere.
    let _ = stale.write_all(b"XXXXX").await;
    let file = harness.ask("t1", "ada", Request::get(&format!("/api/v1/files/{}", &place[7..39]))).await;
    assert_eq!(file.body, FILE);
}

#[tokio::test]
async fn the_secret_of_an_upload_opens_that_one_only() {
    let harness = started(UploadRules::default()).await;
    let (own, other) = (open(&harness, FILE.len()).await, open(&harness, FILE.len()).await);
    let with = |secret: &str| put(&own.id, 0, chunk_of(0)).header("x-upload-token", secret);
    assert_eq!(with(&other.secret).send(harness.address).await.status, 401);
    assert_eq!(with(&own.secret).send(harness.address).await.status, 200);
    assert_eq!(put(&own.id, 1, chunk_of(1)).bearer(&own.secret).send(harness.address).await.status, 200);
    let query = format!("/api/v1/uploads/{}?upload_token={}", own.id, own.secret);
    let status = Request::get(&query).send(harness.address).await;
    assert_eq!((status.status, &status.json()["received"]), (200, &json!(2)));
    let file = Request::get(&format!("/api/v1/files/{}", own.id)).bearer(&own.secret);
    assert_eq!(file.send(harness.address).await.status, 401, "it opens no file");
    // Over tus the secret is the end of the path. With another one there is nothing, whoever asks.
    let created = create(&harness, |request| request.header("upload-length", "20")).await;
    let place = created.header("location").expect("a place").to_owned();
    let last = if place.ends_with('0') { "1" } else { "0" };
    let wrong = format!("{}{last}", &place[..place.len() - 1]);
    let none = wrong[..39].to_owned();
    for place in [wrong, none, format!("{place}0"), place.to_uppercase().replace("FILES", "files")] {
        for request in
            [tus(Request::new("HEAD", &place)), patch(&place, 0, FILE), tus(Request::new("DELETE", &place))]
        {
            let refused = harness.ask("t1", "ada", request).await;
            assert_eq!(refused.status, 404, "{place}");
        }
    }
    assert_eq!(offset(&harness, &place).await, Some(0));
    // An upload in chunks is none over tus, and nobody ends its file there.
    fill(&harness, &own.id).await;
    assert_eq!(send(&harness, finalize(&own.id, &sha256(FILE))).await.0, 200);
    for method in ["HEAD", "DELETE"] {
        let over_tus = tus(Request::new(method, &format!("/files/{}{}", own.id, own.secret)));
        assert_eq!(over_tus.send(harness.address).await.status, 404, "{method}");
    }
    assert_eq!(send(&harness, Request::get(&format!("/api/v1/files/{}", own.id))).await.0, 200);
}

#[tokio::test]
async fn an_opening_that_comes_again_opens_nothing_new() {
    let harness = started(UploadRules::default()).await;
    let request = |size: u64| {
        Request::post("/api/v1/uploads/init", &json!({"filename": "a", "size": size}))
            .header("idempotency-key", "k")
    };
    let first = harness.ask("t1", "ada", request(5)).await;
    let again = harness.ask("t1", "ada", request(5)).await;
    assert_eq!((again.status, again.header("idempotency-replayed")), (201, Some("true")));
    assert_eq!(first.json(), again.json());
    let other = harness.ask("t1", "ada", request(6)).await;
    assert_eq!((other.status, other.code().as_str()), (422, "IDEMPOTENCY_KEY_REUSED"));
    assert_eq!(harness.shell.staged(), 1);
}

#[tokio::test]
async fn quotas_and_caps_hold_and_come_back() {
    let harness = started(UploadRules { open_max: 2, ..bounded(30) }).await;
    let first = open(&harness, FILE.len()).await;
    let refused = init(&harness, &json!({"filename": "a", "size": 11})).await;
    assert_eq!((refused.status, refused.code().as_str()), (413, "QUOTA_EXCEEDED"));
    // Another tenant has a quota of its own.
    let body = json!({"filename": "a", "size": 30});
    assert_eq!(harness.ask("t2", "ada", Request::post("/api/v1/uploads/init", &body)).await.status, 201);
    let second = open(&harness, 10).await;
    let refused = init(&harness, &json!({"filename": "a", "size": 0})).await;
    assert_eq!(refused.status, 413, "two are under way");
    let cancel = |id: &str| Request::new("DELETE", &format!("/api/v1/uploads/{id}"));
    let cancelled = harness.ask("t1", "ada", cancel(&second.id)).await;
    assert_eq!((cancelled.status, cancelled.body.len()), (204, 0));
    assert_eq!(code(&harness, put(&second.id, 0, b"01234567")).await, (410, "UPLOAD_GONE".into()));
    fill(&harness, &first.id).await;
    assert_eq!(send(&harness, finalize(&first.id, &sha256(FILE))).await.0, 200);
    // A file takes of the quota until it is removed.
    assert_eq!(init(&harness, &json!({"filename": "a", "size": 11})).await.status, 413);
    let file = format!("/api/v1/files/{}", first.id);
    assert_eq!(harness.ask("t1", "ada", Request::new("DELETE", &file)).await.status, 204);
    assert_eq!(code(&harness, Request::get(&file)).await.0, 404);
    assert_eq!(init(&harness, &json!({"filename": "a", "size": 30})).await.status, 201);
    // A stream of unknown length takes as it comes.
    let harness = started(bounded(30)).await;
    let created = create(&harness, |request| request.header("upload-defer-length", "1")).await;
    let place = created.header("location").expect("a place").to_owned();
    assert_eq!(patch(&place, 0, &[7; 30]).send(harness.address).await.status, 204);
    let refused = patch(&place, 30, b"x").send(harness.address).await;
    assert_eq!((refused.status, refused.code().as_str()), (413, "QUOTA_EXCEEDED"));
    assert_eq!(offset(&harness, &place).await, Some(30));
    // Nothing is written that is not reserved, also of bytes that are judged at their end.
    let cancel = tus(Request::new("DELETE", &place)).send(harness.address).await;
    assert_eq!(cancel.status, 204);
    let created = create(&harness, |request| request.header("upload-defer-length", "1")).await;
    let place = created.header("location").expect("a place").to_owned();
    for (bytes, wanted) in [(31, 413), (30, 460)] {
        let checked = patch(&place, 0, &vec![7; bytes]).header("upload-checksum", "sha1 AAAA");
        assert_eq!(checked.send(harness.address).await.status, wanted);
    }
    let told = patch(&place, 0, &[7; 31]).header("upload-length", "31").send(harness.address).await;
    assert_eq!((told.status, told.code().as_str()), (413, "QUOTA_EXCEEDED"));
    assert_eq!(offset(&harness, &place).await, Some(0));
    assert_eq!(staged_bytes(&harness, &place), 0, "what did not count takes no room");
    let last = patch(&place, 0, b"ninebytes").header("upload-length", "9").send(harness.address).await;
    assert_eq!(last.status, 204);
    let file = harness.ask("t1", "ada", Request::get(&format!("/api/v1/files/{}", &place[7..39]))).await;
    assert_eq!((file.body.as_slice(), harness.shell.staged()), (&b"ninebytes"[..], 0));
    assert_eq!(init(&harness, &json!({"filename": "a", "size": 21})).await.status, 201);
}

#[tokio::test]
async fn a_full_disk_is_told_and_the_upload_goes_on_later() {
    let harness = started(UploadRules::default()).await;
    let Upload { id, .. } = open(&harness, FILE.len()).await;
    assert_eq!(send(&harness, put(&id, 0, chunk_of(0))).await.0, 200);
    harness.shell.set_room(0);
    assert_eq!(code(&harness, put(&id, 1, chunk_of(1))).await, (507, "STORAGE_FULL".into()));
    let created = create(&harness, |request| request.header("upload-length", "20")).await;
    let place = created.header("location").expect("a place").to_owned();
    let full = patch(&place, 0, FILE).send(harness.address).await;
    assert_eq!((full.status, full.code().as_str()), (507, "STORAGE_FULL"));
    assert_eq!(offset(&harness, &place).await, Some(0));
    // Bytes that come with a creation do not fit either: the upload is there all the same.
    let with_bytes = create(&harness, |request| {
        let request = request.header("upload-length", "20");
        request.header("content-type", "application/offset+octet-stream").body(FILE)
    });
    let refused = with_bytes.await;
    assert_eq!((refused.status, refused.code().as_str()), (507, "STORAGE_FULL"));
    let told = refused.header("location").expect("where to go on").to_owned();
    assert_eq!(offset(&harness, &told).await, Some(0));
    harness.shell.set_room(1000);
    fill(&harness, &id).await;
    assert_eq!(send(&harness, finalize(&id, &sha256(FILE))).await.0, 200);
    assert_eq!(patch(&place, 0, FILE).send(harness.address).await.status, 204);
}

#[tokio::test]
async fn what_nobody_finishes_goes_and_what_comes_holds_it() {
    let expiry = Expiry::Sliding { idle_ms: 10_000, whole_ms: 25_000 };
    let harness = started(UploadRules { expiry, ..bounded(40) }).await;
    let Upload { id, secret } = open(&harness, FILE.len()).await;
    harness.clock.advance(9_000);
    assert_eq!(send(&harness, put(&id, 0, chunk_of(0))).await.0, 200);
    harness.clock.advance(9_000);
    assert_eq!(harness.app.sweep_uploads().await.expect("a sweep").expired, 0, "a byte came in time");
    assert_eq!(send(&harness, put(&id, 1, chunk_of(1))).await.0, 200);
    harness.clock.advance(7_000);
    assert_eq!(
        code(&harness, put(&id, 2, chunk_of(2))).await,
        (410, "UPLOAD_GONE".into()),
        "its whole time is over"
    );
    assert_eq!(status(&harness, &id).await["state"], "expired", "before the sweeper comes");
    assert_eq!(harness.app.sweep_uploads().await.expect("a sweep").expired, 1);
    assert_eq!((status(&harness, &id).await["state"].clone(), harness.shell.staged()), (json!("expired"), 0));
    assert_eq!(
        init(&harness, &json!({"filename": "a", "size": 40})).await.status,
        201,
        "its bytes came back"
    );
    let ended = harness.counted("driftline_uploads_ended_total{end=\"expired\"}").await;
    assert!(ended >= 1, "abandonment is counted");
    harness.clock.advance(25 * 3_600_000);
    harness.app.sweep_uploads().await.expect("a sweep");
    // The user's token has ended meanwhile; the upload's own secret has not.
    let known = Request::get(&format!("/api/v1/uploads/{id}?upload_token={secret}"));
    assert_eq!(known.send(harness.address).await.status, 404, "it is forgotten");
}

/// How many bytes are staged of an upload over tus.
fn staged_bytes(harness: &Harness, place: &str) -> usize {
    let staged = harness.shell.stage(&place[7..39].parse().expect("an upload")).expect("it is staged");
    staged.read_at(0, &mut [0; 1000]).expect("it can be read")
}

#[tokio::test]
async fn what_does_not_count_takes_no_room() {
    let harness = started(bounded(100)).await;
    let created = create(&harness, |request| request.header("upload-defer-length", "1")).await;
    let place = created.header("location").expect("a place").to_owned();
    assert_eq!(patch(&place, 0, &[7; 10]).send(harness.address).await.status, 204);
    let bad = patch(&place, 10, &[7; 80]).header("upload-checksum", "sha1 AAAA");
    assert_eq!(bad.send(harness.address).await.status, 460);
    assert_eq!((offset(&harness, &place).await, staged_bytes(&harness, &place)), (Some(10), 10));
    // A connection that breaks while something is checked leaves as little.
    let cut = patch(&place, 10, &[7; 80]).header("upload-checksum", "sha1 AAAA").encode(harness.address);
    let mut stream = TcpStream::connect(harness.address).await.expect("it listens");
    stream.write_all(&cut[..cut.len() - 1]).await.expect("it reads");
    stream.shutdown().await.expect("it is open");
    let broken = Response::read(&mut stream, &mut Vec::new()).await.expect("an answer");
    assert_eq!((broken.status, broken.code().as_str()), (409, "UPLOAD_INCOMPLETE"));
    assert_eq!((offset(&harness, &place).await, staged_bytes(&harness, &place)), (Some(10), 10));
    assert_eq!(init(&harness, &json!({"filename": "a", "size": 90})).await.status, 201, "all else is free");
}

#[tokio::test]
async fn what_is_no_request_of_an_upload_is_told() {
    let harness = started(UploadRules::default()).await;
    let post = |with: &[(&str, &str)], body: &'static [u8]| {
        let request = tus(Request::new("POST", "/files")).body(body);
        with.iter().fold(request, |request, (name, value)| request.header(name, value))
    };
    let (bytes, length) = (("content-type", "application/offset+octet-stream"), ("upload-length", "5"));
    let table = [
        (post(&[length, ("content-type", "text/plain")], b"hello"), 415, "UNSUPPORTED_MEDIA_TYPE"),
        (post(&[length], b"hello"), 415, "UNSUPPORTED_MEDIA_TYPE"),
        (post(&[("upload-concat", "final;/files/x"), bytes], b"hello"), 403, "FORBIDDEN"),
        (post(&[("upload-length", "99999999999999999999")], b""), 413, "MESSAGE_TOO_LARGE"),
    ];
    for (request, status, code) in table {
        let refused = harness.ask("t1", "ada", request.clone()).await;
        assert_eq!((refused.status, refused.code().as_str()), (status, code), "{request:?}");
    }
    let created = create(&harness, |request| request.header("upload-length", "5")).await;
    assert!(created.header("upload-expires").is_some());
    let place = created.header("location").expect("a place").to_owned();
    let posted = tus(Request::new("POST", &place)).send(harness.address).await;
    assert_eq!((posted.status, posted.header("allow")), (405, Some("HEAD, PATCH, DELETE, OPTIONS")));
    let last = patch(&place, 0, b"hello").send(harness.address).await;
    assert_eq!((last.status, last.header("upload-expires")), (204, None), "a file does not go");
    let Upload { id, .. } = open(&harness, FILE.len()).await;
    for index in ["+0", "00", "-0", "0x0"] {
        let path = format!("/api/v1/uploads/{id}/chunk/{index}");
        let put = Request::new("PUT", &path).header("x-chunk-sha256", &sha256(chunk_of(0))).body(chunk_of(0));
        assert_eq!(code(&harness, put).await, (404, "NOT_FOUND".into()), "{index}");
    }
    let twice = Request::new("POST", "/api/v1/uploads/init").header("content-type", "application/json");
    let twice = twice.body(&b"{\"filename\":\"a\",\"size\":1,\"size\":2}"[..]);
    assert_eq!(code(&harness, twice).await, (422, "VALIDATION_ERROR".into()));
    let get = harness.ask("t1", "ada", Request::get(&format!("/api/v1/uploads/{id}"))).await;
    let head = harness.ask("t1", "ada", Request::new("HEAD", &format!("/api/v1/uploads/{id}"))).await;
    assert_eq!((head.status, head.header("content-length")), (200, get.header("content-length")));
}

#[tokio::test]
async fn a_wrong_claim_about_what_came_in_order_reads_nothing() {
    let harness = started(UploadRules::default()).await;
    let Upload { id, .. } = open(&harness, FILE.len()).await;
    fill(&harness, &id).await;
    let before = harness.shell.reads();
    for _ in 0..3 {
        assert_eq!(code(&harness, finalize(&id, &sha256(b"another"))).await, (422, "DIGEST_MISMATCH".into()));
    }
    assert_eq!(harness.shell.reads(), before, "it was hashed when it came");
    assert_eq!(send(&harness, finalize(&id, &sha256(FILE))).await.0, 200);
}

#[tokio::test]
async fn a_wrong_claim_about_what_came_in_another_order_reads_it_once() {
    let harness = started(UploadRules::default()).await;
    let Upload { id, .. } = open(&harness, FILE.len()).await;
    for index in [2, 1, 0] {
        assert_eq!(send(&harness, put(&id, index, chunk_of(index))).await.0, 200);
    }
    let wrong = || code(&harness, finalize(&id, &sha256(b"another")));
    assert_eq!(wrong().await, (422, "DIGEST_MISMATCH".into()));
    let once = harness.shell.reads();
    assert!(once > 0, "it was not hashed when it came");
    for _ in 0..3 {
        assert_eq!(wrong().await, (422, "DIGEST_MISMATCH".into()));
    }
    assert_eq!(harness.shell.reads(), once, "what was found is known");
    // What is known of the file publishes nothing: that is read again.
    harness.shell.damage(&id, 9);
    let (refused, problem) = send(&harness, finalize(&id, &sha256(FILE))).await;
    assert_eq!((refused, &problem["missing"]), (409, &json!([[1, 1]])));
    // Another chunk may come in the place of one that was lost, and makes another file.
    let other = [&FILE[..8], b"THECHUNK", &FILE[16..]].concat();
    assert_eq!(send(&harness, put(&id, 1, b"THECHUNK")).await.0, 200);
    assert_eq!(send(&harness, finalize(&id, &sha256(&other))).await.0, 200);
}

/// Looks at files as it is told.
#[derive(Default)]
struct Judge(AtomicU32);

impl Verify for Judge {
    fn verify<'a>(&'a self, row: &'a UploadRow, blobs: &'a dyn Blobs) -> BoxFuture<'a, Verdict> {
        async move {
            let bytes = blobs.read(row.id, 0, 100).await.expect("the bytes are there");
            match (self.0.fetch_add(1, Ordering::SeqCst), bytes.as_slice()) {
                (0, _) => Verdict::Later("it sleeps".into()),
                (_, b"virus") => Verdict::Refused("it bites".into()),
                _ => Verdict::Released,
            }
        }
        .boxed()
    }
}

#[tokio::test]
async fn a_file_is_looked_at_before_it_is_released() {
    let tenant = TenantUploads { verified: true, ..TenantUploads::default() };
    let verifier: Arc<dyn Verify> = Arc::new(Judge::default());
    let harness = started(UploadRules { tenant, verifier: Some(verifier), ..UploadRules::default() }).await;
    let Upload { id, .. } = open(&harness, 5).await;
    assert_eq!(send(&harness, put(&id, 0, b"virus")).await.0, 200);
    assert_eq!(code(&harness, finalize(&id, &sha256(b"virus"))).await, (503, "STORE_UNAVAILABLE".into()));
    assert_eq!(status(&harness, &id).await["state"], "open", "it may be tried again");
    let (refused, problem) = send(&harness, finalize(&id, &sha256(b"virus"))).await;
    assert_eq!(refused, 422);
    assert!(text(&problem["detail"]).contains("it bites"), "{problem}");
    // Whoever did not wait for the answer is told the same.
    let doc = status(&harness, &id).await;
    assert_eq!((&doc["state"], harness.shell.staged()), (&json!("cancelled"), 0));
    assert!(text(&doc["error"]).contains("it bites"), "{doc}");
    assert_eq!(code(&harness, Request::get(&format!("/api/v1/files/{id}"))).await.0, 404);
    let good = uploaded(&harness).await;
    assert_eq!(send(&harness, Request::get(&format!("/api/v1/files/{}", good.id))).await.0, 200);
}

#[tokio::test]
async fn the_user_is_told_how_it_goes() {
    let harness = started(UploadRules::default()).await;
    let path = format!("/ws?token={}", token("t1", "ada"));
    let mut socket = driftline_testkit::socket::Socket::connect(harness.address, &path).await;
    socket.expect("connection_established").await;
    let upload = open(&harness, FILE.len()).await;
    assert_eq!(send(&harness, put(&upload.id, 0, chunk_of(0))).await.0, 200);
    let progress = support::hear(&mut socket, "upload_progress").await;
    assert_eq!(
        (&progress["topic"], &progress["data"]),
        (&json!("user_ada"), &json!({"bytes_received": 8, "size": 20, "upload_id": upload.id}))
    );
    assert!(progress.get("id").is_none(), "how it goes is not kept: {progress}");
    fill(&harness, &upload.id).await;
    assert_eq!(send(&harness, finalize(&upload.id, &sha256(FILE))).await.0, 200);
    let done = support::hear(&mut socket, "upload_completed").await;
    assert!(done.get("id").is_some(), "that it is done is kept: {done}");
    let data = &done["data"];
    assert_eq!(
        (&data["file_id"], &data["size"], text(&data["sha256"])),
        (&json!(upload.id), &json!(20), sha256(FILE))
    );
    harness.clock.advance(120_000);
    assert_eq!(harness.app.sweep_uploads().await.expect("a sweep").told, 0, "nobody is told twice");
}

#[tokio::test]
async fn pages_of_listed_origins_are_told_what_they_may_do() {
    let settings = driftline_transport::Settings {
        origins: vec!["https://app.example".into()],
        ..driftline_transport::Settings::default()
    };
    let harness = start(Setup { settings, ..Setup::default() }).await;
    let requests = [
        Request::new("OPTIONS", "/files"),
        Request::new("OPTIONS", "/api/v1/uploads/init"),
        Request::new("POST", "/files"),
        Request::new("PUT", "/files"),
        tus(Request::new("HEAD", "/files/x")),
        Request::get("/api/v1/files/x"),
        Request::get("/api/v1/uploads/x/none"),
    ];
    for request in requests {
        let answer = request.clone().header("origin", "https://app.example").send(harness.address).await;
        assert_eq!(answer.header("access-control-allow-origin"), Some("https://app.example"), "{request:?}");
        let exposed = answer.header("access-control-expose-headers").unwrap_or_default();
        assert!(exposed.contains("upload-offset") && exposed.contains("location"), "{request:?}");
        let other = request.clone().header("origin", "https://evil.example").send(harness.address).await;
        assert_eq!(other.header("access-control-allow-origin"), None, "{request:?}");
    }
    let alive = Request::get("/alive").header("origin", "https://app.example").send(harness.address).await;
    assert_eq!(alive.header("access-control-allow-origin"), None, "other routes are for no page");
}
