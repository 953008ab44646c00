//! Answers on the wire: whole, or in pieces.

use axum::{
    Json,
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive},
    },
};
use uuid::Uuid;

use crate::{
    api::{ApiError, sse, wire::messages as wire},
    engine::{EngineError, FinishReason},
    router::Served,
    text::{self, Answer, AnswerEvent},
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

    fn message(&self, usage: text::Usage) -> wire::Message<'_> {
        wire::Message {
            id: &self.id,
            kind: "message",
            role: "assistant",
            model: &self.model,
            content: Vec::new(),
            stop_reason: None,
            stop_sequence: None,
            usage: self.usage(usage),
        }
    }

    /// Both numbers of input together are the prompt. Who did not ask for caching does not count with it.
    fn usage(&self, usage: text::Usage) -> wire::Usage {
        let read = if self.cache { usage.reused.min(usage.prompt) } else { 0 };
        wire::Usage {
            input_tokens: usage.prompt - read,
            cache_creation_input_tokens: 0,
            cache_read_input_tokens: read,
            output_tokens: usage.generated,
        }
    }

    fn stop_reason(&self, answer: &Answer, reason: FinishReason, usage: text::Usage) -> wire::StopReason {
        match reason {
            FinishReason::Stop if answer.stop().is_some() => wire::StopReason::StopSequence,
            FinishReason::Stop => wire::StopReason::EndTurn,
            FinishReason::Length if usage.generated < self.max_tokens => {
                wire::StopReason::ModelContextWindowExceeded
            }
            FinishReason::Length => wire::StopReason::MaxTokens,
        }
    }
}

/// The whole answer.
pub(super) async fn collect(base: Base, mut answer: Answer) -> Result<Response, ApiError> {
    let mut text = String::new();
    let (reason, usage) = loop {
        match answer.next().await? {
            AnswerEvent::Text(more) => text += &more,
            AnswerEvent::Finished(reason, usage) => break (reason, usage),
        }
    };
    let message = wire::Message {
        content: vec![wire::ContentBlock::Text { text }],
        stop_reason: Some(base.stop_reason(&answer, reason, usage)),
        stop_sequence: answer.stop().map(str::to_owned),
        ..base.message(usage)
    };
    Ok(Json(message).into_response())
}

/// The answer in pieces. Dropping the response cancels it.
pub(super) fn stream(base: Base, answer: Answer) -> Response {
    let ping = event(&wire::StreamEvent::Ping);
    sse::respond_with(Pieces { base, answer, next: Next::Start }, KeepAlive::new().event(ping))
}

struct Pieces {
    base: Base,
    answer: Answer,
    next: Next,
}

/// The next piece.
enum Next {
    Start,
    Block,
    Ping,
    Text,
    End(FinishReason, text::Usage),
    Stop,
    Nothing,
}

impl sse::Pieces for Pieces {
    async fn next(&mut self) -> Option<Event> {
        let next = std::mem::replace(&mut self.next, Next::Nothing);
        Some(match next {
            // What was found in the cache is known when the engine begins.
            Next::Start => match self.answer.started().await {
                Ok(usage) => {
                    self.next = Next::Block;
                    event(&wire::StreamEvent::MessageStart { message: self.base.message(usage) })
                }
                Err(error) => failure(error),
            },
            Next::Block => {
                self.next = Next::Ping;
                let content_block = wire::ContentBlock::Text { text: String::new() };
                event(&wire::StreamEvent::ContentBlockStart { index: 0, content_block })
            }
            // As the hosted API does, so that clients meet what they must ignore before it matters.
            Next::Ping => {
                self.next = Next::Text;
                event(&wire::StreamEvent::Ping)
            }
            Next::Text => match self.answer.next().await {
                Ok(AnswerEvent::Text(text)) => {
                    self.next = Next::Text;
                    let delta = wire::Delta::TextDelta { text: &text };
                    event(&wire::StreamEvent::ContentBlockDelta { index: 0, delta })
                }
                Ok(AnswerEvent::Finished(reason, usage)) => {
                    self.next = Next::End(reason, usage);
                    event(&wire::StreamEvent::ContentBlockStop { index: 0 })
                }
                Err(error) => failure(error),
            },
            Next::End(reason, usage) => {
                self.next = Next::Stop;
                let stop_reason = self.base.stop_reason(&self.answer, reason, usage);
                let delta = wire::End { stop_reason, stop_sequence: self.answer.stop() };
                event(&wire::StreamEvent::MessageDelta { delta, usage: self.base.usage(usage) })
            }
            Next::Stop => event(&wire::StreamEvent::MessageStop),
            Next::Nothing => return None,
        })
    }
}

fn event(event: &wire::StreamEvent<'_>) -> Event {
    sse::named(event.name(), event)
}

/// An error behind a status of 200: the stream ends with it.
fn failure(error: EngineError) -> Event {
    sse::named("error", &ApiError::from(error).anthropic_body())
}
