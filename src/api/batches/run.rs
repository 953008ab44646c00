//! Answers the lines of batches: each as if a client had sent it, behind everything that a client sends. A line has its
//! outcome when that is in the store; until then it is answered again after a restart.

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
    vec,
};

use axum::{
    Router as Routes,
    body::{Body, Bytes, to_bytes},
    http::{HeaderValue, Method, Request, Response, StatusCode, header::CONTENT_TYPE},
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

use super::{
    answer::{Answer, unanswered},
    gate::{Gate, Gates, Turn},
    lines::{self, Allowed, Unusable},
    messages,
    wire::{InputLine, Problem, Problems, Streamed},
};
use crate::{
    access::{Access, Caller},
    api::{App, routes},
    store::{Batch, Ended, Line, LineState, NewFile, Place, State, Store, StoreError, Written, now},
};

/// How often it is looked for batches and for files whose time has come, whether anyone says so or not.
const LOOK: Duration = Duration::from_secs(30);
/// How long it is waited after a failure of the store.
const PAUSE: Duration = Duration::from_secs(5);
/// Longest wait until the store is tried again for a line.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How often a line is tried whose answer was a failure of ours, or that is not there.
const MOST_TRIES: u32 = 3;
/// Batches whose lines are looked at at once: each takes the memory of all its lines' names.
const VALIDATED_AT_ONCE: usize = 2;
/// Lines that are looked up at once.
const PAGE: usize = 200;
/// Most bytes of an answer.
const MOST_ANSWER: usize = 256 << 20;
/// Bytes of a line around its body.
const AROUND: usize = 64 << 10;

/// A request that comes from inside: an extension that no client can set.
#[derive(Debug, Clone)]
pub(in crate::api) struct Inside {
    /// For whom.
    pub(in crate::api) caller: Option<Caller>,
    /// Whether it was refused for now, and will be repeated: known before its answer ends.
    pub(in crate::api) repeated: Arc<AtomicBool>,
}

/// Does all batches there are and will be, until it is dropped.
pub(crate) async fn run(app: Arc<App>) {
    let Some(kept) = &app.kept else { return };
    let mut changed = kept.changed.subscribe();
    let runner = Arc::new(Runner {
        routes: routes(Arc::clone(&app)),
        store: kept.store.clone(),
        places: Semaphore::new(app.config.batch_lines),
        validating: Semaphore::new(VALIDATED_AT_ONCE),
        gates: Gates::default(),
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
    /// Batches whose lines are looked at at once.
    validating: Semaphore,
    gates: Gates,
}

/// Lines of a batch that are still to be begun: a page of them, and whether there are more.
struct Waiting {
    page: vec::IntoIter<Line>,
    behind: i64,
    more: bool,
}

/// What became of a try to answer a line.
enum Tried {
    /// It has its answer.
    Answered(Answer),
    /// It is to be tried again, after a while.
    Again(Duration),
}

/// How often a line was tried.
#[derive(Default)]
struct Tries {
    /// Where it waits, once it is known what it asks for.
    gate: Option<Arc<Gate>>,
    /// Tries that failed by our fault.
    failed: u32,
    /// Tries for which it could not be read.
    unread: u32,
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
            State::Validating => {
                // It is never closed.
                let Ok(_turn) = self.validating.acquire().await else { return Ok(false) };
                // It may have been cancelled while it waited.
                if self.app.is_stopping() || self.state(number).await? != Some(State::Validating) {
                    return Ok(!self.app.is_stopping());
                }
                self.validate(&batch).await?;
            }
            State::InProgress if self.app.models().is_err() && now() < batch.expires => {
                // Each of its lines would be refused until there are models.
                tokio::select! {
                    changed = changed.changed() => if changed.is_err() { return Ok(false) },
                    () = sleep(LOOK) => {}
                }
            }
            State::InProgress => match self.lines(&batch, changed).await {
                End::Done | End::Over => self.finish(&batch).await?,
                End::Stopping => return Ok(false),
            },
            State::Cancelling | State::Finalizing => self.finish(&batch).await?,
            State::Failed | State::Completed | State::Expired | State::Cancelled => return Ok(false),
        }
        Ok(!self.app.is_stopping())
    }

    /// What becomes of a batch, if it is still there.
    async fn state(&self, number: i64) -> Result<Option<State>, StoreError> {
        Ok(self.store.batch_number(number).await?.map(|batch| batch.state))
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
        let content = match self.store.content(&input.id, None).await {
            Err(error) if error.is_lost() => {
                return fail(vec![of_file("file_not_found", "The file's content is lost.".into())]).await;
            }
            content => content?,
        };
        match lines::read(content, allowed).await {
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

    /// Answers lines until none is left or the batch is over. A failure of the store holds it up, and takes no answer
    /// with it that is on its way: it was computed, and would be computed again.
    async fn lines(&self, batch: &Batch, changed: &mut watch::Receiver<()>) -> End {
        let left = Duration::from_secs(batch.expires.saturating_sub(now()).max(0).cast_unsigned());
        if left.is_zero() {
            return End::Over;
        }
        let mut waiting = Waiting { page: Vec::new().into_iter(), behind: -1, more: true };
        let mut answering = FuturesUnordered::new();
        let expired = sleep_until(Instant::now() + left);
        tokio::pin!(expired);
        let mut look = false;
        loop {
            let stopping = self.app.is_stopping();
            let mut failed = false;
            if look {
                match self.state(batch.number).await {
                    Ok(Some(State::InProgress)) => look = false,
                    Ok(_) => return End::Over,
                    Err(error) => failed = self.waits(batch, &error),
                }
            }
            while answering.len() < self.app.config.batch_lines && !stopping && !failed {
                match self.next(batch, &mut waiting).await {
                    Ok(Some(line)) => answering.push(self.line(batch, line)),
                    Ok(None) => break,
                    Err(error) => failed = self.waits(batch, &error),
                }
            }
            if answering.is_empty() && !failed {
                return if stopping { End::Stopping } else { End::Done };
            }
            tokio::select! {
                Some(()) = answering.next() => {}
                () = sleep(PAUSE), if failed => {}
                () = &mut expired => return End::Over,
                changed = changed.changed() => {
                    if changed.is_err() {
                        return End::Over;
                    }
                    look = true;
                }
            }
        }
    }

    /// Tells that a batch waits for its store.
    fn waits(&self, batch: &Batch, error: &StoreError) -> bool {
        warn!(batch = batch.number, %error, "a batch waits for its store");
        true
    }

    /// The next line to begin.
    async fn next(&self, batch: &Batch, waiting: &mut Waiting) -> Result<Option<Line>, StoreError> {
        if waiting.page.len() == 0 && waiting.more {
            let page = self.store.pending(batch.number, waiting.behind, PAGE).await?;
            waiting.more = page.len() == PAGE;
            waiting.behind = page.last().map_or(waiting.behind, |line| line.number);
            waiting.page = page.into_iter();
        }
        Ok(waiting.page.next())
    }

    /// Answers a line and notes what comes of it; does nothing where the program ends before.
    async fn line(&self, batch: &Batch, line: Line) {
        let mut tries = Tries::default();
        loop {
            let turn = match &tries.gate {
                Some(gate) => gate.pass().await,
                None => None,
            };
            // The place comes first, and is kept until the outcome is noted: what is read and answered is in memory.
            let Ok(place) = self.places.acquire().await else { return };
            if self.app.is_stopping() {
                return;
            }
            let wait = match self.attempt(batch, &line, &mut tries, turn).await {
                Tried::Answered(answer) => return self.note(batch, &line, answer).await,
                Tried::Again(wait) => wait,
            };
            drop(place);
            sleep(wait).await;
        }
    }

    /// Tries to answer a line; with a turn, where its gate is closed.
    async fn attempt(&self, batch: &Batch, line: &Line, tries: &mut Tries, turn: Option<Turn>) -> Tried {
        let body = match self.body(batch, line).await {
            Ok(Some(body)) => body,
            Ok(None) => return Tried::Answered(Answer::streamed(batch)),
            Err(error) => {
                tries.unread += 1;
                warn!(batch = batch.number, line = line.number, %error, "a line cannot be read");
                if error.is_lost() && tries.unread >= MOST_TRIES {
                    return Tried::Answered(Answer::lost(batch));
                }
                return Tried::Again(pause(tries.unread));
            }
        };
        let gate = tries.gate.get_or_insert_with(|| self.gate(batch, &body));
        if turn.is_none() && gate.is_closed() {
            return Tried::Again(Duration::ZERO);
        }
        let answer = match self.ask(batch, body).await {
            Tried::Answered(answer) => answer,
            Tried::Again(wait) => {
                gate.refuse(turn, wait);
                return Tried::Again(Duration::ZERO);
            }
        };
        if let Some(turn) = turn {
            turn.succeed();
        }
        if answer.status.is_server_error() {
            tries.failed += 1;
            if tries.failed < MOST_TRIES {
                return Tried::Again(pause(1));
            }
        }
        Tried::Answered(answer)
    }

    /// Where a request waits when it is refused.
    fn gate(&self, batch: &Batch, body: &Bytes) -> Arc<Gate> {
        #[derive(serde::Deserialize)]
        struct Named {
            model: Option<String>,
        }
        let name = serde_json::from_slice::<Named>(body).ok().and_then(|named| named.model);
        let served = name.and_then(|name| self.app.models().ok()?.find(&name).cloned());
        self.gates.of(batch.owner.tenant.as_deref(), served.as_ref().map_or("", |served| served.id.as_str()))
    }

    /// Notes an answer. It is held until the store takes it.
    async fn note(&self, batch: &Batch, line: &Line, answer: Answer) {
        let outcome = answer.outcome(batch, line);
        drop(answer);
        let mut failures = 0;
        while let Err(error) = self.store.finish_line(batch.number, line.number, outcome.clone()).await {
            failures += 1;
            warn!(batch = batch.number, line = line.number, %error, "an answer waits for the store");
            sleep(pause(failures)).await;
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
            let text = format!("a line is not what it was: {error}");
            StoreError::Io(io::Error::new(io::ErrorKind::InvalidData, text))
        };
        let line: InputLine<'_> = serde_json::from_slice(&bytes).map_err(broken)?;
        let body = line.body.map_or("{}", RawValue::get);
        let streamed = Streamed::is_asked(body);
        Ok((!streamed).then(|| Bytes::copy_from_slice(body.as_bytes())))
    }

    /// Sends a request through all that a client's goes through.
    async fn ask(&self, batch: &Batch, body: Bytes) -> Tried {
        let access = self.app.operations().access.as_ref();
        let caller = access.and_then(|access| caller(access, batch));
        let mut request = Request::new(Body::from(body));
        *request.method_mut() = Method::POST;
        if let Ok(uri) = batch.endpoint.parse() {
            *request.uri_mut() = uri;
        }
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let inside = Inside { caller, repeated: Arc::default() };
        request.extensions_mut().insert(inside.clone());
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
        let wait = Answer::wait(parts.status, &parts.headers);
        // Before its body ends, and with it the request.
        inside.repeated.store(wait.is_some(), Relaxed);
        let body = to_bytes(body, MOST_ANSWER).await.unwrap_or_default();
        match wait {
            Some(wait) => Tried::Again(wait),
            None => Tried::Answered(Answer { status: parts.status, headers: parts.headers, body }),
        }
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

/// How long it is waited after so many failures: longer each time.
fn pause(failures: u32) -> Duration {
    Duration::from_secs(1 << failures.saturating_sub(1).min(5)).min(LONGEST_PAUSE)
}

/// For whom a batch is done, as its tenant's terms are now. A key that is gone takes nothing with it: the tenant counts.
fn caller(access: &Access, batch: &Batch) -> Option<Caller> {
    access.tenant(batch.owner.tenant.as_deref()?, batch.owner.key.as_deref().unwrap_or(""))
}
