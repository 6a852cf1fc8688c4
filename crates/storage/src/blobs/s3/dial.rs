//! How S3 is asked, and what its refusals mean.

use std::error::Error as StdError;
use std::time::Duration;

use async_trait::async_trait;
use driftline_engine::BlobError;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
};
use reqwest::{Method, StatusCode};
use thiserror::Error;

use super::options::{S3Error, S3Options};
use crate::tls;

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(5);

/// How long S3 may take to put an object together: Amazon speaks of minutes.
pub(super) const COMPLETE: Duration = Duration::from_secs(120);

/// How fast bytes go at least: so many a second are waited for.
const BYTES_PER_SECOND: u64 = 1 << 20;

/// Returns how long so many bytes may take, beside the answer.
pub(super) fn travel(bytes: u64) -> Duration {
    Duration::from_secs(bytes / BYTES_PER_SECOND)
}

/// A client of HTTP that uses the crypto library of this project, knows how long anything may take, and makes errors of
/// refusals. It asks once; whoever holds it asks again.
#[derive(Debug, Clone)]
pub(super) struct Dial {
    client: reqwest::Client,
    timeout: Duration,
}

impl Dial {
    pub(super) fn new(options: &S3Options) -> Result<Self, S3Error> {
        let unmade = |error: &dyn StdError| S3Error::Client(error.to_string());
        let tls = tls::client_config(tls::native_roots()).map_err(|error| unmade(&error))?;
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .https_only(!options.allow_http)
            .connect_timeout(CONNECT.min(options.timeout))
            // A signature is for one host: what is elsewhere is an error to be told.
            .redirect(reqwest::redirect::Policy::none())
            .build();
        Ok(Self { client: client.map_err(|error| unmade(&error))?, timeout: options.timeout })
    }

    fn limit(&self, request: &HttpRequest) -> Duration {
        match completes(request) {
            true => COMPLETE,
            false => self.timeout + travel(request.body().content_length() as u64),
        }
    }
}

/// Tells whether a request puts an object together: only that is a POST with a body.
fn completes(request: &HttpRequest) -> bool {
    request.method() == Method::POST && request.body().content_length() > 0
}

impl HttpConnector for Dial {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

#[async_trait]
impl HttpService for Dial {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let (limit, completes) = (self.limit(&request), completes(&request));
        let asked = async { judged(self.client.call(request).await?, completes).await };
        let answered = tokio::time::timeout(limit, asked).await;
        answered.unwrap_or_else(|_| Err(HttpError::new(HttpErrorKind::Timeout, Late)))
    }
}

/// Makes an error of an answer that is a refusal, with nothing in it but its status and its code: what else S3 says may
/// hold the key's name and what was signed. Of an object that it puts together S3 may say so after the status 200.
async fn judged(response: HttpResponse, completes: bool) -> Result<HttpResponse, HttpError> {
    let status = response.status();
    let refused = status.is_client_error() || status.is_server_error();
    if !refused && !completes {
        return Ok(response);
    }
    let (parts, body) = response.into_parts();
    let body = body.bytes().await?;
    let code = code(&body);
    // The first one is known by its status, and common.
    if status == StatusCode::NOT_FOUND && code != NO_SUCH_BUCKET || !refused && code.is_empty() {
        return Ok(HttpResponse::from_parts(parts, body.into()));
    }
    let refusal = Refusal { status: status.as_u16(), code };
    let passing = (status.is_server_error() || !refused) && !refusal.is_full() && !refusal.is_of_parts()
        || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT);
    // The first kind is asked again, the second one is not.
    let kind = if passing { HttpErrorKind::Request } else { HttpErrorKind::Unknown };
    Err(HttpError::new(kind, refusal))
}

const NO_SUCH_BUCKET: &str = "NoSuchBucket";

/// The longest code that is told.
const CODE_LEN: usize = 64;

/// Finds S3's code in the body of a refusal; empty: there is none.
fn code(body: &[u8]) -> String {
    let body = String::from_utf8_lossy(body);
    let code = body.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>"));
    let code = code.map_or("", |(code, _)| code).trim();
    code.chars().filter(char::is_ascii_alphanumeric).take(CODE_LEN).collect()
}

/// S3 did not do it.
#[derive(Debug, Error)]
#[error("S3 answers {status} {code}")]
pub(super) struct Refusal {
    status: u16,
    code: String,
}

impl Refusal {
    /// Tells whether there is no room, as the several makers of S3 say it.
    fn is_full(&self) -> bool {
        let codes = ["QuotaExceeded", "XMinioStorageFull", "InsufficientStorage", "InsufficientCapacity"];
        self.status == 507 || codes.contains(&self.code.as_str())
    }

    /// Tells whether a part is not there, or is another one than it was.
    fn is_of_parts(&self) -> bool {
        self.code == "InvalidPart"
    }

    /// Tells whether a read began behind the end.
    fn is_behind_the_end(&self) -> bool {
        self.status == 416
    }
}

#[derive(Debug, Error)]
#[error("no answer came in time")]
struct Late;

/// Says what an error means, in words that hold no credentials and no address.
pub(super) fn meaning(error: &object_store::Error) -> BlobError {
    if matches!(error, object_store::Error::NotFound { .. }) {
        return BlobError::Missing;
    }
    match refusal(error) {
        Some(refusal) if refusal.is_full() => BlobError::Full,
        Some(refusal) if refusal.is_of_parts() => BlobError::Mismatch,
        Some(refusal) => BlobError::Failed(refusal.to_string()),
        None if causes(error).any(|cause| cause.is::<HttpError>()) => {
            let root = causes(error).last().map_or_else(String::new, ToString::to_string);
            BlobError::Failed(format!("S3 was not reached: {root}"))
        }
        None => BlobError::Failed("S3 gave an answer that is not understood".into()),
    }
}

/// Tells whether a read began behind the end of the object.
pub(super) fn is_behind_the_end(error: &object_store::Error) -> bool {
    refusal(error).is_some_and(Refusal::is_behind_the_end)
}

fn refusal(error: &object_store::Error) -> Option<&Refusal> {
    causes(error).find_map(|cause| cause.downcast_ref())
}

/// Lists an error and what caused it, down to the root.
fn causes(error: &object_store::Error) -> impl Iterator<Item = &(dyn StdError + 'static)> {
    let first: &(dyn StdError + 'static) = error;
    std::iter::successors(Some(first), |error| (*error).source())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_a_word_and_nothing_else() {
        let body = b"<Error><Code>AccessDenied</Code><AWSAccessKeyId>AKID</AWSAccessKeyId></Error>";
        assert_eq!(code(body), "AccessDenied");
        assert_eq!(code(b"<Code>a <b> key</Code>"), "abkey");
        for bad in [&b""[..], b"<Code>", b"</Code><Code>", b"\xff\xfe", b"502 Bad Gateway"] {
            assert_eq!(code(bad), "");
        }
    }
}
