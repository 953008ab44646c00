//! From logits to tokens: the one download of a step.

use std::collections::HashMap;

use candle_core::{Result, Tensor};
use percept_models::nn::sample::{Draw, Seen, sample, uniform};

use super::sequence::SeqId;
use crate::request::Sampling;

/// Draws tokens, and remembers what each sequence's penalties and seed need.
#[derive(Debug)]
pub(super) struct Sampler {
    vocabulary: usize,
    states: HashMap<SeqId, State>,
}

#[derive(Debug)]
struct State {
    sampling: Sampling,
    drawn: u64,
    /// Tokens seen so far; empty when no penalty needs them.
    seen: Vec<Seen>,
    /// Where in `seen` a token is.
    places: HashMap<u32, usize>,
}

impl Sampler {
    /// `vocabulary`: ids from here on have no text and are never drawn.
    pub(super) fn new(vocabulary: usize) -> Self {
        Self { vocabulary, states: HashMap::new() }
    }

    /// Notes how a new sequence draws.
    pub(super) fn add(&mut self, id: SeqId, sampling: Sampling, prompt: &[u32]) {
        let mut state = State { sampling, drawn: 0, seen: Vec::new(), places: HashMap::new() };
        for &token in prompt {
            state.note(token, 0);
        }
        self.states.insert(id, state);
    }

    /// Forgets a sequence.
    pub(super) fn remove(&mut self, id: SeqId) {
        self.states.remove(&id);
    }

    /// Draws a token for each row of `logits`; `None` where a row has no usable numbers.
    ///
    /// # Errors
    /// When the device refuses the download.
    pub(super) fn sample(&mut self, logits: &Tensor, ids: &[SeqId]) -> Result<Vec<Option<u32>>> {
        let draws: Vec<Draw<'_>> =
            ids.iter().filter_map(|id| Some(self.states.get(id)?.draw(self.vocabulary))).collect();
        let drawn = sample(logits, &draws)?;
        let drawn: Vec<Option<u32>> = drawn.into_iter().map(std::result::Result::ok).collect();
        for (id, token) in ids.iter().zip(&drawn) {
            if let (Some(state), Some(token)) = (self.states.get_mut(id), *token) {
                state.drawn += 1;
                state.note(token, 1);
            }
        }
        Ok(drawn)
    }
}

impl State {
    fn draw(&self, vocabulary: usize) -> Draw<'_> {
        let Sampling { temperature, top_k, top_p, min_p, seed, .. } = self.sampling;
        Draw {
            temperature,
            top_k,
            top_p,
            min_p,
            repetition: self.sampling.repetition_penalty,
            frequency: self.sampling.frequency_penalty,
            presence: self.sampling.presence_penalty,
            seen: &self.seen,
            bias: &self.sampling.bias,
            vocabulary,
            random: uniform(seed, self.drawn),
        }
    }

    fn note(&mut self, token: u32, generated: u32) {
        let Sampling { repetition_penalty, frequency_penalty, presence_penalty, .. } = self.sampling;
        if repetition_penalty == 1.0 && frequency_penalty == 0.0 && presence_penalty == 0.0 {
            return;
        }
        let place = *self.places.entry(token).or_insert_with(|| {
            self.seen.push(Seen { id: token, generated: 0 });
            self.seen.len() - 1
        });
        self.seen[place].generated += generated;
    }
}
