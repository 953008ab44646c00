//! `/v1/batches` and `/v1/messages/batches`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, value::RawValue};

use super::{Entries, Items, Object};

/// Most entries of `metadata`.
pub const MOST_METADATA: usize = 16;
/// Most requests of a batch of the Anthropic API.
pub const MOST_REQUESTS: usize = 100_000;

/// A batch to do.
#[derive(Debug, Default, Deserialize, JsonSchema)]
pub struct BatchRequest {
    /// The file of its lines.
    pub input_file_id: Option<String>,
    /// What each line asks for: `/v1/chat/completions`, `/v1/completions`, `/v1/responses`, `/v1/embeddings`; an
    /// extension: `/v1/audio/transcriptions`.
    pub endpoint: Option<String>,
    /// `24h`.
    pub completion_window: Option<String>,
    /// Notes of the client.
    pub metadata: Option<Entries<String, MOST_METADATA>>,
    /// How long its output is kept.
    pub output_expires_after: Option<Object<ExpiresAfter>>,
}

/// How long something is kept.
#[derive(Debug, Default, Deserialize, JsonSchema)]
pub struct ExpiresAfter {
    /// `created_at`.
    pub anchor: Option<String>,
    /// Seconds from then on.
    #[schemars(range(min = 3600, max = 2_592_000))]
    pub seconds: Option<i64>,
}

/// A line of an input.
#[derive(Debug, Deserialize)]
pub struct InputLine<'a> {
    /// What the client calls it.
    pub custom_id: Option<String>,
    /// `POST`.
    pub method: Option<String>,
    /// The batch's endpoint.
    pub url: Option<String>,
    /// The request.
    #[serde(borrow)]
    pub body: Option<&'a RawValue>,
}

/// What of a request tells that it cannot be part of a batch.
#[derive(Debug, Deserialize)]
pub struct Streamed {
    /// Whether its answer comes in pieces.
    pub stream: Option<bool>,
}

impl Streamed {
    /// Whether a body asks for that.
    pub fn is_asked(body: &str) -> bool {
        serde_json::from_str::<Self>(body).is_ok_and(|body| body.stream == Some(true))
    }
}

/// A line of an output.
#[derive(Debug, Serialize)]
pub struct OutputLine<'a> {
    /// A name of its own.
    pub id: String,
    /// What the client calls it.
    pub custom_id: &'a str,
    /// The answer.
    pub response: Option<LineResponse<'a>>,
    /// Why there is none.
    pub error: Option<LineError>,
}

/// An answer to a line.
#[derive(Debug, Serialize)]
pub struct LineResponse<'a> {
    /// Of the answer.
    pub status_code: u16,
    /// Its id in the log.
    pub request_id: &'a str,
    /// The answer itself.
    pub body: &'a RawValue,
}

/// Why a line has no answer.
#[derive(Debug, Serialize)]
pub struct LineError {
    /// `batch_expired` or `batch_cancelled`.
    pub code: &'static str,
    /// In words.
    pub message: &'static str,
}

/// A batch.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Batch {
    /// Its name.
    pub id: String,
    /// `batch`.
    pub object: &'static str,
    /// What its lines ask for.
    pub endpoint: String,
    /// What is wrong with its lines.
    pub errors: Option<Problems>,
    /// The file of its lines.
    pub input_file_id: String,
    /// `24h`.
    pub completion_window: String,
    /// `validating`, `failed`, `in_progress`, `finalizing`, `completed`, `expired`, `cancelling` or `cancelled`.
    pub status: &'static str,
    /// The file of its answers, where there are any.
    pub output_file_id: Option<String>,
    /// The file of its errors, where there are any.
    pub error_file_id: Option<String>,
    /// When it came.
    pub created_at: i64,
    /// When the first line was begun.
    pub in_progress_at: Option<i64>,
    /// When its time runs out.
    pub expires_at: i64,
    /// When the last line had its outcome.
    pub finalizing_at: Option<i64>,
    /// When all was done.
    pub completed_at: Option<i64>,
    /// When its lines were found to be wrong.
    pub failed_at: Option<i64>,
    /// When its time had run out and all was written.
    pub expired_at: Option<i64>,
    /// When it was to end early.
    pub cancelling_at: Option<i64>,
    /// When it had ended early.
    pub cancelled_at: Option<i64>,
    /// What became of its lines.
    pub request_counts: RequestCounts,
    /// What its answers took.
    pub usage: BatchUsage,
    /// Notes of the client.
    pub metadata: Option<BTreeMap<String, String>>,
}

/// What is wrong with the lines of a batch.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct Problems {
    /// `list`.
    pub object: String,
    /// The first of them.
    pub data: Vec<Problem>,
}

/// Something that is wrong with a line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Problem {
    /// For programs.
    pub code: String,
    /// In words.
    pub message: String,
    /// Which line, from 1 on.
    pub line: Option<u64>,
    /// Which field of it.
    pub param: Option<String>,
}

/// What became of the lines of a batch.
#[derive(Debug, Serialize, JsonSchema)]
pub struct RequestCounts {
    /// All of them.
    pub total: u64,
    /// Those with an answer.
    pub completed: u64,
    /// Those with an error.
    pub failed: u64,
}

/// What the answers of a batch took.
#[derive(Debug, Serialize, JsonSchema)]
pub struct BatchUsage {
    /// Tokens of prompts.
    pub input_tokens: u64,
    /// Of these:
    pub input_tokens_details: BatchInputDetails,
    /// Tokens of answers.
    pub output_tokens: u64,
    /// Of these:
    pub output_tokens_details: BatchOutputDetails,
    /// All of them.
    pub total_tokens: u64,
}

/// Tokens of prompts.
#[derive(Debug, Serialize, JsonSchema)]
pub struct BatchInputDetails {
    /// That were in the cache.
    pub cached_tokens: u64,
}

/// Tokens of answers.
#[derive(Debug, Serialize, JsonSchema)]
pub struct BatchOutputDetails {
    /// None.
    pub reasoning_tokens: u64,
}

/// Batches.
#[derive(Debug, Serialize, JsonSchema)]
pub struct BatchList {
    /// `list`.
    pub object: &'static str,
    /// A page of them.
    pub data: Vec<Batch>,
    /// The first of the page.
    pub first_id: Option<String>,
    /// The last of the page.
    pub last_id: Option<String>,
    /// Whether others follow.
    pub has_more: bool,
}

/// A batch to do, in the shape of the Anthropic API.
#[derive(Debug, Default, Deserialize, JsonSchema)]
pub struct MessageBatchRequest {
    /// What to answer.
    pub requests: Option<Items<Object<MessageBatchItem>, MOST_REQUESTS>>,
}

/// One of the requests of a batch.
#[derive(Debug, Default, Deserialize, JsonSchema)]
pub struct MessageBatchItem {
    /// What the client calls it.
    pub custom_id: Option<String>,
    /// What `/v1/messages` takes.
    #[schemars(with = "Option<Value>")]
    pub params: Option<Box<RawValue>>,
}

/// A batch, in the shape of the Anthropic API.
#[derive(Debug, Serialize, JsonSchema)]
pub struct MessageBatch {
    /// Its name.
    pub id: String,
    /// `message_batch`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// `in_progress`, `canceling` or `ended`.
    pub processing_status: &'static str,
    /// What became of its requests.
    pub request_counts: MessageBatchCounts,
    /// When all was done.
    pub ended_at: Option<String>,
    /// When it came.
    pub created_at: String,
    /// When its time runs out.
    pub expires_at: String,
    /// Never.
    pub archived_at: Option<String>,
    /// When it was to end early.
    pub cancel_initiated_at: Option<String>,
    /// Where the answers are, once all are there: a path of this server's.
    pub results_url: Option<String>,
}

/// What became of the requests of a batch: all of them are `processing` until all have an outcome.
#[derive(Debug, Default, Serialize, JsonSchema)]
pub struct MessageBatchCounts {
    /// Those without an outcome.
    pub processing: u64,
    /// Those with an answer.
    pub succeeded: u64,
    /// Those with an error.
    pub errored: u64,
    /// Those that were given up.
    pub canceled: u64,
    /// Those whose time ran out.
    pub expired: u64,
}

/// Batches, in the shape of the Anthropic API.
#[derive(Debug, Serialize, JsonSchema)]
pub struct MessageBatchList {
    /// A page of them.
    pub data: Vec<MessageBatch>,
    /// The first of the page.
    pub first_id: Option<String>,
    /// The last of the page.
    pub last_id: Option<String>,
    /// Whether others follow.
    pub has_more: bool,
}

/// A batch is gone.
#[derive(Debug, Serialize, JsonSchema)]
pub struct MessageBatchDeleted {
    /// Its name.
    pub id: String,
    /// `message_batch_deleted`.
    #[serde(rename = "type")]
    pub kind: &'static str,
}

/// A line of the results of a batch of the Anthropic API.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ResultLine<'a> {
    /// What the client calls it.
    pub custom_id: &'a str,
    /// What became of it.
    #[schemars(with = "Value")]
    pub result: LineResult<'a>,
}

/// What became of a request of a batch.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum LineResult<'a> {
    /// It has its answer.
    Succeeded {
        /// What `/v1/messages` gives.
        message: &'a RawValue,
    },
    /// Its answer is an error.
    Errored {
        /// What `/v1/messages` gives.
        error: &'a RawValue,
    },
    /// It was given up.
    Canceled,
    /// The time ran out.
    Expired,
}
