//! A connection that posts one document after the other (HTTP/1.1, kept alive), each under a key of its own.

use std::io::Write as _;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::now::unix_ms;
use super::socket::{Incoming, Target, Wire};

const HEAD_BYTES_MAX: usize = 16 << 10;
const READ_BYTES: usize = 4 << 10;
/// Close code of a connection that ended (RFC 6455 §7.1.5), which the tallies count by.
const ABNORMAL: u16 = 1006;

/// A connection to a route that takes documents.
#[derive(Debug)]
pub(crate) struct Poster {
    stream: TcpStream,
    /// The head of each request up to the value of its key.
    head: Vec<u8>,
    /// What keys begin with, so that no other run or connection makes the same ones.
    keys: String,
    sent: u64,
    input: Vec<u8>,
    /// Bytes of `input` that were consumed.
    consumed: usize,
    output: Vec<u8>,
    /// Bytes of `output` that were written.
    written: usize,
    bytes_in: u64,
    bytes_out: u64,
}

impl Poster {
    /// Connects.
    ///
    /// # Errors
    /// When the server cannot be reached.
    pub(crate) async fn connect(target: &Target, path: &str, token: &str) -> Result<Self> {
        let stream = TcpStream::connect(target.address).await;
        let stream = stream.with_context(|| format!("cannot connect to {}", target.address))?;
        stream.set_nodelay(true)?;
        let keys = format!("{:x}-{:x}", unix_ms(), stream.local_addr()?.port());
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {token}\r\n\
             Content-Type: application/json\r\nIdempotency-Key: ",
            target.host
        );
        Ok(Self {
            stream,
            head: head.into_bytes(),
            keys,
            sent: 0,
            input: Vec::with_capacity(READ_BYTES),
            consumed: 0,
            output: Vec::new(),
            written: 0,
            bytes_in: 0,
            bytes_out: 0,
        })
    }

    /// Writes what waits in `output`. Cancel-safe: every written byte is counted at once.
    async fn flush(&mut self) -> Result<()> {
        while self.written < self.output.len() {
            let count = self.stream.write(&self.output[self.written..]).await?;
            ensure!(count > 0, "the connection takes no more bytes");
            self.written += count;
            self.bytes_out += count as u64;
        }
        self.output.clear();
        self.written = 0;
        Ok(())
    }
}

impl Wire for Poster {
    async fn send(&mut self, text: &[u8]) -> Result<()> {
        self.sent += 1;
        self.output.extend_from_slice(&self.head);
        write!(self.output, "{}-{}\r\nContent-Length: {}\r\n\r\n", self.keys, self.sent, text.len())?;
        self.output.extend_from_slice(text);
        self.flush().await
    }

    async fn next(&mut self) -> Result<Incoming<'_>> {
        self.flush().await?;
        loop {
            let ready = &self.input[self.consumed..];
            match whole(ready)? {
                Some((body, end)) => {
                    let body = self.consumed + body..self.consumed + end;
                    self.consumed = body.end;
                    return Ok(Incoming::Message(&self.input[body]));
                }
                None if self.consumed > 0 => {
                    self.input.drain(..self.consumed);
                    self.consumed = 0;
                }
                None => {}
            }
            self.input.reserve(READ_BYTES);
            let count = self.stream.read_buf(&mut self.input).await?;
            self.bytes_in += count as u64;
            if count == 0 {
                return Ok(Incoming::Closed(ABNORMAL));
            }
        }
    }

    fn bytes(&self) -> (u64, u64) {
        (self.bytes_in, self.bytes_out)
    }
}

/// Finds where the body of an answer begins and ends, once all of it is there.
fn whole(ready: &[u8]) -> Result<Option<(usize, usize)>> {
    let Some(end) = ready.windows(4).position(|four| four == b"\r\n\r\n") else {
        ensure!(ready.len() < HEAD_BYTES_MAX, "the head of an answer does not end");
        return Ok(None);
    };
    let head = std::str::from_utf8(&ready[..end]).context("the head of an answer is no text")?;
    ensure!(head.starts_with("HTTP/1.1 "), "this is no answer: {}", head.lines().next().unwrap_or_default());
    let length = head.lines().filter_map(|line| line.split_once(':'));
    let mut length = length.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let (_, length) = length.next().context("the answer has no Content-Length")?;
    let length: usize = length.trim().parse().context("the answer's Content-Length is no number")?;
    let body = end + 4;
    Ok((ready.len() - body >= length).then_some((body, body + length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_when_its_body_is() {
        let answer = b"HTTP/1.1 200 OK\r\nX: y\r\ncontent-length: 2\r\n\r\n{}HTTP/1.1 ";
        assert_eq!(whole(answer).expect("an answer"), Some((44, 46)));
        for len in [0, 10, 43, 45] {
            assert_eq!(whole(&answer[..len]).expect("the beginning of an answer"), None, "{len}");
        }
        for bad in
            ["HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n", "hello\r\n\r\n"]
        {
            assert!(whole(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(whole(&vec![b'x'; HEAD_BYTES_MAX]).is_err());
    }
}
