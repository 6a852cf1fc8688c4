//! What strategies and reviewers decided.

use axum::http::StatusCode;
use driftline_engine::{AuditEntry, AuditQuery, Store};
use driftline_model::{DeviceId, KindName, RecordId};
use driftline_protocol::{AuditDoc, ItemCode, ListDoc, format_millis, raw_json, to_json};

use super::{Asked, cursor_of};
use crate::app::App;
use crate::reply::{Answer, Refusal, json};

pub(super) async fn list<S: Store>(app: &App<S>, asked: &Asked<'_>) -> Result<Answer, Refusal> {
    let limit = asked.limit(app)?;
    let pairs = &asked.pairs;
    let query = AuditQuery {
        scopes: Vec::new(),
        kinds: pairs.parsed("kind", KindName::new)?.into_iter().collect(),
        id: pairs.parsed("id", RecordId::new)?,
        device: pairs.parsed("device", DeviceId::new)?.map(|device| device.to_string()),
        strategy: pairs.parsed("strategy", strategy)?,
        code: pairs.parsed("code", |text| ItemCode::from_text(text).ok_or("is not a code of items"))?,
        from_ms: pairs.time("from")?,
        until_ms: pairs.time("to")?,
        before: asked.place(|text| text.parse().ok())?,
        // One more than wanted tells whether more wait.
        rows: limit + 1,
    };
    let mut rows = app.engine.audit(&asked.identity, query).await?;
    let more = rows.len() > limit;
    rows.truncate(limit);
    let next = rows.last().filter(|_| more).map(|row| cursor_of(&row.row.audit_id.to_string()));
    let list = ListDoc { items: rows.into_iter().map(audit_doc).collect(), next_cursor: next };
    Ok(json(StatusCode::OK, to_json(&list)))
}

/// A strategy's name; an embedding service may have brought its own strategy.
fn strategy(text: &str) -> Result<String, &'static str> {
    let named = (1..=64).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    if named { Ok(text.to_owned()) } else { Err("is not a strategy's name") }
}

fn audit_doc(entry: AuditEntry) -> AuditDoc {
    let AuditEntry { kind, id, seq, user, n, strategy, correlation, row } = entry;
    AuditDoc {
        audit_id: row.audit_id,
        at: format_millis(row.at_ms),
        kind: kind.to_string(),
        id: id.to_string(),
        version: seq.number(),
        device_id: row.device.device().to_owned(),
        user_id: user.into(),
        op_id: row.op_id.map(|op_id| op_id.to_string()),
        n,
        code: row.code.as_str().to_owned(),
        strategy,
        policy_version: row.policy_version,
        correlation_id: correlation,
        detail: raw_json(&row.detail),
    }
}
