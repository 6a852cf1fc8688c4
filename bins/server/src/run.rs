//! Running the server.

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use driftline_engine::{Clock, Engine, Hub, Listeners, Random, Retention, Store as _};
use driftline_storage::AnyStore;
use driftline_transport::{
    App, Grant, MetricsObserver, Settings, SharedSecret, SystemClock, SystemRandom, install_metrics, serve,
};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::commands::data_place;
use crate::config::Config;
use crate::key;
use crate::outbox;
use crate::realtime::Outbox;
use crate::store::{self, DataPlace, Surroundings};

/// The database's file in the data folder.
pub(crate) const DATABASE: &str = "driftline.db";

/// How the server runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// For development, on this machine only.
    Dev,
    /// For others.
    Serve,
}

/// Where and how to run.
#[derive(Debug, Default, Args)]
pub(crate) struct RunArguments {
    /// Where to listen; port 0 takes any free one.
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// Where the data is kept.
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// The configuration file.
    #[arg(long)]
    config: Option<PathBuf>,
    /// `off` lifts rates, admission and per-user caps, for measuring; sizes and depths stay limited.
    #[arg(long)]
    limits: Option<LimitsSwitch>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LimitsSwitch {
    On,
    Off,
}

/// Finds the data folder: the flag's, the configured one, else `./driftline-data`.
pub(crate) fn data_dir(flag: Option<&Path>, config: &Config) -> PathBuf {
    flag.map(Path::to_owned)
        .or_else(|| config.server.data_dir.clone())
        .unwrap_or_else(|| "driftline-data".into())
}

/// Runs until SIGTERM or SIGINT.
pub(crate) fn run(arguments: &RunArguments, mode: Mode) -> anyhow::Result<()> {
    let config = Config::load(arguments.config.as_deref())?;
    let folder = data_dir(arguments.data_dir.as_deref(), &config);
    let secret = match mode {
        Mode::Dev => key::development(&config, &folder)?,
        Mode::Serve => match key::configured(&config)? {
            Some(secret) => secret,
            None => bail!(
                "serve needs a key to check tokens with: set auth.secret in the configuration or DRIFTLINE_AUTH_SECRET"
            ),
        },
    };
    let place = data_place(&config, &folder)?;
    // Opening a store blocks, so it comes before anything asynchronous.
    let unlimited = arguments.limits == Some(LimitsSwitch::Off);
    let served = assemble(&config, (&place, &folder), mode, &secret, unlimited)?;
    let listen = arguments.listen.or(config.server.listen);
    let introduce = move |address| introduce(address, &place, &config, &secret, mode);
    runtime()?.block_on(run_until_stopped(listen, mode, served, introduce))
}

/// What is served, and what keeps it in order.
struct Served {
    store: AnyStore,
    app: Arc<App<AnyStore>>,
    retention: Retention,
    outbox: Outbox,
    /// The time between two sweeps of uploads.
    sweep: Duration,
}

/// One core is served best by one thread that never hands work over.
pub(crate) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut builder = if cores == 1 {
        tokio::runtime::Builder::new_current_thread()
    } else {
        tokio::runtime::Builder::new_multi_thread()
    };
    builder.enable_all().build().context("cannot start the runtime")
}

async fn run_until_stopped(
    listen: Option<SocketAddr>,
    mode: Mode,
    served: Served,
    introduce: impl FnOnce(SocketAddr),
) -> anyhow::Result<()> {
    let listener = bind(listen, mode).await?;
    let address = listener.local_addr().context("the listener has no address")?;
    // Whoever reads what is printed next may end the server at once.
    let mut stop = StopSignals::listen().context("signals cannot be heard")?;
    introduce(address);
    std::io::stdout().flush().context("cannot write to stdout")?;
    let Served { store, app, retention, outbox, sweep } = served;
    let upkeep = tokio::spawn(keep_up(store, Arc::clone(&app), retention, outbox));
    let drain = tokio::spawn(outbox::keep_drained(Arc::clone(&app), outbox));
    let sweeper = tokio::spawn(keep_swept(Arc::clone(&app), sweep));
    let finisher = tokio::spawn(keep_finished(Arc::clone(&app), sweep));
    let stopping = Arc::clone(&app);
    let stopper = tokio::spawn(async move {
        let name = stop.next().await;
        tracing::info!(signal = name, "shutting down");
        stopping.drain();
    });
    let served = serve(listener, app).await;
    for task in [upkeep, drain, sweeper, finisher, stopper] {
        task.abort();
        // What it was about is given up or ended by itself; an error says that it was ended here.
        let _ = task.await;
    }
    Ok(served?)
}

/// Opens the store and puts engine and doors on it.
fn assemble(
    config: &Config,
    (place, folder): (&DataPlace, &Path),
    mode: Mode,
    secret: &SharedSecret,
    unlimited: bool,
) -> anyhow::Result<Served> {
    let limits = config.limits()?;
    let windows = config.windows()?;
    let catalogue = config.catalogue(mode == Mode::Dev)?;
    let rules = config.rules(mode == Mode::Dev)?;
    let anonymous = config.open(&rules)?;
    let outbox = config.outbox()?;
    config.check_uploads()?;
    let retention = catalogue.retention();
    // What is counted before the recorder stands is lost.
    let metrics = install_metrics();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let random: Arc<dyn Random> = Arc::new(SystemRandom);
    let hub = Arc::new(Hub::new(limits.pending_deltas));
    let surroundings = Surroundings {
        clock: Arc::clone(&clock),
        random: Arc::clone(&random),
        listeners: Arc::clone(&hub) as Arc<dyn Listeners>,
        outbox_claims: config.claims()?,
    };
    let store = store::open(place, &config.store, &limits, surroundings)?;
    // Where no database is, no folder is made.
    let mut uploads = config.uploads(folder)?;
    if unlimited {
        (uploads.rules.open_max, uploads.rules.bodies_max) = (u64::from(u32::MAX), u64::from(u32::MAX));
    }
    let engine = Engine::new(store.clone(), hub, catalogue, limits, MetricsObserver::default());
    let engine = engine.with_windows(windows).with_rules(rules)?.with_uploads(uploads.blobs, uploads.rules);
    let settings =
        Settings { origins: config.server.origins.clone(), unlimited, echo: mode == Mode::Dev, anonymous };
    let app = App::new(engine, Box::new(secret.clone()), clock, random, settings, metrics);
    Ok(Served { store, app: Arc::new(app), retention, outbox, sweep: uploads.sweep })
}

/// Ports tried in development before giving up.
const PORTS: std::ops::Range<u16> = 8000..8100;

async fn bind(wanted: Option<SocketAddr>, mode: Mode) -> anyhow::Result<TcpListener> {
    if let Some(address) = wanted {
        if mode == Mode::Dev && !address.ip().is_loopback() {
            bail!("dev listens on this machine only; use serve for {address}");
        }
        return TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"));
    }
    if mode == Mode::Serve {
        let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORTS.start));
        return TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"));
    }
    for port in PORTS {
        if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await {
            return Ok(listener);
        }
    }
    bail!("no port from {} to {} is free", PORTS.start, PORTS.end - 1)
}

/// Tells where the server is and where its data is; in development also what a newcomer does next.
fn introduce(address: SocketAddr, place: &DataPlace, config: &Config, secret: &SharedSecret, mode: Mode) {
    println!("listening on http://{address}");
    tracing::info!(%address, data = %place, "listening");
    match mode {
        Mode::Dev => welcome(address, place, config, secret),
        Mode::Serve => println!("data in {place}"),
    }
}

fn welcome(address: SocketAddr, place: &DataPlace, config: &Config, secret: &SharedSecret) {
    let expires_s = SystemClock.now_ms() / 1000 + 30 * 86_400;
    let token = secret.mint(&Grant {
        tenant: "default".into(),
        sub: "dev".into(),
        roles: vec!["admin".into(), "staff".into()],
        device_id: None,
        expires_s,
        // The newcomer is let in, whatever has to be true of users.
        claims: config.auth.approved_claim.iter().map(|claim| (claim.clone(), true.into())).collect(),
    });
    let any = config.accepts_undeclared(true);
    println!(
        "data in {place}; this machine only; {}\n\
         token (30 days, tenant default, user dev):\n  {token}",
        kinds(config)
    );
    // The example's kind may not be among those that are declared.
    if !any {
        return;
    }
    println!(
        "try, in another terminal:\n  \
         TOKEN={token}\n  \
         curl -s http://{address}/api/v1/sync?device_id=phone-1 -H \"Authorization: Bearer $TOKEN\" \\\n    \
         -d '{{\"batch\":[{{\"op_id\":\"hello-1\",\"n\":1,\"kind\":\"note\",\"id\":\"n-1\",\"op\":\"create\",\"fields\":{{\"text\":\"hello\"}}}}]}}'\n  \
         curl -s http://{address}/api/v1/records/note -H \"Authorization: Bearer $TOKEN\"",
    );
}

/// Tells what may be sent.
fn kinds(config: &Config) -> String {
    let declared = config.record_names();
    let records = if config.accepts_undeclared(true) { vec!["any kind"] } else { declared };
    let named = [("records", records), ("telemetry", config.telemetry_names())];
    let told = named.iter().filter(|(_, names)| !names.is_empty());
    told.map(|(mode, names)| format!("{mode}: {}", names.join(", "))).collect::<Vec<_>>().join("; ")
}

/// Removes what is past its retention, soon after the start and once an hour.
async fn keep_up(store: AnyStore, app: Arc<App<AnyStore>>, retention: Retention, outbox: Outbox) {
    let mut hourly = tokio::time::interval(Duration::from_secs(3600));
    loop {
        hourly.tick().await;
        let now_ms = SystemClock.now_ms();
        match store.prune(now_ms, &retention).await {
            Ok(0) => {}
            Ok(removed) => tracing::info!(removed, "removed rows past their retention"),
            Err(error) => tracing::warn!(%error, "removing old rows failed"),
        }
        match app.engine().trim_events(now_ms, now_ms.saturating_sub(outbox.retention_ms)).await {
            Ok(0) => {}
            Ok(removed) => {
                tracing::info!(removed, "removed events and rows of the outbox past their retention");
            }
            Err(fault) => tracing::warn!(error = fault.message, "removing old events failed"),
        }
    }
}

/// Ends uploads that nobody finishes, soon after the start and again and again.
async fn keep_swept(app: Arc<App<AnyStore>>, pause: Duration) {
    let mut ticks = ticks(pause);
    loop {
        ticks.tick().await;
        match app.sweep_uploads().await {
            Ok(swept) if swept.is_nothing() => {}
            Ok(swept) => tracing::info!(
                expired = swept.expired,
                orphans = swept.orphans,
                stuck = swept.stuck,
                published = swept.published,
                told = swept.told,
                "swept uploads"
            ),
            Err(fault) => tracing::warn!(error = fault.message, "sweeping uploads failed"),
        }
    }
}

/// Finalizes uploads that a crash or a client left to be, soon after the start and again and again. Sweeping does not wait
/// for it.
async fn keep_finished(app: Arc<App<AnyStore>>, pause: Duration) {
    let mut ticks = ticks(pause);
    loop {
        ticks.tick().await;
        match app.finish_uploads().await {
            Ok(0) => {}
            Ok(finished) => tracing::info!(finished, "finalized uploads that were left to be"),
            Err(fault) => {
                tracing::warn!(error = fault.message, "finalizing uploads that were left to be failed");
            }
        }
    }
}

fn ticks(pause: Duration) -> tokio::time::Interval {
    let mut ticks = tokio::time::interval(pause);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks
}

/// What ends the server.
struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    /// Starts to hear the signals, which end the process no more by themselves.
    fn listen() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for the first one; gives its name.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
