//! From a picture to encoded rows, for every network that sees, beside the time that its tower alone takes. The fixture
//! checkpoints are tiny, so that what is around the tower shows: resizing, tiles, order.
//!
//! `cargo bench --bench pictures`
#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark")]

use std::{hint::black_box, path::Path};

use candle_core::{DType, Device, Tensor};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use percept_models::{Checkpoint, Features, LoadOptions, Loaded, MediaSize, Medium};

const SIZES: [(usize, usize); 2] = [(1920, 1080), (336, 336)];
/// Pictures of different requests in one call.
const TOGETHER: usize = 8;

fn load(folder: &Path) -> Option<Loaded> {
    let options = LoadOptions {
        device: Device::Cpu,
        dtype: DType::F32,
        fit: None,
        most_bytes: u64::MAX,
        progress: Box::new(|_, _| {}),
    };
    let loaded = percept_models::load(&Checkpoint::new(folder), options).unwrap();
    (!loaded.task.placeholders().is_empty()).then_some(loaded)
}

fn picture(width: usize, height: usize) -> Tensor {
    let level = |index: usize| (index * 31 + index / width * 17 + index / 7) as u8;
    let levels: Vec<u8> = (0..width * height * 3).map(level).collect();
    Tensor::from_vec(levels, (height, width, 3), &Device::Cpu).unwrap()
}

fn pictures(criterion: &mut Criterion) {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut folders: Vec<_> = fixtures.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.retain(|folder| folder.join("config.json").is_file());
    folders.sort();
    for folder in folders {
        let Some(loaded) = load(&folder) else { continue };
        let name = folder.file_name().unwrap().to_str().unwrap();
        for (width, height) in SIZES {
            let pixels = picture(width, height);
            let size = MediaSize::Image { width, height };
            let prepare = || loaded.preprocess.run(Medium::Picture(black_box(&pixels))).unwrap();
            let features = Features { tensor: prepare(), size };
            let many = vec![features.clone(); TOGETHER];
            let mut group = criterion.benchmark_group(format!("{name}, {width}x{height}"));
            group.bench_function("prepare", |bencher| bencher.iter(prepare));
            group.bench_function("encode", |bencher| {
                bencher.iter(|| loaded.model.encode(std::slice::from_ref(&features)).unwrap());
            });
            group.throughput(Throughput::Elements(TOGETHER as u64));
            group.bench_function(format!("encode {TOGETHER} together"), |bencher| {
                bencher.iter(|| loaded.model.encode(&many).unwrap());
            });
            group.finish();
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20);
    targets = pictures
}
criterion_main!(benches);
