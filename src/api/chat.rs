//! `/v1/chat/completions`.

mod answer;
mod media;
mod parse;

use std::sync::Arc;

use axum::{
    Json,
    body::Body,
    extract::State,
    http::HeaderMap,
    response::{IntoResponse, Response},
};

use self::{answer::Base, parse::Chat};
use super::{ApiError, App, json, models::wrong_model, params::Parsed, record::Record, wire::chat as wire};
use crate::{
    engine::Place,
    request::{self, InvalidRequest, Readout, Request},
    router::{ChatModel, Served},
    text::{Answer, PromptError},
};

/// `POST /v1/chat/completions`
pub(super) async fn completions(
    State(app): State<Arc<App>>,
    record: Record,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let models = app.models()?;
    let Parsed { value, ignored } =
        json::read::<wire::ChatRequest>(&headers, body, app.config.body_bytes, is_harmless).await?;
    ignored.check(app.config.strict)?;
    let chat = Chat::parse(value, &app.config.media)?;
    let model = record.find(models, &chat.model)?;
    let text = model.chat().ok_or_else(|| wrong_model(&record, models, model, "chat"))?;
    let place = record.reserve(model)?;
    let stream = chat.stream;
    let base = Base::new(model);
    let answer = submit(&app, &record, (model, text), place, chat).await?;
    let mut response = match stream {
        Some(stream) => answer::stream(base, answer, stream),
        None => Json(answer::collect(base, answer).await?).into_response(),
    };
    ignored.report(&mut response);
    Ok(response)
}

/// Prepares a request's media and prompt, and queues it.
async fn submit(
    app: &App,
    record: &Record,
    (served, model): (&Served, &Arc<ChatModel>),
    place: Place,
    chat: Chat,
) -> Result<Answer, ApiError> {
    let Chat { messages, media, sampling, max_tokens, stops, ignore_eos, .. } = chat;
    let opened = record.media(media::open(app, &model.text, media)).await?;
    record.images(opened.iter().map(media::Opened::files).sum())?;
    let context = served.handle.context();
    let footprints = opened.iter().map(|medium| medium.footprint(model)).collect::<Result<Vec<_>, _>>()?;
    let texts = Arc::clone(model);
    let prompt = blocking(move || texts.text.prompt(&messages, &footprints, context)).await?;
    let prompt = prompt.map_err(prompt_error)?;

    let pictures = served.handle.media_rows(&prompt);
    let context = served.handle.context_beside(pictures);
    if prompt.tokens.len() >= context {
        let (text, limit) = (prompt.tokens.len(), served.handle.rows());
        return Err(InvalidRequest::CacheRows { text, pictures, limit }.into());
    }

    record.prompt(prompt.tokens.len())?;
    let media = record.media(media::decode(app, served, opened)).await?;
    let sampling = sampling.resolve(&model.text)?;
    let room = context - prompt.tokens.len();
    let limits = request::Limits {
        // Clients ask for more than any model has; the answer ends where the context does.
        tokens: max_tokens.map_or(room, |most| most.min(room)),
        stops: if ignore_eos { Arc::default() } else { Arc::clone(model.text.stops()) },
    };
    let length = prompt.tokens.len();
    let events = place.submit(Request { prompt, media, sampling, limits, readout: Readout::Answer })?;
    Ok(Answer::new(events, &model.text, length, stops))
}

/// Runs long work where it holds up nobody.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| ApiError::internal(&error))
}

fn prompt_error(error: PromptError) -> ApiError {
    match error {
        PromptError::TooLong { tokens, limit } => InvalidRequest::ContextLength { tokens, limit }.into(),
        PromptError::Media { .. }
        | PromptError::NoVideo
        | PromptError::Order
        | PromptError::Empty
        | PromptError::Template(_) => InvalidRequest::Messages { reason: error.to_string() }.into(),
        PromptError::Tokenizer(error) => ApiError::internal(&error),
    }
}

fn is_harmless(path: &str) -> bool {
    let field = path.rsplit('.').next().unwrap_or(path);
    wire::HARMLESS.contains(&path)
        || path.starts_with("messages[") && wire::HARMLESS_IN_MESSAGES.contains(&field)
}
