//! Answers on the wire: whole, or in pieces.

use std::{
    collections::VecDeque,
    time::{SystemTime, UNIX_EPOCH},
};

use axum::response::{Response, sse::Event};
use uuid::Uuid;

use super::{
    answers::Answers,
    parse::{CallStyle, Streaming},
};
use crate::{
    api::{ApiError, sse, wire::chat as wire},
    engine::{EngineError, FinishReason},
    router::Served,
    text::{AnswerEvent, Scored, Usage},
};

/// The smallest logarithm of a probability that JSON can say, as the hosted API writes it.
pub(in crate::api) const NEVER: f32 = -9999.0;

/// What all pieces of an answer share.
#[derive(Debug)]
pub(super) struct Base {
    id: String,
    created: u64,
    model: String,
    fingerprint: String,
    calls: Option<CallStyle>,
    logprobs: bool,
}

impl Base {
    pub(super) fn new(model: &Served, calls: Option<CallStyle>, logprobs: bool) -> Self {
        Self {
            id: format!("chatcmpl-{}", Uuid::new_v4().simple()),
            created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            model: model.id.clone(),
            fingerprint: model.fingerprint.clone(),
            calls,
            logprobs,
        }
    }

    fn legacy(&self) -> bool {
        self.calls.is_some_and(|style| style.legacy)
    }

    /// As the hosted API tells it: where the function was named, calling it is not worth a reason of its own.
    fn finish_reason(&self, reason: FinishReason, called: bool) -> wire::FinishReason {
        match (reason, self.calls) {
            (FinishReason::Stop, Some(style)) if called && !style.named => match style.legacy {
                true => wire::FinishReason::FunctionCall,
                false => wire::FinishReason::ToolCalls,
            },
            (reason, _) => reason.into(),
        }
    }
}

fn call_id() -> String {
    format!("call_{}", Uuid::new_v4().simple())
}

/// A choice that is being put together.
#[derive(Default)]
struct Building {
    content: String,
    calls: Vec<wire::FunctionCall>,
    logprobs: wire::Logprobs,
    finish_reason: Option<wire::FinishReason>,
}

/// The whole answer.
pub(super) async fn collect(base: Base, mut answers: Answers) -> Result<wire::ChatCompletion, ApiError> {
    let mut choices: Vec<Building> = Vec::new();
    choices.resize_with(answers.count(), Building::default);
    let mut total = None;
    while let Some(step) = answers.next().await {
        let (index, event) = step?;
        let choice = &mut choices[index];
        match event {
            AnswerEvent::Text(text) => choice.content += &text,
            AnswerEvent::Scored(tokens) => choice.logprobs.content.extend(tokens.into_iter().map(token)),
            AnswerEvent::Call(name) => {
                choice.calls.push(wire::FunctionCall { name, arguments: String::new() });
            }
            AnswerEvent::Arguments(more) => {
                if let Some(call) = choice.calls.last_mut() {
                    call.arguments += &more;
                }
            }
            AnswerEvent::Finished(reason, usage) => {
                choice.finish_reason = Some(base.finish_reason(reason, answers.called(index)));
                add(&mut total, usage);
            }
        }
    }
    let choices = choices.into_iter().enumerate().map(|(index, choice)| {
        let Building { content, mut calls, logprobs, finish_reason } = choice;
        let (tool_calls, function_call) = match base.legacy() {
            true => (Vec::new(), calls.pop()),
            false => {
                let call = |function| wire::ToolCall { id: call_id(), kind: "function", function };
                (calls.into_iter().map(call).collect(), None)
            }
        };
        let calls = !tool_calls.is_empty() || function_call.is_some();
        let content = (!calls || !content.is_empty()).then_some(content);
        wire::Choice {
            index,
            message: wire::Answer {
                role: "assistant",
                content,
                refusal: None,
                annotations: [],
                tool_calls,
                function_call,
            },
            logprobs: base.logprobs.then_some(logprobs),
            finish_reason: finish_reason.unwrap_or(wire::FinishReason::Stop),
        }
    });
    Ok(wire::ChatCompletion {
        id: base.id.clone(),
        object: "chat.completion",
        created: base.created,
        model: base.model.clone(),
        choices: choices.collect(),
        usage: usage(total.unwrap_or_default()),
        system_fingerprint: base.fingerprint.clone(),
        service_tier: "default",
    })
}

/// The answer in pieces. Dropping the response cancels it.
pub(super) fn stream(base: Base, answers: Answers, streaming: Streaming) -> Response {
    let mut choices = Vec::new();
    choices.resize_with(answers.count(), Progress::default);
    sse::respond(Pieces {
        base,
        answers,
        streaming,
        choices,
        total: None,
        ready: VecDeque::new(),
        next: Next::Answers,
    })
}

struct Pieces {
    base: Base,
    answers: Answers,
    streaming: Streaming,
    choices: Vec<Progress>,
    total: Option<Usage>,
    /// Pieces to send first.
    ready: VecDeque<Event>,
    next: Next,
}

/// How far a choice is told.
#[derive(Default)]
struct Progress {
    /// Whether its first piece is out.
    begun: bool,
    calls: usize,
    /// Text that waits for its tokens' probabilities, which come behind it.
    text: Option<String>,
}

/// What follows.
#[derive(Clone, Copy)]
enum Next {
    Answers,
    Usage,
    Done,
    Nothing,
}

impl sse::Pieces for Pieces {
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            match self.next {
                Next::Answers => {
                    if let Some(first) =
                        (0..self.choices.len().min(1)).find(|&index| !self.choices[index].begun)
                    {
                        // At once, before anything is computed.
                        self.begin(first);
                        continue;
                    }
                    match self.answers.next().await {
                        Some(Ok((index, event))) => self.tell(index, event),
                        Some(Err(error)) => self.fail(error),
                        None => self.next = if self.streaming.usage { Next::Usage } else { Next::Done },
                    }
                }
                Next::Usage => {
                    self.next = Next::Done;
                    let usage = usage(self.total.unwrap_or_default());
                    return Some(self.chunk(&[], Some(Some(usage))));
                }
                Next::Done => {
                    self.next = Next::Nothing;
                    return Some(sse::done());
                }
                Next::Nothing => return None,
            }
        }
    }
}

impl Pieces {
    /// The first piece of a choice.
    fn begin(&mut self, index: usize) {
        self.choices[index].begun = true;
        let delta = wire::Delta { role: Some("assistant"), content: Some(""), ..wire::Delta::default() };
        self.send(index, delta, None, None);
    }

    fn tell(&mut self, index: usize, event: AnswerEvent) {
        if !self.choices[index].begun {
            self.begin(index);
        }
        if !matches!(event, AnswerEvent::Scored(_)) {
            self.tell_text(index, None);
        }
        match event {
            AnswerEvent::Text(text) => {
                self.choices[index].text = Some(text);
                if !self.base.logprobs {
                    self.tell_text(index, None);
                }
            }
            AnswerEvent::Scored(tokens) => {
                let content = tokens.into_iter().map(token).collect();
                self.tell_text(index, Some(wire::Logprobs { content, refusal: None }));
            }
            AnswerEvent::Call(name) => {
                let call = self.choices[index].calls;
                self.choices[index].calls += 1;
                let (id, function) = (call_id(), wire::FunctionDelta { name: Some(&name), arguments: "" });
                let first = wire::CallDelta { index: call, id: Some(&id), kind: Some("function"), function };
                self.send_call(index, first);
            }
            AnswerEvent::Arguments(more) => {
                let call = self.choices[index].calls.saturating_sub(1);
                let function = wire::FunctionDelta { name: None, arguments: &more };
                self.send_call(index, wire::CallDelta { index: call, id: None, kind: None, function });
            }
            AnswerEvent::Finished(reason, usage) => {
                add(&mut self.total, usage);
                let reason = self.base.finish_reason(reason, self.answers.called(index));
                self.send(index, wire::Delta::default(), None, Some(reason));
            }
        }
    }

    /// Sends text that waits, with the probabilities that came.
    fn tell_text(&mut self, index: usize, logprobs: Option<wire::Logprobs>) {
        let text = self.choices[index].text.take();
        if text.is_none() && logprobs.is_none() {
            return;
        }
        let logprobs = logprobs.or_else(|| self.base.logprobs.then(wire::Logprobs::default));
        let content = Some(text.as_deref().unwrap_or_default());
        self.send(index, wire::Delta { content, ..wire::Delta::default() }, logprobs, None);
    }

    fn send_call(&mut self, index: usize, call: wire::CallDelta<'_>) {
        let delta = match self.base.legacy() {
            true => wire::Delta { function_call: Some(call.function), ..wire::Delta::default() },
            false => wire::Delta { tool_calls: Some([call]), ..wire::Delta::default() },
        };
        self.send(index, delta, None, None);
    }

    /// An error behind a status of 200: the stream ends with it, and without its usual last line.
    fn fail(&mut self, error: EngineError) {
        self.next = Next::Nothing;
        self.ready.push_back(sse::json(&ApiError::from(error).body()));
    }

    fn send(
        &mut self,
        index: usize,
        delta: wire::Delta<'_>,
        logprobs: Option<wire::Logprobs>,
        finish_reason: Option<wire::FinishReason>,
    ) {
        let choice = wire::ChunkChoice { index, delta, logprobs, finish_reason };
        let piece = self.chunk(&[choice], self.streaming.usage.then_some(None));
        self.ready.push_back(piece);
    }

    fn chunk(&self, choices: &[wire::ChunkChoice<'_>], usage: Option<Option<wire::Usage>>) -> Event {
        sse::json(&wire::Chunk {
            id: &self.base.id,
            object: "chat.completion.chunk",
            created: self.base.created,
            model: &self.base.model,
            system_fingerprint: &self.base.fingerprint,
            service_tier: "default",
            choices,
            usage,
        })
    }
}

impl From<FinishReason> for wire::FinishReason {
    fn from(reason: FinishReason) -> Self {
        match reason {
            FinishReason::Stop => Self::Stop,
            FinishReason::Length => Self::Length,
        }
    }
}

/// Adds the usage of one more answer: their prompt is the same, and counts once.
fn add(total: &mut Option<Usage>, usage: Usage) {
    match total {
        None => *total = Some(usage),
        // Later answers found the first one's prompt in the cache.
        Some(total) => {
            total.generated += usage.generated;
            total.reused = total.reused.min(usage.reused);
        }
    }
}

fn token(scored: Scored) -> wire::TokenLogprob {
    let top = scored.top.into_iter().map(|top| wire::TopLogprob {
        token: top.text,
        logprob: top.logprob.max(NEVER),
        bytes: top.bytes,
    });
    wire::TokenLogprob {
        top_logprobs: top.collect(),
        token: scored.text,
        logprob: scored.logprob.max(NEVER),
        bytes: scored.bytes,
    }
}

/// Tokens on the wire.
pub(in crate::api) fn usage(usage: Usage) -> wire::Usage {
    wire::Usage {
        prompt_tokens: usage.prompt,
        completion_tokens: usage.generated,
        total_tokens: usage.prompt + usage.generated,
        prompt_tokens_details: wire::PromptTokens { cached_tokens: usage.reused, audio_tokens: 0 },
        completion_tokens_details: wire::CompletionTokens::default(),
    }
}
