//! Notifications and whether their user has read them.

use axum::http::StatusCode;
use driftline_engine::Store;
use driftline_protocol::{ListDoc, to_json};

use super::{Asked, cursor_of};
use crate::app::App;
use crate::reply::{Answer, Refusal, json};

pub(super) async fn list<S: Store>(app: &App<S>, asked: &Asked<'_>) -> Result<Answer, Refusal> {
    let unread = asked.pairs.parsed("unread", |text| match text {
        "" | "1" | "true" => Ok(true),
        "0" | "false" => Ok(false),
        _ => Err("must be true or false"),
    })?;
    let before = asked.place(|text| text.parse().ok())?;
    let page =
        app.engine.notices(&asked.identity, unread.unwrap_or(false), before, asked.limit(app)?).await?;
    let list =
        ListDoc { items: page.items, next_cursor: page.next.map(|event| cursor_of(&event.to_string())) };
    Ok(json(StatusCode::OK, to_json(&list)))
}

/// Marks a notification as read; doing so again changes nothing.
pub(super) async fn read<S: Store>(app: &App<S>, asked: &Asked<'_>) -> Result<Answer, Refusal> {
    let id = asked.name("notification_id");
    let doc = app.engine.read_notice(&asked.identity, id, app.now_ms()).await?;
    Ok(json(StatusCode::OK, to_json(&doc)))
}
