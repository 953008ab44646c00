//! Networks without their weights: what is known of them, and random weights in their place.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::{collections::BTreeMap, fs, path::PathBuf};

use candle_core::{DType, Device};
use percept::config::Settings;
use percept_models::{Checkpoint, LoadOptions, Loaded, MediaSize, Outline, Task};
use serde_json::{Value, json};
use support::{edit, fixtures, load, server, without_weights};
use tempfile::TempDir;

/// Fixtures of all networks that are known, by name.
fn families() -> BTreeMap<String, PathBuf> {
    let folders = fs::read_dir(fixtures()).unwrap().map(|entry| entry.unwrap());
    let known = folders.filter(|entry| percept_models::architecture(&Checkpoint::new(entry.path())).is_ok());
    let known: BTreeMap<_, _> =
        known.map(|entry| (entry.file_name().into_string().unwrap(), entry.path())).collect();
    assert!(known.len() > 8 && known.contains_key("whisper"), "{known:?}");
    known
}

/// Those of them that do this.
fn families_that(does: fn(&Task) -> bool) -> Vec<String> {
    let named = families().into_keys();
    named.filter(|name| does(&outline(&without_weights(name), DType::F32).unwrap().task)).collect()
}

fn outline(folder: &TempDir, dtype: DType) -> Result<Outline, String> {
    percept_models::outline(&Checkpoint::new(folder.path()), dtype, None).map_err(|error| error.to_string())
}

fn random(folder: &TempDir, most_bytes: u64) -> Result<Loaded, String> {
    let options = LoadOptions {
        device: Device::Cpu,
        dtype: DType::F32,
        fit: None,
        most_bytes,
        progress: Box::new(|_, _| {}),
    };
    percept_models::load_random(&Checkpoint::new(folder.path()), options).map_err(|error| error.to_string())
}

#[test]
fn everything_but_the_weights_is_known_without_them() {
    for (name, path) in families() {
        let loaded = load(path.clone(), DType::F32, None).outline();
        let folder = without_weights(&name);
        let found = outline(&folder, DType::F32).unwrap();
        assert_eq!(found.cache_shape, loaded.cache_shape, "{name}");
        assert_eq!((found.width, found.encoder_row), (loaded.width, loaded.encoder_row), "{name}");
        assert_eq!(found.task.context(), loaded.task.context(), "{name}");
        let size = match found.task {
            Task::Chat(_) | Task::Embed(_) => MediaSize::Image { width: 200, height: 90 },
            Task::Transcribe(_) => MediaSize::Sound,
        };
        assert_eq!(found.preprocess.footprint(size), loaded.preprocess.footprint(size), "{name}");
        // Files have what nothing asks for: the last layers of some towers, an output beside the one that is tied.
        let share = found.weight_bytes as f64 / loaded.weight_bytes as f64;
        assert!((0.9..=1.0).contains(&share), "{name}: {share}");
        assert_eq!(outline(&folder, DType::BF16).unwrap().weight_bytes * 2, found.weight_bytes, "{name}");
    }
}

#[test]
fn random_weights_have_a_limit_too() {
    let folder = without_weights("llava");
    let bytes = outline(&folder, DType::F32).unwrap().weight_bytes;
    assert_eq!(random(&folder, bytes).unwrap().weight_bytes, bytes);
    let error = random(&folder, bytes - 1).err().unwrap();
    assert!(error.contains(&bytes.to_string()), "{error}");
}

#[test]
fn other_files_must_be_there() {
    for (name, missing) in
        [("llava", "config.json"), ("llava", "preprocessor_config.json"), ("phi3_v", "tokenizer.json")]
    {
        let folder = without_weights(name);
        fs::remove_file(folder.path().join(missing)).unwrap();
        // The newer file may have the older one's content.
        let _ = fs::remove_file(folder.path().join("processor_config.json"));
        let expected = format!("{missing} is missing");
        let error = outline(&folder, DType::F32).err().unwrap();
        assert!(error.contains(&expected), "{error}");
        let error = random(&folder, u64::MAX).err().unwrap();
        assert!(error.contains(&expected), "{error}");
    }
    let folder = without_weights("llava");
    edit(folder.path(), "config.json", |config| config["text_config"]["attention_bias"] = json!(true));
    assert!(outline(&folder, DType::F32).err().unwrap().contains("attention_bias"));
    edit(folder.path(), "config.json", |config| {
        config["text_config"]["attention_bias"] = json!(false);
        config["text_config"]["vocab_size"] = json!(1_u64 << 60);
    });
    assert!(outline(&folder, DType::F32).err().unwrap().contains("would have shape"));
}

/// Published sizes: parameters of `llava-hf/llava-1.5-7b-hf` and `openai/whisper-large-v3`, as their files count them.
#[test]
fn networks_of_published_sizes_have_as_many_weights_as_published() {
    let llava = without_weights("llava");
    edit(llava.path(), "config.json", |config| {
        config["text_config"] = json!({
            "model_type": "llama", "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "vocab_size": 32064,
        });
        config["vision_config"] = json!({
            "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096,
            "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 336, "patch_size": 14,
        });
    });
    edit(llava.path(), "preprocessor_config.json", |config| {
        config["crop_size"] = json!({"height": 336, "width": 336});
        config["size"] = json!({"shortest_edge": 336});
    });
    let found = outline(&llava, DType::BF16).unwrap();
    // The tower's last layer and the norm behind it are not used: rows come from the last layer but one.
    let unused = 12_596_224 + 2048;
    assert_eq!(found.weight_bytes, (7_063_427_072 - unused) * 2);
    assert_eq!(found.cache_shape.row_bytes(DType::BF16), 512 << 10);

    let whisper = without_weights("whisper");
    edit(whisper.path(), "config.json", |config| {
        *config = json!({
            "architectures": ["WhisperForConditionalGeneration"], "d_model": 1280, "num_mel_bins": 128,
            "encoder_layers": 32, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120,
            "decoder_layers": 32, "decoder_attention_heads": 20, "decoder_ffn_dim": 5120, "vocab_size": 51866,
        });
    });
    assert_eq!(outline(&whisper, DType::BF16).unwrap().weight_bytes, 1_543_490_560 * 2);

    // `sentence-transformers/all-MiniLM-L6-v2`, without the pooling layer of the class, which nothing uses.
    let bert = without_weights("bert");
    edit(bert.path(), "config.json", |config| {
        *config = json!({
            "architectures": ["BertModel"], "hidden_size": 384, "intermediate_size": 1536,
            "num_attention_heads": 12, "num_hidden_layers": 6, "vocab_size": 30522,
        });
    });
    let found = outline(&bert, DType::F32).unwrap().weight_bytes;
    assert_eq!(found, (22_713_216 - 384 * 384 - 384) * 4);
    // `openai/clip-vit-base-patch32`, without the scale of its scores: all defaults.
    let clip = without_weights("clip");
    edit(clip.path(), "config.json", |config| *config = json!({"architectures": ["CLIPModel"]}));
    edit(clip.path(), "preprocessor_config.json", |config| {
        (config["size"], config["crop_size"]) = (json!(224), json!(224));
    });
    assert_eq!(outline(&clip, DType::F32).unwrap().weight_bytes, (151_277_313 - 1) * 4);
    // `google/siglip-base-patch16-224`, without scale and bias of its scores: all defaults.
    let siglip = without_weights("siglip");
    edit(siglip.path(), "config.json", |config| *config = json!({"architectures": ["SiglipModel"]}));
    edit(siglip.path(), "preprocessor_config.json", |config| {
        config["size"] = json!({"height": 224, "width": 224});
    });
    assert_eq!(outline(&siglip, DType::F32).unwrap().weight_bytes, (203_155_970 - 2) * 4);
}

fn settings(folder: &TempDir) -> Settings {
    Settings {
        model: vec![format!("llava={}", folder.path().display())],
        dummy_weights: Some(true),
        ..Settings::default()
    }
}

/// Two answers of two servers.
async fn answers(name: &str) -> [Value; 2] {
    let mut answers = Vec::new();
    for _ in 0..2 {
        let folder = without_weights(name);
        let mut server = server::start(settings(&folder)).await;
        let mut body = server::words("what is shown?");
        body["messages"][0]["content"] = json!([
            server::image_part(&server::data_url("land_90x60.png")),
            {"type": "text", "text": "what is shown?"},
        ]);
        body["temperature"] = json!(0);
        let answer = server.ask(&body).await;
        assert!(answer["usage"]["completion_tokens"].as_u64().unwrap() > 0, "{name}");
        answers.push(answer["choices"].clone());
        server.stop().await;
    }
    answers.try_into().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn networks_that_see_answer_without_weight_files_and_always_the_same() {
    let mut said = Vec::new();
    for name in families_that(|task| matches!(task, Task::Chat(_))) {
        let [first, second] = answers(&name).await;
        assert_eq!(first, second, "{name}");
        said.push(first[0]["message"]["content"].as_str().unwrap().to_owned());
    }
    assert!(said.iter().any(|said| !said.is_empty()));
}

#[tokio::test(flavor = "multi_thread")]
async fn networks_that_hear_answer_without_weight_files_and_always_the_same() {
    let mut answers = Vec::new();
    for _ in 0..2 {
        let folder = without_weights("whisper");
        let mut server = server::start(settings(&folder)).await;
        let mut body = Vec::new();
        for (name, text) in [("model", "llava"), ("temperatures", "0"), ("response_format", "verbose_json")] {
            body.extend(
                format!("--b\r\ncontent-disposition: form-data; name={name}\r\n\r\n{text}\r\n").bytes(),
            );
        }
        body.extend(b"--b\r\ncontent-disposition: form-data; name=file; filename=x\r\n\r\n");
        body.extend(fs::read(fixtures().join("inputs/speechlike_3s.wav")).unwrap());
        body.extend(b"\r\n--b--\r\n");
        let request = reqwest::Client::new().post(server.path("/v1/audio/transcriptions"));
        let request = request.header("content-type", "multipart/form-data; boundary=b").body(body);
        let response = request.send().await.unwrap();
        let status = response.status();
        let answer: Value = response.json().await.unwrap();
        assert_eq!(status, 200, "{answer}");
        answers.push(answer);
        server.stop().await;
    }
    assert_eq!(answers[0]["duration"], 3.0);
    assert_eq!(answers[0], answers[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn networks_that_make_vectors_answer_without_weight_files_and_always_the_same() {
    let names = families_that(|task| matches!(task, Task::Embed(_)));
    assert!(names.len() >= 4, "{names:?}");
    for name in names {
        let mut vectors = Vec::new();
        for _ in 0..2 {
            let mut server = server::start(settings(&without_weights(&name))).await;
            let body = json!({"model": "llava", "input": ["a blue circle", "a"]});
            let response = server.post_to("/v1/embeddings", &body).await;
            assert_eq!(response.status(), 200, "{name}");
            vectors.push(response.json::<Value>().await.unwrap()["data"].clone());
            server.stop().await;
        }
        assert_eq!(vectors[0], vectors[1], "{name}");
        assert_ne!(vectors[0][0]["embedding"], vectors[0][1]["embedding"], "{name}");
    }
}

/// By hand: a decoder of two layers of 64 and 96 wide, four heads, and an output that is no embedding.
#[test]
fn weights_are_counted_by_when_they_are_used() {
    let uses = percept_models::weight_uses(&Checkpoint::new(fixtures().join("llava"))).unwrap();
    let layer = 4 * 64 * 64 + 3 * 64 * 96 + 2 * 64;
    assert_eq!((uses.layers, uses.head), (2 * layer + 64, 512 * 64));
    // What makes vectors has no text that goes on.
    let goes_on = families_that(|task| !matches!(task, Task::Embed(_)));
    for (name, path) in families().into_iter().filter(|(name, _)| goes_on.contains(name)) {
        let uses = percept_models::weight_uses(&Checkpoint::new(path)).unwrap();
        assert!(uses.encoder > 0 && uses.layers > 0 && uses.head > 0, "{name}: {uses:?}");
        let all = outline(&without_weights(&name), DType::F32).unwrap().weight_bytes / 4;
        let used = uses.encoder + uses.layers + uses.head;
        // An embedding that is only looked up is not used, and one that is the output as well is counted once.
        assert!(used <= all && used * 2 > all, "{name}: {uses:?} of {all}");
    }
}
