//! From a configuration to a server that answers: load, share out memory, start the engine, listen, drain.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::serve::ListenerExt;
use candle_core::{DType, Device};
use percept_models::{Checkpoint, Fit, LoadError, LoadOptions, Progress};
use tokio::net::TcpListener;
use tracing::{info, warn};

use crate::{
    api::{self, ApiConfig, App},
    engine,
    hub::{self, HubConfig, HubError, Source},
    memory::{self, Budget, Bytes, Candidate, Plan, TooLittle, Wanted, free_memory},
    router::Served,
    text::{TextError, TextModel},
};

/// A server.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// What it serves.
    pub model: ModelConfig,
    /// What its API takes.
    pub api: ApiConfig,
    /// Where it listens.
    pub address: SocketAddr,
    /// How long running answers have when it is stopped.
    pub drain: Duration,
}

/// A model to serve.
#[derive(Debug, Clone)]
pub struct ModelConfig {
    /// Where its checkpoint is.
    pub source: Source,
    /// Its name.
    pub name: String,
    /// Other names for it.
    pub aliases: Vec<String>,
    /// The type of weights and activations.
    pub dtype: DType,
    /// Overrides how the checkpoint treats pictures that are not square.
    pub fit: Option<Fit>,
    /// Overrides the checkpoint's chat template.
    pub template: Option<PathBuf>,
    /// How the hub is used.
    pub hub: HubConfig,
    /// How much memory it may use.
    pub budget: Budget,
    /// What it should be able to do at once.
    pub wanted: Wanted,
}

/// Why a model is not served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Its checkpoint is not there.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// Its checkpoint is broken.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Its text side is broken.
    #[error(transparent)]
    Text(#[from] TextError),
    /// It does not fit.
    #[error(transparent)]
    Memory(#[from] TooLittle),
    /// Its engine does not start.
    #[error("the engine does not start: {0}")]
    Engine(candle_core::Error),
}

/// Loads a model and starts its engine. Blocks, for minutes where the model is large. `download` makes a progress bar
/// for each file from the hub, `progress` hears how much of the weights is read.
///
/// # Errors
/// When anything is missing or does not fit; the message says what.
pub fn load<P: hf_hub::api::Progress>(
    config: &ModelConfig,
    download: impl FnMut() -> P,
    progress: Box<Progress>,
) -> Result<Served, ServeError> {
    let free = free_memory();
    let folder = hub::resolve(&config.source, &config.hub, download)?;
    let checkpoint = Checkpoint::new(folder);
    let budget = config.budget.bytes(free);
    let (device, dtype, fit) = (Device::Cpu, config.dtype, config.fit);
    let options = LoadOptions { device, dtype, fit, most_bytes: budget, progress };
    let loaded = percept_models::load(&checkpoint, options).map_err(|error| match error {
        LoadError::TooLarge { weights, limit } => TooLittle::Weights { weights, budget: limit }.into(),
        other => ServeError::Load(other),
    })?;
    let text = TextModel::read(&checkpoint, &loaded.text, config.template.as_deref())?;
    let vocabulary = text.tokenizer().size();
    let candidate = Candidate { loaded: &loaded, vocabulary, wanted: &config.wanted };
    let plans = memory::plan(budget, &[candidate])?;
    let plan = &plans[0];
    report(config, &loaded, plan);
    let preprocess = Arc::clone(&loaded.preprocess);
    let handle = engine::spawn(loaded, plan.engine).map_err(ServeError::Engine)?;
    Ok(Served {
        id: config.name.clone(),
        aliases: config.aliases.clone(),
        handle,
        text: Arc::new(text),
        preprocess,
        created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        fingerprint: fingerprint(config),
    })
}

fn report(config: &ModelConfig, loaded: &percept_models::Loaded, plan: &Plan) {
    info!(
        model = config.name,
        dtype = ?loaded.dtype,
        weights = %Bytes(plan.weights),
        workspace = %Bytes(plan.workspace),
        encoder_cache = %Bytes(plan.encoder_cache),
        kv_cache = %Bytes(plan.kv_cache),
        share = %Bytes(plan.share),
        tokens = plan.engine.pages * plan.engine.page_size,
        context = plan.engine.context,
        sequences = plan.engine.limits.sequences,
        "memory is shared out"
    );
    let most = loaded.text.context;
    let wanted = config.wanted.context.unwrap_or(most);
    if wanted > most {
        warn!(wanted, context = most, "the context is the model's, which is shorter than what was asked for");
    }
    if plan.engine.context < wanted.min(most) {
        warn!(context = plan.engine.context, "the context is shorter than the model's for lack of memory");
    }
}

/// Changes with what may change an answer: program, checkpoint, type, treatment of pictures.
fn fingerprint(config: &ModelConfig) -> String {
    let all = format!(
        "{} {:?} {:?} {:?} {:?}",
        env!("CARGO_PKG_VERSION"),
        config.source,
        config.dtype,
        config.fit,
        config.template
    );
    format!("fp_{}", &blake3::hash(all.as_bytes()).to_hex()[..12])
}

/// Answers requests until `shutdown` ends, then finishes what is running, for at most `drain`.
///
/// # Errors
/// When the listener fails.
pub async fn run(
    listener: TcpListener,
    app: Arc<App>,
    shutdown: impl Future<Output = ()> + Send + 'static,
    drain: Duration,
) -> io::Result<()> {
    // Pieces of an answer are small and must not wait for each other.
    let listener = listener.tap_io(|connection| {
        if let Err(error) = connection.set_nodelay(true) {
            warn!(%error, "a connection keeps Nagle's algorithm");
        }
    });
    let (stopping, mut stopped) = tokio::sync::watch::channel(false);
    let draining = Arc::clone(&app);
    let graceful = async move {
        shutdown.await;
        info!("stopping: finishing what is running");
        for served in draining.models().map(crate::router::Router::models).unwrap_or_default() {
            served.handle.drain();
        }
        // The receiver lives as long as this function.
        let _ = stopping.send(true);
    };
    let server = axum::serve(listener, api::routes(app)).with_graceful_shutdown(graceful);
    let patience = async move {
        if stopped.wait_for(|stopped| *stopped).await.is_ok() {
            tokio::time::sleep(drain).await;
        }
    };
    tokio::select! {
        result = server => result,
        () = patience => {
            warn!(seconds = drain.as_secs(), "answers that did not end in time are cut off");
            Ok(())
        }
    }
}
