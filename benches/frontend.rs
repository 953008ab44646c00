//! From a JPEG to encoder input, per stage, on one core, beside the fastest resizer that we know.
//!
//! `cargo bench --bench frontend`
#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark")]

use std::hint::black_box;

use candle_core::{Device, Tensor};
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer, images};
use image::{ImageReader, RgbImage, codecs::jpeg::JpegEncoder};
use percept::{
    engine::Key,
    media::{Header, decode},
};
use percept_models::nn::image::{ImageProcessorConfig, SquareProcessor};

const WIDTH: u32 = 1920;
const HEIGHT: u32 = 1080;
const SIDE: usize = 336;

/// A picture with edges, slopes and grain, as a photograph has.
fn photograph() -> Vec<u8> {
    let mut state = 1u32;
    let picture = RgbImage::from_fn(WIDTH, HEIGHT, |x, y| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let grain = (state >> 27) as f32;
        let slope = (x as f32 / 9.0).sin() * 40.0 + (y as f32 / 23.0).cos() * 40.0;
        let edge = if (x / 120 + y / 90) % 2 == 0 { 60.0 } else { 0.0 };
        image::Rgb([0.0, 25.0, 50.0].map(|tint: f32| (70.0 + slope + edge + grain + tint) as u8))
    });
    let mut file = Vec::new();
    JpegEncoder::new_with_quality(&mut file, 90).encode_image(&picture).unwrap();
    file
}

fn frontend(criterion: &mut Criterion) {
    rayon::ThreadPoolBuilder::new().num_threads(1).build_global().unwrap();
    let file = photograph();
    let header = Header::read(&file, usize::MAX, usize::MAX).unwrap();
    let config: ImageProcessorConfig = serde_json::from_value(serde_json::json!({
        "size": {"shortest_edge": SIDE}, "crop_size": SIDE,
    }))
    .unwrap();
    let processor = SquareProcessor::new(&config, SIDE, None).unwrap();
    let upload =
        |rgb: Vec<u8>| Tensor::from_vec(rgb, (HEIGHT as usize, WIDTH as usize, 3), &Device::Cpu).unwrap();
    let pixels = upload(decode(&file, header).unwrap().rgb);
    let square = processor.square(&pixels).unwrap();

    let mut stages = criterion.benchmark_group("1080p JPEG, one core");
    stages.bench_function("read header", |bencher| {
        bencher.iter(|| Header::read(black_box(&file), usize::MAX, usize::MAX));
    });
    stages.bench_function("hash", |bencher| bencher.iter(|| Key::of(black_box(&file))));
    stages.bench_function("decode", |bencher| bencher.iter(|| decode(black_box(&file), header)));
    stages.bench_function("resize and crop", |bencher| bencher.iter(|| processor.square(black_box(&pixels))));
    stages.bench_function("normalise", |bencher| bencher.iter(|| processor.normalise(black_box(&square))));
    stages.bench_function("whole: file to features", |bencher| {
        bencher.iter(|| {
            let header = Header::read(black_box(&file), usize::MAX, usize::MAX).unwrap();
            processor.run(&upload(decode(&file, header).unwrap().rgb)).unwrap()
        });
    });

    // The same work with the fastest resizer that we know, whose 16-bit arithmetic is not equal to Pillow's.
    let scaled = (WIDTH * SIDE as u32 / HEIGHT) as usize;
    let bicubic = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::CatmullRom));
    let mut resizer = Resizer::new();
    let mut peer = |rgb: Vec<u8>, width: usize, options: &ResizeOptions| {
        let source = images::Image::from_vec_u8(WIDTH, HEIGHT, rgb, PixelType::U8x3).unwrap();
        let mut target = images::Image::new(width as u32, SIDE as u32, PixelType::U8x3);
        resizer.resize(&source, &mut target, options).unwrap();
        target.into_vec()
    };
    let decode_by_image = || {
        let reader = ImageReader::new(std::io::Cursor::new(black_box(&file))).with_guessed_format().unwrap();
        reader.decode().unwrap().into_rgb8().into_raw()
    };
    let rgb = decode(&file, header).unwrap().rgb;
    stages.bench_function("peer: decode", |bencher| bencher.iter(decode_by_image));
    stages.bench_function("peer: resize the shorter edge", |bencher| {
        bencher.iter_batched(|| rgb.clone(), |rgb| peer(rgb, scaled, &bicubic), BatchSize::LargeInput);
    });
    stages.bench_function("peer: decode and resize the shorter edge", |bencher| {
        bencher.iter(|| peer(decode_by_image(), scaled, &bicubic));
    });
    // Cutting the picture before it is scaled is less work still, but not what the reference computes.
    let cut = bicubic.crop(f64::from(WIDTH - HEIGHT) / 2.0, 0.0, f64::from(HEIGHT), f64::from(HEIGHT));
    stages.bench_function("peer: crop and resize", |bencher| {
        bencher.iter_batched(|| rgb.clone(), |rgb| peer(rgb, SIDE, &cut), BatchSize::LargeInput);
    });
    stages.bench_function("peer: decode, crop and resize", |bencher| {
        bencher.iter(|| peer(decode_by_image(), SIDE, &cut));
    });
    stages.finish();
}

criterion_group!(benches, frontend);
criterion_main!(benches);
