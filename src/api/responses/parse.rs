//! From the wire to a conversation that is valid as far as it can be told without a model.

use std::collections::BTreeMap;

use crate::{
    api::{
        ApiError,
        chat::{
            Bare, Chat, Constrained, Files, MediaRef, Mention, SamplingFields, Toolbox, call, check_count,
            document, named_schema, stops, tool,
        },
        check::{integer, missing, unsupported, value},
        wire::{Entries, Items, Object, responses as wire, tools},
    },
    media::MediaLimits,
    request::InvalidRequest,
    text::{self, Conversation, Grammar, Message, Part, Role},
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
    pub(super) format: wire::TextFormat,
    pub(super) tools: Vec<wire::Tool>,
    pub(super) tool_choice: wire::ToolChoice,
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
        let sampling = SamplingFields {
            temperature: request.temperature,
            top_p: request.top_p,
            min_p: request.min_p,
            top_k: request.top_k,
            repetition_penalty: request.repetition_penalty,
            seed: request.seed,
            ..SamplingFields::default()
        };
        let mut reader = Reader::default();
        if let Some(text) = &request.instructions {
            reader.messages.push(Message::new(Role::System, vec![Part::Text(text.clone())]));
        }
        reader.input(request.input.ok_or_else(|| missing("input"))?)?;
        let Reader { messages, media } = reader;
        check_count("input", media.len(), limits)?;

        let Items(tools) = request.tools.unwrap_or_default();
        let tools: Vec<wire::Tool> = tools.into_iter().map(|Object(tool)| tool).collect();
        let tool_choice = request.tool_choice.unwrap_or_else(|| wire::ToolChoice::Word("auto".into()));
        let parallel = request.parallel_tool_calls.unwrap_or(true);
        let toolbox = toolbox(&tools, &tool_choice, parallel)?;
        let format = request.text.and_then(|Object(text)| text.format).map(|Object(format)| format);
        let format =
            format.unwrap_or_else(|| wire::TextFormat { kind: Some("text".into()), ..Default::default() });
        let form = form(&format)?;
        let (constrained, called) = Toolbox::bind(toolbox.as_ref(), form)?;
        let called_tools = toolbox.map(|toolbox| toolbox.tools).unwrap_or_default();
        let Entries(metadata) = request.metadata.unwrap_or_default();
        Ok(Self {
            chat: Chat {
                model,
                conversation: Conversation { messages, tools: called_tools, continues: false },
                media,
                recordings: Vec::new(),
                called,
                bare: Bare {
                    sampling: sampling.asked()?,
                    max_tokens: max_tokens.map(|most| most as usize),
                    stops: stops(request.stop)?,
                    ignore_eos: false,
                    count: 1,
                    logprobs: None,
                    constrained,
                },
                stream: None,
            },
            stream: request.stream.unwrap_or(false),
            echo: Echo {
                instructions: request.instructions,
                max_output_tokens: max_tokens,
                parallel_tool_calls: parallel,
                temperature: request.temperature,
                format,
                tools,
                tool_choice,
                top_p: request.top_p,
                metadata,
            },
        })
    }
}

/// Reads items.
#[derive(Default)]
struct Reader {
    messages: Vec<Message>,
    media: Vec<Mention>,
}

impl Reader {
    fn input(&mut self, input: wire::Input) -> Result<(), InvalidRequest> {
        let items = match input {
            wire::Input::Text(text) => {
                self.messages.push(Message::new(Role::User, vec![Part::Text(text)]));
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
            None | Some("message") => self.message(item, path),
            // What another model thought is nothing to this one.
            Some("reasoning") => Ok(()),
            Some("function_call") => self.call(item, path),
            Some("function_call_output") => {
                let param = format!("{path}.call_id");
                let id = item.call_id.ok_or_else(|| missing(&param))?;
                let path = format!("{path}.output");
                let parts = self.content(item.output.ok_or_else(|| missing(&path))?, &path)?;
                self.messages.push(Message { answers: Some(id), ..Message::new(Role::Tool, parts) });
                Ok(())
            }
            Some("custom_tool_call" | "custom_tool_call_output") => {
                Err(unsupported(&kind, "only functions can be called"))
            }
            Some("item_reference") => {
                Err(unsupported(&kind, "nothing is kept by this server; send the item itself"))
            }
            Some(other) => {
                let supported = "'message', 'function_call', 'function_call_output' and 'reasoning'";
                Err(value(&kind, other, supported))
            }
        }
    }

    fn message(&mut self, item: wire::Item, path: &str) -> Result<(), InvalidRequest> {
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
        let parts = self.content(item.content.ok_or_else(|| missing(&path))?, &path)?;
        self.messages.push(Message::new(role, parts));
        Ok(())
    }

    /// A call belongs to the assistant's turn in front of it, where there is one.
    fn call(&mut self, item: wire::Item, path: &str) -> Result<(), InvalidRequest> {
        let id = item.call_id.ok_or_else(|| missing(&format!("{path}.call_id")))?;
        let called = tools::Called { name: item.name, arguments: item.arguments };
        let call = call(Some(id), called, path)?;
        match self.messages.last_mut().filter(|last| last.role == Role::Assistant) {
            Some(last) => last.calls.push(call),
            None => {
                let calls = vec![call];
                self.messages.push(Message { calls, ..Message::new(Role::Assistant, Vec::new()) });
            }
        }
        Ok(())
    }

    fn content(&mut self, content: wire::Content, path: &str) -> Result<Vec<Part>, InvalidRequest> {
        match content {
            wire::Content::Text(text) => Ok(vec![Part::Text(text)]),
            wire::Content::Parts(Items(parts)) if parts.is_empty() => {
                Err(InvalidRequest::EmptyArray { param: path.into() })
            }
            wire::Content::Parts(Items(parts)) => {
                let parts = parts.into_iter().enumerate();
                let parts = parts.map(|(index, part)| self.part(part, &format!("{path}[{index}]")));
                parts.collect()
            }
        }
    }

    fn part(&mut self, part: wire::Part, path: &str) -> Result<Part, InvalidRequest> {
        let kind = format!("{path}.type");
        match part {
            wire::Part::Text(text) => Ok(Part::Text(text.into())),
            wire::Part::Image(image) => {
                let url = image.image_url.and_then(|image| image.url);
                let (param, files) = match (url, image.file_id) {
                    (Some(url), _) => (format!("{path}.image_url"), Files::Picture(url)),
                    (None, Some(id)) => (format!("{path}.file_id"), Files::Kept(id)),
                    (None, None) => return Err(missing(&format!("{path}.image_url"))),
                };
                match image.detail.as_deref() {
                    None | Some("auto" | "low" | "high" | "original") => {}
                    Some(other) => {
                        let supported = "'auto', 'low', 'high' and 'original'";
                        return Err(value(&format!("{path}.detail"), other, supported));
                    }
                }
                self.media.push(Mention::Medium(MediaRef { param, files }));
                Ok(Part::Picture)
            }
            wire::Part::File(file) => {
                self.media.push(document(*file, path)?);
                // Its pages come in its place.
                Ok(Part::Picture)
            }
            wire::Part::Other(other) => Err(match &*other {
                "input_audio" => unsupported(&kind, "recordings are not supported here; chat takes them"),
                other => {
                    let supported = "'input_text', 'input_image', 'input_file', 'output_text' and 'refusal'";
                    value(&kind, other, supported)
                }
            }),
        }
    }
}

/// Functions that may be called, and how; [`None`] where none may be.
fn toolbox(
    given: &[wire::Tool],
    choice: &wire::ToolChoice,
    parallel: bool,
) -> Result<Option<Toolbox>, InvalidRequest> {
    let mut tools: Vec<text::Tool> = Vec::with_capacity(given.len());
    for (index, given) in given.iter().enumerate() {
        let path = format!("tools[{index}]");
        match given.kind.as_deref() {
            Some("function") => {}
            Some("custom") => {
                let reason = "only functions can be called; give the tool a JSON schema";
                return Err(unsupported(&format!("{path}.type"), reason));
            }
            Some(other) => {
                let reason = format!("this server has no tools of its own, and so no '{other}'");
                return Err(unsupported(&format!("{path}.type"), reason));
            }
            None => return Err(missing(&format!("{path}.type"))),
        }
        let wire::Tool { name, description, parameters, strict, .. } = given.clone();
        let tool = tool(tools::Function { name, description, parameters, strict }, &path)?;
        if tools.iter().any(|other| other.name == tool.name) {
            return Err(value(&format!("{path}.name"), &tool.name, "names that differ from each other"));
        }
        tools.push(tool);
    }
    let named = |name: &Option<String>, path: &str| {
        let name = name.as_ref().ok_or_else(|| missing(path))?;
        if tools.iter().any(|tool| tool.name == *name) {
            return Ok(name.clone());
        }
        let names: Vec<&str> = tools.iter().map(|tool| tool.name.as_str()).collect();
        let known = if names.is_empty() { "none: there are no tools".into() } else { names.join(", ") };
        Err(value(path, name, &known))
    };
    let mut allowed = None;
    let required = |path: &str, word: &str| match word {
        "auto" => Ok(text::ToolChoice::Auto),
        "required" if tools.is_empty() => Err(missing("tools")),
        "required" => Ok(text::ToolChoice::Required),
        other => Err(value(path, other, "'auto' and 'required'")),
    };
    let choice = match choice {
        wire::ToolChoice::Word(word) => match word.as_str() {
            "none" => return Ok(None),
            "auto" | "required" => required("tool_choice", word)?,
            other => {
                return Err(value("tool_choice", other, "'none', 'auto', 'required' and an object"));
            }
        },
        wire::ToolChoice::Which(which) => match which.kind.as_deref() {
            Some("function") => text::ToolChoice::Named(named(&which.name, "tool_choice.name")?),
            Some("allowed_tools") => {
                let list = which.tools.as_ref().ok_or_else(|| missing("tool_choice.tools"))?;
                let names = list.iter().enumerate();
                let names = names
                    .map(|(index, tool)| named(&tool.name, &format!("tool_choice.tools[{index}].name")))
                    .collect::<Result<Vec<_>, _>>()?;
                allowed = Some(names);
                required("tool_choice.mode", which.mode.as_deref().unwrap_or("auto"))?
            }
            Some(other) => return Err(value("tool_choice.type", other, "'function' and 'allowed_tools'")),
            None => return Err(missing("tool_choice.type")),
        },
    };
    if let Some(names) = allowed {
        tools.retain(|tool| names.contains(&tool.name));
    }
    Ok((!tools.is_empty()).then_some(Toolbox {
        tools,
        choice,
        parallel,
        legacy: false,
        schemas: "tools[].parameters",
    }))
}

/// What form the answer has; [`None`] for text.
fn form(format: &wire::TextFormat) -> Result<Option<Constrained>, InvalidRequest> {
    let path = "text.format";
    match format.kind.as_deref() {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some(Constrained { grammar: Grammar::any_object(), param: path.into() })),
        Some("json_schema") => {
            let wire::TextFormat { name, description, schema, strict, .. } = format.clone();
            named_schema(tools::NamedSchema { name, description, schema, strict }, path).map(Some)
        }
        Some(other) => Err(value(&format!("{path}.type"), other, "'text', 'json_object' and 'json_schema'")),
        None => Err(missing(&format!("{path}.type"))),
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
    let mut include = request.include.iter().flat_map(|Items(include)| include);
    if include.any(|include| include == "message.output_text.logprobs") {
        return Err(unsupported("include", "log probabilities are given by chat only"));
    }
    if request.top_logprobs.is_some_and(|count| count != 0) {
        return Err(unsupported("top_logprobs", "log probabilities are given by chat only"));
    }
    match request.truncation.as_deref() {
        None | Some("disabled") => Ok(()),
        Some("auto") => {
            let reason = "this server drops nothing of a conversation; it must fit the context";
            Err(unsupported("truncation", reason))
        }
        Some(other) => Err(value("truncation", other, "'disabled'")),
    }
}
