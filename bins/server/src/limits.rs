//! `[limits]` of the configuration file.

use std::collections::BTreeMap;

use anyhow::bail;
use driftline_model::{Limits, Rate};
use driftline_protocol::Inbound;
use serde::Deserialize;

/// `[limits]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct LimitsConfig {
    batch_items: Option<usize>,
    message_bytes: Option<usize>,
    record_bytes: Option<usize>,
    page_rows: Option<usize>,
    page_bytes: Option<usize>,
    unacknowledged_batches: Option<usize>,
    outbound_bytes: Option<usize>,
    pending_deltas: Option<usize>,
    fragments: Option<usize>,
    inbound_bytes: Option<usize>,
    connections: Option<usize>,
    user_connections: Option<usize>,
    rate_refusals: Option<u32>,
    decode_errors: Option<u32>,
    header_bytes: Option<usize>,
    header_ms: Option<u64>,
    idle_ms: Option<u64>,
    write_ms: Option<u64>,
    body_frame_ms: Option<u64>,
    heartbeat_s: Option<u64>,
    skew_ms_max: Option<u64>,
    session_s: Option<u64>,
    wait_s: Option<u64>,
    presence_grace_ms: Option<u64>,
    auth_ms: Option<u64>,
    message_rate: Option<RateConfig>,
    user_rate: Option<RateConfig>,
    failed_auth_rate: Option<RateConfig>,
    /// `[limits.types]`
    types: BTreeMap<String, RateConfig>,
}

/// How often something may happen.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct RateConfig {
    per_s: u32,
    burst: u32,
}

impl LimitsConfig {
    /// Puts what the file says over the defaults.
    pub(crate) fn limits(&self) -> anyhow::Result<Limits> {
        let mut limits = Limits::default();
        macro_rules! take {
            ($($name:ident)+) => {
                $(if let Some(value) = self.$name {
                    if value == 0 {
                        bail!("limits.{} must be at least 1", stringify!($name));
                    }
                    limits.$name = value;
                })+
            };
        }
        take!(batch_items message_bytes record_bytes page_rows page_bytes unacknowledged_batches outbound_bytes);
        take!(pending_deltas fragments inbound_bytes connections user_connections rate_refusals decode_errors);
        take!(header_bytes header_ms idle_ms write_ms body_frame_ms heartbeat_s skew_ms_max session_s wait_s);
        take!(presence_grace_ms auth_ms);
        macro_rules! take_rate {
            ($($name:ident)+) => {
                $(if let Some(rate) = self.$name {
                    limits.$name = rate.checked(stringify!($name))?;
                })+
            };
        }
        take_rate!(message_rate user_rate failed_auth_rate);
        for (name, rate) in &self.types {
            let known: Vec<&str> = Inbound::KINDS.iter().copied().chain(REQUESTS).collect();
            if !known.contains(&name.as_str()) {
                bail!(
                    "limits.types: {name:?} is no type of message or request: {}",
                    suggestion(name, &known)
                );
            }
            let rate = rate.checked(&format!("types.{name}"))?;
            match limits.type_rates.iter_mut().find(|(known, _)| **known == **name) {
                Some((_, known)) => *known = rate,
                None => limits.type_rates.push((name.as_str().into(), rate)),
            }
        }
        Ok(limits)
    }
}

impl RateConfig {
    fn checked(self, name: &str) -> anyhow::Result<Rate> {
        for (part, value) in [("per_s", self.per_s), ("burst", self.burst)] {
            if value == 0 {
                bail!("limits.{name}.{part} must be at least 1");
            }
        }
        if self.per_s > Rate::PER_S_MAX {
            bail!("limits.{name}.per_s must be at most {}", Rate::PER_S_MAX);
        }
        Ok(Rate { per_s: self.per_s, burst: self.burst })
    }
}

/// Requests that have a rate of their own beside the types of messages.
const REQUESTS: [&str; 1] = ["uploads/init"];

/// Names the known word that is meant, if one is near, else all of them.
fn suggestion(word: &str, known: &[&str]) -> String {
    let nearest = known.iter().map(|known| (edits(word, known), known)).min();
    match nearest {
        Some((distance, known)) if distance <= known.len() / 3 => format!("did you mean {known:?}?"),
        _ => format!("use {}", known.join(", ")),
    }
}

/// Counts the letters to add, remove or replace to get from one word to the other (Levenshtein).
fn edits(one: &str, other: &str) -> usize {
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (at, own) in one.bytes().enumerate() {
        let mut corner = std::mem::replace(&mut row[0], at + 1);
        for (place, theirs) in other.bytes().enumerate() {
            let replaced = corner + usize::from(own != theirs);
            corner = row[place + 1];
            row[place + 1] = replaced.min(corner + 1).min(row[place] + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> anyhow::Result<Limits> {
        toml::from_str::<LimitsConfig>(text)?.limits()
    }

    #[test]
    fn rates_are_read_and_types_join_the_default_ones() {
        let limits = read(
            "message_rate = { per_s = 5, burst = 10 }\nuser_connections = 7\n\
             [types]\nping = { per_s = 2, burst = 3 }",
        )
        .unwrap();
        assert_eq!((limits.message_rate, limits.user_connections), (Rate { per_s: 5, burst: 10 }, 7));
        let own = ("ping".into(), Rate { per_s: 2, burst: 3 });
        assert_eq!(limits.type_rates, [Limits::default().type_rates, vec![own]].concat());
        for name in ["sync_data", "uploads/init"] {
            let limits = read(&format!("[types]\n{name:?} = {{ per_s = 1, burst = 1 }}")).unwrap();
            assert!(limits.type_rates.contains(&(name.into(), Rate { per_s: 1, burst: 1 })));
            assert_eq!(limits.type_rates.len(), Limits::default().type_rates.len());
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let table = [
            ("batch_items = 0", "limits.batch_items must be at least 1"),
            ("idle_ms = 0", "limits.idle_ms must be at least 1"),
            ("depth = 3", "depth"),
            ("user_rate = { per_s = 0, burst = 1 }", "limits.user_rate.per_s must be at least 1"),
            (
                "failed_auth_rate = { per_s = 1, burst = 0 }",
                "limits.failed_auth_rate.burst must be at least 1",
            ),
            ("user_rate = { per_s = 1000001, burst = 1 }", "limits.user_rate.per_s must be at most 1000000"),
            ("user_rate = { per_s = 1 }", "burst"),
            ("user_rate = 5", "user_rate"),
            ("[types]\nping = { per_s = 0, burst = 1 }", "limits.types.ping.per_s must be at least 1"),
            ("[types]\nsync_dta = { per_s = 1, burst = 1 }", "did you mean \"sync_data\"?"),
            ("[types]\nEND_SYNC = { per_s = 1, burst = 1 }", "use start_sync, sync_data,"),
        ];
        for (text, named) in table {
            let error = format!("{:#}", read(text).unwrap_err());
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}
