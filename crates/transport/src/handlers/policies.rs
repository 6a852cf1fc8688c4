//! Conflict policies.

use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{Response, StatusCode};
use driftline_engine::Store;
use driftline_protocol::{
    Encoding, Envelope, ErrorCode, Fault, FieldError, ListDoc, PolicyDoc, PolicyView, to_json,
};

use super::Asked;
use crate::app::App;
use crate::reply::{Refusal, json};
use crate::request::{read_body, require_json};

pub(super) async fn list<S: Store>(app: &App<S>, asked: &Asked<'_>) -> Result<Response<Body>, Refusal> {
    let policies = app.engine.policies(&asked.identity, app.now_ms()).await?;
    let items =
        policies.into_iter().map(|(kind, doc, version)| PolicyView::new(kind.to_string(), doc, version));
    let list = ListDoc { items: items.collect(), next_cursor: None };
    Ok(json(StatusCode::OK, to_json(&list)))
}

pub(super) async fn one<S: Store>(app: &App<S>, asked: &Asked<'_>) -> Result<Response<Body>, Refusal> {
    let kind = asked.kind()?;
    let (doc, version) = app.engine.policy(&asked.identity, &kind, app.now_ms()).await?;
    Ok(json(StatusCode::OK, to_json(&PolicyView::new(kind.to_string(), doc, version))))
}

pub(super) async fn set<S: Store>(
    app: &App<S>,
    asked: &Asked<'_>,
    parts: &Parts,
    body: Body,
) -> Result<Response<Body>, Refusal> {
    let kind = asked.kind()?;
    require_json(&parts.headers)?;
    let body = read_body(app, body).await?;
    // The envelope's rules for whole messages hold here too: UTF-8, depth, an object.
    Envelope::parse(Encoding::Json, &body, app.engine.limits())?;
    let text = String::from_utf8_lossy(&body);
    let doc = PolicyDoc::parse(&text).map_err(|reason| {
        let mut fault = Fault::new(ErrorCode::ValidationError, reason.clone());
        fault.errors.push(FieldError { code: "invalid".into(), pointer: String::new(), message: reason });
        fault
    })?;
    let version = app.engine.set_policy(&asked.identity, &kind, &doc).await?;
    tracing::info!(kind = %kind, version, correlation = asked.correlation, "policy set");
    Ok(json(StatusCode::OK, to_json(&PolicyView::new(kind.to_string(), doc, version))))
}

pub(super) async fn remove<S: Store>(app: &App<S>, asked: &Asked<'_>) -> Result<Response<Body>, Refusal> {
    let kind = asked.kind()?;
    app.engine.remove_policy(&asked.identity, &kind).await?;
    tracing::info!(kind = %kind, correlation = asked.correlation, "policy removed");
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    Ok(response)
}
