//! A session: what a client says, what is heard of it, and what is written.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use axum::extract::ws::{CloseFrame, Message, WebSocket, close_code};
use tokio::{
    sync::watch,
    time::{self, timeout},
};
use tracing::debug;
use uuid::Uuid;

use super::{
    super::{
        ApiError, App,
        audio::logprobs,
        check::{missing, unsupported, value},
        json,
        params::Parsed,
        record::Record,
        wire::{Object, audio::Usage, realtime as wire},
    },
    Connection, MOST_MESSAGE, Open, Until,
    settings::Settings,
};
use crate::{
    engine::Refused,
    media::{
        self,
        sound::{Live, RATE, Recording, SoundError},
    },
    request::InvalidRequest,
    speech::{
        Options, SpeechError, Transcript, Transcription, Update,
        live::{Agreement, Heard, Listener},
    },
};

/// Longest turn where turns are told apart, in milliseconds: what a network hears at once.
const LONGEST_TURN_MS: u32 = 30_000;
/// Samples that are kept of a turn whose end the client says.
const MOST_KEPT: usize = 600 * RATE;
/// The shortest turn that a client may end.
const LEAST_COMMIT: usize = RATE / 10;
/// Samples between two looks at what was said so far.
const STEP: usize = RATE;
/// Longest turn of which is told what was said so far.
const LONGEST_PARTIAL: usize = LONGEST_TURN_MS as usize / 1000 * RATE;
/// Turns that wait to be written; then the client waits.
const MOST_WAITING: usize = 8;
/// How long a turn waits for a place in the engine's queue, and how often it asks.
const PATIENCE: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_millis(500);
/// How long a client may take to receive an event.
const SEND: Duration = Duration::from_secs(30);
/// How long it may take to close.
const CLOSE: Duration = Duration::from_secs(5);
/// How often it is asked whether it is still there.
const PING: Duration = Duration::from_secs(20);
/// Bytes of base64 that are heard at once: that takes less time than a change of threads is worth.
const SMALL: usize = 1 << 16;

/// A session, from the moment when it is let in.
pub(super) struct Session {
    app: Arc<App>,
    record: Record,
    id: String,
    expires_at: u64,
    /// Whether items are told of as in the older API.
    older: bool,
    settings: Settings,
    ears: Ears,
    /// The item that is made of what is heard now.
    item: String,
    /// The last one that was made.
    last_item: Option<String>,
    turn: Turn,
    working: Option<Working>,
    waiting: VecDeque<Finished>,
    /// When the engine is asked again for a place.
    again: Option<Instant>,
    /// Events that are to be sent.
    out: Vec<String>,
    ending: Until,
    /// Whether the key was found to be no good any more.
    revoked: bool,
    _kept: (Open, Option<Connection>),
}

/// What hears.
struct Ears {
    live: Live,
    listener: Listener,
}

/// What is known of the turn that goes on.
#[derive(Default)]
struct Turn {
    agreement: Agreement,
    /// Samples of it that were looked at, or that are not looked at.
    seen: usize,
    /// Samples of it that the tenant's meter has counted.
    counted: usize,
    /// When the next look may be.
    not_before: Option<Instant>,
}

/// A turn that has ended.
struct Finished {
    item: String,
    samples: Vec<i16>,
    settings: Settings,
    agreement: Agreement,
    counted: usize,
    /// Since when it waits.
    since: Instant,
}

/// What is being written.
struct Working {
    transcription: Transcription,
    began: Instant,
    /// The turn, where it has ended.
    finished: Option<Finished>,
}

/// Why a session ends.
enum End {
    /// The client has left.
    Left,
    /// It took as long as it may.
    Expired,
    /// The client has said nothing.
    Idle,
    /// The server stops.
    Stopping,
    /// The key is no good any more.
    Revoked,
}

impl Session {
    pub(super) fn new(
        app: &Arc<App>,
        record: Record,
        settings: Settings,
        older: bool,
        (open, connection, ending): (Open, Option<Connection>, Until),
    ) -> Self {
        Self {
            app: Arc::clone(app),
            record,
            id: name("sess"),
            expires_at: seconds_from_now(app.config.realtime.longest),
            older,
            ears: Ears {
                live: Live::new(settings.format),
                listener: Listener::new(settings.turns, LONGEST_TURN_MS),
            },
            settings,
            item: name("item"),
            last_item: None,
            turn: Turn::default(),
            working: None,
            waiting: VecDeque::new(),
            again: None,
            out: Vec::new(),
            ending,
            revoked: false,
            _kept: (open, connection),
        }
    }

    /// Answers until one side has enough.
    pub(super) async fn run(mut self, mut socket: WebSocket) {
        let end = self.converse(&mut socket).await;
        let (code, error) = match end {
            End::Left => {
                // Nobody wants it any more.
                self.working = None;
                // Whoever says goodbye hears it, too.
                let _ = timeout(CLOSE, hear_out(&mut socket)).await;
                return;
            }
            End::Expired => {
                let minutes = self.app.config.realtime.longest.as_secs().div_ceil(60);
                let text = format!("Your session hit the maximum duration of {minutes} minutes.");
                (close_code::NORMAL, failure("invalid_request_error", "session_expired", text))
            }
            End::Idle => {
                let seconds = self.app.config.realtime.idle.as_secs();
                let text = format!("Nothing was sent for {seconds} seconds.");
                (close_code::NORMAL, failure("invalid_request_error", "session_idle", text))
            }
            End::Revoked => {
                let error = ApiError::WrongKey.body().failure(None);
                (close_code::POLICY, error)
            }
            End::Stopping => {
                let text = "The server is shutting down.".to_owned();
                (close_code::AWAY, failure("server_error", "engine_overloaded", text))
            }
        };
        let reason = error.message.clone();
        self.tell(wire::Happening::Error { error });
        if self.send(&mut socket).await.is_ok() {
            let frame = CloseFrame { code, reason: reason.into() };
            let closing = async {
                if socket.send(Message::Close(Some(frame))).await.is_ok() {
                    // Whoever closes waits for the other side to.
                    hear_out(&mut socket).await;
                }
            };
            let _ = timeout(CLOSE, closing).await;
        }
    }

    async fn converse(&mut self, socket: &mut WebSocket) -> End {
        let limits = self.app.config.realtime;
        let began = time::Instant::now();
        let mut last = began;
        let mut ping = time::interval_at(began + PING, PING);
        let mut stopped = self.app.stopped.subscribe();
        let mut stopping = false;
        let session = self.settings.session(&self.id, self.expires_at);
        let created = event(wire::Happening::SessionCreated { session });
        self.out.push(created);
        loop {
            self.start();
            if self.send(socket).await.is_err() {
                return End::Left;
            }
            if self.revoked {
                return End::Revoked;
            }
            let busy = self.working.as_ref().is_some_and(|working| working.finished.is_some());
            if stopping && !busy && self.waiting.is_empty() {
                return End::Stopping;
            }
            let (working, again) = (&mut self.working, self.again);
            let next = async {
                match working {
                    Some(working) => working.transcription.next().await,
                    None => std::future::pending().await,
                }
            };
            let ask = async {
                match again {
                    Some(again) => time::sleep_until(again.into()).await,
                    None => std::future::pending().await,
                }
            };
            let listens = !stopping && self.waiting.len() < MOST_WAITING;
            tokio::select! {
                update = next => self.written(update),
                () = ask => self.again = None,
                message = socket.recv(), if listens => match message {
                    None | Some(Err(_) | Ok(Message::Close(_))) => return End::Left,
                    Some(Ok(Message::Text(text))) => {
                        last = time::Instant::now();
                        self.hear(text.as_str()).await;
                    }
                    Some(Ok(Message::Binary(_))) => {
                        last = time::Instant::now();
                        let reason = "events are JSON in messages of text; sound goes in base64 into \
                                      input_audio_buffer.append";
                        self.wrong(&ApiError::NotJson(reason.into()), None);
                    }
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                },
                _ = ping.tick() => {
                    if self.record.renew().is_err() {
                        return End::Revoked;
                    }
                    let ping = socket.send(Message::Ping(Vec::new().into()));
                    if !matches!(timeout(SEND, ping).await, Ok(Ok(()))) {
                        return End::Left;
                    }
                }
                () = time::sleep_until(began + limits.longest) => return End::Expired,
                () = time::sleep_until(last + limits.idle), if listens => return End::Idle,
                () = stop(&mut stopped), if !stopping => stopping = true,
            }
        }
    }

    /// Answers an event of the client's.
    async fn hear(&mut self, text: &str) {
        if let Some(ending) = self.ending.get() {
            ending.received(text, text.contains("input_audio_buffer.append"));
        }
        if text.len() > MOST_MESSAGE {
            self.wrong(&ApiError::BodyTooLarge { limit: MOST_MESSAGE }, None);
            return;
        }
        let Parsed { value, .. } = match json::parse::<wire::ClientEvent>(text.as_bytes(), is_harmless) {
            Ok(parsed) => parsed,
            Err(error) => return self.wrong(&error, event_id(text)),
        };
        let id = value.event_id.clone();
        if let Err(error) = self.answer(value).await {
            match error {
                Wrong::Api(error) => self.wrong(&error, id),
                Wrong::Own(error) => {
                    self.tell(wire::Happening::Error { error: wire::Failure { event_id: id, ..error } });
                }
            }
        }
    }

    async fn answer(&mut self, event: wire::ClientEvent) -> Result<(), Wrong> {
        let wire::ClientEvent { kind, session, audio, .. } = event;
        match kind.ok_or_else(|| missing("type"))?.as_str() {
            "session.update" => {
                self.update(session)?;
                let session = self.settings.session(&self.id, self.expires_at);
                let updated = self::event(wire::Happening::SessionUpdated { session });
                self.out.push(updated);
            }
            "transcription_session.update" => {
                self.older = true;
                self.update(session)?;
                let session = self.settings.older(&self.id, self.expires_at);
                let updated = self::event(wire::Happening::TranscriptionSessionUpdated { session });
                self.out.push(updated);
            }
            "input_audio_buffer.append" => self.append(audio.ok_or_else(|| missing("audio"))?).await?,
            "input_audio_buffer.commit" => self.commit()?,
            "input_audio_buffer.clear" => {
                self.ears.live.flush();
                self.ears.listener.clear();
                self.begin_anew();
                self.tell(wire::Happening::Cleared {});
            }
            other if other.starts_with("response.") || other.starts_with("conversation.") => {
                return Err(unsupported(
                    "type",
                    "a session that transcribes has no answers and no other items",
                )
                .into());
            }
            other => {
                let supported = "'session.update', 'transcription_session.update', 'input_audio_buffer.append', \
                                 'input_audio_buffer.commit' and 'input_audio_buffer.clear'";
                return Err(value("type", other, supported).into());
            }
        }
        Ok(())
    }

    fn update(&mut self, update: Option<Object<wire::SessionUpdate>>) -> Result<(), Wrong> {
        let Object(update) = update.ok_or_else(|| missing("session"))?;
        let settings = self.settings.updated(&self.app, &self.record, update)?;
        if settings.format != self.settings.format {
            // What was sent in the old one is whole.
            let rest = self.ears.live.flush();
            let heard = self.ears.listener.push(&rest);
            self.ears.live = Live::new(settings.format);
            self.notice(heard);
        }
        if settings.turns != self.settings.turns {
            self.ears.listener.set_turns(settings.turns);
            self.begin_anew();
        }
        self.settings = settings;
        Ok(())
    }

    async fn append(&mut self, audio: String) -> Result<(), Wrong> {
        if audio.is_empty() {
            return Ok(());
        }
        let broken = |error: media::FetchError| InvalidRequest::Sound {
            param: "audio".into(),
            error: SoundError::Broken { reason: error.to_string() },
        };
        let format = self.ears.live.format();
        let coming = audio.len() / 4 * 3 / format.bytes() * RATE / format.rate() as usize;
        if self.ears.listener.turns().is_none() && self.ears.listener.kept() + coming > MOST_KEPT {
            let seconds = MOST_KEPT / RATE;
            let text =
                format!("The buffer holds {seconds} seconds of sound at most: commit it, or clear it.");
            return Err(Wrong::Own(failure("invalid_request_error", "input_audio_buffer_full", text)));
        }
        let heard = if audio.len() <= SMALL {
            self.ears.hear(&media::read_base64(&audio, MOST_MESSAGE).map_err(broken)?)
        } else {
            let settings = &self.settings;
            let idle =
                Ears { live: Live::new(settings.format), listener: Listener::new(None, LONGEST_TURN_MS) };
            let mut ears = std::mem::replace(&mut self.ears, idle);
            let hearing = self.app.decoders.run(move || {
                let heard = media::read_base64(&audio, MOST_MESSAGE).map(|bytes| ears.hear(&bytes));
                (ears, heard)
            });
            let (ears, heard) = hearing.await.map_err(|error| ApiError::internal(&error))?;
            self.ears = ears;
            heard.map_err(broken)?
        };
        self.notice(heard);
        Ok(())
    }

    /// What the ears have noticed.
    fn notice(&mut self, heard: Vec<Heard>) {
        let milliseconds = |samples: usize| (samples as u64 * 1000).div_euclid(RATE as u64);
        for heard in heard {
            let item = self.item.clone();
            match heard {
                Heard::Began { at } => {
                    // What was looked at before was silence.
                    self.stop_looking();
                    self.turn = Turn::default();
                    self.tell(wire::Happening::SpeechStarted {
                        audio_start_ms: milliseconds(at),
                        item_id: &item,
                    });
                }
                Heard::Ended { at, samples } => {
                    self.tell(wire::Happening::SpeechStopped {
                        audio_end_ms: milliseconds(at),
                        item_id: &item,
                    });
                    self.finish(samples);
                }
            }
        }
    }

    fn commit(&mut self) -> Result<(), Wrong> {
        let rest = self.ears.live.flush();
        let heard = self.ears.listener.push(&rest);
        self.notice(heard);
        let listener = &self.ears.listener;
        let length = listener.turn().map_or(listener.kept(), <[i16]>::len);
        if length < LEAST_COMMIT {
            let milliseconds = length as f64 * 1000.0 / RATE as f64;
            let text = format!(
                "Error committing input audio buffer: buffer too small. Expected at least 100ms of audio, but buffer \
                 only has {milliseconds:.2}ms of audio."
            );
            return Err(Wrong::Own(failure(
                "invalid_request_error",
                "input_audio_buffer_commit_empty",
                text,
            )));
        }
        let samples = self.ears.listener.commit();
        self.finish(samples);
        Ok(())
    }

    /// A turn has ended, and becomes an item.
    fn finish(&mut self, samples: Vec<i16>) {
        self.stop_looking();
        let item = std::mem::replace(&mut self.item, name("item"));
        let previous = self.last_item.replace(item.clone());
        let previous_item_id = previous.as_deref();
        self.tell(wire::Happening::Committed { previous_item_id, item_id: &item });
        let added = wire::Item {
            id: &item,
            object: "realtime.item",
            kind: "message",
            status: "completed",
            role: "user",
            content: [wire::ItemContent { kind: "input_audio", transcript: None }],
        };
        if self.older {
            self.tell(wire::Happening::ItemCreated { previous_item_id, item: added });
        } else {
            self.tell(wire::Happening::ItemAdded { previous_item_id, item: added.clone() });
            self.tell(wire::Happening::ItemDone { previous_item_id, item: added });
        }
        let Turn { agreement, counted, .. } = std::mem::take(&mut self.turn);
        let settings = self.settings.clone();
        self.waiting.push_back(Finished {
            item,
            samples,
            settings,
            agreement,
            counted,
            since: Instant::now(),
        });
    }

    /// What was heard is forgotten.
    fn begin_anew(&mut self) {
        self.stop_looking();
        self.turn = Turn::default();
        self.item = name("item");
    }

    /// Ends a look at a turn that has not ended.
    fn stop_looking(&mut self) {
        if self.working.as_ref().is_some_and(|working| working.finished.is_none()) {
            self.working = None;
        }
    }

    /// Has written what can be written now: one turn at a time, and those first that have ended.
    fn start(&mut self) {
        let busy = self.working.as_ref().is_some_and(|working| working.finished.is_some());
        if busy || self.again.is_some() {
            return;
        }
        while let Some(finished) = self.waiting.pop_front() {
            self.stop_looking();
            match self.begin(&finished) {
                Ok(transcription) => {
                    let began = Instant::now();
                    self.working = Some(Working { transcription, began, finished: Some(finished) });
                    return;
                }
                Err(ApiError::Refused(Refused::Busy { .. })) if finished.since.elapsed() < PATIENCE => {
                    self.waiting.push_front(finished);
                    self.again = Some(Instant::now() + AGAIN);
                    return;
                }
                Err(error) => {
                    self.revoked |= matches!(error, ApiError::WrongKey);
                    self.failed(&finished.item, &error);
                }
            }
        }
        if self.working.is_none() {
            self.working = self.look();
        }
    }

    fn begin(&self, finished: &Finished) -> Result<Transcription, ApiError> {
        let Finished { settings, samples, counted, .. } = finished;
        // What was used before counts, and so does what has happened to the key.
        self.record.charge();
        self.record.renew()?;
        let place = self.record.reserve_more(&settings.model)?;
        self.record.admit()?;
        // What was looked at while it went on is counted.
        self.record.audio(samples.len().saturating_sub(*counted) as f64 / RATE as f64)?;
        let recording = Arc::new(Recording::mono(samples.clone()));
        Ok(settings.transcriber.start(recording, settings.options.clone(), place))
    }

    /// Looks at what was said so far, where there is enough that is new.
    fn look(&mut self) -> Option<Working> {
        let turn = self.ears.listener.turn()?;
        let now = Instant::now();
        let due = turn.len() >= self.turn.seen + STEP
            && turn.len() <= LONGEST_PARTIAL
            && self.turn.not_before.is_none_or(|not_before| not_before <= now);
        if !due {
            return None;
        }
        let samples = turn.to_vec();
        self.turn.seen = samples.len();
        let Settings { model, transcriber, options, .. } = &self.settings;
        // Whether there is room for it or not: the whole turn comes later.
        let place = self.record.reserve_more(model).ok()?;
        self.record.audio(samples.len().saturating_sub(self.turn.counted) as f64 / RATE as f64).ok()?;
        self.turn.counted = samples.len();
        let options = Options { temperatures: vec![0.0], ..options.clone() };
        let transcription = transcriber.start(Arc::new(Recording::mono(samples)), options, place);
        Some(Working { transcription, began: now, finished: None })
    }

    /// What is new of what is being written.
    fn written(&mut self, update: Result<Update, SpeechError>) {
        let transcript = match update {
            Ok(Update::Finished(transcript)) => Ok(transcript),
            Ok(_) => return,
            Err(error) => Err(error),
        };
        let Some(Working { began, finished, .. }) = self.working.take() else { return };
        match (finished, transcript) {
            (None, Ok(transcript)) => {
                // As long again, so that half of the engine is for others.
                self.turn.not_before = Some(Instant::now() + began.elapsed());
                let delta = self.turn.agreement.hear(&transcript.text);
                let item = self.item.clone();
                self.delta(&item, &delta);
            }
            (None, Err(error)) => debug!(%error, "a turn that goes on was not understood"),
            (Some(finished), Ok(transcript)) => self.completed(finished, &transcript),
            (Some(finished), Err(error)) => self.failed(&finished.item, &error.into()),
        }
    }

    fn completed(&mut self, finished: Finished, transcript: &Transcript) {
        let Finished { item, settings, agreement, .. } = finished;
        self.record.charge();
        let text = transcript.text.trim();
        let rest = agreement.rest(text);
        self.delta(&item, &rest);
        let logprobs = settings.logprobs.then(|| logprobs(&settings.transcriber, &transcript.segments));
        self.tell(wire::Happening::Completed {
            item_id: &item,
            content_index: 0,
            transcript: text,
            logprobs,
            usage: Usage { kind: "duration", seconds: transcript.duration.ceil() as u64 },
        });
    }

    fn delta(&mut self, item: &str, delta: &str) {
        if !delta.is_empty() {
            self.tell(wire::Happening::Delta { item_id: item, content_index: 0, delta });
        }
    }

    fn failed(&mut self, item: &str, error: &ApiError) {
        let error = error.body().failure(None);
        self.tell(wire::Happening::Failed { item_id: item, content_index: 0, error });
    }

    fn wrong(&mut self, error: &ApiError, event_id: Option<String>) {
        let error = error.body().failure(event_id);
        self.tell(wire::Happening::Error { error });
    }

    fn tell(&mut self, happening: wire::Happening<'_>) {
        self.out.push(event(happening));
    }

    /// Sends what is to be sent.
    async fn send(&mut self, socket: &mut WebSocket) -> Result<(), ()> {
        for text in self.out.drain(..) {
            if let Some(ending) = self.ending.get() {
                ending.sent(&text);
            }
            timeout(SEND, socket.send(Message::Text(text.into()))).await.map_err(drop)?.map_err(drop)?;
        }
        Ok(())
    }
}

impl Ears {
    fn hear(&mut self, bytes: &[u8]) -> Vec<Heard> {
        let samples = self.live.push(bytes);
        self.listener.push(&samples)
    }
}

/// Waits until the other side closes.
async fn hear_out(socket: &mut WebSocket) {
    while let Some(Ok(_)) = socket.recv().await {}
}

/// Waits until the server stops.
async fn stop(stopped: &mut watch::Receiver<bool>) {
    // The sender is as old as the server.
    drop(stopped.wait_for(|stopped| *stopped).await);
}

/// What is wrong with an event.
enum Wrong {
    /// As everywhere.
    Api(ApiError),
    /// As only here.
    Own(wire::Failure),
}

impl From<InvalidRequest> for Wrong {
    fn from(error: InvalidRequest) -> Self {
        Self::Api(error.into())
    }
}

impl From<ApiError> for Wrong {
    fn from(error: ApiError) -> Self {
        Self::Api(error)
    }
}

fn failure(kind: &'static str, code: &'static str, message: String) -> wire::Failure {
    wire::Failure { kind, code: Some(code), message, param: None, event_id: None }
}

fn event(kind: wire::Happening<'_>) -> String {
    let event = wire::ServerEvent { event_id: name("event"), kind };
    // Texts and numbers, which can always be written.
    serde_json::to_string(&event).unwrap_or_default()
}

/// When so much time has passed, in seconds since 1970.
pub(super) fn seconds_from_now(time: Duration) -> u64 {
    (SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() + time).as_secs()
}

/// A name that nobody has.
pub(super) fn name(kind: &str) -> String {
    format!("{kind}_{}", Uuid::new_v4().simple())
}

/// The id of an event that cannot be read as a whole.
fn event_id(text: &str) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Id {
        event_id: Option<String>,
    }
    serde_json::from_str::<Id>(text).ok()?.event_id
}

fn is_harmless(path: &str) -> bool {
    path.strip_prefix("session.").is_some_and(|path| wire::HARMLESS.contains(&path))
}
