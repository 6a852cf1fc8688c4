//! The worst day of an operator: the server goes back to a backup that was made in the middle of the work, and the phones
//! in the field know more than it does.

mod support;

use std::path::Path;

use driftline_client::Event;
use driftline_testkit::TempFolder;
use serde_json::{Value, json};
use support::{Deployment, Person, Phone, WITHIN, create, delete, patch};

/// Runs a command that must succeed, and returns what it prints.
fn run(town: &Deployment, arguments: &[&str]) -> String {
    let output = town.command(arguments).output().expect("the program runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{arguments:?}: {said}");
    String::from_utf8(output.stdout).expect("it prints text")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("the path is text")
}

fn ticket(id: &str) -> driftline_client::Edit {
    create("ticket", id, &json!({"title": id, "region": "north", "status": "open"}))
}

/// Pushes batches of new tickets before a backup is made, while it is, and after; tells how many tickets there are.
async fn push_during(town: &Deployment, ana: &mut Phone, target: &Path) -> (usize, String) {
    let mut client = ana.connect().await;
    let mut command = town.command(&["backup", text(target)]);
    let (mut backup, mut command) = (None, Some(move || command.output().expect("the program runs")));
    let (mut tickets, mut more) = (0, 0);
    while more < 5 {
        if tickets == 30 {
            backup = command.take().map(tokio::task::spawn_blocking);
        }
        more += usize::from(backup.as_ref().is_some_and(tokio::task::JoinHandle::is_finished));
        for _ in 0..10 {
            client.edit(ticket(&format!("t-{tickets}"))).expect("queued");
            tickets += 1;
        }
        client.flush(WITHIN).await.expect("pushed");
    }
    ana.hang_up(client).await;
    let output = backup.expect("it was begun").await.expect("the thread ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    (tickets, String::from_utf8(output.stdout).expect("it prints text"))
}

fn healed_rows(phone: &mut Phone) -> Option<usize> {
    phone.events().into_iter().find_map(|event| match event {
        Event::Healing { rows } => Some(usize::try_from(rows).expect("a few")),
        _ => None,
    })
}

fn everything(phone: &Phone, tickets: usize) -> Vec<Value> {
    let mut shown: Vec<Value> = (0..tickets).map(|at| phone.shows("ticket", &format!("t-{at}"))).collect();
    shown.push(phone.shows("ticket", "first"));
    shown.push(phone.shows("ticket", "doomed"));
    shown
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn phones_that_are_ahead_heal_a_server_that_was_restored() {
    let mut town = Deployment::start("mobile-sync.toml");
    let person =
        |town: &Deployment, name: &str| -> Person { town.person("acme", name, "agent", &["region=north"]) };
    let (ana, ben) = (person(&town, "ana"), person(&town, "ben"));
    let (mut hers, mut his) = (town.phone(&ana, "phone-ana"), town.phone(&ben, "phone-ben"));
    hers.edit(ticket("first"));
    hers.edit(ticket("doomed"));
    hers.sync().await;

    let folder = TempFolder::new();
    let kept = folder.path().join("kept.db");
    let (tickets, told) = push_during(&town, &mut hers, &kept).await;
    let seq: usize =
        told.rsplit(' ').next().and_then(|seq| seq.trim().parse().ok()).expect("it ends with the seq");
    assert!((32..2 + tickets).contains(&seq), "{told}: something was pushed after it, of {tickets} tickets");

    // Much happens after the backup, and is acknowledged. Ben reads all of it, and edits what he does not send yet.
    hers.edit(patch("ticket", "first", &json!({"status": "escalated", "title": "Water in the cellar"})));
    hers.edit(delete("ticket", "doomed"));
    hers.sync().await;
    his.sync().await;
    let agreed = everything(&hers, tickets);
    assert_eq!(everything(&his, tickets), agreed);
    assert_eq!(agreed[tickets]["status"], "escalated");
    his.edit(patch("ticket", "first", &json!({"title": "edited in the field"})));
    let late = format!("t-{}", tickets - 1);
    his.edit(patch("ticket", &late, &json!({"title": "WC-17"})).increment("visits", 1));

    // The disk dies. What the operator is told is what happens.
    run(&town, &["restore", "--check", text(&kept)]);
    town.while_stopped(|town| {
        let told = run(town, &["restore", text(&kept)]);
        assert!(told.contains("new epoch") && told.contains("kept as"), "{told}");
    });

    // Ben is back first. He gives back what he has only read, and his own edits go on top.
    town.sign_in(&mut his, &ben);
    town.sign_in(&mut hers, &ana);
    his.sync().await;
    let healed = healed_rows(&mut his).expect("rows were lost");
    assert!(healed >= tickets + 2 - seq, "{healed} rows, of {tickets} tickets up to {seq}");
    hers.sync().await;
    his.sync().await;
    let mut wanted = agreed;
    wanted[tickets]["title"] = json!("edited in the field");
    wanted[tickets - 1]["title"] = json!("WC-17");
    wanted[tickets - 1]["visits"] = json!(1);

    // A phone that was never there before sees it all, from the server alone.
    let mut fresh = town.phone(&person(&town, "cem"), "phone-cem");
    fresh.sync().await;
    for (name, phone) in [("fresh", &fresh), ("hers", &hers), ("his", &his)] {
        assert!(phone.refused().is_empty(), "{name}: {:?}", phone.refused());
        for (shown, wanted) in everything(phone, tickets).iter().zip(&wanted) {
            assert_eq!(shown, wanted, "{name}");
        }
    }
}
