//! Answers on the wire: whole, or in pieces.

use std::{
    collections::VecDeque,
    time::{SystemTime, UNIX_EPOCH},
};

use axum::response::{Response, sse::Event};
use uuid::Uuid;

use super::parse::Echo;
use crate::{
    api::{ApiError, chat::Answers, sse, wire::responses as wire},
    engine::{EngineError, FinishReason},
    router::Served,
    text::{AnswerEvent, Usage},
};

/// What all pieces of an answer share.
#[derive(Debug)]
pub(super) struct Base {
    id: String,
    created: u64,
    model: String,
    echo: Echo,
}

impl Base {
    pub(super) fn new(model: &Served, echo: Echo) -> Self {
        Self {
            id: new_id("resp"),
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
            text: wire::OutputText { format: &echo.format },
            tool_choice: match &echo.tool_choice {
                wire::ToolChoice::Word(word) => wire::EchoedChoice::Word(word),
                wire::ToolChoice::Which(which) => wire::EchoedChoice::Which(which),
            },
            tools: &echo.tools,
            top_p: echo.top_p,
            truncation: "disabled",
            usage: None,
            metadata: &echo.metadata,
        }
    }
}

fn new_id(prefix: &str) -> String {
    format!("{prefix}_{}", Uuid::new_v4().simple())
}

fn part(text: &str) -> wire::OutputPart<'_> {
    wire::OutputPart { kind: "output_text", text, annotations: [], logprobs: [] }
}

/// What was said or called.
#[derive(Debug)]
struct Item {
    id: String,
    kind: Kind,
    /// The text, or the arguments.
    text: String,
}

/// What an item is.
#[derive(Debug)]
enum Kind {
    Message,
    Call { call_id: String, name: String },
}

impl Item {
    fn message() -> Self {
        Self { id: new_id("msg"), kind: Kind::Message, text: String::new() }
    }

    fn call(name: String) -> Self {
        Self { id: new_id("fc"), kind: Kind::Call { call_id: new_id("call"), name }, text: String::new() }
    }

    /// It as it is; where it begins, without what is in it.
    fn wire(&self, status: wire::Status) -> wire::OutputItem<'_> {
        let begins = status == wire::Status::InProgress;
        match &self.kind {
            Kind::Message => wire::OutputItem::Message {
                id: &self.id,
                status,
                role: "assistant",
                content: if begins { Vec::new() } else { vec![part(&self.text)] },
            },
            Kind::Call { call_id, name } => wire::OutputItem::FunctionCall {
                id: &self.id,
                status,
                call_id,
                name,
                arguments: if begins { "" } else { &self.text },
            },
        }
    }
}

/// What was said and called, and how it ended.
#[derive(Debug, Default)]
pub(super) struct Said {
    items: Vec<Item>,
    end: Option<(FinishReason, Usage)>,
}

impl Said {
    fn status(&self) -> wire::Status {
        match self.end {
            Some((FinishReason::Stop, _)) => wire::Status::Completed,
            _ => wire::Status::Incomplete,
        }
    }

    /// The last item, and where it is.
    fn last(&self) -> Option<(usize, &Item)> {
        self.items.iter().enumerate().next_back()
    }

    /// More text: of the last item, or of a new one where that is a call.
    fn push_text(&mut self, more: &str) {
        if !matches!(self.last(), Some((_, Item { kind: Kind::Message, .. }))) {
            self.items.push(Item::message());
        }
        self.push(more);
    }

    fn push(&mut self, more: &str) {
        if let Some(last) = self.items.last_mut() {
            last.text += more;
        }
    }

    /// The whole answer. Only its last item may have been cut off.
    pub(super) fn response<'a>(&'a self, base: &'a Base) -> wire::Response<'a> {
        let status = self.status();
        let last = self.items.len().saturating_sub(1);
        let item = |(index, item): (usize, &'a Item)| {
            item.wire(if index == last { status } else { wire::Status::Completed })
        };
        let early = status == wire::Status::Incomplete;
        wire::Response {
            status,
            incomplete_details: early.then_some(wire::Incomplete { reason: "max_output_tokens" }),
            output: self.items.iter().enumerate().map(item).collect(),
            usage: self.end.map(|(_, usage)| wire::Usage {
                input_tokens: usage.prompt,
                input_tokens_details: wire::InputTokens {
                    cached_tokens: usage.reused,
                    cache_write_tokens: 0,
                },
                output_tokens: usage.generated,
                output_tokens_details: wire::OutputTokens { reasoning_tokens: 0 },
                total_tokens: usage.prompt + usage.generated,
            }),
            ..base.response()
        }
    }
}

/// All that is said and called.
pub(super) async fn collect(mut answers: Answers) -> Result<Said, ApiError> {
    let mut said = Said::default();
    while let Some(step) = answers.next().await {
        match step?.1 {
            AnswerEvent::Text(more) => said.push_text(&more),
            AnswerEvent::Call(name) => said.items.push(Item::call(name)),
            AnswerEvent::Arguments(more) => said.push(&more),
            AnswerEvent::Scored(_) => {}
            AnswerEvent::Finished(reason, usage) => said.end = Some((reason, usage)),
        }
    }
    if said.items.is_empty() {
        said.items.push(Item::message());
    }
    Ok(said)
}

/// The answer in pieces. Dropping the response cancels it.
pub(super) fn stream(base: Base, answers: Answers) -> Response {
    let mut pieces = Pieces {
        base,
        answers,
        said: Said::default(),
        sequence: 0,
        ready: VecDeque::new(),
        open: false,
        ended: false,
    };
    pieces.begin();
    sse::respond(pieces)
}

struct Pieces {
    base: Base,
    answers: Answers,
    said: Said,
    /// The number of the next event.
    sequence: u64,
    /// Pieces to send first.
    ready: VecDeque<Event>,
    /// Whether the last item is not complete.
    open: bool,
    ended: bool,
}

impl sse::Pieces for Pieces {
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if self.ended {
                return None;
            }
            match self.answers.next().await {
                Some(Ok((_, event))) => self.tell(event),
                Some(Err(error)) => self.fail(error),
                None => self.ended = true,
            }
        }
    }
}

/// Sends an event of what the pieces hold, all of which it may borrow.
macro_rules! send {
    ($pieces:ident, $kind:expr) => {{
        let event = event($pieces.sequence, $kind);
        $pieces.sequence += 1;
        $pieces.ready.push_back(event);
    }};
}

impl Pieces {
    /// At once, before anything is computed.
    fn begin(&mut self) {
        send!(self, wire::EventKind::Created { response: self.base.response() });
        send!(self, wire::EventKind::InProgress { response: self.base.response() });
    }

    fn tell(&mut self, step: AnswerEvent) {
        match step {
            AnswerEvent::Text(delta) => {
                if !matches!(self.said.last(), Some((_, Item { kind: Kind::Message, .. }))) {
                    self.begin_item(Item::message());
                }
                self.said.push(&delta);
                let Some((output_index, item)) = self.said.last() else { return };
                let (item_id, delta, logprobs) = (item.id.as_str(), delta.as_str(), []);
                send!(
                    self,
                    wire::EventKind::TextDelta { item_id, output_index, content_index: 0, delta, logprobs }
                );
            }
            AnswerEvent::Call(name) => self.begin_item(Item::call(name)),
            AnswerEvent::Arguments(delta) => {
                self.said.push(&delta);
                let Some((output_index, item)) = self.said.last() else { return };
                let (item_id, delta) = (item.id.as_str(), delta.as_str());
                send!(self, wire::EventKind::ArgumentsDelta { item_id, output_index, delta });
            }
            AnswerEvent::Scored(_) => {}
            AnswerEvent::Finished(reason, usage) => {
                if self.said.items.is_empty() {
                    self.begin_item(Item::message());
                }
                self.said.end = Some((reason, usage));
                self.end_item(self.said.status());
                let response = self.said.response(&self.base);
                send!(
                    self,
                    match reason {
                        FinishReason::Stop => wire::EventKind::Completed { response },
                        FinishReason::Length => wire::EventKind::Incomplete { response },
                    }
                );
            }
        }
    }

    fn begin_item(&mut self, item: Item) {
        self.end_item(wire::Status::Completed);
        self.said.items.push(item);
        self.open = true;
        let Some((output_index, item)) = self.said.last() else { return };
        send!(self, wire::EventKind::ItemAdded { output_index, item: item.wire(wire::Status::InProgress) });
        if matches!(item.kind, Kind::Message) {
            let item_id = item.id.as_str();
            send!(
                self,
                wire::EventKind::PartAdded { item_id, output_index, content_index: 0, part: part("") }
            );
        }
    }

    fn end_item(&mut self, status: wire::Status) {
        if !std::mem::take(&mut self.open) {
            return;
        }
        let Some((output_index, item)) = self.said.last() else { return };
        let (item_id, text, content_index) = (item.id.as_str(), item.text.as_str(), 0);
        match &item.kind {
            Kind::Message => {
                let (logprobs, part) = ([], part(text));
                send!(
                    self,
                    wire::EventKind::TextDone { item_id, output_index, content_index, text, logprobs }
                );
                send!(self, wire::EventKind::PartDone { item_id, output_index, content_index, part });
            }
            Kind::Call { name, .. } => {
                let arguments = text;
                send!(self, wire::EventKind::ArgumentsDone { item_id, output_index, name, arguments });
            }
        }
        send!(self, wire::EventKind::ItemDone { output_index, item: item.wire(status) });
    }

    /// An error behind a status of 200: the stream ends with it.
    fn fail(&mut self, error: EngineError) {
        self.ended = true;
        let message = ApiError::from(error).to_string();
        let response = wire::Response {
            status: wire::Status::Failed,
            error: Some(wire::Failure { code: "server_error", message }),
            incomplete_details: None,
            ..self.said.response(&self.base)
        };
        send!(self, wire::EventKind::Failed { response });
    }
}

fn event(sequence_number: u64, kind: wire::EventKind<'_>) -> Event {
    let name = kind.name();
    sse::named(name, &wire::StreamEvent { kind, sequence_number })
}
