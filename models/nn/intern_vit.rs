//! InternVL's vision tower (<https://arxiv.org/abs/2312.14238>): pre-norm layers whose additions are scaled.

use candle_core::Tensor;
use candle_nn::VarBuilder;
use percept_kernels::Ragged;
use rayon::prelude::*;
use serde::Deserialize;

use super::{
    attention::{Biases, Qkv},
    linear::Bias,
    mlp::read_activation,
    patches::PatchEmbedding,
    vit::{VitBlock, VitConfig, VitNames},
};
use crate::{LoadError, Result};

/// `vision_config` of the original repository's class, and of transformers', which has other names for some keys.
#[derive(Debug, Default, Deserialize)]
pub struct InternVitConfig {
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    image_size: Option<Side>,
    patch_size: Option<Side>,
    hidden_act: Option<String>,
    layer_norm_eps: Option<f64>,
    norm_type: Option<String>,
    #[serde(alias = "attention_bias")]
    qkv_bias: Option<bool>,
    #[serde(alias = "use_qk_norm")]
    qk_normalization: Option<bool>,
    use_mean_pooling: Option<bool>,
    use_absolute_position_embeddings: Option<bool>,
    num_channels: Option<usize>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(untagged)]
enum Side {
    Both(usize),
    Each([usize; 2]),
}

/// Names of weights, and the configuration class's defaults where the two classes differ.
#[derive(Debug)]
pub struct InternVitLayout {
    tower: &'static str,
    class: &'static str,
    patches: &'static str,
    positions: &'static str,
    layers: &'static str,
    block: VitNames,
    scales: (&'static str, &'static str),
    /// Width, width of the feed-forward part, layers, heads, pixels of a side.
    sizes: [usize; 5],
    /// Whether queries and keys are normalised, and how rows are.
    norms: (bool, &'static str),
}

impl InternVitLayout {
    /// The original repository's.
    pub const PUBLISHED: Self = Self {
        tower: "vision_model",
        class: "embeddings.class_embedding",
        patches: "embeddings.patch_embedding",
        positions: "embeddings.position_embedding",
        layers: "encoder.layers",
        block: VitNames {
            norms: ("norm1", "norm2"),
            attention: "attn",
            qkv: Qkv::Packed("qkv"),
            output: "proj",
            ..VitNames::CLIP
        },
        scales: ("ls1", "ls2"),
        // Of `InternVisionConfig`, which is the tower of 6B parameters.
        sizes: [3200, 12_800, 48, 25, 224],
        norms: (true, "rms_norm"),
    };

    /// That of transformers.
    pub const NATIVE: Self = Self {
        tower: "vision_tower",
        class: "embeddings.cls_token",
        patches: "embeddings.patch_embeddings.projection",
        positions: "embeddings.position_embeddings",
        layers: "encoder.layer",
        block: VitNames {
            norms: ("layernorm_before", "layernorm_after"),
            attention: "attention",
            output: "projection_layer",
            ..VitNames::CLIP
        },
        scales: ("lambda_1", "lambda_2"),
        // Of `InternVLVisionConfig`.
        sizes: [1024, 4096, 24, 16, 448],
        norms: (false, "layer_norm"),
    };
}

impl InternVitConfig {
    /// The tower that is described.
    ///
    /// # Errors
    /// When it is another than this.
    pub fn shape(&self, layout: &InternVitLayout) -> Result<InternVitShape, LoadError> {
        let unsupported = |key: &str, value: &dyn std::fmt::Display, supported: &str| {
            LoadError::unsupported(&format!("vision_config {key}"), &value.to_string(), supported)
        };
        let norm = self.norm_type.as_deref().unwrap_or(layout.norms.1);
        if norm != "layer_norm" {
            return Err(unsupported("norm_type", &norm, "layer_norm"));
        }
        if self.qk_normalization.unwrap_or(layout.norms.0) {
            return Err(unsupported("qk_normalization (use_qk_norm)", &true, "false"));
        }
        if let Some(channels) = self.num_channels.filter(|&channels| channels != 3) {
            return Err(unsupported("num_channels", &channels, "3"));
        }
        let flags = [
            ("use_mean_pooling", self.use_mean_pooling),
            ("use_absolute_position_embeddings", self.use_absolute_position_embeddings),
        ];
        for (key, value) in flags {
            if value == Some(false) {
                return Err(unsupported(key, &false, "true"));
            }
        }
        let side = |key: &str, value: Option<Side>, default| match value {
            None => Ok(default),
            Some(Side::Both(side)) => Ok(side),
            Some(Side::Each([height, width])) if height == width => Ok(height),
            Some(Side::Each(both)) => Err(unsupported(key, &format!("{both:?}"), "a square")),
        };
        let [hidden, intermediate, layers, heads, image] = layout.sizes;
        let vision = InternVitShape {
            vit: VitConfig {
                hidden: self.hidden_size.unwrap_or(hidden),
                intermediate: self.intermediate_size.unwrap_or(intermediate),
                heads: self.num_attention_heads.unwrap_or(heads),
                eps: self.layer_norm_eps.unwrap_or(1e-6),
                activation: read_activation(
                    "vision_config hidden_act",
                    self.hidden_act.as_deref().unwrap_or("gelu"),
                )?,
            },
            layers: self.num_hidden_layers.unwrap_or(layers),
            image: side("image_size", self.image_size, image)?,
            patch: side("patch_size", self.patch_size, 14)?,
            qkv_bias: if self.qkv_bias.unwrap_or(false) { Bias::Yes } else { Bias::No },
        };
        vision.vit.check()?;
        if vision.patch == 0 || vision.image < vision.patch {
            return Err(unsupported("patch_size", &vision.patch, "1 to image_size"));
        }
        Ok(vision)
    }
}

/// Sizes of the tower.
#[derive(Debug)]
pub struct InternVitShape {
    /// Of a layer.
    pub vit: VitConfig,
    layers: usize,
    /// Pixels of a tile's side.
    pub image: usize,
    patch: usize,
    qkv_bias: Bias,
}

impl InternVitShape {
    /// Patches along a side.
    pub fn side(&self) -> usize {
        self.image / self.patch
    }

    /// Rows of a tile: its class and its patches.
    pub fn rows(&self) -> usize {
        1 + self.side() * self.side()
    }
}

/// The tower.
#[derive(Debug)]
pub struct InternVit {
    patches: PatchEmbedding,
    /// `[1, 1, hidden]`.
    class: Tensor,
    /// `[1, rows, hidden]`.
    positions: Tensor,
    layers: Vec<VitBlock>,
    /// Patches along a side.
    side: usize,
}

impl InternVit {
    /// Loads it from where `layout` has it below `vb`.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load(vision: &InternVitShape, layout: &InternVitLayout, vb: &VarBuilder<'_>) -> Result<Self> {
        let vb = vb.pp(layout.tower);
        let hidden = vision.vit.hidden;
        let names = VitNames { biases: Biases { qkv: [vision.qkv_bias; 3], ..Biases::ALL }, ..layout.block };
        let layer = |index| {
            let vb = vb.pp(layout.layers).pp(index);
            let scale = |name| vb.get(hidden, name);
            let (attention, mlp) = (scale(layout.scales.0)?, scale(layout.scales.1)?);
            Ok(VitBlock::load(&vision.vit, &names, &vb)?.scaled(attention, mlp))
        };
        Ok(Self {
            patches: PatchEmbedding::load(vision.patch, hidden, Bias::Yes, &vb.pp(layout.patches))?,
            class: vb.get((1, 1, hidden), layout.class)?,
            positions: vb.get((1, vision.rows(), hidden), layout.positions)?,
            layers: (0..vision.layers).into_par_iter().map(layer).collect::<Result<_>>()?,
            side: vision.side(),
        })
    }

    /// Patches along a side.
    pub fn side(&self) -> usize {
        self.side
    }

    /// Square pictures `[tiles, 3, side, side]` to `[tiles, patches, hidden]`: the last layer's output, without the
    /// class.
    ///
    /// # Errors
    /// When pixels have another shape.
    pub fn forward(&self, pixels: &Tensor) -> Result<Tensor> {
        let patches = self.patches.forward(pixels)?;
        let tiles = patches.dim(0)?;
        let class = self.class.repeat((tiles, 1, 1))?;
        let x = Tensor::cat(&[&class, &patches], 1)?.broadcast_add(&self.positions)?;
        let count = x.dim(1)?;
        let rows = Ragged::new(&vec![count; tiles], x.device())?;
        let mut x = x.flatten_to(1)?;
        for layer in &self.layers {
            x = layer.forward(&x, &rows)?;
        }
        x.reshape((tiles, count, ()))?.narrow(1, 1, count - 1)
    }
}
