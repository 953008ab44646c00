//! Whisper: an encoder of log-mel frames, and a decoder whose text attends to what was encoded.
//!
//! Paper: <https://arxiv.org/abs/2212.04356>. Reference: openai/whisper, `whisper/model.py`; weight names are those of
//! transformers, `models/whisper`. Checkpoints: `openai/whisper-tiny` to `openai/whisper-large-v3-turbo`,
//! `distil-whisper/distil-large-v3` and fine-tunes in that layout.

use std::sync::Arc;

use candle_core::Tensor;
use candle_nn::VarBuilder;
use rayon::prelude::*;
use serde::Deserialize;

use crate::{
    Aligned, CacheShape, Checkpoint, Features, Fit, Footprint, KvCache, LoadError, MediaSize, Medium, Model,
    Parts, Preprocess, Result, SizeError, SpeechInfo, Task,
    batch::{Batch, Ragged, Remembered},
    cache::LayerCache,
    end_to_end,
    nn::{
        attention::{AttentionShape, Biases, CrossAttention, SelfAttention},
        linear::{Bias, Linear},
        mel::Mel,
        mlp::{Activation, Mlp, activate, read_activation},
        norm::LayerNorm,
        vit::{VitBlock, VitConfig, VitNames},
    },
};

/// Files saved from the network without its output layer have no prefix.
pub(crate) const ALIASES: &[(&str, &str)] = &[("model.encoder.", "encoder."), ("model.decoder.", "decoder.")];

const EPS: f64 = 1e-5;
/// Rows of an encoded window.
const ROWS: usize = 1500;
/// Neighbouring frames that a convolution sees.
const TAPS: usize = 3;

/// `config.json`, with `WhisperConfig`'s defaults.
#[derive(Debug, Deserialize)]
#[serde(default)]
struct Config {
    d_model: usize,
    encoder_layers: usize,
    encoder_attention_heads: usize,
    encoder_ffn_dim: usize,
    decoder_layers: usize,
    decoder_attention_heads: usize,
    decoder_ffn_dim: usize,
    num_mel_bins: usize,
    vocab_size: usize,
    max_source_positions: usize,
    max_target_positions: usize,
    activation_function: String,
    scale_embedding: bool,
    tie_word_embeddings: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            d_model: 384,
            encoder_layers: 4,
            encoder_attention_heads: 6,
            encoder_ffn_dim: 1536,
            decoder_layers: 4,
            decoder_attention_heads: 6,
            decoder_ffn_dim: 1536,
            num_mel_bins: 80,
            vocab_size: 51_865,
            max_source_positions: ROWS,
            max_target_positions: 448,
            activation_function: "gelu".into(),
            scale_embedding: false,
            tie_word_embeddings: true,
        }
    }
}

impl Config {
    fn check(&self) -> Result<(), LoadError> {
        let heads = [
            ("encoder_attention_heads", self.encoder_attention_heads),
            ("decoder_attention_heads", self.decoder_attention_heads),
        ];
        for (key, heads) in heads {
            if heads == 0 || !self.d_model.is_multiple_of(heads) {
                return Err(LoadError::unsupported(key, &heads.to_string(), "a divisor of d_model"));
            }
        }
        if self.scale_embedding {
            return Err(LoadError::unsupported("scale_embedding", "true", "false"));
        }
        let sizes =
            [("num_mel_bins", self.num_mel_bins), ("max_target_positions", self.max_target_positions)];
        for (key, size) in sizes {
            if size == 0 {
                return Err(LoadError::unsupported(key, "0", "1 or more"));
            }
        }
        // A row is 20 milliseconds long. What cuts recordings wants windows of a second.
        if !(ROWS / 30..=ROWS).contains(&self.max_source_positions) {
            let found = self.max_source_positions.to_string();
            return Err(LoadError::unsupported("max_source_positions", &found, "50 to 1500"));
        }
        Ok(())
    }

    fn shape(&self, heads: usize) -> AttentionShape {
        AttentionShape { hidden: self.d_model, heads, kv_heads: heads, head_dim: self.d_model / heads }
    }
}

/// What `generation_config.json` says of the network itself.
#[derive(Debug, Default, Deserialize)]
struct GenerationConfig {
    /// Pairs of layer and head that follow time.
    alignment_heads: Option<Vec<(usize, usize)>>,
}

/// Heads that follow time, for each layer.
fn alignment_heads(config: &Config, found: GenerationConfig) -> Result<Vec<Vec<usize>>, LoadError> {
    let (layers, heads) = (config.decoder_layers, config.decoder_attention_heads);
    let mut all = vec![Vec::new(); layers];
    let Some(pairs) = found.alignment_heads.filter(|pairs| !pairs.is_empty()) else {
        // As the reference does without a table: all heads of the second half.
        for layer in &mut all[layers / 2..] {
            *layer = (0..heads).collect();
        }
        return Ok(all);
    };
    for (layer, head) in pairs {
        if layer >= layers || head >= heads {
            let supported = format!("layers below {layers} and heads below {heads}");
            return Err(LoadError::unsupported("alignment_heads", &format!("[{layer}, {head}]"), &supported));
        }
        all[layer].push(head);
    }
    Ok(all)
}

/// Loads the network and its ear.
pub(crate) fn load(checkpoint: &Checkpoint, _: Option<Fit>, vb: &VarBuilder<'_>) -> Result<Parts, LoadError> {
    let config: Config = checkpoint.config()?;
    config.check()?;
    let generation: GenerationConfig = checkpoint.json("generation_config.json")?.unwrap_or_default();
    let activation = read_activation("activation_function", &config.activation_function)?;
    let model = vb.pp("model");
    let decoder = model.pp("decoder");
    let embedding = decoder.get((config.vocab_size, config.d_model), "embed_tokens.weight")?;
    let output = if config.tie_word_embeddings {
        Linear::of(embedding.clone(), None)
    } else {
        Linear::load(config.d_model, config.vocab_size, Bias::No, &vb.pp("proj_out"))?
    };
    let network = Whisper {
        alignment_heads: alignment_heads(&config, generation)?,
        encoder: Encoder::load(&config, activation, &model.pp("encoder"))?,
        embedding,
        positions: decoder.get((config.max_target_positions, config.d_model), "embed_positions.weight")?,
        layers: (0..config.decoder_layers)
            .into_par_iter()
            .map(|index| DecoderLayer::load(&config, activation, &decoder.pp("layers").pp(index)))
            .collect::<Result<_>>()?,
        norm: LayerNorm::load(config.d_model, EPS, &decoder.pp("layer_norm"))?,
        output,
        cache_shape: CacheShape {
            layers: config.decoder_layers,
            kv_heads: config.decoder_attention_heads,
            head_dim: config.d_model / config.decoder_attention_heads,
        },
    };
    let info = SpeechInfo {
        context: config.max_target_positions,
        mels: config.num_mel_bins,
        frames: 2 * config.max_source_positions,
        vocabulary: config.vocab_size,
    };
    let ear = Ear { mel: Mel::new(info.mels), frames: info.frames, rows: config.max_source_positions };
    Ok(Parts {
        model: Box::new(network),
        preprocess: Arc::new(ear),
        task: Task::Transcribe(info),
        width: config.d_model,
        // A layer's intermediate results, or those of the convolutions.
        encoder_row: (6 * config.d_model + 2 * config.encoder_ffn_dim)
            .max(2 * TAPS * config.num_mel_bins + 8 * config.d_model),
    })
}

struct Whisper {
    encoder: Encoder,
    embedding: Tensor,
    positions: Tensor,
    layers: Vec<DecoderLayer>,
    norm: LayerNorm,
    output: Linear,
    /// Heads that follow time, for each layer.
    alignment_heads: Vec<Vec<usize>>,
    cache_shape: CacheShape,
}

impl Model for Whisper {
    fn cache_shape(&self) -> CacheShape {
        self.cache_shape
    }

    fn encode(&self, media: &[Features]) -> Result<Tensor> {
        self.encoder.forward(&end_to_end(media)?)
    }

    fn remember(&self, encoded: &Tensor, slots: &Tensor, cache: &KvCache) -> Result<()> {
        for (index, layer) in self.layers.iter().enumerate() {
            layer.cross_attention.remember(encoded, slots, cache.layer(index))?;
        }
        Ok(())
    }

    fn forward(&self, batch: &Batch, cache: &KvCache) -> Result<Tensor> {
        self.decode(batch, cache, |_, _| Ok(()))
    }

    fn align(&self, batch: &Batch, frames: usize, cache: &KvCache) -> Result<Aligned> {
        let memory = memory(batch)?;
        let pages = memory.pages.table.squeeze(0)?;
        let mut sum: Option<Tensor> = None;
        let logits = self.decode(batch, cache, |index, queries| {
            let heads = &self.alignment_heads[index];
            if heads.is_empty() {
                return Ok(());
            }
            let cross = &self.layers[index].cross_attention;
            let found = cross.alignment(queries, &pages, cache.layer(index), heads, frames)?;
            sum = Some(match sum.take() {
                Some(sum) => (sum + found)?,
                None => found,
            });
            Ok(())
        })?;
        let heads: usize = self.alignment_heads.iter().map(Vec::len).sum();
        let Some(sum) = sum else { candle_core::bail!("the checkpoint names no heads that follow time") };
        Ok(Aligned { logits, attention: (sum / heads as f64)? })
    }
}

impl Whisper {
    /// `watch` sees the layer and its queries `[rows, heads, head_dim]` to the memory.
    fn decode(
        &self,
        batch: &Batch,
        cache: &KvCache,
        mut watch: impl FnMut(usize, &Tensor) -> Result<()>,
    ) -> Result<Tensor> {
        let memory = memory(batch)?;
        let tokens = self.embedding.index_select(&batch.tokens, 0)?;
        let mut x = (tokens + self.positions.index_select(&batch.positions, 0)?)?;
        for (index, layer) in self.layers.iter().enumerate() {
            let cache = cache.layer(index);
            x = layer.listen_to_text(&x, batch, cache)?;
            let queries = layer.queries(&x)?;
            watch(index, &queries)?;
            x = (x + layer.cross_attention.attend(&queries, memory, cache)?)?;
            x = (&x + layer.mlp.forward(&layer.mlp_norm.forward(&x)?)?)?;
        }
        self.output.forward(&self.norm.forward(&x.index_select(&batch.last, 0)?)?)
    }
}

fn memory(batch: &Batch) -> Result<&Remembered> {
    match &batch.memory {
        Some(memory) if memory.seen.is_none() => Ok(memory),
        _ => candle_core::bail!("rows without a memory"),
    }
}

struct DecoderLayer {
    attention_norm: LayerNorm,
    attention: SelfAttention,
    cross_attention_norm: LayerNorm,
    cross_attention: CrossAttention,
    mlp_norm: LayerNorm,
    mlp: Mlp,
}

impl DecoderLayer {
    fn load(config: &Config, activation: Activation, vb: &VarBuilder<'_>) -> Result<Self> {
        let width = config.d_model;
        let shape = config.shape(config.decoder_attention_heads);
        let norm = |name| LayerNorm::load(width, EPS, &vb.pp(name));
        Ok(Self {
            attention_norm: norm("self_attn_layer_norm")?,
            attention: SelfAttention::load(shape, Biases::NOT_KEYS, "out_proj", &vb.pp("self_attn"))?,
            cross_attention_norm: norm("encoder_attn_layer_norm")?,
            cross_attention: CrossAttention::load(
                shape,
                Biases::NOT_KEYS,
                "out_proj",
                &vb.pp("encoder_attn"),
            )?,
            mlp_norm: norm("final_layer_norm")?,
            mlp: Mlp::load(
                ("fc1", "fc2"),
                (width, config.decoder_ffn_dim, width),
                Bias::Yes,
                activation,
                vb,
            )?,
        })
    }

    fn listen_to_text(&self, x: &Tensor, batch: &Batch, cache: &LayerCache) -> Result<Tensor> {
        x + self.attention.causal(&self.attention_norm.forward(x)?, None, batch, cache)?
    }

    fn queries(&self, x: &Tensor) -> Result<Tensor> {
        self.cross_attention.queries(&self.cross_attention_norm.forward(x)?)
    }
}

const ENCODER_NAMES: VitNames = VitNames {
    norms: ("self_attn_layer_norm", "final_layer_norm"),
    biases: Biases::NOT_KEYS,
    mlp: ("fc1", "fc2"),
    ..VitNames::CLIP
};

struct Encoder {
    first: Convolution,
    second: Convolution,
    activation: Activation,
    positions: Tensor,
    layers: Vec<VitBlock>,
    norm: LayerNorm,
}

impl Encoder {
    fn load(config: &Config, activation: Activation, vb: &VarBuilder<'_>) -> Result<Self> {
        let width = config.d_model;
        let layer = VitConfig {
            hidden: width,
            intermediate: config.encoder_ffn_dim,
            heads: config.encoder_attention_heads,
            eps: EPS,
            activation,
        };
        Ok(Self {
            first: Convolution::load(config.num_mel_bins, width, 1, &vb.pp("conv1"))?,
            second: Convolution::load(width, width, 2, &vb.pp("conv2"))?,
            activation,
            positions: vb.get((config.max_source_positions, width), "embed_positions.weight")?,
            layers: (0..config.encoder_layers)
                .into_par_iter()
                .map(|index| VitBlock::load(&layer, &ENCODER_NAMES, &vb.pp("layers").pp(index)))
                .collect::<Result<_>>()?,
            norm: LayerNorm::load(width, EPS, &vb.pp("layer_norm"))?,
        })
    }

    /// `features`: `[windows, frames, mels]`; returns `[windows * frames / 2, width]`.
    fn forward(&self, features: &Tensor) -> Result<Tensor> {
        let features = features.to_dtype(self.positions.dtype())?;
        let x = activate(&self.first.forward(&features)?, self.activation)?;
        let x = activate(&self.second.forward(&x)?, self.activation)?;
        let (windows, rows, _) = x.dims3()?;
        let mut x = x.broadcast_add(&self.positions)?.flatten_to(1)?;
        let ragged = Ragged::new(&vec![rows; windows], x.device())?;
        for layer in &self.layers {
            x = layer.forward(&x, &ragged)?;
        }
        self.norm.forward(&x)
    }
}

/// A convolution over three frames, padded with a frame of zeros at both ends.
struct Convolution {
    linear: Linear,
    stride: usize,
}

impl Convolution {
    fn load(input: usize, output: usize, stride: usize, vb: &VarBuilder<'_>) -> Result<Self> {
        let weight = vb.get((output, input, TAPS), "weight")?;
        let weight = weight.permute((0, 2, 1))?.reshape((output, TAPS * input))?;
        Ok(Self { linear: Linear::of(weight, Some(vb.get(output, "bias")?)), stride })
    }

    /// `x`: `[windows, frames, input]`; returns `[windows, frames / stride, output]`. A product over the frames that
    /// each output sees.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (windows, frames, input) = x.dims3()?;
        let rows = frames / self.stride;
        let padded = x.pad_with_zeros(1, 1, 1)?;
        let tap = |tap: usize| {
            let seen = padded.narrow(1, tap, rows * self.stride)?;
            seen.reshape((windows, rows, self.stride, input))?.narrow(2, 0, 1)?.squeeze(2)
        };
        let taps = (0..TAPS).map(tap).collect::<Result<Vec<_>>>()?;
        let seen = Tensor::cat(&taps, 2)?.reshape((windows * rows, TAPS * input))?;
        self.linear.forward(&seen)?.reshape((windows, rows, ()))
    }
}

/// Samples to the frames of a window.
#[derive(Debug)]
struct Ear {
    mel: Mel,
    frames: usize,
    rows: usize,
}

impl Preprocess for Ear {
    fn footprint(&self, _: MediaSize) -> Result<Footprint, SizeError> {
        Ok(Footprint { memory: self.rows, ..Footprint::line(Vec::new()) })
    }

    fn has_one_shape(&self) -> bool {
        true
    }

    fn run(&self, medium: Medium<'_>) -> Result<Tensor> {
        let Medium::Sound { samples, frames, peak } = medium else {
            candle_core::bail!("this network hears, it does not see")
        };
        if frames.len() > self.frames {
            candle_core::bail!("{} frames are more than a window of {}", frames.len(), self.frames)
        }
        let missing = self.frames - frames.len();
        let heard = self.mel.frames(samples, frames, peak)?;
        heard.pad_with_zeros(0, 0, missing)?.unsqueeze(0)
    }
}
