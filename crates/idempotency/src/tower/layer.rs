//! The layer and what an embedder gives to it.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderName};
use http::request::Parts;
use tower_layer::Layer;

use super::Idempotency;
use crate::{CompleteError, Scope, WINDOW_MS_DEFAULT};

/// A future without a type of its own.
pub type Future<T> = Pin<Box<dyn std::future::Future<Output = T> + Send>>;

/// Makes POST and PATCH requests with an `Idempotency-Key` header safe to send again.
///
/// It belongs behind authentication, authorisation and rate limits, which thus see every repetition, and in front of
/// validation and handlers. Other methods and requests without a key pass untouched, unless [`Settings`] say otherwise.
///
/// The layer forces no runtime: time and tasks come from the embedder.
///
/// - Without [`pause`](Self::pause), a twin of a request that is being carried out is refused at once with 409; with it the
///   twin waits up to [`Settings::wait_ms`] for the answer.
/// - Without [`spawn`](Self::spawn), a request ends where its connection does. Its effect may have happened by then, so its
///   key is *not* freed: a twin is refused until the lease ends, and then carries it out again, with the same
///   [`EffectId`](crate::EffectId). With `spawn` the request runs to its end in a task of its own and its answer waits for
///   the retry.
///
/// Not for answers that never end: the layer reads up to 64 KiB of an answer before it hands it on.
pub struct IdempotencyLayer<R> {
    shared: Shared<R>,
}

/// What all clones of a service have in common.
pub(crate) struct Shared<R> {
    pub(crate) records: Arc<R>,
    pub(crate) settings: Arc<Settings>,
    pub(crate) clock: Arc<dyn Fn() -> u64 + Send + Sync>,
    pub(crate) scope: Arc<ScopeOf>,
    pub(crate) route: Arc<dyn Fn(&Parts) -> Route + Send + Sync>,
    pub(crate) window: Arc<dyn Fn(&Scope) -> u64 + Send + Sync>,
    pub(crate) pause: Option<Arc<dyn Fn(Duration) -> Future<()> + Send + Sync>>,
    pub(crate) spawn: Option<Arc<dyn Fn(Future<()>) + Send + Sync>>,
    pub(crate) render: Option<Arc<Render>>,
    pub(crate) failed: Arc<dyn Fn(&CompleteError) + Send + Sync>,
}

type ScopeOf = dyn Fn(&Parts) -> Option<Scope> + Send + Sync;
type Render = dyn Fn(Parts, Arc<str>) -> Future<Option<Bytes>> + Send + Sync;

/// The bounds and choices of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// After which time a twin may take over, in milliseconds: above the longest time that a handler takes.
    pub lease_ms: u64,
    /// How long a twin waits for the answer of the other one, in milliseconds.
    pub wait_ms: u64,
    /// The size of the largest body of a request with a key, in bytes.
    pub request_bytes_max: usize,
    /// What becomes of a request with a key from nobody.
    pub unscoped: Unscoped,
    /// What becomes of a POST or PATCH request without a key.
    pub keyless: Keyless,
    /// The headers of an answer that are kept with it. `Set-Cookie` and `Date` do not belong here.
    pub kept_headers: Vec<HeaderName>,
}

impl Default for Settings {
    /// A lease of 30 s, 2 s for twins, 1 MiB for bodies; keys from nobody are refused; keys are not demanded; kept are the
    /// headers that describe the body or say where something is.
    fn default() -> Self {
        Self {
            lease_ms: 30_000,
            wait_ms: 2_000,
            request_bytes_max: 1024 * 1024,
            unscoped: Unscoped::Refused,
            keyless: Keyless::Passes,
            kept_headers: vec![
                header::CONTENT_TYPE,
                header::CONTENT_ENCODING,
                header::CONTENT_LANGUAGE,
                header::CONTENT_LOCATION,
                header::CONTENT_DISPOSITION,
                header::ETAG,
                header::LAST_MODIFIED,
                header::LINK,
                header::LOCATION,
                header::VARY,
            ],
        }
    }
}

/// What becomes of a request with a key from a sender without a [`Scope`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unscoped {
    /// It passes, and is not safe to send again.
    Passes,
    /// It is refused with 403.
    Refused,
}

/// What becomes of a POST or PATCH request without a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keyless {
    /// It passes, and is not safe to send again.
    Passes,
    /// It is refused with 400.
    Refused,
}

/// Where a request goes, as far as its fingerprint is concerned.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Route {
    /// The version of the interface.
    pub version: String,
    /// The template of the path.
    pub template: String,
    /// The values of the template's parameters, in order.
    pub path: Vec<String>,
}

/// From what an answer that is too large to keep is rendered again: a handler puts it into the extensions of its response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnswerReference(pub String);

impl<R> IdempotencyLayer<R> {
    /// Makes a layer over records.
    ///
    /// `clock` gives the time in milliseconds, the same for all processes that share the records. `scope` says whose
    /// request it is, from what authentication left in the request; never from what the sender alone claims.
    pub fn new(
        records: R,
        clock: impl Fn() -> u64 + Send + Sync + 'static,
        scope: impl Fn(&Parts) -> Option<Scope> + Send + Sync + 'static,
    ) -> Self {
        let shared = Shared {
            records: Arc::new(records),
            settings: Arc::default(),
            clock: Arc::new(clock),
            scope: Arc::new(scope),
            route: Arc::new(|parts| Route { template: parts.uri.path().to_owned(), ..Route::default() }),
            window: Arc::new(|_| WINDOW_MS_DEFAULT),
            pause: None,
            spawn: None,
            render: None,
            failed: Arc::new(|_| ()),
        };
        Self { shared }
    }

    /// Sets bounds and choices.
    #[must_use]
    pub fn settings(mut self, settings: Settings) -> Self {
        self.shared.settings = Arc::new(settings);
        self
    }

    /// Says how to find the route of a request; without it, the whole path is the template.
    #[must_use]
    pub fn route(mut self, route: impl Fn(&Parts) -> Route + Send + Sync + 'static) -> Self {
        self.shared.route = Arc::new(route);
        self
    }

    /// Says for how long answers are remembered, in milliseconds; without it, for [`WINDOW_MS_DEFAULT`].
    #[must_use]
    pub fn window(mut self, window: impl Fn(&Scope) -> u64 + Send + Sync + 'static) -> Self {
        self.shared.window = Arc::new(window);
        self
    }

    /// Lets twins wait, and says how: a future that ends after the given time.
    #[must_use]
    pub fn pause(mut self, pause: impl Fn(Duration) -> Future<()> + Send + Sync + 'static) -> Self {
        self.shared.pause = Some(Arc::new(pause));
        self
    }

    /// Lets requests outlive their connections, and says how: a task that runs to its end. The embedder waits for such
    /// tasks before it shuts down.
    #[must_use]
    pub fn spawn(mut self, spawn: impl Fn(Future<()>) + Send + Sync + 'static) -> Self {
        self.shared.spawn = Some(Arc::new(spawn));
        self
    }

    /// Says how a body that was too large to keep is rendered again from its [`AnswerReference`], for the request that
    /// asks again. `None` from it, or no such hook, is answered 409 with the code `IDEMPOTENCY_ANSWER_NOT_KEPT`.
    #[must_use]
    pub fn render(
        mut self,
        render: impl Fn(Parts, Arc<str>) -> Future<Option<Bytes>> + Send + Sync + 'static,
    ) -> Self {
        self.shared.render = Some(Arc::new(render));
        self
    }

    /// Hears of answers that were sent but not kept, and of claims that could not be given back.
    #[must_use]
    pub fn on_failure(mut self, failed: impl Fn(&CompleteError) + Send + Sync + 'static) -> Self {
        self.shared.failed = Arc::new(failed);
        self
    }
}

impl<S, R> Layer<S> for IdempotencyLayer<R> {
    type Service = Idempotency<S, R>;

    fn layer(&self, inner: S) -> Self::Service {
        Idempotency::new(inner, self.shared.clone())
    }
}

impl<R> Clone for IdempotencyLayer<R> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<R> Clone for Shared<R> {
    fn clone(&self) -> Self {
        Self {
            records: Arc::clone(&self.records),
            settings: Arc::clone(&self.settings),
            clock: Arc::clone(&self.clock),
            scope: Arc::clone(&self.scope),
            route: Arc::clone(&self.route),
            window: Arc::clone(&self.window),
            pause: self.pause.clone(),
            spawn: self.spawn.clone(),
            render: self.render.clone(),
            failed: Arc::clone(&self.failed),
        }
    }
}

impl<R> fmt::Debug for IdempotencyLayer<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdempotencyLayer").field("settings", &self.shared.settings).finish_non_exhaustive()
    }
}
