//! Only what changed goes to the server.
#![allow(clippy::unwrap_used, reason = "a test and its helpers")]

mod common;

use common::{Device, patch, put};
use driftline_client::fields;
use driftline_model::Limits;
use driftline_protocol::{Encoding, Inbound, Item, decode};

const TEN: &str = r#"{"a":1,"b":2,"c":3,"d":4,"e":5,"f":6,"g":7,"h":8,"i":9,"j":10}"#;

/// The items of a message, as a server reads them.
fn items(message: &str) -> Vec<Item> {
    let message = decode(Encoding::Json, message.as_bytes(), &Limits::default()).unwrap();
    let Inbound::SyncData(push) = message.body else { panic!("{message:?}") };
    push.items.into_iter().map(Result::unwrap).collect()
}

fn written(message: &str) -> Vec<String> {
    items(message).iter().map(|item| item.fields.as_str().to_owned()).collect()
}

#[test]
fn an_edit_of_one_field_sends_that_field() {
    let mut device = Device::synced(&put("x", 3, TEN));
    device.edit(patch("x", r#"{"d":40}"#));
    let message = device.one();
    let item = &items(&message)[0];
    assert_eq!((item.fields.as_str(), item.base_version.number()), (r#"{"d":40}"#, 3));
    assert_eq!(item.intents, None, "what the user saw is told where the policy asks for it only");
    assert_eq!(device.shown("x").as_deref(), Some(&*TEN.replace(":4,", ":40,")), "laid over the rest");
}

#[test]
fn of_a_whole_record_only_what_changed_is_an_edit() {
    let mut device = Device::synced(&put("x", 3, TEN));
    let form = fields(&TEN.replace(":4,", ":40,")).unwrap();
    let changes = |device: &Device| device.replica.view("note", "x").unwrap().changes(&form);
    let changed = changes(&device);
    device.edit(patch("x", changed.as_str()));
    assert_eq!(written(&device.one()), [r#"{"d":40}"#]);
    // Own edits are part of what is shown.
    assert!(changes(&device).is_empty());
    let more = fields(r#"{"a":1,"k":null}"#).unwrap();
    let more = device.replica.view("note", "x").unwrap().changes(&more);
    assert_eq!(more.as_str(), r#"{"k":null}"#, "null is a value");
}

#[test]
fn edits_of_one_record_stay_edits_of_their_own() {
    let mut device = Device::synced(&put("x", 3, TEN));
    for edit in [r#"{"d":40}"#, r#"{"e":50}"#, r#"{"d":41}"#] {
        device.edit(patch("x", edit));
    }
    let message = device.one();
    assert_eq!(written(&message), [r#"{"d":40}"#, r#"{"e":50}"#, r#"{"d":41}"#]);
    let items = items(&message);
    let heads: Vec<_> = items.iter().map(|item| (item.n, item.base_version.number())).collect();
    assert_eq!(heads, [(Some(9), 3), (Some(18), 3), (Some(27), 3)], "each with the base that its author saw");
}
