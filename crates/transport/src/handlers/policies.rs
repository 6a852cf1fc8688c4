//! Conflict policies.

use axum::body::Body;
use axum::http::StatusCode;
use axum::http::request::Parts;
use driftline_engine::Store;
use driftline_protocol::{
    Encoding, Envelope, ErrorCode, Fault, FieldError, ListDoc, PolicyDoc, PolicyView, json_of_msgpack,
    to_json,
};

use super::Asked;
use crate::app::App;
use crate::reply::{Answer, Refusal, json, nothing};
use crate::request::{Received, receive};

pub(super) async fn list<S: Store>(app: &App<S>, asked: &Asked<'_>) -> Result<Answer, Refusal> {
    let policies = app.engine.policies(&asked.identity, app.now_ms()).await?;
    let items =
        policies.into_iter().map(|(kind, doc, version)| PolicyView::new(kind.to_string(), doc, version));
    let list = ListDoc { items: items.collect(), next_cursor: None };
    Ok(json(StatusCode::OK, to_json(&list)))
}

pub(super) async fn one<S: Store>(app: &App<S>, asked: &Asked<'_>) -> Result<Answer, Refusal> {
    let kind = asked.kind()?;
    let (doc, version) = app.engine.policy(&asked.identity, &kind, app.now_ms()).await?;
    Ok(json(StatusCode::OK, to_json(&PolicyView::new(kind.to_string(), doc, version))))
}

pub(super) async fn set<S: Store>(
    app: &App<S>,
    asked: &Asked<'_>,
    parts: &Parts,
    body: Body,
) -> Result<Answer, Refusal> {
    let kind = asked.kind()?;
    let received = receive(app, &parts.headers, body).await?;
    // The envelope's rules for whole messages hold here too: UTF-8, depth, an object.
    let Received { bytes, encoding, .. } = &received;
    Envelope::parse(*encoding, bytes, app.engine.limits())?;
    let text = match encoding {
        Encoding::Json => String::from_utf8_lossy(bytes),
        Encoding::MessagePack => {
            let text = json_of_msgpack(bytes, app.engine.limits().depth);
            text.map_err(|error| Fault::new(encoding.decode_error(), error.to_string()))?.into()
        }
    };
    let doc = PolicyDoc::parse(&text).map_err(|reason| {
        let mut fault = Fault::new(ErrorCode::ValidationError, reason.clone());
        fault.errors.push(FieldError { code: "invalid".into(), pointer: String::new(), message: reason });
        fault
    })?;
    let version = app.engine.set_policy(&asked.identity, &kind, &doc).await?;
    tracing::info!(kind = %kind, version, correlation = asked.correlation, "policy set");
    Ok(json(StatusCode::OK, to_json(&PolicyView::new(kind.to_string(), doc, version))))
}

pub(super) async fn remove<S: Store>(app: &App<S>, asked: &Asked<'_>) -> Result<Answer, Refusal> {
    let kind = asked.kind()?;
    app.engine.remove_policy(&asked.identity, &kind).await?;
    tracing::info!(kind = %kind, correlation = asked.correlation, "policy removed");
    Ok(nothing())
}
