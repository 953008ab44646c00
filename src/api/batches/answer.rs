//! Answers to lines, and what of them is written down.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Bytes,
    http::{HeaderMap, StatusCode},
};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::{
    messages,
    wire::{LineError, LineResponse, LineResult, OutputLine, ResultLine},
};
use crate::store::{Batch, Line, LineState, Outcome, Tokens};

/// Shortest and longest wait until a line that was refused is tried again.
const WAIT: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

/// An answer to a line.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Answer {
    /// To a line whose answer would come in pieces.
    pub(super) fn streamed(batch: &Batch) -> Self {
        let message = "Answers of a batch come as a whole: leave 'stream' out.";
        let details = ("invalid_request_error", Some("stream"), Some("unsupported_parameter"));
        Self::error(batch, StatusCode::BAD_REQUEST, message, details)
    }

    /// To a line that is lost.
    pub(super) fn lost(batch: &Batch) -> Self {
        let message =
            "The request could not be read: the batch's input is not there any more, or not what it was.";
        Self::error(batch, StatusCode::INTERNAL_SERVER_ERROR, message, ("server_error", None, None))
    }

    /// An error of ours, in the API's shape; its type, field and code are those of OpenAI's.
    fn error(
        batch: &Batch,
        status: StatusCode,
        message: &str,
        (kind, param, code): (&'static str, Option<&str>, Option<&'static str>),
    ) -> Self {
        let body = if batch.endpoint == messages::ENDPOINT {
            let kind = if status.is_server_error() { "api_error" } else { "invalid_request_error" };
            serde_json::json!({"type": "error", "error": {"type": kind, "message": message}})
        } else {
            serde_json::json!({"error": {"message": message, "type": kind, "param": param, "code": code}})
        };
        Self { status, headers: HeaderMap::new(), body: body.to_string().into() }
    }

    /// How long it is to be waited, where it says that another try makes sense.
    pub(super) fn wait(status: StatusCode, headers: &HeaderMap) -> Option<Duration> {
        // Another try may be useless, though the status says otherwise.
        let is_final = header(headers, "x-should-retry") == Some("false");
        let milliseconds =
            header(headers, "retry-after-ms").and_then(|text| text.parse().ok()).unwrap_or(1000);
        let (shortest, longest) = WAIT;
        (matches!(status.as_u16(), 429 | 503 | 529) && !is_final)
            .then(|| Duration::from_millis(milliseconds).clamp(shortest, longest))
    }

    /// What the line comes to with it.
    pub(super) fn outcome(&self, batch: &Batch, line: &Line) -> Outcome {
        let state = if self.status.is_success() { LineState::Succeeded } else { LineState::Failed };
        Outcome { state, result: Arc::from(self.result(batch, line)), tokens: self.tokens() }
    }

    /// The answer as JSON, which it is unless a recording's was asked for as text.
    fn json(&self) -> Box<RawValue> {
        let text = String::from_utf8_lossy(&self.body);
        let quoted = || RawValue::from_string(serde_json::Value::from(text.as_ref()).to_string());
        let parsed = serde_json::from_str(&text).or_else(|_| quoted());
        parsed.unwrap_or_else(|_| RawValue::NULL.to_owned())
    }

    fn tokens(&self) -> Tokens {
        #[derive(Default, serde::Deserialize)]
        #[serde(default)]
        struct Usage {
            #[serde(alias = "prompt_tokens")]
            input_tokens: u64,
            #[serde(alias = "completion_tokens")]
            output_tokens: u64,
            #[serde(alias = "prompt_tokens_details")]
            input_tokens_details: Details,
            cache_read_input_tokens: u64,
        }
        #[derive(Default, serde::Deserialize)]
        #[serde(default)]
        struct Details {
            cached_tokens: u64,
        }
        #[derive(serde::Deserialize)]
        struct Answered {
            usage: Option<Usage>,
        }
        let answered = serde_json::from_slice::<Answered>(&self.body).ok();
        let usage = answered.and_then(|answered| answered.usage).unwrap_or_default();
        let cached = usage.input_tokens_details.cached_tokens + usage.cache_read_input_tokens;
        Tokens { input: usage.input_tokens, cached, output: usage.output_tokens }
    }

    /// The line of the output that tells it.
    fn result(&self, batch: &Batch, line: &Line) -> String {
        let body = self.json();
        let custom_id = line.custom_id.as_str();
        let told = if batch.endpoint == messages::ENDPOINT {
            let result = if self.status.is_success() {
                LineResult::Succeeded { message: &body }
            } else {
                LineResult::Errored { error: &body }
            };
            serde_json::to_string(&ResultLine { custom_id, result })
        } else {
            let response = LineResponse {
                status_code: self.status.as_u16(),
                request_id: header(&self.headers, "x-request-id").unwrap_or(""),
                body: &body,
            };
            serde_json::to_string(&OutputLine {
                id: line_id(),
                custom_id,
                response: Some(response),
                error: None,
            })
        };
        told.unwrap_or_default()
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// The line of the output for one that has no answer.
pub(super) fn unanswered(batch: &Batch, line: &Line) -> String {
    let custom_id = line.custom_id.as_str();
    let told = if batch.endpoint == messages::ENDPOINT {
        let result =
            if line.state == LineState::Cancelled { LineResult::Canceled } else { LineResult::Expired };
        serde_json::to_string(&ResultLine { custom_id, result })
    } else {
        let error = if line.state == LineState::Cancelled {
            LineError {
                code: "batch_cancelled",
                message: "This request was not executed: the batch was cancelled.",
            }
        } else {
            LineError {
                code: "batch_expired",
                message: "This request could not be executed before the completion window expired.",
            }
        };
        serde_json::to_string(&OutputLine { id: line_id(), custom_id, response: None, error: Some(error) })
    };
    told.unwrap_or_default()
}

fn line_id() -> String {
    format!("batch_req_{}", Uuid::new_v4().simple())
}
