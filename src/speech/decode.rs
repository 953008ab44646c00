//! One window of a recording to tokens: greedy, sampled or by beam search, with what the rules of fallback need.
//!
//! Reference: openai/whisper, `whisper/decoding.py`, `DecodingTask`.

use std::{collections::HashMap, io::Write as _, sync::Arc};

use flate2::{Compression, write::ZlibEncoder};
use futures_util::future::try_join_all;
use percept_models::nn::sample::Drawn;

use super::{Options, SpeechError, Task, Vocabulary, words};
use crate::{
    engine::{Alignment, Event, Key, Turn},
    request::{
        Limits, Media, Prompt, Readout, Request, Rules, Sampling, Sound, Source, Span, TimestampRules,
    },
};

/// What was drawn for a window.
#[derive(Debug, Clone, PartialEq)]
pub struct Decoded {
    /// Ids, times included, without the one that ended it.
    pub tokens: Vec<u32>,
    /// Natural logarithm of the probability of each.
    pub logprobs: Vec<f32>,
    /// What was tried.
    pub temperature: f32,
    /// Mean of `logprobs`, the end included.
    pub avg_logprob: f64,
    /// How well the text compresses: repetition does.
    pub compression_ratio: f64,
    /// Probability that nobody speaks.
    pub no_speech_prob: f64,
}

/// A window as the engine hears it: shared by everything that is asked about it.
#[derive(Debug, Clone)]
pub struct Heard {
    key: Key,
    sound: Sound,
    /// The last mark of time that may be drawn, counted from the first; `None` where all may.
    last_mark: Option<u32>,
    /// Its place in line, which what is asked again keeps.
    turn: Arc<Turn>,
}

impl Heard {
    /// What is heard of `sound`.
    pub fn new(sound: Sound, turn: Turn) -> Self {
        let mut bytes: Vec<u8> = sound.samples.iter().flat_map(|sample| sample.to_le_bytes()).collect();
        for number in [sound.frames.start, sound.frames.end] {
            bytes.extend_from_slice(&(number as u64).to_le_bytes());
        }
        bytes.extend_from_slice(&sound.peak.to_le_bytes());
        Self { key: Key::of(&bytes), sound, last_mark: None, turn: Arc::new(turn) }
    }

    /// The same, of which nothing behind `last_mark` is said: what follows belongs to others.
    pub fn until(self, last_mark: u32) -> Self {
        Self { last_mark: Some(last_mark), ..self }
    }
}

/// What all windows of a recording share.
#[derive(Debug, Clone)]
pub struct Job {
    /// What ids mean.
    pub vocabulary: Arc<Vocabulary>,
    /// What the texts of the request are.
    pub texts: Arc<Texts>,
    /// What is asked.
    pub options: Arc<Options>,
    /// Most tokens of prompt and answer together.
    pub context: usize,
    /// Rows of an encoded window.
    pub memory: usize,
}

/// The texts of a request as ids: encoded once, since that takes time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Texts {
    /// In front of the first window's text.
    pub initial_prompt: Vec<u32>,
    /// Every window's beginning.
    pub prefix: Vec<u32>,
    /// In front of everything.
    pub hotwords: Vec<u32>,
}

impl Texts {
    /// Those of `options`. Takes time where they are long.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn of(options: &Options, vocabulary: &Vocabulary) -> Result<Self, SpeechError> {
        let ids = |text: &Option<String>| match text {
            Some(text) => vocabulary.encode(&format!(" {}", text.trim())),
            None => Ok(Vec::new()),
        };
        Ok(Self {
            initial_prompt: ids(&options.initial_prompt)?,
            prefix: ids(&options.prefix)?,
            hotwords: ids(&options.hotwords)?,
        })
    }
}

/// What to try.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Attempt {
    /// Which of the temperatures it is.
    pub index: usize,
    /// Its temperature.
    pub temperature: f32,
    /// First frame of the window in the recording.
    pub seek: usize,
}

impl Job {
    /// The language that is spoken, among the candidates or all that the model knows, and the probability of each.
    ///
    /// # Errors
    /// When the engine fails.
    pub async fn language(&self, heard: &Heard) -> Result<Vec<(String, f64)>, SpeechError> {
        let candidates: Vec<u32> = match self.options.candidates.as_slice() {
            [] => self.vocabulary.languages().filter_map(|code| self.vocabulary.language(code)).collect(),
            some => some.iter().filter_map(|code| self.vocabulary.language(code)).collect(),
        };
        let sampling = Sampling {
            logprobs: Some(candidates.len()),
            rules: Rules { only: Some(candidates.into()), ..Rules::default() },
            ..Sampling::greedy()
        };
        let asked = self.request(heard, vec![self.vocabulary.start], 1, sampling, Readout::Answer);
        let answer = answer(heard, asked).await?;
        let Some(first) = answer.tokens.first() else { return Err(SpeechError::Nothing) };
        let of = |&(id, logprob): &(u32, f32)| {
            Some((self.vocabulary.code(id)?.to_owned(), f64::from(logprob).exp()))
        };
        Ok(first.top.iter().filter_map(of).collect())
    }

    /// Decodes a window behind the text of earlier ones, at one temperature.
    ///
    /// # Errors
    /// When the engine fails.
    pub async fn decode(
        &self,
        heard: &Heard,
        language: &str,
        previous: &[u32],
        attempt: Attempt,
        no_speech: Option<f64>,
    ) -> Result<Decoded, SpeechError> {
        let initial = self.initial(language, previous);
        let room = (self.context + 1).saturating_sub(initial.tokens.len());
        let most = self.options.sample_len.unwrap_or(self.context / 2).min(room);
        let rules = self.rules(heard);
        let (best, found) = if attempt.temperature == 0.0 && self.options.beam_size > 1 {
            self.search(heard, &initial, most, &rules, no_speech.is_none()).await?
        } else {
            self.sample(heard, &initial, most, &rules, attempt, no_speech.is_none()).await?
        };
        let no_speech_prob = no_speech.or(found).ok_or(SpeechError::Nothing)?;
        Ok(self.decoded(&best, attempt.temperature, no_speech_prob))
    }

    /// When each word of `text`, ids of a window's transcript, is said within the first `frames` of the window.
    ///
    /// # Errors
    /// When the engine fails.
    pub async fn align(
        &self,
        heard: &Heard,
        language: &str,
        text: &[u32],
        frames: usize,
    ) -> Result<Vec<words::WordTiming>, SpeechError> {
        let vocabulary = &self.vocabulary;
        let mut tokens = self.start(language);
        let first = tokens.len();
        tokens.push(vocabulary.no_timestamps);
        // What does not fit has no times; no window is that long.
        let text = &text[..text.len().min((self.context).saturating_sub(tokens.len() + 1))];
        tokens.extend_from_slice(text);
        tokens.push(vocabulary.end);
        if text.is_empty() {
            return Ok(Vec::new());
        }
        let decode = |ids: &[u32]| vocabulary.decode(ids).unwrap_or_default();
        let all: Vec<u32> = text.iter().copied().chain([vocabulary.end]).collect();
        let words = words::split_words(&all, &decode, language, vocabulary.end);
        let columns = frames / 2;
        if columns == 0 {
            // So short a window has no time for words, and as in the reference its text comes to nothing.
            return Ok(words::align(&vec![0.0; text.len() + 1], text.len() + 1, 1, &[], &words));
        }
        let readout =
            Readout::Alignment { first, count: text.len(), ids: vocabulary.end as usize, frames: columns };
        let asked = self.request(heard, tokens, 1, Sampling::greedy(), readout);
        let Alignment { rows, attention, probabilities, .. } =
            *answer(heard, asked).await?.alignment.ok_or(SpeechError::Nothing)?;
        // The last row is behind the end.
        let matrix = &attention[first * columns..(rows - 1) * columns];
        Ok(words::align(matrix, rows - 1 - first, columns, &probabilities, &words))
    }

    /// What begins every answer: language and task, where the model knows several.
    fn start(&self, language: &str) -> Vec<u32> {
        let vocabulary = &self.vocabulary;
        let mut tokens = vec![vocabulary.start];
        if let Some(language) = vocabulary.language(language) {
            let task = match self.options.task {
                Task::Transcribe => vocabulary.transcribe,
                Task::Translate => vocabulary.translate,
            };
            tokens.extend([language, task]);
        }
        tokens
    }

    fn initial(&self, language: &str, previous: &[u32]) -> Initial {
        let half = self.context / 2;
        let mut tail = self.start(language);
        if self.options.without_timestamps {
            tail.push(self.vocabulary.no_timestamps);
        }
        let prefix = &self.texts.prefix;
        if !prefix.is_empty() {
            let most = match half.saturating_sub(self.options.sample_len.unwrap_or(half)) {
                // As the reference's slice does; but prompt, prefix and an answer must fit.
                0 => half.saturating_sub(tail.len()),
                most => most,
            };
            tail.extend_from_slice(&prefix[prefix.len().saturating_sub(most)..]);
        }
        let mut tokens = Vec::new();
        // As in faster-whisper: in front of the previous text, unless the answer's own beginning is given.
        let hotwords = if prefix.is_empty() { self.texts.hotwords.as_slice() } else { &[] };
        let hotwords = &hotwords[..hotwords.len().min(half - 1)];
        if !previous.is_empty() || !hotwords.is_empty() {
            tokens.push(self.vocabulary.previous);
            tokens.extend_from_slice(hotwords);
            let most = half - 1 - hotwords.len();
            tokens.extend_from_slice(&previous[previous.len().saturating_sub(most)..]);
        }
        let start = tokens.len();
        tokens.extend(tail);
        Initial { tokens, start }
    }

    fn rules(&self, heard: &Heard) -> Rules {
        let vocabulary = &self.vocabulary;
        let mut marks = vocabulary.marks.clone();
        if let Some(last) = heard.last_mark {
            marks.end = marks.end.min(marks.start + last + 1);
        }
        let timestamps = !self.options.without_timestamps;
        let listed = vocabulary.suppressed(&self.options.suppress);
        let unmarked = timestamps.then_some(vocabulary.no_timestamps);
        Rules {
            suppress: listed.iter().copied().chain(unmarked).collect(),
            suppress_first: if self.options.suppress_blank {
                vocabulary.blank().clone()
            } else {
                Arc::default()
            },
            only: None,
            timestamps: timestamps.then(|| TimestampRules {
                marks,
                end_of_text: vocabulary.end,
                latest_first: self
                    .options
                    .max_initial_timestamp
                    .filter(|&seconds| seconds > 0.0)
                    .map(|seconds| (seconds / super::vocabulary::MARK_SECONDS).round_ties_even() as u32),
            }),
        }
    }

    /// Greedy, or the best of several samples.
    async fn sample(
        &self,
        heard: &Heard,
        initial: &Initial,
        most: usize,
        rules: &Rules,
        attempt: Attempt,
        probe: bool,
    ) -> Result<(Answer, Option<f64>), SpeechError> {
        let Attempt { index, temperature, seek } = attempt;
        let count = if temperature == 0.0 { 1 } else { self.options.best_of.max(1) };
        let seed = (self.options.seed)
            .wrapping_add((seek as u64).wrapping_mul(1_000_003))
            .wrapping_add(index as u64 * 1009);
        let samples = (0..count).map(|sample| {
            let sampling = Sampling {
                temperature,
                seed: seed.wrapping_add(sample as u64),
                rules: rules.clone(),
                logprobs: Some(0),
                ..Sampling::greedy()
            };
            let readout = if probe && sample == 0 { self.probe(initial) } else { Readout::Answer };
            answer(heard, self.request(heard, initial.tokens.clone(), most, sampling, readout))
        });
        let mut answers = try_join_all(samples).await?;
        let no_speech = answers[0].probability;
        let best = self.best(answers.iter().map(|answer| (answer.sum(), answer.tokens.len())));
        Ok((answers.swap_remove(best), no_speech))
    }

    fn probe(&self, initial: &Initial) -> Readout {
        Readout::Probability { id: self.vocabulary.no_speech, position: initial.start }
    }

    /// The first of those that score best, by sum of log-probabilities and length.
    fn best(&self, candidates: impl Iterator<Item = (f64, usize)>) -> usize {
        let score = |(sum, length): (f64, usize)| match self.options.length_penalty {
            None => sum / length.max(1) as f64,
            // Google NMT, https://arxiv.org/abs/1609.08144
            Some(exponent) => sum / ((5.0 + length as f64) / 6.0).powf(exponent),
        };
        let scores = candidates.map(score).enumerate();
        scores.reduce(|best, next| if next.1 > best.1 { next } else { best }).map_or(0, |best| best.0)
    }

    /// Beam search. Each step of each beam is a request for one token; prompt, memory and all full pages are shared.
    async fn search(
        &self,
        heard: &Heard,
        initial: &Initial,
        most: usize,
        rules: &Rules,
        probe: bool,
    ) -> Result<(Answer, Option<f64>), SpeechError> {
        let size = self.options.beam_size;
        let enough = ((size as f64 * self.options.patience).round_ties_even() as usize).max(1);
        let mut beams = vec![Beam::default()];
        let mut finished: Vec<Beam> = Vec::new();
        let mut no_speech = None;
        for length in 0..most {
            let steps = beams.iter().map(|beam| {
                let readout = if probe && length == 0 { self.probe(initial) } else { Readout::Answer };
                answer(heard, self.step(heard, initial, rules, beam, readout))
            });
            let answers = try_join_all(steps).await?;
            no_speech = no_speech.or(answers[0].probability);
            let mut next = Candidates::default();
            for (beam, answer) in beams.iter().zip(&answers) {
                let drawn = answer.tokens.first().or(answer.end.as_ref());
                for &(id, logprob) in drawn.iter().flat_map(|drawn| &drawn.top) {
                    next.add(beam, id, logprob);
                }
            }
            let (kept, ended) = next.split(size, self.vocabulary.end);
            finished.extend(ended.into_iter().take(enough.saturating_sub(finished.len())));
            beams = kept;
            if finished.len() >= enough || beams.is_empty() {
                break;
            }
        }
        // The best that did not end count as well where few did.
        beams.sort_by(|a, b| b.sum.total_cmp(&a.sum));
        let missing = size.saturating_sub(finished.len());
        finished.extend(beams.into_iter().take(missing));
        let best =
            self.best(finished.iter().map(|beam| (f64::from(beam.sum), beam.length(&self.vocabulary))));
        let best = finished.into_iter().nth(best).ok_or(SpeechError::Nothing)?;
        Ok((best.answer(self.vocabulary.end), no_speech))
    }

    fn step(
        &self,
        heard: &Heard,
        initial: &Initial,
        rules: &Rules,
        beam: &Beam,
        readout: Readout,
    ) -> Request {
        let sampling = Sampling {
            rules: rules.clone(),
            continues: beam.tokens.len(),
            logprobs: Some(self.options.beam_size + 1),
            ..Sampling::greedy()
        };
        let tokens = initial.tokens.iter().chain(&beam.tokens).copied().collect();
        self.request(heard, tokens, 1, sampling, readout)
    }

    fn request(
        &self,
        heard: &Heard,
        tokens: Vec<u32>,
        most: usize,
        sampling: Sampling,
        readout: Readout,
    ) -> Request {
        Request {
            // All of the text hears it.
            prompt: Prompt { tokens, spans: vec![Span { rows: 0..0, grid: None, memory: self.memory }] },
            media: vec![Media { key: heard.key, source: Source::Sound(heard.sound.clone()) }],
            sampling,
            limits: Limits { tokens: most, stops: Arc::new([self.vocabulary.end]) },
            readout,
            constraint: None,
        }
    }

    fn decoded(&self, answer: &Answer, temperature: f32, no_speech_prob: f64) -> Decoded {
        let (tokens, logprobs): (Vec<u32>, Vec<f32>) =
            answer.tokens.iter().map(|drawn| (drawn.id, drawn.logprob)).unzip();
        Decoded {
            avg_logprob: answer.sum() / (tokens.len() + 1) as f64,
            compression_ratio: compression_ratio(words::strip(&self.vocabulary.decode_control(&tokens))),
            tokens,
            logprobs,
            temperature,
            no_speech_prob,
        }
    }
}

/// Asks about a window.
async fn answer(heard: &Heard, request: Request) -> Result<Answer, SpeechError> {
    let mut events = heard.turn.submit(request).map_err(|_| SpeechError::Stopped)?;
    let mut answer = Answer::default();
    loop {
        match events.next().await {
            // A vector is asked for by others.
            Event::Started { .. } | Event::Embedded(_) => {}
            Event::Probability(probability) => answer.probability = Some(f64::from(probability)),
            Event::Aligned(alignment) => answer.alignment = Some(alignment),
            Event::Token(drawn) => answer.tokens.push(drawn),
            Event::Finished { end, .. } => {
                answer.end = end;
                return Ok(answer);
            }
            Event::Failed(error) => return Err(error.into()),
        }
    }
}

/// The tokens that an answer goes on from.
struct Initial {
    tokens: Vec<u32>,
    /// Where the transcript's own begin, behind the text of earlier windows.
    start: usize,
}

/// What came of a request.
#[derive(Debug, Default)]
struct Answer {
    tokens: Vec<Drawn>,
    end: Option<Drawn>,
    probability: Option<f64>,
    alignment: Option<Box<Alignment>>,
}

impl Answer {
    /// Of log-probabilities, that of the end included.
    fn sum(&self) -> f64 {
        self.tokens.iter().chain(&self.end).map(|drawn| f64::from(drawn.logprob)).sum()
    }
}

/// A beginning that a beam search follows.
#[derive(Debug, Clone, Default)]
struct Beam {
    tokens: Vec<u32>,
    logprobs: Vec<f32>,
    /// In f32, as the reference adds.
    sum: f32,
}

impl Beam {
    /// Tokens in front of the end.
    fn length(&self, vocabulary: &Vocabulary) -> usize {
        self.tokens.len() - usize::from(self.tokens.last() == Some(&vocabulary.end))
    }

    fn answer(self, end: u32) -> Answer {
        let drawn = |(&id, &logprob): (&u32, &f32)| Drawn { id, logprob, top: Vec::new() };
        let mut tokens: Vec<Drawn> = self.tokens.iter().zip(&self.logprobs).map(drawn).collect();
        let end = tokens.pop_if(|last| last.id == end);
        Answer { tokens, end, ..Answer::default() }
    }
}

/// What may follow the beams of a step.
#[derive(Debug, Default)]
struct Candidates {
    all: Vec<Beam>,
    places: HashMap<Vec<u32>, usize>,
}

impl Candidates {
    fn add(&mut self, beam: &Beam, id: u32, logprob: f32) {
        let mut next = beam.clone();
        next.tokens.push(id);
        next.logprobs.push(logprob);
        next.sum += logprob;
        match self.places.get(&next.tokens) {
            Some(&place) => self.all[place] = next,
            None => {
                self.places.insert(next.tokens.clone(), self.all.len());
                self.all.push(next);
            }
        }
    }

    /// The best `size` that go on, and those better than the last of them that ended; each the best first.
    fn split(mut self, size: usize, end: u32) -> (Vec<Beam>, Vec<Beam>) {
        self.all.sort_by(|a, b| b.sum.total_cmp(&a.sum));
        let (mut kept, mut ended) = (Vec::new(), Vec::new());
        for beam in self.all {
            if beam.tokens.last() == Some(&end) {
                ended.push(beam);
            } else {
                kept.push(beam);
                if kept.len() == size {
                    break;
                }
            }
        }
        (kept, ended)
    }
}

/// Bytes of a text for each byte of it compressed, 0 for none: `zlib.compress` of Python, level 6.
pub fn compression_ratio(text: &str) -> f64 {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::new(6));
    let compressed = encoder.write_all(text.as_bytes()).and_then(|()| encoder.finish());
    compressed.map_or(0.0, |compressed| text.len() as f64 / compressed.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repetition_compresses() {
        let anthem = "And so my fellow Americans, ask not what your country can do for you, ask what you can do \
                      for your country.";
        let thanks = |times: usize| "Thank you. ".repeat(times).trim_end().to_owned();
        for (text, expected) in [
            (String::new(), 0.0),
            ("hello world".into(), 11.0 / 19.0),
            (anthem.into(), 107.0 / 79.0),
            (thanks(10), 109.0 / 22.0),
            (thanks(30), 329.0 / 24.0),
        ] {
            // Other compressors differ by a byte or two.
            let found = compression_ratio(&text);
            assert!((found - expected).abs() <= 0.1 * expected, "{text}: {found}, not {expected}");
        }
        assert!(compression_ratio(anthem) < 2.4 && compression_ratio(&thanks(10)) > 2.4);
    }
}
