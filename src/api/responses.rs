//! `/v1/responses`: conversations in the shapes of the Responses API, of which nothing is kept.

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

use self::{answer::Base, parse::Responses};
use super::{
    ApiError, App,
    chat::{self, Chat},
    json,
    models::chat_model,
    params::Parsed,
    record::Record,
    wire::responses as wire,
};

/// `POST /v1/responses`
pub(super) async fn create(
    State(app): State<Arc<App>>,
    record: Record,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    app.models()?;
    let Parsed { value, ignored } =
        json::request::<wire::ResponsesRequest>(&app, &headers, body, is_harmless).await?;
    let Responses { chat, stream, echo } = Responses::parse(value, &app.config.media)?;
    let (served, model) = chat_model(&app, &record, &chat.model)?;
    let place = record.reserve(served)?;
    let base = Base::new(served, echo);
    let answer =
        chat::submit(&app, &record, (served, model), place, chat).await.map_err(ApiError::of_input)?;
    let response = match stream {
        true => answer::stream(base, answer),
        false => Json(answer::collect(answer).await?.response(&base)).into_response(),
    };
    Ok(ignored.with(response))
}

/// `POST /v1/responses/input_tokens`
pub(super) async fn input_tokens(
    State(app): State<Arc<App>>,
    record: Record,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    app.models()?;
    let Parsed { value, ignored } =
        json::request::<wire::ResponsesRequest>(&app, &headers, body, is_harmless).await?;
    let Responses { chat: Chat { model, conversation, media, .. }, .. } =
        Responses::parse(value, &app.config.media)?;
    let count = chat::count(&app, &record, &model, conversation, media);
    let input_tokens = count.await.map_err(ApiError::of_input)?;
    Ok(ignored.with(Json(wire::TokenCount { object: "response.input_tokens", input_tokens })))
}

/// What fuzzing enters.
#[cfg(fuzzing)]
pub(super) fn fuzz(
    request: wire::ResponsesRequest,
    limits: &crate::media::MediaLimits,
) -> Result<(), ApiError> {
    Responses::parse(request, limits).map(drop)
}

fn is_harmless(path: &str) -> bool {
    let field = path.rsplit('.').next().unwrap_or(path);
    wire::HARMLESS.contains(&path) || path.starts_with("input[") && wire::HARMLESS_IN_ITEMS.contains(&field)
}
