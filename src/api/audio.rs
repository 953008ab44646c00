//! `/v1/audio/transcriptions` and `/v1/audio/translations`.

mod answer;
mod parse;

use std::{
    fs,
    io::Cursor,
    ops::ControlFlow,
    path::PathBuf,
    sync::{Arc, Weak},
};

use axum::{body::Body, extract::State, http::HeaderMap, response::Response};

use self::parse::Ask;
pub(super) use self::{answer::logprobs, parse::spoken};
use super::{
    ApiError, App,
    form::{Fields, Form, split},
    models::wrong_model,
    params::Parsed,
    record::Record,
    wire::audio as wire,
};
use crate::{
    engine::Refused,
    media::sound::{self, Channels, Recording, SoundError, SoundLimits},
    request::InvalidRequest,
    router::{Router, Served},
    speech::{Options, SpeechError, Task, Transcriber},
};

/// Most requests whose file is being received.
pub(super) const MOST_UPLOADS: usize = 256;

/// What recordings may cost, and who helps to decode them.
#[derive(Debug, Clone, PartialEq)]
pub struct SoundConfig {
    /// Most bytes of a file.
    pub file_bytes: usize,
    /// What comes out of it.
    pub limits: SoundLimits,
    /// The program for what percept does not decode itself.
    pub ffmpeg: Option<PathBuf>,
}

/// `POST /v1/audio/transcriptions`
pub(super) async fn transcriptions(
    State(app): State<Arc<App>>,
    record: Record,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    respond(&app, &record, Task::Transcribe, &headers, body).await
}

/// `POST /v1/audio/translations`
pub(super) async fn translations(
    State(app): State<Arc<App>>,
    record: Record,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    respond(&app, &record, Task::Translate, &headers, body).await
}

async fn respond(
    app: &App,
    record: &Record,
    endpoint: Task,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let models = app.models()?;
    let upload =
        app.uploads.try_acquire().map_err(|_| Refused::Busy { waiting: MOST_UPLOADS, retry_after: 5 })?;
    let mut form = Form::open(headers, body, app.config.sound.file_bytes)?;
    let received = match Received::read(&mut form, models, record).await {
        Ok(received) => received,
        Err(error) => {
            form.discard();
            return Err(error);
        }
    };
    drop(upload);
    let Received { fields, file, model } = received;
    let Parsed { value, ignored } = fields.read::<wire::AudioRequest>(wire::HARMLESS)?;
    ignored.check(app.config.strict)?;
    let ask = Ask::parse(value, endpoint)?;
    let missing = |param: &str| InvalidRequest::Missing { param: param.into() };
    let model = model.ok_or_else(|| missing("model"))?;
    let file = file.ok_or_else(|| missing("file"))?;
    let place = record.reserve(&model)?;
    let model = model.speech().ok_or_else(|| wrong_model(record, models, &model, "transcribe")).cloned()?;
    let (options, reply) = ask.resolve(&model)?;
    let recording = record.media(decode(app, "file", file, reply.channels())).await?;
    reply.check(&recording)?;
    let duration = recording.seconds();
    record.audio(duration)?;
    let transcription = model.start(Arc::new(recording), options, place);
    let mut response = if reply.stream {
        answer::stream(reply, model, transcription, duration)
    } else {
        answer::whole(reply, &model, &answer::collect(transcription).await?)
    };
    ignored.report(&mut response);
    Ok(response)
}

/// What a form had.
struct Received {
    fields: Fields,
    file: Option<fs::File>,
    /// One that transcribes.
    model: Option<Arc<Served>>,
}

impl Received {
    /// Reads a form whose parts come in any order. Where the model is in front of the file, nobody sends a file for
    /// nothing: it is known before whether there is such a model and a place in its queue.
    async fn read(form: &mut Form, models: &Router, record: &Record) -> Result<Self, ApiError> {
        let mut received = Self { fields: Fields::default(), file: None, model: None };
        while let Some(name) = form.part().await? {
            let (field, _) = split(&name);
            if let Some((param, reason)) = wire::REFUSED.iter().find(|(refused, _)| *refused == field) {
                let (param, reason) = ((*param).into(), (*reason).into());
                return Err(InvalidRequest::Unsupported { param, reason }.into());
            }
            if field == "file" {
                if received.file.is_some() {
                    return Err(InvalidRequest::Repeated { param: "file".into() }.into());
                }
                received.file = Some(form.file().await?);
                continue;
            }
            let text = form.text(&name).await?;
            if name == "model" && received.model.is_none() {
                received.model = Some(find(models, record, &text)?);
            }
            received.fields.push(&name, text);
        }
        Ok(received)
    }
}

/// A model that has room at present. A place is taken when the file is there: who sends slowly keeps none.
fn find(models: &Router, record: &Record, name: &str) -> Result<Arc<Served>, ApiError> {
    let model = record.find(models, name)?;
    model.speech().ok_or_else(|| wrong_model(record, models, model, "transcribe"))?;
    drop(model.handle.reserve()?);
    Ok(Arc::clone(model))
}

/// What is said in a recording that is part of something else, `param`.
pub(super) async fn write_down(
    app: &App,
    record: &Record,
    model: &Arc<Transcriber>,
    param: &str,
    file: Vec<u8>,
) -> Result<String, ApiError> {
    let place = model.handle().reserve()?;
    record.also(place.work());
    let recording = record.media(decode(app, param, Cursor::new(file), Channels::Mixed)).await?;
    record.audio(recording.seconds())?;
    let transcription = model.start(Arc::new(recording), Options::default(), place);
    Ok(answer::collect(transcription).await?.text.trim().to_owned())
}

/// Decodes a file, and stops when nobody waits for it any more.
async fn decode(
    app: &App,
    param: &str,
    file: impl sound::Source,
    channels: Channels,
) -> Result<Recording, ApiError> {
    let SoundConfig { limits, ffmpeg, .. } = app.config.sound.clone();
    // Gone as soon as this future is dropped.
    let waiting = Arc::new(());
    let waiter: Weak<()> = Arc::downgrade(&waiting);
    let decoded = app.decoders.run(move || {
        sound::decode(file, &limits, channels, ffmpeg.as_deref(), |_| match waiter.strong_count() {
            0 => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        })
    });
    let decoded = decoded.await.map_err(|error| ApiError::internal(&error))?;
    drop(waiting);
    decoded.map_err(|error| match error {
        SoundError::Io(_) | SoundError::Stopped => ApiError::internal(&error),
        error => InvalidRequest::Sound { param: param.into(), error }.into(),
    })
}

impl From<SpeechError> for ApiError {
    fn from(error: SpeechError) -> Self {
        match error {
            SpeechError::Engine(error) => error.into(),
            SpeechError::Stopped => Refused::Stopped.into(),
            error => Self::internal(&error),
        }
    }
}
