//! Log-mel spectra, as openai/whisper computes them.
//!
//! Reference: `whisper/audio.py` of openai/whisper, `log_mel_spectrogram`: frames of 400 samples every 160, the first one
//! centred on the first sample, a periodic Hann window, power, a mel filter bank in librosa's slaney scale and norm.

use std::{f64::consts::PI, ops::Range, sync::Arc};

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, WithDType, bail};
use rayon::prelude::*;
use realfft::{RealFftPlanner, RealToComplex};

use crate::view::contiguous;
#[cfg(feature = "cuda")]
use crate::{
    cuda,
    launch::{Element, MelTables},
};

/// Samples per second.
const RATE: f64 = 16_000.0;
/// Samples of a frame.
const WINDOW: usize = 400;
/// Samples from one frame to the next.
const HOP: usize = 160;
/// Frequencies of a frame's spectrum: 0 to 8000 Hz.
const BINS: usize = WINDOW / 2 + 1;
/// Smaller powers count as this one.
const LEAST: f32 = 1e-10;

/// A bank of mel filters with what is needed to apply it.
#[derive(Clone)]
pub struct MelBank {
    filters: Arc<[Filter]>,
    window: Arc<[f32]>,
    transform: Arc<dyn RealToComplex<f32>>,
}

/// A triangle over neighbouring frequencies.
struct Filter {
    first: usize,
    weights: Vec<f32>,
}

impl std::fmt::Debug for MelBank {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "MelBank({})", self.mels())
    }
}

impl MelBank {
    /// `mels` filters from 0 to 8000 Hz, 80 or 128 in published checkpoints.
    pub fn new(mels: usize) -> Self {
        let most = to_mel(RATE / 2.0);
        let edges: Vec<f64> =
            (0..mels + 2).map(|index| to_hertz(most * index as f64 / (mels + 1) as f64)).collect();
        let filter = |edges: &[f64]| {
            let (low, centre, high) = (edges[0], edges[1], edges[2]);
            let weight = |bin: usize| {
                let hertz = bin as f64 * RATE / WINDOW as f64;
                let height = ((hertz - low) / (centre - low)).min((high - hertz) / (high - centre)).max(0.0);
                // Slaney's norm: every filter has the same area.
                (height * 2.0 / (high - low)) as f32
            };
            let weights: Vec<f32> = (0..BINS).map(weight).collect();
            let first = weights.iter().position(|&weight| weight > 0.0).unwrap_or(0);
            let end = weights.iter().rposition(|&weight| weight > 0.0).map_or(first, |last| last + 1);
            Filter { first, weights: weights[first..end].to_vec() }
        };
        let hann = |index: usize| (0.5 - 0.5 * (2.0 * PI * index as f64 / WINDOW as f64).cos()) as f32;
        Self {
            filters: edges.windows(3).map(filter).collect(),
            window: (0..WINDOW).map(hann).collect(),
            transform: RealFftPlanner::new().plan_fft_forward(WINDOW),
        }
    }

    /// Filters.
    pub fn mels(&self) -> usize {
        self.filters.len()
    }

    /// The window of a frame.
    pub(crate) fn window(&self) -> &[f32] {
        &self.window
    }

    /// Of each filter: its first frequency, and its weights.
    pub(crate) fn filters(&self) -> impl Iterator<Item = (usize, &[f32])> {
        self.filters.iter().map(|filter| (filter.first, filter.weights.as_slice()))
    }
}

/// Of the slaney scale: linear up to 1000 Hz, logarithmic above.
fn to_mel(hertz: f64) -> f64 {
    if hertz < 1000.0 { hertz * 3.0 / 200.0 } else { 15.0 + (hertz / 1000.0).ln() * 27.0 / 6.4f64.ln() }
}

fn to_hertz(mel: f64) -> f64 {
    if mel < 15.0 { mel * 200.0 / 3.0 } else { 1000.0 * ((mel - 15.0) * 6.4f64.ln() / 27.0).exp() }
}

/// `log10(max(mel power, 1e-10))` of some frames of a recording. The two steps that follow in the reference, a floor
/// eight below the largest value and a scale, need to know of all frames and are the caller's.
///
/// - `samples`: f32 `[count]`, mono at 16 kHz, contiguous. In front of the first they are mirrored, behind the last they
///   are zero
/// - `frames`: frame `t` is centred on sample `160 t`
/// - returns f32 `[frames, mels]`, contiguous
///
/// # Errors
/// When `samples` has another shape or type.
pub fn log_mel(samples: &Tensor, frames: Range<usize>, bank: &MelBank) -> Result<Tensor> {
    if samples.rank() != 1 || samples.dtype() != candle_core::DType::F32 {
        bail!("log_mel: {:?} {:?} is not a row of f32 samples", samples.shape(), samples.dtype())
    }
    samples.apply_op1_no_bwd(&LogMel { frames, bank: bank.clone() })
}

struct LogMel {
    frames: Range<usize>,
    bank: MelBank,
}

impl CustomOp1 for LogMel {
    fn name(&self) -> &'static str {
        "log-mel"
    }

    fn cpu_fwd(&self, samples: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        /// Frames of a task.
        const TASK: usize = 32;
        let samples = contiguous::<f32>(samples, layout, "samples")?;
        let mels = self.bank.mels();
        let mut out = vec![0f32; self.frames.len() * mels];
        out.par_chunks_mut((TASK * mels).max(1)).enumerate().for_each(|(task, out)| {
            let mut work = Work::new(&self.bank);
            for (frame, out) in out.chunks_mut(mels).enumerate() {
                work.frame(samples, self.frames.start + task * TASK + frame, out);
            }
        });
        Ok((f32::to_cpu_storage_owned(out), (self.frames.len(), mels).into()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, samples: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let device = &samples.device;
        let stream = &device.cuda_stream();
        let (count, frames, mels) = (layout.shape().elem_count(), self.frames.len(), self.bank.mels());
        let samples = cuda::contiguous(samples, layout, Element::F32, "samples", stream)?;
        let tables = MelTables::new(&self.bank);
        let window = device.clone_htod(tables.window.as_slice())?;
        let cosine = device.clone_htod(tables.cosine.as_slice())?;
        let filters = device.clone_htod(tables.filters.as_slice())?;
        let weights = device.clone_htod(tables.weights.as_slice())?;
        // SAFETY: the kernel writes every element: its blocks cover all frames.
        let mut out = unsafe { device.alloc::<f32>((frames * mels).max(1))? };
        let addresses = [cuda::address_mut(&mut out, stream), samples.address];
        let [window, cosine, weights] =
            [&window, &cosine, &weights].map(|table| cuda::address(table, stream));
        let tables_at = [window, cosine, cuda::address(&filters, stream), weights];
        if let Some(launch) = tables.launch(addresses, tables_at, [count, self.frames.start, frames])? {
            // SAFETY: `log_mel` has checked that samples are a row of f32, all of it inside its storage; the tables are a
            // bank's, and out was made for the launch.
            unsafe { cuda::run(device, &cuda::LOG_MEL, &launch)? }
        }
        drop(samples);
        Ok((CudaStorage::wrap_cuda_slice(out, device.clone()), (frames, mels).into()))
    }
}

/// What one thread needs.
struct Work<'a> {
    bank: &'a MelBank,
    frame: Vec<f32>,
    spectrum: Vec<realfft::num_complex::Complex<f32>>,
    scratch: Vec<realfft::num_complex::Complex<f32>>,
    power: [f32; BINS],
}

impl<'a> Work<'a> {
    fn new(bank: &'a MelBank) -> Self {
        Self {
            bank,
            frame: bank.transform.make_input_vec(),
            spectrum: bank.transform.make_output_vec(),
            scratch: bank.transform.make_scratch_vec(),
            power: [0.0; BINS],
        }
    }

    fn frame(&mut self, samples: &[f32], frame: usize, out: &mut [f32]) {
        let first = (frame * HOP) as isize - (WINDOW / 2) as isize;
        for ((place, window), offset) in self.frame.iter_mut().zip(&*self.bank.window).zip(0..) {
            // Mirrored without repeating the first sample.
            let at = (first + offset).unsigned_abs();
            *place = window * samples.get(at).copied().unwrap_or(0.0);
        }
        self.bank
            .transform
            .process_with_scratch(&mut self.frame, &mut self.spectrum, &mut self.scratch)
            .expect("all lengths are the plan's own");
        for (power, bin) in self.power.iter_mut().zip(&self.spectrum) {
            *power = bin.norm_sqr();
        }
        for (out, filter) in out.iter_mut().zip(&*self.bank.filters) {
            let bins = &self.power[filter.first..];
            let mel: f32 = filter.weights.iter().zip(bins).map(|(weight, power)| weight * power).sum();
            *out = mel.max(LEAST).log10();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Figures of `whisper/assets/mel_filters.npz`.
    #[test]
    fn filters_are_those_that_whisper_ships() {
        for (mels, count, sum, most) in
            [(80, 391, 1.999_024_2, 0.025_880_683), (128, 394, 3.190_985_7, 0.041_681_75)]
        {
            let bank = MelBank::new(mels);
            let weights = bank.filters.iter().flat_map(|filter| &filter.weights);
            assert_eq!(weights.clone().filter(|&&weight| weight > 0.0).count(), count);
            let total: f64 = weights.clone().map(|&weight| f64::from(weight)).sum();
            assert!((total - sum).abs() < 1e-6, "{mels}: {total}");
            let largest = weights.fold(0f32, |most, &weight| most.max(weight));
            assert!((f64::from(largest) - most).abs() < 1e-8, "{mels}: {largest}");
        }
        let row = &MelBank::new(80).filters[40];
        assert_eq!((row.first, row.weights.len()), (42, 3));
        for (found, expected) in row.weights.iter().zip([0.005_411_1, 0.014_735_6, 0.006_518_2]) {
            assert!((found - expected).abs() < 1e-6, "{found}");
        }
        let first = &MelBank::new(128).filters[0];
        assert!(first.first == 1 && (first.weights[0] - 0.012_373_99).abs() < 1e-7);
    }
}
