//! Checkpoints of the tests.

use std::path::Path;

use candle_core::{DType, Device};
use percept_models::{Checkpoint, LoadOptions, Loaded};

/// A checkpoint of `tests/fixtures`, in f32 on the host.
pub(super) fn loaded(name: &str) -> Loaded {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    let (device, progress) = (Device::Cpu, Box::new(|_, _| {}));
    let options = LoadOptions { device, dtype: DType::F32, fit: None, most_bytes: u64::MAX, progress };
    percept_models::load(&Checkpoint::new(folder), options).unwrap()
}
