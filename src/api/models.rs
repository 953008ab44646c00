//! `/v1/models`.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
};

use super::{
    ApiError, App,
    wire::models::{Model, ModelList},
};
use crate::router::{Router, Served};

/// `GET /v1/models`
pub(super) async fn list(State(app): State<Arc<App>>) -> Result<Json<ModelList>, ApiError> {
    let data =
        app.models()?.models().iter().flat_map(|served| served.names().map(|name| model(served, name)));
    Ok(Json(ModelList { object: "list", data: data.collect() }))
}

/// `GET /v1/models/{id}`; an id may have slashes.
pub(super) async fn one(
    State(app): State<Arc<App>>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Model>, ApiError> {
    let models = app.models()?;
    // No model's name is anything but text.
    let Path(id) = id.map_err(|_| not_found(models, "\u{fffd}"))?;
    let id = id.strip_suffix('/').unwrap_or(&id).to_owned();
    let served = models.find(&id).ok_or_else(|| not_found(models, &id))?;
    Ok(Json(model(served, &id)))
}

/// The error for a name that nothing here has.
pub(super) fn not_found(models: &Router, model: &str) -> ApiError {
    let known = models.models().iter().map(|served| served.id.clone()).collect();
    ApiError::ModelNotFound { model: model.chars().take(200).collect(), known }
}

/// The error for a model that does something else than it is asked to do.
pub(super) fn wrong_model(models: &Router, model: &Served, cannot: &'static str) -> ApiError {
    let kind = model.work.kind();
    let able = models.models().iter().filter(|other| other.work.kind() != kind);
    ApiError::WrongModel {
        model: model.id.clone(),
        kind: kind.name(),
        cannot,
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
