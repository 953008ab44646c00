//! What a request took of an engine: counted on both sides of it while it is answered.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// What the requests of one place in the queue have taken so far. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct Work(Arc<Mutex<Figures>>);

/// Figures of [`Work`].
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Figures {
    /// Tokens of prompts, media included.
    pub prompt: u64,
    /// Of these, those whose rows were in the cache already.
    pub reused: u64,
    /// Tokens of answers, those that ended them included.
    pub generated: u64,
    /// When the first request was queued.
    pub queued: Option<Instant>,
    /// When the first one left the queue.
    pub started: Option<Instant>,
    /// When the first token came.
    pub first: Option<Instant>,
    /// When the last token came.
    pub last: Option<Instant>,
    /// To resize and normalise pictures and to make spectra of sounds. Where a GPU works on its own this is how long it
    /// took to tell it.
    pub prepare: Duration,
    /// To encode media, divided among those that were encoded together.
    pub encode: Duration,
    /// All steps, each divided among those in it by their rows.
    pub compute: Duration,
    /// Whether a request failed.
    pub failed: bool,
}

impl Work {
    /// All so far.
    pub fn figures(&self) -> Figures {
        *self.lock()
    }

    pub(super) fn queued(&self, prompt: usize) {
        let mut figures = self.lock();
        figures.prompt += prompt as u64;
        figures.queued.get_or_insert_with(Instant::now);
    }

    pub(super) fn started(&self, reused: usize) {
        let mut figures = self.lock();
        figures.reused += reused as u64;
        figures.started.get_or_insert_with(Instant::now);
    }

    /// Another token; how long after the last one.
    pub(super) fn token(&self) -> Option<Duration> {
        let mut figures = self.lock();
        figures.generated += 1;
        let now = Instant::now();
        figures.first.get_or_insert(now);
        figures.last.replace(now).map(|last| now.saturating_duration_since(last))
    }

    /// The end of an answer, which has more tokens than were told of.
    pub(super) fn finished(&self, untold: u64) {
        let mut figures = self.lock();
        figures.generated += untold;
        if untold > 0 {
            let now = Instant::now();
            figures.first.get_or_insert(now);
            figures.last = Some(now);
        }
    }

    pub(super) fn failed(&self) {
        self.lock().failed = true;
    }

    pub(super) fn prepared(&self, took: Duration) {
        let mut figures = self.lock();
        figures.prepare += took;
        figures.compute += took;
    }

    pub(super) fn encoded(&self, took: Duration) {
        let mut figures = self.lock();
        figures.encode += took;
        figures.compute += took;
    }

    pub(super) fn computed(&self, took: Duration) {
        self.lock().compute += took;
    }

    fn lock(&self) -> MutexGuard<'_, Figures> {
        // Each change is a few numbers.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
