//! `/health`.

use std::sync::Arc;

use axum::{Json, extract::State, http::StatusCode};

use super::{
    App,
    wire::ops::{Health, ModelHealth},
};
use crate::router::Served;

/// `GET /health`: 200 once every model has computed a real step and as long as its engine lives, else 503.
pub(super) async fn health(State(app): State<Arc<App>>) -> (StatusCode, Json<Health>) {
    let Ok(models) = app.models() else {
        return (StatusCode::SERVICE_UNAVAILABLE, Json(Health { status: "loading", models: Vec::new() }));
    };
    let models: Vec<ModelHealth> = models.models().iter().map(|served| model(served)).collect();
    if models.iter().all(|model| model.alive) {
        (StatusCode::OK, Json(Health { status: "ok", models }))
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, Json(Health { status: "failed", models }))
    }
}

fn model(served: &Served) -> ModelHealth {
    let status = served.handle.status();
    let (pages_used, pages_total) = status.pages();
    ModelHealth {
        id: served.id.clone(),
        alive: status.alive(),
        running: status.running(),
        waiting: served.handle.waiting(),
        pages_used,
        pages_total,
        preemptions: status.preemptions(),
        steps: status.steps(),
    }
}
