//! log_mel.cu against the sum in f64, and against the host's version.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use candle_core::{Device, Tensor};
use percept_kernels::{MelBank, launch::MelTables, log_mel};
use percept_kernels_emulation::{Buffer, Emulator, FAULTS, compare, noise};

/// A tone on noise, loud and silent by turns.
fn sound(count: usize) -> Vec<f32> {
    let noise = noise::<f32>(count, 7);
    let sample = |(i, noise): (usize, &f32)| {
        let loud = if i / 700 % 3 == 2 { 0.0 } else { 1.0 };
        loud * ((i as f32 * 0.21).sin() * 0.6 + noise * 0.05)
    };
    noise.iter().enumerate().map(sample).collect()
}

fn run(
    samples: &[f32],
    [first, frames]: [usize; 2],
    mels: usize,
    emulator: Emulator,
) -> Result<Vec<f32>, String> {
    let tables = MelTables::new(&MelBank::new(mels));
    let window = Buffer::of(&tables.window, "window");
    let cosine = Buffer::of(&tables.cosine, "cosine");
    let filters = Buffer::of(&tables.filters, "filters");
    let weights = Buffer::of(&tables.weights, "weights");
    let on_device = Buffer::of(samples, "samples");
    let out = Buffer::<f32>::new(frames * mels, "out");
    let at = [window.address(), cosine.address(), filters.address(), weights.address()];
    let sizes = [samples.len(), first, frames];
    let launch = tables.launch([out.address(), on_device.address()], at, sizes).unwrap();
    emulator.run(&launch.unwrap())?;
    out.read()
}

/// The definition, in f64; filters and window are the host's, which are compared with Whisper's own.
fn expected(samples: &[f32], [first, frames]: [usize; 2], mels: usize) -> Vec<f64> {
    let tables = MelTables::new(&MelBank::new(mels));
    let mut out = Vec::new();
    for frame in first..first + frames {
        let sample = |n: usize| {
            let at = (frame * 160 + n) as i64 - 200;
            let value = samples.get(at.unsigned_abs() as usize).copied().unwrap_or(0.0);
            f64::from(value) * f64::from(tables.window[n])
        };
        let power = |bin: usize| {
            let turn = |n: usize| 2.0 * std::f64::consts::PI * (n * bin % 400) as f64 / 400.0;
            let [real, imaginary] =
                [f64::cos, f64::sin].map(|part| (0..400).map(|n| sample(n) * part(turn(n))).sum::<f64>());
            real * real + imaginary * imaginary
        };
        let power: Vec<f64> = (0..201).map(power).collect();
        for filter in tables.filters.as_chunks::<3>().0 {
            let [start, first, count] = filter.map(|number| number as usize);
            let sum: f64 = (0..count).map(|k| f64::from(tables.weights[first + k]) * power[start + k]).sum();
            out.push(sum.max(1e-10).log10());
        }
    }
    out
}

/// First frame, frames, samples: the mirrored beginning, the middle, the end and what is behind it, nothing at all.
const CASES: [([usize; 2], usize); 6] =
    [([0, 3], 2000), ([0, 5], 150), ([2, 9], 1700), ([9, 4], 1700), ([30, 1], 1700), ([0, 1], 1)];

fn check(case: ([usize; 2], usize), mels: usize, emulator: Emulator) -> Result<(), String> {
    let samples = sound(case.1);
    let found = run(&samples, case.0, mels, emulator)?;
    // In a frame whose power is that of rounding, so is its logarithm: those are at the floor of what is used.
    compare(&format!("{case:?} {mels}"), &found, &expected(&samples, case.0, mels), 2e-3)
}

#[test]
fn frames_equal_the_sum() {
    for case in CASES {
        for mels in [80, 128] {
            check(case, mels, Emulator { seed: 1, fault: None }).unwrap();
        }
    }
    assert_eq!(MelTables::new(&MelBank::new(80)).launch([0; 2], [0; 4], [9, 0, 0]).unwrap(), None);
}

#[test]
fn frames_equal_the_hosts() {
    let samples = sound(1700);
    let on_host = Tensor::from_slice(&samples, samples.len(), &Device::Cpu).unwrap();
    let host = log_mel(&on_host, 1..9, &MelBank::new(80)).unwrap();
    let host: Vec<f64> =
        host.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f64::from).collect();
    let found = run(&samples, [1, 8], 80, Emulator { seed: 2, fault: None }).unwrap();
    compare("the host", &found, &host, 2e-3).unwrap();
}

#[test]
fn planted_faults_are_caught() {
    let mut faults = 0;
    for fault in FAULTS.iter().filter(|fault| fault.file == "log_mel") {
        faults += 1;
        let caught = (0..3).any(|seed| {
            let emulator = Emulator { seed, fault: Some(fault.name) };
            CASES.iter().any(|&case| check(case, 80, emulator).is_err())
        });
        assert!(caught, "{} was not noticed", fault.name);
    }
    assert!(faults >= 2);
}
