//! `/v1/files`, of both APIs.

use std::{fs, sync::Arc};

use axum::{
    Json,
    body::Body,
    extract::{Path, State, rejection::PathRejection},
    http::{
        HeaderMap, HeaderValue, Uri,
        header::{CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_TYPE},
    },
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use futures_util::TryStreamExt as _;
use jiff::Timestamp;

use super::{
    ApiError, App,
    check::{integer, missing, unsupported, value},
    error::is_anthropic,
    form::{Fields, Form, split},
    page::{CURSOR, Page, ends},
    params::Parsed,
    record::Record,
    wire::{
        Object,
        batches::ExpiresAfter,
        files::{
            FileDeleted, FileList, FileMetadata, FileMetadataDeleted, FileMetadataList, FileObject,
            FileRequest,
        },
    },
};
use crate::{
    request::InvalidRequest,
    store::{File, Listing, NewFile, Owner, Removed, Store, StoreError},
};

/// What files may be for.
const PURPOSES: &[&str] = &["assistants", "batch", "evals", "fine-tune", "user_data", "vision"];
/// Most files of a page.
const MOST_LISTED: i64 = 10_000;
/// The same of the Anthropic API, and how many without a word.
const ANTHROPIC_LISTED: (usize, i64) = (20, 1_000);
/// Most characters of a file's name that are kept.
const LONGEST_NAME: usize = 500;
/// Fewest and most seconds that a file is kept, where that is said.
const KEPT_SECONDS: (i64, i64) = (3_600, 2_592_000);

/// The same for clients of the Anthropic API.
const ANTHROPIC_SECONDS: (i64, i64) = (3_600, 7_776_000);

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Full { used, limit } => Self::StoreFull { used, limit },
            StoreError::TooManyBatches { limit } => Self::TooManyBatches { limit },
            error => Self::internal(&error),
        }
    }
}

/// The store, and whose part of it a request may see.
pub(super) fn store<'a>(app: &'a App, record: &Record) -> Result<(&'a Store, Owner), ApiError> {
    Ok((app.store().ok_or(ApiError::NoStore)?, owner(record)))
}

/// For whom a request's files are.
pub(super) fn owner(record: &Record) -> Owner {
    match record.caller() {
        Some(caller) => Owner { tenant: Some(caller.tenant), key: Some(caller.key) },
        None => Owner { tenant: None, key: None },
    }
}

/// The id in a path, where it can be one of ours.
pub(super) fn id_in(
    path: Result<Path<String>, PathRejection>,
    what: &'static str,
) -> Result<String, ApiError> {
    // No id of ours is anything but text.
    let id = path.map_or_else(|_| String::new(), |Path(id)| id);
    if is_id(&id) { Ok(id) } else { Err(ApiError::NotFound { what, id: id.chars().take(100).collect() }) }
}

/// Whether a text can be an id of ours: words, digits, one hyphen or underscore.
pub(super) fn is_id(text: &str) -> bool {
    let name = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric());
    text.len() <= 64 && text.split_once(['-', '_']).is_some_and(|(kind, rest)| name(kind) && name(rest))
}

/// When something goes that is kept for a while from `created` on.
pub(super) fn expiry(
    param: &str,
    after: Option<Object<ExpiresAfter>>,
) -> Result<Option<i64>, InvalidRequest> {
    let Some(Object(ExpiresAfter { anchor, seconds })) = after else { return Ok(None) };
    match anchor.as_deref() {
        Some("created_at") => {}
        Some(other) => return Err(value(&format!("{param}.anchor"), other, "'created_at'")),
        None => return Err(missing(&format!("{param}.anchor"))),
    }
    let path = format!("{param}.seconds");
    let seconds = seconds.ok_or_else(|| missing(&path))?;
    integer(&path, seconds, KEPT_SECONDS.0, KEPT_SECONDS.1).map(Some)
}

/// `POST /v1/files`
pub(super) async fn create(
    State(app): State<Arc<App>>,
    record: Record,
    headers: HeaderMap,
    uri: Uri,
    body: Body,
) -> Result<Response, ApiError> {
    let (store, owner) = store(&app, &record)?;
    let anthropic = is_anthropic(uri.path(), &headers);
    let _upload = app.upload()?;
    let mut form = Form::open(&headers, body, app.config.file_bytes)?;
    let received = match Received::read(&mut form).await {
        Ok(received) => received,
        Err(error) => {
            form.discard();
            return Err(error);
        }
    };
    let Received { fields, file, name, mime } = received;
    let Parsed { value: request, ignored } = fields.read::<FileRequest>(&[])?;
    ignored.check(app.config.strict)?;
    let file = file.ok_or_else(|| missing("file"))?;
    let purpose = match request.purpose {
        Some(purpose) if PURPOSES.contains(&purpose.as_str()) => purpose,
        Some(other) => return Err(value("purpose", &other, &PURPOSES.join(", ")).into()),
        None if anthropic => "user_data".to_owned(),
        None => return Err(missing("purpose").into()),
    };
    let after = match (expiry("expires_after", request.expires_after)?, request.expires_in_seconds) {
        (Some(_), Some(_)) => {
            return Err(unsupported("expires_in_seconds", "'expires_after' says it already").into());
        }
        (None, Some(seconds)) => {
            let (least, most) = ANTHROPIC_SECONDS;
            Some(integer("expires_in_seconds", seconds, least, most)?)
        }
        (after, None) => after,
    };
    let new = NewFile {
        prefix: if anthropic { "file_" } else { "file-" },
        purpose,
        name,
        mime,
        expires: after.map(|seconds| crate::store::now().saturating_add(seconds)),
        hidden: false,
        room: room(&record),
    };
    let kept = store.add_file(&owner, new, file).await?;
    let response = told(kept, anthropic);
    Ok(ignored.with(response))
}

/// Most bytes that all files of the tenant may have.
pub(super) fn room(record: &Record) -> Option<u64> {
    record.caller().and_then(|caller| caller.terms.file_bytes).map(u64::from)
}

/// What a form had.
struct Received {
    fields: Fields,
    file: Option<fs::File>,
    name: String,
    mime: String,
}

impl Received {
    async fn read(form: &mut Form) -> Result<Self, ApiError> {
        let mut received =
            Self { fields: Fields::default(), file: None, name: String::new(), mime: String::new() };
        while let Some(name) = form.part().await? {
            let (field, _) = split(&name);
            if field == "file" {
                if received.file.is_some() {
                    return Err(InvalidRequest::Repeated { param: "file".into() }.into());
                }
                received.name = displayed(form.filename().unwrap_or("upload"));
                received.mime = form.mime().unwrap_or("application/octet-stream").chars().take(200).collect();
                received.file = Some(form.file().await?);
                continue;
            }
            let text = form.text(&name).await?;
            received.fields.push(&name, text);
        }
        Ok(received)
    }
}

/// A client's name for a file: for display only, and without what could be taken for something else.
fn displayed(name: &str) -> String {
    name.chars().filter(|char| !char.is_control()).take(LONGEST_NAME).collect()
}

/// `GET /v1/files`
pub(super) async fn list(
    State(app): State<Arc<App>>,
    record: Record,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, ApiError> {
    let (store, owner) = store(&app, &record)?;
    let anthropic = is_anthropic(uri.path(), &headers);
    let (usual, most) = if anthropic { ANTHROPIC_LISTED } else { (MOST_LISTED as usize, MOST_LISTED) };
    let Page { limit, after, before, ascending, purpose, ids, .. } = Page::parse(uri.query(), usual, most)?;
    if let Some(ids) = ids.filter(|_| anthropic) {
        let mut data = Vec::new();
        for id in ids.iter().filter(|id| is_id(id)) {
            data.extend(store.file(&owner, id, false).await?.map(metadata));
        }
        let (first_id, last_id) = ends(&data, |file| &file.id);
        let list = FileMetadataList { data, first_id, last_id, has_more: false, next_page: None };
        return Ok(Json(list).into_response());
    }
    let backwards = before.is_some();
    let listing =
        Listing { purpose, ascending: ascending != backwards, after: before.or(after.clone()), limit };
    let found = store.files(&owner, listing).await?;
    let (mut files, has_more) = found.ok_or_else(|| ApiError::NotFound {
        what: "File",
        id: after.unwrap_or_default().chars().take(100).collect(),
    })?;
    if backwards {
        files.reverse();
    }
    let (first_id, last_id) = ends(&files, |file| &file.id);
    Ok(if anthropic {
        let data = files.into_iter().map(metadata).collect();
        let next = last_id.as_ref().filter(|_| has_more && !backwards);
        let next_page = next.map(|id| format!("{CURSOR}{id}"));
        Json(FileMetadataList { data, first_id, last_id, has_more, next_page }).into_response()
    } else {
        let data = files.into_iter().map(object).collect();
        Json(FileList { object: "list", data, first_id, last_id, has_more }).into_response()
    })
}

/// `GET /v1/files/{id}`
pub(super) async fn one(
    State(app): State<Arc<App>>,
    record: Record,
    headers: HeaderMap,
    uri: Uri,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let (store, owner) = store(&app, &record)?;
    let file = find(store, &owner, &id_in(id, "File")?).await?;
    Ok(told(file, is_anthropic(uri.path(), &headers)))
}

/// A file that its owner can see.
pub(super) async fn find(store: &Store, owner: &Owner, id: &str) -> Result<File, ApiError> {
    let found = if is_id(id) { store.file(owner, id, false).await? } else { None };
    found.ok_or_else(|| ApiError::NotFound { what: "File", id: id.chars().take(100).collect() })
}

/// The content of a file that a request names by its id in the field `param`.
pub(super) async fn read(
    app: &App,
    record: &Record,
    param: &str,
    id: &str,
    limit: usize,
) -> Result<Vec<u8>, ApiError> {
    let Some(store) = app.store() else {
        let reason = "this server keeps no files (it was started without --files); send the file itself";
        return Err(unsupported(param, reason).into());
    };
    let file = find(store, &owner(record), id).await?;
    if file.bytes > limit as u64 {
        return Err(
            value(param, &format!("a file of {} bytes", file.bytes), &format!("{limit} bytes")).into()
        );
    }
    let pieces: Vec<Bytes> =
        store.content(&file.id, None).await?.try_collect().await.map_err(StoreError::Io)?;
    Ok(pieces.concat())
}

/// `GET /v1/files/{id}/content`
pub(super) async fn content(
    State(app): State<Arc<App>>,
    record: Record,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let (store, owner) = store(&app, &record)?;
    let file = find(store, &owner, &id_in(id, "File")?).await?;
    let content = store.content(&file.id, None).await?;
    let mut response = Response::new(Body::from_stream(content));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(file.bytes));
    // Whatever it is, no browser shows it as a page of this server's.
    let name = form_urlencoded::byte_serialize(file.name.as_bytes()).collect::<String>().replace('+', "%20");
    let disposition = HeaderValue::try_from(format!("attachment; filename*=UTF-8''{name}"));
    headers
        .insert(CONTENT_DISPOSITION, disposition.unwrap_or_else(|_| HeaderValue::from_static("attachment")));
    Ok(response)
}

/// `DELETE /v1/files/{id}`
pub(super) async fn delete(
    State(app): State<Arc<App>>,
    record: Record,
    headers: HeaderMap,
    uri: Uri,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let (store, owner) = store(&app, &record)?;
    let id = id_in(id, "File")?;
    match store.remove_file(&owner, &id).await? {
        Removed::Yes if is_anthropic(uri.path(), &headers) => {
            Ok(Json(FileMetadataDeleted { id, kind: "file_deleted" }).into_response())
        }
        Removed::Yes => Ok(Json(FileDeleted { id, object: "file", deleted: true }).into_response()),
        Removed::NotThere => Err(ApiError::NotFound { what: "File", id }),
        Removed::Needed { batch } => Err(ApiError::Conflict(format!(
            "The file {id} is the input of {batch}, which has not ended. Cancel that, or wait for its end."
        ))),
    }
}

fn told(file: File, anthropic: bool) -> Response {
    if anthropic { Json(metadata(file)).into_response() } else { Json(object(file)).into_response() }
}

fn object(file: File) -> FileObject {
    FileObject {
        id: file.id,
        object: "file",
        bytes: file.bytes,
        created_at: file.created,
        expires_at: file.expires,
        filename: file.name,
        purpose: file.purpose,
        status: "processed",
        status_details: None,
    }
}

fn metadata(file: File) -> FileMetadata {
    FileMetadata {
        id: file.id,
        kind: "file",
        filename: file.name,
        mime_type: file.mime,
        size_bytes: file.bytes,
        created_at: rfc3339(file.created),
        expires_at: file.expires.map(rfc3339),
        downloadable: true,
    }
}

/// A time as the Anthropic API writes it.
pub(super) fn rfc3339(seconds: i64) -> String {
    Timestamp::from_second(seconds).unwrap_or_default().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_words_with_digits() {
        for id in ["file-0a1b", "batch_09", "msgbatch_x"] {
            assert!(is_id(id), "{id}");
        }
        let long = format!("file-{}", "a".repeat(100));
        for no in ["", "file", "file-", "-a", "file-a/b", "file-..", "file-a.b", "file-\0", "a-b-c", &long] {
            assert!(!is_id(no), "{no}");
        }
    }

    #[test]
    fn names_are_shown_without_control_characters() {
        assert_eq!(displayed("../a\r\nb\0.txt"), "../ab.txt");
        assert_eq!(displayed(&"x".repeat(1000)).len(), LONGEST_NAME);
    }
}
