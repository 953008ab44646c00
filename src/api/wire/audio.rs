//! `/v1/audio/transcriptions` and `/v1/audio/translations`.

use std::fmt;

use schemars::JsonSchema;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{MapAccess, Unexpected, Visitor, value::MapAccessDeserializer},
};

use super::{Items, Object, chat::InputAudio};

/// Most items of a list.
pub const MOST_ITEMS: usize = 1_000;
/// Most temperatures.
pub const MOST_TEMPERATURES: usize = 16;

/// A request, beside its `file`. Everything may be absent here: what must be there is checked with a better message.
#[derive(Debug, Default, Deserialize, JsonSchema)]
pub struct AudioRequest {
    /// Which model.
    pub model: Option<String>,
    /// Another way to send the recording, where the request is JSON.
    pub input_audio: Option<Object<InputAudio>>,
    /// An extension: a file that is kept, instead of one that is sent.
    pub file_id: Option<String>,
    /// What is spoken: a code, such as `en`, or a name.
    pub language: Option<String>,
    /// Languages among which to detect.
    pub languages: Option<Items<String, MOST_ITEMS>>,
    /// Words that are likely.
    pub keywords: Option<Items<String, MOST_ITEMS>>,
    /// An extension: the same, as one text.
    pub hotwords: Option<String>,
    /// Text in front of the first window's.
    pub prompt: Option<String>,
    /// An extension: another name of the same.
    pub initial_prompt: Option<String>,
    /// An extension: whether every window has the prompt.
    pub carry_initial_prompt: Option<bool>,
    /// An extension: text that every window begins with.
    pub prefix: Option<String>,
    /// An extension: `transcribe` or `translate`.
    pub task: Option<String>,
    /// `json`, `text`, `srt`, `verbose_json`, `vtt`, `diarized_json`; an extension: `tsv`.
    pub response_format: Option<String>,
    /// `segment`, `word`.
    pub timestamp_granularities: Option<Items<String, MOST_ITEMS>>,
    /// An extension: whether segments have words.
    pub word_timestamps: Option<bool>,
    /// An extension: whether the model writes no times.
    pub without_timestamps: Option<bool>,
    /// `logprobs`.
    pub include: Option<Items<String, MOST_ITEMS>>,
    /// Whether the answer comes in pieces.
    pub stream: Option<bool>,
    /// 0 to 1; 0 raises it where it must.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub temperature: Option<f64>,
    /// An extension: which ones to try, in order.
    pub temperatures: Option<Items<f64, MOST_TEMPERATURES>>,
    /// An extension: samples of each temperature above 0.
    pub best_of: Option<i64>,
    /// An extension: beams at temperature 0.
    pub beam_size: Option<i64>,
    /// An extension: how long a beam search goes on.
    pub patience: Option<f64>,
    /// An extension: 0 to 1.
    pub length_penalty: Option<f64>,
    /// An extension: the same seed gives the same text.
    pub seed: Option<i64>,
    /// An extension: ids, or -1 for the model's own list.
    pub suppress_tokens: Option<Items<i64, MOST_ITEMS>>,
    /// An extension: whether a window may not begin with a space.
    pub suppress_blank: Option<bool>,
    /// An extension: latest start of a window's first segment, in seconds.
    pub max_initial_timestamp: Option<f64>,
    /// An extension: most tokens of a window.
    pub max_new_tokens: Option<i64>,
    /// An extension: a window whose text compresses better is tried again.
    pub compression_ratio_threshold: Option<Threshold>,
    /// An extension: a window whose tokens are less probable is tried again.
    #[serde(alias = "log_prob_threshold")]
    pub logprob_threshold: Option<Threshold>,
    /// An extension: a window that is silence with a larger probability is skipped.
    pub no_speech_threshold: Option<Threshold>,
    /// An extension: whether a window knows the text of those before.
    pub condition_on_previous_text: Option<bool>,
    /// An extension: longer silences around words that look invented are skipped, in seconds.
    pub hallucination_silence_threshold: Option<Threshold>,
    /// An extension: start, end, start, end … of what is to be transcribed, in seconds.
    pub clip_timestamps: Option<Items<f64, MOST_ITEMS>>,
    /// An extension: `auto`, `sequential` or `parallel`.
    pub mode: Option<String>,
    /// `auto`, or how to tell speech from silence.
    pub chunking_strategy: Option<Chunking>,
    /// An extension: true is `parallel`.
    pub vad_filter: Option<bool>,
}

/// Fields that would change the answer, and that nothing here does.
pub const REFUSED: &[(&str, &str)] = &[
    ("known_speaker_names", SPEAKERS),
    ("known_speaker_references", SPEAKERS),
    ("diarize", SPEAKERS),
    ("to_language", "translations are into English: send 'task' or use /v1/audio/translations"),
    (
        "vad_parameters",
        "send 'chunking_strategy' with 'threshold', 'prefix_padding_ms' and 'silence_duration_ms'",
    ),
    ("frequency_penalty", OTHERS),
    ("min_p", OTHERS),
    ("multilingual", OTHERS),
    ("no_repeat_ngram_size", OTHERS),
    ("presence_penalty", OTHERS),
    ("repetition_penalty", OTHERS),
    ("top_k", OTHERS),
    ("top_p", OTHERS),
];

const SPEAKERS: &str = "this server does not know speakers by their voices; for a recording that has each speaker on a \
                        channel of their own, use response_format 'diarized_json'";
const OTHERS: &str = "it would change the answer, and this server does not do it";

/// Fields that clients send and that change nothing here.
pub const HARMLESS: &[&str] = &["metadata", "safety_identifier", "service_tier", "store", "user"];

/// A limit that can be switched off: a number, or `none`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Threshold {
    /// A limit.
    At(f64),
    /// None.
    Off,
}

impl<'de> Deserialize<'de> for Threshold {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Number;
        impl Visitor<'_> for Number {
            type Value = Threshold;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a number or 'none'")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Threshold, E> {
                if ["none", "null", "off"].contains(&text.trim().to_ascii_lowercase().as_str()) {
                    return Ok(Threshold::Off);
                }
                let number = text.trim().parse().ok().filter(|number: &f64| number.is_finite());
                number.map(Threshold::At).ok_or_else(|| E::invalid_type(Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_any(Number)
    }
}

/// How a recording is cut into windows.
#[derive(Debug, Clone, PartialEq)]
pub enum Chunking {
    /// `auto`.
    Name(String),
    /// At silences.
    Silences(Silences),
}

/// Which silences.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
pub struct Silences {
    /// `server_vad`.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// Probability from which there is speech.
    pub threshold: Option<f64>,
    /// What is kept around speech, in milliseconds.
    pub prefix_padding_ms: Option<i64>,
    /// Shorter silences are none, in milliseconds.
    pub silence_duration_ms: Option<i64>,
}

impl<'de> Deserialize<'de> for Chunking {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Chunking;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("'auto' or an object")
            }

            fn visit_str<E>(self, name: &str) -> Result<Chunking, E> {
                Ok(Chunking::Name(name.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Chunking, A::Error> {
                Silences::deserialize(MapAccessDeserializer::new(map)).map(Chunking::Silences)
            }
        }
        deserializer.deserialize_map(Either)
    }
}

/// A whole answer.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Transcription {
    /// The text.
    pub text: String,
    /// Where they were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<Vec<LogProb>>,
    /// What was spoken, where several languages were named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub languages: Option<[Language; 1]>,
    /// What it counts as.
    pub usage: Usage,
}

/// A token and its probability.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct LogProb {
    /// Its text, which may be a part of a character.
    pub token: String,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// A language.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct Language {
    /// Its code.
    pub code: String,
}

/// What a transcription counts as.
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
#[schemars(rename = "DurationUsage")]
pub struct Usage {
    /// `duration`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Length of the recording, rounded up.
    pub seconds: u64,
}

/// A whole answer with times.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct VerboseTranscription {
    /// `transcribe` or `translate`.
    pub task: &'static str,
    /// The language's name, such as `english`.
    pub language: String,
    /// Length of the recording, in seconds.
    pub duration: f64,
    /// The text.
    pub text: String,
    /// Where they were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub words: Option<Vec<Word>>,
    /// Unless only words were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub segments: Option<Vec<Segment>>,
    /// What it counts as.
    pub usage: Usage,
}

/// A word and when it was said.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct Word {
    /// Without space and punctuation around.
    pub word: String,
    /// In seconds.
    pub start: f64,
    /// In seconds.
    pub end: f64,
}

/// A piece of the text and when it was said.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct Segment {
    /// Its number, from 0.
    pub id: usize,
    /// First frame (10 ms) of its window.
    pub seek: usize,
    /// In seconds.
    pub start: f64,
    /// In seconds.
    pub end: f64,
    /// Usually begins with a space.
    pub text: String,
    /// Ids, times included.
    pub tokens: Vec<u32>,
    /// Of the attempt that was kept.
    pub temperature: f32,
    /// Mean logarithm of the probabilities of its window's tokens.
    pub avg_logprob: f64,
    /// Of its window's text.
    pub compression_ratio: f64,
    /// Of its window.
    pub no_speech_prob: f64,
    /// An extension, with `word_timestamps`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub words: Option<Vec<SegmentWord>>,
}

/// A word as openai/whisper writes it. An extension.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct SegmentWord {
    /// With the space in front and punctuation around.
    pub word: String,
    /// In seconds.
    pub start: f64,
    /// In seconds.
    pub end: f64,
    /// Mean probability of its tokens.
    pub probability: f64,
}

/// A whole answer with speakers.
#[derive(Debug, Serialize, JsonSchema)]
pub struct DiarizedTranscription {
    /// `transcribe` or `translate`.
    pub task: &'static str,
    /// Length of the recording, in seconds.
    pub duration: f64,
    /// The text.
    pub text: String,
    /// What each speaker said, in order of time.
    pub segments: Vec<DiarizedSegment>,
    /// What it counts as.
    pub usage: Usage,
}

/// What a speaker said.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct DiarizedSegment {
    /// `transcript.text.segment`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// `seg_0`.
    pub id: String,
    /// In seconds.
    pub start: f64,
    /// In seconds.
    pub end: f64,
    /// The text.
    pub text: String,
    /// `A`, `B`, … by channel.
    pub speaker: String,
}

/// A piece of an answer: more text.
#[derive(Debug, Serialize, JsonSchema)]
pub struct TextDelta {
    /// `transcript.text.delta`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The text.
    pub delta: String,
    /// Where they were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<Vec<LogProb>>,
    /// Of the segment with the speaker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub segment_id: Option<String>,
    /// An extension, with `verbose_json`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub segment: Option<Segment>,
    /// Length of the recording. An extension, with `verbose_json`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration: Option<f64>,
}

/// The last piece of an answer: all text.
#[derive(Debug, Serialize, JsonSchema)]
pub struct TextDone {
    /// `transcript.text.done`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// What all pieces make together.
    pub text: String,
    /// Where they were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<Vec<LogProb>>,
    /// What was spoken, where several languages were named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub languages: Option<[Language; 1]>,
    /// The whole answer. An extension, with `verbose_json`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transcription: Option<VerboseTranscription>,
}
