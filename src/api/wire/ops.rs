//! `/health`.

use schemars::JsonSchema;
use serde::Serialize;

/// `GET /health`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Health {
    /// `ok` when requests can be answered, else `loading` or `failed`.
    pub status: &'static str,
    /// Of each model, what its engine is doing.
    pub models: Vec<ModelHealth>,
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
