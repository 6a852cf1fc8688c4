//! Liveness, readiness and metrics.

use axum::http::StatusCode;
use driftline_engine::Store;

use crate::app::App;
use crate::reply::{Answer, json, text};

/// The process answers; nothing else is asked.
pub(super) fn alive() -> Answer {
    json(StatusCode::OK, r#"{"status":"alive"}"#.into())
}

/// The node can take work: its store takes a write, and it is not shutting down.
pub(super) async fn ready<S: Store>(app: &App<S>) -> Answer {
    if app.is_draining() {
        return json(StatusCode::SERVICE_UNAVAILABLE, r#"{"status":"draining"}"#.into());
    }
    if app.is_writable().await {
        return json(StatusCode::OK, r#"{"status":"ready","checks":{"store":"ok"}}"#.into());
    }
    let body = r#"{"status":"not_ready","checks":{"store":"unavailable"}}"#;
    json(StatusCode::SERVICE_UNAVAILABLE, body.into())
}

pub(super) fn metrics<S: Store>(app: &App<S>) -> Answer {
    let body = app.metrics.as_ref().map(crate::observe::MetricsHandle::render).unwrap_or_default();
    text(StatusCode::OK, "text/plain; version=0.0.4", body)
}
