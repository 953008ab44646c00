//! Settings as typed, from a file and from the environment, become one configuration that is true.

use std::{
    env,
    ffi::OsString,
    fmt, fs,
    net::IpAddr,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use candle_core::DType;
use clap::{Args, ValueEnum};
use percept_models::Fit;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{Error as _, SeqAccess, Visitor, value::SeqAccessDeserializer},
};
use toml::{Table, Value};

use crate::{
    api::{ApiConfig, Connections, RealtimeLimits, SoundConfig},
    demo::Demo,
    device::DeviceChoice,
    hub::{HubConfig, HubError, Source},
    media::{DocumentLimits, MediaLimits, remote::FetchPolicy, sound::SoundLimits},
    memory::{Budget, Wanted, parse_bytes},
    operations::{ContentConfig, Names, OperationsConfig, Price},
    router::{Alias, Aliases, HOSTED, NameError},
    server::{ModelConfig, ServerConfig},
    store::{Bucket, StoreConfig},
};

/// Samples of a recording that stay in memory: ten minutes, 19 MB. Longer ones go to the disk.
const SAMPLES_IN_MEMORY: usize = 600 * 16_000;
/// Channels of a recording that are kept apart, where that is asked for.
const MOST_SPEAKERS: usize = 8;

/// Every setting, each of them optional. The names are those of the configuration file; a flag writes `-` for `_`,
/// the environment writes them in capitals behind `PERCEPT_`.
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Checkpoint folders, or hub ids such as llava-hf/llava-1.5-7b-hf or owner/name@revision. The name that requests
    /// use is the hub id or the folder's name, unless it stands in front: NAME=PATH_OR_HUB_ID [default: percept-demo-vlm
    /// and percept-demo-whisper, two small models that are part of the program]
    #[arg(value_name = "PATH_OR_HUB_ID")]
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "one_or_several")]
    pub model: Vec<String>,

    /// The name that requests use, where there is one model
    #[arg(long, value_name = "NAME", help_heading = "Models")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Another name, such as gpt-4o, for the first model that it can mean, or for a certain one as in gpt-4o=NAME; may
    /// be repeated
    #[arg(long, value_name = "NAME", help_heading = "Models")]
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "one_or_several")]
    pub alias: Vec<String>,
    /// Let the names that hosted services have for speech, such as whisper-1, mean the first speech model, unless
    /// something else is called so [default: true]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", help_heading = "Models")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hosted_names: Option<bool>,
    /// Where to compute: cpu, cuda, or cuda:1 for the second GPU [default: auto, the first GPU if this percept can use one]
    #[arg(long, value_name = "DEVICE", help_heading = "Models")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<Text<DeviceChoice>>,
    /// The type of weights and activations [default: bf16 on a GPU, f32 on the CPU]
    #[arg(long, value_name = "TYPE", help_heading = "Models")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dtype: Option<Dtype>,
    /// How pictures become square, in models that see one square (LLaVA-1.5) [default: as the checkpoint says]
    #[arg(long, value_name = "HOW", help_heading = "Models")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_fit: Option<ImageFit>,
    /// A chat template to use instead of the checkpoint's own
    #[arg(long, value_name = "FILE", help_heading = "Models")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chat_template: Option<PathBuf>,
    /// Make up random weights of the right shapes instead of reading weight files, which need not be there: to measure a
    /// machine or to try clients before a download; answers mean nothing
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", help_heading = "Models")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dummy_weights: Option<bool>,
    /// Cut recordings of so many seconds or more at silences and transcribe the parts at once [default: 300]
    #[arg(long, value_name = "SECONDS", help_heading = "Model")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parallel_from: Option<u32>,
    /// Take checkpoints from the cache only, and never from the hub
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", help_heading = "Models")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offline: Option<bool>,

    /// Address to listen on [default: 127.0.0.1]
    #[arg(long, value_name = "ADDRESS", help_heading = "Server")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<Text<Host>>,
    /// Port to listen on; 0 takes a free one [default: 8000]
    #[arg(long, short, value_name = "PORT", help_heading = "Server")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Answer 400 to a field that the API does not know, instead of ignoring it
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", help_heading = "Server")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strict_params: Option<bool>,
    /// From where pictures are fetched that requests name by http or https URLs: off, hosts such as
    /// images.example.com, *.example.com or 10.0.0.5:8080 with commas in between, or public for all but addresses that
    /// are not public [default: off]
    #[arg(long, value_name = "HOSTS", help_heading = "Server")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fetch: Option<Text<FetchPolicy>>,
    /// Leave out the page at / and the one at /docs
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", help_heading = "Server")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_ui: Option<bool>,
    /// Seconds that running answers have to end when the server is stopped [default: 30]
    #[arg(long, value_name = "SECONDS", help_heading = "Server")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain_seconds: Option<u32>,
    /// Most connections at once; more are answered 503 [default: 1024]
    #[arg(long, value_name = "COUNT", help_heading = "Server")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<u32>,
    /// Seconds that the head of a connection's first request may take [default: 10]
    #[arg(long, value_name = "SECONDS", help_heading = "Server")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head_seconds: Option<u32>,
    /// Seconds from an answer to the next request, after which a connection is closed [default: 75]
    #[arg(long, value_name = "SECONDS", help_heading = "Server")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_seconds: Option<u32>,
    /// Seconds for which a client may take nothing of what is sent to it [default: 60]
    #[arg(long, value_name = "SECONDS", help_heading = "Server")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stalled_seconds: Option<u32>,
    /// What to log: error, warn, info, debug, trace, or per module as in percept::engine=debug [default: info]
    #[arg(long, value_name = "FILTER", help_heading = "Server")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<String>,
    /// How to log [default: human]
    #[arg(long, value_name = "FORMAT", help_heading = "Server")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_format: Option<LogFormat>,

    /// The file of keys, from percept keys; with it, who has none is answered 401. Changes to it count at once
    #[arg(long, value_name = "FILE", help_heading = "Access and operation")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keys: Option<PathBuf>,
    /// Listen on an address that others can reach though there are no keys: whoever can reach it can use the server
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", help_heading = "Access and operation")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub insecure_no_keys: Option<bool>,
    /// A name that the server is called by, such as that of a proxy in front of it; may be repeated [default: where it
    /// listens on this machine only, localhost and its addresses; else any]
    #[arg(long, value_name = "NAME", help_heading = "Access and operation")]
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "one_or_several")]
    pub allowed_host: Vec<String>,
    /// An origin of web pages that may ask the server from a browser, such as https://app.example.com; may be repeated
    #[allow(rustdoc::bare_urls, reason = "it is read in a terminal")]
    #[arg(long, value_name = "ORIGIN", help_heading = "Access and operation")]
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "one_or_several")]
    pub cors_origin: Vec<String>,
    /// A folder for the audit log: who asked what when and what it took, and never any content
    #[arg(long, value_name = "FOLDER", help_heading = "Access and operation")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audit: Option<PathBuf>,
    /// Months of the audit log that are kept besides the present one [default: all]
    #[arg(long, value_name = "COUNT", help_heading = "Access and operation")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audit_months: Option<u32>,
    /// A folder for the content log: what is asked and answered, of tenants that agreed to it with percept keys add
    /// --log-content (of everyone, where there are no keys); without files, and without what looks like a secret or a
    /// person's. Nothing is written down without it
    #[arg(long, value_name = "FOLDER", help_heading = "Access and operation")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_log: Option<PathBuf>,
    /// Days that the content log is kept [default: 30]
    #[arg(long, value_name = "COUNT", help_heading = "Access and operation")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_days: Option<u32>,
    /// A regular expression of what is taken out of the content log as well; may be repeated
    #[arg(long, value_name = "REGEX", help_heading = "Access and operation")]
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "one_or_several")]
    pub redact: Vec<String>,
    /// What the machine costs in an hour, so that requests and tenants have a cost
    #[arg(long, value_name = "AMOUNT", help_heading = "Access and operation")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub price_per_hour: Option<f64>,
    /// What that is in [default: EUR]
    #[arg(long, value_name = "CURRENCY", help_heading = "Access and operation")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub currency: Option<String>,
    /// The address of a collector of traces that speaks OTLP over HTTP, such as http://localhost:4318: it is told of each
    /// request, how long its stages took and what it used, and nothing of its content
    #[allow(rustdoc::bare_urls, reason = "it is read in a terminal")]
    #[arg(long, value_name = "URL", help_heading = "Access and operation")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub otlp: Option<String>,
    /// Give the figures of /metrics vLLM's names as well, for dashboards that are made for it
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", help_heading = "Access and operation")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vllm_metrics: Option<bool>,

    /// A folder for files and batches, so that there are /v1/files and /v1/batches: what clients upload, and what batches
    /// make of it, stays there until it is deleted or expires. Each server has one of its own
    #[arg(long, value_name = "FOLDER", help_heading = "Files and batches")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub files: Option<PathBuf>,
    /// Keep the contents of files in a bucket instead: s3://BUCKET/PREFIX, with AWS_ENDPOINT_URL, AWS_REGION,
    /// AWS_ACCESS_KEY_ID and so on in the environment; the folder then has what is known of them
    #[arg(long, value_name = "URL", help_heading = "Files and batches")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub files_bucket: Option<Text<Bucket>>,
    /// Most bytes of a file [default: 512MB]
    #[arg(long, value_name = "SIZE", help_heading = "Files and batches")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_file_bytes: Option<Text<Size>>,
    /// Most requests of batches that are answered at once; all others go first [default: 16]
    #[arg(long, value_name = "COUNT", help_heading = "Files and batches")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch_requests: Option<u32>,

    /// Memory for weights and caches: a share of what is free, such as 0.8, or a size, such as 20GiB [default: 0.5]
    #[arg(long, value_name = "SHARE_OR_SIZE", help_heading = "Memory and batching")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Text<Budget>>,
    /// Most tokens of prompt and answer together, of models for chat [default: the model's own limit]
    #[arg(long, value_name = "TOKENS", help_heading = "Memory and batching")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_context: Option<u32>,
    /// Most requests that are computed at once [default: 64]
    #[arg(long, value_name = "COUNT", help_heading = "Memory and batching")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_sequences: Option<u32>,
    /// Most requests that wait; more are answered 429 [default: 256]
    #[arg(long, value_name = "COUNT", help_heading = "Memory and batching")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_queue: Option<u32>,
    /// Most rows (tokens) of one step [default: 1024 on a GPU, 512 on the CPU]
    #[arg(long, value_name = "ROWS", help_heading = "Memory and batching")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step_rows: Option<u32>,
    /// Rows of a page of the cache [default: 16]
    #[arg(long, value_name = "ROWS", help_heading = "Memory and batching")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub page_size: Option<u32>,

    /// Most bytes of a request's body [default: 64MB]
    #[arg(long, value_name = "SIZE", help_heading = "Limits of a request")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_body: Option<Text<Size>>,
    /// Most pictures and videos of a request [default: 16]
    #[arg(long, value_name = "COUNT", help_heading = "Limits of a request")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_images: Option<u32>,
    /// Most bytes of a picture's file [default: 20MB]
    #[arg(long, value_name = "SIZE", help_heading = "Limits of a request")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_image_bytes: Option<Text<Size>>,
    /// Most columns or rows of a picture [default: 16384]
    #[arg(long, value_name = "PIXELS", help_heading = "Limits of a request")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_image_edge: Option<u32>,
    /// Most pixels of a picture [default: 40000000]
    #[arg(long, value_name = "PIXELS", help_heading = "Limits of a request")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_image_pixels: Option<u32>,
    /// Most frames of all videos of a request [default: 128]
    #[arg(long, value_name = "COUNT", help_heading = "Limits of a request")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_video_frames: Option<u32>,
    /// Most pixels of all pictures and frames of a request [default: 100000000]
    #[arg(long, value_name = "PIXELS", help_heading = "Limits of a request")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_request_pixels: Option<u32>,
    /// Memory for decoded pictures of all requests that wait [default: 2GiB]
    #[arg(long, value_name = "SIZE", help_heading = "Limits of a request")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_memory: Option<Text<Size>>,
    /// Most bytes of a document's file [default: 32MB]
    #[arg(long, value_name = "SIZE", help_heading = "Limits of a request")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_document_bytes: Option<Text<Size>>,
    /// Most pages of all documents of a request [default: 100]
    #[arg(long, value_name = "COUNT", help_heading = "Limits of a request")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_document_pages: Option<u32>,
    /// Most seconds that reading a document, and drawing it, may take each [default: 60]
    #[arg(long, value_name = "SECONDS", help_heading = "Limits of a request")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_document_seconds: Option<u32>,
    /// Most bytes of a recording's file [default: 1GiB]
    #[arg(long, value_name = "SIZE", help_heading = "Limits of a request")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_audio_bytes: Option<Text<Size>>,
    /// Most seconds of a recording [default: 14400, which is 4 hours]
    #[arg(long, value_name = "SECONDS", help_heading = "Limits of a request")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_audio_seconds: Option<u32>,
    /// Most realtime sessions of a tenant at once [default: 8]
    #[arg(long, value_name = "COUNT", help_heading = "Limits of a request")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_realtime_sessions: Option<u32>,
    /// Most seconds of a realtime session [default: 3600]
    #[arg(long, value_name = "SECONDS", help_heading = "Limits of a request")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_realtime_seconds: Option<u32>,
    /// Seconds without an event of the client's that end a realtime session [default: 300]
    #[arg(long, value_name = "SECONDS", help_heading = "Limits of a request")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub realtime_idle_seconds: Option<u32>,
    /// The ffmpeg program, to decode recordings that percept does not decode itself, such as AMR; none unless it is set
    #[arg(long, value_name = "PROGRAM", help_heading = "Limits of a request")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ffmpeg: Option<PathBuf>,
}

/// A list, or its only element.
fn one_or_several<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    struct OneOrSeveral;
    impl<'de> Visitor<'de> for OneOrSeveral {
        type Value = Vec<String>;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("a string or a list of strings")
        }

        fn visit_str<E>(self, text: &str) -> Result<Vec<String>, E> {
            Ok(vec![text.to_owned()])
        }

        fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Vec<String>, A::Error> {
            Vec::deserialize(SeqAccessDeserializer::new(list))
        }
    }
    deserializer.deserialize_any(OneOrSeveral)
}

/// Up to this length, in seconds, the text of earlier windows helps more than speed does.
const PARALLEL_FROM: u32 = 300;

/// Types that weights and activations can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 32 bits: the most exact
    F32,
    /// 16 bits: half the memory, and faster
    Bf16,
}

/// How a picture that is not square becomes square.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageFit {
    /// Cut off what lies outside the centre square
    Crop,
    /// Put it on a square of the mean colour
    Pad,
    /// Stretch it
    Stretch,
}

/// Formats of the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people
    #[default]
    Human,
    /// One JSON object a line
    Json,
}

/// An address to listen on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Host(IpAddr);

impl FromStr for Host {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "localhost" {
            return Ok(Self(IpAddr::from([127, 0, 0, 1])));
        }
        text.parse().map(Self).map_err(|_| {
            format!("{text} is no address: 127.0.0.1 for this machine alone, 0.0.0.0 for every network")
        })
    }
}

/// A number of bytes, as in `20MB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse_bytes(text).map(Self)
    }
}

/// A value together with how it was written: in a file, a number or a string.
#[derive(Debug, Clone, PartialEq)]
pub struct Text<T> {
    value: T,
    text: String,
}

impl<T: FromStr<Err = String>> FromStr for Text<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(Self { value: text.parse()?, text: text.to_owned() })
    }
}

impl<T> Serialize for Text<T> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de, T: FromStr<Err = String>> Deserialize<'de> for Text<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = match Value::deserialize(deserializer)? {
            Value::String(text) => text,
            Value::Integer(number) => number.to_string(),
            Value::Float(number) => number.to_string(),
            other => return Err(D::Error::custom(format!("{other} is neither a number nor a string"))),
        };
        text.parse().map_err(D::Error::custom)
    }
}

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The configuration file.
    #[error("{}: {reason}", file.display())]
    File {
        /// Which.
        file: PathBuf,
        /// Why.
        reason: String,
    },
    /// A variable of the environment.
    #[error("environment variable {name}: {reason}")]
    Environment {
        /// Which.
        name: String,
        /// Why.
        reason: String,
    },
    /// A flag.
    #[error("a flag cannot be used: {reason}")]
    Typed {
        /// Why.
        reason: String,
    },
    /// The text that gives a model means nothing.
    #[error(transparent)]
    Model(#[from] HubError),
    /// Names contradict each other.
    #[error(transparent)]
    Names(#[from] NameError),
    /// One name for several models, or a second one for one.
    #[error(
        "name {name} is for one model that has no other: with several, write NAME=PATH_OR_HUB_ID for each instead"
    )]
    NothingToName {
        /// The name.
        name: String,
    },
    /// A text is no origin of web pages.
    #[error(
        "cors_origin {origin} is no origin: write scheme, name and port as browsers do, such as https://app.example.com \
         or http://localhost:3000; there is none that means all"
    )]
    Origin {
        /// The text.
        origin: String,
    },
    /// A text is no name of a machine.
    #[error("allowed_host {name} is no name of a machine: write it without scheme and port")]
    HostName {
        /// The text.
        name: String,
    },
    /// Contents of files have a place, but what is known of them has none.
    #[error(
        "files_bucket is for the contents of files: give a folder for what is known of them with files, too"
    )]
    BucketAlone,
    /// A text is no address of a collector.
    #[error("otlp {url} is no address of a collector: write it as http://localhost:4318")]
    Collector {
        /// The text.
        url: String,
    },
    /// A price makes no sense.
    #[error("price_per_hour must be a number of at least 0, such as 1.25")]
    Price,
    /// A number makes no sense.
    #[error("{name} must be at least {least}")]
    TooSmall {
        /// Which.
        name: &'static str,
        /// The least that would do.
        least: u32,
    },
}

/// Whether a variable of the environment is meant as a setting.
fn is_setting(name: &str) -> bool {
    let key = name.strip_prefix("PERCEPT_");
    // The last two are Kubernetes' description of services whose names begin with this one.
    key.is_some_and(|key| key != "CONFIG" && !key.contains("SERVICE_") && !key.contains("PORT_"))
}

impl Settings {
    /// These settings where they are given, else those of the environment, else those of a file: `file`, or the one
    /// that `PERCEPT_CONFIG` names, or `percept/config.toml` in the user's configuration folder if there is one.
    ///
    /// # Errors
    /// When a key is unknown or a value is wrong.
    pub fn complete(self, file: Option<&Path>) -> Result<Self, ConfigError> {
        let mut table = read_file(file)?;
        table.extend(read_environment(env::vars_os())?);
        let typed = |error: toml::ser::Error| ConfigError::Typed { reason: error.to_string() };
        table.extend(Table::try_from(&self).map_err(typed)?);
        Ok(table.try_into().expect("every part was read before"))
    }

    /// How the hub is used.
    pub fn hub(&self) -> HubConfig {
        let hub = HubConfig::from_environment();
        HubConfig { offline: self.offline.unwrap_or(hub.offline), ..hub }
    }

    /// The configuration that these settings mean.
    ///
    /// # Errors
    /// When no model is given, names contradict each other, or a number makes no sense.
    pub fn resolve(&self) -> Result<ServerConfig, ConfigError> {
        let models = self.models()?;
        let names: Vec<String> = models.iter().map(|model| model.name.clone()).collect();
        let aliases = self.alias.iter().map(|alias| alias.parse()).collect::<Result<Vec<Alias>, _>>()?;
        let hosted = if self.hosted_names.unwrap_or(true) { HOSTED } else { &[] };
        let host = self.host.as_ref().map_or(IpAddr::from([127, 0, 0, 1]), |host| host.value.0);
        Ok(ServerConfig {
            models,
            aliases: Aliases::new(&names, &aliases, hosted)?,
            hub: self.hub(),
            device: self.device.as_ref().map_or(DeviceChoice::Auto, |device| device.value),
            budget: self.memory.as_ref().map(|budget| budget.value),
            api: self.api(host)?,
            operations: self.operations()?,
            store: self.store()?,
            insecure_no_keys: self.insecure_no_keys.unwrap_or(false),
            address: (host, self.port.unwrap_or(8000)).into(),
            drain: Duration::from_secs(self.drain_seconds.unwrap_or(30).into()),
        })
    }

    /// All models. What is set for models is set for each of them.
    fn models(&self) -> Result<Vec<ModelConfig>, ConfigError> {
        let mut given = self.model.iter().map(|text| Given::parse(text)).collect::<Result<Vec<_>, _>>()?;
        if given.is_empty() {
            given = Demo::ALL.map(|demo| Given { name: None, source: Source::Embedded(demo) }).into();
        }
        match (&self.name, &given[..]) {
            (None, _) | (Some(_), [Given { name: None, .. }]) => {}
            (Some(name), _) => return Err(ConfigError::NothingToName { name: name.clone() }),
        }
        let wanted = self.wanted()?;
        let step_rows = self.step_rows.map(|rows| at_least("step_rows", rows, 1)).transpose()?;
        let model = |Given { name, source }| ModelConfig {
            name: self.name.clone().or(name).unwrap_or_else(|| source.name()),
            source,
            dtype: self.dtype.map(|dtype| match dtype {
                Dtype::F32 => DType::F32,
                Dtype::Bf16 => DType::BF16,
            }),
            fit: self.image_fit.map(|fit| match fit {
                ImageFit::Crop => Fit::Crop,
                ImageFit::Pad => Fit::Pad,
                ImageFit::Stretch => Fit::Stretch,
            }),
            template: self.chat_template.clone(),
            step_rows,
            wanted,
            dummy_weights: self.dummy_weights.unwrap_or(false),
            parallel_from: f64::from(self.parallel_from.unwrap_or(PARALLEL_FROM)),
        };
        Ok(given.into_iter().map(model).collect())
    }

    fn wanted(&self) -> Result<Wanted, ConfigError> {
        Ok(Wanted {
            context: self.max_context.map(|most| at_least("max_context", most, 2)).transpose()?,
            sequences: count("max_sequences", self.max_sequences, 64)?,
            queue: count("max_queue", self.max_queue, 256)?,
            page_size: count("page_size", self.page_size, 16)?,
        })
    }

    fn operations(&self) -> Result<OperationsConfig, ConfigError> {
        let price = |per_hour: f64| match per_hour {
            0.0..=1e9 => {
                Ok(Price { per_hour, currency: self.currency.clone().unwrap_or_else(|| "EUR".to_owned()) })
            }
            _ => Err(ConfigError::Price),
        };
        Ok(OperationsConfig {
            keys: self.keys.clone(),
            audit: self.audit.clone(),
            audit_months: self.audit_months,
            price: self.price_per_hour.map(price).transpose()?,
            collector: self.otlp.clone().map(collector).transpose()?,
            content: self.content_log.clone().map(|folder| ContentConfig {
                folder,
                days: self.content_days.unwrap_or(30),
                redact: self.redact.clone(),
            }),
        })
    }

    /// Names that the server may be called by, where that is bounded.
    fn hosts(&self, address: IpAddr) -> Result<Option<Vec<String>>, ConfigError> {
        let wrong = |name: &&String| name.is_empty() || name.contains(['/', ':', '@', ' ']);
        if let Some(name) = self.allowed_host.iter().find(wrong) {
            return Err(ConfigError::HostName { name: name.clone() });
        }
        let bounded = address.is_loopback() || !self.allowed_host.is_empty();
        Ok(bounded.then(|| self.allowed_host.clone()))
    }

    fn cors(&self) -> Result<Vec<String>, ConfigError> {
        let is_origin = |origin: &str| {
            let name = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
            name.is_some_and(|name| {
                !name.is_empty() && !name.contains(['/', '*', '@', ' ', ',']) && name.is_ascii()
            })
        };
        match self.cors_origin.iter().find(|origin| !is_origin(origin)) {
            Some(origin) => Err(ConfigError::Origin { origin: origin.clone() }),
            None => Ok(self.cors_origin.clone()),
        }
    }

    fn store(&self) -> Result<Option<StoreConfig>, ConfigError> {
        let bucket = self.files_bucket.as_ref().map(|bucket| bucket.value.clone());
        match &self.files {
            Some(folder) => Ok(Some(StoreConfig { folder: folder.clone(), bucket })),
            None if bucket.is_some() => Err(ConfigError::BucketAlone),
            None => Ok(None),
        }
    }

    fn api(&self, address: IpAddr) -> Result<ApiConfig, ConfigError> {
        let size = |size: &Option<Text<Size>>, default: u64| {
            size.as_ref().map_or(default, |size| size.value.0) as usize
        };
        Ok(ApiConfig {
            body_bytes: size(&self.max_body, 64_000_000),
            media: MediaLimits {
                images: self.max_images.unwrap_or(16) as usize,
                image_bytes: size(&self.max_image_bytes, 20_000_000),
                image_edge: count("max_image_edge", self.max_image_edge, 16_384)?,
                image_pixels: count("max_image_pixels", self.max_image_pixels, 40_000_000)?,
                video_frames: self.max_video_frames.unwrap_or(128) as usize,
                request_pixels: count("max_request_pixels", self.max_request_pixels, 100_000_000)?,
                document: DocumentLimits {
                    bytes: size(&self.max_document_bytes, 32_000_000),
                    pages: self.max_document_pages.unwrap_or(100) as usize,
                    time: Duration::from_secs(
                        count("max_document_seconds", self.max_document_seconds, 60)? as u64
                    ),
                },
            },
            // Itself, also where its file was replaced since it began.
            program: PathBuf::from("/proc/self/exe"),
            fetch: self.fetch.as_ref().map(|fetch| fetch.value.clone()).unwrap_or_default(),
            media_memory: size(&self.image_memory, 2 << 30),
            sound: SoundConfig {
                file_bytes: match size(&self.max_audio_bytes, 1 << 30) {
                    0 => return Err(ConfigError::TooSmall { name: "max_audio_bytes", least: 1 }),
                    bytes => bytes,
                },
                limits: SoundLimits {
                    seconds: count("max_audio_seconds", self.max_audio_seconds, 4 * 3600)? as f64,
                    memory_samples: SAMPLES_IN_MEMORY,
                    channels: MOST_SPEAKERS,
                },
                ffmpeg: self.ffmpeg.clone(),
            },
            file_bytes: size(&self.max_file_bytes, 512_000_000),
            batch_lines: count("batch_requests", self.batch_requests, 16)?,
            realtime: RealtimeLimits {
                sessions: count("max_realtime_sessions", self.max_realtime_sessions, 8)?,
                longest: Duration::from_secs(
                    count("max_realtime_seconds", self.max_realtime_seconds, 3600)? as u64
                ),
                idle: Duration::from_secs(
                    count("realtime_idle_seconds", self.realtime_idle_seconds, 300)? as u64
                ),
            },
            strict: self.strict_params.unwrap_or(false),
            ui: !self.no_ui.unwrap_or(false),
            hosts: self.hosts(address)?,
            cors: self.cors()?,
            names: if self.vllm_metrics.unwrap_or(false) { Names::OwnAndVllm } else { Names::Own },
            connections: Connections {
                most: count("max_connections", self.max_connections, 1024)?,
                head: Duration::from_secs(count("head_seconds", self.head_seconds, 10)? as u64),
                idle: Duration::from_secs(count("idle_seconds", self.idle_seconds, 75)? as u64),
                stalled: Duration::from_secs(count("stalled_seconds", self.stalled_seconds, 60)? as u64),
            },
        })
    }
}

fn collector(url: String) -> Result<String, ConfigError> {
    let parsed = url::Url::parse(&url).ok().filter(|url| ["http", "https"].contains(&url.scheme()));
    match parsed {
        Some(parsed) if parsed.has_host() => Ok(url),
        _ => Err(ConfigError::Collector { url }),
    }
}

fn at_least(name: &'static str, found: u32, least: u32) -> Result<usize, ConfigError> {
    if found < least { Err(ConfigError::TooSmall { name, least }) } else { Ok(found as usize) }
}

fn count(name: &'static str, found: Option<u32>, default: u32) -> Result<usize, ConfigError> {
    at_least(name, found.unwrap_or(default), 1)
}

/// A model as it is given: `PATH_OR_HUB_ID` or `NAME=PATH_OR_HUB_ID`.
struct Given {
    name: Option<String>,
    source: Source,
}

impl Given {
    fn parse(text: &str) -> Result<Self, HubError> {
        match text.split_once('=') {
            // A folder's name may have the sign.
            Some((name, source)) if !Path::new(text).is_dir() => {
                Ok(Self { name: Some(name.to_owned()), source: Source::parse(source)? })
            }
            _ => Ok(Self { name: None, source: Source::parse(text)? }),
        }
    }
}

fn read_file(file: Option<&Path>) -> Result<Table, ConfigError> {
    let named = file.map(Path::to_owned).or_else(|| env::var_os("PERCEPT_CONFIG").map(PathBuf::from));
    let usual = || {
        let folder = env::var_os("XDG_CONFIG_HOME").map(PathBuf::from);
        let folder = folder.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".config")))?;
        Some(folder.join("percept/config.toml")).filter(|file| file.is_file())
    };
    let Some(file) = named.or_else(usual) else { return Ok(Table::new()) };
    let failed = |reason: String| ConfigError::File { file: file.clone(), reason };
    let text = fs::read_to_string(&file).map_err(|error| failed(error.to_string()))?;
    // Read twice: as settings, because those errors name the line, and as a table, to be merged.
    toml::from_str::<Settings>(&text).map_err(|error| failed(format!("\n{error}")))?;
    text.parse().map_err(|error: toml::de::Error| failed(error.to_string()))
}

fn read_environment(variables: impl Iterator<Item = (OsString, OsString)>) -> Result<Table, ConfigError> {
    let mut table = Table::new();
    for (name, text) in variables {
        let Some(name) = name.into_string().ok().filter(|name| is_setting(name)) else { continue };
        let text = text.into_string().map_err(|_| ConfigError::Environment {
            name: name.clone(),
            reason: "its value is not text".into(),
        })?;
        // Kubernetes describes a service of this name to its neighbours: PERCEPT_PORT=tcp://10.0.0.1:8000.
        if text.starts_with("tcp://") || text.starts_with("udp://") {
            continue;
        }
        let key = name["PERCEPT_".len()..].to_ascii_lowercase();
        let value = reading(&key, &text).map_err(|reason| ConfigError::Environment { name, reason })?;
        table.insert(key, value);
    }
    Ok(table)
}

/// A variable is text. Which reading of it is meant, the setting of this name says.
fn reading(key: &str, text: &str) -> Result<Value, String> {
    let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
    let list = Value::Array(items.map(|item| Value::String(item.into())).collect());
    let number = text.parse().map(Value::Integer).or_else(|_| text.parse().map(Value::Boolean));
    let switch = match text {
        "1" => Some(Value::Boolean(true)),
        "0" => Some(Value::Boolean(false)),
        _ => None,
    };
    let check = |value: Value| {
        let single = Table::from_iter([(key.to_owned(), value.clone())]);
        single.try_into::<Settings>().map(|_| value).map_err(|error| error.message().to_owned())
    };
    // Where a list is meant, text would do as its only element.
    check(list).or_else(|_| check(Value::String(text.to_owned()))).or_else(|reason| {
        let others = [number.ok(), switch].into_iter().flatten();
        others.into_iter().find_map(|value| check(value).ok()).ok_or(reason)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::router::Kind;

    fn environment(variables: &[(&str, &str)]) -> Result<Table, ConfigError> {
        read_environment(variables.iter().map(|(name, text)| ((*name).into(), (*text).into())))
    }

    #[test]
    fn variables_are_read_as_their_setting_wants() {
        let table = environment(&[
            ("PERCEPT_PORT", "9000"),
            ("PERCEPT_NAME", "123"),
            ("PERCEPT_ALIAS", "gpt-4o, gpt-4"),
            ("PERCEPT_MEMORY", "0.25"),
            ("PERCEPT_OFFLINE", "true"),
            ("PERCEPT_MAX_IMAGE_BYTES", "1MiB"),
            ("PERCEPT_CONFIG", "elsewhere"),
            ("PERCEPT_STRICT_PARAMS", "1"),
            ("PERCEPT_SERVICE_HOST", "10.0.0.1"),
            ("PERCEPT_PORT_8000_TCP", "tcp://10.0.0.1:8000"),
            ("PERCEPT_VLM_SERVICE_PORT", "8000"),
            ("PERCEPT_VLM_PORT", "tcp://10.0.0.1:8000"),
            ("PERCEPT_VLM_PORT_8000_TCP_PROTO", "tcp"),
            ("PERCEPT_HOST", "localhost"),
            ("PATH", "/bin"),
        ]);
        let settings: Settings = table.unwrap().try_into().unwrap();
        assert_eq!(settings.port, Some(9000));
        assert_eq!(settings.name.as_deref(), Some("123"));
        assert_eq!(settings.alias, ["gpt-4o", "gpt-4"]);
        assert_eq!(settings.memory.unwrap().value, Budget::Share(0.25));
        assert_eq!(settings.offline, Some(true));
        assert_eq!(settings.strict_params, Some(true));
        assert!(settings.host.unwrap().value.0.is_loopback());
        let alone = environment(&[("PERCEPT_PORT", "tcp://10.0.0.1:8000"), ("PERCEPT_ALIAS", "")]).unwrap();
        let alone: Settings = alone.try_into().unwrap();
        assert_eq!((alone.port, alone.alias.len()), (None, 0));
        assert_eq!(settings.max_image_bytes.unwrap().value, Size(1 << 20));
    }

    /// Names and places of the models that settings mean.
    fn models_of(settings: &Settings) -> Result<Vec<(String, Source)>, String> {
        let config = settings.resolve().map_err(|error| error.to_string())?;
        Ok(config.models.into_iter().map(|model| (model.name, model.source)).collect())
    }

    #[test]
    fn models_come_from_a_file_the_environment_or_flags() {
        let file = |text: &str| toml::from_str::<Settings>(text).unwrap().model;
        assert_eq!(file("model = \"a/b\""), ["a/b"]);
        assert_eq!(file("model = [\"a/b\", \"x=c/d\"]"), ["a/b", "x=c/d"]);
        assert_eq!(toml::from_str::<Settings>("alias = \"x\"").unwrap().alias, ["x"]);
        let error = toml::from_str::<Settings>("model = 3").unwrap_err().to_string();
        assert!(error.contains("a string or a list of strings"), "{error}");

        let mut table: Table = "model = [\"a/b\", \"c/d\"]".parse().unwrap();
        table.extend(environment(&[("PERCEPT_MODEL", "e/f, x=g/h"), ("PERCEPT_HOSTED_NAMES", "0")]).unwrap());
        let settings: Settings = table.clone().try_into().unwrap();
        assert_eq!(settings.model, ["e/f", "x=g/h"]);
        assert_eq!(settings.hosted_names, Some(false));
        let typed = Settings { model: vec!["i/j".into()], ..Settings::default() };
        table.extend(Table::try_from(&typed).unwrap());
        assert_eq!(table.try_into::<Settings>().unwrap().model, ["i/j"]);
    }

    #[test]
    fn models_have_names_of_their_own() {
        let settings = |models: &[&str], name: Option<&str>| Settings {
            model: models.iter().map(|&model| model.to_owned()).collect(),
            name: name.map(str::to_owned),
            ..Settings::default()
        };
        let named = |models: &[&str], name| {
            let models = models_of(&settings(models, name))?;
            Ok::<_, String>(models.into_iter().map(|(name, _)| name).collect::<Vec<_>>())
        };
        assert_eq!(named(&["a/b", "x=c/d@v1"], None).unwrap(), ["a/b", "x"]);
        assert_eq!(named(&["a/b"], Some("x")).unwrap(), ["x"]);
        assert_eq!(named(&[], None).unwrap(), ["percept-demo-vlm", "percept-demo-whisper"]);
        assert_eq!(named(&["x=percept-demo-vlm"], None).unwrap(), ["x"]);
        assert_eq!(named(&["x=a/b", "y=a/b"], None).unwrap(), ["x", "y"]);
        let folder = tempfile::Builder::new().prefix("x=").tempdir().unwrap();
        let path = folder.path().to_str().unwrap();
        let found = models_of(&settings(&[path], None)).unwrap();
        assert_eq!(found[0].1, Source::Folder(path.into()), "a folder whose name has the sign");
        assert!(found[0].0.starts_with("x="));
        for (models, name, expected) in [
            (vec![], Some("x"), "name x is for one model"),
            (vec!["a/b", "a/b@v2"], None, "two models are named a/b"),
            (vec!["a/b", "c/d"], Some("x"), "write NAME=PATH_OR_HUB_ID for each"),
            (vec!["y=a/b"], Some("x"), "name x is for one model"),
            (vec!["=a/b"], None, "is empty"),
            (vec!["a/b", "x=nowhere"], None, "nowhere is neither a folder nor a hub id"),
        ] {
            let error = named(&models, name).unwrap_err();
            assert!(error.contains(expected), "{models:?}: {error}");
        }
        let aliases = |aliases: &[&str], hosted_names| {
            let alias = aliases.iter().map(|&alias| alias.to_owned()).collect();
            let settings = Settings { alias, hosted_names, ..settings(&["a/b", "x=c/d"], None) };
            settings.resolve().map(|config| config.aliases.of(&[Kind::Chat, Kind::Speech]))
        };
        assert_eq!(aliases(&["y=x", "z"], Some(false)).unwrap(), [["z"], ["y"]]);
        assert!(aliases(&[], None).unwrap()[1].contains(&"whisper-1".to_owned()));
        assert!(aliases(&["x=a/b"], None).is_err());
    }

    #[test]
    fn unknown_names_and_wrong_values_are_errors() {
        let error = environment(&[("PERCEPT_PROT", "9000")]).unwrap_err().to_string();
        assert!(error.contains("PERCEPT_PROT") && error.contains("port"), "{error}");
        let error = environment(&[("PERCEPT_PORT", "many")]).unwrap_err().to_string();
        assert!(error.contains("PERCEPT_PORT"), "{error}");
        let error = toml::from_str::<Settings>("prot = 1").unwrap_err().to_string();
        assert!(error.contains("prot"), "{error}");
        let error = toml::from_str::<Settings>("memory = true").unwrap_err().to_string();
        assert!(error.contains("neither a number nor a string"), "{error}");
    }

    #[test]
    fn flags_come_before_the_environment_and_that_before_the_file() {
        let mut table: Table = "port = 1\nname = \"file\"\nmax_queue = 7".parse().unwrap();
        table.extend(environment(&[("PERCEPT_PORT", "2"), ("PERCEPT_NAME", "env")]).unwrap());
        table.extend(Table::try_from(Settings { port: Some(3), ..Settings::default() }).unwrap());
        let settings: Settings = table.try_into().unwrap();
        assert_eq!(
            (settings.port, settings.name.as_deref(), settings.max_queue),
            (Some(3), Some("env"), Some(7))
        );
    }
}
