//! What every handler shares.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use driftline_engine::{Buckets, Clock, Engine, Finalized, Preset, Random, Store, Swept, UploadRight};
use driftline_model::{DeviceNo, TenantId, TenantNo};
use driftline_protocol::Fault;
use futures_util::StreamExt as _;
use tokio::sync::{mpsc, watch};

use crate::auth::Authenticate;
use crate::budget::Budget;
use crate::monitors::Monitors;
use crate::observe::{Counts, MetricsHandle, MetricsObserver};
use crate::parked::Parked;
use crate::sessions::Sessions;
use crate::tickets::Tickets;
use crate::traffic::Traffic;
use crate::uploads::{self, UploadSecret};

/// Uploads that are finalized at one time of which nothing was heard.
const FINALIZING: usize = 4;

/// How the doors behave.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Origins of pages that may connect, beside pages of the same host.
    pub origins: Vec<String>,
    /// Whether rates and admission are lifted, for measuring.
    pub unlimited: bool,
    /// Whether `/ws/echo` is there, for development.
    pub echo: bool,
    /// What whoever brings no token may have; none: nothing.
    pub anonymous: Option<Anonymous>,
}

/// What whoever brings no token may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Anonymous {
    /// The tenant.
    pub tenant: TenantId,
    /// The topics to which anybody may listen, and no others.
    pub topics: Vec<Box<str>>,
}

/// A server: the engine behind its doors.
pub struct App<S> {
    pub(crate) engine: Engine<S, MetricsObserver>,
    pub(crate) auth: Box<dyn Authenticate>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) random: Arc<dyn Random>,
    pub(crate) settings: Settings,
    pub(crate) counts: Counts,
    pub(crate) metrics: Option<MetricsHandle>,
    pub(crate) active: AtomicUsize,
    /// The memory of what is still coming in.
    pub(crate) inbound: Arc<Budget>,
    /// Who failed to authenticate.
    pub(crate) failed: Buckets<IpAddr>,
    connections: AtomicU64,
    /// Who is connected, by device and by what for. The lock is held for one insertion or removal.
    devices: Mutex<HashMap<Place, Seat>>,
    /// What clients asked for that went.
    pub(crate) parked: Parked,
    /// What comes and goes, by tenant.
    pub(crate) traffic: Traffic,
    /// Who is connected.
    pub(crate) sessions: Sessions,
    /// Devices that are monitored for a time.
    pub(crate) monitors: Monitors,
    pub(crate) tickets: Tickets,
    pub(crate) upload_secret: UploadSecret,
    /// When the store was last asked for a write, and whether it took it. The lock is held to read or set it.
    probed: Mutex<Option<(u64, bool)>>,
    draining: watch::Sender<bool>,
    /// Every session holds a clone; when all are gone, all sessions have ended.
    pub(crate) alive: Mutex<Option<mpsc::Sender<()>>>,
}

/// A device has one place for each sort of connection.
pub(crate) type Place = (TenantNo, DeviceNo, Preset);

/// Who sits in a place.
#[derive(Debug)]
struct Seat {
    connection: u64,
    replaced: Arc<tokio::sync::Notify>,
}

impl<S> std::fmt::Debug for App<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("App").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl<S: Store> App<S> {
    /// Puts a server together.
    pub fn new(
        engine: Engine<S, MetricsObserver>,
        auth: Box<dyn Authenticate>,
        clock: Arc<dyn Clock>,
        random: Arc<dyn Random>,
        settings: Settings,
        metrics: Option<MetricsHandle>,
    ) -> Self {
        let engine = if settings.unlimited { engine.lift_limits() } else { engine };
        let engine = engine.with_clock(Arc::clone(&clock));
        let engine = match &settings.anonymous {
            Some(anonymous) => engine.with_anonymous(anonymous.topics.clone()),
            None => engine,
        };
        let tickets = Tickets::new(&engine.store().cursor_secret());
        let upload_secret = UploadSecret::new(&engine.store().cursor_secret());
        Self {
            inbound: Budget::new(engine.limits().inbound_bytes),
            failed: Buckets::new(engine.limits().failed_auth_rate, engine.limits().connections),
            engine,
            auth,
            clock,
            random,
            settings,
            counts: Counts::default(),
            metrics,
            active: AtomicUsize::new(0),
            connections: AtomicU64::new(0),
            devices: Mutex::default(),
            parked: Parked::default(),
            traffic: Traffic::default(),
            sessions: Sessions::default(),
            monitors: Monitors::default(),
            tickets,
            upload_secret,
            probed: Mutex::default(),
            draining: watch::Sender::new(false),
            alive: Mutex::new(None),
        }
    }

    /// Returns the engine.
    pub fn engine(&self) -> &Engine<S, MetricsObserver> {
        &self.engine
    }

    /// Does what is due once a second: writes down what was noticed of devices, and tells listeners what changed.
    /// [`serve`](crate::serve) calls it; whoever mounts the router elsewhere does.
    ///
    /// Dropping the future may lose what it was writing of who was heard when.
    pub async fn tick(&self) {
        let now_ms = self.now_ms();
        self.traffic.look(now_ms, |tenant, signal| {
            if self.engine.is_heard(tenant) {
                self.engine.tell_now(tenant, &signal);
            }
        });
        self.end_monitoring(now_ms).await;
        if let Err(fault) = self.engine.tick(now_ms).await {
            tracing::warn!(error = %fault.message, "what was noticed of devices waits to be written");
        }
    }

    /// Ends uploads whose time is over and removes what belongs to none, as [`Engine::sweep_uploads`] does. Whoever serves
    /// calls it from time to time.
    ///
    /// # Errors
    /// `STORE_UNAVAILABLE`; what was done stays done.
    pub async fn sweep_uploads(&self) -> Result<Swept, Fault> {
        self.engine.sweep_uploads(self.now_ms()).await
    }

    /// Finalizes uploads that are to be finalized and of which nothing was heard for a while; gives how many are files now.
    /// Whoever serves calls it from time to time. It may take as long as hashing and verifying them do.
    ///
    /// # Errors
    /// `STORE_UNAVAILABLE`; what was done stays done.
    pub async fn finish_uploads(self: &Arc<Self>) -> Result<u64, Fault> {
        let unfinished = self.engine.unfinished_uploads(self.now_ms()).await?;
        let finished = futures_util::stream::iter(unfinished)
            .map(|id| {
                let app = Arc::clone(self);
                let finalizing = async move { uploads::finalize(&app, UploadRight::Secret, id, None).await };
                uploads::to_its_end(self, finalizing)
            })
            .buffer_unordered(FINALIZING)
            .filter(|ended| std::future::ready(matches!(ended, Ok(Ok(Finalized::Done(_))))));
        Ok(finished.count().await as u64)
    }

    /// Starts to shut down: readiness fails, sessions end with `server_draining`.
    pub fn drain(&self) {
        self.draining.send_replace(true);
    }

    pub(crate) fn draining(&self) -> watch::Receiver<bool> {
        self.draining.subscribe()
    }

    pub(crate) fn is_draining(&self) -> bool {
        *self.draining.borrow()
    }

    /// Tells whether the store takes writes. It is asked at most once a second, however often readiness is and however
    /// long the store takes to answer; meanwhile the last answer holds.
    pub(crate) async fn is_writable(&self) -> bool {
        let now_ms = self.now_ms();
        {
            let mut probed = self.probed.lock().unwrap_or_else(PoisonError::into_inner);
            let known = *probed;
            if let Some((_, writable)) = known.filter(|(at_ms, _)| now_ms < at_ms + 1000) {
                return writable;
            }
            *probed = known.map(|(_, writable)| (now_ms, writable));
        }
        let probed = self.engine.store().probe().await;
        if let Err(error) = &probed {
            tracing::warn!(%error, "not ready: the store takes no write");
        }
        *self.probed.lock().unwrap_or_else(PoisonError::into_inner) = Some((now_ms, probed.is_ok()));
        probed.is_ok()
    }

    pub(crate) fn now_ms(&self) -> u64 {
        self.clock.now_ms()
    }

    pub(crate) fn random_hex(&self) -> String {
        let mut bytes = [0; 8];
        self.random.fill(&mut bytes);
        format!("{:016x}", u64::from_be_bytes(bytes))
    }

    pub(crate) fn random_u128(&self) -> u128 {
        let mut bytes = [0; 16];
        self.random.fill(&mut bytes);
        u128::from_be_bytes(bytes)
    }

    /// Draws what tells one attempt to write from all others, on every node.
    pub(crate) fn holder(&self) -> u64 {
        let mut bytes = [0; 8];
        self.random.fill(&mut bytes);
        // Databases hold it as a signed number.
        u64::from_be_bytes(bytes) >> 1
    }

    pub(crate) fn next_connection(&self) -> u64 {
        self.connections.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Returns the most sessions that may live at once.
    pub(crate) fn sessions_max(&self) -> usize {
        if self.settings.unlimited { usize::MAX } else { self.engine.limits().connections }
    }

    /// Seats a device; a connection of the same device and sort that was there before is told to go.
    pub(crate) fn seat(&self, place: Place, connection: u64) -> Arc<tokio::sync::Notify> {
        let replaced = Arc::new(tokio::sync::Notify::new());
        let seat = Seat { connection, replaced: Arc::clone(&replaced) };
        let mut devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = devices.insert(place, seat) {
            before.replaced.notify_one();
        }
        replaced
    }

    pub(crate) fn unseat(&self, place: Place, connection: u64) {
        let mut devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        if devices.get(&place).is_some_and(|seat| seat.connection == connection) {
            devices.remove(&place);
        }
    }

    /// Hands out the token that keeps a shutdown waiting for a session.
    pub(crate) fn alive(&self) -> Option<mpsc::Sender<()>> {
        self.alive.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Waits until the server shuts down.
pub(crate) async fn drained(draining: &mut watch::Receiver<bool>) {
    // The sender lives in the app, which outlives whoever waits here.
    let _ = draining.wait_for(|draining| *draining).await;
}
