//! Answers the lines of batches: each as if a client had sent it, behind everything that a client sends. A line has its
//! outcome when that is in the store; until then it is answered again after a restart.

use std::{collections::HashMap, sync::Arc, time::Duration};

use axum::{
    Router as Routes,
    body::{Body, Bytes, to_bytes},
    http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header::CONTENT_TYPE},
};
use futures_util::{FutureExt as _, StreamExt as _, stream::FuturesUnordered};
use serde_json::value::RawValue;
use tokio::{
    sync::{Semaphore, watch},
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep, sleep_until},
};
use tower_service::Service as _;
use tracing::{info, warn};
use uuid::Uuid;

use super::{
    lines::{self, Allowed, Unusable},
    messages,
    wire::{
        InputLine, LineError, LineResponse, LineResult, OutputLine, Problem, Problems, ResultLine, Streamed,
    },
};
use crate::{
    access::{Access, Caller},
    api::{App, routes},
    store::{
        Batch, Ended, Line, LineState, NewFile, Outcome, Place, State, Store, StoreError, Tokens, Written, now,
    },
};

/// How often it is looked for batches and for files whose time has come, whether anyone says so or not.
const LOOK: Duration = Duration::from_secs(30);
/// How long it is waited after a failure of the store.
const PAUSE: Duration = Duration::from_secs(5);
/// Longest wait until a line is tried again.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// How often a line is tried whose answer was a failure of ours.
const MOST_TRIES: usize = 3;
/// Lines that are looked up at once.
const PAGE: usize = 200;
/// Most bytes of an answer.
const MOST_ANSWER: usize = 256 << 20;
/// Bytes of a line around its body.
const AROUND: usize = 64 << 10;

/// A request that comes from inside, for somebody: an extension that no client can set.
#[derive(Debug, Clone)]
pub(in crate::api) struct Inside(pub(in crate::api) Option<Caller>);

/// Does all batches there are and will be, until it is dropped.
pub(crate) async fn run(app: Arc<App>) {
    let Some(kept) = &app.kept else { return };
    let mut changed = kept.changed.subscribe();
    let runner = Arc::new(Runner {
        routes: routes(Arc::clone(&app)),
        store: kept.store.clone(),
        places: Semaphore::new(app.config.batch_lines),
        app: Arc::clone(&app),
    });
    match runner.store.sweep().await {
        Ok(0) => {}
        Ok(count) => info!(count, "contents were removed that nobody knew of"),
        Err(error) => warn!(%error, "contents that nobody knows of cannot be looked up"),
    }
    let mut tasks = JoinSet::new();
    let mut running: HashMap<i64, AbortHandle> = HashMap::new();
    loop {
        changed.mark_unchanged();
        running.retain(|_, task| !task.is_finished());
        while tasks.try_join_next().is_some() {}
        match runner.store.open_batches().await {
            Ok(open) => {
                for number in open {
                    if app.is_stopping() || running.contains_key(&number) {
                        continue;
                    }
                    let (runner, changed) = (Arc::clone(&runner), kept.changed.subscribe());
                    running.insert(number, tasks.spawn(async move { runner.batch(number, changed).await }));
                }
            }
            Err(error) => warn!(%error, "batches cannot be looked up"),
        }
        match runner.store.expire_files().await {
            Ok(0) => {}
            Ok(count) => info!(count, "files were removed because their time had come"),
            Err(error) => warn!(%error, "files whose time has come cannot be removed"),
        }
        match runner.store.expire_batches().await {
            Ok(0) => {}
            Ok(count) => info!(count, "batches were forgotten that ended long ago"),
            Err(error) => warn!(%error, "batches that ended long ago cannot be forgotten"),
        }
        tokio::select! {
            changed = changed.changed() => if changed.is_err() { return },
            () = sleep(LOOK) => {}
        }
    }
}

struct Runner {
    app: Arc<App>,
    routes: Routes,
    store: Store,
    /// Lines of all batches that are answered at once.
    places: Semaphore,
}

/// Why lines are not answered any further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// All of them are.
    Done,
    /// The batch was cancelled, or its time has run out.
    Over,
    /// The program ends.
    Stopping,
}

impl Runner {
    /// Does a batch, as far as the store lets it.
    async fn batch(&self, number: i64, mut changed: watch::Receiver<()>) {
        loop {
            match self.advance(number, &mut changed).await {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    warn!(batch = number, %error, "a batch waits for its store");
                    sleep(PAUSE).await;
                }
            }
        }
    }

    /// Brings a batch one state further; says whether there is more to do.
    async fn advance(&self, number: i64, changed: &mut watch::Receiver<()>) -> Result<bool, StoreError> {
        let Some(batch) = self.store.batch_number(number).await? else { return Ok(false) };
        match batch.state {
            State::Validating => self.validate(&batch).await?,
            State::InProgress => match self.lines(&batch, changed).await? {
                End::Done | End::Over => self.finish(&batch).await?,
                End::Stopping => return Ok(false),
            },
            State::Cancelling | State::Finalizing => self.finish(&batch).await?,
            State::Failed | State::Completed | State::Expired | State::Cancelled => return Ok(false),
        }
        Ok(!self.app.is_stopping())
    }

    /// Most bytes of a line.
    fn longest(&self) -> usize {
        self.app.config.body_bytes.saturating_add(AROUND)
    }

    async fn validate(&self, batch: &Batch) -> Result<(), StoreError> {
        let of_messages = batch.endpoint == messages::ENDPOINT;
        let input = self.store.file(&batch.owner, &batch.input, true).await?;
        let fail = |problems: Vec<Problem>| {
            let problems = Problems { object: "list".to_owned(), data: problems };
            let problems = serde_json::to_string(&problems).unwrap_or_default();
            self.store.fail_batch(batch.number, problems)
        };
        let of_file = |code: &str, message: String| Problem {
            code: code.to_owned(),
            message,
            line: None,
            param: Some("input_file_id".to_owned()),
        };
        let Some(input) = input else {
            return fail(vec![of_file("file_not_found", "The file is not there any more.".into())]).await;
        };
        if !of_messages && input.bytes > lines::MOST_BYTES {
            let message = format!("The file has more than {} bytes.", lines::MOST_BYTES);
            return fail(vec![of_file("file_too_large", message)]).await;
        }
        let allowed = Allowed {
            endpoint: &batch.endpoint,
            lines: if of_messages { usize::MAX } else { lines::MOST_LINES },
            bytes: self.longest(),
        };
        match lines::read(self.store.content(&input.id, None).await?, allowed).await {
            Ok(lines) => {
                let count = lines.len();
                self.store.begin_batch(batch.number, lines).await?;
                info!(batch = batch.id, lines = count, endpoint = batch.endpoint, "a batch begins");
                Ok(())
            }
            Err(Unusable::Wrong(problems)) => {
                info!(batch = batch.id, problems = problems.len(), "a batch has lines that cannot be used");
                fail(problems).await
            }
            Err(Unusable::Unread(error)) => Err(error.into()),
        }
    }

    /// Answers lines until none is left or the batch is over.
    async fn lines(&self, batch: &Batch, changed: &mut watch::Receiver<()>) -> Result<End, StoreError> {
        let most = self.app.config.batch_lines;
        let mut waiting = Vec::new().into_iter();
        let (mut behind, mut more) = (-1, true);
        let mut answering = FuturesUnordered::new();
        let left = Duration::from_secs(batch.expires.saturating_sub(now()).max(0).cast_unsigned());
        let expired = sleep_until(Instant::now() + left);
        tokio::pin!(expired);
        loop {
            let stopping = self.app.is_stopping();
            while answering.len() < most && !stopping {
                if waiting.len() == 0 && more {
                    let page = self.store.pending(batch.number, behind, PAGE).await?;
                    more = page.len() == PAGE;
                    behind = page.last().map_or(behind, |line| line.number);
                    waiting = page.into_iter();
                }
                let Some(line) = waiting.next() else { break };
                answering.push(self.line(batch, line));
            }
            if answering.is_empty() {
                return Ok(if stopping { End::Stopping } else { End::Done });
            }
            tokio::select! {
                answered = answering.next() => if let Some(answered) = answered { answered? },
                () = &mut expired => return Ok(End::Over),
                changed = changed.changed() => {
                    let state = self.store.batch_number(batch.number).await?.map(|batch| batch.state);
                    if changed.is_err() || state != Some(State::InProgress) {
                        return Ok(End::Over);
                    }
                }
            }
        }
    }

    /// Answers a line and notes what comes of it; does nothing where the program ends before.
    async fn line(&self, batch: &Batch, line: Line) -> Result<(), StoreError> {
        let Some(answer) = self.answer(batch, &line).await? else { return Ok(()) };
        let state = if answer.status.is_success() { LineState::Succeeded } else { LineState::Failed };
        let outcome = Outcome { state, result: answer.result(batch, &line).into(), tokens: answer.tokens() };
        self.store.finish_line(batch.number, line.number, outcome).await
    }

    async fn answer(&self, batch: &Batch, line: &Line) -> Result<Option<Answer>, StoreError> {
        let Some(body) = self.body(batch, line).await? else { return Ok(Some(Answer::streamed(batch))) };
        let mut failures = 0;
        loop {
            let Ok(place) = self.places.acquire().await else { return Ok(None) };
            if self.app.is_stopping() {
                return Ok(None);
            }
            let answer = self.ask(batch, body.clone()).await;
            drop(place);
            let wait = match answer.status.as_u16() {
                _ if answer.is_final() => return Ok(Some(answer)),
                429 | 503 | 529 => answer.retry_after().clamp(Duration::from_millis(100), LONGEST_WAIT),
                500.. => {
                    failures += 1;
                    if failures == MOST_TRIES {
                        return Ok(Some(answer));
                    }
                    Duration::from_secs(1)
                }
                _ => return Ok(Some(answer)),
            };
            sleep(wait).await;
        }
    }

    /// The request of a line; `None` where its answer would come in pieces.
    async fn body(&self, batch: &Batch, line: &Line) -> Result<Option<Bytes>, StoreError> {
        let Place { start, length } = line.place;
        let mut content = self.store.content(&batch.input, Some(start..start + length)).await?;
        let mut bytes = Vec::with_capacity(length as usize);
        while let Some(piece) = content.next().await {
            bytes.extend_from_slice(&piece?);
        }
        let broken = |error: serde_json::Error| {
            StoreError::Io(std::io::Error::other(format!("a line is not what it was: {error}")))
        };
        let line: InputLine<'_> = serde_json::from_slice(&bytes).map_err(broken)?;
        let body = line.body.map_or("{}", RawValue::get);
        let streamed = serde_json::from_str::<Streamed>(body).is_ok_and(|body| body.stream == Some(true));
        Ok((!streamed).then(|| Bytes::copy_from_slice(body.as_bytes())))
    }

    /// Sends a request through all that a client's goes through.
    async fn ask(&self, batch: &Batch, body: Bytes) -> Answer {
        let access = self.app.operations().access.as_ref();
        let caller = access.and_then(|access| caller(access, batch));
        let mut request = Request::new(Body::from(body));
        *request.method_mut() = Method::POST;
        if let Ok(uri) = batch.endpoint.parse() {
            *request.uri_mut() = uri;
        }
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        request.extensions_mut().insert(Inside(caller));
        // What panics must not take the batch with it.
        let asked = std::panic::AssertUnwindSafe(self.routes.clone().call(request)).catch_unwind().await;
        let (parts, body) = match asked {
            Ok(Ok(response)) => response.into_parts(),
            _ => Response::builder()
                .status(StatusCode::INTERNAL_SERVER_ERROR)
                .body(Body::empty())
                .unwrap_or_default()
                .into_parts(),
        };
        let body = to_bytes(body, MOST_ANSWER).await.unwrap_or_default();
        Answer { status: parts.status, headers: parts.headers, body }
    }

    /// Writes the output of a batch and ends it.
    async fn finish(&self, batch: &Batch) -> Result<(), StoreError> {
        let of_messages = batch.endpoint == messages::ENDPOINT;
        let names =
            self.store.finalize_batch(batch.number, if of_messages { "file_" } else { "file-" }).await?;
        let (mut output, mut errors) = (None, None);
        let mut behind = -1;
        loop {
            let page = self.store.results(batch.number, behind, PAGE).await?;
            let Some(last) = page.last() else { break };
            behind = last.number;
            for line in page {
                // The results of the Anthropic API are all in one file.
                let (writer, name) = match line.state {
                    LineState::Succeeded => (&mut output, &names.output),
                    _ if of_messages => (&mut output, &names.output),
                    _ => (&mut errors, &names.errors),
                };
                if writer.is_none() {
                    *writer = Some(self.store.write_output(name).await?);
                }
                if let Some(writer) = writer {
                    let text = line.result.clone().unwrap_or_else(|| unanswered(batch, &line));
                    writer.write(text.as_bytes()).await?;
                    writer.write(b"\n").await?;
                }
            }
        }
        let expires = batch.output_expires.map(|seconds| now().saturating_add(seconds));
        let file = |what: &str| NewFile {
            prefix: "",
            purpose: "batch_output".to_owned(),
            name: format!("{}_{what}.jsonl", batch.id),
            mime: "application/jsonl".to_owned(),
            expires,
            hidden: of_messages,
            room: None,
        };
        let mut ended = Ended::default();
        if let Some(writer) = output {
            let bytes = writer.finish().await?;
            ended.output = Some(Written { id: names.output, file: file("output"), bytes });
        }
        if let Some(writer) = errors {
            let bytes = writer.finish().await?;
            ended.errors = Some(Written { id: names.errors, file: file("error"), bytes });
        }
        let Batch { id, state, counts, .. } = self.store.end_batch(batch.number, ended).await?;
        info!(batch = id, %state, succeeded = counts.succeeded, failed = counts.failed, "a batch has ended");
        Ok(())
    }
}

/// For whom a batch is done, as its tenant's terms are now. A key that is gone takes nothing with it: the tenant counts.
fn caller(access: &Access, batch: &Batch) -> Option<Caller> {
    access.tenant(batch.owner.tenant.as_deref()?, batch.owner.key.as_deref().unwrap_or(""))
}

/// An answer to a line.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    /// To a line whose answer would come in pieces.
    fn streamed(batch: &Batch) -> Self {
        let message = "Answers of a batch come as a whole: leave 'stream' out.";
        let error = serde_json::json!({"type": "invalid_request_error", "message": message});
        let body = if batch.endpoint == messages::ENDPOINT {
            serde_json::json!({"type": "error", "error": error})
        } else {
            let code = "unsupported_parameter";
            serde_json::json!({"error": {"message": message, "type": error["type"], "param": "stream", "code": code}})
        };
        let body = body.to_string().into();
        Self { status: StatusCode::BAD_REQUEST, headers: HeaderMap::new(), body }
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// Whether another try is useless, though the status says otherwise.
    fn is_final(&self) -> bool {
        self.header("x-should-retry") == Some("false")
    }

    fn retry_after(&self) -> Duration {
        let milliseconds = self.header("retry-after-ms").and_then(|text| text.parse().ok());
        Duration::from_millis(milliseconds.unwrap_or(1000))
    }

    /// The answer as JSON, which it is unless a recording's was asked for as text.
    fn json(&self) -> Box<RawValue> {
        let text = String::from_utf8_lossy(&self.body);
        let quoted = || RawValue::from_string(serde_json::Value::from(text.as_ref()).to_string());
        let parsed = serde_json::from_str(&text).or_else(|_| quoted());
        parsed.unwrap_or_else(|_| RawValue::NULL.to_owned())
    }

    fn tokens(&self) -> Tokens {
        #[derive(Default, serde::Deserialize)]
        #[serde(default)]
        struct Usage {
            #[serde(alias = "prompt_tokens")]
            input_tokens: u64,
            #[serde(alias = "completion_tokens")]
            output_tokens: u64,
            #[serde(alias = "prompt_tokens_details")]
            input_tokens_details: Details,
            cache_read_input_tokens: u64,
        }
        #[derive(Default, serde::Deserialize)]
        #[serde(default)]
        struct Details {
            cached_tokens: u64,
        }
        #[derive(serde::Deserialize)]
        struct Answered {
            usage: Option<Usage>,
        }
        let answered = serde_json::from_slice::<Answered>(&self.body).ok();
        let usage = answered.and_then(|answered| answered.usage).unwrap_or_default();
        let cached = usage.input_tokens_details.cached_tokens + usage.cache_read_input_tokens;
        Tokens { input: usage.input_tokens, cached, output: usage.output_tokens }
    }

    /// The line of the output that tells it.
    fn result(&self, batch: &Batch, line: &Line) -> String {
        let body = self.json();
        let custom_id = line.custom_id.as_str();
        let told = if batch.endpoint == messages::ENDPOINT {
            let result = if self.status.is_success() {
                LineResult::Succeeded { message: &body }
            } else {
                LineResult::Errored { error: &body }
            };
            serde_json::to_string(&ResultLine { custom_id, result })
        } else {
            let response = LineResponse {
                status_code: self.status.as_u16(),
                request_id: self.header("x-request-id").unwrap_or(""),
                body: &body,
            };
            serde_json::to_string(&OutputLine {
                id: line_id(),
                custom_id,
                response: Some(response),
                error: None,
            })
        };
        told.unwrap_or_default()
    }
}

/// The line of the output for one that has no answer.
fn unanswered(batch: &Batch, line: &Line) -> String {
    let custom_id = line.custom_id.as_str();
    let told = if batch.endpoint == messages::ENDPOINT {
        let result =
            if line.state == LineState::Cancelled { LineResult::Canceled } else { LineResult::Expired };
        serde_json::to_string(&ResultLine { custom_id, result })
    } else {
        let error = if line.state == LineState::Cancelled {
            LineError {
                code: "batch_cancelled",
                message: "This request was not executed: the batch was cancelled.",
            }
        } else {
            LineError {
                code: "batch_expired",
                message: "This request could not be executed before the completion window expired.",
            }
        };
        serde_json::to_string(&OutputLine { id: line_id(), custom_id, response: None, error: Some(error) })
    };
    told.unwrap_or_default()
}

fn line_id() -> String {
    format!("batch_req_{}", Uuid::new_v4().simple())
}
