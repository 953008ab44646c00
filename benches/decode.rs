//! A decode step of a decoder on the CPU, beside the time that reading its weights takes.
//!
//! `cargo bench --bench decode`
#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark")]

use std::hint::black_box;

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use percept_models::{
    Batch, KvCache, Pages, Paging, Ragged,
    nn::decoder::{Decoder, TextConfig},
};
use rayon::prelude::*;

const CONTEXT: usize = 512;
const PAGE: usize = 16;

/// One row of each of `sequences` sequences, all in the middle of a conversation.
fn step(sequences: usize) -> Batch {
    let device = &Device::Cpu;
    let pages = CONTEXT / PAGE;
    let table: Vec<u32> = (0..(sequences * pages) as u32).collect();
    let last = (CONTEXT - 1) as u32;
    let slots: Vec<u32> = (0..sequences as u32).map(|sequence| sequence * CONTEXT as u32 + last).collect();
    let same = |value: u32| Tensor::full(value, sequences, device).unwrap();
    Batch {
        tokens: same(1),
        positions: same(last),
        long: None,
        rows: Ragged::new(&vec![1; sequences], device).unwrap(),
        text: Paging {
            slots: Tensor::from_vec(slots, sequences, device).unwrap(),
            pages: Pages {
                table: Tensor::from_vec(table, (sequences, pages), device).unwrap(),
                lengths: same(CONTEXT as u32),
            },
        },
        memory: None,
        inserts: Vec::new(),
        last: Tensor::arange(0u32, sequences as u32, device).unwrap(),
    }
}

/// Weights that are all one: zeros would share one page of memory.
struct Ones;

impl SimpleBackend for Ones {
    fn get(
        &self,
        shape: Shape,
        _: &str,
        _: Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        Tensor::full(1f32, shape, device)?.to_dtype(dtype)?.contiguous()?.copy()
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        candle_core::bail!("{name} has no shape")
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}

fn decode(criterion: &mut Criterion) {
    let config: TextConfig = serde_json::from_value(serde_json::json!({
        "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 4, "num_attention_heads": 16,
        "num_key_value_heads": 16, "vocab_size": 8192, "max_position_embeddings": CONTEXT,
    }))
    .unwrap();
    let config = config.decoder("llama").unwrap();
    let vb = VarBuilder::from_backend(Box::new(Ones), DType::F32, Device::Cpu);
    let decoder = Decoder::load(&config, &vb.pp("model"), &vb.pp("lm_head")).unwrap();
    let layer = 4 * 1024 * 1024 + 3 * 1024 * 2816;
    let bytes = 4 * (4 * layer + 8192 * 1024) as u64;

    let mut group = criterion.benchmark_group("decode step, 59 M weights in f32, context 512");
    group.sample_size(20);
    for sequences in [1, 8, 32] {
        let batch = step(sequences);
        let cache =
            KvCache::new(config.cache_shape(), sequences * CONTEXT / PAGE, PAGE, DType::F32, &Device::Cpu);
        let cache = cache.unwrap();
        group.throughput(Throughput::Elements(sequences as u64));
        group.bench_function(format!("{sequences} sequences"), |bencher| {
            bencher.iter(|| decoder.forward(black_box(&batch), &cache).unwrap());
        });
    }
    // The limit at one row: every weight is read once.
    let weights = vec![1u32; bytes as usize / 4];
    let read = |chunk: &[u32]| black_box(chunk).iter().fold(0, |sum: u32, &weight| sum.wrapping_add(weight));
    group.throughput(Throughput::Bytes(bytes));
    group.bench_function("limit: reading the weights", |bencher| {
        bencher.iter(|| weights.par_chunks(1 << 16).map(read).reduce(|| 0, u32::wrapping_add));
    });
    group.finish();
}

criterion_group!(benches, decode);
criterion_main!(benches);
