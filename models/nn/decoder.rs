//! The pre-norm decoder that Llama, Vicuna and their relatives share.

use candle_core::Tensor;
use candle_nn::VarBuilder;
use rayon::prelude::*;
use serde::Deserialize;

use super::{
    attention::{AttentionShape, Biases, SelfAttention},
    linear::{Bias, Linear},
    mlp::{Activation, GatedMlp},
    norm::RmsNorm,
    rope::Rope,
};
use crate::{
    LoadError, Result,
    batch::Batch,
    cache::{CacheShape, KvCache},
};

/// `text_config` as checkpoints write it: a key that equals its class's default may be absent.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct TextConfig {
    /// Which defaults hold.
    pub model_type: Option<String>,
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    rms_norm_eps: Option<f64>,
    rope_theta: Option<f64>,
    rope_scaling: Option<RopeParameters>,
    rope_parameters: Option<RopeParameters>,
    max_position_embeddings: Option<usize>,
    hidden_act: Option<String>,
    vocab_size: Option<usize>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    /// Whether the output layer is the embedding.
    pub tie_word_embeddings: Option<bool>,
    /// Ids that end an answer.
    pub eos_token_id: Option<serde_json::Value>,
}

/// `rope_scaling` of older files, `rope_parameters` of transformers 5.
#[derive(Debug, Clone, Deserialize)]
struct RopeParameters {
    rope_theta: Option<f64>,
    rope_type: Option<String>,
    /// The older name; some tools save both.
    #[serde(rename = "type")]
    kind: Option<String>,
}

/// Sizes and constants of a decoder.
#[derive(Debug, Clone)]
pub struct DecoderConfig {
    /// Attention of every layer.
    pub attention: AttentionShape,
    /// Width of the feed-forward part.
    pub intermediate: usize,
    /// Layers.
    pub layers: usize,
    /// Epsilon of the norms.
    pub eps: f64,
    /// Base of the rotary angles.
    pub rope_theta: f64,
    /// Positions that the model was trained for.
    pub positions: usize,
    /// Rows of the embedding and of the output, padding included.
    pub vocabulary: usize,
    /// Whether the output layer is the embedding, where the file has none.
    pub tied: bool,
    activation: Activation,
}

impl TextConfig {
    /// The decoder of Llama and Vicuna, with `LlamaConfig`'s defaults.
    ///
    /// # Errors
    /// When the configuration asks for something this decoder does not do.
    pub fn llama(&self) -> Result<DecoderConfig, LoadError> {
        let rope = self.rope_parameters.as_ref().or(self.rope_scaling.as_ref());
        match rope.and_then(|rope| rope.rope_type.as_deref().or(rope.kind.as_deref())) {
            None | Some("default") => {}
            Some(other) => {
                return Err(LoadError::unsupported("text_config rope type", other, "default"));
            }
        }
        for (key, value) in [("attention_bias", self.attention_bias), ("mlp_bias", self.mlp_bias)] {
            if value == Some(true) {
                return Err(LoadError::unsupported(&format!("text_config {key}"), "true", "false"));
            }
        }
        let hidden = self.hidden_size.unwrap_or(4096);
        let heads = self.num_attention_heads.unwrap_or(32);
        let attention = AttentionShape {
            hidden,
            heads,
            kv_heads: self.num_key_value_heads.unwrap_or(heads),
            head_dim: self.head_dim.unwrap_or(hidden / heads.max(1)),
        };
        let divides = attention.kv_heads > 0 && heads > 0 && heads.is_multiple_of(attention.kv_heads);
        if !divides || attention.head_dim == 0 || !attention.head_dim.is_multiple_of(2) {
            return Err(LoadError::Unsupported {
                what: format!("text_config with {attention:?}"),
                supported: "kv heads that divide the heads, and an even head size".into(),
            });
        }
        Ok(DecoderConfig {
            attention,
            intermediate: self.intermediate_size.unwrap_or(11008),
            layers: self.num_hidden_layers.unwrap_or(32),
            eps: self.rms_norm_eps.unwrap_or(1e-6),
            rope_theta: rope.and_then(|rope| rope.rope_theta).or(self.rope_theta).unwrap_or(10_000.0),
            positions: self.max_position_embeddings.unwrap_or(2048),
            vocabulary: self.vocab_size.unwrap_or(32_000),
            tied: self.tie_word_embeddings.unwrap_or(false),
            activation: Activation::parse(
                "text_config hidden_act",
                self.hidden_act.as_deref().unwrap_or("silu"),
            )?,
        })
    }
}

impl DecoderConfig {
    /// What the decoder keeps per row of text.
    pub fn cache_shape(&self) -> CacheShape {
        CacheShape {
            layers: self.layers,
            kv_heads: self.attention.kv_heads,
            head_dim: self.attention.head_dim,
        }
    }
}

/// Embedding, layers, final norm and output.
#[derive(Debug)]
pub struct Decoder {
    embedding: Tensor,
    layers: Vec<Layer>,
    norm: RmsNorm,
    output: Linear,
    rope: Rope,
}

impl Decoder {
    /// Loads `embed_tokens`, `layers.N` and `norm` below `model`, and the output layer `lm_head`.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load(config: &DecoderConfig, model: &VarBuilder<'_>, lm_head: &VarBuilder<'_>) -> Result<Self> {
        let hidden = config.attention.hidden;
        let embedding = model.get((config.vocabulary, hidden), "embed_tokens.weight")?;
        let output = if config.tied && !lm_head.contains_tensor("weight") {
            Linear::of(embedding.clone(), None)
        } else {
            Linear::load(hidden, config.vocabulary, Bias::No, lm_head)?
        };
        let layers = (0..config.layers)
            .into_par_iter()
            .map(|index| Layer::load(config, &model.pp("layers").pp(index)))
            .collect::<Result<_>>()?;
        let head_dim = config.attention.head_dim;
        Ok(Self {
            rope: Rope::new(head_dim, config.rope_theta, config.positions, model.dtype(), model.device())?,
            embedding,
            layers,
            norm: RmsNorm::load(hidden, config.eps, &model.pp("norm"))?,
            output,
        })
    }

    /// Logits `[wanted, vocabulary]` of the rows that the batch wants; writes the cache.
    ///
    /// # Errors
    /// When the batch does not fit the cache.
    pub fn forward(&self, batch: &Batch, cache: &KvCache) -> Result<Tensor> {
        let mut x = self.embedding.index_select(&batch.tokens, 0)?;
        for insert in &batch.inserts {
            x.slice_set(&insert.rows.to_dtype(x.dtype())?.contiguous()?, 0, insert.at)?;
        }
        let rotation = self.rope.at(&batch.positions)?;
        for (index, layer) in self.layers.iter().enumerate() {
            let attended = layer.attention.causal(
                &layer.input_norm.forward(&x)?,
                Some(&rotation),
                batch,
                cache.layer(index),
            )?;
            x = (x + attended)?;
            x = (&x + layer.mlp.forward(&layer.mlp_norm.forward(&x)?)?)?;
        }
        self.output.forward(&self.norm.forward(&x.index_select(&batch.last, 0)?)?)
    }
}

#[derive(Debug)]
struct Layer {
    input_norm: RmsNorm,
    attention: SelfAttention,
    mlp_norm: RmsNorm,
    mlp: GatedMlp,
}

impl Layer {
    fn load(config: &DecoderConfig, vb: &VarBuilder<'_>) -> Result<Self> {
        let hidden = config.attention.hidden;
        Ok(Self {
            input_norm: RmsNorm::load(hidden, config.eps, &vb.pp("input_layernorm"))?,
            attention: SelfAttention::load(config.attention, Biases::NONE, "o_proj", &vb.pp("self_attn"))?,
            mlp_norm: RmsNorm::load(hidden, config.eps, &vb.pp("post_attention_layernorm"))?,
            mlp: GatedMlp::load(hidden, config.intermediate, config.activation, &vb.pp("mlp"))?,
        })
    }
}
