//! The engine: one thread owns a model, and steps it for many requests at once.

mod batch;
mod cache;
mod dry_run;
#[cfg(test)]
mod fixtures;
mod handle;
mod pages;
mod recorded;
mod sampler;
mod scheduler;
mod sequence;
mod work;

use std::{
    any::Any,
    collections::{BTreeSet, HashMap},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc::{self, Receiver, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use candle_core::Tensor;
use percept_models::{
    Features, Footprint, Grid, KvCache, Loaded, MediaSize, Medium, Model, Preprocess, Task,
    nn::{
        device::records,
        sample::{Drawing, probabilities},
    },
};
use tokio::sync::{
    OwnedSemaphorePermit, Semaphore,
    mpsc::{UnboundedSender, unbounded_channel},
    watch,
};
use tracing::{debug, error, info, warn};

use self::{
    batch::Batcher,
    cache::{Encoded, EncoderCache},
    handle::{Command, Submission},
    recorded::{MemoryScope, Recorded, RecordedEncoding, Scope},
    sampler::Sampler,
};
pub use percept_models::nn::sample::Drawn;

pub use self::{
    cache::Pin,
    dry_run::{Largest, workspace},
    handle::{Alignment, EngineError, Event, Events, Handle, Place, Refused, Status, Turn},
    pages::Key,
    scheduler::{FinishReason, Limits, Outcome, Plan, Scheduler},
    sequence::{Memory, SeqId, Sequence, Span},
    work::{Figures, Work},
};
use crate::{
    media::Picture,
    request::{self, Media, Prompt, Readout, Request, Sampling, Sound, Source},
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
    /// Whether a step begins while the tokens of the one before are still on their way, which helps where a device
    /// computes while the host does something else. Answers are the same.
    pub look_ahead: bool,
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
    let queue = Arc::new(Semaphore::new(config.queue));
    let engine_queue = Arc::clone(&queue);
    let (running, ended) = watch::channel(());
    let span = tracing::Span::current();
    thread::Builder::new().name("engine".into()).spawn(move || {
        // Dropped last.
        let _running = running;
        let _span = span.entered();
        let commands = (receiver, engine_queue);
        let engine = Engine::new(loaded, config, commands, engine_status).and_then(|mut engine| {
            // Before anything is in the cache, whose first slot that takes.
            engine.record();
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
        queue,
        queue_size: config.queue,
        index,
        status,
        context: config.context.min(config.pages * config.page_size),
        pages: config.pages,
        page_size: config.page_size,
        sequences: config.limits.sequences,
        next: Arc::new(AtomicU64::new(1)),
        ended,
    })
}

/// How often an engine begins anew without a step in between, until it ends.
const MOST_IN_VAIN: usize = 8;

struct Engine {
    model: Box<dyn Model>,
    preprocess: Arc<dyn Preprocess>,
    cache: KvCache,
    batcher: Batcher,
    /// Steps that are not asked for launch by launch.
    recorded: Option<Recorded>,
    /// The same of the encoding of one medium.
    recorded_encoding: Option<RecordedEncoding>,
    /// The next step, where it was begun before its turn.
    ahead: Option<Ahead>,
    scheduler: Scheduler,
    sampler: Sampler,
    encoded: EncoderCache,
    clients: HashMap<SeqId, Client>,
    commands: Receiver<Command>,
    status: Arc<Status>,
    /// Places in the queue that are free; all of them when no request is anywhere.
    queue: Arc<Semaphore>,
    config: EngineConfig,
    draining: bool,
    task: Task,
}

/// A step whose tokens nobody has drawn yet.
struct Ahead {
    /// Sequences of one row each, some of which may have ended since.
    parts: Vec<(SeqId, usize)>,
    /// Of each.
    logits: Tensor,
}

/// What the engine keeps of a request besides its sequence.
struct Client {
    events: UnboundedSender<Event>,
    work: Work,
    media: Vec<ClientMedia>,
    readout: Readout,
    /// Its place in the queue, until it runs.
    place: Option<OwnedSemaphorePermit>,
    started: Option<Instant>,
}

struct ClientMedia {
    key: Key,
    /// What it is encoded from. That of a memory is kept while the request runs: the cache may lose the rows.
    raw: Option<Raw>,
    encoded: Option<Encoded>,
    /// Accounts for `encoded` until the request runs; from then on the scheduler does.
    pin: Option<Arc<Pin>>,
}

enum Raw {
    Picture(Arc<Picture>),
    Moment(Arc<[Picture]>),
    Sound(Sound),
}

/// A medium that is ready to be encoded.
struct Fresh {
    key: Key,
    /// Rows that it will have.
    rows: usize,
    features: Features,
}

impl Engine {
    fn new(
        loaded: Loaded,
        config: EngineConfig,
        (commands, queue): (Receiver<Command>, Arc<Semaphore>),
        status: Arc<Status>,
    ) -> candle_core::Result<Self> {
        let Loaded { model, preprocess, task, dtype, device, .. } = loaded;
        let cache = KvCache::new(model.cache_shape(), config.pages, config.page_size, dtype, &device)?;
        Ok(Self {
            model,
            preprocess,
            cache,
            batcher: Batcher {
                device,
                page_size: config.page_size,
                placeholders: task.placeholders(),
                positions: task.positions(),
            },
            recorded: None,
            recorded_encoding: None,
            ahead: None,
            task,
            scheduler: Scheduler::new(config.limits, config.pages, config.page_size),
            sampler: Sampler::new(config.vocabulary),
            encoded: EncoderCache::new(config.limits.encoded, config.limits.spare),
            clients: HashMap::new(),
            commands,
            status,
            queue,
            config,
            draining: false,
        })
    }

    fn run(mut self) {
        let alive = Alive(Arc::clone(&self.status));
        let (mut in_vain, mut steps) = (0, self.status.steps());
        // What a step does is guarded by itself. What remains is a mistake in what stands around it, and that must not
        // end the server.
        while let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.serve())) {
            error!(panic = panic_text(&*panic), requests = self.clients.len(), "the engine begins anew");
            in_vain = if self.status.steps() == steps { in_vain + 1 } else { 0 };
            steps = self.status.steps();
            if in_vain == MOST_IN_VAIN {
                error!("the engine has begun anew too often");
                break;
            }
            self.begin_anew();
        }
        drop(alive);
        info!("engine ended");
    }

    /// Steps as long as there is anything to do, or could be.
    fn serve(&mut self) {
        while self.receive() {
            self.drop_cancelled();
            if !self.scheduler.is_idle() {
                let outcomes = self.step();
                self.deliver(outcomes);
            } else {
                // All that it was for have ended.
                self.ahead = None;
                self.report();
            }
        }
    }

    /// Fails all requests, and forgets all that may be half changed. The network is not, which nothing changes.
    fn begin_anew(&mut self) {
        for (_, client) in self.clients.drain() {
            // Whoever has left does not mind.
            let _ = client.events.send(Event::Failed(EngineError::Step));
        }
        let EngineConfig { limits, pages, page_size, vocabulary, .. } = self.config;
        self.scheduler = Scheduler::new(limits, pages, page_size);
        self.sampler = Sampler::new(vocabulary);
        self.ahead = None;
        self.encoded.clear();
        self.status.restarts.fetch_add(1, Relaxed);
        self.report();
    }

    /// Takes commands, waiting for one when there is nothing else to do. False when the engine should end.
    fn receive(&mut self) -> bool {
        if self.scheduler.is_idle() {
            match self.wait() {
                Some(command) => self.obey(command),
                None => return false,
            }
        }
        while let Ok(command) = self.commands.try_recv() {
            self.obey(command);
        }
        true
    }

    /// Waits for a command. When draining, only as long as somebody has a place in the queue: what was accepted may come
    /// in several parts.
    fn wait(&self) -> Option<Command> {
        const LOOK: Duration = Duration::from_millis(20);
        while self.draining && self.queue.available_permits() < self.config.queue {
            match self.commands.recv_timeout(LOOK) {
                Ok(command) => return Some(command),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
        if self.draining { self.commands.try_recv().ok() } else { self.commands.recv().ok() }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Submit(submission) => {
                self.submit(*submission);
            }
            Command::Drain => self.draining = true,
            #[cfg(test)]
            Command::Crash => panic!("as it was asked to"),
        }
    }

    fn submit(&mut self, submission: Submission) {
        let Submission { id, scope, mut request, events, work, place } = submission;
        for medium in &mut request.media {
            medium.key = medium.key.within(scope);
        }
        let spans = request.prompt.spans.into_iter().zip(&request.media);
        let span = |(span, medium): (request::Span, &Media)| Span {
            rows: span.rows,
            grid: span.grid,
            memory: span.memory,
            key: medium.key,
        };
        let spans = spans.map(span).collect();
        let tokens = request.prompt.tokens;
        let most = tokens.len() + request.limits.tokens;
        let mut sequence = Sequence::new(id, tokens, spans, most, request.limits.stops);
        sequence.scope = scope;
        sequence.long_behind = self.batcher.positions.long;
        match request.readout {
            Readout::Answer => {}
            // That row is computed here, or its logits would not be seen.
            Readout::Probability { position, .. } => sequence.reusable = position,
            Readout::Alignment { .. } | Readout::Embedding => (sequence.reusable, sequence.whole) = (0, true),
        }
        if !self.scheduler.fits(&sequence) {
            error!(prompt = sequence.prompt, most, "a request that fits no cache was submitted");
            // Whoever has left does not mind.
            let _ = events.send(Event::Failed(EngineError::Step));
            return;
        }
        if request.readout != Readout::Embedding {
            self.sampler.add(id, request.sampling, request.constraint, &sequence.tokens);
        }
        let media: Vec<_> = request.media.into_iter().map(|medium| self.medium(medium)).collect();
        for (encoded, medium) in sequence.encoded.iter_mut().zip(&media) {
            *encoded = medium.encoded.is_some();
        }
        debug!(sequence = id.0, prompt = sequence.prompt, most, "queued");
        let readout = request.readout;
        self.clients.insert(id, Client { events, work, media, readout, place, started: None });
        self.scheduler.submit(sequence);
    }

    fn medium(&mut self, medium: Media) -> ClientMedia {
        let Media { key, source } = medium;
        let (raw, pin) = match source {
            Source::Encoded(pin) => (None, Some(pin)),
            Source::Pixels(pixels) => self.unless_encoded(&key, Raw::Picture(pixels)),
            Source::Moment(frames) => self.unless_encoded(&key, Raw::Moment(frames)),
            Source::Sound(sound) => (Some(Raw::Sound(sound)), None),
        };
        let encoded = if pin.is_some() { self.encoded.get(&key) } else { None };
        ClientMedia { key, raw, encoded, pin }
    }

    /// What is seen, or its rows: somebody else may have sent the same meanwhile.
    fn unless_encoded(&self, key: &Key, raw: Raw) -> (Option<Raw>, Option<Arc<Pin>>) {
        match self.encoded.index().pin(key) {
            Some(pin) => (None, Some(Arc::new(pin))),
            None => (Some(raw), None),
        }
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

    /// One step: the one that was begun, or one for everyone who is scheduled.
    fn step(&mut self) -> Vec<(SeqId, Event)> {
        if let Some(Ahead { parts, logits }) = self.begun() {
            self.status.foreseen.fetch_add(1, Relaxed);
            self.report();
            let began = Instant::now();
            let events = self.compute(&parts, Some(logits));
            self.count(&parts, began, began.elapsed());
            return events;
        }
        let mut plan = self.scheduler.schedule();
        // Before anyone leaves the queue: whoever looks sees each request wait or run.
        self.report();
        self.start(&plan);
        let began = Instant::now();
        let mut events = self.encode(&mut plan);
        events.extend(self.remember(&mut plan));
        let parts = Instant::now();
        events.extend(self.compute(&plan.parts, None));
        self.count(&plan.parts, began, parts.elapsed());
        events
    }

    /// The step that was begun, of those that have not ended since.
    fn begun(&mut self) -> Option<Ahead> {
        let Ahead { mut parts, logits } = self.ahead.take()?;
        let here = |part: &(SeqId, usize)| self.scheduler.sequence(part.0).is_some();
        let rows = (0u32..).zip(&parts).filter(|(_, part)| here(part));
        let rows: Vec<u32> = rows.map(|(row, _)| row).collect();
        if rows.len() == parts.len() {
            return Some(Ahead { parts, logits });
        }
        parts.retain(here);
        if parts.is_empty() {
            return None;
        }
        let rest = guarded(|| {
            let rows = Tensor::from_slice(&rows, rows.len(), &self.batcher.device)?;
            logits.index_select(&rows, 0)
        });
        // Nothing was changed: it is computed again.
        rest.inspect_err(|error| warn!(%error, "a step that was begun is lost"))
            .ok()
            .map(|logits| Ahead { parts, logits })
    }

    /// Counts a step that began at some time, and what its parts took, which each had a share in by its rows.
    fn count(&self, parts: &[(SeqId, usize)], began: Instant, took: Duration) {
        let rows: usize = parts.iter().map(|(_, rows)| rows).sum();
        for (id, share) in parts {
            if let Some(client) = self.clients.get(id) {
                client.work.computed(took.mul_f64(*share as f64 / rows.max(1) as f64));
            }
        }
        let status = &self.status;
        status.steps.fetch_add(1, Relaxed);
        status.step_seconds.observe(began.elapsed().as_secs_f64());
        status.step_rows.observe(rows as f64);
        status.step_sequences.observe(parts.len() as f64);
    }

    /// Computes parts of a plan, from logits where it was begun. When that fails it is tried in halves, so that only those
    /// fail who cannot be computed alone.
    fn compute(&mut self, parts: &[(SeqId, usize)], begun: Option<Tensor>) -> Vec<(SeqId, Event)> {
        let is_begun = begun.is_some();
        let step = guarded(|| self.draw(parts, begun));
        if step.is_err() {
            // It stands on what has failed.
            self.ahead = None;
            self.scheduler.recall(parts);
        }
        match (step, parts) {
            (Ok(Step { drawn, mut events }), _) => {
                let ids = drawn.iter().map(|drawn| drawn.as_ref().ok().map(|drawn| drawn.id));
                let outcomes = self.scheduler.complete(parts, ids);
                // Each draw has an outcome, in the same order.
                let outcomes = outcomes.into_iter().zip(drawn);
                events.extend(outcomes.flat_map(|((id, outcome), drawn)| {
                    events_of(outcome, drawn).map(move |event| (id, event))
                }));
                events
            }
            (Err(error), parts) if is_begun => {
                warn!(sequences = parts.len(), %error, "a step that was begun failed and is tried again");
                self.compute(parts, None)
            }
            (Err(error), [(id, rows)]) => {
                error!(sequence = id.0, rows, %error, "a step failed");
                vec![(*id, Event::Failed(EngineError::Step))]
            }
            (Err(error), parts) => {
                warn!(sequences = parts.len(), %error, "a step failed and is tried in halves");
                let (first, second) = parts.split_at(parts.len() / 2);
                let mut events = self.compute(first, None);
                events.extend(self.compute(second, None));
                events
            }
        }
    }

    /// Runs the network, or goes on from its logits.
    fn draw(&mut self, parts: &[(SeqId, usize)], begun: Option<Tensor>) -> candle_core::Result<Step> {
        if matches!(self.task, Task::Embed(_)) {
            return Ok(Step { drawn: Vec::new(), events: self.embed(parts)? });
        }
        let aligns = |part: &(SeqId, usize)| matches!(self.readout(part.0), Readout::Alignment { .. });
        let (aligning, answering): (Vec<_>, Vec<_>) = parts.iter().copied().partition(aligns);
        // First, because it changes nothing if it fails; a draw moves on what the next one depends on.
        let mut events = aligning
            .iter()
            .map(|part| Ok((part.0, self.align(*part)?)))
            .collect::<candle_core::Result<Vec<_>>>()?;
        // Before some of them go on to the next step.
        let drawing: Vec<_> = parts.iter().copied().filter(|part| self.scheduler.draws(*part)).collect();
        let answered = self.answer(&answering, begun)?;
        events.extend(answered.events);
        let mut drawn = answered.drawn.into_iter();
        let draw = |part: &(SeqId, usize)| match aligning.contains(part) {
            // Ends the sequence, which has no room for more.
            true => Some(Ok(Drawn { id: 0, logprob: 0.0, top: Vec::new() })),
            false => drawn.next(),
        };
        Ok(Step { drawn: drawing.iter().filter_map(draw).collect(), events })
    }

    fn readout(&self, id: SeqId) -> Readout {
        self.clients.get(&id).map_or(Readout::Answer, |client| client.readout)
    }

    fn answer(&mut self, parts: &[(SeqId, usize)], begun: Option<Tensor>) -> candle_core::Result<Step> {
        if parts.is_empty() {
            return Ok(Step::default());
        }
        let drawing = parts.iter().filter(|part| self.scheduler.draws(**part));
        let ids: Vec<SeqId> = drawing.map(|part| part.0).collect();
        let (logits, events) = match begun {
            Some(logits) => (logits, Vec::new()),
            None => {
                let logits = self.forward(parts, None, &ids)?;
                let events = self.probe(parts, &logits, ids.len())?;
                (logits, events)
            }
        };
        if ids.is_empty() {
            return Ok(Step { drawn: Vec::new(), events });
        }
        let drawing = self.sampler.start(&logits.narrow(0, 0, ids.len())?, &ids)?;
        if self.config.look_ahead {
            self.ahead = self.look_ahead(parts, &drawing);
        }
        let drawn = self.sampler.finish(drawing, &ids)?;
        Ok(Step { drawn, events })
    }

    /// Begins the step behind one whose tokens are still being drawn, where it is known but for those.
    fn look_ahead(&mut self, parts: &[(SeqId, usize)], drawing: &Drawing) -> Option<Ahead> {
        let next = self.scheduler.foresee(parts)?;
        // Both are in the order of the sequences, and all of the step draw.
        let row = |(id, _): &(SeqId, usize)| parts.partition_point(|part| part.0 < *id) as u32;
        let from = next.iter().map(row).collect();
        match guarded(|| self.forward(&next, Some((drawing, from)), &[])) {
            Ok(logits) => Some(Ahead { parts: next, logits }),
            Err(error) => {
                // In its turn it is tried again, and fails for those that it must.
                warn!(sequences = next.len(), %error, "a step could not be begun before its turn");
                self.scheduler.recall(parts);
                None
            }
        }
    }

    /// The logits of a step: of each row that a token is drawn behind, in order, and then of those that are asked for
    /// besides. `fed`: draws that are its tokens, and which of them each row's is. Meanwhile it is found out what
    /// `drawing` may draw.
    fn forward(
        &mut self,
        parts: &[(SeqId, usize)],
        fed: Option<(&Drawing, Vec<u32>)>,
        drawing: &[SeqId],
    ) -> candle_core::Result<Tensor> {
        let clients = &self.clients;
        let rows = |id, medium: usize| {
            let encoded = clients.get(&id)?.media[medium].encoded.as_ref()?;
            Some(encoded.rows.clone())
        };
        let probed = |id| match self.readout(id) {
            Readout::Probability { position, .. } => position..position + 1,
            _ => 0..0,
        };
        let mut lists = self.batcher.gather(parts, &self.scheduler, rows, probed)?;
        if let Some((drawing, from)) = fed {
            lists.feed(drawing, from);
        }
        let (recorded, sampler) = (&self.recorded, &mut self.sampler);
        rayon::in_place_scope(|scope| {
            if sampler.is_constrained(drawing) {
                scope.spawn(|_| sampler.prepare(drawing));
            }
            if let Some(logits) = recorded.as_ref().and_then(|recorded| recorded.replay(&mut lists)) {
                self.status.replayed.fetch_add(1, Relaxed);
                return logits;
            }
            self.model.forward(&lists.upload(&self.batcher.device)?, &self.cache)
        })
    }

    /// The probabilities that were asked for, from the logits behind the first `skip`.
    fn probe(
        &self,
        parts: &[(SeqId, usize)],
        logits: &Tensor,
        skip: usize,
    ) -> candle_core::Result<Vec<(SeqId, Event)>> {
        let rows = logits.dim(0)? - skip;
        if rows == 0 {
            return Ok(Vec::new());
        }
        let asked = parts.iter().filter_map(|&(id, rows)| {
            let Readout::Probability { id: token, position } = self.readout(id) else { return None };
            let computed = self.scheduler.sequence(id)?.computed;
            (computed..computed + rows).contains(&position).then_some((id, token))
        });
        let (ids, tokens): (Vec<_>, Vec<_>) = asked.unzip();
        let width = logits.dim(1)?;
        let found = probabilities(&logits.narrow(0, skip, rows)?, &tokens, &vec![width; tokens.len()])?;
        Ok(ids.into_iter().zip(found.into_iter().map(Event::Probability)).collect())
    }

    /// Computes one sequence as a whole, and how it follows its memory.
    fn align(&self, (id, rows): (SeqId, usize)) -> candle_core::Result<Event> {
        let (Readout::Alignment { first, count, ids, frames }, Some(sequence)) =
            (self.readout(id), self.scheduler.sequence(id))
        else {
            candle_core::bail!("no alignment was asked for")
        };
        let wanted = first..first + count;
        let batch = self.batcher.build(&[(id, rows)], &self.scheduler, |_, _| None, |_| wanted.clone())?;
        let aligned = self.model.align(&batch, frames, &self.cache)?;
        // The first row of logits is that of the last token, from which nothing is drawn.
        let logits = aligned.logits.narrow(0, 1, count)?;
        let targets = &sequence.tokens[first + 1..first + 1 + count];
        Ok(Event::Aligned(Box::new(Alignment {
            rows,
            frames,
            attention: aligned.attention.flatten_all()?.to_vec1()?,
            probabilities: probabilities(&logits, targets, &vec![ids; count])?,
        })))
    }

    /// A vector for each sequence, which ends with it. Media and texts go through other parts of a network.
    fn embed(&self, parts: &[(SeqId, usize)]) -> candle_core::Result<Vec<(SeqId, Event)>> {
        let shows = |part: &(SeqId, usize)| {
            self.scheduler.sequence(part.0).is_some_and(|sequence| !sequence.media.is_empty())
        };
        let (seen, read): (Vec<_>, Vec<_>) = parts.iter().copied().partition(shows);
        let rows = |id, medium: usize| {
            let encoded = self.clients.get(&id)?.media[medium].encoded.as_ref()?;
            Some(encoded.rows.clone())
        };
        let mut events = Vec::with_capacity(2 * parts.len());
        for parts in [seen, read].into_iter().filter(|parts| !parts.is_empty()) {
            let batch = self.batcher.build(&parts, &self.scheduler, rows, |_| 0..0)?;
            let vectors = self.model.embed(&batch)?.to_vec2::<f32>()?;
            for ((id, _), vector) in parts.into_iter().zip(vectors) {
                if !vector.iter().all(|number| number.is_finite()) {
                    events.push((id, Event::Failed(EngineError::NotFinite)));
                    continue;
                }
                events.push((id, Event::Embedded(vector)));
                let end = Event::Finished { reason: FinishReason::Stop, generated: 0, end: None };
                events.push((id, end));
            }
        }
        Ok(events)
    }

    /// Tells those that run for the first time; they leave the queue.
    fn start(&mut self, plan: &Plan) {
        for (id, _) in &plan.parts {
            let Some(client) = self.clients.get_mut(id).filter(|client| client.started.is_none()) else {
                continue;
            };
            let sequence = self.scheduler.sequence(*id);
            let reused = sequence.and_then(|sequence| sequence.reused).unwrap_or(0);
            let prompt = sequence.map_or(0, |sequence| sequence.prompt);
            self.status.prompt_tokens.fetch_add(prompt as u64, Relaxed);
            self.status.reused_tokens.fetch_add(reused as u64, Relaxed);
            client.work.started(reused);
            client.started = Some(Instant::now());
            client.place = None;
            for (index, medium) in client.media.iter_mut().enumerate() {
                medium.pin = None;
                if medium.encoded.is_some() {
                    self.status.encoder_hits.fetch_add(1, Relaxed);
                    continue;
                }
                // Encoded for another request meanwhile: its pixels, and their share of memory, are free.
                medium.encoded = self.encoded.get(&medium.key);
                if medium.encoded.is_some() {
                    self.status.encoder_hits.fetch_add(1, Relaxed);
                    medium.raw = None;
                    self.scheduler.encoded(*id, index);
                }
            }
            // Whoever has left is removed before the next step.
            let _ = client.events.send(Event::Started { reused });
        }
    }

    /// Encodes the plan's media. Sequences whose media cannot be encoded leave the plan.
    fn encode(&mut self, plan: &mut Plan) -> Vec<(SeqId, Event)> {
        let mut all: Vec<Fresh> = Vec::new();
        // Whose they are.
        let mut fresh_of = Vec::new();
        for &(id, index) in &plan.encode {
            let Some(medium) = self.clients.get_mut(&id).map(|client| &mut client.media[index]) else {
                continue;
            };
            let (key, raw) = (medium.key, medium.raw.take());
            // Two requests may have brought the same picture. Held from here on, it is not thrown out for another.
            medium.encoded = self.encoded.get(&key);
            if medium.encoded.is_some() || all.iter().any(|fresh| fresh.key == key) {
                continue;
            }
            let began = Instant::now();
            match guarded(|| self.fresh(id, index, raw)) {
                Ok(fresh) => {
                    all.push(fresh);
                    fresh_of.push(id);
                }
                Err(error) => error!(sequence = id.0, %error, "a medium could not be prepared"),
            }
            if let Some(client) = self.clients.get(&id) {
                client.work.prepared(began.elapsed());
            }
        }
        let began = Instant::now();
        self.encode_all(&all);
        self.share_encoding(&fresh_of, began.elapsed());
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

    /// Counts media that were encoded together, for those whose they are.
    fn share_encoding(&self, of: &[SeqId], took: Duration) {
        self.status.encoder_misses.fetch_add(of.len() as u64, Relaxed);
        for client in of.iter().filter_map(|id| self.clients.get(id)) {
            client.work.encoded(took.div_f64(of.len() as f64));
        }
    }

    /// Prepares a medium that will be inside the text.
    fn fresh(&self, id: SeqId, index: usize, raw: Option<Raw>) -> candle_core::Result<Fresh> {
        let (Some(raw), Some(sequence)) = (raw, self.scheduler.sequence(id)) else {
            candle_core::bail!("it has neither pixels nor rows")
        };
        let span = &sequence.media[index];
        let tokens = &sequence.tokens[span.rows.clone()];
        let rows = tokens.iter().filter(|token| self.batcher.placeholders.contains(token)).count();
        Ok(Fresh { key: span.key, rows, features: self.features(&raw)? })
    }

    /// Uploads and prepares a medium.
    fn features(&self, raw: &Raw) -> candle_core::Result<Features> {
        let device = &self.batcher.device;
        let (tensor, size) = match raw {
            Raw::Picture(picture) => {
                let (width, height) = (picture.width, picture.height);
                let pixels = Tensor::from_slice(&picture.rgb, (height, width, 3), device)?;
                (self.preprocess.run(Medium::Picture(&pixels))?, MediaSize::Image { width, height })
            }
            Raw::Moment(frames) => {
                let Some(&Picture { width, height, .. }) = frames.first() else {
                    candle_core::bail!("a moment without frames")
                };
                let pixels: Vec<u8> = frames.iter().flat_map(|frame| frame.rgb.iter().copied()).collect();
                let pixels = Tensor::from_vec(pixels, (frames.len(), height, width, 3), device)?;
                (self.preprocess.run(Medium::Moment(&pixels))?, MediaSize::Moment { width, height })
            }
            Raw::Sound(sound) => {
                let samples = Tensor::from_slice(&sound.samples, sound.samples.len(), device)?;
                let (frames, peak) = (sound.frames.clone(), sound.peak);
                let medium = Medium::Sound { samples: &samples, frames, peak };
                (self.preprocess.run(medium)?, MediaSize::Sound)
            }
        };
        Ok(Features { tensor, size })
    }

    /// Encodes media of memories and writes them to their pages, all at once or, when that fails, one by one. Sequences
    /// whose media cannot be written leave the plan.
    fn remember(&mut self, plan: &mut Plan) -> Vec<(SeqId, Event)> {
        let mut lost = std::mem::take(&mut plan.remember);
        if lost.is_empty() || self.try_remember(&lost) {
            return Vec::new();
        }
        if lost.len() > 1 {
            lost.retain(|&medium| !self.try_remember(&[medium]));
        }
        let lost: BTreeSet<SeqId> = lost.into_iter().map(|(id, _)| id).collect();
        plan.parts.retain(|part| !lost.contains(&part.0));
        lost.into_iter().map(|id| (id, Event::Failed(EngineError::Step))).collect()
    }

    fn try_remember(&mut self, media: &[(SeqId, usize)]) -> bool {
        let mut began = Instant::now();
        let written = guarded(|| {
            let features = media.iter().map(|&(id, index)| {
                let client = self.clients.get(&id);
                let Some((client, raw)) =
                    client.and_then(|client| Some((client, client.media[index].raw.as_ref()?)))
                else {
                    candle_core::bail!("there is nothing to encode")
                };
                let began = Instant::now();
                let features = self.features(raw);
                client.work.prepared(began.elapsed());
                features
            });
            let features = features.collect::<Result<Vec<_>, _>>()?;
            began = Instant::now();
            let encoded = self.encode_together(&features)?;
            let places = media.iter().filter_map(|&(id, index)| self.scheduler.sequence(id)?.place(index));
            let slots = self.batcher.memory_slots(places)?;
            self.model.remember(&encoded, &slots, &self.cache)
        });
        self.share_encoding(&media.iter().map(|(id, _)| *id).collect::<Vec<_>>(), began.elapsed());
        match written {
            Ok(()) => media.iter().for_each(|&(id, index)| self.scheduler.encoded(id, index)),
            Err(ref error) => error!(media = media.len(), %error, "media could not be remembered"),
        }
        written.is_ok()
    }

    /// Encodes media into the cache, all at once or, when that fails, one by one.
    fn encode_all(&mut self, all: &[Fresh]) {
        if all.is_empty() {
            return;
        }
        let encoded = guarded(|| {
            self.encode_together(&all.iter().map(|fresh| fresh.features.clone()).collect::<Vec<_>>())
        });
        let cached = encoded.and_then(|rows| {
            let expected: usize = all.iter().map(|fresh| fresh.rows).sum();
            if rows.dim(0)? != expected {
                candle_core::bail!("{:?} rows were encoded, the prompt has {expected}", rows.shape())
            }
            let mut first = 0;
            for fresh in all {
                // A copy, so that one medium in the cache does not keep the memory of all.
                self.encoded.insert(fresh.key, rows.narrow(0, first, fresh.rows)?.copy()?);
                first += fresh.rows;
            }
            Ok(())
        });
        let Err(error) = cached else { return };
        error!(media = all.len(), %error, "encoding failed");
        if all.len() > 1 {
            for single in all.chunks(1) {
                self.encode_all(single);
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
            if let (Event::Finished { .. }, Some(started)) = (&event, client.started) {
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

    /// Answers small requests of its own, so that what cannot work is found before anyone is served.
    fn warm_up(&mut self, config: EngineConfig) -> candle_core::Result<()> {
        let requests = match &self.task {
            Task::Embed(info) => {
                let text = vec![0; info.filler.map_or(1, |_| config.context)];
                let text = Request::embedding(Prompt { tokens: text, spans: Vec::new() }, Vec::new());
                let (size, source) = self.small_medium();
                let picture = info.pictures.map(|_| {
                    let tokens = self.preprocess.footprint(size).map_err(candle_core::Error::wrap)?.tokens;
                    let spans = vec![request::Span::line(0..tokens.len())];
                    let media = vec![Media { key: Key::of(b"warm-up"), source }];
                    Ok::<_, candle_core::Error>(Request::embedding(Prompt { tokens, spans }, media))
                });
                [text].into_iter().chain(picture.transpose()?).collect()
            }
            Task::Chat(_) | Task::Transcribe(_) => vec![self.warm_up_answer(config)?],
        };
        for request in requests {
            let (events, mut receiver) = unbounded_channel();
            self.submit(Submission {
                id: SeqId(0),
                scope: None,
                request,
                events,
                work: Work::default(),
                place: None,
            });
            while !self.scheduler.is_idle() {
                let events = self.step();
                self.deliver(events);
            }
            let mut last = None;
            while let Ok(event) = receiver.try_recv() {
                last = Some(event);
            }
            match last {
                Some(Event::Finished { .. }) => {}
                Some(Event::Failed(error)) => candle_core::bail!("the first step: {error}"),
                _ => candle_core::bail!("the first step gave no answer"),
            }
        }
        Ok(())
    }

    /// Records what is done again and again, where the device can. What cannot be recorded is asked for launch by launch.
    fn record(&mut self) {
        if !records(&self.batcher.device) {
            return;
        }
        let began = Instant::now();
        if self.preprocess.has_one_shape() {
            match self.record_encoding() {
                Ok(recorded) => self.recorded_encoding = Some(recorded),
                Err(error) => warn!(%error, "encoding cannot be recorded, and is slower for that"),
            }
        }
        if matches!(self.task, Task::Embed(_)) {
            return;
        }
        match self.record_steps() {
            Ok(recorded) => {
                let (steps, seconds) = (recorded.len(), began.elapsed().as_secs_f64());
                info!(steps, encoding = self.recorded_encoding.is_some(), seconds, "steps are recorded");
                self.recorded = Some(recorded);
            }
            Err(error) => {
                warn!(%error, "steps cannot be recorded: each of their launches is asked for by itself, which is slower");
            }
        }
    }

    fn record_encoding(&self) -> candle_core::Result<RecordedEncoding> {
        let raw = match self.small_medium() {
            (_, Source::Pixels(picture)) => Raw::Picture(picture),
            (_, Source::Sound(sound)) => Raw::Sound(sound),
            _ => candle_core::bail!("it is neither a picture nor a sound"),
        };
        RecordedEncoding::new(&*self.model, &self.features(&raw)?, &self.batcher.device)
    }

    fn record_steps(&self) -> candle_core::Result<Recorded> {
        let EngineConfig { limits, page_size, context, .. } = self.config;
        let all = matches!(self.task, Task::Transcribe(_));
        let size = if all { MediaSize::Sound } else { MediaSize::HUGE };
        // What sees nothing has no memory either.
        let memory = self.preprocess.footprint(size).map_or(0, |footprint| footprint.memory);
        let scope = Scope {
            sequences: limits.sequences.min(limits.rows),
            pages: context.div_ceil(page_size),
            memory: (memory > 0).then(|| MemoryScope { pages: memory.div_ceil(page_size), all }),
            positions: self.batcher.positions,
        };
        Recorded::new(scope, &*self.model, &self.cache, &self.batcher.device)
    }

    /// Encodes media.
    fn encode_together(&self, media: &[Features]) -> candle_core::Result<Tensor> {
        if let Some(rows) = self.recorded_encoding.as_ref().and_then(|recorded| recorded.replay(media)) {
            self.status.encodings_replayed.fetch_add(1, Relaxed);
            return rows;
        }
        self.model.encode(media)
    }

    /// A small picture, or a short silence.
    fn small_medium(&self) -> (MediaSize, Source) {
        if matches!(self.task, Task::Transcribe(_)) { silence() } else { gray_picture() }
    }

    /// A request for two tokens about a small picture, or a short silence.
    fn warm_up_answer(&self, config: EngineConfig) -> candle_core::Result<Request> {
        const ANSWER: usize = 2;
        let hears = matches!(self.task, Task::Transcribe(_));
        let rows = config.pages * config.page_size;
        let (size, source) = self.small_medium();
        let footprint = self.preprocess.footprint(size).map_err(candle_core::Error::wrap)?;
        let Footprint { mut tokens, grid, memory } = footprint;
        let beside = rows.saturating_sub(memory.next_multiple_of(config.page_size));
        let mut spans = vec![request::Span { rows: 0..tokens.len(), grid, memory }];
        let mut media = vec![Media { key: Key::of(b"warm-up"), source }];
        // A picture where it has room.
        if tokens.len() + 1 + ANSWER > config.context.min(beside) && !hears {
            (tokens, spans, media) = (Vec::new(), Vec::new(), Vec::new());
        }
        tokens.push(0);
        let room = config.context.min(rows) - tokens.len();
        Ok(Request {
            limits: request::Limits { tokens: ANSWER.min(room), stops: Arc::new([]) },
            prompt: Prompt { tokens, spans },
            media,
            sampling: Sampling::greedy(),
            readout: Readout::Answer,
            constraint: None,
        })
    }
}

/// A small picture.
fn gray_picture() -> (MediaSize, Source) {
    const SIDE: usize = 32;
    let gray = Picture::new(SIDE, SIDE, vec![128; SIDE * SIDE * 3]);
    (MediaSize::Image { width: SIDE, height: SIDE }, Source::Pixels(Arc::new(gray)))
}

/// A short silence.
fn silence() -> (MediaSize, Source) {
    let sound = Sound { samples: Arc::new([0.0; 400]), frames: 0..1, peak: 0.0 };
    (MediaSize::Sound, Source::Sound(sound))
}

/// What a step gave.
#[derive(Default)]
struct Step {
    /// A token, or why there is none, for each part that draws.
    drawn: Vec<Result<Drawn, EngineError>>,
    /// What was wanted besides.
    events: Vec<(SeqId, Event)>,
}

/// Runs `work`; a panic in it becomes an error.
fn guarded<T>(work: impl FnOnce() -> candle_core::Result<T>) -> candle_core::Result<T> {
    // Whatever a step touches belongs to sequences that fail with it: no half-changed state is used again.
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|panic| candle_core::bail!("panic: {}", panic_text(&*panic)))
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}

fn events_of(outcome: Outcome, drawn: Result<Drawn, EngineError>) -> impl Iterator<Item = Event> {
    let (token, end) = match (outcome, drawn) {
        (_, Err(error)) => (None, Some(Event::Failed(error))),
        (Outcome::Token(_), Ok(drawn)) => (Some(drawn), None),
        (Outcome::Finished(Some(_), reason, generated), Ok(drawn)) => {
            (Some(drawn), Some(Event::Finished { reason, generated, end: None }))
        }
        (Outcome::Finished(None, reason, generated), Ok(end)) => {
            (None, Some(Event::Finished { reason, generated, end: Some(end) }))
        }
        (Outcome::Failed, Ok(_)) => (None, Some(Event::Failed(EngineError::Step))),
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

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use percept_models::{Checkpoint, LoadOptions};

    use super::*;

    fn engine() -> Handle {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/llava");
        let options = LoadOptions {
            device: Device::Cpu,
            dtype: DType::F32,
            fit: None,
            most_bytes: u64::MAX,
            progress: Box::new(|_, _| {}),
        };
        let loaded = percept_models::load(&Checkpoint::new(folder), options).unwrap();
        let limits = Limits { sequences: 4, rows: 64, chunk: 64, encoded: 64, spare: 64, encode: 64 };
        let config = EngineConfig {
            limits,
            pages: 64,
            page_size: 16,
            queue: 8,
            context: 512,
            vocabulary: 400,
            look_ahead: true,
        };
        spawn(loaded, config).unwrap()
    }

    fn submit(engine: &Handle, tokens: usize) -> Events {
        let request = Request {
            prompt: Prompt { tokens: (5..25).collect(), spans: Vec::new() },
            media: Vec::new(),
            sampling: Sampling::greedy(),
            limits: request::Limits { tokens, stops: Arc::new([]) },
            readout: Readout::Answer,
            constraint: None,
        };
        engine.submit(request).unwrap()
    }

    /// The tokens of an answer, and how it ended.
    async fn answer(mut events: Events) -> (Vec<u32>, Event) {
        let mut tokens = Vec::new();
        loop {
            match events.next().await {
                Event::Token(drawn) => tokens.push(drawn.id),
                event if event.is_last() => return (tokens, event),
                _ => {}
            }
        }
    }

    #[tokio::test]
    async fn an_engine_that_panics_fails_its_requests_and_goes_on() {
        let engine = engine();
        let (expected, _) = answer(submit(&engine, 5)).await;
        assert_eq!(expected.len(), 5);
        for crash in 1..=2 * MOST_IN_VAIN as u64 {
            let mut running = submit(&engine, 400);
            while !matches!(running.next().await, Event::Token(_)) {}
            engine.commands.send(Command::Crash).unwrap();
            let (_, end) = answer(running).await;
            assert_eq!(end, Event::Failed(EngineError::Step));
            let (tokens, end) = answer(submit(&engine, 5)).await;
            assert_eq!((tokens, end.is_last()), (expected.clone(), true));
            assert!(matches!(end, Event::Finished { .. }));
            assert_eq!(engine.status().restarts(), crash);
        }
        assert!(engine.status().alive());
        assert_eq!((engine.waiting(), engine.status().pages().0), (0, 0));
    }

    #[tokio::test]
    async fn an_engine_that_does_nothing_but_panic_ends() {
        let engine = engine();
        for _ in 0..=MOST_IN_VAIN {
            // It may have ended already.
            let _ = engine.commands.send(Command::Crash);
        }
        engine.ended().await;
        assert!(!engine.status().alive());
    }
}
