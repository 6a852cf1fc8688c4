//! `kill -9` under pushes: what was acknowledged is there once, and the rest applies on retry, never twice.

use std::collections::BTreeSet;
use std::time::Duration;

use driftline_client::{Client, DeviceId, Edit, Endpoint, KindName, RecordId, Replica, fields};
use driftline_testkit::Rng;
use driftline_testkit::server::{Server, TokenFor};

const ROUNDS: u64 = 50;
const EDITS: u64 = 350;
const WITHIN: Duration = Duration::from_secs(60);

fn kind() -> KindName {
    KindName::new("note").expect("a kind")
}

fn endpoint(server: &Server, device: &str) -> Endpoint {
    let token = server.token(&TokenFor { tenant: "t1", sub: "ada", ..TokenFor::default() });
    Endpoint::new(&server.address().to_string(), &token, DeviceId::new(device).expect("a device"))
        .expect("an endpoint")
}

/// Everything a fresh device sees, and the head of the sequence.
async fn pulled(server: &Server, device: &str) -> (BTreeSet<String>, u64) {
    let mut client = Client::connect(&endpoint(server, device), Replica::default()).await.expect("connected");
    client.sync(WITHIN).await.expect("pulled");
    let replica = client.close().await;
    let ids = replica.views().map(|(_, id, view)| {
        assert_eq!(view.fields.as_str(), format!(r#"{{"text":"{id}"}}"#), "a record is whole or not there");
        id.to_string()
    });
    (ids.collect(), replica.seq().number())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_changes_survive_and_nothing_applies_twice() {
    let seed = 0x0dd5_eed5;
    println!("seed {seed:#x}");
    let mut rng = Rng::new(seed);
    let mut server = Server::start();
    let mut writer = Replica::default();
    let mut made = 0;
    let mut cut_short = 0;
    for round in 0..ROUNDS {
        let mut client = Client::connect(&endpoint(&server, "writer"), writer).await.expect("connected");
        for _ in 0..EDITS {
            made += 1;
            let id = RecordId::new(&format!("n-{made}")).expect("an id");
            let body = fields(&format!(r#"{{"text":"n-{made}"}}"#)).expect("fields");
            client.edit(Edit::create(kind(), id, body)).expect("queued");
        }
        // The moment of the kill: somewhere in the push of this round, often in the middle of a commit.
        let moment = Duration::from_micros(rng.below(40_000));
        let finished = tokio::time::timeout(moment, client.flush(WITHIN)).await.is_ok();
        server.kill9();
        cut_short += u64::from(!finished);
        writer = client.disconnect().await;

        let unanswered: BTreeSet<String> = writer.queue().map(|item| item.id.to_string()).collect();
        server.restart();
        let (held, seq) = pulled(&server, &format!("reader-{round}")).await;
        assert_eq!(held.len() as u64, seq, "every change took one number: nothing applied twice");
        for number in 1..=made {
            let id = format!("n-{number}");
            assert!(
                held.contains(&id) || unanswered.contains(&id),
                "round {round}: {id} was acknowledged and is gone"
            );
        }
    }
    assert!(cut_short >= ROUNDS / 3, "the kills come in time: {cut_short} of {ROUNDS} rounds were cut short");

    let mut client = Client::connect(&endpoint(&server, "writer"), writer).await.expect("connected");
    client.sync(WITHIN).await.expect("the rest applies on retry");
    assert!(client.replica().dead_letters().is_empty());
    client.close().await;
    let (held, seq) = pulled(&server, "last-reader").await;
    assert_eq!((held.len() as u64, seq), (made, made), "all there, each once");
}
