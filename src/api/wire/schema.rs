//! JSON schemas of the types that are read by hand. All others derive theirs, as they derive how they are read.
#![allow(dead_code, reason = "shapes are never built: only their schemas are asked for")]

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use super::{
    Anything, Items, Object, audio,
    chat::{self, MOST_BIASES},
    completions::{self, MOST_PROMPTS, MOST_TOKENS},
    tools,
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
    chat::Biases => {"type": "object", "additionalProperties": {"type": "number"}, "maxProperties": MOST_BIASES};
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
    audio::Chunking => Chunking;
}

/// A text, or texts, pictures, videos and recordings.
#[derive(JsonSchema)]
#[schemars(untagged)]
enum Content {
    /// One text.
    Text(String),
    /// Texts, pictures, videos and recordings.
    Parts(Items<Part, { chat::MOST_PARTS }>),
}

/// A text, a picture, a video or a recording.
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

/// `auto`, or which silences cut a recording.
#[derive(JsonSchema)]
#[schemars(untagged)]
enum Chunking {
    /// `auto`.
    Name(String),
    /// At silences.
    Silences(audio::Silences),
}
