//! `/v1/completions`.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use axum::{
    Json,
    body::Body,
    extract::State,
    http::HeaderMap,
    response::{IntoResponse, Response, sse::Event},
};
use uuid::Uuid;

use super::{
    ApiError, App,
    chat::{self, Answers, FormFields, MOST_ANSWERS, SamplingFields},
    check::{integer, missing, unsupported},
    json,
    models::chat_model,
    params::Parsed,
    record::Record,
    sse,
    wire::{
        chat::{FinishReason, Usage as WireUsage},
        completions as wire,
    },
};
use crate::{
    request::InvalidRequest,
    text::{AnswerEvent, Scored, TextModel, Usage},
};

/// Most answers of a request, to all its prompts.
const MOST: usize = 128;
/// Most tokens of an answer where nothing is said.
const TOKENS: i64 = 16;

/// `POST /v1/completions`
pub(super) async fn completions(
    State(app): State<Arc<App>>,
    record: Record,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    app.models()?;
    let harmless = |path: &str| wire::HARMLESS.contains(&path);
    let Parsed { value, ignored } =
        json::request::<wire::CompletionRequest>(&app, &headers, body, harmless).await?;
    let mut ask = Ask::parse(value)?;
    let (served, model) = chat_model(&app, &record, &ask.model)?;
    let count = ask.prompts.len() * ask.bare.count;
    if count > MOST {
        let (found, limit) = (count.to_string(), MOST);
        let (param, items) = ("prompt".into(), "answers to all prompts");
        return Err(InvalidRequest::ArrayTooLong { param, items, found, limit }.into());
    }
    let place = record.reserve(served)?;
    let several = ask.prompts.len() > 1;
    let mut prompts = Vec::with_capacity(ask.prompts.len());
    for (index, prompt) in std::mem::take(&mut ask.prompts).into_iter().enumerate() {
        let path = if several { format!("prompt[{index}]") } else { "prompt".into() };
        prompts.push(tokens(&model.text, prompt, &path)?);
    }
    let decode = |tokens: &Vec<u32>| model.text.tokenizer().decode(tokens);
    let echoes = prompts.iter().filter(|_| ask.echo).map(decode).collect::<Result<Vec<_>, _>>();
    let echoes = echoes.map_err(|error| ApiError::internal(&error))?;
    let base = Base {
        id: format!("cmpl-{}", Uuid::new_v4().simple()),
        created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        model: served.id.clone(),
        fingerprint: served.fingerprint.clone(),
        count: ask.bare.count,
        order: chat::order(prompts.len(), ask.bare.count),
        echoes,
        logprobs: ask.bare.logprobs.is_some(),
    };
    let answers = chat::submit_tokens(&app, &record, (served, model), place, prompts, ask.bare).await?;
    let response = match ask.stream {
        Some(usage) => sse::respond(Pieces::new(base, answers, usage)),
        None => Json(collect(base, answers).await?).into_response(),
    };
    Ok(ignored.with(response))
}

/// What goes on.
enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
}

/// A request that is valid as far as it can be told without a model.
struct Ask {
    model: String,
    prompts: Vec<Prompt>,
    bare: chat::Bare,
    echo: bool,
    /// Whether answers come in pieces, and whether the last one counts tokens.
    stream: Option<bool>,
}

impl Ask {
    fn parse(request: wire::CompletionRequest) -> Result<Self, InvalidRequest> {
        for (name, value) in [
            ("min_tokens", &request.min_tokens),
            ("prompt_logprobs", &request.prompt_logprobs),
            ("stop_token_ids", &request.stop_token_ids),
            ("use_beam_search", &request.use_beam_search),
        ] {
            if value.is_some() {
                return Err(unsupported(name, "it would change the answer, and this server does not do it"));
            }
        }
        let model = request.model.ok_or_else(|| missing("model"))?;
        let prompts = match request.prompt.ok_or_else(|| missing("prompt"))? {
            wire::Prompt::Text(text) => vec![Prompt::Text(text)],
            wire::Prompt::Texts(texts) => texts.into_iter().map(Prompt::Text).collect(),
            wire::Prompt::Tokens(ids) => vec![Prompt::Tokens(ids)],
            wire::Prompt::Lists(lists) => lists.into_iter().map(Prompt::Tokens).collect(),
        };
        if prompts.is_empty() {
            return Err(InvalidRequest::EmptyArray { param: "prompt".into() });
        }
        if request.suffix.is_some_and(|suffix| !suffix.is_empty()) {
            return Err(unsupported("suffix", "these models go on with a text and do not fill gaps"));
        }
        let count = integer("n", request.n.unwrap_or(1), 1, MOST_ANSWERS)?;
        if request.best_of.is_some_and(|best| best != count) {
            return Err(unsupported("best_of", "all answers are given, so that it must be n"));
        }
        let logprobs = request.logprobs.map(|count| integer("logprobs", count, 0, 5)).transpose()?;
        let echo = request.echo.unwrap_or(false);
        if echo && logprobs.is_some() {
            return Err(unsupported("echo", "the probabilities of a prompt's tokens are not computed"));
        }
        let constrained = chat::form(FormFields {
            response_format: None,
            structured_outputs: request.structured_outputs,
            guided_json: request.guided_json,
            guided_regex: request.guided_regex,
            guided_choice: request.guided_choice,
            guided_grammar: request.guided_grammar,
        })?;
        let ignore_eos = request.ignore_eos.unwrap_or(false);
        chat::check_end(ignore_eos, constrained.as_ref())?;
        let tokens = integer("max_tokens", request.max_tokens.unwrap_or(TOKENS), 1, i64::MAX)?;
        let bare = chat::Bare {
            sampling: SamplingFields {
                temperature: request.temperature,
                top_p: request.top_p,
                min_p: request.min_p,
                top_k: request.top_k,
                repetition_penalty: request.repetition_penalty,
                frequency_penalty: request.frequency_penalty,
                presence_penalty: request.presence_penalty,
                seed: request.seed,
                logit_bias: request.logit_bias,
            }
            .asked()?,
            max_tokens: Some(tokens as usize),
            stops: chat::stops(request.stop)?,
            ignore_eos,
            count: count as usize,
            logprobs: logprobs.map(|count| count as usize),
            constrained,
        };
        let usage = request.stream_options.and_then(|options| options.0.include_usage).unwrap_or(false);
        Ok(Self { model, prompts, bare, echo, stream: request.stream.unwrap_or(false).then_some(usage) })
    }
}

/// The tokens of a prompt.
fn tokens(model: &TextModel, prompt: Prompt, param: &str) -> Result<Vec<u32>, ApiError> {
    let ids = match prompt {
        Prompt::Text(text) => model.bare_tokens(&text).map_err(|error| ApiError::internal(&error))?,
        Prompt::Tokens(ids) => {
            let size = model.tokenizer().size();
            let wrong = |id: &&u32| **id as usize >= size || model.stands_for_media(**id);
            if let Some(id) = ids.iter().find(wrong) {
                let supported = format!("ids 0 to {}, but none that stands for pictures", size - 1);
                let found = format!("token id {id}");
                return Err(InvalidRequest::Value { param: param.into(), found, supported }.into());
            }
            ids
        }
    };
    if ids.is_empty() {
        return Err(InvalidRequest::EmptyArray { param: param.into() }.into());
    }
    Ok(ids)
}

/// What fuzzing enters.
#[cfg(fuzzing)]
pub(super) fn fuzz(request: wire::CompletionRequest) -> Result<(), ApiError> {
    Ok(Ask::parse(request).map(drop)?)
}

/// What all pieces of an answer share.
struct Base {
    id: String,
    created: u64,
    model: String,
    fingerprint: String,
    /// Answers to each prompt.
    count: usize,
    /// Which of all answers each of those is that are being generated.
    order: Vec<usize>,
    /// Prompts, where they stand in front of their answers.
    echoes: Vec<String>,
    logprobs: bool,
}

impl Base {
    fn echo(&self, index: usize) -> String {
        self.echoes.get(index / self.count).cloned().unwrap_or_default()
    }

    fn piece(
        &self,
        choices: Vec<wire::CompletionChoice>,
        usage: Option<Option<WireUsage>>,
    ) -> wire::Completion {
        wire::Completion {
            id: self.id.clone(),
            object: "text_completion",
            created: self.created,
            model: self.model.clone(),
            choices,
            usage,
            system_fingerprint: self.fingerprint.clone(),
        }
    }
}

/// Tokens of all prompts and answers.
#[derive(Default)]
struct Total {
    usage: Usage,
    /// Whether a prompt was counted.
    counted: Vec<bool>,
}

impl Total {
    fn add(&mut self, prompt: usize, usage: Usage) {
        if self.counted.len() <= prompt {
            self.counted.resize(prompt + 1, false);
        }
        self.usage.generated += usage.generated;
        if !std::mem::replace(&mut self.counted[prompt], true) {
            self.usage.prompt += usage.prompt;
            self.usage.reused += usage.reused;
        }
    }
}

/// Adds tokens to a text's probabilities, the text being so many characters long in front of them.
fn extend(logprobs: &mut wire::CompletionLogprobs, tokens: Vec<Scored>, offset: &mut usize) {
    for token in tokens {
        logprobs.text_offset.push(*offset);
        *offset += token.text.chars().count();
        logprobs.token_logprobs.push(token.logprob.max(chat::NEVER));
        let mut top: BTreeMap<String, f32> =
            token.top.into_iter().map(|top| (top.text, top.logprob.max(chat::NEVER))).collect();
        // The token itself is always among them, as the hosted API has it.
        top.entry(token.text.clone()).or_insert(token.logprob.max(chat::NEVER));
        logprobs.top_logprobs.push(top);
        logprobs.tokens.push(token.text);
    }
}

async fn collect(base: Base, mut answers: Answers) -> Result<wire::Completion, ApiError> {
    let count = base.order.len();
    let mut choices: Vec<_> = (0..count)
        .map(|index| wire::CompletionChoice {
            index,
            text: base.echo(index),
            logprobs: base.logprobs.then(wire::CompletionLogprobs::default),
            finish_reason: None,
        })
        .collect();
    let (mut total, mut offsets) = (Total::default(), vec![0; count]);
    while let Some(step) = answers.next().await {
        let (index, event) = step?;
        let index = base.order[index];
        let choice = &mut choices[index];
        match event {
            AnswerEvent::Text(text) => choice.text += &text,
            AnswerEvent::Scored(tokens) => {
                if let Some(logprobs) = &mut choice.logprobs {
                    extend(logprobs, tokens, &mut offsets[index]);
                }
            }
            AnswerEvent::Finished(reason, usage) => {
                choice.finish_reason = Some(reason.into());
                total.add(index / base.count, usage);
            }
            // No functions were given.
            AnswerEvent::Call(_) | AnswerEvent::Arguments(_) => {}
        }
    }
    Ok(base.piece(choices, Some(Some(chat::usage(total.usage)))))
}

/// Answers in pieces. Dropping them cancels what is not done.
struct Pieces {
    base: Base,
    answers: Answers,
    /// Whether the last piece counts tokens.
    usage: bool,
    total: Total,
    offsets: Vec<usize>,
    /// Of each answer, text that waits for its probabilities.
    texts: Vec<Option<String>>,
    ready: VecDeque<Event>,
    end: End,
}

enum End {
    Open,
    Usage,
    Done,
    Nothing,
}

impl Pieces {
    fn new(base: Base, answers: Answers, usage: bool) -> Self {
        let count = base.order.len();
        let mut pieces = Self {
            base,
            answers,
            usage,
            total: Total::default(),
            offsets: vec![0; count],
            texts: vec![None; count],
            ready: VecDeque::new(),
            end: End::Open,
        };
        for index in 0..count {
            let echo = pieces.base.echo(index);
            if !echo.is_empty() {
                pieces.send(index, echo, None, None);
            }
        }
        pieces
    }

    /// Sends text whose tokens were told before, or never will be.
    fn tell_text(&mut self, index: usize) {
        if let Some(text) = self.texts[index].take() {
            self.send(index, text, None, None);
        }
    }

    fn send(
        &mut self,
        index: usize,
        text: String,
        logprobs: Option<wire::CompletionLogprobs>,
        finish_reason: Option<FinishReason>,
    ) {
        let choice = wire::CompletionChoice { index, text, logprobs, finish_reason };
        self.ready.push_back(sse::json(&self.base.piece(vec![choice], self.usage.then_some(None))));
    }
}

impl sse::Pieces for Pieces {
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            match self.end {
                End::Open => match self.answers.next().await {
                    Some(Ok((index, AnswerEvent::Text(text)))) if self.base.logprobs => {
                        let index = self.base.order[index];
                        self.tell_text(index);
                        self.texts[index] = Some(text);
                    }
                    Some(Ok((index, AnswerEvent::Text(text)))) => {
                        self.send(self.base.order[index], text, None, None);
                    }
                    Some(Ok((index, AnswerEvent::Scored(tokens)))) => {
                        let index = self.base.order[index];
                        let mut logprobs = wire::CompletionLogprobs::default();
                        extend(&mut logprobs, tokens, &mut self.offsets[index]);
                        let text = self.texts[index].take().unwrap_or_default();
                        self.send(index, text, Some(logprobs), None);
                    }
                    Some(Ok((index, AnswerEvent::Finished(reason, usage)))) => {
                        let index = self.base.order[index];
                        self.tell_text(index);
                        self.total.add(index / self.base.count, usage);
                        self.send(index, String::new(), None, Some(reason.into()));
                    }
                    Some(Ok((_, AnswerEvent::Call(_) | AnswerEvent::Arguments(_)))) => {}
                    Some(Err(error)) => {
                        self.end = End::Nothing;
                        self.ready.push_back(sse::json(&ApiError::from(error).body()));
                    }
                    None => self.end = if self.usage { End::Usage } else { End::Done },
                },
                End::Usage => {
                    self.end = End::Done;
                    let usage = Some(Some(chat::usage(self.total.usage)));
                    return Some(sse::json(&self.base.piece(Vec::new(), usage)));
                }
                End::Done => {
                    self.end = End::Nothing;
                    return Some(sse::done());
                }
                End::Nothing => return None,
            }
        }
    }
}
