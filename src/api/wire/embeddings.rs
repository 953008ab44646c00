//! `/v1/embeddings`.

use std::fmt;

use schemars::JsonSchema;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{
        Error as _, MapAccess, SeqAccess, Visitor,
        value::{MapAccessDeserializer, SeqAccessDeserializer},
    },
};

use super::{Items, completions::MOST_TOKENS};

/// Most inputs of a request.
pub const MOST_INPUTS: usize = 2_048;

/// A request. Everything may be absent or null here: what must be there is checked with a better message.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(extend("required" = ["model", "input"]))]
pub struct EmbeddingRequest {
    /// Which model.
    pub model: Option<String>,
    /// What becomes vectors: a text, tokens of `cl100k_base`, or a list of either. An extension: items of a list may be
    /// objects with a text or a picture, as Jina AI has it.
    pub input: Option<EmbeddingInput>,
    /// `float` or `base64`: numbers of 32 bits, the lowest byte first; `float` unless given.
    pub encoding_format: Option<String>,
    /// How many numbers a vector has, where the model was trained for shorter ones; all unless given.
    #[schemars(range(min = 1))]
    pub dimensions: Option<i64>,
    /// An extension, as vLLM has it: texts lose what is behind so many tokens; -1 is as many as the model takes. Without
    /// it, a longer one is an error.
    #[schemars(range(min = -1))]
    pub truncate_prompt_tokens: Option<i64>,
}

/// Fields that clients send and that change nothing here.
pub const HARMLESS: &[&str] = &["user"];

/// What becomes vectors.
#[derive(Debug)]
pub enum EmbeddingInput {
    /// One text, or one list of tokens.
    One(EmbeddingItem),
    /// Several.
    Several(Vec<EmbeddingItem>),
}

/// What becomes a vector.
#[derive(Debug)]
pub enum EmbeddingItem {
    /// A text.
    Text(String),
    /// Tokens of `cl100k_base`.
    Tokens(Vec<u32>),
    /// A text or a picture.
    Part(EmbeddingPart),
}

/// A text or a picture: one of the two.
#[derive(Debug, Default, Deserialize, JsonSchema)]
pub struct EmbeddingPart {
    /// The text.
    pub text: Option<String>,
    /// The picture: a data URL, an http or https URL where this server fetches from there, or base64 alone.
    pub image: Option<String>,
}

impl<'de> Deserialize<'de> for EmbeddingInput {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = EmbeddingInput;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a string, an array of strings or an array of tokens")
            }

            fn visit_str<E>(self, text: &str) -> Result<EmbeddingInput, E> {
                Ok(EmbeddingInput::One(EmbeddingItem::Text(text.to_owned())))
            }

            fn visit_string<E>(self, text: String) -> Result<EmbeddingInput, E> {
                Ok(EmbeddingInput::One(EmbeddingItem::Text(text)))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<EmbeddingInput, A::Error> {
                let too_many = |limit: usize| A::Error::custom(format_args!("{}{limit}", super::TOO_MANY));
                let mut all = match items.next_element::<Element>()? {
                    None => return Ok(EmbeddingInput::Several(Vec::new())),
                    Some(Element::Token(id)) => {
                        let mut ids = vec![id];
                        while let Some(id) = items.next_element::<u32>()? {
                            if ids.len() == MOST_TOKENS {
                                return Err(too_many(MOST_TOKENS));
                            }
                            ids.push(id);
                        }
                        return Ok(EmbeddingInput::One(EmbeddingItem::Tokens(ids)));
                    }
                    Some(Element::Item(item)) => vec![item],
                };
                while let Some(element) = items.next_element::<Element>()? {
                    let Element::Item(item) = element else {
                        return Err(A::Error::custom("invalid type: integer ``, expected a string"));
                    };
                    if all.len() == MOST_INPUTS {
                        return Err(too_many(MOST_INPUTS));
                    }
                    all.push(item);
                }
                Ok(EmbeddingInput::Several(all))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// An item of a list.
enum Element {
    Token(u32),
    Item(EmbeddingItem),
}

impl<'de> Deserialize<'de> for Element {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Element;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a string, a token, an array of tokens or an object")
            }

            fn visit_str<E>(self, text: &str) -> Result<Element, E> {
                Ok(Element::Item(EmbeddingItem::Text(text.to_owned())))
            }

            fn visit_string<E>(self, text: String) -> Result<Element, E> {
                Ok(Element::Item(EmbeddingItem::Text(text)))
            }

            fn visit_u64<E>(self, id: u64) -> Result<Element, E> {
                // What is no token is found with a better message.
                Ok(Element::Token(u32::try_from(id).unwrap_or(u32::MAX)))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<Element, A::Error> {
                let Items(ids) = Items::<u32, MOST_TOKENS>::deserialize(SeqAccessDeserializer::new(items))?;
                Ok(Element::Item(EmbeddingItem::Tokens(ids)))
            }

            fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<Element, A::Error> {
                let part = EmbeddingPart::deserialize(MapAccessDeserializer::new(fields))?;
                Ok(Element::Item(EmbeddingItem::Part(part)))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// A whole answer. Vectors are in the order of inputs.
#[derive(Debug, Serialize, JsonSchema)]
pub struct EmbeddingList {
    /// `list`.
    pub object: &'static str,
    /// One for each input.
    pub data: Vec<Embedding>,
    /// The model that made them.
    pub model: String,
    /// Tokens of all inputs.
    pub usage: EmbeddingUsage,
}

/// A vector.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Embedding {
    /// `embedding`.
    pub object: &'static str,
    /// Which input it is of.
    pub index: usize,
    /// Its numbers.
    pub embedding: Numbers,
}

/// The numbers of a vector.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Numbers {
    /// As they are.
    Floats(Vec<f32>),
    /// In base64: 32 bits each, the lowest byte first.
    Base64(String),
}

/// Tokens of a request for vectors.
#[derive(Debug, Serialize, JsonSchema)]
pub struct EmbeddingUsage {
    /// Of all inputs, those around texts and those of pictures included.
    pub prompt_tokens: usize,
    /// The same: there is no answer.
    pub total_tokens: usize,
}
