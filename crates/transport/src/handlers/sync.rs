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
use crate::idempotency::{fingerprint, key, mark_replayed};
use crate::rate;
use crate::reply::{Answer, Refusal, json};
use crate::request::{Pairs, device, identity, invalid, receive};
use crate::routes::Names;

/// The HTTP twin of a push and a pull on the socket.
pub(super) async fn sync<S: Store>(
    app: &App<S>,
    parts: &Parts,
    pairs: Pairs,
    claims: Claims,
    body: Body,
    correlation: &str,
) -> Result<Answer, Refusal> {
    let key = key(&parts.headers)?;
    let received = receive(app, &parts.headers, body).await?;
    let request = SyncRequest::decode(received.encoding, &received.bytes, app.engine.limits());
    if request.as_ref().is_ok_and(|request| !request.push.items.is_empty()) {
        rate::admit_batch(app, (&claims.tenant, &claims.user))?;
    }
    let inner = request.as_ref().ok().and_then(|request| request.device_id.as_deref());
    let device = device(&claims, pairs.get("device_id"), inner)?;
    let (key, device) = match (&request, key, device) {
        (_, key, Some(device)) if key.is_some() || request.is_ok() => (key, device),
        (Err(fault), ..) => return Err(fault.clone().into()),
        (Ok(_), ..) => return Err(Fault::new(ErrorCode::MissingDeviceId, "a sync needs a device_id").into()),
    };
    let identity = identity(app, claims, Some(device)).await?;
    app.engine.require_admitted_lately(&identity, app.now_ms()).await?;
    app.engine.requested(&identity, app.now_ms());
    let print = fingerprint(ROUTE, &Names::new(), &pairs, &parts.headers, &received.bytes);
    let once = key.map(|key| app.engine.once(&identity, key.as_str(), print));
    let request = match (request, &once) {
        (Ok(request), _) => request,
        (Err(fault), None) => return Err(fault.into()),
        (Err(fault), Some(once)) => {
            app.engine.is_known(&identity, once, app.now_ms()).await?;
            return Err(fault.into());
        }
    };
    let once = (once, app.random_u128());
    let answer = app.engine.sync(&identity, request, once, app.now_ms(), correlation).await?;
    let body = json(StatusCode::OK, encode_sync_answer(app.now_ms(), &answer.ack, &answer.data));
    if !answer.ack.replayed {
        return Ok(body);
    }
    app.counts.replays.increment(1);
    Ok(mark_replayed(body))
}

/// What keys of a sync are told apart by.
const ROUTE: &str = "POST /api/v1/sync";

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
