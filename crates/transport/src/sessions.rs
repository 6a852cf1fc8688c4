//! Who is connected to this node, by sockets and by streams.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use driftline_engine::{Identity, Listener, Store, Subscribed};
use driftline_model::TenantNo;
use driftline_protocol::{SessionDoc, StatsDoc, format_millis};
use tokio::sync::Notify;

use crate::app::App;

/// A connection that was not heard of for so many milliseconds is not active.
const ACTIVE_MS: u64 = 300_000;

/// The live connections, by tenant and name.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    /// The lock is held for one look-up or change, or while a tenant's connections are listed.
    tenants: Mutex<HashMap<TenantNo, Own>>,
}

/// The connections of a tenant.
#[derive(Debug, Default)]
struct Own {
    by_name: BTreeMap<Box<str>, Arc<LiveSession>>,
    /// The last connection of each client that takes its subscriptions back, by its user and what it is known by.
    of_clients: HashMap<(Box<str>, Box<str>), Arc<LiveSession>>,
}

/// A live connection.
#[derive(Debug)]
pub(crate) struct LiveSession {
    connection: Box<str>,
    tenant: TenantNo,
    user: Box<str>,
    device: Option<Box<str>>,
    client_id: Option<Box<str>>,
    /// By what a client is known whose next connection takes its subscriptions over.
    client: Option<Box<str>>,
    /// Whether the client has come again since.
    superseded: AtomicBool,
    door: &'static str,
    connected_ms: u64,
    heard_ms: AtomicU64,
    /// The ear goes with its connection, whoever still looks at this.
    listener: Option<Weak<Listener>>,
    peer: Option<SocketAddr>,
    /// Tells the connection that it is to end.
    pub(crate) disconnect: Notify,
}

impl LiveSession {
    /// Describes a connection of an identity; `door` says what it is for.
    pub(crate) fn new(connection: &str, identity: &Identity, door: &'static str, now_ms: u64) -> Self {
        Self {
            connection: connection.into(),
            tenant: identity.tenant,
            user: identity.user.to_string().into(),
            device: identity.device.as_ref().map(|(_, key)| key.device().into()),
            client_id: None,
            client: None,
            superseded: AtomicBool::new(false),
            door,
            connected_ms: now_ms,
            heard_ms: AtomicU64::new(now_ms),
            listener: None,
            peer: None,
            disconnect: Notify::new(),
        }
    }

    /// Adds the name that the client gave itself.
    pub(crate) fn called(self, client_id: Option<&str>) -> Self {
        Self { client_id: client_id.map(Box::from), ..self }
    }

    /// Has the client's next connection take its subscriptions over.
    pub(crate) fn handing_on(self, client: Option<&str>) -> Self {
        Self { client: client.map(Box::from), ..self }
    }

    fn client(&self) -> Option<(Box<str>, Box<str>)> {
        Some((self.user.clone(), self.client.clone()?))
    }

    /// Tells whether the client has come again, and has its subscriptions there.
    pub(crate) fn is_superseded(&self) -> bool {
        self.superseded.load(Ordering::Relaxed)
    }

    /// Adds what hears events for it.
    pub(crate) fn hearing(self, listener: Option<&Arc<Listener>>) -> Self {
        Self { listener: listener.map(Arc::downgrade), ..self }
    }

    /// Adds the address that it came from.
    pub(crate) fn from(self, peer: Option<SocketAddr>) -> Self {
        Self { peer, ..self }
    }

    /// Takes down that it was heard of.
    pub(crate) fn heard(&self, now_ms: u64) {
        self.heard_ms.store(now_ms, Ordering::Relaxed);
    }

    /// Returns whose it is.
    pub(crate) fn user(&self) -> &str {
        &self.user
    }

    fn listener(&self) -> Option<Arc<Listener>> {
        self.listener.as_ref().and_then(Weak::upgrade)
    }

    pub(crate) fn doc(&self) -> SessionDoc {
        let listener = self.listener();
        let shown = |topic: Box<str>| (!topic.starts_with('~')).then(|| topic.to_string());
        SessionDoc {
            connection_id: self.connection.to_string(),
            user_id: self.user.to_string(),
            device_id: self.device.as_deref().map(str::to_owned),
            client_id: self.client_id.as_deref().map(str::to_owned),
            door: self.door.to_owned(),
            connected_at: format_millis(self.connected_ms),
            last_heard_at: format_millis(self.heard_ms.load(Ordering::Relaxed)),
            topics: listener.iter().flat_map(|listener| listener.topics()).filter_map(shown).collect(),
            queued_bytes: listener.map_or(0, |listener| listener.waiting()),
            peer: self.peer.map(|peer| peer.to_string()),
        }
    }
}

/// A connection's place among the live ones, for as long as this lives.
pub(crate) struct Present<S: Store> {
    app: Arc<App<S>>,
    session: Arc<LiveSession>,
}

impl<S: Store> Deref for Present<S> {
    type Target = LiveSession;

    fn deref(&self) -> &LiveSession {
        &self.session
    }
}

impl<S: Store> Drop for Present<S> {
    fn drop(&mut self) {
        self.app.sessions.leave(&self.session);
    }
}

impl<S: Store> App<S> {
    /// Shows a connection among the live ones; [`LiveSession::disconnect`] tells it when it is to end.
    pub(crate) fn enter(self: &Arc<Self>, session: LiveSession) -> Present<S> {
        let session = Arc::new(session);
        let mut tenants = self.sessions.tenants();
        let own = tenants.entry(session.tenant).or_default();
        own.by_name.insert(session.connection.clone(), Arc::clone(&session));
        if let Some(client) = session.client() {
            let before = own.of_clients.insert(client, Arc::clone(&session));
            if let Some(before) = before {
                before.superseded.store(true, Ordering::Relaxed);
            }
        }
        drop(tenants);
        Present { app: Arc::clone(self), session }
    }
}

impl Sessions {
    fn tenants(&self) -> MutexGuard<'_, HashMap<TenantNo, Own>> {
        self.tenants.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn leave(&self, session: &LiveSession) {
        let mut tenants = self.tenants();
        if let Some(own) = tenants.get_mut(&session.tenant) {
            own.by_name.remove(&session.connection);
            if let Some(client) = session.client()
                && own.of_clients.get(&client).is_some_and(|last| last.connection == session.connection)
            {
                own.of_clients.remove(&client);
            }
            if own.by_name.is_empty() {
                tenants.remove(&session.tenant);
            }
        }
    }

    /// Returns the tenants with connections.
    pub(crate) fn tenants_here(&self) -> Vec<TenantNo> {
        self.tenants().keys().copied().collect()
    }

    /// Lists connections of a tenant, or of one of its users, behind one of them; at most so many.
    pub(crate) fn list(
        &self,
        tenant: TenantNo,
        user: Option<&str>,
        after: Option<&str>,
        rows: usize,
    ) -> Vec<Arc<LiveSession>> {
        let tenants = self.tenants();
        let own = tenants.get(&tenant).into_iter().flat_map(|own| own.by_name.values());
        let behind = own.filter(|session| after.is_none_or(|after| *session.connection > *after));
        behind.filter(|session| user.is_none_or(|user| *session.user == *user)).take(rows).cloned().collect()
    }

    /// Finds a connection of a tenant.
    pub(crate) fn find(&self, tenant: TenantNo, connection: &str) -> Option<Arc<LiveSession>> {
        self.tenants().get(&tenant)?.by_name.get(connection).cloned()
    }

    /// Returns what a client has asked for on a connection that seems to live.
    pub(crate) fn held_by(&self, identity: &Identity, client: &str) -> Option<Vec<Subscribed>> {
        let client = (identity.user.to_string().into(), client.into());
        let session = self.tenants().get(&identity.tenant)?.of_clients.get(&client).cloned()?;
        Some(session.listener()?.subscriptions())
    }

    /// Sums up the connections of a tenant; `subscriptions` are the topics with how many listen to each.
    pub(crate) fn stats(
        &self,
        tenant: TenantNo,
        subscriptions: BTreeMap<Box<str>, usize>,
        now_ms: u64,
    ) -> StatsDoc {
        let all = self.list(tenant, None, None, usize::MAX);
        let mut users: Vec<&str> = all.iter().map(|session| session.user()).collect();
        users.sort_unstable();
        users.dedup();
        let is_active = |session: &&Arc<LiveSession>| {
            now_ms.saturating_sub(session.heard_ms.load(Ordering::Relaxed)) < ACTIVE_MS
        };
        let mut doors = BTreeMap::new();
        for session in &all {
            *doors.entry(session.door.to_owned()).or_default() += 1;
        }
        let subscriptions: BTreeMap<String, usize> = subscriptions
            .into_iter()
            .filter(|(topic, _)| !topic.starts_with('~'))
            .map(|(topic, count)| (topic.into(), count))
            .collect();
        let held = u32::try_from(subscriptions.values().sum::<usize>()).unwrap_or(u32::MAX);
        let clients = u32::try_from(all.len()).unwrap_or(u32::MAX).max(1);
        StatsDoc {
            total_connections: all.len(),
            active_connections: all.iter().filter(is_active).count(),
            total_users: users.len(),
            subscriptions,
            average_subscriptions_per_client: f64::from(held) / f64::from(clients),
            queued_bytes: all.iter().filter_map(|session| session.listener()).map(|own| own.waiting()).sum(),
            doors,
        }
    }
}
