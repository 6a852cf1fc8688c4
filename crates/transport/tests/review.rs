//! Conflicts that wait for a reviewer: told, listed, decided once, and audited.

mod support;

use driftline_testkit::http::{Request, Response};
use driftline_testkit::socket::Socket;
use driftline_transport::Grant;
use serde_json::{Value, json};
use support::{Harness, SYNC_ID, Setup, batch, create, decided_by, grant, hear, patch, pull, start, token};

/// A server whose kind `case` leaves conflicts to reviewers.
async fn server() -> Harness {
    let case = decided_by(&json!({"strategy": "manual"}));
    start(Setup { kinds: vec![("case", case)], ..Setup::default() }).await
}

fn rita() -> Grant {
    grant("t1", "rita", "reviewer")
}

/// Has two devices of ada's edit one case that both had seen; gives the version that they had seen, and the conflict.
async fn disagree(harness: &Harness, id: &str, n: u64) -> (Value, String) {
    let created = harness.push("one", &[create(n, "case", id, &json!({"state": "new", "room": 1}))]).await;
    let base = created[0]["version"].clone();
    harness.push("one", &[patch(n + 1, "case", id, &base, &json!({"state": "seen"}))]).await;
    let waits = harness.push("two", &[patch(n, "case", id, &base, &json!({"state": "closed"}))]).await;
    assert_eq!(waits[0]["code"], "conflict_pending", "{waits}");
    assert_eq!(
        (&waits[0]["winners"]["state"], &waits[0]["record"]["fields"]["state"]),
        (&json!("held"), &json!("seen"))
    );
    (base, waits[0]["conflict_id"].as_str().expect("a conflict").to_owned())
}

fn decision(conflict_id: &str, payload: &Value) -> Value {
    let mut payload = payload.clone();
    payload["conflict_id"] = conflict_id.into();
    json!({"type": "resolve_conflict", "id": "r", "payload": payload})
}

async fn conflict(harness: &Harness, conflict_id: &str) -> Value {
    let request = Request::get(&format!("/api/v1/conflicts/{conflict_id}"));
    let answer = harness.ask_as(&rita(), request).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

async fn resolve(harness: &Harness, conflict_id: &str, body: &Value) -> Response {
    let request = Request::post(&format!("/api/v1/conflicts/{conflict_id}/resolve"), body);
    harness.ask_as(&rita(), request).await
}

#[tokio::test]
async fn a_conflict_is_told_to_its_device_and_to_reviewers_and_so_is_its_decision() {
    let harness = server().await;
    let mut one = harness.syncing("one").await;
    let mut reviewer = harness.enter(&rita(), "desk").await;
    let mut bystander = harness.enter(&grant("t1", "bob", "user"), "b").await;
    let mut stranger = harness.enter(&grant("t2", "rita", "reviewer"), "desk").await;
    let mut two = harness.syncing("two").await;
    let (_, conflict_id) = disagree(&harness, "c-1", 1).await;

    for socket in [&mut two, &mut reviewer] {
        let told = hear(socket, "conflict").await;
        assert_eq!((&told["conflict_id"], &told["reason"]), (&json!(conflict_id), &json!("manual")));
        assert_eq!(
            (&told["client"], &told["server"]),
            (&json!({"state": "closed"}), &json!({"state": "seen"}))
        );
        assert_eq!(
            (&told["device_id"], &told["user_id"], &told["status"]),
            (&json!("two"), &json!("ada"), &json!("open"))
        );
    }
    let merged = json!({"resolution": "merged", "fields": {"state": "closed", "room": 2}});
    let answer = reviewer.ask(&decision(&conflict_id, &merged), "conflict_resolved").await;
    assert_eq!((&answer["reply_to"], &answer["resolved_by"]), (&json!("r"), &json!("rita")), "{answer}");
    assert_eq!(answer["record"]["fields"], json!({"state": "closed", "room": 2}));
    let heard = hear(&mut two, "conflict_resolved").await;
    assert_eq!((&heard["resolution"], &heard["record"]), (&json!("merged"), &answer["record"]));

    // The first device was told of the record, and in the end of the decision about it.
    let decided = loop {
        let delta = hear(&mut one, "server_delta").await;
        let changes = delta["changes"].as_array().expect("changes").clone();
        if let Some(change) = changes.into_iter().find(|change| change["kind"] == "case") {
            break change;
        }
    };
    assert_eq!(decided["fields"], json!({"state": "closed", "room": 2}));
    for silent in [&mut bystander, &mut stranger] {
        silent.ask(&json!({"type": "ping"}), "pong").await;
    }
}

#[tokio::test]
async fn a_decision_that_is_sent_again_is_answered_as_it_was() {
    let harness = server().await;
    let (_, conflict_id) = disagree(&harness, "c-1", 1).await;
    let path = format!("/api/v1/conflicts/{conflict_id}/resolve");
    let body = json!({"resolution": "client"});
    let send = |body: &Value| Request::post(&path, body).header("idempotency-key", "d-1");
    // Whoever may not decide is told so before the key is looked at.
    assert_eq!(harness.ask("t1", "ada", send(&body)).await.status, 403);
    let first = harness.ask_as(&rita(), send(&body)).await;
    assert_eq!((first.status, first.header("idempotency-replayed")), (200, None), "{}", first.text());
    let again = harness.ask_as(&rita(), send(&body)).await;
    assert_eq!((again.status, again.header("idempotency-replayed")), (200, Some("true")));
    assert_eq!(again.body, first.body);
    let other = harness.ask_as(&rita(), send(&json!({"resolution": "server"}))).await;
    assert_eq!((other.status, other.code().as_str()), (422, "IDEMPOTENCY_KEY_REUSED"));
    assert_eq!(resolve(&harness, &conflict_id, &body).await.code(), "CONFLICT_ALREADY_RESOLVED");
    // Another reviewer's key of the same name is another one.
    let root = grant("t1", "root", "admin");
    assert_eq!(harness.ask_as(&root, send(&body)).await.code(), "CONFLICT_ALREADY_RESOLVED");
}

#[tokio::test]
async fn of_two_reviewers_one_decides_and_the_other_hears_so() {
    let harness = server().await;
    for (n, round) in (0..8).map(|round| (10 * round + 1, round)) {
        let (_, conflict_id) = disagree(&harness, &format!("c-{round}"), n).await;
        let version = &conflict(&harness, &conflict_id).await["version"];
        let mut rita = harness.enter(&rita(), "desk").await;
        let mut root = harness.enter(&grant("t1", "root", "admin"), "office").await;
        let takes = |side: &str| decision(&conflict_id, &json!({"resolution": side, "version": version}));
        rita.send(&takes("client")).await;
        root.send(&takes("server")).await;
        let (rita, root) = tokio::join!(answered(&mut rita), answered(&mut root));
        let (won, lost) = if rita["type"] == "error" { (root, rita) } else { (rita, root) };
        assert_eq!((&won["type"], &won["conflict_id"]), (&json!("conflict_resolved"), &json!(conflict_id)));
        let stale =
            lost["code"] == "CONFLICT_STALE" && lost["details"]["record"]["fields"]["state"].is_string();
        assert!(stale || lost["code"] == "CONFLICT_ALREADY_RESOLVED", "round {round}: {lost}");
        let state = if won["resolution"] == "client" { "closed" } else { "seen" };
        assert_eq!(won["record"]["fields"]["state"], state);
        assert_eq!(conflict(&harness, &conflict_id).await["resolution"], won["resolution"]);
    }
}

/// Reads the answer to a decision: other messages may come before it.
async fn answered(socket: &mut Socket) -> Value {
    loop {
        let message = socket.receive().await;
        if message["reply_to"] == "r" {
            return message;
        }
    }
}

#[tokio::test]
async fn a_decision_about_an_older_record_changes_nothing() {
    let harness = server().await;
    let (_, conflict_id) = disagree(&harness, "c-1", 1).await;
    let seen = conflict(&harness, &conflict_id).await;
    let moved =
        harness.push("one", &[patch(3, "case", "c-1", &seen["version"], &json!({"state": "moved"}))]).await;
    assert_eq!(moved[0]["code"], "applied");

    let late = json!({"resolution": "client", "version": seen["version"]});
    let stale = resolve(&harness, &conflict_id, &late).await;
    assert_eq!((stale.status, stale.code().as_str()), (409, "CONFLICT_STALE"));
    assert_eq!(stale.json()["record"]["fields"]["state"], "moved", "{}", stale.text());
    let mut reviewer = harness.enter(&rita(), "desk").await;
    let error = reviewer.ask(&decision(&conflict_id, &late), "error").await;
    assert_eq!(
        (&error["code"], &error["details"]["record"]),
        (&json!("CONFLICT_STALE"), &stale.json()["record"])
    );

    // Who looks again decides, once.
    let fresh = conflict(&harness, &conflict_id).await;
    assert_eq!((&fresh["status"], &fresh["server"]), (&json!("open"), &json!({"state": "moved"})));
    let again = json!({"resolution": "client", "version": fresh["version"]});
    let decided = resolve(&harness, &conflict_id, &again).await;
    assert_eq!((decided.status, &decided.json()["record"]["fields"]["state"]), (200, &json!("closed")));
    let after = resolve(&harness, &conflict_id, &again).await;
    assert_eq!((after.status, after.code().as_str()), (409, "CONFLICT_ALREADY_RESOLVED"));
    assert!(after.text().contains("rita"), "it says who: {}", after.text());
}

#[tokio::test]
async fn later_changes_of_the_device_join_the_conflict() {
    let harness = server().await;
    let (base, conflict_id) = disagree(&harness, "c-1", 1).await;
    let more = [
        patch(2, "case", "c-1", &base, &json!({"room": 7})),
        patch(3, "case", "c-1", &base, &json!({"state": "lost"})),
    ];
    for result in harness.push("two", &more).await.as_array().expect("results") {
        assert_eq!(
            (&result["code"], &result["conflict_id"]),
            (&json!("conflict_pending"), &json!(conflict_id))
        );
    }
    let joined = conflict(&harness, &conflict_id).await;
    assert_eq!((&joined["client"], &joined["n"]), (&json!({"room": 7, "state": "lost"}), &json!(3)));
    assert_eq!(joined["server"], json!({"room": 1, "state": "seen"}));
    let listed = harness.ask_as(&rita(), Request::get("/api/v1/conflicts")).await.json();
    assert_eq!(listed["items"], json!([joined]));
    let decided = resolve(&harness, &conflict_id, &json!({"resolution": "client"})).await;
    assert_eq!(decided.json()["record"]["fields"], json!({"room": 7, "state": "lost"}));
}

#[tokio::test]
async fn phones_sync_conflicts_as_records() {
    let harness = server().await;
    let mut phone = harness.device("phone").await;
    phone.start(SYNC_ID, &["$conflicts"]).await;
    assert_eq!(phone.ask(&pull(), "server_data").await["changes"], json!([]));
    let (_, conflict_id) = disagree(&harness, "c-1", 1).await;
    let told = phone.expect("server_delta").await;
    let row = &told["changes"][0];
    assert_eq!(
        (&row["kind"], &row["id"], &row["change"]),
        (&json!("$conflicts"), &json!(conflict_id), &json!("put"))
    );
    assert_eq!(row["fields"], conflict(&harness, &conflict_id).await, "the same document");

    assert_eq!(resolve(&harness, &conflict_id, &json!({"resolution": "server"})).await.status, 200);
    let told = phone.expect("server_delta").await;
    assert_eq!(
        (&told["changes"][0]["id"], &told["changes"][0]["change"]),
        (&json!(conflict_id), &json!("delete"))
    );

    // Nobody writes what the server makes of conflicts.
    let forged = create(9, "$conflicts", "forged", &json!({"status": "open"}));
    let ack = phone.ask(&batch(1, &[forged]), "ack").await;
    assert_eq!(ack["failed"], 1, "{ack}");
    let listed = harness.ask_as(&rita(), Request::get("/api/v1/records/$conflicts")).await.json();
    assert_eq!(listed["items"], json!([]));
}

#[tokio::test]
async fn the_list_is_filtered_and_paged() {
    let harness = server().await;
    let mut opened = Vec::new();
    for at in 0..5 {
        harness.clock.advance(1000);
        opened.push(disagree(&harness, &format!("c-{at}"), 10 * at + 1).await.1);
    }
    assert_eq!(resolve(&harness, &opened[4], &json!({"resolution": "server"})).await.status, 200);

    let mut paged = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = list(&harness, &format!("conflicts?limit=3{cursor}")).await;
        paged.extend(names(&page, "conflict_id"));
        let Some(next) = page["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(paged, opened[..4], "open ones, in the order of their opening");
    let table = [
        ("status=all", 5),
        ("status=resolved", 1),
        ("id=c-2", 1),
        ("id=c-9", 0),
        ("kind=case&status=all", 5),
        ("kind=note", 0),
        ("device=two", 4),
        ("device=one", 0),
    ];
    for (query, count) in table {
        let page = list(&harness, &format!("conflicts?{query}")).await;
        assert_eq!(names(&page, "conflict_id").len(), count, "{query}");
    }
}

async fn list(harness: &Harness, path: &str) -> Value {
    let answer = harness.ask_as(&rita(), Request::get(&format!("/api/v1/{path}"))).await;
    assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    answer.json()
}

fn names(page: &Value, name: &str) -> Vec<String> {
    let items = page["items"].as_array().expect("items");
    items.iter().map(|item| item[name].to_string().trim_matches('"').to_owned()).collect()
}

#[tokio::test]
async fn the_audit_says_what_was_decided_newest_first() {
    let harness = server().await;
    let (_, conflict_id) = disagree(&harness, "c-1", 1).await;
    harness.clock.advance(60_000);
    assert_eq!(resolve(&harness, &conflict_id, &json!({"resolution": "client"})).await.status, 200);
    harness.clock.advance(60_000);
    disagree(&harness, "c-2", 11).await;

    let all = list(&harness, "audit").await;
    assert_eq!(names(&all, "code"), ["conflict_pending", "applied", "conflict_pending"], "{all}");
    let decided = &all["items"][1];
    assert_eq!((&decided["user_id"], &decided["detail"]["op"]), (&json!("rita"), &json!("resolve")));
    assert_eq!(decided["detail"]["fields"]["state"]["client"], "closed");
    assert_eq!(decided["detail"]["fields"]["state"]["server"], "seen");

    let first = list(&harness, "audit?limit=2").await;
    let next = first["next_cursor"].as_str().expect("one more waits");
    let rest = list(&harness, &format!("audit?limit=2&cursor={next}")).await;
    assert_eq!(rest["items"], json!([all["items"][2]]));
    assert_eq!(rest["next_cursor"], Value::Null);

    let at = decided["at"].as_str().expect("a time");
    let table = [
        ("id=c-1".to_owned(), 2),
        ("kind=case".to_owned(), 3),
        ("device=two".to_owned(), 2),
        ("strategy=manual".to_owned(), 3),
        ("strategy=client_wins".to_owned(), 0),
        ("code=conflict_pending".to_owned(), 2),
        (format!("from={at}"), 2),
        (format!("to={at}"), 1),
        ("from=0&to=1".to_owned(), 0),
    ];
    for (query, count) in table {
        let page = list(&harness, &format!("audit?{query}")).await;
        assert_eq!(names(&page, "audit_id").len(), count, "{query}");
    }
}

#[tokio::test]
async fn a_wrong_query_is_named() {
    let harness = server().await;
    let long = "x".repeat(600);
    let table = [
        ("conflicts?status=maybe".to_owned(), "/status"),
        ("conflicts?kind=a%20b".to_owned(), "/kind"),
        (format!("conflicts?id={long}"), "/id"),
        (format!("conflicts?device={long}"), "/device"),
        ("conflicts?limit=many".to_owned(), "/limit"),
        ("audit?kind=a%20b".to_owned(), "/kind"),
        (format!("audit?id={long}"), "/id"),
        (format!("audit?device={long}"), "/device"),
        ("audit?strategy=Best%20one".to_owned(), "/strategy"),
        ("audit?code=fine".to_owned(), "/code"),
        ("audit?from=yesterday".to_owned(), "/from"),
        ("audit?to=2026-13-01T00:00:00Z".to_owned(), "/to"),
        ("audit?limit=-1".to_owned(), "/limit"),
    ];
    for (path, pointer) in table {
        let answer = harness.ask_as(&rita(), Request::get(&format!("/api/v1/{path}"))).await;
        assert_eq!((answer.status, answer.code().as_str()), (422, "VALIDATION_ERROR"), "{path}");
        assert_eq!(answer.json()["errors"][0]["pointer"], pointer, "{path}: {}", answer.text());
    }
    for path in
        ["conflicts?cursor=nonsense", "conflicts?cursor=YWJj", "audit?cursor=nonsense", "audit?cursor=YWJj"]
    {
        let answer = harness.ask_as(&rita(), Request::get(&format!("/api/v1/{path}"))).await;
        assert_eq!((answer.status, answer.code().as_str()), (410, "CURSOR_INVALID"), "{path}");
    }
}

#[tokio::test]
async fn a_wrong_decision_is_refused_with_its_place() {
    let harness = server().await;
    let (_, conflict_id) = disagree(&harness, "c-1", 1).await;
    let table = [
        (json!({}), "/resolution"),
        (json!({"resolution": "both"}), "/resolution"),
        (json!({"resolution": "merged"}), "/fields"),
        (json!({"resolution": "client", "fields": {"a": 1}}), "/fields"),
        (json!({"resolution": "merged", "fields": [1]}), "/fields"),
        (json!({"resolution": "client", "version": "1"}), "/version"),
    ];
    for (body, pointer) in table {
        let answer = resolve(&harness, &conflict_id, &body).await;
        assert_eq!((answer.status, answer.code().as_str()), (422, "VALIDATION_ERROR"), "{body}");
        assert_eq!(answer.json()["errors"][0]["pointer"], pointer, "{body}: {}", answer.text());
    }
    let request =
        Request::post(&format!("/api/v1/conflicts/{conflict_id}/resolve"), &json!({"resolution": "client"}));
    let own = request.bearer(&token("t1", "ada")).send(harness.address).await;
    assert_eq!((own.status, own.code().as_str()), (403, "FORBIDDEN"), "its author is no reviewer");
    assert_eq!(conflict(&harness, &conflict_id).await["status"], "open");
}
