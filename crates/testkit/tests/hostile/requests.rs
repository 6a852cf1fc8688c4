//! Requests over HTTP that are none, or that are too much.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use driftline_testkit::http::Response;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpSocket, TcpStream};

use crate::documents::bomb;
use crate::peer::named;
use crate::scene::{Attack, MIB, Site, address};

const SOCKETS: usize = 64;
const LARGE: usize = 16;

/// Sends bytes on a connection of their own, and reads up to so many answers: what each says, or that the connection
/// was closed.
async fn answers(site: &Site, bytes: &[u8], count: usize) -> String {
    let mut stream = TcpStream::connect(site.address).await.expect("a server listens");
    // A server that refuses early may stop reading; what it answered is still to be read.
    let _ = stream.write_all(bytes).await;
    heard(&mut stream, count).await
}

async fn heard(stream: &mut TcpStream, count: usize) -> String {
    let (mut buffer, mut heard) = (Vec::new(), Vec::new());
    while heard.len() < count {
        let Some(response) = Response::read(stream, &mut buffer).await else {
            heard.push("closed".to_owned());
            break;
        };
        heard.push(named(&response));
    }
    heard.join(", ")
}

/// An attack by one request.
fn request(
    name: &'static str,
    sockets: usize,
    wanted: &'static str,
    make: impl Fn(&Site, usize) -> Vec<u8> + Send + Sync + 'static,
) -> Attack {
    let make = Arc::new(make);
    Attack::new(name, sockets, wanted, move |site, attacker| {
        let make = Arc::clone(&make);
        async move { answers(&site, &make(&site, attacker), 1).await }
    })
}

/// A request to push, with its body under these headers.
fn post(site: &Site, attacker: usize, headers: &str, body: &[u8]) -> Vec<u8> {
    let (token, host) = (site.token(attacker), site.address);
    let head = format!(
        "POST /api/v1/sync?device_id=h-{attacker} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {token}\r\n\
         content-type: application/json\r\n{headers}\r\n"
    );
    [head.as_bytes(), body].concat()
}

fn whole(site: &Site, attacker: usize, headers: &str, body: &[u8]) -> Vec<u8> {
    post(site, attacker, &format!("content-length: {}\r\n{headers}", body.len()), body)
}

/// A stream of zstd (RFC 8878) made by hand: one frame without a checksum, whose window descriptor is given, of blocks
/// that each say: this byte, 128 Ki times.
fn zstd(window: u8, blocks: usize) -> Vec<u8> {
    let mut stream = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, window];
    for at in 1..=blocks {
        let head = (128_u32 << 10) << 3 | 1 << 1 | u32::from(at == blocks);
        stream.extend(&head.to_le_bytes()[..3]);
        stream.push(b' ');
    }
    stream
}

/// A window of 128 KiB, and one of 2 TiB.
const WINDOW: u8 = 7 << 3;
const WINDOW_HUGE: u8 = 31 << 3;

/// Heads that are too large or mean two things.
pub(crate) fn heads() -> Vec<Attack> {
    let get = |site: &Site, headers: &str| {
        format!("GET /alive HTTP/1.1\r\nhost: {}\r\n{headers}\r\n", site.address)
    };
    vec![
        request("head of 64 KiB", SOCKETS, "431", move |site, _| {
            get(site, &format!("x-filler: {}\r\n", "x".repeat(64 << 10))).into_bytes()
        }),
        request("target of 64 KiB", SOCKETS, "431", |site, _| {
            format!("GET /alive?{} HTTP/1.1\r\nhost: {}\r\n\r\n", "x".repeat(64 << 10), site.address)
                .into_bytes()
        })
        .or(&[("431", 0), ("414", 0)]),
        request("1,000 headers", SOCKETS, "431", move |site, _| {
            get(site, &"a: b\r\n".repeat(1000)).into_bytes()
        }),
        request("two hosts over HTTP", SOCKETS, "400 VALIDATION_ERROR", move |site, _| {
            get(site, "host: other.example\r\n").into_bytes()
        }),
        request("no host", SOCKETS, "400 VALIDATION_ERROR", |_, _| b"GET /alive HTTP/1.1\r\n\r\n".to_vec()),
        // The chunks decide, and nothing behind them is taken for a request (RFC 9112 §6.1).
        Attack::new("length beside chunks", SOCKETS, "200, closed", |site, attacker| async move {
            let headers = "content-length: 4\r\ntransfer-encoding: chunked\r\n";
            let chunked = post(&site, attacker, headers, b"2\r\n{}\r\n0\r\n\r\n");
            let next = format!("GET /alive HTTP/1.1\r\nhost: {}\r\n\r\n", site.address);
            answers(&site, &[&chunked, next.as_bytes()].concat(), 2).await
        }),
        request("negative length", SOCKETS, "400", |site, attacker| {
            post(site, attacker, "content-length: -1\r\n", b"{}")
        }),
        request("two lengths", SOCKETS, "400", |site, attacker| {
            post(site, attacker, "content-length: 2\r\ncontent-length: 3\r\n", b"{}")
        }),
        Attack::new("noise behind a request", SOCKETS, "200, 400", |site, _| async move {
            let get =
                format!("GET /alive HTTP/1.1\r\nhost: {}\r\n\r\n\x00\x01\x02 noise\r\n\r\n", site.address);
            answers(&site, get.as_bytes(), 2).await
        }),
    ]
}

/// Bodies that are too much.
pub(crate) fn bodies() -> Vec<Attack> {
    const TOO_LARGE: &str = "413 MESSAGE_TOO_LARGE";
    let gzip = [&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff][..], &bomb(MIB - 4096)].concat();
    let deep = "[".repeat(100_000) + &"]".repeat(100_000);
    vec![
        request("body of 1 MiB + 1", LARGE, TOO_LARGE, |site, attacker| {
            whole(site, attacker, "", &vec![b' '; MIB + 1])
        }),
        request("declared body of 2^63-1", SOCKETS, TOO_LARGE, |site, attacker| {
            post(site, attacker, &format!("content-length: {}\r\n", i64::MAX), b"{")
        }),
        request("gzip of 1 MiB that inflates to 1 GiB", LARGE / 2, TOO_LARGE, move |site, attacker| {
            whole(site, attacker, "content-encoding: gzip\r\n", &gzip)
        }),
        request("zstd of 32 KiB that inflates to 1 GiB", LARGE, TOO_LARGE, |site, attacker| {
            whole(site, attacker, "content-encoding: zstd\r\n", &zstd(WINDOW, 8192))
        }),
        request("zstd that claims a window of 2 TiB", SOCKETS, "400 JSON_DECODE_ERROR", |site, attacker| {
            whole(site, attacker, "content-encoding: zstd\r\n", &zstd(WINDOW_HUGE, 1))
        }),
        request("body of JSON 100,000 deep", SOCKETS, "400 JSON_DECODE_ERROR", move |site, attacker| {
            whole(site, attacker, "", deep.as_bytes())
        }),
        request("chunk of 2^64 bytes", SOCKETS, "400 JSON_DECODE_ERROR", |site, attacker| {
            post(site, attacker, "transfer-encoding: chunked\r\n", b"10000000000000000\r\n{}")
        }),
        Attack::new("body of a stranger, never sent", SOCKETS, "401 UNAUTHORIZED", stranger),
        request("chunks without end", LARGE, TOO_LARGE, |site, attacker| {
            let chunk = [&b"10000\r\n"[..], &[b' '; 0x1_0000], b"\r\n"].concat();
            post(site, attacker, "transfer-encoding: chunked\r\n", &chunk.repeat(17))
        }),
    ]
}

/// Declares a body without a token, from an address that has not failed before, and sends nothing of it.
async fn stranger(site: Arc<Site>, attacker: usize) -> String {
    let socket = TcpSocket::new_v4().expect("the system makes a socket");
    let source = SocketAddr::new(address(5, attacker), 0);
    socket.bind(source).expect("the address is one of this machine's");
    let mut stream = socket.connect(site.address).await.expect("a server listens");
    let head = "POST /api/v1/sync HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000000\r\n\r\n";
    stream.write_all(head.as_bytes()).await.expect("the server reads a head");
    heard(&mut stream, 1).await
}

/// Who sends nothing, or too little; the times of the server are short.
pub(crate) fn slow() -> Vec<Attack> {
    const LATE: &str = "408 HEARTBEAT_TIMEOUT";
    vec![
        request("silent connection", 128, "closed", |_, _| Vec::new()),
        Attack::new("head by a byte each 100 ms", SOCKETS, LATE, |site, _| async move {
            dribble(&site, b"", &b"GET /alive HTTP/1.1\r\nx: ".repeat(20)).await
        }),
        Attack::new("silent after an answer", SOCKETS, "200, closed", |site, _| async move {
            let get = format!("GET /alive HTTP/1.1\r\nhost: {}\r\n\r\n", site.address);
            answers(&site, get.as_bytes(), 2).await
        }),
        request("body declared and never sent", SOCKETS, LATE, |site, attacker| {
            post(site, attacker, "content-length: 1000\r\n", b"")
        }),
        request("body begun and never ended", SOCKETS, LATE, |site, attacker| {
            post(site, attacker, "content-length: 1000\r\n", b"{\"batch\":[")
        }),
        Attack::new("body by a byte each 100 ms, then nothing", SOCKETS, LATE, |site, attacker| async move {
            let head = post(&site, attacker, "content-length: 1000\r\n", b"");
            dribble(&site, &head, b"{\"batch\":[").await
        }),
        request("chunk begun and never ended", SOCKETS, LATE, |site, attacker| {
            post(site, attacker, "transfer-encoding: chunked\r\n", b"ff\r\n{")
        }),
    ]
}

/// Sends one byte after the other until something comes back.
async fn dribble(site: &Site, first: &[u8], then: &[u8]) -> String {
    let mut stream = TcpStream::connect(site.address).await.expect("a server listens");
    let _ = stream.write_all(first).await;
    let mut pace = tokio::time::interval(Duration::from_millis(100));
    for byte in then {
        tokio::select! {
            biased;
            _ = stream.readable() => break,
            _ = pace.tick() => {
                let _ = stream.write_all(&[*byte]).await;
            }
        }
    }
    heard(&mut stream, 1).await
}

/// Who asks for much and takes nothing of the answers.
pub(crate) fn never_read() -> Attack {
    const ASKED: usize = 64;
    Attack::new("answers that are never taken", LARGE, "closed", |site, attacker| async move {
        let get = format!(
            "GET /api/v1/records/large?limit=500 HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {}\r\n\r\n",
            site.address,
            site.token(attacker)
        );
        let mut stream = TcpStream::connect(site.address).await.expect("a server listens");
        let _ = stream.write_all(get.repeat(ASKED).as_bytes()).await;
        site.until_counted("driftline_slow_consumers_total", LARGE as u64).await;
        let told = heard(&mut stream, ASKED).await;
        // How many answers the kernel had taken is its own affair.
        told.rsplit(", ").next().unwrap_or_default().to_owned()
    })
}

/// More connections than the node takes; the first of them hold their places until their time is over.
pub(crate) fn crowd() -> Attack {
    request("200 connections at once", 200, "503 SERVER_DRAINING", |_, _| Vec::new())
        .or(&[("503 SERVER_DRAINING", 100), ("closed", 1)])
}
