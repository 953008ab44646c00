//! `/v1/models`.

use schemars::JsonSchema;
use serde::Serialize;

/// `GET /v1/models`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ModelList {
    /// `list`.
    pub object: &'static str,
    /// Every name that a request may use.
    pub data: Vec<Model>,
}

/// A name that a request may use.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct Model {
    /// The name.
    pub id: String,
    /// `model`.
    pub object: &'static str,
    /// When it was loaded, in seconds since 1970.
    pub created: u64,
    /// `percept`.
    pub owned_by: &'static str,
    /// What it is for, by the names that the hub has for tasks: `image-text-to-text`,
    /// `automatic-speech-recognition` or `feature-extraction`. An extension.
    pub task: &'static str,
    /// Most tokens of prompt and answer together. An extension, under the name that vLLM gave it.
    pub max_model_len: usize,
    /// The model that an alias stands for; itself otherwise. An extension, as above.
    pub root: String,
}
