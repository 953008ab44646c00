//! The HTTP API: the only code that knows JSON and status codes.

mod audio;
mod batches;
mod body;
mod chat;
mod check;
mod completions;
mod embeddings;
mod error;
mod files;
mod form;
#[cfg(fuzzing)]
pub mod fuzz;
mod guard;
mod json;
mod limits;
mod messages;
mod models;
mod openapi;
mod ops;
mod page;
mod params;
mod realtime;
mod record;
mod responses;
mod sse;
mod ui;
pub mod wire;

use std::{
    collections::HashSet,
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use axum::{
    Router as Routes,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header::CONNECTION},
    middleware::{self, Next},
    response::Response,
};
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use uuid::Uuid;

pub use self::{audio::SoundConfig, error::ApiError, openapi::document, realtime::RealtimeLimits};
pub(crate) use self::{batches::run as run_batches, realtime::Connection, record::Peer};
use self::{
    realtime::{Secrets, Sessions, Until},
    record::{Ending, Incoming, Record, TIMING, Tally, WantsTiming},
};
use crate::{
    access::Area,
    engine::Refused,
    media::{
        Decoders, MediaLimits,
        document::Readers,
        remote::{FetchPolicy, Fetcher},
    },
    operations::{Names, Operations},
    router::Router,
    store::Store,
};

/// What the API may take and how it behaves.
#[derive(Debug, Clone)]
pub struct ApiConfig {
    /// Most bytes of a JSON body.
    pub body_bytes: usize,
    /// What pictures may cost.
    pub media: MediaLimits,
    /// This program, for processes of its own.
    pub program: PathBuf,
    /// From where pictures are fetched.
    pub fetch: FetchPolicy,
    /// Most bytes of decoded pictures that wait for an engine.
    pub media_memory: usize,
    /// What recordings may cost.
    pub sound: SoundConfig,
    /// Most bytes of a file that is kept.
    pub file_bytes: usize,
    /// Most lines of batches that are answered at once.
    pub batch_lines: usize,
    /// What sessions that transcribe may take.
    pub realtime: RealtimeLimits,
    /// Whether an unknown field is an error.
    pub strict: bool,
    /// Whether there are pages for browsers.
    pub ui: bool,
    /// Names that it may be called by besides this machine's, where it listens on this machine only; any, where it
    /// does not.
    pub hosts: Option<Vec<String>>,
    /// Origins of web pages that may ask it from a browser.
    pub cors: Vec<String>,
    /// Whose names its figures have.
    pub names: Names,
    /// What a connection may take.
    pub connections: Connections,
}

/// What connections may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connections {
    /// Most of them at once.
    pub most: usize,
    /// How long the head of the first request may take to come.
    pub head: Duration,
    /// How long one may be silent after an answer, until the head of the next request is there.
    pub idle: Duration,
    /// How long a client may take nothing of what is sent to it.
    pub stalled: Duration,
}

/// What every handler sees.
#[derive(Debug)]
pub struct App {
    config: ApiConfig,
    operations: Operations,
    /// Paths that need no key.
    public: HashSet<String>,
    /// Whether it takes no more requests.
    stopped: watch::Sender<bool>,
    /// What goes on behind responses.
    sessions: Sessions,
    /// What pages may open sessions with.
    secrets: Secrets,
    decoders: Decoders,
    fetcher: Fetcher,
    documents: Readers,
    /// Bounds how many files are being received.
    uploads: Semaphore,
    /// Files and batches, where they are kept.
    kept: Option<Kept>,
    /// Empty while models are being loaded.
    models: OnceLock<Router>,
}

/// Files and batches.
#[derive(Debug)]
struct Kept {
    store: Store,
    /// Hears that there is something to do for batches.
    changed: watch::Sender<()>,
}

impl App {
    /// An API without models yet, which everyone may use who can reach it.
    pub fn new(config: ApiConfig) -> Arc<Self> {
        Self::guarded(config, Operations::default(), None)
    }

    /// An API without models yet, guarded and watched; with files and batches, where there is a store for them.
    pub fn guarded(config: ApiConfig, operations: Operations, store: Option<Store>) -> Arc<Self> {
        Arc::new(Self {
            kept: store.map(|store| Kept { store, changed: watch::Sender::new(()) }),
            decoders: Decoders::new(config.media_memory),
            fetcher: Fetcher::new(config.fetch.clone()),
            documents: Readers::new(config.program.clone()),
            operations,
            public: public(&config),
            stopped: watch::Sender::new(false),
            sessions: Sessions::default(),
            secrets: Secrets::default(),
            config,
            uploads: Semaphore::new(audio::MOST_UPLOADS),
            models: OnceLock::new(),
        })
    }

    /// What a connection may take.
    pub fn connections(&self) -> Connections {
        self.config.connections
    }

    /// What guards and watches it.
    pub fn operations(&self) -> &Operations {
        &self.operations
    }

    /// Says from now on that it is not ready for more, and begins no more lines of batches.
    pub fn stop(&self) {
        self.stopped.send_replace(true);
        self.wake_batches();
    }

    /// Whether it takes no more requests.
    fn is_stopping(&self) -> bool {
        *self.stopped.borrow()
    }

    /// Waits until nothing goes on behind responses.
    pub async fn sessions_ended(&self) {
        self.sessions.ended().await;
    }

    /// A place among those whose file is being received.
    fn upload(&self) -> Result<SemaphorePermit<'_>, ApiError> {
        let busy = |_| Refused::Busy { waiting: audio::MOST_UPLOADS, retry_after: 5 };
        Ok(self.uploads.try_acquire().map_err(busy)?)
    }

    /// Files and batches, where they are kept.
    fn store(&self) -> Option<&Store> {
        self.kept.as_ref().map(|kept| &kept.store)
    }

    /// Has it looked at what there is to do for batches.
    fn wake_batches(&self) {
        if let Some(kept) = &self.kept {
            kept.changed.send_replace(());
        }
    }

    /// Serves these models from now on. Called once.
    pub fn serve(&self, models: Router) {
        let first = self.models.set(models).is_ok();
        debug_assert!(first, "models are set once");
        self.wake_batches();
    }

    /// The models, once they are loaded.
    ///
    /// # Errors
    /// [`ApiError::Loading`] before that.
    pub fn models(&self) -> Result<&Router, ApiError> {
        self.models.get().ok_or(ApiError::Loading)
    }
}

/// All routes, with and without `/v1`, with and without a slash at the end: users write URLs in every way.
pub fn routes(app: Arc<App>) -> Routes {
    let mut routes = Routes::new();
    for endpoint in openapi::endpoints() {
        let door = Door { endpoint: endpoint.name(), area: endpoint.area };
        let handler = endpoint.handler.route_layer(middleware::from_fn_with_state(door, enter));
        for path in spellings(endpoint.path) {
            routes = routes.route(&path, handler.clone());
        }
    }
    if app.config.ui {
        let door = Door { endpoint: "page".to_owned(), area: None };
        routes = routes.merge(ui::routes().route_layer(middleware::from_fn_with_state(door, enter)));
    }
    routes
        .fallback(no_such_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn_with_state(Arc::clone(&app), guard::guard))
        .layer(middleware::from_fn_with_state(Arc::clone(&app), every_response))
        .with_state(app)
}

/// What answers where there are too many connections.
pub fn full() -> Routes {
    let close = || async { ([(CONNECTION, "close")], ApiError::Connections) };
    Routes::new().fallback(close)
}

/// Paths that need no key: those of endpoints without an area, and the pages' files.
fn public(config: &ApiConfig) -> HashSet<String> {
    let endpoints = openapi::endpoints().into_iter().filter(|endpoint| endpoint.area.is_none());
    let mut paths: HashSet<String> = endpoints.flat_map(|endpoint| spellings(endpoint.path)).collect();
    if config.ui {
        paths.extend(ui::paths().map(str::to_owned));
    }
    paths
}

/// What stands in front of an endpoint.
#[derive(Debug, Clone)]
struct Door {
    endpoint: String,
    area: Option<Area>,
}

/// Lets in who may use the endpoint, and has not used up what they may have.
async fn enter(
    State(door): State<Door>,
    record: Record,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    record.is_for(&door.endpoint);
    if matches!(door.area, None | Some(Area::Metrics)) {
        record.is_routine();
    }
    if let (Some(area), Some(caller)) = (door.area, record.caller())
        && !caller.terms.allows(area)
    {
        return Err(ApiError::NotAllowed(area));
    }
    if matches!(door.area, Some(Area::Chat | Area::Audio | Area::Embeddings)) {
        record.admit()?;
    }
    Ok(next.run(request).await)
}

/// How a path may be written.
fn spellings(path: &str) -> Vec<String> {
    let bare = path.strip_prefix("/v1").unwrap_or(path);
    let bases: &[&str] = if bare == path { &[""] } else { &["", "/v1"] };
    // Names of models may have slashes.
    let ends: &[&str] = if bare.ends_with("{model}") { &[""] } else { &["", "/"] };
    let bare = bare.replace("{model}", "{*model}");
    bases
        .iter()
        .flat_map(|base| ends.iter().map(|end| format!("{base}{bare}{end}")).collect::<Vec<_>>())
        .collect()
}

async fn no_such_path(method: Method, uri: Uri) -> ApiError {
    let hint = match uri.path().strip_prefix("/v1/v1/") {
        Some(rest) if rest.starts_with("messages") => ": base_url must not end in /v1 for the Anthropic SDK",
        Some(_) => ": base_url must end in /v1 once",
        None => "",
    };
    ApiError::NoSuchPath { method: method.to_string(), path: path(&uri), hint }
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    ApiError::Method { method: method.to_string(), path: path(&uri) }
}

fn path(uri: &Uri) -> String {
    uri.path().chars().take(200).collect()
}

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Anthropic's name for it.
const ANTHROPIC_REQUEST_ID: HeaderName = HeaderName::from_static("request-id");
const PROCESSING_MS: HeaderName = HeaderName::from_static("openai-processing-ms");
const VERSION: HeaderName = HeaderName::from_static("openai-version");
const NO_SNIFF: HeaderName = HeaderName::from_static("x-content-type-options");

/// How often a client's library has sent the request before.
const RETRY_COUNT: HeaderName = HeaderName::from_static("x-stainless-retry-count");

/// The headers of every response, and the record of every request.
async fn every_response(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let id = format!("req_{}", Uuid::new_v4().simple());
    let record = Record::new(&app, id.clone(), request.extensions().get().copied());
    let tally = Tally::new(&app);
    let ending = Ending::new(&record, &request, path(request.uri()), tally.clone());
    let timing = WantsTiming::of(request.headers());
    let anthropic = error::is_anthropic(&path(request.uri()), request.headers());
    if is_retry(request.headers()) {
        app.operations.metrics.retried();
    }
    let mut request = request.map(|body| Body::new(Incoming { body, tally }));
    request.extensions_mut().insert(record.clone());
    let mut response = next.run(request).await;
    if let Some(error) = response.extensions_mut().remove::<Arc<ApiError>>().filter(|_| anthropic) {
        error.rewrite(&mut response, &id);
    }
    let ms = started.elapsed().as_millis() as u64;
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(&id) {
        headers.insert(REQUEST_ID, id.clone());
        headers.insert(ANTHROPIC_REQUEST_ID, id);
    }
    headers.insert(PROCESSING_MS, HeaderValue::from(ms));
    headers.insert(VERSION, HeaderValue::from_static("2020-10-01"));
    headers.insert(NO_SNIFF, HeaderValue::from_static("nosniff"));
    if let Some(caller) = record.caller() {
        limits::tell(headers, &caller, app.operations.now(), anthropic);
    }
    if timing == WantsTiming::Yes
        && let Ok(text) = HeaderValue::from_str(&record.timing_text())
    {
        headers.insert(TIMING, text);
    }
    match response.extensions_mut().remove::<Until>() {
        Some(until) => {
            until.set(ending.upgraded());
            response
        }
        None => ending.with(response, timing),
    }
}

fn is_retry(headers: &HeaderMap) -> bool {
    headers.get(RETRY_COUNT).is_some_and(|count| count != "0")
}
