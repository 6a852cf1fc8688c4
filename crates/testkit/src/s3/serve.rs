//! The requests of S3 over HTTP/1.1, and its answers.

use std::collections::BTreeMap;
use std::io;
use std::net::TcpListener;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use driftline_protocol::format_millis;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, ETAG, LAST_MODIFIED, RANGE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::sync::oneshot;

use super::BUCKET;
use super::state::{Ask, Fault, ListAsk, Page, Refusal, State, Told};

/// When every object was changed last, as it is told with the object itself; only lists tell the truth.
const CHANGED: &str = "Sun, 22 Nov 2026 08:00:00 GMT";

/// Serves until the other end of the channel is gone.
pub(super) fn run(listener: TcpListener, state: &Arc<Mutex<State>>, ended: oneshot::Receiver<()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime can be made");
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener).expect("it is a listener");
        tokio::select! {
            _ = ended => {}
            () = accept(listener, state) => {}
        }
    });
}

async fn accept(listener: tokio::net::TcpListener, state: &Arc<Mutex<State>>) {
    loop {
        // A connection may be gone before it is accepted.
        let Ok((stream, _)) = listener.accept().await else { continue };
        let state = Arc::clone(state);
        tokio::spawn(async move {
            let served = service_fn(|request| serve(Arc::clone(&state), request));
            // Whoever hangs up ends the connection, and so does a fault.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), served).await;
        });
    }
}

async fn serve(
    state: Arc<Mutex<State>>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, io::Error> {
    let (parts, body) = request.into_parts();
    let Ok(body) = body.collect().await else { return Err(io::Error::other("the body broke off")) };
    let fault = lock(&state).fault();
    match &fault {
        Some(Fault::HangUp) => return Err(io::Error::other("as ordered")),
        Some(Fault::Stall) => return std::future::pending().await,
        Some(Fault::Refuse(status, code)) => return Ok(refusal((*status, code.clone()))),
        Some(Fault::LoseAnswer) | None => {}
    }
    let request = Request::from_parts(parts, body.to_bytes());
    let answer = answer(&mut lock(&state), &request);
    match fault {
        Some(_) => Err(io::Error::other("as ordered")),
        None => Ok(answer),
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn answer(state: &mut State, request: &Request<Bytes>) -> Response<Full<Bytes>> {
    state.asked.push(format!("{} {}", request.method(), request.uri()));
    if !request.headers().contains_key(AUTHORIZATION) {
        return refusal((403, "AccessDenied".to_owned()));
    }
    let path = request.uri().path().trim_start_matches('/');
    let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
    if bucket != BUCKET {
        return refusal((404, "NoSuchBucket".to_owned()));
    }
    if key.is_empty() {
        return match list_ask(request) {
            Some(ask) => list(&ask, &state.list(&ask)),
            None => refusal((501, "NotImplemented".to_owned())),
        };
    }
    let told = understood(request).and_then(|ask| state.answer(key, ask));
    told.map_or_else(refusal, |told| tell(key, told))
}

/// What the tokens of lists begin with: nobody else is to make one.
const TOKEN: &str = "behind ";

/// Reads which keys are to be listed.
fn list_ask(request: &Request<Bytes>) -> Option<ListAsk> {
    let query = request.uri().query().unwrap_or_default();
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let pairs: BTreeMap<_, _> = pairs.map(|(name, value)| (name, decoded(value))).collect();
    if request.method() != Method::GET || pairs.get("list-type").is_none_or(|kind| kind != "2") {
        return None;
    }
    let after = match pairs.get("continuation-token") {
        Some(token) => Some(token.strip_prefix(TOKEN)?.to_owned()),
        None => None,
    };
    Some(ListAsk { prefix: pairs.get("prefix").cloned().unwrap_or_default(), after })
}

/// Decodes a value of a query.
fn decoded(value: &str) -> String {
    let value = value.replace('+', " ");
    let mut parts = value.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let (digits, rest) = part.split_at_checked(2).unwrap_or((part, ""));
        bytes.extend(u8::from_str_radix(digits, 16));
        bytes.extend_from_slice(rest.as_bytes());
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn list(ask: &ListAsk, page: &Page) -> Response<Full<Bytes>> {
    let escaped = |text: &str| text.replace('&', "&amp;").replace('<', "&lt;");
    let objects = page.objects.iter().map(|(key, len, written_ms)| {
        format!(
            "<Contents><Key>{}</Key><LastModified>{}</LastModified><Size>{len}</Size></Contents>",
            escaped(key),
            format_millis(*written_ms)
        )
    });
    let more = page.more.as_ref().map_or_else(String::new, |last| {
        format!("<NextContinuationToken>{TOKEN}{}</NextContinuationToken>", escaped(last))
    });
    xml(&format!(
        "<ListBucketResult><Name>{BUCKET}</Name><Prefix>{}</Prefix><KeyCount>{}</KeyCount>\
         <IsTruncated>{}</IsTruncated>{}{more}</ListBucketResult>",
        escaped(&ask.prefix),
        page.objects.len(),
        page.more.is_some(),
        objects.collect::<String>()
    ))
}

/// Reads what is asked.
fn understood(request: &Request<Bytes>) -> Result<Ask, Refusal> {
    let query = request.uri().query().unwrap_or_default();
    let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let pairs: Vec<_> = pairs.collect();
    let value = |name: &str| pairs.iter().find(|(own, _)| *own == name).map(|(_, value)| *value);
    let body = || request.body().to_vec();
    Ok(match (request.method(), value("uploadId")) {
        (&Method::POST, None) if value("uploads").is_some() => Ask::Create,
        (&Method::POST, Some(upload)) => Ask::Complete(upload.into(), listed(request.body())?),
        (&Method::PUT, Some(upload)) => {
            let number = value("partNumber").and_then(|number| number.parse().ok());
            let number = number.filter(|number| (1..=10_000).contains(number));
            Ask::PutPart(upload.into(), number.ok_or_else(invalid)?, body())
        }
        (&Method::DELETE, Some(upload)) => Ask::Abort(upload.into()),
        (&Method::PUT, None) => Ask::Put(body()),
        (&Method::GET, None) => Ask::Get(range(request)?),
        (&Method::HEAD, None) => Ask::Head,
        (&Method::DELETE, None) => Ask::Delete,
        _ => return Err((501, "NotImplemented".to_owned())),
    })
}

fn invalid() -> Refusal {
    (400, "InvalidArgument".to_owned())
}

/// Reads the parts that an object is to be made of.
fn listed(body: &[u8]) -> Result<Vec<(u32, String)>, Refusal> {
    let body = std::str::from_utf8(body).map_err(|_| invalid())?;
    let parts = body.split("<Part>").skip(1);
    parts
        .map(|part| {
            let number = inside(part, "PartNumber").and_then(|number| number.parse().ok());
            let tag = inside(part, "ETag").map(|tag| tag.replace("&quot;", "\""));
            number.zip(tag).ok_or_else(invalid)
        })
        .collect()
}

fn inside<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    rest.split_once(&format!("</{name}>")).map(|(inside, _)| inside)
}

/// Reads a range with both ends; the last byte counts.
fn range(request: &Request<Bytes>) -> Result<Option<(u64, u64)>, Refusal> {
    let Some(value) = request.headers().get(RANGE) else { return Ok(None) };
    let ends = value.to_str().ok().and_then(|text| text.strip_prefix("bytes=")?.split_once('-'));
    let ends = ends.and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)));
    ends.map(Some).ok_or_else(invalid)
}

fn tell(key: &str, told: Told) -> Response<Full<Bytes>> {
    let answer = Response::builder();
    let answer = match told {
        Told::Created(name) => {
            return xml(&format!(
                "<InitiateMultipartUploadResult><Bucket>{BUCKET}</Bucket><Key>{key}</Key>\
                 <UploadId>{name}</UploadId></InitiateMultipartUploadResult>"
            ));
        }
        Told::Completed(tag) => {
            return xml(&format!(
                "<CompleteMultipartUploadResult><Bucket>{BUCKET}</Bucket><Key>{key}</Key>\
                 <ETag>{tag}</ETag></CompleteMultipartUploadResult>"
            ));
        }
        Told::Put(tag) => answer.header(ETAG, tag).body(Full::default()),
        Told::Head(len, tag) => {
            let answer = answer.header(ETAG, tag).header(LAST_MODIFIED, CHANGED);
            answer.header(CONTENT_LENGTH, len).body(Full::default())
        }
        Told::Bytes { bytes, part, tag } => {
            let answer = answer.header(ETAG, tag).header(LAST_MODIFIED, CHANGED);
            let answer = match part {
                None => answer,
                Some((part, len)) => {
                    let told = format!("bytes {}-{}/{len}", part.start, part.end - 1);
                    answer.status(StatusCode::PARTIAL_CONTENT).header(CONTENT_RANGE, told)
                }
            };
            answer.body(Full::from(bytes))
        }
        Told::Gone => answer.status(StatusCode::NO_CONTENT).body(Full::default()),
    };
    answer.expect("the answer is well-formed")
}

fn refusal((status, code): Refusal) -> Response<Full<Bytes>> {
    // As Amazon does, which tells who asked.
    let mut answer =
        xml(&format!("<Error><Code>{code}</Code><AWSAccessKeyId>told by S3</AWSAccessKeyId></Error>"));
    *answer.status_mut() = StatusCode::from_u16(status).expect("it is a status");
    answer
}

fn xml(text: &str) -> Response<Full<Bytes>> {
    Response::new(Full::from(format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>{text}")))
}
