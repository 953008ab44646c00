//! Alignment of the longest text of a window with its frames, in the ten heads of a large network, on one core.
//!
//! `cargo bench --bench alignment`
#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark")]

use std::hint::black_box;

use candle_core::{DType, Device, Tensor};
use criterion::{Criterion, criterion_group, criterion_main};
use percept_kernels::alignment;

const ROWS: usize = 228;
const FRAMES: usize = 1500;
const HEADS: usize = 20;
const WIDTH: usize = 64;
const PAGE_SIZE: usize = 16;
const HEAD_SET: [usize; 10] = [0, 3, 5, 6, 8, 9, 11, 13, 17, 19];

fn noise(shape: &[usize]) -> Tensor {
    let count = shape.iter().product();
    let numbers: Vec<f32> = (0..count).map(|n| (n as f32 * 1.7).sin() * (n as f32 * 0.013).cos()).collect();
    Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap()
}

fn ten_heads(criterion: &mut Criterion) {
    rayon::ThreadPoolBuilder::new().num_threads(1).build_global().unwrap();
    let pages = FRAMES.div_ceil(PAGE_SIZE);
    let (q, k) = (noise(&[ROWS, HEADS, WIDTH]), noise(&[pages, PAGE_SIZE, HEADS, WIDTH]));
    let table = Tensor::arange(0, pages as u32, &Device::Cpu).unwrap();
    let mut group = criterion.benchmark_group("alignment of 228 rows with 1500 frames, one core");
    for dtype in [DType::F32, DType::BF16] {
        let (q, k) = (q.to_dtype(dtype).unwrap(), k.to_dtype(dtype).unwrap());
        group.bench_function(format!("10 heads, {dtype:?}"), |bencher| {
            bencher
                .iter(|| alignment(black_box(&q), black_box(&k), &table, &HEAD_SET, FRAMES, 0.125).unwrap());
        });
    }
    group.finish();
}

criterion_group!(benches, ten_heads);
criterion_main!(benches);
