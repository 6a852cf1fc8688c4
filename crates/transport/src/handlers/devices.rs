//! The registry of devices.

use std::sync::Arc;

use axum::body::Body;
use axum::http::StatusCode;
use axum::http::request::Parts;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use driftline_engine::{
    DeviceAction, DeviceChange, DeviceChanged, DeviceOnce, DeviceQuery, DeviceRow, Once, OnceKey, Store,
    hash_digest,
};
use driftline_idempotency::Fingerprint;
use driftline_model::{DeviceId, DeviceNo};
use driftline_protocol::{
    DeviceDoc, DevicePatch, DevicePost, ErrorCode, Fault, HashChange, ListDoc, format_millis, raw_json,
    to_json,
};

use super::{Asked, cursor_of, missing};
use crate::app::App;
use crate::idempotency::{fingerprint, key, mark_replayed};
use crate::reply::{Answer, Refusal, json, nothing};
use crate::request::receive;

/// What keys of a registration are told apart by.
const ROUTE: &str = "POST /api/v1/devices";

/// The bytes of an issued device hash, before they become text.
const HASH_BYTES: usize = 32;

pub(super) async fn list<S: Store>(app: &App<S>, asked: &Asked<'_>) -> Result<Answer, Refusal> {
    let limit = asked.limit(app)?;
    let query = DeviceQuery {
        owner: asked.pairs.get("owner").map(Box::from),
        device_id: None,
        after: asked.place(|text| text.parse().ok().map(DeviceNo::new))?,
        // One more than wanted tells whether more wait.
        rows: limit + 1,
    };
    let mut rows = app.engine.devices(&asked.identity, query).await?;
    let more = rows.len() > limit;
    rows.truncate(limit);
    let next_cursor = rows.last().filter(|_| more).map(|row| cursor_of(&row.device.number().to_string()));
    let list = ListDoc { items: rows.iter().map(doc).collect(), next_cursor };
    Ok(json(StatusCode::OK, to_json(&list)))
}

pub(super) async fn one<S: Store>(app: &App<S>, asked: &Asked<'_>) -> Result<Answer, Refusal> {
    let row = named(app, asked).await?;
    Ok(json(StatusCode::OK, to_json(&doc(&row))))
}

/// Registers a device.
pub(super) async fn add<S: Store>(
    app: &App<S>,
    asked: &Asked<'_>,
    parts: &Parts,
    body: Body,
) -> Result<Answer, Refusal> {
    let key = key(&parts.headers)?;
    let received = receive(app, &parts.headers, body).await?;
    let print = fingerprint(ROUTE, asked.names, &asked.pairs, &parts.headers, &received.bytes);
    let once = key.map(|key| app.engine.once(&asked.identity, key.as_str(), print));
    let post = match DevicePost::decode(received.encoding, &received.bytes, app.engine.limits()) {
        Ok(post) => post,
        Err(fault) => {
            if let Some(once) = &once {
                app.engine.is_known(&asked.identity, once, app.now_ms()).await?;
            }
            return Err(fault.into());
        }
    };
    let own = asked.identity.user.to_string();
    let owner = post.owner.unwrap_or_else(|| own.clone());
    if (owner != own || post.enabled == Some(false)) && !is_admin(asked) {
        return Err(needs_admin().into());
    }
    // A hash that somebody chose can be guessed, and leads to one device of all tenants: it is for admins to choose.
    if post.device_hash.is_some() && !is_admin(asked) {
        return Err(needs_admin().into());
    }
    let hash = post.device_hash.unwrap_or_else(|| issue(app, asked, once.as_ref()));
    let change = DeviceChange {
        owner: owner.into(),
        device_id: post.device_id,
        action: DeviceAction::Register,
        // Whoever may not disable a device may not enable one either that was disabled before it was removed.
        enabled: post.enabled.filter(|_| is_admin(asked)),
        digest: Some(hash_digest(&hash)),
    };
    let once = once.and_then(remembered);
    let (status, body, replayed) = match app.engine.change_device(&asked.identity, change, once).await? {
        DeviceChanged::Done(row) => (StatusCode::CREATED, with_hash(&to_json(&doc(&row)), &hash), false),
        DeviceChanged::Replayed(answer) => {
            (StatusCode::CREATED, with_hash(&String::from_utf8_lossy(&answer), &hash), true)
        }
        DeviceChanged::Exists(row) => (StatusCode::OK, to_json(&doc(&row)), false),
        _ => return Err(missing().into()),
    };
    if !replayed {
        tracing::info!(correlation = asked.correlation, %status, "device registered");
        return Ok(json(status, body));
    }
    app.counts.replays.increment(1);
    Ok(mark_replayed(json(status, body)))
}

/// Enables or disables a device, or has another device hash lead to it.
pub(super) async fn change<S: Store>(
    app: &App<S>,
    asked: &Asked<'_>,
    parts: &Parts,
    body: Body,
) -> Result<Answer, Refusal> {
    let received = receive(app, &parts.headers, body).await?;
    let patch = DevicePatch::decode(received.encoding, &received.bytes, app.engine.limits())?;
    let row = named(app, asked).await?;
    require_right(asked, &row)?;
    let chosen = matches!(patch.device_hash, HashChange::Set(_));
    if (patch.enabled.is_some() || chosen) && !is_admin(asked) {
        return Err(needs_admin().into());
    }
    let hash = match patch.device_hash {
        HashChange::Keep => None,
        HashChange::Issue => Some(issue(app, asked, None)),
        HashChange::Set(hash) => Some(hash),
    };
    let digest = hash.as_deref().map(hash_digest);
    let change = change_of(&row, DeviceAction::Update, patch.enabled, digest);
    match app.engine.change_device(&asked.identity, change, None).await? {
        DeviceChanged::Done(row) => {
            let body = to_json(&doc(&row));
            tracing::info!(correlation = asked.correlation, "device changed");
            let body = hash.map_or_else(|| body.clone(), |hash| with_hash(&body, &hash));
            Ok(json(StatusCode::OK, body))
        }
        _ => Err(missing().into()),
    }
}

/// Removes a device: no hash leads to it, and it is refused until it is registered again.
pub(super) async fn remove<S: Store>(app: &App<S>, asked: &Asked<'_>) -> Result<Answer, Refusal> {
    let row = named(app, asked).await?;
    require_right(asked, &row)?;
    let change = change_of(&row, DeviceAction::Retire, None, None);
    app.engine.change_device(&asked.identity, change, None).await?;
    tracing::info!(correlation = asked.correlation, "device removed");
    Ok(nothing())
}

fn change_of(
    row: &DeviceRow,
    action: DeviceAction,
    enabled: Option<bool>,
    digest: Option<[u8; 32]>,
) -> DeviceChange {
    DeviceChange { owner: row.owner.clone(), device_id: row.device_id.clone(), action, enabled, digest }
}

/// The device in the path; one that cannot exist is not found.
async fn named<S: Store>(app: &App<S>, asked: &Asked<'_>) -> Result<DeviceRow, Fault> {
    let device_id = DeviceId::new(asked.name("device_id")).map_err(|_| missing())?;
    app.engine.device(&asked.identity, &device_id, asked.pairs.get("owner").map(Box::from)).await
}

fn is_admin(asked: &Asked<'_>) -> bool {
    asked.identity.has_role("admin")
}

/// A device is its owner's to change, and an administrator's.
fn require_right(asked: &Asked<'_>, row: &DeviceRow) -> Result<(), Fault> {
    let own = *row.owner == *asked.identity.user.to_string();
    if own || is_admin(asked) { Ok(()) } else { Err(needs_admin()) }
}

fn needs_admin() -> Fault {
    Fault::new(ErrorCode::Forbidden, "the role admin is needed")
}

/// Issues a device hash. Under a key it is made of the key and a secret of the store, so that a resend is told the same
/// one though it is kept nowhere.
fn issue<S: Store>(app: &App<S>, asked: &Asked<'_>, once: Option<&Once>) -> String {
    let mut bytes = [0; HASH_BYTES];
    match once.map(|once| (&once.key, once.fingerprint)) {
        Some((OnceKey::Request { owner, key }, print)) => {
            let mut builder = Fingerprint::builder("issued device hash");
            builder.bytes(&app.engine.store().cursor_secret());
            builder.text(asked.identity.tenant_id.as_str()).text(owner).text(key).bytes(print.as_bytes());
            bytes.copy_from_slice(builder.finish().as_bytes());
        }
        _ => app.random.fill(&mut bytes),
    }
    URL_SAFE_NO_PAD.encode(bytes)
}

/// What is remembered of a registration: its answer without the device hash.
fn remembered(once: Once) -> Option<DeviceOnce> {
    let Once { key: OnceKey::Request { owner, key }, fingerprint, window_ms } = once else { return None };
    let answer = Arc::new(|row: &DeviceRow| to_json(&doc(row)).into_bytes());
    Some(DeviceOnce { owner, key, fingerprint, window_ms, answer })
}

/// Tells the device hash, once, before everything else of the device.
fn with_hash(doc: &str, hash: &str) -> String {
    let rest = doc.strip_prefix('{').unwrap_or(doc);
    format!("{{\"device_hash\":{},{rest}", to_json(&hash))
}

fn doc(row: &DeviceRow) -> DeviceDoc {
    let status = match (row.online, &row.status) {
        (false, _) => "offline",
        (true, Some(own)) => own,
        (true, None) => "online",
    };
    DeviceDoc {
        device_id: row.device_id.to_string(),
        owner: row.owner.to_string(),
        enabled: row.enabled,
        has_device_hash: row.hashed,
        device_hash: None,
        status: status.to_owned(),
        last_seen_at: format_millis(row.last_seen_ms),
        created_at: format_millis(row.created_ms),
        report: row.report.as_deref().map(raw_json),
    }
}
