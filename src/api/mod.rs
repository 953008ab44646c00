//! The HTTP API: the only code that knows JSON and status codes.

mod audio;
mod body;
mod chat;
mod check;
mod completions;
mod error;
mod form;
mod json;
mod messages;
mod models;
mod openapi;
mod ops;
mod params;
mod responses;
mod sse;
mod ui;
pub mod wire;

use std::{
    sync::{Arc, OnceLock},
    time::Instant,
};

use axum::{
    Router as Routes,
    extract::Request,
    http::{HeaderName, HeaderValue, Method, Uri},
    middleware::{self, Next},
    response::Response,
};
use tokio::sync::Semaphore;
use tracing::info;
use uuid::Uuid;

pub use self::{audio::SoundConfig, error::ApiError, openapi::document};
use crate::{
    media::{
        Decoders, MediaLimits,
        remote::{FetchPolicy, Fetcher},
    },
    router::Router,
};

/// What the API may take and how it behaves.
#[derive(Debug, Clone)]
pub struct ApiConfig {
    /// Most bytes of a JSON body.
    pub body_bytes: usize,
    /// What pictures may cost.
    pub media: MediaLimits,
    /// From where pictures are fetched.
    pub fetch: FetchPolicy,
    /// Most bytes of decoded pictures that wait for an engine.
    pub media_memory: usize,
    /// What recordings may cost.
    pub sound: SoundConfig,
    /// Whether an unknown field is an error.
    pub strict: bool,
    /// Whether there are pages for browsers.
    pub ui: bool,
}

/// What every handler sees.
#[derive(Debug)]
pub struct App {
    config: ApiConfig,
    decoders: Decoders,
    fetcher: Fetcher,
    /// Bounds how many files are being received.
    uploads: Semaphore,
    /// Empty while models are being loaded.
    models: OnceLock<Router>,
}

impl App {
    /// An API without models yet.
    pub fn new(config: ApiConfig) -> Arc<Self> {
        Arc::new(Self {
            decoders: Decoders::new(config.media_memory),
            fetcher: Fetcher::new(config.fetch.clone()),
            config,
            uploads: Semaphore::new(audio::MOST_UPLOADS),
            models: OnceLock::new(),
        })
    }

    /// Serves these models from now on. Called once.
    pub fn serve(&self, models: Router) {
        let first = self.models.set(models).is_ok();
        debug_assert!(first, "models are set once");
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
        for path in spellings(endpoint.path) {
            routes = routes.route(&path, endpoint.handler.clone());
        }
    }
    if app.config.ui {
        routes = routes.merge(ui::routes());
    }
    routes
        .fallback(no_such_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn(every_response))
        .with_state(app)
}

/// How a path may be written. A parameter is at its end, and takes all of the rest.
fn spellings(path: &str) -> Vec<String> {
    let bare = path.strip_prefix("/v1").unwrap_or(path);
    let bases: &[&str] = if bare == path { &[""] } else { &["", "/v1"] };
    let ends: &[&str] = if bare.ends_with('}') { &[""] } else { &["", "/"] };
    let bare = bare.replace('{', "{*");
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

/// The headers of every response, and a line in the log that has no content.
async fn every_response(request: Request, next: Next) -> Response {
    let started = Instant::now();
    let id = format!("req_{}", Uuid::new_v4().simple());
    let (method, path) = (request.method().clone(), path(request.uri()));
    let anthropic = error::is_anthropic(&path, request.headers());
    let mut response = next.run(request).await;
    if let Some(error) = response.extensions_mut().remove::<Arc<ApiError>>().filter(|_| anthropic) {
        error.rewrite(&mut response, &id);
    }
    let ms = started.elapsed().as_millis() as u64;
    info!(%method, path, status = response.status().as_u16(), ms, id, "request");
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(&id) {
        headers.insert(REQUEST_ID, id.clone());
        headers.insert(ANTHROPIC_REQUEST_ID, id);
    }
    headers.insert(PROCESSING_MS, HeaderValue::from(ms));
    headers.insert(VERSION, HeaderValue::from_static("2020-10-01"));
    headers.insert(NO_SNIFF, HeaderValue::from_static("nosniff"));
    response
}
