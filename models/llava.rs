//! LLaVA-1.5: CLIP, a two-layer projector and a Llama decoder.
//!
//! Paper: <https://arxiv.org/abs/2310.03744>. Reference: transformers, `models/llava`. Checkpoints:
//! `llava-hf/llava-1.5-7b-hf`, `llava-hf/llava-1.5-13b-hf` and fine-tunes in that layout.

use std::sync::Arc;

use candle_core::Tensor;
use candle_nn::VarBuilder;
use serde::Deserialize;

use crate::{
    CacheShape, Checkpoint, Fit, Footprint, KvCache, LoadError, MediaSize, Medium, Model, Parts, Preprocess,
    Result, Task, TextInfo,
    batch::{Batch, Ragged},
    ids,
    nn::{
        clip::{ClipConfig, ClipTower},
        decoder::{Decoder, DecoderConfig, TextConfig},
        image::{ImageProcessorConfig, SquareProcessor},
        linear::Bias,
        mlp::{Activation, Mlp},
    },
};

/// Published files keep the old names; transformers 4.52 and 5 moved them in memory, and some tools save those.
pub(crate) const ALIASES: &[(&str, &str)] = &[
    ("language_model.model.", "model.language_model."),
    ("language_model.lm_head.", "lm_head."),
    ("vision_tower.vision_model.", "model.vision_tower.vision_model."),
    ("vision_tower.vision_model.", "model.vision_tower."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
];

#[derive(Debug, Deserialize)]
struct Config {
    image_token_index: Option<u32>,
    /// The newer name; some tools save both.
    image_token_id: Option<u32>,
    #[serde(default = "feature_layer")]
    vision_feature_layer: FeatureLayers,
    #[serde(default)]
    vision_feature_select_strategy: Strategy,
    #[serde(default = "projector_activation")]
    projector_hidden_act: String,
    #[serde(default = "yes")]
    multimodal_projector_bias: bool,
    tie_word_embeddings: Option<bool>,
    image_aspect_ratio: Option<String>,
    eos_token_id: Option<serde_json::Value>,
    #[serde(default)]
    text_config: TextConfig,
    #[serde(default = "ClipConfig::large_336")]
    vision_config: ClipConfig,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum FeatureLayers {
    One(i64),
    Several(Vec<i64>),
}

/// Which rows of a hidden state are used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Strategy {
    /// Without the class row.
    #[default]
    Default,
    /// All.
    Full,
}

fn feature_layer() -> FeatureLayers {
    FeatureLayers::One(-2)
}

fn projector_activation() -> String {
    "gelu".into()
}

fn yes() -> bool {
    true
}

impl Config {
    fn image_token(&self) -> u32 {
        self.image_token_index.or(self.image_token_id).unwrap_or(32_000)
    }

    fn decoder(&self) -> Result<DecoderConfig, LoadError> {
        match self.text_config.model_type.as_deref() {
            None | Some("llama") => {}
            Some(other) => return Err(LoadError::unsupported("text_config model_type", other, "llama")),
        }
        let mut decoder = self.text_config.llama()?;
        decoder.tied |= self.tie_word_embeddings.unwrap_or(false);
        Ok(decoder)
    }

    /// Indices of the hidden states whose channels are joined.
    fn states(&self) -> Result<Vec<usize>, LoadError> {
        let layers = match &self.vision_feature_layer {
            FeatureLayers::One(layer) => vec![*layer],
            FeatureLayers::Several(layers) => layers.clone(),
        };
        if layers.is_empty() {
            return Err(LoadError::unsupported("vision_feature_layer", "[]", "one layer or more"));
        }
        layers.iter().map(|&layer| self.vision_config.state(layer)).collect()
    }

    /// The original repository's name for padding.
    fn fit(&self) -> Result<Option<Fit>, LoadError> {
        match self.image_aspect_ratio.as_deref() {
            None => Ok(None),
            Some("pad") => Ok(Some(Fit::Pad)),
            Some("square") => Ok(Some(Fit::Crop)),
            Some(other) => Err(LoadError::unsupported("image_aspect_ratio", other, "pad and square")),
        }
    }
}

/// Loads the network and its image processor.
pub(crate) fn load(
    checkpoint: &Checkpoint,
    fit: Option<Fit>,
    vb: &VarBuilder<'_>,
) -> Result<Parts, LoadError> {
    let config: Config = checkpoint.config()?;
    let decoder = config.decoder()?;
    let states = config.states()?;
    let vision = &config.vision_config;
    vision.check()?;
    let hidden = decoder.attention.hidden;

    let processor: ImageProcessorConfig = checkpoint.image_processor()?;
    let fit = fit.or(config.fit()?);
    let preprocess = LlavaPreprocess {
        processor: SquareProcessor::new(&processor, vision.image_size, fit)?,
        rows: vision.patches() + usize::from(config.vision_feature_select_strategy == Strategy::Full),
        placeholder: config.image_token(),
    };

    let last = states.iter().copied().max().unwrap_or(0);
    let bias = if config.multimodal_projector_bias { Bias::Yes } else { Bias::No };
    let activation = Activation::parse("projector_hidden_act", &config.projector_hidden_act)?;
    let states_width = vision.hidden_size * states.len();
    let sizes = (states_width, hidden, hidden);
    let model = Llava {
        tower: ClipTower::load(vision, last, &vb.pp("vision_tower.vision_model"))?,
        projector: Mlp::load(
            ("linear_1", "linear_2"),
            sizes,
            bias,
            activation,
            &vb.pp("multi_modal_projector"),
        )?,
        decoder: Decoder::load(&decoder, &vb.pp("language_model.model"), &vb.pp("language_model.lm_head"))?,
        cache_shape: decoder.cache_shape(),
        states,
        strategy: config.vision_feature_select_strategy,
    };
    let text = TextInfo {
        context: decoder.positions,
        placeholder: config.image_token(),
        stops: ids(config.eos_token_id.as_ref())
            .chain(ids(config.text_config.eos_token_id.as_ref()))
            .collect(),
    };
    // States are joined, and the projector's two layers follow.
    let encoder_row = vision.row_size() + states_width + 2 * hidden;
    let (model, preprocess) = (Box::new(model), Arc::new(preprocess));
    Ok(Parts { model, preprocess, task: Task::Chat(text), width: hidden, encoder_row })
}

struct Llava {
    tower: ClipTower,
    projector: Mlp,
    decoder: Decoder,
    cache_shape: CacheShape,
    states: Vec<usize>,
    strategy: Strategy,
}

impl Model for Llava {
    fn cache_shape(&self) -> CacheShape {
        self.cache_shape
    }

    fn encode(&self, features: &Tensor, _: &Ragged) -> Result<Tensor> {
        let states = self.tower.states(features, &self.states)?;
        let states = Tensor::cat(&states, 2)?;
        let states = match self.strategy {
            Strategy::Full => states,
            Strategy::Default => states.narrow(1, 1, states.dim(1)? - 1)?,
        };
        self.projector.forward(&states.flatten_to(1)?)
    }

    fn forward(&self, batch: &Batch, cache: &KvCache) -> Result<Tensor> {
        self.decoder.forward(batch, cache)
    }
}

#[derive(Debug)]
struct LlavaPreprocess {
    processor: SquareProcessor,
    rows: usize,
    placeholder: u32,
}

impl Preprocess for LlavaPreprocess {
    fn footprint(&self, _: MediaSize) -> Footprint {
        Footprint { tokens: vec![self.placeholder; self.rows], memory: 0 }
    }

    fn run(&self, medium: Medium<'_>) -> Result<Tensor> {
        match medium {
            Medium::Picture(pixels) => self.processor.run(pixels),
            Medium::Sound { .. } => candle_core::bail!("this network sees, it does not hear"),
        }
    }
}
