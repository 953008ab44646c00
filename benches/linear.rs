//! The linear layer beside candle's matrix product, at the sizes of a decoder.
//!
//! `cargo bench --bench linear`
#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark")]

use std::hint::black_box;

use candle_core::{DType, Device, Tensor};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const INPUT: usize = 4096;
const OUTPUT: usize = 4096;

fn linear(criterion: &mut Criterion) {
    for dtype in [DType::F32, DType::BF16] {
        let mut group = criterion.benchmark_group(format!("linear {INPUT} to {OUTPUT}, {dtype:?}"));
        group.sample_size(10);
        let tensor = |rows: usize, width: usize| {
            Tensor::rand(-1f32, 1f32, (rows, width), &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
        };
        let weight = tensor(OUTPUT, INPUT);
        let transposed = weight.t().unwrap();
        for rows in [1, 2, 8, 32, 512] {
            let x = tensor(rows, INPUT);
            group.throughput(Throughput::Elements((rows * INPUT * OUTPUT) as u64));
            group.bench_function(format!("{rows} rows"), |bencher| {
                bencher.iter(|| percept_kernels::linear(black_box(&x), &weight, None).unwrap());
            });
            group.bench_function(format!("{rows} rows, peer: candle"), |bencher| {
                bencher.iter(|| black_box(&x).matmul(&transposed).unwrap());
            });
        }
        group.finish();
    }
}

criterion_group!(benches, linear);
criterion_main!(benches);
