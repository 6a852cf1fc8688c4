//! The database's primary dies with commits that its standby never got: servers follow the standby, devices come again
//! and give back what was lost.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use driftline_client::{
    Client, ClientError, DeviceId, Edit, Endpoint, Event, KindName, RecordId, Replica, fields,
};
use driftline_testkit::postgres::{Cluster, Database, Options};
use driftline_testkit::server::{Server, TokenFor};

const PHONES: usize = 4;
/// Edits of each phone before the standby is cut off, and behind that.
const EDITS: u64 = 40;
const WITHIN: Duration = Duration::from_secs(60);

/// Records by their id, with the fields as text.
type Held = BTreeMap<String, BTreeMap<String, String>>;

struct Phone {
    name: String,
    /// The phone's own field of the records that all share.
    field: String,
    client: Option<Client>,
    /// What was acknowledged: per record the value of the phone's field.
    acknowledged: BTreeMap<String, u64>,
    edits: u64,
}

fn endpoint(server: &Server, device: &str) -> Endpoint {
    let token = server.token(&TokenFor { tenant: "t1", sub: "ada", ..TokenFor::default() });
    Endpoint::new(&server.address().to_string(), &token, DeviceId::new(device).expect("a device"))
        .expect("an endpoint")
}

/// Connects to whichever server takes the device.
async fn connected(servers: &[Server], device: &str, mut replica: Replica) -> Client {
    for turn in 0..600 {
        match Client::connect(&endpoint(&servers[turn % servers.len()], device), replica).await {
            Ok(client) => return client,
            Err(refused) => replica = *refused.replica,
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("no server takes {device}");
}

impl Phone {
    async fn new(number: usize, server: &Server) -> Self {
        let name = format!("phone-{number}");
        let client = Client::connect(&endpoint(server, &name), Replica::default()).await.expect("connected");
        Self {
            name,
            field: format!("f{number}"),
            client: Some(client),
            acknowledged: BTreeMap::new(),
            edits: 0,
        }
    }

    fn client(&mut self) -> &mut Client {
        self.client.as_mut().expect("it is connected")
    }

    /// Writes to a record of its own, and to its field of one that all share.
    fn edit(&mut self) -> [(String, u64); 2] {
        let kind = KindName::new("note").expect("a kind");
        self.edits += 1;
        let value = self.edits;
        let body = fields(&format!(r#"{{"{}":{value}}}"#, self.field)).expect("fields");
        [format!("{}-{}", self.name, value / 2), format!("shared-{}", value % 8)].map(|id| {
            let record = RecordId::new(&id).expect("an id");
            let known = self.client().replica().view("note", &id).is_some();
            let edit = if known { Edit::patch } else { Edit::create };
            self.client().edit(edit(kind.clone(), record, body.clone())).expect("queued");
            (id, value)
        })
    }

    /// Edits, and has everything acknowledged and pulled.
    async fn work(&mut self) {
        for _ in 0..EDITS {
            let made = self.edit();
            self.acknowledged.extend(made);
        }
        self.client().sync(WITHIN).await.expect("synced");
    }

    /// Edits, and comes again until that is acknowledged.
    async fn insist(&mut self, servers: &[Server]) {
        let made = self.edit();
        while self.client().flush(Duration::from_secs(5)).await.is_err() {
            self.come_again(servers).await;
        }
        self.acknowledged.extend(made);
    }

    async fn come_again(&mut self, servers: &[Server]) {
        let replica = self.client.take().expect("it was connected").disconnect().await;
        self.client = Some(connected(servers, &self.name, replica).await);
    }

    /// Waits until the server sends it away.
    async fn is_sent_away(&mut self) {
        let mut draining = false;
        let closed = tokio::time::timeout(WITHIN, async {
            loop {
                match self.client().next_event().await {
                    Ok(Event::Draining { .. }) => draining = true,
                    Ok(_) => {}
                    Err(closed) => return closed,
                }
            }
        });
        let closed = closed.await.expect("it ends in time");
        assert!(matches!(closed, ClientError::Closed { code: Some(1012), .. }), "{closed:?}");
        assert!(draining, "it is told before");
    }

    fn held(&mut self) -> Held {
        held(self.client().replica())
    }
}

fn held(replica: &Replica) -> Held {
    let views = replica.views().map(|(_, id, view)| {
        let values = view.fields.iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
        (id.to_string(), values.collect())
    });
    views.collect()
}

async fn soon(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..3_000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what} did not come about");
}

fn head(cluster: &Cluster, database: &Database) -> u64 {
    let seq = cluster.sql_in(database.name(), "SELECT sum(seq) FROM stream_head");
    seq.parse().expect("a number")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_failover_lost_comes_back_from_the_phones() {
    let mut primary = Cluster::own(&Options::default());
    let database = primary.empty_database();
    let standby = Cluster::standby_of(&primary);
    let url = database.url_through(&[primary.address(), standby.address()]);
    let servers = [(); 2].map(|()| Server::on(&url, &["--limits", "off"]));
    let mut phones = Vec::new();
    for number in 0..PHONES {
        phones.push(Phone::new(number, &servers[number % 2]).await);
    }
    for phone in &mut phones {
        phone.work().await;
    }
    let lsn = primary.sql("SELECT pg_current_wal_flush_lsn()");
    let reached = format!("SELECT pg_last_wal_replay_lsn() >= '{lsn}'");
    soon("the standby", || standby.sql(&reached) == "t").await;
    standby.sql("ALTER SYSTEM SET primary_conninfo = ''");
    standby.sql("SELECT pg_reload_conf()");
    soon("the end of the stream", || standby.sql("SELECT count(*) FROM pg_stat_wal_receiver") == "0").await;

    // Acknowledged, held by phones, and on nothing but the primary.
    for phone in &mut phones {
        phone.work().await;
    }
    let lost = head(&primary, &database) - head(&standby, &database);
    assert!(lost > EDITS, "{lost} changes are lost");
    primary.kill9();
    let killed = now();
    let promoted = thread::spawn(move || {
        standby.promote();
        standby
    });
    let (first, others) = phones.split_first_mut().expect("several");
    first.insist(&servers).await;
    println!(
        "{lost} changes had not been shipped; {} ms from the kill to the next acknowledged change",
        killed.elapsed().as_millis()
    );
    let standby = promoted.join().expect("it is promoted");

    for phone in others {
        phone.is_sent_away().await;
        phone.come_again(&servers).await;
    }
    // Each gives back what it holds, and then gets what the others gave back.
    for _ in 0..2 {
        for phone in &mut phones {
            phone.client().sync(WITHIN).await.expect("synced");
        }
    }
    println!("{} ms from the kill until all was healed", killed.elapsed().as_millis());
    let mut reader = connected(&servers, "reader", Replica::default()).await;
    reader.sync(WITHIN).await.expect("pulled");
    let there = held(reader.replica());
    for phone in &mut phones {
        for (id, value) in &phone.acknowledged {
            let found = there.get(id).and_then(|fields| fields.get(&phone.field));
            assert_eq!(found, Some(&value.to_string()), "{} of {id} was acknowledged", phone.field);
        }
        assert!(phone.client().replica().dead_letters().is_empty());
        assert!(phone.held() == there, "{} holds what the server holds", phone.name);
    }
    let rows = standby.sql_in(
        database.name(),
        "SELECT count(*) FROM records WHERE kind_no = (SELECT kind_no FROM kinds WHERE kind = 'note')",
    );
    assert_eq!(rows, there.len().to_string());
    let logs = servers.map(|server| server.log()).concat();
    assert_eq!(
        logs.matches("the database is on another timeline").count(),
        1,
        "one of them begins the epochs\n{logs}"
    );
}

#[allow(clippy::disallowed_methods, reason = "how long it takes is what is looked at")]
fn now() -> Instant {
    Instant::now()
}
