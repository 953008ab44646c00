//! `/v1/batches`: requests in a file, answered when nobody else wants anything.

mod answer;
mod gate;
mod lines;
mod messages;
mod run;

use std::sync::Arc;

use axum::{
    Json,
    body::Body,
    extract::{Path, State, rejection::PathRejection},
    http::{HeaderMap, Uri},
};

pub(crate) use self::run::run;
pub(super) use self::{
    messages::{
        cancel as cancel_messages, create as create_messages, delete as delete_messages,
        list as list_messages, one as one_messages, results,
    },
    run::Inside,
};
use super::{
    ApiError, App,
    check::{missing, value},
    files::{expiry, find, id_in, store},
    json,
    page::{Page, ends},
    params::Parsed,
    record::Record,
    wire::{Entries, batches as wire},
};
use crate::{
    request::InvalidRequest,
    store::{Batch, From, NewBatch, Owner, State as BatchState, Store},
};

/// What lines may ask for.
pub(super) const ENDPOINTS: &[&str] = &[
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/audio/transcriptions",
];
/// How names of batches begin.
const PREFIX: &str = "batch_";
/// How long a batch may take: as it is written, and in seconds.
const WINDOW: (&str, i64) = ("24h", 24 * 3600);
/// Most batches of a page, and how many without a word.
const LISTED: (usize, i64) = (20, 100);
/// Most batches of a tenant that have not ended.
const MOST_OPEN: u64 = 100;
/// Most characters of an entry of `metadata`: of its name, and of its text.
const LONGEST_ENTRY: (usize, usize) = (64, 512);

/// `POST /v1/batches`
pub(super) async fn create(
    State(app): State<Arc<App>>,
    record: Record,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<wire::Batch>, ApiError> {
    let (store, owner) = store(&app, &record)?;
    // Each is written down and looked after: it counts as what its lines are.
    record.admit()?;
    let Parsed { value: request, .. } =
        json::request::<wire::BatchRequest>(&app, &headers, body, |_| false).await?;
    let endpoint = request.endpoint.ok_or_else(|| missing("endpoint"))?;
    let known = ENDPOINTS.iter().find(|known| **known == endpoint);
    let endpoint = *known.ok_or_else(|| value("endpoint", &endpoint, &ENDPOINTS.join(", ")))?;
    let window = request.completion_window.ok_or_else(|| missing("completion_window"))?;
    if window != WINDOW.0 {
        return Err(value("completion_window", &window, "'24h'").into());
    }
    let metadata = request.metadata.map(metadata).transpose()?;
    let output_expires = expiry("output_expires_after", request.output_expires_after)?;
    let input = request.input_file_id.ok_or_else(|| missing("input_file_id"))?;
    let input = find(store, &owner, &input).await?.id;
    let new = NewBatch {
        prefix: PREFIX,
        endpoint: endpoint.to_owned(),
        window,
        metadata,
        output_expires,
        seconds: WINDOW.1,
        total: 0,
        most_open: MOST_OPEN,
    };
    let batch = store.add_batch(&owner, &input, new).await?;
    let batch = batch.ok_or(ApiError::NotFound { what: "File", id: input })?;
    app.wake_batches();
    Ok(Json(told(batch)))
}

fn metadata(Entries(entries): Entries<String, { wire::MOST_METADATA }>) -> Result<String, ApiError> {
    let (name, text) = LONGEST_ENTRY;
    for (entry, value) in &entries {
        let param = || format!("metadata.{}", entry.chars().take(name).collect::<String>());
        for (found, limit) in [(entry.chars().count(), name), (value.chars().count(), text)] {
            if found > limit {
                return Err(InvalidRequest::StringLength { param: param(), found, limit }.into());
            }
        }
    }
    serde_json::to_string(&entries).map_err(|error| ApiError::internal(&error))
}

/// `GET /v1/batches`
pub(super) async fn list(
    State(app): State<Arc<App>>,
    record: Record,
    uri: Uri,
) -> Result<Json<wire::BatchList>, ApiError> {
    let (store, owner) = store(&app, &record)?;
    let Page { limit, after, .. } = Page::parse(uri.query(), LISTED.0, LISTED.1)?;
    let (batches, has_more) =
        page(store, &owner, PREFIX, after.map_or(From::Newest, From::Before), limit).await?;
    let (first_id, last_id) = ends(&batches, |batch| &batch.id);
    let data = batches.into_iter().map(told).collect();
    Ok(Json(wire::BatchList { object: "list", data, first_id, last_id, has_more }))
}

async fn page(
    store: &Store,
    owner: &Owner,
    prefix: &'static str,
    from: From,
    limit: usize,
) -> Result<(Vec<Batch>, bool), ApiError> {
    let id = match &from {
        From::Newest => String::new(),
        From::Before(id) | From::After(id) => id.chars().take(100).collect(),
    };
    store.batches(owner, prefix, from, limit).await?.ok_or(ApiError::NotFound { what: "Batch", id })
}

/// `GET /v1/batches/{id}`
pub(super) async fn one(
    State(app): State<Arc<App>>,
    record: Record,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<wire::Batch>, ApiError> {
    let (store, owner) = store(&app, &record)?;
    Ok(Json(told(of(store, &owner, PREFIX, id_in(id, "Batch")?).await?)))
}

/// A batch of an owner's, of the API that names it so.
async fn of(store: &Store, owner: &Owner, prefix: &str, id: String) -> Result<Batch, ApiError> {
    let found = if id.starts_with(prefix) { store.batch(owner, &id).await? } else { None };
    found.ok_or(ApiError::NotFound { what: "Batch", id })
}

/// `POST /v1/batches/{id}/cancel`
pub(super) async fn cancel(
    State(app): State<Arc<App>>,
    record: Record,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<wire::Batch>, ApiError> {
    let batch = give_up(&app, &record, PREFIX, id_in(id, "Batch")?).await?;
    if batch.state.is_last() && batch.state != BatchState::Cancelled {
        return Err(ApiError::Conflict(format!("Cannot cancel a batch with status '{}'.", batch.state)));
    }
    Ok(Json(told(batch)))
}

/// Cancels a batch if it has not ended.
async fn give_up(app: &App, record: &Record, prefix: &str, id: String) -> Result<Batch, ApiError> {
    let (store, owner) = store(app, record)?;
    of(store, &owner, prefix, id.clone()).await?;
    let batch = store.cancel_batch(&owner, &id).await?;
    app.wake_batches();
    batch.ok_or(ApiError::NotFound { what: "Batch", id })
}

fn told(batch: Batch) -> wire::Batch {
    let Batch { state, counts, tokens, ended, .. } = batch;
    let when = |wanted: BatchState| ended.filter(|_| state == wanted);
    wire::Batch {
        id: batch.id,
        object: "batch",
        endpoint: batch.endpoint,
        errors: batch.problems.and_then(|problems| serde_json::from_str(&problems).ok()),
        input_file_id: batch.input,
        completion_window: batch.window,
        status: state.name(),
        output_file_id: batch.output,
        error_file_id: batch.errors,
        created_at: batch.created,
        in_progress_at: batch.began,
        expires_at: batch.expires,
        finalizing_at: batch.finalizing,
        completed_at: when(BatchState::Completed),
        failed_at: when(BatchState::Failed),
        expired_at: when(BatchState::Expired),
        cancelling_at: batch.cancelling,
        cancelled_at: when(BatchState::Cancelled),
        request_counts: wire::RequestCounts {
            total: counts.total,
            completed: counts.succeeded,
            failed: counts.failed,
        },
        usage: wire::BatchUsage {
            input_tokens: tokens.input,
            input_tokens_details: wire::BatchInputDetails { cached_tokens: tokens.cached },
            output_tokens: tokens.output,
            output_tokens_details: wire::BatchOutputDetails { reasoning_tokens: 0 },
            total_tokens: tokens.input + tokens.output,
        },
        metadata: batch.metadata.and_then(|metadata| serde_json::from_str(&metadata).ok()),
    }
}
