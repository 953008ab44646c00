//! Rotary position embedding, half-split as in Llama (<https://arxiv.org/abs/2104.09864>).

use candle_core::{DType, Device, Tensor};
use candle_nn::rotary_emb::rope_thd;

use crate::Result;

/// Sines and cosines of every position, in f32: in bf16 far positions would fall together.
#[derive(Debug)]
pub struct Rope {
    cos: Tensor,
    sin: Tensor,
    dtype: DType,
}

/// Sines and cosines of the rows of one step, shared by all layers.
#[derive(Debug)]
pub struct Rotation {
    cos: Tensor,
    sin: Tensor,
}

impl Rope {
    /// Tables for `positions` positions: angle `p · theta^(-2i / head_dim)`.
    ///
    /// # Errors
    /// When the device refuses the upload.
    pub fn new(head_dim: usize, theta: f64, positions: usize, dtype: DType, device: &Device) -> Result<Self> {
        let half = head_dim / 2;
        let frequency = |i: usize| (1.0 / theta.powf(2.0 * i as f64 / head_dim as f64)) as f32;
        let angles: Vec<f32> =
            (0..positions).flat_map(|p| (0..half).map(move |i| p as f32 * frequency(i))).collect();
        let angles = Tensor::from_vec(angles, (positions, half), device)?;
        Ok(Self { cos: angles.cos()?, sin: angles.sin()?, dtype })
    }

    /// `positions`: u32 `[rows]`.
    ///
    /// # Errors
    /// When a position lies outside the tables.
    pub fn at(&self, positions: &Tensor) -> Result<Rotation> {
        let gather = |table: &Tensor| table.index_select(positions, 0)?.to_dtype(self.dtype);
        Ok(Rotation { cos: gather(&self.cos)?, sin: gather(&self.sin)? })
    }
}

impl Rotation {
    /// Rotates `x` `[rows, heads, head_dim]`.
    ///
    /// # Errors
    /// When the rows differ from those of the positions.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        rope_thd(&x.contiguous()?.unsqueeze(0)?, &self.cos, &self.sin)?.squeeze(0)
    }
}
