//! Functions and forms of answers, as chat has them.

use std::fmt;

use schemars::JsonSchema;
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor, value::MapAccessDeserializer},
};
use serde_json::Value;

use super::{Items, Object, chat::text_or};

/// Most functions of a request.
pub const MOST_TOOLS: usize = 128;
/// Most texts that an answer may be one of.
pub const MOST_CHOICES: usize = 1_000;

/// A function that the model may call.
#[derive(Debug, Default, Deserialize, JsonSchema)]
pub struct Tool {
    /// `function`.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// The function.
    pub function: Option<Object<Function>>,
}

/// A function.
#[derive(Debug, Default, Deserialize, JsonSchema)]
pub struct Function {
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

/// Whether functions are called: `none`, `auto`, `required`, or which.
#[derive(Debug)]
pub enum ToolChoice {
    /// A word.
    Word(String),
    /// Which.
    Which(Box<Which>),
}

/// Which functions are called.
#[derive(Debug, Default, Deserialize, JsonSchema)]
pub struct Which {
    /// `function` or `allowed_tools`.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// The one that is called.
    pub function: Option<Object<Named>>,
    /// The name alone, where functions are named the older way.
    pub name: Option<String>,
    /// Those that may be called.
    pub allowed_tools: Option<Object<AllowedTools>>,
}

/// Something that has a name.
#[derive(Debug, Default, Deserialize, JsonSchema)]
pub struct Named {
    /// It.
    pub name: Option<String>,
}

/// Functions that may be called, out of all.
#[derive(Debug, Default, Deserialize, JsonSchema)]
pub struct AllowedTools {
    /// `auto` or `required`.
    pub mode: Option<String>,
    /// Which.
    pub tools: Option<Items<Object<Allowed>, MOST_TOOLS>>,
}

/// A function that may be called.
#[derive(Debug, Default, Deserialize, JsonSchema)]
pub struct Allowed {
    /// `function`.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// The function.
    pub function: Option<Object<Named>>,
}

text_or!(ToolChoice, "a string or an object", ToolChoice::Word, visit_map(map: MapAccess) => {
    Which::deserialize(MapAccessDeserializer::new(map)).map(|which| ToolChoice::Which(Box::new(which)))
});

/// A call that the model made.
#[derive(Debug, Default, Deserialize, JsonSchema)]
pub struct Call {
    /// Names it.
    pub id: Option<String>,
    /// `function`.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// What was called.
    pub function: Option<Object<Called>>,
}

/// What was called.
#[derive(Debug, Default, Deserialize, JsonSchema)]
pub struct Called {
    /// The function.
    pub name: Option<String>,
    /// Its arguments as JSON.
    pub arguments: Option<String>,
}

/// What form an answer has.
#[derive(Debug, Default, Deserialize, JsonSchema)]
pub struct ResponseFormat {
    /// `text`, `json_object` or `json_schema`.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// The schema.
    pub json_schema: Option<Object<NamedSchema>>,
}

/// A schema with a name.
#[derive(Debug, Default, Deserialize, JsonSchema)]
pub struct NamedSchema {
    /// Any name.
    pub name: Option<String>,
    /// Changes nothing.
    pub description: Option<String>,
    /// A JSON schema.
    #[serde(default, deserialize_with = "super::tree")]
    pub schema: Option<Value>,
    /// Whether a schema that cannot be enforced in full is refused.
    pub strict: Option<bool>,
}

/// What form an answer has, as vLLM has it: one of these.
#[derive(Debug, Default, Deserialize, JsonSchema)]
pub struct StructuredOutputs {
    /// A JSON schema, or its text.
    #[serde(default, deserialize_with = "super::tree")]
    pub json: Option<Value>,
    /// A regular expression that all of it matches.
    pub regex: Option<String>,
    /// Texts that it is one of.
    pub choice: Option<Items<String, MOST_CHOICES>>,
    /// A grammar in llguidance's dialect of Lark.
    pub grammar: Option<String>,
    /// Whether it is any JSON object.
    pub json_object: Option<bool>,
}
