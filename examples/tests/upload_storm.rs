//! Very many uploads over a server that is killed again and again: each becomes the file that it was, and nothing is left.

mod support;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use driftline_testkit::http::{Request, Response};
use driftline_testkit::memory::Memory;
use driftline_testkit::server::{Server, TokenFor, program};
use driftline_testkit::{Rng, TempFolder};
use driftline_uploads::Digest;
use serde_json::{Value, json};
use support::files::{CHUNK_BYTES, Line, Made, noise, upload_chunks, upload_stream};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;

const UPLOADS: u64 = 64;
const CHUNKS: usize = 64;
/// Every fourth upload comes as a stream.
const STREAMS: u64 = 4;

/// What the server may hold while so many uploads come: 64 MiB, and 256 KiB for each.
const MEMORY: u64 = (64 << 20) + UPLOADS * (256 << 10);

/// What runs on forever ends the test.
const LONGEST: Duration = Duration::from_secs(600);

/// One test runs at a time: what has to come in time does not beside a storm.
static ALONE: Mutex<()> = Mutex::const_new(());

fn files_in(folder: &Path) -> usize {
    fs::read_dir(folder).map_or(0, |entries| entries.count())
}

/// Returns the most memory that a server held, without what is mapped from files now: above all the text of the program, of
/// which one for tests has several times as much as a released one.
fn held(server: &Server) -> u64 {
    let memory = Memory::of(server.pid());
    memory.peak.saturating_sub(memory.mapped)
}

/// Starts a server with a configuration, which lies in a folder that is to outlive it.
fn configured(config: &str, arguments: &[&str]) -> (TempFolder, Server) {
    let folder = TempFolder::new();
    let file = folder.path().join("c.toml");
    fs::write(&file, config).expect("it is written");
    let arguments = [arguments, &["--config", file.to_str().expect("text")]].concat();
    (folder, Server::with(&program(), &arguments))
}

/// Asks for an upload until nobody makes a file of it any more: the client of a stream does not wait for that, and what a
/// kill left in its middle the server ends within two minutes.
async fn settled(line: &mut Line, id: &str) -> Value {
    for _ in 0..1_500 {
        let upload = line.insist(&Request::get(&format!("/api/v1/uploads/{id}"))).await.json();
        if upload["state"] != "finalizing" {
            return upload;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{id} is never finalized")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_outlive_a_kill_in_the_middle_of_each_tenth() {
    let _alone = ALONE.lock().await;
    let mut server = Server::with(&program(), &["--limits", "off"]);
    let token = server.token(&TokenFor { sub: "ada", ..TokenFor::default() });
    let (tell, to) = watch::channel(server.address());
    let (noise, sent) = (Arc::new(noise()), Arc::new(AtomicU64::new(0)));
    let mut uploading = JoinSet::new();
    for number in 0..UPLOADS {
        let (noise, sent) = (Arc::clone(&noise), Arc::clone(&sent));
        let mut line = Line::new(to.clone(), &token);
        uploading.spawn(async move {
            let made = Made { number, chunks: CHUNKS };
            let count = || {
                sent.fetch_add(1, Ordering::Relaxed);
            };
            let id = if number % STREAMS == 0 {
                upload_stream(&mut line, made, &noise, count).await
            } else {
                upload_chunks(&mut line, made, &noise, count).await
            };
            (made, id, line.broken)
        });
    }
    let all = UPLOADS * CHUNKS as u64;
    let (mut peak, mut rng) = (0, Rng::new(1));
    for tenth in 0..10 {
        let middle = all * (2 * tenth + 1) / 20;
        let reached = async {
            while sent.load(Ordering::Relaxed) < middle {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(LONGEST, reached).await.expect("chunks are received");
        tokio::time::sleep(Duration::from_micros(rng.below(3_000))).await;
        peak = peak.max(held(&server));
        server.kill9();
        server.restart();
        tell.send_replace(server.address());
    }
    let mut done = Vec::new();
    let ended = async {
        while let Some(upload) = uploading.join_next().await {
            done.push(upload.expect("no assertion fails"));
        }
    };
    tokio::time::timeout(LONGEST, ended).await.expect("every upload ends");
    peak = peak.max(held(&server));
    let broken: u64 = done.iter().map(|(.., broken)| broken).sum();
    println!("{broken} connections broke, {} MiB at most", peak >> 20);
    assert!(broken >= 10 * UPLOADS / 2, "the kills were felt: {broken}");
    let mut line = Line::new(to, &token);
    for (made, id, _) in done {
        let file = settled(&mut line, &id).await;
        assert_eq!((&file["state"], &file["size"]), (&json!("done"), &json!(made.size())), "{file}");
        let wanted = made.digest(&noise);
        assert_eq!(file["file"]["sha256"], json!(wanted.to_string()), "{}", made.number);
        // What is said of the file was hashed on the way: the bytes are those on the disk.
        let folder = server.data_dir().join("uploads/files").join(&id[..2]);
        let bytes = fs::read(folder.join(&id)).expect("the file is there");
        assert_eq!(Digest::hash(&bytes), wanted, "{}", made.number);
    }
    let staging = server.data_dir().join("uploads/staging");
    assert_eq!(files_in(&staging), 0, "nothing is left");
    assert!(peak <= MEMORY, "{} MiB", peak >> 20);
}

/// A server that is asked to end waits for uploads, and what came of those that take longer is written down.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_came_of_an_upload_before_a_stop_is_kept() {
    const CAME: usize = 3 * CHUNK_BYTES + 123;
    let _alone = ALONE.lock().await;
    // A disk that stands still would take longer than a server that ends may.
    let (_folder, mut server) = configured("[uploads]\ndurability = \"os\"\n", &[]);
    let token = server.token(&TokenFor { sub: "ada", ..TokenFor::default() });
    let noise = noise();
    let file: Vec<u8> = noise.iter().copied().cycle().take(4 * CHUNK_BYTES).collect();
    let (tell, to) = watch::channel(server.address());
    let mut line = Line::new(to, &token);
    let tus = |method: &str, path: &str| Request::new(method, path).header("tus-resumable", "1.0.0");
    let created = tus("POST", "/files").header("upload-length", &file.len().to_string());
    let place = line.insist(&created).await.header("location").expect("a place").to_owned();
    let patch = |offset: usize| {
        let request = tus("PATCH", &place).header("upload-offset", &offset.to_string());
        request.header("content-type", "application/offset+octet-stream").body(&file[offset..])
    };
    let request = patch(0).encode(server.address());
    let mut stream = TcpStream::connect(server.address()).await.expect("it listens");
    let most = request.len() - file.len() + CAME;
    stream.write_all(&request[..most]).await.expect("it reads");
    let server = tokio::task::spawn_blocking(move || {
        let status = server.terminate();
        assert!(status.success(), "{status}");
        server.restart();
        server
    });
    let server = server.await.expect("it ends");
    tell.send_replace(server.address());
    let head = line.insist(&tus("HEAD", &place)).await;
    assert_eq!(head.header("upload-offset"), Some(&*CAME.to_string()));
    assert_eq!(line.insist(&patch(CAME)).await.status, 204);
    let done = line.insist(&Request::get(&format!("/api/v1/files/{}", &place[7..39]))).await;
    assert!(done.body == file);
}

const SLOW: usize = 500;

/// Begins an upload of a chunk and sends all of it but the last byte.
async fn slow(server: &Server, line: &mut Line, token: &str, number: usize) -> (TcpStream, String, u8) {
    let made = Made { number: number as u64, chunks: 1 };
    let noise = vec![7; CHUNK_BYTES];
    let bytes = &made.chunk(&noise, 0)[..10_000];
    let body = json!({"filename": "slow", "size": bytes.len()});
    let opened = line.insist(&Request::post("/api/v1/uploads/init", &body)).await;
    let id = opened.json()["upload_id"].as_str().expect("an upload").to_owned();
    let put = Request::new("PUT", &format!("/api/v1/uploads/{id}/chunk/0")).bearer(token);
    let digest = Digest::hash(bytes).to_string();
    let request = put.header("x-chunk-sha256", &digest).body(bytes).encode(server.address());
    let mut stream = TcpStream::connect(server.address()).await.expect("it listens");
    let (last, most) = request.split_last().expect("there are bytes");
    stream.write_all(most).await.expect("it reads");
    (stream, id, *last)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_uploads_slowly_slows_nobody() {
    let _alone = ALONE.lock().await;
    // However long it takes to open all of them, the first one is not too slow.
    let config = "[limits]\nbody_frame_ms = 600000\n[uploads]\nopen_max = 1000\nbodies_max = 1000\n";
    let (_folder, server) = configured(config, &["--limits", "off"]);
    let token = server.token(&TokenFor { sub: "ada", ..TokenFor::default() });
    let (_tell, to) = watch::channel(server.address());
    let mut line = Line::new(to, &token);
    let mut uploads = Vec::new();
    for number in 0..SLOW {
        uploads.push(slow(&server, &mut line, &token, number).await);
    }
    lives_and_syncs(&mut line).await;
    let peak = Memory::of(server.pid()).peak;
    assert!(peak <= (64 << 20) + SLOW as u64 * (256 << 10), "{} MiB", peak >> 20);
    for (mut stream, id, last) in uploads {
        stream.write_all(&[last]).await.expect("it still reads");
        let received = Response::read(&mut stream, &mut Vec::new()).await.expect("an answer");
        assert_eq!(received.status, 200, "{id}: {}", received.text());
    }
}

/// Asks a hundred times whether the server lives, and syncs as often; each answer comes in time.
async fn lives_and_syncs(line: &mut Line) {
    for n in 1..=100_u64 {
        let item = json!({"op_id": format!("o{n}"), "n": n, "kind": "note", "id": format!("n{n}"), "op": "create",
                          "fields": {}});
        let sync = Request::post("/api/v1/sync?device_id=phone", &json!({"batch": [item]}));
        for request in [Request::get("/alive"), sync] {
            let answer = line.insist(&request).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
    }
}
