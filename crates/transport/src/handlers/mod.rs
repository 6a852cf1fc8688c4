//! Handlers translate: a request in, an engine's answer out.

mod audit;
mod conflicts;
mod devices;
mod health;
mod ingest;
mod live;
mod monitoring;
mod notifications;
mod policies;
mod publish;
mod records;
mod sync;
mod telemetry;

use axum::extract::Request;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use driftline_engine::{Identity, PUBLISHER_ROLES, STAFF_ROLES, Store};
use driftline_model::{KindName, RecordId};
use driftline_protocol::{ErrorCode, Fault};

use crate::app::App;
use crate::auth::Claims;
use crate::rate;
use crate::reply::{Answer, Refusal};
use crate::request::{Pairs, claims, device, identity};
use crate::routes::{Access, Names, Route, RouteId};

/// A request whose sender is known.
pub(crate) struct Asked<'a> {
    pub(crate) identity: Identity,
    pub(crate) pairs: Pairs,
    pub(crate) names: &'a Names,
    pub(crate) correlation: &'a str,
}

impl Asked<'_> {
    fn name(&self, name: &str) -> &str {
        self.names.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }

    /// The kind in the path; one that cannot exist is not found.
    fn kind(&self) -> Result<KindName, Fault> {
        KindName::new(self.name("kind")).map_err(|_| missing())
    }

    fn id(&self) -> Result<RecordId, Fault> {
        RecordId::new(self.name("id")).map_err(|_| missing())
    }
}

/// Rows of a list unless the caller asks otherwise.
const LIMIT: u64 = 100;

impl Asked<'_> {
    /// How many rows of a list are wanted, within what one page may hold.
    fn limit<S: Store>(&self, app: &App<S>) -> Result<usize, Fault> {
        let wanted = usize::try_from(self.pairs.number("limit")?.unwrap_or(LIMIT)).unwrap_or(usize::MAX);
        Ok(wanted.clamp(1, app.engine.limits().page_rows))
    }

    /// The place in a list where the last page ended.
    fn place<T>(&self, read: impl FnOnce(&str) -> Option<T>) -> Result<Option<T>, Fault> {
        let Some(cursor) = self.pairs.get("cursor") else { return Ok(None) };
        let place = URL_SAFE_NO_PAD.decode(cursor).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let place = place.and_then(|text| read(&text));
        place
            .map(Some)
            .ok_or_else(|| Fault::new(ErrorCode::CursorInvalid, "the cursor is not one of this list"))
    }
}

/// Writes the place of a row as the cursor of the page behind it.
fn cursor_of(place: &str) -> String {
    URL_SAFE_NO_PAD.encode(place)
}

fn missing() -> Fault {
    Fault::new(ErrorCode::NotFound, "there is no such thing here")
}

/// Lets a request in and has it answered.
pub(crate) async fn handle<S: Store>(
    app: &App<S>,
    route: Route,
    names: &Names,
    request: Request,
    correlation: &str,
) -> Result<Answer, Refusal> {
    match route.id {
        RouteId::Alive => return Ok(health::alive()),
        RouteId::Ready => return Ok(health::ready(app).await),
        RouteId::Metrics => return Ok(health::metrics(app)),
        _ => {}
    }
    let (parts, body) = request.into_parts();
    let pairs = Pairs::of(&parts.uri);
    if route.id == RouteId::Ingest {
        return ingest::ingest(app, &parts, pairs, body, correlation).await;
    }
    let claims = claims(app, &parts.headers, &pairs)?;
    rate::admit(app, &parts.extensions, (&claims.tenant, &claims.user), route.id == RouteId::Sync)?;
    require_role(route.access, &claims)?;
    if route.id == RouteId::Sync {
        return sync::sync(app, &parts, pairs, claims, body, correlation).await;
    }
    if route.id == RouteId::AddTicket {
        return Ok(live::ticket(app, &claims));
    }
    let device = device(&claims, pairs.get("device_id"), None)?;
    let identity = identity(app, claims, device).await?;
    app.engine.require_admitted_lately(&identity, app.now_ms()).await?;
    let asked = Asked { identity, pairs, names, correlation };
    match route.id {
        RouteId::Changes => sync::changes(app, &asked).await,
        RouteId::Telemetry => telemetry::samples(app, &asked).await,
        RouteId::Analytics => telemetry::analytics(app, &asked).await,
        RouteId::Devices => devices::list(app, &asked).await,
        RouteId::AddDevice => devices::add(app, &asked, &parts, body).await,
        RouteId::Device => devices::one(app, &asked).await,
        RouteId::ChangeDevice => devices::change(app, &asked, &parts, body).await,
        RouteId::RemoveDevice => devices::remove(app, &asked).await,
        RouteId::Records => records::list(app, &asked).await,
        RouteId::Record => records::one(app, &asked).await,
        RouteId::Explain => records::explain(app, &asked).await,
        RouteId::Conflicts => conflicts::list(app, &asked).await,
        RouteId::Conflict => conflicts::one(app, &asked).await,
        RouteId::ResolveConflict => conflicts::resolve(app, &asked, &parts, body).await,
        RouteId::Audit => audit::list(app, &asked).await,
        RouteId::Policies => policies::list(app, &asked).await,
        RouteId::Policy => policies::one(app, &asked).await,
        RouteId::SetPolicy => policies::set(app, &asked, &parts, body).await,
        RouteId::RemovePolicy => policies::remove(app, &asked).await,
        RouteId::PublishEvent => publish::event(app, &asked, &parts, body).await,
        RouteId::Broadcast
        | RouteId::SendToUser
        | RouteId::DeviceAlert
        | RouteId::LiveMetrics
        | RouteId::PerformanceData
        | RouteId::Notify
        | RouteId::DeviceAction => publish::shortcut(app, &asked, route, &parts, body).await,
        RouteId::StartMonitoring | RouteId::StopMonitoring => {
            monitoring::change(app, &asked, route, &parts, body).await
        }
        RouteId::Monitoring => monitoring::one(app, &asked).await,
        RouteId::Stats => Ok(live::stats(app, &asked)),
        RouteId::Sessions => Ok(live::sessions(app, &asked)?),
        RouteId::Disconnect => Ok(live::disconnect(app, &asked)?),
        RouteId::TopicPresence => live::presence(app, &asked).await,
        RouteId::Delivery => live::delivery(app, &asked).await,
        RouteId::Notifications => notifications::list(app, &asked).await,
        RouteId::ReadNotification => notifications::read(app, &asked).await,
        RouteId::DrainOutbox => publish::drain(app, &parts, body).await,
        RouteId::OpenUpload
        | RouteId::Upload
        | RouteId::UploadChunk
        | RouteId::FinalizeUpload
        | RouteId::CancelUpload
        | RouteId::File
        | RouteId::RemoveFile
        | RouteId::UploadPreflight
        | RouteId::TusCreate
        | RouteId::TusUpload
        | RouteId::TusOptions
        | RouteId::Events
        | RouteId::AddTicket
        | RouteId::TopicsSocket
        | RouteId::UpdatesSocket
        | RouteId::SyncSocket
        | RouteId::SystemSocket
        | RouteId::DeviceSocket
        | RouteId::UserSocket
        | RouteId::MetricsSocket
        | RouteId::AlertsSocket
        | RouteId::IngestSocket
        | RouteId::IngestAuthSocket
        | RouteId::EchoSocket
        | RouteId::Sync
        | RouteId::Ingest
        | RouteId::Alive
        | RouteId::Ready
        | RouteId::Metrics => Err(missing().into()),
    }
}

/// Refuses whoever has none of the roles that a route is for.
fn require_role(access: Access, claims: &Claims) -> Result<(), Fault> {
    let has = |wanted: &[&str]| claims.roles.iter().any(|role| wanted.contains(&&**role));
    match access {
        Access::Admin if !has(&["admin"]) => {
            Err(Fault::new(ErrorCode::Forbidden, "the role admin is needed"))
        }
        Access::Publisher if !has(&PUBLISHER_ROLES) => {
            Err(Fault::new(ErrorCode::Forbidden, "the role publisher, staff or admin is needed"))
        }
        Access::Staff if !has(&STAFF_ROLES) => {
            Err(Fault::new(ErrorCode::Forbidden, "the role staff or admin is needed"))
        }
        _ => Ok(()),
    }
}
