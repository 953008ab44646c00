//! Networks against the same weights in candle-transformers: another implementation, with long and odd inputs that no
//! golden has. Where that crate is known to be wrong, it is not asked.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::{collections::HashMap, fs};

use candle_core::{DType, Device, IndexOp as _, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{clip::vision_model, llama, mistral};
use percept_models::{Checkpoint, Loaded, nn};
use serde_json::{Value, json};
use support::{fixtures, forward, largest_difference, load};
use tempfile::TempDir;

/// f32 in another order of sums, with logits of about 10.
const TOLERANCE: f64 = 1e-4;

fn weights(name: &str) -> VarBuilder<'static> {
    let file = fixtures().join(name).join("model.safetensors");
    let weights: HashMap<_, _> = candle_core::safetensors::load(file, &Device::Cpu).unwrap();
    VarBuilder::from_tensors(weights, DType::F32, &Device::Cpu)
}

fn config(name: &str) -> Value {
    Checkpoint::new(fixtures().join(name)).config().unwrap()
}

/// The fixture with another configuration.
fn changed(name: &str, change: impl FnOnce(&mut Value)) -> Loaded {
    let folder = TempDir::new().unwrap();
    for file in fs::read_dir(fixtures().join(name)).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
    }
    let mut config = config(name);
    change(&mut config);
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    load(folder.path().to_owned(), DType::F32, None)
}

/// Ids without order, the same every time.
fn tokens(count: usize) -> Vec<u32> {
    (0..count as u32).map(|index| (index * 7919 + index * index * 31) % 470 + 3).collect()
}

/// Logits of the last row, for prompts of several lengths.
fn compare(loaded: &Loaded, mut other: impl FnMut(&Tensor) -> Tensor, what: &str) {
    for count in [1, 17, 64, 301] {
        let tokens = tokens(count);
        let found = forward::logits(loaded, &tokens, Vec::new()).i(count - 1).unwrap();
        let ids = Tensor::from_vec(tokens, (1, count), &Device::Cpu).unwrap();
        let difference = largest_difference(&found, &other(&ids).flatten_all().unwrap());
        assert!(difference <= TOLERANCE, "{what}, {count} rows: {difference}");
    }
}

#[test]
fn llama_and_its_ropes() {
    let scaling = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    });
    for scaling in [Value::Null, scaling] {
        let mut text = config("llava")["text_config"].clone();
        let defaults = json!({
            "hidden_size": 64, "num_attention_heads": 4, "rms_norm_eps": 1e-6, "rope_scaling": scaling,
        });
        for (key, value) in defaults.as_object().unwrap() {
            if text.get(key).is_none_or(Value::is_null) {
                text[key] = value.clone();
            }
        }
        let loaded = changed("llava", |config| config["text_config"] = text.clone());
        let config: llama::LlamaConfig = serde_json::from_value(text).unwrap();
        let config = config.into_config(false);
        let other = llama::Llama::load(weights("llava").pp("language_model"), &config).unwrap();
        let ask = |ids: &Tensor| {
            let mut cache = llama::Cache::new(false, DType::F32, &config, &Device::Cpu).unwrap();
            other.forward(ids, 0, &mut cache).unwrap()
        };
        compare(&loaded, ask, &format!("{scaling}"));
    }
}

#[test]
fn mistral_and_its_window() {
    for window in [None, Some(16), Some(100)] {
        let loaded = changed("llava_next", |config| config["text_config"]["sliding_window"] = json!(window));
        let mut text: mistral::Config =
            serde_json::from_value(config("llava_next")["text_config"].clone()).unwrap();
        // It counts the rows before this one.
        text.sliding_window = window.map(|window| window - 1);
        let mut other = mistral::Model::new(&text, weights("llava_next").pp("language_model")).unwrap();
        let ask = |ids: &Tensor| {
            other.clear_kv_cache();
            other.forward(ids, 0).unwrap()
        };
        compare(&loaded, ask, &format!("{window:?}"));
    }
}

#[test]
fn clip_sees_the_same() {
    let vision = config("llava")["vision_config"].clone();
    let ours: nn::clip::ClipConfig = serde_json::from_value(vision.clone()).unwrap();
    let tower = weights("llava").pp("vision_tower.vision_model");
    let ours = nn::clip::ClipTower::load(&ours, 3, &tower).unwrap();
    let size = |key: &str| vision[key].as_u64().unwrap() as usize;
    let theirs = vision_model::ClipVisionConfig {
        embed_dim: size("hidden_size"),
        activation: candle_transformers::models::clip::text_model::Activation::QuickGelu,
        intermediate_size: size("intermediate_size"),
        num_hidden_layers: size("num_hidden_layers"),
        num_attention_heads: size("num_attention_heads"),
        projection_dim: 32,
        num_channels: 3,
        image_size: size("image_size"),
        patch_size: size("patch_size"),
    };
    let theirs = vision_model::ClipVisionTransformer::new(tower, &theirs).unwrap();
    let pixels = Tensor::randn(0f32, 1.0, (3, 3, 56, 56), &Device::Cpu).unwrap();
    let expected = theirs.output_hidden_states(&pixels).unwrap();
    let found = ours.states(&pixels, &[1, 2, 3]).unwrap();
    for (state, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let difference = largest_difference(found, expected);
        assert!(difference <= TOLERANCE, "state {}: {difference}", state + 1);
    }
}
