//! The report of a run: one JSON object for programs, a few lines for people.

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::{Result, ensure};
use serde::Serialize;
use serde_json::Value;

use super::latency::Percentiles;
use super::options::{Common, Dialect};
use super::process::Usage;
use super::tally::Tally;
use super::window::Observation;

/// What a scenario counts in its main figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Items, several to an operation.
    Items,
    /// Operations.
    Operations,
    /// Connections that did nothing but stay, so that a rate or a cost by operation says nothing.
    Held,
}

/// Figures of the server's processes.
#[derive(Debug, Serialize)]
pub(crate) struct ServerUse {
    pub(crate) processes: usize,
    /// CPU seconds in the window.
    pub(crate) cpu_s: f64,
    /// CPU seconds a million items or operations.
    pub(crate) cpu_s_per_m: Option<f64>,
    pub(crate) rss_start_bytes: u64,
    pub(crate) rss_end_bytes: u64,
    pub(crate) rss_peak_bytes: u64,
}

/// Figures of connections that were held idle.
#[derive(Debug, Serialize)]
pub(crate) struct IdleUse {
    /// Connections open at the end.
    pub(crate) open: u64,
    /// Resident memory of the server before the first connection.
    pub(crate) rss_before_bytes: Option<u64>,
    /// Growth of resident memory up to the end, by connection.
    pub(crate) bytes_per_connection: Option<f64>,
}

/// The report of a run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    scenario: &'static str,
    dialect: Dialect,
    parameters: Value,
    seconds: f64,
    operations: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    operations_per_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    items: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    items_per_s: Option<f64>,
    latency_ms: Option<Percentiles>,
    bytes_in: u64,
    bytes_out: u64,
    errors: BTreeMap<String, u64>,
    result_codes: BTreeMap<String, u64>,
    /// Messages that answered nothing, such as live changes.
    unsolicited: u64,
    /// Operations of an open loop that were due and never sent.
    unsent: u64,
    /// Operations that were sent and never answered.
    unanswered: u64,
    server: Option<ServerUse>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) idle: Option<IdleUse>,
    /// CPU seconds of the load tool; near `seconds`, the tool and not the server was the limit.
    tool_cpu_s: f64,
}

impl Report {
    /// Puts a report together; `options` are the scenario's own, `common` among them.
    pub(crate) fn new(
        (scenario, unit): (&'static str, Unit),
        (options, common): (&impl Serialize, &Common),
        seen: &Observation,
        tally: Tally,
    ) -> Result<Self> {
        let per_s = |count: u64| rounded(count as f64 / seen.seconds.max(1e-9));
        let counted = match unit {
            Unit::Items => tally.items,
            Unit::Operations => tally.operations,
            Unit::Held => 0,
        };
        Ok(Report {
            scenario,
            dialect: common.dialect,
            parameters: serde_json::to_value(options)?,
            seconds: rounded(seen.seconds),
            operations: tally.operations,
            operations_per_s: (unit != Unit::Held).then(|| per_s(tally.operations)),
            items: (unit == Unit::Items).then_some(tally.items),
            items_per_s: (unit == Unit::Items).then(|| per_s(tally.items)),
            latency_ms: tally.latencies.percentiles(),
            bytes_in: tally.bytes_in,
            bytes_out: tally.bytes_out,
            errors: tally.errors.into_map(),
            result_codes: tally.results.into_map(),
            unsolicited: tally.unsolicited,
            unsent: tally.unsent,
            unanswered: tally.unanswered,
            server: seen.start.zip(seen.end).map(|usage| server_use(usage, seen.rss_peak_bytes, counted)),
            idle: None,
            tool_cpu_s: rounded(seen.tool_cpu_s),
        })
    }

    /// Prints the report, and makes sure that it tells of something.
    ///
    /// # Errors
    /// When nothing succeeded.
    pub(crate) fn print(&self) -> Result<()> {
        eprintln!("{}", self.summary());
        println!("{}", serde_json::to_string(self)?);
        ensure!(self.operations > 0, "no operation succeeded");
        Ok(())
    }

    /// Makes sure that nothing went wrong, for scenarios whose figures say nothing otherwise.
    ///
    /// # Errors
    /// When an error was counted, or something was never sent or never answered.
    pub(crate) fn ensure_clean(&self) -> Result<()> {
        ensure!(
            self.errors.is_empty() && self.unsent + self.unanswered == 0,
            "the figures do not count: errors {:?}, never sent {}, never answered {}",
            self.errors,
            self.unsent,
            self.unanswered
        );
        Ok(())
    }

    /// Gives the report in a few lines.
    fn summary(&self) -> String {
        let mut text = format!(
            "{} ({:?}): {} operations in {} s",
            self.scenario, self.dialect, self.operations, self.seconds
        );
        // Writing to a String does not fail.
        if let Some(rate) = self.operations_per_s {
            let _ = write!(text, ", {rate} a second");
        }
        if let Some(items) = self.items_per_s {
            let _ = write!(text, ", {items} items a second");
        }
        if let Some(Percentiles { p50, p95, p99, max }) = self.latency_ms {
            let _ = write!(text, "\n  latency ms: p50 {p50}, p95 {p95}, p99 {p99}, max {max}");
        }
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        if let Some(server) = &self.server {
            let rss = (mib(server.rss_start_bytes), mib(server.rss_end_bytes), mib(server.rss_peak_bytes));
            let _ = write!(text, "\n  server: {} CPU s", rounded(server.cpu_s));
            if let Some(per_m) = server.cpu_s_per_m {
                let _ = write!(text, ", {per_m} s per million");
            }
            let _ = write!(text, "; RSS MiB: start {:.1}, end {:.1}, peak {:.1}", rss.0, rss.1, rss.2);
        }
        if let Some(idle) = &self.idle {
            let _ = write!(text, "\n  idle: {} open", idle.open);
            if let Some(bytes) = idle.bytes_per_connection {
                let _ = write!(text, ", {:.2} KiB each", bytes / 1024.0);
            }
        }
        let _ = write!(
            text,
            "\n  bytes: {} in, {} out; tool: {} CPU s",
            self.bytes_in, self.bytes_out, self.tool_cpu_s
        );
        for (title, codes) in [("results", &self.result_codes), ("errors", &self.errors)] {
            if !codes.is_empty() {
                let _ = write!(text, "\n  {title}: {codes:?}");
            }
        }
        if self.unsent + self.unanswered > 0 {
            let _ = write!(text, "\n  never sent: {}, never answered: {}", self.unsent, self.unanswered);
        }
        text
    }
}

fn server_use((start, end): (Usage, Usage), rss_peak_bytes: u64, counted: u64) -> ServerUse {
    let cpu_s = rounded(end.cpu_s - start.cpu_s);
    ServerUse {
        processes: end.processes,
        cpu_s,
        cpu_s_per_m: (counted > 0).then(|| rounded(cpu_s / counted as f64 * 1e6)),
        rss_start_bytes: start.rss_bytes,
        rss_end_bytes: end.rss_bytes,
        rss_peak_bytes: rss_peak_bytes.max(end.rss_bytes),
    }
}

/// Three decimals are more than any of these measurements holds.
pub(crate) fn rounded(value: f64) -> f64 {
    (value * 1_000.0).round() / 1_000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_is_given_by_million_of_what_was_counted() {
        let start = Usage { cpu_s: 1.0, rss_bytes: 10, processes: 1 };
        let end = Usage { cpu_s: 3.0, rss_bytes: 30, processes: 2 };
        let server = server_use((start, end), 25, 500_000);
        assert_eq!((server.cpu_s, server.cpu_s_per_m), (2.0, Some(4.0)));
        assert_eq!((server.rss_start_bytes, server.rss_end_bytes, server.rss_peak_bytes), (10, 30, 30));
        assert_eq!(server_use((start, end), 25, 0).cpu_s_per_m, None);
    }
}
