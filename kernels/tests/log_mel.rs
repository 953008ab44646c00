//! Log-mel spectra beside figures of the reference and a transform that is written out in f64.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::f64::consts::PI;

use candle_core::{DType, Device, Tensor};
use percept_kernels::{MelBank, log_mel};

fn spectra(samples: &[f32], frames: std::ops::Range<usize>, mels: usize) -> Vec<Vec<f32>> {
    let samples = Tensor::from_slice(samples, samples.len(), &Device::Cpu).unwrap();
    log_mel(&samples, frames, &MelBank::new(mels)).unwrap().to_vec2().unwrap()
}

/// The two steps that need all frames: the floor and the scale.
fn scaled(spectra: &[Vec<f32>]) -> Vec<Vec<f32>> {
    let most = spectra.iter().flatten().fold(f32::MIN, |most, &value| most.max(value));
    spectra
        .iter()
        .map(|frame| frame.iter().map(|value| (value.max(most - 8.0) + 4.0) / 4.0).collect())
        .collect()
}

/// One second of two tones and thirty of silence, by openai/whisper in f64: `[mel, frame]`.
#[test]
fn two_tones_and_silence() {
    let tone = |n: usize| {
        let time = n as f64 / 16_000.0;
        (0.5 * (2.0 * PI * 440.0 * time).sin() + 0.25 * (2.0 * PI * 3000.0 * time).sin()) as f32
    };
    let mut samples: Vec<f32> = (0..16_000).map(tone).collect();
    samples.resize(16_000 + 480_000, 0.0);
    for (mels, most, means, points) in [
        (
            80,
            1.752_815,
            [-0.404_621, -0.556_226],
            &[
                (0, 0, 0.99670),
                (0, 50, -0.56180),
                (10, 50, 1.34874),
                (11, 50, 1.43820),
                (12, 50, 1.29352),
                (40, 0, 0.21323),
                (40, 50, -0.56180),
                (10, 99, 1.34950),
                (10, 100, 1.26860),
                (10, 101, 0.36116),
            ][..],
        ),
        (
            128,
            1.941_416,
            [-0.384_245, -0.509_973],
            &[
                (0, 0, 0.92094),
                (10, 50, -0.51465),
                (40, 0, 0.67834),
                (10, 99, 0.28849),
                (10, 100, 0.84478),
                (10, 101, 0.28849),
            ],
        ),
    ] {
        let spectra = spectra(&samples, 0..3100, mels);
        let largest = spectra.iter().flatten().fold(f32::MIN, |most, &value| most.max(value));
        assert!((largest - most).abs() < 1e-4, "{mels}: {largest}");
        let scaled = scaled(&spectra);
        for &(mel, frame, expected) in points {
            let found = scaled[frame][mel];
            assert!((found - expected).abs() < 1e-4, "{mels} at {mel}, {frame}: {found} is not {expected}");
        }
        for (frames, expected) in [100, 3100].into_iter().zip(means) {
            let sum: f64 = scaled[..frames].iter().flatten().map(|&value| f64::from(value)).sum();
            let mean = sum / (frames * mels) as f64;
            assert!((mean - expected).abs() < 1e-4, "{mels}, {frames} frames: {mean}");
        }
    }
}

/// Every step in f64, with a transform that is a sum.
fn formula(samples: &[f32], frame: usize, mels: usize) -> Vec<f64> {
    let sample = |at: i64| samples.get(at.unsigned_abs() as usize).map_or(0.0, |&sample| f64::from(sample));
    let frame: Vec<f64> = (0..400)
        .map(|i| {
            let hann = 0.5 * (1.0 - (2.0 * PI * f64::from(i) / 400.0).cos());
            hann * sample(160 * frame as i64 - 200 + i64::from(i))
        })
        .collect();
    let power: Vec<f64> = (0..201)
        .map(|bin| {
            let angle = |i: usize| 2.0 * PI * (bin * i) as f64 / 400.0;
            let real: f64 = frame.iter().enumerate().map(|(i, x)| x * angle(i).cos()).sum();
            let imaginary: f64 = frame.iter().enumerate().map(|(i, x)| x * angle(i).sin()).sum();
            real * real + imaginary * imaginary
        })
        .collect();
    let step = (6.4f64).ln() / 27.0;
    let hertz = |mel: f64| if mel < 15.0 { mel * 200.0 / 3.0 } else { 1000.0 * ((mel - 15.0) * step).exp() };
    let most = 15.0 + 8f64.ln() / step;
    let edge = |index: usize| hertz(most * index as f64 / (mels + 1) as f64);
    (0..mels)
        .map(|mel| {
            let (low, centre, high) = (edge(mel), edge(mel + 1), edge(mel + 2));
            let weight = |hertz: f64| {
                ((hertz - low) / (centre - low)).min((high - hertz) / (high - centre)).max(0.0) * 2.0
                    / (high - low)
            };
            let sum: f64 =
                power.iter().enumerate().map(|(bin, power)| power * weight(40.0 * bin as f64)).sum();
            sum.max(1e-10).log10()
        })
        .collect()
}

#[test]
fn equals_the_formula_wherever_frames_lie() {
    let mut state = 1u32;
    let noise: Vec<f32> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    })
    .take(5003)
    .collect();
    for mels in [80, 128, 7] {
        // Recordings shorter than a frame, and frames across and behind the end.
        for (length, frames) in
            [(5003, 0..40), (5003, 17..18), (1, 0..2), (201, 0..3), (160, 3..5), (0, 0..2)]
        {
            let samples = &noise[..length];
            let found = spectra(samples, frames.clone(), mels);
            assert_eq!((found.len(), found[0].len()), (frames.len(), mels));
            for (found, frame) in found.iter().zip(frames) {
                for (found, expected) in found.iter().zip(formula(samples, frame, mels)) {
                    assert!(
                        (f64::from(*found) - expected).abs() < 1e-4,
                        "{length}, {frame}: {found}, {expected}"
                    );
                }
            }
        }
    }
}

#[test]
fn what_is_no_recording_is_refused() {
    let bank = MelBank::new(80);
    let zeros = |shape: &[usize], dtype| Tensor::zeros(shape, dtype, &Device::Cpu).unwrap();
    assert!(log_mel(&zeros(&[2, 400], DType::F32), 0..1, &bank).is_err());
    assert!(log_mel(&zeros(&[400], DType::F64), 0..1, &bank).is_err());
    assert!(
        log_mel(&zeros(&[800, 2], DType::F32).narrow(1, 0, 1).unwrap().squeeze(1).unwrap(), 0..1, &bank)
            .is_err()
    );
    assert_eq!(log_mel(&zeros(&[400], DType::F32), 3..3, &bank).unwrap().dims(), [0, 80]);
}
