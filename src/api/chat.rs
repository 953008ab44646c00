//! `/v1/chat/completions`.

mod answer;
mod answers;
mod documents;
pub(super) mod media;
mod parse;
mod tools;

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    body::Body,
    extract::State,
    http::HeaderMap,
    response::{IntoResponse, Response},
};
use futures_util::future::try_join_all;

use self::{answer::Base, media::Opened, parse::RecordingRef, tools::tells_apart};
pub(super) use self::{
    answer::{NEVER, usage},
    answers::Answers,
    documents::{Document, DocumentSource, add_text, opening},
    media::base64_or_url,
    parse::{
        Bare, Chat, Files, MOST_ANSWERS, MediaRef, Mention, SamplingFields, check_count, check_end, document,
        stop_texts, stops,
    },
    tools::{Constrained, FormFields, Toolbox, call, form, named_schema, tool, type_error},
};
use super::{
    ApiError, App, audio, json, models::chat_model, params::Parsed, record::Record, wire::chat as wire,
};
use crate::{
    engine::Place,
    request::{self, Constraint, InvalidRequest, Media, Prompt, Readout, Request, Sampling},
    router::{ChatModel, Router, Served},
    text::{Conversation, GrammarError, Part, PromptError, Reading},
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
        json::request::<wire::ChatRequest>(&app, &headers, body, is_harmless).await?;
    let chat = Chat::parse(value, &app.config.media)?;
    let (model, text) = chat_model(&app, &record, &chat.model)?;
    let place = record.reserve(model)?;
    let stream = chat.stream;
    let chat = hear(&app, &record, models, chat).await?;
    let base = Base::new(model, chat.called, chat.bare.logprobs.is_some());
    let answers = submit(&app, &record, (model, text), place, chat).await?;
    let response = match stream {
        Some(stream) => answer::stream(base, answers, stream),
        None => Json(answer::collect(base, answers).await?).into_response(),
    };
    Ok(ignored.with(response))
}

/// Puts what is said in recordings in their places, as if it had been written.
async fn hear(app: &App, record: &Record, models: &Router, mut chat: Chat) -> Result<Chat, ApiError> {
    let recordings = std::mem::take(&mut chat.recordings);
    let Some(first) = recordings.first() else { return Ok(chat) };
    let Some(model) = models.first_speech() else {
        let reason = "recordings are written down by a speech model, and none is loaded";
        return Err(InvalidRequest::Unsupported { param: first.param.clone(), reason: reason.into() }.into());
    };
    let limit = app.config.sound.file_bytes;
    let texts = recordings.into_iter().map(async |recording| {
        let RecordingRef { param, data, place } = recording;
        let file = audio::from_base64(&param, &data, limit)?;
        drop(data);
        Ok::<_, ApiError>((place, audio::write_down(app, record, model, &param, file).await?))
    });
    for ((message, part), text) in try_join_all(texts).await? {
        chat.conversation.messages[message].parts[part] = Part::Text(text);
    }
    Ok(chat)
}

/// Prepares a request's media and prompt, and queues it.
pub(super) async fn submit(
    app: &App,
    record: &Record,
    (served, model): (&Served, &Arc<ChatModel>),
    place: Place,
    chat: Chat,
) -> Result<Answers, ApiError> {
    let Chat { conversation, media, bare, called, .. } = chat;
    let begun = conversation.continues;
    let context = served.handle.context();
    let (prompt, opened) = prompt(app, record, (served, model), conversation, media, context).await?;
    record.images(opened.iter().map(Opened::files).sum())?;
    let room = room(served, &prompt)?;
    record.prompt(prompt.tokens.len())?;
    let media = record.media(media::decode(app, record, served, opened)).await?;
    let calls = called.map(|_| model.text.call_syntax());
    let wanted = Wanted { prompt, media, room, begun };
    let requests = wanted.requests(app, model, &bare).await?;
    let reading = Reading { stops: bare.stops, calls, begun, logprobs: bare.logprobs.is_some() };
    let asked = answers::Asked { model: Arc::clone(model), reading };
    let mut requests = requests.into_iter();
    Ok(Answers::submit(place, requests.by_ref().take(1).collect(), requests.collect(), asked)?)
}

/// The prompt that a conversation makes, of fewer than `context` tokens, and its media, not decoded yet.
pub(super) async fn prompt(
    app: &App,
    record: &Record,
    (served, model): (&Served, &Arc<ChatModel>),
    conversation: Conversation,
    media: Vec<Mention>,
    context: usize,
) -> Result<(Prompt, Vec<Opened>), ApiError> {
    let (conversation, media) = documents::unfold(app, record, (served, model), conversation, media).await?;
    let opened = record.media(media::open(app, record, model.text.video(), media)).await?;
    let footprints =
        opened.iter().map(|medium| medium.footprint(&*model.preprocess)).collect::<Result<Vec<_>, _>>()?;
    let model = Arc::clone(model);
    let prompt = blocking(move || model.text.prompt(&conversation, &footprints, context)).await?;
    Ok((prompt.map_err(prompt_error)?, opened))
}

/// Queues answers to prompts of tokens alone: `bare.count` to the first prompt, then those to the next one and so on, in
/// the order that [`order`] gives.
pub(super) async fn submit_tokens(
    app: &App,
    record: &Record,
    (served, model): (&Served, &Arc<ChatModel>),
    place: Place,
    prompts: Vec<Vec<u32>>,
    bare: Bare,
) -> Result<Answers, ApiError> {
    let (mut now, mut later) = (Vec::with_capacity(prompts.len()), Vec::new());
    for tokens in prompts {
        let (found, limit) = (tokens.len(), served.handle.context());
        if found >= limit {
            return Err(InvalidRequest::ContextLength { param: "prompt", tokens: found, limit }.into());
        }
        record.prompt(found)?;
        let prompt = Prompt { tokens, spans: Vec::new() };
        let room = room(served, &prompt)?;
        let wanted = Wanted { prompt, media: Vec::new(), room, begun: true };
        let mut requests = wanted.requests(app, model, &bare).await?.into_iter();
        now.extend(requests.next());
        later.extend(requests);
    }
    let reading = Reading { stops: bare.stops, calls: None, begun: true, logprobs: bare.logprobs.is_some() };
    Ok(Answers::submit(place, now, later, answers::Asked { model: Arc::clone(model), reading })?)
}

/// Which of all answers, prompt by prompt, each of those is that [`submit_tokens`] gives: the first to each prompt come
/// first.
pub(super) fn order(prompts: usize, count: usize) -> Vec<usize> {
    let later = (0..prompts).flat_map(|prompt| (1..count).map(move |index| prompt * count + index));
    (0..prompts).map(|prompt| prompt * count).chain(later).collect()
}

/// Tokens that an answer has room for.
fn room(served: &Served, prompt: &Prompt) -> Result<usize, ApiError> {
    let pictures = served.handle.media_rows(prompt);
    let context = served.handle.context_beside(pictures);
    if prompt.tokens.len() >= context {
        let (text, limit) = (prompt.tokens.len(), served.handle.rows());
        return Err(InvalidRequest::CacheRows { text, pictures, limit }.into());
    }
    Ok(context - prompt.tokens.len())
}

/// What answers are wanted to.
struct Wanted {
    prompt: Prompt,
    media: Vec<Media>,
    room: usize,
    /// Whether answers go on with a text.
    begun: bool,
}

impl Wanted {
    /// A request for each answer.
    async fn requests(
        self,
        app: &App,
        model: &Arc<ChatModel>,
        bare: &Bare,
    ) -> Result<Vec<Request>, ApiError> {
        let Self { prompt, media, room, begun } = self;
        let mut constraints = constraints(app, model, bare.constrained.clone(), bare.count, begun).await?;
        let sampling = Sampling { logprobs: bare.logprobs, ..bare.sampling.clone().resolve(&model.text)? };
        let limits = request::Limits {
            // Clients ask for more than any model has; the answer ends where the context does.
            tokens: bare.max_tokens.map_or(room, |most| most.min(room)),
            stops: if bare.ignore_eos { Arc::default() } else { Arc::clone(model.text.stops()) },
        };
        let request = |index: usize| Request {
            prompt: prompt.clone(),
            media: media.clone(),
            // Each has a seed of its own, so that they differ.
            sampling: Sampling { seed: sampling.seed.wrapping_add(index as u64), ..sampling.clone() },
            limits: limits.clone(),
            readout: Readout::Answer,
            constraint: constraints.pop(),
        };
        Ok((0..bare.count).map(request).collect())
    }
}

/// What each of `count` answers must be; nothing where they are free.
async fn constraints(
    app: &App,
    model: &Arc<ChatModel>,
    constrained: Option<Constrained>,
    count: usize,
    begun: bool,
) -> Result<Vec<Box<dyn Constraint>>, ApiError> {
    /// Most time for compiling. What llguidance does is bounded, but not by a clock.
    const DEADLINE: Duration = Duration::from_secs(10);
    let Some(constrained) = constrained else { return Ok(Vec::new()) };
    let param = constrained.param.clone();
    let refuse = |error: GrammarError| {
        let (all, _) = param.split_once("[]").unwrap_or((&param, ""));
        match error {
            GrammarError::Tool { index, error, .. } if param.contains("[]") => {
                InvalidRequest::Grammar { param: param.replace("[]", &format!("[{index}]")), error: *error }
            }
            error => InvalidRequest::Grammar { param: all.to_owned(), error },
        }
    };
    let model = Arc::clone(model);
    let compiling = app.decoders.run(move || {
        let syntax = model.text.call_syntax();
        if !tells_apart(&syntax, &constrained) {
            let reason = "this model writes calls of functions as JSON, so that a form of the answer cannot be given as well";
            return Err(GrammarError::Refused(reason.into()));
        }
        let compile = |_| model.text.grammars().compile(&constrained.grammar, &syntax, begun);
        (0..count).map(compile).collect()
    });
    match tokio::time::timeout(DEADLINE, compiling).await {
        Ok(compiled) => Ok(compiled.map_err(|error| ApiError::internal(&error))?.map_err(refuse)?),
        Err(_) => Err(refuse(GrammarError::TooSlow { seconds: DEADLINE.as_secs() }).into()),
    }
}

/// Runs long work where it holds up nobody.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| ApiError::internal(&error))
}

/// Counts the tokens of a prompt, up to some contexts: who counts wants to know how much too long it is, but not at any
/// price.
pub(super) async fn count(
    app: &App,
    record: &Record,
    model: &str,
    conversation: Conversation,
    media: Vec<Mention>,
) -> Result<usize, ApiError> {
    const COUNTED: usize = 8;
    let (served, model) = chat_model(app, record, model)?;
    // Nothing is generated, but preparing a prompt is work as well.
    let _place = record.reserve(served)?;
    let context = served.handle.context();
    let prompt =
        prompt(app, record, (served, model), conversation, media, context.saturating_mul(COUNTED)).await;
    let (prompt, _) = prompt.map_err(|error| match error {
        ApiError::Invalid(InvalidRequest::ContextLength { tokens, .. }) => {
            InvalidRequest::ContextLength { param: "messages", tokens, limit: context }.into()
        }
        other => other,
    })?;
    Ok(prompt.tokens.len())
}

fn prompt_error(error: PromptError) -> ApiError {
    match error {
        PromptError::TooLong { tokens, limit } => {
            InvalidRequest::ContextLength { param: "messages", tokens, limit }.into()
        }
        PromptError::Media { .. }
        | PromptError::NoVideo
        | PromptError::Order
        | PromptError::Empty
        | PromptError::Template(_) => InvalidRequest::Messages { reason: error.to_string() }.into(),
        PromptError::Tokenizer(error) => ApiError::internal(&error),
    }
}

/// What fuzzing enters.
#[cfg(fuzzing)]
pub(super) fn fuzz(request: wire::ChatRequest, limits: &crate::media::MediaLimits) -> Result<(), ApiError> {
    Ok(Chat::parse(request, limits).map(drop)?)
}

fn is_harmless(path: &str) -> bool {
    let field = path.rsplit('.').next().unwrap_or(path);
    wire::HARMLESS.contains(&path)
        || path.starts_with("messages[") && wire::HARMLESS_IN_MESSAGES.contains(&field)
}
