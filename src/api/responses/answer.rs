//! Answers on the wire: whole, or in pieces.

use std::time::{SystemTime, UNIX_EPOCH};

use axum::response::{Response, sse::Event};
use uuid::Uuid;

use super::parse::Echo;
use crate::{
    api::{ApiError, sse, wire::responses as wire},
    engine::{EngineError, FinishReason},
    router::Served,
    text::{self, Answer, AnswerEvent},
};

/// What all pieces of an answer share.
#[derive(Debug)]
pub(super) struct Base {
    id: String,
    item: String,
    created: u64,
    model: String,
    echo: Echo,
}

impl Base {
    pub(super) fn new(model: &Served, echo: Echo) -> Self {
        let id = |prefix: &str| format!("{prefix}_{}", Uuid::new_v4().simple());
        Self {
            id: id("resp"),
            item: id("msg"),
            created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            model: model.id.clone(),
            echo,
        }
    }

    /// The answer before anything is said.
    fn response(&self) -> wire::Response<'_> {
        let echo = &self.echo;
        wire::Response {
            id: &self.id,
            object: "response",
            created_at: self.created,
            status: wire::Status::InProgress,
            background: false,
            error: None,
            incomplete_details: None,
            instructions: echo.instructions.as_deref(),
            max_output_tokens: echo.max_output_tokens,
            model: &self.model,
            output: Vec::new(),
            parallel_tool_calls: echo.parallel_tool_calls,
            previous_response_id: None,
            reasoning: wire::Reasoning::default(),
            service_tier: "default",
            store: false,
            temperature: echo.temperature,
            text: wire::OutputText { format: wire::OutputFormat { kind: "text" } },
            tool_choice: echo.tool_choice,
            tools: [],
            top_p: echo.top_p,
            truncation: "disabled",
            usage: None,
            metadata: &echo.metadata,
        }
    }

    fn item<'a>(&'a self, status: wire::Status, text: Option<&'a str>) -> wire::OutputItem<'a> {
        let content = text.into_iter().map(part).collect();
        wire::OutputItem { id: &self.item, kind: "message", status, role: "assistant", content }
    }
}

fn part(text: &str) -> wire::OutputPart<'_> {
    wire::OutputPart { kind: "output_text", text, annotations: [], logprobs: [] }
}

/// What was said, and how it ended.
#[derive(Debug)]
pub(super) struct Said {
    text: String,
    reason: FinishReason,
    usage: text::Usage,
}

impl Said {
    fn status(&self) -> wire::Status {
        match self.reason {
            FinishReason::Stop => wire::Status::Completed,
            FinishReason::Length => wire::Status::Incomplete,
        }
    }

    /// The whole answer.
    pub(super) fn response<'a>(&'a self, base: &'a Base) -> wire::Response<'a> {
        let status = self.status();
        let text::Usage { prompt, reused, generated } = self.usage;
        let early = status == wire::Status::Incomplete;
        wire::Response {
            status,
            incomplete_details: early.then_some(wire::Incomplete { reason: "max_output_tokens" }),
            output: vec![base.item(status, Some(&self.text))],
            usage: Some(wire::Usage {
                input_tokens: prompt,
                input_tokens_details: wire::InputTokens { cached_tokens: reused, cache_write_tokens: 0 },
                output_tokens: generated,
                output_tokens_details: wire::OutputTokens { reasoning_tokens: 0 },
                total_tokens: prompt + generated,
            }),
            ..base.response()
        }
    }
}

/// All that is said.
pub(super) async fn collect(mut answer: Answer) -> Result<Said, ApiError> {
    let mut text = String::new();
    loop {
        match answer.next().await? {
            AnswerEvent::Text(more) => text += &more,
            AnswerEvent::Finished(reason, usage) => return Ok(Said { text, reason, usage }),
        }
    }
}

/// The answer in pieces. Dropping the response cancels it.
pub(super) fn stream(base: Base, answer: Answer) -> Response {
    sse::respond(Pieces { base, answer, text: String::new(), sequence: 0, next: Next::Created })
}

struct Pieces {
    base: Base,
    answer: Answer,
    /// What was said so far.
    text: String,
    /// The number of the next event.
    sequence: u64,
    next: Next,
}

/// The next piece.
enum Next {
    Created,
    InProgress,
    Item,
    Part,
    Text,
    PartDone(Said),
    ItemDone(Said),
    Done(Said),
    Nothing,
}

impl sse::Pieces for Pieces {
    async fn next(&mut self) -> Option<Event> {
        let sequence = self.sequence;
        self.sequence += 1;
        let event = |kind| event(sequence, kind);
        let (item_id, output_index, content_index) = (self.base.item.as_str(), 0, 0);
        let next = std::mem::replace(&mut self.next, Next::Nothing);
        Some(match next {
            Next::Created => {
                self.next = Next::InProgress;
                event(wire::EventKind::Created { response: self.base.response() })
            }
            Next::InProgress => {
                self.next = Next::Item;
                event(wire::EventKind::InProgress { response: self.base.response() })
            }
            Next::Item => {
                self.next = Next::Part;
                let item = self.base.item(wire::Status::InProgress, None);
                event(wire::EventKind::ItemAdded { output_index, item })
            }
            Next::Part => {
                self.next = Next::Text;
                event(wire::EventKind::PartAdded { item_id, output_index, content_index, part: part("") })
            }
            Next::Text => match self.answer.next().await {
                Ok(AnswerEvent::Text(delta)) => {
                    self.next = Next::Text;
                    self.text += &delta;
                    let delta = delta.as_str();
                    let logprobs = [];
                    event(wire::EventKind::TextDelta {
                        item_id,
                        output_index,
                        content_index,
                        delta,
                        logprobs,
                    })
                }
                Ok(AnswerEvent::Finished(reason, usage)) => {
                    let said = Said { text: std::mem::take(&mut self.text), reason, usage };
                    let (text, logprobs) = (said.text.as_str(), []);
                    let kind =
                        wire::EventKind::TextDone { item_id, output_index, content_index, text, logprobs };
                    let event = event(kind);
                    self.next = Next::PartDone(said);
                    event
                }
                Err(error) => event(wire::EventKind::Failed { response: self.failed(error) }),
            },
            Next::PartDone(said) => {
                let part = part(&said.text);
                let event = event(wire::EventKind::PartDone { item_id, output_index, content_index, part });
                self.next = Next::ItemDone(said);
                event
            }
            Next::ItemDone(said) => {
                let item = self.base.item(said.status(), Some(&said.text));
                let event = event(wire::EventKind::ItemDone { output_index, item });
                self.next = Next::Done(said);
                event
            }
            Next::Done(said) => {
                let response = said.response(&self.base);
                event(match said.reason {
                    FinishReason::Stop => wire::EventKind::Completed { response },
                    FinishReason::Length => wire::EventKind::Incomplete { response },
                })
            }
            Next::Nothing => return None,
        })
    }
}

impl Pieces {
    /// An error behind a status of 200: the stream ends with it.
    fn failed(&self, error: EngineError) -> wire::Response<'_> {
        let message = ApiError::from(error).to_string();
        wire::Response {
            status: wire::Status::Failed,
            error: Some(wire::Failure { code: "server_error", message }),
            output: vec![self.base.item(wire::Status::Incomplete, Some(&self.text))],
            ..self.base.response()
        }
    }
}

fn event(sequence_number: u64, kind: wire::EventKind<'_>) -> Event {
    let name = kind.name();
    sse::named(name, &wire::StreamEvent { kind, sequence_number })
}
