//! How a session hears and writes: from the wire, in the shape of either API, and back.

use std::sync::Arc;

use super::super::{
    ApiError, App,
    audio::spoken,
    check::{decimal, integer, unsupported, value},
    models::wrong_model,
    record::Record,
    wire::{Items, Object, realtime as wire},
};
use crate::{
    media::sound::LiveFormat,
    request::InvalidRequest,
    router::{Kind, Served},
    speech::{Options, Transcriber, live::Turns},
};

/// Most milliseconds around speech, or of a silence.
const MOST_MS: i64 = 30_000;
/// Least milliseconds of a silence that ends a turn.
const LEAST_SILENCE_MS: i64 = 20;
/// Most bytes of a prompt, and of all keywords together; a model takes a few hundred tokens of them.
const LONGEST_WORDS: usize = 64 << 10;
/// What else a session can tell.
const LOGPROBS: &str = "item.input_audio_transcription.logprobs";

/// How a session hears and writes.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    /// The model, as it was asked for.
    name: String,
    pub(super) model: Arc<Served>,
    pub(super) transcriber: Arc<Transcriber>,
    pub(super) format: LiveFormat,
    pub(super) turns: Option<Turns>,
    pub(super) logprobs: bool,
    pub(super) options: Options,
}

impl Settings {
    /// Those of a session that says no more than which model transcribes: the first one that may be used, where it does
    /// not say so either.
    pub(super) fn new(app: &App, record: &Record, name: Option<&str>) -> Result<Self, ApiError> {
        let models = app.models()?;
        let first = || {
            let speech = models.models().iter().filter(|served| served.speech().is_some());
            speech.filter(|served| record.may_use(served, &served.id)).map(|served| &*served.id).next()
        };
        let name = match name.filter(|name| !name.is_empty()) {
            Some(name) => name,
            None => first().ok_or_else(|| {
                unsupported("model", "speech is written down by a speech model, and there is none here")
            })?,
        };
        let (model, transcriber) = find(app, record, name)?;
        Ok(Self {
            name: name.to_owned(),
            model,
            transcriber,
            format: LiveFormat::Pcm16,
            turns: Some(Turns::default()),
            logprobs: false,
            options: Options::default(),
        })
    }

    /// These with what an update changes.
    pub(super) fn updated(
        &self,
        app: &App,
        record: &Record,
        update: wire::SessionUpdate,
    ) -> Result<Self, ApiError> {
        let mut new = self.clone();
        if let Some(other) = update.kind.as_deref().filter(|kind| *kind != "transcription") {
            return Err(value("session.type", other, "'transcription'").into());
        }
        if let Some(Items(include)) = &update.include {
            if let Some(other) = include.iter().find(|item| *item != LOGPROBS) {
                return Err(value("session.include", other, &format!("'{LOGPROBS}'")).into());
            }
            new.logprobs = !include.is_empty();
        }
        if let Some(format) = &update.input_audio_format {
            new.format = match &**format {
                "pcm16" => LiveFormat::Pcm16,
                "g711_ulaw" => LiveFormat::MuLaw,
                "g711_alaw" => LiveFormat::ALaw,
                other => {
                    let supported = "'pcm16', 'g711_ulaw' and 'g711_alaw'";
                    return Err(value("session.input_audio_format", other, supported).into());
                }
            };
        }
        if let Some(Object(transcription)) = update.input_audio_transcription {
            new.transcribe(app, record, transcription, "session.input_audio_transcription")?;
        }
        if let Some(turns) = update.turn_detection {
            new.turns = turns.map(|Object(turns)| detect(&turns, "session.turn_detection")).transpose()?;
        }
        if let Some(Object(input)) = update.audio.and_then(|Object(audio)| audio.input) {
            let path = "session.audio.input";
            if let Some(Object(format)) = &input.format {
                new.format = live(format, &format!("{path}.format"))?;
            }
            if let Some(Object(transcription)) = input.transcription {
                new.transcribe(app, record, transcription, &format!("{path}.transcription"))?;
            }
            if let Some(turns) = input.turn_detection {
                let path = format!("{path}.turn_detection");
                new.turns = turns.map(|Object(turns)| detect(&turns, &path)).transpose()?;
            }
        }
        Ok(new)
    }

    fn transcribe(
        &mut self,
        app: &App,
        record: &Record,
        transcription: wire::Transcription,
        path: &str,
    ) -> Result<(), ApiError> {
        let wire::Transcription { model, language, languages, prompt, keywords } = transcription;
        if let Some(name) = model.filter(|name| *name != self.name) {
            self.set_model(app, record, &name)?;
        }
        let known: Vec<String> = self.transcriber.languages().map(str::to_owned).collect();
        let spoken = |field: &str, language: &str| spoken(&format!("{path}.{field}"), language, &known);
        // What is not said again is no longer said: a transcription is given as a whole.
        let language = language.filter(|language| !language.is_empty());
        self.options.language = language.map(|language| spoken("language", &language)).transpose()?;
        let Items(languages) = languages.unwrap_or_default();
        let candidates = languages.iter().map(|language| spoken("languages", language));
        self.options.candidates = candidates.collect::<Result<_, _>>()?;
        let Items(keywords) = keywords.unwrap_or_default();
        let keywords = Some(keywords.join(", ")).filter(|words| !words.is_empty());
        let prompt = prompt.filter(|prompt| !prompt.is_empty());
        for (field, words) in [("prompt", &prompt), ("keywords", &keywords)] {
            if let Some(words) = words.as_ref().filter(|words| words.len() > LONGEST_WORDS) {
                let (param, found) = (format!("{path}.{field}"), words.len());
                return Err(InvalidRequest::StringLength { param, found, limit: LONGEST_WORDS }.into());
            }
        }
        self.options.initial_prompt = prompt;
        self.options.hotwords = keywords;
        Ok(())
    }

    /// Has another model transcribe.
    pub(super) fn set_model(&mut self, app: &App, record: &Record, name: &str) -> Result<(), ApiError> {
        (self.model, self.transcriber) = find(app, record, name)?;
        name.clone_into(&mut self.name);
        Ok(())
    }

    /// Bytes of texts in them.
    pub(super) fn words(&self) -> usize {
        let texts = [&self.options.initial_prompt, &self.options.hotwords];
        texts.into_iter().flatten().map(String::len).sum::<usize>() + self.name.len()
    }

    /// As the wire has them.
    pub(super) fn session<'a>(&'a self, id: &'a str, expires_at: u64) -> wire::Session<'a> {
        wire::Session {
            id,
            object: OBJECT,
            kind: "transcription",
            expires_at,
            audio: wire::SessionAudio {
                input: wire::SessionInput {
                    format: match self.format {
                        LiveFormat::Pcm16 => wire::SessionFormat { kind: "audio/pcm", rate: Some(PCM_RATE) },
                        LiveFormat::MuLaw => wire::SessionFormat { kind: "audio/pcmu", rate: None },
                        LiveFormat::ALaw => wire::SessionFormat { kind: "audio/pcma", rate: None },
                    },
                    transcription: self.transcription(),
                    turn_detection: self.turn_detection(),
                    noise_reduction: None,
                },
            },
            include: self.include(),
        }
    }

    /// As the older API's wire has them.
    pub(super) fn older<'a>(&'a self, id: &'a str, expires_at: u64) -> wire::OlderSession<'a> {
        wire::OlderSession {
            id,
            object: OBJECT,
            expires_at,
            input_audio_format: match self.format {
                LiveFormat::Pcm16 => "pcm16",
                LiveFormat::MuLaw => "g711_ulaw",
                LiveFormat::ALaw => "g711_alaw",
            },
            input_audio_transcription: self.transcription(),
            turn_detection: self.turn_detection(),
            input_audio_noise_reduction: None,
            include: self.include(),
        }
    }

    fn transcription(&self) -> wire::SessionTranscription<'_> {
        wire::SessionTranscription {
            model: &self.name,
            language: self.options.language.as_deref(),
            prompt: self.options.initial_prompt.as_deref(),
        }
    }

    fn turn_detection(&self) -> Option<wire::SessionTurns> {
        self.turns.map(|turns| wire::SessionTurns {
            kind: "server_vad",
            threshold: turns.threshold,
            prefix_padding_ms: turns.padding_ms,
            silence_duration_ms: turns.silence_ms,
        })
    }

    fn include(&self) -> &'static [&'static str] {
        if self.logprobs { &[LOGPROBS] } else { &[] }
    }
}

const OBJECT: &str = "realtime.transcription_session";
/// Samples per second of `audio/pcm`.
const PCM_RATE: i64 = 24_000;

fn find(app: &App, record: &Record, name: &str) -> Result<(Arc<Served>, Arc<Transcriber>), ApiError> {
    let models = app.models()?;
    let model = record.find(models, name)?;
    let transcriber = model.speech().ok_or_else(|| wrong_model(record, models, model, Kind::Speech))?;
    Ok((Arc::clone(model), Arc::clone(transcriber)))
}

fn live(format: &wire::Format, path: &str) -> Result<LiveFormat, InvalidRequest> {
    match format.kind.as_deref() {
        // Only one rate is taken by the API, which is why it may be left out.
        Some("audio/pcm") => match format.rate {
            None | Some(PCM_RATE) => Ok(LiveFormat::Pcm16),
            Some(other) => Err(value(&format!("{path}.rate"), &other.to_string(), "24000")),
        },
        Some("audio/pcmu") => Ok(LiveFormat::MuLaw),
        Some("audio/pcma") => Ok(LiveFormat::ALaw),
        Some(other) => {
            Err(value(&format!("{path}.type"), other, "'audio/pcm', 'audio/pcmu' and 'audio/pcma'"))
        }
        None => Err(InvalidRequest::Missing { param: format!("{path}.type") }),
    }
}

fn detect(turns: &wire::TurnDetection, path: &str) -> Result<Turns, InvalidRequest> {
    if let Some(other) = turns.kind.as_deref().filter(|kind| *kind != "server_vad") {
        return Err(value(&format!("{path}.type"), other, "'server_vad', and null in place of the object"));
    }
    if turns.idle_timeout_ms.is_some() {
        let reason = "a session that transcribes has nothing to say when nobody speaks";
        return Err(unsupported(&format!("{path}.idle_timeout_ms"), reason));
    }
    let default = Turns::default();
    let milliseconds = |field: &str, found: Option<i64>, least: i64, default: u32| {
        let found =
            found.map(|found| integer(&format!("{path}.{field}"), found, least, MOST_MS)).transpose()?;
        Ok::<_, InvalidRequest>(found.map_or(default, |found| found as u32))
    };
    Ok(Turns {
        threshold: decimal(&format!("{path}.threshold"), turns.threshold, 0.0, 1.0)?
            .map_or(default.threshold, |threshold| threshold as f32),
        padding_ms: milliseconds("prefix_padding_ms", turns.prefix_padding_ms, 0, default.padding_ms)?,
        silence_ms: milliseconds(
            "silence_duration_ms",
            turns.silence_duration_ms,
            LEAST_SILENCE_MS,
            default.silence_ms,
        )?,
    })
}
