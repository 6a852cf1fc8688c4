//! The forms of messages on the sync socket, and the frames that are refused there.

mod support;

use driftline_protocol::{Deflater, Encoding, Form, Inflater, json_of_msgpack, msgpack_of_json};
use driftline_testkit::socket::{Frame, Handshake, Incoming, Socket};
use serde_json::{Value, json};
use support::{Harness, SYNC_ID, Setup, batch, create, pull, socket_path, start, start_limited, token};

/// A connection that speaks in one form.
struct Speaker {
    socket: Socket,
    form: Form,
}

impl Speaker {
    async fn connect(harness: &Harness, form: Form, path: &str) -> Self {
        let handshake = Handshake::new(path).header("sec-websocket-protocol", Some(form.subprotocol()));
        let (socket, response) = handshake.send(harness.address).await.expect("it is let in");
        assert_eq!(response.header("sec-websocket-protocol"), Some(form.subprotocol()));
        Self { socket, form }
    }

    /// Connects a device of `t1`/`ada` and takes the greeting.
    async fn welcome(harness: &Harness, form: Form) -> Self {
        let mut speaker = Self::connect(harness, form, &socket_path("t1", "ada", "d1")).await;
        let greeting = speaker.receive().await;
        assert_eq!(greeting["type"], "connection_established");
        let features = &greeting["features"];
        assert_eq!(
            (&features["encodings"], &features["compression"]),
            (&json!(["json", "msgpack"]), &json!(["deflate"]))
        );
        speaker
    }

    async fn send(&mut self, message: &Value) {
        let json = message.to_string();
        let encoded = match self.form.encoding {
            Encoding::Json => json.into_bytes(),
            Encoding::MessagePack => msgpack_of_json(&json),
        };
        let frame = if self.form.deflate {
            let mut packed = Vec::new();
            Deflater::default().pack(&encoded, &mut packed);
            Frame::last(Frame::BINARY, packed)
        } else if self.form.encoding == Encoding::Json {
            Frame::last(Frame::TEXT, encoded)
        } else {
            Frame::last(Frame::BINARY, encoded)
        };
        self.socket.send_frame(&frame).await;
    }

    async fn receive(&mut self) -> Value {
        let incoming = self.socket.read().await;
        read(self.form, incoming)
    }

    async fn ask(&mut self, message: &Value, kind: &str) -> Value {
        self.send(message).await;
        let answer = self.receive().await;
        assert_eq!(answer["type"], kind, "{:?}: {answer}", self.form);
        answer
    }

    /// Reads up to the close frame: the code of the error before it, if there is one, and the close code.
    async fn until_end(&mut self) -> (Option<String>, u16) {
        let mut said = None;
        loop {
            match self.socket.read().await {
                Incoming::Close(code, _) => {
                    assert_eq!(self.socket.read().await, Incoming::End);
                    return (said, code);
                }
                other => {
                    let message = read(self.form, other);
                    assert_eq!(message["type"], "error", "{message}");
                    said = message["code"].as_str().map(str::to_owned);
                }
            }
        }
    }
}

fn read(form: Form, incoming: Incoming) -> Value {
    let bytes = match incoming {
        Incoming::Text(text) if form == Form::default() => text.into_bytes(),
        Incoming::Binary(bytes) if form.deflate => {
            Inflater::default().open(&bytes, 8 << 20).expect("it can be opened").into_owned()
        }
        Incoming::Binary(bytes) if form.encoding == Encoding::MessagePack => bytes,
        other => panic!("{form:?}: {other:?}"),
    };
    let json = match form.encoding {
        Encoding::Json => String::from_utf8(bytes).expect("JSON is text"),
        Encoding::MessagePack => json_of_msgpack(&bytes, 64).expect("it is MessagePack"),
    };
    serde_json::from_str(&json).expect("it is JSON")
}

#[tokio::test]
async fn every_form_carries_a_whole_session() {
    for form in Form::ALL {
        let harness = start(Setup::default()).await;
        let mut device = Speaker::welcome(&harness, form).await;
        let start = json!({"type": "start_sync", "sync_id": SYNC_ID, "payload": {"data_types": []}});
        device.ask(&start, "sync_session_started").await;
        // Long enough to be compressed, and with what is not ASCII.
        let fields = json!({"t": "Zw\u{f6}lf Boxk\u{e4}mpfer ".repeat(50), "n": 1.5, "none": null});
        let ack = device.ask(&batch(1, &[create(1, "note", "a", &fields)]), "ack").await;
        assert_eq!(ack["results"][0]["code"], "applied", "{ack}");
        let page = device.ask(&pull(), "server_data").await;
        assert_eq!(page["changes"][0]["fields"], fields, "{form:?}");
        harness.push("other", &[create(1, "note", "b", &json!({"x": 1}))]).await;
        assert_eq!(device.receive().await["type"], "server_delta", "{form:?}");
    }
}

#[tokio::test]
async fn the_first_form_that_is_known_is_spoken() {
    let harness = start(Setup::default()).await;
    let table = [
        ("driftline.v1.msgpack, driftline.v1.json", "driftline.v1.msgpack"),
        ("driftline.v9.json, driftline.v1.json+deflate", "driftline.v1.json+deflate"),
    ];
    for (offered, chosen) in table {
        let handshake = Handshake::new(&socket_path("t1", "ada", "d1"));
        let handshake = handshake.header("sec-websocket-protocol", Some(offered));
        let (_, response) = handshake.send(harness.address).await.expect("it is let in");
        assert_eq!(response.header("sec-websocket-protocol"), Some(chosen));
    }
}

/// Without compression a frame's own kind says how it is encoded.
#[tokio::test]
async fn text_is_json_and_bytes_are_messagepack() {
    let harness = start(Setup::default()).await;
    let ping = json!({"type": "ping", "timestamp": 7}).to_string();
    for form in [Form::ALL[0], Form::ALL[1]] {
        let mut device = Speaker::welcome(&harness, form).await;
        device.socket.send_text(&ping).await;
        assert_eq!(device.receive().await["timestamp"], 7);
        device.socket.send_frame(&Frame::last(Frame::BINARY, msgpack_of_json(&ping))).await;
        assert_eq!(device.receive().await["timestamp"], 7);
        device.socket.send_frame(&Frame::last(Frame::BINARY, "{}")).await;
        assert_eq!(device.receive().await["code"], "MSGPACK_DECODE_ERROR");
        device.socket.send_text("[[").await;
        assert_eq!(device.receive().await["code"], "JSON_DECODE_ERROR");
    }
}

#[tokio::test]
async fn who_is_turned_away_is_told_in_its_form() {
    let harness = start(Setup::default()).await;
    for form in Form::ALL {
        let mut nobody = Speaker::connect(&harness, form, "/ws/mobile/sync?device_id=d1&token=x.y.z").await;
        assert_eq!(nobody.until_end().await, (Some("UNAUTHORIZED".into()), 4001), "{form:?}");
    }
}

#[tokio::test]
async fn what_cannot_be_opened_closes_with_its_code() {
    let harness = start_limited(|limits| limits.message_bytes = 4096).await;
    let ping = r#"{"type":"ping"}"#;
    let packed = |message: &[u8]| {
        let mut packed = Vec::new();
        Deflater::default().pack(message, &mut packed);
        packed
    };
    let bomb = packed(&vec![b' '; 8 << 20]);
    assert!(bomb.len() > 4097, "{}", bomb.len());
    let small_bomb = packed(&vec![b' '; 1 << 20]);
    assert!(small_bomb.len() < 4097, "{}", small_bomb.len());
    let short = packed(&[b' '; 1000]);
    let full = [&[0], ping.as_bytes(), &[b' '; 4096 - 15]].concat();
    let too_large = Some("MESSAGE_TOO_LARGE".to_owned());
    let table = [
        ("text", Frame::last(Frame::TEXT, ping), None, 1003),
        ("nothing", Frame::last(Frame::BINARY, []), None, 1007),
        ("no prefix", Frame::last(Frame::BINARY, ping), None, 1007),
        ("no stream", Frame::last(Frame::BINARY, [1, 0xff, 0xff]), None, 1007),
        ("half a stream", Frame::last(Frame::BINARY, &short[..short.len() - 1]), None, 1007),
        ("a bomb", Frame::last(Frame::BINARY, small_bomb.clone()), too_large.clone(), 1009),
        ("a byte too many", Frame::last(Frame::BINARY, [&full[..], b" "].concat()), too_large.clone(), 1009),
        ("a frame too large", Frame::last(Frame::BINARY, bomb.clone()), too_large.clone(), 1009),
    ];
    for form in [Form::ALL[2], Form::ALL[3]] {
        for (case, frame, error, code) in &table {
            let mut device = Speaker::welcome(&harness, form).await;
            device.socket.send_frame(frame).await;
            assert_eq!(device.until_end().await, (error.clone(), *code), "{case}");
        }
    }
    let mut device = Speaker::welcome(&harness, Form::ALL[2]).await;
    device.socket.send_frame(&Frame::last(Frame::BINARY, full)).await;
    assert_eq!(device.receive().await["type"], "pong", "the bound is that of the message, not of its frame");
    harness.serves().await;
}

/// Heads that are judged before anything of their frame is read.
#[tokio::test]
async fn a_bad_head_is_refused_at_once_and_what_came_before_is_answered() {
    let harness = start(Setup::default()).await;
    let long = |len: u64| [&[0x81, 0xff], &len.to_be_bytes()[..]].concat();
    let table: &[(&str, Vec<u8>, Option<&str>, u16)] = &[
        ("no mask", vec![0x81, 0x02, b'{', b'}'], None, 1002),
        ("no mask on a ping", vec![0x89, 0x00], None, 1002),
        ("a length of 125 in two bytes", vec![0x81, 0xfe, 0, 125], None, 1002),
        ("a length of 65535 in eight bytes", long(65_535), None, 1002),
        ("a negative length", long(1 << 63), None, 1002),
        ("a length of 2^63 - 1", long((1 << 63) - 1), Some("MESSAGE_TOO_LARGE"), 1009),
        ("2 GiB", long(2 << 30), Some("MESSAGE_TOO_LARGE"), 1009),
    ];
    for (case, head, error, code) in table {
        for chopped in [false, true] {
            let mut socket = harness.device("d1").await;
            let mut bytes = Frame::last(Frame::TEXT, r#"{"type":"ping"}"#).encode(7);
            bytes.extend_from_slice(head);
            let at = if chopped { bytes.len() - 1 } else { 0 };
            socket.send_bytes(&bytes[..at]).await;
            socket.send_bytes(&bytes[at..]).await;
            let (messages, close) = socket.until_end().await;
            assert_eq!(messages[0]["type"], "pong", "{case}");
            assert_eq!(messages.get(1).and_then(|error| error["code"].as_str()), *error, "{case}");
            assert_eq!(close, *code, "{case}");
        }
    }
    harness.serves().await;
}

#[tokio::test]
async fn a_message_has_so_many_parts_and_no_more() {
    let harness = start_limited(|limits| limits.fragments = 8).await;
    let ping = br#"{"type":"ping"}"#;
    let in_parts = |count: usize| {
        let mut frames = vec![Frame::part(Frame::TEXT, &ping[..8])];
        frames.extend((2..count).map(|_| Frame::part(Frame::CONTINUATION, [])));
        frames.push(Frame::last(Frame::CONTINUATION, &ping[8..]));
        frames.iter().flat_map(|frame| frame.encode(1)).collect::<Vec<u8>>()
    };
    let mut socket = harness.device("d1").await;
    socket.send_bytes(&in_parts(8)).await;
    socket.expect("pong").await;
    socket.send_bytes(&in_parts(9)).await;
    assert_eq!(socket.until_error().await, ("MESSAGE_TOO_LARGE".into(), 1009));
    // Who never ends a message is cut off no later.
    let mut endless = harness.device("d2").await;
    endless.send_frame(&Frame::part(Frame::TEXT, [])).await;
    for _ in 0..9 {
        endless.send_frame(&Frame::part(Frame::CONTINUATION, [])).await;
    }
    assert_eq!(endless.until_error().await, ("MESSAGE_TOO_LARGE".into(), 1009));
}

/// Messages on their way share the memory of the node; small ones need none of it.
#[tokio::test]
async fn large_messages_wait_for_memory_elsewhere() {
    let harness = start_limited(|limits| limits.inbound_bytes = 100_000).await;
    let mut greedy = harness.device("greedy").await;
    greedy.send_frame(&Frame::part(Frame::TEXT, vec![b' '; 90_000])).await;
    // The answer says that the part before was read.
    greedy.send_frame(&Frame::last(Frame::PING, "")).await;
    assert_eq!(greedy.read().await, Incoming::Pong(Vec::new()));

    let mut late = harness.device("late").await;
    late.ask(&json!({"type": "ping"}), "pong").await;
    late.send_frame(&Frame::last(Frame::TEXT, vec![b' '; 20_000])).await;
    assert_eq!(late.until_end().await, (Vec::new(), 1013));

    // What was promised comes back: with the message, and with the connection.
    greedy.send_frame(&Frame::last(Frame::CONTINUATION, r#"{"type":"ping"}"#)).await;
    greedy.expect("pong").await;
    for _ in 0..3 {
        let mut next = harness.device("next").await;
        let text = [&vec![b' '; 80_000][..], br#"{"type":"ping"}"#].concat();
        next.send_frame(&Frame::last(Frame::TEXT, text)).await;
        next.expect("pong").await;
        next.send_frame(&Frame::part(Frame::TEXT, vec![b' '; 80_000])).await;
        next.send_frame(&Frame::close(1000, "")).await;
        assert_eq!(next.until_end().await, (Vec::new(), 1000));
    }
}

#[tokio::test]
async fn who_falls_silent_in_the_middle_of_a_message_is_let_go() {
    let harness = start_limited(|limits| limits.heartbeat_s = 1).await;
    for half in [&[0x81][..], &[0x81, 0x8f, 0, 0, 0], &Frame::part(Frame::TEXT, "{").encode(1)] {
        let mut silent = harness.device("silent").await;
        silent.send_bytes(half).await;
        harness.clock.advance(2100);
        assert_eq!(silent.until_error().await, ("HEARTBEAT_TIMEOUT".into(), 4009));
    }
}

/// A token is not needed at the echo, but one in the URL has to be good.
#[tokio::test]
async fn the_echo_asks_for_no_token_but_for_no_bad_one() {
    let settings = driftline_transport::Settings { echo: true, ..Default::default() };
    let harness = start(Setup { settings, ..Setup::default() }).await;
    for form in Form::ALL {
        let path = format!("/ws/echo?token={}", token("t1", "ada"));
        let mut good = Speaker::connect(&harness, form, &path).await;
        good.socket.send_text("as it is").await;
        assert_eq!(good.socket.read().await, Incoming::Text("as it is".into()));
        let mut bad = Speaker::connect(&harness, form, "/ws/echo?token=x.y.z").await;
        assert_eq!(bad.until_end().await, (Some("UNAUTHORIZED".into()), 4001));
    }
}
