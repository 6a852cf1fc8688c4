//! The options that all scenarios share.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::now::unix_ms;
use crate::rng::Rng;

/// The language spoken with the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Dialect {
    /// The sync protocol on `/ws/mobile/sync`, with a token and a device.
    Driftline,
    /// The plain limit program on `/ws`: the same bodies, without identity, versions and conflicts.
    Plain,
}

/// Options of every scenario.
#[derive(Debug, Clone, Args, Serialize)]
pub(crate) struct Common {
    /// Address of the server: ws://HOST:PORT, with a path to use another route than the dialect's.
    #[arg(long)]
    pub(crate) url: String,
    /// Bearer token; several, separated by commas, are used in turn by the connections.
    #[arg(long, value_delimiter = ',')]
    #[serde(skip)]
    pub(crate) token: Vec<String>,
    /// File with a token; several, on lines or separated by commas, are used in turn.
    #[arg(long, conflicts_with = "token")]
    #[serde(skip)]
    pub(crate) token_file: Option<PathBuf>,
    /// Language spoken with the server.
    #[arg(long, value_enum, default_value_t = Dialect::Driftline)]
    pub(crate) dialect: Dialect,
    /// Length of the measured window in seconds.
    #[arg(long, default_value_t = 10.0)]
    pub(crate) seconds: f64,
    /// Seconds of the same load before the window.
    #[arg(long, default_value_t = 0.0)]
    pub(crate) warmup: f64,
    /// Process whose CPU time and memory are measured with all its children; may be given again.
    #[arg(long)]
    pub(crate) pid: Vec<u32>,
    /// Seed of everything the load draws, except what must be new in each run (ids of devices and operations).
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
}

impl Common {
    /// Gives the tokens to use in turn; without any, connections carry none.
    pub(crate) fn tokens(&self) -> Result<Vec<String>> {
        let text = match &self.token_file {
            Some(path) => {
                std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?
            }
            None => self.token.join(","),
        };
        let tokens: Vec<String> = text
            .split(|c: char| c == ',' || c.is_whitespace())
            .filter(|token| !token.is_empty())
            .map(str::to_owned)
            .collect();
        ensure!(
            self.dialect == Dialect::Plain || !tokens.is_empty(),
            "this dialect needs --token or --token-file"
        );
        Ok(tokens)
    }

    /// Gives the length of the measured window.
    pub(crate) fn length(&self) -> Result<Duration> {
        Duration::try_from_secs_f64(self.seconds).context("--seconds must be a positive number")
    }

    /// Gives the length of the warm-up.
    pub(crate) fn warmup_length(&self) -> Result<Duration> {
        Duration::try_from_secs_f64(self.warmup).context("--warmup must not be negative")
    }
}

/// A number that tells this run from every other, for names that a server remembers.
pub(crate) fn run_number() -> u64 {
    Rng::new(unix_ms(), u64::from(std::process::id())).next() >> 24
}

#[cfg(test)]
mod tests {
    use super::*;

    fn common(dialect: Dialect, token: &[&str]) -> Common {
        Common {
            url: "ws://127.0.0.1:1".to_owned(),
            token: token.iter().map(|&t| t.to_owned()).collect(),
            token_file: None,
            dialect,
            seconds: 1.0,
            warmup: 0.0,
            pid: Vec::new(),
            seed: 1,
        }
    }

    #[test]
    fn tokens_are_taken_in_turn_and_required_by_our_dialect() {
        assert_eq!(common(Dialect::Driftline, &["a", "b"]).tokens().expect("tokens"), ["a", "b"]);
        assert!(common(Dialect::Driftline, &[]).tokens().is_err());
        assert!(common(Dialect::Plain, &[]).tokens().expect("none").is_empty());
    }

    #[test]
    fn tokens_are_not_written_into_the_report() {
        let value = serde_json::to_string(&common(Dialect::Driftline, &["secret"])).expect("json");
        assert!(!value.contains("secret"), "{value}");
    }

    #[test]
    fn a_negative_length_is_refused() {
        let mut options = common(Dialect::Plain, &[]);
        options.seconds = -1.0;
        assert!(options.length().is_err());
    }
}
