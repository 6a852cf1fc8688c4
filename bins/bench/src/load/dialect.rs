//! What the scenarios say to a server of either dialect, and how its answers are read.

use std::borrow::Cow;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use tokio::time::timeout;

use super::clock::{Clock, Uuid};
use super::now::unix_ms;
use super::options::{Common, Dialect, run_number};
use super::post::Poster;
use super::socket::{Incoming, Socket, Target};
use crate::rng::Rng;

/// How long a greeting or an answer is awaited while a connection is prepared.
const PATIENCE: Duration = Duration::from_secs(10);

/// The parts of a server's message that matter here; all others are skipped while parsing.
#[derive(Debug, Deserialize)]
pub(crate) struct Answer<'a> {
    #[serde(rename = "type", borrow)]
    pub(crate) kind: Cow<'a, str>,
    #[serde(borrow, default)]
    pub(crate) reply_to: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    pub(crate) sync_id: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    pub(crate) code: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    pub(crate) message: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    pub(crate) hlc: Option<Cow<'a, str>>,
    #[serde(default)]
    pub(crate) retry_after_ms: Option<u64>,
    #[serde(borrow, default)]
    pub(crate) results: Vec<ItemResult<'a>>,
    #[serde(default)]
    session_info: Option<SessionInfo>,
    /// The plain dialect's count of rows that were written.
    #[serde(default)]
    pub(crate) payload: Option<PlainResult>,
}

/// The outcome of one item.
#[derive(Debug, Deserialize)]
pub(crate) struct ItemResult<'a> {
    #[serde(borrow)]
    pub(crate) code: Cow<'a, str>,
    #[serde(default)]
    pub(crate) version: Option<u64>,
}

/// The plain dialect's outcome of a batch.
#[derive(Debug, Deserialize)]
pub(crate) struct PlainResult {
    #[serde(default)]
    pub(crate) applied: u64,
}

#[derive(Debug, Deserialize)]
struct SessionInfo {
    #[serde(default)]
    max_batch_items: Option<usize>,
}

impl<'a> Answer<'a> {
    /// Reads a message.
    pub(crate) fn parse(text: &'a [u8]) -> Result<Self> {
        serde_json::from_slice(text).context("the server's message cannot be read")
    }

    /// The code of an error message, or a stand-in that names the message.
    pub(crate) fn fault(&self) -> &str {
        self.code.as_deref().unwrap_or(&self.kind)
    }
}

/// An open sync session on a connection.
#[derive(Debug)]
pub(crate) struct Session {
    /// The id that session-scoped messages carry.
    pub(crate) sync_id: String,
    /// The most items a batch may have, if the server says so.
    pub(crate) batch_items_max: Option<usize>,
}

/// Opens connections of one run in turn over the tokens.
#[derive(Debug)]
pub(crate) struct Door {
    pub(super) target: Target,
    pub(super) tokens: Vec<String>,
    pub(super) dialect: Dialect,
    run: u64,
}

impl Door {
    /// Resolves the server's address and reads the tokens.
    pub(crate) async fn new(common: &Common) -> Result<Self> {
        let target = Target::resolve(&common.url).await?;
        Ok(Door { target, tokens: common.tokens()?, dialect: common.dialect, run: run_number() })
    }

    /// The number that makes this run's devices and ids new to the server.
    pub(crate) fn run(&self) -> u64 {
        self.run
    }

    /// Connects device number `device` from `source` and waits until the server has let it in.
    ///
    /// # Errors
    /// When the server refuses, closes, or stays silent for 10 seconds.
    pub(crate) async fn enter(&self, device: usize, source: Option<Ipv4Addr>) -> Result<Socket> {
        let work = async {
            let mut socket = Socket::connect(&self.target, &self.path(device), source).await?;
            if self.dialect == Dialect::Driftline {
                await_kind(&mut socket, "connection_established").await?;
            }
            Ok(socket)
        };
        timeout(PATIENCE, work).await.context("no greeting within 10 s")?
    }

    /// Connects device number `device` to `path`, for one request after the other.
    ///
    /// # Errors
    /// When the server cannot be reached.
    pub(crate) async fn post(&self, device: usize, path: &str) -> Result<Poster> {
        let token = &self.tokens[device % self.tokens.len()];
        let path = format!("{path}?device_id={}", self.device(device));
        timeout(PATIENCE, Poster::connect(&self.target, &path, token))
            .await
            .context("no connection within 10 s")?
    }

    /// The name of device number `device` in this run.
    pub(crate) fn device(&self, device: usize) -> String {
        format!("bench-{:010x}-{device}", self.run)
    }

    /// Starts a sync session of device number `device` on its connection, for the kinds in `kinds` (all when
    /// empty); live changes of other kinds then stay away.
    pub(crate) async fn start_sync(
        &self,
        device: usize,
        socket: &mut Socket,
        kinds: &[String],
    ) -> Result<Session> {
        let mut rng = Rng::new(self.run, device as u64);
        let sync_id = Uuid::new(Clock::default().tick(unix_ms()), &mut rng).text();
        let request = serde_json::json!({
            "type": "start_sync", "sync_id": sync_id, "payload": { "data_types": kinds, "total_items": 0 },
        });
        let work = async {
            socket.send(request.to_string().as_bytes()).await?;
            await_kind(socket, "sync_session_started").await
        };
        let batch_items_max = timeout(PATIENCE, work).await.context("no session within 10 s")??;
        Ok(Session { sync_id, batch_items_max })
    }

    fn path(&self, device: usize) -> String {
        let path = self.target.path.as_deref();
        match self.dialect {
            Dialect::Plain => path.unwrap_or("/ws").to_owned(),
            Dialect::Driftline => {
                let path = path.unwrap_or("/ws/mobile/sync");
                let token = &self.tokens[device % self.tokens.len()];
                format!("{path}?device_id={}&token={token}", self.device(device))
            }
        }
    }
}

/// Reads until a message of type `kind` comes and gives the batch limit that it may announce.
pub(super) async fn await_kind(socket: &mut Socket, kind: &str) -> Result<Option<usize>> {
    loop {
        match socket.next().await? {
            Incoming::Closed(code) => bail!("closed with {code} before {kind}"),
            Incoming::Message(text) => {
                let answer = Answer::parse(text)?;
                let said = answer.message.as_deref().unwrap_or_default();
                ensure!(answer.kind != "error", "refused with {}: {said}", answer.fault());
                if answer.kind == kind {
                    return Ok(answer.session_info.and_then(|info| info.max_batch_items));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ack_is_read_without_its_other_fields() {
        let text = br#"{"type":"ack","of":"sync_data","server_time":"x","reply_to":"3","seq":9,"hlc":"0192f3a1b2c3-0001",
            "results":[{"index":0,"op_id":"o","kind":"k","id":"i","code":"applied","version":9,"record":{"fields":{}}},
            {"index":1,"code":"gone"}]}"#;
        let answer = Answer::parse(text).expect("valid");
        assert_eq!((answer.kind.as_ref(), answer.reply_to.as_deref()), ("ack", Some("3")));
        let results: Vec<_> = answer.results.iter().map(|r| (r.code.as_ref(), r.version)).collect();
        assert_eq!(results, [("applied", Some(9)), ("gone", None)]);
    }

    #[test]
    fn an_error_is_read_with_escapes_in_its_text() {
        let text = br#"{"type":"error","code":"RATE_LIMITED","message":"a \"b\"","retry_after_ms":5}"#;
        let answer = Answer::parse(text).expect("valid");
        assert_eq!((answer.fault(), answer.retry_after_ms), ("RATE_LIMITED", Some(5)));
    }

    #[test]
    fn a_plain_ack_is_read() {
        let answer =
            Answer::parse(br#"{"type":"ack","sync_id":"s","payload":{"applied":7}}"#).expect("valid");
        assert_eq!(answer.payload.map(|p| p.applied), Some(7));
    }
}
