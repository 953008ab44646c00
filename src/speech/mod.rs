//! Recordings to text: a client of the engine, as the API is. Windows as long as the network hears, the reference's
//! rules for what to do with each, words and their times.
//!
//! Reference: openai/whisper, `whisper/transcribe.py` and `whisper/decoding.py`. Knows no HTTP and no tensor.

mod decode;
pub mod languages;
pub mod live;
mod seek;
pub mod subtitles;
mod transcribe;
pub mod vad;
mod vocabulary;
pub mod words;

pub use self::{
    decode::{Attempt, Decoded, Texts, compression_ratio},
    seek::{Clip, Listen, Step, Walk, Window},
    transcribe::{SpeechError, Transcriber, Transcription},
    vocabulary::Vocabulary,
};

/// What a transcription is asked to do. The defaults are those of openai/whisper's `transcribe`.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Same language, or English.
    pub task: Task,
    /// Its code, such as `en`; `None` detects it.
    pub language: Option<String>,
    /// Codes among which to detect; empty means all.
    pub candidates: Vec<String>,
    /// Tried one after another until a window passes the thresholds.
    pub temperatures: Vec<f32>,
    /// Seed of draws above temperature 0.
    pub seed: u64,
    /// A window whose text compresses better than this failed. `None` switches the rule off, as in those below.
    pub compression_ratio_threshold: Option<f64>,
    /// A window whose tokens are less probable on average failed.
    pub logprob_threshold: Option<f64>,
    /// A window with a larger probability of no speech, and a low average, is silence.
    pub no_speech_threshold: Option<f64>,
    /// Whether a window's prompt has the text of those before; `None` is as the checkpoint says, and yes where it does not.
    pub condition_on_previous_text: Option<bool>,
    /// Text in front of the first window's.
    pub initial_prompt: Option<String>,
    /// Whether every window's prompt begins with `initial_prompt`.
    pub carry_initial_prompt: bool,
    /// Words that are likely, in front of every window's prompt.
    pub hotwords: Option<String>,
    /// Text that every window's answer begins with.
    pub prefix: Option<String>,
    /// Whether words have times.
    pub words: bool,
    /// Whether the model writes no times, so that each window is one segment.
    pub without_timestamps: bool,
    /// Latest start of a window's first segment, in seconds; `None` and 0 are no limit.
    pub max_initial_timestamp: Option<f64>,
    /// Whether a window may not begin with a space or its end.
    pub suppress_blank: bool,
    /// Which tokens are never drawn.
    pub suppress: Suppress,
    /// Samples of each temperature above 0, of which the best is taken.
    pub best_of: usize,
    /// Beams at temperature 0; 1 is greedy.
    pub beam_size: usize,
    /// How long a beam search goes on: it ends when `beam_size * patience` answers are complete.
    pub patience: f64,
    /// The exponent of Google's length penalty, 0 to 1; `None` divides by the length.
    pub length_penalty: Option<f64>,
    /// Most tokens of a window; `None` is half the model's context.
    pub sample_len: Option<usize>,
    /// With [`words`](Self::words): silences longer than this, in seconds, around words that look invented are skipped.
    pub hallucination_silence_threshold: Option<f64>,
    /// Parts to transcribe, in seconds; the last may be open. Empty means all.
    pub clips: Vec<(f64, Option<f64>)>,
    /// How windows follow each other.
    pub mode: Mode,
    /// Where speech is, for [`Mode::Parallel`].
    pub vad: vad::VadOptions,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            task: Task::Transcribe,
            language: None,
            candidates: Vec::new(),
            temperatures: vec![0.0, 0.2, 0.4, 0.6, 0.8, 1.0],
            seed: 0,
            compression_ratio_threshold: Some(2.4),
            logprob_threshold: Some(-1.0),
            no_speech_threshold: Some(0.6),
            condition_on_previous_text: None,
            initial_prompt: None,
            carry_initial_prompt: false,
            hotwords: None,
            prefix: None,
            words: false,
            without_timestamps: false,
            max_initial_timestamp: Some(1.0),
            suppress_blank: true,
            suppress: Suppress::NonSpeech,
            best_of: 1,
            beam_size: 1,
            patience: 1.0,
            length_penalty: None,
            sample_len: None,
            hallucination_silence_threshold: None,
            clips: Vec::new(),
            mode: Mode::Auto,
            vad: vad::VadOptions::default(),
        }
    }
}

impl Options {
    /// Sequences that a window takes at once, at most.
    pub fn width(&self) -> usize {
        let draws = self.temperatures.iter().any(|&temperature| temperature > 0.0);
        self.beam_size.max(if draws { self.best_of } else { 1 }).max(1)
    }
}

/// What text to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// In the language that is spoken.
    Transcribe,
    /// In English.
    Translate,
}

/// Which tokens are never drawn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Suppress {
    /// The model's list of tokens that are no speech, and control tokens.
    NonSpeech,
    /// Those, and these.
    NonSpeechAnd(Vec<u32>),
    /// These, and control tokens.
    Ids(Vec<u32>),
    /// None.
    Nothing,
}

/// How the windows of a recording follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Sequential for short recordings and where conditioning is asked for, parallel for long ones.
    Auto,
    /// Each begins where the one before ended, and knows its text: the reference's way.
    Sequential,
    /// All at once, cut at silences.
    Parallel,
}

/// The text of a recording.
#[derive(Debug, Clone, PartialEq)]
pub struct Transcript {
    /// Code of the language that was spoken, such as `en`.
    pub language: String,
    /// Length of the recording, in seconds.
    pub duration: f64,
    /// All text, with the space that most windows begin with.
    pub text: String,
    /// In order of time.
    pub segments: Vec<Segment>,
}

/// A piece of a transcript, often a sentence.
#[derive(Debug, Clone, PartialEq)]
pub struct Segment {
    /// Its number, from 0.
    pub id: usize,
    /// First frame (10 ms) of the window it comes from.
    pub seek: usize,
    /// In seconds.
    pub start: f64,
    /// In seconds.
    pub end: f64,
    /// As drawn: usually begins with a space.
    pub text: String,
    /// Ids, times included.
    pub tokens: Vec<u32>,
    /// Natural logarithm of each token's probability, as long as `tokens`.
    pub logprobs: Vec<f32>,
    /// Of the attempt that was kept.
    pub temperature: f32,
    /// Of its window, the end included.
    pub avg_logprob: f64,
    /// Of its window.
    pub compression_ratio: f64,
    /// Of its window.
    pub no_speech_prob: f64,
    /// Where they were asked for.
    pub words: Vec<Word>,
    /// The channel it was heard on, where channels are kept apart.
    pub channel: usize,
}

/// A word and when it was said.
#[derive(Debug, Clone, PartialEq)]
pub struct Word {
    /// With the space in front and punctuation around.
    pub word: String,
    /// In seconds.
    pub start: f64,
    /// In seconds.
    pub end: f64,
    /// Mean probability of its tokens.
    pub probability: f64,
}

/// What the owner of a transcription hears, in order.
#[derive(Debug, Clone, PartialEq)]
pub enum Update {
    /// The language is known.
    Language {
        /// Its code, such as `en`.
        code: String,
        /// 1 where it was given.
        probability: f64,
    },
    /// A segment that will not change. Segments come in order of time; texts put together are the transcript's.
    Segment(Segment),
    /// Everything up to here is done.
    Progress {
        /// Seconds of the recording.
        seconds: f64,
    },
    /// All of it. Nothing follows.
    Finished(Transcript),
}
