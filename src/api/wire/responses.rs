//! `/v1/responses`.

use std::{collections::BTreeMap, fmt};

use schemars::JsonSchema;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{
        Error as _, MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer, value::SeqAccessDeserializer,
    },
};
use serde_json::Value;

use super::{
    Anything, Entries, Items, Object,
    chat::{ImageUrl, InputFile, MOST_MESSAGES, MOST_PARTS, Never, Stop, text_or},
    tools::MOST_TOOLS,
};

/// Most pairs of metadata.
pub const MOST_METADATA: usize = 16;

/// A request. Everything may be absent or null here: what must be there is checked with a better message.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(extend("required" = ["model", "input"]))]
pub struct ResponsesRequest {
    /// Which model.
    pub model: Option<String>,
    /// The conversation: what the user says, or items.
    pub input: Option<Input>,
    /// What the operator of the conversation says.
    pub instructions: Option<String>,
    /// Most tokens of the answer.
    #[schemars(range(min = 1))]
    pub max_output_tokens: Option<i64>,
    /// 0 to 2.
    #[schemars(range(min = 0.0, max = 2.0))]
    pub temperature: Option<f64>,
    /// 0 to 1.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub top_p: Option<f64>,
    /// An extension: 0 or -1 keeps all.
    pub top_k: Option<i64>,
    /// An extension: 0 to 1.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub min_p: Option<f64>,
    /// An extension: 0.01 to 10.
    #[schemars(range(min = 0.01, max = 10.0))]
    pub repetition_penalty: Option<f64>,
    /// An extension: the same seed gives the same text.
    pub seed: Option<i64>,
    /// An extension: one to four texts that end the answer.
    pub stop: Option<Stop>,
    /// Whether the answer comes in pieces.
    pub stream: Option<bool>,
    /// How: pieces are never padded.
    pub stream_options: Option<Object<StreamOptions>>,
    /// Told again by the answer.
    pub metadata: Option<Entries<String, MOST_METADATA>>,
    /// What form the answer has.
    pub text: Option<Object<TextConfig>>,
    /// Functions that the model may call.
    pub tools: Option<Items<Object<Tool>, MOST_TOOLS>>,
    /// Whether it calls some: `none`, `auto`, `required`, or which.
    pub tool_choice: Option<ToolChoice>,
    /// Whether it may call several.
    pub parallel_tool_calls: Option<bool>,
    /// What else the answer tells: probabilities are refused, and there is nothing of the others.
    pub include: Option<Items<String, 64>>,
    /// Refused above 0.
    pub top_logprobs: Option<i64>,
    /// Refused unless `disabled`.
    pub truncation: Option<String>,
    /// Refused: nothing is kept.
    pub previous_response_id: Option<String>,
    /// Refused: nothing is kept.
    pub conversation: Option<Anything>,
    /// Refused: nothing is kept.
    pub prompt: Option<Anything>,
    /// Refused when true: nothing is kept.
    pub background: Option<bool>,
}

/// Fields that clients send and that change nothing here.
pub const HARMLESS: &[&str] = &[
    "context_management",
    "max_tool_calls",
    "moderation",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "reasoning",
    "safety_identifier",
    "service_tier",
    "store",
    "text.verbosity",
    "user",
];

/// Fields of items and their parts that clients send, often because an answer had them, and that change nothing.
pub const HARMLESS_IN_ITEMS: &[&str] = &[
    "annotations",
    "encrypted_content",
    "id",
    "logprobs",
    "phase",
    "prompt_cache_breakpoint",
    "status",
    "summary",
];

/// How an answer comes in pieces.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(rename = "ResponseStreamOptions")]
pub struct StreamOptions {
    /// Accepted; pieces are never padded.
    pub include_obfuscation: Option<bool>,
}

/// What form an answer has.
#[derive(Debug, Default, Deserialize, JsonSchema)]
pub struct TextConfig {
    /// That form.
    pub format: Option<Object<TextFormat>>,
}

/// What form an answer has.
#[derive(Debug, Clone, Default, Deserialize, Serialize, JsonSchema)]
pub struct TextFormat {
    /// `text`, `json_object` or `json_schema`.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// Any name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Changes nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// A JSON schema.
    #[serde(default, deserialize_with = "super::tree", skip_serializing_if = "Option::is_none")]
    pub schema: Option<Value>,
    /// Whether a schema that cannot be enforced in full is refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strict: Option<bool>,
}

/// A function that the model may call.
#[derive(Debug, Clone, Default, Deserialize, Serialize, JsonSchema)]
#[schemars(rename = "FunctionTool")]
pub struct Tool {
    /// `function`.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// Letters, digits, `_`, `-` and `.`, up to 64.
    pub name: Option<String>,
    /// What it does.
    pub description: Option<String>,
    /// A JSON schema of its arguments. Without one it takes none.
    #[serde(default, deserialize_with = "super::tree")]
    pub parameters: Option<Value>,
    /// Whether a schema that cannot be enforced in full is refused.
    pub strict: Option<bool>,
}

/// Whether functions are called.
#[derive(Debug)]
pub enum ToolChoice {
    /// A word.
    Word(String),
    /// Which.
    Which(Box<Which>),
}

text_or!(ToolChoice, "a string or an object", ToolChoice::Word, visit_map(map: MapAccess) => {
    Which::deserialize(MapAccessDeserializer::new(map)).map(|which| ToolChoice::Which(Box::new(which)))
});

/// Which functions are called.
#[derive(Debug, Clone, Default, Deserialize, Serialize, JsonSchema)]
#[schemars(rename = "WhichTool")]
pub struct Which {
    /// `function` or `allowed_tools`.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// The one that is called.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `auto` or `required`, of those that may be called.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// Those that may be called.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tools: Option<Vec<NamedTool>>,
}

/// A function that may be called.
#[derive(Debug, Clone, Default, Deserialize, Serialize, JsonSchema)]
pub struct NamedTool {
    /// `function`.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// Its name.
    pub name: Option<String>,
}

/// A conversation.
#[derive(Debug)]
pub enum Input {
    /// What the user says.
    Text(String),
    /// Turns and what else there is.
    Items(Items<Object<Item>, MOST_MESSAGES>),
}

text_or!(Input, "a string or an array of items", Input::Text, visit_seq(items: SeqAccess) => {
    Items::deserialize(SeqAccessDeserializer::new(items)).map(Input::Items)
});

/// A turn, or what else there is.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(rename = "InputItem")]
pub struct Item {
    /// `message`, or absent, `function_call` or `function_call_output`; `reasoning` is dropped.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// Who speaks.
    pub role: Option<String>,
    /// What.
    pub content: Option<Content>,
    /// Names a call, so that its output can.
    pub call_id: Option<String>,
    /// The function that was called.
    pub name: Option<String>,
    /// Its arguments as JSON.
    pub arguments: Option<String>,
    /// What came of a call.
    pub output: Option<Content>,
}

/// What is said and shown.
#[derive(Debug)]
pub enum Content {
    /// One text.
    Text(String),
    /// Texts, pictures and documents.
    Parts(Items<Part, MOST_PARTS>),
}

text_or!(Content, "a string or an array of parts", Content::Text, visit_seq(parts: SeqAccess) => {
    Items::deserialize(SeqAccessDeserializer::new(parts)).map(Content::Parts)
});

/// A text, a picture or a document. Small: a body can hold very many.
#[derive(Debug)]
pub enum Part {
    /// A text, whoever says it.
    Text(Box<str>),
    /// A picture.
    Image(Box<Image>),
    /// A document.
    File(Box<InputFile>),
    /// Another type.
    Other(Box<str>),
}

/// A picture.
#[derive(Debug)]
pub struct Image {
    /// Where it is.
    pub image_url: Option<ImageUrl>,
    /// `auto`, `low`, `high` or `original`.
    pub detail: Option<String>,
    /// A file that is kept, instead.
    pub file_id: Option<String>,
}

impl<'de> Deserialize<'de> for Part {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Fields {
            #[serde(rename = "type")]
            kind: Option<String>,
            text: Option<Box<str>>,
            refusal: Option<Box<str>>,
            image_url: Option<ImageUrl>,
            detail: Option<String>,
            filename: Option<String>,
            file_data: Option<String>,
            file_url: Option<String>,
            file_id: Option<String>,
        }
        let Object(fields) = Object::<Fields>::deserialize(deserializer)?;
        let Fields { kind, text, refusal, image_url, detail, filename, file_data, file_url, file_id } =
            fields;
        let missing = D::Error::missing_field;
        let kind = kind.ok_or_else(|| missing("type"))?;
        match kind.as_str() {
            "input_text" | "output_text" => text.map(Self::Text).ok_or_else(|| missing("text")),
            "refusal" => refusal.map(Self::Text).ok_or_else(|| missing("refusal")),
            "input_image" => Ok(Self::Image(Box::new(Image { image_url, detail, file_id }))),
            "input_file" => Ok(Self::File(Box::new(InputFile { filename, file_data, file_url, file_id }))),
            _ => Ok(Self::Other(kind.into())),
        }
    }
}

/// A whole answer to `POST /v1/responses/input_tokens`.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ResponseTokenCount")]
pub struct TokenCount {
    /// `response.input_tokens`.
    pub object: &'static str,
    /// Of the prompt, media included.
    pub input_tokens: usize,
}

/// A whole answer.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Response<'a> {
    /// `resp_…`.
    pub id: &'a str,
    /// `response`.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created_at: u64,
    /// How far it is.
    pub status: Status,
    /// False.
    pub background: bool,
    /// Why it failed.
    pub error: Option<Failure>,
    /// Why it ended early.
    pub incomplete_details: Option<Incomplete>,
    /// As asked.
    pub instructions: Option<&'a str>,
    /// As asked.
    pub max_output_tokens: Option<i64>,
    /// The model that answers.
    pub model: &'a str,
    /// What it says.
    pub output: Vec<OutputItem<'a>>,
    /// As asked.
    pub parallel_tool_calls: bool,
    /// Always null.
    pub previous_response_id: Option<Never>,
    /// Nothing of it.
    pub reasoning: Reasoning,
    /// `default`.
    pub service_tier: &'static str,
    /// False: nothing is kept.
    pub store: bool,
    /// As asked.
    pub temperature: Option<f64>,
    /// As asked.
    pub text: OutputText<'a>,
    /// As asked.
    pub tool_choice: EchoedChoice<'a>,
    /// As asked.
    // The type's schema is that of a request, where more may be absent.
    #[schemars(with = "Vec<Value>")]
    pub tools: &'a [Tool],
    /// As asked.
    pub top_p: Option<f64>,
    /// `disabled`.
    pub truncation: &'static str,
    /// Tokens, where it is complete.
    pub usage: Option<Usage>,
    /// As asked.
    pub metadata: &'a BTreeMap<String, String>,
}

/// How far an answer, or a part of one, is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// More will come.
    InProgress,
    /// The model or a stop text ended it.
    Completed,
    /// The limit or the context ended it.
    Incomplete,
    /// The server failed.
    Failed,
}

/// Why an answer failed.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Failure {
    /// `server_error`.
    pub code: &'static str,
    /// For people.
    pub message: String,
}

/// Why an answer ended early.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Incomplete {
    /// `max_output_tokens`.
    pub reason: &'static str,
}

/// How the model thought: it did not.
#[derive(Debug, Default, Serialize, JsonSchema)]
pub struct Reasoning {
    /// Always null.
    pub effort: Option<Never>,
    /// Always null.
    pub summary: Option<Never>,
}

/// What form the text has.
#[derive(Debug, Serialize, JsonSchema)]
pub struct OutputText<'a> {
    /// Its format.
    #[schemars(with = "Value")]
    pub format: &'a TextFormat,
}

/// Whether functions were to be called.
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum EchoedChoice<'a> {
    /// A word.
    Word(&'a str),
    /// Which.
    Which(#[schemars(with = "Value")] &'a Which),
}

/// What the model says or calls.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum OutputItem<'a> {
    /// A turn.
    Message {
        /// `msg_…`.
        id: &'a str,
        /// How far it is.
        status: Status,
        /// `assistant`.
        role: &'static str,
        /// One part; nothing where it begins.
        content: Vec<OutputPart<'a>>,
    },
    /// A call of a function.
    FunctionCall {
        /// `fc_…`.
        id: &'a str,
        /// How far it is.
        status: Status,
        /// `call_…`: names the call, so that its output can.
        call_id: &'a str,
        /// Of the function.
        name: &'a str,
        /// As JSON; nothing where it begins.
        arguments: &'a str,
    },
}

/// A text that the model says.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct OutputPart<'a> {
    /// `output_text`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// It.
    pub text: &'a str,
    /// Always empty.
    pub annotations: [Never; 0],
    /// Always empty.
    pub logprobs: [Never; 0],
}

/// Tokens of a request.
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
#[schemars(rename = "ResponseUsage")]
pub struct Usage {
    /// Of the prompt.
    pub input_tokens: usize,
    /// Of the prompt, in detail.
    pub input_tokens_details: InputTokens,
    /// Of the answer.
    pub output_tokens: usize,
    /// Of the answer, in detail.
    pub output_tokens_details: OutputTokens,
    /// Of both.
    pub total_tokens: usize,
}

/// Tokens of a prompt, in detail.
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
pub struct InputTokens {
    /// Those an earlier request had computed.
    pub cached_tokens: usize,
    /// 0.
    pub cache_write_tokens: usize,
}

/// Tokens of an answer, in detail.
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
pub struct OutputTokens {
    /// 0.
    pub reasoning_tokens: usize,
}

/// A piece of an answer, under its name as the event's.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ResponseEvent")]
pub struct StreamEvent<'a> {
    /// What it says.
    #[serde(flatten)]
    pub kind: EventKind<'a>,
    /// Counted from 0.
    pub sequence_number: u64,
}

/// What a piece of an answer says.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(tag = "type")]
#[schemars(rename = "ResponseEventKind")]
pub enum EventKind<'a> {
    /// The request is accepted.
    #[serde(rename = "response.created")]
    Created {
        /// The answer so far.
        response: Response<'a>,
    },
    /// It is being answered.
    #[serde(rename = "response.in_progress")]
    InProgress {
        /// The answer so far.
        response: Response<'a>,
    },
    /// An item begins.
    #[serde(rename = "response.output_item.added")]
    ItemAdded {
        /// Which.
        output_index: usize,
        /// It, without content.
        item: OutputItem<'a>,
    },
    /// A part begins.
    #[serde(rename = "response.content_part.added")]
    PartAdded {
        /// Of which item.
        item_id: &'a str,
        /// Of which item.
        output_index: usize,
        /// Which.
        content_index: usize,
        /// It, without text.
        part: OutputPart<'a>,
    },
    /// A text goes on.
    #[serde(rename = "response.output_text.delta")]
    TextDelta {
        /// Of which item.
        item_id: &'a str,
        /// Of which item.
        output_index: usize,
        /// Of which part.
        content_index: usize,
        /// With what.
        delta: &'a str,
        /// Always empty.
        logprobs: [Never; 0],
    },
    /// A text is complete.
    #[serde(rename = "response.output_text.done")]
    TextDone {
        /// Of which item.
        item_id: &'a str,
        /// Of which item.
        output_index: usize,
        /// Of which part.
        content_index: usize,
        /// All of it.
        text: &'a str,
        /// Always empty.
        logprobs: [Never; 0],
    },
    /// A part is complete.
    #[serde(rename = "response.content_part.done")]
    PartDone {
        /// Of which item.
        item_id: &'a str,
        /// Of which item.
        output_index: usize,
        /// Which.
        content_index: usize,
        /// All of it.
        part: OutputPart<'a>,
    },
    /// The arguments of a call go on.
    #[serde(rename = "response.function_call_arguments.delta")]
    ArgumentsDelta {
        /// Of which item.
        item_id: &'a str,
        /// Of which item.
        output_index: usize,
        /// With what.
        delta: &'a str,
    },
    /// The arguments of a call are complete.
    #[serde(rename = "response.function_call_arguments.done")]
    ArgumentsDone {
        /// Of which item.
        item_id: &'a str,
        /// Of which item.
        output_index: usize,
        /// Of the function.
        name: &'a str,
        /// All of them.
        arguments: &'a str,
    },
    /// An item is complete.
    #[serde(rename = "response.output_item.done")]
    ItemDone {
        /// Which.
        output_index: usize,
        /// All of it.
        item: OutputItem<'a>,
    },
    /// The answer is complete.
    #[serde(rename = "response.completed")]
    Completed {
        /// All of it.
        response: Response<'a>,
    },
    /// The answer ended early.
    #[serde(rename = "response.incomplete")]
    Incomplete {
        /// All of it.
        response: Response<'a>,
    },
    /// The server failed.
    #[serde(rename = "response.failed")]
    Failed {
        /// What there was of it.
        response: Response<'a>,
    },
}

impl EventKind<'_> {
    /// The event's name, which is its type.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Created { .. } => "response.created",
            Self::InProgress { .. } => "response.in_progress",
            Self::ItemAdded { .. } => "response.output_item.added",
            Self::PartAdded { .. } => "response.content_part.added",
            Self::TextDelta { .. } => "response.output_text.delta",
            Self::TextDone { .. } => "response.output_text.done",
            Self::PartDone { .. } => "response.content_part.done",
            Self::ArgumentsDelta { .. } => "response.function_call_arguments.delta",
            Self::ArgumentsDone { .. } => "response.function_call_arguments.done",
            Self::ItemDone { .. } => "response.output_item.done",
            Self::Completed { .. } => "response.completed",
            Self::Incomplete { .. } => "response.incomplete",
            Self::Failed { .. } => "response.failed",
        }
    }
}
