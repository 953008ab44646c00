//! `/v1/files`, of both APIs.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Object, batches::ExpiresAfter};

/// A file that is sent, beside its `file`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
pub struct FileRequest {
    /// What for: `batch`, `user_data`, `vision`, `assistants`, `evals`, `fine-tune`. Clients of the Anthropic API send
    /// none.
    pub purpose: Option<String>,
    /// How long it is kept; for ever, where it is not said.
    pub expires_after: Option<Object<ExpiresAfter>>,
    /// The same, as clients of the Anthropic API say it.
    pub expires_in_seconds: Option<i64>,
}

/// What is known of a file.
#[derive(Debug, Serialize, JsonSchema)]
pub struct FileObject {
    /// Its name here.
    pub id: String,
    /// `file`.
    pub object: &'static str,
    /// Its length.
    pub bytes: u64,
    /// When it came.
    pub created_at: i64,
    /// When it goes.
    pub expires_at: Option<i64>,
    /// As the client called it.
    pub filename: String,
    /// What for.
    pub purpose: String,
    /// `processed`.
    pub status: &'static str,
    /// Nothing.
    pub status_details: Option<String>,
}

/// Files.
#[derive(Debug, Serialize, JsonSchema)]
pub struct FileList {
    /// `list`.
    pub object: &'static str,
    /// A page of them.
    pub data: Vec<FileObject>,
    /// The first of the page.
    pub first_id: Option<String>,
    /// The last of the page.
    pub last_id: Option<String>,
    /// Whether others follow.
    pub has_more: bool,
}

/// A file is gone.
#[derive(Debug, Serialize, JsonSchema)]
pub struct FileDeleted {
    /// Its name.
    pub id: String,
    /// `file`.
    pub object: &'static str,
    /// True.
    pub deleted: bool,
}

/// What is known of a file, in the shape of the Anthropic API.
#[derive(Debug, Serialize, JsonSchema)]
pub struct FileMetadata {
    /// Its name here.
    pub id: String,
    /// `file`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// As the client called it.
    pub filename: String,
    /// What the client said that it is.
    pub mime_type: String,
    /// Its length.
    pub size_bytes: u64,
    /// When it came (RFC 3339).
    pub created_at: String,
    /// When it goes (RFC 3339).
    pub expires_at: Option<String>,
    /// Whether its content can be had.
    pub downloadable: bool,
}

/// Files, in the shape of the Anthropic API.
#[derive(Debug, Serialize, JsonSchema)]
pub struct FileMetadataList {
    /// A page of them.
    pub data: Vec<FileMetadata>,
    /// The first of the page.
    pub first_id: Option<String>,
    /// The last of the page.
    pub last_id: Option<String>,
    /// Whether others follow.
    pub has_more: bool,
    /// What `page` has to be to get them; null behind the last.
    pub next_page: Option<String>,
}

/// A file is gone, in the shape of the Anthropic API.
#[derive(Debug, Serialize, JsonSchema)]
pub struct FileMetadataDeleted {
    /// Its name.
    pub id: String,
    /// `file_deleted`.
    #[serde(rename = "type")]
    pub kind: &'static str,
}
