//! Stored records.

use axum::body::Body;
use axum::http::{Response, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use driftline_engine::{Explanation, FieldExplanation, Row, Store};
use driftline_model::{Object, RecordId};
use driftline_protocol::{
    ErrorCode, ExplainDoc, ExplainField, ExplainLoss, Fault, ListDoc, RecordDoc, plain_name, raw_json,
    raw_object, to_json,
};

use super::Asked;
use crate::app::App;
use crate::reply::{Refusal, json};

pub(super) async fn one<S: Store>(app: &App<S>, asked: &Asked<'_>) -> Result<Response<Body>, Refusal> {
    let row = app.engine.record(&asked.identity, &asked.kind()?, &asked.id()?).await?;
    Ok(json(StatusCode::OK, to_json(&record_doc(&row))))
}

/// Rows of a page unless the caller asks otherwise.
const LIMIT: u64 = 100;

pub(super) async fn list<S: Store>(app: &App<S>, asked: &Asked<'_>) -> Result<Response<Body>, Refusal> {
    let kind = asked.kind()?;
    let after = asked.pairs.get("cursor").map(read_cursor).transpose()?;
    let limit = usize::try_from(asked.pairs.number("limit")?.unwrap_or(LIMIT)).unwrap_or(usize::MAX);
    let page = app.engine.records(&asked.identity, &kind, after, limit).await?;
    let list = ListDoc {
        items: page.rows.iter().map(record_doc).collect(),
        next_cursor: page.next.map(|id| URL_SAFE_NO_PAD.encode(id.as_str())),
    };
    Ok(json(StatusCode::OK, to_json(&list)))
}

fn read_cursor(text: &str) -> Result<RecordId, Fault> {
    let id = URL_SAFE_NO_PAD.decode(text).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let id = id.and_then(|id| RecordId::new(&id).ok());
    id.ok_or_else(|| Fault::new(ErrorCode::CursorInvalid, "the cursor is not one of this list"))
}

fn record_doc(row: &Row) -> RecordDoc {
    RecordDoc {
        kind: row.kind.to_string(),
        id: row.id.to_string(),
        scope: row.scope.to_string(),
        owner: row.owner.to_string(),
        version: row.record.version.number(),
        deleted: row.deleted,
        fields: if row.deleted { raw_object(&Object::empty()) } else { raw_object(&row.record.fields) },
    }
}

pub(super) async fn explain<S: Store>(app: &App<S>, asked: &Asked<'_>) -> Result<Response<Body>, Refusal> {
    let explanation = app.engine.explain(&asked.identity, &asked.kind()?, &asked.id()?).await?;
    Ok(json(StatusCode::OK, to_json(&explain_doc(explanation))))
}

fn explain_doc(explanation: Explanation) -> ExplainDoc {
    let fields = explanation.fields.into_iter().map(|field| (plain_name(&field.name), explain_field(field)));
    ExplainDoc {
        kind: explanation.kind,
        id: explanation.id,
        version: explanation.version.number(),
        deleted: explanation.deleted,
        fields: fields.collect(),
    }
}

fn explain_field(field: FieldExplanation) -> ExplainField {
    let lost = field.lost.into_iter().map(|lost| ExplainLoss {
        value: raw_json(&lost.value),
        hlc: lost.hlc,
        device_id: lost.device_id,
        op_id: lost.op_id,
        audit_id: lost.audit_id,
    });
    ExplainField {
        value: raw_json(&field.value),
        fv: field.fv.number(),
        hlc: field.hlc.to_string(),
        device_id: field.device_id,
        rule: field.rule,
        policy_version: field.policy_version,
        op_id: field.op_id,
        lost: lost.collect(),
    }
}
