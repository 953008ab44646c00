//! Checkpoints: a folder, files of the Hugging Face hub in the cache that all its tools share, or one of the program's own.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use hf_hub::{
    Cache, Repo, RepoType,
    api::{
        Progress,
        sync::{Api, ApiBuilder, ApiError, ApiRepo},
    },
};
use percept_models::{Checkpoint, INDEX_FILE, SINGLE_FILE, shards_of_index};
use tracing::warn;

use crate::demo::Demo;

/// Small files of a checkpoint, those that it has.
const FILES: &[&str] = &[
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.json",
    "chat_template.jinja",
    // How sentence-transformers makes a vector of what an embedding model computes.
    "modules.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
];
const RETRIES: usize = 5;

/// Where a checkpoint is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// On this machine.
    Folder(PathBuf),
    /// On the hub.
    Hub(HubId),
    /// In the program.
    Embedded(Demo),
}

/// A repository of the hub, at a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubId {
    /// `owner/name`.
    pub repository: String,
    /// A branch, a tag or a commit.
    pub revision: String,
}

/// How the hub is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubConfig {
    /// Where files are kept.
    pub cache: PathBuf,
    /// Another hub than the public one.
    pub endpoint: Option<String>,
    /// For repositories that are gated or private.
    pub token: Option<String>,
    /// Use what is in the cache, and nothing else.
    pub offline: bool,
}

/// Why there is no checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// What was given is neither a folder nor an id.
    #[error("{0} is neither a folder nor a hub id such as llava-hf/llava-1.5-7b-hf or owner/name@revision")]
    NoSource(String),
    /// There is no such repository.
    #[error(
        "{0} is not on the hub, or you may not see it: check the name; if it is gated or private, set HF_TOKEN"
    )]
    NotFound(String),
    /// The token is missing or not enough.
    #[error("the hub refuses access to {0}: accept its terms on its page and set HF_TOKEN")]
    Forbidden(String),
    /// It is not in the cache.
    #[error("{id} is not in the cache {}: pull it while you are online", cache.display())]
    NotCached {
        /// What was asked for.
        id: String,
        /// Where it was looked for.
        cache: PathBuf,
    },
    /// The repository has no weights that percept reads.
    #[error("{0} has neither {SINGLE_FILE} nor {INDEX_FILE}: percept reads safetensors only")]
    NoWeights(String),
    /// A file of the cache.
    #[error("{}: {error}", file.display())]
    Io {
        /// Which.
        file: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The index of the weights is broken.
    #[error("{} is not an index: {error}", file.display())]
    Index {
        /// Which.
        file: PathBuf,
        /// Why.
        error: serde_json::Error,
    },
    /// The network or the hub.
    #[error("cannot fetch {what}: {error}")]
    Fetch {
        /// What was wanted.
        what: String,
        /// Why.
        error: ApiError,
    },
}

impl Source {
    /// Reads a path, a hub id, or the name of a checkpoint that is part of the program; a folder that is called like
    /// one is given with its path, as in `./percept-demo-vlm`.
    ///
    /// # Errors
    /// When it is none of these.
    pub fn parse(text: &str) -> Result<Self, HubError> {
        if let Some(demo) = Demo::named(text) {
            return Ok(Self::Embedded(demo));
        }
        if Path::new(text).is_dir() {
            return Ok(Self::Folder(text.into()));
        }
        let (repository, revision) = text.split_once('@').unwrap_or((text, "main"));
        let plain = |part: &str| {
            let ok = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
            !part.is_empty() && part.bytes().all(ok) && !part.starts_with('.') && !part.contains("..")
        };
        let names: Vec<&str> = repository.split('/').collect();
        let named = names.len() == 2 && names.iter().all(|name| plain(name));
        // A branch may have slashes.
        if !named || !revision.split('/').all(plain) {
            return Err(HubError::NoSource(text.into()));
        }
        Ok(Self::Hub(HubId { repository: repository.into(), revision: revision.into() }))
    }

    /// A short name for it.
    pub fn name(&self) -> String {
        match self {
            Self::Folder(folder) => {
                let whole = fs::canonicalize(folder).unwrap_or_else(|_| folder.clone());
                whole.file_name().map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned())
            }
            Self::Hub(id) => id.repository.clone(),
            Self::Embedded(demo) => demo.name().to_owned(),
        }
    }
}

impl std::fmt::Display for HubId {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}@{}", self.repository, self.revision)
    }
}

impl HubConfig {
    /// Reads what all tools of the hub read: `HF_HUB_CACHE`, `HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN` and `HF_TOKEN_PATH`,
    /// `HF_HUB_OFFLINE`.
    pub fn from_environment() -> Self {
        let set = |name| env::var(name).ok().filter(|value: &String| !value.is_empty());
        let usual = Cache::from_env();
        let cache = set("HF_HUB_CACHE").map_or_else(|| usual.path().clone(), PathBuf::from);
        // Beside the usual cache, wherever another one is.
        let file = set("HF_TOKEN_PATH").map_or_else(|| usual.token_path(), PathBuf::from);
        let saved =
            || Some(fs::read_to_string(file).ok()?.trim().to_owned()).filter(|token| !token.is_empty());
        let yes = |value: String| matches!(value.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE");
        let offline = set("HF_HUB_OFFLINE").is_some_and(yes);
        Self { cache, endpoint: set("HF_ENDPOINT"), token: set("HF_TOKEN").or_else(saved), offline }
    }
}

/// Which files of a checkpoint are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Files {
    /// All that percept reads.
    All,
    /// Those without weights: a few megabytes.
    Small,
}

/// A checkpoint. Files of the hub are taken from the cache where they are; only a checkpoint that is not whole there is
/// downloaded.
///
/// # Errors
/// When it is nowhere to be had.
pub fn resolve<P: Progress>(
    source: &Source,
    config: &HubConfig,
    progress: impl FnMut() -> P,
) -> Result<Checkpoint, HubError> {
    resolve_files(source, config, Files::All, progress)
}

/// As [`resolve`], where weights are not needed: they are there only if somebody else wanted them.
///
/// # Errors
/// When it is nowhere to be had.
pub fn resolve_small<P: Progress>(
    source: &Source,
    config: &HubConfig,
    progress: impl FnMut() -> P,
) -> Result<Checkpoint, HubError> {
    resolve_files(source, config, Files::Small, progress)
}

fn resolve_files<P: Progress>(
    source: &Source,
    config: &HubConfig,
    files: Files,
    progress: impl FnMut() -> P,
) -> Result<Checkpoint, HubError> {
    match source {
        Source::Folder(folder) => Ok(Checkpoint::new(folder)),
        Source::Embedded(demo) => Ok(demo.checkpoint()),
        Source::Hub(id) => fetch(id, config, files, progress).map(Checkpoint::new),
    }
}

/// The folder of a checkpoint of the hub.
fn fetch<P: Progress>(
    id: &HubId,
    config: &HubConfig,
    files: Files,
    progress: impl FnMut() -> P,
) -> Result<PathBuf, HubError> {
    match cached(id, config, files)? {
        Some(folder) if config.offline || is_complete(&folder) => Ok(folder),
        Some(folder) => {
            // The same commit: serving does not update.
            let commit = folder.file_name().map(|name| name.to_string_lossy().into_owned());
            let same = HubId { revision: commit.unwrap_or_else(|| id.revision.clone()), ..id.clone() };
            download(&same, config, files, progress).or_else(|error| {
                warn!(%error, "the checkpoint in the cache may be incomplete, and could not be completed");
                Ok(folder)
            })
        }
        None => download(id, config, files, progress),
    }
}

/// Whether a folder has the small files, too. Other tools leave those out that they do not need.
fn is_complete(folder: &Path) -> bool {
    let any = |names: &[&str]| names.iter().any(|name| folder.join(name).exists());
    any(&["1_Pooling/config.json"])
        || any(&["preprocessor_config.json", "processor_config.json"])
            && any(&["chat_template.jinja", "chat_template.json", "tokenizer_config.json"])
}

/// The folder of a checkpoint whose files are in the cache: the large ones, if they are wanted, and those without which
/// none works.
fn cached(id: &HubId, config: &HubConfig, files: Files) -> Result<Option<PathBuf>, HubError> {
    let cache = Cache::new(config.cache.clone()).repo(repo(id));
    let Some(folder) = cache.get("config.json").and_then(|file| Some(file.parent()?.to_owned())) else {
        return Ok(None);
    };
    let has = |name: &str| folder.join(name).exists();
    if has(SINGLE_FILE) || files == Files::Small {
        return Ok(has("tokenizer.json").then_some(folder));
    }
    if !has(INDEX_FILE) || !has("tokenizer.json") {
        return Ok(None);
    }
    Ok(shards(&folder.join(INDEX_FILE))?.iter().all(|shard| has(shard)).then_some(folder))
}

/// Downloads what of a checkpoint is new or not there, and returns its folder. An interrupted download goes on where
/// it stopped.
///
/// # Errors
/// When the hub cannot be reached, or has no such checkpoint.
pub fn pull<P: Progress>(
    id: &HubId,
    config: &HubConfig,
    progress: impl FnMut() -> P,
) -> Result<PathBuf, HubError> {
    download(id, config, Files::All, progress)
}

fn download<P: Progress>(
    id: &HubId,
    config: &HubConfig,
    files: Files,
    mut progress: impl FnMut() -> P,
) -> Result<PathBuf, HubError> {
    if config.offline {
        let missing = || HubError::NotCached { id: id.to_string(), cache: config.cache.clone() };
        return cached(id, config, files)?.ok_or_else(missing);
    }
    let fetch = |error| explain(id, &id.to_string(), error);
    let cache = Cache::new(config.cache.clone());
    let mut builder =
        ApiBuilder::from_cache(cache.clone()).with_retries(RETRIES).with_user_agent("percept", VERSION);
    if let Some(endpoint) = &config.endpoint {
        builder = builder.with_endpoint(endpoint.clone());
    }
    builder = builder.with_token(config.token.clone());
    let api = builder.build().map_err(fetch)?;
    let info = api.repo(repo(id)).info().map_err(fetch)?;
    // All files of one commit, also when the branch moves meanwhile.
    let commit = HubId { repository: id.repository.clone(), revision: info.sha.clone() };
    let download = Download { api: &api, repo: api.repo(repo(&commit)), cache: &cache, id: &commit };

    let offered = |name: &str| info.siblings.iter().any(|file| file.rfilename == name);
    for name in FILES.iter().filter(|name| offered(name)) {
        download.file(name, &mut progress)?;
    }
    let folder = cache.repo(repo(&commit)).pointer_path(&info.sha);
    if files == Files::Small {
        if !offered(SINGLE_FILE) && !offered(INDEX_FILE) {
            warn!(model = %id, "has no safetensors: it can be looked at, but not be served");
        }
    } else if offered(SINGLE_FILE) {
        download.file(SINGLE_FILE, &mut progress)?;
    } else if offered(INDEX_FILE) {
        download.file(INDEX_FILE, &mut progress)?;
        for shard in shards(&folder.join(INDEX_FILE))? {
            download.file(&shard, &mut progress)?;
        }
    } else {
        return Err(HubError::NoWeights(id.to_string()));
    }
    // Only now: a reference says that everything is there that was wanted.
    let reference = cache.repo(repo(id)).create_ref(&info.sha);
    reference.map_err(|error| HubError::Io { file: config.cache.clone(), error })?;
    Ok(folder)
}

const VERSION: &str = env!("CARGO_PKG_VERSION");

struct Download<'a> {
    api: &'a Api,
    repo: ApiRepo,
    cache: &'a Cache,
    id: &'a HubId,
}

impl Download<'_> {
    fn file<P: Progress>(&self, name: &str, progress: &mut impl FnMut() -> P) -> Result<(), HubError> {
        let fetch = |error| explain(self.id, name, error);
        let cache = self.cache.repo(repo(self.id));
        let pointer = cache.pointer_path(&self.id.revision).join(name);
        if pointer.exists() {
            return Ok(());
        }
        let metadata = self.api.metadata(&self.repo.url(name)).map_err(fetch)?;
        let blob = cache.blob_path(metadata.etag());
        if !blob.exists() {
            self.repo.download_with_progress(name, progress()).map_err(fetch)?;
            return Ok(());
        }
        // Another revision has the same file.
        let link = || -> std::io::Result<()> {
            fs::create_dir_all(pointer.parent().unwrap_or(&pointer))?;
            let up: PathBuf = std::iter::repeat_n("..", 2 + name.matches('/').count()).collect();
            std::os::unix::fs::symlink(up.join("blobs").join(metadata.etag()), &pointer)
        };
        link().map_err(|error| HubError::Io { file: pointer.clone(), error })
    }
}

fn repo(id: &HubId) -> Repo {
    Repo::with_revision(id.repository.clone(), RepoType::Model, id.revision.clone())
}

fn shards(index: &Path) -> Result<Vec<String>, HubError> {
    let file = || index.to_owned();
    let text = fs::read_to_string(index).map_err(|error| HubError::Io { file: file(), error })?;
    shards_of_index(&text).map_err(|error| HubError::Index { file: file(), error })
}

fn explain(id: &HubId, what: &str, error: ApiError) -> HubError {
    if let ApiError::RequestError(request) = &error
        && let ureq::Error::StatusCode(status) = **request
    {
        match status {
            // The hub hides what one may not see behind 401.
            401 | 404 => return HubError::NotFound(id.to_string()),
            403 => return HubError::Forbidden(id.to_string()),
            _ => {}
        }
    }
    HubError::Fetch { what: what.to_owned(), error }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_a_folder_or_an_id() {
        let hub = |repository: &str, revision: &str| {
            Source::Hub(HubId { repository: repository.into(), revision: revision.into() })
        };
        for (text, expected) in [
            (".", Source::Folder(".".into())),
            ("llava-hf/llava-1.5-7b-hf", hub("llava-hf/llava-1.5-7b-hf", "main")),
            ("a/b@v1.0", hub("a/b", "v1.0")),
            ("a/b@refs/pr/3", hub("a/b", "refs/pr/3")),
            ("percept-demo-vlm", Source::Embedded(Demo::Vlm)),
            ("percept-demo-whisper", Source::Embedded(Demo::Whisper)),
        ] {
            assert_eq!(Source::parse(text).unwrap(), expected);
        }
        for text in
            ["", "llava", "a/b/c", "a/", "/etc/nothing", "../a", "a/..", "a/b@", "a/b@../../x", "a b/c"]
        {
            assert!(Source::parse(text).is_err(), "{text}");
        }
    }
}
