//! From the wire to a conversation that is valid as far as it can be told without a model.

use std::collections::HashSet;

use crate::{
    api::{
        chat::{
            Bare, Chat, Constrained, Document, DocumentSource, Files, MediaRef, Mention, SamplingFields,
            Toolbox, add_text, check_count, opening, stop_texts, tool, type_error,
        },
        check::{decimal, integer, missing, unsupported, value},
        wire::{Items, Object, messages as wire, tools},
    },
    media::MediaLimits,
    request::InvalidRequest,
    text::{self, Call, Conversation, Grammar, Message, Part, Role},
};

/// A conversation to go on with.
pub(super) struct Messages {
    pub(super) chat: Chat,
    pub(super) max_tokens: usize,
    pub(super) stream: bool,
    /// Whether the usage tells what was found in the cache.
    pub(super) cache: bool,
}

impl Messages {
    pub(super) fn parse(
        mut request: wire::MessagesRequest,
        limits: &MediaLimits,
    ) -> Result<Self, InvalidRequest> {
        let max_tokens = request.max_tokens.ok_or_else(|| missing("max_tokens"))?;
        let max_tokens = integer("max_tokens", max_tokens, 1, i64::MAX)? as usize;
        let sampling = SamplingFields {
            temperature: decimal("temperature", request.temperature, 0.0, 1.0)?,
            top_p: request.top_p,
            min_p: request.min_p,
            top_k: request.top_k,
            repetition_penalty: request.repetition_penalty,
            seed: request.seed,
            ..SamplingFields::default()
        };
        let sampling = sampling.asked()?;
        let Items(stops) = request.stop_sequences.take().unwrap_or_default();
        let stops = stop_texts("stop_sequences", stops)?;
        let stream = request.stream.unwrap_or(false);
        let Asked { model, conversation, media, toolbox, form, cache } = Asked::parse(request, limits)?;
        let (constrained, called) = Toolbox::bind(toolbox.as_ref(), form)?;
        let bare = Bare {
            sampling,
            max_tokens: Some(max_tokens),
            stops,
            ignore_eos: false,
            count: 1,
            logprobs: None,
            constrained,
        };
        let chat = Chat { model, conversation, media, recordings: Vec::new(), bare, called, stream: None };
        Ok(Self { chat, max_tokens, stream, cache })
    }
}

/// What is asked, without how to answer.
pub(super) struct Asked {
    pub(super) model: String,
    pub(super) conversation: Conversation,
    pub(super) media: Vec<Mention>,
    toolbox: Option<Toolbox>,
    form: Option<Constrained>,
    cache: bool,
}

impl Asked {
    pub(super) fn parse(
        mut request: wire::MessagesRequest,
        limits: &MediaLimits,
    ) -> Result<Self, InvalidRequest> {
        refuse_unsupported(&request)?;
        let model = request.model.take().ok_or_else(|| missing("model"))?;
        let Items(turns) = request.messages.take().ok_or_else(|| missing("messages"))?;
        if turns.is_empty() {
            return Err(InvalidRequest::EmptyArray { param: "messages".into() });
        }
        let mut reader = Reader { cache: request.cache_control.is_some(), ..Reader::default() };
        let toolbox = toolbox(&mut request, &mut reader.cache)?;
        if let Some(system) = request.system.take() {
            reader.turn(system, "system", Role::System)?;
        }
        for (index, Object(turn)) in turns.into_iter().enumerate() {
            let path = format!("messages[{index}]");
            let role = role(turn.role.as_deref(), &path)?;
            let path = format!("{path}.content");
            reader.turn(turn.content.ok_or_else(|| missing(&path))?, &path, role)?;
        }
        let Reader { messages, media, cache, .. } = reader;
        check_count("messages", media.len(), limits)?;
        let continues = match messages.last() {
            None => return Err(value("messages", "no turn", "at least one turn that says something")),
            Some(last) if last.role == Role::Assistant && !last.calls.is_empty() => {
                let reason = "the last turn calls tools; send their results in a turn of the user";
                return Err(unsupported("messages", reason));
            }
            // It is to go on.
            Some(last) => last.role == Role::Assistant,
        };
        let tools = toolbox.as_ref().map(|toolbox| toolbox.tools.clone()).unwrap_or_default();
        let form = form(request)?;
        Ok(Self {
            model,
            conversation: Conversation { messages, tools, continues },
            media,
            toolbox,
            form,
            cache,
        })
    }
}

/// Reads turns.
#[derive(Default)]
struct Reader {
    messages: Vec<Message>,
    media: Vec<Mention>,
    /// Ids of the calls that the assistant's last turn made.
    calls: HashSet<String>,
    cache: bool,
}

impl Reader {
    fn turn(&mut self, content: wire::Content, path: &str, role: Role) -> Result<(), InvalidRequest> {
        if role == Role::Assistant && self.messages.last().is_some_and(|last| last.role != role) {
            self.calls.clear();
        }
        let blocks = match content {
            wire::Content::Text(text) => {
                self.say(role, vec![Part::Text(text)]);
                return Ok(());
            }
            wire::Content::Blocks(Items(blocks)) => blocks,
        };
        if blocks.is_empty() && role == Role::User {
            return Err(InvalidRequest::EmptyArray { param: path.into() });
        }
        let mut parts = Vec::with_capacity(blocks.len());
        let mut calls = Vec::new();
        for (index, block) in blocks.into_iter().enumerate() {
            let path = format!("{path}[{index}]");
            match block.kind {
                wire::BlockKind::ToolUse(call) if role == Role::Assistant => {
                    self.cache |= block.cache_control;
                    calls.push(self.call(*call, &path)?);
                }
                wire::BlockKind::ToolResult(result) if role == Role::User => {
                    self.cache |= block.cache_control;
                    self.say(role, std::mem::take(&mut parts));
                    self.result(*result, &path)?;
                }
                _ => self.block(block, &path, role, &mut parts)?,
            }
        }
        self.say(role, parts);
        if !calls.is_empty() {
            match self.messages.last_mut().filter(|last| last.role == role) {
                Some(last) => last.calls.extend(calls),
                None => self.messages.push(Message { calls, ..Message::new(role, Vec::new()) }),
            }
        }
        Ok(())
    }

    /// Adds what is said. Turns of one speaker that follow each other are one.
    fn say(&mut self, role: Role, parts: Vec<Part>) {
        // Nothing but thoughts.
        if parts.is_empty() {
            return;
        }
        match self.messages.last_mut().filter(|last| last.role == role && last.calls.is_empty()) {
            Some(last) => {
                for part in parts {
                    match part {
                        Part::Text(text) => add_text(&mut last.parts, text, "\n"),
                        other => last.parts.push(other),
                    }
                }
            }
            None => self.messages.push(Message::new(role, parts)),
        }
    }

    fn call(&mut self, call: wire::ToolUse, path: &str) -> Result<Call, InvalidRequest> {
        let wire::ToolUse { id, name, input } = call;
        if !input.is_object() {
            return Err(type_error(&format!("{path}.input"), "an object", &input));
        }
        self.calls.insert(id.clone());
        Ok(Call { id, name, arguments: input })
    }

    fn result(&mut self, result: wire::ToolResult, path: &str) -> Result<(), InvalidRequest> {
        let wire::ToolResult { tool_use_id, content, is_error } = result;
        if !self.calls.contains(&tool_use_id) {
            let supported = "ids of calls (tool_use) in the assistant's turn in front of it";
            return Err(value(&format!("{path}.tool_use_id"), &tool_use_id, supported));
        }
        let mut parts = Vec::new();
        if is_error {
            parts.push(Part::Text("Error:\n".into()));
        }
        if let Some(content) = content {
            self.content(content, &format!("{path}.content"), Role::Tool, &mut parts)?;
        }
        if parts.is_empty() {
            parts.push(Part::Text(String::new()));
        }
        self.messages.push(Message { answers: Some(tool_use_id), ..Message::new(Role::Tool, parts) });
        Ok(())
    }

    fn content(
        &mut self,
        content: wire::Content,
        path: &str,
        role: Role,
        parts: &mut Vec<Part>,
    ) -> Result<(), InvalidRequest> {
        match content {
            wire::Content::Text(text) => add_text(parts, text, "\n"),
            wire::Content::Blocks(Items(blocks)) => {
                for (index, block) in blocks.into_iter().enumerate() {
                    self.block(block, &format!("{path}[{index}]"), role, parts)?;
                }
            }
        }
        Ok(())
    }

    /// A block that becomes parts of a turn.
    fn block(
        &mut self,
        block: wire::Block,
        path: &str,
        role: Role,
        parts: &mut Vec<Part>,
    ) -> Result<(), InvalidRequest> {
        self.cache |= block.cache_control;
        let kind = format!("{path}.type");
        match block.kind {
            // What is said in two blocks is said in two lines, but for a model's own words.
            wire::BlockKind::Text(text) => {
                add_text(parts, text.into(), if role == Role::Assistant { "" } else { "\n" });
            }
            other if role == Role::System => {
                return Err(value(&kind, other.name(), "'text' in what the system says"));
            }
            wire::BlockKind::Thinking => {}
            wire::BlockKind::Image(source) => self.image(media(source, path)?, path, parts)?,
            wire::BlockKind::Document(document) => self.document(*document, path, role, parts)?,
            wire::BlockKind::SearchResult(result) => self.search_result(*result, path, role, parts)?,
            wire::BlockKind::ToolUse(_) => {
                return Err(unsupported(&kind, "only the assistant calls tools"));
            }
            wire::BlockKind::ToolResult(_) => {
                return Err(unsupported(&kind, "results of tools belong into turns of the user"));
            }
            wire::BlockKind::Other(other) => {
                return Err(match &*other {
                    "server_tool_use"
                    | "web_search_tool_result"
                    | "web_fetch_tool_result"
                    | "mcp_tool_use"
                    | "mcp_tool_result"
                    | "container_upload" => unsupported(&kind, "this server has no tools of its own"),
                    other => {
                        let supported = "'text', 'image', 'document', 'search_result', 'tool_use', \
                                         'tool_result', 'thinking' and 'redacted_thinking'";
                        value(&kind, other, supported)
                    }
                });
            }
        }
        Ok(())
    }

    fn image(
        &mut self,
        source: wire::MediaSource,
        path: &str,
        parts: &mut Vec<Part>,
    ) -> Result<(), InvalidRequest> {
        let path = format!("{path}.source");
        let kind = format!("{path}.type");
        let (param, files) = match source.kind.as_deref() {
            None => return Err(missing(&kind)),
            Some("base64") => {
                let param = format!("{path}.data");
                let data = source.data.ok_or_else(|| missing(&param))?;
                (param, Files::Base64(data))
            }
            Some("url") => {
                let param = format!("{path}.url");
                let url = source.url.ok_or_else(|| missing(&param))?;
                (param, Files::Picture(url))
            }
            Some("file") => {
                let param = format!("{path}.file_id");
                let id = source.file_id.ok_or_else(|| missing(&param))?;
                (param, Files::Kept(id))
            }
            Some(other) => return Err(value(&kind, other, "'base64', 'url' and 'file'")),
        };
        self.media.push(Mention::Medium(MediaRef { param, files }));
        parts.push(Part::Picture);
        Ok(())
    }

    /// A document: as text, between tags that say what it is, or to be read.
    fn document(
        &mut self,
        document: wire::Document,
        path: &str,
        role: Role,
        parts: &mut Vec<Part>,
    ) -> Result<(), InvalidRequest> {
        let wire::Document { source, title, context } = document;
        let source = media(source, path)?;
        let path = format!("{path}.source");
        let kind = format!("{path}.type");
        let about = [("title", title), ("context", context)];
        let about: Vec<_> = about.into_iter().filter_map(|(name, text)| Some((name, text?))).collect();
        let (field, source) = match source.kind.as_deref() {
            None => return Err(missing(&kind)),
            Some("text") => {
                let data = source.data.ok_or_else(|| missing(&format!("{path}.data")))?;
                add_text(parts, opening("document", about), "\n");
                add_text(parts, data, "\n");
                add_text(parts, "</document>".into(), "\n");
                return Ok(());
            }
            Some("content") => {
                let path = format!("{path}.content");
                let content = source.content.ok_or_else(|| missing(&path))?;
                add_text(parts, opening("document", about), "\n");
                self.leaves(content, &path, role, parts)?;
                add_text(parts, "</document>".into(), "\n");
                return Ok(());
            }
            Some("base64") => ("data", source.data.map(DocumentSource::Data)),
            Some("url") => ("url", source.url.map(DocumentSource::Url)),
            Some("file") => ("file_id", source.file_id.map(DocumentSource::Id)),
            Some(other) => {
                return Err(value(&kind, other, "'base64', 'url', 'text', 'content' and 'file'"));
            }
        };
        let param = format!("{path}.{field}");
        let source = source.ok_or_else(|| missing(&param))?;
        self.media.push(Mention::Document(Document { param, source, about }));
        // Its pages come in its place.
        parts.push(Part::Picture);
        Ok(())
    }

    fn search_result(
        &mut self,
        result: wire::SearchResult,
        path: &str,
        role: Role,
        parts: &mut Vec<Part>,
    ) -> Result<(), InvalidRequest> {
        let wire::SearchResult { source, title, content } = result;
        let wire::Source::Name(source) = source else {
            return Err(wrong_type(format!("{path}.source"), "a string", "an object"));
        };
        let about = std::iter::once(("source", source)).chain(title.map(|title| ("title", title)));
        add_text(parts, opening("search_result", about), "\n");
        self.leaves(content, &format!("{path}.content"), role, parts)?;
        add_text(parts, "</search_result>".into(), "\n");
        Ok(())
    }

    /// Content of a block, which may have texts and pictures only.
    fn leaves(
        &mut self,
        content: wire::Content,
        path: &str,
        role: Role,
        parts: &mut Vec<Part>,
    ) -> Result<(), InvalidRequest> {
        if let wire::Content::Blocks(Items(blocks)) = &content {
            let other = blocks.iter().enumerate().find(|(_, block)| !block.kind.is_leaf());
            if let Some((index, block)) = other {
                return Err(value(&format!("{path}[{index}].type"), block.kind.name(), "'text' and 'image'"));
            }
        }
        self.content(content, path, role, parts)
    }
}

fn role(role: Option<&str>, path: &str) -> Result<Role, InvalidRequest> {
    let path = format!("{path}.role");
    match role {
        Some("user") => Ok(Role::User),
        Some("assistant") => Ok(Role::Assistant),
        Some("system") => Ok(Role::System),
        Some(other) => Err(value(&path, other, "'user', 'assistant' and 'system'")),
        None => Err(missing(&path)),
    }
}

/// The source of a picture or a document.
fn media(source: wire::Source, path: &str) -> Result<wire::MediaSource, InvalidRequest> {
    match source {
        wire::Source::Media(source) => Ok(*source),
        wire::Source::Name(_) => Err(wrong_type(format!("{path}.source"), "an object", "a string")),
    }
}

fn wrong_type(param: String, expected: &str, found: &str) -> InvalidRequest {
    InvalidRequest::Type { param, expected: expected.into(), found: found.into() }
}

/// Where tools have their schemas.
const SCHEMAS: &str = "tools[].input_schema";

/// Functions that may be called, and how; [`None`] where none may be. Says whether one of them asks for caching.
fn toolbox(request: &mut wire::MessagesRequest, cache: &mut bool) -> Result<Option<Toolbox>, InvalidRequest> {
    let Items(given) = request.tools.take().unwrap_or_default();
    let mut tools: Vec<text::Tool> = Vec::with_capacity(given.len());
    for (index, Object(given)) in given.into_iter().enumerate() {
        let path = format!("tools[{index}]");
        if let Some(other) = given.kind.as_deref().filter(|kind| *kind != "custom") {
            let reason = format!("this server has no tools of its own, and so no '{other}'");
            return Err(unsupported(&format!("{path}.type"), reason));
        }
        *cache |= given.cache_control.is_some();
        let param = format!("{path}.input_schema");
        let schema = given.input_schema.filter(|schema| !schema.is_null()).ok_or_else(|| missing(&param))?;
        if !schema.is_object() {
            return Err(type_error(&param, "an object", &schema));
        }
        let wire::ToolParam { name, description, strict, .. } = given;
        let tool = tool(tools::Function { name, description, parameters: Some(schema), strict }, &path)?;
        if tools.iter().any(|other| other.name == tool.name) {
            return Err(value(&format!("{path}.name"), &tool.name, "names that differ from each other"));
        }
        tools.push(tool);
    }
    let Some(Object(choice)) = request.tool_choice.take() else {
        let toolbox = Toolbox {
            tools,
            choice: text::ToolChoice::Auto,
            parallel: true,
            legacy: false,
            schemas: SCHEMAS,
        };
        return Ok(Some(toolbox).filter(|toolbox| !toolbox.tools.is_empty()));
    };
    let wire::ToolChoice { kind, name, disable_parallel_tool_use } = choice;
    let parallel = !disable_parallel_tool_use.unwrap_or(false);
    let choice = match kind.as_deref() {
        Some("none") => return Ok(None),
        Some("auto") => text::ToolChoice::Auto,
        Some("any" | "tool") if tools.is_empty() => return Err(missing("tools")),
        Some("any") => text::ToolChoice::Required,
        Some("tool") => {
            let path = "tool_choice.name";
            let name = name.ok_or_else(|| missing(path))?;
            if !tools.iter().any(|tool| tool.name == name) {
                let names: Vec<&str> = tools.iter().map(|tool| tool.name.as_str()).collect();
                return Err(value(path, &name, &names.join(", ")));
            }
            text::ToolChoice::Named(name)
        }
        Some(other) => return Err(value("tool_choice.type", other, "'auto', 'any', 'tool' and 'none'")),
        None => return Err(missing("tool_choice.type")),
    };
    let toolbox = Toolbox { tools, choice, parallel, legacy: false, schemas: SCHEMAS };
    Ok(Some(toolbox).filter(|toolbox| !toolbox.tools.is_empty()))
}

/// What form the answer has.
fn form(request: wire::MessagesRequest) -> Result<Option<Constrained>, InvalidRequest> {
    let config = request.output_config.and_then(|Object(config)| config.format);
    let (path, Object(format)) = match (config, request.output_format) {
        (Some(format), _) => ("output_config.format", format),
        (None, Some(format)) => ("output_format", format),
        (None, None) => return Ok(None),
    };
    match format.kind.as_deref() {
        Some("json_schema") => {}
        Some(other) => return Err(value(&format!("{path}.type"), other, "'json_schema'")),
        None => return Err(missing(&format!("{path}.type"))),
    }
    let param = format!("{path}.schema");
    let schema = format.schema.filter(|schema| !schema.is_null()).ok_or_else(|| missing(&param))?;
    if !schema.is_object() {
        return Err(type_error(&param, "an object", &schema));
    }
    Ok(Some(Constrained { grammar: Grammar::Json { schema, strict: true }, param }))
}

/// What would change the answer and is not done is refused, never ignored.
fn refuse_unsupported(request: &wire::MessagesRequest) -> Result<(), InvalidRequest> {
    if request.container.is_some() {
        return Err(unsupported("container", "this server runs no code"));
    }
    if request.mcp_servers.as_ref().is_some_and(|servers| !servers.is_empty()) {
        return Err(unsupported("mcp_servers", "this server calls no others"));
    }
    Ok(())
}
