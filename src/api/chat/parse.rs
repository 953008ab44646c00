//! From the wire to a conversation that is valid as far as it can be told without a model.

use uuid::Uuid;

use crate::{
    api::{
        check::{decimal, integer, missing, value},
        wire::{Entries, Items, NameOrObject, Object, chat as wire},
    },
    media::MediaLimits,
    request::{InvalidRequest, Sampling},
    text::{Message, Part, Role, TextModel},
};

const LONGEST_STOP: usize = 1_000;

/// A conversation to answer.
pub(in crate::api) struct Chat {
    pub(in crate::api) model: String,
    pub(in crate::api) messages: Vec<Message>,
    /// In the order in which messages mention them.
    pub(in crate::api) media: Vec<MediaRef>,
    pub(in crate::api) sampling: Asked,
    pub(in crate::api) max_tokens: Option<usize>,
    pub(in crate::api) stops: Vec<String>,
    /// Whether the answer goes on where the model would end it.
    pub(in crate::api) ignore_eos: bool,
    pub(in crate::api) stream: Option<Streaming>,
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
    /// A video: a picture behind each URL, so many a second.
    Frames { urls: Vec<String>, rate: f64 },
    /// A video: pictures in one URL, so many a second.
    Video { url: String, rate: f64 },
}

/// An answer in pieces.
#[derive(Debug, Clone, Copy)]
pub(in crate::api) struct Streaming {
    pub(in crate::api) usage: bool,
}

impl Chat {
    pub(in crate::api) fn parse(
        request: wire::ChatRequest,
        limits: &MediaLimits,
    ) -> Result<Self, InvalidRequest> {
        refuse_unsupported(&request)?;
        let model = request.model.ok_or_else(|| missing("model"))?;
        let mut media = Vec::new();
        let messages = messages(request.messages, limits, &mut media)?;
        let max_tokens = request.max_completion_tokens.map(|most| ("max_completion_tokens", most));
        let max_tokens = max_tokens.or(request.max_tokens.map(|most| ("max_tokens", most)));
        let max_tokens = max_tokens.map(|(param, most)| integer(param, most, 1, i64::MAX)).transpose()?;
        let usage = request.stream_options.and_then(|options| options.0.include_usage).unwrap_or(false);
        Ok(Self {
            model,
            messages,
            media,
            sampling: Asked {
                temperature: decimal("temperature", request.temperature, 0.0, 2.0)?,
                top_p: decimal("top_p", request.top_p, 0.0, 1.0)?,
                min_p: decimal("min_p", request.min_p, 0.0, 1.0)?,
                // vLLM writes -1 for all.
                top_k: request.top_k.map(|k| integer("top_k", k, -1, i64::MAX)).transpose()?,
                repetition_penalty: decimal("repetition_penalty", request.repetition_penalty, 0.01, 10.0)?,
                frequency_penalty: decimal("frequency_penalty", request.frequency_penalty, -2.0, 2.0)?,
                presence_penalty: decimal("presence_penalty", request.presence_penalty, -2.0, 2.0)?,
                seed: request.seed,
                bias: bias(request.logit_bias)?,
            },
            max_tokens: max_tokens.map(|most| most as usize),
            stops: stops(request.stop)?,
            ignore_eos: request.ignore_eos.unwrap_or(false),
            stream: request.stream.unwrap_or(false).then_some(Streaming { usage }),
        })
    }
}

/// Sampling as it was asked for, before a model's own suggestions fill the gaps.
#[derive(Debug, Default)]
pub(in crate::api) struct Asked {
    pub(in crate::api) temperature: Option<f64>,
    pub(in crate::api) top_p: Option<f64>,
    pub(in crate::api) min_p: Option<f64>,
    pub(in crate::api) top_k: Option<i64>,
    pub(in crate::api) repetition_penalty: Option<f64>,
    pub(in crate::api) frequency_penalty: Option<f64>,
    pub(in crate::api) presence_penalty: Option<f64>,
    pub(in crate::api) seed: Option<i64>,
    pub(in crate::api) bias: Vec<(u32, f32)>,
}

impl Asked {
    /// What is asked for, else what the model's authors suggest, else the API's default.
    pub(in crate::api) fn resolve(self, model: &TextModel) -> Result<Sampling, InvalidRequest> {
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
    let refuse = |param: &str, reason: &str| {
        Err(InvalidRequest::Unsupported { param: param.into(), reason: reason.into() })
    };
    let none = |choice: &Option<NameOrObject>| match choice {
        None => true,
        Some(NameOrObject::Name(choice)) => choice == "none" || choice == "auto",
        Some(NameOrObject::Object) => false,
    };
    if request.tools.as_ref().is_some_and(|tools| !tools.is_empty()) {
        return refuse("tools", "tool calls are not supported by this server");
    }
    if !none(&request.tool_choice) {
        return refuse("tool_choice", "tool calls are not supported by this server");
    }
    if request.functions.as_ref().is_some_and(|functions| !functions.is_empty()) {
        return refuse("functions", "function calls are not supported by this server");
    }
    if !none(&request.function_call) {
        return refuse("function_call", "function calls are not supported by this server");
    }
    if let Some(n) = request.n {
        integer("n", n, 1, i64::MAX)?;
        if n > 1 {
            return refuse("n", "this server gives one answer per request, so n must be 1");
        }
    }
    if request.logprobs == Some(true) {
        return refuse("logprobs", "log probabilities are not supported by this server");
    }
    if request.top_logprobs.is_some_and(|count| count != 0) {
        return refuse("top_logprobs", "log probabilities are not supported by this server");
    }
    if let Some(format) = &request.response_format {
        match format.0.kind.as_deref() {
            Some("text") => {}
            Some("json_object" | "json_schema") => {
                return refuse("response_format", "structured output is not supported by this server");
            }
            Some(other) => return Err(value("response_format.type", other, "'text'")),
            None => return Err(missing("response_format.type")),
        }
    }
    let mut modalities = request.modalities.iter().flat_map(|modalities| &modalities.0);
    if let Some(other) = modalities.find(|modality| *modality != "text") {
        return Err(value("modalities", other, "'text'"));
    }
    if request.audio.is_some() {
        return refuse("audio", "answers are text");
    }
    if let Some(extension) = request.refused_extension() {
        return refuse(extension, "it would change the answer, and this server does not do it");
    }
    if request.web_search_options.is_some() {
        return refuse("web_search_options", "this server does not search the web");
    }
    Ok(())
}

fn messages(
    messages: Option<Items<Object<wire::Message>, { wire::MOST_MESSAGES }>>,
    limits: &MediaLimits,
    media: &mut Vec<MediaRef>,
) -> Result<Vec<Message>, InvalidRequest> {
    let Items(messages) = messages.ok_or_else(|| missing("messages"))?;
    if messages.is_empty() {
        return Err(InvalidRequest::EmptyArray { param: "messages".into() });
    }
    let turns = messages.into_iter().enumerate();
    let turns = turns.map(|(index, turn)| message(turn.0, &format!("messages[{index}]"), media));
    let turns = turns.collect::<Result<Vec<_>, _>>()?;
    count("messages", media, limits)?;
    Ok(turns)
}

/// Bounds how many pictures and videos a request has.
pub(in crate::api) fn count(
    param: &str,
    media: &[MediaRef],
    limits: &MediaLimits,
) -> Result<(), InvalidRequest> {
    let (found, limit) = (media.len(), limits.images);
    if found <= limit {
        return Ok(());
    }
    let (param, found) = (param.into(), found.to_string());
    Err(InvalidRequest::ArrayTooLong { param, items: "pictures and videos", found, limit })
}

fn message(message: wire::Message, path: &str, media: &mut Vec<MediaRef>) -> Result<Message, InvalidRequest> {
    let unsupported = |field: &str, reason: &str| {
        Err(InvalidRequest::Unsupported { param: format!("{path}.{field}"), reason: reason.into() })
    };
    let role = match message.role.as_deref() {
        Some("system" | "developer") => Role::System,
        Some("user") => Role::User,
        Some("assistant") => Role::Assistant,
        Some("tool" | "function") => {
            return unsupported("role", "tool results are not supported by this server");
        }
        Some(other) => {
            let supported = "'system', 'developer', 'user' and 'assistant'";
            return Err(value(&format!("{path}.role"), other, supported));
        }
        None => return Err(missing(&format!("{path}.role"))),
    };
    if message.tool_calls.as_ref().is_some_and(|calls| !calls.is_empty()) {
        return unsupported("tool_calls", "tool calls are not supported by this server");
    }
    if message.function_call.is_some() {
        return unsupported("function_call", "function calls are not supported by this server");
    }
    let parts = match (message.content, message.refusal) {
        (Some(wire::Content::Text(text)), _) => vec![Part::Text(text)],
        (Some(wire::Content::Parts(Items(parts))), _) => {
            let path = format!("{path}.content");
            if parts.is_empty() {
                return Err(InvalidRequest::EmptyArray { param: path });
            }
            let parts = parts.into_iter().enumerate();
            let parts = parts.map(|(index, item)| part(item, &format!("{path}[{index}]"), media));
            parts.collect::<Result<_, _>>()?
        }
        (None, Some(refusal)) if role == Role::Assistant => vec![Part::Text(refusal)],
        (None, _) => return Err(missing(&format!("{path}.content"))),
    };
    Ok(Message { role, parts })
}

fn part(part: wire::Part, path: &str, media: &mut Vec<MediaRef>) -> Result<Part, InvalidRequest> {
    let unsupported = |reason: &str| {
        Err(InvalidRequest::Unsupported { param: format!("{path}.type"), reason: reason.into() })
    };
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
            media.push(MediaRef { param: format!("{path}.image_url"), files: Files::Picture(url) });
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
            media.push(MediaRef { param, files });
            Ok(Part::Video)
        }
        wire::Part::Other(kind) => match &*kind {
            "input_audio" => unsupported("recordings are not supported by this server"),
            "file" => unsupported("files are not supported by this server; send pages as pictures"),
            other => Err(value(
                &format!("{path}.type"),
                other,
                "'text', 'image_url', 'video_url', 'video' and 'refusal'",
            )),
        },
    }
}

/// `stop`, of whichever request.
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

fn bias(bias: Option<Entries<f64, { wire::MOST_BIASES }>>) -> Result<Vec<(u32, f32)>, InvalidRequest> {
    let Entries(bias) = bias.unwrap_or_default();
    let entry = |(key, bias): (String, f64)| {
        let id = key.parse().map_err(|_| value("logit_bias", &format!("key {key}"), "token ids as keys"))?;
        let bias = decimal("logit_bias", Some(bias), -100.0, 100.0)?.unwrap_or(0.0);
        Ok((id, bias as f32))
    };
    bias.into_iter().map(entry).collect()
}
