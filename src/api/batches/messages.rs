//! `/v1/messages/batches`: the same in the shapes of the Anthropic API. Requests and results are files that are not
//! listed.

use std::{
    collections::HashSet,
    io::{BufWriter, Seek as _, SeekFrom, Write as _},
    sync::Arc,
};

use axum::{
    Json,
    body::Body,
    extract::{Path, State, rejection::PathRejection},
    http::{HeaderMap, HeaderValue, Uri, header::CONTENT_TYPE},
    response::Response,
};

use super::{
    ApiError, App, MOST_OPEN, Page, Parsed, Record, WINDOW, ends, give_up, id_in, json as body_of, of, page,
    store,
    wire::{self, MessageBatch, Problems, Streamed},
};
use crate::{
    api::{
        check::{missing, unsupported, value},
        files::{rfc3339, room},
        wire::{Items, Object},
    },
    request::InvalidRequest,
    store::{Batch, From, NewBatch, NewFile, State as BatchState},
};

/// How names of these batches begin.
pub(super) const PREFIX: &str = "msgbatch_";
/// What their requests ask for.
pub(super) const ENDPOINT: &str = "/v1/messages";
/// How long results are kept, in seconds: 29 days.
pub(super) const KEPT: i64 = 29 * 24 * 3600;
/// Most batches of a page, and how many without a word.
const LISTED: (usize, i64) = (20, 1000);
/// Most characters of a request's name.
const LONGEST_ID: usize = 64;

/// `POST /v1/messages/batches`
pub(in crate::api) async fn create(
    State(app): State<Arc<App>>,
    record: Record,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<MessageBatch>, ApiError> {
    let (store, owner) = store(&app, &record)?;
    record.admit()?;
    let Parsed { value: request, .. } =
        body_of::request::<wire::MessageBatchRequest>(&app, &headers, body, |_| false).await?;
    let Items(requests) = request.requests.ok_or_else(|| missing("requests"))?;
    if requests.is_empty() {
        return Err(InvalidRequest::EmptyArray { param: "requests".into() }.into());
    }
    let total = requests.len();
    let file = tokio::task::spawn_blocking(move || lines(requests));
    let file = file.await.map_err(|error| ApiError::internal(&error))??;
    let input = NewFile {
        prefix: "file_",
        purpose: "batch".into(),
        name: "requests.jsonl".into(),
        mime: "application/jsonl".into(),
        expires: None,
        hidden: true,
        room: room(&record),
    };
    let batch = NewBatch {
        prefix: PREFIX,
        endpoint: ENDPOINT.into(),
        window: WINDOW.0.into(),
        metadata: None,
        output_expires: Some(KEPT),
        seconds: WINDOW.1,
        total,
        most_open: MOST_OPEN,
    };
    let batch = store.add_batch_of(&owner, input, file, batch).await?;
    app.wake_batches();
    Ok(Json(told(&batch)))
}

/// The requests as a file of lines, each of them as one of OpenAI's batches has it.
fn lines(requests: Vec<Object<wire::MessageBatchItem>>) -> Result<std::fs::File, ApiError> {
    let failed = |error: std::io::Error| ApiError::internal(&error);
    let mut file = BufWriter::new(tempfile::tempfile().map_err(failed)?);
    let mut names = HashSet::new();
    for (index, Object(wire::MessageBatchItem { custom_id, params })) in requests.into_iter().enumerate() {
        let path = |field: &str| format!("requests[{index}].{field}");
        let custom_id = custom_id.ok_or_else(|| missing(&path("custom_id")))?;
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
        if custom_id.is_empty() || custom_id.len() > LONGEST_ID || !custom_id.bytes().all(plain) {
            let supported = format!("up to {LONGEST_ID} letters, digits, '_' and '-'");
            return Err(value(&path("custom_id"), &custom_id, &supported).into());
        }
        let params = params.ok_or_else(|| missing(&path("params")))?;
        let params = params.get();
        if !params.starts_with('{') {
            return Err(value(&path("params"), "no object", "an object, as /v1/messages takes it").into());
        }
        if Streamed::is_asked(params) {
            return Err(unsupported(&path("params.stream"), "answers of a batch come as a whole").into());
        }
        // As it came, so that it is no longer and no other numbers are in it; but on one line. In texts there is none.
        let params = params.replace(['\n', '\r'], " ");
        if !names.insert(custom_id.clone()) {
            return Err(InvalidRequest::Repeated { param: path("custom_id") }.into());
        }
        writeln!(
            file,
            "{{\"custom_id\":\"{custom_id}\",\"method\":\"POST\",\"url\":\"{ENDPOINT}\",\"body\":{params}}}"
        )
        .map_err(failed)?;
    }
    let mut file = file.into_inner().map_err(|error| failed(error.into_error()))?;
    file.seek(SeekFrom::Start(0)).map_err(failed)?;
    Ok(file)
}

/// `GET /v1/messages/batches`
pub(in crate::api) async fn list(
    State(app): State<Arc<App>>,
    record: Record,
    uri: Uri,
) -> Result<Json<wire::MessageBatchList>, ApiError> {
    let (store, owner) = store(&app, &record)?;
    let Page { limit, after, before, .. } = Page::parse(uri.query(), LISTED.0, LISTED.1)?;
    let from = match (before, after) {
        (Some(id), _) => From::After(id),
        (None, Some(id)) => From::Before(id),
        (None, None) => From::Newest,
    };
    let (batches, has_more) = page(store, &owner, PREFIX, from, limit).await?;
    let (first_id, last_id) = ends(&batches, |batch| &batch.id);
    Ok(Json(wire::MessageBatchList { data: batches.iter().map(told).collect(), first_id, last_id, has_more }))
}

/// `GET /v1/messages/batches/{id}`
pub(in crate::api) async fn one(
    State(app): State<Arc<App>>,
    record: Record,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<MessageBatch>, ApiError> {
    let (store, owner) = store(&app, &record)?;
    Ok(Json(told(&of(store, &owner, PREFIX, id_in(id, "Batch")?).await?)))
}

/// `POST /v1/messages/batches/{id}/cancel`
pub(in crate::api) async fn cancel(
    State(app): State<Arc<App>>,
    record: Record,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<MessageBatch>, ApiError> {
    Ok(Json(told(&give_up(&app, &record, PREFIX, id_in(id, "Batch")?).await?)))
}

/// `DELETE /v1/messages/batches/{id}`
pub(in crate::api) async fn delete(
    State(app): State<Arc<App>>,
    record: Record,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<wire::MessageBatchDeleted>, ApiError> {
    let (store, owner) = store(&app, &record)?;
    let batch = of(store, &owner, PREFIX, id_in(id, "Batch")?).await?;
    if !batch.state.is_last() {
        return Err(ApiError::Conflict(format!(
            "The batch {} has not ended. Cancel it first, or wait for its end.",
            batch.id
        )));
    }
    store.remove_batch(&owner, &batch.id).await?;
    Ok(Json(wire::MessageBatchDeleted { id: batch.id, kind: "message_batch_deleted" }))
}

/// `GET /v1/messages/batches/{id}/results`
pub(in crate::api) async fn results(
    State(app): State<Arc<App>>,
    record: Record,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let (store, owner) = store(&app, &record)?;
    let batch = of(store, &owner, PREFIX, id_in(id, "Batch")?).await?;
    if batch.state == BatchState::Failed {
        return Err(ApiError::Conflict(failure(&batch)));
    }
    let Some(output) = batch.output.filter(|_| batch.state.is_last()) else {
        return Err(ApiError::NotFound { what: "Results of batch", id: batch.id });
    };
    if store.file(&owner, &output, true).await?.is_none() {
        return Err(ApiError::NotFound { what: "Results of batch", id: batch.id });
    }
    let mut response = Response::new(Body::from_stream(store.content(&output, None).await?));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-jsonl"));
    Ok(response)
}

/// Why a batch failed. This API has no field for it: who asks for its results is told.
fn failure(batch: &Batch) -> String {
    let problems = batch.problems.as_deref().and_then(|text| serde_json::from_str::<Problems>(text).ok());
    let problem = problems.and_then(|problems| problems.data.into_iter().next());
    let why = match problem.map(|problem| (problem.line, problem.message)) {
        Some((Some(line), message)) => format!("request {line}: {message}"),
        Some((None, message)) => message,
        None => "Its requests could not be used.".to_owned(),
    };
    format!("The batch {} failed, and has no results. {why}", batch.id)
}

fn told(batch: &Batch) -> MessageBatch {
    let counts = batch.counts;
    let ended = batch.state.is_last();
    MessageBatch {
        id: batch.id.clone(),
        kind: "message_batch",
        processing_status: match batch.state {
            BatchState::Cancelling => "canceling",
            _ if ended => "ended",
            _ => "in_progress",
        },
        request_counts: if ended {
            wire::MessageBatchCounts {
                processing: 0,
                succeeded: counts.succeeded,
                errored: counts.failed,
                canceled: counts.cancelled,
                expired: counts.expired,
            }
        } else {
            wire::MessageBatchCounts { processing: counts.total, ..Default::default() }
        },
        ended_at: batch.ended.map(rfc3339),
        created_at: rfc3339(batch.created),
        expires_at: rfc3339(batch.expires),
        archived_at: None,
        cancel_initiated_at: batch.cancelling.map(rfc3339),
        // A path, not a URL: how clients call this server it does not know, and a header of theirs is not to be trusted.
        results_url: (ended && (batch.output.is_some() || batch.state == BatchState::Failed))
            .then(|| format!("{ENDPOINT}/batches/{}/results", batch.id)),
    }
}
