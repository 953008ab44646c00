//! Networks against the same weights in candle-transformers: another implementation, with long and odd inputs that no
//! golden has. Where that crate is known to be wrong, it is not asked.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::collections::HashMap;

use candle_core::{DType, Device, IndexOp as _, Module as _, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{clip::vision_model, llama, mistral, pixtral, qwen2, siglip};
use percept_models::{Checkpoint, Features, Insert, Loaded, MediaSize, nn};
use serde_json::{Value, json};
use support::{copy_of, edit, fixtures, forward, largest_difference, load};

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
    let folder = copy_of(name, |_| true);
    edit(folder.path(), "config.json", change);
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

/// Texts without pictures, whose three positions are one.
#[test]
fn qwen2_reads_the_same() {
    for name in ["qwen2_5_vl", "qwen2_vl"] {
        let loaded = load(fixtures().join(name), DType::F32, None);
        let text: qwen2::Config = serde_json::from_value(config(name)).unwrap();
        let mut other = qwen2::ModelForCausalLM::new(&text, weights(name)).unwrap();
        let ask = |ids: &Tensor| {
            other.clear_kv_cache();
            other.forward(ids, 0).unwrap()
        };
        compare(&loaded, ask, name);
    }
}

/// Pictures of odd sizes, two in one call, and the text behind them.
#[test]
fn pixtral_sees_and_reads_the_same() {
    let loaded = load(fixtures().join("pixtral"), DType::F32, None);
    let config: pixtral::llava::Config = serde_json::from_value(config("pixtral")).unwrap();
    let other = pixtral::llava::Model::new(&config, weights("pixtral")).unwrap();
    let sizes = [(16, 112), (96, 48), (112, 112)];
    let pixels =
        sizes.map(|(height, width)| Tensor::randn(0f32, 1.0, (1, 3, height, width), &Device::Cpu).unwrap());
    let expected = pixels.each_ref().map(|pixels| {
        let state = other.vision_tower.forward(pixels).unwrap();
        other.multi_modal_projector.forward(&state).unwrap().squeeze(0).unwrap()
    });
    let mut features = Vec::new();
    for (pixels, (height, width)) in pixels.iter().zip(sizes) {
        let tensor = pixels.squeeze(0).unwrap();
        features.push(Features { tensor, size: MediaSize::Image { width, height } });
    }
    let found = loaded.model.encode(&features).unwrap();
    let all = Tensor::cat(&expected, 0).unwrap();
    let difference = largest_difference(&found, &all);
    assert!(difference <= TOLERANCE, "rows: {difference}");

    // The text, with the second picture's rows in the middle of it.
    let rows = expected[1].dim(0).unwrap();
    let tokens = tokens(rows + 40);
    let insert = Insert { at: 20, rows: expected[1].clone() };
    let found = forward::logits(&loaded, &tokens, vec![insert]).i(tokens.len() - 1).unwrap();
    let mut text = other.language_model.clone();
    let ids = Tensor::from_slice(&tokens, (1, tokens.len()), &Device::Cpu).unwrap();
    let embedded = text.embed_tokens().forward(&ids).unwrap();
    let (front, back) = (embedded.narrow(1, 0, 20).unwrap(), embedded.narrow(1, 20 + rows, 20).unwrap());
    let embedded = Tensor::cat(&[&front, &expected[1].unsqueeze(0).unwrap(), &back], 1).unwrap();
    let count = tokens.len();
    let mask: Vec<f32> = (0..count * count)
        .map(|index| if index % count > index / count { f32::NEG_INFINITY } else { 0.0 })
        .collect();
    let mask = Tensor::from_vec(mask, (1, 1, count, count), &Device::Cpu).unwrap();
    let expected = text.forward_embeds(&embedded, Some(&mask), 0).unwrap();
    let difference = largest_difference(&found, &expected.flatten_all().unwrap());
    assert!(difference <= TOLERANCE, "logits: {difference}");
}

/// SmolVLM's tower and what the text gets of it, the order of a block's patches being written out.
#[test]
fn siglip_sees_the_same() {
    let loaded = load(fixtures().join("smolvlm"), DType::F32, None);
    let mut vision = config("smolvlm")["vision_config"].clone();
    vision["intermediate_size"] = json!(64);
    let config: siglip::VisionConfig = serde_json::from_value(vision).unwrap();
    let model = weights("smolvlm").pp("model");
    let tower = siglip::VisionModel::new(&config, false, model.pp("vision_model")).unwrap();
    let pixels = Tensor::randn(0f32, 1.0, (3, 3, 56, 56), &Device::Cpu).unwrap();
    let rows = tower.forward(&pixels).unwrap();
    let (side, block, width) = (4, 2, config.hidden_size);
    let mut blocks = Vec::new();
    for picture in 0..3 {
        for (y, x) in (0..side / block).flat_map(|y| (0..side / block).map(move |x| (y, x))) {
            let patches =
                (0..block).flat_map(|dy| (0..block).map(move |dx| (y * block + dy) * side + x * block + dx));
            let patches: Vec<Tensor> = patches.map(|patch| rows.i((picture, patch)).unwrap()).collect();
            blocks.push(Tensor::cat(&patches, 0).unwrap());
        }
    }
    let blocks = Tensor::stack(&blocks, 0).unwrap();
    let projection =
        model.get((64, block * block * width), "connector.modality_projection.proj.weight").unwrap();
    let expected = blocks.matmul(&projection.t().unwrap()).unwrap();
    let size = MediaSize::Image { width: 56, height: 56 };
    let found = loaded.model.encode(&[Features { tensor: pixels, size }]).unwrap();
    let difference = largest_difference(&found, &expected);
    assert!(difference <= TOLERANCE, "{difference}");
}
