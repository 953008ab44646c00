//! The pre-norm decoder that Llama, Mistral, Qwen2, Phi-3 and InternLM2 share.

use candle_core::Tensor;
use candle_nn::VarBuilder;
use rayon::prelude::*;
use serde::{Deserialize, Deserializer};

use super::{
    attention::{AttentionShape, Biases, Qkv, SelfAttention},
    linear::{Bias, Linear},
    mlp::{Activation, GateUp, GatedMlp, read_activation},
    norm::RmsNorm,
    rope::{Rope, RopeConfig, RopeParameters, Rotation},
};
use crate::{
    LoadError, Positions, Result, TextInfo,
    batch::Batch,
    cache::{CacheShape, KvCache, LayerCache},
    ids,
};

/// `text_config` as checkpoints write it: a key that equals its class's default may be absent.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct TextConfig {
    /// Which defaults hold, and how weights are named.
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
    partial_rotary_factor: Option<f64>,
    max_position_embeddings: Option<usize>,
    original_max_position_embeddings: Option<usize>,
    /// The outer one is absent where the key is, the inner one where its value is null.
    #[serde(default, deserialize_with = "present")]
    sliding_window: Option<Option<usize>>,
    use_sliding_window: Option<bool>,
    hidden_act: Option<String>,
    vocab_size: Option<usize>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    /// InternLM2's name for biases.
    bias: Option<bool>,
    /// Whether the output layer is the embedding.
    pub tie_word_embeddings: Option<bool>,
    /// Ids that end an answer.
    pub eos_token_id: Option<serde_json::Value>,
}

fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<usize>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// A family of decoders: what its configuration class has where a file says nothing, and its names.
struct Family {
    model_type: &'static str,
    hidden: usize,
    intermediate: usize,
    layers: usize,
    heads: usize,
    /// As many as heads where it is absent.
    kv_heads: Option<usize>,
    eps: f64,
    theta: f64,
    positions: usize,
    window: Option<usize>,
    vocabulary: usize,
    /// Whether queries, keys and values have a bias.
    qkv_bias: Bias,
    names: Names,
}

/// Names of weights.
#[derive(Debug, Clone, Copy)]
pub struct Names {
    /// The embedding, in the model.
    embedding: &'static str,
    /// The norms of a layer, in front of attention and of the feed-forward part.
    norms: (&'static str, &'static str),
    attention: &'static str,
    qkv: Qkv,
    output: &'static str,
    mlp: &'static str,
    gate_up: GateUp,
    down: &'static str,
    /// The output layer, beside the model.
    head: &'static str,
}

const LLAMA_NAMES: Names = Names {
    embedding: "embed_tokens",
    norms: ("input_layernorm", "post_attention_layernorm"),
    attention: "self_attn",
    qkv: Qkv::Apart("q_proj", "k_proj", "v_proj"),
    output: "o_proj",
    mlp: "mlp",
    gate_up: GateUp::Apart("gate_proj", "up_proj"),
    down: "down_proj",
    head: "lm_head",
};

/// `LlamaConfig` of transformers.
const LLAMA: Family = Family {
    model_type: "llama",
    hidden: 4096,
    intermediate: 11008,
    layers: 32,
    heads: 32,
    kv_heads: None,
    eps: 1e-6,
    theta: 10_000.0,
    positions: 2048,
    window: None,
    vocabulary: 32_000,
    qkv_bias: Bias::No,
    names: LLAMA_NAMES,
};

/// Each with the defaults of its configuration class.
const FAMILIES: [Family; 7] = [
    LLAMA,
    Family {
        model_type: "mistral",
        intermediate: 14_336,
        kv_heads: Some(8),
        positions: 131_072,
        window: Some(4096),
        ..LLAMA
    },
    Family {
        model_type: "qwen2",
        intermediate: 22_016,
        kv_heads: Some(32),
        positions: 32_768,
        vocabulary: 151_936,
        qkv_bias: Bias::Yes,
        ..LLAMA
    },
    // Of Qwen2-VL and Qwen2.5-VL.
    Family {
        model_type: "qwen2_vl_text",
        hidden: 8192,
        intermediate: 29_568,
        layers: 80,
        heads: 64,
        kv_heads: Some(8),
        eps: 1e-5,
        theta: 1_000_000.0,
        positions: 32_768,
        vocabulary: 152_064,
        qkv_bias: Bias::Yes,
        ..LLAMA
    },
    Family {
        model_type: "phi3",
        hidden: 3072,
        intermediate: 8192,
        eps: 1e-5,
        positions: 4096,
        vocabulary: 32_064,
        names: Names { qkv: Qkv::Packed("qkv_proj"), gate_up: GateUp::Packed("gate_up_proj"), ..LLAMA_NAMES },
        ..LLAMA
    },
    Family {
        model_type: "internlm2",
        vocabulary: 103_168,
        names: Names {
            embedding: "tok_embeddings",
            norms: ("attention_norm", "ffn_norm"),
            attention: "attention",
            qkv: Qkv::Grouped("wqkv"),
            output: "wo",
            mlp: "feed_forward",
            gate_up: GateUp::Apart("w1", "w3"),
            down: "w2",
            head: "output",
        },
        ..LLAMA
    },
    Family {
        model_type: "mllama_text_model",
        intermediate: 14_336,
        layers: 40,
        kv_heads: Some(8),
        eps: 1e-5,
        theta: 500_000.0,
        positions: 131_072,
        vocabulary: 128_256,
        ..LLAMA
    },
];

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
    /// How positions are told.
    pub rope: RopeConfig,
    /// Positions that the model was trained for.
    pub positions: usize,
    /// Rows that a row sees at most, itself included.
    pub window: Option<usize>,
    /// Rows of the embedding and of the output, padding included.
    pub vocabulary: usize,
    /// Whether the output layer is the embedding, where the file has none.
    pub tied: bool,
    /// Of the feed-forward part.
    pub activation: Activation,
    qkv_bias: Bias,
    names: Names,
}

impl TextConfig {
    /// The decoder that is described, with the defaults of its family: `family` where the file names none.
    ///
    /// # Errors
    /// When the configuration asks for something this decoder does not do.
    pub fn decoder(&self, family: &str) -> Result<DecoderConfig, LoadError> {
        let family = self.model_type.as_deref().unwrap_or(family);
        let Some(family) = FAMILIES.iter().find(|known| known.model_type == family) else {
            let known = FAMILIES.iter().map(|family| family.model_type).collect::<Vec<_>>().join(", ");
            return Err(LoadError::unsupported("text_config model_type", family, &known));
        };
        let flags =
            [("attention_bias", self.attention_bias), ("mlp_bias", self.mlp_bias), ("bias", self.bias)];
        for (key, value) in flags {
            if value == Some(true) {
                return Err(LoadError::unsupported(&format!("text_config {key}"), "true", "false"));
            }
        }
        if let Some(factor) = self.partial_rotary_factor.filter(|&factor| factor != 1.0) {
            let value = factor.to_string();
            return Err(LoadError::unsupported("text_config partial_rotary_factor", &value, "1"));
        }
        let hidden = self.hidden_size.unwrap_or(family.hidden);
        let heads = self.num_attention_heads.unwrap_or(family.heads);
        let attention = AttentionShape {
            hidden,
            heads,
            kv_heads: self.num_key_value_heads.or(family.kv_heads).unwrap_or(heads),
            head_dim: self.head_dim.unwrap_or(hidden / heads.max(1)),
        };
        let divides = attention.kv_heads > 0 && heads > 0 && heads.is_multiple_of(attention.kv_heads);
        if !divides || attention.head_dim == 0 || !attention.head_dim.is_multiple_of(2) {
            return Err(LoadError::Unsupported {
                what: format!("text_config with {attention:?}"),
                supported: "kv heads that divide the heads, and an even head size".into(),
            });
        }
        let positions = self.max_position_embeddings.unwrap_or(family.positions);
        let parameters = self.rope_parameters.as_ref().or(self.rope_scaling.as_ref());
        let theta = parameters.and_then(|rope| rope.rope_theta).or(self.rope_theta).unwrap_or(family.theta);
        let lengths = (self.original_max_position_embeddings, positions);
        Ok(DecoderConfig {
            attention,
            intermediate: self.intermediate_size.unwrap_or(family.intermediate),
            layers: self.num_hidden_layers.unwrap_or(family.layers),
            eps: self.rms_norm_eps.unwrap_or(family.eps),
            rope: RopeConfig::new(attention.head_dim, theta, parameters, lengths)?,
            positions,
            window: self.window(family, positions)?,
            vocabulary: self.vocab_size.unwrap_or(family.vocabulary),
            tied: self.tie_word_embeddings.unwrap_or(false),
            activation: read_activation(
                "text_config hidden_act",
                self.hidden_act.as_deref().unwrap_or("silu"),
            )?,
            qkv_bias: family.qkv_bias,
            names: family.names,
        })
    }

    fn window(&self, family: &Family, positions: usize) -> Result<Option<usize>, LoadError> {
        let window = match self.use_sliding_window {
            Some(false) => None,
            None if family.model_type.starts_with("qwen2") => None,
            Some(true) if family.model_type.starts_with("qwen2") => {
                return Err(LoadError::unsupported("text_config use_sliding_window", "true", "false"));
            }
            _ => self.sliding_window.unwrap_or(family.window),
        };
        if window == Some(0) {
            return Err(LoadError::unsupported("text_config sliding_window", "0", "null, or 1 and more"));
        }
        // One that shows everything is none.
        Ok(window.filter(|&window| window < positions))
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

    /// The name of the output layer, beside the model's.
    pub fn head(&self) -> &'static str {
        self.names.head
    }

    /// What the text side must know, where `placeholder` stands for a picture and configurations have ids of these
    /// forms that end an answer.
    pub fn text_info(&self, placeholder: u32, stops: &[&Option<serde_json::Value>]) -> TextInfo {
        let stops = stops.iter().flat_map(|stop| ids(stop.as_ref())).collect();
        TextInfo {
            positions: Positions { planes: self.rope.has_planes(), long: self.rope.long() },
            ..TextInfo::new(self.positions, placeholder, stops)
        }
    }
}

/// Embedding, layers, final norm and output.
#[derive(Debug)]
pub struct Decoder {
    ends: Ends,
    blocks: Vec<Block>,
    rope: Rope,
}

impl Decoder {
    /// Loads the embedding, `layers.N` and `norm` below `model`, and the output layer `lm_head`.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load(config: &DecoderConfig, model: &VarBuilder<'_>, lm_head: &VarBuilder<'_>) -> Result<Self> {
        Ok(Self {
            rope: Rope::new(&config.rope, model.dtype(), model.device())?,
            ends: Ends::load(config, config.vocabulary, model, lm_head)?,
            blocks: (0..config.layers)
                .into_par_iter()
                .map(|index| Block::load(config, &model.pp("layers").pp(index)))
                .collect::<Result<_>>()?,
        })
    }

    /// Logits `[wanted, vocabulary]` of the rows that the batch wants; writes the cache.
    ///
    /// # Errors
    /// When the batch does not fit the cache.
    pub fn forward(&self, batch: &Batch, cache: &KvCache) -> Result<Tensor> {
        let mut x = Pending::from(self.ends.embed(batch)?);
        let rotation = self.rope.at(batch)?;
        for (index, block) in self.blocks.iter().enumerate() {
            x = block.forward(x, &rotation, batch, cache.layer(index))?;
        }
        self.ends.logits(&x, batch)
    }
}

/// Rows `[rows, hidden]` between layers, whose last addition waits for the norm behind it, which makes it in its own pass.
#[derive(Debug)]
pub struct Pending {
    rows: Tensor,
    added: Option<Tensor>,
}

impl From<Tensor> for Pending {
    fn from(rows: Tensor) -> Self {
        Self { rows, added: None }
    }
}

impl Pending {
    /// `rows + added`.
    pub fn sum(rows: Tensor, added: Tensor) -> Self {
        Self { rows, added: Some(added) }
    }

    /// The rows, and the same normalised.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn normed(self, norm: &RmsNorm) -> Result<(Tensor, Tensor)> {
        match &self.added {
            Some(added) => norm.add(&self.rows, added),
            None => norm.forward(&self.rows).map(|normed| (self.rows, normed)),
        }
    }

    /// The rows of these indices, u32 `[wanted]`.
    fn select(&self, wanted: &Tensor) -> Result<Self> {
        let select = |rows: &Tensor| rows.index_select(wanted, 0);
        Ok(Self { rows: select(&self.rows)?, added: self.added.as_ref().map(select).transpose()? })
    }
}

/// What is in front of the layers and behind them.
#[derive(Debug)]
pub struct Ends {
    embedding: Tensor,
    norm: RmsNorm,
    output: Linear,
}

impl Ends {
    /// Loads the embedding of `ids` rows and `norm` below `model`, and the output layer `lm_head`.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load(
        config: &DecoderConfig,
        ids: usize,
        model: &VarBuilder<'_>,
        lm_head: &VarBuilder<'_>,
    ) -> Result<Self> {
        let hidden = config.attention.hidden;
        let embedding = model.pp(config.names.embedding).get((ids, hidden), "weight")?;
        let output = if config.tied && !lm_head.contains_tensor("weight") {
            Linear::of(embedding.narrow(0, 0, config.vocabulary)?, None)
        } else {
            Linear::load(hidden, config.vocabulary, Bias::No, lm_head)?
        };
        Ok(Self { embedding, norm: RmsNorm::load(hidden, config.eps, &model.pp("norm"))?, output })
    }

    /// The batch's rows `[rows, hidden]`, those of media included.
    ///
    /// # Errors
    /// When an id has no row.
    pub fn embed(&self, batch: &Batch) -> Result<Tensor> {
        let x = self.embedding.index_select(&batch.tokens, 0)?;
        for insert in &batch.inserts {
            x.slice_set(&insert.rows.to_dtype(x.dtype())?.contiguous()?, 0, insert.at)?;
        }
        Ok(x)
    }

    /// Logits `[wanted, vocabulary]` of the rows that the batch wants.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn logits(&self, x: &Pending, batch: &Batch) -> Result<Tensor> {
        let (_, normed) = x.select(&batch.last)?.normed(&self.norm)?;
        self.output.forward(&normed)
    }
}

/// A layer: attention to the text so far, then the feed-forward part.
#[derive(Debug)]
pub struct Block {
    input_norm: RmsNorm,
    attention: SelfAttention,
    mlp_norm: RmsNorm,
    mlp: GatedMlp,
}

impl Block {
    /// Loads what is below `vb`.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load(config: &DecoderConfig, vb: &VarBuilder<'_>) -> Result<Self> {
        let (shape, names) = (config.attention, config.names);
        let biases = Biases { qkv: [config.qkv_bias; 3], ..Biases::NONE };
        let attention = vb.pp(names.attention);
        Ok(Self {
            input_norm: RmsNorm::load(shape.hidden, config.eps, &vb.pp(names.norms.0))?,
            attention: SelfAttention::load_named(shape, biases, names.qkv, names.output, &attention)?
                .within(config.window),
            mlp_norm: RmsNorm::load(shape.hidden, config.eps, &vb.pp(names.norms.1))?,
            mlp: GatedMlp::load(
                (shape.hidden, config.intermediate),
                (names.gate_up, names.down, Bias::No),
                config.activation,
                &vb.pp(names.mlp),
            )?,
        })
    }

    /// `x`: `[rows, hidden]`; writes the cache.
    ///
    /// # Errors
    /// When the batch does not fit the cache.
    pub fn forward(
        &self,
        x: Pending,
        rotation: &Rotation,
        batch: &Batch,
        cache: &LayerCache,
    ) -> Result<Pending> {
        let (x, normed) = {
            let (x, normed) = x.normed(&self.input_norm)?;
            self.mlp_norm.add(&x, &self.attention.causal(&normed, Some(rotation), batch, cache)?)?
        };
        Ok(Pending::sum(x, self.mlp.forward(&normed)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: serde_json::Value) -> DecoderConfig {
        let config: TextConfig = serde_json::from_value(json).expect("a configuration");
        config.decoder("llama").expect("a decoder")
    }

    #[test]
    fn a_window_is_absent_where_it_is_null_and_the_default_where_it_is_absent() {
        use serde_json::json;
        let window = |json| config(json).window;
        assert_eq!(window(json!({"model_type": "mistral"})), Some(4096));
        assert_eq!(window(json!({"model_type": "mistral", "sliding_window": null})), None);
        assert_eq!(window(json!({"model_type": "mistral", "sliding_window": 100})), Some(100));
        let short = json!({"model_type": "mistral", "sliding_window": 512, "max_position_embeddings": 512});
        assert_eq!(window(short), None);
        assert_eq!(window(json!({})), None);
        let qwen = json!({"model_type": "qwen2", "use_sliding_window": false, "sliding_window": 100});
        assert_eq!(window(qwen), None);
    }

    #[test]
    fn what_is_absent_is_as_in_the_family() {
        use serde_json::json;
        let mistral = config(json!({"model_type": "mistral"}));
        assert_eq!(
            (mistral.attention.kv_heads, mistral.intermediate, mistral.positions),
            (8, 14_336, 131_072)
        );
        let llama = config(json!({}));
        assert_eq!((llama.attention.kv_heads, llama.intermediate, llama.positions), (32, 11_008, 2048));
        assert_eq!(config(json!({"head_dim": 128, "hidden_size": 5120})).attention.head_dim, 128);
    }
}
