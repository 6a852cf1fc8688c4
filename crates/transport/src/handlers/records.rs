//! Stored records.

use axum::http::StatusCode;
use driftline_engine::{Explanation, FieldExplanation, Row, Store};
use driftline_model::{Object, RecordId};
use driftline_protocol::{
    ExplainDoc, ExplainField, ExplainLoss, ListDoc, RecordDoc, plain_name, raw_json, raw_object, to_json,
};

use super::{Asked, cursor_of};
use crate::app::App;
use crate::reply::{Answer, Refusal, json};

pub(super) async fn one<S: Store>(app: &App<S>, asked: &Asked<'_>) -> Result<Answer, Refusal> {
    let row = app.engine.record(&asked.identity, &asked.kind()?, &asked.id()?).await?;
    Ok(json(StatusCode::OK, to_json(&record_doc(&row))))
}

pub(super) async fn list<S: Store>(app: &App<S>, asked: &Asked<'_>) -> Result<Answer, Refusal> {
    let kind = asked.kind()?;
    let after = asked.place(|text| RecordId::new(text).ok())?;
    let limit = asked.limit(app)?;
    let page = app.engine.records(&asked.identity, &kind, after, limit).await?;
    let list = ListDoc {
        items: page.rows.iter().map(record_doc).collect(),
        next_cursor: page.next.map(|id| cursor_of(id.as_str())),
    };
    Ok(json(StatusCode::OK, to_json(&list)))
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

pub(super) async fn explain<S: Store>(app: &App<S>, asked: &Asked<'_>) -> Result<Answer, Refusal> {
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
