//! What several test files share: fixtures, goldens and pictures.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "tests")]

pub mod answers;
pub mod fake;
pub mod forward;
pub mod internvl;
pub mod pdf;
pub mod scripted;
pub mod server;
pub mod speech;

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use candle_core::{DType, Device, Tensor};
use percept_models::{Checkpoint, Features, Fit, LoadOptions, Loaded, MediaSize, Medium};
use serde::Deserialize;
use tempfile::TempDir;

pub fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

pub fn llava() -> PathBuf {
    fixtures().join("llava")
}

pub fn whisper() -> PathBuf {
    fixtures().join("whisper")
}

pub fn load(folder: PathBuf, dtype: DType, fit: Option<Fit>) -> Loaded {
    let options =
        LoadOptions { device: Device::Cpu, dtype, fit, most_bytes: u64::MAX, progress: Box::new(|_, _| {}) };
    percept_models::load(&Checkpoint::new(folder), options).expect("the fixture loads")
}

/// A copy of a fixture that a test may change: those of its files that are wanted.
pub fn copy_of(name: &str, wanted: impl Fn(&Path) -> bool) -> TempDir {
    let folder = TempDir::new().unwrap();
    copy_folder(&fixtures().join(name), folder.path(), &wanted);
    folder
}

fn copy_folder(from: &Path, to: &Path, wanted: &impl Fn(&Path) -> bool) {
    for entry in fs::read_dir(from).unwrap() {
        let file = entry.unwrap().path();
        let copy = to.join(file.file_name().unwrap());
        if file.is_dir() {
            fs::create_dir(&copy).unwrap();
            copy_folder(&file, &copy, wanted);
        } else if wanted(&file) {
            fs::copy(&file, copy).unwrap();
        }
    }
}

/// A copy of a fixture without its weights.
pub fn without_weights(name: &str) -> TempDir {
    copy_of(name, |file| file.extension().is_some_and(|ending| ending == "json"))
}

/// Changes a JSON file of a folder.
pub fn edit(folder: &Path, name: &str, change: impl FnOnce(&mut serde_json::Value)) {
    let file = folder.join(name);
    let mut json = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    change(&mut json);
    fs::write(file, json.to_string()).unwrap();
}

/// A picture of the fixtures, ready to be encoded.
pub fn features(loaded: &Loaded, name: &str) -> Features {
    let pixels = picture(name);
    let (height, width, _) = pixels.dims3().unwrap();
    let tensor = loaded.preprocess.run(Medium::Picture(&pixels)).unwrap();
    Features { tensor, size: MediaSize::Image { width, height } }
}

/// Encoder rows of a case's pictures, all pictures in one call.
pub fn encode(loaded: &Loaded, case: &Case) -> Option<Tensor> {
    let features: Vec<_> = case.images.iter().map(|name| features(loaded, name)).collect();
    (!features.is_empty()).then(|| loaded.model.encode(&features).unwrap())
}

/// A picture under `tests/fixtures/inputs`, u8 `[height, width, 3]`.
pub fn picture(name: &str) -> Tensor {
    let image = image::open(fixtures().join("inputs").join(name)).expect("the picture opens").to_rgb8();
    let (width, height) = image.dimensions();
    Tensor::from_vec(image.into_raw(), (height as usize, width as usize, 3), &Device::Cpu).unwrap()
}

/// The generated picture of the reference, described in `scripts/reference/README.md`.
pub fn pattern(width: usize, height: usize) -> Tensor {
    let mut pixels = Vec::with_capacity(width * height * 3);
    for y in 0..height {
        for x in 0..width {
            for c in 0..3 {
                pixels.push(((x * (3 + c) + y * (5 - c) + (x * y / 32) * (c + 1)) % 256) as u8);
            }
        }
    }
    Tensor::from_vec(pixels, (height, width, 3), &Device::Cpu).unwrap()
}

/// The generated sound of the reference, described in `scripts/reference/README.md`: 16 kHz, 16 bits.
pub fn sound_pattern(samples: usize) -> Vec<i16> {
    const LOUD: i64 = 6000;
    let triangle = |i: i64, period: i64| {
        let phase = i % period;
        let slope = (phase * 4 * LOUD).div_euclid(period);
        if phase * 2 < period { slope - LOUD } else { 3 * LOUD - slope }
    };
    let mut state: u32 = 12_345;
    let sample = |i: i64| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let noise = i64::from((state >> 16) % 8192) - 4096;
        let part = i / 8000;
        let period = 40 + 13 * (part % 11);
        let base = match (part * 7 + 3) % 5 {
            0 => 0,
            3 => noise,
            4 => (triangle(i, period) + triangle(i, period / 3)).div_euclid(2),
            _ => triangle(i, period),
        };
        let envelope = (i % 8000).min(8000 - i % 8000);
        (base * envelope).div_euclid(4000) as i16
    };
    (0..samples as i64).map(sample).collect()
}

/// The samples of a 16-bit wav file under `tests/fixtures/inputs` with the shortest header.
pub fn wav(name: &str) -> Vec<i16> {
    let file = fs::read(fixtures().join("inputs").join(name)).unwrap();
    file[44..].chunks_exact(2).map(|pair| i16::from_le_bytes([pair[0], pair[1]])).collect()
}

#[derive(Debug, Deserialize)]
pub struct Goldens {
    pub tolerance: HashMap<String, f64>,
    /// What ends an answer.
    #[serde(default)]
    pub stop_token_ids: Vec<u32>,
    pub cases: Vec<Case>,
}

#[derive(Debug, Deserialize)]
pub struct Case {
    pub name: String,
    #[serde(default)]
    pub messages: serde_json::Value,
    #[serde(default)]
    pub rendered: String,
    #[serde(default)]
    pub images: Vec<String>,
    /// Pictures may be counted below zero.
    #[serde(default)]
    pub input_ids: Vec<i64>,
    #[serde(default)]
    pub image_spans: Vec<(usize, usize)>,
    #[serde(default)]
    pub greedy_tokens: Vec<u32>,
    #[serde(default)]
    pub greedy_text: String,
    #[serde(default)]
    pub preprocess: String,
    pub uint8_stage: Option<HashMap<String, Digest>>,
    /// What only one family has.
    #[serde(flatten)]
    pub extra: HashMap<String, serde_json::Value>,
}

#[derive(Debug, Deserialize)]
pub struct Digest {
    pub shape: Vec<usize>,
    pub sha256: String,
}

impl Case {
    /// The prompt, where no id is below zero.
    pub fn ids(&self) -> Vec<u32> {
        self.input_ids.iter().map(|&id| id.try_into().unwrap()).collect()
    }

    /// The conversation, with the system's turn where it was told apart.
    pub fn turns(&self) -> Vec<serde_json::Value> {
        let system = self.extra.get("system").filter(|system| system.is_string());
        let system = system.map(|text| serde_json::json!({"role": "system", "content": text}));
        system.into_iter().chain(self.messages.as_array().unwrap().iter().cloned()).collect()
    }

    /// The picture treatment that the case was made with.
    pub fn fit(&self) -> Fit {
        if self.preprocess.starts_with("pad") { Fit::Pad } else { Fit::Crop }
    }
}

pub struct Golden {
    pub manifest: Goldens,
    tensors: HashMap<String, Tensor>,
}

impl Golden {
    pub fn read(model: &str) -> Self {
        let folder = fixtures().join("goldens").join(model);
        let manifest = fs::read_to_string(folder.join("manifest.json")).unwrap();
        let tensors =
            candle_core::safetensors::load(folder.join("tensors.safetensors"), &Device::Cpu).unwrap();
        Self { manifest: serde_json::from_str(&manifest).unwrap(), tensors }
    }

    pub fn tensor(&self, case: &str, array: &str) -> Option<&Tensor> {
        self.tensors.get(&format!("{case}/{array}"))
    }

    pub fn tolerance(&self, of: &str) -> f64 {
        self.manifest.tolerance[of]
    }

    /// Cases that are prompts; the others are about parts.
    pub fn prompts(&self) -> impl Iterator<Item = &Case> {
        self.manifest.cases.iter().filter(|case| !case.input_ids.is_empty())
    }
}

pub fn largest_difference(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.dims(), expected.dims());
    let [found, expected] = [found, expected]
        .map(|tensor| tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap());
    found
        .iter()
        .zip(&expected)
        .map(|(found, expected)| {
            assert!(found.is_finite());
            (found - expected).abs()
        })
        .fold(0.0, f64::max)
}

pub fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
