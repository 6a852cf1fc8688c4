//! Two roads from a phone to its server, one for WebSockets and one for requests, each of which a test can break.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use driftline_client::{Backoff, Connector, CourierOptions, SystemClock, SystemRandom, World};
use driftline_testkit::http::Response;
use driftline_testkit::proxy::Proxy;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::net::TcpStream;

/// The world of a phone behind the roads.
pub type RoadWorld = World<Roads, SystemClock, SystemRandom>;

/// The roads. A connection takes one of them by the first line that is sent over it.
#[derive(Clone)]
pub struct Roads(Arc<Both>);

struct Both {
    sockets: Proxy,
    requests: Proxy,
    /// Every request, as it travelled; the lock is held to add bytes or to take a copy.
    posted: Mutex<Vec<Vec<u8>>>,
}

/// Bytes that are read at once.
const CHUNK: usize = 16 << 10;

impl Roads {
    /// Builds both roads to a server.
    pub fn to(server: SocketAddr) -> Self {
        let (sockets, requests) = (Proxy::start(server), Proxy::start(server));
        Self(Arc::new(Both { sockets, requests, posted: Mutex::default() }))
    }

    /// Returns a phone's world that has no other way.
    pub fn world(&self) -> RoadWorld {
        World::new(self.clone(), SystemClock, SystemRandom)
    }

    /// Returns the road of WebSockets.
    pub fn sockets(&self) -> &Proxy {
        &self.0.sockets
    }

    /// Returns the road of requests.
    pub fn requests(&self) -> &Proxy {
        &self.0.requests
    }

    /// Returns every request that was sent, whether it arrived or not, byte for byte.
    pub fn posted(&self) -> Vec<Vec<u8>> {
        self.0.posted.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn travel(&self, near: DuplexStream) -> io::Result<()> {
        let (mut from_phone, mut to_phone) = tokio::io::split(near);
        let mut first = vec![0; CHUNK];
        let len = from_phone.read(&mut first).await?;
        first.truncate(len);
        let is_request = first.starts_with(b"POST ");
        let road = if is_request { &self.0.requests } else { &self.0.sockets };
        let (mut from_server, mut to_server) = TcpStream::connect(road.address()).await?.into_split();
        let place = is_request.then(|| self.begin());
        self.note(place, &first);
        to_server.write_all(&first).await?;
        let out = async {
            let mut chunk = vec![0; CHUNK];
            while let len @ 1.. = from_phone.read(&mut chunk).await? {
                self.note(place, &chunk[..len]);
                to_server.write_all(&chunk[..len]).await?;
            }
            to_server.shutdown().await
        };
        let back = async {
            tokio::io::copy(&mut from_server, &mut to_phone).await?;
            to_phone.shutdown().await
        };
        // When the way back has ended there is nothing left to send for.
        tokio::select! {
            ended = back => ended,
            Err(error) = out => Err(error),
        }
    }

    fn begin(&self) -> usize {
        let mut posted = self.0.posted.lock().unwrap_or_else(PoisonError::into_inner);
        posted.push(Vec::new());
        posted.len() - 1
    }

    fn note(&self, place: Option<usize>, bytes: &[u8]) {
        let mut posted = self.0.posted.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(request) = place.and_then(|place| posted.get_mut(place)) {
            request.extend_from_slice(bytes);
        }
    }
}

impl Connector for Roads {
    type Stream = DuplexStream;

    async fn connect(&self, _: &str) -> io::Result<DuplexStream> {
        let (far, near) = tokio::io::duplex(CHUNK);
        let roads = self.clone();
        // Ends with the connection, whose end the phone sees.
        tokio::spawn(async move { roads.travel(near).await });
        Ok(far)
    }
}

/// How a phone goes about its doors that has no time to lose, and tries for ever.
pub fn hurried() -> CourierOptions {
    let backoff = Backoff { first_ms: 20, max_ms: 200 };
    CourierOptions { backoff, attempts_max: None, answer_ms_max: 15_000, ..CourierOptions::default() }
}

/// Sends a request again as it was, straight to the server.
pub async fn send_again(request: &[u8], to: SocketAddr) -> Response {
    let mut stream = TcpStream::connect(to).await.expect("a server listens");
    stream.write_all(request).await.expect("the server reads a request");
    Response::read(&mut stream, &mut Vec::new()).await.expect("an answer comes")
}
