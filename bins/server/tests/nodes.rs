//! Two servers on one PostgreSQL database.

mod support;

use driftline_testkit::TempFolder;
use driftline_testkit::http::Request;
use driftline_testkit::postgres::{Cluster, Database};
use serde_json::json;
use support::{Node, until};

/// Two servers on a database of their own.
struct Pair {
    one: Node,
    other: Node,
    _database: Database,
    _folder: TempFolder,
}

impl Pair {
    fn start() -> Self {
        let (folder, database) = (TempFolder::new(), Cluster::shared().empty_database());
        let start = || Node::start(folder.path(), &database.url());
        Self { one: start(), other: start(), _database: database, _folder: folder }
    }
}

#[tokio::test]
async fn phones_hear_of_what_was_written_on_the_other_node() {
    let pair = Pair::start();
    let (mut here, mut there) = (pair.one.phone("t", "here").await, pair.other.phone("t", "there").await);
    for round in 0..2 {
        let (first, second) = (format!("a{round}"), format!("b{round}"));
        pair.one.pushed("t", "one", round + 1, &first).await;
        here.hears_of(&first).await;
        there.hears_of(&first).await;
        pair.other.pushed("t", "two", round + 1, &second).await;
        there.hears_of(&second).await;
        here.hears_of(&second).await;
    }
    assert_eq!((here.seq, there.seq), (4, 4));
}

/// The node has not compared the head of the tenant before.
#[tokio::test]
async fn a_phone_of_a_tenant_that_its_node_has_just_met_hears_too() {
    let pair = Pair::start();
    for round in 0..4 {
        let tenant = format!("new-{round}");
        let mut phone = pair.other.phone(&tenant, "phone").await;
        pair.one.pushed(&tenant, "one", 1, "first").await;
        phone.hears_of("first").await;
    }
}

#[tokio::test]
async fn a_policy_that_is_set_on_one_node_is_in_force_on_the_other() {
    let pair = Pair::start();
    for tenant in ["first", "second"] {
        let there = async || {
            let response = pair.other.ask(tenant, Request::get("/api/v1/policies/note")).await.json();
            response["strategy"].as_str().expect("a strategy").to_owned()
        };
        assert_eq!(there().await, "field_merge");
        for strategy in ["server_wins", "manual"] {
            let doc = json!({"strategy": strategy});
            let set = pair.one.ask(tenant, Request::new("PUT", "/api/v1/policies/note").json(&doc)).await;
            assert_eq!(set.status, 200, "{}", set.text());
            until(strategy, async || there().await == strategy).await;
        }
    }
}

#[tokio::test]
async fn when_a_node_is_killed_the_other_serves_its_phones() {
    let mut pair = Pair::start();
    let (mut lost, mut stays) = (pair.one.phone("t", "lost").await, pair.other.phone("t", "stays").await);
    for n in 1..=20 {
        pair.one.pushed("t", "writer", n, &format!("r{n}")).await;
    }
    lost.hears_of("r20").await;
    pair.one.process.kill();
    // What was acknowledged is known to the other node, and so is that it was done.
    let again = pair.other.push("t", "writer", 20, "r20").await.json();
    assert_eq!(again["ack"]["results"][0]["duplicate"], true, "{again}");
    pair.other.pushed("t", "writer", 21, "r21").await;
    stays.hears_of("r21").await;
    let mut moved = pair.other.phone("t", "lost").await;
    moved.cursor = lost.cursor;
    assert_eq!(moved.pull().await, ["r21"], "its cursor is good on every node");
}
