//! How a server is, and what was used of it.

use schemars::JsonSchema;
use serde::Serialize;

/// `GET /health`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Health {
    /// `ok` when requests can be answered, else `loading` or `failed`.
    pub status: &'static str,
    /// Of each model, what its engine is doing.
    pub models: Vec<ModelHealth>,
    /// Joules that the machine took since the server began, where it tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub energy: Option<f64>,
}

/// What an engine is doing.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ModelHealth {
    /// Of the model.
    pub id: String,
    /// Whether its engine works.
    pub alive: bool,
    /// Requests that are computed.
    pub running: usize,
    /// Requests that wait.
    pub waiting: usize,
    /// Pages of the cache in use.
    pub pages_used: usize,
    /// Pages of the cache.
    pub pages_total: usize,
    /// How often a request gave up its pages for an older one.
    pub preemptions: u64,
    /// Steps since the start.
    pub steps: u64,
}

/// `GET /live` and `GET /ready`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct State {
    /// `live` or `ready`; else `loading`, `stopping` or `failed`.
    pub status: &'static str,
}

/// `GET /v1/usage`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct UsageList {
    /// `list`.
    pub object: &'static str,
    /// The first day (UTC).
    pub from: String,
    /// The last day (UTC).
    pub to: String,
    /// What costs are in, where the server knows its price.
    pub currency: Option<String>,
    /// By day, tenant and model.
    pub data: Vec<UsageDay>,
    /// All of it together.
    pub total: Usage,
}

/// What a tenant used of a model on a day.
#[derive(Debug, Serialize, JsonSchema)]
pub struct UsageDay {
    /// `usage`.
    pub object: &'static str,
    /// The day (UTC).
    pub date: String,
    /// Null where there are no keys, or none was known.
    pub tenant: Option<String>,
    /// Null where a request named none that there is.
    pub model: Option<String>,
    /// How much.
    #[serde(flatten)]
    pub usage: Usage,
}

/// What was used.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Usage {
    /// Requests.
    pub requests: u64,
    /// Of these, those without an answer.
    pub errors: u64,
    /// Tokens of prompts, media included.
    pub prompt_tokens: u64,
    /// Of these, those that were in the cache.
    pub cached_tokens: u64,
    /// Tokens of answers.
    pub completion_tokens: u64,
    /// Pictures and frames.
    pub images: u64,
    /// Seconds of recordings.
    pub audio_seconds: f64,
    /// Seconds of engines' steps, as requests shared them.
    pub compute_seconds: f64,
    /// Money for these, by the server's price.
    pub cost: f64,
}
