//! The asynchronous side of an engine.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    mpsc::Sender,
};

use percept_models::nn::sample::Drawn;
use prometheus::{Histogram, HistogramOpts, exponential_buckets};
use tokio::sync::{
    OwnedSemaphorePermit, Semaphore,
    mpsc::{self, UnboundedReceiver},
    watch,
};

use super::{
    cache::{Index, Pin},
    pages::Key,
    scheduler::FinishReason,
    sequence::{SeqId, together},
    work::Work,
};
use crate::request::{Priority, Prompt, Request};

/// What a request's owner hears.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// It left the queue; the rows of so many tokens of its prompt were in the cache already.
    Started {
        /// Tokens.
        reused: usize,
    },
    /// The probability that was asked for; see [`Readout::Probability`](crate::request::Readout).
    Probability(f32),
    /// The alignment that was asked for; see [`Readout::Alignment`](crate::request::Readout).
    Aligned(Box<Alignment>),
    /// The vector that was asked for; see [`Readout::Embedding`](crate::request::Readout).
    Embedded(Vec<f32>),
    /// The next token of the answer.
    Token(Drawn),
    /// The answer is complete. Nothing follows.
    Finished {
        /// Why.
        reason: FinishReason,
        /// Its tokens, the one that ended it included.
        generated: usize,
        /// The token that ended it and is not part of it.
        end: Option<Drawn>,
    },
    /// The answer cannot be completed. Nothing follows.
    Failed(EngineError),
}

impl Event {
    /// Whether nothing follows.
    pub fn is_last(&self) -> bool {
        matches!(self, Self::Finished { .. } | Self::Failed(_))
    }
}

/// How a prompt follows its memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Alignment {
    /// Tokens of the prompt.
    pub rows: usize,
    /// Rows of the memory that counted.
    pub frames: usize,
    /// Where each token looks, `[rows, frames]`; see [`percept_models::Aligned`].
    pub attention: Vec<f32>,
    /// Of the tokens whose probabilities were wanted.
    pub probabilities: Vec<f32>,
}

/// Why a request that was accepted failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// A step failed; the log says why.
    #[error("the computation failed")]
    Step,
    /// The network gave infinite numbers or none.
    #[error("the network produced numbers that are not finite")]
    NotFinite,
    /// What the answer must be cannot be followed any further.
    #[error("the grammar of the answer cannot be followed any further; a simpler one may do")]
    Constraint,
    /// The tokenizer gave no text for tokens.
    #[error("the tokens cannot be turned into text")]
    Text,
    /// The engine is gone.
    #[error("the engine has stopped")]
    Stopped,
}

/// Why a request was not accepted. It may be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The queue is full.
    #[error("{waiting} requests are waiting, which is the limit; try again in {retry_after} s")]
    Busy {
        /// Requests in the queue.
        waiting: usize,
        /// Seconds until room is likely, 1 to 60.
        retry_after: u64,
    },
    /// The engine takes no more requests.
    #[error("the server is shutting down")]
    Stopped,
}

/// What goes to the engine's thread.
pub(super) enum Command {
    Submit(Box<Submission>),
    /// Finish what was accepted, then end.
    Drain,
    /// Meet a mistake of the engine's own.
    #[cfg(test)]
    Crash,
}

/// A request with its way back.
pub(super) struct Submission {
    /// Those with smaller ones go first.
    pub(super) id: SeqId,
    /// Those of one scope share what is in the caches.
    pub(super) scope: Option<Key>,
    pub(super) request: Request,
    pub(super) events: mpsc::UnboundedSender<Event>,
    pub(super) work: Work,
    /// Its place in the queue, given up when it starts to run; a part of work that was accepted has none.
    pub(super) place: Option<OwnedSemaphorePermit>,
}

impl Submission {
    /// A request, and where its events are heard.
    fn new(
        id: SeqId,
        scope: Option<Key>,
        request: Request,
        work: Work,
        place: Option<OwnedSemaphorePermit>,
    ) -> (Self, UnboundedReceiver<Event>) {
        let (events, receiver) = mpsc::unbounded_channel();
        (Self { id, scope, request, events, work, place }, receiver)
    }
}

/// Submits requests to an engine. Clones talk to the same one.
#[derive(Debug, Clone)]
pub struct Handle {
    pub(super) commands: Sender<Command>,
    pub(super) queue: Arc<Semaphore>,
    pub(super) queue_size: usize,
    pub(super) index: Index,
    pub(super) status: Arc<Status>,
    pub(super) context: usize,
    /// Pages of the cache, and rows of a page.
    pub(super) pages: usize,
    pub(super) page_size: usize,
    pub(super) sequences: usize,
    /// The number of the next turn.
    pub(super) next: Arc<AtomicU64>,
    /// Closed when the engine's thread ends.
    pub(super) ended: watch::Receiver<()>,
}

/// A place in an engine's queue, for one request. Dropping it gives it up.
#[derive(Debug)]
pub struct Place {
    handle: Handle,
    priority: Priority,
    scope: Option<Key>,
    permit: OwnedSemaphorePermit,
    work: Work,
}

impl Place {
    /// What is taken by all that is asked in this place, while it is and when it is over.
    pub fn work(&self) -> Work {
        self.work.clone()
    }

    /// Queues the request.
    ///
    /// # Errors
    /// When the engine has stopped.
    pub fn submit(self, request: Request) -> Result<Events, Refused> {
        let Turn { handle, priority, scope, number, work, .. } = self.turn();
        let id = SeqId::new(priority, number * MOST_PARTS);
        handle.send(Submission::new(id, scope, request, work, Some(self.permit)))
    }

    /// A turn for a part of larger work, which keeps the place until all of it is done.
    pub fn turn(&self) -> Turn {
        Turn {
            handle: self.handle.clone(),
            priority: self.priority,
            scope: self.scope,
            number: self.handle.next.fetch_add(1, Relaxed),
            parts: AtomicU64::new(0),
            work: self.work.clone(),
        }
    }
}

/// A place in line: what is submitted in it goes before all that is submitted in later ones of its priority.
#[derive(Debug)]
pub struct Turn {
    handle: Handle,
    priority: Priority,
    scope: Option<Key>,
    number: u64,
    /// Requests so far.
    parts: AtomicU64,
    work: Work,
}

/// Requests that a turn can have: more than all steps of all beams at all temperatures.
const MOST_PARTS: u64 = 1 << 24;

impl Turn {
    /// Queues a request.
    ///
    /// # Errors
    /// When the engine has stopped.
    pub fn submit(&self, request: Request) -> Result<Events, Refused> {
        let number = self.number * MOST_PARTS + self.parts.fetch_add(1, Relaxed);
        let id = SeqId::new(self.priority, number);
        self.handle.send(Submission::new(id, self.scope, request, self.work.clone(), None))
    }
}

/// The events of one request, in order. Dropping them cancels it.
#[derive(Debug)]
pub struct Events {
    receiver: UnboundedReceiver<Event>,
    work: Work,
    status: Arc<Status>,
    /// Tokens so far.
    tokens: usize,
}

impl Events {
    /// The next event; after [`Event::Finished`] or [`Event::Failed`] there is none.
    pub async fn next(&mut self) -> Event {
        let event = self.receiver.recv().await.unwrap_or(Event::Failed(EngineError::Stopped));
        match &event {
            Event::Token(_) => {
                self.tokens += 1;
                let gap = self.work.token();
                if let Some(gap) = gap.filter(|_| self.tokens > 1) {
                    self.status.gap_seconds.observe(gap.as_secs_f64());
                }
            }
            Event::Finished { generated, .. } => {
                self.work.finished(generated.saturating_sub(self.tokens) as u64);
            }
            Event::Failed(_) => self.work.failed(),
            Event::Started { .. } | Event::Probability(_) | Event::Aligned(_) | Event::Embedded(_) => {}
        }
        event
    }
}

impl Handle {
    /// Takes a place in the queue. Taken before a request's pictures are decoded, so that the queue bounds how many
    /// requests wait for that, too.
    ///
    /// # Errors
    /// When the queue is full or the engine takes no more requests.
    pub fn reserve(&self) -> Result<Place, Refused> {
        self.reserve_in(None, Priority::default())
    }

    /// Takes a place in the queue, in front of all lower priorities. What is computed in it is found in the caches by
    /// requests of the same scope alone: nobody learns from the time that an answer takes what somebody else has asked.
    ///
    /// # Errors
    /// When the queue is full or the engine takes no more requests.
    pub fn reserve_in(&self, scope: Option<Key>, priority: Priority) -> Result<Place, Refused> {
        self.reserve_for(Work::default(), scope, priority)
    }

    /// Takes a place for what goes on with earlier work, and is counted with it.
    ///
    /// # Errors
    /// When the queue is full or the engine takes no more requests.
    pub fn reserve_for(&self, work: Work, scope: Option<Key>, priority: Priority) -> Result<Place, Refused> {
        if self.status.draining.load(Relaxed) {
            return Err(Refused::Stopped);
        }
        let permit = Arc::clone(&self.queue).try_acquire_owned().map_err(|_| self.busy())?;
        Ok(Place { handle: self.clone(), priority, scope, permit, work })
    }

    /// Queues a request that is ready.
    ///
    /// # Errors
    /// When the queue is full or the engine takes no more requests.
    pub fn submit(&self, request: Request) -> Result<Events, Refused> {
        self.reserve()?.submit(request)
    }

    fn send(
        &self,
        (submission, receiver): (Submission, UnboundedReceiver<Event>),
    ) -> Result<Events, Refused> {
        let work = submission.work.clone();
        work.queued(submission.request.prompt.tokens.len());
        self.commands.send(Command::Submit(Box::new(submission))).map_err(|_| Refused::Stopped)?;
        Ok(Events { receiver, work, status: Arc::clone(&self.status), tokens: 0 })
    }

    /// Keeps the encoded rows of a medium, if they are in the cache.
    pub fn pin(&self, key: &Key) -> Option<Pin> {
        self.index.pin(key)
    }

    /// Most tokens of prompt and answer together.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Rows of text and of memories that the cache holds.
    pub fn rows(&self) -> usize {
        self.pages * self.page_size
    }

    /// Rows that the media of a prompt take in the cache besides the prompt's, in whole pages.
    pub fn media_rows(&self, prompt: &Prompt) -> usize {
        let memories = together(prompt.spans.iter().map(|span| (&span.rows, span.memory)));
        memories.into_iter().map(|(_, rows)| rows.next_multiple_of(self.page_size)).sum()
    }

    /// Most tokens of prompt and answer together beside so many rows of media.
    pub fn context_beside(&self, media_rows: usize) -> usize {
        self.context.min(self.rows().saturating_sub(media_rows))
    }

    /// Most sequences that are computed at once.
    pub fn sequences(&self) -> usize {
        self.sequences
    }

    /// Requests that have a place in the queue: those that do not run yet, and work in several turns that is not done.
    pub fn waiting(&self) -> usize {
        self.queue_size - self.queue.available_permits()
    }

    /// What the engine is doing.
    pub fn status(&self) -> &Status {
        &self.status
    }

    /// Takes no more requests and ends when those accepted are answered.
    pub fn drain(&self) {
        self.status.draining.store(true, Relaxed);
        // A stopped engine has nothing to finish.
        let _ = self.commands.send(Command::Drain);
    }

    /// Waits until the engine has ended, after [`Handle::drain`] or a failure.
    pub async fn ended(&self) {
        let mut ended = self.ended.clone();
        while ended.changed().await.is_ok() {}
    }

    fn busy(&self) -> Refused {
        let waiting = self.waiting();
        let rounds = waiting.div_ceil(self.sequences) as u64;
        let milliseconds = rounds * self.status.answer_ms.load(Relaxed);
        Refused::Busy { waiting, retry_after: milliseconds.div_ceil(1000).clamp(1, 60) }
    }
}

/// Figures of an engine, each true at some recent moment.
#[derive(Debug)]
pub struct Status {
    pub(super) alive: AtomicBool,
    pub(super) draining: AtomicBool,
    pub(super) running: AtomicUsize,
    pub(super) pages_used: AtomicUsize,
    pub(super) pages_total: AtomicUsize,
    pub(super) preemptions: AtomicU64,
    pub(super) steps: AtomicU64,
    pub(super) replayed: AtomicU64,
    pub(super) encodings_replayed: AtomicU64,
    pub(super) foreseen: AtomicU64,
    /// How long an answer takes from its first step, smoothed.
    pub(super) answer_ms: AtomicU64,
    pub(super) restarts: AtomicU64,
    pub(super) prompt_tokens: AtomicU64,
    pub(super) reused_tokens: AtomicU64,
    pub(super) encoder_hits: AtomicU64,
    pub(super) encoder_misses: AtomicU64,
    pub(super) step_seconds: Histogram,
    pub(super) step_rows: Histogram,
    pub(super) step_sequences: Histogram,
    pub(super) gap_seconds: Histogram,
}

impl Default for Status {
    fn default() -> Self {
        let histogram = |name: &str, help: &str, least: f64, factor: f64, count: usize| {
            let buckets = exponential_buckets(least, factor, count).expect("they ascend");
            Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets)).expect("its name is one")
        };
        Self {
            alive: AtomicBool::default(),
            draining: AtomicBool::default(),
            running: AtomicUsize::default(),
            pages_used: AtomicUsize::default(),
            pages_total: AtomicUsize::default(),
            preemptions: AtomicU64::default(),
            steps: AtomicU64::default(),
            replayed: AtomicU64::default(),
            encodings_replayed: AtomicU64::default(),
            foreseen: AtomicU64::default(),
            answer_ms: AtomicU64::default(),
            restarts: AtomicU64::default(),
            prompt_tokens: AtomicU64::default(),
            reused_tokens: AtomicU64::default(),
            encoder_hits: AtomicU64::default(),
            encoder_misses: AtomicU64::default(),
            step_seconds: histogram(
                "percept_step_seconds",
                "Time of a step, encoding included.",
                0.001,
                2.0,
                15,
            ),
            step_rows: histogram("percept_step_rows", "Rows (tokens) of a step.", 1.0, 2.0, 14),
            step_sequences: histogram("percept_step_sequences", "Requests in a step.", 1.0, 2.0, 10),
            gap_seconds: histogram(
                "percept_inter_token_seconds",
                "Time between two tokens of an answer.",
                0.001,
                2.0,
                15,
            ),
        }
    }
}

impl Status {
    /// Whether the engine works: its thread lives, and a real step has run.
    pub fn alive(&self) -> bool {
        self.alive.load(Relaxed)
    }

    /// Sequences that are being computed.
    pub fn running(&self) -> usize {
        self.running.load(Relaxed)
    }

    /// Pages of the cache in use, and pages there are.
    pub fn pages(&self) -> (usize, usize) {
        (self.pages_used.load(Relaxed), self.pages_total.load(Relaxed))
    }

    /// How often a sequence gave up its rows for an older one.
    pub fn preemptions(&self) -> u64 {
        self.preemptions.load(Relaxed)
    }

    /// Steps since the start.
    pub fn steps(&self) -> u64 {
        self.steps.load(Relaxed)
    }

    /// Steps of them that were recorded before and replayed.
    pub fn replayed(&self) -> u64 {
        self.replayed.load(Relaxed)
    }

    /// Media whose encoding was recorded before and replayed.
    pub fn encodings_replayed(&self) -> u64 {
        self.encodings_replayed.load(Relaxed)
    }

    /// Steps of them that began before the tokens of the step in front were there.
    pub fn foreseen(&self) -> u64 {
        self.foreseen.load(Relaxed)
    }

    /// How often the engine lost its requests and began anew.
    pub fn restarts(&self) -> u64 {
        self.restarts.load(Relaxed)
    }

    /// Tokens of prompts that were started, and those of them that were in the cache.
    pub fn prompt_tokens(&self) -> (u64, u64) {
        (self.prompt_tokens.load(Relaxed), self.reused_tokens.load(Relaxed))
    }

    /// Media whose rows were in the encoder cache, and media that were encoded.
    pub fn encoder(&self) -> (u64, u64) {
        (self.encoder_hits.load(Relaxed), self.encoder_misses.load(Relaxed))
    }

    /// How long steps take and what is in them, and how long a token takes: `percept_step_seconds` and so on.
    pub fn histograms(&self) -> [&Histogram; 4] {
        [&self.step_seconds, &self.step_rows, &self.step_sequences, &self.gap_seconds]
    }
}
