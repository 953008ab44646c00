//! `/v1/messages` and `/v1/messages/count_tokens`, of the Anthropic API.

use std::fmt;

use schemars::JsonSchema;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{
        Error as _, MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer, value::SeqAccessDeserializer,
    },
};

use serde_json::Value;

use super::{
    Anything, Items, Object,
    chat::{MOST_MESSAGES, MOST_PARTS, Never, text_or},
    tools::MOST_TOOLS,
};

/// Most stop texts.
pub const MOST_SEQUENCES: usize = 64;

/// A request. Everything may be absent or null here: what must be there is checked with a better message.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(extend("required" = ["model", "max_tokens", "messages"]))]
pub struct MessagesRequest {
    /// Which model.
    pub model: Option<String>,
    /// Most tokens of the answer.
    #[schemars(range(min = 1))]
    pub max_tokens: Option<i64>,
    /// The conversation.
    pub messages: Option<Items<Object<MessageParam>, MOST_MESSAGES>>,
    /// What the operator of the conversation says: one text, or blocks of text.
    pub system: Option<Content>,
    /// Texts that end the answer.
    pub stop_sequences: Option<Items<String, MOST_SEQUENCES>>,
    /// Whether the answer comes in pieces.
    pub stream: Option<bool>,
    /// 0 to 1.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub temperature: Option<f64>,
    /// 0 to 1.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub top_p: Option<f64>,
    /// 0 or -1 keeps all.
    pub top_k: Option<i64>,
    /// An extension: 0 to 1.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub min_p: Option<f64>,
    /// An extension: 0.01 to 10.
    #[schemars(range(min = 0.01, max = 10.0))]
    pub repetition_penalty: Option<f64>,
    /// An extension: the same seed gives the same text.
    pub seed: Option<i64>,
    /// Whether the usage tells what was found in the cache.
    pub cache_control: Option<Anything>,
    /// Functions that the model may call.
    pub tools: Option<Items<Object<ToolParam>, MOST_TOOLS>>,
    /// Whether it calls some.
    pub tool_choice: Option<Object<ToolChoice>>,
    /// What form the answer has; its `effort` changes nothing.
    pub output_config: Option<Object<OutputConfig>>,
    /// The older name of `output_config.format`.
    pub output_format: Option<Object<OutputFormat>>,
    /// Refused.
    pub container: Option<Anything>,
    /// Refused unless empty.
    pub mcp_servers: Option<Vec<Anything>>,
}

/// A request to count: the same, but that no `max_tokens` is wanted.
#[derive(Debug, Default, Deserialize)]
#[serde(transparent)]
pub struct CountRequest(pub MessagesRequest);

/// Fields that clients send and that change nothing here.
pub const HARMLESS: &[&str] = &[
    "context_management",
    "diagnostics",
    "inference_geo",
    "metadata",
    "output_config.effort",
    "service_tier",
    "speed",
    "thinking",
    "user_profile_id",
    "workspace_id",
];

/// Fields of blocks that clients send, often because an answer had them, and that change nothing.
pub const HARMLESS_IN_BLOCKS: &[&str] = &["caller", "citations", "signature", "transformations"];

/// Fields of tools that clients send, and that change nothing.
pub const HARMLESS_IN_TOOLS: &[&str] =
    &["allowed_callers", "defer_loading", "eager_input_streaming", "input_examples"];

/// A function that the model may call.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(extend("required" = ["name", "input_schema"]))]
pub struct ToolParam {
    /// `custom`, or absent; tools of the hosted service are refused.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// Letters, digits, `_`, `-` and `.`, up to 64.
    pub name: Option<String>,
    /// What it does.
    pub description: Option<String>,
    /// A JSON schema of its input.
    #[serde(default, deserialize_with = "super::tree")]
    pub input_schema: Option<Value>,
    /// Whether a schema that cannot be enforced in full is refused.
    pub strict: Option<bool>,
    /// Whether the usage tells what was found in the cache.
    pub cache_control: Option<Anything>,
}

/// Whether functions are called.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(rename = "AnthropicToolChoice", extend("required" = ["type"]))]
pub struct ToolChoice {
    /// `auto`, `any`, `tool` or `none`.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// The one that is called, where it is `tool`.
    pub name: Option<String>,
    /// Whether one is called at most.
    pub disable_parallel_tool_use: Option<bool>,
}

/// What form an answer has.
#[derive(Debug, Default, Deserialize, JsonSchema)]
pub struct OutputConfig {
    /// That form.
    pub format: Option<Object<OutputFormat>>,
}

/// What form an answer has.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(rename = "AnthropicOutputFormat", extend("required" = ["type", "schema"]))]
pub struct OutputFormat {
    /// `json_schema`.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// A JSON schema.
    #[serde(default, deserialize_with = "super::tree")]
    pub schema: Option<Value>,
}

/// A turn.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(extend("required" = ["role", "content"]))]
pub struct MessageParam {
    /// `user`, `assistant` or `system`.
    pub role: Option<String>,
    /// What is said and shown.
    pub content: Option<Content>,
}

/// What is said and shown.
#[derive(Debug)]
pub enum Content {
    /// One text.
    Text(String),
    /// Blocks.
    Blocks(Items<Block, MOST_PARTS>),
}

text_or!(Content, "a string or an array of blocks", Content::Text, visit_seq(blocks: SeqAccess) => {
    Items::deserialize(SeqAccessDeserializer::new(blocks)).map(Content::Blocks)
});

/// A block of a turn. Small: a body can hold very many.
#[derive(Debug)]
pub struct Block {
    /// What it is.
    pub kind: BlockKind,
    /// Whether the usage is to tell what was found in the cache.
    pub cache_control: bool,
}

/// What a block is.
#[derive(Debug)]
pub enum BlockKind {
    /// Words.
    Text(Box<str>),
    /// A picture.
    Image(Source),
    /// A document.
    Document(Box<Document>),
    /// What a search found.
    SearchResult(Box<SearchResult>),
    /// A function that the model called.
    ToolUse(Box<ToolUse>),
    /// What came of a call.
    ToolResult(Box<ToolResult>),
    /// What the model thought: dropped.
    Thinking,
    /// Another type.
    Other(Box<str>),
}

/// A function that the model called.
#[derive(Debug)]
pub struct ToolUse {
    /// Names the call.
    pub id: String,
    /// Of the function.
    pub name: String,
    /// An object.
    pub input: Value,
}

/// What came of a call.
#[derive(Debug)]
pub struct ToolResult {
    /// Of the call.
    pub tool_use_id: String,
    /// What.
    pub content: Option<Content>,
    /// Whether it failed.
    pub is_error: bool,
}

/// Where something is from.
#[derive(Debug)]
pub enum Source {
    /// Of what a search found: where.
    Name(String),
    /// Of pictures and documents.
    Media(Box<MediaSource>),
}

text_or!(Source, "an object or a string", Source::Name, visit_map(map: MapAccess) => {
    MediaSource::deserialize(MapAccessDeserializer::new(map)).map(|source| Source::Media(Box::new(source)))
});

/// Where a picture or a document is.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(extend("required" = ["type"]))]
pub struct MediaSource {
    /// `base64`, `url`, `file`; of documents also `text` and `content`.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// Of base64; a picture or a document is told by its content, whatever this says.
    pub media_type: Option<String>,
    /// The file in base64, or the text.
    pub data: Option<String>,
    /// A URL of a picture or a document.
    pub url: Option<String>,
    /// Texts and pictures.
    pub content: Option<Content>,
    /// A file that is kept.
    pub file_id: Option<String>,
}

/// A document.
#[derive(Debug)]
pub struct Document {
    /// Where it is.
    pub source: Source,
    /// What it is called.
    pub title: Option<String>,
    /// What else is known of it.
    pub context: Option<String>,
}

/// What a search found.
#[derive(Debug)]
pub struct SearchResult {
    /// Where.
    pub source: Source,
    /// What it is called.
    pub title: Option<String>,
    /// What it says.
    pub content: Content,
}

impl BlockKind {
    /// The name of its type.
    pub fn name(&self) -> &str {
        match self {
            Self::Text(_) => "text",
            Self::Image(_) => "image",
            Self::Document(_) => "document",
            Self::SearchResult(_) => "search_result",
            Self::ToolUse(_) => "tool_use",
            Self::ToolResult(_) => "tool_result",
            Self::Thinking => "thinking",
            Self::Other(name) => name,
        }
    }

    /// Whether it may be inside of a document or of what a search found.
    pub fn is_leaf(&self) -> bool {
        matches!(self, Self::Text(_) | Self::Image(_))
    }
}

impl<'de> Deserialize<'de> for Block {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Fields {
            #[serde(rename = "type")]
            kind: Option<String>,
            text: Option<Box<str>>,
            source: Option<Source>,
            title: Option<String>,
            context: Option<String>,
            content: Option<Content>,
            cache_control: Option<Anything>,
            id: Option<String>,
            name: Option<String>,
            #[serde(default, deserialize_with = "super::tree")]
            input: Option<Value>,
            tool_use_id: Option<String>,
            is_error: Option<bool>,
            #[serde(rename = "thinking")]
            _thinking: Option<Anything>,
            #[serde(rename = "data")]
            _data: Option<Anything>,
        }
        let Object(fields) = Object::<Fields>::deserialize(deserializer)?;
        let Fields {
            kind,
            text,
            source,
            title,
            context,
            content,
            cache_control,
            id,
            name,
            input,
            tool_use_id,
            is_error,
            ..
        } = fields;
        let missing = D::Error::missing_field;
        let kind = kind.ok_or_else(|| missing("type"))?;
        let source = || source.ok_or_else(|| missing("source"));
        let block = match kind.as_str() {
            "text" => BlockKind::Text(text.ok_or_else(|| missing("text"))?),
            "image" => BlockKind::Image(source()?),
            "document" => BlockKind::Document(Box::new(Document { source: source()?, title, context })),
            "search_result" => {
                let content = content.ok_or_else(|| missing("content"))?;
                BlockKind::SearchResult(Box::new(SearchResult { source: source()?, title, content }))
            }
            "tool_use" => BlockKind::ToolUse(Box::new(ToolUse {
                id: id.ok_or_else(|| missing("id"))?,
                name: name.ok_or_else(|| missing("name"))?,
                input: input.ok_or_else(|| missing("input"))?,
            })),
            "tool_result" => BlockKind::ToolResult(Box::new(ToolResult {
                tool_use_id: tool_use_id.ok_or_else(|| missing("tool_use_id"))?,
                content,
                is_error: is_error.unwrap_or(false),
            })),
            "thinking" | "redacted_thinking" => BlockKind::Thinking,
            _ => BlockKind::Other(kind.into()),
        };
        Ok(Self { kind: block, cache_control: cache_control.is_some() })
    }
}

/// A whole answer.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "AnthropicMessage")]
pub struct Message<'a> {
    /// `msg_…`.
    pub id: &'a str,
    /// `message`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// `assistant`.
    pub role: &'static str,
    /// The model that answered.
    pub model: &'a str,
    /// Text and calls of functions; nothing where the answer begins.
    pub content: Vec<ContentBlock>,
    /// Why it ended; null where it begins.
    pub stop_reason: Option<StopReason>,
    /// The stop text that ended it.
    pub stop_sequence: Option<String>,
    /// Always null: what refuses is the model, in words.
    pub stop_details: Option<Never>,
    /// Always null.
    pub container: Option<Never>,
    /// Always null.
    pub diagnostics: Option<Never>,
    /// Tokens.
    pub usage: Usage,
}

/// A block of an answer.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ContentBlock {
    /// Words.
    Text {
        /// What is said.
        text: String,
        /// Always null.
        citations: Option<Never>,
    },
    /// A call of a function.
    ToolUse {
        /// `toolu_…`.
        id: String,
        /// Of the function.
        name: String,
        /// An object; empty where the call begins, or was cut off.
        input: Value,
        /// The model itself.
        caller: Caller,
    },
}

impl ContentBlock {
    /// Words.
    pub fn text(text: String) -> Self {
        Self::Text { text, citations: None }
    }
}

/// Who calls a function.
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
#[schemars(rename = "AnthropicCaller")]
pub struct Caller {
    /// `direct`.
    #[serde(rename = "type")]
    pub kind: &'static str,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// The model ended it.
    EndTurn,
    /// `max_tokens` did.
    MaxTokens,
    /// A stop text did.
    StopSequence,
    /// The model called functions.
    ToolUse,
    /// The context did, before `max_tokens` could.
    ModelContextWindowExceeded,
}

/// Tokens of a request.
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
#[schemars(rename = "AnthropicUsage")]
pub struct Usage {
    /// Of the prompt, but for those in `cache_read_input_tokens`.
    pub input_tokens: usize,
    /// 0.
    pub cache_creation_input_tokens: usize,
    /// Of the prompt, those that an earlier request had computed; 0 unless the request has a `cache_control`.
    pub cache_read_input_tokens: usize,
    /// Of the answer.
    pub output_tokens: usize,
    /// Always null.
    pub cache_creation: Option<Never>,
    /// Always null: where it was computed is where the server is.
    pub inference_geo: Option<Never>,
    /// Always null.
    pub output_tokens_details: Option<Never>,
    /// Always null.
    pub server_tool_use: Option<Never>,
    /// `standard`.
    pub service_tier: &'static str,
}

/// A piece of an answer, under its name as the event's.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schemars(rename = "AnthropicEvent")]
pub enum StreamEvent<'a> {
    /// The answer begins.
    MessageStart {
        /// It, without content.
        message: Message<'a>,
    },
    /// A block begins.
    ContentBlockStart {
        /// Which.
        index: usize,
        /// It, without content.
        content_block: ContentBlock,
    },
    /// Nothing happened.
    Ping,
    /// A block goes on.
    ContentBlockDelta {
        /// Which.
        index: usize,
        /// With what.
        delta: Delta<'a>,
    },
    /// A block is complete.
    ContentBlockStop {
        /// Which.
        index: usize,
    },
    /// The answer is complete.
    MessageDelta {
        /// Why.
        delta: End<'a>,
        /// Tokens.
        usage: Usage,
    },
    /// Nothing follows.
    MessageStop,
}

impl StreamEvent<'_> {
    /// The event's name, which is its type.
    pub fn name(&self) -> &'static str {
        match self {
            Self::MessageStart { .. } => "message_start",
            Self::ContentBlockStart { .. } => "content_block_start",
            Self::Ping => "ping",
            Self::ContentBlockDelta { .. } => "content_block_delta",
            Self::ContentBlockStop { .. } => "content_block_stop",
            Self::MessageDelta { .. } => "message_delta",
            Self::MessageStop => "message_stop",
        }
    }
}

/// What a block goes on with.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schemars(rename = "AnthropicDelta")]
pub enum Delta<'a> {
    /// More text.
    TextDelta {
        /// It.
        text: &'a str,
    },
    /// More of a call's input.
    InputJsonDelta {
        /// As JSON.
        partial_json: &'a str,
    },
}

/// Why an answer is complete.
#[derive(Debug, Serialize, JsonSchema)]
pub struct End<'a> {
    /// Why.
    pub stop_reason: StopReason,
    /// The stop text that ended it.
    pub stop_sequence: Option<&'a str>,
    /// Always null, as in the message.
    pub stop_details: Option<Never>,
    /// Always null.
    pub container: Option<Never>,
}

/// `POST /v1/messages/count_tokens`
#[derive(Debug, Serialize, JsonSchema)]
pub struct TokenCount {
    /// Tokens that the prompt has.
    pub input_tokens: usize,
}

/// `{"type": "error", …}`.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "AnthropicErrorBody")]
pub struct ErrorBody<'a> {
    /// `error`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// What is wrong.
    pub error: ErrorObject,
    /// The id in the server's log; absent in a stream, whose headers have it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<&'a str>,
}

/// What is wrong.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "AnthropicErrorObject")]
pub struct ErrorObject {
    /// `invalid_request_error`, `not_found_error`, `overloaded_error` and so on.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// For people: the path of the field, such as `messages.0.content.1`, and what is wrong with it.
    pub message: String,
}

/// `GET /v1/models`, with the header `anthropic-version`.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "AnthropicModelList")]
pub struct ModelList {
    /// A page of the names that a request may use.
    pub data: Vec<ModelInfo>,
    /// Whether there are more in that direction.
    pub has_more: bool,
    /// The first of them.
    pub first_id: Option<String>,
    /// The last of them.
    pub last_id: Option<String>,
}

/// `GET /v1/models/{id}`, with the header `anthropic-version`.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "AnthropicModel")]
pub struct ModelInfo {
    /// `model`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The name.
    pub id: String,
    /// The same.
    pub display_name: String,
    /// When it was loaded, as RFC 3339 has it.
    pub created_at: String,
    /// `active`.
    pub lifecycle: &'static str,
    /// Always null.
    pub deprecated_at: Option<Never>,
    /// Always null.
    pub retires_at: Option<Never>,
    /// Always null.
    pub line: Option<Never>,
    /// Most tokens of prompt and answer together.
    pub max_input_tokens: usize,
    /// Most tokens of an answer.
    pub max_tokens: usize,
    /// What requests for it may have.
    pub capabilities: Capabilities,
}

/// What requests for a model may have.
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
pub struct Capabilities {
    /// Whether it answers batches.
    pub batch: Support,
    /// Not yet.
    pub citations: Support,
    /// Never.
    pub code_execution: Support,
    /// Never.
    pub context_management: ContextSupport,
    /// Not: it is ignored.
    pub effort: EffortSupport,
    /// Pictures.
    pub image_input: Support,
    /// Documents.
    pub pdf_input: Support,
    /// Never.
    pub server_tools: ServerToolSupport,
    /// Answers that follow a schema, and strict tools.
    pub structured_outputs: Support,
    /// Not: what asks for it is answered without.
    pub thinking: ThinkingSupport,
}

/// Whether there is something.
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
pub struct Support {
    /// That.
    pub supported: bool,
}

impl From<bool> for Support {
    fn from(supported: bool) -> Self {
        Self { supported }
    }
}

/// What a server can leave out of a conversation itself.
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
pub struct ContextSupport {
    /// Anything at all.
    pub supported: bool,
    /// Always null.
    pub clear_thinking_20251015: Option<Never>,
    /// Always null.
    pub clear_tool_uses_20250919: Option<Never>,
    /// Always null.
    pub compact_20260112: Option<Never>,
}

/// How much effort a model can be told to make.
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
pub struct EffortSupport {
    /// Any at all.
    pub supported: bool,
    /// Little.
    pub low: Support,
    /// Some.
    pub medium: Support,
    /// Much.
    pub high: Support,
    /// More.
    pub xhigh: Support,
    /// All.
    pub max: Support,
}

/// Tools that a server runs itself.
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
pub struct ServerToolSupport {
    /// Any of them.
    pub supported: bool,
    /// Programs.
    pub code_execution: Support,
    /// Searches.
    pub web_search: Support,
}

/// Whether a model can be told to think.
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
pub struct ThinkingSupport {
    /// Whether it can.
    pub supported: bool,
    /// What of `thinking.type` has an effect, or is taken as what there is.
    pub types: ThinkingTypes,
}

/// What of `thinking.type` has an effect, or is taken as what there is.
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
pub struct ThinkingTypes {
    /// As much as the model likes.
    pub adaptive: Support,
    /// Not, but between calls of tools.
    pub between_tools: Support,
    /// Not.
    pub disabled: Support,
    /// So much.
    pub enabled: Support,
}
