//! The loop over the windows of a recording: where each begins, what stands in front of it, and what of its tokens is
//! transcript.
//!
//! Reference: openai/whisper, `whisper/transcribe.py`. Knows no engine: whoever [`Listen`]s decodes.

use std::ops::Range;

use super::{
    Options, Segment, SpeechError, Vocabulary,
    decode::{Attempt, Decoded},
    vocabulary::MARK_SECONDS,
    words::{self, Next, WordTiming},
};

/// Frames of a second.
pub const FRAMES_PER_SECOND: f64 = 100.0;
/// Frames from one mark of time to the next.
pub const FRAMES_PER_MARK: usize = 2;
/// Above this temperature a text is too doubtful to stand in front of others.
const DOUBTFUL: f32 = 0.5;

/// A window: `size` frames from `seek` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Its first frame in the recording.
    pub seek: usize,
    /// Frames that are heard.
    pub size: usize,
}

/// What decodes windows: an engine, or a script.
pub trait Listen: Send + Sync {
    /// A window that was heard, for all that is asked about it.
    type Heard: Send + Sync;

    /// Hears a window.
    fn hear(&self, window: Window) -> impl Future<Output = Result<Self::Heard, SpeechError>> + Send;

    /// Decodes a window behind `previous` text. `no_speech` is what an earlier attempt at the same window found.
    fn decode(
        &self,
        heard: &Self::Heard,
        previous: &[u32],
        attempt: Attempt,
        no_speech: Option<f64>,
    ) -> impl Future<Output = Result<Decoded, SpeechError>> + Send;

    /// When each word of a window's text is said.
    fn align(
        &self,
        heard: &Self::Heard,
        window: Window,
        text: &[u32],
    ) -> impl Future<Output = Result<Vec<WordTiming>, SpeechError>> + Send;
}

/// A part of a recording to transcribe, in frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clip {
    /// First.
    pub start: usize,
    /// Behind the last.
    pub end: usize,
    /// From here on nothing is said: a window that got so far ends the clip.
    pub speech_end: usize,
}

impl Clip {
    /// The clips of pairs of seconds, of a recording of `content` frames; all of it where there are none.
    pub fn of(clips: &[(f64, Option<f64>)], content: usize) -> Vec<Self> {
        let frame = |seconds: f64| (seconds * FRAMES_PER_SECOND).round_ties_even().max(0.0) as usize;
        let clip = |start: usize, end: usize| Self { start, end, speech_end: end };
        if clips.is_empty() {
            return vec![clip(0, content)];
        }
        clips.iter().map(|&(start, end)| clip(frame(start), end.map_or(content, frame))).collect()
    }
}

/// What happens along the way.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// A segment that will not change.
    Segment(Segment),
    /// Everything in front of this frame is done.
    Reached(usize),
}

/// A walk through the windows of a recording.
pub struct Walk<'a, L> {
    listener: &'a L,
    vocabulary: &'a Vocabulary,
    options: &'a Options,
    /// Frames of the recording.
    content: usize,
    /// Half of the model's context.
    half: usize,
    /// Ids of the initial prompt and of all segments.
    tokens: Vec<u32>,
    /// How many of them are the initial prompt.
    initial: usize,
    /// Those in front of this one are not put in front of a window any more.
    forgotten: usize,
    /// Where the last word ended, in seconds.
    last_speech: f64,
    /// Segments so far.
    count: usize,
}

impl<'a, L: Listen> Walk<'a, L> {
    /// A walk through `content` frames of a recording, for a model whose prompt and answer have `context` tokens.
    /// `initial`: the ids of the initial prompt.
    pub fn new(
        listener: &'a L,
        vocabulary: &'a Vocabulary,
        options: &'a Options,
        initial: &[u32],
        (content, context): (usize, usize),
    ) -> Self {
        Self {
            listener,
            vocabulary,
            options,
            content,
            half: context / 2,
            tokens: initial.to_vec(),
            initial: initial.len(),
            forgotten: 0,
            last_speech: 0.0,
            count: 0,
        }
    }

    /// Walks through `clips`, telling what happens.
    ///
    /// # Errors
    /// When a window cannot be decoded.
    pub async fn run(
        &mut self,
        clips: &[Clip],
        mut tell: impl FnMut(Step) + Send,
    ) -> Result<(), SpeechError> {
        for clip in clips {
            let mut seek = clip.start;
            let end = clip.end.min(self.content);
            while seek < end.min(clip.speech_end) {
                let size = self.vocabulary.window.min(end - seek);
                let (next, segments) = self.window(Window { seek, size }).await?;
                debug_assert!(next > seek, "the walk does not get on");
                seek = next.max(seek + 1);
                segments.into_iter().for_each(|segment| tell(Step::Segment(segment)));
                tell(Step::Reached(seek.min(end)));
            }
        }
        Ok(())
    }

    /// The text of everything so far, as one: a character may begin in one segment and end in the next.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn text(&self) -> Result<String, SpeechError> {
        Ok(self.vocabulary.decode(&self.tokens[self.initial..])?)
    }

    /// Where the next window begins, and the segments of this one.
    async fn window(&mut self, window: Window) -> Result<(usize, Vec<Segment>), SpeechError> {
        let Window { seek, size } = window;
        let heard = self.listener.hear(window).await?;
        let decoded = self.decode(&heard, window).await?;
        if self.is_silent(&decoded) {
            return Ok((seek + size, Vec::new()));
        }
        let Cut { mut segments, single_end, mut next } = self.cut(window, &decoded)?;
        if self.options.words {
            match self.words(&heard, window, &mut segments, single_end, next).await? {
                Next::Keep { seek, last_speech } => {
                    next = seek;
                    self.last_speech = last_speech;
                }
                Next::Discard { seek } => return Ok((seek, Vec::new())),
            }
        }
        for segment in &mut segments {
            if segment.start == segment.end || words::strip(&segment.text).is_empty() {
                segment.text.clear();
                segment.tokens.clear();
                segment.logprobs.clear();
                segment.words.clear();
            }
            segment.id = self.count;
            self.count += 1;
            self.tokens.extend_from_slice(&segment.tokens);
        }
        let conditions = self.options.condition_on_previous_text.unwrap_or(self.vocabulary.conditions);
        if !conditions || decoded.temperature > DOUBTFUL {
            self.forgotten = self.tokens.len();
        }
        Ok((next, segments))
    }

    fn previous(&self) -> Vec<u32> {
        if !self.options.carry_initial_prompt {
            return self.tokens[self.forgotten..].to_vec();
        }
        let rest = &self.tokens[self.forgotten.max(self.initial)..];
        // Python's `list[-0:]` is the whole list, and so is one from beyond its beginning.
        let kept = match (self.half - 1) as isize - self.initial as isize {
            most @ 1.. => &rest[rest.len().saturating_sub(most as usize)..],
            most => &rest[rest.len().min(most.unsigned_abs())..],
        };
        [&self.tokens[..self.initial], kept].concat()
    }

    /// Tries one temperature after the other until the text looks right. The last attempt counts in any case.
    async fn decode(&self, heard: &L::Heard, window: Window) -> Result<Decoded, SpeechError> {
        let previous = self.previous();
        let mut no_speech = None;
        let mut last = None;
        for (index, &temperature) in self.options.temperatures.iter().enumerate() {
            let attempt = Attempt { index, temperature, seek: window.seek };
            let decoded = self.listener.decode(heard, &previous, attempt, no_speech).await?;
            no_speech = Some(decoded.no_speech_prob);
            let failed = self.failed(&decoded);
            last = Some(decoded);
            if !failed {
                break;
            }
        }
        last.ok_or(SpeechError::Nothing)
    }

    fn failed(&self, decoded: &Decoded) -> bool {
        let repetitive = self
            .options
            .compression_ratio_threshold
            .is_some_and(|threshold| decoded.compression_ratio > threshold);
        let improbable =
            self.options.logprob_threshold.is_some_and(|threshold| decoded.avg_logprob < threshold);
        let silent = improbable
            && self.options.no_speech_threshold.is_some_and(|threshold| decoded.no_speech_prob > threshold);
        (repetitive || improbable) && !silent
    }

    fn is_silent(&self, decoded: &Decoded) -> bool {
        let silent =
            self.options.no_speech_threshold.is_some_and(|threshold| decoded.no_speech_prob > threshold);
        let probable =
            self.options.logprob_threshold.is_some_and(|threshold| decoded.avg_logprob > threshold);
        silent && !probable
    }

    /// Cuts tokens where two marks of time stand side by side.
    fn cut(&self, window: Window, decoded: &Decoded) -> Result<Cut, SpeechError> {
        let Window { seek, size } = window;
        let tokens = &decoded.tokens;
        let is_mark = |index: usize| self.vocabulary.is_mark(tokens[index]);
        let seconds = |id: u32| self.vocabulary.mark(id) as f64 * MARK_SECONDS;
        let offset = seek as f64 / FRAMES_PER_SECOND;
        let count = tokens.len();
        let single_end = count >= 2 && is_mark(count - 1) && !is_mark(count - 2);
        let mut ends: Vec<usize> = (1..count).filter(|&at| is_mark(at - 1) && is_mark(at)).collect();
        if ends.is_empty() {
            let last = (0..count).rev().find(|&at| is_mark(at)).map(|at| seconds(tokens[at]));
            let duration = last.filter(|&last| last > 0.0).unwrap_or(size as f64 / FRAMES_PER_SECOND);
            let whole = self.segment(seek, offset..offset + duration, decoded, 0..count)?;
            return Ok(Cut { segments: vec![whole], single_end, next: seek + size });
        }
        if single_end {
            ends.push(count);
        }
        let mut segments = Vec::with_capacity(ends.len());
        let mut first = 0;
        for &end in &ends {
            let times = offset + seconds(tokens[first])..offset + seconds(tokens[end - 1]);
            segments.push(self.segment(seek, times, decoded, first..end)?);
            first = end;
        }
        // What follows the last pair was not finished; the next window begins there.
        let next = match single_end {
            true => seek + size,
            false => seek + self.vocabulary.mark(tokens[first - 1]).max(0) as usize * FRAMES_PER_MARK,
        };
        Ok(Cut { segments, single_end, next: if next > seek { next } else { seek + size } })
    }

    fn segment(
        &self,
        seek: usize,
        times: Range<f64>,
        decoded: &Decoded,
        tokens: Range<usize>,
    ) -> Result<Segment, SpeechError> {
        let logprobs = decoded.logprobs.get(tokens.clone()).unwrap_or_default().to_vec();
        let tokens = decoded.tokens[tokens].to_vec();
        Ok(Segment {
            id: self.count,
            seek,
            start: times.start,
            end: times.end,
            text: self.vocabulary.decode(&tokens)?,
            tokens,
            logprobs,
            temperature: decoded.temperature,
            avg_logprob: decoded.avg_logprob,
            compression_ratio: decoded.compression_ratio,
            no_speech_prob: decoded.no_speech_prob,
            words: Vec::new(),
            channel: 0,
        })
    }

    async fn words(
        &self,
        heard: &L::Heard,
        window: Window,
        segments: &mut Vec<Segment>,
        single_end: bool,
        next: usize,
    ) -> Result<Next, SpeechError> {
        let end = self.vocabulary.end;
        let text: Vec<u32> =
            segments.iter().flat_map(|segment| &segment.tokens).copied().filter(|&id| id < end).collect();
        let timings = self.listener.align(heard, window, &text).await?;
        words::add_words(segments, timings, end, self.last_speech);
        let window = words::Window {
            seek: window.seek,
            size: window.size,
            full: self.vocabulary.window,
            content: self.content,
            single_end,
            next,
        };
        let threshold = self.options.hallucination_silence_threshold;
        Ok(words::skip_hallucinations(&window, threshold, self.last_speech, segments))
    }
}

/// The tokens of a window, cut up.
struct Cut {
    segments: Vec<Segment>,
    /// Whether they end with text and one mark: nothing was said after that.
    single_end: bool,
    /// First frame of the next window.
    next: usize,
}
