//! Conflicts that wait for a reviewer, and their decision.

use axum::body::Body;
use axum::http::StatusCode;
use axum::http::request::Parts;
use driftline_engine::{ConflictPlace, ConflictQuery, ConflictRow, Store, conflict_doc};
use driftline_model::{ConflictId, DeviceId, KindName, RecordId};
use driftline_protocol::{ErrorCode, Fault, ListDoc, ResolveConflict, ResolvePost, to_json};

use super::{Asked, cursor_of};
use crate::app::App;
use crate::idempotency::{fingerprint, key, mark_replayed};
use crate::reply::{Answer, Refusal, json};
use crate::request::{Pairs, receive};

pub(super) async fn list<S: Store>(app: &App<S>, asked: &Asked<'_>) -> Result<Answer, Refusal> {
    let limit = asked.limit(app)?;
    let query = ConflictQuery {
        scopes: Vec::new(),
        kinds: asked.pairs.parsed("kind", KindName::new)?.into_iter().collect(),
        id: asked.pairs.parsed("id", RecordId::new)?,
        device: asked.pairs.parsed("device", DeviceId::new)?.map(|device| device.to_string()),
        open: status(&asked.pairs)?,
        after: asked.place(read_place)?,
        // One more than wanted tells whether more wait.
        rows: limit + 1,
    };
    let mut rows = app.engine.conflicts(&asked.identity, query).await?;
    let more = rows.len() > limit;
    rows.truncate(limit);
    let list = ListDoc {
        items: rows.iter().map(conflict_doc).collect(),
        next_cursor: rows.last().filter(|_| more).map(place_of),
    };
    Ok(json(StatusCode::OK, to_json(&list)))
}

/// Whether open or decided conflicts are wanted; nothing: both.
fn status(pairs: &Pairs) -> Result<Option<bool>, Fault> {
    let status = pairs.parsed("status", |text| match text {
        "open" => Ok(Some(true)),
        "resolved" => Ok(Some(false)),
        "all" => Ok(None),
        _ => Err("must be open, resolved or all"),
    })?;
    Ok(status.unwrap_or(Some(true)))
}

fn place_of(row: &ConflictRow) -> String {
    cursor_of(&format!("{}:{}", row.opened_ms, row.conflict_id))
}

fn read_place(text: &str) -> Option<ConflictPlace> {
    let (opened_ms, conflict_id) = text.split_once(':')?;
    Some(ConflictPlace {
        opened_ms: opened_ms.parse().ok()?,
        conflict_id: ConflictId::new(conflict_id).ok()?,
    })
}

pub(super) async fn one<S: Store>(app: &App<S>, asked: &Asked<'_>) -> Result<Answer, Refusal> {
    let row = app.engine.conflict(&asked.identity, &conflict_id(asked)?).await?;
    Ok(json(StatusCode::OK, to_json(&conflict_doc(&row))))
}

pub(super) async fn resolve<S: Store>(
    app: &App<S>,
    asked: &Asked<'_>,
    parts: &Parts,
    body: Body,
) -> Result<Answer, Refusal> {
    let conflict_id = conflict_id(asked)?;
    let key = key(&parts.headers)?;
    let received = receive(app, &parts.headers, body).await?;
    let print = fingerprint(ROUTE, asked.names, &asked.pairs, &parts.headers, &received.bytes);
    let once = key.map(|key| app.engine.once(&asked.identity, key.as_str(), print));
    let post = match ResolvePost::decode(received.encoding, &received.bytes, app.engine.limits()) {
        Ok(post) => post,
        Err(fault) => {
            if let Some(once) = &once {
                app.engine.is_known(&asked.identity, once, app.now_ms()).await?;
            }
            return Err(fault.into());
        }
    };
    let ResolvePost { resolution, fields, version } = post;
    let request = ResolveConflict { conflict_id, resolution, fields, version };
    let (now_ms, correlation) = (app.now_ms(), asked.correlation);
    let (resolved, replayed) =
        app.engine.resolve_once(&asked.identity, request, once, now_ms, correlation).await?;
    let answer = json(StatusCode::OK, to_json(&resolved));
    if !replayed {
        return Ok(answer);
    }
    app.counts.replays.increment(1);
    Ok(mark_replayed(answer))
}

/// What keys of a decision are told apart by.
const ROUTE: &str = "POST /api/v1/conflicts/{conflict_id}/resolve";

/// The conflict in the path; one that cannot exist is not found.
fn conflict_id(asked: &Asked<'_>) -> Result<ConflictId, Fault> {
    ConflictId::new(asked.name("conflict_id"))
        .map_err(|_| Fault::new(ErrorCode::ConflictNotFound, "there is no such conflict here"))
}
