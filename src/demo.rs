//! Two small checkpoints that are part of the program, and something for them to see and to hear, so that it can be tried
//! without a download. `scripts/demo-models` trained them.

use percept_models::{Checkpoint, EmbeddedFile};

use crate::router::Kind;

/// A checkpoint that is part of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Demo {
    /// Answers questions about drawings of coloured shapes.
    Vlm,
    /// Writes down English sentences of some 140 words.
    Whisper,
}

/// The files of a checkpoint in `assets/demo`. A list, so that one that is missing fails the build.
macro_rules! files {
    ($name:literal: $($file:literal)*) => {
        &[$(($file, include_bytes!(concat!("../assets/demo/", $name, "/", $file)))),*]
    };
}

const VLM: &[EmbeddedFile] = files!("percept-demo-vlm":
    "chat_template.json" "config.json" "generation_config.json" "model.safetensors" "preprocessor_config.json"
    "processor_config.json" "tokenizer.json" "tokenizer_config.json");
const WHISPER: &[EmbeddedFile] = files!("percept-demo-whisper":
    "config.json" "generation_config.json" "model.safetensors" "preprocessor_config.json" "tokenizer.json"
    "tokenizer_config.json");

/// What a user types instead, to get a real model.
pub const INSTEAD: &str = "percept serve llava-hf/llava-1.5-7b-hf openai/whisper-small";

/// A drawing for the first to see: its question is [`QUESTION`].
pub const PICTURE: &[u8] = include_bytes!("../assets/demo/samples/shapes.png");
/// A question about [`PICTURE`].
pub const QUESTION: &str = "What is in this picture?";
/// What [`PICTURE`] shows, for who cannot see it.
pub const PICTURE_SHOWS: &str = "a red circle, a blue square and an orange star";
/// A sentence for the second to hear: 16 kHz, 16 bits, spoken by espeak-ng.
pub const RECORDING: &[u8] = include_bytes!("../assets/demo/samples/sentence.wav");

impl Demo {
    /// All of them: what is served where no model is named.
    pub const ALL: [Self; 2] = [Self::Vlm, Self::Whisper];

    /// Its name, which no other checkpoint can be given by.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vlm => "percept-demo-vlm",
            Self::Whisper => "percept-demo-whisper",
        }
    }

    /// The one of a name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|demo| demo.name() == name)
    }

    /// What it is for.
    pub fn kind(self) -> Kind {
        match self {
            Self::Vlm => Kind::Chat,
            Self::Whisper => Kind::Speech,
        }
    }

    /// Its files: names and contents.
    pub fn files(self) -> &'static [EmbeddedFile] {
        match self {
            Self::Vlm => VLM,
            Self::Whisper => WHISPER,
        }
    }

    /// The checkpoint.
    pub fn checkpoint(self) -> Checkpoint {
        Checkpoint::embedded(self.name(), self.files())
    }
}
