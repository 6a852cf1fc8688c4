//! What a kind declares, as a client meets it: groups of readers, schemas, policies per tenant.

mod support;

use std::sync::Arc;

use driftline_engine::{KindRule, ScopeRule};
use driftline_protocol::KindSchema;
use driftline_testkit::http::Request;
use driftline_testkit::socket::Socket;
use driftline_transport::Grant;
use serde_json::{Value, json};
use support::{Harness, SYNC_ID, Setup, batch, create, grant, patch, pull, start};

/// A server whose kind `visit` belongs to regions.
async fn regional() -> Harness {
    let visit = KindRule { scope: ScopeRule::Group("region".into()), ..KindRule::default() };
    start(Setup { kinds: vec![("visit", visit)], ..Setup::default() }).await
}

/// A token of somebody who belongs to regions.
fn of_regions(sub: &str, role: &str, regions: &Value) -> Grant {
    let mut grant = grant("t1", sub, role);
    grant.claims.insert("region".to_owned(), regions.clone());
    grant
}

async fn sync_from(socket: &mut Socket, cursor: Option<&Value>) -> Vec<Value> {
    socket.start(SYNC_ID, &[]).await;
    let mut cursor = cursor.cloned();
    let mut pages = Vec::new();
    loop {
        let mut request = pull();
        if let Some(cursor) = &cursor {
            request["payload"]["cursor"] = cursor.clone();
        }
        let page = socket.ask(&request, "server_data").await;
        cursor = Some(page["cursor"].clone());
        let more = page["has_more"] == true;
        pages.push(page);
        if !more {
            return pages;
        }
    }
}

/// What the rows of pages say: `id change`, in their order.
fn rows(pages: &[Value]) -> Vec<String> {
    let changes = pages.iter().flat_map(|page| page["changes"].as_array().expect("changes"));
    let word = |value: &Value| value.as_str().expect("text").to_owned();
    changes.map(|change| format!("{} {}", word(&change["id"]), word(&change["change"]))).collect()
}

fn last_cursor(pages: &[Value]) -> &Value {
    &pages.last().expect("a page")["cursor"]
}

#[tokio::test]
async fn a_user_who_leaves_a_region_ends_without_its_rows() {
    let harness = regional().await;
    let both = of_regions("ada", "user", &json!(["north", 7]));
    let mut phone = harness.enter(&both, "phone").await;
    phone.start(SYNC_ID, &[]).await;
    let visits = [
        create(1, "visit", "v-north", &json!({"region": "north", "at": 1})),
        create(2, "visit", "v-seven", &json!({"region": "7"})),
        create(3, "note", "everyone", &json!({})),
        create(4, "visit", "v-south", &json!({"region": "south"})),
    ];
    let ack = phone.ask(&batch(1, &visits), "ack").await;
    let codes: Vec<&Value> = ack["results"].as_array().expect("results").iter().map(|r| &r["code"]).collect();
    assert_eq!(codes, ["applied", "applied", "applied", "forbidden"], "{ack}");
    let pages = sync_from(&mut phone, None).await;
    assert_eq!(rows(&pages), ["everyone put", "v-north put", "v-seven put"]);
    drop(phone);

    // The next token names one region less; the cursor is the old one.
    let one = of_regions("ada", "user", &json!("7"));
    let mut phone = harness.enter(&one, "phone").await;
    let pages = sync_from(&mut phone, Some(last_cursor(&pages))).await;
    assert_eq!(rows(&pages), ["v-north evict"]);
    let late = [patch(5, "visit", "v-north", &json!(1), &json!({"at": 2}))];
    let ack = phone.ask(&batch(2, &late), "ack").await;
    assert_eq!(ack["results"][0]["code"], "gone", "{ack}");
    let one_row = harness.ask_as(&one, Request::get("/api/v1/records/visit/v-north")).await;
    assert_eq!(one_row.status, 404);

    // A grant is paged like a first sync.
    let mut phone = harness.enter(&both, "phone").await;
    let pages = sync_from(&mut phone, Some(last_cursor(&pages))).await;
    assert_eq!(rows(&pages), ["v-north put"]);
}

#[tokio::test]
async fn a_record_that_moves_leaves_one_phone_and_comes_to_the_other() {
    let harness = regional().await;
    let north = of_regions("nora", "user", &json!("north"));
    let south = of_regions("sam", "user", &json!("south"));
    let lead = of_regions("lea", "user", &json!(["north", "south"]));
    let mut desk = harness.enter(&lead, "desk").await;
    desk.start(SYNC_ID, &[]).await;
    let made = [create(1, "visit", "v-1", &json!({"region": "north"}))];
    let ack = desk.ask(&batch(1, &made), "ack").await;
    let base = &ack["results"][0]["version"];

    let mut phones = Vec::new();
    for grant in [&north, &south] {
        let mut phone = harness.enter(grant, "phone").await;
        let pages = sync_from(&mut phone, None).await;
        phones.push((phone, rows(&pages)));
    }
    assert_eq!((phones[0].1.len(), phones[1].1.len()), (1, 0));
    let moves = [patch(2, "visit", "v-1", base, &json!({"region": "south"}))];
    desk.ask(&batch(2, &moves), "ack").await;
    let mut cursors = Vec::new();
    for ((phone, _), wanted) in phones.iter_mut().zip(["v-1 evict", "v-1 put"]) {
        let delta = phone.expect("server_delta").await;
        assert_eq!(rows(std::slice::from_ref(&delta)), [wanted], "{delta}");
        cursors.push(delta["cursor"].clone());
    }

    // Who goes after it gets it back, although nothing has happened to it since.
    let moved = of_regions("nora", "user", &json!("south"));
    let mut phone = harness.enter(&moved, "phone").await;
    assert_eq!(rows(&sync_from(&mut phone, Some(&cursors[0])).await), ["v-1 put"]);
    let mut phone = harness.enter(&grant("t1", "sam", "user"), "phone").await;
    assert_eq!(rows(&sync_from(&mut phone, Some(&cursors[1])).await), ["v-1 evict"]);
}

#[tokio::test]
async fn a_reviewer_of_another_region_knows_of_nothing() {
    let harness = regional().await;
    let root = grant("t1", "root", "admin");
    let manual = Request::new("PUT", "/api/v1/policies/visit").json(&json!({"strategy": "manual"}));
    assert_eq!(harness.ask_as(&root, manual).await.status, 200);
    let nora = of_regions("nora", "user", &json!("north"));
    let push = async |device: &str, item: Value| {
        let request = Request::post(&format!("/api/v1/sync?device_id={device}"), &json!({"batch": [item]}));
        let mut answer = harness.ask_as(&nora, request).await.json();
        answer["ack"]["results"][0].take()
    };
    let made = push("one", create(1, "visit", "v-1", &json!({"region": "north", "state": "open"}))).await;
    push("one", patch(2, "visit", "v-1", &made["version"], &json!({"state": "seen"}))).await;
    let waits = push("two", patch(1, "visit", "v-1", &made["version"], &json!({"state": "shut"}))).await;
    let conflict_id = waits["conflict_id"].as_str().expect("a conflict").to_owned();

    let one = Request::get(&format!("/api/v1/conflicts/{conflict_id}"));
    let resolve =
        Request::post(&format!("/api/v1/conflicts/{conflict_id}/resolve"), &json!({"resolution": "server"}));
    for elsewhere in [of_regions("rolf", "reviewer", &json!("south")), grant("t1", "ron", "reviewer")] {
        for list in ["conflicts?status=all", "audit"] {
            let answer = harness.ask_as(&elsewhere, Request::get(&format!("/api/v1/{list}"))).await;
            assert_eq!((answer.status, &answer.json()["items"]), (200, &json!([])), "{list}");
        }
        for request in [&one, &resolve] {
            let answer = harness.ask_as(&elsewhere, request.clone()).await;
            assert_eq!((answer.status, answer.code().as_str()), (404, "CONFLICT_NOT_FOUND"));
        }
    }
    let here = of_regions("rita", "reviewer", &json!("north"));
    for list in ["conflicts", "audit"] {
        let answer = harness.ask_as(&here, Request::get(&format!("/api/v1/{list}"))).await;
        assert_eq!(answer.json()["items"].as_array().map(Vec::len), Some(1), "{list}: {}", answer.text());
    }
    assert_eq!(harness.ask_as(&here, resolve).await.status, 200);
}

#[tokio::test]
async fn a_schema_refuses_with_the_place() {
    let schema = json!({
        "required": ["title"],
        "additionalProperties": false,
        "properties": {
            "title": {"type": "string", "maxLength": 5},
            "stars": {"type": "integer", "minimum": 1},
            "tags": {"type": "array", "items": {"enum": ["roof", "wall"]}},
        },
    });
    let schema = KindSchema::compile(&schema.to_string()).expect("a schema");
    let review = KindRule { schema: Some(Arc::new(schema)), schema_version_min: 2, ..KindRule::default() };
    let harness = start(Setup { kinds: vec![("review", review)], ..Setup::default() }).await;
    let item = |n: u64, fields: Value| create(n, "review", &format!("r-{n}"), &fields);
    let with = |mut item: Value, name: &str, value: Value| {
        item[name] = value;
        item
    };
    let items = [
        item(1, json!({"title": "fine", "stars": 3})),
        item(2, json!({"stars": 3})),
        item(3, json!({"title": "too long"})),
        item(4, json!({"title": "a", "stars": 0})),
        item(5, json!({"title": "a", "mood": 1})),
        with(item(6, json!({"title": "a"})), "add", json!({"tags": ["roof", "moon"]})),
        with(item(7, json!({"title": "a"})), "schema_version", json!(1)),
        with(item(8, json!({"title": "a"})), "schema_version", json!(2)),
    ];
    let mut socket = harness.syncing("one").await;
    let ack = socket.ask(&batch(1, &items), "ack").await;
    let table = [
        ("applied", None),
        ("invalid", Some("/fields/title")),
        ("invalid", Some("/fields/title")),
        ("invalid", Some("/fields/stars")),
        ("invalid", Some("/fields/mood")),
        ("invalid", Some("/add/tags/1")),
        ("schema_too_old", None),
        ("applied", None),
    ];
    for (result, (code, pointer)) in ack["results"].as_array().expect("results").iter().zip(table) {
        assert_eq!(result["code"], code, "{result}");
        if let Some(pointer) = pointer {
            assert_eq!(result["errors"][0]["pointer"], pointer, "{result}");
        }
    }
    assert_eq!((&ack["synced"], &ack["failed"]), (&json!(2), &json!(6)));
}

#[tokio::test]
async fn a_tenants_policy_is_in_force_at_once_and_for_it_alone() {
    let harness = start(Setup::default()).await;
    let path = "/api/v1/policies/note";
    let escalation = json!({"strategy": "preserve_escalation", "fields": {
        "status": {"rule": "ordered", "order": ["closed", "open", "urgent"], "urgent": "urgent"},
        "tags": {"rule": "set"}}});
    let set = async |policy: &Value| {
        let request = Request::new("PUT", path).json(policy);
        harness.ask_as(&grant("t1", "root", "admin"), request).await
    };
    let made = harness.push("one", &[create(1, "note", "n-1", &json!({"status": "open"}))]).await;
    let base = made[0]["version"].clone();
    // Under the declared policy the later write wins; under the tenant's own a status does not fall behind its back.
    let versions = [set(&escalation).await, set(&escalation).await];
    assert_eq!(versions.map(|answer| answer.json()["version"].clone()), [json!(1), json!(2)]);
    let shown = harness.ask("t1", "ada", Request::get(path)).await.json();
    assert_eq!((&shown["fields"], &shown["version"]), (&escalation["fields"], &json!(2)));
    let listed = harness.ask("t1", "ada", Request::get("/api/v1/policies")).await.json();
    assert!(listed["items"].as_array().expect("items").contains(&shown), "{listed}");
    let mut lower = patch(2, "note", "n-1", &base, &json!({"status": "closed"}));
    lower["previous"] = json!({"status": "open"});
    let held = harness.push("one", &[lower]).await;
    assert_eq!(
        (&held[0]["code"], &held[0]["winners"]["status"]),
        (&json!("merged"), &json!("held")),
        "{held}"
    );
    // A session is told which policies are in force.
    let started = harness.device("two").await.start(SYNC_ID, &["note"]).await;
    assert_eq!(started["session_info"]["policies"]["note"]["fields"], escalation["fields"]);

    let elsewhere = harness.ask("t2", "ada", Request::get(path)).await.json();
    assert_eq!((&elsewhere["strategy"], &elsewhere["version"]), (&json!("field_merge"), &json!(0)));
    let removed = Request::new("DELETE", path);
    assert_eq!(harness.ask_as(&grant("t1", "root", "admin"), removed).await.status, 204);
    let lower = patch(3, "note", "n-1", &base, &json!({"status": "closed"}));
    assert_eq!(harness.push("one", &[lower]).await[0]["code"], "applied");

    let wrong = [
        (json!({"strategy": "preserve_escalation"}), "/fields"),
        (
            json!({"strategy": "preserve_escalation", "fields": {"s": {"rule": "ordered", "order": ["a"]}}}),
            "/fields/s/order",
        ),
        (json!({"strategy": "best"}), "/strategy"),
        (json!({"strategy": "manual", "options": {"on_delete": "x"}}), "/options/on_delete"),
    ];
    for (policy, pointer) in wrong {
        let answer = set(&policy).await;
        assert_eq!(
            (answer.status, &answer.json()["errors"][0]["pointer"]),
            (422, &json!(pointer)),
            "{policy}"
        );
    }
}

#[tokio::test]
async fn a_page_says_what_the_rows_add_up_to() {
    let harness = start(Setup::default()).await;
    let items: Vec<Value> = (1..=3).map(|n| create(n, "note", &format!("n-{n}"), &json!({}))).collect();
    harness.push("one", &items).await;
    let first = harness.ask("t1", "ada", Request::get("/api/v1/changes?limit=2")).await.json();
    assert_eq!((&first["has_more"], &first["checksums"]), (&json!(true), &Value::Null), "{first}");
    assert_eq!(first["progress"]["sent"], 2, "{first}");
    let cursor = first["cursor"].as_str().expect("a cursor");
    let last =
        harness.ask("t1", "ada", Request::get(&format!("/api/v1/changes?cursor={cursor}"))).await.json();
    let sum = &last["checksums"][0];
    assert_eq!(
        (&sum["scope"], &sum["kind"], &sum["count"]),
        (&json!("tenant"), &json!("note"), &json!(3)),
        "{last}"
    );
    let synced =
        harness.ask("t1", "ada", Request::post("/api/v1/sync?device_id=two", &json!({}))).await.json();
    assert_eq!(synced["data"]["checksums"], last["checksums"], "{synced}");

    // A device that adds up to something else asks for the parts, which is counted.
    let before = harness.counted("driftline_checksum_mismatches_total").await;
    let mut socket = harness.syncing("one").await;
    let asks = json!({"type": "request_checksums", "sync_id": SYNC_ID,
                      "payload": {"scope": "tenant", "kind": "note", "parts": 1}});
    let parts = socket.ask(&asks, "checksums").await;
    assert_eq!(
        (&parts["parts"][0]["count"], &parts["parts"][0]["sum"]),
        (&sum["count"], &sum["sum"]),
        "{parts}"
    );
    assert!(harness.counted("driftline_checksum_mismatches_total").await > before);
}
