//! The same errors as clients of the Anthropic API know them.

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::Response,
};

use super::{ApiError, param};
use crate::{
    api::wire::messages as wire,
    engine::{EngineError, Refused},
    request::InvalidRequest,
};

/// What may be asked again soon has a status of its own there.
const OVERLOADED: u16 = 529;

/// Whether a request speaks the Anthropic API: by its path, or by a header where both APIs have the path.
pub(in crate::api) fn is_anthropic(path: &str, headers: &HeaderMap) -> bool {
    let rest = path.strip_prefix("/v1").unwrap_or(path);
    // What a base URL with one /v1 too many makes of it.
    let rest = rest.strip_prefix("/v1").unwrap_or(rest);
    let messages = rest.strip_prefix("/messages");
    headers.contains_key("anthropic-version")
        || messages.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

impl ApiError {
    /// Turns a response that this error made into one of the Anthropic API. Its other headers stay.
    pub(in crate::api) fn rewrite(&self, response: &mut Response, request_id: &str) {
        let body = wire::ErrorBody { request_id: Some(request_id), ..self.anthropic_body() };
        let Ok(body) = serde_json::to_vec(&body) else { return };
        *response.status_mut() = self.anthropic_status();
        response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
        *response.body_mut() = Body::from(body);
    }

    /// The error as the Anthropic API's own object.
    pub(in crate::api) fn anthropic_body(&self) -> wire::ErrorBody<'static> {
        let kind = match self.anthropic_status().as_u16() {
            401 => "authentication_error",
            402 => "billing_error",
            403 => "permission_error",
            404 => "not_found_error",
            409 => "conflict_error",
            413 => "request_too_large",
            429 => "rate_limit_error",
            OVERLOADED => "overloaded_error",
            504 => "timeout_error",
            500.. => "api_error",
            _ => "invalid_request_error",
        };
        let error = wire::ErrorObject { kind, message: self.anthropic_message() };
        wire::ErrorBody { kind: "error", error, request_id: None }
    }

    fn anthropic_status(&self) -> StatusCode {
        match self {
            Self::Loading
            | Self::Refused(Refused::Busy { .. } | Refused::Stopped)
            | Self::Engine(EngineError::Stopped) => {
                StatusCode::from_u16(OVERLOADED).unwrap_or(StatusCode::SERVICE_UNAVAILABLE)
            }
            other => other.status(),
        }
    }

    fn anthropic_message(&self) -> String {
        match self {
            Self::Invalid(invalid) | Self::Input(invalid) => message(invalid),
            Self::ModelNotFound { .. } | Self::WrongModel { .. } => format!("model: {self}"),
            other => other.to_string(),
        }
    }
}

/// What is wrong, behind the path of the field.
fn message(invalid: &InvalidRequest) -> String {
    let text = invalid.to_string();
    match invalid {
        InvalidRequest::Missing { param } => format!("{}: Field required", dotted(param)),
        // Clients look for these words to know that a conversation must become shorter.
        InvalidRequest::ContextLength { tokens, limit, .. } => {
            format!("prompt is too long: {tokens} tokens > {} maximum", limit.saturating_sub(1))
        }
        InvalidRequest::CacheRows { .. } => format!("prompt is too long: {text}"),
        InvalidRequest::Unknown { param } => format!("{}: Extra inputs are not permitted", dotted(param)),
        InvalidRequest::Messages { reason } => format!("messages: {reason}"),
        _ => match param(invalid) {
            Some(param) => {
                let path = dotted(param);
                let named = format!("'{param}': ");
                // The path is in front already.
                let rest = text.split_once(&named).map_or(text.as_str(), |(_, rest)| rest);
                format!("{path}: {rest}")
            }
            None => text,
        },
    }
}

/// `messages[0].content[1].source` as this API writes it: `messages.0.content.1.source`.
fn dotted(path: &str) -> String {
    path.replace('[', ".").replace(']', "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_begin_with_the_path_of_the_field() {
        let missing = InvalidRequest::Missing { param: "messages[1].content[0].text".into() };
        assert_eq!(message(&missing), "messages.1.content.0.text: Field required");
        let unsupported = InvalidRequest::Unsupported { param: "tools".into(), reason: "not here".into() };
        assert_eq!(message(&unsupported), "tools: not here.");
        let long = InvalidRequest::ContextLength { param: "messages", tokens: 5000, limit: 4096 };
        assert_eq!(message(&long), "prompt is too long: 5000 tokens > 4095 maximum");
    }

    #[test]
    fn an_api_is_told_by_path_or_header() {
        let none = HeaderMap::new();
        for path in
            ["/v1/messages", "/messages", "/v1/messages/count_tokens", "/v1/messages/x", "/v1/v1/messages"]
        {
            assert!(is_anthropic(path, &none), "{path}");
        }
        for path in ["/v1/models", "/v1/chat/completions", "/v1/messagesx", "/"] {
            assert!(!is_anthropic(path, &none), "{path}");
        }
        let headers =
            HeaderMap::from_iter([("anthropic-version".parse().unwrap(), HeaderValue::from_static("x"))]);
        assert!(is_anthropic("/v1/models", &headers));
    }
}
