//! `/v1/completions`, the older way to ask for text.

use std::{collections::BTreeMap, fmt};

use schemars::JsonSchema;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{Error as _, SeqAccess, Visitor, value::SeqAccessDeserializer},
};

use super::{
    Anything, Items, Object,
    chat::{Biases, FinishReason, Stop, StreamOptions, Usage},
    tools::{MOST_CHOICES, StructuredOutputs},
};

/// Most prompts of a request.
pub const MOST_PROMPTS: usize = 2_048;
/// Most tokens of a prompt that is given as tokens.
pub const MOST_TOKENS: usize = 1 << 20;

/// A request. Everything may be absent or null here: what must be there is checked with a better message.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(extend("required" = ["model", "prompt"]))]
pub struct CompletionRequest {
    /// Which model.
    pub model: Option<String>,
    /// What goes on: a text, tokens of the model's own, or a list of either.
    pub prompt: Option<Prompt>,
    /// Most tokens of an answer; 16 unless given.
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
    /// One to four texts that end an answer.
    pub stop: Option<Stop>,
    /// An extension: whether an answer goes on where the model would end it.
    pub ignore_eos: Option<bool>,
    /// Whether answers come in pieces.
    pub stream: Option<bool>,
    /// How.
    pub stream_options: Option<Object<StreamOptions>>,
    /// -100 to 100 by token id.
    pub logit_bias: Option<Biases>,
    /// How many answers to each prompt: 1 to 8.
    #[schemars(range(min = 1, max = 8))]
    pub n: Option<i64>,
    /// Refused unless it is `n`.
    pub best_of: Option<i64>,
    /// How many of the most probable tokens are wanted in place of each, besides it; none at all where it is absent.
    #[schemars(range(min = 0, max = 5))]
    pub logprobs: Option<i64>,
    /// Whether the prompt stands in front of its answers; not with `logprobs`.
    pub echo: Option<bool>,
    /// Refused unless empty.
    pub suffix: Option<String>,
    /// An extension: what form answers have, as vLLM has it.
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
    /// Refused: an extension of other servers that would change the answer.
    pub min_tokens: Option<Anything>,
    /// Refused: an extension of other servers that would change the answer.
    pub prompt_logprobs: Option<Anything>,
    /// Refused: an extension of other servers that would change the answer.
    pub stop_token_ids: Option<Anything>,
    /// Refused: an extension of other servers that would change the answer.
    pub use_beam_search: Option<Anything>,
}

/// Fields that clients send and that change nothing here.
pub const HARMLESS: &[&str] = &["user"];

/// What goes on.
#[derive(Debug)]
pub enum Prompt {
    /// A text.
    Text(String),
    /// Texts.
    Texts(Vec<String>),
    /// Tokens.
    Tokens(Vec<u32>),
    /// Lists of tokens.
    Lists(Vec<Vec<u32>>),
}

impl<'de> Deserialize<'de> for Prompt {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Prompt;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a string, an array of strings, or an array of tokens")
            }

            fn visit_str<E>(self, text: &str) -> Result<Prompt, E> {
                Ok(Prompt::Text(text.to_owned()))
            }

            fn visit_string<E>(self, text: String) -> Result<Prompt, E> {
                Ok(Prompt::Text(text))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Prompt, A::Error> {
                let too_many = |limit: usize| A::Error::custom(format_args!("{}{limit}", super::TOO_MANY));
                let mut prompt = match items.next_element::<Element>()? {
                    None => return Ok(Prompt::Texts(Vec::new())),
                    Some(Element::Text(text)) => Prompt::Texts(vec![text]),
                    Some(Element::Token(id)) => Prompt::Tokens(vec![id]),
                    Some(Element::Tokens(ids)) => Prompt::Lists(vec![ids]),
                };
                while let Some(element) = items.next_element::<Element>()? {
                    match (&mut prompt, element) {
                        (Prompt::Texts(texts), Element::Text(text)) if texts.len() < MOST_PROMPTS => {
                            texts.push(text);
                        }
                        (Prompt::Lists(lists), Element::Tokens(ids)) if lists.len() < MOST_PROMPTS => {
                            lists.push(ids);
                        }
                        (Prompt::Tokens(ids), Element::Token(id)) if ids.len() < MOST_TOKENS => ids.push(id),
                        (Prompt::Texts(_), Element::Text(_)) | (Prompt::Lists(_), Element::Tokens(_)) => {
                            return Err(too_many(MOST_PROMPTS));
                        }
                        (Prompt::Tokens(_), Element::Token(_)) => return Err(too_many(MOST_TOKENS)),
                        (Prompt::Texts(_), _) => {
                            return Err(A::Error::custom("invalid type: map, expected string"));
                        }
                        (Prompt::Tokens(_), _) => {
                            return Err(A::Error::custom("invalid type: string \"\", expected i64"));
                        }
                        (_, _) => {
                            return Err(A::Error::custom("invalid type: string \"\", expected a sequence"));
                        }
                    }
                }
                Ok(prompt)
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// An item of a list of prompts.
enum Element {
    Text(String),
    Token(u32),
    Tokens(Vec<u32>),
}

impl<'de> Deserialize<'de> for Element {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Element;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a string, a token or an array of tokens")
            }

            fn visit_str<E>(self, text: &str) -> Result<Element, E> {
                Ok(Element::Text(text.to_owned()))
            }

            fn visit_u64<E: serde::de::Error>(self, id: u64) -> Result<Element, E> {
                // What is no token is found with a better message.
                Ok(Element::Token(u32::try_from(id).unwrap_or(u32::MAX)))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<Element, A::Error> {
                let Items(ids) = Items::<u32, MOST_TOKENS>::deserialize(SeqAccessDeserializer::new(items))?;
                Ok(Element::Tokens(ids))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// A whole answer.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Completion {
    /// `cmpl-…`, the same in all pieces.
    pub id: String,
    /// `text_completion`.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    /// The model that answered.
    pub model: String,
    /// `n` for each prompt, in the order of prompts; one of them in a piece, or none beside the usage.
    pub choices: Vec<CompletionChoice>,
    /// Tokens; absent in pieces unless it was asked for, and null in all but the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
    /// Changes when answers may change.
    pub system_fingerprint: String,
}

/// An answer, or a piece of it.
#[derive(Debug, Serialize, JsonSchema)]
pub struct CompletionChoice {
    /// Which of the answers.
    pub index: usize,
    /// The text.
    pub text: String,
    /// Null unless they were asked for.
    pub logprobs: Option<CompletionLogprobs>,
    /// Why it ended; null until it did.
    pub finish_reason: Option<FinishReason>,
}

/// How probable the tokens of a text were.
#[derive(Debug, Clone, Default, Serialize, JsonSchema)]
pub struct CompletionLogprobs {
    /// The text that each completed.
    pub tokens: Vec<String>,
    /// The natural logarithm of the probability of each.
    pub token_logprobs: Vec<f32>,
    /// The most probable tokens in place of each, by their texts.
    pub top_logprobs: Vec<BTreeMap<String, f32>>,
    /// Where each begins in the text, in characters.
    pub text_offset: Vec<usize>,
}
