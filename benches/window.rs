//! One window of Whisper, with random weights of tiny's shape: spectrum, encoder, what the text remembers of it, steps of
//! text at several batch sizes, and the alignment of words.
#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark")]

use std::{collections::HashMap, hint::black_box};

use candle_core::{DType, Device, Tensor};
use criterion::{Criterion, criterion_group, criterion_main};
use percept_models::{
    Batch, Checkpoint, Features, KvCache, LoadOptions, Loaded, MediaSize, Medium, Pages, Paging, Ragged,
    Remembered, load,
};

const WIDTH: usize = 384;
const LAYERS: usize = 4;
const VOCABULARY: usize = 51_865;
const FRAMES: usize = 3000;
const MEMORY: usize = FRAMES / 2;
const PAGE: usize = 16;
/// Rows of text that a sequence has at a step.
const TEXT: usize = 112;
const SIZES: [usize; 3] = [1, 8, 32];

fn weights() -> HashMap<String, Tensor> {
    let mut all = HashMap::new();
    let mut add = |name: String, shape: &[usize]| {
        let weight = Tensor::randn(0f32, 0.05, shape, &Device::Cpu).unwrap();
        all.insert(format!("model.{name}"), weight);
    };
    let linear = |add: &mut dyn FnMut(String, &[usize]), name: &str, input: usize, output: usize| {
        add(format!("{name}.weight"), &[output, input]);
        if !name.ends_with("k_proj") {
            add(format!("{name}.bias"), &[output]);
        }
    };
    let norm = |add: &mut dyn FnMut(String, &[usize]), name: &str| {
        add(format!("{name}.weight"), &[WIDTH]);
        add(format!("{name}.bias"), &[WIDTH]);
    };
    for (name, input) in [("conv1", 80), ("conv2", WIDTH)] {
        add(format!("encoder.{name}.weight"), &[WIDTH, input, 3]);
        add(format!("encoder.{name}.bias"), &[WIDTH]);
    }
    add("encoder.embed_positions.weight".into(), &[MEMORY, WIDTH]);
    add("decoder.embed_positions.weight".into(), &[448, WIDTH]);
    add("decoder.embed_tokens.weight".into(), &[VOCABULARY, WIDTH]);
    for side in ["encoder", "decoder"] {
        norm(&mut add, &format!("{side}.layer_norm"));
        for layer in 0..LAYERS {
            let at = format!("{side}.layers.{layer}");
            let attentions: &[&str] =
                if side == "encoder" { &["self_attn"] } else { &["self_attn", "encoder_attn"] };
            for attention in attentions {
                for part in ["q_proj", "k_proj", "v_proj", "out_proj"] {
                    linear(&mut add, &format!("{at}.{attention}.{part}"), WIDTH, WIDTH);
                }
                norm(&mut add, &format!("{at}.{attention}_layer_norm"));
            }
            linear(&mut add, &format!("{at}.fc1"), WIDTH, 4 * WIDTH);
            linear(&mut add, &format!("{at}.fc2"), 4 * WIDTH, WIDTH);
            norm(&mut add, &format!("{at}.final_layer_norm"));
        }
    }
    all
}

fn whisper() -> Loaded {
    let folder = tempfile::TempDir::new().unwrap();
    let config = r#"{"architectures": ["WhisperForConditionalGeneration"]}"#;
    std::fs::write(folder.path().join("config.json"), config).unwrap();
    candle_core::safetensors::save(&weights(), folder.path().join("model.safetensors")).unwrap();
    let options = LoadOptions {
        device: Device::Cpu,
        dtype: DType::F32,
        fit: None,
        most_bytes: u64::MAX,
        progress: Box::new(|_, _| {}),
    };
    load(&Checkpoint::new(folder.path()), options).unwrap()
}

fn upload(list: Vec<u32>) -> Tensor {
    let length = list.len();
    Tensor::from_vec(list, length, &Device::Cpu).unwrap()
}

/// The last `rows` rows of text of each of `sequences` sequences, each with its own memory.
fn step(sequences: usize, rows: usize) -> Batch {
    let device = &Device::Cpu;
    let (text, memory) = (TEXT / PAGE, MEMORY.div_ceil(PAGE));
    let pages = |first: usize, each: usize| {
        let table: Vec<u32> = (0..sequences)
            .flat_map(|sequence| {
                let start = sequence * (text + memory) + first;
                start as u32..(start + each) as u32
            })
            .collect();
        Tensor::from_vec(table, (sequences, each), device).unwrap()
    };
    let all = (0..sequences).flat_map(|sequence| {
        (TEXT - rows..TEXT).map(move |row| (sequence * (text + memory) * PAGE + row) as u32)
    });
    let positions = (0..sequences).flat_map(|_| (TEXT - rows..TEXT).map(|row| row as u32)).collect();
    Batch {
        tokens: upload(vec![1; sequences * rows]),
        positions: upload(positions),
        long: None,
        rows: Ragged::new(&vec![rows; sequences], device).unwrap(),
        text: Paging {
            slots: upload(all.collect()),
            pages: Pages { table: pages(0, text), lengths: upload(vec![TEXT as u32; sequences]) },
        },
        memory: Some(Remembered {
            rows: Ragged::new(&vec![rows; sequences], device).unwrap(),
            pages: Pages { table: pages(text, memory), lengths: upload(vec![MEMORY as u32; sequences]) },
            seen: None,
        }),
        inserts: Vec::new(),
        last: upload((1..=sequences).map(|end| (end * rows - 1) as u32).collect()),
    }
}

fn window(criterion: &mut Criterion) {
    let Loaded { model, preprocess, .. } = whisper();
    let samples: Vec<f32> = (0..480_000).map(|index| (index as f32 * 0.05).sin() * 0.3).collect();
    let samples = Tensor::from_vec(samples, 480_000, &Device::Cpu).unwrap();
    let hear = || preprocess.run(Medium::Sound { samples: &samples, frames: 0..FRAMES, peak: 1.0 }).unwrap();
    let features = [Features { tensor: hear(), size: MediaSize::Sound }];
    let encoded = model.encode(&features).unwrap();
    let slots = upload((0..MEMORY as u32).collect());
    let pages = SIZES[2] * (TEXT / PAGE + MEMORY.div_ceil(PAGE));
    let cache = KvCache::new(model.cache_shape(), pages, PAGE, DType::F32, &Device::Cpu).unwrap();

    let mut group = criterion.benchmark_group("window");
    group.sample_size(10);
    group.bench_function("spectrum", |bencher| bencher.iter(|| black_box(hear())));
    group.bench_function("encoder", |bencher| {
        bencher.iter(|| black_box(model.encode(&features).unwrap()));
    });
    group.bench_function("remember", |bencher| {
        bencher.iter(|| model.remember(&encoded, &slots, &cache).unwrap());
    });
    for sequences in SIZES {
        let batch = step(sequences, 1);
        group.bench_function(format!("step of {sequences}"), |bencher| {
            bencher.iter(|| black_box(model.forward(&batch, &cache).unwrap()));
        });
    }
    let batch = step(1, TEXT);
    group.bench_function("alignment of 112 tokens", |bencher| {
        bencher.iter(|| black_box(model.align(&batch, MEMORY, &cache).unwrap()));
    });
    group.finish();
}

criterion_group!(benches, window);
criterion_main!(benches);
