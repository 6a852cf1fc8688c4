//! Files that are made of numbers, and whoever uploads them over connections that break.

use std::net::SocketAddr;
use std::time::Duration;

use driftline_testkit::Rng;
use driftline_testkit::http::{Request, Response};
use driftline_uploads::{Digest, RunningHash};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::watch;

/// The bytes of a chunk, as the server chooses them.
pub const CHUNK_BYTES: usize = 1 << 20;

/// A file of whole chunks whose bytes follow from its number.
#[derive(Debug, Clone, Copy)]
pub struct Made {
    pub number: u64,
    pub chunks: usize,
}

impl Made {
    pub fn size(self) -> usize {
        self.chunks * CHUNK_BYTES
    }

    /// Makes a chunk: noise that all files share, behind the names of file and chunk.
    pub fn chunk(self, noise: &[u8], index: usize) -> Vec<u8> {
        let mut bytes = noise.to_vec();
        bytes[..8].copy_from_slice(&self.number.to_le_bytes());
        bytes[8..16].copy_from_slice(&(index as u64).to_le_bytes());
        bytes
    }

    pub fn digest(self, noise: &[u8]) -> Digest {
        let mut running = RunningHash::default();
        for index in 0..self.chunks {
            running.update(&self.chunk(noise, index));
        }
        running.digest()
    }
}

/// Makes the noise.
pub fn noise() -> Vec<u8> {
    let mut rng = Rng::new(7);
    std::iter::repeat_with(|| rng.next().to_le_bytes()).flatten().take(CHUNK_BYTES).collect()
}

/// A connection to a server that may be killed at any moment and comes again elsewhere.
pub struct Line {
    to: watch::Receiver<SocketAddr>,
    token: String,
    open: Option<(SocketAddr, TcpStream, Vec<u8>)>,
    /// How often the connection broke.
    pub broken: u64,
}

impl Line {
    pub fn new(to: watch::Receiver<SocketAddr>, token: &str) -> Self {
        Self { to, token: token.to_owned(), open: None, broken: 0 }
    }

    /// Sends a request; nothing when the connection broke before its answer.
    pub async fn ask(&mut self, request: &Request) -> Option<Response> {
        let address = *self.to.borrow();
        if self.open.as_ref().is_none_or(|(known, ..)| *known != address) {
            // It broke while nothing was asked.
            self.broken += u64::from(self.open.take().is_some());
            let Ok(stream) = TcpStream::connect(address).await else {
                // Who is between two lives is asked again soon.
                tokio::time::sleep(Duration::from_millis(20)).await;
                return None;
            };
            self.open = Some((address, stream, Vec::new()));
        }
        let (_, stream, buffer) = self.open.as_mut()?;
        let bytes = request.clone().bearer(&self.token).encode_open(address);
        let answer = async {
            stream.write_all(&bytes).await.ok()?;
            Response::read_or_break(stream, buffer).await
        };
        let answer = answer.await;
        if answer.as_ref().is_none_or(|answer| answer.header("connection") == Some("close")) {
            self.open = None;
        }
        self.broken += u64::from(answer.is_none());
        answer
    }

    /// Sends a request until it is answered.
    pub async fn insist(&mut self, request: &Request) -> Response {
        loop {
            if let Some(answer) = self.ask(request).await {
                return answer;
            }
        }
    }
}

/// Uploads a file in chunks, those that are missing, until it is a file; gives the file's name. `sent` counts chunks.
pub async fn upload_chunks(line: &mut Line, made: Made, noise: &[u8], sent: impl Fn()) -> String {
    let body = json!({"filename": format!("{}.bin", made.number), "size": made.size()});
    let key = format!("file-{}", made.number);
    let opened =
        line.insist(&Request::post("/api/v1/uploads/init", &body).header("idempotency-key", &key)).await;
    assert_eq!(opened.status, 201, "{}", opened.text());
    let id = opened.json()["upload_id"].as_str().expect("an upload").to_owned();
    let claimed = json!({"sha256": made.digest(noise).to_string()});
    loop {
        let status = line.insist(&Request::get(&format!("/api/v1/uploads/{id}"))).await.json();
        for index in missing(&status) {
            let bytes = made.chunk(noise, index);
            let put = Request::new("PUT", &format!("/api/v1/uploads/{id}/chunk/{index}"));
            let put = put.header("x-chunk-sha256", &Digest::hash(&bytes).to_string()).body(bytes);
            match line.ask(&put).await {
                Some(answer) if answer.status == 200 => sent(),
                // On a node that was killed somebody else's right to write may not have ended yet.
                Some(answer) if answer.status == 409 => tokio::time::sleep(Duration::from_millis(100)).await,
                Some(answer) => panic!("{} {}", answer.status, answer.text()),
                // What of it was received, the server knows.
                None => break,
            }
        }
        let finalize = Request::post(&format!("/api/v1/uploads/{id}/finalize"), &claimed);
        match line.insist(&finalize).await {
            done if done.status == 200 => return id,
            again if matches!(again.status, 202 | 409) => {}
            other => panic!("{} {}", other.status, other.text()),
        }
    }
}

fn missing(status: &Value) -> Vec<usize> {
    let number = |value: &Value| usize::try_from(value.as_u64().expect("a number")).expect("it is small");
    let gaps = status["missing"].as_array().expect("gaps");
    gaps.iter().flat_map(|gap| number(&gap[0])..=number(&gap[1])).collect()
}

/// Uploads a file as a stream over tus, from where it ended, until all is there; gives the file's name. `sent` counts
/// chunks.
pub async fn upload_stream(line: &mut Line, made: Made, noise: &[u8], sent: impl Fn()) -> String {
    let tus = |method: &str, place: &str| Request::new(method, place).header("tus-resumable", "1.0.0");
    let size = made.size().to_string();
    let opened = line.insist(&tus("POST", "/files").header("upload-length", &size)).await;
    assert_eq!(opened.status, 201, "{}", opened.text());
    let place = opened.header("location").expect("a place").to_owned();
    loop {
        let head = line.insist(&tus("HEAD", &place)).await;
        if head.status == 423 {
            continue;
        }
        assert_eq!(head.status, 200, "{}", head.text());
        let offset =
            head.header("upload-offset").and_then(|text| text.parse::<usize>().ok()).expect("an offset");
        if offset == made.size() {
            return place["/files/".len()..][..32].to_owned();
        }
        let (index, within) = (offset / CHUNK_BYTES, offset % CHUNK_BYTES);
        let patch = tus("PATCH", &place).header("upload-offset", &offset.to_string());
        let patch = patch.header("content-type", "application/offset+octet-stream");
        match line.ask(&patch.body(&made.chunk(noise, index)[within..])).await {
            Some(answer) if answer.status == 204 => sent(),
            Some(answer) if matches!(answer.status, 409 | 423) => {}
            Some(answer) => panic!("{} {}", answer.status, answer.text()),
            None => {}
        }
    }
}
