//! What is known of a request while it is answered, and told when its answer has ended: to figures, to its tenant's meter,
//! to the audit log. It ends with the last byte of the answer, or when the client leaves.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Poll, ready},
    time::{Duration, Instant},
};

use axum::{
    body::{Body, Bytes},
    extract::{FromRequestParts, Request},
    http::{HeaderMap, HeaderValue, StatusCode, request::Parts},
    response::Response,
};
use http_body::{Frame, SizeHint};
use jiff::Timestamp;
use opentelemetry::{Context, propagation::TextMapPropagator as _};
use opentelemetry_http::HeaderExtractor;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use sha2::{Digest as _, Sha256};
use tracing::{debug, info};

use super::{ApiError, App, batches::Inside, error::Class};
use crate::{
    access::{Caller, Rate, hex},
    engine::{Figures, Key, Place, Work},
    operations::{Charged, Entry, MOST_CONTENT, Operations, Outcome, Timing, Used},
    request::Priority,
    router::{Router, Served},
};

/// What openai's libraries may call a request.
const CLIENT_ID: &str = "x-client-request-id";
/// The status that is written down for a client that left before there was one.
const LEFT: u16 = 499;

/// A request. Clones are of the same one.
#[derive(Debug, Clone)]
pub(super) struct Record(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    app: Arc<App>,
    id: String,
    began: Instant,
    time: Timestamp,
    peer: Option<SocketAddr>,
    facts: Mutex<Facts>,
}

/// What becomes known.
#[derive(Debug, Default)]
struct Facts {
    caller: Option<Caller>,
    endpoint: Option<String>,
    routine: bool,
    /// The highest that it may have.
    priority: Priority,
    model: Option<Arc<Served>>,
    work: Option<Work>,
    /// What was computed for it besides, by other engines.
    besides: Vec<Work>,
    images: u64,
    audio_seconds: f64,
    media: Duration,
    /// What the tenant's meter has counted.
    charged: Charged,
}

impl Facts {
    /// What was computed for it. Tokens and times are those of its own engine.
    fn figures(&self) -> Figures {
        let mut figures = self.work.as_ref().map(Work::figures).unwrap_or_default();
        for besides in self.besides.iter().map(Work::figures) {
            figures.prepare += besides.prepare;
            figures.encode += besides.encode;
            figures.compute += besides.compute;
        }
        figures
    }

    /// What that, and its media, come to.
    fn used(&self, operations: &Operations) -> Used {
        operations.used(&self.figures(), self.images, self.audio_seconds)
    }
}

/// The address of a client: an extension of its requests.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer(pub(crate) SocketAddr);

impl Record {
    pub(super) fn new(app: &Arc<App>, id: String, peer: Option<Peer>) -> Self {
        Self(Arc::new(Shared {
            app: Arc::clone(app),
            id,
            began: Instant::now(),
            time: Timestamp::now(),
            peer: peer.map(|Peer(address)| address),
            facts: Mutex::new(Facts { priority: Priority::High, ..Facts::default() }),
        }))
    }

    /// Whose request it is, where that is known.
    pub(super) fn caller(&self) -> Option<Caller> {
        self.facts().caller.clone()
    }

    /// How soon it is computed: by its tenant's terms, and later still if it is of a batch.
    pub(super) fn priority(&self) -> Priority {
        let facts = self.facts();
        let usual = facts.caller.as_ref().and_then(|caller| caller.terms.priority).unwrap_or_default();
        usual.max(facts.priority)
    }

    /// Who finds in an engine's caches what is computed for it: its tenant.
    pub(super) fn scope(&self) -> Option<Key> {
        self.caller().map(|caller| Key::of(caller.tenant.as_bytes()))
    }

    pub(super) fn is_at(&self, priority: Priority) {
        self.facts().priority = priority;
    }

    pub(super) fn came_from(&self, caller: Caller) {
        self.facts().caller = Some(caller);
    }

    /// What is asked for: a method and a path of the API, never one that a client made up.
    pub(super) fn is_for(&self, endpoint: &str) {
        self.facts().endpoint = Some(endpoint.to_owned());
    }

    /// It is one of those that come all the time and concern nobody: it is counted, and not written down unless it is
    /// refused.
    pub(super) fn is_routine(&self) {
        self.facts().routine = true;
    }

    /// Whether a model may be used by one of its names.
    pub(super) fn may_use(&self, served: &Served, name: &str) -> bool {
        let facts = self.facts();
        facts.caller.as_ref().is_none_or(|caller| caller.terms.allows_model(&served.id, name))
    }

    /// The model of a name, if there is one that may be used.
    ///
    /// # Errors
    /// When there is none; one that is somebody else's is none.
    pub(super) fn find<'a>(&self, models: &'a Router, name: &str) -> Result<&'a Arc<Served>, ApiError> {
        let Some(served) = models.find(name).filter(|served| self.may_use(served, name)) else {
            let known = models.models().iter().filter(|served| self.may_use(served, &served.id));
            let known = known.map(|served| served.id.clone()).collect();
            return Err(ApiError::ModelNotFound { model: name.chars().take(200).collect(), known });
        };
        self.facts().model = Some(Arc::clone(served));
        Ok(served)
    }

    /// Counts what is computed for it besides, such as by the model that writes down a recording of a conversation.
    pub(super) fn also(&self, work: Work) {
        self.facts().besides.push(work);
    }

    /// Takes a place in a model's queue, and counts what is computed in it.
    ///
    /// # Errors
    /// When there is none.
    pub(super) fn reserve(&self, served: &Served) -> Result<Place, ApiError> {
        let place = served.handle.reserve_in(self.scope(), self.priority())?;
        self.facts().work = Some(place.work());
        Ok(place)
    }

    /// Takes another place, and counts what is computed in it with what was computed before.
    ///
    /// # Errors
    /// When there is none.
    pub(super) fn reserve_more(&self, served: &Served) -> Result<Place, ApiError> {
        let before = self.facts().work.clone();
        match before {
            Some(work) => Ok(served.handle.reserve_for(work, self.scope(), self.priority())?),
            None => self.reserve(served),
        }
    }

    /// Whether there is anything left of the tenant's budgets, and room for another request.
    ///
    /// # Errors
    /// When there is not.
    pub(super) fn admit(&self) -> Result<(), ApiError> {
        if let Some(Caller { terms, meter, .. }) = self.caller() {
            let now = self.0.app.operations.now();
            meter.check(&terms, now)?;
            meter.take(&terms, Rate::Requests, 1.0, now)?;
        }
        Ok(())
    }

    /// Counts the tokens of a prompt, before anything is computed. The answer's are counted at its end.
    ///
    /// # Errors
    /// When the tenant may not use so many now.
    pub(super) fn prompt(&self, tokens: usize) -> Result<(), ApiError> {
        self.take(Rate::Tokens, tokens as f64)?;
        self.facts().charged.of_rate += tokens as u64;
        Ok(())
    }

    /// Counts pictures and frames.
    ///
    /// # Errors
    /// When the tenant may not use so many now.
    pub(super) fn images(&self, count: usize) -> Result<(), ApiError> {
        self.take(Rate::Images, count as f64)?;
        self.facts().images += count as u64;
        Ok(())
    }

    /// Counts a recording.
    ///
    /// # Errors
    /// When the tenant may not use so much now.
    pub(super) fn audio(&self, seconds: f64) -> Result<(), ApiError> {
        self.take(Rate::AudioSeconds, seconds)?;
        self.facts().audio_seconds += seconds;
        Ok(())
    }

    /// Adds what was used so far to what the tenant has used: of a request that goes on for long, so that budgets hold
    /// while it does.
    pub(super) fn charge(&self) {
        let operations = &self.0.app.operations;
        let mut facts = self.facts();
        let used = facts.used(operations);
        if let Some(caller) = facts.caller.clone() {
            operations.charge(&caller, &used, &mut facts.charged);
        }
    }

    /// Looks again at who asks: of a request that goes on for long, what its key may do can change.
    ///
    /// # Errors
    /// When the key is no good any more.
    pub(super) fn renew(&self) -> Result<(), ApiError> {
        let (Some(access), Some(caller)) = (&self.0.app.operations.access, self.caller()) else {
            return Ok(());
        };
        let caller = access.holder(&caller.tenant, &caller.key).ok_or(ApiError::WrongKey)?;
        self.came_from(caller);
        Ok(())
    }

    fn take(&self, what: Rate, amount: f64) -> Result<(), ApiError> {
        if let Some(Caller { terms, meter, .. }) = self.caller() {
            meter.take(&terms, what, amount, self.0.app.operations.now())?;
        }
        Ok(())
    }

    /// Counts the time that media take to be read and decoded.
    pub(super) async fn media<T>(&self, work: impl Future<Output = T>) -> T {
        let began = Instant::now();
        let done = work.await;
        self.facts().media += began.elapsed();
        done
    }

    /// How long it has taken so far, and what of that was what.
    pub(super) fn timing(&self) -> Timing {
        let facts = self.facts();
        let figures = facts.figures();
        Timing::new(self.0.began, facts.media, &figures)
    }

    /// The same as `Server-Timing` has it, in milliseconds (<https://www.w3.org/TR/server-timing/>), with its share of
    /// the engine's steps and, where the machine has a price, what that costs.
    pub(super) fn timing_text(&self) -> String {
        let timing = self.timing();
        let operations = &self.0.app.operations;
        let used = self.facts().used(operations);
        let stages = timing.stages().into_iter().filter(|(_, took)| *took > Duration::ZERO);
        let first = timing.first_token.map(|first| ("first-token", first));
        let compute = Duration::try_from_secs_f64(used.compute_seconds).unwrap_or_default();
        let compute = Some(("compute", compute)).filter(|(_, took)| *took > Duration::ZERO);
        let all = stages.chain(first).chain(compute).chain([("total", timing.total)]);
        let times = all.map(|(name, took)| format!("{name};dur={:.3}", took.as_secs_f64() * 1000.0));
        // More digits than money has: a request is cheap.
        let price = operations.price.as_ref();
        let cost = price.map(|price| format!("cost;desc=\"{:.9} {}\"", used.cost, price.currency));
        times.chain(cost).collect::<Vec<_>>().join(", ")
    }

    fn facts(&self) -> MutexGuard<'_, Facts> {
        // It is whole at every point where a holder could panic.
        self.0.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Sync> FromRequestParts<S> for Record {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let record = parts.extensions.get::<Self>().cloned();
        record.ok_or_else(|| ApiError::internal(&"a request came past what every request comes through"))
    }
}

/// Tells that a request has ended, when it is dropped.
pub(super) struct Ending {
    record: Record,
    method: String,
    path: String,
    /// What the client calls it.
    client_id: Option<String>,
    status: Option<StatusCode>,
    error: Option<&'static str>,
    sent: bool,
    request: Tally,
    response: Tally,
    /// The trace that it is part of, where traces are sent.
    trace: Option<Context>,
    /// Of a batch's line: whether it was refused for now, and will be asked again.
    repeated: Option<Arc<AtomicBool>>,
}

impl Ending {
    /// The end of a request whose body is counted in `tally`.
    pub(super) fn new(record: &Record, request: &Request, path: String, tally: Tally) -> Self {
        let client_id = request.headers().get(CLIENT_ID).and_then(|id| id.to_str().ok());
        let client_id =
            client_id.filter(|id| id.len() <= 512 && id.bytes().all(|byte| byte.is_ascii_graphic()));
        Self {
            record: record.clone(),
            method: request.method().to_string(),
            path,
            client_id: client_id.map(str::to_owned),
            status: None,
            error: None,
            sent: false,
            trace: record.0.app.operations.traces.as_ref().map(|_| trace(request.headers())),
            response: tally.another(),
            request: tally,
            repeated: request.extensions().get::<Inside>().map(|inside| Arc::clone(&inside.repeated)),
        }
    }

    /// Of a request that goes on behind its response, as a WebSocket: ends when this is dropped.
    pub(super) fn upgraded(mut self) -> Self {
        self.status = Some(StatusCode::SWITCHING_PROTOCOLS);
        self.sent = true;
        self
    }

    /// Counts what came: an event, of which the text is kept where it has no sound in it.
    pub(super) fn received(&self, event: &str, has_sound: bool) {
        self.request.add_event(event, !has_sound);
    }

    /// Counts what was sent: an event.
    pub(super) fn sent(&self, event: &str) {
        self.response.add_event(event, true);
    }

    /// Ends when the response has.
    pub(super) fn with(mut self, response: Response, timing: WantsTiming) -> Response {
        self.status = Some(response.status());
        self.error = response.extensions().get::<Class>().map(|Class(class)| *class);
        let (parts, body) = response.into_parts();
        self.sent = http_body::Body::is_end_stream(&body);
        let remark = timing == WantsTiming::Yes
            && parts.headers.get("content-type").is_some_and(|kind| kind == "text/event-stream");
        let watched = Watched { body, ending: self, remark, remarked: false };
        Response::from_parts(parts, Body::new(watched))
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        let Self { record, method, path, client_id, status, error, sent, request, response, trace, repeated } =
            &*self;
        let Record(shared) = record;
        if repeated.as_ref().is_some_and(|repeated| repeated.load(Relaxed)) {
            // What counts is how it ends. A line can wait for hours.
            debug!(method, path, id = shared.id, "a line of a batch waits");
            return;
        }
        let mut timing = record.timing();
        if *status == Some(StatusCode::SWITCHING_PROTOCOLS) {
            // Where nobody spoke is no time that anyone waited for an answer.
            timing = timing.as_whole();
        }
        let operations = &shared.app.operations;
        let facts = record.facts();
        let figures = facts.figures();
        let status = status.map_or(LEFT, |status| status.as_u16());
        let outcome = match status {
            _ if !*sent => Outcome::Cancelled,
            400..500 => Outcome::Refused,
            _ if status >= 500 || figures.failed => Outcome::Failed,
            _ => Outcome::Ok,
        };
        let (request_bytes, request_sha256) = request.read();
        let (response_bytes, response_sha256) = response.read();
        let tenant = facts.caller.as_ref().map(|caller| caller.tenant.clone());
        let entry = Entry {
            time: shared.time,
            id: shared.id.clone(),
            tenant,
            key: facts.caller.as_ref().map(|caller| caller.key.clone()),
            peer: shared.peer.map(|peer| peer.ip().to_string()),
            endpoint: facts.endpoint.clone().unwrap_or_else(|| "other".to_owned()),
            model: facts.model.as_ref().map(|served| served.id.clone()),
            status,
            outcome,
            error: error.or((outcome == Outcome::Failed).then_some("server_error")).map(str::to_owned),
            request_bytes,
            request_sha256,
            response_bytes,
            response_sha256,
            used: facts.used(operations),
            ms: timing.total.as_millis() as u64,
        };
        let (caller, charged) = (facts.caller.clone(), facts.charged);
        let is_routine = facts.routine && outcome != Outcome::Refused;
        drop(facts);
        operations.metrics.observe(&entry, &timing);
        if is_routine {
            debug!(method, path, status, ms = entry.ms, id = entry.id, "request");
            return;
        }
        info!(
            method,
            path,
            status,
            outcome = outcome.name(),
            ms = entry.ms,
            id = entry.id,
            client_id,
            tenant = entry.tenant,
            model = entry.model,
            "request"
        );
        let agreed = caller.as_ref().is_none_or(|caller| caller.terms.log_content == Some(true));
        if let Some(content) = operations.content.as_ref().filter(|_| agreed) {
            content.write(&entry, request.content(), response.content());
        }
        if let (Some(traces), Some(trace)) = (&operations.traces, trace) {
            traces.request(trace, &entry, &timing);
        }
        operations.ended(caller.as_ref(), entry, charged);
    }
}

/// The trace that a request is part of, where its headers say so (W3C Trace Context).
fn trace(headers: &HeaderMap) -> Context {
    TraceContextPropagator::new().extract(&HeaderExtractor(headers))
}

/// Bytes of a body and their hash, as far as it has gone. Clones count together.
#[derive(Clone)]
pub(super) struct Tally(Arc<Mutex<Counted>>);

struct Counted {
    bytes: u64,
    hash: Option<Sha256>,
    /// The bytes themselves, as far as they may be written down; nothing once there were too many.
    content: Option<Vec<u8>>,
}

impl Counted {
    fn count(&mut self, data: &[u8]) {
        self.bytes += data.len() as u64;
        if let Some(hash) = &mut self.hash {
            hash.update(data);
        }
    }

    fn keep(&mut self, data: &[u8]) {
        match &mut self.content {
            Some(content) if content.len() + data.len() <= MOST_CONTENT => content.extend_from_slice(data),
            content => *content = None,
        }
    }
}

impl Tally {
    /// Nothing yet. Hashes are for an audit log, content is for a content log.
    pub(super) fn new(app: &App) -> Self {
        let hash = app.operations.audit.is_some().then(Sha256::new);
        let content = app.operations.content.is_some().then(Vec::new);
        Self(Arc::new(Mutex::new(Counted { bytes: 0, hash, content })))
    }

    /// Nothing yet, of the same kind.
    fn another(&self) -> Self {
        let counted = self.lock();
        let (hash, content) =
            (counted.hash.is_some().then(Sha256::new), counted.content.is_some().then(Vec::new));
        Self(Arc::new(Mutex::new(Counted { bytes: 0, hash, content })))
    }

    /// What there was, as far as it was kept.
    fn content(&self) -> Option<Vec<u8>> {
        self.lock().content.take()
    }

    fn add(&self, data: &[u8]) {
        let mut counted = self.lock();
        counted.count(data);
        counted.keep(data);
    }

    /// Adds a text of a protocol that tells its texts apart; what is kept of them is in lines.
    fn add_event(&self, event: &str, keep: bool) {
        let mut counted = self.lock();
        counted.count(event.as_bytes());
        if keep {
            counted.keep(event.as_bytes());
            counted.keep(b"\n");
        }
    }

    /// How many bytes there were; their hash, where there were any.
    fn read(&self) -> (u64, Option<String>) {
        let counted = self.lock();
        let hash = counted.hash.as_ref().filter(|_| counted.bytes > 0);
        (counted.bytes, hash.map(|hash| hex(&hash.clone().finalize())))
    }

    fn lock(&self) -> MutexGuard<'_, Counted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request's body whose bytes are counted.
pub(super) struct Incoming {
    pub(super) body: Body,
    pub(super) tally: Tally,
}

impl http_body::Body for Incoming {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if let Some(data) = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()) {
            self.tally.add(data);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A response's body, with which its request ends.
struct Watched {
    body: Body,
    ending: Ending,
    /// Whether a comment about times follows it.
    remark: bool,
    /// Whether that was sent. What has ended is not asked again.
    remarked: bool,
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.remarked {
            return Poll::Ready(None);
        }
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.ending.response.add(data);
                }
                self.ending.sent = !self.remark && self.body.is_end_stream();
            }
            Some(Err(_)) => {}
            None if self.remark => {
                self.remarked = true;
                self.ending.sent = true;
                let text = format!(": {TIMING}: {}\n\n", self.ending.record.timing_text());
                self.ending.response.add(text.as_bytes());
                return Poll::Ready(Some(Ok(Frame::data(text.into()))));
            }
            None => self.ending.sent = true,
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.remarked || !self.remark && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Asks for the times of a request's stages, and tells them.
pub(super) const TIMING: &str = "x-percept-timing";

/// Whether a client wants to know how long the stages took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WantsTiming {
    Yes,
    No,
}

impl WantsTiming {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        match headers.get(TIMING).map(HeaderValue::as_bytes) {
            None | Some(b"" | b"0" | b"false") => Self::No,
            Some(_) => Self::Yes,
        }
    }
}
