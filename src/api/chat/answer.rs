//! Answers on the wire: whole, or in pieces.

use std::time::{SystemTime, UNIX_EPOCH};

use axum::response::{Response, sse::Event};
use uuid::Uuid;

use super::parse::Streaming;
use crate::{
    api::{ApiError, sse, wire::chat as wire},
    engine::{EngineError, FinishReason},
    router::Served,
    text::{Answer, AnswerEvent, Usage},
};

/// What all pieces of an answer share.
#[derive(Debug)]
pub(super) struct Base {
    id: String,
    created: u64,
    model: String,
    fingerprint: String,
}

impl Base {
    pub(super) fn new(model: &Served) -> Self {
        Self {
            id: format!("chatcmpl-{}", Uuid::new_v4().simple()),
            created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            model: model.id.clone(),
            fingerprint: model.fingerprint.clone(),
        }
    }
}

/// The whole answer.
pub(super) async fn collect(base: Base, mut answer: Answer) -> Result<wire::ChatCompletion, ApiError> {
    let mut content = String::new();
    let (reason, usage) = loop {
        match answer.next().await? {
            AnswerEvent::Text(text) => content += &text,
            AnswerEvent::Finished(reason, usage) => break (reason, usage),
        }
    };
    let message = wire::Answer { role: "assistant", content, refusal: None, annotations: [] };
    Ok(wire::ChatCompletion {
        id: base.id,
        object: "chat.completion",
        created: base.created,
        model: base.model,
        choices: [wire::Choice { index: 0, message, logprobs: None, finish_reason: finish_reason(reason) }],
        usage: self::usage(usage),
        system_fingerprint: base.fingerprint,
        service_tier: "default",
    })
}

/// The answer in pieces. Dropping the response cancels it.
pub(super) fn stream(base: Base, answer: Answer, streaming: Streaming) -> Response {
    sse::respond(Pieces { base, answer, streaming, next: Next::Role })
}

struct Pieces {
    base: Base,
    answer: Answer,
    streaming: Streaming,
    next: Next,
}

/// The next piece.
enum Next {
    Role,
    Text,
    Usage(Usage),
    Done,
    Nothing,
}

impl sse::Pieces for Pieces {
    async fn next(&mut self) -> Option<Event> {
        match self.next {
            Next::Role => {
                self.next = Next::Text;
                Some(self.choice(wire::Delta { role: Some("assistant"), content: Some("") }, None))
            }
            Next::Text => Some(match self.answer.next().await {
                Ok(AnswerEvent::Text(text)) => {
                    self.choice(wire::Delta { role: None, content: Some(&text) }, None)
                }
                Ok(AnswerEvent::Finished(reason, usage)) => {
                    self.next = if self.streaming.usage { Next::Usage(usage) } else { Next::Done };
                    self.choice(wire::Delta::default(), Some(finish_reason(reason)))
                }
                Err(error) => self.fail(error),
            }),
            Next::Usage(usage) => {
                self.next = Next::Done;
                Some(self.chunk(&[], Some(Some(self::usage(usage)))))
            }
            Next::Done => {
                self.next = Next::Nothing;
                Some(sse::done())
            }
            Next::Nothing => None,
        }
    }
}

impl Pieces {
    /// An error behind a status of 200: the stream ends with it, and without its usual last line.
    fn fail(&mut self, error: EngineError) -> Event {
        self.next = Next::Nothing;
        sse::json(&ApiError::from(error).body())
    }

    fn choice(&self, delta: wire::Delta<'_>, finish_reason: Option<wire::FinishReason>) -> Event {
        let choice = wire::ChunkChoice { index: 0, delta, logprobs: None, finish_reason };
        self.chunk(&[choice], self.streaming.usage.then_some(None))
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

fn finish_reason(reason: FinishReason) -> wire::FinishReason {
    match reason {
        FinishReason::Stop => wire::FinishReason::Stop,
        FinishReason::Length => wire::FinishReason::Length,
    }
}

fn usage(usage: Usage) -> wire::Usage {
    wire::Usage {
        prompt_tokens: usage.prompt,
        completion_tokens: usage.generated,
        total_tokens: usage.prompt + usage.generated,
        prompt_tokens_details: wire::PromptTokens { cached_tokens: usage.reused, audio_tokens: 0 },
        completion_tokens_details: wire::CompletionTokens::default(),
    }
}
