//! The attention layer: projections around the one attention operation.

use candle_core::Tensor;
use candle_nn::VarBuilder;
use percept_kernels::{Kv, Mask, Ragged, attention, kv_write};

use super::{
    linear::{Bias, Linear},
    rope::Rotation,
};
use crate::{Result, batch::Batch, cache::LayerCache};

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

/// Self-attention with queries, keys and values projected at once.
#[derive(Debug)]
pub struct SelfAttention {
    qkv: Linear,
    output: Linear,
    shape: AttentionShape,
}

impl SelfAttention {
    /// Loads `q_proj`, `k_proj`, `v_proj` and the output layer named `output`.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load(shape: AttentionShape, bias: Bias, output: &str, vb: &VarBuilder<'_>) -> Result<Self> {
        let AttentionShape { hidden, heads, kv_heads, head_dim } = shape;
        let parts =
            [("q_proj", heads * head_dim), ("k_proj", kv_heads * head_dim), ("v_proj", kv_heads * head_dim)];
        Ok(Self {
            qkv: Linear::fused(hidden, &parts, bias, vb)?,
            output: Linear::load(heads * head_dim, hidden, bias, &vb.pp(output))?,
            shape,
        })
    }

    /// Every row sees all rows of its sequence. `x`: `[rows, hidden]`.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn full(&self, x: &Tensor, rows: &Ragged) -> Result<Tensor> {
        let (q, k, v) = self.project(x)?;
        self.output(&attention(&q, Kv::Fresh { k: &k, v: &v }, rows, Mask::Full, self.scale())?)
    }

    /// Every row sees itself and what came before; keys and values go to the cache. `x`: `[rows, hidden]`.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn causal(
        &self,
        x: &Tensor,
        rotation: &Rotation,
        batch: &Batch,
        cache: &LayerCache,
    ) -> Result<Tensor> {
        let (q, k, v) = self.project(x)?;
        let (q, k) = (rotation.apply(&q)?, rotation.apply(&k)?);
        kv_write(&cache.k, &k, &batch.text.slots)?;
        kv_write(&cache.v, &v, &batch.text.slots)?;
        let kv = Kv::Paged { k: &cache.k, v: &cache.v, pages: &batch.text.pages };
        self.output(&attention(&q, kv, &batch.rows, Mask::Causal, self.scale())?)
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

    fn scale(&self) -> f32 {
        1.0 / (self.shape.head_dim as f32).sqrt()
    }
}
