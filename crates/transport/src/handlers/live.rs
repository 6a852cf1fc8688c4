//! What is live: connections, who listens to what, and who got which event.

use axum::http::StatusCode;
use driftline_engine::{Identity, STAFF_ROLES, Store};
use driftline_model::DeviceId;
use driftline_protocol::{
    ErrorCode, EventPlace, Fault, ListDoc, PresenceDoc, PresentUser, SessionDoc, TicketDoc, to_json,
};

use super::{Asked, cursor_of, missing};
use crate::app::App;
use crate::auth::Claims;
use crate::reply::{Answer, Refusal, json, nothing};
use crate::request::invalid;
use crate::tickets::TICKET_MS;

/// Counts what is connected to this node.
pub(super) fn stats<S: Store>(app: &App<S>, asked: &Asked<'_>) -> Answer {
    let subscriptions = app.engine.subscriptions(&asked.identity);
    let stats = app.sessions.stats(asked.identity.tenant, subscriptions, app.now_ms());
    json(StatusCode::OK, to_json(&stats))
}

/// Lists connections: all of the tenant for administrators, else the user's own.
pub(super) fn sessions<S: Store>(app: &App<S>, asked: &Asked<'_>) -> Result<Answer, Fault> {
    let limit = asked.limit(app)?;
    let own = asked.identity.user.to_string();
    let user = if asked.identity.has_role("admin") { asked.pairs.get("user") } else { Some(own.as_str()) };
    let after = asked.place(|text| Some(text.to_owned()))?;
    // One more than wanted tells whether more wait.
    let found = app.sessions.list(asked.identity.tenant, user, after.as_deref(), limit + 1);
    let items: Vec<SessionDoc> = found.iter().take(limit).map(|session| session.doc()).collect();
    let last = items.last().filter(|_| found.len() > limit);
    let next_cursor = last.map(|session| cursor_of(&session.connection_id));
    Ok(json(StatusCode::OK, to_json(&ListDoc { items, next_cursor })))
}

/// Ends a connection. Its client may come back.
pub(super) fn disconnect<S: Store>(app: &App<S>, asked: &Asked<'_>) -> Result<Answer, Fault> {
    let found = app.sessions.find(asked.identity.tenant, asked.name("connection_id"));
    found.ok_or_else(missing)?.disconnect.notify_one();
    tracing::info!(correlation = asked.correlation, "a connection is ended by an administrator");
    Ok(nothing())
}

/// Issues a ticket.
pub(super) fn ticket<S: Store>(app: &App<S>, claims: &Claims) -> Answer {
    let ticket = app.tickets.seal(claims, app.random_u128(), app.now_ms());
    json(StatusCode::CREATED, to_json(&TicketDoc { ticket, expires_in_s: TICKET_MS / 1000 }))
}

/// Tells who listens to a topic, to whoever may listen to it.
pub(super) async fn presence<S: Store>(app: &App<S>, asked: &Asked<'_>) -> Result<Answer, Refusal> {
    let topic = asked.name("topic");
    app.engine.require_audience(&asked.identity, topic).await?;
    let present = app.engine.present(&asked.identity, topic);
    let users = present.iter().map(|(user, connections)| PresentUser {
        user_id: if user.is_empty() { "anonymous".to_owned() } else { user.to_string() },
        connections: *connections,
    });
    let doc =
        PresenceDoc { topic: topic.to_owned(), users: users.collect(), connections: present.values().sum() };
    Ok(json(StatusCode::OK, to_json(&doc)))
}

/// Tells whether a device got an event, or why not.
pub(super) async fn delivery<S: Store>(app: &App<S>, asked: &Asked<'_>) -> Result<Answer, Refusal> {
    let device = asked.pairs.get("device").filter(|device| !device.is_empty());
    let device = device.ok_or_else(|| invalid("device", "is required"))?;
    let device = DeviceId::new(device).map_err(|_| missing())?;
    let place = EventPlace::parse(asked.name("event_id")).ok_or_else(no_event)?;
    let row = app.engine.device(&asked.identity, &device, asked.pairs.get("owner").map(Box::from)).await?;
    if *row.owner != *asked.identity.user.to_string() && !is_staff(&asked.identity) {
        return Err(missing().into());
    }
    let doc = app.engine.delivery(&asked.identity, place, &row).await?;
    Ok(json(StatusCode::OK, to_json(&doc)))
}

fn no_event() -> Fault {
    Fault::new(ErrorCode::NotFound, "there is no such event")
}

fn is_staff(identity: &Identity) -> bool {
    STAFF_ROLES.iter().any(|role| identity.has_role(role))
}
