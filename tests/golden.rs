//! The networks against what PyTorch computed: pixels, features, logits.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use candle_core::{DType, Device, IndexOp, Tensor};
use percept_kernels::{Canvas, Filter, Region, Resize};
use percept_models::{
    Aligned, Batch, Features, Fit, Insert, KvCache, Loaded, MediaSize, Medium, Pages, Paging, Ragged,
    Remembered, nn, nn::mel::Mel,
};
use serde::Deserialize;
use serde_json::Value;
use support::{
    Case, Golden, encode, fixtures,
    forward::{self, PAGE},
    largest_difference, llava, load, pattern, picture, sha256, sound_pattern, wav, whisper,
};

/// Logits of every row of a prompt, computed in one step.
fn logits(loaded: &Loaded, case: &Case, encoded: Option<&Tensor>) -> Tensor {
    let mut from = 0;
    let inserts = case.image_spans.iter().map(|&(at, length)| {
        from += length;
        Insert { at, rows: encoded.unwrap().narrow(0, from - length, length).unwrap() }
    });
    forward::logits(loaded, &case.ids(), inserts.collect())
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
    let config: Value = percept_models::Checkpoint::new(llava()).config().unwrap();
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

/// A recording of the reference, in `[-1, 1)`.
fn sound(name: &str) -> Tensor {
    let samples = if name == "short" { wav("speechlike_3s.wav") } else { sound_pattern(45 * 16_000) };
    let count = samples.len();
    let samples = samples.into_iter().map(|sample| f32::from(sample) / 32768.0).collect();
    Tensor::from_vec(samples, count, &Device::Cpu).unwrap()
}

/// The largest log10 mel power of a recording and the silence behind it.
fn peak(sound: &Tensor) -> f32 {
    let frames = sound.elem_count() / nn::mel::HOP + 3000;
    Mel::new(80).peak(&sound.to_vec1::<f32>().unwrap(), 0..frames).unwrap()
}

/// `frames` of a recording, as a window `[1, 3000, mels]`.
fn hear(loaded: &Loaded, name: &str, frames: usize) -> Tensor {
    let sound = sound(name);
    let medium = Medium::Sound { samples: &sound, frames: 0..frames, peak: peak(&sound) };
    loaded.preprocess.run(medium).unwrap()
}

fn whisper_manifest() -> Value {
    let manifest = std::fs::read_to_string(fixtures().join("goldens/whisper/manifest.json")).unwrap();
    serde_json::from_str(&manifest).unwrap()
}

fn ids(list: &Value) -> Vec<u32> {
    list.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// Rows `list` of `of`.
fn rows(of: &Tensor, list: &Value) -> Tensor {
    let list = ids(list);
    of.index_select(&Tensor::from_slice(&list, list.len(), &Device::Cpu).unwrap(), 0).unwrap()
}

#[test]
fn whisper_hears_what_the_reference_hears() {
    let golden = Golden::read("whisper");
    let manifest = whisper_manifest();
    let loaded = load(whisper(), DType::F32, None);
    let tolerance = manifest["mel"]["tolerance"].as_f64().unwrap();
    let short = hear(&loaded, "short", 3000).i(0).unwrap();
    for name in ["short_file", "short_window_zero_samples"] {
        let found = rows(&short, &manifest["mel"]["frames"]).t().unwrap();
        let difference = largest_difference(&found, golden.tensor("mel", name).unwrap());
        assert!(difference <= tolerance, "{name}: {difference}");
    }
    let long = sound("long");
    let loudest = peak(&long);
    let frames = Mel::new(80).frames(&long, 0..4502, loudest).unwrap();
    let found = rows(&frames, &manifest["mel"]["long_frames"]).t().unwrap();
    let difference = largest_difference(&found, golden.tensor("mel", "long_file").unwrap());
    assert!(difference <= tolerance, "long_file: {difference}");
    let means = frames.narrow(0, 0, 4500).unwrap().mean(0).unwrap();
    let difference = largest_difference(&means, golden.tensor("mel", "long_bin_means").unwrap());
    assert!(difference <= tolerance, "long_bin_means: {difference}");
    for (found, expected) in [(peak(&sound("short")), "max_log10_short"), (loudest, "max_log10_long")] {
        let expected = manifest["mel"][expected].as_f64().unwrap();
        assert!((f64::from(found) - expected).abs() <= 4.0 * tolerance, "{found}, not {expected}");
    }
}

#[test]
fn whisper_windows_are_encoded_as_the_reference_does() {
    let golden = Golden::read("whisper");
    let manifest = whisper_manifest();
    let loaded = load(whisper(), DType::F32, None);
    // One ends where the recording does, with nothing behind it; the other goes on with silence.
    let windows = [("file", 300), ("zero_samples", 3000)];
    let features = windows.map(|(_, frames)| hear(&loaded, "short", frames));
    let features = features.map(|tensor| Features { tensor, size: MediaSize::Sound });
    let encoded = loaded.model.encode(&features).unwrap();
    for (index, (name, _)) in windows.iter().enumerate() {
        let window = encoded.narrow(0, 1500 * index, 1500).unwrap();
        let found = rows(&window, &manifest["encoder"]["rows"]);
        let difference = largest_difference(&found, golden.tensor("encoder", name).unwrap());
        assert!(difference <= manifest["encoder"]["tolerance"].as_f64().unwrap(), "{name}: {difference}");
    }
}

/// A window in the pages of a cache, and tokens that attend to it.
struct Forced<'a> {
    loaded: &'a Loaded,
    batch: Batch,
    cache: KvCache,
}

impl<'a> Forced<'a> {
    fn new(loaded: &'a Loaded, window: &Tensor, tokens: &[u32]) -> Self {
        let device = &Device::Cpu;
        let window = Features { tensor: window.clone(), size: MediaSize::Sound };
        let encoded = loaded.model.encode(&[window]).unwrap();
        let heard = encoded.dim(0).unwrap();
        let count = tokens.len();
        let [of_text, of_memory] = [count, heard].map(|rows| rows.div_ceil(PAGE));
        let shape = loaded.model.cache_shape();
        let cache = KvCache::new(shape, of_text + of_memory, PAGE, loaded.dtype, device).unwrap();
        // Pages in falling order, the memory's behind the text's, so that a mistake in their use shows.
        let text: Vec<u32> = (0..of_text as u32).rev().collect();
        let memory: Vec<u32> = (0..of_memory as u32).rev().map(|page| of_text as u32 + page).collect();
        let slots = |table: &[u32], rows: usize| {
            let slot = |row: usize| table[row / PAGE] * PAGE as u32 + (row % PAGE) as u32;
            Tensor::from_vec((0..rows).map(slot).collect::<Vec<u32>>(), rows, device).unwrap()
        };
        let pages = |table: &[u32], rows: usize| Pages {
            table: Tensor::from_slice(table, (1, table.len()), device).unwrap(),
            lengths: Tensor::new(&[rows as u32], device).unwrap(),
        };
        loaded.model.remember(&encoded, &slots(&memory, heard), &cache).unwrap();
        let all = || Tensor::arange(0u32, count as u32, device).unwrap();
        let batch = Batch {
            tokens: Tensor::from_slice(tokens, count, device).unwrap(),
            positions: all(),
            long: None,
            rows: Ragged::new(&[count], device).unwrap(),
            memory: Some(Remembered {
                rows: Ragged::new(&[count], device).unwrap(),
                pages: pages(&memory, heard),
                seen: None,
            }),
            inserts: Vec::new(),
            text: Paging { slots: slots(&text, count), pages: pages(&text, count) },
            last: all(),
        };
        Self { loaded, batch, cache }
    }

    fn logits(&self) -> Tensor {
        self.loaded.model.forward(&self.batch, &self.cache).unwrap()
    }

    fn align(&self, frames: usize) -> Aligned {
        self.loaded.model.align(&self.batch, frames, &self.cache).unwrap()
    }
}

/// How far the logits of the reference's sentence are from the reference's.
fn forced_difference(dtype: DType) -> f64 {
    let golden = Golden::read("whisper");
    let loaded = load(whisper(), dtype, None);
    let window = hear(&loaded, "short", 3000);
    let found = Forced::new(&loaded, &window, &ids(&whisper_manifest()["forced"]["tokens"])).logits();
    let expected = golden.tensor("forced", "logits").unwrap();
    let found = found.narrow(1, 0, expected.dim(1).unwrap()).unwrap();
    largest_difference(&found, expected)
}

#[test]
fn whisper_logits_equal_the_reference() {
    let difference = forced_difference(DType::F32);
    assert!(difference <= whisper_manifest()["forced"]["tolerance"].as_f64().unwrap(), "{difference}");
}

#[test]
fn whisper_in_bf16_stays_near_the_reference() {
    let difference = forced_difference(DType::BF16);
    let golden = Golden::read("whisper");
    assert!(difference <= golden.tolerance("logits_bf16_guide"), "{difference}");
    assert!(difference > golden.tolerance("logits"), "bf16 cannot be this near: {difference}");
}

const LANGUAGES: [&str; 8] = ["en", "zh", "de", "es", "ru", "ko", "fr", "ja"];
const FIRST_LANGUAGE: u32 = 402;

#[test]
fn whisper_knows_languages_as_the_reference_does() {
    let manifest = whisper_manifest();
    let loaded = load(whisper(), DType::F32, None);
    for name in ["short", "long"] {
        let logits = Forced::new(&loaded, &hear(&loaded, name, 3000), &[401]).logits();
        let logits = logits.i((0, FIRST_LANGUAGE as usize..FIRST_LANGUAGE as usize + 8)).unwrap();
        let found = candle_nn::ops::softmax(&logits, 0).unwrap().to_vec1::<f32>().unwrap();
        for (code, found) in LANGUAGES.iter().zip(found) {
            let expected = manifest["language"][name][code].as_f64().unwrap();
            let tolerance = manifest["language"]["tolerance"].as_f64().unwrap();
            assert!(
                (f64::from(found) - expected).abs() <= tolerance,
                "{name} {code}: {found}, not {expected}"
            );
        }
    }
}

#[test]
fn whisper_words_follow_time_as_in_the_reference() {
    let golden = Golden::read("whisper");
    let manifest = whisper_manifest();
    let loaded = load(whisper(), DType::F32, None);
    let runs = manifest["timing"]["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 3);
    for run in runs {
        let name = run["name"].as_str().unwrap();
        let code = run["language"].as_str().unwrap();
        let language = LANGUAGES.iter().position(|language| *language == code).unwrap() as u32;
        let text = ids(&run["text_tokens"]);
        let tokens = [&[401, FIRST_LANGUAGE + language, 411, 415], &text[..], &[400]].concat();
        let window = hear(&loaded, if name == "long" { "long" } else { "short" }, 3000);
        let columns = run["frames"].as_u64().unwrap() as usize / 2;
        let Aligned { attention, .. } = Forced::new(&loaded, &window, &tokens).align(columns);
        assert_eq!(attention.dims(), [tokens.len(), columns]);
        // What follows the first three, but the end.
        let rows = attention.narrow(0, 3, text.len() + 1).unwrap();
        let step = run["matrix_column_step"].as_u64().unwrap() as usize;
        let shown: Vec<u32> = (0..columns as u32).step_by(step).collect();
        let shown = Tensor::from_slice(&shown, shown.len(), &Device::Cpu).unwrap();
        let found = rows.index_select(&shown, 1).unwrap();
        let difference =
            largest_difference(&found, golden.tensor("timing", &format!("{name}_matrix")).unwrap());
        assert!(difference <= manifest["timing"]["tolerance"].as_f64().unwrap(), "{name}: {difference}");
    }
}
