//! `/v1/models`.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
};

use super::{
    ApiError, App,
    record::Record,
    wire::models::{Model, ModelList},
};
use crate::router::{Router, Served};

/// `GET /v1/models`: those that may be used.
pub(super) async fn list(State(app): State<Arc<App>>, record: Record) -> Result<Json<ModelList>, ApiError> {
    let names =
        app.models()?.models().iter().flat_map(|served| served.names().map(move |name| (served, name)));
    let data =
        names.filter(|(served, name)| record.may_use(served, name)).map(|(served, name)| model(served, name));
    Ok(Json(ModelList { object: "list", data: data.collect() }))
}

/// `GET /v1/models/{id}`; an id may have slashes.
pub(super) async fn one(
    State(app): State<Arc<App>>,
    record: Record,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Model>, ApiError> {
    let models = app.models()?;
    // No model's name is anything but text.
    let id = id.map_or_else(|_| "\u{fffd}".to_owned(), |Path(id)| id);
    let id = id.strip_suffix('/').unwrap_or(&id).to_owned();
    let served = record.find(models, &id)?;
    Ok(Json(model(served, &id)))
}

/// The error for a model that does something else than it is asked to do.
pub(super) fn wrong_model(
    record: &Record,
    models: &Router,
    model: &Served,
    cannot: &'static str,
) -> ApiError {
    let kind = model.work.kind();
    let able = models.models().iter().filter(|other| other.work.kind() != kind);
    let able = able.filter(|other| record.may_use(other, &other.id));
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
