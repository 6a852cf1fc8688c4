//! Opening a connection, and posting one request.

use bytes::Bytes;
use driftline_protocol::{ErrorCode, Introduction, TelemetryGreeting, TelemetryReply};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::Request;
use hyper::header::{AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST};
use hyper_util::rt::TokioIo;

use crate::client::{CONNECT_MAX, ClientError};
use crate::endpoint::{Caller, Endpoint, Route};
use crate::socket::{Incoming, Outgoing, Socket};
use crate::wire::MESSAGE_BYTES_MAX;
use crate::world::{Clock, Connector, Random, World};

/// A connection that the server greeted.
pub(super) struct Opened {
    pub(super) socket: Socket,
    pub(super) greeting: TelemetryGreeting,
}

/// An answer over HTTP.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Bytes,
}

/// Opens a connection and waits for the greeting. A dropped call leaves nothing behind.
pub(super) async fn dial<C: Connector, K: Clock, R: Random>(
    world: World<C, K, R>,
    endpoint: Endpoint,
) -> Result<Opened, ClientError> {
    let opening = async {
        let stream = world.connector.connect(endpoint.authority()).await?;
        let route = endpoint.telemetry_route();
        let mut socket = Socket::open(stream, &endpoint, route, world.nonce()).await?;
        if route == Route::IngestAuth {
            // A writer that is gone shows in what is read.
            let _ = socket.outgoing.send(Outgoing::Message(introduction(&endpoint))).await;
        }
        let greeting = greeting(&mut socket).await?;
        Ok(Opened { socket, greeting })
    };
    tokio::select! {
        opened = opening => opened,
        () = world.clock.sleep(CONNECT_MAX) => Err(ClientError::Deadline { queue_len: 0 }),
    }
}

fn introduction(endpoint: &Endpoint) -> String {
    match endpoint.caller() {
        Caller::Token { token, device_id } => Introduction::Token(token, device_id).encode(),
        Caller::DeviceHash(hash) => Introduction::DeviceHash(hash).encode(),
    }
}

async fn greeting(socket: &mut Socket) -> Result<TelemetryGreeting, ClientError> {
    let closed = |code, reason| ClientError::Closed { code, reason };
    loop {
        match socket.incoming.recv().await {
            Some(Incoming::Message(message)) => {
                match TelemetryReply::decode(&message).map_err(ClientError::Fault)?.1 {
                    TelemetryReply::Established(greeting) => return Ok(greeting),
                    TelemetryReply::Error(error) if error.code == ErrorCode::Unauthorized.as_str() => {
                        return Err(closed(Some(4001), error.message));
                    }
                    _ => {}
                }
            }
            Some(Incoming::Unreadable(cause)) => return Err(ClientError::Unreadable(cause)),
            Some(Incoming::Closed { code, reason }) => return Err(closed(code, reason)),
            None => return Err(closed(None, "the connection is gone".into())),
        }
    }
}

/// Posts messages to the HTTP door of telemetry. A dropped call leaves nothing behind but, maybe, its effect.
pub(super) async fn post<C: Connector, K: Clock, R: Random>(
    world: World<C, K, R>,
    endpoint: Endpoint,
    body: String,
    within: std::time::Duration,
) -> Result<Answer, ClientError> {
    let posting = async {
        let stream = world.connector.connect(endpoint.authority()).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let asking = async {
            let response = sender.send_request(request(&endpoint, body)?).await?;
            let status = response.status().as_u16();
            let body = Limited::new(response.into_body(), MESSAGE_BYTES_MAX).collect().await;
            // An answer that breaks off or never ends is none.
            let body = body.map_err(|error| std::io::Error::other(error.to_string()))?;
            Ok(Answer { status, body: body.to_bytes() })
        };
        tokio::pin!(connection, asking);
        tokio::select! {
            answer = &mut asking => answer,
            // The connection may end with the last bytes of the answer.
            _ = &mut connection => asking.await,
        }
    };
    tokio::select! {
        answer = posting => answer,
        () = world.clock.sleep(within) => Err(ClientError::Deadline { queue_len: 0 }),
    }
}

fn request(endpoint: &Endpoint, body: String) -> Result<Request<Full<Bytes>>, ClientError> {
    let request = Request::post(endpoint.ingest_target())
        .header(HOST, endpoint.authority())
        .header(CONNECTION, "close")
        .header(CONTENT_TYPE, "application/json");
    let request = match endpoint.caller() {
        Caller::Token { token, .. } => request.header(AUTHORIZATION, format!("Bearer {token}")),
        Caller::DeviceHash(hash) => request.header("X-Device-Hash", hash),
    };
    // Everything that stands in the head was checked when the endpoint was made.
    request.body(Full::new(body.into())).map_err(|error| std::io::Error::other(error).into())
}
