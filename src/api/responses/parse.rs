//! From the wire to a conversation that is valid as far as it can be told without a model.

use std::collections::BTreeMap;

use crate::{
    api::{
        ApiError,
        chat::{Asked, Chat, Files, MediaRef, count, stops},
        check::{decimal, integer, missing, unsupported, value},
        wire::{Entries, Items, NameOrObject, Object, responses as wire},
    },
    media::MediaLimits,
    request::InvalidRequest,
    text::{Message, Part, Role},
};

/// A conversation to answer.
pub(super) struct Responses {
    pub(super) chat: Chat,
    pub(super) stream: bool,
    pub(super) echo: Echo,
}

/// What an answer tells of its request.
#[derive(Debug)]
pub(super) struct Echo {
    pub(super) instructions: Option<String>,
    pub(super) max_output_tokens: Option<i64>,
    pub(super) parallel_tool_calls: bool,
    pub(super) temperature: Option<f64>,
    pub(super) tool_choice: &'static str,
    pub(super) top_p: Option<f64>,
    pub(super) metadata: BTreeMap<String, String>,
}

impl Responses {
    pub(super) fn parse(request: wire::ResponsesRequest, limits: &MediaLimits) -> Result<Self, ApiError> {
        if let Some(id) = request.previous_response_id {
            return Err(ApiError::NoSuchResponse { id: id.chars().take(100).collect() });
        }
        refuse_unsupported(&request)?;
        let model = request.model.ok_or_else(|| missing("model"))?;
        let max_tokens = request.max_output_tokens;
        let max_tokens =
            max_tokens.map(|most| integer("max_output_tokens", most, 1, i64::MAX)).transpose()?;
        let temperature = decimal("temperature", request.temperature, 0.0, 2.0)?;
        let top_p = decimal("top_p", request.top_p, 0.0, 1.0)?;
        let sampling = Asked {
            temperature,
            top_p,
            min_p: decimal("min_p", request.min_p, 0.0, 1.0)?,
            top_k: request.top_k.map(|k| integer("top_k", k, -1, i64::MAX)).transpose()?,
            repetition_penalty: decimal("repetition_penalty", request.repetition_penalty, 0.01, 10.0)?,
            seed: request.seed,
            ..Asked::default()
        };
        let mut reader = Reader::default();
        if let Some(text) = &request.instructions {
            reader.messages.push(Message { role: Role::System, parts: vec![Part::Text(text.clone())] });
        }
        reader.input(request.input.ok_or_else(|| missing("input"))?)?;
        let Reader { messages, media } = reader;
        count("input", &media, limits)?;
        let tool_choice = match request.tool_choice {
            Some(NameOrObject::Name(name)) if name == "none" => "none",
            _ => "auto",
        };
        let Entries(metadata) = request.metadata.unwrap_or_default();
        Ok(Self {
            chat: Chat {
                model,
                messages,
                media,
                sampling,
                max_tokens: max_tokens.map(|most| most as usize),
                stops: stops(request.stop)?,
                ignore_eos: false,
                stream: None,
            },
            stream: request.stream.unwrap_or(false),
            echo: Echo {
                instructions: request.instructions,
                max_output_tokens: max_tokens,
                parallel_tool_calls: request.parallel_tool_calls.unwrap_or(true),
                temperature,
                tool_choice,
                top_p,
                metadata,
            },
        })
    }
}

/// Reads items.
#[derive(Default)]
struct Reader {
    messages: Vec<Message>,
    media: Vec<MediaRef>,
}

impl Reader {
    fn input(&mut self, input: wire::Input) -> Result<(), InvalidRequest> {
        let items = match input {
            wire::Input::Text(text) => {
                self.messages.push(Message { role: Role::User, parts: vec![Part::Text(text)] });
                return Ok(());
            }
            wire::Input::Items(Items(items)) => items,
        };
        if items.is_empty() {
            return Err(InvalidRequest::EmptyArray { param: "input".into() });
        }
        for (index, Object(item)) in items.into_iter().enumerate() {
            self.item(item, &format!("input[{index}]"))?;
        }
        if self.messages.iter().all(|message| message.role == Role::System) {
            return Err(value("input", "no turn", "at least one turn of the user or the assistant"));
        }
        Ok(())
    }

    fn item(&mut self, item: wire::Item, path: &str) -> Result<(), InvalidRequest> {
        let kind = format!("{path}.type");
        match item.kind.as_deref() {
            None | Some("message") => {}
            // What another model thought is nothing to this one.
            Some("reasoning") => return Ok(()),
            Some(
                "function_call" | "function_call_output" | "custom_tool_call" | "custom_tool_call_output",
            ) => {
                return Err(unsupported(&kind, "tool calls are not supported by this server"));
            }
            Some("item_reference") => {
                return Err(unsupported(&kind, "nothing is kept by this server; send the item itself"));
            }
            Some(other) => return Err(value(&kind, other, "'message' and 'reasoning'")),
        }
        let role = match item.role.as_deref() {
            Some("user") => Role::User,
            Some("assistant") => Role::Assistant,
            Some("system" | "developer") => Role::System,
            Some(other) => {
                let supported = "'user', 'assistant', 'system' and 'developer'";
                return Err(value(&format!("{path}.role"), other, supported));
            }
            None => return Err(missing(&format!("{path}.role"))),
        };
        let path = format!("{path}.content");
        let parts = match item.content.ok_or_else(|| missing(&path))? {
            wire::Content::Text(text) => vec![Part::Text(text)],
            wire::Content::Parts(Items(parts)) if parts.is_empty() => {
                return Err(InvalidRequest::EmptyArray { param: path });
            }
            wire::Content::Parts(Items(parts)) => {
                let parts = parts.into_iter().enumerate();
                let parts = parts.map(|(index, part)| self.part(part, &format!("{path}[{index}]")));
                parts.collect::<Result<_, _>>()?
            }
        };
        self.messages.push(Message { role, parts });
        Ok(())
    }

    fn part(&mut self, part: wire::Part, path: &str) -> Result<Part, InvalidRequest> {
        let kind = format!("{path}.type");
        match part {
            wire::Part::Text(text) => Ok(Part::Text(text.into())),
            wire::Part::Image(image) => {
                let param = format!("{path}.image_url");
                let url = match image.image_url.and_then(|image| image.url) {
                    Some(url) => url,
                    None if image.file_id => {
                        let reason =
                            "files are not kept by this server; send the picture as a data URL in image_url";
                        return Err(unsupported(&format!("{path}.file_id"), reason));
                    }
                    None => return Err(missing(&param)),
                };
                match image.detail.as_deref() {
                    None | Some("auto" | "low" | "high" | "original") => {}
                    Some(other) => {
                        let supported = "'auto', 'low', 'high' and 'original'";
                        return Err(value(&format!("{path}.detail"), other, supported));
                    }
                }
                self.media.push(MediaRef { param, files: Files::Picture(url) });
                Ok(Part::Picture)
            }
            wire::Part::Other(other) => Err(match &*other {
                "input_audio" => unsupported(&kind, "recordings are not supported by this server"),
                "input_file" => {
                    unsupported(&kind, "files are not supported by this server; send pages as pictures")
                }
                other => value(&kind, other, "'input_text', 'input_image', 'output_text' and 'refusal'"),
            }),
        }
    }
}

/// What would change the answer and is not done is refused, never ignored.
fn refuse_unsupported(request: &wire::ResponsesRequest) -> Result<(), InvalidRequest> {
    let kept = "nothing is kept by this server; send the whole conversation as input";
    if request.conversation.is_some() {
        return Err(unsupported("conversation", kept));
    }
    if request.prompt.is_some() {
        return Err(unsupported("prompt", "no prompts are kept by this server; send its text"));
    }
    if request.background == Some(true) {
        return Err(unsupported("background", "no answers are kept by this server"));
    }
    if request.tools.as_ref().is_some_and(|tools| !tools.is_empty()) {
        return Err(unsupported("tools", "tool calls are not supported by this server"));
    }
    match &request.tool_choice {
        None => {}
        Some(NameOrObject::Name(choice)) if choice == "none" || choice == "auto" => {}
        Some(_) => return Err(unsupported("tool_choice", "tool calls are not supported by this server")),
    }
    let format = request.text.as_ref().and_then(|Object(text)| text.format.as_ref());
    if let Some(Object(format)) = format {
        match format.kind.as_deref() {
            Some("text") => {}
            Some("json_object" | "json_schema") => {
                return Err(unsupported("text.format", "structured output is not supported by this server"));
            }
            Some(other) => return Err(value("text.format.type", other, "'text'")),
            None => return Err(missing("text.format.type")),
        }
    }
    let mut include = request.include.iter().flat_map(|Items(include)| include);
    if include.any(|include| include == "message.output_text.logprobs") {
        return Err(unsupported("include", "log probabilities are not supported by this server"));
    }
    if request.top_logprobs.is_some_and(|count| count != 0) {
        return Err(unsupported("top_logprobs", "log probabilities are not supported by this server"));
    }
    match request.truncation.as_deref() {
        None | Some("disabled") => Ok(()),
        Some("auto") => Err(unsupported(
            "truncation",
            "this server drops nothing of a conversation; it must fit the context",
        )),
        Some(other) => Err(value("truncation", other, "'disabled'")),
    }
}
