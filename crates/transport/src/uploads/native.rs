//! The native front: chunks in any order.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use driftline_engine::{Finalized, Identity, Joining, NewUpload, Store, UploadRow, UploadStatus};
use driftline_model::UserId;
use driftline_protocol::{
    ChunkDoc, ErrorCode, Fault, FileDoc, RecordRefDoc, UploadDoc, UploadPost, UploadStatusDoc,
    decode_finalize, format_millis, raw_json, to_json,
};
use driftline_uploads::{ContentType, Digest, Form, State, UploadId};

use super::receive::{self, ChunkRequest, chunk, to_its_end, told_bytes};
use super::{Refused, Right, with_status};
use crate::app::App;
use crate::idempotency::{fingerprint, key, mark_replayed};
use crate::rate;
use crate::reply::{Answer, json, nothing};
use crate::request::{Pairs, claims, device, identity, invalid, receive};
use crate::routes::{Names, RouteId};

/// What keys of an opening are told apart by.
const ROUTE: &str = "POST /api/v1/uploads/init";

/// The type under which the opening of uploads has its rate.
pub(super) const INIT: &str = "uploads/init";

/// How long an answer waits for finalizing before it says that it goes on.
pub(super) const FINALIZE: Duration = Duration::from_secs(10);

/// A request of the native front.
struct Asked<'a> {
    parts: Parts,
    pairs: Pairs,
    names: &'a Names,
    correlation: &'a str,
}

/// Has a request answered.
pub(super) async fn answer<S: Store>(
    app: &Arc<App<S>>,
    route: RouteId,
    names: &Names,
    request: Request,
    correlation: &str,
) -> Result<Answer, Refused> {
    let (parts, body) = request.into_parts();
    let pairs = Pairs::of(&parts.uri);
    let asked = Asked { parts, pairs, names, correlation };
    match route {
        RouteId::OpenUpload => open(app, &asked, body).await,
        RouteId::RemoveFile => remove_file(app, &asked).await,
        RouteId::UploadChunk => receive_chunk(app, &asked, body).await,
        RouteId::Upload => {
            let (id, right) = comer(app, &asked).await?;
            let status = app.engine().upload_status(right.by(), id, app.now_ms()).await?;
            Ok(json(StatusCode::OK, to_json(&status_doc(app, &status).await)))
        }
        RouteId::FinalizeUpload => finalize(app, &asked, body).await,
        RouteId::CancelUpload => {
            let (id, right) = comer(app, &asked).await?;
            app.engine().cancel_upload(right.by(), id, app.now_ms()).await?;
            tracing::info!(correlation, upload = %id, "upload cancelled");
            Ok(nothing())
        }
        _ => Err(missing().into()),
    }
}

fn missing() -> Fault {
    Fault::new(ErrorCode::NotFound, "there is no such upload or file here")
}

/// Finds out who asks, as every route does.
pub(super) async fn user<S: Store>(
    app: &App<S>,
    parts: &Parts,
    pairs: &Pairs,
    opens: bool,
) -> Result<Identity, Fault> {
    let claims = claims(app, &parts.headers, pairs)?;
    rate::admit(app, &parts.extensions, (&claims.tenant, &claims.user), false)?;
    if opens {
        rate::admit_type(app, (&claims.tenant, &claims.user), INIT)?;
    }
    let device = device(&claims, pairs.get("device_id"), None)?;
    let identity = identity(app, claims, device).await?;
    app.engine().require_admitted_lately(&identity, app.now_ms()).await?;
    Ok(identity)
}

/// Finds out which upload is meant and by what right: by its own secret, else by the token of its user.
async fn comer<S: Store>(app: &App<S>, asked: &Asked<'_>) -> Result<(UploadId, Right), Fault> {
    let id = named(asked, "upload_id");
    let headers = &asked.parts.headers;
    let own = headers.get("x-upload-token").and_then(|value| value.to_str().ok());
    let told = own.or_else(|| asked.pairs.get("upload_token")).or_else(|| bearer(headers));
    if let (Some(id), Some(told)) = (id, told)
        && app.upload_secret.is(id, told)
    {
        let row = app.engine().upload(driftline_engine::UploadRight::Secret, id).await?;
        // Whoever comes by the secret is counted as the user who opened the upload.
        let owner = owner(&row).ok_or_else(missing)?;
        rate::admit(app, &asked.parts.extensions, (&row.tenant_id, &owner), false)?;
        return Ok((id, Right::Secret));
    }
    let identity = user(app, &asked.parts, &asked.pairs, false).await?;
    Ok((id.ok_or_else(missing)?, Right::User(Box::new(identity))))
}

/// The user who opened an upload, as tokens name users.
fn owner(row: &UploadRow) -> Option<UserId> {
    match row.owner.parse() {
        Ok(number) => Some(UserId::Number(number)),
        Err(_) => UserId::text(&row.owner).ok(),
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// The upload or file in the path; one that cannot exist is none.
fn named(asked: &Asked<'_>, name: &str) -> Option<UploadId> {
    let (_, text) = asked.names.iter().find(|(known, _)| known == name)?;
    text.parse().ok()
}

async fn open<S: Store>(app: &Arc<App<S>>, asked: &Asked<'_>, body: Body) -> Result<Answer, Refused> {
    let Asked { parts, pairs, names, .. } = asked;
    let identity = user(app, parts, pairs, true).await?;
    let key = key(&parts.headers)?;
    let received = receive(app, &parts.headers, body).await.map_err(Box::new)?;
    let print = fingerprint(ROUTE, names, pairs, &parts.headers, &received.bytes);
    let once = key.map(|key| app.engine().once(&identity, key.as_str(), print));
    let post = UploadPost::decode(received.encoding, &received.bytes, app.engine().limits())?;
    let new = NewUpload {
        id: UploadId::of(app.random_u128().to_be_bytes()),
        content_type: content_type(post.content_type.as_deref())?,
        announced: post.sha256.as_deref().map(|text| digest(text, "sha256")).transpose()?,
        file_name: post.file_name,
        size: Some(post.size),
        chunked: true,
        metadata: post.metadata.map(Into::into),
        record: post.record,
        joining: Joining::Alone,
    };
    let task = Arc::clone(app);
    let now_ms = app.now_ms();
    let opened =
        to_its_end(app, async move { task.engine().open_upload(&identity, new, once, now_ms).await })
            .await??;
    let (row, plan) = match opened.row.upload.form {
        Form::Chunks(plan) => (&opened.row, plan),
        Form::Stream { .. } => return Err(missing().into()),
    };
    let doc = UploadDoc {
        upload_id: row.id.to_string(),
        chunk_size: plan.chunk_bytes(),
        total_chunks: plan.chunks(),
        expires_at: format_millis(row.upload.expires_ms),
        upload_token: app.upload_secret.of(row.id),
    };
    let mut answer = json(StatusCode::CREATED, to_json(&doc));
    locate(&mut answer, &format!("/api/v1/uploads/{}", row.id));
    Ok(if opened.replayed { mark_replayed(answer) } else { answer })
}

fn locate(answer: &mut Answer, path: &str) {
    if let Ok(path) = HeaderValue::from_str(path) {
        answer.headers.insert(header::LOCATION, path);
    }
}

fn content_type(told: Option<&str>) -> Result<ContentType, Fault> {
    let read = |text| {
        ContentType::new(text).map_err(|_| invalid("content_type", "is type/subtype, as in image/png"))
    };
    told.map_or_else(|| Ok(ContentType::default()), read)
}

fn digest(text: &str, name: &str) -> Result<Digest, Fault> {
    text.parse().map_err(|_| invalid(name, "is 64 hexadecimal digits"))
}

async fn receive_chunk<S: Store>(
    app: &Arc<App<S>>,
    asked: &Asked<'_>,
    body: Body,
) -> Result<Answer, Refused> {
    let (id, right) = comer(app, asked).await?;
    let index = asked.names.iter().find(|(name, _)| name == "index");
    let index =
        index.and_then(|(_, text)| text.parse().ok().filter(|index: &u64| index.to_string() == *text));
    let headers = &asked.parts.headers;
    let wanted = ChunkRequest {
        id,
        index: index.ok_or_else(missing)?,
        told_bytes: told_bytes(headers)?,
        digest: chunk_digest(headers)?,
    };
    let task = Arc::clone(app);
    let kept = to_its_end(app, async move { chunk(&task, &right, wanted, body).await }).await??;
    let doc = ChunkDoc { index: kept.index, received: kept.received, total_chunks: kept.total_chunks };
    Ok(json(StatusCode::OK, to_json(&doc)))
}

/// Reads the digest of a chunk: `Content-Digest` (RFC 9530), or `X-Chunk-SHA256` in hexadecimal digits.
fn chunk_digest(headers: &HeaderMap) -> Result<Digest, Refused> {
    let bad =
        |message: &str| with_status(Fault::new(ErrorCode::ValidationError, message), StatusCode::BAD_REQUEST);
    let mut told = Vec::new();
    for value in headers.get_all("x-chunk-sha256") {
        let digest = value.to_str().ok().and_then(|text| text.trim().parse().ok());
        told.push(digest.ok_or_else(|| bad("X-Chunk-SHA256 is 64 hexadecimal digits"))?);
    }
    let fields = headers.get_all("content-digest").iter().map(|value| value.to_str().unwrap_or("?"));
    for member in fields.flat_map(|field| field.split(',')).map(str::trim) {
        let Some(value) = member.strip_prefix("sha-256=") else { continue };
        let bytes = value.strip_prefix(':').and_then(|value| value.strip_suffix(':'));
        let bytes = bytes.and_then(|value| STANDARD.decode(value).ok());
        let bytes = bytes.and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
        told.push(Digest::of(bytes.ok_or_else(|| bad("Content-Digest is sha-256=:<base64>:"))?));
    }
    match told.split_first() {
        Some((first, rest)) if rest.iter().all(|other| other == first) => Ok(*first),
        Some(_) => Err(bad("the digests differ")),
        None => {
            let message = "send the chunk's SHA-256 in Content-Digest or X-Chunk-SHA256";
            Err(Fault::new(ErrorCode::DigestMissing, message).into())
        }
    }
}

async fn finalize<S: Store>(app: &Arc<App<S>>, asked: &Asked<'_>, body: Body) -> Result<Answer, Refused> {
    let (id, right) = comer(app, asked).await?;
    let received = receive(app, &asked.parts.headers, body).await.map_err(Box::new)?;
    let claimed = decode_finalize(received.encoding, &received.bytes, app.engine().limits())?;
    let claimed = claimed.as_deref().map(|text| digest(text, "sha256")).transpose()?;
    let row = app.engine().upload(right.by(), id).await?;
    if claimed.or(row.announced).is_none() {
        let message = "tell the file's SHA-256 as sha256, here or when the upload is opened";
        return Err(Fault::new(ErrorCode::DigestMissing, message).into());
    }
    let task = Arc::clone(app);
    let finalizing = to_its_end(app, async move { receive::finalize(&task, right.by(), id, claimed).await });
    let finalized = match tokio::time::timeout(FINALIZE, finalizing).await {
        Ok(finalized) => finalized??,
        Err(_) => Finalized::UnderWay,
    };
    match finalized {
        Finalized::Done(row) => {
            tracing::info!(correlation = asked.correlation, upload = %id, bytes = row.upload.received, "upload done");
            Ok(json(StatusCode::OK, to_json(&file_doc(app, &row).await)))
        }
        Finalized::UnderWay => {
            let right = driftline_engine::UploadRight::Secret;
            let status = app.engine().upload_status(right, id, app.now_ms()).await?;
            let mut answer = json(StatusCode::ACCEPTED, to_json(&status_doc(app, &status).await));
            locate(&mut answer, &format!("/api/v1/uploads/{id}"));
            answer.headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            Ok(answer)
        }
    }
}

async fn remove_file<S: Store>(app: &App<S>, asked: &Asked<'_>) -> Result<Answer, Refused> {
    let identity = user(app, &asked.parts, &asked.pairs, false).await?;
    let id = named(asked, "file_id").ok_or_else(missing)?;
    app.engine().remove_file(&identity, id).await?;
    tracing::info!(correlation = asked.correlation, file = %id, "file removed");
    Ok(nothing())
}

async fn status_doc<S: Store>(app: &App<S>, status: &UploadStatus) -> UploadStatusDoc {
    let row = &status.row;
    let (chunk_size, total_chunks) = match row.upload.form {
        Form::Chunks(plan) => (Some(plan.chunk_bytes()), plan.chunks()),
        Form::Stream { .. } => (None, 0),
    };
    let file = if status.state == State::Done { Some(file_doc(app, row).await) } else { None };
    UploadStatusDoc {
        upload_id: row.id.to_string(),
        state: status.state.as_str().to_owned(),
        received: status.received,
        missing: status.missing.clone(),
        bytes_received: row.upload.received,
        size: row.upload.form.size(),
        chunk_size,
        total_chunks,
        expires_at: format_millis(row.upload.expires_ms),
        error: row.fault.as_deref().map(str::to_owned),
        file,
    }
}

/// Bytes at the beginning of a file by which its type is guessed.
const MAGIC_BYTES: usize = 8 << 10;

async fn file_doc<S: Store>(app: &App<S>, row: &UploadRow) -> FileDoc {
    // Advice is not worth a failure.
    let first = app.engine().read_file(row.id, 0, MAGIC_BYTES).await.unwrap_or_default();
    let detected = infer::get(&first).map(|found| found.mime_type());
    // What came over tus told its metadata in another way.
    let metadata = row.metadata.as_deref().filter(|_| matches!(row.upload.form, Form::Chunks(_)));
    FileDoc {
        file_id: row.id.to_string(),
        size: row.upload.received,
        sha256: row.digest.map(|digest| digest.to_string()).unwrap_or_default(),
        url: format!("/api/v1/files/{}", row.id),
        filename: row.file_name.to_string(),
        content_type: row.content_type.to_string(),
        detected_type: detected.filter(|found| **found != *row.content_type).map(str::to_owned),
        metadata: metadata.map(raw_json),
        record: row
            .record
            .as_ref()
            .map(|(kind, id)| RecordRefDoc { kind: kind.to_string(), id: id.to_string() }),
    }
}
