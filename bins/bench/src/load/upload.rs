//! `load upload`: files in chunks, one connection for each, with SHA-256; the plain dialect writes the same chunks.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use driftline_uploads::Digest;
use serde::Serialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::now::now;
use super::options::{Common, Dialect, run_number};
use super::report::{Report, Unit};
use super::socket::Target;
use super::tally::Tally;
use super::window::{Window, observe};
use crate::rng::Rng;

/// The front that uploads take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Front {
    /// Chunks under `/api/v1/uploads`.
    Native,
    /// Requests of tus 1.0 under `/files`, each of one chunk.
    Tus,
}

/// Options of `load upload`.
#[derive(Debug, Args, Serialize)]
pub(crate) struct Options {
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) common: Common,
    /// The front that uploads take; the plain dialect has one of its own.
    #[arg(long, value_enum, default_value_t = Front::Native)]
    front: Front,
    /// Connections, each with one file after the other.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..))]
    connections: u16,
    /// Chunks of a file, each of 1 MiB: an item of the report is one of them.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..))]
    chunks: u64,
    /// Each connection holds one chunk open and sends 1 KiB of it every second: an item of the report is one of these.
    #[arg(long)]
    slow: bool,
}

/// The bytes that a slow upload sends at once, and the time between two times.
const SLOW: (usize, Duration) = (1 << 10, Duration::from_secs(1));

/// The bytes of a chunk.
const CHUNK_BYTES: usize = 1 << 20;

/// Uploads for the length of the window.
///
/// # Errors
/// When the server cannot be reached, or refuses.
pub(crate) async fn run(options: &Options) -> Result<Report> {
    let target = Target::resolve(&options.common.url).await?;
    let tokens = options.common.tokens()?;
    let mut rng = Rng::new(options.common.seed, 0);
    let chunk: Vec<u8> =
        std::iter::repeat_with(|| rng.next().to_le_bytes()).flatten().take(CHUNK_BYTES).collect();
    let window = Window::open(&options.common)?;
    let mut tasks = JoinSet::new();
    for index in 0..usize::from(options.connections) {
        let token = tokens.get(index % tokens.len().max(1)).cloned().unwrap_or_default();
        let stream = TcpStream::connect(target.address).await;
        let stream = stream.with_context(|| format!("cannot connect to {}", target.address))?;
        stream.set_nodelay(true)?;
        let uploader = Uploader {
            stream,
            input: Vec::new(),
            host: target.host.clone(),
            token,
            chunk: chunk.clone(),
            digest: Digest::hash(&chunk).to_string(),
            whole: whole(&chunk, options.chunks),
            chunks: options.chunks,
            name: format!("{:x}-{index}", run_number()),
        };
        let way = (options.common.dialect, options.front);
        if options.slow {
            tasks.spawn(uploader.hold_open(way, window));
        } else {
            tasks.spawn(uploader.upload_on(way, window));
        }
    }
    let (seen, tally) = observe(window, &options.common.pid, tasks).await?;
    let report = Report::new(("upload", Unit::Items), (options, &options.common), &seen, tally)?;
    report.ensure_clean()?;
    Ok(report)
}

/// The digest of a file of equal chunks.
fn whole(chunk: &[u8], chunks: u64) -> String {
    let mut running = driftline_uploads::RunningHash::default();
    for _ in 0..chunks {
        running.update(chunk);
    }
    running.digest().to_string()
}

/// One connection.
struct Uploader {
    stream: TcpStream,
    input: Vec<u8>,
    host: String,
    token: String,
    chunk: Vec<u8>,
    digest: String,
    /// The digest of the whole file.
    whole: String,
    chunks: u64,
    /// What tells its files from those of other connections and runs.
    name: String,
}

/// What came back.
struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Uploader {
    /// Uploads one file after the other until the window ends.
    async fn upload_on(mut self, way: (Dialect, Front), window: Window) -> Tally {
        let mut tally = Tally::new(window);
        let mut file = 0_u64;
        while now() < window.until {
            file += 1;
            if let Err(error) = self.upload(way, file, window, &mut tally).await {
                tally.errors.add(&error.to_string(), 1);
                break;
            }
        }
        tally
    }

    /// Sends one chunk slowly until the window ends.
    async fn hold_open(mut self, way: (Dialect, Front), window: Window) -> Tally {
        let mut tally = Tally::new(window);
        if let Err(error) = self.dribble(way, window, &mut tally).await {
            tally.errors.add(&error.to_string(), 1);
        }
        tally
    }

    async fn dribble(&mut self, way: (Dialect, Front), window: Window, tally: &mut Tally) -> Result<()> {
        let (path, headers) = match way {
            (Dialect::Driftline, Front::Native) => {
                (format!("{}/chunk/0", self.open().await?), format!("x-chunk-sha256: {}\r\n", self.digest))
            }
            (Dialect::Driftline, Front::Tus) => (self.create().await?, tus_headers(0)),
            (Dialect::Plain, _) => bail!("the plain dialect has no slow uploads"),
        };
        let method = if way.1 == Front::Tus { "PATCH" } else { "PUT" };
        self.begin(method, &path, &headers, CHUNK_BYTES).await?;
        for piece in self.chunk.chunks(SLOW.0) {
            let due = now();
            if due >= window.until {
                break;
            }
            self.stream.write_all(piece).await?;
            tally.done(due, now(), 1);
            tokio::time::sleep(SLOW.1).await;
        }
        Ok(())
    }

    async fn upload(
        &mut self,
        (dialect, front): (Dialect, Front),
        file: u64,
        window: Window,
        tally: &mut Tally,
    ) -> Result<()> {
        let place = match (dialect, front) {
            (Dialect::Plain, _) => format!("/up/{}-{file}", self.name),
            (Dialect::Driftline, Front::Native) => self.open().await?,
            (Dialect::Driftline, Front::Tus) => self.create().await?,
        };
        for index in 0..self.chunks {
            let due = now();
            if due >= window.until {
                return Ok(());
            }
            let at = index * CHUNK_BYTES as u64;
            let (method, path, headers) = match (dialect, front) {
                (Dialect::Plain, _) => {
                    let last = if index + 1 == self.chunks { "x-last: 1\r\n" } else { "" };
                    ("PUT", format!("{place}/{at}"), format!("x-sha256: {}\r\n{last}", self.digest))
                }
                (Dialect::Driftline, Front::Native) => {
                    ("PUT", format!("{place}/chunk/{index}"), format!("x-chunk-sha256: {}\r\n", self.digest))
                }
                (Dialect::Driftline, Front::Tus) => ("PATCH", place.clone(), tus_headers(at)),
            };
            let chunk = std::mem::take(&mut self.chunk);
            let answer = self.ask(method, &path, &headers, &chunk).await;
            self.chunk = chunk;
            let answer = answer?;
            ensure!(matches!(answer.status, 200 | 204), "chunk refused: {}", answer.status);
            tally.done(due, now(), 1);
        }
        if (dialect, front) == (Dialect::Driftline, Front::Native) {
            let body = format!("{{\"sha256\":\"{}\"}}", self.whole);
            let done = self.ask("POST", &format!("{place}/finalize"), JSON, body.as_bytes()).await?;
            ensure!(done.status == 200, "finalizing refused: {}", done.status);
        }
        Ok(())
    }

    async fn open(&mut self) -> Result<String> {
        let size = self.chunks * CHUNK_BYTES as u64;
        let body = format!("{{\"filename\":\"bench\",\"size\":{size}}}");
        let opened = self.ask("POST", "/api/v1/uploads/init", JSON, body.as_bytes()).await?;
        ensure!(opened.status == 201, "opening refused: {}", opened.status);
        let doc: serde_json::Value = serde_json::from_slice(&opened.body)?;
        ensure!(doc["chunk_size"] == CHUNK_BYTES, "the server takes chunks of another length");
        Ok(format!("/api/v1/uploads/{}", doc["upload_id"].as_str().context("no upload")?))
    }

    async fn create(&mut self) -> Result<String> {
        let size = self.chunks * CHUNK_BYTES as u64;
        let headers = format!("tus-resumable: 1.0.0\r\nupload-length: {size}\r\n");
        let created = self.ask("POST", "/files", &headers, b"").await?;
        ensure!(created.status == 201, "creating refused: {}", created.status);
        let place = header(&created.head, "location").context("no place")?;
        // It may be told with the host.
        Ok(place.split_once("://").map_or(place, |(_, rest)| &rest[rest.find('/').unwrap_or(0)..]).to_owned())
    }

    /// Sends the head of a request whose body has so many bytes.
    async fn begin(&mut self, method: &str, path: &str, headers: &str, bytes: usize) -> Result<()> {
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {}\r\n{headers}", self.host);
        if !self.token.is_empty() {
            write!(head, "authorization: Bearer {}\r\n", self.token)?;
        }
        write!(head, "content-length: {bytes}\r\n\r\n")?;
        Ok(self.stream.write_all(head.as_bytes()).await?)
    }

    async fn ask(&mut self, method: &str, path: &str, headers: &str, body: &[u8]) -> Result<Answer> {
        self.begin(method, path, headers, body.len()).await?;
        self.stream.write_all(body).await?;
        loop {
            if let Some((answer, len)) = read(&self.input)? {
                self.input.drain(..len);
                return Ok(answer);
            }
            ensure!(self.stream.read_buf(&mut self.input).await? > 0, "the connection ended");
        }
    }
}

/// Reads an answer from the beginning of what came, and tells how long it is; none while more has to come.
fn read(input: &[u8]) -> Result<Option<(Answer, usize)>> {
    let Some(end) = input.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let head = String::from_utf8(input[..end].to_vec())?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).context("no status")?;
    let is_chunked =
        header(&head, "transfer-encoding").is_some_and(|name| name.eq_ignore_ascii_case("chunked"));
    let rest = &input[end + 4..];
    let body = if is_chunked {
        chunks(rest)?
    } else {
        let len = header(&head, "content-length").map_or(Ok(0), str::parse)?;
        rest.get(..len).map(|body| (body.to_vec(), len))
    };
    Ok(body.map(|(body, len)| (Answer { status, head, body }, end + 4 + len)))
}

/// Reads a body that comes in chunks without trailers (RFC 9112, 7.1), and tells how many bytes they take; none while more
/// has to come.
fn chunks(input: &[u8]) -> Result<Option<(Vec<u8>, usize)>> {
    let (mut body, mut at) = (Vec::new(), 0);
    loop {
        let Some(line) = input[at..].windows(2).position(|two| two == b"\r\n") else { return Ok(None) };
        let told = std::str::from_utf8(&input[at..at + line])?;
        let len = usize::from_str_radix(told.split(';').next().unwrap_or(told).trim(), 16)?;
        let begin = at + line + 2;
        let Some(chunk) = begin.checked_add(len).and_then(|end| input.get(begin..end)) else {
            return Ok(None);
        };
        at = begin + len;
        let Some(end) = input.get(at..at + 2) else { return Ok(None) };
        ensure!(end == b"\r\n", "a chunk of an answer is longer than it says");
        at += 2;
        if len == 0 {
            return Ok(Some((body, at)));
        }
        body.extend_from_slice(chunk);
    }
}

const JSON: &str = "content-type: application/json\r\n";

fn tus_headers(at: u64) -> String {
    format!(
        "tus-resumable: 1.0.0\r\ncontent-type: application/offset+octet-stream\r\nupload-offset: {at}\r\n"
    )
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut headers = head.lines().filter_map(|line| line.split_once(':'));
    headers.find(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_found_and_files_hashed() {
        let head = "HTTP/1.1 201 Created\r\nLocation: /files/x\r\ncontent-length: 0";
        assert_eq!((header(head, "location"), header(head, "etag")), (Some("/files/x"), None));
        assert_eq!(whole(b"ab", 3), Digest::hash(b"ababab").to_string());
    }

    #[test]
    fn answers_are_read_when_they_are_whole() {
        let plain = "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc";
        let chunked =
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n2;x=y\r\nbc\r\n0\r\n\r\n";
        let bare = "HTTP/1.1 200 OK\r\n\r\n";
        for (text, body) in [(plain, "abc"), (chunked, "abc"), (bare, "")] {
            for cut in 0..text.len() {
                assert!(read(&text.as_bytes()[..cut]).unwrap().is_none(), "{cut} of {text}");
            }
            let (answer, len) = read(format!("{text}HTTP/1.1").as_bytes()).unwrap().unwrap();
            assert_eq!((answer.status, answer.body.as_slice(), len), (200, body.as_bytes(), text.len()));
        }
        let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        for bad in ["x\r\n", "1\r\nabc", "-1\r\n"] {
            assert!(read(format!("{head}{bad}").as_bytes()).is_err(), "{bad}");
        }
        // A length that does not fit never comes.
        assert!(read(format!("{head}{:x}\r\n", usize::MAX).as_bytes()).unwrap().is_none());
    }
}
