//! A plain HTTP/1.1 client: one request on a connection of its own, and everything about the answer.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

/// How long a test waits for what must come.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Waits for what must come.
///
/// # Panics
/// When it does not come within [`PATIENCE`].
pub async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    let waited = timeout(PATIENCE, future).await;
    waited.unwrap_or_else(|_| panic!("{what} did not come within {} s", PATIENCE.as_secs()))
}

/// A request.
#[derive(Debug, Clone)]
pub struct Request {
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Request {
    /// Makes a request of a method and a target, such as `/alive`.
    #[must_use]
    pub fn new(method: &str, target: &str) -> Self {
        Self { method: method.into(), target: target.into(), headers: Vec::new(), body: Vec::new() }
    }

    /// Makes a `GET`.
    #[must_use]
    pub fn get(target: &str) -> Self {
        Self::new("GET", target)
    }

    /// Makes a `POST` of a JSON document.
    #[must_use]
    pub fn post(target: &str, body: &Value) -> Self {
        Self::new("POST", target).json(body)
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Adds `Authorization: Bearer`.
    #[must_use]
    pub fn bearer(self, token: &str) -> Self {
        self.header("authorization", &format!("Bearer {token}"))
    }

    /// Takes a JSON document as the body.
    #[must_use]
    pub fn json(self, body: &Value) -> Self {
        self.body(body.to_string()).header("content-type", "application/json")
    }

    /// Takes bytes as the body.
    #[must_use]
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// Writes the request as it travels; `Connection: close` asks for one answer only.
    #[must_use]
    pub fn encode(&self, host: SocketAddr) -> Vec<u8> {
        self.clone().header("connection", "close").encode_open(host)
    }

    /// Writes the request as it travels on a connection that stays open.
    #[must_use]
    pub fn encode_open(&self, host: SocketAddr) -> Vec<u8> {
        let mut head = format!("{} {} HTTP/1.1\r\nhost: {host}\r\n", self.method, self.target);
        for (name, value) in &self.headers {
            let _ = write!(head, "{name}: {value}\r\n");
        }
        if !self.body.is_empty() || self.method != "GET" {
            let _ = write!(head, "content-length: {}\r\n", self.body.len());
        }
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(&self.body);
        bytes
    }

    /// Sends the request and reads the answer.
    ///
    /// # Panics
    /// When nothing listens there, or no answer comes.
    pub async fn send(&self, to: SocketAddr) -> Response {
        self.send_over(TcpStream::connect(to).await.expect("a server listens"), to).await
    }

    /// Sends the request from an address of this machine, of which a loopback network has many.
    ///
    /// # Panics
    /// When the address is not this machine's, nothing listens there, or no answer comes.
    pub async fn send_from(&self, source: IpAddr, to: SocketAddr) -> Response {
        let socket = TcpSocket::new_v4().expect("the system makes a socket");
        socket.bind((source, 0).into()).expect("the address is one of this machine's");
        self.send_over(socket.connect(to).await.expect("a server listens"), to).await
    }

    async fn send_over(&self, mut stream: TcpStream, to: SocketAddr) -> Response {
        // A server that refuses early may stop reading; what it answered is still to be read.
        let _ = stream.write_all(&self.encode(to)).await;
        Response::read(&mut stream, &mut Vec::new()).await.expect("an answer comes")
    }
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Response {
    /// The status.
    pub status: u16,
    /// The headers in their order, with names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Response {
    /// Reads one answer; bytes behind it stay in the buffer. Nothing: the connection ended before.
    ///
    /// # Panics
    /// When the answer is not HTTP, or does not come in time.
    pub async fn read(stream: &mut (impl AsyncRead + Unpin), buffer: &mut Vec<u8>) -> Option<Self> {
        soon("an answer", read(stream, buffer)).await
    }

    /// Reads one answer of a server that may be killed: nothing when the connection broke before it was whole.
    ///
    /// # Panics
    /// When the answer is not HTTP, or does not come in time.
    pub async fn read_or_break(stream: &mut (impl AsyncRead + Unpin), buffer: &mut Vec<u8>) -> Option<Self> {
        let answer = Self::read(stream, buffer).await?;
        let told = answer.header("content-length").and_then(|len| len.parse::<usize>().ok());
        (told.is_none_or(|told| answer.body.len() == told)).then_some(answer)
    }

    /// Returns a header's first value.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }

    /// Returns the body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Returns the body as JSON.
    ///
    /// # Panics
    /// When it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error} in {}: {}", self.status, self.text()))
    }

    /// Returns the stable code of a refusal.
    #[must_use]
    pub fn code(&self) -> String {
        self.json()["code"].as_str().unwrap_or_default().to_owned()
    }
}

async fn read(stream: &mut (impl AsyncRead + Unpin), buffer: &mut Vec<u8>) -> Option<Response> {
    let end = loop {
        if let Some(at) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            break at;
        }
        if !more(stream, buffer).await {
            return None;
        }
    };
    let head: Vec<u8> = buffer.drain(..end + 4).collect();
    let head = std::str::from_utf8(&head).expect("a head is text");
    let mut lines = head.trim_end().split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|status| status.parse().ok());
    let headers = lines.filter_map(|line| line.split_once(':'));
    let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned())).collect();
    let mut response =
        Response { status: status.expect("a status line comes first"), headers, body: Vec::new() };
    match response.header("content-length").map(|len| len.parse::<usize>().expect("a number")) {
        Some(len) => {
            while buffer.len() < len && more(stream, buffer).await {}
            response.body = buffer.drain(..len.min(buffer.len())).collect();
        }
        None if matches!(response.status, 101 | 204 | 304) => {}
        None => {
            while more(stream, buffer).await {}
            response.body = std::mem::take(buffer);
        }
    }
    Some(response)
}

/// Reads what there is; false at the end of the connection.
pub(crate) async fn more(stream: &mut (impl AsyncRead + Unpin), buffer: &mut Vec<u8>) -> bool {
    matches!(stream.read_buf(buffer).await, Ok(1..))
}
