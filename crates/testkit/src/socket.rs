//! A WebSocket client that does as it is told, also what no honest client would do (RFC 6455).

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use crate::http::{Response, more, soon};

/// A key and what a server must make of it, both from RFC 6455 §1.3.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// A handshake, right in everything that is not changed.
#[derive(Debug, Clone)]
pub struct Handshake {
    method: &'static str,
    version: &'static str,
    target: String,
    headers: Vec<(String, String)>,
    receive_bytes: Option<u32>,
    source: Option<IpAddr>,
}

impl Handshake {
    /// Makes the handshake for a target, such as `/ws/mobile/sync?device_id=d1`.
    #[must_use]
    pub fn new(target: &str) -> Self {
        let headers = [
            ("connection", "Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", KEY),
        ];
        Self {
            method: "GET",
            version: "HTTP/1.1",
            target: target.into(),
            headers: headers.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            receive_bytes: None,
            source: None,
        }
    }

    /// Sets a header, in place of one of the same name; `None` leaves it out.
    #[must_use]
    pub fn header(mut self, name: &str, value: Option<&str>) -> Self {
        self.headers.retain(|(own, _)| own != name);
        self.headers.extend(value.map(|value| (name.to_owned(), value.to_owned())));
        self
    }

    /// Adds `Authorization: Bearer`.
    #[must_use]
    pub fn bearer(self, token: &str) -> Self {
        self.header("authorization", Some(&format!("Bearer {token}")))
    }

    /// Sets the method.
    #[must_use]
    pub fn method(mut self, method: &'static str) -> Self {
        self.method = method;
        self
    }

    /// Sets the version of HTTP.
    #[must_use]
    pub fn version(mut self, version: &'static str) -> Self {
        self.version = version;
        self
    }

    /// Sets the size of the kernel's receive buffer, for a client that reads slowly.
    #[must_use]
    pub fn receive_bytes(mut self, bytes: u32) -> Self {
        self.receive_bytes = Some(bytes);
        self
    }

    /// Adds a header, also beside one of the same name.
    #[must_use]
    pub fn doubled(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sets the address that the client comes from, of which a loopback network has many.
    #[must_use]
    pub fn source(mut self, address: IpAddr) -> Self {
        self.source = Some(address);
        self
    }

    /// Sends the handshake. An answer other than 101 is given back as it came.
    ///
    /// # Errors
    /// The answer that refused the upgrade.
    ///
    /// # Panics
    /// When nothing listens there, no answer comes, or a 101 breaks the protocol.
    pub async fn send(&self, to: SocketAddr) -> Result<(Socket, Response), Response> {
        let socket = TcpSocket::new_v4().expect("the system makes a socket");
        if let Some(bytes) = self.receive_bytes {
            socket.set_recv_buffer_size(bytes).expect("the size is accepted");
        }
        if let Some(address) = self.source {
            socket.bind((address, 0).into()).expect("the address is one of this machine's");
        }
        let mut stream = socket.connect(to).await.expect("a server listens");
        stream.set_nodelay(true).expect("the option is known");
        let mut head = format!("{} {} {}\r\nhost: {to}\r\n", self.method, self.target, self.version);
        for (name, value) in &self.headers {
            let _ = write!(head, "{name}: {value}\r\n");
        }
        head.push_str("\r\n");
        stream.write_all(head.as_bytes()).await.expect("the server reads a head");
        let mut buffer = Vec::new();
        let response = Response::read(&mut stream, &mut buffer).await.expect("a handshake is answered");
        if response.status != 101 {
            return Err(response);
        }
        assert_eq!(response.header("sec-websocket-accept"), Some(ACCEPT));
        Ok((Socket { stream, buffer, mask: 0x1234_5678 }, response))
    }
}

/// A frame as it is sent.
#[derive(Debug, Clone)]
pub struct Frame {
    /// The first byte: the final flag, three reserved bits and the opcode.
    pub head: u8,
    /// The payload.
    pub payload: Vec<u8>,
}

impl Frame {
    /// Continues a message.
    pub const CONTINUATION: u8 = 0x0;
    /// Begins a message of text.
    pub const TEXT: u8 = 0x1;
    /// Begins a message of bytes.
    pub const BINARY: u8 = 0x2;
    /// Closes.
    pub const CLOSE: u8 = 0x8;
    /// Asks for a pong.
    pub const PING: u8 = 0x9;
    /// Answers a ping.
    pub const PONG: u8 = 0xa;

    /// Makes a whole message, or the last part of one.
    #[must_use]
    pub fn last(opcode: u8, payload: impl Into<Vec<u8>>) -> Self {
        Self { head: 0x80 | opcode, payload: payload.into() }
    }

    /// Makes a part that others follow.
    #[must_use]
    pub fn part(opcode: u8, payload: impl Into<Vec<u8>>) -> Self {
        Self { head: opcode, payload: payload.into() }
    }

    /// Makes a close frame.
    #[must_use]
    pub fn close(code: u16, reason: &str) -> Self {
        Self::last(Self::CLOSE, [&code.to_be_bytes(), reason.as_bytes()].concat())
    }

    /// Writes the frame as a client does, with a mask.
    #[must_use]
    pub fn encode(&self, mask: u32) -> Vec<u8> {
        let mut bytes = vec![self.head];
        match self.payload.len() {
            len @ 0..126 => bytes.push(0x80 | u8::try_from(len).expect("below 126")),
            len @ 126..0x1_0000 => {
                bytes.push(0x80 | 126);
                bytes.extend_from_slice(&u16::try_from(len).expect("below 2^16").to_be_bytes());
            }
            len => {
                bytes.push(0x80 | 127);
                bytes.extend_from_slice(&(len as u64).to_be_bytes());
            }
        }
        bytes.extend_from_slice(&mask.to_be_bytes());
        // Four bytes at a time, for messages of many MiB are sent by tests that are not optimized.
        let (words, rest) = self.payload.as_chunks::<4>();
        bytes.reserve(self.payload.len());
        for word in words {
            bytes.extend_from_slice(&(u32::from_be_bytes(*word) ^ mask).to_be_bytes());
        }
        bytes.extend(rest.iter().zip(mask.to_be_bytes()).map(|(byte, mask)| byte ^ mask));
        bytes
    }
}

/// What came from the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Incoming {
    /// A message.
    Text(String),
    /// Bytes.
    Binary(Vec<u8>),
    /// A ping.
    Ping(Vec<u8>),
    /// A pong.
    Pong(Vec<u8>),
    /// A close frame with its code and reason; code 1005 when it holds none.
    Close(u16, String),
    /// The connection ended.
    End,
}

/// An open connection.
#[derive(Debug)]
pub struct Socket {
    stream: TcpStream,
    buffer: Vec<u8>,
    mask: u32,
}

impl Socket {
    /// Connects to a target that lets the client in.
    ///
    /// # Panics
    /// When the upgrade is refused.
    pub async fn connect(to: SocketAddr, target: &str) -> Self {
        let opened = Handshake::new(target).send(to).await;
        opened.unwrap_or_else(|refused| panic!("refused: {} {}", refused.status, refused.text())).0
    }

    /// Sends bytes as they are. A server that closes may not take them all; what it said is still to be read.
    pub async fn send_bytes(&mut self, bytes: &[u8]) {
        let _ = soon("room to write", self.stream.write_all(bytes)).await;
    }

    /// Sends bytes, all of which the server must take.
    ///
    /// # Panics
    /// When the connection breaks before.
    pub async fn send_all(&mut self, bytes: &[u8]) {
        soon("room to write", self.stream.write_all(bytes)).await.expect("the server takes all bytes");
    }

    /// Ends what the client sends, and goes on reading.
    pub async fn finish(&mut self) {
        // The server may have gone before.
        let _ = self.stream.shutdown().await;
    }

    /// Sends a frame under the next mask.
    pub async fn send_frame(&mut self, frame: &Frame) {
        self.mask = self.mask.rotate_left(7) ^ 0x9e37_79b9;
        self.send_bytes(&frame.encode(self.mask)).await;
    }

    /// Sends a message of text.
    pub async fn send_text(&mut self, text: &str) {
        self.send_frame(&Frame::last(Frame::TEXT, text)).await;
    }

    /// Sends a JSON message.
    pub async fn send(&mut self, message: &Value) {
        self.send_text(&message.to_string()).await;
    }

    /// Reads the next frame.
    ///
    /// # Panics
    /// When none comes, or one breaks the protocol: masked, fragmented, with reserved bits, not UTF-8.
    pub async fn read(&mut self) -> Incoming {
        soon("a frame", self.frame()).await
    }

    /// Takes a frame that lies in the buffer or in the kernel already.
    pub fn read_now(&mut self) -> Option<Incoming> {
        let mut chunk = [0; 4096];
        while let Ok(len @ 1..) = self.stream.try_read(&mut chunk) {
            self.buffer.extend_from_slice(&chunk[..len]);
        }
        self.take()
    }

    /// Reads the next message; the server's pings may come before it.
    ///
    /// # Panics
    /// When something else comes.
    pub async fn receive(&mut self) -> Value {
        loop {
            match self.read().await {
                Incoming::Ping(_) => {}
                Incoming::Text(text) => return serde_json::from_str(&text).expect("messages are JSON"),
                other => panic!("wanted a message, got {other:?}"),
            }
        }
    }

    /// Reads the next message, which must be of the wanted type.
    ///
    /// # Panics
    /// When another one comes.
    pub async fn expect(&mut self, kind: &str) -> Value {
        let message = self.receive().await;
        assert_eq!(message["type"], kind, "{message}");
        message
    }

    /// Sends a message and reads its answer, which must be of the wanted type.
    ///
    /// # Panics
    /// When another message comes.
    pub async fn ask(&mut self, message: &Value, kind: &str) -> Value {
        self.send(message).await;
        self.expect(kind).await
    }

    /// Opens a sync session for kinds, all when there are none; gives the answer.
    ///
    /// # Panics
    /// When it is refused.
    pub async fn start(&mut self, sync_id: &str, kinds: &[&str]) -> Value {
        let message = json!({"type": "start_sync", "sync_id": sync_id, "payload": {"data_types": kinds}});
        self.ask(&message, "sync_session_started").await
    }

    /// Reads until the connection ends: the messages, and the close code; 1006 without a close frame.
    ///
    /// # Panics
    /// When the connection does not end, or goes on after its close frame.
    pub async fn until_end(&mut self) -> (Vec<Value>, u16) {
        let mut messages = Vec::new();
        let mut code = None;
        loop {
            match self.read().await {
                Incoming::Ping(_) | Incoming::Pong(_) if code.is_none() => {}
                Incoming::Text(text) if code.is_none() => {
                    messages.push(serde_json::from_str(&text).expect("messages are JSON"));
                }
                Incoming::Close(close, _) if code.is_none() => {
                    code = Some(close);
                    let answer =
                        if close == 1005 { Frame::last(Frame::CLOSE, []) } else { Frame::close(close, "") };
                    self.send_frame(&answer).await;
                }
                Incoming::End => return (messages, code.unwrap_or(1006)),
                other => panic!("unexpected after close code {code:?}: {other:?}"),
            }
        }
    }

    /// Reads until the connection ends, which must be by an error: its code, and the close code.
    ///
    /// # Panics
    /// When the last message is no error.
    pub async fn until_error(&mut self) -> (String, u16) {
        let (messages, close) = self.until_end().await;
        let last = messages.last().unwrap_or_else(|| panic!("closed with {close} and no message"));
        assert_eq!(last["type"], "error", "{last}");
        (last["code"].as_str().unwrap_or_default().to_owned(), close)
    }

    /// Reads on until the connection ends; tells whether it was reset, which loses what was on its way.
    pub async fn until_reset(&mut self) -> bool {
        let mut rest = Vec::new();
        soon("the end", self.stream.read_to_end(&mut rest)).await.is_err()
    }

    async fn frame(&mut self) -> Incoming {
        loop {
            if let Some(incoming) = self.take() {
                return incoming;
            }
            if !more(&mut self.stream, &mut self.buffer).await {
                assert!(self.buffer.is_empty(), "the connection ended inside a frame");
                return Incoming::End;
            }
        }
    }

    /// Takes a whole frame from the buffer.
    fn take(&mut self) -> Option<Incoming> {
        let (&head, &second) = (self.buffer.first()?, self.buffer.get(1)?);
        assert_eq!(second & 0x80, 0, "a server masks nothing");
        let (at, len) = match second {
            126 => (4, u64::from(u16::from_be_bytes(self.buffer.get(2..4)?.try_into().expect("two bytes")))),
            127 => (10, u64::from_be_bytes(self.buffer.get(2..10)?.try_into().expect("eight bytes"))),
            len => (2, u64::from(len)),
        };
        let end = at + usize::try_from(len).expect("a frame fits into memory");
        self.buffer.get(..end)?;
        let payload = self.buffer[at..end].to_vec();
        self.buffer.drain(..end);
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text is UTF-8");
        Some(match head {
            0x81 => Incoming::Text(text(&payload)),
            0x82 => Incoming::Binary(payload),
            0x88 if payload.is_empty() => Incoming::Close(1005, String::new()),
            0x88 => {
                let code = payload.first_chunk().expect("a close frame holds a code or nothing");
                Incoming::Close(u16::from_be_bytes(*code), text(&payload[2..]))
            }
            0x89 => Incoming::Ping(payload),
            0x8a => Incoming::Pong(payload),
            other => panic!("not a frame of this server: {other:#04x}"),
        })
    }
}
