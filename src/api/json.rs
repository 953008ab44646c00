//! Reads a JSON body into a wire type, and says precisely what is wrong with it.

use axum::{
    body::Body,
    http::{HeaderMap, header::CONTENT_TYPE},
};
use serde::de::DeserializeOwned;
use serde_json::error::Category;

use super::{
    App,
    body::{Pieces, header},
    error::ApiError,
    params::{Ignored, Parsed},
    wire::{Object, TOO_MANY, begin_body},
};
use crate::request::InvalidRequest;

/// Bodies up to this size are parsed at once: that takes less time than a change of threads is worth.
const SMALL: usize = 1 << 16;

/// Whether a body says that it is JSON.
pub(super) fn is_json(headers: &HeaderMap) -> bool {
    header(headers, CONTENT_TYPE).is_some_and(|found| is_essence(&found))
}

fn is_essence(found: &str) -> bool {
    found.split(';').next().unwrap_or("").trim().eq_ignore_ascii_case("application/json")
}

/// Reads and parses a request's body, within the server's limit, and refuses unknown fields where the server is strict;
/// see [`read`].
pub(super) async fn request<T: DeserializeOwned + Send + 'static>(
    app: &App,
    headers: &HeaderMap,
    body: Body,
    harmless: fn(&str) -> bool,
) -> Result<Parsed<T>, ApiError> {
    let parsed = read(headers, body, app.config.body_bytes, harmless).await?;
    parsed.ignored.check(app.config.strict)?;
    Ok(parsed)
}

/// Reads and parses a body of at most `limit` bytes. Of fields that the type does not know, `harmless` says which are
/// known all the same, by their paths, such as `messages[0].foo`.
pub(super) async fn read<T: DeserializeOwned + Send + 'static>(
    headers: &HeaderMap,
    body: Body,
    limit: usize,
    harmless: fn(&str) -> bool,
) -> Result<Parsed<T>, ApiError> {
    // A web page of anybody's can send other types, or none, without asking; JSON it cannot.
    let found = header(headers, CONTENT_TYPE).unwrap_or_else(|| "(none)".into());
    if !is_essence(&found) {
        let found = found.chars().take(100).collect();
        return Err(ApiError::ContentType { found, expected: "JSON with 'Content-Type: application/json'" });
    }
    let mut pieces = Pieces::open(headers, body, limit)?;
    let mut bytes = Vec::new();
    while let Some(piece) = pieces.next().await? {
        bytes.extend_from_slice(&piece);
    }
    if bytes.len() <= SMALL {
        return parse(&bytes, harmless);
    }
    let parsed = tokio::task::spawn_blocking(move || parse(&bytes, harmless));
    parsed.await.map_err(|error| ApiError::internal(&error))?
}

/// Parses a body, as [`read`] does.
pub(super) fn parse<T: DeserializeOwned>(
    bytes: &[u8],
    harmless: fn(&str) -> bool,
) -> Result<Parsed<T>, ApiError> {
    if bytes.trim_ascii().is_empty() {
        return Err(ApiError::NotJson("the body is empty".into()));
    }
    begin_body();
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let mut track = serde_path_to_error::Track::new();
    let tracked = serde_path_to_error::Deserializer::new(&mut deserializer, &mut track);
    let mut ignored = Ignored::default();
    let found = |path: serde_ignored::Path<'_>| {
        let path = shown(&path.to_string());
        let harmless = harmless(&path);
        ignored.push(path, harmless);
    };
    let Object(value) = serde_ignored::deserialize(tracked, found)
        .map_err(|error| explain(&error, &track.path().to_string()))?;
    deserializer.end().map_err(|error| ApiError::NotJson(error.to_string()))?;
    Ok(Parsed { value, ignored })
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
