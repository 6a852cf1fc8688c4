//! Two servers on one database under load, while PostgreSQL or the servers are killed: what was acknowledged is there
//! once, everything else applies when it is sent again, and all goes on by itself.
//!
//! `DRIFTLINE_KILLS` sets how often something is killed.

mod load;

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use driftline_client::{Client, DeviceId, Endpoint, Replica};
use driftline_testkit::Rng;
use driftline_testkit::http::Request;
use driftline_testkit::postgres::{Cluster, Database, Options};
use driftline_testkit::server::{Server, TokenFor};
use serde_json::Value;
use tokio::task::JoinHandle;

use load::{Field, Told, now, over_http, over_socket};

const KILLS: u64 = 20;
/// How soon writes are acknowledged again by themselves.
const RESUMES_WITHIN: Duration = Duration::from_secs(10);
/// Writes that must be acknowledged between two kills.
const BETWEEN: usize = 20;

fn kills() -> u64 {
    std::env::var("DRIFTLINE_KILLS").map_or(KILLS, |given| given.parse().expect("a number of kills"))
}

struct Scene {
    cluster: Cluster,
    database: Database,
    servers: Vec<Server>,
    field: Arc<Field>,
    devices: Vec<JoinHandle<Told>>,
    /// How long nothing was acknowledged, by kill.
    stalls: Vec<Duration>,
    /// How long what was killed was away, by kill.
    away: Vec<Duration>,
    /// How much longer nothing was acknowledged, by kill.
    beyond: Vec<Duration>,
}

impl Scene {
    fn new() -> Self {
        let cluster = Cluster::own(&Options::default());
        let database = cluster.empty_database();
        let url = database.url();
        let servers: Vec<Server> = (0..2).map(|_| Server::on(&url, &["--limits", "off"])).collect();
        let token = servers[0].token(&TokenFor { tenant: "t1", sub: "ada", ..TokenFor::default() });
        let field = Field::new(servers.iter().map(Server::address).collect(), token);
        let mut devices: Vec<JoinHandle<Told>> =
            (0..6).map(|number| tokio::spawn(over_http(Arc::clone(&field), number))).collect();
        devices.extend((0..2).map(|number| tokio::spawn(over_socket(Arc::clone(&field), number))));
        Self {
            cluster,
            database,
            servers,
            field,
            devices,
            stalls: Vec::new(),
            away: Vec::new(),
            beyond: Vec::new(),
        }
    }

    /// Waits until more writes are acknowledged.
    async fn goes_on(&self) {
        let (wanted, begun) = (self.field.writes() + BETWEEN, now());
        while self.field.writes() < wanted {
            if let Some(ended) = self.devices.iter().find(|device| device.is_finished()) {
                panic!("device {} ended", ended.id());
            }
            assert!(begun.elapsed() < RESUMES_WITHIN, "nothing is written any more");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Lets the load go on, kills something at some moment, and waits until the load goes on again.
    async fn round(&mut self, rng: &mut Rng, kill: impl FnOnce(&mut Self)) {
        self.goes_on().await;
        tokio::time::sleep(Duration::from_millis(rng.below(100))).await;
        let killed = now();
        // The devices go on in the runtime's other threads.
        kill(self);
        let away = killed.elapsed();
        self.goes_on().await;
        let stall = self.field.stall_since(killed);
        self.stalls.push(stall);
        self.away.push(away);
        self.beyond.push(stall.saturating_sub(away));
    }

    /// Ends the load and gives what was acknowledged.
    async fn end(&mut self) -> Vec<Told> {
        self.field.end();
        let mut told = Vec::new();
        for device in std::mem::take(&mut self.devices) {
            let ended = tokio::time::timeout(Duration::from_secs(60), device).await;
            told.push(ended.expect("it gets through").expect("it ends well"));
        }
        told
    }

    fn report(&mut self, what: &str, told: &[Told], begun: Instant) {
        let sum = |of: fn(&Told) -> u64| told.iter().map(of).sum::<u64>();
        println!(
            "| killed | times | ms, max / median: longest stall | away | stall beyond that | changes | recognised | told to wait | servers gone | took |"
        );
        let times: Vec<String> = [&mut self.stalls, &mut self.away, &mut self.beyond]
            .into_iter()
            .map(|times| format!("{} / {}", max(times), median(times)))
            .collect();
        println!(
            "| {what} | {} | {} | {} | {} | {} | {} | {} s |",
            self.stalls.len(),
            times.join(" | "),
            sum(|told| told.changes),
            sum(|told| told.duplicates),
            sum(|told| told.refused),
            sum(|told| told.gone),
            begun.elapsed().as_secs(),
        );
    }

    /// Every change was acknowledged: all are there, each once, for the database and for a device that comes new.
    async fn check(&self, told: &[Told]) {
        let changes: u64 = told.iter().map(|told| told.changes).sum();
        let head = "SELECT seq FROM stream_head h JOIN tenants t USING (tenant_no) WHERE t.tenant = 't1'";
        assert_eq!(self.database.sql(head), changes.to_string(), "every change took one number");
        let rows = self.database.sql("SELECT seq, id, fields FROM records");
        let mut stored: BTreeMap<&str, (u64, Value)> = BTreeMap::new();
        for row in rows.lines() {
            let [seq, id, fields] = row.splitn(3, '|').collect::<Vec<_>>()[..] else { panic!("{row}") };
            let fields = serde_json::from_str(fields).expect("an object");
            stored.insert(id, (seq.parse().expect("a number"), fields));
        }
        let mut records = 0;
        for told in told {
            let (id, count) = &told.counter;
            assert_eq!(stored[id.as_str()].1["v"], *count, "{id}: every change counts once");
            for (id, version) in &told.records {
                let (seq, _) = stored.get(id.as_str()).unwrap_or_else(|| panic!("{id} was acknowledged"));
                assert!(version.is_none_or(|version| version == *seq), "{id}: {version:?}, and now {seq}");
            }
            records += told.records.len() + 1;
        }
        assert_eq!(stored.len(), records);
        for server in &self.servers {
            let alive = Request::get("/alive").send(server.address()).await;
            assert_eq!(alive.status, 200, "{}", alive.text());
            assert!(!server.log().contains("panicked"), "{}", server.log());
            let device = DeviceId::new("reader").expect("a device");
            let endpoint = Endpoint::new(&server.address().to_string(), &self.field.token, device);
            let client = Client::connect(&endpoint.expect("an endpoint"), Replica::default()).await;
            let mut client = client.expect("connected");
            client.sync(Duration::from_secs(60)).await.expect("pulled");
            let replica = client.close().await;
            assert_eq!((replica.seq().number(), replica.views().count()), (changes, records));
        }
    }
}

fn max(of: &[Duration]) -> u128 {
    of.iter().max().map_or(0, Duration::as_millis)
}

fn median(of: &mut [Duration]) -> u128 {
    of.sort_unstable();
    of.get(of.len() / 2).map_or(0, Duration::as_millis)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_postgres_loses_and_doubles_nothing() {
    let seed = 0x9a1_1ed;
    println!("seed {seed:#x}");
    let (mut rng, begun) = (Rng::new(seed), now());
    let mut scene = Scene::new();
    let pids: Vec<u32> = scene.servers.iter().map(Server::pid).collect();
    for number in 0..kills() {
        let kill = |scene: &mut Scene| {
            if number % 2 == 0 {
                scene.cluster.kill_immediate();
            } else {
                scene.cluster.kill9();
            }
            if number % 5 == 4 {
                // Longer than the store itself tries again.
                std::thread::sleep(Duration::from_secs(4));
            }
            scene.cluster.start();
        };
        scene.round(&mut rng, kill).await;
    }
    let told = scene.end().await;
    scene.report("PostgreSQL", &told, begun);
    scene.check(&told).await;
    assert!(told.iter().all(|told| told.gone == 0), "no connection to a server was lost");
    assert_eq!(
        pids,
        scene.servers.iter().map(Server::pid).collect::<Vec<_>>(),
        "no server was started again"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_servers_loses_and_doubles_nothing() {
    let seed = 0x5e7_7e75;
    println!("seed {seed:#x}");
    let (mut rng, begun) = (Rng::new(seed), now());
    let mut scene = Scene::new();
    for number in 0..kills() {
        let kill = |scene: &mut Scene| {
            let at = usize::try_from(number % 2).expect("a bit");
            scene.servers[at].kill9();
            scene.servers[at].restart();
            let address = scene.servers[at].address();
            scene.field.servers.lock().unwrap_or_else(PoisonError::into_inner)[at] = address;
        };
        scene.round(&mut rng, kill).await;
    }
    let told = scene.end().await;
    scene.report("a server", &told, begun);
    scene.check(&told).await;
    assert!(told.iter().any(|told| told.gone > 0), "devices lost their servers");
}

/// A server that stands still may hold the lock of its tenant, for as long as PostgreSQL lets it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stands_still_holds_nobody_up_for_long() {
    let seed = 0x57a11;
    println!("seed {seed:#x}");
    let (mut rng, begun) = (Rng::new(seed), now());
    let mut scene = Scene::new();
    for number in 0..kills().div_ceil(5) {
        let stop = |scene: &mut Scene| {
            let at = usize::try_from(number % 2).expect("a bit");
            let pid = scene.servers[at].pid();
            signal("STOP", pid);
            let before = scene.field.writes();
            std::thread::sleep(Duration::from_secs(8));
            let written = || scene.field.writes() - before;
            // A disk that stands still beside it takes its time, too; the devices wait for 20 s.
            for _ in 0..14 {
                if written() > BETWEEN {
                    break;
                }
                std::thread::sleep(Duration::from_millis(500));
            }
            let written = written();
            signal("CONT", pid);
            assert!(written > BETWEEN, "{written} writes: the other server gets through");
        };
        scene.round(&mut rng, stop).await;
    }
    let told = scene.end().await;
    scene.report("a server stands still", &told, begun);
    scene.check(&told).await;
}

fn signal(name: &str, pid: u32) {
    let command = format!("kill -{name} {pid}");
    let status = Command::new("sh").args(["-c", &command]).status().expect("there is a shell");
    assert!(status.success(), "{command}");
}
