//! The networks, one file per architecture.
//!
//! [`load`] turns a checkpoint folder into a [`Model`], which computes, and a [`Preprocess`], which prepares its
//! media. A network is wired from [`nn`]; it names no device and no element type, and never waits for the host.

#![forbid(unsafe_code)]

pub mod batch;
mod bert;
pub mod cache;
mod checkpoint;
mod clip;
mod internvl;
mod llava;
mod llava_next;
mod mllama;
pub mod nn;
mod phi3_v;
mod pixtral;
mod qwen_vl;
mod siglip;
mod smolvlm;
mod weights;
mod whisper;

use std::{
    fmt, io, iter,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use serde::Deserialize;

pub use crate::{
    batch::{Batch, Insert, Pages, Paging, Ragged, Remembered},
    cache::{CacheShape, KvCache},
    checkpoint::{Checkpoint, EmbeddedFile},
    nn::image::Fit,
    weights::{INDEX_FILE, Progress, SINGLE_FILE, dummy::WeightUses, shards_of_index},
};
use crate::{
    nn::projected,
    weights::{
        Weights,
        dummy::{Outlined, Random},
    },
};

/// A result whose error is a tensor library's, unless said otherwise.
pub type Result<T, E = candle_core::Error> = std::result::Result<T, E>;

/// A network.
pub trait Model: Send {
    /// What it keeps per row of text.
    fn cache_shape(&self) -> CacheShape;

    /// Encodes several media to `[rows, width]`, one after another.
    ///
    /// # Errors
    /// When features have another shape.
    fn encode(&self, media: &[Features]) -> Result<Tensor>;

    /// Logits `[wanted, vocabulary]`; writes the cache.
    ///
    /// # Errors
    /// When the batch does not fit the cache.
    fn forward(&self, batch: &Batch, cache: &KvCache) -> Result<Tensor>;

    /// Writes what the text will see of encoded rows `[rows, width]` into `slots`, u32 `[rows]`, of the cache: for
    /// networks whose text attends to a memory.
    ///
    /// # Errors
    /// When the network has no such memory, or shapes do not fit.
    fn remember(&self, encoded: &Tensor, slots: &Tensor, cache: &KvCache) -> Result<()> {
        let _ = (encoded, slots, cache);
        candle_core::bail!("this network has no memory besides its text")
    }

    /// A vector for each sequence of a batch, f32 `[sequences, dimensions]`: for networks that make vectors. All sequences
    /// are whole, and either all are texts or each is one medium, whose rows are inserts.
    ///
    /// # Errors
    /// When the network makes none, or shapes do not fit.
    fn embed(&self, batch: &Batch) -> Result<Tensor> {
        let _ = batch;
        candle_core::bail!("this network makes no vectors")
    }

    /// Like [`Self::forward`] for a batch of one sequence, and besides where its rows look in the first `frames` rows
    /// of the memory.
    ///
    /// # Errors
    /// When the network has no memory, or the batch does not fit the cache.
    fn align(&self, batch: &Batch, frames: usize, cache: &KvCache) -> Result<Aligned> {
        let _ = (batch, frames, cache);
        candle_core::bail!("this network has no memory besides its text")
    }
}

/// What [`Model::align`] gives.
#[derive(Debug)]
pub struct Aligned {
    /// `[wanted, vocabulary]`.
    pub logits: Tensor,
    /// f32 `[rows, frames]`: attention, made comparable between rows and averaged over the heads that follow time.
    pub attention: Tensor,
}

/// What prepares media for a network.
pub trait Preprocess: Send + Sync + fmt::Debug {
    /// What a medium takes in the prompt. Arithmetic only: asked before anything runs.
    ///
    /// # Errors
    /// When the network takes none of that size.
    fn footprint(&self, size: MediaSize) -> Result<Footprint, SizeError>;

    /// Whether [`LoadOptions::fit`] has a meaning for it.
    fn has_fit(&self) -> bool {
        false
    }

    /// Whether all media become features of one shape, which are encoded by the same work whatever their
    /// [size](Features::size) was.
    fn has_one_shape(&self) -> bool {
        false
    }

    /// A decoded medium to encoder input.
    ///
    /// # Errors
    /// When it is a medium of another kind, or has another shape.
    fn run(&self, medium: Medium<'_>) -> Result<Tensor>;
}

/// A decoded medium, on the device.
#[derive(Debug, Clone)]
pub enum Medium<'a> {
    /// A picture: u8 `[height, width, 3]`.
    Picture(&'a Tensor),
    /// Frames of a video that become rows together: u8 `[frames, height, width, 3]`, at most [`VideoInfo::frames`].
    Moment(&'a Tensor),
    /// A stretch of a recording; see [`nn::mel::Mel::frames`].
    Sound {
        /// Mono, at 16 kHz: f32 `[count]`.
        samples: &'a Tensor,
        /// The frames that are heard. The network's window is filled up with zeros.
        frames: Range<usize>,
        /// The largest log10 mel power of the recording.
        peak: f32,
    },
}

/// A medium that is ready to be encoded.
#[derive(Debug, Clone)]
pub struct Features {
    /// What [`Preprocess::run`] made of it.
    pub tensor: Tensor,
    /// What it was before.
    pub size: MediaSize,
}

/// The tensors of several media, end to end along their first dimension.
fn end_to_end(media: &[Features]) -> Result<Tensor> {
    Tensor::cat(&media.iter().map(|features| &features.tensor).collect::<Vec<_>>(), 0)
}

impl<'a> Medium<'a> {
    /// The pixels of a picture.
    ///
    /// # Errors
    /// When it is another medium.
    fn picture(&self) -> Result<&'a Tensor> {
        match self {
            Self::Picture(pixels) => Ok(pixels),
            Self::Moment(_) => candle_core::bail!("this network sees pictures, and no videos"),
            Self::Sound { .. } => candle_core::bail!("this network sees, it does not hear"),
        }
    }
}

/// The size of a decoded medium.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MediaSize {
    /// A picture, in pixels.
    Image {
        /// Columns.
        width: usize,
        /// Rows.
        height: usize,
    },
    /// Frames of a video that become rows together, in pixels.
    Moment {
        /// Columns.
        width: usize,
        /// Rows.
        height: usize,
    },
    /// A window of a recording.
    Sound,
}

impl MediaSize {
    /// A picture that is as large as any network lets one be, and has as many tiles.
    pub const HUGE: Self = Self::Image { width: 1 << 14, height: 1 << 14 };

    /// Width and height of a picture.
    ///
    /// # Errors
    /// When it is another medium's.
    fn picture(self) -> Result<(usize, usize)> {
        match self {
            Self::Image { width, height } => Ok((width, height)),
            Self::Moment { .. } => candle_core::bail!("this network sees pictures, and no videos"),
            Self::Sound => candle_core::bail!("this network sees, it does not hear"),
        }
    }
}

/// Why a network does not take a medium.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// It is a line rather than a picture.
    #[error(
        "the picture is {width}x{height}; this model takes none with one edge more than {limit} times the other"
    )]
    Narrow {
        /// Columns.
        width: usize,
        /// Rows.
        height: usize,
        /// How many times the shorter edge the longer one may be.
        limit: usize,
    },
}

/// What a medium takes in the prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Footprint {
    /// The ids that replace its placeholder. Each that is one of [`Task::placeholders`] takes an encoded row.
    pub tokens: Vec<u32>,
    /// Rows that it takes in the cache besides the prompt's, where the text attends to it instead of having it inside:
    /// its rows and those behind them do, up to the next such medium. Media whose rows follow each other without a row
    /// between them are seen together.
    pub memory: usize,
    /// How its tokens lie, for networks whose positions tell; see [`Positions::planes`].
    pub grid: Option<Grid>,
}

/// How the tokens of a medium lie in time, height and width.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    /// Positions of time behind the first moment of its video.
    pub time: usize,
    /// Whether it is a later moment of the video that the medium in front of it belongs to. One placeholder stands for
    /// all moments of a video, and no text is between them.
    pub continues: bool,
}

impl Grid {
    /// Of a picture, or of a video's first moment.
    pub fn first(rows: usize, columns: usize) -> Self {
        Self { rows, columns, time: 0, continues: false }
    }

    /// Of a later moment of a video, `time` positions behind the first.
    #[must_use]
    pub fn later(self, time: usize) -> Self {
        Self { time, continues: true, ..self }
    }
}

impl Footprint {
    /// Tokens in a line, and nothing else.
    pub fn line(tokens: Vec<u32>) -> Self {
        Self { tokens, memory: 0, grid: None }
    }

    /// Whether it is that of a later moment of the video in front of it.
    pub fn continues(&self) -> bool {
        self.grid.is_some_and(|grid| grid.continues)
    }
}

/// How rows of text are numbered for a network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Positions {
    /// Whether a row has three positions: of time, height and width. They differ inside of media with a
    /// [grid](Footprint::grid), whose rows count up in height and width, and in time from moment to moment of a video;
    /// the text behind goes on from the largest.
    pub planes: bool,
    /// A sequence with more rows than this is long: all of its rows are computed in another way, those in front, too.
    pub long: Option<usize>,
}

/// What a network is for.
#[derive(Debug, Clone)]
pub enum Task {
    /// To go on with a conversation.
    Chat(TextInfo),
    /// To write down what is said.
    Transcribe(SpeechInfo),
    /// To say where texts lie among each other.
    Embed(EmbeddingInfo),
}

impl Task {
    /// Most rows of prompt and answer together.
    pub fn context(&self) -> usize {
        match self {
            Self::Chat(info) => info.context,
            Self::Transcribe(info) => info.context,
            Self::Embed(info) => info.context,
        }
    }

    /// How rows of its text are numbered.
    pub fn positions(&self) -> Positions {
        match self {
            Self::Chat(info) => info.positions,
            Self::Transcribe(_) | Self::Embed(_) => Positions::default(),
        }
    }

    /// The ids that stand for one encoded row in the prompt.
    pub fn placeholders(&self) -> Vec<u32> {
        match self {
            Self::Chat(info) => {
                iter::once(info.placeholder).chain(info.video.map(|video| video.placeholder)).collect()
            }
            Self::Transcribe(_) => Vec::new(),
            Self::Embed(info) => info.pictures.into_iter().collect(),
        }
    }
}

/// What the text side must know of a network that makes vectors.
#[derive(Debug, Clone)]
pub struct EmbeddingInfo {
    /// Most rows of a text, those included that begin and end it.
    pub context: usize,
    /// Numbers of a vector.
    pub dimensions: usize,
    /// Which beginnings of a vector are vectors as well.
    pub shorter: Shorter,
    /// The id that fills up each text to `context` rows, where the network has only seen texts of that length.
    pub filler: Option<u32>,
    /// The id that stands for an encoded row, where pictures lie among the texts. No text has it.
    pub pictures: Option<u32>,
}

/// Which beginnings of a vector are vectors as well, as `config.json` says it of networks that were trained so
/// (<https://arxiv.org/abs/2205.13147>). The names are vLLM's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Shorter {
    /// Whether there are any.
    is_matryoshka: bool,
    /// Their lengths; any where there is no list.
    matryoshka_dimensions: Option<Vec<usize>>,
}

impl Shorter {
    /// Whether the first `count` numbers of a vector of more are a vector.
    pub fn allows(&self, count: usize) -> bool {
        match &self.matryoshka_dimensions {
            Some(lengths) => lengths.contains(&count),
            None => self.is_matryoshka && count > 0,
        }
    }

    /// The lengths that vectors of so many numbers may have, in words.
    pub fn describe(&self, whole: usize) -> String {
        match &self.matryoshka_dimensions {
            Some(lengths) => {
                let shorter = lengths.iter().filter(|&&length| length < whole);
                shorter.chain([&whole]).map(usize::to_string).collect::<Vec<_>>().join(", ")
            }
            None if self.is_matryoshka => format!("1 to {whole}"),
            None => whole.to_string(),
        }
    }
}

/// What the speech side must know of a network.
#[derive(Debug, Clone)]
pub struct SpeechInfo {
    /// Most rows of prompt and answer together.
    pub context: usize,
    /// Numbers of a frame.
    pub mels: usize,
    /// Frames of a window, two per encoded row.
    pub frames: usize,
    /// Rows of the output, padding included.
    pub vocabulary: usize,
}

/// What the text side must know of a network.
#[derive(Debug, Clone)]
pub struct TextInfo {
    /// Most rows of prompt and answer together.
    pub context: usize,
    /// The id that stands for one medium in the text and for one encoded row in the prompt.
    pub placeholder: u32,
    /// How it takes videos, if it does.
    pub video: Option<VideoInfo>,
    /// Ids that end an answer, from the configuration; generation config and tokenizer may know more.
    pub stops: Vec<u32>,
    /// How its rows are numbered.
    pub positions: Positions,
    /// A chat template that goes before the checkpoint's: published code may write prompts in another way.
    pub template: Option<String>,
    /// Whether stretches of text between pictures are encoded each by itself, with the tokens that begin a text.
    pub stretches: bool,
}

impl TextInfo {
    /// A network that numbers its rows one by one, and whose prompts are as its checkpoint's files say.
    pub fn new(context: usize, placeholder: u32, stops: Vec<u32>) -> Self {
        Self {
            context,
            placeholder,
            video: None,
            stops,
            positions: Positions::default(),
            template: None,
            stretches: false,
        }
    }
}

/// How a network takes videos: as moments of a few frames, each a medium.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct VideoInfo {
    /// The id that stands for one video in the text and for one encoded row in the prompt.
    pub placeholder: u32,
    /// Frames of a moment. The last frame of a video fills up its last moment.
    pub frames: usize,
    /// Positions of a second; without, a moment has one, however long it is.
    pub pace: Option<f64>,
}

impl VideoInfo {
    /// Positions of time between the first moment of a video of `rate` frames per second and another one.
    pub fn time(&self, moment: usize, rate: f64) -> usize {
        let Some(pace) = self.pace else { return moment };
        // In the reference a whole number times a Python number is of 32 bits.
        let interval = (pace * (self.frames as f64 / rate)) as f32;
        (moment as f32 * interval) as usize
    }
}

/// A network ready to run.
pub struct Loaded {
    /// What computes.
    pub model: Box<dyn Model>,
    /// What prepares its media.
    pub preprocess: Arc<dyn Preprocess>,
    /// What it is for.
    pub task: Task,
    /// Width of an encoded row.
    pub width: usize,
    /// Numbers that are alive at once, at most, for a row that is being encoded.
    pub encoder_row: usize,
    /// Size of the weights in the type they were loaded as.
    pub weight_bytes: u64,
    /// The type they were loaded as, which is also that of the cache.
    pub dtype: DType,
    /// The device they were loaded on.
    pub device: Device,
}

/// What is known of a network without its weights.
#[derive(Debug, Clone)]
pub struct Outline {
    /// What it keeps per row of text.
    pub cache_shape: CacheShape,
    /// What prepares its media.
    pub preprocess: Arc<dyn Preprocess>,
    /// What it is for.
    pub task: Task,
    /// Width of an encoded row.
    pub width: usize,
    /// Numbers that are alive at once, at most, for a row that is being encoded.
    pub encoder_row: usize,
    /// Size of the weights, as `dtype`.
    pub weight_bytes: u64,
    /// The type of weights, activations and cache.
    pub dtype: DType,
}

impl Loaded {
    /// What is known of it without its weights.
    pub fn outline(&self) -> Outline {
        Outline {
            cache_shape: self.model.cache_shape(),
            preprocess: Arc::clone(&self.preprocess),
            task: self.task.clone(),
            width: self.width,
            encoder_row: self.encoder_row,
            weight_bytes: self.weight_bytes,
            dtype: self.dtype,
        }
    }
}

/// How to load.
pub struct LoadOptions {
    /// Where.
    pub device: Device,
    /// The type of weights and activations.
    pub dtype: DType,
    /// Overrides how the checkpoint treats pictures that are not square.
    pub fit: Option<Fit>,
    /// Most bytes that the weights may take.
    pub most_bytes: u64,
    /// Called as weights are read.
    pub progress: Box<Progress>,
}

/// A row of the registry.
pub struct Architecture {
    /// As in `architectures` of config.json.
    pub names: &'static [&'static str],
    /// `model_type` of `vision_config`, where rows with the same name differ in it.
    pub vision: Option<&'static str>,
    /// Prefixes of weight names that the network asks for, and what files may have instead.
    aliases: &'static [(&'static str, &'static str)],
    load: fn(&Checkpoint, Option<Fit>, &VarBuilder<'_>) -> Result<Parts, LoadError>,
}

/// What an architecture's `load` gives.
struct Parts {
    model: Box<dyn Model>,
    preprocess: Arc<dyn Preprocess>,
    task: Task,
    width: usize,
    encoder_row: usize,
}

impl Parts {
    fn loaded(self, weight_bytes: u64, dtype: DType, device: Device) -> Loaded {
        let Self { model, preprocess, task, width, encoder_row } = self;
        Loaded { model, preprocess, task, width, encoder_row, weight_bytes, dtype, device }
    }
}

/// Every architecture that can be loaded.
pub const ARCHITECTURES: &[Architecture] = &[
    Architecture {
        names: &["LlavaForConditionalGeneration"],
        vision: Some("clip_vision_model"),
        aliases: projected::ALIASES,
        load: llava::load,
    },
    Architecture {
        names: &["LlavaForConditionalGeneration"],
        vision: Some("pixtral"),
        aliases: projected::ALIASES,
        load: pixtral::load,
    },
    Architecture {
        names: &["LlavaNextForConditionalGeneration"],
        vision: None,
        aliases: projected::ALIASES,
        load: llava_next::load,
    },
    Architecture {
        names: &["MllamaForConditionalGeneration"],
        vision: None,
        aliases: mllama::ALIASES,
        load: mllama::load,
    },
    Architecture {
        names: &[internvl::PUBLISHED, internvl::NATIVE],
        vision: None,
        aliases: projected::ALIASES,
        load: internvl::load,
    },
    Architecture { names: &["Phi3VForCausalLM"], vision: None, aliases: phi3_v::ALIASES, load: phi3_v::load },
    Architecture {
        names: &["Qwen2_5_VLForConditionalGeneration", "Qwen2VLForConditionalGeneration"],
        vision: None,
        aliases: qwen_vl::ALIASES,
        load: qwen_vl::load,
    },
    Architecture {
        names: &["Idefics3ForConditionalGeneration", "SmolVLMForConditionalGeneration"],
        vision: None,
        aliases: &[],
        load: smolvlm::load,
    },
    Architecture { names: &["BertModel"], vision: None, aliases: bert::ALIASES, load: bert::load },
    Architecture { names: &["CLIPModel"], vision: None, aliases: &[], load: clip::load },
    Architecture { names: &["SiglipModel"], vision: None, aliases: &[], load: siglip::load },
    Architecture {
        names: &["RobertaModel", "XLMRobertaModel"],
        vision: None,
        aliases: bert::ALIASES,
        load: bert::load_roberta,
    },
    Architecture {
        names: &["WhisperForConditionalGeneration"],
        vision: None,
        aliases: whisper::ALIASES,
        load: whisper::load,
    },
];

impl fmt::Display for Architecture {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.names.join(", "))?;
        self.vision.map_or(Ok(()), |vision| write!(formatter, " ({vision})"))
    }
}

/// Loads a checkpoint.
///
/// # Errors
/// When a file is missing, broken or asks for what is not supported; the message names it.
pub fn load(checkpoint: &Checkpoint, options: LoadOptions) -> Result<Loaded, LoadError> {
    let LoadOptions { device, dtype, fit, most_bytes, progress } = options;
    let architecture = architecture(checkpoint)?;
    let weights = Weights::open(checkpoint, architecture.aliases, progress)?;
    let weight_bytes = weights.bytes_as(dtype);
    if weight_bytes > most_bytes {
        return Err(LoadError::TooLarge { weights: weight_bytes, limit: most_bytes });
    }
    let failure = weights.failure();
    let vb = weights.into_builder(dtype, &device);
    let parts = (architecture.load)(checkpoint, fit, &vb)
        .map_err(|error| failure.lock().ok().and_then(|mut failure| failure.take()).unwrap_or(error))?;
    Ok(parts.loaded(weight_bytes, dtype, device))
}

/// Loads a network of a checkpoint's shapes with random weights: as [`load`] does, but for its weight files, which
/// need not be there. The same checkpoint always gets the same weights.
///
/// # Errors
/// As [`load`].
pub fn load_random(checkpoint: &Checkpoint, options: LoadOptions) -> Result<Loaded, LoadError> {
    let LoadOptions { device, dtype, fit, most_bytes, progress } = options;
    let Outline { weight_bytes, .. } = outline(checkpoint, dtype, fit)?;
    if weight_bytes > most_bytes {
        return Err(LoadError::TooLarge { weights: weight_bytes, limit: most_bytes });
    }
    let vb = Random::new(weight_bytes, progress).into_builder(dtype, &device);
    let parts = (architecture(checkpoint)?.load)(checkpoint, fit, &vb)?;
    Ok(parts.loaded(weight_bytes, dtype, device))
}

/// What the network of a checkpoint will be. Its weights are neither read nor needed: their size is that of the
/// tensors which the network asks for.
///
/// # Errors
/// As [`load`], but for weight files.
pub fn outline(checkpoint: &Checkpoint, dtype: DType, fit: Option<Fit>) -> Result<Outline, LoadError> {
    let outlined = Outlined::default();
    let vb = outlined.builder(dtype);
    let parts = (architecture(checkpoint)?.load)(checkpoint, fit, &vb)?;
    let weight_bytes = outlined.elements() * dtype.size_in_bytes() as u64;
    Ok(parts.loaded(weight_bytes, dtype, Device::Cpu).outline())
}

/// Numbers of the weights of a checkpoint's network, by when they are used; see [`outline`].
///
/// # Errors
/// As [`load`], but for weight files.
pub fn weight_uses(checkpoint: &Checkpoint) -> Result<WeightUses, LoadError> {
    let outlined = Outlined::default();
    (architecture(checkpoint)?.load)(checkpoint, None, &outlined.builder(DType::F32))?;
    Ok(outlined.uses())
}

/// Bytes that the weights of a checkpoint take as `dtype`. Reads no more of them than their headers.
///
/// # Errors
/// As [`load`], as far as that can be told by then.
pub fn weight_bytes(checkpoint: &Checkpoint, dtype: DType) -> Result<u64, LoadError> {
    let architecture = architecture(checkpoint)?;
    let weights = Weights::open(checkpoint, architecture.aliases, Box::new(|_, _| {}))?;
    Ok(weights.bytes_as(dtype))
}

/// The registry row of a checkpoint.
///
/// # Errors
/// When config.json is missing or names no architecture of [`ARCHITECTURES`].
pub fn architecture(checkpoint: &Checkpoint) -> Result<&'static Architecture, LoadError> {
    #[derive(Default, Deserialize)]
    struct Vision {
        model_type: Option<String>,
    }
    #[derive(Deserialize)]
    struct Config {
        #[serde(default)]
        architectures: Vec<String>,
        quantization_config: Option<serde_json::Value>,
        vision_config: Option<Vision>,
    }
    let config: Config = checkpoint.config()?;
    if config.quantization_config.is_some() {
        return Err(LoadError::unsupported("quantization_config", "present", "weights in f32, f16 or bf16"));
    }
    let named = |row: &&Architecture| {
        row.names.iter().any(|name| config.architectures.iter().any(|found| found == name))
    };
    let rows: Vec<_> = ARCHITECTURES.iter().filter(named).collect();
    let Some(first) = rows.first() else {
        return Err(LoadError::UnknownArchitecture { found: config.architectures });
    };
    // A tower that says nothing is what the first row's class has where nothing is said.
    let Some(vision) = config.vision_config.unwrap_or_default().model_type else { return Ok(first) };
    rows.iter().find(|row| row.vision.is_none_or(|known| known == vision)).copied().ok_or_else(|| {
        let known: Vec<_> = rows.iter().filter_map(|row| row.vision).collect();
        LoadError::unsupported("vision_config model_type", &vision, &known.join(", "))
    })
}

/// Token ids of a configuration value that is a number, a list or absent.
pub fn ids(value: Option<&serde_json::Value>) -> impl Iterator<Item = u32> + '_ {
    let list = match value {
        Some(serde_json::Value::Array(list)) => list.as_slice(),
        Some(single) => std::slice::from_ref(single),
        None => &[],
    };
    list.iter().filter_map(serde_json::Value::as_u64).filter_map(|id| u32::try_from(id).ok())
}

/// Why a checkpoint cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file that every checkpoint of this kind has is not there.
    #[error("{} is missing", file.display())]
    MissingFile {
        /// Which.
        file: PathBuf,
    },
    /// There are no weights.
    #[error(
        "{} has neither {SINGLE_FILE} nor {INDEX_FILE}: percept reads safetensors only, so convert .bin files first",
        folder.display()
    )]
    NoWeights {
        /// Where.
        folder: PathBuf,
    },
    /// The index names a file that is not there.
    #[error("{} is missing, but {} names it: download it again", file.display(), index.display())]
    MissingShard {
        /// Which.
        file: PathBuf,
        /// Who says so.
        index: PathBuf,
    },
    /// A file cannot be read.
    #[error("cannot read {}: {error}", file.display())]
    Io {
        /// Which.
        file: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A file is not the JSON that it should be.
    #[error("{} is not what it should be: {error}", file.display())]
    Json {
        /// Which.
        file: PathBuf,
        /// Why.
        error: serde_json::Error,
    },
    /// A weight file ends early.
    #[error(
        "{} is truncated: its header describes {expected} bytes, it has {found}; download it again",
        file.display()
    )]
    Truncated {
        /// Which.
        file: PathBuf,
        /// Bytes that the header describes.
        expected: u64,
        /// Bytes that are there.
        found: u64,
    },
    /// A weight file is something else.
    #[error("{} is not a safetensors file: {reason}", file.display())]
    NotSafetensors {
        /// Which.
        file: PathBuf,
        /// Why.
        reason: String,
    },
    /// The weights need more memory than they may have. Nothing of them was read.
    #[error("the weights take {weights} bytes, and {limit} may be used")]
    TooLarge {
        /// Bytes in the type asked for.
        weights: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// The architecture is not in the registry.
    #[error(
        "architecture {} is not supported; supported: {}",
        if found.is_empty() { "(none in config.json)".to_owned() } else { found.join(", ") },
        ARCHITECTURES.iter().map(Architecture::to_string).collect::<Vec<_>>().join(", ")
    )]
    UnknownArchitecture {
        /// What config.json says.
        found: Vec<String>,
    },
    /// The configuration asks for what the network does not do.
    #[error("{what} is not supported; supported: {supported}")]
    Unsupported {
        /// What it asks for.
        what: String,
        /// What would do.
        supported: String,
    },
    /// A tensor is not there.
    #[error("tensor `{name}` is missing from {}", files.join(", "))]
    MissingTensor {
        /// Its name, as the network asks for it.
        name: String,
        /// Where it was looked for.
        files: Vec<String>,
    },
    /// A tensor has another shape.
    #[error("tensor `{name}` in {file} has shape {found:?}, but the configuration needs {expected:?}")]
    WrongShape {
        /// Its name, as the network asks for it.
        name: String,
        /// What the configuration needs.
        expected: Vec<usize>,
        /// What the file has.
        found: Vec<usize>,
        /// Which file.
        file: String,
    },
    /// A tokenizer cannot be used.
    #[error("{} cannot be used: {reason}", file.display())]
    Tokenizer {
        /// Its file.
        file: PathBuf,
        /// Why.
        reason: String,
    },
    /// The device refused.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

impl LoadError {
    fn tokenizer(file: &Path, error: &tokenizers::Error) -> Self {
        Self::Tokenizer { file: file.to_owned(), reason: error.to_string() }
    }

    fn unsupported(key: &str, value: &str, supported: &str) -> Self {
        Self::Unsupported { what: format!("{key} {value}"), supported: supported.into() }
    }
}
