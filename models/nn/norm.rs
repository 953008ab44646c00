//! Normalisation layers with their weights.

use candle_core::Tensor;
use candle_nn::VarBuilder;
use percept_kernels::{add_rms_norm, layer_norm, rms_norm};

use crate::Result;

/// RMSNorm: `x / sqrt(mean(x²) + eps) * weight`.
#[derive(Debug)]
pub struct RmsNorm {
    weight: Tensor,
    eps: f32,
}

impl RmsNorm {
    /// Loads `weight` `[width]`.
    ///
    /// # Errors
    /// When it is missing or has another shape.
    pub fn load(width: usize, eps: f64, vb: &VarBuilder<'_>) -> Result<Self> {
        Ok(Self { weight: vb.get(width, "weight")?, eps: eps as f32 })
    }

    /// `x`: `[rows, width]`.
    ///
    /// # Errors
    /// When the width of `x` differs.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        rms_norm(x, &self.weight, self.eps)
    }

    /// The sum of both `[rows, width]`, and that normalised, in one pass.
    ///
    /// # Errors
    /// When shapes differ.
    pub fn add(&self, x: &Tensor, residual: &Tensor) -> Result<(Tensor, Tensor)> {
        add_rms_norm(x, residual, &self.weight, self.eps)
    }
}

/// Either of the two.
#[derive(Debug)]
pub enum Norm {
    /// LayerNorm.
    Layer(LayerNorm),
    /// RMSNorm.
    Rms(RmsNorm),
}

impl Norm {
    /// `x`: `[rows, width]`.
    ///
    /// # Errors
    /// When the width of `x` differs.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Layer(norm) => norm.forward(x),
            Self::Rms(norm) => norm.forward(x),
        }
    }

    /// The sum of both `[rows, width]`, and that normalised.
    ///
    /// # Errors
    /// When shapes differ.
    pub fn add(&self, x: &Tensor, residual: &Tensor) -> Result<(Tensor, Tensor)> {
        match self {
            Self::Layer(norm) => {
                let sum = (x + residual)?;
                let normed = norm.forward(&sum)?;
                Ok((sum, normed))
            }
            Self::Rms(norm) => norm.add(x, residual),
        }
    }
}

/// LayerNorm: `(x - mean) / sqrt(variance + eps) * weight + bias`.
#[derive(Debug)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f32,
}

impl LayerNorm {
    /// Loads `weight` and `bias` `[width]`.
    ///
    /// # Errors
    /// When one is missing or has another shape.
    pub fn load(width: usize, eps: f64, vb: &VarBuilder<'_>) -> Result<Self> {
        Ok(Self { weight: vb.get(width, "weight")?, bias: vb.get(width, "bias")?, eps: eps as f32 })
    }

    /// `x`: `[rows, width]`.
    ///
    /// # Errors
    /// When the width of `x` differs.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        layer_norm(x, &self.weight, &self.bias, self.eps)
    }
}
