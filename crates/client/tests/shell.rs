//! The shell, against a peer that plays a server over a pipe in memory.
#![allow(clippy::unwrap_used, reason = "a test and its helpers")]

mod common;

use std::io;
use std::time::Duration;

use base64::Engine as _;
use common::{SYNC_ID, ack, create, page, put, result};
use driftline_client::{
    Client, ClientError, Clock, Connector, DeviceId, Encoding, Endpoint, Event, Form, Replica, SystemClock,
    SystemRandom, World,
};
use driftline_protocol::{Deflater, Inflater, json_of_msgpack, msgpack_of_json};
use fastwebsockets::{Frame, OpCode, Payload, Role, WebSocket};
use sha1::{Digest as _, Sha1};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::sync::mpsc;

const SOON: Duration = Duration::from_secs(10);

/// Gives the other end of each connection to the test.
struct Pipes(mpsc::Sender<DuplexStream>);

impl Connector for Pipes {
    type Stream = DuplexStream;

    async fn connect(&self, authority: &str) -> io::Result<DuplexStream> {
        assert_eq!(authority, "server.test:80");
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        self.0.send(theirs).await.map_err(|_| io::ErrorKind::ConnectionRefused)?;
        Ok(ours)
    }
}

/// A clock that runs ten times as fast.
struct FastClock;

impl Clock for FastClock {
    fn now_ms(&self) -> u64 {
        SystemClock.now_ms() * 10
    }

    async fn sleep(&self, duration: Duration) {
        SystemClock.sleep(duration / 10).await;
    }
}

type PipeWorld = World<Pipes, SystemClock, SystemRandom>;

fn world() -> (PipeWorld, mpsc::Receiver<DuplexStream>) {
    let (sender, receiver) = mpsc::channel(4);
    (World::new(Pipes(sender), SystemClock, SystemRandom), receiver)
}

fn endpoint() -> Endpoint {
    Endpoint::new("ws://server.test", "to.k.en", DeviceId::new("phone 1").unwrap()).unwrap()
}

/// Reads a request's head; returns it with the right `Sec-WebSocket-Accept`.
async fn head(stream: &mut DuplexStream) -> (String, String) {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        bytes.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(bytes).unwrap();
    let key = head.lines().find_map(|line| line.strip_prefix("sec-websocket-key: ")).unwrap();
    let digest = Sha1::digest(format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11"));
    let accept = base64::engine::general_purpose::STANDARD.encode(digest);
    (head, accept)
}

/// The server's side of one connection, with the form that it chose.
struct Peer(WebSocket<DuplexStream>, Form);

impl Peer {
    /// Names no subprotocol, which stands for JSON.
    async fn accept(pipes: &mut mpsc::Receiver<DuplexStream>) -> Self {
        let offered = "driftline.v1.msgpack+deflate, driftline.v1.msgpack, driftline.v1.json+deflate, driftline.v1.json";
        Self::accept_as(pipes, offered, None).await
    }

    async fn accept_as(
        pipes: &mut mpsc::Receiver<DuplexStream>,
        offered: &str,
        chosen: Option<&str>,
    ) -> Self {
        let mut stream = pipes.recv().await.unwrap();
        let (head, accept) = head(&mut stream).await;
        assert!(head.starts_with("GET /ws/mobile/sync?device_id=phone%201 HTTP/1.1\r\n"), "{head}");
        for line in [
            "host: server.test:80",
            "authorization: Bearer to.k.en",
            &format!("sec-websocket-protocol: {offered}"),
        ] {
            assert!(head.contains(&format!("{line}\r\n")), "{head}");
        }
        let named = chosen.map(|name| format!("Sec-WebSocket-Protocol: {name}\r\n")).unwrap_or_default();
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n{named}Sec-WebSocket-Accept: {accept}\r\n\r\n"
        );
        stream.write_all(answer.as_bytes()).await.unwrap();
        let form = chosen.and_then(Form::of_subprotocol).unwrap_or_default();
        Self(WebSocket::after_handshake(stream, Role::Server), form)
    }

    async fn greet(&mut self) {
        self.send(
            r#"{"type":"connection_established","message":"","connection_id":"c","user_id":"u","role":"staff",
                "roles":[],"device_id":"phone 1","tenant":"t","features":{"encodings":["json"],"compression":[],
                "max_batch_items":100,"max_message_bytes":1048576},"heartbeat_interval_s":25,
                "heartbeat_timeout_s":50,"epoch":"00000001","hlc":"000000000000-0000"}"#,
        )
        .await;
    }

    async fn start(&mut self, seq: u64) {
        self.expect("start_sync").await;
        self.send(&format!(
            r#"{{"type":"sync_session_started","session_info":{{"sync_id":"{SYNC_ID}","epoch":"00000001","seq":{seq},
                "acked_batches":[],"max_batch_items":100,"max_message_bytes":1048576,"policies":{{}},"expires_at":""}}}}"#
        ))
        .await;
    }

    async fn send(&mut self, text: &str) {
        let payload = packed(text, self.1);
        self.0.write_frame(Frame::new(true, self.opcode(), None, Payload::Owned(payload))).await.unwrap();
    }

    fn opcode(&self) -> OpCode {
        if self.1 == Form::default() { OpCode::Text } else { OpCode::Binary }
    }

    async fn frame(&mut self) -> (OpCode, Vec<u8>) {
        let frame = tokio::time::timeout(SOON, self.0.read_frame()).await.unwrap().unwrap();
        (frame.opcode, frame.payload.to_vec())
    }

    async fn expect(&mut self, kind: &str) -> String {
        let (opcode, payload) = self.frame().await;
        let text = opened(&payload, self.1);
        let is_it = opcode == self.opcode() && text.starts_with(&format!(r#"{{"type":"{kind}""#));
        assert!(is_it, "{kind}, not {opcode:?} {text}");
        text
    }
}

/// A message as it travels in a form.
fn packed(text: &str, form: Form) -> Vec<u8> {
    let message = match form.encoding {
        Encoding::Json => text.as_bytes().to_vec(),
        Encoding::MessagePack => msgpack_of_json(text),
    };
    if !form.deflate {
        return message;
    }
    let mut payload = Vec::new();
    Deflater::default().pack(&message, &mut payload);
    payload
}

fn opened(payload: &[u8], form: Form) -> String {
    let mut inflater = Inflater::default();
    let message =
        if form.deflate { inflater.open(payload, 1 << 20).unwrap() } else { payload.to_vec().into() };
    match form.encoding {
        Encoding::Json => String::from_utf8(message.into_owned()).unwrap(),
        Encoding::MessagePack => json_of_msgpack(&message, 64).unwrap(),
    }
}

#[tokio::test]
async fn messages_travel_in_the_form_that_the_server_chose() {
    let long = "x".repeat(1_000);
    for form in Form::ALL {
        let (world, mut pipes) = world();
        let first = page(&put("theirs", 1, &format!(r#"{{"text":"{long}"}}"#)), 1, "c1", false);
        let server = tokio::spawn(async move {
            let name = form.subprotocol();
            let mut peer = Peer::accept_as(&mut pipes, name, Some(name)).await;
            peer.greet().await;
            peer.start(1).await;
            peer.expect("request_server_data").await;
            let push = peer.expect("sync_data").await;
            assert!(push.contains(r#""fields":{"b":1.5,"c":[null,true,"é"]}"#), "{push}");
            peer.send(&first).await;
            peer.send(&ack(1, 2, &result(0, "applied", 2, ""))).await;
            peer.expect("request_server_data").await;
            peer.send(&page(&put("mine", 2, r#"{"b":1.5}"#), 2, "c2", false)).await;
            assert_eq!(peer.frame().await, (OpCode::Close, 1000_u16.to_be_bytes().to_vec()));
        });
        let mut replica = Replica::default();
        world.edit(&mut replica, create("mine", r#"{"b":1.5,"c":[null,true,"é"]}"#)).unwrap();
        let to = endpoint().with_forms([form]);
        let mut client = Client::connect_in(&world, &to, replica).await.unwrap();
        assert_eq!(client.form(), form);
        client.sync(SOON).await.unwrap();
        let text = client.replica().view("note", "theirs").unwrap().fields.into_owned();
        assert_eq!(text.get("text"), Some(&*format!("\"{long}\"")));
        client.close().await;
        server.await.unwrap();
    }
}

#[tokio::test]
async fn a_form_that_was_not_offered_is_refused() {
    let (world, mut pipes) = world();
    let to = endpoint().with_forms([Form::default()]);
    for chosen in ["driftline.v1.msgpack", "chat"] {
        let accept = Peer::accept_as(&mut pipes, "driftline.v1.json", Some(chosen));
        let (refused, _peer) = tokio::join!(Client::connect_in(&world, &to, Replica::default()), accept);
        let cause = refused.unwrap_err().cause;
        assert!(matches!(&cause, ClientError::Subprotocol { chosen: name } if name == chosen), "{cause}");
    }
}

#[tokio::test]
async fn a_message_of_another_form_ends_the_connection() {
    let packed_form = Form { encoding: Encoding::MessagePack, deflate: true };
    // (opcode, payload, the close code that says what is wrong)
    let table = [
        (OpCode::Text, &b"{}"[..], 1003_u16),
        (OpCode::Binary, &[2, 0x80], 1007),
        (OpCode::Binary, &[1, 0xff, 0xff], 1007),
        (OpCode::Binary, &[0, 0xc1], 1007),
    ];
    for (opcode, payload, code) in table {
        let (world, mut pipes) = world();
        let server = tokio::spawn(async move {
            let name = packed_form.subprotocol();
            let mut peer = Peer::accept_as(&mut pipes, name, Some(name)).await;
            peer.greet().await;
            peer.expect("start_sync").await;
            // Nobody waits for an answer to the close frame.
            peer.0.set_auto_close(false);
            peer.0.write_frame(Frame::new(true, opcode, None, Payload::Borrowed(payload))).await.unwrap();
            peer.frame().await
        });
        let mut replica = Replica::default();
        world.edit(&mut replica, create("x", "{}")).unwrap();
        let to = endpoint().with_forms([packed_form]);
        let mut client = Client::connect_in(&world, &to, replica).await.unwrap();
        let error = client.next_event().await.unwrap_err();
        assert!(matches!(error, ClientError::Unreadable(_)), "{error}");
        assert_eq!(client.close().await.queue_len(), 1, "nothing is lost");
        assert_eq!(server.await.unwrap(), (OpCode::Close, code.to_be_bytes().to_vec()));
    }
}

#[tokio::test]
async fn a_session_from_the_handshake_to_the_goodbye() {
    let (world, mut pipes) = world();
    let server = tokio::spawn(async move {
        let mut peer = Peer::accept(&mut pipes).await;
        peer.greet().await;
        peer.start(1).await;
        peer.expect("request_server_data").await;
        let push = peer.expect("sync_data").await;
        assert!(push.contains(r#""id":"mine""#), "{push}");

        // A page in fragments, with a ping between them.
        let text = page(&put("theirs", 1, r#"{"a":1}"#), 1, "c1", false).into_bytes();
        let (first, second) = text.split_at(40);
        peer.0.write_frame(Frame::new(false, OpCode::Text, None, Payload::Borrowed(first))).await.unwrap();
        peer.0.write_frame(Frame::new(true, OpCode::Ping, None, Payload::Borrowed(b"alive?"))).await.unwrap();
        peer.0
            .write_frame(Frame::new(true, OpCode::Continuation, None, Payload::Borrowed(second)))
            .await
            .unwrap();
        assert_eq!(peer.frame().await, (OpCode::Pong, b"alive?".to_vec()));
        peer.send(&ack(1, 2, &result(0, "applied", 2, ""))).await;
        peer.expect("request_server_data").await;
        peer.send(&page(&put("mine", 2, r#"{"b":1}"#), 2, "c2", false)).await;

        assert_eq!(peer.frame().await, (OpCode::Close, 1000_u16.to_be_bytes().to_vec()));
    });
    let mut replica = Replica::default();
    world.edit(&mut replica, create("mine", r#"{"b":1}"#)).unwrap();
    let mut client = Client::connect_in(&world, &endpoint(), replica).await.unwrap();
    client.sync(SOON).await.unwrap();
    assert_eq!(client.replica().views().count(), 2);
    let replica = client.close().await;
    assert_eq!((replica.queue_len(), replica.seq().number(), replica.cursor()), (0, 2, Some("c2")));
    server.await.unwrap();
}

#[tokio::test]
async fn a_cut_loses_nothing_and_the_next_connection_sends_again() {
    let (world, mut pipes) = world();
    let server = tokio::spawn(async move {
        let mut peer = Peer::accept(&mut pipes).await;
        peer.greet().await;
        peer.start(0).await;
        peer.expect("request_server_data").await;
        let first = peer.expect("sync_data").await;
        drop(peer);
        let mut peer = Peer::accept(&mut pipes).await;
        peer.greet().await;
        peer.start(1).await;
        peer.expect("request_server_data").await;
        let second = peer.expect("sync_data").await;
        let op = |text: &str| text[text.find("op_id").unwrap()..].chars().take(47).collect::<String>();
        assert_eq!(op(&first), op(&second));
        peer.send(&page(&put("x", 1, "{}"), 1, "c1", false)).await;
        peer.send(&ack(2, 1, &result(0, "applied", 1, r#","duplicate":true"#))).await;
        // The server leaves first.
        peer.0.write_frame(Frame::close(1012, b"restart")).await.unwrap();
        assert_eq!(peer.frame().await, (OpCode::Close, 1012_u16.to_be_bytes().to_vec()));
    });
    let mut client = Client::connect_in(&world, &endpoint(), Replica::default()).await.unwrap();
    client.edit(create("x", "{}")).unwrap();
    let cut = client.sync(SOON).await.unwrap_err();
    assert!(matches!(cut, ClientError::Closed { code: None, .. }), "{cut}");
    let again = client.sync(SOON).await.unwrap_err();
    assert!(matches!(again, ClientError::Closed { .. }), "a lost connection stays lost: {again}");
    let replica = client.close().await;
    assert_eq!(replica.queue_len(), 1);

    let mut client = Client::connect_in(&world, &endpoint(), replica).await.unwrap();
    client.flush(SOON).await.unwrap();
    let error = loop {
        match client.next_event().await {
            Ok(event) => assert!(!matches!(event, Event::DeadLetter(_))),
            Err(error) => break error,
        }
    };
    assert!(
        matches!(&error, ClientError::Closed { code: Some(1012), reason } if reason == "restart"),
        "{error}"
    );
    assert!(!error.is_final());
    client.close().await;
    server.await.unwrap();
}

#[tokio::test]
async fn a_connection_that_does_not_come_about_gives_the_replica_back() {
    let (world, mut pipes) = world();
    let mut replica = Replica::default();
    world.edit(&mut replica, create("x", "{}")).unwrap();

    let refuse = async {
        let mut stream = pipes.recv().await.unwrap();
        head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy").await.unwrap();
        stream
    };
    let to = endpoint();
    let (refused, _stream) = tokio::join!(Client::connect_in(&world, &to, replica), refuse);
    let refused = refused.unwrap_err();
    assert!(
        matches!(&refused.cause, ClientError::Refused { status: 503, body } if body == "busy"),
        "{refused}"
    );

    let pretend = async {
        let mut stream = pipes.recv().await.unwrap();
        head(&mut stream).await;
        let answer = "HTTP/1.1 101 Yes\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: no\r\n\r\n";
        stream.write_all(answer.as_bytes()).await.unwrap();
        stream
    };
    let (pretended, _stream) = tokio::join!(Client::connect_in(&world, &to, *refused.replica), pretend);
    let pretended = pretended.unwrap_err();
    assert!(matches!(pretended.cause, ClientError::NotWebSocket), "{pretended}");

    let unauthorized = async {
        let mut peer = Peer::accept(&mut pipes).await;
        peer.send(
            r#"{"type":"error","code":"UNAUTHORIZED","message":"","correlation_id":"","retryable":false}"#,
        )
        .await;
        peer.0.write_frame(Frame::close(4001, b"token")).await.unwrap();
        peer
    };
    let (error, _peer) = tokio::join!(Client::connect_in(&world, &to, *pretended.replica), unauthorized);
    let error = error.unwrap_err();
    assert!(matches!(error.cause, ClientError::Closed { code: Some(4001), .. }), "{error}");
    assert_eq!(error.replica.queue_len(), 1);
}

#[tokio::test]
async fn waiting_ends_at_its_deadline_and_goes_on_with_the_next_call() {
    let (world, mut pipes) = world();
    let (go_on, mut may_go_on) = mpsc::channel::<()>(1);
    let server = tokio::spawn(async move {
        let mut peer = Peer::accept(&mut pipes).await;
        peer.greet().await;
        peer.start(0).await;
        peer.expect("request_server_data").await;
        may_go_on.recv().await;
        peer.send(&page("", 0, "c0", false)).await;
        peer.expect("request_server_data").await;
        peer.send(&page("", 0, "c0", false)).await;
        peer
    });
    let mut client = Client::connect_in(&world, &endpoint(), Replica::default()).await.unwrap();
    let late = client.sync(Duration::from_millis(50)).await.unwrap_err();
    assert!(matches!(late, ClientError::Deadline { queue_len: 0 }), "{late}");
    go_on.send(()).await.unwrap();
    client.sync(SOON).await.unwrap();
    drop(server.await.unwrap());
    client.disconnect().await;
}

#[tokio::test]
async fn a_silent_client_sends_heartbeats() {
    let (sender, mut pipes) = mpsc::channel(4);
    let world = World::new(Pipes(sender), FastClock, SystemRandom);
    let server = tokio::spawn(async move {
        let mut peer = Peer::accept(&mut pipes).await;
        peer.greet().await;
        peer.start(0).await;
        peer.expect("request_server_data").await;
        peer.send(&page("", 0, "c0", false)).await;
        let heartbeat = peer.expect("heartbeat").await;
        assert_eq!(heartbeat, r#"{"type":"heartbeat","last_seq":0,"queue_depth":0}"#);
        peer.send(r#"{"type":"heartbeat_ack","server_seq":3,"behind":3}"#).await;
        peer
    });
    let mut client = Client::connect_in(&world, &endpoint(), Replica::default()).await.unwrap();
    client.drive(SOON * 20, Replica::is_settled).await.unwrap();
    client.drive(SOON * 20, |replica| !replica.is_settled()).await.unwrap();
    drop(server.await.unwrap());
    client.close().await;
}
