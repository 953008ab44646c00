//! Feed-forward layers and their activations.

use candle_core::Tensor;
use candle_nn::VarBuilder;
use percept_kernels::gated;
pub use percept_kernels::{Activation, activate};

use super::linear::{Bias, Linear};
use crate::{LoadError, Result};

/// Reads the activation that a checkpoint calls `name`, found in the configuration under `key`.
///
/// # Errors
/// When it is another activation.
pub fn read_activation(key: &str, name: &str) -> Result<Activation, LoadError> {
    match name {
        "silu" => Ok(Activation::Silu),
        "gelu" => Ok(Activation::Gelu),
        "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
        "quick_gelu" => Ok(Activation::QuickGelu),
        _ => Err(LoadError::Unsupported {
            what: format!("{key} `{name}`"),
            supported: "silu, gelu, gelu_pytorch_tanh and quick_gelu".into(),
        }),
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
        Ok(Self { gate_up, down: Linear::load(width, hidden, bias, &vb.pp(down))?, activation })
    }

    /// `x`: `[rows, hidden]`.
    ///
    /// # Errors
    /// When the width of `x` differs.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.down.forward(&gated(&self.gate_up.forward(x)?, self.activation)?)
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
        self.second.forward(&activate(&self.first.forward(x)?, self.activation)?)
    }
}
