//! Log-mel spectra of half a minute on one core.
//!
//! `cargo bench --bench mel`
#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark")]

use std::hint::black_box;

use candle_core::{Device, Tensor};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use percept_kernels::{MelBank, log_mel};

const SAMPLES: usize = 480_000;
const FRAMES: usize = 3000;

fn mel(criterion: &mut Criterion) {
    rayon::ThreadPoolBuilder::new().num_threads(1).build_global().unwrap();
    let samples: Vec<f32> =
        (0..SAMPLES).map(|n| (n as f32 * 0.07).sin() * (n as f32 * 0.0003).cos()).collect();
    let samples = Tensor::from_vec(samples, SAMPLES, &Device::Cpu).unwrap();
    let mut group = criterion.benchmark_group("log-mel of 30 s, one core");
    group.throughput(Throughput::Elements(SAMPLES as u64));
    for mels in [80, 128] {
        let bank = MelBank::new(mels);
        group.bench_function(format!("{mels} mels"), |bencher| {
            bencher.iter(|| log_mel(black_box(&samples), 0..FRAMES, &bank).unwrap());
        });
    }
    group.finish();
}

criterion_group!(benches, mel);
criterion_main!(benches);
