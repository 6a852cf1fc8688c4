//! `kill -9` under pushes: what was acknowledged is there once, and the rest applies on retry, never twice.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use driftline_client::{Client, DeviceId, Edit, Endpoint, KindName, RecordId, Replica, fields};
use driftline_testkit::Rng;
use driftline_testkit::server::{Server, TokenFor, program};

const ROUNDS: u64 = 50;
/// Devices that push at once, so that commit groups hold batches of several.
const WRITERS: usize = 3;
/// Edits of each device in each round; every other one patches an earlier record.
const EDITS: u64 = 150;
const WITHIN: Duration = Duration::from_secs(60);

fn endpoint(server: &Server, device: &str) -> Endpoint {
    let token = server.token(&TokenFor { tenant: "t1", sub: "ada", ..TokenFor::default() });
    Endpoint::new(&server.address().to_string(), &token, DeviceId::new(device).expect("a device"))
        .expect("an endpoint")
}

/// One device: its replica and what its records must hold once everything is applied.
struct Writer {
    name: String,
    replica: Option<Replica>,
    wanted: BTreeMap<String, u64>,
    edits: u64,
}

impl Writer {
    fn new(number: usize) -> Self {
        let name = format!("writer-{number}");
        Self { name, replica: Some(Replica::default()), wanted: BTreeMap::new(), edits: 0 }
    }

    async fn connect(&mut self, server: &Server) -> Client {
        let replica = self.replica.take().expect("it is offline");
        Client::connect(&endpoint(server, &self.name), replica).await.expect("connected")
    }

    fn edit(&mut self, client: &mut Client, rng: &mut Rng) {
        let kind = KindName::new("note").expect("a kind");
        for at in 0..EDITS {
            self.edits += 1;
            let body = fields(&format!(r#"{{"v":{}}}"#, self.edits)).expect("fields");
            let earlier = self.wanted.len() as u64;
            let patched = (at % 2 == 1).then(|| rng.below(earlier));
            let id = format!("{}-{}", self.name, patched.unwrap_or(earlier));
            let record = RecordId::new(&id).expect("an id");
            let edit = match patched {
                Some(_) => Edit::patch(kind.clone(), record, body),
                None => Edit::create(kind.clone(), record, body),
            };
            client.edit(edit).expect("queued");
            self.wanted.insert(id, self.edits);
        }
    }

    /// Every record of which nothing is unanswered must be as it was acknowledged.
    fn check(&self, held: &BTreeMap<String, u64>, round: u64) {
        let replica = self.replica.as_ref().expect("it is offline");
        let unanswered: BTreeSet<&str> = replica.queue().map(|item| item.id.as_str()).collect();
        for (id, value) in self.wanted.iter().filter(|(id, _)| !unanswered.contains(id.as_str())) {
            assert_eq!(held.get(id), Some(value), "round {round}: {id} was acknowledged");
        }
    }
}

/// Everything a fresh device sees, and the head of the sequence.
async fn pulled(server: &Server, device: &str) -> (BTreeMap<String, u64>, u64) {
    let mut client = Client::connect(&endpoint(server, device), Replica::default()).await.expect("connected");
    client.sync(WITHIN).await.expect("pulled");
    let replica = client.close().await;
    let value = |text: &str| text.parse().expect("a number");
    let held = replica
        .views()
        .map(|(_, id, view)| (id.to_string(), value(view.fields.get("v").expect("it is whole"))));
    (held.collect(), replica.seq().number())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_changes_survive_and_nothing_applies_twice() {
    let seed = 0x0dd5_eed5;
    println!("seed {seed:#x}");
    let mut rng = Rng::new(seed);
    let mut server = Server::with(&program(), &["--limits", "off"]);
    let mut writers: Vec<Writer> = (0..WRITERS).map(Writer::new).collect();
    let mut cut_short = 0;
    for round in 0..ROUNDS {
        let mut clients = Vec::new();
        for writer in &mut writers {
            let mut client = writer.connect(&server).await;
            writer.edit(&mut client, &mut rng);
            clients.push(client);
        }
        // The moment of the kill: somewhere in the pushes of this round, often in the middle of a commit.
        let moment = Duration::from_micros(rng.below(20_000));
        let [one, two, three] = &mut clients[..] else { panic!("three devices") };
        let pushing = async { tokio::join!(one.flush(WITHIN), two.flush(WITHIN), three.flush(WITHIN)) };
        cut_short += u64::from(tokio::time::timeout(moment, pushing).await.is_err());
        server.kill9();
        for (writer, client) in writers.iter_mut().zip(clients) {
            writer.replica = Some(client.disconnect().await);
        }

        server.restart();
        let (held, seq) = pulled(&server, &format!("reader-{round}")).await;
        for writer in &writers {
            writer.check(&held, round);
        }
        let made: u64 = writers.iter().map(|writer| writer.edits).sum();
        assert!(seq <= made, "round {round}: {seq} changes of {made} edits: something applied twice");
    }
    assert!(cut_short >= ROUNDS / 5, "the kills come in time: {cut_short} of {ROUNDS} rounds were cut short");

    for writer in &mut writers {
        let mut client = writer.connect(&server).await;
        client.sync(WITHIN).await.expect("the rest applies on retry");
        assert!(client.replica().dead_letters().is_empty());
        writer.replica = Some(client.close().await);
    }
    let (held, seq) = pulled(&server, "last-reader").await;
    for writer in &writers {
        writer.check(&held, ROUNDS);
    }
    let made: u64 = writers.iter().map(|writer| writer.edits).sum();
    assert_eq!(seq, made, "every edit took one number: all there, each once");
}
