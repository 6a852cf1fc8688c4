//! The account of a decision as a JSON document.

use driftline_conflict::{Audit, Existence, FieldDecision, Mark, Record, Rule, Winner};
use driftline_model::{DeviceNo, Hlc, Intents, Seq};
use driftline_protocol::{Resolution, write_json_string, write_number};

use crate::group::{Apply, Resolve};
use crate::review::{ConflictRow, op_name};

/// Writes the account of one decision: the whole input, the clocks and, per field, both values, the winner and
/// the rule. Devices stand as the store's numbers.
#[must_use]
pub fn audit_detail(apply: &Apply, n: u64, audit: &Audit) -> String {
    let mut out = String::with_capacity(256 + apply.fields.as_str().len());
    out.push_str("{\"op\":\"");
    out.push_str(op_name(apply.op));
    out.push_str("\",\"n\":");
    write_number(&mut out, n);
    out.push_str(",\"base_version\":");
    write_number(&mut out, apply.base.number());
    out.push_str(",\"version_before\":");
    write_number(&mut out, audit.version_before.number());
    out.push_str(",\"hlc\":");
    stamp(&mut out, audit.stamp.raw);
    out.push_str(",\"hlc_effective\":");
    stamp(&mut out, Some(audit.stamp.effective));
    out.push_str(if audit.stamp.is_clamped() { ",\"clamped\":true" } else { ",\"clamped\":false" });
    out.push_str(",\"input\":");
    out.push_str(apply.fields.as_str());
    if let Some(intents) = &apply.intents {
        write_intents(&mut out, intents);
    }
    out.push_str(",\"fields\":{");
    for (at, field) in audit.fields.iter().enumerate() {
        if at > 0 {
            out.push(',');
        }
        write_field(&mut out, field);
    }
    out.push('}');
    if let Some(existence) = &audit.existence {
        write_existence(&mut out, existence);
    }
    out.push('}');
    out
}

/// Writes the account of a reviewer's decision: per field what waited and what was stored, and what stands.
pub(crate) fn resolution_detail(row: &ConflictRow, resolve: &Resolve, record: Option<&Record>) -> String {
    let mut out = String::from("{\"op\":\"resolve\",\"conflict_id\":");
    write_json_string(&mut out, row.conflict_id.as_str());
    out.push_str(",\"resolution\":\"");
    out.push_str(resolve.resolution.as_str());
    out.push_str("\",\"wanted\":\"");
    out.push_str(op_name(row.op));
    out.push_str("\",\"version_before\":");
    write_number(&mut out, record.map_or(0, |record| record.version.number()));
    out.push_str(",\"input\":");
    out.push_str(resolve.fields.as_str());
    // Whose values waited, which is not who decides.
    out.push_str(",\"author\":{\"device_no\":");
    device(&mut out, row.device);
    out.push_str(",\"device_id\":");
    write_json_string(&mut out, row.device_key.device());
    out.push_str(",\"op_id\":");
    match &row.op_id {
        Some(op_id) => write_json_string(&mut out, op_id.as_str()),
        None => out.push_str("null"),
    }
    out.push_str("},\"fields\":{");
    let winner = |name: &str, client: &str| match resolve.resolution {
        Resolution::Client => Winner::Client,
        Resolution::Server => Winner::Server,
        // Of the reviewer's own values, one may be that of a side.
        Resolution::Merged => match resolve.fields.get(name) {
            None => Winner::Server,
            Some(value) if value == client => Winner::Client,
            Some(_) => Winner::Merged,
        },
    };
    for (at, (name, client)) in row.client.iter().enumerate() {
        if at > 0 {
            out.push(',');
        }
        let stored = record.and_then(|record| Some((record.fields.get(name)?, record.mark(name)?)));
        let mark = stored.map(|(_, mark)| mark).or(record.map(|record| record.live));
        let none = Mark { fv: Seq::ZERO, hlc: Hlc::ZERO, device: row.device, n: 0 };
        let decision = FieldDecision {
            name: name.into(),
            client: Some(client.into()),
            server: stored.map_or("null", |(value, _)| value).into(),
            server_mark: mark.unwrap_or(none),
            winner: winner(name, client),
            rule: Rule::Manual,
        };
        write_field(&mut out, &decision);
    }
    out.push_str("}}");
    out
}

fn write_intents(out: &mut String, intents: &Intents) {
    if !intents.increments.is_empty() {
        out.push_str(",\"increments\":{");
        for (at, (name, by)) in intents.increments.iter().enumerate() {
            out.push_str(if at > 0 { ",\"" } else { "\"" });
            out.push_str(name);
            out.push_str("\":");
            out.push_str(&by.to_string());
        }
        out.push('}');
    }
    for (name, object) in
        [("previous", &intents.previous), ("add", &intents.add), ("remove", &intents.remove)]
    {
        if !object.is_empty() {
            out.push_str(",\"");
            out.push_str(name);
            out.push_str("\":");
            out.push_str(object.as_str());
        }
    }
    if intents.deescalate {
        out.push_str(",\"deescalate\":true");
    }
}

fn write_field(out: &mut String, field: &FieldDecision) {
    // The name is canonical JSON text already.
    out.push('"');
    out.push_str(&field.name);
    out.push_str("\":{\"client\":");
    match &field.client {
        Some(value) => out.push_str(value),
        None => out.push_str("null,\"client_deletes\":true"),
    }
    out.push_str(",\"server\":");
    out.push_str(&field.server);
    decided(out, field.server_mark, field.winner, field.rule);
    out.push('}');
}

fn write_existence(out: &mut String, existence: &Existence) {
    out.push_str(",\"existence\":{\"deleted\":");
    out.push_str(if existence.deleted { "true" } else { "false" });
    decided(out, existence.server_mark, existence.winner, existence.rule);
    out.push('}');
}

fn decided(out: &mut String, mark: Mark, winner: Winner, rule: Rule) {
    out.push_str(",\"server_mark\":");
    write_mark(out, mark);
    out.push_str(",\"winner\":\"");
    out.push_str(match winner {
        Winner::Client => "client",
        Winner::Server => "server",
        Winner::Merged => "merged",
        Winner::Held => "held",
    });
    out.push_str("\",\"rule\":\"");
    out.push_str(rule.name());
    out.push('"');
}

fn write_mark(out: &mut String, mark: Mark) {
    out.push_str("{\"fv\":");
    write_number(out, mark.fv.number());
    out.push_str(",\"hlc\":");
    stamp(out, Some(mark.hlc));
    out.push_str(",\"device_no\":");
    device(out, mark.device);
    out.push_str(",\"n\":");
    write_number(out, mark.n);
    out.push('}');
}

fn device(out: &mut String, device: DeviceNo) {
    write_number(out, u64::from(device.number()));
}

fn stamp(out: &mut String, hlc: Option<Hlc>) {
    match hlc {
        Some(hlc) => write_json_string(out, &hlc.to_string()),
        None => out.push_str("null"),
    }
}
