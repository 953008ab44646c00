//! What fuzzing enters: each takes what a client sends, and must return. For `cargo fuzz`, see the folder `fuzz`.

use std::sync::LazyLock;

use axum::{
    body::{Body, Bytes},
    http::{HeaderMap, HeaderValue, header::CONTENT_TYPE},
};

use super::{
    ApiError, chat,
    form::Form,
    json, messages,
    params::Parsed,
    responses,
    wire::{self, realtime::ClientEvent},
};
use crate::{config::Settings, media::MediaLimits};

/// Most bytes of a file in a form.
const MOST_FILE: usize = 1 << 16;

/// Those of a server without options.
static LIMITS: LazyLock<MediaLimits> =
    LazyLock::new(|| Settings::default().resolve().expect("what is usual is good").api.media);

/// A body in JSON of the API that the first byte says.
pub fn body(data: &[u8]) {
    let Some((api, body)) = data.split_first() else { return };
    let harmless = |_: &str| false;
    let result = match api % 8 {
        0 => json::parse::<wire::chat::ChatRequest>(body, harmless)
            .and_then(|Parsed { value, .. }| chat::fuzz(value, &LIMITS)),
        1 => json::parse::<wire::messages::MessagesRequest>(body, harmless)
            .and_then(|Parsed { value, .. }| messages::fuzz(value, &LIMITS)),
        2 => json::parse::<wire::responses::ResponsesRequest>(body, harmless)
            .and_then(|Parsed { value, .. }| responses::fuzz(value, &LIMITS)),
        3 => json::parse::<wire::completions::CompletionRequest>(body, harmless)
            .and_then(|Parsed { value, .. }| super::completions::fuzz(value)),
        4 => json::parse::<wire::embeddings::EmbeddingRequest>(body, harmless)
            .and_then(|Parsed { value, .. }| super::embeddings::fuzz(value)),
        5 => json::parse::<ClientEvent>(body, harmless).map(drop),
        6 => json::parse::<wire::batches::MessageBatchRequest>(body, harmless).map(drop),
        _ => json::parse::<wire::batches::BatchRequest>(body, harmless).map(drop),
    };
    if let Err(error) = result {
        told(&error);
    }
}

/// A form, with the boundary `x`, in pieces whose size the first byte says.
pub fn form(data: &[u8]) {
    let Some((size, data)) = data.split_first() else { return };
    let pieces: Vec<Result<Bytes, std::io::Error>> =
        data.chunks(1 + usize::from(*size)).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    let body = Body::from_stream(futures_util::stream::iter(pieces));
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("multipart/form-data; boundary=x"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let read = async {
        let mut form = Form::open(&headers, body, MOST_FILE)?;
        while let Some(name) = form.part().await? {
            if name == "file" {
                let _ = (form.filename(), form.mime());
                form.file().await?;
            } else {
                form.text(&name).await?;
            }
        }
        Ok::<_, ApiError>(())
    };
    if let Err(error) = runtime.expect("there is room for one").block_on(read) {
        told(&error);
    }
}

/// An error has a status, and is an object.
fn told(error: &ApiError) {
    assert!(error.status().is_client_error(), "{error}");
    assert!(serde_json::to_value(error.body()).is_ok_and(|body| body.is_object()));
}
