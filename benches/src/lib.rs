//! Micro-benchmarks of the pure crates, and the inputs that they share.
//!
//! `cargo bench -p driftline-benches` runs them all; each prints its allocations beside its times.

/// Makes a body of ten fields and about 310 bytes, in canonical form and order.
#[must_use]
pub fn body(number: u64) -> String {
    format!(
        concat!(
            r#"{{"assignee":"user-{n:05}","cost":{n}.25,"minutes":{n},"note":"{note}","#,
            r#""on_site":true,"priority":"high","reading":{reading},"signed":false,"#,
            r#""status":"in_progress","title":"valve meter roof {n:06}"}}"#
        ),
        n = number,
        reading = 1_000_000 + number,
        note = "checked the pump and the meter in the north hall, replaced a broken cable, \
                the tenant waits for a call about the spare filter, reading taken twice"
    )
}

/// Makes a `sync_data` frame of so many items, each a create with a [`body`].
#[must_use]
pub fn batch_frame(items: u64) -> String {
    let mut frame = String::from(
        r#"{"type":"sync_data","id":"m1","sync_id":"0192f3a1-b2c3-7000-8000-00000000abcd","payload":{"batch":["#,
    );
    for number in 0..items {
        if number > 0 {
            frame.push(',');
        }
        frame.push_str(&item(number));
    }
    frame.push_str(r#"],"batch_seq":1,"acked_n":0}}"#);
    frame
}

/// Makes an element of a batch.
#[must_use]
pub fn item(number: u64) -> String {
    format!(
        r#"{{"op_id":"0192f3a1-b2c3-7000-8000-{number:012x}","n":{n},"kind":"ticket","id":"t-{number}","op":"create","base_version":0,"hlc":"0192f3a1b2c3-{number:04x}","fields":{}}}"#,
        body(number),
        n = number + 1,
    )
}
