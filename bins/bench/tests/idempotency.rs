//! Requests that come again are known, wherever their answers are kept.
#![allow(clippy::unwrap_used, reason = "a test")]

use driftline_bench::idempotency::measure;

#[test]
fn every_sort_of_request_is_answered_as_it_must_be() {
    let report = measure(&std::env::temp_dir(), 50, 20).unwrap();
    assert_eq!((report.keys, report.requests, report.rows.len()), (50, 20, 6));
    for row in &report.rows[..5] {
        let times = [row.p50_us, row.p95_us, row.p99_us];
        assert!(times[0] > 0.0 && times.is_sorted(), "{}", report.table());
    }
}
