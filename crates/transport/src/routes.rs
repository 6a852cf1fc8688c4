//! The one table of routes, and the router that is made of it.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::Response;
use axum::routing::{MethodFilter, on};
use driftline_engine::Store;
use driftline_protocol::{ErrorCode, Fault};

use crate::app::App;
use crate::handlers;
use crate::negotiate::Wishes;
use crate::rate::within_rates;
use crate::reply::{Refusal, refused};
use crate::request::{correlation, require_host};
use crate::{sse, uploads, ws};

/// Who may enter a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Anyone, without a token.
    Public,
    /// Any user of a tenant; what the user may see is decided per record.
    User,
    /// Whoever opened the upload: its user, or whoever has the upload's own secret.
    Uploader,
    /// A user with a device.
    Device,
    /// A device that sends: by its user's token, or by the device hash that leads to it.
    Sender,
    /// Users with the role `publisher`, `staff` or `admin`.
    Publisher,
    /// Users with the role `staff` or `admin`.
    Staff,
    /// Users with the role `admin`.
    Admin,
}

/// What stands behind a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// A request and its answer.
    Http,
    /// A WebSocket.
    Socket,
    /// A stream of server-sent events.
    Stream,
    /// An upload or a file.
    Upload,
}

/// Names a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RouteId {
    /// The sync socket.
    SyncSocket,
    /// Topics.
    TopicsSocket,
    /// The groups of a user, and topics.
    UpdatesSocket,
    /// What is told to one device.
    SystemSocket,
    /// What happens to one device.
    DeviceSocket,
    /// What happens to one user's devices.
    UserSocket,
    /// What the server and its streams are like.
    MetricsSocket,
    /// What is unusual.
    AlertsSocket,
    /// Telemetry of a device that a hash leads to.
    IngestSocket,
    /// Telemetry of whoever says so with the first message.
    IngestAuthSocket,
    /// The echo of frames, in development only.
    EchoSocket,
    /// Push and pull in one request.
    Sync,
    /// Telemetry over HTTP.
    Ingest,
    /// Samples of a kind.
    Telemetry,
    /// What was counted, by hour or day.
    Analytics,
    /// The registered devices.
    Devices,
    /// Register a device.
    AddDevice,
    /// One device.
    Device,
    /// Change a device.
    ChangeDevice,
    /// Remove a device.
    RemoveDevice,
    /// Pull.
    Changes,
    /// Records of a kind.
    Records,
    /// One record.
    Record,
    /// Why a record is what it is.
    Explain,
    /// Conflicts that wait, or waited, for a reviewer.
    Conflicts,
    /// One conflict.
    Conflict,
    /// Decide a conflict.
    ResolveConflict,
    /// What strategies and reviewers decided.
    Audit,
    /// The policies in force.
    Policies,
    /// The policy of a kind.
    Policy,
    /// Set the policy of a kind.
    SetPolicy,
    /// Remove the tenant's policy of a kind.
    RemovePolicy,
    /// The events of topics as a stream.
    Events,
    /// Publish an event.
    PublishEvent,
    /// Tell everybody.
    Broadcast,
    /// Tell a user.
    SendToUser,
    /// Tell of a device's security.
    DeviceAlert,
    /// Tell what a device measures.
    LiveMetrics,
    /// Tell what is measured of the whole.
    PerformanceData,
    /// Notify everybody or some users.
    Notify,
    /// Tell how an action on a device goes.
    DeviceAction,
    /// Have a device report what it measures.
    StartMonitoring,
    /// Have a device report no more.
    StopMonitoring,
    /// What is monitored of a device.
    Monitoring,
    /// What is connected.
    Stats,
    /// The live connections.
    Sessions,
    /// End a connection.
    Disconnect,
    /// Get what lets in once in the place of a token.
    AddTicket,
    /// Whether a device got an event.
    Delivery,
    /// Who listens to a topic.
    TopicPresence,
    /// The user's notifications.
    Notifications,
    /// Mark a notification as read.
    ReadNotification,
    /// Publish what waits in the outbox.
    DrainOutbox,
    /// Open an upload.
    OpenUpload,
    /// Where an upload stands.
    Upload,
    /// Send a chunk of an upload.
    UploadChunk,
    /// Make a file of an upload.
    FinalizeUpload,
    /// Give an upload up.
    CancelUpload,
    /// The bytes of a file.
    File,
    /// Remove a file.
    RemoveFile,
    /// What pages of other origins may do with uploads.
    UploadPreflight,
    /// Create an upload over tus.
    TusCreate,
    /// Learn the offset of, go on with, or end an upload over tus.
    TusUpload,
    /// What is spoken over tus.
    TusOptions,
    /// Liveness.
    Alive,
    /// Readiness.
    Ready,
    /// Metrics.
    Metrics,
}

/// One route.
#[derive(Debug, Clone, Copy)]
pub struct Route {
    /// Its name.
    pub id: RouteId,
    /// Its method.
    pub method: &'static str,
    /// Its path; every path works with and without a trailing slash.
    pub path: &'static str,
    /// Who may enter.
    pub access: Access,
    /// What stands behind it.
    pub door: Door,
}

const fn route(id: RouteId, method: &'static str, path: &'static str, access: Access, door: Door) -> Route {
    Route { id, method, path, access, door }
}

/// Every route.
pub const ROUTES: &[Route] = &[
    route(RouteId::SyncSocket, "GET", "/ws/mobile/sync", Access::Device, Door::Socket),
    route(RouteId::TopicsSocket, "GET", "/ws", Access::User, Door::Socket),
    route(RouteId::UpdatesSocket, "GET", "/ws/updates", Access::User, Door::Socket),
    route(RouteId::SystemSocket, "GET", "/ws/mobile/system", Access::Device, Door::Socket),
    route(RouteId::DeviceSocket, "GET", "/ws/mobile/device/{device_id}", Access::User, Door::Socket),
    route(RouteId::UserSocket, "GET", "/ws/mobile/user/{user_id}", Access::User, Door::Socket),
    route(RouteId::MetricsSocket, "GET", "/ws/dashboard/metrics", Access::Staff, Door::Socket),
    route(RouteId::AlertsSocket, "GET", "/ws/dashboard/alerts", Access::Staff, Door::Socket),
    route(RouteId::IngestSocket, "GET", "/ws/ingest/{device_hash}", Access::Sender, Door::Socket),
    route(RouteId::IngestAuthSocket, "GET", "/ws/ingest-auth", Access::Sender, Door::Socket),
    route(RouteId::EchoSocket, "GET", "/ws/echo", Access::Public, Door::Socket),
    route(RouteId::Sync, "POST", "/api/v1/sync", Access::Device, Door::Http),
    route(RouteId::Ingest, "POST", "/api/ingest", Access::Sender, Door::Http),
    route(RouteId::Ingest, "POST", "/api/v1/ingest", Access::Sender, Door::Http),
    route(RouteId::Telemetry, "GET", "/api/v1/telemetry/{kind}", Access::User, Door::Http),
    route(RouteId::Analytics, "GET", "/api/v1/analytics", Access::Staff, Door::Http),
    route(RouteId::Devices, "GET", "/api/v1/devices", Access::User, Door::Http),
    route(RouteId::AddDevice, "POST", "/api/v1/devices", Access::User, Door::Http),
    route(RouteId::Device, "GET", "/api/v1/devices/{device_id}", Access::User, Door::Http),
    route(RouteId::ChangeDevice, "PATCH", "/api/v1/devices/{device_id}", Access::User, Door::Http),
    route(RouteId::RemoveDevice, "DELETE", "/api/v1/devices/{device_id}", Access::User, Door::Http),
    route(RouteId::Changes, "GET", "/api/v1/changes", Access::User, Door::Http),
    route(RouteId::Records, "GET", "/api/v1/records/{kind}", Access::User, Door::Http),
    route(RouteId::Record, "GET", "/api/v1/records/{kind}/{id}", Access::User, Door::Http),
    route(RouteId::Explain, "GET", "/api/v1/records/{kind}/{id}/explain", Access::User, Door::Http),
    route(RouteId::Conflicts, "GET", "/api/v1/conflicts", Access::User, Door::Http),
    route(RouteId::Conflict, "GET", "/api/v1/conflicts/{conflict_id}", Access::User, Door::Http),
    route(
        RouteId::ResolveConflict,
        "POST",
        "/api/v1/conflicts/{conflict_id}/resolve",
        Access::User,
        Door::Http,
    ),
    route(RouteId::Audit, "GET", "/api/v1/audit", Access::User, Door::Http),
    route(RouteId::Policies, "GET", "/api/v1/policies", Access::User, Door::Http),
    route(RouteId::Policy, "GET", "/api/v1/policies/{kind}", Access::User, Door::Http),
    route(RouteId::SetPolicy, "PUT", "/api/v1/policies/{kind}", Access::Admin, Door::Http),
    route(RouteId::RemovePolicy, "DELETE", "/api/v1/policies/{kind}", Access::Admin, Door::Http),
    route(RouteId::Events, "GET", "/api/events", Access::User, Door::Stream),
    route(RouteId::PublishEvent, "POST", "/api/v1/events", Access::Publisher, Door::Http),
    route(RouteId::Delivery, "GET", "/api/v1/events/{event_id}/delivery", Access::User, Door::Http),
    route(RouteId::Broadcast, "POST", "/ws/broadcast", Access::Admin, Door::Http),
    route(RouteId::SendToUser, "POST", "/ws/send-to-user/{user_id}", Access::Admin, Door::Http),
    route(RouteId::DeviceAlert, "POST", "/ws/device-alert", Access::Admin, Door::Http),
    route(RouteId::LiveMetrics, "POST", "/ws/live-metrics", Access::Admin, Door::Http),
    route(RouteId::PerformanceData, "POST", "/ws/performance-data", Access::Admin, Door::Http),
    route(RouteId::Notify, "POST", "/ws/notification", Access::Admin, Door::Http),
    route(RouteId::DeviceAction, "POST", "/ws/device-action/{device_id}", Access::Admin, Door::Http),
    route(RouteId::StartMonitoring, "POST", "/ws/start-monitoring/{device_id}", Access::Admin, Door::Http),
    route(RouteId::StopMonitoring, "POST", "/ws/stop-monitoring/{device_id}", Access::Admin, Door::Http),
    route(RouteId::Monitoring, "GET", "/ws/start-monitoring/{device_id}", Access::Staff, Door::Http),
    route(RouteId::Monitoring, "GET", "/ws/stop-monitoring/{device_id}", Access::Staff, Door::Http),
    route(RouteId::Stats, "GET", "/ws/stats", Access::Staff, Door::Http),
    route(RouteId::Sessions, "GET", "/api/v1/sessions", Access::User, Door::Http),
    route(RouteId::Disconnect, "DELETE", "/api/v1/sessions/{connection_id}", Access::Admin, Door::Http),
    route(RouteId::AddTicket, "POST", "/api/v1/tickets", Access::User, Door::Http),
    route(RouteId::TopicPresence, "GET", "/api/v1/topics/{topic}/presence", Access::User, Door::Http),
    route(RouteId::Notifications, "GET", "/api/v1/notifications", Access::User, Door::Http),
    route(
        RouteId::ReadNotification,
        "POST",
        "/api/v1/notifications/{notification_id}/read",
        Access::User,
        Door::Http,
    ),
    route(RouteId::DrainOutbox, "POST", "/api/v1/outbox/drain", Access::Admin, Door::Http),
    route(RouteId::OpenUpload, "POST", "/api/v1/uploads/init", Access::User, Door::Upload),
    route(RouteId::UploadPreflight, "OPTIONS", "/api/v1/uploads/init", Access::Public, Door::Upload),
    route(RouteId::Upload, "GET", "/api/v1/uploads/{upload_id}", Access::Uploader, Door::Upload),
    route(RouteId::CancelUpload, "DELETE", "/api/v1/uploads/{upload_id}", Access::Uploader, Door::Upload),
    route(RouteId::UploadPreflight, "OPTIONS", "/api/v1/uploads/{upload_id}", Access::Public, Door::Upload),
    route(
        RouteId::UploadChunk,
        "POST",
        "/api/v1/uploads/{upload_id}/chunk/{index}",
        Access::Uploader,
        Door::Upload,
    ),
    route(
        RouteId::UploadChunk,
        "PUT",
        "/api/v1/uploads/{upload_id}/chunk/{index}",
        Access::Uploader,
        Door::Upload,
    ),
    route(
        RouteId::UploadPreflight,
        "OPTIONS",
        "/api/v1/uploads/{upload_id}/chunk/{index}",
        Access::Public,
        Door::Upload,
    ),
    route(
        RouteId::FinalizeUpload,
        "POST",
        "/api/v1/uploads/{upload_id}/finalize",
        Access::Uploader,
        Door::Upload,
    ),
    route(
        RouteId::UploadPreflight,
        "OPTIONS",
        "/api/v1/uploads/{upload_id}/finalize",
        Access::Public,
        Door::Upload,
    ),
    route(RouteId::File, "GET", "/api/v1/files/{file_id}", Access::User, Door::Upload),
    route(RouteId::RemoveFile, "DELETE", "/api/v1/files/{file_id}", Access::User, Door::Upload),
    route(RouteId::UploadPreflight, "OPTIONS", "/api/v1/files/{file_id}", Access::Public, Door::Upload),
    route(RouteId::TusOptions, "OPTIONS", "/files", Access::Public, Door::Upload),
    route(RouteId::TusCreate, "POST", "/files", Access::User, Door::Upload),
    route(RouteId::TusOptions, "OPTIONS", "/files/{upload}", Access::Public, Door::Upload),
    route(RouteId::TusUpload, "HEAD", "/files/{upload}", Access::Public, Door::Upload),
    route(RouteId::TusUpload, "PATCH", "/files/{upload}", Access::Public, Door::Upload),
    route(RouteId::TusUpload, "DELETE", "/files/{upload}", Access::Public, Door::Upload),
    route(RouteId::TusUpload, "POST", "/files/{upload}", Access::Public, Door::Upload),
    route(RouteId::Alive, "GET", "/alive", Access::Public, Door::Http),
    route(RouteId::Ready, "GET", "/ready", Access::Public, Door::Http),
    route(RouteId::Metrics, "GET", "/metrics", Access::Public, Door::Http),
];

/// The names in a path.
pub(crate) type Names = Vec<(String, String)>;

/// Makes the router of [`ROUTES`]; without [`Settings::echo`](crate::Settings::echo) there is no echo.
pub fn router<S: Store>(app: Arc<App<S>>) -> Router {
    let mut router = Router::new();
    let echo = app.settings.echo;
    for route in ROUTES.iter().filter(|route| echo || route.id != RouteId::EchoSocket) {
        let filter = filter(route.method);
        let handler = move |State(app): State<Arc<App<S>>>,
                            names: Result<Path<Names>, PathRejection>,
                            request: Request| async move {
            // A name that is not UTF-8 names nothing.
            let Ok(Path(names)) = names else { return not_found(State(app), request).await };
            let asked =
                (route.door == Door::Upload).then(|| (request.uri().clone(), request.headers().clone()));
            let door = Arc::clone(&app);
            let mut response = match route.access {
                Access::Public => answer(door, *route, names, request).await,
                _ => {
                    let rates = Arc::clone(&app);
                    within_rates(rates, request, |request| answer(door, *route, names, request)).await
                }
            };
            if let Some((uri, headers)) = asked {
                uploads::complete(&app, &uri, &headers, &mut response);
            }
            response
        };
        router = router.route(route.path, on(filter, handler));
        router = router.route(&format!("{}/", route.path), on(filter, handler));
    }
    router.fallback(not_found::<S>).method_not_allowed_fallback(wrong_method::<S>).with_state(app)
}

fn filter(method: &str) -> MethodFilter {
    match method {
        "POST" => MethodFilter::POST,
        "PUT" => MethodFilter::PUT,
        "PATCH" => MethodFilter::PATCH,
        "DELETE" => MethodFilter::DELETE,
        "HEAD" => MethodFilter::HEAD,
        "OPTIONS" => MethodFilter::OPTIONS,
        _ => MethodFilter::GET,
    }
}

async fn answer<S: Store>(app: Arc<App<S>>, route: Route, names: Names, request: Request) -> Response<Body> {
    let (correlation, wishes) = (correlation(&app, request.headers()), Wishes::of(request.headers()));
    let (parts, body) = request.into_parts();
    if let Err(fault) = require_host(&parts) {
        return refused(no_host(fault), &correlation).respond(wishes).await;
    }
    let request = Request::from_parts(parts, body);
    let mut response = match route.door {
        Door::Socket => ws::upgrade(app, route.id, &names, request, &correlation).await,
        Door::Stream => match sse::open(&app, request).await {
            Ok(response) => response,
            Err(refusal) => refused(refusal, &correlation).respond(wishes).await,
        },
        // It has a place of its own, so that it does not make that of every other request as large.
        Door::Upload => Box::pin(uploads::answer(app, route, &names, request, &correlation)).await,
        Door::Http => {
            let handled = handlers::handle(&app, route, &names, request, &correlation).await;
            handled.unwrap_or_else(|refusal| refused(refusal, &correlation)).respond(wishes).await
        }
    };
    if let Ok(value) = correlation.parse() {
        response.headers_mut().insert("x-correlation-id", value);
    }
    response
}

/// RFC 9112 §3.2: a request without exactly one Host is answered 400.
fn no_host(fault: Fault) -> Refusal {
    Refusal { status: Some(400), ..Refusal::from(fault) }
}

async fn not_found<S: Store>(State(app): State<Arc<App<S>>>, request: Request) -> Response<Body> {
    refuse(&app, request, Fault::new(ErrorCode::NotFound, "there is no such route")).await
}

async fn wrong_method<S: Store>(State(app): State<Arc<App<S>>>, request: Request) -> Response<Body> {
    let fault = Fault::new(
        ErrorCode::MethodNotAllowed,
        format!("{} is not a method of this route", request.method()),
    );
    refuse(&app, request, fault).await
}

async fn refuse<S: Store>(app: &App<S>, request: Request, fault: Fault) -> Response<Body> {
    let (parts, _) = request.into_parts();
    let correlation = correlation(app, &parts.headers);
    let refusal = match require_host(&parts) {
        Ok(()) => Refusal::from(fault),
        Err(fault) => no_host(fault),
    };
    let mut response = refused(refusal, &correlation).respond(Wishes::of(&parts.headers)).await;
    uploads::complete(app, &parts.uri, &parts.headers, &mut response);
    response
}
