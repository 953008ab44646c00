//! CLIP's vision tower (<https://arxiv.org/abs/2103.00020>), up to the layer whose output is wanted.

use candle_core::Tensor;
use candle_nn::VarBuilder;
use percept_kernels::Ragged;
use rayon::prelude::*;
use serde::Deserialize;

use super::{
    linear::Bias,
    mlp::read_activation,
    norm::LayerNorm,
    patches::{PatchEmbedding, check_patches},
    vit::{VitBlock, VitConfig, VitNames},
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
    /// Layers, all of them.
    pub num_hidden_layers: usize,
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

    /// Sizes of a layer.
    ///
    /// # Errors
    /// When the activation is not known, or heads do not divide the width.
    pub fn layer(&self) -> Result<VitConfig, LoadError> {
        let config = VitConfig {
            hidden: self.hidden_size,
            intermediate: self.intermediate_size,
            heads: self.num_attention_heads,
            eps: self.layer_norm_eps,
            activation: read_activation("vision_config hidden_act", &self.hidden_act)?,
        };
        config.check().map(|()| config)
    }

    /// Whether this tower does what the configuration asks for.
    ///
    /// # Errors
    /// When it does not.
    pub fn check(&self) -> Result<(), LoadError> {
        const KNOWN: &str = "clip_vision_model";
        if self.model_type != KNOWN {
            return Err(LoadError::unsupported("vision_config model_type", &self.model_type, KNOWN));
        }
        check_patches(self.num_channels, self.image_size, self.patch_size)?;
        self.layer()?;
        Ok(())
    }
}

/// The tower, without the layers behind the last state that is wanted.
#[derive(Debug)]
pub struct ClipTower {
    patches: PatchEmbedding,
    class: Tensor,
    positions: Tensor,
    pre_norm: LayerNorm,
    layers: Vec<VitBlock>,
    rows: usize,
}

impl ClipTower {
    /// Loads what is needed for the hidden states up to `last`, where 0 is the embedding. The configuration must have
    /// been [checked](ClipConfig::check).
    ///
    /// # Errors
    /// When a tensor does not fit.
    pub fn load(config: &ClipConfig, last: usize, vb: &VarBuilder<'_>) -> Result<Self, LoadError> {
        let (hidden, rows) = (config.hidden_size, config.patches() + 1);
        let layer = config.layer()?;
        let embeddings = vb.pp("embeddings");
        let layers = (0..last)
            .into_par_iter()
            .map(|index| VitBlock::load(&layer, &VitNames::CLIP, &vb.pp("encoder.layers").pp(index)))
            .collect::<Result<_>>()?;
        let patches = embeddings.pp("patch_embedding");
        Ok(Self {
            patches: PatchEmbedding::load(config.patch_size, hidden, Bias::No, &patches)?,
            class: embeddings.get(hidden, "class_embedding")?,
            positions: embeddings.get((rows, hidden), "position_embedding.weight")?,
            // Published with this spelling.
            pre_norm: LayerNorm::load(hidden, config.layer_norm_eps, &vb.pp("pre_layrnorm"))?,
            layers,
            rows,
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
        let rows = Ragged::new(&vec![self.rows; pictures], x.device())?;
        let mut states = vec![None; wanted.len()];
        let mut keep = |state: usize, x: &Tensor| {
            for (kept, _) in states.iter_mut().zip(wanted).filter(|(_, wanted)| **wanted == state) {
                *kept = Some(x.clone());
            }
        };
        keep(0, &x);
        for (index, layer) in self.layers.iter().enumerate() {
            x = layer.forward(&x, &rows)?;
            keep(index + 1, &x);
        }
        let shape = (pictures, self.rows, ());
        let state = |(state, kept): (&usize, Option<Tensor>)| match kept {
            Some(kept) => kept.reshape(shape),
            None => candle_core::bail!("the tower was loaded without hidden state {state}"),
        };
        wanted.iter().zip(states).map(state).collect()
    }

    fn embed(&self, pixels: &Tensor) -> Result<Tensor> {
        let patches = self.patches.forward(pixels)?;
        let class = self.class.reshape((1, 1, ()))?.repeat((patches.dim(0)?, 1, 1))?;
        Tensor::cat(&[&class, &patches], 1)?.broadcast_add(&self.positions)
    }
}
