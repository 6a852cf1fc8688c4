//! A server under attack: who attacks it, what each attacker is told, and what it costs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use driftline_testkit::TempFolder;
use driftline_testkit::http::{Request, soon};
use driftline_testkit::memory::{Memory, forget_peak};
use driftline_testkit::server::{Server, TokenFor, program};
use driftline_testkit::socket::{Handshake, Socket};
use tokio::task::JoinSet;

use crate::good::Good;

pub(crate) const MIB: usize = 1 << 20;

/// Bytes of messages and bodies on their way that the servers of these tests may hold, instead of 256 MiB.
pub(crate) const INBOUND: usize = 24 * MIB;

/// Bytes that one connection may cost beside its messages: a head, a parser's buffer, the first 16 KiB of a message,
/// its tasks.
const CONNECTION: usize = 64 << 10;

/// Bytes that one thread of the server may have in hands beside the messages: what it decodes, inflates or pages.
const IN_HANDS: usize = 8 * MIB;

/// Returns the MiB that an attack may add to the server's resident memory: what the limits let it hold.
///
/// Messages and bodies on their way count twice, because a buffer that grows is copied while both halves stand. That is
/// also more than 16 readers that do not read can have waiting for them, at 2 MiB each: `outbound_bytes`, and a page
/// that was let in and one that is being written.
fn growth_max_mib(sockets: usize) -> u64 {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let bytes = 2 * INBOUND + sockets * CONNECTION + threads * IN_HANDS;
    (bytes / MIB) as u64
}

/// How long the good client may wait for an answer. This bounds no performance: it tells served from not served, also
/// on a machine that does much else.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Users among whom the attackers are divided, so that no limit of one user is what stops them.
const USERS: usize = 8;

/// What attackers know.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) address: SocketAddr,
    tokens: Vec<String>,
}

impl Site {
    /// Returns the token of an attacker.
    pub(crate) fn token(&self, attacker: usize) -> &str {
        &self.tokens[attacker % USERS]
    }

    /// Makes a handshake that is right, for an attacker with a device of its own.
    pub(crate) fn handshake(&self, attacker: usize) -> Handshake {
        Handshake::new(&format!("/ws/mobile/sync?device_id=m-{attacker}")).bearer(self.token(attacker))
    }

    /// Connects an attacker in a form and waits until it is let in.
    pub(crate) async fn open(&self, attacker: usize, subprotocol: Option<&str>) -> Socket {
        let handshake = self.handshake(attacker).header("sec-websocket-protocol", subprotocol);
        let (mut socket, _) = handshake.send(self.address).await.expect("the handshake is right");
        socket.read().await;
        socket
    }

    /// Reads a counter of the server.
    pub(crate) async fn counted(&self, name: &str) -> u64 {
        let text = Request::get("/metrics").send(self.address).await.text();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0, |value| value.parse().expect("a counter is a number"))
    }

    /// Waits until a counter of the server has reached a number.
    pub(crate) async fn until_counted(&self, name: &str, wanted: u64) {
        let mut pace = tokio::time::interval(Duration::from_millis(50));
        let reached = async {
            while self.counted(name).await < wanted {
                pace.tick().await;
            }
        };
        soon(name, reached).await;
    }
}

/// Returns an address of this machine that belongs to one attacker of one attack.
pub(crate) fn address(attack: u8, attacker: usize) -> IpAddr {
    Ipv4Addr::new(127, 1, attack, u8::try_from(attacker).expect("a few attackers")).into()
}

type Play = Box<dyn Fn(Arc<Site>, usize) -> Pin<Box<dyn Future<Output = String> + Send>>>;

/// One attack, from several sockets at once.
pub(crate) struct Attack {
    name: &'static str,
    sockets: usize,
    /// The answers that may come, each with the number of attackers who must get it at least.
    wanted: Vec<(&'static str, usize)>,
    play: Play,
}

impl Attack {
    /// Makes an attack: what each of the attackers does, and what all of them must be told.
    pub(crate) fn new<F, R>(name: &'static str, sockets: usize, wanted: &'static str, play: F) -> Self
    where
        F: Fn(Arc<Site>, usize) -> R + 'static,
        R: Future<Output = String> + Send + 'static,
    {
        let play: Play = Box::new(move |site, attacker| Box::pin(play(site, attacker)));
        Self { name, sockets, wanted: vec![(wanted, sockets)], play }
    }

    /// Lets the attackers get different answers, each with the number of those who must get it at least.
    pub(crate) fn or(self, wanted: &[(&'static str, usize)]) -> Self {
        Self { wanted: wanted.to_vec(), ..self }
    }

    fn faults(&self, answers: &BTreeMap<String, usize>) -> Vec<String> {
        let strange = answers.keys().filter(|answer| !self.wanted.iter().any(|(wanted, _)| wanted == answer));
        let strange = strange.map(|answer| format!("{}: answered {answer}", self.name));
        let missed = self.wanted.iter().filter_map(|(wanted, least)| {
            let got = answers.get(*wanted).copied().unwrap_or_default();
            (got < *least).then(|| format!("{}: {got} of {least} were answered {wanted}", self.name))
        });
        strange.chain(missed).collect()
    }
}

struct Row {
    attack: &'static str,
    sockets: usize,
    answers: String,
    growth_mib: u64,
    growth_max_mib: u64,
    pause: Duration,
}

/// A server of its own with a good client, and what was seen so far.
pub(crate) struct Scene {
    name: &'static str,
    server: Server,
    _config: TempFolder,
    pub(crate) site: Arc<Site>,
    good: Good,
    /// Resident bytes before the first attack.
    before: u64,
    rows: Vec<Row>,
    faults: Vec<String>,
}

impl Scene {
    /// Starts a server with these lines under `[limits]`, and the good client.
    pub(crate) async fn open(name: &'static str, limits: &str) -> Self {
        let folder = TempFolder::new();
        let config = folder.path().join("driftline.toml");
        std::fs::write(&config, format!("[limits]\ninbound_bytes = {INBOUND}\n{limits}"))
            .expect("it can be written");
        let server = Server::with(&program(), &["--config", config.to_str().expect("a path is text")]);
        let token = |sub: &str| server.token(&TokenFor { tenant: "t1", sub, ..TokenFor::default() });
        let tokens = (0..USERS).map(|user| token(&format!("mallory-{user}"))).collect();
        let site = Arc::new(Site { address: server.address(), tokens });
        let good = Good::start(site.address, token("ada"));
        good.is_served().await;
        let before = Memory::of(server.pid()).resident;
        Self { name, server, _config: folder, site, good, before, rows: Vec::new(), faults: Vec::new() }
    }

    /// Suffers attacks, one after the other.
    pub(crate) async fn suffer(&mut self, attacks: Vec<Attack>) {
        for attack in attacks {
            forget_peak(self.server.pid());
            let answers = self.play(&attack).await;
            self.faults.extend(attack.faults(&answers));
            let pause = self.good.is_served().await;
            if pause > PAUSE_MAX {
                self.faults.push(format!("{}: the good client waited {} ms", attack.name, pause.as_millis()));
            }
            let growth_mib = Memory::of(self.server.pid()).peak.saturating_sub(self.before) >> 20;
            let growth_max_mib = growth_max_mib(attack.sockets);
            if growth_mib > growth_max_mib {
                let fault =
                    format!("{}: the server grew by {growth_mib} of {growth_max_mib} MiB", attack.name);
                self.faults.push(fault);
            }
            let answers = answers.iter().map(|(answer, count)| format!("{answer} x{count}"));
            let answers = answers.collect::<Vec<_>>().join(", ");
            self.rows.push(Row {
                attack: attack.name,
                sockets: attack.sockets,
                answers,
                growth_mib,
                growth_max_mib,
                pause,
            });
        }
    }

    /// Lets all attackers of an attack loose, and counts what they were told.
    async fn play(&self, attack: &Attack) -> BTreeMap<String, usize> {
        let mut attackers = JoinSet::new();
        for attacker in 0..attack.sockets {
            attackers.spawn((attack.play)(Arc::clone(&self.site), attacker));
        }
        let mut answers = BTreeMap::new();
        while let Some(answer) = attackers.join_next().await {
            *answers.entry(answer.unwrap_or_else(|_| "nothing that it should".into())).or_default() += 1;
        }
        answers
    }

    /// Ends everything, prints the table and fails if anything was not as it should be.
    pub(crate) async fn close(self) {
        let Self { name, server, site, good, before, rows, mut faults, .. } = self;
        let rounds = good.finish().await;
        let log = server.log();
        if log.contains("panicked") {
            faults.push(format!("the server panicked:\n{log}"));
        }
        println!("{}", table(name, &rows));
        println!("{rounds} pings and pushes of the good client were answered, and every push stands");
        println!("memory before the attacks: {} MiB", before >> 20);
        drop(site);
        assert!(faults.is_empty(), "{}", faults.join("\n"));
    }
}

fn table(name: &str, rows: &[Row]) -> String {
    let mut table = format!("\n{name}\n");
    table.push_str(
        "| attack | sockets | answered with | RSS growth MiB | of at most | longest pause of the good client ms |\n",
    );
    table.push_str("|---|---|---|---|---|---|\n");
    for Row { attack, sockets, answers, growth_mib, growth_max_mib, pause } in rows {
        let pause_ms = pause.as_millis();
        let _ = writeln!(
            table,
            "| {attack} | {sockets} | {answers} | {growth_mib} | {growth_max_mib} | {pause_ms} |"
        );
    }
    table
}
