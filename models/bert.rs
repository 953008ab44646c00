//! BERT and RoBERTa as sentence-transformers use them: a text becomes a vector.
//!
//! Papers: <https://arxiv.org/abs/1810.04805>, <https://arxiv.org/abs/1907.11692>, <https://arxiv.org/abs/1911.02116>.
//! Reference: transformers, `models/bert`, `models/roberta` and `models/xlm_roberta`. Checkpoints:
//! `sentence-transformers/all-MiniLM-L6-v2`, `BAAI/bge-base-en-v1.5`, `mixedbread-ai/mxbai-embed-large-v1`,
//! `intfloat/multilingual-e5-small`, `sentence-transformers/paraphrase-multilingual-mpnet-base-v2`.

use std::sync::Arc;

use candle_core::Tensor;
use candle_nn::VarBuilder;
use rayon::prelude::*;
use serde::Deserialize;

use crate::{
    CacheShape, Checkpoint, EmbeddingInfo, Features, Fit, Footprint, KvCache, LoadError, MediaSize, Medium,
    Model, Parts, Preprocess, Result, Shorter, SizeError, Task,
    batch::{Batch, Ragged},
    nn::{
        attention::{AttentionShape, Biases, Qkv, SelfAttention},
        linear::Bias,
        mlp::{Activation, Mlp, read_activation},
        norm::LayerNorm,
        pooling::Head,
    },
};

/// Classes that carry the network inside of others save it under a prefix.
pub(crate) const ALIASES: &[(&str, &str)] = &[
    ("embeddings.", "bert.embeddings."),
    ("encoder.", "bert.encoder."),
    ("embeddings.", "roberta.embeddings."),
    ("encoder.", "roberta.encoder."),
];

/// `config.json`, with the defaults of `BertConfig`.
#[derive(Debug, Deserialize)]
#[serde(default)]
struct Config {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    hidden_act: String,
    max_position_embeddings: usize,
    type_vocab_size: usize,
    layer_norm_eps: f64,
    pad_token_id: Option<usize>,
    position_embedding_type: String,
    is_decoder: bool,
    #[serde(flatten)]
    shorter: Shorter,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            vocab_size: 30_522,
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            intermediate_size: 3072,
            hidden_act: "gelu".into(),
            max_position_embeddings: 512,
            type_vocab_size: 2,
            layer_norm_eps: 1e-12,
            pad_token_id: None,
            position_embedding_type: "absolute".into(),
            is_decoder: false,
            shorter: Shorter::default(),
        }
    }
}

impl Config {
    /// Sizes of an attention layer, where this network is what is described.
    fn attention(&self) -> Result<AttentionShape, LoadError> {
        if self.position_embedding_type != "absolute" {
            let found = &self.position_embedding_type;
            return Err(LoadError::unsupported("position_embedding_type", found, "absolute"));
        }
        if self.is_decoder {
            return Err(LoadError::unsupported("is_decoder", "true", "false"));
        }
        let (hidden, heads) = (self.hidden_size, self.num_attention_heads);
        if heads == 0 || !hidden.is_multiple_of(heads) {
            let supported = "a divisor of hidden_size";
            return Err(LoadError::unsupported("num_attention_heads", &heads.to_string(), supported));
        }
        Ok(AttentionShape { hidden, heads, kv_heads: heads, head_dim: hidden / heads })
    }
}

/// Loads BERT, whose positions count from 0.
pub(crate) fn load(
    checkpoint: &Checkpoint,
    fit: Option<Fit>,
    vb: &VarBuilder<'_>,
) -> Result<Parts, LoadError> {
    load_from(checkpoint, fit, vb, |_| 0)
}

/// Loads RoBERTa, whose positions count from behind the one of padding.
pub(crate) fn load_roberta(
    checkpoint: &Checkpoint,
    fit: Option<Fit>,
    vb: &VarBuilder<'_>,
) -> Result<Parts, LoadError> {
    load_from(checkpoint, fit, vb, |config| config.pad_token_id.unwrap_or(1) + 1)
}

fn load_from(
    checkpoint: &Checkpoint,
    _: Option<Fit>,
    vb: &VarBuilder<'_>,
    first: impl Fn(&Config) -> usize,
) -> Result<Parts, LoadError> {
    let config: Config = checkpoint.config()?;
    let attention = config.attention()?;
    let activation = read_activation("hidden_act", &config.hidden_act)?;
    let head = Head::read(checkpoint)?;
    let first = first(&config);
    let Some(positions) = config.max_position_embeddings.checked_sub(first).filter(|count| *count > 0) else {
        let (found, supported) = (config.max_position_embeddings.to_string(), format!("above {first}"));
        return Err(LoadError::unsupported("max_position_embeddings", &found, &supported));
    };
    let hidden = config.hidden_size;
    let embeddings = vb.pp("embeddings");
    let table = |name: &str, rows: usize| embeddings.pp(name).get((rows, hidden), "weight");
    let kinds = table("token_type_embeddings", config.type_vocab_size)?;
    let places = table("position_embeddings", config.max_position_embeddings)?;
    let layer = |index: usize| Layer::load(&config, attention, activation, &vb.pp("encoder.layer").pp(index));
    let info = EmbeddingInfo {
        context: head.context(positions),
        dimensions: head.dimensions(hidden),
        shorter: config.shorter.clone(),
        filler: None,
        pictures: None,
    };
    Ok(Parts {
        width: hidden,
        // The row itself and its sum, as query, key, value and attended, or both sides of the feed-forward part.
        encoder_row: 6 * hidden + 2 * config.intermediate_size,
        task: Task::Embed(info),
        preprocess: Arc::new(Blind),
        model: Box::new(Bert {
            words: table("word_embeddings", config.vocab_size)?,
            // All rows are of the first kind: there is one text.
            places: places.narrow(0, first, positions)?.broadcast_add(&kinds.narrow(0, 0, 1)?)?,
            norm: LayerNorm::load(hidden, config.layer_norm_eps, &embeddings.pp("LayerNorm"))?,
            layers: (0..config.num_hidden_layers).into_par_iter().map(layer).collect::<Result<_>>()?,
            head,
        }),
    })
}

struct Bert {
    /// `[vocabulary, hidden]`.
    words: Tensor,
    /// `[positions, hidden]`: the position's row and the kind's.
    places: Tensor,
    norm: LayerNorm,
    layers: Vec<Layer>,
    head: Head,
}

impl Model for Bert {
    fn cache_shape(&self) -> CacheShape {
        CacheShape::NONE
    }

    fn encode(&self, _: &[Features]) -> Result<Tensor> {
        candle_core::bail!("this network reads, it does not see")
    }

    fn forward(&self, _: &Batch, _: &KvCache) -> Result<Tensor> {
        candle_core::bail!("this network makes vectors, and no text")
    }

    fn embed(&self, batch: &Batch) -> Result<Tensor> {
        let words = self.words.index_select(&batch.tokens, 0)?;
        let mut x = self.norm.forward(&(words + self.places.index_select(&batch.positions, 0)?)?)?;
        for layer in &self.layers {
            x = layer.forward(&x, &batch.rows)?;
        }
        self.head.forward(&x, &batch.rows)
    }
}

/// A post-norm encoder layer: `x = norm(x + attention(x))`, `x = norm(x + mlp(x))`.
struct Layer {
    attention: SelfAttention,
    attention_norm: LayerNorm,
    mlp: Mlp,
    mlp_norm: LayerNorm,
}

impl Layer {
    fn load(
        config: &Config,
        shape: AttentionShape,
        activation: Activation,
        vb: &VarBuilder<'_>,
    ) -> Result<Self> {
        const QKV: Qkv = Qkv::Apart("self.query", "self.key", "self.value");
        let (hidden, eps) = (config.hidden_size, config.layer_norm_eps);
        let (attention, sizes) = (vb.pp("attention"), (hidden, config.intermediate_size, hidden));
        Ok(Self {
            attention: SelfAttention::load_named(shape, Biases::ALL, QKV, "output.dense", &attention)?,
            attention_norm: LayerNorm::load(hidden, eps, &attention.pp("output.LayerNorm"))?,
            mlp: Mlp::load(("intermediate.dense", "output.dense"), sizes, Bias::Yes, activation, vb)?,
            mlp_norm: LayerNorm::load(hidden, eps, &vb.pp("output.LayerNorm"))?,
        })
    }

    fn forward(&self, x: &Tensor, rows: &Ragged) -> Result<Tensor> {
        let x = self.attention_norm.forward(&(x + self.attention.full(x, None, rows)?)?)?;
        self.mlp_norm.forward(&(&x + self.mlp.forward(&x)?)?)
    }
}

/// What prepares media where there are none.
#[derive(Debug)]
struct Blind;

impl Preprocess for Blind {
    fn footprint(&self, _: MediaSize) -> Result<Footprint, SizeError> {
        Ok(Footprint::line(Vec::new()))
    }

    fn run(&self, _: Medium<'_>) -> Result<Tensor> {
        candle_core::bail!("this network reads, it does not see")
    }
}
