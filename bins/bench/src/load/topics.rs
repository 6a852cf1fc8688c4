//! Entering for topics and subscribing to them, in either dialect.

use std::borrow::Cow;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;
use tokio::time::timeout;

use super::dialect::{Door, await_kind};
use super::options::Dialect;
use super::socket::{Incoming, Socket};

/// How long a greeting or an answer is awaited.
const PATIENCE: Duration = Duration::from_secs(10);

/// The answer to a subscription.
#[derive(Debug, Deserialize)]
struct Subscribed<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow, default)]
    code: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    topics: Vec<Subscription<'a>>,
}

/// What became of one topic.
#[derive(Debug, Deserialize)]
struct Subscription<'a> {
    #[serde(borrow)]
    topic: Cow<'a, str>,
    accepted: bool,
    #[serde(borrow, default)]
    code: Option<Cow<'a, str>>,
}

impl Door {
    /// Connects client number `client` for topics and waits until the server has let it in; `query` is added to the
    /// path of our dialect, and begins with `&` when it is not empty.
    ///
    /// # Errors
    /// When the server refuses, closes, or stays silent for 10 seconds.
    pub(crate) async fn enter_topics(
        &self,
        client: usize,
        query: &str,
        source: Option<Ipv4Addr>,
    ) -> Result<Socket> {
        let path = self.target.path.as_deref().unwrap_or("/ws");
        let path = match self.dialect {
            Dialect::Plain => path.to_owned(),
            Dialect::Driftline => {
                let token = &self.tokens[client % self.tokens.len()];
                format!("{path}?client_id={}&token={token}{query}", self.device(client))
            }
        };
        let work = async {
            let mut socket = Socket::connect(&self.target, &path, source).await?;
            if self.dialect == Dialect::Driftline {
                await_kind(&mut socket, "connection_established").await?;
            }
            Ok(socket)
        };
        timeout(PATIENCE, work).await.context("no greeting within 10 s")?
    }

    /// Connects to a path of a plain program, which needs no token and greets nobody.
    ///
    /// # Errors
    /// When the program refuses or stays silent for 10 seconds.
    pub(crate) async fn enter_path(&self, path: &str) -> Result<Socket> {
        timeout(PATIENCE, Socket::connect(&self.target, path, None)).await.context("no answer within 10 s")?
    }

    /// Subscribes a connection to topics and waits for the answer.
    ///
    /// # Errors
    /// When the server refuses one of them, closes, or stays silent for 10 seconds.
    pub(crate) async fn subscribe(&self, socket: &mut Socket, topics: &[String]) -> Result<()> {
        let work = async {
            match self.dialect {
                Dialect::Driftline => {
                    let request = serde_json::json!({
                        "type": "subscribe_events", "id": "s", "payload": { "topics": topics },
                    });
                    socket.send(request.to_string().as_bytes()).await?;
                    await_subscribed(socket).await
                }
                Dialect::Plain => {
                    for topic in topics {
                        let request = serde_json::json!({
                            "type": "subscribe", "sync_id": "s", "payload": { "topic": topic }, "ts": 1,
                        });
                        socket.send(request.to_string().as_bytes()).await?;
                        await_kind(socket, "ack").await?;
                    }
                    Ok(())
                }
            }
        };
        timeout(PATIENCE, work).await.context("no answer to a subscription within 10 s")?
    }
}

async fn await_subscribed(socket: &mut Socket) -> Result<()> {
    loop {
        match socket.next().await? {
            Incoming::Closed(code) => bail!("closed with {code} before the subscription was answered"),
            Incoming::Message(text) => {
                if judge(text)? {
                    return Ok(());
                }
            }
        }
    }
}

/// Tells whether a message accepts the subscription; another one is passed over, and a refusal is an error.
fn judge(text: &[u8]) -> Result<bool> {
    let answer: Subscribed<'_> =
        serde_json::from_slice(text).context("the server's message cannot be read")?;
    ensure!(answer.kind != "error", "a subscription was refused with {}", answer.code.unwrap_or_default());
    if answer.kind != "events_subscribed" {
        return Ok(false);
    }
    for topic in answer.topics {
        let code = topic.code.unwrap_or_default();
        ensure!(topic.accepted, "the subscription to {} was refused with {code}", topic.topic);
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subscription_is_accepted_for_all_its_topics_or_not_at_all() {
        let accepted = br#"{"type":"events_subscribed","reply_to":"s","topics":[{"topic":"a","accepted":true,"position":"e-1"}]}"#;
        assert!(judge(accepted).expect("accepted"));
        assert!(!judge(br#"{"type":"heartbeat","server_time":"x"}"#).expect("passed over"));
        let refused = br#"{"type":"events_subscribed","topics":[{"topic":"a","accepted":true},{"topic":"b","accepted":false,"code":"FORBIDDEN"}]}"#;
        let fault = judge(refused).expect_err("refused").to_string();
        assert!(fault.contains("to b") && fault.contains("FORBIDDEN"), "{fault}");
        let error = br#"{"type":"error","code":"RATE_LIMITED","message":"x"}"#;
        assert!(judge(error).expect_err("refused").to_string().contains("RATE_LIMITED"));
    }
}
