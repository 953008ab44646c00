//! Who may use a server, and how much of it: keys, scopes, limits, names and origins, through HTTP.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::{
    num::{NonZeroU32, NonZeroU64},
    path::{Path, PathBuf},
    time::Duration,
};

use percept::{
    access::{Area, KeyFile, Terms},
    config::Settings,
};
use reqwest::{Client, Method, RequestBuilder, Response};
use serde_json::{Value, json};
use support::{
    fixtures,
    server::{Server, check_error, data_url, image_part, raw, start, words},
};
use tempfile::TempDir;

/// Paths that need no key.
const PUBLIC: &[&str] = &["/health", "/live", "/livez", "/ready", "/readyz"];

/// A file of keys.
struct Keys {
    folder: TempDir,
}

impl Keys {
    fn new() -> Self {
        Self { folder: TempDir::new().unwrap() }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("keys.toml")
    }

    /// Another key of a tenant, which has these terms from now on.
    fn add(&self, tenant: &str, terms: Terms) -> String {
        KeyFile::change(&self.file(), |keys| keys.add(tenant, terms, None)).unwrap().0
    }

    fn settings(&self) -> Settings {
        Settings { keys: Some(self.file()), ..Settings::default() }
    }
}

/// A server with one tenant of these terms, and its key.
async fn server_for(terms: Terms) -> (Server, String) {
    let keys = Keys::new();
    let key = keys.add("acme", terms);
    // The file is read, and its folder is gone then: keys stay as they were.
    (start(keys.settings()).await, key)
}

fn ask(server: &Server, key: &str, body: &Value) -> RequestBuilder {
    Client::new().post(server.path("/v1/chat/completions")).bearer_auth(key).json(body)
}

async fn refused(request: RequestBuilder) -> (u16, Value, reqwest::header::HeaderMap) {
    let response = request.send().await.unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let body: Value = response.json().await.unwrap();
    check_error(&body);
    (status, body["error"].clone(), headers)
}

async fn get(server: &Server, path: &str, key: &str) -> Response {
    Client::new().get(server.path(path)).bearer_auth(key).send().await.unwrap()
}

#[tokio::test]
async fn every_route_but_the_public_ones_needs_a_key() {
    let keys = Keys::new();
    let all = [Area::Chat, Area::Audio, Area::Embeddings, Area::Files, Area::Models];
    let all = [&all[..], &[Area::Usage, Area::Metrics, Area::Admin]].concat();
    let key = keys.add("acme", Terms { endpoints: Some(all), ..Terms::default() });
    let files = tempfile::tempdir().unwrap();
    let server = start(Settings { files: Some(files.path().to_owned()), ..keys.settings() }).await;
    let document = percept::api::document();
    let paths = document["paths"].as_object().unwrap();
    assert!(paths.len() > 10);
    let mut checked = 0;
    for (path, methods) in paths {
        let path = path.replace("{model}", "llava");
        let bare = path.strip_prefix("/v1").unwrap_or(&path).to_owned();
        let spellings =
            [path.clone(), format!("{path}/"), bare.clone(), format!("{bare}/"), format!("{path}?a=b")];
        for method in methods.as_object().unwrap().keys() {
            let method: Method = method.to_uppercase().parse().unwrap();
            for spelling in &spellings {
                let request = || Client::new().request(method.clone(), server.path(spelling));
                let status = request().send().await.unwrap().status().as_u16();
                let wrong = request().bearer_auth("sk-percept-0").send().await.unwrap().status().as_u16();
                if PUBLIC.contains(&path.as_str()) {
                    assert_eq!((status, wrong), (200, 200), "{spelling}");
                    continue;
                }
                assert_eq!((status, wrong), (401, 401), "{method} {spelling}");
                let right = request().bearer_auth(&key).send().await.unwrap().status();
                // There is no file or batch of that name.
                let is_there = !path.contains("{id}") || right != 404;
                let refused = [401, 403, 405].contains(&right.as_u16()) || is_there && right == 404;
                assert!(!refused, "{method} {spelling}: {right}");
                checked += 1;
            }
        }
    }
    assert!(checked > 30, "only {checked}");
    // Whatever else is asked, and by any method.
    for path in ["/nowhere", "/v1/nowhere", "/v1", "/openapi.json", "/ui/nowhere"] {
        for method in ["GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH", "TRACE", "BREW"] {
            let request = Client::new().request(method.parse().unwrap(), server.path(path));
            assert_eq!(request.send().await.unwrap().status(), 401, "{method} {path}");
        }
    }
    // Pages are public, what they ask for is not.
    for path in ["/", "/docs", "/ui/app.js"] {
        assert_eq!(server.get(path).await.status(), 200, "{path}");
    }
    // Nothing but reading is public.
    for path in PUBLIC {
        let post = Client::new().post(server.path(path)).send().await.unwrap();
        assert_eq!(post.status(), 401, "{path}");
    }
}

#[tokio::test]
async fn caches_tell_a_tenant_nothing_of_another() {
    let keys = Keys::new();
    let [one, again, other] = ["one", "one", "other"].map(|tenant| keys.add(tenant, Terms::default()));
    let metrics = Terms { endpoints: Some(vec![Area::Metrics]), ..Terms::default() };
    let metrics = keys.add("metrics", metrics);
    let server = start(keys.settings()).await;
    let mut body = words(&"a prompt of several pages ".repeat(8));
    let cached = async |key: &str, body: &Value| {
        let answer: Value = ask(&server, key, body).send().await.unwrap().json().await.unwrap();
        answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
    };
    assert_eq!(cached(&one, &body).await, 0);
    assert!(cached(&one, &body).await > 0);
    assert!(cached(&again, &body).await > 0, "another key of the same tenant");
    assert_eq!(cached(&other, &body).await, 0);
    // Of pictures, too.
    body["messages"][0]["content"] = json!([image_part(&data_url("land_90x60.png"))]);
    let encoded = async || {
        let text = get(&server, "/metrics", &metrics).await.text().await.unwrap();
        let line = text.lines().find(|line| line.starts_with("percept_encoder_cache_misses_total")).unwrap();
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64
    };
    let before = encoded().await;
    for (key, new) in [(&one, 1), (&again, 1), (&other, 2), (&other, 2)] {
        cached(key, &body).await;
        assert_eq!(encoded().await - before, new);
    }
}

#[tokio::test]
async fn no_way_of_writing_a_request_passes_the_key() {
    let keys = Keys::new();
    keys.add("acme", Terms::default());
    let server = start(keys.settings()).await;
    let targets = [
        "//v1/models",
        "//health/../v1/models",
        "/health/../v1/models",
        "/health/%2e%2e/v1/models",
        "/v1/%2e%2e/v1/models",
        "/v1/models/",
        "/v1/models//",
        "/V1/models",
        "/v1/models;/health",
        "/v1/models?/health",
        "/v1/models#/health",
        "/%76%31/models",
        "/health%00/v1/models",
        "http://127.0.0.1/v1/models",
        "http://localhost/v1/models?/health",
    ];
    for target in targets {
        for method in ["GET", "POST", "OPTIONS", "HEAD"] {
            let request =
                format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
            let (status, _, body) = raw(&server.url, request.as_bytes()).await;
            // What is no request is none to anyone.
            assert!([400, 401].contains(&status), "{method} {target}: {status} {body}");
        }
    }
    // The name of the server has nothing to do with it.
    for host in
        ["localhost/health", "localhost/health?", "localhost#/health", "a@localhost", "localhost:80:80", ""]
    {
        let request = format!("GET /v1/models HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let (status, ..) = raw(&server.url, request.as_bytes()).await;
        assert!([400, 401, 403].contains(&status), "{host}: {status}");
    }
    let bare = "OPTIONS * HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    assert_eq!(raw(&server.url, bare.as_bytes()).await.0, 401);
}

#[tokio::test]
async fn a_key_comes_in_any_header_that_clients_use_and_several_must_agree() {
    let keys = Keys::new();
    let [first, second, other] = ["acme", "acme", "umbrella"].map(|name| keys.add(name, Terms::default()));
    let expired = {
        let past = Some("2020-01-01T00:00:00Z".parse().unwrap());
        KeyFile::change(&keys.file(), |keys| keys.add("acme", Terms::default(), past)).unwrap().0
    };
    let server = start(keys.settings()).await;
    let status = async |headers: &[(&str, String)]| {
        let mut request = Client::new().get(server.path("/v1/models"));
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        if status == 401 {
            assert_eq!(response.headers()["www-authenticate"], "Bearer");
            let body: Value = response.json().await.unwrap();
            check_error(&body);
            assert_eq!(body["error"]["code"], "invalid_api_key");
        }
        status
    };
    let bearer = |key: &str| ("authorization", format!("Bearer {key}"));
    let plain = |key: &str| ("x-api-key", key.to_owned());
    let offered = |key: &str| ("sec-websocket-protocol", format!("realtime, openai-insecure-api-key.{key}"));
    for (name, headers, expected) in [
        ("none", vec![], 401),
        ("bearer", vec![bearer(&first)], 200),
        ("bearer in lower case", vec![("authorization", format!("bearer {first}"))], 200),
        ("plain", vec![plain(&first)], 200),
        ("subprotocol", vec![offered(&first)], 200),
        ("empty", vec![bearer(""), plain("")], 401),
        ("another scheme", vec![("authorization", format!("Basic {first}"))], 401),
        ("no scheme", vec![("authorization", first.clone())], 401),
        ("cut", vec![bearer(&first[..first.len() - 1])], 401),
        ("longer", vec![bearer(&format!("{first}0"))], 401),
        ("its hash's name", vec![bearer("key_0000000000000000")], 401),
        ("the same twice", vec![bearer(&first), plain(&first)], 200),
        ("two of one tenant", vec![bearer(&first), plain(&second)], 200),
        ("two of two tenants", vec![bearer(&first), plain(&other)], 401),
        ("two of two tenants in one header", vec![bearer(&first), bearer(&other)], 401),
        ("one right, one wrong", vec![bearer(&first), plain("nobody's")], 401),
        ("one right, one wrong in a subprotocol", vec![bearer(&first), offered("nobody's")], 401),
        ("expired", vec![bearer(&expired)], 401),
    ] {
        assert_eq!(status(&headers).await, expected, "{name}");
    }
}

/// Waits until a key has a status.
async fn until(server: &Server, key: &str, status: u16) {
    for _ in 0..400 {
        if get(server, "/v1/models", key).await.status() == status {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("the key never became {status}");
}

#[tokio::test]
async fn the_file_counts_as_it_is_now() {
    let keys = Keys::new();
    let first = keys.add("acme", Terms::default());
    let server = start(keys.settings()).await;
    until(&server, &first, 200).await;
    let second = keys.add("acme", Terms::default());
    until(&server, &second, 200).await;
    KeyFile::change(&keys.file(), |keys| {
        let id = keys.keys[0].id.clone();
        keys.revoke(&id)
    })
    .unwrap();
    until(&server, &first, 401).await;
    assert_eq!(get(&server, "/v1/models", &second).await.status(), 200);
    // A mistake locks nobody out and lets nobody in.
    let good = std::fs::read_to_string(keys.file()).unwrap();
    std::fs::write(keys.file(), "[tenants.acme]\nrequests_per_hour = 1\n").unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(get(&server, "/v1/models", &second).await.status(), 200);
    assert_eq!(get(&server, "/v1/models", &first).await.status(), 401);
    std::fs::write(keys.file(), good.replace("[tenants.acme]", "[tenants.acme]\nendpoints = [\"chat\"]"))
        .unwrap();
    until(&server, &second, 403).await;
    std::fs::write(keys.file(), "").unwrap();
    until(&server, &second, 401).await;
}

#[tokio::test]
async fn a_tenant_sees_and_uses_what_it_may() {
    let keys = Keys::new();
    let models = |names: &[&str]| Some(names.iter().map(|name| (*name).to_owned()).collect());
    let all = keys.add("all", Terms::default());
    let one = keys.add("one", Terms { models: models(&["llava"]), ..Terms::default() });
    let alias = keys.add("alias", Terms { models: models(&["gpt-4o"]), ..Terms::default() });
    let chat = keys.add("chat", Terms { endpoints: Some(vec![Area::Chat]), ..Terms::default() });
    let folder = fixtures();
    let paths = ["llava", "whisper"].map(|name| folder.join(name).to_str().unwrap().to_owned());
    let settings = Settings {
        model: paths.into(),
        alias: vec!["gpt-4o".into()],
        hosted_names: Some(false),
        ..keys.settings()
    };
    let server = start(settings).await;
    let names = async |key: &str| {
        let list: Value = get(&server, "/v1/models", key).await.json().await.unwrap();
        let names =
            list["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap().to_owned());
        names.collect::<Vec<_>>()
    };
    assert_eq!(names(&all).await, ["llava", "gpt-4o", "whisper"]);
    assert_eq!(names(&one).await, ["llava", "gpt-4o"]);
    assert_eq!(names(&alias).await, ["gpt-4o"]);
    for (key, model, status) in [
        (&one, "llava", 200),
        (&one, "gpt-4o", 200),
        (&one, "whisper", 404),
        (&alias, "gpt-4o", 200),
        (&alias, "llava", 404),
    ] {
        assert_eq!(get(&server, &format!("/v1/models/{model}"), key).await.status(), status, "{model}");
    }
    // What one may not use does not exist: not even its name is told.
    let mut request = words("hello");
    let (status, error, _) = refused(ask(&server, &alias, &request)).await;
    assert_eq!((status, error["code"].as_str()), (404, Some("model_not_found")));
    assert!(!error["message"].as_str().unwrap().contains("whisper"), "{error}");
    request["model"] = json!("gpt-4o");
    assert_eq!(ask(&server, &alias, &request).send().await.unwrap().status(), 200);
    // Parts of the API.
    let (status, error, _) = refused(Client::new().get(server.path("/v1/models")).bearer_auth(&chat)).await;
    assert_eq!((status, error["code"].as_str()), (403, Some("insufficient_permissions")));
    assert_eq!(ask(&server, &chat, &request).send().await.unwrap().status(), 200);
    for path in ["/metrics", "/v1/usage?tenant=one"] {
        assert_eq!(get(&server, path, &all).await.status(), 403, "{path}");
    }
    // Whoever has no key hears whether it works, and nothing else.
    let health: Value = server.get("/health").await.json().await.unwrap();
    assert_eq!(health, json!({"status": "ok", "models": []}));
    let health: Value = get(&server, "/health", &one).await.json().await.unwrap();
    assert_eq!(health["models"].as_array().unwrap().len(), 1);
}

fn retry_after(headers: &reqwest::header::HeaderMap) -> (u64, u64) {
    let number = |name: &str| headers[name].to_str().unwrap().parse().unwrap();
    (number("retry-after"), number("retry-after-ms"))
}

#[tokio::test]
async fn requests_have_a_rate() {
    let terms = Terms { requests_per_minute: NonZeroU32::new(2), ..Terms::default() };
    let (server, key) = server_for(terms).await;
    for left in ["1", "0"] {
        let response = ask(&server, &key, &words("hello"))
            .header("anthropic-version", "2023-06-01")
            .send()
            .await
            .unwrap();
        assert_eq!(response.status(), 200);
        let headers = response.headers();
        assert_eq!(headers["x-ratelimit-limit-requests"], "2");
        assert_eq!(headers["x-ratelimit-remaining-requests"], left);
        let reset = headers["x-ratelimit-reset-requests"].to_str().unwrap();
        assert!(reset.ends_with('s') && reset.starts_with(|first: char| first.is_ascii_digit()), "{reset}");
        assert_eq!(headers["anthropic-ratelimit-requests-limit"], "2");
        assert!(headers["anthropic-ratelimit-requests-reset"].to_str().unwrap().ends_with('Z'));
        assert!(!headers.contains_key("x-ratelimit-limit-tokens"), "there is no such limit");
    }
    let (status, error, headers) = refused(ask(&server, &key, &words("hello"))).await;
    assert_eq!(
        (status, error["type"].as_str(), error["code"].as_str()),
        (429, Some("requests"), Some("rate_limit_exceeded"))
    );
    let (seconds, milliseconds) = retry_after(&headers);
    assert!(
        (1..=60).contains(&seconds) && milliseconds.div_ceil(1000) == seconds,
        "{seconds} {milliseconds}"
    );
    assert!(!headers.contains_key("x-should-retry"), "it makes sense to try again");
    assert_eq!(headers["x-ratelimit-remaining-requests"], "0");
    // What computes nothing is not counted.
    assert_eq!(get(&server, "/v1/models", &key).await.status(), 200);
}

#[tokio::test]
async fn tokens_have_a_rate_and_answers_count() {
    // The prompt of a few words, and its answer.
    let (server, key) = server_for(Terms::default()).await;
    let answer: Value = ask(&server, &key, &words("hello")).send().await.unwrap().json().await.unwrap();
    let [prompt, total] =
        ["prompt_tokens", "total_tokens"].map(|name| answer["usage"][name].as_u64().unwrap() as u32);
    assert!(total > prompt);

    let (server, key) =
        server_for(Terms { tokens_per_minute: NonZeroU32::new(prompt), ..Terms::default() }).await;
    assert_eq!(ask(&server, &key, &words("hello")).send().await.unwrap().status(), 200);
    let (status, error, headers) = refused(ask(&server, &key, &words("hello"))).await;
    assert_eq!((status, error["type"].as_str()), (429, Some("tokens")), "{error}");
    assert_eq!(headers["x-ratelimit-remaining-tokens"], "0");
    retry_after(&headers);

    // More than there ever is.
    let (server, key) =
        server_for(Terms { tokens_per_minute: NonZeroU32::new(prompt - 1), ..Terms::default() }).await;
    let (status, error, headers) = refused(ask(&server, &key, &words("hello"))).await;
    assert_eq!((status, error["code"].as_str()), (429, Some("rate_limit_exceeded")));
    assert_eq!(headers["x-should-retry"], "false");
    assert!(!headers.contains_key("retry-after"));
}

#[tokio::test]
async fn a_budget_that_is_used_up_is_told_for_good() {
    let (server, key) = server_for(Terms { tokens_per_month: NonZeroU64::new(1), ..Terms::default() }).await;
    let stream = {
        let mut request = words("hello");
        request["stream"] = json!(true);
        request
    };
    // The last one is answered to its end, streamed or not; then it is known what it took.
    ask(&server, &key, &stream).send().await.unwrap().text().await.unwrap();
    for _ in 0..400 {
        let response = ask(&server, &key, &words("hello")).send().await.unwrap();
        if response.status() == 200 {
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        }
        assert_eq!(response.status(), 429);
        assert_eq!(response.headers()["x-should-retry"], "false");
        assert!(!response.headers().contains_key("retry-after"));
        let body: Value = response.json().await.unwrap();
        check_error(&body);
        assert_eq!(body["error"]["code"], "insufficient_quota");
        assert!(body["error"]["message"].as_str().unwrap().contains("tokens per month"), "{body}");
        return;
    }
    panic!("the budget is never used up");
}

#[tokio::test]
async fn pictures_and_recordings_have_rates() {
    let (server, key) = server_for(Terms { images_per_minute: NonZeroU32::new(2), ..Terms::default() }).await;
    let pictures = |count: usize| {
        let mut content = vec![image_part(&data_url("gray_50x70.png")); count];
        content.push(json!({"type": "text", "text": "what"}));
        json!({"model": "llava", "messages": [{"role": "user", "content": content}], "max_tokens": 1})
    };
    assert_eq!(ask(&server, &key, &pictures(2)).send().await.unwrap().status(), 200);
    let (status, error, _) = refused(ask(&server, &key, &pictures(1))).await;
    assert_eq!((status, error["type"].as_str()), (429, Some("images")));
    assert_eq!(ask(&server, &key, &words("hello")).send().await.unwrap().status(), 200);
    let (_, _, headers) = refused(ask(&server, &key, &pictures(3))).await;
    assert_eq!(headers["x-should-retry"], "false");
    server.idle_with(&key).await;

    let keys = Keys::new();
    let key = keys.add("acme", Terms { audio_seconds_per_minute: NonZeroU32::new(3), ..Terms::default() });
    let whisper = fixtures().join("whisper").to_str().unwrap().to_owned();
    let server = start(Settings { model: vec![whisper], ..keys.settings() }).await;
    let transcribe = || {
        let (boundary, body) = form(&wave(2));
        let request = Client::new().post(server.path("/v1/audio/transcriptions")).bearer_auth(&key);
        request.header("content-type", format!("multipart/form-data; boundary={boundary}")).body(body)
    };
    assert_eq!(transcribe().send().await.unwrap().status(), 200);
    let (status, error, _) = refused(transcribe()).await;
    assert_eq!((status, error["type"].as_str()), (429, Some("audio")));
}

/// A form with a recording.
fn form(file: &[u8]) -> (&'static str, Vec<u8>) {
    let mut body = b"--x\r\ncontent-disposition: form-data; name=\"model\"\r\n\r\nwhisper\r\n--x\r\n\
        content-disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\r\n"
        .to_vec();
    body.extend(file);
    body.extend(b"\r\n--x--\r\n");
    ("x", body)
}

/// Seconds of silence.
fn wave(seconds: u32) -> Vec<u8> {
    let bytes = 32_000 * seconds;
    let mut file = b"RIFF".to_vec();
    file.extend((36 + bytes).to_le_bytes());
    file.extend(b"WAVEfmt \x10\0\0\0\x01\0\x01\0\x80\x3e\0\0\0\x7d\0\0\x02\0\x10\0data");
    file.extend(bytes.to_le_bytes());
    file.resize(file.len() + bytes as usize, 0);
    file
}

#[tokio::test]
async fn a_server_of_this_machine_answers_to_its_names_only() {
    let server = start(Settings { allowed_host: vec!["vlm.example".into()], ..Settings::default() }).await;
    let status = async |target: &str, host: &str| {
        let request = format!("GET {target} HTTP/1.1\r\n{host}Connection: close\r\n\r\n");
        raw(&server.url, request.as_bytes()).await
    };
    for host in [
        "localhost",
        "LOCALHOST",
        "localhost.",
        "localhost:8000",
        "127.0.0.1",
        "127.0.0.1:1",
        "127.1.2.3",
        "[::1]",
        "[::1]:8000",
        "vlm.example",
        "VLM.example:443",
    ] {
        let (status, ..) = status("/v1/models", &format!("Host: {host}\r\n")).await;
        assert_eq!(status, 200, "{host}");
    }
    assert_eq!(status("/health", "").await.0, 200, "no browser");
    for host in [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "10.0.0.1",
        "0.0.0.0",
        "[::]",
        "a.vlm.example",
        "localhost@evil.example",
        "evil.example@localhost",
        "evil.example\r\nHost: localhost",
        "localhost\r\nHost: evil.example",
    ] {
        let (status, head, body) = status("/health", &format!("Host: {host}\r\n")).await;
        // Two of them are no request at all.
        assert!([400, 403].contains(&status), "{host}: {status}");
        if status == 403 {
            check_error(&serde_json::from_str(&body).unwrap());
            assert!(head.contains("x-request-id: req_"), "{head}");
        }
    }
    let (status, ..) = status("http://evil.example/v1/models", "Host: localhost\r\n").await;
    assert_eq!(status, 403, "the target says another name");
}

#[tokio::test]
async fn pages_of_other_origins_ask_only_where_they_may() {
    const PAGE: &str = "https://app.example";
    let keys = Keys::new();
    let key = keys.add("acme", Terms::default());
    let server = start(Settings { cors_origin: vec![PAGE.into()], ..keys.settings() }).await;
    let preflight = async |origin: &str, server: &Server| {
        let request = Client::new().request(Method::OPTIONS, server.path("/v1/chat/completions"));
        let request = request.header("origin", origin).header("access-control-request-method", "POST");
        let request = request.header("access-control-request-headers", "authorization,x-stainless-os");
        request.send().await.unwrap()
    };
    let response = preflight(PAGE, &server).await;
    assert_eq!(response.status(), 204);
    let headers = response.headers();
    assert_eq!(headers["access-control-allow-origin"], PAGE);
    assert_eq!(headers["access-control-allow-headers"], "authorization,x-stainless-os");
    assert!(headers["access-control-allow-methods"].to_str().unwrap().contains("POST"));
    assert!(!headers.contains_key("access-control-allow-credentials"));
    assert_eq!(headers["vary"], "origin");
    assert!(response.text().await.unwrap().is_empty(), "a preflight has no data");
    for origin in
        ["https://evil.example", "https://app.example.evil.example", "http://app.example", "null", "*"]
    {
        let response = preflight(origin, &server).await;
        assert_eq!(response.status(), 401, "{origin}");
        assert!(!response.headers().contains_key("access-control-allow-origin"), "{origin}");
    }
    // The request itself needs a key, and the page may read why.
    let ask = |key: &str| ask(&server, key, &words("hello")).header("origin", PAGE);
    for (key, status) in [(key.as_str(), 200), ("nobody's", 401)] {
        let response = ask(key).send().await.unwrap();
        assert_eq!(response.status(), status);
        assert_eq!(response.headers()["access-control-allow-origin"], PAGE);
        assert_eq!(response.headers()["access-control-expose-headers"], "*");
    }
    // Without the setting there is no such thing.
    let server = start(Settings::default()).await;
    let response = preflight(PAGE, &server).await;
    assert_eq!(response.status(), 405);
    assert!(response.headers().keys().all(|name| !name.as_str().starts_with("access-control")));
}

#[test]
fn settings_that_would_let_everyone_in_are_refused() {
    let error = |settings: Settings| settings.resolve().unwrap_err().to_string();
    for origin in
        ["*", "https://*", "app.example", "https://app.example/", "https://a, https://b", "null", "https://"]
    {
        let error = error(Settings { cors_origin: vec![origin.into()], ..Settings::default() });
        assert!(error.contains("is no origin"), "{origin}: {error}");
    }
    for name in ["", "http://a", "a:1", "a/b"] {
        let error = error(Settings { allowed_host: vec![name.into()], ..Settings::default() });
        assert!(error.contains("is no name of a machine"), "{name}: {error}");
    }
    for price in [-1.0, f64::NAN, f64::INFINITY] {
        error(Settings { price_per_hour: Some(price), ..Settings::default() });
    }
}

#[tokio::test]
async fn a_missing_file_of_keys_is_no_server() {
    let settings = Settings { keys: Some(Path::new("/nonexistent/keys.toml").into()), ..Settings::default() };
    let config = support::server::config(settings);
    let error = percept::operations::Operations::open(&config.operations).unwrap_err().to_string();
    assert!(error.contains("/nonexistent/keys.toml"), "{error}");
}
