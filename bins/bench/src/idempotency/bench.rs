//! The engine over a database file, and requests to it.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use driftline_engine::{
    Catalogue, Clock, Engine, Hub, Identity, Ingest, KindRule, NullObserver, Random, Store as _,
    TelemetryRule,
};
use driftline_model::{DeviceId, KindName, Limits, TenantId, UserId};
use driftline_protocol::{Encoding, Inbound, TelemetryAck, decode};
use driftline_storage::{SqliteOptions, SqliteStore};
use tokio::runtime::Runtime;

use crate::load::now::{now, unix_ms};
use crate::rng::Rng;

/// The clock of the machine.
#[derive(Debug)]
struct Wall;

impl Clock for Wall {
    fn now_ms(&self) -> u64 {
        unix_ms()
    }
}

/// Randomness that is good enough for a database that is removed. The lock is held for one draw.
#[derive(Debug)]
struct Drawn(Mutex<Rng>);

impl Random for Drawn {
    fn fill(&self, buffer: &mut [u8]) {
        let mut rng = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for chunk in buffer.chunks_mut(8) {
            chunk.copy_from_slice(&rng.next().to_le_bytes()[..chunk.len()]);
        }
    }
}

/// A folder that is removed at the end.
#[derive(Debug)]
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        // What cannot be removed stays in a folder for temporary files.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// An engine over a database file.
struct Open {
    engine: Engine<SqliteStore, NullObserver>,
    identity: Identity,
}

/// The bench.
pub(super) struct Bench {
    /// Closed while the file is opened anew; dropped before the folder.
    open: Option<Open>,
    runtime: Runtime,
    seed: u128,
    folder: Folder,
}

impl Bench {
    /// Opens a new database in the folder.
    pub(super) fn open(folder: &Path) -> Result<Self> {
        let folder = folder.join(format!("driftline-idempotency-{}-{:x}", std::process::id(), unix_ms()));
        fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let runtime = tokio::runtime::Builder::new_current_thread().build()?;
        let mut bench = Self { open: None, runtime, seed: 0, folder: Folder(folder) };
        bench.reopen()?;
        Ok(bench)
    }

    /// Opens the file again: nothing of it is in memory but what the system keeps.
    pub(super) fn reopen(&mut self) -> Result<()> {
        // One store at a time may have the file.
        self.open = None;
        let limits = Limits::default().lifted();
        let hub = Arc::new(Hub::new(16));
        let store = SqliteStore::open(SqliteOptions {
            file: self.folder.0.join("driftline.db"),
            clock: Arc::new(Wall),
            random: Arc::new(Drawn(Mutex::new(Rng::new(unix_ms(), 1)))),
            listeners: hub.clone(),
            fatal: Box::new(|reason| eprintln!("the database failed: {reason}")),
            skew_ms_max: limits.skew_ms_max,
            record_bytes: limits.record_bytes,
            readers: 2,
            outbox_claims: Vec::new(),
        })?;
        let rule = KindRule { telemetry: Some(Arc::new(TelemetryRule::default())), ..KindRule::default() };
        let catalogue = Catalogue::new(BTreeMap::from([(KindName::new("reading")?, rule)]));
        let engine = Engine::new(store, hub, catalogue, limits, NullObserver);
        let identity = engine.identify(
            TenantId::new("bench")?,
            UserId::text("bench")?,
            Some(DeviceId::new("bench")?),
            vec!["staff".into()],
            &[],
        );
        let identity = self.runtime.block_on(identity).map_err(|fault| anyhow!("{}", fault.message))?;
        self.open = Some(Open { engine, identity });
        Ok(())
    }

    fn opened(&self) -> Result<&Open> {
        self.open.as_ref().context("the database is closed")
    }

    /// Sends a request; gives how long its answer took, decoding left out.
    fn ask(&mut self, number: u64, key: Option<u64>) -> Result<(Duration, TelemetryAck)> {
        self.seed += 1;
        let Open { engine, identity } = self.opened()?;
        let named = key.map(|key| format!(r#""idempotency_key":"{}","#, name_of(key))).unwrap_or_default();
        let frame = format!(
            r#"{{"type":"reading",{named}"payload":{{"timestamp":{},"channel":"pump-inlet","value":{number},"unit":"pascal"}}}}"#,
            1_767_225_600_000 + number
        );
        let message = decode(Encoding::Json, frame.as_bytes(), engine.limits());
        let message = message.map_err(|fault| anyhow!("{}", fault.message))?;
        let Inbound::Telemetry(telemetry) = message.body else { return Err(anyhow!("this is no telemetry")) };
        let (now_ms, seed) = (unix_ms(), self.seed << 64);
        let begun = now();
        let once = engine.once_of(identity, "reading", None, message.key.as_deref());
        let ingest = Ingest {
            messages: vec![(0, *telemetry)],
            array: false,
            once: once.into_iter().collect(),
            batch_key: key.map(name_of),
            seed,
        };
        let ack = self.runtime.block_on(engine.ingest(identity, ingest, now_ms, "bench"));
        let took = begun.elapsed();
        Ok((took, ack.map_err(|fault| anyhow!("{}", fault.message))?))
    }

    fn is_new(ack: &TelemetryAck) -> Result<()> {
        ensure!(!ack.replayed && ack.accepted == 1, "a new request was answered {ack:?}");
        Ok(())
    }

    /// Uses the keys below a number.
    pub(super) fn fill(&mut self, keys: u64) -> Result<()> {
        for key in 0..keys {
            let (_, ack) = self.ask(key, Some(key))?;
            Self::is_new(&ack)?;
        }
        Ok(())
    }

    /// Sends requests of before again.
    pub(super) fn again(&mut self, keys: Range<u64>) -> Result<Vec<Duration>> {
        keys.map(|key| self.replay(key)).collect()
    }

    /// Sends every so many-th request of before again.
    pub(super) fn again_by_step(&mut self, step: u64, requests: u64) -> Result<Vec<Duration>> {
        (0..requests).map(|at| self.replay(at * step)).collect()
    }

    fn replay(&mut self, key: u64) -> Result<Duration> {
        let (took, ack) = self.ask(key, Some(key))?;
        ensure!(ack.replayed && ack.accepted == 1, "a request of before was answered {ack:?}");
        Ok(took)
    }

    /// Looks for keys that nobody used.
    pub(super) fn look_up(&mut self, requests: u64) -> Result<Vec<Duration>> {
        let Open { engine, identity } = self.opened()?;
        let owner = identity.owner();
        let look = |at: u64| {
            let key = format!("unknown-{at}");
            let begun = now();
            let found = self.runtime.block_on(engine.store().remembered(identity.tenant, &owner, &key))?;
            let took = begun.elapsed();
            ensure!(found.is_none(), "a key that nobody used was found");
            Ok(took)
        };
        (0..requests).map(look).collect()
    }

    /// Sends new requests, with a key and without in turns.
    pub(super) fn fresh(&mut self, first: u64, requests: u64) -> Result<(Vec<Duration>, Vec<Duration>)> {
        let (mut with, mut without) = (Vec::new(), Vec::new());
        for at in 0..requests {
            let key = first + at;
            let (took, ack) = self.ask(key, Some(key))?;
            Self::is_new(&ack)?;
            with.push(took);
            let (took, ack) = self.ask(key, None)?;
            Self::is_new(&ack)?;
            without.push(took);
        }
        Ok((with, without))
    }
}

/// A key as clients make them: a UUID.
fn name_of(key: u64) -> String {
    let mut rng = Rng::new(key, 7);
    let (a, b) = (rng.next(), rng.next());
    format!(
        "{:08x}-{:04x}-7{:03x}-8{:03x}-{:012x}",
        a >> 32,
        (a >> 16) & 0xffff,
        a & 0xfff,
        b >> 52,
        b & 0xffff_ffff_ffff
    )
}
