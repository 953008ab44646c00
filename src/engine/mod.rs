//! The engine: one thread owns a model, and steps it for many requests at once.

mod batch;
mod cache;
mod handle;
mod pages;
mod sampler;
mod scheduler;
mod sequence;

use std::{
    collections::{BTreeSet, HashMap},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::Ordering::Relaxed,
        mpsc::{self, Receiver},
    },
    thread,
    time::Instant,
};

use candle_core::Tensor;
use percept_models::{KvCache, Loaded, MediaSize, Model, Preprocess, Ragged};
use tokio::sync::{
    OwnedSemaphorePermit, Semaphore,
    mpsc::{UnboundedSender, unbounded_channel},
};
use tracing::{debug, error, info, warn};

use self::{
    batch::Batcher,
    cache::{Encoded, EncoderCache},
    handle::{Command, Submission},
    sampler::Sampler,
};
pub use self::{
    cache::Pin,
    handle::{EngineError, Event, Events, Handle, Place, Refused, Status},
    pages::Key,
    scheduler::{FinishReason, Limits, Outcome, Plan, Scheduler},
    sequence::{SeqId, Sequence, Span},
};
use crate::{
    media::Picture,
    request::{self, Media, Prompt, Request, Sampling, Source},
};

/// Sizes of an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineConfig {
    /// What a step may hold.
    pub limits: Limits,
    /// Pages of the cache.
    pub pages: usize,
    /// Rows of a page.
    pub page_size: usize,
    /// Most requests that wait.
    pub queue: usize,
    /// Most tokens of prompt and answer together.
    pub context: usize,
    /// Ids from here on have no text.
    pub vocabulary: usize,
}

/// Starts an engine on a thread of its own, whose log is in the caller's span. Returns when a real step has run.
///
/// # Errors
/// When there is no memory for the cache, or the first step fails.
pub fn spawn(loaded: Loaded, config: EngineConfig) -> Result<Handle, candle_core::Error> {
    let (commands, receiver) = mpsc::channel();
    let (started, start) = mpsc::channel();
    let status = Arc::new(Status::default());
    let engine_status = Arc::clone(&status);
    let span = tracing::Span::current();
    thread::Builder::new().name("engine".into()).spawn(move || {
        let _span = span.entered();
        let engine = Engine::new(loaded, config, receiver, engine_status).and_then(|mut engine| {
            engine.warm_up(config)?;
            // Whoever hears that it has started finds it alive.
            engine.status.alive.store(true, Relaxed);
            Ok(engine)
        });
        match engine {
            // Nobody waits any more when the process is on its way out.
            Ok(engine) if started.send(Ok(engine.encoded.index().clone())).is_ok() => engine.run(),
            Ok(_) => {}
            Err(error) => drop(started.send(Err(error))),
        }
    })?;
    let stopped = |_| candle_core::Error::Msg("the engine's thread ended while it started".into());
    let index = start.recv().map_err(stopped)??;
    Ok(Handle {
        commands,
        queue: Arc::new(Semaphore::new(config.queue)),
        queue_size: config.queue,
        index,
        status,
        context: config.context.min(config.pages * config.page_size),
        sequences: config.limits.sequences,
    })
}

struct Engine {
    model: Box<dyn Model>,
    preprocess: Arc<dyn Preprocess>,
    cache: KvCache,
    batcher: Batcher,
    scheduler: Scheduler,
    sampler: Sampler,
    encoded: EncoderCache,
    clients: HashMap<SeqId, Client>,
    commands: Receiver<Command>,
    status: Arc<Status>,
    next: SeqId,
    draining: bool,
}

/// What the engine keeps of a request besides its sequence.
struct Client {
    events: UnboundedSender<Event>,
    media: Vec<ClientMedia>,
    /// Its place in the queue, until it runs.
    place: Option<OwnedSemaphorePermit>,
    started: Option<Instant>,
}

struct ClientMedia {
    key: Key,
    pixels: Option<Picture>,
    encoded: Option<Encoded>,
    /// Accounts for `encoded` until the request runs; from then on the scheduler does.
    pin: Option<Pin>,
}

/// A medium that is ready to be encoded.
struct Features {
    key: Key,
    /// Rows that it will have.
    rows: usize,
    tensor: Tensor,
}

impl Engine {
    fn new(
        loaded: Loaded,
        config: EngineConfig,
        commands: Receiver<Command>,
        status: Arc<Status>,
    ) -> candle_core::Result<Self> {
        let Loaded { model, preprocess, text, dtype, device, .. } = loaded;
        let cache = KvCache::new(model.cache_shape(), config.pages, config.page_size, dtype, &device)?;
        Ok(Self {
            model,
            preprocess,
            cache,
            batcher: Batcher { device, page_size: config.page_size, placeholder: text.placeholder },
            scheduler: Scheduler::new(config.limits, config.pages, config.page_size),
            sampler: Sampler::new(config.vocabulary),
            encoded: EncoderCache::new(config.limits.encoded, config.limits.spare),
            clients: HashMap::new(),
            commands,
            status,
            next: SeqId(0),
            draining: false,
        })
    }

    fn run(mut self) {
        let alive = Alive(Arc::clone(&self.status));
        while self.receive() {
            self.drop_cancelled();
            if !self.scheduler.is_idle() {
                let outcomes = self.step();
                self.deliver(outcomes);
            } else {
                self.report();
            }
        }
        drop(alive);
        info!("engine ended");
    }

    /// Takes commands, waiting for one when there is nothing else to do. False when the engine should end.
    fn receive(&mut self) -> bool {
        if self.scheduler.is_idle() {
            if self.draining {
                return false;
            }
            match self.commands.recv() {
                Ok(command) => self.obey(command),
                Err(_) => return false,
            }
        }
        while let Ok(command) = self.commands.try_recv() {
            self.obey(command);
        }
        true
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Submit(submission) => {
                let Submission { request, events, place } = *submission;
                self.submit(request, events, Some(place));
            }
            Command::Drain => self.draining = true,
        }
    }

    fn submit(
        &mut self,
        request: Request,
        events: UnboundedSender<Event>,
        place: Option<OwnedSemaphorePermit>,
    ) {
        let id = self.next;
        self.next = SeqId(id.0 + 1);
        let spans = request.prompt.spans.into_iter().zip(&request.media);
        let spans = spans.map(|(rows, medium)| Span { rows, key: medium.key }).collect();
        let tokens = request.prompt.tokens;
        let most = tokens.len() + request.limits.tokens;
        if tokens.is_empty() || request.limits.tokens == 0 || most > self.scheduler.capacity() {
            error!(prompt = tokens.len(), most, "a request that fits no cache was submitted");
            // Whoever has left does not mind.
            let _ = events.send(Event::Failed(EngineError::Step));
            return;
        }
        self.sampler.add(id, request.sampling, &tokens);
        let mut sequence = Sequence::new(id, tokens, spans, most, request.limits.stops);
        let media: Vec<_> = request.media.into_iter().map(|medium| self.medium(medium)).collect();
        for (encoded, medium) in sequence.encoded.iter_mut().zip(&media) {
            *encoded = medium.encoded.is_some();
        }
        debug!(sequence = id.0, prompt = sequence.prompt, most, "queued");
        self.clients.insert(id, Client { events, media, place, started: None });
        self.scheduler.submit(sequence);
    }

    fn medium(&mut self, medium: Media) -> ClientMedia {
        let Media { key, source } = medium;
        let (pixels, pin) = match source {
            Source::Encoded(pin) => (None, Some(pin)),
            // Somebody else may have sent the same picture meanwhile.
            Source::Pixels(pixels) => match self.encoded.index().pin(&key) {
                Some(pin) => (None, Some(pin)),
                None => (Some(pixels), None),
            },
        };
        let encoded = if pin.is_some() { self.encoded.get(&key) } else { None };
        ClientMedia { key, pixels, encoded, pin }
    }

    fn drop_cancelled(&mut self) {
        let gone: Vec<SeqId> =
            self.clients.iter().filter(|(_, client)| client.events.is_closed()).map(|(id, _)| *id).collect();
        for id in gone {
            debug!(sequence = id.0, "cancelled");
            self.remove(id);
        }
    }

    fn remove(&mut self, id: SeqId) {
        self.scheduler.remove(id);
        self.sampler.remove(id);
        self.clients.remove(&id);
    }

    /// One step, for everyone who is scheduled.
    fn step(&mut self) -> Vec<(SeqId, Event)> {
        let mut plan = self.scheduler.schedule();
        // Before anyone leaves the queue: whoever looks sees each request wait or run.
        self.report();
        self.start(&plan);
        let mut events = self.encode(&mut plan);
        events.extend(self.compute(&plan));
        self.status.steps.fetch_add(1, Relaxed);
        events
    }

    /// Computes a plan. When that fails it is tried in halves, so that only those fail who cannot be computed alone.
    fn compute(&mut self, plan: &Plan) -> Vec<(SeqId, Event)> {
        match (guarded(|| self.draw(plan)), plan.parts.as_slice()) {
            (Ok(drawn), _) => {
                let outcomes = self.scheduler.complete(plan, drawn);
                outcomes
                    .into_iter()
                    .flat_map(|(id, outcome)| events_of(outcome).map(move |event| (id, event)))
                    .collect()
            }
            (Err(error), [(id, rows)]) => {
                error!(sequence = id.0, rows, %error, "a step failed");
                vec![(*id, Event::Failed(EngineError::Step))]
            }
            (Err(error), parts) => {
                warn!(sequences = parts.len(), %error, "a step failed and is tried in halves");
                let (first, second) = parts.split_at(parts.len() / 2);
                let half = |parts: &[_]| Plan { encode: Vec::new(), parts: parts.to_vec() };
                let mut events = self.compute(&half(first));
                events.extend(self.compute(&half(second)));
                events
            }
        }
    }

    /// Runs the network. A token, or `None` for unusable numbers, for each part that draws.
    fn draw(&mut self, plan: &Plan) -> candle_core::Result<Vec<Option<u32>>> {
        if plan.parts.is_empty() {
            return Ok(Vec::new());
        }
        let clients = &self.clients;
        let rows = |id, medium: usize| {
            let encoded = clients.get(&id)?.media[medium].encoded.as_ref()?;
            Some(encoded.rows.clone())
        };
        let batch = self.batcher.build(plan, &self.scheduler, rows)?;
        let logits = self.model.forward(&batch, &self.cache)?;
        let drawing: Vec<SeqId> =
            plan.parts.iter().filter(|part| self.scheduler.draws(**part)).map(|part| part.0).collect();
        self.sampler.sample(&logits, &drawing)
    }

    /// Tells those that run for the first time; they leave the queue.
    fn start(&mut self, plan: &Plan) {
        for (id, _) in &plan.parts {
            let Some(client) = self.clients.get_mut(id).filter(|client| client.started.is_none()) else {
                continue;
            };
            let reused = self.scheduler.sequence(*id).and_then(|sequence| sequence.reused).unwrap_or(0);
            client.started = Some(Instant::now());
            client.place = None;
            for (index, medium) in client.media.iter_mut().enumerate() {
                medium.pin = None;
                if medium.encoded.is_some() {
                    continue;
                }
                // Encoded for another request meanwhile: its pixels, and their share of memory, are free.
                medium.encoded = self.encoded.get(&medium.key);
                if medium.encoded.is_some() {
                    medium.pixels = None;
                    self.scheduler.encoded(*id, index);
                }
            }
            // Whoever has left is removed before the next step.
            let _ = client.events.send(Event::Started { reused });
        }
    }

    /// Encodes the plan's media. Sequences whose media cannot be encoded leave the plan.
    fn encode(&mut self, plan: &mut Plan) -> Vec<(SeqId, Event)> {
        let mut fresh: Vec<Features> = Vec::new();
        for &(id, index) in &plan.encode {
            let Some(medium) = self.clients.get_mut(&id).map(|client| &mut client.media[index]) else {
                continue;
            };
            let (key, pixels) = (medium.key, medium.pixels.take());
            // Two requests may have brought the same picture. Held from here on, it is not thrown out for another.
            medium.encoded = self.encoded.get(&key);
            if medium.encoded.is_some() || fresh.iter().any(|features| features.key == key) {
                continue;
            }
            match guarded(|| self.features(id, index, pixels)) {
                Ok(features) => fresh.push(features),
                Err(error) => error!(sequence = id.0, %error, "a medium could not be prepared"),
            }
        }
        self.encode_features(&fresh);
        let mut lost = BTreeSet::new();
        for &(id, index) in &plan.encode {
            let Some(medium) = self.clients.get_mut(&id).map(|client| &mut client.media[index]) else {
                continue;
            };
            if medium.encoded.is_none() {
                medium.encoded = self.encoded.get(&medium.key);
            }
            if medium.encoded.is_some() {
                self.scheduler.encoded(id, index);
            } else {
                lost.insert(id);
            }
        }
        plan.parts.retain(|part| !lost.contains(&part.0));
        lost.into_iter().map(|id| (id, Event::Failed(EngineError::Step))).collect()
    }

    /// Uploads and prepares a medium.
    fn features(&self, id: SeqId, index: usize, pixels: Option<Picture>) -> candle_core::Result<Features> {
        let (Some(pixels), Some(sequence)) = (pixels, self.scheduler.sequence(id)) else {
            candle_core::bail!("it has neither pixels nor rows")
        };
        let span = &sequence.media[index];
        let tokens = &sequence.tokens[span.rows.clone()];
        let rows = tokens.iter().filter(|&&token| token == self.batcher.placeholder).count();
        let Picture { width, height, rgb, .. } = pixels;
        let pixels = Tensor::from_vec(rgb, (height, width, 3), &self.batcher.device)?;
        Ok(Features { key: span.key, rows, tensor: self.preprocess.run(&pixels)? })
    }

    /// Encodes media into the cache, all at once or, when that fails, one by one.
    fn encode_features(&mut self, all: &[Features]) {
        if all.is_empty() {
            return;
        }
        let encoded = guarded(|| {
            let tensors: Vec<&Tensor> = all.iter().map(|features| &features.tensor).collect();
            let lengths = tensors.iter().map(|tensor| tensor.dim(0)).collect::<Result<Vec<_>, _>>()?;
            let ragged = Ragged::new(&lengths, &self.batcher.device)?;
            self.model.encode(&Tensor::cat(&tensors, 0)?, &ragged)
        });
        let cached = encoded.and_then(|rows| {
            let expected: usize = all.iter().map(|features| features.rows).sum();
            if rows.dim(0)? != expected {
                candle_core::bail!("{:?} rows were encoded, the prompt has {expected}", rows.shape())
            }
            let mut first = 0;
            for features in all {
                // A copy, so that one medium in the cache does not keep the memory of all.
                self.encoded.insert(features.key, rows.narrow(0, first, features.rows)?.copy()?);
                first += features.rows;
            }
            Ok(())
        });
        let Err(error) = cached else { return };
        error!(media = all.len(), %error, "encoding failed");
        if all.len() > 1 {
            for single in all.chunks(1) {
                self.encode_features(single);
            }
        }
    }

    /// Tells clients what became of their requests. Whoever hears that an answer is complete finds its pages free.
    fn deliver(&mut self, events: Vec<(SeqId, Event)>) {
        for (id, _) in events.iter().filter(|(_, event)| event.is_last()) {
            self.scheduler.remove(*id);
        }
        self.report();
        for (id, event) in events {
            let Some(client) = self.clients.get(&id) else { continue };
            let last = event.is_last();
            if let (Event::Finished(..), Some(started)) = (&event, client.started) {
                let took = started.elapsed().as_millis() as u64;
                let before = self.status.answer_ms.load(Relaxed);
                self.status
                    .answer_ms
                    .store(if before == 0 { took } else { (7 * before + took) / 8 }, Relaxed);
            }
            // Whoever has left is removed before the next step.
            let _ = client.events.send(event);
            if last {
                debug!(sequence = id.0, "finished");
                self.remove(id);
            }
        }
    }

    fn report(&self) {
        let (used, total) = self.scheduler.pages();
        self.status.running.store(self.scheduler.running(), Relaxed);
        self.status.pages_used.store(used, Relaxed);
        self.status.pages_total.store(total, Relaxed);
        self.status.preemptions.store(self.scheduler.preemptions(), Relaxed);
    }

    /// Answers a small request of its own, so that what cannot work is found before anyone is served.
    fn warm_up(&mut self, config: EngineConfig) -> candle_core::Result<()> {
        const SIDE: usize = 32;
        const ANSWER: usize = 2;
        let picture = self.preprocess.footprint(MediaSize::Image { width: SIDE, height: SIDE }).tokens;
        let fits = picture.len() + 1 + ANSWER <= config.context.min(self.scheduler.capacity());
        let mut tokens = if fits { picture } else { Vec::new() };
        let answer = ANSWER.min(config.context.min(self.scheduler.capacity()) - 1);
        let spans: Vec<_> = fits.then_some(0..tokens.len()).into_iter().collect();
        let gray = || Source::Pixels(Picture::new(SIDE, SIDE, vec![128; SIDE * SIDE * 3]));
        let media = spans.iter().map(|_| Media { key: Key::of(b"warm-up"), source: gray() }).collect();
        tokens.push(0);
        let request = Request {
            prompt: Prompt { tokens, spans },
            media,
            sampling: Sampling::greedy(),
            limits: request::Limits { tokens: answer, stops: Arc::new([]) },
        };
        let (events, mut receiver) = unbounded_channel();
        self.submit(request, events, None);
        while !self.scheduler.is_idle() {
            let events = self.step();
            self.deliver(events);
        }
        let mut last = None;
        while let Ok(event) = receiver.try_recv() {
            last = Some(event);
        }
        match last {
            Some(Event::Finished(..)) => Ok(()),
            Some(Event::Failed(error)) => candle_core::bail!("the first step: {error}"),
            _ => candle_core::bail!("the first step gave no answer"),
        }
    }
}

/// Runs `work`; a panic in it becomes an error.
fn guarded<T>(work: impl FnOnce() -> candle_core::Result<T>) -> candle_core::Result<T> {
    // Whatever a step touches belongs to sequences that fail with it: no half-changed state is used again.
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        candle_core::bail!("panic: {text}")
    })
}

fn events_of(outcome: Outcome) -> impl Iterator<Item = Event> {
    let (token, end) = match outcome {
        Outcome::Token(token) => (Some(token), None),
        Outcome::Finished(token, reason, generated) => (token, Some(Event::Finished(reason, generated))),
        Outcome::Failed => (None, Some(Event::Failed(EngineError::NotFinite))),
    };
    token.map(Event::Token).into_iter().chain(end)
}

/// Says that the engine is gone, however its thread ends.
struct Alive(Arc<Status>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.alive.store(false, Relaxed);
    }
}
