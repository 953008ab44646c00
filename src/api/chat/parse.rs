//! From the wire to a conversation that is valid as far as it can be told without a model.

use uuid::Uuid;

use super::{
    documents::{Document, DocumentSource},
    tools::{self, Constrained, FormFields, Toolbox},
};

use crate::{
    api::{
        check::{decimal, integer, missing, unsupported, value},
        wire::{
            Entries, Items, Object, chat as wire,
            tools::{Call, Called, MOST_TOOLS},
        },
    },
    media::{File, MediaLimits},
    request::{InvalidRequest, Sampling},
    text::{self, Conversation, Message, Part, Role, TextModel},
};

const LONGEST_STOP: usize = 1_000;
/// Most answers to one request: each of them takes a sequence.
pub(in crate::api) const MOST_ANSWERS: i64 = 8;
/// Most tokens whose probabilities are wanted in place of one.
const MOST_LOGPROBS: i64 = 20;

/// A conversation to answer.
pub(in crate::api) struct Chat {
    pub(in crate::api) model: String,
    pub(in crate::api) conversation: Conversation,
    /// In the order of the conversation, which has a picture or a video in the place of each.
    pub(in crate::api) media: Vec<Mention>,
    /// Recordings, which are to become text.
    pub(in crate::api) recordings: Vec<RecordingRef>,
    pub(in crate::api) bare: Bare,
    /// How functions are called, where they may be.
    pub(in crate::api) called: Option<CallStyle>,
    pub(in crate::api) stream: Option<Streaming>,
}

/// What is asked of answers, whatever they answer.
#[derive(Debug, Clone)]
pub(in crate::api) struct Bare {
    pub(in crate::api) sampling: Asked,
    pub(in crate::api) max_tokens: Option<usize>,
    pub(in crate::api) stops: Vec<String>,
    /// Whether answers go on where the model would end them.
    pub(in crate::api) ignore_eos: bool,
    /// How many.
    pub(in crate::api) count: usize,
    /// How many tokens' probabilities are wanted in place of each of an answer's, where any are.
    pub(in crate::api) logprobs: Option<usize>,
    /// What answers must be.
    pub(in crate::api) constrained: Option<Constrained>,
}

/// How calls of functions are told.
#[derive(Debug, Clone, Copy)]
pub(in crate::api) struct CallStyle {
    /// Whether functions were given the older way.
    pub(in crate::api) legacy: bool,
    /// Whether the one that is called was named.
    pub(in crate::api) named: bool,
}

/// A recording, and where its text belongs.
pub(in crate::api) struct RecordingRef {
    /// Where the request has it.
    pub(super) param: String,
    /// The file in base64.
    pub(super) data: String,
    /// The message and the part of the conversation.
    pub(super) place: (usize, usize),
}

/// What messages mention besides words.
#[derive(Default)]
struct Mentioned {
    media: Vec<Mention>,
    recordings: Vec<RecordingRef>,
}

/// What a conversation mentions besides words.
pub(in crate::api) enum Mention {
    /// A picture or a video.
    Medium(MediaRef),
    /// A document, whose pages become pictures and words.
    Document(Document),
}

/// A picture or a video that is still behind its URLs.
pub(in crate::api) struct MediaRef {
    /// Where the request has it.
    pub(in crate::api) param: String,
    pub(in crate::api) files: Files,
}

/// Where the files of a medium are.
pub(in crate::api) enum Files {
    /// A picture behind a URL.
    Picture(String),
    /// A picture in base64.
    Base64(String),
    /// A picture among files that were sent before.
    Kept(String),
    /// A picture that was fetched.
    Fetched(File),
    /// A video: a picture behind each URL, so many a second.
    Frames { urls: Vec<String>, rate: f64 },
    /// A video of pictures of which some were fetched, so many a second.
    FetchedFrames { files: Vec<File>, rate: f64 },
    /// A video: pictures in one URL, so many a second.
    Video { url: String, rate: f64 },
}

/// An answer in pieces.
#[derive(Debug, Clone, Copy)]
pub(in crate::api) struct Streaming {
    pub(super) usage: bool,
}

impl Chat {
    pub(super) fn parse(
        mut request: wire::ChatRequest,
        limits: &MediaLimits,
    ) -> Result<Self, InvalidRequest> {
        refuse_unsupported(&request)?;
        let model = request.model.take().ok_or_else(|| missing("model"))?;
        let mut mentioned = Mentioned::default();
        let messages = messages(request.messages.take(), limits, &mut mentioned)?;
        let Mentioned { media, recordings } = mentioned;
        let continues = continues(&request, &messages)?;
        let toolbox = Toolbox::parse(&mut request)?;
        let form = tools::form(FormFields {
            response_format: request.response_format.take(),
            structured_outputs: request.structured_outputs.take(),
            guided_json: request.guided_json.take(),
            guided_regex: request.guided_regex.take(),
            guided_choice: request.guided_choice.take(),
            guided_grammar: request.guided_grammar.take(),
        })?;
        let (constrained, called) = Toolbox::bind(toolbox.as_ref(), form)?;
        let ignore_eos = request.ignore_eos.unwrap_or(false);
        check_end(ignore_eos, constrained.as_ref())?;
        let count = integer("n", request.n.unwrap_or(1), 1, MOST_ANSWERS)? as usize;
        let logprobs = logprobs(&request)?;
        let max_tokens = request.max_completion_tokens.map(|most| ("max_completion_tokens", most));
        let max_tokens = max_tokens.or(request.max_tokens.map(|most| ("max_tokens", most)));
        let max_tokens = max_tokens.map(|(param, most)| integer(param, most, 1, i64::MAX)).transpose()?;
        let usage = request.stream_options.and_then(|options| options.0.include_usage).unwrap_or(false);
        Ok(Self {
            model,
            conversation: Conversation {
                messages,
                tools: toolbox.map(|toolbox| toolbox.tools).unwrap_or_default(),
                continues,
            },
            media,
            recordings,
            called,
            bare: Bare {
                sampling: SamplingFields {
                    temperature: request.temperature,
                    top_p: request.top_p,
                    min_p: request.min_p,
                    top_k: request.top_k,
                    repetition_penalty: request.repetition_penalty,
                    frequency_penalty: request.frequency_penalty,
                    presence_penalty: request.presence_penalty,
                    seed: request.seed,
                    logit_bias: request.logit_bias,
                }
                .asked()?,
                max_tokens: max_tokens.map(|most| most as usize),
                stops: stops(request.stop)?,
                ignore_eos,
                count,
                logprobs,
                constrained,
            },
            stream: request.stream.unwrap_or(false).then_some(Streaming { usage }),
        })
    }
}

/// An answer ends where its form does, whether or not it is to go on.
pub(in crate::api) fn check_end(
    ignore_eos: bool,
    constrained: Option<&Constrained>,
) -> Result<(), InvalidRequest> {
    match constrained.filter(|_| ignore_eos) {
        None => Ok(()),
        Some(constrained) => {
            let reason = format!("the answer ends where {} says so", constrained.param);
            Err(unsupported("ignore_eos", reason))
        }
    }
}

/// Fields that say how to draw.
#[derive(Debug, Default)]
pub(in crate::api) struct SamplingFields {
    pub(in crate::api) temperature: Option<f64>,
    pub(in crate::api) top_p: Option<f64>,
    pub(in crate::api) min_p: Option<f64>,
    pub(in crate::api) top_k: Option<i64>,
    pub(in crate::api) repetition_penalty: Option<f64>,
    pub(in crate::api) frequency_penalty: Option<f64>,
    pub(in crate::api) presence_penalty: Option<f64>,
    pub(in crate::api) seed: Option<i64>,
    pub(in crate::api) logit_bias: Option<wire::Biases>,
}

impl SamplingFields {
    /// Those fields in their ranges.
    pub(in crate::api) fn asked(self) -> Result<Asked, InvalidRequest> {
        Ok(Asked {
            temperature: decimal("temperature", self.temperature, 0.0, 2.0)?,
            top_p: decimal("top_p", self.top_p, 0.0, 1.0)?,
            min_p: decimal("min_p", self.min_p, 0.0, 1.0)?,
            // vLLM writes -1 for all.
            top_k: self.top_k.map(|k| integer("top_k", k, -1, i64::MAX)).transpose()?,
            repetition_penalty: decimal("repetition_penalty", self.repetition_penalty, 0.01, 10.0)?,
            frequency_penalty: decimal("frequency_penalty", self.frequency_penalty, -2.0, 2.0)?,
            presence_penalty: decimal("presence_penalty", self.presence_penalty, -2.0, 2.0)?,
            seed: self.seed,
            bias: bias(self.logit_bias)?,
        })
    }
}

/// Sampling as it was asked for, before a model's own suggestions fill the gaps.
#[derive(Debug, Clone)]
pub(in crate::api) struct Asked {
    temperature: Option<f64>,
    top_p: Option<f64>,
    min_p: Option<f64>,
    top_k: Option<i64>,
    repetition_penalty: Option<f64>,
    frequency_penalty: Option<f64>,
    presence_penalty: Option<f64>,
    seed: Option<i64>,
    bias: Vec<(u32, f32)>,
}

impl Asked {
    /// What is asked for, else what the model's authors suggest, else the API's default.
    pub(super) fn resolve(self, model: &TextModel) -> Result<Sampling, InvalidRequest> {
        let defaults = model.defaults();
        let size = model.tokenizer().size();
        if let Some((id, _)) = self.bias.iter().find(|(id, _)| *id as usize >= size) {
            return Err(InvalidRequest::Value {
                param: "logit_bias".into(),
                found: format!("token id {id}"),
                supported: format!("ids 0 to {}", size - 1),
            });
        }
        let number = |asked: Option<f64>, default: Option<f32>, otherwise: f32| {
            asked.map(|asked| asked as f32).or(default).unwrap_or(otherwise)
        };
        Ok(Sampling {
            temperature: number(self.temperature, defaults.temperature, 1.0),
            top_p: number(self.top_p, defaults.top_p, 1.0),
            min_p: number(self.min_p, defaults.min_p, 0.0),
            top_k: self.top_k.map(|k| k.max(0) as usize).or(defaults.top_k).unwrap_or(0),
            repetition_penalty: number(self.repetition_penalty, defaults.repetition_penalty, 1.0),
            frequency_penalty: number(self.frequency_penalty, None, 0.0),
            presence_penalty: number(self.presence_penalty, None, 0.0),
            seed: self.seed.map_or_else(|| Uuid::new_v4().as_u64_pair().0, i64::cast_unsigned),
            bias: self.bias,
            ..Sampling::greedy()
        })
    }
}

/// What would change the answer and is not done is refused, never ignored.
fn refuse_unsupported(request: &wire::ChatRequest) -> Result<(), InvalidRequest> {
    let mut modalities = request.modalities.iter().flat_map(|modalities| &modalities.0);
    if let Some(other) = modalities.find(|modality| *modality != "text") {
        return Err(value("modalities", other, "'text'"));
    }
    if request.audio.is_some() {
        return Err(unsupported("audio", "answers are text"));
    }
    if let Some(extension) = request.refused_extension() {
        return Err(unsupported(extension, "it would change the answer, and this server does not do it"));
    }
    if request.web_search_options.is_some() {
        return Err(unsupported("web_search_options", "this server does not search the web"));
    }
    Ok(())
}

/// Whether the last turn goes on, and that it can.
fn continues(request: &wire::ChatRequest, messages: &[Message]) -> Result<bool, InvalidRequest> {
    let param = "continue_final_message";
    let continues = request.continue_final_message.unwrap_or(false);
    if request.add_generation_prompt == Some(continues) {
        let reason = format!("a new turn is begun exactly where {param} is false");
        return Err(unsupported("add_generation_prompt", reason));
    }
    let can = |last: &Message| last.role == Role::Assistant && last.calls.is_empty();
    if continues && !messages.last().is_some_and(can) {
        return Err(unsupported(param, "the last message is not text of the assistant's"));
    }
    Ok(continues)
}

fn messages(
    messages: Option<Items<Object<wire::Message>, { wire::MOST_MESSAGES }>>,
    limits: &MediaLimits,
    mentioned: &mut Mentioned,
) -> Result<Vec<Message>, InvalidRequest> {
    let Items(messages) = messages.ok_or_else(|| missing("messages"))?;
    if messages.is_empty() {
        return Err(InvalidRequest::EmptyArray { param: "messages".into() });
    }
    let turns = messages.into_iter().enumerate();
    let turns = turns.map(|(index, turn)| message(turn.0, index, mentioned));
    let turns = turns.collect::<Result<Vec<_>, _>>()?;
    check_count("messages", mentioned.media.len() + mentioned.recordings.len(), limits)?;
    Ok(turns)
}

/// Bounds how many pictures, videos, recordings and documents a request has.
pub(in crate::api) fn check_count(
    param: &str,
    found: usize,
    limits: &MediaLimits,
) -> Result<(), InvalidRequest> {
    let limit = limits.images;
    if found <= limit {
        return Ok(());
    }
    let (param, found) = (param.into(), found.to_string());
    Err(InvalidRequest::ArrayTooLong {
        param,
        items: "pictures, videos, recordings and documents",
        found,
        limit,
    })
}

fn message(
    message: wire::Message,
    index: usize,
    mentioned: &mut Mentioned,
) -> Result<Message, InvalidRequest> {
    let path = &format!("messages[{index}]");
    let role = match message.role.as_deref() {
        Some("system" | "developer") => Role::System,
        Some("user") => Role::User,
        Some("assistant") => Role::Assistant,
        Some("tool" | "function") => Role::Tool,
        Some(other) => {
            let supported = "'system', 'developer', 'user', 'assistant', 'tool' and 'function'";
            return Err(value(&format!("{path}.role"), other, supported));
        }
        None => return Err(missing(&format!("{path}.role"))),
    };
    let calls = calls(message.tool_calls, message.function_call, path)?;
    if role != Role::Assistant && !calls.is_empty() {
        return Err(unsupported(&format!("{path}.tool_calls"), "only the assistant calls functions"));
    }
    // The older way names the function instead of the call.
    let answers = (role == Role::Tool).then(|| message.tool_call_id.or(message.name).unwrap_or_default());
    let parts = match (message.content, message.refusal) {
        (Some(wire::Content::Text(text)), _) => vec![Part::Text(text)],
        (Some(wire::Content::Parts(Items(parts))), _) => {
            let path = format!("{path}.content");
            if parts.is_empty() {
                return Err(InvalidRequest::EmptyArray { param: path });
            }
            let parts = parts.into_iter().enumerate();
            let parts = parts.map(|(at, item)| part(item, &format!("{path}[{at}]"), (index, at), mentioned));
            parts.collect::<Result<_, _>>()?
        }
        (None, Some(refusal)) if role == Role::Assistant => vec![Part::Text(refusal)],
        (None, _) if !calls.is_empty() => Vec::new(),
        (None, _) => return Err(missing(&format!("{path}.content"))),
    };
    Ok(Message { role, parts, calls, answers })
}

/// The functions that an earlier turn called.
fn calls(
    calls: Option<Items<Object<Call>, MOST_TOOLS>>,
    legacy: Option<Object<Called>>,
    path: &str,
) -> Result<Vec<text::Call>, InvalidRequest> {
    let Items(calls) = calls.unwrap_or_default();
    let mut found = Vec::with_capacity(calls.len());
    for (index, Object(call)) in calls.into_iter().enumerate() {
        let path = format!("{path}.tool_calls[{index}]");
        if let Some(other) = call.kind.as_deref().filter(|kind| *kind != "function") {
            return Err(value(&format!("{path}.type"), other, "'function'"));
        }
        let Object(called) = call.function.ok_or_else(|| missing(&format!("{path}.function")))?;
        found.push(tools::call(call.id, called, &format!("{path}.function"))?);
    }
    if let Some(Object(called)) = legacy {
        found.push(tools::call(None, called, &format!("{path}.function_call"))?);
    }
    Ok(found)
}

fn part(
    part: wire::Part,
    path: &str,
    place: (usize, usize),
    mentioned: &mut Mentioned,
) -> Result<Part, InvalidRequest> {
    match part {
        wire::Part::Text(text) => Ok(Part::Text(text.into())),
        wire::Part::Refusal(text) => Ok(Part::Text(text.into())),
        wire::Part::Image(image) => {
            let url = image.url.ok_or_else(|| missing(&format!("{path}.image_url.url")))?;
            match image.detail.as_deref() {
                None | Some("auto" | "low" | "high") => {}
                Some(other) => {
                    let param = format!("{path}.image_url.detail");
                    return Err(value(&param, other, "'auto', 'low' and 'high'"));
                }
            }
            let (param, files) = (format!("{path}.image_url"), Files::Picture(url));
            mentioned.media.push(Mention::Medium(MediaRef { param, files }));
            Ok(Part::Picture)
        }
        wire::Part::Video(video) => {
            // What Qwen's own service takes, and its processors where nothing is said: two frames a second.
            let rate = decimal(&format!("{path}.fps"), video.fps, 0.01, 1000.0)?.unwrap_or(2.0);
            let (param, files) = match (video.url, video.frames) {
                (Some(url), _) => (format!("{path}.video_url"), Files::Video { url, rate }),
                (None, Some(Items(urls))) if urls.is_empty() => {
                    return Err(InvalidRequest::EmptyArray { param: format!("{path}.video") });
                }
                (None, Some(Items(urls))) => (format!("{path}.video"), Files::Frames { urls, rate }),
                (None, None) => return Err(missing(&format!("{path}.video_url.url"))),
            };
            mentioned.media.push(Mention::Medium(MediaRef { param, files }));
            Ok(Part::Video)
        }
        wire::Part::Audio(audio) => {
            let param = format!("{path}.input_audio");
            let data = audio.data.ok_or_else(|| missing(&format!("{param}.data")))?;
            mentioned.recordings.push(RecordingRef { param, data, place });
            // What is said comes in its place.
            Ok(Part::Text(String::new()))
        }
        wire::Part::File(file) => {
            mentioned.media.push(document(*file, &format!("{path}.file"))?);
            // Its pages come in its place.
            Ok(Part::Picture)
        }
        wire::Part::Other(kind) => Err(value(
            &format!("{path}.type"),
            &kind,
            "'text', 'image_url', 'video_url', 'video', 'input_audio', 'file' and 'refusal'",
        )),
    }
}

/// A document of a part whose fields are at `path`.
pub(in crate::api) fn document(file: wire::InputFile, path: &str) -> Result<Mention, InvalidRequest> {
    let wire::InputFile { filename, file_data, file_url, file_id } = file;
    let (field, source) = match (file_data, file_url, file_id) {
        (Some(data), _, _) => ("file_data", DocumentSource::Data(data)),
        (None, Some(url), _) => ("file_url", DocumentSource::Url(url)),
        (None, None, Some(id)) => ("file_id", DocumentSource::Id(id)),
        (None, None, None) => return Err(missing(&format!("{path}.file_data"))),
    };
    let about = filename.filter(|name| !name.is_empty()).map(|name| ("title", name));
    let (param, about) = (format!("{path}.{field}"), about.into_iter().collect());
    Ok(Mention::Document(Document { param, source, about }))
}

/// How many tokens' probabilities are wanted in place of each, where any are.
fn logprobs(request: &wire::ChatRequest) -> Result<Option<usize>, InvalidRequest> {
    let wanted = request.logprobs.unwrap_or(false);
    let top = request.top_logprobs.map(|top| integer("top_logprobs", top, 0, MOST_LOGPROBS)).transpose()?;
    match top {
        Some(1..) if !wanted => Err(unsupported("top_logprobs", "it needs logprobs to be true")),
        _ => Ok(wanted.then_some(top.unwrap_or(0) as usize)),
    }
}

/// Texts that end an answer.
pub(in crate::api) fn stops(stop: Option<wire::Stop>) -> Result<Vec<String>, InvalidRequest> {
    match stop {
        None => Ok(Vec::new()),
        Some(wire::Stop::One(stop)) => stop_texts("stop", vec![stop]),
        Some(wire::Stop::Several(Items(stops))) => stop_texts("stop", stops),
    }
}

/// Texts that end an answer, each of a length that makes sense.
pub(in crate::api) fn stop_texts(param: &str, stops: Vec<String>) -> Result<Vec<String>, InvalidRequest> {
    match stops.iter().find(|stop| !(1..=LONGEST_STOP).contains(&stop.len())) {
        None => Ok(stops),
        Some(stop) => {
            Err(InvalidRequest::StringLength { param: param.into(), found: stop.len(), limit: LONGEST_STOP })
        }
    }
}

fn bias(bias: Option<wire::Biases>) -> Result<Vec<(u32, f32)>, InvalidRequest> {
    let Entries(bias) = bias.unwrap_or_default();
    let entry = |(key, bias): (String, f64)| {
        let id = key.parse().map_err(|_| value("logit_bias", &format!("key {key}"), "token ids as keys"))?;
        let bias = decimal("logit_bias", Some(bias), -100.0, 100.0)?.unwrap_or(0.0);
        Ok((id, bias as f32))
    };
    bias.into_iter().map(entry).collect()
}
