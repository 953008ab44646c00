//! JSON schemas of the types that are read by hand. All others derive theirs, as they derive how they are read.
#![allow(dead_code, reason = "shapes are never built: only their schemas are asked for")]

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use super::{
    Anything, Entries, Items, Object, audio, chat,
    completions::{self, MOST_PROMPTS, MOST_TOKENS},
    embeddings::{self, MOST_INPUTS},
    messages::{self, MessagesRequest},
    responses, tools,
};

impl<T: JsonSchema> JsonSchema for Object<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }

    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }

    fn schema_id() -> Cow<'static, str> {
        T::schema_id()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

impl<T: JsonSchema, const MOST: usize> JsonSchema for Items<T, MOST> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        format!("ItemsOf{}", T::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "array", "items": generator.subschema_for::<T>(), "maxItems": MOST})
    }
}

impl<T: JsonSchema, const MOST: usize> JsonSchema for Entries<T, MOST> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        format!("EntriesOf{}", T::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let entry = generator.subschema_for::<T>();
        json_schema!({"type": "object", "additionalProperties": entry, "maxProperties": MOST})
    }
}

/// Types that stand where they are used.
macro_rules! inline {
    ($($type:ty => $schema:tt;)*) => {
        $(impl JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        })*
    };
}

inline! {
    Anything => {};
    // As it is written: where there could be one, there is null.
    chat::Never => {"type": "null"};
    audio::Threshold => {"anyOf": [{"type": "number"}, {"const": "none"}]};
}

/// Types that are read as another one would be that derives its schema.
macro_rules! shaped {
    ($($type:ty => $shape:ty;)*) => {
        $(impl JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                <$shape>::schema_name()
            }

            fn json_schema(generator: &mut SchemaGenerator) -> Schema {
                generator.subschema_for::<$shape>()
            }
        })*
    };
}

shaped! {
    chat::Content => Content;
    chat::Part => Part;
    chat::ImageUrl => ImageUrl;
    chat::Stop => Stop;
    tools::ToolChoice => ToolChoice;
    completions::Prompt => Prompt;
    embeddings::EmbeddingInput => EmbeddingInput;
    embeddings::EmbeddingItem => EmbeddingItem;
    audio::Chunking => Chunking;
    messages::Content => Blocks;
    messages::Block => Block;
    responses::Input => Input;
    responses::Content => InputContent;
    responses::Part => InputPart;
    responses::ToolChoice => WordOrTool;
}

impl JsonSchema for messages::CountRequest {
    fn schema_name() -> Cow<'static, str> {
        "CountRequest".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut schema = MessagesRequest::json_schema(generator);
        schema.insert("required".into(), serde_json::json!(["model", "messages"]));
        schema
    }
}

/// A text, or texts, pictures, videos, recordings and documents.
#[derive(JsonSchema)]
#[schemars(untagged)]
enum Content {
    /// One text.
    Text(String),
    /// Texts, pictures, videos, recordings and documents.
    Parts(Items<Part, { chat::MOST_PARTS }>),
}

/// A text, a picture, a video, a recording or a document.
#[derive(JsonSchema)]
#[schemars(tag = "type", rename_all = "snake_case")]
enum Part {
    /// A text.
    Text {
        /// What is said.
        text: String,
    },
    /// A refusal that an assistant's turn consists of.
    Refusal {
        /// What is said.
        refusal: String,
    },
    /// A picture.
    ImageUrl {
        /// Where it is.
        image_url: chat::ImageUrl,
    },
    /// A video: frames in one data URL.
    VideoUrl {
        /// Where they are: `data:video/jpeg;base64,…,…`, the file of a frame between commas.
        video_url: VideoUrl,
        /// Frames of a second.
        #[schemars(range(min = 0.01, max = 1000))]
        fps: Option<f64>,
    },
    /// A video: a data URL for each frame.
    Video {
        /// Where they are.
        video: Items<String, { chat::MOST_FRAMES }>,
        /// Frames of a second.
        #[schemars(range(min = 0.01, max = 1000))]
        fps: Option<f64>,
    },
    /// A recording, which a speech model writes down.
    InputAudio {
        /// It.
        input_audio: chat::InputAudio,
    },
    /// A document: a PDF file, or text.
    File {
        /// It.
        file: chat::InputFile,
    },
}

/// A text, or blocks.
#[derive(JsonSchema)]
#[schemars(untagged, rename = "ContentParam")]
enum Blocks {
    /// One text.
    Text(String),
    /// Texts, pictures, documents and so on.
    Blocks(Items<messages::Block, { chat::MOST_PARTS }>),
}

/// A block of a turn.
#[derive(JsonSchema)]
#[schemars(tag = "type", rename_all = "snake_case", rename = "BlockParam")]
enum Block {
    /// Words.
    Text {
        /// What is said.
        text: String,
        /// Whether the usage tells what was found in the cache.
        cache_control: Option<Anything>,
    },
    /// A picture.
    Image {
        /// Where it is.
        source: messages::MediaSource,
        /// Whether the usage tells what was found in the cache.
        cache_control: Option<Anything>,
    },
    /// A document.
    Document {
        /// Where it is.
        source: messages::MediaSource,
        /// What it is called.
        title: Option<String>,
        /// What else is known of it.
        context: Option<String>,
        /// Whether the usage tells what was found in the cache.
        cache_control: Option<Anything>,
    },
    /// What a search found.
    SearchResult {
        /// Where.
        source: String,
        /// What it is called.
        title: Option<String>,
        /// What it says.
        content: messages::Content,
        /// Whether the usage tells what was found in the cache.
        cache_control: Option<Anything>,
    },
    /// A function that the model called.
    ToolUse {
        /// Names the call.
        id: String,
        /// Of the function.
        name: String,
        /// An object.
        input: serde_json::Map<String, serde_json::Value>,
        /// Whether the usage tells what was found in the cache.
        cache_control: Option<Anything>,
    },
    /// What came of a call.
    ToolResult {
        /// Of the call.
        tool_use_id: String,
        /// What.
        content: Option<messages::Content>,
        /// Whether it failed.
        is_error: Option<bool>,
        /// Whether the usage tells what was found in the cache.
        cache_control: Option<Anything>,
    },
    /// What the model thought: dropped.
    Thinking {
        /// It.
        thinking: Anything,
    },
    /// What the model thought: dropped.
    RedactedThinking {
        /// It.
        data: Anything,
    },
}

/// What the user says, or items.
#[derive(JsonSchema)]
#[schemars(untagged, rename = "ResponseInput")]
enum Input {
    /// What the user says.
    Text(String),
    /// Turns and what else there is.
    Items(Items<Object<responses::Item>, { chat::MOST_MESSAGES }>),
}

/// A text, or parts.
#[derive(JsonSchema)]
#[schemars(untagged)]
enum InputContent {
    /// One text.
    Text(String),
    /// Texts, pictures and documents.
    Parts(Items<responses::Part, { chat::MOST_PARTS }>),
}

/// A word, or which.
#[derive(JsonSchema)]
#[schemars(untagged)]
enum WordOrTool {
    /// `none`, `auto` or `required`.
    Word(String),
    /// Which.
    Which(responses::Which),
}

/// A text, a picture or a document.
#[derive(JsonSchema)]
#[schemars(tag = "type", rename_all = "snake_case")]
enum InputPart {
    /// A text.
    InputText {
        /// What is said.
        text: String,
    },
    /// A text of an answer that comes back.
    OutputText {
        /// What is said.
        text: String,
    },
    /// A refusal of an answer that comes back.
    Refusal {
        /// What is said.
        refusal: String,
    },
    /// A picture.
    InputImage {
        /// A data URL.
        image_url: chat::ImageUrl,
        /// Changes nothing.
        detail: Option<InputDetail>,
    },
    /// A document: a PDF file, or text.
    InputFile {
        /// What it is called.
        filename: Option<String>,
        /// The file in base64, or in a data URL.
        file_data: Option<String>,
        /// A URL of it.
        file_url: Option<String>,
        /// Refused for now: a file that was sent before.
        file_id: Option<String>,
    },
    /// What an answer had besides, in items that are dropped.
    ReasoningText {
        /// It.
        text: String,
    },
}

/// How closely a picture is looked at.
#[derive(JsonSchema)]
#[schemars(rename_all = "snake_case")]
enum InputDetail {
    Auto,
    Low,
    High,
    Original,
}

/// Where the frames of a video are.
#[derive(JsonSchema)]
#[schemars(untagged)]
enum VideoUrl {
    /// Just the URL.
    Url(String),
    /// In an object, as pictures.
    Object {
        /// A data URL.
        url: String,
    },
}

/// Where a picture is: a data URL, `data:image/jpeg;base64,…`.
#[derive(JsonSchema)]
#[schemars(untagged)]
enum ImageUrl {
    /// Just the URL.
    Url(String),
    /// With its detail.
    Object {
        /// A data URL.
        url: String,
        /// Changes nothing.
        detail: Option<Detail>,
    },
}

/// How closely a picture is looked at.
#[derive(JsonSchema)]
#[schemars(rename_all = "snake_case")]
enum Detail {
    Auto,
    Low,
    High,
}

/// One text or several.
#[derive(JsonSchema)]
#[schemars(untagged)]
enum Stop {
    /// One.
    One(String),
    /// Several.
    Several(Items<String, { chat::MOST_STOPS }>),
}

/// `none`, `auto`, `required`, or which functions.
#[derive(JsonSchema)]
#[schemars(untagged)]
enum ToolChoice {
    /// A word.
    Word(String),
    /// Which.
    Which(tools::Which),
}

/// What goes on.
#[derive(JsonSchema)]
#[schemars(untagged)]
enum Prompt {
    /// A text.
    Text(String),
    /// Texts.
    Texts(Items<String, MOST_PROMPTS>),
    /// Tokens of the model's own.
    Tokens(Items<u32, MOST_TOKENS>),
    /// Lists of tokens.
    Lists(Items<Items<u32, MOST_TOKENS>, MOST_PROMPTS>),
}

/// What becomes vectors.
#[derive(JsonSchema)]
#[schemars(untagged)]
enum EmbeddingInput {
    /// A text.
    Text(String),
    /// Tokens of `cl100k_base`.
    Tokens(Items<u32, MOST_TOKENS>),
    /// Several.
    Several(Items<embeddings::EmbeddingItem, MOST_INPUTS>),
}

/// What becomes a vector.
#[derive(JsonSchema)]
#[schemars(untagged)]
enum EmbeddingItem {
    /// A text.
    Text(String),
    /// Tokens of `cl100k_base`.
    Tokens(Items<u32, MOST_TOKENS>),
    /// A text or a picture.
    Part(embeddings::EmbeddingPart),
}

/// `auto`, or which silences cut a recording.
#[derive(JsonSchema)]
#[schemars(untagged)]
enum Chunking {
    /// `auto`.
    Name(String),
    /// At silences.
    Silences(audio::Silences),
}
