//! `/v1/chat/completions`.

use std::fmt;

use schemars::JsonSchema;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{
        Error as _, MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer, value::SeqAccessDeserializer,
    },
};

use super::{
    Anything, Entries, Items, Object,
    tools::{
        Call, Called, Function, MOST_CHOICES, MOST_TOOLS, ResponseFormat, StructuredOutputs, Tool, ToolChoice,
    },
};

/// Most messages of a request.
pub const MOST_MESSAGES: usize = 10_000;
/// Most frames of a video.
pub const MOST_FRAMES: usize = 10_000;
/// Most parts of a message.
pub const MOST_PARTS: usize = 1_000;
/// Most stop texts.
pub const MOST_STOPS: usize = 4;
/// Most entries of a logit bias.
pub const MOST_BIASES: usize = 1_024;

/// A request. Everything may be absent or null here: what must be there is checked with a better message.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(extend("required" = ["model", "messages"]))]
pub struct ChatRequest {
    /// Which model.
    pub model: Option<String>,
    /// The conversation.
    pub messages: Option<Items<Object<Message>, MOST_MESSAGES>>,
    /// Most tokens of the answer.
    #[schemars(range(min = 1))]
    pub max_completion_tokens: Option<i64>,
    /// The older name of the same.
    #[schemars(range(min = 1))]
    pub max_tokens: Option<i64>,
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
    /// -2 to 2.
    #[schemars(range(min = -2.0, max = 2.0))]
    pub frequency_penalty: Option<f64>,
    /// -2 to 2.
    #[schemars(range(min = -2.0, max = 2.0))]
    pub presence_penalty: Option<f64>,
    /// The same seed gives the same text.
    pub seed: Option<i64>,
    /// One to four texts that end the answer.
    pub stop: Option<Stop>,
    /// An extension: whether the answer goes on where the model would end it.
    pub ignore_eos: Option<bool>,
    /// Whether the answer comes in pieces.
    pub stream: Option<bool>,
    /// How.
    pub stream_options: Option<Object<StreamOptions>>,
    /// -100 to 100 by token id.
    pub logit_bias: Option<Biases>,
    /// How many answers: 1 to 8.
    #[schemars(range(min = 1, max = 8))]
    pub n: Option<i64>,
    /// Whether the probabilities of the answer's tokens are wanted.
    pub logprobs: Option<bool>,
    /// How many of the most probable tokens are wanted in place of each; needs `logprobs`.
    #[schemars(range(min = 0, max = 20))]
    pub top_logprobs: Option<i64>,
    /// Functions that the model may call.
    pub tools: Option<Items<Object<Tool>, MOST_TOOLS>>,
    /// Whether it calls them.
    pub tool_choice: Option<ToolChoice>,
    /// Whether it may call several.
    pub parallel_tool_calls: Option<bool>,
    /// The older form of `tools`.
    pub functions: Option<Items<Object<Function>, MOST_TOOLS>>,
    /// The older form of `tool_choice`.
    pub function_call: Option<ToolChoice>,
    /// What form the answer has.
    pub response_format: Option<Object<ResponseFormat>>,
    /// An extension: the same as vLLM has it.
    pub structured_outputs: Option<Object<StructuredOutputs>>,
    /// An extension: an older form of `structured_outputs.json`.
    #[serde(default, deserialize_with = "super::tree")]
    pub guided_json: Option<serde_json::Value>,
    /// An extension: an older form of `structured_outputs.regex`.
    pub guided_regex: Option<String>,
    /// An extension: an older form of `structured_outputs.choice`.
    pub guided_choice: Option<Items<String, MOST_CHOICES>>,
    /// An extension: an older form of `structured_outputs.grammar`.
    pub guided_grammar: Option<String>,
    /// An extension: whether the last message, one of the assistant's, goes on.
    pub continue_final_message: Option<bool>,
    /// An extension: refused unless it is the opposite of `continue_final_message`.
    pub add_generation_prompt: Option<bool>,
    /// Refused unless `["text"]`.
    pub modalities: Option<Items<String, 16>>,
    /// Refused.
    pub audio: Option<Anything>,
    /// Refused.
    pub web_search_options: Option<Anything>,
    /// Refused: an extension of other servers that would change the answer.
    pub allowed_token_ids: Option<Anything>,
    /// Refused: an extension of other servers that would change the answer.
    pub bad_words: Option<Anything>,
    /// Refused: an extension of other servers that would change the answer.
    pub best_of: Option<Anything>,
    /// Refused: an extension of other servers that would change the answer.
    pub echo: Option<Anything>,
    /// Refused: an extension of other servers that would change the answer.
    pub min_tokens: Option<Anything>,
    /// Refused: an extension of other servers that would change the answer.
    pub prompt_logprobs: Option<Anything>,
    /// Refused: an extension of other servers that would change the answer.
    pub stop_token_ids: Option<Anything>,
    /// Refused: an extension of other servers that would change the answer.
    pub use_beam_search: Option<Anything>,
}

impl ChatRequest {
    /// The first extension that is asked for and would change the answer.
    pub fn refused_extension(&self) -> Option<&'static str> {
        let extensions = [
            ("allowed_token_ids", &self.allowed_token_ids),
            ("bad_words", &self.bad_words),
            ("best_of", &self.best_of),
            ("echo", &self.echo),
            ("min_tokens", &self.min_tokens),
            ("prompt_logprobs", &self.prompt_logprobs),
            ("stop_token_ids", &self.stop_token_ids),
            ("use_beam_search", &self.use_beam_search),
        ];
        extensions.into_iter().find(|(_, value)| value.is_some()).map(|(name, _)| name)
    }
}

/// Fields that clients send and that change nothing here.
pub const HARMLESS: &[&str] = &[
    "metadata",
    "moderation",
    "prediction",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "reasoning_effort",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
    "verbosity",
];

/// Fields of messages and their parts that clients send, often because an answer had them, and that change nothing.
pub const HARMLESS_IN_MESSAGES: &[&str] =
    &["annotations", "audio", "parsed", "prompt_cache_breakpoint", "reasoning", "reasoning_content"];

/// A turn.
#[derive(Debug, Default, Deserialize, JsonSchema)]
pub struct Message {
    /// Who speaks.
    pub role: Option<String>,
    /// What.
    pub content: Option<Content>,
    /// A name of the speaker; no template uses it.
    pub name: Option<String>,
    /// A refusal that an assistant's turn consists of.
    pub refusal: Option<String>,
    /// Functions that the assistant called.
    pub tool_calls: Option<Items<Object<Call>, MOST_TOOLS>>,
    /// The call whose result this is.
    pub tool_call_id: Option<String>,
    /// The older form of `tool_calls`.
    pub function_call: Option<Object<Called>>,
}

/// What is said.
#[derive(Debug)]
pub enum Content {
    /// One text.
    Text(String),
    /// Texts, pictures, videos, recordings and documents.
    Parts(Items<Part, MOST_PARTS>),
}

/// A text, a picture, a video, a recording or a document. Small: a body can hold very many.
#[derive(Debug)]
pub enum Part {
    /// A text.
    Text(Box<str>),
    /// A refusal that an assistant's turn consists of.
    Refusal(Box<str>),
    /// A picture.
    Image(Box<ImageUrl>),
    /// A video.
    Video(Box<Video>),
    /// A recording.
    Audio(Box<InputAudio>),
    /// A document.
    File(Box<InputFile>),
    /// Another type.
    Other(Box<str>),
}

impl<'de> Deserialize<'de> for Part {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Fields {
            #[serde(rename = "type")]
            kind: Option<String>,
            text: Option<Box<str>>,
            refusal: Option<Box<str>>,
            image_url: Option<Box<ImageUrl>>,
            video_url: Option<Box<ImageUrl>>,
            video: Option<Box<Items<String, MOST_FRAMES>>>,
            fps: Option<f64>,
            input_audio: Option<Object<Box<InputAudio>>>,
            file: Option<Object<Box<InputFile>>>,
        }
        let Object(fields) = Object::<Fields>::deserialize(deserializer)?;
        let Fields { kind, text, refusal, image_url, video_url, video, fps, input_audio, file } = fields;
        let missing = D::Error::missing_field;
        let kind = kind.ok_or_else(|| missing("type"))?;
        match kind.as_str() {
            "text" => text.map(Self::Text).ok_or_else(|| missing("text")),
            "refusal" => refusal.map(Self::Refusal).ok_or_else(|| missing("refusal")),
            "image_url" => image_url.map(Self::Image).ok_or_else(|| missing("image_url")),
            "video_url" => {
                let url = video_url.ok_or_else(|| missing("video_url"))?.url;
                Ok(Self::Video(Box::new(Video { url, frames: None, fps })))
            }
            "video" => {
                let frames = video.ok_or_else(|| missing("video"))?;
                Ok(Self::Video(Box::new(Video { url: None, frames: Some(*frames), fps })))
            }
            "input_audio" => {
                input_audio.map(|Object(audio)| Self::Audio(audio)).ok_or_else(|| missing("input_audio"))
            }
            "file" => file.map(|Object(file)| Self::File(file)).ok_or_else(|| missing("file")),
            _ => Ok(Self::Other(kind.into())),
        }
    }
}

/// A document: a PDF file, or text. Its content decides.
#[derive(Debug, Default, Deserialize, JsonSchema)]
pub struct InputFile {
    /// What it is called.
    pub filename: Option<String>,
    /// The file in base64, or in a data URL.
    pub file_data: Option<String>,
    /// A URL of it.
    pub file_url: Option<String>,
    /// Refused for now: a file that was sent before.
    pub file_id: Option<String>,
}

/// A recording.
#[derive(Debug, Default, Deserialize, JsonSchema)]
pub struct InputAudio {
    /// The file in base64.
    pub data: Option<String>,
    /// `wav`, `mp3` and so on. The content decides.
    pub format: Option<String>,
}

/// Where a video is: pictures in one URL, as vLLM has it, or a URL each, as Qwen's own service has it.
#[derive(Debug, Default)]
pub struct Video {
    /// `data:video/jpeg;base64,…,…`, a picture between commas.
    pub url: Option<String>,
    /// Data URLs of pictures.
    pub frames: Option<Items<String, MOST_FRAMES>>,
    /// Pictures of a second.
    pub fps: Option<f64>,
}

/// Where a picture is: `{"url": …, "detail": …}`, or just the URL.
#[derive(Debug, Default)]
pub struct ImageUrl {
    /// A data URL.
    pub url: Option<String>,
    /// `auto`, `low` or `high`.
    pub detail: Option<String>,
}

/// One text or several.
#[derive(Debug)]
pub enum Stop {
    /// One.
    One(String),
    /// Several.
    Several(Items<String, MOST_STOPS>),
}

/// Biases by token id.
pub type Biases = Entries<f64, MOST_BIASES>;

/// How an answer comes in pieces.
#[derive(Debug, Default, Deserialize, JsonSchema)]
pub struct StreamOptions {
    /// Whether the last piece counts tokens.
    pub include_usage: Option<bool>,
    /// Accepted; pieces are never padded.
    pub include_obfuscation: Option<bool>,
}

/// Reads a value that is a text or something else. `untagged` would lose the place of an error.
macro_rules! text_or {
    ($type:ty, $expected:literal, $text:expr, $visit:ident($access:ident: $trait:ident) => $other:expr) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Either;
                impl<'de> Visitor<'de> for Either {
                    type Value = $type;

                    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                        formatter.write_str($expected)
                    }

                    fn visit_str<E>(self, text: &str) -> Result<$type, E> {
                        Ok($text(text.to_owned()))
                    }

                    fn visit_string<E>(self, text: String) -> Result<$type, E> {
                        Ok($text(text))
                    }

                    fn $visit<A: $trait<'de>>(self, $access: A) -> Result<$type, A::Error> {
                        $other
                    }
                }
                deserializer.deserialize_any(Either)
            }
        }
    };
}

pub(super) use text_or;

text_or!(Content, "a string or an array of parts", Content::Text, visit_seq(parts: SeqAccess) => {
    Items::deserialize(SeqAccessDeserializer::new(parts)).map(Content::Parts)
});
text_or!(Stop, "a string or an array of strings", Stop::One, visit_seq(texts: SeqAccess) => {
    Items::deserialize(SeqAccessDeserializer::new(texts)).map(Stop::Several)
});
text_or!(ImageUrl, "an object or a string", |url| ImageUrl { url: Some(url), detail: None }, visit_map(map: MapAccess) => {
    #[derive(Deserialize)]
    struct Fields {
        url: Option<String>,
        detail: Option<String>,
    }
    let Fields { url, detail } = Fields::deserialize(MapAccessDeserializer::new(map))?;
    Ok(ImageUrl { url, detail })
});

/// A whole answer.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ChatCompletion {
    /// `chatcmpl-…`.
    pub id: String,
    /// `chat.completion`.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    /// The model that answered.
    pub model: String,
    /// As many as were asked for.
    pub choices: Vec<Choice>,
    /// Tokens.
    pub usage: Usage,
    /// Changes when answers may change.
    pub system_fingerprint: String,
    /// `default`.
    pub service_tier: &'static str,
}

/// An answer.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Choice {
    /// Which of the answers.
    pub index: usize,
    /// The turn.
    pub message: Answer,
    /// Null unless they were asked for.
    pub logprobs: Option<Logprobs>,
    /// Why it ended.
    pub finish_reason: FinishReason,
}

/// The turn of an answer.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Answer {
    /// `assistant`.
    pub role: &'static str,
    /// The text; null where functions are called instead.
    pub content: Option<String>,
    /// Always null.
    pub refusal: Option<Never>,
    /// Always empty.
    pub annotations: [Never; 0],
    /// Functions that are called; absent where there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// The function that is called, where they were given the older way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub function_call: Option<FunctionCall>,
}

/// A call of a function.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct ToolCall {
    /// `call_…`.
    pub id: String,
    /// `function`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// What is called.
    pub function: FunctionCall,
}

/// What is called.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct FunctionCall {
    /// The function.
    pub name: String,
    /// Its arguments as JSON; cut where the answer was.
    pub arguments: String,
}

/// How probable the tokens of an answer were.
#[derive(Debug, Clone, Default, Serialize, JsonSchema)]
pub struct Logprobs {
    /// Of its text.
    pub content: Vec<TokenLogprob>,
    /// Always null.
    pub refusal: Option<Never>,
}

/// How probable a token was.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct TokenLogprob {
    /// The text that it completed.
    pub token: String,
    /// The natural logarithm of its probability.
    pub logprob: f32,
    /// Its own bytes, which may be part of a character.
    pub bytes: Vec<u8>,
    /// The most probable tokens in its place.
    pub top_logprobs: Vec<TopLogprob>,
}

/// How probable another token was.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct TopLogprob {
    /// Its text.
    pub token: String,
    /// The natural logarithm of its probability.
    pub logprob: f32,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// What there is none of.
#[derive(Debug, Clone, Copy, Serialize)]
pub enum Never {}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model or a stop text ended it.
    Stop,
    /// The limit or the context did.
    Length,
    /// Functions are called.
    ToolCalls,
    /// A function is called, where they were given the older way.
    FunctionCall,
}

/// Tokens of a request.
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
pub struct Usage {
    /// Of the prompt.
    pub prompt_tokens: usize,
    /// Of the answer.
    pub completion_tokens: usize,
    /// Of both.
    pub total_tokens: usize,
    /// Of the prompt, in detail.
    pub prompt_tokens_details: PromptTokens,
    /// Of the answer, in detail.
    pub completion_tokens_details: CompletionTokens,
}

/// Tokens of a prompt, in detail.
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
pub struct PromptTokens {
    /// Those an earlier request had computed.
    pub cached_tokens: usize,
    /// 0.
    pub audio_tokens: usize,
}

/// Tokens of an answer, in detail.
#[derive(Debug, Clone, Copy, Default, Serialize, JsonSchema)]
pub struct CompletionTokens {
    /// 0.
    pub reasoning_tokens: usize,
    /// 0.
    pub audio_tokens: usize,
    /// 0.
    pub accepted_prediction_tokens: usize,
    /// 0.
    pub rejected_prediction_tokens: usize,
}

/// A piece of an answer.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Chunk<'a> {
    /// The same in all pieces.
    pub id: &'a str,
    /// `chat.completion.chunk`.
    pub object: &'static str,
    /// The same in all pieces.
    pub created: u64,
    /// The same in all pieces.
    pub model: &'a str,
    /// The same in all pieces.
    pub system_fingerprint: &'a str,
    /// `default`.
    pub service_tier: &'static str,
    /// One, or none beside the usage.
    pub choices: &'a [ChunkChoice<'a>],
    /// Absent unless it was asked for; null in all pieces but the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
}

/// What a piece adds.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ChunkChoice<'a> {
    /// Which of the answers.
    pub index: usize,
    /// More text, or more of a call.
    pub delta: Delta<'a>,
    /// Null unless they were asked for.
    pub logprobs: Option<Logprobs>,
    /// Null until the end.
    pub finish_reason: Option<FinishReason>,
}

/// More text, or more of a call.
#[derive(Debug, Default, Serialize, JsonSchema)]
pub struct Delta<'a> {
    /// `assistant`, in the first piece.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    /// Text, but for the last pieces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<&'a str>,
    /// More of a call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<[CallDelta<'a>; 1]>,
    /// More of a call, where functions were given the older way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub function_call: Option<FunctionDelta<'a>>,
}

/// More of a call.
#[derive(Debug, Serialize, JsonSchema)]
pub struct CallDelta<'a> {
    /// Which of the answer's calls.
    pub index: usize,
    /// `call_…`, in the call's first piece.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<&'a str>,
    /// `function`, in the call's first piece.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<&'static str>,
    /// What is called.
    pub function: FunctionDelta<'a>,
}

/// More of what is called.
#[derive(Debug, Serialize, JsonSchema)]
pub struct FunctionDelta<'a> {
    /// The function, in the call's first piece.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<&'a str>,
    /// More of its arguments.
    pub arguments: &'a str,
}
