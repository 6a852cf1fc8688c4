//! One WebSocket: the handshake, a task that reads, a task that writes.

use std::io;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use driftline_protocol::Form;
use fastwebsockets::{Frame, OpCode, Payload, Role, WebSocketError, WebSocketRead, WebSocketWrite};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::header::{
    AUTHORIZATION, CONNECTION, HOST, HeaderMap, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use sha1::{Digest as _, Sha1};
use tokio::io::{AsyncRead, AsyncWrite, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::client::ClientError;
use crate::endpoint::{Caller, Endpoint, Route};
use crate::wire::{MESSAGE_BYTES_MAX, Opener, Packer, Unreadable};

/// Whole messages that may wait for the app; beyond that the server has to wait.
const INCOMING_MAX: usize = 64;

/// Messages that may wait to be written. A replica never has more than a handful under way.
const OUTGOING_MAX: usize = 32;

/// What the reading task reports.
#[derive(Debug)]
pub(crate) enum Incoming {
    /// A whole message, as JSON.
    Message(Vec<u8>),
    /// A whole message that cannot be opened; nothing comes after it.
    Unreadable(Unreadable),
    /// The server closed the connection, or it broke; then there is no code.
    Closed { code: Option<u16>, reason: String },
}

/// What the writing task is told.
#[derive(Debug)]
pub(crate) enum Outgoing {
    /// A message, as JSON.
    Message(String),
    Pong(Vec<u8>),
    Close(u16),
}

/// An open socket with its tasks; dropping it ends them.
#[derive(Debug)]
pub(crate) struct Socket {
    pub(crate) incoming: mpsc::Receiver<Incoming>,
    pub(crate) outgoing: mpsc::Sender<Outgoing>,
    pub(crate) tasks: JoinSet<()>,
    /// The form that the server chose.
    pub(crate) form: Form,
}

impl Socket {
    /// Upgrades a stream. Not cancel-safe in itself, but a dropped call leaves nothing behind.
    pub(crate) async fn open<S>(
        stream: S,
        endpoint: &Endpoint,
        route: Route,
        nonce: [u8; 16],
    ) -> Result<Self, ClientError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let mut tasks = JoinSet::new();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tasks.spawn(async move {
            // What goes wrong shows at the other end of the connection: in the answer or in the upgraded stream.
            let _ = connection.with_upgrades().await;
        });
        let key = STANDARD.encode(nonce);
        let mut response = sender.send_request(request(endpoint, route, &key)?).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let status = response.status().as_u16();
            let body = Limited::new(response.into_body(), 64 << 10).collect().await;
            let text = body.map(|body| String::from_utf8_lossy(&body.to_bytes()).into_owned());
            return Err(ClientError::Refused { status, body: text.unwrap_or_default() });
        }
        if !is_accepted(response.headers(), &key) {
            return Err(ClientError::NotWebSocket);
        }
        let form = agreed(response.headers(), endpoint.forms())?;
        let upgraded = TokioIo::new(hyper::upgrade::on(&mut response).await?);
        let (reader, writer) = tokio::io::split(upgraded);
        let (mut reader, writer) = fastwebsockets::after_handshake_split(reader, writer, Role::Client);
        reader.set_auto_close(false);
        reader.set_auto_pong(false);
        reader.set_max_message_size(MESSAGE_BYTES_MAX);
        let (to_app, incoming) = mpsc::channel(INCOMING_MAX);
        let (outgoing, to_write) = mpsc::channel(OUTGOING_MAX);
        let pongs = outgoing.downgrade();
        tasks.spawn(read(reader, Opener::new(form), to_app, pongs));
        tasks.spawn(write(writer, Packer::new(form), to_write));
        Ok(Self { incoming, outgoing, tasks, form })
    }
}

fn request(endpoint: &Endpoint, route: Route, key: &str) -> Result<Request<Empty<Bytes>>, ClientError> {
    let offered: Vec<&str> = endpoint.forms().iter().map(|form| form.subprotocol()).collect();
    let target = endpoint.target(route).ok_or(ClientError::NoToken)?;
    let mut request = Request::get(target)
        .header(HOST, endpoint.authority())
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, "websocket")
        .header(SEC_WEBSOCKET_VERSION, "13")
        .header(SEC_WEBSOCKET_KEY, key);
    if let (Route::Sync, Caller::Token { token, .. }) = (route, endpoint.caller()) {
        request = request.header(AUTHORIZATION, format!("Bearer {token}"));
    }
    if !offered.is_empty() {
        request = request.header(SEC_WEBSOCKET_PROTOCOL, offered.join(", "));
    }
    request.body(Empty::new()).map_err(|_| ClientError::NotWebSocket)
}

/// Finds the form that the server chose. One that names none speaks JSON; one that names what it was not offered
/// fails the handshake (RFC 6455 §4.1).
fn agreed(headers: &HeaderMap, offered: &[Form]) -> Result<Form, ClientError> {
    let mut chosen = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter();
    let Some(first) = chosen.next() else { return Ok(Form::default()) };
    let name = String::from_utf8_lossy(first.as_bytes());
    let form = Form::of_subprotocol(&name).filter(|form| offered.contains(form) && chosen.next().is_none());
    form.ok_or_else(|| ClientError::Subprotocol { chosen: name.into_owned() })
}

/// Checks the server's half of the handshake (RFC 6455 §4.1).
fn is_accepted(headers: &HeaderMap, key: &str) -> bool {
    let is = |name, wanted: &str| {
        let value = headers.get(name).and_then(|value| value.to_str().ok());
        value.is_some_and(|value| value.eq_ignore_ascii_case(wanted))
    };
    let digest =
        Sha1::new().chain_update(key).chain_update("258EAFA5-E914-47DA-95CA-C5AB0DC85B11").finalize();
    let accept = headers.get(SEC_WEBSOCKET_ACCEPT).is_some_and(|value| value == &STANDARD.encode(digest));
    accept && is(UPGRADE, "websocket") && is(CONNECTION, "upgrade")
}

type Reader<S> = WebSocketRead<ReadHalf<S>>;
type Writer<S> = WebSocketWrite<WriteHalf<S>>;

/// Owns the reading half, because a dropped read of a frame would lose bytes.
async fn read<S: AsyncRead + Unpin>(
    mut reader: Reader<S>,
    mut opener: Opener,
    to_app: mpsc::Sender<Incoming>,
    pongs: mpsc::WeakSender<Outgoing>,
) {
    let last = loop {
        match next_message(&mut reader, &mut opener, &pongs).await {
            Ok(Incoming::Message(message)) => {
                if to_app.send(Incoming::Message(message)).await.is_err() {
                    return;
                }
            }
            Ok(last) => break last,
            Err(error) => break Incoming::Closed { code: None, reason: error.to_string() },
        }
    };
    // Nobody to tell means that the client is gone already.
    let _ = to_app.send(last).await;
}

/// Reads frames until a message is whole. Control frames may stand between its fragments.
async fn next_message<S: AsyncRead + Unpin>(
    reader: &mut Reader<S>,
    opener: &mut Opener,
    pongs: &mpsc::WeakSender<Outgoing>,
) -> Result<Incoming, WebSocketError> {
    let mut message = Vec::new();
    let mut opcode = OpCode::Text;
    loop {
        let frame = reader.read_frame(&mut |_| async { Ok::<_, io::Error>(()) }).await?;
        match frame.opcode {
            OpCode::Text | OpCode::Binary | OpCode::Continuation => {
                if frame.opcode != OpCode::Continuation {
                    opcode = frame.opcode;
                }
                if message.len() + frame.payload.len() > MESSAGE_BYTES_MAX {
                    return Err(WebSocketError::FrameTooLarge);
                }
                message.extend_from_slice(&frame.payload);
                if frame.fin {
                    let opened = opener.open(opcode, message);
                    return Ok(opened.map_or_else(Incoming::Unreadable, Incoming::Message));
                }
            }
            OpCode::Ping => {
                // A full queue is being written right now, which proves life as well as a pong does.
                let pong = Outgoing::Pong(frame.payload.to_vec());
                let _ = pongs.upgrade().map(|pongs| pongs.try_send(pong));
            }
            OpCode::Pong => {}
            OpCode::Close => return Ok(closed(&frame.payload)),
        }
    }
}

fn closed(payload: &[u8]) -> Incoming {
    let (code, reason) = payload.split_at_checked(2).unwrap_or_default();
    let code = code.try_into().ok().map(u16::from_be_bytes);
    Incoming::Closed { code, reason: String::from_utf8_lossy(reason).into_owned() }
}

async fn write<S: AsyncWrite + Unpin>(
    mut writer: Writer<S>,
    mut packer: Packer,
    mut to_write: mpsc::Receiver<Outgoing>,
) {
    while let Some(outgoing) = to_write.recv().await {
        let is_close = matches!(outgoing, Outgoing::Close(_));
        let frame = match outgoing {
            Outgoing::Message(json) => {
                let (opcode, payload) = packer.pack(json);
                Frame::new(true, opcode, None, Payload::Owned(payload))
            }
            Outgoing::Pong(payload) => Frame::pong(Payload::Owned(payload)),
            Outgoing::Close(code) => Frame::close(code, b""),
        };
        // A broken stream ends the reading task too, which tells the client.
        if writer.write_frame(frame).await.is_err() || writer.flush().await.is_err() || is_close {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_accept_key_is_that_of_the_standard() {
        // The example of RFC 6455 §1.3.
        let mut headers = HeaderMap::new();
        for (name, value) in [
            (UPGRADE, "WebSocket"),
            (CONNECTION, "Upgrade"),
            (SEC_WEBSOCKET_ACCEPT, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
        ] {
            headers.insert(name, value.parse().expect("a header"));
        }
        assert!(is_accepted(&headers, "dGhlIHNhbXBsZSBub25jZQ=="));
        assert!(!is_accepted(&headers, "AAAAAAAAAAAAAAAAAAAAAA=="));
    }

    #[test]
    fn the_form_is_one_that_was_offered() {
        let agreed = |echoed: &[&str], offered: &[Form]| {
            let mut headers = HeaderMap::new();
            for name in echoed {
                headers.append(SEC_WEBSOCKET_PROTOCOL, name.parse().expect("a header"));
            }
            super::agreed(&headers, offered).map_err(|error| error.to_string())
        };
        for form in Form::ALL {
            assert_eq!(agreed(&[form.subprotocol()], &Form::ALL), Ok(form));
            assert_eq!(agreed(&[], &[form]), Ok(Form::default()), "who names none speaks JSON");
        }
        let json = Form::default().subprotocol();
        for echoed in [&["driftline.v1.msgpack"][..], &["chat"], &[""], &[json, json]] {
            assert!(agreed(echoed, &[Form::default()]).is_err(), "{echoed:?}");
        }
    }

    #[test]
    fn close_frames_are_read() {
        let read = |payload: &[u8]| match closed(payload) {
            Incoming::Closed { code, reason } => (code, reason),
            other => unreachable!("closed() does not give {other:?}"),
        };
        assert_eq!(read(&[]), (None, String::new()));
        assert_eq!(read(&[0x0f, 0xa1, b'x']), (Some(4001), "x".to_owned()));
    }
}
