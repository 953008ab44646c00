//! Answers on the wire: whole, or in pieces.

use std::collections::VecDeque;

use axum::{
    Json,
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive},
    },
};
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::{
    api::{ApiError, chat::Answers, sse, wire::messages as wire},
    engine::{EngineError, FinishReason},
    router::Served,
    text::{AnswerEvent, Usage},
};

/// What all pieces of an answer share.
#[derive(Debug)]
pub(super) struct Base {
    id: String,
    model: String,
    max_tokens: usize,
    /// Whether the usage tells what was found in the cache.
    cache: bool,
}

impl Base {
    pub(super) fn new(model: &Served, max_tokens: usize, cache: bool) -> Self {
        let id = format!("msg_{}", Uuid::new_v4().simple());
        Self { id, model: model.id.clone(), max_tokens, cache }
    }

    fn message(&self, usage: Usage) -> wire::Message<'_> {
        wire::Message {
            id: &self.id,
            kind: "message",
            role: "assistant",
            model: &self.model,
            content: Vec::new(),
            stop_reason: None,
            stop_sequence: None,
            stop_details: None,
            container: None,
            diagnostics: None,
            usage: self.usage(usage),
        }
    }

    /// Both numbers of input together are the prompt. Who did not ask for caching does not count with it.
    fn usage(&self, usage: Usage) -> wire::Usage {
        let read = if self.cache { usage.reused.min(usage.prompt) } else { 0 };
        wire::Usage {
            input_tokens: usage.prompt - read,
            cache_creation_input_tokens: 0,
            cache_read_input_tokens: read,
            output_tokens: usage.generated,
            cache_creation: None,
            inference_geo: None,
            output_tokens_details: None,
            server_tool_use: None,
            service_tier: "standard",
        }
    }

    fn stop_reason(&self, answers: &Answers, reason: FinishReason, usage: Usage) -> wire::StopReason {
        match reason {
            FinishReason::Stop if answers.stopped_by(0).is_some() => wire::StopReason::StopSequence,
            FinishReason::Stop if answers.called(0) => wire::StopReason::ToolUse,
            FinishReason::Stop => wire::StopReason::EndTurn,
            FinishReason::Length if usage.generated < self.max_tokens => {
                wire::StopReason::ModelContextWindowExceeded
            }
            FinishReason::Length => wire::StopReason::MaxTokens,
        }
    }
}

fn tool_use(name: String) -> wire::ContentBlock {
    let id = format!("toolu_{}", Uuid::new_v4().simple());
    wire::ContentBlock::ToolUse {
        id,
        name,
        input: Value::Object(Map::new()),
        caller: wire::Caller { kind: "direct" },
    }
}

/// Gives the last call its input, unless it was cut off: then it keeps an empty one.
fn settle(content: &mut [wire::ContentBlock], written: &mut String) {
    let whole = serde_json::from_str(written).ok().filter(Value::is_object);
    written.clear();
    if let (Some(whole), Some(wire::ContentBlock::ToolUse { input, .. })) = (whole, content.last_mut()) {
        *input = whole;
    }
}

/// The whole answer.
pub(super) async fn collect(base: Base, mut answers: Answers) -> Result<Response, ApiError> {
    let mut content: Vec<wire::ContentBlock> = Vec::new();
    // Of the call that is last, as far as it came.
    let mut input = String::new();
    let mut end = None;
    while let Some(step) = answers.next().await {
        match step?.1 {
            AnswerEvent::Text(more) => {
                settle(&mut content, &mut input);
                match content.last_mut() {
                    Some(wire::ContentBlock::Text { text, .. }) => *text += &more,
                    _ => content.push(wire::ContentBlock::text(more)),
                }
            }
            AnswerEvent::Call(name) => {
                settle(&mut content, &mut input);
                content.push(tool_use(name));
            }
            AnswerEvent::Arguments(more) => input += &more,
            AnswerEvent::Scored(_) => {}
            AnswerEvent::Finished(reason, usage) => {
                settle(&mut content, &mut input);
                end = Some((reason, usage));
            }
        }
    }
    let (reason, usage) = end.ok_or(EngineError::Stopped)?;
    // Clients read the first block without a look.
    if content.is_empty() {
        content.push(wire::ContentBlock::text(String::new()));
    }
    let message = wire::Message {
        content,
        stop_reason: Some(base.stop_reason(&answers, reason, usage)),
        stop_sequence: answers.stopped_by(0).map(str::to_owned),
        ..base.message(usage)
    };
    Ok(Json(message).into_response())
}

/// The answer in pieces. Dropping the response cancels it.
pub(super) fn stream(base: Base, answers: Answers) -> Response {
    let ping = event(&wire::StreamEvent::Ping);
    let pieces =
        Pieces { base, answers, ready: VecDeque::new(), next: Next::Start, blocks: 0, open: Open::Nothing };
    sse::respond_with(pieces, KeepAlive::new().event(ping))
}

struct Pieces {
    base: Base,
    answers: Answers,
    /// Pieces to send first.
    ready: VecDeque<Event>,
    next: Next,
    /// How many blocks were begun.
    blocks: usize,
    /// The last of them, unless it is complete.
    open: Open,
}

/// What follows.
#[derive(Clone, Copy)]
enum Next {
    Start,
    Answer,
    Nothing,
}

/// A block that is not complete.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Open {
    Nothing,
    Text,
    Call,
}

impl sse::Pieces for Pieces {
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            match self.next {
                // What was found in the cache is known when the engine begins.
                Next::Start => match self.answers.started().await {
                    Ok(usage) => {
                        self.next = Next::Answer;
                        let start =
                            event(&wire::StreamEvent::MessageStart { message: self.base.message(usage) });
                        // As the hosted API does, so that clients meet what they must ignore before it matters.
                        self.ready.extend([start, event(&wire::StreamEvent::Ping)]);
                    }
                    Err(error) => self.fail(error),
                },
                Next::Answer => match self.answers.next().await {
                    Some(Ok((_, event))) => self.tell(event),
                    Some(Err(error)) => self.fail(error),
                    None => self.next = Next::Nothing,
                },
                Next::Nothing => return None,
            }
        }
    }
}

impl Pieces {
    fn tell(&mut self, step: AnswerEvent) {
        match step {
            AnswerEvent::Text(text) => {
                if self.open != Open::Text {
                    self.begin(Open::Text, wire::ContentBlock::text(String::new()));
                }
                self.delta(wire::Delta::TextDelta { text: &text });
            }
            AnswerEvent::Call(name) => self.begin(Open::Call, tool_use(name)),
            AnswerEvent::Arguments(more) => self.delta(wire::Delta::InputJsonDelta { partial_json: &more }),
            AnswerEvent::Scored(_) => {}
            AnswerEvent::Finished(reason, usage) => {
                if self.blocks == 0 {
                    self.begin(Open::Text, wire::ContentBlock::text(String::new()));
                }
                self.end();
                let stop_reason = self.base.stop_reason(&self.answers, reason, usage);
                let delta = wire::End {
                    stop_reason,
                    stop_sequence: self.answers.stopped_by(0),
                    stop_details: None,
                    container: None,
                };
                let delta = wire::StreamEvent::MessageDelta { delta, usage: self.base.usage(usage) };
                self.ready.push_back(event(&delta));
                self.send(&wire::StreamEvent::MessageStop);
            }
        }
    }

    fn begin(&mut self, open: Open, content_block: wire::ContentBlock) {
        self.end();
        self.open = open;
        self.blocks += 1;
        self.send(&wire::StreamEvent::ContentBlockStart { index: self.blocks - 1, content_block });
    }

    fn delta(&mut self, delta: wire::Delta<'_>) {
        self.send(&wire::StreamEvent::ContentBlockDelta { index: self.blocks.saturating_sub(1), delta });
    }

    fn end(&mut self) {
        if self.open != Open::Nothing {
            self.open = Open::Nothing;
            self.send(&wire::StreamEvent::ContentBlockStop { index: self.blocks - 1 });
        }
    }

    fn send(&mut self, piece: &wire::StreamEvent<'_>) {
        self.ready.push_back(event(piece));
    }

    /// An error behind a status of 200: the stream ends with it.
    fn fail(&mut self, error: EngineError) {
        self.next = Next::Nothing;
        self.ready.push_back(sse::named("error", &ApiError::from(error).anthropic_body()));
    }
}

fn event(event: &wire::StreamEvent<'_>) -> Event {
    sse::named(event.name(), event)
}
