//! Checkpoints as published, in every layout, and what is said about broken ones.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use candle_core::{DType, Device, Tensor};
use percept::{
    config::Settings,
    router::Served,
    text::{Conversation, Message, Part, Role, TextModel},
};
use percept_models::{Checkpoint, Features, LoadOptions, Loaded, MediaSize, Medium, Task};
use serde_json::{Value, json};
use support::{copy_of, edit, fixtures, internvl, largest_difference, picture};
use tempfile::TempDir;

/// A copy of the fixture that a test may change.
struct Copy {
    folder: TempDir,
}

impl Copy {
    fn new() -> Self {
        Self::of("llava")
    }

    fn of(name: &str) -> Self {
        Self { folder: copy_of(name, |_| true) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn edit(&self, name: &str, change: impl FnOnce(&mut Value)) {
        edit(self.folder.path(), name, change);
    }

    fn weights(&self) -> HashMap<String, Tensor> {
        candle_core::safetensors::load(self.path("model.safetensors"), &Device::Cpu).unwrap()
    }

    fn save(&self, name: &str, weights: &HashMap<String, Tensor>) {
        candle_core::safetensors::save(weights, self.path(name)).unwrap();
    }

    /// Splits the weights over files and writes their index.
    fn shard(&self, count: usize) {
        let weights = self.weights();
        let mut names: Vec<_> = weights.keys().cloned().collect();
        names.sort();
        let mut map = serde_json::Map::new();
        for (index, names) in names.chunks(names.len().div_ceil(count)).enumerate() {
            let file = format!("model-{:05}-of-{count:05}.safetensors", index + 1);
            self.save(&file, &names.iter().map(|name| (name.clone(), weights[name].clone())).collect());
            map.extend(names.iter().map(|name| (name.clone(), json!(file))));
        }
        fs::write(
            self.path("model.safetensors.index.json"),
            json!({"metadata": {}, "weight_map": map}).to_string(),
        )
        .unwrap();
        fs::remove_file(self.path("model.safetensors")).unwrap();
    }

    fn load(&self) -> Result<Loaded, String> {
        load(self.folder.path())
    }

    fn error(&self) -> String {
        self.load().err().expect("it should not load")
    }

    fn text(&self) -> Result<TextModel, String> {
        let loaded = self.load()?;
        let Task::Chat(info) = &loaded.task else { panic!("it does not chat") };
        TextModel::read(&Checkpoint::new(self.folder.path()), info, None).map_err(|error| error.to_string())
    }
}

fn load(folder: &Path) -> Result<Loaded, String> {
    let options = LoadOptions {
        device: Device::Cpu,
        dtype: DType::F32,
        fit: None,
        most_bytes: u64::MAX,
        progress: Box::new(|_, _| {}),
    };
    percept_models::load(&Checkpoint::new(folder), options).map_err(|error| error.to_string())
}

/// Encoder rows of a picture: they depend on the tower and the projector.
fn encode(loaded: &Loaded) -> Tensor {
    let tensor = loaded.preprocess.run(Medium::Picture(&picture("land_90x60.png"))).unwrap();
    loaded.model.encode(&[Features { tensor, size: MediaSize::Image { width: 90, height: 60 } }]).unwrap()
}

fn same(copy: &Copy) {
    let (found, expected) = (copy.load().unwrap(), load(&fixtures().join("llava")).unwrap());
    assert!(largest_difference(&encode(&found), &encode(&expected)) == 0.0);
}

#[test]
fn several_files_are_one_checkpoint() {
    let copy = Copy::new();
    copy.shard(3);
    same(&copy);
}

#[test]
fn newer_names_are_the_same_weights() {
    for rules in [
        // transformers 4.52 and later, in memory
        [
            ("language_model.model.", "model.language_model."),
            ("language_model.lm_head.", "lm_head."),
            ("vision_tower.", "model.vision_tower."),
            ("multi_modal_projector.", "model.multi_modal_projector."),
        ],
        // transformers 5
        [
            ("language_model.model.", "model.language_model."),
            ("language_model.lm_head.", "lm_head."),
            ("vision_tower.vision_model.", "model.vision_tower."),
            ("multi_modal_projector.", "model.multi_modal_projector."),
        ],
    ] {
        let copy = Copy::new();
        let rename = |name: String| {
            let rule = rules.iter().find_map(|(old, new)| Some(format!("{new}{}", name.strip_prefix(old)?)));
            rule.unwrap_or(name)
        };
        let weights: HashMap<_, _> =
            copy.weights().into_iter().map(|(name, tensor)| (rename(name), tensor)).collect();
        assert!(weights.contains_key("lm_head.weight"));
        copy.save("model.safetensors", &weights);
        same(&copy);
    }
}

#[test]
fn weights_in_f16_are_read_as_what_is_asked_for() {
    let copy = Copy::new();
    let half = |tensor: Tensor| tensor.to_dtype(DType::F16).unwrap();
    let weights: HashMap<_, _> =
        copy.weights().into_iter().map(|(name, tensor)| (name, half(tensor))).collect();
    copy.save("model.safetensors", &weights);
    let loaded = copy.load().unwrap();
    assert_eq!(loaded.dtype, DType::F32);
    assert!(largest_difference(&encode(&loaded), &encode(&load(&fixtures().join("llava")).unwrap())) < 0.02);
}

#[test]
fn tensors_that_nothing_asks_for_do_not_matter() {
    let copy = Copy::new();
    let mut weights = copy.weights();
    let ids = Tensor::arange(0i64, 17, &Device::Cpu).unwrap();
    weights.insert("vision_tower.vision_model.embeddings.position_ids".into(), ids.clone());
    copy.save("model.safetensors", &weights);
    same(&copy);
    assert_eq!(copy.load().unwrap().weight_bytes, load(&fixtures().join("llava")).unwrap().weight_bytes);

    let name = "language_model.model.norm.weight";
    weights.insert(name.into(), ids);
    copy.save("model.safetensors", &weights);
    assert!(copy.error().contains("has shape [17]"), "{}", copy.error());
    weights.insert(name.into(), Tensor::zeros(64, DType::I64, &Device::Cpu).unwrap());
    copy.save("model.safetensors", &weights);
    let error = copy.error();
    assert!(error.contains("type I64") && error.contains(name), "{error}");
}

#[test]
fn weights_that_are_too_large_are_not_read() {
    let needed = load(&fixtures().join("llava")).unwrap().weight_bytes;
    assert_eq!(
        percept_models::weight_bytes(&Checkpoint::new(fixtures().join("llava")), DType::F32).unwrap(),
        needed
    );
    assert_eq!(
        percept_models::weight_bytes(&Checkpoint::new(fixtures().join("llava")), DType::BF16).unwrap(),
        needed / 2
    );
    let open = |most_bytes| {
        let read = Arc::new(Mutex::new(0));
        let heard = Arc::clone(&read);
        let progress = Box::new(move |read, _| *heard.lock().unwrap() = read);
        let options = LoadOptions { device: Device::Cpu, dtype: DType::F32, fit: None, most_bytes, progress };
        let result = percept_models::load(&Checkpoint::new(fixtures().join("llava")), options);
        let read = *read.lock().unwrap();
        (result.err().map(|error| error.to_string()), read)
    };
    assert_eq!(open(needed).0, None);
    let (error, read) = open(needed - 1);
    assert_eq!(read, 0);
    assert!(error.unwrap().contains(&needed.to_string()));
}

/// Two models with this much memory, or why there are none, and the names of those whose weights were read.
fn serve_two(second: &Path, memory: u64) -> (Result<Vec<Served>, String>, Vec<String>) {
    let settings = Settings {
        model: vec![
            format!("first={}", fixtures().join("llava").display()),
            format!("second={}", second.display()),
        ],
        memory: Some(memory.to_string().parse().unwrap()),
        max_sequences: Some(4),
        max_context: Some(1024),
        ..Settings::default()
    };
    let mut read = Vec::new();
    let served = percept::server::load(
        &settings.resolve().unwrap(),
        || (),
        |model| {
            read.push(model.to_owned());
            Box::new(|_, _| {})
        },
    );
    (served.map_err(|error| error.to_string()), read)
}

#[test]
fn several_models_share_one_budget() {
    let weights = load(&fixtures().join("llava")).unwrap().weight_bytes;
    let pages = |memory| {
        let (served, read) = serve_two(&fixtures().join("llava"), memory);
        assert_eq!(read, ["first", "second"]);
        served.unwrap().iter().map(|model| model.handle.status().pages().1).collect::<Vec<_>>()
    };
    // As much as is useful: four sequences of 1024 tokens in pages of 16.
    assert_eq!(pages(1 << 30), [256, 256]);
    let short = pages(14_000_000);
    assert!(short[0] == short[1] && (16..256).contains(&short[0]), "{short:?}");

    let (served, read) = serve_two(&fixtures().join("llava"), 2 * weights - 1);
    assert!(served.unwrap_err().contains("the weights take 1.4 MiB"));
    assert!(read.is_empty(), "weights of {read:?} were read");
    // Room for the weights, as their files have them, and for nothing else.
    let (served, read) = serve_two(&fixtures().join("llava"), 2 * weights * 11 / 10);
    assert!(served.unwrap_err().contains("the smallest useful cache"));
    assert!(read.is_empty(), "weights of {read:?} were read");
}

#[test]
fn one_model_that_cannot_be_served_is_named() {
    let copy = Copy::new();
    copy.edit("config.json", |config| config["architectures"] = json!(["GPT2LMHeadModel"]));
    let (served, read) = serve_two(copy.folder.path(), 1 << 30);
    let error = served.unwrap_err();
    assert!(error.starts_with("cannot serve second: architecture GPT2LMHeadModel"), "{error}");
    assert!(read.is_empty(), "what can be told before weights are read is told before");

    let copy = Copy::new();
    copy.edit("config.json", |config| config["projector_hidden_act"] = json!("mish"));
    let error = serve_two(copy.folder.path(), 1 << 30).0.unwrap_err();
    assert!(error.starts_with("cannot serve second: projector_hidden_act `mish`"), "{error}");
}

#[test]
fn progress_counts_to_the_end() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&seen);
    let progress = Box::new(move |read, total| heard.lock().unwrap().push((read, total)));
    let options =
        LoadOptions { device: Device::Cpu, dtype: DType::F32, fit: None, most_bytes: u64::MAX, progress };
    percept_models::load(&Checkpoint::new(fixtures().join("llava")), options).unwrap();
    let seen = seen.lock().unwrap();
    let total = seen[0].1;
    assert!(seen.iter().all(|step| step.1 == total) && seen.len() > 30);
    // The layer behind the one that is used, and its norm, are not read.
    let most = seen.iter().map(|step| step.0).max().unwrap();
    assert!(most < total && most > total * 8 / 10, "{most} of {total}");
}

#[test]
fn what_is_wrong_with_weights_is_said_precisely() {
    let name = "language_model.model.layers.1.mlp.up_proj.weight";
    let copy = Copy::new();
    let mut weights = copy.weights();
    let tensor = weights.remove(name).unwrap();
    copy.save("model.safetensors", &weights);
    assert_eq!(copy.error(), format!("tensor `{name}` is missing from model.safetensors"));

    weights.insert(name.into(), tensor.narrow(0, 0, 95).unwrap().contiguous().unwrap());
    copy.save("model.safetensors", &weights);
    assert_eq!(
        copy.error(),
        format!(
            "tensor `{name}` in model.safetensors has shape [95, 64], but the configuration needs [96, 64]"
        )
    );

    let copy = Copy::new();
    copy.shard(2);
    let second = copy.path("model-00002-of-00002.safetensors");
    let whole = fs::read(&second).unwrap();
    for length in [0, 7, 8, 100, whole.len() - 1] {
        fs::write(&second, &whole[..length]).unwrap();
        let error = copy.error();
        assert!(error.contains("model-00002-of-00002.safetensors"), "{error}");
        assert!(error.contains("truncated") || error.contains("not a safetensors file"), "{error}");
        if length > 8 {
            let header = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize + 8;
            let described = if length < header { header } else { whole.len() };
            assert!(error.contains(&format!("describes {described} bytes, it has {length}")), "{error}");
        }
    }
    fs::write(&second, b"<html>Not found</html>").unwrap();
    assert!(copy.error().contains("is not a safetensors file"), "{}", copy.error());
    let mut absurd = u64::MAX.to_le_bytes().to_vec();
    absurd.extend([0; 100]);
    fs::write(&second, absurd).unwrap();
    assert!(copy.error().contains("its header claims 18446744073709551615 bytes"), "{}", copy.error());
    fs::remove_file(&second).unwrap();
    assert!(copy.error().contains("model-00002-of-00002.safetensors is missing"), "{}", copy.error());
    fs::write(copy.path("model.safetensors.index.json"), r#"{"weight_map": {"a": "../../etc/passwd"}}"#)
        .unwrap();
    assert!(copy.error().contains("passwd is missing"), "{}", copy.error());
    fs::write(copy.path("model.safetensors.index.json"), "[]").unwrap();
    assert!(
        copy.error().contains("model.safetensors.index.json is not what it should be"),
        "{}",
        copy.error()
    );
    fs::remove_file(copy.path("model.safetensors.index.json")).unwrap();
    fs::write(copy.path("pytorch_model.bin"), "").unwrap();
    assert!(copy.error().contains("safetensors only"), "{}", copy.error());
}

#[test]
fn what_a_configuration_asks_for_and_is_not_done_is_refused_by_name() {
    let changes: &[(Change, &str)] = &[
        (
            |c| c["architectures"] = json!(["GPT2LMHeadModel"]),
            "architecture GPT2LMHeadModel is not supported",
        ),
        (|c| c["architectures"] = json!([]), "supported: LlavaForConditionalGeneration"),
        (|c| c["quantization_config"] = json!({"bits": 4}), "quantization_config"),
        (|c| c["text_config"]["model_type"] = json!("gemma"), "text_config model_type gemma"),
        (|c| c["text_config"]["hidden_act"] = json!("relu"), "text_config hidden_act `relu`"),
        (|c| c["text_config"]["attention_bias"] = json!(true), "text_config attention_bias true"),
        (|c| c["text_config"]["mlp_bias"] = json!(true), "text_config mlp_bias true"),
        (
            |c| c["text_config"]["rope_scaling"] = json!({"type": "yarn", "factor": 2}),
            "text_config rope type yarn",
        ),
        (
            |c| c["text_config"]["rope_parameters"] = json!({"rope_type": "llama3"}),
            "rope parameters without factor",
        ),
        (
            |c| {
                let factors = json!({"type": "su", "short_factor": [1.0], "long_factor": [1.0]});
                c["text_config"]["rope_scaling"] = factors;
                c["text_config"]["original_max_position_embeddings"] = json!(64);
            },
            "short_factor of length 1",
        ),
        (
            |c| c["text_config"]["rope_scaling"] = json!({"type": "mrope", "mrope_section": [1, 2, 3]}),
            "mrope_section [1, 2, 3]",
        ),
        (|c| c["text_config"]["sliding_window"] = json!(0), "text_config sliding_window 0"),
        (|c| c["text_config"]["partial_rotary_factor"] = json!(0.5), "text_config partial_rotary_factor 0.5"),
        (
            |c| {
                c["text_config"]["model_type"] = json!("qwen2");
                c["text_config"]["num_key_value_heads"] = json!(2);
                c["text_config"]["use_sliding_window"] = json!(true);
            },
            "text_config use_sliding_window true",
        ),
        (|c| c["text_config"]["num_key_value_heads"] = json!(3), "kv heads that divide"),
        (|c| c["text_config"]["num_attention_heads"] = json!(0), "kv heads that divide"),
        (
            |c| c["vision_config"]["model_type"] = json!("siglip_vision_model"),
            "vision_config model_type siglip_vision_model is not supported; supported: clip_vision_model, pixtral",
        ),
        (|c| c["vision_config"]["hidden_act"] = json!("tanh"), "vision_config hidden_act `tanh`"),
        (|c| c["vision_config"]["num_attention_heads"] = json!(5), "vision_config num_attention_heads 5"),
        (|c| c["vision_config"]["patch_size"] = json!(0), "vision_config patch_size 0"),
        (|c| c["vision_config"]["image_size"] = json!(70), "the vision tower's 70"),
        (|c| c["vision_feature_layer"] = json!(9), "vision_feature_layer 9"),
        (|c| c["vision_feature_layer"] = json!([]), "vision_feature_layer []"),
        (|c| c["vision_feature_select_strategy"] = json!("cls"), "unknown variant `cls`"),
        (|c| c["projector_hidden_act"] = json!("mish"), "projector_hidden_act `mish`"),
        (|c| c["image_aspect_ratio"] = json!("anyres"), "image_aspect_ratio anyres"),
        (|c| c["text_config"]["vocab_size"] = json!("many"), "config.json is not what it should be"),
    ];
    refused("llava", "config.json", changes);
    let changes: &[(Change, &str)] = &[
        (|c| c["size"] = json!({"shortest_edge": 224}), "the vision tower's 56"),
        (|c| c["crop_size"] = json!(224), "the vision tower's 56"),
        (|c| c["do_resize"] = json!(false), "do_resize false"),
        (|c| c["do_center_crop"] = json!(false), "do_center_crop false"),
        (|c| c["resample"] = json!(0), "resample 0"),
        (|c| c["image_mean"] = json!([0.5]), "preprocessor_config.json is not what it should be"),
    ];
    refused("llava", "preprocessor_config.json", changes);
    let copy = Copy::new();
    fs::remove_file(copy.path("config.json")).unwrap();
    assert!(copy.error().contains("config.json is missing"));
}

type Change = fn(&mut Value);

/// Copies of a fixture, each with one file changed, and what is said about it.
fn refused(fixture: &str, file: &str, changes: &[(Change, &str)]) {
    for (change, expected) in changes {
        let copy = Copy::of(fixture);
        copy.edit(file, change);
        let error = copy.error();
        assert!(error.contains(expected), "{expected}: {error}");
    }
}

#[test]
fn what_pixtral_does_not_do_is_refused_by_name() {
    let config: &[(Change, &str)] = &[
        (
            |c| c["vision_feature_select_strategy"] = json!("default"),
            "vision_feature_select_strategy default",
        ),
        (|c| c["vision_feature_layer"] = json!([-1, -2]), "vision_feature_layer with several layers"),
        (|c| c["vision_feature_layer"] = json!(3), "vision_feature_layer 3"),
        (|c| c["vision_config"]["head_dim"] = json!(8), "vision_config head_dim 8"),
        (
            |c| {
                c["vision_config"]["num_attention_heads"] = json!(16);
                c["vision_config"]["head_dim"] = json!(2);
            },
            "vision_config head_dim 2 is not supported; supported: multiples of 4",
        ),
        (|c| c["vision_config"]["num_channels"] = json!(1), "vision_config num_channels 1"),
        (|c| c["vision_config"]["patch_size"] = json!(0), "vision_config patch_size 0"),
        (|c| c["vision_config"]["hidden_act"] = json!("tanh"), "vision_config hidden_act `tanh`"),
        (|c| c["vision_config"]["image_size"] = json!(96), "image processor size 112"),
    ];
    refused("pixtral", "config.json", config);
    let processor: &[(Change, &str)] = &[
        (|c| c["patch_size"] = json!(14), "image processor patch_size Both(14)"),
        (|c| c["size"] = json!({"height": 112, "width": 112}), "image processor size Exact"),
        (|c| c["do_resize"] = json!(false), "do_resize false"),
    ];
    refused("pixtral", "preprocessor_config.json", processor);
    let token: &[(Change, &str)] =
        &[(|c| c["image_break_token"] = json!("[BR]"), "a tokenizer without [BR] is not supported")];
    refused("pixtral", "processor_config.json", token);
}

#[test]
fn what_qwen_vl_does_not_do_is_refused_by_name() {
    let both: &[(Change, &str)] = &[
        (|c| c["model_type"] = json!("qwen3_vl"), "model_type qwen3_vl"),
        (|c| c["rope_scaling"] = Value::Null, "text_config rope without mrope_section"),
        (|c| c["rope_scaling"]["mrope_section"] = json!([4, 4, 4]), "mrope_section [4, 4, 4]"),
        (|c| c["use_sliding_window"] = json!(true), "text_config use_sliding_window true"),
        (|c| c["vision_config"]["num_heads"] = json!(3), "vision_config num_attention_heads 3"),
        (|c| c["vision_config"]["num_heads"] = json!(16), "vision_config head size 2"),
        (|c| c["vision_config"]["in_channels"] = json!(1), "vision_config in_channels 1"),
        (|c| c["vision_config"]["spatial_merge_size"] = json!(0), "14, 2 and 0"),
        (|c| c["vision_config"]["patch_size"] = json!(16), "image processor Patch { side: 14"),
        (|c| c["vision_config"]["hidden_act"] = json!("tanh"), "vision_config hidden_act `tanh`"),
        (
            |c| c["vision_config"]["rope_parameters"] = json!({"rope_type": "yarn"}),
            "vision_config rope type yarn",
        ),
    ];
    refused("qwen2_5_vl", "config.json", both);
    refused("qwen2_vl", "config.json", both);
    let windowed: &[(Change, &str)] = &[
        (|c| c["vision_config"]["window_size"] = json!(27), "vision_config window_size 27"),
        (|c| c["vision_config"]["out_hidden_size"] = json!(32), "vision_config output of width 32"),
    ];
    refused("qwen2_5_vl", "config.json", windowed);
    let plain: &[(Change, &str)] =
        &[(|c| c["vision_config"]["hidden_size"] = json!(32), "vision_config output of width 32")];
    refused("qwen2_vl", "config.json", plain);
    let processor: &[(Change, &str)] = &[
        (|c| c["merge_size"] = json!(1), "image processor Patch"),
        (|c| c["temporal_patch_size"] = json!(1), "image processor Patch"),
        (
            |c| c["min_pixels"] = json!(1_000_000),
            "image processor min_pixels and max_pixels 1000000 and 28224",
        ),
        (|c| c["size"] = json!({"height": 4, "width": 4}), "missing field `shortest_edge`"),
        (|c| c["do_resize"] = json!(false), "do_resize false"),
    ];
    refused("qwen2_5_vl", "preprocessor_config.json", processor);
}

#[test]
fn newer_files_of_qwen_vl_are_the_same_model() {
    for model in ["qwen2_5_vl", "qwen2_vl"] {
        let copy = Copy::of(model);
        copy.edit("config.json", |config| {
            let mut text = config.clone();
            let text_fields = text.as_object_mut().unwrap();
            text_fields.remove("vision_config");
            text_fields.remove("rope_scaling");
            text["model_type"] = json!(format!("{model}_text"));
            text["rope_parameters"] =
                json!({"rope_type": "default", "rope_theta": 1_000_000.0, "mrope_section": [2, 3, 3]});
            *config = json!({
                "architectures": config["architectures"],
                "model_type": model,
                "image_token_id": config["image_token_id"],
                "vision_config": config["vision_config"],
                "text_config": text,
            });
            config["vision_config"]["rope_parameters"] =
                json!({"rope_type": "axial", "rope_theta": 10_000.0});
        });
        copy.edit("preprocessor_config.json", |config| {
            config["size"] = json!({"shortest_edge": 3136, "longest_edge": 28224});
            let fields = config.as_object_mut().unwrap();
            assert!(fields.remove("min_pixels").is_some() && fields.remove("max_pixels").is_some());
        });
        let size = MediaSize::Image { width: 4000, height: 3000 };
        // As transformers 4.45 to 4.48 writes it.
        let both = Copy::of(model);
        both.edit("preprocessor_config.json", |config| {
            config["size"] = json!({"min_pixels": config["min_pixels"], "max_pixels": config["max_pixels"]});
        });
        assert_eq!(
            both.load().unwrap().preprocess.footprint(size),
            load(&fixtures().join(model)).unwrap().preprocess.footprint(size)
        );
        let rename = |name: String| match name.strip_prefix("model.") {
            Some(rest) => format!("model.language_model.{rest}"),
            None if name.starts_with("visual.") => format!("model.{name}"),
            None => name,
        };
        let weights: HashMap<_, _> =
            copy.weights().into_iter().map(|(name, tensor)| (rename(name), tensor)).collect();
        copy.save("model.safetensors", &weights);
        let (newer, older) = (copy.load().unwrap(), load(&fixtures().join(model)).unwrap());
        assert!(largest_difference(&encode(&newer), &encode(&older)) == 0.0);
        let size = MediaSize::Image { width: 4000, height: 3000 };
        assert_eq!(newer.preprocess.footprint(size), older.preprocess.footprint(size));
        let (Task::Chat(newer), Task::Chat(older)) = (newer.task, older.task) else { panic!("they chat") };
        assert!(!newer.stops.is_empty() && newer.stops.iter().all(|id| older.stops.contains(id)));
        assert_eq!((newer.context, newer.placeholder), (older.context, older.placeholder));
        assert_eq!(newer.positions, older.positions);
    }
}

#[test]
fn a_patch_of_no_size_is_refused_before_anything_is_divided_by_it() {
    let changes: &[(Change, &str)] =
        &[(|c| c["vision_config"]["patch_size"] = json!(0), "vision_config patch_size 0")];
    refused("llava_next", "config.json", changes);
}

#[test]
fn pixtral_loads_with_what_may_be_absent() {
    let copy = Copy::of("pixtral");
    fs::remove_file(copy.path("processor_config.json")).unwrap();
    copy.edit("preprocessor_config.json", |c| c["patch_size"] = json!(16));
    // Weights as transformers 5 names them in memory.
    let rename = |name: String| match name.strip_prefix("language_model.") {
        Some(rest) => rest.replacen("model.", "model.language_model.", 1),
        None => format!("model.{name}"),
    };
    let weights: HashMap<_, _> =
        copy.weights().into_iter().map(|(name, tensor)| (rename(name), tensor)).collect();
    assert!(weights.contains_key("model.vision_tower.ln_pre.weight"));
    copy.save("model.safetensors", &weights);
    let expected = load(&fixtures().join("pixtral")).unwrap();
    assert!(largest_difference(&encode(&copy.load().unwrap()), &encode(&expected)) == 0.0);
}

#[test]
fn each_family_refuses_by_name_what_it_does_not_do() {
    type Change = fn(&mut Value);
    const CONFIG: &str = "config.json";
    const PROCESSOR: &str = "preprocessor_config.json";
    let changes: &[(&str, &str, Change, &str)] = &[
        (
            "internvl2",
            CONFIG,
            |c| c["vision_config"]["norm_type"] = json!("rms_norm"),
            "vision_config norm_type rms_norm",
        ),
        ("internvl2", CONFIG, |c| c["vision_config"]["qk_normalization"] = json!(true), "qk_normalization"),
        // The class's defaults are those of another tower.
        ("internvl2", CONFIG, |c| c["vision_config"] = json!({}), "vision_config norm_type rms_norm"),
        (
            "internvl2",
            CONFIG,
            |c| c["vision_config"]["image_size"] = json!([56, 70]),
            "vision_config image_size [56, 70]",
        ),
        (
            "internvl2",
            CONFIG,
            |c| c["vision_config"]["num_channels"] = json!(4),
            "vision_config num_channels 4",
        ),
        ("internvl2", CONFIG, |c| c["vision_config"]["patch_size"] = json!(0), "vision_config patch_size 0"),
        (
            "internvl2",
            CONFIG,
            |c| c["vision_config"]["num_attention_heads"] = json!(3),
            "num_attention_heads 3",
        ),
        (
            "internvl2",
            CONFIG,
            |c| c["vision_config"]["hidden_act"] = json!("mish"),
            "vision_config hidden_act `mish`",
        ),
        ("internvl2", CONFIG, |c| c["force_image_size"] = json!(70), "force_image_size 70"),
        ("internvl2", CONFIG, |c| c["select_layer"] = json!(-4), "select_layer -4"),
        ("internvl2", CONFIG, |c| c["ps_version"] = json!("v1"), "ps_version v1"),
        ("internvl2", CONFIG, |c| c["ps_version"] = Value::Null, "ps_version v1"),
        ("internvl2", CONFIG, |c| c["pad2square"] = json!(true), "pad2square true"),
        ("internvl2", CONFIG, |c| c["downsample_ratio"] = json!(0.3), "downsample_ratio 0.3"),
        ("internvl2", CONFIG, |c| c["downsample_ratio"] = json!(0.125), "downsample_ratio 0.125"),
        ("internvl2", CONFIG, |c| c["downsample_ratio"] = json!(0.0), "downsample_ratio 0"),
        ("internvl2", CONFIG, |c| c["max_dynamic_patch"] = json!(0), "max_dynamic_patch 0"),
        ("internvl2", CONFIG, |c| c["llm_config"]["model_type"] = json!("gemma2"), "model_type gemma2"),
        ("internvl2", PROCESSOR, |c| c["crop_size"] = json!(70), "the vision tower's 56"),
        (
            "internvl2",
            "tokenizer.json",
            |c| c["added_tokens"][7]["content"] = json!("x"),
            "a tokenizer without",
        ),
        (
            "llava_next",
            CONFIG,
            |c| c["vision_feature_select_strategy"] = json!("full"),
            "vision_feature_select_strategy full",
        ),
        ("llava_next", CONFIG, |c| c["image_grid_pinpoints"] = json!([[56, 100]]), "image_grid_pinpoints"),
        ("llava_next", CONFIG, |c| c["image_grid_pinpoints"] = json!([]), "image_grid_pinpoints []"),
        ("llava_next", PROCESSOR, |c| c["crop_size"] = json!(336), "image processor size 336"),
        ("llava_next", PROCESSOR, |c| c["resample"] = json!(4), "image processor resample 4"),
        (
            "phi3_v",
            CONFIG,
            |c| c["embd_layer"]["hd_transform_order"] = json!("glb_sub"),
            "hd_transform_order glb_sub",
        ),
        ("phi3_v", CONFIG, |c| c["embd_layer"]["projection_cls"] = json!("linear"), "projection_cls linear"),
        ("phi3_v", CONFIG, |c| c["embd_layer"]["use_hd_transform"] = json!(false), "use_hd_transform false"),
        (
            "phi3_v",
            CONFIG,
            |c| c["embd_layer"]["with_learnable_separator"] = json!(false),
            "learnable_separator",
        ),
        ("phi3_v", CONFIG, |c| c["img_processor"]["name"] = json!("siglip"), "img_processor name siglip"),
        (
            "phi3_v",
            CONFIG,
            |c| c["img_processor"]["type_feature"] = json!("cls_patch"),
            "type_feature cls_patch",
        ),
        ("phi3_v", CONFIG, |c| c["img_processor"]["num_img_tokens"] = json!(144), "num_img_tokens 144"),
        ("phi3_v", CONFIG, |c| c["img_processor"]["layer_idx"] = json!(9), "vision_feature_layer 9"),
        ("phi3_v", CONFIG, |c| c["rope_scaling"]["type"] = json!("yarn"), "rope type yarn"),
        ("phi3_v", CONFIG, |c| c["rope_scaling"]["long_factor"] = json!([1.0]), "long_factor of length 1"),
        ("phi3_v", PROCESSOR, |c| c["num_crops"] = json!(0), "num_crops 0"),
        ("phi3_v", "tokenizer.json", |c| c["added_tokens"] = json!([]), "a tokenizer without <|image|>"),
        ("smolvlm", CONFIG, |c| c["scale_factor"] = json!(3), "scale_factor 3"),
        ("smolvlm", CONFIG, |c| c["scale_factor"] = json!(0), "scale_factor 0"),
        (
            "smolvlm",
            CONFIG,
            |c| c["vision_config"]["num_channels"] = json!(1),
            "vision_config num_channels 1",
        ),
        ("smolvlm", CONFIG, |c| c["vision_config"]["patch_size"] = json!(0), "vision_config patch_size 0"),
        (
            "smolvlm",
            CONFIG,
            |c| c["vision_config"]["hidden_act"] = json!("relu"),
            "vision_config hidden_act `relu`",
        ),
        (
            "smolvlm",
            CONFIG,
            |c| c["vision_config"]["num_attention_heads"] = json!(5),
            "num_attention_heads 5",
        ),
        ("smolvlm", CONFIG, |c| c["text_config"]["model_type"] = json!("gemma"), "model_type gemma"),
        (
            "smolvlm",
            PROCESSOR,
            |c| c["max_image_size"]["longest_edge"] = json!(70),
            "image processor max_image_size 70",
        ),
        (
            "smolvlm",
            PROCESSOR,
            |c| c["size"] = json!({"height": 9, "width": 9}),
            "image processor size Exact",
        ),
        ("smolvlm", PROCESSOR, |c| c["size"]["longest_edge"] = json!(0), "image processor size LongestEdge"),
        ("smolvlm", PROCESSOR, |c| c["do_resize"] = json!(false), "do_resize false"),
        ("smolvlm", PROCESSOR, |c| c["resample"] = json!(5), "image processor resample 5"),
        (
            "smolvlm",
            "tokenizer.json",
            |c| c["model"]["type"] = json!("none"),
            "tokenizer.json cannot be used",
        ),
    ];
    for (name, file, change, expected) in changes {
        let copy = Copy::of(name);
        copy.edit(file, change);
        let error = copy.error();
        assert!(error.contains(expected), "{name} {expected}: {error}");
    }
}

#[test]
fn what_internvl_does_not_do_under_its_newer_names_is_refused() {
    let changes: &[(Change, &str)] = &[
        (|c| c["vision_feature_layer"] = json!([-1]), "vision_feature_layer [-1]"),
        (|c| c["vision_feature_select_strategy"] = json!("full"), "vision_feature_select_strategy full"),
        (|c| c["vision_config"]["use_mean_pooling"] = json!(false), "use_mean_pooling false"),
        (|c| c["vision_config"]["use_qk_norm"] = json!(true), "use_qk_norm"),
    ];
    for (change, expected) in changes {
        let copy = Copy { folder: internvl::converted(internvl::Layout::Native("llama")) };
        copy.edit("config.json", change);
        assert!(copy.error().contains(expected), "{expected}: {}", copy.error());
    }
}

/// Those of the original repository's `conversation.py`.
#[test]
fn prompts_of_published_code_go_before_the_template() {
    let prompt = |name: &str| {
        let copy = Copy::of("internvl2");
        copy.edit("config.json", |config| config["template"] = json!(name));
        let turns = [
            Message::new(Role::User, vec![Part::Text("one".into())]),
            Message::new(Role::Assistant, vec![Part::Text("two".into())]),
            Message::new(Role::User, vec![Part::Text("three".into())]),
        ];
        let model = copy.text().unwrap();
        let tokens = model
            .prompt(&Conversation { messages: turns.to_vec(), ..Conversation::default() }, &[], 4096)
            .unwrap()
            .tokens;
        let text = tokens.iter().map(|&id| model.tokenizer().token(id).unwrap()).collect::<String>();
        (text.replace("▁", ""), model.tokenizer().decode(&tokens).unwrap())
    };
    for name in ["internlm2-chat", "Hermes-2"] {
        let (tokens, text) = prompt(name);
        assert!(text.contains("英文名叫InternVL, 是一个有用无害的人工智能助手。"), "{text}");
        assert!(tokens.starts_with("<s><|im_start|>system<0x0A>"), "{tokens}");
        assert!(tokens.contains(
            "<|im_end|><|im_start|>user<0x0A>one<|im_end|><|im_start|>assistant<0x0A>two<|im_end|><|im_start|>user<0x0A>three<|im_end|><|im_start|>assistant<0x0A>"
        ), "{tokens}");
    }
    let (tokens, text) = prompt("internvl2_5");
    assert!(text.contains("你是书生·万象，英文名是InternVL"), "{text}");
    assert!(tokens.contains("one<|im_end|><0x0A><|im_start|>assistant<0x0A>two<|im_end|><0x0A>"), "{tokens}");
    let (_, text) = prompt("phi3-chat");
    assert!(text.contains("<|system|>\n你是由上海人工智能实验室"), "{text}");
    assert!(
        text.contains(
            "<|end|><|user|>\none<|end|><|assistant|>\ntwo<|end|><|user|>\nthree<|end|><|assistant|>\n"
        ),
        "{text}"
    );
    // The checkpoint's own, which has no system's turn of its own.
    let (tokens, _) = prompt("something else");
    assert!(tokens.starts_with("<s><|im_start|>user<0x0A>one<|im_end|><0x0A><|im_start|>"), "{tokens}");
}

#[test]
fn what_mllama_does_not_do_is_refused_by_name() {
    type Change = fn(&mut Value);
    let changes: &[(&str, Change, &str)] = &[
        (
            "config.json",
            |c| c["text_config"]["cross_attention_layers"] = json!([1, 4]),
            "text_config cross_attention_layers [1, 4]",
        ),
        (
            "config.json",
            |c| c["text_config"]["cross_attention_layers"] = json!([3, 1]),
            "rising numbers below 4",
        ),
        (
            "config.json",
            |c| c["vision_config"]["supported_aspect_ratios"] = json!([[1, 1]]),
            "vision_config supported_aspect_ratios [(1, 1)]",
        ),
        ("config.json", |c| c["vision_config"]["max_num_tiles"] = json!(0), "supported_aspect_ratios"),
        (
            "config.json",
            |c| c["vision_config"]["intermediate_layers_indices"] = json!([1, 3]),
            "vision_config intermediate_layers_indices [1, 3]",
        ),
        (
            "config.json",
            |c| c["vision_config"]["vision_output_dim"] = json!(128),
            "vision_config vision_output_dim 128",
        ),
        (
            "config.json",
            |c| c["vision_config"]["hidden_act"] = json!("tanh"),
            "vision_config hidden_act `tanh`",
        ),
        ("config.json", |c| c["vision_config"]["attention_heads"] = json!(5), "num_attention_heads 5"),
        ("config.json", |c| c["vision_config"]["num_channels"] = json!(1), "vision_config num_channels 1"),
        ("config.json", |c| c["vision_config"]["patch_size"] = json!(0), "vision_config patch_size 0"),
        (
            "preprocessor_config.json",
            |c| c["max_image_tiles"] = json!(2),
            "image processor max_image_tiles 2",
        ),
        (
            "preprocessor_config.json",
            |c| c["size"] = json!({"height": 70, "width": 70}),
            "image processor size 70",
        ),
        ("preprocessor_config.json", |c| c["do_pad"] = json!(false), "image processor do_pad false"),
    ];
    for (file, change, expected) in changes {
        let copy = Copy::of("mllama");
        copy.edit(file, change);
        let error = copy.error();
        assert!(error.contains(expected), "{expected}: {error}");
    }
}

#[test]
fn mllama_is_found_under_newer_names() {
    let copy = Copy::of("mllama");
    let expected = encode(&copy.load().unwrap());
    let rename = |name: String| match name.strip_prefix("language_model.") {
        Some(name) if name.starts_with("lm_head") => name.to_owned(),
        Some(name) => name.replacen("model.", "model.language_model.", 1),
        None => format!("model.{name}"),
    };
    let weights: HashMap<_, _> =
        copy.weights().into_iter().map(|(name, tensor)| (rename(name), tensor)).collect();
    assert!(
        weights.contains_key("lm_head.weight") && weights.contains_key("model.vision_model.class_embedding")
    );
    copy.save("model.safetensors", &weights);
    copy.edit("config.json", |config| config["image_token_id"] = config["image_token_index"].take());
    assert!(largest_difference(&encode(&copy.load().unwrap()), &expected) == 0.0);
}

#[test]
fn configurations_of_newer_and_older_files_mean_the_same() {
    let copy = Copy::new();
    copy.edit("config.json", |config| {
        config["image_token_id"] = config["image_token_index"].take();
        config.as_object_mut().unwrap().remove("image_token_index");
        config["text_config"]["rope_parameters"] = json!({"rope_theta": 10000.0, "rope_type": "default"});
        config["text_config"]["rope_scaling"] = Value::Null;
        config["vision_feature_layer"] = json!([2]);
    });
    // transformers 5 keeps the image processor in the processor's own file.
    let processor: Value =
        serde_json::from_str(&fs::read_to_string(copy.path("preprocessor_config.json")).unwrap()).unwrap();
    fs::remove_file(copy.path("preprocessor_config.json")).unwrap();
    copy.edit("processor_config.json", |config| {
        config["image_processor"] = processor;
        config["image_processor"]["size"] = json!(56);
    });
    same(&copy);
    fs::write(copy.path("processor_config.json"), "{}").unwrap();
    assert!(copy.error().contains("preprocessor_config.json is missing"));

    // Some tools save a value under both names, and null for what does not apply.
    let copy = Copy::new();
    copy.edit("config.json", |config| {
        config["image_token_id"] = config["image_token_index"].clone();
        config["text_config"]["rope_scaling"] = json!({"type": "default", "rope_type": "default"});
    });
    copy.edit("preprocessor_config.json", |config| {
        config["do_pad"] = Value::Null;
        config["rescale_factor"] = Value::Null;
        config["image_mean"] = Value::Null;
        config["resample"] = Value::Null;
    });
    same(&copy);
    copy.edit("preprocessor_config.json", |config| config["do_center_crop"] = Value::Null);
    assert!(copy.error().contains("do_center_crop false"), "{}", copy.error());

    // The original repository asks for padding in its own words.
    let copy = Copy::new();
    copy.edit("config.json", |config| config["image_aspect_ratio"] = json!("pad"));
    let padded = copy.load().unwrap().preprocess.run(Medium::Picture(&picture("land_90x60.png"))).unwrap();
    let copy = Copy::new();
    copy.edit("preprocessor_config.json", |config| config["do_pad"] = json!(true));
    let also = copy.load().unwrap().preprocess.run(Medium::Picture(&picture("land_90x60.png"))).unwrap();
    assert!(largest_difference(&padded, &also) == 0.0);
    let cropped = load(&fixtures().join("llava"))
        .unwrap()
        .preprocess
        .run(Medium::Picture(&picture("land_90x60.png")))
        .unwrap();
    assert!(largest_difference(&padded, &cropped) > 0.1);
}

#[test]
fn the_class_row_and_several_layers_can_be_asked_for() {
    let copy = Copy::new();
    copy.edit("config.json", |config| {
        config["vision_feature_select_strategy"] = json!("full");
        config["vision_feature_layer"] = json!([1, -2]);
    });
    let mut weights = copy.weights();
    let name = "multi_modal_projector.linear_1.weight";
    weights.insert(name.into(), Tensor::cat(&[&weights[name], &weights[name]], 1).unwrap());
    copy.save("model.safetensors", &weights);
    let loaded = copy.load().unwrap();
    assert_eq!(encode(&loaded).dims(), [17, 64]);
    assert_eq!(
        loaded.preprocess.footprint(MediaSize::Image { width: 9, height: 5 }).unwrap().tokens,
        vec![480; 17]
    );
}

#[test]
fn a_tied_output_needs_no_weights() {
    let copy = Copy::new();
    let mut weights = copy.weights();
    weights.remove("language_model.lm_head.weight");
    copy.save("model.safetensors", &weights);
    assert!(copy.error().contains("lm_head.weight` is missing"));
    copy.edit("config.json", |config| config["tie_word_embeddings"] = json!(true));
    copy.load().unwrap();
}

#[test]
fn chat_templates_are_found_where_checkpoints_have_them() {
    let render = |copy: &Copy| {
        let message = Message::new(Role::User, vec![Part::Text("hello".into())]);
        let model = copy.text()?;
        let prompt = model
            .prompt(&Conversation { messages: vec![message], ..Conversation::default() }, &[], 4096)
            .map_err(|error| error.to_string())?;
        model.tokenizer().decode(&prompt.tokens).map_err(|error| error.to_string())
    };
    let copy = Copy::new();
    assert_eq!(render(&copy).unwrap(), "USER: hello ASSISTANT:");
    copy.edit("tokenizer_config.json", |config| {
        config["chat_template"] = json!([{"name": "tools", "template": "x"}, {"name": "default", "template": "four {{ messages[0].content }}"}]);
    });
    copy.edit("processor_config.json", |config| {
        config["chat_template"] = json!("three {{ messages[0].content }}");
    });
    assert_eq!(render(&copy).unwrap(), "USER: hello ASSISTANT:");
    // A template that takes texts instead of parts is found out.
    fs::write(copy.path("chat_template.jinja"), "one {{ messages[0].content }}\n").unwrap();
    assert_eq!(render(&copy).unwrap(), "one hello");
    fs::remove_file(copy.path("chat_template.jinja")).unwrap();
    fs::remove_file(copy.path("chat_template.json")).unwrap();
    assert_eq!(render(&copy).unwrap(), "three hello");
    copy.edit("processor_config.json", |config| config["chat_template"] = Value::Null);
    assert_eq!(render(&copy).unwrap(), "four hello");
    copy.edit("tokenizer_config.json", |config| config["chat_template"] = json!("{{ nothing"));
    assert!(render(&copy).unwrap_err().contains("the chat template is broken"));
    copy.edit("tokenizer_config.json", |config| config["chat_template"] = json!("no words"));
    assert!(render(&copy).unwrap_err().contains("drops the text"));
    copy.edit("tokenizer_config.json", |config| config["chat_template"] = Value::Null);
    assert!(render(&copy).unwrap_err().contains("--chat-template FILE"));
    fs::remove_file(copy.path("tokenizer.json")).unwrap();
    assert!(copy.text().unwrap_err().contains("tokenizer.json"));
}

#[test]
fn templates_do_what_those_of_other_families_need() {
    let render = |template: &str, messages: &[Message]| {
        let copy = Copy::new();
        fs::write(copy.path("chat_template.jinja"), template).unwrap();
        let model = copy.text().unwrap();
        let prompt = model
            .prompt(&Conversation { messages: messages.to_vec(), ..Conversation::default() }, &[], 4096)
            .map_err(|error| error.to_string())?;
        model.tokenizer().decode(&prompt.tokens).map_err(|error| error.to_string())
    };
    let turn = |role, text: &str| Message::new(role, vec![Part::Text(text.into())]);
    let talk =
        [turn(Role::System, "be brief"), turn(Role::User, "  Hi there  "), turn(Role::Assistant, "yes")];
    for (template, expected) in [
        (
            "{% for m in messages %}{{ m.role[:3] }}={{ m.content.strip().upper() }} {% endfor %}",
            "sys=BE BRIEF use=HI THERE ass=YES ",
        ),
        (
            "{% set ns = namespace(n=0) %}\
             {% for m in messages %}{% set ns.n = ns.n + 1 %}{{ m.content }}{% endfor %}{{ ns.n }}",
            "be brief  Hi there  yes3",
        ),
        (
            "{% for m in messages %}{% if m.content is string %}{{ m.content.split(' ')|length }}{% endif %} \
             {{ m.content }}{% endfor %}",
            "2 be brief6   Hi there  1 yes",
        ),
        (
            "{%- for m in messages %}\n    {%- if not loop.first %}, {% endif %}\
             {{ m.content | trim }}\n{%- endfor %}\n",
            "be brief, Hi there, yes",
        ),
        (
            "{{ messages[1:] | length }}{{ messages | map(attribute='content') | join('|') }}",
            "2be brief|  Hi there  |yes",
        ),
        (
            "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
            "be brief  Hi there  yes",
        ),
        (
            "{% for m in messages %}{{ m.content.capitalize() }}{{ {'a': [1, '<']} | tojson }}{% endfor %}",
            "Be brief{\"a\": [1, \"<\"]}  hi there  {\"a\": [1, \"<\"]}Yes{\"a\": [1, \"<\"]}",
        ),
        (
            "{{ strftime_now('%Y') | length }}{% for m in messages %}{{ m.content }}{% endfor %}",
            "4be brief  Hi there  yes",
        ),
        // Llama 3.2's: the operator's words as one text, and the others' turns in parts.
        (
            "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] | trim }}\
             {% set messages = messages[1:] %}{% endif %}{% for m in messages %}{% for p in m.content %}\
             {% if p.type == 'text' %}[{{ p.text }}]{% endif %}{% endfor %}{% endfor %}",
            "be brief[  Hi there  ][yes]",
        ),
    ] {
        assert_eq!(render(template, &talk).as_deref(), Ok(expected), "{template}");
    }
    // One that demands alternation gets it where that is possible.
    let strict = "{% for m in messages %}{% if m.role == 'system' and not loop.first %}{{ raise_exception('system turns come first') }}{% endif %}{{ m.role[0] }}:{{ m.content }} {% endfor %}";
    let mixed =
        [turn(Role::User, "a"), turn(Role::System, "b"), turn(Role::User, "c"), turn(Role::Assistant, "d")];
    assert_eq!(render(strict, &mixed).as_deref(), Ok("s:b u:a\nc a:d "));
    let never = "{% if messages | length > 1 %}{{ raise_exception('one turn, please') }}{% endif %}{{ messages[0].content }}";
    assert!(render(never, &talk).unwrap_err().contains("one turn, please"));
    // Work without end has an end.
    let endless = "{{ messages[0].content }}{% if messages | length > 1 %}{% for i in range(100000) %}{% for j in range(100000) %}{{ i }}{% endfor %}{% endfor %}{% endif %}";
    assert!(render(endless, &talk).is_err());
}

/// What stands between the rows of a picture is text to a tokenizer that has no tokens for it.
#[test]
fn words_around_tiles_are_read_by_the_checkpoints_own_tokenizer() {
    let copy = Copy::of("smolvlm");
    copy.edit("tokenizer.json", |tokenizer| {
        let tokens = tokenizer["added_tokens"].as_array_mut().unwrap();
        tokens.retain(|token| !token["content"].as_str().unwrap().starts_with("<row_"));
        // Two line breaks in a row are one token in most vocabularies.
        let last = tokenizer["model"]["merges"].as_array_mut().unwrap().last_mut().unwrap();
        let merged: String = last.as_array().unwrap().iter().map(|part| part.as_str().unwrap()).collect();
        *last = json!(["\u{10a}", "\u{10a}"]);
        let vocabulary = tokenizer["model"]["vocab"].as_object_mut().unwrap();
        let id = vocabulary.remove(&merged).unwrap();
        assert_eq!(id, 479);
        vocabulary.insert("\u{10a}\u{10a}".into(), id);
    });
    let (changed, published) = (copy.load().unwrap(), load(&fixtures().join("smolvlm")).unwrap());
    let size = MediaSize::Image { width: 200, height: 40 };
    let text = copy.text().unwrap();
    let tokens = |loaded: &Loaded| loaded.preprocess.footprint(size).unwrap().tokens;
    let (changed, published) = (tokens(&changed), tokens(&published));
    let spelled = |ids: &[u32]| -> String {
        ids.iter().filter(|&&id| id != 484).map(|&id| text.tokenizer().token(id).unwrap()).collect()
    };
    assert!(spelled(&changed).contains("<row_1_col_2>"), "{}", spelled(&changed));
    let rows = |ids: &[u32]| ids.iter().filter(|&&id| id == 484).count();
    assert_eq!(rows(&changed), rows(&published));
    assert!(changed.len() > published.len() + 9);
    assert_eq!(changed.iter().filter(|&&id| id == 479).count(), 1);
    assert_eq!(published.iter().filter(|&&id| id == 198).count(), 2);
}

#[test]
fn smolvlm_without_splitting_shows_one_tile() {
    let copy = Copy::of("smolvlm");
    copy.edit("preprocessor_config.json", |config| config["do_image_splitting"] = json!(false));
    // The newer class is the same network.
    copy.edit("config.json", |config| {
        config["architectures"] = json!(["SmolVLMForConditionalGeneration"]);
    });
    let loaded = copy.load().unwrap();
    let size = MediaSize::Image { width: 90, height: 60 };
    assert_eq!(loaded.preprocess.footprint(size).unwrap().tokens, [483, 486, 484, 484, 484, 484, 483]);
    assert_eq!(encode(&loaded).dims(), [4, 64]);
}
