//! The story of `deployments/mobile-sync.toml`: two agents, their lead and a reviewer, phones that are offline most of
//! the time, and a second tenant that must know of nothing.

mod support;

use driftline_client::{
    ConflictDoc, ConflictId, Event, ItemCode, Resolution, Seq, WinnerName, World, fields,
};
use driftline_testkit::http::Request;
use serde_json::{Value, json};
use support::{Deployment, Person, Phone, WITHIN, all, create, delete, patch, shown};

/// Everybody of the tenant `acme`, and a reviewer of another one.
struct Cast {
    town: Deployment,
    ana: Person,
    ben: Person,
    lea: Person,
    rita: Person,
    root: Person,
    stranger: Person,
}

fn cast() -> Cast {
    let town = Deployment::start("mobile-sync.toml");
    Cast {
        ana: town.person("acme", "ana", "agent", &["region=north"]),
        ben: town.person("acme", "ben", "agent", &["region=north"]),
        lea: town.person("acme", "lea", "lead", &[r#"region=["north","south"]"#]),
        rita: town.person("acme", "rita", "reviewer", &["region=north"]),
        root: town.person("acme", "root", "admin", &[]),
        stranger: town.person("globex", "root", "admin", &[r#"region=["north","south"]"#]),
        town,
    }
}

impl Cast {
    /// The phones of the two agents, which both know a first record.
    async fn agents_with(&self, first: driftline_client::Edit) -> (Phone, Phone) {
        let mut ana = self.town.phone(&self.ana, "phone-ana");
        let mut ben = self.town.phone(&self.ben, "phone-ben");
        ana.edit(first);
        ana.sync().await;
        ben.sync().await;
        ana.events();
        (ana, ben)
    }

    async fn resolve(&self, conflict_id: &str, decision: &Value) -> Value {
        let path = format!("/api/v1/conflicts/{conflict_id}/resolve");
        let answer = self.town.ask(&self.rita, Request::post(&path, decision)).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    }
}

fn water() -> driftline_client::Edit {
    let ticket =
        json!({"title": "Water in the cellar", "region": "north", "status": "open", "reference": "WC-17"});
    create("ticket", "t-1", &ticket)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_escalation_outlives_an_agent_who_did_not_hear_of_it() {
    let cast = cast();
    let (mut ana, mut ben) = cast.agents_with(water()).await;

    // Both lose the network. Ana sees the water rise; Ben, who knows nothing of it, thinks that the matter is settled.
    let rises = patch("ticket", "t-1", &json!({"status": "escalated"}));
    let rises = rises.add("tags", &all(&json!(["water"]))).increment("visits", 1);
    ana.edit(rises.add("comments", &all(&json!([{"id": "a-1", "text": "It rises."}]))));
    let settled =
        patch("ticket", "t-1", &json!({"status": "resolved", "title": "Water in the cellar, pumped"}));
    let settled = settled.add("tags", &all(&json!(["pump"]))).increment("visits", 2);
    ben.edit(settled.add("comments", &all(&json!([{"id": "b-1", "text": "Pumped out."}]))));
    assert_eq!(ana.shows("ticket", "t-1")["status"], "escalated");
    assert_eq!(
        ben.shows("ticket", "t-1")["status"],
        "open",
        "his phone knows that this is not his to decide"
    );

    // Ben is back first, then Ana; whoever looks afterwards sees the escalation, and everything else of both.
    ben.sync().await;
    ana.sync().await;
    ben.sync().await;
    let agreed = json!({"title": "Water in the cellar, pumped", "region": "north", "reference": "WC-17",
        "status": "escalated", "tags": ["pump", "water"], "visits": 3,
        "comments": [{"id": "a-1", "text": "It rises."}, {"id": "b-1", "text": "Pumped out."}]});
    assert_eq!(ana.shows("ticket", "t-1"), agreed);
    assert_eq!(ben.shows("ticket", "t-1"), agreed);

    // Ben's own phone knows that his word on the status waits for somebody.
    let outcome = ben.outcomes().remove(0);
    assert_eq!((outcome.code, outcome.winners.get("status")), (ItemCode::Merged, Some(&WinnerName::Held)));
    let waiting = cast.town.list(&cast.rita, "conflicts").await;
    assert_eq!(waiting.len(), 1);
    assert_eq!(waiting[0]["conflict_id"].as_str(), outcome.conflict_id.as_deref());
    assert_eq!((&waiting[0]["reason"], &waiting[0]["user_id"]), (&json!("deescalation_held"), &json!("ben")));
    assert_eq!(
        (&waiting[0]["base"]["status"], &waiting[0]["client"]["status"]),
        (&json!("open"), &json!("resolved"))
    );

    // The reviewer rings them up and agrees with Ben; both phones follow.
    let seen = cast.town.read(&cast.rita, "records/ticket/t-1").await;
    let conflict_id = outcome.conflict_id.expect("it waits");
    let decision = json!({"resolution": "client", "version": seen["version"]});
    assert_eq!(cast.resolve(&conflict_id, &decision).await["record"]["fields"]["status"], "resolved");
    for phone in [&mut ana, &mut ben] {
        phone.sync().await;
        assert_eq!(phone.shows("ticket", "t-1")["status"], "resolved");
    }
    let late = cast
        .town
        .ask(&cast.rita, Request::post(&format!("/api/v1/conflicts/{conflict_id}/resolve"), &decision));
    assert_eq!(late.await.code(), "CONFLICT_ALREADY_RESOLVED");

    // Who asks later is told by whom and why.
    let explained = cast.town.read(&cast.ana, "records/ticket/t-1/explain").await;
    let status = &explained["fields"]["status"];
    assert_eq!((&status["value"], &status["rule"]), (&json!("resolved"), &json!("manual")), "{explained}");
    assert_eq!(
        (&status["lost"][0]["value"], &status["lost"][0]["device_id"]),
        (&json!("escalated"), &json!("phone-ana"))
    );
    let audit = cast.town.list(&cast.rita, "audit?kind=ticket&id=t-1").await;
    let told: Vec<(&Value, &Value)> =
        audit.iter().map(|row| (&row["user_id"], &row["detail"]["op"])).collect();
    assert_eq!(told[0], (&json!("rita"), &json!("resolve")), "the newest comes first");
    assert!(told.contains(&(&json!("ben"), &json!("patch"))), "{told:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_escalation_survives_a_week_offline() {
    let cast = cast();
    let today_ms = World::system().now_ms();
    let days_ago = |days: u64| format!("{:012x}-0000", today_ms - days * 86_400_000);
    // Ana's phone speaks plain HTTP and keeps what it cannot send, with the clock of then.
    let send = async |item: Value| {
        let request = Request::post("/api/v1/sync?device_id=phone-ana", &json!({"batch": [item]}));
        let answer = cast.town.ask(&cast.ana, request).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()["ack"]["results"][0].clone()
    };
    let made = json!({"op_id": "a-1", "n": 1, "kind": "ticket", "id": "t-1", "op": "create", "hlc": days_ago(8),
        "fields": {"title": "Water in the cellar", "region": "north", "status": "open"}});
    let base = &send(made).await["version"];

    // A week ago, in a cellar without network.
    let kept = json!({"op_id": "a-2", "n": 2, "kind": "ticket", "id": "t-1", "op": "patch", "hlc": days_ago(7),
        "base_version": base, "previous": {"status": "open"},
        "fields": {"status": "escalated", "title": "Water!"}, "add": {"tags": ["danger"]}});

    // Above, the week goes by: Ben works on the ticket, and the lead calms down what she knows of.
    let mut ben = cast.town.phone(&cast.ben, "phone-ben");
    let mut lead = cast.town.phone(&cast.lea, "phone-lea");
    ben.sync().await;
    ben.edit(patch(
        "ticket",
        "t-1",
        &json!({"status": "in_progress", "title": "Water in the cellar, pumping"}),
    ));
    ben.sync().await;
    lead.sync().await;
    lead.edit(patch("ticket", "t-1", &json!({"status": "resolved"})).deescalate());
    lead.sync().await;
    assert_eq!(lead.shows("ticket", "t-1")["status"], "resolved");

    // Ana comes up. Her old word on the status is the last one; the newer title stays.
    let result = send(kept).await;
    assert_eq!(result["code"], "merged", "{result}");
    for phone in [&mut ben, &mut lead] {
        phone.sync().await;
        let shown = phone.shows("ticket", "t-1");
        assert_eq!((&shown["status"], &shown["tags"]), (&json!("escalated"), &json!(["danger"])));
        assert_eq!(shown["title"], "Water in the cellar, pumping");
    }
    let explained = cast.town.read(&cast.ben, "records/ticket/t-1/explain").await;
    assert_eq!(explained["fields"]["status"]["device_id"], "phone-ana", "{explained}");
    assert_eq!(explained["fields"]["title"]["lost"][0]["value"], "Water!", "{explained}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calming_down_takes_a_right_and_a_word() {
    let cast = cast();
    let (mut ana, mut ben) = cast.agents_with(water()).await;
    ana.edit(patch("ticket", "t-1", &json!({"status": "escalated"})));
    ana.sync().await;
    ben.sync().await;

    // An agent may not, even when she says that she means it; the lead may.
    ana.edit(patch("ticket", "t-1", &json!({"status": "open"})).deescalate());
    ana.sync().await;
    assert_eq!(ana.refused()[0].0, "forbidden");
    assert_eq!(ana.shows("ticket", "t-1")["status"], "escalated");
    let mut lead = cast.town.phone(&cast.lea, "phone-lea");
    lead.sync().await;
    lead.edit(patch("ticket", "t-1", &json!({"status": "in_progress"})).deescalate());
    lead.sync().await;
    for phone in [&mut ana, &mut ben] {
        phone.sync().await;
        assert_eq!(phone.shows("ticket", "t-1")["status"], "in_progress");
    }

    // What the lead calmed down while Ben escalated it again stays escalated: she had not seen that.
    ben.edit(patch("ticket", "t-1", &json!({"status": "escalated"})));
    lead.sync().await;
    lead.edit(patch("ticket", "t-1", &json!({"status": "closed"})).deescalate());
    ben.sync().await;
    lead.sync().await;
    assert_eq!(lead.shows("ticket", "t-1")["status"], "escalated");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_inspections_a_reviewer_makes_one() {
    let cast = cast();
    let site = json!({"site": "Pump 4", "region": "north", "pressure_kpa": 310});
    let (mut ana, mut ben) = cast.agents_with(create("inspection", "i-1", &site)).await;
    ana.edit(patch("inspection", "i-1", &json!({"verdict": "passed"})));
    ben.edit(patch("inspection", "i-1", &json!({"verdict": "failed", "remarks": "It leaks."})));
    ana.sync().await;
    let mut reviewer = cast.town.phone(&cast.rita, "desk");
    let mut desk = reviewer.connect().await;

    // Ben's answer changes nothing and waits; the reviewer hears of it while she sits at her desk.
    ben.sync().await;
    assert_eq!(ben.outcomes()[0].code, ItemCode::ConflictPending);
    assert_eq!(
        ben.shows("inspection", "i-1"),
        json!({"site": "Pump 4", "region": "north", "pressure_kpa": 310, "verdict": "passed"})
    );
    let conflict: ConflictDoc = loop {
        if let Event::ConflictOpened(conflict) = desk.next_event().await.expect("an event") {
            break *conflict;
        }
    };
    assert_eq!(
        (conflict.client.as_str(), conflict.server.get("verdict")),
        (r#"{"remarks":"It leaks.","verdict":"failed"}"#, Some(r#""passed""#))
    );

    // She takes something of both, over her socket; the agents are online and get it without asking.
    let mut online = (ana.connect().await, ben.connect().await);
    online.0.sync(WITHIN).await.expect("a sync");
    online.1.sync(WITHIN).await.expect("a sync");
    let merged = fields(r#"{"verdict":"repeat","remarks":"It leaks, says Ben."}"#).expect("fields");
    let name = ConflictId::new(&conflict.conflict_id).expect("a conflict");
    desk.replica_mut().resolve(name, Resolution::Merged, merged, Some(Seq::new(conflict.version)));
    let decided = loop {
        if let Event::ConflictResolved(decided) = desk.next_event().await.expect("an event") {
            break decided;
        }
    };
    assert_eq!(decided.conflict.resolved_by.as_deref(), Some("rita"));
    for client in [&mut online.0, &mut online.1] {
        let verdict =
            |replica: &driftline_client::Replica| shown(replica, "inspection", "i-1")["verdict"] == "repeat";
        client.drive(WITHIN, verdict).await.expect("the decision arrives");
    }
    ana.hang_up(online.0).await;
    ben.hang_up(online.1).await;
    assert_eq!(ana.shows("inspection", "i-1"), ben.shows("inspection", "i-1"));
    let heard = ben.events().into_iter().any(|event| matches!(event, Event::ConflictResolved(_)));
    assert!(heard, "the author of what waited is told");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_devices_count_one_shelf() {
    let cast = cast();
    let shelf = create("stock", "hose", &json!({})).increment("on_hand", 10);
    let (mut ana, mut ben) = cast.agents_with(shelf).await;
    ana.edit(
        patch("stock", "hose", &json!({"most_seen": 10}))
            .increment("on_hand", -3)
            .add("counted_by", &all(&json!(["ana"]))),
    );
    ben.edit(
        patch("stock", "hose", &json!({"most_seen": 12}))
            .increment("on_hand", 2)
            .add("counted_by", &all(&json!(["ben"]))),
    );

    // The third is a scanner that speaks the protocol by itself, and sends again what it heard no answer to.
    let mut scanner = cast.town.socket(&cast.lea, "scanner").await;
    let sync_id = "6f9f2d0e-2f3a-4c57-9d0b-0d8a8f7a4c11";
    scanner.start(sync_id, &["stock"]).await;
    let batch = json!({"type": "sync_data", "sync_id": sync_id, "payload": {"batch_seq": 1, "batch": [
        {"op_id": "s-1", "n": 1, "kind": "stock", "id": "hose", "op": "patch", "base_version": 1,
         "increments": {"on_hand": -4}, "add": {"counted_by": ["scanner"]}}]}});
    let first = scanner.ask(&batch, "ack").await;
    let again = scanner.ask(&batch, "ack").await;
    assert_eq!((&first["replayed"], &again["replayed"]), (&json!(false), &json!(true)));
    assert_eq!(first["results"], again["results"], "the second answer is the first");
    for phone in [&mut ben, &mut ana] {
        phone.sync().await;
    }
    ben.sync().await;
    let agreed = json!({"on_hand": 5, "most_seen": 10, "counted_by": ["ana", "ben", "scanner"]});
    assert_eq!(ana.shows("stock", "hose")["on_hand"], agreed["on_hand"]);
    assert_eq!(ana.shows("stock", "hose")["counted_by"], agreed["counted_by"]);
    assert_eq!(ana.shows("stock", "hose")["most_seen"], 12);
    assert_eq!(ana.shows("stock", "hose"), ben.shows("stock", "hose"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_note_is_its_authors_alone() {
    let cast = cast();
    let (mut ana, mut ben) =
        cast.agents_with(create("note", "n-1", &json!({"text": "Door code 4711"}))).await;
    let mut tablet = cast.town.phone(&cast.ana, "tablet-ana");
    tablet.sync().await;
    assert_eq!(tablet.shows("note", "n-1")["text"], "Door code 4711");
    assert_eq!(ben.shows("note", "n-1"), Value::Null);
    for other in [&cast.ben, &cast.lea, &cast.rita, &cast.root] {
        assert_eq!(cast.town.list(other, "records/note").await, Vec::<Value>::new());
        let answer = cast.town.ask(other, Request::get("/api/v1/records/note/n-1")).await;
        assert_eq!(answer.status, 404, "{}", answer.text());
    }

    // Thrown away on the phone, written on the tablet: what was written is kept.
    ana.edit(delete("note", "n-1"));
    tablet.edit(patch("note", "n-1", &json!({"text": "Door code 4712"})));
    ana.sync().await;
    tablet.sync().await;
    ana.sync().await;
    assert_eq!(ana.shows("note", "n-1")["text"], "Door code 4712");
    // The audit of private notes is nobody's to read either.
    assert_eq!(cast.town.list(&cast.root, "audit?kind=note").await, Vec::<Value>::new());
    ben.sync().await;
    assert_eq!(ben.shows("note", "n-1"), Value::Null);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ticket_goes_where_its_region_is() {
    let cast = cast();
    let sam = cast.town.person("acme", "sam", "agent", &["region=south"]);
    let (mut ana, _) = cast.agents_with(water()).await;
    let mut south = cast.town.phone(&sam, "phone-sam");
    let mut lead = cast.town.phone(&cast.lea, "phone-lea");
    south.sync().await;
    lead.sync().await;
    assert_eq!(south.shows("ticket", "t-1"), Value::Null);

    // The lead hands the ticket over: it leaves Ana's phone and comes to Sam's.
    lead.edit(patch("ticket", "t-1", &json!({"region": "south"})));
    lead.sync().await;
    ana.sync().await;
    south.sync().await;
    assert_eq!(ana.shows("ticket", "t-1"), Value::Null);
    assert!(ana.events().iter().any(|event| matches!(event, Event::Evicted { .. })));
    assert_eq!(south.shows("ticket", "t-1")["title"], "Water in the cellar");

    // Ana herself moves south and gets it back; Sam leaves and keeps nothing.
    let moved = cast.town.person("acme", "ana", "agent", &["region=south"]);
    cast.town.sign_in(&mut ana, &moved);
    ana.sync().await;
    assert_eq!(ana.shows("ticket", "t-1")["region"], "south");
    let gone = cast.town.person("acme", "sam", "agent", &[]);
    cast.town.sign_in(&mut south, &gone);
    south.sync().await;
    assert_eq!(south.shows("ticket", "t-1"), Value::Null);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_decides_for_itself_and_at_once() {
    let cast = cast();
    let office = create("setting", "s-1", &json!({"language": "en", "pages": 10}));
    let (mut ana, mut ben) = cast.agents_with(office).await;
    let disagree = |ana: &mut Phone, ben: &mut Phone, language: [&str; 2]| {
        ana.edit(patch("setting", "s-1", &json!({"language": language[0]})));
        ben.edit(patch("setting", "s-1", &json!({"language": language[1], "pages": 20})));
    };

    // As declared: who comes late loses the field, and only that.
    disagree(&mut ana, &mut ben, ["de", "fr"]);
    ana.sync().await;
    ben.sync().await;
    assert_eq!(ben.shows("setting", "s-1"), json!({"language": "de", "pages": 20}));

    // The tenant's admin wants the latest word to count.
    let request =
        || Request::new("PUT", "/api/v1/policies/setting").json(&json!({"strategy": "most_recent_wins"}));
    assert_eq!(cast.town.ask(&cast.ana, request()).await.status, 403);
    assert_eq!(cast.town.ask(&cast.root, request()).await.json()["version"], 1);
    ana.sync().await;
    disagree(&mut ana, &mut ben, ["it", "es"]);
    ana.sync().await;
    ben.sync().await;
    ana.sync().await;
    assert_eq!(ana.shows("setting", "s-1")["language"], "es");
    assert_eq!(ana.shows("setting", "s-1"), ben.shows("setting", "s-1"));
    let explained = cast.town.read(&cast.ana, "records/setting/s-1/explain").await;
    let language = &explained["fields"]["language"];
    assert_eq!(
        (&language["rule"], &language["policy_version"]),
        (&json!("most_recent"), &json!(1)),
        "{explained}"
    );
    assert_eq!(language["lost"].as_array().map(Vec::len), Some(2), "fr, then it: {explained}");

    // It is that tenant's alone.
    let elsewhere = cast.town.read(&cast.stranger, "policies/setting").await;
    assert_eq!((&elsewhere["strategy"], &elsewhere["version"]), (&json!("server_wins"), &json!(0)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_tenant_sees_nothing() {
    let cast = cast();
    let (mut ana, mut ben) = cast.agents_with(water()).await;
    ana.edit(patch("ticket", "t-1", &json!({"status": "escalated"})));
    ben.edit(patch("ticket", "t-1", &json!({"status": "closed"})));
    ana.sync().await;
    ben.sync().await;
    let waiting = cast.town.list(&cast.rita, "conflicts").await;
    let conflict = format!("/api/v1/conflicts/{}", waiting[0]["conflict_id"].as_str().expect("a name"));

    for list in ["conflicts?status=all", "audit", "records/ticket", "records/$conflicts"] {
        assert_eq!(cast.town.list(&cast.stranger, list).await, Vec::<Value>::new(), "{list}");
    }
    let resolve = Request::post(&format!("{conflict}/resolve"), &json!({"resolution": "client"}));
    for request in [Request::get(&conflict), resolve, Request::get("/api/v1/records/ticket/t-1/explain")] {
        assert_eq!(cast.town.ask(&cast.stranger, request).await.status, 404);
    }
    let mut phone = cast.town.phone(&cast.stranger, "phone-ana");
    phone.edit(create("ticket", "t-1", &json!({"title": "Ours", "region": "north", "status": "open"})));
    phone.sync().await;
    assert_eq!(phone.shows("ticket", "t-1")["title"], "Ours");
    ana.sync().await;
    assert_eq!(ana.shows("ticket", "t-1")["title"], "Water in the cellar");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_fit_comes_back_with_the_place() {
    let cast = cast();
    let (mut ana, _) = cast.agents_with(water()).await;
    ana.edit(create("ticket", "t-2", &json!({"region": "north", "status": "on fire"})));
    ana.edit(create("ticket", "t-3", &json!({"title": "Elsewhere", "region": "south"})));
    ana.edit(patch("ticket", "t-1", &json!({})).add("comments", &all(&json!([{"id": "a-1"}]))));
    ana.edit(create("inspection", "i-2", &json!({"site": "Pump 5", "region": "north", "mood": "good"})));
    ana.edit(create("gossip", "g-1", &json!({"text": "?"})));
    ana.sync().await;
    let refused = ana.refused();
    let codes: Vec<&str> = refused.iter().map(|(code, _)| *code).collect();
    assert_eq!(codes, ["invalid", "forbidden", "invalid", "invalid", "unknown_kind"], "{refused:?}");
    assert_eq!(refused[0].1, ["/fields/status", "/fields/title"]);
    assert_eq!(refused[2].1, ["/add/comments/0"]);
    assert_eq!(refused[3].1, ["/fields/mood"]);
    // A reviewer decides and writes nothing else.
    let mut desk = cast.town.phone(&cast.rita, "desk");
    desk.sync().await;
    desk.edit(patch("ticket", "t-1", &json!({"title": "Water"})));
    desk.sync().await;
    assert_eq!(desk.refused()[0].0, "forbidden");
}
