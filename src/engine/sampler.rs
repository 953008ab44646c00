//! From logits to tokens: the one download of a step.

use std::collections::HashMap;

use candle_core::{Result, Tensor};
use percept_models::nn::sample::{Draw, Drawn, Forbidden, Seen, sample, uniform};

use super::sequence::SeqId;
use crate::request::{Sampling, TimestampRules};

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
    marks: Marks,
}

/// What rules of time need of the tokens drawn so far.
#[derive(Debug, Clone, Copy, Default)]
struct Marks {
    /// Whether the last one was a mark.
    last: bool,
    /// Whether the one before was, or there was none.
    before: bool,
    /// The latest mark.
    latest: Option<u32>,
}

impl Sampler {
    /// `vocabulary`: ids from here on have no text and are never drawn.
    pub(super) fn new(vocabulary: usize) -> Self {
        Self { vocabulary, states: HashMap::new() }
    }

    /// Notes how a new sequence draws.
    pub(super) fn add(&mut self, id: SeqId, sampling: Sampling, prompt: &[u32]) {
        let (given, drawn) = prompt.split_at(prompt.len().saturating_sub(sampling.continues));
        let mut state = State {
            sampling,
            drawn: 0,
            seen: Vec::new(),
            places: HashMap::new(),
            marks: Marks { before: true, ..Marks::default() },
        };
        for &token in given {
            state.note(token, 0);
        }
        for &token in drawn {
            state.accept(token);
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
    pub(super) fn sample(&mut self, logits: &Tensor, ids: &[SeqId]) -> Result<Vec<Option<Drawn>>> {
        let states: Vec<&State> = ids.iter().filter_map(|id| self.states.get(id)).collect();
        let forbidden: Vec<Forbidden<'_>> = states.iter().map(|state| state.forbidden()).collect();
        let draws: Vec<Draw<'_>> =
            states.iter().zip(&forbidden).map(|(state, not)| state.draw(not, self.vocabulary)).collect();
        let drawn = sample(logits, &draws)?;
        let drawn: Vec<Option<Drawn>> = drawn.into_iter().map(std::result::Result::ok).collect();
        for (id, drawn) in ids.iter().zip(&drawn) {
            if let (Some(state), Some(drawn)) = (self.states.get_mut(id), drawn) {
                state.accept(drawn.id);
            }
        }
        Ok(drawn)
    }
}

impl State {
    fn draw<'a>(&'a self, forbidden: &'a Forbidden<'a>, vocabulary: usize) -> Draw<'a> {
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
            forbidden,
            vocabulary,
            random: uniform(seed, self.drawn),
            logprobs: self.sampling.logprobs,
        }
    }

    /// What may not be drawn next.
    fn forbidden(&self) -> Forbidden<'_> {
        let rules = &self.sampling.rules;
        let mut not =
            Forbidden { ids: vec![&rules.suppress], only: rules.only.as_deref(), ..Forbidden::NONE };
        if self.drawn == 0 {
            not.ids.push(&rules.suppress_first);
        }
        if let Some(timestamps) = &rules.timestamps {
            self.marks.forbid(self.drawn, timestamps, &mut not);
        }
        not
    }

    fn accept(&mut self, token: u32) {
        self.drawn += 1;
        self.note(token, 1);
        if let Some(timestamps) = &self.sampling.rules.timestamps {
            let is_mark = timestamps.marks.contains(&token);
            let before = self.drawn == 1 || self.marks.last;
            let latest = if is_mark { Some(token) } else { self.marks.latest };
            self.marks = Marks { last: is_mark, before, latest };
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

impl Marks {
    fn forbid(&self, drawn: u64, rules: &TimestampRules, not: &mut Forbidden<'_>) {
        let TimestampRules { marks, end_of_text, latest_first } = rules;
        not.ranges.push(marks.end..u32::MAX);
        match (self.last, self.before) {
            // A pair is complete, or the answer has just begun: text or the end.
            (true, true) => not.ranges.push(marks.clone()),
            // A mark behind text: its second, or the end.
            (true, false) => not.ranges.push(0..*end_of_text),
            (false, _) => {}
        }
        if let Some(latest) = self.latest {
            // The second of a pair may say the same time. Any other is later, so that nothing takes no time.
            let first = if self.last && !self.before { latest } else { latest + 1 };
            not.ranges.push(marks.start..first.min(marks.end));
        }
        if drawn == 0 {
            not.ranges.push(0..marks.start);
            if let Some(latest) = latest_first {
                not.ranges.push((marks.start + latest + 1).min(marks.end)..marks.end);
            }
        }
        not.rivals = Some(marks.clone());
    }
}
