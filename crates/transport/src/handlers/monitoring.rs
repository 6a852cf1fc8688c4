//! Devices that are to report what they measure, for a time.

use axum::body::Body;
use axum::http::StatusCode;
use axum::http::request::Parts;
use driftline_engine::Store;
use driftline_protocol::{MonitoringDoc, Shortcut, to_json};

use super::Asked;
use super::publish::{answer, device_of, tell};
use crate::app::App;
use crate::reply::{Answer, Refusal, json};
use crate::routes::{Route, RouteId};

/// Begins or ends.
pub(super) async fn change<S: Store>(
    app: &App<S>,
    asked: &Asked<'_>,
    route: Route,
    parts: &Parts,
    body: Body,
) -> Result<Answer, Refusal> {
    let device = device_of(asked)?;
    let begins = route.id == RouteId::StartMonitoring;
    let shortcut =
        if begins { Shortcut::StartMonitoring(&device) } else { Shortcut::StopMonitoring(&device) };
    let outcome = tell(app, asked, route, (parts, body), shortcut).await?;
    if begins && let Ok(Some(monitored)) = app.engine.monitoring(&asked.identity, &device).await {
        app.monitors.note(asked.identity.tenant, monitored, app.engine.numbering());
    }
    Ok(answer(app, StatusCode::OK, outcome))
}

/// Tells what is monitored of a device.
pub(super) async fn one<S: Store>(app: &App<S>, asked: &Asked<'_>) -> Result<Answer, Refusal> {
    let found = app.engine.monitoring(&asked.identity, &device_of(asked)?).await?;
    let running = found.filter(|monitored| app.now_ms() < monitored.until_ms);
    let doc = running.map_or_else(MonitoringDoc::default, |monitored| monitored.doc);
    Ok(json(StatusCode::OK, to_json(&doc)))
}
