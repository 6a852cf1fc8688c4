//! The bytes on the wire stay within their bounds. A seed decides them, no clock does.
#![allow(clippy::unwrap_used, reason = "a test")]

use driftline_bench::bytes::{Message, measure};

#[test]
fn changed_fields_take_a_part_of_whole_records() {
    for seed in 1..=5 {
        let report = measure(seed).unwrap();
        let table = report.table();
        // (what is measured, the most that it may be)
        let musts = [
            (report.p15_batch_up, 0.24),
            (report.p15_work_up, 0.24),
            (report.p15_batch_down, 0.24),
            (report.p15_edit_up, 0.55),
            (report.p15_edit_down, 0.55),
        ];
        for (ratio, must) in musts {
            assert!(ratio <= must, "seed {seed}: {ratio} is more than {must}\n{table}");
            assert!(ratio > must / 10.0, "seed {seed}: {ratio} is no message\n{table}");
        }
    }
}

#[test]
fn every_form_is_smaller_than_the_one_before() {
    let report = measure(1).unwrap();
    for row in &report.rows {
        for count in [row.whole, row.changed] {
            assert!(count.msgpack < count.json, "{row:?}");
            assert!(
                count.json_deflate < count.json && count.msgpack_deflate < count.msgpack + 2.0,
                "{row:?}"
            );
        }
        assert!(row.message == Message::Ack || row.changed.json < 0.7 * row.whole.json, "{row:?}");
    }
    assert_eq!(report, measure(1).unwrap(), "a seed repeats");
    assert_ne!(report, measure(2).unwrap(), "seeds differ");
}
