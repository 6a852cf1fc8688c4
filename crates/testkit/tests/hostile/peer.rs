//! What an attacker hears over a WebSocket.

use std::time::Duration;

use driftline_protocol::{Inflater, json_of_msgpack};
use driftline_testkit::http::Response;
use driftline_testkit::socket::{Frame, Incoming, Socket};
use serde_json::Value;

use crate::scene::MIB;

/// Rounds after which an attacker that nobody stops gives up.
const ENDLESS: usize = 2_000;

/// How long an attacker that nobody stopped waits for a verdict all the same.
const SOON: Duration = Duration::from_secs(10);

/// Listens to what the server says, and remembers the code of the last error.
#[derive(Debug, Default)]
pub(crate) struct Ear {
    error: Option<String>,
}

impl Ear {
    /// Hears what came; gives what the attacker was told, once the connection ends.
    fn hear(&mut self, incoming: Incoming) -> Option<String> {
        match incoming {
            Incoming::Text(text) => self.note(serde_json::from_str(&text).ok()),
            Incoming::Binary(bytes) => self.note(document(&bytes)),
            Incoming::Ping(_) | Incoming::Pong(_) => {}
            Incoming::Close(code, _) => return Some(self.verdict(code)),
            Incoming::End => return Some(self.verdict(1006)),
        }
        None
    }

    /// Hears what has come by now; gives what the attacker was told, if the connection has ended. What was said before
    /// is remembered, for an error and its close may come apart.
    pub(crate) fn hear_now(&mut self, socket: &mut Socket) -> Option<String> {
        while let Some(incoming) = socket.read_now() {
            if let Some(verdict) = self.hear(incoming) {
                return Some(verdict);
            }
        }
        None
    }

    /// Hears all that comes until the connection ends.
    async fn verdict_of(&mut self, socket: &mut Socket) -> String {
        loop {
            if let Some(verdict) = self.hear(socket.read().await) {
                return verdict;
            }
        }
    }

    fn note(&mut self, message: Option<Value>) {
        let Some(message) = message else { return self.error = Some("unreadable".into()) };
        if message["type"] == "error" {
            self.error = message["code"].as_str().map(str::to_owned);
        }
    }

    fn verdict(&mut self, close: u16) -> String {
        match self.error.take() {
            Some(error) => format!("{error} {close}"),
            None => close.to_string(),
        }
    }
}

/// Opens a message of any form.
fn document(bytes: &[u8]) -> Option<Value> {
    let (mut inflater, plain) = (Inflater::default(), bytes.first().is_some_and(|first| *first > 1));
    let opened = if plain { bytes.into() } else { inflater.open(bytes, MIB).ok()? };
    let json = if opened.first() == Some(&b'{') {
        String::from_utf8(opened.into_owned()).ok()
    } else {
        json_of_msgpack(&opened, 64).ok()
    };
    serde_json::from_str(&json?).ok()
}

/// Reads until the connection ends: the code of the last error, if there was one, and the close code; 1006 without a
/// close frame.
pub(crate) async fn verdict(socket: &mut Socket) -> String {
    Ear::default().verdict_of(socket).await
}

/// Sends bytes, and reads until the connection ends.
pub(crate) async fn told(mut socket: Socket, bytes: &[u8]) -> String {
    socket.send_bytes(bytes).await;
    verdict(&mut socket).await
}

/// Sends a beginning, and then the same bytes again and again until the connection ends.
pub(crate) async fn told_endlessly(mut socket: Socket, first: &[u8], again: &[u8]) -> String {
    socket.send_bytes(first).await;
    let mut ear = Ear::default();
    for _ in 0..ENDLESS {
        socket.send_bytes(again).await;
        if let Some(verdict) = ear.hear_now(&mut socket) {
            return verdict;
        }
    }
    // All of it lies in the kernel by now; the verdict on it may be under way.
    let heard = tokio::time::timeout(SOON, ear.verdict_of(&mut socket)).await;
    heard.unwrap_or_else(|_| format!("nothing, {ENDLESS} times"))
}

/// Sends a frame and reads the error that it is answered with, by a server that goes on serving.
pub(crate) async fn told_and_served(mut socket: Socket, bytes: &[u8]) -> String {
    socket.send_bytes(bytes).await;
    socket.send_frame(&Frame::last(Frame::PING, "still there?")).await;
    let mut ear = Ear::default();
    loop {
        match socket.read().await {
            Incoming::Pong(_) => return ear.error.unwrap_or_else(|| "no error".into()),
            incoming => {
                if let Some(verdict) = ear.hear(incoming) {
                    return verdict;
                }
            }
        }
    }
}

/// Names an answer over HTTP by its status and its code. One that says to come back later has to say when.
pub(crate) fn named(response: &Response) -> String {
    let code = serde_json::from_slice::<Value>(&response.body).ok();
    let code = code.and_then(|problem| Some(problem["code"].as_str()?.to_owned()));
    let when = if matches!(response.status, 429 | 503) && response.header("retry-after").is_none() {
        " without Retry-After"
    } else {
        ""
    };
    match code {
        Some(code) => format!("{} {code}{when}", response.status),
        None => format!("{}{when}", response.status),
    }
}
