//! SigLIP's vision tower (<https://arxiv.org/abs/2303.15343>), and the head that makes one row of a picture's.

use candle_core::Tensor;
use candle_nn::VarBuilder;
use percept_kernels::{Kv, Mask, Ragged, attention};
use rayon::prelude::*;
use serde::Deserialize;

use super::{
    linear::{Bias, Linear},
    mlp::{Mlp, read_activation},
    norm::LayerNorm,
    patches::{PatchEmbedding, check_patches},
    vit::{VitBlock, VitConfig, VitNames},
};
use crate::{LoadError, Result};

/// `vision_config`. What is absent is as in the [family](SiglipFamily).
#[derive(Debug, Default, Deserialize)]
pub struct SiglipConfig {
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    num_channels: Option<usize>,
    image_size: Option<usize>,
    patch_size: Option<usize>,
    hidden_act: Option<String>,
    layer_norm_eps: Option<f64>,
}

/// Defaults of a class of transformers; the others are the same in all.
#[derive(Debug, Clone, Copy)]
pub struct SiglipFamily {
    hidden: usize,
    heads: usize,
    patch_size: usize,
}

impl SiglipFamily {
    /// `SiglipVisionConfig`.
    pub const SIGLIP: Self = Self { hidden: 768, heads: 12, patch_size: 16 };
    /// `Idefics3VisionConfig`.
    pub const IDEFICS: Self = Self { hidden: 1152, heads: 16, patch_size: 32 };
}

/// Sizes of a tower.
#[derive(Debug, Clone, Copy)]
pub struct SiglipSizes {
    /// Of a layer.
    pub layer: VitConfig,
    /// Layers.
    pub layers: usize,
    /// Side of the square picture, in pixels.
    pub image_size: usize,
    /// Side of a patch, in pixels.
    pub patch_size: usize,
}

impl SiglipConfig {
    /// The sizes of a tower of this family.
    ///
    /// # Errors
    /// When this tower is not what is described.
    pub fn sizes(&self, family: SiglipFamily) -> Result<SiglipSizes, LoadError> {
        let sizes = SiglipSizes {
            layer: VitConfig {
                hidden: self.hidden_size.unwrap_or(family.hidden),
                intermediate: self.intermediate_size.unwrap_or(3072),
                heads: self.num_attention_heads.unwrap_or(family.heads),
                eps: self.layer_norm_eps.unwrap_or(1e-6),
                activation: read_activation(
                    "vision_config hidden_act",
                    self.hidden_act.as_deref().unwrap_or("gelu_pytorch_tanh"),
                )?,
            },
            layers: self.num_hidden_layers.unwrap_or(12),
            image_size: self.image_size.unwrap_or(224),
            patch_size: self.patch_size.unwrap_or(family.patch_size),
        };
        check_patches(self.num_channels.unwrap_or(3), sizes.image_size, sizes.patch_size)?;
        sizes.layer.check()?;
        Ok(sizes)
    }
}

impl SiglipSizes {
    /// Patches along a side of a picture.
    pub fn side(&self) -> usize {
        self.image_size / self.patch_size
    }
}

/// The tower without its head.
#[derive(Debug)]
pub struct SiglipTower {
    patches: PatchEmbedding,
    /// `[patches, hidden]`. All of a picture's patches are there, so each has its own place.
    positions: Tensor,
    layers: Vec<VitBlock>,
    norm: LayerNorm,
}

impl SiglipTower {
    /// Loads what is below `vb`.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load(sizes: &SiglipSizes, vb: &VarBuilder<'_>) -> Result<Self> {
        let (layer, embeddings) = (sizes.layer, vb.pp("embeddings"));
        let (hidden, rows) = (layer.hidden, sizes.side() * sizes.side());
        let (layers, patches) = (vb.pp("encoder.layers"), embeddings.pp("patch_embedding"));
        Ok(Self {
            patches: PatchEmbedding::load(sizes.patch_size, hidden, Bias::Yes, &patches)?,
            positions: embeddings.get((rows, hidden), "position_embedding.weight")?,
            layers: (0..sizes.layers)
                .into_par_iter()
                .map(|index| VitBlock::load(&layer, &VitNames::CLIP, &layers.pp(index)))
                .collect::<Result<_>>()?,
            norm: LayerNorm::load(hidden, layer.eps, &vb.pp("post_layernorm"))?,
        })
    }

    /// `[pictures, 3, side, side]` to `[pictures, patches, hidden]`.
    ///
    /// # Errors
    /// When the pictures have another size.
    pub fn forward(&self, pixels: &Tensor) -> Result<Tensor> {
        let x = self.patches.forward(pixels)?.broadcast_add(&self.positions)?;
        let (pictures, count, _) = x.dims3()?;
        let rows = Ragged::new(&vec![count; pictures], x.device())?;
        let mut x = x.flatten_to(1)?;
        for layer in &self.layers {
            x = layer.forward(&x, &rows)?;
        }
        self.norm.forward(&x)?.reshape((pictures, count, ()))
    }
}

/// A learned row that attends to all rows of a picture, and a feed-forward part behind it.
#[derive(Debug)]
pub struct SiglipHead {
    /// `[1, hidden]`: the learned row.
    probe: Tensor,
    query: Linear,
    key_value: Linear,
    output: Linear,
    norm: LayerNorm,
    mlp: Mlp,
    heads: usize,
}

impl SiglipHead {
    /// Loads what is below `vb`.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load(layer: &VitConfig, vb: &VarBuilder<'_>) -> Result<Self> {
        let VitConfig { hidden, intermediate, heads, eps, activation } = *layer;
        let attention = vb.pp("attention");
        let weight = attention.get((3 * hidden, hidden), "in_proj_weight")?;
        let bias = attention.get(3 * hidden, "in_proj_bias")?;
        let part = |first: usize, count: usize| -> Result<Linear> {
            let (first, count) = (first * hidden, count * hidden);
            Ok(Linear::of(weight.narrow(0, first, count)?, Some(bias.narrow(0, first, count)?)))
        };
        let (names, sizes) = (("mlp.fc1", "mlp.fc2"), (hidden, intermediate, hidden));
        Ok(Self {
            probe: vb.get((1, 1, hidden), "probe")?.reshape((1, hidden))?,
            query: part(0, 1)?,
            key_value: part(1, 2)?,
            output: Linear::load(hidden, hidden, Bias::Yes, &attention.pp("out_proj"))?,
            norm: LayerNorm::load(hidden, eps, &vb.pp("layernorm"))?,
            mlp: Mlp::load(names, sizes, Bias::Yes, activation, vb)?,
            heads,
        })
    }

    /// One row of each picture, `[pictures, hidden]`, out of `x` `[rows, hidden]`. `last`: u32 `[pictures]`, some row of
    /// each.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn forward(&self, x: &Tensor, rows: &Ragged, last: &Tensor) -> Result<Tensor> {
        let (count, hidden) = x.dims2()?;
        let width = hidden / self.heads;
        let both = self.key_value.forward(x)?.reshape((count, 2 * self.heads, width))?;
        let (k, v) = (both.narrow(1, 0, self.heads)?, both.narrow(1, self.heads, self.heads)?);
        // All rows of a picture ask the same, as the operation has a query for each: that is less than one layer.
        let query = self.query.forward(&self.probe)?.repeat((count, 1))?;
        let query = query.reshape((count, self.heads, width))?;
        let scale = 1.0 / (width as f32).sqrt();
        let attended = attention(&query, Kv::Fresh { k: &k, v: &v }, rows, Mask::Full, scale)?;
        let x = self.output.forward(&attended.flatten_from(1)?.index_select(last, 0)?)?;
        &x + self.mlp.forward(&self.norm.forward(&x)?)?
    }
}
