//! The attention layer: projections around the one attention operation.

use candle_core::{Device, Tensor};
use candle_nn::VarBuilder;
use percept_kernels::{Kv, Mask, Pages, Ragged, alignment, attention, kv_write};

use super::{
    linear::{Bias, Linear},
    norm::RmsNorm,
    rope::Rotation,
};
use crate::{
    Result,
    batch::{Batch, Remembered},
    cache::LayerCache,
    weights::dummy::is_outline,
};

/// Sizes of an attention layer.
#[derive(Debug, Clone, Copy)]
pub struct AttentionShape {
    /// Width of its input and output.
    pub hidden: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads, a divisor of `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}

/// Which projections have a bias.
#[derive(Debug, Clone, Copy)]
pub struct Biases {
    /// Queries, keys and values.
    pub qkv: [Bias; 3],
    /// The output.
    pub output: Bias,
}

impl Biases {
    /// All of them.
    pub const ALL: Self = Self { qkv: [Bias::Yes; 3], output: Bias::Yes };
    /// None of them.
    pub const NONE: Self = Self { qkv: [Bias::No; 3], output: Bias::No };
    /// All but the keys, as in Whisper: a constant added to all keys changes no softmax.
    pub const NOT_KEYS: Self = Self { qkv: [Bias::Yes, Bias::No, Bias::Yes], output: Bias::Yes };
}

/// How queries, keys and values are stored.
#[derive(Debug, Clone, Copy)]
pub enum Qkv {
    /// Three layers of these names.
    Apart(&'static str, &'static str, &'static str),
    /// One layer: all queries, all keys, all values.
    Packed(&'static str),
    /// One layer: for each key head its queries, its key and its value, as in InternLM2.
    Grouped(&'static str),
}

impl AttentionShape {
    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }
}

/// Self-attention with queries, keys and values projected at once.
#[derive(Debug)]
pub struct SelfAttention {
    qkv: Linear,
    output: Linear,
    shape: AttentionShape,
    window: Option<usize>,
}

impl SelfAttention {
    /// Loads `q_proj`, `k_proj`, `v_proj` and the output layer named `output`.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load(shape: AttentionShape, biases: Biases, output: &str, vb: &VarBuilder<'_>) -> Result<Self> {
        Self::load_named(shape, biases, Qkv::Apart("q_proj", "k_proj", "v_proj"), output, vb)
    }

    /// Loads what `qkv` names and the output layer named `output`.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load_named(
        shape: AttentionShape,
        biases: Biases,
        qkv: Qkv,
        output: &str,
        vb: &VarBuilder<'_>,
    ) -> Result<Self> {
        let AttentionShape { hidden, heads, kv_heads, head_dim } = shape;
        let [q, k, v] = biases.qkv;
        let all = (heads + 2 * kv_heads) * head_dim;
        let qkv = match qkv {
            Qkv::Apart(queries, keys, values) => {
                let parts = [
                    (queries, heads * head_dim, q),
                    (keys, kv_heads * head_dim, k),
                    (values, kv_heads * head_dim, v),
                ];
                Linear::fused(hidden, &parts, vb)?
            }
            Qkv::Packed(name) => Linear::load(hidden, all, q, &vb.pp(name))?,
            Qkv::Grouped(name) => {
                let group = heads / kv_heads;
                // Rows of one key head: its queries, its key, its value.
                let regrouped = |rows: Tensor| {
                    if is_outline(&rows) {
                        return Ok(rows);
                    }
                    let rest = rows.elem_count() / all;
                    let rows = rows.reshape((kv_heads, group + 2, head_dim, rest))?;
                    let part = |first, count| rows.narrow(1, first, count)?.flatten_to(2);
                    Tensor::cat(&[part(0, group)?, part(group, 1)?, part(group + 1, 1)?], 0)
                };
                let weight = regrouped(vb.pp(name).get((all, hidden), "weight")?)?;
                let bias = match q {
                    Bias::Yes => Some(regrouped(vb.pp(name).get(all, "bias")?)?.flatten_all()?),
                    Bias::No => None,
                };
                Linear::of(weight, bias)
            }
        };
        Ok(Self {
            qkv,
            output: Linear::load(heads * head_dim, hidden, biases.output, &vb.pp(output))?,
            shape,
            window: None,
        })
    }

    /// The same where a row sees no more than so many rows, itself included.
    pub fn within(self, window: Option<usize>) -> Self {
        Self { window, ..self }
    }

    /// Every row sees all rows of its sequence. Queries and keys are rotated where positions are told that way. `x`:
    /// `[rows, hidden]`.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn full(&self, x: &Tensor, rotation: Option<&Rotation>, rows: &Ragged) -> Result<Tensor> {
        let (mut q, mut k, v) = self.project(x)?;
        if let Some(rotation) = rotation {
            (q, k) = (rotation.apply(&q)?, rotation.apply(&k)?);
        }
        self.output(&attention(&q, Kv::Fresh { k: &k, v: &v }, rows, Mask::Full, self.shape.scale())?)
    }

    /// Every row sees itself and what came before, and nothing is kept: the sequences are whole. `x`: `[rows, hidden]`.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn ordered(&self, x: &Tensor, rows: &Ragged) -> Result<Tensor> {
        let (q, k, v) = self.project(x)?;
        self.output(&attention(&q, Kv::Fresh { k: &k, v: &v }, rows, Mask::Causal, self.shape.scale())?)
    }

    /// Every row sees what `sight` shows it. `x`: `[rows, hidden]`.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn partial(&self, x: &Tensor, sight: &Sight) -> Result<Tensor> {
        let AttentionShape { kv_heads, head_dim, .. } = self.shape;
        let (q, k, v) = self.project(x)?;
        // Rows that were just computed are read like a cache.
        let paged = |rows: Tensor| rows.contiguous()?.reshape(((), Sight::PAGE, kv_heads, head_dim));
        let (k, v) = (paged(k)?, paged(v)?);
        let kv = Kv::Paged { k: &k, v: &v, pages: &sight.pages };
        self.output(&attention(&q, kv, &sight.runs, Mask::Full, self.shape.scale())?)
    }

    /// Every row sees itself and what came before; keys and values go to the cache. Queries and keys are rotated
    /// where positions are told that way. `x`: `[rows, hidden]`.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn causal(
        &self,
        x: &Tensor,
        rotation: Option<&Rotation>,
        batch: &Batch,
        cache: &LayerCache,
    ) -> Result<Tensor> {
        let (mut q, mut k, v) = self.project(x)?;
        if let Some(rotation) = rotation {
            (q, k) = (rotation.apply(&q)?, rotation.apply(&k)?);
        }
        kv_write(&cache.k, &k, &batch.text.slots)?;
        kv_write(&cache.v, &v, &batch.text.slots)?;
        let kv = Kv::Paged { k: &cache.k, v: &cache.v, pages: &batch.text.pages };
        let mask = self.window.map_or(Mask::Causal, Mask::Window);
        self.output(&attention(&q, kv, &batch.rows, mask, self.shape.scale())?)
    }

    fn project(&self, x: &Tensor) -> Result<(Tensor, Tensor, Tensor)> {
        let AttentionShape { heads, kv_heads, head_dim, .. } = self.shape;
        let all = self.qkv.forward(x)?;
        let all = all.reshape((x.dim(0)?, heads + 2 * kv_heads, head_dim))?;
        Ok((
            all.narrow(1, 0, heads)?,
            all.narrow(1, heads, kv_heads)?,
            all.narrow(1, heads + kv_heads, kv_heads)?,
        ))
    }

    fn output(&self, attended: &Tensor) -> Result<Tensor> {
        self.output.forward(&attended.flatten_from(1)?)
    }
}

/// Which rows of a step each of its rows sees, where that is neither what came before nor all of its sequence.
#[derive(Debug)]
pub struct Sight {
    runs: Ragged,
    pages: Pages,
}

impl Sight {
    /// The rows of a step are a multiple of this.
    pub const PAGE: usize = 8;

    /// Runs of rows, end to end, each with the rows that it sees: their first, a multiple of [`Self::PAGE`], and how
    /// many they are.
    ///
    /// # Errors
    /// When the device refuses the upload.
    pub fn new(runs: &[(usize, (usize, usize))], device: &Device) -> Result<Self> {
        let most = runs.iter().map(|(_, (_, count))| count.div_ceil(Self::PAGE)).max().unwrap_or(0);
        // Places behind the last page of a run are not read.
        let table = runs.iter().flat_map(|(_, (first, _))| {
            let page = (first / Self::PAGE) as u32;
            page..page + most as u32
        });
        let lengths = runs.iter().map(|(_, (_, count))| *count as u32).collect::<Vec<_>>();
        let rows = runs.iter().map(|(rows, _)| *rows).collect::<Vec<_>>();
        Ok(Self {
            runs: Ragged::new(&rows, device)?,
            pages: Pages {
                table: Tensor::from_vec(table.collect(), (runs.len(), most), device)?,
                lengths: Tensor::from_vec(lengths, runs.len(), device)?,
            },
        })
    }
}

/// Attention to a memory: rows that were encoded before the text began, whose keys and values lie in pages of the cache.
#[derive(Debug)]
pub struct CrossAttention {
    query: Linear,
    key_value: Linear,
    output: Linear,
    norms: Option<(RmsNorm, RmsNorm)>,
    shape: AttentionShape,
}

impl CrossAttention {
    /// Loads `q_proj`, `k_proj`, `v_proj` and the output layer named `output`; the memory is as wide as the text.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load(shape: AttentionShape, biases: Biases, output: &str, vb: &VarBuilder<'_>) -> Result<Self> {
        let AttentionShape { hidden, heads, kv_heads, head_dim } = shape;
        let [q, k, v] = biases.qkv;
        let parts = [("k_proj", kv_heads * head_dim, k), ("v_proj", kv_heads * head_dim, v)];
        Ok(Self {
            query: Linear::load(hidden, heads * head_dim, q, &vb.pp("q_proj"))?,
            key_value: Linear::fused(hidden, &parts, vb)?,
            output: Linear::load(heads * head_dim, hidden, biases.output, &vb.pp(output))?,
            norms: None,
            shape,
        })
    }

    /// The same where each head of queries and keys is normalised, by `q_norm` and `k_norm`.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn normed(self, eps: f64, vb: &VarBuilder<'_>) -> Result<Self> {
        let norm = |name| RmsNorm::load(self.shape.head_dim, eps, &vb.pp(name));
        Ok(Self { norms: Some((norm("q_norm")?, norm("k_norm")?)), ..self })
    }

    /// Writes keys and values of `encoded` `[rows, hidden]` into `slots` of the cache.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn remember(&self, encoded: &Tensor, slots: &Tensor, cache: &LayerCache) -> Result<()> {
        let AttentionShape { kv_heads, head_dim, .. } = self.shape;
        let both = self.key_value.forward(encoded)?;
        let both = both.reshape((encoded.dim(0)?, 2 * kv_heads, head_dim))?;
        let mut keys = both.narrow(1, 0, kv_heads)?;
        if let Some((_, norm)) = &self.norms {
            keys = norm.forward(&keys.contiguous()?)?;
        }
        kv_write(&cache.k, &keys, slots)?;
        kv_write(&cache.v, &both.narrow(1, kv_heads, kv_heads)?, slots)
    }

    /// Queries `[rows, heads, head_dim]` of `x` `[rows, hidden]`.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn queries(&self, x: &Tensor) -> Result<Tensor> {
        let AttentionShape { heads, head_dim, .. } = self.shape;
        let queries = self.query.forward(x)?.reshape((x.dim(0)?, heads, head_dim))?;
        match &self.norms {
            Some((norm, _)) => norm.forward(&queries),
            None => Ok(queries),
        }
    }

    /// Every row sees what it remembers. `queries`: of [`Self::queries`]; returns `[rows, hidden]`, of zeros where the
    /// output has no bias and nothing is seen.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn attend(&self, queries: &Tensor, memory: &Remembered, cache: &LayerCache) -> Result<Tensor> {
        let kv = Kv::Paged { k: &cache.k, v: &cache.v, pages: &memory.pages };
        let attended = attention(queries, kv, &memory.rows, Mask::Full, self.shape.scale())?;
        self.output.forward(&attended.flatten_from(1)?)
    }

    /// Where the rows of one sequence look in the first `frames` rows of its memory, summed over `heads`:
    /// `[rows, frames]`; see [`percept_kernels::alignment`]. `pages`: u32 `[pages]`.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn alignment(
        &self,
        queries: &Tensor,
        pages: &Tensor,
        cache: &LayerCache,
        heads: &[usize],
        frames: usize,
    ) -> Result<Tensor> {
        alignment(queries, &cache.k, pages, heads, frames, self.shape.scale())
    }
}
