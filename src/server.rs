//! From a configuration to a server that answers: load models, share out memory, start engines, listen, drain.

use std::{
    convert::Infallible,
    future::Future,
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use axum::http::Request;
use candle_core::DType;
use hyper::{
    body::Incoming,
    server::conn::http1,
    service::{Service as _, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use percept_models::{
    Checkpoint, EmbeddingInfo, Fit, LoadError, LoadOptions, Loaded, Outline, Progress, SpeechInfo, Task,
};
use tokio::{
    net::{TcpListener, TcpStream},
    signal::unix::{SignalKind, signal},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::AbortHandle,
};
use tokio_io_timeout::TimeoutStream;
use tracing::{debug, error_span, info, warn};

use crate::{
    api::{self, ApiConfig, App, Connection, Connections, Peer},
    device::{Defaults, DeviceChoice, DeviceError, Place},
    engine::{self, EngineConfig},
    hub::{self, HubConfig, HubError, Source},
    memory::{self, Budget, Bytes, Candidate, Plan, TooLittle, Wanted, check_weights},
    operations::{Counted, OperationsConfig},
    plan::{self, Member},
    router::{Aliases, ChatModel, EmbeddingModel, Kind, Router, Served, Work},
    speech::{Transcriber, Vocabulary},
    store::StoreConfig,
    text::{EmbeddingText, TextError, TextModel},
};

/// A server.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// What it serves: one model or more.
    pub models: Vec<ModelConfig>,
    /// Other names for them.
    pub aliases: Aliases,
    /// How the hub is used.
    pub hub: HubConfig,
    /// Where models are computed.
    pub device: DeviceChoice,
    /// How much of its memory all models may use together, where that is said.
    pub budget: Option<Budget>,
    /// What its API takes.
    pub api: ApiConfig,
    /// What guards it and watches it.
    pub operations: OperationsConfig,
    /// Where it keeps files and batches, if it does.
    pub store: Option<StoreConfig>,
    /// Whether it may be reached from elsewhere though it has no keys.
    pub insecure_no_keys: bool,
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
    /// The type of weights and activations, where that is said; see [`Defaults`].
    pub dtype: Option<DType>,
    /// Most rows of a step, likewise.
    pub step_rows: Option<usize>,
    /// Overrides how the checkpoint treats pictures that are not square.
    pub fit: Option<Fit>,
    /// Overrides the checkpoint's chat template.
    pub template: Option<PathBuf>,
    /// What it should be able to do at once.
    pub wanted: Wanted,
    /// Whether its weights are random ones, so that its weight files are not needed.
    pub dummy_weights: bool,
    /// Seconds from which on recordings are cut at silences and transcribed all at once.
    pub parallel_from: f64,
}

/// Why models are not served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// One of them is not.
    #[error("cannot serve {model}: {error}")]
    Model {
        /// Its name.
        model: String,
        /// Why.
        error: Box<ModelError>,
    },
    /// They do not fit.
    #[error(transparent)]
    Memory(#[from] TooLittle),
    /// There is no device for them.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// Why a model is not served.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// Its checkpoint is not there.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// Its checkpoint is broken.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Its text side is broken.
    #[error(transparent)]
    Text(#[from] TextError),
    /// Its largest step cannot be done.
    #[error(
        "a step as large as they may become fails: {0}; where that is for lack of memory, lower --step-rows, \
         --max-sequences, --max-context or --max-image-pixels"
    )]
    DryRun(candle_core::Error),
    /// Its engine does not start.
    #[error("the engine does not start: {0}")]
    Engine(candle_core::Error),
}

/// Loads all models and starts their engines. Blocks, for minutes where a model is large. `download` makes a progress
/// bar for each file from the hub; `progress`, for the name of each model, what hears how much of its weights is read.
///
/// # Errors
/// When anything is missing or does not fit; the message says what, and of which model.
pub fn load<P: hf_hub::api::Progress>(
    config: &ServerConfig,
    mut download: impl FnMut() -> P,
    mut progress: impl FnMut(&str) -> Box<Progress>,
) -> Result<Vec<Served>, ServeError> {
    let place = Place::find(config.device)?;
    let memory = place.memory(config.budget);
    let mut found = Vec::with_capacity(config.models.len());
    for model in &config.models {
        found.push(Found::new(model, &place, &config.hub, &mut download).map_err(model.failure())?);
    }
    // What does not fit is refused before minutes of reading.
    let members: Vec<_> = found.iter().map(|found| found.outlined.member()).collect();
    plan::table(memory.clone(), &members).1?;

    let mut read = Vec::with_capacity(found.len());
    for found in found {
        let progress = progress(&found.outlined.config.name);
        let failure = found.outlined.config.failure();
        read.push(found.read(&place, progress).map_err(failure)?);
    }
    // Before any engine starts: what is allocated meanwhile counts.
    for read in &mut read {
        read.measure(config.api.media.image_pixels, memory.budget)?;
    }
    let (table, plans) =
        plan::table(memory, &read.iter().map(|read| read.outlined.member()).collect::<Vec<_>>());
    let plans = plans?;
    let aliases = config.aliases.of(&read.iter().map(|read| read.outlined.text.kind()).collect::<Vec<_>>());
    info!("memory is shared out\n{table}");
    for (read, plan) in read.iter().zip(&plans) {
        report(read, plan);
    }

    let mut served = Vec::with_capacity(read.len());
    for ((read, plan), aliases) in read.into_iter().zip(plans).zip(aliases) {
        let failure = read.outlined.config.failure();
        // What the host computes keeps it from doing anything else meanwhile.
        let look_ahead = place != Place::Host;
        let engine = EngineConfig { look_ahead, ..plan.engine };
        served.push(read.start(engine, aliases).map_err(failure)?);
    }
    Ok(served)
}

/// A network and nothing around it.
pub struct Network {
    /// Its files.
    pub checkpoint: Checkpoint,
    /// What computes.
    pub loaded: Loaded,
    /// Bytes that it may take in all.
    pub budget: u64,
}

/// Loads the network of the first model. Blocks, as [`load`] does.
///
/// # Errors
/// When anything is missing or its weights do not fit.
pub fn load_network<P: hf_hub::api::Progress>(
    config: &ServerConfig,
    download: impl FnMut() -> P,
    progress: impl FnOnce(&str) -> Box<Progress>,
) -> Result<Network, ServeError> {
    let model = &config.models[0];
    let place = Place::find(config.device)?;
    let found = Found::new(model, &place, &config.hub, download).map_err(model.failure())?;
    let budget = place.memory(config.budget).budget;
    check_weights(budget, &[found.outlined.outline.weight_bytes])?;
    let loaded = found.load(&place, progress(&model.name)).map_err(model.failure())?;
    Ok(Network { checkpoint: found.checkpoint, loaded, budget })
}

/// What models would be, as far as that can be told without their weights, which are neither read nor downloaded. `defaults`
/// hold where nothing else is said.
///
/// # Errors
/// When anything else is missing or broken; the message says what, and of which model.
pub fn outline<P: hf_hub::api::Progress>(
    config: &ServerConfig,
    defaults: Defaults,
    mut download: impl FnMut() -> P,
) -> Result<Vec<Outlined>, ServeError> {
    let outlined = |model: &ModelConfig| {
        Outlined::new(model, defaults, &config.hub, &mut download).map_err(model.failure())
    };
    config.models.iter().map(outlined).collect()
}

/// Whether the files of a checkpoint's weights have to be there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Weights {
    Needed,
    IfThere,
}

/// A model without its weights.
pub struct Outlined {
    config: ModelConfig,
    outline: Outline,
    text: Text,
    /// Most rows of a step.
    rows: usize,
    /// Bytes of the activations of its largest step, where they were measured.
    workspace: Option<u64>,
}

impl Outlined {
    fn new<P: hf_hub::api::Progress>(
        config: &ModelConfig,
        defaults: Defaults,
        hub: &HubConfig,
        download: impl FnMut() -> P,
    ) -> Result<Self, ModelError> {
        let checkpoint = hub::resolve_small(&config.source, hub, download)?;
        Self::of(config, defaults, &checkpoint, Weights::IfThere)
    }

    /// By the files of a checkpoint; from the configuration alone where its weights are random, or not there.
    fn of(
        config: &ModelConfig,
        defaults: Defaults,
        checkpoint: &Checkpoint,
        weights: Weights,
    ) -> Result<Self, ModelError> {
        let dtype = config.dtype.unwrap_or(defaults.dtype);
        // First, so that what is wrong with the files of weights is said about them, not about what else is there.
        let counted = if config.dummy_weights {
            None
        } else {
            match percept_models::weight_bytes(checkpoint, dtype) {
                Ok(bytes) => Some(bytes),
                Err(LoadError::NoWeights { .. } | LoadError::MissingShard { .. })
                    if weights == Weights::IfThere =>
                {
                    None
                }
                Err(error) => return Err(error.into()),
            }
        };
        let outline = percept_models::outline(checkpoint, dtype, config.fit)?;
        let weight_bytes = counted.unwrap_or(outline.weight_bytes);
        let text = Text::read(config, checkpoint, &outline.task)?;
        let outline = Outline { weight_bytes, ..outline };
        let rows = config.step_rows.unwrap_or(defaults.step_rows);
        Ok(Self { config: config.clone(), outline, text, rows, workspace: None })
    }

    /// The type of its weights.
    pub fn dtype(&self) -> DType {
        self.outline.dtype
    }

    /// It as one of several that share a memory.
    pub fn member(&self) -> Member<'_> {
        let Self { config, outline, text, rows, workspace } = self;
        let candidate = Candidate {
            loaded: outline,
            vocabulary: text.vocabulary(),
            wanted: &config.wanted,
            rows: *rows,
            workspace: *workspace,
        };
        Member { name: &config.name, kind: text.kind(), candidate }
    }
}

impl ModelConfig {
    /// What makes a failure of this model one of the server.
    fn failure(&self) -> impl FnOnce(ModelError) -> ServeError + use<> {
        let model = self.name.clone();
        |error| ServeError::Model { model, error: Box::new(error) }
    }
}

/// A model whose checkpoint is on this machine.
struct Found {
    outlined: Outlined,
    checkpoint: Checkpoint,
}

impl Found {
    fn new<P: hf_hub::api::Progress>(
        config: &ModelConfig,
        place: &Place,
        hub: &HubConfig,
        download: impl FnMut() -> P,
    ) -> Result<Self, ModelError> {
        let checkpoint = if config.dummy_weights {
            warn!(model = config.name, "its weights are random: answers will mean nothing");
            hub::resolve_small(&config.source, hub, download)?
        } else {
            hub::resolve(&config.source, hub, download)?
        };
        let outlined = Outlined::of(config, place.defaults(), &checkpoint, Weights::Needed)?;
        info!(model = config.name, weights = %Bytes(outlined.outline.weight_bytes), "found");
        Ok(Self { outlined, checkpoint })
    }

    /// The network, with its weights.
    fn load(&self, place: &Place, progress: Box<Progress>) -> Result<Loaded, ModelError> {
        let Outlined { config, outline, .. } = &self.outlined;
        let device = place.open().map_err(LoadError::from)?;
        let (dtype, fit, most_bytes) = (outline.dtype, config.fit, outline.weight_bytes);
        let options = LoadOptions { device, dtype, fit, most_bytes, progress };
        let load = if config.dummy_weights { percept_models::load_random } else { percept_models::load };
        let loaded = load(&self.checkpoint, options)?;
        if fit.is_some() && !loaded.preprocess.has_fit() {
            let model = &config.name;
            warn!(
                model,
                "--image-fit means nothing to this model, which does not see pictures as one square"
            );
        }
        Ok(loaded)
    }

    fn read(self, place: &Place, progress: Box<Progress>) -> Result<Read, ModelError> {
        let loaded = self.load(place, progress)?;
        Ok(Read { outlined: Outlined { outline: loaded.outline(), ..self.outlined }, loaded })
    }
}

/// The text side of a model.
enum Text {
    Chat(Box<TextModel>),
    Speech(Box<Vocabulary>, SpeechInfo),
    Embedding(Box<EmbeddingText>, EmbeddingInfo),
}

impl Text {
    fn read(config: &ModelConfig, checkpoint: &Checkpoint, task: &Task) -> Result<Self, ModelError> {
        Ok(match task {
            Task::Chat(info) => {
                let template = config.template.as_deref();
                Self::Chat(Box::new(TextModel::read(checkpoint, info, template)?))
            }
            Task::Transcribe(info) => {
                Self::Speech(Box::new(Vocabulary::read(checkpoint, info)?), info.clone())
            }
            Task::Embed(info) => {
                Self::Embedding(Box::new(EmbeddingText::read(checkpoint, info.filler)?), info.clone())
            }
        })
    }

    /// Ids of the tokenizer.
    fn vocabulary(&self) -> usize {
        match self {
            Self::Chat(text) => text.tokenizer().size(),
            Self::Speech(vocabulary, _) => vocabulary.size(),
            Self::Embedding(text, _) => text.tokenizer().size(),
        }
    }

    fn kind(&self) -> Kind {
        match self {
            Self::Chat(_) => Kind::Chat,
            Self::Speech(..) => Kind::Speech,
            Self::Embedding(..) => Kind::Embedding,
        }
    }
}

/// A model whose weights are read, with the outline of what was read.
struct Read {
    outlined: Outlined,
    loaded: Loaded,
}

impl Read {
    /// Measures the activations of its largest step where its device can say that. `pixels`: most of a picture; `budget`:
    /// bytes that all models may take.
    fn measure(&mut self, pixels: usize, budget: u64) -> Result<(), ServeError> {
        let Self { outlined, loaded } = self;
        let candidate = outlined.member().candidate;
        let (largest, estimated) =
            (memory::largest(&candidate, pixels, budget), memory::demand(&candidate).need);
        let began = Instant::now();
        let failure = |error| (outlined.config.failure())(ModelError::DryRun(error));
        outlined.workspace = engine::workspace(loaded, &largest).map_err(failure)?;
        if let Some(measured) = outlined.workspace {
            info!(
                model = outlined.config.name,
                measured = %Bytes(measured),
                estimated = %Bytes(estimated.workspace),
                seconds = began.elapsed().as_secs_f64(),
                "the largest step was done once"
            );
        }
        Ok(())
    }

    fn start(self, engine: EngineConfig, aliases: Vec<String>) -> Result<Served, ModelError> {
        let Self { outlined: Outlined { config, outline, text, .. }, loaded } = self;
        let preprocess = Arc::clone(&loaded.preprocess);
        // Lines of the log that are an engine's say which.
        let _model = error_span!("engine", model = config.name).entered();
        let handle = engine::spawn(loaded, engine).map_err(ModelError::Engine)?;
        Ok(Served {
            id: config.name.clone(),
            aliases,
            work: match text {
                Text::Chat(text) => Work::Chat(Arc::new(ChatModel { text: *text, preprocess })),
                Text::Speech(vocabulary, info) => {
                    let from = config.parallel_from;
                    Work::Speech(Arc::new(Transcriber::new(handle.clone(), *vocabulary, info, from)))
                }
                Text::Embedding(text, info) => {
                    Work::Embedding(Arc::new(EmbeddingModel { text: *text, info, preprocess }))
                }
            },
            handle,
            created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            fingerprint: fingerprint(&config, outline.dtype),
        })
    }
}

fn report(read: &Read, plan: &Plan) {
    let Outlined { config, text, .. } = &read.outlined;
    let model = &config.name;
    debug!(
        model,
        dtype = ?read.loaded.dtype,
        weights = %Bytes(plan.weights),
        workspace = %Bytes(plan.workspace),
        encoder_cache = %Bytes(plan.encoder_cache),
        kv_cache = %Bytes(plan.kv_cache),
        tokens = plan.engine.pages * plan.engine.page_size,
        context = plan.engine.context,
        sequences = plan.engine.limits.sequences,
        "memory of a model"
    );
    let most = read.loaded.task.context();
    let wanted = config.wanted.context.filter(|_| text.kind() != Kind::Speech).unwrap_or(most);
    if wanted > most {
        warn!(
            model,
            wanted,
            context = most,
            "the context is the model's, which is shorter than what was asked for"
        );
    }
    if plan.engine.context < wanted.min(most) {
        warn!(
            model,
            context = plan.engine.context,
            "the context is shorter than the model's for lack of memory"
        );
    }
}

/// Changes with what may change an answer: program, checkpoint, type, treatment of pictures.
fn fingerprint(config: &ModelConfig, dtype: DType) -> String {
    let all = format!(
        "{} {:?} {:?} {:?} {:?} {:?}",
        env!("CARGO_PKG_VERSION"),
        config.source,
        dtype,
        config.fit,
        config.template,
        config.dummy_weights
    );
    format!("fp_{}", &blake3::hash(all.as_bytes()).to_hex()[..12])
}

/// Bytes of a request's head that are read; of those that are fewer, [`api`] tells what is too much.
const HEAD_BYTES: usize = 256 << 10;
/// Headers of a request that are read, likewise.
const HEADERS: usize = 256;
/// Connections that are turned away at once, besides those that are answered; more wait.
const TURNED_AWAY: usize = 64;
/// How often it is looked whether the file of keys has changed.
const LOOK: Duration = Duration::from_secs(1);

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
    let (stopping, connections) = watch::channel(false);
    let refreshing = Abort(tokio::spawn(refresh(Arc::clone(&app))).abort_handle());
    // To the end: what is being answered is noted.
    let _batches = Abort(tokio::spawn(api::run_batches(Arc::clone(&app))).abort_handle());
    tokio::select! {
        never = accept(&listener, &app, &connections) => match never {},
        () = shutdown => {}
    }
    drop((listener, refreshing, connections));
    info!("stopping: finishing what is running");
    app.stop();
    let finished = async {
        stopping.send_replace(true);
        // Each connection has a receiver until its end. Until then engines take what has come already: a turn of a
        // session that waits, a request whose body is being read.
        stopping.closed().await;
        app.sessions_ended().await;
        for served in app.models().map(Router::models).unwrap_or_default() {
            served.handle.drain();
            served.handle.ended().await;
        }
    };
    if tokio::time::timeout(drain, finished).await.is_err() {
        warn!(seconds = drain.as_secs(), "answers that did not end in time are cut off");
    }
    if let Some(audit) = &app.operations().audit {
        audit.flush();
    }
    if app.operations().traces.is_some() {
        let flushed = tokio::task::spawn_blocking(move || {
            if let Some(traces) = &app.operations().traces {
                traces.flush();
            }
        });
        drop(flushed.await);
    }
    Ok(())
}

/// Ends a task when it is dropped.
struct Abort(AbortHandle);

impl Drop for Abort {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Looks after the file of keys, now and then and at each SIGHUP.
async fn refresh(app: Arc<App>) {
    let Some(access) = &app.operations().access else { return };
    let mut hangup =
        signal(SignalKind::hangup()).inspect_err(|error| warn!(%error, "SIGHUP is not listened to")).ok();
    loop {
        match &mut hangup {
            Some(hangup) => drop(tokio::time::timeout(LOOK, hangup.recv()).await),
            None => tokio::time::sleep(LOOK).await,
        }
        access.refresh();
    }
}

/// Serves connections, each on a task of its own.
async fn accept(listener: &TcpListener, app: &Arc<App>, stopping: &watch::Receiver<bool>) -> Infallible {
    let Connections { most, .. } = app.connections();
    let (places, turned_away) = (Arc::new(Semaphore::new(most)), Arc::new(Semaphore::new(TURNED_AWAY)));
    let full = api::full();
    let routes = api::routes(Arc::clone(app));
    loop {
        let (connection, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            // Of a client that has left already.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) => {
                warn!(%error, "no connection can be accepted");
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        // Pieces of an answer are small and must not wait for each other.
        if let Err(error) = connection.set_nodelay(true) {
            warn!(%error, "a connection keeps Nagle's algorithm");
        }
        let place = Arc::clone(&places).try_acquire_owned().ok();
        let (routes, place) = match place {
            Some(place) => (routes.clone(), place),
            None => {
                app.operations().metrics.turned_away();
                // It is never closed.
                let Ok(place) = Arc::clone(&turned_away).acquire_owned().await else { continue };
                (full.clone(), place)
            }
        };
        let serving = Serving {
            routes,
            limits: app.connections(),
            place: Arc::new((place, app.operations().metrics.connected())),
        };
        tokio::spawn(serving.run(connection, peer, stopping.clone()));
    }
}

/// What answers a connection.
struct Serving {
    routes: axum::Router,
    limits: Connections,
    /// Given up at its end, and at that of what goes on in it as another protocol.
    place: Arc<(OwnedSemaphorePermit, Counted)>,
}

impl Serving {
    async fn run(self, connection: TcpStream, peer: SocketAddr, mut stopping: watch::Receiver<bool>) {
        let began = Arc::new(AtomicBool::new(false));
        let (routes, has_begun) = (TowerToHyperService::new(self.routes.clone()), Arc::clone(&began));
        let place = self.place;
        let service = service_fn(move |mut request: Request<Incoming>| {
            has_begun.store(true, Relaxed);
            request.extensions_mut().insert(Peer(peer));
            request.extensions_mut().insert(Connection(place.clone()));
            routes.call(request)
        });
        // Not the builder of hyper-util: with upgrades, it takes HTTP/2 all the same, which has none of these limits.
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            // From the end of an answer to the end of the next head: an idle connection is one as well.
            .header_read_timeout(self.limits.idle)
            .max_buf_size(HEAD_BYTES)
            .max_headers(HEADERS);
        // A client that does not read would keep its place, and what is to be sent, for ever.
        let mut connection = TimeoutStream::new(connection);
        connection.set_write_timeout(Some(self.limits.stalled));
        let connection = TokioIo::new(Box::pin(connection));
        let connection = builder.serve_connection(connection, service).with_upgrades();
        tokio::pin!(connection);
        let serving = async {
            tokio::select! {
                // Clients leave as they like.
                ended = connection.as_mut() => return drop(ended),
                _ = stopping.wait_for(|stopping| *stopping) => {}
            }
            connection.as_mut().graceful_shutdown();
            drop(connection.await);
        };
        let silent = async {
            tokio::time::sleep(self.limits.head).await;
            if began.load(Relaxed) {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = serving => {}
            () = silent => {}
        }
    }
}
