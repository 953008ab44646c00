//! CLIP's vision tower (<https://arxiv.org/abs/2103.00020>), up to the layer whose output is wanted.

use candle_core::Tensor;
use candle_nn::VarBuilder;
use percept_kernels::Ragged;
use rayon::prelude::*;
use serde::Deserialize;

use super::{
    attention::{AttentionShape, Biases, SelfAttention},
    linear::{Bias, Linear},
    mlp::{Activation, Mlp},
    norm::LayerNorm,
};
use crate::{LoadError, Result};

/// `vision_config` with `CLIPVisionConfig`'s defaults.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct ClipConfig {
    model_type: String,
    /// Width of a row.
    pub hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    /// Side of the square picture, in pixels.
    pub image_size: usize,
    /// Side of a patch, in pixels.
    pub patch_size: usize,
    hidden_act: String,
    layer_norm_eps: f64,
    num_channels: usize,
}

impl Default for ClipConfig {
    fn default() -> Self {
        Self {
            model_type: "clip_vision_model".into(),
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            image_size: 224,
            patch_size: 32,
            hidden_act: "quick_gelu".into(),
            layer_norm_eps: 1e-5,
            num_channels: 3,
        }
    }
}

impl ClipConfig {
    /// ViT-L/14 at 336 pixels, what LLaVA takes where a checkpoint has no `vision_config` at all.
    pub fn large_336() -> Self {
        Self {
            hidden_size: 1024,
            intermediate_size: 4096,
            num_hidden_layers: 24,
            num_attention_heads: 16,
            image_size: 336,
            patch_size: 14,
            ..Self::default()
        }
    }

    /// Patches along one side.
    pub fn side(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// Patches of a picture.
    pub fn patches(&self) -> usize {
        self.side() * self.side()
    }

    /// Numbers of one row that are alive at once, at most: the row itself, normalised and as query, key, value and
    /// attended, or both sides of the feed-forward part.
    pub fn row_size(&self) -> usize {
        6 * self.hidden_size + 2 * self.intermediate_size
    }

    /// The index of a hidden state counted as transformers does: 0 is the embedding, -1 the last layer's output.
    ///
    /// # Errors
    /// When there is no such state.
    pub fn state(&self, layer: i64) -> Result<usize, LoadError> {
        let states = self.num_hidden_layers as i64 + 1;
        let index = if layer < 0 { states + layer } else { layer };
        if !(0..states).contains(&index) {
            return Err(LoadError::Unsupported {
                what: format!("vision_feature_layer {layer}"),
                supported: format!("{} to {}", -states, states - 1),
            });
        }
        Ok(index as usize)
    }

    /// Whether this tower does what the configuration asks for.
    ///
    /// # Errors
    /// When it does not.
    pub fn check(&self) -> Result<(), LoadError> {
        let unsupported = |key: &str, value: &dyn std::fmt::Display, supported: &str| {
            Err(LoadError::unsupported(&format!("vision_config {key}"), &value.to_string(), supported))
        };
        if self.model_type != "clip_vision_model" {
            return unsupported("model_type", &self.model_type, "clip_vision_model");
        }
        if self.num_channels != 3 {
            return unsupported("num_channels", &self.num_channels, "3");
        }
        if self.patch_size == 0 || self.image_size < self.patch_size {
            return unsupported("patch_size", &self.patch_size, "1 to image_size");
        }
        if self.num_attention_heads == 0 || !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            return unsupported("num_attention_heads", &self.num_attention_heads, "a divisor of hidden_size");
        }
        Ok(())
    }
}

/// The tower, without the layers behind the last state that is wanted.
#[derive(Debug)]
pub struct ClipTower {
    patch: Linear,
    class: Tensor,
    positions: Tensor,
    pre_norm: LayerNorm,
    layers: Vec<Layer>,
    side: usize,
    patch_size: usize,
}

impl ClipTower {
    /// Loads what is needed for the hidden states up to `last`; see [`ClipConfig::state`]. The configuration must
    /// have been [checked](ClipConfig::check).
    ///
    /// # Errors
    /// When a tensor does not fit.
    pub fn load(config: &ClipConfig, last: usize, vb: &VarBuilder<'_>) -> Result<Self, LoadError> {
        let hidden = config.hidden_size;
        let activation = Activation::parse("vision_config hidden_act", &config.hidden_act)?;
        let embeddings = vb.pp("embeddings");
        let size = config.patch_size;
        let layers = (0..last)
            .into_par_iter()
            .map(|index| Layer::load(config, activation, &vb.pp("encoder.layers").pp(index)))
            .collect::<Result<_>>()?;
        let positions = config.patches() + 1;
        Ok(Self {
            // A convolution whose stride is its size is a matrix product over patches.
            patch: Linear::of(
                embeddings
                    .get((hidden, 3, size, size), "patch_embedding.weight")?
                    .reshape((hidden, 3 * size * size))?,
                None,
            ),
            class: embeddings.get(hidden, "class_embedding")?,
            positions: embeddings.get((positions, hidden), "position_embedding.weight")?,
            // Published with this spelling.
            pre_norm: LayerNorm::load(hidden, config.layer_norm_eps, &vb.pp("pre_layrnorm"))?,
            layers,
            side: config.side(),
            patch_size: size,
        })
    }

    /// The wanted hidden states of `pixels` `[pictures, 3, side, side]`, each `[pictures, 1 + patches, hidden]`
    /// with the class row first.
    ///
    /// # Errors
    /// When the pictures have another size.
    pub fn states(&self, pixels: &Tensor, wanted: &[usize]) -> Result<Vec<Tensor>> {
        let pictures = pixels.dim(0)?;
        let mut x = self.pre_norm.forward(&self.embed(pixels)?.flatten_to(1)?)?;
        let rows = Ragged::new(&vec![self.side * self.side + 1; pictures], x.device())?;
        let mut states = vec![None; wanted.len()];
        let mut keep = |state: usize, x: &Tensor| {
            for (kept, _) in states.iter_mut().zip(wanted).filter(|(_, wanted)| **wanted == state) {
                *kept = Some(x.clone());
            }
        };
        keep(0, &x);
        for (index, layer) in self.layers.iter().enumerate() {
            x = (&x + layer.attention.full(&layer.norm1.forward(&x)?, &rows)?)?;
            x = (&x + layer.mlp.forward(&layer.norm2.forward(&x)?)?)?;
            keep(index + 1, &x);
        }
        let shape = (pictures, self.side * self.side + 1, ());
        let state = |(state, kept): (&usize, Option<Tensor>)| match kept {
            Some(kept) => kept.reshape(shape),
            None => candle_core::bail!("the tower was loaded without hidden state {state}"),
        };
        wanted.iter().zip(states).map(state).collect()
    }

    fn embed(&self, pixels: &Tensor) -> Result<Tensor> {
        let (pictures, _, _, _) = pixels.dims4()?;
        let (side, size) = (self.side, self.patch_size);
        let patches = pixels
            .to_dtype(self.class.dtype())?
            // A size that is no multiple of the patch loses the rest, as in the convolution.
            .narrow(2, 0, side * size)?
            .narrow(3, 0, side * size)?
            .reshape((pictures, 3, side, size, side, size))?
            .permute((0, 2, 4, 1, 3, 5))?
            .reshape((pictures * side * side, 3 * size * size))?;
        let patches = self.patch.forward(&patches)?.reshape((pictures, side * side, ()))?;
        let class = self.class.reshape((1, 1, ()))?.repeat((pictures, 1, 1))?;
        Tensor::cat(&[&class, &patches], 1)?.broadcast_add(&self.positions)
    }
}

#[derive(Debug)]
struct Layer {
    norm1: LayerNorm,
    attention: SelfAttention,
    norm2: LayerNorm,
    mlp: Mlp,
}

impl Layer {
    fn load(config: &ClipConfig, activation: Activation, vb: &VarBuilder<'_>) -> Result<Self> {
        let (hidden, heads) = (config.hidden_size, config.num_attention_heads);
        let shape = AttentionShape { hidden, heads, kv_heads: heads, head_dim: hidden / heads };
        let sizes = (hidden, config.intermediate_size, hidden);
        Ok(Self {
            norm1: LayerNorm::load(hidden, config.layer_norm_eps, &vb.pp("layer_norm1"))?,
            attention: SelfAttention::load(shape, Biases::ALL, "out_proj", &vb.pp("self_attn"))?,
            norm2: LayerNorm::load(hidden, config.layer_norm_eps, &vb.pp("layer_norm2"))?,
            mlp: Mlp::load(("fc1", "fc2"), sizes, Bias::Yes, activation, &vb.pp("mlp"))?,
        })
    }
}
