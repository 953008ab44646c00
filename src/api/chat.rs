//! `/v1/chat/completions`.

mod answer;
mod parse;

use std::sync::Arc;

use axum::{
    Json,
    body::Body,
    extract::State,
    http::HeaderMap,
    response::{IntoResponse, Response},
};

use self::{
    answer::Base,
    parse::{Chat, PictureRef},
};
use super::{
    ApiError, App, json,
    models::{not_found, wrong_model},
    params::Parsed,
    wire::chat as wire,
};
use crate::{
    engine::{Key, Pin, Place},
    media::{self, File, Header},
    request::{self, InvalidRequest, Media, Readout, Request, Source},
    router::{ChatModel, Served},
    text::{Answer, PromptError},
};

/// `POST /v1/chat/completions`
pub(super) async fn completions(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let models = app.models()?;
    let Parsed { value, ignored } =
        json::read::<wire::ChatRequest>(&headers, body, app.config.body_bytes, is_harmless).await?;
    ignored.check(app.config.strict)?;
    let chat = Chat::parse(value, &app.config.media)?;
    let model = models.find(&chat.model).ok_or_else(|| not_found(models, &chat.model))?;
    let text = model.chat().ok_or_else(|| wrong_model(models, model, "chat"))?;
    let place = model.handle.reserve()?;
    let stream = chat.stream;
    let base = Base::new(model);
    let answer = submit(&app, model, text, place, chat).await?;
    let mut response = match stream {
        Some(stream) => answer::stream(base, answer, stream),
        None => Json(answer::collect(base, answer).await?).into_response(),
    };
    ignored.report(&mut response);
    Ok(response)
}

/// Prepares a request's pictures and prompt, and queues it.
async fn submit(
    app: &App,
    served: &Served,
    model: &Arc<ChatModel>,
    place: Place,
    chat: Chat,
) -> Result<Answer, ApiError> {
    let Chat { messages, pictures, sampling, max_tokens, stops, ignore_eos, .. } = chat;
    let opened = open(app, pictures).await?;
    let context = served.handle.context();
    let footprints = opened.iter().map(|picture| {
        let (width, height) = picture.header.size();
        let footprint = model.preprocess.footprint(percept_models::MediaSize::Image { width, height });
        footprint.map_err(|error| InvalidRequest::PictureSize { param: picture.param.clone(), error })
    });
    let footprints = footprints.collect::<Result<Vec<_>, _>>()?;
    let texts = Arc::clone(model);
    let prompt = blocking(move || texts.text.prompt(&messages, &footprints, context)).await?;
    let prompt = prompt.map_err(prompt_error)?;

    let pictures = served.handle.media_rows(&prompt);
    let context = served.handle.context_beside(pictures);
    if prompt.tokens.len() >= context {
        let (text, limit) = (prompt.tokens.len(), served.handle.rows());
        return Err(InvalidRequest::CacheRows { text, pictures, limit }.into());
    }

    let media = decode(app, served, opened).await?;
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

/// A picture whose header was read.
struct Opened {
    param: String,
    file: File,
    header: Header,
    key: Key,
}

/// Reads the files behind the URLs, and what their headers say.
async fn open(app: &App, pictures: Vec<PictureRef>) -> Result<Vec<Opened>, ApiError> {
    if pictures.is_empty() {
        return Ok(Vec::new());
    }
    let limits = app.config.media;
    let opened = app.decoders.run(move || {
        let mut pixels = 0;
        let mut opened = Vec::with_capacity(pictures.len());
        for PictureRef { param, url } in pictures {
            let file = media::read_url(&url, limits.image_bytes)
                .map_err(|error| InvalidRequest::PictureUrl { param: param.clone(), error })?;
            drop(url);
            let header = Header::read(&file, limits.image_edge, limits.image_pixels)
                .map_err(|error| InvalidRequest::Picture { param: param.clone(), error })?;
            pixels += header.pixels();
            if pixels > limits.request_pixels {
                return Err(InvalidRequest::Pixels { param, found: pixels, limit: limits.request_pixels });
            }
            let key = Key::of(&file);
            opened.push(Opened { param, file, header, key });
        }
        Ok(opened)
    });
    Ok(opened.await.map_err(|error| ApiError::internal(&error))??)
}

/// Decodes pictures, but for those whose rows are still in the encoder cache.
async fn decode(app: &App, model: &Served, opened: Vec<Opened>) -> Result<Vec<Media>, ApiError> {
    let mut media = Vec::with_capacity(opened.len());
    let mut files = Vec::new();
    let mut params = Vec::new();
    for Opened { param, file, header, key } in opened {
        let pin = model.handle.pin(&key);
        if pin.is_none() {
            files.push((file, header));
            params.push(param);
        }
        media.push((key, pin));
    }
    let decoded = app.decoders.decode(files).await.map_err(|(index, error)| {
        let param = params.swap_remove(index);
        InvalidRequest::Picture { param, error }
    })?;
    let mut decoded = decoded.into_iter().map(Source::Pixels);
    let mut source = |pin: Option<Pin>| pin.map(Source::Encoded).or_else(|| decoded.next());
    let media: Option<Vec<Media>> =
        media.into_iter().map(|(key, pin)| Some(Media { key, source: source(pin)? })).collect();
    media.ok_or_else(|| ApiError::internal(&"a picture was lost while it was decoded"))
}

/// Runs long work where it holds up nobody.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| ApiError::internal(&error))
}

fn prompt_error(error: PromptError) -> ApiError {
    match error {
        PromptError::TooLong { tokens, limit } => InvalidRequest::ContextLength { tokens, limit }.into(),
        PromptError::Pictures { .. } | PromptError::Empty | PromptError::Template(_) => {
            InvalidRequest::Messages { reason: error.to_string() }.into()
        }
        PromptError::Tokenizer(error) => ApiError::internal(&error),
    }
}

fn is_harmless(path: &str) -> bool {
    let field = path.rsplit('.').next().unwrap_or(path);
    wire::HARMLESS.contains(&path)
        || path.starts_with("messages[") && wire::HARMLESS_IN_MESSAGES.contains(&field)
}
