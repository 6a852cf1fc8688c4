//! `load telemetry`: messages of new samples through either door; the plain dialect upserts the same fields.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::io::Write as _;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::clock::{Clock, Uuid};
use super::dialect::{Door, PlainResult};
use super::drive::{Exchange, Pace, Plan, Settled, drive};
use super::now::unix_ms;
use super::options::{Common, Dialect};
use super::report::{Report, Unit};
use super::samples::write_fields;
use super::tally::Codes;
use super::window::{Window, observe};
use crate::rng::Rng;

/// Where documents of samples are posted to.
const POST_PATH: &str = "/api/v1/ingest";

/// The way that samples take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Way {
    /// Messages on a WebSocket.
    Ws,
    /// Requests on connections that are kept alive.
    Http,
}

/// Options of `load telemetry`.
#[derive(Debug, Args, Serialize)]
pub(crate) struct Options {
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) common: Common,
    /// The way that samples take; the plain dialect knows only the WebSocket.
    #[arg(long, value_enum, default_value_t = Way::Ws)]
    door: Way,
    /// The kind of the samples, which the server has to know as one of telemetry.
    #[arg(long, default_value = "reading")]
    kind: String,
    /// Connections, each one device.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    connections: u16,
    /// Samples in a message.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..))]
    items: u16,
    /// Messages a second over all connections (open loop; latency counts from the intended send time).
    #[arg(long)]
    rate: Option<f64>,
    /// Messages that a connection may have unanswered [default: 4 on a WebSocket, 1 by requests].
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=4))]
    pipeline: Option<u8>,
}

/// Sends for the length of the window.
pub(crate) async fn run(options: &Options) -> Result<Report> {
    let connections = usize::from(options.connections);
    let (dialect, door) = (options.common.dialect, options.door);
    ensure!(options.rate.is_none_or(|rate| rate > 0.0), "--rate must be positive");
    ensure!(dialect == Dialect::Driftline || door == Way::Ws, "the plain dialect has no --door http");
    ensure!(
        door == Way::Ws || options.pipeline.is_none_or(|pipeline| pipeline == 1),
        "requests wait for each other"
    );
    let entrance = Door::new(&options.common).await?;
    let (mut sockets, mut posters) = (Vec::new(), Vec::new());
    for index in 0..connections {
        match door {
            Way::Ws => sockets.push(entrance.enter(index, None).await?),
            Way::Http => posters.push(entrance.post(index, POST_PATH).await?),
        }
    }
    let window = Window::open(&options.common)?;
    let plan = |index| Plan {
        window,
        pace: Pace::new(options.rate, index, connections),
        pipeline: usize::from(options.pipeline.unwrap_or(if door == Way::Ws { 4 } else { 1 })),
        requests_max: None,
    };
    let sender = |index: usize| Sender {
        dialect,
        door,
        kind: options.kind.clone(),
        items: usize::from(options.items),
        // Keys must be new in each run, what is drawn besides them need not: both come from this stream.
        rng: Rng::new(options.common.seed ^ entrance.run(), index as u64),
        clock: Clock::default(),
        last: 0,
        in_flight: VecDeque::new(),
    };
    let mut tasks = JoinSet::new();
    for (index, socket) in sockets.into_iter().enumerate() {
        tasks.spawn(drive(sender(index), socket, plan(index)));
    }
    for (index, poster) in posters.into_iter().enumerate() {
        tasks.spawn(drive(sender(index), poster, plan(index)));
    }
    let (seen, tally) = observe(window, &options.common.pid, tasks).await?;
    Report::new(("telemetry", Unit::Items), (options, &options.common), &seen, tally)
}

/// A device that sends samples.
#[derive(Debug)]
struct Sender {
    dialect: Dialect,
    door: Way,
    kind: String,
    /// Samples in a message.
    items: usize,
    rng: Rng,
    clock: Clock,
    last: u64,
    /// Unanswered messages: their names and when they were due.
    in_flight: VecDeque<(String, Instant)>,
}

/// The parts of an answer that matter here.
#[derive(Debug, Deserialize)]
struct Answer<'a> {
    #[serde(rename = "type", borrow, default)]
    kind: Cow<'a, str>,
    #[serde(borrow, default)]
    reply_to: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    sync_id: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    code: Option<Cow<'a, str>>,
    #[serde(default)]
    retry_after_ms: Option<u64>,
    #[serde(default)]
    accepted: Option<u64>,
    #[serde(default)]
    duplicates: u64,
    #[serde(default)]
    rejected: Vec<serde::de::IgnoredAny>,
    #[serde(default)]
    payload: Option<PlainResult>,
}

impl Sender {
    fn begin(&mut self, out: &mut Vec<u8>) -> std::io::Result<String> {
        self.last += 1;
        let stamp = self.clock.tick(unix_ms());
        let key = Uuid::new(stamp, &mut self.rng).text();
        let kind = &self.kind;
        match (self.dialect, self.door) {
            (Dialect::Plain, _) => {
                write!(out, r#"{{"type":"batch","sync_id":"{key}","payload":{{"items":["#)?;
                return Ok(key);
            }
            (Dialect::Driftline, Way::Ws) => {
                let name = self.last;
                write!(
                    out,
                    r#"{{"type":"{kind}","id":"{name}","idempotency_key":"{key}","payload":{{"items":["#
                )?;
            }
            // The connection writes the key into the head of the request.
            (Dialect::Driftline, Way::Http) => write!(out, r#"{{"type":"{kind}","payload":{{"items":["#)?,
        }
        Ok(self.last.to_string())
    }

    fn write_sample(&mut self, out: &mut Vec<u8>) -> std::io::Result<()> {
        let stamp = self.clock.tick(unix_ms());
        let at_ms = stamp >> 16;
        if self.dialect == Dialect::Driftline {
            write_fields(at_ms, &mut self.rng, out);
            return Ok(());
        }
        out.extend_from_slice(br#"{"id":""#);
        Uuid::new(stamp, &mut self.rng).write(out);
        write!(out, r#"","collection":"{}","ver":{stamp},"updated_at":{at_ms},"data":"#, self.kind)?;
        write_fields(at_ms, &mut self.rng, out);
        out.push(b'}');
        Ok(())
    }

    /// Takes the message that an answer names, or the oldest when it names none.
    fn take(&mut self, answer: &Answer<'_>) -> Option<Instant> {
        let named = match self.dialect {
            Dialect::Driftline => answer.reply_to.as_deref(),
            Dialect::Plain => answer.sync_id.as_deref(),
        };
        let at = match named {
            Some(name) => self.in_flight.iter().position(|(own, _)| own == name)?,
            None => 0,
        };
        self.in_flight.remove(at).map(|(_, due)| due)
    }
}

impl Exchange for Sender {
    fn request(&mut self, due: Instant, out: &mut Vec<u8>) {
        let name = self.begin(out).expect("writing to memory does not fail");
        for index in 0..self.items {
            if index > 0 {
                out.push(b',');
            }
            self.write_sample(out).expect("writing to memory does not fail");
        }
        out.extend_from_slice(b"]}");
        if self.dialect == Dialect::Plain {
            write!(out, r#","ts":{}"#, unix_ms()).expect("writing to memory does not fail");
        }
        out.push(b'}');
        self.in_flight.push_back((name, due));
    }

    fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    fn answer(&mut self, text: &[u8], results: &mut Codes) -> Result<Settled> {
        let answer: Answer<'_> =
            serde_json::from_slice(text).context("the server's message cannot be read")?;
        if answer.accepted.is_none() && answer.code.is_none() && answer.kind != "ack" {
            return Ok(Settled::Nothing);
        }
        let due = self.take(&answer);
        let plain = answer.payload.as_ref().filter(|_| self.dialect == Dialect::Plain);
        match (due, answer.accepted.or(plain.map(|plain| plain.applied))) {
            (Some(due), Some(accepted)) => {
                results.add("accepted", accepted);
                results.add("duplicates", answer.duplicates);
                results.add("rejected", answer.rejected.len() as u64);
                Ok(Settled::Done { due, items: accepted })
            }
            (None, Some(_)) => Ok(Settled::Nothing),
            (due, None) => Ok(Settled::Refused {
                due,
                code: answer.code.as_deref().unwrap_or("unreadable").to_owned(),
                pause: answer.retry_after_ms.map(Duration::from_millis),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::now::now;
    use super::*;

    fn sender(dialect: Dialect, door: Way) -> Sender {
        Sender {
            dialect,
            door,
            kind: "reading".to_owned(),
            items: 3,
            rng: Rng::new(1, 1),
            clock: Clock::default(),
            last: 0,
            in_flight: VecDeque::new(),
        }
    }

    fn sent(sender: &mut Sender) -> serde_json::Value {
        let mut out = Vec::new();
        sender.request(now(), &mut out);
        serde_json::from_slice(&out).expect("valid JSON")
    }

    #[test]
    fn each_message_has_a_key_of_its_own_and_new_samples() {
        let mut sender = sender(Dialect::Driftline, Way::Ws);
        let (one, two) = (sent(&mut sender), sent(&mut sender));
        assert_eq!((&one["type"], &one["id"], &two["id"]), (&"reading".into(), &"1".into(), &"2".into()));
        assert_ne!(one["idempotency_key"], two["idempotency_key"]);
        let items = one["payload"]["items"].as_array().expect("a list");
        assert_eq!(items.len(), 3);
        assert!(items.iter().all(|item| item["timestamp"].is_u64() && item.get("id").is_none()), "{one}");
    }

    #[test]
    fn the_plain_dialect_gets_the_same_fields() {
        let message = sent(&mut sender(Dialect::Plain, Way::Ws));
        let item = &message["payload"]["items"][2];
        assert!(
            item["id"].is_string() && item["ver"].is_u64() && item["data"]["unit"].is_string(),
            "{message}"
        );
    }

    #[test]
    fn answers_settle_the_messages_that_they_name() {
        let mut sender = sender(Dialect::Driftline, Way::Ws);
        let _ = (sent(&mut sender), sent(&mut sender));
        let mut codes = Codes::default();
        let mut answer = |text: &str| sender.answer(text.as_bytes(), &mut codes).expect("readable");
        let done = answer(
            r#"{"type":"ack","of":"reading","reply_to":"2","accepted":2,"duplicates":0,"rejected":[{"index":1}]}"#,
        );
        assert!(matches!(done, Settled::Done { items: 2, .. }), "{done:?}");
        assert_eq!(answer(r#"{"type":"heartbeat"}"#), Settled::Nothing);
        let refused = answer(r#"{"type":"error","code":"RATE_LIMITED","reply_to":"1","retry_after_ms":7}"#);
        let wanted = (Some(Duration::from_millis(7)), true);
        assert!(
            matches!(&refused, Settled::Refused { due, pause, .. } if (*pause, due.is_some()) == wanted),
            "{refused:?}"
        );
        assert_eq!(sender.in_flight(), 0);
        assert_eq!(
            codes.into_map().into_iter().collect::<Vec<_>>(),
            [("accepted".into(), 2), ("rejected".into(), 1)]
        );
    }

    #[test]
    fn a_request_is_answered_by_the_next_document() {
        let mut sender = sender(Dialect::Driftline, Way::Http);
        assert!(sent(&mut sender).get("idempotency_key").is_none());
        let mut codes = Codes::default();
        let text =
            br#"{"type":"https://x/errors/STORE_UNAVAILABLE","code":"STORE_UNAVAILABLE","status":503}"#;
        let refused = sender.answer(text, &mut codes).expect("readable");
        assert!(
            matches!(&refused, Settled::Refused { code, .. } if code == "STORE_UNAVAILABLE"),
            "{refused:?}"
        );
        assert_eq!(sender.in_flight(), 0);
    }
}
