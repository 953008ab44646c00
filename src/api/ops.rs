//! How the server is, what it does and what was used of it.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Query, State, rejection::QueryRejection},
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse as _, Response},
};
use jiff::civil::Date;
use serde::Deserialize;

use super::{
    ApiError, App,
    record::Record,
    wire::ops::{Health, ModelHealth, State as WireState, UsageDay, UsageList},
};
use crate::{
    access::{Area, today},
    operations::{Row, Totals},
    request::InvalidRequest,
    router::{Router, Served},
};

/// `GET /health`: 200 once every model has computed a real step and as long as its engine lives, else 503. Which models
/// there are is told to who may know.
pub(super) async fn health(State(app): State<Arc<App>>, record: Record) -> (StatusCode, Json<Health>) {
    let Ok(models) = app.models() else {
        return (
            StatusCode::SERVICE_UNAVAILABLE,
            Json(Health { status: "loading", models: Vec::new(), energy: None }),
        );
    };
    let alive = models.models().iter().all(|served| served.handle.status().alive());
    let may_know = app.operations.access.is_none() || record.caller().is_some();
    let known = models.models().iter().filter(|served| may_know && record.may_use(served, &served.id));
    let models = known.map(|served| model(served)).collect();
    let meter = app.operations.energy.as_ref().filter(|_| may_know);
    let parts = meter.and_then(|meter| meter.read().ok());
    let energy = parts.map(|parts| parts.iter().map(|part| part.joules).sum());
    let (code, status) =
        if alive { (StatusCode::OK, "ok") } else { (StatusCode::SERVICE_UNAVAILABLE, "failed") };
    (code, Json(Health { status, models, energy }))
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

/// `GET /live`: 503 when an engine has ended that should not have: nothing but a new process helps.
pub(super) async fn live(State(app): State<Arc<App>>) -> (StatusCode, Json<WireState>) {
    let stopping = app.is_stopping();
    let models = app.models().map(Router::models).unwrap_or_default();
    let alive = stopping || models.iter().all(|served| served.handle.status().alive());
    state(if alive { Ok("live") } else { Err("failed") })
}

/// `GET /ready`: 503 while models are loaded, when an engine has failed, and from when the server is stopped.
pub(super) async fn ready(State(app): State<Arc<App>>) -> (StatusCode, Json<WireState>) {
    if app.is_stopping() {
        return state(Err("stopping"));
    }
    let Ok(models) = app.models() else { return state(Err("loading")) };
    let alive = models.models().iter().all(|served| served.handle.status().alive());
    state(if alive { Ok("ready") } else { Err("failed") })
}

fn state(status: Result<&'static str, &'static str>) -> (StatusCode, Json<WireState>) {
    match status {
        Ok(status) => (StatusCode::OK, Json(WireState { status })),
        Err(status) => (StatusCode::SERVICE_UNAVAILABLE, Json(WireState { status })),
    }
}

/// `GET /metrics`
pub(super) async fn metrics(State(app): State<Arc<App>>) -> Response {
    let models = app.models().map(Router::models).unwrap_or_default();
    let operations = &app.operations;
    // What cannot be read any more is left out.
    let energy = operations.energy.as_ref().and_then(|meter| meter.read().ok()).unwrap_or_default();
    let text = operations.metrics.text(models, &energy, app.config.names);
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

/// What usage is asked for.
#[derive(Debug, Deserialize)]
pub(super) struct UsageQuery {
    from: Option<String>,
    to: Option<String>,
    tenant: Option<String>,
}

/// `GET /v1/usage`
pub(super) async fn usage(
    State(app): State<Arc<App>>,
    record: Record,
    query: Result<Query<UsageQuery>, QueryRejection>,
) -> Result<Json<UsageList>, ApiError> {
    let Query(UsageQuery { from, to, tenant }) = query.map_err(|error| InvalidRequest::Value {
        param: "from".into(),
        found: error.body_text(),
        supported: "from, to and tenant, each once".into(),
    })?;
    let to = date("to", to)?.unwrap_or_else(today);
    let from = date("from", from)?.unwrap_or_else(|| to.first_of_month());
    let tenant = match record.caller() {
        // Everyone may know everything where nobody has a key.
        None => tenant,
        Some(caller) if caller.terms.allows(Area::Admin) => tenant,
        Some(caller) => match tenant {
            Some(tenant) if tenant != caller.tenant => return Err(ApiError::NotAllowed(Area::Admin)),
            _ => Some(caller.tenant),
        },
    };
    let rows = app.operations.usage.rows(from, to, tenant.as_deref());
    let mut total = Totals::default();
    rows.iter().for_each(|row| total.join(&row.totals));
    Ok(Json(UsageList {
        object: "list",
        from: from.to_string(),
        to: to.to_string(),
        currency: app.operations.price.as_ref().map(|price| price.currency.clone()),
        data: rows.iter().map(day).collect(),
        total: total.into(),
    }))
}

fn date(param: &str, text: Option<String>) -> Result<Option<Date>, ApiError> {
    let parse = |text: String| {
        let wrong = |_| InvalidRequest::Value {
            param: param.into(),
            found: text.chars().take(50).collect(),
            supported: "dates such as 2026-11-28".into(),
        };
        text.parse().map_err(wrong)
    };
    Ok(text.map(parse).transpose()?)
}

fn day(row: &Row) -> UsageDay {
    UsageDay {
        object: "usage",
        date: row.date.to_string(),
        tenant: row.tenant.clone(),
        model: row.model.clone(),
        usage: row.totals.into(),
    }
}

impl From<Totals> for super::wire::ops::Usage {
    fn from(totals: Totals) -> Self {
        let used = totals.used;
        Self {
            requests: totals.requests,
            errors: totals.errors,
            prompt_tokens: used.prompt_tokens,
            cached_tokens: used.cached_tokens,
            completion_tokens: used.completion_tokens,
            images: used.images,
            audio_seconds: used.audio_seconds,
            compute_seconds: used.compute_seconds,
            cost: used.cost,
        }
    }
}
