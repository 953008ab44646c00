//! The pre-norm encoder layer that vision towers and Whisper's encoder share (<https://arxiv.org/abs/2010.11929>), and
//! its younger form, made as decoders are: RMSNorm and a gated feed-forward part.

use candle_core::Tensor;
use candle_nn::VarBuilder;
use percept_kernels::Ragged;

use super::{
    attention::{AttentionShape, Biases, Qkv, SelfAttention, Sight},
    linear::Bias,
    mlp::{Activation, GateUp, GatedMlp, Mlp},
    norm::{LayerNorm, Norm, RmsNorm},
    rope::Rotation,
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

    /// The same of a layer with rotation and a gate: queries and keys are there twice, and the feed-forward part has a gate
    /// beside both sides.
    pub fn gated_row_size(&self) -> usize {
        8 * self.hidden + 3 * self.intermediate
    }

    /// Whether heads divide the width.
    ///
    /// # Errors
    /// When they do not.
    pub fn check(&self) -> Result<(), LoadError> {
        self.check_in("vision_config")
    }

    /// The same of sizes that are in another part of the configuration.
    ///
    /// # Errors
    /// When they do not.
    pub fn check_in(&self, part: &str) -> Result<(), LoadError> {
        if self.heads == 0 || !self.hidden.is_multiple_of(self.heads) {
            return Err(LoadError::unsupported(
                &format!("{part} num_attention_heads"),
                &self.heads.to_string(),
                "a divisor of hidden_size",
            ));
        }
        Ok(())
    }
}

/// The index of a hidden state of a tower, counted as transformers does: 0 is the embedding, -1 the last layer's output.
///
/// # Errors
/// When there is no such state.
pub fn hidden_state(layer: i64, layers: usize) -> Result<usize, LoadError> {
    let states = layers as i64 + 1;
    let index = if layer < 0 { states + layer } else { layer };
    if !(0..states).contains(&index) {
        let supported = format!("{} to {}", -states, states - 1);
        return Err(LoadError::unsupported("vision_feature_layer", &layer.to_string(), &supported));
    }
    Ok(index as usize)
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

/// Names of the weights of a layer with RMSNorm and a gate.
#[derive(Debug, Clone, Copy)]
pub struct GatedNames {
    /// The norms in front of attention and of the feed-forward part.
    pub norms: (&'static str, &'static str),
    /// Attention, and in it its layers.
    pub attention: &'static str,
    /// Queries, keys and values.
    pub qkv: Qkv,
    /// The output of attention.
    pub output: &'static str,
    /// The feed-forward layers: gate and up, down.
    pub mlp: (GateUp, &'static str),
    /// Whether all layers have a bias, or none.
    pub bias: Bias,
}

/// The feed-forward part of a layer.
#[derive(Debug)]
enum Feed {
    Plain(Mlp),
    Gated(GatedMlp),
}

/// An encoder layer: `x += attention(norm(x))`, `x += mlp(norm(x))`.
#[derive(Debug)]
pub struct VitBlock {
    norm1: Norm,
    attention: SelfAttention,
    norm2: Norm,
    feed: Feed,
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
            norm1: Norm::Layer(LayerNorm::load(hidden, eps, &vb.pp(names.norms.0))?),
            attention: SelfAttention::load_named(shape, names.biases, names.qkv, names.output, &attention)?,
            norm2: Norm::Layer(LayerNorm::load(hidden, eps, &vb.pp(names.norms.1))?),
            feed: Feed::Plain(Mlp::load(names.mlp, sizes, Bias::Yes, activation, vb)?),
            scales: None,
        })
    }

    /// Loads what `names` name below `vb`: a layer with RMSNorm and a gate.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load_gated(config: &VitConfig, names: &GatedNames, vb: &VarBuilder<'_>) -> Result<Self> {
        let VitConfig { hidden, heads, eps, activation, .. } = *config;
        let shape = AttentionShape { hidden, heads, kv_heads: heads, head_dim: hidden / heads };
        let biases = Biases { qkv: [names.bias; 3], output: names.bias };
        let attention = vb.pp(names.attention);
        let (gate_up, down) = names.mlp;
        let layers = (gate_up, down, names.bias);
        Ok(Self {
            norm1: Norm::Rms(RmsNorm::load(hidden, eps, &vb.pp(names.norms.0))?),
            attention: SelfAttention::load_named(shape, biases, names.qkv, names.output, &attention)?,
            norm2: Norm::Rms(RmsNorm::load(hidden, eps, &vb.pp(names.norms.1))?),
            feed: Feed::Gated(GatedMlp::load((hidden, config.intermediate), layers, activation, vb)?),
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
        self.rotated(x, None, rows)
    }

    /// The same where rows are told their positions by `rotation`.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn rotated(&self, x: &Tensor, rotation: Option<&Rotation>, rows: &Ragged) -> Result<Tensor> {
        self.add(x, &self.attention.full(&self.norm1.forward(x)?, rotation, rows)?)
    }

    /// Like [`Self::forward`] where every row sees itself and what came before.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn ordered(&self, x: &Tensor, rows: &Ragged) -> Result<Tensor> {
        self.add(x, &self.attention.ordered(&self.norm1.forward(x)?, rows)?)
    }

    /// Like [`Self::forward`] where rows see what `sight` shows them.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn partial(&self, x: &Tensor, sight: &Sight) -> Result<Tensor> {
        self.add(x, &self.attention.partial(&self.norm1.forward(x)?, sight)?)
    }

    fn add(&self, x: &Tensor, attended: &Tensor) -> Result<Tensor> {
        let (x, normed) = match &self.scales {
            Some((scale, _)) => self.norm2.add(x, &attended.broadcast_mul(scale)?)?,
            None => self.norm2.add(x, attended)?,
        };
        let fed = match &self.feed {
            Feed::Plain(mlp) => mlp.forward(&normed)?,
            Feed::Gated(mlp) => mlp.forward(&normed)?,
        };
        match &self.scales {
            Some((_, scale)) => x + fed.broadcast_mul(scale)?,
            None => x + fed,
        }
    }
}
