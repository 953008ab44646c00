//! The error object of the OpenAI API.

use schemars::JsonSchema;
use serde::Serialize;

use super::realtime::Failure;

/// `{"error": {…}}`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ErrorBody {
    /// What is wrong.
    error: ErrorObject,
}

/// What is wrong.
#[derive(Debug, Serialize, JsonSchema)]
struct ErrorObject {
    /// For people.
    message: String,
    /// `invalid_request_error` or `server_error`.
    #[serde(rename = "type")]
    kind: &'static str,
    /// The path of the field, such as `messages[0].content`.
    param: Option<String>,
    /// For programs.
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

    /// The same in an event of a session, which that client event caused.
    pub fn failure(self, event_id: Option<String>) -> Failure {
        let ErrorObject { message, kind, param, code } = self.error;
        Failure { kind, code, message, param, event_id }
    }

    /// Its code, or its type where it has none: what errors are counted by.
    pub fn class(&self) -> &'static str {
        self.error.code.unwrap_or(self.error.kind)
    }
}
