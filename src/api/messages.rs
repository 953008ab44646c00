//! `/v1/messages` and `/v1/messages/count_tokens`: conversations in the shapes of the Anthropic API.

mod answer;
mod parse;

use std::sync::Arc;

use axum::{Json, body::Body, extract::State, http::HeaderMap, response::Response};

use self::{
    answer::Base,
    parse::{Asked, Messages},
};
use super::{
    ApiError, App, chat, json, models::chat_model, params::Parsed, record::Record, wire::messages as wire,
};

/// `POST /v1/messages`
pub(super) async fn create(
    State(app): State<Arc<App>>,
    record: Record,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    app.models()?;
    let Parsed { value, ignored } =
        json::request::<wire::MessagesRequest>(&app, &headers, body, is_harmless).await?;
    let Messages { chat, max_tokens, stream, cache } = Messages::parse(value, &app.config.media)?;
    let (served, model) = chat_model(&app, &record, &chat.model)?;
    let place = record.reserve(served)?;
    let base = Base::new(served, max_tokens, cache);
    let answer = chat::submit(&app, &record, (served, model), place, chat).await?;
    let response = match stream {
        true => answer::stream(base, answer),
        false => answer::collect(base, answer).await?,
    };
    Ok(ignored.with(response))
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
        json::request(&app, &headers, body, is_harmless).await?;
    let Asked { model, conversation, media, .. } = Asked::parse(value, &app.config.media)?;
    let input_tokens = chat::count(&app, &record, &model, conversation, media).await?;
    Ok(ignored.with(Json(wire::TokenCount { input_tokens })))
}

/// What fuzzing enters.
#[cfg(fuzzing)]
pub(super) fn fuzz(
    request: wire::MessagesRequest,
    limits: &crate::media::MediaLimits,
) -> Result<(), ApiError> {
    Ok(Messages::parse(request, limits).map(drop)?)
}

fn is_harmless(path: &str) -> bool {
    let field = path.rsplit('.').next().unwrap_or(path);
    let in_blocks = path.starts_with("messages[") || path.starts_with("system[");
    wire::HARMLESS.contains(&path)
        || in_blocks && wire::HARMLESS_IN_BLOCKS.contains(&field)
        || path.starts_with("tools[") && wire::HARMLESS_IN_TOOLS.contains(&field)
}
