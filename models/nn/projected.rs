//! A vision tower with a two-layer projector into the text, as the LLaVA family has it
//! (<https://arxiv.org/abs/2310.03744>), and CLIP as that tower.

use candle_core::Tensor;
use candle_nn::VarBuilder;
use serde::{Deserialize, de::DeserializeOwned};

use super::{
    clip::{ClipConfig, ClipTower},
    decoder::{DecoderConfig, TextConfig},
    image::Fit,
    linear::Bias,
    mlp::{Mlp, read_activation},
    vit::hidden_state,
};
use crate::{LoadError, Result, TextInfo};

/// Published files keep the old names; transformers 4.52 and 5 moved them in memory, and some tools save those.
pub const ALIASES: &[(&str, &str)] = &[
    ("language_model.model.", "model.language_model."),
    ("language_model.lm_head.", "lm_head."),
    ("vision_tower.vision_model.", "model.vision_tower.vision_model."),
    ("vision_tower.vision_model.", "model.vision_tower."),
    ("vision_tower.", "model.vision_tower."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
    ("image_newline", "model.image_newline"),
];

/// The `vision_config` of a tower.
pub trait VisionConfig: DeserializeOwned {
    /// What holds where there is none at all.
    fn absent() -> Self;

    /// Layers of the tower.
    fn layers(&self) -> usize;
}

impl VisionConfig for ClipConfig {
    fn absent() -> Self {
        Self::large_336()
    }

    fn layers(&self) -> usize {
        self.num_hidden_layers
    }
}

/// `config.json`.
#[derive(Debug, Deserialize)]
#[serde(bound = "V: VisionConfig")]
pub struct ProjectedConfig<V = ClipConfig> {
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
    pub(crate) text_config: TextConfig,
    #[serde(default = "V::absent")]
    pub(crate) vision_config: V,
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
pub enum Strategy {
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

impl<V: VisionConfig> ProjectedConfig<V> {
    /// The id that stands for a picture.
    pub fn image_token(&self) -> u32 {
        self.image_token_index.or(self.image_token_id).unwrap_or(32_000)
    }

    /// The text's network.
    ///
    /// # Errors
    /// When it is not supported.
    pub fn decoder(&self) -> Result<DecoderConfig, LoadError> {
        let mut decoder = self.text_config.decoder("llama")?;
        decoder.tied |= self.tie_word_embeddings.unwrap_or(false);
        Ok(decoder)
    }

    /// The projector, from rows of one width to another.
    ///
    /// # Errors
    /// When a tensor does not fit, or the activation is not known.
    pub fn projector(&self, (from, to): (usize, usize), vb: &VarBuilder<'_>) -> Result<Mlp, LoadError> {
        let bias = if self.multimodal_projector_bias { Bias::Yes } else { Bias::No };
        let activation = read_activation("projector_hidden_act", &self.projector_hidden_act)?;
        Ok(Mlp::load(("linear_1", "linear_2"), (from, to, to), bias, activation, vb)?)
    }

    /// Indices of the hidden states whose channels are joined: 0 is the embedding, one more than layers there are.
    ///
    /// # Errors
    /// When there is no such state.
    pub fn states(&self) -> Result<Vec<usize>, LoadError> {
        let layers = match &self.vision_feature_layer {
            FeatureLayers::One(layer) => vec![*layer],
            FeatureLayers::Several(layers) => layers.clone(),
        };
        if layers.is_empty() {
            return Err(LoadError::unsupported("vision_feature_layer", "[]", "one layer or more"));
        }
        layers.iter().map(|&layer| hidden_state(layer, self.vision_config.layers())).collect()
    }

    /// Which of their rows are used.
    pub fn strategy(&self) -> Strategy {
        self.vision_feature_select_strategy
    }

    /// What the text side must know.
    ///
    /// # Errors
    /// When the text's network is not supported.
    pub fn text(&self) -> Result<TextInfo, LoadError> {
        let stops = [&self.eos_token_id, &self.text_config.eos_token_id];
        Ok(self.decoder()?.text_info(self.image_token(), &stops))
    }
}

impl ProjectedConfig {
    /// Rows that a square picture has.
    pub fn rows(&self) -> usize {
        self.vision_config.patches() + usize::from(self.strategy() == Strategy::Full)
    }

    /// The original repository's name for padding.
    ///
    /// # Errors
    /// When another treatment is asked for.
    pub fn fit(&self) -> Result<Option<Fit>, LoadError> {
        match self.image_aspect_ratio.as_deref() {
            None => Ok(None),
            Some("pad") => Ok(Some(Fit::Pad)),
            Some("square") => Ok(Some(Fit::Crop)),
            Some(other) => Err(LoadError::unsupported("image_aspect_ratio", other, "pad and square")),
        }
    }
}

/// The tower and the projector.
#[derive(Debug)]
pub struct ProjectedTower {
    tower: ClipTower,
    projector: Mlp,
    states: Vec<usize>,
    strategy: Strategy,
    /// Numbers that are alive at once, at most, for a row.
    pub row_size: usize,
}

impl ProjectedTower {
    /// Loads `vision_tower.vision_model` and `multi_modal_projector` for a text of width `hidden`. The tower's
    /// configuration must have been [checked](ClipConfig::check).
    ///
    /// # Errors
    /// When a tensor does not fit, or the configuration asks for what is not done.
    pub fn load(config: &ProjectedConfig, hidden: usize, vb: &VarBuilder<'_>) -> Result<Self, LoadError> {
        let vision = &config.vision_config;
        let states = config.states()?;
        let last = states.iter().copied().max().unwrap_or(0);
        let width = vision.hidden_size * states.len();
        Ok(Self {
            tower: ClipTower::load(vision, last, &vb.pp("vision_tower.vision_model"))?,
            projector: config.projector((width, hidden), &vb.pp("multi_modal_projector"))?,
            // States are joined, and the projector's two layers follow.
            row_size: vision.layer()?.row_size() + width + 2 * hidden,
            states,
            strategy: config.strategy(),
        })
    }

    /// Square pictures `[pictures, 3, side, side]` to `[pictures, rows, hidden]`.
    ///
    /// # Errors
    /// When pixels have another shape.
    pub fn forward(&self, pixels: &Tensor) -> Result<Tensor> {
        let states = self.tower.states(pixels, &self.states)?;
        let states = Tensor::cat(&states, 2)?;
        let states = match self.strategy {
            Strategy::Full => states,
            Strategy::Default => states.narrow(1, 1, states.dim(1)? - 1)?,
        };
        let (pictures, rows, _) = states.dims3()?;
        self.projector.forward(&states.flatten_to(1)?)?.reshape((pictures, rows, ()))
    }
}
