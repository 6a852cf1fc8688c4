//! The HTTP twin.

mod common;

use common::{Device, ack, create, page, patch, put, result};

#[test]
fn over_http_one_request_pushes_and_pulls() {
    let mut device = Device::new();
    device.edit(create("x", r#"{"a":1}"#));
    let request = device.replica.http_request().unwrap();
    assert_eq!(
        request,
        r#"{"acked_n":0,"data_types":[],"batch_seq":1,"batch":[{"kind":"note","id":"x","op":"create","op_id":"op1","n":9,"base_version":0,"hlc":"0000000003e8-0000","fields":{"a":1}}]}"#
    );
    assert_eq!(device.replica.http_request(), None, "one at a time");
    let answer = |ack: &str, page: &str| format!(r#"{{"server_time":"","ack":{ack},"data":{page}}}"#);
    let taken = ack(1, 1, &result(0, "applied", 1, ""));
    let rows = page(&put("x", 1, r#"{"a":1}"#), 1, "c1", false);
    device.replica.handle_http(200, answer(&taken, &rows).as_bytes(), 0).unwrap();
    assert!(device.replica.is_settled());
    assert_eq!(device.version("x"), 1);

    // The same edit after an answer that was lost.
    device.edit(patch("x", r#"{"a":2}"#));
    let first = device.replica.http_request().unwrap();
    device.replica.handle_disconnected();
    let second = device.replica.http_request().unwrap();
    assert!(first.contains(r#""op_id":"op2""#) && second.contains(r#""op_id":"op2""#));
    let problem = r#"{"type":"","title":"","status":410,"detail":"","code":"CURSOR_INVALID","correlation_id":"",
        "retryable":false,"reason":"epoch_changed","keep_queue":true,"first":"snapshot","epoch":"00000002"}"#;
    device.replica.handle_http(410, problem.as_bytes(), 0).unwrap();
    let snapshot = device.replica.http_request().unwrap();
    assert_eq!(snapshot, r#"{"acked_n":9,"data_types":[],"epoch":"00000002"}"#);
    let rows = page(&put("x", 1, r#"{"a":5}"#), 1, "d1", false);
    device.replica.handle_http(200, answer("null", &rows).as_bytes(), 0).unwrap();
    let push = device.replica.http_request().unwrap();
    assert!(push.contains(r#""base_version":0"#) && push.contains(r#""cursor":"d1""#), "{push}");
    let refused = device.replica.handle_http(503, b"down", 0);
    assert!(refused.is_err());
    assert_eq!(device.replica.queue_len(), 1);
}

#[test]
fn what_is_too_large_for_the_server_is_sent_in_smaller_parts() {
    let mut device = Device::new();
    for at in 0..4 {
        device.edit(create(&format!("x{at}"), r#"{"a":1}"#));
    }
    let problem = r#"{"type":"","title":"","status":413,"detail":"a batch may hold 1 item","code":"BATCH_TOO_LARGE",
        "correlation_id":"","retryable":false}"#;
    let mut sizes = Vec::new();
    for _ in 0..3 {
        let request = device.replica.http_request().expect("edits wait");
        sizes.push(request.matches(r#""op_id""#).count());
        assert!(device.replica.handle_http(413, problem.as_bytes(), 0).is_err());
    }
    assert_eq!(sizes, [4, 2, 1]);
    // One edit alone that the server does not take is kept as a dead letter, and the others go on.
    assert_eq!((device.replica.dead_letters().len(), device.replica.queue_len()), (1, 3));
    let request = device.replica.http_request().expect("edits wait");
    assert_eq!(request.matches(r#""op_id""#).count(), 1);
}
