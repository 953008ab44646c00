//! From the wire to a conversation that is valid as far as it can be told without a model.

use crate::{
    api::{
        chat::{Asked, Chat, Files, MediaRef, count, stop_texts},
        check::{decimal, integer, missing, unsupported, value},
        wire::{Items, Object, messages as wire},
    },
    media::MediaLimits,
    request::InvalidRequest,
    text::{Message, Part, Role},
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
        let sampling = Asked {
            temperature: decimal("temperature", request.temperature, 0.0, 1.0)?,
            top_p: decimal("top_p", request.top_p, 0.0, 1.0)?,
            min_p: decimal("min_p", request.min_p, 0.0, 1.0)?,
            top_k: request.top_k.map(|k| integer("top_k", k, -1, i64::MAX)).transpose()?,
            repetition_penalty: decimal("repetition_penalty", request.repetition_penalty, 0.01, 10.0)?,
            seed: request.seed,
            ..Asked::default()
        };
        let Items(stops) = request.stop_sequences.take().unwrap_or_default();
        let stops = stop_texts("stop_sequences", stops)?;
        let stream = request.stream.unwrap_or(false);
        let Conversation { model, messages, media, cache } = Conversation::parse(request, limits)?;
        let max = Some(max_tokens);
        let chat = Chat {
            model,
            messages,
            media,
            sampling,
            max_tokens: max,
            stops,
            ignore_eos: false,
            stream: None,
        };
        Ok(Self { chat, max_tokens, stream, cache })
    }
}

/// What is said, without how to go on.
pub(super) struct Conversation {
    pub(super) model: String,
    pub(super) messages: Vec<Message>,
    pub(super) media: Vec<MediaRef>,
    pub(super) cache: bool,
}

impl Conversation {
    pub(super) fn parse(
        request: wire::MessagesRequest,
        limits: &MediaLimits,
    ) -> Result<Self, InvalidRequest> {
        refuse_unsupported(&request)?;
        let model = request.model.ok_or_else(|| missing("model"))?;
        let Items(turns) = request.messages.ok_or_else(|| missing("messages"))?;
        if turns.is_empty() {
            return Err(InvalidRequest::EmptyArray { param: "messages".into() });
        }
        let mut reader = Reader { cache: request.cache_control.is_some(), ..Reader::default() };
        if let Some(system) = request.system {
            let parts = reader.content(system, "system", Role::System)?;
            reader.turn(Role::System, parts);
        }
        for (index, Object(turn)) in turns.into_iter().enumerate() {
            let path = format!("messages[{index}]");
            let role = role(turn.role.as_deref(), &path)?;
            let path = format!("{path}.content");
            let content = turn.content.ok_or_else(|| missing(&path))?;
            let parts = reader.content(content, &path, role)?;
            reader.turn(role, parts);
        }
        let Reader { messages, media, cache } = reader;
        count("messages", &media, limits)?;
        if messages.last().is_some_and(|last| last.role == Role::Assistant) {
            let reason = "the last turn is the assistant's, and this server does not go on with one; \
                          end with a turn of the user";
            return Err(unsupported("messages", reason));
        }
        Ok(Self { model, messages, media, cache })
    }
}

/// Reads turns.
#[derive(Default)]
struct Reader {
    messages: Vec<Message>,
    media: Vec<MediaRef>,
    cache: bool,
}

impl Reader {
    /// Adds a turn. Turns of one speaker that follow each other are one.
    fn turn(&mut self, role: Role, parts: Vec<Part>) {
        // Nothing but thoughts.
        if parts.is_empty() {
            return;
        }
        match self.messages.last_mut().filter(|last| last.role == role) {
            Some(last) => {
                last.parts.push(Part::Text("\n".into()));
                last.parts.extend(parts);
            }
            None => self.messages.push(Message { role, parts }),
        }
    }

    fn content(
        &mut self,
        content: wire::Content,
        path: &str,
        role: Role,
    ) -> Result<Vec<Part>, InvalidRequest> {
        let blocks = match content {
            wire::Content::Text(text) => return Ok(vec![Part::Text(text)]),
            wire::Content::Blocks(Items(blocks)) => blocks,
        };
        if blocks.is_empty() && role == Role::User {
            return Err(InvalidRequest::EmptyArray { param: path.into() });
        }
        let mut parts = Vec::with_capacity(blocks.len());
        for (index, block) in blocks.into_iter().enumerate() {
            self.cache |= block.cache_control;
            let path = format!("{path}[{index}]");
            // What is said in two blocks is said in two lines, but for a model's own words.
            if role != Role::Assistant && matches!(parts.last(), Some(Part::Text(_))) && block.kind.is_text()
            {
                parts.push(Part::Text("\n".into()));
            }
            self.block(block.kind, &path, role, &mut parts)?;
        }
        Ok(parts)
    }

    fn block(
        &mut self,
        block: wire::BlockKind,
        path: &str,
        role: Role,
        parts: &mut Vec<Part>,
    ) -> Result<(), InvalidRequest> {
        let kind = format!("{path}.type");
        match block {
            wire::BlockKind::Text(text) => parts.push(Part::Text(text.into())),
            other if role == Role::System => {
                return Err(value(&kind, other.name(), "'text' in what the system says"));
            }
            wire::BlockKind::Thinking => {}
            wire::BlockKind::Image(source) => self.image(media(source, path)?, path, parts)?,
            wire::BlockKind::Document(document) => self.document(*document, path, role, parts)?,
            wire::BlockKind::SearchResult(result) => self.search_result(*result, path, role, parts)?,
            wire::BlockKind::Other(other) => {
                return Err(match &*other {
                    "tool_use" | "tool_result" => {
                        unsupported(&kind, "tool calls are not supported by this server")
                    }
                    "server_tool_use"
                    | "web_search_tool_result"
                    | "web_fetch_tool_result"
                    | "mcp_tool_use"
                    | "mcp_tool_result"
                    | "container_upload" => unsupported(&kind, "this server has no tools of its own"),
                    other => {
                        let supported = "'text', 'image', 'document', 'search_result', 'thinking' and \
                                         'redacted_thinking'";
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
                return Err(unsupported(
                    &kind,
                    "files are not kept by this server; send the picture in base64",
                ));
            }
            Some(other) => return Err(value(&kind, other, "'base64' and 'url'")),
        };
        self.media.push(MediaRef { param, files });
        parts.push(Part::Picture);
        Ok(())
    }

    /// A document as text, between tags that say what it is.
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
        parts.push(Part::Text(opening("document", [("title", title), ("context", context)])));
        match source.kind.as_deref() {
            None => return Err(missing(&kind)),
            Some("text") => {
                let data = source.data.ok_or_else(|| missing(&format!("{path}.data")))?;
                parts.push(Part::Text(data));
            }
            Some("content") => {
                let path = format!("{path}.content");
                let content = source.content.ok_or_else(|| missing(&path))?;
                self.leaves(content, &path, role, parts)?;
            }
            Some("base64") => {
                return Err(unsupported(
                    &kind,
                    "PDF files are not read by this server; send pages as pictures",
                ));
            }
            Some("url") => {
                return Err(unsupported(&kind, "documents are not fetched by this server; send their text"));
            }
            Some("file") => {
                return Err(unsupported(
                    &kind,
                    "files are not kept by this server; send the document's text",
                ));
            }
            Some(other) => return Err(value(&kind, other, "'text' and 'content'")),
        }
        parts.push(Part::Text("\n</document>".into()));
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
        let about = [("source", Some(source)), ("title", title)];
        parts.push(Part::Text(opening("search_result", about)));
        self.leaves(content, &format!("{path}.content"), role, parts)?;
        parts.push(Part::Text("\n</search_result>".into()));
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
        parts.extend(self.content(content, path, role)?);
        Ok(())
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

/// The first lines of a block that becomes text.
fn opening(tag: &str, about: [(&str, Option<String>); 2]) -> String {
    let about = about.into_iter().filter_map(|(name, text)| Some((name, text?)));
    let about: String = about.map(|(name, text)| format!("<{name}>{text}</{name}>\n")).collect();
    format!("<{tag}>\n{about}")
}

/// What would change the answer and is not done is refused, never ignored.
fn refuse_unsupported(request: &wire::MessagesRequest) -> Result<(), InvalidRequest> {
    if request.tools.as_ref().is_some_and(|tools| !tools.is_empty()) {
        return Err(unsupported("tools", "tool calls are not supported by this server"));
    }
    if let Some(Object(choice)) = &request.tool_choice {
        match choice.kind.as_deref() {
            Some("none" | "auto") => {}
            Some("any" | "tool") => {
                return Err(unsupported("tool_choice", "tool calls are not supported by this server"));
            }
            Some(other) => {
                return Err(value("tool_choice.type", other, "'auto', 'any', 'tool' and 'none'"));
            }
            None => return Err(missing("tool_choice.type")),
        }
    }
    let format = request.output_config.as_ref().is_some_and(|Object(config)| config.format.is_some());
    if format {
        return Err(unsupported("output_config.format", "structured output is not supported by this server"));
    }
    if request.output_format.is_some() {
        return Err(unsupported("output_format", "structured output is not supported by this server"));
    }
    if request.container.is_some() {
        return Err(unsupported("container", "this server runs no code"));
    }
    if request.mcp_servers.as_ref().is_some_and(|servers| !servers.is_empty()) {
        return Err(unsupported("mcp_servers", "this server calls no others"));
    }
    Ok(())
}
