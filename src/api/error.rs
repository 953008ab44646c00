//! Errors as clients know them: the only place with a status code.

mod anthropic;

use std::sync::Arc;

use axum::{
    Json,
    http::{
        HeaderName, HeaderValue, StatusCode,
        header::{RETRY_AFTER, UPGRADE, WWW_AUTHENTICATE},
    },
    response::{IntoResponse, Response},
};
use tracing::error;

pub(super) use self::anthropic::is_anthropic;
use super::wire;
use crate::{
    access::{Area, Exceeded, Rate},
    engine::{EngineError, Refused},
    media::{ImageError, document::DocumentError, sound::SoundError},
    request::{InvalidRequest, Number},
};

const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// What errors of a response are counted by: an extension of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Class(pub(super) &'static str);

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// A field is wrong.
    #[error(transparent)]
    Invalid(#[from] InvalidRequest),
    /// A field is wrong, of a request whose conversation is its `input`.
    #[error("{}", .0.to_string().replace("'messages'", "'input'"))]
    Input(InvalidRequest),
    /// The response to go on from is not kept.
    #[error(
        "Previous response with id '{id}' not found: this server keeps none. Send the whole conversation as input."
    )]
    NoSuchResponse {
        /// Its id.
        id: String,
    },
    /// Files are not kept.
    #[error("This server keeps no files: it was started without --files.")]
    NoStore,
    /// There is no such file or batch.
    #[error("No such {what} object: {id}")]
    NotFound {
        /// What kind of thing.
        what: &'static str,
        /// Its name.
        id: String,
    },
    /// It cannot be done as things are.
    #[error("{0}")]
    Conflict(String),
    /// The tenant has no room for more files.
    #[error(
        "There is no room for this file: {used} of the {limit} bytes that your organization may keep are used."
    )]
    StoreFull {
        /// Bytes of its files.
        used: u64,
        /// Bytes that it may have.
        limit: u64,
    },
    /// The tenant has too many batches.
    #[error("You have {limit} batches that have not ended, which is the limit.")]
    TooManyBatches {
        /// How many it may have.
        limit: u64,
    },
    /// The body is not JSON.
    #[error("We could not parse the JSON body of your request. (HINT: {0})")]
    NotJson(String),
    /// The body is no form, or no whole one.
    #[error("We could not parse the form of your request. (HINT: {0}.)")]
    NotForm(String),
    /// The body is something else.
    #[error("Unsupported content type: {found}. Send {expected}.")]
    ContentType {
        /// What its header says.
        found: String,
        /// What would do.
        expected: &'static str,
    },
    /// The body is compressed.
    #[error("Unsupported content encoding: {found}. Send the body as it is.")]
    ContentEncoding {
        /// What its header says.
        found: String,
    },
    /// The body is too large.
    #[error("Maximum content size limit ({limit}) exceeded.")]
    BodyTooLarge {
        /// Bytes that would do.
        limit: usize,
    },
    /// The body came too slowly.
    #[error("Nothing more of the request body has come for {seconds} seconds.")]
    BodySilent {
        /// How long that may be.
        seconds: u64,
    },
    /// The body comes too slowly.
    #[error("The request body comes more slowly than {slowest} bytes per second.")]
    BodySlow {
        /// How slowly it may come, on average.
        slowest: usize,
    },
    /// The body ended early.
    #[error("The request body could not be read to its end.")]
    BodyCut,
    /// There is no such model.
    #[error("The model `{model}` does not exist or you do not have access to it.{}", hint(known))]
    ModelNotFound {
        /// What was asked for.
        model: String,
        /// What there is.
        known: Vec<String>,
    },
    /// There is such a model, but it does something else.
    #[error("The model `{model}` is {kind}; it cannot {cannot}.{}", able_hint(able))]
    WrongModel {
        /// Its name.
        model: String,
        /// What it is for.
        kind: &'static str,
        /// What it was asked to do.
        cannot: &'static str,
        /// Models that can.
        able: Vec<String>,
    },
    /// There is no such path.
    #[error("Invalid URL ({method} {path}){hint}")]
    NoSuchPath {
        /// GET, POST and so on.
        method: String,
        /// As sent.
        path: String,
        /// What may help, with its own punctuation.
        hint: &'static str,
    },
    /// The path takes another method.
    #[error("Not allowed to {method} on {path}.")]
    Method {
        /// GET, POST and so on.
        method: String,
        /// As sent.
        path: String,
    },
    /// There is no key with the request.
    #[error(
        "You didn't provide an API key. You need to provide your API key in an Authorization header using Bearer auth \
         (i.e. Authorization: Bearer YOUR_KEY), or in the header x-api-key."
    )]
    NoKey,
    /// The key is nobody's, or two keys are not of one tenant.
    #[error("Incorrect API key provided.")]
    WrongKey,
    /// The key's tenant may not do that.
    #[error("Your API key may not use this part of the API ({}).", .0.name())]
    NotAllowed(Area),
    /// The tenant has had what it may have.
    #[error("{0}.")]
    Limited(#[from] Exceeded),
    /// The path is for WebSockets.
    #[error("This path is a WebSocket: connect to it with one, at ws:// or wss://.")]
    NotWebSocket,
    /// A web page asks that may not.
    #[error("Web pages of {origin} may not use this server; --cors-origin says which may.")]
    Origin {
        /// Whose.
        origin: String,
    },
    /// The tenant has as many sessions as it may have.
    #[error("There are {limit} sessions open, which is the limit. Close one first.")]
    Sessions {
        /// How many there may be.
        limit: usize,
    },
    /// The tenant has as many client secrets as it may have.
    #[error(
        "There are as many client secrets as there may be ({limit}, or fewer with long prompts). Wait until one expires."
    )]
    ClientSecrets {
        /// How many there may be.
        limit: usize,
    },
    /// The request is for another server.
    #[error(
        "This server is not called {host}. It listens on this machine only, and answers to localhost and to names that \
         --allowed-host gives."
    )]
    Host {
        /// What it was called.
        host: String,
    },
    /// The head is too large.
    #[error("The request's head is too large: the limit is {headers} headers and {bytes} bytes.")]
    HeadTooLarge {
        /// Headers that would do.
        headers: usize,
        /// Bytes of them and of the URL that would do.
        bytes: usize,
    },
    /// There are too many connections.
    #[error("The server has as many connections as it may have. Try again in a few seconds.")]
    Connections,
    /// The models are still being loaded.
    #[error("The server is still loading its model. Try again in a few seconds.")]
    Loading,
    /// The engine takes no request at present.
    #[error("The server cannot take the request: {0}.")]
    Refused(#[from] Refused),
    /// The engine failed.
    #[error("{}", of_engine(.0))]
    Engine(#[from] EngineError),
    /// We failed. The log says how.
    #[error("The server had an error while processing your request. Sorry about that!")]
    Internal,
}

fn of_engine(error: &EngineError) -> String {
    match error {
        EngineError::Constraint => {
            let text = error.to_string();
            format!("{}{}.", text[..1].to_uppercase(), &text[1..])
        }
        _ => "The server had an error while processing your request. Sorry about that!".into(),
    }
}

fn hint(known: &[String]) -> String {
    if known.is_empty() { String::new() } else { format!(" Models here: {}.", known.join(", ")) }
}

fn able_hint(able: &[String]) -> String {
    if able.is_empty() { String::new() } else { format!(" Models here that can: {}.", able.join(", ")) }
}

impl ApiError {
    /// Logs a failure of ours and hides it from the client.
    pub fn internal(error: &dyn std::fmt::Display) -> Self {
        error!(%error, "request failed");
        Self::Internal
    }

    /// The same error of a request whose conversation is its `input`.
    pub(super) fn of_input(self) -> Self {
        match self {
            Self::Invalid(invalid) => Self::Input(invalid),
            other => other,
        }
    }

    /// The error as the API's own object.
    pub fn body(&self) -> wire::error::ErrorBody {
        let (kind, code, param) = match self {
            Self::Invalid(invalid) => ("invalid_request_error", code(invalid), param(invalid)),
            Self::Input(invalid) => {
                let param = param(invalid).map(|param| if param == "messages" { "input" } else { param });
                ("invalid_request_error", code(invalid), param)
            }
            Self::NoSuchResponse { .. } => {
                ("invalid_request_error", Some("previous_response_not_found"), Some("previous_response_id"))
            }
            Self::NoStore => ("invalid_request_error", Some("files_not_kept"), None),
            Self::NotFound { .. } => ("invalid_request_error", Some("not_found"), Some("id")),
            Self::Conflict(_) => ("invalid_request_error", Some("conflict"), None),
            Self::StoreFull { .. } => ("invalid_request_error", Some("storage_limit_exceeded"), Some("file")),
            Self::TooManyBatches { .. } => ("invalid_request_error", Some("batch_limit_exceeded"), None),
            Self::NotJson(_)
            | Self::NotForm(_)
            | Self::ContentType { .. }
            | Self::ContentEncoding { .. }
            | Self::BodyCut
            | Self::BodySilent { .. }
            | Self::BodySlow { .. }
            | Self::NoSuchPath { .. } => ("invalid_request_error", None, None),
            Self::BodyTooLarge { .. } => ("invalid_request_error", Some("request_too_large"), None),
            Self::ModelNotFound { .. } => ("invalid_request_error", Some("model_not_found"), Some("model")),
            Self::WrongModel { .. } => ("invalid_request_error", Some("model_not_supported"), Some("model")),
            Self::Method { .. } => ("invalid_request_error", Some("method_not_supported"), None),
            Self::NoKey | Self::WrongKey => ("invalid_request_error", Some("invalid_api_key"), None),
            Self::NotWebSocket => ("invalid_request_error", None, None),
            Self::Sessions { .. } => ("sessions", Some("rate_limit_exceeded"), None),
            Self::ClientSecrets { .. } => ("client_secrets", Some("rate_limit_exceeded"), None),
            Self::NotAllowed(_) | Self::Host { .. } | Self::Origin { .. } => {
                ("invalid_request_error", Some("insufficient_permissions"), None)
            }
            Self::Limited(Exceeded::Budget { .. }) => {
                ("insufficient_quota", Some("insufficient_quota"), None)
            }
            Self::Limited(Exceeded::Rate { what, .. } | Exceeded::TooLarge { what, .. }) => {
                (rate(*what), Some("rate_limit_exceeded"), None)
            }
            Self::HeadTooLarge { .. } => ("invalid_request_error", Some("request_too_large"), None),
            Self::Connections => ("server_error", Some("engine_overloaded"), None),
            Self::Loading => ("server_error", Some("model_loading"), None),
            Self::Refused(_) | Self::Engine(EngineError::Stopped) => {
                ("server_error", Some("engine_overloaded"), None)
            }
            Self::Engine(EngineError::Constraint) => {
                ("invalid_request_error", Some("grammar_too_complex"), None)
            }
            Self::Engine(_) | Self::Internal => ("server_error", None, None),
        };
        wire::error::ErrorBody::new(self.to_string(), kind, param.map(str::to_owned), code)
    }

    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::Invalid(_)
            | Self::Input(_)
            | Self::NoSuchResponse { .. }
            | Self::NotJson(_)
            | Self::NotForm(_)
            | Self::WrongModel { .. }
            | Self::StoreFull { .. }
            | Self::Engine(EngineError::Constraint)
            | Self::BodyCut => StatusCode::BAD_REQUEST,
            Self::BodySilent { .. } | Self::BodySlow { .. } => StatusCode::REQUEST_TIMEOUT,
            Self::ContentType { .. } | Self::ContentEncoding { .. } => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::BodyTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::ModelNotFound { .. } | Self::NoSuchPath { .. } | Self::NoStore | Self::NotFound { .. } => {
                StatusCode::NOT_FOUND
            }
            Self::Conflict(_) => StatusCode::CONFLICT,
            Self::Method { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::NoKey | Self::WrongKey => StatusCode::UNAUTHORIZED,
            Self::NotAllowed(_) | Self::Host { .. } | Self::Origin { .. } => StatusCode::FORBIDDEN,
            Self::NotWebSocket => StatusCode::UPGRADE_REQUIRED,
            Self::HeadTooLarge { .. } => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::Limited(_)
            | Self::TooManyBatches { .. }
            | Self::Sessions { .. }
            | Self::ClientSecrets { .. }
            | Self::Refused(Refused::Busy { .. }) => StatusCode::TOO_MANY_REQUESTS,
            Self::Connections
            | Self::Loading
            | Self::Refused(Refused::Stopped)
            | Self::Engine(EngineError::Stopped) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Engine(_) | Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// Milliseconds until another try makes sense. Clients obey at most 60 seconds.
    fn retry_after_ms(&self) -> Option<u64> {
        match self {
            Self::Limited(Exceeded::Rate { wait, .. }) => Some((wait.as_millis() as u64 + 1).min(60_000)),
            Self::Refused(Refused::Busy { retry_after, .. }) => Some(1000 * retry_after),
            Self::Loading | Self::Connections => Some(2000),
            Self::Sessions { .. } | Self::ClientSecrets { .. } => Some(10_000),
            Self::Refused(Refused::Stopped) | Self::Engine(EngineError::Stopped) => Some(10_000),
            _ => None,
        }
    }

    /// Whether it is useless to try again, though the status says otherwise.
    fn is_final(&self) -> bool {
        matches!(
            self,
            Self::Limited(Exceeded::Budget { .. } | Exceeded::TooLarge { .. })
                | Self::Conflict(_)
                | Self::TooManyBatches { .. }
        )
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = self.body();
        let class = Class(body.class());
        let mut response = (self.status(), Json(body)).into_response();
        response.extensions_mut().insert(class);
        let headers = response.headers_mut();
        if let Some(milliseconds) = self.retry_after_ms() {
            headers.insert(RETRY_AFTER, HeaderValue::from(milliseconds.div_ceil(1000)));
            headers.insert(RETRY_AFTER_MS, HeaderValue::from(milliseconds));
        }
        if self.is_final() {
            headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
        }
        if matches!(self, Self::NotWebSocket) {
            headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        }
        if matches!(self, Self::NoKey | Self::WrongKey) {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        // What the client's API is, and so how it wants errors, is known outside of all handlers.
        response.extensions_mut().insert(Arc::new(self));
        response
    }
}

/// What a rate is of, as the API calls it.
fn rate(what: Rate) -> &'static str {
    match what {
        Rate::Requests => "requests",
        Rate::Tokens => "tokens",
        Rate::Images => "images",
        Rate::AudioSeconds => "audio",
    }
}

fn code(invalid: &InvalidRequest) -> Option<&'static str> {
    Some(match invalid {
        InvalidRequest::Missing { .. } => "missing_required_parameter",
        InvalidRequest::Type { .. } => "invalid_type",
        InvalidRequest::Value { .. } | InvalidRequest::Repeated { .. } => "invalid_value",
        InvalidRequest::BelowMinimum { kind: Number::Integer, .. } => "integer_below_min_value",
        InvalidRequest::BelowMinimum { kind: Number::Decimal, .. } => "decimal_below_min_value",
        InvalidRequest::AboveMaximum { kind: Number::Integer, .. } => "integer_above_max_value",
        InvalidRequest::AboveMaximum { kind: Number::Decimal, .. } => "decimal_above_max_value",
        InvalidRequest::EmptyArray { .. } => "empty_array",
        InvalidRequest::ArrayTooLong { .. } => "array_above_max_length",
        InvalidRequest::StringLength { found: 0, .. } => "string_below_min_length",
        InvalidRequest::StringLength { .. } => "string_above_max_length",
        InvalidRequest::Unsupported { .. } => "unsupported_parameter",
        InvalidRequest::ContextLength { .. }
        | InvalidRequest::CacheRows { .. }
        | InvalidRequest::TextLength { .. } => "context_length_exceeded",
        InvalidRequest::PictureUrl { .. } => "invalid_image_url",
        InvalidRequest::FileUrl { .. } => "invalid_file_url",
        InvalidRequest::Document {
            error:
                DocumentError::Format
                | DocumentError::Encrypted
                | DocumentError::Cut
                | DocumentError::Broken
                | DocumentError::NoPages,
            ..
        } => "invalid_file",
        InvalidRequest::Document { .. } => "file_too_large",
        InvalidRequest::Picture {
            error: ImageError::TooLarge { .. } | ImageError::TooLong { .. }, ..
        }
        | InvalidRequest::Pixels { .. } => "image_too_large",
        InvalidRequest::Picture { .. } => "invalid_image_format",
        InvalidRequest::PictureSize { .. } | InvalidRequest::FrameSize { .. } => "invalid_image",
        InvalidRequest::Messages { .. } | InvalidRequest::Grammar { .. } => "invalid_value",
        InvalidRequest::Sound { error, .. } => match error {
            SoundError::NotSound | SoundError::NoAudio | SoundError::Codec { .. } => "invalid_audio_format",
            SoundError::TooLong { .. } => "audio_too_long",
            _ => "invalid_audio",
        },
        InvalidRequest::Unknown { .. } => return None,
    })
}

fn param(invalid: &InvalidRequest) -> Option<&str> {
    match invalid {
        InvalidRequest::Missing { param }
        | InvalidRequest::Type { param, .. }
        | InvalidRequest::Value { param, .. }
        | InvalidRequest::Repeated { param }
        | InvalidRequest::BelowMinimum { param, .. }
        | InvalidRequest::AboveMaximum { param, .. }
        | InvalidRequest::EmptyArray { param }
        | InvalidRequest::ArrayTooLong { param, .. }
        | InvalidRequest::StringLength { param, .. }
        | InvalidRequest::Unsupported { param, .. }
        | InvalidRequest::TextLength { param, .. }
        | InvalidRequest::PictureUrl { param, .. }
        | InvalidRequest::FileUrl { param, .. }
        | InvalidRequest::Document { param, .. }
        | InvalidRequest::Picture { param, .. }
        | InvalidRequest::PictureSize { param, .. }
        | InvalidRequest::FrameSize { param, .. }
        | InvalidRequest::Grammar { param, .. }
        | InvalidRequest::Sound { param, .. }
        | InvalidRequest::Pixels { param, .. } => Some(param),
        InvalidRequest::ContextLength { param, .. } => Some(param),
        InvalidRequest::CacheRows { .. } | InvalidRequest::Messages { .. } => Some("messages"),
        InvalidRequest::Unknown { .. } => None,
    }
}
