//! A client for server-sent events that looks at everything that comes.

use std::net::SocketAddr;

use driftline_testkit::http::soon;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// One block of a stream.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Block {
    pub id: Option<String>,
    pub data: Option<Value>,
    pub retry: Option<u64>,
    pub comment: Option<String>,
}

/// An open stream.
pub struct EventSource {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    /// The last id that came, as a browser would send it back.
    pub last_id: Option<String>,
    stream: TcpStream,
    /// Bytes that came and were not looked at.
    raw: Vec<u8>,
    /// What they say.
    text: String,
    over: bool,
}

impl EventSource {
    /// Asks for a stream, with a token and the last event that is known.
    pub async fn open(to: SocketAddr, target: &str, token: Option<&str>, last: Option<&str>) -> Self {
        let mut headers = Vec::new();
        if let Some(token) = token {
            headers.push(("authorization".to_owned(), format!("Bearer {token}")));
        }
        if let Some(last) = last {
            headers.push(("last-event-id".to_owned(), last.to_owned()));
        }
        Self::ask(to, target, &headers).await
    }

    /// Asks for a stream with these headers.
    pub async fn ask(to: SocketAddr, target: &str, headers: &[(String, String)]) -> Self {
        let mut stream = TcpStream::connect(to).await.expect("a server listens");
        let mut head = format!("GET {target} HTTP/1.1\r\nhost: {to}\r\naccept: text/event-stream\r\n");
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        stream.write_all(head.as_bytes()).await.expect("it reads");
        let mut raw = Vec::new();
        let end = loop {
            if let Some(at) = raw.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            let came = soon("a head", stream.read_buf(&mut raw)).await.expect("it writes");
            assert!(came > 0, "the head ends");
        };
        let head = String::from_utf8(raw.drain(..end).collect()).expect("a head is text");
        let mut lines = head.trim_end().split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).expect("a status");
        let headers = lines.filter_map(|line| line.split_once(':'));
        Self {
            status: status.parse().expect("a number"),
            headers: headers.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().into())).collect(),
            last_id: None,
            stream,
            raw,
            text: String::new(),
            over: false,
        }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }

    /// Returns the next block; nothing at the end of the stream.
    pub async fn block(&mut self) -> Option<Block> {
        loop {
            if let Some(at) = self.text.find("\n\n") {
                let text: String = self.text.drain(..at + 2).collect();
                let block = read(&text);
                self.last_id = block.id.clone().or(self.last_id.take());
                return Some(block);
            }
            if !soon("a block", self.more()).await {
                return None;
            }
        }
    }

    /// Returns the next event.
    pub async fn event(&mut self) -> Value {
        // Comments come all the time, so that each of them in time is not enough.
        let event = async {
            loop {
                let block = self.block().await.expect("the stream goes on");
                if let Some(data) = block.data {
                    return data;
                }
            }
        };
        soon("an event", event).await
    }

    /// Reads to the end; gives what came.
    pub async fn rest(&mut self) -> Vec<Block> {
        let mut blocks = Vec::new();
        while let Some(block) = self.block().await {
            blocks.push(block);
        }
        blocks
    }

    /// Takes the next chunk in; false at the end.
    async fn more(&mut self) -> bool {
        while !self.over {
            if let Some((begin, len)) = chunk(&self.raw) {
                if len == 0 {
                    self.over = true;
                    break;
                }
                let text =
                    String::from_utf8(self.raw[begin..begin + len].to_vec()).expect("whole characters");
                self.text.push_str(&text);
                self.raw.drain(..begin + len + 2);
                return true;
            }
            if !matches!(self.stream.read_buf(&mut self.raw).await, Ok(1..)) {
                self.over = true;
            }
        }
        false
    }
}

/// Finds the first chunk that is there as a whole: where it begins, and its bytes.
fn chunk(raw: &[u8]) -> Option<(usize, usize)> {
    let line = raw.windows(2).position(|window| window == b"\r\n")?;
    let len = usize::from_str_radix(std::str::from_utf8(&raw[..line]).expect("a size"), 16).expect("a size");
    (raw.len() >= line + 2 + len + 2).then_some((line + 2, len))
}

fn read(text: &str) -> Block {
    let mut block = Block::default();
    for line in text.lines().filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':').expect("a field");
        let value = value.strip_prefix(' ').unwrap_or(value);
        match name {
            "" => block.comment = Some(value.to_owned()),
            "id" => block.id = Some(value.to_owned()),
            "retry" => block.retry = Some(value.parse().expect("a number")),
            "data" => {
                assert!(block.data.is_none(), "an event is one line");
                block.data = Some(serde_json::from_str(value).expect("JSON"));
            }
            other => panic!("{other}"),
        }
    }
    block
}
