//! A Driftline server inside this process, as an embedding service would have it.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use driftline_client::{DeviceId, Endpoint};
use driftline_engine::{Catalogue, Clock, Engine, Hub, Identity, Listeners};
use driftline_model::{Limits, TenantId, UserId};
use driftline_storage::{SqliteOptions, SqliteStore};
use driftline_transport::{
    App, Grant, MetricsObserver, ServeError, Settings, SharedSecret, SystemClock, SystemRandom, serve,
};
use tokio::task::JoinHandle;

/// A server on a port of its own, with its data in a folder.
#[derive(Debug)]
pub struct Embedded {
    address: String,
    secret: SharedSecret,
    app: Arc<App<SqliteStore>>,
    serving: JoinHandle<Result<(), ServeError>>,
}

impl Embedded {
    /// Starts a server that accepts any kind of record.
    ///
    /// # Errors
    /// When the folder or the port cannot be had.
    pub async fn start(folder: &Path) -> anyhow::Result<Self> {
        let limits = Limits::default();
        let hub = Arc::new(Hub::new(limits.pending_deltas));
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let store = SqliteStore::open(SqliteOptions {
            file: folder.join("driftline.db"),
            clock: Arc::clone(&clock),
            random: Arc::new(SystemRandom),
            listeners: Arc::clone(&hub) as Arc<dyn Listeners>,
            fatal: Box::new(|_| std::process::abort()),
            skew_ms_max: limits.skew_ms_max,
            record_bytes: limits.record_bytes,
            readers: 1,
            outbox_claims: Vec::new(),
        })?;
        let catalogue = Catalogue::default().allow_undeclared();
        let engine = Engine::new(store, hub, catalogue, limits, MetricsObserver::default());
        let secret =
            SharedSecret::new(b"a secret for this example only").context("the secret is long enough")?;
        let auth = Box::new(secret.clone());
        let app = Arc::new(App::new(engine, auth, clock, Arc::new(SystemRandom), Settings::default(), None));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.context("no port is free")?;
        let address = format!("http://{}", listener.local_addr()?);
        let serving = tokio::spawn(serve(listener, Arc::clone(&app)));
        Ok(Self { address, secret, app, serving })
    }

    /// Returns where a device of a user finds the server, with a token for it.
    ///
    /// # Errors
    /// When the device's name is none.
    pub fn endpoint(&self, tenant: &str, user: &str, device: &str) -> anyhow::Result<Endpoint> {
        let token = self.secret.mint(&Grant {
            tenant: tenant.into(),
            sub: user.into(),
            roles: vec!["user".into()],
            device_id: None,
            expires_s: SystemClock.now_ms() / 1000 + 3600,
            claims: serde_json::Map::new(),
        });
        Ok(Endpoint::new(&self.address, &token, DeviceId::new(device)?)?)
    }

    /// Returns the engine's view of a user, to ask it directly.
    ///
    /// # Errors
    /// When the store is away.
    pub async fn identity(&self, tenant: &str, user: &str) -> anyhow::Result<Identity> {
        let user = UserId::text(user)?;
        Ok(self.engine().identify(TenantId::new(tenant)?, user, None, vec!["user".into()], &[]).await?)
    }

    /// Returns the engine.
    #[must_use]
    pub fn engine(&self) -> &Engine<SqliteStore, MetricsObserver> {
        self.app.engine()
    }

    /// Stops the server.
    ///
    /// # Errors
    /// What the listener met with.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.app.drain();
        Ok(self.serving.await??)
    }
}
