//! The file of keys: tenants with what they may do, and hashes of their secrets. The secrets themselves are nowhere.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    io::{self, Write as _},
    num::{NonZeroU32, NonZeroU64},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use clap::{Args, ValueEnum};
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::request::Priority;

/// How secrets begin, so that people and programs that search for lost ones know them.
pub const KEY_PREFIX: &str = "sk-percept-";
/// Bits of a secret are 8 times as many.
const SECRET_BYTES: usize = 32;
/// Most bytes of the file.
const MOST_BYTES: u64 = 16 << 20;

/// Parts of the API that a tenant may be allowed or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Area {
    /// Conversations
    Chat,
    /// Recordings
    Audio,
    /// Vectors of texts and pictures
    Embeddings,
    /// Files and batches
    Files,
    /// The list of models, and what the API is
    Models,
    /// What the tenant itself has used
    Usage,
    /// The server's figures, for Prometheus
    Metrics,
    /// What every tenant has used
    Admin,
}

impl Area {
    /// What is allowed where nothing is said: all that is the tenant's own.
    const USUAL: [Self; 6] =
        [Self::Chat, Self::Audio, Self::Embeddings, Self::Files, Self::Models, Self::Usage];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Audio => "audio",
            Self::Embeddings => "embeddings",
            Self::Files => "files",
            Self::Models => "models",
            Self::Usage => "usage",
            Self::Metrics => "metrics",
            Self::Admin => "admin",
        }
    }
}

/// What a tenant may do; what is not said is not bounded.
#[derive(Debug, Clone, Default, PartialEq, Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Terms {
    /// Models that the tenant may use, by name or alias, with commas in between [default: all]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub models: Option<Vec<String>>,
    /// Parts of the API that the tenant may use [default: chat,audio,embeddings,files,models,usage]
    #[arg(long, value_name = "AREAS", value_delimiter = ',')]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoints: Option<Vec<Area>>,
    /// How soon the tenant's requests are computed, beside those of others [default: normal]
    #[arg(long, value_name = "PRIORITY")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<Priority>,
    /// Requests for answers, transcripts or vectors in a minute
    #[arg(long, value_name = "COUNT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_per_minute: Option<NonZeroU32>,
    /// Tokens of prompts and answers in a minute
    #[arg(long, value_name = "COUNT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_minute: Option<NonZeroU32>,
    /// Pictures and frames in a minute
    #[arg(long, value_name = "COUNT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub images_per_minute: Option<NonZeroU32>,
    /// Seconds of recordings in a minute
    #[arg(long, value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audio_seconds_per_minute: Option<NonZeroU32>,
    /// Minutes of recordings in a day (UTC)
    #[arg(long, value_name = "MINUTES")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audio_minutes_per_day: Option<NonZeroU32>,
    /// Tokens of prompts and answers in a calendar month (UTC)
    #[arg(long, value_name = "COUNT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_month: Option<NonZeroU64>,
    /// Whether the tenant agrees that what it asks and is answered is written down, where the server has a --content-log
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_content: Option<bool>,
    /// Bytes of files that are kept for the tenant
    #[arg(long, value_name = "BYTES")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file_bytes: Option<NonZeroU64>,
    /// Money in a calendar month (UTC), by the server's --price-per-hour
    #[arg(long, value_name = "AMOUNT", value_parser = amount)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub money_per_month: Option<f64>,
}

fn amount(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|amount| is_amount(*amount)).ok_or_else(|| "it is no amount above 0".into())
}

fn is_amount(amount: f64) -> bool {
    amount.is_finite() && amount > 0.0
}

impl Terms {
    /// Whether a part of the API is allowed.
    pub fn allows(&self, area: Area) -> bool {
        match &self.endpoints {
            Some(areas) => areas.contains(&area),
            None => Area::USUAL.contains(&area),
        }
    }

    /// Whether a model may be used by one of its names: `name`, or another name of the model `id`.
    pub fn allows_model(&self, id: &str, name: &str) -> bool {
        self.models.as_ref().is_none_or(|models| models.iter().any(|model| model == id || model == name))
    }

    /// Whether usage is bounded by day or month.
    pub fn has_budget(&self) -> bool {
        self.tokens_per_month.is_some()
            || self.money_per_month.is_some()
            || self.audio_minutes_per_day.is_some()
    }

    /// These terms, with what is said in others instead.
    pub fn with(self, other: Self) -> Self {
        Self {
            models: other.models.or(self.models),
            endpoints: other.endpoints.or(self.endpoints),
            priority: other.priority.or(self.priority),
            requests_per_minute: other.requests_per_minute.or(self.requests_per_minute),
            tokens_per_minute: other.tokens_per_minute.or(self.tokens_per_minute),
            images_per_minute: other.images_per_minute.or(self.images_per_minute),
            audio_seconds_per_minute: other.audio_seconds_per_minute.or(self.audio_seconds_per_minute),
            audio_minutes_per_day: other.audio_minutes_per_day.or(self.audio_minutes_per_day),
            tokens_per_month: other.tokens_per_month.or(self.tokens_per_month),
            log_content: other.log_content.or(self.log_content),
            file_bytes: other.file_bytes.or(self.file_bytes),
            money_per_month: other.money_per_month.or(self.money_per_month),
        }
    }
}

/// A new secret: so many random bits that nobody finds it, behind a prefix that tells what it is.
///
/// # Errors
/// When there is no randomness.
pub fn random_secret(prefix: &str) -> Result<String, getrandom::Error> {
    let mut bytes = [0; SECRET_BYTES];
    getrandom::fill(&mut bytes)?;
    Ok(format!("{prefix}{}", hex(&bytes)))
}

/// The hash of a secret; of a random one of 256 bits, so that nobody finds the secret by it.
#[derive(Clone)]
pub struct Secret([u8; 32]);

impl Secret {
    /// Of a text.
    pub fn new(text: &str) -> Self {
        Self(Sha256::digest(text.as_bytes()).into())
    }

    /// All of it.
    pub fn bytes(&self) -> [u8; 32] {
        self.0
    }

    /// Its first bytes, by which it is looked up.
    pub fn start(&self) -> [u8; 8] {
        let mut start = [0; 8];
        start.copy_from_slice(&self.0[..8]);
        start
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret(…)")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex(&self.0))
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let wrong = || D::Error::custom("a SHA-256 hash has 64 hexadecimal digits");
        if text.len() != 64 || !text.is_ascii() {
            return Err(wrong());
        }
        let mut hash = [0; 32];
        for (index, byte) in hash.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).map_err(|_| wrong())?;
        }
        Ok(Self(hash))
    }
}

/// Bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // A string takes everything.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A key of a tenant.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// Its public name.
    pub id: String,
    /// Whose it is.
    pub tenant: String,
    /// Of its secret.
    #[serde(rename = "sha256")]
    pub hash: Secret,
    /// When it was made.
    pub created: Timestamp,
    /// When it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
}

impl Key {
    /// Whether it has ended.
    pub fn is_expired(&self) -> bool {
        self.expires.is_some_and(|expires| expires <= Timestamp::now())
    }
}

/// All that the file has.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KeyFile {
    /// By name.
    pub tenants: BTreeMap<String, Terms>,
    /// Of all tenants.
    pub keys: Vec<Key>,
}

/// Why a file of keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// It cannot be read or written.
    #[error("{}: {error}", file.display())]
    Io {
        /// Which.
        file: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It means nothing.
    #[error("{}: {reason}", file.display())]
    Content {
        /// Which.
        file: PathBuf,
        /// Why.
        reason: String,
    },
    /// Everyone could let themselves in.
    #[error("{}: anyone on this machine may write it: chmod 600 it", file.display())]
    Writable {
        /// Which.
        file: PathBuf,
    },
    /// A name that cannot be one.
    #[error("{name:?} is no name of a tenant: letters, digits, '.', '_' and '-', at most 64")]
    Name {
        /// Which.
        name: String,
    },
    /// There is no such key.
    #[error("there is no key {id}; percept keys list shows them")]
    NoKey {
        /// Which.
        id: String,
    },
    /// The operating system has no random numbers.
    #[error("no random numbers: {0}")]
    Random(getrandom::Error),
}

impl KeyFile {
    /// Reads a file.
    ///
    /// # Errors
    /// When it is not there, means nothing, or could have been written by anyone.
    pub fn read(file: &Path) -> Result<Self, KeysError> {
        let io = |error| KeysError::Io { file: file.to_owned(), error };
        let data = fs::metadata(file).map_err(io)?;
        if data.permissions().mode() & 0o002 != 0 {
            return Err(KeysError::Writable { file: file.to_owned() });
        }
        let content = |reason: String| KeysError::Content { file: file.to_owned(), reason };
        if data.len() > MOST_BYTES {
            return Err(content(format!("it has {} bytes; the limit is {MOST_BYTES}", data.len())));
        }
        let text = fs::read_to_string(file).map_err(io)?;
        let keys: Self = toml::from_str(&text).map_err(|error| content(format!("\n{error}")))?;
        keys.check().map_err(content)?;
        Ok(keys)
    }

    fn check(&self) -> Result<(), String> {
        for (name, terms) in &self.tenants {
            check_name(name).map_err(|error| error.to_string())?;
            if terms.money_per_month.is_some_and(|amount| !is_amount(amount)) {
                return Err(format!("money_per_month of {name} is no amount above 0"));
            }
        }
        let mut ids = BTreeSet::new();
        for key in &self.keys {
            if !self.tenants.contains_key(&key.tenant) {
                return Err(format!("key {} is of {}, which is no tenant", key.id, key.tenant));
            }
            if !ids.insert(&key.id) {
                return Err(format!("two keys are called {}", key.id));
            }
        }
        Ok(())
    }

    /// Makes a key for a tenant, whose terms become `terms` where those say something; its secret, which is kept
    /// nowhere, and its public name.
    ///
    /// # Errors
    /// When the name cannot be one, or there is no randomness.
    pub fn add(
        &mut self,
        tenant: &str,
        terms: Terms,
        expires: Option<Timestamp>,
    ) -> Result<(String, String), KeysError> {
        check_name(tenant)?;
        let secret = random_secret(KEY_PREFIX).map_err(KeysError::Random)?;
        let hash = Secret::new(&secret);
        // Of the hash, so that it is another one for each key and tells nothing.
        let id = format!("key_{}", hex(&hash.start()));
        let before = self.tenants.remove(tenant).unwrap_or_default();
        self.tenants.insert(tenant.to_owned(), before.with(terms));
        self.keys.push(Key {
            id: id.clone(),
            tenant: tenant.to_owned(),
            hash,
            created: Timestamp::now(),
            expires,
        });
        Ok((secret, id))
    }

    /// Takes out the key of a name, or all keys of a tenant; how many there were.
    ///
    /// # Errors
    /// When there is none.
    pub fn revoke(&mut self, name: &str) -> Result<usize, KeysError> {
        let before = self.keys.len();
        self.keys.retain(|key| key.id != name && key.tenant != name);
        match before - self.keys.len() {
            0 => Err(KeysError::NoKey { id: name.to_owned() }),
            count => Ok(count),
        }
    }

    /// Changes a file, or makes one. Whoever reads it meanwhile finds all of it, as it was or as it is; of two who change
    /// it one waits for the other.
    ///
    /// # Errors
    /// When it cannot be read or written, or `change` fails.
    pub fn change<T>(
        file: &Path,
        change: impl FnOnce(&mut Self) -> Result<T, KeysError>,
    ) -> Result<T, KeysError> {
        let io = |error| KeysError::Io { file: file.to_owned(), error };
        let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut lock = file.as_os_str().to_owned();
        lock.push(".lock");
        let lock = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(lock)
            .map_err(io)?;
        lock.lock().map_err(io)?;
        let mut keys = if file.exists() { Self::read(file)? } else { Self::default() };
        let done = change(&mut keys)?;
        let text = toml::to_string_pretty(&keys)
            .map_err(|error| KeysError::Content { file: file.to_owned(), reason: error.to_string() })?;
        // Made with the mode 0600.
        let mut new = tempfile::NamedTempFile::new_in(folder).map_err(io)?;
        new.write_all(text.as_bytes()).map_err(io)?;
        new.as_file().sync_all().map_err(io)?;
        new.persist(file).map_err(|error| io(error.error))?;
        fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(io)?;
        Ok(done)
    }
}

fn check_name(name: &str) -> Result<(), KeysError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if name.is_empty() || name.len() > 64 || !name.bytes().all(plain) {
        return Err(KeysError::Name { name: name.to_owned() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_keys_is_what_was_added_and_has_no_secret() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("keys.toml");
        let terms = Terms { requests_per_minute: NonZeroU32::new(7), ..Terms::default() };
        let (secret, id) = KeyFile::change(&file, |keys| keys.add("acme", terms.clone(), None)).unwrap();
        assert!(secret.starts_with(KEY_PREFIX) && secret.len() == KEY_PREFIX.len() + 64);
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let text = fs::read_to_string(&file).unwrap();
        assert!(!text.contains(&secret[KEY_PREFIX.len()..]), "the secret is in the file");
        let read = KeyFile::read(&file).unwrap();
        assert_eq!(read.tenants["acme"], terms);
        assert!(read.keys[0].hash == Secret::new(&secret) && read.keys[0].id == id);
        // A second key keeps the terms, but for what is said anew.
        let more = Terms { tokens_per_minute: NonZeroU32::new(9), ..Terms::default() };
        KeyFile::change(&file, |keys| keys.add("acme", more, None)).unwrap();
        let read = KeyFile::read(&file).unwrap();
        let terms = &read.tenants["acme"];
        assert_eq!(
            (terms.requests_per_minute, terms.tokens_per_minute),
            (NonZeroU32::new(7), NonZeroU32::new(9))
        );
        assert_eq!(read.keys.len(), 2);
        assert_eq!(KeyFile::change(&file, |keys| keys.revoke(&id)).unwrap(), 1);
        assert!(KeyFile::change(&file, |keys| keys.revoke(&id)).is_err());
        assert_eq!(KeyFile::change(&file, |keys| keys.revoke("acme")).unwrap(), 1);
    }

    #[test]
    fn files_that_cannot_be_trusted_or_understood_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("keys.toml");
        let error = |text: &str| {
            fs::write(&file, text).unwrap();
            KeyFile::read(&file).unwrap_err().to_string()
        };
        for (text, expected) in [
            ("[tenants.a]\nrequests_per_hour = 1", "requests_per_hour"),
            ("[tenants.a]\nrequests_per_minute = 0", "nonzero"),
            ("[tenants.a]\nmoney_per_month = -1.0", "no amount above 0"),
            ("[tenants.a]\nmoney_per_month = nan", "no amount above 0"),
            ("[tenants.\"a b\"]", "no name of a tenant"),
            (
                "[[keys]]\nid = \"k\"\ntenant = \"a\"\nsha256 = \"00\"\ncreated = \"2026-01-01T00:00:00Z\"",
                "64 hexadecimal digits",
            ),
        ] {
            let error = error(text);
            assert!(error.contains(expected), "{text}: {error}");
        }
        fs::write(&file, "").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
        assert!(matches!(KeyFile::read(&file), Err(KeysError::Writable { .. })));
    }
}
