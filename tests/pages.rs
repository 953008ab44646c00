//! The pages for browsers and the description of the API, over HTTP.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::{collections::BTreeSet, fs};

use percept::{api, config::Settings};
use serde_json::Value;
use support::server::{self, check_error};

const PAGES: [&str; 3] = ["/", "/docs", "/ui/app.js"];

#[tokio::test(flavor = "multi_thread")]
async fn pages_let_nothing_else_in() {
    let server = server::start(Settings::default()).await;
    for path in PAGES {
        let response = server.get(path).await;
        assert_eq!(response.status(), 200, "{path}");
        let headers = response.headers().clone();
        let policy = headers["content-security-policy"].to_str().unwrap().to_owned();
        let rules: BTreeSet<&str> = policy.split("; ").collect();
        for rule in [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "connect-src 'self'",
            "frame-ancestors 'none'",
            "base-uri 'none'",
            "require-trusted-types-for 'script'",
        ] {
            assert!(rules.contains(rule), "{path}: {policy}");
        }
        for loose in ["unsafe", "*", "http", "data:"] {
            assert!(!policy.contains(loose), "{path}: {policy}");
        }
        assert_eq!(headers["x-content-type-options"], "nosniff");
        assert_eq!(headers["referrer-policy"], "no-referrer");
        let text = response.text().await.unwrap();
        if path != "/ui/app.js" {
            assert_eq!(headers["content-type"], "text/html; charset=utf-8");
            // What the policy would keep from running, and what it would keep from being loaded.
            for inline in ["<script>", "<style", "style=", "onclick", "https://", "http://"] {
                assert!(!text.contains(inline), "{path} has {inline}");
            }
        }
        // A browser that has it is told so.
        let tag = headers["etag"].clone();
        let again =
            reqwest::Client::new().get(server.path(path)).header("if-none-match", tag).send().await.unwrap();
        assert_eq!(again.status(), 304, "{path}");
        assert!(again.headers().contains_key("content-security-policy"));
    }
    for (path, kind) in [("/ui/sample.png", "image/png"), ("/ui/sample.wav", "audio/wav")] {
        assert_eq!(server.get(path).await.headers()["content-type"], kind);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_pages_there_is_the_api_alone() {
    let server = server::start(Settings { no_ui: Some(true), ..Settings::default() }).await;
    for path in PAGES {
        let response = server.get(path).await;
        assert_eq!(response.status(), 404, "{path}");
        assert!(!response.headers().contains_key("content-security-policy"));
        let body: Value = response.json().await.unwrap();
        check_error(&body);
        assert_eq!(body["error"]["message"], format!("Invalid URL (GET {path})"));
    }
    for path in ["/openapi.json", "/health", "/v1/models"] {
        assert_eq!(server.get(path).await.status(), 200, "{path}");
    }
}

/// Every operation that the description names is routed, however its path may be written, and there is no route that
/// it does not name.
#[tokio::test(flavor = "multi_thread")]
async fn the_description_has_every_route_and_no_other() {
    let server = server::start(Settings::default()).await;
    let document: Value = server.get("/openapi.json").await.json().await.unwrap();
    assert_eq!(document, api::document());
    let client = reqwest::Client::new();
    let mut operations = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            operations.insert(format!("{method} {path}"));
            let path = path.replace("{model}", "llava").replace("{id}", "file-1");
            let bare = path.strip_prefix("/v1").unwrap_or(&path);
            let mut spellings = vec![path.clone(), format!("{path}/")];
            if bare != path {
                spellings.extend([bare.to_owned(), format!("{bare}/")]);
            }
            for spelling in spellings {
                let verb = method.to_uppercase().parse().unwrap();
                let response = client.request(verb, server.path(&spelling)).send().await.unwrap();
                let status = response.status().as_u16();
                // Without a body, what takes one says that it is missing.
                let expected = match bare {
                    // There is no folder for them.
                    _ if ["/files", "/batches", "/messages/batches"]
                        .iter()
                        .any(|kept| bare.starts_with(kept)) =>
                    {
                        404
                    }
                    "/realtime" => 426,
                    _ if method == "post" => 415,
                    _ => 200,
                };
                assert_eq!(status, expected, "{method} {spelling}");
            }
        }
    }
    let expected = [
        "get /health",
        "get /openapi.json",
        "get /v1/models",
        "get /v1/models/{model}",
        "post /v1/audio/transcriptions",
        "post /v1/audio/translations",
        "post /v1/chat/completions",
        "post /v1/embeddings",
        "post /v1/batches",
        "delete /v1/files/{id}",
        "get /v1/messages/batches/{id}/results",
        "get /v1/realtime",
        "post /v1/realtime/client_secrets",
    ];
    for operation in expected {
        assert!(operations.contains(operation), "{operation} is not described");
    }
    // Routes are made of the table that the description is made of, and of the pages' files.
    let source = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/src/api/mod.rs")).unwrap();
    assert_eq!(source.matches(".route(").count(), 1, "a route beside the table");
}

/// What a schema says of fields is what the types say.
#[test]
fn schemas_say_what_is_read_and_written() {
    let document = api::document();
    let schemas = &document["components"]["schemas"];
    let chat = &schemas["ChatRequest"];
    assert_eq!(chat["required"], serde_json::json!(["model", "messages"]));
    assert_eq!(chat["properties"]["temperature"]["maximum"], 2.0);
    assert_eq!(chat["properties"]["messages"]["maxItems"], 10_000);
    assert_eq!(chat["properties"]["temperature"]["type"], serde_json::json!(["number", "null"]));
    let part = &schemas["Part"]["oneOf"];
    let kinds: Vec<&Value> =
        part.as_array().unwrap().iter().map(|part| &part["properties"]["type"]["const"]).collect();
    assert!(kinds.contains(&&Value::from("image_url")), "{part}");
    // An answer always has what is not left out.
    let required = schemas["ChatCompletion"]["required"].as_array().unwrap();
    assert!(required.contains(&"usage".into()) && required.contains(&"system_fingerprint".into()));
    let required = schemas["TextDelta"]["required"].as_array().unwrap();
    assert!(required.contains(&"delta".into()) && !required.contains(&"logprobs".into()));
    let form = &document["paths"]["/v1/audio/transcriptions"]["post"]["requestBody"]["content"];
    assert!(form.get("multipart/form-data").is_some(), "{form}");
    // Every reference leads somewhere, and everything is described.
    let text = document.to_string();
    for reference in text.split("\"$ref\":\"#/").skip(1) {
        let pointer = format!("/{}", reference.split('"').next().unwrap());
        assert!(document.pointer(&pointer).is_some(), "{pointer}");
    }
    for (name, schema) in schemas.as_object().unwrap() {
        for (field, property) in schema["properties"].as_object().into_iter().flatten() {
            let described = property.get("description").is_some() || property.get("$ref").is_some();
            assert!(described, "{name}.{field} is not described");
        }
    }
}
