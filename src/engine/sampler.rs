//! From logits to tokens: the one download of a step.

use std::collections::HashMap;

use candle_core::{Result, Tensor};
use percept_models::nn::sample::{Downloads, Draw, Drawing, Drawn, Forbidden, Seen, uniform};
use rayon::prelude::*;
use tracing::warn;

use super::{handle::EngineError, sequence::SeqId};
use crate::request::{Constraint, ConstraintError, Sampling, TimestampRules};

/// Draws tokens, and remembers what each sequence's penalties and seed need.
#[derive(Debug)]
pub(super) struct Sampler {
    vocabulary: usize,
    downloads: Downloads,
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
    constraint: Option<Box<dyn Constraint>>,
    /// What the constraint allows next, once it was asked.
    mask: Option<std::result::Result<Vec<u32>, ConstraintError>>,
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
        Self { vocabulary, downloads: Downloads::default(), states: HashMap::new() }
    }

    /// Notes how a new sequence draws.
    pub(super) fn add(
        &mut self,
        id: SeqId,
        sampling: Sampling,
        constraint: Option<Box<dyn Constraint>>,
        prompt: &[u32],
    ) {
        let (given, drawn) = prompt.split_at(prompt.len().saturating_sub(sampling.continues));
        let mut state = State {
            sampling,
            drawn: 0,
            seen: Vec::new(),
            places: HashMap::new(),
            marks: Marks { before: true, ..Marks::default() },
            constraint,
            mask: None,
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

    /// Whether what may be drawn for any of these depends on what was drawn.
    pub(super) fn is_constrained(&self, ids: &[SeqId]) -> bool {
        ids.iter().any(|id| self.states.get(id).is_some_and(|state| state.constraint.is_some()))
    }

    /// Finds out what may be drawn next for these, which can take milliseconds. Done again, it costs nothing.
    pub(super) fn prepare(&mut self, ids: &[SeqId]) {
        let constrained = self.states.iter_mut().filter(|(_, state)| state.constraint.is_some());
        let states: Vec<&mut State> =
            constrained.filter(|(id, _)| ids.contains(id)).map(|(_, state)| state).collect();
        // It is asked at every step: threads are woken only where there is something to find out.
        if !states.is_empty() {
            states.into_par_iter().for_each(State::prepare);
        }
    }

    /// Asks for a token of each row of `logits`. What is drawn depends on all that was [finished](Self::finish) before.
    ///
    /// # Errors
    /// When the device refuses.
    pub(super) fn start(&mut self, logits: &Tensor, ids: &[SeqId]) -> Result<Drawing> {
        self.prepare(ids);
        let states: Vec<&State> = ids.iter().filter_map(|id| self.states.get(id)).collect();
        let forbidden: Vec<Forbidden<'_>> = states.iter().map(|state| state.forbidden()).collect();
        let draws: Vec<Draw<'_>> =
            states.iter().zip(&forbidden).map(|(state, not)| state.draw(not, self.vocabulary)).collect();
        Drawing::start(logits, &draws, &mut self.downloads)
    }

    /// The token of each row, or why there is none; the sequences go on from there.
    ///
    /// # Errors
    /// When the device fails.
    pub(super) fn finish(
        &mut self,
        drawing: Drawing,
        ids: &[SeqId],
    ) -> Result<Vec<std::result::Result<Drawn, EngineError>>> {
        let drawn = drawing.wait(&mut self.downloads)?;
        let states = ids.iter().filter_map(|id| self.states.get(id));
        let result = |(drawn, state): (std::result::Result<Drawn, _>, &State)| match &state.mask {
            Some(Err(error)) => {
                warn!(%error, "an answer's constraint does not go on");
                Err(EngineError::Constraint)
            }
            _ => drawn.map_err(|_| EngineError::NotFinite),
        };
        let drawn: Vec<_> = drawn.into_iter().zip(states).map(result).collect();
        for (id, drawn) in ids.iter().zip(&drawn) {
            if let (Some(state), Ok(drawn)) = (self.states.get_mut(id), drawn) {
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
        not.mask = self.mask.as_ref().and_then(|mask| mask.as_deref().ok());
        not
    }

    fn prepare(&mut self) {
        if let (Some(constraint), None) = (&mut self.constraint, &self.mask) {
            self.mask = Some(constraint.allowed());
        }
    }

    fn accept(&mut self, token: u32) {
        self.drawn += 1;
        self.note(token, 1);
        if let Some(constraint) = &mut self.constraint {
            self.mask = constraint.accept(token).err().map(Err);
        }
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

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, sync::Arc};

    use candle_core::Device;
    use proptest::prelude::*;

    use super::*;
    use crate::request::Rules;

    /// Text in front of it; control ids from here to the marks.
    const END: u32 = 12;
    const UNMARKED: u32 = 15;
    const MARKS: std::ops::Range<u32> = 16..47;
    /// Ids behind the marks, which the network has and nobody draws.
    const WIDTH: usize = 50;
    const BLANK: [u32; 2] = [3, END];

    fn rules(suppress: &[u32], latest_first: Option<u32>) -> Rules {
        Rules {
            suppress: suppress.iter().copied().chain([UNMARKED]).collect(),
            suppress_first: Arc::new(BLANK),
            only: None,
            timestamps: Some(TimestampRules { marks: MARKS, end_of_text: END, latest_first }),
        }
    }

    fn sampler(rules: Rules, drawn: &[u32]) -> Sampler {
        // What is in front of the answer says nothing about it, though it ends in a mark.
        let prompt = [&[1, MARKS.start + 9], drawn].concat();
        let sampling =
            Sampling { rules, continues: drawn.len(), logprobs: Some(WIDTH), ..Sampling::greedy() };
        let mut sampler = Sampler::new(WIDTH);
        sampler.add(SeqId(1), sampling, None, &prompt);
        sampler
    }

    fn draw(sampler: &mut Sampler, logits: &[f32]) -> Drawn {
        let logits = Tensor::from_slice(logits, (1, logits.len()), &Device::Cpu).unwrap();
        let drawing = sampler.start(&logits, &[SeqId(1)]).unwrap();
        sampler.finish(drawing, &[SeqId(1)]).unwrap().remove(0).unwrap()
    }

    fn allowed(drawn: &Drawn) -> BTreeSet<u32> {
        drawn.top.iter().map(|&(id, _)| id).collect()
    }

    fn text() -> impl Iterator<Item = u32> {
        0..END
    }

    /// Marks from the `first` on.
    fn marks(first: u32) -> impl Iterator<Item = u32> {
        MARKS.start + first..MARKS.end
    }

    #[test]
    fn marks_follow_each_other_as_in_the_table() {
        let [a, b, last] = [MARKS.start + 4, MARKS.start + 9, MARKS.end - 1];
        let x = 5;
        let control = (END + 1..UNMARKED).collect::<Vec<_>>();
        let end = || std::iter::once(END);
        let table: [(&[u32], Vec<u32>); 9] = [
            (&[], (MARKS.start..=MARKS.start + 6).collect()),
            (&[a], text().chain(end()).collect()),
            (&[a, x], text().chain(end()).chain(marks(5)).collect()),
            (&[a, x, b], end().chain(marks(9)).collect()),
            (&[a, x, b, b], text().chain(end()).collect()),
            (&[a, x, b, b, x], text().chain(end()).chain(marks(10)).collect()),
            (&[a, x, b, b, x, x], text().chain(end()).chain(marks(10)).collect()),
            (&[a, x, last, last, x], text().chain(end()).collect()),
            // A beginning without a mark, as a prefix makes it.
            (&[x], text().chain(end()).chain(marks(0)).collect()),
        ];
        // All text is more probable than all marks together.
        let logits: Vec<f32> = (0..WIDTH as u32).map(|id| if id < MARKS.start { 9.0 } else { 0.0 }).collect();
        for (history, expected) in table {
            let mut sampler = sampler(rules(&control, Some(6)), history);
            assert_eq!(
                allowed(&draw(&mut sampler, &logits)),
                expected.into_iter().collect(),
                "behind {history:?}"
            );
        }
    }

    #[test]
    fn marks_that_are_more_probable_together_than_any_text_win() {
        let [a, x] = [MARKS.start, 5];
        // 30 marks are left, whose sum is exp(0) * 30 = exp(3.4).
        for (text, wins) in [(3.3, true), (3.5, false)] {
            let mut logits = vec![0.0; WIDTH];
            logits[x as usize] = text;
            let found = draw(&mut sampler(rules(&[], None), &[a, x]), &logits);
            assert_eq!(MARKS.contains(&found.id), wins, "text of {text}");
            assert_eq!(allowed(&found).iter().all(|id| MARKS.contains(id)), wins, "text of {text}");
        }
    }

    /// `SuppressBlank`, `SuppressTokens` and `ApplyTimestampRules` of `decoding.py`, line by line.
    fn reference(
        logits: &[f32],
        history: &[u32],
        suppress: &[u32],
        latest_first: Option<u32>,
    ) -> (Vec<f64>, f64) {
        const OUT: f64 = f64::NEG_INFINITY;
        let [begin, end] = [MARKS.start as usize, MARKS.end as usize];
        let mut logits: Vec<f64> = logits.iter().map(|&logit| f64::from(logit)).collect();
        logits[end..].fill(OUT);
        if history.is_empty() {
            BLANK.iter().for_each(|&id| logits[id as usize] = OUT);
        }
        suppress.iter().for_each(|&id| logits[id as usize] = OUT);
        logits[UNMARKED as usize] = OUT;
        let is_mark = |id: u32| id >= MARKS.start;
        let last_was_timestamp = history.last().is_some_and(|&id| is_mark(id));
        let penultimate_was_timestamp = history.len() < 2 || is_mark(history[history.len() - 2]);
        if last_was_timestamp {
            if penultimate_was_timestamp {
                logits[begin..].fill(OUT);
            } else {
                logits[..END as usize].fill(OUT);
            }
        }
        let timestamps: Vec<u32> = history.iter().copied().filter(|&id| is_mark(id)).collect();
        if let Some(&latest) = timestamps.last() {
            let behind = if last_was_timestamp && !penultimate_was_timestamp { latest } else { latest + 1 };
            logits[begin..behind as usize].fill(OUT);
        }
        if history.is_empty() {
            logits[..begin].fill(OUT);
            if let Some(latest) = latest_first {
                let behind = (begin + latest as usize + 1).min(WIDTH);
                logits[behind..].fill(OUT);
            }
        }
        let sum = |some: &[f64]| some.iter().map(|logit| logit.exp()).sum::<f64>().ln();
        let best = logits[..begin].iter().copied().fold(OUT, f64::max);
        let gap = sum(&logits[begin..]) - best;
        if gap > 0.0 {
            logits[..begin].fill(OUT);
        }
        let total = sum(&logits);
        (logits.iter().map(|logit| logit - total).collect(), gap)
    }

    fn check(logits: &[f32], history: &[u32], suppress: &[u32], latest_first: Option<u32>) {
        let (expected, gap) = reference(logits, history, suppress, latest_first);
        if gap.abs() < 1e-4 || expected.iter().all(|logprob| logprob.is_nan()) {
            return;
        }
        let found = draw(&mut sampler(rules(suppress, latest_first), history), logits);
        let left = (0..WIDTH as u32).filter(|&id| expected[id as usize] > f64::NEG_INFINITY);
        assert_eq!(allowed(&found), left.collect(), "behind {history:?}");
        for &(id, logprob) in &found.top {
            let expected = expected[id as usize];
            assert!((f64::from(logprob) - expected).abs() < 1e-4, "{id}: {logprob}, not {expected}");
        }
        let best = expected.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        assert!((expected[found.id as usize] - best).abs() < 1e-6, "{} is not the best", found.id);
        // Drawn one by one, a history leaves the same behind as one that is given.
        let mut one_by_one = sampler(rules(suppress, latest_first), &[]);
        for &id in history {
            one_by_one.states.get_mut(&SeqId(1)).unwrap().accept(id);
        }
        assert_eq!(draw(&mut one_by_one, logits), found, "behind {history:?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn rules_of_time_are_those_of_the_reference(
            logits in prop::collection::vec(-6.0f32..6.0, WIDTH),
            lift in -4.0f32..4.0,
            // Any history, and histories of mostly marks, that go back and come in threes.
            history in prop::collection::vec(prop_oneof![0..END + 1, MARKS], 0..9),
            suppress in prop::collection::vec(0..END, 0..4),
            latest_first in prop::option::of(0u32..40),
        ) {
            let lifted = |(id, logit): (usize, f32)| if MARKS.contains(&(id as u32)) { logit + lift } else { logit };
            let logits: Vec<f32> = logits.into_iter().enumerate().map(lifted).collect();
            check(&logits, &history, &suppress, latest_first);
        }
    }
}
