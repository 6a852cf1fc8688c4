//! Uploads over HTTP: the native front, tus 1.0, and the files that become of them.

mod cors;
mod download;
mod headers;
mod native;
mod receive;
mod secret;
mod tus;

use std::sync::Arc;

use axum::body::Body;
use axum::body::HttpBody as _;
use axum::extract::Request;
use axum::http::{HeaderMap, Method, Response, StatusCode, Uri, header};
use driftline_engine::{Identity, Store, UploadRight};

use cors::{concerns, decorate};
pub(crate) use receive::{finalize, to_its_end};
pub(crate) use secret::UploadSecret;

use crate::app::App;
use crate::negotiate::Wishes;
use crate::reply::{Refusal, nothing, refused};
use crate::routes::{Names, Route, RouteId};

/// By what right somebody comes to an upload, for a task of its own.
#[derive(Debug, Clone)]
enum Right {
    /// As a user.
    User(Box<Identity>),
    /// By the secret of the upload.
    Secret,
}

impl Right {
    fn by(&self) -> UploadRight<'_> {
        match self {
            Self::User(identity) => UploadRight::User(identity),
            Self::Secret => UploadRight::Secret,
        }
    }
}

/// Has a request about uploads answered.
pub(crate) async fn answer<S: Store>(
    app: Arc<App<S>>,
    route: Route,
    names: &Names,
    request: Request,
    correlation: &str,
) -> Response<Body> {
    let wishes = Wishes::of(request.headers());
    let is_head = request.method() == Method::HEAD;
    let mut response = match route.id {
        RouteId::UploadPreflight => nothing().respond(wishes).await,
        RouteId::TusOptions => tus::options(&app).await,
        RouteId::TusCreate | RouteId::TusUpload => {
            tus::answer(&app, route.id, names, request, correlation, wishes).await
        }
        RouteId::File => download::answer(&app, names, request, correlation, wishes).await,
        _ => match native::answer(&app, route.id, names, request, correlation).await {
            Ok(answer) => answer.respond(wishes).await,
            Err(refusal) => refused(*refusal, correlation).respond(wishes).await,
        },
    };
    if is_head {
        let answered = std::mem::replace(response.body_mut(), Body::empty());
        // It says how long the answer to GET is. Of an upload over tus there is none.
        let has_get = !matches!(route.id, RouteId::TusCreate | RouteId::TusUpload);
        if let Some(bytes) = answered.size_hint().exact().filter(|_| has_get) {
            response.headers_mut().entry(header::CONTENT_LENGTH).or_insert(bytes.into());
        }
    }
    response
}

/// Adds what every answer about uploads says, a refusal too, and that of a path or a method that no route knows.
pub(crate) fn complete<S: Store>(
    app: &App<S>,
    uri: &Uri,
    headers: &HeaderMap,
    response: &mut Response<Body>,
) {
    if !concerns(uri.path()) {
        return;
    }
    if !uri.path().starts_with("/api/") {
        tus::spoken(response);
    }
    decorate(app, headers, response);
}

/// A refusal, which is larger than what is mostly answered.
type Refused = Box<Refusal>;

impl From<driftline_protocol::Fault> for Refused {
    fn from(fault: driftline_protocol::Fault) -> Self {
        Self::new(Refusal::from(fault))
    }
}

/// Answers with a status of its own.
fn with_status(fault: driftline_protocol::Fault, status: StatusCode) -> Refused {
    Box::new(Refusal { status: Some(status.as_u16()), ..Refusal::from(fault) })
}
