//! The offline verifier finds every planted loss, and nothing where nothing is lost.
#![allow(clippy::needless_pass_by_value, reason = "documents are written where they are used")]

use driftline_bench::verify::{History, Loss, verify};
use serde_json::{Value, json};

fn history(document: Value) -> History {
    serde_json::from_value(document).expect("a history")
}

/// Names what is lost: the field, the value and its author.
fn lost(document: Value) -> Vec<String> {
    let told = |loss: Loss| format!("{}={} by {} {}", loss.field, loss.value, loss.device, loss.n);
    verify(&history(document)).silent_losses.into_iter().map(told).collect()
}

fn nothing() -> Vec<String> {
    Vec::new()
}

fn item(device: &str, n: u64, op: &str, base: u64, version: u64, more: Value) -> Value {
    let mut item = json!({
        "record": "t-1", "device": device, "n": n, "op": op, "base": base, "version": version, "code": "applied",
    });
    let Value::Object(more) = more else { panic!("more fields are an object") };
    item.as_object_mut().expect("an object").extend(more);
    item
}

fn audit(device: &str, n: u64, detail: Value) -> Value {
    json!({"record": "t-1", "device": device, "n": n, "detail": detail})
}

fn end(fields: Value) -> Value {
    json!([{"record": "t-1", "fields": fields}])
}

fn push(document: &mut Value, list: &str, element: Value) {
    document[list].as_array_mut().expect("a list").push(element);
}

/// Two phones that had both seen version 1 write the same field; the second one wins by its clock.
fn collision() -> Value {
    json!({
        "items": [
            item("ada", 1, "create", 0, 1, json!({"fields": {"state": "open"}, "born": true})),
            item("ada", 2, "patch", 1, 2, json!({"fields": {"state": "closed"}})),
            item("bob", 1, "patch", 1, 3, json!({"fields": {"state": "urgent"}, "code": "merged"})),
        ],
        "audits": [audit("bob", 1, json!({"fields": {
            "state": {"client": "urgent", "server": "closed", "winner": "client", "rule": "most_recent"},
        }}))],
        "records": end(json!({"state": "urgent"})),
    })
}

#[test]
fn an_audited_collision_loses_nothing() {
    let report = verify(&history(collision()));
    assert_eq!(report.silent_losses, []);
    assert_eq!((report.values, report.visible, report.overwritten, report.audited), (3, 1, 1, 1));
}

#[test]
fn a_missing_audit_row_is_found() {
    let mut document = collision();
    document["audits"] = json!([]);
    let found = verify(&history(document)).silent_losses;
    assert_eq!(found.len(), 1);
    let Loss { record, field, value, device, n, why } = &found[0];
    assert_eq!((&**record, &**field, &**value, &**device, *n), ("t-1", "state", "\"closed\"", "ada", 2));
    assert!(why.contains("no audit row"), "{why}");
}

#[test]
fn an_audit_row_of_another_value_is_no_excuse() {
    let mut document = collision();
    document["audits"][0]["detail"]["fields"]["state"]["server"] = json!("other");
    assert_eq!(lost(document), ["state=\"closed\" by ada 2"]);
}

#[test]
fn a_dropped_value_is_found() {
    let mut document = collision();
    document["records"] = end(json!({"state": "closed"}));
    assert_eq!(lost(document), ["state=\"urgent\" by bob 1"], "it won, and the end does not show it");
}

#[test]
fn a_dropped_record_is_found() {
    let mut document = collision();
    document["records"] = json!([]);
    assert_eq!(lost(document), ["state=\"urgent\" by bob 1"]);
}

#[test]
fn a_refused_value_needs_its_row() {
    let refused = |audits: Value| {
        json!({
            "items": [
                item("ada", 1, "create", 0, 1, json!({"fields": {"a": 1}, "born": true})),
                item("ada", 2, "patch", 1, 2, json!({"fields": {"a": 2}})),
                item("bob", 1, "patch", 1, 2, json!({"fields": {"a": 3}, "code": "superseded"})),
            ],
            "audits": audits,
            "records": end(json!({"a": 2})),
        })
    };
    let entry = json!({"client": 3, "server": 2, "winner": "server", "rule": "server_wins"});
    assert_eq!(lost(refused(json!([audit("bob", 1, json!({"fields": {"a": entry}}))]))), nothing());
    assert_eq!(lost(refused(json!([]))), ["a=3 by bob 1"]);
}

#[test]
fn a_late_write_does_not_end_what_the_same_device_wrote_later() {
    let document = |shown: Value| {
        json!({
            "items": [
                item("ada", 1, "create", 0, 1, json!({"fields": {"a": 1}, "born": true})),
                item("ada", 3, "patch", 1, 2, json!({"fields": {"a": 3}})),
                item("ada", 2, "patch", 1, 2, json!({"fields": {"a": 2}, "code": "superseded"})),
            ],
            "audits": [audit("ada", 2, json!({"fields": {"a": {"client": 2, "server": 3, "winner": "server"}}}))],
            "records": end(json!({"a": shown})),
        })
    };
    assert_eq!(lost(document(json!(3))), nothing());
    assert_eq!(lost(document(json!(2))), ["a=3 by ada 3"]);
}

#[test]
fn an_equal_value_is_the_same_value_for_whoever_saw_one_of_its_authors() {
    let document = json!({
        "items": [
            item("ada", 1, "create", 0, 1, json!({"fields": {"a": 1}, "born": true})),
            item("bob", 1, "patch", 0, 2, json!({"fields": {"a": 1}, "code": "merged"})),
            item("cleo", 1, "patch", 1, 3, json!({"fields": {"a": 2}})),
        ],
        "records": end(json!({"a": 2})),
    });
    assert_eq!(lost(document), nothing());
}

/// Bob deletes what he has seen; Ada's patch, which he has not seen, is in the row of his delete.
fn deletion() -> Value {
    json!({
        "items": [
            item("ada", 1, "create", 0, 1, json!({"fields": {"a": 1, "b": 1}, "born": true})),
            item("ada", 2, "patch", 1, 2, json!({"fields": {"b": 2}})),
            item("bob", 1, "delete", 1, 3, json!({"code": "merged"})),
        ],
        "audits": [audit("bob", 1, json!({
            "fields": {"b": {"client": null, "client_deletes": true, "server": 2, "winner": "client"}},
            "existence": {"deleted": true, "winner": "client"},
        }))],
        "records": [{"record": "t-1", "deleted": true, "fields": {"a": 1, "b": 2}}],
    })
}

#[test]
fn a_delete_ends_what_it_saw_and_has_a_row_for_the_rest() {
    assert_eq!(lost(deletion()), nothing());
    let mut silent = deletion();
    silent["audits"] = json!([]);
    assert_eq!(lost(silent), ["b=2 by ada 2"]);
}

#[test]
fn a_delete_that_did_not_delete_ends_nothing() {
    let mut document = deletion();
    document["audits"][0]["detail"] =
        json!({"fields": {}, "existence": {"deleted": false, "winner": "server"}});
    // Ada's own second write ended her first one.
    assert_eq!(lost(document), ["a=1 by ada 1", "b=2 by ada 2"]);
}

#[test]
fn a_value_in_a_record_that_stays_deleted_has_a_row() {
    let mut document = deletion();
    let late = item("cleo", 1, "patch", 1, 4, json!({"fields": {"c": 5}, "code": "superseded"}));
    push(&mut document, "items", late);
    assert_eq!(lost(document.clone()), ["c=5 by cleo 1"]);
    let detail = json!({"fields": {}, "existence": {"deleted": true, "winner": "server"}});
    push(&mut document, "audits", audit("cleo", 1, detail));
    assert_eq!(lost(document), nothing());
}

fn counter(visits: Value) -> Value {
    let made = json!({"fields": {"a": 1}, "increments": {"visits": 2}, "born": true});
    json!({
        "items": [
            item("ada", 1, "create", 0, 1, made),
            item("bob", 1, "patch", 1, 2, json!({"increments": {"visits": 3}, "code": "merged"})),
            item("cleo", 1, "patch", 1, 3, json!({"increments": {"visits": -1}, "code": "merged"})),
        ],
        "records": end(json!({"a": 1, "visits": visits})),
    })
}

#[test]
fn a_dropped_increment_is_found() {
    assert_eq!(lost(counter(json!(4))), nothing());
    for wrong in [json!(5), json!(1), json!(7), json!("4")] {
        assert_eq!(lost(counter(wrong.clone())).len(), 3, "{wrong}: nobody can tell which one is missing");
    }
}

#[test]
fn a_counter_starts_from_a_whole_value() {
    let document = |visits: Value| {
        let mut document = counter(visits);
        let whole = item("ada", 2, "patch", 1, 2, json!({"fields": {"visits": 100}}));
        document["items"].as_array_mut().expect("items").insert(1, whole);
        document
    };
    assert_eq!(lost(document(json!(102))), nothing());
    assert_eq!(
        lost(document(json!(103))),
        ["visits=100 by ada 2", "visits=+3 by bob 1", "visits=-1 by cleo 1"]
    );
}

#[test]
fn an_increment_that_was_refused_has_a_row() {
    let mut document = counter(json!(1));
    assert_eq!(lost(document.clone()).len(), 3);
    let entry = json!({"client": 3, "server": 2, "winner": "server", "rule": "server_wins"});
    document["audits"] = json!([audit("bob", 1, json!({"fields": {"visits": entry}}))]);
    assert_eq!(lost(document), nothing());
}

fn set(tags: Value) -> Value {
    json!({
        "items": [
            item("ada", 1, "create", 0, 1, json!({"add": {"tags": ["roof", "old"]}, "born": true})),
            item("bob", 1, "patch", 1, 2, json!({"remove": {"tags": ["old"]}, "add": {"tags": ["wet"]}})),
            item("cleo", 1, "patch", 0, 3, json!({"remove": {"tags": ["wet", "roof"]}, "code": "merged"})),
        ],
        "records": end(json!({"tags": tags})),
    })
}

#[test]
fn an_element_leaves_a_set_only_by_who_had_seen_it() {
    assert_eq!(lost(set(json!(["roof", "wet"]))), nothing());
    assert_eq!(lost(set(json!(["roof"]))), ["tags=\"wet\" by bob 1"]);
    assert_eq!(lost(set(json!(["wet"]))), ["tags=\"roof\" by ada 1"]);
    assert_eq!(lost(set(json!("roof"))).len(), 2, "no set at all");
}

#[test]
fn whole_values_of_a_gathering_field_are_elements() {
    let document = |tags: Value| {
        json!({
            "items": [
                item("ada", 1, "create", 0, 1, json!({"fields": {"tags": ["a"]}, "born": true})),
                item("bob", 1, "patch", 1, 2, json!({"fields": {"tags": ["b"]}})),
            ],
            "records": end(json!({"tags": tags})),
            "gathering": ["tags"],
        })
    };
    assert_eq!(lost(document(json!(["a", "b"]))), nothing());
    assert_eq!(lost(document(json!(["b"]))), ["tags=\"a\" by ada 1"], "they unite, and replace nothing");
}

#[test]
fn an_element_of_a_list_stays_for_ever() {
    let document = |log: Value| {
        json!({
            "items": [
                item("ada", 1, "create", 0, 1, json!({"add": {"log": [{"id": 1, "t": "a"}]}, "born": true})),
                item("bob", 1, "patch", 1, 2, json!({"add": {"log": [{"id": 2, "t": "b"}]}})),
                item("bob", 2, "patch", 2, 3, json!({"fields": {"note": 1}})),
            ],
            "records": end(json!({"note": 1, "log": log})),
        })
    };
    assert_eq!(lost(document(json!([{"id": 1, "t": "a"}, {"id": 2, "t": "b"}]))), nothing());
    assert_eq!(lost(document(json!([{"id": 2, "t": "b"}]))), ["log={\"id\":1,\"t\":\"a\"} by ada 1"]);
}

/// Bob's patch was set aside.
fn held(conflicts: Value) -> Value {
    json!({
        "items": [
            item("ada", 1, "create", 0, 1, json!({"fields": {"a": 1}, "born": true})),
            item("ada", 2, "patch", 1, 2, json!({"fields": {"a": 2}})),
            item("bob", 1, "patch", 1, 2, json!({"fields": {"a": 3}, "code": "conflict_pending"})),
        ],
        "conflicts": conflicts,
        "records": end(json!({"a": 2})),
    })
}

#[test]
fn what_waits_for_a_reviewer_stands_in_a_conflict() {
    let row = |device: &str, value: u64| json!([{"record": "t-1", "device": device, "client": {"a": value}}]);
    let report = verify(&history(held(row("bob", 3))));
    assert_eq!((report.held, report.silent_losses.len()), (1, 0));
    for planted in [json!([]), row("bob", 4), row("ada", 3)] {
        assert_eq!(lost(held(planted)), ["a=3 by bob 1"]);
    }
}

#[test]
fn what_was_not_accepted_is_nobodys_loss() {
    let document = json!({
        "items": [
            item("ada", 1, "patch", 3, 0, json!({"fields": {"a": 1}, "code": "gone"})),
            item("ada", 2, "patch", 3, 0, json!({"fields": {"a": 1}, "code": "invalid"})),
        ],
    });
    assert_eq!(verify(&history(document)).values, 0);
}

#[test]
fn other_documents_are_refused() {
    for text in ["", "[]", r#"{"items":[{"record":"t-1"}]}"#, r#"{"items":[],"itmes":[]}"#] {
        assert!(History::parse(text).is_err(), "{text}");
    }
}

/// Ada and Bob add to the same set without knowing of each other; the row of Bob's says that both are in it.
fn union_of(tags: Value) -> Value {
    let entry = json!({"client": {"add": ["y"]}, "server": ["x"], "winner": "merged", "rule": "set"});
    json!({
        "items": [
            item("ada", 1, "create", 0, 1, json!({"fields": {"tags": []}, "born": true})),
            item("ada", 2, "patch", 1, 2, json!({"add": {"tags": ["x"]}})),
            item("bob", 1, "patch", 1, 3, json!({"add": {"tags": ["y"]}, "code": "merged"})),
        ],
        "audits": [audit("bob", 1, json!({"fields": {"tags": entry}}))],
        "records": end(json!({"tags": tags})),
    })
}

#[test]
fn a_row_that_says_both_are_in_excuses_neither() {
    assert_eq!(lost(union_of(json!(["x", "y"]))), nothing());
    assert_eq!(lost(union_of(json!(["y"]))), ["tags=\"x\" by ada 2"]);
    assert_eq!(lost(union_of(json!(["x"]))), ["tags=\"y\" by bob 1"]);
}

#[test]
fn a_value_that_was_made_of_both_accounts_for_both() {
    let document = |rule: &str| {
        let mut document = collision();
        document["audits"][0]["detail"]["fields"]["state"]["winner"] = json!("merged");
        document["audits"][0]["detail"]["fields"]["state"]["rule"] = json!(rule);
        document["records"] = end(json!({"state": "closed, urgent"}));
        document
    };
    assert_eq!(lost(document("both_words")), nothing());
    assert_eq!(lost(document("set")), ["state=\"closed\" by ada 2", "state=\"urgent\" by bob 1"]);
}

#[test]
fn of_two_list_elements_with_one_id_one_gives_way() {
    let document = |other_id: u64| {
        let (first, second) = (json!({"id": 1, "t": "a"}), json!({"id": other_id, "t": "b"}));
        let entry =
            json!({"client": {"add": [second]}, "server": [first], "winner": "merged", "rule": "append"});
        json!({
            "items": [
                item("ada", 1, "create", 0, 1, json!({"add": {"log": [first]}, "born": true})),
                item("bob", 1, "patch", 0, 2, json!({"add": {"log": [second]}, "code": "merged"})),
            ],
            "audits": [audit("bob", 1, json!({"fields": {"log": entry}}))],
            "records": end(json!({"log": [second]})),
        })
    };
    assert_eq!(lost(document(1)), nothing());
    assert_eq!(lost(document(2)), ["log={\"id\":1,\"t\":\"a\"} by ada 1"]);
}

#[test]
fn a_row_excuses_no_equal_value_that_came_later() {
    let mut document = collision();
    push(&mut document, "items", item("cleo", 1, "patch", 3, 4, json!({"fields": {"state": "closed"}})));
    assert_eq!(lost(document), ["state=\"closed\" by cleo 1"]);
}

#[test]
fn a_row_excuses_no_equal_value_that_was_gone_before() {
    let mut document = collision();
    // Somebody who had not seen it wrote over it without a row, and it was written again before Bob came.
    let between = [
        item("cleo", 1, "patch", 1, 3, json!({"fields": {"state": "open again"}})),
        item("cleo", 2, "patch", 1, 4, json!({"fields": {"state": "closed"}})),
    ];
    let items = document["items"].as_array_mut().expect("items");
    items.splice(2..2, between);
    items[4]["version"] = json!(5);
    assert_eq!(lost(document), ["state=\"closed\" by ada 2"]);
}

/// Rita decided what of Bob's was set aside.
fn decided(resolution: &str, end_of_a: u64) -> Value {
    let mut document = held(json!([
        {"id": "c-1", "record": "t-1", "device": "bob", "client": {"a": 3}, "ns": {"a": 1}, "resolution": resolution},
    ]));
    document["items"][2]["conflict"] = json!("c-1");
    document["records"] = end(json!({"a": end_of_a}));
    document
}

/// The row of Rita's decision.
fn decision(resolution: &str) -> Value {
    audit(
        "rita",
        0,
        json!({
            "op": "resolve", "conflict_id": "c-1", "resolution": resolution,
            "fields": {"a": {"client": 3, "server": 2, "winner": resolution, "rule": "manual"}},
        }),
    )
}

#[test]
fn what_a_reviewer_refused_stands_in_the_row_of_the_decision() {
    let mut document = decided("server", 2);
    assert_eq!(lost(document.clone()), ["a=3 by bob 1"]);
    document["audits"] = json!([decision("server")]);
    assert_eq!(lost(document.clone()), nothing());
    document["audits"][0]["detail"]["conflict_id"] = json!("c-2");
    assert_eq!(lost(document), ["a=3 by bob 1"], "it is the row of another decision");
}

#[test]
fn what_a_reviewer_took_is_written() {
    let mut document = decided("client", 2);
    document["audits"] = json!([decision("client")]);
    assert_eq!(lost(document.clone()), ["a=3 by bob 1"], "nothing was written");
    let written = item("rita", 3, "patch", 2, 3, json!({"fields": {"a": 3}, "decides": "c-1"}));
    push(&mut document, "items", written);
    assert_eq!(lost(document.clone()), ["a=3 by rita 3"], "it was not kept");
    push(&mut document, "items", item("bob", 2, "patch", 3, 4, json!({"fields": {"a": 4}})));
    document["records"] = end(json!({"a": 4}));
    assert_eq!(lost(document), nothing());
}

#[test]
fn a_decision_that_the_audit_alone_tells_is_one() {
    let mut document = decided("client", 2);
    let unnamed = json!({"record": "t-1", "device": "bob", "client": {"a": 3}});
    document["conflicts"] = json!([unnamed]);
    document["items"][2]["conflict"] = json!("");
    let mut row = decision("client");
    row["detail"].as_object_mut().expect("an account").remove("conflict_id");
    assert_eq!(lost(document.clone()), nothing(), "it waits");
    document["audits"] = json!([row]);
    assert_eq!(lost(document), ["a=3 by bob 1"]);
}

#[test]
fn a_reviewers_own_values_are_written_and_the_others_stand_in_the_row() {
    let mut document = decided("merged", 5);
    document["audits"] = json!([decision("merged")]);
    assert_eq!(lost(document.clone()), ["a=2 by ada 2", "a=3 by bob 1"], "nothing was written");
    let written = item("rita", 3, "patch", 2, 3, json!({"fields": {"a": 5}, "decides": "c-1"}));
    push(&mut document, "items", written);
    assert_eq!(lost(document.clone()), nothing());
    document["audits"] = json!([]);
    assert_eq!(lost(document), ["a=3 by bob 1"]);
}

#[test]
fn a_conflict_excuses_only_what_was_set_aside_in_it() {
    let mut applied = held(json!([{"record": "t-1", "device": "bob", "client": {"a": 3}}]));
    applied["items"][2]["code"] = json!("merged");
    assert_eq!(lost(applied), ["a=3 by bob 1"], "it did not wait");
    let mut again = decided("client", 2);
    again["conflicts"][0]["ns"] = json!({"a": 7});
    assert_eq!(lost(again), ["a=3 by bob 1"], "the value of another item waits");
    let mut joined = decided("client", 2);
    let later = item(
        "bob",
        2,
        "patch",
        1,
        2,
        json!({
            "fields": {"a": 4}, "code": "conflict_pending", "conflict": "c-2",
        }),
    );
    push(&mut joined, "items", later);
    push(
        &mut joined,
        "conflicts",
        json!({"id": "c-2", "record": "t-1", "device": "bob", "client": {"a": 4}}),
    );
    assert_eq!(lost(joined.clone()), ["a=3 by bob 1"], "the later value is in another conflict");
    joined["items"][3]["conflict"] = json!("c-1");
    joined["conflicts"] = json!([{"id": "c-1", "record": "t-1", "device": "bob", "client": {"a": 4}}]);
    assert_eq!(lost(joined), nothing());
}

/// Bob's delete did not delete.
fn undone(existence: Value, conflicts: Value) -> Value {
    json!({
        "items": [
            item("ada", 1, "create", 0, 1, json!({"fields": {"a": 1}, "born": true})),
            item("bob", 1, "delete", 1, 2, json!({"code": "merged"})),
        ],
        "audits": [audit("bob", 1, json!({"fields": {}, "existence": existence}))],
        "conflicts": conflicts,
        "records": end(json!({"a": 1})),
    })
}

#[test]
fn a_forgotten_delete_is_found() {
    let row = |deletes: bool| json!([{"record": "t-1", "device": "bob", "client": {}, "deletes": deletes}]);
    let existence = |winner: &str| json!({"deleted": false, "winner": winner});
    assert_eq!(lost(undone(existence("held"), row(true))), nothing());
    assert_eq!(lost(undone(existence("server"), json!([]))), nothing());
    for forgotten in [
        undone(existence("held"), json!([])),
        undone(existence("held"), row(false)),
        undone(json!({}), row(true)),
        undone(json!({}), json!([])),
    ] {
        assert_eq!(lost(forgotten), ["=delete by bob 1"]);
    }
}

#[test]
fn a_delete_ends_with_whoever_brings_the_record_back() {
    let document = |op: &str, base: u64, born: bool| {
        let mut document = undone(json!({}), json!([]));
        let again = json!({"fields": {"a": 1}, "born": born});
        push(&mut document, "items", item("cleo", 1, op, base, 3, again));
        document
    };
    for kept in [document("restore", 2, false), document("create", 2, false), document("create", 0, true)] {
        assert_eq!(lost(kept), nothing());
    }
    for unseen in [document("restore", 1, false), document("patch", 2, false)] {
        assert_eq!(lost(unseen), ["=delete by bob 1"]);
    }
    let mut told = document("patch", 1, false);
    let existence = json!({"deleted": false, "winner": "client"});
    push(&mut told, "audits", audit("cleo", 1, json!({"fields": {}, "existence": existence})));
    assert_eq!(lost(told), nothing());
}

#[test]
fn a_decided_delete_is_carried_out_or_told() {
    let document = |resolution: &str| {
        let row = json!([{
            "id": "c-1", "record": "t-1", "device": "bob", "client": {}, "deletes": true, "resolution": resolution,
        }]);
        let mut document = undone(json!({"deleted": false, "winner": "held"}), row);
        document["items"][1]["conflict"] = json!("c-1");
        document
    };
    assert_eq!(lost(document("client")), ["=delete by bob 1"]);
    let mut carried_out = document("client");
    push(&mut carried_out, "items", item("rita", 3, "delete", 2, 3, json!({"decides": "c-1"})));
    assert_eq!(lost(carried_out.clone()), ["=delete by rita 3"], "it is looked for in turn");
    carried_out["records"] = json!([]);
    assert_eq!(lost(carried_out), nothing());
    assert_eq!(lost(document("server")), ["=delete by bob 1"]);
    let mut told = document("server");
    let mut row = decision("server");
    row["detail"]["wanted"] = json!("delete");
    push(&mut told, "audits", row);
    assert_eq!(lost(told), nothing());
}

#[test]
fn a_delete_of_what_is_deleted_is_seen_by_whoever_saw_one_of_its_authors() {
    let document = |between: Option<Value>| {
        let mut document = undone(json!({}), json!([]));
        let more = [
            between.unwrap_or(item("cleo", 1, "delete", 1, 3, json!({}))),
            item("cleo", 2, "restore", 1, 4, json!({})),
        ];
        document["items"].as_array_mut().expect("items").extend(more);
        document
    };
    assert_eq!(lost(document(None)), nothing());
    let patch = item("cleo", 1, "patch", 1, 3, json!({"fields": {"a": 1}}));
    assert_eq!(lost(document(Some(patch))), ["=delete by bob 1"]);
}

#[test]
fn what_never_stood_is_seen_by_nobody() {
    let mut document = held(json!([]));
    push(&mut document, "items", item("cleo", 1, "patch", 2, 3, json!({"fields": {"a": 4}})));
    document["records"] = end(json!({"a": 4}));
    assert_eq!(lost(document), ["a=3 by bob 1"], "Cleo wrote over Ada's value alone");
}

#[test]
fn of_a_change_that_waits_a_field_may_be_decided_at_once() {
    let document = |told: bool| {
        let held = json!({"client": 3, "server": 2, "winner": "held", "rule": "manual"});
        let decided = json!({"client": 8, "server": 7, "winner": "server", "rule": "most_recent"});
        let fields = if told { json!({"a": held, "b": decided}) } else { json!({"a": held}) };
        json!({
            "items": [
                item("ada", 1, "create", 0, 1, json!({"fields": {"a": 1, "b": 1}, "born": true})),
                item("ada", 2, "patch", 1, 2, json!({"fields": {"a": 2, "b": 7}})),
                item("bob", 1, "patch", 1, 2, json!({"fields": {"a": 3, "b": 8}, "code": "conflict_pending"})),
            ],
            "audits": [audit("bob", 1, json!({"fields": fields}))],
            "conflicts": [{"record": "t-1", "device": "bob", "client": {"a": 3}}],
            "records": end(json!({"a": 2, "b": 7})),
        })
    };
    assert_eq!(lost(document(true)), nothing());
    assert_eq!(lost(document(false)), ["b=8 by bob 1"]);
}
