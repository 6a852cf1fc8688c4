//! The front of tus 1.0 (<https://tus.io/protocols/resumable-upload>), with all its extensions.
//!
//! The URL of an upload holds its secret, so that whoever has it needs no token to go on: a token that expired in a tunnel
//! must not cost an upload.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use axum::body::Body;
use axum::extract::Request;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};
use driftline_engine::{Finalized, Identity, Joining, NewUpload, Store, UploadRow};
use driftline_model::{KindName, RecordId};
use driftline_protocol::{ErrorCode, Fault};
use driftline_uploads::{ContentType, Form, State, UploadId};
use hyper::body::Body as _;

use super::headers::{Concat, Metadata, checksum, last_segment, number, only, wrong};
use super::receive::{self, Checksum, StreamRequest, stream, to_its_end, told_bytes, wait_for_quiet};
use super::{Refused, Right, native, with_status};
use crate::app::App;
use crate::negotiate::Wishes;
use crate::reply::refused;
use crate::request::Pairs;
use crate::routes::{Names, RouteId};

const VERSION: HeaderValue = HeaderValue::from_static("1.0.0");
const EXTENSIONS: HeaderValue = HeaderValue::from_static(
    "creation,creation-with-upload,creation-defer-length,termination,checksum,expiration,concatenation",
);
const BYTES: &str = "application/offset+octet-stream";

/// The lines in which metadata and the parts of a concatenation are kept, both as the client told them.
const LINES: char = '\n';

/// How long after a file could not be made it is tried again because somebody asks for the offset, in milliseconds. It may be
/// read for that, and looked at, and nobody counts how often a client asks. Clients come again for ten seconds or so. One that a
/// crash left in the middle is gone on with at once.
const AGAIN_MS: u64 = 5_000;

/// Tells what is spoken here.
pub(super) async fn options<S: Store>(app: &App<S>) -> Response<Body> {
    let mut response = empty(StatusCode::NO_CONTENT);
    let headers = response.headers_mut();
    // Where uploads come in chunks only, nothing can be created here.
    if let Some(rules) = app.engine().upload_rules().filter(|_| app.engine().takes_streams()) {
        headers.insert("tus-version", VERSION);
        headers.insert("tus-extension", EXTENSIONS);
        headers.insert("tus-checksum-algorithm", HeaderValue::from_static(Checksum::NAMES));
        headers.insert("tus-max-size", rules.size_max.into());
    }
    spoken(&mut response);
    response
}

/// Has a request answered.
pub(super) async fn answer<S: Store>(
    app: &Arc<App<S>>,
    route: RouteId,
    names: &Names,
    request: Request,
    correlation: &str,
    wishes: Wishes,
) -> Response<Body> {
    let overridden = request.headers().get("x-http-method-override");
    let overridden = overridden.is_some_and(|method| method.as_bytes().eq_ignore_ascii_case(b"HEAD"));
    let is_head = request.method() == Method::HEAD || overridden;
    let answered = match require_version(request.headers()) {
        Ok(()) if route == RouteId::TusCreate => create(app, request).await,
        Ok(()) => upload(app, names, request).await,
        Err(refusal) => Err(refusal),
    };
    let mut response = match answered {
        Ok(response) => response,
        Err(refusal) => {
            let refusal = match route {
                _ if is_head => sacred(refusal),
                RouteId::TusUpload => patient(refusal),
                // It was created, and its bytes are refused.
                _ if refusal.headers.contains_key(header::LOCATION) => patient(refusal),
                _ => refusal,
            };
            let unknown = refusal.status == Some(StatusCode::PRECONDITION_FAILED.as_u16());
            let mut response = refused(*refusal, correlation).respond(wishes).await;
            if unknown {
                response.headers_mut().insert("tus-version", VERSION);
            }
            response
        }
    };
    spoken(&mut response);
    response
}

/// A client throws its upload away when it is refused to learn the offset, unless it is told to ask again. It is to do so only
/// where there is no upload any more, or none that it may have.
fn sacred(mut refusal: Refused) -> Refused {
    let gone = [ErrorCode::NotFound, ErrorCode::UploadGone, ErrorCode::ValidationError];
    if !gone.contains(&refusal.fault.code) {
        refusal.status = Some(StatusCode::LOCKED.as_u16());
    }
    refusal
}

/// A client gives up over every refusal of its own fault but 409 and 423: what passes by itself is told as the latter.
fn patient(mut refusal: Refused) -> Refused {
    if matches!(refusal.fault.code, ErrorCode::HeartbeatTimeout | ErrorCode::RateLimited) {
        refusal.status = Some(StatusCode::LOCKED.as_u16());
    }
    refusal
}

/// Says which version is spoken, and that no answer is to be kept.
pub(super) fn spoken(response: &mut Response<Body>) {
    let headers = response.headers_mut();
    headers.insert("tus-resumable", VERSION);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
}

fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

fn require_version(headers: &HeaderMap) -> Result<(), Refused> {
    if only(headers, "tus-resumable").is_ok_and(|told| told == Some("1.0.0")) {
        return Ok(());
    }
    let fault = Fault::new(ErrorCode::ValidationError, "Tus-Resumable: 1.0.0 is spoken here");
    Err(with_status(fault, StatusCode::PRECONDITION_FAILED))
}

/// What a client wants to create.
struct Creation<'a> {
    metadata: Metadata,
    told: Option<&'a str>,
    size: Option<u64>,
    concat: Option<Concat<'a>>,
    parts: Option<&'a str>,
}

impl<'a> Creation<'a> {
    fn read(headers: &'a HeaderMap) -> Result<Self, Refused> {
        let bad = |fault| with_status(fault, StatusCode::BAD_REQUEST);
        let told = only(headers, "upload-metadata").map_err(bad)?.filter(|text| !text.is_empty());
        let metadata = Metadata::read(told.unwrap_or_default()).map_err(bad)?;
        let parts = only(headers, "upload-concat").map_err(bad)?;
        let concat = parts.map(Concat::read).transpose().map_err(bad)?;
        let size = number(headers, "upload-length").map_err(bad)?;
        let deferred = match only(headers, "upload-defer-length").map_err(bad)? {
            None => false,
            Some("1") => true,
            Some(_) => return Err(bad(wrong("Upload-Defer-Length", "is 1"))),
        };
        let whole = matches!(concat, Some(Concat::Whole(_)));
        if (whole && (size.is_some() || deferred)) || (!whole && size.is_some() == deferred) {
            let message =
                "Upload-Length, Upload-Defer-Length: 1 or Upload-Concat: final has to be there, and one only";
            return Err(bad(Fault::new(ErrorCode::ValidationError, message)));
        }
        Ok(Self { metadata, told, size, concat, parts })
    }

    fn upload(&self, id: UploadId) -> NewUpload {
        let name = self.metadata.text(&["filename", "name"]).unwrap_or_default().to_owned();
        let content_type = self.metadata.text(&["filetype", "type", "contentType", "content_type"]);
        let record = self.metadata.text(&["record_kind"]).zip(self.metadata.text(&["record_id"]));
        let joining = match self.concat {
            None => Joining::Alone,
            Some(Concat::Part) => Joining::Part,
            Some(Concat::Whole(_)) => Joining::Whole,
        };
        let lines = match (self.told, self.parts.filter(|_| joining == Joining::Whole)) {
            (None, None) => None,
            (told, None) => told.map(str::to_owned),
            (told, Some(parts)) => Some(format!("{}{LINES}{parts}", told.unwrap_or_default())),
        };
        NewUpload {
            id,
            file_name: name,
            // What a page says that it does not know, it may say in many ways.
            content_type: content_type.and_then(|text| ContentType::new(text).ok()).unwrap_or_default(),
            size: self.size,
            chunked: false,
            announced: None,
            metadata: lines.map(Into::into),
            record: record.and_then(|(kind, id)| Some((KindName::new(kind).ok()?, RecordId::new(id).ok()?))),
            joining,
        }
    }
}

async fn create<S: Store>(app: &Arc<App<S>>, request: Request) -> Result<Response<Body>, Refused> {
    let (parts, body) = request.into_parts();
    let pairs = Pairs::of(&parts.uri);
    let identity = native::user(app, &parts, &pairs, true).await?;
    if !app.engine().takes_streams() {
        let message = "this server takes uploads in chunks only: see POST /api/v1/uploads/init";
        return Err(Fault::new(ErrorCode::NotFound, message).into());
    }
    let creation = Creation::read(&parts.headers)?;
    if body.size_hint().exact().is_some_and(|bytes| bytes > 0) {
        if matches!(creation.concat, Some(Concat::Whole(_))) {
            return Err(Fault::new(ErrorCode::Forbidden, "a concatenation takes no bytes").into());
        }
        if !brings_bytes(&parts.headers) {
            return Err(Fault::new(ErrorCode::UnsupportedMediaType, format!("send {BYTES}")).into());
        }
    }
    let new = creation.upload(UploadId::of(app.random_u128().to_be_bytes()));
    let mut row = match &creation.concat {
        Some(Concat::Whole(places)) => return concatenate(app, identity, new, places).await,
        _ => {
            let (task, now_ms) = (Arc::clone(app), app.now_ms());
            let opened =
                to_its_end(app, async move { task.engine().open_upload(&identity, new, None, now_ms).await });
            opened.await??.row
        }
    };
    let mut response = empty(StatusCode::CREATED);
    let path = format!("/files/{}", app.upload_secret.segment(row.id));
    set(&mut response, header::LOCATION, &path);
    if brings_bytes(&parts.headers) {
        let came = append(app, row.id, 0, &parts, body).await.map_err(|refusal| placed(refusal, &path))?;
        response.headers_mut().insert("upload-offset", came.upload.received.into());
        expires(&mut response, &came);
        return Ok(response);
    }
    if row.upload.is_whole() {
        row.upload.state = later(finish(app, &row).await, &row).map_err(|refusal| placed(refusal, &path))?;
    }
    expires(&mut response, &row);
    Ok(response)
}

/// Returns which upload is at a place.
fn id_at<S: Store>(app: &App<S>, place: &str) -> Option<UploadId> {
    last_segment(place).and_then(|segment| app.upload_secret.open(segment))
}

/// Returns the parts of which an upload is made, as its client told them.
pub(super) fn parts_of<S: Store>(app: &App<S>, row: &UploadRow) -> Vec<UploadId> {
    let (_, told) = row.metadata.as_deref().and_then(|lines| lines.split_once(LINES)).unwrap_or_default();
    match Concat::read(told) {
        Ok(Concat::Whole(places)) => places.into_iter().filter_map(|place| id_at(app, place)).collect(),
        _ => Vec::new(),
    }
}

/// Makes one upload of several, and a file of it. Its client may ask for it again when it heard no answer.
async fn concatenate<S: Store>(
    app: &Arc<App<S>>,
    identity: Identity,
    new: NewUpload,
    places: &[&str],
) -> Result<Response<Body>, Refused> {
    let parts: Option<Vec<UploadId>> = places.iter().map(|place| id_at(app, place)).collect();
    let parts =
        parts.ok_or_else(|| Fault::new(ErrorCode::NotFound, "a part of the concatenation is not there"))?;
    let task = Arc::clone(app);
    let joined = to_its_end(app, async move {
        let row = receive::join(&task, &identity, new, &parts).await?;
        let finished = finish(&task, &row).await;
        Ok::<_, Refused>((row, finished))
    });
    let (mut row, finished) = joined.await??;
    let mut response = empty(StatusCode::CREATED);
    let path = format!("/files/{}", app.upload_secret.segment(row.id));
    set(&mut response, header::LOCATION, &path);
    row.upload.state = later(finished, &row).map_err(|refusal| placed(refusal, &path))?;
    expires(&mut response, &row);
    Ok(response)
}

/// Says where an upload is also with a refusal: whatever becomes of its bytes, its client goes on there.
fn placed(mut refusal: Refused, path: &str) -> Refused {
    if let Ok(place) = HeaderValue::from_str(path) {
        refusal.headers.insert(header::LOCATION, place);
    }
    refusal
}

/// Takes what may be tried again for done: it is finished when its client asks for the offset.
fn later(finished: Result<State, Refused>, row: &UploadRow) -> Result<State, Refused> {
    match finished {
        Err(refusal) if refusal.fault.code.is_retryable() => {
            tracing::warn!(upload = %row.id, detail = %refusal.fault.message, "finishing waits");
            Ok(State::Open)
        }
        finished => finished,
    }
}

fn brings_bytes(headers: &HeaderMap) -> bool {
    let told = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    told.is_some_and(|told| told.eq_ignore_ascii_case(BYTES))
}

/// What is asked of an upload; a client that cannot send a method says it in a header.
fn method(parts: &Parts) -> Result<Method, Refused> {
    if parts.method != Method::POST {
        return Ok(parts.method.clone());
    }
    let told = only(&parts.headers, "x-http-method-override")?;
    let told = told.and_then(|name| Method::from_bytes(name.to_ascii_uppercase().as_bytes()).ok());
    let known = told.filter(|told| [Method::PATCH, Method::DELETE, Method::HEAD].contains(told));
    known.ok_or_else(|| {
        let fault = Fault::new(ErrorCode::MethodNotAllowed, "POST is not a method of an upload");
        Box::new(
            crate::reply::Refusal::from(fault).with_header(header::ALLOW, "HEAD, PATCH, DELETE, OPTIONS"),
        )
    })
}

async fn upload<S: Store>(
    app: &Arc<App<S>>,
    names: &Names,
    request: Request,
) -> Result<Response<Body>, Refused> {
    let (parts, body) = request.into_parts();
    let method = method(&parts)?;
    let segment = names.iter().find(|(name, _)| name == "upload").map_or("", |(_, value)| value);
    let id = app.upload_secret.open(segment);
    let id = id.ok_or_else(|| Fault::new(ErrorCode::NotFound, "there is no such upload here"))?;
    // What comes in chunks is no upload over tus, whoever has its secret.
    let row = app.engine().upload(Right::Secret.by(), id).await?;
    if matches!(row.upload.form, Form::Chunks(_)) {
        return Err(Fault::new(ErrorCode::NotFound, "there is no such upload here").into());
    }
    if method == Method::HEAD {
        return head(app, id).await;
    }
    if method == Method::DELETE {
        app.engine().terminate_upload(Right::Secret.by(), id, app.now_ms()).await?;
        return Ok(empty(StatusCode::NO_CONTENT));
    }
    if !brings_bytes(&parts.headers) {
        return Err(Fault::new(ErrorCode::UnsupportedMediaType, format!("send {BYTES}")).into());
    }
    let bad = |fault| with_status(fault, StatusCode::BAD_REQUEST);
    let offset = number(&parts.headers, "upload-offset").map_err(bad)?;
    let offset = offset.ok_or_else(|| bad(wrong("Upload-Offset", "is required")))?;
    let row = append(app, id, offset, &parts, body).await?;
    let mut response = empty(StatusCode::NO_CONTENT);
    response.headers_mut().insert("upload-offset", row.upload.received.into());
    expires(&mut response, &row);
    Ok(response)
}

async fn head<S: Store>(app: &Arc<App<S>>, id: UploadId) -> Result<Response<Body>, Refused> {
    wait_for_quiet(app, id).await?;
    let row = app.engine().upload(Right::Secret.by(), id).await?;
    let state = row.upload.state_at(app.now_ms());
    // A client that did not hear of the whole asks for its parts first, and sends all of them again if they are gone.
    if matches!(state, State::Cancelled | State::Expired) && !row.was_joined() {
        return Err(Fault::new(ErrorCode::UploadGone, format!("the upload is {}", state.as_str())).into());
    }
    // Who asks for the offset of a whole upload was not told that it is a file, or it is none yet: nobody may be at it any
    // more, where a crash ended that. It is not waited for longer than its client waits for an answer: it goes on.
    if matches!(state, State::Open | State::Finalizing) && row.upload.is_whole() {
        let is_due = state == State::Finalizing || row.changed_ms.saturating_add(AGAIN_MS) <= app.now_ms();
        if let Some(fault) = row.fault.as_deref().filter(|_| !is_due) {
            return Err(Fault::new(ErrorCode::StoreUnavailable, fault).into());
        }
        let finished = tokio::time::timeout(native::FINALIZE, finish(app, &row)).await;
        finished.unwrap_or(Ok(State::Finalizing))?;
    }
    let mut response = empty(StatusCode::OK);
    let headers = response.headers_mut();
    headers.insert("upload-offset", row.upload.received.into());
    match row.upload.form.size() {
        Some(size) => headers.insert("upload-length", size.into()),
        None => headers.insert("upload-defer-length", HeaderValue::from_static("1")),
    };
    let told = row.metadata.as_deref().unwrap_or_default();
    let (metadata, parts) = told.split_once(LINES).unwrap_or((told, ""));
    if !metadata.is_empty() {
        set(&mut response, HeaderName::from_static("upload-metadata"), metadata);
    }
    match row.joining {
        Joining::Alone => {}
        Joining::Part => set(&mut response, HeaderName::from_static("upload-concat"), "partial"),
        Joining::Whole => set(&mut response, HeaderName::from_static("upload-concat"), parts),
    }
    if state == State::Open {
        expires(&mut response, &row);
    }
    Ok(response)
}

/// Goes on with an upload, and finishes it when all of it is there.
async fn append<S: Store>(
    app: &Arc<App<S>>,
    id: UploadId,
    offset: u64,
    parts: &Parts,
    body: Body,
) -> Result<UploadRow, Refused> {
    let bad = |fault| with_status(fault, StatusCode::BAD_REQUEST);
    let told = told_bytes(&parts.headers)?.or_else(|| body.size_hint().exact());
    let (row, checksum) =
        (app.engine().upload(Right::Secret.by(), id).await?, parts.headers.get("upload-checksum"));
    if row.joining == Joining::Whole {
        return Err(Fault::new(ErrorCode::Forbidden, "a concatenation takes no bytes").into());
    }
    let checksum = match checksum {
        None => None,
        Some(_) => {
            let (name, wanted) = checksum_of(&parts.headers).map_err(bad)?;
            let checksum = Checksum::new(&name, wanted);
            Some(checksum.ok_or_else(|| bad(wrong("Upload-Checksum", "is of sha1 or sha256")))?)
        }
    };
    let size = number(&parts.headers, "upload-length").map_err(bad)?;
    let size = size.filter(|_| row.upload.form.size().is_none() || row.upload.form.size() != size);
    let wanted = StreamRequest { id, offset, told_bytes: told, size, checksum };
    let task = Arc::clone(app);
    let came = to_its_end(app, async move {
        let mut row = stream(&task, &Right::Secret, wanted, body).await?;
        if row.upload.is_whole() && row.upload.state == State::Open {
            row.upload.state = finish(&task, &row).await?;
        }
        Ok::<_, Refused>(row)
    });
    came.await?
}

fn checksum_of(headers: &HeaderMap) -> Result<(String, Vec<u8>), Fault> {
    let text = only(headers, "upload-checksum")?.unwrap_or_default();
    checksum(text).map(|(name, wanted)| (name.to_owned(), wanted))
}

/// Makes a file of an upload of which all bytes are there, unless it is a part of one.
///
/// Gives the state in which it is then.
async fn finish<S: Store>(app: &Arc<App<S>>, row: &UploadRow) -> Result<State, Refused> {
    if row.joining == Joining::Part {
        return Ok(row.upload.state);
    }
    let (task, id) = (Arc::clone(app), row.id);
    let finalized =
        to_its_end(app, async move { receive::finalize(&task, Right::Secret.by(), id, None).await });
    match finalized.await?? {
        Finalized::Done(row) => {
            tracing::info!(upload = %id, bytes = row.upload.received, "upload done");
            Ok(State::Done)
        }
        Finalized::UnderWay => Ok(State::Finalizing),
    }
}

fn set(response: &mut Response<Body>, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

/// Tells when the upload goes (RFC 9110 §5.6.7).
fn expires(response: &mut Response<Body>, row: &UploadRow) {
    if row.upload.state == State::Open {
        let at = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_millis(row.upload.expires_ms));
        set(response, HeaderName::from_static("upload-expires"), &at);
    }
}
