//! Reads a JSON body into a wire type, and says precisely what is wrong with it.

use std::time::Duration;

use axum::{
    body::Body,
    http::{
        HeaderMap,
        header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE},
    },
};
use futures_util::StreamExt as _;
use serde::de::DeserializeOwned;
use serde_json::error::Category;

use super::{
    error::ApiError,
    wire::{Object, TOO_MANY},
};
use crate::request::InvalidRequest;

/// How long a client may be silent in the middle of its body.
const SILENCE: Duration = Duration::from_secs(30);
/// Bodies up to this size are parsed at once: that takes less time than a change of threads is worth.
const SMALL: usize = 1 << 16;
/// Most names of ignored fields that are kept.
const MOST_IGNORED: usize = 20;

/// A body, and the paths of fields in it that the wire type does not know.
#[derive(Debug)]
pub(super) struct Parsed<T> {
    pub(super) value: T,
    /// The first of those that had no effect.
    pub(super) ignored: Vec<String>,
    /// The first of those that are unknown.
    pub(super) unknown: Option<String>,
}

/// Reads and parses a body of at most `limit` bytes. Of fields that the type does not know, `harmless` says which are
/// known all the same, by their paths, such as `messages[0].foo`.
pub(super) async fn read<T: DeserializeOwned + Send + 'static>(
    headers: &HeaderMap,
    body: Body,
    limit: usize,
    harmless: fn(&str) -> bool,
) -> Result<Parsed<T>, ApiError> {
    let header = |name| headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    // A web page of anybody's can send other types, or none, without asking; JSON it cannot.
    let found = header(CONTENT_TYPE).unwrap_or_else(|| "(none)".into());
    let essence = found.split(';').next().unwrap_or("").trim();
    if !essence.eq_ignore_ascii_case("application/json") {
        return Err(ApiError::ContentType { found: found.chars().take(100).collect() });
    }
    if let Some(found) = header(CONTENT_ENCODING).filter(|found| !found.eq_ignore_ascii_case("identity")) {
        return Err(ApiError::ContentEncoding { found: found.chars().take(100).collect() });
    }
    let claimed = header(CONTENT_LENGTH).and_then(|length| length.parse().ok()).unwrap_or(0);
    if claimed > limit {
        return Err(ApiError::BodyTooLarge { limit });
    }
    let bytes = collect(body, limit).await?;
    if bytes.len() <= SMALL {
        return parse(&bytes, harmless);
    }
    let parsed = tokio::task::spawn_blocking(move || parse(&bytes, harmless));
    parsed.await.map_err(|error| ApiError::internal(&error))?
}

async fn collect(body: Body, limit: usize) -> Result<Vec<u8>, ApiError> {
    let mut pieces = body.into_data_stream();
    let mut bytes = Vec::new();
    loop {
        match tokio::time::timeout(SILENCE, pieces.next()).await {
            Err(_) => return Err(ApiError::BodySilent { seconds: SILENCE.as_secs() }),
            Ok(None) => return Ok(bytes),
            Ok(Some(Err(_))) => return Err(ApiError::BodyCut),
            Ok(Some(Ok(piece))) if bytes.len() + piece.len() > limit => {
                return Err(ApiError::BodyTooLarge { limit });
            }
            Ok(Some(Ok(piece))) => bytes.extend_from_slice(&piece),
        }
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8], harmless: fn(&str) -> bool) -> Result<Parsed<T>, ApiError> {
    if bytes.trim_ascii().is_empty() {
        return Err(ApiError::NotJson("the body is empty".into()));
    }
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let mut track = serde_path_to_error::Track::new();
    let tracked = serde_path_to_error::Deserializer::new(&mut deserializer, &mut track);
    let mut ignored = Vec::new();
    let mut unknown = None;
    let found = |path: serde_ignored::Path<'_>| {
        let path = shown(&path.to_string());
        if unknown.is_none() && !harmless(&path) {
            unknown = Some(path.clone());
        }
        if ignored.len() < MOST_IGNORED {
            ignored.push(path);
        }
    };
    let Object(value) = serde_ignored::deserialize(tracked, found)
        .map_err(|error| explain(&error, &track.path().to_string()))?;
    deserializer.end().map_err(|error| ApiError::NotJson(error.to_string()))?;
    Ok(Parsed { value, ignored, unknown })
}

/// A path as the API writes it: `messages.?.1.foo`, where `?` stands for a value that may be null, is `messages[1].foo`.
fn shown(path: &str) -> String {
    let mut shown = String::new();
    for part in path.split('.').filter(|part| *part != "?") {
        if !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()) {
            shown += &format!("[{part}]");
        } else {
            shown += if shown.is_empty() { "" } else { "." };
            shown += part;
        }
    }
    shown.chars().take(LONGEST_PATH).collect()
}

/// Paths are cut here when they are shown: a key may be as long as a body.
const LONGEST_PATH: usize = 200;

/// A wrong type or value as the API words it; anything else as the parser does.
fn explain(error: &serde_json::Error, path: &str) -> ApiError {
    let text = error.to_string();
    let Some((message, _)) = text.rsplit_once(" at line ").filter(|_| error.classify() == Category::Data)
    else {
        return ApiError::NotJson(text);
    };
    let param: String = path.chars().take(LONGEST_PATH).collect();
    if let Some(limit) = message.strip_prefix(TOO_MANY).and_then(|limit| limit.parse().ok()) {
        return InvalidRequest::ArrayTooLong { param, items: "items", found: "more".into(), limit }.into();
    }
    if let Some(field) = message.strip_prefix("missing field `").and_then(|rest| rest.strip_suffix('`')) {
        return InvalidRequest::Missing { param: format!("{param}.{field}") }.into();
    }
    if let Some((found, expected)) =
        message.strip_prefix("invalid type: ").and_then(|m| m.rsplit_once(", expected "))
    {
        if path == "." {
            return ApiError::NotJson(format!("expected an object, but got {}", json_type(found)));
        }
        let (found, expected) = (json_type(found).to_owned(), rust_type(expected).to_owned());
        return InvalidRequest::Type { param, expected, found }.into();
    }
    if let Some((found, expected)) =
        message.strip_prefix("invalid value: ").and_then(|m| m.rsplit_once(", expected "))
    {
        let supported = format!("{} of 64 bits", rust_type(expected));
        return InvalidRequest::Value { param, found: found.replace('`', ""), supported }.into();
    }
    ApiError::NotJson(format!("{message} in '{path}'"))
}

/// What serde calls a JSON value, with the value taken out.
fn json_type(found: &str) -> &'static str {
    match found.split(['`', '"']).next().unwrap_or(found).trim() {
        "string" => "a string",
        "integer" => "an integer",
        "floating point" => "a decimal number",
        "boolean" => "a boolean",
        "map" => "an object",
        "sequence" => "an array",
        "null" => "null",
        _ => "something else",
    }
}

/// What serde calls a Rust type.
fn rust_type(expected: &str) -> &str {
    match expected {
        "i64" => "an integer",
        "f64" => "a number",
        "string" => "a string",
        "a sequence" => "an array",
        "a map" => "an object",
        other => other,
    }
}
