//! The doors for WebSockets: who may enter, what for, and what is told there.

use std::sync::Arc;

use driftline_engine::{
    ANONYMOUS_ROLE, Connected, Ear, Greeting, Head, Identity, Listener, Preset, STAFF_ROLES, Session, Store,
    devices_of,
};
use driftline_model::{DeviceId, Epoch};
use driftline_protocol::{ErrorCode, EventPlace, Fault, Form};

use super::link::{Link, Visitor};
use crate::app::{App, Place};
use crate::rate::Peer;
use crate::request::{Caller, enter};
use crate::sessions::LiveSession;
use crate::traffic::SERVER_METRICS;

/// A door, with what is bound to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Door {
    /// Everything that a device syncs and sends.
    Sync,
    /// What is told to the own device.
    System,
    /// What happens to one device; an owner tells apart devices of one name.
    Device(DeviceId, Option<Box<str>>),
    /// What happens to one user's devices.
    User(String),
    /// What the server and its streams are like.
    Metrics,
    /// What is unusual.
    Alerts,
    /// What a device sends and nobody merges.
    Ingest,
    /// Topics.
    Topics,
    /// The groups of a user.
    Updates,
}

impl Door {
    /// Returns the door's name, as lists of connections show it.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Sync => "sync",
            Self::System => "system",
            Self::Device(..) => "device",
            Self::User(_) => "user",
            Self::Metrics => "metrics",
            Self::Alerts => "alerts",
            Self::Ingest => "ingest",
            Self::Topics => "topics",
            Self::Updates => "updates",
        }
    }

    pub(super) fn preset(&self) -> Preset {
        match self {
            Self::Sync => Preset::Sync,
            Self::System => Preset::System,
            Self::Ingest => Preset::Ingest,
            Self::Device(..) | Self::User(_) | Self::Metrics | Self::Alerts => Preset::Watch,
            Self::Topics => Preset::Topics,
            Self::Updates => Preset::Updates,
        }
    }

    /// Tells whether any frame is a sign of life. A phone's library answers pings while its app is frozen.
    pub(super) fn lives_by_frames(&self) -> bool {
        matches!(self, Self::Metrics | Self::Alerts | Self::Ingest | Self::Topics | Self::Updates)
    }
}

/// Somebody who may enter.
pub(super) struct Guest {
    pub(super) identity: Identity,
    pub(super) door: Door,
    /// When the token ends, in Unix seconds; none: whoever entered without one.
    pub(super) expires_s: Option<u64>,
    /// What the device hash is looked up by, of whoever entered with one.
    pub(super) digest: Option<[u8; 32]>,
    /// The engine's numbering, taken before the identity was asked for.
    pub(super) numbering: u64,
    /// The place among the user's connections, unless somebody else holds it.
    pub(super) place: Option<Connected>,
    /// What the client said of itself in the URL.
    pub(super) said: Said,
}

/// What a client says of itself in the URL.
#[derive(Debug, Clone, Default)]
pub(super) struct Said {
    /// The name that it gives itself.
    pub(super) client_id: Option<String>,
    /// The last event that it has.
    pub(super) last_event: Option<EventPlace>,
    /// Stands for a place in the log.
    pub(super) resume_token: Option<String>,
    /// Where it comes from.
    pub(super) peer: Option<Peer>,
}

/// A connection before anybody entered.
#[derive(Debug, Clone)]
pub(super) struct Threshold {
    pub(super) form: Form,
    pub(super) number: u64,
    pub(super) id: String,
}

/// Finds out who a token's bearer is, and lets in who may enter.
pub(super) async fn guest_of<S: Store>(
    app: &App<S>,
    caller: Caller,
    device: Option<DeviceId>,
    door: Door,
) -> Result<Guest, Fault> {
    let (expires_s, numbering) = (caller.expires_s(), app.engine.numbering());
    let mut identity = enter(app, caller, device).await?;
    app.engine.require_admitted(&identity).await?;
    let staff = STAFF_ROLES.iter().any(|role| identity.has_role(role));
    match &door {
        Door::Metrics | Door::Alerts if !staff => {
            return Err(Fault::new(ErrorCode::Forbidden, "the role staff or admin is needed"));
        }
        Door::User(user) if !staff && *user != identity.user.to_string() => {
            return Err(Fault::new(ErrorCode::Forbidden, "another user's devices are not yours to watch"));
        }
        _ => {}
    }
    if door.preset() == Preset::Watch {
        // Whoever watches is no device at work.
        identity.device = None;
    }
    Ok(Guest { identity, door, expires_s, digest: None, numbering, place: None, said: Said::default() })
}

/// Opens the session of a guest; `reply_to` is the message by which the guest said who it is.
pub(super) async fn open<S: Store>(
    app: &Arc<App<S>>,
    guest: Guest,
    threshold: Threshold,
    reply_to: Option<String>,
) -> Result<Link<S>, Fault> {
    let Guest { identity, door, expires_s, digest, numbering, place, said } = guest;
    let identity = Arc::new(identity);
    let (limits, now_ms) = (Arc::clone(app.engine.limits()), app.now_ms());
    let meter = app.engine.meter(&identity.tenant_id, &identity.user, now_ms);
    // Listening starts before the head is read, so that no event falls between the two.
    let listener = ear(app, &identity, &door).await?;
    let client = client_of(&identity, &door, said.client_id.as_deref());
    let head = match &listener {
        Some(listener) => begin(app, &identity, listener, client.as_deref(), now_ms).await?,
        None => app.engine.head(&identity).await?,
    };
    let (id, seed) = (threshold.id.clone(), app.random_u128());
    let mut session = Session::new(Arc::clone(&identity), limits, meter, &head, id, seed, now_ms)
        .on(door.preset())
        .within(app.engine.window_ms(&identity.tenant_id));
    if let Some(listener) = &listener {
        session = session.listening(Arc::clone(listener));
        app.engine.note_listening(&identity, listener, Vec::new(), &head, now_ms);
    }
    let resume = match &said.resume_token {
        // One that is none is a place in another log: the client is told that not everything comes.
        Some(token) => {
            Some(app.engine.open_resume_token(&identity, token).unwrap_or_else(|_| foreign(&head)))
        }
        None => said.last_event,
    };
    let resume_token = app.engine.resume_token(&identity, head.epoch, head.event_id);
    let greeting = Greeting { reply_to, client_id: said.client_id.clone(), resume_token };
    let mut session = session.greeting(greeting, &head, now_ms);
    if let Some(place) = resume {
        session = session.resuming(place);
    }
    if let Some(listener) = &listener {
        tell_first(app, &identity, listener, &door, now_ms);
    }
    tracing::info!(connection = %threshold.id, tenant = %identity.tenant_id, "connected");
    let stay = Stay::new(app, &identity, door.preset(), &threshold);
    let lives_by_frames = door.lives_by_frames();
    let live = LiveSession::new(&threshold.id, &identity, door.name(), now_ms)
        .called(said.client_id.as_deref())
        .handing_on(client.as_deref())
        .hearing(listener.as_ref())
        .from(said.peer.map(|Peer(peer)| peer));
    let present = app.enter(live);
    let visitor = Visitor {
        present,
        client,
        threshold,
        identity,
        stay,
        place,
        expires_s,
        digest,
        numbering,
        lives_by_frames,
    };
    Ok(Link::new(Arc::clone(app), session, visitor))
}

/// By what a client is known that takes its subscriptions back: on the doors where it asks for topics, if somebody vouches
/// for its user.
fn client_of(identity: &Identity, door: &Door, client_id: Option<&str>) -> Option<String> {
    let asks = matches!(door, Door::Topics | Door::Updates) && !identity.has_role(ANONYMOUS_ROLE);
    client_id.filter(|_| asks).map(|client_id| format!("{} {client_id}", door.name()))
}

/// Begins to listen, also to what the client had asked for before.
async fn begin<S: Store>(
    app: &App<S>,
    identity: &Identity,
    listener: &Listener,
    client: Option<&str>,
    now_ms: u64,
) -> Result<Head, Fault> {
    let Some(client) = client else { return app.engine.begin(identity, listener).await };
    let parked = app.parked.take(identity, client, now_ms);
    // A connection whose end nobody has noticed yet still holds them.
    let before = app.sessions.held_by(identity, client).unwrap_or(parked);
    let begun = async {
        app.engine.take_back(identity, listener, &before).await?;
        app.engine.begin(identity, listener).await
    };
    let begun = begun.await;
    if begun.is_err() {
        app.parked.keep(identity, client, before, now_ms);
    }
    begun
}

/// A place that no log of this tenant has.
fn foreign(head: &Head) -> EventPlace {
    EventPlace { epoch: Some(Epoch::new(!head.epoch.number())), id: 0 }
}

/// Begins to listen to what a door tells.
async fn ear<S: Store>(
    app: &App<S>,
    identity: &Identity,
    door: &Door,
) -> Result<Option<Arc<Listener>>, Fault> {
    let own = Ear::of(identity);
    let listener = match door {
        Door::Ingest => return Ok(None),
        Door::Sync | Door::Topics | Door::Updates => app.engine.listener(identity, own, true),
        Door::System => {
            let device = identity.device.as_ref().map(|(_, key)| key.clone());
            let listener = app.engine.listener(identity, Ear { device: device.clone(), ..own }, true);
            if let Some(key) = device {
                listener.join(&format!("device_{}", key.device()));
            }
            listener
        }
        Door::Device(device, owner) => {
            let row = app.engine.device(identity, device, owner.clone()).await?;
            let listener = app.engine.listener(identity, Ear { device: Some(row.key.clone()), ..own }, false);
            for prefix in ["device_", "metrics_"] {
                listener.join(&format!("{prefix}{}", row.key.device()));
            }
            listener
        }
        Door::User(user) => {
            let listener = app.engine.listener(identity, own, false);
            listener.join(&devices_of(user));
            listener
        }
        Door::Metrics => {
            let listener = app.engine.listener(identity, own, false);
            listener.join("stream_metrics");
            listener.join(SERVER_METRICS);
            listener
        }
        Door::Alerts => {
            let listener = app.engine.listener(identity, own, false);
            listener.join("anomaly_alert");
            listener
        }
    };
    Ok(Some(listener))
}

/// Tells somebody who begins to listen what stands already.
fn tell_first<S: Store>(app: &App<S>, identity: &Identity, listener: &Listener, door: &Door, now_ms: u64) {
    if *door == Door::Metrics {
        listener.hear(&app.traffic.whole(identity.tenant, now_ms));
        for draft in app.engine.streams_now(identity, now_ms) {
            listener.hear(&draft);
        }
    }
}

/// The stay of a device at a door: it has its place and counts as connected for as long as this lives.
pub(super) struct Stay<S: Store> {
    app: Arc<App<S>>,
    identity: Arc<Identity>,
    connection: String,
    number: u64,
    place: Option<Place>,
    /// Tells that the device came again.
    pub(super) replaced: Arc<tokio::sync::Notify>,
}

impl<S: Store> Stay<S> {
    fn new(app: &Arc<App<S>>, identity: &Arc<Identity>, preset: Preset, threshold: &Threshold) -> Self {
        let place = identity.device.as_ref().map(|(device, _)| (identity.tenant, *device, preset));
        let replaced = place.map(|place| app.seat(place, threshold.number)).unwrap_or_default();
        app.engine.connected(identity, &threshold.id, app.now_ms());
        Self {
            app: Arc::clone(app),
            identity: Arc::clone(identity),
            connection: threshold.id.clone(),
            number: threshold.number,
            place,
            replaced,
        }
    }
}

impl<S: Store> Drop for Stay<S> {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            self.app.unseat(place, self.number);
        }
        self.app.engine.disconnected(&self.identity, &self.connection, self.app.now_ms());
    }
}

/// The close code of somebody who is not let in.
pub(super) fn close_code(fault: &Fault) -> u16 {
    match (fault.code, fault.code.close()) {
        (_, Some(close)) => close.0,
        (ErrorCode::Forbidden | ErrorCode::NotFound, None) => 4503,
        // A device name that cannot be one is as good as none; coming back with it helps nobody.
        (ErrorCode::ValidationError, None) => 4502,
        (ErrorCode::RateLimited, None) => 1008,
        // Our own failure while connecting.
        (_, None) => 4000,
    }
}
