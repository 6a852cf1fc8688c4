//! Reading many messages at little cost: one system call for all that waits, no copy of whole frames, no parsing.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use anyhow::{Result, bail, ensure};
use tokio::io::{AsyncRead as _, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::frame::{Opcode, parse_head, write_frame};
use super::now::now;
use super::socket::Socket;

/// Bytes that a read may bring: many frames, and still within a core's own cache.
const CHUNK_BYTES: usize = 256 << 10;

/// Where reads put what they bring. All streams of a thread share one, so that hundreds of them stay in the core's
/// cache; the lock is held while the bytes of one read are looked at, and never across an await.
#[derive(Debug)]
pub(crate) struct Chunk(Mutex<Box<[u8]>>);

impl Chunk {
    /// Makes room for one read.
    pub(crate) fn new() -> Self {
        Chunk(Mutex::new(vec![0; CHUNK_BYTES].into_boxed_slice()))
    }
}

/// A connection that mostly brings messages.
#[derive(Debug)]
pub(crate) struct Stream {
    socket: TcpStream,
    /// The beginning of a frame whose end has not come yet.
    rest: Vec<u8>,
    /// The rest came with the socket, and may hold whole frames.
    inherited: bool,
    /// Bytes read.
    pub(crate) bytes_in: u64,
}

impl Stream {
    /// Takes over a socket, with what it has read and not handed out yet.
    pub(crate) fn new(socket: Socket) -> Self {
        let (socket, rest) = socket.into_parts();
        Stream { socket, inherited: !rest.is_empty(), rest, bytes_in: 0 }
    }

    /// Reads once and hands every whole message to `visit`, with the moment at which it was there. Gives the close code
    /// when the connection ended. Cancel-safe: what was read was visited.
    ///
    /// # Errors
    /// When the connection fails, the server breaks the framing rules, or a message is longer than a read may be.
    pub(crate) async fn read(
        &mut self,
        chunk: &Chunk,
        mut visit: impl FnMut(&[u8], Instant),
    ) -> Result<Option<u16>> {
        poll_fn(|context| self.poll_read(context, chunk, &mut visit)).await
    }

    fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        chunk: &Chunk,
        visit: &mut impl FnMut(&[u8], Instant),
    ) -> Poll<Result<Option<u16>>> {
        if std::mem::take(&mut self.inherited) {
            let rest = std::mem::take(&mut self.rest);
            return Poll::Ready(self.walk(&rest, visit));
        }
        let mut chunk = chunk.0.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = self.rest.len();
        if kept >= chunk.len() {
            return Poll::Ready(Err(anyhow::anyhow!("a message of more than {CHUNK_BYTES} bytes")));
        }
        let mut room = ReadBuf::new(&mut chunk[kept..]);
        ready!(Pin::new(&mut self.socket).poll_read(context, &mut room))?;
        let count = room.filled().len();
        if count == 0 {
            // RFC 6455 §7.1.5: the end of a connection without a close frame.
            return Poll::Ready(Ok(Some(1006)));
        }
        self.bytes_in += count as u64;
        chunk[..kept].copy_from_slice(&self.rest);
        Poll::Ready(self.walk(&chunk[..kept + count], visit))
    }

    /// Visits the whole frames in `bytes` and keeps the rest.
    fn walk(&mut self, bytes: &[u8], visit: &mut impl FnMut(&[u8], Instant)) -> Result<Option<u16>> {
        let at = now();
        let mut begin = 0;
        while let Some(head) = parse_head(&bytes[begin..])? {
            let from = begin + head.head_bytes;
            let Some(payload) = bytes.get(from..from + head.payload_bytes) else { break };
            begin = from + head.payload_bytes;
            match head.opcode {
                Opcode::Text | Opcode::Binary | Opcode::Continuation => {
                    ensure!(head.last, "a message in several frames");
                    visit(payload, at);
                }
                Opcode::Ping => self.pong(payload),
                Opcode::Pong => {}
                Opcode::Close => match *payload {
                    [high, low, ..] => return Ok(Some(u16::from_be_bytes([high, low]))),
                    [] => return Ok(Some(1005)),
                    [_] => bail!("a close code of one byte"),
                },
            }
        }
        self.rest.clear();
        self.rest.extend_from_slice(&bytes[begin..]);
        Ok(None)
    }

    /// Says goodbye if the connection takes the bytes now; the end of the connection says it otherwise.
    pub(crate) fn say_goodbye(self) {
        self.write(Opcode::Close, &1000_u16.to_be_bytes());
    }

    /// Answers a ping if the connection takes the bytes now; the server asks again otherwise.
    fn pong(&self, payload: &[u8]) {
        self.write(Opcode::Pong, payload);
    }

    fn write(&self, opcode: Opcode, payload: &[u8]) {
        let mut out = Vec::new();
        // The mask protects against caches between browser and server; there is none here.
        write_frame(opcode, payload, [0; 4], &mut out);
        let _ = self.socket.try_write(&out);
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::super::socket::Target;
    use super::*;

    /// Runs a stream against a server that sends `parts`, each of them when the one before was read.
    fn served(parts: Vec<Vec<u8>>) -> (Vec<Vec<u8>>, Result<Option<u16>>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
            let url = format!("ws://{}/ws", listener.local_addr().expect("bound"));
            let target = Target::resolve(&url).await.expect("valid");
            let (next, mut wanted) = tokio::sync::mpsc::channel::<()>(1);
            let server = tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.expect("accept");
                let mut request = vec![0; 4096];
                let _ = stream.read(&mut request).await.expect("request");
                stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\n\r\n").await.expect("answer");
                for part in parts {
                    stream.write_all(&part).await.expect("a part");
                    let _ = wanted.recv().await;
                }
            });
            let socket = Socket::connect(&target, "/ws", None).await.expect("upgraded");
            let (mut stream, chunk, mut seen) = (Stream::new(socket), Chunk::new(), Vec::new());
            let end = loop {
                match stream.read(&chunk, |text, _| seen.push(text.to_vec())).await {
                    // The server may have sent its last part.
                    Ok(None) => drop(next.send(()).await),
                    end => break end,
                }
            };
            drop(next);
            server.await.expect("served");
            (seen, end)
        })
    }

    #[test]
    fn frames_are_visited_however_they_are_cut() {
        let whole = b"\x81\x02hi\x89\x00\x82\x03abc\x81\x00\x88\x02\x03\xe8";
        for cut in 1..whole.len() {
            let (seen, end) = served(vec![whole[..cut].to_vec(), whole[cut..].to_vec()]);
            assert_eq!(seen, [&b"hi"[..], b"abc", b""], "cut at {cut}");
            assert_eq!(end.expect("closed"), Some(1000), "cut at {cut}");
        }
    }

    #[test]
    fn an_end_without_a_goodbye_has_its_code() {
        let (seen, end) = served(vec![b"\x81\x02hi\x81\x05a".to_vec()]);
        assert_eq!((seen.len(), end.expect("closed")), (1, Some(1006)));
    }

    #[test]
    fn fragments_and_endless_messages_are_refused() {
        let (_, end) = served(vec![b"\x01\x02hi".to_vec()]);
        assert!(end.expect_err("refused").to_string().contains("several frames"));
        let mut long = b"\x82\x7f\x00\x00\x00\x00\x00\x10\x00\x00".to_vec();
        long.resize(CHUNK_BYTES + 10, 0);
        let parts = long.chunks(32 << 10).map(<[u8]>::to_vec).collect();
        let (_, end) = served(parts);
        assert!(end.expect_err("refused").to_string().contains("a message of more than"));
    }
}
