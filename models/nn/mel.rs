//! The ear of Whisper: log-mel spectra, floored and scaled as the reference does.

use std::ops::Range;

use candle_core::{Device, Tensor};
use percept_kernels::{MelBank, log_mel};

use crate::Result;

/// Samples per second.
pub const RATE: usize = 16_000;
/// Samples from one frame to the next.
pub const HOP: usize = 160;
/// Samples that a frame reaches to either side of its centre.
pub const REACH: usize = 200;

/// Turns samples into frames.
#[derive(Debug, Clone)]
pub struct Mel {
    bank: MelBank,
}

impl Mel {
    /// `mels` numbers a frame.
    pub fn new(mels: usize) -> Self {
        Self { bank: MelBank::new(mels) }
    }

    /// Numbers of a frame.
    pub fn mels(&self) -> usize {
        self.bank.mels()
    }

    /// The largest log10 mel power of `frames`; see [`Self::frames`]. Taken over a whole recording it decides what
    /// counts as silence in it.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn peak(&self, samples: &[f32], frames: Range<usize>) -> Result<f32> {
        if frames.is_empty() {
            return Ok(f32::NEG_INFINITY);
        }
        let samples = Tensor::from_slice(samples, samples.len(), &Device::Cpu)?;
        log_mel(&samples, frames, &self.bank)?.max_all()?.to_scalar::<f32>()
    }

    /// Frames as the network takes them, f32 `[frames, mels]`: log10 of the power, no less than eight below `peak`,
    /// then `(x + 4) / 4`.
    ///
    /// - `samples`: f32 `[count]`; in front of the first they are mirrored, behind the last they are silence
    /// - `frames`: frame `t` is centred on sample `160 t`
    ///
    /// # Errors
    /// When `samples` has another shape.
    pub fn frames(&self, samples: &Tensor, frames: Range<usize>, peak: f32) -> Result<Tensor> {
        let log = log_mel(samples, frames, &self.bank)?;
        (log.maximum(f64::from(peak) - 8.0)? + 4.0)? / 4.0
    }
}
