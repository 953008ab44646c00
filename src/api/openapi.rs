//! The API as a table: its routes are made of it, and so is its description, `/openapi.json`. What goes over the wire
//! describes itself.

use std::sync::Arc;

use axum::{
    body::Bytes,
    http::header::CONTENT_TYPE,
    response::{IntoResponse as _, Response},
    routing::{MethodRouter, delete, get, post},
};
use schemars::{JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use super::{
    App, audio, batches, chat, completions, embeddings, files, messages, models, ops, realtime, responses,
    wire,
};
use crate::access::Area;

/// One thing that can be asked.
pub(super) struct Endpoint {
    /// As the documentation writes it: below `/v1` where clients expect it there.
    pub(super) path: &'static str,
    /// `get`, `post` or `delete`.
    method: &'static str,
    /// A name for programs.
    id: &'static str,
    summary: &'static str,
    description: &'static str,
    /// What a key must be for; `None` for who needs none.
    pub(super) area: Option<Area>,
    /// Who answers.
    pub(super) handler: MethodRouter<Arc<App>>,
    /// What it takes and gives.
    shape: fn(&mut Schemas) -> Shape,
}

impl Endpoint {
    /// Its method and path, as figures and the audit log have them.
    pub(super) fn name(&self) -> String {
        format!("{} {}", self.method.to_ascii_uppercase(), self.path)
    }
}

/// What an endpoint takes and gives.
struct Shape {
    parameters: Value,
    body: Option<Value>,
    /// Of a status that is no error.
    answers: Vec<(&'static str, &'static str, Value)>,
    /// Statuses of errors.
    errors: &'static [&'static str],
    /// In whose shape.
    envelope: Envelope,
}

/// Whose errors they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Envelope {
    /// OpenAI's.
    OpenAi,
    /// Anthropic's.
    Anthropic,
    /// Either's: with the header `anthropic-version`, Anthropic's.
    Either,
}

impl Envelope {
    /// What names of its responses begin with.
    fn prefix(self) -> &'static str {
        match self {
            Self::OpenAi => "Error",
            Self::Anthropic => "AnthropicError",
            Self::Either => "EitherError",
        }
    }
}

const CHAT_ERRORS: &[&str] = &["400", "401", "403", "404", "408", "413", "415", "429", "431", "500", "503"];
const MESSAGES_ERRORS: &[&str] =
    &["400", "401", "403", "404", "408", "413", "415", "429", "431", "500", "529"];

/// Everything that can be asked but for pages.
pub(super) fn endpoints() -> Vec<Endpoint> {
    vec![
        Endpoint {
            path: "/v1/chat/completions",
            method: "post",
            id: "createChatCompletion",
            summary: "Goes on with a conversation, with or without pictures.",
            description: "With `stream`, the answer is server-sent events: each `data:` line is a chunk, the last one \
                          is `data: [DONE]`. An error after the first chunk is a `data:` line with an error object. \
                          Closing the connection ends the answer.",
            area: Some(Area::Chat),
            handler: post(chat::completions),
            shape: chat_shape,
        },
        Endpoint {
            path: "/v1/responses",
            method: "post",
            id: "createResponse",
            summary: "Goes on with a conversation, in the shapes of the Responses API. Nothing is kept.",
            description: "With `stream`, the answer is server-sent events, each under the name that its `type` says, \
                          and numbered. A failure after the first event is an event `response.failed`. Closing the \
                          connection ends the answer.",
            area: Some(Area::Chat),
            handler: post(responses::create),
            shape: responses_shape,
        },
        Endpoint {
            path: "/v1/responses/input_tokens",
            method: "post",
            id: "countInputTokens",
            summary: "Counts the tokens of a prompt, pictures included, without going on with it.",
            description: "",
            area: Some(Area::Chat),
            handler: post(responses::input_tokens),
            shape: |schemas| Shape {
                parameters: json!([]),
                body: Some(json!({"application/json": {
                    "schema": schemas.request::<wire::responses::ResponsesRequest>(),
                }})),
                answers: vec![(
                    "200",
                    "The number.",
                    json!({"application/json": {"schema": schemas.answer::<wire::responses::TokenCount>()}}),
                )],
                errors: CHAT_ERRORS,
                envelope: Envelope::OpenAi,
            },
        },
        Endpoint {
            path: "/v1/messages",
            method: "post",
            id: "createMessage",
            summary: "Goes on with a conversation, in the shapes of the Anthropic API.",
            description: "With `stream`, the answer is server-sent events, each under the name that its `type` says. \
                          An error after the first event is an event `error`. Closing the connection ends the answer.",
            area: Some(Area::Chat),
            handler: post(messages::create),
            shape: messages_shape,
        },
        Endpoint {
            path: "/v1/messages/count_tokens",
            method: "post",
            id: "countTokens",
            summary: "Counts the tokens of a prompt, pictures included, without going on with it.",
            description: "",
            area: Some(Area::Chat),
            handler: post(messages::count_tokens),
            shape: |schemas| Shape {
                parameters: json!([]),
                body: Some(json!({"application/json": {
                    "schema": schemas.request::<wire::messages::CountRequest>(),
                }})),
                answers: vec![(
                    "200",
                    "The number.",
                    json!({"application/json": {"schema": schemas.answer::<wire::messages::TokenCount>()}}),
                )],
                errors: MESSAGES_ERRORS,
                envelope: Envelope::Anthropic,
            },
        },
        Endpoint {
            path: "/v1/completions",
            method: "post",
            id: "createCompletion",
            summary: "Goes on with a text, or with several.",
            description: "The older way, without a conversation and without pictures. With `stream`, the answer is \
                          server-sent events, as those of chat are.",
            area: Some(Area::Chat),
            handler: post(completions::completions),
            shape: completion_shape,
        },
        Endpoint {
            path: "/v1/embeddings",
            method: "post",
            id: "createEmbedding",
            summary: "Makes vectors of texts and, with models that see, of pictures.",
            description: "Texts that mean similar things have vectors that point in similar directions. All inputs are \
                          computed together, and what an input gets does not depend on the others.",
            area: Some(Area::Embeddings),
            handler: post(embeddings::create),
            shape: |schemas| {
                let request = schemas.request::<wire::embeddings::EmbeddingRequest>();
                let answer = schemas.answer::<wire::embeddings::EmbeddingList>();
                Shape {
                    parameters: json!([]),
                    body: Some(json!({"application/json": {"schema": request}})),
                    answers: vec![("200", "The vectors.", json!({"application/json": {"schema": answer}}))],
                    errors: CHAT_ERRORS,
                    envelope: Envelope::OpenAi,
                }
            },
        },
        Endpoint {
            path: "/v1/audio/transcriptions",
            method: "post",
            id: "createTranscription",
            summary: "Writes down what a recording says.",
            description: SPEECH,
            area: Some(Area::Audio),
            handler: post(audio::transcriptions),
            shape: speech_shape,
        },
        Endpoint {
            path: "/v1/audio/translations",
            method: "post",
            id: "createTranslation",
            summary: "Writes down in English what a recording says in any language.",
            description: SPEECH,
            area: Some(Area::Audio),
            handler: post(audio::translations),
            shape: speech_shape,
        },
        Endpoint {
            path: realtime::PATH,
            method: "get",
            id: "connectRealtime",
            summary: "Writes down what is said while it is said, over a WebSocket.",
            description: "Both sides send events as JSON. The client sends sound in base64; turns of the speaker are \
                          told apart by the server or ended by the client, and become text. Errors are events, and \
                          the session goes on. With `Sec-WebSocket-Protocol: realtime`, that is answered; a key may \
                          be offered as `openai-insecure-api-key.KEY`.",
            area: Some(Area::Audio),
            handler: get(realtime::connect),
            shape: |schemas| {
                let text = json!({"type": "string"});
                let client = schemas.request::<wire::realtime::ClientEvent>();
                let server = schemas.answer::<wire::realtime::ServerEvent<'_>>();
                let events = json!({"application/json": {"schema": {"anyOf": [client, server]}}});
                Shape {
                    parameters: json!([
                        query("model", "The model that transcribes. Default: the first that does.", &text),
                        query("intent", "`transcription`, or nothing.", &text),
                    ]),
                    body: None,
                    answers: vec![("101", "What is sent from then on, by either side: events.", events)],
                    errors: &["400", "401", "403", "404", "426", "429", "503"],
                    envelope: Envelope::OpenAi,
                }
            },
        },
        Endpoint {
            path: "/v1/realtime/client_secrets",
            method: "post",
            id: "createClientSecret",
            summary: "Makes a key for a web page that may open realtime sessions, and do nothing else, for a while.",
            description: "It is good as long as the key that it was made with, at most until it expires or the server \
                          ends. Sessions begin as it says.",
            area: Some(Area::Audio),
            handler: post(realtime::create_secret),
            shape: |schemas| {
                let request = schemas.request::<wire::realtime::ClientSecretRequest>();
                let answer = schemas.answer::<wire::realtime::ClientSecret<'_>>();
                Shape {
                    parameters: json!([]),
                    body: Some(json!({"application/json": {"schema": request}})),
                    answers: vec![("200", "The key.", json!({"application/json": {"schema": answer}}))],
                    errors: CHAT_ERRORS,
                    envelope: Envelope::OpenAi,
                }
            },
        },
        Endpoint {
            path: "/v1/files",
            method: "post",
            id: "createFile",
            summary: "Keeps a file, for a batch or to be named in requests.",
            description: BOTH,
            area: Some(Area::Files),
            handler: post(files::create),
            shape: |schemas| {
                let fields = schemas.request::<wire::files::FileRequest>();
                let file = json!({
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": {"type": "string", "format": "binary"}},
                });
                let body = json!({"multipart/form-data": {"schema": {"allOf": [file, fields]}}});
                Shape { body: Some(body), ..file_shape(schemas, FILE_ERRORS_OF_UPLOADS) }
            },
        },
        Endpoint {
            path: "/v1/files",
            method: "get",
            id: "listFiles",
            summary: "Lists files, the newest first.",
            description: BOTH,
            area: Some(Area::Files),
            handler: get(files::list),
            shape: |schemas| {
                let lists = [
                    schemas.answer::<wire::files::FileList>(),
                    schemas.answer::<wire::files::FileMetadataList>(),
                ];
                let text = json!({"type": "string"});
                let number = json!({"type": "integer", "minimum": 1, "maximum": 10_000});
                let parameters = json!([
                    anthropic_version(),
                    query("limit", "Most files of a page; 1000 with `anthropic-version`.", &number),
                    query("after", "The page behind this one.", &text),
                    query("order", "`asc` or `desc`.", &json!({"enum": ["asc", "desc"]})),
                    query("purpose", "Only files for this.", &text),
                    query("after_id", "With `anthropic-version`: the page behind this one.", &text),
                    query("before_id", "With `anthropic-version`: the page in front of it.", &text),
                    query("page", "With `anthropic-version`: what `next_page` was.", &text),
                    query(
                        "ids[]",
                        "With `anthropic-version`: only these, without `page` and `limit`.",
                        &json!({"type": "array", "items": text, "maxItems": 100}),
                    ),
                ]);
                Shape {
                    parameters,
                    envelope: Envelope::Either,
                    ..get_shape(&json!({"anyOf": lists}), FILE_ERRORS)
                }
            },
        },
        Endpoint {
            path: "/v1/files/{id}",
            method: "get",
            id: "retrieveFile",
            summary: "Tells about a file.",
            description: BOTH,
            area: Some(Area::Files),
            handler: get(files::one),
            shape: |schemas| Shape {
                parameters: json!([path_id(), anthropic_version()]),
                ..file_shape(schemas, FILE_ERRORS)
            },
        },
        Endpoint {
            path: "/v1/files/{id}",
            method: "delete",
            id: "deleteFile",
            summary: "Removes a file.",
            description: "Not while a batch needs it.",
            area: Some(Area::Files),
            handler: delete(files::delete),
            shape: |schemas| {
                let answers = [
                    schemas.answer::<wire::files::FileDeleted>(),
                    schemas.answer::<wire::files::FileMetadataDeleted>(),
                ];
                let parameters = json!([path_id(), anthropic_version()]);
                Shape {
                    parameters,
                    envelope: Envelope::Either,
                    ..get_shape(&json!({"anyOf": answers}), FILE_ERRORS)
                }
            },
        },
        Endpoint {
            path: "/v1/files/{id}/content",
            method: "get",
            id: "downloadFile",
            summary: "The content of a file.",
            description: "",
            area: Some(Area::Files),
            handler: get(files::content),
            shape: |_| Shape {
                parameters: json!([path_id()]),
                body: None,
                answers: vec![(
                    "200",
                    "The content.",
                    json!({"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}),
                )],
                errors: FILE_ERRORS,
                envelope: Envelope::OpenAi,
            },
        },
        Endpoint {
            path: "/v1/batches",
            method: "post",
            id: "createBatch",
            summary: "Answers the requests in a file, behind all others.",
            description: "What is wrong with the file is told by the batch, not here.",
            area: Some(Area::Files),
            handler: post(batches::create),
            shape: |schemas| {
                let request = schemas.request::<wire::batches::BatchRequest>();
                Shape {
                    body: Some(json!({"application/json": {"schema": request}})),
                    ..get_shape(&schemas.answer::<wire::batches::Batch>(), FILE_ERRORS_OF_UPLOADS)
                }
            },
        },
        Endpoint {
            path: "/v1/batches",
            method: "get",
            id: "listBatches",
            summary: "Lists batches, the newest first.",
            description: "",
            area: Some(Area::Files),
            handler: get(batches::list),
            shape: |schemas| {
                let number = json!({"type": "integer", "minimum": 1, "maximum": 100});
                let parameters = json!([
                    query("limit", "Most batches of a page, by default 20.", &number),
                    query("after", "The page behind this one.", &json!({"type": "string"})),
                ]);
                Shape { parameters, ..get_shape(&schemas.answer::<wire::batches::BatchList>(), FILE_ERRORS) }
            },
        },
        Endpoint {
            path: "/v1/batches/{id}",
            method: "get",
            id: "retrieveBatch",
            summary: "Tells about a batch.",
            description: "",
            area: Some(Area::Files),
            handler: get(batches::one),
            shape: batch_shape,
        },
        Endpoint {
            path: "/v1/batches/{id}/cancel",
            method: "post",
            id: "cancelBatch",
            summary: "Ends a batch early. The answers that there are stay.",
            description: "",
            area: Some(Area::Files),
            handler: post(batches::cancel),
            shape: batch_shape,
        },
        Endpoint {
            path: "/v1/messages/batches",
            method: "post",
            id: "createMessageBatch",
            summary: "Answers many requests, behind all others, in the shapes of the Anthropic API.",
            description: "",
            area: Some(Area::Files),
            handler: post(batches::create_messages),
            shape: |schemas| {
                let request = schemas.request::<wire::batches::MessageBatchRequest>();
                Shape {
                    body: Some(json!({"application/json": {"schema": request}})),
                    envelope: Envelope::Anthropic,
                    ..get_shape(&schemas.answer::<wire::batches::MessageBatch>(), FILE_ERRORS_OF_UPLOADS)
                }
            },
        },
        Endpoint {
            path: "/v1/messages/batches",
            method: "get",
            id: "listMessageBatches",
            summary: "Lists batches of the Anthropic API, the newest first.",
            description: "",
            area: Some(Area::Files),
            handler: get(batches::list_messages),
            shape: |schemas| {
                let number = json!({"type": "integer", "minimum": 1, "maximum": 1000});
                let text = json!({"type": "string"});
                let parameters = json!([
                    query("limit", "Most batches of a page, by default 20.", &number),
                    query("after_id", "The page behind this one.", &text),
                    query("before_id", "The page in front of it.", &text),
                ]);
                Shape {
                    parameters,
                    envelope: Envelope::Anthropic,
                    ..get_shape(&schemas.answer::<wire::batches::MessageBatchList>(), FILE_ERRORS)
                }
            },
        },
        Endpoint {
            path: "/v1/messages/batches/{id}",
            method: "get",
            id: "retrieveMessageBatch",
            summary: "Tells about a batch of the Anthropic API.",
            description: "",
            area: Some(Area::Files),
            handler: get(batches::one_messages),
            shape: message_batch_shape,
        },
        Endpoint {
            path: "/v1/messages/batches/{id}",
            method: "delete",
            id: "deleteMessageBatch",
            summary: "Forgets a batch of the Anthropic API that has ended, and its results.",
            description: "",
            area: Some(Area::Files),
            handler: delete(batches::delete_messages),
            shape: |schemas| Shape {
                parameters: json!([path_id()]),
                envelope: Envelope::Anthropic,
                ..get_shape(&schemas.answer::<wire::batches::MessageBatchDeleted>(), FILE_ERRORS)
            },
        },
        Endpoint {
            path: "/v1/messages/batches/{id}/cancel",
            method: "post",
            id: "cancelMessageBatch",
            summary: "Ends a batch of the Anthropic API early.",
            description: "",
            area: Some(Area::Files),
            handler: post(batches::cancel_messages),
            shape: message_batch_shape,
        },
        Endpoint {
            path: "/v1/messages/batches/{id}/results",
            method: "get",
            id: "messageBatchResults",
            summary: "What became of each request of a batch of the Anthropic API that has ended: a line each.",
            description: "",
            area: Some(Area::Files),
            handler: get(batches::results),
            shape: |schemas| {
                let line = schemas.answer::<wire::batches::ResultLine<'_>>();
                Shape {
                    parameters: json!([path_id()]),
                    body: None,
                    answers: vec![("200", "The results.", json!({"application/x-jsonl": {"schema": line}}))],
                    errors: FILE_ERRORS,
                    envelope: Envelope::Anthropic,
                }
            },
        },
        Endpoint {
            path: "/v1/models",
            method: "get",
            id: "listModels",
            summary: "Lists every name that a request may use: models and their aliases.",
            description: BOTH,
            area: Some(Area::Models),
            handler: get(models::list),
            shape: |schemas| {
                let number = json!({"type": "integer", "minimum": 1, "maximum": models::MOST_LISTED});
                let text = json!({"type": "string"});
                let anthropic = schemas.answer::<wire::messages::ModelList>();
                let schema = json!({"anyOf": [schemas.answer::<wire::models::ModelList>(), anthropic]});
                Shape {
                    parameters: json!([
                        anthropic_version(),
                        query(
                            "limit",
                            "With `anthropic-version`: most names of a page, by default 20.",
                            &number
                        ),
                        query("after_id", "With `anthropic-version`: the page behind this name.", &text),
                        query("before_id", "With `anthropic-version`: the page in front of it.", &text),
                        query(
                            "lifecycle[]",
                            "With `anthropic-version`: only models at these stages; all here are `active`.",
                            &json!({"type": "array", "items": text}),
                        ),
                    ]),
                    envelope: Envelope::Either,
                    ..get_shape(&schema, &["400", "401", "403", "503", "529"])
                }
            },
        },
        Endpoint {
            path: "/v1/models/{model}",
            method: "get",
            id: "retrieveModel",
            summary: "Tells about one name.",
            description: BOTH,
            area: Some(Area::Models),
            handler: get(models::one),
            shape: |schemas| {
                let anthropic = schemas.answer::<wire::messages::ModelInfo>();
                let schema = json!({"anyOf": [schemas.answer::<wire::models::Model>(), anthropic]});
                let model = json!({
                    "name": "model",
                    "in": "path",
                    "required": true,
                    "description": "A name; it may have slashes, as they are.",
                    "schema": {"type": "string"},
                });
                let parameters = json!([model, anthropic_version()]);
                let answers = get_shape(&schema, &["401", "403", "404", "503", "529"]);
                Shape { parameters, envelope: Envelope::Either, ..answers }
            },
        },
        Endpoint {
            path: "/health",
            method: "get",
            id: "health",
            summary: "Tells whether requests can be answered, and what each model is doing.",
            description: "",
            area: None,
            handler: get(ops::health),
            shape: |schemas| {
                let content = json!({"application/json": {"schema": schemas.answer::<wire::ops::Health>()}});
                Shape {
                    parameters: json!([]),
                    body: None,
                    answers: vec![
                        (
                            "200",
                            "Every model has computed a real step, and all engines live.",
                            content.clone(),
                        ),
                        ("503", "Models are being loaded, or an engine has failed.", content),
                    ],
                    errors: &[],
                    envelope: Envelope::OpenAi,
                }
            },
        },
        Endpoint {
            path: "/live",
            method: "get",
            id: "live",
            summary: "Tells whether the server works: if not, start it again.",
            description: "Also as `/livez`.",
            area: None,
            handler: get(ops::live),
            shape: state_shape,
        },
        Endpoint {
            path: "/ready",
            method: "get",
            id: "ready",
            summary: "Tells whether the server takes requests: its models are loaded, and it is not being stopped.",
            description: "Also as `/readyz`.",
            area: None,
            handler: get(ops::ready),
            shape: state_shape,
        },
        Endpoint {
            path: "/livez",
            method: "get",
            id: "livez",
            summary: "The same as `/live`.",
            description: "",
            area: None,
            handler: get(ops::live),
            shape: state_shape,
        },
        Endpoint {
            path: "/readyz",
            method: "get",
            id: "readyz",
            summary: "The same as `/ready`.",
            description: "",
            area: None,
            handler: get(ops::ready),
            shape: state_shape,
        },
        Endpoint {
            path: "/metrics",
            method: "get",
            id: "metrics",
            summary: "The server's figures, as Prometheus reads them.",
            description: "",
            area: Some(Area::Metrics),
            handler: get(ops::metrics),
            shape: |_| Shape {
                parameters: json!([]),
                body: None,
                answers: vec![(
                    "200",
                    "Figures in the text format of Prometheus.",
                    json!({"text/plain": {"schema": {"type": "string"}}}),
                )],
                errors: &["401", "403"],
                envelope: Envelope::OpenAi,
            },
        },
        Endpoint {
            path: "/v1/usage",
            method: "get",
            id: "usage",
            summary: "What was used, by day, tenant and model.",
            description: "A tenant sees its own; a key that is for `admin` sees all.",
            area: Some(Area::Usage),
            handler: get(ops::usage),
            shape: |schemas| {
                let date = |name: &str, what: &str| {
                    json!({
                        "name": name,
                        "in": "query",
                        "description": what,
                        "schema": {"type": "string", "format": "date"},
                    })
                };
                let tenant = json!({
                    "name": "tenant",
                    "in": "query",
                    "description": "Only this one's.",
                    "schema": {"type": "string"},
                });
                let from = date("from", "The first day (UTC). Default: the first of the month.");
                let to = date("to", "The last day (UTC). Default: today.");
                Shape {
                    parameters: json!([from, to, tenant]),
                    ..get_shape(&schemas.answer::<wire::ops::UsageList>(), &["400", "401", "403"])
                }
            },
        },
        Endpoint {
            path: "/openapi.json",
            method: "get",
            id: "openapi",
            summary: "This description.",
            description: "",
            area: Some(Area::Models),
            handler: get(describe),
            shape: |_| get_shape(&json!({"type": "object"}), &[]),
        },
    ]
}

const SPEECH: &str = "A form whose parts may come in any order; with `model` in front of `file`, a wrong name is told before the file is \
     sent. Lists may be written with `[]` behind the name, once for each item. With `stream`, the answer is server-sent \
     events: each `data:` line is a delta, the last but one is the whole text, and the last one is `data: [DONE]`.";

fn chat_shape(schemas: &mut Schemas) -> Shape {
    let request = schemas.request::<wire::chat::ChatRequest>();
    let (whole, chunk) =
        (schemas.answer::<wire::chat::ChatCompletion>(), schemas.answer::<wire::chat::Chunk<'_>>());
    Shape {
        parameters: json!([]),
        body: Some(json!({"application/json": {"schema": request}})),
        answers: vec![(
            "200",
            "The answer, whole or in chunks.",
            json!({"application/json": {"schema": whole}, "text/event-stream": {"schema": chunk}}),
        )],
        errors: CHAT_ERRORS,
        envelope: Envelope::OpenAi,
    }
}

fn completion_shape(schemas: &mut Schemas) -> Shape {
    let request = schemas.request::<wire::completions::CompletionRequest>();
    let answer = schemas.answer::<wire::completions::Completion>();
    Shape {
        parameters: json!([]),
        body: Some(json!({"application/json": {"schema": request}})),
        answers: vec![(
            "200",
            "The answers, whole or in chunks.",
            json!({"application/json": {"schema": answer}, "text/event-stream": {"schema": answer}}),
        )],
        errors: CHAT_ERRORS,
        envelope: Envelope::OpenAi,
    }
}

fn speech_shape(schemas: &mut Schemas) -> Shape {
    let fields = schemas.request::<wire::audio::AudioRequest>();
    let file = json!({
        "type": "object",
        "required": ["file", "model"],
        "properties": {"file": {
            "type": "string",
            "format": "binary",
            "description": "The recording: WAV, MP3, FLAC, Ogg, Opus, WebM, Matroska, MP4, M4A, AIFF or CAF, told by its content.",
        }},
    });
    let answers = json!({"anyOf": [
        schemas.answer::<wire::audio::Transcription>(),
        schemas.answer::<wire::audio::VerboseTranscription>(),
        schemas.answer::<wire::audio::DiarizedTranscription>(),
    ]});
    let events = json!({"anyOf": [
        schemas.answer::<wire::audio::TextDelta>(),
        schemas.answer::<wire::audio::DiarizedSegment>(),
        schemas.answer::<wire::audio::TextDone>(),
    ]});
    let text = json!({"schema": {"type": "string"}});
    Shape {
        parameters: json!([]),
        body: Some(json!({"multipart/form-data": {"schema": {"allOf": [file, fields]}}})),
        answers: vec![(
            "200",
            "The transcript, in the form that `response_format` asks for.",
            json!({
                "application/json": {"schema": answers},
                "text/event-stream": {"schema": events},
                "text/plain": text,
                "text/vtt": text,
                "text/tab-separated-values": text,
            }),
        )],
        errors: CHAT_ERRORS,
        envelope: Envelope::OpenAi,
    }
}

/// Errors of what asks about files and batches, and of what sends one.
const FILE_ERRORS: &[&str] = &["400", "401", "403", "404", "409", "429", "500"];
const FILE_ERRORS_OF_UPLOADS: &[&str] =
    &["400", "401", "403", "404", "408", "413", "415", "429", "431", "500"];

fn path_id() -> Value {
    json!({"name": "id", "in": "path", "required": true, "schema": {"type": "string"}})
}

fn file_shape(schemas: &mut Schemas, errors: &'static [&'static str]) -> Shape {
    let answers =
        [schemas.answer::<wire::files::FileObject>(), schemas.answer::<wire::files::FileMetadata>()];
    Shape { envelope: Envelope::Either, ..get_shape(&json!({"anyOf": answers}), errors) }
}

fn batch_shape(schemas: &mut Schemas) -> Shape {
    let parameters = json!([path_id()]);
    Shape { parameters, ..get_shape(&schemas.answer::<wire::batches::Batch>(), FILE_ERRORS) }
}

fn message_batch_shape(schemas: &mut Schemas) -> Shape {
    Shape {
        parameters: json!([path_id()]),
        envelope: Envelope::Anthropic,
        ..get_shape(&schemas.answer::<wire::batches::MessageBatch>(), FILE_ERRORS)
    }
}

fn state_shape(schemas: &mut Schemas) -> Shape {
    let content = json!({"application/json": {"schema": schemas.answer::<wire::ops::State>()}});
    Shape {
        parameters: json!([]),
        body: None,
        answers: vec![("200", "It is so.", content.clone()), ("503", "It is not.", content)],
        errors: &[],
        envelope: Envelope::OpenAi,
    }
}

fn get_shape(schema: &Value, errors: &'static [&'static str]) -> Shape {
    Shape {
        parameters: json!([]),
        body: None,
        answers: vec![("200", "The answer.", json!({"application/json": {"schema": schema}}))],
        errors,
        envelope: Envelope::OpenAi,
    }
}

/// Both APIs have these paths.
const BOTH: &str = "With the header `anthropic-version`, answers and errors are those of the Anthropic API.";

fn anthropic_version() -> Value {
    json!({
        "name": "anthropic-version",
        "in": "header",
        "description": "Whatever it says: the answer is that of the Anthropic API.",
        "schema": {"type": "string"},
    })
}

fn query(name: &str, description: &str, schema: &Value) -> Value {
    json!({"name": name, "in": "query", "description": description, "schema": schema})
}

fn responses_shape(schemas: &mut Schemas) -> Shape {
    let request = schemas.request::<wire::responses::ResponsesRequest>();
    let whole = schemas.answer::<wire::responses::Response<'_>>();
    let event = schemas.answer::<wire::responses::StreamEvent<'_>>();
    Shape {
        parameters: json!([]),
        body: Some(json!({"application/json": {"schema": request}})),
        answers: vec![(
            "200",
            "The answer, whole or in events.",
            json!({"application/json": {"schema": whole}, "text/event-stream": {"schema": event}}),
        )],
        errors: CHAT_ERRORS,
        envelope: Envelope::OpenAi,
    }
}

fn messages_shape(schemas: &mut Schemas) -> Shape {
    let request = schemas.request::<wire::messages::MessagesRequest>();
    let whole = schemas.answer::<wire::messages::Message<'_>>();
    let event = schemas.answer::<wire::messages::StreamEvent<'_>>();
    Shape {
        parameters: json!([]),
        body: Some(json!({"application/json": {"schema": request}})),
        answers: vec![(
            "200",
            "The answer, whole or in events.",
            json!({"application/json": {"schema": whole}, "text/event-stream": {"schema": event}}),
        )],
        errors: MESSAGES_ERRORS,
        envelope: Envelope::Anthropic,
    }
}

/// Schemas of what goes over the wire, each once. What is read may lack what is written always.
struct Schemas {
    requests: SchemaGenerator,
    answers: SchemaGenerator,
}

impl Schemas {
    fn new() -> Self {
        let settings = || {
            let mut settings = SchemaSettings::draft2020_12();
            settings.definitions_path = "/components/schemas".into();
            settings.meta_schema = None;
            settings
        };
        Self { requests: settings().into_generator(), answers: settings().for_serialize().into_generator() }
    }

    fn request<T: JsonSchema>(&mut self) -> Value {
        reference(self.requests.subschema_for::<T>())
    }

    fn answer<T: JsonSchema>(&mut self) -> Value {
        reference(self.answers.subschema_for::<T>())
    }

    fn definitions(mut self) -> Map<String, Value> {
        let mut all = self.requests.take_definitions(true);
        for (name, schema) in self.answers.take_definitions(true) {
            let double = all.insert(name, schema);
            debug_assert!(double.is_none(), "a request and an answer have a type of one name");
        }
        all
    }
}

fn reference(schema: Schema) -> Value {
    schema.into()
}

/// Statuses of errors, and what they mean.
const ERRORS: &[(&str, &str)] = &[
    ("400", "A field is wrong, or asks for what this server does not do; `param` names it."),
    ("401", "The request has no key, or one that is nobody's, where the server wants keys."),
    ("403", "The key may not be used for this, or the server is not called so."),
    ("404", "There is no such model, file or batch, or the key may not use it."),
    ("408", "The body came too slowly."),
    ("409", "It cannot be done as things are; the message says why."),
    ("413", "The body is too large; the message names the limit."),
    ("415", "The body has another type than it must have, or it is compressed."),
    ("426", "The path is a WebSocket, and the request is none."),
    (
        "429",
        "The queue is full, or the tenant has had what it may have; `Retry-After` says for how many seconds. Where \
             `x-should-retry` is false, another try is useless.",
    ),
    ("431", "The request's head is too large."),
    ("500", "The server failed; its log says how, under the id in `x-request-id`."),
    ("503", "The models are being loaded, or the server is stopping."),
];

/// The same of the Anthropic API.
const ANTHROPIC_ERRORS: &[(&str, &str)] = &[
    ("400", "A field is wrong, or asks for what this server does not do; the message begins with its path."),
    ("401", "There is no key, or one that is nobody's."),
    ("403", "The key is for other parts of the API; or the request is for another server."),
    ("404", "There is no such model or batch, or the key may not use it."),
    ("408", "The body came too slowly."),
    ("409", "It cannot be done as things are; the message says why."),
    ("413", "The body is too large; the message names the limit."),
    ("415", "The body has another type than it must have, or it is compressed."),
    ("429", "The tenant has had what it may have; `Retry-After` says for how long."),
    ("431", "The request's head is too large."),
    ("500", "The server failed; its log says how, under the id in `request-id`."),
    (
        "529",
        "The queue is full, the models are being loaded, or the server is stopping; `Retry-After` says for how long.",
    ),
];

/// Those of paths that both APIs have.
const EITHER_ERRORS: &[(&str, &str)] = &[
    ("400", "A field is wrong; the message names it."),
    ("401", "The request has no key, or one that is nobody's, where the server wants keys."),
    ("403", "The key may not be used for this, or the server is not called so."),
    ("404", "There is no such model or file, or the key may not use it."),
    ("408", "The body came too slowly."),
    ("409", "It cannot be done as things are; the message says why."),
    ("413", "The file is too large; the message names the limit."),
    ("415", "The body has another type than it must have, or it is compressed."),
    ("429", "The tenant has had what it may have; `Retry-After` says for how long."),
    ("431", "The request's head is too large."),
    ("500", "The server failed; its log says how, under the id in `x-request-id`."),
    ("503", "The models are being loaded, or the server is stopping."),
    ("529", "The same, with `anthropic-version`."),
];

const ABOUT: &str = "percept answers OpenAI and Anthropic clients: this is their API, as far as it is served here. Every path is also answered without \
     `/v1`, and with a slash at the end. Null is the same as absent. Fields that would change the answer and are not \
     served are refused with a message; those that change nothing are ignored, and named in the header \
     `x-ignored-params`. Every response has an id in `x-request-id`.";

/// The description of the API, as OpenAPI 3.1.
pub fn document() -> Value {
    let mut schemas = Schemas::new();
    let openai = schemas.answer::<wire::error::ErrorBody>();
    let anthropic = schemas.answer::<wire::messages::ErrorBody<'_>>();
    let either = json!({"anyOf": [openai, anthropic]});
    let errors = [
        (Envelope::OpenAi, ERRORS, openai),
        (Envelope::Anthropic, ANTHROPIC_ERRORS, anthropic),
        (Envelope::Either, EITHER_ERRORS, either),
    ];
    let mut paths = Map::new();
    for endpoint in endpoints() {
        let (path, method) = (endpoint.path, endpoint.method);
        let methods = paths.entry(path).or_insert_with(|| json!({}));
        methods[method] = operation(&endpoint, &mut schemas);
    }
    let mut responses = Map::new();
    for (envelope, statuses, schema) in errors {
        for (status, meaning) in statuses {
            let mut response = json!({
                "description": meaning,
                "content": {"application/json": {"schema": schema}},
            });
            if ["429", "503", "529"].contains(status) {
                response["headers"] = json!({"Retry-After": {
                    "description": "Seconds until another try makes sense.",
                    "schema": {"type": "integer"},
                }});
            }
            responses.insert(format!("{}{status}", envelope.prefix()), response);
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "percept",
            "version": env!("CARGO_PKG_VERSION"),
            "description": ABOUT,
            "license": {"name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}, {"key": []}, {}],
        "paths": paths,
        "components": {
            "schemas": schemas.definitions(),
            "responses": responses,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    })
}

fn operation(endpoint: &Endpoint, schemas: &mut Schemas) -> Value {
    let Endpoint { id, summary, description, shape, .. } = endpoint;
    let Shape { parameters, body, answers, errors, envelope } = shape(schemas);
    let mut responses = Map::new();
    for (status, meaning, content) in answers {
        let response = json!({
            "description": meaning,
            "content": content,
            "headers": {"x-request-id": {"description": "The id in the server's log.", "schema": {"type": "string"}}},
        });
        responses.insert(status.into(), response);
    }
    for status in errors {
        let name = format!("#/components/responses/{}{status}", envelope.prefix());
        responses.insert((*status).into(), json!({"$ref": name}));
    }
    let mut operation = json!({"operationId": id, "summary": summary});
    if !description.is_empty() {
        operation["description"] = (*description).into();
    }
    if parameters != json!([]) {
        operation["parameters"] = parameters;
    }
    if let Some(content) = body {
        operation["requestBody"] = json!({"required": true, "content": content});
    }
    operation["responses"] = responses.into();
    operation
}

/// `GET /openapi.json`
async fn describe() -> Response {
    let text = format!("{:#}", document());
    ([(CONTENT_TYPE, "application/json")], Bytes::from(text)).into_response()
}
