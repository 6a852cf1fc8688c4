//! The figures.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

/// Percentiles of one sort of request, in microseconds, by nearest rank.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// What was measured.
    pub what: &'static str,
    /// The middle one.
    pub p50_us: f64,
    /// What 95 of 100 do not exceed.
    pub p95_us: f64,
    /// What 99 of 100 do not exceed.
    pub p99_us: f64,
}

impl Row {
    fn new(what: &'static str, mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let at = |percent: usize| {
            let rank = (times.len() * percent).div_ceil(100).max(1);
            times.get(rank - 1).map_or(f64::NAN, |time| rounded(time.as_secs_f64() * 1e6))
        };
        Self { what, p50_us: at(50), p95_us: at(95), p99_us: at(99) }
    }

    /// How much more this is than another row, percentile by percentile.
    fn beyond(&self, other: &Self, what: &'static str) -> Self {
        Self {
            what,
            p50_us: rounded(self.p50_us - other.p50_us),
            p95_us: rounded(self.p95_us - other.p95_us),
            p99_us: rounded(self.p99_us - other.p99_us),
        }
    }
}

/// All figures, and those that bar P14 is about.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Keys that the database held.
    pub keys: u64,
    /// Requests of each sort.
    pub requests: u64,
    /// 99 of 100 hits in memory take no longer than this, in milliseconds.
    pub p14_memory_p99: f64,
    /// The same of hits in the database.
    pub p14_database_p99: f64,
    /// The same of looking for a key that nobody used.
    pub p14_miss_p99: f64,
    /// What a new key adds to a request, at the 99th percentile, in milliseconds; chance may bring it below zero.
    pub p14_added_p99: f64,
    /// Every sort.
    pub rows: Vec<Row>,
}

impl Report {
    pub(super) fn new(keys: u64, requests: u64, times: Vec<(&'static str, Vec<Duration>)>) -> Self {
        let mut rows: Vec<Row> = times.into_iter().map(|(what, times)| Row::new(what, times)).collect();
        if let [.., with, without] = &rows[..] {
            rows.push(with.beyond(without, "what a new key adds"));
        }
        let p99_ms = |at: usize| rows.get(at).map_or(f64::NAN, |row| row.p99_us / 1_000.0);
        Self {
            keys,
            requests,
            p14_memory_p99: p99_ms(0),
            p14_database_p99: p99_ms(1),
            p14_miss_p99: p99_ms(2),
            p14_added_p99: p99_ms(5),
            rows,
        }
    }

    /// Shows the figures as a Markdown table.
    #[must_use]
    pub fn table(&self) -> String {
        let mut out = String::from("| idempotency check | p50 us | p95 us | p99 us |\n|---|---|---|---|\n");
        for Row { what, p50_us, p95_us, p99_us } in &self.rows {
            // Writing to a string does not fail.
            let _ = writeln!(out, "| {what} | {p50_us:.1} | {p95_us:.1} | {p99_us:.1} |");
        }
        out
    }
}

/// A tenth of a microsecond is more than a clock of the machine tells.
fn rounded(us: f64) -> f64 {
    (us * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_go_by_nearest_rank_and_differences_by_percentile() {
        let times = |factor: u64| (1..=200).rev().map(|us| Duration::from_micros(us * factor)).collect();
        let rows = vec![
            ("known, in memory", times(1)),
            ("known, in the database", times(2)),
            ("unknown, the look-up", times(3)),
            ("unknown, the request", times(10)),
            ("the same without a key", times(9)),
        ];
        let report = Report::new(7, 200, rows);
        let [memory, .., added] = &report.rows[..] else { panic!("{report:?}") };
        assert_eq!((memory.p50_us, memory.p95_us, memory.p99_us), (100.0, 190.0, 198.0));
        assert_eq!((added.p50_us, added.p95_us, added.p99_us), (100.0, 190.0, 198.0));
        assert_eq!(
            (report.p14_memory_p99, report.p14_database_p99, report.p14_miss_p99),
            (0.198, 0.396, 0.594)
        );
        assert_eq!((report.p14_added_p99, report.table().lines().count()), (0.198, 8));
    }
}
