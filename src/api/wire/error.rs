//! The error object of the OpenAI API.

use serde::Serialize;

/// `{"error": {…}}`.
#[derive(Debug, Serialize)]
pub struct ErrorBody {
    error: ErrorObject,
}

#[derive(Debug, Serialize)]
struct ErrorObject {
    message: String,
    #[serde(rename = "type")]
    kind: &'static str,
    param: Option<String>,
    code: Option<&'static str>,
}

impl ErrorBody {
    /// An error of some type, about a parameter where there is one.
    pub fn new(
        message: String,
        kind: &'static str,
        param: Option<String>,
        code: Option<&'static str>,
    ) -> Self {
        Self { error: ErrorObject { message, kind, param, code } }
    }
}
