//! Connections as the wire brings them: slow, silent, doubled, out of order, too many.

mod support;

use std::net::SocketAddr;
use std::time::Duration;

use driftline_model::Limits;
use driftline_testkit::http::{Request, Response, soon};
use driftline_testkit::socket::Handshake;
use serde_json::json;
use support::{Harness, create, socket_path, start_limited, token, until};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

/// Times that no test waits for, unless it sets one of them shorter.
fn patient(limits: &mut Limits) {
    limits.header_ms = 60_000;
    limits.idle_ms = 60_000;
    limits.write_ms = 60_000;
    limits.body_frame_ms = 60_000;
}

async fn connect(address: SocketAddr) -> TcpStream {
    TcpStream::connect(address).await.expect("a server listens")
}

/// Sends bytes on a connection of their own.
async fn send(address: SocketAddr, bytes: &str) -> TcpStream {
    let mut stream = connect(address).await;
    // The server may stop reading before the end.
    let _ = soon("room", stream.write_all(bytes.as_bytes())).await;
    stream
}

/// Reads until the server closes in order; a reset is none.
async fn rest(stream: &mut TcpStream) -> String {
    let mut said = Vec::new();
    soon("the end", stream.read_to_end(&mut said)).await.expect("no reset");
    String::from_utf8_lossy(&said).into_owned()
}

async fn answer(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Response {
    Response::read(stream, buffer).await.expect("an answer comes")
}

/// Sends bytes and gives the one answer, after which the server closes.
async fn only_answer(harness: &Harness, bytes: &str) -> Response {
    let mut stream = send(harness.address, bytes).await;
    let mut buffer = Vec::new();
    let response = answer(&mut stream, &mut buffer).await;
    assert!(buffer.is_empty(), "more than one answer: {}", String::from_utf8_lossy(&buffer));
    assert_eq!(rest(&mut stream).await, "", "more than one answer");
    response
}

// Times.

#[tokio::test]
async fn who_sends_nothing_is_let_go() {
    let harness = start_limited(|limits| {
        patient(limits);
        limits.header_ms = 150;
    })
    .await;
    assert_eq!(rest(&mut connect(harness.address).await).await, "");
    harness.serves().await;
}

#[tokio::test]
async fn a_head_that_trickles_is_answered_408() {
    let harness = start_limited(|limits| {
        patient(limits);
        limits.header_ms = 150;
    })
    .await;
    let mut stream = send(harness.address, "GET /alive HTTP/1.1\r\nhost: a\r\nx-").await;
    let (mut read, mut write) = stream.split();
    // A byte now and then keeps nothing alive.
    let trickle = async {
        let mut tick = tokio::time::interval(std::time::Duration::from_millis(20));
        loop {
            tick.tick().await;
            if write.write_all(b"a").await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    let mut buffer = Vec::new();
    let response = tokio::select! {
        response = Response::read(&mut read, &mut buffer) => response.expect("an answer comes"),
        () = trickle => unreachable!("it does not end"),
    };
    assert_eq!((response.status, response.code().as_str()), (408, "HEARTBEAT_TIMEOUT"));
    assert_eq!(response.header("connection"), Some("close"));
}

#[tokio::test]
async fn a_later_head_has_its_time_too() {
    let harness = start_limited(|limits| {
        patient(limits);
        limits.header_ms = 150;
    })
    .await;
    let mut stream = send(harness.address, "GET /alive HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let mut buffer = Vec::new();
    assert_eq!(answer(&mut stream, &mut buffer).await.status, 200);
    stream.write_all(b"GET /alive HTT").await.expect("the connection stays");
    assert_eq!(answer(&mut stream, &mut buffer).await.status, 408);
    assert_eq!(rest(&mut stream).await, "");
}

#[tokio::test]
async fn an_idle_connection_is_let_go() {
    let harness = start_limited(|limits| {
        patient(limits);
        limits.idle_ms = 1_000;
    })
    .await;
    let mut stream = connect(harness.address).await;
    let mut buffer = Vec::new();
    for _ in 0..3 {
        stream.write_all(b"GET /alive HTTP/1.1\r\nhost: a\r\n\r\n").await.expect("the connection stays");
        assert_eq!(answer(&mut stream, &mut buffer).await.status, 200);
    }
    assert_eq!(rest(&mut stream).await, "");
}

#[tokio::test]
async fn a_body_that_pauses_is_answered_408() {
    let harness = start_limited(|limits| {
        patient(limits);
        limits.body_frame_ms = 150;
    })
    .await;
    let head = format!(
        "POST /api/v1/sync?device_id=d1&token={} HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\n{{",
        token("t1", "ada")
    );
    let response = only_answer(&harness, &head).await;
    assert_eq!((response.status, response.code().as_str()), (408, "HEARTBEAT_TIMEOUT"));
}

#[tokio::test]
async fn a_body_that_dribbles_does_not_come_for_ever() {
    let harness = start_limited(|limits| {
        patient(limits);
        limits.body_frame_ms = 200;
    })
    .await;
    let head = format!(
        "POST /api/v1/sync?device_id=d1&token={} HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\n{{",
        token("t1", "ada")
    );
    let mut stream = send(harness.address, &head).await;
    let mut buffer = Vec::new();
    let dribble = async {
        let (mut read, mut write) = stream.split();
        let mut pause = tokio::time::interval(Duration::from_millis(20));
        let mut said = [0; 1024];
        loop {
            tokio::select! {
                count = read.read(&mut said) => break buffer.extend_from_slice(&said[..count.expect("an answer")]),
                _ = pause.tick() => write.write_all(b" ").await.expect("the server reads"),
            }
        }
    };
    soon("the answer", dribble).await;
    let response = answer(&mut stream, &mut buffer).await;
    assert_eq!((response.status, response.code().as_str()), (408, "HEARTBEAT_TIMEOUT"));
}

#[tokio::test]
async fn an_answer_that_nobody_takes_ends_the_connection() {
    let harness = start_limited(|limits| {
        patient(limits);
        limits.write_ms = 150;
    })
    .await;
    let text = "x".repeat(60_000);
    let items: Vec<_> = (1..=8).map(|n| create(n, "note", &format!("n-{n}"), &json!({"t": text}))).collect();
    harness.push("w", &items).await;
    let cuts = "driftline_slow_consumers_total";
    let before = harness.counted(cuts).await;
    let socket = TcpSocket::new_v4().expect("the system makes a socket");
    socket.set_recv_buffer_size(4096).expect("the size is accepted");
    let mut stream = socket.connect(harness.address).await.expect("a server listens");
    let request =
        format!("GET /api/v1/records/note?token={} HTTP/1.1\r\nhost: a\r\n\r\n", token("t1", "ada"));
    // Answers of 16 MiB are more than the kernel keeps.
    stream.write_all(request.repeat(40).as_bytes()).await.expect("the server reads");
    until("the cut", async || harness.counted(cuts).await == before + 1).await;
    let mut said = Vec::new();
    let ended = soon("the end", stream.read_to_end(&mut said)).await;
    assert!(ended.is_err() || said.len() < 40 * items.len() * text.len(), "it was all taken");
}

// Heads.

#[tokio::test]
async fn a_handshake_is_a_get() {
    let harness = start_limited(patient).await;
    let request = format!(
        "HEAD {} HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
         sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        socket_path("t1", "ada", "d1")
    );
    let mut stream = send(harness.address, &request).await;
    let mut status = [0; 12];
    soon("the status", stream.read_exact(&mut status)).await.expect("an answer");
    assert_eq!(std::str::from_utf8(&status), Ok("HTTP/1.1 400"));
}

#[tokio::test]
async fn a_head_has_a_size_and_a_number_of_headers() {
    let harness = start_limited(patient).await;
    let head = |pad: usize| {
        format!("GET /alive HTTP/1.1\r\nhost: a\r\nconnection: close\r\nx-pad: {}\r\n\r\n", "x".repeat(pad))
    };
    let bytes_max = Limits::default().header_bytes;
    assert_eq!(only_answer(&harness, &head(bytes_max - head(0).len())).await.status, 200);
    assert_eq!(only_answer(&harness, &head(bytes_max)).await.status, 431);
    let many = |count: usize| {
        let headers: String = (0..count - 2).map(|n| format!("x-{n}: 1\r\n")).collect();
        format!("GET /alive HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{headers}\r\n")
    };
    assert_eq!(only_answer(&harness, &many(64)).await.status, 200);
    assert_eq!(only_answer(&harness, &many(65)).await.status, 431);
}

#[tokio::test]
async fn a_request_names_one_host_on_every_path() {
    let harness = start_limited(patient).await;
    for path in ["/alive", "/api/v1/changes", "/ws/mobile/sync", "/nowhere"] {
        for host in
            ["", "host: a\r\nhost: a\r\n", "host: a b\r\n", "host: u@a\r\n", "host: a/b\r\n", "host:\r\n"]
        {
            let head = format!("GET {path} HTTP/1.1\r\n{host}connection: close\r\n\r\n");
            let response = only_answer(&harness, &head).await;
            assert_eq!((response.status, response.code().as_str()), (400, "VALIDATION_ERROR"), "{head}");
        }
    }
    for host in ["a", "a:80", "127.0.0.1:1", "[::1]:8000"] {
        let head = format!("GET /alive HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        assert_eq!(only_answer(&harness, &head).await.status, 200, "{host}");
    }
}

#[tokio::test]
async fn older_and_longer_ways_to_ask_are_understood() {
    let harness = start_limited(patient).await;
    let old = only_answer(&harness, "GET /alive HTTP/1.0\r\n\r\n").await;
    assert_eq!((old.status, old.json()["status"].as_str()), (200, Some("alive")));
    let absolute = "GET http://a.example/alive HTTP/1.1\r\nhost: a.example\r\nconnection: close\r\n\r\n";
    assert_eq!(only_answer(&harness, absolute).await.status, 200);
    let with_body = "GET /alive HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello";
    assert_eq!(only_answer(&harness, with_body).await.status, 200);
    let head = "HEAD /alive HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    let mut stream = send(harness.address, head).await;
    let said = rest(&mut stream).await;
    assert!(said.starts_with("HTTP/1.1 200") && said.ends_with("\r\n\r\n"), "{said}");
}

#[tokio::test]
async fn who_asks_before_sending_is_told_to_go_on_or_is_refused_at_once() {
    let harness = start_limited(patient).await;
    let head = |token: &str, len: usize| {
        format!(
            "POST /api/v1/sync?device_id=d1&token={token} HTTP/1.1\r\nhost: a\r\ncontent-length: {len}\r\n\
             expect: 100-continue\r\nconnection: close\r\n\r\n"
        )
    };
    let known = token("t1", "ada");
    let mut stream = send(harness.address, &head(&known, 2)).await;
    let mut buffer = vec![0; "HTTP/1.1 100 Continue\r\n\r\n".len()];
    soon("a word", stream.read_exact(&mut buffer)).await.expect("it goes on");
    assert_eq!(buffer, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"{}").await.expect("it reads");
    assert_eq!(answer(&mut stream, &mut Vec::new()).await.status, 200);

    assert_eq!(only_answer(&harness, &head("nobody", 2)).await.status, 401);
    assert_eq!(only_answer(&harness, &head(&known, 2 << 20)).await.status, 413);
}

/// Whatever stands behind a body whose length is told twice is never taken for a request.
#[tokio::test]
async fn lengths_that_disagree_smuggle_nothing() {
    let harness = start_limited(patient).await;
    let smuggled = "GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n";
    let post = format!("POST /api/v1/sync?device_id=d1&token={} HTTP/1.1\r\nhost: a\r\n", token("t1", "ada"));
    let table = [
        (format!("content-length: 2\r\ncontent-length: 7\r\n\r\n{{}}{smuggled}"), 400),
        (format!("transfer-encoding: gzip\r\n\r\n{{}}{smuggled}"), 400),
        (format!("content-length: x\r\n\r\n{{}}{smuggled}"), 400),
        // Chunks win, and the connection ends with the answer (RFC 9112 §6.1).
        (
            format!(
                "content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n{smuggled}"
            ),
            200,
        ),
        (
            format!(
                "transfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n{smuggled}"
            ),
            200,
        ),
        (format!("transfer-encoding: chunked\r\n\r\nzz\r\n{{}}\r\n0\r\n\r\n{smuggled}"), 400),
    ];
    for (rest, status) in table {
        let response = only_answer(&harness, &format!("{post}{rest}")).await;
        assert_eq!(response.status, status, "{rest}");
    }
}

#[tokio::test]
async fn requests_in_a_row_are_answered_in_their_order() {
    let harness = start_limited(patient).await;
    let mut all = String::new();
    for n in 0..20 {
        all.push_str(&format!("GET /none HTTP/1.1\r\nhost: a\r\nx-correlation-id: n{n}\r\n\r\n"));
    }
    let mut stream = send(harness.address, &all).await;
    let mut buffer = Vec::new();
    for n in 0..20 {
        let response = answer(&mut stream, &mut buffer).await;
        assert_eq!(response.header("x-correlation-id"), Some(format!("n{n}").as_str()));
    }
}

// Admission.

#[tokio::test]
async fn a_full_node_says_so_at_both_doors() {
    let harness = start_limited(|limits| {
        patient(limits);
        limits.connections = 2;
    })
    .await;
    let refused = "driftline_connections_refused_total";
    let before = harness.counted(refused).await;
    let mut sessions = Vec::new();
    for n in 0..2 {
        sessions.push(harness.device(&format!("d{n}")).await);
    }
    let third = Handshake::new(&socket_path("t1", "ada", "d3")).send(harness.address).await;
    let third = third.expect_err("there is no place");
    assert_eq!((third.status, third.code().as_str()), (503, "SERVER_DRAINING"));
    assert_eq!(third.header("retry-after"), Some("1"));
    for path in ["/alive", "/ready", "/metrics"] {
        assert_eq!(Request::get(path).send(harness.address).await.status, 200, "{path}");
    }
    assert_eq!(harness.counted(refused).await, before + 1);

    // Sixteen more may stand beside two sessions; the next is told so, whatever it sends.
    let mut idle = Vec::new();
    let said = loop {
        assert!(idle.len() <= 16, "nobody is refused");
        let mut stream = send(harness.address, "GET /alive HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let response = answer(&mut stream, &mut Vec::new()).await;
        if response.status != 200 {
            assert_eq!(rest(&mut stream).await, "");
            break response;
        }
        idle.push(stream);
    };
    assert_eq!((said.status, said.code().as_str()), (503, "SERVER_DRAINING"));
    assert_eq!((said.header("retry-after"), said.header("connection")), (Some("1"), Some("close")));
    assert!(
        said.header("x-correlation-id")
            .is_some_and(|name| Some(name) == said.json()["correlation_id"].as_str())
    );
    assert!(idle.len() >= 8, "{} beside the sessions", idle.len());
    // Whoever asks for an offset hears nothing, and so asks again: refused, it would begin its upload anew.
    let mut head = send(harness.address, "HEAD /files/x HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!(rest(&mut head).await, "");
    let mut large =
        send(harness.address, &format!("POST /alive HTTP/1.1\r\n\r\n{}", "x".repeat(100_000))).await;
    assert_eq!(answer(&mut large, &mut Vec::new()).await.status, 503, "it can be read behind what was sent");

    drop(idle);
    until("room", async || Request::get("/alive").send(harness.address).await.status == 200).await;
    assert!(harness.counted(refused).await >= before + 3);
}
