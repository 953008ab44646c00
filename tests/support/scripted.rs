//! A server that says what a script says, when it says so.

use std::{
    net::Ipv4Addr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::Semaphore, time::sleep};

/// An answer.
#[derive(Debug, Clone)]
pub enum Reply {
    /// Bytes of a stream, each behind a pause, and how it ends.
    Stream(Vec<(Duration, String)>, End),
    /// A status, headers, and a body.
    Status(u16, Vec<(&'static str, &'static str)>, String),
}

/// How a stream ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// As it should, with or without its last line.
    Closed,
    /// The connection breaks.
    Broken,
    /// Never.
    Open,
}

/// What was asked.
#[derive(Debug, Clone)]
pub struct Asked {
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Asked {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

type Script = dyn Fn(usize, &Asked) -> Reply + Send + Sync;

pub struct Scripted {
    pub url: String,
    state: Arc<Scene>,
}

struct Scene {
    script: Box<Script>,
    asked: Mutex<Vec<Asked>>,
    next: AtomicUsize,
    /// Requests that are answered at once.
    places: Semaphore,
}

impl Scripted {
    /// A server that answers so many requests at once. The script is told each request and its number, from 0.
    pub async fn start(
        places: usize,
        script: impl Fn(usize, &Asked) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let state = Arc::new(Scene {
            script: Box::new(script),
            asked: Mutex::default(),
            next: AtomicUsize::new(0),
            places: Semaphore::new(places),
        });
        let models = json!({"object": "list", "data": [
            {"id": "ears", "owned_by": "somebody", "task": "automatic-speech-recognition"},
            {"id": "eyes", "owned_by": "somebody"},
        ]});
        let routes = Router::new()
            .route("/v1/models", get(move || async move { Json(models) }))
            .route("/version", get(|| async { Json(json!({"version": "1.2.3"})) }))
            .route("/v1/chat/completions", post(answer))
            .route("/v1/audio/transcriptions", post(answer))
            .with_state(Arc::clone(&state));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
        Self { url, state }
    }

    /// All that was asked so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.state.asked.lock().unwrap().clone()
    }
}

async fn answer(State(state): State<Arc<Scene>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let asked = Asked { path: head.uri.path().to_owned(), headers: head.headers, body };
    let reply = (state.script)(state.next.fetch_add(1, SeqCst), &asked);
    state.asked.lock().unwrap().push(asked);
    match reply {
        Reply::Status(status, headers, body) => {
            let mut response = (StatusCode::from_u16(status).unwrap(), body).into_response();
            for (name, value) in headers {
                response.headers_mut().insert(name, value.parse().unwrap());
            }
            response
        }
        Reply::Stream(pieces, end) => {
            let scene = Arc::clone(&state);
            let place = async move { scene.places.acquire().await.unwrap().forget() };
            let pieces = stream::iter(pieces).then(|(pause, piece)| async move {
                sleep(pause).await;
                Ok::<_, std::io::Error>(piece)
            });
            let after = stream::once(async move {
                match end {
                    End::Closed => {}
                    End::Broken => return Err(std::io::Error::other("broken")),
                    End::Open => std::future::pending::<()>().await,
                }
                state.places.add_permits(1);
                Ok(String::new())
            });
            let before = stream::once(async move {
                place.await;
                Ok(String::new())
            });
            let body = Body::from_stream(before.chain(pieces).chain(after));
            ([("content-type", "text/event-stream")], body).into_response()
        }
    }
}

/// An event.
pub fn event(value: &Value) -> String {
    format!("data: {value}\n\n")
}

/// An event with text.
pub fn text(text: &str) -> String {
    event(&json!({"system_fingerprint": "fp_1", "choices": [{"index": 0, "delta": {"content": text}}]}))
}

/// The end of a stream, with the usage if there is any.
pub fn end(usage: Option<(u64, u64, u64)>) -> String {
    let usage = usage.map(|(prompt, cached, completion)| {
        event(&json!({"choices": [], "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "prompt_tokens_details": {"cached_tokens": cached},
        }}))
    });
    usage.unwrap_or_default() + "data: [DONE]\n\n"
}

/// An answer of some pieces at once.
pub fn answer_of(pieces: &[&str], usage: Option<(u64, u64, u64)>) -> Reply {
    let all: String = pieces.iter().map(|piece| text(piece)).collect();
    Reply::Stream(vec![(Duration::ZERO, all + &end(usage))], End::Closed)
}
