//! The embeddings endpoint through HTTP, against vectors of transformers.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::path::Path;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use candle_core::{DType, Device, Tensor};
use futures_util::future::join_all;
use percept::{
    access::{Area, KeyFile, Terms},
    config::{self, Settings},
};
use serde_json::{Value, json};
use support::{
    Golden, copy_of, edit, fixtures, llava,
    server::{Server, check_error, data_url, start, words},
};
use tempfile::TempDir;

const PATH: &str = "/v1/embeddings";

/// A server of these checkpoints, by name.
async fn serve(models: &[(&str, &Path)]) -> Server {
    serve_with(models, Settings::default()).await
}

async fn serve_with(models: &[(&str, &Path)], settings: Settings) -> Server {
    let model = models.iter().map(|(name, folder)| format!("{name}={}", folder.display())).collect();
    start(Settings { model, ..settings }).await
}

/// The fixture of this name.
async fn serve_one(name: &str) -> Server {
    serve(&[(name, &fixtures().join(name))]).await
}

async fn embed(server: &Server, body: Value) -> Value {
    let response = server.post_to(PATH, &body).await;
    let status = response.status();
    let answer: Value = response.json().await.unwrap();
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["object"], "list");
    for (index, entry) in answer["data"].as_array().unwrap().iter().enumerate() {
        assert_eq!((&entry["object"], &entry["index"]), (&json!("embedding"), &json!(index)));
    }
    assert_eq!(answer["usage"]["prompt_tokens"], answer["usage"]["total_tokens"]);
    answer
}

async fn refuse(server: &Server, body: Value) -> (u16, Value) {
    let response = server.post_to(PATH, &body).await;
    let status = response.status().as_u16();
    let body: Value = response.json().await.unwrap();
    check_error(&body);
    (status, body["error"].clone())
}

/// The vectors of an answer, whichever form they have.
fn vectors(answer: &Value) -> Vec<Vec<f32>> {
    let vector = |entry: &Value| match &entry["embedding"] {
        Value::String(text) => {
            let bytes = STANDARD.decode(text).unwrap();
            bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect()
        }
        floats => serde_json::from_value(floats.clone()).unwrap(),
    };
    answer["data"].as_array().unwrap().iter().map(vector).collect()
}

fn check(found: &[f32], expected: &Tensor, tolerance: f64, what: &str) {
    let expected = expected.to_vec1::<f32>().unwrap();
    assert_eq!(found.len(), expected.len(), "{what}");
    for (found, expected) in found.iter().zip(&expected) {
        assert!(f64::from((found - expected).abs()) <= tolerance, "{what}: {found} is not {expected}");
    }
}

fn texts(golden: &Golden) -> Vec<String> {
    golden.manifest.cases.iter().map(|case| case.extra["text"].as_str().unwrap().to_owned()).collect()
}

fn set_pooling(folder: &TempDir, modes: &[&str], unit: bool) {
    edit(folder.path(), "1_Pooling/config.json", |config| {
        let flags = config.as_object_mut().unwrap();
        flags.retain(|key, _| !key.starts_with("pooling_mode"));
        flags.extend(modes.iter().map(|mode| (format!("pooling_mode_{mode}"), json!(true))));
    });
    if !unit {
        edit(folder.path(), "modules.json", |modules| drop(modules.as_array_mut().unwrap().pop()));
    }
}

#[tokio::test]
async fn texts_have_the_vectors_of_the_reference() {
    for name in ["bert", "xlm_roberta"] {
        let golden = Golden::read(name);
        let server = serve_one(name).await;
        let answer = embed(&server, json!({"model": name, "input": texts(&golden)})).await;
        let tokens: usize = golden.manifest.cases.iter().map(|case| case.input_ids.len()).sum();
        assert_eq!(answer["usage"]["prompt_tokens"], tokens, "{name}");
        assert_eq!(answer["model"], name);
        for (case, vector) in golden.manifest.cases.iter().zip(vectors(&answer)) {
            let expected = golden.tensor(&case.name, "unit_mean").unwrap();
            check(&vector, expected, golden.tolerance("vector"), &format!("{name} {}", case.name));
        }
        server.idle().await;
    }
}

#[tokio::test]
async fn every_way_of_pooling_is_the_reference_s() {
    let golden = Golden::read("bert");
    let kinds: [(&[&str], &[&str]); 7] = [
        (&["cls_token"], &["cls"]),
        (&["max_tokens"], &["max"]),
        (&["mean_tokens"], &["mean"]),
        (&["mean_sqrt_len_tokens"], &["mean_sqrt_len"]),
        (&["weightedmean_tokens"], &["weightedmean"]),
        (&["lasttoken"], &["lasttoken"]),
        // One behind another, in the reference's order.
        (&["mean_tokens", "cls_token", "lasttoken"], &["cls", "mean", "lasttoken"]),
    ];
    for (modes, arrays) in kinds {
        let folder = copy_of("bert", |_| true);
        set_pooling(&folder, modes, false);
        let server = serve(&[("bert", folder.path())]).await;
        let answer = embed(&server, json!({"model": "bert", "input": texts(&golden)})).await;
        for (case, vector) in golden.manifest.cases.iter().zip(vectors(&answer)) {
            let parts: Vec<_> =
                arrays.iter().map(|array| golden.tensor(&case.name, array).unwrap()).collect();
            let expected = Tensor::cat(&parts, 0).unwrap();
            // The root of a length and largest numbers are larger than means.
            check(&vector, &expected, 4.0 * golden.tolerance("vector"), &format!("{modes:?} {}", case.name));
        }
    }
    // Newer versions of the library name the mode; without its files the mean is as it is.
    let named = copy_of("bert", |_| true);
    set_pooling(&named, &[], true);
    edit(named.path(), "1_Pooling/config.json", |config| config["pooling_mode"] = json!("cls"));
    let bare = copy_of("bert", |_| true);
    std::fs::remove_file(bare.path().join("modules.json")).unwrap();
    let server = serve(&[("named", named.path()), ("bare", bare.path())]).await;
    let cls = golden.tensor("short", "cls").unwrap();
    let length = cls.sqr().unwrap().sum_all().unwrap().sqrt().unwrap();
    let unit = cls.broadcast_div(&length).unwrap();
    for (model, expected) in [("named", &unit), ("bare", golden.tensor("short", "mean").unwrap())] {
        let text = golden.manifest.cases.iter().find(|case| case.name == "short").unwrap();
        let answer = embed(&server, json!({"model": model, "input": text.extra["text"]})).await;
        check(&vectors(&answer)[0], expected, 1e-4, model);
    }
}

#[tokio::test]
async fn a_vector_does_not_depend_on_its_company() {
    for name in ["bert", "xlm_roberta", "clip", "siglip"] {
        let golden = Golden::read(name);
        let server = serve_one(name).await;
        let texts = texts(&golden);
        let all = |input: Value| json!({"model": name, "input": input, "encoding_format": "base64"});
        let together = embed(&server, all(json!(texts))).await;
        let backwards: Vec<_> = texts.iter().rev().collect();
        let others = embed(&server, all(json!(backwards))).await;
        let at_once = join_all(texts.iter().map(|text| embed(&server, all(json!(text))))).await;
        let count = texts.len();
        for (index, text) in texts.iter().enumerate() {
            let alone = embed(&server, all(json!(text))).await;
            let expected = &alone["data"][0]["embedding"];
            assert!(expected.is_string());
            assert_eq!(&together["data"][index]["embedding"], expected, "{name}: {text}");
            assert_eq!(&others["data"][count - 1 - index]["embedding"], expected, "{name}: {text}");
            assert_eq!(&at_once[index]["data"][0]["embedding"], expected, "{name}: {text}");
        }
        server.idle().await;
    }
}

#[tokio::test]
async fn pictures_lie_among_texts_as_in_the_reference() {
    for name in ["clip", "siglip"] {
        let golden = Golden::read(name);
        let server = serve_one(name).await;
        let pictures = ["land_90x60.png", "port_48x120.png", "square_56x56.png", "tiny_31x17.png"];
        let texts = texts(&golden);
        // Mixed, so that an order that is lost shows.
        let mut input: Vec<Value> = texts.iter().map(|text| json!(text)).collect();
        for (index, picture) in pictures.iter().enumerate() {
            input.insert(2 * index, json!({"image": data_url(picture)}));
        }
        input.push(json!({"text": texts[0]}));
        let answer = embed(&server, json!({"model": name, "input": input})).await;
        let mut all = vectors(&answer);
        assert_eq!(all.pop().unwrap(), all[1]);
        let seen: Vec<Vec<f32>> = (0..pictures.len()).map(|index| all.remove(index)).collect();
        for (vector, picture) in seen.iter().zip(pictures) {
            check(vector, golden.tensor(picture, "image").unwrap(), golden.tolerance("image"), picture);
        }
        for (vector, case) in all.iter().zip(&golden.manifest.cases) {
            let what = format!("{name} {}", case.name);
            check(vector, golden.tensor(&case.name, "text").unwrap(), golden.tolerance("text"), &what);
        }
        let scores = golden.tensor("scores", "cosine").unwrap().to_vec2::<f32>().unwrap();
        for (seen, scores) in seen.iter().zip(scores) {
            for (read, expected) in all.iter().zip(scores) {
                let score: f32 = seen.iter().zip(read).map(|(a, b)| a * b).sum();
                assert!((score - expected).abs() < 1e-5, "{name}: {score} is not {expected}");
            }
        }
        // Alone, in base64 without a data URL, and again from the cache.
        let bare = STANDARD.encode(std::fs::read(fixtures().join("inputs/land_90x60.png")).unwrap());
        for _ in 0..2 {
            let alone = embed(&server, json!({"model": name, "input": [{"image": bare}]})).await;
            assert_eq!(vectors(&alone)[0], seen[0]);
            let rows = if name == "clip" { 17 } else { 16 };
            assert_eq!(alone["usage"]["prompt_tokens"], rows);
        }
        server.idle().await;
    }
}

#[tokio::test]
async fn forms_of_vectors() {
    let server = serve_one("bert").await;
    let ask = |more: Value| {
        let mut body = json!({"model": "bert", "input": "a blue circle", "user": "me"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let plain = embed(&server, ask(json!({}))).await;
    assert!(plain["data"][0]["embedding"].is_array());
    let expected = vectors(&plain);
    assert_eq!(expected[0].len(), 48);
    let length: f32 = expected[0].iter().map(|number| number * number).sum();
    assert!((length - 1.0).abs() < 1e-5, "{length}");
    for more in [
        json!({"encoding_format": "float"}),
        json!({"encoding_format": null, "dimensions": null, "truncate_prompt_tokens": null}),
        json!({"dimensions": 48}),
        json!({"input": ["a blue circle"]}),
        json!({"input": [{"text": "a blue circle"}]}),
        json!({"truncate_prompt_tokens": -1}),
        json!({"truncate_prompt_tokens": 48}),
    ] {
        assert_eq!(vectors(&embed(&server, ask(more.clone())).await), expected, "{more}");
    }
    let base64 = embed(&server, ask(json!({"encoding_format": "base64"}))).await;
    assert_eq!(base64["data"][0]["embedding"].as_str().unwrap().len(), 48 * 4 / 3 * 4);
    assert_eq!(vectors(&base64), expected);
}

#[tokio::test]
async fn tokens_are_those_of_the_hosted_models() {
    let server = serve_one("bert").await;
    // tiktoken, cl100k_base: "tiktoken is great!" and "hello world".
    let (great, hello) = (json!([83, 1609, 5963, 374, 2294, 0]), json!([15339, 1917]));
    let texts = json!(["tiktoken is great!", "hello world"]);
    let expected = vectors(&embed(&server, json!({"model": "bert", "input": texts})).await);
    let lists = embed(&server, json!({"model": "bert", "input": [great, hello]})).await;
    assert_eq!(vectors(&lists), expected);
    let one = embed(&server, json!({"model": "bert", "input": hello})).await;
    assert_eq!(vectors(&one), expected[1..]);
    for (input, param) in [
        (json!([1_000_000]), "input[0]"),
        (json!([[83], [5, 200_000]]), "input[1][1]"),
        (json!([[83], []]), "input[1]"),
    ] {
        let (status, error) = refuse(&server, json!({"model": "bert", "input": input})).await;
        assert_eq!((status, &error["code"], &error["param"]), (400, &json!("invalid_value"), &json!(param)));
    }
}

#[tokio::test]
async fn vectors_are_shorter_where_the_model_was_trained_so() {
    let any = copy_of("bert", |_| true);
    edit(any.path(), "config.json", |config| config["is_matryoshka"] = json!(true));
    let some = copy_of("bert", |_| true);
    edit(some.path(), "config.json", |config| config["matryoshka_dimensions"] = json!([16, 32]));
    let server =
        serve(&[("none", &fixtures().join("bert")), ("any", any.path()), ("some", some.path())]).await;
    let ask = |model: &str, dimensions: i64| json!({"model": model, "input": "a", "dimensions": dimensions});
    let whole = vectors(&embed(&server, ask("none", 48)).await).remove(0);
    for (model, count) in [("any", 1), ("any", 20), ("some", 16), ("some", 32), ("some", 48)] {
        let vector = vectors(&embed(&server, ask(model, count as i64)).await).remove(0);
        let length = whole[..count].iter().map(|number| number * number).sum::<f32>().sqrt();
        assert_eq!(vector.len(), count);
        for (found, number) in vector.iter().zip(&whole) {
            assert!((found - number / length).abs() < 1e-6, "{model} {count}");
        }
    }
    for (model, count, code) in [
        ("none", 20, "unsupported_parameter"),
        ("some", 20, "unsupported_parameter"),
        ("any", 49, "unsupported_parameter"),
        ("any", 0, "integer_below_min_value"),
    ] {
        let (status, error) = refuse(&server, ask(model, count)).await;
        let found = (status, error["code"].as_str().unwrap(), error["param"].as_str().unwrap());
        assert_eq!(found, (400, code, "dimensions"), "{model} {count}");
    }
    let (_, error) = refuse(&server, ask("some", 20)).await;
    assert!(error["message"].as_str().unwrap().contains("16, 32, 48"), "{error}");
}

#[tokio::test]
async fn what_is_too_long_is_refused_or_cut() {
    let golden = Golden::read("bert");
    let longest = texts(&golden).pop().unwrap();
    let longer = format!("{longest} and more");
    let server = serve_one("bert").await;
    let ask = |input: Value| json!({"model": "bert", "input": input});
    for (input, param) in [
        (json!(longer), "input"),
        (json!(["a", longer, "b"]), "input[1]"),
        (json!([{"text": longer}]), "input[0].text"),
        (json!("word ".repeat(100_000)), "input"),
    ] {
        let (status, error) = refuse(&server, ask(input)).await;
        let found = (status, error["code"].as_str().unwrap(), error["param"].as_str().unwrap());
        assert_eq!(found, (400, "context_length_exceeded", param));
        assert!(error["message"].as_str().unwrap().contains("48 tokens"), "{error}");
    }
    let cut =
        |input: &str, most: i64| json!({"model": "bert", "input": input, "truncate_prompt_tokens": most});
    let whole = embed(&server, ask(json!(longest))).await;
    let found = embed(&server, cut(&longer, -1)).await;
    assert_eq!(vectors(&found), vectors(&whole), "what ends a text still ends it");
    assert_eq!(found["usage"]["prompt_tokens"], 48);
    let one = embed(&server, ask(json!("a"))).await;
    assert_eq!(vectors(&embed(&server, cut("a blue circle", 3)).await), vectors(&one));
    for (most, code) in [(2, "integer_below_min_value"), (49, "integer_above_max_value")] {
        let (status, error) = refuse(&server, cut("a", most)).await;
        assert_eq!((status, error["code"].as_str().unwrap()), (400, code));
    }
    // A server may have less than the model.
    let folder = fixtures().join("bert");
    let settings = Settings { max_context: Some(8), ..Settings::default() };
    let short = serve_with(&[("bert", &folder)], settings).await;
    let (_, error) = refuse(&short, ask(json!(longest))).await;
    assert!(error["message"].as_str().unwrap().contains("8 tokens"), "{error}");
    assert_eq!(vectors(&embed(&short, ask(json!("a"))).await), vectors(&one));
}

#[tokio::test]
async fn bad_input_is_named() {
    let models: Vec<_> = ["bert", "clip"].map(|name| (name, fixtures().join(name))).into();
    let models: Vec<_> = models.iter().map(|(name, folder)| (*name, folder.as_path())).collect();
    let server = serve(&models).await;
    let picture = data_url("land_90x60.png");
    let many = vec!["a"; 2049];
    for (model, input, code, param) in [
        ("bert", json!(""), "invalid_value", "input"),
        ("bert", json!([]), "invalid_value", "input"),
        ("bert", json!(["a", ""]), "invalid_value", "input[1]"),
        ("bert", json!([[]]), "invalid_value", "input[0]"),
        ("bert", json!(many), "array_above_max_length", "input"),
        ("bert", Value::Null, "missing_required_parameter", "input"),
        ("bert", json!(7), "invalid_type", "input"),
        ("bert", json!(["a", 7]), "invalid_type", "input"),
        ("bert", json!([7, "a"]), "invalid_type", "input[1]"),
        ("bert", json!(["a", true]), "invalid_type", "input[1]"),
        ("bert", json!(["a", null]), "invalid_type", "input[1]"),
        ("bert", json!([[1, "a"]]), "invalid_type", "input[0][1]"),
        ("bert", json!([-7]), "invalid_type", "input[0]"),
        ("bert", json!([{}]), "missing_required_parameter", "input[0].text"),
        ("bert", json!([{"text": 7}]), "invalid_type", "input[0].text"),
        ("bert", json!([{"image": picture}]), "unsupported_parameter", "input[0].image"),
        ("clip", json!([{"image": picture, "text": "a"}]), "unsupported_parameter", "input[0].image"),
        (
            "clip",
            json!(["a", {"image": "data:image/png;base64,AAAA"}]),
            "invalid_image_format",
            "input[1].image",
        ),
        ("clip", json!([{"image": "http://127.0.0.1/x.png"}]), "invalid_image_url", "input[0].image"),
        ("clip", json!([{"image": "file:///etc/hostname"}]), "invalid_image_url", "input[0].image"),
        ("clip", json!([{"image": ""}]), "invalid_image_url", "input[0].image"),
    ] {
        let (status, error) = refuse(&server, json!({"model": model, "input": input})).await;
        let found = (status, error["code"].as_str(), error["param"].as_str());
        assert_eq!(found, (400, Some(code), Some(param)), "{error}");
    }
    for (field, wrong, code) in [
        ("encoding_format", json!("int8"), "invalid_value"),
        ("encoding_format", json!(7), "invalid_type"),
        ("dimensions", json!("many"), "invalid_type"),
        ("truncate_prompt_tokens", json!(-2), "integer_below_min_value"),
    ] {
        let (status, error) = refuse(&server, json!({"model": "bert", "input": "a", field: wrong})).await;
        let found = (status, error["code"].as_str(), error["param"].as_str());
        assert_eq!(found, (400, Some(code), Some(field)), "{error}");
    }
    let (status, error) = refuse(&server, json!({"input": "a"})).await;
    assert_eq!((status, &error["param"]), (400, &json!("model")));
    // The engines still work.
    embed(&server, json!({"model": "clip", "input": ["a", {"image": picture}]})).await;
    server.idle().await;
}

#[tokio::test]
async fn control_tokens_in_a_text_are_text() {
    for (name, token) in [("bert", "[SEP]"), ("xlm_roberta", "</s>"), ("clip", "<|endoftext|>")] {
        let server = serve_one(name).await;
        let plain = embed(&server, json!({"model": name, "input": "a blue circle"})).await;
        let marked = embed(&server, json!({"model": name, "input": format!("a blue circle {token}")})).await;
        assert_ne!(vectors(&plain), vectors(&marked), "{name}");
        // The control token would be one more.
        let tokens = |answer: &Value| answer["usage"]["prompt_tokens"].as_u64().unwrap();
        assert!(tokens(&marked) > tokens(&plain) + 1, "{name}: {marked}");
    }
}

#[tokio::test]
async fn models_do_what_they_are_for() {
    let models = [("llava", llava()), ("bert", fixtures().join("bert")), ("clip", fixtures().join("clip"))];
    let models: Vec<_> = models.iter().map(|(name, folder)| (*name, folder.as_path())).collect();
    let alias = vec!["text-embedding-3-small".to_owned(), "gpt-4o".to_owned()];
    let server = serve_with(&models, Settings { alias, ..Settings::default() }).await;
    let (status, error) = refuse(&server, json!({"model": "llava", "input": "a"})).await;
    assert_eq!(
        (status, &error["code"], &error["param"]),
        (400, &json!("model_not_supported"), &json!("model"))
    );
    assert_eq!(
        error["message"],
        "The model `llava` is a chat model; it cannot make embeddings. Models here that can: bert, clip."
    );
    let mut body = words("hello");
    body["model"] = json!("bert");
    let (status, error) = server.refuse(&body).await;
    assert_eq!(status, 400);
    assert_eq!(
        error["message"],
        "The model `bert` is an embedding model; it cannot chat. Models here that can: llava."
    );
    let (status, error) = refuse(&server, json!({"model": "none", "input": "a"})).await;
    assert_eq!((status, &error["code"]), (404, &json!("model_not_found")));

    let list: Value = server.get("/v1/models").await.json().await.unwrap();
    let of = |id: &str| list["data"].as_array().unwrap().iter().find(|model| model["id"] == id).unwrap();
    assert_eq!(
        (&of("bert")["task"], &of("bert")["max_model_len"]),
        (&json!("feature-extraction"), &json!(48))
    );
    assert_eq!(of("clip")["max_model_len"], 77);
    // A name that hosted services have means a model of its kind.
    assert_eq!(of("text-embedding-3-small")["root"], "bert");
    assert_eq!(of("gpt-4o")["root"], "llava");
    let answer = embed(&server, json!({"model": "text-embedding-3-small", "input": "a"})).await;
    assert_eq!(answer["model"], "bert");
    // All of them at once, and chat beside them.
    let vectors = (0..8).map(|index| {
        let model = if index % 2 == 0 { "bert" } else { "clip" };
        embed(&server, json!({"model": model, "input": vec!["a blue circle"; 40]}))
    });
    let chat = words("hello");
    let (answer, _) = futures_util::future::join(server.ask(&chat), join_all(vectors)).await;
    assert!(answer["usage"]["completion_tokens"].as_u64().unwrap() > 0);
    server.idle().await;
}

#[tokio::test]
async fn halves_of_numbers_are_near() {
    for name in ["bert", "clip", "siglip"] {
        let folder = fixtures().join(name);
        let settings = Settings { dtype: Some(config::Dtype::Bf16), ..Settings::default() };
        let half = serve_with(&[(name, &folder)], settings).await;
        let whole = serve_one(name).await;
        let mut input = vec![json!("a blue circle"), json!("a")];
        if name != "bert" {
            input.push(json!({"image": data_url("land_90x60.png")}));
        }
        let body = json!({"model": name, "input": input});
        let (half, whole) = (vectors(&embed(&half, body.clone()).await), vectors(&embed(&whole, body).await));
        for (half, whole) in half.iter().zip(&whole) {
            let cosine: f32 = half.iter().zip(whole).map(|(a, b)| a * b).sum();
            assert!(cosine > 0.99, "{name}: {cosine}");
            assert_ne!(half, whole, "{name}");
        }
    }
}

#[tokio::test]
async fn tenants_are_counted_and_limited() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("keys.toml");
    let add = |tenant: &str, terms| KeyFile::change(&file, |keys| keys.add(tenant, terms, None)).unwrap().0;
    let usual = add("usual", Terms::default());
    let few = add("few", Terms { tokens_per_minute: std::num::NonZeroU32::new(20), ..Terms::default() });
    let chats = add("chats", Terms { endpoints: Some(vec![Area::Chat]), ..Terms::default() });
    let settings = Settings { keys: Some(file.clone()), ..Settings::default() };
    let server = serve_with(&[("bert", &fixtures().join("bert"))], settings).await;
    let ask = async |key: &str, input: Value| {
        let request = reqwest::Client::new().post(server.path(PATH)).bearer_auth(key);
        request.json(&json!({"model": "bert", "input": input})).send().await.unwrap()
    };
    let usage = async |key: &str| -> Value {
        let request = reqwest::Client::new().get(server.path("/v1/usage")).bearer_auth(key);
        request.send().await.unwrap().json().await.unwrap()
    };
    let answer: Value = ask(&usual, json!(["a", "a", "a"])).await.json().await.unwrap();
    assert_eq!(answer["usage"]["prompt_tokens"], 9);
    server.idle_with(&usual).await;
    let found = usage(&usual).await.to_string();
    assert!(found.contains("\"prompt_tokens\":9,\"cached_tokens\":0,\"completion_tokens\":0"), "{found}");
    let refused = ask(&chats, json!("a")).await;
    assert_eq!(refused.status(), 403);
    assert!(refused.text().await.unwrap().contains("(embeddings)"));
    assert_eq!(ask(&few, json!(vec!["a"; 4])).await.status(), 200);
    let limited = ask(&few, json!(vec!["a"; 4])).await;
    assert_eq!(limited.status(), 429);
    assert!(limited.headers().contains_key("retry-after"));
}

/// A request that takes long: as many texts as may be, all as long as may be.
fn long_request() -> Value {
    let text = texts(&Golden::read("bert")).pop().unwrap();
    json!({"model": "bert", "input": vec![text; 2048]})
}

#[tokio::test]
async fn a_full_queue_refuses_and_who_leaves_takes_nothing_along() {
    let settings = Settings { max_queue: Some(1), ..Settings::default() };
    let server = serve_with(&[("bert", &fixtures().join("bert"))], settings).await;
    let request = reqwest::Client::new().post(server.path(PATH)).json(&long_request());
    let leaver = tokio::spawn(request.send());
    while server.engine().await["waiting"] != 1 {
        assert!(!leaver.is_finished(), "it was over before it was seen");
    }
    let refused = server.post_to(PATH, &json!({"model": "bert", "input": "a"})).await;
    assert_eq!(refused.status(), 429);
    assert!(refused.headers().contains_key("retry-after"));
    leaver.abort();
    let _ = leaver.await;
    server.idle().await;
    embed(&server, json!({"model": "bert", "input": "a"})).await;
}

#[tokio::test]
async fn as_many_texts_as_may_be_have_a_vector_each() {
    let server = serve_one("bert").await;
    let input: Vec<String> = (0..2048).map(|index| format!("{}", index % 7)).collect();
    let found = vectors(&embed(&server, json!({"model": "bert", "input": input})).await);
    assert_eq!(found.len(), 2048);
    assert!((7..2048).all(|index| found[index] == found[index % 7]));
    assert_ne!(found[0], found[1]);
    let engine = server.engine().await;
    assert_eq!((&engine["running"], &engine["waiting"]), (&json!(0), &json!(0)));
}

/// What a checkpoint asks for and the network does not do is refused by its name.
#[test]
fn what_is_not_done_is_refused_while_loading() {
    type Change = fn(&mut Value);
    let cases: &[(&str, &str, Change, &str)] = &[
        (
            "bert",
            "config.json",
            |c| c["position_embedding_type"] = json!("relative_key"),
            "position_embedding_type",
        ),
        ("bert", "config.json", |c| c["is_decoder"] = json!(true), "is_decoder true"),
        ("bert", "config.json", |c| c["hidden_act"] = json!("mish"), "hidden_act `mish`"),
        ("bert", "config.json", |c| c["num_attention_heads"] = json!(5), "num_attention_heads 5"),
        ("bert", "config.json", |c| c["max_position_embeddings"] = json!(0), "max_position_embeddings 0"),
        (
            "xlm_roberta",
            "config.json",
            |c| c["max_position_embeddings"] = json!(2),
            "max_position_embeddings 2",
        ),
        (
            "bert",
            "modules.json",
            |c| c[2]["type"] = json!("sentence_transformers.models.Dense"),
            "modules.json type Dense is not supported; supported: Transformer, Pooling, Normalize",
        ),
        ("bert", "modules.json", |c| c[1]["path"] = json!("none"), "none/config.json is missing"),
        (
            "bert",
            "1_Pooling/config.json",
            |c| c["pooling_mode_mean_tokens"] = json!(false),
            "pooling module without a mode",
        ),
        ("bert", "1_Pooling/config.json", |c| c["pooling_mode"] = json!("sum"), "pooling_mode sum"),
        (
            "clip",
            "config.json",
            |c| c["text_config"]["num_attention_heads"] = json!(5),
            "text_config num_att",
        ),
        (
            "clip",
            "config.json",
            |c| c["vision_config"]["patch_size"] = json!(0),
            "vision_config patch_size 0",
        ),
        ("clip", "preprocessor_config.json", |c| c["crop_size"] = json!(224), "the vision tower's 56"),
        ("siglip", "config.json", |c| c["text_config"]["projection_size"] = json!(16), "projection_size 16"),
        (
            "siglip",
            "config.json",
            |c| c["vision_config"]["hidden_act"] = json!("mish"),
            "vision_config hidden_act",
        ),
    ];
    for (name, file, change, expected) in cases {
        let folder = copy_of(name, |_| true);
        edit(folder.path(), file, change);
        let options = percept_models::LoadOptions {
            device: Device::Cpu,
            dtype: DType::F32,
            fit: None,
            most_bytes: u64::MAX,
            progress: Box::new(|_, _| {}),
        };
        let loaded = percept_models::load(&percept_models::Checkpoint::new(folder.path()), options);
        let error = loaded.err().expect(expected).to_string();
        assert!(error.contains(expected), "{error}");
    }
}

/// Classes with a head on top save the network under its name.
#[tokio::test]
async fn weights_may_have_a_prefix() {
    let folder = copy_of("bert", |_| true);
    let file = folder.path().join("model.safetensors");
    let weights = candle_core::safetensors::load(&file, &Device::Cpu).unwrap();
    let renamed = weights.into_iter().map(|(name, tensor)| (format!("bert.{name}"), tensor)).collect();
    candle_core::safetensors::save(&renamed, &file).unwrap();
    let server = serve(&[("prefixed", folder.path()), ("bert", &fixtures().join("bert"))]).await;
    let ask = |model: &str| embed(&server, json!({"model": model, "input": "a"}));
    assert_eq!(vectors(&ask("prefixed").await), vectors(&ask("bert").await));
}
