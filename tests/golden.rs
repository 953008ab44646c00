//! The networks against what PyTorch computed: pixels, features, logits.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use candle_core::{DType, Device, IndexOp, Tensor};
use percept_kernels::{Canvas, Filter, Region, Resize};
use percept_models::{Batch, Fit, Insert, KvCache, Loaded, Medium, Pages, Paging, Ragged, nn};
use serde::Deserialize;
use support::{Case, Golden, fixtures, largest_difference, llava, load, pattern, picture, sha256};

const PAGE: usize = 16;

/// Encoder rows of a case's pictures, all pictures in one call.
fn encode(loaded: &Loaded, case: &Case) -> Option<Tensor> {
    let features: Vec<Tensor> = case
        .images
        .iter()
        .map(|name| loaded.preprocess.run(Medium::Picture(&picture(name))).unwrap())
        .collect();
    if features.is_empty() {
        return None;
    }
    let rows = Ragged::new(&vec![1; features.len()], &Device::Cpu).unwrap();
    Some(loaded.model.encode(&Tensor::cat(&features, 0).unwrap(), &rows).unwrap())
}

/// Logits of every row of a prompt, computed in one step.
fn logits(loaded: &Loaded, case: &Case, encoded: Option<&Tensor>) -> Tensor {
    let device = &Device::Cpu;
    let rows = case.input_ids.len();
    let pages = rows.div_ceil(PAGE);
    let cache = KvCache::new(loaded.model.cache_shape(), pages + 1, PAGE, loaded.dtype, device).unwrap();
    // Pages in falling order, so that a mistake in their use shows.
    let table: Vec<u32> = (0..pages as u32).rev().collect();
    let slots: Vec<u32> =
        (0..rows).map(|row| table[row / PAGE] * PAGE as u32 + (row % PAGE) as u32).collect();
    let mut from = 0;
    let inserts = case.image_spans.iter().map(|&(at, length)| {
        from += length;
        Insert { at, rows: encoded.unwrap().narrow(0, from - length, length).unwrap() }
    });
    let batch = Batch {
        tokens: Tensor::from_slice(&case.input_ids, rows, device).unwrap(),
        positions: Tensor::arange(0u32, rows as u32, device).unwrap(),
        rows: Ragged::new(&[rows], device).unwrap(),
        memory: None,
        inserts: inserts.collect(),
        text: Paging {
            slots: Tensor::from_vec(slots, rows, device).unwrap(),
            pages: Pages {
                table: Tensor::from_vec(table, (1, pages), device).unwrap(),
                lengths: Tensor::new(&[rows as u32], device).unwrap(),
            },
        },
        last: Tensor::arange(0u32, rows as u32, device).unwrap(),
    };
    loaded.model.forward(&batch, &cache).unwrap()
}

#[test]
fn llava_pixels_equal_the_reference() {
    let golden = Golden::read("llava");
    let mut compared = 0;
    for case in golden.prompts() {
        let loaded = load(llava(), DType::F32, Some(case.fit()));
        for (index, name) in case.images.iter().enumerate() {
            let found = loaded.preprocess.run(Medium::Picture(&picture(name))).unwrap();
            if let Some(expected) = golden.tensor(&case.name, "pixel_values") {
                let difference = largest_difference(&found, &expected.i(index..index + 1).unwrap());
                assert!(difference <= golden.tolerance("pixel_f32"), "{}: {difference}", case.name);
                compared += 1;
            }
        }
    }
    assert_eq!(compared, 2);
}

#[test]
fn llava_resized_bytes_equal_the_reference() {
    let golden = Golden::read("llava");
    let config = percept_models::Checkpoint::new(llava()).image_processor().unwrap();
    for case in golden.prompts() {
        let Some(stage) = &case.uint8_stage else { continue };
        let processor = nn::image::SquareProcessor::new(&config, 56, Some(case.fit())).unwrap();
        let mut bytes = Vec::new();
        for name in &case.images {
            let square = processor.square(&picture(name)).unwrap().permute((2, 0, 1)).unwrap();
            bytes.extend(square.flatten_all().unwrap().to_vec1::<u8>().unwrap());
        }
        let expected = &stage["pixel_u8"];
        assert_eq!(bytes.len(), expected.shape.iter().product::<usize>(), "{}", case.name);
        assert_eq!(sha256(&bytes), expected.sha256, "{}", case.name);
    }
}

#[test]
fn llava_vision_states_equal_the_reference() {
    let golden = Golden::read("llava");
    let loaded = load(llava(), DType::F32, None);
    let weights = candle_core::safetensors::load(llava().join("model.safetensors"), &Device::Cpu).unwrap();
    let vb = candle_nn::VarBuilder::from_tensors(weights, DType::F32, &Device::Cpu);
    let config: serde_json::Value = percept_models::Checkpoint::new(llava()).config().unwrap();
    let config: nn::clip::ClipConfig = serde_json::from_value(config["vision_config"].clone()).unwrap();
    let tower = nn::clip::ClipTower::load(&config, 3, &vb.pp("vision_tower.vision_model")).unwrap();
    let pixels = loaded.preprocess.run(Medium::Picture(&picture("land_90x60.png"))).unwrap();
    for (index, state) in tower.states(&pixels, &[0, 1, 2, 3]).unwrap().iter().enumerate() {
        let expected = golden.tensor("vision_land", &format!("hidden_{index}")).unwrap();
        let difference = largest_difference(&state.i(0).unwrap(), expected);
        assert!(difference <= golden.tolerance("features"), "state {index}: {difference}");
    }
}

#[test]
fn llava_features_and_logits_equal_the_reference() {
    let golden = Golden::read("llava");
    for case in golden.prompts() {
        let loaded = load(llava(), DType::F32, Some(case.fit()));
        let encoded = encode(&loaded, case);
        if let Some(encoded) = &encoded {
            let difference =
                largest_difference(encoded, golden.tensor(&case.name, "image_features").unwrap());
            assert!(difference <= golden.tolerance("features"), "{}: features {difference}", case.name);
        }
        let found = logits(&loaded, case, encoded.as_ref());
        let last = found.i(case.input_ids.len() - 1).unwrap();
        let difference = largest_difference(&last, golden.tensor(&case.name, "logits_last").unwrap());
        assert!(difference <= golden.tolerance("logits"), "{}: last logits {difference}", case.name);
        if let Some(all) = golden.tensor(&case.name, "logits_all") {
            let difference = largest_difference(&found, all);
            assert!(difference <= golden.tolerance("logits"), "{}: all logits {difference}", case.name);
        }
    }
}

#[test]
fn llava_in_bf16_stays_near_the_reference() {
    let golden = Golden::read("llava");
    for case in golden.prompts() {
        let loaded = load(llava(), DType::BF16, Some(case.fit()));
        let found = logits(&loaded, case, encode(&loaded, case).as_ref());
        let last = found.i(case.input_ids.len() - 1).unwrap();
        let difference = largest_difference(&last, golden.tensor(&case.name, "logits_last").unwrap());
        assert!(difference <= golden.tolerance("logits_bf16_guide"), "{}: {difference}", case.name);
        assert!(difference > golden.tolerance("logits"), "{}: bf16 cannot be this near", case.name);
    }
}

#[derive(Deserialize)]
struct Preprocessed {
    cases: Vec<PreprocessCase>,
}

#[derive(Deserialize)]
struct PreprocessCase {
    what: String,
    from: (usize, usize),
    #[serde(default)]
    to: (usize, usize),
    #[serde(default)]
    sha256: String,
    #[serde(default)]
    samples: Vec<[usize; 5]>,
}

#[test]
fn real_sizes_are_resampled_as_pillow_does() {
    let manifest = std::fs::read_to_string(fixtures().join("goldens/preprocess/manifest.json")).unwrap();
    let manifest: Preprocessed = serde_json::from_str(&manifest).unwrap();
    let llava = serde_json::json!({
        "size": {"shortest_edge": 336}, "crop_size": 336, "do_center_crop": true, "resample": 3,
    });
    let llava: nn::image::ImageProcessorConfig = serde_json::from_value(llava).unwrap();
    let mut compared = 0;
    for case in &manifest.cases {
        let (width, height) = case.from;
        let image = pattern(width, height);
        let filter = match case.what.as_str() {
            "resize bilinear" => Some(Filter::Bilinear),
            "resize bicubic" => Some(Filter::Bicubic),
            "resize lanczos" => Some(Filter::Lanczos),
            _ => None,
        };
        let fit = match case.what.as_str() {
            "llava-1.5 resize 336 + centre crop" => Some(Fit::Crop),
            "llava-1.5 pad to square + resize 336" => Some(Fit::Pad),
            _ => None,
        };
        let found = if let Some(filter) = filter {
            let (to_width, to_height) = case.to;
            let plan = Resize {
                canvas: Canvas { width, height, left: 0, top: 0, fill: [0; 3] },
                width: to_width,
                height: to_height,
                region: Region { left: 0, top: 0, width: to_width, height: to_height },
                filter,
            };
            percept_kernels::resize(&image, plan).unwrap()
        } else if let Some(fit) = fit {
            nn::image::SquareProcessor::new(&llava, 336, Some(fit)).unwrap().square(&image).unwrap()
        } else {
            // Other architectures' plans.
            continue;
        };
        for &[y, x, r, g, b] in &case.samples {
            let pixel = found.i((y, x)).unwrap().to_vec1::<u8>().unwrap();
            assert_eq!(pixel, [r as u8, g as u8, b as u8], "{} {:?} at {x},{y}", case.what, case.from);
        }
        let bytes = found.flatten_all().unwrap().to_vec1::<u8>().unwrap();
        assert_eq!(sha256(&bytes), case.sha256, "{} {:?}", case.what, case.from);
        compared += 1;
    }
    assert!(compared >= 40, "only {compared} cases");
}
