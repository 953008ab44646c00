//! A linear layer, also as several that share their input and were stored apart.

use candle_core::{DType, IndexOp as _, Tensor};
use candle_nn::VarBuilder;
use percept_kernels::linear;

use crate::{Result, weights::join};

/// Whether a layer has a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bias {
    /// It has.
    Yes,
    /// It has none.
    No,
}

/// `x wᵀ + b`.
#[derive(Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// Loads `weight` `[output, input]` and, where there is one, `bias` `[output]`.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load(input: usize, output: usize, bias: Bias, vb: &VarBuilder<'_>) -> Result<Self> {
        let weight = vb.get((output, input), "weight")?;
        let bias = match bias {
            Bias::Yes => Some(vb.get(output, "bias")?),
            Bias::No => None,
        };
        Ok(Self { weight, bias })
    }

    /// Loads layers that read the same input and joins them into one, so that a step multiplies once.
    /// Outputs come one after another, in the order of `parts`: name, outputs and whether it has a bias.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn fused(input: usize, parts: &[(&str, usize, Bias)], vb: &VarBuilder<'_>) -> Result<Self> {
        let layers = parts
            .iter()
            .map(|(name, output, bias)| Self::load(input, *output, *bias, &vb.pp(name)))
            .collect::<Result<Vec<_>>>()?;
        let weight = join(&layers.iter().map(|layer| layer.weight.clone()).collect::<Vec<_>>())?;
        if layers.iter().all(|layer| layer.bias.is_none()) {
            return Ok(Self { weight, bias: None });
        }
        let biases = layers
            .into_iter()
            .map(|layer| layer.bias.map_or_else(|| layer.weight.i((.., 0))?.zeros_like(), Ok))
            .collect::<Result<Vec<_>>>()?;
        Ok(Self { weight, bias: Some(Tensor::cat(&biases, 0)?) })
    }

    /// A layer of a weight `[output, input]` and a bias that were loaded otherwise, such as an output tied to the
    /// embedding.
    pub fn of(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight, bias }
    }

    /// The type of its numbers.
    pub fn dtype(&self) -> DType {
        self.weight.dtype()
    }

    /// `x`: `[rows, input]`; returns `[rows, output]`. A row's result does not depend on the other rows, to the bit.
    ///
    /// # Errors
    /// When the width of `x` differs.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        linear(x, &self.weight, self.bias.as_ref())
    }
}
