//! What several test files share: fixtures, goldens and pictures.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "tests")]

pub mod server;

use std::{collections::HashMap, fs, path::PathBuf};

use candle_core::{DType, Device, Tensor};
use percept_models::{Checkpoint, Fit, LoadOptions, Loaded};
use serde::Deserialize;

pub fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

pub fn llava() -> PathBuf {
    fixtures().join("llava")
}

pub fn load(folder: PathBuf, dtype: DType, fit: Option<Fit>) -> Loaded {
    let options =
        LoadOptions { device: Device::Cpu, dtype, fit, most_bytes: u64::MAX, progress: Box::new(|_, _| {}) };
    percept_models::load(&Checkpoint::new(folder), options).expect("the fixture loads")
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

#[derive(Debug, Deserialize)]
pub struct Goldens {
    pub tolerance: HashMap<String, f64>,
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
    #[serde(default)]
    pub input_ids: Vec<u32>,
    #[serde(default)]
    pub image_spans: Vec<(usize, usize)>,
    #[serde(default)]
    pub greedy_tokens: Vec<u32>,
    #[serde(default)]
    pub greedy_text: String,
    #[serde(default)]
    pub preprocess: String,
    pub uint8_stage: Option<HashMap<String, Digest>>,
}

#[derive(Debug, Deserialize)]
pub struct Digest {
    pub shape: Vec<usize>,
    pub sha256: String,
}

impl Case {
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
