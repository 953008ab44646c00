//! The checkpoint of InternVL2 in the other layouts that there are: what is converted computes the same.

use std::{collections::HashMap, fs};

use candle_core::{Device, Tensor};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::fixtures;

type Weights = HashMap<String, Tensor>;

/// A layout.
#[derive(Debug, Clone, Copy)]
pub enum Layout {
    /// The original repository's with a text of the family, such as InternVL2-1B's.
    Published(&'static str),
    /// transformers', as files have it, with a text of the family.
    Native(&'static str),
    /// transformers', as it is in memory since 4.52.
    Renamed(&'static str),
}

/// The fixture in a layout, with the prompts of the original repository.
pub fn converted(layout: Layout) -> TempDir {
    let folder = TempDir::new().unwrap();
    let source = fixtures().join("internvl2");
    for entry in fs::read_dir(&source).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    let read = |name: &str| -> Value {
        serde_json::from_str(&fs::read_to_string(source.join(name)).unwrap()).unwrap()
    };
    let write = |name: &str, value: &Value| fs::write(folder.path().join(name), value.to_string()).unwrap();
    let (Layout::Published(family) | Layout::Native(family) | Layout::Renamed(family)) = layout;
    let weights = candle_core::safetensors::load(source.join("model.safetensors"), &Device::Cpu).unwrap();
    let mut weights: Weights = weights.into_iter().flat_map(|(name, tensor)| text(&name, tensor)).collect();
    if family == "qwen2" {
        for layer in 0..2 {
            for (name, width) in [("q", 64), ("k", 32), ("v", 32)] {
                let zeros = Tensor::zeros(width, candle_core::DType::F32, &Device::Cpu).unwrap();
                weights
                    .insert(format!("language_model.model.layers.{layer}.self_attn.{name}_proj.bias"), zeros);
            }
        }
    }
    let mut config = read("config.json");
    config["llm_config"]["model_type"] = json!(family);
    config["llm_config"].as_object_mut().unwrap().remove("architectures");
    if !matches!(layout, Layout::Published(_)) {
        weights = weights.into_iter().flat_map(|(name, tensor)| vision(&name, &tensor)).collect();
        let (processor, native) = native_files(&config, &read("preprocessor_config.json"));
        config = native;
        write("preprocessor_config.json", &processor);
        fs::write(folder.path().join("chat_template.jinja"), TEMPLATE).unwrap();
    }
    if matches!(layout, Layout::Renamed(_)) {
        weights = weights.into_iter().map(|(name, tensor)| (renamed(&name), tensor)).collect();
    }
    write("config.json", &config);
    candle_core::safetensors::save(&weights, folder.path().join("model.safetensors")).unwrap();
    folder
}

const TEMPLATE: &str = "{% for turn in messages %}{{ '<|im_start|>' + turn.role + '\n' }}\
    {% for part in turn.content %}{% if part.type == 'image' %}{{ '<IMG_CONTEXT>\n' }}\
    {% else %}{{ part.text }}{% endif %}{% endfor %}{{ '<|im_end|>' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// What transformers' class has in its processor's file and in its configuration.
fn native_files(config: &Value, processor: &Value) -> (Value, Value) {
    let of = &config["vision_config"];
    let vision = json!({
        "model_type": "internvl_vision",
        "hidden_size": of["hidden_size"],
        "intermediate_size": of["intermediate_size"],
        "num_hidden_layers": of["num_hidden_layers"],
        "num_attention_heads": of["num_attention_heads"],
        "image_size": [of["image_size"], of["image_size"]],
        "patch_size": [of["patch_size"], of["patch_size"]],
        "attention_bias": true,
        "use_qk_norm": false,
    });
    let native = json!({
        "architectures": ["InternVLForConditionalGeneration"],
        "model_type": "internvl",
        "image_token_id": 484,
        "text_config": config["llm_config"],
        "vision_config": vision,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "downsample_ratio": 0.5,
        "projector_hidden_act": "gelu",
    });
    let side = &of["image_size"];
    let processor = json!({
        "image_processor_type": "GotOcr2ImageProcessor",
        "crop_to_patches": false,
        "min_patches": 1,
        "max_patches": config["max_dynamic_patch"],
        "size": {"height": side, "width": side},
        "image_mean": processor["image_mean"],
        "image_std": processor["image_std"],
        "do_center_crop": null,
        "do_rescale": true,
        "resample": 3,
    });
    (processor, native)
}

fn replaced(name: &str, pairs: &[(&str, &str)]) -> String {
    pairs.iter().fold(name.to_owned(), |name, (from, to)| name.replace(from, to))
}

/// InternLM2's weights under the names of the other families, with queries, keys and values apart.
fn text(name: &str, tensor: Tensor) -> Vec<(String, Tensor)> {
    if name.starts_with("vision_model.") || name.starts_with("mlp1.") {
        return vec![(name.to_owned(), tensor)];
    }
    let name = replaced(
        name,
        &[
            ("tok_embeddings", "embed_tokens"),
            ("attention_norm", "input_layernorm"),
            ("ffn_norm", "post_attention_layernorm"),
            ("attention.wo", "self_attn.o_proj"),
            ("feed_forward.w1", "mlp.gate_proj"),
            ("feed_forward.w3", "mlp.up_proj"),
            ("feed_forward.w2", "mlp.down_proj"),
            ("language_model.output", "language_model.lm_head"),
        ],
    );
    if !name.contains("attention.wqkv") {
        return vec![(name, tensor)];
    }
    let groups = tensor.reshape((2, 4, 16, 64)).unwrap();
    let part = |letter: &str, first, count: usize| {
        let rows = groups.narrow(1, first, count).unwrap().reshape((2 * count * 16, 64)).unwrap();
        (name.replace("attention.wqkv", &format!("self_attn.{letter}_proj")), rows)
    };
    vec![part("q", 0, 2), part("k", 2, 1), part("v", 3, 1)]
}

fn vision(name: &str, tensor: &Tensor) -> Vec<(String, Tensor)> {
    let new = replaced(
        name,
        &[
            ("vision_model.", "vision_tower."),
            ("encoder.layers.", "encoder.layer."),
            ("class_embedding", "cls_token"),
            ("position_embedding", "position_embeddings"),
            ("patch_embedding", "patch_embeddings.projection"),
            (".norm1.", ".layernorm_before."),
            (".norm2.", ".layernorm_after."),
            (".ls1", ".lambda_1"),
            (".ls2", ".lambda_2"),
            (".attn.proj.", ".attention.projection_layer."),
            ("mlp1.0.", "multi_modal_projector.layer_norm."),
            ("mlp1.1.", "multi_modal_projector.linear_1."),
            ("mlp1.3.", "multi_modal_projector.linear_2."),
        ],
    );
    if !new.contains(".attn.qkv.") {
        return vec![(new, tensor.clone())];
    }
    let parts = ["q", "k", "v"].into_iter().zip(tensor.chunk(3, 0).unwrap());
    let part = |(letter, part): (&str, Tensor)| {
        (new.replace(".attn.qkv.", &format!(".attention.{letter}_proj.")), part)
    };
    parts.map(part).collect()
}

fn renamed(name: &str) -> String {
    match name.strip_prefix("language_model.") {
        Some(rest) if rest.starts_with("lm_head.") => rest.to_owned(),
        Some(rest) => format!("model.language_model.{}", rest.strip_prefix("model.").unwrap()),
        None => format!("model.{name}"),
    }
}
