//! `/v1/chat/completions`.

use std::fmt;

use schemars::JsonSchema;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{
        Error as _, MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer, value::SeqAccessDeserializer,
    },
};

use super::{Anything, Entries, Items, NameOrObject, Object};

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
    /// An extension: above 0 to 10.
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
    pub logit_bias: Option<Entries<f64, MOST_BIASES>>,
    /// Refused above 1.
    pub n: Option<i64>,
    /// Refused when true.
    pub logprobs: Option<bool>,
    /// Refused above 0.
    pub top_logprobs: Option<i64>,
    /// Refused unless empty.
    pub tools: Option<Vec<Anything>>,
    /// Refused unless `none` or `auto`.
    pub tool_choice: Option<NameOrObject>,
    /// Refused unless empty.
    pub functions: Option<Vec<Anything>>,
    /// Refused unless `none` or `auto`.
    pub function_call: Option<NameOrObject>,
    /// Refused unless `text`.
    pub response_format: Option<Object<ResponseFormat>>,
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
    pub continue_final_message: Option<Anything>,
    /// Refused: an extension of other servers that would change the answer.
    pub echo: Option<Anything>,
    /// Refused: an extension of other servers that would change the answer.
    pub guided_choice: Option<Anything>,
    /// Refused: an extension of other servers that would change the answer.
    pub guided_grammar: Option<Anything>,
    /// Refused: an extension of other servers that would change the answer.
    pub guided_json: Option<Anything>,
    /// Refused: an extension of other servers that would change the answer.
    pub guided_regex: Option<Anything>,
    /// Refused: an extension of other servers that would change the answer.
    pub min_tokens: Option<Anything>,
    /// Refused: an extension of other servers that would change the answer.
    pub prompt_logprobs: Option<Anything>,
    /// Refused: an extension of other servers that would change the answer.
    pub stop_token_ids: Option<Anything>,
    /// Refused: an extension of other servers that would change the answer.
    pub structured_outputs: Option<Anything>,
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
            ("continue_final_message", &self.continue_final_message),
            ("echo", &self.echo),
            ("guided_choice", &self.guided_choice),
            ("guided_grammar", &self.guided_grammar),
            ("guided_json", &self.guided_json),
            ("guided_regex", &self.guided_regex),
            ("min_tokens", &self.min_tokens),
            ("prompt_logprobs", &self.prompt_logprobs),
            ("stop_token_ids", &self.stop_token_ids),
            ("structured_outputs", &self.structured_outputs),
            ("use_beam_search", &self.use_beam_search),
        ];
        extensions.into_iter().find(|(_, value)| value.is_some()).map(|(name, _)| name)
    }
}

/// Fields that clients send and that change nothing here.
pub const HARMLESS: &[&str] = &[
    "metadata",
    "moderation",
    "parallel_tool_calls",
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
    /// Refused unless empty.
    pub tool_calls: Option<Vec<Anything>>,
    /// Refused.
    pub function_call: Option<Anything>,
}

/// What is said.
#[derive(Debug)]
pub enum Content {
    /// One text.
    Text(String),
    /// Texts, pictures and videos.
    Parts(Items<Part, MOST_PARTS>),
}

/// A text, a picture or a video. Small: a body can hold very many.
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
        }
        let Object(fields) = Object::<Fields>::deserialize(deserializer)?;
        let Fields { kind, text, refusal, image_url, video_url, video, fps } = fields;
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
            _ => Ok(Self::Other(kind.into())),
        }
    }
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

/// How an answer comes in pieces.
#[derive(Debug, Default, Deserialize, JsonSchema)]
pub struct StreamOptions {
    /// Whether the last piece counts tokens.
    pub include_usage: Option<bool>,
    /// Accepted; pieces are never padded.
    pub include_obfuscation: Option<bool>,
}

/// What form an answer has.
#[derive(Debug, Default, Deserialize, JsonSchema)]
pub struct ResponseFormat {
    /// `text`.
    #[serde(rename = "type")]
    pub kind: Option<String>,
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
    /// One.
    pub choices: [Choice; 1],
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
    /// 0.
    pub index: u32,
    /// The turn.
    pub message: Answer,
    /// Always null.
    pub logprobs: Option<Never>,
    /// Why it ended.
    pub finish_reason: FinishReason,
}

/// The turn of an answer.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Answer {
    /// `assistant`.
    pub role: &'static str,
    /// The text.
    pub content: String,
    /// Always null.
    pub refusal: Option<Never>,
    /// Always empty.
    pub annotations: [Never; 0],
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
    /// 0.
    pub index: u32,
    /// More text.
    pub delta: Delta<'a>,
    /// Always null.
    pub logprobs: Option<Never>,
    /// Null until the end.
    pub finish_reason: Option<FinishReason>,
}

/// More text.
#[derive(Debug, Default, Serialize, JsonSchema)]
pub struct Delta<'a> {
    /// `assistant`, in the first piece.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    /// Text, but for the last pieces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<&'a str>,
}
