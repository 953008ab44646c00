//! Feed-forward layers and their activations.

use candle_core::Tensor;
use candle_nn::VarBuilder;

use super::linear::{Bias, Linear};
use crate::{LoadError, Result};

/// An activation, by the name that checkpoints give it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x · sigmoid(x)`.
    Silu,
    /// `x · Φ(x)`, exact.
    Gelu,
    /// `x · Φ(x)` by the usual tanh approximation.
    GeluTanh,
    /// `x · sigmoid(1.702 x)`.
    QuickGelu,
}

impl Activation {
    /// Reads `name`, found in the configuration under `key`.
    ///
    /// # Errors
    /// When it is another activation.
    pub fn parse(key: &str, name: &str) -> Result<Self, LoadError> {
        match name {
            "silu" => Ok(Self::Silu),
            "gelu" => Ok(Self::Gelu),
            "gelu_pytorch_tanh" => Ok(Self::GeluTanh),
            "quick_gelu" => Ok(Self::QuickGelu),
            _ => Err(LoadError::Unsupported {
                what: format!("{key} `{name}`"),
                supported: "silu, gelu, gelu_pytorch_tanh and quick_gelu".into(),
            }),
        }
    }

    /// Of every number of `x`.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn apply(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Silu => x.silu(),
            // candle's `gelu` is the tanh approximation.
            Self::Gelu => x.gelu_erf(),
            Self::GeluTanh => x.gelu(),
            Self::QuickGelu => x * candle_nn::ops::sigmoid(&(x * 1.702)?)?,
        }
    }
}

/// How the layers in front of the product are stored.
#[derive(Debug, Clone, Copy)]
pub enum GateUp {
    /// Two layers of these names.
    Apart(&'static str, &'static str),
    /// One layer, the gate first.
    Packed(&'static str),
}

/// `down(act(gate(x)) · up(x))`, gate and up multiplied at once.
#[derive(Debug)]
pub struct GatedMlp {
    gate_up: Linear,
    down: Linear,
    activation: Activation,
    width: usize,
}

impl GatedMlp {
    /// Loads layers from `hidden` to `width` and back, by their names and whether they have biases.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load(
        (hidden, width): (usize, usize),
        (gate_up, down, bias): (GateUp, &str, Bias),
        activation: Activation,
        vb: &VarBuilder<'_>,
    ) -> Result<Self> {
        let gate_up = match gate_up {
            GateUp::Apart(gate, up) => Linear::fused(hidden, &[(gate, width, bias), (up, width, bias)], vb)?,
            GateUp::Packed(name) => Linear::load(hidden, 2 * width, bias, &vb.pp(name))?,
        };
        Ok(Self { gate_up, down: Linear::load(width, hidden, bias, &vb.pp(down))?, activation, width })
    }

    /// `x`: `[rows, hidden]`.
    ///
    /// # Errors
    /// When the width of `x` differs.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let both = self.gate_up.forward(x)?;
        let gate = both.narrow(1, 0, self.width)?;
        let up = both.narrow(1, self.width, self.width)?;
        self.down.forward(&(self.activation.apply(&gate)? * up)?)
    }
}

/// `second(act(first(x)))`, with biases.
#[derive(Debug)]
pub struct Mlp {
    first: Linear,
    second: Linear,
    activation: Activation,
}

impl Mlp {
    /// Loads the layers named by `names`, from `sizes.0` over `sizes.1` to `sizes.2`.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load(
        names: (&str, &str),
        sizes: (usize, usize, usize),
        bias: Bias,
        activation: Activation,
        vb: &VarBuilder<'_>,
    ) -> Result<Self> {
        Ok(Self {
            first: Linear::load(sizes.0, sizes.1, bias, &vb.pp(names.0))?,
            second: Linear::load(sizes.1, sizes.2, bias, &vb.pp(names.1))?,
            activation,
        })
    }

    /// `x`: `[rows, input]`.
    ///
    /// # Errors
    /// When the width of `x` differs.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.second.forward(&self.activation.apply(&self.first.forward(x)?)?)
    }
}
