//! How fast a server is: load, and what it comes to. A client like anybody's, of any server with OpenAI's API; it
//! knows no engine. [`offline`] times a network in this process instead.

pub mod client;
pub mod energy;
pub mod machine;
pub mod offline;
pub mod report;
pub mod schedule;
pub mod sse;
pub mod statistics;
pub mod workload;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde_json::Value;
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep},
};

use self::{
    client::{Client, Failure, Outcome, Prepared, UrlError},
    energy::{Meter, Part},
    report::{Beside, Level, Served, Server, WorkloadReport},
    schedule::{Load, Round, Target, Until},
    statistics::{Distribution, Tally, Times},
    workload::{Asked, Workload, WorkloadError},
};

/// A measurement.
#[derive(Debug, Clone)]
pub struct Bench {
    /// The server, with or without `/v1`.
    pub url: String,
    /// Whether it is on this machine.
    pub here: bool,
    /// The model to ask; the first one that is for it where it is absent.
    pub model: Option<String>,
    /// Goes with each request.
    pub key: Option<String>,
    /// What is asked.
    pub asked: Asked,
    /// Levels of load, one after the other.
    pub loads: Vec<Load>,
    /// When each ends.
    pub until: Until,
    /// Requests before each level that do not count.
    pub warm_up: u64,
    /// Longest time of a request.
    pub timeout: Duration,
    /// Price of an hour, and its currency.
    pub price: Option<(f64, String)>,
}

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The URL is none.
    #[error(transparent)]
    Url(#[from] UrlError),
    /// There is nothing to send.
    #[error(transparent)]
    Workload(#[from] WorkloadError),
    /// The list of models is no help.
    #[error("cannot ask {url} for its models: {}: {failure}; start one with percept serve, or name a model with --model", failure.class())]
    Models {
        /// The server.
        url: String,
        /// Why.
        failure: Failure,
    },
    /// None is for what is asked.
    #[error("{url} has no model for {task}; name one with --model")]
    NoModel {
        /// The server.
        url: String,
        /// What it should do.
        task: &'static str,
    },
    /// The first request was not answered.
    #[error("the first request was not answered: {class}: {failure}", class = .0.class(), failure = .0)]
    First(Failure),
    /// Somebody stopped it before there was anything to tell.
    #[error("stopped before anything was measured")]
    Stopped,
}

/// What somebody who watches is told.
pub trait Watch {
    /// A level begins.
    fn begin(&mut self, load: Load, until: Until);
    /// So many of its requests have ended, so many of them without an answer, after so long.
    fn progress(&mut self, ended: u64, failed: u64, elapsed: Duration);
    /// It has ended.
    fn end(&mut self, level: &Level);
}

/// A server and what it is asked.
struct Subject {
    client: Client,
    workload: Workload,
}

impl Target for Subject {
    type Request = Prepared;

    fn prepare(&self, index: u64) -> Prepared {
        self.workload.request(index)
    }

    async fn send(&self, request: Prepared, start: Instant) -> Outcome {
        self.client.send(request, start).await
    }
}

/// Measures. Where `stop` becomes true, what there is by then is told.
///
/// # Errors
/// When the first request is not answered, or nothing can be asked.
pub async fn run(
    bench: Bench,
    meter: Result<Meter, String>,
    stop: watch::Receiver<bool>,
    watch: &mut dyn Watch,
) -> Result<(Served, Vec<String>), BenchError> {
    let Bench { url, here, model, key, asked, loads, until, warm_up, timeout, price } = bench;
    let client = Client::new(&url, key, timeout)?;
    let (model, owned_by) = find_model(&client, model, asked.subject.is_heard()).await?;
    let version = client.get("/version").await.ok();
    let version = version.and_then(|version| version["version"].as_str().map(str::to_owned));
    let sent = asked.sent();
    let mut warnings: Vec<String> = asked.caution().into_iter().collect();
    let mut workload = Workload::new(asked.clone(), model.clone())?;
    let mut words = None;
    if workload.has_words() {
        let found = until_stopped(&stop, fit_words(&client, &workload, asked.prompt_tokens)).await?;
        warnings.extend(found.1);
        workload.set_words(found.0);
        words = Some(found.0);
    }
    let fingerprint = Arc::new(Mutex::new(None));
    let mut levels = Levels {
        subject: Arc::new(Subject { client, workload }),
        stop,
        until,
        warm_up,
        seed: asked.seed,
        next: 0,
        meter: meter.as_ref().ok(),
        price: price.as_ref().map(|(price, _)| *price),
        fingerprint: Arc::clone(&fingerprint),
    };
    let mut done: Vec<Level> = Vec::new();
    let mut energy_failed = None;
    for load in loads {
        if *levels.stop.borrow() {
            break;
        }
        let (level, failed) = levels.level(load, watch, done.is_empty()).await?;
        energy_failed = energy_failed.or(failed);
        warnings.extend(level.cautions());
        watch.end(&level);
        done.push(level);
    }
    if done.is_empty() {
        return Err(BenchError::Stopped);
    }
    let url = levels.subject.client.url().to_owned();
    let fingerprint = fingerprint.lock().unwrap_or_else(PoisonError::into_inner).take();
    let served = Served {
        server: Server { url, here, model, owned_by, version, fingerprint },
        workload: WorkloadReport {
            prompt_tokens: words.map(|_| asked.prompt_tokens),
            words,
            repeat: asked.repeat,
            sent,
            seed: asked.seed,
            subject: asked.subject,
        },
        levels: done,
        energy_not_measured: meter.err().or(energy_failed),
        price_per_hour: price.as_ref().map(|(price, _)| *price),
        currency: price.map(|(_, currency)| currency),
    };
    Ok((served, warnings))
}

/// The model to ask, and whose it is, as far as the server tells.
async fn find_model(
    client: &Client,
    named: Option<String>,
    heard: bool,
) -> Result<(String, Option<String>), BenchError> {
    let list = client.get("/v1/models").await;
    let text = |model: &Value, key: &str| model[key].as_str().map(str::to_owned);
    let all = |list: &Value| list["data"].as_array().cloned().unwrap_or_default();
    if let Some(named) = named {
        let all = list.as_ref().map(all).unwrap_or_default();
        let model = all.iter().find(|model| model["id"] == named.as_str());
        return Ok((named, model.and_then(|model| text(model, "owned_by"))));
    }
    let url = client.url().to_owned();
    let list = list.map_err(|failure| BenchError::Models { url: url.clone(), failure })?;
    let kind = if heard { crate::router::Kind::Speech } else { crate::router::Kind::Chat };
    // Other servers do not say what theirs are for.
    let found =
        all(&list).into_iter().find(|model| text(model, "task").is_none_or(|task| task == kind.task()));
    let name = found.as_ref().and_then(|model| text(model, "id"));
    let owned_by = found.as_ref().and_then(|model| text(model, "owned_by"));
    let task = if heard { "recordings" } else { "questions" };
    name.map(|name| (name, owned_by)).ok_or(BenchError::NoModel { url, task })
}

/// How many words make a question of so many tokens, and what is to be said about it: a server counts, and two
/// questions of different lengths tell what a word and what everything else takes.
async fn fit_words(
    client: &Client,
    workload: &Workload,
    tokens: usize,
) -> Result<(usize, Option<String>), BenchError> {
    // Not numbers that requests have, whose beginnings a server might have kept.
    let count = async |words: usize, number: u64| {
        let outcome = client.send(workload.question_of(words, u64::MAX - number), Instant::now()).await;
        let answer = outcome.result.map_err(BenchError::First)?;
        Ok::<_, BenchError>(answer.usage.map(|usage| usage.prompt))
    };
    let (many, few) = (tokens.max(2), tokens.max(2) / 2);
    let counts = (count(many, 0).await?, count(few, 1).await?);
    let (Some(of_many), Some(of_few)) = counts else {
        return Ok((
            tokens,
            Some("the server does not count tokens: words were taken for tokens of prompts".into()),
        ));
    };
    let a_word = (of_many as f64 - of_few as f64) / (many - few) as f64;
    if a_word <= 0.0 {
        let caution = "the server counts no more tokens for longer prompts: words were taken for tokens";
        return Ok((tokens, Some(caution.into())));
    }
    let besides = of_few as f64 - a_word * few as f64;
    let words = (tokens as f64 - besides) / a_word;
    if words >= 1.0 {
        return Ok((words.round() as usize, None));
    }
    let caution = format!(
        "prompts of {tokens} tokens are too short for this model: without a word they have {besides:.0}"
    );
    Ok((1, Some(caution)))
}

/// Levels, one after the other.
struct Levels<'a> {
    subject: Arc<Subject>,
    stop: watch::Receiver<bool>,
    until: Until,
    warm_up: u64,
    seed: u64,
    /// The number of the next request: none comes twice.
    next: u64,
    meter: Option<&'a Meter>,
    price: Option<f64>,
    fingerprint: Arc<Mutex<Option<String>>>,
}

impl Levels<'_> {
    /// A level, and why its energy was not measured, where it should have been.
    async fn level(
        &mut self,
        load: Load,
        watch: &mut dyn Watch,
        first: bool,
    ) -> Result<(Level, Option<String>), BenchError> {
        self.warm(load, first).await?;
        watch.begin(load, self.until);
        let round = Round { load, until: self.until, first: self.next, seed: self.seed };
        let (cpu, energy) = (machine::cpu_time(), self.meter.map(Meter::read));
        let timers = Timers::start();
        let mut tally = Tally::default();
        let (mut ended, began) = (0, Instant::now());
        let ran = schedule::run(&self.subject, round, self.stop.clone(), |outcome| {
            ended += 1;
            tally.record(outcome);
            watch.progress(ended, tally.failed() + tally.busy, began.elapsed());
        })
        .await;
        let timer_late = timers.stop();
        let cpu = machine::cpu_time().saturating_sub(cpu);
        let (energy, failed) = match (energy, self.meter.map(Meter::read)) {
            (Some(Ok(before)), Some(Ok(after))) => (Some(energy::between(&before, &after)), None),
            (Some(Err(error)), _) | (_, Some(Err(error))) => (None::<Vec<Part>>, Some(error)),
            _ => (None, None),
        };
        self.next += ran.begun;
        let threads = tokio::runtime::Handle::current().metrics().num_workers();
        let interrupted = *self.stop.borrow();
        let beside = Beside { cpu, threads, timer_late, energy, price: self.price, interrupted };
        Ok((Level::new(load, &ran, &tally, beside), failed))
    }

    /// Requests that do not count. The very first must be answered.
    async fn warm(&mut self, load: Load, first: bool) -> Result<(), BenchError> {
        let mut warm_up = self.warm_up;
        if first && warm_up > 0 {
            let request = self.subject.prepare(self.next);
            let asked = async { Ok(self.subject.client.send(request, Instant::now()).await) };
            let outcome = until_stopped(&self.stop, asked).await?;
            let answer = outcome.result.map_err(BenchError::First)?;
            *self.fingerprint.lock().unwrap_or_else(PoisonError::into_inner) = answer.fingerprint;
            self.next += 1;
            warm_up -= 1;
        }
        if warm_up > 0 {
            let concurrency = match load {
                Load::Closed { concurrency } => concurrency,
                // What waits would wait for the first of those that count.
                Load::Open { .. } => 1,
            };
            let load = Load::Closed { concurrency };
            let round = Round { load, until: Until::Requests(warm_up), first: self.next, seed: self.seed };
            let ran = schedule::run(&self.subject, round, self.stop.clone(), |_| {}).await;
            self.next += ran.begun;
        }
        if *self.stop.borrow() && first { Err(BenchError::Stopped) } else { Ok(()) }
    }
}

/// The result of some work, unless somebody stops it.
async fn until_stopped<T>(
    stop: &watch::Receiver<bool>,
    work: impl Future<Output = Result<T, BenchError>>,
) -> Result<T, BenchError> {
    let mut stop = stop.clone();
    let stopped = async move {
        if stop.wait_for(|stop| *stop).await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        result = work => result,
        () = stopped => Err(BenchError::Stopped),
    }
}

/// Notes how late timers are while something else runs: a client whose timers are late is late with everything.
struct Timers {
    late: Arc<Mutex<Distribution>>,
    task: JoinHandle<()>,
}

impl Timers {
    const EVERY: Duration = Duration::from_millis(20);

    fn start() -> Self {
        let late = Arc::new(Mutex::new(Distribution::default()));
        let shared = Arc::clone(&late);
        let task = tokio::spawn(async move {
            loop {
                let due = Instant::now() + Self::EVERY;
                sleep(Self::EVERY).await;
                shared.lock().unwrap_or_else(PoisonError::into_inner).record(due.elapsed());
            }
        });
        Self { late, task }
    }

    fn stop(self) -> Option<Times> {
        self.task.abort();
        self.late.lock().unwrap_or_else(PoisonError::into_inner).summary()
    }
}
