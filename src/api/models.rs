//! `/v1/models`.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
    http::{HeaderMap, Uri},
    response::{IntoResponse, Response},
};

use super::{
    ApiError, App,
    error::is_anthropic,
    page::{Page, ends},
    record::Record,
    wire::{
        messages as anthropic,
        models::{Model, ModelList},
    },
};
use crate::router::{ChatModel, EmbeddingModel, Kind, Router, Served};

/// Most names of a page, where a client of the Anthropic API asks for so many.
pub(super) const MOST_LISTED: i64 = 1000;

/// What the Anthropic API calls models that are there to stay.
const ACTIVE: &str = "active";

/// `GET /v1/models`: those that may be used.
pub(super) async fn list(
    State(app): State<Arc<App>>,
    record: Record,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, ApiError> {
    let names =
        app.models()?.models().iter().flat_map(|served| served.names().map(move |name| (served, name)));
    let names = names.filter(|(served, name)| record.may_use(served, name));
    if is_anthropic(uri.path(), &headers) {
        let infos = names.map(|(served, name)| info(&app, served, name)).collect();
        let page = Page::parse(uri.query(), 20, MOST_LISTED)?;
        // All that are here are active.
        let wanted = page.lifecycle.is_empty() || page.lifecycle.iter().any(|stage| stage == ACTIVE);
        return Ok(Json(page_of(page, if wanted { infos } else { Vec::new() })).into_response());
    }
    let data = names.map(|(served, name)| model(served, name)).collect();
    Ok(Json(ModelList { object: "list", data }).into_response())
}

/// A page of all names. Behind a name that is not there is nothing, and so is in front of it.
fn page_of(page: Page, mut all: Vec<anthropic::ModelInfo>) -> anthropic::ModelList {
    let place = |all: &[anthropic::ModelInfo], id: &str| all.iter().position(|info| info.id == id);
    if let Some(after) = page.after {
        all = place(&all, &after).map_or_else(Vec::new, |index| all.split_off(index + 1));
    }
    let backwards = page.before.is_some();
    if let Some(before) = page.before {
        all.truncate(place(&all, &before).unwrap_or(0));
    }
    let has_more = all.len() > page.limit;
    if has_more && backwards {
        all.drain(..all.len() - page.limit);
    }
    all.truncate(page.limit);
    let (first_id, last_id) = ends(&all, |info| &info.id);
    anthropic::ModelList { data: all, has_more, first_id, last_id }
}

/// `GET /v1/models/{id}`; an id may have slashes.
pub(super) async fn one(
    State(app): State<Arc<App>>,
    record: Record,
    headers: HeaderMap,
    uri: Uri,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let models = app.models()?;
    // No model's name is anything but text.
    let id = id.map_or_else(|_| "\u{fffd}".to_owned(), |Path(id)| id);
    let id = id.strip_suffix('/').unwrap_or(&id).to_owned();
    let served = record.find(models, &id)?;
    if is_anthropic(uri.path(), &headers) {
        return Ok(Json(info(&app, served, &id)).into_response());
    }
    Ok(Json(model(served, &id)).into_response())
}

/// The chat model of a name.
pub(super) fn chat_model<'a>(
    app: &'a App,
    record: &Record,
    name: &str,
) -> Result<(&'a Served, &'a Arc<ChatModel>), ApiError> {
    let models = app.models()?;
    let served = record.find(models, name)?;
    let model = served.chat().ok_or_else(|| wrong_model(record, models, served, Kind::Chat))?;
    Ok((served, model))
}

/// The embedding model of a name.
pub(super) fn embedding_model<'a>(
    app: &'a App,
    record: &Record,
    name: &str,
) -> Result<(&'a Served, &'a Arc<EmbeddingModel>), ApiError> {
    let models = app.models()?;
    let served = record.find(models, name)?;
    let model = served.embedding().ok_or_else(|| wrong_model(record, models, served, Kind::Embedding))?;
    Ok((served, model))
}

/// The error for a model that does something else than it is asked to do, which is what `wanted` ones do.
pub(super) fn wrong_model(record: &Record, models: &Router, model: &Served, wanted: Kind) -> ApiError {
    let able = models.models().iter().filter(|other| other.work.kind() == wanted);
    let able = able.filter(|other| record.may_use(other, &other.id));
    ApiError::WrongModel {
        model: model.id.clone(),
        kind: model.work.kind().described(),
        cannot: wanted.verb(),
        able: able.map(|other| other.id.clone()).collect(),
    }
}

fn model(served: &Served, name: &str) -> Model {
    Model {
        id: name.to_owned(),
        object: "model",
        created: served.created,
        owned_by: "percept",
        task: served.work.kind().task(),
        max_model_len: served.handle.context(),
        root: served.id.clone(),
    }
}

fn info(app: &App, served: &Served, name: &str) -> anthropic::ModelInfo {
    let keeps_files = app.store().is_some();
    let created = jiff::Timestamp::from_second(i64::try_from(served.created).unwrap_or(0));
    anthropic::ModelInfo {
        kind: "model",
        id: name.to_owned(),
        display_name: name.to_owned(),
        created_at: created.unwrap_or_default().to_string(),
        lifecycle: ACTIVE,
        deprecated_at: None,
        retires_at: None,
        line: None,
        max_input_tokens: served.handle.context(),
        max_tokens: served.handle.context(),
        capabilities: capabilities(served, keeps_files),
    }
}

fn capabilities(served: &Served, keeps_files: bool) -> anthropic::Capabilities {
    let no = anthropic::Support::from(false);
    let chats = served.chat().is_some().into();
    anthropic::Capabilities {
        batch: (served.chat().is_some() && keeps_files).into(),
        citations: no,
        code_execution: no,
        context_management: anthropic::ContextSupport {
            supported: false,
            clear_thinking_20251015: None,
            clear_tool_uses_20250919: None,
            compact_20260112: None,
        },
        effort: anthropic::EffortSupport {
            supported: false,
            low: no,
            medium: no,
            high: no,
            xhigh: no,
            max: no,
        },
        // Every model that chats sees.
        image_input: chats,
        pdf_input: chats,
        server_tools: anthropic::ServerToolSupport { supported: false, code_execution: no, web_search: no },
        structured_outputs: chats,
        thinking: anthropic::ThinkingSupport {
            supported: false,
            types: anthropic::ThinkingTypes { adaptive: no, between_tools: no, disabled: chats, enabled: no },
        },
    }
}
