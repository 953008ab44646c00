//! The pre-norm encoder layer that vision towers and Whisper's encoder share (<https://arxiv.org/abs/2010.11929>).

use candle_core::Tensor;
use candle_nn::VarBuilder;
use percept_kernels::Ragged;

use super::{
    attention::{AttentionShape, Biases, Qkv, SelfAttention, Sight},
    linear::Bias,
    mlp::{Activation, Mlp},
    norm::LayerNorm,
};
use crate::{LoadError, Result};

/// Sizes of an encoder layer.
#[derive(Debug, Clone, Copy)]
pub struct VitConfig {
    /// Width of a row.
    pub hidden: usize,
    /// Width of the feed-forward part.
    pub intermediate: usize,
    /// Attention heads, a divisor of `hidden`.
    pub heads: usize,
    /// Epsilon of the norms.
    pub eps: f64,
    /// Of the feed-forward part.
    pub activation: Activation,
}

impl VitConfig {
    /// Numbers of one row that are alive at once, at most: the row itself, normalised and as query, key, value and
    /// attended, or both sides of the feed-forward part.
    pub fn row_size(&self) -> usize {
        6 * self.hidden + 2 * self.intermediate
    }

    /// Whether heads divide the width.
    ///
    /// # Errors
    /// When they do not.
    pub fn check(&self) -> Result<(), LoadError> {
        if self.heads == 0 || !self.hidden.is_multiple_of(self.heads) {
            return Err(LoadError::unsupported(
                "vision_config num_attention_heads",
                &self.heads.to_string(),
                "a divisor of hidden_size",
            ));
        }
        Ok(())
    }
}

/// Names of a layer's weights.
#[derive(Debug, Clone, Copy)]
pub struct VitNames {
    /// The norms in front of attention and of the feed-forward part.
    pub norms: (&'static str, &'static str),
    /// Attention, and in it its layers.
    pub attention: &'static str,
    /// Queries, keys and values.
    pub qkv: Qkv,
    /// The output of attention.
    pub output: &'static str,
    /// Which layers of attention have a bias.
    pub biases: Biases,
    /// The feed-forward layers.
    pub mlp: (&'static str, &'static str),
}

impl VitNames {
    /// Those of transformers' CLIP and SigLIP.
    pub const CLIP: Self = Self {
        norms: ("layer_norm1", "layer_norm2"),
        attention: "self_attn",
        qkv: Qkv::Apart("q_proj", "k_proj", "v_proj"),
        output: "out_proj",
        biases: Biases::ALL,
        mlp: ("mlp.fc1", "mlp.fc2"),
    };
}

/// An encoder layer: `x += attention(norm(x))`, `x += mlp(norm(x))`.
#[derive(Debug)]
pub struct VitBlock {
    norm1: LayerNorm,
    attention: SelfAttention,
    norm2: LayerNorm,
    mlp: Mlp,
    scales: Option<(Tensor, Tensor)>,
}

impl VitBlock {
    /// Loads what `names` name below `vb`.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load(config: &VitConfig, names: &VitNames, vb: &VarBuilder<'_>) -> Result<Self> {
        let VitConfig { hidden, heads, eps, activation, .. } = *config;
        let shape = AttentionShape { hidden, heads, kv_heads: heads, head_dim: hidden / heads };
        let attention = vb.pp(names.attention);
        let sizes = (hidden, config.intermediate, hidden);
        Ok(Self {
            norm1: LayerNorm::load(hidden, eps, &vb.pp(names.norms.0))?,
            attention: SelfAttention::load_named(shape, names.biases, names.qkv, names.output, &attention)?,
            norm2: LayerNorm::load(hidden, eps, &vb.pp(names.norms.1))?,
            mlp: Mlp::load(names.mlp, sizes, Bias::Yes, activation, vb)?,
            scales: None,
        })
    }

    /// The same where what is added is multiplied first, by `[hidden]` or `[1]`.
    pub fn scaled(self, attention: Tensor, mlp: Tensor) -> Self {
        Self { scales: Some((attention, mlp)), ..self }
    }

    /// `x`: `[rows, hidden]`; every row sees all of its sequence.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn forward(&self, x: &Tensor, rows: &Ragged) -> Result<Tensor> {
        self.add(x, self.attention.full(&self.norm1.forward(x)?, None, rows)?)
    }

    /// Like [`Self::forward`] where rows see what `sight` shows them.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn partial(&self, x: &Tensor, sight: &Sight) -> Result<Tensor> {
        self.add(x, self.attention.partial(&self.norm1.forward(x)?, sight)?)
    }

    fn add(&self, x: &Tensor, attended: Tensor) -> Result<Tensor> {
        let x = match &self.scales {
            Some((scale, _)) => (x + attended.broadcast_mul(scale)?)?,
            None => (x + attended)?,
        };
        let fed = self.mlp.forward(&self.norm2.forward(&x)?)?;
        match &self.scales {
            Some((_, scale)) => x + fed.broadcast_mul(scale)?,
            None => x + fed,
        }
    }
}
