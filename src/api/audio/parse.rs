//! From the wire to a transcription that is valid as far as it can be told without a model, and then with one.

use crate::{
    api::{
        check::{decimal, integer, missing, unsupported, value},
        wire::{
            Items,
            audio::{self as wire, Chunking, Threshold},
        },
    },
    media::sound::{Channels, Recording},
    request::InvalidRequest,
    speech::{Mode, Options, Suppress, Task, Transcriber, languages, vad::VadOptions},
};

/// Most beams, and most samples of a temperature.
const MOST_BEAMS: i64 = 16;
/// Length of a window, in seconds.
const WINDOW: f64 = 30.0;
/// Most milliseconds around speech, or of a silence.
const MOST_MS: i64 = 30_000;
/// Most bytes of all keywords together; a model takes a few hundred tokens of them.
const LONGEST_WORDS: usize = 64 << 10;
/// Times beyond this make no sense, in seconds.
const LATEST: f64 = 1e7;

/// A transcription to make.
#[derive(Debug)]
pub(super) struct Ask {
    /// As it was written.
    language: Option<String>,
    /// As they were written.
    languages: Vec<String>,
    /// All but the languages.
    options: Options,
    reply: Reply,
    endpoint: Task,
}

/// What the answer looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) format: Format,
    pub(super) task: Task,
    pub(super) stream: bool,
    pub(super) logprobs: bool,
    /// Whether it says which language was spoken, of those that were named.
    pub(super) language: bool,
    /// What of the times is asked for.
    pub(super) times: Times,
}

/// Formats of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Json,
    Text,
    Srt,
    Vtt,
    Tsv,
    Verbose,
    /// With speakers.
    Diarized,
}

/// What a verbose answer has times of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Times {
    pub(super) segments: bool,
    pub(super) words: bool,
    /// Words inside of segments.
    pub(super) segment_words: bool,
}

impl Reply {
    /// Speakers are told by their channels.
    pub(super) fn channels(&self) -> Channels {
        if self.format == Format::Diarized { Channels::Apart } else { Channels::Mixed }
    }

    /// Refuses a recording of which no such answer can be given.
    pub(super) fn check(&self, recording: &Recording) -> Result<(), InvalidRequest> {
        if self.format == Format::Diarized && recording.channels() < 2 {
            let reason = "'diarized_json' tells speakers by their channels, and the recording has only one; this \
                          server does not know speakers by their voices";
            return Err(unsupported("response_format", reason));
        }
        Ok(())
    }
}

impl Ask {
    /// A request to `endpoint`, whose name is that of a task.
    pub(super) fn parse(request: wire::AudioRequest, endpoint: Task) -> Result<Self, InvalidRequest> {
        let reply = reply(&request, task(request.task.as_deref(), endpoint)?)?;
        let hallucination = threshold(
            "hallucination_silence_threshold",
            request.hallucination_silence_threshold,
            None,
            (0.0, LATEST),
        )?;
        let defaults = Options::default();
        let (mode, vad) = mode(&request)?;
        let beam_size = integer("beam_size", request.beam_size.unwrap_or(1), 1, MOST_BEAMS)? as usize;
        if request.patience.is_some() && beam_size == 1 {
            return Err(unsupported("patience", "it is for beam search; send a 'beam_size' above 1, too"));
        }
        let max_new_tokens =
            request.max_new_tokens.map(|most| integer("max_new_tokens", most, 1, i64::MAX)).transpose()?;
        let options = Options {
            task: reply.task,
            language: None,
            candidates: Vec::new(),
            temperatures: temperatures(request.temperature, request.temperatures, defaults.temperatures)?,
            seed: request.seed.map_or(defaults.seed, i64::cast_unsigned),
            compression_ratio_threshold: threshold(
                "compression_ratio_threshold",
                request.compression_ratio_threshold,
                defaults.compression_ratio_threshold,
                (0.0, 1000.0),
            )?,
            logprob_threshold: threshold(
                "logprob_threshold",
                request.logprob_threshold,
                defaults.logprob_threshold,
                (-1000.0, 0.0),
            )?,
            no_speech_threshold: threshold(
                "no_speech_threshold",
                request.no_speech_threshold,
                defaults.no_speech_threshold,
                (0.0, 1.0),
            )?,
            condition_on_previous_text: request.condition_on_previous_text,
            initial_prompt: request.prompt.or(request.initial_prompt).filter(|text| !text.trim().is_empty()),
            carry_initial_prompt: request.carry_initial_prompt.unwrap_or(defaults.carry_initial_prompt),
            hotwords: hotwords(request.keywords, request.hotwords)?,
            prefix: request.prefix.filter(|text| !text.trim().is_empty()),
            // What looks invented is told by its words.
            words: reply.times.words || reply.times.segment_words || hallucination.is_some(),
            without_timestamps: request.without_timestamps.unwrap_or(defaults.without_timestamps),
            max_initial_timestamp: decimal(
                "max_initial_timestamp",
                request.max_initial_timestamp,
                0.0,
                WINDOW,
            )?
            .or(defaults.max_initial_timestamp),
            suppress_blank: request.suppress_blank.unwrap_or(defaults.suppress_blank),
            suppress: suppress(request.suppress_tokens)?,
            best_of: integer("best_of", request.best_of.unwrap_or(1), 1, MOST_BEAMS)? as usize,
            beam_size,
            patience: decimal("patience", request.patience, 0.1, 10.0)?.unwrap_or(defaults.patience),
            length_penalty: decimal("length_penalty", request.length_penalty, 0.0, 1.0)?,
            sample_len: max_new_tokens.map(|most| most as usize),
            hallucination_silence_threshold: hallucination,
            clips: clips(request.clip_timestamps)?,
            mode,
            vad,
        };
        let languages = request.languages.map_or_else(Vec::new, |languages| languages.0);
        Ok(Self { language: request.language, languages, options, reply, endpoint })
    }

    /// What is asked of this model.
    pub(super) fn resolve(self, model: &Transcriber) -> Result<(Options, Reply), InvalidRequest> {
        let Self { language, languages, mut options, reply, endpoint } = self;
        let known: Vec<String> = model.languages().map(str::to_owned).collect();
        if options.task == Task::Translate && !model.can_translate() {
            let param = if endpoint == Task::Translate { "model" } else { "task" };
            return Err(unsupported(param, "this model does not translate"));
        }
        if let Suppress::Ids(ids) | Suppress::NonSpeechAnd(ids) = &options.suppress {
            let vocabulary = model.vocabulary();
            let needed = |id: &&u32| vocabulary.is_mark(**id) || **id == vocabulary.end;
            if let Some(id) = ids.iter().find(needed) {
                let supported = "ids of text and control; an answer cannot do without its times and its end";
                return Err(value("suppress_tokens", &id.to_string(), supported));
            }
        }
        options.language = language.map(|language| spoken("language", &language, &known)).transpose()?;
        let candidates = languages.iter().map(|language| spoken("languages", language, &known));
        options.candidates = candidates.collect::<Result<_, _>>()?;
        if let ([one], None) = (options.candidates.as_slice(), &options.language) {
            options.language = Some(one.clone());
        }
        Ok((options, reply))
    }
}

/// What the fields say, in a path whose name says something, too.
fn task(asked: Option<&str>, endpoint: Task) -> Result<Task, InvalidRequest> {
    match (asked, endpoint) {
        (None, endpoint) => Ok(endpoint),
        (Some("translate"), _) => Ok(Task::Translate),
        (Some("transcribe"), Task::Transcribe) => Ok(Task::Transcribe),
        (Some("transcribe"), Task::Translate) => {
            Err(unsupported("task", "this path translates; use /v1/audio/transcriptions"))
        }
        (Some(other), _) => Err(value("task", other, "'transcribe' and 'translate'")),
    }
}

fn reply(request: &wire::AudioRequest, task: Task) -> Result<Reply, InvalidRequest> {
    let format = match request.response_format.as_deref() {
        None | Some("json") => Format::Json,
        Some("text") => Format::Text,
        Some("srt") => Format::Srt,
        Some("vtt") => Format::Vtt,
        Some("tsv") => Format::Tsv,
        Some("verbose_json") => Format::Verbose,
        Some("diarized_json") => Format::Diarized,
        Some(other) => {
            let supported = "'json', 'text', 'srt', 'verbose_json', 'vtt', 'diarized_json' and 'tsv'";
            return Err(value("response_format", other, supported));
        }
    };
    let stream = request.stream.unwrap_or(false);
    if stream && matches!(format, Format::Srt | Format::Vtt | Format::Tsv) {
        return Err(unsupported("stream", "files of the formats 'srt', 'vtt' and 'tsv' come whole"));
    }
    let includes = items(&request.include);
    if let Some(other) = includes.iter().find(|item| *item != "logprobs") {
        return Err(value("include", other, "'logprobs'"));
    }
    if !includes.is_empty() && format != Format::Json {
        return Err(unsupported("include", "log probabilities come with response_format 'json' only"));
    }
    Ok(Reply {
        format,
        task,
        stream,
        logprobs: !includes.is_empty(),
        language: !items(&request.languages).is_empty(),
        times: times(request, format)?,
    })
}

fn times(request: &wire::AudioRequest, format: Format) -> Result<Times, InvalidRequest> {
    let asked = items(&request.timestamp_granularities);
    if let Some(other) = asked.iter().find(|item| !["segment", "word"].contains(&item.as_str())) {
        return Err(value("timestamp_granularities", other, "'segment' and 'word'"));
    }
    let words = asked.iter().any(|item| item == "word");
    if words && format != Format::Verbose {
        let reason = "words have times in response_format 'verbose_json' only";
        return Err(unsupported("timestamp_granularities", reason));
    }
    let segment_words = request.word_timestamps.unwrap_or(false);
    // Whoever asks for words alone gets words alone, as from the hosted API.
    let segments = !words || segment_words || asked.iter().any(|item| item == "segment");
    Ok(Times { segments, words, segment_words })
}

/// 0, or nothing, begins at 0 and goes up as far as it must; anything else is meant as it is.
fn temperatures(
    one: Option<f64>,
    several: Option<Items<f64, { wire::MOST_TEMPERATURES }>>,
    raised: Vec<f32>,
) -> Result<Vec<f32>, InvalidRequest> {
    let one = decimal("temperature", one, 0.0, 1.0)?;
    let several = several.map_or_else(Vec::new, |several| several.0);
    for temperature in &several {
        decimal("temperatures", Some(*temperature), 0.0, 1.0)?;
    }
    Ok(match one {
        _ if !several.is_empty() => several.into_iter().map(|temperature| temperature as f32).collect(),
        Some(temperature) if temperature > 0.0 => vec![temperature as f32],
        _ => raised,
    })
}

fn threshold(
    param: &str,
    asked: Option<Threshold>,
    default: Option<f64>,
    (least, most): (f64, f64),
) -> Result<Option<f64>, InvalidRequest> {
    match asked {
        None => Ok(default),
        Some(Threshold::Off) => Ok(None),
        Some(Threshold::At(limit)) => decimal(param, Some(limit), least, most),
    }
}

fn hotwords(
    keywords: Option<Items<String, { wire::MOST_ITEMS }>>,
    hotwords: Option<String>,
) -> Result<Option<String>, InvalidRequest> {
    let mut words = keywords.map_or_else(Vec::new, |keywords| keywords.0);
    words.extend(hotwords);
    words.retain(|word| !word.trim().is_empty());
    let words = words.join(", ");
    if words.len() > LONGEST_WORDS {
        let (param, found, limit) = ("keywords".into(), words.len(), LONGEST_WORDS);
        return Err(InvalidRequest::StringLength { param, found, limit });
    }
    Ok(Some(words).filter(|words| !words.is_empty()))
}

fn suppress(tokens: Option<Items<i64, { wire::MOST_ITEMS }>>) -> Result<Suppress, InvalidRequest> {
    let Some(Items(tokens)) = tokens else { return Ok(Suppress::NonSpeech) };
    match tokens.as_slice() {
        [] => Ok(Suppress::Nothing),
        [-1] => Ok(Suppress::NonSpeech),
        ids => {
            let id = |id: &i64| {
                u32::try_from(*id).map_err(|_| {
                    value("suppress_tokens", &id.to_string(), "token ids, and -1 for the model's list")
                })
            };
            let listed = ids.iter().filter(|id| **id != -1).map(id).collect::<Result<_, _>>()?;
            Ok(if ids.contains(&-1) { Suppress::NonSpeechAnd(listed) } else { Suppress::Ids(listed) })
        }
    }
}

/// Starts and ends, in turn; the last end may be left out.
fn clips(times: Option<Items<f64, { wire::MOST_ITEMS }>>) -> Result<Vec<(f64, Option<f64>)>, InvalidRequest> {
    const PARAM: &str = "clip_timestamps";
    let times = times.map_or_else(Vec::new, |times| times.0);
    let mut least = 0.0;
    for time in &times {
        decimal(PARAM, Some(*time), 0.0, LATEST)?;
        if *time < least {
            return Err(value(PARAM, &time.to_string(), "seconds in ascending order"));
        }
        least = *time;
    }
    Ok(times.chunks(2).map(|clip| (clip[0], clip.get(1).copied())).collect())
}

/// How windows follow each other, and where they are cut.
fn mode(request: &wire::AudioRequest) -> Result<(Mode, VadOptions), InvalidRequest> {
    let chunked = request.chunking_strategy.is_some() || request.vad_filter == Some(true);
    let mode = match request.mode.as_deref() {
        Some("sequential") if chunked => {
            let reason = "'sequential' follows the text, and does not cut at silences; leave out 'chunking_strategy' \
                          and 'vad_filter', or this";
            return Err(unsupported("mode", reason));
        }
        Some("sequential") => Mode::Sequential,
        Some("parallel") => Mode::Parallel,
        None | Some("auto") if chunked => Mode::Parallel,
        // Only windows that follow each other can know of each other.
        None | Some("auto") if request.condition_on_previous_text == Some(true) => Mode::Sequential,
        None | Some("auto") => Mode::Auto,
        Some(other) => return Err(value("mode", other, "'auto', 'sequential' and 'parallel'")),
    };
    if mode == Mode::Parallel && request.condition_on_previous_text == Some(true) {
        let reason = "windows that are transcribed at once do not know each other's text; leave this out, or \
                      'chunking_strategy', 'vad_filter' and 'mode'";
        return Err(unsupported("condition_on_previous_text", reason));
    }
    let vad = match &request.chunking_strategy {
        None => VadOptions::default(),
        Some(Chunking::Name(name)) if name == "auto" => VadOptions::default(),
        Some(Chunking::Name(other)) => {
            return Err(value("chunking_strategy", other, "'auto' and an object of type 'server_vad'"));
        }
        Some(Chunking::Silences(silences)) => self::silences(silences)?,
    };
    Ok((mode, vad))
}

fn silences(asked: &wire::Silences) -> Result<VadOptions, InvalidRequest> {
    match asked.kind.as_deref() {
        Some("server_vad") => {}
        Some(other) => return Err(value("chunking_strategy.type", other, "'server_vad'")),
        None => return Err(missing("chunking_strategy.type")),
    }
    let defaults = VadOptions::default();
    let milliseconds = |param: &str, asked: Option<i64>, default: u32| {
        asked.map_or(Ok(default), |ms| integer(param, ms, 0, MOST_MS).map(|ms| ms as u32))
    };
    let threshold = decimal("chunking_strategy.threshold", asked.threshold, 0.0, 1.0)?;
    Ok(VadOptions {
        threshold: threshold.map_or(defaults.threshold, |threshold| threshold as f32),
        min_silence_ms: milliseconds(
            "chunking_strategy.silence_duration_ms",
            asked.silence_duration_ms,
            defaults.min_silence_ms,
        )?,
        pad_ms: milliseconds(
            "chunking_strategy.prefix_padding_ms",
            asked.prefix_padding_ms,
            defaults.pad_ms,
        )?,
        ..defaults
    })
}

/// The code of a language, which a model must know. A model of English alone knows none.
/// The code of a language by its code or name, among those that are known.
pub(in crate::api) fn spoken(param: &str, text: &str, known: &[String]) -> Result<String, InvalidRequest> {
    let literal = text.trim().to_lowercase();
    let is_known = |code: &str| known.iter().any(|known| known == code);
    let code = if is_known(&literal) { Some(literal.as_str()) } else { languages::code(text) };
    match code {
        Some(code) if is_known(code) || known.is_empty() && code == "en" => Ok(code.to_owned()),
        Some(_) if known.is_empty() => Err(unsupported(param, "this model understands English only")),
        _ if known.is_empty() => Err(value(param, text, "'en'")),
        _ => Err(value(param, text, &format!("{}, or the languages' English names", known.join(", ")))),
    }
}

fn items(list: &Option<Items<String, { wire::MOST_ITEMS }>>) -> &[String] {
    list.as_ref().map_or(&[], |items| &items.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::form::Fields;

    fn ask(endpoint: Task, parts: &[(&str, &str)]) -> Result<Ask, InvalidRequest> {
        let mut fields = Fields::default();
        for (name, text) in parts {
            fields.push(name, (*text).into());
        }
        Ask::parse(fields.read(wire::HARMLESS)?.value, endpoint)
    }

    fn options(parts: &[(&str, &str)]) -> Options {
        ask(Task::Transcribe, parts).unwrap_or_else(|error| panic!("{parts:?}: {error}")).options
    }

    fn reply(parts: &[(&str, &str)]) -> Reply {
        ask(Task::Transcribe, parts).unwrap_or_else(|error| panic!("{parts:?}: {error}")).reply
    }

    fn error(parts: &[(&str, &str)]) -> String {
        ask(Task::Transcribe, parts).expect_err(&format!("{parts:?}")).to_string()
    }

    #[test]
    fn nothing_asked_for_means_what_the_reference_does() {
        assert_eq!(options(&[]), Options::default());
        assert_eq!(options(&[("temperature", "0"), ("prompt", " "), ("mode", "auto")]), Options::default());
    }

    #[test]
    fn every_field_has_its_effect() {
        let default = Options::default;
        let text = |text: &str| Some(text.to_owned());
        for (parts, expected) in [
            (&[("temperature", "0.3")][..], Options { temperatures: vec![0.3], ..default() }),
            (
                &[("temperatures[]", "0"), ("temperatures[]", "1")],
                Options { temperatures: vec![0.0, 1.0], ..default() },
            ),
            (
                &[("temperature", "0.3"), ("temperatures", "0.5")],
                Options { temperatures: vec![0.5], ..default() },
            ),
            (&[("prompt", "a"), ("initial_prompt", "b")], Options { initial_prompt: text("a"), ..default() }),
            (&[("initial_prompt", "b")], Options { initial_prompt: text("b"), ..default() }),
            (&[("carry_initial_prompt", "1")], Options { carry_initial_prompt: true, ..default() }),
            (
                &[("keywords[]", "Kea"), ("keywords[]", ""), ("keywords[]", "Tui"), ("hotwords", "Moa")],
                Options { hotwords: text("Kea, Tui, Moa"), ..default() },
            ),
            (&[("prefix", "So")], Options { prefix: text("So"), ..default() }),
            (&[("task", "translate")], Options { task: Task::Translate, ..default() }),
            (&[("word_timestamps", "True")], Options { words: true, ..default() }),
            (&[("without_timestamps", "true")], Options { without_timestamps: true, ..default() }),
            (&[("best_of", "5")], Options { best_of: 5, ..default() }),
            (&[("beam_size", "5"), ("patience", "2")], Options { beam_size: 5, patience: 2.0, ..default() }),
            (&[("length_penalty", "0.5")], Options { length_penalty: Some(0.5), ..default() }),
            (&[("seed", "-1")], Options { seed: u64::MAX, ..default() }),
            (&[("suppress_tokens", "-1")], default()),
            (&[("suppress_tokens", "[]")], Options { suppress: Suppress::Nothing, ..default() }),
            (
                &[("suppress_tokens", "-1,5")],
                Options { suppress: Suppress::NonSpeechAnd(vec![5]), ..default() },
            ),
            (&[("suppress_tokens", "1,2")], Options { suppress: Suppress::Ids(vec![1, 2]), ..default() }),
            (&[("suppress_blank", "false")], Options { suppress_blank: false, ..default() }),
            (&[("max_initial_timestamp", "0")], Options { max_initial_timestamp: Some(0.0), ..default() }),
            (&[("max_new_tokens", "7")], Options { sample_len: Some(7), ..default() }),
            (
                &[
                    ("compression_ratio_threshold", "none"),
                    ("logprob_threshold", "-2"),
                    ("no_speech_threshold", "0.1"),
                ],
                Options {
                    compression_ratio_threshold: None,
                    logprob_threshold: Some(-2.0),
                    no_speech_threshold: Some(0.1),
                    ..default()
                },
            ),
            (
                &[("hallucination_silence_threshold", "2")],
                Options { hallucination_silence_threshold: Some(2.0), words: true, ..default() },
            ),
            (
                &[("clip_timestamps", "1,2.5,4")],
                Options { clips: vec![(1.0, Some(2.5)), (4.0, None)], ..default() },
            ),
            (&[("mode", "sequential")], Options { mode: Mode::Sequential, ..default() }),
            (&[("mode", "parallel")], Options { mode: Mode::Parallel, ..default() }),
            (&[("vad_filter", "true")], Options { mode: Mode::Parallel, ..default() }),
            (
                &[("vad_filter", "false"), ("mode", "sequential")],
                Options { mode: Mode::Sequential, ..default() },
            ),
            (&[("chunking_strategy", "auto")], Options { mode: Mode::Parallel, ..default() }),
            (
                &[
                    ("chunking_strategy[type]", "server_vad"),
                    ("chunking_strategy[threshold]", "0.25"),
                    ("chunking_strategy[silence_duration_ms]", "200"),
                    ("chunking_strategy[prefix_padding_ms]", "300"),
                ],
                Options {
                    mode: Mode::Parallel,
                    vad: VadOptions {
                        threshold: 0.25,
                        min_silence_ms: 200,
                        pad_ms: 300,
                        ..VadOptions::default()
                    },
                    ..default()
                },
            ),
            (
                &[("condition_on_previous_text", "true")],
                Options { condition_on_previous_text: Some(true), mode: Mode::Sequential, ..default() },
            ),
            (
                &[("condition_on_previous_text", "false")],
                Options { condition_on_previous_text: Some(false), ..default() },
            ),
        ] {
            assert_eq!(options(parts), expected, "{parts:?}");
        }
    }

    #[test]
    fn the_answer_is_as_asked() {
        let json = reply(&[]);
        assert_eq!(
            (json.format, json.stream, json.logprobs, json.language),
            (Format::Json, false, false, false)
        );
        assert_eq!(json.channels(), Channels::Mixed);
        assert!(reply(&[("include[]", "logprobs"), ("stream", "true")]).logprobs);
        assert!(reply(&[("languages[]", "en")]).language);
        assert_eq!(reply(&[("response_format", "diarized_json")]).channels(), Channels::Apart);
        let times = |parts: &[(&str, &str)]| {
            let verbose = [("response_format", "verbose_json")];
            let Times { segments, words, segment_words } = reply(&[&verbose, parts].concat()).times;
            (segments, words, segment_words)
        };
        assert_eq!(times(&[]), (true, false, false));
        assert_eq!(times(&[("timestamp_granularities[]", "segment")]), (true, false, false));
        assert_eq!(times(&[("timestamp_granularities[]", "word")]), (false, true, false));
        assert_eq!(times(&[("timestamp_granularities", "word,segment")]), (true, true, false));
        assert_eq!(times(&[("word_timestamps", "1")]), (true, false, true));
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        for (parts, param) in [
            (&[("response_format", "xml")][..], "response_format"),
            (&[("task", "sing")], "task"),
            (&[("temperature", "1.1")], "temperature"),
            (&[("temperature", "-0.1")], "temperature"),
            (&[("temperatures", "0,2")], "temperatures"),
            (&[("best_of", "0")], "best_of"),
            (&[("beam_size", "17")], "beam_size"),
            (&[("patience", "2")], "patience"),
            (&[("patience", "0"), ("beam_size", "2")], "patience"),
            (&[("length_penalty", "1.5")], "length_penalty"),
            (&[("suppress_tokens", "-2")], "suppress_tokens"),
            (&[("condition_on_previous_text", "true"), ("mode", "parallel")], "condition_on_previous_text"),
            (
                &[("condition_on_previous_text", "true"), ("chunking_strategy", "auto")],
                "condition_on_previous_text",
            ),
            (&[("max_initial_timestamp", "31")], "max_initial_timestamp"),
            (&[("max_new_tokens", "0")], "max_new_tokens"),
            (&[("compression_ratio_threshold", "-1")], "compression_ratio_threshold"),
            (&[("logprob_threshold", "1")], "logprob_threshold"),
            (&[("no_speech_threshold", "2")], "no_speech_threshold"),
            (&[("hallucination_silence_threshold", "-1")], "hallucination_silence_threshold"),
            (&[("clip_timestamps", "5,4")], "clip_timestamps"),
            (&[("clip_timestamps", "0,5,4")], "clip_timestamps"),
            (&[("clip_timestamps", "-1")], "clip_timestamps"),
            (&[("mode", "fast")], "mode"),
            (&[("mode", "sequential"), ("chunking_strategy", "auto")], "mode"),
            (&[("mode", "sequential"), ("vad_filter", "true")], "mode"),
            (&[("chunking_strategy", "manual")], "chunking_strategy"),
            (&[("chunking_strategy[type]", "vad")], "chunking_strategy.type"),
            (&[("chunking_strategy[threshold]", "0.5")], "chunking_strategy.type"),
            (
                &[("chunking_strategy", r#"{"type":"server_vad","threshold":2}"#)],
                "chunking_strategy.threshold",
            ),
            (
                &[("chunking_strategy[type]", "server_vad"), ("chunking_strategy[prefix_padding_ms]", "-1")],
                "chunking_strategy.prefix_padding_ms",
            ),
            (&[("include[]", "tokens")], "include"),
            (&[("include[]", "logprobs"), ("response_format", "verbose_json")], "include"),
            (&[("timestamp_granularities[]", "letter")], "timestamp_granularities"),
            (&[("timestamp_granularities[]", "word")], "timestamp_granularities"),
            (&[("timestamp_granularities[]", "word"), ("response_format", "srt")], "timestamp_granularities"),
            (&[("stream", "true"), ("response_format", "srt")], "stream"),
            (&[("stream", "true"), ("response_format", "vtt")], "stream"),
        ] {
            let message = error(parts);
            assert!(message.contains(&format!("'{param}'")), "{parts:?}: {message}");
        }
    }

    #[test]
    fn much_is_not_repeated() {
        let word = "a".repeat(LONGEST_WORDS / 2);
        assert!(ask(Task::Transcribe, &[("keywords[]", &word)]).is_ok());
        let message = error(&[("keywords[]", &word), ("keywords[]", &word)]);
        assert!(message.contains("'keywords'") && message.len() < 200, "{message}");
        let message = error(&[("temperature", "1e308")]);
        assert!(message.contains("1e308") && message.len() < 200, "{message}");
    }

    #[test]
    fn a_path_that_translates_does_not_transcribe() {
        let task = |parts: &[(&str, &str)]| ask(Task::Translate, parts).map(|ask| ask.options.task);
        assert_eq!(task(&[]).unwrap(), Task::Translate);
        assert_eq!(task(&[("task", "translate")]).unwrap(), Task::Translate);
        assert!(
            task(&[("task", "transcribe")]).unwrap_err().to_string().contains("/v1/audio/transcriptions")
        );
    }

    #[test]
    fn a_language_is_one_that_the_model_knows() {
        let known: Vec<String> = ["en", "de", "xx"].map(str::to_owned).into();
        let code =
            |text: &str, known: &[String]| spoken("language", text, known).map_err(|error| error.to_string());
        for (text, expected) in [("de", "de"), ("German", "de"), ("DE-at", "de"), ("XX", "xx")] {
            assert_eq!(code(text, &known).unwrap(), expected);
        }
        let unknown = code("hh", &known).unwrap_err();
        assert!(unknown.contains("'hh'") && unknown.contains("en, de, xx"), "{unknown}");
        // A language, but not one of this model.
        assert!(code("french", &known).unwrap_err().contains("'french'"));
        assert_eq!(code("english", &[]).unwrap(), "en");
        assert!(code("de", &[]).unwrap_err().contains("English only"));
        assert!(code("hh", &[]).unwrap_err().contains("'hh'"));
    }
}
