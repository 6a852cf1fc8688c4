//! Push and pull over HTTP.

use std::time::Duration;

use axum::body::Body;
use axum::http::StatusCode;
use axum::http::request::Parts;
use driftline_engine::Store;
use driftline_model::KindName;
use driftline_protocol::{
    ErrorCode, Fault, RequestServerData, ServerData, SyncRequest, encode_changes_answer, encode_sync_answer,
};
use futures_util::StreamExt as _;

use super::Asked;
use crate::app::{App, drained};
use crate::auth::Claims;
use crate::rate;
use crate::reply::{Answer, Refusal, json};
use crate::request::{Pairs, device, identity, invalid, receive};

/// The HTTP twin of a push and a pull on the socket.
pub(super) async fn sync<S: Store>(
    app: &App<S>,
    parts: &Parts,
    pairs: Pairs,
    claims: Claims,
    body: Body,
    correlation: &str,
) -> Result<Answer, Refusal> {
    let received = receive(app, &parts.headers, body).await?;
    let request = SyncRequest::decode(received.encoding, &received.bytes, app.engine.limits())?;
    if !request.push.items.is_empty() {
        rate::admit_batch(app, &claims)?;
    }
    let device = device(&claims, pairs.get("device_id"), request.device_id.as_deref())?;
    let device = device.ok_or_else(|| Fault::new(ErrorCode::MissingDeviceId, "a sync needs a device_id"))?;
    let identity = identity(app, claims, Some(device)).await?;
    let answer = app.engine.sync(&identity, request, app.now_ms(), correlation).await?;
    Ok(json(StatusCode::OK, encode_sync_answer(app.now_ms(), &answer.ack, &answer.data)))
}

/// A pull; with `wait_s` it waits for changes when there are none yet.
pub(super) async fn changes<S: Store>(app: &App<S>, asked: &Asked<'_>) -> Result<Answer, Refusal> {
    let request = RequestServerData {
        data_types: data_types(&asked.pairs)?,
        cursor: asked.pairs.get("cursor").map(str::to_owned),
        limit: asked.pairs.number("limit")?,
        range: None,
    };
    let wait_s = asked.pairs.number("wait_s")?.unwrap_or(0).min(app.engine.limits().wait_s);
    // Listening starts before the first look, so that nothing is missed between the two.
    let mut commits = app.engine.subscribe(&asked.identity);
    let deadline = tokio::time::sleep(Duration::from_secs(wait_s));
    tokio::pin!(deadline);
    let mut draining = app.draining();
    loop {
        let data: ServerData = app.engine.pull(&asked.identity, request.clone()).await?;
        if wait_s == 0 || data.has_more || data.changes != "[]" || request.cursor.is_none() {
            return Ok(json(StatusCode::OK, encode_changes_answer(app.now_ms(), &data)));
        }
        tokio::select! {
            commit = commits.next() => if commit.is_some() { continue },
            () = &mut deadline => {}
            () = drained(&mut draining) => {}
        }
        return Ok(json(StatusCode::OK, encode_changes_answer(app.now_ms(), &data)));
    }
}

fn data_types(pairs: &Pairs) -> Result<Option<Vec<KindName>>, Fault> {
    let Some(text) = pairs.get("data_types").filter(|text| !text.is_empty()) else { return Ok(None) };
    let kinds = text.split(',').map(|kind| KindName::new(kind.trim()));
    let mut kinds =
        kinds.collect::<Result<Vec<_>, _>>().map_err(|error| invalid("data_types", &error.to_string()))?;
    kinds.sort();
    kinds.dedup();
    Ok(Some(kinds))
}
