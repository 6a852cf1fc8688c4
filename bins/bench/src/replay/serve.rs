//! The plain program beside which a replay is measured: one connection at a time, one SELECT for each, its rows written as
//! events into frames, and one write to the socket for every 64 KiB. No tokens, no rights, no live events.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use super::rows::Rows;
use crate::load::events::write_event;
use crate::load::frame::write_server_head;

/// Bytes of one write.
const WRITE_BYTES: usize = 64 << 10;
const REQUEST_BYTES_MAX: usize = 16 << 10;
/// RFC 6455 §1.3: the key that the load tool sends, and the answer that belongs to it.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// Options of `rows`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The file to make.
    #[arg(long)]
    file: PathBuf,
    /// Where to listen; port 0 takes a free one, which is printed.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Events that there are, over all topics in turn.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..))]
    events: u32,
    /// Topics that there are.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=200))]
    topics: u16,
    /// Bytes of the body of an event.
    #[arg(long, default_value_t = 256)]
    bytes: usize,
    /// What the names of the topics begin with.
    #[arg(long, default_value = "replay")]
    prefix: String,
}

/// Makes the file and serves its rows until the process is ended.
///
/// # Errors
/// When the file cannot be made or the address is taken.
pub(crate) fn serve(options: &Options) -> Result<()> {
    let topics: Vec<String> =
        (0..options.topics).map(|topic| format!("{}.{topic}", options.prefix)).collect();
    let mut rows = Rows::create(&options.file, options.events, &topics, options.bytes)?;
    let listener = TcpListener::bind(options.listen)?;
    println!("listening on http://{}", listener.local_addr()?);
    listen(&mut rows, &listener);
    Ok(())
}

/// Answers one connection after the other.
pub(super) fn listen(rows: &mut Rows, listener: &TcpListener) {
    for stream in listener.incoming() {
        if let Err(fault) = stream.map_err(Into::into).and_then(|stream| answer(rows, stream)) {
            eprintln!("a connection failed: {fault:#}");
        }
    }
}

/// Answers one connection: the upgrade, the events of the topics in its path, and the end of the replay.
fn answer(rows: &mut Rows, mut stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let topics = read_request(&mut stream)?;
    write!(
        stream,
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {ACCEPT}\r\n\r\n"
    )?;
    let (mut out, mut event) = (Vec::with_capacity(WRITE_BYTES + 1_024), Vec::new());
    let count = rows.read(&topics, |(id, topic, at, data)| {
        event.clear();
        write_event(&topic, id, &at, &data, &mut event);
        write_server_head(event.len(), &mut out);
        out.extend_from_slice(&event);
        if out.len() >= WRITE_BYTES {
            stream.write_all(&out)?;
            out.clear();
        }
        Ok(())
    })?;
    let end = format!(r#"{{"type":"replay_complete","count":{count},"complete":true}}"#);
    write_server_head(end.len(), &mut out);
    out.extend_from_slice(end.as_bytes());
    Ok(stream.write_all(&out)?)
}

/// Reads the request of an upgrade and gives the topics in `/rows?topics=a,b`.
fn read_request(stream: &mut TcpStream) -> Result<Vec<String>> {
    let mut request = Vec::new();
    let mut part = [0; 1_024];
    while !request.ends_with(b"\r\n\r\n") {
        let count = stream.read(&mut part)?;
        ensure!(count > 0 && request.len() < REQUEST_BYTES_MAX, "the request does not end");
        request.extend_from_slice(&part[..count]);
    }
    let request = String::from_utf8(request)?;
    ensure!(request.contains(KEY), "this program speaks with the load tool only");
    let path = request.split(' ').nth(1).context("the request has no path")?;
    let topics = path.strip_prefix("/rows?topics=").context("the path is not /rows?topics=")?;
    Ok(topics.split(',').map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(request: &'static str) -> Result<Vec<String>> {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = listener.local_addr().expect("bound");
        let client = std::thread::spawn(move || {
            let mut stream = TcpStream::connect(address).expect("connected");
            stream.write_all(request.as_bytes()).expect("sent");
        });
        let (mut stream, _) = listener.accept().expect("accepted");
        let topics = read_request(&mut stream);
        client.join().expect("sent");
        topics
    }

    #[test]
    fn the_topics_are_in_the_path() {
        let request = "GET /rows?topics=a,b HTTP/1.1\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        assert_eq!(asked(request).expect("valid"), ["a", "b"]);
        for bad in ["GET /rows?topics=a HTTP/1.1\r\n\r\n", "GET /x HTTP/1.1\r\n", ""] {
            assert!(asked(bad).is_err(), "{bad}");
        }
    }
}
