//! What an engine is asked: a request that exists is valid.

use std::{fmt, ops::Range, sync::Arc};

use clap::ValueEnum;
use percept_models::{Grid, SizeError};
use serde::{Deserialize, Serialize};

use crate::{
    engine::{Key, Pin},
    media::{FetchError, ImageError, Picture, document::DocumentError, sound::SoundError},
    text::GrammarError,
};

/// One answer to generate.
#[derive(Debug)]
pub struct Request {
    /// Tokens, media included.
    pub prompt: Prompt,
    /// The media of the prompt, in order, one for each of its spans.
    pub media: Vec<Media>,
    /// How to draw.
    pub sampling: Sampling,
    /// When to end.
    pub limits: Limits,
    /// What is wanted.
    pub readout: Readout,
    /// What the answer must be, where that is not free.
    pub constraint: Option<Box<dyn Constraint>>,
}

/// Who goes first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// Before everyone else
    High,
    /// As usual
    #[default]
    Normal,
    /// When nobody else wants to, as batches do
    Low,
}

impl Request {
    /// One for a vector, of a text or of one medium.
    pub fn embedding(prompt: Prompt, media: Vec<Media>) -> Self {
        Self {
            prompt,
            media,
            // Nothing is drawn, but a sequence has room for one token.
            sampling: Sampling::greedy(),
            limits: Limits { tokens: 1, stops: Arc::default() },
            readout: Readout::Embedding,
            constraint: None,
        }
    }
}

/// What may be drawn next, as far as it depends on what was drawn before. The engine knows no grammar.
pub trait Constraint: fmt::Debug + Send {
    /// The ids that may come next, one at least: bit `id % 32` of word `id / 32`.
    ///
    /// # Errors
    /// When that cannot be told, or takes too much work.
    fn allowed(&mut self) -> Result<Vec<u32>, ConstraintError>;

    /// Goes on behind a token, which was allowed.
    ///
    /// # Errors
    /// When that cannot be done.
    fn accept(&mut self, id: u32) -> Result<(), ConstraintError>;
}

/// Why a constraint does not go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConstraintError(pub String);

/// What is wanted of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readout {
    /// An answer.
    Answer,
    /// An answer, and the probability that `id` follows the prompt's token at `position`, before any rule.
    Probability {
        /// Whose.
        id: u32,
        /// Where.
        position: usize,
    },
    /// No answer: how the prompt follows its memory.
    Alignment {
        /// From the token behind this position on, each token's probability is wanted.
        first: usize,
        /// How many tokens have theirs.
        count: usize,
        /// Probabilities are among ids below this one.
        ids: usize,
        /// Rows of the memory that count.
        frames: usize,
    },
    /// No answer: a vector.
    Embedding,
}

/// Tokens of a prompt, with placeholders expanded to one per encoded row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// Ids.
    pub tokens: Vec<u32>,
    /// What each medium takes.
    pub spans: Vec<Span>,
}

/// A medium's part of a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Its tokens.
    pub rows: Range<usize>,
    /// See [`percept_models::Footprint::grid`].
    pub grid: Option<Grid>,
    /// See [`percept_models::Footprint::memory`].
    pub memory: usize,
}

impl Span {
    /// Tokens in a line.
    pub fn line(rows: Range<usize>) -> Self {
        Self { rows, grid: None, memory: 0 }
    }
}

/// A picture of a prompt, or what is heard.
#[derive(Debug, Clone)]
pub struct Media {
    /// Of the file's content.
    pub key: Key,
    /// Where its rows come from.
    pub source: Source,
}

/// Where encoded rows come from.
#[derive(Debug, Clone)]
pub enum Source {
    /// They have to be computed.
    Pixels(Arc<Picture>),
    /// They have to be computed: frames of a video, all of one size.
    Moment(Arc<[Picture]>),
    /// They have to be computed, unless the cache still has them.
    Sound(Sound),
    /// They are in the encoder cache, and stay there as long as this lives.
    Encoded(Arc<Pin>),
}

/// A stretch of a recording as a network hears it; see [`percept_models::Medium::Sound`].
#[derive(Debug, Clone)]
pub struct Sound {
    /// Mono, at 16 kHz.
    pub samples: Arc<[f32]>,
    /// The frames that are heard, frame `t` being centred on sample `160 t`.
    pub frames: Range<usize>,
    /// The largest log10 mel power of the recording.
    pub peak: f32,
}

/// How tokens are drawn; see [`percept_models::nn::sample::Draw`] for what each number does.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// 0 always takes the most probable token.
    pub temperature: f32,
    /// 0 keeps all.
    pub top_k: usize,
    /// 1 keeps all.
    pub top_p: f32,
    /// 0 keeps all.
    pub min_p: f32,
    /// 1 changes nothing.
    pub repetition_penalty: f32,
    /// 0 changes nothing.
    pub frequency_penalty: f32,
    /// 0 changes nothing.
    pub presence_penalty: f32,
    /// The same seed gives the same text.
    pub seed: u64,
    /// Added to logits, by id.
    pub bias: Vec<(u32, f32)>,
    /// What may be drawn when.
    pub rules: Rules,
    /// So many tokens at the prompt's end count as drawn: an answer that goes on.
    pub continues: usize,
    /// Tokens whose probabilities are wanted besides that of the drawn one; `None` computes none at all.
    pub logprobs: Option<usize>,
}

/// What may be drawn when, as data: the engine knows no language and no grammar.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rules {
    /// Ids that are never drawn.
    pub suppress: Arc<[u32]>,
    /// Ids that are not drawn first.
    pub suppress_first: Arc<[u32]>,
    /// Nothing but these is drawn.
    pub only: Option<Arc<[u32]>>,
    /// Ids that say when.
    pub timestamps: Option<TimestampRules>,
}

/// How marks of time follow each other: `ApplyTimestampRules` of openai/whisper's `decoding.py`. They come in pairs but
/// at the beginning and the end, and never go back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimestampRules {
    /// The marks. Ids behind them are never drawn.
    pub marks: Range<u32>,
    /// Ids from here to the marks end or control an answer; those in front are text.
    pub end_of_text: u32,
    /// The latest mark that may begin an answer, counted from the first mark.
    pub latest_first: Option<u32>,
}

impl Sampling {
    /// Always the most probable token.
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            seed: 0,
            bias: Vec::new(),
            rules: Rules::default(),
            continues: 0,
            logprobs: None,
        }
    }
}

/// When an answer ends.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Most tokens of the answer.
    pub tokens: usize,
    /// Ids that end it.
    pub stops: Arc<[u32]>,
}

/// What is wrong with a request. `param` is the path of the field, such as `messages[0].content[1].image_url`.
#[derive(Debug, thiserror::Error)]
pub enum InvalidRequest {
    /// A field that must be there is not.
    #[error("Missing required parameter: '{param}'.")]
    Missing {
        /// Which.
        param: String,
    },
    /// A field has another type.
    #[error("Invalid type for '{param}': expected {expected}, but got {found} instead.")]
    Type {
        /// Which.
        param: String,
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// A field has a value that is not among those it may have.
    #[error("Invalid value for '{param}': {found}. Supported values are: {supported}.")]
    Value {
        /// Which.
        param: String,
        /// Its value.
        found: String,
        /// What would do.
        supported: String,
    },
    /// A field that may be there once is there again.
    #[error("Invalid '{param}': it was given more than once.")]
    Repeated {
        /// Which.
        param: String,
    },
    /// A number is too small.
    #[error("Invalid '{param}': {} below minimum value. Expected a value >= {limit}, but got {found} instead.", kind.name())]
    BelowMinimum {
        /// Which.
        param: String,
        /// Of what kind it is.
        kind: Number,
        /// Its value.
        found: String,
        /// The smallest that would do.
        limit: String,
    },
    /// A number is too large.
    #[error("Invalid '{param}': {} above maximum value. Expected a value <= {limit}, but got {found} instead.", kind.name())]
    AboveMaximum {
        /// Which.
        param: String,
        /// Of what kind it is.
        kind: Number,
        /// Its value.
        found: String,
        /// The largest that would do.
        limit: String,
    },
    /// A list has nothing in it.
    #[error(
        "Invalid '{param}': empty array. Expected an array with minimum length 1, but got an empty array instead."
    )]
    EmptyArray {
        /// Which.
        param: String,
    },
    /// A list is too long.
    #[error("Invalid '{param}': array too long. Expected at most {limit} {items}, but got {found} instead.")]
    ArrayTooLong {
        /// Which.
        param: String,
        /// What is in it.
        items: &'static str,
        /// How many.
        found: String,
        /// How many would do.
        limit: usize,
    },
    /// A text is too long or empty.
    #[error("Invalid '{param}': expected a string of 1 to {limit} bytes, but got {found} instead.")]
    StringLength {
        /// Which.
        param: String,
        /// Its length.
        found: usize,
        /// The largest that would do.
        limit: usize,
    },
    /// A field asks for what this server does not do.
    #[error("Unsupported parameter: '{param}': {reason}.")]
    Unsupported {
        /// Which.
        param: String,
        /// Why, or what to do instead.
        reason: String,
    },
    /// A field is unknown, and the server is strict.
    #[error("Unrecognized request argument supplied: {param}")]
    Unknown {
        /// Which.
        param: String,
    },
    /// The prompt's pictures leave no room beside it where both are kept.
    #[error(
        "This server's cache has room for {limit} rows of text and pictures. However, your messages resulted in {text} \
         rows of text and {pictures} rows of pictures, and an answer needs at least one. Please reduce the length of \
         the messages, or send fewer or smaller pictures."
    )]
    CacheRows {
        /// Tokens of the prompt.
        text: usize,
        /// Rows of its pictures, in whole pages.
        pictures: usize,
        /// Rows of all together, the answer's included.
        limit: usize,
    },
    /// The prompt does not fit.
    #[error(
        "This model's maximum context length is {limit} tokens. However, your {param} resulted in {tokens} tokens or \
         more, and an answer needs at least one. Please reduce its length{}.",
        if *param == "prompt" { "" } else { " or send fewer pictures" }
    )]
    ContextLength {
        /// What is too long.
        param: &'static str,
        /// Tokens of the prompt, at least.
        tokens: usize,
        /// Tokens of prompt and answer, at most.
        limit: usize,
    },
    /// A text does not fit.
    #[error(
        "This model's maximum context length is {limit} tokens. However, '{param}' resulted in {tokens} tokens or more. \
         Please reduce its length, or have it cut with truncate_prompt_tokens."
    )]
    TextLength {
        /// Which.
        param: String,
        /// Tokens of it, at least.
        tokens: usize,
        /// Tokens that it may have.
        limit: usize,
    },
    /// The chat template refuses the conversation.
    #[error("Invalid 'messages': {reason}.")]
    Messages {
        /// Why.
        reason: String,
    },
    /// The URL of a picture cannot be used.
    #[error("Invalid '{param}': {error}.")]
    PictureUrl {
        /// Which.
        param: String,
        /// Why.
        error: FetchError,
    },
    /// The file of a picture cannot be used.
    #[error("Invalid '{param}': {error}.")]
    Picture {
        /// Which.
        param: String,
        /// Why.
        error: ImageError,
    },
    /// The URL or the data of a file cannot be used.
    #[error("Invalid '{param}': {}.", of_file(error))]
    FileUrl {
        /// Which.
        param: String,
        /// Why.
        error: FetchError,
    },
    /// The file of a document cannot be used.
    #[error("Invalid '{param}': {error}.")]
    Document {
        /// Which.
        param: String,
        /// Why.
        error: DocumentError,
    },
    /// The model takes no picture of this size.
    #[error("Invalid '{param}': {error}.")]
    PictureSize {
        /// Which.
        param: String,
        /// Why.
        error: SizeError,
    },
    /// The file of a recording cannot be used.
    #[error("{}: {error}.", of_sound(param, error))]
    Sound {
        /// Which.
        param: String,
        /// Why.
        error: SoundError,
    },
    /// The frames of a video differ in size.
    #[error(
        "Invalid '{param}': the frame is {}x{}, the first one is {}x{}; frames of a video must have one size.",
        found.0, found.1, first.0, first.1
    )]
    FrameSize {
        /// Which frame.
        param: String,
        /// Its columns and rows.
        found: (usize, usize),
        /// Those of the first one.
        first: (usize, usize),
    },
    /// What the answer must be cannot be followed.
    #[error("Invalid '{param}': {error}.")]
    Grammar {
        /// The field that says what.
        param: String,
        /// Why.
        error: GrammarError,
    },
    /// The pictures of a request are too large together.
    #[error("Invalid '{param}': the request's pictures have {found} pixels together; the limit is {limit}.")]
    Pixels {
        /// The picture that was too much.
        param: String,
        /// Pixels up to it.
        found: usize,
        /// How many would do.
        limit: usize,
    },
}

/// What is wrong with a URL, of which a picture is not expected.
fn of_file(error: &FetchError) -> String {
    error.to_string().replace("picture", "file").replace("data:image/jpeg", "data:application/pdf")
}

/// How the hosted API begins its messages about recordings, where it has one.
fn of_sound(param: &str, error: &SoundError) -> String {
    match error {
        SoundError::NotSound | SoundError::NoAudio | SoundError::Codec { .. } => "Invalid file format".into(),
        SoundError::Empty | SoundError::Broken { .. } => {
            "Audio file might be corrupted or unsupported".into()
        }
        _ => format!("Invalid '{param}'"),
    }
}

/// Kinds of numbers in messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Number {
    /// Whole.
    Integer,
    /// With fraction.
    Decimal,
}

impl Number {
    fn name(self) -> &'static str {
        match self {
            Self::Integer => "integer",
            Self::Decimal => "decimal",
        }
    }
}
