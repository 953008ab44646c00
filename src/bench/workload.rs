//! What is asked: texts, pictures and sounds, made from a seed or read from files.

mod picture;
mod prompt;
mod sound;

use std::{fmt, fs, io::Cursor, ops::ControlFlow, path::PathBuf, str::FromStr};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use self::{picture::Template, sound::Noise};
use super::client::{Prepared, Work};
use crate::media::{
    Header,
    sound::{self as decoder, Channels, SoundError, SoundLimits},
};

pub use self::prompt::WORDS;

/// Where chats are asked.
const CHATS: &str = "/v1/chat/completions";
/// Where recordings are.
const TRANSCRIPTS: &str = "/v1/audio/transcriptions";
/// Seconds that a recording of a file may have.
const MOST_SECONDS: f64 = 24.0 * 3600.0;

/// What a question is about.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Subject {
    /// Nothing but its words.
    Text,
    /// Pictures that are made for it, as JPEG.
    Pictures {
        /// Their sizes, by turns.
        sizes: Vec<Size>,
        /// How many a request has.
        per_request: usize,
    },
    /// Pictures of files, by turns.
    PictureFiles {
        /// The files.
        files: Vec<PathBuf>,
        /// How many a request has.
        per_request: usize,
    },
    /// Recordings that are made for it, as WAV of 16 kHz.
    Sound {
        /// Their lengths in seconds, by turns.
        seconds: Vec<f64>,
    },
    /// Recordings of files, by turns.
    SoundFiles {
        /// The files.
        files: Vec<PathBuf>,
    },
}

impl Subject {
    /// Whether it is heard rather than read and seen.
    pub fn is_heard(&self) -> bool {
        matches!(self, Self::Sound { .. } | Self::SoundFiles { .. })
    }

    fn files(&self) -> usize {
        match self {
            Self::PictureFiles { files, .. } | Self::SoundFiles { files } => files.len(),
            Self::Text | Self::Pictures { .. } | Self::Sound { .. } => 0,
        }
    }
}

/// The size of a picture, as in `1920x1080`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Size {
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
}

/// Longest edge of a picture that is made.
const MOST_EDGE: u32 = 16_384;

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.trim().split_once(['x', 'X', '×']);
        let sides = parts.and_then(|(width, height)| Some((width.parse().ok()?, height.parse().ok()?)));
        match sides {
            Some((width, height))
                if (1..=MOST_EDGE).contains(&width) && (1..=MOST_EDGE).contains(&height) =>
            {
                Ok(Self { width, height })
            }
            _ => Err(format!("{text} is no size of a picture: write WIDTHxHEIGHT, up to {MOST_EDGE} each")),
        }
    }
}

impl TryFrom<String> for Size {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for Size {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}x{}", self.width, self.height)
    }
}

impl From<Size> for String {
    fn from(size: Size) -> Self {
        size.to_string()
    }
}

/// What is asked, and how it is to be answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Asked {
    /// What questions are about.
    pub subject: Subject,
    /// Tokens of a question's words.
    pub prompt_tokens: usize,
    /// How many different requests there are; all of them differ where it is absent.
    pub repeat: Option<u64>,
    /// Most tokens of an answer.
    pub max_tokens: Option<u64>,
    /// Sampling.
    pub temperature: Option<f64>,
    /// Sampling.
    pub top_p: Option<f64>,
    /// Whether the end of an answer is ignored, so that all are as long.
    pub ignore_eos: bool,
    /// What goes into each request besides.
    pub extra: Map<String, Value>,
    /// Of all that is random.
    pub seed: u64,
}

/// Why nothing can be asked.
#[derive(Debug, thiserror::Error)]
pub enum WorkloadError {
    /// A file is not there.
    #[error("cannot read {}: {error}", file.display())]
    File {
        /// Which.
        file: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// A file is no picture.
    #[error("{}: {error}", file.display())]
    Picture {
        /// Which.
        file: PathBuf,
        /// Why.
        error: crate::media::ImageError,
    },
    /// A file is no sound.
    #[error("{}: {error}", file.display())]
    Sound {
        /// Which.
        file: PathBuf,
        /// Why.
        error: SoundError,
    },
    /// A picture cannot be made.
    #[error("cannot make a picture of {size}: {reason}")]
    Make {
        /// Of which size.
        size: Size,
        /// Why.
        reason: String,
    },
}

/// Makes requests. The same number always makes the same request.
#[derive(Debug)]
pub struct Workload {
    asked: Asked,
    model: String,
    media: Media,
    /// Words of a question.
    words: usize,
}

/// What questions are about, ready to be sent.
#[derive(Debug)]
enum Media {
    Nothing,
    Made(Vec<Template>),
    /// Data URLs.
    Pictures(Vec<String>),
    Noise(Vec<Noise>),
    /// Files, with their seconds.
    Recordings(Vec<(Vec<u8>, f64)>),
}

impl Workload {
    /// Questions to `model`. Reads files, and makes what is to be sent.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn new(asked: Asked, model: String) -> Result<Self, WorkloadError> {
        let media = match &asked.subject {
            Subject::Text => Media::Nothing,
            Subject::Pictures { sizes, .. } => {
                let made = sizes.iter().map(|size| Template::new(*size, asked.seed));
                Media::Made(made.collect::<Result<_, _>>()?)
            }
            Subject::PictureFiles { files, .. } => {
                Media::Pictures(files.iter().map(picture_file).collect::<Result<_, _>>()?)
            }
            Subject::Sound { seconds } => {
                Media::Noise(seconds.iter().map(|seconds| Noise::new(*seconds, asked.seed)).collect())
            }
            Subject::SoundFiles { files } => {
                Media::Recordings(files.iter().map(sound_file).collect::<Result<_, _>>()?)
            }
        };
        let words = asked.prompt_tokens;
        Ok(Self { asked, model, media, words })
    }

    /// Whether requests are questions with words, whose number can be set.
    pub fn has_words(&self) -> bool {
        !self.asked.subject.is_heard()
    }

    /// Sets how many words a question has. A word is a token or more.
    pub fn set_words(&mut self, words: usize) {
        self.words = words.max(1);
    }

    /// A question of so many words and nothing else, for one token: to learn how many tokens they are.
    pub fn question_of(&self, words: usize, index: u64) -> Prepared {
        let text = prompt::text(words, self.asked.seed, index);
        self.chat(&json!(text), Work::default(), Some(1))
    }

    /// A request by its number.
    pub fn request(&self, index: u64) -> Prepared {
        let index = self.asked.repeat.map_or(index, |repeat| index % repeat.max(1));
        let turn = |count: usize| (index % count.max(1) as u64) as usize;
        match &self.media {
            Media::Noise(noises) => {
                let noise = &noises[turn(noises.len())];
                self.transcription(&noise.file(index), noise.seconds())
            }
            Media::Recordings(files) => {
                let (file, seconds) = &files[turn(files.len())];
                self.transcription(file, *seconds)
            }
            Media::Nothing | Media::Made(_) | Media::Pictures(_) => self.question(index),
        }
    }

    fn question(&self, index: u64) -> Prepared {
        let text = prompt::text(self.words, self.asked.seed, index);
        let urls = self.pictures(index);
        let work = Work { pictures: urls.len() as u64, sound: 0.0 };
        if urls.is_empty() {
            return self.chat(&json!(text), work, self.asked.max_tokens);
        }
        let part = |url: String| json!({"type": "image_url", "image_url": {"url": url}});
        let mut parts: Vec<Value> = urls.into_iter().map(part).collect();
        parts.push(json!({"type": "text", "text": text}));
        self.chat(&json!(parts), work, self.asked.max_tokens)
    }

    /// Data URLs of a request's pictures.
    fn pictures(&self, index: u64) -> Vec<String> {
        let (Subject::Pictures { per_request, .. } | Subject::PictureFiles { per_request, .. }) =
            self.asked.subject
        else {
            return Vec::new();
        };
        let picture = |place: usize| {
            let number = index * per_request as u64 + place as u64;
            let turn = |count: usize| (number % count as u64) as usize;
            match &self.media {
                Media::Made(templates) => {
                    let file = templates[turn(templates.len())].file(number);
                    Some(format!("data:image/jpeg;base64,{}", STANDARD.encode(file)))
                }
                Media::Pictures(urls) => Some(urls[turn(urls.len())].clone()),
                Media::Nothing | Media::Noise(_) | Media::Recordings(_) => None,
            }
        };
        (0..per_request).filter_map(picture).collect()
    }

    fn chat(&self, content: &Value, work: Work, max_tokens: Option<u64>) -> Prepared {
        let mut body = Map::new();
        let mut put = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                body.insert(name.to_owned(), value);
            }
        };
        put("model", Some(json!(self.model)));
        put("messages", Some(json!([{"role": "user", "content": content}])));
        put("stream", Some(json!(true)));
        put("stream_options", Some(json!({"include_usage": true})));
        put("max_tokens", max_tokens.map(Value::from));
        put("temperature", self.asked.temperature.map(Value::from));
        put("top_p", self.asked.top_p.map(Value::from));
        put("ignore_eos", self.asked.ignore_eos.then(|| json!(true)));
        // What is said last counts.
        body.extend(self.asked.extra.clone());
        let body = serde_json::to_vec(&body).expect("JSON can be written");
        Prepared { path: CHATS, content_type: "application/json".into(), body, work }
    }

    fn transcription(&self, file: &[u8], seconds: f64) -> Prepared {
        // No file has it: 122 random bits would not be surer than a sentence.
        const BOUNDARY: &str = "percept-bench-boundary-8b1f0c5e7a9d4c36";
        let mut fields =
            vec![("model".to_owned(), self.model.clone()), ("response_format".into(), "json".into())];
        fields.extend(self.asked.temperature.map(|number| ("temperature".into(), number.to_string())));
        for (name, value) in &self.asked.extra {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            fields.retain(|(known, _)| known != name);
            fields.push((name.clone(), text));
        }
        let mut body = Vec::with_capacity(file.len() + 1024);
        for (name, text) in fields {
            let part =
                format!("--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{text}\r\n");
            body.extend_from_slice(part.as_bytes());
        }
        let head = "Content-Disposition: form-data; name=\"file\"; filename=\"sound.wav\"\r\nContent-Type: audio/wav";
        body.extend_from_slice(format!("--{BOUNDARY}\r\n{head}\r\n\r\n").as_bytes());
        body.extend_from_slice(file);
        body.extend_from_slice(format!("\r\n--{BOUNDARY}--\r\n").as_bytes());
        let content_type = format!("multipart/form-data; boundary={BOUNDARY}");
        Prepared { path: TRANSCRIPTS, content_type, body, work: Work { pictures: 0, sound: seconds } }
    }
}

impl Asked {
    /// What a request has besides what it is about, as it is sent; for those who compare runs.
    pub fn sent(&self) -> Map<String, Value> {
        let mut sent = Map::new();
        let heard = self.subject.is_heard();
        if !heard {
            sent.extend(self.max_tokens.map(|tokens| ("max_tokens".to_owned(), json!(tokens))));
        }
        sent.extend(self.temperature.map(|number| ("temperature".to_owned(), json!(number))));
        if !heard {
            sent.extend(self.top_p.map(|number| ("top_p".to_owned(), json!(number))));
            sent.extend(self.ignore_eos.then(|| ("ignore_eos".to_owned(), json!(true))));
        }
        sent.extend(self.extra.clone());
        sent
    }

    /// What a reader of the figures must know about what was asked.
    pub fn caution(&self) -> Option<String> {
        let different = self.repeat.or((self.subject.files() > 0).then_some(self.subject.files() as u64))?;
        Some(format!("requests repeat, {different} of them are different: what a server has cached counts"))
    }
}

/// A picture of a size, as JPEG.
pub(super) fn jpeg(size: Size) -> Result<Vec<u8>, WorkloadError> {
    Ok(Template::new(size, 0)?.file(0))
}

fn read(file: &PathBuf) -> Result<Vec<u8>, WorkloadError> {
    fs::read(file).map_err(|error| WorkloadError::File { file: file.clone(), error })
}

fn picture_file(file: &PathBuf) -> Result<String, WorkloadError> {
    let bytes = read(file)?;
    let header = Header::read(&bytes, usize::MAX, usize::MAX);
    header.map_err(|error| WorkloadError::Picture { file: file.clone(), error })?;
    // A server tells the format by the content; some want a type that they know.
    let kind = match &bytes[..] {
        [0x89, b'P', b'N', b'G', ..] => "png",
        [b'G', b'I', b'F', ..] => "gif",
        [b'R', b'I', b'F', b'F', ..] => "webp",
        [b'B', b'M', ..] => "bmp",
        [b'I', b'I', ..] | [b'M', b'M', ..] => "tiff",
        _ => "jpeg",
    };
    Ok(format!("data:image/{kind};base64,{}", STANDARD.encode(bytes)))
}

/// A file, and its length in seconds.
fn sound_file(file: &PathBuf) -> Result<(Vec<u8>, f64), WorkloadError> {
    let bytes = read(file)?;
    let limits = SoundLimits { seconds: MOST_SECONDS, memory_samples: 1 << 24, channels: 1 };
    let source = Cursor::new(bytes.clone());
    let recording = decoder::decode(source, &limits, Channels::Mixed, None, |_| ControlFlow::Continue(()));
    let recording = recording.map_err(|error| WorkloadError::Sound { file: file.clone(), error })?;
    Ok((bytes, recording.seconds()))
}
