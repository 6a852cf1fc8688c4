//! Publishing: any event, and the shortcuts for those that everybody needs.

use axum::body::Body;
use axum::http::StatusCode;
use axum::http::request::Parts;
use driftline_engine::{Authority, Outcome, Store};
use driftline_model::DeviceId;
use driftline_protocol::{DrainPost, DrainedDoc, Fault, Publish, Shortcut, has_topics, to_json};

use super::{Asked, missing};
use crate::app::App;
use crate::idempotency::{fingerprint, key, mark_replayed};
use crate::reply::{Answer, Refusal, json};
use crate::request::{Received, receive};
use crate::routes::{Route, RouteId};

/// What keys of an event are told apart by.
const ROUTE: &str = "POST /api/v1/events";

/// Publishes an event.
pub(super) async fn event<S: Store>(
    app: &App<S>,
    asked: &Asked<'_>,
    parts: &Parts,
    body: Body,
) -> Result<Answer, Refusal> {
    let limits = app.engine.limits();
    let read = |received: &Received| Publish::decode(received.encoding, &received.bytes, limits);
    let outcome = publish(app, asked, ROUTE, (parts, body), read).await?;
    Ok(answer(app, StatusCode::ACCEPTED, outcome))
}

/// Publishes the event that a shortcut stands for.
pub(super) async fn shortcut<S: Store>(
    app: &App<S>,
    asked: &Asked<'_>,
    route: Route,
    parts: &Parts,
    body: Body,
) -> Result<Answer, Refusal> {
    let device;
    let shortcut = match route.id {
        RouteId::Broadcast => Shortcut::Broadcast,
        RouteId::SendToUser => Shortcut::ToUser(asked.name("user_id")),
        RouteId::DeviceAlert => Shortcut::DeviceAlert,
        RouteId::LiveMetrics => Shortcut::LiveMetrics,
        RouteId::PerformanceData => Shortcut::PerformanceData,
        RouteId::Notify => Shortcut::Notification,
        _ => {
            device = device_of(asked)?;
            Shortcut::DeviceAction(&device)
        }
    };
    let outcome = tell(app, asked, route, (parts, body), shortcut).await?;
    Ok(answer(app, StatusCode::OK, outcome))
}

/// Publishes what a shortcut makes of a request.
pub(super) async fn tell<S: Store>(
    app: &App<S>,
    asked: &Asked<'_>,
    route: Route,
    request: (&Parts, Body),
    shortcut: Shortcut<'_>,
) -> Result<Outcome, Refusal> {
    let (limits, now_ms) = (app.engine.limits(), app.now_ms());
    let read = |received: &Received| shortcut.read(received.encoding, &received.bytes, limits, now_ms);
    publish(app, asked, &format!("{} {}", route.method, route.path), request, read).await
}

/// The device in the path; one that cannot have a topic is not found.
pub(super) fn device_of(asked: &Asked<'_>) -> Result<DeviceId, Fault> {
    DeviceId::new(asked.name("device_id")).ok().filter(has_topics).ok_or_else(missing)
}

async fn publish<S: Store>(
    app: &App<S>,
    asked: &Asked<'_>,
    route: &str,
    (parts, body): (&Parts, Body),
    read: impl FnOnce(&Received) -> Result<Publish, Fault>,
) -> Result<Outcome, Refusal> {
    let key = key(&parts.headers)?;
    let received = receive(app, &parts.headers, body).await?;
    let print = fingerprint(route, asked.names, &asked.pairs, &parts.headers, &received.bytes);
    let once = key.map(|key| app.engine.once(&asked.identity, key.as_str(), print));
    let publish = match read(&received) {
        Ok(publish) => publish,
        Err(fault) => {
            if let Some(once) = &once {
                app.engine.is_known(&asked.identity, once, app.now_ms()).await?;
            }
            return Err(fault.into());
        }
    };
    let (seed, now_ms) = (app.random_u128(), app.now_ms());
    let published =
        app.engine.publish(&asked.identity, publish, Authority::Roles, once, seed, now_ms, asked.correlation);
    Ok(published.await?)
}

/// Answers with what came of publishing.
pub(super) fn answer<S: Store>(app: &App<S>, status: StatusCode, outcome: Outcome) -> Answer {
    let replayed = outcome.replayed;
    let answer = json(status, to_json(&outcome.published()));
    if !replayed {
        return answer;
    }
    app.counts.replays.increment(1);
    mark_replayed(answer)
}

/// Publishes what other programs wrote into the outbox.
pub(super) async fn drain<S: Store>(app: &App<S>, parts: &Parts, body: Body) -> Result<Answer, Refusal> {
    // A key changes nothing here: no row is published twice. One that is none is refused as anywhere.
    key(&parts.headers)?;
    let received = receive(app, &parts.headers, body).await?;
    let post = DrainPost::decode(received.encoding, &received.bytes, app.engine.limits())?;
    let drained = app.engine.drain_outbox(post.batch).await?;
    let doc = DrainedDoc { processed: drained.processed, failed: drained.failed };
    Ok(json(StatusCode::OK, to_json(&doc)))
}
