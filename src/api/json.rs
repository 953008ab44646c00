//! Reads a JSON body into a wire type, and says precisely what is wrong with it.

use axum::{
    body::{Body, to_bytes},
    http::{
        HeaderMap,
        header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE},
    },
};
use serde::de::DeserializeOwned;
use serde_json::error::Category;

use super::{error::ApiError, wire::Object};
use crate::request::InvalidRequest;

/// A body, and the paths of fields in it that the wire type does not know.
#[derive(Debug)]
pub(super) struct Parsed<T> {
    pub(super) value: T,
    pub(super) ignored: Vec<String>,
}

/// Reads and parses a body of at most `limit` bytes.
pub(super) async fn read<T: DeserializeOwned>(
    headers: &HeaderMap,
    body: Body,
    limit: usize,
) -> Result<Parsed<T>, ApiError> {
    let header = |name| headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    // Other types can be sent by a web page of anybody's without asking; JSON cannot.
    if let Some(found) = header(CONTENT_TYPE) {
        let essence = found.split(';').next().unwrap_or("").trim();
        if !essence.eq_ignore_ascii_case("application/json") {
            return Err(ApiError::ContentType { found: found.chars().take(100).collect() });
        }
    }
    if let Some(found) = header(CONTENT_ENCODING).filter(|found| !found.eq_ignore_ascii_case("identity")) {
        return Err(ApiError::ContentEncoding { found: found.chars().take(100).collect() });
    }
    let claimed = header(CONTENT_LENGTH).and_then(|length| length.parse().ok()).unwrap_or(0);
    if claimed > limit {
        return Err(ApiError::BodyTooLarge { limit });
    }
    let bytes = to_bytes(body, limit).await.map_err(|error| {
        let source = std::error::Error::source(&error);
        let too_large = source.is_some_and(<dyn std::error::Error>::is::<http_body_util::LengthLimitError>);
        if too_large { ApiError::BodyTooLarge { limit } } else { ApiError::BodyCut }
    })?;
    parse(&bytes)
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<Parsed<T>, ApiError> {
    if bytes.trim_ascii().is_empty() {
        return Err(ApiError::NotJson("the body is empty".into()));
    }
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let mut track = serde_path_to_error::Track::new();
    let tracked = serde_path_to_error::Deserializer::new(&mut deserializer, &mut track);
    let mut ignored = Vec::new();
    let Object(value) = serde_ignored::deserialize(tracked, |path| ignored.push(path.to_string()))
        .map_err(|error| explain(&error, &track.path().to_string()))?;
    deserializer.end().map_err(|error| ApiError::NotJson(error.to_string()))?;
    Ok(Parsed { value, ignored })
}

/// A wrong type or value as the API words it; anything else as the parser does.
fn explain(error: &serde_json::Error, path: &str) -> ApiError {
    let text = error.to_string();
    let Some((message, _)) = text.split_once(" at line ").filter(|_| error.classify() == Category::Data)
    else {
        return ApiError::NotJson(text);
    };
    let param = path.to_owned();
    if let Some((found, expected)) =
        message.strip_prefix("invalid type: ").and_then(|m| m.split_once(", expected "))
    {
        if path == "." {
            return ApiError::NotJson(format!("expected an object, but got {}", json_type(found)));
        }
        let (found, expected) = (json_type(found).to_owned(), rust_type(expected).to_owned());
        return InvalidRequest::Type { param, expected, found }.into();
    }
    if let Some((found, expected)) =
        message.strip_prefix("invalid value: ").and_then(|m| m.split_once(", expected "))
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
