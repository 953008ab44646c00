//! A server on a port of its own, and what clients send it.

use std::{future::Future, net::Ipv4Addr, path::PathBuf, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use percept::{
    api::{ApiConfig, App},
    config::Settings,
    operations::Operations,
    router::{Router, Served},
    server::{self, ServerConfig},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::JoinHandle,
};

use super::{Case, fixtures, llava};

pub struct Server {
    pub url: String,
    pub app: Arc<App>,
    stop: Option<oneshot::Sender<()>>,
    running: JoinHandle<std::io::Result<()>>,
}

pub fn config(settings: Settings) -> ServerConfig {
    let mut model = settings.model.clone();
    if model.is_empty() {
        model.push(llava().to_str().unwrap().to_owned());
    }
    // A small cache, so that a test starts at once.
    let max_sequences = settings.max_sequences.or(Some(16));
    let mut config = Settings { model, max_sequences, ..settings }.resolve().unwrap();
    // The server is a part of the test, which reads no documents.
    config.api.program = env!("CARGO_BIN_EXE_percept").into();
    config
}

pub fn load(config: &ServerConfig) -> Vec<Served> {
    server::load(config, || (), |_| Box::new(|_, _| {})).unwrap()
}

/// Serves the fixture with these settings.
pub async fn start(settings: Settings) -> Server {
    let config = config(settings);
    let operations = Operations::open(&config.operations).unwrap();
    let store = config.store.as_ref().map(|store| percept::store::Store::open(store).unwrap());
    let app = App::guarded(config.api.clone(), operations, store);
    app.serve(Router::new(load(&config)));
    start_app(app, config.drain).await
}

/// Serves models that are loaded.
pub async fn start_with(models: Vec<Served>, api: ApiConfig, drain: Duration) -> Server {
    let app = App::new(api);
    app.serve(Router::new(models));
    start_app(app, drain).await
}

/// Serves an API, whose models may be still to come.
pub async fn start_app(app: Arc<App>, drain: Duration) -> Server {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (stop, stopped) = oneshot::channel();
    let shutdown = async move {
        // A test that does not stop its server drops the sender at its end.
        if stopped.await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    let running = tokio::spawn(server::run(listener, Arc::clone(&app), shutdown, drain));
    Server { url, app, stop: Some(stop), running }
}

impl Server {
    pub fn path(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    pub async fn get(&self, path: &str) -> reqwest::Response {
        reqwest::get(self.path(path)).await.unwrap()
    }

    pub fn post(&self, body: &Value) -> impl Future<Output = reqwest::Response> + use<> {
        self.post_to("/v1/chat/completions", body)
    }

    pub fn post_to(&self, path: &str, body: &Value) -> impl Future<Output = reqwest::Response> + use<> {
        let request = reqwest::Client::new().post(self.path(path)).json(body);
        async move { request.send().await.unwrap() }
    }

    /// A whole answer to a request that must succeed.
    pub async fn ask(&self, body: &Value) -> Value {
        let response = self.post(body).await;
        let status = response.status();
        let answer: Value = response.json().await.unwrap();
        assert_eq!(status, 200, "{answer}");
        answer
    }

    /// The status and the error object of a request that must fail.
    pub async fn refuse(&self, body: &Value) -> (u16, Value) {
        let response = self.post(body).await;
        let status = response.status().as_u16();
        let body: Value = response.json().await.unwrap();
        check_error(&body);
        (status, body["error"].clone())
    }

    /// All pieces of a streamed answer, and whether the stream ended as it should.
    pub async fn stream(&self, body: &Value) -> (Vec<Value>, bool) {
        let mut body = body.clone();
        body["stream"] = json!(true);
        let response = self.post(&body).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        assert_eq!(response.headers()["x-accel-buffering"], "no");
        pieces(&response.text().await.unwrap())
    }

    /// Stops as at SIGTERM. Resolves when the server has ended.
    pub async fn stop(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        (&mut self.running).await.unwrap().unwrap();
    }

    /// The engine's figures, from `/health`.
    pub async fn engine(&self) -> Value {
        let health: Value = self.get("/health").await.json().await.unwrap();
        health["models"][0].clone()
    }

    /// Waits until nothing runs.
    pub async fn idle(&self) {
        self.idle_with("").await;
    }

    /// The same, where figures need a key.
    pub async fn idle_with(&self, key: &str) {
        for _ in 0..2000 {
            let health = reqwest::Client::new().get(self.path("/health")).bearer_auth(key).send();
            let health: Value = health.await.unwrap().json().await.unwrap();
            let engine = &health["models"][0];
            if engine["running"] == 0 && engine["waiting"] == 0 {
                assert_eq!(engine["pages_used"], 0, "pages leaked");
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("the engine does not come to rest");
    }
}

/// What a server answers to bytes: its status, its head in lower case, and its body. The connection is closed behind it.
pub async fn raw(url: &str, request: &[u8]) -> (u16, String, String) {
    let address = url.strip_prefix("http://").unwrap();
    let mut connection = TcpStream::connect(address).await.unwrap();
    // A server may have heard enough before the end, and closed the connection.
    let _ = connection.write_all(request).await;
    let mut answer = Vec::new();
    let _ = connection.read_to_end(&mut answer).await;
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    (status, head.to_lowercase(), body.to_owned())
}

/// Events of a stream. Only `data:` lines and comments may be in it.
pub fn pieces(text: &str) -> (Vec<Value>, bool) {
    let mut pieces = Vec::new();
    let mut done = false;
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with(':')) {
        let data = line.strip_prefix("data: ").unwrap_or_else(|| panic!("a strange line: {line}"));
        assert!(!done, "something follows [DONE]");
        if data == "[DONE]" {
            done = true;
        } else {
            pieces.push(serde_json::from_str(data).unwrap());
        }
    }
    (pieces, done)
}

/// The text of a streamed answer.
pub fn text(pieces: &[Value]) -> String {
    pieces.iter().filter_map(|piece| piece["choices"][0]["delta"]["content"].as_str()).collect()
}

/// The error object of the API, whatever is wrong.
pub fn check_error(body: &Value) {
    let object = body.as_object().unwrap();
    assert_eq!(object.keys().collect::<Vec<_>>(), ["error"], "{body}");
    let error = object["error"].as_object().unwrap();
    assert_eq!(error.keys().collect::<Vec<_>>(), ["message", "type", "param", "code"], "{body}");
    let message = error["message"].as_str().unwrap();
    assert!(!message.is_empty() && !message.contains("panicked"), "{message}");
    let address = |rest: &str| rest.bytes().take_while(u8::is_ascii_hexdigit).count() >= 6;
    assert!(!message.split("0x").skip(1).any(address), "an address: {message}");
    assert!(error["type"].is_string(), "{body}");
    assert!(error["param"].is_null() || error["param"].is_string(), "{body}");
    assert!(error["code"].is_null() || error["code"].is_string(), "{body}");
}

pub fn data_url(name: &str) -> String {
    let file = fixtures().join("inputs").join(name);
    data_url_of(&std::fs::read(&file).unwrap())
}

pub fn data_url_of(file: &[u8]) -> String {
    format!("data:image/png;base64,{}", STANDARD.encode(file))
}

pub fn image_part(url: &str) -> Value {
    json!({"type": "image_url", "image_url": {"url": url}})
}

/// A request for the greedy answer to a golden case.
pub fn golden_request(case: &Case) -> Value {
    let mut images = case.images.iter();
    let mut messages = case.turns();
    for message in &mut messages {
        let Some(parts) = message["content"].as_array_mut() else { continue };
        for part in parts {
            if part["type"] == "image" {
                *part = image_part(&data_url(images.next().unwrap()));
            }
        }
    }
    json!({"model": "llava", "messages": messages, "temperature": 0, "max_tokens": 12})
}

/// A request of a few words.
pub fn words(text: &str) -> Value {
    json!({"model": "llava", "messages": [{"role": "user", "content": text}], "max_tokens": 8})
}

pub fn fixture(name: &str) -> PathBuf {
    fixtures().join(name)
}
