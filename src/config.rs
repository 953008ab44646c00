//! Settings as typed, from a file and from the environment, become one configuration that is true.

use std::{
    env,
    ffi::OsString,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use candle_core::DType;
use clap::{Args, ValueEnum};
use percept_models::Fit;
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use toml::{Table, Value};

use crate::{
    api::ApiConfig,
    hub::{HubConfig, HubError, Source},
    media::MediaLimits,
    memory::{Budget, Wanted, parse_bytes},
    server::{ModelConfig, ServerConfig},
};

/// Every setting, each of them optional. The names are those of the configuration file; a flag writes `-` for `_`,
/// the environment writes them in capitals behind `PERCEPT_`.
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// A checkpoint folder, or a hub id such as llava-hf/llava-1.5-7b-hf or owner/name@revision
    #[arg(value_name = "PATH_OR_HUB_ID")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,

    /// The name that requests use; otherwise the hub id or the folder's name
    #[arg(long, value_name = "NAME", help_heading = "Model")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Another name for it, such as gpt-4o; may be repeated
    #[arg(long, value_name = "NAME", help_heading = "Model")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub alias: Vec<String>,
    /// The type of weights and activations [default: f32]
    #[arg(long, value_name = "TYPE", help_heading = "Model")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dtype: Option<Dtype>,
    /// How pictures become square [default: as the checkpoint says]
    #[arg(long, value_name = "HOW", help_heading = "Model")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_fit: Option<ImageFit>,
    /// A chat template to use instead of the checkpoint's own
    #[arg(long, value_name = "FILE", help_heading = "Model")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chat_template: Option<PathBuf>,
    /// Take checkpoints from the cache only, and never from the hub
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", help_heading = "Model")]
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
    /// Seconds that running answers have to end when the server is stopped [default: 30]
    #[arg(long, value_name = "SECONDS", help_heading = "Server")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain_seconds: Option<u32>,
    /// What to log: error, warn, info, debug, trace, or per module as in percept::engine=debug [default: info]
    #[arg(long, value_name = "FILTER", help_heading = "Server")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<String>,
    /// How to log [default: human]
    #[arg(long, value_name = "FORMAT", help_heading = "Server")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_format: Option<LogFormat>,

    /// Memory for weights and caches: a share of what is free, such as 0.8, or a size, such as 20GiB [default: 0.5]
    #[arg(long, value_name = "SHARE_OR_SIZE", help_heading = "Memory and batching")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Text<Budget>>,
    /// Most tokens of prompt and answer together [default: the model's own limit]
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
    /// Most rows (tokens) of one step [default: 512]
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
    /// Most pictures of a request [default: 16]
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
    /// Most pixels of all pictures of a request [default: 100000000]
    #[arg(long, value_name = "PIXELS", help_heading = "Limits of a request")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_request_pixels: Option<u32>,
    /// Memory for decoded pictures of all requests that wait [default: 2GiB]
    #[arg(long, value_name = "SIZE", help_heading = "Limits of a request")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_memory: Option<Text<Size>>,
}

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
    /// No model was named.
    #[error(
        "no model given: percept serve PATH_OR_HUB_ID, for example percept serve llava-hf/llava-1.5-7b-hf"
    )]
    NoModel,
    /// The model's name means nothing.
    #[error(transparent)]
    Model(#[from] HubError),
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
    /// When no model is given, or a number makes no sense.
    pub fn resolve(&self) -> Result<ServerConfig, ConfigError> {
        let model = self.model.as_deref().ok_or(ConfigError::NoModel)?;
        let source = Source::parse(model)?;
        let name = self.name.clone().unwrap_or_else(|| source.name());
        let size = |size: &Option<Text<Size>>, default: u64| {
            size.as_ref().map_or(default, |size| size.value.0) as usize
        };
        let host = self.host.as_ref().map_or(IpAddr::from([127, 0, 0, 1]), |host| host.value.0);
        let at_least = |name: &'static str, found: u32, least: u32| {
            if found < least { Err(ConfigError::TooSmall { name, least }) } else { Ok(found as usize) }
        };
        let count = |name, found: Option<u32>, default| at_least(name, found.unwrap_or(default), 1);
        Ok(ServerConfig {
            model: ModelConfig {
                source,
                name,
                aliases: self.alias.clone(),
                dtype: match self.dtype.unwrap_or(Dtype::F32) {
                    Dtype::F32 => DType::F32,
                    Dtype::Bf16 => DType::BF16,
                },
                fit: self.image_fit.map(|fit| match fit {
                    ImageFit::Crop => Fit::Crop,
                    ImageFit::Pad => Fit::Pad,
                    ImageFit::Stretch => Fit::Stretch,
                }),
                template: self.chat_template.clone(),
                hub: self.hub(),
                budget: self.memory.as_ref().map_or(Budget::Share(0.5), |budget| budget.value),
                wanted: Wanted {
                    context: self.max_context.map(|most| at_least("max_context", most, 2)).transpose()?,
                    sequences: count("max_sequences", self.max_sequences, 64)?,
                    rows: count("step_rows", self.step_rows, 512)?,
                    queue: count("max_queue", self.max_queue, 256)?,
                    page_size: count("page_size", self.page_size, 16)?,
                },
            },
            api: ApiConfig {
                body_bytes: size(&self.max_body, 64_000_000),
                media: MediaLimits {
                    images: self.max_images.unwrap_or(16) as usize,
                    image_bytes: size(&self.max_image_bytes, 20_000_000),
                    image_edge: count("max_image_edge", self.max_image_edge, 16_384)?,
                    image_pixels: count("max_image_pixels", self.max_image_pixels, 40_000_000)?,
                    request_pixels: count("max_request_pixels", self.max_request_pixels, 100_000_000)?,
                },
                media_memory: size(&self.image_memory, 2 << 30),
                strict: self.strict_params.unwrap_or(false),
            },
            address: (host, self.port.unwrap_or(8000)).into(),
            drain: Duration::from_secs(self.drain_seconds.unwrap_or(30).into()),
        })
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
        // A variable is text. Which reading is meant, the setting says.
        let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
        let list = || Value::Array(items.map(|item| Value::String(item.into())).collect());
        let number = text.parse().map(Value::Integer).or_else(|_| text.parse().map(Value::Boolean));
        let switch = match text.as_str() {
            "1" => Some(Value::Boolean(true)),
            "0" => Some(Value::Boolean(false)),
            _ => None,
        };
        let readings = [Some(Value::String(text.clone())), number.ok(), switch, Some(list())];
        let mut reason = String::new();
        let fits = readings.into_iter().flatten().find(|reading| {
            let single = Table::from_iter([(key.clone(), reading.clone())]);
            let result = single.try_into::<Settings>();
            if let Err(error) = &result
                && reason.is_empty()
            {
                reason = error.message().to_owned();
            }
            result.is_ok()
        });
        match fits {
            Some(reading) => drop(table.insert(key, reading)),
            None => return Err(ConfigError::Environment { name, reason }),
        }
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;

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
