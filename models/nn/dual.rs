//! What networks have in common that put texts and pictures into one space: a tower for texts, and pictures that are one
//! square each.

use candle_core::Tensor;
use candle_nn::VarBuilder;
use rayon::prelude::*;
use serde::Deserialize;

use super::{
    image::SquareProcessor,
    mlp::read_activation,
    norm::LayerNorm,
    vit::{VitBlock, VitConfig, VitNames},
};
use crate::{Footprint, LoadError, MediaSize, Medium, Preprocess, Result, SizeError, batch::Batch};

/// The id that stands for a row of a picture. No vocabulary is so large.
pub const PICTURE: u32 = u32::MAX;

/// `text_config`. What is absent is as in the [family](TextFamily).
#[derive(Debug, Default, Deserialize)]
pub struct TextTowerConfig {
    vocab_size: Option<usize>,
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    max_position_embeddings: Option<usize>,
    hidden_act: Option<String>,
    layer_norm_eps: Option<f64>,
}

/// Defaults of a class of transformers, which both have twelve layers, and what its rows see.
#[derive(Debug, Clone, Copy)]
pub struct TextFamily {
    vocabulary: usize,
    hidden: usize,
    intermediate: usize,
    heads: usize,
    positions: usize,
    activation: &'static str,
    eps: f64,
    sight: Sight,
}

/// Which rows of its text a row sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sight {
    /// Itself and what came before.
    Before,
    /// All.
    All,
}

impl TextFamily {
    /// `CLIPTextConfig`.
    pub const CLIP: Self = Self {
        vocabulary: 49_408,
        hidden: 512,
        intermediate: 2048,
        heads: 8,
        positions: 77,
        activation: "quick_gelu",
        eps: 1e-5,
        sight: Sight::Before,
    };
    /// `SiglipTextConfig`.
    pub const SIGLIP: Self = Self {
        vocabulary: 32_000,
        hidden: 768,
        intermediate: 3072,
        heads: 12,
        positions: 64,
        activation: "gelu_pytorch_tanh",
        eps: 1e-6,
        sight: Sight::All,
    };
}

/// Sizes of a text tower.
#[derive(Debug, Clone, Copy)]
pub struct TextTowerSizes {
    /// Of a layer.
    pub layer: VitConfig,
    /// Most rows of a text.
    pub positions: usize,
    layers: usize,
    vocabulary: usize,
    sight: Sight,
}

impl TextTowerConfig {
    /// The sizes of a tower of this family.
    ///
    /// # Errors
    /// When this tower is not what is described.
    pub fn sizes(&self, family: TextFamily) -> Result<TextTowerSizes, LoadError> {
        let activation = self.hidden_act.as_deref().unwrap_or(family.activation);
        let layer = VitConfig {
            hidden: self.hidden_size.unwrap_or(family.hidden),
            intermediate: self.intermediate_size.unwrap_or(family.intermediate),
            heads: self.num_attention_heads.unwrap_or(family.heads),
            eps: self.layer_norm_eps.unwrap_or(family.eps),
            activation: read_activation("text_config hidden_act", activation)?,
        };
        layer.check_in("text_config")?;
        Ok(TextTowerSizes {
            layer,
            positions: self.max_position_embeddings.unwrap_or(family.positions),
            layers: self.num_hidden_layers.unwrap_or(12),
            vocabulary: self.vocab_size.unwrap_or(family.vocabulary),
            sight: family.sight,
        })
    }
}

/// A tower for texts.
#[derive(Debug)]
pub struct TextTower {
    /// `[vocabulary, hidden]`.
    words: Tensor,
    /// `[positions, hidden]`.
    places: Tensor,
    layers: Vec<VitBlock>,
    norm: LayerNorm,
    sight: Sight,
}

impl TextTower {
    /// Loads what is below `vb`.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load(sizes: &TextTowerSizes, vb: &VarBuilder<'_>) -> Result<Self> {
        let TextTowerSizes { layer, positions, layers, vocabulary, sight } = *sizes;
        let (embeddings, blocks) = (vb.pp("embeddings"), vb.pp("encoder.layers"));
        Ok(Self {
            words: embeddings.get((vocabulary, layer.hidden), "token_embedding.weight")?,
            places: embeddings.get((positions, layer.hidden), "position_embedding.weight")?,
            layers: (0..layers)
                .into_par_iter()
                .map(|index| VitBlock::load(&layer, &VitNames::CLIP, &blocks.pp(index)))
                .collect::<Result<_>>()?,
            norm: LayerNorm::load(layer.hidden, layer.eps, &vb.pp("final_layer_norm"))?,
            sight,
        })
    }

    /// The last row of each text of a batch, `[texts, hidden]`.
    ///
    /// # Errors
    /// When an id or a position has no row.
    pub fn last(&self, batch: &Batch) -> Result<Tensor> {
        let words = self.words.index_select(&batch.tokens, 0)?;
        let mut x = (words + self.places.index_select(&batch.positions, 0)?)?;
        for layer in &self.layers {
            x = match self.sight {
                Sight::Before => layer.ordered(&x, &batch.rows)?,
                Sight::All => layer.forward(&x, &batch.rows)?,
            };
        }
        self.norm.forward(&x.index_select(&batch.last, 0)?)
    }
}

/// What prepares pictures that a tower sees as one square, all in as many rows.
#[derive(Debug)]
pub struct SquarePictures {
    /// How.
    pub processor: SquareProcessor,
    /// Rows of a picture in the tower.
    pub rows: usize,
}

impl Preprocess for SquarePictures {
    fn footprint(&self, _: MediaSize) -> Result<Footprint, SizeError> {
        Ok(Footprint::line(vec![PICTURE; self.rows]))
    }

    fn has_one_shape(&self) -> bool {
        true
    }

    fn has_fit(&self) -> bool {
        true
    }

    fn run(&self, medium: Medium<'_>) -> Result<Tensor> {
        self.processor.run(medium.picture()?)
    }
}
