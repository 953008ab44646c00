//! `/v1/realtime`: events of a WebSocket.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use super::{
    Anything, Items, Object,
    audio::{LogProb, Usage},
};

/// Most entries of `include`, and most languages and keywords.
pub const MOST_ITEMS: usize = 512;

/// What the URL says.
#[derive(Debug, Default, Deserialize)]
pub struct Connect {
    /// The model that transcribes.
    pub model: Option<String>,
    /// `transcription`.
    pub intent: Option<String>,
}

/// What `POST /v1/realtime/client_secrets` takes.
#[derive(Debug, Default, Deserialize, JsonSchema)]
pub struct ClientSecretRequest {
    /// How long sessions can be opened with it.
    pub expires_after: Option<Object<SecretExpiry>>,
    /// How they begin.
    pub session: Option<Object<SessionUpdate>>,
}

/// How long a client secret is good.
#[derive(Debug, Default, Deserialize, JsonSchema)]
pub struct SecretExpiry {
    /// `created_at`.
    pub anchor: Option<String>,
    /// From then on: 10 to 7200, by default 600.
    pub seconds: Option<i64>,
}

/// What a client sends. Everything may be absent or null here: what must be there is checked with a better message.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(extend("required" = ["type"]))]
pub struct ClientEvent {
    /// `session.update`, `transcription_session.update`, `input_audio_buffer.append`, `input_audio_buffer.commit` or
    /// `input_audio_buffer.clear`.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// An error that it causes has it.
    pub event_id: Option<String>,
    /// Of updates: what changes.
    pub session: Option<Object<SessionUpdate>>,
    /// Of `input_audio_buffer.append`: sound in base64.
    pub audio: Option<String>,
}

/// What changes in a session, in the shape of either API. What is absent stays as it is.
#[derive(Debug, Default, Deserialize, JsonSchema)]
pub struct SessionUpdate {
    /// `transcription`.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// How it hears.
    pub audio: Option<Object<Audio>>,
    /// `item.input_audio_transcription.logprobs`, where they are wanted.
    pub include: Option<Items<String, MOST_ITEMS>>,
    /// The older form of `audio.input.format`: `pcm16`, `g711_ulaw` or `g711_alaw`.
    pub input_audio_format: Option<String>,
    /// The older form of `audio.input.transcription`.
    pub input_audio_transcription: Option<Object<Transcription>>,
    /// The older form of `audio.input.turn_detection`.
    #[serde(default, deserialize_with = "also_null")]
    #[schemars(with = "Option<TurnDetection>")]
    pub turn_detection: Option<Option<Object<TurnDetection>>>,
}

/// Fields of updates that clients send, and that change nothing.
pub const HARMLESS: &[&str] = &[
    "audio.input.noise_reduction",
    "audio.input.transcription.delay",
    "client_secret",
    "input_audio_noise_reduction",
    "modalities",
    "turn_detection.create_response",
    "turn_detection.interrupt_response",
    "audio.input.turn_detection.create_response",
    "audio.input.turn_detection.interrupt_response",
];

/// How it hears.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(rename = "RealtimeAudio")]
pub struct Audio {
    /// That.
    pub input: Option<Object<AudioInput>>,
}

/// How it hears.
#[derive(Debug, Default, Deserialize, JsonSchema)]
pub struct AudioInput {
    /// What is sent.
    pub format: Option<Object<Format>>,
    /// What is written.
    pub transcription: Option<Object<Transcription>>,
    /// How turns are told apart; null where the client says when one ends.
    #[serde(default, deserialize_with = "also_null")]
    #[schemars(with = "Option<TurnDetection>")]
    pub turn_detection: Option<Option<Object<TurnDetection>>>,
}

/// Tells null from what is absent.
fn also_null<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// What sound is sent.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[schemars(rename = "RealtimeFormat")]
pub struct Format {
    /// `audio/pcm` (16 bits, little-endian), `audio/pcmu` or `audio/pcma` (G.711).
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// 24000 of `audio/pcm`.
    pub rate: Option<i64>,
}

/// What is written.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(rename = "RealtimeTranscription")]
pub struct Transcription {
    /// The model that does it.
    pub model: Option<String>,
    /// What is spoken.
    pub language: Option<String>,
    /// Languages among which it is.
    pub languages: Option<Items<String, MOST_ITEMS>>,
    /// Text in front of each turn's.
    pub prompt: Option<String>,
    /// Words that are likely.
    pub keywords: Option<Items<String, MOST_ITEMS>>,
}

/// How turns are told apart.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
pub struct TurnDetection {
    /// `server_vad`.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// Probability from which there is speech: 0 to 1, by default 0.5.
    pub threshold: Option<f64>,
    /// What belongs to a turn in front of its speech: by default 300.
    pub prefix_padding_ms: Option<i64>,
    /// The silence that ends it: by default 500.
    pub silence_duration_ms: Option<i64>,
    /// Refused.
    pub idle_timeout_ms: Option<Anything>,
}

/// A whole answer.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ClientSecret<'a> {
    /// `ek_percept-…`: what a page connects with.
    pub value: &'a str,
    /// Until when, in seconds since 1970. Sessions may take longer.
    pub expires_at: u64,
    /// How they begin.
    pub session: Session<'a>,
}

/// A whole event.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ServerEvent<'a> {
    /// `event_…`.
    pub event_id: String,
    /// What happens.
    #[serde(flatten)]
    pub kind: Happening<'a>,
}

/// What happens in a session.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(tag = "type")]
pub enum Happening<'a> {
    /// It begins.
    #[serde(rename = "session.created")]
    SessionCreated {
        /// How it is.
        session: Session<'a>,
    },
    /// It has changed.
    #[serde(rename = "session.updated")]
    SessionUpdated {
        /// How it is now.
        session: Session<'a>,
    },
    /// It has changed, in the older form.
    #[serde(rename = "transcription_session.updated")]
    TranscriptionSessionUpdated {
        /// How it is now.
        session: OlderSession<'a>,
    },
    /// Speech has begun.
    #[serde(rename = "input_audio_buffer.speech_started")]
    SpeechStarted {
        /// When, in the sound that was sent.
        audio_start_ms: u64,
        /// What it will become.
        item_id: &'a str,
    },
    /// Speech has ended.
    #[serde(rename = "input_audio_buffer.speech_stopped")]
    SpeechStopped {
        /// When, in the sound that was sent.
        audio_end_ms: u64,
        /// What it becomes.
        item_id: &'a str,
    },
    /// What was heard becomes an item.
    #[serde(rename = "input_audio_buffer.committed")]
    Committed {
        /// The one in front of it.
        previous_item_id: Option<&'a str>,
        /// It.
        item_id: &'a str,
    },
    /// What was heard is forgotten.
    #[serde(rename = "input_audio_buffer.cleared")]
    Cleared {},
    /// There is an item, in the older form.
    #[serde(rename = "conversation.item.created")]
    ItemCreated {
        /// The one in front of it.
        previous_item_id: Option<&'a str>,
        /// It.
        item: Item<'a>,
    },
    /// There is an item.
    #[serde(rename = "conversation.item.added")]
    ItemAdded {
        /// The one in front of it.
        previous_item_id: Option<&'a str>,
        /// It.
        item: Item<'a>,
    },
    /// An item will not change.
    #[serde(rename = "conversation.item.done")]
    ItemDone {
        /// The one in front of it.
        previous_item_id: Option<&'a str>,
        /// It.
        item: Item<'a>,
    },
    /// More of a text.
    #[serde(rename = "conversation.item.input_audio_transcription.delta")]
    Delta {
        /// Whose.
        item_id: &'a str,
        /// 0.
        content_index: usize,
        /// It.
        delta: &'a str,
    },
    /// A text as a whole.
    #[serde(rename = "conversation.item.input_audio_transcription.completed")]
    Completed {
        /// Whose.
        item_id: &'a str,
        /// 0.
        content_index: usize,
        /// It.
        transcript: &'a str,
        /// Where they were asked for.
        #[serde(skip_serializing_if = "Option::is_none")]
        logprobs: Option<Vec<LogProb>>,
        /// What it took.
        usage: Usage,
    },
    /// There is no text.
    #[serde(rename = "conversation.item.input_audio_transcription.failed")]
    Failed {
        /// Whose.
        item_id: &'a str,
        /// 0.
        content_index: usize,
        /// Why.
        error: Failure,
    },
    /// Something was wrong. The session goes on, unless it says that it ends.
    #[serde(rename = "error")]
    Error {
        /// What.
        error: Failure,
    },
}

/// What is wrong.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "RealtimeFailure")]
pub struct Failure {
    /// `invalid_request_error`, `server_error` and so on.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// For programs.
    pub code: Option<&'static str>,
    /// For people.
    pub message: String,
    /// The path of the field.
    pub param: Option<String>,
    /// Of the event that caused it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_id: Option<String>,
}

/// How a session is.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "RealtimeSession")]
pub struct Session<'a> {
    /// `sess_…`.
    pub id: &'a str,
    /// `realtime.transcription_session`.
    pub object: &'static str,
    /// `transcription`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// When it ends at the latest, in seconds since 1970.
    pub expires_at: u64,
    /// How it hears.
    pub audio: SessionAudio<'a>,
    /// What else it tells.
    pub include: &'a [&'static str],
}

/// How a session hears.
#[derive(Debug, Serialize, JsonSchema)]
pub struct SessionAudio<'a> {
    /// That.
    pub input: SessionInput<'a>,
}

/// What sound is sent.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "RealtimeSessionFormat")]
pub struct SessionFormat {
    /// `audio/pcm`, `audio/pcmu` or `audio/pcma`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Of `audio/pcm`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<i64>,
}

/// How a session hears.
#[derive(Debug, Serialize, JsonSchema)]
pub struct SessionInput<'a> {
    /// What is sent.
    pub format: SessionFormat,
    /// What is written.
    pub transcription: SessionTranscription<'a>,
    /// How turns are told apart.
    pub turn_detection: Option<SessionTurns>,
    /// Always null.
    pub noise_reduction: Option<super::chat::Never>,
}

/// What a session writes.
#[derive(Debug, Serialize, JsonSchema)]
pub struct SessionTranscription<'a> {
    /// The model that does it.
    pub model: &'a str,
    /// What is spoken.
    pub language: Option<&'a str>,
    /// Text in front of each turn's.
    pub prompt: Option<&'a str>,
}

/// How a session tells turns apart.
#[derive(Debug, Serialize, JsonSchema)]
pub struct SessionTurns {
    /// `server_vad`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Probability from which there is speech.
    pub threshold: f32,
    /// What belongs to a turn in front of its speech.
    pub prefix_padding_ms: u32,
    /// The silence that ends it.
    pub silence_duration_ms: u32,
}

/// How a session is, in the older form.
#[derive(Debug, Serialize, JsonSchema)]
pub struct OlderSession<'a> {
    /// `sess_…`.
    pub id: &'a str,
    /// `realtime.transcription_session`.
    pub object: &'static str,
    /// When it ends at the latest, in seconds since 1970.
    pub expires_at: u64,
    /// What is sent.
    pub input_audio_format: &'static str,
    /// What is written.
    pub input_audio_transcription: SessionTranscription<'a>,
    /// How turns are told apart.
    pub turn_detection: Option<SessionTurns>,
    /// Always null.
    pub input_audio_noise_reduction: Option<super::chat::Never>,
    /// What else it tells.
    pub include: &'a [&'static str],
}

/// A turn of the speaker's.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(rename = "RealtimeItem")]
pub struct Item<'a> {
    /// `item_…`.
    pub id: &'a str,
    /// `realtime.item`.
    pub object: &'static str,
    /// `message`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// `completed`.
    pub status: &'static str,
    /// `user`.
    pub role: &'static str,
    /// What was said.
    pub content: [ItemContent; 1],
}

/// What was said.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct ItemContent {
    /// `input_audio`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Always null: it comes in events.
    pub transcript: Option<super::chat::Never>,
}
