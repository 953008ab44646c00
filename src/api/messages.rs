//! `/v1/messages` and `/v1/messages/count_tokens`: conversations in the shapes of the Anthropic API.

mod answer;
mod parse;

use std::sync::Arc;

use axum::{
    Json,
    body::Body,
    extract::State,
    http::HeaderMap,
    response::{IntoResponse, Response},
};

use self::{
    answer::Base,
    parse::{Asked, Messages},
};
use super::{
    ApiError, App, chat, json, models::chat_model, params::Parsed, record::Record, wire::messages as wire,
};
use crate::request::InvalidRequest;

/// A prompt is counted up to so many contexts: who counts wants to know how much too long it is, but not at any price.
const COUNTED: usize = 8;

/// `POST /v1/messages`
pub(super) async fn create(
    State(app): State<Arc<App>>,
    record: Record,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    app.models()?;
    let Parsed { value, ignored } =
        json::read::<wire::MessagesRequest>(&headers, body, app.config.body_bytes, is_harmless).await?;
    ignored.check(app.config.strict)?;
    let Messages { chat, max_tokens, stream, cache } = Messages::parse(value, &app.config.media)?;
    let (served, model) = chat_model(&app, &record, &chat.model)?;
    let place = record.reserve(served)?;
    let base = Base::new(served, max_tokens, cache);
    let answer = chat::submit(&app, &record, (served, model), place, chat).await?;
    let mut response = match stream {
        true => answer::stream(base, answer),
        false => answer::collect(base, answer).await?,
    };
    ignored.report(&mut response);
    Ok(response)
}

/// `POST /v1/messages/count_tokens`
pub(super) async fn count_tokens(
    State(app): State<Arc<App>>,
    record: Record,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    app.models()?;
    let Parsed { value: wire::CountRequest(value), ignored } =
        json::read(&headers, body, app.config.body_bytes, is_harmless).await?;
    ignored.check(app.config.strict)?;
    let Asked { model, conversation, media, .. } = Asked::parse(value, &app.config.media)?;
    let (served, model) = chat_model(&app, &record, &model)?;
    // Nothing is generated, but preparing a prompt is work as well.
    let _place = record.reserve(served)?;
    let context = served.handle.context();
    let prompt =
        chat::prompt(&app, &record, (served, model), conversation, media, context.saturating_mul(COUNTED))
            .await;
    let (prompt, _) = prompt.map_err(|error| match error {
        ApiError::Invalid(InvalidRequest::ContextLength { tokens, .. }) => {
            InvalidRequest::ContextLength { param: "messages", tokens, limit: context }.into()
        }
        other => other,
    })?;
    let mut response = Json(wire::TokenCount { input_tokens: prompt.tokens.len() }).into_response();
    ignored.report(&mut response);
    Ok(response)
}

fn is_harmless(path: &str) -> bool {
    let field = path.rsplit('.').next().unwrap_or(path);
    let in_blocks = path.starts_with("messages[") || path.starts_with("system[");
    wire::HARMLESS.contains(&path)
        || in_blocks && wire::HARMLESS_IN_BLOCKS.contains(&field)
        || path.starts_with("tools[") && wire::HARMLESS_IN_TOOLS.contains(&field)
}
