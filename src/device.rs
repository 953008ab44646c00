//! Which device models are computed on: what was asked for, and what is there.

use std::{fmt, str::FromStr};

use candle_core::{DType, Device};
use percept_models::nn::device::{DeviceMemory, device_memory, device_name, open_cuda};
use tracing::info;

use crate::{
    memory::{Budget, free_memory},
    plan::Memory,
};

/// How much of a GPU is used where nothing else is said: its driver and libraries need some, too.
pub const GPU_SHARE: f64 = 0.9;
/// How much of this machine's free memory is.
pub const HOST_SHARE: f64 = 0.5;

/// What holds on a device where nothing else is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Defaults {
    /// The type of weights and activations.
    pub dtype: DType,
    /// Most rows of a step.
    pub step_rows: usize,
}

/// On a CPU: the most exact type, and steps that are over soon.
pub const ON_HOST: Defaults = Defaults { dtype: DType::F32, step_rows: 512 };
/// On a GPU: the type that its tensor cores are for, and that published weights have; a step that takes a picture of 336x336
/// and a question about it as a whole, since a second one would read all weights again.
pub const ON_GPU: Defaults = Defaults { dtype: DType::BF16, step_rows: 1024 };

/// A device, as it is asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first CUDA GPU if there is one, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// A CUDA GPU, counted from 0.
    Cuda(usize),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let ordinal = match text {
            "auto" => return Ok(Self::Auto),
            "cpu" => return Ok(Self::Cpu),
            "cuda" => Some(0),
            other => other.strip_prefix("cuda:").and_then(|ordinal| ordinal.parse().ok()),
        };
        let unknown = || format!("{text} is no device: write auto, cpu, cuda or cuda:1");
        ordinal.map(Self::Cuda).ok_or_else(unknown)
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => formatter.write_str("auto"),
            Self::Cpu => formatter.write_str("cpu"),
            Self::Cuda(ordinal) => write!(formatter, "cuda:{ordinal}"),
        }
    }
}

/// Why there is no device.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// This program cannot use GPUs at all.
    #[error(
        "{choice} needs a percept that was built with CUDA: cargo build --release --features cuda, or take --device cpu"
    )]
    NotBuilt {
        /// What was asked for.
        choice: DeviceChoice,
    },
    /// The GPU is not there, or its driver is too old.
    #[error("{choice} cannot be used: {error}; nvidia-smi lists GPUs and the driver's version")]
    NotThere {
        /// What was asked for.
        choice: DeviceChoice,
        /// Why.
        error: candle_core::Error,
    },
}

/// Where models will be computed.
#[derive(Debug, Clone, PartialEq)]
pub enum Place {
    /// On the CPU.
    Host,
    /// On a GPU.
    Gpu {
        /// Counted from 0.
        ordinal: usize,
        /// What it calls itself.
        name: String,
        /// Its memory, before any model is loaded.
        memory: DeviceMemory,
    },
}

impl Place {
    /// Looks for what was asked for, and says in the log what was found.
    ///
    /// # Errors
    /// When it is not there.
    pub fn find(choice: DeviceChoice) -> Result<Self, DeviceError> {
        let ordinal = match choice {
            DeviceChoice::Cpu => return Ok(Self::Host),
            DeviceChoice::Auto if !cfg!(feature = "cuda") => return Ok(Self::Host),
            DeviceChoice::Cuda(_) if !cfg!(feature = "cuda") => return Err(DeviceError::NotBuilt { choice }),
            DeviceChoice::Auto => 0,
            DeviceChoice::Cuda(ordinal) => ordinal,
        };
        match Self::gpu(ordinal) {
            Ok(place) => {
                info!(device = %DeviceChoice::Cuda(ordinal), "{place}");
                Ok(place)
            }
            Err(error) if choice == DeviceChoice::Auto => {
                info!(%error, "no GPU can be used: computing on the CPU");
                Ok(Self::Host)
            }
            Err(error) => Err(DeviceError::NotThere { choice, error }),
        }
    }

    fn gpu(ordinal: usize) -> candle_core::Result<Self> {
        let device = open_cuda(ordinal)?;
        let (Some(name), Some(memory)) = (device_name(&device)?, device_memory(&device)?) else {
            candle_core::bail!("it is no GPU")
        };
        Ok(Self::Gpu { ordinal, name, memory })
    }

    /// A device for one engine, with a stream of its own.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn open(&self) -> candle_core::Result<Device> {
        match self {
            Self::Host => Ok(Device::Cpu),
            Self::Gpu { ordinal, .. } => open_cuda(*ordinal),
        }
    }

    /// What holds where nothing else is said.
    pub fn defaults(&self) -> Defaults {
        match self {
            Self::Host => ON_HOST,
            Self::Gpu { .. } => ON_GPU,
        }
    }

    /// Its memory, and what of it may be used.
    pub fn memory(&self, budget: Option<Budget>) -> Memory {
        match self {
            Self::Host => Memory::here(budget.unwrap_or(Budget::Share(HOST_SHARE)), free_memory()),
            Self::Gpu { name, memory, .. } => {
                let budget = budget.unwrap_or(Budget::Share(GPU_SHARE)).bytes(memory.total).min(memory.free);
                Memory { name: name.clone(), total: memory.total, budget }
            }
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => formatter.write_str("computing on the CPU"),
            Self::Gpu { name, .. } => write!(formatter, "computing on {name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_as_pytorch_names_them() {
        let parse = |text: &str| text.parse::<DeviceChoice>();
        assert_eq!(parse("auto"), Ok(DeviceChoice::Auto));
        assert_eq!(parse("cpu"), Ok(DeviceChoice::Cpu));
        assert_eq!(parse("cuda"), Ok(DeviceChoice::Cuda(0)));
        assert_eq!(parse("cuda:3"), Ok(DeviceChoice::Cuda(3)));
        for text in ["gpu", "cuda:", "cuda:x", "cpu:0", "auto:1", "cuda:-1", ""] {
            assert!(parse(text).is_err_and(|error| error.contains("is no device")), "{text}");
        }
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_build_without_cuda_computes_on_the_cpu_and_says_what_a_gpu_needs() {
        assert_eq!(Place::find(DeviceChoice::Auto).expect("the CPU is there"), Place::Host);
        let error = Place::find(DeviceChoice::Cuda(1)).expect_err("there is no CUDA").to_string();
        assert!(error.starts_with("cuda:1 needs a percept that was built with CUDA"), "{error}");
    }
}
