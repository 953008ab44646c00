//! `/v1/audio/transcriptions` and `/v1/audio/translations`.

mod answer;
mod parse;

use std::{
    fs,
    io::{Cursor, Seek as _, SeekFrom},
    ops::ControlFlow,
    path::PathBuf,
    sync::{Arc, Weak},
};

use axum::{body::Body, extract::State, http::HeaderMap, response::Response};

use tokio::io::{AsyncRead, AsyncWriteExt as _};
use tokio_util::io::StreamReader;

use self::parse::Ask;
pub(super) use self::{answer::logprobs, parse::spoken};
use super::{
    ApiError, App, chat,
    check::unsupported,
    files,
    form::{Fields, Form, split},
    json,
    models::wrong_model,
    params::{Ignored, Parsed},
    record::Record,
    wire::{Object, audio as wire},
};
use crate::{
    engine::Refused,
    media::{
        FetchError,
        sound::{self, Channels, Recording, SoundError, SoundLimits},
    },
    request::InvalidRequest,
    router::{Kind, Router, Served},
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
    let Received { request, ignored, file, model } = if json::is_json(headers) {
        Received::from_json(app, record, models, headers, body).await?
    } else {
        Received::from_form(app, record, models, headers, body).await?
    };
    ignored.check(app.config.strict)?;
    let kept = request.file_id.clone();
    let ask = Ask::parse(request, endpoint)?;
    let missing = |param: &str| InvalidRequest::Missing { param: param.into() };
    let model = model.ok_or_else(|| missing("model"))?;
    let file = match (file, kept) {
        (Some(_), Some(_)) => return Err(unsupported("file_id", "the recording is sent as well").into()),
        (Some(file), None) => file,
        (None, Some(id)) => kept_file(app, record, &id).await?,
        (None, None) => return Err(missing("file").into()),
    };
    let place = record.reserve(&model)?;
    let model = model.speech().ok_or_else(|| wrong_model(record, models, &model, Kind::Speech)).cloned()?;
    let (options, reply) = ask.resolve(&model)?;
    let recording = record.media(decode(app, "file", file, reply.channels())).await?;
    reply.check(&recording)?;
    let duration = recording.seconds();
    record.audio(duration)?;
    let transcription = model.start(Arc::new(recording), options, place);
    let response = if reply.stream {
        answer::stream(reply, model, transcription, duration)
    } else {
        answer::whole(reply, &model, &answer::collect(transcription).await?)
    };
    Ok(ignored.with(response))
}

/// What was asked.
struct Received {
    request: wire::AudioRequest,
    ignored: Ignored,
    file: Option<fs::File>,
    /// One that transcribes.
    model: Option<Arc<Served>>,
}

impl Received {
    /// Reads a form whose parts come in any order. Where the model is in front of the file, nobody sends a file for
    /// nothing: it is known before whether there is such a model and a place in its queue.
    async fn from_form(
        app: &App,
        record: &Record,
        models: &Router,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<Self, ApiError> {
        let upload = app.upload()?;
        let mut form = Form::open(headers, body, app.config.sound.file_bytes)?;
        let (mut fields, mut file, mut model) = (Fields::default(), None, None);
        let read = async {
            while let Some(name) = form.part().await? {
                let (field, _) = split(&name);
                refuse(|refused| refused == field)?;
                if field == "file" {
                    if file.is_some() {
                        return Err(InvalidRequest::Repeated { param: "file".into() }.into());
                    }
                    file = Some(form.file().await?);
                    continue;
                }
                let text = form.text(&name).await?;
                if name == "model" && model.is_none() {
                    model = Some(find(models, record, &text)?);
                }
                fields.push(&name, text);
            }
            Ok(())
        };
        if let Err(error) = read.await {
            form.discard();
            return Err(error);
        }
        drop(upload);
        let Parsed { value: request, ignored } = fields.read::<wire::AudioRequest>(wire::HARMLESS)?;
        if request.input_audio.is_some() {
            return Err(unsupported("input_audio", "it is for requests in JSON; send 'file'").into());
        }
        Ok(Self { request, ignored, file, model })
    }

    /// Reads JSON, with the recording in base64, as Open WebUI sends it, or with the name of a file that is kept.
    async fn from_json(
        app: &App,
        record: &Record,
        models: &Router,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<Self, ApiError> {
        let harmless = |path: &str| wire::HARMLESS.contains(&path);
        let Parsed { value: mut request, ignored } =
            json::read::<wire::AudioRequest>(headers, body, app.config.body_bytes, harmless).await?;
        refuse(|refused| ignored.has(refused))?;
        let model = request.model.as_deref().map(|name| find(models, record, name)).transpose()?;
        let file = match request.input_audio.take() {
            None => None,
            Some(Object(audio)) => {
                let param = "input_audio.data";
                let data = audio.data.ok_or_else(|| InvalidRequest::Missing { param: param.into() })?;
                let bytes = from_base64(param, &data, app.config.sound.file_bytes)?;
                Some(spooled(Cursor::new(bytes)).await?)
            }
        };
        Ok(Self { request, ignored, file, model })
    }
}

/// The file of a recording that the field `param` has in base64, or as a data URL.
pub(super) fn from_base64(param: &str, data: &str, limit: usize) -> Result<Vec<u8>, InvalidRequest> {
    let broken = |error: FetchError| {
        let error = SoundError::Broken { reason: error.to_string() };
        InvalidRequest::Sound { param: param.into(), error }
    };
    chat::base64_or_url(data, limit).map_err(broken)
}

/// Refuses what would change the answer and is not done.
fn refuse(is_there: impl Fn(&str) -> bool) -> Result<(), InvalidRequest> {
    match wire::REFUSED.iter().find(|(refused, _)| is_there(refused)) {
        Some((param, reason)) => Err(unsupported(param, *reason)),
        None => Ok(()),
    }
}

/// The content of a file that is kept.
async fn kept_file(app: &App, record: &Record, id: &str) -> Result<fs::File, ApiError> {
    let (store, owner) = files::store(app, record)?;
    let file = files::find(store, &owner, id).await?;
    let limit = app.config.sound.file_bytes;
    if file.bytes > limit as u64 {
        return Err(ApiError::BodyTooLarge { limit });
    }
    spooled(StreamReader::new(store.content(&file.id, None).await?)).await
}

/// A file without a name of what is read, at its beginning.
async fn spooled(mut content: impl AsyncRead + Unpin) -> Result<fs::File, ApiError> {
    let failed =
        |error: std::io::Error| ApiError::internal(&format!("a recording could not be kept: {error}"));
    let mut file = tokio::fs::File::from_std(tempfile::tempfile().map_err(failed)?);
    tokio::io::copy(&mut content, &mut file).await.map_err(failed)?;
    file.flush().await.map_err(failed)?;
    let mut file = file.into_std().await;
    file.seek(SeekFrom::Start(0)).map_err(failed)?;
    Ok(file)
}

/// A model that has room at present. A place is taken when the file is there: who sends slowly keeps none.
fn find(models: &Router, record: &Record, name: &str) -> Result<Arc<Served>, ApiError> {
    let model = record.find(models, name)?;
    model.speech().ok_or_else(|| wrong_model(record, models, model, Kind::Speech))?;
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
    let place = model.handle().reserve_in(record.scope(), record.priority())?;
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
